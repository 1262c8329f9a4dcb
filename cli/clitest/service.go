package clitest

import (
	"fmt"
	"net"
	"net/http"
	"os"
	"strconv"
	"sync/atomic"
	"syscall"
	"time"
)

const sampleVariable = "MYELIN_SAMPLE_SERVICE"

// ServeIfAsked makes the calling program a sample service when StartService started it, and never returns then.
// Call it first thing in main or TestMain.
func ServeIfAsked() {
	name := os.Getenv(sampleVariable)
	if name == "" {
		return
	}
	if err := serve(name, os.Getenv(sampleVariable+"_ADDR")); err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
	os.Exit(0)
}

// serve answers "/" with its name, "/health" with 200 or 503, and takes its health from "/fail" and "/recover".
func serve(name, addr string) error {
	var failing atomic.Bool
	mux := http.NewServeMux()
	mux.HandleFunc("/", func(w http.ResponseWriter, _ *http.Request) { fmt.Fprintln(w, name) })
	mux.HandleFunc("/health", func(w http.ResponseWriter, _ *http.Request) {
		if failing.Load() {
			http.Error(w, "not well", http.StatusServiceUnavailable)
			return
		}
		fmt.Fprintln(w, "OK")
	})
	mux.HandleFunc("POST /fail", func(http.ResponseWriter, *http.Request) { failing.Store(true) })
	mux.HandleFunc("POST /recover", func(http.ResponseWriter, *http.Request) { failing.Store(false) })
	return http.ListenAndServe(addr, mux)
}

// Service is a sample service in a process of its own.
type Service struct {
	*Process
	Port int
}

// StartService starts the calling program again as a sample service on a port of 127.0.0.1, and returns when it
// answers.
func StartService(dir, name string, port int) (*Service, error) {
	self, err := os.Executable()
	if err != nil {
		return nil, fmt.Errorf("start service %s: %w", name, err)
	}
	addr := net.JoinHostPort("127.0.0.1", strconv.Itoa(port))
	p, err := Start(dir, name, []string{sampleVariable + "=" + name, sampleVariable + "_ADDR=" + addr}, self)
	if err != nil {
		return nil, err
	}
	s := &Service{Process: p, Port: port}
	deadline := time.Now().Add(10 * time.Second)
	for {
		resp, err := http.Get(s.url("/health"))
		if err == nil {
			resp.Body.Close()
			return s, nil
		}
		if !p.Running() || time.Now().After(deadline) {
			p.Kill()
			return nil, fmt.Errorf("start service %s: %w\n%s", name, err, p.Tail(5))
		}
		time.Sleep(10 * time.Millisecond)
	}
}

func (s *Service) url(path string) string { return fmt.Sprintf("http://127.0.0.1:%d%s", s.Port, path) }

// Fail makes the service's health check fail; it goes on answering requests.
func (s *Service) Fail() error { return s.post("/fail") }

// Recover makes the service's health check succeed again.
func (s *Service) Recover() error { return s.post("/recover") }

func (s *Service) post(path string) error {
	resp, err := http.Post(s.url(path), "", nil)
	if err != nil {
		return err
	}
	return resp.Body.Close()
}

// FreePort returns a TCP port of 127.0.0.1 that nobody listens on. Another program may take it before it is used.
func FreePort() (int, error) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		return 0, err
	}
	defer l.Close()
	return l.Addr().(*net.TCPAddr).Port, nil
}

// Reload asks a HAProxy master for a reload by hand, as a colleague would: SIGUSR2.
func Reload(master int) error { return syscall.Kill(master, syscall.SIGUSR2) }
