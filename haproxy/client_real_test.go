package haproxy

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"net/netip"
	"path/filepath"
	"slices"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
	"pgregory.net/rapid"

	"github.com/myelin-sd/myelin/haproxy/haproxytest"
)

const realDefaults = `
defaults
  mode http
  timeout connect 1s
  timeout client 10s
  timeout server 10s
`

// realConfig has backends of several kinds; "fixed" takes no servers at run time.
const realConfig = realDefaults + `
backend a
  balance roundrobin
backend b
  balance roundrobin
backend fixed
  balance source
backend written
  balance roundrobin
  server static1 127.0.0.1:9 id 3 check inter 1h
  server i-1_127.0.0.1:8 127.0.0.1:8 id 4 disabled
`

func newReal(t *testing.T) (*haproxytest.HAProxy, *Client) {
	h := haproxytest.New(t, realConfig)
	return h, dial(t, h.Socket, ClientOptions{})
}

func applied(t require.TestingT, c *Client, p Plan) {
	for _, r := range c.Apply(context.Background(), p) {
		require.NoError(t, r.Err)
	}
}

func TestRealReads(t *testing.T) {
	h, c := newReal(t)
	pid, err := h.WorkerPid()
	require.NoError(t, err)
	assert.Equal(t, pid, c.Identity().Pid)
	if haproxytest.AtLeast(t, 2, 4) { // 2.2 does not say
		assert.NotZero(t, c.Identity().Started)
	}
	assert.False(t, c.Identity().Stopping)
	assert.Equal(t, haproxytest.AtLeast(t, 2, 6), CapabilitiesOf(c.Identity().Version).DynamicServers, c.Identity().Version)

	info, err := c.Info(t.Context())
	require.NoError(t, err)
	assert.Equal(t, "HAProxy", info["Name"])

	files, ok, err := c.Env(t.Context(), "HAPROXY_CFGFILES")
	require.NoError(t, err)
	assert.True(t, ok)
	assert.Equal(t, strings.Join(h.Files, ";"), files)
	_, ok, err = c.Env(t.Context(), "NO_SUCH_VARIABLE")
	require.NoError(t, err)
	assert.False(t, ok)

	state, err := c.State(t.Context())
	require.NoError(t, err)
	static1 := state["written"][0]
	static1.Op, static1.CheckResult = 0, 0 // the check may have run
	assert.True(t, static1.Check.Running())
	static1.Check = 0
	assert.Equal(t, Server{Name: "static1", Addr: netip.MustParseAddrPort("127.0.0.1:9"), ID: 3, Weight: 1, FirstWeight: 1}, static1)
	assert.Equal(t, Maint, state["written"][1].Admin)
	delete(state, "MASTER") // the worker's way to its master, shown by 2.2 and 2.4
	assert.Len(t, state, 4, "backends without servers are there too")
	for _, b := range []string{"a", "b", "fixed"} {
		assert.Contains(t, state, b)
		assert.Empty(t, state[b])
	}

	some, err := c.StateOf(t.Context(), "a", "nope", "written")
	require.NoError(t, err)
	assert.Len(t, some, 2)
	assert.Contains(t, some, "a")
	assert.Len(t, some["written"], 2)
}

// TestRealLifeOfAServer walks one server through everything, with what HAProxy itself says behind each step.
func TestRealLifeOfAServer(t *testing.T) {
	haproxytest.RequireDynamicServers(t)
	_, c := newReal(t)
	v := View{Caps: CapabilitiesOf(c.Identity().Version), Deletable: map[Key]bool{}, Applied: map[Key]Applied{}}
	want := Server{
		Name: "i-1_127.0.0.1:9", Addr: netip.MustParseAddrPort("127.0.0.1:9"), Weight: 4,
		Options: strings.Fields("check inter 1h agent-check agent-port 9 agent-inter 1h"),
	}
	read := func() State {
		state, err := c.StateOf(t.Context(), "a")
		require.NoError(t, err)
		return state
	}
	converge := func(wanted ...Server) []Server {
		AssignIDs(wanted)
		desired := State{"a": wanted}
		plan := Diff(read(), desired, v)
		applied(t, c, plan)
		for _, s := range plan {
			if s.Op == StepAdd {
				v.Applied[s.Key()] = s.Server.Applied()
			}
		}
		state := read()
		require.Empty(t, Diff(state, desired, v).String())
		return state["a"]
	}

	found := converge(want)
	require.Len(t, found, 1)
	assert.Equal(t, idOf(want), found[0].ID)
	assert.Equal(t, 4, found[0].Weight)
	assert.Equal(t, Ready, found[0].Admin)
	assert.True(t, found[0].Check.Running())
	assert.True(t, found[0].Agent.Running())

	want.Admin = Drain
	assert.Equal(t, Drain, converge(want)[0].Admin)

	found = converge()
	assert.Equal(t, Maint, found[0].Admin)
	assert.True(t, found[0].Agent.Idle(), "an agent could end the maintenance")

	want.Admin = Ready
	found = converge(want)
	assert.Equal(t, Ready, found[0].Admin)
	assert.True(t, found[0].Agent.Running(), "and is asked again afterwards")

	want.Options = nil
	found = converge(want)
	require.Len(t, found, 2)
	assert.Equal(t, "i-1_127.0.0.1:9-g2", found[1].Name)
	assert.Equal(t, Maint, found[0].Admin)
	want.Weight = 9
	found = converge(want)
	assert.Equal(t, 9, found[1].Weight)

	v.Deletable[Key{"a", found[0].Name}] = true
	assert.Len(t, converge(want), 1)
	assert.Len(t, converge(), 1)
	v.Deletable[Key{"a", found[1].Name}] = true
	assert.Empty(t, converge())
}

// TestRealRefusals: each kind as HAProxy itself words it, with other backends served meanwhile.
func TestRealRefusals(t *testing.T) {
	haproxytest.RequireDynamicServers(t)
	h, c := newReal(t)
	step := func(op Action, backend string, n int, options string) Step {
		s := planStep(op, backend, n)
		s.Server.Options = strings.Fields(options)
		return s
	}
	applied(t, c, Plan{step(StepAdd, "b", 1, "")})
	again := step(StepAdd, "b", 1, "")
	again.Server.ID = 77
	static := step(StepMaint, "written", 0, "")
	static.Server.Name = "static1"

	for name, c2 := range map[string]struct {
		step Step
		want error
	}{
		"no backend":        {step(StepAdd, "nope", 2, ""), ErrNoBackend},
		"no server":         {step(StepReady, "b", 99, ""), ErrNoServer},
		"exists":            {again, ErrExists},
		"static algorithm":  {step(StepAdd, "fixed", 2, ""), ErrUnfit},
		"a cannot track":    {step(StepAdd, "b", 3, "track b/10.0.0.1:80"), ErrUnfit},
		"ssl without a CA":  {step(StepAdd, "b", 3, "ssl"), ErrUnfit},
		"unknown protocol":  {step(StepAdd, "b", 3, "proto nope"), ErrUnfit},
		"not in maint":      {step(StepDelete, "b", 1, ""), ErrNotInMaintenance},
		"gone is deleted":   {step(StepDelete, "b", 55, ""), nil},
		"foreign, by force": {static, nil},
	} {
		good := step(StepWeight, "b", 1, "")
		results := c.Apply(t.Context(), Plan{c2.step, good})
		if c2.want == nil {
			assert.NoError(t, results[0].Err, name)
		} else {
			assert.ErrorIs(t, results[0].Err, c2.want, name)
		}
		assert.NoError(t, results[1].Err, name)
	}
	if !CapabilitiesOf(c.Identity().Version).Cookie {
		s := step(StepAdd, "b", 3, "")
		s.Server.Cookie = "x"
		assert.ErrorIs(t, c.Apply(t.Context(), Plan{s})[0].Err, ErrUnfit)
	}

	// An id that another has: the next one.
	taken := step(StepAdd, "b", 8, "")
	taken.Server.ID = 2
	results := c.Apply(t.Context(), Plan{taken})
	require.NoError(t, results[0].Err)
	assert.Equal(t, 3, results[0].Step.Server.ID)

	pid, err := h.WorkerPid()
	require.NoError(t, err)
	assert.Equal(t, c.Identity().Pid, pid)
}

func TestRealPermissionDenied(t *testing.T) {
	haproxytest.RequireDynamicServers(t)
	haproxytest.Require(t)
	dir := haproxytest.TempDir(t)
	operator := filepath.Join(dir, "op.sock")
	h, err := haproxytest.Start(dir, "global\n  stats socket "+operator+" level operator\n"+realConfig, haproxytest.Options{})
	require.NoError(t, err)
	defer h.Stop()
	c := dial(t, operator, ClientOptions{})
	_, err = c.State(t.Context())
	require.NoError(t, err)
	for _, op := range []Action{StepAdd, StepReady, StepDrain, StepMaint, StepWeight, StepDelete} {
		assert.ErrorIs(t, c.Apply(t.Context(), Plan{planStep(op, "a", 1)})[0].Err, ErrPermission, op)
	}
}

// TestRealBusyServerIsNotDeleted: a server with a request in flight keeps it, and goes when the request is over.
func TestRealBusyServerIsNotDeleted(t *testing.T) {
	haproxytest.RequireDynamicServers(t)
	release, begun := make(chan struct{}), make(chan struct{})
	site := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		close(begun)
		<-release
		io.WriteString(w, "done")
	}))
	defer site.Close()
	haproxytest.Require(t)
	dir := haproxytest.TempDir(t)
	front := filepath.Join(dir, "front.sock")
	h, err := haproxytest.Start(dir, realConfig+"frontend f\n  bind "+front+"\n  default_backend a\n", haproxytest.Options{})
	require.NoError(t, err)
	defer h.Stop()
	c := dial(t, h.Socket, ClientOptions{})

	s := Server{Name: "s:1", Addr: netip.MustParseAddrPort(site.Listener.Addr().String()), ID: 5, Weight: 1}
	applied(t, c, Plan{{Op: StepAdd, Backend: "a", Server: s}})
	client := &http.Client{Transport: &http.Transport{DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
		return (&net.Dialer{}).DialContext(ctx, "unix", front)
	}}}
	defer client.CloseIdleConnections()
	answer := make(chan string, 1)
	go func() {
		resp, err := client.Get("http://service/")
		if err != nil {
			answer <- err.Error()
			return
		}
		defer resp.Body.Close()
		b, _ := io.ReadAll(resp.Body)
		answer <- string(b)
	}()
	<-begun
	applied(t, c, Plan{{Op: StepMaint, Backend: "a", Server: s}})
	remove := Plan{{Op: StepDelete, Backend: "a", Server: s}}
	assert.ErrorIs(t, c.Apply(t.Context(), remove)[0].Err, ErrBusy)
	close(release)
	assert.Equal(t, "done", <-answer)
	// 2.8.30 keeps the connection for up to three purges of its pool, which are five seconds apart.
	require.Eventually(t, func() bool { return c.Apply(t.Context(), remove)[0].Err == nil }, time.Minute, 10*time.Millisecond)
}

// TestRealConnectionReuse: a server added at run time reuses its connections, on every version (see extraWords).
func TestRealConnectionReuse(t *testing.T) {
	haproxytest.RequireDynamicServers(t)
	var connections atomic.Int64
	site := httptest.NewUnstartedServer(http.HandlerFunc(func(http.ResponseWriter, *http.Request) {}))
	site.Config.ConnState = func(_ net.Conn, s http.ConnState) {
		if s == http.StateNew {
			connections.Add(1)
		}
	}
	site.Start()
	defer site.Close()
	haproxytest.Require(t)
	dir := haproxytest.TempDir(t)
	front := filepath.Join(dir, "front.sock")
	h, err := haproxytest.Start(dir, realConfig+"  http-reuse always\nfrontend f\n  bind "+front+"\n  default_backend written\n",
		haproxytest.Options{})
	require.NoError(t, err)
	defer h.Stop()
	c := dial(t, h.Socket, ClientOptions{})
	addr := netip.MustParseAddrPort(site.Listener.Addr().String())
	static := Server{Name: "static1"}
	desired := State{"written": {{Name: addr.String(), Addr: addr, ID: 9, Weight: 1}}}
	actual, err := c.State(t.Context())
	require.NoError(t, err)
	applied(t, c, Diff(actual, desired, View{Caps: CapabilitiesOf(c.Identity().Version)}))
	applied(t, c, Plan{{Op: StepMaint, Backend: "written", Server: static}})

	const requests = 20
	for range requests { // each over a connection of its own
		client := &http.Client{Transport: &http.Transport{DisableKeepAlives: true,
			DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
				return (&net.Dialer{}).DialContext(ctx, "unix", front)
			}}}
		resp, err := client.Get("http://service/")
		require.NoError(t, err)
		resp.Body.Close()
		require.Equal(t, http.StatusOK, resp.StatusCode)
	}
	assert.Less(t, connections.Load(), int64(requests/2))
}

// believed is what After says of servers.
func believed(servers []Server) []string {
	var out []string
	for _, s := range servers {
		out = append(out, fmt.Sprintf("%s %s id %d weight %d %s check %d agent %d", s.Name, s.Addr, s.ID, s.Weight, s.Admin,
			s.Check&(ProbeConfigured|ProbeEnabled|probePaused), s.Agent&(ProbeConfigured|ProbeEnabled)))
	}
	slices.Sort(out)
	return out
}

// TestRealDiffReachesDesired: the property of TestDiffReachesDesired, on HAProxy.
func TestRealDiffReachesDesired(t *testing.T) {
	haproxytest.RequireDynamicServers(t)
	h, c := newReal(t)
	caps := CapabilitiesOf(c.Identity().Version)
	ctx := t.Context()
	rapid.Check(t, func(t *rapid.T) {
		read := func() State {
			state, err := c.StateOf(ctx, "a", "b")
			require.NoError(t, err)
			return state
		}
		// Begin with nothing, so that a failing case can be found again.
		v := View{Caps: caps, Applied: map[Key]Applied{}}
		applied(t, c, Diff(read(), State{"a": nil, "b": nil}, v))
		v.Deletable = allKeys(read())
		applied(t, c, Diff(read(), State{"a": nil, "b": nil}, v))
		require.Equal(t, State{"a": nil, "b": nil}, read())

		for range rapid.IntRange(1, 3).Draw(t, "rounds") {
			desired := drawState(t, "desired")
			v.Deletable = map[Key]bool{}
			for _, k := range sortedKeys(read()) {
				if rapid.Bool().Draw(t, "deletable") {
					v.Deletable[k] = true
				}
			}
			before := read()
			plan := Diff(before, desired, v)
			m := modelOf(before, v)
			applied(t, c, plan)
			for _, s := range plan {
				require.NoError(t, m.apply(s))
				s.Remember(v.Applied)
			}
			for name, servers := range before {
				steps := slices.DeleteFunc(slices.Clone(plan), func(s Step) bool { return s.Backend != name })
				require.Equal(t, believed(read()[name]), believed(After(servers, steps)), "what is believed is so")
			}
			require.Equal(t, serving(desired), serving(read()))
			require.Equal(t, sortedKeys(m.state), sortedKeys(read()), "the model knows HAProxy")
			v.Deletable = nil
			require.Empty(t, Diff(read(), desired, v).String())
		}
	})
	pid, err := h.WorkerPid()
	require.NoError(t, err)
	require.Equal(t, c.Identity().Pid, pid)
}

func allKeys(s State) map[Key]bool {
	out := map[Key]bool{}
	for _, k := range sortedKeys(s) {
		out[k] = true
	}
	return out
}

func sortedKeys(s State) []Key {
	var keys []Key
	for b, servers := range s {
		for _, v := range servers {
			keys = append(keys, Key{b, v.Name})
		}
	}
	slices.SortFunc(keys, func(a, b Key) int { return strings.Compare(a.Backend+"/"+a.Server, b.Backend+"/"+b.Server) })
	return keys
}

// TestRealThousandServers: 1,000 joins and leaves in one plan each.
func TestRealThousandServers(t *testing.T) {
	haproxytest.RequireDynamicServers(t)
	_, c := newReal(t)
	_, desired := benchmarkStates(1000)
	desired = State{"a": desired["b"]}
	v := View{Caps: CapabilitiesOf(c.Identity().Version)}
	for _, want := range []State{desired, {"a": desired["a"][:1]}} {
		state, err := c.State(t.Context())
		require.NoError(t, err)
		applied(t, c, Diff(state, want, v))
		state, err = c.State(t.Context())
		require.NoError(t, err)
		require.Equal(t, serving(want)["a"], serving(state)["a"])
	}
}

// TestOptionWordsAreAcceptedByHAProxy: HAProxy knows every word that we would send, and says so of none that we
// refuse. (With an argument that may be wrong: what is asked is whether the word is known.)
func TestOptionWordsAreAcceptedByHAProxy(t *testing.T) {
	haproxytest.RequireDynamicServers(t)
	_, c := newReal(t)
	caps := CapabilitiesOf(c.Identity().Version)
	words := strings.Fields(`backup check send-proxy send-proxy-v2 no-backup no-send-proxy
		no-send-proxy-v2 no-tfo check-send-proxy check-via-socks4 agent-check tfo usesrc send-proxy-v2-ssl
		send-proxy-v2-ssl-cn ssl check-ssl allow-0rtt
		no-ssl-reuse tls-tickets no-tls-tickets force-sslv3 force-tlsv10 force-tlsv11 force-tlsv12 force-tlsv13 no-sslv3
		no-tlsv10 no-tlsv11 no-tlsv12 no-tlsv13 inter fastinter downinter slowstart rise fall error-limit maxconn minconn
		maxqueue port observe on-error on-marked-down on-marked-up proto addr agent-addr agent-inter agent-port agent-send
		check-proto check-alpn check-sni ws pool-low-conn pool-max-conn pool-purge-delay proxy-v2-options source track alpn
		npn ca-file crl-file crt ciphers ciphersuites sni ssl-min-ver ssl-max-ver verify verifyhost
		guid hash-key pool-conn-name set-proxy-v2-tlv-fmt init-state idle-ping check-reuse-pool strict-maxconn healthcheck
		resolvers resolve-prefer resolve-net resolve-opts init-addr max-reuse namespace redir stick non-stick no-check no-ssl no-check-send-proxy
		no-agent-check no-send-proxy-v2-ssl no-send-proxy-v2-ssl-cn no-check-ssl ssl-reuse
		nonsense`)
	n := 100
	for _, word := range words {
		o, ok := lookupOption(word)
		command := fmt.Sprintf("add server a/s%d 127.0.0.1:9 id %d %s", n, n, word)
		n++
		if o.args > 0 {
			command += " 1"
		}
		err := c.exchange(t.Context(), func() error {
			reply, err := c.roundTrip(t.Context(), command)
			if err != nil {
				return err
			}
			err = judge(command, reply, expectAdded)
			var r *ReplyError
			refused := errors.As(err, &r) && (strings.Contains(r.Text, "option is not accepted") || strings.Contains(r.Text, "unknown keyword"))
			if known := ok && caps.atLeast(o.since[0], o.since[1]); known == refused {
				t.Errorf("%q: we say known=%v, HAProxy %s says %v", word, known, caps.Version, err)
			}
			return nil
		})
		require.NoError(t, err)
	}
}

// TestRealReload: a connection that was open before stays with the old worker, without a sign; the master's ends.
func TestRealReload(t *testing.T) {
	h, c := newReal(t)
	m, err := DialMaster(t.Context(), h.MasterSocket)
	require.NoError(t, err)
	defer m.Close()
	gone := make(chan error, 1)
	go func() { gone <- m.Wait(t.Context()) }()
	select {
	case err := <-gone:
		t.Fatalf("ended before the reload: %v", err)
	default:
	}
	require.NoError(t, h.Reload())
	require.NoError(t, <-gone)

	old := c.Identity()
	info, err := c.Info(t.Context())
	require.NoError(t, err)
	held, err := identityOf(info)
	require.NoError(t, err)
	assert.Equal(t, old.Pid, held.Pid)
	assert.True(t, held.Stopping)
	fresh := dial(t, h.Socket, ClientOptions{}).Identity()
	assert.NotEqual(t, old.Pid, fresh.Pid)
	assert.False(t, fresh.Stopping)
}

func TestRealKill(t *testing.T) {
	h, c := newReal(t)
	gone := make(chan error, 1)
	m, err := DialMaster(t.Context(), h.MasterSocket)
	require.NoError(t, err)
	defer m.Close()
	go func() { gone <- m.Wait(t.Context()) }()
	require.NoError(t, h.KillWorker())
	require.NoError(t, <-gone, "the master goes with its worker")
	_, err = c.State(t.Context())
	require.Error(t, err)
	_, err = Dial(t.Context(), h.Socket, ClientOptions{})
	require.Error(t, err)
	require.Error(t, WatchMaster(t.Context(), h.MasterSocket))

	require.NoError(t, h.Restart())
	_, err = dial(t, h.Socket, ClientOptions{}).State(t.Context())
	require.NoError(t, err)

	ctx, cancel := context.WithCancel(t.Context())
	go func() { gone <- WatchMaster(ctx, h.MasterSocket) }()
	cancel()
	require.ErrorIs(t, <-gone, context.Canceled)
	require.NoError(t, h.Kill())
}
