package registrar

import (
	"context"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"path/filepath"
	"reflect"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
)

// echo answers with the request: its method and body, and with the status that is asked for.
func echo(t *testing.T, l net.Listener) {
	t.Helper()
	s := httptest.NewUnstartedServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		code := http.StatusOK
		_, _ = fmt.Sscan(r.URL.Query().Get("code"), &code)
		body, _ := io.ReadAll(r.Body)
		w.WriteHeader(code)
		fmt.Fprintf(w, "%s %s %d %s\nfine\n", r.Method, r.Host, r.ContentLength, body)
	}))
	s.Listener.Close()
	s.Listener = l
	s.Start()
	t.Cleanup(s.Close)
}

func TestHTTPMethodAndBody(t *testing.T) {
	l := listen(t)
	echo(t, l)
	p := port(t, l.Addr().String())
	host := fmt.Sprintf("127.0.0.1:%d", p)
	require.NoError(t, check(t, HTTPOptions{Port: p, Method: "POST", Body: `{"deep":true}`, Expect: "POST " + host + ` 13 {"deep":true}`}))
	require.NoError(t, check(t, HTTPOptions{Port: p, Method: "PURGE", Expect: "PURGE " + host + " 0 \n"}))
	require.NoError(t, check(t, HTTPOptions{Port: p, Expect: "GET " + host + " 0 \n"}))
	require.NoError(t, check(t, HTTPOptions{Port: p, Method: "HEAD"}), "an answer without a body")
	require.EqualError(t, check(t, HTTPOptions{Port: p, Method: "HEAD", URI: "/?code=503"}), "status 503")

	c, err := NewHTTP(HTTPOptions{Host: "127.0.0.1", Port: p, URI: "/", Method: "PUT", Body: "x", Expect: "1 x"})
	require.NoError(t, err)
	for range 2 {
		require.NoError(t, c.Check(t.Context()), "the body is sent each time")
	}
}

func TestHTTPExpectations(t *testing.T) {
	l := listen(t)
	echo(t, l)
	p := port(t, l.Addr().String())
	status := func(code int, ranges ...StatusRange) error {
		return check(t, HTTPOptions{Port: p, URI: fmt.Sprintf("/?code=%d", code), Status: ranges})
	}
	require.NoError(t, status(200, StatusRange{200, 200}))
	require.NoError(t, status(503, StatusRange{200, 200}, StatusRange{500, 599}))
	require.NoError(t, status(401, StatusRange{401, 403}))
	require.NoError(t, status(403, StatusRange{401, 403}))
	require.EqualError(t, status(201, StatusRange{200, 200}, StatusRange{202, 300}), "status 201")
	require.EqualError(t, status(302, StatusRange{200, 299}), "status 302")

	match := func(regex string) error { return check(t, HTTPOptions{Port: p, ExpectRegex: regex}) }
	require.NoError(t, match("^GET"))
	require.NoError(t, match("(?m)^fi[mn]e$"))
	require.EqualError(t, match("^fine"), `body does not match "^fine"`)
	require.EqualError(t, check(t, HTTPOptions{Port: p, Expect: "GET", ExpectRegex: "ill"}), `body does not match "ill"`)
	require.EqualError(t, check(t, HTTPOptions{Port: p, Expect: "ill", ExpectRegex: "GET"}), `body lacks "ill"`)
}

func TestNewHTTPRefuses(t *testing.T) {
	for want, o := range map[string]HTTPOptions{
		`method "CONNECT" cannot be asked with`:                                                    {Method: "CONNECT"},
		`method "G T" cannot be asked with`:                                                        {Method: "G T"},
		"status 300-200 is no range":                                                               {Status: []StatusRange{{300, 200}}},
		"the answer to HEAD has no body to search":                                                 {Method: "HEAD", ExpectRegex: "x"},
		"read regular expression: error parsing regexp: missing closing ): `(`":                    {ExpectRegex: "("},
		"read regular expression: error parsing regexp: invalid or unsupported Perl syntax: `(?=`": {ExpectRegex: "(?=x)"},
	} {
		o.URI = "/"
		_, err := NewHTTP(o)
		require.EqualError(t, err, "make http check: "+want)
	}
}

func TestUnixSockets(t *testing.T) {
	path := filepath.Join(t.TempDir(), "s")
	l, err := net.Listen("unix", path)
	require.NoError(t, err)
	echo(t, l)
	require.NoError(t, check(t, HTTPOptions{Socket: path, Expect: "GET localhost 0"}))
	require.NoError(t, NewTCP(TCPOptions{Socket: path, Send: "GET / HTTP/1.0\r\n\r\n", Expect: "fine"}).Check(t.Context()))
	require.EqualError(t, check(t, HTTPOptions{Socket: path + "x"}), "connect "+path+"x: no such file or directory")
	require.NoError(t, l.Close())
	require.Error(t, NewTCP(TCPOptions{Socket: path}).Check(t.Context()))
}

// TestHTTPSlowServers: who sends on and on, a little at a time, gets no more time than who is silent.
func TestHTTPSlowServers(t *testing.T) {
	// drip sends a beginning, and then a piece whenever the last one is gone.
	drip := func(beginning, piece string) uint16 {
		return rawServer(t, func(c net.Conn, end <-chan struct{}) {
			answer(beginning)(c, end)
			tick := time.NewTicker(time.Millisecond)
			defer tick.Stop()
			for {
				select {
				case <-tick.C:
				case <-end:
					return
				}
				if _, err := io.WriteString(c, piece); err != nil {
					return
				}
			}
		})
	}
	o := HTTPOptions{ReadTimeout: 5 * moment}
	for want, p := range map[string]uint16{
		"no answer within 300ms":            drip("HTTP/1.1 200 OK\r\n", "A: b\r\n"),
		"read body: no answer within 300ms": drip("HTTP/1.1 200 OK\r\n\r\n", "x"),
	} {
		o.Port = p
		require.EqualError(t, check(t, o), want)
	}
	o.Port = drip("", "HTTP/1.1 100 Continue\r\n\r\n")
	require.EqualError(t, check(t, o), "no answer within 300ms")

	flood := strings.Repeat("x", 1<<20)
	o = HTTPOptions{Port: drip("HTTP/1.1 200 OK\r\n\r\n", flood), ExpectRegex: "^x+$"}
	require.NoError(t, check(t, o), "the first MiB is searched, and the rest is not waited for")
	o.Port = drip("HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n", "1;"+strings.Repeat("x", 4000)+"\r\ny\r\n")
	require.Error(t, check(t, o), "chunks that are all header end as well")
}

func TestTCPTalk(t *testing.T) {
	line := func(c net.Conn) string {
		b := make([]byte, 64)
		n, _ := c.Read(b)
		return string(b[:n])
	}
	for _, c := range []struct {
		name  string
		serve func(net.Conn, <-chan struct{})
		o     TCPOptions
		want  string
	}{
		{"a question", func(c net.Conn, end <-chan struct{}) {
			if line(c) == "PING\r\n" {
				fmt.Fprint(c, "+PONG\r\n")
			}
			<-end
		}, TCPOptions{Send: "PING\r\n", Expect: "PONG"}, ""},
		{"a banner", func(c net.Conn, end <-chan struct{}) { fmt.Fprint(c, "220 smtp ready\r\n"); <-end }, TCPOptions{Expect: "220 "}, ""},
		{"another banner", func(c net.Conn, _ <-chan struct{}) { fmt.Fprint(c, "554 go\x1b away\r\n") }, TCPOptions{Expect: "220 "}, `answer "554 go\x1b away\r\n" lacks "220 ": connection closed`},
		{"another banner, and stays", func(c net.Conn, end <-chan struct{}) { fmt.Fprint(c, "554 no\r\n"); <-end }, TCPOptions{Expect: "220 "}, `answer "554 no\r\n" lacks "220 ": no answer within 60ms`},
		{"in pieces", func(c net.Conn, end <-chan struct{}) {
			for _, b := range "we are ready" {
				fmt.Fprint(c, string(b))
			}
			<-end
		}, TCPOptions{Expect: "are ready"}, ""},
		{"silence", func(_ net.Conn, end <-chan struct{}) { <-end }, TCPOptions{Expect: "220"}, "no answer within 60ms"},
		{"closes", func(net.Conn, <-chan struct{}) {}, TCPOptions{Expect: "220"}, "read answer: connection closed"},
		{"no end", func(c net.Conn, end <-chan struct{}) {
			for _, err := fmt.Fprint(c, "x"); err == nil; _, err = fmt.Fprint(c, strings.Repeat("x", 9999)) {
			}
		}, TCPOptions{Expect: "220"}, `the first 65536 bytes of the answer lack "220"`},
		{"nobody reads", func(_ net.Conn, end <-chan struct{}) { <-end }, TCPOptions{Send: strings.Repeat("x", 32<<20)}, "send request: no answer within 60ms"},
	} {
		t.Run(c.name, func(t *testing.T) {
			c.o.Host, c.o.Port = "127.0.0.1", rawServer(t, c.serve)
			limit := patience
			if strings.Contains(c.want, "60ms") {
				limit = moment
			}
			err := Check{HealthCheck: NewTCP(c.o), Timeout: limit}.run(t.Context())
			if c.want == "" {
				require.NoError(t, err)
				return
			}
			require.EqualError(t, err, c.want)
		})
	}
}

// TestAwaitFindsWhatIsSplit: wherever the pieces end.
func TestAwaitFindsWhatIsSplit(t *testing.T) {
	text := strings.Repeat("-", 700) + "needle" + strings.Repeat("-", 10)
	for size := 1; size < len(text); size += 7 {
		require.NoError(t, await(t.Context(), &pieces{text, size}, "needle"), "%d", size)
	}
	require.Error(t, await(context.Background(), &pieces{text, 5}, "needles"))
	require.True(t, reflect.DeepEqual(NewTCP(TCPOptions{Send: "a"}), NewTCP(TCPOptions{Send: "a"})))
}

// pieces is a text that is read a piece at a time.
type pieces struct {
	text string
	size int
}

func (p *pieces) Read(b []byte) (int, error) {
	if p.text == "" {
		return 0, io.EOF
	}
	n := copy(b, p.text[:min(p.size, len(p.text))])
	p.text = p.text[n:]
	return n, nil
}
