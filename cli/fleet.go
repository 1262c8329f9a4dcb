package cli

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/myelin-sd/myelin/agent"
	"github.com/myelin-sd/myelin/config"
	"github.com/myelin-sd/myelin/discovery"
	"github.com/myelin-sd/myelin/discovery/zookeeper"
)

// standing is what the registry says before an intent is carried out.
type standing struct {
	overrides []zookeeper.StoredOverride
	services  []serving // that the target may be about
	names     []string  // of services that there are, where the target's is not among them
}

// serving is a service with the instances that are there to serve: listed, and not on their way out.
type serving struct {
	service   string
	path      string
	missing   bool // the registry has no such path, and the file no servers
	instances []discovery.Endpoint
}

// ensembles are the sessions of one command.
type ensembles struct {
	a    *app
	pool *agent.Sessions
}

func (a *app) ensembles() *ensembles {
	return &ensembles{a, agent.NewSessions(a.questionLog())}
}

func (e *ensembles) session(zk config.ZooKeeper) (*zookeeper.Session, error) {
	return e.a.open(e.pool, zk)
}

func (e *ensembles) close() { e.pool.Close() }

// explain says of an error that came with the end of the time why ZooKeeper was not heard.
func (e *ensembles) explain(ctx context.Context, zk config.ZooKeeper, limit time.Duration, err error) error {
	switch {
	case errors.Is(err, zookeeper.ErrUnanswered):
		return fmt.Errorf("%w; see myelin overrides", err)
	case !errors.Is(ctx.Err(), context.DeadlineExceeded):
		return err
	}
	st, _ := e.pool.Status(zk)
	if st.Connected {
		return fmt.Errorf("ask ZooKeeper at %s: not done within %s: %w", strings.Join(zk.Hosts, ","), limit, err)
	}
	why := st.Error
	if why == "" {
		why = "no answer"
	}
	return fmt.Errorf("ask ZooKeeper at %s: nothing heard within %s: %s; check the address, tls, and that the ensemble has a quorum",
		strings.Join(zk.Hosts, ","), limit, why)
}

// standing reads what an intent for the target is decided by.
func (a *app) standing(ctx context.Context, e *ensembles, s *zookeeper.Session, t discovery.Target, where overridesPlace) (standing, error) {
	var known standing
	var err error
	if known.overrides, err = s.Overrides(ctx, where.path); err != nil {
		return known, err
	}
	if t.Service == "" {
		known.services, err = a.everything(ctx, e, where.registry)
		return known, err
	}
	one, err := a.serving(ctx, e, where.registry, t.Service)
	if err != nil {
		return known, err
	}
	known.services = []serving{one}
	if one.missing {
		known.names, err = a.serviceNames(ctx, e, where.registry)
	}
	return known, err
}

// serving reads one service by its name.
func (a *app) serving(ctx context.Context, e *ensembles, r registry, name string) (serving, error) {
	out := serving{service: name}
	for _, s := range r.services {
		if s.Name == name && s.Discovery.Path == "" {
			out.instances = defaultServers(s)
			return out, nil
		}
	}
	var zk config.ZooKeeper
	out.path, zk = r.path(name)
	err := e.read(ctx, zk, &out, fileService(r, name))
	return out, err
}

// read fills in what the registry lists of a service, and the file's servers where agents would use them.
func (e *ensembles) read(ctx context.Context, zk config.ZooKeeper, out *serving, file *config.Service) error {
	s, err := e.session(zk)
	if err != nil {
		return err
	}
	snap, err := s.Snapshot(ctx, out.service, out.path)
	if err != nil {
		return err
	}
	for _, in := range snap.Instances {
		if !in.Leaving {
			out.instances = append(out.instances, in.Endpoint)
		}
	}
	out.missing = snap.Missing && file == nil
	if file != nil && (file.KeepDefaultServers || len(out.instances) == 0) {
		out.instances = append(out.instances, defaultServers(*file)...)
	}
	slices.SortFunc(out.instances, discovery.Endpoint.Compare)
	out.instances = slices.Compact(out.instances)
	return nil
}

func fileService(r registry, name string) *config.Service {
	for i := range r.services {
		if r.services[i].Name == name {
			return &r.services[i]
		}
	}
	return nil
}

func defaultServers(s config.Service) (out []discovery.Endpoint) {
	for _, d := range s.DefaultServers {
		if e, err := discovery.ParseEndpoint(d.Host, int(d.Port)); err == nil { // the file was checked
			out = append(out, e)
		}
	}
	return out
}

// everything reads all services of the file, or those under defaultRoot.
func (a *app) everything(ctx context.Context, e *ensembles, r registry) ([]serving, error) {
	var all []serving
	if len(r.services) > 0 {
		for _, s := range r.services {
			one, err := a.serving(ctx, e, r, s.Name)
			if err != nil {
				return nil, err
			}
			all = append(all, one)
		}
		return all, nil
	}
	s, err := e.session(r.zk)
	if err != nil {
		return nil, err
	}
	found, err := s.Services(ctx, defaultRoot)
	if errors.Is(err, zookeeper.ErrNoPath) {
		return nil, nil
	}
	if err != nil {
		return nil, err
	}
	progress := a.progress()
	defer progress.done()
	for i, f := range found {
		progress.say("reading services: %d of %d", i, len(found))
		one := serving{service: strings.TrimPrefix(f.Path, defaultRoot+"/"), path: f.Path}
		if err := e.read(ctx, r.zk, &one, nil); err != nil {
			return nil, err
		}
		all = append(all, one)
	}
	return all, nil
}

// serviceNames are the names of services that there are: the file's, or the children of defaultRoot.
func (a *app) serviceNames(ctx context.Context, e *ensembles, r registry) (names []string, err error) {
	for _, s := range r.services {
		names = append(names, s.Name)
	}
	if len(names) > 0 {
		return names, nil
	}
	s, err := e.session(r.zk)
	if err != nil {
		return nil, err
	}
	names, err = s.Children(ctx, defaultRoot)
	if errors.Is(err, zookeeper.ErrNoPath) {
		return nil, nil
	}
	return names, err
}

// covers tells whether a target is about the instance at e of a service.
func covers(t discovery.Target, service string, e discovery.Endpoint) bool {
	return (t.Service == "" || t.Service == service) && (t.Host == "" || t.Host == e.Host()) && (t.Port == 0 || t.Port == e.Port())
}

// wider tells whether w is about all that t is about, and more.
func wider(w, t discovery.Target) bool {
	return w != t && (w.Service == "" || w.Service == t.Service) && (w.Host == "" || w.Host == t.Host) && (w.Port == 0 || w.Port == t.Port)
}

// words are a target as the command line takes it.
func words(t discovery.Target) string { return printable(t.Words()) }
