package agent

import (
	"encoding/json"
	"slices"
	"time"

	"github.com/myelin-sd/myelin/config"
	"github.com/myelin-sd/myelin/discovery"
)

// The guard's clocks. Session timeouts in the field are seconds to half a minute.
const (
	// lossWindow is how long a silent loss counts together with those behind it: the sessions of a fleet that loses its
	// registry end over some ten seconds, not at once.
	lossWindow = time.Minute
	// recoveryLeast is how long after the return of the registry at least a silent loss waits before it is judged. In
	// that time registrars come back, each with a new session.
	recoveryLeast = time.Minute
	// defaultWait is how long it waits where the session's timeout is not known.
	defaultWait = 10 * time.Second
)

// Reasons for a hold that is about some of the instances, as they are shown. Those about all are in view.go.
const (
	heldDrop  = "more than max_drop_percent of the instances vanished within a minute"
	heldLeast = "fewer than min_backends would be left"
	heldOlder = "the registry shows an older state than before"
	heldWaits = "the registry has only just come back"
)

// What the guard decides about instances: the label of a metric, and the kind of a line in the log.
const (
	decidedHeld     = "held"     // lost, and kept in force
	decidedBelieved = "believed" // lost without a word, and let go: they are few
	decidedLeft     = "left"     // they said that they leave, or no longer pass the filters
	decidedReturned = "returned" // held ones that the registry lists again
	decidedDown     = "down"     // held ones that HAProxy's checks say are down
	decidedExpired  = "expired"  // held for hold_for
	decidedReleased = "released" // by an operator
)

// decision is what became of some instances, with the reason in words where it is a hold.
type decision struct {
	what      string
	reason    string
	until     time.Time // of a hold; zero: it has no end in time
	instances []discovery.Instance
}

// guardRules are what the configuration says about losses.
type guardRules struct {
	on          bool
	minBackends int
	dropPercent int           // 0..100
	holdFor     time.Duration // 0: until something else ends it
	// mayEmpty tells that a registry that lists nothing is believed: use_previous_backends is off, or static servers
	// are there for this case.
	mayEmpty bool
}

func rulesOf(s config.Service) guardRules {
	return guardRules{
		on: s.Guard.Enabled, minBackends: s.Guard.MinBackends, dropPercent: s.Guard.MaxDropPercent, holdFor: s.Guard.HoldFor,
		mayEmpty: !s.UsePreviousBackends || len(s.DefaultServers) > 0 && !s.KeepDefaultServers,
	}
}

// contact is how the registry is reached. The zero value is a registry that was never away.
type contact struct {
	away    bool
	since   time.Time     // the session is up since then; zero: for ever
	timeout time.Duration // of the session, as negotiated; 0: not known
}

// wait is how long a silent loss waits at least, when the registry has come back: whoever lost its session meanwhile
// needs as long to have another one.
func (c contact) wait() time.Duration {
	if c.timeout > 0 {
		return c.timeout
	}
	return defaultWait
}

// recovering tells that what is missing now may only not be back yet.
func (c contact) recovering(now time.Time) bool {
	return c.away || !c.since.IsZero() && now.Sub(c.since) < max(recoveryLeast, 3*c.timeout)
}

// settled tells that the registry is there for long enough to go by what it does not say.
func (c contact) settled(now time.Time) bool {
	return !c.away && (c.since.IsZero() || now.Sub(c.since) >= c.wait())
}

// loss is how an instance went.
type loss string

const (
	lossSilent  loss = "silent"  // without a word: it crashed, or its registrar or the registry did
	lossLeft    loss = "left"    // it was marked as leaving
	lossChanged loss = "changed" // it is registered still, and no longer passes the filters
)

// hold is an instance that stays in force although the registry does not list it.
type hold struct {
	instance discovery.Instance
	loss     loss
	reason   string
	since    time.Time
	until    time.Time // zero: no end in time
	waits    bool      // it is judged at until; otherwise it ends then
}

// lostAt is a silent loss that was believed.
type lostAt struct {
	endpoint discovery.Endpoint
	at       time.Time
}

// guard decides which losses of a service are believed. It is a value: hear, see, pass and release return the next one
// with what they decided, and change nothing. It knows no clock and asks nobody.
//
// Instances are told apart by their endpoints: who registers at the same address again is back, under whatever name.
type guard struct {
	rules guardRules

	heard    bool                 // listed holds
	listed   []discovery.Instance // what the registry listed last, as far as it passes the filters; sorted
	tree     discovery.Tree       // where that was read
	holds    []hold               // sorted; none of their endpoints is in listed
	lost     []lostAt             // within the last lossWindow, by time
	released bool                 // an operator has let everything go, and the registry has listed nothing since
}

// heard is what the registry says.
type heard struct {
	found   []discovery.Instance // registered, not leaving, and passing the filters; sorted
	all     []discovery.Instance // whatever is registered; sorted
	empty   string               // why found is empty
	tree    discovery.Tree
	contact contact
}

// hear takes in what the registry lists now. Who is new, or left on purpose, is none of its business: the caller goes by
// found and by held.
func (g guard) hear(e heard, now time.Time) (guard, []decision) {
	var made []decision
	old := g
	g.heard, g.listed, g.tree = true, e.found, e.tree
	if !e.tree.Known() {
		g.tree = old.tree
	}
	g.lost = slices.DeleteFunc(slices.Clone(old.lost), func(l lostAt) bool { return now.Sub(l.at) >= lossWindow || has(e.found, l.endpoint) })

	back, holds := partHolds(old.holds, func(h hold) bool { return has(e.found, h.instance.Endpoint) })
	made = decide(made, decidedReturned, "", back)
	for i := range holds {
		if h := &holds[i]; has(e.all, h.instance.Endpoint) { // it came back only to go on purpose
			h.loss = lossOf(e.all, h.instance.Endpoint)
		}
	}
	lost := newlyLost(old.listed, e, now)
	if !old.heard {
		lost = nil // what a set from disk held is carried over by restore
	}

	if len(e.found) == 0 {
		if g.rules.mayEmpty || g.released {
			g.holds = nil
			return g, decide(made, decidedBelieved, "", append(holds, lost...))
		}
		for i := range lost {
			lost[i].reason = e.empty
		}
		for i := range holds {
			if h := &holds[i]; h.waits { // there is nothing to judge them by
				h.waits, h.until, h.reason = false, time.Time{}, e.empty
			}
		}
		g.holds = inOrder(append(holds, lost...))
		return g, decide(made, decidedHeld, e.empty, lost)
	}

	g.released = false
	if !g.rules.on {
		g.holds = nil
		return g, decide(made, decidedLeft, "", append(holds, lost...))
	}
	byIntent := func(h hold) bool { return h.loss != lossSilent }
	left, lost := partHolds(lost, byIntent)
	kept, holds := partHolds(holds, byIntent)
	made = decide(made, decidedLeft, "", append(kept, left...))
	if old.heard && len(old.listed) == 0 {
		// Nobody knew how long the registry would list nothing. The time of those that are missing yet begins now, or
		// else the first one back would be the only one.
		for i := range holds {
			holds[i].until = g.deadline(now)
		}
	}
	g.holds = holds
	base := len(old.listed) - len(left) + len(holds) + len(g.lost)
	v := g.judge(lost, base, e.contact.recovering(now), old.tree.Newer(e.tree))
	return g.carryOut(v, lost, e.contact.wait(), made, now)
}

// newlyLost are those of listed that are not found any more, not judged yet.
func newlyLost(listed []discovery.Instance, e heard, now time.Time) []hold {
	var out []hold
	for _, in := range missing(listed, e.found) {
		out = append(out, hold{instance: in, loss: lossOf(e.all, in.Endpoint), since: now})
	}
	return out
}

// verdict is what becomes of silent losses.
type verdict struct {
	reason string // empty: they are believed
	waits  bool
}

// judge says what is to become of lost, when base instances were there before the first loss that counts. Those that are
// held and those that were believed in the last minute count with them.
func (g guard) judge(lost []hold, base int, recovering, older bool) verdict {
	if len(lost) == 0 {
		return verdict{}
	}
	gone := len(lost) + len(g.holds) + len(g.lost)
	switch {
	case older:
		return verdict{reason: heldOlder}
	case len(g.listed) < g.rules.minBackends:
		return verdict{reason: heldLeast}
	case gone*100 > g.rules.dropPercent*base:
		return verdict{reason: heldDrop}
	case recovering:
		return verdict{reason: heldWaits, waits: true}
	}
	return verdict{}
}

// carryOut does with lost what the verdict says.
func (g guard) carryOut(v verdict, lost []hold, wait time.Duration, made []decision, now time.Time) (guard, []decision) {
	if v.reason == "" {
		for _, h := range lost {
			g.lost = append(g.lost, lostAt{h.instance.Endpoint, now})
		}
		return g, decide(made, decidedBelieved, "", lost)
	}
	for i := range lost {
		h := &lost[i]
		h.reason, h.waits, h.until = v.reason, v.waits, g.deadline(now)
		if v.waits {
			h.until = now.Add(wait)
		}
	}
	g.holds = inOrder(slices.Concat(g.holds, lost))
	return g, decide(made, decidedHeld, v.reason, lost)
}

// deadline is when a hold that begins now ends.
func (g guard) deadline(now time.Time) time.Time {
	if g.rules.holdFor == 0 {
		return time.Time{}
	}
	return now.Add(g.rules.holdFor)
}

// pass takes in that time has passed: those that waited are judged, and those that were held for long enough let go. But
// nobody goes while the registry is away, has only just come back, or lists nothing at all: that says nothing about
// them.
func (g guard) pass(c contact, now time.Time) (guard, []decision) {
	if !g.heard || len(g.listed) == 0 || !c.settled(now) {
		return g, nil
	}
	over := func(h hold) bool { return !h.until.IsZero() && !now.Before(h.until) }
	due, holds := partHolds(g.holds, over)
	if len(due) == 0 {
		return g, nil
	}
	waited, expired := partHolds(due, func(h hold) bool { return h.waits })
	g.holds = holds
	g.lost = slices.DeleteFunc(slices.Clone(g.lost), func(l lostAt) bool { return now.Sub(l.at) >= lossWindow })
	made := decide(nil, decidedExpired, "", expired)
	v := g.judge(waited, len(g.listed)+len(waited)+len(holds)+len(g.lost), false, false)
	return g.carryOut(v, waited, c.wait(), made, now)
}

// see takes in which endpoints HAProxy's own checks say are down, in a backend in which some servers are up. Where none
// is, that says more about this host's network than about them, and nobody may be asked.
func (g guard) see(down map[discovery.Endpoint]bool, up int) (guard, []decision) {
	if up == 0 {
		return g, nil
	}
	dead, alive := partHolds(g.holds, func(h hold) bool { return down[h.instance.Endpoint] })
	if len(g.listed)+len(alive) == 0 {
		return g, nil // those that are up are none of the registry's; the last set stays
	}
	g.holds = alive
	return g, decide(nil, decidedDown, "", dead)
}

// release lets everything go that is held. A registry that lists nothing is believed until it lists something again.
func (g guard) release() (guard, []decision) {
	made := decide(nil, decidedReleased, "", g.holds)
	g.holds, g.lost = nil, nil
	g.released = g.heard && len(g.listed) == 0
	return g, made
}

// next is when pass is to be called; false: nothing waits for it.
func (g guard) next() (first time.Time, ok bool) {
	for _, h := range g.holds {
		if !h.until.IsZero() && (!ok || h.until.Before(first)) {
			first, ok = h.until, true
		}
	}
	return first, ok
}

// held are the instances that stay in force beside those that are listed; sorted.
func (g guard) held() []discovery.Instance {
	if len(g.holds) == 0 {
		return nil
	}
	out := make([]discovery.Instance, len(g.holds))
	for i, h := range g.holds {
		out[i] = h.instance
	}
	return out
}

// why is the reason of the oldest hold, those that are judged before those that only wait to be, and since when
// something is held; false: nothing is.
func (g guard) why() (reason string, since time.Time, ok bool) {
	var oldest hold
	for _, h := range g.holds {
		if !ok || h.since.Before(since) {
			since = h.since
		}
		if !ok || !h.waits && oldest.waits || h.waits == oldest.waits && h.since.Before(oldest.since) {
			oldest, ok = h, true
		}
	}
	return oldest.reason, since, ok
}

// drop forgets the holds of instances that keep does not want: the filters changed.
func (g guard) drop(keep func([]discovery.Instance) []discovery.Instance) guard {
	wanted := keep(g.held())
	_, g.holds = partHolds(g.holds, func(h hold) bool { return !has(wanted, h.instance.Endpoint) })
	return g
}

// decide adds a decision about some instances, if there are any.
func decide(made []decision, what, reason string, about []hold) []decision {
	if len(about) == 0 {
		return made
	}
	d := decision{what: what, reason: reason, until: about[0].until}
	for _, h := range about {
		d.instances = append(d.instances, h.instance)
	}
	return append(made, d)
}

// partHolds splits holds; neither part shares memory with them.
func partHolds(holds []hold, in func(hold) bool) (those, others []hold) {
	for _, h := range holds {
		if in(h) {
			those = append(those, h)
		} else {
			others = append(others, h)
		}
	}
	return those, others
}

func inOrder(holds []hold) []hold {
	slices.SortFunc(holds, func(a, b hold) int { return a.instance.Compare(&b.instance) })
	return holds
}

// missing are those of before whose endpoints after has not. Both are sorted.
func missing(before, after []discovery.Instance) []discovery.Instance {
	if len(before) == len(after) && (len(before) == 0 || &before[0] == &after[0]) {
		return nil
	}
	var out []discovery.Instance
	for i := range before {
		e := before[i].Endpoint
		if len(after) > 1 && after[1].Endpoint == e { // mostly
			after = after[1:]
			continue
		}
		for len(after) > 0 && after[0].Endpoint.Compare(e) < 0 {
			after = after[1:]
		}
		if len(after) == 0 || after[0].Endpoint != e {
			out = append(out, before[i])
		}
	}
	return out
}

// find is where the instances of an endpoint begin in a sorted list.
func find(list []discovery.Instance, e discovery.Endpoint) int {
	i, _ := slices.BinarySearchFunc(list, e, func(in discovery.Instance, e discovery.Endpoint) int { return in.Endpoint.Compare(e) })
	return i
}

func has(list []discovery.Instance, e discovery.Endpoint) bool {
	i := find(list, e)
	return i < len(list) && list[i].Endpoint == e
}

// lossOf tells how an instance went that is not among those found, by what is registered.
func lossOf(all []discovery.Instance, e discovery.Endpoint) loss {
	l := lossSilent
	for i := find(all, e); i < len(all) && all[i].Endpoint == e; i++ {
		if !all[i].Leaving {
			return lossChanged
		}
		l = lossLeft
	}
	return l
}

// merge is a and b, both sorted, in one sorted list. It is a itself where b is empty.
func merge(a, b []discovery.Instance) []discovery.Instance {
	if len(b) == 0 {
		return a
	}
	out := slices.Concat(a, b)
	slices.SortStableFunc(out, discovery.Compare)
	return out
}

// guardNote is what of a guard is kept beside the set on disk, for the next process.
type guardNote struct {
	Tree  discovery.Tree `json:"tree,omitzero"`
	Holds []holdNote     `json:"holds,omitempty"`
}

// holdNote are holds that differ in their instances only.
type holdNote struct {
	Loss   loss      `json:"loss"`
	Reason string    `json:"reason"`
	Since  time.Time `json:"since"`
	Until  time.Time `json:"until,omitzero"`
	Waits  bool      `json:"waits,omitempty"`
	Of     []string  `json:"of"` // endpoints
}

// groups are the holds, those together that began together for the same reason.
func (g guard) groups() []holdNote {
	var out []holdNote
	for _, h := range g.holds {
		i := slices.IndexFunc(out, func(n holdNote) bool {
			return n.Loss == h.loss && n.Reason == h.reason && n.Since.Equal(h.since) && n.Until.Equal(h.until) && n.Waits == h.waits
		})
		if i < 0 {
			i = len(out)
			out = append(out, holdNote{h.loss, h.reason, h.since, h.until, h.waits, nil})
		}
		out[i].Of = append(out[i].Of, h.instance.Endpoint.String())
	}
	slices.SortStableFunc(out, func(a, b holdNote) int { return a.Since.Compare(b.Since) })
	return out
}

// note is what is to be kept; empty: nothing.
func (g guard) note() string {
	if len(g.holds) == 0 && !g.tree.Known() {
		return ""
	}
	text, err := json.Marshal(guardNote{g.tree, g.groups()})
	if err != nil {
		return "" // a time beyond the year 9999
	}
	return string(text)
}

// restored is a guard that has heard nothing yet, with what the note of a kept set says, and the instances that the
// registry listed then. A note that cannot be read says nothing: then all of them count as listed.
func (g guard) restored(basis discovery.Snapshot) (guard, []discovery.Instance) {
	var n guardNote
	if basis.Note == "" || json.Unmarshal([]byte(basis.Note), &n) != nil {
		return g, basis.Instances
	}
	g.tree = n.Tree
	held := map[string]holdNote{}
	for _, h := range n.Holds {
		for _, e := range h.Of {
			held[e] = h
		}
	}
	var listed []discovery.Instance
	for _, in := range basis.Instances {
		if h, ok := held[in.Endpoint.String()]; ok {
			g.holds = append(g.holds, hold{in, h.Loss, h.Reason, h.Since, h.Until, h.Waits})
		} else {
			listed = append(listed, in)
		}
	}
	return g, listed
}
