// Package zktest runs real ZooKeepers for tests and demonstrations, alone and in ensembles, and a wire to them that can
// be cut, stalled and made to lose frames.
package zktest

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
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

// jar is where Debian's and Ubuntu's packages put ZooKeeper. Its manifest names the libraries that it needs, but for
// those below.
const jar = "/usr/share/java/zookeeper.jar"

// packagedClasspath adds to Debian's 3.8.0 what its manifest lacks: parts of Netty, without which no connection is
// served by it, and something that prints warnings. All come with the package; what is not there is no error for Java.
const packagedClasspath = jar + ":/usr/share/java/netty-codec.jar:/usr/share/java/netty-resolver.jar" +
	":/usr/share/java/netty-transport-native-unix-common.jar:/usr/share/java/slf4j-simple.jar"

// ErrMissing is wrapped by errors about what is not installed.
var ErrMissing = errors.New("install it with: apt-get install zookeeper default-jre-headless")

// Server is one ZooKeeper on a loopback port: alone, or a member of an ensemble.
type Server struct {
	dir        string
	addr       string
	secureAddr string // empty without TLS
	files      TLSFiles
	o          Options
	member     *membership // nil when it is alone

	mu      sync.Mutex
	process *process // nil while it is stopped
	paused  bool
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
	s, err := Start(t.TempDir(), first(options))
	need(t, err)
	t.Cleanup(func() {
		if err := s.Kill(); err != nil {
			t.Errorf("stop ZooKeeper: %v", err)
		}
	})
	return s
}

// first is the one set of options, or none.
func first(options []Options) Options {
	if len(options) == 0 {
		return Options{}
	}
	return options[0]
}

// need skips or fails the test of a server that did not start.
func need(t testing.TB, err error) {
	t.Helper()
	if errors.Is(err, ErrMissing) && os.Getenv("CI") != "true" {
		t.Skipf("NOT TESTED against a real ZooKeeper: %v", err)
	}
	if err != nil {
		t.Fatalf("start ZooKeeper: %v", err)
	}
}

// Start runs a server that keeps its data in dir, and blocks until it serves. The caller stops it.
func Start(dir string, o Options) (*Server, error) {
	s := &Server{dir: dir, o: o.filled()}
	if o.TLS {
		var err error
		if s.files, err = WriteCertificates(filepath.Join(dir, "tls")); err != nil {
			return nil, err
		}
	}
	// The ports are free when they are chosen. Should another program be quicker, others are chosen.
	var err error
	for range 3 {
		var free []string
		if free, err = freeAddresses(2); err != nil {
			return nil, err
		}
		s.listenOn(free[0], free[1])
		if err = s.Start(); err == nil || errors.Is(err, ErrMissing) {
			break
		}
	}
	if err != nil {
		return nil, err
	}
	return s, nil
}

func (s *Server) listenOn(addr, secureAddr string) {
	s.addr = addr
	if s.o.TLS {
		s.secureAddr = secureAddr
	}
}

// freeAddresses finds n different loopback addresses where nobody listens. They are not of those that the kernel gives
// to whoever asks for any port: one of these might be taken before the server is there, or while it is stopped.
func freeAddresses(n int) ([]string, error) {
	addresses := make([]string, n)
	for i := range addresses {
		l, err := listenAnywhere()
		if err != nil {
			return nil, fmt.Errorf("find a free port: %w", err)
		}
		defer l.Close() // not earlier: the same port would be free again
		addresses[i] = l.Addr().String()
	}
	return addresses, nil
}

// listenAnywhere tries ports below Linux's net.ipv4.ip_local_port_range.
func listenAnywhere() (l net.Listener, err error) {
	const lowest, end = 10_000, 32_768
	for range 100 {
		port := lowest + rand.IntN(end-lowest)
		if l, err = net.Listen("tcp", net.JoinHostPort("127.0.0.1", strconv.Itoa(port))); err == nil {
			return l, nil
		}
	}
	return nil, err
}

// Addr is the server's host:port. It stays the same over restarts.
func (s *Server) Addr() string { return s.addr }

// SecureAddr is the host:port for clients with TLS. It is empty without Options.TLS.
func (s *Server) SecureAddr() string { return s.secureAddr }

// TLSFiles are the certificates for clients of SecureAddr. They are empty without Options.TLS.
func (s *Server) TLSFiles() TLSFiles { return s.files }

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
	return java, packagedClasspath, nil
}

// Start runs a stopped server again, on the same port with the same data. It blocks until a server alone serves. A
// member of an ensemble serves when there is a quorum; here it only has to run: see Ensemble.AwaitQuorum.
func (s *Server) Start() error {
	java, classpath, err := command()
	if err != nil {
		return err
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.pid() != 0 {
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
	cmd := exec.Command(java, s.o.javaArguments(classpath, config)...)
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
	s.process, s.paused = p, false
	return nil
}

func (s *Server) logPath() string { return filepath.Join(s.dir, "zookeeper.log") }

// awaitAnswer polls until the server has started, its process has ended, or a minute is over.
func (s *Server) awaitAnswer(p *process) error {
	deadline := time.After(time.Minute)
	poll := time.NewTicker(20 * time.Millisecond)
	defer poll.Stop()
	for {
		// A question asked too early may never be answered, so none waits for long.
		if answer, err := s.ask("srvr", 200*time.Millisecond); err == nil && s.started(answer) && s.listensSecurely() {
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

// listensSecurely reports whether the port for TLS is open, where there is one. It opens behind the other one.
func (s *Server) listensSecurely() bool {
	if s.secureAddr == "" {
		return true
	}
	c, err := net.DialTimeout("tcp", s.secureAddr, 200*time.Millisecond)
	if err != nil {
		return false
	}
	c.Close()
	return true
}

// started judges an answer to "srvr". A member without a quorum says that it does not serve.
func (s *Server) started(answer string) bool {
	if s.member != nil {
		return answer != ""
	}
	return strings.Contains(answer, modePrefix)
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
	s.process, s.paused = nil, false
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
	if s.pid() != 0 {
		return errors.New("wipe zookeeper: it is running")
	}
	if err := os.RemoveAll(s.dataDir()); err != nil {
		return fmt.Errorf("wipe zookeeper: %w", err)
	}
	return nil
}

// Pause freezes the server: connections stand, are even taken, and nothing is answered. On Linux it blocks until all
// threads have stopped; the signal alone only asks for it.
func (s *Server) Pause() error {
	s.mu.Lock()
	defer s.mu.Unlock()
	if err := s.signal(syscall.SIGSTOP); err != nil {
		return err
	}
	s.paused = true
	deadline := time.Now().Add(10 * time.Second)
	for !stopped(s.process.cmd.Process.Pid) {
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
func (s *Server) Resume() error {
	s.mu.Lock()
	defer s.mu.Unlock()
	if err := s.signal(syscall.SIGCONT); err != nil {
		return err
	}
	s.paused = false
	return nil
}

// signal needs mu.
func (s *Server) signal(sig syscall.Signal) error {
	if s.process == nil {
		return errors.New("signal zookeeper: it is stopped")
	}
	if err := s.process.cmd.Process.Signal(sig); err != nil {
		return fmt.Errorf("signal zookeeper: %w", err)
	}
	return nil
}
