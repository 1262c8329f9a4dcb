package zookeeper_test

import (
	"context"
	"fmt"
	"math/rand/v2"
	"slices"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/go-zookeeper/zk"
	"github.com/stretchr/testify/require"

	"github.com/myelin-sd/myelin/discovery"
	"github.com/myelin-sd/myelin/discovery/zookeeper"
	"github.com/myelin-sd/myelin/discovery/zookeeper/zktest"
)

// both runs a test with one persistent watch, and with one watch per node.
func both(t *testing.T, test func(t *testing.T, with zookeeper.Options)) {
	for _, classic := range []bool{false, true} {
		t.Run(map[bool]string{false: "persistent", true: "classic"}[classic], func(t *testing.T) {
			test(t, zookeeper.Options{Classic: classic})
		})
	}
}

// TestSourceFollowsChanges: a path that comes later, joins, leaves, changed data, a path deleted and made again.
func TestSourceFollowsChanges(t *testing.T) {
	both(t, func(t *testing.T, with zookeeper.Options) {
		zks := server(t)
		w := writer(t, zks.Addr())
		s := open(t, zookeeper.Options{Classic: with.Classic, Hosts: []string{zks.Addr()}})
		o := observe(t, s.Source("web", "/a/b/web", zookeeper.SourceOptions{}))

		snap := o.until(t, "missing path", func(s discovery.Snapshot) bool { return s.Missing })
		require.Empty(t, snap.Instances)
		require.False(t, snap.Tree.Known())
		require.Equal(t, "web", snap.Service)
		require.EqualValues(t, 1, snap.Version)
		exists, _, err := w.Exists("/a")
		require.NoError(t, err)
		require.False(t, exists, "a reader must not make paths")

		one := create(t, w, "/a/b/web/i-1_", payload(1), zk.FlagEphemeral|zk.FlagSequence)
		snap = o.untilCount(t, 1)
		in := snap.Instances[0]
		require.Equal(t, "10.0.0.1:8080", in.Endpoint.String())
		require.Equal(t, "i-1", in.Name)
		require.Equal(t, "i-1_0000000000", in.Node)
		require.EqualValues(t, 0, *in.ID)
		require.Equal(t, w.SessionID(), in.Session)
		require.WithinDuration(t, time.Now(), in.Created, time.Minute)

		first := snap.Tree
		require.Positive(t, first.Created)

		two := create(t, w, "/a/b/web/i-2_", payload(2), zk.FlagEphemeral|zk.FlagSequence)
		second := o.untilCount(t, 2).Tree
		require.True(t, second.Newer(first), "%v after %v", second, first)
		_, err = w.Set(two, []byte(`{"host":"10.0.0.2","port":8080,"name":"i-2","weight":7}`), -1)
		require.NoError(t, err)
		o.until(t, "new weight", func(s discovery.Snapshot) bool {
			return len(s.Instances) == 2 && s.Instances[1].Weight != nil && *s.Instances[1].Weight == 7
		})
		// The watch stands again after a change: a second one arrives too.
		_, err = w.Set(two, []byte(payload(3)), -1)
		require.NoError(t, err)
		o.until(t, "new address", func(s discovery.Snapshot) bool {
			return len(s.Instances) == 2 && s.Instances[1].Endpoint.Host() == "10.0.0.3"
		})

		require.NoError(t, w.Delete(one, -1))
		o.untilCount(t, 1)
		require.NoError(t, w.Delete(two, -1))
		snap = o.untilCount(t, 0)
		require.False(t, snap.Missing, "an empty path is not a missing one")

		require.NoError(t, w.Delete("/a/b/web", -1))
		o.until(t, "path deleted", func(s discovery.Snapshot) bool { return s.Missing })
		create(t, w, "/a/b/web/i-4_", payload(4), zk.FlagSequence)
		again := o.untilCount(t, 1).Tree
		require.True(t, again.Newer(second) && !second.Newer(again), "a path made again is no older state: %v after %v", again, second)

		versions := o.all()
		for i, s := range versions {
			require.EqualValues(t, i+1, s.Version)
		}
		require.Zero(t, s.Stats().Differences)
	})
}

// TestSourceReadsOnlyWhatChanged: one join costs one read, and a listing where there is one watch per node, however many
// there are.
func TestSourceReadsOnlyWhatChanged(t *testing.T) {
	both(t, func(t *testing.T, with zookeeper.Options) {
		zks := server(t)
		w := writer(t, zks.Addr())
		create(t, w, "/web/x", payload(0), 0)
		for n := 1; n < 300; n++ {
			create(t, w, fmt.Sprintf("/web/x%d", n), payload(n), 0)
		}
		s := open(t, zookeeper.Options{Classic: with.Classic, Hosts: []string{zks.Addr()}})
		o := observe(t, s.Source("web", "/web", zookeeper.SourceOptions{}))
		o.untilCount(t, 300)

		before := s.Stats().Reads
		create(t, w, "/web/new", payload(1000), 0)
		o.untilCount(t, 301)
		require.LessOrEqual(t, s.Stats().Reads-before, map[bool]uint64{false: 1, true: 2}[with.Classic])
		require.Zero(t, s.Stats().Differences)
	})
}

// TestSourceStorm: 200 joins and 200 leaves at once, by several writers.
func TestSourceStorm(t *testing.T) {
	both(t, func(t *testing.T, with zookeeper.Options) {
		zks := server(t)
		w := writer(t, zks.Addr())
		create(t, w, "/web/first", payload(0), 0)
		s := open(t, zookeeper.Options{Classic: with.Classic, Hosts: []string{zks.Addr()}})
		o := observe(t, s.Source("web", "/web", zookeeper.SourceOptions{}))
		o.untilCount(t, 1)

		many := func(act func(n int) error) {
			var all sync.WaitGroup
			for n := 1; n <= 200; n++ {
				all.Go(func() {
					if err := act(n); err != nil {
						t.Errorf("instance %d: %v", n, err)
					}
				})
			}
			all.Wait()
		}
		path := func(n int) string { return fmt.Sprintf("/web/i-%d", n) }
		many(func(n int) error {
			_, err := w.Create(path(n), []byte(payload(n)), zk.FlagEphemeral, world)
			return err
		})
		snap := o.untilCount(t, 201)
		require.True(t, slices.IsSortedFunc(snap.Instances, discovery.Compare))
		many(func(n int) error { return w.Delete(path(n), -1) })
		o.untilCount(t, 1)
	})
}

// TestSourceHostile: each bad registration is rejected alone, with its reason.
func TestSourceHostile(t *testing.T) {
	both(t, func(t *testing.T, with zookeeper.Options) {
		zks := server(t)
		w := writer(t, zks.Addr())
		create(t, w, "/web/good", payload(1), 0)
		bad := map[string]struct{ data, reason string }{
			"empty":           {"", discovery.ReasonUndecodable},
			"nojson":          {"global\n\tdaemon", discovery.ReasonUndecodable},
			"huge":            {strings.Repeat("x", 1_000_000), discovery.ReasonOversize},
			"host":            {`{"host":"a;b","port":1}`, discovery.ReasonHost},
			"socket":          {`{"host":"unix@/run/x","port":1}`, discovery.ReasonHost},
			"port":            {`{"host":"10.0.0.1","port":70000}`, discovery.ReasonPort},
			"options":         {`{"host":"10.0.0.1","port":1,"haproxy_server_options":"check\n\tserver evil 1.2.3.4:1"}`, discovery.ReasonOptions},
			"status":          {`{"host":"10.0.0.1","port":1,"available":false}`, discovery.ReasonStatus},
			"base64_4_!!!!_0": {"", discovery.ReasonUndecodable},
		}
		for name, b := range bad {
			create(t, w, "/web/"+name, b.data, 0)
		}
		s := open(t, zookeeper.Options{Classic: with.Classic, Hosts: []string{zks.Addr()}})
		o := observe(t, s.Source("web", "/web", zookeeper.SourceOptions{}))
		snap := o.untilCount(t, 1)
		require.Len(t, snap.Rejected, len(bad))
		for _, r := range snap.Rejected {
			require.Equal(t, bad[r.Node].reason, r.Reason, r.Node)
			require.NotContains(t, r.Detail, "\n")
			require.Less(t, len(r.Detail), 2000)
			require.False(t, r.Created.IsZero())
		}
		// A bad one that is mended counts; a good one that turns bad is left out.
		_, err := w.Set("/web/host", []byte(payload(2)), -1)
		require.NoError(t, err)
		o.untilCount(t, 2)
		_, err = w.Set("/web/good", []byte("}"), -1)
		require.NoError(t, err)
		snap = o.untilCount(t, 1)
		require.Len(t, snap.Rejected, len(bad))
	})
}

// TestSourceUnreadable: a child that this client may not read is named; the others are served.
func TestSourceUnreadable(t *testing.T) {
	both(t, func(t *testing.T, with zookeeper.Options) {
		zks := server(t)
		w := writer(t, zks.Addr())
		create(t, w, "/web/good", payload(1), 0)
		_, err := w.Create("/web/closed", []byte(payload(2)), 0, zk.DigestACL(zk.PermAll, "user", "password"))
		require.NoError(t, err)
		s := open(t, zookeeper.Options{Classic: with.Classic, Hosts: []string{zks.Addr()}})
		o := observe(t, s.Source("web", "/web", zookeeper.SourceOptions{}))
		snap := o.untilCount(t, 1)
		require.Len(t, snap.Rejected, 1)
		require.Equal(t, discovery.ReasonUnreadable, snap.Rejected[0].Reason)
	})
}

// TestSourcePathEncoded: names that carry the payload are not read.
func TestSourcePathEncoded(t *testing.T) {
	zks := server(t)
	w := writer(t, zks.Addr())
	prefix, ok := discovery.EncodeName([]byte(payload(1)))
	require.True(t, ok)
	create(t, w, "/web/"+prefix, "never read", zk.FlagSequence)
	s := open(t, zookeeper.Options{Hosts: []string{zks.Addr()}})
	o := observe(t, s.Source("web", "/web", zookeeper.SourceOptions{}))
	snap := o.untilCount(t, 1)
	require.Equal(t, "10.0.0.1:8080", snap.Instances[0].Endpoint.String())
	require.EqualValues(t, 0, *snap.Instances[0].ID)
	require.EqualValues(t, 3, s.Stats().Reads, "the watch, the sync and the listing alone")
}

// TestSourcePoll: reads at an interval, without a watch.
func TestSourcePoll(t *testing.T) {
	zks := server(t)
	w := writer(t, zks.Addr())
	s := open(t, zookeeper.Options{Hosts: []string{zks.Addr()}})
	o := observe(t, s.Source("web", "/web", zookeeper.SourceOptions{Poll: 20 * time.Millisecond}))
	o.until(t, "missing path", func(s discovery.Snapshot) bool { return s.Missing })
	made := create(t, w, "/web/one", payload(1), 0)
	o.untilCount(t, 1)
	_, err := w.Set(made, []byte(payload(2)), -1)
	require.NoError(t, err)
	o.until(t, "new data", func(s discovery.Snapshot) bool {
		return len(s.Instances) == 1 && s.Instances[0].Endpoint.Host() == "10.0.0.2"
	})
	require.Zero(t, watchCount(t, zks))
}

// watchCount is how many watches the server keeps. (Its "wchs" leaves out those on children.)
func watchCount(t testing.TB, zks *zktest.Server) int {
	t.Helper()
	text, err := zks.Ask("mntr")
	require.NoError(t, err)
	_, text, ok := strings.Cut(text, "zk_watch_count\t")
	require.True(t, ok, "mntr without zk_watch_count")
	n, err := strconv.Atoi(strings.Fields(text)[0])
	require.NoError(t, err)
	return n
}

// TestSourceSlowConsumer: what nobody has taken yet is replaced by what is true now.
func TestSourceSlowConsumer(t *testing.T) {
	both(t, func(t *testing.T, with zookeeper.Options) {
		zks := server(t)
		w := writer(t, zks.Addr())
		create(t, w, "/web/i-0", payload(0), 0)
		s := open(t, zookeeper.Options{Classic: with.Classic, Hosts: []string{zks.Addr()}})
		ctx, cancel := context.WithCancel(context.Background())
		out := make(chan discovery.Snapshot)
		done := make(chan error)
		go func() { done <- s.Source("web", "/web", zookeeper.SourceOptions{}).Run(ctx, out) }()
		require.Len(t, (<-out).Instances, 1)
		for n := 1; n <= 20; n++ {
			create(t, w, "/web/i-"+strconv.Itoa(n), payload(n), 0)
		}
		// However many changes there were, one snapshot waits at most.
		for version := uint64(2); ; version++ {
			snap := <-out
			require.Equal(t, version, snap.Version)
			if len(snap.Instances) == 21 {
				break
			}
		}
		cancel()
		require.ErrorIs(t, <-done, context.Canceled)
	})
}

// TestSourceRunsAgain: watches that stand from before are used again, so that nothing piles up.
func TestSourceRunsAgain(t *testing.T) {
	both(t, func(t *testing.T, with zookeeper.Options) {
		zks := server(t)
		w := writer(t, zks.Addr())
		create(t, w, "/web/one", payload(1), 0)
		s := open(t, zookeeper.Options{Classic: with.Classic, Hosts: []string{zks.Addr()}})
		src := s.Source("web", "/web", zookeeper.SourceOptions{})
		for range 3 {
			ctx, cancel := context.WithCancel(context.Background())
			out := make(chan discovery.Snapshot)
			done := make(chan error)
			go func() { done <- src.Run(ctx, out) }()
			require.Len(t, (<-out).Instances, 1)
			cancel()
			require.ErrorIs(t, <-done, context.Canceled)
		}
		a, b := observe(t, src), observe(t, s.Source("again", "/web", zookeeper.SourceOptions{}))
		a.untilCount(t, 1)
		b.untilCount(t, 1)
		create(t, w, "/web/two", payload(2), 0)
		a.untilCount(t, 2)
		b.untilCount(t, 2)
	})
}

// TestSourceOutage: a ZooKeeper that stops and starts changes nothing, and a change made meanwhile arrives.
func TestSourceOutage(t *testing.T) {
	both(t, func(t *testing.T, with zookeeper.Options) {
		zks := server(t)
		w := writer(t, zks.Addr())
		for n := range 50 {
			create(t, w, "/web/i-"+strconv.Itoa(n), payload(n), 0)
		}
		log, lines := silent()
		s := open(t, zookeeper.Options{Classic: with.Classic, Hosts: []string{zks.Addr()}, Log: log})
		o := observe(t, s.Source("web", "/web", zookeeper.SourceOptions{}))
		o.untilCount(t, 50)
		sent := len(o.all())

		require.NoError(t, zks.Stop())
		disconnected(t, s)
		require.Eventually(t, func() bool { return s.Status().Attempts >= 10 }, patience, poll)
		require.Contains(t, s.Status().Error, "refused")
		require.Len(t, o.all(), sent, "an outage is no news")
		require.NoError(t, zks.Start())
		connected(t, s)
		create(t, w, "/web/new", payload(99), 0)
		o.untilCount(t, 51)
		require.Equal(t, 51, o.smallest(sent), "no snapshot may be smaller because of an outage")
		require.Equal(t, 1, lines.count("connection lost"), lines.text)
		require.Equal(t, 1, lines.count("cannot be reached"), lines.text)
		require.Equal(t, 2, lines.count("info zookeeper connected"), lines.text)
	})
}

// TestSourceExpiry: after an expired session everything is read and watched anew.
func TestSourceExpiry(t *testing.T) {
	both(t, func(t *testing.T, with zookeeper.Options) {
		zks := server(t)
		w := writer(t, zks.Addr())
		create(t, w, "/web/one", payload(1), 0)
		s := open(t, zookeeper.Options{Classic: with.Classic, Hosts: []string{zks.Addr()}})
		o := observe(t, s.Source("web", "/web", zookeeper.SourceOptions{}))
		o.untilCount(t, 1)
		first := s.Status().Session
		sent := len(o.all())

		require.NoError(t, zks.Expire(id(t, s)))
		require.Eventually(t, func() bool { st := s.Status(); return st.Connected && st.Session != first }, patience, poll)
		create(t, w, "/web/two", payload(2), 0)
		o.untilCount(t, 2)
		_, err := w.Set("/web/one", []byte(payload(3)), -1)
		require.NoError(t, err)
		o.until(t, "changed data", func(s discovery.Snapshot) bool { return s.Instances[1].Endpoint.Host() == "10.0.0.3" })
		require.GreaterOrEqual(t, o.smallest(sent), 1)
		require.EqualValues(t, 2, s.Stats().Sessions)
	})
}

func id(t testing.TB, s *zookeeper.Session) int64 {
	t.Helper()
	connected(t, s)
	n, err := strconv.ParseUint(strings.TrimPrefix(s.Status().Session, "0x"), 16, 64)
	require.NoError(t, err)
	return int64(n)
}

// chaos is how long TestSourceChaos goes on.
const chaos = 30 * time.Second

// TestSourceChaos: while writers create, set, delete and replace nodes, the wire is cut and stalled at any moment. Each
// time the writers stop, the view equals the registry, and no anti-entropy reading ever finds a difference.
func TestSourceChaos(t *testing.T) {
	both(t, func(t *testing.T, with zookeeper.Options) {
		t.Parallel()
		zks := server(t)
		w := writer(t, zks.Addr())
		create(t, w, "/web/base", payload(1<<20), 0)
		wire := zktest.NewProxy(t, zks.Addr())
		s := open(t, zookeeper.Options{Classic: with.Classic, Hosts: []string{wire.Addr()}, AntiEntropy: 500 * time.Millisecond})
		o := observe(t, s.Source("web", "/web", zookeeper.SourceOptions{}))
		o.untilCount(t, 1)

		const writers, names = 4, 2000
		random := rand.New(rand.NewPCG(1, 2))
		began, checkpoints, writes := time.Now(), 0, 0
		for ; time.Since(began) < chaos; checkpoints++ {
			enough, stop := context.WithCancel(context.Background())
			counts := make([]int, writers)
			var all sync.WaitGroup
			for i := range writers {
				all.Go(func() {
					for rnd := rand.New(rand.NewPCG(uint64(checkpoints), uint64(i))); enough.Err() == nil; counts[i]++ {
						disturb(w, rnd, names)
					}
				})
			}
			calm := checkpoints%3 == 2 // what is lost then, no reconnect makes good
			for range 3 {
				time.Sleep(time.Duration(random.IntN(500)) * time.Millisecond) // chance, not waiting for anything
				switch random.IntN(4) {
				case 0, 1:
					if calm {
						time.Sleep(time.Second)
						break
					}
					wire.Stall()
					time.Sleep(time.Duration(random.IntN(200)) * time.Millisecond)
					wire.Resume()
				default:
					if !calm {
						wire.Break()
					}
				}
			}
			stop()
			all.Wait()
			for _, n := range counts {
				writes += n
			}
			if checkpoints%3 == 1 {
				wire.Cut()
				disconnected(t, s)
				_ = w.Delete("/web/i-7", -1)
				wire.Resume()
			}
			want := registry(t, w, "/web")
			o.until(t, fmt.Sprintf("checkpoint %d: the view equals the registry", checkpoints), func(s discovery.Snapshot) bool {
				return slices.Equal(endpoints(s), want)
			})
		}
		stats := s.Stats()
		t.Logf("%d checkpoints, %d writes, %d reconnects, %d events, %d requests", checkpoints, writes, stats.Reconnects, stats.Events, stats.Reads)
		require.Greater(t, stats.Reconnects, uint64(checkpoints/2))
		require.Zero(t, stats.Differences)
	})
}

// disturb makes one random change under /web.
func disturb(w *zk.Conn, rnd *rand.Rand, names int) {
	number := rnd.IntN(names)
	path := "/web/i-" + strconv.Itoa(number)
	data := []byte(payload(number<<10 | rnd.IntN(1000)))
	switch rnd.IntN(4) {
	case 0:
		_, _ = w.Create(path, data, 0, world)
	case 1:
		_, _ = w.Set(path, data, -1)
	case 2:
		_ = w.Delete(path, -1)
	case 3:
		_, _ = w.Multi(&zk.DeleteRequest{Path: path, Version: -1}, &zk.CreateRequest{Path: path, Data: data, Acl: world})
	}
}

// registry reads the endpoints under a path through a client of its own.
func registry(t testing.TB, c *zk.Conn, path string) []string {
	t.Helper()
	var list []string
	for _, name := range names(t, c, path) {
		data, _, err := c.Get(path + "/" + name)
		require.NoError(t, err)
		in, err := discovery.DecodeNerve(name, data)
		require.NoError(t, err)
		list = append(list, name+" "+in.Endpoint.String())
	}
	return list
}

func endpoints(s discovery.Snapshot) []string {
	list := make([]string, len(s.Instances))
	for i, in := range s.Instances {
		list[i] = in.Node + " " + in.Endpoint.String()
	}
	slices.Sort(list)
	return list
}

// TestSourceManyWatches: with more watches than one SetWatches request holds (about 2,900 of this length), the client
// library loses changes on a reconnect. Whatever is done instead loses none.
func TestSourceManyWatches(t *testing.T) {
	both(t, func(t *testing.T, with zookeeper.Options) {
		zks := server(t)
		w := writer(t, zks.Addr())
		var ops []any
		ops = append(ops, &zk.CreateRequest{Path: "/web", Acl: world})
		for n := range 3500 {
			ops = append(ops, &zk.CreateRequest{Path: fmt.Sprintf("/web/host-%06d.dc1.example.com:8080", n), Data: []byte(payload(n)), Acl: world})
		}
		for chunk := range slices.Chunk(ops, 500) {
			_, err := w.Multi(chunk...)
			require.NoError(t, err)
		}
		wire := zktest.NewProxy(t, zks.Addr())
		s := open(t, zookeeper.Options{Classic: with.Classic, Hosts: []string{wire.Addr()}, AntiEntropy: 2 * time.Second})
		o := observe(t, s.Source("web", "/web", zookeeper.SourceOptions{}))
		o.untilCount(t, 3500)

		for round := range 3 {
			wire.Cut()
			disconnected(t, s)
			for n := range 200 {
				_, err := w.Set(fmt.Sprintf("/web/host-%06d.dc1.example.com:8080", (n*17+round)%3500), []byte(payload(1<<14+n)), -1)
				require.NoError(t, err)
			}
			want := registry(t, w, "/web")
			wire.Resume()
			o.until(t, "the view equals the registry", func(s discovery.Snapshot) bool { return slices.Equal(endpoints(s), want) })
		}
		require.Zero(t, s.Stats().Differences)
	})
}
