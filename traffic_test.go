package main_test

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"slices"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
)

// outage is the time from a kill of HAProxy until it listens again.
type outage struct{ from, to time.Time }

// listens waits until HAProxy's port accepts a connection.
func (w *world) listens() {
	w.t.Helper()
	w.eventually("HAProxy listens", func() error {
		conn, err := net.Dial("tcp", fmt.Sprintf("127.0.0.1:%d", w.port))
		if err == nil {
			conn.Close()
		}
		return err
	})
}

// requireServed ends the traffic. No request may have failed but for those that began while HAProxy was dead, and
// those that were under way when it was killed and were cut by that.
func requireServed(t *testing.T, tr *traffic, outages []outage) {
	t.Helper()
	sent, failures := tr.stop()
	require.NotZero(t, sent)
	var dead time.Duration
	for _, o := range outages {
		dead += o.to.Sub(o.from)
	}
	var bad []string
	for _, f := range failures {
		if !slices.ContainsFunc(outages, f.excusedBy) {
			bad = append(bad, f.String())
		}
	}
	t.Logf("%d requests, %d of them not counted: HAProxy was dead for %s", sent, len(failures)-len(bad), dead.Round(time.Millisecond))
	require.Less(t, len(failures), sent/2, "most requests were made of a living HAProxy")
	require.Empty(t, bad[:min(len(bad), 20)], "%d of %d requests failed", len(bad), sent)
}

// failure is a request that was not answered as it should.
type failure struct {
	began, ended time.Time
	err          error
}

func (f failure) String() string {
	return fmt.Sprintf("%s, after %s: %v", f.began.Format("15:04:05.000"), f.ended.Sub(f.began).Round(time.Millisecond), f.err)
}

func (f failure) excusedBy(o outage) bool {
	if f.began.Before(o.from) {
		return f.ended.After(o.from) && cutOff(f.err)
	}
	return f.began.Before(o.to)
}

// cutOff tells whether a kill of the other side explains an error. An end of the connection before the request was
// written has no error of its own in net/http, only a text.
func cutOff(err error) bool {
	return strings.Contains(err.Error(), "http: server closed idle connection") || errors.Is(err, syscall.ECONNRESET) || errors.Is(err, syscall.ECONNREFUSED) || errors.Is(err, syscall.EPIPE) ||
		errors.Is(err, io.EOF) || errors.Is(err, io.ErrUnexpectedEOF)
}

// traffic is an open loop of requests, each on a connection of its own, that remembers when each failed one began and
// ended.
type traffic struct {
	url    string
	client *http.Client
	cancel context.CancelFunc
	done   chan struct{}

	mu       sync.Mutex
	sent     int
	failures []failure
}

func startTraffic(url string, rate int) *traffic {
	ctx, cancel := context.WithCancel(context.Background())
	tr := &traffic{url: url, cancel: cancel, done: make(chan struct{}), client: &http.Client{
		Timeout: 20 * time.Second, Transport: &http.Transport{DisableKeepAlives: true},
	}}
	go func() {
		defer close(tr.done)
		var running sync.WaitGroup
		defer running.Wait()
		tick := time.NewTicker(time.Second / time.Duration(rate))
		defer tick.Stop()
		for {
			select {
			case <-ctx.Done():
				return
			case <-tick.C:
				running.Go(tr.one)
			}
		}
	}()
	return tr
}

func (tr *traffic) one() {
	f := failure{began: time.Now()}
	f.err = tr.get()
	f.ended = time.Now()
	tr.mu.Lock()
	defer tr.mu.Unlock()
	tr.sent++
	if f.err != nil {
		tr.failures = append(tr.failures, f)
	}
}

func (tr *traffic) get() error {
	resp, err := tr.client.Get(tr.url)
	if err != nil {
		return err
	}
	defer resp.Body.Close()
	body, err := io.ReadAll(resp.Body)
	switch {
	case err != nil:
		return err
	case resp.StatusCode != http.StatusOK:
		return fmt.Errorf("status %s", resp.Status)
	case len(body) == 0:
		return errors.New("an empty answer")
	}
	return nil
}

// stop waits for the requests that are under way.
func (tr *traffic) stop() (sent int, failures []failure) {
	tr.cancel()
	<-tr.done
	return tr.sent, tr.failures
}

// count is the number of requests that have ended.
func (tr *traffic) count() int {
	tr.mu.Lock()
	defer tr.mu.Unlock()
	return tr.sent
}

// awaitMore waits until n more requests have ended.
func (tr *traffic) awaitMore(w *world, n int) {
	w.t.Helper()
	from := tr.count()
	w.eventually("more requests end", func() error {
		if more := tr.count() - from; more < n {
			return fmt.Errorf("%d of %d", more, n)
		}
		return nil
	})
}
