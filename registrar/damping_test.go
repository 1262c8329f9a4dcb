package registrar

import (
	"fmt"
	"math"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	"pgregory.net/rapid"
)

// TestDamping: what the checks say (u, d), each a step after the one before, and below it what is in force.
func TestDamping(t *testing.T) {
	for _, c := range []struct {
		name       string
		step       time.Duration
		said, want string
	}{
		{"a service that falls once", time.Second, "udddd", "udddd"},
		{"the third fall in a row is held, and all that follow", time.Second, "udududududdd", "ududuuuuuuuu"},
		{"up is never held", time.Second, "ududuuu", "ududuuu"},
		{"falls that are far apart add up to nothing", 10 * time.Minute, "ududududud", "ududududud"},
		{"who stays down is taken down", time.Minute / 2, "ududud" + "dddddd", "ududuu" + "uddddd"},
		{"to start down is no fall", time.Second, "dududud", "dududuu"},
	} {
		t.Run(c.name, func(t *testing.T) {
			o := Damping{Suppress: 2, Reuse: 1, HalfLife: time.Minute, MaxHold: 3 * time.Minute}
			if strings.Contains(c.name, "stays down") {
				o.Suppress = 1.5
			}
			d, now := newDamper(&o), time.Now()
			got := ""
			for _, said := range c.said {
				is, _ := d.filter(map[rune]State{'u': Up, 'd': Down}[said], now)
				got += map[State]string{Up: "u", Down: "d"}[is]
				now = now.Add(c.step)
			}
			require.Equal(t, c.want, got)
		})
	}
}

// TestDampingHolds: the rules, whatever the service does.
func TestDampingHolds(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		o := Damping{
			Suppress: rapid.Float64Range(0.5, 5).Draw(t, "suppress"),
			HalfLife: time.Duration(rapid.IntRange(1, 600).Draw(t, "half life")) * time.Second,
		}
		o.Reuse = o.Suppress * rapid.Float64Range(0.05, 0.95).Draw(t, "reuse")
		o.MaxHold = time.Duration(float64(o.HalfLife) * rapid.Float64Range(math.Log2(o.Suppress/o.Reuse)+0.01, 10).Draw(t, "max hold"))
		require.NoError(t, o.Validate())

		d, now := newDamper(&o), time.Now()
		last, fell := Unknown, now
		var falls []time.Time
		for range rapid.IntRange(1, 60).Draw(t, "steps") {
			now = now.Add(time.Duration(rapid.Float64Range(0, 2).Draw(t, "pause") * float64(o.HalfLife)))
			said := rapid.SampledFrom([]State{Up, Down}).Draw(t, "said")
			if last == Up && said == Down {
				fell = now
				falls = append(falls, now)
			}
			was := d.held()
			is, wake := d.filter(said, now)

			sum := 0.0 // of all falls, as if there were no ceiling
			for _, f := range falls {
				sum += math.Exp2(-now.Sub(f).Seconds() / o.HalfLife.Seconds())
			}
			require.LessOrEqual(t, d.penalty, sum+1e-6)
			if len(falls) == 1 && d.ceiling() >= 1 {
				require.InDelta(t, sum, d.penalty, 1e-6)
			}
			switch {
			case said == Up:
				require.Equal(t, Up, is)
			case is == Up:
				require.True(t, last == Up || was, "a service that is down is not brought up")
				require.LessOrEqual(t, now.Sub(fell), o.MaxHold)
				require.LessOrEqual(t, wake.Sub(fell), o.MaxHold+time.Microsecond)
				early, due := *d, *d
				if before := wake.Add(-time.Millisecond); before.After(now) {
					still, _ := early.filter(Down, before)
					require.Equal(t, Up, still)
				}
				gone, after := due.filter(Down, wake)
				require.Equal(t, Down, gone)
				require.True(t, after.IsZero())
			case last == Up:
				require.LessOrEqual(t, d.penalty, o.Suppress, "a fall above it is held")
			}
			require.Equal(t, is == Up && said == Down, !wake.IsZero())
			require.Equal(t, is == Up && said == Down, d.held())
			last = said
		}
	})
}

func TestDampingMakesSense(t *testing.T) {
	require.NoError(t, DefaultDamping().Validate())
	for want, change := range map[string]func(*Damping){
		"must be above 0":                                        func(d *Damping) { d.HalfLife = 0 },
		"reuse 2 is not below suppress 2":                        func(d *Damping) { d.Reuse = 2 },
		"from suppress to reuse takes 1m0s, and max_hold is 59s": func(d *Damping) { d.MaxHold = 59 * time.Second },
	} {
		d := DefaultDamping()
		change(&d)
		require.ErrorContains(t, d.Validate(), want)
		require.ErrorContains(t, Validate([]Service{{Name: "a", Directory: &fakeDirectory{}, Damping: &d}}), `register service "a": damping: `)
	}
	var off *damper
	is, wake := off.filter(Down, time.Now())
	require.Equal(t, Down, is)
	require.True(t, wake.IsZero())
	require.Nil(t, off.status(time.Now()))
}

func TestDampedService(t *testing.T) {
	play(t, func(o *Options) {
		d := DefaultDamping()
		o.Services[0].Damping = &d
		o.Services[0].Checks[0].Rise, o.Services[0].Checks[0].Fall = 1, 1
	}, func(s *stage) {
		flap := func() {
			s.check.set(errSick)
			s.wait(2 * time.Second)
			s.check.set(nil)
			s.wait(2 * time.Second)
		}
		flap()
		flap()
		s.nodes("/services/user-api/web-1_0003 v1")
		require.False(t, s.Status()[0].Damping.Suppressed)
		s.metric("damped user-api 0", "myelin_registrar_damped")
		s.messages()
		s.dir.requests()
		for range 5 {
			flap()
		}
		require.Empty(t, s.dir.requests(), "nobody hears of it")
		require.Equal(t, strings.Repeat("warning service goes up and down too often; it is kept registered although it is down check=health err=status 503\n", 5),
			strings.Join(s.messages(), "\n")+"\n")
		st := s.Status()[0]
		require.Equal(t, []bool{true, false}, []bool{st.Damping.Suppressed, st.Damping.Held})

		fell := time.Now()
		s.check.set(errSick)
		s.wait(2 * time.Second)
		st = s.Status()[0]
		require.Equal(t, Up, st.State)
		require.Equal(t, Down, st.Checks[0].State)
		require.Equal(t, []bool{true, true}, []bool{st.Damping.Suppressed, st.Damping.Held})
		require.Greater(t, st.Damping.Penalty, 5.0)
		s.metric("damped user-api 1", "myelin_registrar_damped")
		s.wait(time.Until(st.Damping.Until) - time.Second)
		s.nodes("/services/user-api/web-1_0003 v1")
		s.wait(time.Second)
		s.nodes()
		require.Less(t, time.Since(fell), 3*time.Minute)
		require.Contains(t, s.messages(), "info service is down check=health err=status 503")
		s.metric("damped user-api 0", "myelin_registrar_damped")
		st = s.Status()[0]
		require.Equal(t, fmt.Sprint([]bool{false, false}), fmt.Sprint([]bool{st.Damping.Suppressed, st.Damping.Held}))

		s.check.set(nil)
		s.wait(time.Second)
		s.nodes("/services/user-api/web-1_0004 v1")
	})
}

// TestDampingHoldsNobodyBack: who takes a service away on purpose gets his way, and a service that is down does not come
// back because it was held once.
func TestDampingHoldsNobodyBack(t *testing.T) {
	play(t, func(o *Options) { o.Services[0].Damping = (&stage{}).dampedService().Damping }, func(s *stage) {
		s.wait(2 * time.Second)
		s.check.set(errSick)
		s.wait(10 * time.Second)
		require.True(t, s.Status()[0].Damping.Held)
		require.NoError(t, s.Maintain("user-api", Maintenance{}))
		s.wait(time.Second)
		s.nodes()
		require.Equal(t, Down, s.Status()[0].State)
		require.False(t, s.Status()[0].Damping.Held)
		require.NoError(t, s.EndMaintenance("user-api"))
		s.wait(time.Second)
		s.nodes()
		s.check.set(nil)
		s.wait(2 * time.Second)
		s.nodes("/services/user-api/web-1_0002 v1")

		s.check.set(errSick)
		s.wait(10 * time.Second)
		require.True(t, s.Status()[0].Damping.Held)
		require.NoError(t, s.Reload(nil))
		s.wait(time.Second)
		s.nodes()
		require.NoError(t, s.Reload([]Service{s.dampedService()}))
		s.wait(time.Minute / 10)
		s.nodes()
	})
}

func (s *stage) dampedService() Service {
	sv := s.service()
	sv.Damping = &Damping{Suppress: 0.5, Reuse: 0.25, HalfLife: time.Minute, MaxHold: time.Hour}
	return sv
}

// TestDampedWeight: a service that is kept registered keeps the weight that it had.
func TestDampedWeight(t *testing.T) {
	play(t, func(o *Options) {
		o.Services[0].Damping = &Damping{Suppress: 0.5, Reuse: 0.25, HalfLife: time.Minute, MaxHold: time.Hour}
		o.Services[0].Render = weighing{}
		o.Services[0].Checks[0].HealthCheck.(*switchable).set(&Degraded{Percent: 40})
	}, func(s *stage) {
		s.wait(2 * time.Second)
		s.check.set(errSick)
		s.wait(10 * time.Second)
		s.nodes("/services/user-api/web-1_0001 v1 at 40%")
		require.True(t, s.Status()[0].Damping.Held)
		s.wait(2 * time.Minute)
		s.nodes()
	})
}
