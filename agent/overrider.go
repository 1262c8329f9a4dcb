package agent

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"maps"
	"math/rand/v2"
	"os"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/sirupsen/logrus"

	"github.com/myelin-sd/myelin/config"
	"github.com/myelin-sd/myelin/discovery"
	"github.com/myelin-sd/myelin/discovery/zookeeper"
	"github.com/myelin-sd/myelin/durable"
	"github.com/myelin-sd/myelin/journal"
)

const (
	// An override that has ended is removed by whichever agent comes first: of ten thousand, few are to try. None tries
	// before as much time has gone by again: where a host's clock is ahead, it must not end early for all others.
	removeWithin  = 10 * time.Minute
	removeAgain   = time.Hour // where it could not be removed
	removeTimeout = 10 * time.Second

	mostKeptOverrides = 64 << 20 // bytes of the file that is read at a start
)

// overrides looks after what is known of operators' overrides: it hears the registry, keeps it on disk, and removes what
// has ended. The goroutine that collects the views puts it in force.
type overrides struct {
	path     string                                                  // in the registry; empty: overrides are not honoured
	origin   string                                                  // where that is
	ensemble config.ZooKeeper                                        // whose it is
	file     string                                                  // where it is kept; empty: nowhere
	source   discovery.Source                                        // nil: overrides are not honoured
	remove   func(context.Context, discovery.Override) (bool, error) // nil: not by this process
	contact  func() (known, away bool, since time.Time)              // how the registry is reached
	within   time.Duration                                           // an override that has ended is removed after this and a random part of it
	wake     chan struct{}                                           // capacity one: something was heard
	log      logrus.FieldLogger

	mu     sync.Mutex
	latest overriding
	err    string // why it is not kept
}

// newOverrides takes up what is known: by before, the generation before, or else by the process before.
func (a *Agent) newOverrides(c *config.Agent, before *overrides) *overrides {
	o := &overrides{wake: make(chan struct{}, 1), within: removeWithin, log: a.log, contact: func() (bool, bool, time.Time) { return false, false, time.Time{} }}
	if c.OverridesPath == "" || len(c.ZooKeeper.Hosts) == 0 {
		return o
	}
	o.path, o.ensemble = c.OverridesPath, c.ZooKeeper
	o.origin = originOfOverrides(c)
	session := a.sessions.Get(c.ZooKeeper)
	o.source = session.Source("", o.path, zookeeper.SourceOptions{
		Raw: true, Log: a.o.Log.WithFields(logrus.Fields{"component": "discovery", "path": o.path}),
	})
	if a.o.Shadow == nil { // a shadow changes nothing
		o.remove = func(ctx context.Context, ended discovery.Override) (bool, error) {
			return session.RemoveEndedOverride(ctx, o.path, ended)
		}
	}
	o.contact = func() (bool, bool, time.Time) {
		st, ok := a.sessions.Status(o.ensemble)
		return ok, !st.Connected, st.Since
	}
	if c.StateDir != "" {
		o.file = OverridesFile(c.StateDir)
	}
	if before != nil && before.origin == o.origin {
		o.latest = before.state()
		return o
	}
	o.recall()
	return o
}

// originOfOverrides says in words where the overrides are found.
func originOfOverrides(c *config.Agent) string {
	s := config.Service{Discovery: config.Discovery{Method: "overrides", ZooKeeper: c.ZooKeeper, Path: c.OverridesPath}}
	return origin(s)
}

// state is what is known now.
func (o *overrides) state() overriding {
	o.mu.Lock()
	defer o.mu.Unlock()
	return o.latest
}

// recall takes up what the process before has kept.
func (o *overrides) recall() {
	kept, asOf, err := readOverrides(o.file, o.origin)
	switch {
	case errors.Is(err, fs.ErrNotExist):
	case err != nil:
		o.log.WithField("err", err).Warn("the overrides kept on disk are of no use; the registry is waited for")
	default:
		o.latest = restoredOverrides(kept, asOf)
		if n := len(o.latest.inForce(time.Now())); n > 0 {
			o.log.WithFields(logrus.Fields{"count": n, "duration": since(time.Now(), asOf).Round(time.Second)}).Info("honouring the last known overrides from disk until the registry is heard of")
		}
	}
}

// keptOverrides is the file in which the overrides are kept.
type keptOverrides struct {
	Origin string         `json:"origin"`
	Nodes  []keptOverride `json:"nodes"`
}

type keptOverride struct {
	Node     string          `json:"node"`
	Revision int32           `json:"revision"`
	Data     json.RawMessage `json:"data"`
}

// readOverrides reads what was kept, and until when it was right. The error wraps fs.ErrNotExist where nothing is kept of
// this origin.
func readOverrides(file, origin string) ([]discovery.Child, time.Time, error) {
	if file == "" {
		return nil, time.Time{}, fs.ErrNotExist
	}
	kept, asOf, err := loadOverrides(file)
	switch {
	case err != nil:
		return nil, time.Time{}, err
	case kept.Origin != origin:
		return nil, time.Time{}, fmt.Errorf("read %s: it is of another path or ensemble: %w", file, fs.ErrNotExist)
	}
	return kept.children(), asOf, nil
}

// loadOverrides reads what was kept, of whatever origin.
func loadOverrides(file string) (kept keptOverrides, asOf time.Time, err error) {
	info, err := os.Stat(file)
	if err != nil {
		return kept, asOf, err
	}
	if !info.Mode().IsRegular() || info.Size() > mostKeptOverrides {
		return kept, asOf, fmt.Errorf("read %s: it is no plain file, or has %d bytes, which cannot be; remove it", file, info.Size())
	}
	text, err := os.ReadFile(file)
	if err != nil {
		return kept, asOf, err
	}
	if err := json.Unmarshal(text, &kept); err != nil {
		return kept, asOf, fmt.Errorf("read %s: %w", file, err)
	}
	return kept, info.ModTime(), nil
}

// children are the nodes, as they were in the registry.
func (k keptOverrides) children() []discovery.Child {
	out := make([]discovery.Child, len(k.Nodes))
	for i, n := range k.Nodes {
		out[i] = discovery.Child{Name: n.Node, Revision: n.Revision, Data: n.Data}
	}
	return out
}

// run hears the registry until ctx is done.
func (o *overrides) run(ctx context.Context) {
	if o.source == nil {
		return
	}
	var running sync.WaitGroup
	defer running.Wait()
	snapshots := make(chan discovery.Snapshot)
	running.Go(func() { o.hear(ctx, snapshots) })
	due := newAlarm()
	defer due.timer.Stop()
	tick := time.NewTicker(confirmEvery)
	defer tick.Stop()
	defer o.confirm()
	ended := map[string]time.Time{}       // by node and revision: when it is to be removed
	removed := make(chan removal, 1)      // of the one removal that is under way
	removing, again := false, time.Time{} // again: not before this
	saved := false
	for {
		select {
		case <-ctx.Done():
			return
		case snap := <-snapshots:
			saved = o.take(snap)
		case r := <-removed:
			if removing = false; r.err != nil {
				o.log.WithFields(logrus.Fields{"path": r.node, "err": r.err}).Debug("an override that has ended stays in the registry")
				again = time.Now().Add(removeAgain)
			} else {
				delete(ended, r.key)
			}
		case <-due.timer.C:
			due.at = time.Time{}
		case <-tick.C:
			if !saved {
				saved = o.save()
			}
			o.confirm()
		}
		now := time.Now()
		next, when := o.nextEnded(ended, now)
		if when.IsZero() || removing || o.remove == nil {
			continue
		}
		if when = later(when, again); when.After(now) {
			due.by(when)
			continue
		}
		removing = true
		running.Go(func() {
			ctx, cancel := context.WithTimeout(ctx, removeTimeout)
			defer cancel()
			_, err := o.remove(ctx, next)
			if errors.Is(err, zookeeper.ErrOverrideChanged) {
				err = nil // it is another one by now
			}
			removed <- removal{next.Node, endedKey(next), err}
		})
	}
}

// removal is what became of the attempt to remove an override.
type removal struct {
	node, key string
	err       error
}

func endedKey(o discovery.Override) string { return fmt.Sprintf("%s %d", o.Node, o.Revision) }

// nextEnded is the override that is to be removed first, and when; a zero time: there is none. It notes in ended when
// each of those that are to end, or have ended, is to be removed.
func (o *overrides) nextEnded(ended map[string]time.Time, now time.Time) (first discovery.Override, when time.Time) {
	st := o.state()
	there := map[string]bool{}
	for _, v := range st.all {
		if v.Until.IsZero() || !st.heard || st.missing || slices.ContainsFunc(st.bad, func(b BadOverride) bool { return b.Node == v.Node }) {
			continue
		}
		key := endedKey(v)
		there[key] = true
		at, known := ended[key]
		if !known {
			at = later(v.Until, now)
			if o.within > 0 {
				at = at.Add(o.within + rand.N(o.within))
			}
			ended[key] = at
		}
		if when.IsZero() || at.Before(when) {
			first, when = v, at
		}
	}
	maps.DeleteFunc(ended, func(key string, _ time.Time) bool { return !there[key] })
	return first, when
}

// awaited tells whether the registry is still to be heard of.
func (o *overrides) awaited() bool { return o.source != nil && !o.state().heard }

// unheard says that the registry has not been heard of, and what is used instead; empty: it has been.
func (o *overrides) unheard(now time.Time) string {
	st := o.state()
	switch {
	case !o.awaited():
		return ""
	case st.stored.IsZero():
		return fmt.Sprintf("overrides at %s: nothing heard from the registry yet", o.path)
	case len(st.inForce(now)) == 0:
		return fmt.Sprintf("overrides at %s: nothing heard from the registry yet; there were none %s ago", o.path, since(now, st.stored).Round(time.Second))
	}
	return fmt.Sprintf("overrides at %s: nothing heard from the registry yet; as they were %s ago", o.path, since(now, st.stored).Round(time.Second))
}

// hear runs the source for as long as ctx lives.
func (o *overrides) hear(ctx context.Context, out chan<- discovery.Snapshot) {
	for ctx.Err() == nil {
		err := o.source.Run(ctx, out)
		if ctx.Err() != nil {
			return
		}
		o.log.WithFields(logrus.Fields{"path": o.path, "err": err}).Error("the overrides' source ended; what is known stays in force, and it is started again")
		select {
		case <-ctx.Done():
		case <-time.After(sourceRestart):
		}
	}
}

// take takes in what the registry has, and returns whether it is on disk.
func (o *overrides) take(snap discovery.Snapshot) bool {
	o.mu.Lock()
	before := o.latest
	o.latest = before.next(snap, time.Now())
	now := o.latest
	o.mu.Unlock()
	signal(o.wake) // the disk is never in the way of a drain
	logOverridesHeard(o.log.WithField("path", o.path), before, now)
	return o.save()
}

// logOverridesHeard says what is new about the path, and each new node that is of no use, once.
func logOverridesHeard(log logrus.FieldLogger, before, now overriding) {
	if n := len(now.inForce(time.Now())); now.missing && !before.missing && n > 0 {
		log.WithField("count", n).Warn("the overrides' path is gone; what is known of them stays in force until they end or the path exists again")
	} else if before.missing && !now.missing && len(before.all) > 0 {
		log.WithField("count", n).Info("the overrides' path exists again")
	}
	for _, b := range now.bad {
		if !slices.Contains(before.bad, b) {
			log.WithFields(logrus.Fields{"path": b.Node, "err": b.Reason}).Warn("a node among the overrides is none that can be used; correct or delete it")
		}
	}
}

// save keeps what is known, and returns whether that worked.
func (o *overrides) save() bool {
	st := o.state()
	if o.file == "" || !st.heard {
		return true
	}
	kept := keptOverrides{Origin: o.origin, Nodes: []keptOverride{}}
	for _, c := range st.kept {
		kept.Nodes = append(kept.Nodes, keptOverride{c.Name, c.Revision, c.Data})
	}
	text, err := json.Marshal(kept)
	if err == nil && !holds(o.file, text) {
		err = durable.Replace(durable.File{Path: o.file, Temp: o.file + ".tmp", Mode: 0o644}, text)
	}
	o.mu.Lock()
	before := o.err
	if o.err = ""; err != nil {
		o.err = err.Error()
	}
	o.mu.Unlock()
	switch {
	case err != nil && before == "":
		o.log.WithField("err", err).Warn("overrides cannot be kept on disk; a start without the registry would not know them: make state_dir a folder with room that this process may write to")
	case err == nil && before != "":
		o.log.Info("overrides are kept on disk again")
	}
	return err == nil
}

// confirm marks the file as still right until now, or until the registry was last heard of.
func (o *overrides) confirm() {
	st := o.state()
	known, away, since := o.contact()
	if o.file == "" || !st.heard || !known {
		return
	}
	at := time.Now()
	if away {
		at = since
	}
	if err := os.Chtimes(o.file, time.Time{}, at); err != nil && !errors.Is(err, fs.ErrNotExist) {
		o.log.WithField("err", err).Debug("the age of the overrides kept on disk is not up to date")
	}
}

// override puts what is known of the overrides in force as of now.
func (g *generation) override(now time.Time) {
	before := g.wanted.Load()
	g.composer.overrides = inForce{g.overrides.state().inForce(now), now}
	g.publish(g.composer.all(g.views, before))
	g.tellOverrides(before, g.wanted.Load())
}

// awaitOverrides has the alarm ring when the next override ends.
func (g *generation) awaitOverrides(due *alarm) {
	if next := g.composer.overrides.all.Next(g.composer.overrides.at); !next.IsZero() {
		due.by(next)
	}
}

// tellOverrides writes one line for each override that begins or ends to count for servers of this host.
func (g *generation) tellOverrides(before, after *wanted) {
	was, is := before.overrideNodes(), after.overrideNodes()
	for _, node := range slices.Sorted(maps.Keys(is)) {
		now := is[node]
		if old, there := was[node]; !there || old.Revision != now.Revision {
			g.overrideLine(now, "an override counts", "counts", now.count)
		}
	}
	for _, node := range slices.Sorted(maps.Keys(was)) {
		if _, there := is[node]; !there {
			old := was[node]
			what := "ended"
			if i := slices.IndexFunc(g.overrides.state().all, func(o discovery.Override) bool { return o.Node == node }); i < 0 {
				what = "was removed"
			}
			g.overrideLine(old, "an override counts no more", what, old.count)
		}
	}
}

// countedOverride is an override with the number of servers that it counts for.
type countedOverride struct {
	discovery.Override
	count int
}

// overrideNodes are the overrides that count for servers, by node.
func (w *wanted) overrideNodes() map[string]countedOverride {
	out := map[string]countedOverride{}
	for _, b := range w.backends {
		for _, o := range b.overrides {
			out[o.Node] = countedOverride{*o, out[o.Node].count + 1}
		}
	}
	return out
}

func (g *generation) overrideLine(o countedOverride, message, what string, count int) {
	f := logrus.Fields{"path": o.Node, "decision": describeOverride(o.Override), "instances": o.Target.String(), "count": count}
	if o.Author != "" {
		f["author"] = o.Author
	}
	if o.Reason != "" {
		f["reason"] = o.Reason
	}
	if !o.Until.IsZero() {
		f["until"] = o.Until.Format(time.RFC3339)
	}
	g.log.WithFields(f).Info(message)
	e := journal.Event{
		Kind: journal.KindOverride, Service: o.Service, What: describeOverride(o.Override) + " of " + o.Target.String() + " " + what,
		Cause: o.Author, Count: count,
	}
	if o.Reason != "" {
		e.Cause = strings.TrimPrefix(o.Author+": "+o.Reason, ": ")
	}
	if o.Host != "" && o.Port != 0 {
		e.Instance = endpointText(o.Target)
	}
	g.journal.Record(e)
}

func endpointText(t discovery.Target) string {
	return discovery.Target{Host: t.Host, Port: t.Port}.String()
}

// OverridesStatus is what the agent knows of operators' overrides.
type OverridesStatus struct {
	Path     string           `json:"path,omitempty"`        // in the registry; empty: they are not honoured
	Ensemble string           `json:"ensemble,omitempty"`    // that it is in
	Heard    *time.Time       `json:"heard,omitempty"`       // since when the registry is known; absent: nothing heard yet
	FromDisk *time.Time       `json:"from_disk,omitempty"`   // nothing heard yet: they were kept on disk, and were right until then
	Missing  bool             `json:"missing,omitempty"`     // the path does not exist; what is known stays
	Error    string           `json:"error,omitempty"`       // why they are not kept on disk
	List     []OverrideStatus `json:"list"`                  // sorted by node
	Bad      []BadOverride    `json:"undecodable,omitempty"` // sorted by node
}

// OverrideStatus is one override, and what it does on this host.
type OverrideStatus struct {
	Node     string     `json:"node"`
	Revision int32      `json:"revision"`
	Service  string     `json:"service,omitempty"`
	Host     string     `json:"host,omitempty"`
	Port     uint16     `json:"port,omitempty"`
	Action   string     `json:"action"`
	Weight   *int       `json:"weight,omitempty"`
	Percent  bool       `json:"percent,omitempty"`
	Author   string     `json:"author,omitempty"`
	Reason   string     `json:"reason,omitempty"`
	Created  time.Time  `json:"created"`
	Until    *time.Time `json:"until,omitempty"`
	Ended    bool       `json:"ended,omitempty"` // its time is over; some agent removes it
	Servers  int        `json:"servers"`         // that it counts for on this host
	Applied  bool       `json:"applied"`         // every HAProxy has confirmed it for all of them
}

// Does says what the override asks for: "drain", "weight 50%".
func (o OverrideStatus) Does() string {
	v := discovery.Override{Action: discovery.Action(o.Action), Percent: o.Percent}
	if o.Weight != nil {
		v.Weight = *o.Weight
	}
	return describeOverride(v)
}

// Target is what the override is about, as people write it.
func (o OverrideStatus) Target() string {
	return discovery.Target{Service: o.Service, Host: o.Host, Port: o.Port}.String()
}

// states counts the overrides by what they do on this host.
func (s OverridesStatus) states() map[string]int {
	n := map[string]int{"counting": 0, "pending": 0, "idle": 0, "ended": 0, "undecodable": len(s.Bad)}
	for _, o := range s.List {
		switch {
		case o.Ended:
			n["ended"]++
		case !o.Applied:
			n["pending"]++
		case o.Servers == 0:
			n["idle"]++
		default:
			n["counting"]++
		}
	}
	return n
}

func (g *generation) overridesStatus(now time.Time) OverridesStatus {
	st := g.overrides.state()
	s := OverridesStatus{Path: g.overrides.path, Missing: st.missing, List: []OverrideStatus{}, Bad: st.bad}
	g.overrides.mu.Lock()
	s.Error = g.overrides.err
	g.overrides.mu.Unlock()
	if st.heard {
		s.Heard = &st.since
	} else if !st.stored.IsZero() {
		s.FromDisk = &st.stored
	}
	w := g.wanted.Load()
	reach := w.overrideNodes()
	pending := g.pendingOverrides(w)
	for _, o := range st.all {
		e := overrideStatus(o, now)
		e.Servers = reach[o.Node].count
		taken := slices.ContainsFunc(w.overrides.all, func(v discovery.Override) bool { return v.Node == o.Node && v.Revision == o.Revision })
		e.Applied = taken && !e.Ended && !pending[o.Node]
		s.List = append(s.List, e)
	}
	return s
}

// overrideStatus is an override, without what it does on this host.
func overrideStatus(o discovery.Override, now time.Time) OverrideStatus {
	e := OverrideStatus{
		Node: o.Node, Revision: o.Revision, Service: o.Service, Host: o.Host, Port: o.Port, Action: string(o.Action), Percent: o.Percent,
		Author: o.Author, Reason: o.Reason, Created: o.Created, Ended: !o.InForce(now),
	}
	if o.Action == discovery.ActionWeight {
		e.Weight = &o.Weight
	}
	if !o.Until.IsZero() {
		e.Until = &o.Until
	}
	return e
}

// pendingOverrides are the overrides that some HAProxy has not confirmed for all servers that they count for.
func (g *generation) pendingOverrides(w *wanted) map[string]bool {
	pending := map[string]bool{}
	for _, b := range w.backends {
		if len(b.overrides) == 0 {
			continue
		}
		unconfirmed := len(g.haproxys) == 0 && !g.file.inStep()
		for _, r := range g.haproxys {
			st := r.status.Load()
			confirmed, told := uint64(0), false
			if st != nil && st.Connected {
				confirmed, told = st.confirmed[b.name]
			}
			unconfirmed = unconfirmed || !told || confirmed != b.rev
		}
		if unconfirmed {
			for _, o := range b.overrides {
				pending[o.Node] = true
			}
		}
	}
	return pending
}
