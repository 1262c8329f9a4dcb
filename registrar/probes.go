package registrar

import (
	"context"
	"slices"
	"time"
)

// stallSlack: a check that is later than this has lost its way.
const stallSlack = 10 * time.Second

// probe is a check with its health.
type probe struct {
	check  Check
	health Health
	grade  grade
	status CheckStatus
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

type result struct {
	probe *probe
	err   error
	took  time.Duration
	at    time.Time
}

// startProbes begins to make the checks of s anew; nothing is known of their health.
func (k *keeper) startProbes(ctx context.Context, s Service) {
	k.endProbes()
	ctx, k.stopProbes = context.WithCancel(ctx)
	now := time.Now()
	for _, c := range s.active() {
		p := &probe{check: c, health: NewHealth(c.Rise, c.Fall, s.FirstResultDecides), grade: newGrade(c.Rise)}
		p.status = CheckStatus{Check: c.Name, Since: now}
		k.probes = append(k.probes, p)
		k.probing.Go(func() { k.repeat(ctx, p) })
	}
	k.decide(k.judge())
}

// endProbes does not wait: a check may take a moment to give up, and the loop must not. Results under way are those of
// probes that are no longer known.
func (k *keeper) endProbes() {
	k.stopProbes()
	k.probes = nil
}

// repeat makes a check until ctx ends: at once, then after a random part of its interval, so that the checks of many
// services do not stay in step, then with the interval between them.
func (k *keeper) repeat(ctx context.Context, p *probe) {
	pause := time.Duration(k.jitter() * float64(p.check.Interval))
	for ; ; pause = p.check.Interval {
		began := time.Now()
		err := p.check.run(ctx)
		r := result{probe: p, err: err, took: time.Since(began), at: time.Now()}
		if ctx.Err() != nil {
			return // the end of ctx may be the reason for the error
		}
		select {
		case k.results <- r:
		case <-ctx.Done():
			return
		}
		select {
		case <-time.After(pause):
		case <-ctx.Done():
			return
		}
	}
}

// observe takes the result of a check.
func (k *keeper) observe(r result) {
	if !slices.Contains(k.probes, r.probe) {
		return
	}
	if !k.replaced {
		k.metrics.checked(k.service.Name, r.err == nil, r.took)
		k.statsd.checked(k.service.Name, r.probe.check.Name, r.err == nil)
	}
	st := &r.probe.status
	st.At, st.Latency, st.Error = r.at, r.took, words(r.err)
	if !r.probe.take(r.err) {
		return
	}
	if now := r.probe.health.State(); now != st.State {
		st.State, st.Since = now, r.at
	}
	j := k.judge()
	j.check, j.reason = st.Check, r.err
	k.decide(j)
}

// stalled names a check that should have ended long ago; it is empty when all go on.
func (k *keeper) stalled(now time.Time) string {
	for _, p := range k.probes {
		last := p.status.Since
		if p.status.At.After(last) {
			last = p.status.At
		}
		if now.Sub(last) > p.check.timeout()+p.check.Interval+stallSlack {
			return p.check.Name
		}
	}
	return ""
}

// judge is what all checks amount to.
func (k *keeper) judge() judgement {
	opinions := make([]opinion, len(k.probes))
	for i, p := range k.probes {
		opinions[i] = p.opinion()
	}
	s := k.service
	if k.next != nil {
		s = *k.next // whose checks these are
	}
	state, weight := s.Combine.together(opinions)
	return judgement{state: state, weight: weight}
}
