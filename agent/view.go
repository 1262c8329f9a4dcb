package agent

import (
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

	held   string    // why the active set is not what the registry says; empty: it is
	since  time.Time // when held began
	listed time.Time // while held: until when the registry listed what is in force
}

// Reasons for a hold, as they are shown.
const (
	heldMissing  = "the path does not exist"
	heldEmpty    = "the registry lists no instance"
	heldLeaving  = "all instances are leaving"
	heldFiltered = "no instance passes the filters"
)

// newView is the view before anything has been heard of the service.
func newView(s config.Service) view {
	return view{service: s}
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
	v.service = s
	return v.next(old.snapshot, now)
}

// restore is the view of a service before anything has been heard of it, when basis was what its active set was made
// of until asOf. A basis that makes no set under the present definition changes nothing.
func (v view) restore(basis discovery.Snapshot, asOf, now time.Time) view {
	r := v.next(basis, now)
	if !r.known {
		return v
	}
	r.seen, r.stored = false, asOf
	return r
}

// fromDisk tells whether the active set is one that was kept on disk, and the registry has not been heard of yet.
func (v view) fromDisk() bool { return !v.stored.IsZero() }

// next decides what a snapshot means for the service. The order is Synapse's (filters, leader, defaults, port
// override, duplicates, fallback) with one difference: the fallback is judged after the filters, so that filters
// that leave nothing do not empty a backend. An instance that says it is leaving counts as gone.
func (v view) next(snap discovery.Snapshot, now time.Time) view {
	s := v.service
	listed := now
	if v.fromDisk() {
		listed = v.stored
	}
	v.seen, v.snapshot, v.stored = true, snap, time.Time{}
	defaults := defaultInstances(s)

	staying := staying(snap.Instances)
	found := filter(staying, s.Discovery.LabelFilters)
	if s.LeaderElection {
		found = leader(found)
	}
	candidates := found
	if s.KeepDefaultServers {
		candidates = append(slices.Clone(found), defaults...)
	}
	candidates = discovery.Dedup(override(candidates, s.BackendPortOverride))

	held := ""
	switch {
	case len(found) > 0 || s.Discovery.Method == "base":
		// The registry has spoken.
	case snap.Missing:
		held = heldMissing
	case len(snap.Instances) == 0:
		held = heldEmpty
	case len(staying) == 0:
		held = heldLeaving
	default:
		held = heldFiltered
	}

	switch {
	case len(candidates) > 0 && held == "":
		v.known, v.active, v.basis = true, candidates, snap
	case len(defaults) > 0:
		v.known, v.active, v.basis = true, discovery.Dedup(override(defaults, s.BackendPortOverride)), snap
	case held != "" && s.UsePreviousBackends:
		// The last good set stays; when this process knows none, what HAProxy and its file hold stays.
	default:
		v.known, v.active, v.basis = true, nil, snap
		held = ""
	}
	if v.held == "" {
		v.listed = listed
	}
	if held != v.held {
		v.held, v.since = held, now
	}
	return v
}

// staying are the instances that do not leave. The marks stand for a moment only, so that mostly these are all.
func staying(instances []discovery.Instance) []discovery.Instance {
	leaving := func(in discovery.Instance) bool { return in.Leaving }
	if !slices.ContainsFunc(instances, leaving) {
		return instances
	}
	return slices.DeleteFunc(slices.Clone(instances), leaving)
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
