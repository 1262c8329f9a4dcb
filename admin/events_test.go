package admin_test

import (
	"bufio"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"net"
	"net/http"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	"go.uber.org/goleak"

	"github.com/myelin-sd/myelin/admin"
	"github.com/myelin-sd/myelin/journal"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// served serves a feed until the test ends, or stop.
func served(t *testing.T, feed *journal.Feed) (url string, stop func()) {
	t.Helper()
	l, err := admin.Listen("127.0.0.1:0")
	require.NoError(t, err)
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() { done <- admin.Serve(ctx, l, admin.Events(feed)) }()
	ended := false
	stop = func() {
		if !ended {
			ended = true
			cancel()
			require.NoError(t, <-done)
		}
	}
	t.Cleanup(stop)
	return "http://" + l.Addr().String() + "/", stop
}

// reading reads a stream: its ids and events, as text.
func reading(t *testing.T, url, after string) (next func() (id, what string), resp *http.Response) {
	t.Helper()
	req, err := http.NewRequest(http.MethodGet, url, nil)
	require.NoError(t, err)
	if after != "" {
		req.Header.Set("Last-Event-ID", after)
	}
	transport := &http.Transport{DisableKeepAlives: true}
	resp, err = (&http.Client{Transport: transport}).Do(req)
	require.NoError(t, err)
	t.Cleanup(func() { resp.Body.Close() })
	lines := bufio.NewScanner(resp.Body)
	return func() (id, what string) {
		for lines.Scan() {
			if text, ok := strings.CutPrefix(lines.Text(), "id: "); ok {
				id = text
			}
			if text, ok := strings.CutPrefix(lines.Text(), "data: "); ok {
				var e journal.Event
				require.NoError(t, json.Unmarshal([]byte(text), &e))
				return id, e.Sentence()
			}
		}
		return "", ""
	}, resp
}

// TestEvents: a real client is told what happens, may ask for what was a moment ago, and goes on where it was.
func TestEvents(t *testing.T) {
	feed := journal.NewFeed()
	j := journal.Open(journal.Options{Role: "agent", Feed: feed})
	defer j.Close()
	url, stop := served(t, feed)
	defer stop()
	say := func(kind journal.Kind, service, what string) {
		j.Record(journal.Event{Kind: kind, Service: service, What: what})
	}

	now, resp := reading(t, url, "")
	require.Equal(t, "text/event-stream", resp.Header.Get("Content-Type"))
	say(journal.KindGuard, "a", "one")
	say(journal.KindProcess, "", "two\nlines")
	id, what := now()
	require.Equal(t, "one", what)
	_, what = now()
	require.Equal(t, "two\nlines", what)

	again, _ := reading(t, url, id)
	_, what = again()
	require.Equal(t, "two\nlines", what)
	since, _ := reading(t, url+"?since=1h&service=a&kind=guard", "")
	_, what = since()
	require.Equal(t, "one", what)
	say(journal.KindGuard, "b", "three")
	say(journal.KindGuard, "a", "four")
	_, what = since()
	require.Equal(t, "four", what)

	for query, complaint := range map[string]string{"?kind=nothing": "there is no kind", "?since=yesterday": "write a duration"} {
		resp, err := http.Get(url + query)
		require.NoError(t, err)
		text, err := io.ReadAll(resp.Body)
		require.NoError(t, err)
		resp.Body.Close()
		require.Equal(t, http.StatusBadRequest, resp.StatusCode)
		require.Contains(t, string(text), complaint)
	}
	http.DefaultClient.CloseIdleConnections()

	stop() // the streams end with the pages
	for what != "" {
		_, what = now()
	}
	_, what = since()
	require.Empty(t, what)
}

// TestTooManyReaders: there is a bound, and who goes makes room.
func TestTooManyReaders(t *testing.T) {
	feed := journal.NewFeed()
	url, _ := served(t, feed)
	var all []*http.Response
	for {
		_, resp := reading(t, url, "")
		if resp.StatusCode != http.StatusOK {
			require.Equal(t, http.StatusServiceUnavailable, resp.StatusCode)
			break
		}
		all = append(all, resp)
		require.Less(t, len(all), 100)
	}
	all[0].Body.Close()
	require.Eventually(t, func() bool {
		_, resp := reading(t, url, "")
		return resp.StatusCode == http.StatusOK
	}, 10*time.Second, 10*time.Millisecond)

	nothing, _ := served(t, nil)
	_, resp := reading(t, nothing, "")
	require.Equal(t, http.StatusServiceUnavailable, resp.StatusCode)
}

// TestStuckReader: a reader that takes nothing holds up neither those who record nor the others, nor the end.
func TestStuckReader(t *testing.T) {
	feed := journal.NewFeed()
	j := journal.Open(journal.Options{Role: "agent", Feed: feed})
	defer j.Close()
	url, stop := served(t, feed)
	stuck, err := net.Dial("tcp", strings.TrimSuffix(strings.TrimPrefix(url, "http://"), "/"))
	require.NoError(t, err)
	defer stuck.Close()
	require.NoError(t, stuck.(*net.TCPConn).SetReadBuffer(4096))
	_, err = fmt.Fprint(stuck, "GET / HTTP/1.1\r\nHost: x\r\n\r\n")
	require.NoError(t, err)
	_, err = bufio.NewReader(io.LimitReader(stuck, 20)).ReadString('\n')
	require.NoError(t, err)
	now, _ := reading(t, url, "")
	long := strings.Repeat("x", 900)
	for n := range 10_000 { // more than the connection takes
		j.Record(journal.Event{Kind: journal.KindProcess, What: fmt.Sprintf("%d %s", n, long)})
		if n%1000 == 999 {
			for {
				if _, what := now(); strings.HasPrefix(what, fmt.Sprintf("%d ", n)) {
					break
				}
			}
		}
	}
	stop()
}
