package main_test

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/myelin-sd/myelin/cli/clitest"
	"github.com/myelin-sd/myelin/haproxy/haproxytest"
)

// operated is a world whose HAProxy an operator runs: the agent has a socket and a reload command.
func operated(t *testing.T, keys string) (*world, *haproxytest.HAProxy) {
	t.Helper()
	haproxytest.Require(t)
	w := newWorld(t, func(text string) string {
		dir := strings.Split(strings.Split(text, `state_dir = "`)[1], `"`)[0]
		return strings.Replace(text, "[services.user-api]", fmt.Sprintf(`[haproxy]
socket_file_path = %q
config_file_path = %q
reload_command = "echo reload >> %[3]s/reloads; kill -USR2 $(cat %[3]s/haproxy.pid)"
global = ["stats socket %[1]s mode 600 level admin expose-fd listeners", "maxconn 500"]
%[4]s
[services.user-api]`, haproxytest.Socket(dir), filepath.Join(dir, "haproxy.cfg"), dir, keys), 1)
	})
	// What the operator starts HAProxy with is what the agent would write.
	out, code := w.run("render", "-c", w.agentFile, "--timeout", "2s")
	require.Equal(t, 0, code, out)
	w.write(filepath.Join(w.dir, "haproxy.cfg"), out[strings.Index(out, "# Written"):])
	h, err := haproxytest.Start(w.dir, "", haproxytest.Options{Files: []string{filepath.Join(w.dir, "haproxy.cfg")}})
	require.NoError(t, err)
	t.Cleanup(func() { h.Stop() })
	w.write(filepath.Join(w.dir, "haproxy.pid"), fmt.Sprint(h.MasterPid()))
	w.socket = h.Socket
	return w, h
}

func (w *world) reloadsAsked() int {
	text, _ := os.ReadFile(filepath.Join(w.dir, "reloads"))
	return strings.Count(string(text), "reload")
}

func TestOperatorsHAProxy(t *testing.T) {
	w, h := operated(t, "")
	w.publish("a", backendServer(t, "a"))
	w.startAgent()
	w.converges("a")
	unchanged := w.pinned()
	leave := w.publish("b", backendServer(t, "b"))
	w.converges("a", "b")
	leave()
	w.converges("a")
	unchanged()
	require.Zero(t, w.reloadsAsked(), "a HAProxy that runs with what would be written is not reloaded")

	// Restarted by its operator: it has the servers from the file, and the agent finds it.
	w.fileHolds("a_")
	before, err := w.pid()
	require.NoError(t, err)
	require.NoError(t, h.Restart())
	w.write(filepath.Join(w.dir, "haproxy.pid"), fmt.Sprint(h.MasterPid()))
	w.otherWorker(before)
	w.converges("a")
	w.publish("c", backendServer(t, "c"))
	w.converges("a", "c")

	// A new line in the file's static part: one reload, by the operator's command.
	text, err := os.ReadFile(w.agentFile)
	require.NoError(t, err)
	w.write(w.agentFile, strings.Replace(string(text), "maxconn 500", "maxconn 600", 1))
	before, err = w.pid()
	require.NoError(t, err)
	require.NoError(t, w.agent.Signal(syscall.SIGHUP))
	w.otherWorker(before)
	w.converges("a", "c")
	require.Equal(t, 1, w.reloadsAsked())

	// The agent stops; nothing happens to HAProxy.
	require.NoError(t, w.agent.Stop())
	require.NoError(t, w.inRotation([]string{"a", "c"}))
}

// TestWithoutTheSocket: do_socket = false leaves membership to the file and reloads, as in Synapse.
func TestWithoutTheSocket(t *testing.T) {
	w, _ := operated(t, "do_socket = false\nrestart_interval = \"1s\"")
	w.publish("a", backendServer(t, "a"))
	w.startAgent()
	w.converges("a")
	w.publish("b", backendServer(t, "b"))
	w.converges("a", "b")
	w.eventually("reloads carried it", func() error {
		if n := w.reloadsAsked(); n < 2 {
			return fmt.Errorf("%d reloads", n)
		}
		return nil
	})
}

// TestWithoutReloads: do_reloads = false never reloads; what a reload would be for is shown.
func TestWithoutReloads(t *testing.T) {
	w, _ := operated(t, "do_reloads = false")
	w.publish("a", backendServer(t, "a"))
	w.startAgent()
	w.converges("a")
	text, err := os.ReadFile(w.agentFile)
	require.NoError(t, err)
	w.write(w.agentFile, strings.Replace(string(text), "maxconn 500", "maxconn 600", 1))
	require.NoError(t, w.agent.Signal(syscall.SIGHUP))
	w.eventually("the need shows", func() error {
		if w.status().File.Pending == "" {
			return errors.New("nothing is pending")
		}
		return nil
	})
	require.Zero(t, w.reloadsAsked())
	w.publish("b", backendServer(t, "b"))
	w.converges("a", "b")
}

// TestCheckCommand: with do_checks a file that the operator's command refuses does not come into force.
func TestCheckCommand(t *testing.T) {
	w, _ := operated(t, "")
	text, err := os.ReadFile(w.agentFile)
	require.NoError(t, err)
	w.write(w.agentFile, strings.Replace(string(text), "[haproxy]", fmt.Sprintf(
		"[haproxy]\ndo_checks = true\ncheck_command = \"test ! -e %[1]s/refuse && haproxy -c -f %[1]s/haproxy.cfg.tmp\"", w.dir), 1))
	require.NoError(t, os.Setenv("PATH", os.Getenv("PATH")+":/usr/sbin"))
	w.publish("a", backendServer(t, "a"))
	w.startAgent()
	w.converges("a")
	w.fileHolds("a_")
	w.write(filepath.Join(w.dir, "refuse"), "")
	w.publish("b", backendServer(t, "b"))
	w.converges("a", "b")
	w.eventually("the refusal shows", func() error {
		if !strings.Contains(w.status().File.Error, "check_command") {
			return errors.New(w.status().File.Error)
		}
		return nil
	})
	w.fileHolds("a_")
	require.NoError(t, os.Remove(filepath.Join(w.dir, "refuse")))
	w.fileHolds("a_", "b_")
}

// TestSameNameOnAnotherPort: an instance that returns on another port gets its traffic there.
func TestSameNameOnAnotherPort(t *testing.T) {
	w := newWorld(t)
	leave := w.publish("a", backendServer(t, "first"))
	w.publish("b", backendServer(t, "b"))
	w.startAgent()
	w.converges("a", "b")
	unchanged := w.pinned()
	leave()
	w.publish("a", backendServer(t, "second"))
	w.converges("a", "b")
	w.eventually("only the second answers", func() error {
		seen := map[string]bool{}
		for range 10 {
			body, err := w.get()
			if err != nil {
				return err
			}
			seen[body] = true
		}
		if seen["first"] || !seen["second"] || !seen["b"] {
			return fmt.Errorf("answers from %v", seen)
		}
		return nil
	})
	unchanged()
}

// TestSteadyChangeDoesNotStarve: changes that never pause are applied while they go on.
func TestSteadyChangeDoesNotStarve(t *testing.T) {
	w := newWorld(t)
	w.publish("a", backendServer(t, "a"))
	w.startAgent()
	w.converges("a")
	unchanged := w.pinned()
	port := backendServer(t, "n")
	stop := make(chan struct{})
	done := make(chan struct{})
	go func() {
		defer close(done)
		for i := 0; ; i++ {
			select {
			case <-stop:
				return
			default:
				w.publish(fmt.Sprintf("n%04d", i), port)()
			}
		}
	}()
	w.publish("b", backendServer(t, "b"))
	w.eventually("b is in rotation while others come and go", func() error {
		servers, err := w.servers()
		if err != nil {
			return err
		}
		for _, s := range servers {
			if strings.HasPrefix(s.Name, "b_") && s.Admin.String() == "ready" {
				return nil
			}
		}
		return errors.New("b is not in rotation")
	})
	close(stop)
	<-done
	w.converges("a", "b")
	unchanged()
}

// TestFiveHundredAtOnce: none of a burst is lost, in either direction.
func TestFiveHundredAtOnce(t *testing.T) {
	w := newWorld(t)
	w.publish("first", backendServer(t, "first"))
	w.startAgent()
	w.converges("first")
	unchanged := w.pinned()
	port := backendServer(t, "many")
	names := []string{"first"}
	var leaves []func()
	for i := range 500 {
		names = append(names, fmt.Sprintf("n%03d", i))
		leaves = append(leaves, w.publish(names[i+1], port))
	}
	w.converges(names...)
	for _, leave := range leaves {
		leave()
	}
	w.converges("first")
	unchanged()
}

// TestOneBadEntryCostsOneRegistration: rubbish in one service is nothing to another.
func TestOneBadEntryCostsOneRegistration(t *testing.T) {
	otherPort := freePort(t)
	w := newWorld(t, func(text string) string {
		return text + fmt.Sprintf("\n[services.other]\ndiscovery = { method = \"zookeeper\", path = \"/services/other\" }\nhaproxy = { port = %d }\n", otherPort)
	})
	w.publish("a", backendServer(t, "a"))
	// An option that is not allowed as it is, and one that nobody should accept.
	w.plant("refused-", []byte(`{"host":"127.0.0.1","port":81,"name":"refused","haproxy_server_options":"backup nonsense"}`))
	w.plant("hostile-", []byte(`{"host":"127.0.0.1","port":82,"name":"hostile","haproxy_server_options":"check; shutdown sessions server user-api/a"}`))
	w.startAgent()
	w.othersGoOn()
	w.publishAt("/services/other", "o", backendServer(t, "o"))
	w.eventually("the other service is served", func() error {
		answer, err := ask(otherPort)
		if err == nil && answer != "o" {
			err = fmt.Errorf("%q answered", answer)
		}
		return err
	})
}

// othersGoOn: beside two registrations that cannot be used, "a" serves, another one joins and leaves, both bad ones are
// shown, and the file has the good one only.
func (w *world) othersGoOn() {
	w.t.Helper()
	w.eventually("a is in rotation", func() error { return w.inRotation([]string{"a"}) })
	leave := w.publish("b", backendServer(w.t, "b"))
	w.eventually("b is in rotation", func() error { return w.inRotation([]string{"a", "b"}) })
	leave()
	w.eventually("b has left", func() error { return w.inRotation([]string{"a"}) })
	w.eventually("both are shown", func() error {
		if n := len(w.status().Services[0].Rejected); n != 2 {
			return fmt.Errorf("%d rejected: %v", n, w.status().Services[0].Rejected)
		}
		return nil
	})
	w.fileHolds("a_")
}

// TestRefusedOptions: options that only HAProxy can judge cost the registration that has them, and neither HAProxy's
// start nor what the others do.
func TestRefusedOptions(t *testing.T) {
	w := newWorld(t, func(text string) string {
		return strings.Replace(strings.Replace(text, "mode http", "mode tcp", 1),
			"[services.user-api]", "[haproxy]\nregistry_options = [\"proto\", \"backup\"]\n[services.user-api]", 1)
	})
	w.publish("a", backendServer(t, "a"))
	w.plant("h2-", []byte(`{"host":"127.0.0.1","port":81,"name":"h2","haproxy_server_options":"proto h2"}`))
	w.plant("many-", []byte(`{"host":"127.0.0.1","port":82,"name":"many","haproxy_server_options":"`+strings.Repeat("backup ", 140)+`"}`))
	w.startAgent()
	w.othersGoOn()
	before, err := w.pid()
	require.NoError(t, err)
	require.NoError(t, syscall.Kill(before, syscall.SIGKILL))
	w.otherWorker(before)
	w.eventually("a is in rotation again", func() error { return w.inRotation([]string{"a"}) })
}

// TestReloadsDuringChurn: every reload in a row leaves the current servers in place, also one in the middle of changes.
func TestReloadsDuringChurn(t *testing.T) {
	w := newWorld(t)
	w.publish("a", backendServer(t, "a"))
	w.startAgent()
	w.converges("a")
	w.fileHolds("a_") // it follows the socket, after a check by HAProxy: a reload before that finds nobody
	load := clitest.StartLoad(w.url(), 100)
	port := backendServer(t, "n")
	names := []string{"a"}
	for i := range 3 {
		before, err := w.pid()
		require.NoError(t, err)
		for j := range 10 {
			name := fmt.Sprintf("n%d%d", i, j)
			names = append(names, name)
			w.publish(name, port)
			if j == 5 {
				w.reloadByHand()
			}
			time.Sleep(5 * time.Millisecond)
		}
		// A reload on top of one that is under way costs connections by itself (3.1 to 3.4): the worker that is not yet
		// there has a listener of its own, and ends with what waits in it.
		w.otherWorker(before)
		w.converges(names...)
	}
	w.endLoad(load)
}

// TestSeveralSockets: each HAProxy of the list is driven by itself, and one that is away is no harm to the other.
func TestSeveralSockets(t *testing.T) {
	haproxytest.Require(t)
	cfg := func() string {
		return fmt.Sprintf("defaults\n\tmode http\n\ttimeout connect 1s\n\ttimeout client 5s\n\ttimeout server 5s\nfrontend f\n\tbind 127.0.0.1:%d\n\tdefault_backend user-api\nbackend user-api\n\tbalance roundrobin\n", freePort(t))
	}
	one, two := haproxytest.New(t, cfg()), haproxytest.New(t, cfg())
	w := newWorld(t, func(text string) string {
		return strings.Replace(text, "[services.user-api]", fmt.Sprintf(
			"[haproxy]\nsocket_file_path = [%q, %q]\ndo_writes = false\ndo_reloads = false\n[services.user-api]", one.Socket, two.Socket), 1)
	})
	both := func(names ...string) {
		t.Helper()
		for _, h := range []*haproxytest.HAProxy{one, two} {
			w.socket = h.Socket
			w.converges(names...)
		}
	}
	w.socket = one.Socket
	w.publish("a", backendServer(t, "a"))
	w.startAgent()
	both("a")
	require.NoError(t, two.Stop())
	leave := w.publish("b", backendServer(t, "b"))
	w.socket = one.Socket
	w.converges("a", "b")
	require.NoError(t, two.Restart())
	both("a", "b")
	leave()
	both("a")
}
