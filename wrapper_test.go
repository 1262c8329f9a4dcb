package main_test

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"net"
	"net/http"
	"os"
	"os/exec"
	"os/signal"
	"path/filepath"
	"strconv"
	"strings"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/myelin-sd/myelin/cli/clitest"
)

const wrappedVariable = "MYELIN_WRAPPED_SERVICE"

// wrappedIfAsked makes this process the service that a registrar of the tests runs as its child. It answers requests,
// prints the signals that it gets, and ends in order at SIGTERM and SIGINT, with the exit code 7. What else it is to
// do the tests ask for over HTTP.
func wrappedIfAsked() {
	port := os.Getenv(wrappedVariable)
	if port == "" {
		return
	}
	signals := make(chan os.Signal, 16)
	signal.Notify(signals)
	var deaf atomic.Bool
	mux := http.NewServeMux()
	mux.HandleFunc("/", func(rw http.ResponseWriter, _ *http.Request) { fmt.Fprintln(rw, port) })
	mux.HandleFunc("/health", func(rw http.ResponseWriter, _ *http.Request) { fmt.Fprintln(rw, "OK") })
	mux.HandleFunc("POST /exit/{code}", func(_ http.ResponseWriter, r *http.Request) {
		code, _ := strconv.Atoi(r.PathValue("code"))
		os.Exit(code)
	})
	mux.HandleFunc("POST /deaf", func(http.ResponseWriter, *http.Request) { deaf.Store(true) })
	// An orphan: a grandchild whose parent ends at once.
	mux.HandleFunc("POST /orphan", func(rw http.ResponseWriter, _ *http.Request) {
		out, err := exec.Command("sh", "-c", "sleep 0.2 >/dev/null 2>&1 & echo $!").Output()
		if err != nil {
			http.Error(rw, err.Error(), http.StatusInternalServerError)
			return
		}
		rw.Write(out)
	})
	fmt.Println("service: begins", os.Getpid(), os.Getenv("NOTIFY_SOCKET"))
	server := &http.Server{Addr: "127.0.0.1:" + port, Handler: mux}
	go func() {
		if err := server.ListenAndServe(); !errors.Is(err, http.ErrServerClosed) {
			fmt.Println("service:", err)
			os.Exit(1)
		}
	}()
	for sig := range signals {
		if sig == syscall.SIGURG || sig == syscall.SIGCHLD {
			continue // the Go runtime's own
		}
		fmt.Println("service: got", sig)
		if deaf.Load() || sig != syscall.SIGTERM && sig != syscall.SIGINT {
			continue
		}
		server.Shutdown(context.Background())
		os.Exit(7)
	}
}

// wrapped is a registrar with the service as its child.
type wrapped struct {
	*clitest.Process
	w    *world
	name string
	port int
	file string
}

// wrap writes the file of a registrar that runs its service. more are further keys of the file, own of the service.
func (w *world) wrap(name, more, own string) *wrapped {
	w.t.Helper()
	c := &wrapped{w: w, name: name, port: freePort(w.t), file: filepath.Join(w.dir, name+".toml")}
	w.write(c.file, fmt.Sprintf(`
instance_id = %q
state_dir = %q
%s

[zookeeper]
hosts = [%q]
session_timeout = "4s"

[services.user-api]
host = "127.0.0.1"
port = %d
zk_path = "/services/user-api"
check_interval = "50ms"
checks = [{ type = "http", uri = "/health", timeout = "2s" }]
%s
`, name, w.dir, more, w.zk.Addr(), c.port, own))
	return c
}

// noDrain is for tests in which nobody uses the service.
const noDrain = "drain = 0"

// start runs the registrar with the service as its command, behind the words of before.
func (c *wrapped) start(before ...string) *wrapped {
	c.w.t.Helper()
	self, err := os.Executable()
	require.NoError(c.w.t, err)
	c.w.registrars++
	line := append(before, binary, "registrar", "-c", c.file, "--", self)
	env := []string{wrappedVariable + "=" + strconv.Itoa(c.port), "NOTIFY_SOCKET="}
	c.Process, err = clitest.Start(c.w.dir, fmt.Sprintf("%s-wrapper-%d", c.name, c.w.registrars), env, line[0], line[1:]...)
	require.NoError(c.w.t, err)
	c.w.t.Cleanup(c.end)
	return c
}

// end ends what the test has left: both, since nobody but a test kills a registrar and means its child too.
func (c *wrapped) end() {
	if pid := c.childPid(); c.Running() && pid > 0 {
		syscall.Kill(pid, syscall.SIGKILL)
	}
	c.Kill()
}

// childPid is that of the service, 0 before it has begun.
func (c *wrapped) childPid() (pid int) {
	for line := range strings.Lines(c.Log()) {
		fmt.Sscanf(line, "service: begins %d", &pid)
	}
	return pid
}

func (c *wrapped) says(what string) {
	c.w.t.Helper()
	c.w.eventually(what, func() error {
		if !strings.Contains(c.Log(), what) {
			return errors.New("it says: " + c.Tail(5))
		}
		return nil
	})
}

func (c *wrapped) post(path string) (string, error) {
	resp, err := http.Post(fmt.Sprintf("http://127.0.0.1:%d%s", c.port, path), "", nil)
	if err != nil {
		return "", err
	}
	defer resp.Body.Close()
	line, _ := bufio.NewReader(resp.Body).ReadString('\n')
	return strings.TrimSpace(line), nil
}

// exits waits for the registrar's end, with an exit code.
func (c *wrapped) exits(code int) {
	c.w.t.Helper()
	got, err := c.Wait(patience)
	require.NoError(c.w.t, err)
	require.Equal(c.w.t, code, got, c.Tail(10))
}

// lists waits until ZooKeeper lists exactly these instances.
func (w *world) lists(names ...string) {
	w.t.Helper()
	w.eventually("ZooKeeper lists "+brief(names), func() error {
		listed, err := w.registered()
		if err == nil && fmt.Sprint(listed) != fmt.Sprint(append([]string{}, names...)) {
			err = fmt.Errorf("it lists %v", listed)
		}
		return err
	})
}

// inOrder checks that the words are in the log one behind the other.
func (c *wrapped) inOrder(words ...string) {
	c.w.t.Helper()
	log := c.Log()
	for _, word := range words {
		at := strings.Index(log, word)
		require.GreaterOrEqual(c.w.t, at, 0, "%q is missing, or too early:\n%s", word, c.Log())
		log = log[at+len(word):]
	}
}

// TestCommandStops: a service that is stopped is withdrawn before it learns of that, and its exit code is the
// registrar's.
func TestCommandStops(t *testing.T) {
	for _, sig := range []syscall.Signal{syscall.SIGTERM, syscall.SIGINT} {
		t.Run(sig.String(), func(t *testing.T) {
			w := newWorld(t)
			c := w.wrap("a", "", "drain = \"200ms\"\non_stop = [\"true\"]").start()
			w.lists("a")
			c.says("service is registered") // before it has the answer it does not mark what it withdraws
			require.NoError(t, c.Signal(sig))
			c.exits(7)
			w.lists()
			c.inOrder("the command runs", "service: begins", "service is registered", "service is marked as leaving", "service is withdrawn",
				"service drains", "on_stop command ended", "service: got "+sig.String(), "the command has ended")
		})
	}
}

// TestCommandIsPatient: the service learns of the stop when the withdrawal has had its time, also where ZooKeeper does
// not answer; a second signal reaches it at once.
func TestCommandIsPatient(t *testing.T) {
	w := newWorld(t)
	c := w.wrap("a", "", noDrain).start()
	w.lists("a")
	_, err := c.post("/deaf")
	require.NoError(t, err)
	require.NoError(t, w.zk.Pause())
	defer w.zk.Resume()
	require.NoError(t, c.Signal(syscall.SIGTERM))
	c.says("the command is to stop") // of two signals at a time the system tells the lower one first
	require.NoError(t, c.Signal(syscall.SIGINT))
	c.says("service: got terminated")
	c.inOrder("service: got interrupt", "was not withdrawn in time", "service: got terminated")
	require.True(t, c.Running(), "without stop_timeout nobody is killed")
	require.NoError(t, syscall.Kill(c.childPid(), syscall.SIGKILL))
	c.exits(128 + int(syscall.SIGKILL))
}

// TestCommandIsKilled: stop_timeout is how long a service may take that does not want to end.
func TestCommandIsKilled(t *testing.T) {
	w := newWorld(t)
	c := w.wrap("a", `stop_timeout = "100ms"`, noDrain).start()
	w.lists("a")
	_, err := c.post("/deaf")
	require.NoError(t, err)
	require.NoError(t, c.Signal(syscall.SIGTERM))
	c.exits(128 + int(syscall.SIGKILL))
	c.inOrder("service: got terminated", "the command did not end in time; it is killed", "the command has ended")
	w.lists()
}

// TestCommandDies: the registration goes with the service, long before the session could expire, and the exit code is
// the service's.
func TestCommandDies(t *testing.T) {
	w := newWorld(t)
	c := w.wrap("a", "", `drain = "1h"`).start()
	w.lists("a")
	_, err := c.post("/exit/3")
	require.Error(t, err, "it has no time to answer")
	c.exits(3)
	listed, err := w.registered()
	require.NoError(t, err)
	require.Empty(t, listed)

	c = w.wrap("b", "", `drain = "1h"`).start()
	w.lists("b")
	require.NoError(t, syscall.Kill(c.childPid(), syscall.SIGKILL))
	c.exits(128 + int(syscall.SIGKILL))
	listed, err = w.registered()
	require.NoError(t, err)
	require.Empty(t, listed)
	for _, word := range []string{"service drains", "marked as leaving"} {
		require.NotContains(t, c.Log(), word, "it is dead")
	}
}

// TestCommandGetsSignals: what is not for the registrar alone reaches the service. SIGHUP is for both.
func TestCommandGetsSignals(t *testing.T) {
	w := newWorld(t)
	c := w.wrap("a", "", noDrain).start()
	w.lists("a")
	for _, sig := range []syscall.Signal{syscall.SIGUSR1, syscall.SIGUSR2, syscall.SIGQUIT, syscall.SIGWINCH, syscall.SIGALRM, 40} {
		require.NoError(t, c.Signal(sig))
		c.says("service: got " + sig.String())
	}
	w.write(c.file, read(t, c.file)+"weight = 33\n")
	require.NoError(t, c.Signal(syscall.SIGHUP))
	c.says("service: got hangup")
	c.says("the files were read again and are in force")
	require.True(t, c.Running())
	w.lists("a")
	require.NoError(t, c.Signal(syscall.SIGTERM))
	c.exits(7)
}

// TestCommandDoesNotStart: the exit codes are those of a shell, and nothing is registered.
func TestCommandDoesNotStart(t *testing.T) {
	w := newWorld(t)
	c := w.wrap("a", "", noDrain)
	w.write(c.file, read(t, c.file)+"check_mocked = true\n")
	script := filepath.Join(w.dir, "script")
	w.write(script, "#!/no/such/interpreter\n")
	plain := filepath.Join(w.dir, "plain")
	w.write(plain, "echo\n")
	bare := filepath.Join(w.dir, "bare")
	w.write(bare, "echo\n")
	for _, path := range []string{script, bare} {
		require.NoError(t, os.Chmod(path, 0o755))
	}
	for _, tc := range []struct {
		name    string
		code    int
		command []string
		says    string
	}{
		{"no such name", 127, []string{"no-such-program", "x"}, `start command "no-such-program": there is no such program in PATH`},
		{"no such path", 127, []string{"/no/such/program"}, `start command "/no/such/program": there is no such file`},
		{"no interpreter", 127, []string{script}, "the interpreter that it names is not there"},
		{"not executable", 126, []string{plain}, "it may not be executed"},
		{"a folder", 126, []string{w.dir}, "it may not be executed"},
		{"no #!", 126, []string{bare}, "a script without #!"},
		{"no command", 2, nil, "there is no command behind --"},
	} {
		t.Run(tc.name, func(t *testing.T) {
			out, code := w.run(append([]string{"registrar", "-c", c.file, "--"}, tc.command...)...)
			require.Equal(t, tc.code, code, out)
			require.Contains(t, out, tc.says)
			require.NotContains(t, out, "service is registered")
		})
	}
	out, code := w.run("registrar", "-c", c.file, "sleep", "1")
	require.Equal(t, 2, code, out)
	require.Contains(t, out, `unexpected argument "sleep"; a command to run is written behind --`)
}

// TestCommandAndSupervisor: systemd hears of the process that it has started, and of nobody else.
func TestCommandAndSupervisor(t *testing.T) {
	w := newWorld(t)
	c := w.wrap("a", "", noDrain)
	path := filepath.Join(w.dir, "notify.sock")
	l, err := net.ListenUnixgram("unixgram", &net.UnixAddr{Name: path, Net: "unixgram"})
	require.NoError(t, err)
	defer l.Close()
	c.start("env", "NOTIFY_SOCKET="+path)
	w.lists("a")
	c.says(fmt.Sprintf("service: begins %d \n", c.childPid()))
	require.NoError(t, c.Signal(syscall.SIGTERM))
	c.exits(7)
	var told []string
	buffer := make([]byte, 1000)
	require.NoError(t, l.SetReadDeadline(time.Now().Add(patience)))
	for len(told) == 0 || told[len(told)-1] != "STOPPING=1" {
		n, err := l.Read(buffer)
		require.NoError(t, err, "so far: %v", told)
		told = append(told, string(buffer[:n]))
	}
	require.Equal(t, []string{"READY=1", "STOPPING=1"}, told)
}

// TestCommandInContainer: as the first process of a container the registrar buries orphans, passes signals on and ends
// with the service's exit code.
func TestCommandInContainer(t *testing.T) {
	if out, err := exec.Command("unshare", "--pid", "--fork", "--mount-proc", "true").CombinedOutput(); err != nil {
		t.Skipf("there are no process name spaces here: %v: %s", err, out)
	}
	w := newWorld(t)
	c := w.wrap("a", "", noDrain).start("unshare", "--pid", "--fork", "--mount-proc", "--kill-child")
	w.lists("a")

	// All of it in one name space: the first process, the registrar, the service.
	first, err := onlyChild(c.Pid())
	require.NoError(t, err)
	for range 3 {
		pid, err := c.post("/orphan")
		require.NoError(t, err)
		require.NotEmpty(t, pid)
	}
	w.eventually("the orphans are buried", func() error {
		children, err := childrenOf(first)
		if err == nil && len(children) != 1 {
			err = fmt.Errorf("process 1 has the children %v", children)
		}
		return err
	})
	require.NoError(t, syscall.Kill(first, syscall.SIGUSR1))
	c.says("service: got user defined signal 1")
	require.NoError(t, syscall.Kill(first, syscall.SIGTERM))
	c.exits(7)
	require.Equal(t, 1, strings.Count(c.Log(), "service: got terminated"), "once")
	c.inOrder("service is withdrawn", "service: got terminated")
	w.lists()
}

// TestCommandDiesWhileItDrains: nobody waits for the rest of a drain.
func TestCommandDiesWhileItDrains(t *testing.T) {
	w := newWorld(t)
	c := w.wrap("a", "", `drain = "1h"`).start()
	w.lists("a")
	require.NoError(t, c.Signal(syscall.SIGTERM))
	c.says("service drains")
	require.NoError(t, syscall.Kill(c.childPid(), syscall.SIGKILL))
	c.exits(128 + int(syscall.SIGKILL))
	w.lists()
}

// TestInitEndsWithRegistrar: a registrar that crashes takes the container with it, and does not leave a service behind
// that nobody looks after.
func TestInitEndsWithRegistrar(t *testing.T) {
	if out, err := exec.Command("unshare", "--pid", "--fork", "--mount-proc", "true").CombinedOutput(); err != nil {
		t.Skipf("there are no process name spaces here: %v: %s", err, out)
	}
	w := newWorld(t)
	c := w.wrap("a", "", noDrain).start("unshare", "--pid", "--fork", "--mount-proc", "--kill-child")
	w.lists("a")
	first, err := onlyChild(c.Pid())
	require.NoError(t, err)
	registrar, err := onlyChild(first)
	require.NoError(t, err)
	require.NoError(t, syscall.Kill(registrar, syscall.SIGKILL))
	c.exits(128 + int(syscall.SIGKILL))
	_, err = c.post("/exit/0")
	require.ErrorIs(t, err, syscall.ECONNREFUSED, "the service is gone")
}

// childrenOf are the children of a process, zombies included.
func childrenOf(parent int) (pids []int, err error) {
	stats, err := filepath.Glob("/proc/[0-9]*/stat")
	if err != nil {
		return nil, err
	}
	for _, path := range stats {
		text, err := os.ReadFile(path)
		if err != nil {
			continue // it has just ended
		}
		// The name stands in brackets, and may have any bytes.
		var state string
		var ppid int
		if _, err := fmt.Sscan(string(text[strings.LastIndexByte(string(text), ')')+1:]), &state, &ppid); err == nil && ppid == parent {
			pid, _ := strconv.Atoi(filepath.Base(filepath.Dir(path)))
			pids = append(pids, pid)
		}
	}
	return pids, nil
}

func onlyChild(parent int) (int, error) {
	pids, err := childrenOf(parent)
	if err == nil && len(pids) != 1 {
		err = fmt.Errorf("process %d has the children %v", parent, pids)
	}
	if err != nil {
		return 0, err
	}
	return pids[0], nil
}
