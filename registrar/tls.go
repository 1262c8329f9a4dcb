package registrar

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"net"
	"strings"
)

// TLSOptions say how a check speaks TLS. Their zero value takes any certificate, as Nerve does: a check asks whether the
// neighbour process answers, not who it is.
type TLSOptions struct {
	Verify            bool
	CA                []byte // PEM of the authorities; empty: the system's
	ServerName        string // asked for, and looked for in the certificate; empty: the host
	CertFile, KeyFile string // PEM, both or none: who we are; read for each handshake, so that they can be replaced
}

// errNoCertificate is the complaint about a CA that is none.
var errNoCertificate = errors.New("the CA file holds no certificate in PEM")

// valid says what no handshake can be made with. Files may still come and go.
func (o *TLSOptions) valid() error {
	if o == nil || len(o.CA) == 0 || x509.NewCertPool().AppendCertsFromPEM(o.CA) {
		return nil
	}
	return errNoCertificate
}

// config is made for each handshake, because checks are compared by their values, which a pool of certificates and
// functions do not allow.
func (o *TLSOptions) config(host string) (*tls.Config, error) {
	c := &tls.Config{ServerName: strings.Trim(host, "[]"), InsecureSkipVerify: !o.Verify}
	if o.ServerName != "" {
		c.ServerName = o.ServerName
	}
	if o.Verify && len(o.CA) > 0 {
		c.RootCAs = x509.NewCertPool()
		if !c.RootCAs.AppendCertsFromPEM(o.CA) {
			return nil, errNoCertificate
		}
	}
	if o.CertFile != "" {
		pair, err := tls.LoadX509KeyPair(o.CertFile, o.KeyFile)
		if err != nil {
			return nil, fmt.Errorf("read cert_file %s and key_file %s: %w", o.CertFile, o.KeyFile, err)
		}
		c.Certificates = []tls.Certificate{pair}
	}
	return c, nil
}

// open makes a TLS connection of conn, which it closes when that fails. protocols are offered for what is spoken
// inside.
func (o *TLSOptions) open(ctx context.Context, conn net.Conn, to place, protocols ...string) (*tls.Conn, error) {
	host := to.host
	if to.socket != "" {
		host = to.name()
	}
	config, err := o.config(host)
	if err != nil {
		conn.Close()
		return nil, err
	}
	config.NextProtos = protocols
	t := tls.Client(conn, config)
	if err := t.HandshakeContext(ctx); err != nil {
		conn.Close()
		return nil, fmt.Errorf("open TLS with %s: %w", to, cause(ctx, err))
	}
	return t, nil
}
