// Package fsck finds what is wrong in a registry: it takes in the nodes of a tree, one by one, and says what a person
// should look at, and what may be deleted. It is pure: others read the registry, ask endpoints and delete.
package fsck

import (
	"cmp"
	"slices"
	"strings"
	"time"

	"github.com/myelin-sd/myelin/discovery"
)

// Severity is how much a finding matters.
type Severity string

// The severities.
const (
	Error   Severity = "error"   // something does not work, or could not be looked at
	Warning Severity = "warning" // traffic goes where it should not, or will, or does not where it should
	Note    Severity = "note"    // worth knowing, and often meant
)

// rank orders severities, the worst first.
func (s Severity) rank() int { return slices.Index([]Severity{Error, Warning, Note}, s) }

// The ids of findings. They are part of the interface.
const (
	NotRead         = "not-read"
	Missing         = "missing-path"
	Orphan          = "orphan"
	NoOwner         = "no-owner"
	EmptyFolder     = "empty-folder"
	Twin            = "twin"
	NamesDiffer     = "names-differ"
	SharedEndpoint  = "shared-endpoint"
	Undecodable     = "undecodable"
	UnknownFormat   = "unknown-format"
	UnlabelledZone  = "unlabelled-zone"
	WeightZero      = "weight-zero"
	WeightRange     = "weight-range"
	LocalHost       = "local-host"
	ReplyLimit      = "reply-limit"
	Unconsumed      = "unconsumed"
	NoAnswer        = "no-answer"
	OverrideExpired = "override-expired"
	OverrideAimless = "override-aimless"
	OverrideIdle    = "override-idle"
)

// Finding is one thing to look at. Its JSON is part of the interface. All text of the registry in Detail is safe to
// print; Path is as it is in the registry.
type Finding struct {
	ID       string   `json:"id"` // one of the constants
	Severity Severity `json:"severity"`
	Path     string   `json:"path"`              // of the node or folder that it is about
	Service  string   `json:"service,omitempty"` // as agents call it, where it is about one
	Detail   string   `json:"detail"`            // one line
	Advice   string   `json:"advice"`            // what to do, one line

	Removal *Removal `json:"-"` // what gc may delete; nil: nothing
}

// Removal is a node that nobody seems to need.
type Removal struct {
	Node  Node
	Keep  *Node // must still stand when Node is deleted; nil: nothing has to
	Lives bool  // its owner's session lives, so that it goes only where an operator has named it
}

// Node is one node of the registry, as it was read.
type Node struct {
	Path              string
	Data              []byte // only looked at while it is taken in
	Owner             int64  // session of an ephemeral node, else 0
	Created, Modified time.Time
	Czxid, Mzxid      int64
	Version           int32
	Children          int
}

// Folder is a node that has children, or may have.
type Folder struct {
	Node
	Root      bool
	Names     int
	NameBytes int
}

// Options say how to judge.
type Options struct {
	Now       time.Time
	OlderThan time.Duration     // age from which what nobody has written is taken for left behind
	Services  map[string]string // paths of services that are known from a file, and their names
	Zones     map[string]string // paths of services whose zone has another label than "zone"

	// Apart are paths of what is no registration, and is taken in otherwise or not at all: overrides, consumers.
	Apart []string

	// Whole tells that all services of the registry are looked at, so that an override of any other has no target.
	Whole bool
}

// Checker takes in a tree and says what is wrong with it. Its methods must not be called at the same time.
type Checker struct {
	o       Options
	decoder discovery.AnyDecoder
	folders map[string]*folder
	found   []Finding // what is known at once

	overrides []overrideNode
	consumed  map[string]bool
	consumers int
	unsure    bool // there may be consumers that are not known
	nodes     int
}

// folder is what is kept of a folder and of its leaves.
type folder struct {
	Folder
	leaves  []leaf
	service bool // a child registers, or a file says so
}

// leaf is what is kept of a node without children.
type leaf struct {
	name              string
	owner             int64
	created, modified time.Time
	czxid, mzxid      int64
	version           int32

	endpoint discovery.Endpoint // valid: it is an instance
	instance string             // its name
	leaving  bool
	zoned    bool
	weight   int // -1: none, or an unusable one; else 0 and more

	reject *discovery.RejectError // nil: it decodes, or has no data and no owner
	form   form
}

// New returns a checker that has taken in nothing.
func New(o Options) *Checker {
	return &Checker{o: o, folders: map[string]*folder{}}
}

// Folder takes in a folder. It comes before its children.
func (c *Checker) Folder(f Folder) {
	if c.apart(f.Path) {
		return
	}
	c.nodes++
	_, known := c.o.Services[f.Path]
	c.folders[f.Path] = &folder{Folder: f, service: known}
	c.limits(f)
}

// Node takes in a child of a folder. One with children is taken in as a folder as well.
func (c *Checker) Node(dir string, n Node) {
	f := c.folders[dir]
	if f == nil || n.Children > 0 || c.apart(n.Path) {
		return
	}
	c.nodes++
	if overrides(n) { // it has a host and a port, and lies where nobody has said that overrides do
		return
	}
	l := c.leaf(f, n)
	f.service = f.service || l.owner != 0 || l.endpoint.IsValid()
	if f.leaves == nil { // a folder with leaves seldom has folders too
		f.leaves = make([]leaf, 0, f.Names)
	}
	f.leaves = append(f.leaves, l)
}

// apart tells whether a path lies where no registrations are looked for.
func (c *Checker) apart(path string) bool {
	return slices.ContainsFunc(c.o.Apart, func(p string) bool { return path == p || strings.HasPrefix(path, p+"/") })
}

// Unread takes in that a node, and what is below it, could not be read.
func (c *Checker) Unread(path, why string) {
	c.add(Finding{ID: NotRead, Severity: Error, Path: path, Detail: "not read: " + safe(why),
		Advice: "nothing is known of it and of what lies below; see why, and ask again"})
}

// Absent takes in that the path of a service from a file does not exist.
func (c *Checker) Absent(path string) {
	c.add(Finding{ID: Missing, Severity: Warning, Path: path, Service: c.o.Services[path], Detail: "the path does not exist",
		Advice: "correct discovery.path, or start a registrar that makes it with the first instance"})
}

func (c *Checker) add(f Finding) { c.found = append(c.found, f) }

// Counts is how much was taken in.
type Counts struct {
	Nodes     int `json:"nodes"`
	Services  int `json:"services"`
	Instances int `json:"instances"`
	Consumers int `json:"consumers"`
}

// Counts counts.
func (c *Checker) Counts() Counts {
	n := Counts{Nodes: c.nodes, Consumers: c.consumers}
	for _, f := range c.folders {
		if !f.service {
			continue
		}
		n.Services++
		for i := range f.leaves {
			if f.leaves[i].endpoint.IsValid() {
				n.Instances++
			}
		}
	}
	return n
}

// Findings judges what was taken in: the worst first, then by path.
func (c *Checker) Findings() []Finding {
	out := slices.Clone(c.found)
	add := func(f Finding) { out = append(out, f) }
	for _, path := range c.paths() {
		f := c.folders[path]
		if f.service {
			c.service(f, add)
		} else {
			c.plain(f, add)
		}
	}
	c.shared(add)
	c.unconsumed(add)
	c.judgeOverrides(add)
	slices.SortStableFunc(out, func(a, b Finding) int {
		return cmp.Or(cmp.Compare(a.Severity.rank(), b.Severity.rank()), strings.Compare(a.Path, b.Path), strings.Compare(a.ID, b.ID))
	})
	return out
}

// paths are those of the folders, sorted.
func (c *Checker) paths() []string {
	paths := make([]string, 0, len(c.folders))
	for p := range c.folders {
		paths = append(paths, p)
	}
	slices.Sort(paths)
	return paths
}

// old tells whether something was left alone for long.
func (c *Checker) old(t time.Time) bool { return c.o.Now.Sub(t) >= c.o.OlderThan }

// name is how agents call the service at a path: as the file says, or as its last part.
func (c *Checker) name(path string) string {
	if name, ok := c.o.Services[path]; ok {
		return name
	}
	return base(path)
}

// node is a leaf as it was taken in, without its data.
func (l *leaf) node(dir string) Node {
	return Node{Path: join(dir, l.name), Owner: l.owner, Created: l.created, Modified: l.modified, Czxid: l.czxid, Mzxid: l.mzxid, Version: l.version}
}

func join(dir, name string) string { return strings.TrimSuffix(dir, "/") + "/" + name }

// base is the last part of a path.
func base(path string) string { return path[strings.LastIndexByte(path, '/')+1:] }
