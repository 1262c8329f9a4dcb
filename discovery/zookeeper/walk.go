package zookeeper

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"path"
	"sync"
	"time"

	"golang.org/x/sync/errgroup"
)

const (
	// walkers is how many folders are read at a time: a registry with hundreds of small services would else cost two
	// round trips for each of them, one after the other.
	walkers = 8

	// walkDepth bounds how deep Walk looks below a root. SmartStack's layouts have two to four levels.
	walkDepth = 16
)

// Errors of Walk.Unread, besides those of the servers.
var (
	errTooDeep = fmt.Errorf("it lies more than %d levels below the root", walkDepth)
	errTooMany = errors.New("there are too many nodes")
)

// ErrNoAccess is wrapped by errors about a node that this session's user may not read or change.
var ErrNoAccess = errors.New("the node's ACL does not let this user; give zookeeper.auth of a user that may")

// Folder is a node that Walk lists the children of.
type Folder struct {
	Path      string // as the session's paths are: below the chroot
	Names     int    // children
	NameBytes int    // of all their names
	Node             // its own; Data is not read
}

// Walk reads trees, each node once, and hands over what it finds. None of its functions is called while another one is
// under way, each may be nil, and none may ask the session for anything. A node that vanishes meanwhile is left out.
type Walk struct {
	Most   int                          // nodes; of folders beyond that many Unread is told. 0: no bound
	Folder func(f Folder)               // a root, or a node with children, before any of its children
	Node   func(dir string, n Node)     // a child; n.Data may only be used during the call
	Absent func(root string)            // a root that does not exist; nil: that is an error, which wraps ErrNoPath
	Unread func(path string, err error) // what is there and cannot be read, nor what lies below it; nil: that is an error
	Enter  func(dir string) bool        // all children of dir were told: are those with children walked too? nil: they are
	Moved  func(nodes int)              // progress: so many nodes are read
}

// walker is a walk under way.
type walker struct {
	Walk
	s *Session

	mu          sync.Mutex // around the functions, and all below
	nodes, told int        // found, and told of
}

// Walk walks the trees at roots with as few requests as possible, within the session's budget. It waits for a
// connection until ctx ends, and goes on where it was when that is lost.
func (s *Session) Walk(ctx context.Context, roots []string, w Walk) error {
	walk := &walker{Walk: w, s: s}
	level := make([]string, len(roots))
	for i, root := range roots {
		level[i] = path.Clean("/" + root)
	}
	for depth := 0; len(level) > 0; depth++ {
		if depth > walkDepth {
			for _, dir := range level {
				if err := walk.unread(dir, errTooDeep); err != nil {
					return err
				}
			}
			return nil
		}
		next, err := walk.level(ctx, level, depth == 0)
		if err != nil {
			return err
		}
		level = next
	}
	return nil
}

// level walks folders, several at a time, and returns those below them.
func (w *walker) level(ctx context.Context, dirs []string, roots bool) ([]string, error) {
	found := make([][]string, len(dirs))
	g, ctx := errgroup.WithContext(ctx)
	g.SetLimit(walkers)
	for i, dir := range dirs {
		g.Go(func() (err error) {
			found[i], err = w.folder(ctx, dir, roots)
			return err
		})
	}
	if err := g.Wait(); err != nil {
		return nil, err
	}
	var next []string
	for _, below := range found {
		next = append(next, below...)
	}
	return next, nil
}

// folder reads one folder with its children, and returns those that have children themselves.
func (w *walker) folder(ctx context.Context, dir string, root bool) ([]string, error) {
	full := w.s.full(dir)
	ls, err := again(ctx, w.s, func(e *epoch) (listing, error) {
		if err := w.s.catchUp(ctx, e, full); err != nil { // once on each connection
			return listing{}, err
		}
		return w.s.children(ctx, e, full, false)
	})
	switch {
	case gone(err):
		return nil, w.absent(dir, root)
	case forbidden(err), tooLarge(err):
		return nil, w.unread(dir, err)
	case err != nil:
		return nil, fmt.Errorf("list %s: %w", dir, err)
	}
	if !w.enter(dir, ls) {
		return nil, w.unread(dir, fmt.Errorf("%w: more than %d", errTooMany, w.Most))
	}
	below, err := w.read(ctx, dir, ls.names)
	if err != nil {
		return nil, err
	}
	return w.leave(dir, below), nil
}

// enter tells of a folder; false: it has more children than may be read.
func (w *walker) enter(dir string, ls listing) bool {
	w.mu.Lock()
	defer w.mu.Unlock()
	f := Folder{Path: dir, Names: len(ls.names), Node: nodeOf(path.Base(dir), reading{stat: ls.stat})}
	for _, name := range ls.names {
		f.NameBytes += len(name)
	}
	if w.Folder != nil {
		w.Folder(f)
	}
	if w.nodes += f.Names; w.Most > 0 && w.nodes > w.Most {
		w.nodes -= f.Names
		return false
	}
	return true
}

// leave tells of a folder whose children are all told, and returns the paths of those to be walked.
func (w *walker) leave(dir string, below []string) []string {
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.Enter != nil && !w.Enter(dir) {
		return nil
	}
	return below
}

// read reads a folder's children and returns the paths of those with children. Those that were told of are not read
// again when the connection is lost.
func (w *walker) read(ctx context.Context, dir string, names []string) (below []string, err error) {
	told := make([]string, 0, len(names))
	var failed error
	one := func(name string, r reading, err error) {
		told = append(told, name)
		switch {
		case gone(err):
		case err != nil:
			failed = cmp.Or(failed, w.unread(path.Join(dir, name), err))
		case dir == "/" && name == "zookeeper": // ZooKeeper's own
		default:
			w.node(dir, nodeOf(name, r))
			if r.stat.NumChildren > 0 {
				below = append(below, path.Join(dir, name))
			}
		}
	}
	_, err = again(ctx, w.s, func(e *epoch) (struct{}, error) {
		return struct{}{}, w.s.readNodes(ctx, e, w.s.full(dir), without(names, told), false, one)
	})
	return below, cmp.Or(failed, err)
}

// without is a list of different names without some of them.
func without(names, some []string) []string {
	if len(some) == 0 {
		return names
	}
	left, out := make([]string, 0, len(names)), make(map[string]bool, len(some))
	for _, name := range some {
		out[name] = true
	}
	for _, name := range names {
		if !out[name] {
			left = append(left, name)
		}
	}
	return left
}

func (w *walker) node(dir string, n Node) {
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.told++; w.Moved != nil {
		w.Moved(w.told)
	}
	if w.Node != nil {
		w.Node(dir, n)
	}
}

// absent tells of a folder that does not exist. One that was there a moment ago is nothing to tell.
func (w *walker) absent(dir string, root bool) error {
	w.mu.Lock()
	defer w.mu.Unlock()
	switch {
	case !root:
	case w.Absent == nil:
		return fmt.Errorf("list %s: %w", dir, ErrNoPath)
	default:
		w.Absent(dir)
	}
	return nil
}

// unread tells of what cannot be read, or makes it an error.
func (w *walker) unread(path string, err error) error {
	if forbidden(err) {
		err = ErrNoAccess
	}
	if w.Unread == nil {
		return fmt.Errorf("read %s: %w", path, err)
	}
	w.mu.Lock()
	defer w.mu.Unlock()
	w.Unread(path, err)
	return nil
}

// nodeOf is a node as it was read. Its data is that of the reading.
func nodeOf(name string, r reading) Node {
	st := r.stat
	return Node{
		Name: name, Data: r.data, Owner: st.EphemeralOwner, Created: time.UnixMilli(st.Ctime), Modified: time.UnixMilli(st.Mtime),
		Version: st.Version, Children: int(st.NumChildren), Czxid: st.Czxid, Mzxid: st.Mzxid,
	}
}
