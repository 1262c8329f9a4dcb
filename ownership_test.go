package main_test

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/myelin-sd/myelin/cli/clitest"
	"github.com/myelin-sd/myelin/haproxy/haproxytest"
)

// attached is a world whose HAProxy has a file that others write: it has the backend, and servers of its own.
func attached(t *testing.T, servers ...string) (*world, *haproxytest.HAProxy) {
	t.Helper()
	haproxytest.Require(t)

	w := newWorld(t, func(text string) string {
		dir := strings.Split(strings.Split(text, `state_dir = "`)[1], `"`)[0]
		return strings.Replace(text, "[services.user-api]", fmt.Sprintf(
			"[haproxy]\nsocket_file_path = %q\ndo_writes = false\ndo_reloads = false\n[services.user-api]", haproxytest.Socket(dir)), 1)
	})
	h, err := haproxytest.Start(w.dir, w.puppet(servers...), haproxytest.Options{})
	require.NoError(t, err)
	t.Cleanup(func() { h.Stop() })
	w.socket = h.Socket
	return w, h
}

// puppet is a haproxy.cfg as people write it.
func (w *world) puppet(servers ...string) string {
	return fmt.Sprintf(`defaults
	mode http
	timeout connect 1s
	timeout client 5s
	timeout server 5s
	retries 3
	option redispatch
frontend web
	bind 127.0.0.1:%d
	default_backend user-api
backend user-api
	balance roundrobin
	%s
`, w.port, strings.Join(servers, "\n\t"))
}

// second is the file of another agent for the same HAProxy, whose socket it knows by another path.
func (w *world) second() string {
	w.t.Helper()
	alias, state := filepath.Join(w.dir, "alias"), filepath.Join(w.dir, "second")
	require.NoError(w.t, os.Symlink(w.dir, alias))
	text := read(w.t, w.agentFile)
	text = strings.Replace(text, fmt.Sprintf("state_dir = %q", w.dir), fmt.Sprintf("state_dir = %q", state), 1)
	text = strings.Replace(text, fmt.Sprint(w.adminPort), fmt.Sprint(freePort(w.t)), 1)
	text = strings.Replace(text, w.socket, filepath.Join(alias, filepath.Base(w.socket)), 1)
	file := filepath.Join(w.dir, "second.toml")
	w.write(file, text)
	return file
}

// TestTwoAgents: the second agent of a HAProxy refuses and says who is there; the moment the first one is gone, however
// it went, another may come.
func TestTwoAgents(t *testing.T) {
	w, _ := attached(t)
	w.publish("a", backendServer(t, "a"))
	w.startAgent()
	w.converges("a")
	second := w.second()
	for _, args := range [][]string{{"agent", "-c", second}, {"agent", "-c", second, "--once"}} {
		out, code := w.run(args...)
		require.Equal(t, 1, code, out)
		require.Contains(t, out, fmt.Sprintf("myelin: another myelin agent (pid %d, config %s) drives HAProxy at %s; stop it, or give this one another socket_file_path",
			w.agent.Pid(), w.agentFile, filepath.Join(w.dir, "alias", filepath.Base(w.socket))))
	}
	out, code := w.run("plan", "-c", second)
	require.Equal(t, 0, code, out)
	require.Contains(t, out, "nothing to do")

	// A reload that leads to a socket of another agent keeps what was.
	other, err := haproxytest.Start(haproxytest.TempDir(t), "backend user-api\n", haproxytest.Options{})
	require.NoError(t, err)
	t.Cleanup(func() { other.Stop() })
	third := filepath.Join(w.dir, "third.toml")
	text := strings.Replace(read(t, second), filepath.Join(w.dir, "alias", filepath.Base(w.socket)), other.Socket, 1)
	w.write(third, text)
	p, err := clitest.Start(w.dir, "third", nil, binary, "agent", "-c", third)
	require.NoError(t, err)
	t.Cleanup(func() { p.Stop() })
	first := read(t, w.agentFile)
	w.eventually("the third agent drives its HAProxy", func() error {
		if reply, err := other.Command("show servers state"); err != nil || !strings.Contains(reply, "a_127.0.0.1") {
			return errors.Join(err, errors.New(p.Tail(3)))
		}
		return nil
	})
	w.write(w.agentFile, strings.Replace(first, w.socket, other.Socket, 1))
	require.NoError(t, w.agent.Signal(syscall.SIGHUP))
	w.eventually("the files are refused", func() error {
		if !strings.Contains(w.agent.Log(), "the old configuration stays in force") {
			return errors.New(w.agent.Tail(3))
		}
		return nil
	})
	require.Contains(t, w.agent.Log(), fmt.Sprintf("(pid %d, config %s) drives HAProxy at %s", p.Pid(), third, other.Socket))
	w.publish("b", backendServer(t, "b"))
	w.converges("a", "b")

	// The third one lets go of its HAProxy by a reload: then the first one may have it, and leaves its own.
	w.write(third, strings.Replace(text, fmt.Sprintf("socket_file_path = %q", other.Socket), "do_socket = false", 1))
	require.NoError(t, p.Signal(syscall.SIGHUP))
	w.eventually("the third agent has read its file", func() error {
		if !strings.Contains(p.Log(), "the files were read again") {
			return errors.New(p.Tail(3))
		}
		return nil
	})
	require.NoError(t, w.agent.Signal(syscall.SIGHUP))
	w.eventually("the files are taken", func() error {
		if !strings.Contains(w.agent.Log(), "the files were read again") {
			return errors.New(w.agent.Tail(3))
		}
		return nil
	})
	out, code = w.run("agent", "-c", second, "--once")
	require.Equal(t, 0, code, out)

	// One that is killed leaves nothing that keeps the next one away.
	w.agent.Kill()
	out, code = w.run("agent", "-c", w.agentFile, "--once")
	require.Equal(t, 0, code, out)
}

// TestRestartThatOverlaps: an agent that is started before the last one has ended waits for that.
func TestRestartThatOverlaps(t *testing.T) {
	w, _ := attached(t)
	w.publish("a", backendServer(t, "a"))
	w.startAgent()
	w.converges("a")
	next, err := clitest.Start(w.dir, "next", nil, binary, "agent", "-c", w.second())
	require.NoError(t, err)
	t.Cleanup(func() { next.Stop() })
	w.eventually("the next one waits", func() error {
		if !strings.Contains(next.Log(), "another agent is there") {
			return errors.New(next.Tail(3))
		}
		return nil
	})
	require.NoError(t, w.agent.Signal(syscall.SIGUSR2))
	w.eventually("the next one serves", func() error {
		if !strings.Contains(next.Log(), "ready: everything wanted is applied") {
			return errors.New(next.Tail(3))
		}
		return nil
	})
	code, err := w.agent.Wait(patience)
	require.NoError(t, err)
	require.Zero(t, code)
}

// TestAttachedUnderTraffic: an agent beside a haproxy.cfg of Puppet's. Registrations come and go and Puppet changes the
// static part under us, while requests flow; what Puppet wrote stays as it was written, and no request fails.
func TestAttachedUnderTraffic(t *testing.T) {
	their := backendServer(t, "theirs")
	mine := []string{fmt.Sprintf("server web_127.0.0.1:%d 127.0.0.1:%d weight 3", their, their), "server spare 127.0.0.1:9 disabled"}
	w, h := attached(t, mine...)
	inRotation := func(names ...string) {
		t.Helper()
		w.eventually("in rotation with theirs: "+fmt.Sprint(names), func() error { return w.inRotation(append([]string{"web"}, names...)) })
	}
	w.publish("a", backendServer(t, "a"))
	w.startAgent()
	inRotation("a")
	load := clitest.StartLoad(w.url(), 100)
	leave := w.publish("b", backendServer(t, "b"))
	inRotation("a", "b")
	for i := range 4 {
		require.NoError(t, h.Configure(w.puppet(append(mine, fmt.Sprintf("fullconn %d", 100+i))...)))
		require.NoError(t, h.Reload())
		inRotation("a", "b")
	}
	leave()
	inRotation("a")
	// The same address under a name of Puppet's: nothing is missing.
	again := w.publish("twin", their)
	w.publish("c", backendServer(t, "c"))
	inRotation("a", "c")
	again()
	w.publish("d", backendServer(t, "d"))
	inRotation("a", "c", "d")
	servers, err := w.servers()
	require.NoError(t, err)
	for _, s := range servers {
		if strings.HasPrefix(s.Name, "web_") {
			require.Equal(t, 3, s.Weight)
		}
	}
	w.endLoad(load)
	require.Contains(t, load.Answers(), "b")
	require.NoError(t, w.agent.Stop())
	inRotation("a", "c", "d")
}

// TestReloadThroughTheMaster: an operator's HAProxy whose master's socket is known needs no reload_command; a static part
// that HAProxy refuses comes neither into the file nor into force, and the status has HAProxy's own words.
func TestReloadThroughTheMaster(t *testing.T) {
	w, h := operated(t, "")
	text := read(t, w.agentFile)
	i := strings.Index(text, "reload_command")
	text = text[:i] + fmt.Sprintf("master_socket_path = %q", h.MasterSocket) + text[i+strings.Index(text[i:], "\n"):]
	w.write(w.agentFile, text)
	w.publish("a", backendServer(t, "a"))
	w.startAgent()
	w.converges("a")
	w.pinned()()
	load := clitest.StartLoad(w.url(), 50)
	reread := func(line string) {
		t.Helper()
		w.write(w.agentFile, strings.Replace(text, `"maxconn 500"`, fmt.Sprintf("%q", line), 1))
		require.NoError(t, w.agent.Signal(syscall.SIGHUP))
	}

	before, err := w.pid()
	require.NoError(t, err)
	reread("maxconn 600")
	w.otherWorker(before)
	w.converges("a")
	w.agentIsReady()
	w.eventually("the reload is counted", func() error {
		if by := w.status().File.Reload.ByReason; len(by) != 1 || by["the static part of the configuration changed"] != 1 {
			return fmt.Errorf("counted are %v", by)
		}
		return nil
	})

	before, err = w.pid()
	require.NoError(t, err)
	reread("frobnicate")
	w.eventually("the refusal shows", func() error {
		if s := w.status().File.Error; !strings.Contains(s, "unknown keyword 'frobnicate'") || !strings.Contains(s, "do_checks = false") {
			return errors.New(s)
		}
		return nil
	})
	require.NotContains(t, read(t, filepath.Join(w.dir, "haproxy.cfg")), "frobnicate")
	w.publish("b", backendServer(t, "b"))
	w.converges("a", "b")
	after, err := w.pid()
	require.NoError(t, err)
	require.Equal(t, before, after)
	w.endLoad(load)

	// By hand, while the agent goes on.
	require.NoError(t, h.Reload())
	w.converges("a", "b")
}
