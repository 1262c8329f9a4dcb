package haproxy

import (
	"context"
	"errors"
	"maps"
	"math/rand/v2"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/sirupsen/logrus"
)

// reasonsKept bounds how many different reasons are counted one by one.
const reasonsKept = 64

// otherReasons counts what came when reasonsKept were known.
const otherReasons = "other"

// ReloaderOptions say how a Reloader works.
type ReloaderOptions struct {
	// Reload does one reload: ReloadCommand's function or Process.Reload. It must come to an end by itself; its context
	// has no end, since a reload that is half done is worse than a late stop. With ErrNotRunning the request is
	// forgotten: what starts later starts with the new configuration.
	Reload func(context.Context) error

	// Again repeats a reload that failed, as long as nobody has asked for another one: of several HAProxys those that did
	// reload need not do so again. nil: Reload.
	Again func(context.Context) error

	// Done is told of each reload, with its reasons and how it went; of one that is repeated only when that is another
	// way. It must not block. nil: nobody is told.
	Done func(reasons []string, err error)

	Interval time.Duration // least time between the end of a reload and the next one
	Jitter   float64       // up to this fraction of Interval is added, at random
	Log      logrus.FieldLogger
}

// Reloader reloads HAProxy on request: one reload at a time, spaced, each with its reasons. Requests that come while
// one is under way or waits for its turn become one. All methods may be called at any time from anywhere; none but
// Run blocks.
type Reloader struct {
	o    ReloaderOptions
	wake chan struct{} // capacity one: there is something in pending

	mu      sync.Mutex
	pending []string // reasons for the next reload, each once
	fresh   bool     // there was a request since the last reload began
	status  ReloadStatus
}

// ReloadStatus is what became of the requests so far.
type ReloadStatus struct {
	Pending  []string          `json:"pending,omitempty"` // reasons of the reload that waits for its turn
	Reasons  []string          `json:"reasons,omitempty"` // of the last reload
	At       time.Time         `json:"at,omitzero"`       // end of the last reload
	Error    string            `json:"error,omitempty"`   // of the last reload; empty: it worked
	Reloads  uint64            `json:"reloads"`           // that worked
	Failures uint64            `json:"failures"`
	ByReason map[string]uint64 `json:"by_reason,omitempty"` // reloads that worked; one with two reasons counts for both
}

// NewReloader returns a Reloader that does nothing until Run is called.
func NewReloader(o ReloaderOptions) *Reloader {
	return &Reloader{o: o, wake: make(chan struct{}, 1), status: ReloadStatus{ByReason: map[string]uint64{}}}
}

// Request asks for a reload. The first one is done at once; reason goes into the log and the counters, so it should
// be one of few.
func (r *Reloader) Request(reason string) {
	r.mu.Lock()
	r.fresh = true
	if !slices.Contains(r.pending, reason) {
		r.pending = append(r.pending, reason)
	}
	r.mu.Unlock()
	select {
	case r.wake <- struct{}{}:
	default:
	}
}

// Withdraw takes a reason back, and returns whether it was waiting for its turn. A reload that is under way goes on.
func (r *Reloader) Withdraw(reason string) bool {
	r.mu.Lock()
	defer r.mu.Unlock()
	n := len(r.pending)
	r.pending = slices.DeleteFunc(r.pending, func(p string) bool { return p == reason })
	return len(r.pending) < n
}

// Run does the reloads until ctx is done; one that is under way then is waited for. A reload that fails is tried
// again after the interval until it works or nobody is there to run it.
func (r *Reloader) Run(ctx context.Context) {
	for {
		select {
		case <-ctx.Done():
			return
		case <-r.wake:
		}
		failed := r.reload(ctx)
		if failed {
			select {
			case r.wake <- struct{}{}:
			default:
			}
		}
		pause := time.NewTimer(r.pause())
		select {
		case <-ctx.Done():
			pause.Stop()
			return
		case <-pause.C:
		}
	}
}

// pause is the time from the end of one reload to the next.
func (r *Reloader) pause() time.Duration {
	jitter := time.Duration(rand.Float64() * r.o.Jitter * float64(r.o.Interval))
	return max(r.o.Interval+jitter, 0)
}

// reload does one reload for all that is pending, and puts the reasons back if it fails.
func (r *Reloader) reload(ctx context.Context) (failed bool) {
	r.mu.Lock()
	reasons, do := r.pending, r.o.Reload
	if !r.fresh && r.o.Again != nil {
		do = r.o.Again
	}
	r.pending, r.fresh = nil, false
	r.mu.Unlock()
	if len(reasons) == 0 {
		return false // the reload that has just ended took them
	}

	began := time.Now()
	err := do(context.WithoutCancel(ctx))
	log := r.o.Log.WithFields(logrus.Fields{"reason": strings.Join(reasons, "; "), "duration": time.Since(began)})
	said := r.record(reasons, err)
	switch {
	case err == nil:
		log.Info("HAProxy reloaded")
		r.done(reasons, nil)
	case errors.Is(err, ErrNotRunning):
		log.Debug("HAProxy is not running, it will start with the new configuration")
		return false
	case err.Error() != said: // a retry that ends alike is a counter
		log.WithField("err", err).Error("HAProxy not reloaded, the old configuration stays in force; tried again after the interval")
		r.done(reasons, err)
	}
	return err != nil
}

func (r *Reloader) done(reasons []string, err error) {
	if r.o.Done != nil {
		r.o.Done(reasons, err)
	}
}

// record notes how a reload went, and returns the error of the one before. Reasons that are not met are pending
// again, in front of those that have come meanwhile.
func (r *Reloader) record(reasons []string, err error) (said string) {
	r.mu.Lock()
	defer r.mu.Unlock()
	said = r.status.Error
	if errors.Is(err, ErrNotRunning) {
		return said
	}
	r.status.Reasons, r.status.At, r.status.Error = reasons, time.Now(), ""
	if err == nil {
		r.status.Reloads++
		for _, reason := range reasons {
			r.count(reason)
		}
		return said
	}
	r.status.Failures++
	r.status.Error = err.Error()
	again := slices.Clone(reasons)
	for _, reason := range r.pending {
		if !slices.Contains(again, reason) {
			again = append(again, reason)
		}
	}
	r.pending = again
	return said
}

// count counts a reload that worked; r.mu is held.
func (r *Reloader) count(reason string) {
	if _, known := r.status.ByReason[reason]; !known && len(r.status.ByReason) >= reasonsKept {
		reason = otherReasons
	}
	r.status.ByReason[reason]++
}

// Status returns a copy that is the caller's.
func (r *Reloader) Status() ReloadStatus {
	r.mu.Lock()
	defer r.mu.Unlock()
	s := r.status
	s.Pending = slices.Clone(r.pending)
	s.Reasons = slices.Clone(s.Reasons)
	s.ByReason = maps.Clone(s.ByReason)
	return s
}
