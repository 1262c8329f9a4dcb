package main_test

import (
	"context"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/myelin-sd/myelin/discovery"
)

// TestConfigurationFromTheRegistry: what the znode of generator_config_path holds is in force beside what the file says,
// with one reload and no lost request, and a restart of the agent does not forget it.
func TestConfigurationFromTheRegistry(t *testing.T) {
	w := newWorld(t, func(text string) string {
		return strings.Replace(text, `path = "/services/user-api"`, `path = "/services/user-api", generator_config_path = "/config/user-api"`, 1)
	})
	w.publish("a", backendServer(t, "a"))
	w.startAgent()
	w.converges("a")
	before, err := w.pid()
	require.NoError(t, err)

	ctx, cancel := context.WithTimeout(t.Context(), 10*time.Second)
	defer cancel()
	_, err = w.session.Publish(ctx, discovery.Registration{
		Path: "/config", Prefix: "user-api",
		Data: []byte(`{"haproxy": {"backend": ["http-response set-header X-From registry", "server evil 6.6.6.6:6"], "listen": ["mode http", "http-request set-header X-Asked yes"]}}`),
	}, "")
	require.NoError(t, err)
	fileHas := func(line string) error {
		text, err := os.ReadFile(filepath.Join(w.dir, "haproxy.cfg"))
		if err == nil && !strings.Contains(string(text), line) {
			err = fmt.Errorf("no %q in haproxy.cfg", line)
		}
		return err
	}
	w.eventually("the registry's line is in the file", func() error { return fileHas("http-request set-header X-Asked yes") })
	w.otherWorker(before)
	w.converges("a")
	w.eventually("one reload", func() error {
		if r := w.status().File.Reload; r.Reloads != 1 {
			return fmt.Errorf("%d reloads", r.Reloads)
		}
		return nil
	})
	s := w.status().Services[0]
	require.True(t, s.Remote)
	require.Len(t, s.Problems, 1)
	require.Contains(t, s.Problems[0], "server evil")
	require.Error(t, fileHas("6.6.6.6"))

	// The next agent begins with it: the same worker, although the registry is heard of only later.
	after, err := w.pid()
	require.NoError(t, err)
	require.NoError(t, w.agent.Stop())
	w.startAgent()
	w.agentIsReady()
	w.converges("a")
	require.NoError(t, fileHas("http-request set-header X-Asked yes"))
	now, err := w.pid()
	require.NoError(t, err)
	require.Equal(t, after, now)
}
