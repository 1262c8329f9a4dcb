package zookeeper_test

import (
	"context"
	"errors"
	"fmt"
	"path"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/go-zookeeper/zk"
	"github.com/stretchr/testify/require"

	"github.com/myelin-sd/myelin/discovery"
	"github.com/myelin-sd/myelin/discovery/zookeeper"
	"github.com/myelin-sd/myelin/discovery/zookeeper/zktest"
)

// reasons are what was found, in order.
func reasons(p discovery.Published) []string {
	all := []string{}
	for _, f := range p.Found {
		all = append(all, f.Reason+" "+f.Node)
	}
	return all
}

// TestFindings: what was not as it had been left is told once, when it is mended.
func TestFindings(t *testing.T) {
	zks := server(t)
	w := writer(t, zks.Addr())
	for name, r := range map[string]discovery.Registration{"sequential": sequential, "fixed": fixed} {
		t.Run(name, func(t *testing.T) {
			r.Path = "/findings/" + name
			s := open(t, zookeeper.Options{Hosts: []string{zks.Addr()}})
			publish := func() discovery.Published {
				made, err := s.Publish(within(t, patience), r, "")
				require.NoError(t, err)
				return made
			}
			first := publish()
			require.Empty(t, first.Found, "nothing was there before")
			require.True(t, first.New)
			kept := publish()
			require.Empty(t, kept.Found, "all is well")
			require.False(t, kept.New)

			require.NoError(t, w.Delete(first.Node, -1))
			second := publish()
			require.Equal(t, []string{"missing " + first.Node}, reasons(second))
			require.False(t, second.New, "it was there")
			require.Empty(t, publish().Found, "told once")

			_, err := w.Set(second.Node, []byte("vandalised"), -1)
			require.NoError(t, err)
			require.Equal(t, []string{"data " + second.Node}, reasons(publish()))
			data, _, err := w.Get(second.Node)
			require.NoError(t, err)
			require.Equal(t, string(r.Data), string(data))

			r.Data = []byte(payload(1)[:len(payload(1))-1] + `,"weight":3}`)
			require.Empty(t, publish().Found, "other data of our own are no finding")

			session := s.Status().Session
			require.NoError(t, zks.Expire(id(t, s)))
			require.Eventually(t, func() bool { return s.Status().Connected && s.Status().Session != session }, patience, poll)
			third := publish()
			require.Equal(t, []string{"expired " + second.Node}, reasons(third))
			require.Contains(t, third.Found[0].Detail, session)

			// Somebody else has put a node in the place of ours.
			_, err = w.Multi(&zk.DeleteRequest{Path: third.Node, Version: -1},
				&zk.CreateRequest{Path: third.Node, Data: []byte(payload(9)), Flags: zk.FlagEphemeral, Acl: world})
			require.NoError(t, err)
			if !r.Sequential { // it stays his until he goes
				_, err := s.Publish(within(t, patience), r, "")
				require.ErrorContains(t, err, "taken by session")
				require.NoError(t, w.Delete(third.Node, -1))
			}
			fourth := publish()
			require.Equal(t, []string{"foreign " + third.Node}, reasons(fourth))
			require.Contains(t, fourth.Found[0].Detail, fmt.Sprintf("session 0x%x for 10.0.0.9:8080", w.SessionID()))
			require.NoError(t, s.Withdraw(within(t, patience), r, ""))
		})
	}
}

// TestTwinOfOurSession: a node of ours that we do not know of is removed with the next look, however it came to be. It
// is not looked for in the service's whole list.
func TestTwinOfOurSession(t *testing.T) {
	zks := server(t)
	w := writer(t, zks.Addr())
	s := open(t, zookeeper.Options{Hosts: []string{zks.Addr()}})
	r := sequential
	made, err := s.Publish(within(t, patience), r, "")
	require.NoError(t, err)
	other := r
	other.Prefix = "web-10_" // begins as ours does, but is not
	stays, err := s.Publish(within(t, patience), other, "")
	require.NoError(t, err)
	strange := r // a way to have our session own one more
	strange.Prefix, strange.Sequential = "web-1_9999999999", false
	twin, err := s.Publish(within(t, patience), strange, "")
	require.NoError(t, err)
	foreign := create(t, w, "/s/web/web-1_", payload(1), zk.FlagEphemeral|zk.FlagSequence)

	before := s.Stats().Reads
	again, err := s.Publish(within(t, patience), r, "")
	require.NoError(t, err)
	require.Equal(t, []string{"twin " + twin.Node}, reasons(again))
	require.Equal(t, made.Node, again.Node)
	require.Less(t, s.Stats().Reads-before, uint64(6))
	left := []string{}
	for _, name := range names(t, w, "/s/web") {
		left = append(left, "/s/web/"+name)
	}
	require.ElementsMatch(t, []string{made.Node, stays.Node, foreign}, left)
}

// TestPersistentNodes: they have no owner, so what a crash has left is told by its endpoint and its name.
func TestPersistentNodes(t *testing.T) {
	zks := server(t)
	w := writer(t, zks.Addr())
	for _, sequential := range []bool{true, false} {
		t.Run(fmt.Sprint("sequential ", sequential), func(t *testing.T) {
			r := discovery.Registration{Path: fmt.Sprint("/persistent/", sequential), Prefix: "web-1_", Data: []byte(payload(1)), Sequential: sequential}
			crashed := open(t, zookeeper.Options{Hosts: []string{zks.Addr()}})
			node, err := publishNode(crashed, within(t, patience), r, "")
			require.NoError(t, err)
			crashed.Leave()

			// The next run finds it, with nothing but the registry to go by.
			next := open(t, zookeeper.Options{Hosts: []string{zks.Addr()}})
			was, may := next.Standing(r)
			require.True(t, may, "or a service that is down would stay registered")
			require.Equal(t, r, was)
			again, err := publishNode(next, within(t, patience), r, "")
			require.NoError(t, err)
			require.Equal(t, node, again)
			require.Len(t, names(t, w, r.Path), 1)
			require.NoError(t, next.Withdraw(within(t, patience), r, ""))
			require.Empty(t, names(t, w, r.Path))

			// Down from the start on: what the crash has left is withdrawn.
			_, err = next.Publish(within(t, patience), r, "")
			require.NoError(t, err)
			next.Leave()
			third := open(t, zookeeper.Options{Hosts: []string{zks.Addr()}})
			require.NoError(t, third.Withdraw(within(t, patience), r, ""))
			require.Empty(t, names(t, w, r.Path))

			// Another instance's is left alone.
			other := create(t, w, path.Join(r.Path, "web-1_"), payload(2), map[bool]int32{true: zk.FlagSequence}[sequential])
			_, err = third.Publish(within(t, patience), r, "")
			if sequential {
				require.NoError(t, err)
			} else {
				require.ErrorContains(t, err, "taken by a persistent node for 10.0.0.2:8080")
			}
			require.NoError(t, third.Withdraw(within(t, patience), r, ""))
			require.Equal(t, []string{path.Base(other)}, names(t, w, r.Path))
		})
	}
}

// TestTTL: data that stay the same are written again in time, for the first time at some moment within.
func TestTTL(t *testing.T) {
	zks := server(t)
	w := writer(t, zks.Addr())
	s := open(t, zookeeper.Options{Hosts: []string{zks.Addr()}})
	r := persistent
	r.TTL = time.Hour
	made, err := s.Publish(within(t, patience), r, "")
	require.NoError(t, err)
	require.Greater(t, made.Within, time.Duration(0))
	require.LessOrEqual(t, made.Within, r.TTL)
	_, was, err := w.Get(made.Node)
	require.NoError(t, err)
	again, err := s.Publish(within(t, patience), r, "")
	require.NoError(t, err)
	require.LessOrEqual(t, again.Within, made.Within)
	_, same, err := w.Get(made.Node)
	require.NoError(t, err)
	require.Equal(t, was.Mzxid, same.Mzxid, "not due yet")

	r.TTL = time.Nanosecond
	again, err = s.Publish(within(t, patience), r, "")
	require.NoError(t, err, "nobody can keep that, and it is tried")
	_, now, err := w.Get(made.Node)
	require.NoError(t, err)
	require.Equal(t, was.Version+1, now.Version, "once each time")
	r.TTL = 200 * time.Millisecond
	require.Eventually(t, func() bool {
		again, err = s.Publish(within(t, patience), r, "")
		_, now, errGet := w.Get(made.Node)
		return err == nil && errGet == nil && now.Mtime > was.Mtime
	}, patience, poll)
	require.Empty(t, again.Found)
	require.Equal(t, made.Node, again.Node)
}

// formats is one instance in three formats.
func formats(t testing.TB) discovery.Registration {
	t.Helper()
	p := discovery.Payload{Host: "10.0.0.1", Port: 8080, Name: "web-1"}
	r := registration(payload(1))
	member, err := discovery.EncodeServerset(p)
	require.NoError(t, err)
	instance, err := discovery.EncodeCurator(p, "web", "web-1_8080")
	require.NoError(t, err)
	r.Also = []discovery.Registration{
		{Path: "/members/web", Prefix: discovery.ServersetPrefix, Data: member, Sequential: true, Ephemeral: true},
		{Path: "/curator/web", Prefix: "web-1_8080", Data: instance, Ephemeral: true, Dated: true},
	}
	return r
}

// stands returns what stands in the three paths: node names, or what is wrong.
func stands(t testing.TB, w *zk.Conn, r discovery.Registration) (nodes []string) {
	t.Helper()
	for _, one := range r.All() {
		for _, name := range names(t, w, one.Path) {
			data, _, err := w.Get(one.Path + "/" + name)
			if errors.Is(err, zk.ErrNoNode) { // gone since it was listed
				continue
			}
			require.NoError(t, err)
			in, err := discovery.DecodeAny(name, data)
			require.NoError(t, err)
			nodes = append(nodes, one.Path+"/"+name+" "+in.Endpoint.String())
		}
	}
	return nodes
}

// TestFormats: one registration in three formats stands, is kept, outlives a restart and is withdrawn as one.
func TestFormats(t *testing.T) {
	zks := server(t)
	w := writer(t, zks.Addr())
	r := formats(t)
	p := begin(t, zks, filepath.Join(t.TempDir(), "session"))
	node := p.publish(r)
	all := stands(t, w, r)
	require.Equal(t, []string{node + " 10.0.0.1:8080", "/members/web/member_0000000000 10.0.0.1:8080", "/curator/web/web-1_8080 10.0.0.1:8080"}, all)
	require.Equal(t, "/s/web/web-1_0000000000", node)
	instance, _, err := w.Get("/curator/web/web-1_8080")
	require.NoError(t, err)
	require.NotContains(t, string(instance), `"registrationTimeUTC":0`)

	// Whichever is deleted comes back, and the others stay.
	for _, lost := range []string{"/members/web/member_0000000000", "/curator/web/web-1_8080"} {
		require.NoError(t, w.Delete(lost, -1))
		made, err := p.Publish(within(t, patience), r, node)
		require.NoError(t, err)
		require.Equal(t, []string{"missing " + lost}, reasons(made))
		require.Equal(t, node, made.Node)
		require.Len(t, stands(t, w, r), 3)
	}
	instance, was, err := w.Get("/curator/web/web-1_8080")
	require.NoError(t, err)

	// The next process takes all three over, and writes nothing.
	all = stands(t, w, r)
	next := begin(t, zks, p.crash())
	standing, may := next.Standing(r)
	require.True(t, may)
	require.Len(t, standing.Also, 2)
	require.NoError(t, next.Retain(within(t, patience), []discovery.Registration{r}))
	made, err := next.Publish(within(t, patience), r, "")
	require.NoError(t, err)
	require.Empty(t, made.Found)
	require.Equal(t, all, stands(t, w, r))
	again, now, err := w.Get("/curator/web/web-1_8080")
	require.NoError(t, err)
	require.Equal(t, was.Mzxid, now.Mzxid, "also not for the time of registration")
	require.Equal(t, string(instance), string(again))

	// A format that is no longer configured goes.
	less := r
	less.Also = r.Also[:1]
	require.NoError(t, next.Retain(within(t, patience), []discovery.Registration{less}))
	require.Empty(t, names(t, w, "/curator/web"))
	require.Len(t, stands(t, w, r), 2)

	require.NoError(t, next.Withdraw(within(t, patience), r, made.Node))
	require.Empty(t, stands(t, w, r))
	_, may = next.Standing(r)
	require.False(t, may)
}

// TestAwayForLong: ZooKeeper is away for three session timeouts. Afterwards each format is registered exactly once,
// also when the session's nodes have survived because the server was away as well.
func TestAwayForLong(t *testing.T) {
	for name, away := range map[string]func(*testing.T, *zktest.Server, *zktest.Proxy, func() bool){
		"the wire": func(t *testing.T, _ *zktest.Server, wire *zktest.Proxy, gone func() bool) {
			wire.Cut()
			require.Eventually(t, gone, patience, poll, "the session has expired")
			wire.Resume()
		},
		"the server": func(t *testing.T, zks *zktest.Server, _ *zktest.Proxy, _ func() bool) {
			require.NoError(t, zks.Kill())
			time.Sleep(3 * time.Second) // what is tested is that time
			require.NoError(t, zks.Start())
		},
	} {
		t.Run(name, func(t *testing.T) {
			zks := server(t)
			wire := zktest.NewProxy(t, zks.Addr())
			s := open(t, zookeeper.Options{Hosts: []string{wire.Addr()}, SessionTimeout: time.Second})
			r := formats(t)
			keep(t, s, r)
			w := writer(t, zks.Addr())
			require.Eventually(t, func() bool { return len(stands(t, w, r)) == 3 }, patience, poll)
			away(t, zks, wire, func() bool { return len(stands(t, w, r)) == 0 })

			w = writer(t, zks.Addr())
			require.Eventually(t, func() bool {
				session := s.Status().Session
				for _, one := range r.All() {
					list, _, err := w.Children(one.Path)
					if err != nil || len(list) != 1 {
						return false
					}
					_, stat, err := w.Get(one.Path + "/" + list[0])
					if err != nil || fmt.Sprintf("0x%x", uint64(stat.EphemeralOwner)) != session {
						return false
					}
				}
				return s.Status().Connected
			}, patience, poll, "each once, and ours")
		})
	}
}

// TestClosedNodes: with an ACL, strangers may read and neither change nor delete, and the same user on another host may
// register beside us.
func TestClosedNodes(t *testing.T) {
	zks := server(t)
	login := []zookeeper.Login{{Scheme: "digest", Credentials: []byte("registrar:s3cret")}}
	s := open(t, zookeeper.Options{Hosts: []string{zks.Addr()}, Logins: login})
	r := registration(payload(1))
	r.Path, r.Closed = "/deep/s/web", true
	node, err := publishNode(s, within(t, patience), r, "")
	require.NoError(t, err)

	stranger := writer(t, zks.Addr())
	_, _, err = stranger.Get(node)
	require.NoError(t, err)
	require.ErrorIs(t, stranger.Delete(node, -1), zk.ErrNoAuth)
	_, err = stranger.Set(node, nil, -1)
	require.ErrorIs(t, err, zk.ErrNoAuth)
	_, err = stranger.Create("/deep/s/web/x", nil, 0, world)
	require.ErrorIs(t, err, zk.ErrNoAuth)
	_, err = stranger.Create("/deep/s/other", nil, 0, world)
	require.NoError(t, err, "another service beside it")
	require.ErrorIs(t, stranger.Delete("/deep/s/web", -1), zk.ErrNoAuth)

	colleague := open(t, zookeeper.Options{Hosts: []string{zks.Addr()}, Logins: login})
	theirs := r
	theirs.Prefix, theirs.Data = "web-2_", []byte(payload(2))
	_, err = colleague.Publish(within(t, patience), theirs, "")
	require.NoError(t, err)

	// The configuration changes: the node stays, and is open.
	r.Closed = false
	again, err := publishNode(s, within(t, patience), r, "")
	require.NoError(t, err)
	require.Equal(t, node, again)
	_, err = stranger.Set(node, []byte(payload(1)), -1)
	require.NoError(t, err)
	r.Closed = true
	_, err = s.Publish(within(t, patience), r, "")
	require.NoError(t, err)
	_, err = stranger.Set(node, nil, -1)
	require.ErrorIs(t, err, zk.ErrNoAuth)
	require.NoError(t, s.Withdraw(within(t, patience), r, node))

	// Without a login nobody would own it.
	r.Path = "/nobody"
	_, err = open(t, zookeeper.Options{Hosts: []string{zks.Addr()}}).Publish(within(t, patience), r, "")
	require.ErrorContains(t, err, "give zookeeper.auth")
}

// TestVandal: somebody who sets the data as fast as he can costs us one write for each attempt.
func TestVandal(t *testing.T) {
	zks := server(t)
	w := writer(t, zks.Addr())
	s := open(t, zookeeper.Options{Hosts: []string{zks.Addr()}})
	made, err := s.Publish(within(t, patience), sequential, "")
	require.NoError(t, err)
	node := made.Node
	ctx, cancel := context.WithCancel(t.Context())
	ended := make(chan struct{})
	var theirs int32
	go func() {
		defer close(ended)
		for ctx.Err() == nil {
			if _, err := w.Set(node, []byte("mine"), -1); err == nil {
				theirs++
			}
		}
	}()
	const attempts = 20
	for range attempts {
		made, err = s.Publish(within(t, patience), sequential, "")
		require.True(t, err == nil || strings.Contains(err.Error(), "somebody else changes it all the time"), "%v", err)
	}
	cancel()
	<-ended
	_, stat, err := w.Get(node)
	require.NoError(t, err)
	require.Positive(t, theirs)
	require.LessOrEqual(t, stat.Version-theirs, int32(attempts), "one write for each attempt")
	made, err = s.Publish(within(t, patience), sequential, "")
	require.NoError(t, err)
	require.Contains(t, strings.Join(reasons(made), ","), "data "+node)
	one(t, w, s, payload(1))
}
