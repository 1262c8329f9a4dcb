package zktest_test

import (
	"io"
	"net"
	"slices"
	"sync"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/myelin-sd/myelin/discovery/zookeeper/zktest"
)

// TestProxy: each fault does what it says.
func TestProxy(t *testing.T) {
	echo, err := net.Listen("tcp", "127.0.0.1:0")
	require.NoError(t, err)
	defer echo.Close()
	go func() {
		for {
			c, err := echo.Accept()
			if err != nil {
				return
			}
			go func() { defer c.Close(); _, _ = io.Copy(c, c) }()
		}
	}()
	p := zktest.NewProxy(t, echo.Addr().String())
	say := func(c net.Conn, text string) error {
		if _, err := io.WriteString(c, text); err != nil {
			return err
		}
		got := make([]byte, len(text))
		if err := c.SetReadDeadline(time.Now().Add(10 * time.Second)); err != nil {
			return err
		}
		_, err := io.ReadFull(c, got)
		if err == nil {
			require.Equal(t, text, string(got))
		}
		return err
	}

	c := dial(t, p.Addr())
	require.NoError(t, say(c, "one"))
	p.Break()
	require.Error(t, say(c, "two"))
	c = dial(t, p.Addr())
	require.NoError(t, say(c, "three"))

	p.Cut()
	require.Error(t, say(c, "four"))
	require.Error(t, say(dial(t, p.Addr()), "five"))
	p.Resume()
	c = dial(t, p.Addr())
	require.NoError(t, say(c, "six"))

	p.Stall()
	_, err = io.WriteString(c, "seven")
	require.NoError(t, err)
	require.NoError(t, c.SetReadDeadline(time.Now().Add(100*time.Millisecond)))
	_, err = c.Read(make([]byte, 5))
	require.Error(t, err, "a stalled wire must carry nothing")
	p.Resume()
	require.NoError(t, c.SetReadDeadline(time.Now().Add(10*time.Second)))
	got := make([]byte, 5)
	_, err = io.ReadFull(c, got)
	require.NoError(t, err)
	require.Equal(t, "seven", string(got))
}

// TestProxyFrames: what is dropped and refused, on a real server.
func TestProxyFrames(t *testing.T) {
	s := zktest.New(t)

	t.Run("nothing is set", func(t *testing.T) {
		p := zktest.NewProxy(t, s.Addr())
		c := &client{Conn: dial(t, p.Addr())}
		for _, b := range slices.Concat(connectRequest(), c.request(opCreate, createBody("/pieces", "x")), c.request(opPing, nil)) {
			_, err := c.Write([]byte{b}) // each in a packet of its own
			require.NoError(t, err)
		}
		require.NoError(t, c.opened())
		created := c.receive(t)
		require.Zero(t, created.err)
		require.EqualValues(t, 1, created.xid)
		require.EqualValues(t, xidPing, c.receive(t).xid)
		requireNode(t, s.Addr(), "/pieces", true)

		require.Equal(t, 1, p.Accepted())
		require.Equal(t, 1, p.Requests(opCreate))
		require.Equal(t, 1, p.Requests(opPing))
		require.Zero(t, p.Requests(0), "the ConnectRequest is none")
		require.EqualValues(t, 48+12+12+len(createBody("/pieces", "x")), p.BytesToServer())
		require.EqualValues(t, 4+36+4+16+len(created.body)+4+16, p.BytesToClients())

		answer, err := ask(p.Addr(), "ruok")
		require.NoError(t, err)
		require.Equal(t, "imok", answer, "no frames")
		require.Equal(t, 2, p.Accepted())
	})

	t.Run("requests are dropped", func(t *testing.T) {
		p := zktest.NewProxy(t, s.Addr())
		c := connect(t, p.Addr())
		before := p.BytesToServer()
		var seen [][2]int32
		var mu sync.Mutex
		p.DropRequests(func(xid, op int32) bool {
			mu.Lock()
			defer mu.Unlock()
			seen = append(seen, [2]int32{xid, op})
			return op == opCreate
		})
		c.send(t, opCreate, createBody("/dropped", "x"))
		c.send(t, opPing, nil)
		require.EqualValues(t, xidPing, c.receive(t).xid, "the only answer")
		requireNode(t, s.Addr(), "/dropped", false)
		require.Equal(t, 1, p.Requests(opCreate))
		require.EqualValues(t, 12, p.BytesToServer()-before, "the ping")
		mu.Lock()
		require.Equal(t, [][2]int32{{1, opCreate}, {xidPing, opPing}}, seen)
		mu.Unlock()

		p.DropRequests(nil)
		c.create(t, "/dropped")
	})

	t.Run("replies are dropped", func(t *testing.T) {
		p := zktest.NewProxy(t, s.Addr())
		c := connect(t, p.Addr())
		p.DropReplies(func(xid int32) bool { return xid == 1 })
		c.send(t, opCreate, createBody("/unknown", "x"))
		c.send(t, opPing, nil)
		require.EqualValues(t, xidPing, c.receive(t).xid, "the only answer")
		requireNode(t, s.Addr(), "/unknown", true)

		p.DropReplies(func(int32) bool { p.Break(); return true })
		c.send(t, opCreate, createBody("/broken", "x"))
		_, err := c.read()
		require.Error(t, err)
		requireNode(t, s.Addr(), "/broken", true)
	})

	t.Run("watch events are dropped", func(t *testing.T) {
		p := zktest.NewProxy(t, s.Addr())
		c := connect(t, p.Addr())
		c.send(t, opAddWatch, addWatchBody("/"))
		require.Zero(t, c.receive(t).err)
		c.send(t, opCreate, createBody("/event1", "x"))
		require.EqualValues(t, xidEvent, c.receive(t).xid, "the event comes before the reply")
		require.EqualValues(t, 2, c.receive(t).xid)

		p.DropReplies(func(xid int32) bool { return xid == xidEvent })
		c.send(t, opCreate, createBody("/event2", "x"))
		require.EqualValues(t, 3, c.receive(t).xid, "without its event")

		p.DropReplies(nil)
		c.send(t, opCreate, createBody("/event3", "x"))
		require.EqualValues(t, xidEvent, c.receive(t).xid)
		require.EqualValues(t, 4, c.receive(t).xid)
	})

	t.Run("operations are refused", func(t *testing.T) {
		p := zktest.NewProxy(t, s.Addr())
		p.Refuse(opAddWatch, 22, 105)
		c := connect(t, p.Addr())
		c.create(t, "/before")
		c.send(t, opAddWatch, addWatchBody("/"))
		require.Equal(t, reply{xid: 2, err: errUnimplemented, body: []byte{}}, c.receive(t))
		_, err := c.read()
		require.ErrorIs(t, err, io.EOF)
		require.Equal(t, 1, p.Requests(opAddWatch))

		p.Refuse()
		c = connect(t, p.Addr())
		c.send(t, opAddWatch, addWatchBody("/"))
		require.Zero(t, c.receive(t).err)
	})
}

// TestProxyRefusesBetweenFrames: the refusal waits for the end of the reply that is being carried.
func TestProxyRefusesBetweenFrames(t *testing.T) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	require.NoError(t, err)
	defer l.Close()
	p := zktest.NewProxy(t, l.Addr().String())
	p.Refuse(opAddWatch)
	c := &client{Conn: dial(t, p.Addr())}
	require.NoError(t, c.SetDeadline(time.Now().Add(30*time.Second)))
	server, err := l.Accept()
	require.NoError(t, err)
	defer server.Close()

	_, err = c.Write(connectRequest())
	require.NoError(t, err)
	_, err = io.ReadFull(server, make([]byte, len(connectRequest())))
	require.NoError(t, err)
	long := framed(append(make([]byte, 15), "more than the head of a reply"...))
	_, err = server.Write(slices.Concat(framed(make([]byte, 36)), long[:30]))
	require.NoError(t, err)
	require.NoError(t, c.opened())
	begun := make([]byte, 30)
	_, err = io.ReadFull(c, begun)
	require.NoError(t, err)

	c.send(t, opAddWatch, addWatchBody("/"))
	require.Eventually(t, func() bool { return p.Requests(opAddWatch) == 1 }, 10*time.Second, time.Millisecond)
	_, err = server.Write(slices.Concat(long[30:], framed(make([]byte, 16))))
	require.NoError(t, err)
	rest, err := io.ReadAll(c)
	require.NoError(t, err)
	require.Equal(t, string(long[30:]), string(rest[:len(long)-30]))
	refusal := framed([]byte{0, 0, 0, 1, 0, 0, 0, 0, 0, 0, 0, 0, 0xff, 0xff, 0xff, 0xfa})
	rest = rest[len(long)-30:]
	// The frame that came together with the end of the other one may be carried, or be overtaken.
	if len(rest) > len(refusal) {
		require.Equal(t, framed(make([]byte, 16)), rest[:20])
		rest = rest[20:]
	}
	require.Equal(t, refusal, rest)
}

// TestProxyDelay: a round trip takes the delay both ways, and what is on its way when the server ends arrives.
func TestProxyDelay(t *testing.T) {
	const delay = 30 * time.Millisecond
	s := zktest.New(t)
	p := zktest.NewProxy(t, s.Addr())
	c := connect(t, p.Addr())
	p.Delay(delay)
	start := time.Now()
	c.send(t, opPing, nil)
	require.EqualValues(t, xidPing, c.receive(t).xid)
	require.GreaterOrEqual(t, time.Since(start), 2*delay)

	answer, err := ask(p.Addr(), "ruok")
	require.NoError(t, err)
	require.Equal(t, "imok", answer)

	// Many requests in a row, with a frame of each kind dropped among them, are answered in their order.
	p.DropRequests(func(_, op int32) bool { return op == opPing })
	for range 100 {
		c.send(t, opGetData, getBody("/none"))
		c.send(t, opPing, nil)
	}
	for i := range 100 {
		require.Equal(t, reply{xid: int32(i + 1), err: errNoNode, body: []byte{}}, c.receive(t))
	}
	p.Delay(time.Hour)
	c.send(t, opGetData, getBody("/none"))
	require.Eventually(t, func() bool { return p.Requests(opGetData) == 101 }, 30*time.Second, time.Millisecond)
	p.Break()
	_, err = c.read()
	require.Error(t, err, "a broken wire waits for nothing")
}

// TestProxyClosesAfterTheLastByte: what the server's end wrote comes first, then its end.
func TestProxyClosesAfterTheLastByte(t *testing.T) {
	s := zktest.New(t)
	p := zktest.NewProxy(t, s.Addr())
	c := connect(t, p.Addr())
	p.StallReplies()
	c.send(t, -11, nil) // closeSession
	require.Eventually(t, func() bool {
		counters, err := s.Counters()
		return err == nil && counters["zk_global_sessions"] == "0"
	}, 30*time.Second, 10*time.Millisecond)
	p.Resume()
	r := c.receive(t)
	require.EqualValues(t, 1, r.xid)
	require.Zero(t, r.err)
	_, err := c.read()
	require.ErrorIs(t, err, io.EOF)
}

func ask(addr, word string) (string, error) {
	c, err := net.Dial("tcp", addr)
	if err != nil {
		return "", err
	}
	defer c.Close()
	if err := c.SetDeadline(time.Now().Add(30 * time.Second)); err != nil {
		return "", err
	}
	if _, err := io.WriteString(c, word); err != nil {
		return "", err
	}
	answer, err := io.ReadAll(c)
	return string(answer), err
}
