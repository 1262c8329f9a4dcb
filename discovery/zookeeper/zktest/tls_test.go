package zktest_test

import (
	"crypto/tls"
	"crypto/x509"
	"net"
	"os"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/myelin-sd/myelin/discovery/zookeeper/zktest"
)

// TestTLS: the secure port is for clients with a certificate when it needs one, and the plain port stays.
func TestTLS(t *testing.T) {
	s := zktest.New(t, zktest.Options{TLS: true, NeedClientCertificate: true})
	for _, name := range []string{"localhost", "127.0.0.1"} {
		config := clientConfig(t, s.TLSFiles(), true)
		config.ServerName = name
		c, err := openTLS(s.SecureAddr(), config)
		require.NoError(t, err)
		require.NotZero(t, c.session)
		c.create(t, "/of-"+name)
		requireNode(t, s.Addr(), "/of-"+name, true)
	}
	_, err := openTLS(s.SecureAddr(), clientConfig(t, s.TLSFiles(), false))
	require.Error(t, err, "no certificate")

	stranger, err := zktest.WriteCertificates(t.TempDir())
	require.NoError(t, err)
	config := clientConfig(t, stranger, true)
	config.RootCAs = clientConfig(t, s.TLSFiles(), false).RootCAs
	_, err = openTLS(s.SecureAddr(), config)
	require.Error(t, err, "a stranger's certificate")
	_, err = openTLS(s.SecureAddr(), clientConfig(t, stranger, true))
	require.ErrorContains(t, err, "unknown authority")

	secure := s.SecureAddr()
	require.NoError(t, s.Restart())
	require.Equal(t, secure, s.SecureAddr())
	_, err = openTLS(secure, clientConfig(t, s.TLSFiles(), true))
	require.NoError(t, err, "after a restart")
}

// TestTLSWithoutClientCertificate, and through a proxy, which must carry what it cannot read.
func TestTLSWithoutClientCertificate(t *testing.T) {
	s := zktest.New(t, zktest.Options{TLS: true})
	p := zktest.NewProxy(t, s.SecureAddr())
	c, err := openTLS(p.Addr(), clientConfig(t, s.TLSFiles(), false))
	require.NoError(t, err)
	c.create(t, "/node")
	requireNode(t, s.Addr(), "/node", true)
	require.Zero(t, p.Requests(opCreate))
}

func clientConfig(t *testing.T, files zktest.TLSFiles, certificate bool) *tls.Config {
	t.Helper()
	ca, err := os.ReadFile(files.CA)
	require.NoError(t, err)
	config := &tls.Config{ServerName: "localhost", RootCAs: x509.NewCertPool()}
	require.True(t, config.RootCAs.AppendCertsFromPEM(ca))
	if certificate {
		own, err := tls.LoadX509KeyPair(files.Cert, files.Key)
		require.NoError(t, err)
		config.Certificates = []tls.Certificate{own}
	}
	return config
}

// openTLS opens a session. The connection ends with the server.
func openTLS(addr string, config *tls.Config) (*client, error) {
	c, err := tls.DialWithDialer(&net.Dialer{Timeout: 30 * time.Second}, "tcp", addr, config)
	if err != nil {
		return nil, err
	}
	return open(c)
}
