package haproxy

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/sirupsen/logrus"
	logtest "github.com/sirupsen/logrus/hooks/test"
	"github.com/stretchr/testify/require"
)

// reloads is a fake HAProxy to reload, in a bubble of synctest.
type reloads struct {
	t     *testing.T
	began time.Time
	*Reloader
	hook *logtest.Hook

	mu    sync.Mutex
	at    []time.Duration // start of each reload
	takes time.Duration
	err   error
}

func startReloader(t *testing.T, interval time.Duration, jitter float64) *reloads {
	log, hook := logtest.NewNullLogger()
	log.SetLevel(logrus.DebugLevel)
	f := &reloads{t: t, began: time.Now(), hook: hook}
	f.Reloader = NewReloader(ReloaderOptions{Reload: f.reload, Interval: interval, Jitter: jitter, Log: log})
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan struct{})
	go func() { defer close(done); f.Run(ctx) }()
	t.Cleanup(func() { cancel(); <-done })
	return f
}

func (f *reloads) reload(ctx context.Context) error {
	f.mu.Lock()
	f.at = append(f.at, time.Since(f.began))
	takes, err := f.takes, f.err
	f.mu.Unlock()
	time.Sleep(takes)
	if ctx.Err() != nil {
		return ctx.Err()
	}
	return err
}

func (f *reloads) set(takes time.Duration, err error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.takes, f.err = takes, err
}

func (f *reloads) starts() []time.Duration {
	f.mu.Lock()
	defer f.mu.Unlock()
	return append([]time.Duration(nil), f.at...)
}

// TestReloadAgain: a repetition is told from a request, also from one that comes while a reload is failing.
func TestReloadAgain(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		log, _ := logtest.NewNullLogger()
		var seen []string
		fails := true
		did := func(what string) func(context.Context) error {
			return func(context.Context) error {
				seen = append(seen, what)
				time.Sleep(time.Second)
				if fails {
					return errors.New("one is away")
				}
				return nil
			}
		}
		r := NewReloader(ReloaderOptions{Reload: did("reload"), Again: did("again"), Interval: 2 * time.Second, Log: log})
		ctx, cancel := context.WithCancel(t.Context())
		done := make(chan struct{})
		go func() { defer close(done); r.Run(ctx) }()
		r.Request("a")
		time.Sleep(6500 * time.Millisecond) // the third is under way
		r.Request("a")
		time.Sleep(6 * time.Second)
		require.Equal(t, []string{"reload", "again", "again", "reload", "again"}, seen)
		fails = false
		time.Sleep(10 * time.Second)
		r.Request("b")
		time.Sleep(time.Second)
		require.Equal(t, []string{"again", "reload"}, seen[len(seen)-2:])
		cancel()
		<-done
	})
}

func TestReloadsAreSpacedAndMerged(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f := startReloader(t, 2*time.Second, 0)
		f.set(time.Second, nil)
		time.Sleep(10 * time.Second)
		require.Empty(t, f.starts(), "no request, no reload")

		f.Request("first")
		synctest.Wait()
		require.Equal(t, []time.Duration{10 * time.Second}, f.starts(), "the first is done at once")
		f.Request("during")
		f.Request("during")
		time.Sleep(1500 * time.Millisecond)
		f.Request("after")
		require.Equal(t, []string{"during", "after"}, f.Status().Pending)
		time.Sleep(time.Minute)
		require.Equal(t, []time.Duration{10 * time.Second, 13 * time.Second}, f.starts(),
			"one more, two seconds behind the end of the first")

		s := f.Status()
		require.Equal(t, []string{"during", "after"}, s.Reasons)
		require.Equal(t, f.began.Add(14*time.Second), s.At)
		require.EqualValues(t, 2, s.Reloads)
		require.Zero(t, s.Failures)
		require.Empty(t, s.Error)
		require.Empty(t, s.Pending)
		require.Equal(t, map[string]uint64{"first": 1, "during": 1, "after": 1}, s.ByReason)

		s.ByReason["first"] = 9
		require.EqualValues(t, 1, f.Status().ByReason["first"], "a status is a copy")
	})
}

func TestAFailedReloadIsTriedAgain(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f := startReloader(t, 2*time.Second, 0)
		f.set(0, errors.New("no such service"))
		f.Request("one")
		time.Sleep(5 * time.Second)
		f.Request("two")
		require.Equal(t, []time.Duration{0, 2 * time.Second, 4 * time.Second}, f.starts())
		s := f.Status()
		require.Equal(t, "no such service", s.Error)
		require.EqualValues(t, 3, s.Failures)
		require.Zero(t, s.Reloads)
		require.Empty(t, s.ByReason)
		require.Equal(t, []string{"one", "two"}, s.Pending)
		require.Len(t, f.hook.AllEntries(), 1, "said once")
		require.Equal(t, logrus.ErrorLevel, f.hook.LastEntry().Level)

		f.set(0, nil)
		time.Sleep(time.Minute)
		require.Equal(t, []time.Duration{0, 2 * time.Second, 4 * time.Second, 6 * time.Second}, f.starts())
		s = f.Status()
		require.Empty(t, s.Error)
		require.Equal(t, map[string]uint64{"one": 1, "two": 1}, s.ByReason)
		require.Equal(t, "HAProxy reloaded", f.hook.LastEntry().Message)
		require.Equal(t, "one; two", f.hook.LastEntry().Data["reason"])
	})
}

func TestJitterOnlyAdds(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f := startReloader(t, 10*time.Second, 0.5)
		f.set(0, errors.New("again"))
		f.Request("x")
		time.Sleep(time.Hour)
		at := f.starts()
		require.Greater(t, len(at), 3600/15-1)
		different := map[time.Duration]bool{}
		for i := 1; i < len(at); i++ {
			gap := at[i] - at[i-1]
			require.GreaterOrEqual(t, gap, 10*time.Second)
			require.LessOrEqual(t, gap, 15*time.Second)
			different[gap] = true
		}
		require.Greater(t, len(different), 10)
	})
}

func TestAStopWaitsForTheReloadUnderWay(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var finished error = errors.New("not finished")
		log, _ := logtest.NewNullLogger()
		r := NewReloader(ReloaderOptions{Interval: time.Second, Log: log, Reload: func(ctx context.Context) error {
			time.Sleep(time.Minute)
			finished = ctx.Err()
			return nil
		}})
		ctx, cancel := context.WithCancel(context.Background())
		done := make(chan struct{})
		go func() { defer close(done); r.Run(ctx) }()
		r.Request("x")
		synctest.Wait()
		cancel()
		<-done
		require.NoError(t, finished)
		require.EqualValues(t, 1, r.Status().Reloads)
	})
}

func TestNothingToReloadIsNoReload(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f := startReloader(t, time.Second, 0)
		f.set(0, fmt.Errorf("reload HAProxy: %w", ErrNotRunning))
		f.Request("x")
		time.Sleep(time.Minute)
		require.Len(t, f.starts(), 1)
		require.Equal(t, ReloadStatus{ByReason: map[string]uint64{}}, f.Status())
	})
}

func TestReasonsAreBounded(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f := startReloader(t, 0, 0)
		for i := range 1000 {
			f.Request(fmt.Sprintf("reason %d", i))
		}
		time.Sleep(time.Second)
		s := f.Status()
		require.Len(t, s.ByReason, reasonsKept+1)
		require.EqualValues(t, 1000-reasonsKept, s.ByReason[otherReasons])
	})
}
