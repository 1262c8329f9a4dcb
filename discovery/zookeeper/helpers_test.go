package zookeeper_test

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/go-zookeeper/zk"
	"github.com/sirupsen/logrus"
	"github.com/stretchr/testify/require"
	"go.uber.org/goleak"

	"github.com/myelin-sd/myelin/discovery"
	"github.com/myelin-sd/myelin/discovery/zookeeper"
	"github.com/myelin-sd/myelin/discovery/zookeeper/zktest"
	"github.com/myelin-sd/myelin/registrar"
)

// patience is how long a test waits for what must happen. Nothing is expected to take this long.
const patience = 30 * time.Second

const poll = 5 * time.Millisecond

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// silent is a logger whose lines can be counted.
func silent() (*logrus.Logger, *lines) {
	log, l := logrus.New(), &lines{}
	log.SetOutput(discard{})
	log.AddHook(l)
	return log, l
}

type discard struct{}

func (discard) Write(p []byte) (int, error) { return len(p), nil }

// lines keeps what was logged at Info and above.
type lines struct {
	mu   sync.Mutex
	text []string
}

func (l *lines) Levels() []logrus.Level { return logrus.AllLevels }
func (l *lines) Fire(e *logrus.Entry) error {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.text = append(l.text, fmt.Sprintf("%s %s %v", e.Level, e.Message, e.Data["err"]))
	return nil
}

func (l *lines) count(part string) (n int) {
	l.mu.Lock()
	defer l.mu.Unlock()
	for _, t := range l.text {
		if strings.Contains(t, part) {
			n++
		}
	}
	return n
}

// open starts a session that the test closes at its end.
func open(t testing.TB, o zookeeper.Options) *zookeeper.Session {
	t.Helper()
	if o.SessionTimeout == 0 {
		o.SessionTimeout = 6 * time.Second
	}
	s := zookeeper.New(o)
	t.Cleanup(s.Close)
	return s
}

// writer is a bare client of the server.
func writer(t testing.TB, addr string) *zk.Conn {
	t.Helper()
	log, _ := silent()
	c, events, err := zk.Connect([]string{addr}, 20*time.Second, zk.WithLogger(log))
	require.NoError(t, err)
	t.Cleanup(func() {
		c.Close()
		for range events { // closed when the client has ended
		}
	})
	return c
}

var world = zk.WorldACL(zk.PermAll)

func create(t testing.TB, c *zk.Conn, path, data string, flags int32) string {
	t.Helper()
	at := ""
	parts := strings.Split(strings.Trim(path, "/"), "/")
	for _, p := range parts[:len(parts)-1] {
		at += "/" + p
		if _, err := c.Create(at, nil, 0, world); err != nil {
			require.ErrorIs(t, err, zk.ErrNodeExists)
		}
	}
	made, err := c.Create(path, []byte(data), flags, world)
	require.NoError(t, err)
	return made
}

// payload is a registration of instance n.
func payload(n int) string {
	return fmt.Sprintf(`{"host":"10.%d.%d.%d","port":8080,"name":"i-%d"}`, n>>16, n>>8&255, n&255, n)
}

// observer runs a source and keeps all that it sends.
type observer struct {
	mu   sync.Mutex
	seen []discovery.Snapshot
}

func observe(t testing.TB, src discovery.Source) *observer {
	t.Helper()
	o := &observer{}
	ctx, cancel := context.WithCancel(context.Background())
	out := make(chan discovery.Snapshot)
	var all sync.WaitGroup
	all.Go(func() {
		if err := src.Run(ctx, out); !errors.Is(err, context.Canceled) {
			t.Errorf("Run returned %v", err)
		}
		close(out)
	})
	all.Go(func() {
		for snap := range out {
			o.mu.Lock()
			o.seen = append(o.seen, snap)
			o.mu.Unlock()
		}
	})
	t.Cleanup(func() { cancel(); all.Wait() })
	return o
}

func (o *observer) all() []discovery.Snapshot {
	o.mu.Lock()
	defer o.mu.Unlock()
	return slices.Clone(o.seen)
}

func (o *observer) latest() (discovery.Snapshot, bool) {
	o.mu.Lock()
	defer o.mu.Unlock()
	if len(o.seen) == 0 {
		return discovery.Snapshot{}, false
	}
	return o.seen[len(o.seen)-1], true
}

// until waits for a snapshot that satisfies what.
func (o *observer) until(t testing.TB, why string, what func(discovery.Snapshot) bool) discovery.Snapshot {
	t.Helper()
	require.Eventually(t, func() bool {
		s, ok := o.latest()
		return ok && what(s)
	}, patience, poll, why)
	s, _ := o.latest()
	return s
}

func (o *observer) untilCount(t testing.TB, n int) discovery.Snapshot {
	t.Helper()
	return o.until(t, fmt.Sprintf("%d instances", n), func(s discovery.Snapshot) bool { return len(s.Instances) == n && !s.Missing })
}

// smallest is the least number of instances sent after the first n snapshots.
func (o *observer) smallest(n int) int {
	least := -1
	for _, s := range o.all()[n:] {
		if least < 0 || len(s.Instances) < least {
			least = len(s.Instances)
		}
	}
	return least
}

func connected(t testing.TB, s *zookeeper.Session) {
	t.Helper()
	require.Eventually(t, func() bool { return s.Status().Connected }, patience, poll)
}

func disconnected(t testing.TB, s *zookeeper.Session) {
	t.Helper()
	require.Eventually(t, func() bool { return !s.Status().Connected }, patience, poll)
}

// names lists a path through a client of its own.
func names(t testing.TB, c *zk.Conn, path string) []string {
	t.Helper()
	list, _, err := c.Children(path)
	if errors.Is(err, zk.ErrNoNode) {
		return nil
	}
	require.NoError(t, err)
	slices.Sort(list)
	return list
}

func server(t testing.TB) *zktest.Server { return zktest.New(t) }

// A session is what the registrar publishes in.
var _ registrar.Directory = (*zookeeper.Session)(nil)

// publishNode is Publish for tests that are about the node, and not about what was found.
func publishNode(s interface {
	Publish(context.Context, discovery.Registration, string) (discovery.Published, error)
}, ctx context.Context, r discovery.Registration, node string) (string, error) {
	made, err := s.Publish(ctx, r, node)
	return made.Node, err
}
