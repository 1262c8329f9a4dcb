package registrar

import (
	"context"
	"fmt"
	"io"
	"net"
	"os"
	"strings"
	"time"
	"unicode"
)

const (
	maxReply    = 64 << 10 // bytes that a server may say in one conversation
	maxWords    = 200      // bytes of a server's words that an error repeats
	maxPassword = 4 << 10  // bytes of a password file
)

// Secret is a text that formats as "(not shown)". Convert it to a string where it is used.
type Secret string

// String does not return the secret.
func (s Secret) String() string {
	if s == "" {
		return ""
	}
	return "(not shown)"
}

// GoString does not return the secret.
func (s Secret) GoString() string { return s.String() }

// conversation is one talk with a server, of a length that is known before: it ends with its context, and the server
// can say no more than maxReply bytes. What it reads and writes returns worded errors only.
//
// The checks of servers speak their protocols by hand. A client library would keep connections, retry, and read its
// own environment; a check is one question.
type conversation struct {
	ctx  context.Context // of the one check that the conversation is
	to   place
	conn net.Conn
	left int // bytes that the server may still say
}

// converse opens a connection, has talk speak over it, and closes it. With o it is TLS from its first byte on. It returns
// within ctx.
func converse(ctx context.Context, to place, o *TLSOptions, talk func(*conversation) error) error {
	conn, err := to.dial(ctx, 0)
	if err != nil {
		return err
	}
	c := &conversation{ctx: ctx, to: to, conn: conn, left: maxReply}
	defer func() { c.conn.Close() }()                                                // that of TLS says so to the server
	stop := context.AfterFunc(ctx, func() { _ = conn.SetDeadline(time.Unix(1, 0)) }) // ends what blocks
	defer stop()
	if o != nil {
		if err := c.startTLS(o); err != nil {
			return err
		}
	}
	return talk(c)
}

// startTLS goes on with TLS.
func (c *conversation) startTLS(o *TLSOptions) error {
	t, err := o.open(c.ctx, c.conn, c.to)
	if err != nil {
		return err
	}
	c.conn = t
	return nil
}

// Read returns no io.EOF: a server that closes in the middle of its answer has not answered.
func (c *conversation) Read(b []byte) (int, error) {
	n, err := c.readSome(b)
	if err == io.EOF {
		err = readError(c.ctx, "read answer", err)
	}
	return n, err
}

// readSome is Read for those answers that end with the connection.
func (c *conversation) readSome(b []byte) (int, error) {
	if c.left == 0 {
		return 0, fmt.Errorf("answer has more than %d bytes", maxReply)
	}
	n, err := c.conn.Read(b[:min(len(b), c.left)])
	c.left -= n
	switch {
	case n > 0:
		return n, nil // an error comes again
	case err == nil || err == io.EOF:
		return 0, err
	}
	return 0, readError(c.ctx, "read answer", err)
}

// send writes all of b.
func (c *conversation) send(b []byte) error {
	if _, err := c.conn.Write(b); err != nil {
		return fmt.Errorf("send request: %w", cause(c.ctx, err))
	}
	return nil
}

// stranger is the error of an answer that is not of the protocol. It shows the beginning of it, as numbers where it is
// no text.
func stranger(protocol string, said []byte) error {
	text := plain(string(said))
	if len(said) > 0 && len(text) < min(len(said), maxWords)/2+1 {
		return fmt.Errorf("does not speak %s: it sends % x", protocol, said[:min(len(said), 16)])
	}
	return fmt.Errorf("does not speak %s: it says %q", protocol, text)
}

// plain makes a server's text fit for one line of a log: short, valid and without control characters.
func plain(s string) string {
	long := len(s) > maxWords
	s = strings.ToValidUTF8(s[:min(len(s), maxWords)], "?")
	s = strings.Map(func(r rune) rune {
		if !unicode.IsPrint(r) {
			return ' '
		}
		return r
	}, s)
	s = strings.Join(strings.Fields(s), " ")
	if long {
		s += "..."
	}
	return s
}

// password is the text of a login's password: that of file unless it is empty. The file is read for each check, so
// that a new password needs no reload.
func password(text Secret, file string) (string, error) {
	if file == "" {
		return string(text), nil
	}
	f, err := os.Open(file)
	if err != nil {
		return "", fmt.Errorf("open password file %s: %w", file, fact(err))
	}
	defer f.Close()
	b, err := io.ReadAll(io.LimitReader(f, maxPassword+1))
	if err != nil {
		return "", fmt.Errorf("read password file %s: %w", file, fact(err))
	}
	s := strings.TrimRight(string(b), "\r\n")
	switch {
	case s == "":
		return "", fmt.Errorf("password file %s is empty", file)
	case len(b) > maxPassword:
		return "", fmt.Errorf("password file %s has more than %d bytes", file, maxPassword)
	}
	return s, nil
}
