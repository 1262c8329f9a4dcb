package cli

import (
	"bytes"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"
)

// TestStatusOfTroubles: what an operator has to mend is in the table's answer, by HAProxy and by service.
func TestStatusOfTroubles(t *testing.T) {
	agent := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
		w.Write([]byte(`{"ready": false,
			"haproxy": [
				{"socket": "/run/one.sock", "connected": true, "version": "2.6.12", "pid": 7, "backends": {"users": {"ready": 3}}, "absent_backends": ["orders"]},
				{"socket": "/run/two.sock", "connected": true, "version": "2.6.12", "pid": 8, "backends": {"users": {"ready": 1}}},
				{"socket": "/run/three.sock", "connected": false, "error": "connection refused", "backends": {"users": {"ready": 9}}}],
			"services": [{"service": "user-api", "backend": "users", "listed": 3, "active": 3, "known": true, "unresolved": [
				{"name": "a.example.com", "since": "2026-01-02T03:04:05Z", "error": "no such host", "address": "10.0.0.1"},
				{"name": "b.example.com", "since": "2026-01-02T03:04:05Z", "error": "no such host"}]},
				{"service": "order-api", "backend": "orders", "known": true}]}`))
	}))
	defer agent.Close()
	var out, errs bytes.Buffer
	code := Main([]string{"status", "--address", strings.TrimPrefix(agent.URL, "http://")}, &out, &errs)
	require.Zero(t, code, errs.String())
	for _, line := range []string{
		`haproxy /run/one.sock: version 2\.6\.12, pid 7.*\n  its configuration has no backend orders: add it and reload HAProxy`,
		`haproxy /run/three.sock: NO ANSWER`,
		`user-api +users +3 +3 +1 to 3 +0`,
		`order-api +orders +0 +0 +- +0`,
		`user-api: a\.example\.com does not resolve for .*: no such host; its last address 10\.0\.0\.1 stays`,
		`user-api: b\.example\.com does not resolve for .*: no such host; its instances are left out`,
	} {
		require.Regexp(t, line, out.String())
	}
}

// TestStatusOfRegistrar: a registrar alone is shown as what it is, by its file or by its address.
func TestStatusOfRegistrar(t *testing.T) {
	pages := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
		w.Write([]byte(`{"version": "1.0", "config": "/etc/r.toml", "instance": "web-1", "ready": false, "waiting": ["service web: its checks have not decided"],
			"zookeeper": [{"ensemble": "zk1:2181", "connected": true, "server": "10.0.0.1:2181", "session": "0x1", "session_timeout": "12s"}],
			"services": [
				{"service": "web", "path": "/services/web", "state": "up", "registered": true, "node": "/services/web/web-1_0000000007", "weight_percent": 40},
				{"service": "db", "path": "/services/db", "state": "down", "checks": [{"check": "tcp", "error": "refused"}]},
				{"service": "old", "path": "/services/old", "state": "up", "maintenance": {"author": "ann", "reason": "new disk", "until": "2999-01-01T00:00:00Z"}}]}`))
	}))
	defer pages.Close()
	address := strings.TrimPrefix(pages.URL, "http://")
	file := filepath.Join(t.TempDir(), "r.toml")
	require.NoError(t, os.WriteFile(file, []byte("instance_id = \"web-1\"\nadmin = { listen = \""+address+"\" }\n[zookeeper]\nhosts = [\"zk1\"]\n"+
		"[services.web]\nhost = \"10.0.0.5\"\nport = 80\nzk_path = \"/services/web\"\nchecks = [{ type = \"tcp\" }]\n"), 0o644))
	for _, where := range [][]string{{"-c", file}, {"--address", address}} {
		var out, errs bytes.Buffer
		code := Main(append([]string{"status"}, where...), &out, &errs)
		require.Zero(t, code, errs.String())
		for _, line := range []string{
			`registrar 1\.0 of instance web-1, not ready, .*, configuration /etc/r\.toml\n  waiting: service web: its checks have not decided`,
			`zookeeper zk1:2181: connected to 10\.0\.0\.1:2181`,
			`web +/services/web +up .* web-1_0000000007 +at 40% of its weight`,
			`db +/services/db +down .* no +tcp: refused`,
			`old +/services/old +up .* no +in maintenance for another \d+d\d+h, by ann: new disk`,
		} {
			require.Regexp(t, line, out.String())
		}
		require.NotContains(t, out.String(), "agent")
		require.NotContains(t, out.String(), "BACKEND")
	}

	require.NoError(t, os.WriteFile(file, []byte(strings.Replace(string(mustRead(t, file)), address, "off", 1)), 0o644))
	var out, errs bytes.Buffer
	require.Equal(t, 1, Main([]string{"status", "-c", file}, &out, &errs))
	require.Contains(t, errs.String(), "admin.listen is off, so the registrar cannot be asked")
}

func mustRead(t *testing.T, path string) []byte {
	t.Helper()
	text, err := os.ReadFile(path)
	require.NoError(t, err)
	return text
}
