package registrar

import (
	"context"
	"fmt"
	"net"
	"syscall"
	"testing"

	"github.com/stretchr/testify/require"
)

// fullPort is one whose queue of connections is full: Linux drops further SYNs, so that connecting takes for ever.
func fullPort(t *testing.T) uint16 {
	t.Helper()
	fd, err := syscall.Socket(syscall.AF_INET, syscall.SOCK_STREAM|syscall.SOCK_CLOEXEC, 0)
	require.NoError(t, err)
	t.Cleanup(func() { syscall.Close(fd) })
	require.NoError(t, syscall.Bind(fd, &syscall.SockaddrInet4{Addr: [4]byte{127, 0, 0, 1}}))
	require.NoError(t, syscall.Listen(fd, 0))
	name, err := syscall.Getsockname(fd)
	require.NoError(t, err)
	port := uint16(name.(*syscall.SockaddrInet4).Port)
	for range 8 { // a queue of 0 takes one
		c, err := net.DialTimeout("tcp", address("127.0.0.1", port), moment)
		if err != nil {
			return port
		}
		t.Cleanup(func() { c.Close() })
	}
	t.Skip("NOT TESTED: this kernel has no full queues")
	return 0
}

func TestConnectTimeout(t *testing.T) {
	port := fullPort(t)
	err := check(t, HTTPOptions{Port: port, OpenTimeout: moment})
	require.EqualError(t, err, fmt.Sprintf("connect 127.0.0.1:%d: no answer within 60ms", port))
	require.ErrorIs(t, err, context.DeadlineExceeded)

	err = Check{HealthCheck: NewTCP(TCPOptions{Host: "127.0.0.1", Port: port}), Timeout: moment}.run(t.Context())
	require.EqualError(t, err, fmt.Sprintf("connect 127.0.0.1:%d: no answer within 60ms", port))
}
