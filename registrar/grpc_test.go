package registrar

import (
	"context"
	"crypto/tls"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"path/filepath"
	"reflect"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"testing"

	"github.com/stretchr/testify/require"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/credentials"
	"google.golang.org/grpc/health"
	"google.golang.org/grpc/health/grpc_health_v1"
	"google.golang.org/grpc/metadata"
	"google.golang.org/grpc/peer"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/encoding/protowire"
)

// grpcServer serves on l until the test ends.
func grpcServer(t *testing.T, l net.Listener, s *grpc.Server) uint16 {
	t.Helper()
	var running sync.WaitGroup
	running.Go(func() { _ = s.Serve(l) })
	t.Cleanup(func() {
		s.Stop()
		running.Wait()
	})
	if l.Addr().Network() == "unix" {
		return 0
	}
	return port(t, l.Addr().String())
}

func listen(t *testing.T) net.Listener {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	require.NoError(t, err)
	return l
}

func healthServer(states map[string]grpc_health_v1.HealthCheckResponse_ServingStatus, o ...grpc.ServerOption) *grpc.Server {
	h := health.NewServer()
	for name, s := range states {
		h.SetServingStatus(name, s)
	}
	s := grpc.NewServer(o...)
	grpc_health_v1.RegisterHealthServer(s, h)
	return s
}

func checkGRPC(t *testing.T, o GRPCOptions) error {
	t.Helper()
	if o.Host == "" {
		o.Host = "127.0.0.1"
	}
	c, err := NewGRPC(o)
	require.NoError(t, err)
	return Check{HealthCheck: c, Timeout: patience}.run(t.Context())
}

func TestGRPC(t *testing.T) {
	p := grpcServer(t, listen(t), healthServer(map[string]grpc_health_v1.HealthCheckResponse_ServingStatus{
		"users":   grpc_health_v1.HealthCheckResponse_SERVING,
		"queue":   grpc_health_v1.HealthCheckResponse_NOT_SERVING,
		"odd":     grpc_health_v1.HealthCheckResponse_UNKNOWN,
		"unknown": grpc_health_v1.HealthCheckResponse_SERVICE_UNKNOWN,
		"future":  7,
	}))
	t.Setenv("HTTPS_PROXY", "http://127.0.0.1:1")
	t.Setenv("https_proxy", "http://127.0.0.1:1")
	for service, want := range map[string]string{
		"": "", "users": "",
		"queue":   `service "queue" is not serving`,
		"odd":     `service "odd" says UNKNOWN`,
		"unknown": `the server does not know service "unknown"`,
		"else":    `the server does not know service "else"`,
		"future":  `service "future" says 7`,
	} {
		err := checkGRPC(t, GRPCOptions{Host: "localhost", Port: p, Service: service})
		if want == "" {
			require.NoError(t, err, service)
		} else {
			require.EqualError(t, err, want)
		}
	}
	none := grpcServer(t, listen(t), grpc.NewServer())
	require.EqualError(t, checkGRPC(t, GRPCOptions{Port: none}), "the server does not speak the health protocol (grpc.health.v1)")
}

// callers remembers who asked, and answers with an error.
type callers struct {
	grpc_health_v1.UnimplementedHealthServer
	mu    sync.Mutex
	peers []string
	md    []metadata.MD
	err   error
	more  []byte // fields that nobody knows
}

func (a *callers) Check(ctx context.Context, _ *grpc_health_v1.HealthCheckRequest) (*grpc_health_v1.HealthCheckResponse, error) {
	a.mu.Lock()
	defer a.mu.Unlock()
	p, _ := peer.FromContext(ctx)
	md, _ := metadata.FromIncomingContext(ctx)
	a.peers, a.md = append(a.peers, p.Addr.String()), append(a.md, md)
	answer := &grpc_health_v1.HealthCheckResponse{Status: grpc_health_v1.HealthCheckResponse_SERVING}
	answer.ProtoReflect().SetUnknown(a.more)
	return answer, a.err
}

func TestGRPCRequest(t *testing.T) {
	a := &callers{}
	s := grpc.NewServer()
	grpc_health_v1.RegisterHealthServer(s, a)
	p := grpcServer(t, listen(t), s)
	require.NoError(t, checkGRPC(t, GRPCOptions{Port: p}))
	a.err = status.Error(codes.Unavailable, "warming\nup")
	require.EqualError(t, checkGRPC(t, GRPCOptions{Port: p}), "read answer: warming?up")
	a.err = status.Error(codes.PermissionDenied, "who are you?")
	require.EqualError(t, checkGRPC(t, GRPCOptions{Port: p}), "the server answered PermissionDenied: who are you?")
	require.Len(t, a.peers, 3, "asked once each")
	require.NotEqual(t, a.peers[0], a.peers[1], "each check has its own connection")
	require.Equal(t, []string{fmt.Sprintf("127.0.0.1:%d", p)}, a.md[0][":authority"])
	require.Contains(t, a.md[0]["user-agent"][0], "myelin-check")
}

func TestGRPCPlaces(t *testing.T) {
	path := filepath.Join(t.TempDir(), "s")
	l, err := net.Listen("unix", path)
	require.NoError(t, err)
	grpcServer(t, l, healthServer(nil))
	require.NoError(t, checkGRPC(t, GRPCOptions{Socket: path}))
	require.EqualError(t, checkGRPC(t, GRPCOptions{Socket: path + "x"}), "connect "+path+"x: no such file or directory")

	closed := closedPort(t)
	require.EqualError(t, checkGRPC(t, GRPCOptions{Port: closed}), fmt.Sprintf("connect 127.0.0.1:%d: refused", closed))
	require.ErrorContains(t, checkGRPC(t, GRPCOptions{Host: "no-such-host.invalid", Port: 1}), "connect no-such-host.invalid:1: resolve host: ")

	six, err := net.Listen("tcp", "[::1]:0")
	if err != nil {
		t.Skipf("NOT TESTED over IPv6: %v", err)
	}
	p := grpcServer(t, six, healthServer(nil))
	for _, host := range []string{"::1", "[::1]"} {
		require.NoError(t, checkGRPC(t, GRPCOptions{Host: host, Port: p}))
	}
}

func TestGRPCTLS(t *testing.T) {
	ca := newAuthority(t)
	server := ca.sign(t, "api.example.com")
	p := grpcServer(t, listen(t), healthServer(nil, grpc.Creds(credentials.NewTLS(&tls.Config{
		Certificates: []tls.Certificate{server}, ClientCAs: ca.pool, ClientAuth: tls.VerifyClientCertIfGiven,
	}))))
	require.NoError(t, checkGRPC(t, GRPCOptions{Port: p, TLS: &TLSOptions{}}))
	require.NoError(t, checkGRPC(t, GRPCOptions{Port: p, TLS: &TLSOptions{Verify: true, CA: ca.pem, ServerName: "api.example.com"}}))
	require.ErrorContains(t, checkGRPC(t, GRPCOptions{Port: p, TLS: &TLSOptions{Verify: true, CA: ca.pem}}),
		fmt.Sprintf("open TLS with 127.0.0.1:%d: tls: failed to verify certificate: x509: cannot validate certificate for 127.0.0.1", p))
	require.EqualError(t, checkGRPC(t, GRPCOptions{Port: p}), "read answer: connection closed", "without TLS")

	plain := grpcServer(t, listen(t), healthServer(nil))
	require.ErrorContains(t, checkGRPC(t, GRPCOptions{Port: plain, TLS: &TLSOptions{}}), fmt.Sprintf("open TLS with 127.0.0.1:%d: tls: first record", plain))

	old := rawServer(t, func(c net.Conn, end <-chan struct{}) {
		_ = tls.Server(c, &tls.Config{Certificates: []tls.Certificate{server}}).Handshake()
		<-end
	})
	require.EqualError(t, checkGRPC(t, GRPCOptions{Port: old, TLS: &TLSOptions{}}), "the server does not offer HTTP/2 over TLS")

	_, err := NewGRPC(GRPCOptions{TLS: &TLSOptions{CA: []byte("none")}})
	require.EqualError(t, err, "make grpc check: the CA file holds no certificate in PEM")
}

func TestGRPCFaults(t *testing.T) {
	web := httptest.NewServer(http.NotFoundHandler())
	defer web.Close()
	settings := "\x00\x00\x00\x04\x00\x00\x00\x00\x00"
	preface := func(c net.Conn) { _, _ = io.ReadFull(c, make([]byte, len("PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"))) }
	for _, c := range []struct {
		name  string
		serve func(net.Conn, <-chan struct{})
		o     GRPCOptions
		want  string
	}{
		{"never answers", func(_ net.Conn, end <-chan struct{}) { <-end }, GRPCOptions{}, "no answer within 60ms"},
		{"stops after the settings", func(c net.Conn, end <-chan struct{}) {
			preface(c)
			fmt.Fprint(c, settings)
			<-end
		}, GRPCOptions{}, "no answer within 60ms"},
		{"stops in TLS", func(_ net.Conn, end <-chan struct{}) { <-end }, GRPCOptions{TLS: &TLSOptions{}}, "open TLS with 127.0.0.1:PORT: no answer within 60ms"},
		{"closes at once", func(c net.Conn, _ <-chan struct{}) {}, GRPCOptions{}, "read answer: connection closed"},
		{"closes after the settings", func(c net.Conn, _ <-chan struct{}) {
			preface(c)
			fmt.Fprint(c, settings)
		}, GRPCOptions{}, "read answer: connection closed"},
		{"a banner", func(c net.Conn, end <-chan struct{}) {
			fmt.Fprint(c, "220 smtp ready, what would you like to say?\r\n")
			<-end
		}, GRPCOptions{}, "read answer: http2: frame too large"},
		{"garbage after the settings", func(c net.Conn, end <-chan struct{}) {
			preface(c)
			fmt.Fprint(c, settings+strings.Repeat("\xff", 1<<16))
			<-end
		}, GRPCOptions{}, "read answer: *"},
		{"drips", func(c net.Conn, end <-chan struct{}) {
			preface(c)
			fmt.Fprint(c, settings)
			go io.Copy(io.Discard, c) //nolint:errcheck // until it is closed
			ping := "\x00\x00\x08\x06\x01\x00\x00\x00\x0012345678"
			for _, err := io.WriteString(c, ping); err == nil; _, err = io.WriteString(c, ping) {
				select {
				case <-end:
					return
				default:
				}
			}
		}, GRPCOptions{}, "no answer within 60ms"},
	} {
		t.Run(c.name, func(t *testing.T) {
			c.o.Host, c.o.Port = "127.0.0.1", rawServer(t, c.serve)
			check, err := NewGRPC(c.o)
			require.NoError(t, err)
			limit := patience
			if strings.Contains(c.want, "60ms") {
				limit = moment
			}
			err = Check{HealthCheck: check, Timeout: limit}.run(t.Context())
			want := strings.ReplaceAll(c.want, "PORT", strconv.Itoa(int(c.o.Port)))
			if beginning, ok := strings.CutSuffix(want, "*"); ok {
				require.ErrorContains(t, err, beginning)
				t.Log(err)
				return
			}
			require.EqualError(t, err, want)
		})
	}
	require.EqualError(t, checkGRPC(t, GRPCOptions{Port: port(t, web.Listener.Addr().String())}), "read answer: the server speaks HTTP/1.1, not gRPC")
}

// TestGRPCAnswerTooLong: an answer is bounded, as it is with our other checks.
func TestGRPCAnswerTooLong(t *testing.T) {
	a := &callers{err: status.Error(codes.Internal, strings.Repeat("x", 2*maxHeader))}
	s := grpc.NewServer()
	grpc_health_v1.RegisterHealthServer(s, a)
	p := grpcServer(t, listen(t), s)
	err := checkGRPC(t, GRPCOptions{Port: p})
	require.ErrorContains(t, err, "the server answered Internal: ")
	require.NotContains(t, err.Error(), "xx", "the header was not read")

	a.err, a.more = nil, protowire.AppendBytes(protowire.AppendTag(nil, 100, protowire.BytesType), make([]byte, maxAnswer))
	require.ErrorContains(t, checkGRPC(t, GRPCOptions{Port: p}), "the server answered ResourceExhausted: ")
	a.more = a.more[:0]
	require.NoError(t, checkGRPC(t, GRPCOptions{Port: p}))
}

// TestGRPCOneConnection: a server that hangs up on the call is not tried again.
func TestGRPCOneConnection(t *testing.T) {
	var calls atomic.Int32
	p := rawServer(t, func(c net.Conn, _ <-chan struct{}) {
		calls.Add(1)
		_, _ = io.ReadFull(c, make([]byte, len("PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n")))
		fmt.Fprint(c, "\x00\x00\x00\x04\x00\x00\x00\x00\x00"+ // settings
			"\x00\x00\x08\x07\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00") // goaway: no call was taken
	})
	require.ErrorContains(t, checkGRPC(t, GRPCOptions{Port: p}), "read answer: ")
	require.EqualValues(t, 1, calls.Load())
}

func TestGRPCCompares(t *testing.T) {
	make := func(service string) GRPC {
		c, err := NewGRPC(GRPCOptions{Host: "h", Port: 1, Service: service, TLS: &TLSOptions{Verify: true}})
		require.NoError(t, err)
		return c
	}
	require.True(t, reflect.DeepEqual(make("a"), make("a")))
	require.False(t, reflect.DeepEqual(make("a"), make("b")))
}
