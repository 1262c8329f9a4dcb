// Package zookeeper is ZooKeeper as Myelin needs it: a session that comes back by itself, sources of snapshots, and a
// directory to publish in. It is the only package that knows the client library and its traps.
package zookeeper

import (
	"bytes"
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"net"
	"os"
	"path"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/go-zookeeper/zk"
	"github.com/sirupsen/logrus"
)

// ErrNoPath is wrapped by errors about a path that does not exist.
var ErrNoPath = errors.New("the path does not exist")

var (
	errClosed = errors.New("the session is closed")
	errLost   = errors.New("the connection to ZooKeeper was lost")
)

// Options of a Session. Only Hosts is needed.
type Options struct {
	Hosts          []string // "host:port" each; the port may be left out, a string may hold several with commas
	Chroot         string   // put before every path; empty or absolute
	SessionTimeout time.Duration
	Log            logrus.FieldLogger

	// Logins are made on every connection before anybody uses it.
	Logins []Login

	// TLS secures connections. nil: they are plain. An empty ServerName stands for the name of the host dialled.
	TLS *tls.Config

	// Classic keeps to what servers before 3.6 understand: one watch per node. Otherwise it is used where the servers
	// refuse persistent watches.
	Classic bool

	// SessionFile is where the session's id and password are kept (mode 0600), so that another process can take the
	// session up after this one has ended without Close. Empty: nowhere.
	SessionFile string

	// HandshakeTimeout bounds a dial, and then the wait for the server's answer, before the next host's turn. 0: 3 s.
	HandshakeTimeout time.Duration

	// Watchdog is how long a client that makes no progress is borne. 0: three session timeouts, at least 30 s.
	Watchdog time.Duration

	// AntiEntropy is the mean time between full readings that check what the watches have told. 0: 7.5 minutes.
	AntiEntropy time.Duration

	// Told is called when the connection is there, and when it is lost. It must not block, nor call the session. nil:
	// nobody is told.
	Told func(SessionEvent)

	// Dial opens connections. nil: net.Dialer.
	Dial func(ctx context.Context, network, address string) (net.Conn, error)
}

// SessionEvent is a connection that has come, or that was lost.
type SessionEvent struct {
	Connected bool
	First     bool          // of this process
	Fresh     bool          // with a session that it did not have before
	Session   string        // hexadecimal
	Server    string        // host:port
	After     time.Duration // that it was away
	Error     string        // why it was lost, in words; may be empty
}

// Login is one authentication of a session.
type Login struct {
	Scheme      string // "digest"
	Credentials []byte // "user:password" for digest
	File        string // where the credentials are, instead; read at every connection, trailing line ends do not count
}

const (
	defaultSessionTimeout   = 12 * time.Second
	defaultHandshakeTimeout = 3 * time.Second
	defaultAntiEntropy      = 450 * time.Second

	// An outage is said again after a minute, then after twice the time, and at least twice an hour.
	remindFirst = time.Minute
	remindMost  = 30 * time.Minute

	defaultTLSTimeout = 5 * time.Second // a Java server's first handshakes took up to 0.9 s in measurements
)

// Session is one client of an ensemble, shared by all that need it. It connects by itself, for ever, until Close; an
// expired session is followed by a new one. Its methods may be called from several goroutines.
type Session struct {
	o     Options
	log   logrus.FieldLogger
	hosts []string

	ctx  context.Context // ends with Close
	stop context.CancelFunc
	over chan struct{}  // closed when Close or Leave has done all
	all  sync.WaitGroup // every goroutine of ours, those in library calls included

	budget *budget      // of all reads
	zxid   atomic.Int64 // the highest seen
	old    atomic.Bool  // the servers know neither persistent watches nor MultiRead
	arming sync.Mutex   // around setting a persistent watch, and removing it

	received, reads, events, sessions, expired, reconnects, resyncs, unchanged, differences, discarded atomic.Uint64

	ledger *ledger // nil without a session file

	mu       sync.Mutex // guards all below; never held across a call of the library or a logger
	closed   bool
	link     *link
	up       *epoch        // nil while there is no session
	rise     chan struct{} // closed when up is set; made anew when it is lost
	gen      uint64
	latest   int64       // session of the latest epoch
	resume   credentials // of the latest session, none when it has expired
	timeout  time.Duration
	server   string
	since    time.Time // of the present state
	attempts int       // dials since up was lost
	lastErr  string
	warned   bool          // the present loss has been said
	refused  bool          // and why servers refuse
	reminder time.Duration // after the loss, when it is said again
	unarmed  int           // connections in a row that ended without an answer to addWatch
	ended    uint64        // generation of the latest of them
	routes   map[string]map[*inbox]struct{}
	guards   map[string]struct{}
	subs     map[chan struct{}]struct{}
	regs     map[regKey]*registration
}

// link is one zk.Conn, with what dies with it.
type link struct {
	ctx    context.Context // ends when the link is given up; dials then fail
	cancel context.CancelFunc
	conn   *zk.Conn
	ready  chan struct{} // closed when conn is set

	made time.Time

	mu      sync.Mutex // guards all below
	tap     *tap
	dialed  time.Time // start of the latest dial
	reached bool      // the latest dial went through, and no session has come of it
	attempt int       // dials since the last connection that lived
	shaken  time.Time // end of the latest handshake; zero when the latest dial has come to none
}

// epoch is one established connection: what was learned under an older one may be outdated.
type epoch struct {
	gen     uint64
	link    *link
	tap     *tap
	session int64
	down    chan struct{} // closed when the connection is lost
	current chan bool     // one element, who has it may ask: whether the server has caught up with its leader
}

// New returns a session and starts to connect. It does not block; hosts that cannot be resolved or reached are tried
// again for ever. A list of hosts that nobody can dial shows in Status.
func New(o Options) *Session {
	if o.SessionTimeout <= 0 {
		o.SessionTimeout = defaultSessionTimeout
	}
	if o.HandshakeTimeout <= 0 {
		o.HandshakeTimeout = defaultHandshakeTimeout
	}
	if o.Watchdog <= 0 {
		o.Watchdog = max(3*o.SessionTimeout, 30*time.Second)
	}
	if o.AntiEntropy <= 0 {
		o.AntiEntropy = defaultAntiEntropy
	}
	if o.Dial == nil {
		o.Dial = (&net.Dialer{}).DialContext
	}
	if o.Log == nil {
		silent := logrus.New()
		silent.SetOutput(io.Discard)
		o.Log = silent
	}
	o.Dial = abrupt(o.Dial)
	o.Chroot = strings.TrimSuffix(o.Chroot, "/")
	s := &Session{
		o: o, log: o.Log, budget: newBudget(), rise: make(chan struct{}), since: time.Now(),
		routes: map[string]map[*inbox]struct{}{}, guards: map[string]struct{}{}, subs: map[chan struct{}]struct{}{},
		regs: map[regKey]*registration{}, over: make(chan struct{}),
	}
	s.ctx, s.stop = context.WithCancel(context.Background())
	hosts, err := parseHosts(o.Hosts)
	if err != nil {
		s.lastErr = err.Error()
		s.log.WithField("err", err).Error("zookeeper hosts are unusable")
		return s
	}
	s.hosts = hosts
	s.inherit()
	s.all.Go(s.keep)
	return s
}

// keep holds a link, and replaces one that makes no progress, until the session is closed.
func (s *Session) keep() {
	tick := time.NewTicker(max(min(s.o.Watchdog/20, s.o.SessionTimeout/6), 10*time.Millisecond))
	defer tick.Stop()
	l := s.connect()
	for {
		select {
		case <-s.ctx.Done():
			return
		case now := <-tick.C:
			s.remind(now)
			s.hurry(l, now)
			why := s.stuck(l, now)
			if why == "" {
				continue
			}
			s.discarded.Add(1)
			s.log.WithField("err", why).Warn("zookeeper client makes no progress; starting it anew")
			// What answers may be older than what was seen: a store that was wiped, or restored. It has the last word.
			s.zxid.Store(0)
			s.lost(l)
			s.all.Go(l.abandon)
			l = s.connect()
		}
	}
}

// remind says that an outage goes on, after a minute and then ever more seldom.
func (s *Session) remind(now time.Time) {
	s.mu.Lock()
	if s.up != nil || s.closed {
		s.mu.Unlock()
		return
	}
	if s.reminder < remindFirst {
		s.reminder = remindFirst
	}
	away := now.Sub(s.since)
	if away < s.reminder {
		s.mu.Unlock()
		return
	}
	s.reminder = min(2*s.reminder, s.reminder+remindMost)
	fields := logrus.Fields{"duration": away.Round(time.Second), "attempt": s.attempts, "err": s.lastErr}
	s.mu.Unlock()
	s.log.WithFields(fields).Warn("zookeeper still cannot be reached; what is known stays in force")
}

// hurry ends a connection on which a reply has been lost. The next one takes the session up.
func (s *Session) hurry(l *link, now time.Time) {
	s.mu.Lock()
	e, limit := s.up, s.timeout*2/3
	s.mu.Unlock()
	if e != nil && e.link == l && e.tap.overtaken(now, limit) {
		s.log.WithField("addr", s.Status().Server).Warn("zookeeper has answered later requests and not an earlier one; connecting anew")
		e.tap.Close()
	}
}

// stuck says why a link should be replaced. Where every dial fails nothing is wrong with the client: it goes on
// trying, and keeps its session for when the ensemble is back.
func (s *Session) stuck(l *link, now time.Time) string {
	s.mu.Lock()
	up, since := s.up != nil, s.since
	s.mu.Unlock()
	l.mu.Lock()
	reached, dialed := l.reached, l.dialed
	l.mu.Unlock()
	switch limit := s.o.Watchdog; {
	case up:
	case now.Sub(later(since, l.made)) <= limit:
	case reached:
		return "servers are reached and the session is not taken up"
	case now.Sub(later(l.made, dialed)) > limit+paceMost+s.o.HandshakeTimeout:
		return "the client does not dial any more"
	}
	return ""
}

func later(a, b time.Time) time.Time {
	if a.After(b) {
		return a
	}
	return b
}

// connect makes a zk.Conn. It does not block: the library dials in its own goroutine.
func (s *Session) connect() *link {
	l := &link{ready: make(chan struct{}), made: time.Now()}
	l.ctx, l.cancel = context.WithCancel(context.Background())
	conn, events, err := zk.Connect(s.hosts, s.o.SessionTimeout,
		zk.WithHostProvider(newProvider(s.hosts, l.ctx.Done())),
		zk.WithDialer(func(_, address string, _ time.Duration) (net.Conn, error) { return s.dial(l, address) }),
		zk.WithLogger(libraryLog{s.log, func(line string) { s.noteFailure(l, line) }}),
		zk.WithEventCallback(func(ev zk.Event) { s.event(l, ev) }),
		zk.WithMaxBufferSize(libraryReply),
	)
	if err != nil { // only for an empty list or a failing provider, and ours does not
		panic(fmt.Sprintf("zookeeper: connect: %v", err))
	}
	l.conn = conn
	s.mu.Lock()
	s.link = l
	closed := s.closed
	s.mu.Unlock()
	close(l.ready)
	s.all.Go(func() {
		for range events { // closed when the library's goroutine ends; the events come through the callback
		}
	})
	if closed { // Close has not seen this link
		s.all.Go(l.abandon)
	}
	return l
}

// dial opens a connection for the library, paced.
func (s *Session) dial(l *link, address string) (net.Conn, error) {
	<-l.ready // the first events need the zk.Conn
	l.mu.Lock()
	before := l.tap
	l.tap = nil
	if !l.shaken.IsZero() && time.Since(l.shaken) > s.o.SessionTimeout/3 {
		l.attempt = 0
	}
	l.shaken = time.Time{}
	wait := pace(l.attempt, s.o.SessionTimeout, rand.Float64())
	l.attempt++
	l.mu.Unlock()
	if before != nil {
		before.Close() // the library leaves the connection of an expired session to the garbage collector
	}
	select {
	case <-time.After(wait):
	case <-l.ctx.Done():
		return nil, errClosed
	}

	s.mu.Lock()
	s.attempts++
	resume := s.resume
	s.mu.Unlock()
	l.mu.Lock()
	l.dialed = time.Now()
	l.mu.Unlock()
	c, err := s.open(l.ctx, address)
	l.mu.Lock()
	l.reached = err == nil
	l.mu.Unlock()
	if err != nil {
		return nil, err
	}
	logins, err := readLogins(s.o.Logins)
	if err != nil { // another file may hold better ones at the next attempt
		c.Close()
		return nil, err
	}
	t := newTap(c, tapOptions{
		limit: s.o.HandshakeTimeout, writeLimit: max(s.o.SessionTimeout*2/3, time.Second), resume: resume, zxid: &s.zxid,
		logins: logins, received: &s.received,
		shaken: func(h handshake) { s.shaken(l, h) },
		event:  s.route,
	})
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.ctx.Err() != nil { // given up meanwhile: abandon has not seen this connection
		t.Close()
		return nil, errClosed
	}
	l.tap = t
	return t, nil
}

// open connects to an address, with TLS where that is wanted.
func (s *Session) open(ctx context.Context, address string) (net.Conn, error) {
	dialing, cancel := context.WithTimeout(ctx, s.o.HandshakeTimeout)
	defer cancel()
	c, err := s.o.Dial(dialing, "tcp", address)
	if err != nil || s.o.TLS == nil {
		return c, err
	}
	config := s.o.TLS.Clone()
	if config.ServerName == "" {
		config.ServerName, _, _ = net.SplitHostPort(address)
	}
	shaking, cancel := context.WithTimeout(ctx, max(s.o.HandshakeTimeout, defaultTLSTimeout))
	defer cancel()
	secure := tls.Client(c, config)
	if err := secure.HandshakeContext(shaking); err != nil {
		c.Close()
		if errors.Is(err, io.EOF) {
			return nil, fmt.Errorf("TLS handshake with %s: the server closed the connection; is it a port without TLS? (%w)", address, err)
		}
		return nil, fmt.Errorf("TLS handshake with %s: %w", address, err)
	}
	return secure, nil
}

// readLogins reads the files that logins name.
func readLogins(logins []Login) ([]Login, error) {
	var out []Login
	for _, l := range logins {
		if l.File != "" {
			text, err := os.ReadFile(l.File)
			if err != nil {
				return nil, fmt.Errorf("read ZooKeeper's credentials: %w", err)
			}
			l.Credentials = bytes.TrimRight(text, "\r\n")
		}
		out = append(out, l)
	}
	return out, nil
}

// shaken takes in what the server says about the session.
func (s *Session) shaken(l *link, h handshake) {
	l.mu.Lock()
	l.shaken = time.Now()
	l.mu.Unlock()
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.link != l { // given up, with its answer under way: the new one asks itself
		return
	}
	if h.session == 0 {
		s.expired.Add(1)
	}
	s.resume = h.credentials // none when the old session has expired
	if h.session != 0 {
		s.timeout = h.timeout
		s.ledger.established(h)
	}
}

// abandon ends the link without a word to the server, so that its session stays. It blocks for up to 3 s.
func (l *link) abandon() {
	l.cancel()
	l.mu.Lock()
	t := l.tap
	l.mu.Unlock()
	if t != nil {
		t.Close()
	}
	l.conn.Close()
}

// Close ends the session: the server deletes its ephemeral nodes at once when it can be reached, and the session file
// goes with them. Calls that wait end with an error. Close blocks until all has ended, a few seconds at most. It may be
// called again.
func (s *Session) Close() { s.end(true) }

// event takes the library's events, in the library's goroutine: it must not block nor call the library.
func (s *Session) event(l *link, ev zk.Event) {
	switch {
	case ev.Type == zk.EventSession && ev.State == zk.StateHasSession:
		s.connected(l, ev.Server)
	case ev.Type == zk.EventSession:
		s.lost(l)
	}
}

func (s *Session) connected(l *link, server string) {
	session := l.conn.SessionID()
	l.mu.Lock()
	l.reached = false
	t := l.tap
	l.mu.Unlock()
	if t == nil { // given up
		return
	}

	s.mu.Lock()
	if s.closed || s.link != l || s.up != nil {
		s.mu.Unlock()
		return
	}
	s.gen++
	e := &epoch{gen: s.gen, link: l, tap: t, session: session, down: make(chan struct{}), current: make(chan bool, 1)}
	e.current <- false
	fields := logrus.Fields{"session": hex(session), "addr": server, "duration": time.Since(s.since).Round(time.Millisecond), "attempt": s.attempts}
	fresh := session != s.latest
	told := SessionEvent{Connected: true, First: e.gen == 1, Fresh: fresh, Session: hex(session), Server: server, After: time.Since(s.since)}
	s.latest = session
	s.up, s.server, s.since, s.attempts, s.lastErr = e, server, time.Now(), 0, ""
	s.warned, s.refused, s.reminder = false, false, 0
	close(s.rise)
	for _, boxes := range s.routes {
		for b := range boxes {
			b.connected(e)
		}
	}
	s.notify()
	s.mu.Unlock()

	if fresh {
		s.sessions.Add(1)
	}
	if e.gen > 1 {
		s.reconnects.Add(1)
	}
	fields["new_session"] = fresh
	s.log.WithFields(fields).Info("zookeeper connected")
	s.tell(told)
}

func (s *Session) lost(l *link) {
	s.mu.Lock()
	if s.up == nil || s.up.link != l {
		s.mu.Unlock()
		return
	}
	close(s.up.down)
	s.up, s.since, s.rise = nil, time.Now(), make(chan struct{})
	say := !s.closed && !s.warned
	s.warned = true
	fields := logrus.Fields{"addr": s.server, "err": s.lastErr}
	told, closed := SessionEvent{Server: s.server, Error: s.lastErr, Session: hex(s.latest)}, s.closed
	s.mu.Unlock()
	if !closed {
		s.tell(told)
	}
	if say {
		s.log.WithFields(fields).Warn("zookeeper connection lost; what is known stays in force")
	}
}

// tell tells whoever wants to know. The caller does not hold mu.
func (s *Session) tell(ev SessionEvent) {
	if s.o.Told != nil {
		s.o.Told(ev)
	}
}

// noteFailure remembers why the library does not get through. The first time in an outage it is said as well.
func (s *Session) noteFailure(l *link, why string) {
	server := l.conn.Server()
	s.mu.Lock()
	if s.closed || s.link != l {
		s.mu.Unlock()
		return
	}
	s.lastErr = why
	if why == sessionExpired { // a new one follows, and is said
		s.mu.Unlock()
		return
	}
	say := s.up == nil && !s.refused
	if s.up == nil {
		s.warned, s.refused = true, true
	}
	s.mu.Unlock()
	if say {
		s.log.WithFields(logrus.Fields{"addr": server, "err": why}).Warn("zookeeper cannot be reached; trying on")
	}
}

// route hands a watch's event to those who look at the path or at its parent. What happens further below a watched
// path concerns nobody. It runs in the goroutine that reads from the connection.
func (s *Session) route(ev event) {
	s.events.Add(1)
	s.mu.Lock()
	defer s.mu.Unlock()
	for b := range s.routes[ev.path] {
		b.changed(true, "")
	}
	if parent, child := path.Split(ev.path); childName(child) {
		for b := range s.routes[trimSlash(parent)] {
			b.changed(false, child)
		}
	}
	if _, ok := s.guards[ev.path]; ok {
		s.notify()
	}
}

func trimSlash(p string) string {
	if len(p) > 1 {
		return strings.TrimSuffix(p, "/")
	}
	return p
}

// notify tells subscribers. The caller holds mu.
func (s *Session) notify() {
	for c := range s.subs {
		select {
		case c <- struct{}{}:
		default:
		}
	}
}

// full puts the chroot before a path.
func (s *Session) full(p string) string {
	if p = path.Clean("/" + p); p == "/" && s.o.Chroot != "" {
		return s.o.Chroot
	}
	return s.o.Chroot + p
}

// await blocks until there is a connection.
func (s *Session) await(ctx context.Context) (*epoch, error) {
	for {
		s.mu.Lock()
		e, rise, why := s.up, s.rise, s.lastErr
		s.mu.Unlock()
		if e != nil {
			return e, nil
		}
		select {
		case <-rise:
		case <-s.ctx.Done():
			return nil, errClosed
		case <-ctx.Done():
			if why != "" {
				return nil, fmt.Errorf("no connection to ZooKeeper: %s: %w", why, ctx.Err())
			}
			return nil, fmt.Errorf("no connection to ZooKeeper: %w", ctx.Err())
		}
	}
}

// goTracked runs f in a goroutine that Close waits for. It fails when the session is closed.
func (s *Session) goTracked(f func()) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.closed {
		return errClosed
	}
	s.all.Go(f)
	return nil
}

// Status is what a session knows about itself at one moment.
type Status struct {
	Connected bool
	Session   string        // hexadecimal, as ZooKeeper's tools write it; empty before the first
	Timeout   time.Duration // of the session, as the server decided; 0 before the first
	Server    string        // host:port connected to, or the last one
	Since     time.Time     // of the present state
	Attempts  int           // dials since the connection was lost
	Error     string        // why it is not connected, in words; empty when it is or nothing failed yet

	// Classic tells that there is one watch per node, by Options or because the servers know nothing better.
	Classic bool
}

// Status returns the present state. It does not block.
func (s *Session) Status() Status {
	s.mu.Lock()
	defer s.mu.Unlock()
	st := Status{Connected: s.up != nil, Timeout: s.timeout, Server: s.server, Since: s.since, Attempts: s.attempts, Classic: !s.modern()}
	if s.resume.session != 0 {
		st.Session = hex(s.resume.session)
	}
	if s.up == nil {
		st.Error = s.lastErr
	}
	return st
}

func hex(session int64) string { return fmt.Sprintf("0x%x", uint64(session)) }

// Stats are counters since New.
type Stats struct {
	Reads       uint64 // requests sent that read or set a watch
	Bytes       uint64 // received, of all kinds
	Events      uint64 // of watches
	Generation  uint64 // connections established
	Sessions    uint64 // sessions opened
	Expired     uint64 // sessions that had ended when they were to be taken up
	Reconnects  uint64 // connections established after the first
	Resyncs     uint64 // directories compared after a reconnect
	Unchanged   uint64 // of these, found as they had been left, so that they were not listed
	Differences uint64 // changes found that no watch had told of; stays 0 while all is well
	Discarded   uint64 // clients thrown away by the watchdog
}

// Stats returns the counters.
func (s *Session) Stats() Stats {
	s.mu.Lock()
	generation := s.gen
	s.mu.Unlock()
	return Stats{
		Generation: generation, Expired: s.expired.Load(),
		Reads: s.reads.Load(), Bytes: s.received.Load(), Events: s.events.Load(), Sessions: s.sessions.Load(), Reconnects: s.reconnects.Load(),
		Resyncs: s.resyncs.Load(), Unchanged: s.unchanged.Load(),
		Differences: s.differences.Load(), Discarded: s.discarded.Load(),
	}
}
