// Package haproxytest starts a real HAProxy in master-worker mode for tests, on unix sockets in a directory of its
// own, and reloads, kills and restarts it.
package haproxytest

import (
	"bufio"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"
)

// ErrNoBinary says that no HAProxy is installed.
var ErrNoBinary = errors.New("no haproxy in PATH or /usr/sbin")

// BinaryVariable is the environment variable that names another HAProxy to test with, by its path.
const BinaryVariable = "MYELIN_HAPROXY"

// patience bounds every wait: for a start, a reload, an exit.
const patience = 20 * time.Second

// Options change how HAProxy is started. The zero value is good.
type Options struct {
	Binary string // default: that of Binary

	// Files are configuration files to be used instead of the text given to Start. They must declare Socket(dir)
	// as their stats socket.
	Files []string
}

// HAProxy is one running HAProxy: a master and its worker.
type HAProxy struct {
	Dir          string
	Socket       string   // the worker's, level admin
	MasterSocket string   // the master's CLI
	Files        []string // configuration files, in order
	LogFile      string   // what HAProxy writes to stdout and stderr

	binary string

	mu     sync.Mutex
	cmd    *exec.Cmd
	exited chan struct{} // closed when the master of cmd has been waited for
}

// Socket is the path of the admin socket in dir.
func Socket(dir string) string { return filepath.Join(dir, "admin.sock") }

// MasterSocket is the path of the master's CLI in dir.
func MasterSocket(dir string) string { return filepath.Join(dir, "master.sock") }

// Binary finds HAProxy, or returns ErrNoBinary. The environment's MYELIN_HAPROXY, a path, comes first.
func Binary() (string, error) {
	if path := os.Getenv(BinaryVariable); path != "" {
		if _, err := exec.LookPath(path); err != nil {
			return "", fmt.Errorf("find the HAProxy of %s: %w", BinaryVariable, err)
		}
		return path, nil
	}
	for _, name := range []string{"haproxy", "/usr/sbin/haproxy"} {
		if path, err := exec.LookPath(name); err == nil {
			return path, nil
		}
	}
	return "", ErrNoBinary
}

// New starts HAProxy with cfg, which needs no stats socket of its own, and stops it when the test ends. Without an
// installed HAProxy the test is skipped, or fails when CI=true.
func New(t testing.TB, cfg string) *HAProxy {
	t.Helper()
	Require(t)
	h, err := Start(TempDir(t), cfg, Options{})
	if err != nil {
		t.Fatalf("start HAProxy: %v", err)
	}
	t.Cleanup(func() {
		if err := h.Stop(); err != nil {
			t.Errorf("stop HAProxy: %v", err)
		}
		if t.Failed() {
			t.Logf("HAProxy said:\n%s", h.Log())
		}
	})
	return h
}

// Require returns HAProxy's path. It skips the test when none is installed, and fails it when CI=true.
func Require(t testing.TB) string {
	t.Helper()
	path, err := Binary()
	if err != nil {
		if os.Getenv(BinaryVariable) != "" {
			t.Fatal(err)
		}
		if os.Getenv("CI") == "true" {
			t.Fatalf("CI must have a real HAProxy: %v", err)
		}
		t.Skipf("NOT TESTED against a real HAProxy: %v; install it (apt-get install haproxy) to run this test", err)
	}
	return path
}

// RequireAtLeast skips the test when HAProxy is older than major.minor, and says what it lacks. With CI=true, where 2.6
// is the least that is there, what 2.6 has may not be skipped: that fails, unless BinaryVariable names the HAProxy.
func RequireAtLeast(t testing.TB, major, minor int, what string) {
	t.Helper()
	if AtLeast(t, major, minor) {
		return
	}
	text := fmt.Sprintf("NOT TESTED: %s has no %s, which came with %d.%d", Require(t), what, major, minor)
	promised := major < 2 || major == 2 && minor <= 6
	if promised && os.Getenv("CI") == "true" && os.Getenv(BinaryVariable) == "" {
		t.Fatal(text)
	}
	t.Skip(text)
}

// AtLeast tells whether HAProxy is of version major.minor or later. Like Require it skips the test where there is none.
func AtLeast(t testing.TB, major, minor int) bool {
	t.Helper()
	out, err := exec.Command(Require(t), "-v").Output()
	if err != nil {
		t.Fatalf("ask HAProxy for its version: %v", err)
	}
	fields := strings.Fields(string(out)) // "HAProxy version 2.6.12-1+deb12u4 2026/10/17", "HA-Proxy" before 2.4
	if len(fields) < 3 {
		t.Fatalf("HAProxy says of its version: %q", out)
	}
	parts := strings.SplitN(fields[2]+".", ".", 3)
	gotMajor, err1 := strconv.Atoi(parts[0])
	text, _, _ := strings.Cut(parts[1], "-")
	gotMinor, err2 := strconv.Atoi(text)
	if err := errors.Join(err1, err2); err != nil {
		t.Fatalf("read HAProxy's version %q: %v", fields[2], err)
	}
	return gotMajor > major || gotMajor == major && gotMinor >= minor
}

// RequireDynamicServers skips the test on a HAProxy that cannot add servers at run time.
func RequireDynamicServers(t testing.TB) {
	t.Helper()
	RequireAtLeast(t, 2, 6, "servers added at run time")
}

// TempDir is a directory with a path short enough for unix sockets (107 bytes on Linux, of which HAProxy takes some
// for a temporary name), which that of testing's TempDir may not be. It is removed when the test ends.
func TempDir(t testing.TB) string {
	t.Helper()
	dir, err := os.MkdirTemp("", "hap")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { os.RemoveAll(dir) })
	return dir
}

// FreePort is a TCP port on 127.0.0.1 that was free a moment ago.
func FreePort(t testing.TB) int {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	return l.Addr().(*net.TCPAddr).Port
}

// Start writes cfg into dir, starts HAProxy with it and returns when it serves. The caller stops it.
func Start(dir, cfg string, o Options) (*HAProxy, error) {
	binary := o.Binary
	if binary == "" {
		var err error
		if binary, err = Binary(); err != nil {
			return nil, err
		}
	}
	h := &HAProxy{
		Dir: dir, Socket: Socket(dir), MasterSocket: MasterSocket(dir), Files: o.Files,
		LogFile: filepath.Join(dir, "haproxy.log"), binary: binary,
	}
	if len(h.Files) == 0 {
		base := filepath.Join(dir, "base.cfg")
		text := "global\n  stats socket " + h.Socket + " mode 600 level admin expose-fd listeners\n"
		if err := os.WriteFile(base, []byte(text), 0o600); err != nil {
			return nil, fmt.Errorf("write configuration: %w", err)
		}
		h.Files = []string{base, filepath.Join(dir, "haproxy.cfg")}
		if err := h.Configure(cfg); err != nil {
			return nil, err
		}
	}
	if err := h.start(); err != nil {
		return nil, err
	}
	return h, nil
}

// Configure writes another configuration, for the next Reload or Restart.
func (h *HAProxy) Configure(cfg string) error {
	if err := os.WriteFile(h.Files[len(h.Files)-1], []byte(cfg), 0o600); err != nil {
		return fmt.Errorf("write configuration: %w", err)
	}
	return nil
}

func (h *HAProxy) start() error {
	args := []string{"-W", "-S", h.MasterSocket + ",mode,600"}
	for _, f := range h.Files {
		args = append(args, "-f", f)
	}
	// A file, not a pipe: old workers keep stdout and stderr open for as long as they live, and Wait would wait too.
	log, err := os.OpenFile(h.LogFile, os.O_CREATE|os.O_WRONLY|os.O_APPEND, 0o600)
	if err != nil {
		return fmt.Errorf("open log: %w", err)
	}
	defer log.Close()
	cmd := exec.Command(h.binary, args...)
	cmd.Stdout, cmd.Stderr = log, log
	cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true} // so that Stop reaches every worker
	if err := cmd.Start(); err != nil {
		return fmt.Errorf("start %s: %w", h.binary, err)
	}
	exited := make(chan struct{})
	go func() {
		cmd.Wait() // the exit code of a master that is stopped says nothing of interest
		close(exited)
	}()
	h.mu.Lock()
	h.cmd, h.exited = cmd, exited
	h.mu.Unlock()

	if _, err := h.awaitWorker(0); err != nil {
		h.Stop()
		return fmt.Errorf("%w; it said: %s", err, h.Log())
	}
	return nil
}

// awaitWorker waits until a worker other than the one with pid old serves and the master answers, and returns the
// worker's pid. The worker alone is not enough: a master that has forked it but not yet entered its own loop loses a
// SIGUSR2 without a sign (seen on 2.6.12).
func (h *HAProxy) awaitWorker(old int) (int, error) {
	tick := time.NewTicker(2 * time.Millisecond)
	defer tick.Stop()
	deadline := time.After(patience)
	for {
		if pid, err := h.WorkerPid(); err == nil && pid != old {
			if proc, err := command(h.MasterSocket, "show proc"); err == nil && strings.Contains(proc, strconv.Itoa(pid)) {
				return pid, nil
			}
		}
		select {
		case <-h.done():
			return 0, errors.New("HAProxy has exited")
		case <-deadline:
			return 0, fmt.Errorf("no worker serves after %v", patience)
		case <-tick.C:
		}
	}
}

func (h *HAProxy) done() <-chan struct{} {
	h.mu.Lock()
	defer h.mu.Unlock()
	return h.exited
}

// MasterPid is the pid of the master, which a reload does not change.
func (h *HAProxy) MasterPid() int {
	h.mu.Lock()
	defer h.mu.Unlock()
	return h.cmd.Process.Pid
}

// WorkerPid asks the worker that serves now for its pid.
func (h *HAProxy) WorkerPid() (int, error) {
	info, err := h.Command("show info")
	if err != nil {
		return 0, err
	}
	for s := bufio.NewScanner(strings.NewReader(info)); s.Scan(); {
		if text, ok := strings.CutPrefix(s.Text(), "Pid: "); ok {
			return strconv.Atoi(text)
		}
	}
	return 0, fmt.Errorf("no Pid in show info: %q", info)
}

// Command sends one command over a connection of its own, as a colleague with socat would, and returns the reply.
func (h *HAProxy) Command(line string) (string, error) {
	return command(h.Socket, line)
}

func command(socket, line string) (string, error) {
	conn, err := net.DialTimeout("unix", socket, patience)
	if err != nil {
		return "", err
	}
	defer conn.Close()
	if err := conn.SetDeadline(time.Now().Add(patience)); err != nil {
		return "", err
	}
	if _, err := io.WriteString(conn, line+"\n"); err != nil {
		return "", err
	}
	// The master of 2.6 answers and then waits for more, until told that no more comes.
	if err := conn.(*net.UnixConn).CloseWrite(); err != nil {
		return "", err
	}
	reply, err := io.ReadAll(conn)
	return string(reply), err
}

// Reload makes the master start a new worker, as "systemctl reload haproxy" does, and waits until that one serves.
// The old worker may live on for as long as it has connections.
func (h *HAProxy) Reload() error {
	old, err := h.WorkerPid()
	if err != nil {
		return fmt.Errorf("reload HAProxy: %w", err)
	}
	if err := h.SignalReload(); err != nil {
		return err
	}
	if _, err := h.awaitWorker(old); err != nil {
		return fmt.Errorf("reload HAProxy: %w", err)
	}
	return nil
}

// SignalReload asks for a reload and waits for nothing.
func (h *HAProxy) SignalReload() error {
	if err := syscall.Kill(h.MasterPid(), syscall.SIGUSR2); err != nil {
		return fmt.Errorf("reload HAProxy: %w", err)
	}
	return nil
}

// KillWorker kills the serving worker with SIGKILL. The master sees it and exits too; KillWorker waits for that.
func (h *HAProxy) KillWorker() error {
	pid, err := h.WorkerPid()
	if err != nil {
		return fmt.Errorf("kill worker: %w", err)
	}
	if err := syscall.Kill(pid, syscall.SIGKILL); err != nil {
		return fmt.Errorf("kill worker: %w", err)
	}
	return h.awaitExit()
}

// Kill kills the master and its workers with SIGKILL.
func (h *HAProxy) Kill() error {
	if err := h.signalAll(syscall.SIGKILL); err != nil {
		return fmt.Errorf("kill HAProxy: %w", err)
	}
	return h.awaitExit()
}

// Restart stops HAProxy, however it is, and starts it anew with the same files.
func (h *HAProxy) Restart() error {
	if err := h.Stop(); err != nil {
		return err
	}
	return h.start()
}

// Stop ends HAProxy at once, with all its workers. It may be called again, and when HAProxy is gone already.
func (h *HAProxy) Stop() error {
	select {
	case <-h.done():
	default:
		if err := h.signalAll(syscall.SIGTERM); err != nil {
			return fmt.Errorf("stop HAProxy: %w", err)
		}
		if err := h.awaitExit(); err != nil {
			h.signalAll(syscall.SIGKILL)
			return err
		}
	}
	// Workers left by a master that was killed, and old ones with connections.
	return h.signalAll(syscall.SIGKILL)
}

// signalAll signals HAProxy's process group; that nobody is left is no error.
func (h *HAProxy) signalAll(s syscall.Signal) error {
	if err := syscall.Kill(-h.MasterPid(), s); err != nil && !errors.Is(err, syscall.ESRCH) {
		return fmt.Errorf("signal HAProxy: %w", err)
	}
	return nil
}

func (h *HAProxy) awaitExit() error {
	select {
	case <-h.done():
		return nil
	case <-time.After(patience):
		return fmt.Errorf("HAProxy has not exited after %v", patience)
	}
}

// Log is what HAProxy has written to stdout and stderr.
func (h *HAProxy) Log() string {
	b, err := os.ReadFile(h.LogFile)
	if err != nil {
		return err.Error()
	}
	return string(b)
}
