package registrar

import "time"

// The pace of upkeep.
const (
	auditEvery  = 30 * time.Second       // a registration that nothing was heard of is looked at again
	repairPause = 100 * time.Millisecond // least time between the end of a request and a repair the directory asks for
	backoffMin  = 100 * time.Millisecond // after a failed request, doubled with each
	backoffMax  = 2 * time.Second
	markLimit   = time.Second // how long a mark is tried; then the node goes without
)

// op is a request to the directory.
type op int

const (
	idle op = iota
	publish
	mark // publish that the service goes on purpose
	withdraw
)

// upkeep decides what the directory is asked next, and when. It reads no clock and does no I/O, so that every order
// of failures, lost answers and changes of mind can be tried in a table.
//
// What it rests on: a request that failed may have been carried out, so it is followed by another one until one is
// confirmed; and an answer counts only for what was wanted, and true, when it was asked.
type upkeep struct {
	jitter func() float64 // from [0, 1)

	want      State // Unknown: not decided, nothing is asked
	confirmed bool  // the directory is known to be as wanted
	touched   bool  // a node of ours may exist
	failures  int   // requests that failed in a row
	due       time.Time
	why       string        // what made the next request due: a reason for the metric
	ended     time.Time     // when the last request ended
	within    time.Duration // the directory is to be asked again, as it says itself; 0: no matter when

	// A voluntary leave: the node is marked, the mark stands for a while, and then the node goes. Both times are zero
	// outside of it.
	notice     time.Duration // how long a mark stands
	markBy     time.Time     // until then the mark is tried
	markStands time.Time     // the mark is set and stands until then

	asked  op  // under way
	rev    int // grows with all that makes the answer to the request under way worthless
	atTime int // rev when it was asked
}

// Why a request is made; a repair carries it as its reason.
const (
	whyHealth = "health"
	whyChange = "change" // of what is to be published
	whyLeave  = "leave"
	whyEvent  = "event" // the directory said that something happened
	whyRetry  = "retry"
	whyAudit  = "audit"
)

// decide says whether the service is to be registered. It reports whether that is news, so that a request for the
// opposite had better be given up.
func (u *upkeep) decide(want State, now time.Time) (news bool) {
	if want == Unknown || want == u.want {
		return false
	}
	u.turn(want, now, whyHealth)
	return true
}

// leave says that the service goes on purpose: its node is marked first, and the mark stands for notice (0: there is
// none). It reports what decide does. A service that is down already is withdrawn, or will be, without a mark.
func (u *upkeep) leave(notice time.Duration, now time.Time) (news bool) {
	if u.want == Down {
		return false
	}
	u.turn(Down, now, whyLeave)
	if u.touched && notice > 0 {
		u.notice, u.markBy = notice, now.Add(markLimit)
	}
	return true
}

func (u *upkeep) turn(want State, now time.Time, why string) {
	u.want = want
	u.again(now, why)
	u.markBy, u.markStands = time.Time{}, time.Time{}
	if want == Down && !u.touched {
		u.confirmed = true
	}
}

// urge ends whatever pause there is after failures.
func (u *upkeep) urge(now time.Time) {
	if !u.confirmed && u.markStands.IsZero() {
		u.again(now, u.why)
	}
}

// hasten has a leave go on without its mark. It reports whether there was one to set, or to wait for.
func (u *upkeep) hasten(now time.Time) (news bool) {
	if u.markBy.IsZero() && u.markStands.IsZero() {
		return false
	}
	u.turn(Down, now, whyLeave)
	return true
}

// changed says that something else is to be published from now on.
func (u *upkeep) changed(now time.Time) {
	if u.want == Up {
		u.again(now, whyChange)
	}
}

// event says that something may have happened to what was published. The pause bounds what two who fight for a node,
// or one who deletes it over and over, cost the directory; the jitter spreads the services of one session. What is
// marked goes in any case.
func (u *upkeep) event(now time.Time) {
	if u.touched && u.markBy.IsZero() && u.markStands.IsZero() {
		u.again(u.paced(now), whyEvent)
	}
}

func (u *upkeep) paced(now time.Time) time.Time {
	if earliest := u.ended.Add(repairPause); earliest.After(now) {
		now = earliest
	}
	return now.Add(u.spread(repairPause))
}

func (u *upkeep) again(at time.Time, why string) {
	u.rev++
	u.confirmed, u.failures = false, 0
	u.due, u.why = at, why
}

// next returns the request to make now, or idle and how long nothing is due; a negative time means for ever.
func (u *upkeep) next(now time.Time) (op, time.Duration) {
	if u.asked != idle || u.want == Unknown {
		return idle, -1
	}
	if u.confirmed && u.want == Down {
		return idle, -1
	}
	if wait := u.due.Sub(now); wait > 0 {
		return idle, wait
	}
	if u.confirmed {
		u.why = whyAudit
	}
	switch {
	case u.want == Up:
		return publish, 0
	case now.Before(u.markBy):
		return mark, 0
	}
	return withdraw, 0
}

// begin notes that a request is under way.
func (u *upkeep) begin(o op) {
	u.asked, u.atTime = o, u.rev
	switch o {
	case publish:
		u.touched = true
	case withdraw:
		u.markBy, u.markStands = time.Time{}, time.Time{}
	}
}

// end notes its outcome.
func (u *upkeep) end(ok bool, now time.Time) {
	was := u.asked
	u.asked, u.ended = idle, now
	if ok && was == withdraw {
		u.touched = false
	}
	switch stale := u.rev != u.atTime; {
	case stale && u.why == whyEvent:
		u.due = u.paced(now)
	case stale: // what was decided meanwhile is due already
	case ok && was == mark:
		u.markBy, u.markStands, u.failures = time.Time{}, now.Add(u.notice), 0
		u.due = u.markStands
	case ok:
		u.confirmed, u.failures = true, 0
		u.due = now.Add(u.audit())
	default:
		u.confirmed = false
		u.failures++
		u.due, u.why = now.Add(u.backoff()), whyRetry
	}
}

// audit is the time to the next look at what stands.
func (u *upkeep) audit() time.Duration {
	d := auditEvery - u.spread(auditEvery/5)
	if u.within > 0 {
		d = min(d, max(u.within, repairPause))
	}
	return d
}

// backoff is the pause after a failed request: half of it certain, half of it by chance.
func (u *upkeep) backoff() time.Duration {
	d := min(backoffMin<<min(u.failures-1, 10), backoffMax)
	return d/2 + u.spread(d/2)
}

func (u *upkeep) spread(d time.Duration) time.Duration { return time.Duration(u.jitter() * float64(d)) }

// absent reports whether no node of ours can be there.
func (u *upkeep) absent() bool { return !u.touched && u.asked == idle }
