package haproxy

import (
	"fmt"
	"maps"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"testing"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
	"pgregory.net/rapid"
)

// TestDiff plays testdata/plan: each file has a sentence, then "-- actual --", "-- desired --", "-- view --" (may be
// left out) and "-- plan --", the exact transcript. After the plan, on the model of HAProxy, Diff is empty.
func TestDiff(t *testing.T) {
	files, err := filepath.Glob("../testdata/plan/*.txt")
	require.NoError(t, err)
	require.NotEmpty(t, files)
	for _, file := range files {
		t.Run(strings.TrimSuffix(filepath.Base(file), ".txt"), func(t *testing.T) {
			c := readCase(t, file)
			plan := Diff(c.actual, c.desired, c.view)
			assert.Equal(t, c.plan, plan.String())
			for _, s := range plan {
				assert.NoError(t, s.check())
				for _, words := range s.words() {
					_, err := commandLine(words)
					assert.NoError(t, err)
				}
			}

			m := modelOf(c.actual, c.view)
			for _, s := range plan {
				require.NoError(t, m.apply(s))
			}
			m.view.Deletable, m.view.Forced = nil, nil // what was retired just now has not been so for long
			assert.Empty(t, Diff(m.state, c.desired, m.view).String(), "a second Diff finds nothing to do")
		})
	}
}

type planCase struct {
	actual, desired State
	view            View
	plan            string
}

// readCase reads the sections of a case; a line "-- name --" begins one.
func readCase(t *testing.T, file string) planCase {
	sections := readSections(t, file)
	c := planCase{
		actual:  readState(t, sections["actual"], OpRunning),
		desired: readState(t, sections["desired"], OpStopped),
		view: View{Foreign: map[Key]bool{}, Manual: map[Key]bool{}, Deletable: map[Key]bool{}, Forced: map[Key]bool{}, Applied: map[Key]Applied{},
			Drain: map[string]bool{}, Drained: map[Key]bool{}, Gate: map[string]bool{}},
		plan: sections["plan"],
	}
	for line := range strings.Lines(sections["view"]) {
		f := strings.Fields(line)
		if f[0] == "version" {
			c.view.Caps = CapabilitiesOf(f[1])
			continue
		}
		if f[0] == "attached" {
			c.view.Attached, c.view.Mine = true, map[Key]bool{}
			continue
		}
		switch f[0] {
		case "drain":
			c.view.Drain[f[1]] = true
			continue
		case "gate":
			c.view.Gate[f[1]] = true
			continue
		}
		backend, server, ok := strings.Cut(f[1], "/")
		require.True(t, ok, line)
		key := Key{backend, server}
		switch f[0] {
		case "drained":
			c.view.Drained[key] = true
		case "mine":
			c.view.Mine[key] = true
		case "forced":
			c.view.Forced[key] = true
		case "foreign":
			c.view.Foreign[key] = true
		case "manual":
			c.view.Manual[key] = true
		case "deletable":
			c.view.Deletable[key] = true
		case "applied":
			var s Server
			for _, w := range f[2:] {
				readField(t, &s, w)
			}
			c.view.Applied[key] = s.Applied()
		default:
			t.Fatalf("unknown line %q", line)
		}
	}
	return c
}

// readSections are the parts of a case, each behind a line "-- name --".
func readSections(t *testing.T, file string) map[string]string {
	text, err := os.ReadFile(file)
	require.NoError(t, err)
	sections, name := map[string]string{}, ""
	for line := range strings.Lines(string(text)) {
		if f := strings.Fields(line); len(f) == 3 && f[0] == "--" && f[2] == "--" {
			name = f[1]
			sections[name] = ""
			continue
		}
		sections[name] += line
	}
	require.Contains(t, sections, "plan")
	return sections
}

func readState(t *testing.T, text string, op Op) State {
	state, backend := State{}, ""
	for line := range strings.Lines(text) {
		f := strings.Fields(line)
		if f[0] == "backend" {
			backend = f[1]
			state[backend] = nil
			continue
		}
		s := Server{Name: f[0], Addr: netip.MustParseAddrPort(f[1]), Weight: 1, Op: op}
		for _, w := range f[2:] {
			readField(t, &s, w)
		}
		if s.Admin == Maint {
			s.Op = OpStopped
		}
		state[backend] = append(state[backend], s)
	}
	return state
}

func readField(t *testing.T, s *Server, word string) {
	name, value, _ := strings.Cut(word, "=")
	number := func() int {
		n, err := strconv.Atoi(value)
		require.NoError(t, err, word)
		return n
	}
	switch name {
	case "id":
		s.ID = number()
	case "weight":
		s.Weight = number()
	case "ready":
		s.Admin = Ready
	case "drain":
		s.Admin = Drain
	case "maint":
		s.Admin = Maint
	case "stopped":
		s.Op = OpStopped
	case "first":
		s.FirstWeight = number()
	case "check":
		s.Check = Probe(number())
	case "agent":
		s.Agent = Probe(number())
	case "passed":
		s.CheckResult = checkPassed
	case "options":
		s.Options = strings.Split(value, ",")
	case "cookie":
		s.Cookie = value
	default:
		t.Fatalf("unknown word %q", word)
	}
}

// model is HAProxy as far as plans go, with its refusals. It knows what a client would remember in its view.
type model struct {
	state State
	view  View
}

func modelOf(actual State, v View) *model {
	m := &model{State{}, v}
	for b, servers := range actual {
		m.state[b] = slices.Clone(servers)
	}
	m.view.Applied = maps.Clone(v.Applied)
	if m.view.Applied == nil {
		m.view.Applied = map[Key]Applied{}
	}
	return m
}

func (m *model) apply(s Step) error {
	servers, ok := m.state[s.Backend]
	if !ok {
		return ErrNoBackend
	}
	i := slices.IndexFunc(servers, func(v Server) bool { return v.Name == s.Server.Name })
	if s.Op == StepAdd {
		switch {
		case slices.ContainsFunc(servers, func(v Server) bool { return v.ID == s.Server.ID }):
			return fmt.Errorf("id %d: %w", s.Server.ID, ErrIDTaken)
		case i >= 0:
			return ErrExists
		}
		v := Server{Name: s.Server.Name, Addr: s.Server.Addr, ID: s.Server.ID, Weight: s.Server.Weight, Admin: Maint}
		m.state[s.Backend] = append(servers, v)
		i = len(servers)
	}
	if i < 0 {
		return fmt.Errorf("%s: %w", s.Server.Name, ErrNoServer)
	}
	for _, words := range s.words() {
		v := &m.state[s.Backend][i]
		switch cmd := strings.Join(words[:2], " "); {
		case cmd == "add server":
			if hasOption(words[4:], "check") {
				v.Check = ProbeConfigured
			}
			if hasOption(words[4:], "agent-check") {
				v.Agent = ProbeConfigured
			}
		case cmd == "enable health":
			v.Check |= ProbeEnabled
		case cmd == "enable agent":
			v.Agent |= ProbeEnabled
		case cmd == "disable agent":
			v.Agent &^= ProbeEnabled
		case cmd == "del server":
			if v.Admin != Maint {
				return ErrNotInMaintenance
			}
			m.state[s.Backend] = slices.Delete(m.state[s.Backend], i, i+1)
		case cmd == "set maxconn":
			if words[2] != "server" {
				return fmt.Errorf("%q: %w", words, ErrUnknownCommand)
			}
		case cmd == "shutdown sessions":
		case words[3] == "weight":
			w, err := strconv.Atoi(words[4])
			if err != nil {
				return err
			}
			v.Weight = w
		case words[4] == "ready":
			v.Admin, v.Op = Ready, OpRunning
			v.Check &^= probePaused
		case words[4] == "drain":
			v.Admin, v.Op = Drain, OpRunning
			v.Check &^= probePaused
		case words[4] == "maint":
			v.Admin, v.Op = Maint, OpStopped
			v.Check |= probePaused
		default:
			return fmt.Errorf("%q: %w", words, ErrUnknownCommand)
		}
	}
	s.Remember(m.view.Applied)
	return nil
}

// serving is what a state means for traffic: per backend, of servers not in maintenance, address, weight, state.
func serving(s State) map[string][]string {
	out := map[string][]string{}
	for b, servers := range s {
		lines := []string{}
		for _, v := range servers {
			if v.Admin != Maint {
				base, _ := Generation(v.Name)
				lines = append(lines, fmt.Sprintf("%s %s %d %s", base, canonical(v.Addr), v.Weight, v.Admin))
			}
		}
		slices.Sort(lines)
		out[b] = lines
	}
	return out
}

// drawServers makes up the servers of one backend: few addresses, so that states meet; several names an address;
// ids that clash.
func drawServers(t *rapid.T, label string) []Server {
	var servers []Server
	seen := map[string]bool{}
	for range rapid.IntRange(0, 8).Draw(t, label) {
		host := rapid.SampledFrom([]string{"10.0.0.1", "10.0.0.2", "10.0.0.3", "::1", "2001:db8::2"}).Draw(t, "host")
		port := rapid.SampledFrom([]uint16{80, 81}).Draw(t, "port")
		name := rapid.SampledFrom([]string{"", "a", "b"}).Draw(t, "name")
		s := Server{
			Name:    ServerName(name, host, port),
			Addr:    netip.AddrPortFrom(netip.MustParseAddr(host), port),
			ID:      rapid.SampledFrom([]int{0, 0, 0, 1, 2, MaxID}).Draw(t, "id"),
			Weight:  rapid.IntRange(0, 3).Draw(t, "weight"),
			Admin:   rapid.SampledFrom([]Admin{Ready, Ready, Ready, Drain, Maint}).Draw(t, "admin"),
			Options: rapid.SampledFrom([][]string{nil, {"maxconn", "10"}, {"maxconn", "20"}, {"backup"}, {"check", "maxconn", "5"}}).Draw(t, "options"),
		}
		if !seen[s.Name] {
			seen[s.Name] = true
			servers = append(servers, s)
		}
	}
	AssignIDs(servers)
	return servers
}

func drawState(t *rapid.T, label string) State {
	state := State{}
	for _, b := range []string{"a", "b"} {
		state[b] = drawServers(t, label+" "+b)
	}
	return state
}

// drawView makes up what is remembered of the servers of m, rightly, and which of them may be deleted.
func drawView(t *rapid.T, m *model) {
	m.view.Deletable = map[Key]bool{}
	for _, b := range []string{"a", "b"} {
		for _, s := range m.state[b] {
			if rapid.Bool().Draw(t, "deletable") {
				m.view.Deletable[Key{b, s.Name}] = true
			}
		}
	}
}

// TestDiffReachesDesired: from any state that a run of plans can leave behind, one plan reaches any other, and the
// Diff behind it is empty.
func TestDiffReachesDesired(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		m := modelOf(State{"a": nil, "b": nil}, View{})
		for range rapid.IntRange(1, 5).Draw(t, "rounds") {
			desired := drawState(t, "desired")
			drawView(t, m)
			before := serving(m.state)
			for _, s := range Diff(m.state, desired, m.view) {
				require.NoError(t, s.check())
				require.NoError(t, m.apply(s), s.Commands())
				requireNoGap(t, before, serving(desired), serving(m.state))
			}
			require.Equal(t, serving(desired), serving(m.state))
			for b, servers := range desired {
				requireOptions(t, m, b, servers)
			}
			// What may be deleted now is another matter: nothing is due that was not before.
			m.view.Deletable = nil
			require.Empty(t, Diff(m.state, desired, m.view).String())
		}
	})
}

// requireNoGap: a backend that serves before and is to serve after has a ready server with every step between.
func requireNoGap(t *rapid.T, before, after, now map[string][]string) {
	ready := func(lines []string) bool {
		return slices.ContainsFunc(lines, func(l string) bool { return strings.HasSuffix(l, " ready") })
	}
	for b := range after {
		if ready(before[b]) && ready(after[b]) && !ready(now[b]) {
			t.Fatalf("backend %s has no ready server for a while", b)
		}
	}
}

// requireOptions: what serves has the options that are wanted.
func requireOptions(t *rapid.T, m *model, backend string, wanted []Server) {
	for _, v := range m.state[backend] {
		if v.Admin == Maint {
			continue
		}
		base, _ := Generation(v.Name)
		i := slices.IndexFunc(wanted, func(w Server) bool { return w.Name == base })
		require.GreaterOrEqual(t, i, 0)
		require.Equal(t, wanted[i].Applied(), m.view.Applied[Key{backend, v.Name}])
	}
}

// TestDiffDrainsAndGates: leaving servers drain first and new ones wait for their check, from any state to any other;
// when time has passed and the checks are good, it is as without both.
func TestDiffDrainsAndGates(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		m := modelOf(State{"a": nil, "b": nil}, View{})
		m.view.Drain, m.view.Gate = map[string]bool{"a": true}, map[string]bool{"a": true, "b": true}
		m.view.Drained = map[Key]bool{}
		var d Differ
		for range rapid.IntRange(1, 5).Draw(t, "rounds") {
			desired := drawState(t, "desired")
			before := map[Key]bool{}
			for b, servers := range m.state {
				for _, s := range servers {
					if s.Admin == Ready {
						before[Key{b, s.Name}] = true
					}
				}
			}
			clear(m.view.Drained)
			for _, s := range d.Diff(m.state, desired, m.view) {
				require.NoError(t, m.apply(s), s.Commands())
				if s.Op == StepMaint && s.Backend == "a" && before[s.Key()] {
					require.NotEqual(t, "no longer wanted", s.Why, "it was to drain first")
				}
			}
			for k := range before {
				base, _ := Generation(k.Server)
				if slices.ContainsFunc(desired[k.Backend], func(s Server) bool { return s.Name == base && s.Admin == Ready }) {
					require.True(t, slices.ContainsFunc(m.state[k.Backend], func(s Server) bool {
						b, _ := Generation(s.Name)
						return b == base && s.Admin == Ready
					}), "%s is gone before what replaces it is ready", base)
				}
			}
			for b, servers := range m.state {
				for _, s := range servers {
					if s.Admin == Ready && !before[Key{b, s.Name}] {
						require.True(t, s.Check&ProbeConfigured == 0 || s.CheckResult == checkPassed, "%s takes traffic unchecked", s.Name)
					}
				}
			}
			require.Empty(t, d.Diff(m.state, desired, m.view).String(), "while it is waited for, nothing is done")
			waiting := slices.Clone(d.Waiting())

			// Checks run where HAProxy lets them, and the drain's time passes.
			for b, servers := range m.state {
				for i := range servers {
					v := &servers[i]
					if v.Check.Running() && v.Check&probePaused == 0 {
						v.CheckResult = checkPassed
					}
					m.view.Drained[Key{b, v.Name}] = true
				}
			}
			for range 3 {
				for _, s := range d.Diff(m.state, desired, m.view) {
					require.NoError(t, m.apply(s), s.Commands())
				}
			}
			require.Equal(t, serving(desired), serving(m.state), "waiting were %v", waiting)
			require.Empty(t, d.Waiting())
		}
	})
}

// TestFill: in a fill the checks come last, and what a cut leaves of them the next plan has.
func TestFill(t *testing.T) {
	_, desired := benchmarkStates(largeFill + 10)
	m := modelOf(State{"b": nil}, View{})
	plan := Diff(m.state, desired, m.view)
	ops := map[Action]int{}
	for i, s := range plan {
		require.NoError(t, m.apply(s))
		ops[s.Op]++
		if s.Op == StepCheck {
			require.GreaterOrEqual(t, i, largeFill+10, "behind all adds")
		}
		if i == largeFill+20 { // as if the rest was left for the next round
			break
		}
	}
	require.Equal(t, map[Action]int{StepAdd: largeFill + 10, StepCheck: 11}, ops)
	for _, s := range Diff(m.state, desired, m.view) {
		require.Equal(t, StepCheck, s.Op)
		require.NoError(t, m.apply(s))
	}
	for _, s := range m.state["b"] {
		require.True(t, s.Check.Running() && s.Admin == Ready, "%s", s.Name)
	}
	require.Empty(t, Diff(m.state, desired, m.view))
}

// TestFillOfGatedServers: servers that HAProxy holds down until their check has passed do not wait for the end of a
// fill, which may be many rounds.
func TestFillOfGatedServers(t *testing.T) {
	_, desired := benchmarkStates(2 * largeFill)
	own := State{"b": slices.Clone(desired["b"])}
	for i := range own["b"] {
		own["b"][i].Options = append(slices.Clone(own["b"][i].Options), "init-state", "down")
	}
	for name, plan := range map[string]Plan{
		"ours":     Diff(State{"b": nil}, desired, View{Caps: CapabilitiesOf("3.2.0"), Gate: map[string]bool{"b": true}}),
		"operator": Diff(State{"b": nil}, own, View{Caps: CapabilitiesOf("3.2.0")}),
	} {
		require.Equal(t, 2*largeFill, len(plan), name)
		for _, s := range plan {
			require.Contains(t, s.Commands(), "enable health b/"+s.Server.Name, name)
		}
	}
}

// TestDiffOfNothingAllocatesNothing: a host whose registry is quiet spends its audits without garbage.
func TestDiffOfNothingAllocatesNothing(t *testing.T) {
	actual, desired := benchmarkStates(1000)
	var d Differ
	d.Diff(actual, desired, View{})
	assert.Zero(t, testing.AllocsPerRun(10, func() { d.Diff(actual, desired, View{}) }))
}

// TestDiffDoesNotDependOnOrder: HAProxy lists servers in the order they were added, which means nothing.
func TestDiffDoesNotDependOnOrder(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		actual, desired := drawState(t, "actual"), drawState(t, "desired")
		first := strings.Split(Diff(actual, desired, View{}).String(), "\n")
		for _, b := range []string{"a", "b"} {
			actual[b] = rapid.Permutation(actual[b]).Draw(t, "order")
		}
		second := strings.Split(Diff(actual, desired, View{}).String(), "\n")
		slices.Sort(first)
		slices.Sort(second)
		require.Equal(t, first, second)
	})
}

// TestDiffLeavesItsArgumentsAlone: states are shared with readers.
func TestDiffLeavesItsArgumentsAlone(t *testing.T) {
	c := readCase(t, "../testdata/plan/options-changed.txt")
	again := readCase(t, "../testdata/plan/options-changed.txt")
	require.NotEmpty(t, Diff(c.actual, c.desired, c.view))
	assert.Equal(t, again, c)
}

func TestDiffWithSameNameWantedTwice(t *testing.T) {
	s := Server{Name: "10.0.0.1:80", Addr: netip.MustParseAddrPort("10.0.0.1:80"), ID: 1}
	desired := State{"b": {s, s}}
	m := modelOf(State{"b": nil}, View{})
	for _, step := range Diff(m.state, desired, m.view) {
		require.NoError(t, m.apply(step))
	}
	require.Len(t, m.state["b"], 2)
	require.Empty(t, Diff(m.state, desired, m.view))
}

func TestMissing(t *testing.T) {
	actual := State{"a": nil}
	desired := State{"c": nil, "a": nil, "b": {{Name: "x"}}}
	assert.Equal(t, []string{"b", "c"}, Missing(actual, desired))
	assert.Empty(t, Missing(desired, actual))
}

// TestStepsRefuseWhatCannotBeSent: nothing of a step is sent when any word of it is not safe.
func TestStepsRefuseWhatCannotBeSent(t *testing.T) {
	good := Step{Op: StepAdd, Backend: "b", Server: Server{
		Name: "10.0.0.1:80", Addr: netip.MustParseAddrPort("10.0.0.1:80"), ID: 1, Weight: 1,
	}}
	require.NoError(t, (&job{result: &Result{Step: good}}).prepare())
	for name, spoil := range map[string]func(*Step){
		"backend":        func(s *Step) { s.Backend = "b;disable" },
		"name":           func(s *Step) { s.Server.Name = "a b" },
		"long name":      func(s *Step) { s.Server.Name = strings.Repeat("a", 129) },
		"no address":     func(s *Step) { s.Server.Addr = netip.AddrPort{} },
		"no port":        func(s *Step) { s.Server.Addr = netip.MustParseAddrPort("10.0.0.1:0") },
		"any address":    func(s *Step) { s.Server.Addr = netip.MustParseAddrPort("0.0.0.0:80") },
		"any v6 address": func(s *Step) { s.Server.Addr = netip.MustParseAddrPort("[::]:80") },
		"zone":           func(s *Step) { s.Server.Addr = netip.MustParseAddrPort("[fe80::1%eth0]:80") },
		"no id":          func(s *Step) { s.Server.ID = 0 },
		"large id":       func(s *Step) { s.Server.ID = MaxID + 1 },
		"weight":         func(s *Step) { s.Server.Weight = 257 },
		"option":         func(s *Step) { s.Server.Options = []string{"enabled"} },
		"option word":    func(s *Step) { s.Server.Options = []string{"check", "inter", "2s\ndel"} },
		"cookie":         func(s *Step) { s.Server.Cookie = "a b" },
		"many words":     func(s *Step) { s.Server.Options = slices.Repeat([]string{"backup"}, 60) },
	} {
		s := good
		spoil(&s)
		assert.Error(t, (&job{result: &Result{Step: s}}).prepare(), name)
	}
}

func benchmarkStates(n int) (actual, desired State) {
	wanted := make([]Server, n)
	for i := range wanted {
		a := netip.AddrPortFrom(netip.AddrFrom4([4]byte{10, byte(i >> 16), byte(i >> 8), byte(i)}), 8080)
		wanted[i] = Server{Name: ServerName("i-"+strconv.Itoa(i), a.Addr().String(), a.Port()), Addr: a, Weight: 1,
			Options: []string{"check", "inter", "2s"}}
	}
	AssignIDs(wanted)
	found := slices.Clone(wanted)
	for i := range found {
		found[i].Options, found[i].Op = nil, OpRunning
	}
	return State{"b": found}, State{"b": wanted}
}

// BenchmarkDiff: nothing to do, and one joined and one left.
func BenchmarkDiff(b *testing.B) {
	for _, n := range []int{10, 1000, 10000} {
		actual, desired := benchmarkStates(n)
		b.Run(fmt.Sprintf("same/%d", n), func(b *testing.B) {
			b.ReportAllocs()
			var d Differ
			for b.Loop() {
				if p := d.Diff(actual, desired, View{}); len(p) != 0 {
					b.Fatal(p)
				}
			}
		})
		one := State{"b": actual["b"][:n-1]}
		less := State{"b": desired["b"][1:]}
		b.Run(fmt.Sprintf("one-joined-one-left/%d", n), func(b *testing.B) {
			b.ReportAllocs()
			for b.Loop() {
				if p := Diff(one, less, View{}); len(p) != 2 {
					b.Fatal(p)
				}
			}
		})
	}
}

func BenchmarkAssignIDs(b *testing.B) {
	for _, n := range []int{10, 1000, 10000} {
		_, desired := benchmarkStates(n)
		servers := desired["b"]
		b.Run(strconv.Itoa(n), func(b *testing.B) {
			b.ReportAllocs()
			for b.Loop() {
				for i := range servers {
					servers[i].ID = 0
				}
				AssignIDs(servers)
			}
		})
	}
}
