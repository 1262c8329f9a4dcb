package agent

import (
	"cmp"
	"fmt"
	"maps"
	"slices"
	"time"

	"github.com/myelin-sd/myelin/discovery"
	"github.com/myelin-sd/myelin/haproxy"
)

// overriding is what is known of operators' overrides. It is a value: next makes a new one of what the registry has,
// and nothing in it is changed afterwards. What is not known takes nothing away: an override ends by its time, or when
// the registry is seen without it.
type overriding struct {
	heard   bool      // of the registry, in this process
	since   time.Time // when that was for the first time
	stored  time.Time // all is from the disk, and was so until then; zero: it is not
	missing bool      // the path does not exist; all stays in force

	all  discovery.Overrides // sorted by node; those that have ended too
	kept []discovery.Child   // what all was made of
	bad  []BadOverride       // sorted by node
}

// BadOverride is a node among the overrides that cannot be used.
type BadOverride struct {
	Node   string `json:"node"`
	Reason string `json:"reason"`
	Former bool   `json:"former,omitempty"` // what it said before counts still
}

// next takes in what the registry has at the overrides' path.
func (o overriding) next(snap discovery.Snapshot, now time.Time) overriding {
	n := overriding{heard: true, since: o.since, missing: snap.Missing, all: o.all, kept: o.kept}
	if !o.heard {
		n.since = now
	}
	if snap.Missing {
		return n // a registry that was wiped must not put drained servers back
	}
	n.all, n.kept = nil, nil
	for _, c := range snap.Children {
		v, err := discovery.DecodeOverride(c.Name, c.Data)
		if err != nil {
			n.refuse(o, c.Name, err.Error())
			continue
		}
		v.Revision = c.Revision
		n.all, n.kept = append(n.all, v), append(n.kept, c)
	}
	for _, r := range snap.Rejected {
		n.refuse(o, r.Node, r.Detail)
	}
	slices.SortFunc(n.all, func(a, b discovery.Override) int { return cmp.Compare(a.Node, b.Node) })
	slices.SortFunc(n.kept, func(a, b discovery.Child) int { return cmp.Compare(a.Name, b.Name) })
	slices.SortFunc(n.bad, func(a, b BadOverride) int { return cmp.Compare(a.Node, b.Node) })
	return n
}

// refuse notes a node that cannot be used. What it was before, if it was something, stays.
func (o *overriding) refuse(before overriding, node, why string) {
	i := slices.IndexFunc(before.all, func(v discovery.Override) bool { return v.Node == node })
	o.bad = append(o.bad, BadOverride{Node: node, Reason: why, Former: i >= 0})
	if i < 0 {
		return
	}
	o.all = append(o.all, before.all[i])
	if i = slices.IndexFunc(before.kept, func(c discovery.Child) bool { return c.Name == node }); i >= 0 {
		o.kept = append(o.kept, before.kept[i])
	}
}

// restored is what was known until asOf, as it was kept.
func restoredOverrides(kept []discovery.Child, asOf time.Time) overriding {
	o := overriding{}.next(discovery.Snapshot{Children: kept}, asOf)
	o.heard, o.since, o.stored = false, time.Time{}, asOf
	return o
}

// inForce are those that count at now.
func (o overriding) inForce(now time.Time) discovery.Overrides {
	return slices.DeleteFunc(slices.Clone(o.all), func(v discovery.Override) bool { return !v.InForce(now) })
}

// inForce is what counts of the overrides, as the composer uses it: time is taken out of it.
type inForce struct {
	all discovery.Overrides
	at  time.Time
}

// of are those that may count for instances of a service.
func (f inForce) of(service string) discovery.ServiceOverrides { return f.all.Of(service, f.at) }

// overridden applies overrides to the servers that a service's instances became, and returns which counts for which, by
// the server's name. It is pure: servers is not changed, and is returned where nothing changes.
func overridden(servers []haproxy.Server, v view, active []discovery.Instance, of discovery.ServiceOverrides) ([]haproxy.Server, map[string]*discovery.Override) {
	if of.None() || len(servers) == 0 {
		return servers, nil
	}
	registered := v.registeredAt()
	by := map[string]*discovery.Override{}
	for i := range active {
		in := &active[i]
		o := of.For(registered(in), in.Endpoint)
		name := haproxy.ServerName(in.Name, in.Endpoint.Host(), in.Endpoint.Port())
		if _, twin := by[name]; !twin { // of two with one name the first became the server
			by[name] = o
		}
	}
	maps.DeleteFunc(by, func(_ string, o *discovery.Override) bool { return o == nil })
	if len(by) == 0 {
		return servers, nil
	}
	out := slices.Clone(servers)
	for i := range out {
		if o := by[out[i].Name]; o != nil {
			bend(&out[i], *o)
		}
	}
	return out, by
}

// bend makes a server what an override asks for. A server that is out of rotation by its own registration stays so.
func bend(s *haproxy.Server, o discovery.Override) {
	switch o.Action {
	case discovery.ActionDrain:
		s.Admin = max(s.Admin, haproxy.Drain)
	case discovery.ActionMaint:
		s.Admin = haproxy.Maint
	case discovery.ActionWeight:
		s.Weight = bentWeight(s.Weight, o)
	}
}

// bentWeight is the weight of a server with this weight under an override. A part of a weight that is not 0 is never 0:
// that would be another state.
func bentWeight(weight int, o discovery.Override) int {
	switch {
	case !o.Percent:
		return o.Weight
	case weight == 0 || o.Weight == 0:
		return 0
	}
	return max(1, (weight*o.Weight+50)/100)
}

// registeredAt tells under which endpoint an active instance is registered, where its service overrides ports.
func (v view) registeredAt() func(*discovery.Instance) discovery.Endpoint {
	if v.service.BackendPortOverride == 0 {
		return func(in *discovery.Instance) discovery.Endpoint { return in.Endpoint }
	}
	at := make(map[string]discovery.Endpoint, len(v.basis.Instances))
	for i := range v.basis.Instances {
		at[v.basis.Instances[i].Node] = v.basis.Instances[i].Endpoint
	}
	return func(in *discovery.Instance) discovery.Endpoint {
		if e, ok := at[in.Node]; ok && in.Node != "" {
			return e
		}
		return in.Endpoint
	}
}

// sameOverrides tells whether the same revisions of the same overrides count for the same servers.
func sameOverrides(a, b map[string]*discovery.Override) bool {
	return maps.EqualFunc(a, b, func(x, y *discovery.Override) bool { return x == y || x.Node == y.Node && x.Revision == y.Revision })
}

// describeOverride says what an override does, in a few words.
func describeOverride(o discovery.Override) string {
	switch {
	case o.Action == discovery.ActionWeight && o.Percent:
		return fmt.Sprintf("weight %d%%", o.Weight)
	case o.Action == discovery.ActionWeight:
		return fmt.Sprintf("weight %d", o.Weight)
	}
	return string(o.Action)
}
