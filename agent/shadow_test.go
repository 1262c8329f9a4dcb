package agent

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	logtest "github.com/sirupsen/logrus/hooks/test"
	"github.com/stretchr/testify/require"

	"github.com/myelin-sd/myelin/config"
	"github.com/myelin-sd/myelin/haproxy"
)

// stepOf is a step about a server at an address.
func stepOf(t *testing.T, op haproxy.Action, addr string) haproxy.Step {
	t.Helper()
	s, _ := newComposer(nodeConfig(t.TempDir()), nil, nil).backends[0].servers(instances(t, "a@"+addr), nil, nil)
	require.Len(t, s, 1)
	return haproxy.Step{Op: op, Backend: "svc", Server: s[0], Why: "because"}
}

// TestShadowGrace: a difference counts once it has lasted for the grace, from when it was first seen; one that went
// away in between begins anew; what cannot be compared changes nothing.
func TestShadowGrace(t *testing.T) {
	const grace = 10 * time.Second
	start := time.Date(2026, 1, 1, 0, 0, 0, 0, time.UTC)
	at := func(seconds int) time.Time { return start.Add(time.Duration(seconds) * time.Second) }
	add, weight := stepOf(t, haproxy.StepAdd, "10.0.0.1:80"), stepOf(t, haproxy.StepWeight, "10.0.0.2:80")

	var r shadowRecord
	var changed bool
	look := func(seconds int, c comparison) {
		c.backend, c.service = "svc", "svc"
		r, changed = r.after(c, at(seconds), grace)
	}
	look(0, comparison{})
	require.False(t, changed, "agreeing at first is no news")
	require.Equal(t, shadowAgrees, r.status("s").State)

	look(5, comparison{plan: haproxy.Plan{add}})
	st := r.status("s")
	require.Equal(t, shadowAgrees, st.State)
	require.Equal(t, 1, st.Pending)
	require.Empty(t, st.Steps)
	require.Equal(t, at(15), r.next(grace))

	look(14, comparison{}) // the other manager was there in time
	look(15, comparison{plan: haproxy.Plan{add}})
	require.False(t, changed, "it is another difference")
	require.Equal(t, at(0), r.status("s").Since)
	require.Equal(t, at(25), r.next(grace))

	look(20, comparison{plan: haproxy.Plan{add, weight}})
	look(25, comparison{plan: haproxy.Plan{add, weight}})
	require.True(t, changed)
	st = r.status("s")
	require.Equal(t, shadowDiffers, st.State)
	require.Equal(t, at(15), st.Since, "since it was first seen")
	require.Equal(t, []string{"add a_10.0.0.1:80: because"}, st.Steps)
	require.Equal(t, map[string]int{"add": 1}, st.Due)
	require.Equal(t, 1, st.Pending)
	require.Equal(t, map[string]uint64{"add": 1}, st.Lasted)

	look(26, comparison{unknown: "HAProxy does not answer"})
	require.False(t, changed)
	require.Equal(t, shadowUnknown, r.status("s").State)

	look(40, comparison{plan: haproxy.Plan{add, weight}})
	require.False(t, changed, "it differed before")
	st = r.status("s")
	require.Equal(t, map[string]uint64{"add": 1, "weight": 1}, st.Lasted)
	require.Equal(t, at(15), st.Since)

	look(41, comparison{plan: haproxy.Plan{weight}})
	require.False(t, changed, "something is left")
	look(42, comparison{})
	require.True(t, changed)
	require.Equal(t, at(42), r.status("s").Since)
	require.Equal(t, map[string]uint64{"add": 1, "weight": 1}, r.status("s").Lasted)

	look(50, comparison{absent: true})
	look(60, comparison{absent: true})
	require.True(t, changed)
	require.Equal(t, []string{"HAProxy has no such backend"}, r.status("s").Steps)
}

// TestShadowMetrics: the numbers that an alert asks for; a backend that cannot be compared has none, one that is gone
// has none either.
func TestShadowMetrics(t *testing.T) {
	start := time.Now().Add(-time.Minute)
	logger, hook := logtest.NewNullLogger()
	b := newShadowBook(ShadowOptions{Grace: 10 * time.Second})
	add := stepOf(t, haproxy.StepAdd, "10.0.0.1:80")
	differing := []comparison{{backend: "svc", service: "svc", plan: haproxy.Plan{add}}, {backend: "fine", service: "fine"}}
	b.take("one", "", differing, start, logger)
	b.take("two", "", differing, start, logger)
	read := func() string {
		t.Helper()
		reg := prometheus.NewRegistry()
		reg.MustRegister(collectorFunc(func(ch chan<- prometheus.Metric) { b.status().collect(ch, start.Add(30*time.Second)) }))
		families, err := reg.Gather()
		require.NoError(t, err)
		var lines []string
		for _, f := range families {
			for _, m := range f.GetMetric() {
				var labels []string
				for _, l := range m.GetLabel() {
					labels = append(labels, fmt.Sprintf("%s=%q", l.GetName(), l.GetValue()))
				}
				name := f.GetName()
				if len(labels) > 0 {
					name += "{" + strings.Join(labels, ",") + "}"
				}
				lines = append(lines, fmt.Sprint(name, " ", m.GetGauge().GetValue()+m.GetCounter().GetValue()))
			}
		}
		return strings.Join(lines, "\n")
	}
	require.Equal(t, `myelin_shadow_agreed_seconds{backend="fine"} 30
myelin_shadow_agreed_seconds{backend="svc"} 30`, read())

	b.take("one", "", differing, start.Add(10*time.Second), logger)
	b.take("two", "", differing, start.Add(10*time.Second), logger)
	b.takeFile("haproxy.cfg", []string{"global: would be gone: user"}, nil, logger)
	require.Equal(t, `myelin_shadow_agreed_seconds{backend="fine"} 30
myelin_shadow_agreed_seconds{backend="svc"} 0
myelin_shadow_differences_total{backend="svc",op="add"} 2
myelin_shadow_file_differences 1
myelin_shadow_would_change{backend="svc",op="add"} 2`, read())
	require.Equal(t, 2, said(hook, "HAProxy does not have what Myelin would have"))

	b.lost("two", errors.New("connection refused"))
	require.NotContains(t, read(), `agreed_seconds`)
	require.NotContains(t, read(), `would_change{backend="svc"`)
	require.False(t, b.status().Agrees)

	b.take("two", "", nil, start.Add(20*time.Second), logger)
	b.take("one", "", []comparison{{backend: "svc", service: "svc"}}, start.Add(20*time.Second), logger)
	b.takeFile("haproxy.cfg", nil, nil, logger)
	require.Equal(t, `myelin_shadow_agreed_seconds{backend="svc"} 10
myelin_shadow_differences_total{backend="svc",op="add"} 1
myelin_shadow_file_differences 0
myelin_shadow_would_change{backend="svc",op="add"} 0`, read())
	require.True(t, b.status().Agrees)
	require.Equal(t, 1, said(hook, "HAProxy has what Myelin would have again"))
}

type collectorFunc func(ch chan<- prometheus.Metric)

func (collectorFunc) Describe(chan<- *prometheus.Desc)      {}
func (f collectorFunc) Collect(ch chan<- prometheus.Metric) { f(ch) }

// inShadow starts the node's agent as a shadow, behind the tap.
func (n *node) inShadow(edit ...func(*config.Agent)) {
	n.t.Helper()
	c := *n.config
	c.StateDir = filepath.Join(n.dir(), "state")
	c.HAProxy.SocketFilePaths = []string{n.tap.path}
	for _, e := range edit {
		e(&c)
	}
	n.shadow = &ShadowOptions{Grace: 200 * time.Millisecond}
	n.startWith(&c, 0, nil)
}

// found waits until the shadow says this of its only backend: the state, then the steps.
func (n *node) found(want ...string) {
	n.t.Helper()
	eventually(n.t, "the shadow finds "+strings.Join(want, ", "), func() error {
		st := n.agent.Status().Shadow
		if len(st.Backends) != 1 {
			return fmt.Errorf("%+v", st)
		}
		b := st.Backends[0]
		if got := append([]string{b.State}, b.Steps...); strings.Join(got, "|") != strings.Join(want, "|") || b.Pending > 0 {
			return fmt.Errorf("found %v, %d pending", got, b.Pending)
		}
		return nil
	})
}

// TestShadow: beside a HAProxy that somebody else keeps by hand, every kind of difference is found and goes again, and
// nothing but questions reaches HAProxy.
func TestShadow(t *testing.T) {
	n := newNode(t)
	text, err := os.ReadFile(n.config.HAProxy.ConfigFilePath)
	require.NoError(t, err)
	n.inShadow()
	n.found(shadowUnknown)
	n.hear("a@127.0.0.1:81")
	n.found(shadowDiffers, "add a_127.0.0.1:81: wanted, not there")
	n.byHand("add server svc/somebody 127.0.0.1:81 id 7")
	n.byHand("set server svc/somebody state ready")
	n.found(shadowAgrees)
	require.Equal(t, map[string]uint64{"add": 1}, n.agent.Status().Shadow.Backends[0].Lasted)

	n.byHand("set server svc/somebody state maint")
	n.found(shadowDiffers, "ready somebody: maint, wanted ready")
	n.byHand("set server svc/somebody state ready")
	n.found(shadowAgrees)
	n.byHand("set server svc/somebody weight 7")
	n.found(shadowDiffers, "weight somebody: weight 7, wanted 1")
	n.byHand("set server svc/somebody weight 1")
	n.found(shadowAgrees)
	n.hear("b@127.0.0.1:82")
	n.found(shadowDiffers, "add b_127.0.0.1:82: wanted, not there", "maint somebody: not wanted")

	// Those who ask are told of the HAProxy that is read, whoever made its servers.
	require.Equal(t, []string{"b_127.0.0.1:82 wanted ready *1, is absent  *-1", "somebody wanted absent *-1, is ready up *1"}, n.told(""))
	n.hear("a@127.0.0.1:81")
	n.found(shadowAgrees)
	require.Equal(t, []string{"somebody wanted ready *1, is ready up *1"}, n.told("127.0.0.1:81"))

	require.Empty(t, n.tap.since(0), "nothing but questions")
	after, err := os.ReadFile(n.config.HAProxy.ConfigFilePath)
	require.NoError(t, err)
	require.Equal(t, string(text), string(after))
	require.Zero(t, n.reloads())
	require.Empty(t, n.agent.current.Load().haproxys)
}

// TestShadowOutlivesReread: what is known of differences outlives a re-read of the configuration.
func TestShadowOutlivesReread(t *testing.T) {
	n := newNode(t)
	n.inShadow()
	n.hear("a@127.0.0.1:81")
	n.found(shadowDiffers, "add a_127.0.0.1:81: wanted, not there")
	before := n.agent.Status().Shadow.Backends[0]
	n.stop()
	g, err := n.agent.newGeneration(n.gen.config, 2, n.gen.viewsByName())
	require.NoError(t, err)
	require.Empty(t, g.haproxys)
	after := n.agent.Status().Shadow.Backends[0]
	require.Equal(t, before, after)
}
