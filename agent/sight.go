package agent

import (
	"maps"
	"net/netip"
	"time"

	"github.com/myelin-sd/myelin/discovery"
	"github.com/myelin-sd/myelin/haproxy"
)

// watchEvery is how often HAProxy is asked about the servers of a backend of which some are held.
const watchEvery = 2 * time.Second

// sight is what HAProxy's own checks say of a backend's servers that are in rotation.
type sight struct {
	down map[netip.AddrPort]bool
	up   int
}

// sightOf looks at servers as they were read. A server without checks is up for ever.
func sightOf(servers []haproxy.Server) sight {
	s := sight{down: map[netip.AddrPort]bool{}}
	for _, server := range servers {
		switch {
		case server.Admin != haproxy.Ready || haproxy.EmptySlot(server):
		case server.Op == haproxy.OpStopped:
			s.down[server.Addr] = true
		default:
			s.up++
		}
	}
	return s
}

// unwatched tells whether the checks of a backend's servers are to be looked at.
func (r *reconciler) unwatched(b wantedBackend, now time.Time) bool {
	return b.holds && now.Sub(r.looked[b.name]) >= watchEvery
}

// sight tells of the backends with held servers that were read in this round.
func (r *reconciler) sight(w *wanted, due []string) {
	told := map[string]sight{}
	for _, name := range due {
		servers, there := r.actual[name]
		if !w.backends[name].holds || !r.fresh[name] {
			continue
		}
		r.looked[name] = time.Now()
		if there {
			told[name] = sightOf(servers)
		}
	}
	maps.DeleteFunc(r.looked, func(name string, _ time.Time) bool { return !w.backends[name].holds })
	before := r.status.Load()
	if len(told) == 0 && (before == nil || len(before.sights) == 0) {
		return
	}
	r.setStatus(func(s *haproxyStatus) {
		for name, old := range s.sights {
			if _, again := told[name]; !again && w.backends[name].holds {
				told[name] = old
			}
		}
		s.sights = told
	})
	if r.sighted != nil {
		r.sighted()
	}
}

// evidence is what all HAProxys together say of a service: an endpoint is down where each of them says so, and as many
// servers are up as in the one that has the fewest. One that does not answer, or was not looked at yet, says nothing,
// and then nobody does.
func evidence(v view, b wantedBackend, all []*haproxyStatus) (down map[discovery.Endpoint]bool, up int) {
	if len(all) == 0 {
		return nil, 0
	}
	addrs := make(map[string]netip.AddrPort, len(b.servers))
	for _, s := range b.servers {
		addrs[s.Name] = s.Addr
	}
	down = map[discovery.Endpoint]bool{}
	for _, in := range v.guard.held() {
		if addr, ok := addrs[haproxy.ServerName(in.Name, in.Endpoint.Host(), in.Endpoint.Port())]; ok {
			down[in.Endpoint] = everywhere(all, func(s sight) bool { return s.down[addr] }, b.name)
		}
	}
	for i, h := range all {
		s, told := h.sights[b.name]
		if !told || !h.Connected {
			return nil, 0
		}
		if i == 0 || s.up < up {
			up = s.up
		}
	}
	return down, up
}

func everywhere(all []*haproxyStatus, is func(sight) bool, backend string) bool {
	for _, h := range all {
		if !is(h.sights[backend]) {
			return false
		}
	}
	return true
}
