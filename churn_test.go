package main_test

import (
	"context"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"net"
	"net/netip"
	"os"
	"slices"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/myelin-sd/myelin/discovery"
	"github.com/myelin-sd/myelin/haproxy"
)

const (
	churnRounds   = 1000
	churnRate     = 300 // requests a second
	churnNames    = 40
	churnBackends = 30 // real servers, none of which ever fails
	churnLeast    = 3  // instances that are always registered
)

// TestChurn has instances join, leave, return, move and change their weight for 1,000 rounds under traffic, while
// HAProxy is reloaded by hand and killed, and while somebody reads a dump of its admin socket slowly. After each round
// HAProxy's own table is what the registry says. No request fails but those that a kill cut, HAProxy's process changes
// only when the test changes it, and the agent never reloads it.
//
// MYELIN_CHURN_SEED repeats a run, as far as a run against real processes can be repeated.
func TestChurn(t *testing.T) {
	c := newChurn(t, churnSeed(t)) // its servers listen before a port is chosen for HAProxy
	w := newWorld(t, func(text string) string {
		text = strings.Replace(text, "check inter 1s", "check inter 2s", 1)
		return strings.Replace(text, "[zookeeper]", "[haproxy]\ndelete_after = \"300ms\"\n\n[zookeeper]", 1)
	})
	c.w = w
	for range 2 * churnLeast {
		c.join()
	}
	c.apply()
	w.startAgent()
	c.settled()
	c.traffic = startTraffic(w.url(), churnRate)
	began := time.Now()
	for n := range churnRounds {
		c.round(n)
		if t.Failed() {
			break
		}
	}
	c.closeReader()
	c.nobodyReloaded()
	t.Logf("%d rounds in %s: %d members changed, %d reloads by hand, %d kills, %d slow readers", churnRounds,
		time.Since(began).Round(time.Second), c.changes, c.reloads, len(c.outages), c.readers)
	requireServed(t, c.traffic, c.outages)

	// What left is deleted sooner or later, and only that.
	w.eventually("the servers that left are deleted", func() error {
		servers, err := w.servers()
		if err == nil && len(servers) != len(c.model) {
			err = fmt.Errorf("%d servers, %d are registered", len(servers), len(c.model))
		}
		return err
	})
	c.sameProcess()
	require.Greater(t, w.counter(`myelin_haproxy_commands_total{op="delete",result="ok"}`), 20.0, "servers were deleted meanwhile")
}

func churnSeed(t *testing.T) uint64 {
	t.Helper()
	if text := os.Getenv("MYELIN_CHURN_SEED"); text != "" {
		seed, err := strconv.ParseUint(text, 10, 64)
		require.NoError(t, err, "MYELIN_CHURN_SEED")
		return seed
	}
	return rand.Uint64()
}

// member is an instance as the test has registered it.
type member struct {
	port   int
	weight int
}

// churn is the state of one run of TestChurn.
type churn struct {
	t       *testing.T
	w       *world
	rng     *rand.Rand
	ports   []int
	model   map[string]member // what is registered, by name
	known   map[string]member // what HAProxy and the registry were last told
	past    map[string]member // as it was when it left
	traffic *traffic
	reader  net.Conn // a dump that is read slowly; nil: none
	pid     int      // of HAProxy's worker
	master  int
	outages []outage

	changes, reloads, readers int
}

func newChurn(t *testing.T, seed uint64) *churn {
	t.Logf("MYELIN_CHURN_SEED=%d", seed)
	c := &churn{
		t: t, rng: rand.New(rand.NewPCG(seed, 0)),
		model: map[string]member{}, known: map[string]member{}, past: map[string]member{},
	}
	for i := range churnBackends {
		c.ports = append(c.ports, backendServer(t, fmt.Sprintf("backend-%d", i)))
	}
	return c
}

// round changes members, and in some rounds does something to HAProxy at the same time.
func (c *churn) round(n int) {
	for range 1 + c.rng.IntN(4) {
		switch c.rng.IntN(4) {
		case 0:
			c.join()
		case 1:
			c.leave()
		case 2:
			c.comeBack()
		case 3:
			c.reweigh()
		}
	}
	var changing sync.WaitGroup
	changing.Go(c.apply)
	switch {
	// Kills are some seconds apart: a HAProxy that dies soon after its start is started again later and later.
	case n%125 == 62:
		c.kill(n / 125)
	case n%25 == 12:
		c.reload()
	case n%40 == 3:
		c.openReader()
	case n%40 == 18:
		c.closeReader()
	}
	changing.Wait()
	c.readSome()
	c.settled()
}

func (c *churn) free(used func(string) bool) (names []string) {
	for i := range churnNames {
		if name := fmt.Sprintf("n%02d", i); !used(name) {
			names = append(names, name)
		}
	}
	return names
}

func (c *churn) absent() []string {
	return c.free(func(name string) bool { _, in := c.model[name]; return in })
}

func (c *churn) present() []string { return sorted(mapKeys(c.model)) }

// join registers a name that is not there on a port that nobody has: an address may come back under another name.
func (c *churn) join() {
	names := c.absent()
	taken := map[int]bool{}
	for _, m := range c.model {
		taken[m.port] = true
	}
	ports := slices.DeleteFunc(slices.Clone(c.ports), func(p int) bool { return taken[p] })
	if len(names) == 0 || len(ports) == 0 {
		return
	}
	c.model[pick(c.rng, names)] = member{pick(c.rng, ports), 1 + c.rng.IntN(20)}
}

func pick[T any](rng *rand.Rand, list []T) T { return list[rng.IntN(len(list))] }

func (c *churn) leave() {
	if len(c.model) <= churnLeast {
		return
	}
	name := pick(c.rng, c.present())
	c.past[name] = c.model[name]
	delete(c.model, name)
}

// comeBack registers a name as it was before it left.
func (c *churn) comeBack() {
	taken := map[int]bool{}
	for _, m := range c.model {
		taken[m.port] = true
	}
	var names []string
	for _, name := range c.absent() {
		if m, left := c.past[name]; left && !taken[m.port] {
			names = append(names, name)
		}
	}
	if len(names) > 0 {
		name := pick(c.rng, names)
		c.model[name] = c.past[name]
	}
}

func (c *churn) reweigh() {
	if len(c.model) == 0 {
		return
	}
	name := pick(c.rng, c.present())
	m := c.model[name]
	m.weight = 1 + c.rng.IntN(20)
	c.model[name] = m
}

// registrationOf is a member as Nerve writes it.
func registrationOf(name string, m member) (discovery.Registration, error) {
	data, err := discovery.EncodeNerve(discovery.Payload{Host: "127.0.0.1", Port: uint16(m.port), Name: name, Weight: &m.weight})
	return discovery.Registration{Path: servicePath, Prefix: name + "_", Data: data, Sequential: true, Ephemeral: true}, err
}

// apply brings the registry from what is known to the model, all at once.
func (c *churn) apply() {
	errs := make(chan error, 2*churnNames)
	var all sync.WaitGroup
	for name, was := range c.known {
		if _, stays := c.model[name]; stays {
			continue
		}
		c.changes++
		all.Go(func() {
			r, err := registrationOf(name, was)
			errs <- errors.Join(err, c.w.session.Withdraw(c.t.Context(), r, ""))
		})
	}
	for name, m := range c.model {
		if c.known[name] == m {
			continue
		}
		c.changes++
		all.Go(func() {
			r, err := registrationOf(name, m)
			_, err2 := c.w.session.Publish(c.t.Context(), r, "")
			errs <- errors.Join(err, err2)
		})
	}
	all.Wait()
	close(errs)
	for err := range errs {
		if err != nil {
			c.t.Errorf("change the registry: %v", err)
		}
	}
	c.known = map[string]member{}
	for name, m := range c.model {
		c.known[name] = m
	}
}

// settled waits until HAProxy's own table is what the registry says: names, addresses, weights and states. Servers
// that left may wait in maintenance.
func (c *churn) settled() {
	c.t.Helper()
	registered := c.registered()
	c.w.eventually("HAProxy has what the registry says", func() error {
		if c.t.Failed() {
			return nil
		}
		servers, err := c.w.servers()
		if err != nil {
			return err
		}
		return compareServers(servers, registered)
	})
	c.sameProcess()
}

// registered is what the registry says, as HAProxy should have it.
func (c *churn) registered() map[string]member {
	c.t.Helper()
	ctx, cancel := context.WithTimeout(c.t.Context(), patience)
	defer cancel()
	snap, err := c.w.session.Snapshot(ctx, service, servicePath)
	require.NoError(c.t, err)
	out := map[string]member{}
	for _, in := range snap.Instances {
		require.NotNil(c.t, in.Weight)
		out[in.Name] = member{int(in.Endpoint.Port()), *in.Weight}
	}
	require.Equal(c.t, c.model, out, "the registry has what the test wrote")
	return out
}

func compareServers(servers []haproxy.Server, want map[string]member) error {
	found := map[string]bool{}
	for _, s := range servers {
		name, _, _ := strings.Cut(s.Name, "_")
		if s.Admin == haproxy.Maint {
			continue
		}
		m, wanted := want[name]
		switch addr := netip.AddrPortFrom(netip.AddrFrom4([4]byte{127, 0, 0, 1}), uint16(m.port)); {
		case !wanted, found[name]:
			return fmt.Errorf("server %s is %s, and nobody wants it", s.Name, s.Admin)
		case s.Addr != addr:
			return fmt.Errorf("server %s is at %s, not at %s", s.Name, s.Addr, addr)
		case s.Weight != m.weight:
			return fmt.Errorf("server %s has weight %d, not %d", s.Name, s.Weight, m.weight)
		case s.Admin != haproxy.Ready:
			return fmt.Errorf("server %s is %s", s.Name, s.Admin)
		}
		found[name] = true
	}
	if len(found) != len(want) {
		return fmt.Errorf("%d servers take traffic, %d are registered", len(found), len(want))
	}
	return nil
}

// sameProcess checks that HAProxy is the process that the test left. Of a reload the old worker may answer once more.
func (c *churn) sameProcess() {
	c.t.Helper()
	if c.pid == 0 {
		c.otherProcess()
	}
	c.w.eventually("HAProxy is the process that the test left", func() error {
		id, err := c.w.identity()
		if master := c.w.master(); err == nil && (id.Pid != c.pid || master != c.master) {
			err = fmt.Errorf("worker %d of master %d, not %d of %d: the test did not do that", id.Pid, master, c.pid, c.master)
		}
		return err
	})
}

func (c *churn) nobodyReloaded() {
	c.t.Helper()
	require.Zero(c.t, c.w.status().File.Reload.Reloads, "the agent reloaded HAProxy")
}

func (c *churn) reload() {
	c.reloads++
	c.w.reloadByHand()
	c.otherProcess()
}

// otherProcess waits until another worker than the known one serves, and notes it. For a moment of a reload both
// workers answer.
func (c *churn) otherProcess() {
	c.t.Helper()
	before := c.pid
	c.w.eventually("another HAProxy worker", func() error {
		id, err := c.w.identity()
		switch {
		case err != nil:
			return err
		case id.Stopping || id.Pid == before:
			return fmt.Errorf("worker %d still answers", before)
		}
		c.pid = id.Pid
		return nil
	})
	c.master = c.w.master()
}

// kill kills the worker, the master or both. HAProxy listens again when another worker answers and the port accepts:
// the agent starts no second HAProxy beside a worker that still serves.
func (c *churn) kill(n int) {
	what := []string{"worker", "master", "worker and master"}[n%3]
	o := outage{from: time.Now()}
	if what != "worker" {
		require.NoError(c.t, syscall.Kill(c.master, syscall.SIGKILL))
	}
	if what != "master" {
		require.NoError(c.t, syscall.Kill(c.pid, syscall.SIGKILL))
	}
	c.otherProcess()
	c.w.listens()
	o.to = time.Now()
	c.outages = append(c.outages, o)
}

// openReader asks for far more than the socket's buffers hold and leaves it there, so that HAProxy waits in the middle
// of a dump while servers come and go.
func (c *churn) openReader() {
	c.closeReader()
	conn, err := net.Dial("unix", c.w.socket)
	require.NoError(c.t, err)
	_, err = io.WriteString(conn, strings.Repeat("show stat;", 400)+"show stat\n")
	require.NoError(c.t, err)
	c.reader = conn
	c.readers++
}

// readSome lets a dump go on a little. What it says does not matter, and a kill may have ended it.
func (c *churn) readSome() {
	if c.reader != nil {
		io.CopyN(io.Discard, c.reader, 1+c.rng.Int64N(30_000))
	}
}

func (c *churn) closeReader() {
	if c.reader != nil {
		c.reader.Close()
		c.reader = nil
	}
}
