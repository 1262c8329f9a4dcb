package registrar

import (
	"errors"
	"fmt"
	"math"
	"time"
)

// Damping holds back what a service that goes up and down all the time does to the directory and to all who watch it.
//
// Each time its checks take the service down adds 1 to a penalty, which halves with each HalfLife. Once the penalty is
// above Suppress, and until it has sunk to Reuse, the service stays up whatever its checks say. Moves up are never
// held back: were they, a trouble that all instances of a service share would leave none of them, long after it is
// over. A service that stays down is taken down at last, MaxHold after its checks said so at the latest.
type Damping struct {
	Suppress float64       // above 0
	Reuse    float64       // above 0, below Suppress
	HalfLife time.Duration // above 0
	MaxHold  time.Duration // above 0
}

// DefaultDamping holds the third move down within a minute or so, for two minutes at the longest.
func DefaultDamping() Damping {
	return Damping{Suppress: 2, Reuse: 1, HalfLife: time.Minute, MaxHold: 3 * time.Minute}
}

// Validate says what makes no sense, or would never hold anything.
func (d Damping) Validate() error {
	switch {
	case !(d.Suppress > 0 && d.Reuse > 0 && d.HalfLife > 0 && d.MaxHold > 0):
		return errors.New("suppress, reuse, half_life and max_hold must be above 0")
	case d.Reuse >= d.Suppress:
		return fmt.Errorf("reuse %g is not below suppress %g", d.Reuse, d.Suppress)
	case d.ceiling() <= d.Suppress:
		least := time.Duration(math.Ceil(d.HalfLife.Seconds()*math.Log2(d.Suppress/d.Reuse))) * time.Second
		return fmt.Errorf("nothing would ever be held: from suppress to reuse takes %s, and max_hold is %s", least, d.MaxHold)
	}
	return nil
}

// ceiling is the highest penalty: that which sinks to Reuse within MaxHold.
func (d Damping) ceiling() float64 {
	return d.Reuse * math.Exp2(d.MaxHold.Seconds()/d.HalfLife.Seconds())
}

// damper applies a Damping to what the checks of a service say. It reads no clock. A nil one lets everything through.
type damper struct {
	Damping
	penalty    float64
	at         time.Time // when penalty was that
	said       State     // by the checks, last
	is         State     // in force
	suppressed bool
}

func newDamper(d *Damping) *damper {
	if d == nil {
		return nil
	}
	return &damper{Damping: *d}
}

// filter returns the state in force when the checks say said. While a move down is held, wake is when it ends, if
// nothing happens; otherwise it is zero.
func (d *damper) filter(said State, now time.Time) (is State, wake time.Time) {
	if d == nil || said == Unknown {
		return said, time.Time{}
	}
	d.decay(now)
	if d.said == Up && said == Down {
		d.penalty = min(d.penalty+1, d.ceiling())
		d.suppressed = d.suppressed || d.penalty > d.Suppress
	}
	if d.said = said; said == Down && d.is == Up && d.suppressed {
		return Up, now.Add(d.relief())
	}
	d.is = said
	return said, time.Time{}
}

// forget starts anew with a service that is not up, with the penalty that it has.
func (d *damper) forget() { d.said, d.is = Unknown, Unknown }

// release says that the service is not registered, so that there is nothing to hold.
func (d *damper) release() { d.is = Down }

// decay lets the penalty sink.
func (d *damper) decay(now time.Time) {
	d.penalty *= math.Exp2(-now.Sub(d.at).Seconds() / d.HalfLife.Seconds())
	d.at = now
	if d.penalty <= d.Reuse*(1+1e-9) { // the clock is as exact as a nanosecond, the logarithm less so
		d.suppressed = false
	}
}

// relief is how long it takes until the penalty has sunk to Reuse.
func (d *damper) relief() time.Duration {
	halves := math.Log2(d.penalty / d.Reuse)
	return time.Duration(math.Ceil(halves * float64(d.HalfLife)))
}

// status is what is to be seen of it; nil when there is none.
func (d *damper) status(now time.Time) *DampingStatus {
	if d == nil {
		return nil
	}
	d.decay(now)
	st := &DampingStatus{Penalty: math.Round(d.penalty*100) / 100, Suppressed: d.suppressed, Held: d.held()}
	if d.suppressed {
		st.Until = now.Add(d.relief())
	}
	return st
}

// held reports whether a move down is held back.
func (d *damper) held() bool { return d != nil && d.is == Up && d.said == Down }
