package agent

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"slices"
	"strconv"
	"strings"
	"sync"
	"time"

	"github.com/myelin-sd/myelin/config"
	"github.com/myelin-sd/myelin/discovery"
	"github.com/myelin-sd/myelin/discovery/zookeeper"
	"github.com/myelin-sd/myelin/haproxy"
)

// inspection is all that an agent knows of one service at one moment, so that what is known of each of its instances
// costs a few look-ups.
type inspection struct {
	v       view
	b       wantedBackend
	now     time.Time
	base    AgentEvidence // what is the same for all instances
	aim     aim
	session zookeeper.Status

	listed     map[discovery.Endpoint][]discovery.Instance // by the registered endpoint and by that in HAProxy
	active     map[discovery.Endpoint][]discovery.Instance // by that in HAProxy
	kept       map[discovery.Endpoint]bool                 // of active, those within haproxy.max_servers
	refused    map[discovery.Endpoint]refused
	static     map[discovery.Endpoint]bool
	held       map[discovery.Endpoint][]hold // by the registered endpoint and by that in HAProxy
	quarantine map[string]string
	unresolved map[string]Unresolved

	haproxys []haproxyInspection
}

// haproxyInspection is one HAProxy's part.
type haproxyInspection struct {
	base   HAProxyEvidence
	failed []string
	manual []ManualChange
	err    error
	byName map[string]ServerStatus // by the name of the wanted server, else the server's own
	byAddr map[string]ServerStatus
}

// Evidence is what the agent knows of an instance of a service, HOST:PORT or the name of a node: what the answer of
// /api/v1/services/{name}/explain is made of. HAProxy is asked over connections of its own. It blocks for some seconds
// at the longest. An unknown service is a *NoServiceError; an unknown instance is not an error.
func (a *Agent) Evidence(ctx context.Context, service, instance string) (Evidence, error) {
	e, err := ParseInstance(instance)
	ins, bad := a.inspect(ctx, service, func(v view) discovery.Endpoint {
		if err != nil { // the name of a node, or nothing that can be an instance
			e = endpointOfNode(v, instance)
		}
		return e
	}, false)
	if bad != nil {
		return Evidence{}, bad
	}
	evidence := ins.evidence(e, instance)
	if len(evidence.Nodes) == 0 && !evidence.Static && evidence.Held == nil {
		evidence.Others = ins.near(instance) // which takes a while among many: a Summary does without
	}
	return Evidence{Service: service, Instance: instance, Agent: &evidence}, nil
}

func endpointOfNode(v view, node string) discovery.Endpoint {
	for _, in := range slices.Concat(v.snapshot.Instances, v.guard.held()) {
		if in.Node == node {
			return in.Endpoint
		}
	}
	e, _ := discovery.ParseEndpoint("192.0.2.0", 80) // an address of RFC 5737, which nobody has
	return e
}

// inspect gathers what is known of a service, and of its servers those of one instance, or all.
func (a *Agent) inspect(ctx context.Context, service string, instance func(view) discovery.Endpoint, all bool) (*inspection, error) {
	g := a.current.Load()
	if g == nil {
		return nil, noService(service, nil)
	}
	v, b, ok := g.believed(service)
	if !ok {
		return nil, noService(service, g.allViews())
	}
	of := discovery.Endpoint{}
	if !all {
		of = instance(v)
	}
	ins := &inspection{v: v, b: b, aim: aimOf(v, b, of)}
	ins.aim.shadow = a.book != nil
	if st, ok := a.sessions.Status(v.service.Discovery.ZooKeeper); ok {
		ins.session = st
	}
	haproxys := g.watched()
	found := make([]sighting, len(haproxys))
	if !v.service.HAProxy.Disabled {
		var asking sync.WaitGroup
		for i, h := range haproxys {
			asking.Go(func() { found[i] = a.lookAt(ctx, h, b.name, ins.aim) })
		}
		asking.Wait()
	}
	ins.now = time.Now()
	ins.basics(a, g)
	ins.index(g)
	if !v.service.HAProxy.Disabled {
		for i, h := range haproxys {
			ins.haproxys = append(ins.haproxys, ins.haproxy(g, h, found[i]))
		}
	}
	return ins, nil
}

// basics fills in what is the same for all instances.
func (ins *inspection) basics(a *Agent, g *generation) {
	v, b, d := ins.v, ins.b, ins.v.service.Discovery
	e := AgentEvidence{
		Method: d.Method, Path: d.Path, Connected: ins.session.Connected, Since: ins.session.Since, LastError: ins.session.Error,
		Heard: v.seen, HeardAt: v.snapshot.At, Known: v.known, InForce: len(v.active), Missing: v.snapshot.Missing,
		Shadow: a.book != nil, SetHeld: v.held, Port: v.service.BackendPortOverride, Backend: b.name, Gate: b.gate,
		Reload: g.file.status().Pending, NeedsReload: g.file.ladder.of(b.name).short,
	}
	if g.overrides != nil {
		e.Unheard = g.overrides.unheard(ins.now)
	}
	if d.Path != "" {
		e.Ensemble = a.sessions.Name(d.ZooKeeper)
	}
	if v.fromDisk() {
		stored := v.stored
		e.FromDisk = &stored
	}
	switch {
	case v.service.HAProxy.Disabled:
		e.NoHAProxy = "the service is not for HAProxy (haproxy.disabled)"
	case len(g.watched()) == 0:
		e.NoHAProxy = "the agent talks to no HAProxy (haproxy.do_socket is off)"
	}
	ins.base = e
}

// index makes the look-ups.
func (ins *inspection) index(g *generation) {
	ins.indexView()
	for _, u := range g.resolver.unresolved(ins.v.active) {
		ins.unresolved[u.Name] = u
	}
	ins.quarantine = g.file.quarantine.reasons(ins.b.name)
}

// indexView makes those of what is believed.
func (ins *inspection) indexView() {
	v, b := ins.v, ins.b
	ins.listed, ins.active = map[discovery.Endpoint][]discovery.Instance{}, map[discovery.Endpoint][]discovery.Instance{}
	ins.kept, ins.static = map[discovery.Endpoint]bool{}, map[discovery.Endpoint]bool{}
	ins.refused, ins.unresolved = map[discovery.Endpoint]refused{}, map[string]Unresolved{}
	for _, in := range v.snapshot.Instances {
		ins.listed[in.Endpoint] = append(ins.listed[in.Endpoint], in)
		if served := ins.served(in.Endpoint); served != in.Endpoint {
			ins.listed[served] = append(ins.listed[served], in)
		}
	}
	for _, in := range v.active {
		ins.active[in.Endpoint] = append(ins.active[in.Endpoint], in)
	}
	kept, _ := b.within(v.active)
	for _, in := range kept {
		ins.kept[in.Endpoint] = true
	}
	for _, in := range defaultInstances(v.service) {
		ins.static[ins.served(in.Endpoint)] = true
	}
	for _, r := range b.refused {
		ins.refused[r.Instance.Endpoint] = r
	}
	ins.held = make(map[discovery.Endpoint][]hold, len(v.guard.holds))
	for _, h := range v.guard.holds {
		e := h.instance.Endpoint
		ins.held[e] = append(ins.held[e], h)
		if served := ins.served(e); served != e {
			ins.held[served] = append(ins.held[served], h)
		}
	}
}

// served is where HAProxy sends the requests for an instance.
func (ins *inspection) served(e discovery.Endpoint) discovery.Endpoint {
	return override([]discovery.Instance{{Endpoint: e}}, ins.v.service.BackendPortOverride)[0].Endpoint
}

// haproxy gathers what is known of one HAProxy, and what it told.
func (ins *inspection) haproxy(g *generation, of watched, found sighting) haproxyInspection {
	h := haproxyInspection{
		base:   HAProxyEvidence{Socket: of.socket, Weights: found.weights, Serving: found.serving},
		byName: map[string]ServerStatus{}, byAddr: map[string]ServerStatus{}, err: found.err,
	}
	if errors.Is(found.err, haproxy.ErrNoBackend) {
		h.base.NoBackend, h.err = true, nil
	}
	if st := of.status(); st != nil {
		h.base.Connected, h.base.Since, h.base.LastError = st.Connected, st.Since, st.Error
		h.base.Pending = !st.Applied || st.reached != g.wanted.Load()
		h.failed, h.manual = st.Failed, st.Manual
		if why := st.Unfit[ins.b.name]; ins.base.NeedsReload == "" && why != "" {
			ins.base.NeedsReload = why
		}
	}
	told := ins.aim.tell(of.socket, found, ins.now)
	of.status().tellManual(ins.b.name, told)
	for _, s := range told {
		name := s.Name
		if name == "" {
			name, _ = haproxy.Generation(s.Server)
		}
		if old, there := h.byName[name]; !there || old.Name == "" {
			h.byName[name] = s
		}
		if _, there := h.byAddr[s.Address]; !there || s.Name != "" {
			h.byAddr[s.Address] = s
		}
	}
	return h
}

// evidence is what is known of the instance at e. text is what was asked for: it may be the name of a node.
func (ins *inspection) evidence(e discovery.Endpoint, text string) AgentEvidence {
	out := ins.base
	served := ins.served(e)
	for _, in := range ins.listed[e] {
		out.Nodes = append(out.Nodes, InstanceEvidence(in))
	}
	if len(out.Nodes) == 0 {
		for _, r := range ins.v.snapshot.Rejected {
			if MentionsInstance(text, r.Node, r.Detail) {
				out.Nodes = append(out.Nodes, RejectedEvidence(r))
			}
		}
	}
	out.Static = ins.static[served] && len(out.Nodes) == 0
	if staying := staying(ins.listed[e]); len(staying) > 0 && len(ins.v.filter(staying)) == 0 {
		out.Filtered = failedFilter(staying[0], ins.v)
	}
	out.Held = ins.hold(e)

	active := ins.activeOf(e, served)
	out.Active = len(active) > 0
	if out.Active {
		out.Used = active[0].Node
		if !ins.kept[served] {
			out.Most = ins.b.most
		}
	} else if ins.v.service.LeaderElection && len(ins.v.active) > 0 && out.Filtered == "" && len(out.Nodes) > 0 {
		out.Leader = ins.v.active[0].Endpoint.String()
	}
	if r, ok := ins.refused[served]; ok && r.Kept {
		out.Curtailed = r.Reason
	} else if ok {
		out.Refused = r.Reason
	}
	if u, ok := ins.unresolved[served.Host()]; ok {
		out.Unresolved = &u
	}
	names := ins.names(active, e, served)
	for _, n := range names {
		if why, ok := ins.quarantine[n]; ok {
			out.Quarantine = why
		}
		if o := ins.b.overrides[n]; o != nil && out.Override == nil {
			out.Override = overrideEvidence(*o)
		}
	}
	for i := range ins.haproxys {
		out.HAProxy = append(out.HAProxy, ins.seen(&ins.haproxys[i], names, served, e == served || out.Active))
	}
	return out
}

// near are the instances in force that are most like a text that is not known.
func (ins *inspection) near(text string) []string {
	const most = 5
	var all []string
	for i := range ins.v.active {
		all = append(all, ins.v.active[i].Endpoint.String())
	}
	if near := config.Nearest(text, all); near != "" {
		return []string{near}
	}
	return all[:min(len(all), most)]
}

// activeOf are the instances in force that the one at e is. With backend_port_override several instances of a host may be
// at one address in HAProxy: then the nodes tell which is meant.
func (ins *inspection) activeOf(e, served discovery.Endpoint) []discovery.Instance {
	all := ins.active[served]
	if e == served {
		return all
	}
	nodes := map[string]bool{"": true}
	for _, in := range ins.listed[e] {
		nodes[in.Node] = nodes[in.Node] || in.Endpoint == e
	}
	for _, h := range ins.held[e] {
		nodes[h.instance.Node] = nodes[h.instance.Node] || h.instance.Endpoint == e
	}
	return slices.DeleteFunc(slices.Clone(all), func(in discovery.Instance) bool { return !nodes[in.Node] })
}

// names are those that the servers of an instance may have, the ones that are wanted first.
func (ins *inspection) names(active []discovery.Instance, e, served discovery.Endpoint) []string {
	var names []string
	for _, in := range slices.Concat(active, ins.listed[e]) {
		names = append(names, haproxy.ServerName(in.Name, served.Host(), served.Port()))
	}
	return append(names, haproxy.ServerName("", served.Host(), served.Port()))
}

// seen is what one HAProxy has of an instance, by the names that its server may have, else, with anyAddr, by its address.
func (ins *inspection) seen(h *haproxyInspection, names []string, served discovery.Endpoint, anyAddr bool) HAProxyEvidence {
	out := h.base
	ok := false
	for _, n := range names {
		if out.Server, ok = h.byName[n]; ok {
			break
		}
	}
	if ip, isIP := served.IP(); !ok && isIP && anyAddr {
		out.Server, ok = h.byAddr[netip.AddrPortFrom(ip, served.Port()).String()]
	}
	if !ok {
		out.Server = ins.aim.status(h.base.Socket, nil, nil, ins.now)
	}
	if h.err != nil {
		out.Server.Admin, out.Server.Error = serverUnknown, h.err.Error()
	}
	for _, m := range h.manual {
		if m.Backend == ins.b.name && m.Server == out.Server.Server {
			until := m.Until
			out.ManualUntil = &until
		}
	}
	for _, f := range h.failed {
		if strings.Contains(f, " "+ins.b.name+"/"+out.Server.name()+":") {
			out.Failed = f
		}
	}
	return out
}

// hold is the guard's hold on an instance; nil: there is none.
func (ins *inspection) hold(e discovery.Endpoint) *HoldStatus {
	if len(ins.held[e]) == 0 {
		return nil
	}
	h := ins.held[e][0]
	s := &HoldStatus{Reason: h.reason, Since: h.since, Judged: !h.waits, Instances: []string{h.instance.Endpoint.String()}}
	if until := h.until; !until.IsZero() && !emptyReason(ins.v.held) { // while the registry lists nothing, time ends nothing
		s.Until = &until
	}
	return s
}

// failedFilter says which of a service's filters an instance does not pass.
func failedFilter(in discovery.Instance, v view) string {
	for _, f := range v.service.Discovery.LabelFilters {
		one := discovery.LabelFilter{Label: f.Label, Value: f.Value, Condition: f.Condition}
		if len(discovery.Filter([]discovery.Instance{in}, []discovery.LabelFilter{one})) > 0 {
			continue
		}
		has, there := in.Labels[f.Label]
		is := "it has none"
		if there {
			is = fmt.Sprintf("it is %v", quoted(has))
		}
		want := "must be"
		if f.Condition == discovery.NotEquals {
			want = "must not be"
		}
		return fmt.Sprintf("the label %s %s %v, and %s", f.Label, want, quoted(f.Value), is)
	}
	return "the label filters leave it out"
}

// overrideEvidence is an override as it is told.
func overrideEvidence(o discovery.Override) *OverrideEvidence {
	e := &OverrideEvidence{Node: o.Node, Target: o.Target.String(), Action: string(o.Action), Author: o.Author, Reason: o.Reason, Created: o.Created, End: "myelin enable " + o.Target.Words()}
	if o.Action == discovery.ActionWeight {
		e.Weight = strconv.Itoa(o.Weight)
		if o.Percent {
			e.Weight += "%"
		}
	}
	if !o.Until.IsZero() {
		until := o.Until
		e.Until = &until
	}
	return e
}

// quoted writes a label's value so that a text and a number can be told apart: filters are strict about that.
func quoted(v any) string {
	if s, ok := v.(string); ok {
		return fmt.Sprintf("%q", s)
	}
	if v == nil {
		return "null"
	}
	return fmt.Sprint(v)
}

// InstanceEvidence is a registration that decodes.
func InstanceEvidence(in discovery.Instance) NodeEvidence {
	return NodeEvidence{
		Node: in.Node, Instance: in.Endpoint.String(), Name: in.Name, Weight: in.Weight, Labels: in.Labels, Options: in.ServerOptions,
		Leaving: in.Leaving, Session: sessionWord(in.Session), Created: in.Created, Modified: in.Modified,
	}
}

// RejectedEvidence is a registration that does not.
func RejectedEvidence(r discovery.Rejection) NodeEvidence {
	return NodeEvidence{Node: r.Node, Reason: r.Reason, Detail: r.Detail, Session: sessionWord(r.Session), Created: r.Created, Modified: r.Modified}
}

// sessionWord writes a session as ZooKeeper's own tools do; empty for a node that is not ephemeral.
func sessionWord(id int64) string {
	if id == 0 {
		return ""
	}
	return fmt.Sprintf("0x%x", uint64(id))
}

// MentionsInstance tells whether a registration that does not decode may be that of an instance, HOST:PORT or the name
// of a node: by its name, or because its texts have the host in them and the port.
func MentionsInstance(instance, node string, texts ...string) bool {
	if node == instance {
		return true
	}
	host, port, err := net.SplitHostPort(instance)
	if err != nil || host == "" || port == "" {
		return false
	}
	all := node + " " + strings.Join(texts, " ")
	return strings.Contains(all, host) && strings.Contains(all, port)
}

// Summary says of a whole service how many instances get how far, and why those that get no traffic do not. Its JSON is
// part of the interface.
type Summary struct {
	Service   string          `json:"service"`
	Path      string          `json:"path,omitempty"`
	Connected bool            `json:"connected"` // the agent, to ZooKeeper
	Since     time.Time       `json:"since,omitzero"`
	Counts    SummaryCounts   `json:"counts"`
	Notes     []string        `json:"notes,omitempty"` // what holds for all of them
	Out       []OutOfRotation `json:"out_of_rotation"` // those that do not get traffic from every HAProxy
	More      int             `json:"more,omitempty"`  // of them, not told here
}

// SummaryCounts are instances by how far they get. Ready, Up and InRotation are those of the HAProxy that has the
// fewest, -1 where none was asked.
type SummaryCounts struct {
	Registered int `json:"registered"` // nodes, undecodable ones too
	Decoded    int `json:"decoded"`
	Leaving    int `json:"leaving"`
	Passing    int `json:"passing"` // the filters
	Held       int `json:"held"`    // in force although the registry does not list them
	InForce    int `json:"in_force"`
	Servers    int `json:"servers"` // that HAProxy is to have
	Ready      int `json:"ready"`
	Up         int `json:"up"`
	InRotation int `json:"in_rotation"`
}

// OutOfRotation is one instance that does not get traffic.
type OutOfRotation struct {
	Instance   string     `json:"instance,omitempty"`
	Node       string     `json:"node,omitempty"` // where there is no instance, since it does not decode
	InRotation Answer     `json:"in_rotation"`
	Why        string     `json:"why"`
	Next       string     `json:"next"`
	NextAt     *time.Time `json:"next_at,omitempty"`
}

// summaryMost bounds the instances of a Summary.
const summaryMost = 1000

// Summary explains a service. It blocks for some seconds at the longest. An unknown service is a *NoServiceError.
func (a *Agent) Summary(ctx context.Context, service string) (Summary, error) {
	ins, err := a.inspect(ctx, service, nil, true)
	if err != nil {
		return Summary{}, err
	}
	return ins.summary(), nil
}

func (ins *inspection) summary() Summary {
	v := ins.v
	stay := staying(v.snapshot.Instances)
	s := Summary{
		Service: v.service.Name, Path: v.service.Discovery.Path, Connected: ins.base.Connected, Since: ins.base.Since, Out: []OutOfRotation{},
		Counts: SummaryCounts{
			Registered: len(v.snapshot.Instances) + len(v.snapshot.Rejected), Decoded: len(v.snapshot.Instances),
			Leaving: len(v.snapshot.Instances) - len(stay), Passing: len(v.filter(stay)), Held: len(v.guard.holds),
			InForce: len(v.active), Servers: len(ins.b.servers), Ready: -1, Up: -1, InRotation: -1,
		},
	}
	ins.count(&s.Counts)
	ins.note(&s)
	seen := map[discovery.Endpoint]bool{}
	for _, in := range slices.Concat(v.snapshot.Instances, v.guard.held(), v.active) {
		if seen[in.Endpoint] || seen[ins.served(in.Endpoint)] {
			continue
		}
		seen[in.Endpoint], seen[ins.served(in.Endpoint)] = true, true
		text := in.Endpoint.String()
		e := ins.evidence(in.Endpoint, text)
		if len(e.HAProxy) > 0 && !slices.ContainsFunc(e.HAProxy, func(h HAProxyEvidence) bool { return !h.Server.takes() }) {
			continue
		}
		s.leave(ins.explain(text, e), OutOfRotation{Instance: text})
	}
	for _, r := range v.snapshot.Rejected {
		e := ins.base
		e.Nodes = []NodeEvidence{RejectedEvidence(r)}
		s.leave(ins.explain(r.Node, e), OutOfRotation{Node: plain(r.Node)})
	}
	return s
}

func (ins *inspection) explain(text string, e AgentEvidence) Explanation {
	return Explain(Evidence{Service: ins.v.service.Name, Instance: text, Agent: &e}, ins.now)
}

func (s *Summary) leave(x Explanation, o OutOfRotation) {
	if x.InRotation == Yes {
		return
	}
	if len(s.Out) == summaryMost {
		s.More++
		return
	}
	o.InRotation, o.Why, o.Next, o.NextAt = x.InRotation, x.because(), x.Next, x.NextAt
	s.Out = append(s.Out, o)
}

// because is Why without the instance, and without that it gets no traffic, which is known.
func (x Explanation) because() string {
	return strings.TrimPrefix(strings.TrimPrefix(x.Why, x.Instance+" "), "gets no traffic: ")
}

// count counts what HAProxys have.
func (ins *inspection) count(c *SummaryCounts) {
	first := true
	for i := range ins.haproxys {
		h := &ins.haproxys[i]
		if h.err != nil {
			continue
		}
		ready, up, serving := 0, 0, 0
		for _, s := range h.byName {
			if s.Admin == "ready" {
				ready++
				if s.Operational != "down" {
					up++
				}
			}
			if s.takes() {
				serving++
			}
		}
		if first || serving < c.InRotation {
			c.Ready, c.Up, c.InRotation = ready, up, serving
		}
		first = false
	}
}

// note says what holds for all instances.
func (ins *inspection) note(s *Summary) {
	x := explainer{now: ins.now}
	b := ins.base
	switch {
	case b.FromDisk != nil:
		s.Notes = append(s.Notes, "served from disk, as it was "+x.ago(*b.FromDisk)+" ago: nothing heard from ZooKeeper yet")
	case !b.Heard && b.Method != "base":
		s.Notes = append(s.Notes, "nothing heard from ZooKeeper yet; HAProxy keeps what it has")
	case !b.Connected && b.Path != "":
		s.Notes = append(s.Notes, "no connection to ZooKeeper for "+x.ago(b.Since)+": what was known stays in force")
	case b.Missing:
		s.Notes = append(s.Notes, "the path does not exist in ZooKeeper")
	}
	if b.SetHeld != "" && b.Known {
		s.Notes = append(s.Notes, "not what the registry lists: "+plain(b.SetHeld))
	}
	if why := cmp.Or(b.NeedsReload, b.Reload); why != "" {
		s.Notes = append(s.Notes, "a reload is due: "+plain(why))
	}
	if b.NoHAProxy != "" {
		s.Notes = append(s.Notes, plain(b.NoHAProxy))
	}
	for i := range ins.haproxys {
		h := &ins.haproxys[i]
		switch {
		case h.err != nil:
			s.Notes = append(s.Notes, "HAProxy at "+plain(h.base.Socket)+" does not answer: "+plain(h.err.Error()))
		case h.base.NoBackend:
			s.Notes = append(s.Notes, "HAProxy at "+plain(h.base.Socket)+" has no backend "+plain(ins.b.name))
		}
	}
}
