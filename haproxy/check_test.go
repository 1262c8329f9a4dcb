package haproxy

import (
	"context"
	"os"
	"path/filepath"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/myelin-sd/myelin/haproxy/haproxytest"
)

// TestCheckLike: a check that nobody set up refuses only what HAProxy refuses for the file's own sake.
func TestCheckLike(t *testing.T) {
	haproxytest.Require(t)
	binary, err := haproxytest.Binary()
	require.NoError(t, err)
	dir := haproxytest.TempDir(t)
	file := func(name, text string) string {
		path := filepath.Join(dir, name)
		require.NoError(t, os.WriteFile(path, []byte(text), 0o600))
		return path
	}
	good, bad := file("good", "frontend f\n\tbind :1\n"), file("bad", "frontend f\n\tbind :1\n\tfrobnicate\n")
	partial := file("partial", "frontend f\n\tbind :1\n\tmode http\n\tuse_backend elsewhere if TRUE\n")
	absent := filepath.Join(dir, "absent")
	version := versionOf(t.Context(), binary, patience)
	require.Regexp(t, `^\d+\.\d+`, version)
	hap := haproxytest.New(t, "backend b\n")
	require.Equal(t, version, RunningVersion(t.Context(), absent, hap.Socket))
	require.Empty(t, RunningVersion(t.Context(), absent))

	for name, c := range map[string]struct {
		binary, present, running, path string
		refused                        bool
	}{
		"a good file":                      {binary, good, version, good, false},
		"a bad file":                       {binary, good, version, bad, true},
		"a bad file, HAProxy does not run": {binary, good, "", bad, true},
		"another version runs":             {binary, good, "9.9.9", bad, false},
		"the file in force is refused too": {binary, partial, version, bad, false},
		"there is no file in force":        {binary, absent, version, bad, false},
		"there is no HAProxy to ask":       {absent, good, version, bad, false},
		"a file that lacks a part of its":  {binary, good, version, partial, true},
		"what is at hand is no HAProxy":    {"/bin/false", good, version, bad, false},
	} {
		t.Run(name, func(t *testing.T) {
			check := CheckLike(c.binary, c.present, func(context.Context) string { return c.running }, patience)
			err := check(t.Context(), c.path)
			if !c.refused {
				require.NoError(t, err)
				return
			}
			require.ErrorContains(t, err, "check "+c.path)
			require.ErrorContains(t, err, "do_checks = false")
		})
	}
}
