package registrar

import "time"

// rampSteps is in how many steps a weight rises: each is a write that every agent hears of.
const rampSteps = 10

// ramp is how far a service that came back has its weight: a hundredth until it is registered, then a tenth more with
// each tenth of a time, and all of it in the end. Its zero value is the end. It reads no clock.
type ramp struct {
	rising bool
	since  time.Time // when it was registered; zero: it was not yet
}

// begin starts at the bottom.
func (r *ramp) begin() { *r = ramp{rising: true} }

// registered starts the clock, unless it runs.
func (r *ramp) registered(now time.Time) {
	if r.rising && r.since.IsZero() {
		r.since = now
	}
}

// percent of the weight, when it takes over to rise. It notices the end.
func (r *ramp) percent(over time.Duration, now time.Time) int {
	switch {
	case !r.rising:
		return 100
	case over <= 0 || !r.since.IsZero() && now.Sub(r.since) >= over:
		*r = ramp{}
		return 100
	case r.since.IsZero():
		return 1
	}
	return max(1, 100/rampSteps*r.step(over, now))
}

// wait is how long it takes to the next step; negative: there is none to wait for.
func (r *ramp) wait(over time.Duration, now time.Time) time.Duration {
	if !r.rising || r.since.IsZero() {
		return -1
	}
	next := over * time.Duration(r.step(over, now)+1) / rampSteps
	return max(0, next-now.Sub(r.since)) + 1 // what is divided is rounded down
}

func (r *ramp) step(over time.Duration, now time.Time) int {
	return int(now.Sub(r.since) * rampSteps / max(over, 1))
}
