package registrar

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"strconv"
	"strings"
)

// RedisOptions describe a check of a Redis server, or of one that speaks its protocol.
type RedisOptions struct {
	Host   string // an IP (IPv6 with or without brackets) or a name, resolved anew for each check
	Port   uint16
	Socket string      // path of a Unix socket to connect to instead of Host and Port, unless empty
	TLS    *TLSOptions // nil: plain TCP

	Username     string // empty: Redis's own "default", and the form of AUTH that servers before 6 know
	Password     Secret
	PasswordFile string // holds the password, instead of Password; read for each check

	Role string // "master" or "replica"; empty: either
}

// Redis passes when PING is answered with PONG, and the role is the one that is asked for. A server that loads its
// data set, runs a script for too long, cannot write to its disk or has lost a master that it needs answers otherwise.
type Redis struct{ o RedisOptions }

// NewRedis refuses a role that no server has, and a user without a password.
func NewRedis(o RedisOptions) (Redis, error) {
	switch {
	case o.Role != "" && o.Role != "master" && o.Role != "replica":
		return Redis{}, fmt.Errorf("make redis check: role %q is neither master nor replica", o.Role)
	case o.Username != "" && o.Password == "" && o.PasswordFile == "":
		return Redis{}, errors.New("make redis check: the username has no password")
	}
	if err := o.TLS.valid(); err != nil {
		return Redis{}, fmt.Errorf("make redis check: %w", err)
	}
	return Redis{o}, nil
}

// Check asks once, over a connection of its own.
func (c Redis) Check(ctx context.Context) error {
	secret, err := password(c.o.Password, c.o.PasswordFile)
	if err != nil {
		return err
	}
	return converse(ctx, place{c.o.Host, c.o.Port, c.o.Socket}, c.o.TLS, func(t *conversation) error {
		// All at once: the answers come in the order of the questions.
		if err := t.send(c.questions(secret)); err != nil {
			return err
		}
		return c.judge(redisReader{bufio.NewReader(t), secret})
	})
}

func (c Redis) questions(secret string) []byte {
	var b []byte
	switch {
	case c.o.Username != "":
		b = redisCommand(b, "AUTH", c.o.Username, secret)
	case secret != "":
		b = redisCommand(b, "AUTH", secret)
	}
	b = redisCommand(b, "PING")
	if c.o.Role != "" {
		b = redisCommand(b, "ROLE")
	}
	return b
}

// redisCommand appends a command as the array of strings that the protocol wants.
func redisCommand(b []byte, words ...string) []byte {
	b = fmt.Appendf(b, "*%d\r\n", len(words))
	for _, w := range words {
		b = fmt.Appendf(b, "$%d\r\n%s\r\n", len(w), w)
	}
	return b
}

// judge reads the answers.
func (c Redis) judge(r redisReader) error {
	if r.secret != "" { // so AUTH was sent
		if _, err := r.reply("log in"); err != nil {
			return err
		}
	}
	pong, err := r.reply("ping")
	if err != nil {
		return err
	}
	if pong != "PONG" {
		return r.stranger(pong)
	}
	if c.o.Role == "" {
		return nil
	}
	role, err := r.reply("ask for the role")
	if err != nil {
		return err
	}
	if role == "slave" { // the word of the protocol
		role = "replica"
	}
	if role != c.o.Role {
		return fmt.Errorf("role is %s, not %s", plain(r.conceal(role)), c.o.Role)
	}
	return nil
}

const (
	maxRedisLine = 4 << 10 // bytes of a line, the words of an error included
	maxRedisBulk = 4 << 10 // bytes of a string
)

// redisReader reads replies. The secret goes out of everything that is repeated of them: a server that does not know
// AUTH quotes what it was sent, and an echo sends it back.
type redisReader struct {
	*bufio.Reader
	secret string
}

func (r redisReader) conceal(text string) string {
	if r.secret == "" {
		return text
	}
	for n := len(r.secret); n >= min(len(r.secret), tellingPart); n-- { // servers cut off what they quote
		if begin := r.secret[:n]; strings.Contains(text, begin) {
			return strings.ReplaceAll(text, begin, Secret(r.secret).String())
		}
	}
	return text
}

// tellingPart is how many bytes of a secret's beginning are not shown either.
const tellingPart = 16

func (r redisReader) stranger(said string) error { return stranger("Redis", []byte(r.conceal(said))) }

// reply reads the answer to what the check was doing and returns its text; of an array it reads no more than the first
// element, and returns that. Layout (RESP 2): "+text", "-error", ":number", "$length" and that many bytes, "*count" and
// that many replies; each line ends in CRLF.
func (r redisReader) reply(doing string) (string, error) {
	line, err := r.line()
	if err == nil && strings.HasPrefix(line, "*") {
		if n, bad := strconv.Atoi(line[1:]); bad != nil || n < 1 {
			return "", r.stranger(line)
		}
		line, err = r.line()
	}
	switch {
	case err != nil:
		return "", err
	case line == "":
		return "", r.stranger(line)
	}
	text := line[1:]
	switch line[0] {
	case '+', ':':
		return text, nil
	case '-':
		return "", fmt.Errorf("%s: the server says %s", doing, plain(r.conceal(text)))
	case '$':
		return r.bulk(text)
	}
	return "", r.stranger(line)
}

func (r redisReader) line() (string, error) {
	var line []byte
	for len(line) <= maxRedisLine {
		part, err := r.ReadSlice('\n')
		line = append(line, part...)
		if err == nil && len(line) <= maxRedisLine {
			return strings.TrimRight(string(line), "\r\n"), nil
		}
		if err != nil && !errors.Is(err, bufio.ErrBufferFull) {
			return "", err
		}
	}
	return "", fmt.Errorf("answer has a line of more than %d bytes", maxRedisLine)
}

func (r redisReader) bulk(length string) (string, error) {
	n, err := strconv.Atoi(length)
	if err != nil || n < 0 || n > maxRedisBulk {
		return "", r.stranger("$" + length)
	}
	b := make([]byte, n+2)
	if _, err := io.ReadFull(r, b); err != nil {
		return "", err
	}
	return string(b[:n]), nil
}
