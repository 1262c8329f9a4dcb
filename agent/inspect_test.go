package agent

import (
	"encoding/json"
	"fmt"
	"net/http"
	"net/url"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/myelin-sd/myelin/config"
	"github.com/myelin-sd/myelin/discovery"
)

// explained asks the agent about an instance of svc, as the command does.
func (n *node) explained(instance string) Explanation {
	n.t.Helper()
	code, body := n.get("/api/v1/services/svc/explain?instance=" + url.QueryEscape(instance))
	require.Equal(n.t, http.StatusOK, code, body)
	var e Evidence
	require.NoError(n.t, json.Unmarshal([]byte(body), &e))
	return Explain(e, time.Now())
}

func (n *node) summed() Summary {
	n.t.Helper()
	code, body := n.get("/api/v1/services/svc/explain")
	require.Equal(n.t, http.StatusOK, code, body)
	var s Summary
	require.NoError(n.t, json.Unmarshal([]byte(body), &s))
	return s
}

// stationText is the text of the first step of that name.
func stationText(x Explanation, name string) string {
	for _, s := range x.Steps {
		if s.Step == name {
			return string(s.State) + " " + s.Text
		}
	}
	return ""
}

// TestEvidenceOfARunningAgent: what the agent gathers leads to the right words, with a real HAProxy.
func TestEvidenceOfARunningAgent(t *testing.T) {
	n := newNode(t, func(c *config.Agent) {
		c.Services[0].Discovery.LabelFilters = []config.LabelFilter{{Label: "zone", Value: "a", Condition: discovery.NotEquals}}
		c.Services[0].Guard = config.Guard{Enabled: true, MaxDropPercent: 40, HoldFor: time.Hour}
		c.Services[0].DefaultServers = []config.DefaultServer{{Host: "127.0.0.1", Port: 99, Name: "static"}}
		c.Services[0].KeepDefaultServers = true
		c.HAProxy.MaxServers = 4
	})
	n.start(0)
	code, _ := n.get("/api/v1/services/other/explain")
	require.Equal(t, http.StatusNotFound, code)
	code, _ = n.get("/api/v1/services/other/explain?instance=127.0.0.1:81")
	require.Equal(t, http.StatusNotFound, code)
	n.connected()
	require.Equal(t, "unknown", string(n.explained("127.0.0.1:81").Steps[0].State), "nothing was heard yet")

	list := instances(t, "a@127.0.0.1:81", "b@127.0.0.1:82", "c@127.0.0.1:83", "z@127.0.0.1:84", "w@127.0.0.1:85", "l@127.0.0.1:86")
	for i := range list {
		list[i].Created = time.Now().Add(time.Duration(i) * time.Second)
	}
	list[3].Labels = map[string]any{"zone": "a"}
	list[5].Leaving = true
	zero := 0
	list[2].Weight = &zero
	n.feeds["svc"] <- discovery.Snapshot{Service: "svc", Instances: list, At: time.Now(), Rejected: []discovery.Rejection{{
		Node: "bad", Reason: discovery.ReasonPort, Detail: `port 70000 of "127.0.0.9" is not from 1 to 65535`,
	}}}
	n.has("svc", "a b c*0 static")

	x := n.explained("127.0.0.1:81")
	require.Equal(t, Yes, x.InRotation, "%+v", x)
	require.Contains(t, stationText(x, stationWeight), "1 of 3 among 3 servers")
	require.Contains(t, n.explained("127.0.0.1:83").Why, "its weight is 0, as registered")
	require.Contains(t, n.explained("127.0.0.1:84").Why, `the label zone must not be "a", and it is "a"`)
	require.Contains(t, n.explained("127.0.0.1:85").Why, "haproxy.max_servers = 4")
	require.Contains(t, n.explained("127.0.0.1:86").Why, "leaving on purpose")
	require.Contains(t, n.explained("127.0.0.1:99").Why, "a server of the agent's configuration")
	require.Contains(t, n.explained("127.0.0.1:80").Why, "nothing in /svc registers it")
	require.Contains(t, n.explained("bad").Why, "port 70000")
	require.Contains(t, n.explained("127.0.0.9:70000").Why, "port 70000")
	require.Contains(t, n.explained("no endpoint at all").Why, "nothing in /svc registers it")

	s := n.summed()
	require.Equal(t, SummaryCounts{Registered: 7, Decoded: 6, Leaving: 1, Passing: 4, InForce: 5, Servers: 4, Ready: 4, Up: 4, InRotation: 3}, s.Counts)
	got := ""
	for _, o := range s.Out {
		got += fmt.Sprintf("%s%s: %s\n", o.Instance, o.Node, o.Why)
	}
	require.Equal(t, "127.0.0.1:83: its weight is 0, as registered.\n"+
		"127.0.0.1:84: it does not pass the label filters: the label zone must not be \"a\", and it is \"a\".\n"+
		"127.0.0.1:85: there are more instances than haproxy.max_servers = 4, and it was registered later than those that are used.\n"+
		"127.0.0.1:86: it is leaving on purpose: its registrar has marked the registration.\n"+
		"bad: its registration bad is not usable: port 70000 of \"127.0.0.9\" is not from 1 to 65535.\n", got)

	n.hearOf("svc", list[0])
	eventually(t, "the guard holds", func() error {
		if x := n.explained("127.0.0.1:82"); x.InRotation != Yes || stationText(x, stationGuard)[:8] != "yes held" {
			return fmt.Errorf("%+v", x)
		}
		return nil
	})
	x = n.explained("127.0.0.1:82")
	require.Contains(t, x.Why, "the agent holds it, because "+heldDrop)
	require.WithinDuration(t, time.Now().Add(time.Hour), *x.NextAt, time.Minute)

	n.haproxy.Stop()
	require.Equal(t, Unknown, n.explained("127.0.0.1:81").InRotation)
	require.Contains(t, n.summed().Notes[len(n.summed().Notes)-1], "does not answer")
}

// TestEvidenceOfElectionAndTwins: with another port in HAProxy, an instance is known by both.
func TestEvidenceOfElectionAndTwins(t *testing.T) {
	n := newNode(t, func(c *config.Agent) {
		c.Services[0].LeaderElection = true
		c.Services[0].BackendPortOverride = 900
	})
	n.start(0)
	list := instances(t, "a@127.0.0.1:81", "b@127.0.0.1:82")
	for i, id := range []int64{7, 5} {
		list[i].ID, list[i].Node = &id, fmt.Sprint("node", id)
	}
	n.hearOf("svc", list...)
	n.has("svc", "b")
	require.Contains(t, n.explained("127.0.0.1:81").Why, "127.0.0.1:900 is the leader")
	x := n.explained("127.0.0.1:82")
	require.Equal(t, Yes, x.InRotation)
	require.Contains(t, stationText(x, stationServer), "port 900 by backend_port_override")
	require.Equal(t, Yes, n.explained("node5").InRotation)
}

// TestEvidenceOfChecks: HAProxy's words are told.
func TestEvidenceOfChecks(t *testing.T) {
	n := newNode(t, func(c *config.Agent) {
		c.Services[0].HAProxy.ServerOptions = "check inter 50ms fall 1"
	})
	n.start(0)
	n.hear("a@127.0.0.1:1")
	eventually(t, "the check fails", func() error {
		if x := n.explained("127.0.0.1:1"); stationText(x, stationCheck) == "" || x.InRotation != No {
			return fmt.Errorf("%+v", x)
		}
		return nil
	})
	require.Regexp(t, `HAProxy's check has failed for \d+(ms|s): Layer4 connection problem \(L4CON\), in \d+ms: Connection refused`, n.explained("127.0.0.1:1").Why)
}

// TestSummaryOfMany: what a whole service is told with grows with its instances, and not with their square, when all of
// them are held, and when the last good set stays though the registry lists nothing. Otherwise this takes minutes.
func TestSummaryOfMany(t *testing.T) {
	const all = 10_000
	v := view{service: serviceNamed("svc"), known: true, seen: true}
	v.service.BackendPortOverride = 900
	for i := range all {
		e, err := discovery.ParseEndpoint(fmt.Sprintf("10.0.%d.%d", i>>8, i&255), 8080)
		require.NoError(t, err)
		v.active = append(v.active, discovery.Instance{Endpoint: e, Node: fmt.Sprint("node", i)})
	}
	for name, held := range map[string]bool{"held": true, "not listed": false} {
		t.Run(name, func(t *testing.T) {
			v := v
			if held {
				for _, in := range v.active {
					v.guard.holds = append(v.guard.holds, hold{instance: in, reason: heldDrop})
				}
			}
			v.active = override(v.active, v.service.BackendPortOverride)
			ins := &inspection{v: v, now: noon()}
			ins.indexView()
			s := ins.summary()
			require.Equal(t, all, s.Counts.InForce)
			require.Equal(t, len(v.guard.holds), s.Counts.Held)
			require.Equal(t, all, len(s.Out)+s.More)
		})
	}
}
