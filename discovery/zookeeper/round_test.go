package zookeeper

import (
	"context"
	"fmt"
	"sync"
	"testing"
	"time"

	"github.com/go-zookeeper/zk"
	"github.com/stretchr/testify/require"

	"github.com/myelin-sd/myelin/discovery"
)

// TestFailedRoundKeepsTheView: neither a listing nor a reading that fails takes anything away, and what could not be
// read stays to be read.
func TestFailedRoundKeepsTheView(t *testing.T) {
	for _, classic := range []bool{false, true} {
		s, e := answering(t, Options{Classic: classic}, func(op int32, _ []byte) (int32, []byte) {
			if op == opAddWatch {
				return 0, nil
			}
			return -5, nil // KeeperException.Code.MARSHALLINGERROR
		})
		r := &source{s: s, path: "/web", o: SourceOptions{Decode: discovery.DecodeNerve}}
		v := newView(discovery.DecodeNerve)
		v.list([]string{"a", "b"})
		v.read("a", readingOf(1, `{"host":"h","port":1}`))
		v.read("b", readingOf(2, `{"host":"g","port":1}`))
		before := v.snapshot("s", time.Time{})
		require.Len(t, before.Instances, 2)

		nodes := func() task { return task{nodes: map[string]struct{}{"a": {}}} }
		for name, tk := range map[string]task{
			"listing": {arm: true, list: true, all: true}, "looking": {look: true}, "reading": nodes(),
		} {
			require.ErrorContains(t, r.round(context.Background(), e, v, &tk, newInbox()), "code -5", name)
			require.False(t, tk.empty(), name)
			require.False(t, v.changed, name)
			require.True(t, v.snapshot("s", time.Time{}).Equal(before), name)
		}
		require.NoError(t, e.tap.Close())
		tk := nodes()
		require.ErrorIs(t, r.round(context.Background(), e, v, &tk, newInbox()), errLost)
		require.False(t, tk.empty())
		require.True(t, v.snapshot("s", time.Time{}).Equal(before))
	}
}

// TestMalformedReplies: a reply that makes no sense takes nothing away either.
func TestMalformedReplies(t *testing.T) {
	good := appendRead(nil, []byte(`{"host":"h","port":2}`), zk.Stat{Czxid: 1, Mzxid: 9})
	for name, body := range map[string][]byte{
		"nothing":        nil,
		"cut short":      good[:len(good)-3],
		"no end":         good,
		"another number": appendEnd(append(good, good...)),
		"rest":           append(appendEnd(good), 1),
		"other reading":  appendEnd(request(nil).int32(8).bool(false).int32(0).int32(0)),
		"failed with 0":  appendEnd(appendFailedRead(nil, 0)),
		"length":         request(nil).int32(opGetData).bool(false).int32(0).int32(1 << 30),
	} {
		s, e := answering(t, Options{}, func(int32, []byte) (int32, []byte) { return 0, body })
		r := &source{s: s, path: "/web", o: SourceOptions{Decode: discovery.DecodeNerve}}
		v := newView(discovery.DecodeNerve)
		v.read("a", readingOf(1, `{"host":"h","port":1}`))
		tk := task{nodes: map[string]struct{}{"a": {}}}
		require.ErrorIs(t, r.round(context.Background(), e, v, &tk, newInbox()), errMalformed, name)
		require.Len(t, v.snapshot("s", time.Time{}).Instances, 1, name)
	}
}

// TestImpossibleNames: names that no child can have come from no ZooKeeper. Each would stand for another node than it
// says, and the directory's own for one that is never read.
func TestImpossibleNames(t *testing.T) {
	for _, name := range []string{"", ".", "..", "a/b", "/"} {
		s, e := answering(t, Options{}, func(op int32, _ []byte) (int32, []byte) {
			if op == opGetChildren2 {
				return 0, appendStat(request(nil).int32(2).string("b").string(name), zk.Stat{})
			}
			return 0, nil
		})
		r := &source{s: s, path: "/web", o: SourceOptions{Decode: discovery.DecodeNerve}}
		v := newView(discovery.DecodeNerve)
		v.read("a", readingOf(1, `{"host":"h","port":1}`))
		tk := task{list: true}
		require.ErrorIs(t, r.round(context.Background(), e, v, &tk, newInbox()), errMalformed, "%q", name)
		require.Len(t, v.snapshot("s", time.Time{}).Instances, 1, "%q", name)

		box := s.listen("/web")
		box.take()
		s.route(event{zk.EventNodeCreated, "/web/" + name})
		_, _, nodes := box.take()
		require.Empty(t, nodes, "%q", name)
	}
}

// TestLargeRepliesAreReadInHalves: registrations that together are more than is taken at once are still read, and one
// that alone is more is refused, not the others.
func TestLargeRepliesAreReadInHalves(t *testing.T) {
	asked := 0
	s, e := answering(t, Options{}, func(_ int32, body []byte) (int32, []byte) {
		asked++
		var out []byte
		for _, p := range readsOf(t, body) {
			size := nodeMost/2 + 100
			if p == "/web/huge" {
				size = nodeMost + 1
			}
			out = appendRead(out, make([]byte, size), zk.Stat{})
		}
		return 0, appendEnd(out)
	})
	var read, refused []string
	each := func(name string, r reading, err error) {
		if tooLarge(err) {
			refused = append(refused, name)
			return
		}
		require.NoError(t, err)
		require.Len(t, r.data, nodeMost/2+100)
		read = append(read, name)
	}
	require.NoError(t, s.readNodes(context.Background(), e, "/web", []string{"a", "b", "huge", "c", "d"}, false, each))
	require.ElementsMatch(t, []string{"a", "b", "c", "d"}, read)
	require.Equal(t, []string{"huge"}, refused)
	require.Greater(t, asked, 5)
	require.Len(t, s.budget.batches, mostBatches, "all places are free again")
}

// TestUnits: no request is larger than a server takes, whatever the names are, and none is left out.
func TestUnits(t *testing.T) {
	long := func(n, length int) (names []string) {
		for i := range n {
			names = append(names, fmt.Sprintf("%0*d", length, i))
		}
		return names
	}
	for _, names := range [][]string{nil, {"a"}, long(1000, 10), long(20, 64<<10), append(long(3, 300<<10), long(500, 3)...)} {
		var all []string
		for _, u := range units("/services/web", names, true) {
			require.NotEmpty(t, u)
			require.LessOrEqual(t, len(u), batchNodes)
			if len(u) > 1 {
				require.LessOrEqual(t, len(u.request("/services/web", true, false)), batchBytes+100)
			}
			all = append(all, u...)
		}
		require.Equal(t, names, all)
	}
	require.Len(t, units("/", long(1000, 10), true), 3)
	require.Len(t, units("/", long(7, 10), false), 7)
}

// TestAuditCount: only what nobody has told of is a difference.
func TestAuditCount(t *testing.T) {
	set := func(names ...string) map[string]struct{} {
		m := map[string]struct{}{}
		for _, n := range names {
			m[n] = struct{}{}
		}
		return m
	}
	found := func() *audit {
		a := newAudit()
		a.names, a.nodes = set("joined", "left", "told"), set("changed", "told too")
		return a
	}
	a := found()
	a.hear(false, set("told"))
	a.hear(false, set("told too", "another"))
	require.Equal(t, 3, a.count())
	a = found()
	a.hear(true, set("told too"))
	a.hear(false, nil)
	require.Equal(t, 1, a.count(), "the set of children was told of")
	require.Zero(t, newAudit().count())
}

// directoryServer answers as a server does that has one directory with the node "a" in it.
type directoryServer struct {
	t *testing.T

	mu       sync.Mutex // guards all below
	pzxid    int64
	mzxid    int64
	refusing bool    // reads of data fail
	ops      []int32 // all requests
}

func (d *directoryServer) reply(op int32, body []byte) (int32, []byte) {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.ops = append(d.ops, op)
	stat := zk.Stat{Czxid: 1, Pzxid: d.pzxid}
	switch {
	case op == opExists:
		return 0, appendStat(nil, stat)
	case op == opGetChildren2:
		return 0, appendStat(request(nil).int32(1).string("a"), stat)
	case op == opMultiRead && d.refusing:
		return -5, nil
	case op == opMultiRead:
		var out []byte
		for _, path := range readsOf(d.t, body) {
			if path == "/web" {
				out = appendRead(out, nil, stat)
			} else {
				out = appendRead(out, fmt.Appendf(nil, `{"host":"h","port":%d}`, d.mzxid), zk.Stat{Czxid: d.mzxid, Mzxid: d.mzxid})
			}
		}
		return 0, appendEnd(out)
	}
	return 0, nil
}

// change has the server hold other things from now on, and forgets what it has been asked.
func (d *directoryServer) change(f func()) {
	d.mu.Lock()
	defer d.mu.Unlock()
	f()
	d.ops = nil
}

func (d *directoryServer) asked(ops ...int32) bool {
	d.mu.Lock()
	defer d.mu.Unlock()
	for _, op := range d.ops {
		if len(ops) > 0 && op == ops[0] {
			ops = ops[1:]
		}
	}
	return len(ops) == 0
}

// TestLookIsOfOneConnection: that a connection has found the directory as it was left says nothing on the next one,
// when what else there was to be read then could not be.
func TestLookIsOfOneConnection(t *testing.T) {
	const patience, poll = 30 * time.Second, time.Millisecond
	d := &directoryServer{t: t, pzxid: 5, mzxid: 1}
	s, e := answering(t, Options{}, d.reply)
	establish(s, e)
	ctx, cancel := context.WithCancel(context.Background())
	out, done := make(chan discovery.Snapshot), make(chan error, 1)
	go func() { done <- s.Source("web", "/web", SourceOptions{Immutable: true}).Run(ctx, out) }()
	defer func() { cancel(); <-done }()
	require.EqualValues(t, 1, (<-out).Instances[0].Endpoint.Port())

	// One child stays to be read, over the look at the directory and beyond.
	d.change(func() { d.refusing = true })
	s.route(event{zk.EventNodeDataChanged, "/web/a"})
	require.Eventually(t, func() bool { return d.asked(opMultiRead) }, patience, poll)
	d.change(func() {})
	establish(s, answeringEpoch(t, s, 2, d.reply))
	require.Eventually(t, func() bool { return d.asked(opExists, opMultiRead) }, patience, poll)

	// It is read on the next connection, before the look there, and made anew between the two.
	again := answeringEpoch(t, s, 3, func(op int32, body []byte) (int32, []byte) {
		if op == opExists {
			d.change(func() { d.pzxid, d.mzxid = 6, 2 })
		}
		return d.reply(op, body)
	})
	d.change(func() { d.refusing = false })
	establish(s, again)
	select {
	case snap := <-out:
		require.EqualValues(t, 2, snap.Instances[0].Endpoint.Port())
	case <-time.After(patience):
		t.Fatal("the node made anew is not read")
	}
}

// TestAgainWaits: between the end of a connection and the library's word on it, a reader that begins again waits.
func TestAgainWaits(t *testing.T) {
	d := &directoryServer{t: t}
	s, dead := answering(t, Options{}, d.reply)
	require.NoError(t, dead.tap.Close())
	establish(s, dead)
	done := make(chan error, 1)
	go func() {
		_, err := s.Children(context.Background(), "/web")
		done <- err
	}()
	require.Eventually(t, func() bool { return s.reads.Load() > 0 }, 30*time.Second, time.Millisecond)
	alive := answeringEpoch(t, s, 2, d.reply)
	before := s.reads.Load()
	for range 1000 {
		_, err := s.ask(context.Background(), alive, syncRequest("/web"), nodeMost)
		require.NoError(t, err)
	}
	establish(s, alive)
	require.NoError(t, <-done)
	require.LessOrEqual(t, s.reads.Load()-before, uint64(1000+1), "it asks a dead connection")
}

// TestCatchUpFirst: whatever is read first on a connection, the server has caught up with its leader before. What was
// left over from the connection before is read at once, and a member that lags behind does not know of new nodes.
func TestCatchUpFirst(t *testing.T) {
	for name, tk := range map[string]task{
		"look": {look: true}, "list": {list: true}, "all": {all: true}, "nodes": {nodes: map[string]struct{}{"a": {}}},
	} {
		d := &directoryServer{t: t}
		s, e := answering(t, Options{}, d.reply)
		<-e.current
		e.current <- false
		r := &source{s: s, path: "/web", o: SourceOptions{Decode: discovery.DecodeNerve}}
		v := newView(discovery.DecodeNerve)
		v.read("a", readingOf(1, `{"host":"h","port":1}`))
		tk.arm = true
		require.NoError(t, r.round(context.Background(), e, v, &tk, newInbox()), name)
		require.Equal(t, []int32{opAddWatch, opSync}, d.ops[:2], name)
		require.Greater(t, len(d.ops), 2, name)
	}
}
