package registrar

import (
	"context"
	"fmt"
	"strings"
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	logtest "github.com/sirupsen/logrus/hooks/test"
	"github.com/stretchr/testify/require"
	"pgregory.net/rapid"
)

// freeze is what tests do to the pulse: as if the process had stood still for d, until now.
func (s *stage) freeze(d time.Duration) {
	p := s.shared.pulse
	p.mu.Lock()
	defer p.mu.Unlock()
	p.last = time.Now().Add(-d)
}

func TestStarvedChecksAreRepeated(t *testing.T) {
	halfway := func(o *Options) { o.Rand = func() float64 { return 0.5 } } // so that no check falls into the beat
	play(t, halfway, func(s *stage) {
		s.wait(5 * time.Second)
		s.messages()
		s.freeze(3 * time.Second)
		s.wait(beatEvery)
		require.Equal(t, []string{"warning this process did not get to run; checks that failed meanwhile are repeated"}, s.messages())
		s.metric("stalled_seconds_total 3.1\nstalls_total 1", "myelin_registrar_stalls_total", "myelin_registrar_stalled_seconds_total")
		s.metric(fmt.Sprintf("checks_total pass user-api %d", s.check.count()), "myelin_registrar_checks_total") // none was under way
		require.Equal(t, Up, s.Status()[0].State)
	})
}

// starving is a check during which the process stands still, a number of times.
type starving struct {
	*switchable
	freeze func(time.Duration)
	times  int
}

func (c *starving) Check(ctx context.Context) error {
	err := c.switchable.Check(ctx)
	if c.times > 0 {
		c.times--
		pause(ctx, 10*time.Millisecond)
		c.freeze(time.Second)
	}
	return err
}

func TestStarvedChecks(t *testing.T) {
	for _, c := range []struct {
		name    string
		times   int
		err     error
		results string // since the first freeze, up to the first ordinary one
		state   State
	}{
		{"a failure is not believed", 1, errSick, "doubtful fail", Down},
		{"nor two of them", 2, errSick, "doubtful doubtful fail", Down},
		{"but no more than three", 9, errSick, "doubtful doubtful doubtful fail", Down},
		{"a pass counts", 1, nil, "pass pass", Up},
		{"half a pass counts", 1, &Degraded{Reason: "exit code 1"}, "degraded degraded", Up},
	} {
		t.Run(c.name, func(t *testing.T) {
			check := &starving{}
			play(t, func(o *Options) {
				check.switchable = o.Services[0].Checks[0].HealthCheck.(*switchable)
				o.Services[0].Checks[0] = Check{Name: "health", HealthCheck: check, Interval: 10 * time.Second}
			}, func(s *stage) {
				s.wait(time.Minute)
				require.Equal(t, Up, s.Status()[0].State)
				before := len(s.Status()[0].Checks[0].Recent)
				check.freeze, check.times = s.freeze, c.times
				s.check.set(c.err)
				for range 10_000 { // until one counts
					st := s.Status()[0].Checks[0]
					if n := len(st.Recent); n > before && st.Verdict != Doubtful {
						break
					}
					require.Equal(t, Up, s.Status()[0].State)
					s.wait(10 * time.Millisecond)
				}
				var got []string
				for _, r := range s.Status()[0].Checks[0].Recent[before:] {
					got = append(got, string(r.Verdict))
				}
				if c.state == Up {
					s.wait(10 * time.Second)
					got = append(got, string(s.Status()[0].Checks[0].Verdict))
				}
				require.Equal(t, c.results, strings.Join(got, " "))
				require.Equal(t, c.state, s.Status()[0].State)
				if c.state == Down { // at once: without another interval
					recent := s.Status()[0].Checks[0].Recent[before:]
					require.LessOrEqual(t, recent[len(recent)-1].At.Sub(recent[0].At), 30*time.Millisecond)
				}
			})
		})
	}
}

// TestPulse: a result is doubted exactly when the process stood still since the run began, or a moment before: nobody
// can tell when in the time between two beats it stopped.
func TestPulse(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		log, hook := logtest.NewNullLogger()
		reg := prometheus.NewRegistry()
		p := &pulse{log: log, metrics: NewMetrics(reg)}
		now := time.Now()
		require.False(t, p.doubts(now.Add(-time.Hour), now), "nothing is known before the first beat")
		var gaps int
		resumed := now.Add(-time.Hour)
		for range rapid.IntRange(1, 50).Draw(t, "beats") {
			step := time.Duration(rapid.SampledFrom([]int{100, 120, 199, 200, 400, 20_000}).Draw(t, "ms")) * time.Millisecond
			began := now.Add(step - time.Duration(rapid.IntRange(0, 1000).Draw(t, "run"))*time.Millisecond)
			now = now.Add(step)
			if step >= gapLeast {
				gaps++
				resumed = now
			}
			if rapid.Bool().Draw(t, "check") {
				require.Equal(t, resumed.After(began), p.doubts(began, now))
			} else {
				p.beat(now)
			}
			p.beat(now.Add(-time.Millisecond)) // two goroutines may read the clock in the other order
		}
		families, err := reg.Gather()
		require.NoError(t, err)
		for _, f := range families {
			if f.GetName() == "myelin_registrar_stalls_total" {
				require.Equal(t, float64(gaps), f.GetMetric()[0].GetCounter().GetValue())
			}
		}
		told := 0
		for _, e := range hook.AllEntries() {
			told += e.Data["count"].(int)
		}
		require.LessOrEqual(t, told, gaps)
		require.Equal(t, gaps > 0, told > 0)
		require.Equal(t, gaps-told, p.untold)
	})
}

// TestLiveAfterAStop: the time in which the process stood still is no reason to call a check lost.
func TestLiveAfterAStop(t *testing.T) {
	play(t, nil, func(s *stage) {
		s.wait(5 * time.Second)
		s.check.setHang(true)
		s.wait(defaultTimeout + stallSlack/2)
		s.freeze(time.Hour)
		s.wait(beatEvery)
		s.wait(defaultTimeout + stallSlack/2)
		require.NoError(t, s.Live(s.t.Context()))
		s.wait(stallSlack)
		require.Error(t, s.Live(s.t.Context()))
		s.check.setHang(false)
		s.wait(time.Second)
		require.NoError(t, s.Live(s.t.Context()))
	})
}
