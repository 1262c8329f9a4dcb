package zookeeper

import (
	"maps"
	"sync"
)

// inbox gathers what a source has to look at. The library's goroutine puts in, and never waits; the source takes all
// at once. However many events come, it holds each child's name once.
type inbox struct {
	wake chan struct{} // capacity one

	mu    sync.Mutex // guards all below
	epoch *epoch     // the latest, nil before the first
	list  bool       // the children, or the path itself, have changed
	nodes map[string]struct{}
}

func newInbox() *inbox { return &inbox{wake: make(chan struct{}, 1)} }

func (b *inbox) connected(e *epoch) {
	b.mu.Lock()
	b.epoch = e
	b.mu.Unlock()
	b.signal()
}

// changed notes that the list of children has changed, or the child of that name.
func (b *inbox) changed(list bool, node string) {
	b.mu.Lock()
	b.list = b.list || list
	if node != "" {
		if b.nodes == nil {
			b.nodes = map[string]struct{}{}
		}
		b.nodes[node] = struct{}{}
	}
	b.mu.Unlock()
	b.signal()
}

func (b *inbox) signal() {
	select {
	case b.wake <- struct{}{}:
	default:
	}
}

// take empties the inbox. The epoch stays.
func (b *inbox) take() (e *epoch, list bool, nodes map[string]struct{}) {
	b.mu.Lock()
	defer b.mu.Unlock()
	e, list, nodes = b.epoch, b.list, b.nodes
	b.list, b.nodes = false, nil
	return e, list, nodes
}

// peek returns what take would.
func (b *inbox) peek() (list bool, nodes map[string]struct{}) {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.list, maps.Clone(b.nodes)
}

// listen starts to gather what happens at a path and its children.
func (s *Session) listen(path string) *inbox {
	b := newInbox()
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.routes[path] == nil {
		s.routes[path] = map[*inbox]struct{}{}
	}
	s.routes[path][b] = struct{}{}
	if s.up != nil {
		b.connected(s.up)
	}
	return b
}

// shut ends that. It reports whether nobody listens to the path any more.
func (s *Session) shut(path string, b *inbox) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	delete(s.routes[path], b)
	if len(s.routes[path]) > 0 {
		return false
	}
	delete(s.routes, path)
	return true
}
