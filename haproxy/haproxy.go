// Package haproxy holds HAProxy's servers as values (State, Plan, Diff), and drives a real HAProxy: its runtime
// socket, its file, its process.
package haproxy

import "net/netip"

// MaxID is the largest server id that is used: only the low 20 bits reach a hash ring (2.x, 3.2.7+).
const MaxID = 1<<20 - 1

// Admin is the administrative state of a server.
type Admin uint8

// The states a server can be told to have.
const (
	Ready Admin = iota
	Drain
	Maint
)

// String is the word HAProxy uses for the state in "set server ... state".
func (a Admin) String() string {
	switch a {
	case Ready:
		return "ready"
	case Drain:
		return "drain"
	case Maint:
		return "maint"
	}
	return "unknown"
}

// Server is one server of a backend, wanted or found.
type Server struct {
	Name   string         // [A-Za-z0-9_.:-]{1,128}
	Addr   netip.AddrPort // a server keeps its address for life
	ID     int            // 1..MaxID; wanted servers: see AssignIDs
	Weight int            // 0..256
	Admin  Admin

	// Options are the words behind the address, without id, weight, cookie and disabled, default-server's included,
	// as "add server" needs them. Nil in a found server: HAProxy does not tell them.
	Options []string

	// Cookie is the value of the cookie keyword; empty: none.
	Cookie string

	// Found servers only.
	Op          Op
	FirstWeight int    // srv_iweight: what it was started with
	CheckResult int    // of the last check that ended: 0 none, 2 failed, 3 passed; 0 while another runs after one that failed
	FQDN        string // srv_fqdn, when it has one
	Check       Probe  // its health check (srv_check_state)
	Agent       Probe  // its agent check (srv_agent_state)
}

// Probe is the state of a health or agent check, in HAProxy's bits (CHK_ST_* of its include/haproxy/check-t.h; the
// ones that matter here have not changed from 2.2 to 3.4).
type Probe uint8

// The bits of a Probe that are looked at.
const (
	ProbeConfigured Probe = 2
	ProbeEnabled    Probe = 4
	probePaused     Probe = 8 // the server was put into maintenance, where it is not checked
)

// checkPassed is the srv_check_result of a check that passed the last time.
const checkPassed = 3

// Idle tells that the server has the check but that it is switched off: "add server" leaves it so until
// "enable health" or "enable agent".
func (p Probe) Idle() bool { return p&(ProbeConfigured|ProbeEnabled) == ProbeConfigured }

// Running tells that the server has the check and that it is switched on.
func (p Probe) Running() bool {
	return p&(ProbeConfigured|ProbeEnabled) == ProbeConfigured|ProbeEnabled
}

// enabled is p switched on, if there is anything to switch on.
func (p Probe) enabled() Probe {
	if p&ProbeConfigured == 0 {
		return p
	}
	return p | ProbeEnabled
}

// Op is HAProxy's own view of a server (srv_op_state).
type Op uint8

// HAProxy's operational states.
const (
	OpStopped Op = iota
	OpStarting
	OpRunning
	OpStopping
)

// String is a word for the state: "down", "starting", "up" or "stopping".
func (o Op) String() string {
	switch o {
	case OpStopped:
		return "down"
	case OpStarting:
		return "starting"
	case OpRunning:
		return "up"
	case OpStopping:
		return "stopping"
	}
	return "unknown"
}

// State is the servers of each backend, in HAProxy's order. A backend without servers has an entry; a backend
// without an entry does not exist.
type State map[string][]Server
