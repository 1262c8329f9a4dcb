package agent

import (
	"context"
	"maps"
	"slices"
	"time"

	"github.com/myelin-sd/myelin/haproxy"
)

// Pacing of what only time decides.
const (
	// Deletion is HAProxy's riskiest command: few at a time, with pauses, and only when nothing else is due.
	sweepEvery   = time.Second
	fewDeletes   = 4 // before 3.0, which has most of the fixes
	moreDeletes  = 16
	busyAgain    = 10 * time.Second // until a server with connections is looked at again
	noDeletes    = 10 * time.Minute // longest wait for others on the socket, where the version is not known to crash
	gateLeast    = 50 * time.Millisecond
	gateMost     = time.Second
	gateShare    = 4 // a check is looked for again after this part of the time that it was waited for
	defaultGrace = time.Minute
	longGrace    = 10 * time.Minute
)

// retirement is a server of ours that is in maintenance, which may be because nobody wants it.
type retirement struct {
	since time.Time
	look  time.Time // when it may be deleted
}

// draining is a server of ours that drains, which may be because it leaves.
type draining struct {
	since time.Time
	look  time.Time // when it may be put into maintenance, after it was found that it could not; zero: when it has drained
}

// gate is a backend with servers that wait for HAProxy's first good check.
type gate struct {
	since   time.Time // the latest of them was added then, or found
	next    time.Time // when the results are looked at
	servers map[string]bool
}

// observe notes which servers of a backend, as it was read, are in maintenance and which drain.
func (r *reconciler) observe(name string, now time.Time) {
	there := map[string]haproxy.Admin{}
	for _, s := range r.actual[name] {
		if s.Admin != haproxy.Ready && r.owns(name, s) && !haproxy.EmptySlot(s) {
			there[s.Name] = s.Admin
		}
	}
	gone := func(state haproxy.Admin) func(haproxy.Key) bool {
		return func(k haproxy.Key) bool {
			admin, ok := there[k.Server]
			return k.Backend == name && (!ok || admin != state)
		}
	}
	inMaint, drains := gone(haproxy.Maint), gone(haproxy.Drain)
	maps.DeleteFunc(r.retired, func(k haproxy.Key, _ retirement) bool { return inMaint(k) })
	maps.DeleteFunc(r.draining, func(k haproxy.Key, _ draining) bool { return drains(k) })
	for server, admin := range there {
		k := haproxy.Key{Backend: name, Server: server}
		if _, known := r.retired[k]; admin == haproxy.Maint && !known {
			r.retired[k] = retirement{now, now.Add(r.graceFor())}
		}
		if _, known := r.draining[k]; admin == haproxy.Drain && !known {
			r.draining[k] = draining{since: now}
		}
	}
}

// moved notes what a step did to a server that leaves or returns.
func (r *reconciler) moved(st haproxy.Step, now time.Time) {
	k := st.Key()
	switch st.Op {
	case haproxy.StepMaint:
		delete(r.draining, k)
		r.retired[k] = retirement{now, now.Add(r.graceFor())}
	case haproxy.StepDrain:
		delete(r.retired, k)
		r.draining[k] = draining{since: now}
	case haproxy.StepReady, haproxy.StepDelete:
		delete(r.draining, k)
		delete(r.retired, k)
	}
}

// drained are the servers that have drained for as long as their service has them drain when they leave.
func (r *reconciler) drained(w *wanted, now time.Time) map[haproxy.Key]bool {
	out := map[haproxy.Key]bool{}
	for k, t := range r.draining {
		if d := w.backends[k.Backend].drain; d > 0 && now.Sub(t.since) >= d {
			out[k] = true
		}
	}
	return out
}

// await notes which of the backends just compared wait for checks, and when they are to be looked at again: soon at
// first, then after a quarter of the time that they have waited.
func (r *reconciler) await(due []string, waiting []haproxy.Key, now time.Time) {
	by := map[string]map[string]bool{}
	for _, k := range waiting {
		if by[k.Backend] == nil {
			by[k.Backend] = map[string]bool{}
		}
		by[k.Backend][k.Server] = true
	}
	for _, name := range due {
		g, waited := r.gated[name]
		switch {
		case len(by[name]) == 0:
			delete(r.gated, name)
			continue
		case !waited || len(by[name]) > len(g.servers):
			g.since = now
		}
		g.servers = by[name]
		g.next = now.Add(min(max(now.Sub(g.since)/gateShare, gateLeast), gateMost))
		r.gated[name] = g
	}
}

// graceFor is how long a server waits in maintenance before it is deleted: streams may still refer to it, and
// builds before 3.0 lack the fixes for that (haproxy-runtime facts, section 9).
func (r *reconciler) graceFor() time.Duration {
	switch {
	case r.grace > 0:
		return r.grace
	case r.caps.Major < 3:
		return longGrace
	}
	return defaultGrace
}

// nextTask is when something is to be done although nothing happens.
func (r *reconciler) nextTask() (time.Time, bool) {
	var first time.Time
	by := func(t time.Time) {
		if first.IsZero() || t.Before(first) {
			first = t
		}
	}
	w := r.wanted()
	for k, t := range r.draining {
		if d := w.backends[k.Backend].drain; d > 0 {
			if end := t.since.Add(d); t.look.Before(end) {
				t.look = end
			}
			by(t.look)
		}
	}
	for _, g := range r.gated {
		by(g.next)
	}
	if len(r.cut) > 0 {
		by(time.Now())
	}
	for k, m := range r.manual {
		if _, there := w.backends[k.Backend]; there { // one that is not is not looked at before all are
			by(m.until)
		}
	}
	for _, b := range w.backends {
		if r.emptied(b) {
			by(time.Now())
		}
		if b.holds {
			by(r.looked[b.name].Add(watchEvery))
		}
	}
	for _, t := range r.retired {
		if t.look.Before(r.sweepAt) {
			t.look = r.sweepAt
		}
		by(t.look)
	}
	return first, !first.IsZero()
}

// sweep deletes some of the servers that left long ago: of those the ones that HAProxy has no connection to, one at a
// time, and never while somebody else talks to the socket, who might be reading a dump of them (2.6.12 crashes, and so
// did later versions with other dumps). Sessions that stay for too long are ended, where that is wanted.
func (r *reconciler) sweep(ctx context.Context, w *wanted) error {
	now := time.Now()
	candidates := r.candidates(w, now)
	if len(candidates) == 0 {
		return nil
	}
	r.sweepAt = now.Add(min(sweepEvery, r.graceFor()))
	c, err := r.warm(ctx)
	if err != nil {
		return err
	}
	if c.Identity() != r.identity {
		return errReplaced
	}
	var backends []string
	found, nothing := haproxy.State{}, haproxy.State{}
	for _, k := range candidates {
		i := slices.IndexFunc(r.actual[k.Backend], func(s haproxy.Server) bool { return s.Name == k.Server })
		if i < 0 {
			delete(r.retired, k)
			continue
		}
		if _, ok := nothing[k.Backend]; !ok {
			backends = append(backends, k.Backend)
		}
		nothing[k.Backend] = nil
		found[k.Backend] = append(found[k.Backend], r.actual[k.Backend][i])
	}
	asking, cancel := context.WithTimeout(ctx, socketTimeout)
	defer cancel()
	conns, err := c.Conns(asking, backends...)
	if err != nil {
		return err
	}
	view := haproxy.View{Caps: r.caps, Foreign: foreign(w, r.actual, backends), Deletable: map[haproxy.Key]bool{}, Forced: map[haproxy.Key]bool{}}
	for _, k := range candidates {
		t := r.retired[k]
		t.look = now.Add(min(busyAgain, r.graceFor()))
		switch used := conns[k]; {
		case used == haproxy.Conns{}:
			view.Deletable[k] = true
		case used.Used > 0 && r.forceAfter > 0 && now.Sub(t.since) >= r.forceAfter:
			view.Forced[k] = true
		}
		if _, ok := r.retired[k]; ok {
			r.retired[k] = t
		}
	}
	plan := r.differ.Diff(found, nothing, view)
	applied := false
	for _, step := range plan {
		if step.Op == haproxy.StepDelete && r.watched(now.Sub(r.retired[step.Key()].since)) {
			continue
		}
		if !r.dumps.TryLock() {
			continue // somebody reads; it is looked at again
		}
		results := c.Apply(ctx, haproxy.Plan{step})
		r.dumps.Unlock()
		r.metrics.round(time.Since(now), results)
		r.settle(w, nil, results)
		applied = true
	}
	if !applied {
		return nil
	}
	r.publish(w, backends, nil)
	return r.same(ctx)
}

// candidates are the servers whose time has come, the longest retired first.
func (r *reconciler) candidates(w *wanted, now time.Time) []haproxy.Key {
	if now.Before(r.sweepAt) {
		return nil
	}
	var out []haproxy.Key
	for k, t := range r.retired {
		if now.Before(t.look) {
			continue
		}
		b := w.backends[k.Backend]
		base, _ := haproxy.Generation(k.Server)
		// A server of a set that is from disk is not known to be unwanted; one that is wanted is in maintenance by
		// intent, or waits for its check.
		gated := r.gated[k.Backend].servers[k.Server]
		inUse := haproxy.SlotNumber(k.Server) > 0 && r.ladder.of(k.Backend).rung == haproxy.RungSlots
		if !b.known || inUse || b.stale || gated || b.wants(base) && !r.superseded(k) {
			t.look = now.Add(min(busyAgain, r.graceFor()))
			r.retired[k] = t
			continue
		}
		out = append(out, k)
	}
	slices.SortFunc(out, func(a, b haproxy.Key) int { return r.retired[a].since.Compare(r.retired[b].since) })
	most := moreDeletes
	if r.caps.Major < 3 {
		most = fewDeletes
	}
	return out[:min(len(out), most)]
}

// superseded tells whether another object serves under the name of a retired one.
func (r *reconciler) superseded(k haproxy.Key) bool {
	base, _ := haproxy.Generation(k.Server)
	return slices.ContainsFunc(r.actual[k.Backend], func(s haproxy.Server) bool {
		b, _ := haproxy.Generation(s.Name)
		return b == base && s.Name != k.Server && s.Admin != haproxy.Maint
	})
}

// watched tells whether a deletion must wait because somebody else is connected to the socket. Where the version is not
// known to crash, that holds for a while only: a tool that never hangs up must not keep every server that ever left.
func (r *reconciler) watched(waited time.Duration) bool {
	others, known := haproxy.OtherClients(r.socket, 1)
	return known && others > 0 && (r.caps.Major < 3 || waited < r.graceFor()+noDeletes)
}
