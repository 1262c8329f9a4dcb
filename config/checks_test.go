package config

import (
	"os"
	"path/filepath"
	"testing"

	"github.com/stretchr/testify/require"
)

// TestCheckNamesTellNoSecrets: names of checks are in logs, metrics and pages. What a query holds is not in them; they
// differ all the same, and are Nerve's where there is no query.
func TestCheckNamesTellNoSecrets(t *testing.T) {
	path := filepath.Join(t.TempDir(), "r.toml")
	require.NoError(t, os.WriteFile(path, []byte(`
instance_id = "i"
zookeeper = { hosts = ["zk1:2181"] }
[services.web]
host = "10.0.0.1"
port = 80
zk_path = "/services/web"
checks = [
  { type = "http", uri = "/health" },
  { type = "http", uri = "/health?" },
  { type = "http", uri = "/health?key=hunter2&deep&x=" },
  { type = "http", uri = "/health?key=hunter3&deep&x=" },
  { type = "http", uri = "/health?hunter2" },
  { type = "http", uri = "/health?key=hunter4", name = "mine?" },
  { type = "tcp" },
]
`), 0o644))
	c, problems, err := LoadRegistrar(path, Options{})
	require.NoError(t, err)
	require.Empty(t, problems)
	var names, uris []string
	for _, check := range c.Services[0].Checks {
		names, uris = append(names, check.Name), append(uris, check.URI)
	}
	require.Equal(t, []string{
		"http-10.0.0.1:80/health", "http-10.0.0.1:80/health?",
		"http-10.0.0.1:80/health?key=[removed]&[removed]&x=[removed]", "http-10.0.0.1:80/health?key=[removed]&[removed]&x=[removed] #2",
		"http-10.0.0.1:80/health?[removed]", "mine?", "web tcp-10.0.0.1:80",
	}, names)
	require.Equal(t, "/health?key=hunter2&deep&x=", uris[2], "what is asked stays")
}
