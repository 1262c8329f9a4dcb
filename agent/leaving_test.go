package agent

import (
	"fmt"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/myelin-sd/myelin/config"
	"github.com/myelin-sd/myelin/haproxy"
	"github.com/myelin-sd/myelin/haproxy/haproxytest"
)

// TestDrainFirst: where it is wanted, a leaving server drains for a time before it goes into maintenance; one that
// returns while it drains costs one command.
func TestDrainFirst(t *testing.T) {
	t.Parallel()
	const drain = 500 * time.Millisecond
	n := newNode(t, func(c *config.Agent) { c.Services[0].DrainTimeout = drain })
	n.start(0)
	n.hear("a@127.0.0.1:81", "b@127.0.0.1:82", "c@127.0.0.1:83")
	n.has("svc", "a b c")
	n.ready()
	from, left := n.tap.count(), time.Now()
	n.hear("a@127.0.0.1:81")
	n.has("svc", "a b:drain c:drain")
	n.hear("a@127.0.0.1:81", "b@127.0.0.1:82")
	n.has("svc", "a b c:maint")
	require.GreaterOrEqual(t, time.Since(left), drain)
	require.Equal(t, []string{
		"set server svc/b_127.0.0.1:82 state drain",
		"set server svc/c_127.0.0.1:83 state drain",
		"set server svc/b_127.0.0.1:82 state ready",
		"set server svc/c_127.0.0.1:83 state maint",
	}, n.tap.since(from))
	require.Zero(t, n.reloads())
}

// TestMarkedAsLeaving: a server whose registration says that it is leaving goes as one whose registration is gone, and
// costs nothing more when that is; one that stays after all costs one command. The last one serves until it is replaced.
func TestMarkedAsLeaving(t *testing.T) {
	t.Parallel()
	n := newNode(t)
	n.start(0)
	n.hear("a@127.0.0.1:81", "b@127.0.0.1:82")
	n.has("svc", "a b")
	n.ready()
	from := n.tap.count()
	n.hear("a@127.0.0.1:81,leaving", "b@127.0.0.1:82")
	n.has("svc", "a:maint b")
	n.hear("b@127.0.0.1:82")
	n.hear("a@127.0.0.1:81", "b@127.0.0.1:82,leaving")
	n.has("svc", "a b:maint")
	n.hear("a@127.0.0.1:81,leaving", "b@127.0.0.1:82")
	n.has("svc", "a:maint b")
	n.hear("a@127.0.0.1:81,leaving", "b@127.0.0.1:82,leaving")
	n.hear()
	n.hear("c@127.0.0.1:83,leaving")
	n.hear("c@127.0.0.1:83")
	n.has("svc", "a:maint b:maint c")
	require.Equal(t, []string{
		"set server svc/a_127.0.0.1:81 state maint",
		"set server svc/a_127.0.0.1:81 state ready",
		"set server svc/b_127.0.0.1:82 state maint",
		"set server svc/b_127.0.0.1:82 state ready",
		"set server svc/a_127.0.0.1:81 state maint",
		"add server svc/c_127.0.0.1:83",
		"set server svc/c_127.0.0.1:83 state ready",
		"set server svc/b_127.0.0.1:82 state maint",
	}, short3(n.tap.since(from)))
	require.Zero(t, n.reloads())
	require.Contains(t, n.logText(), heldLeaving)
}

// short3 leaves of a command that adds a server only its first three words.
func short3(lines []string) []string {
	for i, line := range lines {
		if strings.HasPrefix(line, "add server") {
			lines[i] = strings.Join(strings.Fields(line)[:3], " ")
		}
	}
	return lines
}

// TestGate: with health_gate a server takes traffic after HAProxy's own first good check and not before, without
// waiting for a whole inter; one whose check fails never does, and nobody waits for it.
func TestGate(t *testing.T) {
	t.Parallel()
	haproxytest.RequireDynamicServers(t)
	n := newNode(t, func(c *config.Agent) {
		c.Services[0].HAProxy.ServerOptions = "check inter 1h rise 2 fall 3"
		c.Services[0].HAProxy.HealthGate = true
		c.Services[0].HAProxy.Listen = []string{"mode http", "option httpchk GET /health"}
	})
	var healthy atomic.Bool
	handler := http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
		if !healthy.Load() {
			w.WriteHeader(http.StatusServiceUnavailable)
		}
	})
	good := httptest.NewServer(http.HandlerFunc(func(http.ResponseWriter, *http.Request) {}))
	defer good.Close()
	late := httptest.NewServer(handler)
	defer late.Close()
	a, b := "a@"+good.Listener.Addr().String(), "b@"+late.Listener.Addr().String()

	n.start(0)
	n.hear(a, b)
	n.serves("svc", "a b", "a")
	n.ready()
	if !haproxytest.AtLeast(t, 3, 1) {
		n.gates("svc", 1) // later versions wait by themselves
	}
	healthy.Store(true)
	n.serves("svc", "a b", "a b")
	n.gates("svc", 0)

	// A replacement is gated too, and what it replaces serves until then.
	healthy.Store(false)
	replacement := asking(t, b, "backup")
	n.hearOf("svc", instances(t, a)[0], replacement)
	n.serves("svc", "a b b-g2", "a b")
	n.ready()
	healthy.Store(true)
	n.serves("svc", "a b b-g2", "a b-g2")
	require.Zero(t, n.reloads())
}

// serves waits until HAProxy has these servers in a backend, and exactly those of serving take traffic: the others are
// in maintenance, or down (from 3.1 on that is how they wait for their first check).
func (n *node) serves(backend, all, serving string) {
	n.t.Helper()
	eventually(n.t, "the servers of "+backend+" serve as wanted", func() error {
		state, err := n.state()
		if err != nil {
			return err
		}
		var up []haproxy.Server
		servers := state[backend]
		for i, s := range servers {
			if s.Admin == haproxy.Ready && (s.Op == haproxy.OpRunning || s.Op == haproxy.OpStarting) {
				up = append(up, s)
			}
			servers[i].Admin = haproxy.Ready
		}
		if got := briefOf(servers); got != all {
			return fmt.Errorf("backend %s has %q, not %q", backend, got, all)
		}
		if got := briefOf(up); got != serving {
			return fmt.Errorf("%q of backend %s serve, not %q", got, backend, serving)
		}
		return nil
	})
}

// gates waits until the status shows so many servers of a backend that wait for their first check.
func (n *node) gates(backend string, want int) {
	n.t.Helper()
	eventually(n.t, "as many servers wait for a check as wanted", func() error {
		if got := n.haproxyStatus().Backends[backend].Gated; got != want {
			return fmt.Errorf("%d servers of backend %s wait, not %d", got, backend, want)
		}
		return nil
	})
}

// echo is an instance that holds each connection for as long as the client does.
func echo(t *testing.T) net.Addr {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	require.NoError(t, err)
	t.Cleanup(func() { l.Close() })
	go func() {
		for {
			conn, err := l.Accept()
			if err != nil {
				return
			}
			go func() {
				defer conn.Close()
				io.Copy(conn, conn)
			}()
		}
	}()
	return l.Addr()
}

// tcpService has svc's frontend on a port, in TCP mode and with patience.
func tcpService(port int) func(*config.Agent) {
	return func(c *config.Agent) {
		c.Services[0].HAProxy.Port, c.Services[0].HAProxy.PortSet = uint16(port), true
		c.Services[0].HAProxy.BindAddress = "127.0.0.1"
		c.Services[0].HAProxy.Listen = []string{"mode tcp"}
		c.HAProxy.Defaults = []string{"timeout connect 1s", "timeout client 1m", "timeout server 1m", "balance roundrobin"}
	}
}

// through is a connection to the instance behind HAProxy.
func through(t *testing.T, port int) net.Conn {
	conn, err := net.Dial("tcp", fmt.Sprintf("127.0.0.1:%d", port))
	require.NoError(t, err)
	t.Cleanup(func() { conn.Close() })
	_, err = io.WriteString(conn, "x")
	require.NoError(t, err)
	_, err = io.ReadFull(conn, make([]byte, 1))
	require.NoError(t, err, "the connection reaches the instance")
	return conn
}

// TestNoDeleteWhileBusy: a server with a connection is not deleted; it is looked at again.
func TestNoDeleteWhileBusy(t *testing.T) {
	t.Parallel()
	port := haproxytest.FreePort(t)
	n := newNode(t, tcpService(port))
	n.start(50 * time.Millisecond)
	n.hear("a@" + echo(t).String())
	n.has("svc", "a")
	conn := through(t, port)

	from := n.tap.count()
	n.hear("b@127.0.0.1:82")
	n.has("svc", "a:maint b")
	n.sweeps(from, 3)
	require.Equal(t, -1, n.tap.position(from, "del server"), "a server in use is not touched")
	n.has("svc", "a:maint b")
	conn.Close()
	n.has("svc", "b")
}

// TestSessionsAreShutDown: where it is wanted, sessions that stay on a server that left are ended, and then it goes.
func TestSessionsAreShutDown(t *testing.T) {
	t.Parallel()
	port := haproxytest.FreePort(t)
	n := newNode(t, tcpService(port), func(c *config.Agent) { c.HAProxy.ShutdownSessionsAfter = 300 * time.Millisecond })
	n.start(50 * time.Millisecond)
	n.hear("a@" + echo(t).String())
	n.has("svc", "a")
	conn := through(t, port)

	from, left := n.tap.count(), time.Now()
	n.hear("b@127.0.0.1:82")
	_, err := conn.Read(make([]byte, 1))
	require.Error(t, err, "the session is ended")
	require.GreaterOrEqual(t, time.Since(left), 300*time.Millisecond)
	n.has("svc", "b")
	shutdown, deleted := n.tap.position(from, "shutdown sessions server svc/a_"), n.tap.position(from, "del server svc/a_")
	require.True(t, shutdown >= 0 && shutdown < deleted, "%q", n.tap.seen()[from:])
}

// TestNoDeleteWhileWatched: while somebody else is connected to the socket, who might be reading a dump of the server,
// nothing is deleted.
func TestNoDeleteWhileWatched(t *testing.T) {
	t.Parallel()
	n := newNode(t)
	n.start(50 * time.Millisecond)
	n.hear("a@127.0.0.1:81", "b@127.0.0.1:82")
	n.has("svc", "a b")
	n.ready()

	n.tap.guest = 1
	other, err := net.Dial("unix", n.tap.path)
	require.NoError(t, err)
	defer other.Close()
	_, err = io.WriteString(other, "prompt\n")
	require.NoError(t, err)
	_, err = io.ReadFull(other, make([]byte, 3))
	require.NoError(t, err, "HAProxy holds the connection")

	from := n.tap.count()
	n.hear("a@127.0.0.1:81")
	n.has("svc", "a b:maint")
	n.sweeps(from, 3)
	require.Equal(t, -1, n.tap.position(from, "del server"))
	other.Close()
	n.has("svc", "a")
}

// TestLongFill: what is more than a round's share is done in the rounds behind it, and a change of another service
// does not wait for all of it, wherever its name stands.
func TestLongFill(t *testing.T) {
	t.Parallel()
	haproxytest.RequireDynamicServers(t)
	n := newNode(t, func(c *config.Agent) { c.Services = append(c.Services, serviceNamed("tiny")) })
	n.start(0)
	n.hearOf("tiny", instances(t, "x@127.0.0.1:99")...)
	n.hear("first@127.0.0.1:80")
	n.has("tiny", "x")
	n.ready()

	var words []string
	for i := range 2*stepsARound + 500 {
		words = append(words, fmt.Sprintf("s%d@127.%d.%d.1:80", i, 1+i/200, i%200))
	}
	from := n.tap.count()
	n.hear(words...)
	eventually(t, "the fill begins", func() error {
		if n.tap.position(from, "add server svc/") < 0 {
			return fmt.Errorf("no add yet")
		}
		return nil
	})
	n.hearOf("tiny", instances(t, "y@127.0.0.1:98")...)
	n.ready()
	state, err := n.state()
	require.NoError(t, err)
	require.Len(t, state["svc"], len(words)+1)

	other, last, rounds := -1, -1, 1
	for i, l := range n.tap.seen()[from:] {
		switch {
		case strings.HasPrefix(l, "add server tiny/"):
			other = i
		case strings.HasPrefix(l, "add server svc/"):
			last = i
		}
	}
	require.True(t, other >= 0 && other < last, "the other service's change at %d, the last of the fill at %d", other, last)
	rounds = int(n.haproxyStatus().Rounds)
	require.Greater(t, rounds, 3)
}

// TestStormsArePaced: changes that follow one another closely are gathered; the last one counts.
func TestStormsArePaced(t *testing.T) {
	t.Parallel()
	n := newNode(t)
	n.start(0)
	n.hear("a@127.0.0.1:81")
	n.has("svc", "a")
	n.ready()
	before := n.haproxyStatus().Rounds
	const changes = 500
	for i := range changes {
		n.hear("a@127.0.0.1:81", fmt.Sprintf("b@127.0.0.1:82,%d", 1+i%200))
	}
	n.has("svc", fmt.Sprintf("a b*%d", 1+(changes-1)%200))
	n.ready()
	rounds := n.haproxyStatus().Rounds - before
	require.Less(t, rounds, uint64(changes), "changes share rounds")
}
