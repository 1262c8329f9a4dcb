package zktest_test

import (
	"crypto/tls"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/myelin-sd/myelin/discovery/zookeeper/zktest"
)

const quorumLimit = time.Minute

// TestEnsemble goes through what may happen to three members.
func TestEnsemble(t *testing.T) {
	e := zktest.NewEnsemble(t)
	require.Len(t, e.Members(), 3)
	require.Len(t, e.Followers(), 2)
	for i, s := range e.Members() {
		require.Equal(t, s.Addr(), e.Hosts()[i])
	}
	connect(t, e.Followers()[0].Addr()).create(t, "/first")

	t.Run("leader killed", func(t *testing.T) {
		old := leader(t, e)
		require.NoError(t, old.Kill())
		require.NoError(t, e.AwaitQuorum(quorumLimit))
		require.NotSame(t, old, leader(t, e))
		require.Len(t, e.Followers(), 1)
		requireNode(t, leader(t, e).Addr(), "/first", true)
		connect(t, leader(t, e).Addr()).create(t, "/second")

		require.NoError(t, e.Start())
		require.Len(t, e.Followers(), 2)
		requireNode(t, old.Addr(), "/second", true)
	})

	t.Run("follower paused", func(t *testing.T) {
		paused := e.Followers()[0]
		require.NoError(t, paused.Pause())
		require.NoError(t, e.AwaitQuorum(quorumLimit))
		require.NotContains(t, e.Followers(), paused)
		awaitSynced(t, e, "1") // it is thrown out
		connect(t, leader(t, e).Addr()).create(t, "/third")
		require.NoError(t, paused.Resume())
		awaitSynced(t, e, "2")
		require.NoError(t, e.AwaitQuorum(quorumLimit))
		requireNode(t, paused.Addr(), "/third", true)
	})

	t.Run("leader paused", func(t *testing.T) {
		paused := leader(t, e)
		require.NoError(t, paused.Pause())
		require.NoError(t, e.AwaitQuorum(quorumLimit))
		require.NotSame(t, paused, leader(t, e))
		require.NoError(t, paused.Resume())
		require.NoError(t, e.AwaitQuorum(quorumLimit))
		require.NotSame(t, paused, leader(t, e))
	})

	t.Run("member wiped", func(t *testing.T) {
		wiped := e.Followers()[1]
		require.NoError(t, wiped.Kill())
		require.NoError(t, wiped.Wipe())
		require.NoError(t, wiped.Start())
		require.NoError(t, e.AwaitQuorum(quorumLimit))
		requireNode(t, wiped.Addr(), "/third", true)
	})

	t.Run("no quorum", func(t *testing.T) {
		last := e.Members()[2]
		require.NoError(t, e.Stop())
		require.NoError(t, last.Start(), "it need not wait for the others")
		_, err := last.Role()
		require.ErrorIs(t, err, zktest.ErrNotServing)
		_, err = e.Leader()
		require.ErrorContains(t, err, "0 members")
		err = e.AwaitQuorum(time.Millisecond)
		require.ErrorContains(t, err, "member 1 ("+e.Hosts()[0]+") is stopped or paused")
		require.ErrorContains(t, err, "member 3 ("+e.Hosts()[2]+") is not serving")

		require.NoError(t, e.Start(), "the others")
		requireNode(t, last.Addr(), "/third", true)
	})

	t.Run("all wiped", func(t *testing.T) {
		require.ErrorContains(t, e.Wipe(), "it is running")
		require.NoError(t, e.Kill())
		require.NoError(t, e.Wipe())
		require.NoError(t, e.Start())
		requireNode(t, e.Hosts()[0], "/third", false)
	})
}

func TestEnsembleTooSmall(t *testing.T) {
	_, err := zktest.StartEnsemble(t.TempDir(), 1, zktest.Options{})
	require.EqualError(t, err, "start ensemble: 1 members: at least 2 are needed")
}

// TestEnsembleTLS: one set of files is good for all members.
func TestEnsembleTLS(t *testing.T) {
	e := zktest.NewEnsemble(t, zktest.Options{TLS: true, NeedClientCertificate: true})
	for i, addr := range e.SecureHosts() {
		require.Equal(t, e.Members()[i].SecureAddr(), addr)
		c, err := openTLS(addr, clientConfig(t, e.TLSFiles(), true))
		require.NoError(t, err)
		require.NotZero(t, c.session)
		require.IsType(t, &tls.Conn{}, c.Conn)
	}
}

func leader(t *testing.T, e *zktest.Ensemble) *zktest.Server {
	t.Helper()
	s, err := e.Leader()
	require.NoError(t, err)
	return s
}

// awaitSynced waits until so many followers keep up with the leader.
func awaitSynced(t *testing.T, e *zktest.Ensemble, want string) {
	t.Helper()
	s := leader(t, e)
	require.Eventually(t, func() bool {
		counters, err := s.Counters()
		return err == nil && counters["zk_synced_followers"] == want
	}, quorumLimit, 20*time.Millisecond)
}
