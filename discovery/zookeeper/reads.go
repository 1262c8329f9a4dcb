package zookeeper

import (
	"context"
	"errors"
	"fmt"
	"path"

	"github.com/go-zookeeper/zk"
)

// Bounds of requests and replies. A server closes the connection, without a word, on a request above 1 MiB
// (jute.maxbuffer), and bounds none of its replies.
const (
	batchNodes = 400       // reads in a MultiRead: beyond a few hundred, more brought nothing in measurements
	batchBytes = 256 << 10 // of its paths
	nodeMost   = 8 << 20   // of a reply with data: a larger batch is read in halves, a larger node not at all
	listMost   = 64 << 20  // of a reply with names: 50,000 of 32 bytes are 1.8 MB
)

// modern reports whether the servers are taken to know persistent watches and MultiRead, which came with ZooKeeper 3.6.
func (s *Session) modern() bool { return !s.o.Classic && !s.old.Load() }

// outdated takes in that the servers do not. That is remembered: asking again would cost a connection each time.
func (s *Session) outdated(how string) {
	if !s.old.Swap(true) {
		s.log.WithField("reason", how).Info("these ZooKeeper servers have no persistent watches; one watch per node is used instead")
	}
}

// ask makes one request of ours and returns the body of its reply, of at most that many bytes. It blocks until ctx is
// done, or the connection has ended: the error then wraps errLost.
func (s *Session) ask(ctx context.Context, e *epoch, r request, most int) ([]byte, error) {
	s.reads.Add(1)
	calls, err := e.tap.send(most, r)
	if err != nil {
		return nil, err
	}
	return calls[0].wait(ctx)
}

// children lists a node's children. With watch, a watch for them stands when it returns; where the node does not
// exist, one for its creation, and the error wraps zk.ErrNoNode.
func (s *Session) children(ctx context.Context, e *epoch, path string, watch bool) (listing, error) {
	const attempts = 10 // a path that comes and goes all the time is not worth more
	for range attempts {
		body, err := s.ask(ctx, e, pathRequest(opGetChildren2, path, watch), listMost)
		if err == nil {
			ls, err := parseListing(body)
			return ls, wrap("list", path, err)
		}
		if !watch || !gone(err) {
			return listing{}, wrap("list", path, err)
		}
		_, errExists := s.exists(ctx, e, path, true)
		if gone(errExists) {
			return listing{}, wrap("list", path, err)
		}
		if errExists != nil {
			return listing{}, errExists
		}
	}
	return listing{}, fmt.Errorf("list %s: it is created and deleted all the time", path)
}

// exists returns a node's stat. With watch, a watch stands when it returns, also when there is no such node: the error
// then wraps zk.ErrNoNode.
func (s *Session) exists(ctx context.Context, e *epoch, path string, watch bool) (zk.Stat, error) {
	body, err := s.ask(ctx, e, pathRequest(opExists, path, watch), nodeMost)
	if err != nil {
		return zk.Stat{}, wrap("look for", path, err)
	}
	st, err := parseStat(body)
	return st, wrap("look for", path, err)
}

// get reads a node. With watch, a watch stands when it returns without an error.
func (s *Session) get(ctx context.Context, e *epoch, path string, watch bool) (reading, error) {
	body, err := s.ask(ctx, e, pathRequest(opGetData, path, watch), nodeMost)
	if err != nil {
		return reading{}, wrap("get", path, err)
	}
	r, err := parseReading(body)
	return r, wrap("get", path, err)
}

func wrap(verb, path string, err error) error {
	if err == nil {
		return nil
	}
	return fmt.Errorf("%s %s: %w", verb, path, err)
}

// catchUp makes the server that we are connected to catch up with its leader, once on each connection. Another one may
// have shown us more than this one has heard of.
func (s *Session) catchUp(ctx context.Context, e *epoch, path string) error {
	select {
	case done := <-e.current:
		defer func() { e.current <- done }()
		if done {
			return nil
		}
		_, err := s.ask(ctx, e, syncRequest(path), nodeMost)
		if errors.Is(err, errLost) || ctx.Err() != nil {
			return wrap("sync", path, err)
		}
		done = true // a server that refuses is read as it is
		return nil
	case <-ctx.Done():
		return ctx.Err()
	}
}

// arm sets the persistent watch on a path that a source looks at. One that stands already is not set twice.
func (s *Session) arm(ctx context.Context, e *epoch, path string) error {
	s.arming.Lock() // not before a removal for a source that has ended, see disarm
	s.reads.Add(1)
	calls, err := e.tap.send(nodeMost, addWatchRequest(path))
	s.arming.Unlock()
	if err != nil {
		return wrap("watch", path, err)
	}
	_, err = calls[0].wait(ctx)
	switch {
	case err == nil:
		s.answered(e, true)
	case errors.Is(err, errUnimplemented):
		s.outdated(err.Error())
	case errors.Is(err, errLost) && ctx.Err() == nil:
		s.answered(e, false)
	}
	return wrap("watch", path, err)
}

// answered counts connections that ended while addWatch had no answer, each once. A proxy or a server that ends them
// instead of answering must not keep us from ever reading; one that has answered once is never thought to be of that
// kind.
func (s *Session) answered(e *epoch, yes bool) {
	const tolerated = 8
	s.mu.Lock()
	switch {
	case yes:
		s.unarmed = -1
	case s.unarmed >= 0 && s.ended != e.gen:
		s.unarmed, s.ended = s.unarmed+1, e.gen
	}
	give := s.unarmed >= tolerated
	s.mu.Unlock()
	if give {
		s.outdated("connections end when addWatch is sent")
	}
}

// disarm closes an inbox, and removes the persistent watch when nobody else looks at the path. It does not wait for the
// answer.
func (s *Session) disarm(e *epoch, path string, box *inbox) {
	s.arming.Lock()
	defer s.arming.Unlock()
	if last := s.shut(path, box); last && e != nil && !e.lost() && s.modern() {
		_, _ = e.tap.send(nodeMost, removeWatchesRequest(path)) // fails only with the connection, and the watch with it
	}
}

// unit is what one request reads: many nodes of a directory, or one.
type unit []string

// units divides names. Without batch each stands alone.
func units(dir string, names []string, batch bool) []unit {
	var out []unit
	for len(names) > 0 {
		n := 1
		if batch {
			bytes := readCost(dir, names[0])
			for n < min(len(names), batchNodes) {
				if bytes += readCost(dir, names[n]); bytes > batchBytes {
					break
				}
				n++
			}
		}
		out = append(out, names[:n])
		names = names[n:]
	}
	return out
}

func (u unit) request(dir string, batch, watch bool) request {
	if !batch {
		return pathRequest(opGetData, path.Join(dir, u[0]), watch)
	}
	return multiReadRequest(dir, u)
}

// flight is a unit on its way.
type flight struct {
	unit unit
	call *call
}

// sweep is the reading of many nodes of a directory.
type sweep struct {
	s            *Session
	e            *epoch
	dir          string
	batch, watch bool
	each         func(string, reading, error)
	places       chan struct{}
	left         []unit
	under        []flight // oldest first: a server answers in order
}

// readNodes reads named children of dir and calls each, in any order, with every one's result: a reading, whose data is
// only valid during the call, or an error that gone, forbidden or tooLarge tells apart. With watch, a watch stands on
// each that exists. Several requests are under way at a time, within the session's budget. An error ends it: what each
// has been called with by then is right.
func (s *Session) readNodes(ctx context.Context, e *epoch, dir string, names []string, watch bool, each func(string, reading, error)) error {
	batch := !watch && s.modern()
	w := &sweep{
		s: s, e: e, dir: dir, batch: batch, watch: watch, each: each,
		places: s.budget.places(batch && len(names) > smallBatch), left: units(dir, names, batch),
	}
	defer func() {
		for range w.under {
			w.places <- struct{}{}
		}
	}()
	for len(w.left) > 0 || len(w.under) > 0 {
		if err := w.launch(ctx); err != nil {
			return wrap("read", dir, err)
		}
		if err := w.land(ctx); err != nil {
			return wrap("read", dir, err)
		}
	}
	return nil
}

// launch sends as many units as have places, in one piece; it waits for a place only when nothing is under way. Single
// reads wait until half of their places are free, since what costs most then is each write by itself.
func (w *sweep) launch(ctx context.Context) error {
	if !w.batch && len(w.under) > mostSingles/2 {
		return nil
	}
	var requests []request
	var units []unit
	cost := 0
	for len(w.left) > 0 && seat(ctx, w.places, len(w.under) == 0) {
		u := w.left[0]
		w.left = w.left[1:]
		w.under = append(w.under, flight{unit: u}) // from here on its place is given back
		units = append(units, u)
		requests = append(requests, u.request(w.dir, w.batch, w.watch))
		cost += len(u)
	}
	if len(units) == 0 {
		return ctx.Err()
	}
	if !w.batch {
		cost *= singleCost
	}
	if err := w.s.budget.wait(ctx, cost); err != nil {
		return err
	}
	w.s.reads.Add(uint64(len(units)))
	calls, err := w.e.tap.send(nodeMost, requests...)
	if err != nil {
		return err
	}
	for i, c := range calls {
		w.under[len(w.under)-len(calls)+i].call = c
	}
	return nil
}

// land waits for the oldest reply.
func (w *sweep) land(ctx context.Context) error {
	if len(w.under) == 0 {
		return ctx.Err()
	}
	body, err := w.under[0].call.wait(ctx)
	u := w.under[0].unit
	w.under = w.under[1:]
	w.places <- struct{}{}
	switch {
	case err == nil && w.batch:
		return parseMultiRead(body, len(u), func(i int, r reading, err error) { w.each(u[i], r, err) })
	case err == nil:
		r, err := parseReading(body)
		if err == nil {
			w.each(u[0], r, nil)
		}
		return err
	case tooLarge(err) && len(u) > 1:
		w.left = append(w.left, u[:len(u)/2], u[len(u)/2:])
		return nil
	case len(u) == 1 && (gone(err) || forbidden(err) || tooLarge(err)):
		w.each(u[0], reading{}, err)
		return nil
	}
	if w.batch && errors.Is(err, errUnimplemented) {
		w.s.outdated("MultiRead: " + err.Error())
	}
	return err
}

// seat takes a free place; when it is to wait for one, until ctx is done.
func seat(ctx context.Context, places chan struct{}, wait bool) bool {
	if !wait {
		select {
		case <-places:
			return true
		default:
			return false
		}
	}
	select {
	case <-places:
		return true
	case <-ctx.Done():
		return false
	}
}

// gone reports whether an error says that a node does not exist.
func gone(err error) bool { return errors.Is(err, zk.ErrNoNode) }

// forbidden reports whether an error says that a node may not be read.
func forbidden(err error) bool { return errors.Is(err, zk.ErrNoAuth) }

// tooLarge reports whether an error says that a node holds more than is read.
func tooLarge(err error) bool { return errors.Is(err, errTooLarge) }
