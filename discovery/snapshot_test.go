package discovery_test

import (
	"cmp"
	"context"
	"encoding/json"
	"math/rand/v2"
	"slices"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/myelin-sd/myelin/discovery"
)

func instance(t testing.TB, host, name, node string, labels map[string]any) discovery.Instance {
	t.Helper()
	e, err := discovery.ParseEndpoint(host, 80)
	require.NoError(t, err)
	return discovery.Instance{Endpoint: e, Name: name, Node: node, ID: discovery.SequenceID(node), Labels: labels}
}

func nodes(instances []discovery.Instance) []string {
	list := []string{}
	for _, in := range instances {
		list = append(list, in.Node)
	}
	return list
}

func TestFilter(t *testing.T) {
	all := []discovery.Instance{
		instance(t, "a", "", "text", map[string]any{"v": "1"}),
		instance(t, "a", "", "number", map[string]any{"v": json.Number("1")}),
		instance(t, "a", "", "fraction", map[string]any{"v": json.Number("1.0")}),
		instance(t, "a", "", "true", map[string]any{"v": true}),
		instance(t, "a", "", "null", map[string]any{"v": nil}),
		instance(t, "a", "", "empty", map[string]any{"v": ""}),
		instance(t, "a", "", "missing", nil),
		instance(t, "a", "", "odd", map[string]any{"v": []string{}}),
	}
	everything := nodes(all)
	without := func(gone ...string) []string {
		return slices.DeleteFunc(slices.Clone(everything), func(n string) bool { return slices.Contains(gone, n) })
	}
	for _, c := range []struct {
		value     any
		condition string
		want      []string
	}{
		{"1", discovery.Equals, []string{"text"}},
		{"1", discovery.NotEquals, without("text")},
		{json.Number("1"), discovery.Equals, []string{"number", "fraction"}},
		{json.Number("1.0"), discovery.NotEquals, without("number", "fraction")},
		{true, discovery.Equals, []string{"true"}},
		{nil, discovery.Equals, []string{"null", "missing"}},
		{nil, discovery.NotEquals, without("null", "missing")},
		{"", discovery.Equals, []string{"empty"}},
		{"1", "starts-with", everything}, // refused by Validate; must not empty the service
	} {
		f := discovery.LabelFilter{Label: "v", Value: c.value, Condition: c.condition}
		require.Equal(t, c.want, nodes(discovery.Filter(all, []discovery.LabelFilter{f})), "%v", f)
		require.Equal(t, c.condition == "starts-with", f.Validate() != nil)
	}
	both := []discovery.LabelFilter{{"v", "1", discovery.NotEquals}, {"v", nil, discovery.NotEquals}}
	require.Equal(t, without("text", "null", "missing"), nodes(discovery.Filter(all, both)))
	require.Equal(t, everything, nodes(discovery.Filter(all, nil)))
	require.Equal(t, everything, nodes(all), "the input is not changed")
	require.Error(t, discovery.LabelFilter{Condition: discovery.Equals, Value: 1.5}.Validate())
	big := map[string]any{"v": json.Number("9007199254740993")}
	one := []discovery.Instance{instance(t, "a", "", "big", big)}
	require.Empty(t, discovery.Filter(one, []discovery.LabelFilter{{"v", json.Number("9007199254740992"), discovery.Equals}}))
	huge := []discovery.LabelFilter{{"v", json.Number("1e999999999"), discovery.Equals}}
	require.Empty(t, discovery.Filter(all, huge))
}

func TestDedup(t *testing.T) {
	all := []discovery.Instance{
		instance(t, "a", "x", "i_0000000009", nil),
		instance(t, "a", "x", "i_0000000003", nil),
		instance(t, "a", "x", "plain", nil),
		instance(t, "a", "y", "j_0000000010", nil),
		instance(t, "b", "x", "first", nil),
		instance(t, "b", "x", "second", nil),
	}
	require.Equal(t, []string{"i_0000000003", "j_0000000010", "first"}, nodes(discovery.Dedup(all)))
	require.Len(t, all, 6)
	require.Equal(t, nodes(all[3:5]), nodes(discovery.Dedup(all[3:5])))
}

// TestDedupOracle: in every order the result is that of the definition, and the input stays as it was.
func TestDedupOracle(t *testing.T) {
	random := rand.New(rand.NewPCG(5, 6))
	for range 2000 {
		all := make([]discovery.Instance, random.IntN(8))
		for i := range all {
			node := []string{"plain", "i_1", "i_2", "i_3"}[random.IntN(4)]
			all[i] = instance(t, []string{"a", "b", "10.0.0.1"}[random.IntN(3)], []string{"x", "y"}[random.IntN(2)], node, nil)
			all[i].Session = int64(i)
		}
		switch random.IntN(3) {
		case 0:
			slices.SortStableFunc(all, discovery.Compare)
		case 1: // twins side by side, their nodes in any order
			slices.SortStableFunc(all, func(a, b discovery.Instance) int {
				return cmp.Or(a.Endpoint.Compare(b.Endpoint), strings.Compare(a.Name, b.Name))
			})
		}
		before := slices.Clone(all)
		require.Equal(t, sessions(survivors(all)), sessions(discovery.Dedup(all)), "%v", nodes(all))
		require.Equal(t, before, all)
	}
}

// survivors is the definition of Dedup: those that no twin beats. Their sessions number them.
func survivors(all []discovery.Instance) []discovery.Instance {
	beats := func(a, b discovery.Instance) bool {
		switch {
		case a.Endpoint != b.Endpoint || a.Name != b.Name:
			return false
		case a.ID != nil && b.ID != nil && *a.ID != *b.ID:
			return *a.ID < *b.ID
		case (a.ID == nil) != (b.ID == nil):
			return a.ID != nil
		}
		return a.Session < b.Session
	}
	return slices.DeleteFunc(slices.Clone(all), func(b discovery.Instance) bool {
		return slices.ContainsFunc(all, func(a discovery.Instance) bool { return beats(a, b) })
	})
}

func sessions(instances []discovery.Instance) []int64 {
	list := []int64{}
	for _, in := range instances {
		list = append(list, in.Session)
	}
	return list
}

// TestDedupAppend: what is added to the result does not appear in the list that it came from.
func TestDedupAppend(t *testing.T) {
	all := []discovery.Instance{instance(t, "a", "", "1", nil), instance(t, "b", "", "2", nil), instance(t, "c", "", "3", nil)}
	_ = append(discovery.Dedup(all[:2]), instance(t, "d", "", "4", nil))
	require.Equal(t, []string{"1", "2", "3"}, nodes(all))
}

func TestCompare(t *testing.T) {
	sorted := []discovery.Instance{
		instance(t, "9.0.0.1", "b", "b", nil),
		instance(t, "10.0.0.1", "a", "a", nil),
		instance(t, "10.0.0.1", "a", "b", nil),
		instance(t, "10.0.0.1", "b", "a", nil),
		instance(t, "::1", "a", "a", nil),
		instance(t, "a", "a", "a", nil),
		instance(t, "b", "", "", nil),
	}
	for i, a := range sorted {
		for j, b := range sorted {
			require.Equal(t, cmp.Compare(i, j), discovery.Compare(a, b), "%d %d", i, j)
		}
	}
}

func TestSnapshotEqual(t *testing.T) {
	make := func() discovery.Snapshot {
		in := instance(t, "a", "x", "i_1", map[string]any{"z": json.Number("1")})
		in.Weight, in.ServerOptions = ptr(1), []string{"check"}
		return discovery.Snapshot{Service: "s", Instances: []discovery.Instance{in}, Rejected: []discovery.Rejection{{Node: "r", Reason: "host"}}, Version: 1, At: time.Now()}
	}
	same := make()
	same.Version, same.At, same.Instances[0].Modified, same.Rejected[0].Created = 9, time.Time{}, time.Now(), time.Now()
	require.True(t, make().Equal(same))
	for name, change := range map[string]func(*discovery.Snapshot){
		"service":   func(s *discovery.Snapshot) { s.Service = "t" },
		"missing":   func(s *discovery.Snapshot) { s.Missing = true },
		"fewer":     func(s *discovery.Snapshot) { s.Instances = nil },
		"endpoint":  func(s *discovery.Snapshot) { s.Instances[0].Endpoint = instance(t, "b", "", "", nil).Endpoint },
		"name":      func(s *discovery.Snapshot) { s.Instances[0].Name = "y" },
		"weight":    func(s *discovery.Snapshot) { s.Instances[0].Weight = ptr(2) },
		"no weight": func(s *discovery.Snapshot) { s.Instances[0].Weight = nil },
		"options":   func(s *discovery.Snapshot) { s.Instances[0].ServerOptions = nil },
		"labels":    func(s *discovery.Snapshot) { s.Instances[0].Labels["z"] = "1" },
		"no labels": func(s *discovery.Snapshot) { s.Instances[0].Labels = nil },
		"id":        func(s *discovery.Snapshot) { s.Instances[0].ID = ptr[int64](2) },
		"server id": func(s *discovery.Snapshot) { s.Instances[0].ServerID = 2 },
		"node":      func(s *discovery.Snapshot) { s.Instances[0].Node = "k_1" },
		"leaving":   func(s *discovery.Snapshot) { s.Instances[0].Leaving = true },
		"session":   func(s *discovery.Snapshot) { s.Instances[0].Session = 5 },
		"rejected":  func(s *discovery.Snapshot) { s.Rejected[0].Reason = "port" },
	} {
		other := make()
		change(&other)
		require.False(t, make().Equal(other), name)
	}
	shared := make()
	next := shared
	next.Instances = slices.Clone(shared.Instances)
	require.True(t, shared.Equal(next), "the labels are one map")
	next.Instances[0].Labels = nil
	shared.Instances[0].Labels = map[string]any{}
	require.True(t, shared.Equal(next), "none either way")
}

func TestTreeNewer(t *testing.T) {
	for _, tc := range []struct {
		a, b  discovery.Tree
		newer bool
	}{
		{discovery.Tree{Created: 5, Children: 9}, discovery.Tree{Created: 5, Children: 9}, false},
		{discovery.Tree{Created: 5, Children: 9}, discovery.Tree{Created: 5, Children: 8}, true},
		{discovery.Tree{Created: 5, Children: 9}, discovery.Tree{Created: 5, Children: 10}, false},
		{discovery.Tree{Created: 7, Children: 9}, discovery.Tree{Created: 6, Children: 12}, true},
		{discovery.Tree{Created: 5, Children: 9}, discovery.Tree{}, false},
		{discovery.Tree{}, discovery.Tree{Created: 5, Children: 9}, false},
	} {
		require.Equal(t, tc.newer, tc.a.Newer(tc.b), "%v and %v", tc.a, tc.b)
	}
}

func TestStatic(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		src := discovery.Static("s", []discovery.Instance{instance(t, "b", "", "", nil), instance(t, "a", "", "", nil)})
		for range 2 { // it may run again
			ctx, cancel := context.WithTimeout(t.Context(), time.Hour)
			out, done := make(chan discovery.Snapshot), make(chan error, 1)
			go func() { done <- src.Run(ctx, out) }()
			snap := <-out
			require.Equal(t, "s", snap.Service)
			require.Equal(t, "a", snap.Instances[0].Endpoint.Host())
			require.EqualValues(t, 1, snap.Version)
			synctest.Wait()
			require.Empty(t, done, "it blocks until its context ends")
			require.ErrorIs(t, <-done, context.DeadlineExceeded)
			cancel()
		}
		ctx, cancel := context.WithCancel(t.Context())
		cancel()
		require.ErrorIs(t, src.Run(ctx, nil), context.Canceled, "nobody listens")
	})
}
