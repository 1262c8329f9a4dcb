package zookeeper

import (
	"encoding/binary"
	"fmt"
	"net"
	"sync"
	"sync/atomic"
	"time"
)

// credentials resume a session on another connection.
type credentials struct {
	session  int64
	password [16]byte
}

// wire is the connection that our dialer hands to the client library. It heals four faults of go-zookeeper/zk v1.0.4
// that can be seen from the bytes:
//
//   - The library waits ten times 2/3 of the session timeout for the answer to its ConnectRequest, and for the rest
//     of that answer for ever. wire keeps one deadline over the whole handshake.
//   - The library believes the length in front of that answer, so that a server that speaks something else makes it
//     allocate up to 4 GB. wire refuses lengths that no ConnectResponse has.
//   - After a reconnect the library reads its lastZxid for SetWatches while its receiving goroutine already moves it
//     forward with the replies to other requests: changes made while it was away are then lost without a trace, and
//     the race detector complains. wire holds back what the server sends until the first SetWatches frame, for which
//     the zxid has been read, is out.
//   - A new zk.Conn cannot be told to take up an existing session. wire writes its id and password into the
//     ConnectRequest.
//
// Frames (org.apache.zookeeper.proto, big-endian, each behind its int32 length), as far as they matter here:
//
//	ConnectRequest   int32 protocol, int64 lastZxidSeen, int32 timeout ms, int64 session, int32 16, [16]byte password
//	ConnectResponse  int32 protocol, int32 timeout ms, int64 session (0: expired), int32 16, [16]byte password, ...
//	request          int32 xid, int32 operation, ...
//
// The library writes each frame with one Write, reads and writes the handshake in one goroutine and starts its two
// loops after that, so the handshake's fields need no lock.
type wire struct {
	net.Conn
	resume   credentials     // taken up when the library asks for a new session
	watching func() bool     // whether the library may have watches to set again
	shaken   func(handshake) // called once, in the library's goroutine, before it sees the answer
	received *atomic.Uint64  // counts bytes
	deadline time.Time       // of the handshake
	hold     time.Duration   // longest time that replies wait for SetWatches
	request  int64           // session in the ConnectRequest as sent
	head     []byte          // what was read of the ConnectResponse
	done     bool            // the ConnectResponse is complete
	gate     chan struct{}   // closed when SetWatches is out; nil: nothing to wait for
	open     func()          // closes gate, once
	closed   chan struct{}   // closed by Close
	close    func() error    // closes the connection, once
	passed   bool            // the gate has been passed; only touched by Read
}

// handshake is what a ConnectResponse says.
type handshake struct {
	credentials
	timeout time.Duration
}

const (
	connectRequestLen   = 48      // with its length
	connectResponseLen  = 36      // without its length and the optional read-only byte
	connectResponseMost = 1 << 10 // more than any server sends
	opSetWatches        = 101
)

func newWire(c net.Conn, limit, hold time.Duration, resume credentials, watching func() bool, shaken func(handshake), received *atomic.Uint64) *wire {
	w := &wire{
		Conn: c, resume: resume, watching: watching, shaken: shaken, received: received,
		deadline: time.Now().Add(limit), hold: hold, closed: make(chan struct{}),
	}
	w.close = sync.OnceValue(func() error {
		close(w.closed)
		return c.Close()
	})
	return w
}

func (w *wire) Close() error { return w.close() }

// SetReadDeadline keeps the handshake's deadline until the handshake is over.
func (w *wire) SetReadDeadline(t time.Time) error {
	return w.Conn.SetReadDeadline(w.clamp(t))
}

// SetWriteDeadline keeps the handshake's deadline until the handshake is over.
func (w *wire) SetWriteDeadline(t time.Time) error {
	return w.Conn.SetWriteDeadline(w.clamp(t))
}

func (w *wire) clamp(t time.Time) time.Time {
	if !w.done && (t.IsZero() || t.After(w.deadline)) {
		return w.deadline
	}
	return t
}

func (w *wire) Write(p []byte) (int, error) {
	if !w.done {
		return w.Conn.Write(w.connectRequest(p))
	}
	n, err := w.Conn.Write(p)
	if w.gate != nil && operation(p) == opSetWatches {
		w.open()
	}
	return n, err
}

// connectRequest puts the session to resume into the request for a new one.
func (w *wire) connectRequest(p []byte) []byte {
	if len(p) < connectRequestLen {
		return p
	}
	w.request = int64(binary.BigEndian.Uint64(p[20:28]))
	if w.request != 0 || w.resume.session == 0 {
		return p
	}
	w.request = w.resume.session
	resumed := append([]byte(nil), p...)
	binary.BigEndian.PutUint64(resumed[20:28], uint64(w.resume.session))
	copy(resumed[32:48], w.resume.password[:])
	return resumed
}

func operation(frame []byte) int32 {
	if len(frame) < 12 {
		return 0
	}
	return int32(binary.BigEndian.Uint32(frame[8:12]))
}

func (w *wire) Read(p []byte) (int, error) {
	if w.done && !w.passed {
		w.wait()
		w.passed = true
	}
	n, err := w.Conn.Read(p)
	w.received.Add(uint64(n))
	if !w.done && n > 0 {
		w.head = append(w.head, p[:n]...)
		if fault := w.handshake(); fault != nil {
			return 0, fault
		}
	}
	return n, err
}

// wait blocks until the library has sent SetWatches, or had its time to: it sends none when all watches have fired.
func (w *wire) wait() {
	if w.gate == nil {
		return
	}
	late := time.NewTimer(w.hold)
	defer late.Stop()
	select {
	case <-w.gate:
	case <-late.C:
	case <-w.closed:
	}
}

// handshake looks at what has been read of the ConnectResponse.
func (w *wire) handshake() error {
	if len(w.head) < 4 {
		return nil
	}
	length := int(binary.BigEndian.Uint32(w.head))
	if length < connectResponseLen || length > connectResponseMost {
		return fmt.Errorf("handshake: the first answer is no ConnectResponse (length %d): not a ZooKeeper client port, or one that wants TLS", uint32(length))
	}
	body := w.head[4:]
	if len(body) < length {
		return nil
	}
	w.done, w.head = true, nil
	h := handshake{timeout: time.Duration(int32(binary.BigEndian.Uint32(body[4:8]))) * time.Millisecond}
	h.session = int64(binary.BigEndian.Uint64(body[8:16]))
	copy(h.password[:], body[20:36])
	if h.session != 0 && h.session == w.request && w.watching() {
		w.gate = make(chan struct{})
		w.open = sync.OnceFunc(func() { close(w.gate) })
	}
	w.shaken(h)
	return nil
}
