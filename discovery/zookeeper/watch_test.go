package zookeeper_test

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"sync"
	"testing"
	"time"

	"github.com/go-zookeeper/zk"
	"github.com/stretchr/testify/require"

	"github.com/myelin-sd/myelin/discovery"
	"github.com/myelin-sd/myelin/discovery/zookeeper"
	"github.com/myelin-sd/myelin/discovery/zookeeper/zktest"
)

// recursive is what a server of 3.8 counts for one persistent recursive watch.
const recursive = 2

func untilWatches(t testing.TB, zks *zktest.Server, n int) {
	t.Helper()
	require.Eventually(t, func() bool { return watchCount(t, zks) == n }, patience, poll)
}

// TestOneWatch: whatever happens to a path, its persistent watch is all that the server keeps for it. A standard watch
// on the same path would replace it (before ZooKeeper 3.9).
func TestOneWatch(t *testing.T) {
	zks := server(t)
	w := writer(t, zks.Addr())
	wire := zktest.NewProxy(t, zks.Addr())
	s := open(t, zookeeper.Options{Hosts: []string{wire.Addr()}, AntiEntropy: 100 * time.Millisecond})
	o := observe(t, s.Source("web", "/a/web", zookeeper.SourceOptions{}))
	missing := func(s discovery.Snapshot) bool { return s.Missing }
	o.until(t, "missing path", missing)
	require.Equal(t, recursive, watchCount(t, zks))
	exists, _, err := w.Exists("/a")
	require.NoError(t, err)
	require.False(t, exists, "a reader must not make paths")

	for n := range 3 {
		create(t, w, "/a/web/one", payload(n), 0)
		o.untilCount(t, 1)
		set(t, w, "/a/web", "of the path itself")
		set(t, w, "/a/web/one", payload(10+n))
		o.untilSame(t, w, "/a/web")
		require.Equal(t, recursive, watchCount(t, zks))
		require.NoError(t, w.Delete("/a/web/one", -1))
		o.untilCount(t, 0)
		require.NoError(t, w.Delete("/a/web", -1))
		o.until(t, "path deleted", missing)
		require.Equal(t, recursive, watchCount(t, zks))
		// Nothing of the last connection stays, and the new one sets the one watch again.
		rebreak(t, wire, s)
	}
	// Deleted and made again at once: what is there afterwards counts.
	fill(t, w, "/a/web", 20)
	o.untilCount(t, 20)
	ops := []any{}
	for n := range 20 {
		ops = append(ops, &zk.DeleteRequest{Path: fmt.Sprintf("/a/web/i-%d", n), Version: -1})
	}
	ops = append(ops, &zk.DeleteRequest{Path: "/a/web", Version: -1}, &zk.CreateRequest{Path: "/a/web", Acl: world},
		&zk.CreateRequest{Path: "/a/web/i-5", Data: []byte(payload(99)), Acl: world})
	_, err = w.Multi(ops...)
	require.NoError(t, err)
	o.untilSame(t, w, "/a/web")
	o.untilCount(t, 1)
	require.Equal(t, recursive, watchCount(t, zks))
	require.Zero(t, s.Stats().Differences)
}

// TestDeepNodes: the watch tells of everything below a path, and nothing is read for what concerns no child of it.
func TestDeepNodes(t *testing.T) {
	zks := server(t)
	w := writer(t, zks.Addr())
	fill(t, w, "/web", 20)
	s := open(t, zookeeper.Options{Hosts: []string{zks.Addr()}})
	o := observe(t, s.Source("web", "/web", zookeeper.SourceOptions{}))
	o.untilCount(t, 20)
	before := s.Stats()
	for n := range 10 {
		deep := create(t, w, fmt.Sprintf("/web/i-%d/deep/er", n), "", 0)
		set(t, w, deep, "changed")
		require.NoError(t, w.Delete(deep, -1))
	}
	create(t, w, "/web/new", payload(100), 0)
	o.untilCount(t, 21)
	after := s.Stats()
	require.EqualValues(t, before.Events+4*10+1, after.Events, "they were told of")
	require.Equal(t, before.Reads+1, after.Reads, "the new one alone is read")
	require.Zero(t, after.Differences)
}

// running is a source that a test stops itself.
type running struct {
	*observer
	stop func()
}

func run(t testing.TB, src discovery.Source) running {
	t.Helper()
	o := &observer{}
	ctx, cancel := context.WithCancel(context.Background())
	out, done := make(chan discovery.Snapshot), make(chan error, 1)
	go func() { done <- src.Run(ctx, out) }()
	ended := make(chan struct{})
	go func() {
		defer close(ended)
		for {
			select {
			case snap := <-out:
				o.mu.Lock()
				o.seen = append(o.seen, snap)
				o.mu.Unlock()
			case err := <-done:
				if !errors.Is(err, context.Canceled) {
					t.Errorf("Run returned %v", err)
				}
				return
			}
		}
	}()
	stop := func() { cancel(); <-ended }
	t.Cleanup(stop)
	return running{o, stop}
}

// TestSourcesShareAWatch: the watch goes with the last source that looks at a path, and not before.
func TestSourcesShareAWatch(t *testing.T) {
	zks := server(t)
	w := writer(t, zks.Addr())
	fill(t, w, "/web", 20)
	fill(t, w, "/other", 1)
	wire := zktest.NewProxy(t, zks.Addr())
	s := open(t, zookeeper.Options{Hosts: []string{wire.Addr()}})
	other := observe(t, s.Source("other", "/other", zookeeper.SourceOptions{}))
	other.untilCount(t, 1)
	a, b := run(t, s.Source("a", "/web", zookeeper.SourceOptions{})), run(t, s.Source("b", "/web", zookeeper.SourceOptions{}))
	a.untilCount(t, 20)
	b.untilCount(t, 20)
	require.Equal(t, 2*recursive, watchCount(t, zks), "one for each path")

	a.stop()
	create(t, w, "/web/new", payload(100), 0)
	b.untilCount(t, 21)
	set(t, w, "/web/new", payload(101))
	b.untilSame(t, w, "/web")
	require.Zero(t, wire.Requests(opRemoveWatches))

	b.stop()
	untilWatches(t, zks, recursive)
	require.Equal(t, 1, wire.Requests(opRemoveWatches))
	create(t, w, "/other/new", payload(102), 0)
	other.untilCount(t, 2)

	c := run(t, s.Source("c", "/web", zookeeper.SourceOptions{}))
	c.untilSame(t, w, "/web")
	require.Equal(t, 2*recursive, watchCount(t, zks))
	require.NoError(t, w.Delete("/web/new", -1))
	c.untilCount(t, 20)
	require.Zero(t, s.Stats().Differences)
}

// TestSourcesComeAndGo: sources of one path that end and begin in quick succession, as when the configuration is read
// again and again, neither lose a change nor the watch.
func TestSourcesComeAndGo(t *testing.T) {
	both(t, func(t *testing.T, with zookeeper.Options) {
		zks := server(t)
		w := writer(t, zks.Addr())
		fill(t, w, "/web", 5)
		s := open(t, zookeeper.Options{Classic: with.Classic, Hosts: []string{zks.Addr()}, AntiEntropy: time.Hour})
		src := s.Source("web", "/web", zookeeper.SourceOptions{})
		last := run(t, src)
		for n := range 100 {
			create(t, w, fmt.Sprintf("/web/new-%d", n), payload(100+n), 0)
			if n%2 == 0 {
				// The next one begins while this one ends.
				next := run(t, src)
				last.stop()
				last = next
			} else {
				last.stop()
				last = run(t, src)
			}
			if n%10 == 9 {
				last.untilCount(t, 5+n+1)
				create(t, w, fmt.Sprintf("/web/then-%d", n), payload(200+n), 0)
				last.untilCount(t, 5+n+2)
				require.NoError(t, w.Delete(fmt.Sprintf("/web/then-%d", n), -1))
				last.untilCount(t, 5+n+1)
			}
		}
		if !with.Classic {
			untilWatches(t, zks, recursive)
		}
		last.stop()
		if !with.Classic {
			untilWatches(t, zks, 0)
		}
	})
}

// TestReconnectUnchanged: a directory that is as it was left is not listed again. Where data is never set, nothing else
// is read either.
func TestReconnectUnchanged(t *testing.T) {
	zks := server(t)
	w := writer(t, zks.Addr())
	for name, immutable := range map[string]bool{"mutable": false, "immutable": true} {
		t.Run(name, func(t *testing.T) {
			path := "/" + name
			fill(t, w, path, 3) // few, so that their data is read within milliseconds, if it is
			wire := zktest.NewProxy(t, zks.Addr())
			s := open(t, zookeeper.Options{Hosts: []string{wire.Addr()}})
			o := observe(t, s.Source("web", path, zookeeper.SourceOptions{Immutable: immutable}))
			o.untilCount(t, 3)
			lists, reads, sent := wire.Requests(opGetChildren), wire.Requests(opMultiRead), len(o.all())
			require.Equal(t, 1, lists)
			for n := 1; n <= 5; n++ {
				wire.Cut()
				disconnected(t, s)
				set(t, w, path+"/i-1", payload(100+n))
				wire.Resume()
				require.Eventually(t, func() bool { return s.Stats().Unchanged == uint64(n) }, patience, poll)
				if !immutable {
					o.untilSame(t, w, path)
				}
				require.Equal(t, n, wire.Requests(opExists))
			}
			require.Equal(t, lists, wire.Requests(opGetChildren))
			if immutable {
				// What comes after the reconnect is told of and read. That is all.
				for n := range 5 {
					create(t, w, fmt.Sprintf("%s/new-%d", path, n), payload(200+n), 0)
					o.untilCount(t, 3+n+1)
				}
				require.Equal(t, reads+5, wire.Requests(opMultiRead))
				require.Len(t, o.all(), sent+5)
				snap, _ := o.latest()
				require.Contains(t, endpoints(snap), "i-1 10.0.0.1:8080", "it was promised that nobody sets data")
			}
			require.EqualValues(t, 5, s.Stats().Resyncs)
			require.Zero(t, s.Stats().Differences)
		})
	}
}

// TestReconnectChanged: whatever has changed while there was no connection is found, also what leaves the number of
// children, or even their names, as they were.
func TestReconnectChanged(t *testing.T) {
	zks := server(t)
	w := writer(t, zks.Addr())
	changes := map[string]func(path string){
		"create": func(path string) { create(t, w, path+"/new", payload(100), 0) },
		"delete": func(path string) { require.NoError(t, w.Delete(path+"/i-1", -1)) },
		"replace": func(path string) {
			_, err := w.Multi(&zk.DeleteRequest{Path: path + "/i-1", Version: -1},
				&zk.CreateRequest{Path: path + "/i-1", Data: []byte(payload(101)), Acl: world})
			require.NoError(t, err)
		},
		"set": func(path string) { set(t, w, path+"/i-1", payload(102)) },
		"directory deleted and made again": func(path string) {
			list := names(t, w, path)
			for _, name := range list {
				require.NoError(t, w.Delete(path+"/"+name, -1))
			}
			require.NoError(t, w.Delete(path, -1))
			for _, name := range list {
				create(t, w, path+"/"+name, payload(103), 0)
			}
		},
		"directory deleted": func(path string) {
			for _, name := range names(t, w, path) {
				require.NoError(t, w.Delete(path+"/"+name, -1))
			}
			require.NoError(t, w.Delete(path, -1))
		},
	}
	paths := 0
	for name, change := range changes {
		for _, immutable := range []bool{false, true} {
			if immutable && name == "set" {
				continue // promised not to happen
			}
			t.Run(fmt.Sprintf("%s, immutable %t", name, immutable), func(t *testing.T) {
				paths++
				path := fmt.Sprintf("/web-%d", paths)
				fill(t, w, path, 10)
				wire := zktest.NewProxy(t, zks.Addr())
				s := open(t, zookeeper.Options{Hosts: []string{wire.Addr()}})
				o := observe(t, s.Source("web", path, zookeeper.SourceOptions{Immutable: immutable}))
				o.untilCount(t, 10)
				wire.Cut()
				disconnected(t, s)
				change(path)
				wire.Resume()
				if name == "directory deleted" {
					o.until(t, "path deleted", func(s discovery.Snapshot) bool { return s.Missing && len(s.Instances) == 0 })
					return
				}
				o.untilSame(t, w, path)
				require.EqualValues(t, map[bool]int{true: 1}[name == "set"], s.Stats().Unchanged)
				// The same again on the new connection, and once more after it: the view is as new as the connection.
				create(t, w, path+"/later", payload(300), 0)
				o.untilSame(t, w, path)
				rebreak(t, wire, s)
				create(t, w, path+"/last", payload(301), 0)
				o.untilSame(t, w, path)
				require.Zero(t, s.Stats().Differences)
			})
		}
	}
}

// TestReconnectAgain: a connection that has shown that the directory changed, and was lost before the data had been
// read, leaves that to the next one, which finds the directory as it was left.
func TestReconnectAgain(t *testing.T) {
	const nodes = 3000 // many, so that their data is read late: see readPerNode
	zks := server(t)
	w := writer(t, zks.Addr())
	fill(t, w, "/web", nodes)
	wire := zktest.NewProxy(t, zks.Addr())
	s := open(t, zookeeper.Options{Hosts: []string{wire.Addr()}})
	o := observe(t, s.Source("web", "/web", zookeeper.SourceOptions{Immutable: true}))
	o.untilCount(t, nodes)
	wire.Cut()
	disconnected(t, s)
	_, err := w.Multi(&zk.DeleteRequest{Path: "/web/i-1", Version: -1},
		&zk.CreateRequest{Path: "/web/i-1", Data: []byte(payload(1 << 20)), Acl: world})
	require.NoError(t, err)
	// The listing gets through, and nothing after it.
	wire.DropRequests(func(_, op int32) bool { return op == opMultiRead })
	wire.Resume()
	require.Eventually(t, func() bool { return wire.Requests(opGetChildren) == 2 }, patience, poll)
	_, err = s.Children(within(t, patience), "/") // it has arrived
	require.NoError(t, err)
	wire.DropRequests(nil)
	wire.Break()
	o.untilSame(t, w, "/web")
}

// TestSyncFirst: on every connection the server catches up with its leader before anything is listed or compared, and
// once is enough.
func TestSyncFirst(t *testing.T) {
	both(t, func(t *testing.T, with zookeeper.Options) {
		zks := server(t)
		w := writer(t, zks.Addr())
		fill(t, w, "/web", 20)
		wire := zktest.NewProxy(t, zks.Addr())
		var mu sync.Mutex
		var asked []int32 // on the latest connection; no reads of nodes, which may be left from the one before
		wire.DropRequests(func(_, op int32) bool {
			mu.Lock()
			defer mu.Unlock()
			if slices.Contains([]int32{opSync, opExists, opGetChildren}, op) {
				asked = append(asked, op)
			}
			return false
		})
		s := open(t, zookeeper.Options{Classic: with.Classic, Hosts: []string{wire.Addr()}, AntiEntropy: 200 * time.Millisecond})
		o := observe(t, s.Source("web", "/web", zookeeper.SourceOptions{}))
		o.untilCount(t, 20)
		for n := range 3 {
			if n > 0 {
				wire.Cut()
				disconnected(t, s)
				mu.Lock()
				asked = nil
				mu.Unlock()
				wire.Resume()
			}
			lists := wire.Requests(opGetChildren)
			require.Eventually(t, func() bool { return wire.Requests(opGetChildren) >= lists+3 }, patience, poll)
			mu.Lock()
			now := slices.Clone(asked)
			mu.Unlock()
			require.Equal(t, opSync, now[0])
			require.NotContains(t, now[1:], opSync)
		}
	})
}

// TestReconnectListsFirst: a listing that was already due when the connection was lost comes before the look at the
// directory. It must not hide what happened in between: names alone do not tell that one of them is another node now.
func TestReconnectListsFirst(t *testing.T) {
	zks := server(t)
	w := writer(t, zks.Addr())
	fill(t, w, "/web", 3)
	wire := zktest.NewProxy(t, zks.Addr())
	s := open(t, zookeeper.Options{Hosts: []string{wire.Addr()}})
	o := observe(t, s.Source("web", "/web", zookeeper.SourceOptions{Immutable: true}))
	o.untilCount(t, 3)
	wire.DropRequests(func(_, op int32) bool { return op == opGetChildren })
	set(t, w, "/web", "of the path itself")
	require.Eventually(t, func() bool { return wire.Requests(opGetChildren) == 2 }, patience, poll)
	wire.Cut()
	disconnected(t, s)
	_, err := w.Multi(&zk.DeleteRequest{Path: "/web/i-1", Version: -1},
		&zk.CreateRequest{Path: "/web/i-1", Data: []byte(payload(100)), Acl: world})
	require.NoError(t, err)
	wire.DropRequests(nil)
	wire.Resume()
	o.untilSame(t, w, "/web")
}
