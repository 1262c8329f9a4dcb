package zktest_test

import (
	"encoding/binary"
	"fmt"
	"io"
	"net"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
)

// Operations and errors of ZooKeeper's protocol.
const (
	opCreate   = 1
	opGetData  = 4
	opPing     = 11
	opAddWatch = 106

	errUnimplemented = -6
	errNoNode        = -101

	xidEvent = -1
	xidPing  = -2
)

// client speaks the protocol frame by frame, so that a test sees what a library would hide.
type client struct {
	net.Conn
	xid     int32
	session int64
	timeout int32 // as the server granted it, milliseconds
}

// reply is a frame from the server after the first.
type reply struct {
	xid, err int32
	body     []byte
}

func dial(t *testing.T, addr string) net.Conn {
	t.Helper()
	c, err := net.DialTimeout("tcp", addr, 10*time.Second)
	require.NoError(t, err)
	t.Cleanup(func() { c.Close() })
	return c
}

// connect opens a session.
func connect(t *testing.T, addr string) *client {
	t.Helper()
	c, err := open(dial(t, addr))
	require.NoError(t, err)
	return c
}

func open(conn net.Conn) (*client, error) {
	c := &client{Conn: conn}
	if err := conn.SetDeadline(time.Now().Add(30 * time.Second)); err != nil {
		return nil, err
	}
	if _, err := conn.Write(connectRequest()); err != nil {
		return nil, err
	}
	return c, c.opened()
}

// connectRequest asks for a new session of 20 s.
func connectRequest() []byte {
	b := make([]byte, 16, 44) // protocol, last zxid, timeout
	binary.BigEndian.PutUint32(b[12:], 20_000)
	b = append(b, make([]byte, 8)...) // session
	b = binary.BigEndian.AppendUint32(b, 16)
	return framed(append(b, make([]byte, 16)...)) // password
}

func (c *client) opened() error {
	b, err := c.frame()
	if err != nil {
		return err
	}
	if len(b) < 16 {
		return fmt.Errorf("a ConnectResponse of %d bytes", len(b))
	}
	c.timeout, c.session = int32(binary.BigEndian.Uint32(b[4:])), int64(binary.BigEndian.Uint64(b[8:]))
	return nil
}

func framed(b []byte) []byte {
	return append(binary.BigEndian.AppendUint32(nil, uint32(len(b))), b...)
}

// request is a frame; its xid is the client's next, or the ping's.
func (c *client) request(op int32, body []byte) []byte {
	xid := int32(xidPing)
	if op != opPing {
		c.xid++
		xid = c.xid
	}
	b := binary.BigEndian.AppendUint32(nil, uint32(xid))
	b = binary.BigEndian.AppendUint32(b, uint32(op))
	return framed(append(b, body...))
}

func (c *client) send(t *testing.T, op int32, body []byte) {
	t.Helper()
	_, err := c.Write(c.request(op, body))
	require.NoError(t, err)
}

func (c *client) receive(t *testing.T) reply {
	t.Helper()
	r, err := c.read()
	require.NoError(t, err)
	return r
}

func (c *client) read() (reply, error) {
	b, err := c.frame()
	if err != nil {
		return reply{}, err
	}
	if len(b) < 16 {
		return reply{}, fmt.Errorf("a reply of %d bytes", len(b))
	}
	return reply{xid: int32(binary.BigEndian.Uint32(b)), err: int32(binary.BigEndian.Uint32(b[12:])), body: b[16:]}, nil
}

func (c *client) frame() ([]byte, error) {
	var length [4]byte
	if _, err := io.ReadFull(c, length[:]); err != nil {
		return nil, err
	}
	b := make([]byte, binary.BigEndian.Uint32(length[:]))
	_, err := io.ReadFull(c, b)
	return b, err
}

func (c *client) create(t *testing.T, path string) {
	t.Helper()
	c.send(t, opCreate, createBody(path, path))
	require.Zero(t, c.receive(t).err, "create %s", path)
}

func appendString(b []byte, s string) []byte {
	return append(binary.BigEndian.AppendUint32(b, uint32(len(s))), s...)
}

// createBody is for a persistent node that everybody may do everything with.
func createBody(path, data string) []byte {
	b := appendString(appendString(nil, path), data)
	b = binary.BigEndian.AppendUint32(b, 1)
	b = binary.BigEndian.AppendUint32(b, 31)
	b = appendString(appendString(b, "world"), "anyone")
	return binary.BigEndian.AppendUint32(b, 0)
}

// getBody asks without a watch.
func getBody(path string) []byte { return append(appendString(nil, path), 0) }

// addWatchBody asks for a persistent recursive watch.
func addWatchBody(path string) []byte {
	return binary.BigEndian.AppendUint32(appendString(nil, path), 1)
}

// has tells whether the server at addr has a node, over a connection of its own.
func has(addr, path string) (bool, error) {
	conn, err := net.DialTimeout("tcp", addr, 5*time.Second)
	if err != nil {
		return false, err
	}
	defer conn.Close()
	c, err := open(conn)
	if err != nil {
		return false, err
	}
	if _, err := conn.Write(c.request(opGetData, getBody(path))); err != nil {
		return false, err
	}
	r, err := c.read()
	if err == nil && r.err != 0 && r.err != errNoNode {
		err = fmt.Errorf("get %s: error %d", path, r.err)
	}
	return err == nil && r.err == 0, err
}

func requireNode(t *testing.T, addr, path string, want bool) {
	t.Helper()
	got, err := has(addr, path)
	require.NoError(t, err)
	require.Equal(t, want, got, path)
}
