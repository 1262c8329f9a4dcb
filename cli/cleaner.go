package cli

import (
	"context"
	"sync"
	"time"

	"github.com/sirupsen/logrus"

	"github.com/myelin-sd/myelin/discovery"
	"github.com/myelin-sd/myelin/registrar"
)

// cleanAgain is the pause before what could not be removed is tried again.
const cleanAgain = 10 * time.Second

// cleaner removes what an earlier process registered in a session that this one has taken up, and that its services do
// not have any more. Its methods may be called from several goroutines.
type cleaner struct {
	log logrus.FieldLogger
	ctx context.Context // ends all work

	mu     sync.Mutex // guards all below
	closed bool
	cancel context.CancelFunc // nil: nothing is under way
	work   sync.WaitGroup
}

// retainer is a directory that may hold what an earlier process registered.
type retainer interface {
	Retain(ctx context.Context, keep []discovery.Registration) error
}

func newCleaner(ctx context.Context, log logrus.FieldLogger) *cleaner {
	return &cleaner{ctx: ctx, log: log}
}

// begin starts to remove what is not of services, and goes on until that is done, or end or close is called. It does
// not block.
func (c *cleaner) begin(services []registrar.Service) {
	keep := map[retainer][]discovery.Registration{}
	for _, s := range services {
		if d, ok := s.Directory.(retainer); ok {
			keep[d] = append(keep[d], s.Registration)
		}
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.closed {
		return
	}
	var ctx context.Context
	ctx, c.cancel = context.WithCancel(c.ctx)
	for d, registrations := range keep {
		c.work.Go(func() { c.clean(ctx, d, registrations) })
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

func (c *cleaner) clean(ctx context.Context, d retainer, keep []discovery.Registration) {
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
