package cli

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"io/fs"
	"path/filepath"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"github.com/myelin-sd/myelin/config"
)

// Questions about services are answered by ZooKeeper, by the agent of this host, or by the sets that it keeps on disk:
// whoever is there. They go before each other in this order.

// Sources of an answer.
const (
	fromZooKeeper = "zookeeper"
	fromAgent     = "agent"
	fromDisk      = "disk"
)

// origin says where an answer comes from, and how old it is. The JSON names are part of the interface.
type origin struct {
	Source string    `json:"source"` // zookeeper, agent or disk
	Where  string    `json:"where"`  // the hosts, the agent's address, or the folder
	AsOf   time.Time `json:"as_of"`  // until when it is known to be right
}

// zookeeperShare is the part of --timeout that ZooKeeper has for its answer before others are asked.
const zookeeperShare = 4

// question is how each of them is asked. A nil function cannot be.
type question[T any] struct {
	hosts     []string                                                        // none: ZooKeeper is not given
	zookeeper func(context.Context) (T, error)                                // as ask does; see unheardError
	agent     func(ctx context.Context, address string) (T, time.Time, error) // with the time of origin.AsOf
	disk      func(stateDir string) (T, time.Time, error)
	kept      string // where that is within state_dir; empty: in the folder of sets
}

// factFlags add what a command needs to ask elsewhere than in ZooKeeper.
func factFlags(c *cobra.Command, address *string) {
	c.Flags().StringVar(address, "address", "", "`HOST:PORT` of the agent (default: admin.listen of -c FILE, else "+config.DefaultAdminListen+")")
}

// factsOf asks ZooKeeper, if it is given. When there is no session within a part of --timeout, the agent at address is
// asked, then the disk is read; when both know nothing, ZooKeeper has the rest of the time. An answer that does not come
// from ZooKeeper is told of on errs.
func factsOf[T any](ctx context.Context, a *app, address string, q question[T]) (of T, from origin, err error) {
	given := len(q.hosts) > 0
	from = origin{Source: fromZooKeeper, Where: strings.Join(q.hosts, ",")}
	away := usage("which ZooKeeper? give it with --zookeeper HOSTS, MYELIN_ZOOKEEPER or -c FILE")
	var asked *asking[T]
	if given {
		asked = ask(ctx, q.zookeeper)
		defer asked.end()
		if asked.wait(a) && !asked.unheard() {
			from.AsOf = time.Now()
			return asked.of, from, asked.err
		}
	}
	of, other, err := elsewhere(ctx, a, address, q)
	if err == nil {
		a.tell(other, given)
		return of, other, nil
	}
	if given {
		if asked.rest(); !asked.unheard() {
			from.AsOf = time.Now()
			return asked.of, from, asked.err
		}
		away = asked.err
	}
	var unknown *unknownError
	if !given && errors.As(err, &unknown) {
		return of, origin{}, unknown // somebody was there to ask, and does not know it
	}
	return of, origin{}, fmt.Errorf("%w; %w", away, err)
}

// asking is a question to ZooKeeper under way.
type asking[T any] struct {
	cancel context.CancelFunc
	done   chan struct{} // closed when of and err hold
	of     T
	err    error
}

// ask asks in a goroutine of its own. The caller calls end.
func ask[T any](ctx context.Context, question func(context.Context) (T, error)) *asking[T] {
	ctx, cancel := context.WithCancel(ctx)
	q := &asking[T]{cancel: cancel, done: make(chan struct{})}
	go func() {
		defer close(q.done)
		q.of, q.err = question(ctx)
	}()
	return q
}

// wait waits for the answer, for as long as there is a session, and for a part of --timeout until there is one. It
// returns whether it has come.
func (q *asking[T]) wait(a *app) bool {
	patience := time.NewTimer(a.timeout / zookeeperShare)
	defer patience.Stop()
	select {
	case <-q.done:
		return true
	case <-patience.C:
	}
	if s := a.latest.Load(); s != nil && s.Status().Connected { // it only takes its time
		q.rest()
		return true
	}
	return false
}

// rest waits until the answer is there.
func (q *asking[T]) rest() { <-q.done }

// unheard tells that ZooKeeper did not answer. It is for after the answer.
func (q *asking[T]) unheard() bool {
	var unheard *unheardError
	return errors.As(q.err, &unheard)
}

// end gives up the question, if it is still open, and waits for its end.
func (q *asking[T]) end() {
	q.cancel()
	<-q.done
}

// elsewhere asks the agent, then the disk.
func elsewhere[T any](ctx context.Context, a *app, address string, q question[T]) (of T, from origin, err error) {
	if address == "" {
		address, err = a.agentListen()
	}
	if err == nil {
		var asOf time.Time
		short, cancel := context.WithTimeout(ctx, a.timeout)
		defer cancel()
		if of, asOf, err = q.agent(short, address); err == nil {
			return of, origin{fromAgent, address, asOf}, nil
		}
	}
	asking := err
	dir, err := a.stateDir()
	where := filepath.Join(dir, cmp.Or(q.kept, "snapshots"))
	if err == nil {
		var asOf time.Time
		if of, asOf, err = q.disk(dir); err == nil {
			return of, origin{fromDisk, where, asOf}, nil
		}
	}
	if errors.Is(err, fs.ErrNotExist) {
		err = fmt.Errorf("nothing of it is on disk in %s", where)
	}
	return of, origin{}, fmt.Errorf("%w; %w", asking, err)
}

// tell says on errs where an answer comes from that is not ZooKeeper's.
func (a *app) tell(from origin, given bool) {
	why := ""
	if given {
		why = "ZooKeeper does not answer; "
	}
	fmt.Fprintf(a.errs, "myelin: %s%s\n", why, from.words(time.Now()))
}

// words say where an answer comes from, and how old it is.
func (o origin) words(now time.Time) string {
	when := "now"
	if old := now.Sub(o.AsOf); o.AsOf.IsZero() {
		when = "at a time that is not known"
	} else if old > 2*time.Second {
		when = age(now, o.AsOf) + " ago"
	}
	switch o.Source {
	case fromAgent:
		return fmt.Sprintf("this is what the agent at %s knows, as it was %s", o.Where, when)
	case fromDisk:
		return fmt.Sprintf("this is what is kept on disk in %s, as it was %s", o.Where, when)
	}
	return fmt.Sprintf("this is what ZooKeeper at %s lists now", o.Where)
}

// stateDir is where the agent of -c FILE keeps its sets; without a file the default.
func (a *app) stateDir() (string, error) {
	if a.configFile == "" {
		return config.DefaultStateDir, nil
	}
	kind, err := config.Detect(a.configFile, a.options(false))
	if err != nil {
		return "", err
	}
	if kind == config.KindRegistrar {
		return config.DefaultStateDir, nil
	}
	c, _, err := config.LoadAgent(a.configFile, a.options(false))
	switch {
	case err != nil:
		return "", err
	case c.StateDir == "":
		return "", fmt.Errorf("%s: state_dir is off, so nothing is kept on disk", a.configFile)
	}
	return c.StateDir, nil
}

// unheardError says that ZooKeeper did not answer in time: somebody else may know.
type unheardError struct{ err error }

func (e *unheardError) Error() string { return e.err.Error() }
func (e *unheardError) Unwrap() error { return e.err }
