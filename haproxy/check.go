package haproxy

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"strings"
	"time"
)

// CheckLike is the Check for a HAProxy that others run, which nobody set up for us: it refuses a file only where its
// word counts. That is so where the HAProxy at hand has the version of the one that runs (running returns it, or "" when
// it does not answer), and accepts the file that is in force at present. It may lack another file that HAProxy is
// started with, or the right to read a certificate, and then it would refuse any file. What it cannot judge passes.
//
// Each run of binary takes at most timeout; there are three where a file is refused.
func CheckLike(binary, present string, running func(context.Context) string, timeout time.Duration) Check {
	check := CheckWith(binary, timeout)
	return func(ctx context.Context, path string) error {
		if _, err := exec.LookPath(findBinary(binary)); err != nil {
			return nil
		}
		if _, err := os.Stat(present); errors.Is(err, fs.ErrNotExist) {
			return nil // nothing to compare with
		}
		refused := check(ctx, path)
		if refused == nil || ctx.Err() != nil {
			return ctx.Err()
		}
		if version := running(ctx); version != "" && version != versionOf(ctx, binary, timeout) {
			return nil
		}
		if err := check(ctx, present); err != nil {
			return ctx.Err()
		}
		return fmt.Errorf("%w; with do_checks = false it would not be asked", refused)
	}
}

// versionOf is what a HAProxy says of itself, in the words of "show info"; empty where it says nothing.
func versionOf(ctx context.Context, binary string, timeout time.Duration) string {
	ctx, cancel := context.WithTimeout(ctx, timeout)
	defer cancel()
	out, err := runCommand(ctx, exec.CommandContext(ctx, findBinary(binary), "-v"))
	if err != nil {
		return ""
	}
	for line := range strings.Lines(out) { // "HAProxy version 2.6.12-1+deb12u4 2026/10/17 - https://haproxy.org/", "HA-Proxy" before 2.4
		if f := strings.Fields(line); len(f) > 2 && f[1] == "version" {
			return f[2]
		}
	}
	return ""
}

// RunningVersion is the version of the first HAProxy that answers on one of the sockets; "" where none does.
func RunningVersion(ctx context.Context, sockets ...string) string {
	for _, socket := range sockets {
		c, err := Dial(ctx, socket, ClientOptions{Timeout: askTimeout})
		if err != nil {
			continue
		}
		version := c.Identity().Version
		c.Close()
		return version
	}
	return ""
}
