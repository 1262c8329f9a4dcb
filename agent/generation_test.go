package agent

import (
	"context"
	"errors"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	logtest "github.com/sirupsen/logrus/hooks/test"
	"github.com/stretchr/testify/require"

	"github.com/myelin-sd/myelin/config"
	"github.com/myelin-sd/myelin/discovery"
	"github.com/myelin-sd/myelin/haproxy"
	"github.com/myelin-sd/myelin/haproxy/haproxytest"
)

// TestUnknownIsLeftAlone: a service that nothing has been heard of, or of which the registry only says that it is empty,
// keeps in HAProxy and in the file what it had.
func TestUnknownIsLeftAlone(t *testing.T) {
	n := newNode(t, func(c *config.Agent) {
		c.Services = []config.Service{serviceNamed("silent"), serviceNamed("empty"), serviceNamed("gone"), serviceNamed("svc")}
	})
	n.start(0)
	for _, s := range n.config.Services {
		n.hearOf(s.Name, instances(t, "a@127.0.0.1:81", "b@127.0.0.1:82")...)
	}
	n.ready()
	n.stop()
	require.NoError(t, n.haproxy.Restart())
	n.notePid()
	n.byHand("set server silent/b_127.0.0.1:82 state maint") // not even this is ours to mend yet

	n.start(20 * time.Millisecond)
	n.hearOf("empty")
	n.feeds["gone"] <- discovery.Snapshot{Service: "gone", Missing: true, At: time.Now()}
	n.hear("b@127.0.0.1:82", "c@127.0.0.1:83")
	n.has("svc", "b c")
	n.fileHas("svc", "b c")
	eventually(t, "what is missing is the silent service", func() error {
		if w := n.gen.waiting(); len(w) != 1 || !strings.HasPrefix(w[0], "service silent:") {
			return errors.New(strings.Join(w, "; "))
		}
		return nil
	})
	for _, name := range []string{"empty", "gone"} {
		n.has(name, "a b")
		n.fileHas(name, "a b")
	}
	n.has("silent", "a b:maint")
	n.fileHas("silent", "a b")
	require.False(t, n.agent.Status().Ready)
	require.Equal(t, 2, n.said("no instance is known; HAProxy keeps what it has"))

	n.hearOf("silent", instances(t, "b@127.0.0.1:82")...)
	n.has("silent", "b")
	n.ready()
}

// TestHeldIsSaidOnce: an emptied registry changes nothing, and says so once in the log and in the status.
func TestHeldIsSaidOnce(t *testing.T) {
	n := newNode(t)
	n.start(0)
	n.hear("a@127.0.0.1:81")
	n.has("svc", "a")
	n.ready()
	for range 3 {
		n.hear()
	}
	eventually(t, "the hold shows", func() error {
		if s := n.agent.Status().Services[0]; s.Held != heldEmpty || s.HeldFrom == nil {
			return errors.New("held: " + s.Held)
		}
		return nil
	})
	n.hear("a@127.0.0.1:81", "b@127.0.0.1:82")
	n.has("svc", "a b")
	require.Equal(t, 1, n.said("the last good set stays in force"))
	require.Equal(t, 1, n.said("the registry lists instances again"))
	for _, l := range n.tap.since(0) {
		require.NotContains(t, l, "state maint")
	}
}

// TestReadiness: ready when every service was heard of, everything is applied and the file is in step; and only then.
func TestReadiness(t *testing.T) {
	n := newNode(t, func(c *config.Agent) { c.Services = []config.Service{serviceNamed("svc"), serviceNamed("late")} })
	n.tap.on(func(string) fault { return fault{cut: true} })
	n.start(0)
	waits := func(parts ...string) {
		t.Helper()
		eventually(t, "waits for "+strings.Join(parts, ", "), func() error {
			w := n.gen.waiting()
			if len(w) != len(parts) {
				return errors.New(strings.Join(w, "; "))
			}
			for i := range w {
				if !strings.HasPrefix(w[i], parts[i]) {
					return errors.New(w[i])
				}
			}
			return nil
		})
		require.False(t, n.agent.Status().Ready)
		select {
		case <-n.agent.Ready():
			t.Fatal("ready was told too early")
		default:
		}
	}
	down := "HAProxy at " + n.tap.path + ": greet HAProxy"
	waits("service svc: nothing heard", "service late: nothing heard", down)
	n.hear("a@127.0.0.1:81")
	waits("service late: nothing heard", down)
	n.hearOf("late")
	n.tap.tried(t, 6)
	waits(down)
	n.tap.on(func(line string) fault {
		if strings.HasPrefix(line, "add server") {
			return fault{reply: "[3]: Permission denied\n\n> "}
		}
		return fault{}
	})
	n.tap.tried(t, 6)
	waits("HAProxy at " + n.tap.path + ": not everything wanted is applied")
	n.tap.on(nil)
	select {
	case <-n.agent.Ready():
	case <-time.After(patience):
		t.Fatal("never ready")
	}
	require.Equal(t, "a", func() string {
		text, err := os.ReadFile(n.config.HAProxy.ConfigFilePath)
		require.NoError(t, err)
		return briefOf(haproxy.ServersOfText(text)["svc"])
	}(), "the file is in step")
	n.has("svc", "a")
	require.True(t, n.agent.Status().Ready)
	require.Empty(t, n.agent.Status().Waiting)
}

// TestInheritedViews: a new configuration knows at once what the old one knew of services that look where they looked.
func TestInheritedViews(t *testing.T) {
	n := newNode(t, func(c *config.Agent) {
		c.Services = []config.Service{serviceNamed("same"), serviceNamed("moved"), serviceWithLine("dropped")}
	})
	n.start(0)
	for _, s := range n.config.Services {
		n.hearOf(s.Name, instances(t, "a@127.0.0.1:81", "b@127.0.0.1:82,az=x")...)
	}
	n.ready()
	views := n.gen.viewsByName()
	n.stop()

	c := *n.config
	c.Services = slices.Clone(c.Services[:2])
	c.Services[0].Discovery.LabelFilters = []config.LabelFilter{{Label: "az", Value: "x", Condition: "equals"}}
	c.Services[1].Discovery.Path = "/elsewhere"
	n.startWith(&c, 0, views)
	w := n.gen.wanted.Load()
	require.True(t, w.backends["same"].known)
	require.Equal(t, "b", briefOf(w.backends["same"].servers), "under the new definition")
	require.False(t, w.backends["moved"].known, "it looks somewhere else: what was known there says nothing")
	require.Equal(t, "a b", briefOf(w.backends["moved"].servers), "the file keeps what it had")

	n.has("same", "a:maint b") // nothing had to be heard
	n.fileHas("same", "b")
	n.fileHas("moved", "a b")
	eventually(t, "the file with the dropped service is reloaded away", func() error {
		state, err := n.state()
		if _, there := state["dropped"]; err == nil && there {
			return errors.New("it is still there")
		}
		return err
	})
	n.has("moved", "a b")
	require.Equal(t, 1, n.reloads())

	n.hearOf("moved", instances(t, "c@127.0.0.1:83")...)
	n.has("moved", "a:maint b:maint c")
}

// TestDisabledService: haproxy.disabled leaves a service out of HAProxy, and nothing waits for it there.
func TestDisabledService(t *testing.T) {
	n := newNode(t, func(c *config.Agent) {
		off := serviceNamed("off")
		off.HAProxy.Disabled = true
		c.Services = append(c.Services, off)
	})
	n.start(0)
	n.hear("a@127.0.0.1:81")
	n.hearOf("off", instances(t, "x@127.0.0.1:91")...)
	n.ready()
	n.has("svc", "a")
	state, err := n.state()
	require.NoError(t, err)
	require.NotContains(t, state, "off")
	require.Zero(t, n.reloads())
}

// TestSourceThatEnds is started again; its end takes nothing away.
func TestSourceThatEnds(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		log, hook := logtest.NewNullLogger()
		g := &generation{log: log}
		ctx, cancel := context.WithCancel(t.Context())
		var runs atomic.Int64
		src := sourceFunc(func(context.Context, chan<- discovery.Snapshot) error {
			runs.Add(1)
			return errors.New("why")
		})
		done := make(chan struct{})
		go func() {
			defer close(done)
			g.runSource(ctx, "svc", src, nil)
		}()
		time.Sleep(3*sourceRestart + time.Second)
		require.EqualValues(t, 4, runs.Load())
		require.Equal(t, 4, said(hook, "source ended; the last good set stays"))
		cancel()
		<-done
	})
}

type sourceFunc func(context.Context, chan<- discovery.Snapshot) error

func (f sourceFunc) Run(ctx context.Context, out chan<- discovery.Snapshot) error { return f(ctx, out) }

// played is a generation that does not run: the test hands it snapshots.
func played(t *testing.T) (*generation, *logtest.Hook) {
	t.Helper()
	log, hook := logtest.NewNullLogger()
	a := New(Options{Config: nodeConfig(t.TempDir()), Log: log, Metrics: NewMetrics(prometheus.NewRegistry())})
	t.Cleanup(func() { a.closeSessions(nil) })
	g, err := a.newGeneration(a.o.Config, 1, nil)
	require.NoError(t, err)
	hook.Reset()
	return g, hook
}

// TestSnapshotOfAStranger: what is about no service of this configuration changes nothing.
func TestSnapshotOfAStranger(t *testing.T) {
	g, _ := played(t)
	before := g.wanted.Load()
	s := discoverySnapshot(t, "a@10.0.0.1:80")
	s.Service = "stranger"
	g.take(s)
	require.Same(t, before, g.wanted.Load())
	for _, w := range g.wakes {
		require.Empty(t, w)
	}
	s.Service = "svc"
	g.take(s)
	require.NotSame(t, before, g.wanted.Load())
	for _, w := range g.wakes {
		require.Len(t, w, 1, "everybody is woken")
	}
}

// TestRejectionsAreSaidOnce: each registration that is left out, by the registry's decoder or as a server, is one line.
func TestRejectionsAreSaidOnce(t *testing.T) {
	g, hook := played(t)
	bad := discovery.Rejection{Node: "n1", Reason: discovery.ReasonOptions, Detail: "why"}
	nameless := asking(t, "a@10.0.0.1:80", "nonsense 1.2.3.4")
	for range 3 {
		s := discoverySnapshot(t, "b@10.0.0.2:80")
		s.Instances = append(s.Instances, nameless)
		slices.SortFunc(s.Instances, discovery.Compare)
		s.Rejected = []discovery.Rejection{bad}
		g.take(s)
	}
	require.Equal(t, 2, said(hook, "registration left out"))
	bad.Detail = "another reason"
	s := discoverySnapshot(t, "b@10.0.0.2:80")
	s.Rejected = []discovery.Rejection{bad}
	g.take(s)
	require.Equal(t, 3, said(hook, "registration left out"))
	require.Equal(t, "b", briefOf(g.wanted.Load().backends["svc"].servers), "nobody else suffers")

	var st Status
	g.fill(&st)
	require.Equal(t, []Rejected{{Node: "n1", Reason: discovery.ReasonOptions, Detail: "another reason"}}, st.Services[0].Rejected)
}

// TestHostNames: a name that resolves later becomes a server then.
func TestHostNames(t *testing.T) {
	haproxytest.Require(t)
	n := newNode(t)
	n.start(0)
	n.hear("a@127.0.0.1:81", "l@localhost:82")
	n.has("svc", "a l")
	n.fileHas("svc", "a l")
}

// TestStateDirIsMade: the first start on a host needs no folder that somebody else has made.
func TestStateDirIsMade(t *testing.T) {
	state := filepath.Join(t.TempDir(), "var", "myelin")
	c := nodeConfig(state)
	c.StateDir, c.HAProxy.DoSocket, c.HAProxy.DoReloads = state, false, false
	log, _ := logtest.NewNullLogger()
	a := New(Options{Config: c, Log: log})
	defer a.closeSessions(nil)
	g, err := a.newGeneration(c, 1, nil)
	require.NoError(t, err)
	g.file.first(t.Context())
	require.Empty(t, g.file.status().Error)
	require.FileExists(t, c.HAProxy.ConfigFilePath)
}
