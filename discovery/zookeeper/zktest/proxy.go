package zktest

import (
	"encoding/binary"
	"fmt"
	"net"
	"slices"
	"sync"
	"testing"
	"time"
)

// Proxy is a wire between clients and a server, to be cut, stalled and slowed down, and to lose frames.
//
// Faults stay until they are taken back. They are for the connections that stand and for new ones. What does not begin
// like ZooKeeper's protocol, such as TLS or a four-letter word, is carried without a look at frames.
type Proxy struct {
	listener net.Listener
	target   string
	all      sync.WaitGroup // of accept, and of each link until it is closed

	mu           sync.Mutex
	links        map[*link]struct{}
	cut          bool
	there        chan struct{} // closed while bytes may pass to the server
	back         chan struct{} // closed while bytes may pass to the clients
	closed       bool
	delay        time.Duration
	dropRequests func(xid, op int32) bool
	dropReplies  func(xid int32) bool
	refused      []int32
	counts       counts
}

// counts are a proxy's numbers since its start.
type counts struct {
	accepted            int
	toServer, toClients int64
	requests            map[int32]int
}

// StartProxy listens on a free loopback port and connects each client to target (host:port). The caller closes it.
func StartProxy(target string) (*Proxy, error) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		return nil, fmt.Errorf("start proxy: %w", err)
	}
	p := &Proxy{
		listener: l, target: target, links: map[*link]struct{}{},
		there: make(chan struct{}), back: make(chan struct{}),
		counts: counts{requests: map[int32]int{}},
	}
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
		l := newLink(p, client)
		if !p.enter(l) {
			client.Close()
			continue
		}
		p.all.Go(func() {
			l.serve()
			p.leave(l)
		})
	}
}

// enter counts a connection and lets it take part in cuts; false when the wire is cut now.
func (p *Proxy) enter(l *link) bool {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.counts.accepted++
	if p.cut || p.closed {
		return false
	}
	p.links[l] = struct{}{}
	return true
}

func (p *Proxy) leave(l *link) {
	p.mu.Lock()
	defer p.mu.Unlock()
	delete(p.links, l)
}

// Break closes all connections. New ones are carried.
func (p *Proxy) Break() {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.breakAll()
}

func (p *Proxy) breakAll() {
	for l := range p.links {
		l.close()
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

// Resume ends a Cut and a Stall. It leaves a Delay, and what is dropped and refused.
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

// Delay lets what arrives from now on pass d later, in each direction; 0 ends it. The order is kept, and much may be
// on its way at once.
func (p *Proxy) Delay(d time.Duration) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.delay = max(d, 0)
}

// DropRequests lets the requests that match never arrive; nil ends it. The match is called from several goroutines,
// in the order of each connection's requests, and may call the proxy's other methods, but not Close.
func (p *Proxy) DropRequests(match func(xid, op int32) bool) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.dropRequests = match
}

// DropReplies lets the replies that match never arrive; nil ends it. Watch events have xid -1, replies to pings -2. The
// match is called as in DropRequests: one that calls Break loses the connection together with the answer.
func (p *Proxy) DropReplies(match func(xid int32) bool) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.dropReplies = match
}

// Refuse answers requests of these operations with error -6 (unimplemented) and closes the connection, as servers do
// that do not know them: before 3.6 addWatch (106), multiRead (22) and setWatches2 (105). The server never sees them.
// Without operations nothing is refused.
func (p *Proxy) Refuse(ops ...int32) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.refused = slices.Clone(ops)
}

// judgeRequest counts a request and says what becomes of it.
func (p *Proxy) judgeRequest(head []byte) verdict {
	xid, op := int32(binary.BigEndian.Uint32(head[lengthSize:])), int32(binary.BigEndian.Uint32(head[lengthSize+4:]))
	p.mu.Lock()
	p.counts.requests[op]++
	refused, match := slices.Contains(p.refused, op), p.dropRequests
	p.mu.Unlock()
	switch {
	case refused:
		return refuse
	case match != nil && match(xid, op):
		return drop
	}
	return pass
}

func (p *Proxy) judgeReply(head []byte) verdict {
	p.mu.Lock()
	match := p.dropReplies
	p.mu.Unlock()
	if match != nil && match(int32(binary.BigEndian.Uint32(head[lengthSize:]))) {
		return drop
	}
	return pass
}

// Accepted is how many connections clients have made, with those that a Cut closed at once.
func (p *Proxy) Accepted() int {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.counts.accepted
}

// BytesToServer is how many bytes the proxy has carried, or has tried to carry, to the server.
func (p *Proxy) BytesToServer() int64 {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.counts.toServer
}

// BytesToClients is how many bytes the proxy has carried, or has tried to carry, to the clients. What
// a client has received is in it.
func (p *Proxy) BytesToClients() int64 {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.counts.toClients
}

// Requests is how many requests of an operation clients have sent, whatever has become of them. The request that opens
// a session is none. Over TLS none is seen.
func (p *Proxy) Requests(op int32) int {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.counts.requests[op]
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
