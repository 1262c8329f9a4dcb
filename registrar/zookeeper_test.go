package registrar_test

import (
	"context"
	"fmt"
	"maps"
	"net"
	"os"
	"path/filepath"
	"strconv"
	"testing"
	"time"

	"github.com/go-zookeeper/zk"
	"github.com/stretchr/testify/require"

	"github.com/myelin-sd/myelin/discovery"
	"github.com/myelin-sd/myelin/discovery/zookeeper"
	"github.com/myelin-sd/myelin/discovery/zookeeper/zktest"
	"github.com/myelin-sd/myelin/registrar"
)

const parent = "/smartstack/user-api"

// scene is a registrar on a real ZooKeeper, behind a wire that can be cut, with an observer of its own.
type scene struct {
	*registrar.Registrar
	t        *testing.T
	server   *zktest.Server
	wire     *zktest.Proxy
	session  *zookeeper.Session
	observer *zk.Conn
	service  net.Listener // what is checked
	data     []byte
	cancel   context.CancelFunc
	stopped  chan error
}

func newScene(t *testing.T) *scene {
	s := &scene{t: t, server: zktest.New(t)}
	observer, _, err := zk.Connect([]string{s.server.Addr()}, 10*time.Second, zk.WithLogInfo(false), zk.WithLogger(silent{}))
	require.NoError(t, err)
	t.Cleanup(observer.Close)
	s.observer = observer
	s.listen("127.0.0.1:0")
	s.begin(2*time.Second, "")
	return s
}

// begin starts a process: a session, and a registrar that looks after the service.
func (s *scene) begin(timeout time.Duration, file string) {
	s.t.Helper()
	t := s.t
	s.wire = zktest.NewProxy(t, s.server.Addr())
	wire := s.wire
	s.session = zookeeper.New(zookeeper.Options{
		Hosts: []string{s.server.Addr()}, SessionTimeout: timeout, SessionFile: file,
		Dial: func(ctx context.Context, network, _ string) (net.Conn, error) {
			return new(net.Dialer).DialContext(ctx, network, wire.Addr())
		},
	})
	t.Cleanup(s.session.Close)
	_, port, err := net.SplitHostPort(s.service.Addr().String())
	require.NoError(t, err)
	n, err := strconv.ParseUint(port, 10, 16)
	require.NoError(t, err)
	weight := 7
	s.data, err = discovery.EncodeNerve(discovery.Payload{Host: "10.0.0.1", Port: 3000, Name: "web-1", Weight: &weight, Labels: map[string]any{"az": "<a>"}})
	require.NoError(t, err)
	s.Registrar = registrar.New(registrar.Options{Services: []registrar.Service{{
		Name: "user-api", Directory: s.session, Interval: 20 * time.Millisecond,
		Registration: discovery.Registration{Path: parent, Prefix: "web-1_", Data: s.data, Sequential: true, Ephemeral: true},
		Checks: []registrar.Check{{
			Name: "tcp", HealthCheck: registrar.NewTCP(registrar.TCPOptions{Host: "127.0.0.1", Port: uint16(n)}),
			Timeout: time.Second, Rise: 2, Fall: 2,
		}},
	}}})
	ctx, cancel := context.WithCancel(t.Context())
	stopped := make(chan error, 1)
	s.cancel, s.stopped = cancel, stopped
	r := s.Registrar
	go func() { stopped <- r.Run(ctx) }()
	t.Cleanup(func() {
		cancel()
		r.Hasten()
		<-stopped
	})
}

type silent struct{}

func (silent) Printf(string, ...any) {}

// listen makes the service healthy, on the address that it had.
func (s *scene) listen(addr string) {
	s.t.Helper()
	l, err := net.Listen("tcp", addr)
	require.NoError(s.t, err)
	s.service = l
	s.t.Cleanup(func() { l.Close() })
	go func() {
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			c.Close()
		}
	}()
}

// children waits until there are n registrations and returns their names.
func (s *scene) children(n int) []string {
	s.t.Helper()
	var names []string
	require.Eventually(s.t, func() bool {
		var err error
		names, _, err = s.observer.Children(parent)
		return err == nil && len(names) == n
	}, 20*time.Second, 10*time.Millisecond, "%d registrations", n)
	return names
}

// another waits until exactly one registration stands that is not the one before, and returns its name.
func (s *scene) another(than string) string {
	s.t.Helper()
	name := than
	require.Eventually(s.t, func() bool {
		names, _, err := s.observer.Children(parent)
		if err != nil || len(names) != 1 {
			return false
		}
		name = names[0]
		return name != than
	}, 20*time.Second, 10*time.Millisecond)
	return name
}

func (s *scene) owner(name string) int64 {
	s.t.Helper()
	_, stat, err := s.observer.Get(parent + "/" + name)
	require.NoError(s.t, err)
	return stat.EphemeralOwner
}

func TestZooKeeperNode(t *testing.T) {
	s := newScene(t)
	name := s.children(1)[0]
	require.Equal(t, "web-1_0000000000", name)
	data, stat, err := s.observer.Get(parent + "/" + name)
	require.NoError(t, err)
	require.Equal(t, `{"host":"10.0.0.1","port":3000,"name":"web-1","weight":7,"labels":{"az":"<a>"}}`, string(data))
	require.NotZero(t, stat.EphemeralOwner)
	for _, dir := range []string{"/smartstack", parent} { // made as Nerve makes them
		data, stat, err := s.observer.Get(dir)
		require.NoError(t, err)
		require.Empty(t, data)
		require.Zero(t, stat.EphemeralOwner)
		acl, _, err := s.observer.GetACL(dir)
		require.NoError(t, err)
		require.Equal(t, zk.WorldACL(zk.PermAll), acl)
	}
	require.Eventually(t, func() bool { return s.Status()[0].Node == parent+"/"+name }, 10*time.Second, time.Millisecond)

	addr := s.service.Addr().String()
	require.NoError(t, s.service.Close())
	s.children(0)
	s.listen(addr)
	s.children(1)

	s.cancel()
	require.NoError(t, <-s.stopped)
	s.stopped <- nil // for the clean-up
	names, _, err := s.observer.Children(parent)
	require.NoError(t, err)
	require.Empty(t, names, "withdrawn before Run returned")
}

func TestZooKeeperHeals(t *testing.T) {
	s := newScene(t)
	name := s.children(1)[0]
	session := s.owner(name)

	// Deleted by somebody else.
	require.NoError(t, s.observer.Delete(parent+"/"+name, -1))
	deleted := time.Now()
	name = s.another(name)
	require.Less(t, time.Since(deleted), 2*time.Second)

	// Changed by somebody else.
	_, err := s.observer.Set(parent+"/"+name, []byte("mine now"), -1)
	require.NoError(t, err)
	require.Eventually(t, func() bool {
		data, _, err := s.observer.Get(parent + "/" + name)
		return err == nil && string(data) == string(s.data)
	}, 20*time.Second, 10*time.Millisecond)

	// The connection breaks: the session, and with it the node, lives on.
	s.wire.Break()
	require.Eventually(t, func() bool { return s.session.Status().Connected }, 20*time.Second, time.Millisecond)
	require.Equal(t, session, s.owner(name))

	// The session expires.
	require.NoError(t, s.server.Expire(session))
	name = s.another(name)
	require.NotEqual(t, session, s.owner(name))

	// An outage longer than the session.
	s.wire.Cut()
	s.children(0)
	s.wire.Resume()
	s.another(name)

	// All of it was counted by what it was.
	require.Eventually(t, func() bool {
		return maps.Equal(s.Status()[0].Repairs, map[string]int{"missing": 1, "data": 1, "expired": 2})
	}, 20*time.Second, time.Millisecond, "%v", s.Status()[0].Repairs)
}

// TestZooKeeperAway: the checks fall while ZooKeeper cannot be reached, for less time than the session lives.
func TestZooKeeperAway(t *testing.T) {
	s := newScene(t)
	s.children(1)
	s.wire.Cut()
	require.NoError(t, s.service.Close())
	require.Eventually(t, func() bool { return s.Status()[0].State == registrar.Down }, 10*time.Second, time.Millisecond)
	s.wire.Resume()
	s.children(0)
	require.Eventually(t, func() bool { st := s.Status()[0]; return !st.Registered && st.Problem == "" }, 10*time.Second, time.Millisecond)
}

// TestZooKeeperRestart: a registrar that is followed by another one within the session's timeout. The service is up
// all the time in the first half, and down when the second one looks in the second half.
func TestZooKeeperRestart(t *testing.T) {
	for _, how := range []string{"in order", "killed"} {
		t.Run(how, func(t *testing.T) {
			s := newScene(t)
			s.cancel() // the process of a scene has no file
			require.NoError(t, <-s.stopped)
			s.stopped <- nil
			file := filepath.Join(t.TempDir(), "session")
			end := func() {
				if how == "killed" { // the file and the server are as they are then
					s.wire.Cut()
					text, err := os.ReadFile(file)
					require.NoError(t, err)
					file = filepath.Join(t.TempDir(), "session")
					require.NoError(t, os.WriteFile(file, text, 0o600))
					return
				}
				s.Detach()
				require.NoError(t, <-s.stopped)
				s.stopped <- nil
				s.session.Leave()
			}
			s.begin(30*time.Second, file)
			name := s.children(1)[0]
			_, dir, changed, err := s.observer.ChildrenW(parent)
			require.NoError(t, err)
			_, stat, touched, err := s.observer.GetW(parent + "/" + name)
			require.NoError(t, err)

			for range 2 {
				end()
				s.begin(30*time.Second, file)
				require.Eventually(t, func() bool {
					st := s.Status() // empty before Run has begun
					return len(st) == 1 && st[0].Registered
				}, 20*time.Second, time.Millisecond)
				require.Equal(t, parent+"/"+name, s.Status()[0].Node)
			}
			s.marker()
			require.Empty(t, changed, "the directory was touched")
			require.Empty(t, touched, "the node was touched")
			_, now, err := s.observer.Get(parent + "/" + name)
			require.NoError(t, err)
			require.Equal(t, stat, now)
			_, dirNow, err := s.observer.Children(parent)
			require.NoError(t, err)
			require.Equal(t, dir, dirNow)

			end()
			addr := s.service.Addr().String()
			require.NoError(t, s.service.Close())
			require.Equal(t, []string{name}, s.children(1), "it stands until somebody has looked")
			s.begin(30*time.Second, file)
			s.children(0)
			require.Equal(t, zk.EventNodeDeleted, (<-touched).Type)
			require.Equal(t, registrar.Down, s.Status()[0].State)
			s.listen(addr)
			s.children(1)
		})
	}
}

// marker makes a node and waits for the observer to be told, so that it has been told of all that was before.
func (s *scene) marker() {
	s.t.Helper()
	path := fmt.Sprintf("/marker-%d", time.Now().UnixNano())
	_, _, made, err := s.observer.ExistsW(path)
	require.NoError(s.t, err)
	_, err = s.observer.Create(path, nil, 0, zk.WorldACL(zk.PermAll))
	require.NoError(s.t, err)
	<-made
}

// marking publishes Nerve's payload with the mark, where there is one.
type marking struct{ payload discovery.Payload }

func (m marking) Render(r discovery.Registration, c registrar.Condition) discovery.Registration {
	m.payload.Leaving = c.Leaving
	if data, err := discovery.EncodeNerve(m.payload); err == nil {
		r.Data = data
	}
	return r
}

// TestZooKeeperLeave: a source sees the mark, that it is taken back, and in the end that the node is gone.
func TestZooKeeperLeave(t *testing.T) {
	s := newScene(t)
	s.children(1)
	payload := discovery.Payload{Host: "10.0.0.1", Port: 3000, Name: "web-1"}
	data, err := discovery.EncodeNerve(payload)
	require.NoError(t, err)
	polite := registrar.Service{
		Name: "user-api", Directory: s.session, CheckMocked: true, Render: marking{payload},
		Registration: discovery.Registration{Path: parent, Prefix: "web-1_", Data: data, Sequential: true, Ephemeral: true},
		Leave:        registrar.Leave{Notice: time.Hour, Drain: time.Hour}, // until they are cut short
	}
	require.NoError(t, s.Reload([]registrar.Service{polite}))
	ctx, cancel := context.WithTimeout(t.Context(), 20*time.Second)
	snapshots := make(chan discovery.Snapshot)
	ended := make(chan struct{})
	go func() {
		defer close(ended)
		_ = s.session.Source("user-api", parent, zookeeper.SourceOptions{}).Run(ctx, snapshots)
	}()
	defer func() { cancel(); <-ended }()
	// until returns when a snapshot is as wanted.
	until := func(what string, is func([]discovery.Instance) bool) {
		t.Helper()
		for {
			select {
			case snap := <-snapshots:
				if is(snap.Instances) {
					return
				}
			case <-ctx.Done():
				t.Fatal(what)
			}
		}
	}
	there := func(in []discovery.Instance) bool { return len(in) == 1 && !in[0].Leaving && in[0].Weight == nil }
	// The registrar hears of it a moment later than others may; before that there is nothing to mark.
	settled := func() {
		t.Helper()
		require.Eventually(t, func() bool { st := s.Status(); return len(st) == 1 && st[0].Registered && st[0].Settled }, 20*time.Second, time.Millisecond)
	}
	until("it is registered", there)
	settled()

	marked := func(in []discovery.Instance) bool { return len(in) == 1 && in[0].Leaving }
	require.NoError(t, s.Maintain("user-api", registrar.Maintenance{}))
	until("it is marked", marked)
	require.NoError(t, s.EndMaintenance("user-api"))
	until("it stays after all", there)
	settled()

	s.cancel()
	until("it is marked again", marked)
	s.Hasten()
	until("it is gone", func(in []discovery.Instance) bool { return len(in) == 0 })
	require.NoError(t, <-s.stopped)
	s.stopped <- nil // for the clean-up
}
