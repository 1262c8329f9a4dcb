package haproxy

import (
	"cmp"
	"fmt"
	"net/netip"
	"slices"
)

// The order of a plan: what brings traffic back first, what takes it away late, what is risky last.
const (
	phaseRescue = iota // the first server of each backend that has none ready
	phaseAdd
	phaseReady
	phaseWeight
	phaseCheck
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

// Diff is Differ.Diff for once.
func Diff(actual, desired State, v View) Plan {
	var d Differ
	return d.Diff(actual, desired, v)
}

// Differ compares states. It keeps the memory that it works in, so that a comparison that finds nothing allocates
// nothing, however large the states are. The zero value is ready; it is for one goroutine at a time.
type Differ struct {
	view   View
	names  []string // backends
	steps  [phases]Plan
	waits  []Key
	within backendDiff
}

// Waiting are the servers that the last Diff left in maintenance or draining, because HAProxy's own check has not
// passed yet (see View.Gate). The next Diff reuses the list.
func (d *Differ) Waiting() []Key { return d.waits }

// Diff is the plan that brings HAProxy from actual to desired. But for the memory it is pure: the same arguments give
// the same plan, and the Diff behind a plan that was carried out is empty.
//
// Only backends in desired are looked at; one that HAProxy does not have is left out (see Missing). In a backend,
// a server found is the one wanted when name (but for the generation) and address agree and its options, as far as
// they are known, are those wanted or can be made so in place. Otherwise a new object is made and the old one retired
// behind it. Ids of servers that are there are left as they are. Servers that are not ours (see View.Owns) are not
// touched, and of those in v.Manual neither state nor weight, while they are wanted. With v.Attached a wanted server whose address one of those has is not added: nothing is missing.
//
// In a backend of v.Gate a new server stays in maintenance until its check has passed there. HAProxy checks a server
// in the maintenance that "add server" leaves it in, but not in one that it was told to go into later (2.6 to 3.2): one
// of those drains while it is checked.
func (d *Differ) Diff(actual, desired State, v View) Plan {
	d.view, d.names, d.waits = v, d.names[:0], d.waits[:0]
	for b := range desired {
		d.names = append(d.names, b)
	}
	slices.Sort(d.names)
	for _, backend := range d.names {
		if found, ok := actual[backend]; ok {
			d.within.run(d, backend, found, desired[backend])
		}
	}
	d.checkLater()
	plan := slices.Concat(d.steps[:]...)
	for i := range d.steps {
		clear(d.steps[i]) // what they refer to is the plan's
		d.steps[i] = d.steps[i][:0]
	}
	d.view, d.within.found = View{}, nil
	return plan
}

// largeFill is how many adds make a plan a fill.
const largeFill = 64

// checkLater has the checks of a fill switched on when all of its servers are there. "add server" stops all threads of
// HAProxy, and the more checks are under way the longer it waits for them to stop: 10,000 servers with "inter 2s" took
// 29 to 81 s instead of 2.5 (2.6.12, two busy cores). Little is lost: the first check of a new server comes an inter
// after its add.
func (d *Differ) checkLater() {
	adds := d.steps[phaseAdd]
	if len(adds) <= largeFill {
		return
	}
	for i := range adds {
		s := &adds[i]
		waits := s.Gated || hasOption(s.Server.Options, "init-state") || hasOption(s.Extra, "init-state") // for its check
		if waits || s.Server.Admin != Ready || !hasOption(s.Server.Options, "check") {
			continue
		}
		s.Later = true
		check := *s
		check.Op, check.Extra, check.Why = StepCheck, nil, "its check is off"
		d.steps[phaseCheck] = append(d.steps[phaseCheck], check)
	}
}

// backendDiff is the state of Diff within one backend.
type backendDiff struct {
	*Differ
	backend string
	found   []Server

	last    map[string]int // base name -> index into found, the last object with that name
	before  []int          // index into found -> the object before with the same base name, or -1
	matched []bool         // found servers that are wanted
	rescued bool           // some server takes traffic, or a step of phaseRescue sees to it

	ids    map[int]bool            // used ids, once several adds need them
	taken  []int                   // ids given in this plan, before that
	given  map[string]bool         // names given in this plan
	theirs map[netip.AddrPort]bool // addresses of servers that people wrote, once an add needs them
	held   map[string]bool         // base names of wanted servers whose check has not passed: older objects stay until it has
}

func (d *backendDiff) run(whole *Differ, backend string, found, wanted []Server) {
	d.Differ, d.backend, d.found = whole, backend, found
	d.index()
	for i := range wanted {
		w := &wanted[i]
		base, _ := Generation(w.Name)
		if i := d.match(base, w); i >= 0 {
			d.matched[i] = true
			d.adjust(&d.found[i], w)
		} else if !d.served(w) {
			d.add(base, w)
		}
	}
	for i := range d.found {
		if s := &d.found[i]; !d.matched[i] && Owned(*s) && !d.foreign(s) {
			d.retire(s)
		}
	}
}

func (d *backendDiff) index() {
	if d.last == nil {
		d.last = make(map[string]int, len(d.found))
	}
	clear(d.last)
	clear(d.given)
	clear(d.held)
	d.ids, d.taken, d.theirs = nil, d.taken[:0], nil
	d.before = slices.Grow(d.before[:0], len(d.found))[:len(d.found)]
	d.matched = slices.Grow(d.matched[:0], len(d.found))[:len(d.found)]
	clear(d.matched)
	d.rescued = false
	for i := range d.found {
		s := &d.found[i]
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

func (d *backendDiff) key(s *Server) Key { return Key{d.backend, s.Name} }

func (d *backendDiff) foreign(s *Server) bool {
	return d.view.Foreign[d.key(s)] || d.view.Attached && !d.view.Owns(d.key(s), *s)
}

// match finds the object that is the wanted server: one that is not in maintenance before one that is, then the
// latest. -1: none.
func (d *backendDiff) match(base string, w *Server) int {
	best := -1
	for i := d.latest(base); i >= 0; i = d.before[i] {
		s := &d.found[i]
		if d.matched[i] || !sameAddr(s.Addr, w.Addr) {
			continue
		}
		if a, known := d.view.Applied[d.key(s)]; known && !a.fits(*w) && !d.foreign(s) {
			continue
		}
		if best < 0 || preferred(s, &d.found[best]) < 0 {
			best = i
		}
	}
	return best
}

func preferred(a, b *Server) int {
	down := func(s *Server) int {
		if s.Admin == Maint {
			return 1
		}
		return 0
	}
	_, ga := Generation(a.Name)
	_, gb := Generation(b.Name)
	return cmp.Or(down(a)-down(b), gb-ga)
}

// adjust brings a server that is there to the wanted weight, limit and state.
func (d *backendDiff) adjust(found, w *Server) {
	if d.foreign(found) {
		return // written by hand, and there: nothing is missing
	}
	if d.view.Manual[d.key(found)] {
		as := *w
		as.Admin, as.Weight = found.Admin, found.Weight
		w = &as
	}
	if w.Admin == Ready && d.gated(found) {
		d.hold(w.Name)
		if found.Admin == Ready {
			d.awaitSuccessor(found.Name, found)
		}
	}
	known, applied := d.view.Applied[d.key(found)]
	moreConns := applied && maxconnDiffers(known.Options, w.Options)
	// Where an agent check runs, the weight is the agent's: what it says shows as srv_uweight.
	weighs := found.Weight != w.Weight && !found.Agent.Running()
	unchecked := found.Admin == Ready && w.Admin == Ready && found.Check.Idle()
	if !moreConns && !weighs && !unchecked && found.Admin == w.Admin {
		return
	}
	s := *found
	s.Weight, s.Admin, s.Options, s.Cookie = w.Weight, w.Admin, w.Options, w.Cookie

	returns := w.Admin == Ready && found.Admin != Ready
	waits := returns && d.gated(found)
	ready, weight := phaseReady, phaseWeight
	if returns && !waits {
		ready = d.rescue(phaseReady)
		weight = ready // the right weight before the traffic
	}
	if weighs {
		d.step(weight, StepWeight, s, fmt.Sprintf("weight %d, wanted %d", found.Weight, w.Weight))
	}
	if moreConns {
		d.step(weight, StepMaxconn, s, fmt.Sprintf("maxconn %s, wanted %s", maxconnOf(known.Options), maxconnOf(w.Options)))
	}
	if waits {
		d.await(found, s)
		return
	}
	if unchecked {
		d.step(phaseCheck, StepCheck, s, "its check is off")
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
		d.wanted(phaseRetire)
	case Maint:
		d.step(phaseRetire, StepMaint, s, why)
		d.wanted(phaseRetire)
	}
}

// wanted marks the last step of a phase as one of a server that does not leave.
func (d *backendDiff) wanted(phase int) {
	plan := d.steps[phase]
	plan[len(plan)-1].Wanted = true
}

// hold keeps what serves under a name until the check of the wanted server has passed.
func (d *backendDiff) hold(name string) {
	base, _ := Generation(name)
	if d.held == nil {
		d.held = map[string]bool{}
	}
	d.held[base] = true
}

// awaitSuccessor notes a server that HAProxy holds down until its check has passed (init-state), when another object
// of its name, which it replaces, serves until then. found is nil for one that is added.
func (d *backendDiff) awaitSuccessor(name string, found *Server) {
	base, _ := Generation(name)
	for i := d.latest(base); i >= 0; i = d.before[i] {
		if old := &d.found[i]; old != found && old.Admin == Ready && !d.foreign(old) {
			d.waits = append(d.waits, Key{d.backend, name})
			return
		}
	}
}

// gated tells whether a server that is to take traffic must wait for its check.
func (d *backendDiff) gated(found *Server) bool {
	return d.view.Gate[d.backend] && found.Check&ProbeConfigured != 0 && found.CheckResult != checkPassed
}

// await has a gated server checked where it is, or where it can be.
func (d *backendDiff) await(found *Server, s Server) {
	d.waits = append(d.waits, d.key(found))
	switch {
	case found.Admin == Maint && found.Check&probePaused != 0:
		s.Admin = Drain
		d.step(phaseReady, StepDrain, s, "wanted, its check runs while it drains")
	case found.Check.Idle():
		s.Admin = found.Admin
		d.step(phaseReady, StepCheck, s, "wanted, its check is off")
	}
}

// add makes a new object for a wanted server.
func (d *backendDiff) add(base string, w *Server) {
	why := "wanted, not there"
	highest := 0
	for i := d.latest(base); i >= 0; i = d.before[i] {
		_, n := Generation(d.found[i].Name)
		if n > highest {
			highest = n
			why = "address or options changed, replaces " + d.found[i].Name
		}
	}
	s := *w
	if highest > 0 {
		s.Name = GenerationName(base, highest+1)
	}
	for d.given[s.Name] { // the same name wanted twice
		_, n := Generation(s.Name)
		s.Name = GenerationName(base, n+1)
	}
	if d.given == nil {
		d.given = map[string]bool{}
	}
	d.given[s.Name] = true

	s.ID = d.id(w)
	extra, gated := d.view.Caps.extraWords(w.Options), false
	phase := phaseAdd
	if w.Admin == Ready {
		var words []string
		if words, gated = d.gate(w); gated {
			d.waits = append(d.waits, d.key(&s))
		} else {
			phase = d.rescue(phaseAdd)
		}
		extra = append(extra, words...)
	}
	d.step(phase, StepAdd, s, why)
	plan := d.steps[phase]
	last := &plan[len(plan)-1]
	last.Extra, last.Gated = extra, gated
}

// gate tells how a new server waits for its first good check: HAProxy's own way, by words, or ours, in maintenance.
func (d *backendDiff) gate(w *Server) (words []string, gated bool) {
	if !d.view.Gate[d.backend] || !hasOption(w.Options, "check") || hasOption(w.Options, "init-state") {
		return nil, false
	}
	d.hold(w.Name)
	if d.view.Caps.InitState {
		d.awaitSuccessor(w.Name, nil)
		return []string{"init-state", "down"}, false
	}
	return nil, true
}

// fewAdds is how many adds look through the servers for a free id, before the ids are gathered in a map: for a single
// join that would be the most expensive part.
const fewAdds = 4

// id is the wanted id, or the next that is free.
func (d *backendDiff) id(w *Server) int {
	all, ok := d.view.Whole[d.backend]
	if !ok {
		all = d.found
	}
	if len(d.taken) == fewAdds && d.ids == nil {
		d.ids = make(map[int]bool, len(all))
		for i := range all {
			d.ids[all[i].ID] = true
		}
		for _, id := range d.taken {
			d.ids[id] = true
		}
	}
	id := w.ID
	if id < 1 || id > MaxID {
		id = idOf(*w)
	}
	if d.ids != nil {
		id = freeID(id, func(id int) bool { return d.ids[id] })
		d.ids[id] = true
		return id
	}
	id = freeID(id, func(id int) bool {
		return slices.Contains(d.taken, id) || slices.ContainsFunc(all, func(s Server) bool { return s.ID == id })
	})
	d.taken = append(d.taken, id)
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
func (d *backendDiff) retire(found *Server) {
	s, key := *found, d.key(found)
	const why = "no longer wanted"
	base, _ := Generation(s.Name)
	switch {
	case d.held[base] && s.Admin != Maint:
	case s.Admin == Ready && d.view.Drain[d.backend] && !d.view.Drained[key]:
		s.Admin = Drain
		d.step(phaseRetire, StepDrain, s, why+", drains first")
	case s.Admin == Drain && d.view.Drain[d.backend] && !d.view.Drained[key]:
	case s.Admin != Maint:
		s.Admin = Maint
		d.step(phaseRetire, StepMaint, s, why)
	case d.view.Deletable[key]:
		d.step(phaseDelete, StepDelete, s, "retired long enough")
	case d.view.Forced[key]:
		d.step(phaseDelete, StepShutdown, s, "retired, and its sessions do not end")
	}
}

func (d *backendDiff) step(phase int, op Action, s Server, why string) {
	d.steps[phase] = append(d.steps[phase], Step{Op: op, Backend: d.backend, Server: s, Why: why})
}
