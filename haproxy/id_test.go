package haproxy

import (
	"fmt"
	"math/rand/v2"
	"net/netip"
	"slices"
	"testing"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
	"pgregory.net/rapid"
)

func at(addr string) Server { return Server{Name: addr, Addr: netip.MustParseAddrPort(addr)} }

// TestIDsAreForEver: a fleet agrees on these numbers; a change moves every key of every hash ring.
func TestIDsAreForEver(t *testing.T) {
	servers := []Server{at("10.0.0.1:80"), at("10.0.0.2:80"), at("10.0.0.1:81"), at("[2001:db8::1]:443"), at("[::ffff:10.0.0.3]:80")}
	AssignIDs(servers)
	var ids []int
	for _, s := range servers {
		ids = append(ids, s.ID)
	}
	assert.Equal(t, []int{585773, 700986, 624769, 657, 956488}, ids)
	assert.Equal(t, idOf(at("10.0.0.3:80")), servers[4].ID, "an IPv4 address in IPv6 form is the same")
}

func TestAssignIDs(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		servers := drawServers(t, "servers") // has ids, some of them given
		for i := range servers {
			if rapid.Bool().Draw(t, "forget") {
				servers[i].ID = 0
			}
		}
		other := rapid.Permutation(slices.Clone(servers)).Draw(t, "order")
		given := slices.Clone(servers)
		AssignIDs(servers)
		AssignIDs(other)

		byName := map[string]int{}
		used := map[int]bool{}
		for i, s := range servers {
			require.True(t, s.ID >= 1 && s.ID <= MaxID)
			require.False(t, used[s.ID], "id %d twice", s.ID)
			used[s.ID] = true
			byName[s.Name] = s.ID
			if given[i].ID != 0 {
				require.Equal(t, given[i].ID, s.ID, "an id that was given")
			}
		}
		for _, s := range other {
			require.Equal(t, byName[s.Name], s.ID, "ids do not depend on the order of arrival")
		}
	})
}

// TestAssignIDsByGroups: the fast way gives what the definition gives, where many meet at one id, too.
func TestAssignIDsByGroups(t *testing.T) {
	random := rand.New(rand.NewPCG(1, 2))
	for _, n := range []int{0, 1, 2, 100, 30_000} {
		for _, names := range []int{1, 3, 50} {
			servers := make([]Server, n)
			for i := range servers {
				addr := netip.AddrFrom4([4]byte{10, byte(random.IntN(8)), byte(random.IntN(256)), byte(random.IntN(256))})
				servers[i] = Server{Name: fmt.Sprint("s", i), Addr: netip.AddrPortFrom(addr, 80)}
				if i > 0 && random.IntN(names) > 0 {
					servers[i].Addr = servers[random.IntN(i)].Addr
				}
			}
			want := slices.Clone(servers)
			require.True(t, assignByGroups(servers))
			assignInOrder(want)
			require.Equal(t, want, servers)
		}
	}
}

func TestAssignIDsProbes(t *testing.T) {
	a, b, c := at("10.0.0.1:80"), at("10.0.0.2:80"), at("10.0.0.3:80")
	// Somebody else has the id that follows from the address; so the next one, and it wraps.
	other := at("10.9.9.9:80")
	other.ID = idOf(a)
	servers := []Server{a, other}
	AssignIDs(servers)
	assert.Equal(t, nextID(idOf(a)), servers[0].ID)
	assert.Equal(t, idOf(a), servers[1].ID)

	// Two that claim one id: the first by address keeps it, and nobody is left without.
	b.ID, c.ID = MaxID, MaxID
	servers = []Server{c, b}
	AssignIDs(servers)
	assert.Equal(t, MaxID, servers[1].ID)
	assert.Equal(t, idOf(c), servers[0].ID)

	assert.Equal(t, 1, freeID(MaxID, func(id int) bool { return map[int]bool{MaxID: true}[id] }))
	assert.Equal(t, 3, freeID(1, func(id int) bool { return map[int]bool{1: true, 2: true}[id] }))
}

// TestIDsAreSpread: neighbouring addresses, the usual case, meet as seldom as random numbers would: 10,000 servers
// make some 48 pairs.
func TestIDsAreSpread(t *testing.T) {
	seen := map[int]bool{}
	pairs := 0
	for i := range 10000 {
		s := Server{Addr: netip.AddrPortFrom(netip.AddrFrom4([4]byte{10, 0, byte(i >> 8), byte(i)}), 8080)}
		id := idOf(s)
		if seen[id] {
			pairs++
		}
		seen[id] = true
	}
	assert.Less(t, pairs, 100)
}
