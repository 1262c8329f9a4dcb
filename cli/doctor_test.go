package cli

import (
	"bytes"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/json"
	"encoding/pem"
	"flag"
	"fmt"
	"math/big"
	"net"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/go-zookeeper/zk"
	"github.com/stretchr/testify/require"

	"github.com/myelin-sd/myelin/discovery/zookeeper/zktest"
	"github.com/myelin-sd/myelin/doctor"
	"github.com/myelin-sd/myelin/haproxy"
	"github.com/myelin-sd/myelin/haproxy/haproxytest"
)

var updateGolden = flag.Bool("update-doctor", false, "write testdata/json/doctor.json from what is so; read the diff before you commit it")

// diagnosis is what doctor said.
type diagnosis struct {
	Worst    string
	Findings []diagnosed
}

type diagnosed struct{ ID, Severity, Subject, Found, Why, Fix string }

// examined runs doctor -o json, and checks what holds for every answer.
func examined(t *testing.T, args ...string) diagnosis {
	t.Helper()
	var out, errs bytes.Buffer
	code := Main(append([]string{"doctor", "-o", "json", "--timeout", "1m"}, args...), &out, &errs)
	require.Empty(t, errs.String())
	var d diagnosis
	require.NoError(t, json.Unmarshal(out.Bytes(), &d), out.String())
	want := exitDone
	if d.Worst == "warning" || d.Worst == "critical" {
		want = exitFindings
	}
	require.Equal(t, want, code)
	order := []string{"critical", "warning", "note", "ok"}
	require.True(t, slices.IsSortedFunc(d.Findings, func(a, b diagnosed) int {
		return slices.Index(order, a.Severity) - slices.Index(order, b.Severity)
	}))
	require.Equal(t, d.Worst, d.Findings[0].Severity)
	for _, f := range d.Findings {
		require.NotEmpty(t, f.Why, f)
		if f.Severity == "critical" || f.Severity == "warning" {
			require.NotEmpty(t, f.Fix, f)
		}
	}
	return d
}

// of is the one finding with an id, about a subject that contains a text.
func (d diagnosis) of(t *testing.T, id, about string) string {
	t.Helper()
	var got []string
	for _, f := range d.Findings {
		if f.ID == id && strings.Contains(f.Subject, about) {
			got = append(got, f.Severity+": "+f.Found)
		}
	}
	require.Len(t, got, 1, "%s about %q", id, about)
	return got[0]
}

func (d diagnosis) all(id string) (got []string) {
	for _, f := range d.Findings {
		if f.ID == id {
			got = append(got, f.Severity+": "+f.Subject+": "+f.Found)
		}
	}
	return got
}

// zkConn is a connection of the test's own.
func zkConn(t *testing.T, hosts []string) *zk.Conn {
	t.Helper()
	conn, _, err := zk.Connect(hosts, 20*time.Second, zk.WithLogger(quietly{}))
	require.NoError(t, err)
	t.Cleanup(conn.Close)
	return conn
}

type quietly struct{}

func (quietly) Printf(string, ...any) {}

func zkCreate(t *testing.T, conn *zk.Conn, paths ...string) {
	t.Helper()
	for _, p := range paths {
		_, err := conn.Create(p, nil, 0, zk.WorldACL(zk.PermAll))
		require.NoError(t, err)
	}
}

func zkNames(t *testing.T, conn *zk.Conn, path string) []string {
	t.Helper()
	names, _, err := conn.Children(path)
	require.NoError(t, err)
	return names
}

func writeFile(t *testing.T, path, text string) string {
	t.Helper()
	require.NoError(t, os.MkdirAll(filepath.Dir(path), 0o755))
	require.NoError(t, os.WriteFile(path, []byte(text), 0o600))
	return path
}

// agentFile is an agent's with one service, and keys of haproxy.
func agentFile(t *testing.T, dir string, hosts []string, haproxy string) string {
	quoted := make([]string, len(hosts))
	for i, h := range hosts {
		quoted[i] = fmt.Sprintf("%q", h)
	}
	return writeFile(t, filepath.Join(dir, "agent.toml"), fmt.Sprintf(`
state_dir = %q
admin = { listen = "off" }
control_socket = "off"
[zookeeper]
hosts = [%s]
session_timeout = "8s"
[haproxy]
%s
[services.web]
discovery = { method = "zookeeper", path = "/services/web" }
haproxy = { port = 8080, listen = ["balance roundrobin"] }
[services.hashed]
discovery = { method = "zookeeper", path = "/services/hashed" }
haproxy = { port = 8081, listen = ["balance source"] }
`, dir, strings.Join(quoted, ", "), haproxy))
}

// TestDoctorEnsemble: of three servers one is stopped: each is told by itself, and how many may be lost now.
func TestDoctorEnsemble(t *testing.T) {
	t.Parallel()
	e := zktest.NewEnsemble(t)
	dir := t.TempDir()
	file := agentFile(t, dir, e.Hosts(), "do_socket = false\nsocket_file_path = \"/nowhere/h.sock\"\nconfig_file_path = \""+dir+"/h.cfg\"\nreload_command = \"true\"")
	registrar := func(acl string) string {
		return writeFile(t, filepath.Join(dir, "registrar.toml"), fmt.Sprintf(`
instance_id = "i"
state_dir = %q
[zookeeper]
hosts = %q
session_timeout = "2m"
auth = { credentials = "me:hidden" }
[services.web]
host = "10.0.0.1"
port = 33333
zk_path = "/services/web"
acl = %q
check_mocked = true
`, dir, strings.Join(e.Hosts(), ","), acl))
	}
	conn := zkConn(t, e.Hosts())
	zkCreate(t, conn, "/services", "/services/web", "/services/web/a", "/scratch")

	d := examined(t, "-c", file, "--write-test", "/scratch")
	for _, h := range e.Hosts() {
		require.Regexp(t, "ok: serves as (leader|follower)", d.of(t, "zookeeper.member", h))
		require.Regexp(t, `ok: \d+ changes behind the newest`, d.of(t, "zookeeper.lag", h))
		require.Regexp(t, `ok: \d+ from this host; maxClientCnxns sets no limit`, d.of(t, "zookeeper.connections", h))
	}
	require.Equal(t, "ok: 3 of 3 voting servers serve (by the ensemble's own configuration): 1 may be lost now", d.of(t, "zookeeper.quorum", ""))
	require.Equal(t, "ok: hosts names 3 servers, the ensemble has 3 that vote", d.of(t, "zookeeper.hosts", ""))
	require.Equal(t, "ok: 8s, as asked for", d.of(t, "zookeeper.timeout", ""))
	require.Regexp(t, `ok: 3\.\d+\.\d+ on .*`, d.of(t, "zookeeper.version", ""))
	require.Equal(t, "ok: 1 nodes, a listing of 97 bytes, 0% of jute.maxbuffer's default", d.of(t, "zookeeper.reply-size", "/services/web"))
	require.Equal(t, "note: the path is not there: nobody has registered yet", d.of(t, "zookeeper.reply-size", "/services/hashed"))
	require.Regexp(t, "an ephemeral node under /scratch was made and deleted in", d.of(t, "zookeeper.write", ""))
	require.Regexp(t, "ok: ZooKeeper's clock is .* of this host's, give or take", d.of(t, "clock.registry", ""))
	require.Equal(t, "note: the path is not there: the first override makes it, open to whom the node above is open to", d.of(t, "zookeeper.overrides-acl", "/myelin/overrides"))
	zkCreate(t, conn, "/myelin", "/myelin/overrides")
	require.Equal(t, `warning: anyone may change overrides ("world:anyone:cdrwa")`, examined(t, "-c", file).of(t, "zookeeper.overrides-acl", "/myelin/overrides"))
	closed := append(zk.DigestACL(zk.PermAll, "ops", "secret"), zk.WorldACL(zk.PermRead)...)
	_, err := conn.SetACL("/myelin/overrides", closed, -1)
	require.NoError(t, err)
	require.Equal(t, "ok: digest:ops:cdrwa,world:anyone:r", examined(t, "-c", file).of(t, "zookeeper.overrides-acl", "/myelin/overrides"))
	require.Equal(t, []string{"web", "a"}, append(zkNames(t, conn, "/services"), zkNames(t, conn, "/services/web")...))
	require.Empty(t, zkNames(t, conn, "/scratch"))

	// Nothing is written where an agent would see it.
	for _, path := range []string{"/services/web", "/services/web/a"} {
		d = examined(t, "-c", file, "--write-test", path)
		require.Contains(t, d.of(t, "zookeeper.write", ""), "where the node could be taken for an instance")
		require.Contains(t, d.of(t, "clock.registry", ""), "note: not known: ")
	}

	// Both roles in one process, with logins of their own: two sessions, and one set of servers.
	registrar("open")
	name := strings.Join(e.Hosts(), ",")
	both := func() diagnosis {
		return examined(t, "-c", writeFile(t, filepath.Join(dir, "both.toml"), fmt.Sprintf("registrar = %q\n%s", filepath.Join(dir, "registrar.toml"), mustRead(t, file))))
	}
	d = both()
	require.Equal(t, []string{"warning: " + name + ": the servers grant 1m0s, the file asks for 2m0s", "ok: " + name + ": 8s, as asked for"}, d.all("zookeeper.timeout"))
	require.Len(t, d.all("zookeeper.member"), 3)
	require.Len(t, d.all("zookeeper.quorum"), 1)
	// With the same login it is one session, and has the registrar's timeout.
	text := string(mustRead(t, filepath.Join(dir, "registrar.toml")))
	writeFile(t, filepath.Join(dir, "registrar.toml"), strings.Replace(text, `auth = { credentials = "me:hidden" }`, "", 1))
	require.Equal(t, []string{"warning: " + name + ": the servers grant 1m0s, the file asks for 2m0s"}, both().all("zookeeper.timeout"))

	// The servers grant less than a registrar asks for; an open path protects nobody.
	d = examined(t, "-c", registrar("creator"))
	require.Equal(t, "warning: the servers grant 1m0s, the file asks for 2m0s", d.of(t, "zookeeper.timeout", ""))
	require.Equal(t, `warning: acl = "creator" protects no node here: anyone may delete under this path ("world:anyone:cdrwa")`, d.of(t, "zookeeper.acl", ""))
	require.Equal(t, "ok: mode 0600", d.of(t, "permission.secret", "registrar.toml"))
	require.NotContains(t, fmt.Sprint(d), "hidden")
	require.Equal(t, "ok: world:anyone:cdrwa", examined(t, "-c", registrar("open")).of(t, "zookeeper.acl", ""))

	stopped := e.Followers()[0]
	require.NoError(t, stopped.Stop())
	d = examined(t, "-c", file)
	require.Contains(t, d.of(t, "zookeeper.member", stopped.Addr()), "warning: not reached: ")
	require.Equal(t, "warning: 2 of 3 voting servers serve (by the ensemble's own configuration): none may be lost now", d.of(t, "zookeeper.quorum", ""))
	require.Contains(t, d.of(t, "zookeeper.login", ""), "ok: a session came about with ")
	require.Contains(t, d.of(t, "clock.registry", ""), "give --write-test PATH")
	require.Empty(t, d.all("zookeeper.write"))

	require.NoError(t, e.Stop())
	d = examined(t, "-c", file, "--write-test", "/scratch")
	require.Equal(t, "critical: no server serves", d.of(t, "zookeeper.quorum", ""))
	require.Equal(t, "critical: no session: no server was reached", d.of(t, "zookeeper.login", ""))
	require.Contains(t, d.of(t, "zookeeper.reply-size", "/services/web"), "note: not known: ")
}

// TestDoctorTightServer: a server that answers srvr only, and has few connections.
func TestDoctorTightServer(t *testing.T) {
	t.Parallel()
	zks := zktest.New(t, zktest.Options{Config: map[string]string{"4lw.commands.whitelist": "srvr", "maxClientCnxns": "60"}})
	d := examined(t, "--zookeeper", zks.Addr())
	require.Equal(t, "ok: serves as standalone", d.of(t, "zookeeper.member", ""))
	require.Equal(t, "warning: one server alone: none may be lost", d.of(t, "zookeeper.quorum", ""))
	require.Contains(t, d.of(t, "zookeeper.connections", ""), "maxClientCnxns is not known (conf is not in 4lw.commands.whitelist); the default is 60")

	// Servers answer srvr whatever the list says; what stands between may not.
	silent := refuser(t, "srvr is not executed because it is not in the whitelist.\n")
	d = examined(t, "--zookeeper", silent, "--timeout", "1s")
	require.Equal(t, "note: not known: it was reached, but it does not answer srvr", d.of(t, "zookeeper.member", ""))
	require.Contains(t, d.of(t, "zookeeper.quorum", ""), "note: not known: ")
	require.Contains(t, d.of(t, "zookeeper.login", ""), "critical: no session: ")
	stranger := refuser(t, "HTTP/1.1 400 Bad Request\r\n\r\n\x1b[2J")
	d = examined(t, "--zookeeper", stranger, "--timeout", "1s")
	require.Equal(t, `warning: not reached: what answers there is no ZooKeeper: "HTTP/1.1 400 Bad Request\r\n\r\n\x1b[2J"`, d.of(t, "zookeeper.member", ""))
}

// refuser answers every connection with a text and closes it.
func refuser(t *testing.T, text string) string {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	require.NoError(t, err)
	var answering sync.WaitGroup
	answering.Go(func() {
		for {
			conn, err := l.Accept()
			if err != nil {
				return
			}
			conn.Read(make([]byte, 4))
			conn.Write([]byte(text))
			conn.Close()
		}
	})
	t.Cleanup(func() { l.Close(); answering.Wait() })
	return l.Addr().String()
}

// TestDoctorHAProxy: sockets as people write them; old workers, who drives it, and what reloads cost.
func TestDoctorHAProxy(t *testing.T) {
	haproxytest.Require(t)
	t.Parallel()
	dir := haproxytest.TempDir(t)
	weak := filepath.Join(dir, "weak.sock")
	h, err := haproxytest.Start(dir, fmt.Sprintf(`
global
  stats socket %s mode 666 level operator
  maxconn 200
  server-state-file %s/state
defaults
  mode http
  timeout connect 1s
  timeout client 10s
  timeout server 10s
backend web
backend hashed
  balance source
`, weak, dir), haproxytest.Options{})
	require.NoError(t, err)
	t.Cleanup(func() { h.Stop() })
	writeFile(t, filepath.Join(dir, "state"), "1\n")
	require.NoError(t, os.Chtimes(filepath.Join(dir, "state"), time.Time{}, time.Now().Add(-48*time.Hour)))
	file := agentFile(t, dir, []string{"127.0.0.1:1"}, fmt.Sprintf("socket_file_path = [%q, %q]\nconfig_file_path = %q\nreload_command = \"true\"", h.Socket, weak, filepath.Join(dir, "haproxy.cfg")))

	d := examined(t, "-c", file)
	require.Equal(t, "ok: it answers, level admin", d.of(t, "haproxy.socket", h.Socket))
	require.Equal(t, "critical: it answers with level operator, which changes nothing", d.of(t, "haproxy.socket", weak))
	require.Equal(t, fmt.Sprintf("ok: mode 0600, uid %d, gid %d", os.Getuid(), os.Getgid()), d.of(t, "haproxy.socket-mode", h.Socket))
	require.Contains(t, d.of(t, "haproxy.socket-mode", weak), "warning: mode 0666")
	require.Equal(t, "ok: expose-fd listeners is set", d.of(t, "haproxy.expose-fd", h.Socket))
	require.Contains(t, d.of(t, "haproxy.expose-fd", weak), "expose-fd listeners is not set")
	require.Equal(t, "note: hard-stop-after is not set", d.of(t, "haproxy.hard-stop", h.Socket))
	// One of the backends has slots, with which a state file is poison.
	require.Contains(t, d.of(t, "haproxy.server-state", h.Socket), "critical: server-state-file "+dir+"/state is used, and backends have slots")
	require.Regexp(t, `ok: \d+ of 200 connections`, d.of(t, "haproxy.connections", h.Socket))
	require.Equal(t, "ok: none", d.of(t, "haproxy.old-workers", h.Socket))
	require.Contains(t, d.of(t, "haproxy.manager", h.Socket), "note: no agent drives it")
	require.Contains(t, d.of(t, "haproxy.config", h.Socket), "ok: started with "+strings.Join(h.Files, " "))
	if haproxytest.AtLeast(t, 2, 6) {
		require.Contains(t, d.of(t, "haproxy.algorithm", "web"), "ok: changes at run time")
	}
	require.Contains(t, d.of(t, "haproxy.algorithm", "hashed"), "note: changes by slots, by its version: ")
	pid, err := h.WorkerPid()
	require.NoError(t, err)
	require.Regexp(t, `\d+ open, limit \d+`, strings.Join(d.all("process.files"), "\n"))
	require.Contains(t, strings.Join(d.all("process.files"), "\n"), fmt.Sprintf("haproxy, pid %d: ", pid))
	require.Contains(t, d.of(t, "process.agent", ""), "note: no agent of this file runs on this host")

	// A claim of an agent with another file; a client that keeps the old worker.
	claim, err := haproxy.ClaimSocket(h.Socket, "/etc/other.toml")
	require.NoError(t, err)
	defer claim.Close()
	held, err := haproxy.Dial(t.Context(), h.Socket, haproxy.ClientOptions{})
	require.NoError(t, err)
	defer held.Close()
	require.NoError(t, h.Reload())
	d = examined(t, "-c", file)
	require.Equal(t, fmt.Sprintf("warning: driven by the agent with pid %d and the file /etc/other.toml, not by %s", os.Getpid(), file), d.of(t, "haproxy.manager", h.Socket))
	require.Contains(t, d.of(t, "haproxy.old-workers", h.Socket), fmt.Sprintf("note: 1 alive: pid %d", pid))
	claim.Close()

	require.NoError(t, h.Stop())
	d = examined(t, "-c", file)
	require.Contains(t, d.of(t, "haproxy.socket", h.Socket), "critical: no answer: ")
	require.NoError(t, os.Remove(h.Socket))
	d = examined(t, "-c", file)
	require.Contains(t, d.of(t, "haproxy.socket", h.Socket), "critical: there is no socket: ")
	require.Contains(t, d.of(t, "haproxy.algorithm", "web"), "note: not known: HAProxy does not answer")
}

// TestDoctorTLS: the certificates of the servers are looked at as they show them.
func TestDoctorTLS(t *testing.T) {
	t.Parallel()
	zks := zktest.New(t, zktest.Options{TLS: true})
	dir := t.TempDir()
	file := writeFile(t, filepath.Join(dir, "agent.toml"), fmt.Sprintf(`
state_dir = "state"
admin = { listen = "off" }
[zookeeper]
hosts = [%q]
tls = { ca_file = %q }
[haproxy]
do_socket = false
[services.web]
discovery = { method = "zookeeper", path = "/services/web" }
haproxy = { port = 8080 }
`, zks.SecureAddr(), zks.TLSFiles().CA))
	var d diagnosis
	require.Eventually(t, func() bool { // the secure port opens behind the plain one, and its first handshakes are slow
		d = examined(t, "-c", file)
		return d.of(t, "zookeeper.member", "") == "ok: serves as standalone" && strings.HasPrefix(d.of(t, "zookeeper.login", ""), "ok: ")
	}, time.Minute, 10*time.Millisecond, "the server is reached over TLS")
	require.Regexp(t, "critical: CN=localhost is good until .*, for another 23 hours", d.of(t, "tls.expiry", "server "+zks.SecureAddr()))
	require.Regexp(t, "critical: .* is good until .*, for another 23 hours", d.of(t, "tls.expiry", "authority of zookeeper.tls"))
	here, err := os.Getwd()
	require.NoError(t, err)
	require.NotEmpty(t, d.of(t, "permission.path", "state_dir "+here+"/state"))
}

// certificate writes one that ends then, with its key.
func certificate(t *testing.T, dir, name string, until time.Time) (cert, key string) {
	t.Helper()
	private, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	require.NoError(t, err)
	c := &x509.Certificate{SerialNumber: big.NewInt(1), Subject: pkix.Name{CommonName: name}, NotBefore: until.Add(-365 * 24 * time.Hour), NotAfter: until, IsCA: true, BasicConstraintsValid: true}
	der, err := x509.CreateCertificate(rand.Reader, c, c, &private.PublicKey, private)
	require.NoError(t, err)
	pkcs, err := x509.MarshalPKCS8PrivateKey(private)
	require.NoError(t, err)
	cert = writeFile(t, filepath.Join(dir, name+".pem"), string(pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der})))
	key = writeFile(t, filepath.Join(dir, name+".key"), string(pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: pkcs})))
	return cert, key
}

// TestDoctorFiles: certificates that end, secrets that everybody reads, folders that are not there, ports.
func TestDoctorFiles(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	now := time.Now()
	ca, _ := certificate(t, dir, "ca", now.Add(200*24*time.Hour))
	cert, key := certificate(t, dir, "client", now.Add(5*24*time.Hour))
	credentials := writeFile(t, filepath.Join(dir, "credentials"), "me:hidden\n")
	require.NoError(t, os.Chmod(credentials, 0o644))
	file := writeFile(t, filepath.Join(dir, "registrar.toml"), fmt.Sprintf(`
instance_id = "i"
state_dir = "%[1]s/state"
[zookeeper]
hosts = "127.0.0.1:1"
auth = { credentials_file = %[2]q }
tls = { ca_file = %[3]q, cert_file = %[4]q, key_file = %[5]q }
[services.web]
host = "10.0.0.1"
port = 80
zk_path = "/services/web"
check_mocked = true
`, dir, credentials, ca, cert, key))
	d := examined(t, "-c", file)
	require.Regexp(t, "ok: CN=ca is good until .*, for another 199 days", d.of(t, "tls.expiry", "authority"))
	require.Regexp(t, "critical: CN=client is good until .*, for another 4 days", d.of(t, "tls.expiry", "certificate of"))
	require.Equal(t, "critical: mode 0644: every user of the host can read it", d.of(t, "permission.secret", "credentials"))
	require.Equal(t, "ok: mode 0600", d.of(t, "permission.secret", "key_file"))
	require.Contains(t, d.of(t, "permission.path", "state_dir"), "can write there")
	require.NotContains(t, fmt.Sprint(d), "hidden")
	require.Empty(t, d.all("haproxy.socket"))

	require.NoError(t, os.Remove(credentials))
	require.NoError(t, os.WriteFile(ca, []byte("nonsense"), 0o600))
	var out, errs bytes.Buffer
	require.Equal(t, exitUsage, Main([]string{"doctor", "-c", file}, &out, &errs), out.String()) // as every command says it
	require.Contains(t, errs.String(), "ca_file")
}

// TestDoctorOfWhatRuns: without a file it finds the roles by their processes, and other managers of their HAProxy.
func TestDoctorOfWhatRuns(t *testing.T) {
	t.Parallel()
	root := t.TempDir()
	process := func(pid int, uid string, args ...string) {
		dir := filepath.Join(root, "proc", fmt.Sprint(pid))
		writeFile(t, filepath.Join(dir, "stat"), fmt.Sprintf("%d (%s) S 1 1 1 0 -1 4 1 2 3 4 5 6 7 8 20 0 1 0 900 1000 10 0 0\n", pid, filepath.Base(args[0])))
		writeFile(t, filepath.Join(dir, "status"), "Uid:\t"+uid+"\t"+uid+"\t"+uid+"\t"+uid+"\nGid:\t7\t7\t7\t7\nGroups:\t\nCapEff:\t0000000000000000\n")
		writeFile(t, filepath.Join(dir, "cmdline"), strings.Join(args, "\x00")+"\x00")
		writeFile(t, filepath.Join(dir, "limits"), "Max open files            1024                 524288               files     \n")
		require.NoError(t, os.MkdirAll(filepath.Join(dir, "fd"), 0o755))
	}
	process(7, "4242", "/usr/bin/myelin", "--log-level", "debug", "agent", "-c", "/etc/myelin/agent.toml")
	writeFile(t, filepath.Join(root, "proc/7/environ"), "A=b\x00STATE=/var/lib/myelin\x00") // as a unit's EnvironmentFile does it
	process(8, "4242", "/usr/bin/myelin", "status", "agent")
	process(9, "0", "/usr/bin/ruby", "/usr/local/bin/synapse", "-c", "/etc/synapse.json")
	process(10, "0", "/usr/bin/dataplaneapi", "-f", "/etc/gone.yaml")
	process(11, "4242", "/usr/bin/myelin", "registrar", "-c", "/etc/myelin/registrar.toml")
	writeFile(t, filepath.Join(root, "etc/synapse.json"), `{"haproxy": {"socket_file_path": "/run/haproxy/admin.sock"}}`)
	writeFile(t, filepath.Join(root, "etc/myelin/agent.toml"), `
state_dir = "${STATE}"
admin = { listen = "off" }
[haproxy]
socket_file_path = "/run/haproxy/admin.sock"
config_file_path = "/etc/haproxy/haproxy.cfg"
reload_command = "true"
[services.web]
discovery = { method = "base" }
default_servers = [{ host = "10.0.0.1", port = 80 }]
haproxy = { port = 8080 }
`)
	writeFile(t, filepath.Join(root, "etc/myelin/registrar.toml"), "instance_id = 3 = 4\n")
	require.NoError(t, os.MkdirAll(filepath.Join(root, "var/lib/myelin"), 0o755))
	require.NoError(t, os.MkdirAll(filepath.Join(root, "etc/haproxy"), 0o755))

	d := examined(t, "--root", root)
	require.Equal(t, "ok: its agent runs, pid 7, uid 4242", d.of(t, "process.agent", "/etc/myelin/agent.toml"))
	require.Contains(t, d.of(t, "config.file", "/etc/myelin/registrar.toml"), "warning: ")
	require.Equal(t, "critical: it runs on this host, and its configuration names /run/haproxy/admin.sock", d.of(t, "haproxy.manager", "Synapse, pid 9"))
	require.Contains(t, d.of(t, "haproxy.manager", "Data Plane API, pid 10"), "note: it runs on this host; whether it drives this HAProxy is not known: ")
	require.Contains(t, d.of(t, "haproxy.manager", "/run/haproxy/admin.sock"), "note: not known: ")
	require.Contains(t, d.of(t, "permission.path", "state_dir"), "critical: uid 4242 cannot write to /var/lib/myelin (drwxr-xr-x, ")
	require.Contains(t, d.of(t, "permission.path", "haproxy.config_file_path"), "critical: uid 4242 cannot write to /etc/haproxy (drwxr-xr-x, ")
	require.Contains(t, d.of(t, "permission.path", "configuration /etc/myelin/agent.toml"), "critical: uid 4242 cannot read it")
	require.Equal(t, "note: 0 open, limit 1024 (hard 524288)", d.of(t, "process.files", "agent, pid 7"))
	require.Len(t, d.all("process.files"), 2) // those with a role
	require.Contains(t, d.of(t, "kernel.port-range", ""), "note: not known: ")

	process(7, "4242", "/usr/bin/myelin", "agent", "--shadow", "-c", "/etc/myelin/agent.toml")
	d = examined(t, "--root", root)
	require.Contains(t, d.of(t, "haproxy.manager", "Synapse, pid 9"), "ok: it drives /run/haproxy/admin.sock, and our agent is its shadow")

	process(12, "4242", "/usr/bin/myelin", "agent", "--config=/etc/myelin/agent.toml")
	d = examined(t, "--root", root)
	require.Equal(t, "warning: 2 agents of this file run: pids 7 12", d.of(t, "process.agent", "/etc/myelin/agent.toml"))

	// Nothing runs: the kernel only, and that is said.
	require.NoError(t, os.RemoveAll(filepath.Join(root, "proc")))
	d = examined(t, "--root", root)
	require.Len(t, d.all("process.agent"), 2)
	require.Contains(t, strings.Join(d.all("process.agent"), "\n"), "not known: list processes: open "+root+"/proc: no such file or directory")
}

// TestSameFile: a relative path of a process counts, wherever its folder is.
func TestSameFile(t *testing.T) {
	dir := t.TempDir()
	real := writeFile(t, filepath.Join(dir, "agent.toml"), "")
	require.NoError(t, os.Symlink(real, filepath.Join(dir, "link.toml")))
	for file, same := range map[string]bool{real: true, filepath.Join(dir, "link.toml"): true, "agent.toml": true, "./agent.toml": true, "nt.toml": false, "other/agent.toml": false, "/etc/agent.toml": false} {
		require.Equal(t, same, sameFile(file, real), file)
	}
}

// TestDoctorTable: the worst comes first, each with its reason and its fix; what is fine is counted, or shown.
func TestDoctorTable(t *testing.T) {
	t.Parallel()
	root := t.TempDir()
	require.NoError(t, os.MkdirAll(filepath.Join(root, "proc"), 0o755))
	writeFile(t, filepath.Join(root, "proc/sys/net/ipv4/tcp_tw_reuse"), "0\n")
	writeFile(t, filepath.Join(root, "proc/sys/net/core/somaxconn"), "4096\n")
	writeFile(t, filepath.Join(root, "etc/sysctl.conf"), "net.ipv4.tcp_tw_recycle = \x1b[2J1\n")
	run := func(args ...string) string {
		var out, errs bytes.Buffer
		require.Equal(t, exitFindings, Main(append([]string{"doctor", "--root", root}, args...), &out, &errs))
		require.Empty(t, errs.String())
		return out.String()
	}
	table := run()
	require.Regexp(t, `(?m)^warning   kernel\.tw-reuse +tcp_tw_reuse = 0: off, for all connections\n +why: tcp_tw_reuse lets .*\n +fix: sysctl -w net\.ipv4\.tcp_tw_reuse=1, `, table)
	require.NotContains(t, table, "somaxconn = 4096")
	require.NotContains(t, table, "\x1b")
	require.Regexp(t, `\n0 critical, \d warnings?, \d+ notes, \d fine \(-o wide shows them\)\n$`, table)
	require.Less(t, strings.Index(table, "tw-reuse"), strings.Index(table, "port-range"))
	wide := run("-o", "wide")
	require.Regexp(t, `(?m)^ok        kernel\.somaxconn +somaxconn = 4096$`, wide)
	require.Regexp(t, `\d fine\n$`, wide)
}

// TestDoctorJSON: what programs read stays as it is.
func TestDoctorJSON(t *testing.T) {
	t.Parallel()
	kernel := doctor.Kernel{
		Release: "6.1.0", PortRange: doctor.Is(doctor.Range{From: 32768, To: 60999}), Reserved: doctor.Is([]doctor.Range(nil)), TWReuse: doctor.Is(int64(0)),
		Timestamps: doctor.Is(int64(1)), Somaxconn: doctor.Is(int64(4096)), SynBacklog: doctor.Is(int64(2048)), Syncookies: doctor.Is(int64(1)), FinTimeout: doctor.Is(int64(60)),
		Overflows: doctor.Is(int64(0)), Files: doctor.Is(doctor.FileTable{Open: 1, Max: 100}), Conntrack: doctor.Not[doctor.Conntrack]("permission denied"),
		Leftovers: []doctor.Leftover{{File: "/etc/sysctl.conf", Line: 3, Text: "net.ipv4.tcp_tw_recycle = 1"}},
	}
	facts := doctor.Facts{Kernel: &kernel, Secrets: []doctor.Secret{{What: "credentials_file", Path: "/etc/myelin/zk", Mode: 0o644}}}
	var out bytes.Buffer
	err := (&app{out: &out, output: "json"}).printFindings(doctor.Examine(facts))
	require.Equal(t, exitFindings, (&app{}).exit(err))
	golden := filepath.Join("testdata", "json", "doctor.json")
	if *updateGolden {
		writeFile(t, golden, out.String())
	}
	require.Equal(t, string(mustRead(t, golden)), out.String())

	out.Reset()
	require.NoError(t, (&app{out: &out, output: "json"}).printFindings(nil)) // nothing was looked at: still one value
	require.JSONEq(t, `{"worst": "ok", "findings": []}`, out.String())
}

// TestDoctorUsage: what is wrong on the command line or in the file is said, with exit code 2.
func TestDoctorUsage(t *testing.T) {
	t.Parallel()
	bad := writeFile(t, filepath.Join(t.TempDir(), "agent.toml"), "services = 3\n")
	for _, c := range []struct {
		args []string
		says string
	}{
		{[]string{"-c", bad}, "services"},
		{[]string{"-c", "/nowhere.toml"}, "/nowhere.toml"},
		{[]string{"--write-test", "scratch"}, "write an absolute path"},
		{[]string{"web"}, "unknown command"},
		{[]string{"--zookeeper", "zk1:port"}, "--zookeeper"},
	} {
		var out, errs bytes.Buffer
		require.Equal(t, exitUsage, Main(append([]string{"doctor"}, c.args...), &out, &errs), "%v\n%s%s", c.args, out.String(), errs.String())
		require.Contains(t, errs.String(), c.says)
		require.Empty(t, out.String())
	}
}
