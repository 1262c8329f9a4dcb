package child

import (
	"errors"
	"fmt"
	"os"
	"runtime"
	"syscall"
	"unsafe"
)

const prGetChildSubreaper = 37 // PR_GET_CHILD_SUBREAPER of prctl(2)

// IsInit reports whether the system hands orphans to this process: it is the first one of a container, or a child
// subreaper. Somebody has to bury them then, see Init.
func IsInit() bool {
	if os.Getpid() == 1 {
		return true
	}
	var set int32
	_, _, errno := syscall.Syscall(syscall.SYS_PRCTL, prGetChildSubreaper, uintptr(unsafe.Pointer(&set)), 0)
	return errno == 0 && set != 0
}

// Init runs command, a program and its arguments, and does what an init process has to: it buries all orphans, and
// passes on what comes from signals. It blocks until the program has ended, and returns its exit code, 128 and the
// signal's number when a signal has ended it. An error means that the program does not run.
//
// The program does the work that this process was started for. That work has children of its own to wait for, and the
// system has no way to wait for orphans only; so the two are never in one process.
//
// The program has a process group of its own, and the terminal when this process had it: a Ctrl-C reaches the program
// once.
func Init(command []string, signals <-chan os.Signal) (code int, err error) {
	program, err := os.Executable()
	if err != nil {
		return 0, fmt.Errorf("start %s beside init: %w", command[0], err)
	}
	process, err := os.StartProcess(program, command, &os.ProcAttr{
		Files: []*os.File{os.Stdin, os.Stdout, os.Stderr},
		Sys:   &syscall.SysProcAttr{Setpgid: true, Foreground: hasTerminal(0), Ctty: 0},
	})
	if err != nil {
		return 0, fmt.Errorf("start %s beside init: %w", command[0], err)
	}
	ended := make(chan syscall.WaitStatus, 1)
	failed := make(chan error, 1)
	go func() {
		status, err := bury(process.Pid)
		if err != nil {
			failed <- err
			return
		}
		ended <- status
	}()
	for {
		select {
		case sig := <-signals:
			// By its handle, which cannot mean another process. One that has ended is about to be told of.
			_ = process.Signal(sig)
		case status := <-ended:
			runtime.KeepAlive(process)
			return exitCode(status), nil
		case err := <-failed:
			return 0, err
		}
	}
}

// bury takes the exit status of every child, those that others have left behind included, until that of main comes.
func bury(main int) (syscall.WaitStatus, error) {
	for {
		var status syscall.WaitStatus
		pid, err := syscall.Wait4(-1, &status, 0, nil)
		switch {
		case errors.Is(err, syscall.EINTR):
		case err != nil:
			return 0, fmt.Errorf("wait for children: %w", err)
		case pid == main:
			return status, nil
		}
	}
}

// hasTerminal tells whether fd is the terminal of this process's group.
func hasTerminal(fd uintptr) bool {
	var group int32
	_, _, errno := syscall.Syscall(syscall.SYS_IOCTL, fd, syscall.TIOCGPGRP, uintptr(unsafe.Pointer(&group)))
	return errno == 0 && int(group) == syscall.Getpgrp()
}
