package registrar

import (
	"cmp"
	"errors"
	"fmt"
	"time"
)

// Combination says what the checks of a service amount to together.
type Combination int

// The combinations. Its zero value is CombineAll.
const (
	CombineAll      Combination = iota // up while all checks are up, down when one is
	CombineAny                         // up while one check is up, down when all are
	CombineWeighted                    // up while one check is up, with the part of its weight that the checks that are up stand for
)

// Degraded is the error of a check between pass and failure: the service works, and asks for less traffic. It counts
// as a pass for Rise and Fall, and lowers the weight. It is returned as a pointer, and may be wrapped.
type Degraded struct {
	Reason  string // what the check has found
	Percent int    // of its weight that the service can bear, 1 to 100; 0: 1, hardly any traffic
}

// Error returns the reason.
func (d *Degraded) Error() string { return cmp.Or(d.Reason, "degraded") }

func (d *Degraded) percent() int { return min(max(d.Percent, 1), 100) }

// grading is what a check's result says: whether it is a pass, and what percent of the weight it leaves.
func grading(err error) (ok bool, percent int) {
	var d *Degraded
	switch {
	case err == nil:
		return true, 100
	case errors.As(err, &d):
		return true, d.percent()
	}
	return false, 0
}

// grade is the percent of the weight that a check leaves its service. A lower one counts at once: the service asks for
// help. A higher one counts after rise results in a row that were all higher, so that a service at its limit is not
// thrown back and forth.
type grade struct {
	rise    int
	percent int
	streak  int // results in a row that were better
	worst   int // of them
}

func newGrade(rise int) grade { return grade{rise: max(rise, 1), percent: 100} }

// observe takes the next result. With fresh, which a check has that was not up before, it counts whatever it is.
func (g *grade) observe(ok bool, percent int, fresh bool) {
	switch {
	case !ok:
		g.streak = 0
		return
	case fresh || percent <= g.percent:
		g.percent, g.streak = percent, 0
		return
	case g.streak == 0:
		g.worst = percent
	}
	g.streak++
	g.worst = min(g.worst, percent)
	if g.streak >= g.rise {
		g.percent, g.streak = g.worst, 0
	}
}

// opinion is what one check says of its service.
type opinion struct {
	state   State
	percent int // of the weight, while it is up
	share   int // of the whole; only CombineWeighted tells more than 1 from 1
}

// together is what the opinions amount to: a state, and for Up what percent of the weight, 1 to 100. Opinions without
// a share do not count. A service without checks is up, as in Nerve.
func (c Combination) together(opinions []opinion) (State, int) {
	up, down, unknown := 0, 0, 0
	low, high := 100, 1
	whole, passing := 0, 0
	for _, o := range opinions {
		if o.share <= 0 {
			continue
		}
		whole += o.share
		switch o.state {
		case Up:
			up++
			low, high = min(low, o.percent), max(high, o.percent)
			passing += o.share * o.percent
		case Down:
			down++
		default:
			unknown++
		}
	}
	switch {
	case whole == 0:
		return Up, 100
	case c == CombineAny && up > 0:
		return Up, high
	case c == CombineAll && down > 0:
		return Down, 100
	case unknown > 0:
		return Unknown, 100
	case up == 0:
		return Down, 100
	case c == CombineWeighted:
		return Up, max(passing/whole, 1)
	}
	return Up, low
}

// judgement is what all checks of a service amount to at one moment.
type judgement struct {
	state  State  // Unknown: nothing is to be concluded
	weight int    // percent of the configured weight, 1 to 100; of Up only
	check  string // whose result led to it; empty: none's
	reason error  // of that result; nil: it passed
}

func (j judgement) String() string {
	if j.state == Up && j.weight < 100 {
		return fmt.Sprintf("up with %d percent of its weight", j.weight)
	}
	return j.state.String()
}

func (j judgement) change(at time.Time) StateChange {
	c := StateChange{At: at, State: j.state, Check: j.check, Error: words(j.reason)}
	if j.state == Up {
		c.Percent = j.weight
	}
	return c
}
