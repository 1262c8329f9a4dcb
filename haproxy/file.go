package haproxy

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"time"

	"github.com/myelin-sd/myelin/durable"
)

// newFileMode is the mode of a file that did not exist: HAProxy's file may hold passwords.
const newFileMode fs.FileMode = 0o640

// Check judges a configuration file before it comes into force. Nil is a pass; the error has HAProxy's own lines.
type Check func(ctx context.Context, path string) error

// Writer keeps haproxy.cfg equal to what was rendered. It is not for concurrent use; two processes must not write the
// same file.
type Writer struct {
	path, candidate string
	check           Check
}

// NewWriter returns a Writer of path. The new text is first written to candidate, which must be on path's file
// system; empty means path with ".tmp" behind it. A check that is not nil must pass before a file is replaced.
func NewWriter(path, candidate string, check Check) *Writer {
	return &Writer{path: path, candidate: candidate, check: check}
}

// Read returns the file as it is on disk; a missing file is an error that is fs.ErrNotExist.
func (w *Writer) Read() ([]byte, error) {
	cfg, err := os.ReadFile(w.path)
	if err != nil {
		return nil, fmt.Errorf("read HAProxy's file: %w", err)
	}
	return cfg, nil
}

// Write replaces the file by cfg unless it is equal already, and returns whether it did. A reader finds the old text
// or the new one, never a part, also after a power cut. On any error the old file is in force as it was and the
// candidate is gone. A file keeps its mode and, as far as we may, its owner; a symbolic link stays a link.
//
// It blocks for as long as the disk and the check take.
func (w *Writer) Write(ctx context.Context, cfg []byte) (changed bool, err error) {
	path := w.path
	if target, err := filepath.EvalSymlinks(path); err == nil {
		path = target
	}
	// What is on disk is read, not remembered: someone may have edited it. One that cannot be read is replaced.
	if old, err := os.ReadFile(path); err == nil && bytes.Equal(old, cfg) {
		return false, nil
	}
	candidate := w.candidate
	if candidate == "" {
		candidate = path + ".tmp"
	}
	defer func() {
		if err != nil {
			err = fmt.Errorf("write HAProxy's file %s, which stays as it was: %w", w.path, err)
		}
	}()
	if err := writeCandidate(candidate, path, cfg); err != nil {
		return false, errors.Join(advise(err, candidate), removeIfThere(candidate))
	}
	if w.check != nil {
		if err := w.check(ctx, candidate); err != nil {
			return false, errors.Join(err, removeIfThere(candidate))
		}
	}
	if err := os.Rename(candidate, path); err != nil {
		return false, errors.Join(advise(err, candidate), removeIfThere(candidate))
	}
	if err := durable.SyncDir(filepath.Dir(path)); err != nil {
		return true, err
	}
	return true, nil
}

// writeCandidate puts cfg into a new file that has the mode and the owner of model, if there is one, and waits until
// it is on the disk.
func writeCandidate(candidate, model string, cfg []byte) error {
	// A left-over of a crash, or what someone else may have put there: never written through.
	if err := removeIfThere(candidate); err != nil {
		return err
	}
	f, err := os.OpenFile(candidate, os.O_WRONLY|os.O_CREATE|os.O_EXCL, 0o600)
	if err != nil {
		return err
	}
	mode := newFileMode
	if info, err := os.Stat(model); err == nil {
		mode = info.Mode().Perm()
		if st, ok := info.Sys().(*syscall.Stat_t); ok {
			// Only root may give a file away. For everyone else a file of one's own is all there is to have.
			_ = f.Chown(int(st.Uid), int(st.Gid))
		}
	}
	_, err = f.Write(cfg)
	if err == nil {
		err = f.Chmod(mode) // not left to the umask, and behind Chown, which may clear bits
	}
	if err == nil {
		err = f.Sync()
	}
	return errors.Join(err, f.Close())
}

// removeIfThere removes a file, and nothing but a file: root could remove /dev/null.
func removeIfThere(path string) error {
	info, err := os.Lstat(path)
	switch {
	case errors.Is(err, fs.ErrNotExist), errors.Is(err, syscall.ENOTDIR):
		return nil
	case err != nil:
		return err
	case !info.Mode().IsRegular() && info.Mode().Type() != fs.ModeSymlink:
		return fmt.Errorf("%s is not a file; choose another candidate_config_file_path", path)
	}
	return os.Remove(path)
}

// advise adds what an operator can do about the usual reasons that a file cannot be written.
func advise(err error, candidate string) error {
	dir := filepath.Dir(candidate)
	switch {
	case errors.Is(err, syscall.ENOSPC), errors.Is(err, syscall.EDQUOT):
		return fmt.Errorf("%w; make room on the file system of %s", err, dir)
	case errors.Is(err, fs.ErrPermission), errors.Is(err, syscall.EROFS):
		return fmt.Errorf("%w; let uid %d write to %s", err, os.Geteuid(), dir)
	case errors.Is(err, fs.ErrNotExist), errors.Is(err, syscall.ENOTDIR):
		return fmt.Errorf("%w; create the directory %s", err, dir)
	case errors.Is(err, syscall.EXDEV):
		return fmt.Errorf("%w; put haproxy.candidate_config_file_path on the file system of haproxy.config_file_path", err)
	}
	return err
}

// CheckWith is the Check that asks HAProxy itself: "binary -c -f path", for at most timeout.
func CheckWith(binary string, timeout time.Duration) Check {
	return func(ctx context.Context, path string) error {
		ctx, cancel := context.WithTimeout(ctx, timeout)
		defer cancel()
		out, err := runCommand(ctx, exec.CommandContext(ctx, findBinary(binary), "-c", "-f", path))
		if err != nil {
			return fmt.Errorf("check %s with %s -c: %w", path, binary, withOutput(err, complaints(out)))
		}
		return nil
	}
}

// findBinary adds the folder that HAProxy's packages install to, and that the PATH of users other than root lacks. What
// is not found is returned as it is, for the error of whoever runs it.
func findBinary(name string) string {
	for _, candidate := range []string{name, filepath.Join("/usr/sbin", name)} {
		if path, err := exec.LookPath(candidate); err == nil {
			return path
		}
	}
	return name
}

// CheckCommand is the Check that runs the operator's command with sh -c, for at most timeout. The command names the
// candidate file itself, as SmartStack's check_command does.
func CheckCommand(command string, timeout time.Duration) Check {
	return func(ctx context.Context, _ string) error {
		if err := runShell(ctx, command, timeout); err != nil {
			return fmt.Errorf("run check_command: %w", err)
		}
		return nil
	}
}

// ReloadCommand returns a function for ReloaderOptions.Reload that runs the operator's command with sh -c, for at
// most timeout.
func ReloadCommand(command string, timeout time.Duration) func(context.Context) error {
	return func(ctx context.Context) error {
		if err := runShell(ctx, command, timeout); err != nil {
			return fmt.Errorf("run reload_command: %w", err)
		}
		return nil
	}
}

func runShell(ctx context.Context, command string, timeout time.Duration) error {
	ctx, cancel := context.WithTimeout(ctx, timeout)
	defer cancel()
	out, err := runCommand(ctx, exec.CommandContext(ctx, "sh", "-c", command))
	if err != nil {
		return withOutput(err, tail(out))
	}
	return nil
}

// runCommand runs cmd, which was made with ctx, and returns what it wrote. When ctx ends, it and all that it started
// are killed, except what made itself a session of its own, as daemons do.
func runCommand(ctx context.Context, cmd *exec.Cmd) (string, error) {
	var out limitedBuffer
	cmd.Stdout, cmd.Stderr = &out, &out
	cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true}
	cmd.Cancel = func() error { return syscall.Kill(-cmd.Process.Pid, syscall.SIGKILL) }
	// A daemon that the command started may keep its output open for ever. It is not waited for.
	cmd.WaitDelay = 200 * time.Millisecond
	err := cmd.Run()
	switch {
	case ctx.Err() != nil:
		if errors.Is(ctx.Err(), context.DeadlineExceeded) {
			err = errors.New("no end in the time it has; killed")
		} else {
			err = ctx.Err()
		}
	case errors.Is(err, exec.ErrWaitDelay):
		err = nil // it ended well
	}
	return out.String(), err
}

// outputLimit bounds what is kept of a command's output, in bytes.
const outputLimit = 64 << 10

// limitedBuffer keeps the first outputLimit bytes and takes the rest without an error.
type limitedBuffer struct{ bytes.Buffer }

func (b *limitedBuffer) Write(p []byte) (int, error) {
	if room := outputLimit - b.Len(); room > 0 {
		b.Buffer.Write(p[:min(room, len(p))])
	}
	return len(p), nil
}

func withOutput(err error, output string) error {
	if output == "" {
		return err
	}
	return fmt.Errorf("%w: %s", err, output)
}

// shownLines is how many lines of a program's output go into an error.
const shownLines = 8

// complaints are the lines of HAProxy's output that say what is wrong: those marked ALERT, or all if none is.
func complaints(output string) string {
	var alerts []string
	for l := range strings.Lines(output) {
		if _, alert, ok := strings.Cut(l, "[ALERT]"); ok {
			// "[ALERT]    (1234) : config : ...": a pid would make each try another error.
			if pid, text, ok := strings.Cut(alert, " : "); ok && strings.HasSuffix(strings.TrimSpace(pid), ")") {
				alert = text
			}
			alerts = append(alerts, alert)
		}
	}
	if len(alerts) == 0 {
		return tail(output)
	}
	// The first alert is the cause; those behind it repeat that there was one.
	return oneLine(alerts[:min(len(alerts), shownLines)])
}

// tail is the last lines of a program's output.
func tail(output string) string {
	lines := strings.Split(strings.TrimSpace(output), "\n")
	return oneLine(lines[max(0, len(lines)-shownLines):])
}

func oneLine(lines []string) string {
	var kept []string
	for _, l := range lines {
		if l = strings.Join(strings.Fields(l), " "); l != "" {
			kept = append(kept, l)
		}
	}
	return strings.Join(kept, "; ")
}
