package main_test

import (
	"context"
	"fmt"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/myelin-sd/myelin/haproxy"
)

// TestKillWithThousand kills HAProxy beside 1,000 instances under traffic. All are back, and from the moment it listens
// no request fails: the file that it starts from is in step with what the socket was told.
func TestKillWithThousand(t *testing.T) {
	w := newWorld(t, noChecks)
	const instances = 1000
	port := backendServer(t, "many")
	w.startAgent()
	w.publishMany(0, instances, port)
	w.awaitReady(instances)
	w.fileHoldsCount(instances)

	load := startTraffic(w.url(), churnRate)
	var outages []outage
	for n := range 3 {
		before, err := w.pid()
		require.NoError(t, err)
		o := outage{from: time.Now()}
		require.NoError(t, syscall.Kill(w.master(), syscall.SIGKILL))
		w.publishMany(instances+n, instances+n+1, port) // while nobody listens
		w.otherWorker(before)
		w.listens()
		o.to = time.Now()
		outages = append(outages, o)
		servers, err := w.servers()
		require.NoError(t, err)
		require.GreaterOrEqual(t, len(servers), instances+n, "the file had all that were there")
		w.awaitReady(instances + n + 1)
		w.fileHoldsCount(instances + n + 1)
		load.awaitMore(w, churnRate)
	}
	requireServed(t, load, outages)
	require.Zero(t, w.status().File.Reload.Reloads, "the agent reloaded HAProxy")
}

// noChecks is an agent's file without health checks: servers that are all one process have one health.
func noChecks(text string) string {
	return strings.Replace(text, `server_options = "check inter 1s rise 1 fall 3", `, "", 1)
}

// publishMany registers the instances with the numbers from first to one before end, each with an address of its own.
func (w *world) publishMany(first, end, port int) {
	w.t.Helper()
	errs := make(chan error, end-first)
	var all sync.WaitGroup
	slots := make(chan struct{}, 64)
	for i := first; i < end; i++ {
		slots <- struct{}{}
		all.Go(func() {
			defer func() { <-slots }()
			_, err := w.session.Publish(context.Background(), registration(fmt.Sprintf("many%05d", i), i, port), "")
			errs <- err
		})
	}
	all.Wait()
	close(errs)
	for err := range errs {
		require.NoError(w.t, err)
	}
}

// awaitReady waits until n servers are in rotation.
func (w *world) awaitReady(n int) {
	w.t.Helper()
	w.eventually(fmt.Sprintf("%d servers in rotation", n), func() error {
		servers, err := w.servers()
		ready := 0
		for _, s := range servers {
			if s.Admin == haproxy.Ready && s.Op != haproxy.OpStopped {
				ready++
			}
		}
		if err == nil && ready != n {
			err = fmt.Errorf("%d of %d", ready, n)
		}
		return err
	})
}
