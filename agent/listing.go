package agent

import (
	"time"

	"github.com/myelin-sd/myelin/discovery"
)

// Listing is what the agent believes that the registry lists of a service: the answer of
// /api/v1/services/{name}/instances.
type Listing struct {
	Service   string         `json:"service"`
	Path      string         `json:"path,omitempty"`
	Known     bool           `json:"known"`             // false: nothing has been heard yet, and nothing is on disk
	AsOf      time.Time      `json:"as_of,omitzero"`    // until when it is known to be right: now, while the registry is watched
	FromDisk  bool           `json:"from_disk"`         // nothing has been heard yet: it is the set that was kept on disk
	Missing   bool           `json:"missing,omitempty"` // the path does not exist
	Instances []InstanceInfo `json:"instances"`         // held ones too, rejected ones at the end
}

// InstanceInfo is one registration. Its JSON is that of myelin instances, with the options beside it.
type InstanceInfo struct {
	Service  string         `json:"service"`
	Node     string         `json:"node"`
	Host     string         `json:"host,omitempty"`
	Port     uint16         `json:"port,omitempty"`
	Name     string         `json:"name"`
	Weight   *int           `json:"weight"`
	Labels   map[string]any `json:"labels"`
	Session  string         `json:"session"`
	Created  time.Time      `json:"created"`
	Modified time.Time      `json:"modified"`
	State    string         `json:"state"` // ok, leaving, held or rejected
	Reason   string         `json:"reason,omitempty"`
	Options  []string       `json:"options,omitempty"`
}

// The states of an InstanceInfo.
const (
	StateOK       = "ok"
	StateLeaving  = "leaving"
	StateHeld     = "held" // the registry does not list it; the guard keeps it in force
	StateRejected = "rejected"
)

// InfoOf is an instance as it is told.
func InfoOf(service string, in discovery.Instance) InstanceInfo {
	i := InstanceInfo{
		Service: service, Node: in.Node, Host: in.Endpoint.Host(), Port: in.Endpoint.Port(), Name: in.Name, Weight: in.Weight,
		Labels: in.Labels, Session: sessionWord(in.Session), Created: in.Created, Modified: in.Modified, State: StateOK, Options: in.ServerOptions,
	}
	if i.Labels == nil {
		i.Labels = map[string]any{} // an object in JSON, with or without entries
	}
	if in.Leaving {
		i.State = StateLeaving
	}
	return i
}

// InfosOf are the registrations of a snapshot as they are told, rejected ones at the end.
func InfosOf(service string, snap discovery.Snapshot) []InstanceInfo {
	out := make([]InstanceInfo, 0, len(snap.Instances)+len(snap.Rejected))
	for _, in := range snap.Instances {
		out = append(out, InfoOf(service, in))
	}
	for _, r := range snap.Rejected {
		out = append(out, InstanceInfo{
			Service: service, Node: r.Node, Labels: map[string]any{}, Session: sessionWord(r.Session), Created: r.Created, Modified: r.Modified,
			State: StateRejected, Reason: r.Reason + ": " + r.Detail,
		})
	}
	return out
}

// Instances is what the agent believes of a service. An unknown one is a *NoServiceError.
func (a *Agent) Instances(service string) (Listing, error) {
	g := a.current.Load()
	if g == nil {
		return Listing{}, noService(service, nil)
	}
	v, _, ok := g.believed(service)
	if !ok {
		return Listing{}, noService(service, g.allViews())
	}
	now := time.Now()
	l := Listing{
		Service: service, Path: v.service.Discovery.Path, Known: v.seen || v.fromDisk(), FromDisk: v.fromDisk(), Missing: v.snapshot.Missing,
		AsOf: now,
	}
	snap := v.snapshot
	switch {
	case v.fromDisk():
		snap, l.AsOf = v.basis, v.stored
	case !v.seen:
		l.AsOf = time.Time{}
	case l.Path != "":
		if at, known := a.Status().heard(now)[service]; known {
			l.AsOf = at
		}
	}
	held := v.guard.held()
	if !v.fromDisk() { // the set from disk has them
		snap.Instances = merge(snap.Instances, held)
	}
	l.Instances = InfosOf(service, snap)
	for i := range l.Instances {
		if n := &l.Instances[i]; n.State != StateRejected && has(held, snap.Instances[i].Endpoint) {
			n.State, n.Reason = StateHeld, v.guard.reasonFor(snap.Instances[i].Endpoint)
		}
	}
	return l, nil
}

// reasonFor is why the instance at e is held.
func (g guard) reasonFor(e discovery.Endpoint) string {
	for _, h := range g.holds {
		if h.instance.Endpoint == e {
			return h.reason
		}
	}
	return ""
}

func (a *Agent) noService(service string) *NoServiceError {
	if g := a.current.Load(); g != nil {
		return noService(service, g.allViews())
	}
	return noService(service, nil)
}
