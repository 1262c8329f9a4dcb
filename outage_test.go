package main_test

import (
	"context"
	"errors"
	"fmt"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/myelin-sd/myelin/cli/clitest"
	"github.com/myelin-sd/myelin/discovery/zookeeper"
	"github.com/myelin-sd/myelin/discovery/zookeeper/zktest"
)

// outageTimeout is the session timeout of the registrars in TestRegisteredOnceAfterOutage.
const outageTimeout = 4 * time.Second

// outages are ways for ZooKeeper to be away from a registrar.
var outages = []struct {
	name       string
	begin, end func(w *world, registrars *zktest.Proxy)
	away       time.Duration
	anew       bool // the session does not live on
}{
	{
		// The server gives each session that it knows of its whole timeout again.
		"stopped and started", func(w *world, _ *zktest.Proxy) { require.NoError(w.t, w.zk.Stop()) },
		func(w *world, _ *zktest.Proxy) { require.NoError(w.t, w.zk.Start()) }, 3 * outageTimeout, false,
	},
	{
		"out of reach", func(_ *world, p *zktest.Proxy) { p.Cut() },
		func(_ *world, p *zktest.Proxy) { p.Resume() }, 3 * outageTimeout, true,
	},
	{
		// To a client that has seen more than the server knows of, it only closes the connection.
		"without its data", func(w *world, _ *zktest.Proxy) { require.NoError(w.t, w.zk.Stop()) },
		func(w *world, _ *zktest.Proxy) {
			require.NoError(w.t, w.zk.Wipe())
			require.NoError(w.t, w.zk.Start())
			w.session.Close() // it is such a client as well
			w.session = zookeeper.New(zookeeper.Options{Hosts: []string{w.zk.Addr()}, SessionTimeout: 20 * time.Second, Log: silent()})
		}, time.Second, true,
	},
}

// TestRegisteredOnceAfterOutage: after ZooKeeper was away, each service is registered exactly once, soon and for good,
// and no request fails all the while.
func TestRegisteredOnceAfterOutage(t *testing.T) {
	t.Parallel()
	for _, o := range outages {
		t.Run(o.name, func(t *testing.T) {
			t.Parallel()
			w := newWorld(t)
			w.startAgent()
			wire := zktest.NewProxy(t, w.zk.Addr())
			in := w.startServiceOf("a", wire.Addr())
			w.write(in.file, read(t, in.file)+moreServices(in.Port))
			w.startRegistrar(in)
			w.converges("a")
			kinds := []string{servicePath, "/services/fixed", "/services/encoded"}
			before := w.registeredOnce(kinds)
			load := clitest.StartLoad(w.url(), 50)

			o.begin(w, wire)
			w.stays(o.away, func() error { return w.inRotation([]string{"a"}) })
			o.end(w, wire)
			w.connectedAgain(before[0].Owner, o.anew)
			nodes := w.registeredOnce(kinds)
			session := nodes[0].Owner
			require.Equal(t, o.anew, session != before[0].Owner)
			since := w.connectedSince(session)
			for i, n := range nodes {
				require.Equal(t, session, n.Owner, "all are of the session that lives")
				require.Equal(t, o.anew, n.Created.After(since), "what lives on is kept, what does not is made anew")
				if o.anew {
					t.Logf("%s was created %s after the registrar's connection", kinds[i], n.Created.Sub(since))
					require.Less(t, n.Created.Sub(since), 10*time.Second, "the aim is 2 s, on a machine that has nothing else to do")
				}
			}

			// A node of a session that is to end would go now, and a twin would show.
			w.stays(outageTimeout+time.Second, func() error {
				again, err := w.onceEach(kinds)
				if err == nil && !slices.EqualFunc(nodes, again, sameNode) {
					err = fmt.Errorf("%v became %v", describe(nodes), describe(again))
				}
				return errors.Join(err, w.inRotation([]string{"a"}))
			})
			w.endLoad(load)
		})
	}
}

func sameNode(a, b zookeeper.Node) bool { return a.Name == b.Name && a.Owner == b.Owner }

// connectedAgain waits until the agent and the registrar have connections, the latter for another session than before
// when that is anew.
func (w *world) connectedAgain(before int64, anew bool) {
	w.t.Helper()
	w.eventually("all are connected again", func() error {
		ids, err := w.connections()
		if err == nil && (len(ids) != 2 || slices.Contains(ids, fmt.Sprintf("0x%x", uint64(before))) == anew) {
			err = fmt.Errorf("sessions %v; before it was 0x%x", ids, uint64(before))
		}
		return err
	})
}

// moreServices are services beside that of startInstance, one for each other kind of node.
func moreServices(port int) string {
	var b strings.Builder
	for name, key := range map[string]string{"fixed": `node_type = "ephemeral"`, "encoded": "use_path_encoding = true"} {
		fmt.Fprintf(&b, `
[services.%s]
host = "127.0.0.1"
port = %d
zk_path = "/services/%s"
check_interval = "100ms"
%s
checks = [{ type = "http", uri = "/health", timeout = "2s", rise = 2, fall = 2 }]
`, name, port, name, key)
	}
	return b.String()
}

// stays checks a condition over and over for some time.
func (w *world) stays(d time.Duration, condition func() error) {
	w.t.Helper()
	for end := time.Now().Add(d); time.Now().Before(end); time.Sleep(50 * time.Millisecond) {
		require.NoError(w.t, condition())
	}
}

// registeredOnce waits until there is one node in each path, and returns them.
func (w *world) registeredOnce(paths []string) (nodes []zookeeper.Node) {
	w.t.Helper()
	w.eventually("each service is registered", func() (err error) {
		nodes, err = w.onceEach(paths)
		return err
	})
	return nodes
}

// onceEach returns the one node in each path. It is an error when there is none or more than one.
func (w *world) onceEach(paths []string) ([]zookeeper.Node, error) {
	ctx, cancel := context.WithTimeout(context.Background(), patience)
	defer cancel()
	var all []zookeeper.Node
	for _, path := range paths {
		nodes, err := w.session.Read(ctx, path)
		if err != nil {
			return nil, err
		}
		if len(nodes) != 1 {
			return nil, fmt.Errorf("%d nodes in %s: %v", len(nodes), path, describe(nodes))
		}
		all = append(all, nodes[0])
	}
	return all, nil
}

func describe(nodes []zookeeper.Node) (words []string) {
	for _, n := range nodes {
		words = append(words, fmt.Sprintf("%s of 0x%x", n.Name, uint64(n.Owner)))
	}
	return words
}

// connectedSince is when the server took the connection over which a session lives now, by the server's clock.
func (w *world) connectedSince(session int64) time.Time {
	w.t.Helper()
	answer, err := w.zk.Ask("cons")
	require.NoError(w.t, err)
	found := regexp.MustCompile(fmt.Sprintf(`sid=0x%x,.*\best=(\d+)`, uint64(session))).FindStringSubmatch(answer)
	require.NotNil(w.t, found, "no session 0x%x in\n%s", uint64(session), answer)
	since, err := strconv.ParseInt(found[1], 10, 64)
	require.NoError(w.t, err)
	return time.UnixMilli(since)
}
