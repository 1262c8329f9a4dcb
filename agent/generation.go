package agent

import (
	"context"
	"errors"
	"maps"
	"os"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"github.com/sirupsen/logrus"

	"github.com/myelin-sd/myelin/config"
	"github.com/myelin-sd/myelin/discovery"
	"github.com/myelin-sd/myelin/haproxy"
)

const sourceRestart = 5 * time.Second // pause before a source that ended is started again

// generation is everything that runs under one configuration. A re-read of the files ends it and starts another,
// which inherits the views.
type generation struct {
	config   *config.Agent
	number   int
	log      logrus.FieldLogger
	sources  []discovery.Source // nil for disabled ones, by index of the services
	resolver *resolver
	composer *composer
	file     *filekeeper
	haproxys []*reconciler
	process  *haproxy.Process // nil: somebody else runs HAProxy
	wakes    []chan struct{}  // one per consumer of wanted
	ready    atomic.Bool
	onReady  func()

	wanted atomic.Pointer[wanted]

	mu    sync.Mutex // guards views
	views []view
}

func (a *Agent) newGeneration(c *config.Agent, number int, inherited map[string]view) (*generation, error) {
	g := &generation{config: c, number: number, log: a.log, onReady: func() { a.once.Do(func() { close(a.ready) }) }}
	text, err := os.ReadFile(c.HAProxy.ConfigFilePath)
	if err != nil && !errors.Is(err, os.ErrNotExist) && c.HAProxy.ConfigFilePath != "" {
		a.log.WithField("err", err).Warn("the present haproxy.cfg cannot be read; services that are not heard of start without its servers")
	}
	onDisk := haproxy.ServersOfText(text)
	g.resolver = newResolver(onDisk, a.log)
	g.composer = newComposer(c, g.resolver.resolve, onDisk)
	for _, w := range g.composer.file.Warnings() {
		a.log.Warn(w)
	}

	now := time.Now()
	for _, s := range c.Services {
		src, err := a.source(s)
		if err != nil {
			return nil, err
		}
		v := newView(s)
		if old, ok := inherited[s.Name]; ok && sameDiscovery(old.service, s) {
			v = old.carry(s, now)
		}
		g.sources = append(g.sources, src)
		g.views = append(g.views, v)
	}
	g.wanted.Store(g.composer.all(g.views, nil))

	wake := func() <-chan struct{} {
		w := make(chan struct{}, 1)
		g.wakes = append(g.wakes, w)
		return w
	}
	g.file = newFilekeeper(c, g.wanted.Load, wake(), text, a.o)
	if c.HAProxy.Run {
		g.process = g.file.process
	}
	if c.HAProxy.DoSocket {
		for i, socket := range c.HAProxy.SocketFilePaths {
			var suspect <-chan struct{} // nil: nobody tells, so the process is looked at periodically
			if i == 0 && g.process != nil {
				suspect = g.process.Started()
			}
			g.haproxys = append(g.haproxys, &reconciler{
				socket: socket, wanted: g.wanted.Load, wake: wake(), suspect: suspect, grace: a.o.DeleteAfter,
				again:  g.wakeAll,
				reload: g.file.needReload, loaded: g.file.processLoaded, quarantine: g.file.quarantine,
				onDisk: g.file.servers, found: onDisk, began: now,
				log: a.o.Log.WithField("component", "haproxy"), metrics: a.o.Metrics,
			})
		}
	}
	return g, nil
}

// sameDiscovery tells whether two definitions of a service find the same registrations.
func sameDiscovery(a, b config.Service) bool {
	return a.Discovery.Method == b.Discovery.Method && a.Discovery.Path == b.Discovery.Path &&
		Ensemble(a.Discovery.ZooKeeper) == Ensemble(b.Discovery.ZooKeeper)
}

// run blocks until ctx is done and everything it started has ended.
func (g *generation) run(ctx context.Context) {
	// The file comes first: HAProxy starts from it, with the servers it had.
	g.file.first(ctx)

	var all sync.WaitGroup
	defer all.Wait()
	snapshots := make(chan discovery.Snapshot)
	for i, src := range g.sources {
		all.Go(func() { g.runSource(ctx, g.config.Services[i].Name, src, snapshots) })
	}
	all.Go(func() { g.resolver.run(ctx) })
	all.Go(func() { g.collect(ctx, snapshots) })
	all.Go(func() { g.file.run(ctx) })
	for _, r := range g.haproxys {
		all.Go(func() { r.run(ctx) })
	}
	if g.process != nil {
		all.Go(func() { g.process.Run(ctx) })
	}
	all.Go(func() { g.awaitReady(ctx) })
}

// runSource runs one source for as long as ctx lives. A source that ends with an error is started again: discovery
// never ends itself.
func (g *generation) runSource(ctx context.Context, service string, src discovery.Source, out chan<- discovery.Snapshot) {
	for ctx.Err() == nil {
		err := src.Run(ctx, out)
		if ctx.Err() != nil {
			return
		}
		g.log.WithFields(logrus.Fields{"service": service, "err": err}).Error("source ended; the last good set stays, and it is started again")
		select {
		case <-ctx.Done():
		case <-time.After(sourceRestart):
		}
	}
}

// collect is the only writer of the views and of wanted.
func (g *generation) collect(ctx context.Context, snapshots <-chan discovery.Snapshot) {
	for {
		select {
		case <-ctx.Done():
			return
		case snap := <-snapshots:
			g.take(snap)
		case <-g.resolver.changed:
			g.publish(g.composer.all(g.views, g.wanted.Load()))
		}
	}
}

func (g *generation) take(snap discovery.Snapshot) {
	i := slices.IndexFunc(g.config.Services, func(s config.Service) bool { return s.Name == snap.Service })
	if i < 0 {
		return // no source of this generation
	}
	old := g.views[i]
	v := old.next(snap, time.Now())
	g.mu.Lock()
	g.views[i] = v
	g.mu.Unlock()

	log := g.log.WithField("service", v.service.Name)
	switch {
	case v.held != "" && v.held != old.held && !v.known:
		log.Warn("no instance is known; HAProxy keeps what it has: " + v.held)
	case v.held != "" && v.held != old.held:
		log.WithField("instances", len(v.active)).Warn("the last good set stays in force: " + v.held)
	case v.held == "" && old.held != "":
		log.WithField("instances", len(v.active)).Info("the registry lists instances again")
	}
	logRejections(log, old.snapshot.Rejected, v.snapshot.Rejected)
	before := g.wanted.Load()
	after := g.composer.replace(i, v, before)
	name := g.composer.backends[i].name
	logRejections(log, unusable(before.backends[name].refused), unusable(after.backends[name].refused))
	g.publish(after)
}

// unusable are the registrations that decode but cannot become a server.
func unusable(refused []refused) []discovery.Rejection {
	var out []discovery.Rejection
	for _, r := range refused {
		out = append(out, discovery.Rejection{Node: r.Instance.Node, Reason: "server", Detail: r.Reason})
	}
	return out
}

// logRejections says each newly rejected registration once.
func logRejections(log logrus.FieldLogger, before, now []discovery.Rejection) {
	known := make(map[string]bool, len(before))
	for _, r := range before {
		known[r.Node+"\x00"+r.Detail] = true
	}
	for _, r := range now {
		if !known[r.Node+"\x00"+r.Detail] {
			log.WithFields(logrus.Fields{"path": r.Node, "reason": r.Reason, "err": r.Detail}).Warn("registration left out")
		}
	}
}

func (g *generation) publish(w *wanted) {
	g.wanted.Store(w)
	g.wakeAll()
}

// wakeAll has every reconciler and the filekeeper look at wanted again.
func (g *generation) wakeAll() {
	for _, c := range g.wakes {
		signal(c)
	}
}

// awaitReady tells when everything that can be known has been heard and applied.
func (g *generation) awaitReady(ctx context.Context) {
	tick := time.NewTicker(20 * time.Millisecond)
	defer tick.Stop()
	for {
		select {
		case <-ctx.Done():
			return
		case <-tick.C:
			if len(g.waiting()) == 0 && g.file.inStep() {
				g.ready.Store(true)
				g.onReady()
				return
			}
		}
	}
}

// waiting says what is missing for readiness: every service heard of once, every HAProxy brought to what is wanted.
func (g *generation) waiting() []string {
	var out []string
	g.mu.Lock()
	for _, v := range g.views {
		if !v.seen {
			out = append(out, "service "+v.service.Name+": nothing heard from the registry yet")
		}
	}
	g.mu.Unlock()
	for _, r := range g.haproxys {
		switch st := r.status.Load(); {
		case st == nil:
			out = append(out, "HAProxy at "+r.socket+": not asked yet")
		case !st.Connected:
			out = append(out, "HAProxy at "+r.socket+": "+st.Error)
		case !st.Applied:
			out = append(out, "HAProxy at "+r.socket+": not everything wanted is applied")
		}
	}
	if s := g.file.status(); s.Error != "" {
		out = append(out, "file "+s.Path+": "+s.Error)
	} else if s.Pending != "" {
		out = append(out, "reload: "+s.Pending)
	}
	return out
}

// stuck names the loops that have made no progress for longer than their longest wait.
func (g *generation) stuck(now time.Time) []string {
	var out []string
	for _, r := range g.haproxys {
		if last := r.beat.Load(); last != 0 && now.Sub(time.Unix(0, last)) > 3*socketTimeout {
			out = append(out, "HAProxy at "+r.socket)
		}
	}
	return out
}

func (g *generation) viewsByName() map[string]view {
	g.mu.Lock()
	defer g.mu.Unlock()
	out := make(map[string]view, len(g.views))
	for _, v := range g.views {
		out[v.service.Name] = v
	}
	return out
}

// fill adds what this generation knows to a status.
func (g *generation) fill(st *Status) {
	st.Config, st.Generation = g.config.Path, g.number
	w := g.wanted.Load()
	g.mu.Lock()
	views := slices.Clone(g.views)
	g.mu.Unlock()
	for i, v := range views {
		b, ok := w.backends[g.composer.backends[i].name]
		if !ok {
			b = wantedBackend{backend: g.composer.backends[i]}
		}
		st.Services = append(st.Services, serviceStatus(v, b, g.file.quarantine.reasons(b.name)))
	}
	for _, r := range g.haproxys {
		if s := r.status.Load(); s != nil {
			c := *s
			c.Backends = maps.Clone(s.Backends)
			st.HAProxy = append(st.HAProxy, c)
		}
	}
	st.File = g.file.status()
	st.Waiting = g.waiting()
	st.Ready = g.ready.Load()
}
