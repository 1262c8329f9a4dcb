package zookeeper

import (
	"encoding/binary"
	"io"
	"net"
	"sync/atomic"
	"testing"
	"time"

	"github.com/go-zookeeper/zk"
)

// answering returns a session, and an epoch of it whose server answers each request with what reply makes of it: the
// answers that a real server does not give on demand.
func answering(t testing.TB, o Options, reply func(op int32, body []byte) (int32, []byte)) (*Session, *epoch) {
	t.Helper()
	o.Hosts = []string{"127.0.0.1:1"}
	s := New(o)
	t.Cleanup(s.Close)
	return s, answeringEpoch(t, s, 1, reply)
}

// answeringEpoch is one more connection of such a session, of the same session at the server.
func answeringEpoch(t testing.TB, s *Session, gen uint64, reply func(op int32, body []byte) (int32, []byte)) *epoch {
	t.Helper()
	client, server := net.Pipe()
	tp := newTap(client, tapOptions{
		limit: time.Minute, writeLimit: time.Minute, zxid: new(atomic.Int64), received: new(atomic.Uint64),
		shaken: func(handshake) {}, event: s.route,
	})
	tp.done = true
	go serve(server, reply)
	go func() { // as the library reads
		for buf := make([]byte, 64); ; {
			if _, err := tp.Read(buf); err != nil {
				return
			}
		}
	}()
	t.Cleanup(func() { tp.Close(); server.Close() })
	e := &epoch{gen: gen, session: 7, tap: tp, down: make(chan struct{}), current: make(chan bool, 1)}
	e.current <- true
	return e
}

// establish puts a connection in the place of the one before, if there is one.
func establish(s *Session, e *epoch) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.up != nil {
		s.up.tap.Close()
		close(s.up.down)
	}
	s.up = e
	for _, boxes := range s.routes {
		for b := range boxes {
			b.connected(e)
		}
	}
}

func serve(server net.Conn, reply func(op int32, body []byte) (int32, []byte)) {
	for {
		var prefix [4]byte
		if _, err := io.ReadFull(server, prefix[:]); err != nil {
			return
		}
		frame := make([]byte, binary.BigEndian.Uint32(prefix[:]))
		if _, err := io.ReadFull(server, frame); err != nil {
			return
		}
		p := parser{b: frame}
		xid, op := p.int32(), p.int32()
		code, body := reply(op, p.b)
		if _, err := server.Write(replyFrame(xid, 100, code, body)); err != nil {
			return
		}
	}
}

func replyFrame(xid int32, zxid int64, code int32, body []byte) []byte {
	b := binary.BigEndian.AppendUint32(nil, uint32(replyLen+len(body)))
	b = binary.BigEndian.AppendUint32(b, uint32(xid))
	b = binary.BigEndian.AppendUint64(b, uint64(zxid))
	b = binary.BigEndian.AppendUint32(b, uint32(code))
	return append(b, body...)
}

func eventFrame(kind zk.EventType, path string) []byte {
	body := request(nil).int32(int32(kind)).int32(3).string(path)
	return replyFrame(xidEvent, -1, 0, body)
}

// readsOf returns the paths of a multiRead.
func readsOf(t testing.TB, body []byte) (paths []string) {
	t.Helper()
	p := parser{b: body}
	for {
		op := p.int32()
		done := p.bool()
		p.int32()
		if done {
			break
		}
		if op != opGetData {
			t.Fatalf("a multiRead of operation %d", op)
		}
		paths = append(paths, p.string())
		p.bool()
	}
	if err := p.end(); err != nil {
		t.Fatal(err)
	}
	return paths
}

func appendStat(b []byte, st zk.Stat) []byte {
	for _, v := range []int64{st.Czxid, st.Mzxid, st.Ctime, st.Mtime} {
		b = binary.BigEndian.AppendUint64(b, uint64(v))
	}
	for _, v := range []int32{st.Version, st.Cversion, st.Aversion} {
		b = binary.BigEndian.AppendUint32(b, uint32(v))
	}
	b = binary.BigEndian.AppendUint64(b, uint64(st.EphemeralOwner))
	b = binary.BigEndian.AppendUint32(b, uint32(st.DataLength))
	b = binary.BigEndian.AppendUint32(b, uint32(st.NumChildren))
	return binary.BigEndian.AppendUint64(b, uint64(st.Pzxid))
}

// appendRead is one good result of a multiRead.
func appendRead(b, data []byte, st zk.Stat) []byte {
	b = request(b).int32(opGetData).bool(false).int32(0).string(string(data))
	return appendStat(b, st)
}

func appendFailedRead(b []byte, code int32) []byte {
	return request(b).int32(-1).bool(false).int32(code).int32(code)
}

func appendEnd(b []byte) []byte { return request(b).int32(-1).bool(true).int32(-1) }
