package zookeeper_test

import (
	"context"
	"sync"
	"testing"

	"github.com/go-zookeeper/zk"
	"github.com/stretchr/testify/require"

	"github.com/myelin-sd/myelin/discovery/zookeeper"
	"github.com/myelin-sd/myelin/discovery/zookeeper/zktest"
)

// standing reads a node as a walk finds it.
func standing(t *testing.T, s *zookeeper.Session, dir, name string) zookeeper.Standing {
	t.Helper()
	var found *zookeeper.Standing
	require.NoError(t, s.Walk(context.Background(), []string{dir}, zookeeper.Walk{
		Node: func(dir string, n zookeeper.Node) {
			if n.Name == name {
				found = &zookeeper.Standing{Path: dir + "/" + name, Node: n}
			}
		},
		Unread: func(string, error) {},
	}))
	require.NotNil(t, found, name)
	return *found
}

// TestRemove: a node goes when it is what it was, and stays when anything about it is not.
func TestRemove(t *testing.T) {
	zks := server(t)
	w := writer(t, zks.Addr())
	other := writer(t, zks.Addr())
	s := open(t, zookeeper.Options{Hosts: []string{zks.Addr()}, Chroot: "/prod"})
	ctx := within(t, patience)
	const full = "/prod/api/n"
	for _, c := range []struct {
		name   string
		change func()
		want   error
	}{
		{"unchanged", func() {}, nil},
		{"written", func() { _, err := w.Set(full, []byte("other"), -1); require.NoError(t, err) }, zookeeper.ErrChanged},
		{"written with the same", func() { _, err := w.Set(full, []byte(payload(1)), -1); require.NoError(t, err) }, zookeeper.ErrChanged},
		{"made anew", func() {
			require.NoError(t, w.Delete(full, -1))
			create(t, w, full, payload(1), 0)
		}, zookeeper.ErrChanged},
		{"somebody's own now", func() {
			require.NoError(t, w.Delete(full, -1))
			create(t, other, full, payload(1), zk.FlagEphemeral)
		}, zookeeper.ErrChanged},
		{"a folder now", func() { create(t, w, full+"/child", "", 0) }, zookeeper.ErrChanged},
		{"gone", func() { require.NoError(t, w.Delete(full, -1)) }, zookeeper.ErrNoPath},
		{"closed", func() {
			_, err := w.SetACL("/prod/api", zk.WorldACL(zk.PermRead|zk.PermCreate|zk.PermAdmin), -1)
			require.NoError(t, err)
		}, zookeeper.ErrNoAccess},
	} {
		t.Run(c.name, func(t *testing.T) {
			create(t, w, full, payload(1), 0)
			node := standing(t, s, "/api", "n")
			c.change()
			before, _, err := w.Exists(full)
			require.NoError(t, err)
			err = s.Remove(ctx, node)
			after, _, errAfter := w.Exists(full)
			require.NoError(t, errAfter)
			if c.want == nil {
				require.NoError(t, err)
				require.False(t, after)
				return
			}
			require.ErrorIs(t, err, c.want)
			require.ErrorContains(t, err, "delete /api/n: ")
			if c.name == "made anew" {
				require.ErrorContains(t, err, "it was deleted and made anew")
			}
			require.Equal(t, before, after, "nothing was done")
			_ = w.Delete(full+"/child", -1)
			_ = w.Delete(full, -1)
		})
	}
}

// TestRemoveAtTheLastMoment: what changes between the last look and the deletion stays as well, and so does the last of
// several twins.
func TestRemoveAtTheLastMoment(t *testing.T) {
	const multi = 14
	zks := server(t)
	w := writer(t, zks.Addr())
	for _, c := range []struct {
		name   string
		change func() error
	}{
		{"written", func() error { _, err := w.Set("/api/older", []byte("new"), -1); return err }},
		{"a folder", func() error { _, err := w.Create("/api/older/child", nil, 0, world); return err }},
		{"the other twin is written", func() error { _, err := w.Set("/api/younger", []byte("new"), -1); return err }},
		{"the other twin is gone", func() error { return w.Delete("/api/younger", -1) }},
	} {
		t.Run(c.name, func(t *testing.T) {
			create(t, w, "/api/older", payload(1), 0)
			create(t, w, "/api/younger", payload(1), 0)
			wire := zktest.NewProxy(t, zks.Addr())
			s := open(t, zookeeper.Options{Hosts: []string{wire.Addr()}})
			older, younger := standing(t, s, "/api", "older"), standing(t, s, "/api", "younger")
			var once sync.Once
			var failed error
			wire.DropRequests(func(_, op int32) bool {
				if op == multi {
					once.Do(func() { failed = c.change() })
				}
				return false
			})
			err := s.Remove(within(t, patience), older, younger)
			require.Error(t, err)
			require.NoError(t, failed)
			stands, _, err := w.Exists("/api/older")
			require.NoError(t, err)
			require.True(t, stands)
			for _, p := range []string{"/api/older/child", "/api/older", "/api/younger"} {
				_ = w.Delete(p, -1)
			}
		})
	}
}

// TestRemoveKeepsATwin: with nothing changed the older twin goes and the other stays.
func TestRemoveKeepsATwin(t *testing.T) {
	zks := server(t)
	w := writer(t, zks.Addr())
	create(t, w, "/api/older", payload(1), zk.FlagEphemeral)
	create(t, w, "/api/younger", payload(1), zk.FlagEphemeral)
	s := open(t, zookeeper.Options{Hosts: []string{zks.Addr()}})
	older, younger := standing(t, s, "/api", "older"), standing(t, s, "/api", "younger")
	ctx := within(t, patience)
	require.NoError(t, s.Remove(ctx, older, younger))
	require.Equal(t, []string{"younger"}, names(t, w, "/api"))
	require.ErrorIs(t, s.Remove(ctx, older, younger), zookeeper.ErrNoPath)
	require.Equal(t, []string{"younger"}, names(t, w, "/api"))
}
