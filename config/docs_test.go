package config

import (
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"
)

func documentation(t *testing.T, page string) string {
	t.Helper()
	data, err := os.ReadFile("../docs/" + page)
	require.NoError(t, err)
	return string(data)
}

// TestDocumentedExamples: the files that the documentation shows are whole, and have nothing to complain about.
func TestDocumentedExamples(t *testing.T) {
	dir := t.TempDir()
	kinds := map[Kind]int{}
	for _, m := range regexp.MustCompile("(?s)```(toml|json)\n(.*?)```").FindAllStringSubmatch(documentation(t, "configuration.md"), -1) {
		path := filepath.Join(dir, "x."+m[1])
		require.NoError(t, os.WriteFile(path, []byte(m[2]), 0o644))
		kind, err := Detect(path, Options{})
		require.NoError(t, err, m[2])
		var problems Problems
		if kind == KindAgent {
			_, problems, err = LoadAgent(path, Options{Strict: true})
		} else {
			_, problems, err = LoadRegistrar(path, Options{Strict: true})
		}
		require.NoError(t, err, m[2])
		require.Empty(t, problems, m[2])
		kinds[kind]++
	}
	require.Equal(t, map[Kind]int{KindAgent: 3, KindRegistrar: 2}, kinds)
}

// TestRegistrarExamples: so are the services that the registrar's page shows, once it is said who they are and where the
// registry is.
func TestRegistrarExamples(t *testing.T) {
	dir := t.TempDir()
	for _, name := range []string{"redis.password", "amqp.password"} {
		require.NoError(t, os.WriteFile(filepath.Join(dir, name), []byte("secret\n"), 0o600))
	}
	authority, err := os.ReadFile("../testdata/config/secure/ca.pem")
	require.NoError(t, err)
	require.NoError(t, os.WriteFile(filepath.Join(dir, "cert.pem"), authority, 0o600))
	examples := 0
	for _, m := range regexp.MustCompile("(?s)```toml\n(.*?)```").FindAllStringSubmatch(documentation(t, "registrar.md"), -1) {
		text := m[1]
		if !strings.Contains(text, "[services.") {
			continue // one key
		}
		if !strings.Contains(text, "instance_id") {
			text = "instance_id = \"web-1\"\nzookeeper.hosts = [\"zk1\"]\n" + text
		}
		path := filepath.Join(dir, "registrar.toml")
		require.NoError(t, os.WriteFile(path, []byte(text), 0o600))
		_, _, err := LoadRegistrar(path, Options{Strict: true})
		require.NoError(t, err, text)
		examples++
	}
	require.GreaterOrEqual(t, examples, 13)
}

// TestDocumentedKeys: a key that the code asks for is a key that the documentation names.
func TestDocumentedKeys(t *testing.T) {
	docs := documentation(t, "configuration.md")
	files, err := filepath.Glob("read_*.go")
	require.NoError(t, err)
	asks := regexp.MustCompile(`\w\.(?:str|flag|whole|port|duration|lines|subs?|hosts?|znode|choice|fraction|filePath|labels|seed|sections|serverOptions|given|value|require|beside|optional|credentials|anyText|regex|later|filePath|password)\("([a-z_]+)"`)
	keys := 0
	for _, f := range append(files, "address.go") {
		src, err := os.ReadFile(f)
		require.NoError(t, err)
		for _, m := range asks.FindAllStringSubmatch(string(src), -1) {
			keys++
			// The methods to come have no tables of keys yet.
			if !regexp.MustCompile("[`. ]"+m[1]+"[`., =]").MatchString(docs) && !isLaterKey(m[1]) {
				t.Errorf("%s asks for %q, which docs/configuration.md does not name", f, m[1])
			}
		}
	}
	require.Greater(t, keys, 100)
}

func isLaterKey(key string) bool {
	switch key {
	case "nameserver", "servers", "watchers", "resolver", "sequential_order":
		return true
	}
	return false
}
