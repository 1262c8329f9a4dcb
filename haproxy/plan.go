package haproxy

import (
	"cmp"
	"fmt"
	"maps"
	"slices"
	"strconv"
	"strings"
)

// Action is what a Step does.
type Action uint8

// The actions, in no order; a Plan has the order.
const (
	StepAdd    Action = iota + 1 // a new server object, brought to the wanted state
	StepReady                    // take traffic (again)
	StepDrain                    // no new traffic but for persistence
	StepMaint                    // no new traffic, no checks
	StepWeight                   // another weight
	StepAddr                     // another address for a slot; see DiffSlots
	StepDelete                   // remove the object, which must be in maintenance
)

// String is the action's name in logs and in the label of a metric.
func (a Action) String() string {
	switch a {
	case StepAdd:
		return "add"
	case StepReady:
		return "ready"
	case StepDrain:
		return "drain"
	case StepMaint:
		return "maint"
	case StepWeight:
		return "weight"
	case StepAddr:
		return "addr"
	case StepDelete:
		return "delete"
	}
	return "unknown"
}

// Key names a server object of HAProxy.
type Key struct{ Backend, Server string }

// Applied is what of a server cannot be read back from HAProxy: what was sent when the object was made.
type Applied struct {
	Options []string
	Cookie  string
}

// Applied is what is to be remembered of s once HAProxy has confirmed the StepAdd that made it. Other steps change
// none of it.
func (s Server) Applied() Applied { return Applied{s.Options, s.Cookie} }

func (a Applied) equal(s Server) bool {
	return a.Cookie == s.Cookie && slices.Equal(a.Options, s.Options)
}

// View is what Diff has to know beside the two states. Its zero value is usable.
type View struct {
	Caps      Capabilities
	Foreign   map[Key]bool    // servers written by hand in the configuration: never touched
	Deletable map[Key]bool    // retired long enough
	Applied   map[Key]Applied // options and cookie HAProxy last confirmed; absent: assume what is wanted
	Whole     State           // all servers of a backend, for their ids, where actual has only those of interest
}

// Step is one change of one server.
type Step struct {
	Op       Action
	Backend  string
	Server   Server   // as it is to be after the step
	Extra    []string // words behind the options that this version of HAProxy needs; no part of Server.Options
	Occupant string   // the server in question, where Server is a slot
	Why      string   // one line for people
}

// Key names the server object that the step is about.
func (s Step) Key() Key { return Key{s.Backend, s.Server.Name} }

// Commands are the commands of the step, in order, each sent when the one before it worked. They are for reading;
// Client.Apply checks every word before it sends one.
func (s Step) Commands() []string {
	words := s.words()
	lines := make([]string, len(words))
	for i, w := range words {
		lines[i] = strings.Join(w, " ")
	}
	return lines
}

// words are the commands, split into words.
func (s Step) words() [][]string {
	target := s.Backend + "/" + s.Server.Name
	set := func(what, value string) []string { return []string{"set", "server", target, what, value} }
	switch s.Op {
	case StepAdd:
		return s.addWords(target)
	case StepReady, StepDrain:
		state := Ready
		if s.Op == StepDrain {
			state = Drain
		}
		var out [][]string
		// The checks of a server whose making was cut short, or which we retired, are switched off.
		if s.Server.Check.Idle() {
			out = append(out, []string{"enable", "health", target})
		}
		if s.Server.Agent.Idle() {
			out = append(out, []string{"enable", "agent", target})
		}
		return append(out, set("state", state.String()))
	case StepMaint:
		if s.Server.Agent.Running() {
			// An agent that answers "ready" ends the maintenance within one agent interval (2.6 to 3.2).
			return [][]string{{"disable", "agent", target}, set("state", Maint.String())}
		}
		return [][]string{set("state", Maint.String())}
	case StepAddr:
		return [][]string{s.addrWords(target)}
	case StepWeight:
		return [][]string{set("weight", strconv.Itoa(s.Server.Weight))}
	case StepDelete:
		return [][]string{{"del", "server", target}}
	}
	return nil
}

// addWords: HAProxy applies nothing of default-server to a server added at run time and leaves it in maintenance
// with its checks off. The id is always sent: without one, adds are eleven times slower at 10,000 servers, and hash
// rings break on 2.6 and 2.8 (HAProxy issue 3413).
func (s Step) addWords(target string) [][]string {
	v := s.Server
	addr, err := address(v.Addr)
	if err != nil {
		addr = "?" // outside the alphabet: see Client.Apply
	}
	add := []string{"add", "server", target, addr, "id", strconv.Itoa(v.ID), "weight", strconv.Itoa(v.Weight)}
	add = append(add, v.Options...)
	if v.Cookie != "" {
		add = append(add, "cookie", v.Cookie)
	}
	out := [][]string{append(add, s.Extra...)}
	// Enabled before ready, so that a server never takes traffic with its check off.
	if hasOption(v.Options, "check") {
		out = append(out, []string{"enable", "health", target})
	}
	if hasOption(v.Options, "agent-check") {
		out = append(out, []string{"enable", "agent", target})
	}
	if v.Admin != Maint {
		out = append(out, []string{"set", "server", target, "state", v.Admin.String()})
	}
	return out
}

// addrWords: HAProxy takes an IPv6 address without brackets here.
func (s Step) addrWords(target string) []string {
	addr, port := "?", "?" // outside the alphabet: see Client.Apply
	if _, err := address(s.Server.Addr); err == nil {
		a := canonical(s.Server.Addr)
		addr, port = a.Addr().String(), strconv.Itoa(int(a.Port()))
	}
	return []string{"set", "server", target, "addr", addr, "port", port}
}

// failed says what an error happened to. The name is quoted: a step that cannot be sent may have any.
func (s Step) failed(err error) error {
	return fmt.Errorf("%s %q: %w", s.Op, clip(s.Backend+"/"+s.Server.Name), err)
}

// check tells whether everything in the step can be sent.
func (s Step) check() error {
	if err := CheckName(s.Backend); err != nil {
		return fmt.Errorf("backend: %w", err)
	}
	if err := CheckName(s.Server.Name); err != nil {
		return fmt.Errorf("server: %w", err)
	}
	if s.Op == StepAdd || s.Op == StepAddr {
		if _, err := address(s.Server.Addr); err != nil {
			return err
		}
	}
	if s.Op == StepAddr && !IsSlot(s.Server) {
		return fmt.Errorf("server %s is no slot: it keeps its address for life", s.Server.Name)
	}
	if s.Op == StepAdd {
		if s.Server.ID < 1 || s.Server.ID > MaxID {
			return fmt.Errorf("id %d is not in 1..%d", s.Server.ID, MaxID)
		}
		if err := CheckOptions(s.Server.Options); err != nil {
			return err
		}
	}
	if (s.Op == StepAdd || s.Op == StepWeight) && (s.Server.Weight < 0 || s.Server.Weight > 256) {
		return fmt.Errorf("weight %d is not in 0..256", s.Server.Weight)
	}
	return nil
}

// Plan is what to do, in order. A Plan is a value: it can be printed, tested, applied, and applied again.
type Plan []Step

// String is the transcript of the commands, one a line, each step under a comment that says why.
func (p Plan) String() string {
	var b strings.Builder
	for _, s := range p {
		fmt.Fprintf(&b, "# %s/%s: %s\n", s.Backend, s.Server.Name, s.Why)
		for _, c := range s.Commands() {
			b.WriteString(c)
			b.WriteByte('\n')
		}
	}
	return b.String()
}

// The order of a plan: what brings traffic back first, what takes it away late, what is risky last.
const (
	phaseRescue = iota // the first server of each backend that has none ready
	phaseAdd
	phaseReady
	phaseWeight
	phaseRetire
	phaseDelete
	phases
)

// Missing names the wanted backends that HAProxy does not have, sorted.
func Missing(actual, desired State) []string {
	var names []string
	for b := range desired {
		if _, ok := actual[b]; !ok {
			names = append(names, b)
		}
	}
	slices.Sort(names)
	return names
}

// Diff is the plan that brings HAProxy from actual to desired. It is pure; the same arguments give the same plan,
// and the Diff behind a plan that was carried out is empty.
//
// Only backends in desired are looked at; one that HAProxy does not have is left out (see Missing). In a backend,
// a server found is the one wanted when name (but for the generation) and address agree and its options, as far as
// they are known, are those wanted. Otherwise a new object is made and the old one retired behind it. Ids of
// servers that are there are left as they are. Servers that are not ours (see Owned) and those in v.Foreign are not
// touched.
func Diff(actual, desired State, v View) Plan {
	var steps [phases]Plan
	for _, backend := range slices.Sorted(maps.Keys(desired)) {
		if found, ok := actual[backend]; ok {
			d := backendDiff{backend: backend, found: found, view: v, steps: &steps}
			d.run(desired[backend])
		}
	}
	return slices.Concat(steps[:]...)
}

// backendDiff is the state of Diff within one backend.
type backendDiff struct {
	backend string
	found   []Server
	view    View
	steps   *[phases]Plan

	last    map[string]int // base name -> index into found, the last object with that name
	before  []int          // index into found -> the object before with the same base name, or -1
	matched []bool         // found servers that are wanted
	rescued bool           // some server takes traffic, or a step of phaseRescue sees to it

	ids   map[int]bool    // used ids, once an add needs them
	names map[string]bool // names given in this plan
}

func (d *backendDiff) run(wanted []Server) {
	d.index()
	for _, w := range wanted {
		base, _ := Generation(w.Name)
		if i := d.match(base, w); i >= 0 {
			d.matched[i] = true
			d.adjust(d.found[i], w)
		} else {
			d.add(base, w)
		}
	}
	for i, s := range d.found {
		if !d.matched[i] && Owned(s) && !d.foreign(s) {
			d.retire(s)
		}
	}
}

func (d *backendDiff) index() {
	d.last = make(map[string]int, len(d.found))
	d.before = make([]int, len(d.found))
	d.matched = make([]bool, len(d.found))
	for i, s := range d.found {
		base, _ := Generation(s.Name)
		d.before[i] = d.latest(base)
		d.last[base] = i
		// A server that its check holds down (stopped) takes no traffic either.
		d.rescued = d.rescued || s.Admin == Ready && s.Op != OpStopped
	}
}

// latest is the last found object of a base name, whose predecessors are in before; -1: none.
func (d *backendDiff) latest(base string) int {
	if i, ok := d.last[base]; ok {
		return i
	}
	return -1
}

func (d *backendDiff) foreign(s Server) bool { return d.view.Foreign[Key{d.backend, s.Name}] }

// match finds the object that is the wanted server: one that is not in maintenance before one that is, then the
// latest. -1: none.
func (d *backendDiff) match(base string, w Server) int {
	best := -1
	for i := d.latest(base); i >= 0; i = d.before[i] {
		s := d.found[i]
		if d.matched[i] || !sameAddr(s.Addr, w.Addr) {
			continue
		}
		if a, known := d.view.Applied[Key{d.backend, s.Name}]; known && !a.equal(w) && !d.foreign(s) {
			continue
		}
		if best < 0 || preferred(s, d.found[best]) < 0 {
			best = i
		}
	}
	return best
}

func preferred(a, b Server) int {
	down := func(s Server) int {
		if s.Admin == Maint {
			return 1
		}
		return 0
	}
	_, ga := Generation(a.Name)
	_, gb := Generation(b.Name)
	return cmp.Or(down(a)-down(b), gb-ga)
}

// adjust brings a server that is there to the wanted weight and state.
func (d *backendDiff) adjust(found, w Server) {
	if d.foreign(found) {
		return // written by hand, and there: nothing is missing
	}
	s := found
	s.Weight, s.Admin, s.Options, s.Cookie = w.Weight, w.Admin, w.Options, w.Cookie

	ready, weight := phaseReady, phaseWeight
	if w.Admin == Ready && found.Admin != Ready {
		ready = d.rescue(phaseReady)
		weight = ready // the right weight before the traffic
	}
	// Where an agent check runs, the weight is the agent's: what it says shows as srv_uweight.
	if found.Weight != w.Weight && !found.Agent.Running() {
		d.step(weight, StepWeight, s, fmt.Sprintf("weight %d, wanted %d", found.Weight, w.Weight))
	}
	if found.Admin == w.Admin {
		return
	}
	why := found.Admin.String() + ", wanted " + w.Admin.String()
	switch w.Admin {
	case Ready:
		d.step(ready, StepReady, s, why)
	case Drain:
		d.step(phaseRetire, StepDrain, s, why)
	case Maint:
		d.step(phaseRetire, StepMaint, s, why)
	}
}

// add makes a new object for a wanted server.
func (d *backendDiff) add(base string, w Server) {
	why := "wanted, not there"
	highest := 0
	for i := d.latest(base); i >= 0; i = d.before[i] {
		_, n := Generation(d.found[i].Name)
		if n > highest {
			highest = n
			why = "address or options changed, replaces " + d.found[i].Name
		}
	}
	s := w
	if highest > 0 {
		s.Name = GenerationName(base, highest+1)
	}
	for d.names[s.Name] { // the same name wanted twice
		_, n := Generation(s.Name)
		s.Name = GenerationName(base, n+1)
	}
	if d.names == nil {
		d.names = map[string]bool{}
	}
	d.names[s.Name] = true

	s.ID = d.id(w)
	phase := phaseAdd
	if w.Admin == Ready {
		phase = d.rescue(phaseAdd)
	}
	d.step(phase, StepAdd, s, why)
	plan := d.steps[phase]
	plan[len(plan)-1].Extra = d.view.Caps.extraWords(w.Options)
}

// id is the wanted id, or the next that is free.
func (d *backendDiff) id(w Server) int {
	if d.ids == nil {
		all, ok := d.view.Whole[d.backend]
		if !ok {
			all = d.found
		}
		d.ids = make(map[int]bool, len(all))
		for _, s := range all {
			d.ids[s.ID] = true
		}
	}
	id := w.ID
	if id < 1 || id > MaxID {
		id = idOf(w)
	}
	id = freeID(id, d.ids)
	d.ids[id] = true
	return id
}

// rescue is phaseRescue for the step that brings a backend its first server that takes traffic, else phase.
func (d *backendDiff) rescue(phase int) int {
	if d.rescued {
		return phase
	}
	d.rescued = true
	return phaseRescue
}

// retire takes a server of ours that is not wanted out of traffic, and later away.
func (d *backendDiff) retire(s Server) {
	switch {
	case s.Admin != Maint:
		s.Admin = Maint
		d.step(phaseRetire, StepMaint, s, "no longer wanted")
	case d.view.Deletable[Key{d.backend, s.Name}]:
		d.step(phaseDelete, StepDelete, s, "retired long enough")
	}
}

func (d *backendDiff) step(phase int, op Action, s Server, why string) {
	d.steps[phase] = append(d.steps[phase], Step{Op: op, Backend: d.backend, Server: s, Why: why})
}
