package child

import (
	"bytes"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"os/signal"
	"path/filepath"
	"runtime"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	"go.uber.org/goleak"
)

// The words behind the program with which this file's tests start it again.
const (
	asInit = "as-init" // as a first process, by being a child subreaper
	asWork = "as-work" // as what the first process was started for
)

func TestMain(m *testing.M) {
	switch {
	case len(os.Args) > 2 && os.Args[1] == asInit:
		os.Exit(first(os.Args[2]))
	case len(os.Args) > 2 && os.Args[1] == asWork:
		os.Exit(work(os.Args[2]))
	}
	goleak.VerifyTestMain(m)
}

// first is a first process, and says what Init has returned.
func first(what string) int {
	if IsInit() {
		fmt.Println("init before it is one")
	}
	const prSetChildSubreaper = 36
	if _, _, errno := syscall.RawSyscall(syscall.SYS_PRCTL, prSetChildSubreaper, 1, 0); errno != 0 || !IsInit() {
		fmt.Println("no subreaper:", errno)
		return 1
	}
	signals := make(chan os.Signal, 16)
	signal.Notify(signals, syscall.SIGUSR1, syscall.SIGTERM)
	code, err := Init([]string{os.Args[0], asWork, what}, signals)
	fmt.Println("init:", code, err)
	return 0
}

// work is what a first process is there for.
func work(what string) int {
	if IsInit() {
		fmt.Println("the work is in the first process")
	}
	if syscall.Getpgrp() != os.Getpid() {
		fmt.Println("a Ctrl-C comes twice: from the terminal, and passed on")
	}
	switch what {
	case "orphans":
		for range 3 {
			out, err := exec.Command("sh", "-c", "sleep 0 >/dev/null 2>&1 & echo $!").Output()
			if err != nil {
				fmt.Println(err)
				return 1
			}
			pid, _ := strconv.Atoi(strings.TrimSpace(string(out)))
			for deadline := time.Now().Add(30 * time.Second); ; {
				// Nobody but its first process can take the exit status of an orphan: until then it is there.
				if err := syscall.Kill(pid, 0); errors.Is(err, syscall.ESRCH) {
					break
				}
				if time.Now().After(deadline) {
					fmt.Println("not buried:", pid)
					return 1
				}
				time.Sleep(time.Millisecond)
			}
		}
		return 4
	case "signals":
		signals := make(chan os.Signal, 16)
		signal.Notify(signals, syscall.SIGUSR1)
		fmt.Println("ready")
		fmt.Println("got", <-signals)
		syscall.Kill(os.Getpid(), syscall.SIGKILL)
		select {}
	}
	return 1
}

func self(t *testing.T) string {
	t.Helper()
	if runtime.GOOS != "linux" {
		t.Skip("only Linux has orphans to bury")
	}
	path, err := os.Executable()
	require.NoError(t, err)
	return path
}

// TestInitBuries: what others have left behind is buried, and the helpers of the work are not stolen.
func TestInitBuries(t *testing.T) {
	out, err := exec.Command(self(t), asInit, "orphans").CombinedOutput()
	require.NoError(t, err, string(out))
	require.Equal(t, "init: 4 <nil>\n", string(out))
}

// TestInitPassesSignalsOn: and a death by signal has a shell's exit code.
func TestInitPassesSignalsOn(t *testing.T) {
	cmd := exec.Command(self(t), asInit, "signals")
	out, err := cmd.StdoutPipe()
	require.NoError(t, err)
	require.NoError(t, cmd.Start())
	ready := make([]byte, len("ready\n"))
	_, err = out.Read(ready)
	require.NoError(t, err)
	require.Equal(t, "ready\n", string(ready))
	require.NoError(t, cmd.Process.Signal(syscall.SIGUSR1))
	var rest bytes.Buffer
	_, err = rest.ReadFrom(out)
	require.NoError(t, err)
	require.NoError(t, cmd.Wait())
	require.Equal(t, "got user defined signal 1\ninit: 137 <nil>\n", rest.String())
}

// TestChild: one that ends, one that is told to, and one with all of its group.
func TestChild(t *testing.T) {
	c, err := Start([]string{"sh", "-c", `exit "$CODE"`}, []string{"CODE=5"})
	require.NoError(t, err)
	require.Equal(t, 5, c.Code())
	require.Equal(t, "exit status 5", c.End())
	require.NoError(t, c.Signal(syscall.SIGTERM), "it is over")
	require.NoError(t, c.Kill())

	c, err = Start([]string{"sleep", "1000"}, nil)
	require.NoError(t, err)
	group, err := syscall.Getpgid(c.Pid())
	require.NoError(t, err)
	require.Equal(t, c.Pid(), group, "a Ctrl-C is not for it")
	require.NoError(t, c.Signal(syscall.SIGTERM))
	require.Equal(t, 128+15, c.Code())
	require.Equal(t, "signal: terminated", c.End())

	// The grandchild has the write end of the pipe: who reads it sees the end when all are gone.
	dir := t.TempDir()
	pipe := filepath.Join(dir, "pipe")
	require.NoError(t, syscall.Mkfifo(pipe, 0o600))
	c, err = Start([]string{"sh", "-c", "sleep 1000 > " + pipe + " & wait"}, nil)
	require.NoError(t, err)
	f, err := os.Open(pipe) // blocks until the grandchild has opened it
	require.NoError(t, err)
	defer f.Close()
	require.NoError(t, c.Kill())
	require.Equal(t, 128+9, c.Code())
	n, err := f.Read(make([]byte, 1))
	require.Zero(t, n)
	require.Error(t, err, "end of file")
}

// TestStartErrors: the exit codes are a shell's, and the words say what to do.
func TestStartErrors(t *testing.T) {
	dir := t.TempDir()
	t.Chdir(dir)
	t.Setenv("PATH", ".")
	require.NoError(t, os.WriteFile("here", []byte("#!/bin/sh\n"), 0o755))
	for _, tc := range []struct {
		command string
		code    int
		says    string
	}{
		{"nowhere", 127, `start command "nowhere": there is no such program in PATH; write its full path`},
		{"here", 127, `start command "here": it is in the current folder, which is not searched; write ./here`},
		{"./nowhere", 127, `start command "./nowhere": there is no such file`},
		{"here/too", 126, `start command "here/too": not a directory`},
	} {
		_, err := Start([]string{tc.command}, nil)
		var start *StartError
		require.ErrorAs(t, err, &start)
		require.EqualError(t, err, tc.says)
		require.Equal(t, tc.code, start.Code)
	}
}
