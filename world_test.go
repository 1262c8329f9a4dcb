package main_test

import (
	"context"
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/sirupsen/logrus"
	"github.com/stretchr/testify/require"

	"github.com/myelin-sd/myelin/agent"
	_ "github.com/myelin-sd/myelin/cli" // the binary under test is built by TestMain: what it is made of must make the results of these tests stale
	"github.com/myelin-sd/myelin/cli/clitest"
	"github.com/myelin-sd/myelin/discovery"
	"github.com/myelin-sd/myelin/discovery/zookeeper"
	"github.com/myelin-sd/myelin/discovery/zookeeper/zktest"
	"github.com/myelin-sd/myelin/haproxy"
	"github.com/myelin-sd/myelin/haproxy/haproxytest"
)

// binary is the myelin that the end-to-end tests run: built once, with the race detector when the tests have it.
var binary string

func TestMain(m *testing.M) {
	clitest.ServeIfAsked()
	floorIfAsked()
	checkFloorIfAsked()
	wrappedIfAsked()
	os.Exit(func() int {
		dir, err := os.MkdirTemp("", "myelin-e2e-")
		if err != nil {
			fmt.Fprintln(os.Stderr, err)
			return 1
		}
		defer os.RemoveAll(dir)
		if other := os.Getenv(haproxytest.BinaryVariable); other != "" {
			// For the agents that run their HAProxy themselves, and look for it in PATH.
			os.Setenv("PATH", filepath.Dir(other)+string(filepath.ListSeparator)+os.Getenv("PATH"))
		}
		if binary, err = clitest.Build(".", dir, raceEnabled); err != nil {
			fmt.Fprintln(os.Stderr, err)
			return 1
		}
		// Tests that run beside each other mostly wait: for drains, and for the ends of sessions.
		if err := flag.Set("test.parallel", "4"); err != nil {
			fmt.Fprintln(os.Stderr, err)
			return 1
		}
		return m.Run()
	}())
}

const (
	service     = "user-api"
	servicePath = "/services/user-api"
	patience    = 40 * time.Second // no test waits this long unless something is broken
)

// world is one ZooKeeper, one agent with its HAProxy, and as many instances as a test wants.
type world struct {
	t          *testing.T
	dir        string
	zk         *zktest.Server
	session    *zookeeper.Session // the test's own eyes and hands
	port       int
	adminPort  int
	agentFile  string
	agent      *clitest.Process
	agents     int
	socket     string
	registrars int
}

// newWorld starts ZooKeeper; the agent is started with startAgent. edit may change the agent's file.
func newWorld(t *testing.T, edit ...func(string) string) *world {
	t.Helper()
	if testing.Short() {
		t.Skip("end-to-end tests run real servers")
	}
	haproxytest.RequireDynamicServers(t) // they know servers by their names
	// Not t.TempDir: paths of unix sockets are short.
	dir, err := os.MkdirTemp("", "myelin-")
	require.NoError(t, err)
	w := &world{t: t, dir: dir, zk: zktest.New(t)}
	w.session = zookeeper.New(zookeeper.Options{Hosts: []string{w.zk.Addr()}, SessionTimeout: 20 * time.Second, Log: silent()})
	w.port, w.adminPort = freePort(t), freePort(t)
	w.agentFile = filepath.Join(dir, "agent.toml")
	w.socket = filepath.Join(dir, "haproxy.sock")
	// Most tests have instances vanish without a mark, and are about what follows; those of the guard switch it on.
	text := fmt.Sprintf(`
state_dir = %q
guard = "off"
admin = { listen = "127.0.0.1:%d" }

[zookeeper]
hosts = [%q]
session_timeout = "4s"

[services.user-api]
discovery = { method = "zookeeper", path = "/services/user-api" }
haproxy = { port = %d, server_options = "check inter 1s rise 1 fall 3", listen = ["mode http", "option httpchk GET /health"] }
`, dir, w.adminPort, w.zk.Addr(), w.port)
	for _, e := range edit {
		text = e(text)
	}
	w.write(w.agentFile, text)
	t.Cleanup(w.end)
	return w
}

func (w *world) end() {
	if w.t.Failed() {
		logs, _ := filepath.Glob(filepath.Join(w.dir, "*.log"))
		for _, l := range logs {
			text, _ := os.ReadFile(l)
			w.t.Logf("%s:\n%s", filepath.Base(l), lastBytes(text, 6000))
		}
	}
	if w.agent != nil && w.agent.Running() {
		w.agent.Stop()
	}
	w.session.Close()
	if pid := w.master(); pid > 1 {
		syscall.Kill(pid, syscall.SIGTERM)
	}
	os.RemoveAll(w.dir)
}

func lastBytes(b []byte, n int) []byte { return b[max(0, len(b)-n):] }

func silent() logrus.FieldLogger {
	log := logrus.New()
	log.SetOutput(io.Discard)
	return log
}

func freePort(t *testing.T) int {
	t.Helper()
	p, err := clitest.FreePort()
	require.NoError(t, err)
	return p
}

func (w *world) write(path, text string) {
	w.t.Helper()
	require.NoError(w.t, os.WriteFile(path, []byte(text), 0o644))
}

// run runs myelin to its end and returns what it printed and its exit code.
func (w *world) run(args ...string) (out string, code int) {
	w.t.Helper()
	w.agents++
	p, err := clitest.Start(w.dir, fmt.Sprintf("command-%d", w.agents), nil, binary, args...)
	require.NoError(w.t, err)
	code, err = p.Wait(patience)
	require.NoError(w.t, err)
	return p.Log(), code
}

func (w *world) startAgent() {
	w.t.Helper()
	w.agents++
	var err error
	w.agent, err = clitest.Start(w.dir, fmt.Sprintf("agent-%d", w.agents), nil, binary, "agent", "-c", w.agentFile)
	require.NoError(w.t, err)
	w.eventually("the agent answers", func() error {
		resp, err := http.Get(fmt.Sprintf("http://127.0.0.1:%d/livez", w.adminPort))
		if err == nil {
			resp.Body.Close()
		}
		return err
	})
	w.eventually("HAProxy answers", func() error { _, err := w.pid(); return err })
}

// eventually waits until condition holds.
func (w *world) eventually(what string, condition func() error) {
	w.t.Helper()
	deadline := time.Now().Add(patience)
	for {
		err := condition()
		if err == nil {
			return
		}
		if time.Now().After(deadline) {
			require.NoError(w.t, err, what)
		}
		time.Sleep(5 * time.Millisecond)
	}
}

// eventually in agreement with ZooKeeper: HAProxy's own table has exactly these instances in rotation, and so does
// ZooKeeper's list.
func (w *world) converges(names ...string) {
	w.t.Helper()
	w.eventually("HAProxy and ZooKeeper agree on "+brief(names), func() error {
		if err := w.inRotation(names); err != nil {
			return err
		}
		listed, err := w.registered()
		if err == nil && !slices.Equal(listed, sorted(names)) {
			err = fmt.Errorf("ZooKeeper lists %s", brief(listed))
		}
		return err
	})
}

func brief(names []string) string {
	if len(names) > 8 {
		return fmt.Sprintf("%d instances", len(names))
	}
	return fmt.Sprint(names)
}

func sorted(names []string) []string { return slices.Sorted(slices.Values(names)) }

// inRotation compares HAProxy's own table with the names of the instances that should get traffic.
func (w *world) inRotation(names []string) error {
	servers, err := w.servers()
	if err != nil {
		return err
	}
	var ready []string
	for _, s := range servers {
		if s.Admin == haproxy.Ready {
			name, _, _ := strings.Cut(s.Name, "_")
			ready = append(ready, name)
		}
	}
	slices.Sort(ready)
	if !slices.Equal(ready, sorted(names)) {
		return fmt.Errorf("HAProxy has %s in rotation, not %s", brief(ready), brief(names))
	}
	return nil
}

func (w *world) registered() ([]string, error) {
	ctx, cancel := context.WithTimeout(context.Background(), 5*time.Second)
	defer cancel()
	snap, err := w.session.Snapshot(ctx, service, servicePath)
	var names []string
	for _, in := range discovery.Dedup(snap.Instances) {
		names = append(names, in.Name)
	}
	slices.Sort(names)
	return names, err
}

func (w *world) dial() (*haproxy.Client, error) {
	ctx, cancel := context.WithTimeout(context.Background(), 5*time.Second)
	defer cancel()
	return haproxy.Dial(ctx, w.socket, haproxy.ClientOptions{})
}

func (w *world) servers() ([]haproxy.Server, error) {
	c, err := w.dial()
	if err != nil {
		return nil, err
	}
	defer c.Close()
	state, err := c.State(context.Background())
	return state[service], err
}

// pid is that of HAProxy's worker.
func (w *world) pid() (int, error) {
	id, err := w.identity()
	return id.Pid, err
}

func (w *world) identity() (haproxy.Identity, error) {
	c, err := w.dial()
	if err != nil {
		return haproxy.Identity{}, err
	}
	defer c.Close()
	return c.Identity(), nil
}

// pinned returns a check that HAProxy's worker is still the one it is now.
func (w *world) pinned() func() {
	w.t.Helper()
	before, err := w.pid()
	require.NoError(w.t, err)
	return func() {
		w.t.Helper()
		after, err := w.pid()
		require.NoError(w.t, err)
		require.Equal(w.t, before, after, "HAProxy's worker is another one")
		var reload *haproxy.ReloadStatus // none while a process that was just started reads its files
		w.eventually("the agent tells of reloads", func() error {
			if reload = w.status().File.Reload; reload == nil {
				return errors.New("not yet")
			}
			return nil
		})
		require.Zero(w.t, reload.Reloads, "the agent reloaded HAProxy")
	}
}

// master is the process id of HAProxy's master, 0 when unknown.
func (w *world) master() int {
	text, _ := os.ReadFile(filepath.Join(w.dir, "haproxy.pid"))
	pid, _ := strconv.Atoi(strings.TrimSpace(string(text)))
	return pid
}

// reloadByHand reloads HAProxy as a colleague would. A SIGUSR2 that reaches a master of 2.6 before it is done with the
// last reload is lost without a sign, so its command line is asked for first.
func (w *world) reloadByHand() {
	w.t.Helper()
	w.eventually("HAProxy's master answers", func() error {
		ctx, cancel := context.WithTimeout(context.Background(), 5*time.Second)
		defer cancel()
		m, err := haproxy.DialMaster(ctx, filepath.Join(w.dir, "haproxy-master.sock"))
		if err == nil {
			m.Close()
		}
		return err
	})
	require.NoError(w.t, clitest.Reload(w.master()))
}

func (w *world) otherWorker(before int) {
	w.t.Helper()
	w.eventually("another HAProxy worker", func() error {
		pid, err := w.pid()
		if err == nil && pid == before {
			err = fmt.Errorf("still worker %d", pid)
		}
		return err
	})
}

func (w *world) status() agent.Status {
	w.t.Helper()
	resp, err := http.Get(fmt.Sprintf("http://127.0.0.1:%d/api/v1/status", w.adminPort))
	require.NoError(w.t, err)
	defer resp.Body.Close()
	var st agent.Status
	require.NoError(w.t, json.NewDecoder(resp.Body).Decode(&st))
	return st
}

// counter is the value of one of the agent's metrics, 0 where there is none. series is written as /metrics does.
func (w *world) counter(series string) float64 {
	w.t.Helper()
	resp, err := http.Get(fmt.Sprintf("http://127.0.0.1:%d/metrics", w.adminPort))
	require.NoError(w.t, err)
	defer resp.Body.Close()
	text, err := io.ReadAll(resp.Body)
	require.NoError(w.t, err)
	for line := range strings.Lines(string(text)) {
		if value, ok := strings.CutPrefix(line, series+" "); ok {
			v, err := strconv.ParseFloat(strings.TrimSpace(value), 64)
			require.NoError(w.t, err)
			return v
		}
	}
	return 0
}

func (w *world) agentLosesZooKeeper() {
	w.t.Helper()
	w.eventually("the agent notices", func() error {
		if w.status().ZooKeeper[0].Connected {
			return errors.New("still connected")
		}
		return nil
	})
}

func (w *world) agentIsReady() {
	w.t.Helper()
	w.eventually("ready", func() error {
		if st := w.status(); !st.Ready {
			return fmt.Errorf("waiting: %v", st.Waiting)
		}
		return nil
	})
}

// endLoad ends a stream of requests, none of which may have failed.
func (w *world) endLoad(load *clitest.Load) {
	w.t.Helper()
	load.Stop()
	sent, failed := load.Count()
	require.NotZero(w.t, sent)
	require.Zero(w.t, failed, "of %d: %v", sent, load.Failures())
}

func (w *world) url() string { return fmt.Sprintf("http://127.0.0.1:%d/", w.port) }

// get asks through HAProxy.
func (w *world) get() (string, error) { return ask(w.port) }

func ask(port int) (string, error) {
	resp, err := http.Get(fmt.Sprintf("http://127.0.0.1:%d/", port))
	if err != nil {
		return "", err
	}
	defer resp.Body.Close()
	body, err := io.ReadAll(resp.Body)
	if err == nil && resp.StatusCode != http.StatusOK {
		err = fmt.Errorf("status %s", resp.Status)
	}
	return strings.TrimSpace(string(body)), err
}

// instance is a sample service with its registrar.
type instance struct {
	*clitest.Service
	name      string
	file      string
	registrar *clitest.Process
}

// startInstance starts a service and a registrar beside it; zk is the address the registrar uses.
func (w *world) startInstance(name, zk string) *instance {
	w.t.Helper()
	in := w.startServiceOf(name, zk)
	w.startRegistrar(in)
	return in
}

// startServiceOf starts a service, and writes the file of a registrar for it.
func (w *world) startServiceOf(name, zk string) *instance {
	w.t.Helper()
	in := &instance{name: name, file: filepath.Join(w.dir, name+".toml")}
	var err error
	in.Service, err = clitest.StartService(w.dir, name, freePort(w.t))
	require.NoError(w.t, err)
	w.t.Cleanup(in.Service.Kill)
	w.write(in.file, fmt.Sprintf(`
instance_id = %q
state_dir = %q

[zookeeper]
hosts = [%q]
session_timeout = "4s"

[services.user-api]
host = "127.0.0.1"
port = %d
zk_path = "/services/user-api"
check_interval = "100ms"
weight = 10
drain = 0
checks = [{ type = "http", uri = "/health", timeout = "2s", rise = 2, fall = 2 }]
`, name, w.dir, zk, in.Port))
	return in
}

func (w *world) startRegistrar(in *instance) {
	w.t.Helper()
	w.registrars++
	var err error
	in.registrar, err = clitest.Start(w.dir, fmt.Sprintf("%s-registrar-%d", in.name, w.registrars), nil, binary, "registrar", "-c", in.file)
	require.NoError(w.t, err)
	w.t.Cleanup(in.registrar.Kill)
}

// backendServer is a web server of the test's own, for tests with many instances.
func backendServer(t testing.TB, name string) (port int) {
	t.Helper()
	s := httptest.NewUnstartedServer(http.HandlerFunc(func(rw http.ResponseWriter, _ *http.Request) { fmt.Fprintln(rw, name) }))
	l, err := net.Listen("tcp4", "0.0.0.0:0") // every address of 127.0.0.0/8
	require.NoError(t, err)
	s.Listener.Close()
	s.Listener = l
	s.Start()
	t.Cleanup(s.Close)
	return s.Listener.Addr().(*net.TCPAddr).Port
}

// publish registers an instance from the test's own session, exactly as Nerve would.
func (w *world) publish(name string, port int) (withdraw func()) {
	w.t.Helper()
	return w.publishAt(servicePath, name, port)
}

func (w *world) publishAt(path, name string, port int) (withdraw func()) {
	w.t.Helper()
	data, err := discovery.EncodeNerve(discovery.Payload{Host: "127.0.0.1", Port: uint16(port), Name: name})
	require.NoError(w.t, err)
	r := discovery.Registration{Path: path, Prefix: name + "_", Data: data, Sequential: true, Ephemeral: true}
	node, err := w.session.Publish(context.Background(), r, "")
	require.NoError(w.t, err)
	return func() {
		w.t.Helper()
		require.NoError(w.t, w.session.Withdraw(context.Background(), r, node.Node))
	}
}

// plant writes a node with any bytes.
func (w *world) plant(prefix string, data []byte) {
	w.t.Helper()
	_, err := w.session.Publish(context.Background(), discovery.Registration{
		Path: servicePath, Prefix: prefix, Data: data, Sequential: true, Ephemeral: true,
	}, "")
	require.NoError(w.t, err)
}
