package agent

import (
	"context"
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/sirupsen/logrus"

	"github.com/myelin-sd/myelin/config"
	"github.com/myelin-sd/myelin/discovery"
)

// lookAgain is the least time between two looks at a hold whose time is over, and which cannot end: the registry is
// away.
const lookAgain = time.Second

// contact is how a service's registry is reached now.
func (a *Agent) contact(s config.Service) contact {
	st, ok := a.sessions.Status(s.Discovery.ZooKeeper)
	if !ok {
		return contact{}
	}
	return contact{away: !st.Connected, since: st.Since, timeout: st.Timeout}
}

// awaitGuards has the alarm ring when the first guard has something to decide.
func (g *generation) awaitGuards(due *alarm) {
	for i := range g.views {
		if at, ok := g.views[i].guard.next(); ok {
			if soonest := time.Now().Add(lookAgain); at.Before(soonest) {
				at = soonest
			}
			due.by(at)
		}
	}
}

// each takes a step with every view that something is held of.
func (g *generation) each(step func(view) view) {
	for i, v := range g.views {
		if len(v.guard.holds) == 0 {
			continue
		}
		v.contact, v.news = g.contact(v.service), nil
		if v = step(v); len(v.news) > 0 {
			g.put(i, v)
		}
	}
}

// weigh has the guards know what HAProxy's checks say of the servers that they hold.
func (g *generation) weigh() {
	var all []*haproxyStatus
	for _, r := range g.haproxys {
		st := r.status.Load()
		if st == nil {
			return
		}
		all = append(all, st)
	}
	for _, s := range g.shadows {
		all = append(all, s.status.Load())
	}
	w := g.wanted.Load()
	backends := map[string]string{}
	for name, b := range w.backends {
		backends[b.service] = name
	}
	g.each(func(v view) view {
		down, up := evidence(v, w.backends[backends[v.service.Name]], all)
		return v.see(down, up, time.Now())
	})
}

// release asks for a service's holds to be let go.
type release struct {
	service string
	done    chan released // capacity one
}

// released is what became of that.
type released struct {
	Released
	err error
}

// Released tells what the release of a service's holds has let go.
type Released struct {
	Service   string   `json:"service"`
	Instances []string `json:"instances"` // endpoints; none where nothing was known but what HAProxy had
}

// NoServiceError says that there is no service of that name.
type NoServiceError struct {
	Service string
	Near    string // the name of one that was probably meant; empty: none is like it
}

func (e *NoServiceError) Error() string {
	hint := "myelin status shows what it has"
	if e.Near != "" {
		hint = fmt.Sprintf("did you mean %q?", e.Near)
	}
	return fmt.Sprintf("the agent has no service %q; %s", e.Service, hint)
}

// noService says so, with the name that was probably meant.
func noService(service string, views []view) *NoServiceError {
	names := make([]string, len(views))
	for i := range views {
		names[i] = views[i].service.Name
	}
	return &NoServiceError{service, config.Nearest(service, names)}
}

// NotHeldError says that nothing of a service is held.
type NotHeldError struct{ Service string }

func (e *NotHeldError) Error() string {
	return fmt.Sprintf("nothing of service %q is held; myelin guard shows what is", e.Service)
}

// Release lets go what is held of a service: what the registry does not list leaves HAProxy. The error is a
// *NoServiceError or a *NotHeldError, or ctx's. It blocks until that is decided; HAProxy follows within moments.
func (a *Agent) Release(ctx context.Context, service string) (Released, error) {
	r := release{service, make(chan released, 1)}
	select {
	case a.releases <- r:
	case <-ctx.Done():
		return Released{}, fmt.Errorf("release service %s: %w", service, ctx.Err())
	}
	out := <-r.done // whoever took it answers at once
	return out.Released, out.err
}

func (g *generation) release(service string) released {
	i := slices.IndexFunc(g.views, func(v view) bool { return v.service.Name == service })
	if i < 0 {
		return released{err: noService(service, g.views)}
	}
	out := Released{Service: service, Instances: []string{}}
	v := g.views[i]
	v.news = nil
	v = v.release(time.Now())
	if len(v.news) == 0 {
		return released{err: &NotHeldError{service}}
	}
	for _, d := range v.news {
		for _, in := range d.instances {
			out.Instances = append(out.Instances, in.Endpoint.String())
		}
	}
	g.put(i, v)
	return released{Released: out}
}

// logHeld says once that a service keeps its last good set against a registry that lists nothing, and when that is over.
func logHeld(log logrus.FieldLogger, old, v view) {
	was, is := emptyReason(old.held), emptyReason(v.held)
	switch {
	case is && v.held != old.held && !v.known:
		log.Warn("no instance is known; HAProxy keeps what it has: " + v.held)
	case is && v.held != old.held:
		log.WithField("instances", len(v.active)).Warn("the last good set stays in force: " + v.held)
	case was && !is && v.guard.released:
		log.Warn("the registry lists nothing, and that is believed: an operator let go what was held")
	case was && !is:
		log.WithField("instances", len(v.active)).Info("the registry lists instances again")
	}
}

// emptyReason tells whether a hold is about a registry that lists nothing.
func emptyReason(held string) bool {
	switch held {
	case heldMissing, heldEmpty, heldLeaving, heldFiltered:
		return true
	}
	return false
}

// logDecisions writes one line for each decision of the guard's last step.
func logDecisions(log logrus.FieldLogger, v view) {
	for _, d := range v.news {
		f := logrus.Fields{"decision": d.what, "count": len(d.instances), "instances": briefInstances(d.instances)}
		if d.reason != "" {
			f["reason"] = d.reason
		}
		if !d.until.IsZero() && d.what == decidedHeld {
			f["until"] = d.until.Format(time.RFC3339)
		}
		line := log.WithFields(f)
		switch d.what {
		case decidedHeld:
			line.Warn("guard: what the registry lost stays in force")
		case decidedBelieved:
			line.Info("guard: the loss is believed")
		case decidedLeft:
			line.Info("guard: they left on purpose")
		case decidedReturned:
			line.Info("guard: held instances are back")
		case decidedDown:
			line.Info("guard: HAProxy sees held instances down; they are let go")
		case decidedExpired:
			line.Warn("guard: held instances are let go after hold_for")
		case decidedReleased:
			line.Warn("guard: held instances are let go by an operator")
		}
	}
}

func briefInstances(instances []discovery.Instance) string {
	names := make([]string, len(instances))
	for i, in := range instances {
		names[i] = strings.TrimPrefix(in.Name+"@"+in.Endpoint.String(), "@")
	}
	return brief(names)
}

// GuardStatus is what the guard of a service holds, and what it has decided.
type GuardStatus struct {
	Off     bool              `json:"off,omitempty"`
	Held    int               `json:"held"` // instances in force that the registry does not list
	Holds   []HoldStatus      `json:"holds,omitempty"`
	Decided map[string]uint64 `json:"decided,omitempty"` // instances by what was decided about them since the start
}

// HoldStatus is instances that are held together.
type HoldStatus struct {
	Reason    string     `json:"reason"`
	Since     time.Time  `json:"since"`
	Until     *time.Time `json:"until,omitempty"` // absent: until the registry lists something, HAProxy sees them down, or a release
	Judged    bool       `json:"judged"`          // false: at Until it is decided whether they are held for longer
	Instances []string   `json:"instances"`       // endpoints
}

func guardStatus(v view) GuardStatus {
	s := GuardStatus{Off: !v.guard.rules.on, Held: len(v.guard.holds), Decided: v.decided}
	for _, h := range v.guard.groups() {
		hs := HoldStatus{Reason: h.Reason, Since: h.Since, Judged: !h.Waits, Instances: h.Of}
		// While the registry lists nothing, time ends nothing.
		if !h.Until.IsZero() && !emptyReason(v.held) {
			hs.Until = &h.Until
		}
		s.Holds = append(s.Holds, hs)
	}
	return s
}
