package zookeeper

import (
	"errors"
	"fmt"
	"sync"

	"github.com/go-zookeeper/zk"
)

// watchKind is what a watch of the library looks at.
type watchKind byte

const (
	watchChildren watchKind = iota
	watchData
	watchCreation
)

type watchKey struct {
	kind watchKind
	path string
}

// watches knows which watches stand on a link. The library (v1.0.4) adds one more channel with each call of a W
// variant for the same path, until that path's watch fires, so those are only called where no watch stands. Whether
// one stands is read from the channel that the library gave: it fires exactly once, also when the session ends.
//
// The library calls back before it fires the channels, so a channel may be a moment late. It is never later than the
// reply to a request that was answered after the event: who looks again after reading knows for certain.
type watches struct {
	mu    sync.Mutex
	m     map[watchKey]<-chan zk.Event
	since bool // one has been set in this session
}

// stands reports whether a watch stands.
func (w *watches) stands(k watchKey) bool {
	w.mu.Lock()
	defer w.mu.Unlock()
	fired, ok := w.m[k]
	if !ok {
		return false
	}
	select {
	case <-fired:
		delete(w.m, k)
		return false
	default:
		return true
	}
}

func (w *watches) put(k watchKey, fired <-chan zk.Event) {
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.m == nil {
		w.m = map[watchKey]<-chan zk.Event{}
	}
	w.m[k] = fired
	w.since = true
}

// used reports whether the library may have watches to set again after a reconnect.
func (w *watches) used() bool {
	w.mu.Lock()
	defer w.mu.Unlock()
	return w.since
}

// expire forgets the watches of a session that has ended.
func (w *watches) expire() {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.m, w.since = nil, false
}

// reading is one read znode.
type reading struct {
	data  []byte
	stat  zk.Stat
	stood bool // a watch stood all the time: had the node changed, it would have fired
}

// get reads a node. With watch, a watch stands when it returns, set not later than the data was read.
func (l *link) get(path string, watch bool) (reading, error) {
	k := watchKey{watchData, path}
	if !watch || l.watches.stands(k) {
		data, stat, err := l.conn.Get(path)
		if err != nil {
			return reading{}, fmt.Errorf("get %s: %w", path, err)
		}
		if !watch || l.watches.stands(k) {
			return reading{data, *stat, watch}, nil
		}
	}
	data, stat, fired, err := l.conn.GetW(path)
	if err != nil {
		return reading{}, fmt.Errorf("get %s: %w", path, err)
	}
	l.watches.put(k, fired)
	return reading{data: data, stat: *stat}, nil
}

// listing is the names of a node's children.
type listing struct {
	names []string
	stood bool // as in reading
}

// children lists a node's children. With watch, a watch stands when it returns; where the node does not exist, one
// for its creation, and the error wraps zk.ErrNoNode.
func (l *link) children(path string, watch bool) (listing, error) {
	if !watch {
		names, _, err := l.conn.Children(path)
		if err != nil {
			return listing{}, fmt.Errorf("list %s: %w", path, err)
		}
		return listing{names: names}, nil
	}
	const attempts = 10 // a path that comes and goes all the time is not worth more
	for range attempts {
		ls, err := l.childrenW(path)
		if !errors.Is(err, zk.ErrNoNode) {
			return ls, err
		}
		created := watchKey{watchCreation, path}
		if l.watches.stands(created) {
			return listing{}, err
		}
		exists, _, fired, errExists := l.conn.ExistsW(path)
		if errExists != nil {
			return listing{}, fmt.Errorf("watch %s: %w", path, errExists)
		}
		l.watches.put(created, fired)
		if !exists {
			return listing{}, err
		}
	}
	return listing{}, fmt.Errorf("list %s: it is created and deleted all the time", path)
}

func (l *link) childrenW(path string) (listing, error) {
	k := watchKey{watchChildren, path}
	if l.watches.stands(k) {
		names, _, err := l.conn.Children(path)
		if err != nil {
			return listing{}, fmt.Errorf("list %s: %w", path, err)
		}
		if l.watches.stands(k) {
			return listing{names, true}, nil
		}
	}
	names, _, fired, err := l.conn.ChildrenW(path)
	if err != nil {
		return listing{}, fmt.Errorf("list %s: %w", path, err)
	}
	l.watches.put(k, fired)
	return listing{names: names}, nil
}
