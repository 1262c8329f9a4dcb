package zookeeper

import (
	"context"
	"fmt"
	"io"
	"maps"
	"math/rand/v2"
	"path"
	"slices"
	"time"

	"github.com/sirupsen/logrus"

	"github.com/myelin-sd/myelin/discovery"
)

// SourceOptions of a source.
type SourceOptions struct {
	Decode Decode        // nil: discovery.DecodeNerve
	Poll   time.Duration // read everything at this interval; 0: watch
	Log    logrus.FieldLogger

	// Immutable says that nobody sets the data of a registered node: a change is another node, or the node deleted and
	// created again. A reconnect that finds the directory unchanged then reads nothing. Nerve does set data.
	Immutable bool
}

// Source returns a source of what is registered under path, an absolute path below the session's chroot. It reads
// only: a path that is missing is waited for and never made.
//
// The first change after quiet is read and sent at once; what changes while a round of reads is under way is gathered
// and read in the next. A snapshot that nobody has taken yet is replaced by a newer one. A round that cannot be
// finished sends nothing, and is repeated with growing pauses. Run may be called again after it has ended.
func (s *Session) Source(service, path string, o SourceOptions) discovery.Source {
	if o.Decode == nil {
		o.Decode = discovery.DecodeNerve
	}
	if o.Log == nil {
		silent := logrus.New()
		silent.SetOutput(io.Discard)
		o.Log = silent
	}
	return &source{s: s, service: service, path: s.full(path), o: o}
}

type source struct {
	s       *Session
	service string
	path    string // with the chroot
	o       SourceOptions
}

const (
	retryFirst = 100 * time.Millisecond
	retryMost  = 5 * time.Second

	// sayAfter is how many rounds in a row fail before it is said.
	sayAfter = 3
)

// task is what a round has to look at.
type task struct {
	list  bool                // the names of the children
	all   bool                // with list: read every child, known or not
	nodes map[string]struct{} // children to read
	audit bool                // nothing is known to have changed: what is found counts as a difference
}

func (t *task) full() { t.list, t.all = true, true }

func (t *task) empty() bool { return !t.list && len(t.nodes) == 0 }

func (t *task) add(name string) {
	if t.nodes == nil {
		t.nodes = map[string]struct{}{}
	}
	t.nodes[name] = struct{}{}
}

// Run implements discovery.Source.
func (r *source) Run(ctx context.Context, out chan<- discovery.Snapshot) error {
	box := r.s.open(r.path)
	defer r.s.shut(r.path, box)
	watch := r.o.Poll == 0
	var (
		v        = newView(r.o.Decode)
		t        task
		e        *epoch
		latest   discovery.Snapshot
		send     chan<- discovery.Snapshot // out while latest has not been taken
		failures int
		retryAt  time.Time // not before
		checkAt  time.Time // next full reading; zero before the first connection
		timer    = time.NewTimer(0)
	)
	defer timer.Stop()
	for {
		select {
		case <-ctx.Done():
			return ctx.Err()
		case send <- latest:
			send = nil
			continue
		case <-box.wake:
		case <-timer.C:
		}

		now := time.Now()
		newest, list, nodes := box.take()
		switch {
		case newest == nil:
			continue
		case newest != e:
			e, failures, retryAt = newest, 0, time.Time{}
			if watch || checkAt.IsZero() {
				t.full()
			}
			if watch {
				checkAt = now.Add(jitter(r.s.o.Confirm))
			} else if checkAt.IsZero() {
				checkAt = now.Add(r.o.Poll)
			}
		case !now.Before(checkAt):
			t.full()
			t.audit = watch
			checkAt = now.Add(jitter(r.s.o.AntiEntropy))
			if !watch {
				checkAt = now.Add(r.o.Poll)
			}
		}
		if watch {
			t.list = t.list || list
			for name := range nodes {
				if v.nodes[name] != nil { // others are read when they are listed
					t.add(name)
				}
			}
		}
		if !t.empty() && !now.Before(retryAt) && !e.lost() {
			err := r.s.round(ctx, e, r.path, v, &t, watch)
			switch {
			case err == nil:
				if failures >= sayAfter {
					r.o.Log.WithFields(logrus.Fields{"path": r.path, "count": failures}).Info("service can be read again")
				}
				failures, retryAt = 0, time.Time{}
				if v.changed {
					version := latest.Version
					if send == nil {
						version++
					}
					latest = v.snapshot(r.service, now)
					latest.Version = version
					send = out
				}
			case ctx.Err() != nil:
				return ctx.Err()
			case !e.lost():
				failures++
				retryAt = time.Now().Add(jitter(min(retryFirst<<min(failures-1, 10), retryMost)))
				if failures == sayAfter {
					r.o.Log.WithFields(logrus.Fields{"path": r.path, "err": err}).Warn("service cannot be read; the last view stays in force")
				}
			}
		}
		if e.lost() {
			continue // the next connection wakes us
		}
		next := checkAt
		if !t.empty() && retryAt.Before(next) {
			next = retryAt
		}
		timer.Reset(time.Until(next))
	}
}

// jitter returns a random time around d, from two thirds to four thirds of it.
func jitter(d time.Duration) time.Duration {
	return d*2/3 + rand.N(d*2/3+1)
}

func (e *epoch) lost() bool {
	select {
	case <-e.down:
		return true
	default:
		return false
	}
}

// round reads what t asks for into v. When it returns an error, what has not been read is left in t.
func (s *Session) round(ctx context.Context, e *epoch, dir string, v *view, t *task, watch bool) error {
	if t.list {
		ls, err := call(ctx, s, e, func(l *link) (listing, error) { return l.children(dir, watch) })
		if gone(err) {
			e.link.forget(dir, slices.Collect(maps.Keys(v.nodes)))
			v.absent()
			*t = task{}
			return nil
		}
		if err != nil {
			return err
		}
		unknown, left := v.list(ls.names)
		e.link.forget(dir, left)
		if t.audit && ls.stood {
			s.differences.Add(uint64(len(unknown) + len(left)))
		}
		for _, name := range left {
			delete(t.nodes, name)
		}
		for _, name := range unknown {
			t.add(name)
		}
		if t.all {
			for name, n := range v.nodes {
				if n.mzxid != 0 || n.rejection != nil { // the others carry all they have in their names
					t.add(name)
				}
			}
		}
		t.list, t.all = false, false
	}
	if err := s.readNodes(ctx, e, dir, v, t, watch); err != nil {
		return err
	}
	t.audit = false
	return nil
}

// readNodes reads t's nodes, many at a time, and decodes those that changed where they were read.
func (s *Session) readNodes(ctx context.Context, e *epoch, dir string, v *view, t *task, watch bool) error {
	type answer struct {
		name  string
		node  *node // nil: nothing new
		stood bool
		err   error
	}
	answers := make(chan answer, len(t.nodes)) // never blocks a sender, even when nobody listens any more
	var failed error
	asked := 0
	for name := range t.nodes {
		known := v.nodes[name]
		failed = s.start(ctx, e, func(l *link) {
			r, err := l.get(path.Join(dir, name), watch)
			a := answer{name: name, stood: r.stood, err: err}
			if err == nil && !known.same(r) {
				a.node = v.decoded(name, r)
			}
			answers <- a
		})
		if failed != nil {
			break
		}
		asked++
	}
	for range asked {
		var a answer
		select {
		case a = <-answers:
		case <-ctx.Done():
			return ctx.Err()
		case <-e.down:
			return errLost
		}
		switch {
		case gone(a.err): // deleted since it was listed
			v.remove(a.name)
		case forbidden(a.err):
			v.unreadable(a.name)
		case a.err != nil:
			failed = a.err
			continue
		case a.node != nil:
			v.put(a.node)
			if t.audit && a.stood {
				s.differences.Add(1)
			}
		}
		delete(t.nodes, a.name)
	}
	return failed
}

// forget lets go of the watches of children that are gone. They have fired with the deletion.
func (l *link) forget(dir string, names []string) {
	for _, name := range names {
		l.watches.stands(watchKey{watchData, path.Join(dir, name)})
	}
}

// Snapshot reads a path once, without watches. It waits for a connection, and begins again when that is lost, until
// ctx ends.
func (s *Session) Snapshot(ctx context.Context, service, path string) (discovery.Snapshot, error) {
	snap, err := again(ctx, s, func(e *epoch) (discovery.Snapshot, error) {
		now := time.Now()
		v, t := newView(discovery.DecodeNerve), task{}
		t.full()
		err := s.round(ctx, e, s.full(path), v, &t, false)
		return v.snapshot(service, now), err
	})
	if err != nil {
		return discovery.Snapshot{}, fmt.Errorf("read %s: %w", path, err)
	}
	snap.Version = 1
	return snap, nil
}
