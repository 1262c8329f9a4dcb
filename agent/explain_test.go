package agent

import (
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/rogpeppe/go-internal/txtar"
	"github.com/stretchr/testify/require"

	"github.com/myelin-sd/myelin/config"
	"github.com/myelin-sd/myelin/discovery"
)

// noon is the time at which the situations are looked at.
func noon() time.Time { return time.Date(2026, 1, 2, 12, 0, 0, 0, time.UTC) }

func before(d time.Duration) time.Time { return noon().Add(-d) }

func after(d time.Duration) *time.Time {
	t := noon().Add(d)
	return &t
}

// registered is an instance as everybody sees it when all is well.
func registered() Evidence {
	ten := 10
	node := NodeEvidence{
		Node: "web-1_0000000007", Instance: "10.0.0.5:8080", Name: "web-1", Weight: &ten, Labels: map[string]any{"zone": "osl-1"},
		Session: "0x10000a1", Created: before(3 * time.Hour), Modified: before(3 * time.Hour),
	}
	read := node
	read.Data, read.Bytes = `{"host":"10.0.0.5","port":8080,"name":"web-1","weight":10,"labels":{"zone":"osl-1"}}`, 85
	return Evidence{
		Service: "user-api", Instance: "10.0.0.5:8080",
		Registry: &RegistryEvidence{From: "zookeeper", Where: "zk1:2181", At: noon(), Path: "/services/user-api", Listed: 4, Nodes: []NodeEvidence{read}},
		Agent: &AgentEvidence{
			Method: "zookeeper", Path: "/services/user-api", Ensemble: "zk1:2181", Connected: true, Since: before(26 * time.Hour),
			Heard: true, HeardAt: before(3 * time.Hour), Known: true, InForce: 4,
			Nodes: []NodeEvidence{node}, Active: true, Used: node.Node, Backend: "user-api",
			HAProxy: []HAProxyEvidence{{
				Socket: "/run/haproxy.sock", Connected: true, Since: before(26 * time.Hour), Weights: 40, Serving: 4,
				Server: ServerStatus{
					Socket: "/run/haproxy.sock", Server: "web-1_10.0.0.5:8080", Name: "web-1_10.0.0.5:8080", Address: "10.0.0.5:8080",
					Wanted: "ready", WeightWanted: 10, Admin: "ready", Operational: "up", Weight: 10, Sessions: 3, Checked: true,
					Check: "Layer7 check passed (L7OK), code 200, in 1ms", Changed: ptr(before(3 * time.Hour)),
				},
			}},
		},
	}
}

func ptr[T any](v T) *T { return &v }

// with changes the usual evidence.
func with(edit ...func(e *Evidence, a *AgentEvidence, s *ServerStatus)) Evidence {
	e := registered()
	for _, f := range edit {
		f(&e, e.Agent, &e.Agent.HAProxy[0].Server)
	}
	return e
}

type edit = func(e *Evidence, a *AgentEvidence, s *ServerStatus)

// The edits that situations are made of.

// nowhere is that neither the registry nor the agent knows of a registration.
func nowhere(e *Evidence, a *AgentEvidence, _ *ServerStatus) {
	e.Registry.Nodes, e.Registry.Listed = nil, 3
	a.Nodes, a.Active, a.Used, a.InForce = nil, false, "", 3
}

// unserved is that HAProxy does not have it, and is not to.
func unserved(_ *Evidence, _ *AgentEvidence, s *ServerStatus) {
	*s = ServerStatus{Socket: s.Socket, Wanted: "absent", WeightWanted: -1, Admin: "absent", Weight: -1, Sessions: -1, Queue: -1}
}

// missing is that HAProxy does not have it, although it is to.
func lacking(_ *Evidence, _ *AgentEvidence, s *ServerStatus) {
	s.Admin, s.Operational, s.Weight, s.Sessions, s.Queue, s.Check, s.Changed = "absent", "", -1, -1, -1, "", nil
}

// out is that it is registered, and neither in force nor in HAProxy.
func out(e *Evidence, a *AgentEvidence, s *ServerStatus) {
	a.Active, a.Used = false, ""
	unserved(e, a, s)
}

// inShadow is that the agent only looks.
func inShadow(_ *Evidence, a *AgentEvidence, _ *ServerStatus) {
	a.Shadow, a.HAProxy[0].Pending = true, true
}

// inState is that HAProxy has it in a state.
func inState(admin string) edit {
	return func(_ *Evidence, _ *AgentEvidence, s *ServerStatus) {
		s.Admin = admin
		if admin == "maint" {
			s.Operational, s.Checked, s.Check = "down", false, ""
		}
	}
}

// rejectedFor is that the registration does not decode.
func rejectedFor(reason, detail, data string) edit {
	return func(e *Evidence, a *AgentEvidence, s *ServerStatus) {
		n := NodeEvidence{Node: "web-1_0000000007", Reason: reason, Detail: detail, Session: "0x10000a1", Created: before(time.Minute)}
		a.Nodes = []NodeEvidence{n}
		n.Data, n.Bytes = data, len(data)
		e.Registry.Nodes = []NodeEvidence{n}
		out(e, a, s)
	}
}

func overriddenBy(o OverrideEvidence) edit {
	return func(_ *Evidence, a *AgentEvidence, s *ServerStatus) {
		o.Created = before(10 * time.Minute)
		a.Override = &o
		s.Override = o.Node
	}
}

// noZooKeeper is that the ensemble is away for five minutes.
func noZooKeeper(e *Evidence, a *AgentEvidence, _ *ServerStatus) {
	e.Registry, e.RegistryError = nil, "nothing heard within 2 s"
	a.Connected, a.Since, a.LastError = false, before(5*time.Minute), "connection refused"
}

// situations are, by name, what an operator may meet.
func situations() []struct {
	name     string
	evidence Evidence
} {
	type s = struct {
		name     string
		evidence Evidence
	}
	held := func(until *time.Time, judged bool, reason string) edit {
		return func(e *Evidence, a *AgentEvidence, st *ServerStatus) {
			nowhere(e, a, st)
			a.Active, a.InForce = true, 4
			a.Held = &HoldStatus{Reason: reason, Since: before(4 * time.Minute), Until: until, Judged: judged, Instances: []string{"10.0.0.5:8080"}}
		}
	}
	return []s{
		{"in rotation", with()},
		{"in rotation, not checked", with(func(_ *Evidence, _ *AgentEvidence, st *ServerStatus) { st.Checked, st.Check = false, "" })},
		{"never registered", with(nowhere, unserved)},
		{"never registered, nearly", with(nowhere, unserved, func(e *Evidence, _ *AgentEvidence, _ *ServerStatus) { e.Registry.Near = []string{"10.0.0.5:8081"} })},
		{"the path does not exist", with(nowhere, unserved, func(e *Evidence, a *AgentEvidence, _ *ServerStatus) {
			e.Registry.Missing, e.Registry.Listed, a.Missing = true, 0, true
		})},
		{"registered in another path", with(nowhere, unserved, func(e *Evidence, _ *AgentEvidence, _ *ServerStatus) {
			e.Registry.Elsewhere = []string{"/services/user-api-v2"}
		})},
		{"undecodable", with(rejectedFor("undecodable", `not JSON: "hello"`, "hello"))},
		{"port out of range", with(rejectedFor("port", "port 70000 is not from 1 to 65535", `{"host":"10.0.0.5","port":70000}`))},
		{"hostile registration", with(rejectedFor("host", "host \"a\nb\" is not legal", `"\x1b[2J"`), func(e *Evidence, _ *AgentEvidence, _ *ServerStatus) {
			e.Registry.Nodes[0].Node = "x\x1b[2J"
		})},
		{"filtered by a label", with(out, func(_ *Evidence, a *AgentEvidence, _ *ServerStatus) {
			a.Filtered = `the label zone must be "osl-2", and it is "osl-1"`
		})},
		{"not the leader", with(out, func(_ *Evidence, a *AgentEvidence, _ *ServerStatus) { a.Leader, a.InForce = "10.0.0.4:8080", 1 })},
		{"registered twice", with(func(e *Evidence, a *AgentEvidence, _ *ServerStatus) {
			twin := a.Nodes[0]
			twin.Node, twin.Created = "web-1_0000000009", before(time.Minute)
			a.Nodes = append(a.Nodes, twin)
			e.Registry.Nodes = append(e.Registry.Nodes, twin)
		})},
		{"beyond max_servers", with(unserved, func(_ *Evidence, a *AgentEvidence, _ *ServerStatus) { a.Most, a.InForce = 3, 4 })},
		{"options refused", with(unserved, func(_ *Evidence, a *AgentEvidence, _ *ServerStatus) {
			a.Refused = "haproxy_server_options: not allowed from the registry: agent-addr; see haproxy.registry_options"
		})},
		{"some options ignored", with(func(_ *Evidence, a *AgentEvidence, _ *ServerStatus) {
			a.Curtailed = "haproxy_server_options: not allowed from the registry: maxconn; see haproxy.registry_options"
		})},
		{"refused by HAProxy", with(unserved, func(_ *Evidence, a *AgentEvidence, _ *ServerStatus) {
			a.Quarantine = "'proto' :  unknown MUX protocol 'h3x'"
		})},
		{"its name does not resolve", with(unserved, func(e *Evidence, a *AgentEvidence, _ *ServerStatus) {
			e.Instance = "web-1.example.com:8080"
			e.Registry.Nodes[0].Instance, a.Nodes[0].Instance = e.Instance, e.Instance
			a.Unresolved = &Unresolved{Name: "web-1.example.com", Since: before(2 * time.Minute), Error: "no such host"}
			a.Refused = "the name web-1.example.com does not resolve"
		})},
		{"its name does not resolve any more", with(func(_ *Evidence, a *AgentEvidence, _ *ServerStatus) {
			a.Unresolved = &Unresolved{Name: "web-1.example.com", Since: before(2 * time.Minute), Error: "no such host", Address: "10.0.0.5"}
		})},
		{"held by the guard", with(held(after(56*time.Minute), true, heldDrop))},
		{"held, to be judged", with(held(after(40*time.Second), false, heldWaits))},
		{"held against an empty registry", with(held(nil, true, heldEmpty), func(_ *Evidence, a *AgentEvidence, _ *ServerStatus) { a.SetHeld = heldEmpty })},
		{"leaving", with(out, inState("maint"), func(e *Evidence, a *AgentEvidence, st *ServerStatus) {
			e.Registry.Nodes[0].Leaving, a.Nodes[0].Leaving = true, true
			st.Server, st.Sessions = "web-1_10.0.0.5:8080", 2
		})},
		{"it has left", with(nowhere, inState("maint"), func(_ *Evidence, _ *AgentEvidence, st *ServerStatus) {
			st.Wanted, st.WeightWanted, st.Name = "absent", -1, ""
		})},
		{"drained by an operator", with(inState("drain"), overriddenBy(OverrideEvidence{
			Node: "user-api,10.0.0.5,8080", Target: "user-api 10.0.0.5:8080", Action: "drain", Author: "alice@ops-1", Reason: "disk is full", Until: after(25 * time.Minute),
		}), func(_ *Evidence, _ *AgentEvidence, st *ServerStatus) { st.Wanted = "drain" })},
		{"the whole service in maintenance", with(inState("maint"), overriddenBy(OverrideEvidence{
			Node: "user-api,*", Target: "user-api", Action: "maint", Author: "bob", Reason: "migration", End: "myelin enable user-api --all",
		}), func(_ *Evidence, _ *AgentEvidence, st *ServerStatus) { st.Wanted = "maint" })},
		{"enabled against a wider override", with(overriddenBy(OverrideEvidence{Node: "user-api,10.0.0.5,8080", Target: "user-api 10.0.0.5:8080", Action: "enable", Author: "alice"}))},
		{"weighed by an operator", with(overriddenBy(OverrideEvidence{
			Node: "user-api,10.0.0.5,8080", Target: "user-api 10.0.0.5:8080", Action: "weight", Weight: "50%", Author: "alice", Until: after(time.Hour),
		}), func(_ *Evidence, a *AgentEvidence, st *ServerStatus) {
			st.Weight, st.WeightWanted = 5, 5
			a.HAProxy[0].Weights = 35
		})},
		{"drained, and HAProxy is not told yet", with(overriddenBy(OverrideEvidence{Node: "user-api,10.0.0.5,8080", Action: "drain", Author: "alice"}),
			func(_ *Evidence, a *AgentEvidence, st *ServerStatus) { st.Wanted, a.HAProxy[0].Pending = "drain", true })},
		{"weight 0", with(func(_ *Evidence, a *AgentEvidence, st *ServerStatus) {
			st.Weight, st.WeightWanted = 0, 0
			a.HAProxy[0].Weights, a.HAProxy[0].Serving = 30, 3
		})},
		{"weight 0 by hand", with(func(_ *Evidence, _ *AgentEvidence, st *ServerStatus) {
			st.Weight, st.Foreign = 0, "weight 0, was 10"
		})},
		{"put into maintenance by hand", with(inState("maint"), func(_ *Evidence, a *AgentEvidence, st *ServerStatus) {
			st.Foreign = "state maint, was ready; it stays so until 2026-01-02T12:57:00Z"
			a.HAProxy[0].ManualUntil = after(57 * time.Minute)
		})},
		{"put into maintenance by hand a moment ago", with(inState("maint"))},
		{"to be ready again, and HAProxy is not told yet", with(inState("maint"), func(_ *Evidence, a *AgentEvidence, _ *ServerStatus) { a.HAProxy[0].Pending = true })},
		{"HAProxy's check fails", with(func(_ *Evidence, _ *AgentEvidence, st *ServerStatus) {
			st.Operational, st.Check, st.Changed = "down", "Layer7 wrong status (L7STS), code 503, in 2ms: Service Unavailable", ptr(before(45*time.Second))
		})},
		{"it answers checks with text of its own", with(func(_ *Evidence, _ *AgentEvidence, st *ServerStatus) {
			st.Operational, st.Check = "down", "Layer7 wrong status (L7STS), in 2ms: x\x1b[2J\nmyelin: all is well"
		})},
		{"a shadow finds it in rotation", with(inShadow)},
		{"a shadow does not find it in HAProxy", with(lacking, inShadow)},
		{"a shadow finds it in maintenance", with(inState("maint"), inShadow)},
		{"health gate not passed", with(inState("maint"), func(_ *Evidence, a *AgentEvidence, st *ServerStatus) { a.Gate, st.Check = true, "" })},
		{"a reload is due", with(lacking, func(_ *Evidence, a *AgentEvidence, _ *ServerStatus) {
			a.NeedsReload = "its 8 slots are used up"
		})},
		{"refused for now", with(lacking, func(_ *Evidence, a *AgentEvidence, _ *ServerStatus) {
			a.HAProxy[0].Failed = "add user-api/web-1_10.0.0.5:8080: permission denied"
		})},
		{"not added yet", with(lacking, func(_ *Evidence, a *AgentEvidence, _ *ServerStatus) { a.HAProxy[0].Pending = true })},
		{"HAProxy has no such backend", with(lacking, func(_ *Evidence, a *AgentEvidence, _ *ServerStatus) { a.HAProxy[0].NoBackend = true })},
		{"HAProxy is away", with(lacking, inState("unknown"), func(_ *Evidence, a *AgentEvidence, st *ServerStatus) {
			st.Error = "connect to HAProxy: connection refused"
			a.HAProxy[0].Connected, a.HAProxy[0].Since = false, before(90*time.Second)
		})},
		{"one of two HAProxys is behind", with(func(_ *Evidence, a *AgentEvidence, _ *ServerStatus) {
			h := a.HAProxy[0]
			h.Socket, h.Server.Socket = "/run/haproxy2.sock", "/run/haproxy2.sock"
			h.Server.Operational, h.Server.Check = "down", "Layer4 timeout (L4TOUT), in 2000ms"
			a.HAProxy = append(a.HAProxy, h)
		})},
		{"one of two HAProxys is away, the other one sees it down", with(func(_ *Evidence, a *AgentEvidence, _ *ServerStatus) {
			h := a.HAProxy[0]
			h.Socket, h.Server.Socket = "/run/haproxy2.sock", "/run/haproxy2.sock"
			h.Server.Operational, h.Server.Check = "down", "Layer4 timeout (L4TOUT), in 2000ms"
			a.HAProxy = append(a.HAProxy, h)
			a.HAProxy[0].Server.Admin, a.HAProxy[0].Server.Error = "unknown", "connect to HAProxy: connection refused"
			a.HAProxy[0].Connected, a.HAProxy[0].Since = false, before(90*time.Second)
		})},
		{"ZooKeeper is away", with(noZooKeeper)},
		{"registered since the agent lost ZooKeeper", with(out, func(_ *Evidence, a *AgentEvidence, _ *ServerStatus) {
			a.Nodes, a.Connected, a.Since, a.LastError = nil, false, before(5*time.Minute), "connection refused"
		})},
		{"gone since the agent lost ZooKeeper", with(func(e *Evidence, a *AgentEvidence, _ *ServerStatus) {
			e.Registry.Nodes = nil
			a.Connected, a.Since = false, before(5*time.Minute)
		})},
		{"from disk", with(noZooKeeper, func(_ *Evidence, a *AgentEvidence, _ *ServerStatus) {
			a.Heard, a.FromDisk = false, ptr(before(7*time.Minute))
		})},
		{"overrides cannot be read", with(func(_ *Evidence, a *AgentEvidence, _ *ServerStatus) {
			a.Unheard = "overrides at /myelin/overrides: nothing heard from the registry yet; there were none 5m0s ago"
		})},
		{"nothing heard yet", with(noZooKeeper, unserved, func(_ *Evidence, a *AgentEvidence, st *ServerStatus) {
			a.Heard, a.Known, a.Active, a.Nodes, a.InForce = false, false, false, nil, 0
			st.Wanted = "unknown"
		})},
		{"a server of the configuration", with(nowhere, func(_ *Evidence, a *AgentEvidence, _ *ServerStatus) { a.Static, a.Active, a.InForce = true, true, 1 })},
		{"not for HAProxy", with(func(_ *Evidence, a *AgentEvidence, _ *ServerStatus) {
			a.HAProxy, a.NoHAProxy = nil, "the service is not for HAProxy (haproxy.disabled)"
		})},
		{"the agent has no such service", with(func(e *Evidence, _ *AgentEvidence, _ *ServerStatus) {
			e.Agent, e.NoService = nil, true
		})},
		{"no agent, not registered", with(nowhere, func(e *Evidence, _ *AgentEvidence, _ *ServerStatus) {
			e.Agent, e.AgentError = nil, "connection refused"
		})},
		{"neither ZooKeeper nor an agent", Evidence{Service: "user-api", Instance: "10.0.0.5:8080", RegistryError: "nothing heard within 2 s", AgentError: "connection refused"}},
		{"only the disk", func() Evidence {
			e := registered()
			e.Agent, e.AgentError = nil, "connection refused"
			e.Registry.From, e.Registry.At = "disk", before(2*time.Hour)
			e.Registry.Nodes[0].Data, e.Registry.Nodes[0].Bytes = "", 0
			return e
		}()},
	}
}

// TestExplanations holds every situation against the words in testdata/explain.txtar; -update writes them.
func TestExplanations(t *testing.T) {
	path := filepath.Join("testdata", "explain.txtar")
	var got txtar.Archive
	for _, s := range situations() {
		x := Explain(s.evidence, noon())
		var b strings.Builder
		for _, st := range x.Steps {
			fmt.Fprintf(&b, "%-8s  %-7s  %s\n", st.Step, st.State, st.Text)
		}
		fmt.Fprintf(&b, "\nin rotation: %s\n%s\n%s\n", x.InRotation, x.Why, x.Next)
		if x.NextAt != nil {
			fmt.Fprintf(&b, "at %s\n", x.NextAt.Format(time.RFC3339))
		}
		got.Files = append(got.Files, txtar.File{Name: s.name, Data: []byte(b.String() + "\n")})
		for _, r := range b.String() {
			require.True(t, r == '\n' || r >= ' ' && r <= '~', "%s: %q is not for a terminal", s.name, r)
		}
	}
	if *update {
		require.NoError(t, os.WriteFile(path, txtar.Format(&got), 0o644))
	}
	want, err := txtar.ParseFile(path)
	require.NoError(t, err)
	require.Equal(t, len(want.Files), len(got.Files), "situations")
	for i, f := range got.Files {
		require.Equal(t, want.Files[i].Name, f.Name)
		require.Equal(t, string(want.Files[i].Data), string(f.Data), f.Name)
	}
}

// TestFailedFilterIsNamed: what a filter wants and what the label is differ in a way that can be seen.
func TestFailedFilterIsNamed(t *testing.T) {
	v := view{service: serviceNamed("svc")}
	v.service.Discovery.LabelFilters = append(v.service.Discovery.LabelFilters,
		config.LabelFilter{Label: "zone", Value: "a", Condition: discovery.Equals}, config.LabelFilter{Label: "tier", Value: "1", Condition: discovery.NotEquals})
	for want, labels := range map[string]map[string]any{
		`the label zone must be "a", and it has none`:     {},
		`the label zone must be "a", and it is "b"`:       {"zone": "b"},
		`the label zone must be "a", and it is true`:      {"zone": true},
		`the label tier must not be "1", and it is "1"`:   {"zone": "a", "tier": "1"},
		`the label zone must be "a", and it is null`:      {"zone": nil},
		`the label zone must be "a", and it is "\x1b[2J"`: {"zone": "\x1b[2J"},
	} {
		require.Equal(t, want, failedFilter(discovery.Instance{Labels: labels}, v))
	}
}

func TestMentionsInstance(t *testing.T) {
	for _, c := range []struct {
		instance, node, text string
		want                 bool
	}{
		{"web-1_7", "web-1_7", "", true},
		{"web-1_7", "web-1_8", "web-1_7", false},
		{"10.0.0.5:70000", "web", `{"host":"10.0.0.5","port":70000}`, true},
		{"10.0.0.5:8080", "web", `{"host":"10.0.0.5","port":70000}`, false},
		{"10.0.0.5:8080", "web", `{"host":"10.0.0.6","port":8080}`, false},
		{"[::1]:8080", "web", `{"host":"::1","port":8080`, true},
		{":", "web", "", false},
	} {
		require.Equal(t, c.want, MentionsInstance(c.instance, c.node, c.text), "%+v", c)
	}
}
