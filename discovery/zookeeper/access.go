package zookeeper

import (
	"errors"
	"fmt"
	"slices"

	"github.com/go-zookeeper/zk"
)

// acl is who may do what with our node. The scheme "auth" stands for all users that the connection is logged in as; the
// server puts them in.
func (p *publication) acl() []zk.ACL {
	if !p.r.Closed {
		return zk.WorldACL(zk.PermAll)
	}
	return append(creator(), zk.WorldACL(zk.PermRead)...)
}

// parentACL is that of a directory which is made for our node: the one that it lies in, or one above.
func (p *publication) parentACL(own bool) []zk.ACL {
	if !p.r.Closed || own {
		return p.acl()
	}
	return append(creator(), zk.WorldACL(zk.PermRead|zk.PermCreate)...)
}

func creator() []zk.ACL { return []zk.ACL{{Perms: zk.PermAll, Scheme: "auth"}} }

// accessOf tells whether the ACL of a node was looked at already.
func (p *publication) accessOf(full string) string { return fmt.Sprint(full, " closed ", p.r.Closed) }

// secure gives the node the ACL that is wanted, when the configuration, or the process before, has had another one. It
// is looked at once for each node.
func (p *publication) secure(full string) error {
	access := p.accessOf(full)
	if p.reg.access == access {
		return nil
	}
	now, stat, err := p.e.link.conn.GetACL(full)
	if err == nil && p.open(now) == p.r.Closed {
		_, err = p.e.link.conn.SetACL(full, p.acl(), stat.Aversion)
	}
	switch {
	case err == nil:
		p.reg.access = access
	case gone(err), errors.Is(err, zk.ErrBadVersion): // seen by the watch, or next time
	default:
		return p.explain(fmt.Errorf("set the ACL of %s: %w", full, err))
	}
	return nil
}

// open reports whether an ACL lets everybody do everything.
func (p *publication) open(list []zk.ACL) bool {
	return slices.ContainsFunc(list, func(a zk.ACL) bool { return a.Scheme == "world" && a.Perms == zk.PermAll })
}

// explain says what an operator can do about a server that refuses.
func (p *publication) explain(err error) error {
	switch {
	case errors.Is(err, zk.ErrInvalidACL) && p.r.Closed:
		return fmt.Errorf("%w: the session is not logged in, so nobody would own the node; give zookeeper.auth, or write acl = \"open\"", err)
	case errors.Is(err, zk.ErrNoAuth):
		return fmt.Errorf("%w: the ACL of the node or of its parent does not let this user; give zookeeper.auth of a user that may", err)
	}
	return err
}
