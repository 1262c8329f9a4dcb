package zktest_test

import (
	"io"
	"net"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/myelin-sd/myelin/discovery/zookeeper/zktest"
)

// TestServer goes through a server's life.
func TestServer(t *testing.T) {
	s := zktest.New(t)
	answers := func() bool { a, err := s.Ask("ruok"); return err == nil && a == "imok" }
	require.True(t, answers())
	addr := s.Addr()

	require.NoError(t, s.Stop())
	require.False(t, answers())
	require.NoError(t, s.Stop(), "stopping twice")
	require.Error(t, s.Pause())
	require.NoError(t, s.Start())
	require.Error(t, s.Start(), "starting twice")
	require.Equal(t, addr, s.Addr())
	require.True(t, answers())
	require.Error(t, s.Wipe(), "a running server")

	require.NoError(t, s.Pause())
	c, err := net.Dial("tcp", addr) // the kernel takes the connection
	require.NoError(t, err)
	defer c.Close()
	_, err = io.WriteString(c, "ruok")
	require.NoError(t, err)
	require.NoError(t, c.SetReadDeadline(time.Now().Add(200*time.Millisecond)))
	_, err = c.Read(make([]byte, 4))
	require.Error(t, err, "a frozen server must not answer")
	require.NoError(t, s.Resume())
	require.NoError(t, c.SetReadDeadline(time.Now().Add(10*time.Second)))
	answer, err := io.ReadAll(c)
	require.NoError(t, err)
	require.Equal(t, "imok", string(answer))

	require.ErrorContains(t, s.Expire(0x1234), "no such session")
	require.NoError(t, s.Restart())
	require.True(t, answers())
}

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
	dial := func() net.Conn {
		c, err := net.Dial("tcp", p.Addr())
		require.NoError(t, err)
		t.Cleanup(func() { c.Close() })
		return c
	}
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

	c := dial()
	require.NoError(t, say(c, "one"))
	p.Break()
	require.Error(t, say(c, "two"))
	c = dial()
	require.NoError(t, say(c, "three"))

	p.Cut()
	require.Error(t, say(c, "four"))
	require.Error(t, say(dial(), "five"))
	p.Resume()
	c = dial()
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
