// Package journal keeps what happened on this host: a bounded record on disk that can be read when everything else is
// down.
package journal

import (
	"fmt"
	"strings"
	"time"
)

// Kind is what an event is about.
type Kind string

// The kinds of events.
const (
	KindRegistry Kind = "registry" // instances came, left or changed in the registry; the session was lost or is back
	KindCheck    Kind = "check"    // a health check turned
	KindRegister Kind = "register" // a service was registered, withdrawn, marked, repaired
	KindGuard    Kind = "guard"    // a loss was held, believed or let go
	KindOverride Kind = "override" // an operator's intent came, changed, ended, was applied
	KindForeign  Kind = "foreign"  // somebody changed HAProxy beside us
	KindHAProxy  Kind = "haproxy"  // a command and its reply; a new process
	KindReload   Kind = "reload"   // HAProxy was reloaded, with the reason
	KindProcess  Kind = "process"  // start, end and new configuration of Myelin itself
)

// Event is one thing that happened. Its JSON is part of the interface: history -o json and /api/v1/events show it.
//
// What begins in the middle of a sentence where the event has a subject: people read "10.0.0.5:8080 joined" (Instance),
// "12 joined: ..." (Count), and "service is up" where there is neither.
type Event struct {
	At       time.Time `json:"at"`
	Role     string    `json:"role"` // agent or registrar
	Kind     Kind      `json:"kind"`
	Service  string    `json:"service,omitempty"`
	Instance string    `json:"instance,omitempty"` // host:port, where the event is about one
	What     string    `json:"what"`               // one line for people, without secrets
	Cause    string    `json:"cause,omitempty"`    // why it happened, or what made it happen
	Count    int       `json:"count,omitempty"`    // of what What is about, where that is more than one
}

// Recorder takes events. Record never blocks and never fails; the time is filled in where it is zero.
type Recorder interface {
	Record(Event)
}

// few is how many instances an event names.
const few = 4

// Of is the event about these instances: about one it names that, about several it counts them and names the first few.
// One line stands for all of them, however many they are.
func (e Event) Of(instances ...string) Event {
	switch len(instances) {
	case 0:
	case 1:
		e.Instance = instances[0]
	default:
		e.Count = len(instances)
		e.What += ": " + names(instances[:min(few, len(instances))], e.Count)
	}
	return e
}

// names are the first of total instances.
func names(first []string, total int) string {
	text := strings.Join(first, " ")
	if total > len(first) {
		text += fmt.Sprintf(" and %d more", total-len(first))
	}
	return text
}

// Bounds of what one event may say, in bytes. What HAProxy or the registry say is quoted in them, and they may say a lot.
const (
	maxWhat     = 1000
	maxCause    = 500
	maxService  = 255
	maxInstance = 300
)

// bounded is e in the bounds, as UTF-8, at a time.
func (e Event) bounded(role string, now time.Time) Event {
	if e.At.IsZero() {
		e.At = now
	}
	e.At = e.At.UTC().Round(0)
	if e.Role == "" {
		e.Role = role
	}
	e.What, e.Cause = clip(e.What, maxWhat), clip(e.Cause, maxCause)
	e.Service, e.Instance = clip(e.Service, maxService), clip(e.Instance, maxInstance)
	return e
}

func clip(s string, most int) string {
	if len(s) > most {
		s = s[:most-3] + "..."
	}
	return strings.ToValidUTF8(s, "?")
}

// Nowhere is a Recorder that forgets.
type Nowhere struct{}

// Record does nothing.
func (Nowhere) Record(Event) {}
