package zookeeper_test

import (
	"context"
	"fmt"
	"maps"
	"slices"
	"strings"
	"testing"

	"github.com/go-zookeeper/zk"
	"github.com/stretchr/testify/require"

	"github.com/myelin-sd/myelin/discovery/zookeeper"
	"github.com/myelin-sd/myelin/discovery/zookeeper/zktest"
)

// walked is what a walk told of.
type walked struct {
	folders map[string]zookeeper.Folder
	nodes   map[string]string // data by path
	times   map[string]int    // how often a node was told of
	unread  map[string]error
	absent  []string
	moved   int
}

func walk(ctx context.Context, s *zookeeper.Session, most int, roots ...string) (*walked, error) {
	w := &walked{folders: map[string]zookeeper.Folder{}, nodes: map[string]string{}, times: map[string]int{}, unread: map[string]error{}}
	err := s.Walk(ctx, roots, zookeeper.Walk{
		Most:   most,
		Folder: func(f zookeeper.Folder) { w.folders[f.Path] = f },
		Node: func(dir string, n zookeeper.Node) {
			p := strings.TrimSuffix(dir, "/") + "/" + n.Name
			w.nodes[p] = string(n.Data)
			w.times[p]++
		},
		Absent: func(p string) { w.absent = append(w.absent, p) },
		Unread: func(p string, err error) { w.unread[p] = err },
		Moved:  func(n int) { w.moved = n },
	})
	return w, err
}

func paths[T any](m map[string]T) []string { return slices.Sorted(maps.Keys(m)) }

// TestWalk: every node once, with its data and what tells it from another one, whatever the servers know.
func TestWalk(t *testing.T) {
	both(t, func(t *testing.T, with zookeeper.Options) {
		zks := server(t)
		w := writer(t, zks.Addr())
		create(t, w, "/prod/services/api/a", payload(1), zk.FlagEphemeral)
		create(t, w, "/prod/services/api/b", payload(2), 0)
		create(t, w, "/prod/services/team/mail/m", payload(3), 0)
		create(t, w, "/prod/services/empty", "", 0)
		s := open(t, zookeeper.Options{Hosts: []string{zks.Addr()}, Chroot: "/prod", Classic: with.Classic})
		ctx := within(t, patience)

		got, err := walk(ctx, s, 0, "/services/", "/gone")
		require.NoError(t, err)
		require.Equal(t, []string{"/services", "/services/api", "/services/team", "/services/team/mail"}, paths(got.folders))
		require.Equal(t, map[string]string{
			"/services/api": "", "/services/api/a": payload(1), "/services/api/b": payload(2), "/services/empty": "",
			"/services/team": "", "/services/team/mail": "", "/services/team/mail/m": payload(3),
		}, got.nodes)
		require.Equal(t, []string{"/gone"}, got.absent)
		require.Empty(t, got.unread)
		require.Equal(t, 7, got.moved)
		api := got.folders["/services/api"]
		_, stat, err := w.Get("/prod/services/api")
		require.NoError(t, err)
		require.Equal(t, []any{2, 2, stat.Czxid}, []any{api.Names, api.NameBytes, api.Czxid})

		err = s.Walk(ctx, []string{"/gone"}, zookeeper.Walk{})
		require.ErrorIs(t, err, zookeeper.ErrNoPath)

		var entered []string
		require.NoError(t, s.Walk(ctx, []string{"/services"}, zookeeper.Walk{
			Folder: func(f zookeeper.Folder) { entered = append(entered, f.Path) },
			Enter:  func(dir string) bool { return false },
		}))
		require.Equal(t, []string{"/services"}, entered)

		root, err := walk(ctx, open(t, zookeeper.Options{Hosts: []string{zks.Addr()}, Classic: with.Classic}), 0, "/")
		require.NoError(t, err)
		require.Contains(t, root.nodes, "/prod/services/team/mail/m")
		require.NotContains(t, root.folders, "/zookeeper", "it is ZooKeeper's own")
	})
}

// TestWalkTellsWhatItCannotRead: an error never shortens a list.
func TestWalkTellsWhatItCannotRead(t *testing.T) {
	zks := server(t)
	w := writer(t, zks.Addr())
	for _, p := range []string{"/services/api/a", "/services/api/secret", "/services/closed/x", "/services/big/1", "/services/big/2", "/services/big/3"} {
		create(t, w, p, payload(1), 0)
	}
	at := "/services/deep"
	for range 18 {
		at += "/d"
	}
	create(t, w, at, "", 0)
	for _, p := range []string{"/services/api/secret", "/services/closed"} {
		_, err := w.SetACL(p, zk.DigestACL(zk.PermAll, "other", "x"), -1)
		require.NoError(t, err)
	}
	s := open(t, zookeeper.Options{Hosts: []string{zks.Addr()}})
	ctx := within(t, patience)
	got, err := walk(ctx, s, 0, "/services")
	require.NoError(t, err)
	require.ErrorIs(t, got.unread["/services/api/secret"], zookeeper.ErrNoAccess)
	require.ErrorIs(t, got.unread["/services/closed"], zookeeper.ErrNoAccess)
	tooDeep := "/services/deep" + strings.Repeat("/d", 16)
	require.Equal(t, []string{"/services/api/secret", "/services/closed", tooDeep}, paths(got.unread))
	require.ErrorContains(t, got.unread[tooDeep], "levels below the root")
	require.Contains(t, got.nodes, "/services/api/a", "the others are read")

	got, err = walk(ctx, s, 2, "/services/big")
	require.NoError(t, err)
	require.ErrorContains(t, got.unread["/services/big"], "too many nodes: more than 2")
	require.Empty(t, got.nodes)

	require.ErrorIs(t, s.Walk(ctx, []string{"/services/api"}, zookeeper.Walk{}), zookeeper.ErrNoAccess, "nobody is told otherwise")
}

// TestWalkGoesOn: a connection that is lost in the middle costs no node and tells none twice.
func TestWalkGoesOn(t *testing.T) {
	zks := server(t)
	w := writer(t, zks.Addr())
	const n = 1_500 // several requests
	create(t, w, "/services/api/first", "", 0)
	var ops []any
	for i := range n {
		ops = append(ops, &zk.CreateRequest{Path: fmt.Sprintf("/services/api/n-%05d", i), Data: []byte(payload(i)), Acl: world})
	}
	for part := range slices.Chunk(ops, 500) {
		_, err := w.Multi(part...)
		require.NoError(t, err)
	}
	wire := zktest.NewProxy(t, zks.Addr())
	s := open(t, zookeeper.Options{Hosts: []string{wire.Addr()}})
	connected(t, s)
	broken, times := false, map[string]int{}
	require.NoError(t, s.Walk(within(t, patience), []string{"/services"}, zookeeper.Walk{
		Node: func(dir string, n zookeeper.Node) {
			times[dir+"/"+n.Name]++
			if len(times) == 100 {
				broken = true
				wire.Break()
			}
		},
	}))
	require.True(t, broken)
	require.Len(t, times, n+2)
	for p, told := range times {
		require.Equal(t, 1, told, p)
	}
}
