package zookeeper

import (
	"bytes"
	"cmp"
	"context"
	"fmt"
	"io"
	"maps"
	"path"
	"slices"
	"time"

	"github.com/go-zookeeper/zk"
	"github.com/sirupsen/logrus"

	"github.com/myelin-sd/myelin/discovery"
)

// SourceOptions of a source.
type SourceOptions struct {
	Decode Decode        // nil: Nerve's format, with a discovery.NerveDecoder of its own
	Poll   time.Duration // read everything at this interval; 0: watch
	Gap    time.Duration // least time between the beginnings of two rounds of reads; 0: what the storm asks for
	Log    logrus.FieldLogger

	Data bool // the data of the path's own node come with the snapshots
	Bare bool // only they do: the children are neither listed among the instances nor read
	Raw  bool // the children come with the snapshots as they are, and are no instances: nothing is decoded

	// Immutable says that nobody sets the data of a registered node: a change is another node, or the node deleted and
	// created again. A reconnect that finds the directory unchanged then reads nothing. Nerve does set data.
	Immutable bool
}

// Source returns a source of what is registered under path, an absolute path below the session's chroot. It reads
// only: a path that is missing is waited for and never made.
//
// The first change after quiet is read and sent at once; what changes while a round of reads is under way is gathered
// and read in the next, and in a storm of changes rounds are up to 250 ms apart. A snapshot that nobody has taken yet
// is replaced by a newer one. A round that cannot be finished sends nothing, and is repeated with growing pauses. Run
// may be called again after it has ended.
func (s *Session) Source(service, path string, o SourceOptions) discovery.Source {
	if o.Decode == nil {
		o.Decode = new(discovery.NerveDecoder).Decode
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

func (r *source) view() *view {
	v := newView(r.o.Decode)
	v.raw = r.o.Raw
	return v
}

const (
	retryFirst = 100 * time.Millisecond
	retryMost  = 5 * time.Second

	// sayAfter is how many rounds in a row fail before it is said.
	sayAfter = 3
)

// task is what a round has to look at, in this order.
type task struct {
	arm   bool                // the persistent watch is to be set
	look  bool                // whether the directory is still as it was left
	list  bool                // the names of the children
	all   bool                // every child that is known
	nodes map[string]struct{} // these children
	same  bool                // what look found
	audit *audit              // nothing is known to have changed: what is found counts as a difference
	why   string              // what led to it first
}

// because notes what led to the task, unless something else did before.
func (t *task) because(why string) {
	if t.why == "" {
		t.why = why
	}
}

func (t *task) empty() bool { return !t.arm && !t.look && !t.list && !t.all && len(t.nodes) == 0 }

func (t *task) add(name string) {
	if t.nodes == nil {
		t.nodes = map[string]struct{}{}
	}
	t.nodes[name] = struct{}{}
}

// audit gathers what a full reading finds that no watch has told of.
type audit struct {
	names map[string]struct{} // children found created or deleted
	nodes map[string]struct{} // children found changed

	list bool                // told of: the set of children
	told map[string]struct{} // told of: these children
}

func newAudit() *audit {
	return &audit{names: map[string]struct{}{}, nodes: map[string]struct{}{}, told: map[string]struct{}{}}
}

// hear takes in what watches have told since the reading was planned.
func (a *audit) hear(list bool, nodes map[string]struct{}) {
	a.list = a.list || list
	maps.Copy(a.told, nodes)
}

// count returns how much of what was found nobody has told of by the end of the reading. A server tells of a change
// before it answers with it, so that an event that is still to come is about a later change.
func (a *audit) count() int {
	missed := maps.Clone(a.nodes)
	if !a.list {
		maps.Copy(missed, a.names)
	}
	maps.DeleteFunc(missed, func(name string, _ struct{}) bool { _, ok := a.told[name]; return ok })
	return len(missed)
}

// Run implements discovery.Source.
func (r *source) Run(ctx context.Context, out chan<- discovery.Snapshot) error {
	box := r.s.listen(r.path)
	var e *epoch
	defer func() { r.s.disarm(e, r.path, box) }()
	var (
		v        = r.view()
		t        task
		due      agenda
		latest   discovery.Snapshot
		send     chan<- discovery.Snapshot // out while latest has not been taken
		failures int
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
		if newest == nil {
			continue
		}
		if newest != e {
			e, failures = newest, 0
			r.begin(e, v, &t, &due, now)
		}
		r.gather(v, &t, &due, list, nodes, now)
		r.plan(e, v, &t, &due, now)
		if !t.empty() && !now.Before(due.round) && !e.lost() {
			began := now
			err := r.round(ctx, e, v, &t, box)
			now = time.Now()
			switch {
			case err == nil:
				if failures >= sayAfter {
					r.o.Log.WithFields(logrus.Fields{"path": r.path, "count": failures}).Info("service can be read again")
				}
				failures = 0
				if r.suffices(v, &t) {
					due.all = time.Time{}
				}
				t.same, due.round = false, began.Add(r.gap(v, due.rate.now(now)))
				if v.changed {
					version := latest.Version
					if send == nil {
						version++
					}
					latest = v.snapshot(r.service, began)
					latest.Version, latest.Cause = version, t.why
					send = out
				}
				t.why = ""
			case ctx.Err() != nil:
				return ctx.Err()
			case !e.lost():
				failures++
				due.round = now.Add(jitter(min(retryFirst<<min(failures-1, 10), retryMost)))
				if failures == sayAfter {
					r.o.Log.WithFields(logrus.Fields{"path": r.path, "err": err}).Warn("service cannot be read; the last view stays in force")
				}
			}
		}
		if e.lost() {
			continue // the next connection wakes us
		}
		timer.Reset(time.Until(due.next(!t.empty())))
	}
}

// begin plans what a new connection asks for.
func (r *source) begin(e *epoch, v *view, t *task, due *agenda, now time.Time) {
	t.audit, due.round = nil, time.Time{}
	t.look, t.same = false, false // they were about another connection
	first := !v.complete
	t.why = discovery.CauseReconnect
	if first {
		t.list, t.all, t.why = true, true, discovery.CauseFirst
	}
	if r.o.Poll > 0 {
		if first {
			due.audit = now.Add(r.o.Poll)
		}
		return
	}
	t.arm = true
	due.audit = now.Add(jitter(r.s.o.AntiEntropy))
	if !first {
		r.s.resyncs.Add(1)
		due.resync(len(v.nodes), now)
	}
}

// gather takes in what watches have told.
func (r *source) gather(v *view, t *task, due *agenda, list bool, nodes map[string]struct{}, now time.Time) {
	if r.o.Poll > 0 {
		return
	}
	if t.audit != nil {
		t.audit.hear(list, nodes)
	}
	changes := len(nodes)
	if list || changes > 0 {
		t.because(discovery.CauseEvent)
	}
	if list {
		t.list = true
		changes++
	}
	due.rate.add(changes, now)
	modern := r.s.modern()
	if r.o.Bare {
		return
	}
	for name := range nodes {
		if modern || v.nodes[name] != nil { // in classic mode others are read when they are listed
			t.add(name)
		}
	}
}

// plan adds what is due by now.
func (r *source) plan(e *epoch, v *view, t *task, due *agenda, now time.Time) {
	waiting := !t.empty() || !due.look.IsZero() || !due.all.IsZero()
	if reached(&due.look, now) {
		// A session that lives on proves that it is still the same store, and a stamp is only worth something there.
		same := r.s.modern() && v.session == e.session
		t.look, t.list = same, t.list || !same
		t.because(discovery.CauseReconnect)
	}
	if reached(&due.all, now) {
		t.all = true
		t.because(discovery.CauseReconnect)
	}
	switch {
	case !reached(&due.audit, now):
	case r.o.Poll > 0:
		t.list, t.all = true, true
		t.because(discovery.CausePoll)
		due.audit = now.Add(r.o.Poll)
	default:
		t.because(discovery.CauseAudit)
		t.list, t.all = true, t.all || !r.o.Immutable
		due.audit = now.Add(jitter(r.s.o.AntiEntropy))
		if !waiting {
			t.audit = newAudit()
		}
	}
}

// gap is the time between the beginnings of two rounds.
func (r *source) gap(v *view, changes float64) time.Duration {
	gap := max(window(changes), r.o.Gap)
	if !r.s.modern() {
		gap = max(gap, min(time.Duration(len(v.nodes))*classicPerNode, classicMost))
	}
	return gap
}

// lost reports whether the connection has ended. Until the library has said so as well, down is open.
func (e *epoch) lost() bool {
	select {
	case <-e.down:
		return true
	default:
		return e.tap.dead()
	}
}

// round reads what t asks for into v. When it returns an error, what has not been read is left in t.
func (r *source) round(ctx context.Context, e *epoch, v *view, t *task, box *inbox) error {
	err := r.read(ctx, e, v, t, box != nil && r.o.Poll == 0)
	if err == nil {
		v.complete = true
		if t.audit != nil {
			t.audit.hear(box.peek())
			r.s.differences.Add(uint64(t.audit.count()))
		}
	}
	t.audit = nil
	return err
}

func (r *source) read(ctx context.Context, e *epoch, v *view, t *task, watch bool) error {
	s := r.s
	if t.arm && s.modern() {
		if err := s.arm(ctx, e, r.path); err != nil {
			return err
		}
	}
	t.arm = false
	if !t.empty() {
		if err := s.catchUp(ctx, e, r.path); err != nil {
			return err
		}
	}
	if t.look {
		st, err := s.exists(ctx, e, r.path, false)
		if err != nil && !gone(err) {
			return err
		}
		if t.same = err == nil && stampOf(st) == v.stamp; t.same {
			s.unchanged.Add(1)
			v.gen = e.gen
		} else {
			t.list = true
		}
		if r.o.Data && err == nil && st.Mzxid != v.dataAt {
			t.list = true // its data was set meanwhile
		}
		t.look, t.all = false, t.all && !r.suffices(v, t)
	}
	classic := watch && !s.modern()
	if t.list {
		ls, err := s.children(ctx, e, r.path, classic)
		if gone(err) {
			v.absent()
			*t = task{why: t.why}
			return nil
		}
		if err != nil {
			return err
		}
		v.stamped(stampOf(ls.stat), e)
		if err := r.own(ctx, e, v, ls.stat, classic); err != nil {
			return err
		}
		if r.o.Bare {
			ls.names = nil
		}
		r.listed(v, t, ls)
	}
	if t.all {
		v.readable(t.add)
		t.all, v.owed = false, false // what of it is not read stays in t.nodes
	}
	return r.readNodes(ctx, e, v, t, watch, classic)
}

// suffices reports whether the directory being as it was left says that the data of its children is, too.
func (r *source) suffices(v *view, t *task) bool { return t.same && r.o.Immutable && !v.owed }

// own reads the data of the path's own node, if they are wanted, and if they were set since the last time. What may not
// be read, or is too large, counts as none.
func (r *source) own(ctx context.Context, e *epoch, v *view, st zk.Stat, watch bool) error {
	if !r.o.Data || v.dataRead && v.dataAt == st.Mzxid && !watch {
		return nil
	}
	now := reading{stat: st}
	if st.DataLength > 0 || watch { // in classic mode the reading sets the watch for the next change
		var err error
		switch now, err = r.s.get(ctx, e, r.path, watch); {
		case forbidden(err), tooLarge(err):
			now = reading{stat: st}
		case err != nil:
			return err
		}
	}
	v.changed = v.changed || !v.dataRead || !bytes.Equal(v.data, now.data)
	v.data, v.dataAt, v.dataRead = bytes.Clone(now.data), now.stat.Mzxid, true
	return nil
}

// listed takes in the names of the children.
func (r *source) listed(v *view, t *task, ls listing) {
	unknown, left := v.list(ls.names)
	for _, name := range left {
		delete(t.nodes, name)
	}
	if len(t.nodes) == 0 {
		t.nodes = make(map[string]struct{}, len(unknown))
	}
	for _, name := range unknown {
		t.add(name)
	}
	if t.audit != nil {
		for _, name := range slices.Concat(unknown, left) {
			t.audit.names[name] = struct{}{}
		}
	}
	t.list = false
}

// directory is the name of a directory in itself.
const directory = "."

// readNodes reads t's nodes, and decodes those that changed.
func (r *source) readNodes(ctx context.Context, e *epoch, v *view, t *task, watch, classic bool) error {
	if len(t.nodes) == 0 {
		return nil
	}
	names := slices.AppendSeq(make([]string, 0, len(t.nodes)+1), maps.Keys(t.nodes))
	if watch && !classic && v.gen == e.gen {
		// With the children comes the directory's stamp. The server has told of all changes up to it before it answers,
		// so that after a reconnect the same stamp means that nothing was missed. But first it must have been compared.
		names = append(names, directory)
	}
	var failed error
	err := r.s.readNodes(ctx, e, r.path, names, classic, func(name string, now reading, err error) {
		switch {
		case name == directory:
			if err == nil {
				v.stamp = stampOf(now.stat)
			}
			return
		case gone(err):
			if t.audit != nil && v.nodes[name] != nil {
				t.audit.names[name] = struct{}{}
			}
			v.remove(name)
		case forbidden(err):
			v.unreadable(name)
		case tooLarge(err):
			v.oversize(name)
		case err != nil:
			failed = wrap("get", path.Join(r.path, name), err)
			return
		case !v.nodes[name].same(now):
			if t.audit != nil && v.nodes[name] != nil { // one that is new was found by the listing
				t.audit.nodes[name] = struct{}{}
			}
			v.put(v.decoded(name, now))
		}
		delete(t.nodes, name)
	})
	if len(t.nodes) == 0 {
		t.nodes = nil // a map keeps the room of all that was ever in it
	}
	return cmp.Or(err, failed)
}

// Snapshot reads a path once, without watches. It waits for a connection, and begins again when that is lost, until
// ctx ends.
func (s *Session) Snapshot(ctx context.Context, service, path string) (discovery.Snapshot, error) {
	snap, err := again(ctx, s, func(e *epoch) (discovery.Snapshot, error) {
		now := time.Now()
		r := &source{s: s, service: service, path: s.full(path)}
		v, t := newView(new(discovery.AnyDecoder).Decode), task{list: true}
		err := r.round(ctx, e, v, &t, nil)
		return v.snapshot(service, now), err
	})
	if err != nil {
		return discovery.Snapshot{}, fmt.Errorf("read %s: %w", path, err)
	}
	snap.Version = 1
	return snap, nil
}
