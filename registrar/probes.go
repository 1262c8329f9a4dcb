package registrar

import (
	"context"
	"errors"
	"reflect"
	"slices"
	"sync/atomic"
	"time"

	"github.com/sirupsen/logrus"

	"github.com/myelin-sd/myelin/journal"
)

// stallSlack: a check that is later than this has lost its way.
const stallSlack = 10 * time.Second

// probe is a check with its health.
type probe struct {
	check  Check
	health Health
	grade  grade
	status CheckStatus

	began atomic.Pointer[time.Time] // of the run under way; nil: there is none
}

func newProbe(c Check, firstDecides bool) *probe {
	p := &probe{check: c, health: NewHealth(c.Rise, c.Fall, firstDecides), grade: newGrade(c.Rise)}
	p.status = CheckStatus{Check: c.Name, Since: time.Now(), Shown: c.Shown}
	return p
}

// opinion is what the check says of its service.
func (p *probe) opinion() opinion {
	return opinion{state: p.health.State(), percent: p.grade.percent, share: p.check.share()}
}

// take counts a result, and reports whether the check's opinion is another one now.
func (p *probe) take(err error) (changed bool) {
	was := p.opinion()
	ok, percent := grading(err)
	p.health.Observe(ok)
	p.grade.observe(ok, percent, was.state != Up)
	return p.opinion() != was
}

// result is what became of one run.
type result struct {
	probe   *probe
	verdict Verdict
	err     error
	took    time.Duration
	at      time.Time
}

func (r result) entry() CheckResult {
	return CheckResult{At: r.at, Verdict: r.verdict, Latency: r.took, Error: words(r.err)}
}

// startProbes begins to make the checks of s anew; nothing is known of their health. Where the service stands, they
// have to fail as often as they would have to later.
func (k *keeper) startProbes(ctx context.Context, s Service) {
	k.endProbes()
	ctx, k.stopProbes = context.WithCancel(ctx)
	if !reflect.DeepEqual(s.Damping, k.damping) {
		k.damping, k.damper = s.Damping, newDamper(s.Damping)
	}
	if k.damper != nil && k.state == Unknown {
		k.damper.forget()
	}
	if k.damper != nil && !k.replaced {
		k.metrics.held(s.Name, k.damper.held())
	}
	for _, c := range s.active() {
		p := newProbe(c, s.FirstResultDecides)
		if k.state == Up || k.inherited {
			p.health.Trust()
		}
		k.probes = append(k.probes, p)
		k.probing.Go(func() { k.repeat(ctx, p) })
	}
	k.led = result{}
	k.decide(k.judge())
}

// endProbes does not wait: a check may take a moment to give up, and the loop must not. Results under way are those of
// probes that are no longer known.
func (k *keeper) endProbes() {
	k.stopProbes()
	k.probes, k.relief = nil, time.Time{}
}

// repeat makes a check until ctx ends: soon, then after a random part of its interval, so that the checks of many
// services do not stay in step, then with the interval between them.
func (k *keeper) repeat(ctx context.Context, p *probe) {
	if !pause(ctx, k.shared.pool.headStart(p.check.Interval, k.jitter())) {
		return
	}
	next := time.Duration(k.jitter() * float64(p.check.Interval))
	doubts := 0
	for {
		r, ok := k.probe(ctx, p)
		if !ok {
			return
		}
		doubtful := r.verdict == Failed && k.shared.pulse.doubts(r.at.Add(-r.took), r.at)
		switch {
		case !doubtful:
			doubts = 0
		case doubts < doubtsMost:
			doubts++
			r.verdict = Doubtful
		}
		select {
		case k.results <- r:
		case <-ctx.Done():
			return
		}
		if r.verdict == Doubtful {
			continue
		}
		if !pause(ctx, next) {
			return
		}
		next = p.check.Interval
	}
}

// probe makes a check once, as soon as there is a place for it. It reports false when ctx has ended, which may be the
// reason for an error.
func (k *keeper) probe(ctx context.Context, p *probe) (result, bool) {
	asked := time.Now()
	leave, ok := k.shared.pool.enter(ctx, k)
	if !ok {
		return result{}, false
	}
	began := time.Now()
	k.metrics.waited(began.Sub(asked))
	p.began.Store(&began)
	lost := time.AfterFunc(p.check.timeout()+overdue, leave)
	err := p.check.run(ctx)
	lost.Stop()
	leave()
	p.began.Store(nil)
	ended := time.Now()
	return result{probe: p, verdict: verdict(err), err: err, took: ended.Sub(began), at: ended}, ctx.Err() == nil
}

// pause reports false when ctx ends before d has passed.
func pause(ctx context.Context, d time.Duration) bool {
	if d <= 0 {
		return ctx.Err() == nil
	}
	select {
	case <-time.After(d):
		return true
	case <-ctx.Done():
		return false
	}
}

func verdict(err error) Verdict {
	if errors.Is(err, ErrUndecided) {
		return Undecided
	}
	switch ok, percent := grading(err); {
	case !ok:
		return Failed
	case percent < 100:
		return Lowered
	}
	return Passed
}

// observe takes the result of a check.
func (k *keeper) observe(r result) {
	if !slices.Contains(k.probes, r.probe) {
		return
	}
	if r.verdict != Undecided && !k.replaced {
		k.metrics.checked(k.service.Name, r.verdict, r.took)
		if r.verdict != Doubtful {
			k.statsd.checked(k.service.Name, r.probe.check.Name, r.verdict != Failed)
		}
	}
	st := &r.probe.status
	st.At, st.Latency, st.Error, st.Verdict = r.at, r.took, words(r.err), r.verdict
	if r.verdict == Undecided {
		return
	}
	st.Recent = remember(st.Recent, r.entry())
	if r.verdict == Doubtful || !r.probe.take(r.err) {
		return
	}
	o := r.probe.opinion()
	if o.state != st.State {
		st.State, st.Since = o.state, r.at
	}
	st.Percent = 0
	if o.state == Up {
		st.Percent = o.percent
	}
	st.Changes = remember(st.Changes, CheckChange{At: r.at, State: o.state, Percent: st.Percent, Error: st.Error})
	k.recordCheck(r)
	k.led = r
	k.decide(k.judge())
}

// stalled names a check that should have ended long ago; it is empty when all go on. The time in which the process
// itself did not run does not count.
func (k *keeper) stalled(now time.Time) string {
	for _, p := range k.probes {
		began := p.began.Load()
		if began != nil && now.Sub(k.shared.pulse.resumedSince(*began)) > p.check.timeout()+stallSlack {
			return p.check.Name
		}
	}
	return ""
}

// judge is what all checks amount to now, damped.
func (k *keeper) judge() judgement {
	opinions := make([]opinion, len(k.probes))
	for i, p := range k.probes {
		opinions[i] = p.opinion()
	}
	s := k.service
	if k.next != nil {
		s = *k.next // whose checks these are
	}
	var j judgement
	j.state, j.weight = s.Combine.together(opinions)
	if k.led.probe != nil {
		j.check, j.reason = k.led.probe.check.Name, k.led.err
	}
	if said := j.state; k.damp(said, time.Now()) != said {
		j.state, j.weight = Up, k.condition.Weight // of which nothing better is known
	}
	return j
}

// relieve lets a move down that was held back happen when it is due, or when the service was withdrawn for another
// reason. It returns how long none is due; negative: for ever.
func (k *keeper) relieve(now time.Time) time.Duration {
	if !k.relief.IsZero() && (k.upkeep.want == Down || !now.Before(k.relief)) {
		k.decide(k.judge())
	}
	if k.relief.IsZero() {
		return -1
	}
	return k.relief.Sub(now)
}

// damp returns the state in force when the checks say said, and notes when that ends by itself.
func (k *keeper) damp(said State, now time.Time) State {
	was := k.damper.held()
	if k.damper != nil && k.upkeep.want == Down {
		k.damper.release()
	}
	is, wake := k.damper.filter(said, now)
	k.relief = wake
	held := k.damper.held()
	if held == was {
		return is
	}
	if !k.replaced {
		k.metrics.held(k.service.Name, held)
	}
	if held {
		k.logger().WithFields(logrus.Fields{"check": k.led.probe.check.Name, "err": k.led.err, "duration": wake.Sub(now).Round(time.Second)}).
			Warn("service goes up and down too often; it is kept registered although it is down")
		k.record(journal.KindCheck, "service goes up and down too often; it is kept registered although it is down, for "+wake.Sub(now).Round(time.Second).String(), k.led.cause())
	}
	return is
}
