package zookeeper_test

import (
	"context"
	"fmt"
	"math/rand/v2"
	"path"
	"strings"
	"testing"
	"time"

	"github.com/go-zookeeper/zk"
	"github.com/stretchr/testify/require"

	"github.com/myelin-sd/myelin/discovery"
	"github.com/myelin-sd/myelin/discovery/zookeeper"
	"github.com/myelin-sd/myelin/discovery/zookeeper/zktest"
)

func registration(data string) discovery.Registration {
	return discovery.Registration{Path: "/s/web", Prefix: "web-1_", Data: []byte(data), Sequential: true, Ephemeral: true}
}

func within(t testing.TB, d time.Duration) context.Context {
	t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), d)
	t.Cleanup(cancel)
	return ctx
}

func TestPublishAndWithdraw(t *testing.T) {
	zks := server(t)
	w := writer(t, zks.Addr())
	s := open(t, zookeeper.Options{Hosts: []string{zks.Addr()}})
	ctx := within(t, patience)
	r := registration(payload(1))

	node, err := publishNode(s, ctx, r, "")
	require.NoError(t, err)
	require.Equal(t, "/s/web/web-1_0000000000", node)
	data, stat, err := w.Get(node)
	require.NoError(t, err)
	require.Equal(t, payload(1), string(data))
	require.Equal(t, id(t, s), stat.EphemeralOwner)
	acl, _, err := w.GetACL("/s")
	require.NoError(t, err)
	require.Equal(t, world, acl, "parents are open to the world")

	again, err := publishNode(s, ctx, r, node)
	require.NoError(t, err)
	require.Equal(t, node, again)
	again, err = publishNode(s, ctx, r, "") // a caller that forgot
	require.NoError(t, err)
	require.Equal(t, node, again)

	r.Data = []byte(payload(2))
	again, err = publishNode(s, ctx, r, node)
	require.NoError(t, err)
	require.Equal(t, node, again)
	data, changed, err := w.Get(node)
	require.NoError(t, err)
	require.Equal(t, payload(2), string(data))
	require.Equal(t, stat.Czxid, changed.Czxid, "changed in place")

	require.NoError(t, s.Withdraw(ctx, r, node))
	require.Empty(t, names(t, w, "/s/web"))
	require.NoError(t, s.Withdraw(ctx, r, node), "gone already")
	exists, _, err := w.Exists("/s/web")
	require.NoError(t, err)
	require.True(t, exists, "the parent stays")
}

// TestPublishPersistent: the other node types of Nerve.
func TestPublishPersistent(t *testing.T) {
	zks := server(t)
	w := writer(t, zks.Addr())
	s := open(t, zookeeper.Options{Hosts: []string{zks.Addr()}})
	ctx := within(t, patience)
	for _, sequential := range []bool{false, true} {
		r := registration(payload(1))
		r.Ephemeral, r.Sequential = false, sequential
		node, err := publishNode(s, ctx, r, "")
		require.NoError(t, err)
		_, stat, err := w.Get(node)
		require.NoError(t, err)
		require.Zero(t, stat.EphemeralOwner)
		require.Equal(t, sequential, node != "/s/web/web-1_")
		again, err := publishNode(s, ctx, r, node)
		require.NoError(t, err)
		require.Equal(t, node, again)
		require.Len(t, names(t, w, "/s/web"), 1)
		require.NoError(t, s.Withdraw(ctx, r, node))
		require.Empty(t, names(t, w, "/s/web"))
	}
}

// TestPublishRefuses what could reach beyond the directory, or would cut the connection for ever.
func TestPublishRefuses(t *testing.T) {
	s := open(t, zookeeper.Options{Hosts: []string{"127.0.0.1:1"}})
	ctx := within(t, patience)
	for _, prefix := range []string{"", "a/b", "../x"} {
		r := registration(payload(1))
		r.Prefix = prefix
		_, err := s.Publish(ctx, r, "")
		require.ErrorContains(t, err, "cannot begin a node's name")
		require.Error(t, s.Withdraw(ctx, r, ""))
	}
	_, err := s.Publish(ctx, registration(strings.Repeat("x", 1_000_001)), "")
	require.ErrorContains(t, err, "more than ZooKeeper takes")
}

// told waits for a subscriber's channel.
func told(t testing.TB, events <-chan struct{}) {
	t.Helper()
	select {
	case <-events:
	case <-time.After(patience):
		t.Fatal("the subscriber was not told")
	}
}

// keep publishes whenever something happened, as a registrar does, until the test ends.
func keep(t testing.TB, s *zookeeper.Session, r discovery.Registration) {
	t.Helper()
	events, unsubscribe := s.Subscribe()
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan struct{})
	go func() {
		defer close(done)
		node := ""
		retry := time.NewTimer(0)
		for {
			select {
			case <-events:
			case <-retry.C:
			case <-ctx.Done():
				return
			}
			attempt, end := context.WithTimeout(ctx, time.Second)
			made, err := publishNode(s, attempt, r, node)
			end()
			if err != nil {
				retry.Reset(20 * time.Millisecond)
				continue
			}
			node = made
		}
	}()
	t.Cleanup(func() { cancel(); <-done; unsubscribe() })
}

// one waits until exactly one node stands, owned by the session, with the data.
func one(t testing.TB, w *zk.Conn, s *zookeeper.Session, data string) {
	t.Helper()
	require.Eventually(t, func() bool {
		list := names(t, w, "/s/web")
		if len(list) != 1 {
			return false
		}
		got, stat, err := w.Get("/s/web/" + list[0])
		return err == nil && string(got) == data && fmt.Sprintf("0x%x", stat.EphemeralOwner) == s.Status().Session
	}, patience, poll)
}

// TestPublishedNodeIsGuarded: deleted or changed by somebody else, its session expired, the whole path deleted.
func TestPublishedNodeIsGuarded(t *testing.T) {
	for name, prefix := range map[string]string{"sequential": "web-1_", "fixed": "web-1"} {
		t.Run(name, func(t *testing.T) {
			zks := server(t)
			w := writer(t, zks.Addr())
			s := open(t, zookeeper.Options{Hosts: []string{zks.Addr()}})
			r := registration(payload(1))
			r.Prefix, r.Sequential = prefix, name == "sequential"
			keep(t, s, r)
			one(t, w, s, payload(1))

			for range 3 {
				require.NoError(t, w.Delete("/s/web/"+names(t, w, "/s/web")[0], -1))
				one(t, w, s, payload(1))
			}
			for range 3 {
				_, err := w.Set("/s/web/"+names(t, w, "/s/web")[0], []byte("vandalised"), -1)
				require.NoError(t, err)
				one(t, w, s, payload(1))
			}
			first := s.Status().Session
			require.NoError(t, zks.Expire(id(t, s)))
			require.Eventually(t, func() bool { return s.Status().Connected && s.Status().Session != first }, patience, poll)
			one(t, w, s, payload(1))
		})
	}
}

func TestSubscribe(t *testing.T) {
	zks := server(t)
	w := writer(t, zks.Addr())
	wire := zktest.NewProxy(t, zks.Addr())
	s := open(t, zookeeper.Options{Hosts: []string{wire.Addr()}})
	events, cancel := s.Subscribe()
	told(t, events) // connected
	node, err := publishNode(s, within(t, patience), registration(payload(1)), "")
	require.NoError(t, err)
	require.NoError(t, w.Delete(node, -1))
	told(t, events)
	wire.Break()
	told(t, events) // reconnected
	cancel()
	wire.Break()
	disconnected(t, s)
	connected(t, s)
	require.Empty(t, events, "told after cancel")
}

// TestPublishUnknownOutcome: the server made the node and the answer was lost. The next attempt finds it.
func TestPublishUnknownOutcome(t *testing.T) {
	zks := server(t)
	w := writer(t, zks.Addr())
	create(t, w, "/s/web/other_", payload(9), zk.FlagSequence)
	require.NoError(t, w.Delete("/s/web/other_0000000000", -1))
	wire := zktest.NewProxy(t, zks.Addr())
	s := open(t, zookeeper.Options{Hosts: []string{wire.Addr()}})
	connected(t, s)
	r := registration(payload(1))

	wire.StallReplies()
	failed := make(chan error, 1)
	go func() {
		_, err := s.Publish(within(t, patience), r, "")
		failed <- err
	}()
	require.Eventually(t, func() bool { return len(names(t, w, "/s/web")) == 1 }, patience, poll, "the server has made it")
	wire.Break()
	wire.Resume()
	require.Error(t, <-failed)
	before := names(t, w, "/s/web")
	node, err := publishNode(s, within(t, patience), r, "")
	require.NoError(t, err)
	require.Equal(t, "/s/web/"+before[0], node)
	one(t, w, s, payload(1))

	// The same, and then it is not wanted any more.
	require.NoError(t, s.Withdraw(within(t, patience), r, node))
	wire.StallReplies()
	go func() {
		_, err := s.Publish(within(t, patience), r, "")
		failed <- err
	}()
	require.Eventually(t, func() bool { return len(names(t, w, "/s/web")) == 1 }, patience, poll)
	wire.Break()
	wire.Resume()
	require.Error(t, <-failed)
	require.NoError(t, s.Withdraw(within(t, patience), r, ""))
	require.Empty(t, names(t, w, "/s/web"))
}

// TestPublishChaos: impatient callers and a wire that breaks all the time leave exactly one node, or none.
func TestPublishChaos(t *testing.T) {
	zks := server(t)
	w := writer(t, zks.Addr())
	wire := zktest.NewProxy(t, zks.Addr())
	s := open(t, zookeeper.Options{Hosts: []string{wire.Addr()}, SessionTimeout: 20 * time.Second})
	connected(t, s)
	r := registration(payload(1))
	rnd := rand.New(rand.NewPCG(1, 2))
	node, failures, successes := "", 0, 0
	for range 80 {
		if rnd.IntN(2) == 0 {
			connected(t, s)
		}
		ctx, cancel := context.WithTimeout(context.Background(), time.Duration(rnd.IntN(8000))*time.Microsecond)
		var err error
		if rnd.IntN(3) > 0 {
			var made string
			if made, err = publishNode(s, ctx, r, node); err == nil {
				node = made
			}
		} else if err = s.Withdraw(ctx, r, node); err == nil {
			node = ""
		}
		cancel()
		if err != nil {
			failures++
		} else {
			successes++
		}
		if rnd.IntN(6) == 0 {
			wire.Break()
		}
	}
	require.Greater(t, failures, 5, "the test must hurt")
	require.NotZero(t, successes)
	require.Eventually(t, func() bool {
		_, err := s.Publish(within(t, patience), r, node)
		return err == nil
	}, patience, poll)
	one(t, w, s, payload(1))
	require.NoError(t, s.Withdraw(within(t, patience), r, ""))
	require.Empty(t, names(t, w, "/s/web"))
}

// TestPublishWhileAway: no connection is an error in time, and never a lost registration.
func TestPublishWhileAway(t *testing.T) {
	zks := server(t)
	w := writer(t, zks.Addr())
	wire := zktest.NewProxy(t, zks.Addr())
	s := open(t, zookeeper.Options{Hosts: []string{wire.Addr()}, SessionTimeout: 20 * time.Second})
	r := registration(payload(1))
	node, err := publishNode(s, within(t, patience), r, "")
	require.NoError(t, err)

	wire.Stall() // the connection stands, nothing is answered
	_, err = s.Publish(within(t, 50*time.Millisecond), r, node)
	require.ErrorIs(t, err, context.DeadlineExceeded)
	err = s.Withdraw(within(t, 50*time.Millisecond), r, node)
	require.ErrorIs(t, err, context.DeadlineExceeded)
	wire.Cut()
	wire.Resume()
	wire.Cut()
	disconnected(t, s)
	_, err = s.Publish(within(t, 50*time.Millisecond), r, node)
	require.ErrorIs(t, err, context.DeadlineExceeded)
	require.ErrorContains(t, err, "no connection to ZooKeeper")
	wire.Resume()
	again, err := publishNode(s, within(t, patience), r, node)
	require.NoError(t, err)
	require.Equal(t, node, again, "a short absence changes nothing")
	one(t, w, s, payload(1))
}

// TestRestartAfterKill: the node of the process before goes with its session, the new one stays.
func TestRestartAfterKill(t *testing.T) {
	zks := server(t)
	w := writer(t, zks.Addr())
	wire := zktest.NewProxy(t, zks.Addr())
	killed := open(t, zookeeper.Options{Hosts: []string{wire.Addr()}, SessionTimeout: time.Second})
	_, err := killed.Publish(within(t, patience), registration(payload(1)), "")
	require.NoError(t, err)
	wire.Cut() // as far as the server can tell, the process is dead

	s := open(t, zookeeper.Options{Hosts: []string{zks.Addr()}})
	node, err := publishNode(s, within(t, patience), registration(payload(1)), "")
	require.NoError(t, err)
	one(t, w, s, payload(1))
	require.Equal(t, []string{node[len("/s/web/"):]}, names(t, w, "/s/web"))
}

// TestFixedName: a node of our own from before is replaced without a gap; another process's is not touched.
func TestFixedName(t *testing.T) {
	zks := server(t)
	w := writer(t, zks.Addr())
	r := registration(payload(1))
	r.Sequential, r.Prefix = false, "web-1"
	ctx := within(t, patience)

	create(t, w, "/s/web/web-1", payload(2), zk.FlagEphemeral)
	s := open(t, zookeeper.Options{Hosts: []string{zks.Addr()}})
	_, err := s.Publish(ctx, r, "")
	require.ErrorContains(t, err, fmt.Sprintf("taken by session 0x%x for 10.0.0.2:8080", w.SessionID()))
	require.NoError(t, s.Withdraw(ctx, r, ""))
	require.Len(t, names(t, w, "/s/web"), 1, "another's node is not ours to delete")
	require.NoError(t, w.Delete("/s/web/web-1", -1))

	create(t, w, "/s/web/web-1", payload(1), zk.FlagEphemeral) // same endpoint: us, before a restart
	_, _, gone, err := w.GetW("/s/web/web-1")
	require.NoError(t, err)
	_, err = s.Publish(ctx, r, "")
	require.NoError(t, err)
	one(t, w, s, payload(1))
	require.Equal(t, zk.EventNodeDeleted, (<-gone).Type)

	// Somebody takes our place while we are running: that is no predecessor.
	_, err = w.Multi(&zk.DeleteRequest{Path: "/s/web/web-1", Version: -1},
		&zk.CreateRequest{Path: "/s/web/web-1", Data: []byte(payload(1)), Flags: zk.FlagEphemeral, Acl: world})
	require.NoError(t, err)
	_, err = s.Publish(ctx, r, "/s/web/web-1")
	require.ErrorContains(t, err, "another process uses this name")
}

// TestPrefixOfAPrefix: looking for what a lost answer may have left, a registration does not take another one's node for
// its own because that one's name begins like its own.
func TestPrefixOfAPrefix(t *testing.T) {
	zks := server(t)
	w := writer(t, zks.Addr())
	wire := zktest.NewProxy(t, zks.Addr())
	s := open(t, zookeeper.Options{Hosts: []string{wire.Addr()}, SessionTimeout: 20 * time.Second})
	ten, one := registration(payload(10)), registration(payload(1))
	ten.Prefix, one.Prefix = "i-10", "i-1"
	stays, err := publishNode(s, within(t, patience), ten, "")
	require.NoError(t, err)
	wire.StallReplies()
	failed := make(chan error, 1)
	go func() {
		_, err := s.Publish(within(t, patience), one, "")
		failed <- err
	}()
	require.Eventually(t, func() bool { return len(names(t, w, path.Dir(stays))) == 2 }, patience, poll, "the server has made it")
	wire.Break()
	wire.Resume()
	require.Error(t, <-failed)
	require.NoError(t, s.Withdraw(within(t, patience), one, ""))
	require.Equal(t, []string{path.Base(stays)}, names(t, w, path.Dir(stays)))
}
