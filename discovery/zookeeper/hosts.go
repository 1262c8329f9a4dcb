package zookeeper

import (
	"errors"
	"fmt"
	"math/rand/v2"
	"net"
	"net/netip"
	"strconv"
	"strings"
	"sync"
	"time"
)

const defaultPort = "2181"

// parseHosts splits lists at commas, adds missing ports and puts brackets around bare IPv6 addresses. Names are not
// resolved. The client library's own parser takes neither lists nor bare IPv6.
func parseHosts(list []string) ([]string, error) {
	var hosts []string
	for _, text := range list {
		for h := range strings.SplitSeq(text, ",") {
			if h = strings.TrimSpace(h); h == "" {
				continue
			}
			host, err := parseHost(h)
			if err != nil {
				return nil, err
			}
			hosts = append(hosts, host)
		}
	}
	if len(hosts) == 0 {
		return nil, errors.New("parse hosts: the list is empty; write host:port")
	}
	return hosts, nil
}

func parseHost(h string) (string, error) {
	if strings.Contains(h, "/") {
		return "", fmt.Errorf("parse host %q: a chroot does not belong to one host", h)
	}
	if ip, err := netip.ParseAddr(strings.Trim(h, "[]")); err == nil {
		return net.JoinHostPort(ip.String(), defaultPort), nil
	}
	if !strings.Contains(h, ":") {
		h += ":" + defaultPort
	}
	host, port, err := net.SplitHostPort(h)
	if err != nil || host == "" {
		return "", fmt.Errorf("parse host %q: write host:port", h)
	}
	if n, err := strconv.Atoi(port); err != nil || n < 1 || n > 65535 {
		return "", fmt.Errorf("parse host %q: the port is not between 1 and 65535", h)
	}
	return net.JoinHostPort(host, port), nil
}

// provider hands the library one host after another, for ever and unresolved: each dial resolves anew, and one name
// without an address stops nobody (the library's own provider resolves once, in Connect, and fails there).
type provider struct {
	hosts []string
	done  <-chan struct{} // closed when the connection is to end

	mu   sync.Mutex
	next int
}

// newProvider starts at a random host and goes round from there, so that a fleet spreads over an ensemble.
func newProvider(hosts []string, done <-chan struct{}) *provider {
	return &provider{hosts: hosts, done: done, next: rand.IntN(len(hosts))}
}

func (p *provider) Init([]string) error { return nil }
func (p *provider) Len() int            { return len(p.hosts) }
func (p *provider) Connected()          {}

// Next never says that a round is over while the connection lives: the library (v1.0.4, connect in conn.go) would
// sleep for a second, even before the first reconnect to a single server. Our dialer paces instead. Once the
// connection is to end it always says so, since only then the library looks whether it was closed.
func (p *provider) Next() (string, bool) {
	p.mu.Lock()
	defer p.mu.Unlock()
	host := p.hosts[p.next]
	p.next = (p.next + 1) % len(p.hosts)
	select {
	case <-p.done:
		return host, true
	default:
		return host, false
	}
}

const (
	paceFirst = 100 * time.Millisecond
	paceMost  = 2 * time.Second
	paceLeast = 10 * time.Millisecond
)

// pace is the pause before dial number attempt (0 is the first after a connection that lived): none, then a random
// time below a bound that doubles from 100 ms to 2 s and stays under a quarter of the session timeout. A longer pause
// would let sessions expire after an outage of the ensemble that their ephemeral nodes had survived. fraction is in
// [0, 1).
func pace(attempt int, timeout time.Duration, fraction float64) time.Duration {
	if attempt == 0 {
		return 0
	}
	bound := min(paceFirst<<min(attempt-1, 10), paceMost)
	if timeout > 0 {
		bound = min(bound, timeout/4)
	}
	return max(time.Duration(fraction*float64(bound)), min(paceLeast, bound))
}
