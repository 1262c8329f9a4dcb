package cli

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/signal"
	"slices"
	"strings"
	"time"

	"github.com/sirupsen/logrus"

	"github.com/myelin-sd/myelin/registrar/child"
)

// wrapper runs a service as a child, beside the registrar that its registrations live in.
type wrapper struct {
	log         logrus.FieldLogger
	role        *registrarRole
	child       *child.Child
	stopTimeout time.Duration    // from the child's signal to its end; 0: no limit
	signals     <-chan os.Signal // to pass on
	release     func()           // of signals
	insist      func(f func(os.Signal))
}

// startCommand starts the command of the registrar, if there is one. Signals are caught from now on, those that come
// before run are passed on then.
func (a *app) startCommand(command, environment []string, stopTimeout time.Duration, r *registrarRole) (*wrapper, error) {
	if len(command) == 0 {
		return nil, nil
	}
	signals := make(chan os.Signal, 64)
	signal.Notify(signals, forwarded()...)
	release := func() { signal.Ignore(forwarded()...) } // as asked does: none may kill a process that is ending
	c, err := child.Start(command, environment)
	if err != nil {
		release()
		var start *child.StartError
		if errors.As(err, &start) {
			return nil, &codeError{start.Code, err}
		}
		return nil, err
	}
	log := r.log.WithFields(logrus.Fields{"path": command[0], "pid": c.Pid()})
	log.Info("the command runs")
	return &wrapper{
		log: log, role: r, child: c, stopTimeout: stopTimeout, signals: signals, release: release, insist: a.stops.instead,
	}, nil
}

// childEnvironment is what the service gets of our environment, and where it can reach us, unless control is empty. It
// does not get what systemd has for its main process, which is this one: a service that answered for it would say that
// it is ready, or alive, in our name.
func childEnvironment(ours []string, control string) []string {
	env := slices.DeleteFunc(slices.Clone(ours), func(v string) bool {
		name, _, _ := strings.Cut(v, "=")
		return name == "NOTIFY_SOCKET" || name == "WATCHDOG_PID" || name == "WATCHDOG_USEC" || name == controlVariable
	})
	if control != "" {
		env = append(env, controlVariable+"="+control)
	}
	return env
}

// run looks after the registrations and the child until the child has ended. When ctx ends, the services are withdrawn
// and drained, and then the child is told to stop. When the child ends by itself, they are withdrawn at once. The error
// carries the child's exit code, unless that is 0.
func (w *wrapper) run(ctx context.Context) error {
	defer w.release()
	w.insist(w.pass)
	registering, withdraw := context.WithCancel(context.WithoutCancel(ctx))
	defer withdraw()
	withdrawn := make(chan error, 1)
	go func() { withdrawn <- w.role.run(registering) }()

	asked := ctx.Done()
	var overdue <-chan time.Time
	var failed error
	for {
		select {
		case <-asked:
			asked = nil
			w.log.WithField("reason", stoppedBy(ctx).String()).Info("the command is to stop, after its services have left")
			withdraw()
		case failed = <-withdrawn:
			withdrawn = nil
			w.pass(stoppedBy(ctx))
			if w.stopTimeout > 0 {
				overdue = time.After(w.stopTimeout)
			}
		case sig := <-w.signals:
			w.pass(sig)
		case <-overdue:
			w.log.WithField("duration", w.stopTimeout).Warn("the command did not end in time; it is killed")
			if err := w.child.Kill(); err != nil {
				w.log.WithField("err", err).Error("cannot kill the command")
			}
		case <-w.child.Done():
			w.log.WithField("reason", w.child.End()).Info("the command has ended")
			if withdrawn != nil {
				w.role.Hasten() // nobody is to wait for a service that is dead
				withdraw()
				failed = <-withdrawn
			}
			return w.ended(failed)
		}
	}
}

// pass sends a signal to the child.
func (w *wrapper) pass(sig os.Signal) {
	if err := w.child.Signal(sig); err != nil {
		w.log.WithField("err", err).Warn("a signal is not passed on")
	}
}

// ended is what the command's end means for this process.
func (w *wrapper) ended(failed error) error {
	if failed != nil {
		return failed
	}
	if code := w.child.Code(); code != exitDone {
		return &codeError{code: code}
	}
	return nil
}

// runAsInit does the command line's work in a process of its own, because this one has orphans to bury.
func (a *app) runAsInit(ctx context.Context) error {
	signals := make(chan os.Signal, 64)
	signal.Notify(signals, forwarded()...)
	defer signal.Stop(signals)
	a.stops.instead(func(sig os.Signal) { offer(signals, sig) })
	defer context.AfterFunc(ctx, func() { offer(signals, stoppedBy(ctx)) })()
	code, err := child.Init(append([]string{os.Args[0]}, a.args...), signals)
	switch {
	case err != nil:
		return fmt.Errorf("run as the first process: %w", err)
	case code != exitDone:
		return &codeError{code: code}
	}
	return nil
}

// offer puts a signal where others wait for theirs. One too many is dropped, as the system does.
func offer(signals chan<- os.Signal, sig os.Signal) {
	select {
	case signals <- sig:
	default:
	}
}
