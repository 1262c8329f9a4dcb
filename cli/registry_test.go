package cli

import (
	"bytes"
	"context"
	"io"
	"os"
	"path/filepath"
	"syscall"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/myelin-sd/myelin/config"
	"github.com/myelin-sd/myelin/discovery/zookeeper"
)

// command is an app with a file, as a command finds it.
func command(t *testing.T, name, text string) (a *app, out *bytes.Buffer) {
	t.Helper()
	out = &bytes.Buffer{}
	path := filepath.Join(t.TempDir(), name)
	require.NoError(t, os.WriteFile(path, []byte(text), 0o600))
	return &app{out: out, errs: out, configFile: path, env: func(string) (string, bool) { return "", false }}, out
}

// TestRegistryKeepsAccess: --zookeeper says where to ask, and the file still says how.
func TestRegistryKeepsAccess(t *testing.T) {
	for name, text := range map[string]string{
		"agent.toml": `
[zookeeper]
hosts = "zk1/chroot"
auth  = { credentials = "me:hidden" }
tls   = { server_name = "zk" }
watch = "classic"
[services.a]
discovery = { method = "zookeeper", path = "/a" }
[services.b]
discovery = { method = "zookeeper", path = "/b", hosts = "zk2", auth = { credentials = "you:hidden" }, tls = false }
`,
		"registrar.toml": `
instance_id = "i"
[zookeeper]
hosts = "zk1/chroot"
auth  = { credentials = "me:hidden" }
tls   = { server_name = "zk" }
watch = "classic"
[services]
a = { host = "10.0.0.1", port = 1, zk_path = "/a", check_mocked = true }
b = { host = "10.0.0.1", port = 2, zk_path = "/b", check_mocked = true, zk_hosts = "zk2", zk_auth = { credentials = "you:hidden" }, zk_tls = false }
`,
	} {
		t.Run(name, func(t *testing.T) {
			a, _ := command(t, name, text)
			for _, hosts := range []string{"", "zk9:1/other"} {
				a.zookeeper = hosts
				r, err := a.registry()
				require.NoError(t, err)
				where := func(name string) (config.ZooKeeper, []any) {
					_, zk := r.path(name)
					return zk, []any{zk.Hosts, zk.Chroot}
				}
				for _, service := range []string{"a", "/x"} { // the second is the file's own ensemble
					zk, at := where(service)
					require.Equal(t, config.Secret("me:hidden"), zk.Auth.Credentials)
					require.Equal(t, "zk", zk.TLS.ServerName)
					require.True(t, zk.Classic)
					if hosts == "" {
						require.Equal(t, []any{[]string{"zk1:2181"}, "/chroot"}, at)
					} else {
						require.Equal(t, []any{[]string{"zk9:1"}, "/other"}, at)
					}
				}
				zk, at := where("b")
				require.Equal(t, config.Secret("you:hidden"), zk.Auth.Credentials)
				require.Nil(t, zk.TLS)
				if hosts == "" {
					require.Equal(t, []any{[]string{"zk2:2181"}, ""}, at)
				} else {
					require.Equal(t, []any{[]string{"zk9:1"}, "/other"}, at)
				}
			}
		})
	}
}

// TestCheckOfBothRoles: the agent's file and the registrar's file that it names, with the same strictness.
func TestCheckOfBothRoles(t *testing.T) {
	a, out := command(t, "agent.toml", `
registrar = "sub/registrar.toml"
[zookeeper]
hosts = "zk1"
[services.a]
discovery = { method = "zookeeper", path = "/a" }
`)
	dir := filepath.Join(filepath.Dir(a.configFile), "sub")
	require.NoError(t, os.Mkdir(dir, 0o755))
	registrar := filepath.Join(dir, "registrar.toml")
	write := func(text string) {
		t.Helper()
		out.Reset()
		require.NoError(t, os.WriteFile(registrar, []byte(text), 0o600))
	}

	err := a.check(a.configFile, false)
	require.ErrorContains(t, err, "sub/registrar.toml: the file cannot be read: no such file or directory")
	require.Equal(t, exitUsage, a.exit(err))

	const service = "[services.s]\nhost = \"10.0.0.1\"\nport = 1\nzk_hosts = \"zk1\"\nzk_path = \"/s\"\ncheck_mocked = true\n"
	write("instance_id = \"i\"\ncolour = 1\n" + service)
	require.NoError(t, a.check(a.configFile, false))
	require.Contains(t, out.String(), "agent file, 1 service, usable")
	require.Contains(t, out.String(), "registrar file, 1 service, usable")
	require.Contains(t, out.String(), "colour: unknown key")
	require.Error(t, a.check(a.configFile, true))

	// The instance id from outside counts as it will.
	write(service)
	require.ErrorContains(t, a.check(a.configFile, false), "instance_id: is missing")
	a.env = func(name string) (string, bool) { return "from-outside", name == "NERVE_INSTANCE_ID" }
	require.NoError(t, a.check(a.configFile, false))

	// What only a registrar can judge is judged too: two services that would be one node.
	write("instance_id = \"i\"\n" + service + "[services.t]\nhost = \"10.0.0.1\"\nport = 1\nzk_hosts = \"zk1\"\nzk_path = \"/s\"\ncheck_mocked = true\n")
	err = a.check(a.configFile, false)
	require.ErrorContains(t, err, "registers as /s/from-outside_1_ as well")
	require.Equal(t, exitUsage, a.exit(err))
	err = a.check(registrar, false)
	require.ErrorContains(t, err, "registers as /s/from-outside_1_ as well", "alone as well")
}

// TestOwner: registrars that share a state_dir are told apart, and know themselves after a restart.
func TestOwner(t *testing.T) {
	dir := t.TempDir()
	t.Chdir(dir)
	me := owner(&config.Registrar{InstanceID: "i", Path: "x.toml"})
	require.Equal(t, me, owner(&config.Registrar{InstanceID: "i", Path: filepath.Join(dir, "x.toml")}), "wherever it is started from")
	require.NotEqual(t, me, owner(&config.Registrar{InstanceID: "j", Path: "x.toml"}))
	require.NotEqual(t, me, owner(&config.Registrar{InstanceID: "i", Path: "y.toml"}))
}

// TestInterrupted: whoever ends a question by hand is not told that ZooKeeper did not answer in time.
func TestInterrupted(t *testing.T) {
	ctx, cancel := context.WithCancelCause(context.Background())
	cancel(stopSignal{syscall.SIGINT})
	a := &app{out: io.Discard, errs: io.Discard, timeout: time.Minute, env: func(string) (string, bool) { return "", false }}
	zk := config.ZooKeeper{Hosts: []string{refused(t)}}
	wait := func(ctx context.Context, s *zookeeper.Session) error { _, err := s.Children(ctx, "/"); return err }
	require.EqualError(t, a.ask(ctx, zk, wait), "stopped by signal: interrupt")
	require.EqualError(t, a.askLong(ctx, zk, func(ctx context.Context, s *zookeeper.Session, _ func(int)) error { return wait(ctx, s) }, nil), "stopped by signal: interrupt")
	for _, args := range [][]string{{"web"}, {"web", "10.0.0.1:80"}} {
		q := &inquiry{a: a, name: "web", path: "/services/web", zk: zk, address: refused(t)}
		err := q.service(ctx)
		if len(args) == 2 {
			err = q.instance(ctx, args[1])
		}
		require.EqualError(t, err, "stopped by signal: interrupt")
	}
}
