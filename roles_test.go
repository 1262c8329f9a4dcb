package main_test

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"path/filepath"
	"regexp"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/myelin-sd/myelin/cli/clitest"
	"github.com/myelin-sd/myelin/discovery"
	"github.com/myelin-sd/myelin/discovery/zookeeper"
)

// bothRoles is a world whose agent is the registrar of a service on this host too. It returns the registrar's file.
func bothRoles(t *testing.T) (w *world, registrar string) {
	t.Helper()
	w = newWorld(t, func(text string) string { return "registrar = \"own.toml\"\n" + text })
	s, err := clitest.StartService(w.dir, "own", freePort(t))
	require.NoError(t, err)
	t.Cleanup(s.Kill)
	registrar = filepath.Join(w.dir, "own.toml")
	w.write(registrar, fmt.Sprintf(`
instance_id = "own"

[zookeeper]
hosts = [%q]
session_timeout = "5s"

[services.user-api]
host = "127.0.0.1"
port = %d
zk_path = "/services/user-api"
check_interval = "100ms"
weight = 10
drain = 0
checks = [{ type = "http", uri = "/health", timeout = "2s", rise = 1, fall = 2 }]
`, w.zk.Addr(), s.Port))
	return w, registrar
}

// connections are the sessions that ZooKeeper has connections of, without the test's own.
func (w *world) connections() ([]string, error) {
	answer, err := w.zk.Ask("cons")
	if err != nil {
		return nil, err
	}
	var ids []string
	for _, m := range regexp.MustCompile(`sid=(0x[0-9a-f]+)`).FindAllStringSubmatch(answer, -1) {
		if m[1] != w.session.Status().Session {
			ids = append(ids, m[1])
		}
	}
	return ids, nil
}

// TestBothRolesOverOneSession: a process that registers and discovers is one client of ZooKeeper, and shows both roles.
func TestBothRolesOverOneSession(t *testing.T) {
	w, _ := bothRoles(t)
	w.startAgent()
	w.converges("own")

	ids, err := w.connections()
	require.NoError(t, err)
	require.Len(t, ids, 1, "one session for both roles")
	ctx, cancel := context.WithTimeout(context.Background(), patience)
	defer cancel()
	snap, err := w.session.Snapshot(ctx, service, servicePath)
	require.NoError(t, err)
	require.Len(t, snap.Instances, 1)
	st := w.status()
	require.Len(t, st.ZooKeeper, 1)
	require.Equal(t, st.ZooKeeper[0].Session, ids[0])
	require.Equal(t, ids[0], fmt.Sprintf("0x%x", uint64(snap.Instances[0].Session)), "the registration belongs to the agent's session")
	require.Equal(t, "5s", st.ZooKeeper[0].Timeout, "the registrar's timeout counts")

	require.Len(t, st.Registrations, 1)
	require.True(t, st.Registrations[0].Registered)
	out, code := w.run("status", "-c", w.agentFile)
	require.Zero(t, code, out)
	require.Regexp(t, `(?m)^user-api +/services/user-api +up .* own_\d+`, out)
	resp, err := http.Get(fmt.Sprintf("http://127.0.0.1:%d/metrics", w.adminPort))
	require.NoError(t, err)
	defer resp.Body.Close()
	metrics, err := io.ReadAll(resp.Body)
	require.NoError(t, err)
	require.Contains(t, string(metrics), `myelin_registrar_registered{service="user-api"} 1`)
	require.Contains(t, string(metrics), `myelin_discovery_instances{service="user-api",state="active"} 1`)

	// A stop withdraws, and says goodbye to ZooKeeper.
	require.NoError(t, w.agent.Stop())
	listed, err := w.registered()
	require.NoError(t, err)
	require.Empty(t, listed, "withdrawn before the process ended")
	w.eventually("the session has ended", func() error {
		ids, err := w.connections()
		if err == nil && len(ids) > 0 {
			err = fmt.Errorf("%v are there", ids)
		}
		return err
	})
}

// TestBothRolesStopInOrder: while the registrar tries to withdraw, which a ZooKeeper that does not answer makes long, the
// agent goes on.
func TestBothRolesStopInOrder(t *testing.T) {
	w, _ := bothRoles(t)
	w.startAgent()
	w.converges("own")
	require.NoError(t, w.zk.Pause())
	defer w.zk.Resume()
	require.NoError(t, w.agent.Stop())
	log := w.agent.Log()
	registrar, agent := strings.Index(log, "registrar stopped"), strings.Index(log, "agent stopped")
	require.True(t, 0 < registrar && registrar < agent, log)
}

// TestSignalsDuringStop: what comes while services are being withdrawn, which a ZooKeeper that does not answer makes
// long, kills nobody.
func TestSignalsDuringStop(t *testing.T) {
	w, _ := bothRoles(t)
	in := w.startInstance("a", w.zk.Addr())
	w.startAgent()
	w.converges("a", "own")
	require.NoError(t, w.zk.Pause())
	defer w.zk.Resume()
	for _, p := range []*clitest.Process{in.registrar, w.agent} {
		require.NoError(t, p.Signal(syscall.SIGTERM))
		end := time.Now().Add(patience)
		for p.Running() && time.Now().Before(end) {
			require.NoError(t, p.Signal(syscall.SIGHUP))
			_, _ = p.Wait(10 * time.Millisecond)
			require.NoError(t, p.Signal(syscall.SIGUSR2))
		}
		code, err := p.Wait(patience)
		require.NoError(t, err)
		require.Zero(t, code, p.Tail(5))
	}
}

// TestBothRolesReread: SIGHUP reads both files; a bad one leaves its role as it was, and only its role.
func TestBothRolesReread(t *testing.T) {
	w, registrar := bothRoles(t)
	w.startAgent()
	w.converges("own")
	good := map[string]string{w.agentFile: read(t, w.agentFile), registrar: read(t, registrar)}
	refused := func(role string) error {
		if !regexp.MustCompile(`the old configuration stays in force.* component=` + role + ` `).MatchString(w.agent.Log()) {
			return errors.New(w.agent.Tail(5))
		}
		return nil
	}

	// The registrar's file is bad, and the agent's has a new service.
	w.write(registrar, strings.Replace(good[registrar], "port =", "prot =", 1))
	w.write(w.agentFile, good[w.agentFile]+"\n[services.other]\ndiscovery = { method = \"zookeeper\", path = \"/services/other\" }\n")
	out, code := w.run("check", "-c", w.agentFile)
	require.Equal(t, 2, code, "check looks at both: %s", out)
	require.Contains(t, out, "own.toml:8: services.user-api.port: is missing")
	require.NoError(t, w.agent.Signal(syscall.SIGHUP))
	w.eventually("the registrar's file is refused", func() error { return refused("registrar") })
	require.Error(t, refused("agent"))
	require.Len(t, w.status().Services, 2)
	require.True(t, w.status().Registrations[0].Registered)
	w.converges("own")

	// The agent's file is bad, and the registrar's has a new weight.
	w.write(registrar, strings.Replace(good[registrar], "weight = 10", "weight = 30", 1))
	w.write(w.agentFile, strings.Replace(good[w.agentFile], "discovery =", "dicsovery =", 1))
	require.NoError(t, w.agent.Signal(syscall.SIGHUP))
	w.eventually("the agent's file is refused", func() error { return refused("agent") })
	w.eventually("the new weight", func() error {
		servers, err := w.servers()
		if err == nil && (len(servers) != 1 || servers[0].Weight != 30) {
			err = fmt.Errorf("%v", servers)
		}
		return err
	})
	require.Len(t, w.status().Services, 2, "the agent is what it was")
	out, code = w.run("check", "-c", registrar)
	require.Equal(t, 0, code, out)

	// Both are good again, and the registrar's has moved.
	moved := filepath.Join(w.dir, "moved.toml")
	w.write(moved, strings.Replace(good[registrar], "weight = 10", "weight = 40", 1))
	w.write(w.agentFile, strings.Replace(good[w.agentFile], "own.toml", "moved.toml", 1))
	out, code = w.run("check", "-c", w.agentFile)
	require.Equal(t, 0, code, out)
	require.Contains(t, out, "moved.toml: registrar file, 1 service, usable")
	require.NoError(t, w.agent.Signal(syscall.SIGHUP))
	w.eventually("the other file's weight", func() error {
		servers, err := w.servers()
		if err == nil && (len(servers) != 1 || servers[0].Weight != 40) {
			err = fmt.Errorf("%v", servers)
		}
		return err
	})
	require.Len(t, w.status().Services, 1)

	// What only a start reads is not taken in silence.
	w.write(moved, "heartbeat_path = \"beat\"\n"+strings.Replace(read(t, moved), `"5s"`, `"7s"`, 1)+"\n[log]\nlevel = \"debug\"\n")
	w.write(w.agentFile, regexp.MustCompile(`listen *= *"[^"]*"`).ReplaceAllString(read(t, w.agentFile), `listen = "off"`)+"\n[log]\nlevel = \"debug\"\n")
	require.NoError(t, w.agent.Signal(syscall.SIGHUP))
	w.eventually("what takes a restart is told", func() error {
		for _, keys := range []string{`component=agent reason="admin.listen, log changed"`, `component=registrar reason="heartbeat_path, zookeeper.session_timeout changed"`} {
			if !strings.Contains(w.agent.Log(), keys) {
				return errors.New(w.agent.Tail(5))
			}
		}
		return nil
	})

	// Without the key the registrations stay until somebody restarts the agent, and that is said.
	w.write(w.agentFile, strings.Replace(good[w.agentFile], "registrar = \"own.toml\"\n", "", 1))
	require.NoError(t, w.agent.Signal(syscall.SIGHUP))
	w.eventually("the missing key is told", func() error {
		if !strings.Contains(w.agent.Log(), "its services stay registered until the agent is restarted") {
			return errors.New(w.agent.Tail(5))
		}
		return nil
	})
	w.converges("own")
}

// TestOnceRegistersNothing: what converges and leaves has nothing to offer.
func TestOnceRegistersNothing(t *testing.T) {
	w, registrar := bothRoles(t)
	w.publish("a", backendServer(t, "a"))
	out, code := w.run("agent", "-c", w.agentFile, "--once", "--timeout", "20s")
	require.Equal(t, 0, code, out)
	listed, err := w.registered()
	require.NoError(t, err)
	require.Equal(t, []string{"a"}, listed)
	require.NotContains(t, out, "registrar starts")

	// A registrar file that is no good stops an agent that would have to use it.
	w.write(registrar, "instance_id = \"own\"\ncolour =\n")
	out, code = w.run("agent", "-c", w.agentFile)
	require.Equal(t, 2, code, out)
	require.Contains(t, out, "own.toml:2: ")
}

// unseen watches the service from the test's own session. The function that it returns checks that from then on the
// list was the same at every moment: not one event.
func (w *world) unseen() func() {
	w.t.Helper()
	ctx, cancel := context.WithCancel(context.Background())
	snapshots := make(chan discovery.Snapshot)
	var seen []discovery.Snapshot
	first, done := make(chan struct{}), make(chan struct{})
	source := w.session.Source(service, servicePath, zookeeper.SourceOptions{})
	go source.Run(ctx, snapshots)
	go func() {
		defer close(done)
		for {
			select {
			case s := <-snapshots:
				if seen = append(seen, s); len(seen) == 1 {
					close(first)
				}
			case <-ctx.Done():
				return
			}
		}
	}()
	w.t.Cleanup(cancel)
	select {
	case <-first:
	case <-time.After(patience):
		w.t.Fatal("nothing is listed")
	}
	return func() {
		w.t.Helper()
		cancel()
		<-done
		require.Len(w.t, seen, 1, "the restart was seen")
	}
}

// TestRestartNobodyNotices: after SIGUSR2 the next process takes the registration over, in either kind of process.
func TestRestartNobodyNotices(t *testing.T) {
	t.Run("registrar", func(t *testing.T) {
		w := newWorld(t)
		in := w.startInstance("a", w.zk.Addr())
		w.startAgent()
		w.converges("a")
		unchanged, same := w.pinned(), w.unseen()

		require.NoError(t, in.registrar.Signal(syscall.SIGUSR2))
		code, err := in.registrar.Wait(patience)
		require.NoError(t, err)
		require.Zero(t, code, in.registrar.Log())
		w.startRegistrar(in)
		w.takenOver(in.registrar)
		w.converges("a")

		// Another stop is one that withdraws.
		same()
		unchanged()
		require.NoError(t, in.registrar.Stop())
		listed, err := w.registered()
		require.NoError(t, err)
		require.Empty(t, listed)
	})
	t.Run("both roles", func(t *testing.T) {
		w, registrar := bothRoles(t)
		w.startAgent()
		w.converges("own")
		unchanged, same := w.pinned(), w.unseen()
		before := w.status().ZooKeeper[0].Session

		require.NoError(t, w.agent.Signal(syscall.SIGUSR2))
		code, err := w.agent.Wait(patience)
		require.NoError(t, err)
		require.Zero(t, code, w.agent.Log())
		w.startAgent()
		w.takenOver(w.agent)
		w.converges("own")
		require.Equal(t, before, w.status().ZooKeeper[0].Session)
		same()
		unchanged()

		// What the next process does not have any more is withdrawn by it.
		require.NoError(t, w.agent.Signal(syscall.SIGUSR2))
		_, err = w.agent.Wait(patience)
		require.NoError(t, err)
		w.write(registrar, strings.Replace(read(t, registrar), `zk_path = "/services/user-api"`, `zk_path = "/services/moved"`, 1))
		w.startAgent()
		w.eventually("the old registration is gone", func() error {
			listed, err := w.registered()
			if err == nil && len(listed) > 0 {
				err = fmt.Errorf("%v", listed)
			}
			return err
		})
		require.Equal(t, before, w.status().ZooKeeper[0].Session)
	})
}

// takenOver waits until a process has its registration confirmed in the session of the one before.
func (w *world) takenOver(p *clitest.Process) {
	w.t.Helper()
	w.eventually("the session is taken up", func() error {
		for _, what := range []string{"the session of the process before is taken up", "service is registered"} {
			if !strings.Contains(p.Log(), what) {
				return errors.New(p.Tail(5))
			}
		}
		return nil
	})
}
