package zookeeper

import (
	"context"
	"sync"
	"time"
)

// The budget of one session's reads. A server answers heartbeats and reads of all its clients with the same threads,
// so that a client that asks for everything at once takes time from sessions that only want to stay alive.
const (
	// Requests under way. More MultiReads than four, or single reads than 64, brought nothing in measurements.
	mostBatches = 4
	mostSingles = 64

	// smallBatch is how many nodes may be read in one MultiRead that goes with the single reads: hundreds of services
	// with a node or two would else wait for each other's round trips.
	smallBatch = 16

	// readsPerSecond is how many nodes are read, after readsAtOnce that cost no waiting. A node in a MultiRead took a
	// server 2 µs in measurements, one alone 48 µs: it counts for singleCost, though not for all of that, since the
	// few servers that need it serve few clients.
	readsPerSecond = 20_000
	readsAtOnce    = 50_000
	singleCost     = 4
)

// budget says when the next read may be sent.
type budget struct {
	batches, singles chan struct{} // a free place is an element

	mu    sync.Mutex
	level float64 // reads that may be made without waiting; negative: promised already
	at    time.Time
}

func newBudget() *budget {
	b := &budget{batches: make(chan struct{}, mostBatches), singles: make(chan struct{}, mostSingles), level: readsAtOnce}
	for range mostBatches {
		b.batches <- struct{}{}
	}
	for range mostSingles {
		b.singles <- struct{}{}
	}
	return b
}

// places are those of large requests, or of small ones.
func (b *budget) places(large bool) chan struct{} {
	if large {
		return b.batches
	}
	return b.singles
}

// spend takes cost reads at a moment and returns how long to wait before they are sent.
func (b *budget) spend(cost int, now time.Time) time.Duration {
	b.mu.Lock()
	defer b.mu.Unlock()
	if !b.at.IsZero() {
		b.level = min(b.level+now.Sub(b.at).Seconds()*readsPerSecond, readsAtOnce)
	}
	b.at = now
	b.level -= float64(cost)
	if b.level >= 0 {
		return 0
	}
	return time.Duration(-b.level / readsPerSecond * float64(time.Second))
}

// wait spends, and waits until it may be sent or ctx is done.
func (b *budget) wait(ctx context.Context, cost int) error {
	d := b.spend(cost, time.Now())
	if d == 0 {
		return ctx.Err()
	}
	timer := time.NewTimer(d)
	defer timer.Stop()
	select {
	case <-timer.C:
		return nil
	case <-ctx.Done():
		return ctx.Err()
	}
}
