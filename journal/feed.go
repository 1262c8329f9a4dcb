package journal

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strconv"
	"strings"
	"sync"
	"time"
)

// Bounds of a Feed.
const (
	readersMost = 32
	recentMost  = 5000 // events that are kept for those who come late, or are behind; more than are published at once
)

// Feed hands events to those who listen, while they happen, and keeps the last ones for those who come a little late.
// Nobody can hold it up: who does not take what there is in time, loses it and is told so. Its methods may be called from
// several goroutines.
type Feed struct {
	run string // tells the ids of this process from those of others

	mu      sync.Mutex
	last    uint64 // number of the last event
	recent  []Event
	readers map[*Listener]bool
}

// Entry is an event with its place in a feed.
type Entry struct {
	ID    string // unique in the feed, and over restarts
	Event Event
}

// NewFeed returns a feed that has had nothing.
func NewFeed() *Feed {
	return &Feed{run: strconv.FormatInt(time.Now().UnixNano(), 36), readers: map[*Listener]bool{}}
}

// What listeners are told.
var (
	ErrBusy = fmt.Errorf("%d readers listen already; try again when one has ended", readersMost)
	ErrSlow = errors.New("this reader was too slow, and has missed events; begin again")
)

// Listener is one who listens. It belongs to one goroutine.
type Listener struct {
	feed *Feed
	wake chan struct{} // capacity one
	seen uint64        // number of the last event that it was given
}

// Listen begins to listen: to what happened behind an entry and since a time, as far as it is kept, and to all that
// follows. An empty after and a zero since ask for what follows only; an after of another process, or of one that is not
// kept any more, for all that is kept. Whoever listens closes it. The error is ErrBusy.
func (f *Feed) Listen(after string, since time.Time) (*Listener, error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	if len(f.readers) >= readersMost {
		return nil, ErrBusy
	}
	l := &Listener{feed: f, wake: make(chan struct{}, 1), seen: f.last}
	if after != "" || !since.IsZero() {
		l.seen = max(f.number(after), f.before())
		for l.seen < f.last && f.recent[l.seen-f.before()].At.Before(since) {
			l.seen++
		}
	}
	f.readers[l] = true
	return l, nil
}

// before is the number of the last event that is not kept; mu is held.
func (f *Feed) before() uint64 { return f.last - uint64(len(f.recent)) }

// number is that of an id of ours, else 0; mu is held.
func (f *Feed) number(id string) uint64 {
	text, ok := strings.CutPrefix(id, f.run+"-")
	n, err := strconv.ParseUint(text, 10, 64)
	if !ok || err != nil || n > f.last {
		return 0
	}
	return n
}

// Next returns what has happened since the last call, and blocks until there is something or ctx is done, whose error it
// returns then. ErrSlow tells that some of it is lost.
func (l *Listener) Next(ctx context.Context) ([]Entry, error) {
	for {
		entries, err := l.feed.since(l)
		if len(entries) > 0 || err != nil {
			return entries, err
		}
		select {
		case <-l.wake:
		case <-ctx.Done():
			return nil, ctx.Err()
		}
	}
}

// since returns what a listener has not seen.
func (f *Feed) since(l *Listener) ([]Entry, error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	if l.seen < f.before() {
		return nil, ErrSlow
	}
	var out []Entry
	for ; l.seen < f.last; l.seen++ {
		out = append(out, Entry{f.run + "-" + strconv.FormatUint(l.seen+1, 10), f.recent[l.seen-f.before()]})
	}
	return out, nil
}

// Close ends the listening. It may be called again.
func (l *Listener) Close() {
	l.feed.mu.Lock()
	defer l.feed.mu.Unlock()
	delete(l.feed.readers, l)
}

// publish hands events out. It never blocks.
func (f *Feed) publish(events []Event) {
	if len(events) == 0 {
		return
	}
	f.mu.Lock()
	defer f.mu.Unlock()
	f.last += uint64(len(events))
	f.recent = append(f.recent, events...)
	if over := len(f.recent) - recentMost; over > 0 {
		f.recent = slices.Delete(f.recent, 0, over)
	}
	for l := range f.readers {
		select {
		case l.wake <- struct{}{}:
		default:
		}
	}
}
