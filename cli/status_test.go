package cli

import (
	"bytes"
	"net/http"
	"net/http/httptest"
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
