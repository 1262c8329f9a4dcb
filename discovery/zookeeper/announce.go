package zookeeper

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"path"
	"time"

	"github.com/go-zookeeper/zk"
)

// farewell bounds how long the end of an announcement is waited for. The node goes with the session at the latest.
const farewell = time.Second

// Announce keeps one ephemeral node with data in dir while ctx lives, and deletes it then where there is a connection.
// Its name begins with name, which is no path, and ends with the session, so that no two are alike. dir is never made:
// while it is missing, or something else is wrong, it is tried again with each connection, and every few minutes. That is
// also how often the node is looked at.
//
// told is called with the outcome of each attempt, nil when the node stands; errors about a missing dir wrap ErrNoPath. It
// returns when ctx is done, a second later at most.
func (s *Session) Announce(ctx context.Context, dir, name string, data []byte, told func(error)) {
	for {
		e, err := s.await(ctx)
		if err != nil {
			return
		}
		full := path.Join(s.full(dir), name+","+hex(e.session))
		err = s.announce(ctx, e, full, data)
		if ctx.Err() == nil {
			told(err)
		}
		again := time.NewTimer(jitter(s.o.AntiEntropy))
		select {
		case <-e.down:
		case <-again.C:
		case <-ctx.Done():
			again.Stop()
			s.unannounce(e, full)
			return
		}
		again.Stop()
	}
}

// announce makes the node, or gives it the data.
func (s *Session) announce(ctx context.Context, e *epoch, full string, data []byte) error {
	if len(data) > maxData {
		return fmt.Errorf("announce in %s: %d bytes of data are more than ZooKeeper takes (%d)", path.Dir(full), len(data), maxData)
	}
	now, err := s.get(ctx, e, full, false)
	switch {
	case gone(err):
		err = s.call(ctx, func() error {
			_, err := e.link.conn.Create(full, data, zk.FlagEphemeral, s.announcedACL())
			return err
		})
		if errors.Is(err, zk.ErrNodeExists) { // by a request of ours whose answer was lost
			err = nil
		}
	case err == nil && !bytes.Equal(now.data, data):
		err = s.call(ctx, func() error { _, err := e.link.conn.Set(full, data, now.stat.Version); return err })
	}
	switch {
	case err == nil:
		return nil
	case gone(err):
		err = ErrNoPath
	case forbidden(err):
		err = ErrNoAccess
	}
	return fmt.Errorf("announce in %s: %w", path.Dir(full), err)
}

// announcedACL lets everybody read, and the user that the session is logged in as do anything; without one, everybody.
func (s *Session) announcedACL() []zk.ACL {
	if len(s.o.Logins) == 0 {
		return zk.WorldACL(zk.PermAll)
	}
	return append(creator(), zk.WorldACL(zk.PermRead)...)
}

// unannounce deletes the node, unless its session or connection is gone.
func (s *Session) unannounce(e *epoch, full string) {
	if e.lost() {
		return
	}
	ctx, cancel := context.WithTimeout(context.Background(), farewell)
	defer cancel()
	_ = s.call(ctx, func() error { return e.link.conn.Delete(full, -1) }) // if it fails, it goes with the session
}

// call makes a call of the library, in a goroutine that Close waits for, and returns when it has, or when ctx ends.
func (s *Session) call(ctx context.Context, f func() error) error {
	done := make(chan error, 1)
	if err := s.goTracked(func() { done <- f() }); err != nil {
		return err
	}
	select {
	case err := <-done:
		return err
	case <-ctx.Done():
		return ctx.Err()
	}
}
