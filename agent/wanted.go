package agent

import (
	"maps"
	"slices"
	"time"

	"github.com/myelin-sd/myelin/config"
	"github.com/myelin-sd/myelin/discovery"
	"github.com/myelin-sd/myelin/haproxy"
)

// wanted is the whole of what HAProxy is to have at one moment. It is never changed after it was published.
type wanted struct {
	file   haproxy.File
	static string // digest of the file without its servers

	backends map[string]wantedBackend // by HAProxy's section name

	overrides inForce // what of the overrides it was made with
}

// wantedBackend is one service's part of it.
type wantedBackend struct {
	backend
	service string
	known   bool             // servers hold; until then HAProxy's own are left alone
	stale   bool             // servers are of a set from disk: what HAProxy lacks of them is added, and nothing else changed
	servers []haproxy.Server // shared, never changed
	refused []refused
	holds   bool            // some of the servers are held against the registry: HAProxy's checks are watched
	surplus int             // instances beyond haproxy.max_servers, left out
	own     map[string]bool // servers with options of their own registration
	at      time.Time       // when the snapshot behind servers was read; zero: not from a snapshot
	rev     uint64          // grows with each change of this backend

	overrides map[string]*discovery.Override // which counts for which server, by name; never changed
}

// state is what Diff is to reach, for the named backends whose servers are known.
func (w *wanted) state(names []string, q *quarantine) haproxy.State {
	s := make(haproxy.State, len(names))
	for _, n := range names {
		if b, ok := w.backends[n]; ok && b.known {
			s[n] = q.without(n, b.servers)
		}
	}
	return s
}

// forFile is what the rendered file is to hold: the known sets, in slots where the ladder says so, and for the others
// what the file held before.
func (w *wanted) forFile(q *quarantine, l *ladder) haproxy.State {
	s := make(haproxy.State, len(w.backends))
	for n, b := range w.backends {
		s[n] = l.forFile(b, q.without(n, b.servers))
	}
	return s
}

// composer turns what is believed of the services into what HAProxy is to have. It holds what only the
// configuration decides, and a memo of what the last call found out; it is for one goroutine.
type composer struct {
	file     haproxy.File
	static   string
	backends []backend // by index of the configuration's services
	memos    []*memo   // of the backends
	lookup   resolve
	noted    stateEntries  // of the state file, as it was found at the start
	gone     []string      // backends that were ours and are to be taken away
	onDisk   haproxy.State // servers of the file as it was found at the start: what an unknown service had, it keeps

	overrides inForce
}

func newComposer(c *config.Agent, lookup resolve, onDisk haproxy.State) *composer {
	f := fileOf(c)
	k := &composer{file: f, static: f.Static(), lookup: lookup, onDisk: onDisk}
	for i, s := range c.Services {
		k.backends = append(k.backends, newBackend(c, f, f.Services[i], s))
		k.memos = append(k.memos, &memo{})
	}
	return k
}

// inherit has servers keep the ids that they have in a HAProxy which another program filled: see inheritedIDs.
func (k *composer) inherit(c *config.Agent, state stateEntries) {
	names := make(map[string]string, len(c.Services))
	for i, s := range c.Services {
		names[s.Name] = k.backends[i].name
	}
	k.noted = state
	ids := inheritedIDs(k.onDisk, state, names)
	for i := range k.backends {
		k.backends[i].ids = ids
	}
}

// all composes every service. A backend that is as it was in earlier keeps its revision, so that it costs nothing
// further on.
func (k *composer) all(views []view, earlier *wanted) *wanted {
	w := &wanted{file: k.file, static: k.static, backends: make(map[string]wantedBackend, len(views)), overrides: k.overrides}
	for i, v := range views {
		if !v.service.HAProxy.Disabled {
			w.backends[k.backends[i].name] = k.one(i, v, earlier)
		}
	}
	for _, name := range k.gone {
		if _, there := w.backends[name]; !there {
			b := wantedBackend{backend: backend{name: name, gone: true}, known: true, rev: 1}
			if earlier != nil && earlier.backends[name].rev > 0 {
				if b.rev = earlier.backends[name].rev; !earlier.backends[name].gone {
					b.rev++
				}
			}
			w.backends[name] = b
		}
	}
	return w
}

// replace is earlier with one service composed anew.
func (k *composer) replace(i int, v view, earlier *wanted) *wanted {
	if v.service.HAProxy.Disabled {
		return earlier
	}
	w := &wanted{file: k.file, static: k.static, backends: maps.Clone(earlier.backends), overrides: earlier.overrides}
	w.backends[k.backends[i].name] = k.one(i, v, earlier)
	return w
}

func (k *composer) one(i int, v view, earlier *wanted) wantedBackend {
	b := wantedBackend{backend: k.backends[i], service: v.service.Name, known: v.known, holds: len(v.guard.holds) > 0}
	switch {
	case v.known:
		var active []discovery.Instance
		active, b.surplus = b.within(v.active)
		b.servers, b.refused = b.backend.servers(active, k.lookup, k.memos[i])
		b.servers, b.overrides = overridden(b.servers, v, active, k.overrides.of(b.service))
		b.own = ownOptions(active)
		if b.stale = v.fromDisk(); !b.stale {
			b.at = v.at
		}
	case len(k.onDisk[b.name]) > 0:
		b.servers = k.onDisk[b.name]
	default:
		defaults := discovery.Dedup(override(defaultInstances(v.service), v.service.BackendPortOverride))
		b.servers, b.refused = b.backend.servers(defaults, k.lookup, nil)
	}
	b.rev = 1
	if earlier != nil {
		if old, ok := earlier.backends[b.name]; ok {
			b.rev = old.rev
			if !b.same(old) {
				b.rev++
			}
		}
	}
	return b
}

// wants tells whether a server of that name is wanted.
func (b wantedBackend) wants(name string) bool {
	return slices.ContainsFunc(b.servers, func(s haproxy.Server) bool { return s.Name == name })
}

// unresolved names the servers whose host names are not known. They are not gone: what HAProxy has of them stays.
func (b wantedBackend) unresolved() []string {
	var names []string
	for _, r := range b.refused {
		if r.Unknown {
			e := r.Instance.Endpoint
			names = append(names, haproxy.ServerName(r.Instance.Name, e.Host(), e.Port()))
		}
	}
	return names
}

// ownOptions names the servers whose registration asks for options.
func ownOptions(active []discovery.Instance) map[string]bool {
	var own map[string]bool
	for i := range active {
		if in := &active[i]; len(in.ServerOptions) > 0 {
			if own == nil {
				own = map[string]bool{}
			}
			own[haproxy.ServerName(in.Name, in.Endpoint.Host(), in.Endpoint.Port())] = true
		}
	}
	return own
}

// same tells whether nothing changed that HAProxy would notice.
func (b wantedBackend) same(old wantedBackend) bool {
	return b.known == old.known && b.stale == old.stale && sameOverrides(b.overrides, old.overrides) && slices.Equal(b.lines, old.lines) &&
		sameServers(b.servers, old.servers)
}

// sameServers does not look into a list that both have.
func sameServers(a, b []haproxy.Server) bool {
	if len(a) != len(b) || len(a) > 0 && &a[0] == &b[0] {
		return len(a) == len(b)
	}
	for i := range a {
		if !sameServer(&a[i], &b[i]) {
			return false
		}
	}
	return true
}

func sameServer(a, b *haproxy.Server) bool {
	return a.Name == b.Name && a.Addr == b.Addr && a.ID == b.ID && a.Weight == b.Weight && a.Admin == b.Admin &&
		a.Cookie == b.Cookie && sameWords(a.Options, b.Options)
}

// sameWords does not look into a list that both have: unchanged servers share theirs.
func sameWords(a, b []string) bool {
	return len(a) == len(b) && (len(a) == 0 || &a[0] == &b[0] || slices.Equal(a, b))
}

func (w *wanted) names() []string { return slices.Sorted(maps.Keys(w.backends)) }
