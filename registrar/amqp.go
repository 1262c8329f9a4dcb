package registrar

import (
	"cmp"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"slices"
	"strings"
)

// AMQPOptions describe a check of a RabbitMQ server, or of another broker that speaks AMQP 0-9-1.
type AMQPOptions struct {
	Host string // an IP (IPv6 with or without brackets) or a name, resolved anew for each check
	Port uint16
	TLS  *TLSOptions // nil: plain TCP

	Username     string // empty: no login, the broker's greeting is enough
	Password     Secret
	PasswordFile string // holds the password, instead of Password; read for each check
	VirtualHost  string // opened after the login; empty: "/"
}

// AMQP passes when the broker greets and, where there is a login, lets the user in and opens the virtual host. It
// declares nothing and publishes nothing.
type AMQP struct{ o AMQPOptions }

// NewAMQP refuses logins that cannot be sent.
func NewAMQP(o AMQPOptions) (AMQP, error) {
	o.VirtualHost = cmp.Or(o.VirtualHost, "/")
	switch {
	case len(o.VirtualHost) > 255:
		return AMQP{}, errors.New("make amqp check: the virtual host has more than 255 bytes")
	case len(o.Username) > 255 || strings.ContainsRune(o.Username, 0):
		return AMQP{}, errors.New("make amqp check: the username is not the name of a user")
	case o.Username == "" && (o.Password != "" || o.PasswordFile != ""):
		return AMQP{}, errors.New("make amqp check: the password has no username")
	}
	if err := o.TLS.valid(); err != nil {
		return AMQP{}, fmt.Errorf("make amqp check: %w", err)
	}
	return AMQP{o}, nil
}

// Check has one conversation, over a connection of its own.
func (c AMQP) Check(ctx context.Context) error {
	secret, err := password(c.o.Password, c.o.PasswordFile)
	if err != nil {
		return err
	}
	return converse(ctx, place{host: c.o.Host, port: c.o.Port}, c.o.TLS, func(t *conversation) error {
		if err := t.send([]byte("AMQP\x00\x00\x09\x01")); err != nil {
			return err
		}
		start, err := amqpExpect(t, amqpStart)
		if err != nil {
			return err
		}
		mechanisms, err := amqpMechanisms(start)
		if err != nil || c.o.Username == "" {
			return err
		}
		if !slices.Contains(mechanisms, "PLAIN") {
			return fmt.Errorf("log in: the broker takes no PLAIN, but %s", plain(strings.Join(mechanisms, " ")))
		}
		return c.login(t, secret)
	})
}

// login goes from the greeting to an open virtual host, and closes the connection as brokers want it to be: without, a
// warning is logged.
func (c AMQP) login(t *conversation, secret string) error {
	if err := t.send(amqpMethod(nil, amqpStartOk, amqpCredentials(c.o.Username, secret))); err != nil {
		return err
	}
	limits, err := amqpExpect(t, amqpTune)
	if err != nil {
		return fmt.Errorf("log in: %w", err)
	}
	if len(limits) < 8 {
		return stranger("AMQP 0-9-1", limits)
	}
	// The broker's limits are taken over (channels, 2 bytes, and size of a frame, 4), but not its heartbeat (2).
	ok := append(slices.Clone(limits[:6]), 0, 0)
	open := append(amqpShort(nil, c.o.VirtualHost), 0, 0) // two fields that are not in use
	if err := t.send(amqpMethod(amqpMethod(nil, amqpTuneOk, ok), amqpOpen, open)); err != nil {
		return err
	}
	if _, err := amqpExpect(t, amqpOpenOk); err != nil {
		return fmt.Errorf("open virtual host %s: %w", plain(c.o.VirtualHost), err)
	}
	bye := amqpShort(binary.BigEndian.AppendUint16(nil, 200), "checked") // code and text of the reason
	bye = append(bye, 0, 0, 0, 0)                                        // no method is to blame
	if err := t.send(amqpMethod(nil, amqpClose, bye)); err != nil {
		return err
	}
	_, err = amqpExpect(t, amqpCloseOk)
	return err
}

// Methods of AMQP's class connection, the class (10) in the upper half.
const (
	amqpStart   = 10<<16 | 10
	amqpStartOk = 10<<16 | 11
	amqpTune    = 10<<16 | 30
	amqpTuneOk  = 10<<16 | 31
	amqpOpen    = 10<<16 | 40
	amqpOpenOk  = 10<<16 | 41
	amqpClose   = 10<<16 | 50
	amqpCloseOk = 10<<16 | 51
)

// Kinds of frames, and their last byte.
const (
	amqpFrameMethod    = 1
	amqpFrameHeartbeat = 8
	amqpFrameEnd       = 0xce
)

// amqpMethod appends a frame: kind (1 byte), channel (2), length (4), method (4), arguments, end (1).
func amqpMethod(b []byte, method uint32, arguments []byte) []byte {
	b = append(b, amqpFrameMethod, 0, 0)
	b = binary.BigEndian.AppendUint32(b, uint32(4+len(arguments)))
	b = binary.BigEndian.AppendUint32(b, method)
	return append(append(b, arguments...), amqpFrameEnd)
}

// amqpShort appends a text of at most 255 bytes, amqpLong any: the length (1 or 4 bytes) and the text.
func amqpShort(b []byte, s string) []byte { return append(append(b, byte(len(s))), s...) }

func amqpLong(b []byte, s string) []byte {
	return append(binary.BigEndian.AppendUint32(b, uint32(len(s))), s...)
}

// amqpCredentials are the arguments of StartOk: what we are and can do, the mechanism, its answer, the language.
func amqpCredentials(user, secret string) []byte {
	// With authentication_failure_close a refused login is told; without, the broker waits and hangs up.
	can := append(amqpShort(nil, "authentication_failure_close"), 't', 1)
	are := append(amqpShort(nil, "product"), 'S')
	are = append(amqpShort(amqpLong(are, "myelin-check"), "capabilities"), 'F')
	are = amqpLong(are, string(can))
	b := amqpShort(amqpLong(nil, string(are)), "PLAIN")
	return amqpShort(amqpLong(b, "\x00"+user+"\x00"+secret), "en_US")
}

// amqpExpect reads up to a method and returns its arguments. A broker that closes the connection instead has said why.
func amqpExpect(r io.Reader, method uint32) (arguments []byte, err error) {
	for {
		kind, payload, err := amqpFrame(r)
		switch {
		case err != nil:
			return nil, err
		case kind == amqpFrameHeartbeat:
			continue
		case kind != amqpFrameMethod || len(payload) < 4:
			return nil, stranger("AMQP 0-9-1", payload)
		}
		got, arguments := binary.BigEndian.Uint32(payload), payload[4:]
		switch got {
		case method:
			return arguments, nil
		case amqpClose:
			return nil, amqpReason(arguments)
		}
		return nil, fmt.Errorf("the broker goes on with method %d.%d instead of %d.%d", got>>16, got&0xffff, method>>16, method&0xffff)
	}
}

// amqpFrame reads a frame; amqpMethod has its layout.
func amqpFrame(r io.Reader) (kind byte, payload []byte, err error) {
	var header [7]byte
	if _, err := io.ReadFull(r, header[:]); err != nil {
		return 0, nil, err
	}
	if string(header[:4]) == "AMQP" {
		return 0, nil, amqpVersion(header, r)
	}
	n := binary.BigEndian.Uint32(header[3:])
	if n > maxReply {
		return 0, nil, stranger("AMQP 0-9-1", header[:])
	}
	payload = make([]byte, n+1)
	if _, err := io.ReadFull(r, payload); err != nil {
		return 0, nil, err
	}
	if payload[n] != amqpFrameEnd {
		return 0, nil, stranger("AMQP 0-9-1", append(header[:], payload...))
	}
	return header[0], payload[:n], nil
}

// amqpVersion is the error of a broker that answers with a header of its own: "AMQP", an id, and the version that it
// speaks, in three bytes.
func amqpVersion(header [7]byte, r io.Reader) error {
	var last [1]byte
	if _, err := io.ReadFull(r, last[:]); err != nil {
		return err
	}
	if header[5] == 0 && header[6] == 9 && last[0] == 1 { // an echo
		return stranger("AMQP 0-9-1", header[:])
	}
	return fmt.Errorf("the broker speaks AMQP %d-%d-%d, not 0-9-1", header[5], header[6], last[0])
}

// amqpReason reads the arguments of Close: code (2 bytes), text, and the method to blame (4).
func amqpReason(arguments []byte) error {
	if len(arguments) < 3 || len(arguments) < 3+int(arguments[2]) {
		return stranger("AMQP 0-9-1", arguments)
	}
	code, text := binary.BigEndian.Uint16(arguments), arguments[3:3+int(arguments[2])]
	return fmt.Errorf("the broker says %s (%d)", plain(string(text)), code)
}

// amqpMechanisms reads the arguments of Start: version (2 bytes), a table of what the broker is, the mechanisms to log
// in with, with blanks between them, and the languages; the last three with a length of 4 bytes before them.
func amqpMechanisms(arguments []byte) ([]string, error) {
	if len(arguments) < 2 {
		return nil, stranger("AMQP 0-9-1", arguments)
	}
	_, rest, ok := amqpCut(arguments[2:])
	mechanisms, rest, ok2 := amqpCut(rest)
	_, _, ok3 := amqpCut(rest)
	if !ok || !ok2 || !ok3 {
		return nil, stranger("AMQP 0-9-1", arguments)
	}
	return strings.Fields(string(mechanisms)), nil
}

// amqpCut takes a text with a length of 4 bytes off the beginning of b.
func amqpCut(b []byte) (text, rest []byte, ok bool) {
	if len(b) < 4 {
		return nil, nil, false
	}
	n := int64(binary.BigEndian.Uint32(b))
	if n > int64(len(b)-4) {
		return nil, nil, false
	}
	return b[4 : 4+n], b[4+n:], true
}
