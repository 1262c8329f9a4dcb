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

// quorumLimit is how long an ensemble may take to find a leader.
const quorumLimit = time.Minute

// tally keeps of a source's snapshots only what a fleet's test asks for.
type tally struct {
	mu     sync.Mutex
	latest discovery.Snapshot
	least  int // instances in the smallest since the last mark; -1: none was sent
}

func (a *tally) take(snap discovery.Snapshot) {
	a.mu.Lock()
	defer a.mu.Unlock()
	a.latest = snap
	if a.least < 0 || len(snap.Instances) < a.least {
		a.least = len(snap.Instances)
	}
}

// shows reports whether the latest snapshot has the nodes of these names, which are sorted.
func (a *tally) shows(want []string) bool {
	a.mu.Lock()
	defer a.mu.Unlock()
	if len(a.latest.Instances) != len(want) {
		return false
	}
	got := make([]string, len(want))
	for i, in := range a.latest.Instances {
		got[i] = in.Node
	}
	slices.Sort(got)
	return slices.Equal(got, want)
}

// has reports whether an instance of the latest snapshot has this ServerID.
func (a *tally) has(id int) bool {
	a.mu.Lock()
	defer a.mu.Unlock()
	return slices.ContainsFunc(a.latest.Instances, func(in discovery.Instance) bool { return in.ServerID == id })
}

// mark begins to look for the smallest snapshot anew.
func (a *tally) mark() {
	a.mu.Lock()
	defer a.mu.Unlock()
	a.least = -1
}

func (a *tally) smallest() int {
	a.mu.Lock()
	defer a.mu.Unlock()
	return a.least
}

// agent is one session with one source.
type agent struct {
	*tally
	s *zookeeper.Session
}

// fleet opens n sessions with a source each, which end with the test.
func fleet(t testing.TB, n int, path string, options func(i int) zookeeper.Options, of zookeeper.SourceOptions) []agent {
	t.Helper()
	ctx, cancel := context.WithCancel(context.Background())
	var all sync.WaitGroup
	agents := make([]agent, n)
	for i := range agents {
		a := agent{&tally{least: -1}, zookeeper.New(options(i))}
		agents[i] = a
		out := make(chan discovery.Snapshot)
		all.Go(func() {
			defer close(out)
			if err := a.s.Source("web", path, of).Run(ctx, out); !errors.Is(err, context.Canceled) {
				t.Errorf("Run returned %v", err)
			}
		})
		all.Go(func() {
			for snap := range out {
				a.take(snap)
			}
		})
	}
	t.Cleanup(func() {
		cancel()
		for _, a := range agents {
			all.Go(a.s.Close)
		}
		all.Wait()
	})
	return agents
}

// allOf waits until something is true of every agent.
func allOf(t testing.TB, agents []agent, why string, what func(agent) bool) {
	t.Helper()
	for i, a := range agents {
		require.Eventually(t, func() bool { return what(a) }, 2*patience, poll, "agent %d: %s", i, why)
	}
}

// unharmed: nobody's session has ended, no view was smaller than so many since the last mark, and each watch has told
// of everything.
func unharmed(t testing.TB, agents []agent, least int) {
	t.Helper()
	for i, a := range agents {
		if smallest := a.smallest(); smallest >= 0 {
			require.GreaterOrEqual(t, smallest, least, "agent %d", i)
		}
		stats := a.s.Stats()
		require.EqualValues(t, 1, stats.Sessions, "agent %d", i)
		require.Zero(t, stats.Expired, "agent %d", i)
		require.Zero(t, stats.Differences, "agent %d", i)
	}
}

// insistent is a client of an ensemble whose requests are repeated until they are answered.
type insistent struct {
	*zk.Conn
}

func insist(t testing.TB, hosts []string, timeout time.Duration) insistent {
	t.Helper()
	log, _ := silent()
	c, events, err := zk.Connect(hosts, timeout, zk.WithLogger(log))
	require.NoError(t, err)
	t.Cleanup(func() {
		c.Close()
		for range events { // closed when the client has ended
		}
	})
	return insistent{c}
}

func (c insistent) create(t testing.TB, path, data string, flags int32) {
	t.Helper()
	var err error
	require.Eventually(t, func() bool {
		_, err = c.Create(path, []byte(data), flags, world)
		return err == nil || errors.Is(err, zk.ErrNodeExists)
	}, patience, poll, "create %s", path)
}

func (c insistent) remove(t testing.TB, path string) {
	t.Helper()
	require.Eventually(t, func() bool {
		err := c.Delete(path, -1)
		return err == nil || errors.Is(err, zk.ErrNoNode)
	}, patience, poll, "delete %s", path)
}

// multi makes changes of which each can be made only once.
func (c insistent) multi(t testing.TB, ops ...any) {
	t.Helper()
	require.Eventually(t, func() bool {
		_, err := c.Multi(ops...)
		return err == nil || errors.Is(err, zk.ErrNodeExists) || errors.Is(err, zk.ErrNoNode)
	}, patience, poll)
}

// owners are the sessions of a path's nodes, as the leader knows them.
func (c insistent) owners(t testing.TB, path string) map[string]int64 {
	t.Helper()
	owners := map[string]int64{}
	require.Eventually(t, func() bool {
		if _, err := c.Sync(path); err != nil {
			return false
		}
		list, _, err := c.Children(path)
		if err != nil {
			return false
		}
		clear(owners)
		for _, name := range list {
			_, stat, err := c.Exists(path + "/" + name)
			if err != nil {
				return false
			}
			owners[name] = stat.EphemeralOwner
		}
		return true
	}, patience, poll, "read the owners below %s", path)
	return owners
}

// TestFleetOfLargeViews: when a leader dies, a hundred agents come back at once and compare ten thousand nodes each,
// while nodes come and go. That costs nobody the session, neither theirs nor those of other clients that have little
// time; and all see the same in the end.
//
// With the race detector there are 1,000 nodes: it makes every agent's share many times dearer.
func TestFleetOfLargeViews(t *testing.T) {
	nodes := 10_000
	if raceEnabled {
		nodes = 1000
	}
	const size, others = 100, 20
	e := zktest.NewEnsemble(t, zktest.Options{JavaOptions: []string{"-Xmx512m"}})
	w := insist(t, e.Hosts(), 20*time.Second)
	fill(t, w.Conn, "/web", nodes)
	create(t, w.Conn, "/others/none", "", 0)
	require.NoError(t, w.Delete("/others/none", -1))
	for n := range others {
		c := insist(t, e.Hosts(), 4*time.Second)
		c.create(t, fmt.Sprintf("/others/o-%d", n), "", zk.FlagEphemeral)
	}
	owners := w.owners(t, "/others")
	require.Len(t, owners, others)

	agents := fleet(t, size, "/web", func(int) zookeeper.Options {
		return zookeeper.Options{Hosts: e.Hosts(), SessionTimeout: 12 * time.Second}
	}, zookeeper.SourceOptions{Decode: func(node string, data []byte) (discovery.Instance, error) {
		return discovery.Instance{Node: node, ServerID: len(data)}, nil // a million in all: they are to be cheap
	}})
	want := names(t, w.Conn, "/web")
	allOf(t, agents, "all nodes", func(a agent) bool { return a.shows(want) })
	for _, a := range agents {
		a.mark()
	}

	leader, err := e.Leader()
	require.NoError(t, err)
	require.NoError(t, leader.Kill())
	// Nobody is told of what is set before the connection: an agent finds it when it has read everything again.
	const changed, long = "/web/i-3", 999
	require.Eventually(t, func() bool {
		_, err := w.Set(changed, make([]byte, long), -1)
		return err == nil
	}, patience, poll)
	const changes = 50
	for n := 0; n < changes; n += 10 {
		var ops []any
		for i := n; i < n+10; i++ { // none of which is i-3
			ops = append(ops, &zk.CreateRequest{Path: fmt.Sprintf("/web/new-%d", i), Data: []byte(payload(1<<20 + i)), Acl: world},
				&zk.DeleteRequest{Path: fmt.Sprintf("/web/i-%d", i*7), Version: -1})
		}
		w.multi(t, ops...)
	}
	require.NoError(t, e.AwaitQuorum(quorumLimit))
	require.Eventually(t, func() bool {
		_, err := w.Sync("/web")
		return err == nil
	}, patience, poll)
	want = names(t, w.Conn, "/web")
	require.Len(t, want, nodes)
	allOf(t, agents, "the view equals the registry", func(a agent) bool { return a.shows(want) })
	allOf(t, agents, "the data has been read again", func(a agent) bool { return a.has(long) })
	unharmed(t, agents, nodes-changes)
	require.Equal(t, owners, w.owners(t, "/others"), "nobody else's session has expired")
}
