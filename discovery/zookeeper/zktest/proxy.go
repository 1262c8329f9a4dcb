package zktest

import (
	"fmt"
	"net"
	"sync"
	"testing"
)

// Proxy is a wire between clients and a server, to be cut and stalled.
type Proxy struct {
	listener net.Listener
	target   string
	all      sync.WaitGroup

	mu     sync.Mutex
	conns  map[net.Conn]struct{}
	cut    bool
	there  chan struct{} // closed while bytes may pass to the server
	back   chan struct{} // closed while bytes may pass to the clients
	closed bool
}

// StartProxy listens on a free loopback port and connects each client to target (host:port). The caller closes it.
func StartProxy(target string) (*Proxy, error) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		return nil, fmt.Errorf("start proxy: %w", err)
	}
	p := &Proxy{listener: l, target: target, conns: map[net.Conn]struct{}{}, there: make(chan struct{}), back: make(chan struct{})}
	p.release()
	p.all.Go(p.accept)
	return p, nil
}

// NewProxy starts a proxy for a test and closes it at the test's end.
func NewProxy(t testing.TB, target string) *Proxy {
	t.Helper()
	p, err := StartProxy(target)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(p.Close)
	return p
}

// Addr is where the proxy listens, host:port.
func (p *Proxy) Addr() string { return p.listener.Addr().String() }

func (p *Proxy) accept() {
	for {
		client, err := p.listener.Accept()
		if err != nil {
			return // closed
		}
		p.all.Go(func() { p.serve(client) })
	}
}

func (p *Proxy) serve(client net.Conn) {
	defer client.Close()
	if !p.enter(client) {
		return
	}
	defer p.leave(client)
	server, err := net.Dial("tcp", p.target)
	if err != nil {
		return
	}
	defer server.Close()
	if !p.enter(server) {
		return
	}
	defer p.leave(server)
	var both sync.WaitGroup
	both.Go(func() { p.pump(server, client, &p.there) })
	both.Go(func() { p.pump(client, server, &p.back) })
	both.Wait()
}

// enter lets a connection take part in cuts; false when the wire is cut now.
func (p *Proxy) enter(c net.Conn) bool {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.cut || p.closed {
		return false
	}
	p.conns[c] = struct{}{}
	return true
}

func (p *Proxy) leave(c net.Conn) {
	p.mu.Lock()
	defer p.mu.Unlock()
	delete(p.conns, c)
}

// pump carries bytes one way while gate, which mu guards, is open. When one end is closed, so is the other.
func (p *Proxy) pump(to, from net.Conn, gate *chan struct{}) {
	defer to.Close()
	defer from.Close()
	buf := make([]byte, 64<<10)
	for {
		n, err := from.Read(buf)
		p.mu.Lock()
		open := *gate
		p.mu.Unlock()
		<-open
		if n > 0 {
			if _, err := to.Write(buf[:n]); err != nil {
				return
			}
		}
		if err != nil {
			return
		}
	}
}

// Break closes all connections. New ones are carried.
func (p *Proxy) Break() {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.breakAll()
}

func (p *Proxy) breakAll() {
	for c := range p.conns {
		c.Close()
	}
}

// Cut closes all connections, and new ones as soon as they are made, until Resume.
func (p *Proxy) Cut() {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.cut = true
	p.breakAll()
}

// Stall lets connections stand and new ones be made, and carries nothing, until Resume. What is written meanwhile
// arrives then, unless an end has been closed.
func (p *Proxy) Stall() {
	p.mu.Lock()
	defer p.mu.Unlock()
	shut(&p.there)
	shut(&p.back)
}

// StallReplies carries what clients send, and holds back what the server answers, until Resume.
func (p *Proxy) StallReplies() {
	p.mu.Lock()
	defer p.mu.Unlock()
	shut(&p.back)
}

func shut(gate *chan struct{}) {
	select {
	case <-*gate:
		*gate = make(chan struct{})
	default: // it is
	}
}

// Resume ends a Cut and a Stall.
func (p *Proxy) Resume() {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.cut = false
	p.release()
}

func (p *Proxy) release() {
	for _, gate := range []chan struct{}{p.there, p.back} {
		select {
		case <-gate:
		default:
			close(gate)
		}
	}
}

// Close ends the proxy and all its connections, and waits for that.
func (p *Proxy) Close() {
	p.mu.Lock()
	p.closed = true
	p.breakAll()
	p.release()
	p.mu.Unlock()
	p.listener.Close()
	p.all.Wait()
}
