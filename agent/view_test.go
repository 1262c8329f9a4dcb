package agent

import (
	"encoding/json"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/myelin-sd/myelin/config"
	"github.com/myelin-sd/myelin/discovery"
)

// instances reads "name@host:port" words; "#n" is a sequence number, "k=v" behind a comma a label, a bare number
// behind a comma a weight, "leaving" what it says: "web@10.0.0.1:80#7,az=a,5".
func instances(t *testing.T, words ...string) []discovery.Instance {
	t.Helper()
	var out []discovery.Instance
	for _, w := range words {
		fields := strings.Split(w, ",")
		var p struct {
			Host    string         `json:"host"`
			Port    json.Number    `json:"port"`
			Name    string         `json:"name"`
			Weight  json.Number    `json:"weight,omitempty"`
			Labels  map[string]any `json:"labels,omitempty"`
			Leaving bool           `json:"leaving,omitempty"`
		}
		head, seq, _ := strings.Cut(fields[0], "#")
		name, addr, _ := strings.Cut(head, "@")
		i := strings.LastIndex(addr, ":")
		p.Name, p.Host, p.Port = name, addr[:i], json.Number(addr[i+1:])
		for _, f := range fields[1:] {
			if f == "leaving" {
				p.Leaving = true
			} else if k, v, ok := strings.Cut(f, "="); ok {
				if p.Labels == nil {
					p.Labels = map[string]any{}
				}
				p.Labels[k] = v
			} else {
				p.Weight = json.Number(f)
			}
		}
		data, err := json.Marshal(p)
		require.NoError(t, err)
		if seq == "" {
			seq = "x"
		}
		in, err := discovery.DecodeNerve(name+"_"+seq, data)
		require.NoError(t, err)
		out = append(out, in)
	}
	return out
}

func endpoints(list []discovery.Instance) string {
	var words []string
	for _, in := range list {
		words = append(words, in.Name+"@"+in.Endpoint.String())
	}
	return strings.Join(words, " ")
}

// TestActiveSet walks a service through snapshots: what is in force after each, and why.
func TestActiveSet(t *testing.T) {
	type heard struct {
		words   string // the snapshot's instances; "missing": the path does not exist
		active  string
		unknown bool
		held    string
	}
	static := []config.DefaultServer{{Name: "static", Host: "10.9.9.9", Port: 80}}
	base := config.Service{Name: "s", UsePreviousBackends: true, Discovery: config.Discovery{Method: "zookeeper"}}
	with := func(edit func(*config.Service)) config.Service {
		s := base
		edit(&s)
		return s
	}
	for _, tc := range []struct {
		name    string
		service config.Service
		heard   []heard
	}{
		{"the registry speaks", base, []heard{
			{words: "a@10.0.0.1:80 b@10.0.0.2:80", active: "a@10.0.0.1:80 b@10.0.0.2:80"},
			{words: "b@10.0.0.2:80", active: "b@10.0.0.2:80"},
		}},
		{"all children gone: the last good set stays, and ends when one returns", base, []heard{
			{words: "a@10.0.0.1:80 b@10.0.0.2:80", active: "a@10.0.0.1:80 b@10.0.0.2:80"},
			{words: "", active: "a@10.0.0.1:80 b@10.0.0.2:80", held: heldEmpty},
			{words: "missing", active: "a@10.0.0.1:80 b@10.0.0.2:80", held: heldMissing},
			{words: "c@10.0.0.3:80", active: "c@10.0.0.3:80"},
		}},
		{"empty at first: nothing is known, so nothing is taken away", base, []heard{
			{words: "", unknown: true, held: heldEmpty},
			{words: "missing", unknown: true, held: heldMissing},
		}},
		{"use_previous_backends = false believes an empty registry",
			with(func(s *config.Service) { s.UsePreviousBackends = false }), []heard{
				{words: "a@10.0.0.1:80", active: "a@10.0.0.1:80"},
				{words: "", active: ""},
			}},
		{"default servers stand in when there is nothing",
			with(func(s *config.Service) { s.DefaultServers = static }), []heard{
				{words: "a@10.0.0.1:80", active: "a@10.0.0.1:80"},
				{words: "", active: "static@10.9.9.9:80", held: heldEmpty},
			}},
		{"keep_default_servers adds them always",
			with(func(s *config.Service) { s.DefaultServers, s.KeepDefaultServers = static, true }), []heard{
				{words: "a@10.0.0.1:80", active: "a@10.0.0.1:80 static@10.9.9.9:80"},
			}},
		{"base serves the default servers",
			with(func(s *config.Service) { s.DefaultServers, s.Discovery.Method = static, "base" }), []heard{
				{words: "", active: "static@10.9.9.9:80"},
			}},
		{"the port override comes before duplicates are found",
			with(func(s *config.Service) { s.BackendPortOverride = 9 }), []heard{
				{words: "a@10.0.0.1:80 a@10.0.0.1:81", active: "a@10.0.0.1:9"},
			}},
		{"the leader has the lowest number",
			with(func(s *config.Service) { s.LeaderElection = true }), []heard{
				{words: "a@10.0.0.1:80#9 b@10.0.0.2:80#3", active: "b@10.0.0.2:80"},
			}},
		{"no number, no leader: the last one stays",
			with(func(s *config.Service) { s.LeaderElection = true }), []heard{
				{words: "a@10.0.0.1:80#9", active: "a@10.0.0.1:80"},
				{words: "a@10.0.0.1:80", active: "a@10.0.0.1:80", held: heldFiltered},
			}},
		{"filters that leave nothing do not empty a service",
			with(func(s *config.Service) {
				s.Discovery.LabelFilters = []config.LabelFilter{{Label: "az", Value: "a", Condition: "equals"}}
			}), []heard{
				{words: "a@10.0.0.1:80,az=a b@10.0.0.2:80,az=b", active: "a@10.0.0.1:80"},
				{words: "b@10.0.0.2:80,az=b", active: "a@10.0.0.1:80", held: heldFiltered},
			}},
		{"one that is leaving is gone, and may stay after all", base, []heard{
			{words: "a@10.0.0.1:80 b@10.0.0.2:80", active: "a@10.0.0.1:80 b@10.0.0.2:80"},
			{words: "a@10.0.0.1:80,leaving b@10.0.0.2:80", active: "b@10.0.0.2:80"},
			{words: "a@10.0.0.1:80 b@10.0.0.2:80", active: "a@10.0.0.1:80 b@10.0.0.2:80"},
			{words: "a@10.0.0.1:80,leaving b@10.0.0.2:80,leaving", active: "a@10.0.0.1:80 b@10.0.0.2:80", held: heldLeaving},
			{words: "b@10.0.0.2:80,leaving", active: "a@10.0.0.1:80 b@10.0.0.2:80", held: heldLeaving},
			{words: "", active: "a@10.0.0.1:80 b@10.0.0.2:80", held: heldEmpty},
			{words: "b@10.0.0.2:80#2", active: "b@10.0.0.2:80"},
		}},
		{"the last one is leaving, and an empty registry is believed",
			with(func(s *config.Service) { s.UsePreviousBackends = false }), []heard{
				{words: "a@10.0.0.1:80", active: "a@10.0.0.1:80"},
				{words: "a@10.0.0.1:80,leaving", active: ""},
			}},
		{"the last one is leaving, and there are default servers",
			with(func(s *config.Service) { s.DefaultServers = static }), []heard{
				{words: "a@10.0.0.1:80", active: "a@10.0.0.1:80"},
				{words: "a@10.0.0.1:80,leaving", active: "static@10.9.9.9:80", held: heldLeaving},
			}},
		{"only leaving ones at first: nothing is known", base, []heard{
			{words: "a@10.0.0.1:80,leaving", unknown: true, held: heldLeaving},
		}},
		{"one that is leaving gives its place to its twin, and its lead to the next", with(func(s *config.Service) { s.LeaderElection = true }), []heard{
			{words: "a@10.0.0.1:80#1 a@10.0.0.1:80#2 b@10.0.0.2:80#3", active: "a@10.0.0.1:80"},
			{words: "a@10.0.0.1:80#1,leaving a@10.0.0.1:80#2 b@10.0.0.2:80#3", active: "a@10.0.0.1:80"},
			{words: "a@10.0.0.1:80#2,leaving b@10.0.0.2:80#3", active: "b@10.0.0.2:80"},
		}},
		{"twins are one instance", base, []heard{
			{words: "a@10.0.0.1:80#1 a@10.0.0.1:80#2", active: "a@10.0.0.1:80"},
		}},
	} {
		t.Run(tc.name, func(t *testing.T) {
			v := newView(tc.service)
			for i, h := range tc.heard {
				snap := discovery.Snapshot{Service: "s", Missing: h.words == "missing"}
				if !snap.Missing && h.words != "" {
					snap.Instances = instances(t, strings.Fields(h.words)...)
				}
				v = v.next(snap, time.Unix(int64(i), 0))
				require.Equal(t, h.active, endpoints(v.active), "after %q", h.words)
				require.Equal(t, !h.unknown, v.known, "after %q", h.words)
				require.Equal(t, h.held, v.held, "after %q", h.words)

				// A start from what is kept serves the same.
				again := newView(tc.service)
				if v.known {
					again = again.restore(v.basis, time.Unix(9, 0), time.Unix(10, 0))
				}
				require.Equal(t, v.known, again.fromDisk(), "after %q", h.words)
				require.Equal(t, v.known, again.known, "after %q", h.words)
				require.Equal(t, h.active, endpoints(again.active), "after %q", h.words)
				require.False(t, again.seen)
			}
		})
	}
}

// TestCarry: a re-read of the files keeps what is known, under the new definition.
func TestCarry(t *testing.T) {
	s := config.Service{Name: "s", UsePreviousBackends: true, Discovery: config.Discovery{Method: "zookeeper"}}
	v := newView(s).next(discovery.Snapshot{Instances: instances(t, "a@10.0.0.1:80")}, time.Unix(1, 0))
	v = v.next(discovery.Snapshot{}, time.Unix(2, 0))
	require.Equal(t, heldEmpty, v.held)

	s.BackendPortOverride = 99
	carried := v.carry(s, time.Unix(3, 0))
	require.True(t, carried.known)
	require.Equal(t, heldEmpty, carried.held)
	require.Equal(t, time.Unix(2, 0), carried.since, "the hold goes on")
	require.Equal(t, "a@10.0.0.1:99", endpoints(carried.active), "the last good set stays, under the new definition")

	require.False(t, newView(s).carry(s, time.Unix(3, 0)).known, "nothing heard, nothing known")
}

// TestRestore: a set from disk is treated by the same rules as one that was heard, and gives way to what is heard.
func TestRestore(t *testing.T) {
	s := config.Service{Name: "s", UsePreviousBackends: true, Discovery: config.Discovery{Method: "zookeeper"}}
	stored := discovery.Snapshot{Instances: instances(t, "a@10.0.0.1:80,az=a", "b@10.0.0.2:80,az=b")}
	asOf := time.Unix(1, 0)

	v := newView(s).restore(stored, asOf, time.Unix(2, 0))
	require.Equal(t, asOf, v.stored)
	empty := v.next(discovery.Snapshot{Missing: true}, time.Unix(3, 0))
	require.Equal(t, heldMissing, empty.held, "an empty first snapshot takes nothing away")
	require.Equal(t, "a@10.0.0.1:80 b@10.0.0.2:80", endpoints(empty.active))
	require.False(t, empty.fromDisk(), "the registry has been heard of")
	heard := empty.next(discovery.Snapshot{Instances: instances(t, "c@10.0.0.3:80")}, time.Unix(4, 0))
	require.Equal(t, "c@10.0.0.3:80", endpoints(heard.active))

	believing := s
	believing.UsePreviousBackends = false
	gone := newView(believing).restore(stored, asOf, time.Unix(2, 0)).next(discovery.Snapshot{}, time.Unix(3, 0))
	require.Empty(t, gone.active)
	require.True(t, gone.known)

	filtered := s
	filtered.Discovery.LabelFilters = []config.LabelFilter{{Label: "az", Value: "b", Condition: "equals"}}
	require.Equal(t, "b@10.0.0.2:80", endpoints(newView(filtered).restore(stored, asOf, time.Unix(2, 0)).active), "under the present definition")
	carried := v.carry(filtered, time.Unix(3, 0))
	require.Equal(t, "b@10.0.0.2:80", endpoints(carried.active), "and under the next one")
	require.True(t, carried.fromDisk())
	require.Equal(t, asOf, carried.stored)

	filtered.Discovery.LabelFilters[0].Value = "c"
	require.Equal(t, newView(filtered), newView(filtered).restore(stored, asOf, time.Unix(2, 0)), "a set that leaves nothing says nothing")
}
