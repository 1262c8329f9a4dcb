package main_test

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/go-zookeeper/zk"
	"github.com/stretchr/testify/require"

	"github.com/myelin-sd/myelin/cli/clitest"
	"github.com/myelin-sd/myelin/discovery/zookeeper/zktest"
	"github.com/myelin-sd/myelin/haproxy"
)

func TestJoinLeaveAndWeight(t *testing.T) {
	w := newWorld(t)
	a := w.startInstance("a", w.zk.Addr())
	w.startAgent()
	w.converges("a")
	unchanged := w.pinned()

	b := w.startInstance("b", w.zk.Addr())
	w.converges("a", "b")

	// The weight changes in place: the same server object, no second registration.
	text, err := os.ReadFile(b.file)
	require.NoError(t, err)
	w.write(b.file, strings.Replace(string(text), "weight = 10", "weight = 30", 1))
	require.NoError(t, b.registrar.Signal(syscall.SIGHUP))
	w.eventually("the new weight", func() error {
		servers, err := w.servers()
		if err != nil {
			return err
		}
		for _, s := range servers {
			if strings.HasPrefix(s.Name, "b_") && s.Weight == 30 && s.Admin == haproxy.Ready {
				return nil
			}
		}
		return fmt.Errorf("no b with weight 30 in %v", servers)
	})
	servers, err := w.servers()
	require.NoError(t, err)
	require.Len(t, servers, 2, "no server was replaced")
	w.converges("a", "b")

	require.NoError(t, b.registrar.Stop())
	listed, err := w.registered()
	require.NoError(t, err)
	require.Equal(t, []string{"a"}, listed, "a registrar withdraws before it ends")
	w.converges("a")
	require.NoError(t, a.registrar.Signal(syscall.SIGINT))
	_, err = a.registrar.Wait(patience)
	require.NoError(t, err)
	listed, err = w.registered()
	require.NoError(t, err)
	require.Empty(t, listed, "SIGINT withdraws too")
	unchanged()
}

func TestHealthFailsAndReturns(t *testing.T) {
	w := newWorld(t)
	a, b := w.startInstance("a", w.zk.Addr()), w.startInstance("b", w.zk.Addr())
	w.startAgent()
	w.converges("a", "b")
	unchanged := w.pinned()
	load := clitest.StartLoad(w.url(), 50)
	require.NoError(t, b.Fail())
	w.converges("a")
	require.NoError(t, b.Recover())
	w.converges("a", "b")
	w.endLoad(load)
	servers, err := w.servers()
	require.NoError(t, err)
	require.Len(t, servers, 2, "a server that returns is the same object")
	unchanged()
	_ = a
}

func TestRegistrarKilled(t *testing.T) {
	w := newWorld(t)
	w.startInstance("a", w.zk.Addr())
	b := w.startInstance("b", w.zk.Addr())
	w.startAgent()
	w.converges("a", "b")
	unchanged := w.pinned()
	b.registrar.Kill()
	w.converges("a") // with the session: nobody withdrew it
	w.startRegistrar(b)
	w.converges("a", "b")
	unchanged()
}

func TestZooKeeperStoppedAndStarted(t *testing.T) {
	w := newWorld(t)
	w.startInstance("a", w.zk.Addr())
	w.startInstance("b", w.zk.Addr())
	w.startAgent()
	w.converges("a", "b")
	unchanged := w.pinned()
	load := clitest.StartLoad(w.url(), 50)

	w.zk.Stop()
	w.agentLosesZooKeeper()
	until := time.Now().Add(6 * time.Second) // longer than the sessions' timeout
	for time.Now().Before(until) {
		require.NoError(t, w.inRotation([]string{"a", "b"}), "without ZooKeeper everything stays")
		time.Sleep(50 * time.Millisecond)
	}
	require.NoError(t, w.zk.Restart())
	w.eventually("the agent is back", func() error {
		if st := w.status(); !st.ZooKeeper[0].Connected {
			return errors.New(st.ZooKeeper[0].Error)
		}
		return nil
	})
	w.converges("a", "b")
	w.startInstance("c", w.zk.Addr())
	w.converges("a", "b", "c")
	w.endLoad(load)
	unchanged()
}

func TestSessionExpired(t *testing.T) {
	w := newWorld(t)
	proxy := zktest.NewProxy(t, w.zk.Addr())
	w.startInstance("a", proxy.Addr())
	w.startInstance("b", w.zk.Addr())
	w.startAgent()
	w.converges("a", "b")
	unchanged := w.pinned()
	before, err := w.registered()
	require.NoError(t, err)

	proxy.Stall()
	w.eventually("a's session expires", func() error {
		now, err := w.registered()
		if err == nil && len(now) == len(before) {
			err = errors.New("both are still listed")
		}
		return err
	})
	w.converges("b")
	proxy.Resume()
	w.converges("a", "b")

	servers, err := w.servers()
	require.NoError(t, err)
	require.Len(t, servers, 2, "the server that returned is the one that left")
	unchanged()
}

func TestAgentsSessionExpired(t *testing.T) {
	w := newWorld(t)
	proxy := zktest.NewProxy(t, w.zk.Addr())
	text, err := os.ReadFile(w.agentFile)
	require.NoError(t, err)
	w.write(w.agentFile, strings.Replace(string(text), w.zk.Addr(), proxy.Addr(), 1))
	w.publish("a", backendServer(t, "a"))
	leave := w.publish("b", backendServer(t, "b"))
	w.startAgent()
	w.converges("a", "b")
	unchanged := w.pinned()
	first := w.status().ZooKeeper[0].Session

	proxy.Stall()
	w.agentLosesZooKeeper()
	leave()
	w.publish("c", backendServer(t, "c"))
	time.Sleep(7 * time.Second) // beyond the session's timeout of 4 s, so that the server forgets it
	require.NoError(t, w.inRotation([]string{"a", "b"}), "what is not known is not acted on")
	proxy.Resume()
	w.converges("a", "c")
	require.NotEqual(t, first, w.status().ZooKeeper[0].Session, "it is a new session")
	unchanged()
}

func TestHAProxyKilled(t *testing.T) {
	w := newWorld(t)
	w.startInstance("a", w.zk.Addr())
	w.startInstance("b", w.zk.Addr())
	w.startAgent()
	w.converges("a", "b")
	for _, who := range []string{"worker", "master and worker"} {
		before, err := w.pid()
		require.NoError(t, err)
		if who != "worker" {
			require.NoError(t, syscall.Kill(w.master(), syscall.SIGKILL))
		}
		require.NoError(t, syscall.Kill(before, syscall.SIGKILL))
		w.otherWorker(before)
		w.converges("a", "b")
		_, err = w.get()
		require.NoError(t, err, "after the %s died", who)
	}
}

func TestHAProxyReloadedByHand(t *testing.T) {
	w := newWorld(t)
	w.startInstance("a", w.zk.Addr())
	w.startAgent()
	w.converges("a")
	w.startInstance("b", w.zk.Addr())
	w.converges("a", "b")
	w.fileHolds("a_", "b_")
	load := clitest.StartLoad(w.url(), 100)
	for range 3 {
		before, err := w.pid()
		require.NoError(t, err)
		w.reloadByHand()
		w.otherWorker(before)
		w.converges("a", "b")
	}
	w.endLoad(load)
	require.Zero(t, w.status().File.Reload.Reloads, "the reloads were not ours")

	// What changes behind a reload reaches the new worker.
	w.startInstance("c", w.zk.Addr())
	w.converges("a", "b", "c")
}

// fileHolds waits until haproxy.cfg has these servers: the file follows the socket.
func (w *world) fileHolds(prefixes ...string) {
	w.t.Helper()
	w.eventually("haproxy.cfg is in step", func() error {
		text, err := os.ReadFile(filepath.Join(w.dir, "haproxy.cfg"))
		if err != nil {
			return err
		}
		servers := haproxy.ServersOfText(text)[service]
		if len(servers) != len(prefixes) {
			return fmt.Errorf("%d servers in the file", len(servers))
		}
		for _, p := range prefixes {
			if !bytes.Contains(text, []byte("server "+p)) {
				return fmt.Errorf("no %s in the file", p)
			}
		}
		return nil
	})
}

func TestAgentKilledAndRestarted(t *testing.T) {
	w := newWorld(t)
	w.publish("a", backendServer(t, "a"))
	leave := w.publish("b", backendServer(t, "b"))
	w.startAgent()
	w.converges("a", "b")
	unchanged := w.pinned()
	load := clitest.StartLoad(w.url(), 50)

	w.agent.Kill()
	leave()
	w.publish("c", backendServer(t, "c"))
	require.NoError(t, w.inRotation([]string{"a", "b"}), "HAProxy goes on")
	w.startAgent()
	w.converges("a", "c")

	require.NoError(t, w.agent.Stop())
	require.NoError(t, w.inRotation([]string{"a", "c"}), "a stop in order leaves HAProxy as it is, too")
	w.startAgent()
	w.agentIsReady()
	w.converges("a", "c")
	w.endLoad(load)
	unchanged()
}

// TestAgentStartsWithoutZooKeeper: a host that boots while the registry is away serves what it served.
func TestAgentStartsWithoutZooKeeper(t *testing.T) {
	w := newWorld(t)
	w.publish("a", backendServer(t, "a"))
	w.publish("b", backendServer(t, "b"))
	w.startAgent()
	w.converges("a", "b")
	w.fileHolds("a_", "b_")
	require.NoError(t, w.agent.Stop())
	require.NoError(t, syscall.Kill(w.master(), syscall.SIGTERM))
	w.eventually("HAProxy is gone", func() error {
		if _, err := w.pid(); err == nil {
			return errors.New("it still answers")
		}
		return nil
	})

	w.zk.Stop()
	w.startAgent()
	require.NoError(t, w.inRotation([]string{"a", "b"}))
	w.eventually("a request is answered", func() error { _, err := w.get(); return err })
	require.NoError(t, w.zk.Restart())
	w.agentIsReady()
}

func TestAllChildrenGone(t *testing.T) {
	w := newWorld(t)
	leaveA := w.publish("a", backendServer(t, "a"))
	leaveB := w.publish("b", backendServer(t, "b"))
	w.startAgent()
	w.converges("a", "b")
	unchanged := w.pinned()
	leaveA()
	w.converges("b")
	leaveB()
	held := func() error {
		if s := w.status().Services[0]; s.Held == "" {
			return fmt.Errorf("not held: %+v", s)
		}
		return nil
	}
	w.eventually("the hold shows", held)
	require.NoError(t, w.inRotation([]string{"b"}), "the last good set stays")
	_, err := w.get()
	require.NoError(t, err)
	require.Equal(t, 1, strings.Count(w.agent.Log(), "the last good set stays in force"), "said once")
	w.publish("c", backendServer(t, "c"))
	w.converges("c")
	unchanged()
}

// TestHostileRegistrations: rubbish in ZooKeeper changes nothing but a counter and one line of the log.
func TestHostileRegistrations(t *testing.T) {
	w := newWorld(t)
	w.publish("good", backendServer(t, "good"))
	w.startAgent()
	w.converges("good")
	w.fileHolds("good_")
	unchanged := w.pinned()
	file, err := os.ReadFile(filepath.Join(w.dir, "haproxy.cfg"))
	require.NoError(t, err)

	hostile := map[string]string{
		"semicolon-":  `{"host":"127.0.0.1;disable server user-api/x","port":80,"name":"x"}`,
		"newline-":    `{"host":"127.0.0.1\ndisable frontend user-api","port":80,"name":"x"}`,
		"quotes-":     `{"host":"127.0.0.1","port":80,"name":"x","haproxy_server_options":"\"check\" 'inter'"}`,
		"percent-":    `{"host":"127.0.0.1","port":80,"name":"x","haproxy_server_options":"check %[env(HOME)]"}`,
		"injection-":  `{"host":"127.0.0.1","port":80,"name":"x","haproxy_server_options":"check\n\tserver evil 6.6.6.6:6"}`,
		"unix-":       `{"host":"unix@/run/x.sock","port":80,"name":"x"}`,
		"path-":       `{"host":"/run/x.sock","port":80,"name":"x"}`,
		"variable-":   `{"host":"$HOME","port":80,"name":"x"}`,
		"port0-":      `{"host":"127.0.0.1","port":0,"name":"x"}`,
		"port70000-":  `{"host":"127.0.0.1","port":70000,"name":"x"}`,
		"payload-":    `{"host":"127.0.0.1","port":80,"name":"x","haproxy_server_options":"check <<"}`,
		"backslash-":  `{"host":"127.0.0.1\\","port":80,"name":"x"}`,
		"enabled-":    `{"host":"127.0.0.1","port":80,"name":"x","haproxy_server_options":"source 1.2.3.4 usesrc client"}`,
		"nojson-":     `][`,
		"empty-":      ``,
		"null-":       `null`,
		"big-":        `{"host":"127.0.0.1","port":80,"name":"` + strings.Repeat("A", 990_000) + `"}`,
		"invalid-":    "{\"host\":\"127.0.0.1\xff\xfe\",\"port\":80}",
		"unspecified": `{"host":"0.0.0.0","port":80,"name":"x"}`,
	}
	for prefix, data := range hostile {
		w.plant(prefix, []byte(data))
	}
	w.eventually("all are rejected", func() error {
		if s := w.status().Services[0]; len(s.Rejected) != len(hostile) {
			return fmt.Errorf("%d of %d rejected: %v", len(s.Rejected), len(hostile), s.Rejected)
		}
		return nil
	})
	require.NoError(t, w.inRotation([]string{"good"}))
	servers, err := w.servers()
	require.NoError(t, err)
	require.Len(t, servers, 1)
	now, err := os.ReadFile(filepath.Join(w.dir, "haproxy.cfg"))
	require.NoError(t, err)
	require.Equal(t, string(file), string(now), "the file is untouched")
	for prefix := range hostile {
		require.Equal(t, 1, strings.Count(w.agent.Log(), prefix+"0"), "one line for %s", prefix)
	}
	require.Less(t, len(w.agent.Log()), 100_000, "a big node makes no big log")

	// A name that is not safe is made safe; the instance serves.
	odd := fmt.Sprintf(`{"host":"127.0.0.1","port":%d,"name":"odd;na\nme$"}`, backendServer(t, "odd"))
	w.plant("odd-", []byte(odd))
	w.eventually("the odd one is in rotation", func() error { return w.inRotation([]string{"good", "odd"}) })
	unchanged()
}

func TestTwoHundredAtOnce(t *testing.T) {
	w := newWorld(t)
	w.publish("first", backendServer(t, "first"))
	w.startAgent()
	w.converges("first")
	unchanged := w.pinned()
	names := []string{"first"}
	var leaves []func()
	var mu sync.Mutex
	var all sync.WaitGroup
	port := backendServer(t, "many")
	for i := range 200 {
		name := fmt.Sprintf("n%03d", i)
		names = append(names, name)
		all.Go(func() {
			leave := w.publish(name, port)
			mu.Lock()
			leaves = append(leaves, leave)
			mu.Unlock()
		})
	}
	all.Wait()
	w.converges(names...)
	w.fileHoldsCount(201)
	for _, leave := range leaves {
		all.Go(leave)
	}
	all.Wait()
	w.converges("first")
	w.fileHoldsCount(1)
	unchanged()
}

func (w *world) fileHoldsCount(n int) {
	w.t.Helper()
	w.eventually("haproxy.cfg is in step", func() error {
		text, err := os.ReadFile(filepath.Join(w.dir, "haproxy.cfg"))
		if got := len(haproxy.ServersOfText(text)[service]); err == nil && got != n {
			err = fmt.Errorf("%d servers in the file, not %d", got, n)
		}
		return err
	})
}

// TestChurnLosesNoRequest: a hundred joins and orderly leaves under 200 requests a second.
func TestChurnLosesNoRequest(t *testing.T) {
	w := newWorld(t)
	w.publish("base", backendServer(t, "base"))
	w.startAgent()
	w.converges("base")
	unchanged := w.pinned()
	load := clitest.StartLoad(w.url(), 200)
	type member struct {
		name  string
		leave func()
	}
	var members []member
	present := func() []string {
		names := []string{"base"}
		for _, m := range members {
			names = append(names, m.name)
		}
		return names
	}
	for i := range 100 {
		name := fmt.Sprintf("m%03d", i)
		members = append(members, member{name, w.publish(name, backendServer(t, name))})
		if len(members) > 5 {
			members[0].leave()
			members = members[1:]
		}
		if i%10 == 9 {
			w.converges(present()...)
		}
	}
	for len(members) > 0 {
		members[0].leave()
		members = members[1:]
	}
	w.converges("base")
	w.endLoad(load)
	require.Greater(t, len(load.Answers()), 50, "the members did get traffic")
	unchanged()
}

func TestNodeDeletedBySomeoneElse(t *testing.T) {
	w := newWorld(t)
	w.startInstance("a", w.zk.Addr())
	w.startInstance("b", w.zk.Addr())
	w.startAgent()
	w.converges("a", "b")
	unchanged := w.pinned()
	ctx, cancel := context.WithTimeout(context.Background(), patience)
	defer cancel()
	nodes, err := w.session.Read(ctx, servicePath)
	require.NoError(t, err)
	var gone string
	for _, n := range nodes {
		if strings.HasPrefix(n.Name, "a_") {
			gone = n.Name
		}
	}
	conn, _, err := zk.Connect([]string{w.zk.Addr()}, 10*time.Second, zk.WithLogInfo(false))
	require.NoError(t, err)
	defer conn.Close()
	require.NoError(t, conn.Delete(servicePath+"/"+gone, -1))
	w.eventually("a is registered anew", func() error {
		nodes, err := w.session.Read(ctx, servicePath)
		if err != nil {
			return err
		}
		for _, n := range nodes {
			if strings.HasPrefix(n.Name, "a_") && n.Name != gone {
				return nil
			}
		}
		return errors.New("no new node")
	})
	w.converges("a", "b")
	unchanged()
}

func TestBadFileKeepsTheOldOne(t *testing.T) {
	w := newWorld(t)
	a := w.startInstance("a", w.zk.Addr())
	w.startAgent()
	w.converges("a")
	unchanged := w.pinned()
	good, err := os.ReadFile(w.agentFile)
	require.NoError(t, err)

	for what, text := range map[string]string{
		"services.user-api.discovery.method": strings.Replace(string(good), `"zookeeper"`, `"zokeeper"`, 1),
		"'chekc'":                            strings.Replace(string(good), `"check inter`, `"chekc inter`, 1),
		"unknown keyword 'blance'":           strings.Replace(string(good), `"mode http"`, `"mode http", "blance leastconn"`, 1),
	} {
		w.write(w.agentFile, text)
		require.NoError(t, w.agent.Signal(syscall.SIGHUP))
		w.eventually("the refusal is said", func() error {
			log := w.agent.Log()
			if !strings.Contains(log, what) || !strings.Contains(log, "the old configuration stays in force") {
				return fmt.Errorf("not in the log: %s", what)
			}
			return nil
		})
		require.Equal(t, 1, w.status().Generation)
	}
	require.NoError(t, w.inRotation([]string{"a"}))
	unchanged()

	// The registrar likewise.
	text, err := os.ReadFile(a.file)
	require.NoError(t, err)
	w.write(a.file, string(text)+"\nchecks = 7\n[services.x]\nport = 99999\n")
	require.NoError(t, a.registrar.Signal(syscall.SIGHUP))
	w.eventually("the registrar's refusal is said", func() error {
		if !strings.Contains(a.registrar.Log(), "the old configuration stays in force") {
			return errors.New("not yet")
		}
		return nil
	})
	w.converges("a")

	// A good file is taken: a new listener needs a reload, and the servers stay.
	w.write(w.agentFile, strings.Replace(string(good), `"mode http"`, `"mode http", "balance leastconn"`, 1))
	before, err := w.pid()
	require.NoError(t, err)
	load := clitest.StartLoad(w.url(), 100)
	require.NoError(t, w.agent.Signal(syscall.SIGHUP))
	w.otherWorker(before)
	w.converges("a")
	w.endLoad(load)
	w.eventually("the reload is counted", func() error {
		if n := w.status().File.Reload.Reloads; n != 1 {
			return fmt.Errorf("%d reloads", n)
		}
		return nil
	})
	require.Equal(t, 2, w.status().Generation)
}

// TestUnwritableFile: a file that cannot be written is said once, and the socket still works.
func TestUnwritableFile(t *testing.T) {
	w := newWorld(t)
	w.publish("a", backendServer(t, "a"))
	w.startAgent()
	w.converges("a")
	w.fileHolds("a_")
	// The place of the candidate is taken by a directory that is not empty: no rename, no removal, not even for root.
	require.NoError(t, os.MkdirAll(filepath.Join(w.dir, "haproxy.cfg.tmp", "in-the-way"), 0o755))
	for i := range 3 {
		w.publish(fmt.Sprintf("n%d", i), backendServer(t, "n"))
		time.Sleep(300 * time.Millisecond)
	}
	w.converges("a", "n0", "n1", "n2")
	require.Equal(t, 1, strings.Count(w.agent.Log(), "haproxy.cfg is not written"), w.agent.Log())
	require.NotEmpty(t, w.status().File.Error)
	require.NoError(t, os.RemoveAll(filepath.Join(w.dir, "haproxy.cfg.tmp")))
	w.fileHoldsCount(4)
	w.eventually("the status is clear", func() error {
		if e := w.status().File.Error; e != "" {
			return errors.New(e)
		}
		return nil
	})
}

func TestCommands(t *testing.T) {
	w := newWorld(t)
	w.publish("a", backendServer(t, "a"))
	w.plant("bad-", []byte("rubbish"))
	zk := "--zookeeper=" + w.zk.Addr()

	out, code := w.run("check", "-c", w.agentFile)
	require.Equal(t, 0, code, out)
	require.Contains(t, out, "agent file, 1 service, usable")

	out, code = w.run("plan", "-c", w.agentFile)
	require.Equal(t, 1, code, "no HAProxy to ask: %s", out)
	require.Contains(t, out, "cannot be asked")

	out, code = w.run("render", "-c", w.agentFile)
	require.Equal(t, 0, code, out)
	require.Contains(t, out, "server a_127.0.0.1:")

	out, code = w.run("instances", zk, "-o", "json", service)
	require.Equal(t, 0, code, out)
	require.Contains(t, out, `"state": "ok"`)
	require.Contains(t, out, `"state": "rejected"`)
	require.Contains(t, out, `"reason": "undecodable`)
	out, code = w.run("instances", zk, "/services/nowhere")
	require.Equal(t, 1, code, out)
	require.Contains(t, out, "there is no /services/nowhere")

	out, code = w.run("services", zk)
	require.Equal(t, 0, code, out)
	require.Contains(t, out, servicePath)

	out, code = w.run("instances", service)
	require.Equal(t, 2, code, out)
	require.Contains(t, out, "which ZooKeeper?")
	out, code = w.run("agent", "-c", filepath.Join(w.dir, "nowhere.toml"))
	require.Equal(t, 2, code, out)
	out, code = w.run("frobnicate")
	require.Equal(t, 2, code, out)
	out, code = w.run("status", "--address", fmt.Sprintf("127.0.0.1:%d", w.adminPort))
	require.Equal(t, 1, code, out)
	require.Contains(t, out, "is it running?")

	// Once: converge and exit; HAProxy is left running, and then there is nothing to do.
	out, code = w.run("agent", "-c", w.agentFile, "--once", "--timeout", "30s")
	require.Equal(t, 0, code, out)
	w.converges("a")
	out, code = w.run("plan", "-c", w.agentFile)
	require.Equal(t, 0, code, out)
	leave := w.publish("b", backendServer(t, "b"))
	out, code = w.run("plan", "-c", w.agentFile)
	require.Equal(t, 3, code, out)
	require.Contains(t, out, "add server user-api/b_127.0.0.1:")
	leave()

	w.startAgent()
	watch, err := clitest.Start(w.dir, "watch", nil, binary, "watch", zk, service)
	require.NoError(t, err)
	t.Cleanup(watch.Kill)
	w.eventually("watch shows a", func() error { return contains(watch.Log(), "join", "a") })
	leave = w.publish("c", backendServer(t, "c"))
	w.converges("a", "c")
	w.eventually("watch shows c join", func() error { return contains(watch.Log(), "join", "c") })
	leave()
	w.eventually("watch shows c leave", func() error { return contains(watch.Log(), "leave", "c") })
	w.converges("a")

	out, code = w.run("status", "-c", w.agentFile, "-o", "wide")
	require.Equal(t, 0, code, out)
	require.Contains(t, out, "connected to")
	require.Contains(t, out, "rejected in user-api: bad-")
}

// contains looks for a line of watch with an event and a name.
func contains(log, event, name string) error {
	for l := range strings.Lines(log) {
		if f := strings.Fields(l); len(f) >= 5 && f[1] == event && f[4] == name {
			return nil
		}
	}
	return fmt.Errorf("no %s of %s in:\n%s", event, name, log)
}
