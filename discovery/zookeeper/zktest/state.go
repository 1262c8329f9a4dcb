package zktest

import (
	"bytes"
	"errors"
	"fmt"
	"os"
	"strconv"
	"strings"
	"time"
)

// The roles of a server.
const (
	RoleLeader     = "leader"
	RoleFollower   = "follower"
	RoleStandalone = "standalone"
)

// modePrefix begins the line of "srvr" that names the role. A server that does not serve has no such line.
const modePrefix = "Mode: "

// ErrNotServing is wrapped when a server answers that it does not serve: there is no quorum, or it is not part of it.
var ErrNotServing = errors.New("it does not serve")

// Running tells whether the server has been started and has not ended.
func (s *Server) Running() bool { return s.Pid() != 0 }

// Pid is the server's process id, 0 while it is not running.
func (s *Server) Pid() int {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.pid()
}

// pid needs mu.
func (s *Server) pid() int {
	if s.process == nil {
		return 0
	}
	select {
	case <-s.process.done:
		return 0
	default:
		return s.process.cmd.Process.Pid
	}
}

// awake tells whether the server runs and is not paused.
func (s *Server) awake() bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.pid() != 0 && !s.paused
}

// Role is RoleLeader, RoleFollower or RoleStandalone, as the server itself says; ErrNotServing before there is a quorum. A leader
// that has just lost its followers may not know it yet.
func (s *Server) Role() (string, error) { return s.role(5 * time.Second) }

func (s *Server) role(limit time.Duration) (string, error) {
	answer, err := s.ask("srvr", limit)
	if err != nil {
		return "", err
	}
	for line := range strings.Lines(answer) {
		if mode, ok := strings.CutPrefix(line, modePrefix); ok {
			return strings.TrimSpace(mode), nil
		}
	}
	return "", fmt.Errorf("ask zookeeper: %w", ErrNotServing)
}

// Counters are what the server counts ("mntr"): zk_watch_count, zk_outstanding_requests and many more.
func (s *Server) Counters() (map[string]string, error) {
	answer, err := s.Ask("mntr")
	if err != nil {
		return nil, err
	}
	counters := map[string]string{}
	for line := range strings.Lines(answer) {
		if key, value, ok := strings.Cut(strings.TrimSpace(line), "\t"); ok {
			counters[key] = value
		}
	}
	if len(counters) == 0 {
		return nil, fmt.Errorf("ask zookeeper: %w", ErrNotServing)
	}
	return counters, nil
}

// CPU is the time that the server's process has spent computing, for itself and in the kernel, since it was started
// last, in steps of 10 ms. It needs Linux.
func (s *Server) CPU() (time.Duration, error) {
	pid := s.Pid()
	if pid == 0 {
		return 0, errors.New("read zookeeper's processor time: it is stopped")
	}
	text, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid))
	if err != nil {
		return 0, fmt.Errorf("read zookeeper's processor time: %w", err)
	}
	d, err := parseCPU(text)
	if err != nil {
		return 0, fmt.Errorf("read zookeeper's processor time: %w", err)
	}
	return d, nil
}

// parseCPU adds utime and stime, the 14th and 15th field of /proc/pid/stat, which are in hundredths of a second on
// every architecture that Go knows.
func parseCPU(stat []byte) (time.Duration, error) {
	// The second field is a name in parentheses that may hold anything.
	fields := bytes.Fields(stat[bytes.LastIndexByte(stat, ')')+1:])
	const utime, stime = 14 - 3, 15 - 3
	if len(fields) <= stime {
		return 0, fmt.Errorf("unexpected text %q", stat)
	}
	var sum time.Duration
	for _, field := range [][]byte{fields[utime], fields[stime]} {
		n, err := strconv.ParseInt(string(field), 10, 64)
		if err != nil {
			return 0, err
		}
		sum += time.Duration(n) * 10 * time.Millisecond
	}
	return sum, nil
}
