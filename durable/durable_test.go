package durable_test

import (
	"os"
	"path/filepath"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/myelin-sd/myelin/durable"
)

func TestReplace(t *testing.T) {
	dir := t.TempDir()
	at := func(name string) string { return filepath.Join(dir, name) }
	read := func(name string) string {
		t.Helper()
		text, err := os.ReadFile(at(name))
		require.NoError(t, err)
		return string(text)
	}
	f := durable.File{Path: at("file"), Temp: at("temp"), Mode: 0o644, Modified: time.Unix(1_700_000_000, 0)}
	require.NoError(t, durable.Replace(f, []byte("one")))
	info, err := os.Stat(f.Path)
	require.NoError(t, err)
	require.EqualValues(t, 0o644, info.Mode().Perm())
	require.True(t, info.ModTime().Equal(f.Modified))

	// What somebody put in the way is not written through.
	require.NoError(t, os.WriteFile(at("precious"), []byte("gold"), 0o600))
	require.NoError(t, os.Symlink("precious", f.Temp))
	f.Mode, f.Modified = 0o600, time.Time{}
	require.NoError(t, durable.Replace(f, []byte("two")))
	require.Equal(t, "two", read("file"))
	require.Equal(t, "gold", read("precious"))
	info, err = os.Stat(f.Path)
	require.NoError(t, err)
	require.EqualValues(t, 0o600, info.Mode().Perm())
	require.WithinDuration(t, time.Now(), info.ModTime(), time.Hour)
	require.NoFileExists(t, f.Temp)

	// One that cannot take its place is not left behind.
	require.NoError(t, os.MkdirAll(at("folder/full"), 0o755))
	require.Error(t, durable.Replace(durable.File{Path: at("folder"), Temp: f.Temp, Mode: 0o600}, []byte("three")))
	require.NoFileExists(t, f.Temp)
	require.DirExists(t, at("folder/full"))

	// Nor is what is in the way removed, if it is more than a file.
	require.Error(t, durable.Replace(durable.File{Path: f.Path, Temp: at("folder"), Mode: 0o600}, []byte("three")))
	require.Equal(t, "two", read("file"))
}
