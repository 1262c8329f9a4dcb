package registrar

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"time"
)

const (
	maxOutput = 4 << 10                // bytes of a program's output that are kept
	lastWords = 100 * time.Millisecond // for output that is still in the pipe when the program has ended
	usualPath = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
)

// ExecOptions describe a program that tells how a service is.
type ExecOptions struct {
	// Command is the program and its arguments. A program without a slash is looked for in the PATH of Env.
	Command []string
	// Env are the program's variables, as "NAME=value". Of ours it gets none; without a PATH it gets the usual one.
	Env []string
	// WarnExit is the exit status that means that the service works and asks for less traffic, 1 to 255; 0: none does.
	WarnExit int
	// WarnWeight is how much of its weight the service has then, in percent, 1 to 100; 0: 1.
	WarnWeight int
}

// Exec passes when a program ends with status 0, and is degraded when it ends with WarnExit. The program runs in the root folder with its standard input closed, in
// a process group of its own, of which nothing is left when the check ends. A process that leaves the group is on its
// own.
//
// The process must not reap this child elsewhere: the status would be lost, and the check fails.
type Exec struct{ o ExecOptions }

// NewExec refuses commands without a program, or with one that is found or not depending on the current folder.
func NewExec(o ExecOptions) (Exec, error) {
	switch {
	case len(o.Command) == 0 || o.Command[0] == "":
		return Exec{}, errors.New("make exec check: the command is empty")
	case strings.Contains(o.Command[0], "/") && !filepath.IsAbs(o.Command[0]):
		return Exec{}, fmt.Errorf("make exec check: %q is not a full path", o.Command[0])
	}
	return Exec{o}, nil
}

// Check runs the program once and waits for it. When ctx ends, the whole process group is killed. Check blocks for
// longer than ctx only while the kernel cannot end the program, as when its disk hangs.
func (c Exec) Check(ctx context.Context) error {
	program, err := c.find()
	if err != nil {
		return err
	}
	out, err := newOutput()
	if err != nil {
		return fmt.Errorf("run %s: %w", program, err)
	}
	cmd := exec.CommandContext(ctx, program, c.o.Command[1:]...)
	cmd.Args[0] = c.o.Command[0]
	cmd.Dir, cmd.Env = "/", c.env()
	cmd.Stdout, cmd.Stderr = out.write, out.write
	cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true}
	cmd.Cancel = func() error { return killGroup(cmd.Process.Pid) }
	err = cmd.Start()
	if err != nil {
		out.close()
		return fmt.Errorf("run %s: %w", program, fact(err))
	}
	err = cmd.Wait()
	// What the program started and left behind goes as well. Its group cannot be another's by now: the kernel gives the
	// number to nobody while the group has a member, and hands numbers out in turn when it has none.
	_ = killGroup(cmd.Process.Pid)
	return c.verdict(ctx, cmd.ProcessState, err, out.close())
}

// verdict words the end of the program.
func (c Exec) verdict(ctx context.Context, state *os.ProcessState, err error, said string) error {
	switch {
	case state != nil && state.Success():
		return nil // in time or not: it has told
	case ctx.Err() != nil:
		return told("killed", said, context.Cause(ctx))
	case state == nil:
		return fmt.Errorf("wait for %s: %w", c.o.Command[0], fact(err))
	}
	if status, ok := state.Sys().(syscall.WaitStatus); ok && status.Signaled() {
		return told("ended by signal: "+status.Signal().String(), said, nil)
	}
	err = told(fmt.Sprintf("exit status %d", state.ExitCode()), said, nil)
	if state.ExitCode() == c.o.WarnExit {
		return &Degraded{Reason: err.Error(), Percent: c.o.WarnWeight}
	}
	return err
}

// told adds to what happened why it did, and what the program said.
func told(what, said string, why error) error {
	if why != nil {
		if said == "" {
			return fmt.Errorf("%s: %w", what, why)
		}
		return fmt.Errorf("%s: %w; it said: %s", what, why, said)
	}
	if said == "" {
		return errors.New(what)
	}
	return fmt.Errorf("%s: %s", what, said)
}

func (c Exec) env() []string {
	if _, ok := lookup(c.o.Env, "PATH"); ok {
		return c.o.Env
	}
	return append([]string{"PATH=" + usualPath}, c.o.Env...)
}

func lookup(env []string, name string) (value string, ok bool) {
	for _, e := range env { // the last one counts, as for a program
		if v, found := strings.CutPrefix(e, name+"="); found {
			value, ok = v, true
		}
	}
	return value, ok
}

// find looks for the program, anew for each run: it may be installed or updated meanwhile.
func (c Exec) find() (string, error) {
	name := c.o.Command[0]
	if filepath.IsAbs(name) {
		return name, nil
	}
	path, _ := lookup(c.env(), "PATH")
	for _, dir := range filepath.SplitList(path) {
		if !filepath.IsAbs(dir) {
			continue
		}
		if found, err := exec.LookPath(filepath.Join(dir, name)); err == nil {
			return found, nil
		}
	}
	return "", fmt.Errorf("run %s: it is not in the PATH %s", name, cmp.Or(path, "(empty)"))
}

// fact takes the path and the system call out of an error, which have been said.
func fact(err error) error {
	var path *os.PathError
	var sys *os.SyscallError
	switch {
	case errors.As(err, &path):
		return path.Err
	case errors.As(err, &sys):
		return sys.Err
	}
	return err
}

func killGroup(leader int) error {
	err := syscall.Kill(-leader, syscall.SIGKILL)
	if errors.Is(err, syscall.ESRCH) {
		return os.ErrProcessDone
	}
	return err
}

// output reads what a program says, so that it never blocks, and keeps the beginning. It is no io.Writer handed to
// os/exec: Wait would then wait for everybody who holds the pipe.
type output struct {
	read, write *os.File
	reading     sync.WaitGroup
	kept        []byte // for the reader alone until it has ended
}

func newOutput() (*output, error) {
	r, w, err := os.Pipe()
	if err != nil {
		return nil, fmt.Errorf("make pipe: %w", err)
	}
	o := &output{read: r, write: w}
	o.reading.Go(func() {
		o.kept, _ = io.ReadAll(io.LimitReader(o.read, maxOutput))
		_, _ = io.Copy(io.Discard, o.read)
	})
	return o, nil
}

// close ends the reading, soon even when somebody still holds the pipe, and returns the first line worth showing.
func (o *output) close() string {
	_ = o.write.Close()
	_ = o.read.SetReadDeadline(time.Now().Add(lastWords))
	o.reading.Wait()
	_ = o.read.Close()
	return firstLine(o.kept)
}

// firstLine is the first line that is not blank, fit for a log.
func firstLine(text []byte) string {
	for line := range strings.Lines(string(text)) {
		if line = strings.TrimSpace(line); line != "" {
			return shorten(strings.Map(printable, strings.ToValidUTF8(line, "?")))
		}
	}
	return ""
}
