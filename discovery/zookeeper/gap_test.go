package zookeeper

import (
	"testing"
	"time"

	"github.com/stretchr/testify/require"
)

// TestGap: the least time between two rounds is the storm's or the operator's, whichever is longer.
func TestGap(t *testing.T) {
	s := New(Options{Hosts: []string{"127.0.0.1:1"}})
	t.Cleanup(s.Close)
	v := newView(nil)
	for _, c := range []struct {
		gap     time.Duration
		changes float64
		want    time.Duration
	}{
		{0, 0, window(0)},
		{0, 1000, window(1000)},
		{5 * time.Second, 0, 5 * time.Second},
		{5 * time.Second, 1000, 5 * time.Second},
		{time.Nanosecond, 1000, window(1000)},
	} {
		r := &source{s: s, o: SourceOptions{Gap: c.gap}}
		require.Equal(t, c.want, r.gap(v, c.changes), "%+v", c)
	}
	require.Positive(t, window(1000))
}
