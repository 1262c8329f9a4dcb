package cli

import (
	"cmp"
	"context"
	"fmt"
	"path"
	"runtime/debug"
	"slices"
	"strings"
	"time"

	"github.com/myelin-sd/myelin/agent"
	"github.com/myelin-sd/myelin/discovery"
	"github.com/myelin-sd/myelin/discovery/zookeeper"
)

// counter counts the registrations that a walk finds. Each node is read once, and nothing of it is kept.
type counter struct {
	decoder discovery.AnyDecoder
	counts  map[string]*counts
	closed  map[string]error // what could not be read, and why
}

// counts are those of one folder.
type counts struct {
	instances, rejected int
	service             bool // a child registers
}

func newCounter() *counter { return &counter{counts: map[string]*counts{}, closed: map[string]error{}} }

// unread takes in that a node could not be read, nor what lies below it.
func (c *counter) unread(p string, err error) { c.closed[p] = err }

// rejectClosed counts those that could not be read among registrations as rejected ones, and leaves the rest.
func (c *counter) rejectClosed() {
	for p := range c.closed {
		if dir := c.counts[path.Dir(p)]; dir != nil && dir.service {
			dir.rejected++
			delete(c.closed, p)
		}
	}
}

func (c *counter) at(dir string) *counts {
	if c.counts[dir] == nil {
		c.counts[dir] = &counts{}
	}
	return c.counts[dir]
}

// node takes in a child of a folder.
func (c *counter) node(dir string, n zookeeper.Node) {
	at := c.at(dir)
	_, err := c.decoder.Decode(n.Name, n.Data)
	if err == nil {
		at.instances++
	} else {
		at.rejected++
	}
	at.service = at.service || err == nil || n.Owner != 0
}

// services are the folders with registrations below a root, sorted by path.
func (c *counter) services(root string) (infos []serviceInfo) {
	name := func(p string) string { return cmp.Or(strings.TrimPrefix(strings.TrimPrefix(p, root), "/"), p) }
	c.rejectClosed()
	for p, at := range c.counts {
		if at.service {
			infos = append(infos, serviceInfo{Service: name(p), Path: p, Instances: at.instances, Rejected: at.rejected})
		}
	}
	for p, err := range c.closed {
		infos = append(infos, serviceInfo{Service: name(p), Path: p, Unread: err.Error()})
	}
	slices.SortFunc(infos, func(a, b serviceInfo) int { return strings.Compare(a.Path, b.Path) })
	return infos
}

// countBelow lists the services at and below root. Below a service it does not look.
func countBelow(ctx context.Context, s *zookeeper.Session, root string, heard func(nodes int)) ([]serviceInfo, error) {
	c := newCounter()
	err := s.Walk(ctx, []string{root}, zookeeper.Walk{
		Node: c.node, Moved: heard, Enter: func(dir string) bool { return !c.at(dir).service }, Unread: c.unread,
	})
	if err != nil {
		return nil, noSuchPath(ctx, s, root, err)
	}
	if err := c.closed[cleanPath(root)]; err != nil {
		return nil, fmt.Errorf("read %s: %w", root, err)
	}
	return c.services(path.Clean(root)), nil
}

// countFile counts the instances of the file's services that are found in ZooKeeper, with one session for each ensemble.
func (a *app) countFile(ctx context.Context, r registry) ([]serviceInfo, error) {
	infos := make([]serviceInfo, len(r.services))
	left := make([]int, 0, len(infos))
	for i, s := range r.services {
		infos[i] = serviceInfo{Service: s.Name, Path: s.Discovery.Path}
		if s.Discovery.Path == "" {
			infos[i].Instances = len(s.DefaultServers)
		} else {
			left = append(left, i)
		}
	}
	for len(left) > 0 {
		zk := r.services[left[0]].Discovery.ZooKeeper
		var here, others []int
		var paths []string
		for _, i := range left {
			if d := r.services[i].Discovery; agent.SameAccess(d.ZooKeeper, zk) {
				here, paths = append(here, i), append(paths, path.Clean(d.Path))
			} else {
				others = append(others, i)
			}
		}
		slices.Sort(paths)
		paths = slices.Compact(paths)
		err := a.askLong(ctx, zk, func(ctx context.Context, s *zookeeper.Session, heard func(int)) error {
			c, missing := newCounter(), map[string]bool{}
			err := s.Walk(ctx, paths, zookeeper.Walk{
				Node: c.node, Moved: heard, Absent: func(p string) { missing[p] = true }, Enter: func(string) bool { return false },
				Unread: c.unread,
			})
			c.rejectClosed()
			for _, i := range here {
				p := path.Clean(infos[i].Path)
				infos[i].Instances, infos[i].Rejected, infos[i].Missing = c.at(p).instances, c.at(p).rejected, missing[p]
				for closed, err := range c.closed {
					if closed == p || path.Dir(closed) == p {
						infos[i].Unread = err.Error()
					}
				}
			}
			return err
		}, nil)
		if err != nil {
			return nil, err
		}
		left = others
	}
	return infos, nil
}

// watching shows on a terminal how much a question has read by now. The function that it returns ends that.
func (a *app) watching(s *zookeeper.Session) (done func()) {
	p := a.progress()
	if p.quiet {
		return func() {}
	}
	stop, ended := make(chan struct{}), make(chan struct{})
	go func() {
		defer close(ended)
		tick := time.NewTicker(progressEvery)
		defer tick.Stop()
		for {
			select {
			case <-tick.C:
				p.say("reading from ZooKeeper: %d KiB", s.Stats().Bytes>>10)
			case <-stop:
				p.done()
				return
			}
		}
	}()
	return func() { close(stop); <-ended }
}

// answerFast has the collector of garbage stay out of the way of a command that answers and ends, unless the environment
// says how often it is to run. It may be called more than once; collectAgain undoes it.
func (a *app) answerFast() {
	if _, set := a.env("GOGC"); !set {
		a.collector.Do(func() { a.collected = debug.SetGCPercent(800) })
	}
}

// collectAgain has the collector run as it did before answerFast: for those who call Main and go on.
func (a *app) collectAgain() {
	if a.collected != 0 {
		debug.SetGCPercent(a.collected)
	}
}
