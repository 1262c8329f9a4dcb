package agent

import (
	"context"
	"errors"
	"net"
	"net/netip"
	"slices"
	"sync"
	"time"

	"github.com/sirupsen/logrus"

	"github.com/myelin-sd/myelin/discovery"
	"github.com/myelin-sd/myelin/haproxy"
)

const (
	resolveEvery   = 30 * time.Second // every known name is looked up again
	resolveTimeout = 5 * time.Second
)

// resolver keeps the addresses of the host names that registrations carry. HAProxy accepts names for servers added
// at run time but never resolves them, so the agent does. A name that stops resolving keeps its last address.
type resolver struct {
	lookup  func(ctx context.Context, network, host string) ([]netip.Addr, error)
	changed chan struct{} // capacity one: an address became known or changed
	log     logrus.FieldLogger

	mu    sync.Mutex
	names map[string]hostEntry
	hints map[string]netip.Addr // by server name: what the file held at the start
	added chan struct{}         // capacity one: names has a new name
}

func newResolver(onDisk haproxy.State, log logrus.FieldLogger) *resolver {
	r := &resolver{
		lookup: net.DefaultResolver.LookupNetIP, changed: make(chan struct{}, 1), log: log,
		names: map[string]hostEntry{}, hints: map[string]netip.Addr{},
		added: make(chan struct{}, 1),
	}
	for _, servers := range onDisk {
		for _, s := range servers {
			r.hints[s.Name] = s.Addr.Addr()
		}
	}
	return r
}

// hostEntry is what is known of one name.
type hostEntry struct {
	ip     netip.Addr // the zero Addr: not resolved yet
	failed bool
	asked  bool // since the last periodic round; names nobody asks for any more are dropped there
}

// resolve answers from memory and never blocks. A new name is looked up soon; until then the address that the same
// server had in the file counts, so that a DNS outage at a start takes nothing away.
func (r *resolver) resolve(host, server string) (netip.Addr, bool) {
	r.mu.Lock()
	defer r.mu.Unlock()
	e, known := r.names[host]
	e.asked = true
	r.names[host] = e
	if !known {
		signal(r.added)
	}
	ip := e.ip
	if !ip.IsValid() {
		ip = r.hints[server]
	}
	return ip, ip.IsValid()
}

// run looks names up until ctx is done.
func (r *resolver) run(ctx context.Context) {
	tick := time.NewTicker(resolveEvery)
	defer tick.Stop()
	for {
		all := false
		select {
		case <-ctx.Done():
			return
		case <-r.added:
		case <-tick.C:
			all = true
		}
		changed := all // a periodic round has every service composed anew, which asks for the names still in use
		for _, host := range r.due(all) {
			changed = r.update(ctx, host) || changed
		}
		if changed {
			signal(r.changed)
		}
	}
}

func (r *resolver) due(all bool) []string {
	r.mu.Lock()
	defer r.mu.Unlock()
	var hosts []string
	for h, e := range r.names {
		if all && !e.asked {
			delete(r.names, h)
			continue
		}
		if all || !e.ip.IsValid() {
			hosts = append(hosts, h)
		}
		if all {
			e.asked = false
			r.names[h] = e
		}
	}
	slices.Sort(hosts)
	return hosts
}

// update looks one name up and reports whether its address changed. Of several addresses the known one is kept while
// it is among them, otherwise IPv4 goes before IPv6 and the lowest wins, so that every node chooses alike.
func (r *resolver) update(ctx context.Context, host string) bool {
	ctx, cancel := context.WithTimeout(ctx, resolveTimeout)
	defer cancel()
	ips, err := r.lookup(ctx, "ip", host)
	for i := range ips {
		ips[i] = ips[i].Unmap()
	}
	ips = slices.DeleteFunc(ips, func(ip netip.Addr) bool { // the registry chooses the name, and so what it resolves to
		_, err := discovery.ParseEndpoint(ip.String(), 1)
		return err != nil
	})
	slices.SortFunc(ips, netip.Addr.Compare)

	r.mu.Lock()
	defer r.mu.Unlock()
	e := r.names[host]
	defer func() { r.names[host] = e }()
	if err != nil || len(ips) == 0 {
		if !e.failed && !errors.Is(ctx.Err(), context.Canceled) {
			e.failed = true
			r.log.WithFields(logrus.Fields{"addr": host, "err": err}).Warn("host name of a registration does not resolve; tried again")
		}
		return false
	}
	if e.failed {
		e.failed = false
		r.log.WithField("addr", host).Info("host name resolves")
	}
	if slices.Contains(ips, e.ip) {
		return false
	}
	e.ip = ips[0]
	return true
}

// signal sets a capacity-one channel; it never blocks.
func signal(c chan<- struct{}) {
	select {
	case c <- struct{}{}:
	default:
	}
}
