package zktest

import (
	"context"
	"encoding/binary"
	"errors"
	"net"
	"os"
	"sync"
	"sync/atomic"
	"time"
)

// link is one client's connection through a proxy. Each direction is a lane: one goroutine reads and judges, another
// one waits for the delay and the gate and writes. When one end is closed, what it wrote is carried and then the other
// one is closed.
type link struct {
	p      *Proxy
	client net.Conn
	server net.Conn // nil until it is connected

	ctx   context.Context // done when the link is closed
	done  context.CancelFunc
	kind  atomic.Int32           // of the protocol; the client's first byte decides
	reply atomic.Pointer[[]byte] // a refusal to be written at the end of a frame, and then no more
}

// The kinds of protocol.
const (
	undecided = iota
	frames    // ZooKeeper's
	raw       // any other
)

// chunk is some bytes on their way. The last one has none.
type chunk struct {
	due   time.Time
	bytes []byte
}

// queueSize is how many chunks of at most readSize wait in a lane. When they are too many, no more is read.
const (
	queueSize = 256
	readSize  = 32 << 10
)

func newLink(p *Proxy, client net.Conn) *link {
	l := &link{p: p, client: client}
	l.ctx, l.done = context.WithCancel(context.Background())
	return l
}

// close cuts the link at once. What is on its way is lost.
func (l *link) close() {
	l.done()
	l.client.Close()
}

// serve carries until the link is closed.
func (l *link) serve() {
	defer l.close()
	var d net.Dialer
	server, err := d.DialContext(l.ctx, "tcp", l.p.target)
	if err != nil {
		return
	}
	l.server = server
	// It may be closed already, and close does not know of the server's connection.
	stop := context.AfterFunc(l.ctx, func() { server.Close() })
	defer func() {
		stop()
		server.Close()
	}()
	there, back := make(chan chunk, queueSize), make(chan chunk, queueSize)
	var all sync.WaitGroup
	all.Go(func() { l.readRequests(there) })
	all.Go(func() { l.write(server, there, &l.p.there, &l.p.counts.toServer) })
	all.Go(func() { l.readReplies(back) })
	all.Go(func() { l.write(l.client, back, &l.p.back, &l.p.counts.toClients) })
	all.Wait()
}

// send puts bytes on their way; false when the link is closed.
func (l *link) send(to chan<- chunk, b []byte) bool {
	l.p.mu.Lock()
	due := time.Now().Add(l.p.delay)
	l.p.mu.Unlock()
	select {
	case to <- chunk{due: due, bytes: b}:
		return true
	case <-l.ctx.Done():
		return false
	}
}

func (l *link) readRequests(to chan<- chunk) {
	f := framer{headSize: requestHead}
	var refused int32
	f.judge = func(head []byte) verdict {
		v := l.p.judgeRequest(head)
		if v == refuse {
			refused = int32(binary.BigEndian.Uint32(head[lengthSize:]))
		}
		return v
	}
	buf := make([]byte, readSize)
	for {
		n, err := l.client.Read(buf)
		out, stop := l.requests(&f, buf[:n])
		if len(out) > 0 && !l.send(to, out) {
			return
		}
		if stop {
			answer := refusal(refused)
			l.reply.Store(&answer)
			_ = l.server.SetReadDeadline(time.Now()) // wakes readReplies, which closes the link
			return
		}
		if err != nil {
			l.finish(to, f.rest())
			return
		}
	}
}

// requests is what is to be passed of what the client sent, and whether a request is refused.
func (l *link) requests(f *framer, in []byte) ([]byte, bool) {
	if len(in) == 0 {
		return nil, false
	}
	if l.kind.Load() == undecided {
		kind := int32(raw)
		if in[0] == firstFrameByte {
			kind = frames
		}
		l.kind.CompareAndSwap(undecided, kind)
	}
	if l.kind.Load() == raw {
		return append([]byte(nil), in...), false
	}
	out, _, refused := f.feed(nil, in)
	return out, refused
}

func (l *link) readReplies(to chan<- chunk) {
	f := framer{headSize: replyHead, judge: l.p.judgeReply}
	buf := make([]byte, readSize)
	for {
		n, err := l.server.Read(buf)
		out, end := l.replies(&f, buf[:n])
		if answer := l.reply.Load(); answer != nil {
			if end >= 0 {
				l.finish(to, append(out[:end], *answer...))
				return
			}
			if errors.Is(err, os.ErrDeadlineExceeded) { // the wake-up; the frame has to end first
				err = l.server.SetReadDeadline(time.Time{})
			}
		}
		if len(out) > 0 && !l.send(to, out) {
			return
		}
		if err != nil {
			l.finish(to, f.rest())
			return
		}
	}
}

// replies is what is to be passed of what the server sent, and where in it a frame ends, -1 for nowhere.
func (l *link) replies(f *framer, in []byte) ([]byte, int) {
	if len(in) > 0 && l.kind.CompareAndSwap(undecided, raw) || l.kind.Load() == raw {
		return append([]byte(nil), in...), -1 // no ZooKeeper speaks first
	}
	out, end, _ := f.feed(nil, in)
	return out, end
}

// finish sends a lane's last bytes and its end.
func (l *link) finish(to chan<- chunk, last []byte) {
	if len(last) > 0 && !l.send(to, last) {
		return
	}
	l.send(to, nil)
}

// write carries a lane's chunks when they are due and gate, which the proxy's mu guards like count, is open. It closes
// the link at the lane's end. When to takes no more it goes on without writing: its other lane learns of that too, and
// may still have something to deliver.
func (l *link) write(to net.Conn, from <-chan chunk, gate *chan struct{}, count *int64) {
	defer l.close()
	dead := false
	for {
		var c chunk
		select {
		case c = <-from:
		case <-l.ctx.Done():
			return
		}
		if !l.await(c.due, gate) || c.bytes == nil {
			return
		}
		if dead {
			continue
		}
		l.p.mu.Lock()
		*count += int64(len(c.bytes)) // before the write: who has received bytes finds them counted
		l.p.mu.Unlock()
		_, err := to.Write(c.bytes)
		dead = err != nil
	}
}

// await blocks until due has come and the gate is open; false when the link is closed first.
func (l *link) await(due time.Time, gate *chan struct{}) bool {
	if wait := time.Until(due); wait > 0 {
		timer := time.NewTimer(wait)
		defer timer.Stop()
		select {
		case <-timer.C:
		case <-l.ctx.Done():
			return false
		}
	}
	l.p.mu.Lock()
	open := *gate
	l.p.mu.Unlock()
	select {
	case <-open:
		return true
	case <-l.ctx.Done():
		return false
	}
}
