package registrar

import (
	"math"
	"time"

	"github.com/myelin-sd/myelin/journal"
)

// RateLimit bounds how often a service may change between up and down in the directory: Nerve's rate_limiting.
type RateLimit struct {
	Rate   float64 // changes a second; 0 or less: no limit
	Burst  float64 // changes that may come at once after quiet; below 1: 1
	Shadow bool    // changes that would wait are logged and counted, and do not wait
}

// throttle is a bucket of changes. It is full at the beginning: in Nerve it begins with Rate, so that a service with
// less than one change a second waits before it is registered at all. It reads no clock.
type throttle struct {
	spent float64   // changes that are not filled up again
	at    time.Time // when spent was right
	until time.Time // a change waits until then; zero: none does
}

// take takes a change out of the bucket. When there is none it returns how long until there is.
func (t *throttle) take(l RateLimit, now time.Time) (wait time.Duration) {
	if l.Rate <= 0 {
		return 0
	}
	t.spent = max(0, t.spent-now.Sub(t.at).Seconds()*l.Rate)
	t.at = now
	if missing := t.spent + 1 - max(l.Burst, 1); missing > 1e-9 {
		return max(1, time.Duration(math.Ceil(min(missing/l.Rate, 1e9)*float64(time.Second))))
	}
	t.spent++
	return 0
}

// wait is how long a change waits; negative: none does.
func (t *throttle) wait(now time.Time) time.Duration {
	if t.until.IsZero() {
		return -1
	}
	return max(0, t.until.Sub(now))
}

func (t *throttle) over(now time.Time) bool { return t.wait(now) == 0 }

// throttled tells whether a change of health has to wait. The first registration never does, and nobody who takes the
// service away on purpose.
func (k *keeper) throttled(now time.Time) bool {
	waited, l := !k.throttle.until.IsZero(), k.service.RateLimit
	k.throttle.until = time.Time{}
	if k.leaving || k.intent != nil || k.state == Unknown || k.upkeep.want == Unknown || k.state == k.upkeep.want {
		return false
	}
	wait := k.throttle.take(l, now)
	if wait == 0 {
		return false
	}
	log := k.logger().WithField("duration", wait)
	if l.Shadow {
		k.statsd.throttled(k.service.Name, true)
		log.Warn("rate_limiting would have this change wait, were it not for its shadow_mode")
		return false
	}
	if k.throttle.until = now.Add(wait); !waited {
		k.statsd.throttled(k.service.Name, false)
		log.Warn("service changes too often: rate_limiting has this change wait")
		k.record(journal.KindCheck, "service changes too often; rate_limiting has this change wait for "+wait.Round(time.Millisecond).String(), "")
	}
	return true
}
