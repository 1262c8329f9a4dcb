package zktest

import (
	"errors"
	"fmt"
	"net"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"
)

// Ensemble is a number of ZooKeepers that keep the same data as long as most of them are there.
type Ensemble struct {
	members []*Server
}

// NewEnsemble starts three members for a test and stops them at the test's end. Without Java or ZooKeeper the test is
// skipped, or fails when CI=true.
func NewEnsemble(t testing.TB, options ...Options) *Ensemble {
	t.Helper()
	e, err := StartEnsemble(t.TempDir(), 3, first(options))
	need(t, err)
	t.Cleanup(func() {
		if err := e.Kill(); err != nil {
			t.Errorf("stop ZooKeeper: %v", err)
		}
	})
	return e
}

// StartEnsemble runs n members, at least two, that keep their data in dir, and blocks until all serve. The caller
// stops them.
func StartEnsemble(dir string, n int, o Options) (*Ensemble, error) {
	if n < 2 {
		return nil, fmt.Errorf("start ensemble: %d members: at least 2 are needed", n)
	}
	var files TLSFiles
	if o.TLS {
		var err error
		if files, err = WriteCertificates(filepath.Join(dir, "tls")); err != nil {
			return nil, fmt.Errorf("start ensemble: %w", err)
		}
	}
	// A port may be taken between its choice and its use. A member then ends, or never leads; it does not say so. Other
	// ports are chosen. The last wait is the longest, for machines that are merely slow.
	var err error
	for _, limit := range []time.Duration{20 * time.Second, 30 * time.Second, time.Minute} {
		var e *Ensemble
		if e, err = newEnsemble(dir, n, o.filled(), files); err != nil {
			break
		}
		if err = e.start(limit); err == nil {
			return e, nil
		}
		_ = e.Kill()
		_ = e.Wipe()
		if errors.Is(err, ErrMissing) {
			break
		}
	}
	return nil, fmt.Errorf("start ensemble: %w", err)
}

// newEnsemble chooses the ports: four for each member.
func newEnsemble(dir string, n int, o Options, files TLSFiles) (*Ensemble, error) {
	free, err := freeAddresses(4 * n)
	if err != nil {
		return nil, err
	}
	servers, err := serverLines(free[2*n:3*n], free[3*n:])
	if err != nil {
		return nil, err
	}
	e := &Ensemble{}
	for i := range n {
		id := i + 1
		s := &Server{
			dir: filepath.Join(dir, strconv.Itoa(id)), o: o, files: files,
			member: &membership{id: id, servers: servers},
		}
		s.listenOn(free[i], free[n+i])
		e.members = append(e.members, s)
	}
	return e, nil
}

// serverLines names the members in zoo.cfg: where each would lead, and where it votes.
func serverLines(peers, elections []string) (string, error) {
	var b strings.Builder
	for i := range peers {
		_, election, err := net.SplitHostPort(elections[i])
		if err != nil {
			return "", err
		}
		fmt.Fprintf(&b, "server.%d=%s:%s\n", i+1, peers[i], election)
	}
	return b.String(), nil
}

// Members are all the servers, in the order of their ids, whatever their state.
func (e *Ensemble) Members() []*Server { return append([]*Server(nil), e.members...) }

// Hosts are the members' host:port, in the same order.
func (e *Ensemble) Hosts() []string { return e.addresses((*Server).Addr) }

// SecureHosts are the members' host:port for clients with TLS.
func (e *Ensemble) SecureHosts() []string { return e.addresses((*Server).SecureAddr) }

func (e *Ensemble) addresses(of func(*Server) string) []string {
	hosts := make([]string, len(e.members))
	for i, s := range e.members {
		hosts[i] = of(s)
	}
	return hosts
}

// TLSFiles are the certificates for clients of SecureHosts, the same for all members.
func (e *Ensemble) TLSFiles() TLSFiles { return e.members[0].TLSFiles() }

// Leader is the member that leads, as it says itself. It is an error when none does; see AwaitQuorum.
func (e *Ensemble) Leader() (*Server, error) {
	leaders := e.withRole(RoleLeader)
	if len(leaders) != 1 {
		return nil, fmt.Errorf("find the leader: %d members say that they lead", len(leaders))
	}
	return leaders[0], nil
}

// Followers are the members that say now that they follow. One that is stopped or paused does not.
func (e *Ensemble) Followers() []*Server { return e.withRole(RoleFollower) }

func (e *Ensemble) withRole(role string) []*Server {
	var found []*Server
	for i, r := range e.roles() {
		if r == role {
			found = append(found, e.members[i])
		}
	}
	return found
}

// roles asks all members at once. The role of one that does not serve is empty.
func (e *Ensemble) roles() []string {
	roles := make([]string, len(e.members))
	var all sync.WaitGroup
	for i, s := range e.members {
		if s.awake() {
			all.Go(func() { roles[i], _ = s.role(time.Second) })
		}
	}
	all.Wait()
	return roles
}

// AwaitQuorum blocks until every member that runs and is not paused serves, one of them leads, and they are more than
// half of all. A timeout is an error that names each member's role.
func (e *Ensemble) AwaitQuorum(timeout time.Duration) error {
	deadline := time.After(timeout)
	poll := time.NewTicker(50 * time.Millisecond)
	defer poll.Stop()
	for {
		awake := make([]bool, len(e.members))
		for i, s := range e.members {
			awake[i] = s.awake()
		}
		roles := e.roles()
		if quorum(awake, roles) {
			return nil
		}
		select {
		case <-deadline:
			return fmt.Errorf("await quorum: not within %v: %s", timeout, e.describe(awake, roles))
		case <-poll.C:
		}
	}
}

// quorum judges what the members say of themselves.
func quorum(awake []bool, roles []string) bool {
	leaders, followers := 0, 0
	for i, role := range roles {
		switch {
		case role == RoleLeader:
			leaders++
		case role == RoleFollower:
			followers++
		case awake[i]:
			return false
		}
	}
	return leaders == 1 && 2*(leaders+followers) > len(roles)
}

func (e *Ensemble) describe(awake []bool, roles []string) string {
	var b strings.Builder
	for i, s := range e.members {
		state := roles[i]
		switch {
		case !awake[i]:
			state = "stopped or paused"
		case state == "":
			state = "not serving"
		}
		fmt.Fprintf(&b, "member %d (%s) is %s; ", s.member.id, s.addr, state)
	}
	return strings.TrimSuffix(b.String(), "; ")
}

// Start runs all members that are stopped, and blocks until there is a quorum of all.
func (e *Ensemble) Start() error { return e.start(time.Minute) }

func (e *Ensemble) start(limit time.Duration) error {
	err := e.each(func(s *Server) error {
		if s.Running() {
			return nil
		}
		return s.Start()
	})
	if err != nil {
		return err
	}
	return e.AwaitQuorum(limit)
}

// Stop ends all members in an orderly way, and waits for that. Their data stays.
func (e *Ensemble) Stop() error { return e.each((*Server).Stop) }

// Kill ends all members at once. Their data stays. Stopped members are no error.
func (e *Ensemble) Kill() error { return e.each((*Server).Kill) }

// Wipe throws away the data of all members, which must be stopped.
func (e *Ensemble) Wipe() error { return e.each((*Server).Wipe) }

// each does something with all members at once.
func (e *Ensemble) each(do func(*Server) error) error {
	errs := make([]error, len(e.members))
	var all sync.WaitGroup
	for i, s := range e.members {
		all.Go(func() {
			if err := do(s); err != nil {
				errs[i] = fmt.Errorf("member %d (%s): %w", s.member.id, s.addr, err)
			}
		})
	}
	all.Wait()
	return errors.Join(errs...)
}
