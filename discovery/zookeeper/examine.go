package zookeeper

import (
	"context"
	"crypto/sha1"
	"crypto/tls"
	"crypto/x509"
	"encoding/base64"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"net"
	"path"
	"strings"
	"time"

	"github.com/go-zookeeper/zk"

	"github.com/myelin-sd/myelin/discovery"
)

// Answer is what one server says to a four-letter word.
type Answer struct {
	Text         string
	Remote       net.Addr            // the server's address
	Certificates []*x509.Certificate // that the server showed, its own first; none without TLS
}

// ErrWordRefused is wrapped when a server does not answer a word: 4lw.commands.whitelist leaves it out.
var ErrWordRefused = errors.New("the server does not answer this word (4lw.commands.whitelist)")

// wordMost bounds an answer: mntr of a large server has some 200 lines.
const wordMost = 1 << 20

// AskWord sends a four-letter word ("srvr", "mntr", "conf") to the server at address ("host:port") alone, with the
// dialer and the TLS of o, over a connection of its own. It opens no session. It blocks until the answer has ended, or
// ctx has; an Answer that comes with an error has what was learned until then.
func AskWord(ctx context.Context, o Options, address, word string) (Answer, error) {
	var a Answer
	asker := &Session{o: o}
	if asker.o.Dial == nil {
		asker.o.Dial = (&net.Dialer{}).DialContext
	}
	if asker.o.HandshakeTimeout <= 0 {
		asker.o.HandshakeTimeout = defaultHandshakeTimeout
	}
	conn, err := asker.open(ctx, address)
	if err != nil {
		return a, fmt.Errorf("connect to %s: %w", address, err)
	}
	defer conn.Close()
	defer context.AfterFunc(ctx, func() { _ = conn.SetDeadline(time.Unix(1, 0)) })()
	a.Remote = conn.RemoteAddr()
	if secure, ok := conn.(*tls.Conn); ok {
		a.Certificates = secure.ConnectionState().PeerCertificates
	}
	if _, err := io.WriteString(conn, word); err != nil {
		return a, fmt.Errorf("ask %s for %s: %w", address, word, orContext(ctx, err))
	}
	text, err := io.ReadAll(io.LimitReader(conn, wordMost))
	a.Text = string(text)
	switch {
	case strings.Contains(a.Text, "is not in the whitelist"), err == nil && a.Text == "":
		return a, fmt.Errorf("ask %s for %s: %w", address, word, ErrWordRefused)
	case err != nil && a.Text == "":
		return a, fmt.Errorf("ask %s for %s: %w", address, word, orContext(ctx, err))
	}
	return a, nil
}

func orContext(ctx context.Context, err error) error {
	if ctx.Err() != nil {
		return ctx.Err()
	}
	return err
}

// Access is what the ACL of a node lets people do.
type Access struct {
	Text string // as zkCli.sh writes it: "world:anyone:cdrwa"; ids as the server has them, digests are left out

	AnyoneCreates, AnyoneDeletes bool // children of the node
	AnyoneWrites                 bool // its data, which is what nodes that inherit the ACL let anyone do with theirs
	AnyoneAdmins                 bool // its ACL
	MineCreates                  bool // this session's logins, or anyone
}

// Access reads who may do what under a node. It waits for a connection until ctx ends. The error wraps ErrNoPath when
// the path does not exist.
func (s *Session) Access(ctx context.Context, path string) (Access, error) {
	list, err := through(ctx, s, func(e *epoch) ([]zk.ACL, error) {
		list, _, err := e.link.conn.GetACL(s.full(path))
		return list, err
	})
	if err != nil {
		return Access{}, fmt.Errorf("read the ACL of %s: %w", path, noPath(err))
	}
	logins, err := readLogins(s.o.Logins)
	if err != nil {
		return Access{}, fmt.Errorf("read the ACL of %s: %w", path, err)
	}
	return accessOf(list, logins), nil
}

// accessOf reads an ACL as one who is logged in so.
func accessOf(list []zk.ACL, logins []Login) Access {
	var a Access
	var words []string
	for _, entry := range list {
		id := entry.ID
		if name, _, ok := strings.Cut(id, ":"); ok && entry.Scheme == "digest" {
			id = name
		}
		words = append(words, entry.Scheme+":"+id+":"+permissions(entry.Perms))
		anyone := entry.Scheme == "world"
		a.AnyoneCreates = a.AnyoneCreates || anyone && entry.Perms&zk.PermCreate != 0
		a.AnyoneDeletes = a.AnyoneDeletes || anyone && entry.Perms&zk.PermDelete != 0
		a.AnyoneWrites = a.AnyoneWrites || anyone && entry.Perms&zk.PermWrite != 0
		a.AnyoneAdmins = a.AnyoneAdmins || anyone && entry.Perms&zk.PermAdmin != 0
		a.MineCreates = a.MineCreates || (anyone || grants(entry, logins)) && entry.Perms&zk.PermCreate != 0
	}
	a.Text = strings.Join(words, ",")
	return a
}

// grants tells whether an entry is for one of the logins. Entries by address are taken for granted where they stand:
// only the server knows from where it sees us.
func grants(entry zk.ACL, logins []Login) bool {
	if entry.Scheme != "digest" {
		return true
	}
	for _, l := range logins {
		name, _, _ := strings.Cut(string(l.Credentials), ":")
		sum := sha1.Sum(l.Credentials) // the scheme's own
		if l.Scheme == "digest" && entry.ID == name+":"+base64.StdEncoding.EncodeToString(sum[:]) {
			return true
		}
	}
	return false
}

func permissions(p int32) string {
	out := ""
	for _, bit := range []struct {
		perm int32
		word string
	}{{zk.PermCreate, "c"}, {zk.PermDelete, "d"}, {zk.PermRead, "r"}, {zk.PermWrite, "w"}, {zk.PermAdmin, "a"}} {
		if p&bit.perm != 0 {
			out += bit.word
		}
	}
	return out
}

// configNode is where servers from 3.5 on keep who belongs to the ensemble. It is outside of any chroot.
const configNode = "/zookeeper/config"

// Voters are the servers that vote, as "host:port" of the quorum's port, by the ensemble's own configuration. It is
// empty for a server alone. It waits for a connection until ctx ends; servers before 3.5 have no such list, and the
// error wraps ErrNoPath then.
func (s *Session) Voters(ctx context.Context) ([]string, error) {
	r, err := again(ctx, s, func(e *epoch) (reading, error) { return s.get(ctx, e, configNode, false) })
	if err != nil {
		return nil, fmt.Errorf("read the list of servers: %w", noPath(err))
	}
	return votersOf(string(r.data)), nil
}

// votersOf reads lines "server.1=zk1:2888:3888:participant;0.0.0.0:2181".
func votersOf(text string) []string {
	var out []string
	for line := range strings.Lines(text) {
		key, value, ok := strings.Cut(strings.TrimSpace(line), "=")
		if !ok || !strings.HasPrefix(key, "server.") || strings.Contains(value, ":observer") {
			continue
		}
		address, _, _ := strings.Cut(value, ";")
		address, _, _ = strings.Cut(address, "|")
		if parts := strings.Split(address, ":"); len(parts) > 2 {
			address = strings.Join(parts[:len(parts)-1], ":") // without the role
			address = address[:strings.LastIndex(address, ":")]
		}
		out = append(out, address)
	}
	return out
}

// Listing is a directory as a listing of it would come over the wire.
type Listing struct {
	Children int
	Bytes    int // of the reply
}

// Listing measures the listing of a path. It waits for a connection until ctx ends. The error wraps ErrNoPath when the
// path does not exist.
func (s *Session) Listing(ctx context.Context, path string) (Listing, error) {
	names, err := s.Children(ctx, path)
	if err != nil {
		return Listing{}, err
	}
	l := Listing{Children: len(names), Bytes: 92}
	for _, n := range names {
		l.Bytes += 4 + len(n)
	}
	return l, nil
}

// Written tells of a node that WriteTest made.
type Written struct {
	Created       time.Time // by the clock of the ensemble's leader
	Before, After time.Time // by ours, around the request that made it
	Took          time.Duration
}

// WriteTest makes an ephemeral node in dir and deletes it. It refuses a directory in which somebody could take the node
// for an instance: one that has an ephemeral node, or one that decodes as a registration. It makes no directory. It
// waits for a connection until ctx ends; the node is gone when it returns, or goes with the session.
func (s *Session) WriteTest(ctx context.Context, dir string) (Written, error) {
	w, err := s.writeTest(ctx, dir)
	if err != nil {
		return w, fmt.Errorf("write to %s: %w", dir, noPath(err))
	}
	return w, nil
}

// errService is a directory in which a test could be taken for an instance.
var errService = errors.New("instances are registered there, and the node could be taken for one; name another path")

func (s *Session) writeTest(ctx context.Context, dir string) (Written, error) {
	nodes, err := again(ctx, s, func(e *epoch) ([]Node, error) {
		names, err := s.names(ctx, e, s.full(dir))
		if err != nil {
			return nil, err
		}
		return s.readAll(ctx, e, s.full(dir), names[:min(len(names), servicesSample)])
	})
	if err != nil {
		return Written{}, err
	}
	for _, n := range nodes {
		if strings.HasPrefix(n.Name, testPrefix) {
			continue // of another one who tests
		}
		if _, err := discovery.DecodeAny(n.Name, n.Data); n.Owner != 0 || err == nil {
			return Written{}, errService
		}
	}
	node := path.Join(s.full(dir), fmt.Sprintf("%s%016x", testPrefix, rand.Uint64()))
	return through(ctx, s, func(e *epoch) (Written, error) {
		conn := e.link.conn
		w := Written{Before: time.Now()}
		if _, err := conn.Create(node, []byte("myelin doctor --write-test; it goes by itself"), zk.FlagEphemeral, zk.WorldACL(zk.PermAll)); err != nil {
			return w, err
		}
		w.After = time.Now()
		_, stat, err := conn.Exists(node)
		if err == nil {
			w.Created = time.UnixMilli(stat.Ctime)
		}
		err = errors.Join(err, conn.Delete(node, -1))
		w.Took = time.Since(w.Before)
		return w, err
	})
}

// testPrefix begins the names of nodes that WriteTest makes.
const testPrefix = "myelin-doctor-"

// through runs f, which makes calls of the library, with a connection. It returns when f has, or when ctx ends; Close
// waits for an f that goes on.
func through[T any](ctx context.Context, s *Session, f func(*epoch) (T, error)) (T, error) {
	type result struct {
		value T
		err   error
	}
	var none T
	e, err := s.await(ctx)
	if err != nil {
		return none, err
	}
	done := make(chan result, 1)
	if err := s.goTracked(func() {
		v, err := f(e)
		done <- result{v, err}
	}); err != nil {
		return none, err
	}
	select {
	case r := <-done:
		return r.value, r.err
	case <-ctx.Done():
		return none, ctx.Err()
	}
}
