// Package discovery says what instances a service has: instances, snapshots, the formats of registrations, label
// filters, and sources that produce snapshots.
package discovery

import (
	"context"
	"time"
)

// Instance is one registration, decoded and checked. Everything in it is safe to show; Name and Host are safe to
// become part of an HAProxy server name.
type Instance struct {
	Endpoint Endpoint // host and port, validated
	Name     string   // from the payload, mapped to a safe alphabet; may be empty; names may repeat
	Weight   *int     // nil: the payload has none; else >= 0

	// ServerOptions is the payload's haproxy_server_options, split at blanks; each word matches a safe alphabet.
	ServerOptions []string

	// Labels hold string, json.Number, bool or nil values: filters are type-strict, as in Synapse.
	Labels map[string]any

	// Leaving says that the instance goes on purpose, in a moment. Its registrar has written so; nobody else knows.
	Leaving bool

	ID *int64 // sequence number of the node, for leader election

	// Where it was found; empty for static servers.
	Node              string // child name
	Session           int64  // owner of the ephemeral node, 0 when it is not ephemeral
	Created, Modified time.Time

	ServerID int // a default server's own haproxy_server_id; 0: none
}

// Rejection is one registration left out, with the reason in words.
type Rejection struct {
	Node              string
	Reason            string // a fixed word for the metric: one of the Reason constants
	Detail            string // one line for people; quoted, bounded in length
	Session           int64
	Created, Modified time.Time
}

// Snapshot is the complete set of one service's instances at one moment: sorted, never changed after it was sent.
type Snapshot struct {
	Service   string
	Instances []Instance  // sorted by endpoint, then name, then node
	Rejected  []Rejection // sorted by node
	Missing   bool        // the path does not exist: known to be absent, not unknown
	Version   uint64      // grows by one with each snapshot of a source
	At        time.Time   // when the round of reads that made it began

	// Cause says in words how it was found that something is new, one of the Cause constants; empty: the source does not say.
	Cause string

	// Tree tells which state of the registry this is; zero where the source does not know, or the path does not exist.
	Tree Tree

	// Note is for whoever keeps the snapshot: a Store keeps it with the set. Sources leave it empty.
	Note string

	// Data is that of the path's own node, where the source was asked for it, and DataRead tells that it has been read:
	// until then nothing is known of it. Never changed.
	Data     []byte
	DataRead bool

	// Children are the path's nodes as they were read, sorted by name, where the source was asked for them; there are no
	// Instances then. One that cannot be read at present is as it was read last. Never changed.
	Children []Child
}

// Child is a node below a path, as it was read.
type Child struct {
	Name     string
	Data     []byte
	Revision int32 // version of the data
}

// How a source found what is new in a Snapshot.
const (
	CauseFirst     = "the first reading"
	CauseEvent     = "a watch told"
	CauseReconnect = "found when the connection came back"
	CauseAudit     = "found by the regular full reading; no watch told"
	CausePoll      = "found by polling"
)

// Tree places what was read in the history of the registry: in ZooKeeper the transaction that created the path's own
// node, and the last one that created or deleted a child of it.
type Tree struct {
	Created  int64 `json:"created"`
	Children int64 `json:"children"`
}

// Known tells that t is not zero.
func (t Tree) Known() bool { return t != Tree{} }

// Newer tells that t is later in the history of one registry than o, so that a registry that shows o behind t has lost
// what was between them. It is false where either is not known.
func (t Tree) Newer(o Tree) bool {
	return t.Known() && o.Known() && (t.Created > o.Created || t.Children > o.Children)
}

// Source produces the snapshots of one service.
//
// Run blocks until ctx is done and returns ctx's error, or an error that no retry can mend. The first snapshot it
// sends is the full set; so is each later one. It sends only what it has read completely: while the registry cannot
// be reached it sends nothing. It never closes out.
type Source interface {
	Run(ctx context.Context, out chan<- Snapshot) error
}
