package zookeeper_test

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"io"
	"net"
	"os"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/myelin-sd/myelin/discovery/zookeeper"
	"github.com/myelin-sd/myelin/discovery/zookeeper/zktest"
)

// trust is a client that trusts the CA of the files, and shows no certificate of its own.
func trust(t testing.TB, files zktest.TLSFiles) *tls.Config {
	t.Helper()
	text, err := os.ReadFile(files.CA)
	require.NoError(t, err)
	pool := x509.NewCertPool()
	require.True(t, pool.AppendCertsFromPEM(text))
	return &tls.Config{RootCAs: pool}
}

// identify adds the client's certificate of the files.
func identify(t testing.TB, config *tls.Config, files zktest.TLSFiles) *tls.Config {
	t.Helper()
	own, err := tls.LoadX509KeyPair(files.Cert, files.Key)
	require.NoError(t, err)
	config.Certificates = []tls.Certificate{own}
	return config
}

// TestTLS: over mutual TLS all is as without, also after a reconnect. What cannot work is said in words that lead to
// the cause.
func TestTLS(t *testing.T) {
	t.Parallel()
	zks := zktest.New(t, zktest.Options{TLS: true, NeedClientCertificate: true})
	files := zks.TLSFiles()
	stranger, err := zktest.WriteCertificates(t.TempDir())
	require.NoError(t, err)
	w := writer(t, zks.Addr())
	fill(t, w, "/web", 20)
	_, port, err := net.SplitHostPort(zks.SecureAddr())
	require.NoError(t, err)

	both(t, func(t *testing.T, with zookeeper.Options) {
		wire := zktest.NewProxy(t, zks.SecureAddr())
		s := open(t, zookeeper.Options{
			Classic: with.Classic, Hosts: []string{wire.Addr()}, TLS: identify(t, trust(t, files), files), SessionTimeout: 20 * time.Second,
		})
		o := observe(t, s.Source("web", "/web", zookeeper.SourceOptions{}))
		o.untilCount(t, 20)
		node, err := publishNode(s, within(t, patience), registration(payload(1)), "")
		require.NoError(t, err)
		for n := range 3 {
			wire.Cut()
			disconnected(t, s)
			set(t, w, "/web/i-1", payload(100+n))
			wire.Resume()
			connected(t, s)
			set(t, w, "/web/i-2", payload(200+n))
			o.untilSame(t, w, "/web")
		}
		one(t, w, s, payload(1))
		require.NoError(t, s.Withdraw(within(t, patience), registration(payload(1)), node))
		require.EqualValues(t, 1, s.Stats().Sessions)
		require.Zero(t, s.Stats().Differences)
	})

	t.Run("by name", func(t *testing.T) {
		s := open(t, zookeeper.Options{Hosts: []string{"localhost:" + port}, TLS: identify(t, trust(t, files), files)})
		connected(t, s)
		// The address dialled is none of the certificate's; the configuration's name is.
		config := identify(t, trust(t, files), files)
		config.ServerName = "localhost"
		s = open(t, zookeeper.Options{Hosts: []string{net.JoinHostPort("127.0.0.2", port)}, TLS: config, Dial: toLoopback})
		connected(t, s)
	})

	otherName := identify(t, trust(t, files), files)
	otherName.ServerName = "zk.example.com"
	for name, c := range map[string]struct {
		host  string
		tls   *tls.Config
		words []string
	}{
		"another CA":             {zks.SecureAddr(), identify(t, trust(t, stranger), files), []string{"TLS handshake with " + zks.SecureAddr(), "x509", "unknown authority"}},
		"another name":           {zks.SecureAddr(), otherName, []string{"TLS handshake", "x509", "localhost", "not zk.example.com"}},
		"another address":        {net.JoinHostPort("127.0.0.2", port), identify(t, trust(t, files), files), []string{"TLS handshake", "x509", "127.0.0.2"}},
		"no certificate":         {zks.SecureAddr(), trust(t, files), []string{"tls: "}},
		"stranger's certificate": {zks.SecureAddr(), identify(t, trust(t, files), stranger), []string{"tls: "}},
		"TLS to a plain port":    {zks.Addr(), identify(t, trust(t, files), files), []string{"TLS handshake with " + zks.Addr()}},
		"plain to a TLS port":    {zks.SecureAddr(), nil, []string{"TLS"}},
	} {
		t.Run(name, func(t *testing.T) {
			log, lines := silent()
			s := open(t, zookeeper.Options{Hosts: []string{c.host}, TLS: c.tls, Log: log, Dial: toLoopback})
			require.Eventually(t, func() bool { return s.Status().Attempts >= 3 }, patience, poll)
			require.False(t, s.Status().Connected)
			for _, word := range c.words {
				require.Contains(t, s.Status().Error, word)
			}
			require.Equal(t, 1, lines.count("cannot be reached"), lines.text)
		})
	}
}

// TestMuteTLSServer: one that takes connections and never answers the TLS handshake is left for the next host.
func TestMuteTLSServer(t *testing.T) {
	t.Parallel()
	mute := listen(t, func(c net.Conn) { _, _ = io.Copy(io.Discard, c) })
	zks := zktest.New(t, zktest.Options{TLS: true})
	log, lines := silent()
	for len(lines.all("TLS handshake with "+mute)) == 0 { // which host is first is chance
		s := open(t, zookeeper.Options{Hosts: []string{mute, zks.SecureAddr()}, TLS: trust(t, zks.TLSFiles()), SessionTimeout: time.Minute, Log: log})
		connected(t, s)
		require.Equal(t, zks.SecureAddr(), s.Status().Server)
	}
	require.Contains(t, strings.Join(lines.all("TLS handshake with "+mute), " "), "deadline exceeded")
}

// toLoopback dials 127.0.0.1 whatever the address is, on its port.
func toLoopback(ctx context.Context, network, address string) (net.Conn, error) {
	_, port, err := net.SplitHostPort(address)
	if err != nil {
		return nil, err
	}
	var d net.Dialer
	return d.DialContext(ctx, network, net.JoinHostPort("127.0.0.1", port))
}

// all returns the lines that hold part.
func (l *lines) all(part string) (found []string) {
	l.mu.Lock()
	defer l.mu.Unlock()
	for _, t := range l.text {
		if strings.Contains(t, part) {
			found = append(found, t)
		}
	}
	return found
}
