package cli

import (
	"context"
	"slices"
	"sync"
	"time"

	"github.com/sirupsen/logrus"

	"github.com/myelin-sd/myelin/discovery"
	"github.com/myelin-sd/myelin/registrar"
)

const (
	cleanAgain    = 10 * time.Second       // the pause before what could not be removed is tried again
	cleanPatience = 30 * time.Second       // how long services that have not decided keep what the process before has left
	cleanLook     = 100 * time.Millisecond // between looks at them
)

// cleaner removes what an earlier process registered in a session that this one has taken up, and that its services do
// not have any more. What this process has registered is not its concern: the registrar withdraws that, and only when
// its successor stands. Its methods may be called from several goroutines.
//
// Nothing is removed before the services of this process stand, or are down for good: a service that was given another
// path or node name over a restart is in its old place until it stands in the new one.
type cleaner struct {
	log     logrus.FieldLogger
	ctx     context.Context // ends all work
	settled func() bool     // the services stand, or are withdrawn
	until   time.Time       // no longer is waited for them

	mu     sync.Mutex                            // guards all below
	ours   map[retainer][]discovery.Registration // of all services that this process has had
	closed bool
	cancel context.CancelFunc // nil: nothing is under way
	work   sync.WaitGroup
}

// retainer is a directory that may hold what an earlier process registered.
type retainer interface {
	Retain(ctx context.Context, keep []discovery.Registration) error
}

func newCleaner(ctx context.Context, log logrus.FieldLogger, settled func() bool) *cleaner {
	return &cleaner{ctx: ctx, log: log, settled: settled, until: time.Now().Add(cleanPatience), ours: map[retainer][]discovery.Registration{}}
}

// begin starts to remove what is of no service that it was ever given, and goes on until that is done, or end or close
// is called. It does not block.
func (c *cleaner) begin(services []registrar.Service) {
	c.mu.Lock()
	defer c.mu.Unlock()
	for _, s := range services {
		c.add(s)
	}
	if c.closed {
		return
	}
	var ctx context.Context
	ctx, c.cancel = context.WithCancel(c.ctx)
	for d, registrations := range c.ours {
		c.work.Go(func() { c.clean(ctx, d, registrations) })
	}
}

// add notes a service as one of this process. The caller holds mu, and nothing is under way.
func (c *cleaner) add(s registrar.Service) {
	d, ok := s.Directory.(retainer)
	if !ok {
		return
	}
	for _, r := range s.Registration.All() { // a reload may add a format to a service
		if !slices.ContainsFunc(c.ours[d], r.SamePlace) {
			r.Data = nil // told apart by path and prefix
			c.ours[d] = append(c.ours[d], r)
		}
	}
}

// end stops what begin has started, and waits for it.
func (c *cleaner) end() {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.cancel != nil {
		c.cancel()
		c.cancel = nil
	}
	c.work.Wait()
}

// close is end, and begin does nothing after it.
func (c *cleaner) close() {
	c.mu.Lock()
	c.closed = true
	c.mu.Unlock()
	c.end()
}

// wait waits for the services, or for the end of ctx.
func (c *cleaner) wait(ctx context.Context) {
	look := time.NewTicker(cleanLook)
	defer look.Stop()
	for !c.settled() && time.Now().Before(c.until) {
		select {
		case <-look.C:
		case <-ctx.Done():
			return
		}
	}
}

func (c *cleaner) clean(ctx context.Context, d retainer, keep []discovery.Registration) {
	c.wait(ctx)
	for {
		err := d.Retain(ctx, keep)
		if err == nil || ctx.Err() != nil {
			return
		}
		c.log.WithField("err", err).Warn("services of the process before are still registered; trying again")
		select {
		case <-time.After(cleanAgain):
		case <-ctx.Done():
			return
		}
	}
}
