package registrar

import (
	"context"
	"slices"
	"sync"
	"sync/atomic"
	"time"
)

const (
	defaultPlaces = 64
	startPace     = 5 * time.Millisecond // the first checks of a registrar's services are that far apart, on average
	overdue       = time.Second          // a check that is later than this gives its place away
)

// pool bounds how many checks are made at the same time. All services of a registrar share it, and none may have more
// than a quarter of the places, so that one whose checks hang does not keep the others from theirs. Who waits is served
// in turn.
type pool struct {
	quota    int          // places of one service
	services atomic.Int64 // that share it; for the pace at the start

	mu      sync.Mutex
	free    int
	taken   map[*keeper]int
	waiting []*waiter // in the order of their coming
}

// waiter is a check that waits for its place.
type waiter struct {
	of    *keeper
	ready chan struct{} // closed when the place is its own
}

func newPool(places int) *pool {
	if places <= 0 {
		places = defaultPlaces
	}
	return &pool{quota: max(places/4, 1), free: places, taken: map[*keeper]int{}}
}

// enter waits for a place for a check of k, and returns what gives it back, which may be called again. It reports
// false when ctx has ended before.
func (p *pool) enter(ctx context.Context, k *keeper) (leave func(), ok bool) {
	w := &waiter{of: k, ready: make(chan struct{})}
	p.mu.Lock()
	p.waiting = append(p.waiting, w)
	p.serve()
	p.mu.Unlock()
	leave = sync.OnceFunc(func() { p.give(k) })
	select {
	case <-w.ready:
		return leave, true
	case <-ctx.Done():
	}
	p.mu.Lock()
	i := slices.Index(p.waiting, w)
	if i >= 0 {
		p.waiting = slices.Delete(p.waiting, i, i+1)
	}
	p.mu.Unlock()
	if i < 0 { // it came at the same moment
		leave()
	}
	return nil, false
}

// give takes back a place of k.
func (p *pool) give(k *keeper) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.free++
	if p.taken[k]--; p.taken[k] == 0 {
		delete(p.taken, k)
	}
	p.serve()
}

// serve gives the free places to those who have waited longest and whose service may have one more. The caller holds
// mu.
func (p *pool) serve() {
	p.waiting = slices.DeleteFunc(p.waiting, func(w *waiter) bool {
		if p.free == 0 || p.taken[w.of] == p.quota {
			return false
		}
		p.free--
		p.taken[w.of]++
		close(w.ready)
		return true
	})
}

// headStart is how long the first run of a check waits, so that the checks of a host of services do not begin all at
// once. One service alone begins at once, and in a file of twenty the last one begins after 100 ms.
func (p *pool) headStart(interval time.Duration, random float64) time.Duration {
	window := min(interval, startPace*time.Duration(max(p.services.Load()-1, 0)))
	return time.Duration(random * float64(window))
}
