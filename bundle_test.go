package main_test

import (
	"archive/tar"
	"bytes"
	"compress/gzip"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"
)

// unpacked is a bundle's files by their names, without its folder.
func unpacked(t *testing.T, path string) map[string]string {
	t.Helper()
	data, err := os.ReadFile(path)
	require.NoError(t, err)
	zip, err := gzip.NewReader(bytes.NewReader(data))
	require.NoError(t, err)
	files := map[string]string{}
	for in := tar.NewReader(zip); ; {
		h, err := in.Next()
		if errors.Is(err, io.EOF) {
			return files
		}
		require.NoError(t, err)
		text, err := io.ReadAll(in)
		require.NoError(t, err)
		_, name, _ := strings.Cut(h.Name, "/")
		files[name] = string(text)
	}
}

// withoutSecrets fails the test when one of the secrets that were planted is anywhere in a bundle.
func withoutSecrets(t *testing.T, files map[string]string) {
	t.Helper()
	for name, text := range files {
		if at := strings.Index(text, "hunter2"); at >= 0 {
			t.Errorf("a secret is in %s: %s", name, text[max(0, at-60):min(len(text), at+60)])
		}
	}
}

// TestBundle: with all of it running everything is in the bundle, and none of the secrets that were planted wherever
// one may be; with nothing running the manifest says what is missing, and why.
func TestBundle(t *testing.T) {
	t.Setenv("STATS_LOGIN", "admin:hunter2-env")
	w := newWorld(t, func(text string) string {
		return strings.Replace(text, `"option httpchk GET /health"`, `"option httpchk GET /health", "stats enable", "stats auth ${STATS_LOGIN}", "http-request set-header X-Key hunter2-header"`, 1) + `
[haproxy]
global = ["setenv SECRET hunter2-setenv", "maxconn 1000"]
extra_sections = { "userlist ops" = ["user bob insecure-password hunter2-userlist"] }
`
	}, noChecks)
	i := w.startServiceOf("a", w.zk.Addr())
	key := filepath.Join(w.dir, "amqp.password")
	require.NoError(t, os.WriteFile(key, []byte("hunter2-file"), 0o600))
	text, err := os.ReadFile(i.file)
	require.NoError(t, err)
	w.write(i.file, strings.Replace(strings.Replace(string(text), "checks = [", `on_stop = ["true", "hunter2-stop"]
checks = [{ type = "http", uri = "/health?key=hunter2-query", headers = { Authorization = "Bearer hunter2-bearer" }, timeout = "2s" }, `, 1),
		"[zookeeper]\n", fmt.Sprintf("[admin]\nlisten = \"127.0.0.1:%d\"\n\n[zookeeper]\nauth = { scheme = \"digest\", credentials = \"myelin:hunter2-digest\" }\n", freePort(t)), 1))
	require.NoError(t, os.Chmod(i.file, 0o600))
	w.startRegistrar(i)
	w.startAgent()
	w.converges("a")
	cfg, err := os.ReadFile(filepath.Join(w.dir, "haproxy.cfg"))
	require.NoError(t, err)
	require.GreaterOrEqual(t, strings.Count(string(cfg), "hunter2"), 4, "the secrets are where they could leak from")
	w.tells("starts with 1 services")

	file := filepath.Join(w.dir, "one.tar.gz")
	out, code := w.run("bundle", "-c", w.agentFile, "--file", file)
	require.Zero(t, code, out)
	require.Contains(t, out, "one.tar.gz: ")
	info, err := os.Stat(file)
	require.NoError(t, err)
	require.EqualValues(t, 0o600, info.Mode().Perm())
	files := unpacked(t, file)
	withoutSecrets(t, files)
	require.Contains(t, files["versions.txt"], "HAProxy version")
	require.Contains(t, files["config/agent.toml.shown.json"], `"/services/user-api"`)
	require.Contains(t, files["haproxy.cfg"], "stats auth [removed]")
	require.Contains(t, files["haproxy.cfg"], "server a_127.0.0.1:")
	require.Contains(t, files["haproxy-info.txt"], "Version: ")
	require.Contains(t, files["agent-status.json"], `"user-api"`)
	require.Contains(t, files["agent-metrics.txt"], "myelin_build_info")
	require.Contains(t, files["kernel.txt"], "net.core.somaxconn = ")
	segments := 0
	for name, text := range files {
		if regexp.MustCompile(`^journal/(agent|registrar-a)-\d+\.jsonl$`).MatchString(name) {
			require.Contains(t, text, `"kind":"process"`)
			segments++
		}
	}
	require.Equal(t, 2, segments)
	require.Regexp(t, `(?m)^registrar(-| )status\.json`, files["MANIFEST"], "it is there or missing: another registrar may run on this host")
	out, code = w.run("bundle", "-c", w.agentFile, "--file", file)
	require.Equal(t, 1, code)
	require.Contains(t, out, "file exists")

	file = filepath.Join(w.dir, "two.tar.gz")
	out, code = w.run("bundle", "-c", i.file, "--file", file)
	require.Zero(t, code, out)
	files = unpacked(t, file)
	withoutSecrets(t, files)
	require.Contains(t, files["registrar-status.json"], `"instance": "a"`)
	require.Contains(t, files["config/a.toml.shown.json"], `"/health?[removed]"`)

	require.NoError(t, i.registrar.Stop())
	require.NoError(t, w.agent.Stop())
	w.write(w.agentFile, "this is = hunter2 no TOML")
	file = filepath.Join(w.dir, "three.tar.gz")
	out, code = w.run("bundle", "-c", w.agentFile, "--state-dir", w.dir, "--file", file)
	require.Zero(t, code, out)
	files = unpacked(t, file)
	withoutSecrets(t, files)
	require.Contains(t, files["MANIFEST"], "it cannot be parsed, so its secrets cannot be told from the rest")
	require.Regexp(t, `(?m)^agent(-| )status\.json`, files["MANIFEST"])
	require.Contains(t, files["MANIFEST"], "haproxy.cfg and show info: no agent's file says where they are")
	found := false
	for name := range files {
		found = found || strings.HasPrefix(name, "journal/agent-")
	}
	require.True(t, found, "the history is there when nothing else is")
}
