package registrar

import (
	"cmp"
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"net"
	"strings"
	"sync"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/credentials"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/grpc/health/grpc_health_v1"
	"google.golang.org/grpc/status"
)

// GRPCOptions describe a check with the standard health protocol, grpc.health.v1.
type GRPCOptions struct {
	Host    string // an IP (IPv6 with or without brackets) or a name, resolved anew for each check
	Port    uint16
	Socket  string      // path of a Unix socket to connect to instead of Host and Port, unless empty
	TLS     *TLSOptions // nil: plaintext
	Service string      // whose health is asked for; empty: the server's as a whole
}

// GRPC passes when the server says that it is SERVING.
//
// Each check has a connection of its own. One that is kept would go on passing after the server has stopped to take new
// ones, would have to be closed by somebody, and would be made again in the background at its own pace.
type GRPC struct{ o GRPCOptions }

// NewGRPC refuses options that no connection can be made with.
func NewGRPC(o GRPCOptions) (GRPC, error) {
	if err := o.TLS.valid(); err != nil {
		return GRPC{}, fmt.Errorf("make grpc check: %w", err)
	}
	return GRPC{o}, nil
}

// Check asks once.
func (c GRPC) Check(ctx context.Context) error {
	d := &grpcDial{ctx: ctx, to: place{c.o.Host, c.o.Port, c.o.Socket}, tls: c.o.TLS}
	// passthrough: the library looks nothing up. It takes no proxy, no service's configuration from DNS, and asks once.
	conn, err := grpc.NewClient("passthrough:///"+d.to.name(),
		grpc.WithContextDialer(d.dial), grpc.WithTransportCredentials(d.credentials()), grpc.WithAuthority(d.authority()),
		grpc.WithNoProxy(), grpc.WithDisableServiceConfig(), grpc.WithDisableRetry(), grpc.WithDisableHealthCheck(), grpc.WithIdleTimeout(0),
		grpc.WithUserAgent("myelin-check"), grpc.WithMaxHeaderListSize(maxHeader),
		grpc.WithReadBufferSize(4<<10), grpc.WithWriteBufferSize(4<<10))
	if err != nil {
		return fmt.Errorf("make grpc client: %w", err)
	}
	defer conn.Close()
	answer, err := grpc_health_v1.NewHealthClient(conn).Check(ctx,
		&grpc_health_v1.HealthCheckRequest{Service: c.o.Service}, grpc.MaxCallRecvMsgSize(maxAnswer))
	if err != nil {
		return c.failure(ctx, d, err)
	}
	return c.verdict(answer.GetStatus())
}

func (c GRPC) verdict(s grpc_health_v1.HealthCheckResponse_ServingStatus) error {
	switch s {
	case grpc_health_v1.HealthCheckResponse_SERVING:
		return nil
	case grpc_health_v1.HealthCheckResponse_NOT_SERVING:
		return fmt.Errorf("%s is not serving", c.whose())
	case grpc_health_v1.HealthCheckResponse_SERVICE_UNKNOWN:
		return fmt.Errorf("the server does not know %s", c.whose())
	}
	return fmt.Errorf("%s says %s", c.whose(), s)
}

func (c GRPC) whose() string {
	if c.o.Service == "" {
		return "the server"
	}
	return fmt.Sprintf("service %q", c.o.Service)
}

// failure words the error of a call. The library buries in its own words why there was no connection; the dial knows.
func (c GRPC) failure(ctx context.Context, d *grpcDial, err error) error {
	doing, dialled := d.failed()
	s := status.Convert(err)
	switch {
	case dialled != nil:
		return dialled
	case ctx.Err() != nil && doing != "":
		return fmt.Errorf("%s: %w", doing, cause(ctx, err))
	case ctx.Err() != nil:
		return cause(ctx, err)
	case s.Code() == codes.Unimplemented:
		return errors.New("the server does not speak the health protocol (grpc.health.v1)")
	case s.Code() == codes.NotFound && c.o.Service != "":
		return fmt.Errorf("the server does not know %s", c.whose())
	case s.Code() == codes.Unavailable:
		return fmt.Errorf("read answer: %s", unavailable(s.Message()))
	}
	return fmt.Errorf("the server answered %s: %s", s.Code(), shorten(strings.Map(printable, s.Message())))
}

// unavailable words why a connection that was open was of no use. The library has only text for that.
func unavailable(message string) string {
	switch {
	case strings.Contains(message, "looked like an HTTP/1.1 header"):
		return "the server speaks HTTP/1.1, not gRPC"
	case strings.Contains(message, "EOF"), strings.Contains(message, "connection reset"), strings.Contains(message, "broken pipe"):
		return errClosed.Error()
	}
	if _, why, ok := strings.Cut(message, "error reading server preface: "); ok {
		message = strings.TrimSuffix(why, `"`)
	}
	return shorten(strings.Map(printable, message))
}

// grpcDial opens the one connection of a check, and keeps why it could not.
type grpcDial struct {
	ctx context.Context // the check's: the library's ends later
	to  place
	tls *TLSOptions

	mu      sync.Mutex
	dialled bool
	doing   string // the step under way
	err     error
}

// failed tells which step is under way, if one is, and which error there was.
func (d *grpcDial) failed() (doing string, err error) {
	d.mu.Lock()
	defer d.mu.Unlock()
	return d.doing, d.err
}

// step makes a step, and keeps the first error of all.
func (d *grpcDial) step(doing string, f func() error) error {
	d.set(doing, nil)
	err := f()
	d.set("", err)
	return err
}

func (d *grpcDial) set(doing string, err error) {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.doing, d.err = doing, cmp.Or(d.err, err)
}

// dial is called by the library, again when the connection breaks at once. One check has one connection.
func (d *grpcDial) dial(context.Context, string) (conn net.Conn, err error) {
	d.mu.Lock()
	again := d.dialled
	d.dialled = true
	d.mu.Unlock()
	err = d.step(fmt.Sprintf("connect %s", d.to), func() error {
		if again {
			return fmt.Errorf("read answer: %w", errClosed)
		}
		conn, err = d.to.dial(d.ctx, 0)
		return err
	})
	return conn, err
}

// authority is what the request calls the server.
func (d *grpcDial) authority() string {
	if d.tls != nil && d.tls.ServerName != "" {
		return d.tls.ServerName
	}
	return d.to.name()
}

func (d *grpcDial) credentials() credentials.TransportCredentials {
	if d.tls == nil {
		return insecure.NewCredentials()
	}
	return &grpcTLS{d}
}

// grpcTLS makes TLS as our other checks do, and keeps its errors.
type grpcTLS struct{ d *grpcDial }

// errNoHTTP2 is the complaint about a server that would not agree on HTTP/2.
var errNoHTTP2 = errors.New("the server does not offer HTTP/2 over TLS")

func (t *grpcTLS) ClientHandshake(_ context.Context, _ string, conn net.Conn) (net.Conn, credentials.AuthInfo, error) {
	var c *tls.Conn
	err := t.d.step(fmt.Sprintf("open TLS with %s", t.d.to), func() (err error) {
		c, err = t.d.tls.open(t.d.ctx, conn, t.d.to, "h2")
		if err == nil && c.ConnectionState().NegotiatedProtocol != "h2" {
			c.Close()
			err = errNoHTTP2
		}
		return err
	})
	if err != nil {
		return nil, nil, err
	}
	return c, tlsInfo(c.ConnectionState()), nil
}

func tlsInfo(state tls.ConnectionState) credentials.TLSInfo {
	return credentials.TLSInfo{State: state, CommonAuthInfo: credentials.CommonAuthInfo{SecurityLevel: credentials.PrivacyAndIntegrity}}
}

func (t *grpcTLS) ServerHandshake(net.Conn) (net.Conn, credentials.AuthInfo, error) {
	return nil, nil, errors.New("a check is no server")
}

func (t *grpcTLS) Info() credentials.ProtocolInfo {
	return credentials.ProtocolInfo{SecurityProtocol: "tls"}
}

func (t *grpcTLS) Clone() credentials.TransportCredentials { return &grpcTLS{t.d} }

func (t *grpcTLS) OverrideServerName(string) error { return nil }
