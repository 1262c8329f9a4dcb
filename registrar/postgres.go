package registrar

import (
	"bytes"
	"cmp"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"slices"
)

// PostgresOptions describe a check of a PostgreSQL server, or of a pooler that speaks its protocol.
type PostgresOptions struct {
	Host   string // an IP (IPv6 with or without brackets) or a name, resolved anew for each check
	Port   uint16
	Socket string      // path of a Unix socket to connect to instead of Host and Port, unless empty
	TLS    *TLSOptions // nil: plain TCP. The server must offer it

	// Username and Database are those that the connection is asked for; empty: "postgres". Nobody logs in.
	Username, Database string
}

// Postgres passes when the server would let somebody log in: it asks for a password, lets the user in without one, or
// refuses them because of who they are. Then the check goes. A server that starts, stops or has no connection left
// says so instead.
type Postgres struct{ o PostgresOptions }

// NewPostgres refuses names that cannot be sent.
func NewPostgres(o PostgresOptions) (Postgres, error) {
	o.Username, o.Database = cmp.Or(o.Username, "postgres"), cmp.Or(o.Database, "postgres")
	for _, name := range []string{o.Username, o.Database} {
		if len(name) > maxPostgresName || bytes.ContainsRune([]byte(name), 0) {
			return Postgres{}, fmt.Errorf("make postgres check: %q is not a name", plain(name))
		}
	}
	if err := o.TLS.valid(); err != nil {
		return Postgres{}, fmt.Errorf("make postgres check: %w", err)
	}
	return Postgres{o}, nil
}

// maxPostgresName keeps the request far below the 10,000 bytes that a server takes.
const maxPostgresName = 1000

// Check asks once, over a connection of its own.
func (c Postgres) Check(ctx context.Context) error {
	return converse(ctx, place{c.o.Host, c.o.Port, c.o.Socket}, nil, func(t *conversation) error {
		if c.o.TLS != nil {
			if err := postgresTLS(t, c.o.TLS); err != nil {
				return err
			}
		}
		if err := t.send(postgresStartup(c.o.Username, c.o.Database)); err != nil {
			return err
		}
		in, err := postgresVerdict(t)
		if err != nil {
			return err
		}
		if in {
			return t.send([]byte{'X', 0, 0, 0, 4}) // Terminate; before the login is made it would be logged as an error
		}
		return nil
	})
}

// postgresTLS asks for TLS, which the server grants with one byte, and goes on with it.
func postgresTLS(t *conversation, o *TLSOptions) error {
	if err := t.send([]byte{0, 0, 0, 8, 0x04, 0xd2, 0x16, 0x2f}); err != nil { // the length, and the number of the request
		return err
	}
	var answer [1]byte
	if _, err := io.ReadFull(t, answer[:]); err != nil {
		return err
	}
	switch answer[0] {
	case 'S':
		return t.startTLS(o)
	case 'N':
		return errors.New("the server offers no TLS; remove ssl, or set it up there")
	case 'E':
		return postgresOldError(nil, t)
	}
	return stranger("PostgreSQL", answer[:])
}

// postgresStartup is the first message: its length (4 bytes, these included), version 3.0, and pairs of texts that end
// in a NUL, as does the list.
func postgresStartup(user, database string) []byte {
	b := []byte{0, 0, 0, 0, 0, 3, 0, 0}
	for _, s := range []string{"user", user, "database", database, "application_name", "myelin-check"} {
		b = append(append(b, s...), 0)
	}
	b = append(b, 0)
	binary.BigEndian.PutUint32(b, uint32(len(b)))
	return b
}

// postgresVerdict reads up to the message that decides. in tells whether the user is logged in.
func postgresVerdict(r io.Reader) (in bool, err error) {
	for {
		kind, body, err := postgresMessage(r)
		if err != nil {
			return false, err
		}
		switch kind {
		case 'R': // Authentication, with what is asked for; 0: nothing more
			if len(body) < 4 {
				return false, stranger("PostgreSQL", body)
			}
			if binary.BigEndian.Uint32(body) != 0 {
				return false, nil
			}
		case 'E': // ErrorResponse
			return false, postgresRefusal(body)
		case 'Z': // ReadyForQuery
			return true, nil
		case 'S', 'K', 'N', 'v': // ParameterStatus, BackendKeyData, NoticeResponse, NegotiateProtocolVersion
		default:
			return false, stranger("PostgreSQL", append([]byte{kind}, body...))
		}
	}
}

// postgresMessage reads a message: its kind (1 byte), its length (4, these included), its body.
func postgresMessage(r io.Reader) (kind byte, body []byte, err error) {
	var header [5]byte
	if _, err := io.ReadFull(r, header[:]); err != nil {
		return 0, nil, err
	}
	n := int64(binary.BigEndian.Uint32(header[1:])) - 4
	if n < 0 || n > maxReply {
		if header[0] == 'E' {
			return 0, nil, postgresOldError(header[1:], r)
		}
		return 0, nil, stranger("PostgreSQL", header[:])
	}
	body = make([]byte, n)
	_, err = io.ReadFull(r, body)
	return header[0], body, err
}

// postgresOldError is what a server says that could not start a process for the connection: "E" and a text that ends in
// a NUL, without a length.
func postgresOldError(text []byte, r io.Reader) error {
	b := make([]byte, 1)
	for len(text) < maxWords {
		if _, err := io.ReadFull(r, b); err != nil || b[0] == 0 {
			break
		}
		text = append(text, b...)
	}
	return fmt.Errorf("the server says %s", plain(string(text)))
}

// postgresAccess are the errors that a working server answers strangers with: invalid authorization, a database that
// is not there, no right to connect to it.
var postgresAccess = []string{"28000", "28P01", "3D000", "42501"}

// postgresRefusal reads an ErrorResponse: fields of one byte for what they are and a text that ends in a NUL, and a NUL
// behind them. It is nil when the error is a decision about a login.
func postgresRefusal(body []byte) error {
	var code, text string
	for len(body) > 1 {
		value, rest, found := bytes.Cut(body[1:], []byte{0})
		if !found {
			break
		}
		switch body[0] {
		case 'C':
			code = string(value)
		case 'M':
			text = string(value)
		}
		body = rest
	}
	if slices.Contains(postgresAccess, code) {
		return nil
	}
	if code == "" && text == "" {
		return errors.New("the server says that something is wrong, but not what")
	}
	return fmt.Errorf("the server says %s (%s)", plain(text), plain(code))
}
