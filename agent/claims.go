package agent

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"os"
	"path/filepath"
	"sync"
	"time"

	"github.com/sirupsen/logrus"

	"github.com/myelin-sd/myelin/config"
	"github.com/myelin-sd/myelin/haproxy"
)

const (
	claimPatience = 5 * time.Second // for the process before, which may be ending
	claimRetry    = 100 * time.Millisecond
)

// Claims are a process's rights to drive the HAProxys at its admin sockets, so that two agents never drive one. They
// outlive the configurations of the process. All methods may be called at any time from anywhere; a nil *Claims claims
// nothing.
type Claims struct {
	config string
	log    logrus.FieldLogger

	mu   sync.Mutex
	held map[string]*haproxy.Claim // by haproxy.SocketPath
}

// NewClaims makes claims that tell other agents of the file path of this one's configuration. None is taken yet.
func NewClaims(path string, log logrus.FieldLogger) *Claims {
	if abs, err := filepath.Abs(path); err == nil {
		path = abs
	}
	return &Claims{config: path, log: log.WithField("component", "agent"), held: map[string]*haproxy.Claim{}}
}

// Take claims the sockets of a configuration, beside those that are held. It waits a few seconds for one that another
// process has, since that may be the one that this one follows. After an error, a *haproxy.ClaimedError where another
// agent stays, what is held is as it was.
func (c *Claims) Take(ctx context.Context, cfg *config.Agent) error {
	if c == nil {
		return nil
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	if cfg.HAProxy.Run && cfg.StateDir != "" {
		_ = os.MkdirAll(cfg.StateDir, 0o755) // whoever cannot write to it says so
	}
	ctx, cancel := context.WithTimeout(ctx, claimPatience)
	defer cancel()
	var taken []string
	seen := map[string]string{}
	for _, socket := range claimable(cfg) {
		path := haproxy.SocketPath(socket)
		err := error(nil)
		if first, twice := seen[path]; twice {
			err = fmt.Errorf("haproxy.socket_file_path: %s and %s are one socket; write it once", first, socket)
		} else if seen[path] = socket; c.held[path] == nil {
			var claim *haproxy.Claim
			if claim, err = c.await(ctx, socket); err == nil {
				c.held[path] = claim
				taken = append(taken, path)
			}
		}
		if err != nil {
			for _, path := range taken {
				c.release(path)
			}
			return err
		}
	}
	return nil
}

// await claims one socket until ctx ends.
func (c *Claims) await(ctx context.Context, socket string) (*haproxy.Claim, error) {
	for first := true; ; first = false {
		claim, err := haproxy.ClaimSocket(socket, c.config)
		var other *haproxy.ClaimedError
		if !errors.As(err, &other) {
			return claim, err
		}
		if first {
			c.log.WithField("err", err).Info("another agent is there; it is waited for, in case it ends")
		}
		pause := time.NewTimer(claimRetry/2 + rand.N(claimRetry))
		select {
		case <-ctx.Done():
			pause.Stop()
			return nil, err
		case <-pause.C:
		}
	}
}

// Keep gives back what a configuration has no use for.
func (c *Claims) Keep(cfg *config.Agent) {
	if c == nil {
		return
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	used := map[string]bool{}
	for _, socket := range claimable(cfg) {
		used[haproxy.SocketPath(socket)] = true
	}
	for path := range c.held {
		if !used[path] {
			c.release(path)
		}
	}
}

// Close gives everything back. It may be called more than once.
func (c *Claims) Close() {
	if c == nil {
		return
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	for path := range c.held {
		c.release(path)
	}
}

// release gives one back; c.mu is held.
func (c *Claims) release(path string) {
	c.held[path].Close()
	delete(c.held, path)
}

// claimable are the sockets that an agent with this configuration drives HAProxy through.
func claimable(cfg *config.Agent) []string {
	if !cfg.HAProxy.DoSocket && !cfg.HAProxy.Run {
		return nil
	}
	return cfg.HAProxy.SocketFilePaths
}
