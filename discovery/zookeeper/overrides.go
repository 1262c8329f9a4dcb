package zookeeper

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"path"
	"slices"
	"strings"
	"time"

	"github.com/go-zookeeper/zk"

	"github.com/myelin-sd/myelin/discovery"
)

// ErrOverrideChanged is wrapped by errors about an override that somebody else has changed since it was read.
var ErrOverrideChanged = errors.New("somebody else has changed it meanwhile")

// ErrUnanswered is wrapped by errors about a write whose outcome is not known: time was over before an answer came.
var ErrUnanswered = errors.New("no answer, it may be done all the same")

// NoOverride is the revision of an override that is not there.
const NoOverride int32 = -1

// StoredOverride is a node among the overrides. One whose data are no override has a Problem, and of the override only
// Node and Revision.
type StoredOverride struct {
	discovery.Override
	Problem  error
	Modified time.Time
}

// Overrides reads the overrides in dir, sorted by node. None is no error, and neither is a dir that does not exist. It
// waits for a connection until ctx ends.
func (s *Session) Overrides(ctx context.Context, dir string) ([]StoredOverride, error) {
	nodes, err := again(ctx, s, func(e *epoch) ([]Node, error) {
		full := s.full(dir)
		if err := s.catchUp(ctx, e, full); err != nil && !gone(err) { // a command sees what the one before has written
			return nil, err
		}
		names, err := s.names(ctx, e, full)
		if err != nil {
			return nil, err
		}
		return s.readAll(ctx, e, full, names)
	})
	if gone(err) {
		return nil, nil
	}
	if err != nil {
		return nil, fmt.Errorf("read overrides in %s: %w", dir, advise(err))
	}
	found := make([]StoredOverride, 0, len(nodes))
	for _, n := range nodes {
		o, err := discovery.DecodeOverride(n.Name, n.Data)
		o.Node, o.Revision = n.Name, n.Version
		found = append(found, StoredOverride{Override: o, Problem: err, Modified: n.Modified})
	}
	return found, nil
}

// NoOverrides tells that dir does not exist, so that agents keep what they know in force. It waits for a connection until
// ctx ends.
func (s *Session) NoOverrides(ctx context.Context, dir string) (bool, error) {
	_, err := again(ctx, s, func(e *epoch) (zk.Stat, error) {
		full := s.full(dir)
		if err := s.catchUp(ctx, e, full); err != nil && !gone(err) {
			return zk.Stat{}, err
		}
		return s.exists(ctx, e, full, false)
	})
	if gone(err) {
		return true, nil
	}
	if err != nil {
		return false, fmt.Errorf("look for overrides in %s: %w", dir, advise(err))
	}
	return false, nil
}

// RestoreOverrides makes dir, which does not exist, with all overrides in it at once: agents never see it with a part of
// them. When it is there by now nothing is changed, and the error wraps ErrOverrideChanged. What PutOverride says of ACLs,
// and of ctx, holds here too; where a reply was lost the error may be ErrOverrideChanged although it was done.
func (s *Session) RestoreOverrides(ctx context.Context, dir string, all []discovery.Override) error {
	full := s.full(dir)
	nodes := make([]*zk.CreateRequest, 1, len(all)+1)
	nodes[0] = &zk.CreateRequest{Path: full}
	for _, o := range all {
		o.Node = o.NodeName()
		data, err := discovery.EncodeOverride(o)
		if err != nil {
			return err
		}
		nodes = append(nodes, &zk.CreateRequest{Path: path.Join(full, o.Node), Data: data})
	}
	_, err := attempts(ctx, s, func(e *epoch, _ bool) (struct{}, error) {
		acl, err := s.inherited(path.Dir(full), e)
		if gone(err) {
			if err = s.createInherited(path.Dir(full), nil, e); err == nil || errors.Is(err, zk.ErrNodeExists) {
				acl, err = s.inherited(path.Dir(full), e)
			}
		}
		if err != nil {
			return struct{}{}, err
		}
		ops := make([]any, len(nodes))
		for i, n := range nodes {
			n.Acl, ops[i] = acl, n
		}
		if _, err = e.link.conn.Multi(ops...); errors.Is(err, zk.ErrNodeExists) {
			err = ErrOverrideChanged
		}
		return struct{}{}, err
	})
	if err != nil {
		return fmt.Errorf("store overrides in %s again: %w", dir, advise(err))
	}
	return nil
}

// PutOverride stores o in dir, under the name of its target, and returns it with its node and revision. revision is
// that of the override which it replaces, as the caller has read it, or NoOverride. When another one is there by now
// nothing is changed, and the error wraps ErrOverrideChanged; one that is gone by now does not have to be replaced.
//
// Missing parts of the path are made. What is made has the ACL of the node that it lies in, so that who may write
// overrides is decided once, on the path.
//
// A write whose reply was lost is repeated on the next connection, and done once. It waits for a connection until ctx
// ends. If ctx ends while a request is under way, the error wraps ErrUnanswered.
func (s *Session) PutOverride(ctx context.Context, dir string, o discovery.Override, revision int32) (discovery.Override, error) {
	o.Node = o.NodeName()
	data, err := discovery.EncodeOverride(o)
	if err != nil {
		return o, err
	}
	full := path.Join(s.full(dir), o.Node)
	o.Revision, err = attempts(ctx, s, func(e *epoch, repeated bool) (int32, error) {
		return s.putOverride(ctx, e, full, data, revision, repeated)
	})
	if err != nil {
		return o, fmt.Errorf("store override %s: %w", path.Join(dir, o.Node), advise(err))
	}
	return o, nil
}

// putOverride writes the node and returns the version of its data.
func (s *Session) putOverride(ctx context.Context, e *epoch, full string, data []byte, revision int32, repeated bool) (int32, error) {
	for {
		var version int32
		var err error
		if revision == NoOverride {
			err = s.createInherited(full, data, e)
		} else {
			var stat *zk.Stat
			if stat, err = e.link.conn.Set(full, data, revision); err == nil {
				version = stat.Version
			}
		}
		switch {
		case err == nil:
			return version, nil
		case revision != NoOverride && gone(err):
			revision = NoOverride
			continue
		case !errors.Is(err, zk.ErrNodeExists) && !errors.Is(err, zk.ErrBadVersion):
			return 0, err
		}
		// Something else is there; after a lost reply it may be ours.
		now, err := s.get(ctx, e, full, false)
		switch {
		case gone(err):
			return 0, ErrOverrideChanged
		case err != nil:
			return 0, err
		case repeated && bytes.Equal(now.data, data):
			return now.stat.Version, nil
		}
		return 0, ErrOverrideChanged
	}
}

// RemoveOverride deletes the node of an override in dir, if it still has the revision that was read; otherwise the
// error wraps ErrOverrideChanged. It returns false when there was none any more. What PutOverride says of lost replies
// and of ctx holds here too.
func (s *Session) RemoveOverride(ctx context.Context, dir, node string, revision int32) (bool, error) {
	if !childName(node) {
		return false, fmt.Errorf("remove override: %q is not the name of a node", node)
	}
	full := path.Join(s.full(dir), node)
	removed, err := attempts(ctx, s, func(e *epoch, repeated bool) (bool, error) {
		err := e.link.conn.Delete(full, revision)
		switch {
		case gone(err):
			return repeated, nil
		case errors.Is(err, zk.ErrBadVersion):
			return false, ErrOverrideChanged
		}
		return err == nil, err
	})
	if err != nil {
		return false, fmt.Errorf("remove override %s: %w", path.Join(dir, node), advise(err))
	}
	return removed, nil
}

// RemoveEndedOverride is RemoveOverride for who may have known the override for long: the node is read again right before,
// and must say the same. Revisions alone do not tell: a node that was deleted and made anew counts from 0 again.
func (s *Session) RemoveEndedOverride(ctx context.Context, dir string, known discovery.Override) (bool, error) {
	if !childName(known.Node) {
		return false, fmt.Errorf("remove override: %q is not the name of a node", known.Node)
	}
	node, err := again(ctx, s, func(e *epoch) (reading, error) { return s.get(ctx, e, path.Join(s.full(dir), known.Node), false) })
	switch {
	case gone(err):
		return false, nil
	case err != nil:
		return false, fmt.Errorf("read override %s: %w", path.Join(dir, known.Node), advise(err))
	}
	now, err := discovery.DecodeOverride(known.Node, node.data)
	if err != nil || !now.Created.Equal(known.Created) || !now.Until.Equal(known.Until) {
		return false, fmt.Errorf("remove override %s: %w", path.Join(dir, known.Node), ErrOverrideChanged)
	}
	return s.RemoveOverride(ctx, dir, known.Node, known.Revision)
}

// attempts runs f with a connection, once more with the next one whenever it is lost, until ctx ends. f may block in
// the library, which knows of no context. repeated tells it that a request of before may have been carried out.
func attempts[T any](ctx context.Context, s *Session, f func(e *epoch, repeated bool) (T, error)) (T, error) {
	type result struct {
		value T
		err   error
	}
	sent := false
	v, err := again(ctx, s, func(e *epoch) (T, error) {
		done, repeated := make(chan result, 1), sent
		var none T
		if err := s.goTracked(func() {
			v, err := f(e, repeated)
			done <- result{v, lostWrite(err)}
		}); err != nil {
			return none, err
		}
		sent = true
		select {
		case res := <-done:
			return res.value, res.err
		case <-ctx.Done():
			return none, ctx.Err()
		}
	})
	if err != nil && sent && (ctx.Err() != nil || errors.Is(err, errLost)) {
		err = fmt.Errorf("%w: %w", ErrUnanswered, err)
	}
	return v, err
}

// lostWrite marks errors of the library that mean that the connection has ended, and the outcome is not known.
func lostWrite(err error) error {
	for _, lost := range []error{zk.ErrConnectionClosed, zk.ErrSessionExpired, zk.ErrNoServer, zk.ErrSessionMoved} {
		if errors.Is(err, lost) {
			return fmt.Errorf("%w: %w", errLost, err)
		}
	}
	return err
}

// createInherited makes a persistent node, and those above it that are missing, each with the ACL of the one that it
// lies in.
func (s *Session) createInherited(full string, data []byte, e *epoch) error {
	acl, err := s.inherited(path.Dir(full), e)
	if gone(err) {
		if err := s.createInherited(path.Dir(full), nil, e); err != nil && !errors.Is(err, zk.ErrNodeExists) {
			return err
		}
		acl, err = s.inherited(path.Dir(full), e)
	}
	if err != nil {
		return err
	}
	if _, err := e.link.conn.Create(full, data, 0, acl); err != nil {
		return fmt.Errorf("create %s: %w", full, err)
	}
	return nil
}

// inherited is the ACL for a node in dir: that of dir. A server shows the hashes of digest users only to those who may
// change the ACL; to others it writes "user:x", which would let nobody in. For those the users stand that we are logged
// in as.
func (s *Session) inherited(dir string, e *epoch) ([]zk.ACL, error) {
	if dir == "" {
		dir = "/"
	}
	acl, _, err := e.link.conn.GetACL(dir)
	if err != nil {
		return nil, fmt.Errorf("read the ACL of %s: %w", dir, err)
	}
	var own int32
	acl = slices.DeleteFunc(acl, func(a zk.ACL) bool {
		hidden := a.Scheme == "digest" && strings.HasSuffix(a.ID, ":x")
		if hidden {
			own |= a.Perms
		}
		return hidden
	})
	if own != 0 {
		acl = append(acl, zk.ACL{Perms: own, Scheme: "auth"})
	}
	return acl, nil
}

// advise says what an operator can do about a server that refuses. An invalid ACL is one of "auth" alone, in a session
// that is not logged in.
func advise(err error) error {
	if errors.Is(err, zk.ErrNoAuth) || errors.Is(err, zk.ErrInvalidACL) {
		return fmt.Errorf("%w: the ACL of the path does not let this user; give zookeeper.auth of one that may, in -c FILE", err)
	}
	return err
}
