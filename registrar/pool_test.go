package registrar

import (
	"context"
	"fmt"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/prometheus/client_golang/prometheus/testutil"
	"github.com/stretchr/testify/require"
	"pgregory.net/rapid"
)

// TestPool compares with a model: a list of who waits, served from its beginning, and who has a place.
func TestPool(t *testing.T) {
	type ask struct {
		of    int
		got   chan func()
		leave func()
		quit  context.CancelFunc
	}
	type step struct {
		what string // enter, leave, quit
		who  int
	}
	steps := rapid.SliceOfN(rapid.Custom(func(t *rapid.T) step {
		return step{rapid.SampledFrom([]string{"enter", "enter", "leave", "quit"}).Draw(t, "what"), rapid.IntRange(0, 9).Draw(t, "who")}
	}), 0, 60)
	rapid.Check(t, func(rt *rapid.T) {
		places := rapid.IntRange(1, 9).Draw(rt, "places")
		script := steps.Draw(rt, "script")
		problem := ""
		synctest.Test(t, func(t *testing.T) {
			p := newPool(places)
			keepers := []*keeper{{}, {}, {}}
			var inside, waiting []*ask
			served := func() { // by the model
				for i := 0; i < len(waiting); i++ {
					a, taken := waiting[i], 0
					for _, in := range inside {
						if in.of == a.of {
							taken++
						}
					}
					if len(inside) < places && taken < max(places/4, 1) {
						inside = append(inside, a)
						waiting = append(waiting[:i:i], waiting[i+1:]...)
						i = -1
					}
				}
			}
			for _, st := range script {
				switch {
				case st.what == "enter":
					ctx, quit := context.WithCancel(t.Context())
					a := &ask{of: st.who % 3, got: make(chan func(), 1), quit: quit}
					go func() {
						leave, ok := p.enter(ctx, keepers[a.of])
						if ok {
							a.got <- leave
						}
						close(a.got)
					}()
					waiting = append(waiting, a)
				case st.what == "leave" && len(inside) > 0:
					i := st.who % len(inside)
					inside[i].leave()
					inside[i].leave() // again, as one does who is late
					inside[i].quit()
					inside = append(inside[:i:i], inside[i+1:]...)
				case st.what == "quit" && len(waiting) > 0:
					i := st.who % len(waiting)
					waiting[i].quit()
					waiting = append(waiting[:i:i], waiting[i+1:]...)
				}
				synctest.Wait()
				served()
				for _, a := range inside {
					select {
					case leave := <-a.got:
						if leave == nil && a.leave == nil {
							problem = "a place was given to nobody"
							return
						}
						if leave != nil {
							a.leave = leave
						}
					default:
						problem = fmt.Sprintf("one of service %d has waited longest and has no place", a.of)
					}
				}
				for _, a := range waiting {
					if len(a.got) > 0 {
						problem = fmt.Sprintf("one of service %d has a place too many", a.of)
					}
				}
				if problem != "" {
					break
				}
			}
			// All at once: a place may come to one who has just given up.
			for _, a := range append(inside, waiting...) {
				if a.leave != nil {
					a.leave()
				}
				a.quit()
			}
			for _, a := range waiting {
				if leave := <-a.got; leave != nil {
					leave()
				}
			}
			if problem == "" && (p.free != places || len(p.taken) > 0 || len(p.waiting) > 0) {
				problem = fmt.Sprintf("after all have left: %d free of %d, %d taken, %d waiting", p.free, places, len(p.taken), len(p.waiting))
			}
		})
		if problem != "" {
			rt.Fatal(problem)
		}
	})
}

// counting is a check that counts how many are made at the same time.
type counting struct {
	takes time.Duration

	mu        sync.Mutex
	now, most int
}

func (c *counting) Check(ctx context.Context) error {
	c.add(1)
	defer c.add(-1)
	pause(ctx, c.takes)
	return ctx.Err()
}

func (c *counting) add(n int) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.now += n
	c.most = max(c.most, c.now)
}

func (c *counting) record() int {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.most
}

// deaf is a check that ignores its context.
type deaf struct {
	until <-chan struct{}
	runs  *atomic.Int32
}

func (d deaf) Check(context.Context) error {
	d.runs.Add(1)
	<-d.until
	return nil
}

// TestHangingChecks: a service whose checks hang does not keep another one from its checks, and a check that ignores its
// timeout does not keep its place.
func TestHangingChecks(t *testing.T) {
	var until chan struct{}
	var begun atomic.Int32
	play(t, func(o *Options) {
		until = make(chan struct{}) // of the bubble
		o.MaxConcurrentChecks = 4
		for i := range 3 {
			s := o.Services[0]
			s.Name, s.Registration.Path, s.Checks = fmt.Sprintf("stuck-%d", i), fmt.Sprintf("/services/stuck-%d", i), nil
			for j := range 10 {
				s.Checks = append(s.Checks, Check{Name: fmt.Sprintf("%d", j), HealthCheck: deaf{until, &begun}, Timeout: time.Minute})
			}
			o.Services = append(o.Services, s)
		}
	}, func(s *stage) {
		defer close(until)
		s.wait(30 * time.Second)
		s.nodes("/services/user-api/web-1_0001 v1")
		require.Equal(t, int32(3), begun.Load(), "a quarter of four places for each")
		runs := s.check.count()
		require.GreaterOrEqual(t, runs, 28, "each second")
		s.wait(20 * time.Minute)
		require.GreaterOrEqual(t, s.check.count()-runs, 20*59)
		require.Equal(t, int32(30), begun.Load(), "each has had its place")
		require.ErrorContains(t, s.Live(s.t.Context()), `look at service "stuck-2": check "0" does not end`)
	})
}

// TestManyServices: their checks begin spread over the first interval, stay apart, and never are more than there are
// places.
func TestManyServices(t *testing.T) {
	const services = 200
	for _, c := range []struct {
		places, most int
		takes        time.Duration
		waited       bool
	}{
		{0, 20, 10 * time.Millisecond, false},
		{8, 8, 100 * time.Millisecond, true},
	} {
		t.Run(fmt.Sprint(c.places), func(t *testing.T) {
			check := &counting{takes: c.takes}
			play(t, func(o *Options) {
				o.MaxConcurrentChecks = c.places
				one := o.Services[0]
				one.Checks = []Check{{HealthCheck: check}}
				o.Services = nil
				for i := range services {
					one.Name = fmt.Sprintf("s%d", i)
					one.Registration.Path = "/" + one.Name
					o.Services = append(o.Services, one)
				}
			}, func(s *stage) {
				require.Less(t, check.record(), 8, "no rush at the start")
				s.wait(time.Minute)
				require.LessOrEqual(t, check.record(), c.most)
				require.Len(t, s.dir.list(), services)
				families, err := s.reg.Gather()
				require.NoError(t, err)
				for _, f := range families {
					if f.GetName() == "myelin_registrar_check_wait_seconds" {
						h := f.GetMetric()[0].GetHistogram()
						require.Greater(t, h.GetSampleCount(), uint64(10*services))
						require.Equal(t, c.waited, h.GetSampleSum() > 0)
					}
				}
				for _, st := range s.Status() {
					require.Equal(t, c.takes, st.Checks[0].Latency, "to wait is no part of it")
				}
				n, err := testutil.GatherAndCount(s.reg, "myelin_registrar_check_wait_seconds")
				require.NoError(t, err)
				require.Equal(t, 1, n)
			})
		})
	}
}

func TestHeadStart(t *testing.T) {
	p := newPool(0)
	for _, c := range []struct {
		services int
		want     time.Duration // at the longest
	}{{0, 0}, {1, 0}, {2, 5 * time.Millisecond}, {20, 95 * time.Millisecond}, {200, 995 * time.Millisecond}, {5000, time.Second}} {
		p.services.Store(int64(c.services))
		require.Equal(t, c.want, p.headStart(time.Second, 1))
		require.Zero(t, p.headStart(time.Second, 0))
	}
}
