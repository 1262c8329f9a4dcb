package agent

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"slices"
	"time"

	"github.com/myelin-sd/myelin/haproxy"
)

// How long a slot's new address is waited for: from 2.9 on HAProxy answers before it has carried the change out, which
// takes it 0.1 ms (3.2, 3.4).
const (
	addrLooks = 8
	addrPause = time.Millisecond // and twice as long each time
)

var errAddrLate = errors.New("HAProxy does not show the new address yet")

// slotBackends moves those backends that stand on slots out of desired, and notes where all of them stand.
func (r *reconciler) slotBackends(w *wanted, desired haproxy.State) haproxy.State {
	slotted := haproxy.State{}
	for name, servers := range desired {
		f := r.climb(w.backends[name], servers)
		if f.rung == haproxy.RungSlots {
			slotted[name] = servers
			delete(desired, name)
		} else {
			r.stand(name, f)
		}
	}
	return slotted
}

// slotView is what is known of the slots of a backend.
func (r *reconciler) slotView(w *wanted, name string, rested, drained map[haproxy.Key]bool) haproxy.SlotView {
	b := w.backends[name]
	options, _ := b.slotOptions()
	return haproxy.SlotView{
		Foreign: foreign(w, r.actual, []string{name}), Rested: rested, Applied: r.applied, Options: options,
		Fixed: haproxy.FixedWeights(b.lines, b.defaultsLines),
		Keep:  b.stale || len(b.unresolved()) > 0, // a slot does not tell whose address it has
		Drain: b.drain > 0, Drained: drained, Gate: b.gate,
		Attached: r.attached, Mine: r.mine, Manual: r.manualKeys(),
	}
}

// slotServers are the servers that a backend's slots are to hold. Of a set from disk those are left out that HAProxy
// had when it was met: see additions.
func (r *reconciler) slotServers(w *wanted, name string, servers []haproxy.Server) []haproxy.Server {
	b := w.backends[name]
	if !b.stale {
		return servers
	}
	left := slices.DeleteFunc(slices.Clone(servers), func(s haproxy.Server) bool {
		k := haproxy.Key{Backend: name, Server: s.Name}
		return (r.earlier[k] || r.earlier[atAddr(name, s)]) && b.overrides[s.Name] == nil && !r.overrode[k]
	})
	return r.bent(b, left, r.actual[name])
}

// atAddr stands for whatever has a server's address. No name of a server begins like this.
func atAddr(backend string, s haproxy.Server) haproxy.Key {
	return haproxy.Key{Backend: backend, Server: "@" + s.Addr.Addr().Unmap().String() + "@" + fmt.Sprint(s.Addr.Port())}
}

// planSlots plans for the backends that stand on slots, and asks for the reloads that they need.
func (r *reconciler) planSlots(w *wanted, actual, slotted haproxy.State) haproxy.Plan {
	var plan haproxy.Plan
	for _, name := range slices.Sorted(maps.Keys(slotted)) {
		f := r.climb(w.backends[name], slotted[name])
		found, there := actual[name]
		if !there { // it comes with the reload that was asked for
			f.slots = r.ladder.of(name).slots
			r.stand(name, f)
			continue
		}
		steps, short := haproxy.DiffSlots(name, found, r.slotServers(w, name, slotted[name]), r.slotView(w, name, r.rested, r.over))
		f.slots, f.short, f.usedUp = slices.Clone(found), short.Why(), short.Slots > 0 && short.All > 0
		r.stand(name, f)
		if f.short != "" {
			r.late[name] = true
			r.needReload(w, name, f.short)
		}
		plan = append(plan, steps...)
	}
	return plan
}

// rest finds out which slots of the due backends may get another address, where some server needs one. What was
// confirmed may be half a minute old, and a connection begins and ends at any time: both are asked for now. It returns
// the connection to go on with.
func (r *reconciler) rest(ctx context.Context, c *haproxy.Client, w *wanted, due []string) (*haproxy.Client, error) {
	ctx, cancel := context.WithTimeout(ctx, socketTimeout)
	defer cancel()
	r.rested = map[haproxy.Key]bool{}
	slotted := w.state(due, r.quarantine)
	maps.DeleteFunc(slotted, func(name string, servers []haproxy.Server) bool {
		_, there := r.actual[name]
		return !there || r.climb(w.backends[name], servers).rung != haproxy.RungSlots
	})
	if len(slotted) == 0 {
		return c, nil
	}
	// As if all that are old enough were free: what the plan would be then.
	aged := r.aged(time.Now())
	var ask, used []string
	for name, servers := range slotted {
		steps, _ := haproxy.DiffSlots(name, r.actual[name], r.slotServers(w, name, servers), r.slotView(w, name, aged, nil))
		moves := func(s haproxy.Step) bool { return s.Op == haproxy.StepAddr }
		if slices.ContainsFunc(steps, moves) {
			ask = append(ask, name)
		}
		if slices.ContainsFunc(steps, func(s haproxy.Step) bool { return moves(s) && aged[s.Key()] }) {
			used = append(used, name)
		}
	}
	if err := r.rereadBy(ctx, c, w, ask); err != nil {
		return c, err
	}
	conns, err := c.Conns(ctx, used...)
	if err != nil {
		return c, err
	}
	for k := range r.aged(time.Now()) {
		if n, known := conns[k]; known && n == (haproxy.Conns{}) {
			r.rested[k] = true
		}
	}
	// That slots are used up must hold for the process that serves: a reload would be asked for, and one that somebody
	// else has just made is as good.
	for name, servers := range slotted {
		_, short := haproxy.DiffSlots(name, r.actual[name], r.slotServers(w, name, servers), r.slotView(w, name, r.rested, nil))
		if short.Slots > 0 {
			err := r.same(ctx)
			return r.client, err
		}
	}
	return c, nil
}

// aged are the slots that have been in maintenance for so long that no request can still be meant for the server that
// was in them.
func (r *reconciler) aged(now time.Time) map[haproxy.Key]bool {
	grace := r.grace
	if grace <= 0 {
		grace = defaultGrace // the longer one of older versions is for deletes
	}
	out := map[haproxy.Key]bool{}
	for k, t := range r.retired {
		if haproxy.SlotNumber(k.Server) > 0 && now.Sub(t.since) >= grace {
			out[k] = true
		}
	}
	return out
}

// occupy carries the slots that got another address on: when HAProxy shows the address, they get their weight and
// traffic, and what was to leave the backend leaves. It returns the results with what was done added. A slot whose
// address does not show counts as failed, and is looked at again in the next round.
func (r *reconciler) occupy(ctx context.Context, c *haproxy.Client, w *wanted, results []haproxy.Result) ([]haproxy.Result, error) {
	sent := map[haproxy.Key]haproxy.Step{}
	names := map[string]bool{}
	for _, res := range results {
		if res.Step.Op == haproxy.StepAddr && res.Err == nil {
			sent[res.Step.Key()] = res.Step
			names[res.Step.Backend] = true
		}
	}
	if len(sent) == 0 {
		return results, nil
	}
	late, err := r.awaitAddrs(ctx, c, slices.Sorted(maps.Keys(names)), sent)
	if err != nil {
		return results, err
	}
	for i, res := range results {
		if late[res.Step.Key()] && res.Step.Op == haproxy.StepAddr && res.Err == nil {
			results[i].Err = errAddrLate
		}
	}
	var plan haproxy.Plan
	for name, servers := range w.state(slices.Sorted(maps.Keys(names)), r.quarantine) {
		steps, _ := haproxy.DiffSlots(name, r.actual[name], r.slotServers(w, name, servers), r.slotView(w, name, nil, r.over))
		for _, s := range steps {
			if s.Op == haproxy.StepAddr {
				r.cut[name] = true // of a large fill, or one that came meanwhile: in the next round
				continue
			}
			plan = append(plan, s)
		}
	}
	return append(results, c.Apply(ctx, plan)...), nil
}

// awaitAddrs reads the backends until the slots that were sent an address have it, for a while. It returns those that
// do not have it.
func (r *reconciler) awaitAddrs(ctx context.Context, c *haproxy.Client, names []string, sent map[haproxy.Key]haproxy.Step) (map[haproxy.Key]bool, error) {
	ctx, cancel := context.WithTimeout(ctx, socketTimeout)
	defer cancel()
	pause := addrPause
	for look := 1; ; look++ {
		if err := r.reread(ctx, c, names); err != nil {
			return nil, err
		}
		late := map[haproxy.Key]bool{}
		for k := range sent {
			late[k] = true
		}
		for _, name := range names {
			for _, s := range r.actual[name] {
				k := haproxy.Key{Backend: name, Server: s.Name}
				if st, ok := sent[k]; ok && s.Addr == st.Server.Addr {
					delete(late, k)
				}
			}
		}
		if len(late) == 0 || look == addrLooks {
			return late, nil
		}
		select {
		case <-ctx.Done():
			return nil, ctx.Err()
		case <-time.After(pause):
		}
		pause *= 2
	}
}

// tellSlots publishes what is in the slots of the backends of a round.
func (r *reconciler) tellSlots(due []string) {
	for _, name := range due {
		if f := r.ladder.of(name); f.rung == haproxy.RungSlots {
			if found, there := r.actual[name]; there {
				f.slots = slices.Clone(found)
				r.stand(name, f)
			}
		}
	}
}
