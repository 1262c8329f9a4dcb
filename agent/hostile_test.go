package agent

import (
	"fmt"
	"net/http"
	"net/http/httptest"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/stretchr/testify/require"

	"github.com/myelin-sd/myelin/config"
	"github.com/myelin-sd/myelin/discovery"
	"github.com/myelin-sd/myelin/haproxy"
)

// TestRegistryWords: what the file can allow is what HAProxy's side has rules for.
func TestRegistryWords(t *testing.T) {
	for _, w := range config.RegistryWords() {
		require.True(t, haproxy.RegistryWord(w), w)
	}
	require.Subset(t, config.RegistryWords(), config.DefaultRegistryOptions())
}

// TestWithin: of too many instances the youngest are left out, whatever the order and however they are named.
func TestWithin(t *testing.T) {
	began := time.Date(2026, 1, 2, 3, 4, 5, 0, time.UTC)
	var all []discovery.Instance
	for i := range 10 {
		in := instances(t, fmt.Sprintf("n%d@10.0.0.%d:80", i, 20-i))[0]
		in.Created = began.Add(time.Duration(i/2) * time.Second) // in pairs at one time
		all = append(all, in)
	}
	own := instances(t, "own@10.0.9.9:80")[0]
	own.Node = ""
	all = append(all, own)

	names := func(list []discovery.Instance) string {
		var out []string
		for _, in := range list {
			out = append(out, in.Name)
		}
		return strings.Join(out, " ")
	}
	b := backend{most: 4}
	kept, surplus := b.within(all)
	require.Equal(t, "n0 n1 n3 own", names(kept), "the configuration's own, then the oldest; of one time the lower address")
	require.Equal(t, 7, surplus)

	other := slices.Clone(all)
	slices.Reverse(other)
	kept, _ = b.within(other)
	require.Equal(t, "own n3 n1 n0", names(kept), "the same ones on every host, in the order given")

	kept, surplus = backend{most: 11}.within(all)
	require.Equal(t, names(all), names(kept))
	require.Zero(t, surplus)
}

// TestSurplus: it is left out of HAProxy and of the file, said once, shown and counted; the others are served, and
// those left out come in when there is room.
func TestSurplus(t *testing.T) {
	n := newNode(t, func(c *config.Agent) { c.HAProxy.MaxServers = 2 })
	n.start(0)
	began := time.Now()
	list := instances(t, "a@127.0.0.1:83", "b@127.0.0.1:82", "c@127.0.0.1:81")
	for i := range list {
		list[i].Created = began.Add(time.Duration(i) * time.Second)
	}
	n.hearOf("svc", list...)
	n.has("svc", "a b")
	n.fileHas("svc", "a b")
	n.ready()
	s := n.agent.Status().Services[0]
	require.Equal(t, 1, s.Surplus)
	require.Equal(t, 3, s.Active)
	require.Equal(t, 2, s.Servers)
	require.Equal(t, 1, n.said("more instances than haproxy.max_servers"))
	require.Contains(t, n.metrics(), `myelin_discovery_rejected{reason="surplus",service="svc"} 1`)

	n.hearOf("svc", list[:2]...) // in order of address: without a
	n.has("svc", "a:maint b c")
	n.ready()
	require.Zero(t, n.agent.Status().Services[0].Surplus)
	require.Equal(t, 1, n.said("no more instances than haproxy.max_servers"))
}

// TestCurtailed: an option that is not allowed costs neither the server nor silence.
func TestCurtailed(t *testing.T) {
	n := newNode(t, func(c *config.Agent) { c.HAProxy.RegistryOptions = config.DefaultRegistryOptions() })
	n.start(0)
	n.hearOf("svc", asking(t, "a@127.0.0.1:81", "maxconn 7 check inter 1s"), asking(t, "b@127.0.0.1:82", "send-proxy"))
	n.has("svc", "a")
	n.ready()
	s := n.agent.Status().Services[0]
	require.Len(t, s.Curtailed, 1)
	require.Contains(t, s.Curtailed[0].Detail, "check, inter 1s")
	require.Len(t, s.Rejected, 1)
	require.Contains(t, s.Rejected[0].Detail, "send-proxy")
	require.Equal(t, 1, n.said("options of a registration left out; its server is used"))
	require.Contains(t, n.metrics(), `myelin_discovery_curtailed{service="svc"} 1`)
	require.Regexp(t, `(?m) maxconn 7( |$)`, strings.Join(n.tap.seen(), "\n"))

	n.hearOf("svc", asking(t, "a@127.0.0.1:81", "maxconn 7 check inter 1s"), asking(t, "c@127.0.0.1:83", "backup"))
	n.has("svc", "a c")
	n.ready()
	require.Len(t, n.agent.Status().Services[0].Curtailed, 1, "remembered of those that did not change")
	require.Equal(t, 1, n.said("options of a registration left out; its server is used"), "said once")
}

// metrics are those that describe the present, as they are scraped.
func (n *node) metrics() string {
	reg := prometheus.NewRegistry()
	reg.MustRegister(n.agent.Collector())
	rec := httptest.NewRecorder()
	n.agent.Handler(reg).ServeHTTP(rec, httptest.NewRequest(http.MethodGet, "/metrics", nil))
	return rec.Body.String()
}
