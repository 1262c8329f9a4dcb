package haproxy

import (
	"cmp"
	"fmt"
	"net/netip"
	"slices"
	"strconv"
	"strings"
)

// A slot is a server line that the configuration file has in reserve, for a HAProxy that takes no servers at run time:
// it is given a server's address and made ready. Other than the objects of "add server" it has many addresses in its
// life, and that is dangerous (seen on 2.2 to 3.4): connections opened to the old address serve requests meant for the
// new one, and from 2.9 on the address changes a little after HAProxy has said so. So a slot is given another address
// only when it has had no connections for long enough, and takes traffic only when HAProxy itself shows the address.
const (
	slotPrefix = "myelin-slot-"
	// slotIDs is where the ids of slots begin. They say nothing of the server in the slot, and are above the ids that
	// HAProxy and people give.
	slotIDs = 1 << 19
	// leastSlots and mostSlots bound the slots of a backend; both are powers of two.
	leastSlots = 8
	mostSlots  = 1 << 18
	// spareSlots bounds how many slots there are for each server when they were used up again and again.
	spareSlots = 16
)

// noAddr is the address of an empty slot. No registration has it (see Client.Apply), and nothing answers there.
func noAddr() netip.AddrPort { return netip.AddrPortFrom(netip.IPv4Unspecified(), 1) }

// SlotName is the name of the slot with a number from 1 on.
func SlotName(number int) string { return slotPrefix + strconv.Itoa(number) }

// SlotNumber is the number in a slot's name; 0: it is not the name of a slot.
func SlotNumber(name string) int {
	text, ok := strings.CutPrefix(name, slotPrefix)
	if !ok || text == "" || text[0] == '0' || text[0] == '+' {
		return 0
	}
	n, err := strconv.Atoi(text)
	if err != nil || n < 1 || n > mostSlots {
		return 0
	}
	return n
}

// IsSlot tells whether a server of HAProxy or its file is a slot.
func IsSlot(s Server) bool { return SlotNumber(s.Name) > 0 }

// EmptySlot tells whether a server is a slot that has had no address since its process began.
func EmptySlot(s Server) bool {
	return IsSlot(s) && (!s.Addr.Addr().IsValid() || s.Addr.Addr().IsUnspecified())
}

// SlotsFor is how many slots the file is to have for a backend with this many servers: twice as many, a power of two,
// at least 8, and never fewer than HAProxy has. When those it has were used up it is twice as many.
func SlotsFor(servers, have int, usedUp bool) int {
	n := leastSlots
	for n < 2*servers && n < mostSlots {
		n *= 2
	}
	if usedUp && have < spareSlots*max(servers, leastSlots) {
		have *= 2
	}
	return min(max(n, have), mostSlots)
}

// SlotView is what DiffSlots has to know beside the two lists. Its zero value is usable.
type SlotView struct {
	Foreign map[Key]bool    // servers written by hand in the configuration: never touched
	Rested  map[Key]bool    // slots that may get another address: long enough in maintenance, and without connections
	Applied map[Key]Applied // options with which HAProxy was started; absent: assume what is wanted
	Options []string        // those that every server of the backend is to have
	Fixed   bool            // the algorithm takes no other weight than a slot's first one, and 0
	Keep    bool            // nothing is taken away
	Drain   bool            // leaving servers drain before they are put into maintenance
	Drained map[Key]bool    // leaving servers that have drained for long enough
	Gate    bool            // servers take traffic only after good checks of HAProxy's own

	Manual map[Key]bool // see View

	Attached bool         // others write HAProxy's file; see View
	Mine     map[Key]bool // servers known to be ours all the same
}

// Shortage is what DiffSlots cannot do: it needs a reload.
type Shortage struct {
	Slots   int      // servers for which there is no free slot
	All     int      // slots that there are
	Weights []string // servers whose weight the algorithm takes only at a start
	Options string   // a server that runs with other options than are wanted now
}

// Why is the shortage in words for the operator; "" when there is none. There are four different ones, as they become
// labels of a metric.
func (s Shortage) Why() string {
	switch {
	case s.Slots > 0 && s.All == 0:
		return "its servers go into slots, and it has none yet"
	case s.Slots > 0:
		return "slots used up"
	case s.Options != "":
		return "the options of its servers changed, and a slot cannot change its own"
	case len(s.Weights) > 0:
		return "a weight changed, which the balance algorithm takes only at a start"
	}
	return ""
}

// DiffSlots is Diff for one backend whose servers are to be in slots. It is pure.
//
// A server stays where HAProxy has it, be it a slot or a server line of its own from an earlier file; one that
// returns takes the slot that still has its address. Any other goes where its address says (hash modulo the number of
// slots, then the next that is free), so that most hosts have it in the same place and map-based hashing sends a key
// to the same server from all of them.
//
// A slot that is to have another address gets a StepAddr and nothing else. The caller carries that out, reads HAProxy's
// state again, and plans again: the server's weight and its traffic follow when the state shows the address. Until
// then, and while servers wait for a slot, nothing is taken away from the backend.
func DiffSlots(backend string, found, wanted []Server, v SlotView) (Plan, Shortage) {
	d := slotDiff{backend: backend, found: found, view: v, taken: make([]bool, len(found))}
	d.run(wanted)
	return slices.Concat(d.steps[:]...), d.short
}

// slotDiff is the state of DiffSlots.
type slotDiff struct {
	backend string
	found   []Server
	view    SlotView
	steps   [phases]Plan
	short   Shortage

	number  []int  // found servers -> their number as slots, or 0
	taken   []bool // found servers that are wanted
	rescued bool   // some server takes traffic, or a step of phaseRescue sees to it
	moving  bool   // a slot gets another address
}

func (d *slotDiff) run(wanted []Server) {
	at := newAddrIndex(d.found)
	d.number = make([]int, len(d.found))
	for i, s := range d.found {
		d.rescued = d.rescued || s.Admin == Ready && s.Op != OpStopped
		if d.number[i] = SlotNumber(s.Name); d.number[i] > 0 {
			d.short.All++
			if a, known := d.applied(s); known && !slices.Equal(a.Options, d.view.Options) {
				d.short.Options = s.Name
			}
		}
	}
	var homeless []Server
	for _, w := range wanted {
		if i := d.match(w, at); i >= 0 {
			d.taken[i] = true
			d.adjust(d.found[i], w)
		} else if w.Admin != Maint { // otherwise it takes no traffic, so it takes no slot
			homeless = append(homeless, w)
		}
	}
	d.house(homeless)
	d.clear()
}

// addrIndex finds the servers of a list that have an address. Empty slots are not in it.
type addrIndex struct {
	first map[netip.AddrPort]int // index of the last one
	next  []int                  // index of a server -> that of another one with its address, or -1
}

func newAddrIndex(servers []Server) addrIndex {
	x := addrIndex{make(map[netip.AddrPort]int, len(servers)/2), make([]int, len(servers))}
	for i := range servers {
		x.next[i] = -1
		addr := canonical(servers[i].Addr)
		if !addr.Addr().IsValid() || addr.Addr().IsUnspecified() {
			continue
		}
		if other, ok := x.first[addr]; ok {
			x.next[i] = other
		}
		x.first[addr] = i
	}
	return x
}

// of is the index of the first server with an address, to be followed through next; -1: none.
func (x addrIndex) of(addr netip.AddrPort) int {
	if i, ok := x.first[canonical(addr)]; ok {
		return i
	}
	return -1
}

func (d *slotDiff) key(s Server) Key { return Key{d.backend, s.Name} }

func (d *slotDiff) applied(s Server) (Applied, bool) {
	a, known := d.view.Applied[d.key(s)]
	return a, known
}

// match finds the object that is the wanted server among those with its address. -1: none.
func (d *slotDiff) match(w Server, at addrIndex) int {
	best := -1
	for i := at.of(w.Addr); i >= 0; i = at.next[i] {
		if !d.taken[i] && d.serves(d.found[i], w) && (best < 0 || compareSeats(d.found[i], d.found[best]) < 0) {
			best = i
		}
	}
	return best
}

// serves tells whether an object that has the address of a wanted server can be it.
func (d *slotDiff) serves(s, w Server) bool {
	switch {
	case IsSlot(s):
		return true
	case d.view.Foreign[d.key(s)]:
		return s.Name == w.Name
	case !d.owns(s):
		return d.view.Attached // people wrote it: nothing is missing
	}
	a, known := d.applied(s)
	return !known || a.fits(w)
}

// owns tells whether a server is ours to change.
func (d *slotDiff) owns(s Server) bool {
	return View{Foreign: d.view.Foreign, Attached: d.view.Attached, Mine: d.view.Mine}.Owns(d.key(s), s)
}

// compareSeats orders objects of one address: those that take traffic, then slots, then by number.
func compareSeats(a, b Server) int {
	idle := func(s Server) int {
		if s.Admin == Maint {
			return 1
		}
		return 0
	}
	own := func(s Server) int {
		if IsSlot(s) {
			return 0
		}
		return 1
	}
	return cmp.Or(idle(a)-idle(b), own(a)-own(b), SlotNumber(a.Name)-SlotNumber(b.Name), cmp.Compare(a.Name, b.Name))
}

// adjust brings a server that is there to the wanted weight and state.
func (d *slotDiff) adjust(found, w Server) {
	if !d.owns(found) {
		return // written by hand, and there: nothing is missing
	}
	if d.view.Manual[d.key(found)] {
		w.Admin, w.Weight = found.Admin, found.Weight
	}
	if w.Admin == Maint {
		w.Weight = found.Weight // it is set when there is traffic
	}
	s := found
	s.Weight, s.Admin = d.weight(found, w), w.Admin
	phase, weight := phaseReady, phaseWeight
	if w.Admin == Ready && found.Admin != Ready {
		phase = d.rescue(phaseReady)
		weight = phase // the right weight before the traffic
	}
	if s.Weight != found.Weight {
		d.step(weight, StepWeight, s, w, fmt.Sprintf("weight %d, wanted %d", found.Weight, w.Weight))
	}
	if found.Admin == w.Admin {
		return
	}
	why := w.Name + ": " + found.Admin.String() + ", wanted " + w.Admin.String()
	switch w.Admin {
	case Drain:
		d.step(phaseRetire, StepDrain, s, w, why)
		d.wanted(phaseRetire)
	case Maint:
		d.step(phaseRetire, StepMaint, s, w, why)
		d.wanted(phaseRetire)
	default:
		d.step(phase, StepReady, s, w, why)
		// What its last check found may have been the slot's former server.
		plan := d.steps[phase]
		plan[len(plan)-1].Gated = d.view.Gate && found.Admin == Maint && found.Check&ProbeConfigured != 0
	}
}

// wanted marks the last step of a phase as one of a server that does not leave.
func (d *slotDiff) wanted(phase int) {
	plan := d.steps[phase]
	plan[len(plan)-1].Wanted = true
}

// weight is the wanted weight, or the next best that HAProxy takes now.
func (d *slotDiff) weight(found, w Server) int {
	switch {
	case found.Weight == w.Weight, found.Agent.Running(): // where an agent check runs, the weight is the agent's
		return found.Weight
	case d.view.Fixed && w.Weight != 0 && w.Weight != found.FirstWeight:
		d.short.Weights = append(d.short.Weights, w.Name)
		return found.FirstWeight
	}
	return w.Weight
}

// house gives the servers that have none a slot each, as long as there are free ones.
func (d *slotDiff) house(homeless []Server) {
	if len(homeless) == 0 {
		return
	}
	t := newSlotTable(len(d.found))
	for i, s := range d.found {
		if n := d.number[i]; n > 0 {
			free := !d.taken[i] && s.Admin == Maint && (EmptySlot(s) || d.view.Rested[d.key(s)])
			t.add(i, n, free)
		}
	}
	t.settle()
	for _, w := range sortedByAddr(homeless) {
		i, ok := t.take(w)
		if !ok {
			d.short.Slots++
			continue
		}
		d.taken[i] = true
		d.moving = true
		s := d.found[i]
		d.weight(s, w) // one that it does not take is known before
		s.Addr = canonical(w.Addr)
		phase := phaseAdd
		if w.Admin == Ready {
			phase = d.rescue(phaseAdd)
		}
		d.step(phase, StepAddr, s, w, w.Name+" takes the slot; it gets traffic once HAProxy shows its address")
	}
}

// clear takes what is not wanted out of traffic. The address stays: whoever returns finds it.
func (d *slotDiff) clear() {
	if d.view.Keep {
		return
	}
	for i, s := range d.found {
		if d.taken[i] || s.Admin == Maint || !d.owns(s) {
			continue
		}
		if EmptySlot(s) || !d.moving && d.short.Slots == 0 {
			d.retire(s)
		}
	}
}

func (d *slotDiff) retire(s Server) {
	who, why := Server{Name: s.Addr.String()}, "no longer wanted"
	switch {
	case EmptySlot(s): // in traffic by mishap; there is nothing in it to be missed
	case !d.view.Drain || d.view.Drained[d.key(s)]:
	case s.Admin == Ready:
		s.Admin = Drain
		d.step(phaseRetire, StepDrain, s, who, why+", drains first")
		return
	case s.Admin == Drain:
		return
	}
	s.Admin = Maint
	d.step(phaseRetire, StepMaint, s, who, why)
}

func (d *slotDiff) rescue(phase int) int {
	if d.rescued {
		return phase
	}
	d.rescued = true
	return phaseRescue
}

func (d *slotDiff) step(phase int, op Action, s, occupant Server, why string) {
	st := Step{Op: op, Backend: d.backend, Server: s, Why: why}
	if IsSlot(s) {
		st.Occupant = occupant.Name
	}
	d.steps[phase] = append(d.steps[phase], st)
}

// FileSlots are the slots of a backend as its file is to have them, by number: count of them, with each wanted server
// where HAProxy has it in held (the slots as they were read last; none are all empty), or else where DiffSlots would
// put it. Only what is wanted has an address, so that the process that reads the file has all the others free. Wanted
// servers in maintenance have no slot there; more than count servers do not fit, see SlotsFor.
func FileSlots(held, wanted []Server, options []string, count int) []Server {
	out := make([]Server, count)
	usual := usualWeight(wanted)
	for i := range out {
		out[i] = Server{
			Name: SlotName(i + 1), Addr: noAddr(), ID: slotIDs + i, Weight: usual, Admin: Maint, Options: options,
		}
	}
	sit := func(i int, w Server) { out[i].Addr, out[i].Weight, out[i].Admin = w.Addr, w.Weight, w.Admin }

	at := newAddrIndex(held)
	used := make([]bool, count)     // has, or had, an address
	seats := make([]int, len(held)) // places in out; -1: none, or given away
	for i, s := range held {
		seats[i] = -1
		if n := SlotNumber(s.Name); n > 0 && n <= count && !EmptySlot(s) {
			used[n-1] = true
			seats[i] = n - 1
		}
	}
	var homeless []Server
	for _, w := range wanted {
		if w.Admin == Maint {
			continue
		}
		best := -1
		for i := at.of(w.Addr); i >= 0; i = at.next[i] {
			if seats[i] >= 0 && (best < 0 || compareSeats(held[i], held[best]) < 0) {
				best = i
			}
		}
		if best < 0 {
			homeless = append(homeless, w)
			continue
		}
		sit(seats[best], w)
		seats[best] = -1
	}
	for _, resting := range []bool{false, true} { // those that were never used first, as a running process does
		if len(homeless) == 0 {
			break
		}
		t := newSlotTable(count)
		for i, s := range out {
			t.add(i, i+1, EmptySlot(s) && (resting || !used[i]))
		}
		t.settle()
		var left []Server
		for _, w := range sortedByAddr(homeless) {
			if i, ok := t.take(w); ok {
				sit(i, w)
			} else {
				left = append(left, w)
			}
		}
		homeless = left
	}
	return out
}

// usualWeight is the weight that most servers have, the least of those; 1 without servers. Empty slots have it, since a
// static algorithm takes no weight but a slot's first.
func usualWeight(servers []Server) int {
	count := map[int]int{}
	best := 1
	for _, s := range servers {
		if s.Weight > 0 {
			count[s.Weight]++
		}
	}
	for w, n := range count {
		if n > count[best] || n == count[best] && w < best {
			best = w
		}
	}
	return best
}

func sortedByAddr(servers []Server) []Server {
	return slices.SortedFunc(slices.Values(servers), compareServers)
}

// slotTable finds free slots: the one that an address hashes to, or the next that is free.
type slotTable struct {
	slots []seat // by number
	next  []int  // index of a slot -> itself when it is free, else one that is nearer to the next free one
	free  int
}

type seat struct {
	index, number int
	free          bool
}

func newSlotTable(size int) *slotTable { return &slotTable{slots: make([]seat, 0, size)} }

func (t *slotTable) add(index, number int, free bool) {
	t.slots = append(t.slots, seat{index, number, free})
}

// settle is called between the last add and the first take.
func (t *slotTable) settle() {
	slices.SortFunc(t.slots, func(a, b seat) int { return cmp.Or(a.number-b.number, a.index-b.index) })
	t.next = make([]int, len(t.slots))
	for i, s := range t.slots {
		if t.next[i] = i; s.free {
			t.free++
		} else {
			t.next[i] = (i + 1) % len(t.slots)
		}
	}
}

// take returns the index of the slot that is now s's.
func (t *slotTable) take(s Server) (int, bool) {
	if t.free == 0 {
		return 0, false
	}
	i := (idOf(s) - 1) % len(t.slots)
	for t.next[i] != i {
		t.next[i] = t.next[t.next[i]]
		i = t.next[i]
	}
	t.next[i] = (i + 1) % len(t.slots)
	t.free--
	return t.slots[i].index, true
}
