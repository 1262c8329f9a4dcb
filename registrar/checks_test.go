package registrar

import (
	"bufio"
	"context"
	"crypto/tls"
	"fmt"
	"io"
	"log"
	"net"
	"net/http"
	"net/http/httptest"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
)

// moment is the limit that runs out in tests, patience one that does not.
const (
	moment   = 60 * time.Millisecond
	patience = 10 * time.Second
)

func port(t *testing.T, addr string) uint16 {
	t.Helper()
	_, p, err := net.SplitHostPort(addr)
	require.NoError(t, err)
	n, err := strconv.ParseUint(p, 10, 16)
	require.NoError(t, err)
	return uint16(n)
}

// rawServer accepts connections and hands each to serve, with the end of the test as a channel.
func rawServer(t *testing.T, serve func(c net.Conn, end <-chan struct{})) uint16 {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	require.NoError(t, err)
	end := make(chan struct{})
	var running sync.WaitGroup
	running.Go(func() {
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			running.Go(func() {
				defer c.Close()
				serve(c, end)
			})
		}
	})
	t.Cleanup(func() {
		l.Close()
		close(end)
		running.Wait()
	})
	return port(t, l.Addr().String())
}

// closedPort is one that nobody listens on.
func closedPort(t *testing.T) uint16 {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	require.NoError(t, err)
	require.NoError(t, l.Close())
	return port(t, l.Addr().String())
}

// answer serves one request with raw text and closes.
func answer(text string) func(net.Conn, <-chan struct{}) {
	return func(c net.Conn, _ <-chan struct{}) {
		if _, err := http.ReadRequest(bufio.NewReader(c)); err == nil {
			_, _ = io.WriteString(c, text)
		}
	}
}

// stall serves one request with the beginning of an answer, and leaves it at that.
func stall(text string) func(net.Conn, <-chan struct{}) {
	return func(c net.Conn, end <-chan struct{}) {
		answer(text)(c, end)
		<-end
	}
}

func check(t *testing.T, o HTTPOptions) error {
	t.Helper()
	if o.Host == "" {
		o.Host = "127.0.0.1"
	}
	if o.URI == "" {
		o.URI = "/health"
	}
	c, err := NewHTTP(o)
	require.NoError(t, err)
	ctx, cancel := context.WithTimeout(t.Context(), patience)
	defer cancel()
	return c.Check(ctx)
}

func TestHTTPStatus(t *testing.T) {
	s := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		code, err := strconv.Atoi(r.URL.Query().Get("code"))
		if err != nil {
			code = 200
		}
		if code/100 == 3 {
			w.Header().Set("Location", "/elsewhere?code=500")
		}
		w.WriteHeader(code)
		if code != 204 && code != 304 {
			fmt.Fprint(w, "all is well")
		}
	}))
	defer s.Close()
	p := port(t, s.Listener.Addr().String())
	for code, ok := range map[int]bool{200: true, 204: true, 302: true, 304: true, 399: true, 400: false, 404: false, 500: false, 503: false} {
		err := check(t, HTTPOptions{Port: p, URI: fmt.Sprintf("/health?code=%d", code)})
		if ok {
			require.NoError(t, err, "%d", code)
		} else {
			require.EqualError(t, err, fmt.Sprintf("status %d", code))
		}
	}
	require.NoError(t, check(t, HTTPOptions{Port: p, Expect: "is well"}))
	require.EqualError(t, check(t, HTTPOptions{Port: p, Expect: "OK"}), `body lacks "OK"`)
	require.NoError(t, check(t, HTTPOptions{Port: p, Host: "localhost"}), "a name is resolved")
}

func TestHTTPRequest(t *testing.T) {
	var mu sync.Mutex
	var got []*http.Request
	s := httptest.NewServer(http.HandlerFunc(func(_ http.ResponseWriter, r *http.Request) {
		mu.Lock()
		defer mu.Unlock()
		got = append(got, r)
	}))
	defer s.Close()
	// A proxy that must not be asked: nobody listens there.
	t.Setenv("HTTP_PROXY", "http://127.0.0.1:1")
	t.Setenv("http_proxy", "http://127.0.0.1:1")
	p := port(t, s.Listener.Addr().String())
	o := HTTPOptions{Port: p, URI: "/up?deep=1&q=a%20b", Headers: map[string]string{"host": "user-api.internal", "X-Check": "7", "User-Agent": "me"}}
	require.NoError(t, check(t, o))
	o.Headers = nil
	require.NoError(t, check(t, o))
	require.Len(t, got, 2)
	require.Equal(t, "GET /up?deep=1&q=a%20b HTTP/1.1", got[0].Method+" "+got[0].RequestURI+" "+got[0].Proto)
	require.Equal(t, "user-api.internal", got[0].Host)
	require.Equal(t, "7", got[0].Header.Get("X-Check"))
	require.Equal(t, "me", got[0].Header.Get("User-Agent"))
	require.Equal(t, fmt.Sprintf("127.0.0.1:%d", p), got[1].Host)
	require.Equal(t, "myelin-check", got[1].Header.Get("User-Agent"))
	require.True(t, got[1].Close)
	require.NotEqual(t, got[0].RemoteAddr, got[1].RemoteAddr, "each check has its own connection")
}

func TestHTTPIPv6(t *testing.T) {
	l, err := net.Listen("tcp", "[::1]:0")
	if err != nil {
		t.Skipf("NOT TESTED over IPv6: %v", err)
	}
	s := httptest.NewUnstartedServer(http.NotFoundHandler())
	s.Listener.Close()
	s.Listener = l
	s.Start()
	defer s.Close()
	for _, host := range []string{"::1", "[::1]"} {
		require.EqualError(t, check(t, HTTPOptions{Host: host, Port: port(t, l.Addr().String())}), "status 404")
		require.NoError(t, NewTCP(TCPOptions{Host: host, Port: port(t, l.Addr().String())}).Check(t.Context()))
	}
}

func TestHTTPS(t *testing.T) {
	s := httptest.NewUnstartedServer(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) { fmt.Fprint(w, "OK") }))
	s.Config.ErrorLog = log.New(io.Discard, "", 0)
	s.StartTLS()
	defer s.Close()
	p := port(t, s.Listener.Addr().String())
	o := HTTPOptions{Port: p, TLS: &TLSOptions{}, Expect: "OK", OpenTimeout: patience, TLSTimeout: patience, ReadTimeout: patience}
	require.NoError(t, check(t, o), "nobody vouches for the certificate, and nobody is asked")
	o.TLS.Verify = true
	require.ErrorContains(t, check(t, o), fmt.Sprintf("open TLS with 127.0.0.1:%d: tls: failed to verify certificate", p))
	require.EqualError(t, check(t, HTTPOptions{Port: p}), "status 400", "without TLS")
}

func TestHTTPFaults(t *testing.T) {
	silent := func(_ net.Conn, end <-chan struct{}) { <-end }
	for _, c := range []struct {
		name  string
		serve func(net.Conn, <-chan struct{})
		o     HTTPOptions
		want  string // "" passes; PORT is the server's
	}{
		{"never answers", silent, HTTPOptions{ReadTimeout: moment}, "no answer within 60ms"},
		{"stops in the status line", stall("HTTP/1.1 2"), HTTPOptions{ReadTimeout: moment}, "no answer within 60ms"},
		{"stops in the header", stall("HTTP/1.1 200 OK\r\nA: b\r\n"), HTTPOptions{ReadTimeout: moment}, "no answer within 60ms"},
		{"stops in the body", stall("HTTP/1.1 200 OK\r\nContent-Length: 9\r\n\r\nOK"), HTTPOptions{ReadTimeout: moment}, "read body: no answer within 60ms"},
		{"stops in the body with what is expected", stall("HTTP/1.1 200 OK\r\nContent-Length: 9\r\n\r\nOK"), HTTPOptions{ReadTimeout: moment, Expect: "OK"}, "read body: no answer within 60ms"},
		{"closes at once", func(c net.Conn, _ <-chan struct{}) {}, HTTPOptions{}, "read answer: connection closed"},
		{"closes after the request", answer(""), HTTPOptions{}, "read answer: connection closed"},
		{"closes in the header", answer("HTTP/1.1 200 OK\r\nA: b"), HTTPOptions{}, "read answer: connection closed"},
		{"closes in the body", answer("HTTP/1.1 200 OK\r\nContent-Length: 9\r\n\r\nOK"), HTTPOptions{}, "read body: connection closed"},
		{"talks garbage", answer("220 smtp ready\r\n\r\n"), HTTPOptions{}, `read answer: malformed HTTP status code "smtp"`},
		{"no end of the header", answer("HTTP/1.1 200 OK\r\nA: " + strings.Repeat("x", 2*maxHeader)), HTTPOptions{}, "header has more than 65536 bytes"},
		{"no end of interim answers", answer(strings.Repeat("HTTP/1.1 103 Early Hints\r\n\r\n", maxHeader/20)), HTTPOptions{}, "header has more than 65536 bytes"},
		{"an interim answer", answer("HTTP/1.1 103 Early Hints\r\nLink: </a>\r\n\r\nHTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nOK"), HTTPOptions{Expect: "OK"}, ""},
		{"an interim answer, then a bad one", answer("HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 503 No\r\n\r\n"), HTTPOptions{}, "status 503"},
		{"HTTP/1.0 without a length", answer("HTTP/1.0 200 OK\r\n\r\nfine"), HTTPOptions{Expect: "fine"}, ""},
		{"chunks", answer("HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n2\r\nfi\r\n2\r\nne\r\n0\r\n\r\n"), HTTPOptions{Expect: "fine"}, ""},
		{"more than a MiB of body", answer("HTTP/1.0 200 OK\r\n\r\nearly" + strings.Repeat("x", maxBody) + "late"), HTTPOptions{Expect: "early"}, ""},
		{"in the middle of a large body", answer("HTTP/1.0 200 OK\r\n\r\n" + strings.Repeat("x", maxBody/2) + "middle" + strings.Repeat("x", maxBody)), HTTPOptions{Expect: "middle"}, ""},
		{"beyond a MiB of body", answer("HTTP/1.0 200 OK\r\n\r\nearly" + strings.Repeat("x", maxBody) + "late"), HTTPOptions{Expect: "late"}, `body lacks "late"`},
		{"no TLS there", silent, HTTPOptions{TLS: &TLSOptions{}, TLSTimeout: moment}, "open TLS with 127.0.0.1:PORT: no answer within 60ms"},
		{"closes instead of TLS", answer(""), HTTPOptions{TLS: &TLSOptions{}}, "open TLS with 127.0.0.1:PORT: connection closed"},
		{"a banner instead of TLS", func(c net.Conn, end <-chan struct{}) {
			fmt.Fprint(c, "220 smtp ready\r\n")
			<-end
		}, HTTPOptions{TLS: &TLSOptions{}}, "open TLS with 127.0.0.1:PORT: tls: first record does not look like a TLS handshake"},
		{"TLS, then nothing", func(c net.Conn, end <-chan struct{}) {
			s := httptest.NewUnstartedServer(nil)
			defer s.Listener.Close()
			s.StartTLS()
			defer s.Close()
			config := &tls.Config{Certificates: s.TLS.Certificates}
			_ = tls.Server(c, config).Handshake()
			<-end
		}, HTTPOptions{TLS: &TLSOptions{}, ReadTimeout: moment}, "no answer within 60ms"},
	} {
		t.Run(c.name, func(t *testing.T) {
			c.o.Port = rawServer(t, c.serve)
			want := strings.ReplaceAll(c.want, "PORT", strconv.Itoa(int(c.o.Port)))
			err := check(t, c.o)
			if want == "" {
				require.NoError(t, err)
				return
			}
			require.EqualError(t, err, want)
		})
	}
}

func TestHTTPRefused(t *testing.T) {
	p := closedPort(t)
	want := fmt.Sprintf("connect 127.0.0.1:%d: refused", p)
	require.EqualError(t, check(t, HTTPOptions{Port: p}), want)
	require.EqualError(t, NewTCP(TCPOptions{Host: "127.0.0.1", Port: p}).Check(t.Context()), want)
}

// TestTimeout: the check's own limit goes over those of the steps, and is worded alike.
func TestTimeout(t *testing.T) {
	p := rawServer(t, func(_ net.Conn, end <-chan struct{}) { <-end })
	h, err := NewHTTP(HTTPOptions{Host: "127.0.0.1", Port: p, URI: "/", ReadTimeout: patience})
	require.NoError(t, err)
	require.EqualError(t, Check{HealthCheck: h, Timeout: moment}.run(t.Context()), "no answer within 60ms")

	careless := checkFunc(func(ctx context.Context) error { <-ctx.Done(); return fmt.Errorf("ask: %w", ctx.Err()) })
	require.EqualError(t, Check{HealthCheck: careless, Timeout: moment}.run(t.Context()), "no answer within 60ms")
}

func TestTCP(t *testing.T) {
	p := rawServer(t, func(net.Conn, <-chan struct{}) {})
	for _, host := range []string{"127.0.0.1", "localhost"} {
		require.NoError(t, NewTCP(TCPOptions{Host: host, Port: p}).Check(t.Context()), host)
	}
	err := NewTCP(TCPOptions{Host: "no-such-host.invalid", Port: p}).Check(t.Context())
	require.ErrorContains(t, err, fmt.Sprintf("connect no-such-host.invalid:%d: resolve host: ", p))
	require.NoError(t, NewNoop().Check(t.Context()))
}

func TestNewHTTP(t *testing.T) {
	for _, uri := range []string{"", "health", "http://elsewhere/health", "/a b\n", "/%zz", "*"} {
		_, err := NewHTTP(HTTPOptions{Host: "127.0.0.1", Port: 80, URI: uri})
		require.EqualError(t, err, fmt.Sprintf("make http check: uri %q is not a path", uri))
	}
	for _, uri := range []string{"/", "//a", "/a?b=c"} {
		c, err := NewHTTP(HTTPOptions{Host: "127.0.0.1", Port: 80, URI: uri})
		require.NoError(t, err)
		req, err := c.request()
		require.NoError(t, err)
		require.Equal(t, uri, req.URL.RequestURI())
	}
}

func TestHTTPBudget(t *testing.T) {
	o := HTTPOptions{OpenTimeout: 1, TLSTimeout: 2, ReadTimeout: 4}
	require.EqualValues(t, 5, o.Budget())
	o.TLS = &TLSOptions{}
	require.EqualValues(t, 7, o.Budget())
	o.TLSTimeout = 0
	require.EqualValues(t, 0, o.Budget())
}

type checkFunc func(context.Context) error

func (f checkFunc) Check(ctx context.Context) error { return f(ctx) }
