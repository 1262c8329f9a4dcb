package agent

import (
	"fmt"
	"net/http"
	"net/http/httptest"
	"slices"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/myelin-sd/myelin/config"
	"github.com/myelin-sd/myelin/haproxy"
	"github.com/myelin-sd/myelin/haproxy/haproxytest"
)

// TestCutRoundsOfWhatWasDone: what a round leaves for the next one is done in it, also where nothing that is wanted has
// changed since it was confirmed.
func TestCutRoundsOfWhatWasDone(t *testing.T) {
	t.Parallel()
	haproxytest.RequireDynamicServers(t)
	n := newNode(t)
	n.start(0)
	var words []string
	for i := range stepsARound + 100 {
		words = append(words, fmt.Sprintf("s%d@127.%d.%d.1:80", i, 1+i/200, i%200))
	}
	n.hear(words...)
	n.ready()
	state, err := n.state()
	require.NoError(t, err)
	var lines []string
	for i, s := range state["svc"] {
		lines = append(lines, "set server svc/"+s.Name+" state maint")
		if len(lines) == 100 || i == len(state["svc"])-1 {
			n.byHand(strings.Join(lines, ";"))
			lines = nil
		}
	}
	n.tap.once("show info", fault{cut: true}) // has everything looked at
	eventually(t, "all take traffic again", func() error {
		state, err := n.state()
		if err != nil {
			return err
		}
		if c := countServers(state["svc"]); c.Ready != len(words) {
			return fmt.Errorf("%d of %d", c.Ready, len(words))
		}
		return nil
	})
	n.ready()
}

// TestDeletesBesideAGate: a server whose check never passes does not keep the objects of those that left.
func TestDeletesBesideAGate(t *testing.T) {
	t.Parallel()
	haproxytest.RequireDynamicServers(t)
	n := newNode(t, func(c *config.Agent) {
		c.Services[0].HAProxy.ServerOptions = "check inter 100ms"
		c.Services[0].HAProxy.HealthGate = true
	})
	good := httptest.NewServer(http.HandlerFunc(func(http.ResponseWriter, *http.Request) {}))
	defer good.Close()
	other := httptest.NewServer(http.HandlerFunc(func(http.ResponseWriter, *http.Request) {}))
	defer other.Close()
	dead := fmt.Sprintf("dead@127.0.0.1:%d", haproxytest.FreePort(t))
	a, b := "a@"+good.Listener.Addr().String(), "b@"+other.Listener.Addr().String()
	n.start(50 * time.Millisecond)
	n.hear(a, b, dead)
	n.serves("svc", "a b dead", "a b")
	n.ready()
	n.hear(a, dead)
	n.serves("svc", "a dead", "a")
}

// TestOptionsOfAHalfMadeServer: an add of which the last command failed has made an object all the same, and what it
// was made with is remembered.
func TestOptionsOfAHalfMadeServer(t *testing.T) {
	t.Parallel()
	haproxytest.RequireDynamicServers(t)
	for name, f := range map[string]fault{
		"refused": {reply: "[3]: Internal error.\n\n> "},
		"cut":     {cut: true},
		"lost":    {lost: true},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			n := newNode(t)
			n.start(0)
			n.tap.once("set server svc/a_127.0.0.1:81 state ready", f)
			n.hear("a@127.0.0.1:81")
			n.has("svc", "a")
			n.ready()
			n.hearOf("svc", asking(t, "a@127.0.0.1:81", "backup"))
			n.has("svc", "a-g2 a:maint")
		})
	}
}

// TestFoundAtOnce: where somebody tells that HAProxy is there, it is not tried at the end of a pause.
func TestFoundAtOnce(t *testing.T) {
	t.Parallel()
	haproxytest.RequireDynamicServers(t)
	n := newNode(t)
	found := make(chan struct{}, 1)
	n.startWith(n.config, time.Hour, nil, func(r *reconciler) { r.suspect = found })
	n.hear("a@127.0.0.1:81")
	n.has("svc", "a")
	n.ready()
	n.tap.on(func(string) fault { return fault{cut: true} })
	n.tap.tried(t, 12) // by now there is up to a second between two tries
	tries := func() int {
		n.tap.mu.Lock()
		defer n.tap.mu.Unlock()
		return n.tap.dials
	}
	const many = 200 // with the pauses it would take minutes
	from := tries()
	eventually(t, "each sign leads to a try", func() error {
		select {
		case found <- struct{}{}:
		default:
		}
		if d := tries() - from; d < many {
			return fmt.Errorf("%d tries", d)
		}
		return nil
	})
}

// TestDrainOnce: a server that has drained does not drain once more when HAProxy refuses the next step.
func TestDrainOnce(t *testing.T) {
	t.Parallel()
	haproxytest.RequireDynamicServers(t)
	const refusals, drain = 10, 2500 * time.Millisecond // together more than patience
	n := newNode(t, func(c *config.Agent) { c.Services[0].DrainTimeout = drain })
	n.start(0)
	n.hear("a@127.0.0.1:81", "b@127.0.0.1:82")
	n.has("svc", "a b")
	n.ready()
	seen := 0
	n.tap.on(func(line string) fault {
		if seen < refusals && strings.HasSuffix(line, " state maint") {
			seen++
			return fault{reply: "[3]: Internal error.\n\n> "}
		}
		return fault{}
	})
	n.hear("a@127.0.0.1:81")
	n.has("svc", "a b:drain")
	n.has("svc", "a b:maint")
	n.ready()
}

// TestWhatWasDoneBesideSlots: a connection that fails while the new address of a slot is waited for costs other backends
// nothing of what is known of them.
func TestWhatWasDoneBesideSlots(t *testing.T) {
	t.Parallel()
	n := newNode(t, func(c *config.Agent) {
		c.Services[0].HAProxy.Backend = []string{"balance static-rr"}
		c.Services = append(c.Services, serviceNamed("other"))
	})
	n.needsAddServer()
	n.start(0)
	n.hear("a@127.0.0.1:81")
	n.hearOf("other")
	n.ready()
	n.tap.on(func(string) fault { return fault{cut: true} })
	n.hear("a@127.0.0.1:81", "b@127.0.0.1:82")
	n.hearOf("other", instances(t, "x@127.0.0.1:91")...)
	eventually(t, "both are wanted", func() error {
		w := n.gen.wanted.Load()
		if len(w.backends["svc"].servers) != 2 || len(w.backends["other"].servers) != 1 {
			return fmt.Errorf("not yet")
		}
		return nil
	})
	moved, cut := false, false
	n.tap.on(func(line string) fault {
		moved = moved || strings.Contains(line, " addr 127.0.0.1 port 82")
		if moved && !cut && strings.HasPrefix(line, "show servers state") {
			cut = true
			return fault{cut: true}
		}
		return fault{}
	})
	n.has("other", "x")
	n.ready()
	n.tap.mu.Lock()
	require.True(t, cut)
	n.tap.mu.Unlock()
	n.hearOf("other", asking(t, "x@127.0.0.1:91", "backup"))
	n.has("other", "x-g2 x:maint")
}

// TestGateOfSlowChecks: a check that has passed counts also while the next one is under way, which with slow checks is
// most of the time.
func TestGateOfSlowChecks(t *testing.T) {
	t.Parallel()
	haproxytest.RequireDynamicServers(t)
	n := newNode(t, func(c *config.Agent) {
		c.Services[0].HAProxy.ServerOptions = "check inter 1h fastinter 1ms downinter 200ms rise 2"
		c.Services[0].HAProxy.HealthGate = true
		c.Services[0].HAProxy.Listen = []string{"mode http", "option httpchk GET /health"}
	})
	if haproxytest.AtLeast(t, 3, 1) {
		t.Skip("HAProxy waits by itself")
	}
	var checks atomic.Int32
	over := make(chan struct{})
	slow := httptest.NewServer(http.HandlerFunc(func(http.ResponseWriter, *http.Request) {
		if checks.Add(1) > 1 { // the first passes, the second lasts
			<-over
		}
	}))
	defer slow.Close()
	defer close(over)
	n.start(0)
	n.hear("a@" + slow.Listener.Addr().String())
	n.serves("svc", "a", "a")
}

// TestShare: a round does small changes whole, and the beginning of large ones, in the plan's order.
func TestShare(t *testing.T) {
	var plan haproxy.Plan
	steps := func(op haproxy.Action, backend string, n int) {
		for range n {
			plan = append(plan, haproxy.Step{Op: op, Backend: backend})
		}
	}
	steps(haproxy.StepAdd, "large", stepsARound)
	steps(haproxy.StepAdd, "larger", stepsARound)
	steps(haproxy.StepAdd, "small", 2)
	steps(haproxy.StepMaint, "large", 10)
	steps(haproxy.StepMaint, "small", 1)
	r := &reconciler{}
	got := r.share(plan)
	require.Len(t, got, stepsARound)
	require.Equal(t, haproxy.Plan(slices.Concat(plan[:stepsARound-3], plan[2*stepsARound:2*stepsARound+2], plan[len(plan)-1:])), got)
	require.Equal(t, map[string]bool{"large": true, "larger": true}, r.cut)
	require.Len(t, r.share(plan[:stepsARound]), stepsARound)
	require.Empty(t, r.cut)
	r.bad = true
	require.Equal(t, plan, r.share(plan), "nothing is left for later after a refusal")
}
