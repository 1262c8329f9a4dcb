package zookeeper_test

import (
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"slices"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/go-zookeeper/zk"
	"github.com/stretchr/testify/require"

	"github.com/myelin-sd/myelin/discovery"
	"github.com/myelin-sd/myelin/discovery/zookeeper"
	"github.com/myelin-sd/myelin/discovery/zookeeper/zktest"
)

// TestEnsembleFailures: a hundred sessions, each with an ephemeral node and a source that looks at all of these nodes,
// half of them in classic mode.
// Whatever happens to the ensemble, as long as its data is there: the nodes stay with their sessions, no view ever
// lacks one, and all goes on by itself.
func TestEnsembleFailures(t *testing.T) {
	t.Parallel()
	const size, timeout = 100, 8 * time.Second
	e := zktest.NewEnsemble(t)
	agents := fleet(t, size, "/web", func(i int) zookeeper.Options {
		return zookeeper.Options{Hosts: e.Hosts(), SessionTimeout: timeout, Classic: i%2 == 1}
	}, zookeeper.SourceOptions{})
	publish(t, agents)
	w := insist(t, e.Hosts(), 20*time.Second)
	before := w.owners(t, "/web")
	require.Len(t, before, size)
	for i, a := range agents {
		require.Equal(t, id(t, a.s), before[fmt.Sprintf("agent-%d", i)])
	}
	everywhere := func(t *testing.T) {
		t.Helper()
		want := names(t, w.Conn, "/web")
		allOf(t, agents, "the view equals the registry", func(a agent) bool { return a.shows(want) })
	}
	everywhere(t)
	for _, a := range agents {
		a.mark()
	}
	joins := 0
	// well: the fleet is as it was, and follows what changes from now on.
	well := func(t *testing.T) {
		t.Helper()
		allOf(t, agents, "connected", func(a agent) bool { return a.s.Status().Connected })
		joins++
		node := fmt.Sprintf("/web/join-%d", joins)
		w.create(t, node, payload(1<<16+joins), 0)
		everywhere(t)
		w.remove(t, node)
		everywhere(t)
		require.Equal(t, before, w.owners(t, "/web"))
		unharmed(t, agents, size)
	}

	t.Run("leader killed", func(t *testing.T) {
		old, err := e.Leader()
		require.NoError(t, err)
		require.NoError(t, old.Kill())
		require.NoError(t, e.AwaitQuorum(quorumLimit))
		well(t)
		require.NoError(t, e.Start())
	})

	t.Run("member paused", func(t *testing.T) {
		paused := e.Followers()[0]
		of := func(a agent) bool { st := a.s.Status(); return st.Connected && st.Server == paused.Addr() }
		if !slices.ContainsFunc(agents, of) { // the elections may have driven all away; those of the other one come
			require.NoError(t, e.Followers()[1].Restart())
			require.NoError(t, e.AwaitQuorum(quorumLimit))
			require.Eventually(t, func() bool { return slices.ContainsFunc(agents, of) }, patience, poll)
		}
		require.NoError(t, paused.Pause())
		allOf(t, agents, "its clients have gone to others", func(a agent) bool { return !of(a) })
		well(t)
		require.NoError(t, paused.Resume())
		require.NoError(t, e.AwaitQuorum(quorumLimit))
	})

	t.Run("member wiped", func(t *testing.T) {
		wiped := e.Followers()[0]
		require.NoError(t, wiped.Kill())
		require.NoError(t, wiped.Wipe())
		require.NoError(t, wiped.Start())
		require.NoError(t, e.AwaitQuorum(quorumLimit))
		// Now half of what serves has its data from the other half.
		old, err := e.Leader()
		require.NoError(t, err)
		require.NoError(t, old.Kill())
		require.NoError(t, e.AwaitQuorum(quorumLimit))
		well(t)
		require.NoError(t, e.Start())
	})

	t.Run("all down for longer than the session timeout", func(t *testing.T) {
		require.NoError(t, e.Kill())
		allOf(t, agents, "away for longer than the session timeout", func(a agent) bool {
			st := a.s.Status()
			return !st.Connected && time.Since(st.Since) > timeout
		})
		require.NoError(t, e.Start())
		well(t)
	})
}

// watched is a source of /web with a session of its own.
type watched struct {
	*observer
	s    *zookeeper.Session
	sent int // snapshots at a moment of the test's
}

// watch opens two of them, one with a persistent watch and one in classic mode, which the same happens to.
func watch(t *testing.T, o zookeeper.Options) []*watched {
	t.Helper()
	var modes []*watched
	for _, classic := range []bool{false, true} {
		o.Classic = classic
		s := open(t, o)
		modes = append(modes, &watched{observer: observe(t, s.Source("web", "/web", zookeeper.SourceOptions{})), s: s})
	}
	return modes
}

// publish gives every agent an ephemeral node.
func publish(t *testing.T, agents []agent) {
	t.Helper()
	var all sync.WaitGroup
	for i, a := range agents {
		all.Go(func() {
			r := discovery.Registration{Path: "/web", Prefix: fmt.Sprintf("agent-%d", i), Data: []byte(payload(i)), Ephemeral: true}
			if _, err := a.s.Publish(within(t, patience), r, ""); err != nil {
				t.Errorf("agent %d: %v", i, err)
			}
		})
	}
	all.Wait()
	require.False(t, t.Failed())
}

// TestEnsembleWiped: an ensemble that comes back without its data has never heard of what clients have seen, and refuses
// them for ever. The watchdog gives that up: the view says once that the path is missing, what this process publishes
// is published again, and what others register is found.
func TestEnsembleWiped(t *testing.T) {
	t.Parallel()
	e := zktest.NewEnsemble(t)
	w := insist(t, e.Hosts(), 20*time.Second)
	fill(t, w.Conn, "/web", 20)
	modes := watch(t, zookeeper.Options{Hosts: e.Hosts(), Watchdog: time.Second})
	for _, m := range modes {
		m.untilCount(t, 20)
	}
	registrar := open(t, zookeeper.Options{Hosts: e.Hosts(), Watchdog: time.Second})
	keep(t, registrar, registration(payload(1)))
	one(t, w.Conn, registrar, payload(1))

	require.NoError(t, e.Kill())
	require.NoError(t, e.Wipe())
	for _, m := range modes {
		disconnected(t, m.s)
	}
	require.NoError(t, e.Start())
	again := writer(t, e.Hosts()[0]) // a client of the library would stay away for ever
	for _, m := range modes {
		m.until(t, "missing path", func(s discovery.Snapshot) bool { return s.Missing })
	}
	one(t, again, registrar, payload(1))
	fill(t, again, "/web", 10)
	for _, m := range modes {
		m.untilSame(t, again, "/web")
		gone := 0
		for _, snap := range m.all() {
			if snap.Missing {
				gone++
			}
		}
		require.Equal(t, 1, gone, "said once")
		require.NotZero(t, m.s.Stats().Discarded)
		require.Zero(t, m.s.Stats().Differences)
	}
}

// TestOlderTree: a server with an older tree, as a member that lags behind or a store that was restored, is not listened
// to as long as there may be another one. It knows the client's session, and would serve it.
func TestOlderTree(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	zks := startIn(t, dir)
	w := writer(t, zks.Addr())
	fill(t, w, "/web", 20)
	newer := zktest.NewProxy(t, zks.Addr())
	const lagging = "lagging.invalid:2181"
	var older atomic.Pointer[zktest.Proxy] // where that is, once it is there
	modes := watch(t, zookeeper.Options{
		Hosts: []string{newer.Addr(), lagging}, SessionTimeout: 30 * time.Second,
		Dial: func(ctx context.Context, network, address string) (net.Conn, error) {
			if address == lagging {
				p := older.Load()
				if p == nil {
					return nil, errors.New("it is not there yet")
				}
				address = p.Addr()
			}
			return new(net.Dialer).DialContext(ctx, network, address)
		},
	})
	for _, m := range modes {
		m.untilCount(t, 20)
	}

	// A copy of the store, with the sessions in it.
	require.NoError(t, zks.Stop())
	copied := t.TempDir()
	require.NoError(t, os.CopyFS(copied, os.DirFS(dir)))
	require.NoError(t, zks.Start())
	for n := range 10 {
		path := fmt.Sprintf("/web/i-%d", n)
		require.Eventually(t, func() bool {
			err := w.Delete(path, -1)
			return err == nil || errors.Is(err, zk.ErrNoNode)
		}, patience, poll, "the writer is back")
	}
	for _, m := range modes {
		connected(t, m.s)
		m.untilCount(t, 10)
		m.sent = len(m.all())
	}

	newer.Cut()
	for _, m := range modes {
		disconnected(t, m.s)
	}
	p := zktest.NewProxy(t, startIn(t, copied).Addr())
	older.Store(p)
	require.Eventually(t, func() bool { return p.Accepted() >= 8 }, patience, poll)
	for _, m := range modes {
		require.False(t, m.s.Status().Connected)
		require.Contains(t, m.s.Status().Error, "its data is older than what this client has seen")
	}
	newer.Resume()
	for _, m := range modes {
		connected(t, m.s)
		require.Equal(t, newer.Addr(), m.s.Status().Server)
	}
	create(t, w, "/web/new", payload(100), 0)
	for _, m := range modes {
		m.untilCount(t, 11)
		require.Len(t, m.all(), m.sent+1, "nothing else was shown meanwhile")
		require.EqualValues(t, 1, m.s.Stats().Sessions)
	}
}

// startIn starts a server with a directory that the test knows.
func startIn(t *testing.T, dir string) *zktest.Server {
	t.Helper()
	zks, err := zktest.Start(dir, zktest.Options{})
	if errors.Is(err, zktest.ErrMissing) && os.Getenv("CI") != "true" {
		t.Skipf("NOT TESTED against a real ZooKeeper: %v", err)
	}
	require.NoError(t, err)
	t.Cleanup(func() { require.NoError(t, zks.Kill()) })
	return zks
}

// TestLaggingMember: a member that has been frozen while the others went on is all that is left to go to. What it shows
// is what it has caught up with, never what it knew before.
func TestLaggingMember(t *testing.T) {
	t.Parallel()
	e := zktest.NewEnsemble(t)
	lagging := e.Followers()[0]
	var wires []*zktest.Proxy
	var hosts []string
	var late *zktest.Proxy // to the one that lags
	for _, m := range e.Members() {
		wire := zktest.NewProxy(t, m.Addr())
		hosts = append(hosts, wire.Addr())
		if m == lagging {
			late = wire
			late.Cut()
		} else {
			wires = append(wires, wire)
		}
	}
	leader, err := e.Leader()
	require.NoError(t, err)
	w := writer(t, leader.Addr())
	fill(t, w, "/web", 20)
	modes := watch(t, zookeeper.Options{Hosts: hosts, SessionTimeout: 30 * time.Second})
	for _, m := range modes {
		m.untilCount(t, 20)
	}

	for round := range 3 {
		require.NoError(t, lagging.Pause())
		for n := range 5 {
			require.NoError(t, w.Delete(fmt.Sprintf("/web/i-%d", round*5+n), -1))
		}
		left := 15 - 5*round
		for _, m := range modes {
			m.untilCount(t, left)
			m.sent = len(m.all())
		}
		for _, wire := range wires {
			wire.Cut()
		}
		late.Resume()
		require.NoError(t, lagging.Resume())
		for _, m := range modes {
			require.Eventually(t, func() bool { return m.s.Status().Connected && m.s.Status().Server == late.Addr() }, patience, poll)
		}
		node := fmt.Sprintf("/web/new-%d", round)
		create(t, w, node, payload(100+round), 0)
		for _, m := range modes {
			m.untilCount(t, left+1)
		}
		require.NoError(t, w.Delete(node, -1))
		for _, m := range modes {
			m.untilCount(t, left)
			for _, snap := range m.all()[m.sent:] {
				require.LessOrEqual(t, len(snap.Instances), left+1, "what is gone stays gone")
			}
		}
		late.Cut()
		for _, wire := range wires {
			wire.Resume()
		}
		for _, m := range modes {
			connected(t, m.s)
		}
		require.NoError(t, e.AwaitQuorum(quorumLimit))
	}
	for _, m := range modes {
		require.Zero(t, m.s.Stats().Differences)
		require.EqualValues(t, 1, m.s.Stats().Sessions)
	}
}
