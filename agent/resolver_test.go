package agent

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"strings"
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
		r := newResolver(onDisk, nil, log)
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

// TestWhichAddress: the same one everywhere and always, whatever was known before and however the answer is ordered;
// IPv4 first.
func TestWhichAddress(t *testing.T) {
	resolving(t, nil, func(t *testing.T, r *resolver, n *names, _ *logtest.Hook) {
		for _, step := range []struct {
			addrs []string
			want  string
		}{
			{[]string{"10.0.0.3"}, "10.0.0.3"},
			{[]string{"2001:db8::1", "10.0.0.9", "10.0.0.3", "10.0.0.7"}, "10.0.0.7"},
			{[]string{"10.0.0.7", "10.0.0.9", "10.0.0.3"}, "10.0.0.7"},
			{[]string{"10.0.0.3", "10.0.0.9"}, "10.0.0.9"},
			{[]string{"10.0.0.9", "10.0.0.3", "10.0.0.7"}, "10.0.0.7"},
			{[]string{"::ffff:10.0.0.4", "2001:db8::2"}, "10.0.0.4"},
			{[]string{"2001:db8::2"}, "2001:db8::2"},
		} {
			n.set("web.example.com", step.addrs...)
			r.resolve("web.example.com", "")
			time.Sleep(resolveEvery)
			synctest.Wait()
			want(t, r, step.want)
		}
	})
}

// TestChoiceSpreads: names with the same addresses spread over them, and an address that goes moves those that had it
// and no others.
func TestChoiceSpreads(t *testing.T) {
	ips := []netip.Addr{netip.MustParseAddr("10.0.0.1"), netip.MustParseAddr("10.0.0.2"), netip.MustParseAddr("10.0.0.3")}
	count := map[netip.Addr]int{}
	for i := range 3000 {
		host := fmt.Sprintf("n%d.example.com", i)
		ip := choose(host, ips)
		count[ip]++
		if fewer := choose(host, ips[:2]); ip != ips[2] {
			require.Equal(t, ip, fewer)
		}
	}
	for _, ip := range ips {
		require.InDelta(t, 1000, count[ip], 150, "%v", count)
	}
}

// TestLookupsAreBoundedAndApart: a nameserver that answers nothing holds up the names that it is asked for, a bounded
// number at a time, and no others that are new.
func TestLookupsAreBoundedAndApart(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		log, _ := logtest.NewNullLogger()
		r := newResolver(nil, nil, log)
		var mu sync.Mutex
		silent, now, most := false, 0, 0
		r.lookup = func(ctx context.Context, _, host string) ([]netip.Addr, error) {
			mu.Lock()
			now++
			most = max(most, now)
			wait := silent && strings.HasPrefix(host, "old")
			mu.Unlock()
			defer func() { mu.Lock(); now--; mu.Unlock() }()
			if wait {
				<-ctx.Done()
				return nil, ctx.Err()
			}
			return []netip.Addr{netip.MustParseAddr("10.0.0.1")}, nil
		}
		ctx, cancel := context.WithCancel(t.Context())
		done := make(chan struct{})
		go func() { defer close(done); r.run(ctx) }()
		ask := func(host string) bool { _, ok := r.resolve(host, ""); return ok }
		var old []string
		for i := range 100 {
			old = append(old, fmt.Sprintf("old%d.example.com", i))
			require.False(t, ask(old[i]))
		}
		synctest.Wait()
		for _, host := range old {
			require.True(t, ask(host), host)
		}
		mu.Lock()
		silent = true
		mu.Unlock()
		time.Sleep(resolveEvery + time.Millisecond) // the periodic round is under way, and stuck
		began := time.Now()
		require.False(t, ask("new.example.com"))
		synctest.Wait()
		require.True(t, ask("new.example.com"))
		require.Zero(t, time.Since(began), "it did not wait for the others")
		mu.Lock()
		require.Equal(t, resolveAtOnce, now, "the silent ones")
		mu.Unlock()
		for range 10 {
			time.Sleep(resolveTimeout)
			for _, host := range old {
				require.True(t, ask(host), "the last address stays")
			}
		}
		mu.Lock()
		require.LessOrEqual(t, most, 2*resolveAtOnce)
		mu.Unlock()
		cancel()
		<-done
	})
}

// TestUnresolvedIsTriedAgainSoon: a name without an address need not wait for the periodic round.
func TestUnresolvedIsTriedAgainSoon(t *testing.T) {
	resolving(t, nil, func(t *testing.T, r *resolver, n *names, hook *logtest.Hook) {
		began := time.Now()
		want(t, r, "")
		time.Sleep(8 * resolveAgain)
		require.Equal(t, 4, n.asked("web.example.com"), "at 0, 1, 3 and 7 times the first pause")
		n.set("web.example.com", "10.0.0.1")
		time.Sleep(8 * resolveAgain)
		synctest.Wait()
		want(t, r, "10.0.0.1")
		require.Less(t, time.Since(began), resolveEvery)
		require.Equal(t, 1, said(hook, "host name of a registration does not resolve"))
		require.Equal(t, 1, said(hook, "host name resolves"))
	})
}

// TestUnresolvedShows: name, since when, why, and the address that is used all the same.
func TestUnresolvedShows(t *testing.T) {
	onDisk := haproxy.State{"svc": {{Name: "c_hint.example.com:80", Addr: netip.MustParseAddrPort("10.9.9.9:80")}}}
	active := instances(t, "ip@10.0.0.5:80", "a@web.example.com:80", "b@web.example.com:81", "c@hint.example.com:80", "d@none.example.com:80")
	resolving(t, onDisk, func(t *testing.T, r *resolver, n *names, _ *logtest.Hook) {
		n.set("web.example.com", "10.0.0.1")
		ask := func() {
			for _, in := range active[1:] {
				r.resolve(in.Endpoint.Host(), haproxy.ServerName(in.Name, in.Endpoint.Host(), in.Endpoint.Port()))
			}
		}
		ask()
		began := time.Now()
		synctest.Wait()
		require.Equal(t, []Unresolved{
			{"hint.example.com", began, "no such host", "10.9.9.9"},
			{"none.example.com", began, "no such host", ""},
		}, r.unresolved(active))

		n.set("web.example.com")
		n.set("hint.example.com", "10.0.0.7")
		ask()
		time.Sleep(resolveEvery)
		synctest.Wait()
		shown := r.unresolved(active)
		require.Len(t, shown, 2)
		require.Equal(t, "web.example.com 10.0.0.1", shown[1].Name+" "+shown[1].Address)
		require.True(t, shown[1].Since.After(began))
	})
}

// TestNamesOutliveAReload: the next configuration knows what this one knew.
func TestNamesOutliveAReload(t *testing.T) {
	resolving(t, nil, func(t *testing.T, r *resolver, n *names, _ *logtest.Hook) {
		n.set("web.example.com", "10.0.0.1")
		want(t, r, "")
		r.resolve("none.example.com", "")
		require.True(t, changed(r))
		next := newResolver(nil, r, r.log)
		want(t, next, "10.0.0.1")
		_, ok := next.resolve("none.example.com", "")
		require.False(t, ok)
		next.lookup = n.lookup
		next.once(t.Context())
		require.Equal(t, 1, n.asked("web.example.com"))
		require.Equal(t, 2, n.asked("none.example.com"), "one without an address is new to the next")
	})
}

// TestNameThatMoves: a name that leads to another address gets another server, which serves before the first one leaves.
func TestNameThatMoves(t *testing.T) {
	n := newNode(t)
	known := &names{addrs: map[string][]string{}, count: map[string]int{}}
	known.set("web.example.com", "127.0.0.1")
	n.resolves(known)
	n.start(0)
	n.hear("a@web.example.com:81", "b@127.0.0.1:82")
	n.has("svc", "a b")
	n.ready()
	mark := n.tap.count()
	known.set("web.example.com", "127.0.0.2")
	n.has("svc", "a-g2 a:maint b")
	n.ready()
	state, err := n.state()
	require.NoError(t, err)
	for _, s := range state["svc"] {
		if s.Name == "a_web.example.com:81-g2" {
			require.Equal(t, netip.MustParseAddrPort("127.0.0.2:81"), s.Addr)
		}
	}
	ready := n.tap.position(mark, "set server svc/a_web.example.com:81-g2 state ready")
	maint := n.tap.position(mark, "set server svc/a_web.example.com:81 state maint")
	require.Positive(t, ready)
	require.Greater(t, maint, ready, "the new one first")

	// What stops resolving stays, and shows; what comes back costs nothing.
	known.set("web.example.com")
	eventually(t, "the trouble shows", func() error {
		if u := n.agent.Status().Services[0].Unresolved; len(u) != 1 || u[0].Address != "127.0.0.2" {
			return fmt.Errorf("%v", u)
		}
		return nil
	})
	n.has("svc", "a-g2 a:maint b")
	require.Contains(t, n.metrics(), `myelin_discovery_unresolved{service="svc"} 1`)
	known.set("web.example.com", "127.0.0.2")
	eventually(t, "the trouble is over", func() error {
		if u := n.agent.Status().Services[0].Unresolved; len(u) != 0 {
			return fmt.Errorf("%v", u)
		}
		return nil
	})
	require.Len(t, n.tap.since(maint+1), 0)
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
