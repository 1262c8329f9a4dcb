package agent

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"maps"
	"net"
	"net/netip"
	"slices"
	"strconv"
	"sync"
	"time"

	"github.com/myelin-sd/myelin/discovery"
	"github.com/myelin-sd/myelin/haproxy"
)

// Bounds of asking HAProxy for others.
const (
	liveAtOnce   = 2               // HAProxys that are asked at a time, for all who want to know
	livePatience = 3 * time.Second // for one HAProxy
	liveMost     = 4000            // servers of a service that are told of at a time
)

// The words of ServerStatus that are not HAProxy's.
const (
	serverAbsent  = "absent"  // there is no such server
	serverUnknown = "unknown" // nobody could tell
)

// ServerStatus is one server of a service in one HAProxy: what is wanted of it and how it is. It is a member of the
// answer of /api/v1/services/{name}/servers.
type ServerStatus struct {
	Socket  string `json:"socket"`  // of the HAProxy
	Server  string `json:"server"`  // its name there; where it is absent, the name that it is to have; empty: it has none
	Name    string `json:"name"`    // of the wanted server that it is, which is not that of the slot it is in; empty: none is wanted
	Address string `json:"address"` // as HAProxy has it, else as it is to have it

	// Wanted is "ready", "drain", "maint" or "absent"; "unknown" while nothing has been heard of the service.
	Wanted       string `json:"wanted"`
	WeightWanted int    `json:"weight_wanted"` // -1: no server is wanted

	// Admin is "ready", "drain", "maint" or "absent"; "unknown" where HAProxy could not be asked, and then Error says why.
	Admin       string     `json:"admin"`
	Operational string     `json:"operational"` // "up", "starting", "stopping", "down"; empty: there is no such server
	Weight      int        `json:"weight"`      // -1: not told
	Sessions    int        `json:"sessions"`    // current ones; -1: not told
	Queue       int        `json:"queue"`       // requests that wait for it; -1: not told
	Check       string     `json:"check"`       // the last result of its health check, in HAProxy's words; empty: none
	Checked     bool       `json:"checked"`     // HAProxy checks it
	Changed     *time.Time `json:"changed,omitempty"`

	Override         string `json:"override"` // name of the override's node that counts for it; empty: none
	OverrideRevision int32  `json:"override_revision"`
	// OverrideCreated tells overrides apart that were removed and made anew: their revisions begin again.
	OverrideCreated *time.Time `json:"override_created,omitempty"`
	Foreign         string     `json:"foreign"` // what somebody else changed or made; empty: nothing
	Error           string     `json:"error,omitempty"`
}

// BadInstanceError says that what was asked for is no HOST:PORT.
type BadInstanceError struct {
	Instance string
	Err      error
}

func (e *BadInstanceError) Error() string {
	return fmt.Sprintf("instance %q: write HOST:PORT: %v", e.Instance, e.Err)
}

// Unwrap returns what is wrong with it.
func (e *BadInstanceError) Unwrap() error { return e.Err }

// ParseInstance reads HOST:PORT; an IPv6 address stands in brackets.
func ParseInstance(text string) (discovery.Endpoint, error) {
	host, port, err := net.SplitHostPort(text)
	if err != nil {
		return discovery.Endpoint{}, &BadInstanceError{text, err}
	}
	n, err := strconv.Atoi(port)
	if err != nil {
		return discovery.Endpoint{}, &BadInstanceError{text, fmt.Errorf("port %q is no number", port)}
	}
	e, err := discovery.ParseEndpoint(host, n)
	if err != nil {
		return discovery.Endpoint{}, &BadInstanceError{text, err}
	}
	return e, nil
}

// Servers asks every HAProxy about the servers of a service, over connections of its own: changes are the reconcilers'.
// With an instance there is one answer for each HAProxy, also where it has no such server; with the zero Endpoint all
// servers are told of, in the order of their names. An unknown service is a *NoServiceError, more than 4,000 servers a
// *haproxy.TooManyError. It blocks for some seconds at the longest; a HAProxy that does not answer costs the others
// nothing.
func (a *Agent) Servers(ctx context.Context, service string, instance discovery.Endpoint) ([]ServerStatus, error) {
	g := a.current.Load()
	if g == nil {
		return nil, noService(service, nil)
	}
	v, b, ok := g.believed(service)
	if !ok {
		return nil, noService(service, g.allViews())
	}
	if v.service.HAProxy.Disabled {
		return []ServerStatus{}, nil
	}
	aim := aimOf(v, b, instance)
	aim.most, aim.shadow = liveMost, a.book != nil
	all := g.watched()
	found := make([]sighting, len(all))
	var asking sync.WaitGroup
	for i, h := range all {
		asking.Go(func() { found[i] = a.lookAt(ctx, h, b.name, aim) })
	}
	asking.Wait()
	out := []ServerStatus{}
	for i, h := range all {
		var many *haproxy.TooManyError
		if errors.As(found[i].err, &many) {
			return nil, many
		}
		told := aim.tell(h.socket, found[i], time.Now())
		h.status().tellManual(b.name, told)
		out = append(out, told...)
	}
	return out, nil
}

// watched is a HAProxy that others may ask about: one that the agent drives, or one that its shadow reads.
type watched struct {
	socket string
	status func() *haproxyStatus // nil before it was asked
	dumps  *sync.RWMutex         // see reconciler.dumps; nil: nobody here deletes servers
}

// watched are the HAProxys that answer for this agent. A shadow without a socket, which reads the file, has none.
func (g *generation) watched() (all []watched) {
	for _, r := range g.haproxys {
		all = append(all, watched{r.socket, r.status.Load, &r.dumps})
	}
	for _, s := range g.shadows {
		if s.socket != "" {
			all = append(all, watched{s.socket, s.status.Load, nil})
		}
	}
	return all
}

// believed is what is believed of a service now, and what HAProxy is to have of it.
func (g *generation) believed(service string) (view, wantedBackend, bool) {
	g.mu.Lock()
	k, views := g.composer, g.views
	i := slices.IndexFunc(views, func(v view) bool { return v.service.Name == service })
	var v view
	if i >= 0 {
		v = views[i]
	}
	g.mu.Unlock()
	if i < 0 {
		return view{}, wantedBackend{}, false
	}
	b, ok := g.wanted.Load().backends[k.backends[i].name]
	if !ok {
		b = wantedBackend{backend: k.backends[i]}
	}
	return v, b, true
}

// sighting is what one HAProxy told.
type sighting struct {
	live    []haproxy.Live // of the servers that were asked about
	weights int            // of all servers of the backend that take traffic, together
	serving int            // how many these are
	err     error
}

// lookAt asks one HAProxy, as soon as fewer than liveAtOnce others are asked.
func (a *Agent) lookAt(ctx context.Context, h watched, backend string, aim aim) sighting {
	select {
	case a.looks <- struct{}{}:
		defer func() { <-a.looks }()
	case <-ctx.Done():
		return sighting{err: ctx.Err()}
	}
	ctx, cancel := context.WithTimeout(ctx, livePatience)
	defer cancel()
	c, err := haproxy.Dial(ctx, h.socket, haproxy.ClientOptions{Timeout: livePatience, ReadOnly: true})
	if err != nil {
		return sighting{err: err}
	}
	defer c.Close()
	if h.dumps != nil { // no server is deleted meanwhile
		h.dumps.RLock()
		defer h.dumps.RUnlock()
	}
	live, all, err := c.Live(ctx, backend, liveMost, aim.meant)
	var many *haproxy.TooManyError
	if errors.As(err, &many) && aim.most == 0 {
		err = nil
		for _, l := range all {
			if aim.meant(l) {
				live = append(live, haproxy.Live{Server: l, Sessions: -1, Queue: -1, Changed: -1})
			}
		}
	}
	s := sighting{live: live, err: err}
	for i := range all {
		if takes(&all[i]) {
			s.weights += all[i].Weight
			s.serving++
		}
	}
	return s
}

// takes tells whether a server takes new requests.
func takes(s *haproxy.Server) bool {
	return s.Admin == haproxy.Ready && (s.Op == haproxy.OpRunning || s.Op == haproxy.OpStarting) && s.Weight > 0 && !haproxy.EmptySlot(*s)
}

// aim says which servers somebody wants to know of, and what is wanted of them.
type aim struct {
	backend wantedBackend
	one     bool // one instance is meant
	most    int  // servers that may be told of; 0: any number, without statistics beyond liveMost
	known   bool
	shadow  bool                       // others make the servers, and name them as they like
	names   map[string]bool            // of its servers, without generations; with one only
	addrs   map[netip.AddrPort]bool    // of its servers; with one only
	wanted  map[string]haproxy.Server  // by name
	at      map[netip.AddrPort]*string // names of wanted servers by address, for slots
}

// aimOf finds the servers that an instance is, was or would be: its registration is known under the registered port and
// under that of backend_port_override.
func aimOf(v view, b wantedBackend, instance discovery.Endpoint) aim {
	m := aim{backend: b, one: instance != discovery.Endpoint{}, known: b.known, names: map[string]bool{}, addrs: map[netip.AddrPort]bool{},
		wanted: map[string]haproxy.Server{}, at: map[netip.AddrPort]*string{}}
	if m.one {
		for _, in := range slices.Concat(v.active, v.snapshot.Instances, v.guard.held(), defaultInstances(v.service)) {
			served := override([]discovery.Instance{in}, v.service.BackendPortOverride)[0].Endpoint
			if in.Endpoint == instance || served == instance {
				m.names[haproxy.ServerName(in.Name, served.Host(), served.Port())] = true
				m.addr(served)
			}
		}
		if len(m.names) == 0 {
			m.names[haproxy.ServerName("", instance.Host(), instance.Port())] = true
			m.addr(instance)
		}
	}
	for _, s := range b.servers {
		if m.one && !m.names[s.Name] && !m.addrs[s.Addr] {
			continue
		}
		m.wanted[s.Name] = s
		m.names[s.Name], m.addrs[s.Addr] = true, true
		m.at[s.Addr] = &s.Name
	}
	return m
}

func (m aim) addr(e discovery.Endpoint) {
	if ip, ok := e.IP(); ok {
		m.addrs[netip.AddrPortFrom(ip, e.Port())] = true
	}
}

// meant tells whether somebody wants to know of a server that was found.
func (m aim) meant(s haproxy.Server) bool {
	if haproxy.EmptySlot(s) {
		return false
	}
	base, _ := haproxy.Generation(s.Name)
	return !m.one || m.names[base] || m.addrs[s.Addr]
}

// nameOf is the name of the wanted server that a found one is; a slot, and what others have made, goes by its address.
func (m aim) nameOf(s haproxy.Server) string {
	base, _ := haproxy.Generation(s.Name)
	if _, wanted := m.wanted[base]; haproxy.IsSlot(s) || m.shadow && !wanted {
		if name, ok := m.at[s.Addr]; ok {
			return *name
		}
	}
	return base
}

// tell puts what is wanted and what one HAProxy told side by side. Of several objects for one wanted server the one
// that serves stands for it, the youngest first; what is left of the others is told of on its own, but for one instance.
func (m aim) tell(socket string, found sighting, now time.Time) []ServerStatus {
	var out []ServerStatus
	live := slices.Clone(found.live)
	slices.SortStableFunc(live, func(a, b haproxy.Live) int {
		_, i := haproxy.Generation(a.Name)
		_, j := haproxy.Generation(b.Name)
		return cmp.Or(cmp.Compare(a.Admin, b.Admin), cmp.Compare(j, i)) // ready, drain, maint
	})
	told := map[string]bool{}
	for _, l := range live {
		name := m.nameOf(l.Server)
		if w, wanted := m.wanted[name]; wanted && !told[name] {
			told[name] = true
			out = append(out, m.status(socket, &w, &l, now))
		} else if !m.one {
			out = append(out, m.status(socket, nil, &l, now))
		}
	}
	for _, name := range slices.Sorted(maps.Keys(m.wanted)) {
		if w := m.wanted[name]; !told[name] {
			out = append(out, m.status(socket, &w, nil, now))
		}
	}
	if m.one && len(out) == 0 {
		var was *haproxy.Live
		if len(live) > 0 {
			was = &live[0]
		}
		out = append(out, m.status(socket, nil, was, now))
	}
	if m.one {
		out = out[:1]
	}
	if found.err != nil && !errors.Is(found.err, haproxy.ErrNoBackend) {
		for i := range out {
			out[i].Admin, out[i].Error = serverUnknown, found.err.Error()
		}
		if len(out) == 0 { // that it could not be asked is an answer too
			out = append(out, ServerStatus{Socket: socket, Wanted: serverUnknown, WeightWanted: -1, Admin: serverUnknown,
				Weight: -1, Sessions: -1, Queue: -1, Error: found.err.Error()})
		}
	}
	slices.SortStableFunc(out, func(a, b ServerStatus) int { return cmp.Compare(a.Server, b.Server) })
	return out
}

// status is a wanted server, a found one, or both.
func (m aim) status(socket string, w *haproxy.Server, l *haproxy.Live, now time.Time) ServerStatus {
	s := ServerStatus{Socket: socket, Wanted: serverAbsent, WeightWanted: -1, Admin: serverAbsent, Weight: -1, Sessions: -1, Queue: -1}
	if !m.known {
		s.Wanted = serverUnknown
	}
	if w != nil {
		s.Server, s.Name, s.Address = w.Name, w.Name, w.Addr.String()
		if m.known {
			s.Wanted, s.WeightWanted = w.Admin.String(), w.Weight
		}
		if o := m.backend.overrides[w.Name]; o != nil {
			s.Override, s.OverrideRevision, s.OverrideCreated = o.Node, o.Revision, &o.Created
		}
	}
	if l != nil {
		s.Server, s.Address = l.Name, l.Addr.String()
		s.Admin, s.Operational, s.Weight = l.Admin.String(), l.Op.String(), l.Weight
		s.Sessions, s.Queue, s.Check, s.Checked = l.Sessions, l.Queue, l.Check, l.Server.Check.Running()
		if l.Changed >= 0 {
			at := now.Add(-l.Changed).Truncate(time.Second)
			s.Changed = &at
		}
		if slices.Contains(m.backend.foreign, l.Name) {
			s.Wanted, s.Foreign = serverUnknown, "written by hand into the backend"
		}
	}
	return s
}
