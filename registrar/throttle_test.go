package registrar

import (
	"math"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	"pgregory.net/rapid"
)

// TestThrottle: the bucket is full at first, fills up at its rate, and holds no more than its burst.
func TestThrottle(t *testing.T) {
	start := time.Unix(1000, 0)
	limit := RateLimit{Rate: 0.5, Burst: 2}
	var b throttle
	at := func(s float64) time.Time { return start.Add(time.Duration(s * float64(time.Second))) }
	require.Zero(t, b.take(limit, at(0)))
	require.Zero(t, b.take(limit, at(0)))
	require.Equal(t, 2*time.Second, b.take(limit, at(0)))
	require.Equal(t, time.Second, b.take(limit, at(1)))
	require.Zero(t, b.take(limit, at(2)))
	require.Equal(t, 2*time.Second, b.take(limit, at(2)))
	require.Zero(t, b.take(limit, at(100)))
	require.Zero(t, b.take(limit, at(100)))
	require.Equal(t, 2*time.Second, b.take(limit, at(100)))

	for range 100 {
		require.Zero(t, b.take(RateLimit{}, at(100)), "no limit")
		require.Zero(t, b.take(RateLimit{Rate: 0.001, Burst: math.Inf(1)}, at(100)), "no end of the burst")
	}
	var less throttle
	require.Zero(t, less.take(RateLimit{Rate: 0.01, Burst: 0}, at(0)), "a burst below 1 is one of 1")
	require.Equal(t, 100*time.Second, less.take(RateLimit{Rate: 0.01, Burst: 0}, at(0)))
}

// TestThrottleHolds: whatever comes when, no more goes through than the limit has, and who waits as told goes through.
func TestThrottleHolds(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		l := RateLimit{Rate: rapid.Float64Range(0.01, 50).Draw(t, "rate"), Burst: float64(rapid.IntRange(1, 9).Draw(t, "burst"))}
		start := time.Unix(1000, 0)
		now, taken := start, 0
		var b throttle
		for range rapid.IntRange(1, 60).Draw(t, "changes") {
			now = now.Add(time.Duration(rapid.IntRange(0, 2_000_000_000).Draw(t, "pause")))
			wait := b.take(l, now)
			if wait > 0 {
				now = now.Add(wait)
				require.Zero(t, b.take(l, now), "after a wait of %s", wait)
			}
			taken++
			require.LessOrEqual(t, float64(taken), l.Burst+l.Rate*now.Sub(start).Seconds()+1e-6)
		}
	})
}

// TestRateLimiting: a service that comes and goes does so at the limit's pace in the directory, ends up as its checks
// say, and leaves at once when the process ends.
func TestRateLimiting(t *testing.T) {
	limit := func(l RateLimit) func(*Options) {
		return func(o *Options) { o.Services[0].RateLimit = l }
	}
	play(t, limit(RateLimit{Rate: 0.1, Burst: 1}), func(s *stage) {
		s.wait(4 * time.Second)
		require.True(t, s.Status()[0].Registered, "the first registration does not wait")
		s.check.set(errSick)
		s.wait(3 * time.Second)
		require.False(t, s.Status()[0].Registered, "the first change does not wait")
		s.check.set(nil)
		s.wait(4 * time.Second)
		require.Equal(t, Up, s.Status()[0].State)
		require.False(t, s.Status()[0].Registered, "the second one does")
		s.wait(10 * time.Second)
		require.True(t, s.Status()[0].Registered)
		s.check.set(errSick)
		s.wait(3 * time.Second)
		require.True(t, s.Status()[0].Registered)
		s.check.set(nil)
		s.wait(20 * time.Second)
		require.True(t, s.Status()[0].Registered, "what is over is not made good")
		s.check.set(errSick)
		s.wait(3 * time.Second)
		s.check.set(nil)
		s.wait(4 * time.Second)
		require.False(t, s.Status()[0].Registered)
		s.wait(10 * time.Second)
		require.True(t, s.Status()[0].Registered)
		s.stop()
		s.nodes()
	})
	play(t, limit(RateLimit{Rate: 0.1, Burst: 1, Shadow: true}), func(s *stage) {
		s.wait(4 * time.Second)
		for range 3 {
			s.check.set(errSick)
			s.wait(3 * time.Second)
			require.False(t, s.Status()[0].Registered)
			s.check.set(nil)
			s.wait(4 * time.Second)
			require.True(t, s.Status()[0].Registered)
		}
		require.Contains(t, s.messages(), "warning rate_limiting would have this change wait, were it not for its shadow_mode")
	})
}
