package main_test

import (
	"errors"
	"fmt"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/myelin-sd/myelin/cli/clitest"
)

// TestRebootWithoutZooKeeper: a host boots with nothing of HAProxy's left, while the registry is away. It serves what
// it served. The registry comes back with another set, and no request fails on the way to that.
func TestRebootWithoutZooKeeper(t *testing.T) {
	w := newWorld(t)
	leaveA := w.publish("a", backendServer(t, "a"))
	leaveB := w.publish("b", backendServer(t, "b"))
	w.publish("c", backendServer(t, "c"))
	w.startAgent()
	w.converges("a", "b", "c")
	require.NoError(t, w.agent.Stop())
	w.endHAProxy()
	leaveA()
	w.publish("d", backendServer(t, "d"))
	require.NoError(t, w.zk.Stop())

	w.startAgent()
	w.agentIsReady()
	require.NoError(t, w.inRotation([]string{"a", "b", "c"}))
	unchanged := w.pinned()
	for range 9 {
		_, err := w.get()
		require.NoError(t, err)
	}
	load := clitest.StartLoad(w.url(), 100)
	st := w.status()
	require.NotNil(t, st.Services[0].FromDisk)
	require.Len(t, st.Stale, 2, "the set, and the overrides")
	require.Equal(t, 1, strings.Count(w.agent.Log(), "serving the last known set from disk"))
	out, code := w.run("status", "-c", w.agentFile)
	require.Equal(t, 0, code, out)
	require.Contains(t, out, "from disk, as it was ")
	resp, err := http.Get(fmt.Sprintf("http://127.0.0.1:%d/readyz", w.adminPort))
	require.NoError(t, err)
	resp.Body.Close()
	require.Equal(t, http.StatusOK, resp.StatusCode, "it serves")

	require.NoError(t, w.zk.Restart())
	w.converges("b", "c", "d")
	w.eventually("d answers", func() error {
		if load.Answers()["d"] == 0 {
			return errors.New("not yet")
		}
		return nil
	})
	w.endLoad(load)
	require.Empty(t, w.status().Stale)
	unchanged()

	// To converge once means to have heard the registry, whatever is on disk.
	require.NoError(t, w.agent.Stop())
	leaveB()
	out, code = w.run("agent", "-c", w.agentFile, "--once", "--timeout", "30s")
	require.Equal(t, 0, code, out)
	require.NoError(t, w.inRotation([]string{"c", "d"}))
	require.NoError(t, w.zk.Stop())
	out, code = w.run("agent", "-c", w.agentFile, "--once", "--timeout", "2s")
	require.Equal(t, 1, code, out)
	require.Contains(t, out, "nothing heard from the registry yet; served from disk")
	require.NoError(t, w.inRotation([]string{"c", "d"}))
}

// endHAProxy stops HAProxy and removes all it has on disk, as a boot with an empty /run does.
func (w *world) endHAProxy() {
	w.t.Helper()
	require.NoError(w.t, syscall.Kill(w.master(), syscall.SIGTERM))
	w.eventually("HAProxy is gone", func() error {
		if _, err := w.pid(); err == nil {
			return errors.New("it still answers")
		}
		return nil
	})
	files, err := filepath.Glob(filepath.Join(w.dir, "haproxy*"))
	require.NoError(w.t, err)
	require.NotEmpty(w.t, files)
	for _, f := range files {
		require.NoError(w.t, os.Remove(f))
	}
}
