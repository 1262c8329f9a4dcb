package main_test

import (
	"fmt"
	"io"
	"net/http"
	"net/netip"
	"slices"
	"strings"
	"syscall"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/myelin-sd/myelin/discovery"
	"github.com/myelin-sd/myelin/haproxy"
)

const (
	hashKeys    = 400
	hashServers = 20
)

// TestConsistentHash: with consistent hashing a key keeps its server, whatever is restarted, in whatever order the
// instances came, and on every host.
func TestConsistentHash(t *testing.T) {
	members := hashMembers(t)
	h := newHashed(t)
	h.startAgent()
	h.arrive(members)
	want := h.owners()
	spread := map[string]int{}
	for _, server := range want {
		spread[server]++
	}
	require.Greater(t, len(spread), hashServers/2, "the keys are spread: %v", spread)

	t.Log("the agent is restarted")
	require.NoError(t, h.agent.Stop())
	h.startAgent()
	h.agentIsReady()
	h.requireOwners(want)

	t.Log("HAProxy is killed")
	h.fileHoldsCount(hashServers)
	before, err := h.pid()
	require.NoError(t, err)
	require.NoError(t, syscall.Kill(h.master(), syscall.SIGKILL))
	h.otherWorker(before)
	h.has(hashServers)
	h.requireOwners(want)

	t.Log("some leave, and return in another order")
	for _, m := range members[:hashServers/2] {
		h.withdraw(m)
	}
	h.has(hashServers / 2)
	back := slices.Clone(members[:hashServers/2])
	slices.Reverse(back)
	h.arrive(back)
	h.has(hashServers)
	h.requireOwners(want)

	t.Log("another host, where they arrived one by one, the last first")
	slices.Reverse(members)
	other := newHashed(t)
	other.startAgent()
	for i := range members {
		other.arrive(members[i : i+1])
		other.has(i + 1)
	}
	other.requireOwners(want)

	t.Log("a third host, which starts when all are there")
	third := newHashed(t)
	third.arrive(members)
	third.startAgent()
	third.has(hashServers)
	third.requireOwners(want)
}

// hashed is a host with two services of the same instances, one hashed by a header and one by the URI.
type hashed struct {
	*world
	uriPort int
}

func newHashed(t *testing.T) *hashed {
	h := &hashed{uriPort: freePort(t)}
	h.world = newWorld(t, noChecks, func(text string) string {
		text = strings.Replace(text, `"mode http", "option httpchk GET /health"`, `"mode http", "balance hdr(x-key)", "hash-type consistent"`, 1)
		return text + fmt.Sprintf(`
[services.by-uri]
discovery = { method = "zookeeper", path = %q }
haproxy = { port = %d, listen = ["mode http", "balance uri", "hash-type consistent"] }
`, servicePath, h.uriPort)
	})
	return h
}

// hashMember is an instance: a server that answers with its name, at an address of its own.
type hashMember struct {
	name string
	addr netip.AddrPort
}

// hashMembers are instances whose addresses have different ids: which of two with the same first choice gets it depends
// on who came first.
func hashMembers(t *testing.T) []hashMember {
	ids := map[int]bool{}
	var members []hashMember
	for i := 0; len(members) < hashServers; i++ {
		name := fmt.Sprintf("h%02d", i)
		addr := netip.AddrPortFrom(netip.AddrFrom4([4]byte{127, 1, 0, byte(1 + i)}), uint16(backendServer(t, name)))
		one := []haproxy.Server{{Addr: addr}}
		haproxy.AssignIDs(one)
		if !ids[one[0].ID] {
			ids[one[0].ID] = true
			members = append(members, hashMember{name, addr})
		}
	}
	return members
}

func (m hashMember) registration(t *testing.T) discovery.Registration {
	t.Helper()
	data, err := discovery.EncodeNerve(discovery.Payload{Host: m.addr.Addr().String(), Port: m.addr.Port(), Name: m.name})
	require.NoError(t, err)
	return discovery.Registration{Path: servicePath, Prefix: m.name + "_", Data: data, Sequential: true, Ephemeral: true}
}

// arrive registers the instances in order; HAProxy has each before the next one comes, where there is an agent.
func (h *hashed) arrive(members []hashMember) {
	h.t.Helper()
	for _, m := range members {
		_, err := h.session.Publish(h.t.Context(), m.registration(h.t), "")
		require.NoError(h.t, err)
	}
}

func (h *hashed) withdraw(m hashMember) {
	h.t.Helper()
	require.NoError(h.t, h.session.Withdraw(h.t.Context(), m.registration(h.t), ""))
}

// has waits until both services have n servers in rotation.
func (h *hashed) has(n int) {
	h.t.Helper()
	h.eventually(fmt.Sprintf("%d servers in both backends", n), func() error {
		c, err := h.dial()
		if err != nil {
			return err
		}
		defer c.Close()
		state, err := c.State(h.t.Context())
		if err != nil {
			return err
		}
		for _, backend := range []string{service, "by-uri"} {
			ready := 0
			for _, s := range state[backend] {
				if s.Admin == haproxy.Ready {
					ready++
				}
			}
			if ready != n {
				return fmt.Errorf("%s has %d", backend, ready)
			}
		}
		return nil
	})
}

// owners asks for every key of both services who answers.
func (h *hashed) owners() map[string]string {
	h.t.Helper()
	h.has(hashServers)
	out := map[string]string{}
	for i := range hashKeys {
		key := fmt.Sprintf("key-%d", i)
		out["header "+key] = h.ask(h.port, "/", key)
		out["uri "+key] = h.ask(h.uriPort, "/"+key, "")
	}
	return out
}

func (h *hashed) ask(port int, path, key string) string {
	h.t.Helper()
	r, err := http.NewRequestWithContext(h.t.Context(), http.MethodGet, fmt.Sprintf("http://127.0.0.1:%d%s", port, path), nil)
	require.NoError(h.t, err)
	r.Header.Set("X-Key", key)
	resp, err := http.DefaultClient.Do(r)
	require.NoError(h.t, err)
	defer resp.Body.Close()
	body, err := io.ReadAll(resp.Body)
	require.NoError(h.t, err)
	require.Equal(h.t, http.StatusOK, resp.StatusCode)
	return strings.TrimSpace(string(body))
}

func (h *hashed) requireOwners(want map[string]string) {
	h.t.Helper()
	moved := 0
	got := h.owners()
	for key, server := range want {
		if got[key] != server {
			moved++
		}
	}
	require.Zero(h.t, moved, "of %d keys in two services have another server", hashKeys)
}
