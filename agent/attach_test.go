package agent

import (
	"errors"
	"fmt"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/myelin-sd/myelin/config"
	"github.com/myelin-sd/myelin/haproxy/haproxytest"
)

// newAttached is a node whose HAProxy has a file of others, with these lines in the backend svc.
func newAttached(t *testing.T, lines ...string) *node {
	t.Helper()
	n := newNode(t, func(c *config.Agent) { c.HAProxy.DoWrites, c.HAProxy.DoReloads = false, false })
	n.puppet(lines...)
	return n
}

// puppet writes another file and has HAProxy read it, as configuration management does.
func (n *node) puppet(lines ...string) {
	n.t.Helper()
	n.writeFile(fmt.Appendf(nil, `global
	stats socket %s mode 600 level admin expose-fd listeners
defaults
	mode http
	timeout connect 1s
	timeout client 5s
	timeout server 5s
backend others
	server web1_10.9.9.9:80 10.9.9.9:80
%s
`, haproxytest.Socket(n.dir()), strings.Join(lines, "\n\t")))
	require.NoError(n.t, n.haproxy.Reload())
}

// untouched says that no command named a server.
func (n *node) untouched(name string) {
	n.t.Helper()
	for _, l := range n.tap.since(0) {
		require.NotContains(n.t, l, name)
	}
}

// TestAttached: of a backend in a file of others our servers are managed, and theirs stay as they are, whatever they are
// called; also when they have been taken out by hand, and when their address is registered.
func TestAttached(t *testing.T) {
	n := newAttached(t, "backend svc",
		"server web1_127.0.0.1:71 127.0.0.1:71 weight 7", "server 127.0.0.1:72 127.0.0.1:72 disabled", "server plain 127.0.0.1:73")
	n.start(20 * time.Millisecond)
	n.hear("a@127.0.0.1:81", "b@127.0.0.1:82", "web1@127.0.0.1:71", "other@127.0.0.1:72", "web3@127.0.0.1:73")
	n.has("svc", "127.0.0.1:72:maint a b plain web1*7")
	n.ready()
	n.hear("b@127.0.0.1:82", "c@127.0.0.1:83")
	n.has("svc", "127.0.0.1:72:maint b c plain web1*7")
	n.ready()
	for _, name := range []string{"web1", "127.0.0.1:72", "plain", "others"} {
		n.untouched(name)
	}

	// A restarted agent remembers nothing, and still knows which are ours.
	n.stop()
	n.start(20 * time.Millisecond)
	n.hear("c@127.0.0.1:83")
	n.has("svc", "127.0.0.1:72:maint c plain web1*7")
	n.ready()
	n.untouched("web1")

	// A reload by others takes ours away and brings theirs back. What they no longer serve is missing now.
	before, err := n.haproxy.WorkerPid()
	require.NoError(t, err)
	n.hear("c@127.0.0.1:83", "web3@127.0.0.1:73")
	n.puppet("backend svc", "server web1_127.0.0.1:71 127.0.0.1:71", "server new 127.0.0.1:83")
	n.has("svc", "new web1 web3")
	n.ready()
	require.NoError(t, n.haproxy.Restart())
	n.has("svc", "new web1 web3")
	n.ready()
	after, err := n.haproxy.WorkerPid()
	require.NoError(t, err)
	require.NotEqual(t, before, after)
	require.Zero(t, n.reloads())
}

// TestAttachedNames: what HAProxy has of a name that does not resolve stays over a restart of the agent, also when its
// address changed before, and with it the object.
func TestAttachedNames(t *testing.T) {
	haproxytest.RequireDynamicServers(t)
	n := newAttached(t, "backend svc")
	known := &names{addrs: map[string][]string{"web.example.com": {"127.0.0.1"}}, count: map[string]int{}}
	n.resolves(known)
	n.start(0)
	n.hear("a@web.example.com:81", "b@127.0.0.1:82")
	n.has("svc", "a b")
	known.set("web.example.com", "127.0.0.2")
	n.has("svc", "a-g2 a:maint b")
	n.ready()
	n.stop()
	known.set("web.example.com")
	n.start(0)
	n.hear("a@web.example.com:81", "b@127.0.0.1:82", "c@127.0.0.1:83")
	n.has("svc", "a-g2 a:maint b c")
	n.ready()
	n.hear("a@web.example.com:81", "c@127.0.0.1:83")
	n.has("svc", "a-g2 a:maint b:maint c")
}

// TestAttachedExplicitIDs: an id that a registration asks for says nothing of who made the server. It is ours when we
// added it, or found it as it is wanted.
func TestAttachedExplicitIDs(t *testing.T) {
	n := newAttached(t, "backend svc", "server x_127.0.0.1:71 127.0.0.1:71 id 5")
	n.start(20 * time.Millisecond)
	a, b := instances(t, "a@127.0.0.1:81")[0], instances(t, "b@127.0.0.1:82")[0]
	a.ServerID, b.ServerID = 7, 8
	n.hearOf("svc", a, b)
	n.has("svc", "a b x")
	n.hearOf("svc", b)
	n.has("svc", "b x")
	n.ready()

	n.stop()
	n.start(20 * time.Millisecond)
	n.hearOf("svc", b)
	n.ready()
	n.hear("c@127.0.0.1:83")
	n.has("svc", "c x")
	n.untouched("x_127")
}

// TestAttachedOptions: options that a re-read of the files brings reach the servers of a process that goes on.
func TestAttachedOptions(t *testing.T) {
	n := newAttached(t, "backend svc", "server x_127.0.0.1:71 127.0.0.1:71")
	n.start(20 * time.Millisecond)
	n.hear("a@127.0.0.1:81")
	n.has("svc", "a x")
	n.ready()
	n.stop()
	old := n.gen.haproxys[0].memory()
	require.NotEmpty(t, old.mine)

	n.config.Services[0].HAProxy.ServerOptions = "check inter 1h"
	n.startWith(n.config, 20*time.Millisecond, nil, func(r *reconciler) { r.before = old })
	n.hear("a@127.0.0.1:81")
	n.has("svc", "a-g2 x")
	n.ready()
	require.True(t, slices.ContainsFunc(n.tap.seen(), func(l string) bool {
		return strings.HasPrefix(l, "add server svc/a_127.0.0.1:81-g2") && strings.Contains(l, "check inter 1h")
	}))
}

// TestAttachedWithoutBackend: a backend that the file of others lacks is said once and shown, nothing is reloaded, and it
// is filled when it appears.
func TestAttachedWithoutBackend(t *testing.T) {
	n := newAttached(t, "backend elsewhere")
	n.start(0)
	n.hear("a@127.0.0.1:81")
	missing := fmt.Sprintf("HAProxy at %s: its configuration has no backend svc", n.tap.path)
	eventually(t, "the missing backend shows", func() error {
		if w := n.gen.waiting(); !slices.Contains(w, missing) || len(w) != 1 {
			return errors.New(strings.Join(w, "; "))
		}
		return nil
	})
	n.hear("a@127.0.0.1:81", "b@127.0.0.1:82")
	eventually(t, "another round", func() error {
		if s := n.haproxyStatus(); s.Rounds < 2 {
			return fmt.Errorf("%d rounds", s.Rounds)
		}
		return nil
	})
	require.Equal(t, []string{"svc"}, n.haproxyStatus().Absent)
	require.Equal(t, 1, n.said("HAProxy has no such backend"))
	require.False(t, n.agent.Status().Ready)
	require.Empty(t, n.agent.Status().File.Pending)

	n.puppet("backend svc")
	n.has("svc", "a b")
	n.ready()
	require.Equal(t, 1, n.said("HAProxy has the backend now"))
	require.Empty(t, n.haproxyStatus().Absent)
	require.Zero(t, n.reloads())
}

// TestAttachedPreview: what is theirs is nothing to do, and a reload is nothing that would happen.
func TestAttachedPreview(t *testing.T) {
	n := newAttached(t, "backend svc", "server web1_127.0.0.1:71 127.0.0.1:71 weight 7")
	c := *n.config
	c.Services = []config.Service{{Name: "svc", Discovery: config.Discovery{Method: "base"}, DefaultServers: []config.DefaultServer{
		{Name: "web1", Host: "127.0.0.1", Port: 71}, {Name: "a", Host: "127.0.0.1", Port: 81}}},
		{Name: "away", Discovery: config.Discovery{Method: "base"}, DefaultServers: []config.DefaultServer{{Name: "b", Host: "127.0.0.1", Port: 82}}}}
	p, err := NewPreview(t.Context(), &c, n.logger, true)
	require.NoError(t, err)
	require.Empty(t, p.Reload)
	require.Len(t, p.Targets, 1)
	require.Empty(t, p.Targets[0].Error)
	require.Len(t, p.Targets[0].Plan, 1)
	require.Equal(t, "a_127.0.0.1:81", p.Targets[0].Plan[0].Server.Name)
	require.Contains(t, strings.Join(p.Notes, "\n"), "HAProxy has no backend away")
}

// TestMastersAreWatched: what a master tells is heard by the reconciler of its HAProxy.
func TestMastersAreWatched(t *testing.T) {
	n := newNode(t, func(c *config.Agent) {
		c.HAProxy.ReloadCommand = ""
		c.HAProxy.MasterSocketPaths = []string{haproxytest.MasterSocket(filepath.Dir(c.HAProxy.ConfigFilePath))}
	})
	n.start(0)
	n.hear("a@127.0.0.1:81")
	n.ready()
	require.Equal(t, n.gen.file.operated[0].Changed(), n.gen.haproxys[0].suspect)
	for i := range 3 {
		require.NoError(t, n.haproxy.Reload())
		eventually(t, "the new process is met", func() error {
			if s := n.haproxyStatus(); s.Processes != i+2 {
				return fmt.Errorf("%d processes", s.Processes)
			}
			return nil
		})
		n.has("svc", "a")
	}
	n.gen.file.request("a reason of the test")
	eventually(t, "reloaded through the master", func() error {
		if r := n.gen.file.status().Reload; r.Reloads != 1 {
			return fmt.Errorf("%+v", r)
		}
		return nil
	})
}

// TestAttachedBackendIsTheFilesChoice: the registry may not send a service's servers into another section of the file
// that people write.
func TestAttachedBackendIsTheFilesChoice(t *testing.T) {
	n := newAttached(t, "backend svc")
	n.config.Services[0].Discovery.GeneratorConfigPath = "/svc"
	n.start(0)
	n.holding(`{"haproxy": {"backend_name": "others"}}`, "a@127.0.0.1:81")
	eventually(t, "it shows", func() error {
		if s := n.service("svc"); !s.Remote || len(s.Problems) != 1 || !strings.Contains(s.Problems[0], "backend_name") {
			return fmt.Errorf("%+v", s)
		}
		return nil
	})
	n.ready()
	n.has("svc", "a")
	n.has("others", "web1")
}
