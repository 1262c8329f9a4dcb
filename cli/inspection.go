package cli

import (
	"cmp"
	"context"
	"fmt"
	"path"
	"slices"
	"strings"
	"time"

	"github.com/myelin-sd/myelin/agent"
	"github.com/myelin-sd/myelin/config"
	"github.com/myelin-sd/myelin/discovery/zookeeper"
	"github.com/myelin-sd/myelin/fsck"
)

// mostNodes bounds what one inspection reads of an ensemble, and with that its memory: some 300 bytes for each node.
const mostNodes = 1_000_000

// inspection is what fsck and gc look at in one ensemble.
type inspection struct {
	zk        config.ZooKeeper
	roots     []string
	lenient   bool              // a root may be missing: it is a service of a file
	services  map[string]string // paths from a file, and their names
	zones     map[string]string
	whole     bool
	overrides string
	consumers string // empty: nobody was asked to tell
}

// inspected is what was found in one ensemble.
type inspected struct {
	ensemble   string
	checker    *fsck.Checker
	unknown    string // why it is not known who consumes a service; empty: it is
	inspection inspection
}

// inspectionFlags are those of fsck and of gc.
type inspectionFlags struct {
	olderThan            time.Duration
	overrides, consumers string
}

// inspections are what is to be looked at: a root, or the services of the file, ensemble by ensemble. Overrides lie in
// the ensemble of the file's top level.
func (a *app) inspections(args []string, f inspectionFlags) ([]inspection, error) {
	if f.olderThan < 0 {
		return nil, usage("--older-than %s: write a time from 0", f.olderThan)
	}
	r, err := a.registry()
	if err != nil {
		return nil, err
	}
	overrides, consumers, err := a.inspectedPaths()
	if err != nil {
		return nil, err
	}
	overrides, consumers = cmp.Or(f.overrides, overrides), cmp.Or(f.consumers, consumers)
	for _, p := range append([]string{overrides, consumers}, args...) {
		if p != "" && !strings.HasPrefix(p, "/") {
			return nil, usage("%q is not a path in ZooKeeper: it does not begin with /", p)
		}
	}
	all := inspectionsOf(r.services, consumers)
	if len(args) > 0 || len(all) == 0 {
		root := defaultRoot
		if len(args) > 0 {
			root = path.Clean(args[0])
		}
		i := inspection{zk: r.zk, consumers: consumers}
		if j := slices.IndexFunc(all, func(i inspection) bool { return agent.SameAccess(i.zk, r.zk) }); j >= 0 {
			i = all[j] // the file says what its services are called
		}
		i.roots, i.lenient, i.whole = []string{root}, false, root == defaultRoot || root == "/"
		all = []inspection{i}
	}
	for i := range all {
		all[i].roots = outermost(all[i].roots)
		if agent.SameAccess(all[i].zk, r.zk) {
			all[i].overrides = overrides
		}
	}
	return all, nil
}

// inspectionsOf are those of the services of a file.
func inspectionsOf(services []config.Service, consumers string) (all []inspection) {
	for _, s := range services {
		if s.Discovery.Path == "" {
			continue
		}
		i := slices.IndexFunc(all, func(i inspection) bool { return agent.SameAccess(i.zk, s.Discovery.ZooKeeper) })
		if i < 0 {
			i, all = len(all), append(all, inspection{
				zk: s.Discovery.ZooKeeper, services: map[string]string{}, zones: map[string]string{}, consumers: consumers, lenient: true,
			})
		}
		in := &all[i]
		in.roots = append(in.roots, s.Discovery.Path)
		in.services[s.Discovery.Path] = s.Name
		if s.Zone != nil {
			in.zones[s.Discovery.Path] = s.Zone.Label
		}
	}
	return all
}

// inspectedPaths are the paths of overrides and of consumers that the file names.
func (a *app) inspectedPaths() (overrides, consumers string, err error) {
	if a.configFile == "" {
		return config.DefaultOverridesPath, "", nil
	}
	kind, err := config.Detect(a.configFile, a.options(false))
	if err != nil || kind == config.KindRegistrar {
		return config.DefaultOverridesPath, "", err
	}
	c, _, err := config.LoadAgent(a.configFile, a.options(false))
	if err != nil {
		return "", "", err
	}
	return c.OverridesPath, c.ConsumersPath, nil
}

// outermost leaves out what lies below another one, and what is there twice.
func outermost(paths []string) []string {
	slices.Sort(paths)
	var out []string
	for _, p := range paths {
		if !slices.ContainsFunc(out, func(above string) bool { return p == above || strings.HasPrefix(p, strings.TrimSuffix(above, "/")+"/") }) {
			out = append(out, p)
		}
	}
	return out
}

// inspect reads what is to be looked at, and runs then with the session while it is open.
func (a *app) inspect(ctx context.Context, i inspection, olderThan time.Duration, then func(context.Context, *zookeeper.Session, inspected) error) error {
	c := fsck.New(fsck.Options{
		Now: time.Now(), OlderThan: olderThan, Services: i.services, Zones: i.zones, Whole: i.whole,
		Apart: i.apart(),
	})
	found := inspected{ensemble: strings.Join(i.zk.Hosts, ",") + i.zk.Chroot, checker: c, inspection: i}
	return a.askLong(ctx, i.zk, func(ctx context.Context, s *zookeeper.Session, heard func(int)) (err error) {
		walk := walkFor(c, i.roots, heard)
		if i.lenient {
			walk.Absent = c.Absent
		}
		if err := s.Walk(ctx, i.roots, walk); err != nil {
			return noSuchPath(ctx, s, i.roots[0], err)
		}
		if err := readOverrides(ctx, s, i.overrides, c, heard); err != nil {
			return err
		}
		found.unknown, err = readConsumers(ctx, s, i.consumers, c, heard)
		return err
	}, func(ctx context.Context, s *zookeeper.Session) error { return then(ctx, s, found) })
}

// apart are the paths below the roots that are read by themselves.
func (i inspection) apart() (paths []string) {
	for _, p := range []string{i.overrides, i.consumers} {
		if p = path.Clean("/" + p); p != "/" && !slices.Contains(outermost(append([]string{p}, i.roots...)), p) {
			paths = append(paths, p)
		}
	}
	return paths
}

// walkFor hands a checker what a walk finds.
func walkFor(c *fsck.Checker, roots []string, moved func(int)) zookeeper.Walk {
	return zookeeper.Walk{
		Most: mostNodes, Moved: moved,
		Folder: func(f zookeeper.Folder) {
			c.Folder(fsck.Folder{Node: nodeAt(f.Path, f.Node), Root: slices.Contains(roots, f.Path), Names: f.Names, NameBytes: f.NameBytes})
		},
		Node:   func(dir string, n zookeeper.Node) { c.Node(dir, nodeAt(childPath(dir, n.Name), n)) },
		Unread: func(path string, err error) { c.Unread(path, err.Error()) },
	}
}

// childPath is path.Join for a folder's path and a child's name as a walk tells them: both are clean.
func childPath(dir, name string) string { return strings.TrimSuffix(dir, "/") + "/" + name }

func nodeAt(path string, n zookeeper.Node) fsck.Node {
	return fsck.Node{
		Path: path, Data: n.Data, Owner: n.Owner, Created: n.Created, Modified: n.Modified, Czxid: n.Czxid, Mzxid: n.Mzxid,
		Version: n.Version, Children: n.Children,
	}
}

// standingAt is nodeAt the other way round.
func standingAt(n fsck.Node) zookeeper.Standing {
	return zookeeper.Standing{Path: n.Path, Node: zookeeper.Node{
		Owner: n.Owner, Czxid: n.Czxid, Mzxid: n.Mzxid, Version: n.Version, Children: n.Children,
	}}
}

// readOverrides hands a checker all overrides. A path that is missing has none.
func readOverrides(ctx context.Context, s *zookeeper.Session, dir string, c *fsck.Checker, moved func(int)) error {
	if dir == "" {
		return nil
	}
	return s.Walk(ctx, []string{dir}, zookeeper.Walk{
		Most: mostNodes, Moved: moved,
		Node:   func(dir string, n zookeeper.Node) { c.Override(nodeAt(path.Join(dir, n.Name), n)) },
		Absent: func(string) {},
		Unread: func(path string, err error) { c.Unread(path, err.Error()) },
		Enter:  func(string) bool { return false },
	})
}

// readConsumers hands a checker what agents say they read, or returns why that is not known.
func readConsumers(ctx context.Context, s *zookeeper.Session, dir string, c *fsck.Checker, moved func(int)) (unknown string, err error) {
	if dir == "" {
		return "consumers_path is not set: give it to the agents and here, with -c FILE or --consumers PATH", nil
	}
	told := 0
	err = s.Walk(ctx, []string{dir}, zookeeper.Walk{
		Most: mostNodes, Moved: moved,
		Node: func(dir string, n zookeeper.Node) {
			consumer, err := agent.DecodeConsumer(n.Data)
			if err != nil {
				unknown = fmt.Sprintf("%s: %v", printable(path.Join(dir, n.Name)), err)
				return
			}
			told++
			c.Consumer(consumer.Paths)
		},
		Absent: func(root string) {
			unknown = fmt.Sprintf("there is no %s; create it, since agents do not: zkCli.sh create %s", printable(root), printable(root))
		},
		Unread: func(p string, err error) { unknown = fmt.Sprintf("%s cannot be read: %v", printable(p), err) },
		Enter:  func(string) bool { return false },
	})
	switch {
	case err != nil:
		return "", err
	case unknown == "" && told == 0:
		unknown = fmt.Sprintf("no agent publishes in %s; set consumers_path in the agents' files", printable(dir))
	}
	if unknown != "" {
		c.Unsure()
	}
	return unknown, nil
}
