package cli

import (
	"context"
	"os"
	"path/filepath"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/myelin-sd/myelin/config"
	"github.com/myelin-sd/myelin/discovery/zookeeper"
	"github.com/myelin-sd/myelin/registrar"
)

// checksOf are the checks of a file's only service.
func checksOf(t *testing.T, board *registrar.Reports, text string) []registrar.Check {
	t.Helper()
	file := filepath.Join(t.TempDir(), "registrar.toml")
	require.NoError(t, os.WriteFile(file, []byte(`
instance_id = "web-1"
zookeeper.hosts = ["zk1"]
[services.user-api]
host = "10.0.0.5"
port = 8080
weight = 100
zk_path = "/services/user-api"
`+text), 0o644))
	c, problems, err := config.LoadRegistrar(file, config.Options{Strict: true})
	require.NoError(t, err)
	require.Empty(t, problems)
	services, err := registrations(c, board, func(config.ZooKeeper) *zookeeper.Session { return nil })
	require.NoError(t, err)
	require.Len(t, services, 1)
	return services[0].Checks
}

func TestChecks(t *testing.T) {
	board := registrar.NewReports()
	got := checksOf(t, board, `
checks = [
    { type = "https", uri = "/health", method = "POST", body = "{}", status = [200, "3xx"], expect = "a", expect_regex = "b", headers = { X = "1" }, server_name = "api", verify = true,
      open_timeout = 1, ssl_timeout = 2, read_timeout = 4 },
    { type = "tcp", socket = "/run/x", send = "a\n", expect = "b", timeout = 3, rise = 2, fall = 4, interval = 5 },
    { type = "grpc", service = "users", ssl = true, host = "::1", port = 9 },
    { type = "exec", name = "disk", command = ["/bin/disk", "-w"], env = { A = "1", MYELIN_PORT = "81" }, warn_exit = 2, warn_weight = 30 },
    { type = "exec", name = "pipe", command = "a | b", shell = true },
    { type = "ttl", ttl = "30s" },
    { type = "noop" },
]`)
	http, err := registrar.NewHTTP(registrar.HTTPOptions{
		Host: "10.0.0.5", Port: 8080, TLS: &registrar.TLSOptions{Verify: true, ServerName: "api"}, Method: "POST", URI: "/health", Headers: map[string]string{"X": "1"}, Body: "{}",
		Status: []registrar.StatusRange{{From: 200, To: 200}, {From: 300, To: 399}}, Expect: "a", ExpectRegex: "b",
		OpenTimeout: time.Second, TLSTimeout: 2 * time.Second, ReadTimeout: 4 * time.Second,
	})
	require.NoError(t, err)
	grpc, err := registrar.NewGRPC(registrar.GRPCOptions{Host: "::1", Port: 9, Service: "users", TLS: &registrar.TLSOptions{}})
	require.NoError(t, err)
	disk, err := registrar.NewExec(registrar.ExecOptions{
		Command: []string{"/bin/disk", "-w"}, Env: []string{"A=1", "MYELIN_CHECK=disk", "MYELIN_HOST=10.0.0.5", "MYELIN_PORT=81", "MYELIN_SERVICE=user-api"},
		WarnExit: 2, WarnWeight: 30,
	})
	require.NoError(t, err)
	pipe, err := registrar.NewExec(registrar.ExecOptions{
		Command: []string{"/bin/sh", "-c", "a | b"}, Env: []string{"MYELIN_CHECK=pipe", "MYELIN_HOST=10.0.0.5", "MYELIN_PORT=8080", "MYELIN_SERVICE=user-api"},
	})
	require.NoError(t, err)
	ttl, err := registrar.NewTTL(registrar.TTLOptions{Reports: board, Service: "user-api", Check: "ttl", TTL: 30 * time.Second})
	require.NoError(t, err)
	want := []registrar.Check{
		{Name: "http-10.0.0.5:8080/health", HealthCheck: http, Timeout: 7 * time.Second, Rise: 1, Fall: 1},
		{Name: "user-api tcp-/run/x", HealthCheck: registrar.NewTCP(registrar.TCPOptions{Host: "10.0.0.5", Port: 8080, Socket: "/run/x", Send: "a\n", Expect: "b"}),
			Timeout: 3 * time.Second, Rise: 2, Fall: 4, Interval: 5 * time.Second},
		{Name: "grpc-[::1]:9/users", HealthCheck: grpc, Timeout: 100 * time.Millisecond, Rise: 1, Fall: 1},
		{Name: "disk", HealthCheck: disk, Timeout: 100 * time.Millisecond, Rise: 1, Fall: 1},
		{Name: "pipe", HealthCheck: pipe, Timeout: 100 * time.Millisecond, Rise: 1, Fall: 1},
		{Name: "ttl", HealthCheck: ttl, Timeout: 100 * time.Millisecond, Rise: 1, Fall: 1},
		{Name: "user-api noop-10.0.0.5:8080", HealthCheck: registrar.NewNoop(), Timeout: 100 * time.Millisecond, Rise: 1, Fall: 1},
	}
	require.Equal(t, want, got)
}

// TestReportsStay: reading the same file again makes the same check, which knows what was reported.
func TestReportsStay(t *testing.T) {
	board := registrar.NewReports()
	const text = `checks = { type = "ttl", ttl = "1h", name = "self" }`
	before := checksOf(t, board, text)
	require.NoError(t, board.Report("user-api", "self", nil))
	after := checksOf(t, board, text)
	require.Equal(t, before, after)
	require.NoError(t, after[0].HealthCheck.Check(context.Background()))
}

// TestGoodFilesAreUsable: what config lets through is what the registrar can be made of.
func TestGoodFilesAreUsable(t *testing.T) {
	paths, err := filepath.Glob("../testdata/config/registrar-*.good.*[ln]")
	require.NoError(t, err)
	used := 0
	for _, path := range paths {
		c, _, err := config.LoadRegistrar(path, config.Options{LookupEnv: func(string) (string, bool) { return "x", true }})
		if err != nil {
			continue // it wants its own environment, or modes that a checkout does not keep
		}
		used++
		services, err := registrations(c, registrar.NewReports(), func(config.ZooKeeper) *zookeeper.Session { return new(zookeeper.Session) })
		require.NoError(t, err, path)
		require.NoError(t, registrar.Validate(services), path)
	}
	require.GreaterOrEqual(t, used, 5)
}
