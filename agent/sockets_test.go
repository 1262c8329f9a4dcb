package agent

import (
	"errors"
	"fmt"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/myelin-sd/myelin/haproxy/haproxytest"
)

// TestEachHAProxyByItself: of two HAProxys one refuses, one dies and returns; each is driven, and shown, by itself.
func TestEachHAProxyByItself(t *testing.T) {
	n := newAttached(t, "backend svc")
	first := n.haproxy
	second := haproxytest.New(t, "frontend f\n\tmode http\n\tbind unix@"+haproxytest.TempDir(t)+"/f\nbackend svc\n\tmode http\n\ttimeout server 5s\n\ttimeout connect 1s\n")
	taps := []*tap{n.tap, newTap(t, second.Socket)}
	n.config.HAProxy.SocketFilePaths = []string{first.Socket, second.Socket}
	i := 0
	n.startWith(n.config, 0, nil, func(r *reconciler) { r.socket = taps[i].path; i++ })
	has := func(h *haproxytest.HAProxy, want string) {
		t.Helper()
		n.haproxy = h
		n.has("svc", want)
		n.haproxy = first
	}
	shown := func(ready string, states ...string) {
		t.Helper()
		eventually(t, "the status has "+ready, func() error {
			st := n.agent.Status()
			if got := st.ReadyServers("svc"); got != ready {
				return fmt.Errorf("%q ready", got)
			}
			for i, h := range st.HAProxy {
				state := "connected"
				switch {
				case !h.Connected:
					state = "away"
				case len(h.Failed) > 0:
					state = "refuses"
				}
				if h.Socket != taps[i].path || state != states[i] {
					return fmt.Errorf("%s %s", h.Socket, state)
				}
			}
			return nil
		})
	}
	numbers := func(i, ready int) string {
		return fmt.Sprintf(`myelin_haproxy_servers{backend="svc",socket=%q,state="ready"} %d`, taps[i].path, ready)
	}

	n.hear("a@127.0.0.1:81", "b@127.0.0.1:82")
	has(first, "a b")
	has(second, "a b")
	n.ready()
	shown("2", "connected", "connected")
	require.Contains(t, n.metrics(), numbers(0, 2))
	require.Contains(t, n.metrics(), numbers(1, 2))

	taps[1].on(func(line string) fault {
		if strings.HasPrefix(line, "add server") {
			return fault{reply: "[3]: Permission denied\n\n> "}
		}
		return fault{}
	})
	n.hear("a@127.0.0.1:81", "c@127.0.0.1:83", "d@127.0.0.1:84")
	has(first, "a b:maint c d")
	shown("2 to 3", "connected", "refuses")
	has(second, "a b")
	require.Contains(t, n.metrics(), numbers(0, 3))
	require.Contains(t, n.metrics(), numbers(1, 2))
	require.False(t, n.agent.Status().HAProxy[1].Applied)
	require.True(t, n.agent.Status().HAProxy[0].Applied)
	taps[1].on(nil)
	has(second, "a b:maint c d")
	shown("3", "connected", "connected")

	require.NoError(t, second.Kill())
	n.hear("a@127.0.0.1:81")
	has(first, "a b:maint c:maint d:maint")
	shown("1", "connected", "away")
	require.Contains(t, n.metrics(), numbers(0, 1))
	require.NotContains(t, n.metrics(), fmt.Sprintf(`socket=%q,state`, taps[1].path))
	require.Contains(t, n.metrics(), fmt.Sprintf(`myelin_haproxy_connected{socket=%q} 0`, taps[1].path))
	eventually(t, "only the second is waited for", func() error {
		if w := n.gen.waiting(); len(w) != 1 || !strings.HasPrefix(w[0], "HAProxy at "+taps[1].path) {
			return errors.New(strings.Join(w, "; "))
		}
		return nil
	})
	require.NoError(t, second.Restart())
	has(second, "a")
	n.ready()
	shown("1", "connected", "connected")
}

func TestReadyServers(t *testing.T) {
	at := func(connected bool, ready int) haproxyStatus {
		return haproxyStatus{Connected: connected, Backends: map[string]counts{"svc": {Ready: ready}}}
	}
	for want, all := range map[string][]haproxyStatus{
		"":       {at(false, 3), {Connected: true}},
		"3":      {at(true, 3), at(true, 3), at(false, 1)},
		"0 to 3": {at(true, 3), at(true, 0), at(true, 2)},
	} {
		require.Equal(t, want, Status{HAProxy: all}.ReadyServers("svc"))
	}
	require.Equal(t, "", Status{}.ReadyServers("svc"))
}
