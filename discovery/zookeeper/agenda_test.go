package zookeeper

import (
	"context"
	"fmt"
	"testing"
	"time"

	"github.com/go-zookeeper/zk"
	"github.com/stretchr/testify/require"
)

func TestWindow(t *testing.T) {
	for changes, want := range map[float64]time.Duration{
		0: 0, 1: 0, quietRate: 0, (quietRate + stormRate) / 2: windowMost / 2, stormRate: windowMost, 1e9: windowMost,
	} {
		require.Equal(t, want, window(changes), "%v changes per second", changes)
	}
}

func TestRate(t *testing.T) {
	var r rate
	now := time.Unix(1000, 0)
	require.Zero(t, r.now(now))
	for range 1000 { // 200 in each second, for five seconds
		r.add(1, now)
		now = now.Add(5 * time.Millisecond)
	}
	require.InDelta(t, 200, r.now(now), 10)
	require.Less(t, r.now(now.Add(5*time.Second)), 2.0, "it is forgotten")
}

func TestAgenda(t *testing.T) {
	now := time.Unix(1000, 0)
	a := agenda{audit: now.Add(time.Hour)}
	require.Equal(t, a.audit, a.next(false))
	require.True(t, a.next(true).Before(now), "work that waits for nothing")
	a.round = now.Add(time.Second)
	require.Equal(t, a.round, a.next(true))
	for range 100 {
		a.resync(0, now)
		require.Equal(t, now, a.look, "nobody waits for a small service")
		a.resync(10_000, now)
		require.WithinRange(t, a.look, now, now.Add(time.Second))
		require.WithinRange(t, a.all, now, now.Add(10*time.Second))
		a.resync(1e9, now)
		require.WithinRange(t, a.look, now, now.Add(lookMost))
		require.WithinRange(t, a.all, now, now.Add(readMost))
	}
	a.look, a.all = now.Add(2*time.Second), now.Add(3*time.Second)
	require.Equal(t, a.look, a.next(false))
	require.False(t, reached(&a.look, now))
	require.True(t, reached(&a.look, now.Add(2*time.Second)))
	require.True(t, a.look.IsZero())
	require.False(t, reached(&a.look, now.Add(2*time.Second)), "once")
	require.Equal(t, a.all, a.next(false))
}

func TestBudget(t *testing.T) {
	b := newBudget()
	now := time.Unix(1000, 0)
	require.Zero(t, b.spend(readsAtOnce, now), "a first reading is not held up")
	require.Equal(t, time.Second, b.spend(readsPerSecond, now))
	require.Equal(t, time.Second, b.spend(readsPerSecond, now.Add(time.Second)))
	require.Zero(t, b.spend(readsAtOnce, now.Add(time.Hour)), "it fills up again")
	require.Equal(t, time.Second, b.spend(readsPerSecond, now.Add(time.Hour)), "but not beyond")
}

// TestPlaces: what reads a few nodes does not wait for what reads thousands, whoever reads them.
func TestPlaces(t *testing.T) {
	s, e := answering(t, Options{}, func(_ int32, body []byte) (int32, []byte) {
		var out []byte
		for range readsOf(t, body) {
			out = appendRead(out, nil, zk.Stat{})
		}
		return 0, appendEnd(out)
	})
	for range mostBatches {
		<-s.budget.batches
	}
	read := func(ctx context.Context, n int) error {
		names := make([]string, n)
		for i := range names {
			names[i] = fmt.Sprintf("i-%d", i)
		}
		return s.readNodes(ctx, e, "/web", names, false, func(_ string, _ reading, err error) { require.NoError(t, err) })
	}
	require.NoError(t, read(context.Background(), 1))
	require.NoError(t, read(context.Background(), smallBatch))
	require.Len(t, s.budget.singles, mostSingles, "they are given back")
	ended, cancel := context.WithCancel(context.Background())
	cancel()
	require.ErrorIs(t, read(ended, smallBatch+1), context.Canceled)

	s.budget.batches <- struct{}{}
	require.NoError(t, read(context.Background(), 2*batchNodes))
	require.Len(t, s.budget.batches, 1)
	require.NoError(t, e.tap.Close())
	require.ErrorIs(t, read(context.Background(), 2*batchNodes), errLost)
	require.Len(t, s.budget.batches, 1, "also when the connection is lost")
}
