package registrar

import (
	"context"
	"fmt"
	"os"
	"path/filepath"
	"reflect"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
)

func newExec(t *testing.T, o ExecOptions) Exec {
	t.Helper()
	c, err := NewExec(o)
	require.NoError(t, err)
	return c
}

// shell is a check with a script.
func shell(t *testing.T, script string) Exec {
	t.Helper()
	return newExec(t, ExecOptions{Command: []string{"sh", "-c", script}})
}

func TestExec(t *testing.T) {
	for script, want := range map[string]string{
		"exit 0":                                      "",
		"echo fine; echo oh >&2":                      "",
		"exit 3":                                      "exit status 3",
		"echo; echo ' disk full '; exit 2":            "exit status 2: disk full",
		"echo oops >&2; exit 1":                       "exit status 1: oops",
		`printf 'a\033[31m\tb\377\n'; exit 1`:         "exit status 1: a?[31m?b?",
		"kill -9 $$":                                  "ended by signal: killed",
		"echo I am $0; kill -TERM $$":                 "ended by signal: terminated: I am sh",
		"yes | head -c 3000000; exit 4":               "exit status 4: y",
		"head -c 9999 /dev/zero | tr '\\0' x; exit 5": "exit status 5: " + strings.Repeat("x", maxQuoted) + "...",
		"cat; exit 6":                                 "exit status 6", // there is no input to wait for
		"pwd; exit 7":                                 "exit status 7: /",
		"no-such-program 2>/dev/null":                 "exit status 127",
	} {
		err := Check{HealthCheck: shell(t, script), Timeout: patience}.run(t.Context())
		if want == "" {
			require.NoError(t, err, script)
			continue
		}
		require.EqualError(t, err, want, script)
	}
}

func TestExecWarns(t *testing.T) {
	run := func(script string, warnExit, weight int) error {
		return newExec(t, ExecOptions{Command: []string{"sh", "-c", script}, WarnExit: warnExit, WarnWeight: weight}).Check(t.Context())
	}
	require.Equal(t, &Degraded{Reason: "exit status 1: disk is 91 % full", Percent: 20}, run("echo disk is 91 % full; exit 1", 1, 20))
	require.Equal(t, &Degraded{Reason: "exit status 3"}, run("exit 3", 3, 0))
	require.NoError(t, run("exit 0", 1, 20))
	for _, err := range []error{run("exit 2", 1, 20), run("exit 1", 0, 20), run("kill -1 $$", 1, 20)} {
		require.Error(t, err)
		require.NotErrorAs(t, err, new(*Degraded))
	}
}

func TestExecEnvironment(t *testing.T) {
	t.Setenv("SECRET", "hunter2")
	script := "env -u PWD -u _ -u SHLVL | sort | tr '\\n' ' '; exit 1"
	require.EqualError(t, shell(t, script).Check(t.Context()), "exit status 1: PATH="+usualPath)
	c := newExec(t, ExecOptions{Command: []string{"sh", "-c", script}, Env: []string{"PATH=/nowhere:/usr/bin:/bin", "MYELIN_PORT=80"}})
	require.EqualError(t, c.Check(t.Context()), "exit status 1: MYELIN_PORT=80 PATH=/nowhere:/usr/bin:/bin")
}

func TestExecProgram(t *testing.T) {
	dir := t.TempDir()
	script := filepath.Join(dir, "check")
	require.NoError(t, os.WriteFile(script, []byte("#!/bin/sh\necho \"$0 $1\"\nexit 1\n"), 0o755))
	require.NoError(t, os.WriteFile(filepath.Join(dir, "text"), []byte("hello"), 0o644))
	env := []string{"PATH=" + dir}
	for _, c := range []struct {
		command []string
		want    string
	}{
		{[]string{"check", "a  b"}, "exit status 1: " + script + " a  b"},
		{[]string{script, "$HOME"}, "exit status 1: " + script + " $HOME"},
		{[]string{"text"}, "run text: it is not in the PATH " + dir},
		{[]string{"sh"}, "run sh: it is not in the PATH " + dir},
		{[]string{dir + "/text"}, "run " + dir + "/text: permission denied"},
		{[]string{dir + "/missing"}, "run " + dir + "/missing: no such file or directory"},
		{[]string{dir}, "run " + dir + ": permission denied"},
	} {
		require.EqualError(t, newExec(t, ExecOptions{Command: c.command, Env: env}).Check(t.Context()), c.want)
	}
	require.EqualError(t, newExec(t, ExecOptions{Command: []string{"sh"}, Env: []string{"PATH="}}).Check(t.Context()), "run sh: it is not in the PATH (empty)")

	for want, command := range map[string][]string{"the command is empty": nil, `"./check" is not a full path`: {"./check"}, `"a/b" is not a full path`: {"a/b", "c"}} {
		_, err := NewExec(ExecOptions{Command: command})
		require.EqualError(t, err, "make exec check: "+want)
	}
	require.True(t, reflect.DeepEqual(shell(t, "exit 0"), shell(t, "exit 0")))
}

// pids reads the numbers that a script wrote.
func pids(t *testing.T, file string, count int) []int {
	t.Helper()
	text, err := os.ReadFile(file)
	require.NoError(t, err)
	var all []int
	for _, f := range strings.Fields(string(text)) {
		n, err := strconv.Atoi(f)
		require.NoError(t, err)
		all = append(all, n)
	}
	require.Len(t, all, count)
	return all
}

// ended waits until a process has ended. A zombie has: it is init's to reap.
func ended(t *testing.T, pid int) {
	t.Helper()
	require.Eventually(t, func() bool {
		stat, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid))
		return err != nil || strings.Contains(string(stat), ") Z ")
	}, patience, time.Millisecond, "process %d", pid)
}

// TestExecTimeout: everybody in the group is killed, those who would rather not included.
func TestExecTimeout(t *testing.T) {
	file := filepath.Join(t.TempDir(), "pids")
	script := fmt.Sprintf("trap '' TERM INT HUP; (trap '' TERM; sleep 1000) & echo $! $$ >%[1]s.new; mv %[1]s.new %[1]s; echo half-way; wait", file)
	ctx, cancel := context.WithCancelCause(t.Context())
	defer cancel(nil)
	result := make(chan error, 1)
	go func() { result <- shell(t, script).Check(ctx) }()
	require.Eventually(t, func() bool { _, err := os.Stat(file); return err == nil }, patience, time.Millisecond)
	cancel(noAnswer(moment))
	err := <-result
	require.ErrorIs(t, err, context.DeadlineExceeded)
	require.Contains(t, []string{"killed: no answer within 60ms", "killed: no answer within 60ms; it said: half-way"}, err.Error())
	for _, pid := range pids(t, file, 2) {
		ended(t, pid)
	}

	err = Check{HealthCheck: shell(t, "sleep 1000"), Timeout: moment}.run(t.Context())
	require.EqualError(t, err, "killed: no answer within 60ms")
}

// TestExecLeavesNothing: what a program started in its group ends with it, and nobody waits for one that left the group
// with the output in its hands.
func TestExecLeavesNothing(t *testing.T) {
	file := filepath.Join(t.TempDir(), "pids")
	require.NoError(t, shell(t, "sleep 1000 & echo $! >"+file).Check(t.Context()))
	ended(t, pids(t, file, 1)[0])

	file += "2"
	require.EqualError(t, shell(t, "setsid sh -c 'echo here; echo $$ >"+file+"; exec sleep 1000' & while [ ! -s "+file+" ]; do :; done; exit 1").Check(t.Context()),
		"exit status 1: here")
	free := pids(t, file, 1)[0]
	require.NoError(t, syscall.Kill(free, syscall.SIGKILL), "it is on its own")
	ended(t, free)
}

// TestExecOpensNothing: a check leaves no file open, whether the program runs or not.
func TestExecOpensNothing(t *testing.T) {
	open := func() int {
		fds, err := os.ReadDir("/proc/self/fd")
		require.NoError(t, err)
		return len(fds)
	}
	check := func() {
		_ = shell(t, "exit 1").Check(t.Context())
		_ = newExec(t, ExecOptions{Command: []string{"/no/such"}}).Check(t.Context())
	}
	check()
	before := open()
	for range 20 {
		check()
	}
	require.Less(t, open(), before+20)
}
