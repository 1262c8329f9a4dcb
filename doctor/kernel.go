package doctor

import (
	"cmp"
	"fmt"
	"slices"
	"strconv"
	"strings"
)

// The values that packaging/sysctl.d/60-myelin.conf sets; the fixes name the same.
const (
	wantPortLow    = 10240
	wantPortHigh   = 65535
	wantTWReuse    = 1
	wantSomaxconn  = 16384
	wantSynBacklog = 16384
)

// Setting is one line of packaging/sysctl.d/60-myelin.conf.
type Setting struct{ Key, Value string }

// Line is the setting as sysctl.d has it.
func (s Setting) Line() string { return s.Key + " = " + s.Value }

// fix is the command that sets it until the next boot, and what makes it last.
func (s Setting) fix() string {
	value := s.Value
	if strings.Contains(value, " ") {
		value = `"` + value + `"`
	}
	return fmt.Sprintf("sysctl -w %s=%s, and for good: that line in /etc/sysctl.d/60-myelin.conf", s.Key, value)
}

// Settings are what the fixes of the kernel's findings name, in the order of packaging/sysctl.d/60-myelin.conf.
func Settings() []Setting {
	return []Setting{
		{"net.ipv4.ip_local_port_range", fmt.Sprint(wantPortLow, " ", wantPortHigh)},
		{"net.ipv4.tcp_tw_reuse", strconv.Itoa(wantTWReuse)},
		{"net.core.somaxconn", strconv.Itoa(wantSomaxconn)},
		{"net.ipv4.tcp_max_syn_backlog", strconv.Itoa(wantSynBacklog)},
	}
}

func setting(key string) Setting {
	all := Settings()
	return all[slices.IndexFunc(all, func(s Setting) bool { return s.Key == key })]
}

// Range is a range of ports. Both ends belong to it.
type Range struct{ From, To int }

// Size is how many ports there are in it.
func (r Range) Size() int { return max(0, r.To-r.From+1) }

// Kernel is what the kernel of a host is set to, and what it counts.
type Kernel struct {
	Release string // "6.1.0-18-amd64"; empty: not known

	PortRange  Known[Range]   // ip_local_port_range
	Reserved   Known[[]Range] // ip_local_reserved_ports
	TWReuse    Known[int64]   // 0 off, 1 on, 2 on for loopback
	Timestamps Known[int64]   // tcp_timestamps, 0: off
	Somaxconn  Known[int64]
	SynBacklog Known[int64] // tcp_max_syn_backlog
	Syncookies Known[int64] // 0: off
	FinTimeout Known[int64] // seconds
	Overflows  Known[int64] // ListenOverflows since the boot
	Files      Known[FileTable]
	Conntrack  Known[Conntrack]

	RecycleExists bool // the kernel still has tcp_tw_recycle
	Recycle       Known[int64]
	Leftovers     []Leftover // lines about tcp_tw_recycle
}

// FileTable is the system's table of open files.
type FileTable struct{ Open, Max int64 }

// Conntrack is the table of tracked connections.
type Conntrack struct {
	Loaded     bool
	Count, Max int64
}

// Leftover is a line of a sysctl file.
type Leftover struct {
	File string
	Line int
	Text string
}

// Listen is a port that somebody is configured to listen on.
type Listen struct {
	Port int
	Who  string // in words: "the frontend of user-api"
}

// demand is what is asked of the kernel.
type demand struct {
	maxconn int // of the largest HAProxy; 0: there is none, or it was not asked
	backlog int // the longest that HAProxy asks for; 0: not known
}

func demandOf(f Facts) demand {
	var d demand
	for _, h := range f.HAProxy {
		limit := h.Info.Value.Maxconn
		d.maxconn = max(d.maxconn, limit)
		if h.Config.OK() {
			d.backlog = max(d.backlog, h.Config.Value.Backlog(limit))
		}
	}
	return d
}

func (k Kernel) examine(d demand, listens []Listen) []Finding {
	out := []Finding{k.release(), k.portRange(d), k.portOverlap(listens), k.twReuse(), k.somaxconn(d), k.synBacklog(d), k.finTimeout(), k.overflows(), k.fileTable(), k.conntrack()}
	return append(out, k.recycle()...)
}

const whyRelease = "what the kernel can do, and which of its settings are dead, goes by its version"

func (k Kernel) release() Finding {
	if k.Release == "" {
		return NotKnown("kernel.release", "", "the release cannot be read", whyRelease)
	}
	f := Finding{ID: "kernel.release", Found: "Linux " + k.Release, Why: whyRelease}
	if older(k.Release, 4, 19) {
		f.Severity = Note
		f.Why = "before Linux 4.19 tcp_tw_reuse = 2 (loopback only) is not known, and before 5.4 somaxconn is 128 unless it is set"
	}
	return f
}

// older tells whether a release such as "4.11.3-arch" is before major.minor. One that cannot be read is not.
func older(release string, major, minor int) bool {
	parts := strings.SplitN(release, ".", 3)
	if len(parts) < 2 {
		return false
	}
	m, err := strconv.Atoi(parts[0])
	n, err2 := strconv.Atoi(leadingDigits(parts[1]))
	return err == nil && err2 == nil && (m < major || m == major && n < minor)
}

func leadingDigits(s string) string {
	return s[:len(s)-len(strings.TrimLeft(s, "0123456789"))]
}

// waitSeconds is how long a port stays in TIME-WAIT: a constant of the kernel.
const waitSeconds = 60

const whyPorts = "each connection to one address and port takes a port of its own, and keeps it for 60 s after it was closed here (TIME-WAIT); without one left connect fails"

func (k Kernel) portRange(d demand) Finding {
	const id = "kernel.port-range"
	if !k.PortRange.OK() {
		return NotKnown(id, "", k.PortRange.Unknown, whyPorts)
	}
	r := k.PortRange.Value
	f := Finding{ID: id, Why: whyPorts, Found: fmt.Sprintf("%d ports (%d-%d), good for %d new connections a second to one destination", r.Size(), r.From, r.To, r.Size()/waitSeconds)}
	if d.maxconn > 0 {
		f.Found += fmt.Sprintf("; HAProxy's maxconn is %d", d.maxconn)
	}
	switch {
	case d.maxconn > 0 && r.Size() < d.maxconn, r.Size() < 16384:
		f.Severity = Warning
	case r.Size() < 28000: // less than what kernels come with
		f.Severity = Note
	}
	if f.Severity > OK {
		f.Fix = setting("net.ipv4.ip_local_port_range").fix()
	}
	return f
}

const whyOverlap = "an outgoing connection can have the port just when the service is to listen on it, which then fails to start: address in use"

func (k Kernel) portOverlap(listens []Listen) Finding {
	const id = "kernel.port-overlap"
	if !k.PortRange.OK() {
		return NotKnown(id, "", k.PortRange.Unknown, whyOverlap)
	}
	if !k.Reserved.OK() {
		return NotKnown(id, "", k.Reserved.Unknown, whyOverlap)
	}
	in := func(r Range, port int) bool { return r.From <= port && port <= r.To }
	var ports []int
	var who []string
	for _, l := range listens {
		reserved := slices.ContainsFunc(k.Reserved.Value, func(r Range) bool { return in(r, l.Port) })
		if in(k.PortRange.Value, l.Port) && !reserved {
			ports = append(ports, l.Port)
			who = append(who, fmt.Sprintf("%d (%s)", l.Port, l.Who))
		}
	}
	if len(ports) == 0 {
		return Finding{ID: id, Why: whyOverlap, Found: fmt.Sprintf("none of the %d ports of the configuration lies unreserved in %d-%d", len(listens), k.PortRange.Value.From, k.PortRange.Value.To)}
	}
	slices.Sort(ports)
	slices.Sort(who)
	return Finding{ID: id, Severity: Warning, Why: whyOverlap,
		Found: fmt.Sprintf("in ip_local_port_range (%d-%d) and not reserved: %s", k.PortRange.Value.From, k.PortRange.Value.To, some(who)),
		Fix:   fmt.Sprintf("sysctl -w net.ipv4.ip_local_reserved_ports=%s, and for good: that line in /etc/sysctl.d/61-myelin-ports.conf", rangesOf(k.Reserved.Value, ports)),
	}
}

// rangesOf writes reserved ports and further ones as the kernel reads them: a setting replaces the one before.
func rangesOf(reserved []Range, ports []int) string {
	all := slices.Clone(reserved)
	for _, p := range slices.Compact(ports) {
		all = append(all, Range{p, p})
	}
	slices.SortFunc(all, func(a, b Range) int { return cmp.Compare(a.From, b.From) })
	var words []string
	for i := 0; i < len(all); i++ {
		r := all[i]
		for i+1 < len(all) && all[i+1].From <= r.To+1 {
			i++
			r.To = max(r.To, all[i].To)
		}
		if r.From == r.To {
			words = append(words, strconv.Itoa(r.From))
		} else {
			words = append(words, fmt.Sprintf("%d-%d", r.From, r.To))
		}
	}
	return strings.Join(words, ",")
}

// some is a list for a person: the first few, and how many more there are.
func some(words []string) string {
	const most = 5
	if len(words) > most {
		return fmt.Sprintf("%s and %d more", strings.Join(words[:most], ", "), len(words)-most)
	}
	return strings.Join(words, ", ")
}

const whyReuse = "tcp_tw_reuse lets an outgoing connection take a port that is in TIME-WAIT, after a second instead of 60; it is safe, unlike the dead tcp_tw_recycle"

func (k Kernel) twReuse() Finding {
	const id = "kernel.tw-reuse"
	if !k.TWReuse.OK() {
		return NotKnown(id, "", k.TWReuse.Unknown, whyReuse)
	}
	f := Finding{ID: id, Why: whyReuse}
	switch k.TWReuse.Value {
	case 0:
		f.Severity, f.Found = Warning, "tcp_tw_reuse = 0: off, for all connections"
	case 1:
		f.Found = "tcp_tw_reuse = 1: on, for all outgoing connections"
	case 2:
		f.Severity, f.Found = Note, "tcp_tw_reuse = 2: on for loopback only, so for clients of the sidecar, but not from HAProxy to instances on other hosts"
	default:
		f.Severity, f.Found = Note, fmt.Sprintf("tcp_tw_reuse = %d: no value that is known", k.TWReuse.Value)
	}
	if k.Timestamps.OK() && k.Timestamps.Value == 0 && k.TWReuse.Value != 0 {
		f.Severity, f.Found = Warning, f.Found+"; but tcp_timestamps = 0, without which it does nothing"
		f.Fix = "sysctl -w net.ipv4.tcp_timestamps=1, and for good: that line in /etc/sysctl.d/60-myelin.conf"
		return f
	}
	if f.Severity > OK {
		f.Fix = setting("net.ipv4.tcp_tw_reuse").fix()
	}
	return f
}

const whySomaxconn = "it cuts the queue of connections that wait to be accepted, whatever a bind line asks for; a burst that does not fit is dropped and comes again after a second"

func (k Kernel) somaxconn(d demand) Finding {
	const id = "kernel.somaxconn"
	if !k.Somaxconn.OK() {
		return NotKnown(id, "", k.Somaxconn.Unknown, whySomaxconn)
	}
	have := int(k.Somaxconn.Value)
	f := Finding{ID: id, Found: fmt.Sprintf("somaxconn = %d", have), Why: whySomaxconn}
	if d.backlog > 0 {
		f.Found += fmt.Sprintf("; HAProxy asks for a backlog of %d (the backlog of a bind line, else its frontend's maxconn)", d.backlog)
	}
	switch {
	case have < 1024:
		f.Severity = Warning
	case have < d.backlog && have < wantSomaxconn:
		f.Severity = Note
	}
	if f.Severity > OK {
		f.Fix = setting("net.core.somaxconn").fix() + "; HAProxy takes it at its next reload"
	}
	return f
}

const whySynBacklog = "it bounds half-open connections where tcp_syncookies is off, and only there"

func (k Kernel) synBacklog(d demand) Finding {
	const id = "kernel.syn-backlog"
	if !k.SynBacklog.OK() {
		return NotKnown(id, "", k.SynBacklog.Unknown, whySynBacklog)
	}
	have, off := int(k.SynBacklog.Value), k.Syncookies.OK() && k.Syncookies.Value == 0
	f := Finding{ID: id, Found: fmt.Sprintf("tcp_max_syn_backlog = %d, tcp_syncookies is on", have), Why: whySynBacklog}
	if off {
		f.Found = fmt.Sprintf("tcp_max_syn_backlog = %d, and tcp_syncookies is off", have)
	} else if !k.Syncookies.OK() {
		f.Found = fmt.Sprintf("tcp_max_syn_backlog = %d; tcp_syncookies is not known: %s", have, k.Syncookies.Unknown)
	}
	switch want := min(max(d.backlog, 1024), wantSynBacklog); {
	case have >= want:
	case off:
		f.Severity = Warning
	case have < 128:
		f.Severity = Note
	}
	if f.Severity > OK {
		f.Fix = setting("net.ipv4.tcp_max_syn_backlog").fix()
	}
	return f
}

const whyFinTimeout = "it is the time in FIN-WAIT-2, of connections whose other end does not close; TIME-WAIT is 60 s in the kernel's code, and no setting shortens it"

func (k Kernel) finTimeout() Finding {
	const id = "kernel.fin-timeout"
	if !k.FinTimeout.OK() {
		return NotKnown(id, "", k.FinTimeout.Unknown, whyFinTimeout)
	}
	f := Finding{ID: id, Found: fmt.Sprintf("tcp_fin_timeout = %d s", k.FinTimeout.Value), Why: whyFinTimeout}
	if v := k.FinTimeout.Value; v < 5 || v > 60 {
		f.Severity = Note
		f.Fix = "sysctl -w net.ipv4.tcp_fin_timeout=60, which is what kernels come with; remove the line that sets it from /etc/sysctl.d"
	}
	return f
}

const whyOverflows = "each is a connection that found the queue of a listening socket full; it came again after a second, or never"

func (k Kernel) overflows() Finding {
	const id = "kernel.listen-overflows"
	if !k.Overflows.OK() {
		return NotKnown(id, "", k.Overflows.Unknown, whyOverflows)
	}
	f := Finding{ID: id, Found: fmt.Sprintf("%d since the boot, of all sockets of this host", k.Overflows.Value), Why: whyOverflows}
	if k.Overflows.Value > 0 {
		f.Severity = Note
		f.Fix = "ss -ltn shows whose queue is full (Recv-Q above Send-Q); raise its backlog and somaxconn, or have it accept faster"
	}
	return f
}

const whyFileTable = "beyond it no process on the host opens a file or a connection"

func (k Kernel) fileTable() Finding {
	const id = "kernel.file-max"
	if !k.Files.OK() {
		return NotKnown(id, "", k.Files.Unknown, whyFileTable)
	}
	t := k.Files.Value
	f := Finding{ID: id, Found: fmt.Sprintf("%d of %d open", t.Open, t.Max), Why: whyFileTable}
	if f.Severity = fill(t.Open, t.Max); f.Severity > OK {
		f.Fix = fmt.Sprintf("sysctl -w fs.file-max=%d, and for good: that line in /etc/sysctl.d/60-myelin.conf; lsof tells who has them", 2*t.Max)
	}
	return f
}

// fill is how bad it is that so much of a table is used.
func fill(used, most int64) Severity {
	switch {
	case most <= 0 || used < most/4*3:
		return OK
	case used < most/10*9:
		return Warning
	}
	return Critical
}

const whyConntrack = "when the table is full new connections are dropped without a word but in the kernel's log"

func (k Kernel) conntrack() Finding {
	const id = "kernel.conntrack"
	if !k.Conntrack.OK() {
		return NotKnown(id, "", k.Conntrack.Unknown, whyConntrack)
	}
	c := k.Conntrack.Value
	if !c.Loaded {
		return Finding{ID: id, Found: "connections are not tracked here", Why: whyConntrack}
	}
	f := Finding{ID: id, Found: fmt.Sprintf("%d of %d connections tracked", c.Count, c.Max), Why: whyConntrack}
	switch f.Severity = fill(c.Count, c.Max); {
	case f.Severity > OK:
		f.Fix = fmt.Sprintf("sysctl -w net.netfilter.nf_conntrack_max=%d, and for good: that line in /etc/sysctl.d; or do not track loopback: iptables -t raw -A OUTPUT -o lo -j NOTRACK", 2*c.Max)
	case c.Max < 65536:
		f.Severity = Note
		f.Fix = "sysctl -w net.netfilter.nf_conntrack_max=262144, and for good: that line in /etc/sysctl.d"
	}
	return f
}

func (k Kernel) recycle() []Finding {
	const id = "kernel.tw-recycle"
	const why = "it was removed in Linux 4.12, because it drops connections of clients behind one address (NAT); whoever advises it is out of date"
	if k.RecycleExists && k.Recycle.OK() && k.Recycle.Value != 0 {
		return []Finding{{ID: id, Severity: Critical, Found: fmt.Sprintf("tcp_tw_recycle = %d is in force on this old kernel", k.Recycle.Value), Why: why,
			Fix: "sysctl -w net.ipv4.tcp_tw_recycle=0, and remove the line that sets it"}}
	}
	var out []Finding
	for _, l := range k.Leftovers {
		out = append(out, Finding{ID: id, Severity: Note, Subject: fmt.Sprintf("%s:%d", l.File, l.Line), Why: why,
			Found: "a dead setting: " + clip(l.Text), Fix: fmt.Sprintf("sed -i %dd %s", l.Line, l.File)})
	}
	if out == nil {
		out = append(out, Finding{ID: id, Found: "no file sets it", Why: why})
	}
	return out
}

// clip bounds a text that somebody else wrote, and makes it printable.
func clip(s string) string {
	const most = 120
	if len(s) > most {
		s = s[:most] + "..."
	}
	if strings.ContainsFunc(s, func(r rune) bool { return r < ' ' || r > '~' }) {
		return strconv.QuoteToASCII(s)
	}
	return s
}
