package cli

import (
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/myelin-sd/myelin/registrar"
	"github.com/myelin-sd/myelin/registrar/control"
)

func TestParseReport(t *testing.T) {
	for _, tc := range []struct {
		args []string
		want report
	}{
		{[]string{"web", "pass"}, report{"web", "", control.ReportRequest{Status: "pass"}}},
		{[]string{"web", "own", "fail"}, report{"web", "own", control.ReportRequest{Status: "fail"}}},
		{[]string{"web", "warn", "slow"}, report{"web", "", control.ReportRequest{Status: "warn", Note: "slow"}}},
		{[]string{"web", "own", "warn", "slow", "today"}, report{"web", "own", control.ReportRequest{Status: "warn", Note: "slow today"}}},
		{[]string{"web", "pass", "fail"}, report{"web", "pass", control.ReportRequest{Status: "fail"}}}, // a check with a bad name
		{[]string{"pass", "pass"}, report{"pass", "", control.ReportRequest{Status: "pass"}}},
	} {
		got, err := parseReport(tc.args)
		require.NoError(t, err, tc.args)
		require.Equal(t, tc.want, got, tc.args)
	}
	for _, args := range [][]string{nil, {"web"}, {"pass"}, {"web", "own"}, {"web", "own", "good"}, {"web", "a", "b", "pass"}} {
		_, err := parseReport(args)
		require.Error(t, err, args)
	}
}

// TestStaying: a service has left when the directory is known not to have it, and its drain is over.
func TestStaying(t *testing.T) {
	now := time.Now()
	for _, tc := range []struct {
		want   string
		status registrar.ServiceStatus
	}{
		{"", registrar.ServiceStatus{Service: "web", Settled: true}},
		{"", registrar.ServiceStatus{Service: "other", Registered: true}},
		{"it is being withdrawn", registrar.ServiceStatus{Service: "web", Registered: true, Settled: true}},
		{"it is being withdrawn", registrar.ServiceStatus{Service: "web"}},
		{"it may be registered: no answer", registrar.ServiceStatus{Service: "web", Problem: "no answer"}},
		{"it drains", registrar.ServiceStatus{Service: "web", Settled: true, Draining: now.Add(time.Second)}},
		{"", registrar.ServiceStatus{Service: "web", Settled: true, Draining: now}},
	} {
		require.Equal(t, tc.want, staying([]registrar.ServiceStatus{tc.status}, "web", now), tc.status)
	}
}

// TestChildEnvironment: the service learns where the registrar is, and nothing of the registrar's supervisor.
func TestChildEnvironment(t *testing.T) {
	ours := []string{"PATH=/bin", "NOTIFY_SOCKET=/run/notify", "WATCHDOG_PID=7", "WATCHDOG_USEC=1", "MYELIN_CONTROL_SOCKET=/of/another", "NOTIFY_SOCKETS=x"}
	require.Equal(t, []string{"PATH=/bin", "NOTIFY_SOCKETS=x", "MYELIN_CONTROL_SOCKET=/run/r.sock"}, childEnvironment(ours, "/run/r.sock"))
	require.Equal(t, []string{"PATH=/bin", "NOTIFY_SOCKETS=x"}, childEnvironment(ours, ""))
	require.Len(t, ours, 6, "the process's own stays")
	require.Equal(t, "NOTIFY_SOCKET=/run/notify", ours[1])
}

// TestControlPath: which registrar is meant.
func TestControlPath(t *testing.T) {
	a, _ := command(t, "registrar.toml", `
instance_id = "i-1"
state_dir = "/run/some"
[services.one]
host = "10.0.0.1"
port = 3001
zk_path = "/services/one"
zk_hosts = "zk1"
check_mocked = true
`)
	path, err := a.controlPath("")
	require.NoError(t, err)
	require.Equal(t, "/run/some/registrar-i-1.sock", path)
	path, err = a.controlPath("/run/other.sock")
	require.NoError(t, err)
	require.Equal(t, "/run/other.sock", path)

	a.configFile = ""
	a.env = func(name string) (string, bool) { return "/run/env.sock", name == "MYELIN_CONTROL_SOCKET" }
	path, err = a.controlPath("")
	require.NoError(t, err)
	require.Equal(t, "/run/env.sock", path)
}
