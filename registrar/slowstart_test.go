package registrar

import (
	"fmt"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/myelin-sd/myelin/discovery"
)

// rendered publishes a weight of 20 and what a condition makes of it.
type rendered struct{ version string }

func (r rendered) Render(reg discovery.Registration, c Condition) discovery.Registration {
	data := r.version
	if c.Weight != 100 {
		data += fmt.Sprintf("*%d", (20*c.Weight+99)/100)
	}
	if c.Leaving {
		data += " leaving"
	}
	reg.Data = []byte(data)
	return reg
}

func TestRamp(t *testing.T) {
	now := time.Unix(1000, 0)
	var r ramp
	require.Equal(t, 100, r.percent(time.Minute, now))
	require.Negative(t, r.wait(time.Minute, now))

	for _, over := range []time.Duration{30 * time.Second, 7 * time.Nanosecond, time.Hour + 1, 1} {
		r.begin()
		require.Equal(t, 1, r.percent(over, now))
		require.Negative(t, r.wait(over, now), "it is not registered")
		r.registered(now)
		r.registered(now.Add(time.Hour)) // again, because of another session
		last, steps := r.percent(over, now), 0
		at := now
		for wait := r.wait(over, at); wait >= 0; wait = r.wait(over, at) {
			require.Positive(t, wait, "else it would be looked at without end")
			at = at.Add(wait)
			percent := r.percent(over, at)
			require.GreaterOrEqual(t, percent, last)
			last = percent
			if steps++; steps > 2*rampSteps {
				t.Fatal("it never ends")
			}
		}
		require.Equal(t, 100, last)
		require.InDelta(t, float64(over), float64(at.Sub(now)), rampSteps+1)
	}
	r.begin()
	r.registered(now)
	require.Equal(t, 50, r.percent(30*time.Second, now.Add(15*time.Second)))
	require.Equal(t, 100, r.percent(0, now), "it was switched off")
	require.Equal(t, 100, r.percent(time.Minute, now), "and that was the end")
}

// slow is a service whose weight rises over 20 s.
func slow(o *Options) {
	o.Services[0].Render, o.Services[0].SlowStart = rendered{"v1"}, 20*time.Second
}

func TestSlowStart(t *testing.T) {
	play(t, slow, func(s *stage) {
		s.wait(time.Second)
		s.nodes("/services/user-api/web-1_0001 v1*1")
		require.Equal(t, 1, s.Status()[0].Weight)
		s.wait(2*time.Second + time.Millisecond)
		s.nodes("/services/user-api/web-1_0001 v1*2")
		s.wait(20 * time.Second)
		s.nodes("/services/user-api/web-1_0001 v1")
		require.Equal(t, 100, s.Status()[0].Weight)
		var sets []string
		for _, r := range s.dir.requests() {
			if r != "keep /services/user-api/web-1_0001" {
				sets = append(sets, r)
			}
		}
		require.Len(t, sets, 1+rampSteps, "%q", sets)

		// Another session: it was registered all the time.
		s.dir.expire()
		s.wait(2 * repairPause)
		s.nodes("/services/user-api/web-1_0002 v1")

		s.check.set(errSick)
		s.wait(5 * time.Second)
		s.check.set(nil)
		s.wait(2 * time.Second)
		s.nodes("/services/user-api/web-1_0003 v1*1")
		s.wait(10 * time.Second)
		s.nodes("/services/user-api/web-1_0003 v1*10")
		s.dir.expire() // in the middle: the clock goes on
		s.wait(2 * repairPause)
		s.nodes("/services/user-api/web-1_0004 v1*10")

		// Switched off by a re-read.
		sv := s.service()
		sv.Render = rendered{"v1"}
		require.NoError(t, s.Reload([]Service{sv}))
		s.wait(0)
		s.nodes("/services/user-api/web-1_0004 v1")
	})
}

// TestSlowStartWaitsForTheDirectory: the time begins when the service is registered.
func TestSlowStartWaitsForTheDirectory(t *testing.T) {
	play(t, slow, func(s *stage) {
		s.dir.goAway()
		s.wait(time.Hour)
		s.dir.comeBack()
		s.wait(2 * repairPause)
		s.nodes("/services/user-api/web-1_0001 v1*1")
		s.wait(time.Minute)
		s.nodes("/services/user-api/web-1_0001 v1")
	})
}

// TestSlowStartAfterTakeOver: a service that the process before has registered was not away.
func TestSlowStartAfterTakeOver(t *testing.T) {
	play(t, func(o *Options) {
		slow(o)
		dir := o.Services[0].Directory.(*fakeDirectory)
		dir.left = []discovery.Registration{o.Services[0].Registration}
		dir.put("/services/user-api/web-1_0007", "v1")
	}, func(s *stage) {
		s.wait(2 * time.Second)
		require.Equal(t, []string{"keep /services/user-api/web-1_0007"}, s.dir.requests())
	})
}

// TestSlowStartOfTheLessFit: what the checks leave of the weight rises, and not more.
func TestSlowStartOfTheLessFit(t *testing.T) {
	play(t, func(o *Options) {
		slow(o)
		o.Services[0].Checks[0].HealthCheck.(*switchable).set(&Degraded{Reason: "half", Percent: 50})
	}, func(s *stage) {
		s.wait(2 * time.Second)
		s.nodes("/services/user-api/web-1_0001 v1*1")
		s.wait(10 * time.Second)
		s.nodes("/services/user-api/web-1_0001 v1*5")
		s.wait(20 * time.Second)
		s.nodes("/services/user-api/web-1_0001 v1*10")
	})
}

// TestSlowStartAndMove: a service that moves to another node was not away, and one that rises goes on from where it is.
func TestSlowStartAndMove(t *testing.T) {
	for name, tc := range map[string]struct {
		after time.Duration
		want  string
	}{"risen": {time.Minute, "v1"}, "half": {11 * time.Second, "v1*10"}} {
		t.Run(name, func(t *testing.T) {
			play(t, func(o *Options) {
				slow(o)
				o.Rand = func() float64 { return 0.5 } // the second check, half a second after the first one, registers it
			}, func(s *stage) {
				s.wait(tc.after)
				sv := s.service()
				sv.Render, sv.SlowStart = rendered{"v1"}, 20*time.Second
				sv.Registration.Path = "/services/users"
				s.dir.requests()
				require.NoError(t, s.Reload([]Service{sv}))
				s.wait(time.Second)
				require.Contains(t, s.dir.requests(), "create /services/users/web-1_0002 "+tc.want)
				s.wait(20 * time.Second)
				s.nodes("/services/users/web-1_0002 v1")

				s.check.set(errSick)
				s.wait(5 * time.Second)
				s.check.set(nil)
				s.wait(2 * time.Second)
				s.nodes("/services/users/web-1_0003 v1*1")
			})
		})
	}
}

// TestSlowStartAfterCrash: what the process before had is listed, and has gone with its session. So the service was away.
func TestSlowStartAfterCrash(t *testing.T) {
	play(t, func(o *Options) {
		slow(o)
		o.Services[0].Directory.(*fakeDirectory).left = []discovery.Registration{o.Services[0].Registration}
	}, func(s *stage) {
		s.wait(2 * time.Second)
		s.nodes("/services/user-api/web-1_0001 v1*1")
		s.wait(20 * time.Second)
		s.nodes("/services/user-api/web-1_0001 v1")
		require.NotContains(t, s.dir.requests()[2:], "set /services/user-api/web-1_0001 v1*1", "it rises once")
	})
}
