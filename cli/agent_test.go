package cli

import (
	"context"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"testing"

	"github.com/stretchr/testify/require"
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

	err = a.runAgent(context.Background(), a.configFile, "", false)
	require.ErrorContains(t, err, a.configFile+": listen on admin.listen "+other.Addr().String())
	require.ErrorContains(t, err, "choose another address")
	files, err := os.ReadDir(state)
	require.NoError(t, err)
	require.Empty(t, files)
}
