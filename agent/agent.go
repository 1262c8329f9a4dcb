// Package agent is the node's side of Myelin: it composes sources, views, the wanted state, the reconciler of each
// HAProxy and the rendered file, and runs and stops them.
package agent

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"github.com/sirupsen/logrus"

	"github.com/myelin-sd/myelin/config"
	"github.com/myelin-sd/myelin/discovery"
	"github.com/myelin-sd/myelin/discovery/zookeeper"
	"github.com/myelin-sd/myelin/haproxy"
	"github.com/myelin-sd/myelin/journal"
	"github.com/myelin-sd/myelin/registrar"
)

// Options are the world of an Agent.
type Options struct {
	Config  *config.Agent
	Version string
	Log     logrus.FieldLogger
	Metrics *Metrics

	// Journal gets what happens, for the history. nil: nobody does.
	Journal journal.Recorder

	// Feed has what the pages tell while it happens. nil: nothing.
	Feed *journal.Feed

	// Sessions are the process's, when others share them: whoever made them closes them. nil: the agent has its own.
	Sessions *Sessions

	// Claims are the process's too. nil: nothing is claimed.
	Claims *Claims

	// Registrar is the process's other role, to be shown in the status. nil: it has none.
	Registrar Registrar

	// DeleteAfter is how long a server that left stays in HAProxy, in maintenance, before it is deleted. 0: a minute,
	// and ten before HAProxy 3.0.
	DeleteAfter time.Duration

	// Shadow has the agent change nothing, and tell what it would change. nil: it drives HAProxy.
	Shadow *ShadowOptions
}

// Registrar is what the status shows of a registrar in the same process.
type Registrar interface {
	Status() []registrar.ServiceStatus
	Live(ctx context.Context) error // nil while all its loops make progress
}

// Agent runs a node's side. Make one with New and call Run once.
type Agent struct {
	o       Options
	log     logrus.FieldLogger
	started time.Time
	reloads chan *reload

	releases chan release  // taken by the generation that runs
	ready    chan struct{} // closed once
	once     sync.Once

	converged chan struct{} // closed once
	heardOnce sync.Once

	sessions *Sessions
	book     *shadowBook   // nil: it is no shadow
	looks    chan struct{} // those who ask a HAProxy for others, see Servers

	current atomic.Pointer[generation]
}

// New makes an agent; nothing runs yet.
func New(o Options) *Agent {
	if o.Journal == nil {
		o.Journal = journal.Nowhere{}
	}
	sessions := o.Sessions
	if sessions == nil {
		sessions = NewSessions(o.Log)
		sessions.TellJournal(o.Journal)
	}
	var book *shadowBook
	if o.Shadow != nil {
		book = newShadowBook(*o.Shadow)
		o.Config, o.Claims = ofShadow(o.Config), nil
	}
	return &Agent{
		book: book,
		o:    o, log: o.Log.WithField("component", "agent"), started: time.Now(), converged: make(chan struct{}),
		reloads: make(chan *reload), releases: make(chan release), ready: make(chan struct{}), sessions: sessions,
		looks: make(chan struct{}, liveAtOnce),
	}
}

// Run composes and runs everything until ctx is done, and returns when all of it has ended. HAProxy is left as it
// is, running. Neither a missing ZooKeeper nor a missing HAProxy is an error: both are waited for.
func (a *Agent) Run(ctx context.Context) error {
	defer a.closeSessions(nil)
	next := &reload{config: withNames(ctx, a.o.Config), runs: make(chan struct{})}
	var views map[string]view
	for n := 1; ; n++ {
		g, err := a.newGeneration(next.config, n, views)
		if err != nil {
			return err
		}
		a.current.Store(g)
		close(next.runs)
		next = a.serve(ctx, g)
		views = g.viewsByName()
		if next == nil {
			return nil
		}
		a.closeSessions(next.config)
	}
}

// reload asks for a configuration to be put in force.
type reload struct {
	config *config.Agent
	runs   chan struct{} // closed when it is
}

// serve runs one generation until ctx is done (nil) or a new configuration comes, which it returns.
func (a *Agent) serve(ctx context.Context, g *generation) *reload {
	gctx, cancel := context.WithCancel(ctx)
	var running sync.WaitGroup
	running.Go(func() { g.run(gctx) })
	upgraded := make(chan *config.Agent, 1)
	running.Go(func() {
		if c := upgrade(gctx, g.config); c != nil {
			upgraded <- c
		}
	})
	defer running.Wait()
	defer cancel()
	select {
	case <-ctx.Done():
		return nil
	case next := <-a.reloads:
		return next
	case c := <-upgraded:
		a.log.Info("HAProxy was upgraded; frontends get names of their own, which 3.3 and later require")
		return &reload{config: c, runs: make(chan struct{})}
	}
}

// Reload puts a new configuration in force: what is known of services that look where they looked stays known, and
// HAProxy is untouched but for the difference. A configuration that HAProxy refuses is an error, and so is a socket that
// another agent drives HAProxy through; the old one stays in force then. It blocks until the new configuration runs or
// ctx is done.
func (a *Agent) Reload(ctx context.Context, cfg *config.Agent) error {
	if a.book != nil {
		cfg = ofShadow(cfg)
	}
	cfg = withNames(ctx, cfg)
	if err := a.judge(ctx, cfg); err != nil {
		return err
	}
	if err := a.o.Claims.Take(ctx, cfg); err != nil {
		return err
	}
	r := &reload{config: cfg, runs: make(chan struct{})}
	select {
	case a.reloads <- r:
	case <-ctx.Done():
		return ctx.Err()
	}
	select {
	case <-r.runs:
		a.o.Claims.Keep(cfg)
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
	if err := checkFile(ctx, cfg); err != nil {
		return fmt.Errorf("HAProxy refuses the haproxy.cfg that the new files lead to: %w", err)
	}
	return nil
}

// checkFile asks HAProxy's binary about the file that cfg leads to.
func checkFile(ctx context.Context, cfg *config.Agent) error {
	dir := filepath.Dir(cmp.Or(cfg.HAProxy.CandidateConfigFilePath, cfg.HAProxy.ConfigFilePath)) // where we may write
	f, err := os.CreateTemp(dir, ".haproxy-*.cfg")
	if err != nil {
		return fmt.Errorf("write a file to check: %w", err)
	}
	defer os.Remove(f.Name())
	_, err = f.Write(fileOf(cfg).Render(probes(cfg)))
	if err := errors.Join(err, f.Close()); err != nil {
		return fmt.Errorf("write a file to check: %w", err)
	}
	return haproxy.CheckWith(cfg.HAProxy.Binary, commandTimeout)(ctx, f.Name())
}

// judgeRemote asks HAProxy what it thinks of a configuration that differs from base in what the registry says. Where
// HAProxy's binary is not there, or refuses base as well (it may not be the one that runs), nobody knows: errNotAsked. A
// host's own file has somebody who looks at what becomes of it; what comes from the registry reaches all hosts at once, and
// a line that HAProxy does not take would keep it from its next start.
func (a *Agent) judgeRemote(base *config.Agent) func(context.Context, *config.Agent) error {
	return func(ctx context.Context, c *config.Agent) error {
		if !c.HAProxy.DoWrites || c.HAProxy.ConfigFilePath == "" || c.HAProxy.NoChecks {
			return nil
		}
		err := checkFile(ctx, c)
		if err == nil {
			return nil
		}
		if errors.Is(err, exec.ErrNotFound) || errors.Is(err, fs.ErrNotExist) {
			return fmt.Errorf("%w: %w; let haproxy.binary name it, or write do_checks = false to do without", errNotAsked, err)
		}
		if refused := checkFile(ctx, base); refused != nil {
			return fmt.Errorf("%w: it refuses this host's own file too: %w; let haproxy.binary name the one that runs, or write do_checks = false to do without", errNotAsked, refused)
		}
		return fmt.Errorf("HAProxy refuses it: %w", err)
	}
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

// closeSessions closes the sessions that keep has no use for. At the end, when keep is nil, those of the process are
// left to it.
func (a *Agent) closeSessions(keep *config.Agent) {
	if keep == nil && a.o.Sessions != nil {
		return
	}
	var used []config.ZooKeeper
	if keep != nil {
		if keep.OverridesPath != "" && len(keep.ZooKeeper.Hosts) > 0 {
			used = append(used, keep.ZooKeeper)
		}
		for _, s := range keep.Services {
			used = append(used, s.Discovery.ZooKeeper)
		}
	}
	a.sessions.Release(used)
}

// decoder reads registrations as the file says; nil stands for Nerve's.
func decoder(d config.Decode) zookeeper.Decode {
	switch d.Method {
	case "serverset":
		return discovery.DecodeServerset(d.EndpointName)
	case "curator":
		return discovery.DecodeCurator
	case "auto":
		return new(discovery.AnyDecoder).Decode
	}
	return nil
}

// source makes a service's source.
func (a *Agent) source(s config.Service) (discovery.Source, error) {
	switch s.Discovery.Method {
	case "base":
		return discovery.Static(s.Name, nil), nil
	case "zookeeper", "zookeeper_poll":
		o := zookeeper.SourceOptions{Log: a.o.Log.WithFields(logrus.Fields{"component": "discovery", "service": s.Name})}
		if s.Discovery.Method == "zookeeper_poll" {
			o.Poll = s.Discovery.PollingInterval
		}
		o.Decode = decoder(s.Discovery.Decode)
		o.Immutable, o.Gap = s.Discovery.ImmutableNodes, s.Discovery.DiscoveryJitter
		session := a.sessions.Get(s.Discovery.ZooKeeper)
		o.Data = looksForRemote(s) && s.Discovery.GeneratorConfigPath == s.Discovery.Path
		instances := session.Source(s.Name, s.Discovery.Path, o)
		if !looksForRemote(s) || o.Data {
			return instances, nil
		}
		o.Data, o.Bare = true, true
		return paired{instances, session.Source(s.Name, s.Discovery.GeneratorConfigPath, o)}, nil
	}
	return nil, fmt.Errorf("service %s: discovery method %q is not available", s.Name, s.Discovery.Method)
}

// Status is what the agent knows now.
func (a *Agent) Status() Status {
	st := Status{Version: a.o.Version, Started: a.started, Services: []ServiceStatus{}, ZooKeeper: a.sessions.Statuses()}
	if g := a.current.Load(); g != nil {
		g.fill(&st)
	}
	if a.book != nil {
		st.Shadow = a.book.status()
	}
	if g := a.current.Load(); g != nil && st.Overrides.Path != "" {
		st.Overrides.Ensemble = a.sessions.Name(g.config.ZooKeeper)
	}
	for i, s := range st.Services {
		if s.Path != "" {
			st.Services[i].Ensemble = a.sessions.Name(s.zookeeper)
		}
	}
	if a.o.Registrar != nil {
		st.Registrations = a.o.Registrar.Status()
	}
	return st
}
