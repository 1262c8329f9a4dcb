package agent

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"maps"
	"os"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/sirupsen/logrus"

	"github.com/myelin-sd/myelin/config"
	"github.com/myelin-sd/myelin/discovery"
	"github.com/myelin-sd/myelin/haproxy"
	"github.com/myelin-sd/myelin/journal"
)

const fewLines = 100 // of the log, about registrations that are wrong at once

const sourceRestart = 5 * time.Second // pause before a source that ended is started again

// generation is everything that runs under one configuration. A re-read of the files ends it and starts another,
// which inherits the views.
type generation struct {
	config   *config.Agent
	number   int
	log      logrus.FieldLogger
	journal  journal.Recorder
	sources  []discovery.Source // nil for disabled ones, by index of the services
	resolver *resolver
	composer *composer
	file     *filekeeper
	haproxys []*reconciler
	shadows  []*shadow        // in their stead, where nothing is to be changed
	process  *haproxy.Process // nil: somebody else runs HAProxy
	wakes    []chan struct{}  // one per consumer of wanted
	kept     *snapshots
	exports  *exports
	remotes  *remotes
	consumer *consumers
	ready    atomic.Bool

	overrides *overrides
	onReady   func()
	inForce   chan struct{} // closed when it is ready
	onHeard   func()        // called when everything has been heard of and applied

	contact  func(config.Service) contact // how a service's registry is reached
	sighted  chan struct{}                // capacity one: a HAProxy was asked about held servers
	releases chan release                 // somebody wants holds let go

	wanted atomic.Pointer[wanted]

	mu    sync.Mutex // guards views, and composer against others than collect
	views []view
}

func (a *Agent) newGeneration(c *config.Agent, number int, inherited map[string]view) (*generation, error) {
	g := &generation{
		config: c, number: number, log: a.log, inForce: make(chan struct{}),
		journal: a.o.Journal, contact: a.contact, sighted: make(chan struct{}, 1), releases: a.releases,
		onReady: func() { a.once.Do(func() { close(a.ready) }) },
		onHeard: func() { a.heardOnce.Do(func() { close(a.converged) }) },
	}
	if c.StateDir != "" {
		_ = os.MkdirAll(c.StateDir, 0o755) // whoever cannot write to it says so
	}
	text, err := os.ReadFile(c.HAProxy.ConfigFilePath)
	if err != nil && !errors.Is(err, os.ErrNotExist) && c.HAProxy.ConfigFilePath != "" {
		a.log.WithField("err", err).Warn("the present haproxy.cfg cannot be read; services that are not heard of start without its servers")
	}
	onDisk := haproxy.ServersOfText(text)
	var before struct {
		resolver  *resolver
		remotes   *remotes
		overrides *overrides
	}
	if old := a.current.Load(); old != nil {
		before.resolver, before.remotes, before.overrides = old.resolver, old.remotes, old.overrides
	}
	g.resolver = newResolver(onDisk, before.resolver, a.log)
	var effective *config.Agent
	g.remotes, effective = newRemotes(c, before.remotes, a.judgeRemote(c), g.log)
	g.composer = newComposer(effective, g.resolver.resolve, onDisk)
	state, err := stateOf(c)
	if err != nil {
		a.log.WithField("err", err).Warn("the state file is of no use; the ids in it are not known")
	}
	g.composer.inherit(effective, state)
	g.overrides = a.newOverrides(c, before.overrides)
	g.composer.overrides = inForce{g.overrides.state().inForce(time.Now()), time.Now()}
	if c.HAProxy.DoWrites {
		g.composer.gone = g.composer.file.Drops(text)
	}
	for _, w := range g.composer.file.Warnings() {
		a.log.Warn(w)
	}

	// What is known is there before the first source is: a source begins to ask the registry when it is made.
	now, store := time.Now(), storeOf(c)
	for _, s := range effective.Services {
		if old, ok := inherited[s.Name]; ok && sameDiscovery(old.service, s) {
			v := old.carry(s, now)
			logDecisions(a.log.WithField("service", s.Name), v)
			recordDecisions(a.o.Journal, v)
			g.views = append(g.views, v)
		} else {
			g.views = append(g.views, a.recall(store, s, now))
		}
	}
	for _, s := range c.Services {
		src, err := a.source(s)
		if err != nil {
			return nil, err
		}
		g.sources = append(g.sources, src)
	}
	g.wanted.Store(g.composer.all(g.views, nil))

	wake := func() <-chan struct{} {
		w := make(chan struct{}, 1)
		g.wakes = append(g.wakes, w)
		return w
	}
	driven := c // under which HAProxy and its files are changed
	if a.book != nil {
		driven = handsOff(c)
	}
	g.file = newFilekeeper(driven, g.wanted.Load, wake(), text, a.o)
	g.kept = &snapshots{
		store: store, services: c.Services, bases: g.bases, heard: func() map[string]time.Time { return a.Status().heard(time.Now()) },
		wake: wake(), inForce: g.inForce, log: a.log, saved: make([]*discovery.Snapshot, len(c.Services)),
	}
	g.exports = g.newExports(driven, state, wake())
	g.consumer = newConsumers(c, a.o.Version, a.sessions, a.log)
	if a.book != nil {
		g.shadows = g.newShadows(c, a.book, wake)
		a.book.keep(g.shadowed())
	}
	if driven.HAProxy.Run {
		g.process = g.file.process
	}
	if driven.HAProxy.DoSocket {
		for i, socket := range c.HAProxy.SocketFilePaths {
			var suspect <-chan struct{} // nil: nobody tells, so the process is looked at periodically
			if i == 0 && g.process != nil {
				suspect = g.process.Started()
			} else if i < len(g.file.operated) {
				suspect = g.file.operated[i].Changed()
			}
			g.haproxys = append(g.haproxys, &reconciler{
				attached: !c.HAProxy.DoWrites, before: a.memoryOf(socket),
				socket: socket, wanted: g.wanted.Load, wake: wake(), suspect: suspect,
				grace: cmp.Or(a.o.DeleteAfter, c.HAProxy.DeleteAfter), forceAfter: c.HAProxy.ShutdownSessionsAfter,
				again: g.wakeAll, sighted: func() { signal(g.sighted) },
				reload: g.file.reloadFor(c), loaded: g.file.processLoaded, quarantine: g.file.quarantine,
				ladder:  ladderFor(i, g.file.ladder),
				journal: g.journal, manualFor: c.HAProxy.ManualChanges, manualFile: manualFileOf(c.StateDir, socket),
				onDisk: g.file.servers, found: onDisk, began: now,
				log: a.o.Log.WithField("component", "haproxy"), metrics: a.o.Metrics,
			})
		}
		if len(g.haproxys) == 1 {
			g.haproxys[0].withdraw = g.file.withdraw
		}
	}
	return g, nil
}

// newExports keeps the files that other programs read.
func (g *generation) newExports(c *config.Agent, state stateEntries, wake <-chan struct{}) *exports {
	x := &exports{
		views: g.allViews, wanted: g.wanted.Load, wake: wake, inForce: g.inForce, log: g.log,
		backend: func(i int) string { return g.compose().backends[i].name },
	}
	if path := c.HAProxy.StateFilePath; path != "" {
		x.state = &stateFile{path: path, ttl: c.HAProxy.StateFileTTL, entries: state.clone()}
	}
	if c.FileOutput != nil {
		x.output = newOutputFiles(c.FileOutput.OutputDirectory)
	}
	return x
}

func (g *generation) allViews() []view {
	g.mu.Lock()
	defer g.mu.Unlock()
	return slices.Clone(g.views)
}

// sameDiscovery tells whether two definitions of a service find the same registrations.
func sameDiscovery(a, b config.Service) bool { return origin(a) == origin(b) }

// run blocks until ctx is done and everything it started has ended.
func (g *generation) run(ctx context.Context) {
	// The file comes first: HAProxy starts from it, with the servers it had.
	g.file.first(ctx)

	var all sync.WaitGroup
	defer g.kept.end()
	defer g.exports.end()
	defer all.Wait()
	snapshots := make(chan discovery.Snapshot)
	for i, src := range g.sources {
		all.Go(func() { g.runSource(ctx, g.config.Services[i].Name, src, snapshots) })
	}
	all.Go(func() { g.overrides.run(ctx) })
	all.Go(func() { g.resolver.run(ctx) })
	all.Go(func() { g.collect(ctx, snapshots) })
	all.Go(func() { g.file.run(ctx) })
	all.Go(func() { g.kept.run(ctx) })
	all.Go(func() { g.exports.run(ctx) })
	all.Go(func() { g.remotes.run(ctx) })
	all.Go(func() { g.consumer.run(ctx) })
	for _, r := range g.haproxys {
		all.Go(func() { r.run(ctx) })
	}
	for _, s := range g.shadows {
		all.Go(func() { s.run(ctx) })
	}
	if g.process != nil {
		all.Go(func() { g.process.Run(ctx) })
	}
	for _, o := range g.file.operated {
		all.Go(func() { o.Run(ctx) })
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
	due := newAlarm() // the guards decide what only time decides
	defer due.timer.Stop()
	ends := newAlarm() // overrides end by themselves
	defer ends.timer.Stop()
	for {
		g.awaitGuards(due)
		g.awaitOverrides(ends)
		select {
		case <-ctx.Done():
			return
		case <-due.timer.C:
			due.at = time.Time{}
			g.each(func(v view) view { return v.pass(time.Now()) })
		case <-g.sighted:
			g.weigh()
		case <-g.overrides.wake:
			g.override(time.Now())
		case <-ends.timer.C:
			ends.at = time.Time{}
			g.override(time.Now())
		case r := <-g.releases:
			r.done <- g.release(r.service)
		case snap := <-snapshots:
			g.take(snap)
		case <-g.resolver.changed:
			g.publish(g.composer.all(g.views, g.wanted.Load()))
		case c := <-g.remotes.accepted:
			g.reconfigure(c)
		}
	}
}

func (g *generation) take(snap discovery.Snapshot) {
	i := slices.IndexFunc(g.config.Services, func(s config.Service) bool { return s.Name == snap.Service })
	if i < 0 {
		return // no source of this generation
	}
	v := g.views[i]
	v.contact = g.contact(v.service)
	g.put(i, v.next(snap, time.Now()))
	if snap.DataRead {
		g.remotes.hear(snap.Service, snap.Data)
	}
}

// put puts a service's next view in force, and tells what is new about it.
func (g *generation) put(i int, v view) {
	old := g.views[i]
	// wanted is published first, so that readiness never sees what was heard without what follows from it.
	before := g.wanted.Load()
	after := g.composer.replace(i, v, before)
	g.wanted.Store(after)
	g.mu.Lock()
	g.views[i] = v
	g.mu.Unlock()
	g.wakeAll()

	g.record(old, v)
	log := g.log.WithField("service", v.service.Name)
	logHeld(log, old, v)
	logDecisions(log, v)
	logRejections(log, old.snapshot.Rejected, v.snapshot.Rejected)
	name := g.composer.backends[i].name
	logComposed(log, before.backends[name], after.backends[name])
}

// reconfigure puts what the registry says about services in force. Only what HAProxy is to be changes: the sources go on.
func (g *generation) reconfigure(c *config.Agent) {
	k := newComposer(c, g.resolver.resolve, g.composer.onDisk)
	k.inherit(c, g.composer.noted)
	k.overrides = g.composer.overrides
	if c.HAProxy.DoWrites {
		k.gone = append(k.file.Drops(g.composer.file.Render(nil)), g.composer.gone...)
		slices.Sort(k.gone)
		k.gone = slices.Compact(k.gone)
	}
	views := slices.Clone(g.views)
	for i := range views {
		views[i].service.HAProxy, views[i].service.FileOutputDisabled = c.Services[i].HAProxy, c.Services[i].FileOutputDisabled
	}
	w := k.all(views, g.wanted.Load())
	g.mu.Lock()
	g.composer, g.views = k, views
	g.mu.Unlock()
	g.log.Info("the configuration that the registry holds for services changed, and is in force")
	g.journal.Record(journal.Event{Kind: journal.KindProcess, What: "the configuration that the registry holds for services changed, and is in force"})
	g.publish(w)
}

// compose is the composer, for others than the goroutine that collects.
func (g *generation) compose() *composer {
	g.mu.Lock()
	defer g.mu.Unlock()
	return g.composer
}

// bases are what is to be kept of each service.
func (g *generation) bases() []basis {
	g.mu.Lock()
	defer g.mu.Unlock()
	out := make([]basis, len(g.views))
	for i := range g.views {
		v := &g.views[i]
		out[i] = basis{snapshot: v.basis, ours: v.known && !v.fromDisk()}
		if v.held != "" && !sameList(v.basis, v.snapshot) {
			out[i].listed = v.listed
		}
	}
	return out
}

// logRejections says each newly rejected registration once.
func logRejections(log logrus.FieldLogger, before, now []discovery.Rejection) {
	logNew(log, before, now, "registration left out")
}

func logNew(log logrus.FieldLogger, before, now []discovery.Rejection, message string) {
	known := make(map[string]bool, len(before))
	for _, r := range before {
		known[r.Node+"\x00"+r.Detail] = true
	}
	told := 0
	for _, r := range now {
		if known[r.Node+"\x00"+r.Detail] {
			continue
		}
		if told++; told <= fewLines {
			log.WithFields(logrus.Fields{"path": r.Node, "reason": r.Reason, "err": r.Detail}).Warn(message)
		}
	}
	if told > fewLines {
		log.WithField("count", told-fewLines).Warn(message + ": as many more as counted; the status shows them")
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

// awaitReady tells when everything that can be known is applied, and when all of it has been heard from the registry.
func (g *generation) awaitReady(ctx context.Context) {
	tick := time.NewTicker(20 * time.Millisecond)
	defer tick.Stop()
	for {
		select {
		case <-ctx.Done():
			return
		case <-tick.C:
			if len(g.waiting()) > 0 || !g.file.inStep() {
				continue
			}
			if !g.ready.Load() {
				g.ready.Store(true)
				close(g.inForce)
				g.onReady()
			}
			// Asked behind the others: what is heard in between is waited for.
			if len(g.stale(time.Now())) == 0 && !g.overrides.awaited() && len(g.waiting()) == 0 && g.file.inStep() {
				g.onHeard()
				return
			}
		}
	}
}

// waiting says what is missing for readiness: every service heard of once or known from the disk, every HAProxy brought
// to what is wanted.
func (g *generation) waiting() []string {
	var out []string
	g.mu.Lock()
	for _, v := range g.views {
		if !v.seen && !v.fromDisk() {
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
		case len(st.Absent) > 0:
			out = append(out, "HAProxy at "+r.socket+": its configuration has no backend "+strings.Join(st.Absent, ", "))
		case !st.Applied || st.reached != g.wanted.Load():
			out = append(out, "HAProxy at "+r.socket+": not everything wanted is applied")
		}
	}
	for _, s := range g.shadows {
		switch st := s.status.Load(); {
		case s.reached.Load() == g.wanted.Load():
		case st.Error != "":
			out = append(out, "HAProxy at "+s.target()+": "+st.Error)
		default:
			out = append(out, "HAProxy at "+s.target()+": not everything is compared")
		}
	}
	if s := g.file.status(); s.Error != "" {
		out = append(out, "file "+s.Path+": "+s.Error)
	} else if s.Pending != "" {
		out = append(out, "reload: "+s.Pending)
	}
	return out
}

// stale says which services are served from the disk, because the registry has not been heard of.
func (g *generation) stale(now time.Time) []string {
	var out []string
	g.mu.Lock()
	defer g.mu.Unlock()
	for i := range g.views {
		if v := &g.views[i]; v.fromDisk() {
			out = append(out, fmt.Sprintf("service %s: nothing heard from the registry yet; served from disk, as it was %s ago",
				v.service.Name, since(now, v.stored).Round(time.Second)))
		}
	}
	if why := g.overrides.unheard(now); why != "" {
		out = append(out, why)
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
	for _, s := range g.shadows {
		if last := s.beat.Load(); last != 0 && now.Sub(time.Unix(0, last)) > auditEvery+3*socketTimeout {
			out = append(out, "shadow of "+s.target())
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
	k, views := g.composer, slices.Clone(g.views)
	g.mu.Unlock()
	for i, v := range views {
		b, ok := w.backends[k.backends[i].name]
		if !ok {
			b = wantedBackend{backend: k.backends[i]}
		}
		s := serviceStatus(v, b, g.file.quarantine.reasons(b.name))
		s.Unresolved = g.resolver.unresolved(v.active)
		s.stands(g.file.ladder.of(b.name))
		s.Remote, s.Problems = g.remotes.status(s.Service)
		st.Services = append(st.Services, s)
	}
	for _, r := range g.haproxys {
		if s := r.status.Load(); s != nil {
			c := *s
			c.Backends = maps.Clone(s.Backends)
			st.HAProxy = append(st.HAProxy, c)
		}
	}
	for _, s := range g.shadows {
		if s.socket != "" {
			st.HAProxy = append(st.HAProxy, *s.status.Load())
		}
	}
	st.File = g.file.status()
	st.Snapshots = g.kept.status()
	st.Exports = g.exports.status()
	st.Waiting = g.waiting()
	st.Stale = g.stale(time.Now())
	st.Overrides = g.overridesStatus(time.Now())
	st.Ready = g.ready.Load()
}
