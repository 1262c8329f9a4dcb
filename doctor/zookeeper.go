package doctor

import (
	"cmp"
	"fmt"
	"slices"
	"strconv"
	"strings"
	"time"
)

// Ensemble is one ensemble of ZooKeeper, as seen from this host.
type Ensemble struct {
	Name    string // its hosts, as the file has them
	Members []Member
	Voters  Known[[]string] // the servers that vote, by the ensemble's own configuration
	Session Known[SessionFacts]
	Asked   time.Duration // session_timeout of the file
	Paths   []RegistryPath
	Write   *WriteTest // nil: there was none
}

// Member is one server of an ensemble, asked by itself.
type Member struct {
	Host    string
	Error   string // why it cannot be reached; empty: it was
	Silent  string // why it says nothing of itself, though it was reached ("srvr" is not allowed)
	Serves  bool   // it serves requests
	Mode    string // leader, follower, observer, standalone, read-only; empty: not known
	Version string // "3.8.4"; empty: not known
	Zxid    uint64
	HasZxid bool

	Connections Known[int] // from this host, now
	Limit       Known[int] // maxClientCnxns; 0: none
}

// SessionFacts are what a session was granted.
type SessionFacts struct {
	Timeout time.Duration
	Server  string
	Classic bool
}

// RegistryPath is a path that a file names.
type RegistryPath struct {
	Path     string
	Who      string // "service user-api"
	Missing  bool
	Unknown  string
	Children int
	Bytes    int // of a reply that lists them

	Registers bool // a registrar writes there
	Creator   bool // with acl = "creator"
	Overrides bool // the agent honours what operators put there
	ACL       Known[ACL]
}

// ACL is what the access list of a node lets people do.
type ACL struct {
	AnyoneCreates, AnyoneDeletes bool
	AnyoneWrites, AnyoneAdmins   bool
	MineCreates                  bool // by our login
	Text                         string
}

// WriteTest is a node that was made and deleted.
type WriteTest struct {
	Path  string
	Error string
	Took  time.Duration
}

// replyLimit is jute.maxbuffer's default: what Java clients take in one reply, and servers in one request.
const replyLimit = 1048575

func (e Ensemble) examine() []Finding {
	var out []Finding
	for _, m := range e.Members {
		out = append(out, m.examine())
		if f, ok := m.headroom(); ok {
			out = append(out, f)
		}
	}
	out = append(out, e.quorum(), e.hosts(), e.login())
	out = append(out, e.versions()...)
	out = append(out, e.lag()...)
	if e.Session.OK() {
		out = append(out, e.timeout())
	}
	for _, p := range e.Paths {
		out = append(out, p.examine()...)
	}
	if w := e.Write; w != nil {
		out = append(out, w.examine(e.Name))
	}
	return out
}

const whyMember = "a server that is away takes nobody's traffic, but the next one to go may take the quorum with it"

func (m Member) examine() Finding {
	f := Finding{ID: "zookeeper.member", Subject: m.Host, Why: whyMember}
	switch {
	case m.Error != "":
		f.Severity, f.Found = Warning, "not reached: "+clipLong(m.Error)
		f.Fix = "start it, or take it out of hosts if it is gone for good; systemctl status zookeeper on that host, then its log"
	case m.Silent != "":
		return NotKnown(f.ID, m.Host, "it was reached, but "+m.Silent, whyMember).withFix("4lw.commands.whitelist=srvr,mntr,conf in its zoo.cfg, then restart it, one server after another")
	case !m.Serves:
		f.Severity, f.Found = Warning, "reached, and it does not serve: it has no quorum, or has just started"
		f.Fix = "look whether it reaches the others at their quorum and election ports (2888, 3888), and into its log"
	default:
		f.Found = "serves as " + cmp.Or(m.Mode, "a server that does not say its role")
	}
	return f
}

func (f Finding) withFix(fix string) Finding { f.Fix = fix; return f }

const whyHeadroom = "beyond maxClientCnxns a server closes further connections of one address without a word"

// headroom is about connections from this host; false: nothing is known, and the default leaves room for many agents.
func (m Member) headroom() (Finding, bool) {
	const id = "zookeeper.connections"
	if m.Error != "" {
		return Finding{}, false
	}
	if !m.Connections.OK() {
		return NotKnown(id, m.Host, m.Connections.Unknown, whyHeadroom), true
	}
	n := m.Connections.Value
	limit, source := m.Limit.Value, "maxClientCnxns"
	if !m.Limit.OK() {
		limit, source = 60, "maxClientCnxns is not known ("+m.Limit.Unknown+"); the default"
	}
	f := Finding{ID: id, Subject: m.Host, Why: whyHeadroom, Found: fmt.Sprintf("%d from this host; %s is %d", n, source, limit)}
	if limit == 0 {
		f.Found = fmt.Sprintf("%d from this host; maxClientCnxns sets no limit", n)
		return f, true
	}
	switch {
	case n >= limit:
		f.Severity = Critical
	case n >= limit*4/5:
		f.Severity = Warning
	}
	if f.Severity > OK {
		f.Fix = fmt.Sprintf("maxClientCnxns=%d in zoo.cfg of every server, then restart them one after another; ss -tnp dst %s tells who has them", 2*limit, m.Host)
	}
	return f, true
}

const whyQuorum = "without a majority of the voting servers nothing can be registered, and sessions cannot be renewed"

func (e Ensemble) quorum() Finding {
	const id = "zookeeper.quorum"
	serving, silent, known := 0, 0, 0
	leader := false
	for _, m := range e.Members {
		switch {
		case m.Silent != "":
			silent++
		case m.Error != "" || !m.Serves:
			known++
		case m.Mode == "observer":
		default:
			known++
			serving++
			leader = leader || m.Mode == "leader" || m.Mode == "standalone"
		}
	}
	total := known + silent
	source := "of the servers in hosts"
	if e.Voters.OK() && len(e.Voters.Value) > 0 {
		total, source = len(e.Voters.Value), "by the ensemble's own configuration"
	}
	if silent > 0 {
		return NotKnown(id, e.Name, fmt.Sprintf("%d of the servers do not say what they are", silent), whyQuorum).
			withFix("4lw.commands.whitelist=srvr in their zoo.cfg")
	}
	majority := total/2 + 1
	f := Finding{ID: id, Subject: e.Name, Why: whyQuorum}
	spare := serving - majority
	switch {
	case total == 0 || serving == 0:
		f.Severity, f.Found = Critical, "no server serves"
		f.Fix = fmt.Sprintf("start servers until %d serve", max(majority, 1))
	case total == 1:
		f.Severity, f.Found = Warning, "one server alone: none may be lost"
		f.Fix = "run an ensemble of three; what is in force stays in force meanwhile, but nothing joins or leaves while the server is away"
	case leader && spare < 0:
		// A leader serves only with a majority, so there are voters that hosts does not name.
		f.Severity, f.Found = Note, fmt.Sprintf("there is a quorum, and %d of %d voting servers were seen; how many may be lost is not known", serving, total)
		f.Fix = "name all voting servers in hosts"
	case spare < 0:
		f.Severity, f.Found = Critical, fmt.Sprintf("%d of %d voting servers serve, %d are needed", serving, total, majority)
		f.Fix = fmt.Sprintf("start %d of those that are away", -spare)
	case spare == 0:
		f.Severity, f.Found = Warning, fmt.Sprintf("%d of %d voting servers serve (%s): none may be lost now", serving, total, source)
		f.Fix = "bring back the servers that are away"
		if total == 2 {
			f.Fix = "two servers are no safer than one: add a third"
		}
	default:
		f.Found = fmt.Sprintf("%d of %d voting servers serve (%s): %d may be lost now", serving, total, source, spare)
	}
	return f
}

const whyHosts = "who names one server only loses its registry with that server, and a client tries nobody else"

func (e Ensemble) hosts() Finding {
	const id = "zookeeper.hosts"
	if !e.Voters.OK() {
		return NotKnown(id, e.Name, e.Voters.Unknown, whyHosts)
	}
	f := Finding{ID: id, Subject: e.Name, Why: whyHosts, Found: fmt.Sprintf("hosts names %d servers, the ensemble has %d that vote", len(e.Members), len(e.Voters.Value))}
	if len(e.Members) < 2 && len(e.Voters.Value) > 1 {
		f.Severity = Warning
		f.Fix = "name all of them in hosts: " + some(clipAll(e.Voters.Value)) + " (with their client ports)"
	} else if len(e.Voters.Value) == 0 {
		f.Found = "a server alone: it has no list of members"
	}
	return f
}

func clipAll(words []string) []string {
	var out []string
	for _, w := range words {
		out = append(out, clip(w))
	}
	return out
}

const whyLogin = "sources and registrations live in a session; without one nothing is learned and nothing is registered"

func (e Ensemble) login() Finding {
	f := Finding{ID: "zookeeper.login", Subject: e.Name, Why: whyLogin}
	if !e.Session.OK() {
		f.Severity, f.Found = Critical, "no session: "+clipLong(e.Session.Unknown)
		f.Fix = "see zookeeper.member for the servers; otherwise check zookeeper.auth, zookeeper.tls, and that a firewall lets this host through"
		return f
	}
	f.Found = "a session came about with " + clip(e.Session.Value.Server)
	return f
}

const whyTimeout = "so long a dead host's instances stay listed, and so long a restart may take before its registrations are gone"

func (e Ensemble) timeout() Finding {
	s := e.Session.Value
	f := Finding{ID: "zookeeper.timeout", Subject: e.Name, Why: whyTimeout, Found: fmt.Sprintf("%s, as asked for", s.Timeout)}
	if e.Asked == 0 {
		f.Found = fmt.Sprintf("%s; the file asks for none", s.Timeout)
	} else if s.Timeout != e.Asked {
		f.Severity = Warning
		f.Found = fmt.Sprintf("the servers grant %s, the file asks for %s", s.Timeout, e.Asked)
		bound := "minSessionTimeout"
		if s.Timeout < e.Asked {
			bound = "maxSessionTimeout"
		}
		f.Fix = fmt.Sprintf(`zookeeper.session_timeout = "%s" in the file, or %s=%d in zoo.cfg of every server`, s.Timeout, bound, e.Asked.Milliseconds())
	}
	return f
}

const whyVersions = "servers before 3.6 have no persistent watches: one watch for each node is set instead, and every join costs a listing of its service"

func (e Ensemble) versions() []Finding {
	by := map[string][]string{}
	for _, m := range e.Members {
		if m.Version != "" {
			by[m.Version] = append(by[m.Version], m.Host)
		}
	}
	var all []string
	for v := range by {
		all = append(all, v)
	}
	slices.Sort(all)
	const id = "zookeeper.version"
	if len(all) == 0 {
		return []Finding{NotKnown(id, e.Name, "no server told", whyVersions)}
	}
	var out []Finding
	for _, v := range all {
		f := Finding{ID: id, Subject: e.Name, Why: whyVersions, Found: fmt.Sprintf("%s on %s", clip(v), some(by[v]))}
		switch {
		case older(v, 3, 5):
			f.Severity = Warning
			f.Found += ": no TLS, no list of members, and out of support"
			f.Fix = "upgrade the servers to 3.8 or later, one after another"
		case older(v, 3, 6):
			f.Severity = Note
			f.Fix = `upgrade the servers to 3.8 or later, one after another; until then watch = "classic" in the file saves one attempt`
		}
		out = append(out, f)
	}
	if len(all) > 1 {
		out = append(out, Finding{ID: id, Severity: Note, Subject: e.Name, Found: "the servers have several versions: " + some(clipAll(all)),
			Why: "a client that changes to an older server can lose its persistent watches, and starts its reading anew", Fix: "finish the upgrade"})
	}
	return out
}

const (
	whyLag = "who is connected to a server that is behind learns later who came and who left"

	// lagMost is more than asking the servers one after another makes out, some milliseconds of writes.
	lagMost = 10000
)

func (e Ensemble) lag() []Finding {
	var newest uint64
	for _, m := range e.Members {
		if m.HasZxid && m.Serves {
			newest = max(newest, m.Zxid)
		}
	}
	var out []Finding
	for _, m := range e.Members {
		if !m.HasZxid || !m.Serves {
			continue
		}
		f := Finding{ID: "zookeeper.lag", Subject: m.Host, Why: whyLag}
		switch {
		case m.Zxid>>32 != newest>>32:
			f.Severity = Warning
			f.Found = fmt.Sprintf("it is in epoch %d, others are in %d", m.Zxid>>32, newest>>32)
		default:
			behind := newest - m.Zxid
			f.Found = fmt.Sprintf("%d changes behind the newest", behind)
			if behind > lagMost {
				f.Severity = Warning
			}
		}
		if f.Severity > OK {
			f.Fix = "look at its disk and its garbage collection (mntr: zk_outstanding_requests, zk_avg_latency); restart it when it does not catch up"
		}
		out = append(out, f)
	}
	return out
}

const (
	whyReply = "Java clients (zkCli, Curator) refuse a longer listing than jute.maxbuffer; Myelin takes it"
	whyACL   = "whoever may delete under a path deletes its nodes, whatever the nodes' own ACL says: ZooKeeper asks the parent"
)

func (p RegistryPath) subject() string { return strings.TrimSpace(p.Path + " " + "(" + p.Who + ")") }

func (p RegistryPath) examine() []Finding {
	var out []Finding
	if p.Overrides {
		out = append(out, p.overridesACL())
		if !p.Registers {
			return out // no service's
		}
	}
	size := Finding{ID: "zookeeper.reply-size", Subject: p.subject(), Why: whyReply}
	switch {
	case p.Unknown != "":
		size = NotKnown(size.ID, size.Subject, clipLong(p.Unknown), whyReply)
	case p.Missing:
		size.Found = "the path is not there: nobody has registered yet"
		if !p.Registers {
			size.Severity, size.Fix = Note, "register an instance, or look whether the path is spelt as its registrars spell it: myelin services"
		}
	default:
		size.Found = fmt.Sprintf("%d nodes, a listing of %d bytes, %d%% of jute.maxbuffer's default", p.Children, p.Bytes, p.Bytes*100/replyLimit)
		if p.Bytes > replyLimit*7/10 {
			size.Severity = Warning
			size.Fix = "spread the service over several paths, shorten the nodes' names, or set -Djute.maxbuffer=" + strconv.Itoa(8*(replyLimit+1)) + " on all Java clients and servers"
		}
	}
	out = append(out, size)
	if p.Registers && !p.Missing && p.Unknown == "" {
		out = append(out, p.acl())
	}
	return out
}

const whyOverridesACL = "whoever may write there drains any instance of the whole fleet, or puts back what was drained: every agent honours it"

// overridesACL is about who may tell the whole fleet what to do.
func (p RegistryPath) overridesACL() Finding {
	const id, login, list = "zookeeper.overrides-acl", "in zkCli.sh, after addauth digest USER:PASSWORD: ", "auth::cdrwa,world:anyone:r"
	f := Finding{ID: id, Subject: p.Path, Why: whyOverridesACL}
	switch a := p.ACL.Value; {
	case p.Unknown != "":
		return NotKnown(id, p.Path, clipLong(p.Unknown), whyOverridesACL)
	case p.Missing:
		f.Severity, f.Found = Note, "the path is not there: the first override makes it, open to whom the node above is open to"
		f.Fix = login + "create the path part by part, then setAcl " + p.Path + " " + list
	case !p.ACL.OK():
		return NotKnown(id, p.Path, clipLong(p.ACL.Unknown), whyOverridesACL)
	case a.AnyoneCreates || a.AnyoneDeletes || a.AnyoneWrites || a.AnyoneAdmins:
		f.Severity, f.Found = Warning, `anyone may change overrides ("`+clip(a.Text)+`")`
		f.Fix = login + "setAcl " + p.Path + " " + list + "; the same for each override that is there: it keeps its own"
	default:
		f.Found = clip(a.Text)
	}
	return f
}

func (p RegistryPath) acl() Finding {
	f := Finding{ID: "zookeeper.acl", Subject: p.subject(), Why: whyACL}
	if !p.ACL.OK() {
		return NotKnown(f.ID, f.Subject, clipLong(p.ACL.Unknown), whyACL)
	}
	a := p.ACL.Value
	f.Found = clip(a.Text)
	switch {
	case !a.AnyoneCreates && !a.MineCreates:
		f.Severity, f.Found = Critical, "this login may not create nodes there: "+clip(a.Text)
		f.Fix = fmt.Sprintf("as who administers it, in zkCli.sh: setAcl %s with a part that lets this login create (c) and delete (d); or give the file zookeeper.auth of a user that may", p.Path)
	case p.Creator && a.AnyoneDeletes:
		f.Severity, f.Found = Warning, `acl = "creator" protects no node here: anyone may delete under this path ("`+clip(a.Text)+`")`
		f.Fix = fmt.Sprintf("in zkCli.sh, after addauth digest USER:PASSWORD: setAcl %s auth::cdrwa,world:anyone:cr", p.Path)
	}
	return f
}

const whyWrite = "a registration is such a node"

func (w WriteTest) examine(ensemble string) Finding {
	f := Finding{ID: "zookeeper.write", Subject: ensemble, Why: whyWrite}
	if w.Error != "" {
		f.Severity, f.Found = Critical, fmt.Sprintf("no node could be made under %s: %s", clip(w.Path), clipLong(w.Error))
		f.Fix = "give --write-test a path that is there, is no service's, and that this login may write to; see zookeeper.login and zookeeper.quorum otherwise"
		return f
	}
	f.Found = fmt.Sprintf("an ephemeral node under %s was made and deleted in %s", clip(w.Path), w.Took.Round(time.Millisecond))
	if w.Took > time.Second {
		f.Severity = Warning
		f.Fix = "writes are slow: look at the disk of ZooKeeper's transaction log (mntr: zk_avg_latency, zk_fsync_threshold_exceed_count)"
	}
	return f
}
