package zookeeper_test

import (
	"context"
	"errors"
	"sync"
	"testing"
	"time"

	"github.com/go-zookeeper/zk"
	"github.com/stretchr/testify/require"

	"github.com/myelin-sd/myelin/discovery/zookeeper"
	"github.com/myelin-sd/myelin/discovery/zookeeper/zktest"
)

// announced runs an announcement until the function that it returns is called, or the test ends.
func announced(t *testing.T, s *zookeeper.Session, dir, data string) (outcomes <-chan error, stop func()) {
	t.Helper()
	ctx, cancel := context.WithCancel(context.Background())
	told := make(chan error, 1000)
	var all sync.WaitGroup
	all.Go(func() { s.Announce(ctx, dir, "host", []byte(data), func(err error) { told <- err }) })
	stop = func() { cancel(); all.Wait() }
	t.Cleanup(stop)
	return told, stop
}

// outcome waits for one that satisfies what.
func outcome(t *testing.T, outcomes <-chan error, what func(error) bool) {
	t.Helper()
	deadline := time.After(patience)
	for {
		select {
		case err := <-outcomes:
			if what(err) {
				return
			}
		case <-deadline:
			t.Fatal("the outcome did not come")
		}
	}
}

func fine(err error) bool { return err == nil }

// TestAnnounce: one ephemeral node, that comes when its folder does and not before, comes back when somebody deletes it,
// has the data of the latest announcement, and is gone with it.
func TestAnnounce(t *testing.T) {
	zks := server(t)
	w := writer(t, zks.Addr())
	s := open(t, zookeeper.Options{Hosts: []string{zks.Addr()}, AntiEntropy: 50 * time.Millisecond})
	outcomes, stop := announced(t, s, "/consumers", "one")
	outcome(t, outcomes, func(err error) bool { return errors.Is(err, zookeeper.ErrNoPath) })
	there, _, err := w.Exists("/consumers")
	require.NoError(t, err)
	require.False(t, there, "the folder is never made")

	create(t, w, "/consumers", "", 0)
	outcome(t, outcomes, fine)
	list := names(t, w, "/consumers")
	require.Equal(t, []string{"host," + s.Status().Session}, list)
	node := "/consumers/" + list[0]
	data, stat, err := w.Get(node)
	require.NoError(t, err)
	require.Equal(t, "one", string(data))
	require.NotZero(t, stat.EphemeralOwner)

	require.NoError(t, w.Delete(node, -1))
	require.Eventually(t, func() bool { return len(names(t, w, "/consumers")) == 1 }, patience, poll)
	stop()
	require.Empty(t, names(t, w, "/consumers"))

	outcomes, _ = announced(t, s, "/consumers", "two")
	outcome(t, outcomes, fine)
	data, _, err = w.Get(node)
	require.NoError(t, err)
	require.Equal(t, "two", string(data))
	_, err = w.Set(node, []byte("forged"), -1)
	require.NoError(t, err)
	require.Eventually(t, func() bool { data, _, err := w.Get(node); return err == nil && string(data) == "two" }, patience, poll)
}

// TestAnnounceAfterExpiry: a new session has its own node.
func TestAnnounceAfterExpiry(t *testing.T) {
	zks := server(t)
	w := writer(t, zks.Addr())
	create(t, w, "/consumers", "", 0)
	wire := zktest.NewProxy(t, zks.Addr())
	s := open(t, zookeeper.Options{Hosts: []string{wire.Addr()}})
	outcomes, _ := announced(t, s, "/consumers", "data")
	outcome(t, outcomes, fine)
	first := s.Status().Session
	require.NoError(t, zks.Expire(id(t, s)))
	require.Eventually(t, func() bool { return s.Status().Session != first && s.Status().Connected }, patience, poll)
	require.Eventually(t, func() bool {
		list := names(t, w, "/consumers")
		return len(list) == 1 && list[0] == "host,"+s.Status().Session
	}, patience, poll)
}

// TestAnnounceNotAllowed: a folder that is closed to us is said, and nothing else happens.
func TestAnnounceNotAllowed(t *testing.T) {
	zks := server(t)
	w := writer(t, zks.Addr())
	create(t, w, "/consumers", "", 0)
	_, err := w.SetACL("/consumers", zk.WorldACL(zk.PermRead|zk.PermAdmin), -1)
	require.NoError(t, err)
	s := open(t, zookeeper.Options{Hosts: []string{zks.Addr()}})
	outcomes, _ := announced(t, s, "/consumers", "data")
	outcome(t, outcomes, func(err error) bool { return errors.Is(err, zookeeper.ErrNoAccess) })
}

// TestAnnouncedACL: with a login everybody reads the node, and nobody else writes it.
func TestAnnouncedACL(t *testing.T) {
	zks := server(t)
	w := writer(t, zks.Addr())
	create(t, w, "/consumers", "", 0)
	s := open(t, zookeeper.Options{Hosts: []string{zks.Addr()}, Logins: []zookeeper.Login{{Scheme: "digest", Credentials: []byte("a:b")}}})
	outcomes, _ := announced(t, s, "/consumers", "data")
	outcome(t, outcomes, fine)
	node := "/consumers/" + names(t, w, "/consumers")[0]
	_, _, err := w.Get(node)
	require.NoError(t, err)
	_, err = w.Set(node, nil, -1)
	require.ErrorIs(t, err, zk.ErrNoAuth)
}
