package agent

import (
	"cmp"
	"context"
	"errors"
	"hash/fnv"
	"io"
	"net"
	"net/netip"
	"slices"
	"sync"
	"time"

	"github.com/sirupsen/logrus"
	"golang.org/x/sync/errgroup"

	"github.com/myelin-sd/myelin/discovery"
	"github.com/myelin-sd/myelin/haproxy"
)

const (
	resolveEvery   = 30 * time.Second // every known name is looked up again
	resolveAgain   = time.Second      // a name without an address is looked up again after this, then twice this, and so on
	resolveTimeout = 5 * time.Second  // of one lookup
	resolveAtOnce  = 16               // lookups under way: of new names, and as many of known ones
)

// resolver keeps the addresses of the host names that registrations carry. HAProxy accepts names for servers added
// at run time but never resolves them, so the agent does. A name that stops resolving keeps its last address.
type resolver struct {
	lookup  func(ctx context.Context, network, host string) ([]netip.Addr, error)
	every   time.Duration // resolveEvery
	changed chan struct{} // capacity one: an address became known or changed
	added   chan struct{} // capacity one: fresh has a new name
	log     logrus.FieldLogger

	mu    sync.Mutex
	names map[string]*hostEntry
	fresh []string              // names to be looked up at once, in the order they came
	again map[string]time.Time  // when names that have no address are tried again
	hints map[string]netip.Addr // by server name: what the file held at the start
}

// hostEntry is what is known of one name.
type hostEntry struct {
	ip    netip.Addr // the zero Addr: not resolved yet
	asked bool       // since the last periodic round; names nobody asks for any more are dropped there
	busy  bool       // it is being looked up, or waits for that

	since time.Time     // when it was first found not to resolve; zero: it resolves, or nothing is known yet
	err   string        // why it does not
	pause time.Duration // before it is tried again, where it has no address
}

// newResolver makes a resolver. What earlier, the one of the configuration before, knows is taken over; nil: there is
// none.
func newResolver(onDisk haproxy.State, earlier *resolver, log logrus.FieldLogger) *resolver {
	r := &resolver{
		lookup: net.DefaultResolver.LookupNetIP, every: resolveEvery, log: log,
		changed: make(chan struct{}, 1), added: make(chan struct{}, 1),
		names: map[string]*hostEntry{}, hints: map[string]netip.Addr{}, again: map[string]time.Time{},
	}
	for _, servers := range onDisk {
		for _, s := range servers {
			r.hints[s.Name] = s.Addr.Addr()
		}
	}
	if earlier != nil {
		earlier.mu.Lock()
		defer earlier.mu.Unlock()
		for host, e := range earlier.names {
			if e.ip.IsValid() {
				r.names[host] = &hostEntry{ip: e.ip, since: e.since, err: e.err, pause: e.pause}
			}
		}
	}
	return r
}

// resolve answers from memory and never blocks. A new name is looked up at once; until that has an answer the address
// that the same server had in the file counts, so that a DNS outage at a start takes nothing away.
func (r *resolver) resolve(host, server string) (netip.Addr, bool) {
	r.mu.Lock()
	defer r.mu.Unlock()
	e := r.names[host]
	if e == nil {
		e = &hostEntry{}
		r.names[host] = e
		r.enqueue(host, e)
	}
	e.asked = true
	ip := e.ip
	if !ip.IsValid() {
		ip = r.hints[server]
	}
	return ip, ip.IsValid()
}

// enqueue has a name looked up at once; r.mu is held.
func (r *resolver) enqueue(host string, e *hostEntry) {
	e.busy = true
	r.fresh = append(r.fresh, host)
	signal(r.added)
}

// run looks names up until ctx is done, and waits for the lookups under way. New names and those that have no address
// never wait for the periodic round: a nameserver that is silent for some would hold up all.
func (r *resolver) run(ctx context.Context) {
	var lookups sync.WaitGroup
	defer lookups.Wait()
	ended := make(chan *int, 2*resolveAtOnce)
	start := func(host string, running *int) {
		*running++
		lookups.Go(func() {
			if r.update(ctx, host) {
				signal(r.changed)
			}
			ended <- running
		})
	}
	var known []string // what is left of the periodic round
	var fresh, round int
	tick := time.NewTicker(r.every)
	defer tick.Stop()
	again := time.NewTimer(r.every)
	defer again.Stop()
	for {
		for fresh < resolveAtOnce {
			host, ok := r.nextFresh()
			if !ok {
				break
			}
			start(host, &fresh)
		}
		for ; round < resolveAtOnce && len(known) > 0; known = known[1:] {
			if r.begin(known[0]) {
				start(known[0], &round)
			}
		}
		again.Reset(r.retry(time.Now()))
		select {
		case <-ctx.Done():
			return
		case <-r.added:
		case <-again.C:
		case running := <-ended:
			*running--
		case <-tick.C:
			hosts := r.forget()
			if len(hosts) > 0 {
				signal(r.changed) // every service is composed anew, which asks for the names still in use
			}
			if len(known) == 0 {
				known = hosts
			}
		}
	}
}

// once looks everything up that was asked for, and returns when that is done.
func (r *resolver) once(ctx context.Context) {
	var lookups errgroup.Group
	lookups.SetLimit(resolveAtOnce)
	for host, ok := r.nextFresh(); ok; host, ok = r.nextFresh() {
		lookups.Go(func() error { r.update(ctx, host); return nil })
	}
	_ = lookups.Wait() // none returns an error
}

func (r *resolver) nextFresh() (string, bool) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if len(r.fresh) == 0 {
		return "", false
	}
	host := r.fresh[0]
	r.fresh = r.fresh[1:]
	return host, true
}

// begin tells whether a name of the periodic round is to be looked up: it is still asked for, and nobody does already.
func (r *resolver) begin(host string) bool {
	r.mu.Lock()
	defer r.mu.Unlock()
	e := r.names[host]
	if e == nil || e.busy {
		return false
	}
	e.busy = true
	return true
}

// retry has the names without an address whose time has come looked up, and returns the time until the next.
func (r *resolver) retry(now time.Time) time.Duration {
	r.mu.Lock()
	defer r.mu.Unlock()
	next := r.every
	for host, at := range r.again {
		if e := r.names[host]; now.Before(at) {
			next = min(next, at.Sub(now))
		} else if delete(r.again, host); e != nil && !e.busy {
			r.enqueue(host, e)
		}
	}
	return next
}

// forget drops the names that nobody has asked for since it was called last, and returns the others, sorted.
func (r *resolver) forget() []string {
	r.mu.Lock()
	defer r.mu.Unlock()
	var hosts []string
	for host, e := range r.names {
		switch {
		case e.asked:
			e.asked = false
			hosts = append(hosts, host)
		case !e.busy:
			delete(r.names, host)
		}
	}
	slices.Sort(hosts)
	return hosts
}

// update looks one name up and reports whether its address changed.
func (r *resolver) update(ctx context.Context, host string) bool {
	bounded, cancel := context.WithTimeout(ctx, resolveTimeout)
	defer cancel()
	ips, err := r.lookup(bounded, "ip", host)
	for i := range ips {
		ips[i] = ips[i].Unmap()
	}
	found := len(ips)
	ips = slices.DeleteFunc(ips, func(ip netip.Addr) bool { // the registry chooses the name, and so what it resolves to
		_, err := discovery.ParseEndpoint(ip.String(), 1)
		return err != nil
	})
	if err == nil && len(ips) == 0 {
		err = errors.New("it has no address")
		if found > 0 {
			err = errors.New("it has no address that a server can have")
		}
	}

	r.mu.Lock()
	defer r.mu.Unlock()
	e := r.names[host]
	if e == nil {
		return false
	}
	e.busy = false
	if err != nil {
		if ctx.Err() == nil {
			r.failed(host, e, err, time.Now())
		}
		return false
	}
	if !e.since.IsZero() {
		r.log.WithFields(logrus.Fields{"addr": host, "duration": time.Since(e.since).Round(time.Second)}).Info("host name resolves")
	}
	before := e.ip
	e.ip, e.since, e.err, e.pause = choose(host, ips), time.Time{}, "", 0
	delete(r.again, host)
	return e.ip != before
}

// failed notes that a name does not resolve, and says so once; r.mu is held.
func (r *resolver) failed(host string, e *hostEntry, err error, now time.Time) {
	e.err = err.Error()
	if e.since.IsZero() {
		e.since = now
		log := r.log.WithFields(logrus.Fields{"addr": host, "err": err})
		if e.ip.IsValid() {
			log.Warn("host name of a registration does not resolve; its last address " + e.ip.String() + " stays, and it is tried again")
		} else {
			log.Warn("host name of a registration does not resolve; tried again")
		}
	}
	if !e.ip.IsValid() {
		e.pause = min(max(2*e.pause, resolveAgain), r.every)
		r.again[host] = now.Add(e.pause)
	}
}

// choose is the address of a name that has several. One registration is one server: its weight, its name and its place
// on a hash ring are those of one instance, so that the other addresses are not used; who wants them all registers them
// all. The choice follows from the name and the addresses alone, so that every host makes the same one, at any time and
// after any restart, as consistent hashing needs it; a choice that stays with what was known before would differ between
// hosts for ever. It is the address with the highest hash together with the name: many names with the same addresses
// spread over them, where the lowest address would get all, and an address that comes or goes moves only the names that
// have to move. IPv4 goes before IPv6.
func choose(host string, ips []netip.Addr) netip.Addr {
	var best netip.Addr
	var highest uint64
	for _, ip := range ips {
		rank := rankOf(host, ip)
		better := !best.IsValid() || ip.Is4() && best.Is6()
		if better || ip.Is4() == best.Is4() && (rank > highest || rank == highest && ip.Less(best)) {
			best, highest = ip, rank
		}
	}
	return best
}

// rankOf hashes a name and an address: FNV-1a, mixed with the finalizer of MurmurHash3, since addresses that differ in
// their last byte only would all keep their order.
func rankOf(host string, ip netip.Addr) uint64 {
	h := fnv.New64a()
	io.WriteString(h, host+"\x00"+ip.String())
	x := h.Sum64()
	x = (x ^ x>>33) * 0xff51afd7ed558ccd
	x = (x ^ x>>33) * 0xc4ceb9fe1a85ec53
	return x ^ x>>33
}

// Unresolved is a host name of a service's registrations that does not resolve at present.
type Unresolved struct {
	Name    string    `json:"name"`
	Since   time.Time `json:"since"`
	Error   string    `json:"error"`
	Address string    `json:"address,omitempty"` // the last one known, which is still used; empty: its instances are left out
}

// unresolved are the names of instances that do not resolve, sorted.
func (r *resolver) unresolved(active []discovery.Instance) []Unresolved {
	r.mu.Lock()
	defer r.mu.Unlock()
	var out []Unresolved
	seen := map[string]bool{}
	for i := range active {
		in := &active[i]
		if _, isIP := in.Endpoint.IP(); isIP || seen[in.Endpoint.Host()] {
			continue
		}
		host := in.Endpoint.Host()
		seen[host] = true
		e := r.names[host]
		if e == nil || e.since.IsZero() {
			continue
		}
		u := Unresolved{Name: host, Since: e.since, Error: e.err}
		ip := e.ip
		if !ip.IsValid() {
			ip = r.hints[haproxy.ServerName(in.Name, host, in.Endpoint.Port())]
		}
		if ip.IsValid() {
			u.Address = ip.String()
		}
		out = append(out, u)
	}
	slices.SortFunc(out, func(a, b Unresolved) int { return cmp.Compare(a.Name, b.Name) })
	return out
}

// signal sets a capacity-one channel; it never blocks.
func signal(c chan<- struct{}) {
	select {
	case c <- struct{}{}:
	default:
	}
}
