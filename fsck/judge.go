package fsck

import (
	"cmp"
	"fmt"
	"maps"
	"slices"
	"strings"
	"time"

	"github.com/myelin-sd/myelin/discovery"
)

// replyMost is what a client takes as one reply: jute.maxbuffer, 1 MiB. A Java client with it cannot list a folder whose
// names are longer, though servers answer with any length.
const replyMost = 1 << 20

// limits judges how much one listing of a folder is: each name has its length before it.
func (c *Checker) limits(f Folder) {
	size := f.NameBytes + 4*f.Names
	finding := Finding{ID: ReplyLimit, Severity: Warning, Path: f.Path,
		Detail: fmt.Sprintf("listing its %d children takes %d bytes, %d %% of the 1 MiB that readers take by default", f.Names, size, size*100/replyMost),
		Advice: "raise jute.maxbuffer of all Java readers, use shorter node names, or spread the service over several paths"}
	switch {
	case size >= replyMost:
		finding.Severity = Error
	case size < replyMost/4*3:
		return
	}
	c.add(finding)
}

// plain judges a folder that is no service.
func (c *Checker) plain(f *folder, add func(Finding)) {
	for i := range f.leaves {
		l := &f.leaves[i]
		path := join(f.Path, l.name)
		switch {
		case l.form != formNone && !f.Root:
			c.undecodable(f, l, func(found Finding) {
				if found.Removal != nil { // where nothing registers it may be anything
					found.Removal, found.Advice = nil, "correct what writes it, or delete it by hand"
				}
				add(found)
			})
		case c.old(l.created):
			add(c.empty(path, l.created, l.form != formNone))
		}
	}
}

// empty is the finding of a folder without children.
func (c *Checker) empty(path string, created time.Time, data bool) Finding {
	f := Finding{ID: EmptyFolder, Severity: Note, Path: path, Service: c.o.Services[path],
		Detail: "it has no children, and was made " + age(c.o.Now, created) + " ago", Advice: "delete it if the service is gone for good; registrars make it again"}
	if data {
		f.Detail += "; it has data, which may be configuration"
	}
	return f
}

// service judges a folder with registrations.
func (c *Checker) service(f *folder, add func(Finding)) {
	if f.Names == 0 && f.Root && c.old(f.Created) {
		add(c.empty(f.Path, f.Created, false))
	}
	for i := range f.leaves {
		l := &f.leaves[i]
		if l.reject != nil {
			c.undecodable(f, l, add)
			continue
		}
		c.instance(f, l, add)
	}
	c.twins(f, add)
	c.zones(f, add)
}

// undecodable judges a leaf that is no instance.
func (c *Checker) undecodable(f *folder, l *leaf, add func(Finding)) {
	n := l.node(f.Path)
	found := Finding{ID: Undecodable, Severity: Warning, Path: n.Path, Service: c.name(f.Path),
		Detail: l.reject.Reason + ": " + l.reject.Detail + "; " + written(c.o.Now, n),
		Advice: "correct what registers it; nobody sends traffic there"}
	switch {
	case l.reject.Reason == discovery.ReasonStatus:
		return // it says itself that it takes no traffic
	case l.form == formNone && l.owner == 0:
		if c.old(l.created) {
			add(c.empty(n.Path, l.created, false))
		}
		return
	case l.form == formNowhere:
		found.ID = LocalHost
		found.Detail = "the host is the unspecified address, which is no machine's; " + written(c.o.Now, n)
		found.Advice = "let the registrar's host be the address that others reach the service at"
	case l.form == formUnknown:
		found.ID = UnknownFormat
		found.Detail = "the data is of no format that Myelin knows (nerve, serverset, curator); " + written(c.o.Now, n)
		found.Advice = "if it is no registration, keep it elsewhere; if it is one, register in one of these formats too"
	}
	if l.owner == 0 && c.old(l.modified) && found.ID == Undecodable {
		found.Removal = &Removal{Node: n}
		found.Advice = "correct what writes it, or delete it: myelin gc"
	}
	add(found)
}

// instance judges one registration by itself.
func (c *Checker) instance(f *folder, l *leaf, add func(Finding)) {
	one := func(id string, s Severity, detail, advice string) {
		add(Finding{ID: id, Severity: s, Path: join(f.Path, l.name), Service: c.name(f.Path), Detail: l.endpoint.String() + ": " + detail, Advice: advice})
	}
	if l.owner == 0 {
		n := l.node(f.Path)
		if c.old(l.modified) {
			add(Finding{ID: Orphan, Severity: Warning, Path: n.Path, Service: c.name(f.Path), Removal: &Removal{Node: n},
				Detail: l.endpoint.String() + ": a persistent node that nobody renews; " + written(c.o.Now, n),
				Advice: "if nothing keeps it on purpose, delete it: myelin gc"})
		} else {
			one(NoOwner, Note, "a persistent node: it stays when the instance dies; "+written(c.o.Now, n),
				"give the registration a ttl, or register with an ephemeral node")
		}
	}
	switch {
	case l.weight == 0:
		one(WeightZero, Warning, "weight 0, so it gets no traffic", "raise the weight, or use myelin drain, which has an author and an end")
	case l.weight > maxWeight:
		one(WeightRange, Warning, fmt.Sprintf("weight %d; HAProxy has 0 to %d, so agents count it as %d", l.weight, maxWeight, maxWeight), "choose weights from 1 to 256")
	case l.weight == outOfRange:
		one(WeightRange, Warning, "the weight is no whole number from 0, and is ignored", "choose weights from 1 to 256")
	}
	if local(l.endpoint) {
		one(LocalHost, Warning, "a loopback address, so every host connects to itself", "let the registrar's host be the address that others reach the service at")
	}
}

// twins judges endpoints that stand more than once. What counts is a node with a session, and the youngest of these: it
// is of the process that runs now.
func (c *Checker) twins(f *folder, add func(Finding)) {
	at := make([]*leaf, 0, len(f.leaves))
	for i := range f.leaves {
		if l := &f.leaves[i]; l.endpoint.IsValid() && !l.leaving {
			at = append(at, l)
		}
	}
	slices.SortFunc(at, func(a, b *leaf) int {
		if c := a.endpoint.Compare(b.endpoint); c != 0 { // as it is for nearly all: the rest is not worked out
			return c
		}
		return cmp.Or(owned(a)-owned(b), cmp.Compare(a.czxid, b.czxid), strings.Compare(a.name, b.name))
	})
	for len(at) > 0 {
		n := 1
		for n < len(at) && at[n].endpoint == at[0].endpoint {
			n++
		}
		for _, l := range at[:n-1] {
			c.twin(f, l, at[n-1], add)
		}
		at = at[n:]
	}
}

// owned is 1 for a node with a session, else 0.
func owned(l *leaf) int {
	if l.owner != 0 {
		return 1
	}
	return 0
}

func (c *Checker) twin(f *folder, l, youngest *leaf, add func(Finding)) {
	n, keep := l.node(f.Path), youngest.node(f.Path)
	found := Finding{ID: Twin, Severity: Warning, Path: n.Path, Service: c.name(f.Path),
		Detail: fmt.Sprintf("%s stands twice: here with %s, and with %s in %s", l.endpoint, session(l.owner), session(youngest.owner), safe(youngest.name)),
		Advice: "one goes by itself when its session ends; if it does not, two registrars have the same service: stop one, or myelin gc --twins " + safe(f.Path)}
	if l.instance != youngest.instance {
		found.ID = NamesDiffer
		found.Detail += fmt.Sprintf("; the names differ, %s and %s, so HAProxy has two servers for one endpoint", quoted(l.instance), quoted(youngest.instance))
		found.Advice = "let one registrar register the service under one name; for a node left behind: myelin gc --twins " + safe(f.Path)
	}
	switch {
	case l.owner != 0:
		found.Removal = &Removal{Node: n, Keep: &keep, Lives: true}
	case c.old(l.modified):
		return // an orphan, told as one
	}
	add(found)
}

// zones judges services of which some instances have a zone.
func (c *Checker) zones(f *folder, add func(Finding)) {
	var without []string
	with := 0
	for i := range f.leaves {
		switch l := &f.leaves[i]; {
		case !l.endpoint.IsValid():
		case l.zoned:
			with++
		default:
			without = append(without, l.endpoint.String())
		}
	}
	if with == 0 || len(without) == 0 {
		return
	}
	slices.Sort(without)
	add(Finding{ID: UnlabelledZone, Severity: Warning, Path: f.Path, Service: c.name(f.Path),
		Detail: fmt.Sprintf("%d of %d instances have no label %s: %s", len(without), len(without)+with, safe(c.zone(f.Path)), some(without)),
		Advice: "give them the label: what goes by zones leaves them out, or counts them as far away"})
}

// shared notes endpoints of several services.
func (c *Checker) shared(add func(Finding)) {
	first := make(map[discovery.Endpoint]string, c.nodes)
	type pair struct{ one, other string }
	both := map[pair][]string{}
	for _, path := range c.paths() {
		f := c.folders[path]
		for i := range f.leaves {
			e := f.leaves[i].endpoint
			if !e.IsValid() {
				continue
			}
			before, ok := first[e]
			switch {
			case !ok:
				first[e] = path
			case before != path: // else twins, which are told as such
				both[pair{before, path}] = append(both[pair{before, path}], e.String())
			}
		}
	}
	for p, endpoints := range both {
		slices.Sort(endpoints)
		endpoints = slices.Compact(endpoints) // twins over there
		add(Finding{ID: SharedEndpoint, Severity: Note, Path: p.other, Service: c.name(p.other),
			Detail: fmt.Sprintf("%s also in %s: %s", count(len(endpoints), "endpoint is", "endpoints are"), safe(p.one), some(endpoints)),
			Advice: "fine for one service in two formats or under two names; else a registration points at a stranger's port"})
	}
}

// Consumer takes in that an agent reads services' paths.
func (c *Checker) Consumer(paths []string) {
	if c.consumed == nil {
		c.consumed = map[string]bool{}
	}
	c.consumers++
	for _, p := range paths {
		c.consumed[p] = true
	}
}

// Unsure takes in that there may be agents of which it is not known what they read.
func (c *Checker) Unsure() { c.unsure = true }

// unconsumed notes services that no agent reads, where agents tell.
func (c *Checker) unconsumed(add func(Finding)) {
	if c.consumers == 0 || c.unsure {
		return
	}
	for _, path := range slices.Sorted(maps.Keys(c.folders)) {
		if f := c.folders[path]; f.service && !c.consumed[path] {
			add(Finding{ID: Unconsumed, Severity: Note, Path: path, Service: c.name(path),
				Detail: fmt.Sprintf("of the agents that tell what they read (%d) none reads it", c.consumers),
				Advice: "if nobody else reads it (other tools, agents without consumers_path), the service can be retired"})
		}
	}
}

// Endpoints are those of all instances that do not leave, each once, sorted.
func (c *Checker) Endpoints() []discovery.Endpoint {
	all := map[discovery.Endpoint]bool{}
	for _, f := range c.folders {
		for i := range f.leaves {
			if l := &f.leaves[i]; l.endpoint.IsValid() && !l.leaving {
				all[l.endpoint] = true
			}
		}
	}
	return slices.SortedFunc(maps.Keys(all), discovery.Endpoint.Compare)
}

// Silent takes in which endpoints did not answer, and why.
func (c *Checker) Silent(why map[discovery.Endpoint]string) {
	for _, path := range c.paths() {
		f := c.folders[path]
		for i := range f.leaves {
			l := &f.leaves[i]
			if reason, ok := why[l.endpoint]; ok && !l.leaving {
				c.add(Finding{ID: NoAnswer, Severity: Warning, Path: join(path, l.name), Service: c.name(path),
					Detail: l.endpoint.String() + " does not take a connection from this host: " + safe(reason),
					Advice: "see whether the instance runs, and whether its checks ask the port that it registers"})
			}
		}
	}
}

// quoted is a name, or words for none.
func quoted(name string) string {
	if name == "" {
		return "no name"
	}
	return safe(name)
}

// some are the first few of a list.
func some(list []string) string {
	const few = 3
	if len(list) <= few {
		return strings.Join(list, ", ")
	}
	return fmt.Sprintf("%s and %d more", strings.Join(list[:few], ", "), len(list)-few)
}

func count(n int, one, many string) string {
	if n == 1 {
		return "1 " + one
	}
	return fmt.Sprintf("%d %s", n, many)
}

// written says who has a node, and when it was written.
func written(now time.Time, n Node) string {
	owner := "persistent"
	if n.Owner != 0 {
		owner = "of " + session(n.Owner)
	}
	return owner + ", written " + age(now, n.Modified) + " ago"
}

// age is a duration in one unit.
func age(now, t time.Time) string {
	switch d := now.Sub(t); {
	case d < time.Minute:
		return "less than a minute"
	case d < time.Hour:
		return count(int(d/time.Minute), "minute", "minutes")
	case d < 48*time.Hour:
		return count(int(d/time.Hour), "hour", "hours")
	default:
		return count(int(d/(24*time.Hour)), "day", "days")
	}
}
