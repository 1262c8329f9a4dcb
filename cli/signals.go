package cli

import (
	"context"
	"errors"
	"os"
	"os/signal"
	"strings"
	"sync/atomic"
	"syscall"

	"github.com/coreos/go-systemd/v22/daemon"
	"github.com/sirupsen/logrus"
)

// stops are SIGINT and SIGTERM, which ask a command to end. The zero value is ready for use.
type stops struct {
	later atomic.Pointer[func(os.Signal)] // what those after the first do; nil: end the process
}

// stopSignal is why a command's context ended: with the first SIGINT or SIGTERM.
type stopSignal struct{ os.Signal }

func (s stopSignal) Error() string { return "stopped by signal: " + s.String() }

// catch returns a context that ends with the first SIGINT or SIGTERM. The second one ends the process: an operator who
// asks twice does not want to wait.
func (s *stops) catch() (context.Context, func()) {
	ctx, cancel := context.WithCancelCause(context.Background())
	signals := make(chan os.Signal, 16)
	signal.Notify(signals, syscall.SIGINT, syscall.SIGTERM)
	done := make(chan struct{})
	go func() {
		for first := true; ; first = false {
			select {
			case sig := <-signals:
				later := s.later.Load()
				switch {
				case first:
					cancel(stopSignal{sig})
				case later != nil:
					(*later)(sig)
				default:
					os.Exit(exitFailed)
				}
			case <-done:
				return
			}
		}
	}()
	return ctx, func() {
		signal.Stop(signals)
		close(done)
		cancel(nil)
	}
}

// instead has the signals after the first do f, and not end the process. f must not block.
func (s *stops) instead(f func(os.Signal)) { s.later.Store(&f) }

// stopped is the signal that ended ctx, as an error; nil: it was something else, or nothing.
func stopped(ctx context.Context) error {
	var stop stopSignal
	if errors.As(context.Cause(ctx), &stop) {
		return stop
	}
	return nil
}

// stoppedBy is the signal that ended ctx, or SIGTERM when something else did.
func stoppedBy(ctx context.Context) os.Signal {
	var stop stopSignal
	if errors.As(context.Cause(ctx), &stop) {
		return stop.Signal
	}
	return syscall.SIGTERM
}

// forwarded are the signals that a program run by us is sent, besides SIGINT and SIGTERM: those that ask for
// something. Left out are those that tell of the receiver's own state, those of job control, which the terminal's shell
// has to see the effect of, and SIGABRT, which asks us for a trace.
func forwarded() []os.Signal {
	all := []os.Signal{syscall.SIGHUP, syscall.SIGQUIT, syscall.SIGUSR1, syscall.SIGUSR2, syscall.SIGALRM, syscall.SIGWINCH}
	for n := firstRealTime; n <= lastRealTime; n++ {
		all = append(all, syscall.Signal(n))
	}
	return all
}

// The real-time signals of Linux that C libraries leave to programs.
const (
	firstRealTime = 34 // SIGRTMIN
	lastRealTime  = 64 // SIGRTMAX
)

// asked are the signals that a role answers while it runs. They are caught from the command's beginning to its end,
// because one that nobody catches kills: a re-read that is asked for while services are being withdrawn must not.
type asked struct{ hangup, handover chan os.Signal }

// catch begins to catch the signals. One that comes before somebody answers is answered then.
func catch() asked {
	s := asked{make(chan os.Signal, 1), make(chan os.Signal, 1)}
	signal.Notify(s.hangup, syscall.SIGHUP)
	signal.Notify(s.handover, syscall.SIGUSR2)
	return s
}

// release is for the end of the command. The process may take a moment to end, and must not be killed in it.
func (asked) release() { signal.Ignore(syscall.SIGHUP, syscall.SIGUSR2) }

// reread takes a role's files again. An error has changed nothing.
type reread struct {
	role string
	take func() error
}

// onHangup re-reads the files at each SIGHUP until ctx is done. An error keeps the role's old configuration in force.
func (s asked) onHangup(ctx context.Context, log logrus.FieldLogger, roles ...reread) {
	for {
		select {
		case <-ctx.Done():
			return
		case <-s.hangup:
		}
		notify(log, daemon.SdNotifyReloading+"\n"+daemon.SdNotifyMonotonicUsec())
		for _, r := range roles {
			log := log.WithField("component", r.role)
			if err := r.take(); err != nil {
				log.WithField("err", err).Error("the files are not taken; the old configuration stays in force")
			} else {
				log.Info("the files were read again and are in force")
			}
		}
		notify(log, daemon.SdNotifyReady)
	}
}

// setting is a key that is read at the start only.
type setting struct {
	key      string
	was, now any // comparable
}

// startOnly warns of keys that differ from those of the start. Without it a re-read would seem to have taken them.
func startOnly(log logrus.FieldLogger, settings ...setting) {
	var keys []string
	for _, s := range settings {
		if s.was != s.now {
			keys = append(keys, s.key)
		}
	}
	if len(keys) > 0 {
		log.WithField("reason", strings.Join(keys, ", ")+" changed").Warn("not all of the files is in force: restart the process for the rest")
	}
}

// onHandover calls leave at the first SIGUSR2, unless ctx ends before.
func (s asked) onHandover(ctx context.Context, log logrus.FieldLogger, leave func()) {
	select {
	case <-ctx.Done():
	case <-s.handover:
		log.Info("another process takes over")
		leave()
	}
}
