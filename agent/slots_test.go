package agent

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/myelin-sd/myelin/config"
	"github.com/myelin-sd/myelin/haproxy"
	"github.com/myelin-sd/myelin/haproxy/haproxytest"
)

// takers writes the servers that take traffic as "port*weight", those of one backend, sorted.
func takers(servers []haproxy.Server) string {
	var out []string
	for _, s := range servers {
		if s.Admin != haproxy.Maint {
			word := fmt.Sprint(s.Addr.Port())
			if s.Weight != 1 {
				word += fmt.Sprintf("*%d", s.Weight)
			}
			out = append(out, word)
		}
	}
	slices.Sort(out)
	return strings.Join(out, " ")
}

// answers waits until the servers of svc that take traffic are as written, in HAProxy and in the file, and everything
// is applied.
func (n *node) answers(want string) {
	n.t.Helper()
	eventually(n.t, "svc is served as wanted", func() error {
		state, err := n.state()
		if err != nil {
			return err
		}
		if got := takers(state["svc"]); got != want {
			return fmt.Errorf("HAProxy has %q, not %q", got, want)
		}
		text, err := os.ReadFile(n.config.HAProxy.ConfigFilePath)
		if err != nil {
			return err
		}
		if got := takers(haproxy.ServersOfText(text)["svc"]); got != want {
			return fmt.Errorf("the file has %q, not %q", got, want)
		}
		return nil
	})
	n.ready()
}

// slots are svc's slots in HAProxy: the address of each.
func (n *node) slots() map[string]string {
	n.t.Helper()
	state, err := n.state()
	require.NoError(n.t, err)
	out := map[string]string{}
	for _, s := range state["svc"] {
		if haproxy.IsSlot(s) {
			out[s.Name] = s.Addr.String()
		}
	}
	return out
}

// fileSlots are the same of the file, without the empty ones.
func (n *node) fileSlots() map[string]string {
	n.t.Helper()
	text, err := os.ReadFile(n.config.HAProxy.ConfigFilePath)
	require.NoError(n.t, err)
	out := map[string]string{}
	for _, s := range haproxy.ServersOfText(text)["svc"] {
		if s.Admin != haproxy.Maint {
			out[s.Name] = s.Addr.String()
		}
	}
	return out
}

func (n *node) rung() ServiceStatus { return n.agent.Status().Services[0] }

// capabilities are those of the HAProxy that runs.
func (n *node) capabilities() haproxy.Capabilities {
	n.t.Helper()
	info, err := n.haproxy.Command("show info")
	require.NoError(n.t, err)
	_, version, _ := strings.Cut(info, "\nVersion: ")
	version, _, _ = strings.Cut(version, "\n")
	return haproxy.CapabilitiesOf(version)
}

// needsAddServer skips a test that is about a HAProxy that takes servers at run time.
func (n *node) needsAddServer() {
	n.t.Helper()
	if c := n.capabilities(); !c.DynamicServers {
		n.t.Skip("this HAProxy cannot add servers at run time: " + c.Version)
	}
}

// TestSlots: a backend that takes no servers at run time has slots; joins, departures, returns and other processes need
// no reload but the first, which brings the slots.
func TestSlots(t *testing.T) {
	for _, tc := range []struct {
		name    string
		service config.ServiceHAProxy
		reason  string
	}{
		{"map-based hashing", config.ServiceHAProxy{Backend: []string{"balance source"}}, `"balance source" takes servers at run time only with`},
		{"static-rr", config.ServiceHAProxy{Backend: []string{"balance static-rr"}}, `"balance static-rr" does not take servers at run time`},
		{"a word for the file only", config.ServiceHAProxy{ServerOptions: "check inter 1h non-stick"},
			`option "non-stick" is not accepted for servers added at run time`},
		{"a version without add server", config.ServiceHAProxy{}, ""},
	} {
		t.Run(tc.name, func(t *testing.T) {
			n := newNodeOfAnyVersion(t, func(c *config.Agent) { c.Services[0].HAProxy = tc.service })
			if tc.reason == "" && n.capabilities().DynamicServers {
				t.Skip("this HAProxy takes servers at run time")
			}
			n.start(0)
			n.hear("a@127.0.0.1:81")
			n.answers("81")
			require.Equal(t, 1, n.reloads(), "the slots were not there")
			require.Len(t, n.slots(), 8)
			rung := n.rung()
			require.Equal(t, "slots", rung.Rung)
			if !n.capabilities().DynamicServers {
				tc.reason = "cannot add servers at run time; 2.6 and later can"
			}
			require.Contains(t, rung.Reason, tc.reason)
			require.Empty(t, rung.NeedsReload)
			require.Empty(t, n.haproxyStatus().Unfit)

			n.hear("a@127.0.0.1:81", "b@127.0.0.1:82", "c@127.0.0.1:83")
			n.answers("81 82 83")
			n.hear("b@127.0.0.1:82", "c@127.0.0.1:83")
			n.answers("82 83")
			before := n.slots()
			from := n.tap.count()
			n.hear("a@127.0.0.1:81", "b@127.0.0.1:82", "c@127.0.0.1:83")
			n.answers("81 82 83")
			require.Len(t, n.tap.since(from), 1, "a return is one command")
			require.Equal(t, before, n.slots(), "and finds its slot")

			// A reload by hand, a crash, and another agent change nothing: the file has the same in the same slots.
			from = n.tap.count()
			require.NoError(t, n.haproxy.Reload())
			n.processes(2)
			require.NoError(t, n.haproxy.KillWorker())
			require.NoError(t, n.haproxy.Restart())
			n.notePid()
			n.processes(3)
			n.answers("81 82 83")
			n.stop()
			text, err := os.ReadFile(n.config.HAProxy.ConfigFilePath)
			require.NoError(t, err)
			n.start(0)
			n.connected()
			again, err := os.ReadFile(n.config.HAProxy.ConfigFilePath)
			require.NoError(t, err)
			require.Equal(t, string(text), string(again), "a service that was not heard of keeps the form that it has on disk")
			n.hear("a@127.0.0.1:81", "b@127.0.0.1:82", "c@127.0.0.1:83")
			n.answers("81 82 83")
			require.Empty(t, n.tap.since(from))
			n.hear("c@127.0.0.1:83", "d@127.0.0.1:84")
			n.answers("83 84")
			require.Equal(t, 1, n.reloads())
			require.Zero(t, n.said("HAProxy refused"))
		})
	}
}

// processes waits until the status tells of at least so many processes.
func (n *node) processes(count int) {
	n.t.Helper()
	eventually(n.t, "the new process is met", func() error {
		pid, err := n.haproxy.WorkerPid()
		if s := n.haproxyStatus(); err != nil || s.Pid != pid || s.Processes < count || !s.Connected || !s.Applied {
			return fmt.Errorf("status %+v, pid %d, %w", s, pid, err)
		}
		return nil
	})
}

// TestSlotsUsedUp: when no slot is free, one reload doubles them; nothing is taken away before it, and all that came and
// went has room then.
func TestSlotsUsedUp(t *testing.T) {
	n := newNodeOfAnyVersion(t, func(c *config.Agent) { c.Services[0].HAProxy.Backend = []string{"balance source"} })
	n.start(0) // nothing rests
	n.hear("a@127.0.0.1:81")
	n.answers("81")
	require.Equal(t, 1, n.reloads())
	for port := 82; port <= 88; port++ {
		n.hear(fmt.Sprintf("a@127.0.0.1:%d", port))
		n.answers(fmt.Sprint(port))
	}
	require.Equal(t, 1, n.reloads())
	require.Len(t, n.slots(), 8)
	n.hear("a@127.0.0.1:89")
	n.answers("89")
	require.Equal(t, 2, n.reloads())
	require.Contains(t, n.reloadReasons(), "backend svc: slots used up")
	require.Len(t, n.slots(), 16)
	n.hear("a@127.0.0.1:90")
	n.answers("90")
	require.Equal(t, 2, n.reloads())

	// Where nobody can reload, it says so, and what is there serves on.
	n.stop()
	n.config.HAProxy.ReloadCommand = ""
	n.start(0)
	var many []string
	for port := 100; port < 120; port++ {
		many = append(many, fmt.Sprintf("m@127.0.0.1:%d", port))
	}
	n.hear(many...)
	eventually(t, "the shortage shows", func() error {
		if s := n.rung(); s.NeedsReload != "slots used up" || n.gen.file.status().Pending == "" {
			return fmt.Errorf("%+v, %+v", s, n.gen.file.status())
		}
		if n.haproxyStatus().Unfit["svc"] == "" { // it is published when the round has ended
			return fmt.Errorf("the round goes on")
		}
		return nil
	})
	state, err := n.state()
	require.NoError(t, err)
	require.Contains(t, takers(state["svc"]), "90", "nothing is taken away")
	require.Greater(t, len(strings.Fields(takers(state["svc"]))), 8, "those that found a slot serve")
}

// TestSlotAddressIsConfirmed: a slot takes traffic when HAProxy shows its new address, whatever HAProxy said before.
func TestSlotAddressIsConfirmed(t *testing.T) {
	n := newNodeOfAnyVersion(t, func(c *config.Agent) { c.Services[0].HAProxy.Backend = []string{"balance source"} })
	n.start(0)
	n.hear("a@127.0.0.1:81")
	n.answers("81")
	from := n.tap.count()
	const done = "[4]: IP changed from '0.0.0.0' to '127.0.0.1', port changed from '1' to '82' by 'stats socket command'\n\n> "
	n.tap.once("set server svc/myelin-slot-", fault{reply: done})
	n.hear("b@127.0.0.1:82")
	n.answers("82")
	told := n.tap.since(from)
	require.Len(t, told, 4, "%q", told)
	require.Contains(t, told[0], " addr 127.0.0.1 port 82")
	require.Equal(t, told[0], told[1], "it is told again, since it does not show")
	require.Contains(t, told[2], " state ready")
	require.Contains(t, told[3], " state maint", "the other one leaves behind it")
	require.Equal(t, 1, n.reloads())
}

// TestSlotWeights: a static algorithm takes a slot's first weight and 0. Another one costs a reload, and the server
// answers with the first one until then.
func TestSlotWeights(t *testing.T) {
	n := newNodeOfAnyVersion(t, func(c *config.Agent) {
		c.Services[0].HAProxy.Backend = []string{"balance source"}
		c.HAProxy.ReloadCommand = fmt.Sprintf("test -e %s.go && { %s; }", c.HAProxy.ConfigFilePath, c.HAProxy.ReloadCommand)
	})
	go1 := n.config.HAProxy.ConfigFilePath + ".go"
	require.NoError(t, os.WriteFile(go1, nil, 0o600))
	n.start(0)
	n.hear("a@127.0.0.1:81,5", "b@127.0.0.1:82,5")
	n.answers("81*5 82*5")
	require.Equal(t, 1, n.reloads())

	n.hear("a@127.0.0.1:81,5", "b@127.0.0.1:82,0", "c@127.0.0.1:83,5")
	n.answers("81*5 82*0 83*5")
	n.hear("a@127.0.0.1:81,5", "b@127.0.0.1:82,5", "c@127.0.0.1:83,5")
	n.answers("81*5 82*5 83*5")
	require.Equal(t, 1, n.reloads(), "empty slots have the usual weight")

	require.NoError(t, os.Remove(go1))
	n.hear("a@127.0.0.1:81,5", "b@127.0.0.1:82,5", "c@127.0.0.1:83,5", "d@127.0.0.1:84,9")
	eventually(t, "d serves", func() error {
		state, err := n.state()
		if got := takers(state["svc"]); err != nil || got != "81*5 82*5 83*5 84*5" {
			return fmt.Errorf("%q, %w", got, err)
		}
		return nil
	})
	require.NotEmpty(t, n.gen.waiting())
	require.NoError(t, os.WriteFile(go1, nil, 0o600))
	n.answers("81*5 82*5 83*5 84*9")
	require.Equal(t, 2, n.reloads())
	require.Zero(t, n.said("HAProxy refused"), "HAProxy is not asked for what it cannot do")
}

// TestSlotsOfOtherServers: where a server asks for options of its own, or the backend sets cookies, each join costs a
// reload, with the reason; without them the slots are back.
func TestSlotsOfOtherServers(t *testing.T) {
	n := newNodeOfAnyVersion(t, func(c *config.Agent) { c.Services[0].HAProxy.Backend = []string{"balance source"} })
	n.start(0)
	plain := instances(t, "a@127.0.0.1:81", "b@127.0.0.1:82")
	n.hearOf("svc", plain...)
	n.answers("81 82")
	n.hearOf("svc", append(plain, asking(t, "c@127.0.0.1:83", "backup"))...)
	n.answers("81 82 83")
	rung := n.rung()
	require.Equal(t, "reload", rung.Rung)
	require.Contains(t, rung.Reason, "server c_127.0.0.1:83 has options of its own")
	require.Empty(t, n.slots())
	n.hearOf("svc", plain...)
	n.answers("81 82")
	require.Equal(t, 2, n.reloads())
	n.hearOf("svc", instances(t, "a@127.0.0.1:81", "b@127.0.0.1:82", "d@127.0.0.1:84")...)
	n.answers("81 82 84")
	require.Equal(t, "slots", n.rung().Rung)
	require.Equal(t, 3, n.reloads())
	require.Len(t, n.slots(), 8)
}

// TestSlotsByTrying: what HAProxy refuses to add goes into slots, without a list of what it refuses.
func TestSlotsByTrying(t *testing.T) {
	n := newNodeOfAnyVersion(t)
	n.needsAddServer()
	n.start(0)
	n.tap.once("add server", fault{reply: "[3]: Backend must use a dynamic load balancing to support dynamic servers.\n\n> "})
	n.hear("a@127.0.0.1:81")
	n.answers("81")
	eventually(t, "a reload", func() error {
		if n.reloads() != 1 {
			return errors.New("none yet")
		}
		return nil
	})
}

// TestSlotsAreCleared: a HAProxy that takes servers at run time, started from a file with slots, gets the servers first
// and loses the slots then.
func TestSlotsAreCleared(t *testing.T) {
	n := newNodeOfAnyVersion(t)
	n.needsAddServer()
	f := fileOf(n.config)
	was := []haproxy.Server{{Name: "a_127.0.0.1:81", Addr: netip.MustParseAddrPort("127.0.0.1:81"), Weight: 1}}
	n.writeFile(f.Render(haproxy.State{"svc": haproxy.FileSlots(nil, was, nil, 8)}))
	require.NoError(t, n.haproxy.Restart())
	n.notePid()
	n.start(10 * time.Millisecond)
	n.connected()
	require.Len(t, n.fileSlots(), 1, "what was not heard of stays")
	n.hear("a@127.0.0.1:81")
	n.answers("81")
	eventually(t, "the slot that was in use is deleted", func() error {
		for name, addr := range n.slots() {
			if addr == "127.0.0.1:81" {
				return errors.New(name + " has the address still")
			}
		}
		return nil
	})
	require.Zero(t, n.reloads())
	add, maint := n.tap.position(0, "add server svc/a_127.0.0.1:81"), n.tap.position(0, "set server svc/myelin-slot-")
	require.True(t, add >= 0 && add < maint, "add %d, maint %d", add, maint)
	require.Contains(t, []string{"servers", "backends"}, n.rung().Rung)
}

// TestSlotGate: with a health gate a server in a slot takes traffic after good checks, also where the slot's former
// server passed its own.
func TestSlotGate(t *testing.T) {
	good, err := net.Listen("tcp", "127.0.0.1:0")
	require.NoError(t, err)
	defer good.Close()
	dead := haproxytest.FreePort(t)
	n := newNodeOfAnyVersion(t, func(c *config.Agent) {
		c.Services[0].HAProxy.Backend = []string{"balance source"}
		c.Services[0].HAProxy.ServerOptions = "check inter 20ms rise 2 fall 2"
		c.Services[0].HAProxy.HealthGate = true
	})
	n.start(0)
	port := good.Addr().(*net.TCPAddr).Port
	n.hear("a@127.0.0.1:81")
	n.answers("81") // brought by the reload
	n.hear(fmt.Sprintf("g@127.0.0.1:%d", port))
	n.answers(fmt.Sprint(port))
	up := func() (string, error) {
		state, err := n.state()
		var out []string
		for _, s := range state["svc"] {
			if s.Admin == haproxy.Ready && s.Op == haproxy.OpRunning {
				out = append(out, fmt.Sprint(s.Addr.Port()))
			}
		}
		return strings.Join(out, " "), err
	}
	eventually(t, "the good one is up", func() error {
		if got, err := up(); err != nil || got != fmt.Sprint(port) {
			return fmt.Errorf("up are %q, %w", got, err)
		}
		return nil
	})
	from := n.tap.count()
	n.hear(fmt.Sprintf("g@127.0.0.1:%d", port), fmt.Sprintf("h@127.0.0.1:%d", dead))
	n.answers(strings.Join(sorted(fmt.Sprint(port), fmt.Sprint(dead)), " "))
	told := n.tap.since(from)
	require.Contains(t, told[1], " state drain")
	require.Contains(t, told[2], " health down")
	require.Contains(t, told[3], " state ready")
	got, err := up()
	require.NoError(t, err)
	require.Equal(t, fmt.Sprint(port), got)
}

func sorted(words ...string) []string { slices.Sort(words); return words }

// workload is a HTTP server that says its own port, and can hold its answers back.
type workload struct {
	port int
	gate sync.RWMutex // held for writing: nothing is answered
}

func newWorkload(t *testing.T) *workload {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	require.NoError(t, err)
	w := &workload{port: l.Addr().(*net.TCPAddr).Port}
	server := &http.Server{Handler: http.HandlerFunc(func(rw http.ResponseWriter, _ *http.Request) {
		w.gate.RLock()
		defer w.gate.RUnlock()
		fmt.Fprint(rw, w.port)
	})}
	go server.Serve(l)
	t.Cleanup(func() { server.Close() })
	return w
}

// roomInSlots waits until a slot is out of traffic and has no connections.
func (n *node) roomInSlots() {
	n.t.Helper()
	eventually(n.t, "a slot is free", func() error {
		state, err := n.state()
		if err != nil {
			return err
		}
		reply, err := n.haproxy.Command("show servers conn svc")
		if err != nil {
			return err
		}
		conns, err := haproxy.ParseConns(reply)
		if err != nil {
			return err
		}
		for _, s := range state["svc"] {
			if s.Admin == haproxy.Maint && conns[haproxy.Key{Backend: "svc", Server: s.Name}] == (haproxy.Conns{}) {
				return nil
			}
		}
		return fmt.Errorf("connections: %v", conns)
	})
}

// TestSlotsUnderTraffic: addresses come and go through the slots under requests, with reloads by hand and connections
// kept open to old ones: no request fails, and none ends at a server that had left when it began.
func TestSlotsUnderTraffic(t *testing.T) {
	front := filepath.Join(haproxytest.TempDir(t), "front.sock")
	n := newNodeOfAnyVersion(t, func(c *config.Agent) {
		c.HAProxy.Defaults = []string{"mode http", "timeout connect 2s", "timeout client 20s", "timeout server 20s", "retries 3", "option redispatch"}
		c.Services[0].HAProxy.BindAddress, c.Services[0].HAProxy.BindOnly = front, true
		c.Services[0].HAProxy.Backend = []string{"balance uri", "http-reuse always"}
		c.Services[0].HAProxy.ServerOptions = "pool-purge-delay 200ms"
	})
	n.start(time.Millisecond) // connections alone keep a slot from the next server
	var pool []*workload
	for range 14 {
		pool = append(pool, newWorkload(t))
	}
	client := &http.Client{Timeout: patience, Transport: &http.Transport{
		DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
			return new(net.Dialer).DialContext(ctx, "unix", front)
		},
	}}
	get := func(path string) (int, error) {
		resp, err := client.Get("http://svc/" + path)
		if err != nil {
			return 0, err
		}
		defer resp.Body.Close()
		body, err := io.ReadAll(resp.Body)
		var port int
		if _, scan := fmt.Sscan(string(body), &port); err != nil || scan != nil || resp.StatusCode != 200 {
			return 0, fmt.Errorf("status %d, %q, %w", resp.StatusCode, body, err)
		}
		return port, nil
	}
	wanted := func(from int) (words []string, ports string, set map[int]bool) {
		set = map[int]bool{}
		var list []string
		for i := range 3 {
			w := pool[(from+i)%len(pool)]
			words = append(words, fmt.Sprintf("w%d@127.0.0.1:%d", w.port, w.port))
			list = append(list, fmt.Sprint(w.port))
			set[w.port] = true
		}
		return words, strings.Join(sorted(list...), " "), set
	}
	words, ports, _ := wanted(0)
	n.hear(words...)
	n.answers(ports)
	reloads := n.reloads()

	var all sync.WaitGroup
	stop, failures := make(chan struct{}), make(chan error, 1)
	for worker := range 4 {
		all.Go(func() {
			for i := 0; ; i++ {
				select {
				case <-stop:
					return
				default:
				}
				if _, err := get(fmt.Sprintf("%d/%d", worker, i%50)); err != nil {
					select {
					case failures <- err:
					default:
					}
				}
			}
		})
	}
	// Those that leave have requests under way, which stay with their slots for some rounds. HAProxy keeps the
	// connections of such requests, and would send others down them, to whoever was in the slot before.
	const lag = 3
	var held []chan error
	release := func(round int) {
		pool[(round-1)%len(pool)].gate.Unlock()
		for range cap(held[round-1]) {
			require.NoError(t, <-held[round-1])
		}
	}
	const rounds = 24
	for round := 1; round <= rounds; round++ {
		pool[(round-1)%len(pool)].gate.Lock()
		results := make(chan error, 12)
		held = append(held, results)
		for i := range cap(results) {
			go func() { _, err := get(fmt.Sprintf("held/%d/%d", round, i)); results <- err }()
		}
		words, ports, set := wanted(round)
		n.roomInSlots()
		n.hear(words...)
		n.answers(ports)
		if round > lag {
			release(round - lag)
		}
		for i := range 20 {
			port, err := get(fmt.Sprintf("after/%d/%d", round, i))
			require.NoError(t, err)
			require.True(t, set[port], "round %d: a request ended at a server that had left", round)
		}
		if round%10 == 0 {
			require.NoError(t, n.haproxy.Reload())
			n.answers(ports)
		}
	}
	for round := rounds - lag + 1; round <= rounds; round++ {
		release(round)
	}
	close(stop)
	all.Wait()
	select {
	case err := <-failures:
		require.NoError(t, err, "a request failed")
	default:
	}
	require.Equal(t, reloads, n.reloads(), "slots sufficed")
}
