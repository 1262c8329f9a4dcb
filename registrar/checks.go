package registrar

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"time"
	"unicode"
)

// Noop is the check that always passes.
type Noop struct{}

// NewNoop returns the check that always passes.
func NewNoop() Noop { return Noop{} }

// Check returns nil.
func (Noop) Check(context.Context) error { return nil }

// TCPOptions describe a TCP check.
type TCPOptions struct {
	Host   string // an IP (IPv6 with or without brackets) or a name, resolved anew for each check
	Port   uint16
	Socket string // path of a Unix socket to connect to instead of Host and Port, unless empty

	Send   string // sent after connecting, unless empty
	Expect string // must be in the first 64 KiB of what comes back, unless empty
}

// TCP passes when a connection can be opened and, where that is asked for, the expected answer comes.
type TCP struct{ o TCPOptions }

// NewTCP returns a check that opens a connection, talks when it is to, and closes it. Nothing but the context bounds it.
func NewTCP(o TCPOptions) TCP { return TCP{o} }

// Check asks once.
func (c TCP) Check(ctx context.Context) error {
	conn, err := place{c.o.Host, c.o.Port, c.o.Socket}.dial(ctx, 0)
	if err != nil {
		return err
	}
	defer conn.Close()
	stop := context.AfterFunc(ctx, func() { _ = conn.SetDeadline(time.Unix(1, 0)) }) // ends what blocks
	defer stop()
	if c.o.Send != "" {
		if _, err := io.WriteString(conn, c.o.Send); err != nil {
			return fmt.Errorf("send request: %w", cause(ctx, err))
		}
	}
	if c.o.Expect == "" {
		return nil
	}
	return await(ctx, conn, c.o.Expect)
}

// await reads until text has come. The peer need not close or end a line: what it goes on to say does not matter.
func await(ctx context.Context, r io.Reader, text string) error {
	got := make([]byte, 0, 512)
	for len(got) < maxAnswer {
		got = slices.Grow(got, 512)
		n, err := r.Read(got[len(got):min(cap(got), maxAnswer)])
		from := max(len(got)-len(text)+1, 0) // it may have begun in the last read
		got = got[:len(got)+n]
		if bytes.Contains(got[from:], []byte(text)) {
			return nil
		}
		if err != nil {
			return awaitError(ctx, got, text, err)
		}
	}
	return fmt.Errorf("the first %d bytes of the answer lack %q", maxAnswer, text)
}

// awaitError says what came instead of text: it tells a wrong answer from none.
func awaitError(ctx context.Context, got []byte, text string, err error) error {
	if len(got) == 0 {
		return readError(ctx, "read answer", err)
	}
	return fmt.Errorf("answer %q lacks %q: %w", shorten(string(got)), text, cause(ctx, err))
}

// shorten keeps the beginning of what a service said, for an error.
func shorten(s string) string {
	if len(s) <= maxQuoted {
		return s
	}
	return strings.ToValidUTF8(s[:maxQuoted], "") + "..."
}

// printable replaces what would break or recolour a line.
func printable(r rune) rune {
	if unicode.IsControl(r) || r == '\u2028' || r == '\u2029' {
		return '?'
	}
	return r
}

const (
	maxAnswer = 64 << 10 // bytes that a TCP check reads
	maxQuoted = 200      // bytes of an answer that an error shows
)

// place is where a check connects to.
type place struct {
	host   string
	port   uint16
	socket string // instead of host and port, unless empty
}

func (p place) String() string {
	if p.socket != "" {
		return p.socket
	}
	return address(p.host, p.port)
}

// name is what a request calls the server.
func (p place) name() string {
	if p.socket != "" {
		return "localhost"
	}
	return address(p.host, p.port)
}

// dial opens a connection within limit (0: within ctx). A new Dialer resolves the name each time; of several addresses
// it tries IPv6 and IPv4 side by side.
func (p place) dial(ctx context.Context, limit time.Duration) (net.Conn, error) {
	if limit > 0 {
		var cancel context.CancelFunc
		ctx, cancel = context.WithTimeoutCause(ctx, limit, noAnswer(limit))
		defer cancel()
	}
	network := "tcp"
	if p.socket != "" {
		network = "unix"
	}
	var d net.Dialer
	conn, err := d.DialContext(ctx, network, p.String())
	if err != nil {
		return nil, fmt.Errorf("connect %s: %w", p, cause(ctx, err))
	}
	return conn, nil
}

// dial opens a connection to a port within limit (0: within ctx).
func dial(ctx context.Context, host string, port uint16, limit time.Duration) (net.Conn, error) {
	return place{host: host, port: port}.dial(ctx, limit)
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
