package haproxy

import (
	"fmt"
	"slices"
)

// Rung is a way to change the servers of a backend; the higher, the less it costs.
type Rung uint8

// The rungs of the ladder, the lowest first. The zero value is none: it is not known yet.
const (
	RungReload   Rung = iota + 1 // the file is written and HAProxy reloaded
	RungSlots                    // servers take and leave slots that the file has in reserve; see DiffSlots
	RungServers                  // "add server" and "del server"
	RungBackends                 // the backend itself is made at run time, too
)

// String is the rung's name in status, metric and plan.
func (r Rung) String() string {
	switch r {
	case RungReload:
		return "reload"
	case RungSlots:
		return "slots"
	case RungServers:
		return "servers"
	case RungBackends:
		return "backends"
	}
	return "unknown"
}

// SlotsUnfit tells why the servers of a backend cannot be in slots, in words for the operator; "" when nothing speaks
// against it. options are those that the configuration gives to every server of it; same is false when they differ from
// server to server. The other arguments are those of RuntimeUnfit.
//
// A cookie's value belongs to a server, for as long as a browser keeps it. That of a slot would mean another server
// each time, and another on each host.
func SlotsUnfit(backendLines, defaultsLines, options []string, same bool, servers []Server) string {
	if lastLine("mode", defaultsLines, backendLines) != "mode tcp" {
		if line := lastLine("cookie", defaultsLines, backendLines); line != "" {
			return fmt.Sprintf("%q needs a cookie of its own on each server, which a slot cannot have", clip(line))
		}
	}
	if !same {
		return "the options of its servers contain their names or addresses, which those of a slot cannot"
	}
	for _, s := range servers {
		switch {
		case s.Cookie != "":
			return "server " + s.Name + " has a cookie, which a slot cannot have"
		case !slices.Equal(s.Options, options):
			return "server " + s.Name + " has options of its own, which a slot cannot have"
		}
	}
	return ""
}

// FixedWeights tells whether a backend's algorithm takes other weights only at a start (all that are not dynamic).
func FixedWeights(backendLines, defaultsLines []string) bool {
	return staticBalance(backendLines, defaultsLines) != ""
}
