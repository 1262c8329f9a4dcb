package registrar

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os/exec"
	"strconv"
	"strings"
	"syscall"
	"time"

	"github.com/sirupsen/logrus"
)

const (
	hookLimit = 30 * time.Second
	hookWait  = time.Second // after its end, for what it has started and left behind to let go of its output
	hookLine  = 1 << 10     // bytes of a line of output that are logged
	hookLines = 100         // lines that are logged
)

// Hook is a command that is run when a service has gone.
type Hook struct {
	Command []string // the program and its arguments, no shell; empty: none

	// Host and Port are the service's. The command finds them in MYELIN_HOST and MYELIN_PORT, and the service's name in
	// MYELIN_SERVICE, beside the environment of this process.
	Host string
	Port uint16
}

// run runs the command until it ends, ctx does, or 30 s have passed; in the latter cases it is killed with all that it
// has started in its process group. What it says is logged line by line.
func (h Hook) run(ctx context.Context, service string, log logrus.FieldLogger) error {
	ctx, cancel := context.WithTimeoutCause(ctx, hookLimit, fmt.Errorf("it did not end within %s and was killed", hookLimit))
	defer cancel()
	c := exec.CommandContext(ctx, h.Command[0], h.Command[1:]...)
	c.Env = append(c.Environ(), "MYELIN_SERVICE="+service, "MYELIN_HOST="+h.Host, "MYELIN_PORT="+strconv.Itoa(int(h.Port)))
	c.SysProcAttr = &syscall.SysProcAttr{Setpgid: true}
	c.Cancel = func() error { return syscall.Kill(-c.Process.Pid, syscall.SIGKILL) }
	c.WaitDelay = hookWait
	says := &lines{log: log}
	c.Stdout, c.Stderr = says, says
	err := c.Run()
	says.end()
	switch {
	case errors.Is(err, exec.ErrWaitDelay):
		err = nil // it ended well; what it left running has its output no more
	case err != nil && ctx.Err() != nil:
		err = context.Cause(ctx)
	}
	if err != nil {
		return fmt.Errorf("run on_stop command %q: %w", h.Command[0], err)
	}
	return nil
}

// lines logs what is written to it, line by line. One goroutine writes.
type lines struct {
	log   logrus.FieldLogger
	begun bytes.Buffer // a line whose end has not come
	count int
}

func (l *lines) Write(p []byte) (int, error) {
	rest := p
	for {
		line, behind, ended := bytes.Cut(rest, []byte("\n"))
		l.begun.Write(line[:min(len(line), hookLine-l.begun.Len())])
		if !ended {
			return len(p), nil
		}
		l.end()
		rest = behind
	}
}

// end logs the line that has begun.
func (l *lines) end() {
	text := strings.TrimSpace(l.begun.String())
	l.begun.Reset()
	if text == "" {
		return
	}
	if l.count++; l.count == hookLines+1 {
		text = "(more is not logged)"
	}
	if l.count <= hookLines+1 {
		l.log.WithField("output", text).Info("on_stop command says")
	}
}
