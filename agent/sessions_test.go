package agent

import (
	"bufio"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"math/big"
	"net"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/sirupsen/logrus/hooks/test"
	"github.com/stretchr/testify/require"

	"github.com/myelin-sd/myelin/config"
	"github.com/myelin-sd/myelin/discovery/zookeeper"
)

// nobody is an ensemble that does not answer.
var nobody = config.ZooKeeper{Hosts: []string{"127.0.0.1:1", "127.0.0.2:1"}, SessionTimeout: 4 * time.Second}

func newSessions(t *testing.T) (*Sessions, *test.Hook) {
	t.Helper()
	log, hook := test.NewNullLogger()
	p := NewSessions(log)
	t.Cleanup(p.Close)
	return p, hook
}

// TestSessionsAreShared: services share a session exactly when they mean the same.
func TestSessionsAreShared(t *testing.T) {
	with := func(edit func(*config.ZooKeeper)) config.ZooKeeper {
		z := nobody
		edit(&z)
		return z
	}
	login := func(a config.ZooKeeperAuth) config.ZooKeeper {
		return with(func(z *config.ZooKeeper) { z.Auth = &a })
	}
	secured := func(c config.TLS) config.ZooKeeper { return with(func(z *config.ZooKeeper) { z.TLS = &c }) }
	for name, tc := range map[string]struct {
		a, b   config.ZooKeeper
		shared bool
	}{
		"the same":                {nobody, nobody, true},
		"hosts in another order":  {nobody, with(func(z *config.ZooKeeper) { z.Hosts = []string{"127.0.0.2:1", "127.0.0.1:1"} }), true},
		"another timeout":         {nobody, with(func(z *config.ZooKeeper) { z.SessionTimeout = time.Minute }), true},
		"a login of equal words":  {login(config.ZooKeeperAuth{Scheme: "digest", CredentialsFile: "/x"}), login(config.ZooKeeperAuth{Scheme: "digest", CredentialsFile: "/x"}), true},
		"TLS of equal words":      {secured(config.TLS{CAFile: "/ca", CA: []byte("1")}), secured(config.TLS{CAFile: "/ca", CA: []byte("2")}), true},
		"other hosts":             {nobody, with(func(z *config.ZooKeeper) { z.Hosts = z.Hosts[:1] }), false},
		"another chroot":          {nobody, with(func(z *config.ZooKeeper) { z.Chroot = "/x" }), false},
		"classic":                 {nobody, with(func(z *config.ZooKeeper) { z.Classic = true }), false},
		"one with a login":        {nobody, login(config.ZooKeeperAuth{Scheme: "digest", CredentialsFile: "/x"}), false},
		"logins of two files":     {login(config.ZooKeeperAuth{Scheme: "digest", CredentialsFile: "/x"}), login(config.ZooKeeperAuth{Scheme: "digest", CredentialsFile: "/y"}), false},
		"two logins":              {login(config.ZooKeeperAuth{Scheme: "digest", Credentials: "a:b"}), login(config.ZooKeeperAuth{Scheme: "digest", Credentials: "a:c"}), false},
		"one with TLS":            {nobody, secured(config.TLS{}), false},
		"one that does not check": {secured(config.TLS{}), secured(config.TLS{NoVerify: true}), false},
		"two authorities":         {secured(config.TLS{CAFile: "/a"}), secured(config.TLS{CAFile: "/b"}), false},
		"two certificates":        {secured(config.TLS{CertFile: "/a", KeyFile: "/k"}), secured(config.TLS{CertFile: "/b", KeyFile: "/k"}), false},
		"two names":               {secured(config.TLS{ServerName: "a"}), secured(config.TLS{ServerName: "b"}), false},
	} {
		t.Run(name, func(t *testing.T) {
			p, _ := newSessions(t)
			a, b := p.Get(tc.a), p.Get(tc.b)
			require.Equal(t, tc.shared, a == b)
			require.Same(t, a, p.Get(tc.a))
			require.Equal(t, tc.shared, p.Name(tc.a) == p.Name(tc.b), "names are as different as sessions: metrics are told apart by them")
			require.Len(t, p.stats(), len(p.Statuses()))
		})
	}
}

// TestSessionsEnd: what nobody uses any more is closed, and what is held stays to the end.
func TestSessionsEnd(t *testing.T) {
	p, _ := newSessions(t)
	other, third := nobody, nobody
	other.Chroot, third.Chroot = "/other", "/third"
	used, held, unused := p.Get(nobody), p.Hold(other, Keep{}), p.Get(third)
	p.Release([]config.ZooKeeper{nobody})
	require.Same(t, used, p.Get(nobody))
	require.Same(t, held, p.Get(other))
	require.Len(t, p.Statuses(), 2)
	_, err := unused.Snapshot(t.Context(), "x", "/x")
	require.ErrorContains(t, err, "closed")
	p.Release(nil)
	require.Len(t, p.Statuses(), 1)
	require.Same(t, held, p.Hold(other, Keep{}))

	require.Same(t, held, p.Get(other), "held by one, used by another: one session")
	p.Close()
	require.Empty(t, p.Statuses())
	_, err = held.Snapshot(t.Context(), "x", "/x")
	require.ErrorContains(t, err, "closed")
}

// TestSessionOptions: all that a file says of an ensemble reaches the session.
func TestSessionOptions(t *testing.T) {
	log, _ := test.NewNullLogger()
	o := sessionOptions(config.ZooKeeper{
		Hosts: []string{"zk1:2181"}, Chroot: "/x", SessionTimeout: time.Second, Classic: true,
		Auth: &config.ZooKeeperAuth{Scheme: "digest", CredentialsFile: "/login"}, TLS: &config.TLS{ServerName: "zk"},
	}, "/file", log)
	require.Equal(t, "zk", o.TLS.ServerName)
	o.TLS = nil
	require.Equal(t, zookeeper.Options{
		Hosts: []string{"zk1:2181"}, Chroot: "/x", SessionTimeout: time.Second, Classic: true, Log: log, SessionFile: "/file",
		Logins: []zookeeper.Login{{Scheme: "digest", Credentials: []byte{}, File: "/login"}},
	}, o)
	plain := sessionOptions(nobody, "", log)
	require.Nil(t, plain.TLS)
	require.Empty(t, plain.Logins)
	o = sessionOptions(config.ZooKeeper{Auth: &config.ZooKeeperAuth{Scheme: "digest", Credentials: "me:hidden"}}, "", log)
	require.Equal(t, "me:hidden", string(o.Logins[0].Credentials))
	require.Empty(t, o.Logins[0].File)
}

// TestSessionFiles: the next run of a process finds its sessions, and nobody else's.
func TestSessionFiles(t *testing.T) {
	log, hook := test.NewNullLogger()
	dir := filepath.Join(t.TempDir(), "made", "for", "it")
	me := Keep{Dir: dir, Owner: "me"}
	file := func(k Keep, z config.ZooKeeper, number int) string { return k.file(accessOf(z), number, log) }
	mine := file(me, nobody, 1)
	require.DirExists(t, dir)
	require.Regexp(t, `^`+dir+`/zookeeper-[0-9a-f]{12}\.session$`, mine)
	left, err := os.ReadDir(dir)
	require.NoError(t, err)
	require.Empty(t, left, "only the session writes it")

	turned := nobody
	turned.Hosts = []string{nobody.Hosts[1], nobody.Hosts[0]}
	require.Equal(t, mine, file(me, turned, 1))
	elsewhere := nobody
	elsewhere.Chroot = "/x"
	for name, other := range map[string]string{
		"ensemble": file(me, elsewhere, 1), "process": file(Keep{Dir: dir, Owner: "you"}, nobody, 1), "login": file(me, nobody, 2),
	} {
		require.NotEqual(t, mine, other, "another "+name)
	}
	require.Empty(t, file(Keep{}, nobody, 1))
	require.Empty(t, hook.AllEntries())

	// A folder that cannot be made, whoever asks: there is a file in its way.
	blocked := filepath.Join(t.TempDir(), "file")
	require.NoError(t, os.WriteFile(blocked, nil, 0o600))
	p, hook := newSessions(t)
	p.Hold(nobody, Keep{Dir: filepath.Join(blocked, "state")})
	require.Contains(t, hook.AllEntries()[0].Message, "state_dir cannot be used")
	require.Len(t, p.Statuses(), 1, "the session is there all the same")
}

// authority signs certificates for a test.
type authority struct {
	t    *testing.T
	cert *x509.Certificate
	key  *ecdsa.PrivateKey
	next int64
}

func newAuthority(t *testing.T) *authority {
	t.Helper()
	a := &authority{t: t, next: 2}
	a.key = newKey(t)
	a.cert = &x509.Certificate{SerialNumber: big.NewInt(1), Subject: pkix.Name{CommonName: "authority"}, NotAfter: time.Now().Add(time.Hour),
		IsCA: true, BasicConstraintsValid: true}
	der, err := x509.CreateCertificate(rand.Reader, a.cert, a.cert, &a.key.PublicKey, a.key)
	require.NoError(t, err)
	a.cert, err = x509.ParseCertificate(der)
	require.NoError(t, err)
	return a
}

func newKey(t *testing.T) *ecdsa.PrivateKey {
	t.Helper()
	k, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	require.NoError(t, err)
	return k
}

func (a *authority) pem() []byte {
	return pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: a.cert.Raw})
}

// issue makes a certificate and its key, in PEM.
func (a *authority) issue(names ...string) (cert, key []byte) {
	a.t.Helper()
	k := newKey(a.t)
	c := &x509.Certificate{SerialNumber: big.NewInt(a.next), NotAfter: time.Now().Add(time.Hour), DNSNames: names}
	a.next++
	der, err := x509.CreateCertificate(rand.Reader, c, a.cert, &k.PublicKey, a.key)
	require.NoError(a.t, err)
	keyDER, err := x509.MarshalPKCS8PrivateKey(k)
	require.NoError(a.t, err)
	return pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der}), pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: keyDER})
}

// secureServer shakes hands with whoever has a certificate of the authority, and sends its serial number.
func (a *authority) secureServer(name string) (address string) {
	a.t.Helper()
	cert, key := a.issue(name)
	own, err := tls.X509KeyPair(cert, key)
	require.NoError(a.t, err)
	clients := x509.NewCertPool()
	clients.AddCert(a.cert)
	l, err := tls.Listen("tcp", "127.0.0.1:0", &tls.Config{
		Certificates: []tls.Certificate{own}, ClientCAs: clients, ClientAuth: tls.RequireAndVerifyClientCert})
	require.NoError(a.t, err)
	done := make(chan struct{})
	a.t.Cleanup(func() { l.Close(); <-done })
	go func() {
		defer close(done)
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			secure := c.(*tls.Conn)
			if secure.Handshake() == nil {
				secure.Write([]byte(secure.ConnectionState().PeerCertificates[0].SerialNumber.String() + "\n"))
			}
			c.Close()
		}
	}()
	return l.Addr().String()
}

// TestTLS: who is trusted, and that a new certificate needs no new session.
func TestTLS(t *testing.T) {
	ours, others := newAuthority(t), newAuthority(t)
	dir := t.TempDir()
	certFile, keyFile := filepath.Join(dir, "cert.pem"), filepath.Join(dir, "key.pem")
	install := func() {
		cert, key := ours.issue()
		require.NoError(t, os.WriteFile(certFile, cert, 0o600))
		require.NoError(t, os.WriteFile(keyFile, key, 0o600))
	}
	install()
	address := ours.secureServer("zk.example.com")
	shake := func(c *tls.Config) (string, error) {
		t.Helper()
		conn, err := net.Dial("tcp", address)
		require.NoError(t, err)
		defer conn.Close()
		require.NoError(t, conn.SetDeadline(time.Now().Add(patience)))
		secure := tls.Client(conn, c)
		if err := secure.Handshake(); err != nil {
			return "", err
		}
		serial, err := bufio.NewReader(secure).ReadString('\n')
		return strings.TrimSpace(serial), err
	}
	good := config.TLS{CAFile: "ca.pem", CA: ours.pem(), CertFile: certFile, KeyFile: keyFile, ServerName: "zk.example.com"}

	c := tlsConfig(good)
	first, err := shake(c)
	require.NoError(t, err)
	install()
	second, err := shake(c)
	require.NoError(t, err)
	require.NotEqual(t, first, second, "the new certificate was not used")

	for name, edit := range map[string]func(*config.TLS){
		"unknown authority":     func(c *config.TLS) { c.CA = others.pem() },
		"not other.example.com": func(c *config.TLS) { c.ServerName = "other.example.com" },
		"signed by unknown":     func(c *config.TLS) { c.CA = nil }, // a file that was not read trusts nobody
		"certificate required":  func(c *config.TLS) { c.CertFile, c.KeyFile = "", "" },
		"no such file":          func(c *config.TLS) { c.CertFile = filepath.Join(dir, "nowhere.pem") },
	} {
		bad := good
		edit(&bad)
		_, err := shake(tlsConfig(bad))
		require.ErrorContains(t, err, name)
	}
	careless := good
	careless.CA, careless.NoVerify = others.pem(), true
	_, err = shake(tlsConfig(careless))
	require.NoError(t, err)
}
