package agent

import (
	"context"
	"errors"
	"time"

	"github.com/myelin-sd/myelin/haproxy"
)

// errReplaced says that another HAProxy process answers now.
var errReplaced = errors.New("HAProxy was restarted or reloaded")

// dial connects to the process that serves now. One that is stopping would take commands to no effect.
func (r *reconciler) dial(ctx context.Context) (*haproxy.Client, error) {
	c, err := haproxy.Dial(ctx, r.socket, haproxy.ClientOptions{})
	if err != nil {
		return nil, err
	}
	if c.Identity().Stopping {
		c.Close()
		return nil, errReplaced
	}
	return c, nil
}

// same asks over a fresh connection whether the process that serves is still the known one. A connection that was
// opened earlier proves nothing: after a reload it stays with the old worker.
func (r *reconciler) same(ctx context.Context) error {
	r.drop()
	c, err := r.dial(ctx)
	if err != nil {
		return err
	}
	r.client, r.dialed = c, time.Now()
	if c.Identity() != r.identity {
		return errReplaced
	}
	return nil
}

// warm is the connection that the last look left open, or a new one. That a young connection may already be to an
// old worker does no harm: after a plan was applied the process is looked at again.
func (r *reconciler) warm(ctx context.Context) (*haproxy.Client, error) {
	if r.client != nil && time.Since(r.dialed) < warmFor {
		return r.client, nil
	}
	r.drop()
	c, err := r.dial(ctx)
	if err == nil {
		r.client, r.dialed = c, time.Now()
	}
	return c, err
}

func (r *reconciler) drop() {
	if r.client != nil {
		r.client.Close()
		r.client = nil
	}
}

// look is same as a periodic check; a new process is met at once by a full round.
func (r *reconciler) look(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, socketTimeout)
	defer cancel()
	err := r.same(ctx)
	if errors.Is(err, errReplaced) {
		return r.round(ctx, true)
	}
	return err
}
