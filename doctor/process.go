package doctor

import "fmt"

// Process is a running process of Myelin or of HAProxy.
type Process struct {
	Role    string // "agent", "registrar", "haproxy"
	Pid     int
	Soft    Known[int64] // limit of open files in force; -1: none
	Hard    Known[int64]
	Open    Known[int64] // files that are open now
	Maxconn int          // of HAProxy; 0: not known
}

func (p Process) subject() string { return fmt.Sprintf("%s, pid %d", p.Role, p.Pid) }

const whyFiles = "each connection is an open file; without one left a process accepts nothing and opens nothing"

// filesOf is how many files a HAProxy needs for so many connections: each has two ends, and there are checks and
// listeners beside them.
func filesOf(maxconn int) int64 { return int64(2*maxconn + 100) }

func (p Process) examine() []Finding {
	const id = "process.files"
	if !p.Soft.OK() {
		return []Finding{NotKnown(id, p.subject(), p.Soft.Unknown, whyFiles)}
	}
	f := Finding{ID: id, Subject: p.subject(), Why: whyFiles, Found: "limit " + filesText(p.Soft.Value)}
	if p.Hard.OK() && p.Hard.Value != p.Soft.Value {
		f.Found += " (hard " + filesText(p.Hard.Value) + ")"
	}
	if p.Open.OK() {
		f.Found = fmt.Sprintf("%d open, %s", p.Open.Value, f.Found)
	} else {
		f.Found += "; how many are open is not known: " + p.Open.Unknown
		f.Severity = Note
	}
	limit := p.Soft.Value
	if p.Maxconn > 0 {
		f.Found += fmt.Sprintf("; maxconn %d needs %d", p.Maxconn, filesOf(p.Maxconn))
		if limit >= 0 && limit < filesOf(p.Maxconn) {
			f.Severity, f.Fix = max(f.Severity, Warning), p.raise(filesOf(p.Maxconn))
		}
	}
	if limit >= 0 && p.Open.OK() {
		if s := fill(p.Open.Value, limit); s > OK {
			f.Severity, f.Fix = max(f.Severity, s), p.raise(max(2*limit, 65536))
		}
	}
	if limit >= 0 && limit < 4096 && f.Severity < Warning && p.Role != "haproxy" {
		f.Severity, f.Fix = Note, p.raise(65536)
	}
	return []Finding{f}
}

// raise is how a process gets more files.
func (p Process) raise(to int64) string {
	unit := map[string]string{"agent": "myelin-agent", "registrar": "myelin-registrar", "haproxy": "haproxy"}[p.Role]
	fix := fmt.Sprintf("LimitNOFILE=%d in the [Service] section that systemctl edit %s opens, then restart it", to, unit)
	if p.Role == "haproxy" {
		fix += " (where Myelin runs HAProxy, that is myelin-agent, and HAProxy has to be started anew)"
	}
	return fix
}

func filesText(n int64) string {
	if n < 0 {
		return "none"
	}
	return fmt.Sprint(n)
}
