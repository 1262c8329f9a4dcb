package zktest

import (
	"bytes"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"fmt"
	"math/big"
	"net"
	"os"
	"path/filepath"
	"time"
)

// TLSFiles are the paths of PEM files for a client of a server with TLS.
type TLSFiles struct {
	CA   string // signs the server's certificate, which is for "localhost" and 127.0.0.1
	Cert string // the client's own certificate, of the same CA
	Key  string // its key, PKCS #8
}

// keyStore holds the server's certificate and key, in the one file that ZooKeeper wants.
func (f TLSFiles) keyStore() string { return filepath.Join(filepath.Dir(f.CA), "server.pem") }

// WriteCertificates makes a new CA, and a server's and a client's certificate signed by it, good for a day, and writes
// them into dir, which it creates. Servers make their own; a test needs it for a stranger's.
func WriteCertificates(dir string) (TLSFiles, error) {
	f := TLSFiles{CA: filepath.Join(dir, "ca.pem"), Cert: filepath.Join(dir, "client.pem"), Key: filepath.Join(dir, "client-key.pem")}
	if err := f.write(dir); err != nil {
		return TLSFiles{}, fmt.Errorf("write certificates: %w", err)
	}
	return f, nil
}

func (f TLSFiles) write(dir string) error {
	ca, err := newIdentity("zktest CA", nil)
	if err != nil {
		return err
	}
	server, err := newIdentity("localhost", ca)
	if err != nil {
		return err
	}
	client, err := newIdentity("client", ca)
	if err != nil {
		return err
	}
	if err := os.MkdirAll(dir, 0o755); err != nil {
		return err
	}
	for file, text := range map[string][]byte{
		f.CA:         ca.certPEM,
		f.keyStore(): bytes.Join([][]byte{server.keyPEM, server.certPEM}, nil),
		f.Cert:       client.certPEM,
		f.Key:        client.keyPEM,
	} {
		if err := os.WriteFile(file, text, 0o600); err != nil {
			return err
		}
	}
	return nil
}

// identity is a certificate with its key.
type identity struct {
	cert            *x509.Certificate
	key             *ecdsa.PrivateKey
	certPEM, keyPEM []byte
}

// newIdentity makes a certificate signed by parent, or a CA of its own when that is nil.
func newIdentity(name string, parent *identity) (*identity, error) {
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return nil, err
	}
	serial, err := rand.Int(rand.Reader, new(big.Int).Lsh(big.NewInt(1), 120))
	if err != nil {
		return nil, err
	}
	now := time.Now()
	template := &x509.Certificate{
		SerialNumber: serial, Subject: pkix.Name{CommonName: name},
		NotBefore: now.Add(-time.Hour), NotAfter: now.Add(24 * time.Hour),
		BasicConstraintsValid: true,
	}
	signer, signerKey := template, key
	if parent == nil {
		template.IsCA, template.KeyUsage = true, x509.KeyUsageCertSign
	} else {
		signer, signerKey = parent.cert, parent.key
		template.KeyUsage = x509.KeyUsageDigitalSignature
		template.ExtKeyUsage = []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth, x509.ExtKeyUsageClientAuth}
		template.DNSNames, template.IPAddresses = []string{"localhost"}, []net.IP{net.IPv4(127, 0, 0, 1)}
	}
	der, err := x509.CreateCertificate(rand.Reader, template, signer, &key.PublicKey, signerKey)
	if err != nil {
		return nil, err
	}
	cert, err := x509.ParseCertificate(der)
	if err != nil {
		return nil, err
	}
	keyDER, err := x509.MarshalPKCS8PrivateKey(key)
	if err != nil {
		return nil, err
	}
	return &identity{
		cert: cert, key: key,
		certPEM: pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der}),
		keyPEM:  pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: keyDER}),
	}, nil
}
