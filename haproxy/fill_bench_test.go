package haproxy

import (
	"context"
	"fmt"
	"net/netip"
	"slices"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/myelin-sd/myelin/haproxy/haproxytest"
)

// fillServers are n servers at addresses of their own, all of which are the process that listens on port.
func fillServers(n int, port uint16) []Server {
	servers := make([]Server, n)
	for i := range servers {
		addr := netip.AddrPortFrom(netip.AddrFrom4([4]byte{127, 1, byte(i / 250), byte(1 + i%250)}), port)
		servers[i] = Server{Name: fmt.Sprintf("web%05d_%s", i, addr), Addr: addr, Weight: 1}
	}
	AssignIDs(servers)
	return servers
}

// floorCommands are the least that fills a backend with servers that take traffic.
func floorCommands(backend string, servers []Server) []string {
	var out []string
	for _, s := range servers {
		out = append(out,
			fmt.Sprintf("add server %s/%s %s id %d", backend, s.Name, s.Addr, s.ID),
			fmt.Sprintf("set server %s/%s state ready", backend, s.Name))
	}
	return out
}

// BenchmarkFill fills a backend by a plan, and beside it another HAProxy by the least commands that do the same: only
// the ratio means something. Each begins with a fresh HAProxy.
func BenchmarkFill(b *testing.B) {
	for _, n := range []int{100, 1000, 10_000} {
		b.Run(fmt.Sprint(n), func(b *testing.B) {
			rounds := max(3, min(9, 10_000/n))
			for b.Loop() {
				var ours, floor []float64
				for range rounds {
					floor = append(floor, fillByHand(b, n))
					ours = append(ours, fillByPlan(b, n))
				}
				b.ReportMetric(middle(ours)/middle(floor), "ratio-to-floor")
				b.ReportMetric(middle(ours)*1000, "ms")
			}
		})
	}
}

func middle(v []float64) float64 { return slices.Sorted(slices.Values(v))[len(v)/2] }

func startFor(b *testing.B) *haproxytest.HAProxy {
	b.Helper()
	haproxytest.Require(b)
	h, err := haproxytest.Start(haproxytest.TempDir(b), realDefaults+"backend b\n", haproxytest.Options{})
	require.NoError(b, err)
	return h
}

func fillByHand(b *testing.B, n int) (seconds float64) {
	b.Helper()
	h := startFor(b)
	defer h.Stop()
	commands := floorCommands("b", fillServers(n, 80))
	began := time.Now()
	require.NoError(b, haproxytest.Pipeline(h.Socket, 16, commands))
	took := time.Since(began).Seconds()
	requireReady(b, h, n)
	return took
}

func fillByPlan(b *testing.B, n int) (seconds float64) {
	b.Helper()
	h := startFor(b)
	defer h.Stop()
	desired := State{"b": fillServers(n, 80)}
	began := time.Now()
	c, err := Dial(context.Background(), h.Socket, ClientOptions{})
	require.NoError(b, err)
	defer c.Close()
	actual, err := c.State(context.Background())
	require.NoError(b, err)
	plan := Diff(actual, desired, View{Caps: CapabilitiesOf(c.Identity().Version)})
	for _, r := range c.Apply(context.Background(), plan) {
		require.NoError(b, r.Err)
	}
	took := time.Since(began).Seconds()
	requireReady(b, h, n)
	return took
}

func requireReady(b *testing.B, h *haproxytest.HAProxy, n int) {
	b.Helper()
	c, err := Dial(context.Background(), h.Socket, ClientOptions{})
	require.NoError(b, err)
	defer c.Close()
	state, err := c.State(context.Background())
	require.NoError(b, err)
	ready := 0
	for _, s := range state["b"] {
		if s.Admin == Ready {
			ready++
		}
	}
	require.Equal(b, n, ready)
}
