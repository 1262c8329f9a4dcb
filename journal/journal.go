// Package journal keeps what happened on this host: a bounded record on disk that can be read when everything else is
// down.
package journal

import "time"

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

// Nowhere is a Recorder that forgets.
type Nowhere struct{}

// Record does nothing.
func (Nowhere) Record(Event) {}
