package clitest

import (
	"fmt"
	"net"
	"net/http"
	"net/netip"
	"os"
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
	delay, _ := time.ParseDuration(os.Getenv(sampleVariable + "_DELAY"))
	if err := serve(name, os.Getenv(sampleVariable+"_ADDR"), delay); err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
	os.Exit(0)
}

// serve answers "/" with its name after a delay, "/health" with 200 or 503, and takes its health from "/fail" and
// "/recover".
func serve(name, addr string, delay time.Duration) error {
	var failing atomic.Bool
	mux := http.NewServeMux()
	mux.HandleFunc("/", func(w http.ResponseWriter, _ *http.Request) {
		time.Sleep(delay)
		fmt.Fprintln(w, name)
	})
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
	addr netip.AddrPort
}

// SampleCommand is how to start the calling program again as a sample service: the program, and what is to be added to
// its environment. Each answer comes after the delay. The service ends with the first signal, whatever it is doing.
func SampleCommand(name, addr string, delay time.Duration) (program string, env []string, err error) {
	program, err = os.Executable()
	return program, []string{sampleVariable + "=" + name, sampleVariable + "_ADDR=" + addr, sampleVariable + "_DELAY=" + delay.String()}, err
}

// StartService starts the calling program again as a sample service on a port of 127.0.0.1, and returns when it
// answers.
func StartService(dir, name string, port int) (*Service, error) {
	return StartServiceAt(dir, name, netip.AddrPortFrom(netip.AddrFrom4([4]byte{127, 0, 0, 1}), uint16(port)), 0)
}

// StartServiceAt is StartService for any address, and with a delay of each answer.
func StartServiceAt(dir, name string, addr netip.AddrPort, delay time.Duration) (*Service, error) {
	self, env, err := SampleCommand(name, addr.String(), delay)
	if err != nil {
		return nil, fmt.Errorf("start service %s: %w", name, err)
	}
	p, err := Start(dir, name, env, self)
	if err != nil {
		return nil, err
	}
	s := &Service{Process: p, Port: int(addr.Port()), addr: addr}
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

func (s *Service) url(path string) string { return fmt.Sprintf("http://%s%s", s.addr, path) }

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
