package zookeeper

import (
	"encoding/binary"
	"errors"
	"io"
	"net"
	"os"
	"sync/atomic"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
)

// pair is a wire and the server's end of it.
type pair struct {
	*wire
	server   net.Conn
	shaken   []handshake
	received atomic.Uint64
}

func newPair(t testing.TB, limit, hold time.Duration, resume credentials, watching bool) *pair {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	require.NoError(t, err)
	defer l.Close()
	c, err := net.Dial("tcp", l.Addr().String())
	require.NoError(t, err)
	p := &pair{}
	p.server, err = l.Accept()
	require.NoError(t, err)
	p.wire = newWire(c, limit, hold, resume, func() bool { return watching }, func(h handshake) { p.shaken = append(p.shaken, h) }, &p.received)
	t.Cleanup(func() { p.wire.Close(); p.server.Close() })
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

func request(operation int32) []byte {
	b := binary.BigEndian.AppendUint32(nil, 8)
	b = binary.BigEndian.AppendUint32(b, 5)
	return binary.BigEndian.AppendUint32(b, uint32(operation))
}

func (p *pair) shake(t testing.TB, session int64, extra ...byte) {
	t.Helper()
	_, err := p.Write(connectRequest(session, 1))
	require.NoError(t, err)
	_, err = io.ReadFull(p.server, make([]byte, connectRequestLen))
	require.NoError(t, err)
	_, err = p.server.Write(connectResponse(9, extra...))
	require.NoError(t, err)
	answer := make([]byte, 40+len(extra))
	_, err = io.ReadFull(p, answer[:4]) // as the library reads
	require.NoError(t, err)
	_, err = io.ReadFull(p, answer[4:])
	require.NoError(t, err)
	require.Equal(t, connectResponse(9, extra...), answer, "the library sees what the server sent")
}

func TestWireHandshake(t *testing.T) {
	for _, extra := range [][]byte{nil, {0}} {
		p := newPair(t, time.Minute, time.Minute, credentials{}, true)
		p.shake(t, 0, extra...)
		require.Len(t, p.shaken, 1)
		require.EqualValues(t, 9, p.shaken[0].session)
		require.Equal(t, 4*time.Second, p.shaken[0].timeout)
		require.Equal(t, "sixteen letters.", string(p.shaken[0].password[:]))
		require.EqualValues(t, 40+len(extra), p.received.Load())
		require.Nil(t, p.gate, "a new session has no watches to set again")
	}
}

// TestWireDeadline: the library's own deadlines do not stretch the handshake, and rule after it.
func TestWireDeadline(t *testing.T) {
	p := newPair(t, 50*time.Millisecond, time.Minute, credentials{}, false)
	require.NoError(t, p.SetReadDeadline(time.Now().Add(time.Hour)))
	_, err := p.Read(make([]byte, 4))
	require.ErrorIs(t, err, os.ErrDeadlineExceeded)

	p = newPair(t, 50*time.Millisecond, time.Minute, credentials{}, false)
	_, err = p.server.Write(connectResponse(9)[:10])
	require.NoError(t, err)
	_, err = io.ReadFull(p, make([]byte, 4))
	require.NoError(t, err)
	require.NoError(t, p.SetReadDeadline(time.Time{})) // as the library does before the rest of the answer
	_, err = io.ReadFull(p, make([]byte, 36))
	require.ErrorIs(t, err, os.ErrDeadlineExceeded)

	p = newPair(t, time.Minute, time.Minute, credentials{}, false)
	p.shake(t, 0)
	require.NoError(t, p.SetReadDeadline(time.Now().Add(-time.Second)))
	_, err = p.Read(make([]byte, 4))
	require.ErrorIs(t, err, os.ErrDeadlineExceeded)
	require.NoError(t, p.SetReadDeadline(time.Time{}))
	_, err = p.server.Write([]byte("more"))
	require.NoError(t, err)
	_, err = io.ReadFull(p, make([]byte, 4))
	require.NoError(t, err)
}

func TestWireRefusesForeignAnswers(t *testing.T) {
	for _, answer := range []string{"HTTP/1.1 400", "\x15\x03\x03\x00\x02", "\x00\x00\x00\x00", "\x00\x00\x00\x23", "\x00\x00\x04\x01", "\xff\xff\xff\xff"} {
		p := newPair(t, time.Minute, time.Minute, credentials{}, false)
		_, err := p.server.Write([]byte(answer))
		require.NoError(t, err)
		_, err = io.ReadFull(p, make([]byte, 4))
		require.ErrorContains(t, err, "no ConnectResponse", "%q", answer)
		require.Empty(t, p.shaken)
	}
}

// TestWireResumes: a stored session goes into the request for a new one, and into no other.
func TestWireResumes(t *testing.T) {
	stored := credentials{session: 42, password: [16]byte([]byte("stored password!"))}
	for session, want := range map[int64]int64{0: 42, 7: 7} {
		p := newPair(t, time.Minute, time.Minute, stored, false)
		original := connectRequest(session, 1)
		written := append([]byte(nil), original...)
		_, err := p.Write(written)
		require.NoError(t, err)
		require.Equal(t, original, written, "the caller's buffer is not touched")
		got := make([]byte, connectRequestLen)
		_, err = io.ReadFull(p.server, got)
		require.NoError(t, err)
		require.EqualValues(t, want, binary.BigEndian.Uint64(got[20:28]))
		require.Equal(t, original[:20], got[:20])
		require.Equal(t, want == 42, string(got[32:48]) == "stored password!")
	}
}

// TestWireHoldsRepliesBack until the watches are being set again.
func TestWireHoldsRepliesBack(t *testing.T) {
	read := func(p *pair) chan error {
		done := make(chan error, 1)
		go func() {
			_, err := io.ReadFull(p, make([]byte, 4))
			done <- err
		}()
		return done
	}
	p := newPair(t, time.Minute, time.Hour, credentials{}, true)
	p.shake(t, 9)
	_, err := p.server.Write([]byte("soon"))
	require.NoError(t, err)
	_, err = p.Write(request(4)) // another request does not open the gate
	require.NoError(t, err)
	done := read(p)
	select {
	case <-done:
		t.Fatal("a reply got through before SetWatches")
	case <-time.After(50 * time.Millisecond):
	}
	_, err = p.Write(request(opSetWatches))
	require.NoError(t, err)
	require.NoError(t, <-done)
	_, err = p.Write(request(opSetWatches)) // the second of several
	require.NoError(t, err)
	_, err = p.server.Write([]byte("more"))
	require.NoError(t, err)
	require.NoError(t, <-read(p))

	// All watches have fired: the library sets none, and goes on after a while.
	p = newPair(t, time.Minute, time.Millisecond, credentials{}, true)
	p.shake(t, 9)
	_, err = p.server.Write([]byte("soon"))
	require.NoError(t, err)
	require.NoError(t, <-read(p))

	// A connection that ends meanwhile holds nobody.
	p = newPair(t, time.Minute, time.Hour, credentials{}, true)
	p.shake(t, 9)
	done = read(p)
	require.NoError(t, p.Close())
	require.Error(t, <-done)

	// Without watches, and for a session that is not the one asked for, nothing is held.
	for _, q := range []*pair{newPair(t, time.Minute, time.Hour, credentials{}, false), newPair(t, time.Minute, time.Hour, credentials{}, true)} {
		q.shake(t, map[bool]int64{false: 9, true: 8}[q.watching()])
		require.Nil(t, q.gate)
	}
}

// FuzzWire: whatever a server answers, the handshake ends without a panic, and only a ConnectResponse is one.
func FuzzWire(f *testing.F) {
	f.Add(connectResponse(9), uint8(4))
	f.Add(connectResponse(0, 0), uint8(1))
	f.Add([]byte("HTTP/1.1 400 Bad Request"), uint8(7))
	f.Fuzz(func(t *testing.T, answer []byte, step uint8) {
		client, server := net.Pipe()
		defer client.Close()
		go func() {
			defer server.Close()
			for part := range chunks(answer, int(step)%16+1) {
				if _, err := server.Write(part); err != nil {
					return
				}
			}
		}()
		shaken := 0
		w := newWire(client, time.Minute, time.Millisecond, credentials{}, func() bool { return true }, func(handshake) { shaken++ }, &atomic.Uint64{})
		var got []byte
		buf := make([]byte, 16)
		for {
			n, err := w.Read(buf)
			got = append(got, buf[:n]...)
			if err != nil {
				if shaken > 1 || shaken == 1 && len(got) < 40 {
					t.Fatalf("%d handshakes in %d bytes", shaken, len(got))
				}
				if errors.Is(err, io.EOF) && string(got) != string(answer) {
					t.Fatalf("read % x of % x", got, answer)
				}
				return
			}
		}
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

func TestParseHosts(t *testing.T) {
	got, err := parseHosts([]string{"zk1, zk2:2182,", "::1", "[::1]:99", "10.0.0.1", "fe80::2:2181"})
	require.NoError(t, err)
	require.Equal(t, []string{"zk1:2181", "zk2:2182", "[::1]:2181", "[::1]:99", "10.0.0.1:2181", "[fe80::2:2181]:2181"}, got)
	for _, bad := range []string{"", " , ", "zk1:2181/chroot", "zk1:0", "zk1:65536", "zk1:http", ":2181", "a:b:c"} {
		_, err := parseHosts([]string{bad})
		require.Error(t, err, bad)
	}
}

// TestProvider goes round the hosts, and says so only when the connection is to end.
func TestProvider(t *testing.T) {
	done := make(chan struct{})
	p := newProvider([]string{"a", "b", "c"}, done)
	require.Equal(t, 3, p.Len())
	seen := map[string]int{}
	for range 9 {
		host, round := p.Next()
		require.False(t, round)
		seen[host]++
	}
	require.Equal(t, map[string]int{"a": 3, "b": 3, "c": 3}, seen)
	close(done)
	_, round := p.Next()
	require.True(t, round)
}

func TestPace(t *testing.T) {
	require.Zero(t, pace(0, 12*time.Second, 0.99))
	for attempt := 1; attempt < 100; attempt++ {
		for _, fraction := range []float64{0, 0.5, 0.999} {
			d := pace(attempt, 12*time.Second, fraction)
			require.GreaterOrEqual(t, d, 10*time.Millisecond, "never a storm of dials")
			require.LessOrEqual(t, d, 2*time.Second)
			require.LessOrEqual(t, pace(attempt, 4*time.Second, fraction), time.Second, "a quarter of the session timeout")
		}
		require.GreaterOrEqual(t, pace(attempt+1, 0, 0.5), pace(attempt, 0, 0.5))
	}
	require.Equal(t, 50*time.Millisecond, pace(1, 12*time.Second, 0.5))
	require.Equal(t, 100*time.Millisecond, pace(2, 12*time.Second, 0.5))
}

func TestExplain(t *testing.T) {
	for line, want := range map[string]string{
		"authentication failed: EOF": "has no quorum",
		"authentication failed: read tcp 127.0.0.1:1->127.0.0.1:2: read: connection reset by peer": "has no quorum",
		"authentication failed: read tcp 127.0.0.1:1->127.0.0.1:2: i/o timeout":                    "did not answer",
		"authentication failed: zk: session has been expired by the server":                        "the session has expired",
		"failed to connect to a:1: dial tcp: connection refused":                                   "failed to connect to a:1: dial tcp: connection refused",
		"recv loop terminated: EOF": "EOF",
	} {
		require.True(t, failed(line), line)
		require.Contains(t, explain(line), want)
	}
	for _, line := range []string{"connected to 127.0.0.1:1", "authenticated: id=1, timeout=4000", "send loop terminated: <nil>", "re-submitting `0` credentials after reconnect"} {
		require.False(t, failed(line), line)
	}
}
