package registrar

import (
	"context"
	"errors"
	"fmt"
	"reflect"
	"strings"
	"time"

	"github.com/myelin-sd/myelin/discovery"
)

// Service is one service to look after: what to publish, where, and when.
type Service struct {
	Name         string // unique among the services of a process
	Registration discovery.Registration
	Render       Renderer  // what is published in other conditions than the usual one; nil: always Registration
	Cluster      string    // the ensemble's name in statsd's tags
	Directory    Directory // comparable, as pointers are; handed over again on Reload when it is to be the same

	// Checks decide together, as Combine says. Without any the service counts as healthy, as in Nerve.
	Checks      []Check
	Combine     Combination
	Damping     *Damping      // nil: none
	Interval    time.Duration // pause between two runs of a check; 0: 500 ms, as in Nerve
	CheckMocked bool          // make no checks and count as healthy

	RateLimit RateLimit // of changes of health
	Leave     Leave
	SlowStart time.Duration // in which the weight rises after the service was away; 0: it has all of it at once

	// FirstResultDecides makes one pass enough at the start, whatever Rise says, as in Nerve.
	FirstResultDecides bool
}

// Leave is how a service goes on purpose: because the process ends, or the service is no longer configured, or, but for
// OnStop, because it is in maintenance. One whose checks fail is withdrawn at once, and without a word.
type Leave struct {
	Notice time.Duration // how long its node stands with Condition.Leaving before it is withdrawn; 0: no time, no mark
	Drain  time.Duration // from the withdrawal on the service must stay up for so long: who uses it learns of it with a delay
	OnStop Hook          // run after that
}

// Condition is what a registration says of its service, besides where it is.
type Condition struct {
	Weight  int  // percent of the configured weight, 1 to 100
	Leaving bool // it goes on purpose, and is withdrawn in a moment
}

// usual is the condition of a service that is well and stays.
var usual = Condition{Weight: 100}

// Renderer says what is published in a condition.
type Renderer interface {
	// Render returns r with the data for c, and nothing else changed: a node keeps its name and kind. It is pure.
	// Implementations are compared with reflect.DeepEqual on Reload.
	Render(r discovery.Registration, c Condition) discovery.Registration
}

// registration is what to publish in a condition.
func (s Service) registration(c Condition) discovery.Registration {
	if s.Render == nil || c == usual {
		return s.Registration
	}
	return s.Render.Render(s.Registration, c)
}

// Check is a health check and how its results are judged.
type Check struct {
	Name        string
	HealthCheck HealthCheck   // compared with reflect.DeepEqual on Reload
	Timeout     time.Duration // for all of it; 0: 10 s
	Rise, Fall  int           // results in a row that change the state; below 1: 1
	Interval    time.Duration // 0: the service's

	Share int  // of the weight, with CombineWeighted; below 1: 1
	Shown bool // it is made and shown, and decides nothing
}

const (
	defaultInterval = 500 * time.Millisecond
	defaultTimeout  = 10 * time.Second
)

func (c Check) timeout() time.Duration {
	if c.Timeout > 0 {
		return c.Timeout
	}
	return defaultTimeout
}

// share is the part that the check has in the judgement.
func (c Check) share() int {
	if c.Shown {
		return 0
	}
	return max(c.Share, 1)
}

// run makes the check once. A check that only hands the context's error through gets the words of our own checks.
func (c Check) run(ctx context.Context) error {
	ctx, cancel := context.WithTimeoutCause(ctx, c.timeout(), noAnswer(c.timeout()))
	defer cancel()
	err := c.HealthCheck.Check(ctx)
	var worded noAnswer
	switch {
	case err == nil:
		return nil
	case ctx.Err() != nil && errors.Is(err, context.DeadlineExceeded) && !errors.As(err, &worded):
		return context.Cause(ctx)
	case len(err.Error()) > maxError:
		return longError{err}
	}
	return err
}

// maxError is how many bytes of an error are said and kept: what a server sends may be quoted in it.
const maxError = 1000

// longError is an error of which only the beginning is said.
type longError struct{ error }

func (e longError) Error() string { return strings.ToValidUTF8(e.error.Error()[:maxError], "") + "..." }
func (e longError) Unwrap() error { return e.error }

// active are the checks to make, each with its interval.
func (s Service) active() []Check {
	if s.CheckMocked {
		return nil
	}
	checks := make([]Check, len(s.Checks))
	for i, c := range s.Checks {
		for _, interval := range []time.Duration{s.Interval, defaultInterval} {
			if c.Interval <= 0 {
				c.Interval = interval
			}
		}
		checks[i] = c
	}
	return checks
}

// sameHealth reports whether two services are judged alike.
func (s Service) sameHealth(o Service) bool {
	return s.FirstResultDecides == o.FirstResultDecides && s.Combine == o.Combine &&
		reflect.DeepEqual(s.Damping, o.Damping) && reflect.DeepEqual(s.active(), o.active())
}

// identity is what a registration's nodes are told by: Directory finds ours by path and prefix. Two services must not
// share it, or each would take the other's node for its own.
type identity struct {
	directory    Directory
	path, prefix string
}

func (s Service) identity() identity {
	return identity{s.Directory, s.Registration.Path, s.Registration.Prefix}
}

// Validate says what no registrar can look after: services without a name, a directory, a node's name or a check's
// implementation, names given twice, and two services that would register as the same node. All of it at once.
func Validate(services []Service) error {
	var errs []error
	complain := func(s Service, format string, args ...any) {
		errs = append(errs, fmt.Errorf("register service %q: "+format, append([]any{s.Name}, args...)...))
	}
	names, nodes := map[string]bool{}, map[identity]string{}
	for _, s := range services {
		switch {
		case s.Name == "":
			complain(s, "it has no name")
		case names[s.Name]:
			complain(s, "the name is given twice")
		}
		names[s.Name] = true
		if s.Directory == nil {
			complain(s, "it has no directory")
			continue
		}
		if s.Registration.Path == "" || s.Registration.Prefix == "" {
			complain(s, "its node has no path or no name")
		}
		for _, r := range s.Registration.All() {
			node := identity{s.Directory, r.Path, r.Prefix}
			if other, taken := nodes[node]; taken && r.Path != "" {
				complain(s, "service %q registers as %s/%s as well; give one of them another path", other, r.Path, r.Prefix)
			}
			nodes[node] = s.Name
		}
		if s.Damping != nil {
			if err := s.Damping.Validate(); err != nil {
				complain(s, "damping: %w", err)
			}
		}
		for _, c := range s.Checks {
			if c.HealthCheck == nil {
				complain(s, "check %q has no implementation", c.Name)
			}
		}
	}
	return errors.Join(errs...)
}
