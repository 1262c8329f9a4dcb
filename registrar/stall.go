package registrar

import (
	"context"
	"sync"
	"time"

	"github.com/sirupsen/logrus"
)

const (
	beatEvery  = 100 * time.Millisecond
	gapLeast   = 2 * beatEvery // between two beats: the process did not run in the meantime
	gapQuiet   = time.Minute   // least time between two lines of the log about gaps
	doubtsMost = 3             // results in a row of one check that are not believed
)

// pulse tells when this process did not run: stopped, paused with its machine, or starved of the processor. It expects
// to be called at a steady pace; two calls that are far apart on the monotonic clock have a gap between them. A check
// that failed around a gap says more about this process than about its service: its time ran out while nobody read the
// answer.
type pulse struct {
	log     logrus.FieldLogger
	metrics *Metrics

	mu       sync.Mutex
	last     time.Time // zero: it does not beat yet
	resumed  time.Time // the end of the latest gap
	told     time.Time // when a gap was logged last
	untold   int       // gaps since
	unspoken time.Duration
}

// run beats until ctx ends or it is detached.
func (p *pulse) run(ctx context.Context, detached <-chan struct{}) {
	tick := time.NewTicker(beatEvery)
	defer tick.Stop()
	for {
		p.beat(time.Now())
		select {
		case <-tick.C:
		case <-detached:
			return
		case <-ctx.Done():
			return
		}
	}
}

// beat looks for a gap that has just ended.
func (p *pulse) beat(now time.Time) {
	p.mu.Lock()
	defer p.mu.Unlock()
	gap := now.Sub(p.last)
	first := p.last.IsZero()
	if gap > 0 {
		p.last = now
	}
	if first || gap < gapLeast {
		return
	}
	p.resumed = now
	p.metrics.stalled(gap)
	p.untold++
	p.unspoken += gap
	if !p.told.IsZero() && now.Sub(p.told) < gapQuiet {
		return
	}
	p.log.WithFields(logrus.Fields{"duration": p.unspoken, "count": p.untold}).
		Warn("this process did not get to run; checks that failed meanwhile are repeated")
	p.told, p.untold, p.unspoken = now, 0, 0
}

// doubts reports whether there was a gap since a check began, which has ended now. It beats by itself: after a gap, a
// check may get to run before the loop above does.
func (p *pulse) doubts(began, now time.Time) bool {
	p.beat(now)
	return p.resumedSince(began).After(began)
}

// resumedSince is the end of the latest gap, or t if that is later.
func (p *pulse) resumedSince(t time.Time) time.Time {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.resumed.After(t) {
		return p.resumed
	}
	return t
}
