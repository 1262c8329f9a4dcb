package registrar

import (
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"slices"
)

// MySQLOptions describe a check of a MySQL or MariaDB server.
type MySQLOptions struct {
	Host   string // an IP (IPv6 with or without brackets) or a name, resolved anew for each check
	Port   uint16
	Socket string // path of a Unix socket to connect to instead of Host and Port, unless empty

	// Username is the account that the handshake is made with; empty: "myelin-check", which no server need have. It has
	// no password. With an account that exists the server logs nothing of a check.
	Username string
}

// defaultMySQLUser is the account that checks name when they are given none.
const defaultMySQLUser = "myelin-check"

// MySQL passes when the server makes a handshake to its end, whether it lets the account in or not: who decides about
// logins has its tables and serves clients.
//
// The handshake is not broken off after the greeting, although that says most of it. A server counts those who do so
// against their host, warns of each of them in its log, and after max_connect_errors of them (100) refuses the whole
// host (measured with MariaDB 10.11; a refused login is not counted).
type MySQL struct{ o MySQLOptions }

// NewMySQL refuses an account that cannot be sent.
func NewMySQL(o MySQLOptions) (MySQL, error) {
	if o.Username == "" {
		o.Username = defaultMySQLUser
	}
	if len(o.Username) > 255 || bytes.ContainsRune([]byte(o.Username), 0) {
		return MySQL{}, errors.New("make mysql check: the username is not the name of an account")
	}
	return MySQL{o}, nil
}

// Check makes one handshake, over a connection of its own.
func (c MySQL) Check(ctx context.Context) error {
	return converse(ctx, place{c.o.Host, c.o.Port, c.o.Socket}, nil, func(t *conversation) error {
		seq, payload, err := mySQLPacket(t)
		if err != nil {
			return err
		}
		flags, err := mySQLGreeting(payload)
		if err != nil {
			return mySQLRefusal(err)
		}
		if err := t.send(appendMySQLPacket(nil, seq+1, mySQLLogin(flags, c.o.Username))); err != nil {
			return err
		}
		return c.finish(t)
	})
}

// What the first byte of a packet of the server's says in a handshake.
const (
	mySQLOK     = 0x00
	mySQLMore   = 0x01 // the login's method wants more
	mySQLSwitch = 0xfe // the login is to be made with another method
	mySQLErr    = 0xff
)

// maxMySQLTurns is how often a server may ask for something else than it was told. Two are seen.
const maxMySQLTurns = 8

// finish goes to the end of a handshake without a password, whatever method the server asks for.
func (c MySQL) finish(t *conversation) error {
	for range maxMySQLTurns {
		seq, payload, err := mySQLPacket(t)
		if err != nil {
			return err
		}
		switch payload[0] {
		case mySQLOK:
			return t.send(appendMySQLPacket(nil, 0, []byte{1})) // COM_QUIT
		case mySQLErr:
			return mySQLRefusal(mySQLError(payload))
		case mySQLMore, mySQLSwitch:
			if err := t.send(appendMySQLPacket(nil, seq+1, nil)); err != nil {
				return err
			}
		default:
			return stranger("MySQL", payload)
		}
	}
	return errors.New("the login has no end")
}

// mySQLFault is an error packet.
type mySQLFault struct {
	code  uint16
	state string // SQLSTATE, empty when the server said none
	text  string
}

func (e *mySQLFault) Error() string {
	return fmt.Sprintf("the server says %s (error %d)", plain(e.text), e.code)
}

// Errors that a working server answers strangers with; besides them those of the SQLSTATE class 28, invalid
// authorization.
var mySQLAccess = []uint16{
	1130, // this host may not connect
	1251, // a client this old may not log in
	3118, // account locked, MySQL
	3159, // TLS is required
	4151, // account locked, MariaDB
}

// mySQLRefusal is nil when the error is a decision about a login, which only a working server makes.
func mySQLRefusal(err error) error {
	var fault *mySQLFault
	if !errors.As(err, &fault) {
		return err
	}
	if slices.Contains(mySQLAccess, fault.code) || len(fault.state) == 5 && fault.state[:2] == "28" {
		return nil
	}
	return err
}

// maxMySQLPacket bounds a packet. A greeting has about a hundred bytes, an error at most 512.
const maxMySQLPacket = 4 << 10

// mySQLPacket reads a packet: three bytes of length (little endian), its number, and the payload, which is not empty.
func mySQLPacket(r io.Reader) (seq byte, payload []byte, err error) {
	var header [4]byte
	if _, err := io.ReadFull(r, header[:]); err != nil {
		return 0, nil, err
	}
	n := int(header[0]) | int(header[1])<<8 | int(header[2])<<16
	if n == 0 || n > maxMySQLPacket {
		return 0, nil, stranger("MySQL", header[:])
	}
	payload = make([]byte, n)
	_, err = io.ReadFull(r, payload)
	return header[3], payload, err
}

func appendMySQLPacket(b []byte, seq byte, payload []byte) []byte {
	n := len(payload)
	b = append(b, byte(n), byte(n>>8), byte(n>>16), seq)
	return append(b, payload...)
}

// Capability flags.
const (
	mySQLLongPassword     = 1 << 0
	mySQLProtocol41       = 1 << 9
	mySQLSecureConnection = 1 << 15
	mySQLPluginAuth       = 1 << 19
)

// mySQLGreeting takes the server's flags out of its greeting. Layout of protocol 10, the one since 3.21: the number 10,
// the version up to a NUL, thread id (4 bytes), challenge (8), NUL, flags (low 2), and since 4.1 character set (1),
// status (2), flags (high 2) and more that is not needed.
func mySQLGreeting(payload []byte) (flags uint32, err error) {
	switch {
	case payload[0] == mySQLErr:
		return 0, mySQLError(payload)
	case payload[0] != 10:
		return 0, stranger("MySQL", payload)
	}
	end := bytes.IndexByte(payload, 0)
	if end < 0 {
		return 0, stranger("MySQL", payload)
	}
	rest := payload[end+1:]
	if len(rest) < 20 {
		return 0, stranger("MySQL", payload)
	}
	flags = uint32(binary.LittleEndian.Uint16(rest[13:])) | uint32(binary.LittleEndian.Uint16(rest[18:]))<<16
	if flags&mySQLProtocol41 == 0 {
		return 0, fmt.Errorf("the server is older than MySQL 4.1: version %s", plain(string(payload[1:end])))
	}
	return flags, nil
}

// mySQLError reads an error packet: 0xff, code (2 bytes), "#" and five letters of SQLSTATE where it has one, text.
func mySQLError(payload []byte) error {
	if len(payload) < 3 {
		return stranger("MySQL", payload)
	}
	e := &mySQLFault{code: binary.LittleEndian.Uint16(payload[1:]), text: string(payload[3:])}
	if len(e.text) >= 6 && e.text[0] == '#' {
		e.state, e.text = e.text[1:6], e.text[6:]
	}
	return e
}

// mySQLLogin is the client's part of the handshake, without a password: flags (4), the largest packet (4), character
// set (1), 23 zeros, the account up to a NUL, the length of the answer to the challenge (1), and the name of the
// method up to a NUL. Servers that use another method by now ask for it.
func mySQLLogin(server uint32, user string) []byte {
	flags := uint32(mySQLLongPassword | mySQLProtocol41 | mySQLSecureConnection)
	flags |= server & mySQLPluginAuth
	b := binary.LittleEndian.AppendUint32(nil, flags)
	b = binary.LittleEndian.AppendUint32(b, 1<<24)
	b = append(b, 33) // utf8_general_ci, which all servers know
	b = append(b, make([]byte, 23)...)
	b = append(append(b, user...), 0)
	b = append(b, 0)
	if flags&mySQLPluginAuth != 0 {
		b = append(b, "mysql_native_password\x00"...)
	}
	return b
}
