package registrar

import (
	"bufio"
	"bytes"
	"cmp"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/url"
	"regexp"
	"slices"
	"strings"
	"time"
)

const (
	maxHeader = 64 << 10 // bytes of an answer's header
	maxBody   = 1 << 20  // bytes of a body that are read, and searched
)

// HTTPOptions describe an HTTP check.
type HTTPOptions struct {
	Host   string // an IP (IPv6 with or without brackets) or a name, resolved anew for each check
	Port   uint16
	Socket string      // path of a Unix socket to connect to instead of Host and Port, unless empty
	TLS    *TLSOptions // nil: plain HTTP

	Method  string            // empty: GET; not CONNECT
	URI     string            // path and query, "/health"
	Headers map[string]string // "Host" sets the request's host
	Body    string            // sent with the request, when not empty

	Status      []StatusRange // those that pass; none: 200 to 399, as in Nerve
	Expect      string        // must be in the first MiB of the body, when not empty
	ExpectRegex string        // must match in the first MiB of the body, when not empty (RE2)

	// Limits of each step; 0: only the context's. ReadTimeout counts from the connection to the end of the body.
	OpenTimeout, TLSTimeout, ReadTimeout time.Duration
}

// StatusRange is a range of HTTP statuses. Both ends belong to it.
type StatusRange struct{ From, To int }

// Budget is the longest that the steps may take together: the Timeout of a Check that adds no limit of its own, as in
// Nerve. It is 0 when a step has no limit.
func (o HTTPOptions) Budget() time.Duration {
	if o.OpenTimeout <= 0 || o.ReadTimeout <= 0 || o.TLS != nil && o.TLSTimeout <= 0 {
		return 0
	}
	if o.TLS == nil {
		return o.OpenTimeout + o.ReadTimeout
	}
	return o.OpenTimeout + o.TLSTimeout + o.ReadTimeout
}

// HTTP passes when a request is answered with a status that is asked for, completely, and with what is expected in the
// body. Redirects are not followed, proxy variables are not read, and each check opens a connection of its own.
type HTTP struct {
	o     HTTPOptions
	regex *regexp.Regexp
}

// NewHTTP refuses options that no request can be made from, and expectations that nothing can meet.
func NewHTTP(o HTTPOptions) (HTTP, error) {
	c := HTTP{o: o}
	_, err := c.request()
	if err == nil {
		err = o.TLS.valid()
	}
	if err == nil {
		err = c.expectations()
	}
	if err != nil {
		return HTTP{}, fmt.Errorf("make http check: %w", err)
	}
	return c, nil
}

func (c *HTTP) expectations() error {
	for _, s := range c.o.Status {
		if s.From > s.To {
			return fmt.Errorf("status %d-%d is no range", s.From, s.To)
		}
	}
	if c.o.Method == http.MethodHead && (c.o.Expect != "" || c.o.ExpectRegex != "") {
		return errors.New("the answer to HEAD has no body to search")
	}
	if c.o.ExpectRegex == "" {
		return nil
	}
	var err error
	if c.regex, err = regexp.Compile(c.o.ExpectRegex); err != nil {
		return fmt.Errorf("read regular expression: %w", err)
	}
	return nil
}

func (c HTTP) place() place { return place{c.o.Host, c.o.Port, c.o.Socket} }

// Check asks once.
//
// It speaks over a connection that it opens itself instead of through http.Transport: each step has its own limit,
// and nothing is kept, retried or taken from the environment.
func (c HTTP) Check(ctx context.Context) error {
	req, err := c.request()
	if err != nil {
		return err
	}
	conn, err := c.place().dial(ctx, c.o.OpenTimeout)
	if err != nil {
		return err
	}
	if c.o.TLS != nil {
		if conn, err = c.handshake(ctx, conn); err != nil {
			return err
		}
	}
	defer conn.Close()
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
	method := cmp.Or(c.o.Method, http.MethodGet)
	if method == http.MethodConnect || !isToken(method) {
		return nil, fmt.Errorf("method %q cannot be asked with", method)
	}
	req := &http.Request{
		Method: method, URL: u, Host: c.place().name(), Close: true,
		Header: http.Header{"User-Agent": {"myelin-check"}, "Accept": {"*/*"}},
	}
	if c.o.Body != "" {
		req.Body, req.ContentLength = io.NopCloser(strings.NewReader(c.o.Body)), int64(len(c.o.Body))
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

// isToken: RFC 9110 5.6.2.
func isToken(s string) bool {
	return s != "" && !strings.ContainsFunc(s, func(c rune) bool {
		return c <= ' ' || c >= 127 || strings.ContainsRune(`"(),/:;<=>?@[\]{}`, c)
	})
}

func (c HTTP) handshake(ctx context.Context, conn net.Conn) (net.Conn, error) {
	if c.o.TLSTimeout > 0 {
		var cancel context.CancelFunc
		ctx, cancel = context.WithTimeoutCause(ctx, c.o.TLSTimeout, noAnswer(c.o.TLSTimeout))
		defer cancel()
	}
	t, err := c.o.TLS.open(ctx, conn, c.place())
	if err != nil {
		return nil, err // not t: a nil *tls.Conn is no nil net.Conn
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
	if !c.passes(resp.StatusCode) {
		return fmt.Errorf("status %d", resp.StatusCode)
	}
	// The body is read even when nothing is expected in it, as in Nerve: a service that stops half-way is not healthy.
	limited.N = 4 * maxBody // chunks have headers of their own
	body, err := io.ReadAll(io.LimitReader(resp.Body, maxBody))
	if err != nil {
		return readError(ctx, "read body", err)
	}
	return c.search(body)
}

// usualStatus passes where nothing else is asked for, as in Nerve.
var usualStatus = StatusRange{200, 399}

func (r StatusRange) contains(status int) bool { return r.From <= status && status <= r.To }

func (c HTTP) passes(status int) bool {
	if len(c.o.Status) == 0 {
		return usualStatus.contains(status)
	}
	return slices.ContainsFunc(c.o.Status, func(r StatusRange) bool { return r.contains(status) })
}

func (c HTTP) search(body []byte) error {
	if !bytes.Contains(body, []byte(c.o.Expect)) {
		return fmt.Errorf("body lacks %q", c.o.Expect)
	}
	if c.regex != nil && !c.regex.Match(body) {
		return fmt.Errorf("body does not match %q", c.o.ExpectRegex)
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
