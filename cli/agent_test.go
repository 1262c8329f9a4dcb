package cli

import (
	"context"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/sirupsen/logrus/hooks/test"
	"github.com/stretchr/testify/require"

	"github.com/myelin-sd/myelin/agent"
	"github.com/myelin-sd/myelin/config"
)

// TestStartThatFailsTakesNothingUp: while the admin address is in use, nothing is done with the session that the
// process before has left. Giving up would end it, and with it the registrations.
func TestStartThatFailsTakesNothingUp(t *testing.T) {
	other, err := net.Listen("tcp", "127.0.0.1:0")
	require.NoError(t, err)
	t.Cleanup(func() { other.Close() })
	state := t.TempDir()
	a, _ := command(t, "agent.toml", fmt.Sprintf(`
state_dir = %q
registrar = "registrar.toml"
admin     = { listen = %q }
zookeeper = { hosts = "127.0.0.1:1" }
`, state, other.Addr()))
	require.NoError(t, os.WriteFile(filepath.Join(filepath.Dir(a.configFile), "registrar.toml"), []byte(`
instance_id = "web-1"
zookeeper = { hosts = "127.0.0.1:1" }
services = { web = { host = "10.0.0.1", port = 80, zk_path = "/services/web", check_mocked = true } }
`), 0o600))

	err = a.runAgent(context.Background(), a.configFile, agentRun{})
	require.ErrorContains(t, err, a.configFile+": listen on admin.listen "+other.Addr().String())
	require.ErrorContains(t, err, "choose another address")
	files, err := os.ReadDir(state)
	require.NoError(t, err)
	require.Empty(t, files)
}

// TestRereadKeepsSessions: when both files move to another ensemble, the session that both then have is the
// registrar's, kept for the next run, although the agent is the first to read its file.
func TestRereadKeepsSessions(t *testing.T) {
	state := t.TempDir()
	a, _ := command(t, "agent.toml", "")
	registrarPath := filepath.Join(filepath.Dir(a.configFile), "registrar.toml")
	write := func(hosts string) {
		require.NoError(t, os.WriteFile(a.configFile, fmt.Appendf(nil, `
state_dir = %q
registrar = "registrar.toml"
zookeeper = { hosts = %q }
haproxy   = { do_writes = false, do_socket = false, do_reloads = false }
services  = { web = { discovery = { method = "zookeeper", path = "/services/web" } } }
`, state, hosts), 0o600))
		require.NoError(t, os.WriteFile(registrarPath, fmt.Appendf(nil, `
instance_id = "web-1"
zookeeper = { hosts = %q }
services  = { web = { host = "10.0.0.1", port = 80, zk_path = "/services/web", check_mocked = true } }
`, hosts), 0o600))
	}
	locks := func() int {
		files, err := os.ReadDir(state)
		require.NoError(t, err)
		return len(slices.DeleteFunc(files, func(f os.DirEntry) bool { return !strings.HasSuffix(f.Name(), ".session.lock") }))
	}
	write("127.0.0.1:1")

	log, _ := test.NewNullLogger()
	cfg, _, err := config.LoadAgent(a.configFile, a.options(false))
	require.NoError(t, err)
	file := registrarFile{path: cfg.Registrar, stateDir: cfg.StateDir, hosted: true}
	registers, _, err := a.loadRegistrar(file)
	require.NoError(t, err)
	ctx, cancel := context.WithCancel(context.Background())
	reg, sessions := newRegistry(), agent.NewSessions(log)
	p := process{app: a, log: log, path: a.configFile, began: cfg, asked: catch()}
	t.Cleanup(p.asked.release)
	p.registrar, err = a.newRegistrar(ctx, registers, file, sessions, log, reg)
	require.NoError(t, err)
	p.agent = agent.New(agent.Options{Config: cfg, Log: log, Metrics: agent.NewMetrics(reg), Sessions: sessions, Registrar: p.registrar})
	ended := make(chan error, 1)
	go func() { ended <- p.run(ctx) }()
	t.Cleanup(func() {
		cancel()
		require.NoError(t, <-ended)
		p.endSessions(sessions)
	})
	require.Equal(t, 1, locks())

	write("127.0.0.1:2")
	rereads := p.rereads(ctx)
	require.NoError(t, rereads[0].take())
	require.Equal(t, 2, locks())
	require.NoError(t, rereads[1].take())
	require.Equal(t, 2, locks())
}
