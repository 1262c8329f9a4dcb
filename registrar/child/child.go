// Package child runs a program as a child of this process: started once, signalled, waited for. It also is the init
// process that a container needs, which buries the orphans that the system hands to it.
package child

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"syscall"
)

// The exit codes that shells give when they cannot start a command.
const (
	codeNotExecutable = 126
	codeNotFound      = 127
)

// signalled is added to the number of the signal that ended a program, as shells do.
const signalled = 128

// StartError says that a program could not be started.
type StartError struct {
	Code int // the exit code of a shell: 127 when there is no such program, 126 when it cannot be executed
	Err  error
}

func (e *StartError) Error() string { return e.Err.Error() }

func (e *StartError) Unwrap() error { return e.Err }

// Child is a program that was started. Its methods may be called from several goroutines.
type Child struct {
	cmd  *exec.Cmd
	done chan struct{}
}

// Start runs command, a program and its arguments, with the environment env (nil: that of this process) and with the
// standard input, output and error of this process. A program without a slash is looked for in PATH. The error is a
// *StartError.
//
// The child has a process group of its own, so that the Ctrl-C of a terminal reaches this process alone, which stops
// the child in its own time. The terminal stays with this process's group: a child that reads from it is stopped by
// the system.
func Start(command, env []string) (*Child, error) {
	cmd := exec.Command(command[0], command[1:]...)
	cmd.Env = env
	cmd.Stdin, cmd.Stdout, cmd.Stderr = os.Stdin, os.Stdout, os.Stderr
	cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true}
	if err := cmd.Start(); err != nil {
		return nil, startError(command[0], err)
	}
	c := &Child{cmd: cmd, done: make(chan struct{})}
	go func() {
		defer close(c.done)
		_ = cmd.Wait() // what there is to know is in ProcessState
	}()
	return c, nil
}

// startError words why a program does not start.
func startError(name string, err error) *StartError {
	say := func(code int, format string, args ...any) *StartError {
		return &StartError{Code: code, Err: fmt.Errorf("start command %q: "+format, append([]any{name}, args...)...)}
	}
	var path *fs.PathError
	switch {
	case errors.Is(err, exec.ErrDot):
		return say(codeNotFound, "it is in the current folder, which is not searched; write ./%s", name)
	case errors.Is(err, exec.ErrNotFound):
		return say(codeNotFound, "there is no such program in PATH; write its full path")
	case errors.Is(err, fs.ErrNotExist) && exists(name):
		return say(codeNotFound, "the interpreter that it names is not there: %w", err)
	case errors.Is(err, fs.ErrNotExist):
		return say(codeNotFound, "there is no such file")
	case errors.Is(err, fs.ErrPermission):
		return say(codeNotExecutable, "it may not be executed; look at its mode (chmod +x) and at its folders")
	case errors.Is(err, syscall.ENOEXEC):
		return say(codeNotExecutable, "it is not a program of this system, or a script without #! in its first line")
	case errors.As(err, &path):
		err = path.Err
	}
	return say(codeNotExecutable, "%w", err)
}

func exists(path string) bool {
	_, err := os.Stat(path)
	return err == nil
}

// Pid is the child's process id.
func (c *Child) Pid() int { return c.cmd.Process.Pid }

// Signal sends a signal to the child, not to the processes that it has started. A child that has ended is no error.
func (c *Child) Signal(sig os.Signal) error {
	if err := c.cmd.Process.Signal(sig); err != nil && !errors.Is(err, os.ErrProcessDone) {
		return fmt.Errorf("send signal %q to process %d: %w", sig, c.Pid(), err)
	}
	return nil
}

// Kill ends the child and all of its process group with SIGKILL. Done tells when the child has ended. One that has
// ended is no error.
func (c *Child) Kill() error {
	select {
	case <-c.done: // the group may have gone, and its number be another's
		return nil
	default:
	}
	if err := syscall.Kill(-c.Pid(), syscall.SIGKILL); err != nil && !errors.Is(err, syscall.ESRCH) {
		return fmt.Errorf("kill process group %d: %w", c.Pid(), err)
	}
	return nil
}

// Done is closed when the child has ended.
func (c *Child) Done() <-chan struct{} { return c.done }

// Code blocks until the child has ended, and returns its exit code: 128 and the signal's number when a signal has ended
// it, as shells say it.
func (c *Child) Code() int {
	<-c.done
	return exitCode(c.cmd.ProcessState.Sys().(syscall.WaitStatus))
}

// End blocks until the child has ended, and says how in words: "exit status 1", "signal: killed".
func (c *Child) End() string {
	<-c.done
	return c.cmd.ProcessState.String()
}

func exitCode(status syscall.WaitStatus) int {
	if status.Signaled() {
		return signalled + int(status.Signal())
	}
	return status.ExitStatus()
}
