package registrar

import (
	"context"
	"errors"
	"slices"
	"time"
)

// stallSlack: a check that is later than this has lost its way.
const stallSlack = 10 * time.Second

// probe is a check with its health.
type probe struct {
	check  Check
	health Health
	status CheckStatus
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
		p := &probe{check: c, health: NewHealth(c.Rise, c.Fall, s.FirstResultDecides)}
		p.status = CheckStatus{Check: c.Name, Since: now}
		k.probes = append(k.probes, p)
		k.probing.Go(func() { k.repeat(ctx, p) })
	}
	k.decide("", nil)
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
	if errors.Is(r.err, ErrUndecided) {
		r.probe.status.At, r.probe.status.Latency, r.probe.status.Error = r.at, r.took, words(r.err)
		return
	}
	if !k.replaced {
		k.metrics.checked(k.service.Name, r.err == nil, r.took)
	}
	st := &r.probe.status
	st.At, st.Latency, st.Error = r.at, r.took, words(r.err)
	if r.probe.health.Observe(r.err == nil) {
		st.State, st.Since = r.probe.health.State(), r.at
		k.decide(st.Check, r.err)
	}
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
func (k *keeper) judge() State {
	states := make([]State, len(k.probes))
	for i, p := range k.probes {
		states[i] = p.health.State()
	}
	return together(states)
}
