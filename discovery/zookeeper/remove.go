package zookeeper

import (
	"context"
	"errors"
	"fmt"

	"github.com/go-zookeeper/zk"
)

// ErrChanged is wrapped by errors about a node that is not what it was when it was read.
var ErrChanged = errors.New("it changed since it was read")

// Standing is a node as it was read.
type Standing struct {
	Path string
	Node // Data and Name do not matter
}

// Remove deletes a node that is still what it was: made and written by the same transactions, of the same owner, without
// children. It is read again right before, and deleted with its version. stays are nodes that must stand too, in the same
// transaction: the last one of several is never deleted by two who each keep another one.
//
// The error wraps ErrChanged when the node, or one of stays, is another one now, ErrNoPath when the node is gone, and
// ErrNoAccess when this user may not. With any other error it is not known whether the node still stands. What
// ZooKeeper cannot tell apart is a node that was deleted and made anew under the same name between the two requests, with
// as many changes of its data as the old one had.
//
// It waits for a connection until ctx ends. A request that is under way when ctx ends is not called back.
func (s *Session) Remove(ctx context.Context, node Standing, stays ...Standing) error {
	e, err := s.await(ctx)
	if err != nil {
		return err
	}
	for _, n := range append(stays, node) {
		if err := s.asItWas(ctx, e, n); err != nil {
			return err
		}
	}
	ops := make([]any, 0, len(stays)+1)
	for _, n := range stays {
		ops = append(ops, &zk.CheckVersionRequest{Path: s.full(n.Path), Version: n.Version})
	}
	ops = append(ops, &zk.DeleteRequest{Path: s.full(node.Path), Version: node.Version})
	err = s.call(ctx, func() error { _, err := e.link.conn.Multi(ops...); return err })
	return removed(node.Path, err)
}

// asItWas reads a node again and compares it.
func (s *Session) asItWas(ctx context.Context, e *epoch, was Standing) error {
	now, err := s.exists(ctx, e, s.full(was.Path), false)
	switch {
	case gone(err):
		return fmt.Errorf("delete %s: %w", was.Path, ErrNoPath)
	case err != nil:
		return removed(was.Path, err)
	case now.Czxid != was.Czxid:
		return fmt.Errorf("delete %s: %w: it was deleted and made anew", was.Path, ErrChanged)
	case now.Mzxid != was.Mzxid, now.Version != was.Version:
		return fmt.Errorf("delete %s: %w: its data was written", was.Path, ErrChanged)
	case now.EphemeralOwner != was.Owner:
		return fmt.Errorf("delete %s: %w: it has another owner", was.Path, ErrChanged)
	case now.NumChildren != int32(was.Children):
		return fmt.Errorf("delete %s: %w: it has %d children now", was.Path, ErrChanged, now.NumChildren)
	}
	return nil
}

// removed says what came of a request to delete.
func removed(path string, err error) error {
	switch {
	case err == nil:
		return nil
	case errors.Is(err, zk.ErrNotEmpty):
		err = fmt.Errorf("%w: it has children now", ErrChanged)
	case errors.Is(err, zk.ErrBadVersion):
		err = fmt.Errorf("%w: its data was written", ErrChanged)
	case gone(err):
		err = ErrNoPath
	case forbidden(err):
		err = ErrNoAccess
	}
	return fmt.Errorf("delete %s: %w", path, err)
}
