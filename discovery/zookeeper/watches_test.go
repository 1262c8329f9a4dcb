package zookeeper

import (
	"errors"
	"testing"
	"time"

	"github.com/go-zookeeper/zk"
	"github.com/stretchr/testify/require"

	"github.com/myelin-sd/myelin/discovery/zookeeper/zktest"
)

// TestWatchFiresWhileReading: a watch that stood when a read began, and fired before its reply, is set again. This is
// the moment between the library's callback and its channel.
func TestWatchFiresWhileReading(t *testing.T) {
	zks := zktest.New(t)
	wire := zktest.NewProxy(t, zks.Addr())
	s := New(Options{Hosts: []string{wire.Addr()}})
	defer s.Close()
	e, err := s.await(t.Context())
	require.NoError(t, err)
	l := e.link
	_, err = l.conn.Create("/a", nil, 0, zk.WorldACL(zk.PermAll))
	require.NoError(t, err)

	for _, c := range []struct {
		key  watchKey
		read func() error
	}{
		{watchKey{watchData, "/a"}, func() error { _, err := l.get("/a", true); return err }},
		{watchKey{watchChildren, "/a"}, func() error { _, err := l.children("/a", true); return err }},
	} {
		fired := make(chan zk.Event, 1)
		l.watches.put(c.key, fired)
		wire.StallReplies()
		done := make(chan error, 1)
		go func() { done <- c.read() }()
		select {
		case err := <-done:
			t.Fatalf("a reply came through: %v", err)
		case <-time.After(50 * time.Millisecond):
		}
		fired <- zk.Event{}
		close(fired)
		wire.Resume()
		require.NoError(t, <-done)
		require.True(t, l.watches.stands(c.key), "set again")

		stands := l.watches.m[c.key]
		require.NoError(t, c.read())
		require.True(t, stands == l.watches.m[c.key], "and kept: a second one would stay in the library until the first fires")
	}
	require.Len(t, l.watches.m, 2)
	require.NoError(t, l.conn.Delete("/a", -1))
	for k := range l.watches.m {
		require.Eventually(t, func() bool { return !l.watches.stands(k) }, 10*time.Second, time.Millisecond)
	}

	// A missing path: one watch for its creation, however often one looks.
	created := watchKey{watchCreation, "/b"}
	for range 3 {
		_, err := l.children("/b", true)
		require.True(t, errors.Is(err, zk.ErrNoNode))
		require.True(t, l.watches.stands(created))
	}
	require.Len(t, l.watches.m, 1)
	_, err = l.conn.Create("/b", nil, 0, zk.WorldACL(zk.PermAll))
	require.NoError(t, err)
	require.Eventually(t, func() bool { return !l.watches.stands(created) }, 10*time.Second, time.Millisecond)
	ls, err := l.children("/b", true)
	require.NoError(t, err)
	require.Empty(t, ls.names)
}
