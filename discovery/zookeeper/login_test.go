package zookeeper_test

import (
	"os"
	"path/filepath"
	"testing"

	"github.com/go-zookeeper/zk"
	"github.com/stretchr/testify/require"

	"github.com/myelin-sd/myelin/discovery"
	"github.com/myelin-sd/myelin/discovery/zookeeper"
	"github.com/myelin-sd/myelin/discovery/zookeeper/zktest"
)

// TestLogin: what only a user may read is read by a session that logs in, again after each reconnect; the same path is
// an error that is said, and nothing more, to one that does not. Credentials are never written to a log.
func TestLogin(t *testing.T) {
	both(t, func(t *testing.T, with zookeeper.Options) {
		zks := server(t)
		w := writer(t, zks.Addr())
		create(t, w, "/web/open", payload(1), 0)
		create(t, w, "/web/closed", payload(2), 0)
		closed := zk.DigestACL(zk.PermAll, "agent", "s3cret")
		_, err := w.SetACL("/web/closed", closed, -1)
		require.NoError(t, err)

		credentials := filepath.Join(t.TempDir(), "credentials")
		require.NoError(t, os.WriteFile(credentials, []byte("agent:s3cret\n"), 0o600))
		wire := zktest.NewProxy(t, zks.Addr())
		log, lines := silent()
		for _, login := range []zookeeper.Login{
			{Scheme: "digest", Credentials: []byte("agent:s3cret")}, {Scheme: "digest", File: credentials},
		} {
			s := open(t, zookeeper.Options{Classic: with.Classic, Hosts: []string{wire.Addr()}, Logins: []zookeeper.Login{login}, Log: log})
			o := observe(t, s.Source("web", "/web", zookeeper.SourceOptions{}))
			o.untilCount(t, 2)
			generation := s.Stats().Generation
			wire.Break()
			require.Eventually(t, func() bool { return s.Stats().Generation > generation }, patience, poll)
			_, err = w.Set("/web/open", []byte(payload(3)), -1)
			require.NoError(t, err)
			o.until(t, "new address", func(s discovery.Snapshot) bool { return s.Instances[len(s.Instances)-1].Endpoint.Host() == "10.0.0.3" })
			_, err = w.Set("/web/open", []byte(payload(1)), -1)
			require.NoError(t, err)
			nodes, err := s.Read(within(t, patience), "/web")
			require.NoError(t, err)
			require.Len(t, nodes, 2)
		}
		require.Zero(t, lines.count("s3cret"))

		s := open(t, zookeeper.Options{Classic: with.Classic, Hosts: []string{zks.Addr()}})
		o := observe(t, s.Source("web", "/web", zookeeper.SourceOptions{}))
		snap := o.untilCount(t, 1)
		require.Len(t, snap.Rejected, 1)
		require.Equal(t, discovery.ReasonUnreadable, snap.Rejected[0].Reason)
	})
}

// TestPathIsClosed: a directory that turns unreadable takes nothing away.
func TestPathIsClosed(t *testing.T) {
	both(t, func(t *testing.T, with zookeeper.Options) {
		zks := server(t)
		w := writer(t, zks.Addr())
		create(t, w, "/web/one", payload(1), 0)
		wire := zktest.NewProxy(t, zks.Addr())
		log, lines := silent()
		s := open(t, zookeeper.Options{Classic: with.Classic, Hosts: []string{wire.Addr()}})
		o := observe(t, s.Source("web", "/web", zookeeper.SourceOptions{Log: log}))
		o.untilCount(t, 1)
		sent := len(o.all())
		require.NoError(t, w.AddAuth("digest", []byte("other:x")))
		_, err := w.SetACL("/web", zk.DigestACL(zk.PermAll, "other", "x"), -1)
		require.NoError(t, err)
		create(t, w, "/web/two", payload(2), 0) // so that the directory is not as it was left
		wire.Break()
		require.Eventually(t, func() bool { return lines.count("service cannot be read") == 1 }, patience, poll)
		for _, snap := range o.all()[sent:] { // a child that can still be read may show
			require.NotEmpty(t, snap.Instances)
		}
		_, err = w.SetACL("/web", world, -1)
		require.NoError(t, err)
		o.untilCount(t, 2)
		require.Eventually(t, func() bool { return lines.count("service can be read again") == 1 }, patience, poll)
	})
}

// TestLoginRefused: a scheme that the servers do not have is named, and the client goes on trying.
func TestLoginRefused(t *testing.T) {
	zks := server(t)
	s := open(t, zookeeper.Options{Hosts: []string{zks.Addr()}, Logins: []zookeeper.Login{{Scheme: "unheard-of", Credentials: []byte("x")}}})
	require.Eventually(t, func() bool { return s.Status().Attempts >= 2 }, patience, poll)
	require.Contains(t, s.Status().Error, "log in with unheard-of")
	require.False(t, s.Status().Connected)

	s = open(t, zookeeper.Options{Hosts: []string{zks.Addr()}, Logins: []zookeeper.Login{{Scheme: "digest", File: "/nonexistent/credentials"}}})
	require.Eventually(t, func() bool { return s.Status().Error != "" }, patience, poll)
	require.Contains(t, s.Status().Error, "/nonexistent/credentials")
}
