package zookeeper

import (
	"context"
	"testing"
	"time"

	"github.com/go-zookeeper/zk"
	"github.com/stretchr/testify/require"

	"github.com/myelin-sd/myelin/discovery"
)

// TestFailedRoundKeepsTheView: neither a listing nor a reading that fails takes anything away, and what could not be
// read stays to be read.
func TestFailedRoundKeepsTheView(t *testing.T) {
	s := New(Options{Hosts: []string{"127.0.0.1:1"}})
	defer s.Close()
	conn, events, err := zk.Connect([]string{"127.0.0.1:1"}, time.Second, zk.WithLogger(libraryLog{s.log, func(string) {}}))
	require.NoError(t, err)
	conn.Close() // each request fails from now on, although nobody has said that the connection is lost
	for range events {
	}
	e := &epoch{link: &link{conn: conn}, down: make(chan struct{})}

	v := newView(discovery.DecodeNerve)
	v.list([]string{"a", "b"})
	v.read("a", readingOf(1, `{"host":"h","port":1}`))
	v.read("b", readingOf(2, `{"host":"g","port":1}`))
	before := v.snapshot("s", time.Time{})
	require.Len(t, before.Instances, 2)

	for _, watch := range []bool{false, true} {
		var listing, reading task
		listing.full()
		reading.add("a")
		for _, tk := range []*task{&listing, &reading} {
			require.ErrorIs(t, s.round(context.Background(), e, "/web", v, tk, watch), zk.ErrConnectionClosed)
			require.False(t, tk.empty())
			require.False(t, v.changed)
			require.True(t, v.snapshot("s", time.Time{}).Equal(before))
		}
	}
	close(e.down)
	var full task
	full.full()
	require.ErrorIs(t, s.round(context.Background(), e, "/web", v, &full, true), errLost)
	require.True(t, v.snapshot("s", time.Time{}).Equal(before))
}
