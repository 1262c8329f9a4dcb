package agent

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/myelin-sd/myelin/config"
)

// guarding has the guard on, and state on disk.
func guarding(c *config.Agent) {
	keeping(c)
	c.Services[0].Guard = guarded().Guard
}

// checked has HAProxy check its servers often.
func checked(c *config.Agent) {
	c.Services[0].HAProxy.ServerOptions = "check inter 20ms fall 1 rise 1"
}

// serving starts a web server and returns its registration, as in the words of instances.
func serving(t *testing.T, name string) (word string, stop func()) {
	t.Helper()
	s := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) { fmt.Fprintln(w, name) }))
	t.Cleanup(s.Close)
	return name + "@" + strings.TrimPrefix(s.URL, "http://"), s.Close
}

// holds waits until so many instances are held.
func (n *node) holds(count int) GuardStatus {
	n.t.Helper()
	var st GuardStatus
	eventually(n.t, "held instances", func() error {
		if st = n.service("svc").Guard; st.Held != count {
			return fmt.Errorf("%d are held, not %d", st.Held, count)
		}
		return nil
	})
	return st
}

// TestGuardSeesServersDown: what is held and dead is let go when HAProxy's checks say so, and only that; what is dead
// with all others is not.
func TestGuardSeesServersDown(t *testing.T) {
	n := newNode(t, guarding, checked)
	a, _ := serving(t, "a")
	b, stopB := serving(t, "b")
	c, stopC := serving(t, "c")
	n.start(0)
	n.hear(a, b, c)
	n.has("svc", "a b c")
	n.hear(a)
	n.holds(2)
	n.has("svc", "a b c")
	stopB()
	st := n.holds(1)
	n.has("svc", "a b:maint c")
	require.Equal(t, []string{strings.TrimPrefix(c, "c@")}, st.Holds[0].Instances)
	require.Equal(t, map[string]uint64{decidedHeld: 2, decidedDown: 1}, st.Decided)
	require.Equal(t, 1, n.said("guard: HAProxy sees held instances down"))
	require.Equal(t, 1.0, n.metric("myelin_guard_held"))

	n.hear() // nothing is listed; then the last ones die, which nobody may take for an answer
	n.holds(2)
	stopC()
	n.holds(1)
	n.has("svc", "a b:maint c:maint")
	require.Equal(t, 1, n.service("svc").Active)
}

// TestGuardLastServerDown: a service all of whose held servers are down keeps them.
func TestGuardLastServerDown(t *testing.T) {
	n := newNode(t, guarding, checked)
	a, stop := serving(t, "a")
	n.start(0)
	n.hear(a)
	n.has("svc", "a")
	n.hear()
	n.holds(1)
	stop()
	eventually(t, "the agent has seen it down", func() error {
		if s := n.haproxyStatus().sights["svc"]; len(s.down) != 1 {
			return errors.New("not yet")
		}
		return nil
	})
	from := n.haproxyStatus().Rounds
	eventually(t, "it was looked at again", func() error {
		if n.haproxyStatus().Rounds < from+2 {
			return errors.New("not yet")
		}
		return nil
	})
	n.holds(1)
	n.has("svc", "a")
}

// TestGuardEndsInTime: hold_for ends a hold although nothing happens.
func TestGuardEndsInTime(t *testing.T) {
	n := newNode(t, guarding, func(c *config.Agent) { c.Services[0].Guard.HoldFor = 10 * time.Millisecond })
	n.start(0)
	n.hear("a@127.0.0.1:81", "b@127.0.0.1:82", "c@127.0.0.1:83")
	n.has("svc", "a b c")
	n.hear("a@127.0.0.1:81")
	n.has("svc", "a b:maint c:maint")
	require.Equal(t, 1, n.said("guard: held instances are let go after hold_for"))
	require.Equal(t, uint64(2), n.service("svc").Guard.Decided[decidedExpired])
}

// TestGuardWaitsForRegistrars: a loss right after the session came back is judged when its timeout is over.
func TestGuardWaitsForRegistrars(t *testing.T) {
	n := newNode(t, guarding)
	n.contact = contact{since: time.Now(), timeout: 10 * time.Millisecond}
	n.start(0)
	n.hear("a@127.0.0.1:81", "b@127.0.0.1:82", "c@127.0.0.1:83")
	n.has("svc", "a b c")
	n.hear("a@127.0.0.1:81", "b@127.0.0.1:82")
	n.has("svc", "a b c:maint")
	st := n.service("svc").Guard
	require.Equal(t, map[string]uint64{decidedHeld: 1, decidedBelieved: 1}, st.Decided, "first the one, then the other")
}

// TestGuardRelease: an operator's word counts, for a set that is held against an empty registry too, and for the servers
// of an earlier process that nobody ever listed to this one.
func TestGuardRelease(t *testing.T) {
	n := newNode(t, guarding)
	n.start(0)
	release := func() (Released, error) {
		ctx, cancel := context.WithTimeout(t.Context(), patience)
		defer cancel()
		return n.agent.Release(ctx, "svc")
	}
	n.hear("a@127.0.0.1:81", "b@127.0.0.1:82")
	n.has("svc", "a b")
	_, err := release()
	var not *NotHeldError
	require.ErrorAs(t, err, &not)
	_, err = n.agent.Release(t.Context(), "other")
	var none *NoServiceError
	require.ErrorAs(t, err, &none)

	n.hear()
	n.holds(2)
	r, err := release()
	require.NoError(t, err)
	require.Equal(t, []string{"127.0.0.1:81", "127.0.0.1:82"}, r.Instances)
	n.has("svc", "a:maint b:maint")
	n.hear()
	n.hear("a@127.0.0.1:81")
	n.has("svc", "a b:maint")
	n.stop()

	n.contact = contact{}
	n.start(0)
	n.hear("a@127.0.0.1:81")
	n.has("svc", "a b:maint")
	require.Equal(t, 0, n.service("svc").Guard.Held)
}

// TestGuardOverRestart: a hold is on disk with its set, and a re-read of the files knows it as well.
func TestGuardOverRestart(t *testing.T) {
	n := newNode(t, guarding)
	n.start(0)
	n.hear("a@127.0.0.1:81", "b@127.0.0.1:82", "c@127.0.0.1:83")
	n.has("svc", "a b c")
	n.hear("a@127.0.0.1:81")
	before := n.holds(2)
	n.stop()
	n.start(0)
	after := n.holds(2)
	require.Equal(t, before.Holds[0].Reason, after.Holds[0].Reason)
	require.True(t, before.Holds[0].Since.Equal(after.Holds[0].Since))
	require.True(t, before.Holds[0].Until.Equal(*after.Holds[0].Until))
	n.hear("a@127.0.0.1:81", "b@127.0.0.1:82")
	n.holds(1)
	n.has("svc", "a b c")

	views := n.gen.viewsByName()
	n.stop()
	n.startWith(n.config, 0, views)
	n.holds(1)
	n.hear("a@127.0.0.1:81", "b@127.0.0.1:82", "c@127.0.0.1:83")
	n.holds(0)
	n.has("svc", "a b c")
	for _, l := range n.tap.since(0) {
		require.NotContains(t, l, "state maint")
	}
}
