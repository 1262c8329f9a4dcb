package registrar

import (
	"errors"
	"fmt"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	"pgregory.net/rapid"

	"github.com/myelin-sd/myelin/discovery"
)

// opinions reads checks as a person writes them: "u d ? u50 u*3 u50*3 d*0" are states, percents and shares.
func opinions(t *testing.T, text string) []opinion {
	var all []opinion
	for _, word := range strings.Fields(text) {
		o := opinion{percent: 100, share: 1, state: map[byte]State{'u': Up, 'd': Down, '?': Unknown}[word[0]]}
		percent, share, ok := strings.Cut(word[1:], "*")
		if percent != "" {
			_, err := fmt.Sscan(percent, &o.percent)
			require.NoError(t, err)
		}
		if ok {
			_, err := fmt.Sscan(share, &o.share)
			require.NoError(t, err)
		}
		all = append(all, o)
	}
	return all
}

func TestTogether(t *testing.T) {
	for _, c := range []struct{ checks, all, any, weighted string }{
		{"", "up", "up", "up"},
		{"u", "up", "up", "up"},
		{"?", "unknown", "unknown", "unknown"},
		{"d", "down", "down", "down"},
		{"u u", "up", "up", "up"},
		{"u ?", "unknown", "up", "unknown"},
		{"u d", "down", "up", "up 50"},
		{"d ?", "down", "unknown", "unknown"},
		{"d d", "down", "down", "down"},
		{"? d u", "down", "up", "unknown"},
		{"u d d", "down", "up", "up 33"},
		{"u u50", "up 50", "up", "up 75"},
		{"u20 u50", "up 20", "up 50", "up 35"},
		{"u20 d", "down", "up 20", "up 10"},
		{"u*3 d", "down", "up", "up 75"},
		{"u50*3 d", "down", "up 50", "up 37"},
		{"u1 d*999", "down", "up 1", "up 1"},
		{"u d*0", "up", "up", "up"},
		{"u*0 d", "down", "down", "down"},
		{"u20*0 u", "up", "up", "up"},
		{"d*0 ?*0", "up", "up", "up"},
	} {
		for how, want := range map[Combination]string{CombineAll: c.all, CombineAny: c.any, CombineWeighted: c.weighted} {
			state, weight := how.together(opinions(t, c.checks))
			got := state.String()
			if state == Up && weight != 100 {
				got += fmt.Sprintf(" %d", weight)
			}
			require.Equal(t, want, got, "%q, combination %d", c.checks, how)
		}
	}
}

// TestTogetherIsLogic compares with the definitions, said another way: by what could still come of the unknown.
func TestTogetherIsLogic(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		checks := rapid.SliceOfN(rapid.Custom(func(t *rapid.T) opinion {
			return opinion{
				State(rapid.IntRange(0, 2).Draw(t, "state")), rapid.IntRange(1, 100).Draw(t, "percent"), rapid.IntRange(0, 4).Draw(t, "share"),
			}
		}), 1, 6).Draw(t, "checks")
		how := Combination(rapid.IntRange(0, 2).Draw(t, "how"))
		state, weight := how.together(checks)

		// Each way in which the unknown ones may turn out.
		ends := map[State]bool{}
		unknown := 0
		for _, c := range checks {
			if c.state == Unknown && c.share > 0 {
				unknown++
			}
		}
		for way := range 1 << unknown {
			ends[decided(how, checks, way)] = true
		}
		switch {
		case len(ends) == 1 && (how != CombineWeighted || unknown == 0):
			require.True(t, ends[state], "all ways lead to another state than %s", state)
		default:
			require.Equal(t, Unknown, state)
		}
		require.GreaterOrEqual(t, weight, 1)
		require.LessOrEqual(t, weight, 100)

		// More health never lowers the weight, and never takes the service down.
		if i := rapid.IntRange(0, len(checks)-1).Draw(t, "better"); checks[i].state == Up {
			checks[i].percent = 100
			after, more := how.together(checks)
			require.Equal(t, state, after)
			require.GreaterOrEqual(t, more, weight)
		} else if checks[i].state == Down && state == Up && how != CombineAll {
			checks[i].state = Up
			after, more := how.together(checks)
			require.Equal(t, Up, after)
			require.GreaterOrEqual(t, more, weight)
		}
	})
}

// decided is the state when the unknown checks turn out as the bits of way say.
func decided(how Combination, checks []opinion, way int) State {
	up, down := 0, 0
	for _, c := range checks {
		state := c.state
		if c.share == 0 {
			continue
		}
		if state == Unknown {
			state = Down
			if way&1 == 1 {
				state = Up
			}
			way >>= 1
		}
		if state == Up {
			up++
		} else {
			down++
		}
	}
	if down == 0 || how != CombineAll && up > 0 {
		return Up
	}
	return Down
}

func TestGrading(t *testing.T) {
	for _, c := range []struct {
		err     error
		ok      bool
		percent int
		words   string
	}{
		{nil, true, 100, ""},
		{errSick, false, 0, "status 503"},
		{&Degraded{Reason: "queue is long", Percent: 30}, true, 30, "queue is long"},
		{fmt.Errorf("run check: %w", &Degraded{Reason: "exit code 1"}), true, 1, "run check: exit code 1"},
		{&Degraded{Percent: 400}, true, 100, "degraded"},
		{&Degraded{Percent: -4}, true, 1, "degraded"},
	} {
		ok, percent := grading(c.err)
		require.Equal(t, []any{c.ok, c.percent, c.words}, []any{ok, percent, words(c.err)})
	}
}

// Results are percents, and F for a failure; between the bars stands what is left of the weight after each.
func TestGrade(t *testing.T) {
	for _, c := range []struct {
		name          string
		rise          int
		results, want string
	}{
		{"lower counts at once", 3, "100 50 20", "100 50 20"},
		{"higher after rise in a row", 3, "20 100 100 100", "20 20 20 100"},
		{"the worst of them counts", 3, "20 100 60 100", "20 20 20 60"},
		{"as low as before starts over", 2, "20 100 20 100 100", "20 20 20 20 100"},
		{"a failure starts over", 2, "20 100 F 100 100", "20 20 20 20 100"},
		{"rise 1", 1, "20 100 20 30", "20 100 20 30"},
		{"less than 1 counts as 1", 0, "20 100", "20 100"},
	} {
		t.Run(c.name, func(t *testing.T) {
			g := newGrade(c.rise)
			var got []string
			for _, r := range strings.Fields(c.results) {
				percent := 0
				_, _ = fmt.Sscan(r, &percent)
				g.observe(r != "F", percent, false)
				got = append(got, fmt.Sprint(g.percent))
			}
			require.Equal(t, c.want, strings.Join(got, " "))
		})
	}
}

// TestProbe compares a check with a model that keeps all results and looks back.
func TestProbe(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		rise, fall := rapid.IntRange(1, 4).Draw(t, "rise"), rapid.IntRange(1, 4).Draw(t, "fall")
		p := &probe{health: NewHealth(rise, fall, false), grade: newGrade(rise)}
		var percents []int // 0: a failure
		state, weight, base := Unknown, 100, 0
		for _, percent := range rapid.SliceOfN(rapid.SampledFrom([]int{0, 0, 20, 50, 100}), 1, 40).Draw(t, "results") {
			var err error
			switch percent {
			case 0:
				err = errSick
			case 20, 50:
				err = &Degraded{Percent: percent}
			}
			percents = append(percents, percent)
			n := len(percents)
			fresh := state != Up
			switch {
			case state != Up && run(percents, rise, func(p int) bool { return p > 0 }):
				state = Up
			case state == Unknown && percent == 0, state == Up && run(percents, fall, func(p int) bool { return p == 0 }):
				state = Down
			}
			switch {
			case percent == 0:
			case fresh || percent <= weight:
				weight, base = percent, n // results from here on may raise it
			case n-base >= rise && run(percents, rise, func(p int) bool { return p > weight }):
				weight, base = least(percents[n-rise:]), n
			}
			was := p.opinion()
			require.Equal(t, was != opinion{state, weight, 1}, p.take(err))
			require.Equal(t, opinion{state, weight, 1}, p.opinion(), "%v", percents)
		}
	})
}

// run reports whether the last n results are alike.
func run(results []int, n int, like func(int) bool) bool {
	if len(results) < n {
		return false
	}
	for _, r := range results[len(results)-n:] {
		if !like(r) {
			return false
		}
	}
	return true
}

func least(of []int) int {
	low := of[0]
	for _, v := range of {
		low = min(low, v)
	}
	return low
}

// weighing renders the weight as text.
type weighing struct{}

func TestAnyCheckIsEnough(t *testing.T) {
	second := &switchable{}
	play(t, func(o *Options) {
		o.Services[0].Combine = CombineAny
		o.Services[0].Checks = append(o.Services[0].Checks, Check{Name: "queue", HealthCheck: second})
		second.set(errSick)
	}, func(s *stage) {
		s.wait(time.Second)
		s.nodes("/services/user-api/web-1_0001 v1")
		second.set(nil)
		s.wait(time.Second)
		s.check.set(errSick)
		s.wait(10 * time.Second)
		s.nodes("/services/user-api/web-1_0001 v1")
		second.set(errors.New("connect 127.0.0.1:5672: refused"))
		s.wait(2 * time.Second)
		s.nodes()
		require.Contains(t, s.messages(), "info service is down check=queue err=connect 127.0.0.1:5672: refused")
	})
}

func TestWeightOfChecks(t *testing.T) {
	second := &switchable{}
	shown := &switchable{}
	play(t, func(o *Options) {
		o.Services[0].Combine, o.Services[0].Render = CombineWeighted, weighing{}
		o.Services[0].Checks = append(o.Services[0].Checks,
			Check{Name: "cache", HealthCheck: second, Share: 3},
			Check{Name: "disk", HealthCheck: shown, Shown: true})
		shown.set(errSick)
	}, func(s *stage) {
		s.wait(2 * time.Second)
		s.nodes("/services/user-api/web-1_0001 v1")
		s.messages()
		s.dir.requests()

		second.set(errSick)
		s.wait(time.Second)
		s.nodes("/services/user-api/web-1_0001 v1 at 25%")
		require.Equal(t, []string{"info service is up with 25 percent of its weight check=cache err=status 503"}, s.messages())
		require.Equal(t, []string{"set /services/user-api/web-1_0001 v1 at 25%"}, s.dir.requests())

		second.set(&Degraded{Reason: "half of the keys", Percent: 50})
		s.wait(time.Second)
		s.nodes("/services/user-api/web-1_0001 v1 at 62%")
		require.Equal(t, "half of the keys", s.Status()[0].Checks[1].Error)
		s.check.set(errSick)
		s.wait(3 * time.Second)
		s.nodes("/services/user-api/web-1_0001 v1 at 37%")

		second.set(errSick)
		s.wait(time.Second)
		s.nodes()
		require.Equal(t, Down, s.Status()[0].State, "that the disk's check passes or not is of no interest")
		s.check.set(nil)
		s.wait(3 * time.Second)
		s.nodes("/services/user-api/web-1_0002 v1 at 25%")
		second.set(nil)
		s.wait(3 * time.Second)
		s.nodes("/services/user-api/web-1_0002 v1")
	})
}

// TestOtherCombination: until the checks have decided anew, what was decided before holds.
func TestOtherCombination(t *testing.T) {
	second := &switchable{}
	second.set(errSick)
	play(t, func(o *Options) {
		o.Services[0].Combine = CombineAny
		o.Services[0].Render = weighing{}
		o.Services[0].Checks = append(o.Services[0].Checks, Check{Name: "cache", HealthCheck: second})
	}, func(s *stage) {
		s.wait(2 * time.Second)
		s.nodes("/services/user-api/web-1_0001 v1")
		sv := s.service()
		sv.Combine, sv.Render = CombineWeighted, weighing{}
		sv.Checks = append(sv.Checks, Check{Name: "cache", HealthCheck: second})
		require.NoError(t, s.Reload([]Service{sv}))
		s.wait(0)
		s.nodes("/services/user-api/web-1_0001 v1")
		s.wait(2 * time.Second)
		s.nodes("/services/user-api/web-1_0001 v1 at 50%")
	})
}

// Render is that of tests: data as people read them.
func (weighing) Render(r discovery.Registration, c Condition) discovery.Registration {
	r.Data = fmt.Appendf(nil, "%s at %d%%", r.Data, c.Weight)
	return r
}
