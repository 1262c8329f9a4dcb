package registrar

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"strconv"
	"strings"
	"syscall"
	"time"
)

// Noop is the check that always passes.
type Noop struct{}

// NewNoop returns the check that always passes.
func NewNoop() Noop { return Noop{} }

// Check returns nil.
func (Noop) Check(context.Context) error { return nil }

// TCPOptions say where a TCP check connects to.
type TCPOptions struct {
	Host string // an IP (IPv6 with or without brackets) or a name, resolved anew for each check
	Port uint16
}

// TCP passes when a connection can be opened.
type TCP struct{ o TCPOptions }

// NewTCP returns a check that opens a connection and closes it. Nothing but the context bounds it.
func NewTCP(o TCPOptions) TCP { return TCP{o} }

// Check returns nil when the connection was opened.
func (c TCP) Check(ctx context.Context) error {
	conn, err := dial(ctx, c.o.Host, c.o.Port, 0)
	if err != nil {
		return err
	}
	return conn.Close()
}

// dial opens a connection within limit (0: within ctx). A new Dialer resolves the name each time; of several addresses
// it tries IPv6 and IPv4 side by side.
func dial(ctx context.Context, host string, port uint16, limit time.Duration) (net.Conn, error) {
	if limit > 0 {
		var cancel context.CancelFunc
		ctx, cancel = context.WithTimeoutCause(ctx, limit, noAnswer(limit))
		defer cancel()
	}
	var d net.Dialer
	conn, err := d.DialContext(ctx, "tcp", address(host, port))
	if err != nil {
		return nil, fmt.Errorf("connect %s: %w", address(host, port), cause(ctx, err))
	}
	return conn, nil
}

func address(host string, port uint16) string {
	return net.JoinHostPort(strings.Trim(host, "[]"), strconv.Itoa(int(port)))
}

// noAnswer is the error of a limit that ran out. errors.Is(err, context.DeadlineExceeded) holds.
type noAnswer time.Duration

func (e noAnswer) Error() string   { return "no answer within " + time.Duration(e).String() }
func (e noAnswer) Is(t error) bool { return t == context.DeadlineExceeded }

// What the system calls mean, in fewer words than theirs.
var (
	errRefused = errors.New("refused")
	errClosed  = errors.New("connection closed")
)

// cause digs the one fact out of an error of package net: "dial tcp 127.0.0.1:80: connect: connection refused" says
// the address a second time, and names the system call that nobody asked about. ctx is that of the failed step; when
// it ran out, its cause is the fact.
func cause(ctx context.Context, err error) error {
	var dns *net.DNSError
	var sys *os.SyscallError
	var op *net.OpError
	if at, ok := ctx.Deadline(); ok && !time.Now().Before(at) {
		<-ctx.Done() // the socket's own timer may go off a moment before the context's
	}
	switch {
	case ctx.Err() != nil:
		return context.Cause(ctx)
	case errors.Is(err, syscall.ECONNREFUSED):
		return errRefused
	case errors.Is(err, syscall.ECONNRESET), errors.Is(err, syscall.EPIPE), errors.Is(err, io.EOF), errors.Is(err, io.ErrUnexpectedEOF):
		return errClosed
	case errors.As(err, &dns):
		return fmt.Errorf("resolve host: %s", dns.Err)
	case errors.As(err, &sys):
		return sys.Err
	case errors.As(err, &op):
		return op.Err
	}
	return err
}
