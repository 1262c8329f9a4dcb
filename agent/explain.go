package agent

import (
	"cmp"
	"fmt"
	"maps"
	"slices"
	"strconv"
	"strings"
	"time"
)

// Answer is yes, no, or what lies between.
type Answer string

// The answers of an Explanation and of its steps.
const (
	Yes     Answer = "yes"
	No      Answer = "no"
	Partly  Answer = "partly" // some HAProxys, not all
	Unknown Answer = "unknown"
)

// Explanation says why an instance does, or does not, get traffic. All text in it is safe to print. Its JSON is part of
// the interface.
type Explanation struct {
	Service    string     `json:"service"`
	Instance   string     `json:"instance"`
	InRotation Answer     `json:"in_rotation"`
	Steps      []Step     `json:"steps"` // from the registry to HAProxy
	Why        string     `json:"why"`   // one sentence
	Next       string     `json:"next"`  // what happens next
	NextAt     *time.Time `json:"next_at,omitempty"`
}

// Step is one station on the way from a registration to traffic.
type Step struct {
	Step  string `json:"step"`  // see the stations below
	State Answer `json:"state"` // no: it goes no further from here; unknown: nobody could tell
	Text  string `json:"text"`
}

// The stations of an Explanation, in their order.
const (
	stationZnode    = "znode"
	stationDecode   = "decode"
	stationAgent    = "agent"
	stationFilters  = "filters"
	stationGuard    = "guard"
	stationInForce  = "in_force"
	stationOverride = "override"
	stationServer   = "server"
	stationHAProxy  = "haproxy"
	stationCheck    = "check"
	stationWeight   = "weight"
)

// Explain goes from the registration to HAProxy's last check result and says why the instance gets traffic or not, and
// what happens next. It is a pure function.
func Explain(e Evidence, now time.Time) Explanation {
	x := explainer{e: e, now: now, out: Explanation{Service: plain(e.Service), Instance: plain(e.Instance), Steps: []Step{}}}
	x.registered()
	switch {
	case x.e.Agent != nil:
		x.believed()
		x.served()
	case x.e.NoService:
		text := "the agent on this host has no service " + x.out.Service
		x.no(stationAgent, text, cause{why: text, next: "It can be added to the agent's file, followed by SIGHUP."})
	default:
		x.step(stationAgent, Unknown, "the agent could not be asked: "+cmp.Or(plain(e.AgentError), "nobody tried"))
	}
	x.conclude()
	return x.out
}

// explainer gathers an Explanation. The first step that says no is the cause.
type explainer struct {
	e     Evidence
	now   time.Time
	out   Explanation
	cause *cause
}

// cause is why an instance gets no traffic, as the end of a sentence.
type cause struct {
	why  string
	next string
	at   *time.Time
}

func (x *explainer) step(station string, state Answer, text string) {
	x.out.Steps = append(x.out.Steps, Step{station, state, text})
}

// no notes a step that ends the way, with the reason if it is the first one.
func (x *explainer) no(station, text string, c cause) {
	x.step(station, No, text)
	x.blame(c)
}

func (x *explainer) blame(c cause) {
	if x.cause == nil {
		x.cause = &c
	}
}

// ago is how long ago something was, in one or two units.
func (x *explainer) ago(t time.Time) string { return spell(x.now.Sub(t)) }

// in is how long it is until then.
func (x *explainer) in(t time.Time) string {
	if !t.After(x.now) {
		return "at once"
	}
	return "in " + spell(t.Sub(x.now))
}

func spell(d time.Duration) string {
	d = max(d, 0)
	switch {
	case d < time.Second:
		return fmt.Sprintf("%dms", d.Milliseconds())
	case d < time.Minute:
		return fmt.Sprintf("%ds", int(d.Seconds()))
	case d < time.Hour:
		return fmt.Sprintf("%dm%02ds", int(d.Minutes()), int(d.Seconds())%60)
	case d < 48*time.Hour:
		return fmt.Sprintf("%dh%02dm", int(d.Hours()), int(d.Minutes())%60)
	}
	return fmt.Sprintf("%dd%02dh", int(d.Hours())/24, int(d.Hours())%24)
}

// plain makes text of others safe to print: one line, ASCII, of bounded length.
func plain(s string) string {
	const most = 300
	cut := ""
	if len(s) > most {
		s, cut = s[:most], "..."
	}
	if strings.ContainsFunc(s, func(r rune) bool { return r < ' ' || r > '~' }) {
		s = strconv.QuoteToASCII(s)
	}
	return s + cut
}

// registered tells of the znodes: who registers the instance, and what is wrong with that.
func (x *explainer) registered() {
	r, a := x.e.Registry, x.e.Agent
	if a != nil && a.Static {
		x.step(stationZnode, Yes, "a server of the agent's configuration (default_servers); no registration is needed")
		return
	}
	switch {
	case r == nil && a == nil:
		x.step(stationZnode, Unknown, "ZooKeeper could not be asked: "+cmp.Or(plain(x.e.RegistryError), "nobody tried"))
		return
	case r == nil && !a.Heard && a.FromDisk == nil:
		x.step(stationZnode, Unknown, "ZooKeeper was not asked, and the agent has heard nothing of the service yet")
		return
	case r == nil:
		r = &RegistryEvidence{From: "agent", Path: a.Path, Missing: a.Missing, Nodes: a.Nodes, Listed: -1}
	}
	path := plain(r.Path)
	if r.From == "disk" {
		path += " (as it was " + x.ago(r.At) + " ago: a set kept on disk)"
	}
	switch {
	case len(r.Nodes) > 0:
	case r.Missing:
		x.notRegistered(r, path+" does not exist", "the path "+plain(r.Path)+" does not exist in ZooKeeper")
		return
	default:
		text := "nothing in " + path + " registers it"
		if r.Listed >= 0 {
			text += "; " + count(r.Listed, "other registration") + " there"
		}
		x.notRegistered(r, text, "nothing in "+plain(r.Path)+" registers it")
		return
	}
	good := x.best(r.Nodes)
	n := r.Nodes[good]
	x.step(stationZnode, Yes, x.znode(n, path, len(r.Nodes)))
	switch {
	case n.Reason != "":
		x.no(stationDecode, "rejected: "+plain(n.Reason)+": "+plain(n.Detail), cause{
			why:  "its registration " + plain(n.Node) + " is not usable: " + plain(n.Detail),
			next: "As soon as its registrar writes a registration that decodes, it is used.",
		})
	case n.Leaving:
		x.no(stationDecode, x.decoded(n)+"; marked as leaving", cause{
			why:  "it is leaving on purpose: its registrar has marked the registration",
			next: "Its registrar removes the registration in a moment.",
		})
	default:
		x.step(stationDecode, Yes, x.decoded(n))
	}
}

// notRegistered says so, and where the registration may be instead.
func (x *explainer) notRegistered(r *RegistryEvidence, text, why string) {
	next := "When it registers in " + plain(r.Path) + ", it is used at once."
	switch {
	case len(r.Elsewhere) > 0:
		where := listOf(r.Elsewhere)
		text += "; it is registered in " + where
		why += "; it is registered in " + where + ", where this service does not look"
		next = "It is used when its registrar publishes in " + plain(r.Path) + ", or the service's discovery.path is " + plain(r.Elsewhere[0]) + "."
	case len(r.Near) > 0:
		text += "; nearly the same: " + listOf(r.Near)
	}
	if a := x.e.Agent; a != nil && a.Held != nil {
		x.step(stationZnode, No, text) // it stays in rotation nonetheless
		return
	}
	x.no(stationZnode, text, cause{why: why, next: next})
}

// best is the registration that counts: a good one before one that leaves, before a rejected one.
func (x *explainer) best(nodes []NodeEvidence) int {
	used := ""
	if x.e.Agent != nil {
		used = x.e.Agent.Used
	}
	rank := func(n NodeEvidence) int {
		switch {
		case n.Reason != "":
			return 3
		case n.Leaving:
			return 2
		case n.Node != used:
			return 1
		}
		return 0
	}
	best := 0
	for i := range nodes {
		if rank(nodes[i]) < rank(nodes[best]) {
			best = i
		}
	}
	return best
}

func (x *explainer) znode(n NodeEvidence, path string, all int) string {
	text := plain(n.Node) + " in " + path
	if !n.Created.IsZero() {
		text += ", for " + x.ago(n.Created)
	}
	if n.Session != "" {
		text += ", session " + plain(n.Session)
	}
	if n.Bytes > 0 {
		text += fmt.Sprintf(", %d bytes: %s", n.Bytes, n.Data)
	}
	if all > 1 {
		text += fmt.Sprintf(" (and %d more)", all-1)
	}
	return text
}

func (x *explainer) decoded(n NodeEvidence) string {
	text := plain(n.Instance)
	if n.Name != "" {
		text = plain(n.Name) + " at " + text
	}
	if n.Weight != nil {
		text += ", weight " + strconv.Itoa(*n.Weight)
	}
	if len(n.Labels) > 0 {
		var words []string
		for _, k := range slices.Sorted(maps.Keys(n.Labels)) {
			words = append(words, plain(fmt.Sprintf("%s=%v", k, n.Labels[k])))
		}
		text += ", " + strings.Join(words, " ")
	}
	if len(n.Options) > 0 {
		text += ", options " + plain(strings.Join(n.Options, " "))
	}
	return text
}

// believed tells what the agent makes of it: from what it heard to what is in force.
func (x *explainer) believed() {
	a := x.e.Agent
	x.heard(a)
	if !a.Heard && a.FromDisk == nil {
		return
	}
	if a.Filtered != "" {
		x.no(stationFilters, plain(a.Filtered), cause{
			why:  "it does not pass the label filters: " + plain(a.Filtered),
			next: "When its labels or discovery.label_filters change, it is judged anew.",
		})
	} else if usable(a.Nodes) {
		x.step(stationFilters, Yes, "it passes")
	}
	x.guarded(a)
	x.inForce(a)
	x.overridden(a)
}

// heard tells how the agent knows the registry.
func (x *explainer) heard(a *AgentEvidence) {
	if a.Static || a.Method == "base" {
		return
	}
	contact := "connected to ZooKeeper for " + x.ago(a.Since)
	if !a.Connected {
		contact = "no connection to ZooKeeper for " + x.ago(a.Since)
		if a.LastError != "" {
			contact += " (" + plain(a.LastError) + ")"
		}
	}
	ahead, behind := x.disagrees(a)
	switch {
	case !a.Heard && a.FromDisk == nil:
		x.step(stationAgent, Unknown, contact+"; nothing heard of the service yet, so HAProxy keeps what it has")
		x.blame(cause{
			why:  "the agent has heard nothing of the service yet, and leaves HAProxy as it was",
			next: "When the registry answers, HAProxy follows at once.",
		})
	case a.FromDisk != nil:
		x.step(stationAgent, Yes, contact+"; it serves the set kept on disk, as it was "+x.ago(*a.FromDisk)+" ago")
	case ahead && !a.Connected:
		x.no(stationAgent, contact+"; it has not heard of this registration", cause{
			why:  "the agent has had no connection to ZooKeeper for " + x.ago(a.Since) + ", and has not heard of the registration",
			next: "When the connection is back, it is used at once.",
		})
	case ahead:
		x.no(stationAgent, contact+"; it has not read this registration yet", cause{
			why: "the agent has not read the registration yet", next: "It is read within moments.",
		})
	case behind && !a.Connected:
		x.step(stationAgent, Yes, contact+"; it still lists the registration that is gone: what was known stays")
	case behind:
		x.step(stationAgent, Yes, contact+"; it has not noticed yet that the registration is gone")
	case !a.Connected:
		x.step(stationAgent, Yes, contact+"; what was known stays in force, as it was "+x.ago(a.Since)+" ago")
	default:
		x.step(stationAgent, Yes, contact+"; the list it goes by is that of "+x.ago(a.HeardAt)+" ago")
	}
}

// disagrees tells whether the registry has a good registration that the agent does not know of, or the agent one that
// the registry lacks.
func (x *explainer) disagrees(a *AgentEvidence) (ahead, behind bool) {
	r := x.e.Registry
	if r == nil || r.From != "zookeeper" || r.Path != a.Path {
		return false, false
	}
	there, known := usable(r.Nodes), usable(a.Nodes)
	return there && !known, known && !there
}

// usable tells whether one of the registrations decodes and stays.
func usable(nodes []NodeEvidence) bool {
	return slices.ContainsFunc(nodes, func(n NodeEvidence) bool { return n.Reason == "" && !n.Leaving })
}

func (x *explainer) guarded(a *AgentEvidence) {
	switch {
	case a.Held != nil:
		text := "held for " + x.ago(a.Held.Since) + ": " + plain(a.Held.Reason)
		if a.Held.Until != nil {
			text += map[bool]string{true: "; that ends ", false: "; it is judged "}[a.Held.Judged] + x.in(*a.Held.Until)
		}
		x.step(stationGuard, Yes, text)
	case a.SetHeld != "" && a.Known:
		x.step(stationGuard, Yes, "the last good set stays in force: "+plain(a.SetHeld))
	default:
		x.step(stationGuard, Yes, "nothing is held of it")
	}
}

func (x *explainer) inForce(a *AgentEvidence) {
	switch {
	case a.Active && a.Used != "" && len(a.Nodes) > 1:
		x.step(stationInForce, Yes, fmt.Sprintf("one of %d; of its %d registrations %s counts", a.InForce, len(a.Nodes), plain(a.Used)))
	case a.Active:
		x.step(stationInForce, Yes, fmt.Sprintf("one of %d", a.InForce))
	case a.Leader != "":
		x.no(stationInForce, "not the leader: "+plain(a.Leader)+" is", cause{
			why:  "leader_election is on and " + plain(a.Leader) + " is the leader",
			next: "When that registration goes, the one with the next lowest number leads.",
		})
	default:
		x.no(stationInForce, fmt.Sprintf("not one of the %d in force", a.InForce), cause{
			why:  "it is not among the instances in force",
			next: "When the registry lists it, it is used at once.",
		})
	}
}

func (x *explainer) overridden(a *AgentEvidence) {
	o := a.Override
	if o == nil && a.Unheard != "" {
		x.step(stationOverride, Unknown, "none is known; "+plain(a.Unheard))
		return
	}
	if o == nil {
		x.step(stationOverride, Yes, "none")
		return
	}
	what := map[string]string{"drain": "drained", "maint": "in maintenance", "weight": "weight " + o.Weight, "enable": "enabled"}[o.Action]
	text := cmp.Or(what, plain(o.Action)) + " by " + cmp.Or(plain(o.Author), "somebody")
	if o.Reason != "" {
		text += " (" + plain(o.Reason) + ")"
	}
	if o.Target != "" {
		text += ", for " + plain(o.Target)
	}
	ends, next := ", until it is removed", "It stays so until "+plain(o.End)+"."
	if o.Until != nil {
		ends = ", for another " + spell(o.Until.Sub(x.now))
		next = "The override ends " + x.in(*o.Until) + "; then it is as registered."
	}
	switch {
	case o.Action == "drain" || o.Action == "maint":
		x.no(stationOverride, text+ends, cause{why: "it was " + map[string]string{"drain": "drained", "maint": "put into maintenance"}[o.Action] + " by " + by(o), next: next, at: o.Until})
	case o.Action == "weight" && (o.Weight == "0" || o.Weight == "0%"):
		x.no(stationOverride, text+ends, cause{why: "its weight was set to 0 by " + by(o), next: next, at: o.Until})
	default:
		x.step(stationOverride, Yes, text+ends)
	}
}

func by(o *OverrideEvidence) string {
	text := cmp.Or(plain(o.Author), "somebody")
	if o.Reason != "" {
		text += " (" + plain(o.Reason) + ")"
	}
	return text
}

// served tells what HAProxy is to have and what it has.
func (x *explainer) served() {
	a := x.e.Agent
	if !x.wanted(a) {
		return
	}
	if a.NoHAProxy != "" {
		x.step(stationHAProxy, Unknown, plain(a.NoHAProxy))
		x.blame(cause{why: plain(a.NoHAProxy), next: "Whoever reads the files decides."})
		return
	}
	for i := range a.HAProxy {
		x.haproxy(a, &a.HAProxy[i])
	}
}

// wanted tells of the server that it is to become. False: there is no need to look further.
func (x *explainer) wanted(a *AgentEvidence) bool {
	switch {
	case a.Most > 0:
		x.no(stationServer, fmt.Sprintf("left out: beyond haproxy.max_servers = %d", a.Most), cause{
			why:  fmt.Sprintf("there are more instances than haproxy.max_servers = %d, and it was registered later than those that are used", a.Most),
			next: "When others leave, or haproxy.max_servers is raised, it is used.",
		})
	case a.Unresolved != nil && a.Unresolved.Address == "":
		name := plain(a.Unresolved.Name)
		x.no(stationServer, fmt.Sprintf("the name %s has not resolved for %s: %s", name, x.ago(a.Unresolved.Since), plain(a.Unresolved.Error)), cause{
			why: "its host name " + name + " does not resolve", next: "The name is tried again every few seconds; when it resolves, it is used at once.",
		})
	case a.Refused != "":
		x.no(stationServer, "left out: "+plain(a.Refused), cause{
			why: "it cannot become a server: " + plain(a.Refused), next: "When its registration changes, it is judged anew.",
		})
	case a.Quarantine != "":
		x.no(stationServer, "left out: HAProxy refused it: "+plain(a.Quarantine), cause{
			why:  "HAProxy refused what its registration asks for: " + plain(a.Quarantine),
			next: "When its registration changes, or HAProxy is restarted, it is tried again.",
		})
	default:
		x.aim(a)
	}
	return true
}

// aim tells what the server is to be like.
func (x *explainer) aim(a *AgentEvidence) {
	var w *ServerStatus
	for i := range a.HAProxy {
		if s := &a.HAProxy[i].Server; s.Wanted != serverAbsent && s.Wanted != serverUnknown {
			w = s
		}
	}
	if w == nil {
		return
	}
	text := fmt.Sprintf("%s at %s is to be %s with weight %d in backend %s", plain(w.name()), plain(w.Address), stateWord(w.Wanted), w.WeightWanted, plain(a.Backend))
	if a.Port != 0 {
		text += fmt.Sprintf(", port %d by backend_port_override", a.Port)
	}
	if a.Unresolved != nil {
		text += fmt.Sprintf("; its name has not resolved for %s, its last address stays", x.ago(a.Unresolved.Since))
	}
	if a.Curtailed != "" {
		text += "; " + plain(a.Curtailed)
	}
	if w.Wanted != "ready" && (a.Override == nil || a.Override.Action != w.Wanted) {
		x.no(stationServer, text, cause{why: "its configuration says disabled", next: "It stays so until its options no longer say it."})
		return
	}
	x.step(stationServer, Yes, text)
}

// haproxy tells what one HAProxy has.
func (x *explainer) haproxy(a *AgentEvidence, h *HAProxyEvidence) {
	s, at := h.Server, ""
	if len(a.HAProxy) > 1 {
		at = " in " + plain(h.Socket)
	}
	switch {
	case s.Admin == serverUnknown:
		why := cmp.Or(plain(s.Error), plain(h.LastError), "no answer")
		text := plain(h.Socket) + " does not answer: " + why
		if !h.Connected {
			text = plain(h.Socket) + " has not answered for " + x.ago(h.Since) + ": " + why
		}
		x.step(stationHAProxy, Unknown, text)
		x.blame(cause{why: "HAProxy at " + plain(h.Socket) + " does not answer", next: "It is tried again all the time; when it answers, it is brought to what is wanted."})
		return
	case h.NoBackend && s.Admin == serverAbsent:
		x.no(stationHAProxy, "HAProxy"+at+" has no backend "+plain(a.Backend), cause{
			why:  "HAProxy" + at + " has no backend " + plain(a.Backend),
			next: "Add the backend to HAProxy's file and reload it; the server is added at once.",
		})
		return
	case a.Shadow && s.Admin != "ready" && s.Wanted != s.Admin:
		x.shadowed(s, at)
		return
	case s.Admin == serverAbsent:
		x.absent(a, h, at)
		return
	case s.Admin != "ready":
		x.away(a, h, at)
		return
	}
	text := fmt.Sprintf("%s%s is ready", plain(s.Server), at)
	if s.Sessions >= 0 {
		text += fmt.Sprintf(", %s", count(s.Sessions, "current session"))
	}
	if s.Queue > 0 {
		text += fmt.Sprintf(", %d waiting", s.Queue)
	}
	if s.Wanted == serverAbsent || s.Wanted != "ready" && s.Wanted != serverUnknown {
		text += "; it is to be " + stateWord(s.Wanted)
	}
	if s.Foreign != "" {
		text += "; " + plain(s.Foreign)
	}
	x.step(stationHAProxy, Yes, text)
	x.checked(s, at)
	x.weighed(a, h, at)
}

// shadowed tells of a server that is not as it is to be in a HAProxy that others drive.
func (x *explainer) shadowed(s ServerStatus, at string) {
	text := "HAProxy" + at + " does not have it"
	if s.Admin != serverAbsent {
		text = plain(s.Server) + at + " is " + stateWord(s.Admin)
	}
	if s.Wanted != serverUnknown {
		text += "; Myelin would have it " + stateWord(s.Wanted)
	}
	x.no(stationHAProxy, text, cause{why: text, next: "This agent is a shadow and changes nothing: whoever drives HAProxy decides."})
}

// absent tells of a server that HAProxy does not have.
func (x *explainer) absent(a *AgentEvidence, h *HAProxyEvidence, at string) {
	text := "HAProxy" + at + " does not have it"
	reload := cmp.Or(a.NeedsReload, a.Reload)
	switch {
	case h.Server.Wanted == serverAbsent || h.Server.Wanted == serverUnknown:
		if x.cause != nil {
			x.step(stationHAProxy, No, text)
			return
		}
		x.no(stationHAProxy, text, cause{why: "HAProxy" + at + " does not have it", next: "When it is in force, it is added at once."})
	case reload != "":
		x.no(stationHAProxy, text+"; a reload is due: "+plain(reload), cause{
			why:  "HAProxy" + at + " takes it only with a reload, which is due: " + plain(reload),
			next: "HAProxy is reloaded as soon as its limits on reloads allow.",
		})
	case h.Failed != "":
		x.no(stationHAProxy, text+"; it refused: "+plain(h.Failed), cause{
			why: "HAProxy" + at + " refused it: " + plain(h.Failed), next: "It is tried again with the next round, within a second.",
		})
	case !h.Connected:
		x.no(stationHAProxy, text+"; the agent has not reached HAProxy for "+x.ago(h.Since)+": "+plain(h.LastError), cause{
			why: "the agent does not reach HAProxy" + at, next: "It is tried again all the time.",
		})
	default:
		x.no(stationHAProxy, text+" yet", cause{why: "HAProxy" + at + " has not been given it yet", next: "It is added within moments."})
	}
}

// away tells of a server that HAProxy has, and that is drained or in maintenance there.
func (x *explainer) away(a *AgentEvidence, h *HAProxyEvidence, at string) {
	s := h.Server
	state := map[string]string{"drain": "drains", "maint": "is in maintenance"}[s.Admin]
	text := fmt.Sprintf("%s%s %s", plain(s.Server), at, state)
	if s.Sessions >= 0 {
		text += ", " + count(s.Sessions, "current session")
	}
	switch {
	case s.Foreign != "":
		x.no(stationHAProxy, text+"; "+plain(s.Foreign), cause{
			why:  "somebody changed it by hand on HAProxy's socket" + at + ": " + plain(s.Foreign),
			next: x.corrected(h, "\"set server "+plain(a.Backend)+"/"+plain(s.Server)+" state ready\" undoes it."), at: h.ManualUntil,
		})
	case s.Wanted == serverAbsent:
		x.step(stationHAProxy, No, text+"; it left, and is deleted when its connections are gone")
		x.blame(cause{why: "it has left", next: "When it registers again, it is used at once."})
	case s.Wanted == s.Admin:
		x.step(stationHAProxy, No, text+", as wanted")
		x.blame(cause{why: "it is to be " + stateWord(s.Wanted), next: "It stays so."})
	case s.Wanted == "ready" && a.Gate:
		last := cmp.Or(plain(s.Check), "no result yet")
		x.no(stationHAProxy, text+"; it waits for HAProxy's first good check: "+last, cause{
			why:  "health_gate keeps it out until HAProxy's first good check (" + last + ")",
			next: "It gets traffic as soon as a check passes.",
		})
	case h.Failed != "":
		x.no(stationHAProxy, text+"; HAProxy refused: "+plain(h.Failed), cause{why: "HAProxy" + at + " refused it: " + plain(h.Failed), next: "It is tried again within a second."})
	case h.Connected && !h.Pending:
		x.no(stationHAProxy, text+"; it is to be "+stateWord(s.Wanted)+", and that was applied: somebody else has changed it since", cause{
			why:  "somebody changed it by hand on HAProxy's socket" + at + ", to " + s.Admin,
			next: "The agent notices that within half a minute, and leaves it so for haproxy.manual_changes.",
		})
	default:
		x.no(stationHAProxy, text+"; it is to be "+stateWord(s.Wanted), cause{why: "HAProxy" + at + " has not been told yet that it is to be " + stateWord(s.Wanted), next: "That happens within moments."})
	}
}

// checked tells what HAProxy's own check says.
func (x *explainer) checked(s ServerStatus, at string) {
	last := plain(s.Check)
	since := ""
	if s.Changed != nil {
		since = x.ago(*s.Changed)
	}
	switch s.Operational {
	case "up", "starting":
		text := s.Operational
		if since != "" {
			text += " for " + since
		}
		switch {
		case !s.Checked:
			text = "HAProxy does not check it"
		case last != "":
			text += ": " + last
		}
		x.step(stationCheck, Yes, text)
	case "down", "stopping":
		last = cmp.Or(last, "no result told")
		text, why := s.Operational+at, "HAProxy's check"+at+" fails: "+last
		if since != "" {
			text += " for " + since
			why = "HAProxy's check" + at + " has failed for " + since + ": " + last
		}
		x.no(stationCheck, text+": "+last, cause{
			why:  why,
			next: "When enough checks pass again (rise), it gets traffic.",
		})
	default:
		x.step(stationCheck, Unknown, "HAProxy does not say")
	}
}

// corrected says when what somebody else changed is corrected, and what undoes it now.
func (x *explainer) corrected(h *HAProxyEvidence, undo string) string {
	if h.ManualUntil == nil {
		return "It stays so; " + undo
	}
	return "It is corrected " + x.in(*h.ManualUntil) + " (haproxy.manual_changes); " + undo
}

func (x *explainer) weighed(a *AgentEvidence, h *HAProxyEvidence, at string) {
	s := h.Server
	switch {
	case s.Weight < 0:
	case s.Weight == 0:
		if x.cause != nil {
			x.step(stationWeight, No, "0")
			return
		}
		c := cause{why: "its weight" + at + " is 0", next: "It gets new requests when its registration, or an operator, gives it a weight."}
		switch {
		case s.Foreign != "":
			c.why += ", set by hand: " + plain(s.Foreign)
			c.next, c.at = x.corrected(h, "\"set server "+plain(a.Backend)+"/"+plain(s.Server)+" weight "+strconv.Itoa(max(s.WeightWanted, 0))+"\" undoes it."), h.ManualUntil
		case s.WeightWanted == 0:
			c.why += ", as registered"
		}
		x.no(stationWeight, "0", c)
	case s.Operational != "up" && s.Operational != "starting":
	default:
		text := strconv.Itoa(s.Weight)
		if h.Weights >= s.Weight {
			text += fmt.Sprintf(" of %d among %s: about %d %% of new requests%s", h.Weights, count(h.Serving, "server"), (100*s.Weight+h.Weights/2)/h.Weights, at)
		}
		x.step(stationWeight, Yes, text)
	}
}

// takes tells whether a server takes new requests.
func (s ServerStatus) takes() bool {
	return s.Admin == "ready" && (s.Operational == "up" || s.Operational == "starting") && s.Weight > 0
}

// name is that of the wanted server, else its own.
func (s ServerStatus) name() string { return cmp.Or(s.Name, s.Server) }

// conclude is the sentence at the end.
func (x *explainer) conclude() {
	serving, silent, all := 0, 0, 0
	for _, h := range x.e.Agent.haproxys() {
		all++
		switch {
		case h.Server.takes():
			serving++
		case h.Server.Admin == serverUnknown:
			silent++
		}
	}
	who := x.out.Instance
	why, next := "", "Nothing is due."
	if x.cause != nil {
		why, next, x.out.NextAt = x.cause.why, x.cause.next, x.cause.at
	}
	switch {
	case x.e.NoService:
		x.out.InRotation = No
	case all == 0 || silent == all:
		x.out.InRotation = Unknown
		if x.e.Agent != nil && x.cause != nil && x.e.Agent.NoHAProxy == "" && all == 0 && (x.e.Agent.Heard || x.e.Agent.FromDisk != nil) {
			x.out.InRotation = No // the agent leaves it out, whatever HAProxy would say
		}
		if why == "" {
			why, next = x.untold()
		}
		if x.e.Agent == nil && x.cause != nil {
			why += ", so agents leave it out, unless they hold it"
		}
	case serving == all:
		x.out.InRotation = Yes
	case serving > 0:
		x.out.InRotation = Partly
	case silent > 0: // it may serve there
		x.out.InRotation = Unknown
		why = fmt.Sprintf("%d of %d HAProxys do not answer, and the others send it nothing: %s", silent, all, why)
	default:
		x.out.InRotation = No
	}
	switch x.out.InRotation {
	case Yes:
		x.out.Why = x.praise(who)
		switch {
		case x.cause != nil && !x.e.Agent.Heard && x.e.Agent.FromDisk == nil:
		case x.cause != nil && !x.e.Agent.Connected && x.e.Agent.Method != "base":
			next = "When ZooKeeper answers, the agent compares, and HAProxy follows."
		case x.cause != nil: // HAProxy is behind
			next = "It is taken out of rotation within moments."
		case x.e.Agent.Held != nil:
			next = x.endOfHold(*x.e.Agent.Held)
		case x.e.Agent.FromDisk != nil || !x.e.Agent.Connected && x.e.Agent.Method != "base":
			next = "When ZooKeeper answers, the agent compares, and HAProxy follows."
		case x.e.Agent.Override != nil && x.e.Agent.Override.Until != nil:
			next, x.out.NextAt = "The override ends "+x.in(*x.e.Agent.Override.Until)+".", x.e.Agent.Override.Until
		}
	case No:
		x.out.Why = who + " gets no " + x.rest() + ": " + cmp.Or(why, "nobody knows why") + "."
	case Partly:
		x.out.Why = fmt.Sprintf("%s gets traffic from %d of %d HAProxys: %s.", who, serving, all, cmp.Or(why, "the others are behind"))
	default:
		x.out.Why = "Whether " + who + " gets traffic is not known: " + why + "."
	}
	x.out.Next = next
}

// rest says what an instance out of rotation gets no more of, and what is left.
func (x *explainer) rest() string {
	sessions := 0
	for _, h := range x.e.Agent.haproxys() {
		sessions += max(h.Server.Sessions, 0)
	}
	if sessions == 0 {
		return "traffic"
	}
	return "new traffic (" + count(sessions, "session") + " left)"
}

func (a *AgentEvidence) haproxys() []HAProxyEvidence {
	if a == nil {
		return nil
	}
	return a.HAProxy
}

// stateWord is a state of ServerStatus behind "is to be".
func stateWord(state string) string {
	switch state {
	case "drain":
		return "draining"
	case "maint":
		return "in maintenance"
	case serverAbsent:
		return "gone"
	}
	return state
}

// untold is why nobody knows, and what can be done.
func (x *explainer) untold() (why, next string) {
	switch {
	case x.e.Agent == nil && x.e.Registry == nil:
		return "neither ZooKeeper nor the agent could be asked", "Start the agent, or say where ZooKeeper is with --zookeeper HOSTS."
	case x.e.Agent == nil:
		return "it is registered, but the agent could not be asked", "Ask on a host where an agent runs, or give its address with --address HOST:PORT."
	}
	return "no HAProxy could be asked", "Nothing is due."
}

// praise is the sentence about an instance in rotation.
func (x *explainer) praise(who string) string {
	a := x.e.Agent
	switch {
	case a.Held != nil:
		return who + " gets traffic although the registry does not list it: the agent holds it, because " + plain(a.Held.Reason) + "."
	case x.cause != nil:
		return who + " still gets traffic, although " + x.cause.why + "."
	case a.Static:
		return who + " gets traffic: it is a server of the agent's configuration, and HAProxy has it ready."
	case a.FromDisk != nil:
		return who + " gets traffic from the set kept on disk, as it was " + x.ago(*a.FromDisk) + " ago: nothing has been heard from ZooKeeper since the agent started."
	case a.SetHeld != "":
		return who + " gets traffic: the last good set stays in force, because " + plain(a.SetHeld) + "."
	case !a.Connected && a.Method != "base":
		return who + " gets traffic by what was known " + x.ago(a.Since) + " ago: since then ZooKeeper has been away, and nothing is taken from HAProxy."
	case a.HAProxy[0].Server.Checked:
		return who + " gets traffic: it is registered, and HAProxy has it ready and its check passes."
	}
	return who + " gets traffic: it is registered, and HAProxy has it ready."
}

// endOfHold says when a hold ends.
func (x *explainer) endOfHold(h HoldStatus) string {
	switch {
	case h.Until == nil:
		return "It stays until the registry lists something, HAProxy's checks see it down, or myelin guard release lets it go."
	case !h.Judged:
		x.out.NextAt = h.Until
		return "Whether it is held for longer is decided " + x.in(*h.Until) + "."
	}
	x.out.NextAt = h.Until
	return "The hold ends " + x.in(*h.Until) + ", or when it registers again, HAProxy's checks see it down, or myelin guard release lets it go."
}

func count(n int, what string) string {
	if n == 1 {
		return "1 " + what
	}
	return strconv.Itoa(n) + " " + what + "s"
}

// listOf is a few words of others.
func listOf(words []string) string {
	const most = 3
	var out []string
	for _, w := range words[:min(len(words), most)] {
		out = append(out, plain(w))
	}
	text := strings.Join(out, ", ")
	if len(words) > most {
		text += fmt.Sprintf(" and %d more", len(words)-most)
	}
	return text
}
