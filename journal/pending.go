package journal

import "time"

// mostPending is how many different events wait to be written at the most. Those about many instances at one moment are
// one, so that no storm of the registry comes near.
const mostPending = 4096

// pending is what waits to be written. Events that say the same of many instances become one when there are more of them
// than an event names.
type pending struct {
	events []Event // in the order in which they came
	merged []bool  // by index: it stands in an earlier one
	crowds map[crowdKey]*crowd
	lost   int // events that found no room
}

// crowdKey is what events have in common that become one.
type crowdKey struct {
	role          string
	kind          Kind
	service       string
	what, because string
}

// crowd is events that differ only in their instances.
type crowd struct {
	at    []int // indices of the first few
	names []string
	total int
}

// add takes an event in; how long that takes does not depend on how many there are.
func (p *pending) add(e Event) {
	var c *crowd
	if e.Instance != "" {
		key := crowdKey{e.Role, e.Kind, e.Service, e.What, e.Cause}
		if c = p.crowds[key]; c == nil {
			c = &crowd{}
			if p.crowds == nil {
				p.crowds = map[crowdKey]*crowd{}
			}
			if len(p.events) < mostPending {
				p.crowds[key] = c
			}
		}
		if len(c.at) == few {
			c.total++
			return
		}
	}
	if len(p.events) >= mostPending {
		p.lost++
		return
	}
	if c != nil {
		c.at, c.names, c.total = append(c.at, len(p.events)), append(c.names, e.Instance), c.total+1
	}
	p.events, p.merged = append(p.events, e), append(p.merged, false)
}

// take returns what waits and how many events were lost, and forgets it.
func (p *pending) take() (events []Event, lost int) {
	for _, c := range p.crowds {
		if c.total <= few {
			continue
		}
		e := &p.events[c.at[0]]
		e.Instance, e.Count = "", c.total
		e.What = clip(e.What+": "+names(c.names, c.total), maxWhat)
		for _, i := range c.at[1:] {
			p.merged[i] = true
		}
	}
	for i, e := range p.events {
		if !p.merged[i] {
			events = append(events, e)
		}
	}
	lost = p.lost
	*p = pending{}
	return events, lost
}

// lostEvent says that events are missing here.
func lostEvent(role string, count int, cause string) Event {
	return Event{At: time.Now(), Kind: KindProcess, What: "events are not in this history", Cause: cause, Count: count}.bounded(role, time.Now())
}
