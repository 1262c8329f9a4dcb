package discovery

import (
	"slices"
	"time"
)

// Registration is what is published for one service: where, under which name, and the bytes.
type Registration struct {
	Path       string // parent znode, made when missing (persistent, empty)
	Prefix     string // name of the node up to the sequence number, "web-1_"; unique to this instance
	Data       []byte
	Sequential bool
	Ephemeral  bool

	// Closed lets only the user that the session is logged in as change the node and the parents that are made for it;
	// everybody may read. Otherwise they are open to the world.
	Closed bool

	// TTL is the longest time between two writes of the data, also of the same, so that the node's time of modification
	// tells that somebody still looks after it. 0: data are written when they change.
	TTL time.Duration

	// Dated says that Data are EncodeCurator's, whose time of registration is put in when the node is made, and then
	// kept.
	Dated bool

	// Also are further nodes for the same instance, in other formats: they are published after this one, stand and are
	// kept as it is, and are withdrawn with it. They have no Also of their own.
	Also []Registration
}

// All returns r without its Also, followed by these.
func (r Registration) All() []Registration {
	also := r.Also
	r.Also = nil
	return append([]Registration{r}, also...)
}

// SamePlace reports whether two registrations are for the same node, whatever is in it.
func (r Registration) SamePlace(o Registration) bool { return r.Path == o.Path && r.Prefix == o.Prefix }

// Without returns those of r.All() whose place is none of o.All()'s.
func (r Registration) Without(o Registration) []Registration {
	theirs := o.All()
	return slices.DeleteFunc(r.All(), func(mine Registration) bool { return slices.ContainsFunc(theirs, mine.SamePlace) })
}

// Published is what a directory says of a registration that stands.
type Published struct {
	Node string // full path of the node; with several formats, of the first one's

	// New says that the node was made now, and that none of ours was found before: not one of an earlier session either.
	New bool

	// Found is what was not as it had been left, since the last answer, and is mended now.
	Found []Finding

	Within time.Duration // publish again within this time, see Registration.TTL; 0: there is no need
}

// Finding is one thing that was not as it had been left.
type Finding struct {
	Reason string // one of the Found constants
	Node   string // full path of the node that it was found of
	Detail string // for people: what was there instead; may be empty
}

// Reasons of findings: fixed words, used as a metric's label.
const (
	FoundMissing = "missing" // our node had been deleted by somebody
	FoundForeign = "foreign" // the node in our node's place belongs to another session
	FoundTwin    = "twin"    // beside our node stood another one of ours, of this session or an earlier one
	FoundData    = "data"    // somebody had changed the data
	FoundExpired = "expired" // the session had expired, and our node with it
)
