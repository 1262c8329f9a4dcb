package haproxy

import (
	"fmt"
	"slices"
	"strconv"
	"strings"
)

// Action is what a Step does.
type Action uint8

// The actions, in no order; a Plan has the order.
const (
	StepAdd           Action = iota + 1 // a new server object, brought to the wanted state
	StepReady                           // take traffic (again)
	StepDrain                           // no new traffic but for persistence
	StepMaint                           // no new traffic, no checks
	StepWeight                          // another weight
	StepMaxconn                         // another limit of connections
	StepCheck                           // switch the health check on, so that its result can be waited for
	StepShutdown                        // end the sessions of a server in maintenance
	StepAddr                            // another address for a slot; see DiffSlots
	StepDelete                          // remove the object, which must be in maintenance
	StepAddBackend                      // a new backend without servers, which takes no traffic yet; see Backends
	StepPublish                         // have a backend take traffic
	StepUnpublish                       // no new traffic for a backend
	StepDeleteBackend                   // remove a backend, which must be unpublished and without servers
)

// DefaultsName is the name of the file's defaults section, which a backend made at run time takes its settings from.
const DefaultsName = "myelin"

// String is the action's name in logs and in the label of a metric.
func (a Action) String() string {
	switch a {
	case StepAdd:
		return "add"
	case StepReady:
		return "ready"
	case StepDrain:
		return "drain"
	case StepMaint:
		return "maint"
	case StepWeight:
		return "weight"
	case StepMaxconn:
		return "maxconn"
	case StepCheck:
		return "check"
	case StepShutdown:
		return "shutdown"
	case StepAddr:
		return "addr"
	case StepDelete:
		return "delete"
	case StepAddBackend:
		return "add-backend"
	case StepPublish:
		return "publish"
	case StepUnpublish:
		return "unpublish"
	case StepDeleteBackend:
		return "delete-backend"
	}
	return "unknown"
}

// Key names a server object of HAProxy.
type Key struct{ Backend, Server string }

// Applied is what of a server cannot be read back from HAProxy: what was sent when the object was made.
type Applied struct {
	Options []string
	Cookie  string
}

// Applied is what is to be remembered of s once HAProxy has confirmed the StepAdd that made it, or a StepMaxconn. Other
// steps change none of it.
func (s Server) Applied() Applied { return Applied{s.Options, s.Cookie} }

// fits tells whether the object that a was sent for can be made into s: whether they differ in no more than what can
// be set in place.
func (a Applied) fits(s Server) bool {
	return a.Cookie == s.Cookie && (slices.Equal(a.Options, s.Options) || onlyMaxconnDiffers(a.Options, s.Options))
}

// onlyMaxconnDiffers tells whether two lists of options are one but for the limit of connections. With a minconn the
// limit is a dynamic one, and "set maxconn server" would move both (server_parse_maxconn_change_request in HAProxy's
// src/server.c).
func onlyMaxconnDiffers(a, b []string) bool {
	i, j := 0, 0
	for {
		i, j = skipMaxconn(a, i), skipMaxconn(b, j)
		if i >= len(a) || j >= len(b) {
			return i >= len(a) && j >= len(b)
		}
		if a[i] != b[j] || a[i] == "minconn" {
			return false
		}
		i, j = i+1, j+1
		if o, ok := lookupOption(a[i-1]); ok && o.args > 0 && i < len(a) && j < len(b) {
			if a[i] != b[j] {
				return false
			}
			i, j = i+1, j+1
		}
	}
}

// maxconnDiffers tells it without allocating, for the usual case that nothing does.
func maxconnDiffers(a, b []string) bool { return !slices.Equal(a, b) && maxconnOf(a) != maxconnOf(b) }

// skipMaxconn is the place behind a "maxconn N" that stands at i.
func skipMaxconn(words []string, i int) int {
	for i+1 < len(words) && words[i] == "maxconn" {
		i += 2
	}
	return i
}

// maxconnOf is the limit of connections that options ask for; "0", none, without the word.
func maxconnOf(options []string) string {
	limit := "0"
	for i := 0; i < len(options); i++ {
		if options[i] == "maxconn" && i+1 < len(options) {
			limit = options[i+1] // the last one counts
		}
		if o, ok := lookupOption(options[i]); ok {
			i += o.args
		}
	}
	return limit
}

// View is what Diff has to know beside the two states. Its zero value is usable.
type View struct {
	Caps      Capabilities
	Foreign   map[Key]bool    // servers written by hand in the configuration: never touched
	Deletable map[Key]bool    // retired long enough, and without connections
	Forced    map[Key]bool    // retired, and still with sessions when the time that they are given is over
	Applied   map[Key]Applied // options and cookie HAProxy last confirmed; absent: assume what is wanted
	Whole     State           // all servers of a backend, for their ids, where actual has only those of interest
	Drain     map[string]bool // backends whose leaving servers drain before they are put into maintenance
	Drained   map[Key]bool    // leaving servers that have drained for long enough
	Gate      map[string]bool // backends whose servers take traffic only after a good check of HAProxy's own
	Attached  bool            // HAProxy's file is others': their servers may have our kind of name, so ids decide (see Made)
	Mine      map[Key]bool    // with Attached: servers that are known as ours whatever their ids
	Manual    map[Key]bool    // servers whose state or weight somebody else has set: both stay while the server is wanted
}

// Step is one change of one server, or of a backend: then Server is empty.
type Step struct {
	Op       Action
	Backend  string
	Server   Server   // as it is to be after the step
	Extra    []string // words behind the options that this version of HAProxy needs; no part of Server.Options
	Gated    bool     // StepAdd: stay in maintenance, where the check runs, until it has passed; StepReady: be down until then
	Later    bool     // StepAdd: the check is switched on by a step of its own
	Wanted   bool     // StepDrain, StepMaint: the server is wanted so; it does not leave
	Occupant string   // the server in question, where Server is a slot
	Why      string   // one line for people
}

// OfBackend tells whether the step is about a backend and not about a server.
func (s Step) OfBackend() bool { return s.Op >= StepAddBackend }

// about names what the step is about, in a plan and in errors.
func (s Step) about() string {
	if s.OfBackend() {
		return s.Backend
	}
	return s.Backend + "/" + s.Server.Name
}

// Key names the server object that the step is about.
func (s Step) Key() Key { return Key{s.Backend, s.Server.Name} }

// Commands are the commands of the step, in order, each sent when the one before it worked. They are for reading;
// Client.Apply checks every word before it sends one.
func (s Step) Commands() []string {
	words := s.words()
	lines := make([]string, len(words))
	for i, w := range words {
		lines[i] = strings.Join(w, " ")
	}
	return lines
}

// words are the commands, split into words.
func (s Step) words() [][]string {
	target := s.Backend + "/" + s.Server.Name
	set := func(what, value string) []string { return []string{"set", "server", target, what, value} }
	switch s.Op {
	case StepAdd:
		return s.addWords(target)
	case StepReady, StepDrain:
		state := Ready
		if s.Op == StepDrain {
			state = Drain
		}
		var out [][]string
		// The checks of a server whose making was cut short, or which we retired, are switched off.
		if s.Server.Check.Idle() {
			out = append(out, []string{"enable", "health", target})
		}
		if s.Server.Agent.Idle() {
			out = append(out, []string{"enable", "agent", target})
		}
		if s.Gated {
			// Out of maintenance HAProxy takes a server for up. Draining it gets no traffic before it is told that the
			// server is down, and then only its checks can bring it up.
			out = append(out, set("state", Drain.String()), set("health", "down"))
		}
		return append(out, set("state", state.String()))
	case StepMaint:
		if s.Server.Agent.Running() {
			// An agent that answers "ready" ends the maintenance within one agent interval (2.6 to 3.2).
			return [][]string{{"disable", "agent", target}, set("state", Maint.String())}
		}
		return [][]string{set("state", Maint.String())}
	case StepAddr:
		return [][]string{s.addrWords(target)}
	case StepWeight:
		return [][]string{set("weight", strconv.Itoa(s.Server.Weight))}
	case StepMaxconn:
		return [][]string{{"set", "maxconn", "server", target, maxconnOf(s.Server.Options)}}
	case StepCheck:
		return [][]string{{"enable", "health", target}}
	case StepShutdown:
		return [][]string{{"shutdown", "sessions", "server", target}}
	case StepDelete:
		return [][]string{{"del", "server", target}}
	case StepAddBackend:
		return [][]string{{"add", "backend", s.Backend, "from", DefaultsName}}
	case StepPublish:
		return [][]string{{"publish", "backend", s.Backend}}
	case StepUnpublish:
		return [][]string{{"unpublish", "backend", s.Backend}}
	case StepDeleteBackend:
		return [][]string{{"del", "backend", s.Backend}}
	}
	return nil
}

// addWords: HAProxy applies nothing of default-server to a server added at run time and leaves it in maintenance
// with its checks off. The id is always sent: without one, adds are eleven times slower at 10,000 servers, and hash
// rings break on 2.6 and 2.8 (HAProxy issue 3413).
func (s Step) addWords(target string) [][]string {
	v := s.Server
	addr, err := address(v.Addr)
	if err != nil {
		addr = "?" // outside the alphabet: see Client.Apply
	}
	add := []string{"add", "server", target, addr, "id", strconv.Itoa(v.ID), "weight", strconv.Itoa(v.Weight)}
	add = append(add, v.Options...)
	if v.Cookie != "" {
		add = append(add, "cookie", v.Cookie)
	}
	out := [][]string{append(add, s.Extra...)}
	// Enabled before ready, so that a server does not take traffic with its check off, but for large fills.
	if hasOption(v.Options, "check") && !s.Later {
		out = append(out, []string{"enable", "health", target})
	}
	if hasOption(v.Options, "agent-check") {
		out = append(out, []string{"enable", "agent", target})
	}
	if v.Admin != Maint && !s.Gated {
		out = append(out, []string{"set", "server", target, "state", v.Admin.String()})
	}
	return out
}

// addrWords: HAProxy takes an IPv6 address without brackets here.
func (s Step) addrWords(target string) []string {
	addr, port := "?", "?" // outside the alphabet: see Client.Apply
	if _, err := address(s.Server.Addr); err == nil {
		a := canonical(s.Server.Addr)
		addr, port = a.Addr().String(), strconv.Itoa(int(a.Port()))
	}
	return []string{"set", "server", target, "addr", addr, "port", port}
}

// failed says what an error happened to. The name is quoted: a step that cannot be sent may have any.
func (s Step) failed(err error) error {
	return fmt.Errorf("%s %q: %w", s.Op, clip(s.about()), err)
}

// check tells whether everything in the step can be sent.
func (s Step) check() error {
	if err := CheckName(s.Backend); err != nil {
		return fmt.Errorf("backend: %w", err)
	}
	if s.OfBackend() {
		return nil
	}
	if err := checkServerName(s.Server.Name); err != nil {
		return fmt.Errorf("server: %w", err)
	}
	if s.Op == StepAdd || s.Op == StepAddr {
		if _, err := address(s.Server.Addr); err != nil {
			return err
		}
	}
	if s.Op == StepAddr && !IsSlot(s.Server) {
		return fmt.Errorf("server %s is no slot: it keeps its address for life", s.Server.Name)
	}
	if s.Op == StepAdd {
		if s.Server.ID < 1 || s.Server.ID > MaxID {
			return fmt.Errorf("id %d is not in 1..%d", s.Server.ID, MaxID)
		}
		if err := CheckOptions(s.Server.Options); err != nil {
			return err
		}
	}
	if s.Op == StepMaxconn && !numberBetween(0, 1<<31-1)(maxconnOf(s.Server.Options)) {
		return fmt.Errorf("maxconn %q is no number", maxconnOf(s.Server.Options))
	}
	if (s.Op == StepAdd || s.Op == StepWeight) && (s.Server.Weight < 0 || s.Server.Weight > 256) {
		return fmt.Errorf("weight %d is not in 0..256", s.Server.Weight)
	}
	return nil
}

// Remember notes in applied what HAProxy cannot be asked for later. The step was carried out.
func (s Step) Remember(applied map[Key]Applied) {
	switch s.Op {
	case StepAdd, StepMaxconn:
		applied[s.Key()] = s.Server.Applied()
	case StepDelete:
		delete(applied, s.Key())
	}
}

// change does to a server what the step does to HAProxy's, as far as "show servers state" would tell. It is not for
// adds and deletes.
func (s Step) change(v *Server) {
	switch s.Op {
	case StepWeight:
		v.Weight = s.Server.Weight
	case StepReady, StepDrain:
		v.Admin, v.Op = Ready, OpRunning
		if s.Op == StepDrain {
			v.Admin = Drain
		}
		if s.Gated {
			v.Op = OpStopped
		}
		v.Check = v.Check.enabled() &^ probePaused
		v.Agent = v.Agent.enabled()
	case StepMaint:
		v.Admin, v.Op = Maint, OpStopped
		v.Agent &^= ProbeEnabled
		if v.Check != 0 {
			v.Check |= probePaused
		}
	case StepCheck:
		v.Check = v.Check.enabled()
	}
}

// added is the server as it is after the step, an add.
func (s Step) added() Server {
	v := s.Server
	v.Options, v.Cookie = nil, ""
	v.Op, v.Check, v.Agent, v.CheckResult = OpRunning, 0, 0, 0
	if hasOption(s.Server.Options, "check") {
		v.Check = ProbeConfigured
		if !s.Later {
			v.Check |= ProbeEnabled
		}
	}
	if hasOption(s.Server.Options, "agent-check") {
		v.Agent = ProbeConfigured | ProbeEnabled
	}
	if s.Gated {
		v.Admin = Maint
	}
	if v.Admin == Maint {
		v.Op = OpStopped
	}
	return v
}

// After is a backend's servers once the steps, all of this backend, were carried out: what can be believed until
// HAProxy is asked again. It takes servers over.
func After(servers []Server, steps []Step) []Server {
	var at map[string]int // by name, when there are many to be looked for
	index := func(name string) int {
		if at == nil {
			return slices.IndexFunc(servers, func(s Server) bool { return s.Name == name })
		}
		if i, ok := at[name]; ok {
			return i
		}
		return -1
	}
	if searches := len(steps); searches > 8 {
		at = make(map[string]int, len(servers)+len(steps))
		for i := range servers {
			at[servers[i].Name] = i
		}
	}
	gone := false
	for _, s := range steps {
		if s.OfBackend() {
			continue
		}
		i := index(s.Server.Name)
		switch {
		case s.Op == StepAdd && i < 0:
			servers = append(servers, s.added())
			if at != nil {
				at[s.Server.Name] = len(servers) - 1
			}
		case s.Op == StepAdd:
			servers[i] = s.added()
		case i < 0:
		case s.Op == StepDelete:
			servers[i].Name, gone = "", true
		default:
			s.change(&servers[i])
		}
	}
	if gone {
		servers = slices.DeleteFunc(servers, func(s Server) bool { return s.Name == "" })
	}
	return servers
}

// Plan is what to do, in order. A Plan is a value: it can be printed, tested, applied, and applied again.
type Plan []Step

// String is the transcript of the commands, one a line, each step under a comment that says why.
func (p Plan) String() string {
	var b strings.Builder
	for _, s := range p {
		fmt.Fprintf(&b, "# %s: %s\n", s.about(), s.Why)
		for _, c := range s.Commands() {
			b.WriteString(c)
			b.WriteByte('\n')
		}
	}
	return b.String()
}
