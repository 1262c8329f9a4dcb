package haproxy

import (
	"cmp"
	"net/netip"
	"slices"
)

// AssignIDs gives every server of one backend whose ID is 0 an id that follows from its address alone, so that the
// hash ring is the same on every host and after every restart, in whatever order the servers came. Ids given
// explicitly are kept; where two servers claim one, the first by address keeps it and the other is given one.
//
// Two addresses may meet at one id (a chance of 0.5 % with 100 servers, some 50 pairs with 10,000): in order of
// address, then name, the later one takes the next free id. So a server that joins with an id that nobody was
// given changes nothing for the others, and one that leaves does so only for those that were looking for an id when
// they met it.
func AssignIDs(servers []Server) {
	if !assignByGroups(servers) {
		assignInOrder(servers)
	}
}

// assignInOrder does so by its definition.
func assignInOrder(servers []Server) {
	order := make([]int, len(servers))
	for i := range order {
		order[i] = i
	}
	slices.SortFunc(order, func(a, b int) int { return compareServers(servers[a], servers[b]) })

	used := make(map[int]bool, len(servers))
	for _, i := range order {
		if id := servers[i].ID; id == 0 || used[id] {
			servers[i].ID = 0
		} else {
			used[id] = true
		}
	}
	// Where the last search from an id ended, the next one from there begins: all before it are taken. Many names at
	// one address would otherwise make this quadratic, and the registry's text decides how many there are.
	ended := map[int]int{}
	for _, i := range order {
		if servers[i].ID == 0 {
			want := idOf(servers[i])
			from := want
			if e, ok := ended[want]; ok {
				from = e
			}
			servers[i].ID = freeID(from, func(id int) bool { return used[id] })
			ended[want] = servers[i].ID
			used[servers[i].ID] = true
		}
	}
}

// assignByGroups is assignInOrder without sorting all servers by address, which matters in a service of thousands at
// every join. Servers whose claims take ids in a row from each other are a group; the order decides only within one, and
// nearly all groups are one server. With ids given explicitly, and where a group goes on from MaxID to 1, it changes nothing and
// returns false.
func assignByGroups(servers []Server) bool {
	claims := make([]uint64, len(servers)) // the id that a server asks for, then its place in servers
	for i := range servers {
		if servers[i].ID != 0 {
			return false
		}
		claims[i] = uint64(idOf(servers[i]))<<32 | uint64(i)
	}
	slices.Sort(claims)
	for rest := claims; len(rest) > 0; {
		g := firstGroup(rest)
		if claimedID(g[0])+len(g)-1 > MaxID {
			return false
		}
		rest = rest[len(g):]
	}
	for rest := claims; len(rest) > 0; {
		g := firstGroup(rest)
		rest = rest[len(g):]
		assignGroup(servers, g)
	}
	return true
}

func claimedID(claim uint64) int { return int(claim >> 32) }

// firstGroup is the first group of sorted claims.
func firstGroup(claims []uint64) []uint64 {
	end := 1
	for end < len(claims) && claimedID(claims[end]) < claimedID(claims[0])+end {
		end++
	}
	return claims[:end]
}

// assignGroup gives the servers of one group the ids from the least that is claimed on, each the first that is free
// from its own claim on.
func assignGroup(servers []Server, claims []uint64) {
	least := claimedID(claims[0])
	if len(claims) == 1 {
		servers[uint32(claims[0])].ID = least
		return
	}
	slices.SortFunc(claims, func(a, b uint64) int { return compareServers(servers[uint32(a)], servers[uint32(b)]) })
	next := make([]int, len(claims)+1) // from least on: where the search for a free id goes on; itself when free
	for i := range next {
		next[i] = i
	}
	for _, c := range claims {
		at := claimedID(c) - least
		for next[at] != at {
			next[at] = next[next[at]] // halves the way for the searches behind this one
			at = next[at]
		}
		servers[uint32(c)].ID = least + at
		next[at] = at + 1
	}
}

// OwnID tells whether a server's id is one that AssignIDs gives: that of its address, or one of the next that are free.
// Others were chosen by somebody else, such as Synapse, which counts from one.
func OwnID(s Server) bool {
	away := s.ID - idOf(s)
	if away < 0 {
		away += MaxID
	}
	return away < ownReach
}

// ownReach is how far AssignIDs may have searched. An id of another's making lies within it by a chance of 1 in 16,000,
// and then it is replaced at the next reload, as if nobody had known it.
const ownReach = 64

func compareServers(a, b Server) int {
	return cmp.Or(canonical(a.Addr).Compare(canonical(b.Addr)), cmp.Compare(a.Name, b.Name))
}

// canonical writes an IPv4 address in its IPv6 form as the IPv4 address it is, so that both are one server.
func canonical(a netip.AddrPort) netip.AddrPort {
	return netip.AddrPortFrom(a.Addr().Unmap(), a.Port())
}

func sameAddr(a, b netip.AddrPort) bool { return canonical(a) == canonical(b) }

// WantedID is the id that AssignIDs gives a server when no other wants it.
func WantedID(s Server) int {
	if s.ID != 0 {
		return s.ID
	}
	return idOf(s)
}

// idOf is the id a server gets when nobody else has it: 1 + mix(FNV-1a 64 of "ip:port") mod MaxID. Neighbouring
// addresses differ in one byte only, which FNV-1a carries to few of its bits, so the sum is mixed (the finalizer of
// MurmurHash3). This function is part of what a fleet agrees on: to change it moves every key of every ring.
func idOf(s Server) int {
	var space [64]byte
	text := append(space[:0], s.Name...) // for found servers without an address only
	if s.Addr.IsValid() {
		text = canonical(s.Addr).AppendTo(space[:0])
	}
	x := uint64(14695981039346656037) // FNV-1a's offset and prime for 64 bits
	for _, b := range text {
		x = (x ^ uint64(b)) * 1099511628211
	}
	x = (x ^ x>>33) * 0xff51afd7ed558ccd
	x = (x ^ x>>33) * 0xc4ceb9fe1a85ec53
	x ^= x >> 33
	return 1 + int(x%MaxID)
}

// nextID is the id after id, in 1..MaxID.
func nextID(id int) int {
	if id >= MaxID || id < 1 {
		return 1
	}
	return id + 1
}

// freeID is the first id from id on that is not used; id itself when all are.
func freeID(id int, used func(int) bool) int {
	for probe, n := id, 0; n < MaxID; probe, n = nextID(probe), n+1 {
		if !used(probe) {
			return probe
		}
	}
	return id
}
