package zookeeper

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"path"
	"slices"
	"strings"

	"github.com/go-zookeeper/zk"

	"github.com/myelin-sd/myelin/discovery"
)

// maxData is what a node may hold. The server takes 1 MiB for a whole request (jute.maxbuffer); it answers a larger
// one by closing the connection, without a word, as often as it is sent.
const maxData = 1_000_000

// regKey names a registration.
type regKey struct{ path, prefix string }

// registration is what the session remembers of one that it published.
type registration struct {
	turn chan struct{} // holds one token: who has it may act and touch what is below

	node    string     // full path of our node; empty: none that we know of
	session int64      // that it was made in
	left    []leftover // what earlier sessions of ours may still have
	unknown bool       // a create was sent, by this process or the one before, and its outcome is not known
	before  bool       // published before by this session object
}

// leftover is a node of an earlier session of ours.
type leftover struct {
	path  string // full
	owner int64
}

// Publish implements registrar.Directory. Next to what is documented there:
//
// A node that the process before this one published, in a session that was taken up, is adopted, and when its data are
// the same nothing is written: nobody notices. What an earlier session of ours has left, should the server not have
// ended it yet, is deleted once the new node stands.
//
// The parent is made with the first node, persistent, empty and open to the world, as Nerve does. A watch stands on
// the published node, and tells subscribers.
//
// A node that is not sequential has a fixed name, and there may be one already. If it belongs to our session it is
// adopted. If it is of a session that has not ended yet, and announces the same endpoint, it is our own from before a
// restart, and is replaced in one transaction; but only until we have published ourselves: after that somebody else
// uses our name, and the error says who.
//
// When ctx ends first, the request that is under way is not called back. The next call for the same registration
// waits for it, so that two requests of ours never overtake each other.
func (s *Session) Publish(ctx context.Context, r discovery.Registration, node string) (string, error) {
	if err := checkPrefix(r); err != nil {
		return "", err
	}
	if len(r.Data) > maxData {
		return "", fmt.Errorf("publish %s: %d bytes of data are more than ZooKeeper takes (%d)", path.Join(r.Path, r.Prefix), len(r.Data), maxData)
	}
	published, err := exclusive(ctx, s, r, func(e *epoch, reg *registration) (string, error) {
		p := publication{s: s, e: e, reg: reg, r: r, dir: s.full(r.Path)}
		if node != "" && reg.node == "" {
			reg.node = s.full(node)
		}
		if err := s.ledger.record(ctx, s.ctx, r); err != nil {
			return "", err
		}
		full, err := p.publish(ctx)
		if err != nil {
			return "", err
		}
		if e.link.conn.SessionID() != e.session {
			return "", errors.New("the session expired meanwhile")
		}
		p.settled(full)
		return strings.TrimPrefix(full, s.o.Chroot), nil
	})
	if err != nil {
		return "", fmt.Errorf("publish %s: %w", path.Join(r.Path, r.Prefix), err)
	}
	return published, nil
}

// Withdraw implements registrar.Directory. A node of another session is not touched: it is not ours any more.
func (s *Session) Withdraw(ctx context.Context, r discovery.Registration, node string) error {
	if err := checkPrefix(r); err != nil {
		return err
	}
	_, err := exclusive(ctx, s, r, func(e *epoch, reg *registration) (struct{}, error) {
		p := publication{s: s, e: e, reg: reg, r: r, dir: s.full(r.Path)}
		if node != "" && reg.node == "" {
			reg.node = s.full(node)
		}
		return struct{}{}, p.withdraw(ctx)
	})
	if err != nil {
		return fmt.Errorf("withdraw %s: %w", path.Join(r.Path, r.Prefix), err)
	}
	return nil
}

// checkPrefix refuses names that would reach beyond the registration's directory.
func checkPrefix(r discovery.Registration) error {
	if r.Prefix == "" || strings.Contains(r.Prefix, "/") {
		return fmt.Errorf("registration in %s: %q cannot begin a node's name", r.Path, r.Prefix)
	}
	return nil
}

// Subscribe implements registrar.Directory. The channel is never closed.
func (s *Session) Subscribe() (<-chan struct{}, func()) {
	c := make(chan struct{}, 1)
	s.mu.Lock()
	defer s.mu.Unlock()
	s.subs[c] = struct{}{}
	return c, func() {
		s.mu.Lock()
		defer s.mu.Unlock()
		delete(s.subs, c)
	}
}

// exclusive runs f with the connection and the registration's state, one at a time for each registration. It returns
// when f has, or when ctx ends; f then keeps its turn until the library gives up its request.
func exclusive[T any](ctx context.Context, s *Session, r discovery.Registration, f func(*epoch, *registration) (T, error)) (T, error) {
	type result struct {
		value T
		err   error
	}
	var none T
	e, err := s.await(ctx)
	if err != nil {
		return none, err
	}
	reg := s.registration(regKey{r.Path, r.Prefix})
	select {
	case <-reg.turn:
	case <-ctx.Done():
		return none, fmt.Errorf("an earlier request is still under way: %w", ctx.Err())
	}
	done := make(chan result, 1)
	if err := s.goTracked(func() {
		defer func() { reg.turn <- struct{}{} }()
		v, err := f(e, reg)
		done <- result{v, err}
	}); err != nil {
		reg.turn <- struct{}{}
		return none, err
	}
	select {
	case res := <-done:
		return res.value, res.err
	case <-ctx.Done():
		return none, ctx.Err()
	}
}

func (s *Session) registration(k regKey) *registration {
	s.mu.Lock()
	defer s.mu.Unlock()
	reg := s.regs[k]
	if reg == nil {
		reg = &registration{turn: make(chan struct{}, 1), unknown: s.ledger.found()}
		reg.turn <- struct{}{}
		s.regs[k] = reg
	}
	return reg
}

// publication is one attempt, with all that its steps need.
type publication struct {
	s   *Session
	e   *epoch
	reg *registration
	r   discovery.Registration
	dir string // r.Path with the chroot
}

// publish returns the full path of the one node that stands for the registration.
func (p *publication) publish(ctx context.Context) (string, error) {
	if !p.r.Sequential {
		return p.fixed(ctx)
	}
	kept, err := p.known(ctx)
	if err != nil {
		return "", err
	}
	if p.reg.unknown {
		if kept, err = p.search(ctx, kept); err != nil {
			return "", err
		}
	}
	if kept == "" {
		if kept, err = p.create(ctx); err != nil {
			return "", err
		}
	}
	p.settled(kept) // whatever happens next, it is known
	return kept, p.clear(ctx)
}

// known returns the node that we know of, when it is still there and ours.
func (p *publication) known(ctx context.Context) (string, error) {
	node := p.reg.node
	if node == "" {
		return "", nil
	}
	p.guard(node)
	ok, err := p.adopt(ctx, node)
	if ok || err != nil {
		return node, err
	}
	p.unguard(node)
	p.suspect(node)
	p.reg.node = ""
	return "", nil
}

// search looks for what a lost create may have left. It returns the one node that is kept: kept, if there is one. Of
// others the surplus is deleted.
func (p *publication) search(ctx context.Context, kept string) (string, error) {
	found, err := p.own(ctx)
	if err != nil {
		return "", err
	}
	for _, full := range found {
		switch {
		case full == kept:
		case kept == "":
			p.guard(full)
			ok, err := p.adopt(ctx, full)
			if err != nil {
				return "", err
			}
			if ok {
				kept = full
			} else {
				p.unguard(full)
			}
		default:
			if err := p.remove(ctx, full, p.owns); err != nil {
				return "", err
			}
		}
	}
	p.reg.unknown = false
	return kept, nil
}

// suspect notes that a node may be left of the session that ours was last made in, if that is not the present one.
func (p *publication) suspect(full string) {
	if p.reg.session != 0 && p.reg.session != p.e.session {
		p.note(leftover{full, p.reg.session})
	}
}

func (p *publication) note(l leftover) {
	if !slices.Contains(p.reg.left, l) {
		p.reg.left = append(p.reg.left, l)
	}
}

// clear deletes what earlier sessions of ours have left. A server that did not let us take a session up has not always
// ended it, and until it does the service is listed twice. The endpoint must be ours as well: the session file may be a
// copy from another machine.
func (p *publication) clear(ctx context.Context) error {
	for len(p.reg.left) > 0 {
		l := p.reg.left[0]
		if err := p.remove(ctx, l.path, func(now reading) bool {
			return now.stat.EphemeralOwner == l.owner && sameEndpoint(now.data, p.r.Data)
		}); err != nil {
			return err
		}
		p.reg.left = p.reg.left[1:]
	}
	return nil
}

// settled remembers what was published.
func (p *publication) settled(full string) {
	p.reg.node, p.reg.session, p.reg.before = full, p.e.session, true
}

// adopt reports whether the node stands and is ours. Its data is set when it differs, and a watch stands on it.
func (p *publication) adopt(ctx context.Context, full string) (bool, error) {
	for {
		if err := ctx.Err(); err != nil {
			return false, err
		}
		now, err := p.s.get(ctx, p.e, full, true)
		if gone(err) {
			return false, nil
		}
		if err != nil {
			return false, err
		}
		if !p.ours(now.stat) {
			return false, nil
		}
		if bytes.Equal(now.data, p.r.Data) {
			return true, nil
		}
		_, err = p.e.link.conn.Set(full, p.r.Data, now.stat.Version)
		switch {
		case err == nil, errors.Is(err, zk.ErrBadVersion): // look again: the watch has fired with our own change
		case gone(err):
			return false, nil
		default:
			return false, fmt.Errorf("set %s: %w", full, err)
		}
	}
}

// ours reports whether a node with our name belongs to this session, or to nobody when it is to be persistent.
func (p *publication) ours(stat zk.Stat) bool {
	if !p.r.Ephemeral {
		return stat.EphemeralOwner == 0
	}
	return stat.EphemeralOwner == p.e.session
}

func (p *publication) owns(now reading) bool { return p.ours(now.stat) }

// sync has the server catch up with its leader on a path. The one that we are connected to now may not have heard of
// what another one has done for us.
func (p *publication) sync(path string) error {
	if _, err := p.e.link.conn.Sync(path); err != nil && !gone(err) {
		return fmt.Errorf("sync %s: %w", path, err)
	}
	return nil
}

// sequenceDigits is how many digits a server puts behind a sequential node's name: "%010d" (PrepRequestProcessor). With
// more or fewer it is the name of another registration, whose prefix begins with ours.
const sequenceDigits = 10

// own returns the full paths of the nodes that carry our name and belong to us, oldest first. Those of the process
// before, whose session was not taken up, are noted as left.
func (p *publication) own(ctx context.Context) ([]string, error) {
	if err := p.sync(p.dir); err != nil {
		return nil, err
	}
	ls, err := p.s.children(ctx, p.e, p.dir, false)
	if gone(err) {
		return nil, nil
	}
	if err != nil {
		return nil, err
	}
	slices.Sort(ls.names)
	var found []string
	for _, name := range ls.names {
		number, ok := strings.CutPrefix(name, p.r.Prefix)
		if !ok || len(number) != sequenceDigits || strings.Trim(number, "0123456789") != "" {
			continue
		}
		if err := ctx.Err(); err != nil {
			return nil, err
		}
		full := path.Join(p.dir, name)
		now, err := p.s.get(ctx, p.e, full, false)
		switch {
		case gone(err):
		case err != nil:
			return nil, err
		case p.ours(now.stat):
			found = append(found, full)
		case p.former(now.stat.EphemeralOwner):
			p.note(leftover{full, now.stat.EphemeralOwner})
		}
	}
	return found, nil
}

// former reports whether a session is that of the process before, which could not be taken up.
func (p *publication) former(session int64) bool {
	return session != 0 && session != p.e.session && session == p.s.ledger.former()
}

// create makes the node, and the parents when they are missing.
func (p *publication) create(ctx context.Context) (string, error) {
	flags := int32(0)
	if p.r.Ephemeral {
		flags |= zk.FlagEphemeral
	}
	if p.r.Sequential {
		flags |= zk.FlagSequence
	}
	full := strings.TrimSuffix(p.dir, "/") + "/" + p.r.Prefix
	for {
		if err := ctx.Err(); err != nil {
			return "", err
		}
		p.reg.unknown = true // until the server has answered
		made, err := p.e.link.conn.Create(full, p.r.Data, flags, zk.WorldACL(zk.PermAll))
		p.reg.unknown = err != nil && !answered(err)
		switch {
		case gone(err):
			if err := p.parents(ctx); err != nil {
				return "", err
			}
			continue
		case err != nil:
			return "", fmt.Errorf("create %s: %w", full, err)
		}
		p.guard(made)
		p.settled(made) // whatever happens next, it is known
		// One more request sets the watch; who deleted the node in between is seen by it.
		ok, err := p.adopt(ctx, made)
		if err != nil {
			return "", err
		}
		if !ok {
			return "", fmt.Errorf("create %s: deleted by somebody else at once", made)
		}
		return made, nil
	}
}

// answered reports whether err is the server's word on a request. With all others its outcome is unknown.
func answered(err error) bool {
	for _, e := range []error{zk.ErrNoNode, zk.ErrNodeExists, zk.ErrNoAuth, zk.ErrInvalidACL, zk.ErrNoChildrenForEphemerals,
		zk.ErrBadVersion, zk.ErrBadArguments, zk.ErrInvalidPath, zk.ErrAuthFailed} {
		if errors.Is(err, e) {
			return true
		}
	}
	return false
}

// parents makes the directory and all above it: persistent, empty, open to the world.
func (p *publication) parents(ctx context.Context) error {
	at := ""
	for name := range strings.SplitSeq(strings.Trim(p.dir, "/"), "/") {
		if err := ctx.Err(); err != nil {
			return err
		}
		at += "/" + name
		_, err := p.e.link.conn.Create(at, nil, 0, zk.WorldACL(zk.PermAll))
		switch {
		case err == nil, errors.Is(err, zk.ErrNodeExists):
		case errors.Is(err, zk.ErrNoAuth):
			// Most often the upper part exists and is closed to us; what matters is whether the last one stands.
		default:
			return fmt.Errorf("create %s: %w", at, err)
		}
	}
	exists, _, err := p.e.link.conn.Exists(p.dir)
	if err != nil {
		return fmt.Errorf("look for %s: %w", p.dir, err)
	}
	if !exists {
		return fmt.Errorf("create %s: %w", p.dir, zk.ErrNoAuth)
	}
	return nil
}

// fixed publishes a node whose name has no number.
func (p *publication) fixed(ctx context.Context) (string, error) {
	full := path.Join(p.dir, p.r.Prefix)
	p.guard(full)
	for {
		if err := ctx.Err(); err != nil {
			return "", err
		}
		now, err := p.s.get(ctx, p.e, full, true)
		switch {
		case gone(err):
			made, err := p.create(ctx)
			if !errors.Is(err, zk.ErrNodeExists) {
				return made, err
			}
			if err := p.sync(full); err != nil { // the leader knows of one
				return "", err
			}
		case err != nil:
			return "", err
		case p.ours(now.stat):
			ok, err := p.adopt(ctx, full)
			if err != nil {
				return "", err
			}
			if ok {
				return full, nil
			}
		case !p.predecessor(now):
			return "", fmt.Errorf("%s is taken by %s: another process uses this name; give each its own instance id", full, owner(now))
		default:
			if err := p.replace(full, now.stat); err != nil {
				return "", err
			}
		}
	}
}

// predecessor reports whether a node under our fixed name was left behind by ourselves: from the session before this
// one, or by the process before this one, as far as the endpoint in it tells.
func (p *publication) predecessor(now reading) bool {
	if p.reg.session != 0 && now.stat.EphemeralOwner == p.reg.session || p.former(now.stat.EphemeralOwner) {
		return true
	}
	return !p.reg.before && sameEndpoint(now.data, p.r.Data)
}

func sameEndpoint(a, b []byte) bool {
	if bytes.Equal(a, b) {
		return true
	}
	x, errX := discovery.DecodeNerve("", a)
	y, errY := discovery.DecodeNerve("", b)
	return errX == nil && errY == nil && x.Endpoint == y.Endpoint
}

func owner(now reading) string {
	who := "a persistent node"
	if now.stat.EphemeralOwner != 0 {
		who = "session " + hex(now.stat.EphemeralOwner)
	}
	if in, err := discovery.DecodeNerve("", now.data); err == nil {
		who += " for " + in.Endpoint.String()
	}
	return who
}

// replace puts our node in the place of another in one transaction, so that it is never missing. Somebody being
// quicker is no error: the caller looks again.
func (p *publication) replace(full string, stat zk.Stat) error {
	flags := int32(0)
	if p.r.Ephemeral {
		flags = zk.FlagEphemeral
	}
	p.reg.unknown = true
	_, err := p.e.link.conn.Multi(
		&zk.DeleteRequest{Path: full, Version: stat.Version},
		&zk.CreateRequest{Path: full, Data: p.r.Data, Acl: zk.WorldACL(zk.PermAll), Flags: flags},
	)
	p.reg.unknown = err != nil && !answered(err)
	if err != nil && !gone(err) && !errors.Is(err, zk.ErrBadVersion) && !errors.Is(err, zk.ErrNodeExists) {
		return fmt.Errorf("replace %s: %w", full, err)
	}
	return nil
}

// withdraw deletes all nodes of the registration.
func (p *publication) withdraw(ctx context.Context) error {
	var found []string
	if p.reg.node != "" {
		found = append(found, p.reg.node)
		p.suspect(p.reg.node)
	}
	if p.reg.unknown {
		more, err := p.remains(ctx)
		if err != nil {
			return err
		}
		found = append(found, more...)
	}
	for _, full := range found {
		if err := p.remove(ctx, full, p.owns); err != nil {
			return err
		}
	}
	if err := p.clear(ctx); err != nil {
		return err
	}
	p.reg.node, p.reg.unknown, p.reg.before = "", false, false
	p.s.ledger.forget(regKey{p.r.Path, p.r.Prefix})
	return nil
}

// remains returns where nodes of ours may stand when nothing is known.
func (p *publication) remains(ctx context.Context) ([]string, error) {
	if p.r.Sequential {
		return p.own(ctx)
	}
	full := path.Join(p.dir, p.r.Prefix)
	return []string{full}, p.sync(full)
}

// remove deletes a node if it is the one that is meant. Nobody is told of that.
func (p *publication) remove(ctx context.Context, full string, meant func(reading) bool) error {
	p.unguard(full)
	for {
		if err := ctx.Err(); err != nil {
			return err
		}
		now, err := p.s.get(ctx, p.e, full, false)
		if gone(err) {
			return nil
		}
		if err != nil {
			return err
		}
		if !meant(now) {
			return nil
		}
		err = p.e.link.conn.Delete(full, now.stat.Version)
		switch {
		case err == nil, gone(err):
			return nil
		case !errors.Is(err, zk.ErrBadVersion):
			return fmt.Errorf("delete %s: %w", full, err)
		}
	}
}

// guard lets subscribers know of what happens to a node.
func (p *publication) guard(full string) {
	p.s.mu.Lock()
	defer p.s.mu.Unlock()
	p.s.guards[full] = struct{}{}
}

func (p *publication) unguard(full string) {
	p.s.mu.Lock()
	defer p.s.mu.Unlock()
	delete(p.s.guards, full)
}
