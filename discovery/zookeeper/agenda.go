package zookeeper

import (
	"math"
	"math/rand/v2"
	"time"
)

// How a source spreads its work. What it says is read by every agent of a fleet at the same moments: after the loss of
// a server, and with every change.
const (
	windowMost = 250 * time.Millisecond // between rounds in a storm
	quietRate  = 100.0                  // changes per second up to which each is read at once
	stormRate  = 1000.0                 // from which rounds are windowMost apart

	// After a reconnect the names come first, then the data of known children, each after a random part of a time that
	// grows with their number: 10,000 agents that each read 10,000 nodes at once would keep servers busy for minutes.
	lookPerNode, lookMost = 100 * time.Microsecond, 2 * time.Second
	readPerNode, readMost = time.Millisecond, 30 * time.Second

	// With one watch per node each change of the set lists all names, so that lists are this far apart at least.
	classicPerNode, classicMost = 250 * time.Microsecond, time.Second
)

// agenda is when a source looks at what. The zero time stands for never.
type agenda struct {
	round time.Time // none before
	look  time.Time // has the directory changed while we were away?
	all   time.Time // read all children that are known
	audit time.Time // compare everything, though nothing is known to have changed
	rate  rate
}

// resync plans what a reconnect asks for, of a view with n children.
func (a *agenda) resync(n int, now time.Time) {
	a.look = now.Add(spread(n, lookPerNode, lookMost))
	a.all = now.Add(spread(n, readPerNode, readMost))
}

// spread is a random time below n times each, and below most.
func spread(n int, each, most time.Duration) time.Duration {
	return rand.N(min(time.Duration(n)*each, most) + 1)
}

// reached reports whether a time has come, and clears it then.
func reached(at *time.Time, now time.Time) bool {
	if at.IsZero() || now.Before(*at) {
		return false
	}
	*at = time.Time{}
	return true
}

// next is when something is to be done; pending tells that a round has work already.
func (a *agenda) next(pending bool) time.Time {
	at := a.audit
	for _, t := range []time.Time{a.look, a.all} {
		if !t.IsZero() && t.Before(at) {
			at = t
		}
	}
	if pending && a.round.Before(at) {
		return a.round
	}
	return at
}

// rate counts changes, and forgets them within about a second.
type rate struct {
	n  float64
	at time.Time
}

func (r *rate) add(n int, now time.Time) {
	r.n = r.now(now) + float64(n)
	r.at = now
}

// now is the changes per second.
func (r *rate) now(now time.Time) float64 { return r.n * math.Exp(-now.Sub(r.at).Seconds()) }

// window is the time between the beginnings of two rounds: none when little changes.
func window(changes float64) time.Duration {
	part := (changes - quietRate) / (stormRate - quietRate)
	return time.Duration(min(max(part, 0), 1) * float64(windowMost))
}

// jitter returns a random time around d, from two thirds to four thirds of it.
func jitter(d time.Duration) time.Duration {
	return d*2/3 + rand.N(d*2/3+1)
}
