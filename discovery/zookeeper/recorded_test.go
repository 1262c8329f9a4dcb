package zookeeper

import (
	"bufio"
	"bytes"
	"context"
	"encoding/binary"
	hexa "encoding/hex"
	"flag"
	"fmt"
	"io"
	"net"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/go-zookeeper/zk"
	"github.com/stretchr/testify/require"

	"github.com/myelin-sd/myelin/discovery/zookeeper/zktest"
)

// record has TestRecorded write down what the installed server says, as testdata/VERSION.frames. ZOOKEEPER_CLASSPATH
// chooses another server than the installed one.
var record = flag.String("record", "", "write the conversation with the server to this `file`")

// conversation is everything that the tap says to a server, and what it makes of the answers.
type conversation struct {
	names            []string
	stat             zk.Stat // of the directory
	read             []string
	events           []event
	eventZxid        bool // the server puts a zxid into events
	missing, unknown error
}

// talk holds the conversation over c. Each request waits for the reply to the one before, so that it is always the same.
func talk(t *testing.T, c net.Conn) conversation {
	t.Helper()
	var got conversation
	var zxid atomic.Int64
	tp := newTap(c, tapOptions{
		limit: time.Minute, writeLimit: time.Minute, zxid: &zxid, received: new(atomic.Uint64),
		logins: []Login{{Scheme: "digest", Credentials: []byte("user:password")}},
		shaken: func(h handshake) { require.NotZero(t, h.session) },
		event:  func(ev event) { got.events = append(got.events, ev) },
	})
	defer tp.Close()
	hello := connectRequest(0, 0)
	binary.BigEndian.PutUint64(hello[8:], 0) // a new server has no zxid yet
	_, err := tp.Write(hello)
	require.NoError(t, err)
	lib := &pair{tap: tp} // reads as the library does
	lib.frame(t)

	// A request of ours is followed by a ping, whose reply is the library's, so that reading comes to an end.
	ask := func(r request) ([]byte, error) {
		c, err := lib.one(nodeMost, r)
		require.NoError(t, err)
		_, err = tp.Write(theirs(xidPing, 11))
		require.NoError(t, err)
		lib.frame(t)
		return c.wait(context.Background())
	}
	number := int32(0)
	write := func(op int32, body func(request) request) {
		number++
		r := body(newRequest(op, 100))
		r.seal(number)
		_, err := tp.Write(r)
		require.NoError(t, err)
		reply := lib.frame(t)
		require.EqualValues(t, number, binary.BigEndian.Uint32(reply[4:]))
		require.Zero(t, binary.BigEndian.Uint32(reply[16:]), "operation %d", op)
	}
	create := func(path, data string) {
		write(1, func(r request) request {
			r = r.string(path).string(data).int32(1).int32(31).string("world").string("anyone")
			return r.int32(0)
		})
	}
	_, err = ask(addWatchRequest("/recorded"))
	require.NoError(t, err)
	_, got.missing = ask(pathRequest(opGetChildren2, "/recorded", false))
	create("/recorded", "")
	create("/recorded/a", "one")
	create("/recorded/b", "two")
	write(5, func(r request) request { return r.string("/recorded/a").string("three").int32(-1) })
	create("/recorded/a/deep", "")
	_, err = ask(syncRequest("/recorded"))
	require.NoError(t, err)
	body, err := ask(pathRequest(opGetChildren2, "/recorded", false))
	require.NoError(t, err)
	ls, err := parseListing(body)
	require.NoError(t, err)
	got.names, got.stat = ls.names, ls.stat
	body, err = ask(multiReadRequest("/recorded", []string{"a", "gone", "b", directory}))
	require.NoError(t, err)
	require.NoError(t, parseMultiRead(body, 4, func(_ int, r reading, err error) {
		got.read = append(got.read, fmt.Sprint(string(r.data), r.stat.Version, r.stat.NumChildren, err))
		if err == nil && r.stat.NumChildren == 2 {
			require.Equal(t, got.stat, r.stat, "the directory's stat comes with its children")
		}
	}))
	body, err = ask(pathRequest(opExists, "/recorded", false))
	require.NoError(t, err)
	st, err := parseStat(body)
	require.NoError(t, err)
	require.Equal(t, got.stat, st)
	write(2, func(r request) request { return r.string("/recorded/b").int32(-1) })
	got.eventZxid = lastEventZxid(c) > 0
	_, err = ask(removeWatchesRequest("/recorded"))
	require.NoError(t, err)
	write(2, func(r request) request { return r.string("/recorded/a/deep").int32(-1) })
	// No such operation: so servers answer that are too old for one, and then close the connection.
	last, err := lib.one(nodeMost, newRequest(99, 0))
	require.NoError(t, err)
	_, err = tp.Read(make([]byte, 1))
	require.Error(t, err)
	_, got.unknown = last.wait(context.Background())
	require.NotZero(t, zxid.Load())
	return got
}

// TestRecorded: a real server, and the bytes that another version answered with, are understood in the same way.
func TestRecorded(t *testing.T) {
	zks := zktest.New(t)
	c, err := net.Dial("tcp", zks.Addr())
	require.NoError(t, err)
	live := &taped{Conn: c}
	want := conversation{
		names: []string{"a", "b"},
		read:  []string{"three1 1 <nil>", "0 0 zk: node does not exist", "two0 0 <nil>", "0 2 <nil>"},
		events: []event{
			{zk.EventNodeCreated, "/recorded"}, {zk.EventNodeCreated, "/recorded/a"}, {zk.EventNodeCreated, "/recorded/b"},
			{zk.EventNodeDataChanged, "/recorded/a"}, {zk.EventNodeCreated, "/recorded/a/deep"}, {zk.EventNodeDeleted, "/recorded/b"},
		},
		missing: zk.ErrNoNode, unknown: errUnimplemented,
	}
	check := func(t *testing.T, got conversation) {
		require.ElementsMatch(t, want.names, got.names)
		require.Equal(t, want.read, got.read)
		require.Equal(t, want.events, got.events)
		require.EqualValues(t, 2, got.stat.NumChildren)
		require.NotZero(t, got.stat.Czxid)
		require.Greater(t, got.stat.Pzxid, got.stat.Czxid)
		require.ErrorIs(t, got.missing, want.missing)
		require.ErrorIs(t, got.unknown, want.unknown)
	}
	t.Run("installed", func(t *testing.T) { check(t, talk(t, live)) })
	if *record != "" {
		require.NoError(t, os.WriteFile(*record, live.tape.Bytes(), 0o644))
	}
	files, err := filepath.Glob("testdata/*.frames")
	require.NoError(t, err)
	require.NotEmpty(t, files)
	for _, file := range files {
		t.Run(filepath.Base(file), func(t *testing.T) {
			got := talk(t, replay(t, file))
			check(t, got)
			require.Equal(t, strings.Contains(file, "3.9"), got.eventZxid, "3.9 puts the zxid into events")
		})
	}
}

// taped is a connection whose frames are written down, in hexadecimal, one to a line: "> " to the server, "< " from it.
type taped struct {
	net.Conn
	mu    sync.Mutex
	tape  bytes.Buffer
	half  []byte // of a frame that is still being read
	event int64  // zxid of the latest event
}

func (c *taped) Write(p []byte) (int, error) {
	c.mu.Lock()
	fmt.Fprintf(&c.tape, "> %x\n", p)
	c.mu.Unlock()
	return c.Conn.Write(p)
}

func (c *taped) Read(p []byte) (int, error) {
	n, err := c.Conn.Read(p)
	c.mu.Lock()
	defer c.mu.Unlock()
	c.half = append(c.half, p[:n]...)
	for len(c.half) >= 4 {
		length := 4 + int(binary.BigEndian.Uint32(c.half))
		if len(c.half) < length {
			break
		}
		f := c.half[:length]
		fmt.Fprintf(&c.tape, "< %x\n", f)
		if length >= 20 && int32(binary.BigEndian.Uint32(f[4:])) == xidEvent {
			c.event = int64(binary.BigEndian.Uint64(f[8:]))
		}
		c.half = c.half[length:]
	}
	return n, err
}

func lastEventZxid(c net.Conn) int64 {
	t := c.(*taped)
	t.mu.Lock()
	defer t.mu.Unlock()
	return t.event
}

// replay is a server that has only one thing to say. It wants to hear what was said to the server that it repeats,
// byte by byte.
func replay(t *testing.T, file string) net.Conn {
	t.Helper()
	text, err := os.ReadFile(file)
	require.NoError(t, err)
	client, server := net.Pipe()
	var all sync.WaitGroup
	all.Go(func() {
		defer server.Close()
		lines := bufio.NewScanner(bytes.NewReader(text))
		lines.Buffer(nil, 1<<20)
		for lines.Scan() {
			frame, err := hexa.DecodeString(lines.Text()[2:])
			if err != nil {
				t.Errorf("%s: %v", file, err)
				return
			}
			if lines.Text()[0] == '<' {
				if _, err := server.Write(frame); err != nil {
					return
				}
				continue
			}
			heard := make([]byte, len(frame))
			if _, err := io.ReadFull(server, heard); err != nil || !bytes.Equal(heard, frame) {
				t.Errorf("%s: heard %x (%v), recorded %x", file, heard, err, frame)
				return
			}
		}
	})
	t.Cleanup(func() { client.Close(); all.Wait() })
	return &taped{Conn: client}
}
