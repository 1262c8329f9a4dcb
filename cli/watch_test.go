package cli

import (
	"fmt"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/myelin-sd/myelin/discovery"
)

// snapshotOf reads "node=host:port*weight" words, with "~" behind for one that is leaving; "node!reason" is a rejected one.
func snapshotOf(t *testing.T, words string) discovery.Snapshot {
	t.Helper()
	s := discovery.Snapshot{Service: "s", Missing: words == "missing"}
	if s.Missing {
		return s
	}
	for _, w := range strings.Fields(words) {
		if node, reason, bad := strings.Cut(w, "!"); bad {
			s.Rejected = append(s.Rejected, discovery.Rejection{Node: node, Reason: reason, Detail: "no good"})
			continue
		}
		node, rest, _ := strings.Cut(w, "=")
		addr, weight, _ := strings.Cut(rest, "*")
		host, port, _ := strings.Cut(addr, ":")
		data := fmt.Sprintf(`{"host":%q,"port":%s,"name":%q`, host, port, node)
		if weight, leaving := strings.CutSuffix(weight, "~"); weight != "" {
			data += fmt.Sprintf(`,"weight":%s,"leaving":%t`, weight, leaving)
		}
		in, err := discovery.DecodeNerve(node, []byte(data+"}"))
		require.NoError(t, err)
		s.Instances = append(s.Instances, in)
	}
	return s
}

// TestChanges: what watch prints between two snapshots.
func TestChanges(t *testing.T) {
	for _, tc := range []struct{ before, now, want string }{
		{"", "a=10.0.0.1:80 b!host", "join 10.0.0.1:80 a; reject  b host: no good"},
		{"a=10.0.0.1:80", "a=10.0.0.1:80", ""},
		{"a=10.0.0.1:80 b=10.0.0.2:80", "b=10.0.0.2:80 c=10.0.0.3:80", "join 10.0.0.3:80 c; leave 10.0.0.1:80 a"},
		{"a=10.0.0.1:80*5", "a=10.0.0.1:80*7", "change 10.0.0.1:80 a weight=5 -> weight=7"},
		{"a=10.0.0.1:80*5", "a=10.0.0.1:80*5~", "change 10.0.0.1:80 a weight=5 -> weight=5 leaving"},
		{"a=10.0.0.1:80", "a=10.0.0.1:81", "change 10.0.0.1:81 a 10.0.0.1:80 -> 10.0.0.1:81"},
		{"a=10.0.0.1:80", "missing", "missing   the path does not exist; leave 10.0.0.1:80 a"},
		{"missing", "a=10.0.0.1:80", "present   the path exists; join 10.0.0.1:80 a"},
		{"b!host", "b!host", ""},
	} {
		before := snapshotOf(t, tc.before)
		var got []string
		for _, e := range changes(&before, snapshotOf(t, tc.now)) {
			got = append(got, strings.TrimRight(fmt.Sprintf("%s %s %s %s", e.Event, e.Address, e.Name, e.Detail), " "))
		}
		require.Equal(t, strings.TrimRight(tc.want, " "), strings.TrimRight(strings.Join(got, "; "), " "), "%s then %s", tc.before, tc.now)
	}
	require.Len(t, changes(nil, snapshotOf(t, "a=10.0.0.1:80")), 1, "at first every instance joins")
}
