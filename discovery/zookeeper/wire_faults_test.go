package zookeeper_test

import (
	"context"
	"fmt"
	"slices"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/go-zookeeper/zk"
	"github.com/stretchr/testify/require"

	"github.com/myelin-sd/myelin/discovery"
	"github.com/myelin-sd/myelin/discovery/zookeeper"
	"github.com/myelin-sd/myelin/discovery/zookeeper/zktest"
)

// Operations, as a proxy sees them (org.apache.zookeeper.ZooDefs.OpCode).
const (
	opCreate        int32 = 1
	opDelete        int32 = 2
	opExists        int32 = 3
	opGetData       int32 = 4
	opSetData       int32 = 5
	opSync          int32 = 9
	opGetChildren   int32 = 12
	opRemoveWatches int32 = 18
	opMultiRead     int32 = 22
	opSetWatches2   int32 = 105
	opAddWatch      int32 = 106

	xidEvent int32 = -1
)

// fill makes n children of a path, instances number 0 to n-1.
func fill(t testing.TB, w *zk.Conn, path string, n int) {
	t.Helper()
	if _, err := w.Create(path, nil, 0, world); err != nil {
		require.ErrorIs(t, err, zk.ErrNodeExists)
	}
	ops := make([]any, n)
	for i := range ops {
		ops[i] = &zk.CreateRequest{Path: fmt.Sprintf("%s/i-%d", path, i), Data: []byte(payload(i)), Acl: world}
	}
	for chunk := range slices.Chunk(ops, 1000) {
		_, err := w.Multi(chunk...)
		require.NoError(t, err)
	}
}

func set(t testing.TB, w *zk.Conn, path, data string) {
	t.Helper()
	_, err := w.Set(path, []byte(data), -1)
	require.NoError(t, err)
}

// untilSame waits for the view to equal the registry as it is now.
func (o *observer) untilSame(t testing.TB, w *zk.Conn, path string) {
	t.Helper()
	want := registry(t, w, path)
	o.until(t, "the view equals the registry", func(s discovery.Snapshot) bool { return slices.Equal(endpoints(s), want) })
}

// rebreak closes all connections, and waits for the next one.
func rebreak(t testing.TB, wire *zktest.Proxy, s *zookeeper.Session) {
	t.Helper()
	generation := s.Stats().Generation
	wire.Break()
	require.Eventually(t, func() bool { return s.Stats().Generation > generation }, patience, poll)
}

// TestOldServer: where persistent watches are refused, one watch per node is used. That is said once, and not asked
// again with the next connection, which would cost that one too.
func TestOldServer(t *testing.T) {
	t.Parallel()
	zks := server(t)
	w := writer(t, zks.Addr())
	wire := zktest.NewProxy(t, zks.Addr())
	wire.Refuse(opAddWatch, opMultiRead, opSetWatches2)
	log, lines := silent()
	s := open(t, zookeeper.Options{Hosts: []string{wire.Addr()}, Log: log})
	require.False(t, s.Status().Classic)
	paths := []string{"/a", "/b", "/c"}
	var seen []*observer
	for _, path := range paths {
		fill(t, w, path, 20)
		seen = append(seen, observe(t, s.Source(path[1:], path, zookeeper.SourceOptions{})))
	}
	for _, o := range seen {
		o.untilCount(t, 20)
	}
	require.True(t, s.Status().Classic)
	require.Equal(t, 1, lines.count("no persistent watches"), lines.text)
	asked := wire.Requests(opAddWatch)

	for round := range 3 {
		rebreak(t, wire, s)
		for i, path := range paths {
			create(t, w, fmt.Sprintf("%s/new-%d", path, round), payload(100+round), 0)
			set(t, w, path+"/i-1", payload(200+round))
			seen[i].untilSame(t, w, path)
		}
	}
	require.Equal(t, asked, wire.Requests(opAddWatch), "what is known is not asked again")
	require.Zero(t, wire.Requests(opMultiRead))
	require.Equal(t, 1, lines.count("no persistent watches"), lines.text)
	require.EqualValues(t, 1, s.Stats().Sessions)
	require.Zero(t, s.Stats().Differences)
}

// TestMultiReadRefused: whatever reads first learns that nodes are to be read one by one, and gets its answer.
func TestMultiReadRefused(t *testing.T) {
	t.Parallel()
	zks := server(t)
	w := writer(t, zks.Addr())
	fill(t, w, "/web", 20)
	watch := func(o zookeeper.SourceOptions) func(*testing.T, *zookeeper.Session) {
		return func(t *testing.T, s *zookeeper.Session) {
			seen := observe(t, s.Source("web", "/web", o))
			seen.untilCount(t, 20)
			set(t, w, "/web/i-1", payload(100))
			seen.untilSame(t, w, "/web")
			set(t, w, "/web/i-1", payload(1))
			seen.untilSame(t, w, "/web")
		}
	}
	for name, read := range map[string]func(*testing.T, *zookeeper.Session){
		"watching": watch(zookeeper.SourceOptions{}),
		"polling":  watch(zookeeper.SourceOptions{Poll: 20 * time.Millisecond}),
		"Read": func(t *testing.T, s *zookeeper.Session) {
			nodes, err := s.Read(within(t, patience), "/web")
			require.NoError(t, err)
			require.Len(t, nodes, 20)
		},
		"Snapshot": func(t *testing.T, s *zookeeper.Session) {
			snap, err := s.Snapshot(within(t, patience), "web", "/web")
			require.NoError(t, err)
			require.Len(t, snap.Instances, 20)
		},
		"Services": func(t *testing.T, s *zookeeper.Session) {
			found, err := s.Services(within(t, patience), "/")
			require.NoError(t, err)
			require.Equal(t, []zookeeper.ServicePath{{Path: "/web", Instances: 20}}, found)
		},
	} {
		t.Run(name, func(t *testing.T) {
			wire := zktest.NewProxy(t, zks.Addr())
			wire.Refuse(opMultiRead)
			s := open(t, zookeeper.Options{Hosts: []string{wire.Addr()}})
			read(t, s)
			require.Equal(t, 1, wire.Requests(opMultiRead))
			require.True(t, s.Status().Classic)
		})
	}
}

// TestAddWatchNeverAnswered: something on the way that closes connections instead of answering does not keep a source
// from ever reading.
func TestAddWatchNeverAnswered(t *testing.T) {
	t.Parallel()
	zks := server(t)
	w := writer(t, zks.Addr())
	fill(t, w, "/web", 20)
	wire := zktest.NewProxy(t, zks.Addr())
	wire.DropRequests(func(_, op int32) bool {
		if op == opAddWatch {
			wire.Break()
		}
		return op == opAddWatch
	})
	log, lines := silent()
	s := open(t, zookeeper.Options{Hosts: []string{wire.Addr()}, SessionTimeout: 4 * time.Second, Log: log})
	o := observe(t, s.Source("web", "/web", zookeeper.SourceOptions{}))
	o.untilCount(t, 20)
	require.True(t, s.Status().Classic)
	require.Equal(t, 1, lines.count("no persistent watches"), lines.text)
	asked := wire.Requests(opAddWatch)
	require.Equal(t, 8, asked, "a server that is merely restarted is not taken for such a thing")
	rebreak(t, wire, s)
	create(t, w, "/web/new", payload(100), 0)
	o.untilCount(t, 21)
	require.Equal(t, asked, wire.Requests(opAddWatch))
}

// loseReply drops the reply to the first request of an operation. The flag tells when that has happened.
func loseReply(wire *zktest.Proxy, op int32) *atomic.Bool {
	var xid atomic.Int32 // of the request; 0 before it: neither the library nor we use that
	lost := new(atomic.Bool)
	wire.DropRequests(func(x, o int32) bool {
		if o == op {
			xid.CompareAndSwap(0, x)
		}
		return false
	})
	wire.DropReplies(func(x int32) bool { return xid.Load() == x && lost.CompareAndSwap(false, true) })
	return lost
}

// TestLostReply: a reply that never comes, on a connection that lives, holds nothing up for longer than the session
// timeout: a source finds all, and goes on.
func TestLostReply(t *testing.T) {
	t.Parallel()
	zks := server(t)
	w := writer(t, zks.Addr())
	healed := map[string]func(*testing.T){}
	for name, l := range map[string]lossOf{
		"addWatch":                {op: opAddWatch},
		"sync":                    {op: opSync},
		"listing":                 {op: opGetChildren},
		"MultiRead":               {op: opMultiRead},
		"addWatch, later":         {op: opAddWatch, later: true},
		"look, later":             {op: opExists, later: true},
		"MultiRead, later":        {op: opMultiRead, later: true},
		"classic, sync":           {op: opSync, classic: true},
		"classic, listing":        {op: opGetChildren, classic: true},
		"classic, getData":        {op: opGetData, classic: true},
		"classic, no path":        {op: opExists, classic: true, missing: true},
		"classic, listing, later": {op: opGetChildren, classic: true, later: true},
		"classic, getData, later": {op: opGetData, classic: true, later: true},
	} {
		l.path = "/" + strings.ReplaceAll(name, ", ", "-")
		healed[name] = l.begin(t, zks, w)
	}
	for name, check := range healed {
		t.Run(name, check)
	}
}

// lossOf is one case of TestLostReply.
type lossOf struct {
	op      int32
	classic bool
	later   bool // on a connection after the first
	missing bool // the path comes later
	path    string
}

// begin loses the reply. What it returns waits for the outcome, so that many cases wait at the same time.
func (l lossOf) begin(t *testing.T, zks *zktest.Server, w *zk.Conn) func(*testing.T) {
	t.Helper()
	if !l.missing {
		fill(t, w, l.path, 20)
	}
	wire := zktest.NewProxy(t, zks.Addr())
	log, lines := silent()
	s := open(t, zookeeper.Options{Hosts: []string{wire.Addr()}, SessionTimeout: 3 * time.Second, Classic: l.classic, Log: log})
	var lost *atomic.Bool
	if !l.later {
		lost = loseReply(wire, l.op)
	}
	o := observe(t, s.Source("web", l.path, zookeeper.SourceOptions{}))
	if l.later {
		o.untilCount(t, 20)
		lost = loseReply(wire, l.op)
		wire.Break()
	}
	require.Eventually(t, lost.Load, patience, poll)
	return func(t *testing.T) {
		if l.missing {
			o.until(t, "missing path", func(s discovery.Snapshot) bool { return s.Missing })
			fill(t, w, l.path, 20)
		}
		create(t, w, l.path+"/new", payload(100), 0)
		o.untilCount(t, 21)
		set(t, w, l.path+"/i-1", payload(200))
		o.untilSame(t, w, l.path)
		require.Eventually(t, func() bool { return lines.count("answered later requests") == 1 }, patience, poll)
		stats := s.Stats()
		require.EqualValues(t, 1, stats.Sessions)
		require.Zero(t, stats.Expired)
		require.Zero(t, stats.Discarded)
		require.Zero(t, stats.Differences)
	}
}

// TestLostReplyToTheLibrary: the library waits for ever for a reply that does not come. Publish ends with an error, and
// its next call finds the node that was made; so with Withdraw.
func TestLostReplyToTheLibrary(t *testing.T) {
	t.Parallel()
	zks := server(t)
	w := writer(t, zks.Addr())
	create(t, w, "/s/web/other", payload(9), 0)
	require.NoError(t, w.Delete("/s/web/other", -1))
	wire := zktest.NewProxy(t, zks.Addr())
	s := open(t, zookeeper.Options{Hosts: []string{wire.Addr()}, SessionTimeout: 2 * time.Second})
	connected(t, s)

	lost := loseReply(wire, opCreate)
	r := registration(payload(1))
	_, err := s.Publish(within(t, patience), r, "")
	require.ErrorIs(t, err, zk.ErrConnectionClosed)
	require.True(t, lost.Load())
	made := names(t, w, "/s/web")
	require.Len(t, made, 1, "the server has made it")
	node, err := publishNode(s, within(t, patience), r, "")
	require.NoError(t, err)
	require.Equal(t, "/s/web/"+made[0], node)
	require.Equal(t, made, names(t, w, "/s/web"), "and no other")

	// The reply to ours that follows a create: what was made is known, and kept.
	require.NoError(t, s.Withdraw(within(t, patience), r, node))
	lost = loseReply(wire, opGetData)
	_, err = s.Publish(within(t, patience), r, "")
	require.Error(t, err)
	require.True(t, lost.Load())
	made = names(t, w, "/s/web")
	require.Len(t, made, 1)
	node, err = publishNode(s, within(t, patience), r, "")
	require.NoError(t, err)
	require.Equal(t, "/s/web/"+made[0], node)
	one(t, w, s, payload(1))

	lost = loseReply(wire, opDelete)
	require.Error(t, s.Withdraw(within(t, patience), r, node))
	require.True(t, lost.Load())
	require.NoError(t, s.Withdraw(within(t, patience), r, node))
	require.Empty(t, names(t, w, "/s/web"))
	require.EqualValues(t, 1, s.Stats().Sessions)
}

// TestLostEvents: what a watch should have told and did not is found by the next full reading, and counted.
func TestLostEvents(t *testing.T) {
	both(t, func(t *testing.T, with zookeeper.Options) {
		t.Parallel()
		zks := server(t)
		w := writer(t, zks.Addr())
		fill(t, w, "/web", 20)
		wire := zktest.NewProxy(t, zks.Addr())
		s := open(t, zookeeper.Options{Classic: with.Classic, Hosts: []string{wire.Addr()}, AntiEntropy: 300 * time.Millisecond})
		o := observe(t, s.Source("web", "/web", zookeeper.SourceOptions{}))
		o.untilCount(t, 20)

		for i, change := range []func(){
			func() { create(t, w, "/web/new", payload(100), 0) },
			func() { set(t, w, "/web/i-1", payload(101)) },
			func() { require.NoError(t, w.Delete("/web/i-2", -1)) },
			func() {
				_, err := w.Multi(&zk.DeleteRequest{Path: "/web/i-3", Version: -1},
					&zk.CreateRequest{Path: "/web/i-3", Data: []byte(payload(103)), Acl: world})
				require.NoError(t, err)
			},
		} {
			wire.DropReplies(func(xid int32) bool { return xid == xidEvent })
			change()
			o.untilSame(t, w, "/web")
			require.Eventually(t, func() bool { return s.Stats().Differences == uint64(i+1) }, patience, poll)
			wire.DropReplies(nil)
		}
		// The watches stand again: what they tell is no difference.
		for n := range 4 {
			set(t, w, fmt.Sprintf("/web/i-%d", 10+n), payload(200+n))
			o.untilSame(t, w, "/web")
		}
		require.EqualValues(t, 4, s.Stats().Differences)
		require.Zero(t, s.Stats().Reconnects)
	})
}

// TestReadsUnderWay: however much there is to read, and by however many sources, few requests of a session wait for
// their answers at a time.
func TestReadsUnderWay(t *testing.T) {
	const nodes = 10_000
	zks := server(t)
	w := writer(t, zks.Addr())
	fill(t, w, "/web", nodes)
	both(t, func(t *testing.T, with zookeeper.Options) {
		// A MultiRead has 400 reads. With the nodes the directory itself is read.
		op, most, all := opMultiRead, 4, 2*((nodes+1+399)/400)
		if with.Classic {
			op, most, all = opGetData, 64, 2*nodes
		}
		wire := zktest.NewProxy(t, zks.Addr())
		wire.DropRequests(func(_, o int32) bool {
			if o == op {
				wire.StallReplies()
			}
			return false
		})
		s := open(t, zookeeper.Options{Classic: with.Classic, Hosts: []string{wire.Addr()}, SessionTimeout: time.Minute})
		var seen []*observer
		for range 2 {
			seen = append(seen, observe(t, s.Source("web", "/web", zookeeper.SourceOptions{})))
		}
		require.Eventually(t, func() bool { return wire.Requests(op) >= most }, patience, poll)
		// What is sent after them has arrived; so would have more of them.
		for range 5 {
			before := wire.Requests(opGetChildren)
			ctx, cancel := context.WithCancel(context.Background())
			asked := make(chan error)
			go func() {
				_, err := s.Children(ctx, "/")
				asked <- err
			}()
			require.Eventually(t, func() bool { return wire.Requests(opGetChildren) > before }, patience, poll)
			cancel()
			require.ErrorIs(t, <-asked, context.Canceled)
		}
		require.Equal(t, most, wire.Requests(op), "of the session, not of each source")

		wire.DropRequests(nil)
		wire.Resume()
		for _, o := range seen {
			o.untilCount(t, nodes)
		}
		require.Equal(t, all, wire.Requests(op), "each is read once by each source")
	})
}
