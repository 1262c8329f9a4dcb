package agent

import (
	"fmt"
	"net/netip"
	"slices"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"
	"pgregory.net/rapid"

	"github.com/myelin-sd/myelin/haproxy"
)

// TestNarrow: from a confirmed state, the plan for the changed part does what the plan for the whole does.
func TestNarrow(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		set := rapid.Custom(func(t *rapid.T) []haproxy.Server {
			var out []haproxy.Server
			for n := range 90 {
				if rapid.IntRange(0, 3).Draw(t, "there") == 0 {
					continue
				}
				n /= 2 // two names at each address: they meet at one id
				s := haproxy.Server{
					Name:   fmt.Sprintf("%s_10.0.0.%d:80", rapid.SampledFrom([]string{"s", "t", "u"}).Draw(t, "name"), n),
					Addr:   netip.AddrPortFrom(netip.AddrFrom4([4]byte{10, 0, 0, byte(n)}), 80),
					Weight: rapid.SampledFrom([]int{1, 1, 1, 5}).Draw(t, "weight"),
				}
				if rapid.IntRange(0, 20).Draw(t, "options") == 0 {
					s.Options = []string{"backup"}
				}
				if !slices.ContainsFunc(out, func(o haproxy.Server) bool { return o.Name == s.Name }) {
					out = append(out, s)
				}
			}
			haproxy.AssignIDs(out)
			return out
		})
		before, wanted := set.Draw(t, "before"), set.Draw(t, "wanted")
		if rapid.Bool().Draw(t, "reversed") {
			slices.Reverse(wanted)
		}
		found := slices.Clone(before)
		applied := map[haproxy.Key]haproxy.Applied{}
		for _, s := range found {
			applied[haproxy.Key{Backend: "b", Server: s.Name}] = s.Applied()
		}
		view := haproxy.View{Applied: applied, Whole: haproxy.State{"b": found}}
		part, wantedPart := narrow(found, wanted, before)
		require.Equal(t,
			steps(haproxy.Diff(haproxy.State{"b": found}, haproxy.State{"b": wanted}, view)),
			steps(haproxy.Diff(haproxy.State{"b": part}, haproxy.State{"b": wantedPart}, view)))
	})
}

// steps are a plan's commands without their order, which narrow may change.
func steps(p haproxy.Plan) []string {
	var out []string
	for _, s := range p {
		out = append(out, strings.Join(s.Commands(), "; "))
	}
	slices.Sort(out)
	return out
}

func TestNarrowLeavesNothingOfTheSame(t *testing.T) {
	s := haproxy.Server{Name: "s_10.0.0.1:80", Addr: netip.MustParseAddrPort("10.0.0.1:80")}
	found, wanted := narrow([]haproxy.Server{s}, []haproxy.Server{s}, []haproxy.Server{s})
	require.Empty(t, found)
	require.Empty(t, wanted)
}
