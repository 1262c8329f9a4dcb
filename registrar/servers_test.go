package registrar

import (
	"bufio"
	"bytes"
	"fmt"
	"io"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/myelin-sd/myelin/discovery/zookeeper/zktest"
)

// nobody is who a server runs as that refuses to be root.
const nobody = 65534

// installed returns the path of a server's program: in one of the places, or in PATH. It skips the test when there is
// none, and fails it when CI=true.
func installed(t *testing.T, pkg, name string, places ...string) string {
	t.Helper()
	for _, pattern := range places {
		paths, err := filepath.Glob(filepath.Join(pattern, name))
		require.NoError(t, err)
		if len(paths) > 0 {
			return paths[len(paths)-1] // the newest of several versions
		}
	}
	if path, err := exec.LookPath(name); err == nil {
		return path
	}
	if os.Getenv("CI") == "true" {
		t.Fatalf("CI must have a real server of %s: there is no %s", pkg, name)
	}
	t.Skipf("NOT TESTED against a real server: there is no %s; install it (apt-get install %s) to run this test", name, pkg)
	return ""
}

// folder is a new one that a server of another user can write. Its path is short: it may hold sockets.
func folder(t *testing.T) string {
	t.Helper()
	dir, err := os.MkdirTemp("", "check")
	require.NoError(t, err)
	t.Cleanup(func() { require.NoError(t, os.RemoveAll(dir)) })
	own(t, dir)
	return dir
}

// own hands a file over to the user that servers run as.
func own(t *testing.T, path string) {
	t.Helper()
	if os.Getuid() == 0 {
		require.NoError(t, os.Chown(path, nobody, nobody))
	}
}

// certificates are those of a server and of who vouches for it, where a server of another user can read them.
func certificates(t *testing.T, dir string) (server string, trust *TLSOptions) {
	t.Helper()
	files, err := zktest.WriteCertificates(filepath.Join(dir, "tls"))
	require.NoError(t, err)
	server = filepath.Join(dir, "tls", "server.pem") // the key too
	for _, path := range []string{filepath.Dir(server), server, files.CA} {
		own(t, path)
	}
	return server, &TLSOptions{Verify: true, CA: readFile(t, files.CA)}
}

func readFile(t *testing.T, path string) []byte {
	t.Helper()
	b, err := os.ReadFile(path)
	require.NoError(t, err)
	return b
}

// unknownAuthority is what a check says whose TLSOptions trust somebody else.
const unknownAuthority = "tls: failed to verify certificate: x509: certificate signed by unknown authority"

func freePort(t *testing.T) uint16 { return closedPort(t) }

// server is a running program, and what it said.
type server struct {
	t    *testing.T
	name string
	cmd  *exec.Cmd
	done chan struct{} // closed when the program has ended

	mu   sync.Mutex
	said bytes.Buffer
}

// command makes a command that runs in dir, as an ordinary user, in a process group of its own.
func command(dir, path string, args ...string) *exec.Cmd {
	cmd := exec.Command(path, args...)
	cmd.Dir = dir
	cmd.Env = append(os.Environ(), "HOME="+dir, "TMPDIR="+dir, "LC_ALL=C")
	cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true}
	if os.Getuid() == 0 {
		cmd.SysProcAttr.Credential = &syscall.Credential{Uid: nobody, Gid: nobody}
	}
	return cmd
}

// start runs a server until the test ends. Its whole process group ends then.
func start(t *testing.T, cmd *exec.Cmd) *server {
	t.Helper()
	s := &server{t: t, name: filepath.Base(cmd.Path), cmd: cmd, done: make(chan struct{})}
	cmd.Stdout, cmd.Stderr = s, s
	require.NoError(t, cmd.Start())
	go func() {
		defer close(s.done)
		_ = cmd.Wait()
	}()
	t.Cleanup(s.kill)
	return s
}

// Write takes what the server says.
func (s *server) Write(b []byte) (int, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.said.Write(b)
}

func (s *server) log() string {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.said.String()
}

func (s *server) signal(sig syscall.Signal) { require.NoError(s.t, s.cmd.Process.Signal(sig)) }

func (s *server) kill() {
	_ = syscall.Kill(-s.cmd.Process.Pid, syscall.SIGKILL)
	<-s.done
	if s.t.Failed() {
		log := s.log()
		s.t.Logf("%s said:\n%s", s.name, log[max(0, len(log)-8000):])
	}
}

// eventually waits until a check passes, as long as the server runs.
func (s *server) eventually(c HealthCheck) {
	s.t.Helper()
	s.await("a check that passes", func() bool { return once(s.t, c) == nil })
}

// await waits for what the server does.
func (s *server) await(what string, done func() bool) {
	s.t.Helper()
	deadline := time.Now().Add(time.Minute)
	for !done() {
		select {
		case <-s.done:
			s.t.Fatalf("%s has ended before %s", s.name, what)
		case <-time.After(20 * time.Millisecond):
		}
		if time.Now().After(deadline) {
			s.t.Fatalf("%s: no sign of %s", s.name, what)
		}
	}
}

// once makes a check as the registrar does.
func once(t *testing.T, c HealthCheck) error {
	t.Helper()
	return Check{HealthCheck: c, Timeout: patience}.run(t.Context())
}

func runs(t *testing.T, cmd *exec.Cmd) string {
	t.Helper()
	out, err := cmd.CombinedOutput()
	require.NoError(t, err, "%s: %s", cmd, out)
	return string(out)
}

// elsewhere is a port whose connections come to the server from 127.0.0.2: servers trust 127.0.0.1 more than others.
func elsewhere(t *testing.T, server uint16) uint16 {
	t.Helper()
	return rawServer(t, func(c net.Conn, _ <-chan struct{}) {
		d := net.Dialer{LocalAddr: &net.TCPAddr{IP: net.IPv4(127, 0, 0, 2)}}
		s, err := d.Dial("tcp", address("127.0.0.1", server))
		if err != nil {
			return
		}
		defer s.Close()
		var both sync.WaitGroup
		both.Go(func() {
			_, _ = io.Copy(s, c)
			_ = s.(*net.TCPConn).CloseWrite()
		})
		both.Go(func() {
			_, _ = io.Copy(c, s)
			_ = c.(*net.TCPConn).CloseWrite()
		})
		both.Wait()
	})
}

func newRedis(t *testing.T, o RedisOptions) Redis {
	t.Helper()
	o.Host = "127.0.0.1"
	c, err := NewRedis(o)
	require.NoError(t, err)
	return c
}

func TestRedisServer(t *testing.T) {
	t.Parallel()
	program := installed(t, "redis-server", "redis-server")
	dir := folder(t)
	master, replica := freePort(t), freePort(t)
	run := func(port uint16, args ...string) *server {
		args = append([]string{"--port", strconv.Itoa(int(port)), "--bind", "127.0.0.1", "--save", "", "--dir", dir, "--repl-diskless-sync-delay", "0"}, args...)
		return start(t, command(dir, program, args...))
	}
	certificate, trust := certificates(t, dir)
	secure, socket := freePort(t), filepath.Join(dir, "s")
	s := run(master, "--unixsocket", socket, "--tls-port", strconv.Itoa(int(secure)), "--tls-auth-clients", "no",
		"--tls-cert-file", certificate, "--tls-key-file", certificate, "--tls-ca-cert-file", certificate)
	any := newRedis(t, RedisOptions{Port: master})
	s.eventually(any)
	require.NoError(t, once(t, newRedis(t, RedisOptions{Port: master, Role: "master"})))
	require.EqualError(t, once(t, newRedis(t, RedisOptions{Port: master, Role: "replica"})), "role is master, not replica")
	require.NoError(t, once(t, newRedis(t, RedisOptions{Socket: socket, Role: "master"})))
	require.NoError(t, once(t, newRedis(t, RedisOptions{Port: secure, TLS: trust, Role: "master"})))
	require.EqualError(t, once(t, newRedis(t, RedisOptions{Port: secure, TLS: &TLSOptions{Verify: true}})),
		fmt.Sprintf("open TLS with 127.0.0.1:%d: %s", secure, unknownAuthority))
	require.Error(t, once(t, newRedis(t, RedisOptions{Port: secure})), "without TLS")
	require.EqualError(t, once(t, newRedis(t, RedisOptions{Port: master, Password: "hunter2"})),
		"log in: the server says ERR AUTH <password> called without any password configured for the default user. Are you sure your configuration is correct?")

	ask := func(words ...string) { // as a client does
		t.Helper()
		require.NoError(t, converse(t.Context(), place{host: "127.0.0.1", port: master}, nil, func(c *conversation) error {
			require.NoError(t, c.send(redisCommand(nil, words...)))
			_, err := (redisReader{bufio.NewReader(c), ""}).reply("ask")
			return err
		}))
	}
	r := run(replica, "--replicaof", "127.0.0.1 "+strconv.Itoa(int(master)), "--replica-serve-stale-data", "no")
	r.eventually(newRedis(t, RedisOptions{Port: replica, Role: "replica"}))
	require.EqualError(t, once(t, newRedis(t, RedisOptions{Port: replica, Role: "master"})), "role is replica, not master")

	ask("CONFIG", "SET", "requirepass", "hunter2")
	require.EqualError(t, once(t, any), "ping: the server says NOAUTH Authentication required.")
	require.EqualError(t, once(t, newRedis(t, RedisOptions{Port: master, Password: "hunter3"})),
		"log in: the server says WRONGPASS invalid username-password pair or user is disabled.")
	file := filepath.Join(t.TempDir(), "password")
	inFile := newRedis(t, RedisOptions{Port: master, PasswordFile: file, Role: "master"})
	require.EqualError(t, once(t, inFile), "open password file "+file+": no such file or directory")
	require.NoError(t, os.WriteFile(file, []byte("hunter2\n"), 0o600))
	require.NoError(t, once(t, inFile))
	require.NoError(t, once(t, newRedis(t, RedisOptions{Port: master, Password: "hunter2"})))
	require.NoError(t, once(t, newRedis(t, RedisOptions{Port: master, Username: "default", Password: "hunter2"})))

	s.kill()
	r.await("a replica that misses its master", func() bool {
		err := once(t, newRedis(t, RedisOptions{Port: replica}))
		return err != nil && strings.Contains(err.Error(), "MASTERDOWN")
	})
	require.EqualError(t, once(t, any), fmt.Sprintf("connect 127.0.0.1:%d: refused", master))
}

// TestRedisServerTroubles: a server that is full, or loads, or cannot be reached from here says so.
func TestRedisServerTroubles(t *testing.T) {
	t.Parallel()
	program := installed(t, "redis-server", "redis-server")
	dir := folder(t)
	port := freePort(t)
	args := []string{"--port", strconv.Itoa(int(port)), "--bind", "127.0.0.1", "--dir", dir, "--maxclients", "1", "--rdbcompression", "no"}
	s := start(t, command(dir, program, args...))
	c := newRedis(t, RedisOptions{Port: port})
	s.eventually(c)
	conn, err := dial(t.Context(), "127.0.0.1", port, patience)
	require.NoError(t, err)
	defer conn.Close()
	in := bufio.NewReader(conn)
	ask := func(words ...string) string { // as the one client that there may be
		t.Helper()
		_, err := conn.Write(redisCommand(nil, words...))
		require.NoError(t, err)
		text, err := redisReader{in, ""}.reply("ask")
		require.NoError(t, err)
		return text
	}
	require.Equal(t, "PONG", ask("PING"))
	require.EqualError(t, once(t, c), "ping: the server says ERR max number of clients reached")

	require.Equal(t, "OK", ask("CONFIG", "SET", "maxclients", "9"))
	require.NoError(t, once(t, c))
	for i := range 100 {
		require.Equal(t, "OK", ask("SET", strconv.Itoa(i), strings.Repeat("x", 2048)))
	}
	require.Equal(t, "OK", ask("SAVE"))
	s.kill()
	// Each key takes 100 ms to load, and behind each the server looks who is there.
	slow := append(args, "--key-load-delay", "100000", "--loading-process-events-interval-bytes", "1024")
	s = start(t, command(dir, program, slow...))
	s.await("an answer", func() bool {
		err := once(t, c)
		return err != nil && !strings.HasPrefix(err.Error(), "connect ")
	})
	require.EqualError(t, once(t, c), "ping: the server says LOADING Redis is loading the dataset in memory")
}

func newMySQL(t *testing.T, o MySQLOptions) MySQL {
	t.Helper()
	o.Host = "127.0.0.1"
	c, err := NewMySQL(o)
	require.NoError(t, err)
	return c
}

// mariaDB makes a data folder and starts a server on it.
type mariaDB struct {
	*server
	dir  string
	port uint16
}

func newMariaDB(t *testing.T, args ...string) *mariaDB {
	t.Helper()
	program := installed(t, "mariadb-server-core", "mariadbd", "/usr/sbin")
	m := &mariaDB{dir: folder(t), port: freePort(t)}
	small := []string{"--no-defaults", "--datadir=" + m.dir, "--innodb-log-file-size=4M", "--innodb-buffer-pool-size=8M", "--innodb-flush-log-at-trx-commit=0", "--skip-innodb-doublewrite"}
	tables := []byte("CREATE DATABASE mysql;\nUSE mysql;\nSET @auth_root_socket=NULL;\n")
	for _, name := range []string{"mysql_system_tables", "mysql_performance_tables", "mysql_system_tables_data"} {
		text, err := os.ReadFile("/usr/share/mysql/" + name + ".sql")
		require.NoError(t, err)
		tables = append(tables, text...)
	}
	tables = append(tables, "FLUSH PRIVILEGES;\nCREATE USER checker@'%';\nCREATE USER locked@'%' ACCOUNT LOCK;\nCREATE USER holder@'%';\n"...)
	boot := command(m.dir, program, append(small, "--bootstrap")...)
	boot.Stdin = bytes.NewReader(tables)
	runs(t, boot)
	args = append(append(small, "--port="+strconv.Itoa(int(m.port)), "--bind-address=127.0.0.1",
		"--socket="+filepath.Join(m.dir, "s"), "--pid-file="+filepath.Join(m.dir, "pid"), "--performance-schema"), args...)
	m.server = start(t, command(m.dir, program, args...))
	m.await("its readiness", func() bool { return strings.Contains(m.log(), "ready for connections") })
	return m
}

// login is a client's that stays, as long as it is let in.
func (m *mariaDB) login(user string) (net.Conn, error) {
	conn, err := dial(m.t.Context(), "127.0.0.1", m.port, patience)
	require.NoError(m.t, err)
	m.t.Cleanup(func() { conn.Close() })
	seq, payload, err := mySQLPacket(conn)
	require.NoError(m.t, err)
	flags, err := mySQLGreeting(payload)
	if err != nil {
		return nil, err
	}
	_, err = conn.Write(appendMySQLPacket(nil, seq+1, mySQLLogin(flags, user)))
	require.NoError(m.t, err)
	_, payload, err = mySQLPacket(conn)
	require.NoError(m.t, err)
	if payload[0] == mySQLErr {
		return nil, mySQLError(payload)
	}
	require.EqualValues(m.t, mySQLOK, payload[0])
	return conn, nil
}

// doesNotBlockUs holds that checks are not counted as errors of their host, whatever becomes of the login. Those who
// break the handshake off are, mayFail of them.
func (m *mariaDB) doesNotBlockUs(mayFail int) {
	t := m.t
	t.Helper()
	c := newMySQL(t, MySQLOptions{Port: elsewhere(t, m.port)})
	for range 4 * mayFail {
		require.NoError(t, once(t, c))
	}
	const noticed = "(This connection closed normally without authentication)"
	require.NotContains(t, m.log(), noticed)
	for range mayFail {
		require.NoError(t, converse(t.Context(), place{host: "127.0.0.1", port: c.o.Port}, nil, func(t *conversation) error {
			_, _, err := mySQLPacket(t)
			return err
		}))
	}
	m.await("an end of patience", func() bool { return strings.Count(m.log(), noticed) == mayFail })
	require.EqualError(t, once(t, c),
		"the server says Host '127.0.0.2' is blocked because of many connection errors; unblock with 'mariadb-admin flush-hosts' (error 1129)")
}

func TestMySQLServer(t *testing.T) {
	t.Parallel()
	const (
		connections = 10 // the least that the server takes
		mayFail     = 5
	)
	m := newMariaDB(t, "--max-connect-errors="+strconv.Itoa(mayFail), "--max-connections="+strconv.Itoa(connections))
	stranger, known := newMySQL(t, MySQLOptions{Port: m.port}), newMySQL(t, MySQLOptions{Port: m.port, Username: "checker"})
	locked := newMySQL(t, MySQLOptions{Port: m.port, Username: "locked"})
	socket := newMySQL(t, MySQLOptions{Socket: filepath.Join(m.dir, "s")})
	for _, c := range []HealthCheck{stranger, known, locked, socket} {
		require.NoError(t, once(t, c))
	}
	m.await("a refusal in the log", func() bool { return strings.Contains(m.log(), "Access denied for user 'myelin-check'@") })
	require.NotContains(t, m.log(), "checker", "an account that exists leaves no trace")
	require.NotContains(t, m.log(), "Aborted connection")

	var held []net.Conn
	for {
		require.LessOrEqual(t, len(held), connections+1)
		conn, err := m.login("holder")
		if err != nil {
			break
		}
		held = append(held, conn)
	}
	require.EqualError(t, once(t, known), "the server says Too many connections (error 1040)")
	for _, conn := range held {
		_, err := conn.Write(appendMySQLPacket(nil, 0, []byte{1}))
		require.NoError(t, err)
	}
	m.eventually(known)
	require.NoError(t, once(t, stranger))
	m.doesNotBlockUs(mayFail)

	m.kill()
	require.EqualError(t, once(t, stranger), fmt.Sprintf("connect 127.0.0.1:%d: refused", m.port))
}

func newPostgres(t *testing.T, o PostgresOptions) Postgres {
	t.Helper()
	o.Host = "127.0.0.1"
	c, err := NewPostgres(o)
	require.NoError(t, err)
	return c
}

// postgres is a data folder, and a server on it when it is started.
type postgres struct {
	*server
	dir, program string
	port         uint16
}

func newPostgresServer(t *testing.T) *postgres {
	t.Helper()
	program := installed(t, "postgresql", "postgres", "/usr/lib/postgresql/*/bin")
	p := &postgres{dir: folder(t), program: program, port: freePort(t)}
	data := filepath.Join(p.dir, "d")
	runs(t, command(p.dir, filepath.Join(filepath.Dir(program), "initdb"), "-D", data, "-U", "postgres", "-A", "trust", "--no-sync", "--no-locale", "-E", "UTF8"))
	access := "local all all trust\nhost all refused all reject\nhost all scram all scram-sha-256\nhost all md5 all md5\nhost all all all trust\n"
	require.NoError(t, os.WriteFile(filepath.Join(data, "pg_hba.conf"), []byte(access), 0o600))
	return p
}

func (p *postgres) start(t *testing.T, settings ...string) {
	t.Helper()
	args := []string{"-D", filepath.Join(p.dir, "d"), "-p", strconv.Itoa(int(p.port)), "-k", p.dir}
	for _, s := range append([]string{"listen_addresses=127.0.0.1", "fsync=off", "shared_buffers=1MB", "max_wal_senders=0", "wal_level=minimal"}, settings...) {
		args = append(args, "-c", s)
	}
	p.server = start(t, command(p.dir, p.program, args...))
}

func TestPostgresServer(t *testing.T) {
	t.Parallel()
	p := newPostgresServer(t)
	certificate, trust := certificates(t, p.dir)
	p.start(t, "ssl=on", "ssl_cert_file="+certificate, "ssl_key_file="+certificate)
	p.eventually(newPostgres(t, PostgresOptions{Port: p.port}))
	quiet := p.log()
	for _, user := range []string{"postgres", "scram", "md5"} {
		require.NoError(t, once(t, newPostgres(t, PostgresOptions{Port: p.port, Username: user})))
		require.NoError(t, once(t, newPostgres(t, PostgresOptions{Port: p.port, TLS: trust, Username: user})))
	}
	require.NoError(t, once(t, newPostgres(t, PostgresOptions{Socket: fmt.Sprintf("%s/.s.PGSQL.%d", p.dir, p.port)})))
	p.silence(quiet)
	require.EqualError(t, once(t, newPostgres(t, PostgresOptions{Port: p.port, TLS: &TLSOptions{Verify: true}})),
		fmt.Sprintf("open TLS with 127.0.0.1:%d: %s", p.port, unknownAuthority))
	for o, said := range map[PostgresOptions]string{
		{Port: p.port, Username: "stranger"}: `FATAL:  role "stranger" does not exist`,
		{Port: p.port, Username: "refused"}:  `FATAL:  pg_hba.conf rejects connection for host "127.0.0.1", user "refused"`,
		{Port: p.port, Database: "none"}:     `FATAL:  database "none" does not exist`,
	} {
		require.NoError(t, once(t, newPostgres(t, o)))
		p.await("its refusal", func() bool { return strings.Contains(p.log(), said) })
	}
	// A smart shutdown waits for those who are there.
	conn, err := dial(t.Context(), "127.0.0.1", p.port, patience)
	require.NoError(t, err)
	defer conn.Close()
	_, err = conn.Write(postgresStartup("postgres", "postgres"))
	require.NoError(t, err)
	in, err := postgresVerdict(conn)
	require.NoError(t, err)
	require.True(t, in)
	p.signal(syscall.SIGTERM)
	p.await("the shutdown", func() bool { return strings.Contains(p.log(), "received smart shutdown request") })
	require.EqualError(t, once(t, newPostgres(t, PostgresOptions{Port: p.port})), "the server says the database system is shutting down (57P03)")
	conn.Close()
	<-p.done
	require.EqualError(t, once(t, newPostgres(t, PostgresOptions{Port: p.port})), fmt.Sprintf("connect 127.0.0.1:%d: refused", p.port))
}

// silence holds that a server says nothing of the checks before it. What one more connection makes it say comes behind.
func (p *postgres) silence(before string) {
	p.t.Helper()
	require.NoError(p.t, once(p.t, newPostgres(p.t, PostgresOptions{Port: p.port, Database: "marker"})))
	const said = `database "marker" does not exist`
	p.await("the marker", func() bool { return strings.Contains(p.log(), said) })
	after := strings.TrimPrefix(p.log(), before)
	require.Equal(p.t, 1, strings.Count(after, "\n"), "%s", after)
}

func TestPostgresServerFull(t *testing.T) {
	t.Parallel()
	p := newPostgresServer(t)
	p.start(t, "max_connections=2", "superuser_reserved_connections=0")
	c := newPostgres(t, PostgresOptions{Port: p.port})
	p.eventually(c)
	for range 2 {
		p.await("a place", func() bool {
			conn, err := dial(t.Context(), "127.0.0.1", p.port, patience)
			require.NoError(t, err)
			t.Cleanup(func() { conn.Close() })
			_, err = conn.Write(postgresStartup("postgres", "postgres"))
			require.NoError(t, err)
			in, err := postgresVerdict(conn)
			return in && err == nil
		})
	}
	require.EqualError(t, once(t, c), "the server says sorry, too many clients already (53300)")
	require.EqualError(t, once(t, newPostgres(t, PostgresOptions{Port: p.port, TLS: &TLSOptions{}})),
		"the server offers no TLS; remove ssl, or set it up there")
}

// TestPostgresServerStarting: a standby that serves no queries is a server that starts for ever.
func TestPostgresServerStarting(t *testing.T) {
	t.Parallel()
	p := newPostgresServer(t)
	signal := filepath.Join(p.dir, "d", "standby.signal")
	require.NoError(t, os.WriteFile(signal, nil, 0o600))
	own(t, signal)
	own(t, filepath.Join(p.dir, "d", "pg_hba.conf"))
	p.start(t, "hot_standby=off", "restore_command=false")
	c := newPostgres(t, PostgresOptions{Port: p.port})
	p.await("its answer", func() bool {
		err := once(t, c)
		return err != nil && !strings.HasPrefix(err.Error(), "connect ")
	})
	require.Regexp(t, `^the server says the database system is (not accepting connections|starting up) \(57P03\)$`, once(t, c).Error())
}

func newAMQP(t *testing.T, o AMQPOptions) AMQP {
	t.Helper()
	o.Host = "127.0.0.1"
	c, err := NewAMQP(o)
	require.NoError(t, err)
	return c
}

// newRabbitMQ starts a broker that needs no hosts file and leaves no port mapper behind.
func newRabbitMQ(t *testing.T) (s *server, port, secure uint16, trust *TLSOptions) {
	t.Helper()
	program := installed(t, "rabbitmq-server", "rabbitmq-server", "/usr/lib/rabbitmq/bin")
	mapper := installed(t, "erlang-base", "epmd")
	dir := folder(t)
	certificate, trust := certificates(t, dir)
	secure = freePort(t)
	conf := fmt.Sprintf("listeners.ssl.1 = 127.0.0.1:%d\nssl_options.certfile = %s\nssl_options.keyfile = %[2]s\n", secure, certificate)
	for name, text := range map[string]string{"plugins": "[].\n", "rabbit.conf": conf} {
		require.NoError(t, os.WriteFile(filepath.Join(dir, name), []byte(text), 0o644))
	}
	names := strconv.Itoa(int(freePort(t)))
	start(t, command(dir, mapper, "-address", "127.0.0.1", "-port", names))
	port = freePort(t)
	cmd := command(dir, program)
	cmd.Env = append(cmd.Env, "ERL_EPMD_PORT="+names, "ERL_EPMD_ADDRESS=127.0.0.1",
		"RABBITMQ_NODENAME=check@localhost", "RABBITMQ_NODE_IP_ADDRESS=127.0.0.1", "RABBITMQ_NODE_PORT="+strconv.Itoa(int(port)),
		"RABBITMQ_DIST_PORT="+strconv.Itoa(int(freePort(t))), "RABBITMQ_CONF_ENV_FILE=/dev/null",
		"RABBITMQ_MNESIA_BASE="+dir+"/m", "RABBITMQ_LOG_BASE="+dir, "RABBITMQ_LOGS=-", "RABBITMQ_PID_FILE="+dir+"/pid",
		"RABBITMQ_ENABLED_PLUGINS_FILE="+dir+"/plugins", "RABBITMQ_CONFIG_FILE="+dir+"/rabbit.conf",
		"RABBITMQ_SERVER_ADDITIONAL_ERL_ARGS=+S 1:1 +sbwt none")
	return start(t, cmd), port, secure, trust
}

func TestAMQPServer(t *testing.T) {
	t.Parallel()
	s, port, secure, trust := newRabbitMQ(t)
	greeting, guest := newAMQP(t, AMQPOptions{Port: port}), newAMQP(t, AMQPOptions{Port: port, Username: "guest", Password: "guest"})
	s.eventually(guest)
	said := func() string { // of the checks
		_, after, _ := strings.Cut(s.log(), "accepting AMQP connection")
		return after
	}
	require.NoError(t, once(t, guest))
	s.await("the end of both", func() bool { return strings.Count(said(), "closing AMQP connection") == 2 })
	require.NotContains(t, said(), "[warning]", "the connection is closed as the broker wants it to be")
	require.NotContains(t, said(), "[error]")
	inside := AMQPOptions{Port: secure, TLS: trust, Username: "guest", Password: "guest"}
	require.NoError(t, once(t, newAMQP(t, inside)))
	inside.TLS = &TLSOptions{Verify: true}
	require.EqualError(t, once(t, newAMQP(t, inside)), fmt.Sprintf("open TLS with 127.0.0.1:%d: %s", secure, unknownAuthority))
	require.NoError(t, once(t, greeting))
	s.await("the end of the greeting", func() bool { return strings.Contains(said(), "client unexpectedly closed TCP connection") })
	require.EqualError(t, once(t, newAMQP(t, AMQPOptions{Port: port, Username: "guest", Password: "hunter2"})),
		"log in: the broker says ACCESS_REFUSED - Login was refused using authentication mechanism PLAIN. For details see the broker logfile. (403)")
	require.EqualError(t, once(t, newAMQP(t, AMQPOptions{Port: port, Username: "guest", Password: "guest", VirtualHost: "none"})),
		"open virtual host none: the broker says NOT_ALLOWED - vhost none not found (530)")
	s.kill()
	require.EqualError(t, once(t, greeting), fmt.Sprintf("connect 127.0.0.1:%d: refused", port))
}

func newZooKeeper(t *testing.T, addr, word string) ZooKeeper {
	t.Helper()
	c, err := NewZooKeeper(ZooKeeperOptions{Host: "127.0.0.1", Port: port(t, addr), Word: word})
	require.NoError(t, err)
	return c
}

func TestZooKeeperServer(t *testing.T) {
	t.Parallel()
	s := zktest.New(t, zktest.Options{TLS: true, Config: map[string]string{"4lw.commands.whitelist": "srvr"}})
	secure := ZooKeeperOptions{Host: "127.0.0.1", Port: port(t, s.SecureAddr()), TLS: &TLSOptions{Verify: true, CA: readFile(t, s.TLSFiles().CA)}}
	inside, err := NewZooKeeper(secure)
	require.NoError(t, err)
	// The server opens its secure port behind the plain one that it was waited for on.
	require.Eventually(t, func() bool { return once(t, inside) == nil }, time.Minute, 20*time.Millisecond)
	require.NoError(t, once(t, newZooKeeper(t, s.Addr(), "")))
	require.EqualError(t, once(t, newZooKeeper(t, s.Addr(), "ruok")),
		"the server does not answer ruok; add it to 4lw.commands.whitelist in its zoo.cfg")
	require.NoError(t, s.Kill())
	require.ErrorContains(t, once(t, newZooKeeper(t, s.Addr(), "")), "refused")
}

func TestZooKeeperServers(t *testing.T) {
	t.Parallel()
	e := zktest.NewEnsemble(t)
	leader, err := e.Leader()
	require.NoError(t, err)
	followers := e.Followers()
	require.Len(t, followers, 2)
	for _, s := range append(followers, leader) {
		require.NoError(t, once(t, newZooKeeper(t, s.Addr(), "")))
		require.NoError(t, once(t, newZooKeeper(t, s.Addr(), "ruok")))
	}
	require.NoError(t, leader.Kill())
	require.NoError(t, followers[0].Kill())
	c := newZooKeeper(t, followers[1].Addr(), "")
	require.Eventually(t, func() bool { return once(t, c) != nil }, time.Minute, 20*time.Millisecond)
	require.EqualError(t, once(t, c), "the server is not serving requests: it has no quorum, or has just started")
	require.NoError(t, once(t, newZooKeeper(t, followers[1].Addr(), "ruok")), "the process runs")
}
