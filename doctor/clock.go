package doctor

import (
	"fmt"
	"time"
)

// Clock is what is known of a host's clock.
type Clock struct {
	Sync     Known[Sync]
	Jump     Known[time.Duration] // how far the wall clock ran away from the monotonic one while it was looked at
	Watched  time.Duration        // for how long
	Registry []RegistryClock
}

// Sync is what the kernel says of its clock.
type Sync struct {
	Synchronised bool
	MaxError     time.Duration // the kernel's bound; it grows while nobody disciplines the clock
}

// RegistryClock is ZooKeeper's clock beside this host's.
type RegistryClock struct {
	Ensemble string
	Ahead    Known[time.Duration] // of this host's clock; below 0: behind
	Within   time.Duration        // how exact that is: half of the round trip
}

const (
	whySync     = "times in overrides, holds, persistent nodes and logs are compared between hosts"
	whyJump     = "a wall clock that is set while it runs makes ages and expiries wrong until it is right again"
	whyRegistry = "an override ends, and a persistent node expires, by the clock of the host that reads it"
)

// jumpMost is what the two clocks may differ by within seconds: more than slewing and scheduling make.
const jumpMost = 250 * time.Millisecond

// apartMost is what a host's clock may differ from ZooKeeper's by.
const apartMost = 5 * time.Second

func (c Clock) examine() []Finding {
	out := []Finding{c.sync(), c.jump()}
	for _, r := range c.Registry {
		out = append(out, r.examine())
	}
	return out
}

func (c Clock) sync() Finding {
	const id = "clock.sync"
	if !c.Sync.OK() {
		return NotKnown(id, "", c.Sync.Unknown, whySync)
	}
	s := c.Sync.Value
	if s.Synchronised {
		return Finding{ID: id, Found: fmt.Sprintf("synchronised, within %s by the kernel's bound", s.MaxError.Round(time.Millisecond)), Why: whySync}
	}
	return Finding{ID: id, Severity: Warning, Why: whySync,
		Found: "the kernel says that nobody disciplines its clock (STA_UNSYNC); a clock that the hypervisor keeps right looks the same",
		Fix:   "apt-get install chrony (or timedatectl set-ntp true), then chronyc tracking"}
}

func (c Clock) jump() Finding {
	const id = "clock.jump"
	if !c.Jump.OK() {
		return NotKnown(id, "", c.Jump.Unknown, whyJump)
	}
	watched := fmt.Sprintf("in the %s of this run; what was before is not known", c.Watched.Round(time.Millisecond))
	if c.Jump.Value.Abs() <= jumpMost {
		return Finding{ID: id, Found: "no jump " + watched, Why: whyJump}
	}
	return Finding{ID: id, Severity: Warning, Found: fmt.Sprintf("the wall clock jumped by %s %s", c.Jump.Value.Round(time.Millisecond), watched), Why: whyJump,
		Fix: "look for who sets the clock (a second time daemon, a hypervisor's agent), and keep one that slews: chronyc makestep belongs to the boot"}
}

func (r RegistryClock) examine() Finding {
	const id = "clock.registry"
	if !r.Ahead.OK() {
		return NotKnown(id, r.Ensemble, r.Ahead.Unknown, whyRegistry)
	}
	f := Finding{ID: id, Subject: r.Ensemble, Why: whyRegistry,
		Found: fmt.Sprintf("ZooKeeper's clock is %s of this host's, give or take %s", apart(r.Ahead.Value), r.Within.Round(time.Millisecond))}
	if r.Ahead.Value.Abs() > apartMost+r.Within {
		f.Severity = Warning
		f.Fix = "synchronise both: chronyc tracking here and on ZooKeeper's servers tells which one is wrong"
	}
	return f
}

func apart(d time.Duration) string {
	if d < 0 {
		return d.Abs().Round(time.Millisecond).String() + " behind"
	}
	return d.Round(time.Millisecond).String() + " ahead"
}
