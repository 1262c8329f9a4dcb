package doctor

import (
	"cmp"
	"fmt"
	"io/fs"
	"slices"
	"strconv"
	"strings"
	"time"
)

// HAProxy is one HAProxy, by its admin socket.
type HAProxy struct {
	Socket   string
	There    bool // there is a socket at that path
	Mode     fs.FileMode
	UID, GID int
	Error    string // why it does not answer; empty: it does
	Denied   bool   // because the caller may not connect

	Version  string
	Warnings []string // of that version
	Level    Known[string]
	Info     Known[Info]
	Config   Known[ProxyConfig]
	Workers  Known[[]OldWorker]
	CPUs     int

	Own      bool                 // Myelin runs it
	Master   bool                 // it runs under a master process (-W)
	StateAge Known[time.Duration] // of server-state-file; only where the configuration has one
	Slots    bool                 // backends of it stand on slots
	Claim    Known[Claim]         // who drives it
	Others   Known[int]           // connections to the socket now that are neither ours nor the agent's
	Expected string               // the agent's file that should drive it
	Driven   bool                 // an agent of that file runs
}

// Info is what "show info" says.
type Info struct {
	Maxconn, Connections, Threads, FileLimit int
	Pid                                      int
}

// Claim is who has the right to drive a HAProxy.
type Claim struct {
	Held   bool
	Pid    int
	Config string
}

// OldWorker is a worker of before a reload.
type OldWorker struct {
	Pid int
	Age string // as the master tells it, or since when
}

// ProxyConfig is what matters of the file that a HAProxy was started with.
type ProxyConfig struct {
	Files       []string
	Maxconn     int    // of global; 0: not set
	HardStop    string // hard-stop-after; empty: not set
	StateFile   string // server-state-file
	LoadsState  bool   // load-server-state-from-file other than none
	Sockets     []StatsSocket
	bindBacklog int
}

// StatsSocket is one stats socket line.
type StatsSocket struct {
	Path, Mode, Level string
	ExposeFD          bool
}

// Backlog is the longest queue that a bind of it asks for, where HAProxy's maxconn is this.
func (c ProxyConfig) Backlog(maxconn int) int { return max(c.bindBacklog, cmp.Or(c.Maxconn, maxconn)) }

// ReadConfig reads what matters from the text of HAProxy's files, in their order. It never fails: what it does not know
// it leaves.
func ReadConfig(files []string, texts ...string) ProxyConfig {
	c := ProxyConfig{Files: files}
	section := ""
	for _, text := range texts {
		for line := range strings.Lines(text) {
			line, _, _ := strings.Cut(line, "#")
			w := strings.Fields(line)
			if len(w) == 0 {
				continue
			}
			if isSection(w[0]) {
				section = w[0]
				continue
			}
			c.take(section, w)
		}
	}
	return c
}

func isSection(word string) bool {
	switch word {
	case "global", "defaults", "frontend", "backend", "listen", "peers", "resolvers", "mailers", "program", "http-errors", "ring", "cache", "userlist", "log-forward", "fcgi-app", "crt-store", "traces":
		return true
	}
	return false
}

func (c *ProxyConfig) take(section string, w []string) {
	after := func(word string) string {
		if i := slices.Index(w, word); i > 0 && i+1 < len(w) {
			return w[i+1]
		}
		return ""
	}
	number := func(s string) int { n, _ := strconv.Atoi(s); return n }
	arg := ""
	if len(w) > 1 {
		arg = w[1]
	}
	switch {
	case section == "global" && w[0] == "maxconn":
		c.Maxconn = number(arg)
	case section == "global" && w[0] == "hard-stop-after":
		c.HardStop = arg
	case section == "global" && w[0] == "server-state-file":
		c.StateFile = arg
	case w[0] == "load-server-state-from-file":
		c.LoadsState = c.LoadsState || arg != "none"
	case section == "global" && w[0] == "stats" && arg == "socket" && len(w) > 2:
		c.Sockets = append(c.Sockets, StatsSocket{
			Path: strings.TrimPrefix(w[2], "unix@"), Mode: after("mode"), Level: cmp.Or(after("level"), "operator"), ExposeFD: slices.Contains(w, "expose-fd"),
		})
	case w[0] == "bind":
		c.bindBacklog = max(c.bindBacklog, number(after("backlog")), number(after("maxconn")))
	case w[0] == "backlog" || w[0] == "maxconn" && (section == "frontend" || section == "listen" || section == "defaults"):
		c.bindBacklog = max(c.bindBacklog, number(arg))
	}
}

func (c ProxyConfig) socket(path string) (StatsSocket, bool) {
	i := slices.IndexFunc(c.Sockets, func(s StatsSocket) bool { return s.Path == path })
	if i < 0 {
		return StatsSocket{}, false
	}
	return c.Sockets[i], true
}

func (h HAProxy) examine(now time.Time) []Finding {
	out := []Finding{h.socket()}
	if h.There {
		out = append(out, h.mode())
	}
	out = append(out, h.manager())
	if h.Error != "" {
		return out
	}
	out = append(out, h.version()...)
	out = append(out, h.connections(), h.threads(), h.oldWorkers())
	if !h.Config.OK() {
		return append(out, NotKnown("haproxy.config", h.Socket, h.Config.Unknown, "expose-fd, hard-stop-after and server-state-file are in the file only"))
	}
	return append(out, Finding{ID: "haproxy.config", Subject: h.Socket, Found: "started with " + clip(strings.Join(h.Config.Value.Files, " ")), Why: "what follows is read from there"},
		h.exposeFD(), h.hardStop(), h.serverState())
}

const whySocket = "Myelin adds and removes servers over this socket; without it every change is a reload, or waits"

func (h HAProxy) socket() Finding {
	f := Finding{ID: "haproxy.socket", Subject: h.Socket, Why: whySocket}
	line := fmt.Sprintf("stats socket %s mode 600 level admin expose-fd listeners", h.Socket)
	switch {
	case h.Error != "" && !h.There:
		f.Severity, f.Found = Critical, "there is no socket: "+h.Error
		f.Fix = "start HAProxy with this line in its global section: " + line
		if h.Own {
			f.Fix = "start the agent, which starts HAProxy: systemctl start myelin-agent; if it runs, its log and haproxy.log in state_dir have the reason"
		}
	case h.Denied:
		return NotKnown(f.ID, h.Socket, "the user who asks may not connect: "+h.Error, whySocket).withFix("run doctor as root, or as the agent's user; whether that one may connect: permission.path")
	case h.Error != "":
		f.Severity, f.Found = Critical, "no answer: "+h.Error
		f.Fix = "look whether HAProxy runs (a socket that is left over does not answer), who may connect, and whether all of its 10 connections are taken (stats maxconn)"
	case !h.Level.OK():
		return NotKnown("haproxy.socket", h.Socket, h.Level.Unknown, whySocket)
	case h.Level.Value != "admin":
		f.Severity, f.Found = Critical, fmt.Sprintf("it answers with level %s, which changes nothing", clip(h.Level.Value))
		f.Fix = "this line in HAProxy's global section, then a reload: " + line
	default:
		f.Found = "it answers, level admin"
	}
	return f
}

const whyMode = "whoever connects with level admin can send traffic anywhere, and with level operator reads HAProxy's environment"

func (h HAProxy) mode() Finding {
	f := Finding{ID: "haproxy.socket-mode", Subject: h.Socket, Why: whyMode, Found: fmt.Sprintf("mode %s, uid %d, gid %d", octal(h.Mode), h.UID, h.GID)}
	if h.Mode.Perm()&0o002 == 0 {
		return f
	}
	f.Severity, f.Found = Critical, f.Found+": every user of the host may connect"
	if h.Level.OK() && h.Level.Value != "admin" {
		f.Severity = Warning
	}
	f.Fix = fmt.Sprintf(`"mode 600" (or "mode 660 group NAME") on the line "stats socket %s" in HAProxy's global section, then a reload; until then: chmod 600 %s`, h.Socket, h.Socket)
	return f
}

const whyVersion = "what HAProxy does at run time, and which bugs it has, goes by its version"

func (h HAProxy) version() []Finding {
	out := []Finding{{ID: "haproxy.version", Subject: h.Socket, Found: clip(h.Version), Why: whyVersion}}
	for _, w := range h.Warnings {
		text, fix := w, ""
		if i := strings.LastIndex(w, "; "); i >= 0 {
			text, fix = w[:i], w[i+2:]
		}
		out = append(out, Finding{ID: "haproxy.version", Severity: Warning, Subject: h.Socket, Found: text, Why: whyVersion, Fix: fix})
	}
	return out
}

const whyConnections = "at maxconn further clients wait in the kernel's queue, and health endpoints with them"

func (h HAProxy) connections() Finding {
	const id = "haproxy.connections"
	if !h.Info.OK() {
		return NotKnown(id, h.Socket, h.Info.Unknown, whyConnections)
	}
	i := h.Info.Value
	f := Finding{ID: id, Subject: h.Socket, Why: whyConnections, Found: fmt.Sprintf("%d of %d connections", i.Connections, i.Maxconn)}
	if f.Severity = fill(int64(i.Connections), int64(i.Maxconn)); f.Severity > OK {
		f.Fix = fmt.Sprintf(`"maxconn %d" in HAProxy's global section, then a reload; at once: echo "set maxconn global %d" | socat stdio %s (not above what it was started with)`, 2*i.Maxconn, 2*i.Maxconn, h.Socket)
	}
	if h.Config.OK() && h.Config.Value.Maxconn > i.Maxconn && i.Maxconn > 0 {
		f.Severity = max(f.Severity, Warning)
		f.Found += fmt.Sprintf("; its file asks for maxconn %d, and the limit of open files (%d) has lowered it, or somebody on the socket", h.Config.Value.Maxconn, i.FileLimit)
		f.Fix = fmt.Sprintf("LimitNOFILE=%d in the unit that starts HAProxy, then restart it", filesOf(h.Config.Value.Maxconn))
	}
	return f
}

const whyThreads = "each change of servers stops all threads for a moment, which takes longer where they share processors"

func (h HAProxy) threads() Finding {
	const id = "haproxy.threads"
	if !h.Info.OK() {
		return NotKnown(id, h.Socket, h.Info.Unknown, whyThreads)
	}
	n := h.Info.Value.Threads
	f := Finding{ID: id, Subject: h.Socket, Why: whyThreads, Found: fmt.Sprintf("%d threads, %d processors", n, h.CPUs)}
	if h.CPUs > 0 && n > h.CPUs {
		f.Severity, f.Fix = Note, fmt.Sprintf(`"nbthread %d" in HAProxy's global section, then a reload`, h.CPUs)
	}
	return f
}

const whyWorkers = "an old worker serves the clients that it had, with the servers of then; it takes memory, and follows no change"

func (h HAProxy) oldWorkers() Finding {
	const id = "haproxy.old-workers"
	if !h.Workers.OK() {
		return NotKnown(id, h.Socket, h.Workers.Unknown, whyWorkers)
	}
	if len(h.Workers.Value) == 0 {
		return Finding{ID: id, Subject: h.Socket, Found: "none", Why: whyWorkers}
	}
	var who []string
	for _, w := range h.Workers.Value {
		who = append(who, strings.TrimSpace(fmt.Sprintf("pid %d %s", w.Pid, clip(w.Age))))
	}
	f := Finding{ID: id, Subject: h.Socket, Severity: Note, Why: whyWorkers, Found: fmt.Sprintf("%d alive: %s", len(who), some(who)),
		Fix: `"hard-stop-after 5m" in HAProxy's global section ends those of later reloads; these: kill them, which cuts their clients`}
	if len(who) > 3 {
		f.Severity = Warning
	}
	return f
}

const whyExposeFD = "at a reload the new worker takes the listeners over from the old one, so that no connection is refused"

func (h HAProxy) exposeFD() Finding {
	f := Finding{ID: "haproxy.expose-fd", Subject: h.Socket, Why: whyExposeFD}
	s, ok := h.Config.Value.socket(h.Socket)
	switch {
	case !ok:
		return NotKnown(f.ID, h.Socket, "its file has no line for this socket", whyExposeFD)
	case s.ExposeFD:
		f.Found = "expose-fd listeners is set"
	default:
		f.Severity, f.Found = Warning, "expose-fd listeners is not set"
		if h.Master && !older(h.Version, 2, 6) {
			f.Severity, f.Found = Note, f.Found+"; a master of this version hands them over without it"
		}
		f.Fix = fmt.Sprintf(`"expose-fd listeners" at the end of the line "stats socket %s" in HAProxy's global section, then a restart`, h.Socket)
	}
	return f
}

const whyHardStop = "without it a worker of before a reload lives as long as its last connection: for ever with some clients"

func (h HAProxy) hardStop() Finding {
	f := Finding{ID: "haproxy.hard-stop", Subject: h.Socket, Why: whyHardStop, Found: "hard-stop-after " + clip(h.Config.Value.HardStop)}
	if h.Config.Value.HardStop == "" {
		f.Severity, f.Found, f.Fix = Note, "hard-stop-after is not set", `"hard-stop-after 5m" in HAProxy's global section, then a reload`
	}
	return f
}

const whyServerState = "HAProxy reads it at a reload: an old one brings back weights and states of then, and with slots it restores the port and not the address"

func (h HAProxy) serverState() Finding {
	f := Finding{ID: "haproxy.server-state", Subject: h.Socket, Why: whyServerState}
	c := h.Config.Value
	fix := `take "load-server-state-from-file" and "server-state-file" out of HAProxy's file; Myelin keeps the file's servers in step, and restores states itself`
	switch {
	case !c.LoadsState && c.StateFile == "":
		f.Found = "no server-state-file is used"
	case h.Slots:
		f.Severity, f.Found, f.Fix = Critical, "server-state-file "+clip(c.StateFile)+" is used, and backends have slots: after a reload such servers point to this host itself", fix
	case !h.StateAge.OK():
		f = NotKnown(f.ID, h.Socket, h.StateAge.Unknown, whyServerState)
		f.Fix = fix
	default:
		f.Severity, f.Fix = Note, fix
		f.Found = fmt.Sprintf("server-state-file %s is %s old", clip(c.StateFile), h.StateAge.Value.Round(time.Second))
		if h.StateAge.Value > time.Hour {
			f.Severity = Warning
		}
	}
	return f
}

const whyManager = "two that drive one HAProxy undo each other's work for ever"

func (h HAProxy) manager() Finding {
	f := Finding{ID: "haproxy.manager", Subject: h.Socket, Why: whyManager}
	if !h.Claim.OK() {
		return NotKnown(f.ID, h.Socket, h.Claim.Unknown, whyManager)
	}
	c := h.Claim.Value
	switch {
	case c.Held && h.Expected != "" && c.Config != "" && c.Config != h.Expected:
		f.Severity, f.Found = Warning, fmt.Sprintf("driven by the agent with pid %d and the file %s, not by %s", c.Pid, clip(c.Config), h.Expected)
		f.Fix = "stop one of the two, or give this file another haproxy.socket_file_path"
	case c.Held:
		f.Found = fmt.Sprintf("driven by the agent with pid %d", c.Pid)
	case h.Expected != "":
		f.Severity, f.Found = Note, "no agent drives it"
		f.Fix = "systemctl start myelin-agent, or: myelin agent -c " + h.Expected
	default:
		f.Found = "no agent drives it"
	}
	if h.Others.OK() && h.Others.Value > 0 {
		f.Severity = max(f.Severity, Note)
		f.Found += fmt.Sprintf("; %d other connections to its socket are open now", h.Others.Value)
		f.Fix = strings.TrimPrefix(f.Fix+"; ss -xp src "+h.Socket+" tells whose they are", "; ")
	}
	return f
}

// Manager is a running program that can drive HAProxy.
type Manager struct {
	Name    string // "Synapse", "Data Plane API"
	Pid     int
	Shadow  bool            // our agent is in its shadow, and changes nothing
	Sockets Known[[]string] // ours that its configuration names; not known where that cannot be read
}

func (m Manager) examine() Finding {
	f := Finding{ID: "haproxy.manager", Severity: Note, Subject: fmt.Sprintf("%s, pid %d", m.Name, m.Pid), Why: whyManager}
	stop := fmt.Sprintf("stop it and keep it from starting (systemctl disable --now ...), pid %d", m.Pid)
	switch {
	case !m.Sockets.OK():
		f.Found = "it runs on this host; whether it drives this HAProxy is not known: " + m.Sockets.Unknown
		f.Fix = "look into its configuration for the socket; if it is this one, " + stop
	case len(m.Sockets.Value) > 0 && m.Shadow:
		f.Severity, f.Found = OK, "it drives "+strings.Join(m.Sockets.Value, ", ")+", and our agent is its shadow, which changes nothing"
	case len(m.Sockets.Value) > 0:
		f.Severity, f.Found, f.Fix = Critical, "it runs on this host, and its configuration names "+strings.Join(m.Sockets.Value, ", "), stop
	default:
		f.Found = "it runs on this host; its configuration does not name our sockets"
	}
	return f
}

// Backend is one backend of an agent, and how its changes reach HAProxy.
type Backend struct {
	Name   string
	Rung   string // "backends", "servers", "slots" or "reload"; empty: not known
	Reason string // why it is no better one
	Tried  bool   // found out by the running agent; otherwise by HAProxy's version
}

const whyAlgorithm = "servers that HAProxy takes at run time cost nothing; slots run out and reloads cut"

func (b Backend) examine() Finding {
	f := Finding{ID: "haproxy.algorithm", Subject: b.Name, Why: whyAlgorithm}
	how := "by its version"
	if b.Tried {
		how = "as the running agent found out"
	}
	switch b.Rung {
	case "":
		return NotKnown(f.ID, b.Name, cmp.Or(b.Reason, "HAProxy was not asked"), whyAlgorithm)
	case "slots", "reload":
		f.Severity = Note
		if b.Rung == "reload" {
			f.Severity = Warning
		}
		f.Found = fmt.Sprintf("changes by %s, %s: %s", b.Rung, how, clipLong(b.Reason))
		f.Fix = "change the line that it names in the listen or backend lines of the service; for HAProxy 2.6 and later roundrobin, leastconn, random and first do, and hashes with \"hash-type consistent\""
	default:
		f.Found = fmt.Sprintf("changes at run time (%s), %s", b.Rung, how)
	}
	return f
}

func clipLong(s string) string {
	if len(s) > 300 {
		s = s[:300] + "..."
	}
	if strings.ContainsFunc(s, func(r rune) bool { return r < ' ' || r > '~' }) {
		return strconv.QuoteToASCII(s)
	}
	return s
}
