// Package agent is the node's side of Myelin: it composes sources, views, the wanted state, the reconciler of each
// HAProxy and the rendered file, and runs and stops them.
package agent

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/sirupsen/logrus"

	"github.com/myelin-sd/myelin/config"
	"github.com/myelin-sd/myelin/discovery"
	"github.com/myelin-sd/myelin/discovery/zookeeper"
	"github.com/myelin-sd/myelin/haproxy"
)

// Options are the world of an Agent.
type Options struct {
	Config  *config.Agent
	Version string
	Log     logrus.FieldLogger
	Metrics *Metrics

	// DeleteAfter is how long a server that left stays in HAProxy, in maintenance, before it is deleted. 0: a minute,
	// and ten before HAProxy 3.0.
	DeleteAfter time.Duration
}

// Agent runs a node's side. Make one with New and call Run once.
type Agent struct {
	o       Options
	log     logrus.FieldLogger
	started time.Time
	reloads chan *config.Agent
	ready   chan struct{} // closed once
	once    sync.Once

	converged chan struct{} // closed once
	heardOnce sync.Once

	mu       sync.Mutex // guards sessions
	sessions map[string]*zookeeper.Session

	current atomic.Pointer[generation]
}

// New makes an agent; nothing runs yet.
func New(o Options) *Agent {
	return &Agent{
		o: o, log: o.Log.WithField("component", "agent"), started: time.Now(), converged: make(chan struct{}),
		reloads: make(chan *config.Agent), ready: make(chan struct{}), sessions: map[string]*zookeeper.Session{},
	}
}

// Run composes and runs everything until ctx is done, and returns when all of it has ended. HAProxy is left as it
// is, running. Neither a missing ZooKeeper nor a missing HAProxy is an error: both are waited for.
func (a *Agent) Run(ctx context.Context) error {
	defer a.closeSessions(nil)
	cfg := a.o.Config
	var views map[string]view
	for n := 1; ; n++ {
		g, err := a.newGeneration(cfg, n, views)
		if err != nil {
			return err
		}
		a.current.Store(g)
		next := a.serve(ctx, g)
		views = g.viewsByName()
		if next == nil {
			return nil
		}
		cfg = next
		a.closeSessions(cfg)
	}
}

// serve runs one generation until ctx is done (nil) or a new configuration comes, which it returns.
func (a *Agent) serve(ctx context.Context, g *generation) *config.Agent {
	gctx, cancel := context.WithCancel(ctx)
	var running sync.WaitGroup
	running.Go(func() { g.run(gctx) })
	defer running.Wait()
	defer cancel()
	select {
	case <-ctx.Done():
		return nil
	case cfg := <-a.reloads:
		return cfg
	}
}

// Reload puts a new configuration in force: what is known of services that look where they looked stays known, and
// HAProxy is untouched but for the difference. A configuration that HAProxy refuses is an error, and the old one stays
// in force. It blocks until the new configuration runs or ctx is done.
func (a *Agent) Reload(ctx context.Context, cfg *config.Agent) error {
	if err := a.judge(ctx, cfg); err != nil {
		return err
	}
	select {
	case a.reloads <- cfg:
		return nil
	case <-ctx.Done():
		return ctx.Err()
	}
}

// judge asks HAProxy what it thinks of the file that cfg leads to, where it is ours to run.
func (a *Agent) judge(ctx context.Context, cfg *config.Agent) error {
	if !cfg.HAProxy.Run {
		return nil
	}
	if g := a.current.Load(); g != nil && g.config.HAProxy.Run {
		old := g.config.HAProxy
		if old.ConfigFilePath != cfg.HAProxy.ConfigFilePath || !slices.Equal(old.SocketFilePaths, cfg.HAProxy.SocketFilePaths) {
			return fmt.Errorf("state_dir, haproxy.config_file_path and haproxy.socket_file_path cannot change while HAProxy runs from %s: restart the agent, after stopping that HAProxy", old.ConfigFilePath)
		}
	}
	f, err := os.CreateTemp(filepath.Dir(cfg.HAProxy.ConfigFilePath), ".haproxy-*.cfg")
	if err != nil {
		return fmt.Errorf("check the new haproxy.cfg: %w", err)
	}
	defer os.Remove(f.Name())
	_, err = f.Write(fileOf(cfg).Render(probes(cfg)))
	if err := errors.Join(err, f.Close()); err != nil {
		return fmt.Errorf("check the new haproxy.cfg: %w", err)
	}
	if err := haproxy.CheckWith(cfg.HAProxy.Binary, commandTimeout)(ctx, f.Name()); err != nil {
		return fmt.Errorf("HAProxy refuses the haproxy.cfg that the new files lead to: %w", err)
	}
	return nil
}

// probes are one server for each service, so that HAProxy judges the options of the new files too.
func probes(cfg *config.Agent) haproxy.State {
	out := haproxy.State{}
	e, err := discovery.ParseEndpoint("127.0.0.1", 1)
	if err != nil {
		return out
	}
	for _, b := range newComposer(cfg, nil, nil).backends {
		out[b.name], _ = b.servers([]discovery.Instance{{Endpoint: e, Name: "probe"}}, nil, nil)
	}
	return out
}

// Ready returns a channel that is closed once everything that is known is applied for the first time: every service
// has been heard of, or its last known set was found on disk. An agent that serves is ready, however old its sets are:
// a registry that is away must not keep a host from its work. Status tells how old they are.
func (a *Agent) Ready() <-chan struct{} { return a.ready }

// Converged returns a channel that is closed once every service has been heard of from the registry, and all of it is
// applied.
func (a *Agent) Converged() <-chan struct{} { return a.converged }

// ensemble names the ensemble a service looks at.
func ensemble(z config.ZooKeeper) string { return strings.Join(z.Hosts, ",") + z.Chroot }

// session returns the one session with an ensemble. Sessions outlive a re-read of the files.
func (a *Agent) session(z config.ZooKeeper) *zookeeper.Session {
	a.mu.Lock()
	defer a.mu.Unlock()
	name := ensemble(z)
	s := a.sessions[name]
	if s == nil {
		s = zookeeper.New(zookeeper.Options{
			Hosts: z.Hosts, Chroot: z.Chroot, SessionTimeout: z.SessionTimeout,
			Log: a.o.Log.WithFields(logrus.Fields{"component": "zookeeper", "ensemble": name}),
		})
		a.sessions[name] = s
	}
	return s
}

// closeSessions closes the sessions that keep has no use for.
func (a *Agent) closeSessions(keep *config.Agent) {
	used := map[string]bool{}
	if keep != nil {
		for _, s := range keep.Services {
			used[ensemble(s.Discovery.ZooKeeper)] = true
		}
	}
	a.mu.Lock()
	var unused []*zookeeper.Session
	for name, s := range a.sessions {
		if !used[name] {
			unused = append(unused, s)
			delete(a.sessions, name)
		}
	}
	a.mu.Unlock()
	for _, s := range unused {
		s.Close()
	}
}

// source makes a service's source.
func (a *Agent) source(s config.Service) (discovery.Source, error) {
	switch s.Discovery.Method {
	case "base":
		return discovery.Static(s.Name, nil), nil
	case "zookeeper", "zookeeper_poll":
		o := zookeeper.SourceOptions{Decode: discovery.DecodeNerve, Log: a.o.Log.WithFields(logrus.Fields{"component": "discovery", "service": s.Name})}
		if s.Discovery.Method == "zookeeper_poll" {
			o.Poll = s.Discovery.PollingInterval
		}
		return a.session(s.Discovery.ZooKeeper).Source(s.Name, s.Discovery.Path, o), nil
	}
	return nil, fmt.Errorf("service %s: discovery method %q is not available", s.Name, s.Discovery.Method)
}

// Status is what the agent knows now.
func (a *Agent) Status() Status {
	st := Status{Version: a.o.Version, Started: a.started, Services: []ServiceStatus{}, ZooKeeper: []ZooKeeperStatus{}}
	a.mu.Lock()
	for name, s := range a.sessions {
		st.ZooKeeper = append(st.ZooKeeper, zookeeperStatus(name, s.Status()))
	}
	a.mu.Unlock()
	slices.SortFunc(st.ZooKeeper, func(x, y ZooKeeperStatus) int { return strings.Compare(x.Ensemble, y.Ensemble) })
	if g := a.current.Load(); g != nil {
		g.fill(&st)
	}
	return st
}

// stats are the counters of each ensemble's session.
func (a *Agent) stats() map[string]zookeeper.Stats {
	a.mu.Lock()
	defer a.mu.Unlock()
	out := make(map[string]zookeeper.Stats, len(a.sessions))
	for name, s := range a.sessions {
		out[name] = s.Stats()
	}
	return out
}
