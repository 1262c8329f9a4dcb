package haproxy

import (
	"fmt"
	"net/netip"
)

// Comparison says how the servers of a backend that another manager keeps are compared with what is wanted.
type Comparison struct {
	Backend string
	Drains  bool                 // a server that leaves drains first
	Theirs  func(s *Server) bool // a server found that is not ours to judge; nil: all are
}

// Compare is what would have to change so that a backend that another manager filled serves as wanted: a pure function,
// and a plan that is read and counted, not applied. Servers are the same when they have the same address, whatever their
// names, ids and options, or when HAProxy has them by the host name that the wanted one is named after. A server out of
// traffic that is not wanted is no difference, however it was taken out.
func Compare(found, wanted []Server, c Comparison) Plan {
	d := comparing{Comparison: c, found: found, matched: make([]bool, len(found)), at: make(map[netip.AddrPort][]int, len(found))}
	for i := range found {
		if s := &found[i]; s.Addr.IsValid() && !EmptySlot(*s) {
			d.at[canonical(s.Addr)] = append(d.at[canonical(s.Addr)], i)
		}
	}
	for i := range wanted {
		d.want(&wanted[i])
	}
	for i := range found {
		if s := &found[i]; !d.matched[i] && !EmptySlot(*s) && !d.theirs(s) {
			d.surplus(s)
		}
	}
	var plan Plan
	for _, steps := range d.steps {
		plan = append(plan, steps...)
	}
	return plan
}

// comparing is the state of Compare.
type comparing struct {
	Comparison
	found   []Server
	at      map[netip.AddrPort][]int // places in found, by address
	matched []bool                   // of found
	steps   [4]Plan                  // missing, ready again, otherwise, surplus
}

func (d *comparing) theirs(s *Server) bool { return d.Theirs != nil && d.Theirs(s) }

// want finds the server that stands for a wanted one, and says what is wrong with it.
func (d *comparing) want(w *Server) {
	i := d.standsFor(w)
	if i < 0 {
		if w.Admin != Maint { // one in maintenance serves as much as one that is not there
			d.step(0, StepAdd, *w, "wanted, not there")
		}
		return
	}
	d.matched[i] = true
	s := d.found[i]
	if d.theirs(&s) {
		return
	}
	was := s
	s.Admin, s.Weight = w.Admin, w.Weight
	if was.Admin != w.Admin {
		why := was.Admin.String() + ", wanted " + w.Admin.String()
		switch w.Admin {
		case Ready:
			d.step(1, StepReady, s, why)
		case Drain:
			d.step(2, StepDrain, s, why)
		case Maint:
			d.step(2, StepMaint, s, why)
		}
	}
	// Where an agent check runs, the weight is the agent's. A server in maintenance has no use for one.
	if was.Weight != w.Weight && !was.Agent.Running() && w.Admin != Maint {
		d.step(2, StepWeight, s, fmt.Sprintf("weight %d, wanted %d", was.Weight, w.Weight))
	}
	if was.Admin == Ready && w.Admin == Ready && was.Check.Idle() {
		d.step(2, StepCheck, s, "its check is off")
	}
}

// standsFor is the place of the server that has a wanted one's address, of several one that takes traffic, then one of
// its name; -1: none.
func (d *comparing) standsFor(w *Server) int {
	best, rank := -1, 0
	consider := func(i int) {
		s := &d.found[i]
		r := 1
		if s.Admin != Maint {
			r += 2
		}
		if base, _ := Generation(s.Name); base == w.Name {
			r++
		}
		if !d.matched[i] && r > rank {
			best, rank = i, r
		}
	}
	for _, i := range d.at[canonical(w.Addr)] {
		consider(i)
	}
	if best >= 0 {
		return best
	}
	for i := range d.found {
		// HAProxy asked for the name itself, and may have chosen another of its addresses.
		if s := &d.found[i]; s.FQDN != "" && s.FQDN != "-" && s.Name == w.Name {
			consider(i)
		}
	}
	return best
}

// surplus says what is to become of a server that nobody wants.
func (d *comparing) surplus(found *Server) {
	s := *found
	switch {
	case s.Admin == Maint || s.Admin == Drain && d.Drains:
	case d.Drains:
		s.Admin = Drain
		d.step(3, StepDrain, s, "not wanted, drains first")
	default:
		s.Admin = Maint
		d.step(3, StepMaint, s, "not wanted")
	}
}

func (d *comparing) step(phase int, op Action, s Server, why string) {
	d.steps[phase] = append(d.steps[phase], Step{Op: op, Backend: d.Backend, Server: s, Why: why})
}
