package main_test

import (
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/myelin-sd/myelin/cli/clitest"
	"github.com/myelin-sd/myelin/registrar/control"
)

// TestMaintenanceByCommand: an operator takes a service out of rotation and puts it back, over a restart of the
// registrar too.
func TestMaintenanceByCommand(t *testing.T) {
	w := newWorld(t)
	in := w.startInstance("a", w.zk.Addr())
	w.lists("a")

	out, code := w.run("maint", service, "-c", in.file, "--reason", "new disk", "--for", "2h", "--wait")
	require.Equal(t, 0, code, out)
	require.Contains(t, out, "user-api is in maintenance until 20")
	listed, err := w.registered()
	require.NoError(t, err)
	require.Empty(t, listed, "--wait waits")
	out, code = w.run("maint", "--list", "-c", in.file)
	require.Equal(t, 0, code, out)
	require.Regexp(t, `(?m)^user-api +\d+m?s +in 1h59m +\w+ +new disk$`, out)
	require.Regexp(t, `maintenance is asked for.*author=\w+.*reason="new disk" service=user-api`, in.registrar.Log())

	require.NoError(t, in.registrar.Stop())
	w.startRegistrar(in)
	w.eventually("it is in maintenance after the restart", func() error {
		out, code := w.run("maint", "--list", "-c", in.file, "-o", "json")
		var all []control.Maintenance
		if code == 0 {
			require.NoError(t, json.Unmarshal([]byte(out), &all), out)
		}
		if len(all) != 1 || all[0].Reason != "new disk" {
			return errors.New(out)
		}
		return nil
	})
	listed, err = w.registered()
	require.NoError(t, err)
	require.Empty(t, listed)

	out, code = w.run("enable", service, "-c", in.file)
	require.Equal(t, 0, code, out)
	w.lists("a")
	out, code = w.run("enable", service, "-c", in.file)
	require.Equal(t, 0, code, "again is no error: %s", out)

	// A time that is over ends it.
	out, code = w.run("maint", service, "-c", in.file, "--for", "1s", "--wait")
	require.Equal(t, 0, code, out)
	w.lists("a")
	require.Contains(t, in.registrar.Log(), "maintenance has ended")
}

// TestMaintenanceInBothRoles: the agent's process takes orders for its registrar, and its file names the socket.
func TestMaintenanceInBothRoles(t *testing.T) {
	w, _ := bothRoles(t)
	w.startAgent()
	w.converges("own")
	out, code := w.run("maint", service, "-c", w.agentFile)
	require.Equal(t, 0, code, out)
	require.Contains(t, out, "until myelin enable user-api")
	w.lists()
	out, code = w.run("enable", service, "--socket", filepath.Join(w.dir, "registrar-own.sock"))
	require.Equal(t, 0, code, out)
	w.converges("own")
}

// TestServiceReportsItself: a service that the registrar runs tells how it is, and finds the way by its environment.
func TestServiceReportsItself(t *testing.T) {
	w := newWorld(t)
	c := w.wrap("a", "", noDrain)
	w.write(c.file, strings.Replace(read(t, c.file), `checks = [{ type = "http", uri = "/health", timeout = "2s" }]`,
		`checks = [{ type = "ttl", name = "own", ttl = "1h" }]`, 1))
	p, err := clitest.Start(w.dir, "reporter", nil, binary, "registrar", "-c", c.file, "--", "sh", "-c",
		binary+` report user-api pass; exec sleep 1000`)
	require.NoError(t, err)
	t.Cleanup(p.Kill)
	c.Process = p
	w.lists("a")
	out, code := w.run("report", service, "own", "fail", "the", "disk", "is", "full", "-c", c.file)
	require.Equal(t, 0, code, out)
	w.lists()
	require.Contains(t, p.Log(), "the disk is full")
	out, code = w.run("report", service, "other", "pass", "-c", c.file)
	require.Equal(t, 1, code, out)
	require.Contains(t, out, `it has no ttl check "other": say one of own`)
	require.NoError(t, p.Signal(syscall.SIGTERM))
	code, err = p.Wait(patience)
	require.NoError(t, err)
	require.Equal(t, 128+int(syscall.SIGTERM), code, "as the signal ended it")
}

// TestOrdersRefused: an order that cannot be carried out says why, and what to do.
func TestOrdersRefused(t *testing.T) {
	w := newWorld(t)
	in := w.startInstance("a", w.zk.Addr())
	w.lists("a")
	socket := filepath.Join(w.dir, "registrar-a.sock")
	for _, tc := range []struct {
		name string
		code int
		args []string
		says string
	}{
		{"near match", 1, []string{"maint", "user-ap", "-c", in.file}, "did you mean user-api?"},
		{"near match of enable", 1, []string{"enable", "user-ap", "-c", in.file}, "did you mean user-api?"},
		{"fleet", 1, []string{"maint", service, "10.0.0.1:80", "-c", in.file}, "user-api has no instance at 10.0.0.1:80"},
		{"fleet by enable", 2, []string{"enable", service, "10.0.0.1:80"}, "which ZooKeeper?"},
		{"fleet's flag", 2, []string{"maint", service, "--force", "-c", in.file}, "--force belongs to a target of the whole fleet"},
		{"this host's flag", 2, []string{"maint", service, "10.0.0.1:80", "--socket", socket}, "--socket is about the registrar on this host"},
		{"no service", 2, []string{"maint", "-c", in.file}, "write a service, or --list"},
		{"both", 2, []string{"maint", service, "--list", "-c", in.file}, "write a service, or --list"},
		{"no time", 2, []string{"maint", service, "--for", "0s", "-c", in.file}, "--for 0s: write a duration longer than 0"},
		{"no socket", 1, []string{"maint", service, "--socket", w.dir + "/none.sock"}, "there is no such socket; is the registrar running"},
		{"no status", 2, []string{"report", service, "good", "-c", in.file}, "write SERVICE [CHECK] and then pass, warn or fail"},
		{"no ttl check", 1, []string{"report", service, "pass", "-c", in.file}, "no such service has a ttl check"},
	} {
		t.Run(tc.name, func(t *testing.T) {
			out, code := w.run(tc.args...)
			require.Equal(t, tc.code, code, out)
			require.Contains(t, out, tc.says)
		})
	}
	w.lists("a")

	t.Run("no permission", func(t *testing.T) {
		cmd := exec.Command(binary, "maint", service, "--socket", socket)
		if os.Getuid() == 0 { // somebody else, who may come as far as the socket
			cmd.SysProcAttr = &syscall.SysProcAttr{Credential: &syscall.Credential{Uid: 65534, Gid: 65534}}
			for _, dir := range []string{w.dir, filepath.Dir(binary)} {
				require.NoError(t, os.Chmod(dir, 0o755))
			}
		} else {
			require.NoError(t, os.Chmod(socket, 0))
		}
		out, err := cmd.CombinedOutput()
		require.Error(t, err)
		require.Contains(t, string(out), "no permission: the socket is for user ")
		w.lists("a")
	})

	require.NoError(t, in.registrar.Stop())
	require.NoFileExists(t, socket)
	w.write(in.file, "control_socket = \"off\"\n"+read(t, in.file))
	out, code := w.run("maint", service, "-c", in.file)
	require.Equal(t, 1, code, out)
	require.Contains(t, out, in.file+": control_socket is off, so the registrar cannot be asked")
}

// TestControlSocketIsTaken: a registrar that names its socket does not run without it, and touches nothing; one that
// does not name it gets it when the other one has ended.
func TestControlSocketIsTaken(t *testing.T) {
	w := newWorld(t)
	a := w.startInstance("a", w.zk.Addr())
	w.lists("a")
	socket := filepath.Join(w.dir, "registrar-a.sock")
	had := fmt.Sprintf("%s: another process (pid %d, config %s) has it; stop that one", socket, a.registrar.Pid(), a.file)

	b := w.wrap("b", fmt.Sprintf("control_socket = %q", socket), noDrain)
	out, code := w.run("registrar", "-c", b.file, "--", "echo", "the service runs")
	require.Equal(t, 1, code, out)
	require.Contains(t, out, had)
	require.NotContains(t, out, "the service runs")

	// The same instance id, for another service of the host: its socket has the same name.
	w.write(b.file, strings.Replace(strings.Replace(read(t, b.file), fmt.Sprintf("control_socket = %q", socket), "", 1), `instance_id = "b"`, `instance_id = "a"`, 1))
	w.write(b.file, strings.Replace(read(t, b.file), servicePath, "/services/other", 1))
	b.start()
	b.says("service is registered")
	b.inOrder(had, "service is registered")
	require.NoError(t, a.registrar.Stop())
	b.says("the control socket is there")
	out, code = w.run("maint", "--list", "--socket", socket)
	require.Equal(t, 0, code, out)

	// One that was killed leaves a socket that nobody listens at.
	b.end()
	conn, err := net.Dial("unix", socket)
	require.ErrorIs(t, err, syscall.ECONNREFUSED, conn)
	b.start()
	w.eventually("it answers", func() error {
		out, code := w.run("maint", "--list", "--socket", socket)
		if code != 0 {
			return errors.New(out)
		}
		return nil
	})
	b.says("service: begins")
	b.says("service is up") // it catches signals by now
	require.NoError(t, b.Signal(syscall.SIGTERM))
	b.exits(7)
	require.NotContains(t, b.Log(), "there is no control socket")
}
