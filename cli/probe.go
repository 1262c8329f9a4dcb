package cli

import (
	"context"
	"errors"
	"net"
	"os"
	"sync"
	"syscall"
	"time"

	"golang.org/x/sync/errgroup"

	"github.com/myelin-sd/myelin/discovery"
)

// probesAtOnce bounds the connections that are under way: an instance should not notice, and neither should a firewall.
const probesAtOnce = 64

// prober asks endpoints whether they take a connection.
type prober struct {
	wanted  bool
	timeout time.Duration // of each, name lookup included
}

// probe connects to each endpoint once, closes the connection without a word, and returns why which of them did not take
// it. It blocks until all were asked, or ctx is done: who was not asked then has not failed.
func (p prober) probe(ctx context.Context, endpoints []discovery.Endpoint, asked func(n int)) map[discovery.Endpoint]string {
	var mu sync.Mutex
	silent, done := map[discovery.Endpoint]string{}, 0
	var g errgroup.Group
	g.SetLimit(probesAtOnce)
	for _, e := range endpoints {
		g.Go(func() error {
			why := p.one(ctx, e)
			mu.Lock()
			defer mu.Unlock()
			if why != "" && ctx.Err() == nil {
				silent[e] = why
			}
			done++
			asked(done)
			return nil
		})
	}
	_ = g.Wait() // none of them fails
	return silent
}

func (p prober) one(ctx context.Context, e discovery.Endpoint) string {
	ctx, cancel := context.WithTimeout(ctx, p.timeout)
	defer cancel()
	c, err := (&net.Dialer{}).DialContext(ctx, "tcp", e.String())
	var lookup *net.DNSError
	switch {
	case err == nil:
		c.Close()
		return ""
	case errors.As(err, &lookup):
		return "the name does not resolve: " + lookup.Err
	case errors.Is(err, syscall.ECONNREFUSED):
		return "connection refused"
	case errors.Is(err, context.DeadlineExceeded), errors.Is(err, os.ErrDeadlineExceeded):
		return "no answer within " + p.timeout.String()
	}
	var call *os.SyscallError
	if errors.As(err, &call) {
		return call.Err.Error()
	}
	return err.Error()
}
