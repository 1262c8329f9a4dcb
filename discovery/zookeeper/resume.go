package zookeeper

import (
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"hash/crc32"
	"io"
	"maps"
	"net"
	"os"
	"path"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"time"

	"github.com/sirupsen/logrus"

	"github.com/myelin-sd/myelin/discovery"
	"github.com/myelin-sd/myelin/durable"
)

const (
	// fileVersion is of the session file's form.
	fileVersion = 1

	// fileMost bounds what is read of one: 10,000 registrations are 1.5 MB.
	fileMost = 16 << 20

	// recordPatience is how long a create waits for the session file. A disk that hangs must not keep a service from
	// being registered.
	recordPatience = 2 * time.Second

	// fileRetry is the pause before a session file that could not be written is tried again.
	fileRetry = 10 * time.Second
)

// Leave ends the work of this process with the session, without a word to the server: the session and its ephemeral
// nodes live on for its timeout, and the session file stays, so that the next process takes them up and nobody notices.
// Otherwise it does what Close does. After Close it does nothing, nor does Close after it.
func (s *Session) Leave() { s.end(false) }

// end is Close with a goodbye, and Leave without one. A session whose end no server has confirmed may live on: its file
// then stays.
func (s *Session) end(goodbye bool) {
	s.mu.Lock()
	again, l, up := s.closed, s.link, s.up
	s.closed = true
	s.mu.Unlock()
	if again {
		<-s.over
		return
	}
	s.stop()
	if l != nil {
		if goodbye && up != nil {
			l.conn.Close() // waits for the answer, about a second, and returns as soon as the connection is lost
		}
		l.abandon()
	}
	s.all.Wait()
	s.ledger.close(goodbye && up != nil && up.tap.over())
	close(s.over)
}

// Standing implements registrar.Directory: r as it was registered, when a node of it may stand in the directory from
// before this process, or from earlier in it. The data are not known. Of r.Also it has those that may stand. A persistent
// node may always stand: nothing has removed it when the process before crashed, and the session file may be lost. It
// does not block.
func (s *Session) Standing(r discovery.Registration) (was discovery.Registration, may bool) {
	var also []discovery.Registration
	for i, one := range r.All() {
		was, listed := s.ledger.standing(regKey{one.Path, one.Prefix})
		switch {
		case !listed && (one.Ephemeral || s.withdrawn(one)):
			continue
		case !listed:
			was = one
		}
		if may = true; i == 0 {
			r = was
		} else {
			also = append(also, was)
		}
	}
	if !may {
		return discovery.Registration{}, false
	}
	r.Also = also
	return r, true
}

// withdrawn reports whether this session object has withdrawn r, and not published it since.
func (s *Session) withdrawn(r discovery.Registration) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	reg := s.regs[regKey{r.Path, r.Prefix}]
	return reg != nil && reg.absent
}

// Retain removes what the session file lists and keep does not: services that were configured for the process before
// and are not for this one. Registrations are told apart by path and prefix. Only nodes of our own are touched. It
// waits for a connection until ctx ends; the error tells of all that may still stand, and calling it again is harmless.
func (s *Session) Retain(ctx context.Context, keep []discovery.Registration) error {
	var errs []error
	for _, r := range s.ledger.all() {
		if slices.ContainsFunc(keep, func(k discovery.Registration) bool { return slices.ContainsFunc(k.All(), r.SamePlace) }) {
			continue
		}
		if err := s.Withdraw(ctx, r, ""); err != nil {
			errs = append(errs, err)
			continue
		}
		s.log.WithField("path", path.Join(r.Path, r.Prefix)).Info("a service that is no longer configured is withdrawn")
	}
	return errors.Join(errs...)
}

// inherit opens the session file, when there is to be one, and takes over what the process before has left. What goes
// wrong is logged, and the session is then one without a past or without a file.
func (s *Session) inherit() {
	if s.o.SessionFile == "" {
		return
	}
	l, err := openLedger(s.o.SessionFile, s.hosts, s.o.Chroot, s.log)
	log := s.log.WithField("path", s.o.SessionFile)
	switch {
	case errors.Is(err, errInUse):
		log.Warn("the session file is used by another process; going on without one: a restart will not be able to take this session up")
		return
	case err != nil:
		log.WithField("err", err).Warn("the session file cannot be used; going on without one: a restart will not be able to take this session up")
		return
	}
	s.ledger = l
	s.resume = l.saved.credentials
	s.latest = l.saved.session
	s.all.Go(func() { l.run(s.ctx) })
}

// abrupt makes connections forget, when they are closed, what has not been sent yet. The kernel would go on to send it
// for minutes: a create of a connection that we gave up could reach the server after another connection has found out
// that there is no such node, and nobody would know of the one it makes.
func abrupt(dial func(context.Context, string, string) (net.Conn, error)) func(context.Context, string, string) (net.Conn, error) {
	return func(ctx context.Context, network, address string) (net.Conn, error) {
		c, err := dial(ctx, network, address)
		if tcp, ok := c.(*net.TCPConn); ok && err == nil {
			if err := tcp.SetLinger(0); err != nil {
				c.Close()
				return nil, fmt.Errorf("set linger of %s: %w", address, err)
			}
		}
		return c, err
	}
}

// savedSession is what a process leaves to the next one.
type savedSession struct {
	handshake
	hosts         []string
	chroot        string
	at            time.Time // of writing
	registrations []discovery.Registration
}

// sessionFile is the form of the file. The checksum is over the session in compact form, so that it may be laid out
// for the eye.
type sessionFile struct {
	Version  int             `json:"version"`
	Checksum string          `json:"checksum"` // CRC-32C, hexadecimal
	Session  json.RawMessage `json:"session"`
}

type sessionJSON struct {
	Time          time.Time          `json:"time"`
	Hosts         []string           `json:"hosts"`
	Chroot        string             `json:"chroot,omitempty"`
	ID            string             `json:"id"` // hexadecimal, as ZooKeeper's tools write it
	Password      []byte             `json:"password"`
	TimeoutMS     int64              `json:"timeout_ms"` // as negotiated
	Registrations []registrationJSON `json:"registrations"`
}

type registrationJSON struct {
	Path       string `json:"path"`
	Prefix     string `json:"prefix"`
	Sequential bool   `json:"sequential"`
	Ephemeral  bool   `json:"ephemeral"`
}

func checksum(compact []byte) string {
	return fmt.Sprintf("%08x", crc32.Checksum(compact, crc32.MakeTable(crc32.Castagnoli)))
}

func (v savedSession) encode() ([]byte, error) {
	j := sessionJSON{
		Time: v.at, Hosts: v.hosts, Chroot: v.chroot, ID: hex(v.session), Password: v.password[:],
		TimeoutMS: v.timeout.Milliseconds(), Registrations: []registrationJSON{},
	}
	for _, r := range v.registrations {
		j.Registrations = append(j.Registrations, registrationJSON{r.Path, r.Prefix, r.Sequential, r.Ephemeral})
	}
	session, err := json.Marshal(j)
	if err != nil {
		return nil, err
	}
	text, err := json.Marshal(sessionFile{fileVersion, checksum(session), session})
	if err != nil {
		return nil, err
	}
	return append(text, '\n'), nil
}

// decodeSession reads what encode wrote. It takes nothing that could not have been written so.
func decodeSession(text []byte) (savedSession, error) {
	var f sessionFile
	if err := json.Unmarshal(text, &f); err != nil {
		return savedSession{}, err
	}
	if f.Version != fileVersion {
		return savedSession{}, fmt.Errorf("version %d is not known, only %d", f.Version, fileVersion)
	}
	compact, err := json.Marshal(f.Session)
	if err != nil {
		return savedSession{}, err
	}
	if sum := checksum(compact); sum != f.Checksum {
		return savedSession{}, fmt.Errorf("the checksum is %s and not %q", sum, f.Checksum)
	}
	var j sessionJSON
	if err := json.Unmarshal(f.Session, &j); err != nil {
		return savedSession{}, err
	}
	return j.session()
}

func (j sessionJSON) session() (savedSession, error) {
	v := savedSession{hosts: j.Hosts, chroot: j.Chroot, at: j.Time}
	id, err := strconv.ParseUint(strings.TrimPrefix(j.ID, "0x"), 16, 64)
	if err != nil || id == 0 {
		return savedSession{}, fmt.Errorf("%q is no session's id", j.ID)
	}
	if len(j.Password) != len(v.password) {
		return savedSession{}, fmt.Errorf("a password of %d bytes; ZooKeeper's have %d", len(j.Password), len(v.password))
	}
	v.session, v.timeout = int64(id), time.Duration(j.TimeoutMS)*time.Millisecond
	copy(v.password[:], j.Password)
	for _, r := range j.Registrations {
		reg := discovery.Registration{Path: r.Path, Prefix: r.Prefix, Sequential: r.Sequential, Ephemeral: r.Ephemeral}
		if err := checkPrefix(reg); err != nil {
			return savedSession{}, err
		}
		v.registrations = append(v.registrations, reg)
	}
	return v, nil
}

// sameEnsemble reports whether a session of one list of hosts can be asked for at the other: they share a member, and
// the paths mean the same. A member more or less is no other ensemble.
func (v savedSession) sameEnsemble(hosts []string, chroot string) bool {
	return v.chroot == chroot && slices.ContainsFunc(hosts, func(h string) bool { return slices.Contains(v.hosts, h) })
}

// errInUse is returned when another process has locked the session file.
var errInUse = errors.New("used by another process")

// ledger keeps the session file: which session this process has, and which registrations may have a node in it. A
// registration is listed before its create is sent, and until it is known to be gone, so that whatever a process leaves
// behind is known to the next. A goroutine writes, and joins what comes while it does: 200 services that register at
// the same time cost two or three writes.
//
// A nil ledger is one without a file: all its methods do nothing.
type ledger struct {
	path   string
	log    logrus.FieldLogger
	lock   *os.File
	hosts  []string
	chroot string
	saved  savedSession // as it was found; the zero value when there was nothing of use

	wake chan struct{} // capacity one: there is something to write

	mu      sync.Mutex // guards all below
	session handshake
	began   uint64 // rev with which session came
	listed  map[regKey]entry
	rev     uint64        // grows with each change
	added   uint64        // rev of the latest that the file must not be without
	done    uint64        // rev that was written, or could not be
	stored  uint64        // rev in the file
	turn    chan struct{} // closed when done moves on, and made anew
	met     bool          // session is that of this process
	failing bool          // the latest write failed
	late    bool          // a create has not waited for the file
	told    bool          // what became of the session found has been said
}

// entry is a registration that may have a node.
type entry struct {
	registration discovery.Registration // without data
	rev          uint64                 // with which it came
}

// openLedger locks the file at path and reads it. A file that is damaged is set aside, and one of another ensemble
// taken for none, with a line in the log.
func openLedger(path string, hosts []string, chroot string, log logrus.FieldLogger) (*ledger, error) {
	lock, err := lockFile(path + ".lock")
	if err != nil {
		return nil, err
	}
	l := &ledger{
		path: path, log: log.WithField("path", path), lock: lock, hosts: hosts, chroot: chroot,
		wake: make(chan struct{}, 1), listed: map[regKey]entry{}, turn: make(chan struct{}),
	}
	l.load()
	return l, nil
}

// lockFile locks a file that stays where it is: the session file itself is replaced with each write. The lock ends
// with the process, however that ends.
func lockFile(path string) (*os.File, error) {
	if err := os.MkdirAll(filepath.Dir(path), 0o700); err != nil {
		return nil, err
	}
	f, err := os.OpenFile(path, os.O_RDWR|os.O_CREATE, 0o600)
	if err != nil {
		return nil, err
	}
	err = syscall.Flock(int(f.Fd()), syscall.LOCK_EX|syscall.LOCK_NB)
	if err == nil {
		return f, nil
	}
	f.Close()
	if errors.Is(err, syscall.EWOULDBLOCK) {
		return nil, fmt.Errorf("lock %s: %w", path, errInUse)
	}
	return nil, fmt.Errorf("lock %s: %w", path, err)
}

// load takes what the file says.
func (l *ledger) load() {
	text, err := readAtMost(l.path, fileMost)
	if errors.Is(err, os.ErrNotExist) {
		return
	}
	var v savedSession
	if err == nil {
		v, err = decodeSession(text)
	}
	if err != nil {
		if errAside := os.Rename(l.path, l.path+".damaged"); errAside != nil {
			err = errors.Join(err, errAside)
		}
		l.log.WithField("err", err).Warn("the session file is damaged; it is set aside with .damaged behind its name, and a new session is opened")
		return
	}
	if !v.sameEnsemble(l.hosts, l.chroot) {
		l.log.WithField("reason", "it is of "+strings.Join(v.hosts, ",")+v.chroot).Warn("the session file is of another ensemble; a new session is opened")
		return
	}
	l.saved, l.session = v, v.handshake
	for _, r := range v.registrations {
		l.listed[regKey{r.Path, r.Prefix}] = entry{registration: r}
	}
}

func readAtMost(path string, most int64) ([]byte, error) {
	f, err := os.Open(path)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	text, err := io.ReadAll(io.LimitReader(f, most+1))
	if err == nil && int64(len(text)) > most {
		err = fmt.Errorf("read %s: it is larger than %d bytes", path, most)
	}
	return text, err
}

// found reports whether there was a process before, of which something may stand.
func (l *ledger) found() bool { return l != nil && l.saved.session != 0 }

// former is the session of the process before; 0: none.
func (l *ledger) former() int64 {
	if l == nil {
		return 0
	}
	return l.saved.session
}

// established takes in that there is a session, which may be the one that was. It runs in the client library's
// goroutine and does not block.
func (l *ledger) established(h handshake) {
	if l == nil {
		return
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.met && h == l.session {
		return
	}
	renewed := h.credentials != l.session.credentials
	l.session, l.met = h, true
	l.change()
	if renewed {
		l.began, l.added = l.rev, l.rev
	}
}

// change notes that there is something to write. The caller holds mu.
func (l *ledger) change() {
	l.rev++
	select {
	case l.wake <- struct{}{}:
	default:
	}
}

// record lists a registration, and returns when the file tells of it and of the present session, or cannot be written.
// It fails when ctx or the session's work ends first.
func (l *ledger) record(ctx, working context.Context, r discovery.Registration) error {
	if l == nil {
		return nil
	}
	r.Data = nil
	key := regKey{r.Path, r.Prefix}
	l.mu.Lock()
	defer l.mu.Unlock()
	at, ok := l.listed[key]
	if !ok || at.registration.Sequential != r.Sequential || at.registration.Ephemeral != r.Ephemeral {
		l.change()
		at = entry{r, l.rev}
		l.listed[key], l.added = at, l.rev
	}
	need := max(at.rev, l.began)
	if l.done >= need {
		return nil
	}
	patience := time.NewTimer(recordPatience)
	defer patience.Stop()
	for l.done < need {
		turn := l.turn
		l.mu.Unlock()
		select {
		case <-turn:
			l.mu.Lock()
		case <-patience.C:
			l.hangs()
			l.mu.Lock()
			return nil
		case <-ctx.Done():
			l.mu.Lock()
			return fmt.Errorf("write %s: %w", l.path, ctx.Err())
		case <-working.Done():
			l.mu.Lock()
			return errClosed
		}
	}
	return nil
}

// hangs says once that creates do not wait for the file any more.
func (l *ledger) hangs() {
	l.mu.Lock()
	again := l.late
	l.late = true
	l.mu.Unlock()
	if !again {
		l.log.WithField("duration", recordPatience).Warn("the session file takes too long to write; services are registered nevertheless")
	}
}

// forget strikes a registration out: it has no node any more. It does not wait for the file; one entry too many costs
// the next process a look.
func (l *ledger) forget(key regKey) {
	if l == nil {
		return
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	if _, ok := l.listed[key]; ok {
		delete(l.listed, key)
		l.change()
	}
}

func (l *ledger) standing(key regKey) (discovery.Registration, bool) {
	if l == nil {
		return discovery.Registration{}, false
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	at, ok := l.listed[key]
	return at.registration, ok
}

// all returns what is listed, sorted by path and prefix.
func (l *ledger) all() []discovery.Registration {
	if l == nil {
		return nil
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.sorted()
}

// sorted is all; the caller holds mu.
func (l *ledger) sorted() []discovery.Registration {
	keys := slices.SortedFunc(maps.Keys(l.listed), func(a, b regKey) int {
		return cmp.Or(strings.Compare(a.path, b.path), strings.Compare(a.prefix, b.prefix))
	})
	rs := make([]discovery.Registration, len(keys))
	for i, k := range keys {
		rs[i] = l.listed[k].registration
	}
	return rs
}

// run writes the file until ctx ends.
func (l *ledger) run(ctx context.Context) {
	for {
		var again <-chan time.Time
		if l.flush() != nil {
			again = time.After(fileRetry)
		}
		l.tell()
		select {
		case <-l.wake:
		case <-again:
		case <-ctx.Done():
			return
		}
	}
}

// flush writes what is not in the file yet. When that fails, a file that lacks something is removed: better no session
// to take up than one with nodes that nobody knows of.
func (l *ledger) flush() error {
	l.mu.Lock()
	v := savedSession{handshake: l.session, hosts: l.hosts, chroot: l.chroot, at: time.Now(), registrations: l.sorted()}
	rev, lacking := l.rev, l.added > l.stored
	if rev == l.stored || v.session == 0 {
		l.mu.Unlock()
		return nil
	}
	l.mu.Unlock()
	text, err := v.encode()
	if err == nil {
		err = durable.Replace(durable.File{Path: l.path, Temp: l.path + ".new", Mode: 0o600}, text)
	}
	if err != nil && lacking {
		err = errors.Join(err, removeFile(l.path))
	}
	l.wrote(rev, err)
	return err
}

// wrote lets those who wait go on, and says when the file fails or is written again.
func (l *ledger) wrote(rev uint64, err error) {
	l.mu.Lock()
	before := l.failing
	l.done, l.failing = rev, err != nil
	if err == nil {
		l.stored = rev
	}
	close(l.turn)
	l.turn = make(chan struct{})
	l.mu.Unlock()
	switch {
	case err != nil && !before:
		l.log.WithField("err", err).Warn("the session file cannot be written; a restart will not be able to take this session up")
	case err == nil && before:
		l.log.Info("the session file is written again")
	}
}

// tell says once what became of the session that the process before has left.
func (l *ledger) tell() {
	l.mu.Lock()
	now, say := l.session, l.met && !l.told && l.found()
	l.told = l.told || l.met
	l.mu.Unlock()
	if !say {
		return
	}
	log := l.log.WithFields(logrus.Fields{"session": hex(l.saved.session), "count": len(l.saved.registrations)})
	if now.credentials.session == l.saved.session {
		log.Info("the session of the process before is taken up")
	} else {
		log.Info("the session of the process before has ended; a new one is opened")
	}
}

// removeFile removes a file for good; one that is not there is no error.
func removeFile(path string) error {
	if err := os.Remove(path); err != nil {
		if errors.Is(err, os.ErrNotExist) {
			return nil
		}
		return err
	}
	return durable.SyncDir(filepath.Dir(path))
}

// close ends the work with the file, after run has ended: it is removed when nothing of what it says is true any more,
// else brought up to date. Persistent nodes outlive the session.
func (l *ledger) close(over bool) {
	if l == nil {
		return
	}
	if over && !slices.ContainsFunc(l.all(), func(r discovery.Registration) bool { return !r.Ephemeral }) {
		if err := removeFile(l.path); err != nil {
			l.log.WithField("err", err).Warn("the session file cannot be removed; the next process will try to take an ended session up, and open a new one")
		}
	} else {
		l.flush() // has said what went wrong
	}
	l.lock.Close()
}
