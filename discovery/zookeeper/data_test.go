package zookeeper_test

import (
	"testing"

	"github.com/go-zookeeper/zk"
	"github.com/stretchr/testify/require"

	"github.com/myelin-sd/myelin/discovery"
	"github.com/myelin-sd/myelin/discovery/zookeeper"
	"github.com/myelin-sd/myelin/discovery/zookeeper/zktest"
)

// TestSourceData: the data of the path's own node come with the snapshots of those who ask for them, and with every
// change of them; a bare source tells of nothing else.
func TestSourceData(t *testing.T) {
	both(t, func(t *testing.T, with zookeeper.Options) {
		zks := server(t)
		w := writer(t, zks.Addr())
		s := open(t, zookeeper.Options{Classic: with.Classic, Hosts: []string{zks.Addr()}})
		asks := observe(t, s.Source("web", "/web", zookeeper.SourceOptions{Data: true}))
		bare := observe(t, s.Source("bare", "/web", zookeeper.SourceOptions{Data: true, Bare: true}))
		plain := observe(t, s.Source("plain", "/web", zookeeper.SourceOptions{}))

		missing := asks.until(t, "no path", func(s discovery.Snapshot) bool { return s.Missing })
		require.False(t, missing.DataRead, "nothing is known of what is not there")
		create(t, w, "/web/i-1_", payload(1), zk.FlagEphemeral|zk.FlagSequence)
		snap := asks.untilCount(t, 1)
		require.True(t, snap.DataRead)
		require.Empty(t, snap.Data)

		says := func(text string) func(discovery.Snapshot) bool {
			return func(s discovery.Snapshot) bool { return s.DataRead && string(s.Data) == text }
		}
		for _, text := range []string{`{"haproxy":{}}`, "second", "third"} {
			_, err := w.Set("/web", []byte(text), -1)
			require.NoError(t, err)
			snap = asks.until(t, text, says(text))
			require.Len(t, snap.Instances, 1)
			snap = bare.until(t, text, says(text))
			require.Empty(t, snap.Instances, "its children concern nobody")
		}
		create(t, w, "/web/i-2_", payload(2), zk.FlagEphemeral|zk.FlagSequence)
		require.True(t, says("third")(asks.untilCount(t, 2)))
		require.False(t, plain.untilCount(t, 2).DataRead)
		_, err := w.Set("/web", nil, -1)
		require.NoError(t, err)
		asks.until(t, "no data", says(""))
	})
}

// TestSourceDataAfterOutage: what was set while there was no connection is found when there is one again.
func TestSourceDataAfterOutage(t *testing.T) {
	zks := server(t)
	w := writer(t, zks.Addr())
	create(t, w, "/web", "before", 0)
	p := zktest.NewProxy(t, zks.Addr())
	s := open(t, zookeeper.Options{Hosts: []string{p.Addr()}})
	o := observe(t, s.Source("web", "/web", zookeeper.SourceOptions{Data: true}))
	o.until(t, "before", func(s discovery.Snapshot) bool { return string(s.Data) == "before" })
	p.Cut()
	disconnected(t, s)
	_, err := w.Set("/web", []byte("after"), -1)
	require.NoError(t, err)
	p.Resume()
	o.until(t, "after", func(s discovery.Snapshot) bool { return string(s.Data) == "after" })
}

// TestSourceRaw: a raw source tells of all children as they are, whatever they hold, with the version of their data; a
// name that carries a registration is nothing but a name there.
func TestSourceRaw(t *testing.T) {
	both(t, func(t *testing.T, with zookeeper.Options) {
		zks := server(t)
		w := writer(t, zks.Addr())
		s := open(t, zookeeper.Options{Classic: with.Classic, Hosts: []string{zks.Addr()}})
		o := observe(t, s.Source("raw", "/raw", zookeeper.SourceOptions{Raw: true}))
		missing := o.until(t, "no path", func(s discovery.Snapshot) bool { return s.Missing })
		require.Empty(t, missing.Children)
		is := func(want ...discovery.Child) func(discovery.Snapshot) bool {
			return func(s discovery.Snapshot) bool {
				return !s.Missing && s.Equal(discovery.Snapshot{Service: "raw", Children: want})
			}
		}
		create(t, w, "/raw/b", "no json", 0)
		create(t, w, "/raw/a", "", 0)
		o.until(t, "two", is(discovery.Child{Name: "a"}, discovery.Child{Name: "b", Data: []byte("no json")}))
		_, err := w.Set("/raw/b", []byte("{}"), 0)
		require.NoError(t, err)
		snap := o.until(t, "another revision", is(discovery.Child{Name: "a"}, discovery.Child{Name: "b", Data: []byte("{}"), Revision: 1}))
		require.Empty(t, snap.Instances)
		require.Empty(t, snap.Rejected)
		require.NoError(t, w.Delete("/raw/a", 0))
		o.until(t, "one", is(discovery.Child{Name: "b", Data: []byte("{}"), Revision: 1}))
	})
}
