package cli

import (
	"bytes"
	"encoding/json"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"
)

// TestGuardCommand: holds are shown by service and reason, with what ends them.
func TestGuardCommand(t *testing.T) {
	agent := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
		w.Write([]byte(`{"services": [
			{"service": "orders", "guard": {"held": 0, "decided": {"left": 7}}},
			{"service": "users", "known": true, "held": "vanished", "held_since": "2026-01-02T03:04:05Z", "guard": {"held": 4, "holds": [
				{"reason": "vanished", "since": "2026-01-02T03:04:05Z", "until": "2999-01-01T00:00:00Z", "judged": true, "instances": ["10.0.0.1:80"]},
				{"reason": "vanished", "since": "2026-01-02T03:04:06Z", "until": "2999-01-01T00:00:01Z", "judged": true, "instances": ["10.0.0.2:80"]},
				{"reason": "just back", "since": "2026-01-02T03:04:07Z", "until": "2999-01-01T00:00:00Z", "judged": false, "instances": ["10.0.0.3:80"]},
				{"reason": "late", "since": "2026-01-02T03:04:07Z", "until": "2026-01-02T04:04:07Z", "judged": true, "instances": ["10.0.0.4:80"]}]}},
			{"service": "carts", "known": true, "guard": {"held": 1, "holds": [
				{"reason": "nothing is listed", "since": "2026-01-02T03:04:05Z", "judged": true, "instances": ["10.0.1.1:80"]}]}}]}`))
	}))
	defer agent.Close()
	run := func(args ...string) string {
		t.Helper()
		var out, errs bytes.Buffer
		require.Zero(t, Main(append(args, "--address", strings.TrimPrefix(agent.URL, "http://")), &out, &errs), errs.String())
		return out.String()
	}
	table := run("guard")
	for _, line := range []string{
		`SERVICE +HELD +FOR +ENDS +REASON\n`,
		`users +2 +\d+d\d+h +in \d+d\d+h +vanished\n`,
		`users +1 +\d+d\d+h +judged in \d+d\d+h +just back\n`,
		`users +1 +\d+d\d+h +when the registry is back +late\n`,
		`carts +1 +\d+d\d+h +not by time +nothing is listed\n`,
	} {
		require.Regexp(t, line, table)
	}
	require.NotContains(t, table, "orders")
	require.Regexp(t, `users +2 .* vanished +10\.0\.0\.1:80 10\.0\.0\.2:80\n`, run("guard", "-o", "wide"))
	var told []map[string]any
	require.NoError(t, json.Unmarshal([]byte(run("guard", "-o", "json")), &told))
	require.Len(t, told, 5)
	require.Equal(t, map[string]any{"service": "carts", "reason": "nothing is listed", "since": "2026-01-02T03:04:05Z", "judged": true, "instances": []any{"10.0.1.1:80"}}, told[4])
	require.Contains(t, run("status"), "4 of them held for ")
}

// TestGuardReleaseAsksTheRightAgent: the socket is that of the flag or of the file, and what is wrong is said.
func TestGuardReleaseAsksTheRightAgent(t *testing.T) {
	dir := t.TempDir()
	file := filepath.Join(dir, "agent.toml")
	write := func(control string) {
		require.NoError(t, os.WriteFile(file, []byte("state_dir = \""+dir+"\"\n"+control+"[services.web]\ndiscovery = { method = \"base\" }\ndefault_servers = [{ host = \"10.0.0.1\", port = 80 }]\n"), 0o644))
	}
	fails := func(code int, want string, args ...string) {
		t.Helper()
		var out, errs bytes.Buffer
		require.Equal(t, code, Main(append([]string{"guard", "release"}, args...), &out, &errs))
		require.Contains(t, errs.String(), want)
		require.Empty(t, out.String())
	}
	write("")
	fails(1, "ask the agent at "+dir+"/agent.sock: there is no such socket; is the agent running, with this control_socket?", "web", "-c", file)
	fails(1, "ask the agent at /nowhere/x.sock: ", "web", "--socket", "/nowhere/x.sock")
	write("control_socket = \"off\"\n")
	fails(1, file+": control_socket is off, so the agent cannot be told", "web", "-c", file)
	fails(2, "accepts 1 arg(s), received 0")
}
