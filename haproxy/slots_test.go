package haproxy

import (
	"fmt"
	"math/rand/v2"
	"net/netip"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
	"pgregory.net/rapid"
)

// TestDiffSlots plays testdata/slots, which are like testdata/plan, with the words of the view that slots know and
// "-- short --", why a reload is needed.
func TestDiffSlots(t *testing.T) {
	files, err := filepath.Glob("../testdata/slots/*.txt")
	require.NoError(t, err)
	require.NotEmpty(t, files)
	for _, file := range files {
		t.Run(strings.TrimSuffix(filepath.Base(file), ".txt"), func(t *testing.T) {
			sections := readSections(t, file)
			actual := readState(t, sections["actual"], OpRunning)
			desired := readState(t, sections["desired"], OpStopped)
			before := fmt.Sprint(actual, desired)
			plan, short := DiffSlots("b", actual["b"], desired["b"], readSlotView(t, sections["view"]))
			assert.Equal(t, strings.TrimSpace(sections["short"]), short.Why())
			assert.Equal(t, sections["plan"], plan.String())
			assert.Equal(t, before, fmt.Sprint(actual, desired), "the arguments are left alone")
			for _, s := range plan {
				assert.NoError(t, s.check())
				for _, words := range s.words() {
					_, err := commandLine(words)
					assert.NoError(t, err)
				}
			}
		})
	}
}

func readSlotView(t *testing.T, text string) SlotView {
	v := SlotView{
		Foreign: map[Key]bool{}, Manual: map[Key]bool{}, Rested: map[Key]bool{}, Drained: map[Key]bool{}, Applied: map[Key]Applied{},
	}
	for line := range strings.Lines(text) {
		f := strings.Fields(line)
		_, name, _ := strings.Cut(f[1], "/")
		key := Key{"b", name}
		switch f[0] {
		case "foreign":
			v.Foreign[key] = true
		case "manual":
			v.Manual[key] = true
		case "rested":
			v.Rested[key] = true
		case "drained":
			v.Drained[key] = true
		case "drain":
			v.Drain = true
		case "gate":
			v.Gate = true
		case "keep":
			v.Keep = true
		case "fixed":
			v.Fixed = true
		case "options":
			v.Options = f[1:]
		case "applied":
			var s Server
			readField(t, &s, f[2])
			v.Applied[key] = s.Applied()
		default:
			t.Fatalf("unknown line %q", line)
		}
	}
	return v
}

// slotModel is one backend of a HAProxy with slots, with what makes slots dangerous: an address changes when HAProxy
// gets round to it (2.9 and later), and connections stay with a slot.
type slotModel struct {
	t       require.TestingT
	slots   []Server
	coming  map[int]netip.AddrPort // by index
	conns   map[int]int
	process int
}

func newSlotModel(t require.TestingT, servers []Server) *slotModel {
	m := &slotModel{t: t, coming: map[int]netip.AddrPort{}, conns: map[int]int{}}
	m.start(servers)
	return m
}

// start is a new process that reads the file.
func (m *slotModel) start(servers []Server) {
	m.slots = slices.Clone(servers)
	clear(m.coming)
	clear(m.conns)
	for i := range m.slots {
		m.slots[i].FirstWeight = m.slots[i].Weight
		m.slots[i].Options = nil
		if m.slots[i].Admin != Maint {
			m.slots[i].Op = OpRunning
		}
	}
	m.process++
}

// land lets some of the addresses that were set arrive.
func (m *slotModel) land(which func(int) bool) {
	for i := range m.slots {
		if a, ok := m.coming[i]; ok && which(i) {
			m.slots[i].Addr = a
			delete(m.coming, i)
		}
	}
}

func (m *slotModel) apply(s Step) {
	i := slices.IndexFunc(m.slots, func(v Server) bool { return v.Name == s.Server.Name })
	require.GreaterOrEqual(m.t, i, 0, s.Server.Name)
	v := &m.slots[i]
	switch s.Op {
	case StepAddr:
		require.Equal(m.t, Maint, v.Admin, "%s takes traffic", v.Name)
		require.Zero(m.t, m.conns[i], "%s has connections", v.Name)
		m.coming[i] = s.Server.Addr
	case StepReady:
		_, late := m.coming[i]
		require.False(m.t, late, "%s is made ready before it has its address", v.Name)
		require.False(m.t, EmptySlot(*v), "%s is empty", v.Name)
		s.change(v)
	case StepWeight, StepDrain, StepMaint:
		s.change(v)
	default:
		require.Fail(m.t, "no step for a slot", "%s", s.Op)
	}
}

// rested are the slots without connections, of those that the caller has not seen leave just now.
func (m *slotModel) rested(young map[string]bool) map[Key]bool {
	out := map[Key]bool{}
	for i, s := range m.slots {
		if s.Admin == Maint && m.conns[i] == 0 && !young[s.Name] {
			out[Key{"b", s.Name}] = true
		}
	}
	return out
}

// seats writes who takes traffic with which weight.
func seats(servers []Server) []string {
	out := []string{}
	for _, s := range servers {
		if s.Admin != Maint {
			out = append(out, fmt.Sprintf("%s*%d %s", canonical(s.Addr), s.Weight, s.Admin))
		}
	}
	slices.Sort(out)
	return out
}

func drawOccupants(t *rapid.T) []Server {
	var out []Server
	for _, n := range rapid.SliceOfNDistinct(rapid.IntRange(1, 12), 0, 7, rapid.ID).Draw(t, "servers") {
		addr := netip.AddrPortFrom(netip.AddrFrom4([4]byte{10, 0, 0, byte(n)}), 80)
		out = append(out, Server{
			Name: addr.String(), Addr: addr, ID: n, Weight: rapid.IntRange(0, 3).Draw(t, "weight"),
			Admin: rapid.SampledFrom([]Admin{Ready, Ready, Ready, Drain, Maint}).Draw(t, "admin"),
		})
	}
	return out
}

// TestSlotsReachDesired: whatever is wanted, in rounds that each look at what HAProxy shows, the slots come to hold it.
// No slot with connections is given away, none is ready before its address is there, nothing is taken away while a
// newcomer is on its way, and when the slots are used up a reload with the file's slots brings everything.
func TestSlotsReachDesired(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		m := newSlotModel(t, FileSlots(nil, nil, nil, leastSlots))
		young := map[string]bool{} // in maintenance for less than the grace
		for range rapid.IntRange(1, 6).Draw(t, "changes") {
			wanted := drawOccupants(t)
			usedUp := false
			for round := 0; ; round++ {
				require.Less(t, round, 20, "it does not come to rest")
				if rapid.Bool().Draw(t, "grace over") {
					clear(young)
				}
				plan, short := DiffSlots("b", m.slots, wanted, SlotView{Rested: m.rested(young)})
				moving := slices.ContainsFunc(plan, func(s Step) bool { return s.Op == StepAddr })
				for _, s := range plan {
					m.apply(s)
					if s.Op == StepMaint {
						require.False(t, !s.Wanted && (moving || short.Slots > 0), "%s leaves before its successor is there", s.Server.Name)
						young[s.Server.Name] = true
						i := SlotNumber(s.Server.Name) - 1
						m.conns[i] = rapid.IntRange(0, 1).Draw(t, "connections")
					}
				}
				if len(plan) == 0 && short.Slots == 0 {
					break
				}
				if short.Slots > 0 && !moving {
					require.False(t, usedUp, "used up right after a reload")
					usedUp = true
					m.start(FileSlots(m.slots, wanted, nil, SlotsFor(len(wanted), len(m.slots), true)))
					clear(young)
				}
				m.land(func(int) bool { return rapid.Bool().Draw(t, "arrives") })
				if rapid.Bool().Draw(t, "a connection ends") {
					clear(m.conns)
				}
			}
			m.land(func(int) bool { return true }) // of slots that another one was taken for meanwhile: none serves
			require.Equal(t, seats(wanted), seats(m.slots))

			// A restart with the file of now is the same, with every server where it was.
			again := newSlotModel(t, FileSlots(m.slots, wanted, nil, len(m.slots)))
			for i, s := range m.slots {
				if s.Admin == Ready {
					require.Equal(t, canonical(s.Addr), canonical(again.slots[i].Addr))
				}
			}
			require.Equal(t, seats(wanted), seats(again.slots))
			plan, short := DiffSlots("b", again.slots, wanted, SlotView{})
			require.Empty(t, plan)
			require.Empty(t, short.Why())
		}
	})
}

// TestSlotsAgree: hosts whose servers came in another order have most of them in the same slots, as map-based hashing
// goes by the place.
func TestSlotsAgree(t *testing.T) {
	wanted := make([]Server, 100)
	for i := range wanted {
		addr := netip.AddrPortFrom(netip.AddrFrom4([4]byte{10, 1, byte(i), 7}), 8080)
		wanted[i] = Server{Name: addr.String(), Addr: addr, Weight: 1}
	}
	size := SlotsFor(len(wanted), 0, false)
	require.Equal(t, 256, size)
	host := func(seed uint64) []Server {
		order := slices.Clone(wanted)
		rand.New(rand.NewPCG(seed, 0)).Shuffle(len(order), func(i, j int) { order[i], order[j] = order[j], order[i] })
		m := newSlotModel(t, FileSlots(nil, nil, nil, size))
		for n := 0; n < len(order); n += 10 {
			for range 2 {
				plan, short := DiffSlots("b", m.slots, order[:n+10], SlotView{})
				require.Empty(t, short.Why())
				for _, s := range plan {
					m.apply(s)
				}
				m.land(func(int) bool { return true })
			}
		}
		require.Len(t, seats(m.slots), len(wanted))
		return m.slots
	}
	one, two := host(1), host(2)
	same := 0
	for i := range one {
		if one[i].Admin == Ready && one[i].Addr == two[i].Addr {
			same++
		}
	}
	assert.GreaterOrEqual(t, same, 70)
	file := FileSlots(nil, wanted, nil, size)
	same = 0
	for i := range one {
		if one[i].Admin == Ready && one[i].Addr == file[i].Addr {
			same++
		}
	}
	assert.GreaterOrEqual(t, same, 70)
}

func TestSlotsFor(t *testing.T) {
	for _, tc := range []struct {
		servers, have int
		usedUp        bool
		want          int
	}{
		{0, 0, false, 8}, {4, 0, false, 8}, {5, 0, false, 16}, {100, 0, false, 256}, {10_000, 0, false, 32768},
		{5, 64, false, 64}, {5, 8, false, 16}, {5, 8, true, 16}, {4, 8, true, 16},
		{4, 128, true, 128}, // enough is enough, however they were used up
		{1 << 20, 0, false, mostSlots},
	} {
		assert.Equal(t, tc.want, SlotsFor(tc.servers, tc.have, tc.usedUp), "%+v", tc)
	}
}

// TestFileSlots: the file has every slot, by number, with options and an id, and only what is wanted has an address.
func TestFileSlots(t *testing.T) {
	a, b := netip.MustParseAddrPort("10.0.0.1:80"), netip.MustParseAddrPort("10.0.0.2:80")
	held := []Server{
		{Name: SlotName(7), Addr: a}, {Name: SlotName(2), Addr: a, Admin: Maint},
		{Name: SlotName(3), Addr: b, Admin: Maint}, {Name: SlotName(99), Addr: b},
		{Name: SlotName(1), Addr: netip.MustParseAddrPort("10.9.9.9:80")}, {Name: "static1", Addr: b},
	}
	wanted := []Server{
		{Name: "10.0.0.1:80", Addr: a, Weight: 3}, {Name: "10.0.0.2:80", Addr: b, Weight: 3, Admin: Drain},
		{Name: "10.0.0.3:80", Addr: netip.MustParseAddrPort("10.0.0.3:80"), Weight: 9},
		{Name: "10.0.0.4:80", Addr: netip.MustParseAddrPort("10.0.0.4:80"), Weight: 9, Admin: Maint},
	}
	f := File{Services: []Service{{Name: "b", Order: "desc"}}}
	text := string(f.Render(State{"b": FileSlots(held, wanted, []string{"check"}, 8)}))
	_, lines, _ := strings.Cut(text, "backend b\n")
	assert.Equal(t, `	server myelin-slot-1 0.0.0.0:1 id 524288 check weight 3 disabled
	server myelin-slot-2 0.0.0.0:1 id 524289 check weight 3 disabled
	server myelin-slot-3 10.0.0.2:80 id 524290 check weight 3 disabled
	server myelin-slot-4 0.0.0.0:1 id 524291 check weight 3 disabled
	server myelin-slot-5 0.0.0.0:1 id 524292 check weight 3 disabled
	server myelin-slot-6 0.0.0.0:1 id 524293 check weight 3 disabled
	server myelin-slot-7 10.0.0.1:80 id 524294 check weight 3
	server myelin-slot-8 10.0.0.3:80 id 524295 check weight 9
`, lines)
	assert.Equal(t, f.Static(), StaticOfText([]byte(text)), "slots are no part of what only a reload changes")
	assert.Equal(t, FileSlots(held, wanted, []string{"check"}, 8)[6], ServersOfText([]byte(text))["b"][6])
}

func TestSlotNames(t *testing.T) {
	for _, n := range []int{1, 8, mostSlots} {
		assert.Equal(t, n, SlotNumber(SlotName(n)))
	}
	for _, name := range []string{"", "myelin-slot-", "myelin-slot-0", "myelin-slot-01", "myelin-slot-+1", "myelin-slot-x",
		"myelin-slot-999999999", "slot-1", "myelin-slot-1-g2"} {
		assert.Zero(t, SlotNumber(name), name)
	}
	assert.False(t, EmptySlot(Server{Name: "static1"}))
	assert.True(t, EmptySlot(Server{Name: SlotName(1), Addr: noAddr()}))
}

func TestSlotsUnfit(t *testing.T) {
	check := []string{"check"}
	for _, tc := range []struct {
		lines, defaults []string
		differ          bool
		servers         []Server
		why             string
	}{
		{lines: []string{"balance source"}, servers: []Server{{Name: "a", Options: check}}},
		{lines: []string{"cookie SRV insert"}, why: `"cookie SRV insert" needs a cookie of its own`},
		{lines: []string{"mode tcp"}, defaults: []string{"cookie SRV insert"}},
		{differ: true, why: "contain their names or addresses"},
		{servers: []Server{{Name: "a", Options: check}, {Name: "b", Options: []string{"check", "backup"}}}, why: "server b has options of its own"},
		{servers: []Server{{Name: "a", Options: check, Cookie: "x"}}, why: "server a has a cookie"},
	} {
		why := SlotsUnfit(tc.lines, tc.defaults, check, !tc.differ, tc.servers)
		if tc.why == "" {
			assert.Empty(t, why)
		} else {
			assert.Contains(t, why, tc.why)
		}
	}
}

// TestMovedReplies: the replies of 2.2 to 3.4 to a change of address. Nothing else is a success.
func TestMovedReplies(t *testing.T) {
	const command = "set server b/myelin-slot-1 addr 127.0.0.1 port 9001"
	const by = " by 'stats socket command'\n"
	for _, reply := range []string{
		"IP changed from '0.0.0.0' to '127.0.0.1', port changed from '1' to '9001'" + by,
		"no need to change the addr, port changed from '1' to '9001'" + by,
		"IP changed from '0.0.0.0' to '127.0.0.1', no need to change the port" + by,
		"no need to change the addr, no need to change the port" + by,
		"IP changed from '0.0.0.0' to '127.0.0.1'" + by,
		"port changed from '1' to '9001'" + by,
		"nothing changed\n",
	} {
		assert.NoError(t, judge(command, "[4]: "+reply, expectationOf(command)), reply)
		assert.Error(t, judge(command, "[3]: "+reply, expectationOf(command)), reply)
	}
	for _, reply := range []string{
		"", "[4]: Invalid addr 'foo'" + by, "[3]: No such server.\n", "[6]: Unknown command: 'set'\n",
		"[4]: IP changed from '0.0.0.0' to '127.0.0.1', port changed from '1' to '34463'" + by,
		"[4]: IP changed from '0.0.0.0' to '127.0.0.2', port changed from '1' to '9001'" + by,
		"[4]: IP changed from '0.0.0.0' to '127.0.0.1', invalid port" + by,
		"[4]: port changed from '1' to '34463'" + by,
	} {
		assert.Error(t, judge(command, reply, expectationOf(command)), reply)
	}
	var refusal *ReplyError
	require.ErrorAs(t, judge("set server b/s weight 5",
		"[3]: Backend is using a static LB algorithm and only accepts weights '0%' and '100%'.\n", expectNothing), &refusal)
	assert.ErrorIs(t, refusal, ErrUnfit)
}

// TestOnlySlotsMove: an object of "add server" keeps its address for life.
func TestOnlySlotsMove(t *testing.T) {
	s := Step{Op: StepAddr, Backend: "b", Server: Server{Name: SlotName(1), Addr: netip.MustParseAddrPort("10.0.0.1:80")}}
	require.NoError(t, s.check())
	for name, spoil := range map[string]func(*Server){
		"no slot":    func(v *Server) { v.Name = "10.0.0.1:80" },
		"no address": func(v *Server) { v.Addr = noAddr() },
	} {
		bad := s
		spoil(&bad.Server)
		assert.Error(t, bad.check(), name)
	}
}

// TestDiffClearsSlots: where servers are added at run time, slots of an earlier file are retired behind the servers
// that replace them.
func TestDiffClearsSlots(t *testing.T) {
	actual := State{"b": FileSlots(nil, []Server{{Name: "10.0.0.1:80", Addr: netip.MustParseAddrPort("10.0.0.1:80"), Weight: 1}}, nil, 8)}
	m := modelOf(actual, View{})
	desired := State{"b": {{Name: "10.0.0.1:80", Addr: netip.MustParseAddrPort("10.0.0.1:80"), ID: 1, Weight: 1}}}
	ops := []Action{}
	for _, s := range Diff(m.state, desired, m.view) {
		ops = append(ops, s.Op)
		require.NoError(t, m.apply(s))
	}
	assert.Equal(t, []Action{StepAdd, StepMaint}, ops)
	m.view.Deletable = map[Key]bool{}
	for _, s := range m.state["b"] {
		if IsSlot(s) {
			m.view.Deletable[Key{"b", s.Name}] = true
		}
	}
	plan := Diff(m.state, desired, m.view)
	require.Len(t, plan, 8)
	for _, s := range plan {
		require.Equal(t, StepDelete, s.Op)
	}
}

// tenThousand is a benchmark's backend.
func tenThousand() (found, wanted []Server) {
	for i := range 10_000 {
		addr := netip.AddrPortFrom(netip.AddrFrom4([4]byte{10, byte(i >> 16), byte(i >> 8), byte(i)}), 80)
		wanted = append(wanted, Server{Name: addr.String(), Addr: addr, Weight: 1})
	}
	return FileSlots(nil, wanted[1:], nil, SlotsFor(len(wanted), 0, false)), wanted
}

// BenchmarkDiffSlots is a join beside 9,999 others.
func BenchmarkDiffSlots(b *testing.B) {
	found, wanted := tenThousand()
	for b.Loop() {
		if plan, _ := DiffSlots("b", found, wanted, SlotView{}); len(plan) != 1 {
			b.Fatal(len(plan))
		}
	}
}

func BenchmarkFileSlots(b *testing.B) {
	found, wanted := tenThousand()
	for b.Loop() {
		FileSlots(found, wanted, nil, len(found))
	}
}
