package cli

import (
	"context"
	"errors"
	"fmt"
	"path/filepath"

	"github.com/sirupsen/logrus"

	"github.com/myelin-sd/myelin/config"
	"github.com/myelin-sd/myelin/journal"
)

// journalDir is where the processes of a state_dir keep what happened.
func journalDir(stateDir string) string { return filepath.Join(stateDir, "journal") }

// The roles, as the history names them.
const (
	roleAgent     = "agent"
	roleRegistrar = "registrar"
)

// keeping says what a role keeps of what happened.
type keeping struct {
	role, owner string
	stateDir    string
	history     config.History
}

// open opens the history of a role; whoever opens it closes it. It never fails: what cannot be kept is said in the log.
func (k keeping) open(feed *journal.Feed, log logrus.FieldLogger) *journal.Journal {
	o := journal.Options{Role: k.role, Owner: k.owner, MaxSize: k.history.MaxSize, Feed: feed, Log: log.WithField("component", k.role)}
	if !k.history.Off && k.stateDir != "" {
		o.Dir = journalDir(k.stateDir)
	}
	return journal.Open(o)
}

// started and ended tell the history of a role's life.
func started(role, file string, services int) journal.Event {
	return journal.Event{Kind: journal.KindProcess, What: fmt.Sprintf("%s %s starts with %d services of %s", role, buildVersion(), services, file)}
}

func ended(ctx context.Context, what string, err error) journal.Event {
	e := journal.Event{Kind: journal.KindProcess, What: what}
	var stop stopSignal
	switch {
	case err != nil:
		e.Cause = err.Error()
	case errors.As(context.Cause(ctx), &stop):
		e.Cause = stop.Error()
	}
	return e
}

// recorded has the history know how a re-read of the files went.
func recorded(j journal.Recorder, r reread) reread {
	take := r.take
	r.take = func() error {
		err := take()
		e := journal.Event{Kind: journal.KindProcess, What: "the files were read again and are in force", Cause: "SIGHUP"}
		if err != nil {
			e.What, e.Cause = "the files were read again and are refused; the old configuration stays in force", err.Error()
		}
		j.Record(e)
		return err
	}
	return r
}
