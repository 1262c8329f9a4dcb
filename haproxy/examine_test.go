package haproxy

import (
	"path/filepath"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/myelin-sd/myelin/haproxy/haproxytest"
)

// TestLevels: each socket tells what it may do.
func TestLevels(t *testing.T) {
	haproxytest.Require(t)
	dir := haproxytest.TempDir(t)
	text := realConfig
	for _, level := range []string{"user", "operator"} {
		text = "global\n  stats socket " + filepath.Join(dir, level) + " level " + level + "\n" + text
	}
	h, err := haproxytest.Start(dir, text, haproxytest.Options{})
	require.NoError(t, err)
	t.Cleanup(func() { h.Stop() })
	for path, want := range map[string]string{h.Socket: "admin", filepath.Join(dir, "operator"): "operator", filepath.Join(dir, "user"): "user"} {
		c, err := Dial(t.Context(), path, ClientOptions{})
		require.NoError(t, err)
		defer c.Close()
		got, err := c.Level(t.Context())
		require.NoError(t, err)
		require.Equal(t, want, got)
	}
}

// TestOldWorkers: a worker of before a reload that a client keeps alive is told, by its pid.
func TestOldWorkers(t *testing.T) {
	h := haproxytest.New(t, realConfig)
	workers, err := OldWorkers(t.Context(), h.MasterSocket)
	require.NoError(t, err)
	require.Empty(t, workers)
	old, err := h.WorkerPid()
	require.NoError(t, err)
	held, err := Dial(t.Context(), h.Socket, ClientOptions{}) // an open connection keeps its worker
	require.NoError(t, err)
	defer held.Close()
	require.NoError(t, h.Reload())
	workers, err = OldWorkers(t.Context(), h.MasterSocket)
	require.NoError(t, err)
	require.Len(t, workers, 1)
	require.Equal(t, old, workers[0].Pid)
	require.True(t, strings.HasSuffix(workers[0].Uptime, "s"), workers[0].Uptime)

	_, err = OldWorkers(t.Context(), filepath.Join(t.TempDir(), "none"))
	require.ErrorContains(t, err, "ask HAProxy's master")
	_, err = OldWorkers(t.Context(), h.Socket) // the worker knows no processes
	require.Error(t, err)
}

// TestClaimHolder: who has a claim is told, and nobody is kept away by the question.
func TestClaimHolder(t *testing.T) {
	socket := filepath.Join(t.TempDir(), "h.sock")
	_, held := ClaimHolder(socket)
	require.False(t, held)
	c, err := ClaimSocket(socket, "/etc/a.toml")
	require.NoError(t, err)
	holder, held := ClaimHolder(socket)
	require.True(t, held)
	require.Equal(t, "/etc/a.toml", holder.Config)
	c.Close()
	_, held = ClaimHolder(socket)
	require.False(t, held)
	c, err = ClaimSocket(socket, "/etc/b.toml")
	require.NoError(t, err)
	c.Close()
}

// TestParseOldWorkers: the list as 2.2 writes it, whose columns are others.
func TestParseOldWorkers(t *testing.T) {
	require.Equal(t, []Worker{{Pid: 1271, Uptime: "0d00h00m28s"}}, parseOldWorkers("#<PID>          <type>          <relative PID>  <reloads>       <uptime>        <version>\n"+
		"1162            master          0               5               0d00h02m07s     2.2.9\n# workers\n1271            worker          1               0               0d00h00m00s     2.2.9\n"+
		"# old workers\n1271            worker          [was: 1]        3               0d00h00m28s     2.2.9\n# programs\n"))
	require.Empty(t, parseOldWorkers("nonsense\n1 worker 2 3\n"))
}
