// Package control is the control sockets of a registrar and of an agent, both ends of them: maintenance, the reports of
// services about their own health, the status, the release of holds, and profiles of the process, as HTTP over a unix
// socket that only its owner may use.
package control

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"net"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"time"
)

const (
	mode      = 0o600       // who may write to the process's socket may take its services out of rotation
	pathMost  = 107         // bytes of a socket's path
	ownerMost = 4096        // bytes that are read of who has the lock
	dialLimit = time.Second // for a socket on this host
)

// Owner is the process that has a socket.
type Owner struct {
	Pid    int    `json:"pid"`    // 0: not known
	Config string `json:"config"` // its file; empty: not known
}

// InUseError says that another process has the socket.
type InUseError struct {
	Path  string
	Owner Owner
}

func (e *InUseError) Error() string {
	var who []string
	if e.Owner.Pid != 0 {
		who = append(who, "pid "+strconv.Itoa(e.Owner.Pid))
	}
	if e.Owner.Config != "" {
		who = append(who, "config "+e.Owner.Config)
	}
	other := "another process"
	if len(who) > 0 {
		other += " (" + strings.Join(who, ", ") + ")"
	}
	return fmt.Sprintf("listen on control socket %s: %s has it; stop that one, or give this one another control_socket", e.Path, other)
}

// Socket is a control socket that this process has. It is a listener; Close removes the file.
type Socket struct {
	net.Listener
	lock *os.File
}

// Listen makes the control socket at path, and its folder where that is missing. A socket that another process has is
// an *InUseError; one that a process has left behind is replaced. config is told to those that come too late. The caller
// closes the socket.
//
// Whether a process has it is told by a lock on the file "<path>.lock", which ends with the process however that ends,
// and which stays behind without meaning.
func Listen(path, config string) (*Socket, error) {
	fail := func(err error) (*Socket, error) {
		return nil, fmt.Errorf("listen on control socket %s: %w", path, err)
	}
	if len(path) > pathMost {
		return fail(fmt.Errorf("the path has %d bytes, and that of a socket may have %d; write a shorter control_socket", len(path), pathMost))
	}
	if info, err := os.Lstat(path); err == nil && info.Mode().Type() != fs.ModeSocket {
		return fail(errors.New("there is something that is not a socket; remove it, or give another control_socket"))
	}
	_ = os.MkdirAll(filepath.Dir(path), 0o755) // what comes next says what is wrong
	lock, err := acquire(path, Owner{Pid: os.Getpid(), Config: config})
	if err != nil {
		var used *InUseError
		if errors.As(err, &used) {
			return nil, err
		}
		return fail(cause(err))
	}
	l, err := replace(path)
	if err != nil {
		lock.Close()
		var used *InUseError
		if errors.As(err, &used) {
			return nil, err
		}
		return fail(cause(err))
	}
	return &Socket{Listener: l, lock: lock}, nil
}

// Close ends the listener, and removes the socket before anybody else can have it.
func (s *Socket) Close() error {
	err := s.Listener.Close()
	s.lock.Close()
	return err
}

// acquire takes the lock that goes with a socket.
func acquire(path string, me Owner) (*os.File, error) {
	f, err := os.OpenFile(path+".lock", os.O_RDWR|os.O_CREATE|syscall.O_NOFOLLOW, mode)
	if err != nil {
		return nil, err
	}
	switch err := syscall.Flock(int(f.Fd()), syscall.LOCK_EX|syscall.LOCK_NB); {
	case errors.Is(err, syscall.EWOULDBLOCK):
		defer f.Close()
		used := &InUseError{Path: path}
		if text, err := io.ReadAll(io.LimitReader(f, ownerMost)); err == nil {
			_ = json.Unmarshal(text, &used.Owner) // unreadable: not known
		}
		return nil, used
	case err != nil:
		f.Close()
		return nil, fmt.Errorf("lock %s: %w", f.Name(), err)
	}
	text, _ := json.Marshal(me)
	if err := errors.Join(f.Truncate(0), writeAt(f, text)); err != nil {
		f.Close()
		return nil, err
	}
	return f, nil
}

func writeAt(f *os.File, text []byte) error {
	_, err := f.WriteAt(text, 0)
	return err
}

// replace makes the socket, in the place of one that nobody listens on. The lock is held.
func replace(path string) (net.Listener, error) {
	switch conn, err := net.DialTimeout("unix", path, dialLimit); {
	case err == nil: // of a program that knows nothing of the lock
		defer conn.Close()
		return nil, &InUseError{Path: path, Owner: Owner{Pid: peerOf(conn).pid}}
	case errors.Is(err, syscall.ECONNREFUSED):
		if err := os.Remove(path); err != nil {
			return nil, err
		}
	case !errors.Is(err, fs.ErrNotExist):
		return nil, err
	}
	// On Linux the file gets the mode that the socket has before it is bound: there is no moment in which others may
	// connect. Elsewhere there is one.
	private := net.ListenConfig{Control: func(_, _ string, c syscall.RawConn) error {
		return c.Control(func(fd uintptr) { _ = syscall.Fchmod(int(fd), mode) })
	}}
	l, err := private.Listen(context.Background(), "unix", path)
	if err != nil {
		return nil, err
	}
	if err := os.Chmod(path, mode); err != nil {
		l.Close()
		return nil, err
	}
	return l, nil
}

// cause leaves out of an error what is said already: the call and the path.
func cause(err error) error {
	var errno syscall.Errno
	if errors.As(err, &errno) {
		return errno
	}
	return err
}
