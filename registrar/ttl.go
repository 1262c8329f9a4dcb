package registrar

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"sync"
	"time"
)

// ErrUndecided is what a HealthCheck returns, wrapped or not, while it cannot tell yet. Such a result counts neither as a
// pass nor as a failure.
var ErrUndecided = errors.New("not known yet")

// Reports is the board on which services report their own health, and from which TTL checks read it. A process has
// one, which outlives its services, so that a report is not lost when the configuration is read again.
//
// Its methods may be called from any goroutine. They do not block.
type Reports struct {
	mu     sync.Mutex
	checks map[reportName]*report
}

type reportName struct{ service, check string }

// report is what was said last.
type report struct {
	since time.Time // when the board began to wait for the first one
	at    time.Time // zero: none yet
	err   error
}

// NewReports returns an empty board. It knows the checks that NewTTL makes with it.
func NewReports() *Reports { return &Reports{checks: map[reportName]*report{}} }

// Report says how a service is: nil means healthy. It counts for as long as the check's TTL, from now on. With an empty
// check it is the service's only TTL check that is meant. An error says which of the names is not known.
func (r *Reports) Report(service, check string, err error) error {
	r.mu.Lock()
	defer r.mu.Unlock()
	if check == "" {
		only, wrong := r.only(service)
		if wrong != nil {
			return wrong
		}
		check = only
	}
	to := r.checks[reportName{service, check}]
	if to == nil {
		return r.unknown(service, check)
	}
	to.at, to.err = time.Now(), err
	return nil
}

// Retain forgets the checks that are not among those of services. It is for after a change of the configuration.
func (r *Reports) Retain(services []Service) {
	keep := map[reportName]bool{}
	for _, s := range services {
		for _, c := range s.Checks {
			if t, ok := c.HealthCheck.(TTL); ok && t.o.Reports == r {
				keep[reportName{t.o.Service, t.o.Check}] = true
			}
		}
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	for name := range r.checks {
		if !keep[name] {
			delete(r.checks, name)
		}
	}
}

func (r *Reports) only(service string) (string, error) {
	switch names := r.names(service); len(names) {
	case 0:
		return "", r.unknown(service, "")
	case 1:
		return names[0], nil
	default:
		return "", fmt.Errorf("report health of service %q: it has several ttl checks: say which of %s", service, strings.Join(names, ", "))
	}
}

// unknown words a name that nobody waits for.
func (r *Reports) unknown(service, check string) error {
	names := r.names(service)
	if len(names) == 0 {
		return fmt.Errorf("report health of service %q: no such service has a ttl check", service)
	}
	return fmt.Errorf("report health of service %q: it has no ttl check %q: say one of %s", service, check, strings.Join(names, ", "))
}

func (r *Reports) names(service string) []string {
	var names []string
	for n := range r.checks {
		if n.service == service {
			names = append(names, n.check)
		}
	}
	slices.Sort(names)
	return names
}

// await has the board wait for reports of a check.
func (r *Reports) await(n reportName) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.checks[n] == nil {
		r.checks[n] = &report{since: time.Now()}
	}
}

// last is the newest report. ok is false for a check that is forgotten.
func (r *Reports) last(n reportName) (last report, ok bool) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if to := r.checks[n]; to != nil {
		return *to, true
	}
	return report{}, false
}

// TTLOptions say whose reports a TTL check reads. All of them are required.
type TTLOptions struct {
	Reports        *Reports // the process's board
	Service, Check string   // as Report names them
	TTL            time.Duration
}

// TTL passes while the service keeps reporting that it is healthy. It fails when the last report says so, and when
// there was none for longer than the TTL. Before the first one it is undecided, for one TTL at most: a registrar that
// was restarted does not know of reports made to the one before it, and must not withdraw a service that is about to
// make its next.
type TTL struct{ o TTLOptions }

// NewTTL has the board wait for the check's reports. A board that waits for them already keeps what it has.
func NewTTL(o TTLOptions) (TTL, error) {
	if o.Reports == nil || o.Service == "" || o.Check == "" || o.TTL <= 0 {
		return TTL{}, errors.New("make ttl check: board, names and ttl are required")
	}
	o.Reports.await(reportName{o.Service, o.Check})
	return TTL{o}, nil
}

// Check reads the board. It does not block.
func (c TTL) Check(context.Context) error {
	last, ok := c.o.Reports.last(reportName{c.o.Service, c.o.Check})
	switch {
	case !ok:
		return fmt.Errorf("%w: the check is being replaced", ErrUndecided)
	case last.at.IsZero() && time.Since(last.since) <= c.o.TTL:
		return fmt.Errorf("%w: no report so far", ErrUndecided)
	case last.at.IsZero():
		return fmt.Errorf("no report within %s", c.o.TTL)
	case time.Since(last.at) > c.o.TTL:
		return fmt.Errorf("no report for %s", c.o.TTL)
	}
	return last.err
}
