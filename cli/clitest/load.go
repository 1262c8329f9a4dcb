package clitest

import (
	"context"
	"fmt"
	"io"
	"net"
	"net/http"
	"strings"
	"sync"
	"time"
)

// Load is a steady stream of requests.
type Load struct {
	url    string
	client *http.Client

	mu       sync.Mutex
	sent     int
	failed   int
	failures []string // the first few, in words
	answers  map[string]int

	cancel context.CancelFunc
	done   chan struct{}
}

// StartLoad sends rate requests a second to url until Stop. Each request begins on time whether or not the one
// before it has ended (an open loop), over a connection of its own: a kept connection would hide a listener that is
// gone. An answer other than 200 is a failure.
func StartLoad(url string, rate int) *Load {
	ctx, cancel := context.WithCancel(context.Background())
	l := &Load{
		url: url, answers: map[string]int{}, cancel: cancel, done: make(chan struct{}),
		client: &http.Client{
			Timeout: 10 * time.Second,
			Transport: &http.Transport{
				DisableKeepAlives: true,
				DialContext:       (&net.Dialer{Timeout: 5 * time.Second}).DialContext,
			},
		},
	}
	go l.run(ctx, rate)
	return l
}

func (l *Load) run(ctx context.Context, rate int) {
	defer close(l.done)
	var running sync.WaitGroup
	defer running.Wait()
	tick := time.NewTicker(time.Second / time.Duration(rate))
	defer tick.Stop()
	for {
		select {
		case <-ctx.Done():
			return
		case <-tick.C:
			running.Go(l.one)
		}
	}
}

func (l *Load) one() {
	body, err := l.get()
	l.mu.Lock()
	defer l.mu.Unlock()
	l.sent++
	if err == nil {
		l.answers[body]++
		return
	}
	l.failed++
	if len(l.failures) < 10 {
		l.failures = append(l.failures, time.Now().Format("15:04:05.000 ")+err.Error())
	}
}

func (l *Load) get() (string, error) {
	resp, err := l.client.Get(l.url)
	if err != nil {
		return "", err
	}
	defer resp.Body.Close()
	body, err := io.ReadAll(io.LimitReader(resp.Body, 1<<16))
	if err != nil {
		return "", err
	}
	if resp.StatusCode != http.StatusOK {
		return "", fmt.Errorf("status %s", resp.Status)
	}
	return strings.TrimSpace(string(body)), nil
}

// Count returns how many requests have ended so far, and how many of them failed.
func (l *Load) Count() (sent, failed int) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.sent, l.failed
}

// Answers returns how often each body has come since the last call.
func (l *Load) Answers() map[string]int {
	l.mu.Lock()
	defer l.mu.Unlock()
	a := l.answers
	l.answers = map[string]int{}
	return a
}

// Failures are the first few failures in words.
func (l *Load) Failures() []string {
	l.mu.Lock()
	defer l.mu.Unlock()
	return append([]string(nil), l.failures...)
}

// Stop ends the stream and waits for the requests that are under way.
func (l *Load) Stop() {
	l.cancel()
	<-l.done
}
