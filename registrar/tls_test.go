package registrar

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"fmt"
	"io"
	"log"
	"math/big"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"reflect"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
)

// authority vouches for servers and clients of a test.
type authority struct {
	cert *x509.Certificate
	key  *ecdsa.PrivateKey
	pem  []byte
	pool *x509.CertPool
}

func newAuthority(t *testing.T) *authority {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	require.NoError(t, err)
	template := &x509.Certificate{
		SerialNumber: big.NewInt(1), Subject: pkix.Name{CommonName: "test authority"}, IsCA: true, BasicConstraintsValid: true,
		NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().Add(time.Hour), KeyUsage: x509.KeyUsageCertSign,
	}
	der, err := x509.CreateCertificate(rand.Reader, template, template, &key.PublicKey, key)
	require.NoError(t, err)
	cert, err := x509.ParseCertificate(der)
	require.NoError(t, err)
	pool := x509.NewCertPool()
	pool.AddCert(cert)
	return &authority{cert, key, pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der}), pool}
}

// sign makes a certificate for a host name.
func (a *authority) sign(t *testing.T, name string) tls.Certificate {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	require.NoError(t, err)
	template := &x509.Certificate{
		SerialNumber: big.NewInt(2), Subject: pkix.Name{CommonName: name}, DNSNames: []string{name},
		NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().Add(time.Hour),
	}
	der, err := x509.CreateCertificate(rand.Reader, template, a.cert, &key.PublicKey, a.key)
	require.NoError(t, err)
	return tls.Certificate{Certificate: [][]byte{der}, PrivateKey: key}
}

// files writes a certificate and its key as an operator would.
func files(t *testing.T, c tls.Certificate) (certFile, keyFile string) {
	t.Helper()
	key, err := x509.MarshalPKCS8PrivateKey(c.PrivateKey)
	require.NoError(t, err)
	dir := t.TempDir()
	certFile, keyFile = filepath.Join(dir, "cert.pem"), filepath.Join(dir, "key.pem")
	require.NoError(t, os.WriteFile(certFile, pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: c.Certificate[0]}), 0o600))
	require.NoError(t, os.WriteFile(keyFile, pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: key}), 0o600))
	return certFile, keyFile
}

func tlsServer(t *testing.T, config *tls.Config) uint16 {
	t.Helper()
	s := httptest.NewUnstartedServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		fmt.Fprintf(w, "for %s", r.TLS.ServerName)
		for _, c := range r.TLS.PeerCertificates {
			fmt.Fprintf(w, " from %s", c.Subject.CommonName)
		}
	}))
	s.Config.ErrorLog = log.New(io.Discard, "", 0)
	s.TLS = config
	s.StartTLS()
	t.Cleanup(s.Close)
	return port(t, s.Listener.Addr().String())
}

func TestTLSVerify(t *testing.T) {
	ca := newAuthority(t)
	p := tlsServer(t, &tls.Config{Certificates: []tls.Certificate{ca.sign(t, "api.example.com")}})
	refuses := func(want string, o TLSOptions) {
		t.Helper()
		require.ErrorContains(t, check(t, HTTPOptions{Port: p, TLS: &o}), fmt.Sprintf("open TLS with 127.0.0.1:%d: tls: failed to verify certificate: x509: %s", p, want))
	}
	require.NoError(t, check(t, HTTPOptions{Port: p, TLS: &TLSOptions{Verify: true, CA: ca.pem, ServerName: "api.example.com"}, Expect: "for api.example.com"}))
	require.NoError(t, check(t, HTTPOptions{Port: p, TLS: &TLSOptions{ServerName: "other.example.com"}, Expect: "for other.example.com"}), "asked for, not verified")
	refuses("certificate is valid for api.example.com, not other", TLSOptions{Verify: true, CA: ca.pem, ServerName: "other"})
	refuses("cannot validate certificate for 127.0.0.1", TLSOptions{Verify: true, CA: ca.pem})
	refuses("certificate signed by unknown authority", TLSOptions{Verify: true, CA: newAuthority(t).pem, ServerName: "api.example.com"})
	refuses("certificate signed by unknown authority", TLSOptions{Verify: true, ServerName: "api.example.com"})
}

// TestTLSOwnCertificate: it is read for each handshake, so that it can be replaced under a running process.
func TestTLSOwnCertificate(t *testing.T) {
	ca := newAuthority(t)
	p := tlsServer(t, &tls.Config{Certificates: []tls.Certificate{ca.sign(t, "a")}, ClientCAs: ca.pool, ClientAuth: tls.RequireAndVerifyClientCert})
	require.Error(t, check(t, HTTPOptions{Port: p, TLS: &TLSOptions{}}), "it wants a certificate")

	certFile, keyFile := files(t, ca.sign(t, "checker"))
	o := HTTPOptions{Port: p, TLS: &TLSOptions{CertFile: certFile, KeyFile: keyFile}}
	o.Expect = "from checker"
	require.NoError(t, check(t, o))
	nextCert, nextKey := files(t, ca.sign(t, "next"))
	require.NoError(t, os.Rename(nextCert, certFile))
	require.NoError(t, os.Rename(nextKey, keyFile))
	o.Expect = "from next"
	require.NoError(t, check(t, o))
	require.NoError(t, os.Remove(keyFile))
	require.EqualError(t, check(t, o), fmt.Sprintf("read cert_file %s and key_file %s: open %s: no such file or directory", certFile, keyFile, keyFile))
}

// TestTLSCompares: checks with the same certificates are the same check after a reload.
func TestTLSCompares(t *testing.T) {
	ca, other := newAuthority(t), newAuthority(t)
	make := func(ca []byte) HTTP {
		c, err := NewHTTP(HTTPOptions{Host: "h", Port: 1, URI: "/", TLS: &TLSOptions{Verify: true, CA: ca}, ExpectRegex: "^(ok|fine)[0-9]*$"})
		require.NoError(t, err)
		return c
	}
	before := make(ca.pem)
	require.True(t, reflect.DeepEqual(before, make(append([]byte(nil), ca.pem...))))
	require.False(t, reflect.DeepEqual(before, make(other.pem)))
	_, err := NewHTTP(HTTPOptions{Host: "h", Port: 1, URI: "/", TLS: &TLSOptions{Verify: true, CA: []byte("no PEM")}})
	require.EqualError(t, err, "make http check: the CA file holds no certificate in PEM")
}
