package agent

import (
	"crypto/sha256"
	"crypto/tls"
	"crypto/x509"
	"encoding/hex"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync"

	"github.com/sirupsen/logrus"

	"github.com/myelin-sd/myelin/config"
	"github.com/myelin-sd/myelin/discovery"
	"github.com/myelin-sd/myelin/discovery/zookeeper"
	"github.com/myelin-sd/myelin/journal"
)

// Sessions are a process's sessions with ZooKeeper, one for all that mean the same ensemble, login, TLS and way to
// watch. Its methods may be called from several goroutines.
type Sessions struct {
	log     logrus.FieldLogger
	journal journal.Recorder // nil: nobody is told

	mu   sync.Mutex // guards open
	open map[access]*pooled
}

// pooled is one session of the pool.
type pooled struct {
	session *zookeeper.Session
	name    string // unique in the pool
	number  int    // among those with its ensemble, from 1
	held    bool   // stays until the end
}

// access is what tells sessions apart.
type access struct {
	hosts, chroot             string
	scheme, file              string
	credentials               config.Secret
	secure, noVerify          bool
	ca, cert, key, serverName string
	classic                   bool
}

func accessOf(z config.ZooKeeper) access {
	k := access{hosts: strings.Join(slices.Sorted(slices.Values(z.Hosts)), ","), chroot: z.Chroot, classic: z.Classic}
	if a := z.Auth; a != nil {
		k.scheme, k.file, k.credentials = a.Scheme, a.CredentialsFile, a.Credentials
	}
	if t := z.TLS; t != nil {
		k.secure, k.noVerify = true, t.NoVerify
		k.ca, k.cert, k.key, k.serverName = t.CAFile, t.CertFile, t.KeyFile, t.ServerName
	}
	return k
}

// Keep says where the id of a session is kept, so that the next run of the process can take it up. The zero value
// keeps it nowhere.
type Keep struct {
	Dir   string // a folder; made when it is missing
	Owner string // tells this process from others that use the same folder
}

// ensembleName names an ensemble, as it is shown to people: "zk1:2181,zk2:2181/chroot".
func ensembleName(z config.ZooKeeper) string { return strings.Join(z.Hosts, ",") + z.Chroot }

// NewSessions returns a pool without sessions.
func NewSessions(log logrus.FieldLogger) *Sessions {
	return &Sessions{log: log, open: map[access]*pooled{}}
}

// TellJournal has the sessions that are made from now on tell a journal when they are lost, and back. It is for whoever
// has made the pool, before anybody else uses it.
func (p *Sessions) TellJournal(j journal.Recorder) { p.journal = j }

// Get returns the session for z, and starts one when there is none. It does not block. The first to ask decides the
// session's timeout.
func (p *Sessions) Get(z config.ZooKeeper) *zookeeper.Session {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.get(z, Keep{}).session
}

// Hold is Get for a session that stays until the end of the pool, whatever Release is told. A session that was there
// already keeps its id where it was told to when it began.
func (p *Sessions) Hold(z config.ZooKeeper, keep Keep) *zookeeper.Session {
	p.mu.Lock()
	defer p.mu.Unlock()
	s := p.get(z, keep)
	s.held = true
	return s.session
}

func (p *Sessions) get(z config.ZooKeeper, keep Keep) *pooled {
	key := accessOf(z)
	if s := p.open[key]; s != nil {
		return s
	}
	number := p.number(key)
	s := &pooled{name: ensembleName(z), number: number}
	if number > 1 {
		s.name += fmt.Sprintf(" (%d)", number)
	}
	log := p.log.WithFields(logrus.Fields{"component": "zookeeper", "ensemble": s.name})
	o := sessionOptions(z, keep.file(key, number, log), log)
	if p.journal != nil {
		o.Told = recordSession(p.journal, s.name)
	}
	s.session = zookeeper.New(o)
	p.open[key] = s
	return s
}

// number tells the sessions with one ensemble apart, from 1: they differ in their logins.
func (p *Sessions) number(of access) int {
	taken := map[int]bool{}
	for k, s := range p.open {
		if k.hosts == of.hosts && k.chroot == of.chroot {
			taken[s.number] = true
		}
	}
	n := 1
	for taken[n] {
		n++
	}
	return n
}

// Name is how the session for z is called in the status and in metrics: by its ensemble, with a number behind it where
// there are several.
func (p *Sessions) Name(z config.ZooKeeper) string {
	p.mu.Lock()
	defer p.mu.Unlock()
	if s := p.open[accessOf(z)]; s != nil {
		return s.name
	}
	return ensembleName(z)
}

// Status is the state of the session for z; false when there is none.
func (p *Sessions) Status(z config.ZooKeeper) (zookeeper.Status, bool) {
	p.mu.Lock()
	defer p.mu.Unlock()
	s := p.open[accessOf(z)]
	if s == nil {
		return zookeeper.Status{}, false
	}
	return s.session.Status(), true
}

// Release closes the sessions that are neither held nor for one of used. It blocks until they are closed.
func (p *Sessions) Release(used []config.ZooKeeper) {
	keep := map[access]bool{}
	for _, z := range used {
		keep[accessOf(z)] = true
	}
	p.remove(func(k access, s *pooled) bool { return !s.held && !keep[k] }, (*zookeeper.Session).Close)
}

// Close closes all sessions. It blocks until they are closed.
func (p *Sessions) Close() {
	p.remove(func(access, *pooled) bool { return true }, (*zookeeper.Session).Close)
}

// Leave ends the work with all sessions for a process that follows this one: those that are held stay at the servers,
// with their nodes, for their timeout; the others are closed. It blocks until that is done.
func (p *Sessions) Leave() {
	p.remove(func(_ access, s *pooled) bool { return s.held }, (*zookeeper.Session).Leave)
	p.Close()
}

// remove takes sessions out of the pool and ends them.
func (p *Sessions) remove(which func(access, *pooled) bool, end func(*zookeeper.Session)) {
	p.mu.Lock()
	var gone []*pooled
	for k, s := range p.open {
		if which(k, s) {
			gone = append(gone, s)
			delete(p.open, k)
		}
	}
	p.mu.Unlock()
	var closing sync.WaitGroup
	for _, s := range gone {
		closing.Go(func() { end(s.session) })
	}
	closing.Wait()
}

// Statuses are the sessions' states, sorted by name.
func (p *Sessions) Statuses() []discovery.SessionStatus {
	out := []discovery.SessionStatus{}
	p.mu.Lock()
	for _, s := range p.open {
		out = append(out, zookeeperStatus(s.name, s.session.Status()))
	}
	p.mu.Unlock()
	slices.SortFunc(out, func(x, y discovery.SessionStatus) int { return strings.Compare(x.Ensemble, y.Ensemble) })
	return out
}

// stats are the sessions' counters by name.
func (p *Sessions) stats() map[string]zookeeper.Stats {
	p.mu.Lock()
	defer p.mu.Unlock()
	out := make(map[string]zookeeper.Stats, len(p.open))
	for _, s := range p.open {
		out[s.name] = s.session.Stats()
	}
	return out
}

// sessionOptions are those of the session that z describes: the one place that knows both.
func sessionOptions(z config.ZooKeeper, file string, log logrus.FieldLogger) zookeeper.Options {
	o := zookeeper.Options{
		Hosts: z.Hosts, Chroot: z.Chroot, SessionTimeout: z.SessionTimeout, Classic: z.Classic, SessionFile: file, Log: log,
	}
	if a := z.Auth; a != nil {
		o.Logins = []zookeeper.Login{{Scheme: a.Scheme, Credentials: []byte(a.Credentials), File: a.CredentialsFile}}
	}
	if z.TLS != nil {
		o.TLS = tlsConfig(*z.TLS)
	}
	return o
}

// tlsConfig describes connections of a client. Its own certificate is read anew for each handshake, so that it can be
// replaced under a running process. The authorities are those of the file when the configuration was read: the
// standard library asks for nothing later, and checking the servers by hand instead would have to know the name that
// was dialled, which a handshake with an IP address does not tell.
func tlsConfig(t config.TLS) *tls.Config {
	c := &tls.Config{ServerName: t.ServerName, InsecureSkipVerify: t.NoVerify, MinVersion: tls.VersionTLS12}
	if t.CAFile != "" {
		c.RootCAs = x509.NewCertPool() // empty, it trusts nobody
		c.RootCAs.AppendCertsFromPEM(t.CA)
	}
	if t.CertFile != "" {
		c.GetClientCertificate = func(*tls.CertificateRequestInfo) (*tls.Certificate, error) {
			cert, err := tls.LoadX509KeyPair(t.CertFile, t.KeyFile)
			if err != nil {
				return nil, fmt.Errorf("read cert_file %s and key_file %s: %w", t.CertFile, t.KeyFile, err)
			}
			return &cert, nil
		}
	}
	return c
}

// file is where the id of a session is kept. It is told by the ensemble's hosts in any order. A folder that cannot be
// used is said, and the session does without.
func (k Keep) file(of access, number int, log logrus.FieldLogger) string {
	if k.Dir == "" {
		return ""
	}
	if err := writable(k.Dir); err != nil {
		log.WithFields(logrus.Fields{"path": k.Dir, "err": err}).
			Warn("state_dir cannot be used, so the next run cannot take this session up; give the folder to the user that runs this, or name another")
		return ""
	}
	sum := sha256.Sum256([]byte(strings.Join([]string{of.hosts, of.chroot, strconv.Itoa(number), k.Owner}, "\x00")))
	return filepath.Join(k.Dir, "zookeeper-"+hex.EncodeToString(sum[:6])+".session")
}

// writable makes a folder and a file in it.
func writable(dir string) error {
	if err := os.MkdirAll(dir, 0o755); err != nil {
		return err
	}
	f, err := os.CreateTemp(dir, ".writable-*")
	if err != nil {
		return err
	}
	return errors.Join(f.Close(), os.Remove(f.Name()))
}
