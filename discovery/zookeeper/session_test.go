package zookeeper_test

import (
	"bufio"
	"context"
	"io"
	"net"
	"runtime"
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

// listen takes connections and gives each to serve.
func listen(t testing.TB, serve func(net.Conn)) string {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	require.NoError(t, err)
	var all sync.WaitGroup
	ctx, cancel := context.WithCancel(context.Background())
	all.Go(func() {
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			all.Go(func() {
				defer context.AfterFunc(ctx, func() { c.Close() })()
				defer c.Close()
				serve(c)
			})
		}
	})
	t.Cleanup(func() { cancel(); l.Close(); all.Wait() })
	return l.Addr().String()
}

// TestMuteServer: one that takes connections and never answers is left for the next host.
func TestMuteServer(t *testing.T) {
	mute := listen(t, func(c net.Conn) { _, _ = io.Copy(io.Discard, c) })
	log, lines := silent()
	s := open(t, zookeeper.Options{Hosts: []string{mute}, HandshakeTimeout: 50 * time.Millisecond, SessionTimeout: 60 * time.Second, Log: log})
	require.Eventually(t, func() bool { return s.Status().Attempts >= 3 }, patience, poll)
	require.Contains(t, s.Status().Error, "did not answer")
	require.Equal(t, 1, lines.count("cannot be reached"), "said once")

	zks := server(t)
	s = open(t, zookeeper.Options{Hosts: []string{mute + "," + mute, zks.Addr()}, HandshakeTimeout: 500 * time.Millisecond, SessionTimeout: 60 * time.Second})
	connected(t, s)
	require.Equal(t, zks.Addr(), s.Status().Server)
}

// TestForeignServer: what no ZooKeeper would say is refused, and does not become an allocation of gigabytes.
func TestForeignServer(t *testing.T) {
	web := listen(t, func(c net.Conn) {
		_, _ = bufio.NewReader(c).ReadByte()
		_, _ = io.WriteString(c, "HTTP/1.1 400 Bad Request\r\nConnection: close\r\n\r\n")
	})
	var before, after runtime.MemStats
	runtime.ReadMemStats(&before)
	s := open(t, zookeeper.Options{Hosts: []string{web}})
	require.Eventually(t, func() bool { return strings.Contains(s.Status().Error, "not a ZooKeeper client port") }, patience, poll)
	runtime.ReadMemStats(&after)
	require.Less(t, after.TotalAlloc-before.TotalAlloc, uint64(512<<20))
}

// TestClosingServer: a connection that is closed without an answer is explained.
func TestClosingServer(t *testing.T) {
	closing := listen(t, func(c net.Conn) {
		_, _ = c.Read(make([]byte, 48))
	})
	s := open(t, zookeeper.Options{Hosts: []string{closing}})
	require.Eventually(t, func() bool { return strings.Contains(s.Status().Error, "maxClientCnxns") }, patience, poll)
}

// TestUnusableHosts: New takes everything; Status says what is wrong, and calls end with their context.
func TestUnusableHosts(t *testing.T) {
	for hosts, why := range map[string]string{"": "the list is empty", "a/b": "chroot", "h:0": "port", "h:x": "port", ":1": "write host:port"} {
		s := zookeeper.New(zookeeper.Options{Hosts: []string{hosts}})
		require.Contains(t, s.Status().Error, why, hosts)
		_, err := s.Children(within(t, 10*time.Millisecond), "/")
		require.ErrorIs(t, err, context.DeadlineExceeded)
		require.ErrorContains(t, err, why)
		s.Close()
	}
	// A name that does not resolve is dialled again and again, and does not stand in the way of the others.
	zks := server(t)
	s := open(t, zookeeper.Options{Hosts: []string{"nowhere.invalid", zks.Addr()}})
	connected(t, s)
}

// TestWipedStore: a server whose data is older than what the client has seen refuses it for ever. The watchdog makes
// a new client, and the view says what is true: the path is missing.
func TestWipedStore(t *testing.T) {
	zks := server(t)
	w := writer(t, zks.Addr())
	for n := range 20 {
		create(t, w, "/web/i-"+string(rune('a'+n)), payload(n), 0)
	}
	s := open(t, zookeeper.Options{Hosts: []string{zks.Addr()}, Watchdog: 500 * time.Millisecond})
	o := observe(t, s.Source("web", "/web", zookeeper.SourceOptions{}))
	o.untilCount(t, 20)
	sent := len(o.all())
	require.NoError(t, zks.Stop())
	require.NoError(t, zks.Wipe())
	require.NoError(t, zks.Start())
	o.until(t, "missing path", func(s discovery.Snapshot) bool { return s.Missing })
	require.Len(t, o.all(), sent+1, "one snapshot tells it")
	require.NotZero(t, s.Stats().Discarded)
}

// TestWatchdogKeepsTheSession: the new client takes up the session of the old one, so ephemeral nodes stay.
func TestWatchdogKeepsTheSession(t *testing.T) {
	zks := server(t)
	w := writer(t, zks.Addr())
	wire := zktest.NewProxy(t, zks.Addr())
	s := open(t, zookeeper.Options{Hosts: []string{wire.Addr()}, SessionTimeout: 40 * time.Second, Watchdog: 200 * time.Millisecond})
	node, err := publishNode(s, within(t, patience), registration(payload(1)), "")
	require.NoError(t, err)
	session := s.Status().Session

	wire.Cut() // connections are taken and closed: the client is not to blame, but it cannot know that
	require.Eventually(t, func() bool { return s.Stats().Discarded >= 2 }, patience, poll)
	wire.Resume()
	connected(t, s)
	require.Equal(t, session, s.Status().Session)
	again, err := publishNode(s, within(t, patience), registration(payload(1)), node)
	require.NoError(t, err)
	require.Equal(t, node, again)
	one(t, w, s, payload(1))
	require.EqualValues(t, 1, s.Stats().Sessions)
}

// TestOutageIsNoWedge: while no server can be dialled the client is left alone, with its session.
func TestOutageIsNoWedge(t *testing.T) {
	zks := server(t)
	s := open(t, zookeeper.Options{Hosts: []string{zks.Addr()}, SessionTimeout: 20 * time.Second, Watchdog: 500 * time.Millisecond})
	connected(t, s)
	session := s.Status().Session
	require.NoError(t, zks.Kill())
	disconnected(t, s)
	attempts := s.Status().Attempts
	require.Eventually(t, func() bool {
		return s.Status().Attempts >= attempts+5 && time.Since(s.Status().Since) > time.Second
	}, patience, poll)
	require.Zero(t, s.Stats().Discarded)
	require.NoError(t, zks.Start())
	connected(t, s)
	require.Equal(t, session, s.Status().Session)
}

// TestLastAcceptIsNoWedge: a server that takes one more connection while it goes down, and none afterwards, is down.
func TestLastAcceptIsNoWedge(t *testing.T) {
	t.Parallel()
	const watchdog = 3 * time.Second
	wire := zktest.NewProxy(t, server(t).Addr())
	s := open(t, zookeeper.Options{Hosts: []string{wire.Addr()}, SessionTimeout: 20 * time.Second, Watchdog: watchdog})
	connected(t, s)
	accepted := wire.Accepted()
	wire.Cut()
	require.Eventually(t, func() bool { return wire.Accepted() > accepted }, patience, poll)
	wire.Close()
	disconnected(t, s)
	attempts := s.Status().Attempts
	require.Eventually(t, func() bool {
		return s.Status().Attempts >= attempts+2 && time.Since(s.Status().Since) > watchdog+time.Second
	}, patience, poll)
	require.Zero(t, s.Stats().Discarded)
}

// TestFrozenServer: a server that stops answering is noticed, and the session goes on when it thaws.
func TestFrozenServer(t *testing.T) {
	zks := server(t)
	s := open(t, zookeeper.Options{Hosts: []string{zks.Addr()}, SessionTimeout: 3 * time.Second, HandshakeTimeout: 200 * time.Millisecond})
	connected(t, s)
	require.NoError(t, zks.Pause())
	_, err := s.Children(within(t, 100*time.Millisecond), "/")
	require.ErrorIs(t, err, context.DeadlineExceeded, "calls end with their context")
	disconnected(t, s)
	require.NoError(t, zks.Resume())
	connected(t, s)
	_, err = s.Children(within(t, patience), "/")
	require.NoError(t, err)
}

// TestClose: it deletes ephemeral nodes at once, ends calls, and does not hang whatever the server does.
func TestClose(t *testing.T) {
	zks := server(t)
	w := writer(t, zks.Addr())
	s := open(t, zookeeper.Options{Hosts: []string{zks.Addr()}, SessionTimeout: 40 * time.Second})
	_, err := s.Publish(within(t, patience), registration(payload(1)), "")
	require.NoError(t, err)
	s.Close()
	require.Empty(t, names(t, w, "/s/web"))
	s.Close()
	_, err = s.Children(context.Background(), "/")
	require.ErrorContains(t, err, "closed")
	_, err = s.Publish(context.Background(), registration(payload(1)), "")
	require.ErrorContains(t, err, "closed")

	frozen := open(t, zookeeper.Options{Hosts: []string{zks.Addr()}})
	connected(t, frozen)
	require.NoError(t, zks.Pause())
	waiting := make(chan error, 1)
	go func() {
		_, err := frozen.Children(context.Background(), "/")
		waiting <- err
	}()
	closed := make(chan struct{})
	go func() { frozen.Close(); close(closed) }()
	select {
	case <-closed:
	case <-time.After(patience):
		t.Fatal("Close hangs")
	}
	require.Error(t, <-waiting)
	require.NoError(t, zks.Resume())

	never := open(t, zookeeper.Options{Hosts: []string{"127.0.0.1:1"}})
	never.Close()
}

// TestChroot: all paths lie below it, and the caller never sees it.
func TestChroot(t *testing.T) {
	zks := server(t)
	w := writer(t, zks.Addr())
	s := open(t, zookeeper.Options{Hosts: []string{zks.Addr()}, Chroot: "/root/one"})
	o := observe(t, s.Source("web", "/s/web", zookeeper.SourceOptions{}))
	o.until(t, "missing path", func(s discovery.Snapshot) bool { return s.Missing })
	ctx := within(t, patience)
	node, err := publishNode(s, ctx, registration(payload(1)), "")
	require.NoError(t, err)
	require.Equal(t, "/s/web/web-1_0000000000", node)
	require.Equal(t, []string{"web-1_0000000000"}, names(t, w, "/root/one/s/web"))
	o.untilCount(t, 1)
	again, err := publishNode(s, ctx, registration(payload(1)), node)
	require.NoError(t, err)
	require.Equal(t, node, again)
	found, err := s.Services(ctx, "/")
	require.NoError(t, err)
	require.Equal(t, []zookeeper.ServicePath{{Path: "/s/web", Instances: 1}}, found)
	require.NoError(t, s.Withdraw(ctx, registration(payload(1)), node))
	o.untilCount(t, 0)
}

func TestRead(t *testing.T) {
	zks := server(t)
	w := writer(t, zks.Addr())
	create(t, w, "/services/web/i-1_", payload(1), zk.FlagEphemeral|zk.FlagSequence)
	create(t, w, "/services/web/i-2_", "rubbish", zk.FlagEphemeral|zk.FlagSequence)
	create(t, w, "/services/prod/db/one", payload(3), 0)
	create(t, w, "/services/prod/empty/x", "", 0)
	create(t, w, "/services/notes", "not a service", 0)
	s := open(t, zookeeper.Options{Hosts: []string{zks.Addr()}})
	ctx := within(t, patience)

	list, err := s.Children(ctx, "/services")
	require.NoError(t, err)
	require.Equal(t, []string{"notes", "prod", "web"}, list)
	_, err = s.Children(ctx, "/nothing")
	require.ErrorIs(t, err, zookeeper.ErrNoPath)

	nodes, err := s.Read(ctx, "/services/web")
	require.NoError(t, err)
	require.Len(t, nodes, 2)
	require.Equal(t, "i-1_0000000000", nodes[0].Name)
	require.Equal(t, payload(1), string(nodes[0].Data))
	require.Equal(t, w.SessionID(), nodes[0].Owner)
	require.WithinDuration(t, time.Now(), nodes[0].Created, time.Minute)
	_, err = s.Read(ctx, "/nothing")
	require.ErrorIs(t, err, zookeeper.ErrNoPath)

	found, err := s.Services(ctx, "/")
	require.NoError(t, err)
	require.Equal(t, []zookeeper.ServicePath{{"/services/prod/db", 1}, {"/services/web", 2}}, found)
	found, err = s.Services(ctx, "/services/web")
	require.NoError(t, err)
	require.Equal(t, []zookeeper.ServicePath{{"/services/web", 2}}, found)
	_, err = s.Services(ctx, "/nothing")
	require.ErrorIs(t, err, zookeeper.ErrNoPath)

	snap, err := s.Snapshot(ctx, "web", "/services/web")
	require.NoError(t, err)
	require.Len(t, snap.Instances, 1)
	require.Len(t, snap.Rejected, 1)
	snap, err = s.Snapshot(ctx, "web", "/nothing")
	require.NoError(t, err)
	require.True(t, snap.Missing)
	require.Zero(t, watchCount(t, zks), "questions set no watches")
}
