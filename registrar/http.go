package registrar

import (
	"bufio"
	"bytes"
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/url"
	"strings"
	"time"
)

const (
	maxHeader = 64 << 10 // bytes of an answer's header
	maxBody   = 1 << 20  // bytes of a body that are read, and searched
)

// HTTPOptions describe an HTTP check.
type HTTPOptions struct {
	Host string // an IP (IPv6 with or without brackets) or a name, resolved anew for each check
	Port uint16
	URI  string // path and query, "/health"

	TLS       bool // https
	VerifyTLS bool // check the certificate against the system's roots; Nerve never does

	Headers map[string]string // "Host" sets the request's host
	Expect  string            // must be in the first MiB of the body, when not empty

	// Limits of each step; 0: only the context's. ReadTimeout counts from the connection to the end of the body.
	OpenTimeout, TLSTimeout, ReadTimeout time.Duration
}

// Budget is the longest that the steps may take together: the Timeout of a Check that adds no limit of its own, as in
// Nerve. It is 0 when a step has no limit.
func (o HTTPOptions) Budget() time.Duration {
	if o.OpenTimeout <= 0 || o.ReadTimeout <= 0 || o.TLS && o.TLSTimeout <= 0 {
		return 0
	}
	if !o.TLS {
		return o.OpenTimeout + o.ReadTimeout
	}
	return o.OpenTimeout + o.TLSTimeout + o.ReadTimeout
}

// HTTP passes when a GET is answered with a status from 200 to 399, completely, and with what is expected in the
// body. Redirects are not followed, proxy variables are not read, and each check opens a connection of its own.
type HTTP struct{ o HTTPOptions }

// NewHTTP refuses options that no request can be made from.
func NewHTTP(o HTTPOptions) (HTTP, error) {
	c := HTTP{o}
	if _, err := c.request(); err != nil {
		return HTTP{}, fmt.Errorf("make http check: %w", err)
	}
	return c, nil
}

// Check asks once.
//
// It speaks over a connection that it opens itself instead of through http.Transport: each step has its own limit,
// and nothing is kept, retried or taken from the environment.
func (c HTTP) Check(ctx context.Context) error {
	req, err := c.request()
	if err != nil {
		return err
	}
	conn, err := dial(ctx, c.o.Host, c.o.Port, c.o.OpenTimeout)
	if err != nil {
		return err
	}
	defer func() { conn.Close() }() // the variable: TLS wraps it
	if c.o.TLS {
		if conn, err = c.handshake(ctx, conn); err != nil {
			return err
		}
	}
	if c.o.ReadTimeout > 0 {
		var cancel context.CancelFunc
		ctx, cancel = context.WithTimeoutCause(ctx, c.o.ReadTimeout, noAnswer(c.o.ReadTimeout))
		defer cancel()
	}
	stop := context.AfterFunc(ctx, func() { _ = conn.SetDeadline(time.Unix(1, 0)) }) // ends a read that blocks
	defer stop()
	return c.exchange(ctx, conn, req)
}

func (c HTTP) request() (*http.Request, error) {
	u, err := url.ParseRequestURI(c.o.URI)
	if err != nil || !strings.HasPrefix(c.o.URI, "/") {
		return nil, fmt.Errorf("uri %q is not a path", c.o.URI)
	}
	req := &http.Request{
		Method: http.MethodGet, URL: u, Host: address(c.o.Host, c.o.Port), Close: true,
		Header: http.Header{"User-Agent": {"myelin-check"}, "Accept": {"*/*"}},
	}
	for name, value := range c.o.Headers {
		if strings.EqualFold(name, "Host") {
			req.Host = value
			continue
		}
		req.Header.Set(name, value)
	}
	return req, nil
}

func (c HTTP) handshake(ctx context.Context, conn net.Conn) (net.Conn, error) {
	if c.o.TLSTimeout > 0 {
		var cancel context.CancelFunc
		ctx, cancel = context.WithTimeoutCause(ctx, c.o.TLSTimeout, noAnswer(c.o.TLSTimeout))
		defer cancel()
	}
	t := tls.Client(conn, &tls.Config{
		ServerName:         strings.Trim(c.o.Host, "[]"),
		InsecureSkipVerify: !c.o.VerifyTLS, // a check asks whether the neighbour process answers, not who it is
	})
	if err := t.HandshakeContext(ctx); err != nil {
		return conn, fmt.Errorf("open TLS with %s: %w", address(c.o.Host, c.o.Port), cause(ctx, err))
	}
	return t, nil
}

func (c HTTP) exchange(ctx context.Context, conn net.Conn, req *http.Request) error {
	if err := req.Write(conn); err != nil {
		return fmt.Errorf("send request: %w", cause(ctx, err))
	}
	limited := &io.LimitedReader{R: conn, N: maxHeader}
	resp, err := readResponse(bufio.NewReader(limited), req)
	if err != nil {
		if limited.N <= 0 {
			return fmt.Errorf("header has more than %d bytes", maxHeader)
		}
		return readError(ctx, "read answer", err)
	}
	defer resp.Body.Close()
	if resp.StatusCode < 200 || resp.StatusCode > 399 {
		return fmt.Errorf("status %d", resp.StatusCode)
	}
	// The body is read even when nothing is expected in it, as in Nerve: a service that stops half-way is not healthy.
	limited.N = 4 * maxBody // chunks have headers of their own
	body, err := io.ReadAll(io.LimitReader(resp.Body, maxBody))
	if err != nil {
		return readError(ctx, "read body", err)
	}
	if !bytes.Contains(body, []byte(c.o.Expect)) {
		return fmt.Errorf("body lacks %q", c.o.Expect)
	}
	return nil
}

// readResponse skips interim answers (RFC 9110 15.2), of which there may be any number; the header's limit bounds them.
func readResponse(r *bufio.Reader, req *http.Request) (*http.Response, error) {
	for {
		resp, err := http.ReadResponse(r, req)
		if err != nil || resp.StatusCode >= 200 || resp.StatusCode == http.StatusSwitchingProtocols {
			return resp, err
		}
	}
}

// readError words a failed read. The bare limit says all there is to say of an answer that did not come.
func readError(ctx context.Context, doing string, err error) error {
	why := cause(ctx, err)
	if doing == "read answer" && errors.Is(why, context.DeadlineExceeded) {
		return why
	}
	return fmt.Errorf("%s: %w", doing, why)
}
