package zookeeper

import (
	"context"
	"encoding/binary"
	"errors"
	"io"
	"net"
	"os"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/go-zookeeper/zk"
	"github.com/stretchr/testify/require"
)

// pair is a tap and the server's end of it.
type pair struct {
	*tap
	server   net.Conn
	shaken   []handshake
	events   []event
	received atomic.Uint64
	zxid     atomic.Int64
}

func newPair(t testing.TB, limit time.Duration, resume credentials, logins ...Login) *pair {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	require.NoError(t, err)
	defer l.Close()
	c, err := net.Dial("tcp", l.Addr().String())
	require.NoError(t, err)
	p := &pair{}
	p.server, err = l.Accept()
	require.NoError(t, err)
	p.tap = newTap(c, tapOptions{
		limit: limit, writeLimit: time.Minute, resume: resume, logins: logins, received: &p.received, zxid: &p.zxid,
		shaken: func(h handshake) { p.shaken = append(p.shaken, h) },
		event:  func(ev event) { p.events = append(p.events, ev) },
	})
	t.Cleanup(func() { p.tap.Close(); p.server.Close() })
	return p
}

// connectRequest is what the library writes first.
func connectRequest(session int64, password byte) []byte {
	b := binary.BigEndian.AppendUint32(nil, 44)
	b = binary.BigEndian.AppendUint32(b, 0)
	b = binary.BigEndian.AppendUint64(b, 77)
	b = binary.BigEndian.AppendUint32(b, 6000)
	b = binary.BigEndian.AppendUint64(b, uint64(session))
	b = binary.BigEndian.AppendUint32(b, 16)
	for range 16 {
		b = append(b, password)
	}
	return b
}

// connectResponse is what the server answers; newer ones add a byte.
func connectResponse(session int64, extra ...byte) []byte {
	b := binary.BigEndian.AppendUint32(nil, uint32(36+len(extra)))
	b = binary.BigEndian.AppendUint32(b, 0)
	b = binary.BigEndian.AppendUint32(b, 4000)
	b = binary.BigEndian.AppendUint64(b, uint64(session))
	b = binary.BigEndian.AppendUint32(b, 16)
	b = append(b, "sixteen letters."...)
	return append(b, extra...)
}

// theirs is a request as the library writes it.
func theirs(xid, op int32) []byte {
	r := newRequest(op, 0)
	r.seal(xid)
	return r
}

// answer has the server send bytes.
func (p *pair) answer(t testing.TB, frames ...[]byte) {
	t.Helper()
	for _, f := range frames {
		_, err := p.server.Write(f)
		require.NoError(t, err)
	}
}

// frame reads one frame as the library does.
func (p *pair) frame(t testing.TB) []byte {
	t.Helper()
	b := make([]byte, 4)
	_, err := io.ReadFull(p.tap, b)
	require.NoError(t, err)
	b = append(b, make([]byte, binary.BigEndian.Uint32(b))...)
	_, err = io.ReadFull(p.tap, b[4:])
	require.NoError(t, err)
	return b
}

// sent reads one frame that reaches the server.
func (p *pair) sent(t testing.TB) []byte {
	t.Helper()
	b := make([]byte, 4)
	_, err := io.ReadFull(p.server, b)
	require.NoError(t, err)
	b = append(b, make([]byte, binary.BigEndian.Uint32(b))...)
	_, err = io.ReadFull(p.server, b[4:])
	require.NoError(t, err)
	return b
}

// one sends one request.
func (p *pair) one(most int, r request) (*call, error) {
	calls, err := p.tap.send(most, r)
	if err != nil {
		return nil, err
	}
	return calls[0], nil
}

func (p *pair) shake(t testing.TB, extra ...byte) {
	t.Helper()
	_, err := p.Write(connectRequest(0, 1))
	require.NoError(t, err)
	p.sent(t)
	p.answer(t, connectResponse(9, extra...))
	require.Equal(t, connectResponse(9, extra...), p.frame(t), "the library sees what the server sent")
}

func TestTapHandshake(t *testing.T) {
	for _, extra := range [][]byte{nil, {0}} {
		p := newPair(t, time.Minute, credentials{})
		p.shake(t, extra...)
		require.Len(t, p.shaken, 1)
		require.EqualValues(t, 9, p.shaken[0].session)
		require.Equal(t, 4*time.Second, p.shaken[0].timeout)
		require.Equal(t, "sixteen letters.", string(p.shaken[0].password[:]))
		require.EqualValues(t, 40+len(extra), p.received.Load())
	}
}

// TestTapDeadline: the library's own deadlines do not stretch the handshake, and rule after it.
func TestTapDeadline(t *testing.T) {
	p := newPair(t, 50*time.Millisecond, credentials{})
	require.NoError(t, p.SetReadDeadline(time.Now().Add(time.Hour)))
	_, err := p.Read(make([]byte, 4))
	require.ErrorIs(t, err, os.ErrDeadlineExceeded)

	p = newPair(t, 50*time.Millisecond, credentials{})
	p.answer(t, connectResponse(9)[:10])
	require.NoError(t, p.SetReadDeadline(time.Time{})) // as the library does before the rest of the answer
	_, err = io.ReadFull(p, make([]byte, 4))
	require.ErrorIs(t, err, os.ErrDeadlineExceeded)

	// A login that is not answered is part of it.
	p = newPair(t, 50*time.Millisecond, credentials{}, Login{Scheme: "digest", Credentials: []byte("u:p")})
	require.NoError(t, p.SetReadDeadline(time.Time{}))
	p.answer(t, connectResponse(9))
	_, err = io.ReadFull(p, make([]byte, 4))
	require.ErrorIs(t, err, os.ErrDeadlineExceeded)

	p = newPair(t, time.Minute, credentials{})
	p.shake(t)
	require.NoError(t, p.SetReadDeadline(time.Now().Add(-time.Second)))
	_, err = p.Read(make([]byte, 4))
	require.ErrorIs(t, err, os.ErrDeadlineExceeded)
}

func TestTapRefusesForeignAnswers(t *testing.T) {
	for _, answer := range []string{"HTTP/1.1 400", "\x15\x03\x03\x00\x02", "\x00\x00\x00\x00", "\x00\x00\x00\x23", "\x00\x00\x04\x01", "\xff\xff\xff\xff",
		"\x00\x00\x00\x24" + "0000" + "1111" + "22222222" + "\x00\x00\x00\x0f" + "sixteen letters.",
		// A session without a timeout: the library would panic.
		"\x00\x00\x00\x24" + "0000" + "\x00\x00\x00\x00" + "22222222" + "\x00\x00\x00\x10" + "sixteen letters.",
		"\x00\x00\x00\x24" + "0000" + "\xff\xff\xff\xff" + "22222222" + "\x00\x00\x00\x10" + "sixteen letters."} {
		p := newPair(t, time.Minute, credentials{})
		p.answer(t, []byte(answer))
		_, err := io.ReadFull(p, make([]byte, 4))
		require.ErrorContains(t, err, "no ConnectResponse", "%q", answer)
		require.Empty(t, p.shaken)
	}
}

// TestTapCompletesTheConnectRequest: a stored session goes into the request for a new one, and into no other; the
// highest zxid seen replaces a lower one; and the read-only flag is there.
func TestTapCompletesTheConnectRequest(t *testing.T) {
	stored := credentials{session: 42, password: [16]byte([]byte("stored password!"))}
	for session, want := range map[int64]int64{0: 42, 7: 7} {
		for zxid, seen := range map[int64]int64{0: 77, 76: 77, 500: 500} {
			p := newPair(t, time.Minute, stored)
			p.zxid.Store(zxid)
			original := connectRequest(session, 1)
			written := append([]byte(nil), original...)
			n, err := p.Write(written)
			require.NoError(t, err)
			require.Equal(t, len(original), n)
			require.Equal(t, original, written, "the caller's buffer is not touched")
			got := p.sent(t)
			require.Len(t, got, connectRequestLen+1)
			require.Zero(t, got[48])
			require.EqualValues(t, seen, binary.BigEndian.Uint64(got[8:16]))
			require.EqualValues(t, want, binary.BigEndian.Uint64(got[20:28]))
			require.Equal(t, original[16:20], got[16:20])
			require.Equal(t, want == 42, string(got[32:48]) == "stored password!")
		}
	}
}

// TestTapLogin: the library hears of the session when the logins are made, and not at all when one is refused.
func TestTapLogin(t *testing.T) {
	login := Login{Scheme: "digest", Credentials: []byte("user:secret")}
	p := newPair(t, time.Minute, credentials{}, login, Login{Scheme: "other", Credentials: []byte("x")})
	_, err := p.Write(connectRequest(0, 1))
	require.NoError(t, err)
	p.sent(t)
	p.answer(t, connectResponse(9))
	done := make(chan []byte)
	go func() { done <- p.frame(t) }()
	require.Equal(t, []byte(authRequest("digest", []byte("user:secret"))), p.sent(t))
	p.answer(t, replyFrame(xidAuth, 5, 0, nil))
	require.Equal(t, []byte(authRequest("other", []byte("x"))), p.sent(t))
	select {
	case <-done:
		t.Fatal("the library sees a session that is not logged in")
	default:
	}
	p.answer(t, replyFrame(xidAuth, 5, 0, nil))
	require.Equal(t, connectResponse(9), <-done)

	p = newPair(t, time.Minute, credentials{}, login)
	p.answer(t, connectResponse(9), replyFrame(xidAuth, 0, codeAuthFailed, nil))
	_, err = p.Read(make([]byte, 4))
	require.ErrorIs(t, err, zk.ErrAuthFailed)
	require.ErrorContains(t, err, "log in with digest")
	require.NotContains(t, err.Error(), "secret")

	p = newPair(t, time.Minute, credentials{}, login) // an expired session has nobody to log in
	p.answer(t, connectResponse(0))
	require.Equal(t, connectResponse(0), p.frame(t))
}

// TestTapInjects: our requests go between the library's, and each side gets its own answers, however the bytes come.
func TestTapInjects(t *testing.T) {
	p := newPair(t, time.Minute, credentials{})
	p.shake(t)
	ours, err := p.one(100, pathRequest(opGetData, "/a", true))
	require.NoError(t, err)
	first := p.sent(t)
	xid := int32(binary.BigEndian.Uint32(first[4:]))
	require.GreaterOrEqual(t, xid, int32(firstXid))
	require.Equal(t, "\x00\x00\x00\x04\x00\x00\x00\x02/a\x01", string(first[8:]))
	_, err = p.Write(theirs(3, 1))
	require.NoError(t, err)
	require.Equal(t, theirs(3, 1), p.sent(t))

	var frames []byte
	for _, f := range [][]byte{
		eventFrame(zk.EventNodeDataChanged, "/a"),
		replyFrame(xid, 1000, 0, []byte("the body")),
		replyFrame(firstXid+999, 1001, 0, []byte("for nobody")),
		replyFrame(3, 900, 0, []byte("/theirs")),
		replyFrame(xidPing, 900, 0, nil),
	} {
		frames = append(frames, f...)
	}
	var writing sync.WaitGroup
	writing.Go(func() {
		for part := range chunks(frames, 3) {
			p.answer(t, part)
		}
	})
	require.Equal(t, replyFrame(3, 900, 0, []byte("/theirs")), p.frame(t))
	require.Equal(t, replyFrame(xidPing, 900, 0, nil), p.frame(t))
	writing.Wait()
	body, err := ours.wait(context.Background())
	require.NoError(t, err)
	require.Equal(t, "the body", string(body))
	require.Equal(t, []event{{zk.EventNodeDataChanged, "/a"}}, p.events)
	require.EqualValues(t, 1001, p.zxid.Load())
}

// TestTapAnswers: what a reply says is what its request gets, and one that is too large costs only that request.
func TestTapAnswers(t *testing.T) {
	p := newPair(t, time.Minute, credentials{})
	p.shake(t)
	var calls []*call
	for range 4 {
		c, err := p.one(10, syncRequest("/"))
		require.NoError(t, err)
		calls = append(calls, c)
		p.sent(t)
	}
	p.answer(t, replyFrame(firstXid, 1, codeNoNode, nil), replyFrame(firstXid+1, 1, codeUnimplemented, []byte("ignored")),
		replyFrame(firstXid+2, 1, 0, make([]byte, 11)), replyFrame(firstXid+3, 1, 0, make([]byte, 10)), replyFrame(xidPing, 1, 0, nil))
	p.frame(t)
	for i, want := range []error{zk.ErrNoNode, errUnimplemented, errTooLarge, nil} {
		body, err := calls[i].wait(context.Background())
		require.ErrorIs(t, err, want)
		require.Equal(t, err == nil, body != nil)
	}

	// Who does not wait any more is no obstacle.
	c, err := p.one(10, syncRequest("/"))
	require.NoError(t, err)
	ctx, cancel := context.WithCancel(context.Background())
	cancel()
	_, err = c.wait(ctx)
	require.ErrorIs(t, err, context.Canceled)
	p.answer(t, replyFrame(firstXid+4, 1, 0, nil), replyFrame(xidPing, 1, 0, nil))
	p.frame(t)
}

// TestTapEnds: whoever waits when the connection ends is told, and nobody waits on one that has ended.
func TestTapEnds(t *testing.T) {
	for name, end := range map[string]func(*pair){
		"closed by us":    func(p *pair) { p.tap.Close() },
		"by the server":   func(p *pair) { p.server.Close() },
		"by a bad length": func(p *pair) { p.answer(t, []byte{0, 0, 0, 3}, make([]byte, 20)) },
		"by a bad event":  func(p *pair) { p.answer(t, replyFrame(xidEvent, 1, 0, make([]byte, 13))) },
		"in the middle":   func(p *pair) { p.answer(t, replyFrame(firstXid, 1, 0, make([]byte, 100))[:50]); p.server.Close() },
	} {
		p := newPair(t, time.Minute, credentials{})
		p.shake(t)
		c, err := p.one(1000, syncRequest("/"))
		require.NoError(t, err)
		p.sent(t)
		end(p)
		_, err = io.ReadFull(p, make([]byte, 4))
		require.Error(t, err, name)
		_, err = c.wait(context.Background())
		require.ErrorIs(t, err, errLost, name)
		_, err = p.one(1000, syncRequest("/"))
		require.ErrorIs(t, err, errLost, name)
	}
}

// TestTapOvertaken: a request is lost when a later one has been answered, and not while a server is merely slow.
func TestTapOvertaken(t *testing.T) {
	p := newPair(t, time.Minute, credentials{})
	p.shake(t)
	soon := func() time.Time { return time.Now().Add(time.Hour) }
	_, err := p.one(1000, syncRequest("/"))
	require.NoError(t, err)
	require.False(t, p.overtaken(soon(), time.Minute), "nothing is answered")
	_, err = p.Write(theirs(xidPing, 11))
	require.NoError(t, err)
	p.answer(t, replyFrame(xidPing, 1, 0, nil))
	p.frame(t)
	require.False(t, p.overtaken(time.Now(), time.Minute), "not yet")
	require.True(t, p.overtaken(soon(), time.Minute))
	p.answer(t, replyFrame(firstXid, 1, 0, nil), replyFrame(xidPing, 1, 0, nil))
	p.frame(t)
	require.False(t, p.overtaken(soon(), time.Minute), "it was only slow")

	_, err = p.Write(theirs(3, 1))
	require.NoError(t, err)
	c, err := p.one(1000, syncRequest("/"))
	require.NoError(t, err)
	p.answer(t, replyFrame(firstXid+1, 1, 0, nil), replyFrame(xidPing, 1, 0, nil))
	p.frame(t)
	_, err = c.wait(context.Background())
	require.NoError(t, err)
	require.True(t, p.overtaken(soon(), time.Minute), "the library's requests count as well")
}

// TestTapKeepsReadingAlive: what comes for us is a sign of life for the library's read, whose deadline else would pass.
func TestTapKeepsReadingAlive(t *testing.T) {
	p := newPair(t, time.Minute, credentials{})
	p.shake(t)
	const limit = 300 * time.Millisecond
	require.NoError(t, p.SetReadDeadline(time.Now().Add(limit)))
	done := make(chan error, 1)
	go func() {
		_, err := p.Read(make([]byte, 4))
		done <- err
	}()
	for range 10 { // over more than the limit
		time.Sleep(limit / 5)
		p.answer(t, eventFrame(zk.EventNodeCreated, "/a"))
	}
	p.answer(t, replyFrame(xidPing, 1, 0, nil))
	require.NoError(t, <-done)
}

// FuzzTap: whatever a server sends, reading ends without a panic, the library gets whole frames of its own and nothing
// else, and nobody is left waiting.
func FuzzTap(f *testing.F) {
	stream := connectResponse(9)
	stream = append(stream, eventFrame(zk.EventNodeDeleted, "/a/b")...)
	stream = append(stream, replyFrame(firstXid, 10, 0, []byte("answer"))...)
	stream = append(stream, replyFrame(5, 10, 0, []byte("/created"))...)
	f.Add(stream, uint8(4))
	f.Add(connectResponse(0, 0), uint8(1))
	f.Add([]byte("HTTP/1.1 400 Bad Request"), uint8(7))
	f.Add(append(connectResponse(9), 0x7f, 0xff, 0xff, 0xff, 0, 0, 0, 0), uint8(0))
	f.Fuzz(func(t *testing.T, stream []byte, step uint8) {
		client, server := net.Pipe()
		defer client.Close()
		go func() {
			defer server.Close()
			for part := range chunks(stream, int(step)%16+1) {
				if _, err := server.Write(part); err != nil {
					return
				}
			}
		}()
		tp := newTap(client, tapOptions{
			limit: time.Minute, writeLimit: time.Minute, zxid: new(atomic.Int64), received: new(atomic.Uint64),
			shaken: func(handshake) {}, event: func(ev event) { _ = len(ev.path) },
		})
		waiting := &call{most: 1000, reply: make(chan answer, 1)}
		tp.ours[firstXid] = waiting
		got, _ := io.ReadAll(readerOnly{tp})
		for n := 0; len(got) > 0; n++ {
			if len(got) < 4 || len(got) < 4+int(binary.BigEndian.Uint32(got)) {
				t.Fatalf("half a frame: % x", got)
			}
			if xid := int32(binary.BigEndian.Uint32(got[4:])); n > 0 && (xid >= firstXid || xid == xidEvent) {
				t.Fatalf("a frame that is not the library's: % x", got)
			}
			got = got[4+binary.BigEndian.Uint32(got):]
		}
		<-waiting.reply
	})
}

type readerOnly struct{ io.Reader }

// FuzzParse: no body of a reply makes the parsers panic, or believe more than there is.
func FuzzParse(f *testing.F) {
	f.Add(appendEnd(appendFailedRead(appendRead(nil, []byte("data"), zk.Stat{Pzxid: 3}), codeNoNode)), uint8(2))
	f.Add(appendStat(request(nil).int32(2).string("a").string("b"), zk.Stat{}), uint8(0))
	f.Fuzz(func(t *testing.T, body []byte, n uint8) {
		seen := 0
		err := parseMultiRead(body, int(n), func(i int, r reading, err error) {
			if i != seen || len(r.data) > len(body) {
				t.Fatalf("result %d after %d", i, seen)
			}
			seen++
		})
		if err == nil && seen != int(n) {
			t.Fatalf("%d results of %d, and no error", seen, n)
		}
		if ls, err := parseListing(body); err == nil && len(ls.names)*4+statLen+4 > len(body) {
			t.Fatalf("%d names in %d bytes", len(ls.names), len(body))
		}
		_, _ = parseReading(body)
		_, _ = parseStat(body)
		_, _ = parseEvent(body)
		_, _ = parseConnectResponse(body)
	})
}

func chunks(b []byte, n int) func(func([]byte) bool) {
	return func(yield func([]byte) bool) {
		for len(b) > 0 {
			part := b[:min(n, len(b))]
			b = b[len(part):]
			if !yield(part) {
				return
			}
		}
	}
}

// halting writes only half of a frame once, as a connection does whose buffers are full until the deadline.
type halting struct {
	net.Conn
	armed atomic.Bool
}

func (h *halting) Write(p []byte) (int, error) {
	if h.armed.Swap(false) {
		n, err := h.Conn.Write(p[:len(p)/2])
		return n, errors.Join(err, os.ErrDeadlineExceeded)
	}
	return h.Conn.Write(p)
}

// TestTapHalfWritten: after half a frame nothing more is written. The server would take it for the other half.
func TestTapHalfWritten(t *testing.T) {
	for name, first := range map[string]func(*pair) error{
		"of the library's": func(p *pair) error { _, err := p.Write(theirs(5, 1)); return err },
		"of ours":          func(p *pair) error { _, err := p.one(1000, syncRequest("/")); return err },
	} {
		p := newPair(t, time.Minute, credentials{})
		p.shake(t)
		h := &halting{Conn: p.tap.Conn}
		p.tap.Conn = h
		h.armed.Store(true)
		require.Error(t, first(p), name)
		_, err := p.one(1000, syncRequest("/"))
		require.ErrorIs(t, err, errLost, name)
		_, err = p.Write(theirs(6, 1))
		require.Error(t, err, name)
		got, _ := io.ReadAll(p.server)
		require.Less(t, len(got), len(syncRequest("/")), name)
	}
}

// TestTapChecksMulti: the library would panic on a multi's reply that is cut short in a bad place.
func TestTapChecksMulti(t *testing.T) {
	good := appendStat(request(nil).int32(opSetData).bool(false).int32(0), zk.Stat{Version: 3})
	good = request(good).int32(opDelete).bool(false).int32(0).int32(opCheck).bool(false).int32(0)
	good = request(good).int32(opCreate).bool(false).int32(0).string("/a").int32(-1).bool(false).int32(0).int32(-2)
	good = appendEnd(good)
	const xid = 5
	reply := func(code int32, body []byte) ([]byte, error) {
		p := newPair(t, time.Minute, credentials{})
		p.shake(t)
		_, err := p.Write(theirs(xid, opMulti))
		require.NoError(t, err)
		p.answer(t, replyFrame(xid, 1, code, body))
		got := make([]byte, 4+replyLen+len(body))
		_, err = io.ReadFull(p, got)
		return got, err
	}
	got, err := reply(0, good)
	require.NoError(t, err)
	require.Equal(t, replyFrame(xid, 1, 0, good), got)
	_, err = reply(codeNoNode, nil)
	require.NoError(t, err, "an error has no body")
	for n := range good {
		_, err := reply(0, good[:n])
		require.ErrorIs(t, err, errMalformed, "%d bytes", n)
	}
	_, err = reply(0, appendEnd(request(nil).int32(opSync).bool(false).int32(0)))
	require.ErrorIs(t, err, errMalformed, "an operation that no multi has")
}
