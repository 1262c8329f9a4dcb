package agent

import (
	"encoding/json"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/myelin-sd/myelin/config"
	"github.com/myelin-sd/myelin/discovery"
	"github.com/myelin-sd/myelin/haproxy"
)

// synapseState is a state file as Synapse leaves it, with what may be odd in one.
const synapseState = `{
  "svc": {
    "a_127.0.0.1:81": {"timestamp": %[1]d, "haproxy_server_id": 3, "name": "a", "host": "127.0.0.1", "port": 81, "id": 17,
      "weight": null, "haproxy_server_options": null, "labels": null},
    "gone_127.0.0.1:82": {"timestamp": %[1]d.5, "haproxy_server_id": 4, "name": "gone", "host": "127.0.0.1", "port": "82", "weight": "x"},
    "old_127.0.0.1:83": {"timestamp": %[2]d, "haproxy_server_id": 5, "name": "old", "host": "127.0.0.1", "port": 83},
    "odd": 5,
    "watcher_config_for_generator": {"port": 3213}
  },
  "another": {"z_127.0.0.1:99": {"timestamp": %[1]d, "haproxy_server_id": 1, "name": "z", "host": "127.0.0.1", "port": 99}},
  "forgotten": {"y_127.0.0.1:98": {"timestamp": %[2]d, "haproxy_server_id": 1, "name": "y", "host": "127.0.0.1", "port": 98}}
}`

// stateWritten reads the state file as a program that knows Synapse's would.
func (n *node) stateWritten() (map[string]map[string]map[string]any, error) {
	text, err := os.ReadFile(n.config.HAProxy.StateFilePath)
	if err != nil {
		return nil, err
	}
	var out map[string]map[string]map[string]any
	return out, json.Unmarshal(text, &out)
}

func withState(text string) func(*config.Agent) {
	return func(c *config.Agent) {
		path := filepath.Join(filepath.Dir(c.HAProxy.ConfigFilePath), "state.json")
		c.HAProxy.StateFilePath, c.HAProxy.StateFileTTL = path, time.Hour
		if text != "" {
			_ = os.WriteFile(path, []byte(text), 0o644) // a file that is missing fails the test later
		}
	}
}

// TestStateFile: what is in force is in it with the ids that HAProxy has; Synapse's ids are kept, in HAProxy and in its
// file too; departed servers stay for the TTL.
func TestStateFile(t *testing.T) {
	now := time.Now()
	n := newNode(t, withState(fmt.Sprintf(synapseState, now.Unix()-60, now.Unix()-7200)))
	n.start(0)
	a, b := instances(t, "a@127.0.0.1:81")[0], asking(t, "b@127.0.0.1:84,5", "maxconn 3")
	b.Labels = map[string]any{"az": "<here>"}
	n.hearOf("svc", a, b)
	n.has("svc", "a b*5")
	var state map[string]map[string]map[string]any
	eventually(t, "the state file has b", func() (err error) {
		if state, err = n.stateWritten(); err == nil && state["svc"]["b_127.0.0.1:84"] == nil {
			err = fmt.Errorf("only %v", state["svc"])
		}
		return err
	})
	live, err := n.state()
	require.NoError(t, err)
	ids := map[string]int{}
	for _, s := range live["svc"] {
		ids[s.Name] = s.ID
	}
	require.Equal(t, 3, ids["a_127.0.0.1:81"], "the state file's id is HAProxy's")
	svc := state["svc"]
	require.EqualValues(t, 3, svc["a_127.0.0.1:81"]["haproxy_server_id"])
	require.EqualValues(t, ids["b_127.0.0.1:84"], svc["b_127.0.0.1:84"]["haproxy_server_id"])
	require.InDelta(t, now.Unix(), svc["b_127.0.0.1:84"]["timestamp"], 60)
	delete(svc["b_127.0.0.1:84"], "timestamp")
	delete(svc["b_127.0.0.1:84"], "haproxy_server_id")
	require.Equal(t, map[string]any{
		"name": "b", "host": "127.0.0.1", "port": 84.0, "id": nil, "weight": 5.0, "haproxy_server_options": "maxconn 3",
		"labels": map[string]any{"az": "<here>"},
	}, svc["b_127.0.0.1:84"], "nulls included")
	require.Contains(t, svc, "gone_127.0.0.1:82", "it left less than the TTL ago")
	require.EqualValues(t, now.Unix()-60, svc["gone_127.0.0.1:82"]["timestamp"])
	require.NotContains(t, svc, "old_127.0.0.1:83")
	require.NotContains(t, svc, "odd")
	require.Contains(t, svc, generatorConfig)
	require.Contains(t, state, "another", "of a service that is not configured")
	require.NotContains(t, state, "forgotten")
	n.fileHas("svc", "a b*5")
	text, err := os.ReadFile(n.config.HAProxy.ConfigFilePath)
	require.NoError(t, err)
	require.Contains(t, string(text), "server a_127.0.0.1:81 127.0.0.1:81 id 3 ", "and the file's")
	info, err := os.Stat(n.config.HAProxy.StateFilePath)
	require.NoError(t, err)
	require.EqualValues(t, 0o644, info.Mode().Perm())

	// A start without haproxy.cfg: the state file alone has the ids.
	n.hearOf("svc", a)
	n.has("svc", "a b:maint*5")
	n.stop()
	state, err = n.stateWritten()
	require.NoError(t, err)
	require.Contains(t, state["svc"], "b_127.0.0.1:84", "written once more at the end")
	n.writeFile(fileOf(n.config).Render(nil))
	require.NoError(t, n.haproxy.Restart())
	n.notePid()
	n.start(0)
	n.hearOf("svc", a)
	n.has("svc", "a")
	live, err = n.state()
	require.NoError(t, err)
	require.Equal(t, 3, live["svc"][0].ID)
}

// TestStateFileOfNoUse: it costs nothing but what was in it.
func TestStateFileOfNoUse(t *testing.T) {
	for name, text := range map[string]string{"cut off": `{"svc": {"a`, "another form": `[1]`, "empty": " "} {
		t.Run(name, func(t *testing.T) {
			n := newNode(t, withState(text))
			n.start(0)
			n.hear("a@127.0.0.1:81")
			n.has("svc", "a")
			require.Equal(t, 1, n.said("the state file is of no use"))
			eventually(t, "it is written anew", func() error {
				state, err := n.stateWritten()
				if err == nil && len(state["svc"]) != 2 {
					err = fmt.Errorf("%v", state)
				}
				return err
			})
		})
	}
}

// TestStateFileOfOthers: a file that is no state file at all is not overwritten; a typing error may name haproxy.cfg.
func TestStateFileOfOthers(t *testing.T) {
	for name, text := range map[string]string{"haproxy.cfg": "global\n\tmaxconn 5\n", "HAProxy's server-state-file": "1\n# be_id be_name\n"} {
		t.Run(name, func(t *testing.T) {
			n := newNode(t, withState(text))
			n.start(0)
			n.hear("a@127.0.0.1:81")
			n.has("svc", "a")
			eventually(t, "it shows", func() error {
				if s := n.agent.Status().Exports; !strings.Contains(s.Error, "is no state file") {
					return fmt.Errorf("%q", s.Error)
				}
				return nil
			})
			n.stop()
			now, err := os.ReadFile(n.config.HAProxy.StateFilePath)
			require.NoError(t, err)
			require.Equal(t, text, string(now))
		})
	}
}

// TestParseState: a service of another form costs no other its ids.
func TestParseState(t *testing.T) {
	entries, err := parseState([]byte(`{"list": [1], "null": null, "text": "x", "svc": {"a_127.0.0.1:81": {"timestamp": 5, "haproxy_server_id": 3}, "b": {"timestamp": "5"}, "c": [], "d": {"timestamp": -1}}}`))
	require.NoError(t, err)
	require.Equal(t, stateEntries{"svc": {"a_127.0.0.1:81": {Timestamp: 5, ServerID: 3}}, "null": {}}, entries)
}

// TestStateFileCannotBeWritten: it is said once, shown, and no harm to HAProxy.
func TestStateFileCannotBeWritten(t *testing.T) {
	n := newNode(t, withState(""), func(c *config.Agent) { c.HAProxy.StateFilePath += "/nowhere" })
	n.start(0)
	n.hear("a@127.0.0.1:81")
	n.has("svc", "a")
	eventually(t, "it shows", func() error {
		if s := n.agent.Status().Exports; !strings.Contains(s.Error, "write state_file_path") {
			return fmt.Errorf("%q", s.Error)
		}
		return nil
	})
	n.hear("a@127.0.0.1:81", "b@127.0.0.1:82")
	n.has("svc", "a b")
	n.ready()
	n.stop()
	require.Equal(t, 1, n.said("files for other programs are not up to date"))
}

// TestStateUpdate: expiry, services that nothing is known of, and a server that comes back.
func TestStateUpdate(t *testing.T) {
	began := time.Unix(1_700_000_000, 0)
	s := serviceNamed("svc")
	v := newView(s)
	f := &stateFile{ttl: time.Minute, entries: stateEntries{"svc": {"x_127.0.0.1:9": {Timestamp: began.Unix(), ServerID: 9}}}}
	k := newComposer(&config.Agent{Services: []config.Service{s}}, nil, nil)
	update := func(at time.Time) string {
		f.update([]view{v}, k.all([]view{v}, nil), func(int) string { return "svc" }, at)
		var names []string
		for name, e := range f.entries["svc"] {
			names = append(names, fmt.Sprintf("%s@%d", strings.SplitN(name, "_", 2)[0], e.Timestamp-began.Unix()))
		}
		return strings.Join(sortedStrings(names), " ")
	}
	require.Equal(t, "x@0", update(began.Add(time.Hour)), "unknown is not gone")
	v = v.next(discovery.Snapshot{Service: "svc", Instances: instances(t, "a@127.0.0.1:81")}, began)
	require.Equal(t, "a@30 x@0", update(began.Add(30*time.Second)))
	v = v.next(discovery.Snapshot{Service: "svc", Instances: instances(t, "b@127.0.0.1:82")}, began)
	require.Equal(t, "a@30 b@80", update(began.Add(80*time.Second)), "x is older than the TTL")
	require.Equal(t, "b@91", update(began.Add(91*time.Second)))
	v = v.next(discovery.Snapshot{Service: "svc", Instances: instances(t, "a@127.0.0.1:81", "b@127.0.0.1:82")}, began)
	require.Equal(t, "a@92 b@92", update(began.Add(92*time.Second)))
}

// TestInheritedIDs: another program's ids are kept, those that follow from the address are not remembered.
func TestInheritedIDs(t *testing.T) {
	own := instances(t, "own@127.0.0.1:81", "foreign@127.0.0.1:82", "noted@127.0.0.1:83")
	k := newComposer(&config.Agent{Services: []config.Service{serviceNamed("svc")}}, nil, nil)
	servers, _ := k.backends[0].servers(own, nil, nil)
	byName := map[string]haproxy.Server{}
	for _, s := range servers {
		byName[strings.SplitN(s.Name, "_", 2)[0]] = s
		require.True(t, haproxy.OwnID(s), s.Name)
	}
	foreign := byName["foreign"]
	foreign.ID = 2
	entry := func(port, id int) stateEntry {
		return stateEntry{ServerID: id, Host: "127.0.0.1", Port: json.Number(fmt.Sprint(port))}
	}
	ids := inheritedIDs(haproxy.State{"back": {byName["own"], foreign}}, stateEntries{"svc": {
		byName["own"].Name: entry(81, 1), byName["foreign"].Name: entry(82, 1), byName["noted"].Name: entry(83, 3),
		"mine_127.0.0.1:83": entry(83, byName["noted"].ID), "bad_127.0.0.1:84": entry(84, 0),
	}, "other": {byName["noted"].Name: entry(83, 9)}}, map[string]string{"svc": "back"})
	require.Equal(t, map[haproxy.Key]int{
		{Backend: "back", Server: foreign.Name}:         2,
		{Backend: "back", Server: byName["noted"].Name}: 3,
	}, ids, "HAProxy's file before the state file")
}
