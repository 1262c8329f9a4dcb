package haproxy

import (
	"context"
	"fmt"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/sirupsen/logrus"
	logtest "github.com/sirupsen/logrus/hooks/test"
	"github.com/stretchr/testify/require"

	"github.com/myelin-sd/myelin/haproxy/haproxytest"
)

// patience bounds every wait of these tests; no test is about time.
const patience = time.Minute

const tick = 5 * time.Millisecond

func eventually(t *testing.T, condition func() bool, what string) {
	t.Helper()
	require.Eventually(t, condition, patience, tick, what)
}

func pidIn(t *testing.T, path string) int {
	t.Helper()
	pid := 0
	eventually(t, func() bool {
		text, err := os.ReadFile(path)
		if err != nil {
			return false
		}
		pid, err = strconv.Atoi(strings.TrimSpace(string(text)))
		return err == nil && pid > 1
	}, "a pid in "+path)
	return pid
}

// living tells whether a process has a command line, which a dead one that nobody waited for has not.
func living(pid int) bool {
	text, err := os.ReadFile(fmt.Sprintf("/proc/%d/cmdline", pid))
	return err == nil && len(text) > 0
}

// host is a folder with the files of one HAProxy.
type host struct {
	t    *testing.T
	dir  string
	port int
	o    ProcessOptions
	hook *logtest.Hook
}

func newHost(t *testing.T) *host {
	t.Helper()
	binary := haproxytest.Require(t)
	dir := haproxytest.TempDir(t)
	log, hook := logtest.NewNullLogger()
	h := &host{t: t, dir: dir, port: haproxytest.FreePort(t), hook: hook, o: ProcessOptions{
		Binary: binary, ConfigPath: filepath.Join(dir, "haproxy.cfg"), PidPath: filepath.Join(dir, "pid"),
		MasterSocket: haproxytest.MasterSocket(dir), AdminSocket: haproxytest.Socket(dir),
		LogPath: filepath.Join(dir, "log"), Log: log,
	}}
	t.Cleanup(h.killAll)
	return h
}

// killAll ends every HAProxy of this folder, and no other.
func (h *host) killAll() {
	for _, pid := range h.pids() {
		_ = syscall.Kill(pid, syscall.SIGKILL)
	}
	eventually(h.t, func() bool { return len(h.pids()) == 0 }, "the end of HAProxy")
}

// pids are all living processes that were started with our configuration file.
func (h *host) pids() []int {
	h.t.Helper()
	paths, err := filepath.Glob("/proc/[0-9]*/cmdline")
	require.NoError(h.t, err)
	var out []int
	for _, path := range paths {
		text, err := os.ReadFile(path)
		if err != nil || !slices.Contains(strings.Split(string(text), "\x00"), h.o.ConfigPath) {
			continue
		}
		pid, err := strconv.Atoi(filepath.Base(filepath.Dir(path)))
		require.NoError(h.t, err)
		out = append(out, pid)
	}
	return out
}

// config is a file whose service answers with status.
func (h *host) config(status int) File {
	return File{
		AdminSocket: h.o.AdminSocket, DistinctNames: haproxytest.AtLeast(h.t, 3, 3),
		Services: []Service{{
			Name: "web", HasFrontend: true, Bind: "127.0.0.1:" + strconv.Itoa(h.port),
			Frontend: []string{"http-request return status " + strconv.Itoa(status)},
		}},
	}
}

func (h *host) write(cfg []byte) {
	h.t.Helper()
	_, err := NewWriter(h.o.ConfigPath, "", nil).Write(h.t.Context(), cfg)
	require.NoError(h.t, err)
}

// status asks the service, 0 when nobody answers.
func (h *host) status() int {
	client := http.Client{Transport: &http.Transport{DisableKeepAlives: true}, Timeout: 10 * time.Second}
	r, err := client.Get("http://127.0.0.1:" + strconv.Itoa(h.port))
	if err != nil {
		return 0
	}
	defer r.Body.Close()
	return r.StatusCode
}

func (h *host) answers(status int) {
	h.t.Helper()
	eventually(h.t, func() bool { return h.status() == status }, fmt.Sprintf("status %d", status))
}

// run runs a Process and returns it with the function that ends its Run.
func (h *host) run(o ProcessOptions) (*Process, func()) {
	p := NewProcess(o)
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan struct{})
	go func() { defer close(done); p.Run(ctx) }()
	stop := func() { cancel(); <-done }
	h.t.Cleanup(stop)
	return p, stop
}

func (h *host) started(p *Process) {
	h.t.Helper()
	select {
	case <-p.Started():
	case <-time.After(patience):
		require.FailNow(h.t, "HAProxy not started", "status: %+v", p.Status())
	}
}

func (h *host) worker(p *Process) int {
	h.t.Helper()
	m, err := askMaster(h.t.Context(), p.o.MasterSocket)
	require.NoError(h.t, err)
	require.NotZero(h.t, m.worker)
	return m.worker
}

func (h *host) logged(level logrus.Level, message string) int {
	n := 0
	for _, e := range h.hook.AllEntries() {
		if e.Level == level && e.Message == message {
			n++
		}
	}
	return n
}

func TestProcessStartsHAProxyAndLeavesItRunning(t *testing.T) {
	h := newHost(t)
	h.write(h.config(200).Render(nil))
	p, stop := h.run(h.o)
	h.started(p)
	h.answers(200)
	s := p.Status()
	require.Equal(t, pidIn(t, h.o.PidPath), s.Pid)
	require.False(t, s.Adopted)
	require.EqualValues(t, 1, s.Starts)

	reply, err := ask(t.Context(), h.o.AdminSocket, "show env "+StaticVariable)
	require.NoError(t, err)
	require.Equal(t, StaticVariable+"="+h.config(200).Static(), strings.TrimSpace(reply), "it knows what it was started with")
	session, _, errno := syscall.Syscall(syscall.SYS_GETSID, uintptr(s.Pid), 0, 0)
	require.Zero(t, errno)
	mine, _, errno := syscall.Syscall(syscall.SYS_GETSID, 0, 0, 0)
	require.Zero(t, errno)
	require.NotEqual(t, mine, session, "what ends our session does not end HAProxy")

	worker := h.worker(p)
	stop()
	require.Equal(t, 200, h.status())

	second, stop := h.run(h.o)
	h.started(second)
	require.True(t, second.Status().Adopted)
	require.Equal(t, s.Pid, second.Pid())
	require.Equal(t, worker, h.worker(second))
	require.Zero(t, second.Status().Starts)
	stop()
	require.Equal(t, 200, h.status())
}

func TestProcessStartsHAProxyAgain(t *testing.T) {
	for name, victim := range map[string]func(h *host, p *Process) int{
		"worker": func(h *host, p *Process) int { return h.worker(p) },
		"master": func(_ *host, p *Process) int { return p.Pid() },
	} {
		t.Run(name, func(t *testing.T) {
			h := newHost(t)
			h.write(h.config(200).Render(nil))
			p, _ := h.run(h.o)
			h.started(p)
			for range 3 {
				old := p.Pid()
				require.NoError(t, syscall.Kill(victim(h, p), syscall.SIGKILL))
				eventually(t, func() bool { pid := p.Pid(); return pid != 0 && pid != old }, "another master")
				h.started(p)
				h.answers(200)
				require.Equal(t, pidIn(t, h.o.PidPath), p.Pid())
			}
			eventually(t, func() bool { return len(h.pids()) == 2 }, "one master and one worker")
			require.EqualValues(t, 4, p.Status().Starts)
			require.EqualValues(t, 3, p.Status().Deaths)
		})
	}
}

// Someone who cleans /run must not get a second HAProxy, nor lose the restart.
func TestProcessFindsItsHAProxyByWhatIsLeft(t *testing.T) {
	for name, lost := range map[string][]string{
		"no pid file":                {"pid"},
		"no master socket":           {"master.sock"},
		"only the admin socket":      {"pid", "master.sock"},
		"only the pid file":          {"master.sock", "admin.sock"},
		"a pid file of someone else": nil,
	} {
		t.Run(name, func(t *testing.T) {
			h := newHost(t)
			h.write(h.config(200).Render(nil))
			p, stop := h.run(h.o)
			h.started(p)
			pid := p.Pid()
			stop()
			for _, file := range lost {
				require.NoError(t, os.Remove(filepath.Join(h.dir, file)))
			}
			if lost == nil {
				require.NoError(t, os.WriteFile(h.o.PidPath, []byte(strconv.Itoa(os.Getpid())), 0o600))
			}

			p, _ = h.run(h.o)
			h.started(p)
			require.Equal(t, pid, p.Pid())
			require.True(t, p.Status().Adopted)

			require.NoError(t, syscall.Kill(pid, syscall.SIGKILL))
			eventually(t, func() bool { now := p.Pid(); return now != 0 && now != pid }, "another master")
			h.answers(200)
		})
	}
}

// The files of a dead HAProxy, and a pid that belongs to another program by now.
func TestProcessIsNotFooledByWhatADeadHAProxyLeft(t *testing.T) {
	h := newHost(t)
	h.write(h.config(200).Render(nil))
	other := exec.Command("sleep", "3600")
	require.NoError(t, other.Start())
	t.Cleanup(func() { _ = other.Process.Kill(); _ = other.Wait() })
	require.NoError(t, os.WriteFile(h.o.PidPath, []byte(strconv.Itoa(other.Process.Pid)+"\n"), 0o600))
	for _, socket := range []string{h.o.MasterSocket, h.o.AdminSocket} {
		l, err := net.ListenUnix("unix", &net.UnixAddr{Name: socket, Net: "unix"})
		require.NoError(t, err)
		l.SetUnlinkOnClose(false)
		require.NoError(t, l.Close())
		require.FileExists(t, socket)
	}

	idle := NewProcess(h.o)
	require.ErrorIs(t, idle.Reload(t.Context()), ErrNotRunning)
	p, _ := h.run(h.o)
	h.started(p)
	h.answers(200)
	require.NotEqual(t, other.Process.Pid, p.Pid())
	require.True(t, living(other.Process.Pid))

	require.False(t, p.isOurs(t.Context(), 0))
	require.False(t, p.isOurs(t.Context(), -1))
	require.False(t, p.isOurs(t.Context(), 1))
	require.False(t, p.isOurs(t.Context(), other.Process.Pid))
	require.True(t, p.isOurs(t.Context(), p.Pid()))
}

// Another HAProxy on our admin socket is somebody's: a second one would share its ports.
func TestProcessLeavesAForeignHAProxyAlone(t *testing.T) {
	h := newHost(t)
	h.write(h.config(200).Render(nil))
	foreign := *h
	foreign.o.ConfigPath = filepath.Join(h.dir, "foreign.cfg")
	foreign.o.PidPath = filepath.Join(h.dir, "foreign.pid")
	foreign.o.MasterSocket = filepath.Join(h.dir, "foreign.sock")
	foreign.write(h.config(404).Render(nil))
	t.Cleanup(foreign.killAll)
	f, stop := foreign.run(foreign.o)
	foreign.started(f)
	stop()

	p, _ := h.run(h.o)
	eventually(t, func() bool { return strings.Contains(p.Status().Error, "was not started from "+h.o.ConfigPath) }, "a refusal")
	require.ErrorContains(t, p.Reload(t.Context()), "was not started from")
	require.Empty(t, h.pids())
	require.Equal(t, 404, h.status())

	foreign.killAll()
	h.started(p)
	h.answers(200)
	require.Empty(t, p.Status().Error)
}

func TestProcessWaitsForAFileThatPasses(t *testing.T) {
	h := newHost(t)
	p, _ := h.run(h.o)
	eventually(t, func() bool { return strings.Contains(p.Status().Error, errNoFile.Error()) }, "a wait for the file")

	h.write([]byte("defaults\n\tfrobnicate\n"))
	eventually(t, func() bool { return strings.Contains(p.Status().Error, "unknown keyword 'frobnicate'") }, "HAProxy's words")
	require.Zero(t, p.Pid())
	require.Empty(t, h.pids())

	h.write(h.config(200).Render(nil))
	h.started(p)
	h.answers(200)
	require.Empty(t, p.Status().Error)
	require.Equal(t, 1, h.logged(logrus.InfoLevel, "HAProxy waits for its file"))
	require.Equal(t, 1, h.logged(logrus.ErrorLevel, "HAProxy not started"), "once for one reason")
}

// What "haproxy -c" cannot see, such as an address that cannot be had, is in the error too.
func TestProcessTellsWhyHAProxyDoesNotStart(t *testing.T) {
	h := newHost(t)
	f := h.config(200)
	f.Services[0].Bind = "192.0.2.1:" + strconv.Itoa(h.port)
	h.write(f.Render(nil))
	p, _ := h.run(h.o)
	eventually(t, func() bool { return strings.Contains(p.Status().Error, "192.0.2.1:"+strconv.Itoa(h.port)) }, "the address")
	require.Contains(t, p.Status().Error, "cannot bind socket")
	require.NotContains(t, p.Status().Error, "NOTICE")

	h.write(h.config(200).Render(nil))
	h.answers(200)
}

func TestProcessReload(t *testing.T) {
	h := newHost(t)
	h.write(h.config(200).Render(nil))
	p, _ := h.run(h.o)
	h.started(p)
	h.answers(200)
	pid, worker := p.Pid(), h.worker(p)

	for i, status := range []int{201, 202, 203} {
		h.write(h.config(status).Render(nil))
		require.NoError(t, p.Reload(t.Context()))
		h.started(p)
		h.answers(status)
		require.Equal(t, pid, p.Pid(), "reload %d", i)
		require.NotEqual(t, worker, h.worker(p))
		worker = h.worker(p)
	}

	h.write([]byte("defaults\n\tfrobnicate\n"))
	err := p.Reload(t.Context())
	require.ErrorContains(t, err, "reload HAProxy: check "+h.o.ConfigPath)
	require.ErrorContains(t, err, "unknown keyword 'frobnicate'")
	require.Equal(t, worker, h.worker(p), "the old one serves")
	h.answers(203) // of 2.2 the one before may have taken a connection too

	// What the check cannot see, the master finds out: it keeps the old worker as well.
	f := h.config(204)
	f.Services[0].Bind = "192.0.2.1:" + strconv.Itoa(h.port)
	h.write(f.Render(nil))
	require.ErrorContains(t, p.Reload(t.Context()), "reload HAProxy: it failed and the old worker stays")
	h.answers(203)

	h.write(h.config(200).Render(nil))
	require.NoError(t, p.Reload(t.Context()))
	h.answers(200)
	require.Equal(t, pid, p.Pid())
	require.Zero(t, p.Status().Deaths)
	require.EqualValues(t, 1, p.Status().Starts)
}

func TestProcessReloadsBySignalWithoutTheSocket(t *testing.T) {
	h := newHost(t)
	h.write(h.config(200).Render(nil))
	p, _ := h.run(h.o)
	h.started(p)
	h.answers(200)
	pid := p.Pid()
	require.NoError(t, os.Remove(h.o.MasterSocket))

	h.write(h.config(201).Render(nil))
	require.NoError(t, p.Reload(t.Context()))
	h.answers(201)
	require.Equal(t, pid, p.Pid())
}

// A colleague's reload is seen and is no death.
func TestProcessSeesAReloadByHand(t *testing.T) {
	h := newHost(t)
	h.write(h.config(200).Render(nil))
	p, _ := h.run(h.o)
	h.started(p)
	h.answers(200)
	pid, worker := p.Pid(), h.worker(p)

	require.NoError(t, syscall.Kill(pid, syscall.SIGUSR2))
	for another := false; !another; {
		h.started(p) // what is not announced is not looked for
		m, err := askMaster(t.Context(), p.o.MasterSocket)
		another = err == nil && m.worker != 0 && m.worker != worker
	}
	require.Equal(t, pid, p.Pid())
	require.Zero(t, p.Status().Deaths)
	require.EqualValues(t, 1, p.Status().Starts)
}

func TestParseProc(t *testing.T) {
	const v26 = "#<PID>          <type>          <reloads>       <uptime>        <version>      \n" +
		"7902            master          2 [failed: 1]   0d00h02m16s     2.6.12-1+deb12u4\n" +
		"# workers\n8374            worker          1               0d00h00m06s     2.6.12-1+deb12u4\n" +
		"# programs\n\n"
	const v20 = "#<PID>          <type>          <relative PID>  <reloads>       <uptime>        <version>      \n" +
		"1162            master          0               5               0d00h02m07s     2.0.13         \n" +
		"# workers\n1271            worker          1               0               0d00h00m00s     2.0.13\n" +
		"# old workers\n1233            worker          [was: 1]        3               0d00h00m43s     2.0.13\n"
	const v30 = "#<PID>          <type>          <reloads>       <uptime>        <version>      \n" +
		"100             master          3 [failed: 0]   0d00h00m28s     3.0.11\n" +
		"# workers\n130             worker          0               0d00h00m00s     3.0.11\n" +
		"# old workers\n120             worker          1               0d00h00m28s     3.0.11\n# programs\n\n"
	for text, want := range map[string]masterState{
		v26: {pid: 7902, reloads: 2, failed: 1, countsFails: true},
		v20: {pid: 1162, worker: 1271, reloads: 5},
		v30: {pid: 100, worker: 130, reloads: 3, countsFails: true},
	} {
		got, ok := parseProc(text)
		require.True(t, ok)
		require.Equal(t, want, got)
	}
	for _, text := range []string{"", "Unknown command.\n", "#<PID> <type>\n1 master\n", strings.ReplaceAll(v26, "master", "worker")} {
		_, ok := parseProc(text)
		require.False(t, ok, text)
	}
}

func TestOpenLogKeepsItSmall(t *testing.T) {
	path := filepath.Join(t.TempDir(), "log")
	require.NoError(t, os.WriteFile(path, make([]byte, logMost), 0o600))
	f, offset, err := openLog(path)
	require.NoError(t, err)
	require.EqualValues(t, logMost, offset)
	_, err = f.WriteString("last words")
	require.NoError(t, err)
	require.NoError(t, f.Close())
	require.Equal(t, "last words", readFrom(path, offset))

	f, offset, err = openLog(path)
	require.NoError(t, err)
	require.Zero(t, offset)
	require.NoError(t, f.Close())
	require.Empty(t, read(t, path))
	require.Empty(t, readFrom(filepath.Join(t.TempDir(), "none"), 0))

	f, offset, err = openLog(os.DevNull)
	require.NoError(t, err)
	require.Zero(t, offset)
	require.NoError(t, f.Close())
}
