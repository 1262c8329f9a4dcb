package zookeeper

import (
	"bytes"
	"errors"
	"fmt"
	"slices"
	"sort"
	"strings"
	"time"

	"github.com/go-zookeeper/zk"

	"github.com/myelin-sd/myelin/discovery"
)

// Decode turns one znode into an instance, whose Node is the znode's name. Its errors are about the one node; a
// *discovery.RejectError carries the reason.
type Decode func(node string, data []byte) (discovery.Instance, error)

// node is one child as it was last read. A child that changes gets a new one.
type node struct {
	name         string
	czxid, mzxid int64 // of the reading; both 0 when the name alone was decoded
	instance     discovery.Instance
	rejection    *discovery.Rejection // nil: instance is valid
	settled      bool                 // it is in the sorted lists
	dropped      bool                 // it left before it was
	listed       uint64               // the last listing that had it
	child        *discovery.Child     // as it is, where nothing is decoded
}

// view is what is known of one path's children. Its methods are pure but for the view itself.
type view struct {
	decode   Decode
	raw      bool // children are kept as they are
	nodes    map[string]*node
	listings uint64

	// What the latest snapshot holds, sorted. Snapshots share these with each other, so that they are never changed, only
	// replaced by settle.
	instances []discovery.Instance
	rejected  []discovery.Rejection

	fresh, left []*node // not yet in them, and still in them

	missing  bool
	changed  bool // since the last snapshot
	complete bool // it has been read to the end once

	// The directory's stamp as of which its names are known, and the session and the connection that showed it.
	stamp   stamp
	session int64
	gen     uint64

	// The data of the directory itself, where they are wanted, and the transaction that set them.
	data     []byte
	dataAt   int64
	dataRead bool

	// owed tells that a connection found the directory changed while there was none, and that its known children have not
	// been read since: each may be another node under the same name.
	owed bool
}

// stamp changes with every child that is created or deleted, and when the directory itself is. Data that is set in a
// child does not change it, nor does what happens below.
type stamp struct{ czxid, pzxid int64 }

func stampOf(st zk.Stat) stamp { return stamp{st.Czxid, st.Pzxid} }

// stamped takes in the stamp that came with the names. The first one on a connection shows whether watches have missed
// anything; another session may be one with another store.
func (v *view) stamped(st stamp, e *epoch) {
	if v.gen != e.gen && (st != v.stamp || v.session != e.session) {
		v.owed = true
	}
	v.stamp, v.session, v.gen = st, e.session, e.gen
}

func newView(decode Decode) *view {
	return &view{decode: decode, nodes: map[string]*node{}, instances: []discovery.Instance{}, rejected: []discovery.Rejection{}, changed: true}
}

// list takes in the children's names and returns those that have to be read for the first time, and those that are
// gone.
func (v *view) list(names []string) (unknown, gone []string) {
	v.missing, v.changed = false, v.changed || v.missing
	v.listings++
	if len(v.nodes) == 0 {
		v.nodes = make(map[string]*node, len(names))
	}
	present := 0
	for _, name := range names {
		n := v.nodes[name]
		if n == nil {
			if n = v.fromName(name); n == nil {
				unknown = append(unknown, name)
				continue
			}
			v.put(n)
		}
		n.listed = v.listings
		present++
	}
	if present < len(v.nodes) {
		for name, n := range v.nodes {
			if n.listed != v.listings {
				gone = append(gone, name)
				v.remove(name)
			}
		}
	}
	return unknown, gone
}

// fromName decodes a child whose name carries the payload, which saves reading it; nil for all others.
func (v *view) fromName(name string) *node {
	if _, ok := discovery.DecodeName(name); !ok || v.raw {
		return nil
	}
	in, err := v.decode(name, nil)
	if err != nil {
		return nil
	}
	return &node{name: name, instance: in}
}

// absent takes in that the path does not exist.
func (v *view) absent() {
	v.changed = v.changed || !v.missing
	v.missing = true
	for name := range v.nodes {
		v.remove(name)
	}
}

// same reports whether a reading is what is known of a child already.
func (n *node) same(r reading) bool {
	return n != nil && n.czxid == r.stat.Czxid && n.mzxid == r.stat.Mzxid
}

// decoded makes a child of its reading.
func (v *view) decoded(name string, r reading) *node {
	n := &node{name: name, czxid: r.stat.Czxid, mzxid: r.stat.Mzxid}
	created, modified := time.UnixMilli(r.stat.Ctime), time.UnixMilli(r.stat.Mtime)
	if v.raw {
		n.instance.Node = name
		n.child = &discovery.Child{Name: name, Data: bytes.Clone(r.data), Revision: r.stat.Version}
		return n
	}
	in, err := v.decode(name, r.data)
	if err != nil {
		reason := discovery.ReasonUndecodable
		detail := err.Error()
		if rejected, ok := errors.AsType[*discovery.RejectError](err); ok {
			reason, detail = rejected.Reason, rejected.Detail
		}
		n.rejection = &discovery.Rejection{
			Node: name, Reason: reason, Detail: detail, Session: r.stat.EphemeralOwner, Created: created, Modified: modified,
		}
		return n
	}
	in.Session, in.Created, in.Modified = r.stat.EphemeralOwner, created, modified
	n.instance = in
	return n
}

// unreadable takes in that a child may not be read. What is known of it stays.
func (v *view) unreadable(name string) {
	v.refuse(name, discovery.ReasonUnreadable, "its ACL does not let this client read it")
}

// oversize takes in that a child holds more than is read. What is known of it stays.
func (v *view) oversize(name string) {
	v.refuse(name, discovery.ReasonOversize, fmt.Sprintf("more than %d bytes of data, which are not read", nodeMost))
}

func (v *view) refuse(name, reason, detail string) {
	if v.nodes[name] == nil {
		v.put(&node{name: name, rejection: &discovery.Rejection{Node: name, Reason: reason, Detail: detail}})
	}
}

// readable calls each with the names of the children whose data has been read. The others carry all in their names.
func (v *view) readable(each func(name string)) {
	for name, n := range v.nodes {
		if n.mzxid != 0 || n.rejection != nil {
			each(name)
		}
	}
}

func (v *view) put(n *node) {
	v.remove(n.name)
	v.nodes[n.name] = n
	v.fresh = append(v.fresh, n)
	v.changed = true
}

// remove takes a child out; it need not be there.
func (v *view) remove(name string) {
	n := v.nodes[name]
	if n == nil {
		return
	}
	delete(v.nodes, name)
	v.changed = true
	if n.settled {
		v.left = append(v.left, n)
	} else {
		n.dropped = true
	}
}

// settle brings the sorted lists up to date.
func (v *view) settle() {
	accepted, rejected := part(v.fresh)
	acceptedLeft, rejectedLeft := part(v.left)
	v.instances = edited(v.instances, acceptedLeft, accepted,
		func(n *node) *discovery.Instance { return &n.instance }, (*discovery.Instance).Compare)
	v.rejected = edited(v.rejected, rejectedLeft, rejected,
		func(n *node) *discovery.Rejection { return n.rejection },
		func(a, b *discovery.Rejection) int { return strings.Compare(a.Node, b.Node) })
	for _, n := range v.fresh {
		n.settled = true
	}
	v.fresh, v.left = nil, nil
}

// part tells valid registrations from rejected ones. What has been dropped is neither.
func part(nodes []*node) (accepted, rejected []*node) {
	for _, n := range nodes {
		switch {
		case n.dropped:
		case n.rejection != nil:
			rejected = append(rejected, n)
		default:
			accepted = append(accepted, n)
		}
	}
	return accepted, rejected
}

// edited returns a sorted list without what has left, which it holds, and with what is fresh. What lies between is
// copied in one piece: one change in ten thousand costs no more than that.
func edited[T any](old []T, left, fresh []*node, value func(*node) *T, compare func(a, b *T) int) []T {
	if len(left)+len(fresh) == 0 {
		return old
	}
	order := func(a, b *node) int { return compare(value(a), value(b)) }
	slices.SortFunc(left, order)
	slices.SortFunc(fresh, order)
	out := make([]T, 0, len(old)+len(fresh)-len(left))
	for len(left)+len(fresh) > 0 {
		leaves := len(fresh) == 0 || len(left) > 0 && order(left[0], fresh[0]) <= 0
		next := &fresh
		if leaves {
			next = &left
		}
		edit := value((*next)[0])
		*next = (*next)[1:]
		at := sort.Search(len(old), func(i int) bool { return compare(&old[i], edit) >= 0 })
		out, old = append(out, old[:at]...), old[at:]
		if leaves {
			old = old[1:]
		} else {
			out = append(out, *edit)
		}
	}
	return append(out, old...)
}

// snapshot returns the view as it is; until it changes there is no news any more. The caller numbers it.
func (v *view) snapshot(service string, at time.Time) discovery.Snapshot {
	v.settle()
	v.changed = false
	tree := discovery.Tree{Created: v.stamp.czxid, Children: v.stamp.pzxid}
	if v.missing {
		tree = discovery.Tree{}
	}
	snap := discovery.Snapshot{Service: service, Missing: v.missing, At: at, Instances: v.instances, Rejected: v.rejected,
		Tree: tree, Data: v.data, DataRead: v.dataRead}
	if v.raw {
		snap.Instances, snap.Children = []discovery.Instance{}, v.children()
	}
	return snap
}

// children are the nodes as they are, sorted by name.
func (v *view) children() []discovery.Child {
	out := []discovery.Child{}
	for _, n := range v.nodes {
		if n.child != nil {
			out = append(out, *n.child)
		}
	}
	slices.SortFunc(out, func(a, b discovery.Child) int { return strings.Compare(a.Name, b.Name) })
	return out
}
