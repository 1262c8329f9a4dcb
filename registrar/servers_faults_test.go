package registrar

import (
	"bufio"
	"bytes"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"
)

// says sends text at once, whatever it is asked, and waits for the client to go.
func says(text string) func(net.Conn, <-chan struct{}) {
	return func(c net.Conn, _ <-chan struct{}) {
		_, _ = io.WriteString(c, text)
		_, _ = io.Copy(io.Discard, c)
	}
}

// saysAndCloses sends text behind the first request, and closes.
func saysAndCloses(text string) func(net.Conn, <-chan struct{}) {
	return func(c net.Conn, _ <-chan struct{}) {
		_, _ = c.Read(make([]byte, 4096))
		_, _ = io.WriteString(c, text)
	}
}

// echoes sends back what it gets.
func echoes(c net.Conn, _ <-chan struct{}) { _, _ = io.Copy(c, c) }

// serverChecks makes each of the checks, for one port.
func serverChecks(t *testing.T, p uint16) map[string]HealthCheck {
	z, err := NewZooKeeper(ZooKeeperOptions{Host: "127.0.0.1", Port: p})
	require.NoError(t, err)
	return map[string]HealthCheck{
		"redis":      newRedis(t, RedisOptions{Port: p}),
		"redis auth": newRedis(t, RedisOptions{Port: p, Username: "u", Password: "hunter2", Role: "master"}),
		"mysql":      newMySQL(t, MySQLOptions{Port: p}),
		"postgres":   newPostgres(t, PostgresOptions{Port: p}),
		"amqp":       newAMQP(t, AMQPOptions{Port: p}),
		"amqp login": newAMQP(t, AMQPOptions{Port: p, Username: "guest", Password: "hunter2"}),
		"zookeeper":  z,
	}
}

// TestServersThatAreNone: a check of a server passes for none of those who are something else, ends within its limit,
// and says in one short line what is there.
func TestServersThatAreNone(t *testing.T) {
	silent := func(_ net.Conn, end <-chan struct{}) { <-end }
	random := make([]byte, 4096)
	for i := range random {
		random[i] = byte(i * i >> 3)
	}
	for name, serve := range map[string]func(net.Conn, <-chan struct{}){
		"never answers": silent,
		"closes":        func(net.Conn, <-chan struct{}) {},
		"is HTTP":       saysAndCloses("HTTP/1.1 400 Bad Request\r\nContent-Length: 0\r\n\r\n"),
		"is SSH":        says("SSH-2.0-OpenSSH_9.2p1\r\n"),
		"is SMTP":       says("220 mail.example.com ESMTP\r\n"),
		"echoes":        echoes,
		"zeros":         says(strings.Repeat("\x00", 4096)),
		"ones":          says(strings.Repeat("\xff", 4096)),
		"noise":         says(string(random)),
		"no end": func(c net.Conn, _ <-chan struct{}) {
			for {
				if _, err := io.WriteString(c, strings.Repeat("x", 4096)); err != nil {
					return
				}
			}
		},
		"no end of lines": func(c net.Conn, _ <-chan struct{}) {
			for {
				if _, err := io.WriteString(c, strings.Repeat("x\n", 2048)); err != nil {
					return
				}
			}
		},
	} {
		p := rawServer(t, serve)
		for kind, c := range serverChecks(t, p) {
			t.Run(kind+" "+name, func(t *testing.T) {
				err := Check{HealthCheck: c, Timeout: moment}.run(t.Context())
				require.Error(t, err)
				require.Regexp(t, `^[ -~]+$`, err.Error(), "one line of plain letters")
				require.Less(t, len(err.Error()), 400)
				require.NotContains(t, err.Error(), "hunter2")
			})
		}
	}
}

// greeting10 is that of a MariaDB 10.11, without its length and number.
const greeting10 = "\n5.5.5-10.11.19-MariaDB\x00\x07\x00\x00\x00Zb:Uaz>K\x00\xfe\xf7\x2d\x02\x00\xff\x81\x15\x00\x00\x00\x00\x00\x00\x1d\x00\x00\x00abcdefghijkl\x00mysql_native_password\x00"

func myPacket(seq byte, payload string) string {
	return string(appendMySQLPacket(nil, seq, []byte(payload)))
}

func pgMessage(kind byte, body string) string {
	n := len(body) + 4
	return string([]byte{kind, byte(n >> 24), byte(n >> 16), byte(n >> 8), byte(n)}) + body
}

// pgError is an ErrorResponse as servers since 9.6 send it.
func pgError(code, text string) string {
	return pgMessage('E', "SFATAL\x00VFATAL\x00C"+code+"\x00M"+text+"\x00Fpostinit.c\x00L948\x00\x00")
}

func amqpFrameOf(method uint32, arguments string) string {
	return string(amqpMethod(nil, method, []byte(arguments)))
}

const (
	amqpGreeting = "\x00\x09\x00\x00\x00\x00\x00\x00\x00\x0eAMQPLAIN PLAIN\x00\x00\x00\x05en_US"
	amqpLimits   = "\x07\xff\x00\x02\x00\x00\x00\x3c"
)

// TestServersAnswers: what each answer is taken for. The server sends all of it at once.
func TestServersAnswers(t *testing.T) {
	denied := myPacket(2, "\xff\x15\x04#28000Access denied for user 'myelin-check'@'db-1' (using password: NO)")
	login := amqpFrameOf(amqpStart, amqpGreeting) + amqpFrameOf(amqpTune, amqpLimits)
	for _, c := range []struct {
		kind, name, says string
		want             string // "" passes
	}{
		{"redis", "pong", "+PONG\r\n", ""},
		{"redis", "pong as a string", "$4\r\nPONG\r\n", ""},
		{"redis", "another word", "+OK\r\n", `does not speak Redis: it says "OK"`},
		{"redis", "a number", ":1\r\n", `does not speak Redis: it says "1"`},
		{"redis", "an empty line", "\r\n", `does not speak Redis: it says ""`},
		{"redis", "no string", "$-1\r\n", `does not speak Redis: it says "$-1"`},
		{"redis", "a string too long", "$9999999999\r\n", `does not speak Redis: it says "$9999999999"`},
		{"redis", "an empty array", "*0\r\n", `does not speak Redis: it says "*0"`},
		{"redis", "arrays of arrays", "*1\r\n*1\r\n*1\r\n", `does not speak Redis: it says "*1"`},
		{"redis", "loading", "-LOADING Redis is loading the dataset in memory\r\n", "ping: the server says LOADING Redis is loading the dataset in memory"},
		{"redis", "colours", "-ERR \x1b[31mred\r\n", "ping: the server says ERR [31mred"},
		{"redis", "a long line", "-ERR " + strings.Repeat("x", 5000) + "\r\n", "answer has a line of more than 4096 bytes"},
		{"redis", "no TLS asked", "\x15\x03\x03\x00\x02\x02\x0a\r\n", `does not speak Redis: it sends 15 03 03 00 02 02`},
		{"redis auth", "a master", "+OK\r\n+PONG\r\n*3\r\n$6\r\nmaster\r\n:0\r\n*0\r\n", ""},
		{"redis auth", "a replica", "+OK\r\n+PONG\r\n*5\r\n$5\r\nslave\r\n", "role is replica, not master"},
		{"redis auth", "a sentinel", "+OK\r\n+PONG\r\n*2\r\n$8\r\nsentinel\r\n*0\r\n", "role is sentinel, not master"},
		{"redis auth", "no right to ask", "+OK\r\n+PONG\r\n-NOPERM User u has no permissions to run the 'role' command\r\n", "ask for the role: the server says NOPERM User u has no permissions to run the 'role' command"},
		{"redis auth", "what it was sent", "-ERR unknown command 'AUTH', with args beginning with: 'u' 'hunter2'\r\n", "log in: the server says ERR unknown command 'AUTH', with args beginning with: 'u' '(not shown)'"},
		{"redis auth", "the password alone", "hunter2\r\n", `does not speak Redis: it says "(not shown)"`},
		{"redis auth", "the password as a role", "+OK\r\n+PONG\r\n+hunter2\r\n", "role is (not shown), not master"},

		{"mysql", "a refused login", myPacket(0, greeting10) + denied, ""},
		{"mysql", "a login", myPacket(0, greeting10) + myPacket(2, "\x00\x00\x00\x02\x00\x00\x00"), ""},
		{"mysql", "another method, then a refusal", myPacket(0, greeting10) + myPacket(2, "\xfecaching_sha2_password\x00aaaaaaaaaaaaaaaaaaaa\x00") + myPacket(4, "\x01\x04") + denied, ""},
		{"mysql", "ever another method", myPacket(0, greeting10) + strings.Repeat(myPacket(2, "\xfe"), 20), "the login has no end"},
		{"mysql", "host blocked", myPacket(0, "\xff\x69\x04Host 'db-1' is blocked because of many connection errors; unblock with 'mariadb-admin flush-hosts'"), "the server says Host 'db-1' is blocked because of many connection errors; unblock with 'mariadb-admin flush-hosts' (error 1129)"},
		{"mysql", "too many connections", myPacket(0, "\xff\x10\x04#08004Too many connections"), "the server says Too many connections (error 1040)"},
		{"mysql", "host not allowed", myPacket(0, "\xff\x6a\x04Host 'db-1' is not allowed to connect to this MariaDB server"), ""},
		{"mysql", "TLS required", myPacket(0, greeting10) + myPacket(2, "\xff\x57\x0c#HY000Connections using insecure transport are prohibited while --require_secure_transport=ON."), ""},
		{"mysql", "shutdown", myPacket(0, greeting10) + myPacket(2, "\xff\x1d\x04#08S01Server shutdown in progress"), "the server says Server shutdown in progress (error 1053)"},
		{"mysql", "offline", myPacket(0, greeting10) + myPacket(2, "\xff\xd8\x0b#HY000The server is currently in offline mode"), "the server says The server is currently in offline mode (error 3032)"},
		{"mysql", "protocol 9", myPacket(0, "\x093.20.32\x00"), `does not speak MySQL: it says "3.20.32"`},
		{"mysql", "a server before 4.1", myPacket(0, "\n4.0.30\x00\x01\x00\x00\x00Zb:Uaz>K\x00\x2c\x00\x08\x02\x00"+strings.Repeat("\x00", 13)), "the server is older than MySQL 4.1: version 4.0.30"},
		{"mysql", "a greeting without its end", myPacket(0, greeting10[:40]), `does not speak MySQL: it says "5.5.5-10.11.19-MariaDB Zb:Uaz>K ?-"`},
		{"mysql", "a greeting without NUL", myPacket(0, "\n5.5.5"), `does not speak MySQL: it says "5.5.5"`},
		{"mysql", "an error of no length", myPacket(0, "\xff"), `does not speak MySQL: it says "?"`},
		{"mysql", "an empty packet", "\x00\x00\x00\x00", `does not speak MySQL: it sends 00 00 00 00`},
		{"mysql", "something else after the greeting", myPacket(0, greeting10) + myPacket(2, "\x55"), `does not speak MySQL: it says "U"`},

		{"postgres", "a password asked for", pgMessage('R', "\x00\x00\x00\x0aSCRAM-SHA-256\x00\x00"), ""},
		{"postgres", "a login", pgMessage('R', "\x00\x00\x00\x00") + pgMessage('S', "server_version\x0015.18\x00") + pgMessage('K', "\x00\x00\x00\x01\x00\x00\x00\x02") + pgMessage('Z', "I"), ""},
		{"postgres", "a login that ends in an error", pgMessage('R', "\x00\x00\x00\x00") + pgError("53300", "too many connections for role \"postgres\""), `the server says too many connections for role "postgres" (53300)`},
		{"postgres", "no such user", pgError("28000", `role "postgres" does not exist`), ""},
		{"postgres", "no such database", pgMessage('R', "\x00\x00\x00\x00") + pgError("3D000", `database "postgres" does not exist`), ""},
		{"postgres", "starting up", pgError("57P03", "the database system is starting up"), "the server says the database system is starting up (57P03)"},
		{"postgres", "shutting down", pgError("57P03", "the database system is shutting down"), "the server says the database system is shutting down (57P03)"},
		{"postgres", "too many connections", pgError("53300", "sorry, too many clients already"), "the server says sorry, too many clients already (53300)"},
		{"postgres", "no process", "Ecould not fork new process for connection: Resource temporarily unavailable\n\x00", "the server says could not fork new process for connection: Resource temporarily unavailable"},
		{"postgres", "an error without words", pgMessage('E', "\x00"), "the server says that something is wrong, but not what"},
		{"postgres", "an error without its end", pgMessage('E', "SFATAL\x00C57P03"), "the server says that something is wrong, but not what"},
		{"postgres", "half an authentication", pgMessage('R', "\x00"), `does not speak PostgreSQL: it sends 00`},
		{"postgres", "a kind of message that is not", pgMessage('Q', "select"), `does not speak PostgreSQL: it says "Qselect"`},
		{"postgres", "a negative length", "R\x00\x00\x00\x00", `does not speak PostgreSQL: it sends 52 00 00 00 00`},

		{"amqp", "a greeting", amqpFrameOf(amqpStart, amqpGreeting), ""},
		{"amqp", "a heartbeat before it", "\x08\x00\x00\x00\x00\x00\x00\xce" + amqpFrameOf(amqpStart, amqpGreeting), ""},
		{"amqp", "another version", "AMQP\x00\x01\x00\x00", "the broker speaks AMQP 1-0-0, not 0-9-1"},
		{"amqp", "a refusal", amqpFrameOf(amqpClose, "\x01\x40\x05sorry\x00\x00\x00\x00"), "the broker says sorry (320)"},
		{"amqp", "a refusal without its end", amqpFrameOf(amqpClose, "\x01\x40\x05sor"), `does not speak AMQP 0-9-1: it says "@ sor"`},
		{"amqp", "another method", amqpFrameOf(amqpTune, amqpLimits), "the broker goes on with method 10.30 instead of 10.10"},
		{"amqp", "a greeting without its end", amqpFrameOf(amqpStart, amqpGreeting[:12]), `does not speak AMQP 0-9-1: it sends 00 09 00 00 00 00 00 00 00 0e 41 4d`},
		{"amqp", "a frame without its end", "\x01\x00\x00\x00\x00\x00\x04\x00\x0a\x00\x0a!", `does not speak AMQP 0-9-1: it sends 01 00 00 00 00 00 04 00 0a 00 0a 21`},
		{"amqp", "half a method", "\x01\x00\x00\x00\x00\x00\x01\x00\xce", `does not speak AMQP 0-9-1: it sends 00`},
		{"amqp", "a frame too long", "\x01\x00\x00\xff\xff\xff\xff", `does not speak AMQP 0-9-1: it sends 01 00 00 ff ff ff ff`},
		{"amqp login", "all of it", login + amqpFrameOf(amqpOpenOk, "\x00") + amqpFrameOf(amqpCloseOk, ""), ""},
		{"amqp login", "no PLAIN", amqpFrameOf(amqpStart, "\x00\x09\x00\x00\x00\x00\x00\x00\x00\x08EXTERNAL\x00\x00\x00\x00"), "log in: the broker takes no PLAIN, but EXTERNAL"},
		{"amqp login", "a refused login", amqpFrameOf(amqpStart, amqpGreeting) + amqpFrameOf(amqpClose, "\x01\x93\x0eACCESS_REFUSED\x00\x00\x00\x00"), "log in: the broker says ACCESS_REFUSED (403)"},
		{"amqp login", "half its limits", amqpFrameOf(amqpStart, amqpGreeting) + amqpFrameOf(amqpTune, amqpLimits[:7]), `does not speak AMQP 0-9-1: it sends 07 ff 00 02 00 00 00`},
		{"amqp login", "no such virtual host", login + amqpFrameOf(amqpClose, "\x02\x12\x0bNOT_ALLOWED\x00\x0a\x00\x28"), "open virtual host /: the broker says NOT_ALLOWED (530)"},

		{"zookeeper", "no version", "Mode: leader\n", `does not speak ZooKeeper: it says "Mode: leader"`},
	} {
		t.Run(c.kind+" "+c.name, func(t *testing.T) {
			p := rawServer(t, says(c.says))
			if c.kind == "zookeeper" { // whose answer ends with the connection
				p = rawServer(t, saysAndCloses(c.says))
			}
			err := once(t, serverChecks(t, p)[c.kind])
			if c.want == "" {
				require.NoError(t, err)
				return
			}
			require.EqualError(t, err, c.want)
		})
	}
}

// TestServersThatStopHalfWay: an answer that lacks its last byte is none, whether the server closes or stalls.
func TestServersThatStopHalfWay(t *testing.T) {
	for kind, full := range map[string]string{
		"redis":      "+PONG\r\n",
		"redis auth": "+OK\r\n+PONG\r\n*3\r\n$6\r\nmaster\r\n",
		"mysql":      myPacket(0, greeting10) + myPacket(2, "\x00\x00\x00\x02\x00\x00\x00"),
		"postgres":   pgMessage('R', "\x00\x00\x00\x00") + pgMessage('S', "a\x00b\x00") + pgMessage('Z', "I"),
		"amqp":       amqpFrameOf(amqpStart, amqpGreeting),
		"amqp login": amqpFrameOf(amqpStart, amqpGreeting) + amqpFrameOf(amqpTune, amqpLimits) + amqpFrameOf(amqpOpenOk, "\x00") + amqpFrameOf(amqpCloseOk, ""),
	} {
		t.Run(kind, func(t *testing.T) {
			require.NoError(t, once(t, serverChecks(t, rawServer(t, says(full)))[kind]))
			for _, n := range []int{0, 1, len(full) / 2, len(full) - 1} {
				stalls := rawServer(t, says(full[:n]))
				err := Check{HealthCheck: serverChecks(t, stalls)[kind], Timeout: moment}.run(t.Context())
				require.ErrorContains(t, err, "no answer within 60ms", "%d bytes of %d", n, len(full))
				closes := rawServer(t, func(c net.Conn, _ <-chan struct{}) {
					_, _ = io.WriteString(c, full[:n])
					_ = c.(*net.TCPConn).CloseWrite()
					_, _ = io.Copy(io.Discard, c)
				})
				err = once(t, serverChecks(t, closes)[kind])
				require.ErrorContains(t, err, "read answer: connection closed", "%d bytes of %d", n, len(full))
			}
		})
	}
}

func TestZooKeeperAnswer(t *testing.T) {
	srvr := func(mode string) string {
		return "Zookeeper version: 3.8.0-${mvnGitCommitId}, built on 2022-12-18\nLatency min/avg/max: 0/0.0/0\nReceived: 1\nSent: 0\nConnections: 1\nOutstanding: 0\nZxid: 0x0\n" + mode + "Node count: 5\n"
	}
	for answer, want := range map[string]string{
		srvr("Mode: leader\n"):          "",
		srvr("Mode: follower\r\n"):      "",
		srvr("Mode: observer\n"):        "",
		srvr("Mode: standalone\n"):      "",
		srvr("Mode: read-only\n"):       "the server is read-only: it has no quorum",
		srvr("Mode: l\x1bster\n"):       `the server's mode is "l ster"`,
		srvr(""):                        "the server does not say its mode",
		"":                              "read answer: connection closed",
		strings.Repeat("x", maxReply+1): "answer has more than 65536 bytes",
		"imok":                          `does not speak ZooKeeper: it says "imok"`,
		"This ZooKeeper instance is not currently serving requests\n": "the server is not serving requests: it has no quorum, or has just started",
		"srvr is not executed because it is not in the whitelist.\n":  "the server does not answer srvr; add it to 4lw.commands.whitelist in its zoo.cfg",
	} {
		c, err := NewZooKeeper(ZooKeeperOptions{Host: "127.0.0.1", Port: rawServer(t, saysAndCloses(answer))})
		require.NoError(t, err)
		err = once(t, c)
		if want == "" {
			require.NoError(t, err, answer)
			continue
		}
		require.EqualError(t, err, want, answer)
	}
	require.NoError(t, zooKeeperAnswer("ruok", "imok"))
	require.EqualError(t, zooKeeperAnswer("ruok", "imok, or am I"), `does not speak ZooKeeper: it says "imok, or am I"`)
}

// TestServersRequests: what is sent, byte by byte.
func TestServersRequests(t *testing.T) {
	require.Equal(t, "*1\r\n$4\r\nPING\r\n", string(Redis{}.questions("")))
	require.Equal(t, "*2\r\n$4\r\nAUTH\r\n$3\r\npw1\r\n*1\r\n$4\r\nPING\r\n", string(Redis{}.questions("pw1")))
	require.Equal(t, "*3\r\n$4\r\nAUTH\r\n$1\r\nu\r\n$3\r\npw1\r\n*1\r\n$4\r\nPING\r\n*1\r\n$4\r\nROLE\r\n",
		string(Redis{RedisOptions{Username: "u", Role: "master"}}.questions("pw1")))
	require.Equal(t, "\x00\x00\x00\x39\x00\x03\x00\x00user\x00u\x00database\x00d\x00application_name\x00myelin-check\x00\x00",
		string(postgresStartup("u", "d")))
	require.Equal(t, "\x01\x82\x08\x00\x00\x00\x00\x01\x21"+strings.Repeat("\x00", 23)+"u\x00\x00mysql_native_password\x00",
		string(mySQLLogin(0xffffffff, "u")))
	require.Equal(t, "\x01\x82\x00\x00\x00\x00\x00\x01\x21"+strings.Repeat("\x00", 23)+"u\x00\x00", string(mySQLLogin(mySQLProtocol41, "u")))
	require.Equal(t, "\x00\x00\x00\x4a\x07productS\x00\x00\x00\x0cmyelin-check\x0ccapabilitiesF\x00\x00\x00\x1f\x1cauthentication_failure_closet\x01"+
		"\x05PLAIN\x00\x00\x00\x05\x00u\x00pw\x05en_US", string(amqpCredentials("u", "pw")))
}

func TestNewServerChecks(t *testing.T) {
	long := strings.Repeat("x", 2000)
	for want, f := range map[string]func() error{
		"make redis check: role \"slave\" is neither master nor replica": func() error { _, err := NewRedis(RedisOptions{Role: "slave"}); return err },
		"make redis check: the username has no password":                 func() error { _, err := NewRedis(RedisOptions{Username: "u"}); return err },
		"make mysql check: the username is not the name of an account":   func() error { _, err := NewMySQL(MySQLOptions{Username: long}); return err },
		"make postgres check: \"a b\" is not a name":                     func() error { _, err := NewPostgres(PostgresOptions{Database: "a\x00b"}); return err },
		"make amqp check: the virtual host has more than 255 bytes":      func() error { _, err := NewAMQP(AMQPOptions{VirtualHost: long}); return err },
		"make amqp check: the username is not the name of a user":        func() error { _, err := NewAMQP(AMQPOptions{Username: "a\x00"}); return err },
		"make amqp check: the password has no username":                  func() error { _, err := NewAMQP(AMQPOptions{Password: "p"}); return err },
		"make zookeeper check: word \"stat\" is neither srvr nor ruok":   func() error { _, err := NewZooKeeper(ZooKeeperOptions{Word: "stat"}); return err },
	} {
		require.EqualError(t, f(), want)
	}
}

func TestPassword(t *testing.T) {
	file := filepath.Join(t.TempDir(), "password")
	for text, want := range map[string]string{"pw\n": "", "pw": "", "pw\r\n\n": "", "": "password file FILE is empty", "\n": "password file FILE is empty",
		strings.Repeat("x", maxPassword+1): "password file FILE has more than 4096 bytes"} {
		require.NoError(t, os.WriteFile(file, []byte(text), 0o600))
		got, err := password("text", file)
		if want == "" {
			require.NoError(t, err)
			require.Equal(t, "pw", got)
			continue
		}
		require.EqualError(t, err, strings.ReplaceAll(want, "FILE", file))
	}
	got, err := password("text", "")
	require.NoError(t, err)
	require.Equal(t, "text", got)
	_, err = password("", filepath.Dir(file))
	require.EqualError(t, err, fmt.Sprintf("read password file %s: is a directory", filepath.Dir(file)))
	require.Equal(t, "(not shown) (not shown)", fmt.Sprintf("%v %#v", Secret("pw"), Secret("pw")))
	require.Empty(t, Secret("").String())
}

// tame holds that an error can stand in a log, and is none of the reader's own faults.
func tame(t *testing.T, err error) {
	t.Helper()
	if err == nil || errors.Is(err, io.EOF) || errors.Is(err, io.ErrUnexpectedEOF) {
		return
	}
	if len(err.Error()) > 1000 || strings.ContainsFunc(err.Error(), func(r rune) bool { return r < ' ' || r == 0x7f }) {
		t.Fatalf("the error is %q", err)
	}
}

func FuzzRedis(f *testing.F) {
	for _, s := range []string{"+OK\r\n+PONG\r\n*3\r\n$6\r\nmaster\r\n", "-ERR x\r\n", "$5\r\nhello\r\n", "*-1\r\n", "hunter2\r\n"} {
		f.Add([]byte(s))
	}
	c := Redis{RedisOptions{Role: "master"}}
	f.Fuzz(func(t *testing.T, said []byte) {
		err := c.judge(redisReader{bufio.NewReader(bytes.NewReader(said)), "hunter2"})
		tame(t, err)
		if err != nil && strings.Contains(err.Error(), "hunter2") {
			t.Fatalf("the error shows the password: %v", err)
		}
		if err == nil && !bytes.Contains(said, []byte("PONG")) {
			t.Fatal("passed without PONG")
		}
	})
}

func FuzzMySQL(f *testing.F) {
	for _, s := range []string{greeting10, "\xff\x69\x04Host", "\xff\x15\x04#28000no", "\x0a", ""} {
		f.Add([]byte(myPacket(0, s)))
	}
	f.Fuzz(func(t *testing.T, said []byte) {
		_, payload, err := mySQLPacket(bytes.NewReader(said))
		if err == nil {
			_, err = mySQLGreeting(payload)
			tame(t, mySQLRefusal(err))
			tame(t, mySQLRefusal(mySQLError(payload)))
		}
		tame(t, err)
	})
}

func FuzzPostgres(f *testing.F) {
	for _, s := range []string{pgMessage('R', "\x00\x00\x00\x00") + pgMessage('Z', "I"), pgError("57P03", "no"), "Ecould not fork\n\x00", "N"} {
		f.Add([]byte(s))
	}
	f.Fuzz(func(t *testing.T, said []byte) {
		in, err := postgresVerdict(bytes.NewReader(said))
		tame(t, err)
		if in && err != nil {
			t.Fatalf("logged in, with %v", err)
		}
	})
}

func FuzzAMQP(f *testing.F) {
	for _, s := range []string{amqpFrameOf(amqpStart, amqpGreeting), amqpFrameOf(amqpClose, "\x01\x40\x05sorry\x00\x00\x00\x00"), "AMQP\x00\x01\x00\x00"} {
		f.Add([]byte(s))
	}
	f.Fuzz(func(t *testing.T, said []byte) {
		arguments, err := amqpExpect(bytes.NewReader(said), amqpStart)
		if err == nil {
			var mechanisms []string
			mechanisms, err = amqpMechanisms(arguments)
			if slices.Contains(mechanisms, "") {
				t.Fatal("a mechanism without a name")
			}
		}
		tame(t, err)
	})
}

func FuzzZooKeeper(f *testing.F) {
	for _, s := range []string{"Zookeeper version: 3\nMode: leader\n", "imok", "srvr is not executed because it is not in the whitelist.\n"} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, said string) {
		for _, word := range []string{"srvr", "ruok"} {
			tame(t, zooKeeperAnswer(word, said))
		}
	})
}

func FuzzPlain(f *testing.F) {
	f.Add("a\x1b[31m\xff" + strconv.Itoa(1))
	f.Fuzz(func(t *testing.T, s string) { tame(t, errors.New(plain(s))) })
}

// TestRedisPasswordCutOff: a server that quotes only the beginning of what it was sent does not give that away.
func TestRedisPasswordCutOff(t *testing.T) {
	secret := strings.Repeat("0123456789abcdef", 16)
	c, err := NewRedis(RedisOptions{Port: 1, Password: Secret(secret)})
	require.NoError(t, err)
	said := "-ERR unknown command 'AUTH', with args beginning with: '" + secret[:128] + "'\r\n"
	require.EqualError(t, c.judge(redisReader{bufio.NewReader(strings.NewReader(said)), secret}),
		"log in: the server says ERR unknown command 'AUTH', with args beginning with: '(not shown)'")
	said = "-ERR it was 0123456789\r\n"
	require.EqualError(t, c.judge(redisReader{bufio.NewReader(strings.NewReader(said)), secret}),
		"log in: the server says ERR it was 0123456789", "too little to tell anything")
}

// TestLongErrors: what a server says is not kept, and not written into the log, at any length.
func TestLongErrors(t *testing.T) {
	port := rawServer(t, says("HTTP/1.1 "+strings.Repeat("x", 60<<10)+"\r\n\r\n"))
	c, err := NewHTTP(HTTPOptions{Host: "127.0.0.1", Port: port, URI: "/"})
	require.NoError(t, err)
	require.Greater(t, len(c.Check(t.Context()).Error()), 60<<10)
	err = Check{HealthCheck: c}.run(t.Context())
	require.ErrorContains(t, err, "malformed HTTP")
	require.Less(t, len(err.Error()), maxError+4)
}
