package registrar

import (
	"context"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
)

// TestAnswersWhileLeaving: who asks while services leave is answered, and a watchdog sees progress.
func TestAnswersWhileLeaving(t *testing.T) {
	beat := filepath.Join(t.TempDir(), "beat")
	politely(t, func(o *Options) {
		o.HeartbeatPath = beat
		o.Services[0].Leave.Drain = time.Minute
	}, func(s *stage) {
		s.cancel()
		s.wait(time.Second)
		require.NoError(t, os.Remove(beat))
		asked := time.Now()
		require.NoError(t, s.Live(context.Background()))
		require.EqualError(t, s.Reload([]Service{s.politeService()}), "reload services: the registrar stops")
		require.NoError(t, s.Maintain("user-api", Maintenance{Reason: "new disk"}))
		require.Equal(t, asked, time.Now(), "nobody had to wait")
		s.wait(heartbeatEvery)
		require.FileExists(t, beat)
		require.NotNil(t, s.Status()[0].Maintenance)
		s.wait(time.Minute)
		require.NoError(t, <-s.stopped)
		require.Error(t, s.Maintain("user-api", Maintenance{}))
		require.Error(t, s.Live(context.Background()))
	})
}

// TestStopWhileReloading: services that have begun to leave are not brought back by a re-read that came a moment before.
func TestStopWhileReloading(t *testing.T) {
	politely(t, nil, func(s *stage) {
		s.do(context.Background(), func(ctx context.Context) { // as Run's loop does it
			s.cancel()
			time.Sleep(time.Millisecond) // the service begins to leave
			require.NoError(t, s.reload(ctx, []Service{s.politeService()}))
		})
		s.wait(6 * time.Second)
		s.nodes()
		select {
		case err := <-s.stopped:
			require.NoError(t, err)
		default:
			t.Fatal("it does not end")
		}
	})
}

// TestMovedAndMovedBack: a node leaves when the one that it leaves to stands, also when that one was about to leave for it.
func TestMovedAndMovedBack(t *testing.T) {
	for name, after := range map[string]time.Duration{"marked": 100 * time.Millisecond, "drains": 2 * time.Second} {
		t.Run(name, func(t *testing.T) {
			politely(t, nil, func(s *stage) {
				moved := s.politeService()
				moved.Registration.Path = "/services/users"
				s.dir.watchLeast()
				require.NoError(t, s.Reload([]Service{moved}))
				for s.wait(time.Millisecond); len(s.dir.list()) < 2; {
					s.wait(time.Millisecond)
				}
				s.wait(after)
				s.check.set(ErrUndecided)
				require.NoError(t, s.Reload([]Service{s.politeService()}))
				s.wait(5 * time.Second)
				require.Contains(t, s.dir.list(), "/services/users/web-1_0002 v1", "there is no other yet")
				s.check.set(nil)
				s.wait(20 * time.Second)
				require.Len(t, s.Status(), 1)
				require.Equal(t, "/services/user-api", s.Status()[0].Path)
				require.True(t, s.Status()[0].Registered)
				require.Equal(t, 1, s.dir.fewest())
			})
		})
	}
}

// TestOnStopAfterTheMoved: a service that ends while it moves has gone when its old node has, too.
func TestOnStopAfterTheMoved(t *testing.T) {
	h := newHooked(t, "true")
	h.await("registered", func() bool { return len(h.dir.list()) == 1 })
	moved := h.service
	moved.Registration.Path = "/services/users"
	moved.CheckMocked = false
	moved.Checks = []Check{{Name: "slow", HealthCheck: undecided{}}}
	require.NoError(t, h.Reload([]Service{moved}))
	h.dir.goAway() // the old node cannot be withdrawn
	h.cancel()
	require.NoError(t, <-h.stopped)
	var order []string
	for _, e := range h.log.AllEntries() {
		if e.Message == "on_stop command ended" || strings.HasPrefix(e.Message, "service was not withdrawn") {
			order = append(order, e.Message)
		}
	}
	require.Equal(t, []string{"service was not withdrawn in time; its node goes with the session", "on_stop command ended"}, order)
}

type undecided struct{}

func (undecided) Check(context.Context) error { return ErrUndecided }
