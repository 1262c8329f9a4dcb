package agent

import (
	"cmp"
	"maps"
	"slices"
	"time"

	"github.com/myelin-sd/myelin/config"
	"github.com/myelin-sd/myelin/discovery"
)

// view is what the agent believes about one service. It is a value: next makes a new one from a snapshot, and
// nothing in it is changed afterwards.
type view struct {
	service config.Service

	seen     bool               // a snapshot has arrived in this process
	snapshot discovery.Snapshot // the latest one

	// known says that active holds. Until then nobody has told what the service consists of, and whatever HAProxy
	// has is left as it is: unknown is not empty.
	known  bool
	active []discovery.Instance
	basis  discovery.Snapshot // what active was made of: not snapshot while that is held against

	// stored is set while the view is one that was kept on disk and no snapshot has arrived yet: the time until which
	// the registry is known to have listed it.
	stored time.Time

	guard   guard
	contact contact           // how the registry is reached; set by whoever knows
	news    []decision        // what the guard decided in the last step
	decided map[string]uint64 // instances by what the guard decided about them; never changed

	at     time.Time // when what the last step took in was read; zero: it was no snapshot
	held   string    // why the active set is not what the registry says; empty: it is
	since  time.Time // when held began
	listed time.Time // while held: until when the registry listed what is in force
}

// HeldMissing is a hold because the service's path does not exist, as it is shown.
const HeldMissing = "the path does not exist"

// Reasons for a hold, as they are shown.
const (
	heldMissing  = HeldMissing
	heldEmpty    = "the registry lists no instance"
	heldLeaving  = "all instances are leaving"
	heldFiltered = "no instance passes the filters"
)

// newView is the view before anything has been heard of the service.
func newView(s config.Service) view {
	return view{service: s, guard: guard{rules: rulesOf(s)}}
}

// carry gives a service's new definition the knowledge of its old one, where both look for the same instances.
func (v view) carry(s config.Service, now time.Time) view {
	if v.fromDisk() {
		return newView(s).restore(v.basis, v.stored, now)
	}
	if !v.seen {
		return newView(s)
	}
	old := v
	v.service, v.guard.rules = s, rulesOf(s)
	v.guard = v.guard.drop(v.filter)
	return v.next(old.snapshot, now)
}

// restore is the view of a service before anything has been heard of it, when basis was what its active set was made
// of until asOf. A basis that makes no set under the present definition changes nothing.
func (v view) restore(basis discovery.Snapshot, asOf, now time.Time) view {
	r := v
	var listed []discovery.Instance
	r.guard, listed = r.guard.restored(basis)
	r.guard = r.guard.drop(r.filter)
	snap := basis
	snap.Instances, snap.Tree, snap.Note = listed, r.guard.tree, ""
	r = r.next(snap, now)
	if !r.known {
		return v
	}
	r.seen, r.stored, r.news, r.decided = false, asOf, nil, nil
	return r
}

// fromDisk tells whether the active set is one that was kept on disk, and the registry has not been heard of yet.
func (v view) fromDisk() bool { return !v.stored.IsZero() }

// next decides what a snapshot means for the service. The order is Synapse's (filters, leader, defaults, port
// override, duplicates, fallback) with two differences: the guard has its say behind the filters, and the fallback is
// judged there too, so that filters that leave nothing do not empty a backend. An instance that says it is leaving
// counts as gone.
func (v view) next(snap discovery.Snapshot, now time.Time) view {
	before := v.lastListed(now)
	v.seen, v.snapshot, v.stored, v.at = true, snap, time.Time{}, snap.At
	found := v.filter(staying(snap.Instances))
	var made []decision
	v.guard, made = v.guard.hear(heard{found, snap.Instances, v.emptiness(found), snap.Tree, v.contact}, now)
	return v.settle(found, before, made, now)
}

// pass has the guard decide what only time decides. The view is the same where nothing follows from it.
func (v view) pass(now time.Time) view {
	if v.fromDisk() {
		return v // nobody has been heard of who could take anything away
	}
	g, made := v.guard.pass(v.contact, now)
	return v.decide(g, made, now)
}

// see takes in which endpoints HAProxy's checks say are down, beside as many that are up.
func (v view) see(down map[discovery.Endpoint]bool, up int, now time.Time) view {
	if v.fromDisk() {
		return v
	}
	g, made := v.guard.see(down, up)
	return v.decide(g, made, now)
}

// release lets go what is held: the instances that the registry does not list, or, where none is known, the servers
// that HAProxy has still.
func (v view) release(now time.Time) view {
	g, made := v.guard.release()
	if v.seen && !v.known && v.held != "" {
		made = append(made, decision{what: decidedReleased})
	}
	return v.decide(g, made, now)
}

// decide is v with another state of its guard, if anything was decided.
func (v view) decide(g guard, made []decision, now time.Time) view {
	if len(made) == 0 {
		return v
	}
	before, stored := v.lastListed(now), v.stored
	v.guard, v.at = g, time.Time{}
	v = v.settle(v.filter(staying(v.snapshot.Instances)), before, made, now)
	v.stored = stored
	return v
}

// lastListed is until when the registry is known to list what is in force, where it lists something else from now on.
func (v view) lastListed(now time.Time) time.Time {
	if v.fromDisk() {
		return v.stored
	}
	return now
}

// emptiness says why nothing is found; empty: something is.
func (v view) emptiness(found []discovery.Instance) string {
	switch {
	case len(found) > 0 || v.service.Discovery.Method == "base":
		return ""
	case v.snapshot.Missing:
		return heldMissing
	case len(v.snapshot.Instances) == 0:
		return heldEmpty
	case len(staying(v.snapshot.Instances)) == 0:
		return heldLeaving
	}
	return heldFiltered
}

// settle makes the active set of what was found and of what the guard holds.
func (v view) settle(found []discovery.Instance, listed time.Time, made []decision, now time.Time) view {
	s := v.service
	v.news, v.decided = made, counted(v.decided, made)
	defaults := defaultInstances(s)
	list := merge(found, v.guard.held())
	elected := list
	if s.LeaderElection {
		elected = leader(list)
	}
	candidates := elected
	if s.KeepDefaultServers {
		candidates = append(slices.Clone(elected), defaults...)
	}
	candidates = discovery.Dedup(override(candidates, s.BackendPortOverride))

	held := v.emptiness(found)
	if held == "" && len(elected) == 0 && s.Discovery.Method != "base" {
		held = heldFiltered
	}
	switch {
	case len(candidates) > 0 && (held == "" || len(elected) > 0):
		v.known, v.active, v.basis = true, candidates, v.basisOf()
	case len(defaults) > 0:
		v.known, v.active, v.basis = true, discovery.Dedup(override(defaults, s.BackendPortOverride)), v.basisOf()
	case held != "" && s.UsePreviousBackends && !v.guard.released:
		// The last good set stays; when this process knows none, what HAProxy and its file hold stays.
	default:
		v.known, v.active, v.basis = true, nil, v.basisOf()
		held = ""
	}
	began := now
	if why, since, ok := v.guard.why(); ok {
		held = cmp.Or(held, why)
		if v.held == "" || !emptyReason(held) {
			began = since
		}
	}
	if v.held == "" {
		v.listed = listed
	}
	if held != v.held {
		v.held, v.since = held, began
	}
	return v
}

// basisOf is what the active set is made of: what the registry lists, and what is held in its place.
func (v view) basisOf() discovery.Snapshot {
	basis := v.snapshot
	if held := v.guard.held(); len(held) > 0 {
		listed := slices.DeleteFunc(slices.Clone(basis.Instances), func(in discovery.Instance) bool { return has(held, in.Endpoint) })
		basis.Instances = merge(listed, held)
	}
	basis.Note = v.guard.note()
	return basis
}

// counted adds decisions to the instances that were decided about so far.
func counted(so map[string]uint64, made []decision) map[string]uint64 {
	if len(made) == 0 {
		return so
	}
	sum := maps.Clone(so)
	if sum == nil {
		sum = map[string]uint64{}
	}
	for _, d := range made {
		sum[d.what] += uint64(len(d.instances))
	}
	return sum
}

func (v view) filter(instances []discovery.Instance) []discovery.Instance {
	return filter(instances, v.service.Discovery.LabelFilters)
}

// staying are the instances that do not leave. The marks stand for a moment only, so that mostly these are all.
func staying(instances []discovery.Instance) []discovery.Instance {
	for i := range instances {
		if instances[i].Leaving {
			return slices.DeleteFunc(slices.Clone(instances), func(in discovery.Instance) bool { return in.Leaving })
		}
	}
	return instances
}

func filter(instances []discovery.Instance, filters []config.LabelFilter) []discovery.Instance {
	if len(filters) == 0 {
		return instances
	}
	fs := make([]discovery.LabelFilter, len(filters))
	for i, f := range filters {
		fs[i] = discovery.LabelFilter{Label: f.Label, Value: f.Value, Condition: f.Condition}
	}
	return discovery.Filter(instances, fs)
}

// leader keeps the instance with the lowest sequence number. Instances without one cannot be elected: no number, no
// leader (Synapse then used them all).
func leader(instances []discovery.Instance) []discovery.Instance {
	best := -1
	for i, in := range instances {
		if in.ID != nil && (best < 0 || *in.ID < *instances[best].ID) {
			best = i
		}
	}
	if best < 0 {
		return nil
	}
	return instances[best : best+1]
}

func override(instances []discovery.Instance, port uint16) []discovery.Instance {
	if port == 0 {
		return instances
	}
	out := slices.Clone(instances)
	for i := range out {
		if e, err := discovery.ParseEndpoint(out[i].Endpoint.Host(), int(port)); err == nil {
			out[i].Endpoint = e
		}
	}
	return out
}

// defaultInstances are the service's static servers. The configuration has checked them.
func defaultInstances(s config.Service) []discovery.Instance {
	var out []discovery.Instance
	for _, d := range s.DefaultServers {
		e, err := discovery.ParseEndpoint(d.Host, int(d.Port))
		if err != nil {
			continue // refused by config already
		}
		out = append(out, discovery.Instance{
			Endpoint: e, Name: discovery.SafeName(d.Name), Weight: d.Weight, Labels: d.Labels, ID: d.ID,
			ServerOptions: splitWords(d.ServerOptions), ServerID: d.HAProxyID,
		})
	}
	return out
}
