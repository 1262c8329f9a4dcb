package zookeeper

import (
	"bufio"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"math"
	"net"
	"slices"
	"sync"
	"sync/atomic"
	"time"
)

// tap is the frame tap: the connection that our dialer hands to the client library, and through which we speak to the
// server beside it. go-zookeeper/zk v1.0.4 has no persistent watches, no MultiRead, no login before use, no resumption
// of sessions and no deadlines; all of that is had here, without a change to the library.
//
//   - What the library writes passes through, one frame with each Write. Our requests go between its frames, with xids
//     that it never reaches; their replies are taken out of what it reads. So are the events of watches: the library
//     sets none.
//   - The ConnectRequest is completed: with a session to take up, which a new zk.Conn cannot be told; with the highest
//     zxid seen by this process, so that a member that lags behind refuses us rather than show an older tree; and with
//     the read-only flag, without which every connect is a warning in the server's log.
//   - One deadline lies over the whole handshake, TLS excepted. The library waits ten times 2/3 of the session timeout
//     for the answer, and for the rest of that answer for ever.
//   - Lengths are checked before anything is allocated for them. The library believes what a server says.
//   - Logins are made before the library knows of the session, so that nothing runs without them. Its own way, AddAuth,
//     stops for ever when the connection breaks in a bad moment (its pull request 163).
//
// The library reads and writes the handshake in one goroutine, and starts a goroutine for each direction after it. So
// what belongs to the handshake, or to reading, needs no lock.
type tap struct {
	net.Conn
	o  tapOptions
	in *bufio.Reader

	// Of the goroutine that reads.
	deadline  time.Time     // of the handshake
	readLimit time.Duration // what the library last gave a read
	proceeded time.Time     // when the read was last given its time anew
	done      bool          // the ConnectResponse has been read
	pending   []byte        // of a frame that is the library's
	frame     []byte        // what pending is part of, used again

	writing sync.Mutex // around each frame that is written, and guards the one below
	torn    bool       // part of a frame may be missing: the server would take the next one for the rest of it

	mu     sync.Mutex // guards all below
	closed bool
	xid    int32
	ours   map[int32]*call
	theirs map[int32]sent // the library's requests that wait for their replies
	pinged time.Time
	latest time.Time // when the latest request that has been answered was written
	ended  bool      // the server has confirmed the end of the session
}

// sent is a request of the library's.
type sent struct {
	at time.Time // when it was written
	op int32
}

type tapOptions struct {
	limit      time.Duration // of the handshake
	writeLimit time.Duration // of each Write after it
	resume     credentials   // taken up when the library asks for a new session
	zxid       *atomic.Int64 // the highest seen
	logins     []Login       // with their credentials
	shaken     func(handshake)
	event      func(event) // called in the reading goroutine; must not block nor write
	received   *atomic.Uint64
}

// call is a request of ours that waits for its reply.
type call struct {
	at    time.Time
	most  int         // bytes that its reply may have
	reply chan answer // capacity one
}

// answer is the body of a reply, or why there is none.
type answer struct {
	body []byte
	err  error
}

const (
	firstXid = 0x40000000 // the library counts from 1

	connectRequestLen    = 48 // with its length
	connectResponseLeast = 36 // without its length and the read-only flag
	connectResponseMost  = 1 << 10

	// libraryReply bounds what the library gets: it asks for no data, and the longest is the path of a created node,
	// which path encoding makes 64 KiB long.
	libraryReply = 1 << 20

	// eventMost bounds an event: a path.
	eventMost = 1 << 20

	readAhead = 32 << 10 // buffered
	readStep  = 1 << 20  // read into memory at a time: what a server announces it must also send
)

var (
	errTooLarge = errors.New("the reply is larger than is taken")
	errForeign  = errors.New("the first answer is no ConnectResponse: not a ZooKeeper client port, or one that wants TLS")
)

func newTap(c net.Conn, o tapOptions) *tap {
	t := &tap{
		Conn: c, o: o, deadline: time.Now().Add(o.limit), ours: map[int32]*call{}, theirs: map[int32]sent{},
	}
	t.in = bufio.NewReaderSize(counted{c, o.received}, readAhead)
	return t
}

// counted counts what is read.
type counted struct {
	io.Reader
	n *atomic.Uint64
}

func (c counted) Read(p []byte) (int, error) {
	n, err := c.Reader.Read(p)
	c.n.Add(uint64(n))
	return n, err
}

// Close ends the connection; all requests of ours that wait fail.
func (t *tap) Close() error {
	t.fail()
	return t.Conn.Close()
}

// fail ends all requests of ours that wait, and refuses new ones.
func (t *tap) fail() {
	t.mu.Lock()
	waiting := t.ours
	t.ours, t.closed = nil, true
	t.mu.Unlock()
	for _, c := range waiting {
		c.reply <- answer{err: errLost}
	}
}

// SetReadDeadline keeps the handshake's deadline until the handshake is over.
func (t *tap) SetReadDeadline(at time.Time) error {
	if !t.done {
		if at.IsZero() || at.After(t.deadline) {
			at = t.deadline
		}
	} else if !at.IsZero() {
		t.readLimit = time.Until(at)
	}
	return t.Conn.SetReadDeadline(at)
}

// SetWriteDeadline does nothing: Write sets its own, since our frames go between the library's.
func (t *tap) SetWriteDeadline(time.Time) error { return nil }

// Write writes one frame of the library's.
func (t *tap) Write(p []byte) (int, error) {
	if !t.done {
		if err := t.write(t.connectRequest(p), t.deadline); err != nil {
			return 0, err
		}
		return len(p), nil
	}
	if len(p) >= 4+headerLen {
		t.note(int32(binary.BigEndian.Uint32(p[4:])), int32(binary.BigEndian.Uint32(p[8:])))
	}
	if err := t.write(p, time.Now().Add(t.o.writeLimit)); err != nil {
		return 0, err
	}
	return len(p), nil
}

// note remembers when a request of the library's was written.
func (t *tap) note(xid, op int32) {
	t.mu.Lock()
	defer t.mu.Unlock()
	switch {
	case xid >= 0:
		t.theirs[xid] = sent{time.Now(), op}
	case xid == xidPing:
		t.pinged = time.Now()
	}
}

func (t *tap) write(frame []byte, deadline time.Time) error {
	t.writing.Lock()
	defer t.writing.Unlock()
	if t.torn {
		return errLost
	}
	if err := t.Conn.SetWriteDeadline(deadline); err != nil {
		return err
	}
	_, err := t.Conn.Write(frame)
	t.torn = err != nil
	return err
}

// connectRequest completes the library's.
func (t *tap) connectRequest(p []byte) []byte {
	if len(p) != connectRequestLen { // the library's is without the read-only flag
		return p
	}
	q := append(append(make([]byte, 0, len(p)+1), p...), 0)
	binary.BigEndian.PutUint32(q, uint32(len(q)-4))
	if zxid := t.o.zxid.Load(); zxid > int64(binary.BigEndian.Uint64(q[8:])) {
		binary.BigEndian.PutUint64(q[8:], uint64(zxid))
	}
	if binary.BigEndian.Uint64(q[20:]) == 0 && t.o.resume.session != 0 { // it asks for a new one
		binary.BigEndian.PutUint64(q[20:], uint64(t.o.resume.session))
		copy(q[32:48], t.o.resume.password[:])
	}
	return q
}

// Read gives the library what is its own. Whatever else comes first is dealt with here.
func (t *tap) Read(p []byte) (int, error) {
	for len(t.pending) == 0 {
		next := t.next
		if !t.done {
			next = t.handshake
		}
		if err := next(); err != nil {
			t.fail()
			return 0, err
		}
	}
	n := copy(p, t.pending)
	t.pending = t.pending[n:]
	return n, nil
}

// handshake reads the ConnectResponse, makes the logins, and hands the response on.
func (t *tap) handshake() error {
	var prefix [4]byte
	if _, err := io.ReadFull(t.in, prefix[:]); err != nil {
		return err
	}
	length := binary.BigEndian.Uint32(prefix[:])
	if length < connectResponseLeast || length > connectResponseMost {
		return fmt.Errorf("handshake: %w", errForeign)
	}
	t.frame = append(t.frame[:0], prefix[:]...)
	var err error
	if t.frame, err = t.append(t.frame, int(length)); err != nil {
		return err
	}
	h, err := parseConnectResponse(t.frame[4:])
	if err != nil {
		return fmt.Errorf("handshake: %w", errForeign)
	}
	t.o.shaken(h)
	if h.session != 0 {
		if err := t.login(); err != nil {
			return err
		}
	}
	t.done = true
	t.pending = t.frame
	return t.Conn.SetReadDeadline(time.Time{})
}

// login makes the logins, one after the other. The server answers nothing else meanwhile: there are no watches yet,
// and nothing was asked.
func (t *tap) login() error {
	for _, l := range t.o.logins {
		if err := t.write(authRequest(l.Scheme, l.Credentials), t.deadline); err != nil {
			return fmt.Errorf("log in with %s: %w", l.Scheme, err)
		}
		h, length, err := t.header()
		if err != nil {
			return fmt.Errorf("log in with %s: %w", l.Scheme, err)
		}
		if err := t.skip(length); err != nil {
			return fmt.Errorf("log in with %s: %w", l.Scheme, err)
		}
		if h.xid != xidAuth {
			return fmt.Errorf("log in with %s: %w", l.Scheme, errMalformed)
		}
		if h.code != 0 {
			return fmt.Errorf("log in with %s: refused: %w", l.Scheme, codeError(h.code))
		}
	}
	return nil
}

// header reads the beginning of a reply or an event, and returns the length of the rest.
func (t *tap) header() (header, int, error) {
	var b [4 + replyLen]byte
	if _, err := io.ReadFull(t.in, b[:]); err != nil {
		return header{}, 0, err
	}
	length := binary.BigEndian.Uint32(b[:])
	if length < replyLen || length > math.MaxInt32 {
		return header{}, 0, fmt.Errorf("read a reply: length %d: %w", length, errMalformed)
	}
	h := parseHeader([replyLen]byte(b[4:]))
	if h.zxid > 0 {
		raise(t.o.zxid, h.zxid)
	}
	return h, int(length) - replyLen, nil
}

func raise(highest *atomic.Int64, zxid int64) {
	for {
		was := highest.Load()
		if zxid <= was || highest.CompareAndSwap(was, zxid) {
			return
		}
	}
}

// next deals with one frame.
func (t *tap) next() error {
	h, rest, err := t.header()
	if err != nil {
		return err
	}
	switch {
	case h.xid >= firstXid:
		return t.answer(h, rest)
	case h.xid == xidEvent:
		return t.tell(rest)
	default:
		return t.pass(h, rest)
	}
}

// pass hands a frame to the library.
func (t *tap) pass(h header, rest int) error {
	if rest > libraryReply {
		return fmt.Errorf("read a reply: %d bytes: %w", rest, errTooLarge)
	}
	op := t.answered(h)
	f := binary.BigEndian.AppendUint32(t.frame[:0], uint32(replyLen+rest))
	f = binary.BigEndian.AppendUint32(f, uint32(h.xid))
	f = binary.BigEndian.AppendUint64(f, uint64(h.zxid))
	f = binary.BigEndian.AppendUint32(f, uint32(h.code))
	f, err := t.append(f, rest)
	if err == nil && op == opMulti && h.code == 0 {
		err = checkMulti(f[4+replyLen:])
	}
	t.frame, t.pending = f, f
	return err
}

// answered takes in that the library gets a reply, and returns the operation.
func (t *tap) answered(h header) int32 {
	t.mu.Lock()
	defer t.mu.Unlock()
	if h.xid == xidPing {
		t.latest = later(t.latest, t.pinged)
		return 0
	}
	was := t.theirs[h.xid]
	delete(t.theirs, h.xid)
	t.latest = later(t.latest, was.at)
	t.ended = t.ended || was.op == opClose && h.code == 0
	return was.op
}

// dead reports whether no request of ours can be made any more.
func (t *tap) dead() bool {
	t.mu.Lock()
	defer t.mu.Unlock()
	return t.closed
}

// over reports whether the server has confirmed the end of the session.
func (t *tap) over() bool {
	t.mu.Lock()
	defer t.mu.Unlock()
	return t.ended
}

// answer delivers the reply to a request of ours.
func (t *tap) answer(h header, rest int) error {
	t.mu.Lock()
	c := t.ours[h.xid]
	delete(t.ours, h.xid)
	if c != nil {
		t.latest = later(t.latest, c.at)
	}
	t.mu.Unlock()
	if c == nil { // nobody waits any more
		return t.skip(rest)
	}
	var a answer
	var err error
	if a.err = codeError(h.code); a.err != nil {
		err = t.skip(rest)
	} else if rest > c.most {
		a.err = fmt.Errorf("%d bytes: %w", rest, errTooLarge)
		err = t.skip(rest)
	} else {
		a.body, err = t.append(make([]byte, 0, min(rest, readStep)), rest)
	}
	if err != nil {
		a = answer{err: errLost}
	}
	c.reply <- a
	return errors.Join(err, t.proceed())
}

// tell passes an event on.
func (t *tap) tell(rest int) error {
	if rest < eventLeast || rest > eventMost {
		return fmt.Errorf("read an event: %d bytes: %w", rest, errMalformed)
	}
	var err error
	if t.frame, err = t.append(t.frame[:0], rest); err != nil {
		return err
	}
	ev, err := parseEvent(t.frame)
	if err != nil {
		return fmt.Errorf("read an event: %w", err)
	}
	t.o.event(ev)
	return t.proceed()
}

// proceed gives the library's read its time anew: something came, though not for it.
func (t *tap) proceed() error {
	if !t.done || t.readLimit <= 0 {
		return nil
	}
	now := time.Now()
	if now.Sub(t.proceeded) < t.readLimit/16 { // not with every frame: it costs as much as reading one
		return nil
	}
	t.proceeded = now
	return t.Conn.SetReadDeadline(now.Add(t.readLimit))
}

// append reads n bytes behind b.
func (t *tap) append(b []byte, n int) ([]byte, error) {
	for n > 0 {
		step := min(n, readStep)
		at := len(b)
		b = append(b, make([]byte, step)...)
		if _, err := io.ReadFull(t.in, b[at:]); err != nil {
			return b[:at], err
		}
		if n -= step; n > 0 {
			if err := t.proceed(); err != nil {
				return b, err
			}
		}
	}
	return b, nil
}

// skip reads n bytes for nobody.
func (t *tap) skip(n int) error {
	for n > 0 {
		step := min(n, readStep)
		if _, err := t.in.Discard(step); err != nil {
			return err
		}
		if n -= step; n > 0 {
			if err := t.proceed(); err != nil {
				return err
			}
		}
	}
	return nil
}

// send writes requests of ours, in one piece. most bounds each one's reply in bytes. It blocks while others write, as
// long as a write may take at most.
func (t *tap) send(most int, requests ...request) ([]*call, error) {
	calls := make([]*call, len(requests))
	now := time.Now()
	t.mu.Lock()
	if t.closed {
		t.mu.Unlock()
		return nil, errLost
	}
	for i, r := range requests {
		calls[i] = &call{at: now, most: most, reply: make(chan answer, 1)}
		xid := t.number()
		t.ours[xid] = calls[i]
		r.seal(xid)
	}
	t.mu.Unlock()
	frames := []byte(requests[0])
	if len(requests) > 1 {
		frames = slices.Concat(requests...)
	}
	if err := t.write(frames, now.Add(t.o.writeLimit)); err != nil {
		t.fail()
		t.Conn.Close() // the library's goroutines notice
		return nil, errLost
	}
	return calls, nil
}

// number returns a free xid. The caller holds mu.
func (t *tap) number() int32 {
	for {
		if t.xid++; t.xid < firstXid { // the first, or one too many
			t.xid = firstXid
		}
		if t.ours[t.xid] == nil {
			return t.xid
		}
	}
}

// wait returns the body of the reply. It blocks until that has come, ctx is done, or the connection has ended.
func (c *call) wait(ctx context.Context) ([]byte, error) {
	select {
	case a := <-c.reply:
		return a.body, a.err
	case <-ctx.Done():
		return nil, ctx.Err()
	}
}

// overtaken reports whether a request has been waiting for longer than limit although one that was sent after it has
// been answered. A server answers in order, so that its reply will not come any more.
func (t *tap) overtaken(now time.Time, limit time.Duration) bool {
	t.mu.Lock()
	defer t.mu.Unlock()
	lost := func(at time.Time) bool { return now.Sub(at) > limit && at.Before(t.latest) }
	for _, c := range t.ours {
		if lost(c.at) {
			return true
		}
	}
	for _, r := range t.theirs {
		if lost(r.at) {
			return true
		}
	}
	return false
}
