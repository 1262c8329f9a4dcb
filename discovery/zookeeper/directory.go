package zookeeper

import (
	"bytes"
	"cmp"
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"path"
	"slices"
	"strings"
	"time"

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
	data    []byte     // that it was left with; nil: not known
	sent    []byte     // by the last write, whose outcome may not be known
	written time.Time  // when the data were written, or taken for written; zero: never
	left    []leftover // what earlier sessions of ours may still have
	unknown bool       // a create was sent, by this process or the one before, and its outcome is not known
	before  bool       // published before by this session object
	listed  bool       // the process before has listed it in the session file
	access  string     // the node whose ACL is known to be as wanted, with the ACL wanted

	found  []finding // not told yet; guarded by Session.mu
	absent bool      // withdrawn by this session object, and not published since; guarded by Session.mu
}

// finding is a discovery.Finding of this package's paths.
type finding = discovery.Finding

// foundMost bounds what is kept of an outage in which ever more is found.
const foundMost = 32

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
func (s *Session) Publish(ctx context.Context, r discovery.Registration, node string) (discovery.Published, error) {
	all := r.All()
	for _, r := range all {
		if err := publishable(r); err != nil {
			return discovery.Published{}, err
		}
	}
	var out discovery.Published
	for i, r := range all {
		one, err := s.publishOne(ctx, r, node)
		if err != nil {
			return discovery.Published{}, err
		}
		if node = ""; i == 0 {
			out.Node, out.New = one.Node, one.New
		}
		if out.Within == 0 || one.Within > 0 && one.Within < out.Within {
			out.Within = one.Within
		}
	}
	out.Found = s.takeFound(all)
	out.New = out.New && len(out.Found) == 0
	return out, nil
}

// publishOne publishes one node. What it found stays with the registration.
func (s *Session) publishOne(ctx context.Context, r discovery.Registration, node string) (discovery.Published, error) {
	published, err := exclusive(ctx, s, r, func(e *epoch, reg *registration) (discovery.Published, error) {
		p := publication{s: s, e: e, reg: reg, r: r, dir: s.full(r.Path)}
		if node != "" && reg.node == "" {
			reg.node = s.full(node)
		}
		p.absent(false)
		if err := s.ledger.record(ctx, s.ctx, r); err != nil {
			return discovery.Published{}, err
		}
		full, err := p.publish(ctx)
		if err != nil {
			return discovery.Published{}, err
		}
		if e.link.conn.SessionID() != e.session {
			return discovery.Published{}, errors.New("the session expired meanwhile")
		}
		p.settled(full)
		return discovery.Published{Node: strings.TrimPrefix(full, s.o.Chroot), New: p.made, Within: p.within()}, nil
	})
	if err != nil {
		return published, fmt.Errorf("publish %s: %w", path.Join(r.Path, r.Prefix), err)
	}
	return published, nil
}

// takeFound returns what was found of registrations since the last time.
func (s *Session) takeFound(all []discovery.Registration) []discovery.Finding {
	s.mu.Lock()
	defer s.mu.Unlock()
	var found []discovery.Finding
	for _, r := range all {
		if reg := s.regs[regKey{r.Path, r.Prefix}]; reg != nil {
			found = append(found, reg.found...)
			reg.found = nil
		}
	}
	return found
}

// Withdraw implements registrar.Directory. A node of another session is not touched: it is not ours any more.
func (s *Session) Withdraw(ctx context.Context, r discovery.Registration, node string) error {
	all := r.All()
	var errs []error
	for _, r := range all {
		errs = append(errs, s.withdrawOne(ctx, r, node))
		node = ""
	}
	s.takeFound(all) // nothing is mended
	return errors.Join(errs...)
}

func (s *Session) withdrawOne(ctx context.Context, r discovery.Registration, node string) error {
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

// publishable refuses what no server takes.
func publishable(r discovery.Registration) error {
	if err := checkPrefix(r); err != nil {
		return err
	}
	if len(r.Data) > maxData {
		return fmt.Errorf("publish %s: %d bytes of data are more than ZooKeeper takes (%d)", path.Join(r.Path, r.Prefix), len(r.Data), maxData)
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
	reg := s.registration(r)
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

// registration returns what is remembered of r. At first whatever a process before has made may stand: in a session
// that was taken up, or for ever when the node is persistent.
func (s *Session) registration(r discovery.Registration) *registration {
	k := regKey{r.Path, r.Prefix}
	_, listed := s.ledger.standing(k)
	s.mu.Lock()
	defer s.mu.Unlock()
	reg := s.regs[k]
	if reg == nil {
		reg = &registration{turn: make(chan struct{}, 1), unknown: s.ledger.found() || !r.Ephemeral, listed: listed}
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

	made bool // the node is one that this attempt has made
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
		kept, err = p.search(ctx, kept)
	} else if kept != "" {
		err = p.single(ctx, kept)
	}
	if err != nil {
		return "", err
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
	if p.reg.node != "" { // it was not made by this process
		p.suspect(node)
		p.reg.node = ""
	}
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
			if err := p.removeTwin(ctx, full, func(now reading) bool { return p.ours(full, now) }); err != nil {
				return "", err
			}
		}
	}
	p.reg.unknown = false
	return kept, nil
}

// single deletes other nodes of our session that carry our name. There should be none; looking for them costs one small
// request, whatever the size of the service.
func (p *publication) single(ctx context.Context, kept string) error {
	if !p.r.Ephemeral || !p.s.modern() {
		return nil // only a listing would tell, and that costs too much to be made each time
	}
	found, err := p.ephemerals(ctx)
	if errors.Is(err, errUnimplemented) {
		return nil
	}
	if err != nil {
		return err
	}
	for _, full := range found {
		if full == kept {
			continue
		}
		if err := p.removeTwin(ctx, full, func(now reading) bool { return p.ours(full, now) }); err != nil {
			return err
		}
	}
	return nil
}

// removeTwin deletes a node that stands beside ours.
func (p *publication) removeTwin(ctx context.Context, full string, meant func(reading) bool) error {
	removed, err := p.remove(ctx, full, meant)
	if removed != nil {
		p.find(discovery.FoundTwin, full, owner(*removed))
	}
	return err
}

// find notes something that was not as it had been left.
func (p *publication) find(reason, full, detail string) {
	f := finding{Reason: reason, Node: strings.TrimPrefix(full, p.s.o.Chroot), Detail: detail}
	p.s.mu.Lock()
	defer p.s.mu.Unlock()
	if !slices.Contains(p.reg.found, f) && len(p.reg.found) < foundMost {
		p.reg.found = append(p.reg.found, f)
	}
}

// lost notes that the node which we had is not ours any more. now is what stands there, nil when nothing does.
func (p *publication) lost(full string, now *reading) {
	if !p.reg.before || full != p.reg.node {
		return
	}
	expired := p.r.Ephemeral && p.reg.session != p.e.session
	switch {
	case now != nil && !(expired && now.stat.EphemeralOwner == p.reg.session):
		p.find(discovery.FoundForeign, full, owner(*now))
	case expired:
		p.find(discovery.FoundExpired, full, "session "+hex(p.reg.session))
	default:
		p.find(discovery.FoundMissing, full, "")
	}
	p.suspect(full)
	p.reg.node, p.reg.data, p.reg.sent = "", nil, nil
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
		if err := p.removeTwin(ctx, l.path, func(now reading) bool {
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

// adoptMost bounds how often a node is looked at that somebody else changes at the same time.
const adoptMost = 5

// adopt reports whether the node stands and is ours. Its data is set when it differs, or is due to be written again, and
// a watch stands on it. It sets it once: when somebody else has set other data by then, that is an error, and the next
// attempt comes later.
func (p *publication) adopt(ctx context.Context, full string) (bool, error) {
	set := false
	for range adoptMost {
		if err := ctx.Err(); err != nil {
			return false, err
		}
		now, err := p.s.get(ctx, p.e, full, true)
		if gone(err) {
			p.lost(full, nil)
			return false, nil
		}
		if err != nil {
			return false, err
		}
		if !p.ours(full, now) {
			p.lost(full, &now)
			return false, nil
		}
		data := p.dated(now.data)
		p.changed(full, now, data)
		same := bytes.Equal(now.data, data)
		switch {
		case same && (set || p.due(time.Now()) >= 0):
			p.wrote(data, false)
			return true, p.secure(full)
		case set:
			return false, overwritten(full)
		}
		p.reg.sent = data
		_, err = p.e.link.conn.Set(full, data, now.stat.Version)
		switch {
		case err == nil: // look again: the watch has fired with our own change
			p.wrote(data, true)
			set = true
		case errors.Is(err, zk.ErrBadVersion):
		case gone(err):
			p.lost(full, nil)
			return false, nil
		default:
			return false, p.explain(fmt.Errorf("set %s: %w", full, err))
		}
	}
	return false, overwritten(full)
}

func overwritten(full string) error {
	return fmt.Errorf("set %s: somebody else changes it all the time", full)
}

// dated returns the data to write, where there is data already, or nil.
func (p *publication) dated(there []byte) []byte {
	if !p.r.Dated {
		return p.r.Data
	}
	return discovery.DateCurator(p.r.Data, there, time.Now())
}

// changed notes data that were changed by somebody else: they are neither what we left nor what we last sent, nor what
// we want.
func (p *publication) changed(full string, now reading, want []byte) {
	known := p.reg.before && full == p.reg.node && p.reg.data != nil
	if known && !bytes.Equal(now.data, want) && !bytes.Equal(now.data, p.reg.data) && !bytes.Equal(now.data, p.reg.sent) {
		p.find(discovery.FoundData, full, fmt.Sprintf("%d bytes, set %d times since the node was made", len(now.data), now.stat.Version))
	}
}

// wrote remembers the data that the node has. Those that are written again and again are written for the first time at
// some time within their period, so that a fleet that starts together does not write together for ever.
func (p *publication) wrote(data []byte, written bool) {
	p.reg.data = data
	switch now := time.Now(); {
	case p.reg.written.IsZero():
		p.reg.written = now.Add(-time.Duration(rand.Float64() * float64(p.r.TTL)))
	case written:
		p.reg.written = now
	}
}

// due is how long the data may stay as they are; 0: for ever. A negative time has passed.
func (p *publication) due(now time.Time) time.Duration {
	if p.r.TTL <= 0 || p.reg.written.IsZero() {
		return 0
	}
	if left := p.reg.written.Add(p.r.TTL).Sub(now); left > 0 {
		return left
	}
	return -1
}

// within is due as callers are told: always some time when there is a TTL.
func (p *publication) within() time.Duration {
	if due := p.due(time.Now()); due >= 0 {
		return due
	}
	return time.Nanosecond
}

// ours reports whether a node with our name belongs to us. An ephemeral one does when our session owns it. A persistent
// one has no owner: it is the one that we made, one that the process before has listed, or one for the same instance.
func (p *publication) ours(full string, now reading) bool {
	if p.r.Ephemeral {
		return now.stat.EphemeralOwner == p.e.session
	}
	return now.stat.EphemeralOwner == 0 && (full == p.reg.node || p.reg.listed || sameInstance(now.data, p.r.Data))
}

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
	if former := p.s.ledger.former(); p.r.Ephemeral && p.s.modern() && (former == 0 || former == p.e.session) {
		if found, err := p.ephemerals(ctx); !errors.Is(err, errUnimplemented) {
			return found, err
		}
	}
	ls, err := p.s.children(ctx, p.e, p.dir, false)
	if gone(err) {
		return nil, nil
	}
	if err != nil {
		return nil, err
	}
	names := slices.DeleteFunc(ls.names, func(name string) bool { return !p.named(name) })
	var found []string
	var failed error
	err = p.s.readNodes(ctx, p.e, p.dir, names, false, func(name string, now reading, err error) {
		full := path.Join(p.dir, name)
		switch {
		case gone(err):
		case err != nil:
			failed = cmp.Or(failed, wrap("get", full, err))
		case p.ours(full, now):
			found = append(found, full)
		case p.former(now.stat.EphemeralOwner):
			p.note(leftover{full, now.stat.EphemeralOwner})
		}
	})
	slices.Sort(found)
	return found, cmp.Or(err, failed)
}

// named reports whether a child's name is ours with a sequence number.
func (p *publication) named(name string) bool {
	number, ok := strings.CutPrefix(name, p.r.Prefix)
	return ok && len(number) == sequenceDigits && strings.Trim(number, "0123456789") == ""
}

// ephemerals returns the full paths of our session's nodes that carry our name, oldest first. The server keeps a list
// of each session's nodes, so that this costs the same in a service of ten and of ten thousand. It fails with
// errUnimplemented on servers before 3.6.
func (p *publication) ephemerals(ctx context.Context) ([]string, error) {
	body, err := p.s.ask(ctx, p.e, ephemeralsRequest(path.Join(p.dir, p.r.Prefix)), nodeMost)
	if err != nil {
		return nil, wrap("list own nodes in", p.dir, err)
	}
	list := parser{b: body}
	found := list.strings()
	if err := list.end(); err != nil {
		return nil, wrap("list own nodes in", p.dir, err)
	}
	found = slices.DeleteFunc(found, func(full string) bool { return path.Dir(full) != p.dir || !p.named(path.Base(full)) })
	slices.Sort(found)
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
		data := p.dated(nil)
		made, err := p.e.link.conn.Create(full, data, flags, p.acl())
		p.reg.unknown = err != nil && !answered(err)
		switch {
		case gone(err):
			if err := p.parents(ctx); err != nil {
				return "", err
			}
			continue
		case err != nil:
			return "", p.explain(fmt.Errorf("create %s: %w", full, err))
		}
		p.guard(made)
		p.settled(made) // whatever happens next, it is known
		p.reg.written = time.Time{}
		p.wrote(data, true)
		p.reg.access = p.accessOf(made)
		// One more request sets the watch; who deleted the node in between is seen by it.
		ok, err := p.adopt(ctx, made)
		if err != nil {
			return "", err
		}
		p.made = true
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

// parents makes the directory and all above it: persistent, empty, open to the world or as closed as the node. Who may
// delete a node is up to its parent, so that a closed directory is what keeps strangers from deleting ours. Above it
// everybody may add directories of their own.
func (p *publication) parents(ctx context.Context) error {
	at := ""
	for name := range strings.SplitSeq(strings.Trim(p.dir, "/"), "/") {
		if err := ctx.Err(); err != nil {
			return err
		}
		at += "/" + name
		_, err := p.e.link.conn.Create(at, nil, 0, p.parentACL(at == p.dir))
		switch {
		case err == nil, errors.Is(err, zk.ErrNodeExists):
		case errors.Is(err, zk.ErrNoAuth):
			// Most often the upper part exists and is closed to us; what matters is whether the last one stands.
		default:
			return p.explain(fmt.Errorf("create %s: %w", at, err))
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
			p.lost(full, nil)
			made, err := p.create(ctx)
			if !errors.Is(err, zk.ErrNodeExists) {
				return made, err
			}
			if err := p.sync(full); err != nil { // the leader knows of one
				return "", err
			}
		case err != nil:
			return "", err
		case p.ours(full, now):
			ok, err := p.adopt(ctx, full)
			if err != nil {
				return "", err
			}
			if ok {
				return full, nil
			}
		case !p.predecessor(now):
			p.lost(full, &now)
			return "", fmt.Errorf("%s is taken by %s: another process uses this name; give each its own instance id, or delete the node if nobody does", full, owner(now))
		default:
			p.lost(full, &now)
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
	x, errX := discovery.DecodeAny("", a)
	y, errY := discovery.DecodeAny("", b)
	return errX == nil && errY == nil && x.Endpoint == y.Endpoint
}

// sameInstance reports whether two nodes announce the same endpoint under the same name.
func sameInstance(a, b []byte) bool {
	x, errX := discovery.DecodeAny("", a)
	y, errY := discovery.DecodeAny("", b)
	return errX == nil && errY == nil && x.Endpoint == y.Endpoint && x.Name == y.Name
}

func owner(now reading) string {
	who := "a persistent node"
	if now.stat.EphemeralOwner != 0 {
		who = "session " + hex(now.stat.EphemeralOwner)
	}
	if in, err := discovery.DecodeAny("", now.data); err == nil {
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
		&zk.CreateRequest{Path: full, Data: p.dated(nil), Acl: p.acl(), Flags: flags},
	)
	p.reg.unknown = err != nil && !answered(err)
	if err != nil && !gone(err) && !errors.Is(err, zk.ErrBadVersion) && !errors.Is(err, zk.ErrNodeExists) {
		return p.explain(fmt.Errorf("replace %s: %w", full, err))
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
		if _, err := p.remove(ctx, full, func(now reading) bool { return p.ours(full, now) }); err != nil {
			return err
		}
	}
	if err := p.clear(ctx); err != nil {
		return err
	}
	p.reg.node, p.reg.unknown, p.reg.before, p.reg.listed = "", false, false, false
	p.reg.data, p.reg.sent, p.reg.written = nil, nil, time.Time{}
	p.absent(true)
	p.s.ledger.forget(regKey{p.r.Path, p.r.Prefix})
	return nil
}

// absent notes whether the registration is known to have no node.
func (p *publication) absent(is bool) {
	p.s.mu.Lock()
	defer p.s.mu.Unlock()
	p.reg.absent = is
}

// remains returns where nodes of ours may stand when nothing is known.
func (p *publication) remains(ctx context.Context) ([]string, error) {
	if p.r.Sequential {
		return p.own(ctx)
	}
	full := path.Join(p.dir, p.r.Prefix)
	return []string{full}, p.sync(full)
}

// remove deletes a node if it is the one that is meant, and returns what it was. Nobody is told of that.
func (p *publication) remove(ctx context.Context, full string, meant func(reading) bool) (*reading, error) {
	p.unguard(full)
	for {
		if err := ctx.Err(); err != nil {
			return nil, err
		}
		now, err := p.s.get(ctx, p.e, full, false)
		if gone(err) {
			return nil, nil
		}
		if err != nil {
			return nil, err
		}
		if !meant(now) {
			return nil, nil
		}
		err = p.e.link.conn.Delete(full, now.stat.Version)
		switch {
		case err == nil:
			return &now, nil
		case gone(err):
			return nil, nil
		case !errors.Is(err, zk.ErrBadVersion):
			return nil, p.explain(fmt.Errorf("delete %s: %w", full, err))
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
