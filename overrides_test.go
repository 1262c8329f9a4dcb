package main_test

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"github.com/go-zookeeper/zk"
	"github.com/stretchr/testify/require"

	"github.com/myelin-sd/myelin/cli/clitest"
	"github.com/myelin-sd/myelin/discovery"
	"github.com/myelin-sd/myelin/haproxy"
)

// another is a second host beside w: an agent with a HAProxy of its own, for the same services.
func (w *world) another() *world {
	w.t.Helper()
	dir, err := os.MkdirTemp("", "myelin-")
	require.NoError(w.t, err)
	o := &world{t: w.t, dir: dir, zk: w.zk, session: w.session, port: freePort(w.t), adminPort: freePort(w.t),
		agentFile: filepath.Join(dir, "agent.toml"), socket: filepath.Join(dir, "haproxy.sock")}
	o.write(o.agentFile, strings.NewReplacer(w.dir, dir, fmt.Sprint(w.port), fmt.Sprint(o.port), fmt.Sprint(w.adminPort), fmt.Sprint(o.adminPort)).
		Replace(read(w.t, w.agentFile)))
	w.t.Cleanup(o.end)
	return o
}

func (w *world) pages() string { return fmt.Sprintf("127.0.0.1:%d", w.adminPort) }

// weighed registers an instance at a host, with a weight.
func (w *world) weighed(name, host string, port, weight int) (endpoint string) {
	w.t.Helper()
	data, err := discovery.EncodeNerve(discovery.Payload{Host: host, Port: uint16(port), Name: name, Weight: &weight})
	require.NoError(w.t, err)
	w.plant(name+"_", data)
	return net.JoinHostPort(host, fmt.Sprint(port))
}

// serverIs returns a condition: HAProxy has the instance in this administrative state.
func (w *world) serverIs(name string, admin haproxy.Admin) func() error {
	return func() error {
		servers, err := w.servers()
		if err != nil {
			return err
		}
		for _, s := range servers {
			if n, _, _ := strings.Cut(s.Name, "_"); n == name {
				if s.Admin != admin {
					return fmt.Errorf("%s is %s, not %s", name, s.Admin, admin)
				}
				return nil
			}
		}
		return fmt.Errorf("there is no %s among %d servers", name, len(servers))
	}
}

// patient is a web server whose requests for /long last until release is called; all are counted.
type patient struct {
	port    int
	begun   atomic.Int64 // requests for /long
	served  atomic.Int64 // all
	release func()
}

func newPatient(t *testing.T, name string) *patient {
	t.Helper()
	p, gate := &patient{}, make(chan struct{})
	var once atomic.Bool
	p.release = func() {
		if once.CompareAndSwap(false, true) {
			close(gate)
		}
	}
	s := httptest.NewServer(http.HandlerFunc(func(rw http.ResponseWriter, r *http.Request) {
		if r.URL.Path != "/health" {
			p.served.Add(1)
		}
		if r.URL.Path == "/long" {
			p.begun.Add(1)
			<-gate
		}
		fmt.Fprintln(rw, name)
	}))
	t.Cleanup(s.Close)
	t.Cleanup(p.release) // before the server is closed, which waits for its requests
	p.port = s.Listener.Addr().(*net.TCPAddr).Port
	return p
}

// notServed checks that requests through the hosts' HAProxys do not come to p.
func notServed(t *testing.T, p *patient, hosts ...*world) {
	t.Helper()
	before := p.served.Load()
	for range 10 {
		for _, h := range hosts {
			_, err := h.get()
			require.NoError(t, err)
		}
	}
	require.Equal(t, before, p.served.Load(), "it is drained")
}

// TestDrain: an instance is drained on two hosts while requests are under way. The command returns when the last one has
// ended, no request fails, it stays drained over the death of a HAProxy, and enable brings it back.
func TestDrain(t *testing.T) {
	w := newWorld(t)
	other := w.another()
	a := newPatient(t, "a")
	w.publish("a", a.port)
	b := w.startInstance("b", w.zk.Addr())
	w.startAgent()
	other.startAgent()
	w.converges("a", "b")
	other.converges("a", "b")
	instance := fmt.Sprintf("127.0.0.1:%d", a.port)
	load, otherLoad := clitest.StartLoad(w.url(), 30), clitest.StartLoad(other.url(), 30)

	// A long request, through the HAProxy that is not the command's own.
	answers := make(chan error, 64)
	long := 0
	w.eventually("a long request has come to a", func() error {
		if a.begun.Load() > 0 {
			return nil
		}
		if long < cap(answers) {
			long++
			go func() { answers <- getOK(other.url() + "long") }()
		}
		return errors.New("not yet")
	})
	drain, err := clitest.Start(w.dir, "drain", nil, binary, "drain", service, instance, "--wait", "-c", w.agentFile, "--agent", other.pages(), "--reason", "new kernel")
	require.NoError(t, err)
	t.Cleanup(drain.Kill)
	w.eventually("drained here", w.serverIs("a", haproxy.Drain))
	w.eventually("drained there", other.serverIs("a", haproxy.Drain))
	notServed(t, a, w, other)
	require.True(t, drain.Running(), "a session is there still: %s", drain.Log())
	a.release()
	code, err := drain.Wait(patience)
	require.NoError(t, err)
	require.Zero(t, code, drain.Log())
	require.Contains(t, drain.Log(), "user-api "+instance+" gets no new sessions until myelin enable user-api "+instance)
	require.Contains(t, drain.Log(), "confirmed by 2 agents for 2 servers")
	for range long {
		require.NoError(t, <-answers)
	}
	out, code := w.run("overrides", "-c", w.agentFile)
	require.Zero(t, code, out)
	require.Regexp(t, `(?m)^user-api `+instance+` +drain +\S+@\S+ .* with enable +applied, 1 server +new kernel$`, out)
	w.endLoad(load)
	w.endLoad(otherLoad)

	// HAProxy dies, and the next one has it drained.
	before, err := w.pid()
	require.NoError(t, err)
	require.NoError(t, syscall.Kill(w.master(), syscall.SIGKILL))
	require.NoError(t, ignoreGone(syscall.Kill(before, syscall.SIGKILL)))
	w.otherWorker(before)
	w.eventually("still drained", w.serverIs("a", haproxy.Drain))
	w.eventually("b serves", func() error { _, err := w.get(); return err })
	notServed(t, a, w, other)

	// Without ZooKeeper the agent tells.
	require.NoError(t, w.zk.Stop())
	out, code = w.run("overrides", "-c", w.agentFile, "--timeout", "3s")
	require.Zero(t, code, out)
	require.Contains(t, out, "ZooKeeper does not answer; this is what the agent at ")
	require.Regexp(t, `(?m)^user-api `+instance+` +drain .* applied, 1 server +new kernel$`, out)
	require.NoError(t, w.zk.Start())

	out, code = w.run("enable", service, instance, "--wait", "-c", w.agentFile, "--agent", other.pages(), "--timeout", "30s")
	require.Zero(t, code, out)
	require.Contains(t, out, "removes drain by")
	require.NoError(t, w.inRotation([]string{"a", "b"}))
	require.NoError(t, other.inRotation([]string{"a", "b"}))
	require.Equal(t, "b", b.name)
}

func getOK(url string) error {
	resp, err := http.Get(url)
	if err != nil {
		return err
	}
	defer resp.Body.Close()
	if resp.StatusCode != http.StatusOK {
		return fmt.Errorf("status %s", resp.Status)
	}
	return nil
}

func ignoreGone(err error) error {
	if errors.Is(err, syscall.ESRCH) {
		return nil
	}
	return err
}

// TestIntentOfHosts: a host in maintenance, an instance kept out of it, a weight that changes the share of requests, and
// a time that is over.
func TestIntentOfHosts(t *testing.T) {
	w := newWorld(t)
	var at [3]string
	for i, name := range []string{"a", "b", "c"} {
		at[i] = w.weighed(name, fmt.Sprintf("127.0.0.%d", 1+i/2), backendServer(t, name), 10) // a and b on one host
	}
	w.startAgent()
	w.converges("a", "b", "c")
	intend := func(args ...string) string {
		t.Helper()
		out, code := w.run(append(args, "-c", w.agentFile, "--wait", "--timeout", "30s")...)
		require.Zero(t, code, out)
		return out
	}

	out := intend("maint", "--host", "127.0.0.1")
	require.Contains(t, out, "host 127.0.0.1 (2 instances) is out of rotation until myelin enable --host 127.0.0.1")
	require.Contains(t, out, "confirmed by 1 agent for 2 servers")
	require.NoError(t, w.serverIs("a", haproxy.Maint)())
	require.NoError(t, w.inRotation([]string{"c"}))
	out = intend("enable", service, at[1])
	require.Contains(t, out, "is as registered, although host 127.0.0.1 has maint")
	require.NoError(t, w.inRotation([]string{"b", "c"}))
	out, code := w.run("drain", service, "127.0.0.2", "--for", "2s", "-c", w.agentFile, "-o", "json", "--wait")
	require.Zero(t, code, out)
	var did struct {
		Done      string
		Instances int
		Wait      struct{ Confirmed bool }
	}
	require.NoError(t, json.Unmarshal([]byte(out), &did), out)
	require.Equal(t, "stored", did.Done)
	require.Equal(t, 1, did.Instances)
	require.True(t, did.Wait.Confirmed)
	w.eventually("the time is over", func() error { return w.inRotation([]string{"b", "c"}) })
	intend("enable", "--host", "127.0.0.1")
	require.NoError(t, w.inRotation([]string{"a", "b", "c"}))

	intend("weight", service, at[2], "20%")
	counts := map[string]int{}
	for range 110 {
		body, err := w.get()
		require.NoError(t, err)
		counts[body]++
	}
	require.Less(t, counts["c"], counts["a"]/2, "%v", counts)
	require.Less(t, counts["c"], counts["b"]/2, "%v", counts)
	intend("weight", service, "--all", "7")
	servers, err := w.servers()
	require.NoError(t, err)
	weights := map[string]int{}
	for _, s := range servers {
		name, _, _ := strings.Cut(s.Name, "_")
		weights[name] = s.Weight
	}
	require.Equal(t, map[string]int{"a": 7, "b": 10, "c": 2}, weights, "b and c have narrower ones: what kept b out of the maintenance, and c's weight")
	intend("enable", service, "--all")
	out, code = w.run("overrides", "rm", service, at[2], "-c", w.agentFile)
	require.Zero(t, code, out)
	require.Contains(t, out, "removed from user-api "+at[2]+": weight 20% by ")
}

// TestIntentRefused: what stands in the way is said, and a command that stored something and could not see it in force
// says that with an exit code of its own.
func TestIntentRefused(t *testing.T) {
	w := newWorld(t)
	a, b := newPatient(t, "a"), backendServer(t, "b")
	w.publish("a", a.port)
	w.publish("b", b)
	instance := fmt.Sprintf("127.0.0.1:%d", a.port)

	out, code := w.run("drain", service, instance, "--wait", "-c", w.agentFile, "--timeout", "20s")
	require.Equal(t, 4, code, "no agent: %s", out)
	require.Contains(t, out, "it is stored, but not confirmed: agent "+w.pages()+" cannot be asked: ")
	w.startAgent()
	w.eventually("the agent finds it drained", w.serverIs("a", haproxy.Drain))
	out, code = w.run("enable", service, instance, "--wait", "-c", w.agentFile, "--timeout", "20s")
	require.Zero(t, code, out)

	// A session that does not end in time, and one who does not want to wait.
	go func() { _ = getOK(fmt.Sprintf("http://127.0.0.1:%d/long", w.port)) }()
	w.eventually("a long request has come to a", func() error {
		if a.begun.Load() == 0 {
			go func() { _ = getOK(fmt.Sprintf("http://127.0.0.1:%d/long", w.port)) }()
			return errors.New("not yet")
		}
		return nil
	})
	out, code = w.run("maint", service, instance, "--wait", "-c", w.agentFile, "--timeout", "2s")
	require.Equal(t, 4, code, out)
	require.Regexp(t, `it is stored, but not done within 2s: user-api `+instance+`: \d+ sessions? \(agent `+w.pages(), out)
	p, err := clitest.Start(w.dir, "stopped", nil, binary, "drain", service, instance, "--wait", "-c", w.agentFile)
	require.NoError(t, err)
	t.Cleanup(p.Kill)
	w.eventually("it waits", func() error {
		if !strings.Contains(p.Log(), "gets no new sessions") {
			return errors.New(p.Log())
		}
		return nil
	})
	require.NoError(t, p.Signal(syscall.SIGINT))
	code, err = p.Wait(patience)
	require.NoError(t, err)
	require.Equal(t, 130, code, p.Log())
	require.Contains(t, p.Log(), "stopped waiting; it is stored and stays")
	require.NoError(t, w.serverIs("a", haproxy.Drain)())
	a.release()

	// A path that only somebody else may write.
	conn, _, err := zk.Connect([]string{w.zk.Addr()}, 20*time.Second, zk.WithLogger(quiet{}))
	require.NoError(t, err)
	defer conn.Close()
	require.NoError(t, conn.AddAuth("digest", []byte("ops:secret")))
	closed := append(zk.AuthACL(zk.PermAll), zk.WorldACL(zk.PermRead)...)
	_, err = conn.SetACL("/myelin/overrides", closed, -1)
	require.NoError(t, err)
	out, code = w.run("drain", service, fmt.Sprintf("127.0.0.1:%d", b), "--force", "-c", w.agentFile)
	require.Equal(t, 1, code, out)
	require.Contains(t, out, "the ACL of the path does not let this user; give zookeeper.auth of one that may, in -c FILE")
	credentials := filepath.Join(w.dir, "credentials")
	w.write(credentials, "ops:secret\n")
	require.NoError(t, os.Chmod(credentials, 0o600))
	mine := filepath.Join(w.dir, "ops.toml")
	w.write(mine, strings.Replace(read(t, w.agentFile), "[zookeeper]", fmt.Sprintf("[zookeeper]\nauth = { scheme = \"digest\", credentials_file = %q }", credentials), 1))
	out, code = w.run("weight", service, fmt.Sprintf("127.0.0.1:%d", b), "5", "-c", mine, "--wait", "--timeout", "20s")
	require.Zero(t, code, "the agents read it: %s", out)

	// Nobody to write to.
	ctx, cancel := context.WithTimeout(t.Context(), patience)
	defer cancel()
	all, err := w.session.Overrides(ctx, "/myelin/overrides")
	require.NoError(t, err)
	require.Len(t, all, 2)
	require.NoError(t, w.zk.Stop())
	out, code = w.run("drain", service, instance, "-c", w.agentFile, "--timeout", "1s")
	require.Equal(t, 1, code, out)
	require.Contains(t, out, "nothing heard within 1s")
	require.Contains(t, out, "nothing was changed")
}
