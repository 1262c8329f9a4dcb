package zookeeper_test

import (
	"context"
	"testing"
	"time"

	"github.com/go-zookeeper/zk"
	"github.com/stretchr/testify/require"

	"github.com/myelin-sd/myelin/discovery"
	"github.com/myelin-sd/myelin/discovery/zookeeper"
	"github.com/myelin-sd/myelin/discovery/zookeeper/zktest"
)

const overridesPath = "/myelin/overrides"

// drained is an override of one instance.
func drained(reason string) discovery.Override {
	return discovery.Override{
		Target: discovery.Target{Service: "web", Host: "10.0.0.1", Port: 8080}, Action: discovery.ActionDrain,
		Author: "ann@bastion", Reason: reason, Created: time.Unix(1_700_000_000, 0).UTC(),
	}
}

// TestOverrides: an override is created with its path, replaced and removed by its revision, and listed; what somebody
// else has changed meanwhile stays.
func TestOverrides(t *testing.T) {
	zks := server(t)
	s := open(t, zookeeper.Options{Hosts: []string{zks.Addr()}, Chroot: "/prod"})
	ctx := within(t, patience)
	all, err := s.Overrides(ctx, overridesPath)
	require.NoError(t, err, "a path that is not there has none")
	require.Empty(t, all)

	first, err := s.PutOverride(ctx, overridesPath, drained("one"), zookeeper.NoOverride)
	require.NoError(t, err)
	require.Equal(t, "web,10.0.0.1,8080", first.Node)
	require.Zero(t, first.Revision)
	w := writer(t, zks.Addr())
	data, stat, err := w.Get("/prod/myelin/overrides/web,10.0.0.1,8080")
	require.NoError(t, err, "below the chroot")
	require.Zero(t, stat.EphemeralOwner)
	decoded, err := discovery.DecodeOverride(first.Node, data)
	require.NoError(t, err)
	require.Equal(t, first, decoded)

	_, err = s.PutOverride(ctx, overridesPath, drained("again"), zookeeper.NoOverride)
	require.ErrorIs(t, err, zookeeper.ErrOverrideChanged, "who has seen none replaces none")
	second, err := s.PutOverride(ctx, overridesPath, drained("two"), first.Revision)
	require.NoError(t, err)
	require.EqualValues(t, 1, second.Revision)
	_, err = s.PutOverride(ctx, overridesPath, drained("three"), first.Revision)
	require.ErrorIs(t, err, zookeeper.ErrOverrideChanged)
	_, err = s.RemoveOverride(ctx, overridesPath, first.Node, first.Revision)
	require.ErrorIs(t, err, zookeeper.ErrOverrideChanged)

	create(t, w, "/prod/myelin/overrides/junk", "{", 0)
	all, err = s.Overrides(ctx, overridesPath)
	require.NoError(t, err)
	require.Len(t, all, 2)
	require.Equal(t, "junk", all[0].Node)
	require.Error(t, all[0].Problem)
	require.Equal(t, second, all[1].Override)
	require.NoError(t, all[1].Problem)
	require.WithinDuration(t, time.Now(), all[1].Modified, time.Minute)

	removed, err := s.RemoveOverride(ctx, overridesPath, second.Node, second.Revision)
	require.NoError(t, err)
	require.True(t, removed)
	removed, err = s.RemoveOverride(ctx, overridesPath, second.Node, second.Revision)
	require.NoError(t, err)
	require.False(t, removed, "there was none any more")
	third, err := s.PutOverride(ctx, overridesPath, drained("three"), second.Revision)
	require.NoError(t, err, "one that has ended meanwhile does not have to be replaced")
	require.Zero(t, third.Revision)

	_, err = s.PutOverride(ctx, overridesPath, discovery.Override{Action: discovery.ActionDrain}, zookeeper.NoOverride)
	require.ErrorContains(t, err, "it is about nothing")
	for _, name := range []string{"", "..", "a/b"} {
		_, err = s.RemoveOverride(ctx, overridesPath, name, 0)
		require.ErrorContains(t, err, "not the name of a node")
	}
}

// TestOverridesLostReplies: the connection is cut behind each kind of request, when the server has carried it out. The
// caller gets one answer, and it is the right one.
func TestOverridesLostReplies(t *testing.T) {
	t.Parallel()
	zks := server(t)
	w := writer(t, zks.Addr())
	wire := zktest.NewProxy(t, zks.Addr())
	s := open(t, zookeeper.Options{Hosts: []string{wire.Addr()}, SessionTimeout: 2 * time.Second})
	ctx := within(t, patience)
	full := overridesPath + "/web,10.0.0.1,8080"

	lost := loseReply(wire, opCreate) // of /myelin
	o, err := s.PutOverride(ctx, overridesPath, drained("one"), zookeeper.NoOverride)
	require.NoError(t, err)
	require.True(t, lost.Load())
	require.Zero(t, o.Revision)

	require.NoError(t, w.Delete(full, -1))
	lost = loseReply(wire, opCreate) // of the node
	o, err = s.PutOverride(ctx, overridesPath, drained("one"), zookeeper.NoOverride)
	require.NoError(t, err)
	require.True(t, lost.Load())
	require.Zero(t, o.Revision)

	lost = loseReply(wire, opSetData)
	o, err = s.PutOverride(ctx, overridesPath, drained("two"), 0)
	require.NoError(t, err)
	require.True(t, lost.Load())
	require.EqualValues(t, 1, o.Revision)
	_, stat, err := w.Get(full)
	require.NoError(t, err)
	require.EqualValues(t, 1, stat.Version, "written once")

	lost = loseReply(wire, opSetData)
	_, err = s.PutOverride(ctx, overridesPath, drained("three"), 0)
	require.ErrorIs(t, err, zookeeper.ErrOverrideChanged, "a lost refusal is a refusal")
	require.True(t, lost.Load())

	lost = loseReply(wire, opDelete)
	removed, err := s.RemoveOverride(ctx, overridesPath, o.Node, o.Revision)
	require.NoError(t, err)
	require.True(t, lost.Load())
	require.True(t, removed)
	require.Empty(t, names(t, w, overridesPath))
	require.EqualValues(t, 1, s.Stats().Sessions)
}

// TestOverridesUnanswered: when time is over before the server has answered, the error says what is not known.
func TestOverridesUnanswered(t *testing.T) {
	zks := server(t)
	wire := zktest.NewProxy(t, zks.Addr())
	s := open(t, zookeeper.Options{Hosts: []string{wire.Addr()}, SessionTimeout: 20 * time.Second})
	connected(t, s)
	wire.StallReplies()
	ctx, cancel := context.WithTimeout(context.Background(), 100*time.Millisecond)
	defer cancel()
	_, err := s.PutOverride(ctx, overridesPath, drained("one"), zookeeper.NoOverride)
	require.ErrorIs(t, err, context.DeadlineExceeded)
	require.ErrorIs(t, err, zookeeper.ErrUnanswered)

	wire.Break()
	wire.Cut()
	disconnected(t, s)
	ctx, cancel = context.WithTimeout(context.Background(), 100*time.Millisecond)
	defer cancel()
	_, err = s.PutOverride(ctx, overridesPath, drained("one"), zookeeper.NoOverride)
	require.ErrorIs(t, err, context.DeadlineExceeded)
	require.NotErrorIs(t, err, zookeeper.ErrUnanswered, "nothing was sent")
}

// TestOverridesInherit: who may write is what the path says. A user that may not change the ACL is not locked out by
// what it makes.
func TestOverridesInherit(t *testing.T) {
	zks := server(t)
	w := writer(t, zks.Addr())
	require.NoError(t, w.AddAuth("digest", []byte("root:r")))
	create(t, w, overridesPath, "", 0)
	admins := append(zk.DigestACL(zk.PermAll, "root", "r"), zk.DigestACL(zk.PermRead|zk.PermWrite|zk.PermCreate|zk.PermDelete, "ops", "o")...)
	admins = append(admins, zk.WorldACL(zk.PermRead)...)
	_, err := w.SetACL(overridesPath, admins, -1)
	require.NoError(t, err)
	ctx := within(t, patience)
	login := func(user string) *zookeeper.Session {
		var logins []zookeeper.Login
		if user != "" {
			logins = []zookeeper.Login{{Scheme: "digest", Credentials: []byte(user)}}
		}
		return open(t, zookeeper.Options{Hosts: []string{zks.Addr()}, Logins: logins})
	}

	anyone := login("")
	_, err = anyone.PutOverride(ctx, overridesPath, drained("one"), zookeeper.NoOverride)
	require.ErrorContains(t, err, "does not let this user")

	root := login("root:r")
	o, err := root.PutOverride(ctx, overridesPath, drained("one"), zookeeper.NoOverride)
	require.NoError(t, err)
	acl, _, err := w.GetACL(overridesPath + "/" + o.Node)
	require.NoError(t, err)
	require.ElementsMatch(t, admins, acl, "the path's")
	all, err := anyone.Overrides(ctx, overridesPath)
	require.NoError(t, err)
	require.Len(t, all, 1)
	_, err = anyone.PutOverride(ctx, overridesPath, drained("two"), o.Revision)
	require.ErrorIs(t, err, zk.ErrNoAuth)
	_, err = anyone.RemoveOverride(ctx, overridesPath, o.Node, o.Revision)
	require.ErrorIs(t, err, zk.ErrNoAuth)

	ops := login("ops:o")
	o, err = ops.PutOverride(ctx, overridesPath, drained("two"), o.Revision)
	require.NoError(t, err)
	removed, err := ops.RemoveOverride(ctx, overridesPath, o.Node, o.Revision)
	require.NoError(t, err)
	require.True(t, removed)
	o, err = ops.PutOverride(ctx, overridesPath, drained("three"), zookeeper.NoOverride)
	require.NoError(t, err)
	_, err = ops.PutOverride(ctx, overridesPath, drained("four"), o.Revision)
	require.NoError(t, err, "the hashes that the server hides are not copied as it shows them")
	_, err = anyone.Overrides(ctx, overridesPath)
	require.NoError(t, err, "agents read it")
}

// TestRestoreOverrides: a path that is gone is made with all that was there in one transaction, and a path that is there
// stays as it is.
func TestRestoreOverrides(t *testing.T) {
	zks := server(t)
	s := open(t, zookeeper.Options{Hosts: []string{zks.Addr()}, Chroot: "/prod"})
	ctx := within(t, patience)
	missing, err := s.NoOverrides(ctx, overridesPath)
	require.NoError(t, err)
	require.True(t, missing)
	one, two := drained("one"), drained("two")
	two.Host = "10.0.0.2"
	require.NoError(t, s.RestoreOverrides(ctx, overridesPath, []discovery.Override{one, two}))
	missing, err = s.NoOverrides(ctx, overridesPath)
	require.NoError(t, err)
	require.False(t, missing)
	all, err := s.Overrides(ctx, overridesPath)
	require.NoError(t, err)
	require.Len(t, all, 2)
	require.Equal(t, one.Target, all[0].Target)
	require.Equal(t, "two", all[1].Reason)
	_, path, err := writer(t, zks.Addr()).Get("/prod/myelin/overrides")
	require.NoError(t, err)
	_, node, err := writer(t, zks.Addr()).Get("/prod/myelin/overrides/" + all[1].Node)
	require.NoError(t, err)
	require.Equal(t, path.Czxid, node.Czxid, "all at once")

	require.ErrorIs(t, s.RestoreOverrides(ctx, overridesPath, []discovery.Override{one}), zookeeper.ErrOverrideChanged)
	all, err = s.Overrides(ctx, overridesPath)
	require.NoError(t, err)
	require.Len(t, all, 2)
}
