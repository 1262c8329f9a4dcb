package cli

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"path"
	"strings"
	"time"

	"github.com/myelin-sd/myelin/agent"
	"github.com/myelin-sd/myelin/config"
	"github.com/myelin-sd/myelin/discovery/zookeeper"
)

// askLong is ask for questions that read much: --timeout bounds the time in which nothing is heard, and not all of it.
// The question calls heard with how many nodes it has read by now. When it has what it wants then is called, without a
// bound, while the session is still open; nil: nothing is to be done.
func (a *app) askLong(
	ctx context.Context, zk config.ZooKeeper,
	question func(ctx context.Context, s *zookeeper.Session, heard func(nodes int)) error, then func(context.Context, *zookeeper.Session) error,
) error {
	pool := agent.NewSessions(a.questionLog())
	defer pool.Close()
	s, err := a.open(pool, zk)
	if err != nil {
		return err
	}
	asking, cancel := context.WithCancel(ctx)
	defer cancel()
	silence := time.AfterFunc(a.timeout, cancel)
	defer silence.Stop()
	a.answerFast()
	p := a.progress()
	err = question(asking, s, func(nodes int) { silence.Reset(a.timeout); p.say("%d nodes read", nodes) })
	p.done()
	switch {
	case err != nil && ctx.Err() != nil:
		return cmp.Or(stopped(ctx), ctx.Err()) // somebody has ended the command
	case err != nil && asking.Err() != nil:
		return notHeard(zk, s, a.timeout)
	case err != nil || then == nil:
		return err
	}
	return then(ctx, s)
}

// notHeard is the error of a question without an answer, after so long.
func notHeard(zk config.ZooKeeper, s *zookeeper.Session, waited time.Duration) error {
	why := s.Status().Error
	if why == "" {
		why = "no answer"
	}
	return &unheardError{fmt.Errorf("ask ZooKeeper at %s: nothing heard within %s: %s; check the address, tls, and that the ensemble has a quorum", strings.Join(zk.Hosts, ","), waited, why)}
}

// noSuchPath is the error about a path that does not exist, with the nearest one that does. Other errors stay as they are.
func noSuchPath(ctx context.Context, s *zookeeper.Session, p string, err error) error {
	if !errors.Is(err, zookeeper.ErrNoPath) {
		return err
	}
	p = path.Clean("/" + p)
	hint := `"myelin services /" lists what there is`
	if names, err := s.Children(ctx, path.Dir(p)); err == nil {
		if near := config.Nearest(path.Base(p), names); near != "" {
			hint = "did you mean " + printable(path.Join(path.Dir(p), near)) + "?"
		}
	}
	return fmt.Errorf("there is no %s in ZooKeeper; %s", printable(p), hint)
}
