// Package doctor judges a host: facts about its kernel, its HAProxy, its ZooKeeper and its files go in, findings with
// their severity and their exact fix come out. It asks nobody itself.
package doctor

import (
	"cmp"
	"fmt"
	"slices"
	"strings"
	"time"
)

// Severity is how much a finding matters.
type Severity int

// From what is fine to what breaks, or will.
const (
	OK       Severity = iota // as it should be
	Note                     // worth knowing, or not known
	Warning                  // will hurt under load, or on a bad day
	Critical                 // hurts now
)

// String is the severity's stable word.
func (s Severity) String() string {
	switch s {
	case OK:
		return "ok"
	case Note:
		return "note"
	case Warning:
		return "warning"
	case Critical:
		return "critical"
	}
	return fmt.Sprintf("severity %d", int(s))
}

// MarshalText is String, for JSON.
func (s Severity) MarshalText() ([]byte, error) { return []byte(s.String()), nil }

// Finding is one thing that was looked at. The JSON names are part of the interface.
type Finding struct {
	ID       string   `json:"id"` // a stable word of Catalogue
	Severity Severity `json:"severity"`
	Subject  string   `json:"subject,omitempty"` // what it is about where there are several: a file, a socket, a server
	Found    string   `json:"found"`             // with the numbers
	Why      string   `json:"why"`               // it matters
	Fix      string   `json:"fix,omitempty"`     // a command, or a line of a file; empty: there is nothing to do
}

// Known is a fact, or the reason why it could not be found out.
type Known[T any] struct {
	Value   T
	Unknown string // empty: Value counts
}

// Is is a fact that is known.
func Is[T any](v T) Known[T] { return Known[T]{Value: v} }

// Not is a fact that is not known, and why.
func Not[T any](why string) Known[T] { return Known[T]{Unknown: cmp.Or(why, "no reason was given")} }

// Of is a fact as a question answered it.
func Of[T any](v T, err error) Known[T] {
	if err != nil {
		return Not[T](err.Error())
	}
	return Is(v)
}

// OK tells whether the fact is known.
func (k Known[T]) OK() bool { return k.Unknown == "" }

// Facts are all that was found out about a host. What is left out was not looked at, and nothing is said of it.
type Facts struct {
	Now        time.Time
	Kernel     *Kernel
	Clock      *Clock
	Processes  []Process  // of Myelin and of HAProxy
	Listens    []Listen   // ports that the configuration has somebody listen on
	HAProxy    []HAProxy  // one for each admin socket
	Backends   []Backend  // of an agent
	Managers   []Manager  // other programs that may drive HAProxy
	Ensembles  []Ensemble // of ZooKeeper
	Paths      []Path     // files and folders that a role needs
	Secrets    []Secret   // files that hold one
	Certs      []Certificate
	Unknown    []Finding // what could not be looked at, already worded
	WithoutRun bool      // no role runs on this host
}

// Examine judges the facts: pure, and the same findings for equal facts. They are sorted by severity, the worst first,
// then by id and subject.
func Examine(f Facts) []Finding {
	out := slices.Clone(f.Unknown)
	if f.Kernel != nil {
		out = append(out, f.Kernel.examine(demandOf(f), f.Listens)...)
	}
	if f.Clock != nil {
		out = append(out, f.Clock.examine()...)
	}
	for _, p := range f.Processes {
		out = append(out, p.examine()...)
	}
	for _, h := range f.HAProxy {
		out = append(out, h.examine(f.Now)...)
	}
	for _, b := range f.Backends {
		out = append(out, b.examine())
	}
	for _, m := range f.Managers {
		out = append(out, m.examine())
	}
	for _, e := range f.Ensembles {
		out = append(out, e.examine()...)
	}
	for _, p := range f.Paths {
		out = append(out, p.examine())
	}
	for _, s := range f.Secrets {
		out = append(out, s.examine())
	}
	for _, c := range f.Certs {
		out = append(out, c.examine(f.Now))
	}
	slices.SortStableFunc(out, func(a, b Finding) int {
		return cmp.Or(cmp.Compare(b.Severity, a.Severity), strings.Compare(a.ID, b.ID), strings.Compare(a.Subject, b.Subject))
	})
	// Two roles that look at one thing say the same of it.
	return slices.CompactFunc(out, func(a, b Finding) bool { return a.ID == b.ID && a.Subject == b.Subject && a.Found == b.Found })
}

// Worst is the gravest severity among the findings; OK when there are none.
func Worst(all []Finding) Severity {
	worst := OK
	for _, f := range all {
		worst = max(worst, f.Severity)
	}
	return worst
}

// NotKnown is the finding for what could not be looked at.
func NotKnown(id, subject, reason, why string) Finding {
	return Finding{ID: id, Severity: Note, Subject: subject, Found: "not known: " + reason, Why: why}
}

// Entry is one line of the catalogue.
type Entry struct{ ID, About string }

// Catalogue lists every id that a finding can have, with what it looks at. The documentation has the same list.
func Catalogue() []Entry {
	return []Entry{
		{"clock.jump", "the wall clock against the monotonic one, during the run"},
		{"clock.registry", "this host's clock against ZooKeeper's, by the time of a node that --write-test makes"},
		{"clock.sync", "whether the kernel is told the right time by somebody (adjtimex)"},
		{"config.file", "a file of a running role that cannot be read or has mistakes"},
		{"haproxy.algorithm", "how changes of each backend reach HAProxy: at run time, by slots or by reloads, and why"},
		{"haproxy.config", "whether the file that HAProxy was started with can be read"},
		{"haproxy.connections", "connections now against maxconn, and maxconn against what the file asks for"},
		{"haproxy.expose-fd", "whether the admin socket hands its listeners over at a reload"},
		{"haproxy.hard-stop", "whether hard-stop-after ends old workers"},
		{"haproxy.manager", "who drives the HAProxy: the claim, other connections, Synapse, a Data Plane API"},
		{"haproxy.old-workers", "workers of earlier reloads that are alive"},
		{"haproxy.server-state", "server-state-file: its age, and slots, which it must not be used with"},
		{"haproxy.socket", "whether the admin socket answers, and at which level"},
		{"haproxy.socket-mode", "who may connect to the admin socket"},
		{"haproxy.threads", "nbthread against the processors"},
		{"haproxy.version", "the version, and its known bugs"},
		{"kernel.conntrack", "the table of tracked connections, where it is loaded"},
		{"kernel.file-max", "file descriptors of the whole system"},
		{"kernel.fin-timeout", "tcp_fin_timeout, which is about FIN-WAIT-2 and not about TIME-WAIT"},
		{"kernel.listen-overflows", "connections that found a full queue since the boot"},
		{"kernel.port-overlap", "ports that services listen on and that outgoing connections may take"},
		{"kernel.port-range", "ip_local_port_range against the connections to one destination"},
		{"kernel.release", "the version of the kernel"},
		{"kernel.somaxconn", "somaxconn against the backlog that HAProxy asks for"},
		{"kernel.syn-backlog", "tcp_max_syn_backlog, and tcp_syncookies, without which it counts"},
		{"kernel.tw-recycle", "settings of tcp_tw_recycle that were left over: dead since Linux 4.12, harmful before"},
		{"kernel.tw-reuse", "tcp_tw_reuse and the tcp_timestamps that it needs"},
		{"permission.path", "files and folders that the role's user must read or write"},
		{"permission.secret", "who may read files with secrets"},
		{"process.agent", "whether the role of the file runs on this host"},
		{"process.files", "file descriptors of the running processes against their limits and maxconn"},
		{"tls.expiry", "how long certificates are good for"},
		{"zookeeper.acl", "whether nodes under the creator ACL can be deleted by others through an open parent, and whether this user may create"},
		{"zookeeper.connections", "connections from this host to a server against its maxClientCnxns"},
		{"zookeeper.hosts", "the servers of the file against those that the ensemble has"},
		{"zookeeper.lag", "how far a server is behind the others"},
		{"zookeeper.login", "whether a session comes about, with the login of the file"},
		{"zookeeper.member", "each server asked by itself: reachable, serving, role"},
		{"zookeeper.overrides-acl", "who may write below overrides_path, and so drain instances of the whole fleet"},
		{"zookeeper.quorum", "how many servers may be lost now"},
		{"zookeeper.reply-size", "the listing of each path against jute.maxbuffer"},
		{"zookeeper.timeout", "the session timeout that the servers grant against the one of the file"},
		{"zookeeper.version", "versions of the servers, and what follows from old ones"},
		{"zookeeper.write", "a node made and deleted with --write-test"},
	}
}
