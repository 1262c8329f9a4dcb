package zookeeper

import (
	"errors"
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/go-zookeeper/zk"

	"github.com/myelin-sd/myelin/discovery"
)

// Decode turns one znode into an instance. Its errors are about the one node; a *discovery.RejectError carries the
// reason.
type Decode func(node string, data []byte) (discovery.Instance, error)

// node is one child as it was last read. A child that changes gets a new one.
type node struct {
	name         string
	czxid, mzxid int64 // of the reading; both 0 when the name alone was decoded
	instance     discovery.Instance
	rejection    *discovery.Rejection // nil: instance is valid
	dropped      bool                 // no longer in the view; set once, before the next merge
	listed       uint64               // the last listing that had it
}

// view is what is known of one path's children. Its methods are pure but for the view itself.
type view struct {
	decode   Decode
	nodes    map[string]*node
	listings uint64

	// Both sorted, brought up to date by settle.
	accepted, rejected []*node
	fresh              []*node // not yet in them
	stale              bool    // some in them are dropped

	missing  bool
	changed  bool // since the last snapshot
	complete bool // it has been read to the end once

	// The directory's stamp as of which its names are known, and the session and the connection that showed it.
	stamp   stamp
	session int64
	gen     uint64

	// owed tells that the directory was found changed after a reconnect, and that its known children have not been read
	// since: each may be another node under the same name.
	owed bool
}

// stamp changes with every child that is created or deleted, and when the directory itself is. Data that is set in a
// child does not change it, nor does what happens below.
type stamp struct{ czxid, pzxid int64 }

func stampOf(st zk.Stat) stamp { return stamp{st.Czxid, st.Pzxid} }

func newView(decode Decode) *view {
	return &view{decode: decode, nodes: map[string]*node{}, changed: true}
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
	if _, ok := discovery.DecodeName(name); !ok {
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
	if n := v.nodes[name]; n != nil {
		n.dropped = true
		delete(v.nodes, name)
		v.stale, v.changed = true, true
	}
}

// settle brings the sorted lists up to date.
func (v *view) settle() {
	if len(v.fresh) == 0 && !v.stale {
		return
	}
	var accepted, rejected []*node
	for _, n := range v.fresh {
		switch {
		case n.dropped:
		case n.rejection != nil:
			rejected = append(rejected, n)
		default:
			accepted = append(accepted, n)
		}
	}
	v.accepted = merge(v.accepted, accepted, func(a, b *node) int { return discovery.Compare(a.instance, b.instance) })
	v.rejected = merge(v.rejected, rejected, func(a, b *node) int { return strings.Compare(a.name, b.name) })
	v.fresh, v.stale = nil, false
}

// merge takes what is dropped out of the sorted old and puts fresh in. It works in place.
func merge(old, fresh []*node, compare func(a, b *node) int) []*node {
	out := slices.DeleteFunc(old, func(n *node) bool { return n.dropped })
	const few = 32 // each costs a search and a move; beyond, sorting all is cheaper
	if len(fresh) > few {
		out = append(out, fresh...)
		slices.SortFunc(out, compare)
		return out
	}
	for _, n := range fresh {
		i, _ := slices.BinarySearchFunc(out, n, compare)
		out = slices.Insert(out, i, n)
	}
	return out
}

// snapshot returns the view as it is; until it changes there is no news any more. The caller numbers it.
func (v *view) snapshot(service string, at time.Time) discovery.Snapshot {
	v.settle()
	v.changed = false
	snap := discovery.Snapshot{Service: service, Missing: v.missing, At: at}
	snap.Instances = make([]discovery.Instance, len(v.accepted))
	for i, n := range v.accepted {
		snap.Instances[i] = n.instance
	}
	snap.Rejected = make([]discovery.Rejection, len(v.rejected))
	for i, n := range v.rejected {
		snap.Rejected[i] = *n.rejection
	}
	return snap
}
