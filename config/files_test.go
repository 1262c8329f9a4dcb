package config

import (
	"encoding/json"
	"flag"
	"fmt"
	"os"
	"path/filepath"
	"reflect"
	"regexp"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
)

var update = flag.Bool("update", false, "write the .want files from what is so; read the diff before you commit it")

const folder = "../testdata/config"

// environment is what ${...} finds in the files under test.
func environment(name string) (string, bool) {
	v, ok := map[string]string{
		"ZK":     "zk1:2181,zk2:2181/prod",
		"PORT":   "8081",
		"SECRET": "hunter2",
		"EMPTY":  "",
	}[name]
	return v, ok
}

// private gives the files with secrets the mode they are to have: a checkout does not keep it.
func private(t *testing.T) {
	t.Helper()
	paths, err := filepath.Glob(filepath.Join(folder, "secure", "*.credentials"))
	require.NoError(t, err)
	require.NotEmpty(t, paths)
	for _, path := range paths {
		require.NoError(t, os.Chmod(path, 0o600))
	}
}

// loadAny loads a file as the kind its name begins with.
func loadAny(path string) (result any, problems Problems, err error) {
	o := Options{LookupEnv: environment}
	if strings.HasPrefix(filepath.Base(path), "registrar-") {
		c, problems, err := LoadRegistrar(path, o)
		return c, problems, err
	}
	c, problems, err := LoadAgent(path, o)
	return c, problems, err
}

// TestFiles: each KIND-NAME.bad.EXT fails with exactly the sentences of its .want, each KIND-NAME.good.EXT becomes
// what its .want shows: the warnings, then every field that is not zero.
func TestFiles(t *testing.T) {
	private(t)
	seen := map[string]int{}
	for _, pattern := range []string{"*.bad.json", "*.bad.toml", "*.good.json", "*.good.toml"} {
		paths, err := filepath.Glob(filepath.Join(folder, pattern))
		require.NoError(t, err)
		require.NotEmpty(t, paths, pattern)
		for _, path := range paths {
			name := filepath.Base(path)
			seen[name]++
			require.Regexp(t, `^(agent|registrar)-`, name)
			t.Run(name, func(t *testing.T) {
				result, problems, err := loadAny(path)
				got := problems.Error()
				if strings.Contains(pattern, "bad") {
					require.Error(t, err)
					require.Equal(t, problems, err, "the error is all problems")
					require.NotEmpty(t, problems.Errors())
					require.True(t, reflect.ValueOf(result).IsNil(), "nothing to use by mistake")
				} else {
					require.NoError(t, err)
					got = strings.TrimPrefix(got+"\n\n"+dump(result), "\n\n")
				}
				want(t, path+".want", strings.ReplaceAll(got, folder+"/", "")+"\n")
			})
		}
	}

	wants, err := filepath.Glob(filepath.Join(folder, "*.want"))
	require.NoError(t, err)
	for _, w := range wants {
		require.Contains(t, seen, strings.TrimSuffix(filepath.Base(w), ".want"), "a .want without its file")
	}
}

func want(t *testing.T, path, got string) {
	t.Helper()
	if *update {
		require.NoError(t, os.WriteFile(path, []byte(got), 0o644))
	}
	b, err := os.ReadFile(path)
	require.NoError(t, err, "run with -update once, then read what it wrote")
	require.Equal(t, string(b), got)
}

// TestNotations: a file that is there in both notations means the same in both.
func TestNotations(t *testing.T) {
	private(t)
	paths, err := filepath.Glob(filepath.Join(folder, "*.good.toml"))
	require.NoError(t, err)
	places := regexp.MustCompile(`(?m)^(Path|.*\.File|.*\.Line) = .*\n`)
	both := 0
	for _, path := range paths {
		twin := strings.TrimSuffix(path, "toml") + "json"
		if _, err := os.Stat(twin); err != nil {
			continue
		}
		both++
		a, _, err := loadAny(path)
		require.NoError(t, err)
		b, _, err := loadAny(twin)
		require.NoError(t, err)
		require.Equal(t, places.ReplaceAllString(dump(a), ""), places.ReplaceAllString(dump(b), ""), path)
	}
	require.GreaterOrEqual(t, both, 2)
}

// dump shows the fields of a value that are not zero, one a line.
func dump(v any) string {
	var b strings.Builder
	dumpValue(&b, "", reflect.ValueOf(v))
	return strings.TrimSuffix(b.String(), "\n")
}

func dumpValue(b *strings.Builder, path string, v reflect.Value) {
	switch {
	case v.Kind() == reflect.Pointer:
		if !v.IsNil() {
			if v.Elem().Kind() != reflect.Struct {
				fmt.Fprintf(b, "%s = &%#v\n", path, v.Elem().Interface())
				return
			}
			dumpValue(b, path, v.Elem())
		}
	case v.Kind() == reflect.Struct:
		for i := range v.NumField() {
			dumpValue(b, strings.TrimPrefix(path+"."+v.Type().Field(i).Name, "."), v.Field(i))
		}
	case v.Kind() == reflect.Slice && v.Type().Elem().Kind() == reflect.Struct:
		for i := range v.Len() {
			dumpValue(b, fmt.Sprintf("%s[%d]", path, i), v.Index(i))
		}
	case v.Kind() == reflect.Interface && !v.IsNil():
		fmt.Fprintf(b, "%s = %T %v\n", path, v.Interface(), v.Interface())
	case v.IsZero():
	case v.Type() == reflect.TypeFor[[]byte]():
		fmt.Fprintf(b, "%s = %d bytes\n", path, v.Len())
	case v.Type() == reflect.TypeFor[time.Duration]():
		fmt.Fprintf(b, "%s = %s\n", path, v.Interface())
	default:
		data, err := json.Marshal(v.Interface())
		if err != nil {
			data = []byte(err.Error())
		}
		fmt.Fprintf(b, "%s = %s\n", path, data)
	}
}
