package admin

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"slices"
	"strings"
	"time"

	"github.com/myelin-sd/myelin/journal"
)

const (
	writePatience = 10 * time.Second // a reader that takes nothing for so long is dropped
	aliveEvery    = 15 * time.Second // a line without meaning, so that nobody between takes the connection for dead
)

// stoppingKey finds in the context of a request what is closed when the pages end.
type stoppingKey struct{}

// Events answers with what happens while it does, as server-sent events: the id is the entry's, the data are a
// journal.Event in JSON. ?service= and ?kind= choose from it. ?since=10m, or a time as in RFC 3339, and the header
// Last-Event-ID ask for what was a moment ago as well, as far as it is kept. An answer ends when the pages do, when the
// reader goes, or when it is too slow. Where as many read as may, and where there is no feed, the answer is 503.
func Events(feed *journal.Feed) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		choice, err := choiceOf(r)
		if err != nil {
			Answer(w, http.StatusBadRequest, map[string]string{"error": err.Error()})
			return
		}
		if feed == nil {
			Answer(w, http.StatusServiceUnavailable, map[string]string{"error": "nothing is recorded here"})
			return
		}
		l, err := feed.Listen(r.Header.Get("Last-Event-ID"), choice.Since)
		if err != nil {
			Answer(w, http.StatusServiceUnavailable, map[string]string{"error": err.Error()})
			return
		}
		defer l.Close()
		ctx, cancel := context.WithCancel(r.Context())
		defer cancel()
		if stopping, ok := ctx.Value(stoppingKey{}).(<-chan struct{}); ok {
			done := make(chan struct{})
			defer close(done)
			go func() {
				select {
				case <-stopping:
					cancel()
				case <-done:
				}
			}()
		}
		w.Header().Set("Content-Type", "text/event-stream")
		w.Header().Set("Cache-Control", "no-store")
		w.WriteHeader(http.StatusOK)
		stream(ctx, w, l, choice)
	})
}

// choiceOf is what a request asks for.
func choiceOf(r *http.Request) (journal.Filter, error) {
	q := r.URL.Query()
	f := journal.Filter{Service: q.Get("service")}
	for _, k := range q["kind"] {
		if !slices.Contains(journal.Kinds(), journal.Kind(k)) {
			return f, fmt.Errorf("there is no kind %q; there are %s", k, kindNames())
		}
		f.Kinds = append(f.Kinds, journal.Kind(k))
	}
	since := q.Get("since")
	if since == "" {
		return f, nil
	}
	if d, err := time.ParseDuration(since); err == nil {
		f.Since = time.Now().Add(-d)
		return f, nil
	}
	at, err := time.Parse(time.RFC3339, since)
	if err != nil {
		return f, fmt.Errorf("since %q: write a duration, or a time such as 2026-01-02T15:04:05Z", since)
	}
	f.Since = at
	return f, nil
}

func kindNames() string {
	var names []string
	for _, k := range journal.Kinds() {
		names = append(names, string(k))
	}
	return strings.Join(names, ", ")
}

// stream writes what a listener is given, until ctx is done or the reader is no more.
func stream(ctx context.Context, w http.ResponseWriter, l *journal.Listener, choice journal.Filter) {
	out := http.NewResponseController(w)
	send := func(text string) bool {
		// Where a deadline cannot be set, there is no connection that could be stuck.
		if err := out.SetWriteDeadline(time.Now().Add(writePatience)); err != nil && !errors.Is(err, http.ErrNotSupported) {
			return false
		}
		if _, err := w.Write([]byte(text)); err != nil {
			return false
		}
		return out.Flush() == nil
	}
	if !send("retry: 2000\n\n") {
		return
	}
	for {
		entries, err := next(ctx, l)
		switch {
		case errors.Is(err, context.DeadlineExceeded):
			if !send(": alive\n\n") {
				return
			}
			continue
		case errors.Is(err, journal.ErrSlow):
			send(": " + err.Error() + "\n\n")
			return
		case err != nil:
			return
		}
		var text strings.Builder
		for _, e := range entries {
			if !choice.Match(e.Event) {
				continue
			}
			data, err := json.Marshal(e.Event)
			if err != nil {
				continue // an event has been written to the history before
			}
			fmt.Fprintf(&text, "id: %s\ndata: %s\n\n", e.ID, data)
		}
		if text.Len() > 0 && !send(text.String()) {
			return
		}
	}
}

// next waits for what a listener is given, for a while.
func next(ctx context.Context, l *journal.Listener) ([]journal.Entry, error) {
	while, cancel := context.WithTimeout(ctx, aliveEvery)
	defer cancel()
	entries, err := l.Next(while)
	if ctx.Err() != nil {
		return entries, ctx.Err()
	}
	return entries, err
}
