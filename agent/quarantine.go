package agent

import (
	"slices"
	"sync"

	"github.com/myelin-sd/myelin/haproxy"
)

// quarantine keeps the servers that HAProxy refused because of what their own registration asks for. Left among the
// wanted ones, a single such registration would hold back every departure of its backend (removals wait until the
// adds worked), and in haproxy.cfg it would stop the next start. They are tried again when they change, and when
// HAProxy is another process.
type quarantine struct {
	mu   sync.Mutex
	held map[haproxy.Key]detained
}

type detained struct {
	server haproxy.Server
	why    string
}

func newQuarantine() *quarantine { return &quarantine{held: map[haproxy.Key]detained{}} }

func (q *quarantine) add(backend string, s haproxy.Server, why string) {
	q.mu.Lock()
	defer q.mu.Unlock()
	base, _ := haproxy.Generation(s.Name)
	s.Name = base
	q.held[haproxy.Key{Backend: backend, Server: base}] = detained{s, why}
}

// clear frees all, and returns whether there were any.
func (q *quarantine) clear() bool {
	q.mu.Lock()
	defer q.mu.Unlock()
	any := len(q.held) > 0
	clear(q.held)
	return any
}

// without is servers less the detained ones. A server that asks for something else now is free.
func (q *quarantine) without(backend string, servers []haproxy.Server) []haproxy.Server {
	q.mu.Lock()
	defer q.mu.Unlock()
	if len(q.held) == 0 {
		return servers
	}
	return slices.DeleteFunc(slices.Clone(servers), func(s haproxy.Server) bool {
		d, ok := q.held[haproxy.Key{Backend: backend, Server: s.Name}]
		return ok && d.server.Addr == s.Addr && slices.Equal(d.server.Options, s.Options)
	})
}

// reasons are the detained servers of a backend with HAProxy's words.
func (q *quarantine) reasons(backend string) map[string]string {
	q.mu.Lock()
	defer q.mu.Unlock()
	out := map[string]string{}
	for k, d := range q.held {
		if k.Backend == backend {
			out[k.Server] = d.why
		}
	}
	return out
}
