package haproxy

import (
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"net"
	"os"
	"path/filepath"
	"runtime"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"time"
)

const (
	claimSlots  = 8           // how many HAProxys may have sockets of the same path, each in a mount name space of its own
	claimAnswer = time.Second // a holder that takes longer is stuck, and holds all the same
	claimLimit  = 4096        // bytes of a holder's answer
)

// Holder is who has a claim.
type Holder struct {
	Pid    int    `json:"pid"`    // in its own name space; 0: not known
	Config string `json:"config"` // its file; empty: not known
}

// ClaimedError says that another process drives the HAProxy at a socket.
type ClaimedError struct {
	Path   string // the socket, as it was asked for
	Holder Holder
}

func (e *ClaimedError) Error() string {
	var who []string
	if e.Holder.Pid != 0 {
		who = append(who, "pid "+strconv.Itoa(e.Holder.Pid))
	}
	if e.Holder.Config != "" {
		who = append(who, "config "+e.Holder.Config)
	}
	agent := "another myelin agent"
	if len(who) > 0 {
		agent += " (" + strings.Join(who, ", ") + ")"
	}
	return fmt.Sprintf("%s drives HAProxy at %s; stop it, or give this one another socket_file_path", agent, e.Path)
}

// Claim is the right to drive the HAProxy at an admin socket, of one process at a time: two that drive one HAProxy
// would undo each other's work for ever. It ends with Close or with the process, however that ends.
//
// It has two parts, and either one keeps others away. A listener on an abstract unix socket, whose name derives from
// the path, needs no permissions and holds between users, within one network name space. A lock on the file
// "<socket>.myelin" holds between containers that share the folder; it is left out where the folder cannot be written.
type Claim struct {
	listener  net.Listener // nil: this system has no abstract sockets
	lock      *os.File     // nil: the folder cannot be written
	answering sync.WaitGroup
	closing   sync.Once
}

// ClaimSocket takes the claim to the HAProxy whose admin socket is at path; neither has to exist. config is told to
// those that come too late. A claim that another process has, or another Claim of this one, is a *ClaimedError. It
// blocks for no more than a few seconds, and only where a holder does not answer. The caller closes the claim.
func ClaimSocket(path, config string) (*Claim, error) {
	socket := SocketPath(path)
	me := Holder{Pid: os.Getpid(), Config: config}
	c := &Claim{}
	var err error
	if c.lock, err = lockBeside(socket, me); err == nil {
		err = c.listen(socket, me)
	}
	if err != nil {
		c.Close()
		var claimed *ClaimedError
		if errors.As(err, &claimed) {
			claimed.Path = path
		}
		return nil, err
	}
	return c, nil
}

// Close gives the claim back. It may be called more than once.
func (c *Claim) Close() {
	c.closing.Do(func() {
		if c.listener != nil {
			c.listener.Close()
			c.answering.Wait()
		}
		if c.lock != nil {
			// Removed while it is locked, see lockBeside; the next one to come makes another.
			if isFileAt(c.lock, c.lock.Name()) {
				os.Remove(c.lock.Name())
			}
			c.lock.Close()
		}
	})
}

// linksMost is how many symbolic links a path may lead through, as in the kernel.
const linksMost = 40

// SocketPath is the one path of a socket that has several: absolute, with symbolic links resolved, also where what they
// lead to is not there yet. Whoever comes before HAProxy has made it means the same as who comes later.
func SocketPath(path string) string {
	if abs, err := filepath.Abs(path); err == nil {
		path = abs
	}
	return resolveLinks(path, linksMost)
}

func resolveLinks(path string, links int) string {
	if real, err := filepath.EvalSymlinks(path); err == nil {
		return real
	}
	dir := filepath.Dir(path)
	if dir == path {
		return path
	}
	if target, err := os.Readlink(path); err == nil && links > 0 {
		if !filepath.IsAbs(target) {
			target = filepath.Join(dir, target)
		}
		return resolveLinks(target, links-1)
	}
	return filepath.Join(resolveLinks(dir, links), filepath.Base(path))
}

// lockBeside locks the file beside a socket. Nil without an error: it cannot be locked here.
func lockBeside(socket string, me Holder) (*os.File, error) {
	path := socket + ".myelin"
	for range claimSlots {
		f, err := os.OpenFile(path, os.O_RDWR|os.O_CREATE|syscall.O_NOFOLLOW, 0o600)
		if err != nil {
			return nil, nil
		}
		if info, err := f.Stat(); err != nil || !info.Mode().IsRegular() || !mayDrive(ownerOf(info), socket) {
			f.Close()
			return nil, nil
		}
		switch err := syscall.Flock(int(f.Fd()), syscall.LOCK_EX|syscall.LOCK_NB); {
		case errors.Is(err, syscall.EWOULDBLOCK):
			var holder Holder
			_ = json.NewDecoder(io.LimitReader(f, claimLimit)).Decode(&holder) // it may not have been written yet
			f.Close()
			return nil, &ClaimedError{Path: socket, Holder: holder}
		case err != nil: // a file system without locks
			f.Close()
			return nil, nil
		}
		// Whoever had it may have removed it between the opening and the lock: then it locks nobody out.
		if !isFileAt(f, path) {
			f.Close()
			continue
		}
		if text, err := json.Marshal(me); err == nil && f.Truncate(0) == nil {
			_, _ = f.WriteAt(text, 0) // it is the lock that counts
		}
		return f, nil
	}
	return nil, nil
}

func isFileAt(f *os.File, path string) bool {
	mine, err := f.Stat()
	if err != nil {
		return false
	}
	there, err := os.Lstat(path)
	return err == nil && os.SameFile(mine, there)
}

// listen takes a name of the abstract name space. The same path may be that of several HAProxys, each in a mount name
// space of its own: what the holder of a name says of its folder tells whether it is the same one, and if not the next
// name is tried. All names are looked at once more when one was had, since those in front may have become free
// meanwhile; of two processes that come at once at least one sees the other.
func (c *Claim) listen(socket string, me Holder) error {
	if runtime.GOOS != "linux" {
		return nil
	}
	name := func(slot int) string { return claimName(socket, slot) }
	own := -1
	for slot := 0; slot < claimSlots && own < 0; slot++ {
		l, err := net.Listen("unix", name(slot))
		switch {
		case err == nil:
			c.listener, own = l, slot
		case !errors.Is(err, syscall.EADDRINUSE):
			return nil
		default:
			if holder, same := holderOf(name(slot), socket); same {
				return &ClaimedError{Path: socket, Holder: holder}
			}
		}
	}
	if own < 0 {
		return nil
	}
	c.answering.Go(func() { answer(c.listener, socket, me) })
	for slot := range claimSlots {
		if slot == own {
			continue
		}
		if holder, same := holderOf(name(slot), socket); same {
			return &ClaimedError{Path: socket, Holder: holder}
		}
	}
	return nil
}

// claimName is one of the names that a claim to the HAProxy at a socket can have.
func claimName(socket string, slot int) string {
	sum := sha256.Sum256([]byte(socket))
	return fmt.Sprintf("@myelin/%s/%d", hex.EncodeToString(sum[:16]), slot)
}

// claimReply is what a holder answers.
type claimReply struct {
	Holder
	Folder string `json:"folder"` // of the socket, as it is now
}

// answer tells everyone who connects who holds the claim, until l is closed.
func answer(l net.Listener, socket string, me Holder) {
	for {
		conn, err := l.Accept()
		if errors.Is(err, net.ErrClosed) {
			return
		}
		if err != nil {
			time.Sleep(claimAnswer / 10) // no descriptors are left
			continue
		}
		if conn.SetDeadline(time.Now().Add(claimAnswer)) == nil {
			_ = json.NewEncoder(conn).Encode(claimReply{me, folderOf(socket)})
		}
		conn.Close()
	}
}

// holderOf asks the holder of a name who it is, and whether it means the same socket. One that does not answer does.
func holderOf(name, socket string) (Holder, bool) {
	conn, err := net.DialTimeout("unix", name, claimAnswer)
	if err != nil {
		return Holder{}, errors.Is(err, syscall.EAGAIN) || errors.Is(err, os.ErrDeadlineExceeded) // its backlog is full
	}
	defer conn.Close()
	pid, uid, known := peer(conn)
	if known && !mayDrive(uid, socket) {
		return Holder{}, false // anybody may take a name
	}
	var r claimReply
	if conn.SetDeadline(time.Now().Add(claimAnswer)) == nil {
		_ = json.NewDecoder(io.LimitReader(conn, claimLimit)).Decode(&r)
	}
	if pid != 0 {
		r.Pid = pid // as it is known in our name space
	}
	folder := folderOf(socket)
	return r.Holder, r.Folder == "" || folder == "" || r.Folder == folder
}

// folderOf tells the folder of a socket apart from others with its path; empty where there is none.
func folderOf(socket string) string {
	info, err := os.Stat(filepath.Dir(socket))
	if err != nil {
		return ""
	}
	st, ok := info.Sys().(*syscall.Stat_t)
	if !ok {
		return ""
	}
	return fmt.Sprintf("%d:%d", st.Dev, st.Ino)
}

// mayDrive tells whether a user could be one who drives the HAProxy at a socket. Another one's claim would keep us away
// for nothing.
func mayDrive(uid int, socket string) bool {
	if uid == 0 || uid == os.Geteuid() {
		return true
	}
	for _, path := range []string{socket, filepath.Dir(socket)} {
		if info, err := os.Stat(path); err == nil && ownerOf(info) == uid {
			return true
		}
	}
	return false
}

// ownerOf is the user id of a file's owner; -1: not known.
func ownerOf(info fs.FileInfo) int {
	if st, ok := info.Sys().(*syscall.Stat_t); ok {
		return int(st.Uid)
	}
	return -1
}
