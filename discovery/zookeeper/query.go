package zookeeper

import (
	"bytes"
	"cmp"
	"context"
	"errors"
	"fmt"
	"path"
	"slices"
	"strings"
	"time"

	"github.com/myelin-sd/myelin/discovery"
)

// Node is one znode as it was read.
type Node struct {
	Name              string // without the path
	Data              []byte
	Owner             int64 // session of an ephemeral node, else 0
	Created, Modified time.Time
	Version           int32 // of the data
	Children          int
	Czxid, Mzxid      int64 // the transactions that made it, and last wrote its data
}

// Children lists the names of a node's children, sorted. It waits for a connection until ctx ends. The error wraps
// ErrNoPath when the path does not exist.
func (s *Session) Children(ctx context.Context, path string) ([]string, error) {
	names, err := again(ctx, s, func(e *epoch) ([]string, error) { return s.names(ctx, e, s.full(path)) })
	if err != nil {
		return nil, fmt.Errorf("list %s: %w", path, noPath(err))
	}
	return names, nil
}

// Read reads all children of a node, sorted by name. Children that vanish meanwhile are left out, one that may not be
// read fails it. It waits for a connection until ctx ends. The error wraps ErrNoPath when the path does not exist.
func (s *Session) Read(ctx context.Context, path string) ([]Node, error) {
	nodes, err := again(ctx, s, func(e *epoch) ([]Node, error) {
		names, err := s.names(ctx, e, s.full(path))
		if err != nil {
			return nil, err
		}
		return s.readAll(ctx, e, s.full(path), names)
	})
	if err != nil {
		return nil, fmt.Errorf("read %s: %w", path, noPath(err))
	}
	return nodes, nil
}

// again runs f with a connection, once more with the next one whenever it is lost, until ctx ends. It also does when f
// has found out that the servers do not know MultiRead: the next time it reads without.
func again[T any](ctx context.Context, s *Session, f func(*epoch) (T, error)) (T, error) {
	for {
		e, err := s.await(ctx)
		if err != nil {
			var none T
			return none, err
		}
		modern := s.modern()
		v, err := f(e)
		if errors.Is(err, errLost) {
			select { // until the library has said so there is no other connection to be had
			case <-e.down:
			case <-ctx.Done():
			}
		}
		learned := modern && !s.modern() && errors.Is(err, errUnimplemented)
		if err == nil || ctx.Err() != nil || !errors.Is(err, errLost) && !learned {
			return v, err
		}
	}
}

func noPath(err error) error {
	if gone(err) {
		return ErrNoPath
	}
	return err
}

func (s *Session) names(ctx context.Context, e *epoch, full string) ([]string, error) {
	ls, err := s.children(ctx, e, full, false)
	slices.Sort(ls.names)
	return ls.names, err
}

// readAll reads the named children of dir, many at a time, in their order. Those that vanish meanwhile are left out.
func (s *Session) readAll(ctx context.Context, e *epoch, dir string, names []string) ([]Node, error) {
	found := make(map[string]Node, len(names))
	var failed error
	err := s.readNodes(ctx, e, dir, names, false, func(name string, r reading, err error) {
		switch {
		case err == nil:
			r.data = bytes.Clone(r.data)
			found[name] = nodeOf(name, r)
		case !gone(err) && failed == nil:
			failed = wrap("get", path.Join(dir, name), err)
		}
	})
	if err = cmp.Or(err, failed); err != nil {
		return nil, err
	}
	nodes := make([]Node, 0, len(found))
	for _, name := range names {
		if n, ok := found[name]; ok {
			nodes = append(nodes, n)
		}
	}
	return nodes, nil
}

// ServicePath is a znode under which instances are registered.
type ServicePath struct {
	Path      string
	Instances int // children, whether they decode or not
}

const (
	// servicesDepth bounds how deep Services looks. SmartStack's layouts have two to four levels.
	servicesDepth = 8

	// servicesSample is how many children of one node it looks at. Instances and directories are rarely mixed.
	servicesSample = 256
)

// Services lists the services at and below root, sorted by path: nodes with an ephemeral child, or one that decodes as
// a registration, among their first 256. Below a service it does not look, nor deeper than eight levels, nor into
// ZooKeeper's own nodes. It waits for a connection until ctx ends. The error wraps ErrNoPath when root does not exist.
func (s *Session) Services(ctx context.Context, root string) ([]ServicePath, error) {
	found, err := again(ctx, s, func(e *epoch) ([]ServicePath, error) {
		names, err := s.names(ctx, e, s.full(root))
		if err != nil {
			return nil, err
		}
		return s.services(ctx, e, path.Clean("/"+root), names, servicesDepth)
	})
	if err != nil {
		return nil, fmt.Errorf("list services below %s: %w", root, noPath(err))
	}
	slices.SortFunc(found, func(a, b ServicePath) int { return strings.Compare(a.Path, b.Path) })
	return found, nil
}

func (s *Session) services(ctx context.Context, e *epoch, dir string, names []string, depth int) ([]ServicePath, error) {
	nodes, err := s.readAll(ctx, e, s.full(dir), names[:min(len(names), servicesSample)])
	if err != nil {
		return nil, err
	}
	if slices.ContainsFunc(nodes, registers) {
		return []ServicePath{{dir, len(names)}}, nil
	}
	if len(names) > len(nodes) { // a large directory of directories
		more, err := s.readAll(ctx, e, s.full(dir), names[min(len(names), servicesSample):])
		if err != nil {
			return nil, err
		}
		nodes = append(nodes, more...)
	}
	var found []ServicePath
	for _, n := range nodes {
		below := path.Join(dir, n.Name)
		if n.Children == 0 || depth == 0 || below == "/zookeeper" {
			continue
		}
		names, err := s.names(ctx, e, s.full(below))
		if gone(err) {
			continue
		}
		if err != nil {
			return nil, err
		}
		deeper, err := s.services(ctx, e, below, names, depth-1)
		if err != nil {
			return nil, err
		}
		found = append(found, deeper...)
	}
	return found, nil
}

// registers reports whether a node looks like a registration.
func registers(n Node) bool {
	if n.Owner != 0 {
		return true
	}
	_, err := discovery.DecodeAny(n.Name, n.Data)
	return err == nil
}
