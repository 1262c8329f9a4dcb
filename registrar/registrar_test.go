package registrar

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/testutil"
	"github.com/sirupsen/logrus"
	logtest "github.com/sirupsen/logrus/hooks/test"
	"github.com/stretchr/testify/require"
	"pgregory.net/rapid"

	"github.com/myelin-sd/myelin/discovery"
)

// switchable is a check whose result the test sets.
type switchable struct {
	mu   sync.Mutex
	err  error
	hang bool // blocks, whatever its context says
	runs int
}

func (s *switchable) Check(ctx context.Context) error {
	s.mu.Lock()
	s.runs++
	err, hang := s.err, s.hang
	s.mu.Unlock()
	for hang {
		time.Sleep(time.Second)
		s.mu.Lock()
		hang = s.hang
		s.mu.Unlock()
	}
	return err
}

func (s *switchable) set(err error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.err = err
}

func (s *switchable) setHang(hang bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.hang = hang
}

func (s *switchable) count() int {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.runs
}

var errSick = errors.New("status 503")

// stage is a registrar that runs in a bubble of synctest: a minute costs nothing, and Wait knows when all is quiet.
type stage struct {
	*Registrar
	t       *testing.T
	dir     *fakeDirectory
	check   *switchable
	logs    *logtest.Hook
	reg     *prometheus.Registry
	cancel  context.CancelFunc
	stopped chan error
}

func (s *stage) service() Service {
	return Service{
		Name: "user-api", Directory: s.dir, Interval: time.Second,
		Registration: discovery.Registration{Path: "/services/user-api", Prefix: "web-1_", Data: []byte("v1"), Sequential: true, Ephemeral: true},
		Checks:       []Check{{Name: "health", HealthCheck: s.check, Rise: 2, Fall: 3}},
	}
}

// play runs a registrar with one service, in its own time, and ends it.
func play(t *testing.T, change func(*Options), script func(s *stage)) {
	synctest.Test(t, func(t *testing.T) {
		log, hook := logtest.NewNullLogger()
		s := &stage{t: t, dir: &fakeDirectory{}, check: &switchable{}, logs: hook, reg: prometheus.NewRegistry(), stopped: make(chan error, 1)}
		o := Options{Log: log, Metrics: NewMetrics(s.reg), Services: []Service{s.service()}}
		if change != nil {
			change(&o)
		}
		s.Registrar = New(o)
		ctx, cancel := context.WithCancel(t.Context())
		s.cancel = cancel
		go func() { s.stopped <- s.Run(ctx) }()
		synctest.Wait()
		defer s.wait(2 * closeTimeout) // every goroutine must have ended then
		defer cancel()
		script(s)
	})
}

func (s *stage) wait(d time.Duration) {
	time.Sleep(d) // of the bubble's clock
	synctest.Wait()
}

func (s *stage) stop() time.Duration {
	began := time.Now()
	s.cancel()
	require.NoError(s.t, <-s.stopped)
	return time.Since(began)
}

func (s *stage) nodes(want ...string) {
	s.t.Helper()
	if want == nil {
		want = []string{}
	}
	require.Equal(s.t, want, s.dir.list())
}

// messages are the log's lines since the last call: level, message and what is told of the reason.
func (s *stage) messages() []string {
	var all []string
	for _, e := range s.logs.AllEntries() {
		line := e.Level.String() + " " + e.Message
		for _, key := range []string{"check", "node", "reason", "err"} {
			if v, ok := e.Data[key]; ok {
				line += fmt.Sprintf(" %s=%v", key, v)
			}
		}
		all = append(all, line)
	}
	s.logs.Reset()
	return all
}

func (s *stage) metric(want string, names ...string) {
	s.t.Helper()
	lines := ""
	for _, l := range strings.Split(want, "\n") {
		if l = strings.TrimSpace(l); l != "" {
			lines += l + "\n"
		}
	}
	families, err := s.reg.Gather()
	require.NoError(s.t, err)
	got := ""
	for _, f := range families {
		for _, m := range f.GetMetric() {
			for _, n := range names {
				if n == f.GetName() {
					labels := ""
					for _, l := range m.GetLabel() {
						labels += " " + l.GetValue()
					}
					got += fmt.Sprintf("%s%s %v\n", strings.TrimPrefix(n, "myelin_registrar_"), labels, m.GetGauge().GetValue()+m.GetCounter().GetValue())
				}
			}
		}
	}
	require.Equal(s.t, lines, got)
}

func TestRegistersWhatIsHealthy(t *testing.T) {
	play(t, nil, func(s *stage) {
		s.nodes()
		st := s.Status()[0]
		require.Equal(t, Unknown, st.State, "one pass of two")
		require.Equal(t, Unknown, st.Checks[0].State)
		require.False(t, st.Registered)

		s.wait(time.Second) // the second run comes within one interval
		s.nodes("/services/user-api/web-1_0001 v1")
		st = s.Status()[0]
		require.Equal(t, Up, st.State)
		require.True(t, st.Registered)
		require.Equal(t, "/services/user-api/web-1_0001", st.Node)
		require.Equal(t, "user-api /services/user-api", st.Service+" "+st.Path)
		require.False(t, st.Confirmed.IsZero())
		s.metric(`registered user-api 1`, "myelin_registrar_registered")
		require.Equal(t, []string{"info service is up check=health", "info service is registered node=/services/user-api/web-1_0001"}, s.messages())

		s.check.set(errSick)
		s.wait(2 * time.Second)
		s.nodes("/services/user-api/web-1_0001 v1") // two failures of three
		st = s.Status()[0]
		require.Equal(t, Up, st.State)
		require.Equal(t, "status 503", st.Checks[0].Error)
		s.wait(time.Second)
		s.nodes()
		require.Equal(t, Down, s.Status()[0].State)
		require.False(t, s.Status()[0].Registered)
		s.metric(`registered user-api 0`, "myelin_registrar_registered")
		require.Equal(t, []string{"info service is down check=health err=status 503", "info service is withdrawn node=/services/user-api/web-1_0001"}, s.messages())

		s.check.set(nil)
		s.wait(2 * time.Second)
		s.nodes("/services/user-api/web-1_0002 v1")
		s.messages()
		require.Zero(t, s.stop())
		s.nodes()
		require.Equal(t, []string{"info service is withdrawn node=/services/user-api/web-1_0002"}, s.messages())
		require.Empty(t, s.dir.subs)
	})
}

func TestStartsDown(t *testing.T) {
	play(t, func(o *Options) { o.Services[0].Checks[0].HealthCheck.(*switchable).set(errSick) }, func(s *stage) {
		s.wait(time.Minute)
		require.Equal(t, Down, s.Status()[0].State)
		require.Equal(t, []string{"info service is down check=health err=status 503"}, s.messages())
		require.Zero(t, s.stop())
		require.Empty(t, s.dir.requests(), "nothing was ever asked of the directory")
	})
}

func TestFirstResultDecides(t *testing.T) {
	play(t, func(o *Options) { o.Services[0].FirstResultDecides = true }, func(s *stage) {
		s.nodes("/services/user-api/web-1_0001 v1")
	})
}

func TestWithoutChecks(t *testing.T) {
	for name, change := range map[string]func(*Options){
		"none":   func(o *Options) { o.Services[0].Checks = nil },
		"mocked": func(o *Options) { o.Services[0].CheckMocked = true },
	} {
		t.Run(name, func(t *testing.T) {
			play(t, change, func(s *stage) {
				s.nodes("/services/user-api/web-1_0001 v1")
				require.Zero(t, s.check.count())
			})
		})
	}
}

func TestAllChecksMustBeUp(t *testing.T) {
	second := &switchable{}
	play(t, func(o *Options) {
		o.Services[0].Checks = append(o.Services[0].Checks, Check{Name: "queue", HealthCheck: second, Interval: 3 * time.Second})
	}, func(s *stage) {
		s.wait(time.Second)
		s.nodes("/services/user-api/web-1_0001 v1")
		second.set(errors.New("connect 127.0.0.1:5672: refused"))
		s.wait(3 * time.Second)
		s.nodes()
		require.Contains(t, s.messages(), "info service is down check=queue err=connect 127.0.0.1:5672: refused")
		require.Equal(t, []State{Up, Down}, []State{s.Status()[0].Checks[0].State, s.Status()[0].Checks[1].State})
		s.wait(time.Hour)
		require.InDelta(t, 3, float64(s.check.count())/float64(second.count()), 0.1, "each has its own interval")
	})
}

func TestNodeLost(t *testing.T) {
	for _, c := range []struct {
		name   string
		lose   func(*fakeDirectory)
		within time.Duration
		reason string
	}{
		{"deleted", func(d *fakeDirectory) { d.clear(true) }, 2 * repairPause, "missing"},
		{"deleted, and nobody told", func(d *fakeDirectory) { d.clear(false) }, auditEvery, "missing"},
		{"session expired", func(d *fakeDirectory) { d.expire() }, 2 * repairPause, "expired"},
		{"lost in an outage, and then a failure", func(d *fakeDirectory) {
			d.goAway()
			d.expire()
			d.fail(refused)
			d.comeBack()
		}, 2*repairPause + backoffMin, "expired"},
	} {
		t.Run(c.name, func(t *testing.T) {
			play(t, nil, func(s *stage) {
				s.wait(5 * time.Second)
				s.nodes("/services/user-api/web-1_0001 v1")
				s.messages()
				c.lose(s.dir)
				s.nodes()
				s.wait(c.within)
				s.nodes("/services/user-api/web-1_0002 v1")
				s.metric("repairs_total "+c.reason+" user-api 1", "myelin_registrar_repairs_total")
				said := slices.DeleteFunc(s.messages(), func(m string) bool { return !strings.Contains(m, "registered") })
				require.Equal(t, []string{"info service is registered again node=/services/user-api/web-1_0002 reason=" + c.reason}, said, "once")
				status := s.Status()[0]
				require.Equal(t, map[string]int{c.reason: 1}, status.Repairs)
				require.Equal(t, "/services/user-api/web-1_0001", status.LastRepair.Node)
				require.False(t, status.LastRepair.At.IsZero())
			})
		})
	}
}

// TestSoonBack: however long the directory was away, and whatever pause there was, a session that has expired meanwhile is
// followed by a registration within a second.
func TestSoonBack(t *testing.T) {
	for _, away := range []time.Duration{time.Second, 4900 * time.Millisecond, time.Minute, time.Hour} {
		play(t, nil, func(s *stage) {
			s.wait(5 * time.Second)
			s.dir.goAway()
			s.wait(away)
			s.dir.expire()
			s.wait(away)
			s.dir.comeBack()
			s.wait(time.Second)
			s.nodes("/services/user-api/web-1_0002 v1")
		})
	}
}

// TestRepairsAreLimited: somebody who deletes the node over and over is not fought at the network's speed.
func TestRepairsAreLimited(t *testing.T) {
	play(t, nil, func(s *stage) {
		s.wait(5 * time.Second)
		s.dir.requests()
		for range 10_000 {
			s.dir.clear(true)
			s.wait(time.Millisecond)
		}
		repairs := len(s.dir.requests())
		require.LessOrEqual(t, repairs, 100)
		require.Greater(t, repairs, 40)
	})
}

// TestQuiet: what is in order costs the directory one look in half a minute.
func TestQuiet(t *testing.T) {
	play(t, nil, func(s *stage) {
		s.wait(5 * time.Second)
		s.dir.requests()
		s.wait(10 * time.Minute)
		looks := s.dir.requests()
		require.LessOrEqual(t, len(looks), 25)
		for _, l := range looks {
			require.Equal(t, "keep /services/user-api/web-1_0001", l)
		}
		require.GreaterOrEqual(t, len(looks), 19)
	})
}

func TestUnknownOutcomes(t *testing.T) {
	play(t, nil, func(s *stage) {
		s.dir.fail(lost, lost, refused)
		s.wait(2 * time.Second)
		s.nodes("/services/user-api/web-1_0001 v1")
		require.True(t, s.Status()[0].Registered)

		s.dir.fail(lost, refused)
		s.check.set(errSick)
		s.wait(5 * time.Second)
		s.nodes()
		require.False(t, s.Status()[0].Registered)
	})
	play(t, nil, func(s *stage) { // a create that worked, its answer lost, and the checks fall before the next attempt
		s.dir.fail(lost, refused, refused, refused, refused, refused, refused)
		s.wait(time.Second)
		s.nodes("/services/user-api/web-1_0001 v1")
		s.check.set(errSick)
		s.wait(20 * time.Second)
		s.nodes()
	})
}

func TestDirectoryAway(t *testing.T) {
	play(t, nil, func(s *stage) {
		s.wait(5 * time.Second)
		s.messages()
		runs := s.check.count()
		s.dir.goAway()
		s.wait(20 * time.Second)
		require.GreaterOrEqual(t, s.check.count(), runs+20, "checks go on")
		require.True(t, s.Status()[0].Registered, "unknown is not gone")

		s.check.set(errSick)
		s.wait(10 * time.Second)
		require.Equal(t, Down, s.Status()[0].State)
		require.Contains(t, s.Status()[0].Problem, "no connection")
		s.wait(time.Minute)
		var warnings []string
		for _, m := range s.messages() {
			if strings.HasPrefix(m, "warning") {
				warnings = append(warnings, m)
			}
		}
		require.Equal(t, []string{"warning cannot withdraw the service; trying on err=no connection: context deadline exceeded"}, warnings)

		s.dir.comeBack()
		s.wait(2 * repairPause)
		s.nodes()
		require.Empty(t, s.Status()[0].Problem)
		require.Equal(t, []string{"info the directory answers again", "info service is withdrawn node=/services/user-api/web-1_0001"}, s.messages())
	})
}

// TestNeverPublishesTheSick: a publish that waits for the directory is given up when the checks fall.
func TestNeverPublishesTheSick(t *testing.T) {
	play(t, func(o *Options) { o.Services[0].Checks[0].Fall = 1 }, func(s *stage) {
		s.dir.goAway()
		s.wait(2 * time.Second) // up, and waiting
		require.Equal(t, Up, s.Status()[0].State)
		s.check.set(errSick)
		s.wait(time.Second)
		require.Equal(t, Down, s.Status()[0].State)
		s.dir.comeBack()
		s.wait(10 * time.Second)
		require.NotEmpty(t, s.dir.log)
		for _, request := range s.dir.requests() {
			require.Equal(t, "withdraw /services/user-api/web-1_", request)
		}
	})
}

func TestStartsWithoutDirectory(t *testing.T) {
	play(t, func(o *Options) { o.Services[0].Directory.(*fakeDirectory).goAway() }, func(s *stage) {
		s.wait(time.Hour)
		s.dir.comeBack()
		s.wait(2 * repairPause)
		s.nodes("/services/user-api/web-1_0001 v1")
		require.Equal(t, []string{
			"info service is up check=health",
			"warning cannot publish the service; trying on err=no connection: context deadline exceeded",
			"info the directory answers again",
			"info service is registered node=/services/user-api/web-1_0001",
		}, s.messages())
	})
}

func TestStop(t *testing.T) {
	t.Run("tries again", func(t *testing.T) {
		play(t, nil, func(s *stage) {
			s.wait(5 * time.Second)
			s.dir.fail(refused, lost, refused)
			require.Less(t, s.stop(), time.Second)
			s.nodes()
		})
	})
	t.Run("in the middle of a long pause", func(t *testing.T) {
		play(t, nil, func(s *stage) {
			s.wait(5 * time.Second)
			s.check.set(errSick)
			refusals := make([]fault, 1000)
			for i := range refusals {
				refusals[i] = refused
			}
			s.dir.fail(refusals...)
			s.wait(20 * time.Second)
			s.nodes("/services/user-api/web-1_0001 v1")
			s.dir.fail()
			require.Zero(t, s.stop())
			s.nodes()
		})
	})
	t.Run("directory away", func(t *testing.T) {
		play(t, func(o *Options) {
			for i := range 5 {
				s := o.Services[0]
				s.Name = fmt.Sprintf("other-%d", i)
				s.Registration.Path = "/services/" + s.Name
				o.Services = append(o.Services, s)
			}
		}, func(s *stage) {
			s.wait(5 * time.Second)
			s.dir.goAway()
			s.messages()
			require.Equal(t, closeTimeout, s.stop(), "all at the same time")
			require.Contains(t, s.messages(), "warning service was not withdrawn in time; its node goes with the session")
		})
	})
	t.Run("while a publish is under way", func(t *testing.T) {
		play(t, nil, func(s *stage) {
			s.dir.fail(lost)
			s.wait(time.Second)
			s.dir.goAway()
			s.wait(time.Second)
			s.cancel()
			s.wait(time.Second)
			s.dir.comeBack()
			require.NoError(t, <-s.stopped)
			s.nodes()
		})
	})
}

// inherited runs a registrar for which another process has left a node, as it was configured there.
func inherited(t *testing.T, was discovery.Registration, script func(s *stage)) {
	t.Helper()
	play(t, func(o *Options) {
		dir := o.Services[0].Directory.(*fakeDirectory)
		data := was.Data
		was.Data = nil
		dir.left = []discovery.Registration{was}
		dir.put(was.Path+"/"+was.Prefix+"0007", string(data))
		if !was.Sequential {
			dir.nodes = map[string]fakeNode{was.Path + "/" + was.Prefix: {data: string(data)}}
		}
		dir.watchLeast()
	}, script)
}

// TestInherits: nothing is touched before the checks have decided; then it is as if the process before were this one.
func TestInherits(t *testing.T) {
	const node = "/services/user-api/web-1_0007"
	was := (&stage{}).service().Registration
	t.Run("up", func(t *testing.T) {
		inherited(t, was, func(s *stage) {
			s.dir.goAway()
			s.dir.comeBack() // that is an event
			synctest.Wait()
			require.Empty(t, s.dir.requests(), "one check of two has passed")
			require.True(t, s.Uses(s.dir))
			s.wait(time.Second)
			require.Equal(t, []string{"keep " + node}, s.dir.requests())
			require.Equal(t, 1, s.dir.fewest())
			require.Equal(t, []string{"info service is up check=health", "info service is registered node=" + node}, s.messages())
		})
	})
	t.Run("up with other data", func(t *testing.T) {
		was := was
		was.Data = []byte("v0")
		inherited(t, was, func(s *stage) {
			s.nodes(node + " v0")
			s.wait(2 * time.Second)
			require.Equal(t, []string{"set " + node + " v1"}, s.dir.requests())
		})
	})
	t.Run("another kind of node", func(t *testing.T) {
		was := was
		was.Sequential = false
		inherited(t, was, func(s *stage) {
			s.wait(2 * time.Second)
			require.Equal(t, []string{"withdraw /services/user-api/web-1_", "create /services/user-api/web-1_0001 v1"}, s.dir.requests())
			s.nodes("/services/user-api/web-1_0001 v1")
		})
	})
	t.Run("down", func(t *testing.T) {
		inherited(t, was, func(s *stage) {
			s.check.set(errSick)
			s.wait(5 * time.Second)
			require.Equal(t, []string{"withdraw /services/user-api/web-1_"}, s.dir.requests(), "once")
			s.nodes()
			require.Equal(t, []string{"info service is down check=health err=status 503", "info service is withdrawn reason=left by the process before"}, s.messages())
			s.dir.goAway()
			s.check.set(nil)
			s.wait(5 * time.Second)
			s.check.set(errSick)
			s.wait(5 * time.Second)
			s.dir.comeBack()
			s.wait(2 * backoffMax)
			require.NotContains(t, strings.Join(s.messages(), "\n"), "left by the process before", "that is long ago")
			s.check.set(nil)
			s.wait(5 * time.Second)
			s.nodes("/services/user-api/web-1_0001 v1")
		})
	})
	t.Run("a blip at the start", func(t *testing.T) {
		inherited(t, was, func(s *stage) {
			s.check.set(errSick)
			s.wait(time.Second)
			s.check.set(nil)
			s.wait(5 * time.Second)
			require.Equal(t, []string{"keep " + node}, s.dir.requests())
			require.Equal(t, 1, s.dir.fewest())
		})
	})
	t.Run("down while the directory is away", func(t *testing.T) {
		inherited(t, was, func(s *stage) {
			s.dir.goAway()
			s.check.set(errSick)
			s.wait(time.Minute)
			s.nodes(node + " v1")
			s.dir.comeBack()
			s.wait(2 * backoffMax)
			s.nodes()
		})
	})
	t.Run("removed before it is decided", func(t *testing.T) {
		inherited(t, was, func(s *stage) {
			require.NoError(t, s.Reload(nil))
			s.wait(time.Second)
			s.nodes()
			require.False(t, s.Uses(s.dir))
		})
	})
	t.Run("stopped before it is decided", func(t *testing.T) {
		inherited(t, was, func(s *stage) {
			s.stop()
			s.nodes()
		})
	})
}

// TestDetach: everything stays as it is, whatever is under way.
func TestDetach(t *testing.T) {
	registered := func(t *testing.T, script func(s *stage)) {
		play(t, nil, func(s *stage) {
			s.wait(2 * time.Second)
			s.nodes("/services/user-api/web-1_0001 v1")
			script(s)
		})
	}
	t.Run("registered", func(t *testing.T) {
		registered(t, func(s *stage) {
			s.dir.requests()
			s.Detach()
			s.Detach()
			require.NoError(t, <-s.stopped)
			s.cancel()
			s.wait(time.Hour)
			require.Empty(t, s.dir.requests())
			s.nodes("/services/user-api/web-1_0001 v1")
			require.EqualError(t, s.Reload(nil), "reload services: the registrar has stopped")
		})
	})
	t.Run("with the end of its context", func(t *testing.T) {
		for range 20 { // the order in which a select sees them is by chance
			registered(t, func(s *stage) {
				s.Detach()
				s.stop()
				s.nodes("/services/user-api/web-1_0001 v1")
			})
		}
	})
	t.Run("while it withdraws", func(t *testing.T) {
		registered(t, func(s *stage) {
			s.dir.goAway()
			s.cancel()
			synctest.Wait()
			began := time.Now()
			s.Detach()
			require.NoError(t, <-s.stopped)
			require.Zero(t, time.Since(began))
			s.dir.comeBack()
			s.wait(time.Minute)
			s.nodes("/services/user-api/web-1_0001 v1")
		})
	})
	t.Run("while a request and a check are under way", func(t *testing.T) {
		play(t, nil, func(s *stage) {
			s.dir.goAway()
			s.wait(2 * time.Second)
			s.check.setHang(true)
			s.wait(2 * time.Second)
			s.Detach()
			s.wait(time.Minute)
			require.Empty(t, s.stopped, "the check has not ended")
			s.check.setHang(false)
			require.NoError(t, <-s.stopped)
			s.dir.comeBack()
			s.wait(time.Minute)
			s.nodes()
		})
	})
	t.Run("before it runs", func(t *testing.T) {
		dir := &fakeDirectory{}
		r := New(Options{Services: []Service{{Name: "a", Directory: dir, Registration: discovery.Registration{Path: "/a", Prefix: "x"}}}})
		r.Detach()
		require.NoError(t, r.Run(t.Context()))
		require.Empty(t, dir.requests())
	})
}

func TestReload(t *testing.T) {
	const node = "/services/user-api/web-1_0001"
	other := func(s *stage) Service {
		o := s.service()
		o.Name, o.Registration.Path = "other", "/services/other"
		return o
	}
	// registered plays until the service is registered and the directory's log is empty.
	registered := func(t *testing.T, script func(s *stage)) {
		play(t, nil, func(s *stage) {
			s.wait(5 * time.Second)
			s.nodes(node + " v1")
			s.dir.requests()
			s.messages()
			s.dir.watchLeast()
			script(s)
		})
	}

	t.Run("the same", func(t *testing.T) {
		registered(t, func(s *stage) {
			runs := s.check.count()
			require.NoError(t, s.Reload([]Service{s.service()}))
			s.wait(0)
			require.Equal(t, runs, s.check.count())
			require.Empty(t, s.dir.requests())
			require.Empty(t, s.messages())
		})
	})
	t.Run("refused", func(t *testing.T) {
		registered(t, func(s *stage) {
			require.EqualError(t, s.Reload([]Service{{Name: "x"}}), `register service "x": it has no directory`)
			s.wait(10 * time.Second)
			s.nodes(node + " v1")
			require.Len(t, s.Status(), 1)
		})
	})
	t.Run("other data", func(t *testing.T) {
		registered(t, func(s *stage) {
			sv := s.service()
			sv.Registration.Data = []byte("v2")
			require.NoError(t, s.Reload([]Service{sv}))
			s.wait(0)
			require.Equal(t, []string{"set " + node + " v2"}, s.dir.requests())
			require.Equal(t, Up, s.Status()[0].State)
		})
	})
	t.Run("other checks, other data", func(t *testing.T) {
		registered(t, func(s *stage) {
			sv := s.service()
			strict := &switchable{}
			sv.Checks = []Check{{Name: "strict", HealthCheck: strict, Rise: 3}}
			sv.Registration.Data = []byte("v2")
			require.NoError(t, s.Reload([]Service{sv}))
			s.wait(0)
			s.dir.clear(true)
			s.wait(2 * repairPause)
			s.nodes("/services/user-api/web-1_0002 v1") // the new checks have not decided
			require.Equal(t, "strict", s.Status()[0].Checks[0].Check)
			runs := s.check.count()
			s.wait(2 * time.Second)
			s.nodes("/services/user-api/web-1_0002 v2")
			require.Equal(t, runs, s.check.count(), "the old check is not made any more")
			require.Equal(t, 1, s.dir.fewest())
		})
	})
	t.Run("other data while other checks decide", func(t *testing.T) {
		registered(t, func(s *stage) {
			sv := s.service()
			strict := &switchable{}
			sv.Checks = []Check{{Name: "strict", HealthCheck: strict, Rise: 3}}
			for _, data := range []string{"v2", "v3"} {
				sv.Registration.Data = []byte(data)
				require.NoError(t, s.Reload([]Service{sv}))
				s.wait(0)
				s.nodes(node + " v1")
				require.Equal(t, 1, strict.count(), "the checks go on")
			}
			s.wait(2 * time.Second)
			s.nodes(node + " v3")
		})
	})
	t.Run("a check that is made no more", func(t *testing.T) {
		registered(t, func(s *stage) {
			k := s.snapshot()[0]
			late := result{probe: &probe{health: NewHealth(1, 1, true)}, err: errSick}
			require.True(t, k.do(s.t.Context(), func(context.Context) { k.observe(late) }))
			s.wait(0)
			s.nodes(node + " v1")
			s.metric(fmt.Sprintf("checks_total pass user-api %d", s.check.count()), "myelin_registrar_checks_total")
		})
	})
	t.Run("other checks that fail", func(t *testing.T) {
		registered(t, func(s *stage) {
			sv := s.service()
			sv.Checks = []Check{{Name: "strict", HealthCheck: &switchable{err: errSick}}}
			require.NoError(t, s.Reload([]Service{sv}))
			s.wait(0)
			s.nodes()
		})
	})
	t.Run("other checks that fail as often as they may", func(t *testing.T) {
		registered(t, func(s *stage) {
			sv := s.service()
			strict := &switchable{err: errSick}
			sv.Checks = []Check{{Name: "strict", HealthCheck: strict, Fall: 4, Interval: time.Second}}
			require.NoError(t, s.Reload([]Service{sv}))
			s.wait(1900 * time.Millisecond)
			require.Contains(t, []int{2, 3}, strict.count())
			strict.set(nil)
			s.wait(5 * time.Second)
			s.nodes(node + " v1")
			require.Equal(t, 1, s.dir.fewest())
			strict.set(errSick)
			s.wait(4 * time.Second)
			s.nodes()
		})
	})
	t.Run("added and removed", func(t *testing.T) {
		registered(t, func(s *stage) {
			require.NoError(t, s.Reload([]Service{s.service(), other(s)}))
			s.wait(2 * time.Second)
			s.nodes("/services/other/web-1_0002 v1", node+" v1")
			s.metric("registered other 1\nregistered user-api 1", "myelin_registrar_registered")
			s.dir.requests()
			require.NoError(t, s.Reload([]Service{s.service()}))
			s.wait(0)
			s.nodes(node + " v1")
			require.Equal(t, []string{"withdraw /services/other/web-1_"}, s.dir.requests())
			require.Len(t, s.Status(), 1)
			s.wait(time.Minute)
			for _, series := range []string{"registered", "checks_total", "check_seconds", "repairs_total"} {
				n, err := testutil.GatherAndCount(s.reg, "myelin_registrar_"+series)
				require.NoError(t, err)
				require.LessOrEqual(t, n, 1, series)
			}
		})
	})
	t.Run("removed while the directory is away", func(t *testing.T) {
		registered(t, func(s *stage) {
			s.dir.goAway()
			require.NoError(t, s.Reload(nil))
			s.check.set(errSick)
			s.wait(30 * time.Second)
			s.check.set(nil)
			s.wait(30 * time.Second)
			require.True(t, s.Status()[0].Leaving)
			require.True(t, s.Uses(s.dir))
			s.dir.comeBack()
			s.wait(2 * repairPause)
			s.nodes()
			require.Empty(t, s.Status())
			require.False(t, s.Uses(s.dir))
		})
	})
	t.Run("removed and back while the directory is away", func(t *testing.T) {
		registered(t, func(s *stage) {
			s.dir.goAway()
			require.NoError(t, s.Reload(nil))
			s.wait(time.Second)
			require.NoError(t, s.Reload([]Service{s.service()}))
			s.wait(10 * time.Second)
			s.dir.comeBack()
			s.wait(2 * repairPause)
			s.nodes(node + " v1")
			require.False(t, s.Status()[0].Leaving)
		})
	})
	t.Run("renamed", func(t *testing.T) {
		registered(t, func(s *stage) {
			sv := s.service()
			sv.Name = "users"
			require.NoError(t, s.Reload([]Service{sv}))
			s.wait(10 * time.Second)
			s.nodes(node + " v1")
			require.Equal(t, 1, s.dir.fewest())
			require.Equal(t, "users", s.Status()[0].Service)
			s.metric("registered users 1", "myelin_registrar_registered")
			s.metric("checks_total pass users 10", "myelin_registrar_checks_total")
		})
	})
	t.Run("moved: new before old", func(t *testing.T) {
		registered(t, func(s *stage) {
			sv := s.service()
			sv.Registration.Path = "/services/users"
			require.NoError(t, s.Reload([]Service{sv}))
			s.wait(0)
			s.nodes(node + " v1")
			require.Len(t, s.Status(), 2)
			require.True(t, s.Status()[0].Leaving)
			s.wait(time.Second)
			s.nodes("/services/users/web-1_0002 v1")
			require.Equal(t, 1, s.dir.fewest(), "one of them stood at any moment")
			require.Len(t, s.Status(), 1)
			s.metric("registered user-api 1", "myelin_registrar_registered")
		})
	})
	t.Run("moved to where it is down", func(t *testing.T) {
		registered(t, func(s *stage) {
			sv := s.service()
			sv.Registration.Path = "/services/users"
			sv.Checks = []Check{{Name: "strict", HealthCheck: &switchable{err: errSick}}}
			require.NoError(t, s.Reload([]Service{sv}))
			s.wait(successorGrace - time.Second)
			s.nodes(node + " v1")
			s.wait(2 * time.Second)
			s.nodes()
		})
	})
	t.Run("moved to a directory that does not answer, and back", func(t *testing.T) {
		registered(t, func(s *stage) {
			away := &fakeDirectory{}
			away.goAway()
			sv := s.service()
			sv.Directory = away
			require.NoError(t, s.Reload([]Service{sv}))
			s.wait(time.Hour)
			s.nodes(node + " v1")
			require.NoError(t, s.Reload([]Service{s.service()}))
			s.wait(time.Minute)
			require.Equal(t, 1, s.dir.fewest())
			require.True(t, s.Uses(away), "a publish may have worked")
			away.comeBack()
			s.wait(2 * repairPause)
			require.Empty(t, away.list())
			require.False(t, s.Uses(away))
			s.nodes(node + " v1")
		})
	})
	t.Run("another kind of node", func(t *testing.T) {
		registered(t, func(s *stage) {
			sv := s.service()
			sv.Registration.Sequential = false
			s.dir.fail(lost, refused)
			require.NoError(t, s.Reload([]Service{sv}))
			s.wait(time.Second)
			s.nodes("/services/user-api/web-1_ v1")
		})
	})
	t.Run("back at the moment it has left", func(t *testing.T) {
		registered(t, func(s *stage) {
			s.do(s.t.Context(), func(ctx context.Context) {
				k := s.keepers[s.service().identity()]
				require.True(t, k.do(ctx, func(context.Context) { k.retire(nil) }))
				<-k.done // the loop has not heard of it yet
				require.NoError(t, s.reload(ctx, []Service{s.service()}))
			})
			s.wait(5 * time.Second)
			s.nodes("/services/user-api/web-1_0002 v1")
			require.Len(t, s.Status(), 1)
			require.NoError(t, s.Reload(nil))
			s.wait(time.Second)
			s.nodes()
		})
	})
	t.Run("before and after running", func(t *testing.T) {
		registered(t, func(s *stage) {
			require.ErrorContains(t, s.Run(s.t.Context()), "run registrar")
			s.stop()
			require.EqualError(t, s.Reload(nil), "reload services: the registrar has stopped")
			require.Error(t, s.Live(s.t.Context()))
		})
		require.Empty(t, New(Options{}).Status())
	})
}

func TestRunRefuses(t *testing.T) {
	require.EqualError(t, New(Options{Services: []Service{{}}}).Run(t.Context()), "register service \"\": it has no name\nregister service \"\": it has no directory")
}

func TestHeartbeat(t *testing.T) {
	path := filepath.Join(t.TempDir(), "heartbeat")
	mtime := func() time.Time {
		fi, err := os.Stat(path)
		require.NoError(t, err)
		return fi.ModTime().UTC()
	}
	play(t, func(o *Options) { o.HeartbeatPath = path }, func(s *stage) {
		began := time.Now().UTC()
		require.Equal(t, began, mtime())
		s.wait(35 * time.Second)
		require.Equal(t, began.Add(30*time.Second), mtime())
		require.NoError(t, s.Live(s.t.Context()))

		s.dir.goAway()
		s.check.set(errSick)
		s.wait(time.Minute)
		require.Equal(t, began.Add(90*time.Second), mtime(), "a sick service and a directory that is away are no reason")
		s.messages()

		s.check.setHang(true)
		s.wait(time.Minute)
		require.EqualError(t, s.Live(s.t.Context()), `look at service "user-api": check "health" does not end`)
		last := mtime()
		s.wait(time.Minute)
		require.Equal(t, last, mtime())
		require.Equal(t, []string{`warning heartbeat missed err=look at service "user-api": check "health" does not end`}, s.messages())

		s.check.setHang(false)
		s.wait(20 * time.Second)
		require.NoError(t, s.Live(s.t.Context()))
		require.Greater(t, mtime(), last)
	})
}

func TestHeartbeatCannotBeWritten(t *testing.T) {
	path := filepath.Join(t.TempDir(), "missing", "heartbeat")
	play(t, func(o *Options) { o.HeartbeatPath = path }, func(s *stage) {
		s.wait(time.Minute)
		require.Equal(t, []string{
			fmt.Sprintf("warning heartbeat missed err=touch heartbeat: open %s: no such file or directory", path),
			"info service is up check=health", "info service is registered node=/services/user-api/web-1_0001",
		}, s.messages())
	})
}

func TestStatusAsJSON(t *testing.T) {
	play(t, nil, func(s *stage) {
		text, err := json.Marshal(s.Status())
		require.NoError(t, err)
		require.JSONEq(t, `[{"service": "user-api", "path": "/services/user-api", "state": "unknown", "since": "2000-01-01T00:00:00Z",
			"checks": [{"check": "health", "state": "unknown", "since": "2000-01-01T00:00:00Z", "at": "2000-01-01T00:00:00Z", "latency_ns": 0,
				"result": "pass", "recent": [{"at": "2000-01-01T00:00:00Z", "result": "pass", "latency_ns": 0}]}],
			"registered": false, "settled": false}]`, string(text))
	})
}

func TestMetrics(t *testing.T) {
	play(t, nil, func(s *stage) {
		s.wait(4 * time.Second)
		s.check.set(errSick)
		s.wait(2 * time.Second)
		total := s.check.count()
		s.metric(fmt.Sprintf("checks_total fail user-api 2\nchecks_total pass user-api %d", total-2), "myelin_registrar_checks_total")
		require.NoError(t, testutil.GatherAndCompare(s.reg, strings.NewReader(`# HELP myelin_registrar_registered 1 while the directory has confirmed the service's registration.
# TYPE myelin_registrar_registered gauge
myelin_registrar_registered{service="user-api"} 1
`), "myelin_registrar_registered"))
		n, err := testutil.GatherAndCount(s.reg, "myelin_registrar_check_seconds")
		require.NoError(t, err)
		require.Equal(t, 1, n)
	})
	problems, err := testutil.GatherAndLint(func() prometheus.Gatherer {
		reg := prometheus.NewRegistry()
		m := NewMetrics(reg)
		m.checked("a", Passed, time.Second)
		m.waited(time.Second)
		m.stalled(time.Second)
		m.held("a", true)
		m.present("a", true)
		m.repaired("a", discovery.FoundMissing)
		return reg
	}())
	require.NoError(t, err)
	require.Empty(t, problems)
}

func TestLogFields(t *testing.T) {
	play(t, nil, func(s *stage) {
		s.wait(2 * time.Second)
		for _, e := range s.logs.AllEntries() {
			require.Equal(t, logrus.Fields{"component": "registrar", "service": "user-api", "path": "/services/user-api"},
				logrus.Fields{"component": e.Data["component"], "service": e.Data["service"], "path": e.Data["path"]})
		}
		require.Len(t, s.logs.AllEntries(), 2)
	})
}

// TestConverges: whatever happens, when all is quiet the directory holds exactly one node, with the latest data, if
// the service is healthy and in no maintenance, and none if it is not; and none after the end.
func TestConverges(t *testing.T) {
	type step struct {
		what string
		wait time.Duration
	}
	steps := rapid.SliceOfN(rapid.Custom(func(t *rapid.T) step {
		return step{
			rapid.SampledFrom([]string{"pass", "fail", "away", "back", "expire", "delete", "delete silently", "refuse", "lose", "reload", "remove", "maintain", "enable", "wait"}).Draw(t, "what"),
			time.Duration(rapid.IntRange(0, 3000).Draw(t, "ms")) * time.Millisecond,
		}
	}), 0, 40)
	rapid.Check(t, func(rt *rapid.T) {
		script := steps.Draw(rt, "script")
		healthy, configured, maintained := true, true, false
		var problem string
		// Drawn out here, played in there: a failure inside of a bubble could not be made smaller.
		play(t, polite, func(s *stage) {
			sv := s.politeService()
			sv.Registration.Data, sv.Render = []byte("v0"), rendered{"v0"}
			sv.SlowStart = 10 * time.Second
			for i, st := range script {
				switch st.what {
				case "pass":
					s.check.set(nil)
					healthy = true
				case "fail":
					s.check.set(errSick)
					healthy = false
				case "away":
					s.dir.goAway()
				case "back":
					s.dir.comeBack()
				case "expire":
					s.dir.expire()
				case "delete", "delete silently":
					s.dir.clear(st.what == "delete")
				case "refuse":
					s.dir.fail(refused, refused)
				case "lose":
					s.dir.fail(lost, lost)
				case "reload":
					sv.Registration.Data = fmt.Appendf(nil, "v%d", i+1)
					sv.Render = rendered{string(sv.Registration.Data)}
					if i%2 == 0 {
						sv.Checks[0].Fall = 1 + sv.Checks[0].Fall%4
					}
					require.NoError(t, s.Reload([]Service{sv}))
					configured = true
				case "remove":
					require.NoError(t, s.Reload(nil))
					configured = false
				case "maintain", "enable":
					maintained = st.what == "maintain"
					set := s.EndMaintenance
					if maintained {
						set = func(name string) error { return s.Maintain(name, Maintenance{}) }
					}
					if err := set("user-api"); err != nil {
						maintained = false // it is not configured, and nothing is known of it
					}
				}
				s.wait(st.wait)
			}
			if configured {
				require.NoError(t, s.Reload([]Service{sv}))
			}
			s.dir.comeBack()
			s.dir.fail()
			s.wait(time.Minute)
			want := 0
			if healthy && configured && !maintained {
				want = 1
			}
			got := s.dir.list()
			if len(got) != want {
				problem = fmt.Sprintf("healthy %t, configured %t, in maintenance %t: %q", healthy, configured, maintained, got)
			} else if want == 1 && !strings.HasSuffix(got[0], " "+string(sv.Registration.Data)) {
				problem = fmt.Sprintf("%q, not %s", got, sv.Registration.Data)
			}
			s.stop()
			if left := s.dir.list(); len(left) > 0 && problem == "" {
				problem = fmt.Sprintf("left behind: %q", left)
			}
		})
		if problem != "" {
			rt.Fatalf("%s", problem)
		}
	})
}
