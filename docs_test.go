package main_test

import (
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/myelin-sd/myelin/config"
)

func read(t *testing.T, path string) string {
	t.Helper()
	text, err := os.ReadFile(path)
	require.NoError(t, err)
	return string(text)
}

// TestReadmeIsTrue: the tests that the README names exist, the files that it shows are those of the demo, and its links
// lead somewhere.
func TestReadmeIsTrue(t *testing.T) {
	readme := read(t, "README.md")
	files, err := filepath.Glob("*_test.go")
	require.NoError(t, err)
	var tests string
	for _, f := range files {
		tests += read(t, f)
	}
	named := regexp.MustCompile("`(Test\\w+)`").FindAllStringSubmatch(readme, -1)
	require.NotEmpty(t, named)
	for _, m := range named {
		require.Contains(t, tests, "func "+m[1]+"(t *testing.T)")
	}
	for _, f := range []string{"testdata/demo/agent.toml", "testdata/demo/registrar.toml"} {
		_, body, _ := strings.Cut(read(t, f), "\n") // without the comment on top
		require.Contains(t, readme, "```toml\n"+body+"```", "the README shows another %s", f)
	}
	for _, m := range regexp.MustCompile(`\]\(([^)#:]+)\)`).FindAllStringSubmatch(readme, -1) {
		_, err := os.Stat(m[1])
		require.NoError(t, err, "a link of the README")
	}
}

// TestExamplesAreValid: every configuration file that is shown to people is accepted, strictly.
func TestExamplesAreValid(t *testing.T) {
	environment := map[string]string{"INSTANCE": "web-1"}
	o := config.Options{Strict: true, LookupEnv: func(name string) (string, bool) {
		v, set := environment[name]
		return v, set
	}}
	for _, dir := range []string{"testdata/demo", "testdata/compose"} {
		_, problems, err := config.LoadAgent(filepath.Join(dir, "agent.toml"), o)
		require.NoError(t, err)
		require.Empty(t, problems)
		_, problems, err = config.LoadRegistrar(filepath.Join(dir, "registrar.toml"), o)
		require.NoError(t, err)
		require.Empty(t, problems)
	}
}
