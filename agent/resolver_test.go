package agent

import (
	"context"
	"errors"
	"net/netip"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/sirupsen/logrus"
	logtest "github.com/sirupsen/logrus/hooks/test"
	"github.com/stretchr/testify/require"

	"github.com/myelin-sd/myelin/haproxy"
)

// names is a nameserver that the test writes to.
type names struct {
	mu    sync.Mutex
	addrs map[string][]string // by host; none: it does not resolve
	count map[string]int
}

func (n *names) set(host string, addrs ...string) {
	n.mu.Lock()
	defer n.mu.Unlock()
	n.addrs[host] = addrs
}

// asked is how often a host was looked up.
func (n *names) asked(host string) int {
	n.mu.Lock()
	defer n.mu.Unlock()
	return n.count[host]
}

func (n *names) lookup(_ context.Context, _, host string) ([]netip.Addr, error) {
	n.mu.Lock()
	defer n.mu.Unlock()
	n.count[host]++
	var out []netip.Addr
	for _, a := range n.addrs[host] {
		out = append(out, netip.MustParseAddr(a))
	}
	if len(out) == 0 {
		return nil, errors.New("no such host")
	}
	return out, nil
}

// resolving runs test with a resolver, whose names it may change.
func resolving(t *testing.T, onDisk haproxy.State, test func(*testing.T, *resolver, *names, *logtest.Hook)) {
	synctest.Test(t, func(t *testing.T) {
		log, hook := logtest.NewNullLogger()
		log.SetLevel(logrus.DebugLevel)
		n := &names{addrs: map[string][]string{}, count: map[string]int{}}
		r := newResolver(onDisk, log)
		r.lookup = n.lookup
		ctx, cancel := context.WithCancel(t.Context())
		done := make(chan struct{})
		go func() {
			defer close(done)
			r.run(ctx)
		}()
		time.Sleep(time.Second) // between two periodic rounds
		test(t, r, n, hook)
		cancel()
		<-done
	})
}

// changed takes the signal that services are to be composed anew; it tells whether there was one.
func changed(r *resolver) bool {
	synctest.Wait()
	select {
	case <-r.changed:
		return true
	default:
		return false
	}
}

// want asks as a composer does and compares the answer; "" is unknown.
func want(t *testing.T, r *resolver, addr string) {
	t.Helper()
	ip, ok := r.resolve("web.example.com", "web_web.example.com:80")
	require.Equal(t, addr != "", ok)
	if ok {
		require.Equal(t, addr, ip.String())
	}
}

func TestNameBecomesKnown(t *testing.T) {
	resolving(t, nil, func(t *testing.T, r *resolver, n *names, _ *logtest.Hook) {
		n.set("web.example.com", "10.0.0.1")
		want(t, r, "")
		require.True(t, changed(r), "the service is composed anew")
		want(t, r, "10.0.0.1")
		require.False(t, changed(r))
		require.Equal(t, 1, n.asked("web.example.com"), "a known name is answered from memory")

		n.set("web.example.com", "10.0.0.2")
		time.Sleep(resolveEvery)
		require.True(t, changed(r))
		want(t, r, "10.0.0.2")
	})
}

// TestWhichAddress: the known one for as long as it is listed, else IPv4 first and the lowest.
func TestWhichAddress(t *testing.T) {
	resolving(t, nil, func(t *testing.T, r *resolver, n *names, _ *logtest.Hook) {
		for _, step := range []struct {
			addrs []string
			want  string
		}{
			{[]string{"2001:db8::1", "10.0.0.9", "10.0.0.3"}, "10.0.0.3"},
			{[]string{"10.0.0.1", "10.0.0.3"}, "10.0.0.3"},
			{[]string{"10.0.0.7", "10.0.0.1"}, "10.0.0.1"},
			{[]string{"::ffff:10.0.0.4", "2001:db8::2"}, "10.0.0.4"},
			{[]string{"2001:db8::2"}, "2001:db8::2"},
		} {
			n.set("web.example.com", step.addrs...)
			r.resolve("web.example.com", "")
			time.Sleep(resolveEvery)
			want(t, r, step.want)
		}
	})
}

// TestNameStopsResolving: the last address stays, and the trouble is said once.
func TestNameStopsResolving(t *testing.T) {
	resolving(t, nil, func(t *testing.T, r *resolver, n *names, hook *logtest.Hook) {
		n.set("web.example.com", "10.0.0.1")
		want(t, r, "")
		require.True(t, changed(r))
		n.set("web.example.com")
		for range 5 {
			want(t, r, "10.0.0.1")
			time.Sleep(resolveEvery)
		}
		want(t, r, "10.0.0.1")
		require.Greater(t, n.asked("web.example.com"), 3, "it is tried again")
		require.Equal(t, 1, said(hook, "host name of a registration does not resolve"))
		n.set("web.example.com", "10.0.0.1")
		time.Sleep(resolveEvery)
		want(t, r, "10.0.0.1")
		require.Equal(t, 1, said(hook, "host name resolves"))
	})
}

// TestHintFromTheFile: while DNS is silent at the start, the server's address in the file holds.
func TestHintFromTheFile(t *testing.T) {
	onDisk := haproxy.State{"svc": {{Name: "web_web.example.com:80", Addr: netip.MustParseAddrPort("10.9.9.9:80")}}}
	resolving(t, onDisk, func(t *testing.T, r *resolver, n *names, _ *logtest.Hook) {
		want(t, r, "10.9.9.9")
		require.False(t, changed(r))
		_, ok := r.resolve("web.example.com", "other_web.example.com:80")
		require.False(t, ok, "another server had no address")

		n.set("web.example.com", "10.0.0.1")
		time.Sleep(resolveEvery)
		require.True(t, changed(r))
		want(t, r, "10.0.0.1")
	})
}

// TestForgottenNames: what nobody asks for any more is not looked up for ever.
func TestForgottenNames(t *testing.T) {
	resolving(t, nil, func(t *testing.T, r *resolver, n *names, _ *logtest.Hook) {
		n.set("web.example.com", "10.0.0.1")
		n.set("old.example.com", "10.0.0.2")
		r.resolve("old.example.com", "")
		want(t, r, "")
		for range 4 {
			time.Sleep(resolveEvery)
			want(t, r, "10.0.0.1")
		}
		asked := n.asked("old.example.com")
		require.LessOrEqual(t, asked, 2)
		require.GreaterOrEqual(t, n.asked("web.example.com"), 4)
		time.Sleep(4 * resolveEvery)
		require.Equal(t, asked, n.asked("old.example.com"))

		r.resolve("old.example.com", "")
		synctest.Wait()
		require.Equal(t, asked+1, n.asked("old.example.com"), "until somebody asks again")
	})
}
