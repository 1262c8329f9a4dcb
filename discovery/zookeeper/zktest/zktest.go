// Package zktest runs a real ZooKeeper for tests and demonstrations, and a wire to it that can be cut and stalled.
package zktest

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"
)

// jar is where Debian's and Ubuntu's packages put ZooKeeper. Its manifest names the libraries that it needs.
const jar = "/usr/share/java/zookeeper.jar"

// ErrMissing is wrapped by errors about what is not installed.
var ErrMissing = errors.New("install it with: apt-get install zookeeper default-jre-headless")

// Options of a server. The zero value is good for most tests.
type Options struct {
	// TickTime is ZooKeeper's unit of time: sessions last between two ticks and 60 s, and end up to one tick late.
	// 0: 200 ms.
	TickTime time.Duration

	// MaxClientCnxns is how many connections one address may have. 0: any number.
	MaxClientCnxns int
}

// Server is one running ZooKeeper on a loopback port.
type Server struct {
	dir  string
	addr string
	o    Options

	mu      sync.Mutex
	process *process // nil while it is stopped
}

type process struct {
	cmd  *exec.Cmd
	done chan struct{} // closed when it has ended
	err  error         // of Wait; read after done
}

// New starts a server for a test and stops it at the test's end. Without Java or ZooKeeper the test is skipped, or
// fails when CI=true.
func New(t testing.TB, options ...Options) *Server {
	t.Helper()
	var o Options
	if len(options) > 0 {
		o = options[0]
	}
	s, err := Start(t.TempDir(), o)
	if errors.Is(err, ErrMissing) && os.Getenv("CI") != "true" {
		t.Skipf("NOT TESTED against a real ZooKeeper: %v", err)
	}
	if err != nil {
		t.Fatalf("start ZooKeeper: %v", err)
	}
	t.Cleanup(func() {
		if err := s.Kill(); err != nil {
			t.Errorf("stop ZooKeeper: %v", err)
		}
	})
	return s
}

// Start runs a server that keeps its data in dir, and blocks until it answers. The caller stops it.
func Start(dir string, o Options) (*Server, error) {
	if o.TickTime <= 0 {
		o.TickTime = 200 * time.Millisecond
	}
	s := &Server{dir: dir, o: o}
	// The port is free when it is chosen. Should another program be quicker, another one is chosen.
	var err error
	for range 3 {
		if s.addr, err = freeAddress(); err != nil {
			return nil, err
		}
		if err = s.Start(); err == nil || errors.Is(err, ErrMissing) {
			break
		}
	}
	if err != nil {
		return nil, err
	}
	return s, nil
}

func freeAddress() (string, error) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		return "", fmt.Errorf("find a free port: %w", err)
	}
	defer l.Close()
	return l.Addr().String(), nil
}

// Addr is the server's host:port. It stays the same over restarts.
func (s *Server) Addr() string { return s.addr }

// command finds Java and ZooKeeper.
func command() (java, classpath string, err error) {
	if java, err = exec.LookPath("java"); err != nil {
		return "", "", fmt.Errorf("java is not in PATH: %w", ErrMissing)
	}
	if classpath = os.Getenv("ZOOKEEPER_CLASSPATH"); classpath != "" {
		return java, classpath, nil
	}
	if _, err := os.Stat(jar); err != nil {
		return "", "", fmt.Errorf("%s is not there, nor is ZOOKEEPER_CLASSPATH set: %w", jar, ErrMissing)
	}
	return java, jar, nil
}

// Start runs a stopped server again, on the same port with the same data, and blocks until it answers.
func (s *Server) Start() error {
	java, classpath, err := command()
	if err != nil {
		return err
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.process != nil {
		return errors.New("start zookeeper: it is running")
	}
	config, err := s.writeConfig()
	if err != nil {
		return err
	}
	output, err := os.OpenFile(s.logPath(), os.O_CREATE|os.O_WRONLY|os.O_APPEND, 0o644)
	if err != nil {
		return fmt.Errorf("start zookeeper: %w", err)
	}
	defer output.Close()
	cmd := exec.Command(java, "-Xmx128m", "-XX:+UseSerialGC", "-XX:TieredStopAtLevel=1", "-Xshare:auto",
		"-Djava.net.preferIPv4Stack=true",
		"-Dzookeeper.admin.enableServer=false", // else every server wants port 8080
		"-Dzookeeper.forceSync=no",             // nobody needs this data after a power cut
		"-Dzookeeper.preAllocSize=128",         // KB; the default is a 64 MB file each
		"-cp", classpath, "org.apache.zookeeper.server.quorum.QuorumPeerMain", config)
	cmd.Stdout, cmd.Stderr = output, output
	cmd.Dir = s.dir
	cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true} // a Ctrl-C at the terminal is not for it
	if err := cmd.Start(); err != nil {
		return fmt.Errorf("start zookeeper: %w", err)
	}
	p := &process{cmd: cmd, done: make(chan struct{})}
	go func() {
		p.err = cmd.Wait()
		close(p.done)
	}()
	if err := s.awaitAnswer(p); err != nil {
		_ = cmd.Process.Kill()
		<-p.done
		return err
	}
	s.process = p
	return nil
}

func (s *Server) logPath() string { return filepath.Join(s.dir, "zookeeper.log") }

func (s *Server) writeConfig() (string, error) {
	host, port, err := net.SplitHostPort(s.addr)
	if err != nil {
		return "", fmt.Errorf("write zookeeper's configuration: %w", err)
	}
	text := fmt.Sprintf("tickTime=%d\nminSessionTimeout=%d\nmaxSessionTimeout=60000\ndataDir=%s\nclientPortAddress=%s\n"+
		"clientPort=%s\nmaxClientCnxns=%d\n4lw.commands.whitelist=*\n",
		s.o.TickTime.Milliseconds(), 2*s.o.TickTime.Milliseconds(), filepath.Join(s.dir, "data"), host, port, s.o.MaxClientCnxns)
	file := filepath.Join(s.dir, "zoo.cfg")
	if err := os.WriteFile(file, []byte(text), 0o644); err != nil {
		return "", fmt.Errorf("write zookeeper's configuration: %w", err)
	}
	return file, nil
}

// awaitAnswer polls until the server serves, its process has ended, or a minute is over.
func (s *Server) awaitAnswer(p *process) error {
	deadline := time.After(time.Minute)
	poll := time.NewTicker(20 * time.Millisecond)
	defer poll.Stop()
	for {
		// A question asked too early may never be answered, so none waits for long.
		if answer, err := s.ask("srvr", 200*time.Millisecond); err == nil && strings.Contains(answer, "Mode:") {
			return nil
		}
		select {
		case <-p.done:
			return fmt.Errorf("start zookeeper: it ended with %v:\n%s", p.err, s.tail())
		case <-deadline:
			return fmt.Errorf("start zookeeper: no answer within a minute:\n%s", s.tail())
		case <-poll.C:
		}
	}
}

// tail is the end of what the server printed.
func (s *Server) tail() string {
	text, _ := os.ReadFile(s.logPath())
	return string(bytes.TrimSpace(text[max(0, len(text)-2000):]))
}

// Ask sends one of ZooKeeper's four-letter words ("srvr", "mntr", "wchs") and returns the answer.
func (s *Server) Ask(word string) (string, error) { return s.ask(word, 5*time.Second) }

func (s *Server) ask(word string, limit time.Duration) (string, error) {
	c, err := net.DialTimeout("tcp", s.addr, limit)
	if err != nil {
		return "", fmt.Errorf("ask zookeeper: %w", err)
	}
	defer c.Close()
	if err := c.SetDeadline(time.Now().Add(limit)); err != nil {
		return "", fmt.Errorf("ask zookeeper: %w", err)
	}
	if _, err := io.WriteString(c, word); err != nil {
		return "", fmt.Errorf("ask zookeeper: %w", err)
	}
	answer, err := io.ReadAll(c)
	if err != nil {
		return "", fmt.Errorf("ask zookeeper: %w", err)
	}
	return string(answer), nil
}

// Stop ends the server in an orderly way (SIGTERM), and waits for that. Its data stays.
func (s *Server) Stop() error { return s.end(syscall.SIGTERM) }

// Kill ends the server at once (SIGKILL). Its data stays. A stopped server is no error.
func (s *Server) Kill() error { return s.end(syscall.SIGKILL) }

func (s *Server) end(sig syscall.Signal) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	p := s.process
	if p == nil {
		return nil
	}
	s.process = nil
	_ = p.cmd.Process.Signal(syscall.SIGCONT) // a stopped process handles no SIGTERM
	if err := p.cmd.Process.Signal(sig); err != nil && !errors.Is(err, os.ErrProcessDone) {
		return fmt.Errorf("stop zookeeper: %w", err)
	}
	select {
	case <-p.done:
	case <-time.After(20 * time.Second):
		_ = p.cmd.Process.Kill()
		<-p.done
		return fmt.Errorf("stop zookeeper: it ignored %v for 20 s", sig)
	}
	return nil
}

// Restart kills the server and starts it again, on the same port with the same data.
func (s *Server) Restart() error {
	if err := s.Kill(); err != nil {
		return err
	}
	return s.Start()
}

// Wipe throws away the data of a stopped server.
func (s *Server) Wipe() error {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.process != nil {
		return errors.New("wipe zookeeper: it is running")
	}
	if err := os.RemoveAll(filepath.Join(s.dir, "data")); err != nil {
		return fmt.Errorf("wipe zookeeper: %w", err)
	}
	return nil
}

// Pause freezes the server: connections stand, are even taken, and nothing is answered. On Linux it blocks until all
// threads have stopped; the signal alone only asks for it.
func (s *Server) Pause() error {
	if err := s.signal(syscall.SIGSTOP); err != nil {
		return err
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	deadline := time.Now().Add(10 * time.Second)
	for s.process != nil && !stopped(s.process.cmd.Process.Pid) {
		if time.Now().After(deadline) {
			return errors.New("pause zookeeper: it runs on")
		}
		time.Sleep(time.Millisecond)
	}
	return nil
}

// stopped reports whether no thread of a process runs, as far as /proc tells.
func stopped(pid int) bool {
	stats, _ := filepath.Glob(fmt.Sprintf("/proc/%d/task/*/stat", pid))
	for _, file := range stats {
		text, err := os.ReadFile(file)
		if err != nil {
			continue // the thread has ended
		}
		// "pid (name) state ...", and the name may hold anything.
		if i := bytes.LastIndexByte(text, ')'); i < 0 || i+2 >= len(text) || text[i+2] != 'T' {
			return false
		}
	}
	return true
}

// Resume lets a frozen server go on.
func (s *Server) Resume() error { return s.signal(syscall.SIGCONT) }

func (s *Server) signal(sig syscall.Signal) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.process == nil {
		return errors.New("signal zookeeper: it is stopped")
	}
	if err := s.process.cmd.Process.Signal(sig); err != nil {
		return fmt.Errorf("signal zookeeper: %w", err)
	}
	return nil
}
