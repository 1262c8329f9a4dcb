package agent

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"slices"
	"sync"
	"time"

	"github.com/sirupsen/logrus"

	"github.com/myelin-sd/myelin/config"
	"github.com/myelin-sd/myelin/discovery"
	"github.com/myelin-sd/myelin/haproxy"
)

// Preview is what an agent would do now, without doing it.
type Preview struct {
	File    []byte          // haproxy.cfg as it would be written
	Written bool            // it differs from what is on disk
	Targets []TargetPreview // one for each admin socket
	Reload  string          // why a reload is needed; empty: none is
	Unheard bool            // the registry did not answer for every service
	Notes   []string        // what could not be found out, and what was used instead

	// Differences say how the file differs from what is on disk, as far as HAProxy minds; see haproxy.CompareFiles.
	Differences []string

	Rungs []RungPreview // how HAProxy takes changes, by backend; without those that HAProxy was not asked about
}

// RungPreview is how HAProxy takes changes of one backend's servers.
type RungPreview struct {
	Backend string
	Rung    haproxy.Rung
	Reason  string // why no better way fits; empty: there is none
}

// TargetPreview is the plan for one HAProxy.
type TargetPreview struct {
	Socket string
	Plan   haproxy.Plan
	Error  string // it could not be asked
}

// Pending tells whether there is anything to do.
func (p Preview) Pending() bool {
	return p.Written || len(p.Differences) > 0 || p.Reload != "" || slices.ContainsFunc(p.Targets, func(t TargetPreview) bool { return len(t.Plan) > 0 })
}

// NewPreview reads the registry until ctx is done or every service has been heard of, then the file and each HAProxy.
// What cannot be reached is noted; the services that were not heard of keep what the file has. asked is false for a
// preview of the file alone.
func NewPreview(ctx context.Context, c *config.Agent, log logrus.FieldLogger, asked bool) (*Preview, error) {
	c = withNames(ctx, c)
	a := New(Options{Config: c, Log: log})
	defer a.closeSessions(nil)
	text, err := os.ReadFile(c.HAProxy.ConfigFilePath)
	if err != nil && c.HAProxy.ConfigFilePath != "" && !errors.Is(err, fs.ErrNotExist) {
		return nil, fmt.Errorf("read the present haproxy.cfg: %w", err)
	}
	onDisk := haproxy.ServersOfText(text)
	overrides := a.newOverrides(c, nil)
	views, notes, err := a.listen(ctx, c, overrides)
	if err != nil {
		return nil, err
	}
	unheard := len(notes) > 0
	notes = append(notes, holdNotes(views)...)
	c, problems := previewRemote(c, views)
	notes = append(notes, problems...)
	names := newResolver(onDisk, nil, log)
	k := newComposer(c, names.resolve, onDisk)
	state, err := stateOf(c)
	if err != nil {
		notes = append(notes, err.Error()+"; the ids that it holds are not known")
	}
	k.inherit(c, state)
	k.overrides = inForce{overrides.state().inForce(time.Now()), time.Now()}
	k.all(views, nil)                      // asks for the names
	names.once(context.WithoutCancel(ctx)) // the registry may have used up the time
	w := k.all(views, nil)
	l := newLadder(w, onDisk)
	p := &Preview{Unheard: unheard, Notes: notes}
	for _, n := range w.names() {
		b := w.backends[n]
		for _, r := range b.refused {
			what := "is left out"
			if r.Kept {
				what = "is used without options"
			}
			p.Notes = append(p.Notes, fmt.Sprintf("%s: %s %s: %s", b.service, r.Instance.Endpoint, what, r.Reason))
		}
		if b.surplus > 0 {
			p.Notes = append(p.Notes, fmt.Sprintf("%s: %d instances are left out: there are more than haproxy.max_servers", b.service, b.surplus))
		}
	}
	if asked && c.HAProxy.DoSocket {
		for i, socket := range c.HAProxy.SocketFilePaths {
			p.ask(ctx, c, socket, ladderFor(i, l), w, onDisk, text)
		}
	}
	p.Rungs = rungs(l, w)
	p.File = w.file.Render(w.forFile(newQuarantine(), l))
	if c.HAProxy.DoWrites && c.HAProxy.ConfigFilePath != "" {
		if p.Written = !bytes.Equal(p.File, text); p.Written && len(text) > 0 {
			p.Differences = haproxy.CompareFiles(text, p.File)
		}
	}
	if asked && !c.HAProxy.DoSocket && p.Written {
		p.Reload = "do_socket is off, so every change needs one"
	}
	return p, nil
}

// holdNotes say what is in force against the registry, because an agent would hold it: a plan that leaves it alone would
// read as if it were listed.
func holdNotes(views []view) []string {
	var notes []string
	for _, v := range views {
		if n := len(v.guard.holds); n > 0 {
			why, _, _ := v.guard.why()
			notes = append(notes, fmt.Sprintf("service %s: what the registry does not list any more would be held, %d in all: %s", v.service.Name, n, why))
		}
	}
	return notes
}

// rungs are where the known backends stand.
func rungs(l *ladder, w *wanted) []RungPreview {
	var out []RungPreview
	for _, name := range w.names() {
		if f := l.of(name); f.rung != 0 && f.why != "" {
			out = append(out, RungPreview{name, f.rung, f.why})
		}
	}
	return out
}

// previewRemote lays what the registry holds of the services' configuration over c, in views too. What has not been heard
// is as it was kept.
func previewRemote(c *config.Agent, views []view) (*config.Agent, []string) {
	var notes []string
	data, err := readRemotes(c)
	if err != nil {
		notes = append(notes, err.Error())
	}
	if data == nil {
		data = map[string][]byte{}
	}
	for _, v := range views {
		name, heard := v.service.Name, v.snapshot.Data
		if !v.snapshot.DataRead || len(data[name]) == 0 && unmeant(c, name, heard) {
			continue
		}
		if err := unusableRemote(c, name, heard); err != nil {
			notes = append(notes, "service "+name+": configuration from the registry is not used, what was in force before stays: "+err.Error())
			continue
		}
		data[name] = heard
	}
	laid, problems := remotely(c, data)
	for i := range views {
		s := laid.Services[i]
		views[i].service.HAProxy, views[i].service.FileOutputDisabled = s.HAProxy, s.FileOutputDisabled
		for _, p := range problems[s.Name] {
			notes = append(notes, "service "+s.Name+": configuration from the registry is not used: "+p)
		}
	}
	return laid, notes
}

// listen hears each service's source once, and the overrides'.
func (a *Agent) listen(ctx context.Context, c *config.Agent, o *overrides) ([]view, []string, error) {
	views := make([]view, len(c.Services))
	var notes []string // of what matters only where the registry does not answer
	store := storeOf(c)
	snapshots := make(chan discovery.Snapshot)
	hearing, stop := context.WithCancel(ctx)
	var running sync.WaitGroup
	defer running.Wait()
	defer stop()
	for i, s := range c.Services {
		src, err := a.source(s)
		if err != nil {
			return nil, nil, err
		}
		if views[i], err = recall(store, s, time.Now()); err != nil {
			notes = append(notes, "service "+s.Name+": "+err.Error())
		}
		running.Go(func() { src.Run(hearing, snapshots) })
	}
	missing := len(views)
	listed := make(chan discovery.Snapshot)
	if o.source != nil {
		missing++
		running.Go(func() { o.source.Run(hearing, listed) })
	}
	for missing > 0 {
		select {
		case snap := <-listed:
			if !o.latest.heard {
				missing--
			}
			o.latest = o.latest.next(snap, time.Now())
		case snap := <-snapshots:
			i := slices.IndexFunc(views, func(v view) bool { return v.service.Name == snap.Service })
			if !views[i].seen {
				missing--
			}
			v := views[i]
			v.contact = a.contact(v.service) // an agent that starts now would have this session too
			views[i] = v.next(snap, time.Now())
		case <-ctx.Done():
			now := time.Now()
			for _, v := range views {
				switch {
				case v.fromDisk():
					notes = append(notes, fmt.Sprintf("service %s: the registry did not answer; the set kept on disk is used, as it was %s ago",
						v.service.Name, since(now, v.stored).Round(time.Second)))
				case !v.seen:
					notes = append(notes, "service "+v.service.Name+": the registry did not answer; the servers of the present file are used")
				}
			}
			if why := o.unheard(now); why != "" {
				notes = append(notes, why)
			}
			return views, notes, nil
		}
	}
	return views, nil, nil
}

// ask plans for the HAProxy at a socket. It uses its own deadline: the registry may have used up ctx's.
func (p *Preview) ask(ctx context.Context, cfg *config.Agent, socket string, l *ladder, w *wanted, onDisk haproxy.State, text []byte) {
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), socketTimeout)
	defer cancel()
	r := &reconciler{
		socket: socket, fresh: map[string]bool{}, settled: map[string][]haproxy.Server{}, applied: map[haproxy.Key]haproxy.Applied{}, done: map[string]uint64{},
		retired: map[haproxy.Key]retirement{}, draining: map[haproxy.Key]draining{}, gated: map[string]gate{}, unfit: map[string]string{},
		onDisk: func() haproxy.State { return onDisk },
		log:    quiet(), quarantine: newQuarantine(), ladder: l, again: func() {},
		attached: !cfg.HAProxy.DoWrites,
		reload: func(reason string) {
			if !cfg.HAProxy.DoWrites && !cfg.HAProxy.DoReloads {
				p.Notes = append(p.Notes, "HAProxy at "+socket+": "+reason)
				return
			}
			p.Reload = reason
		},
		loaded: func(_, static string, found bool) {
			if !cfg.HAProxy.DoWrites {
				return // its file is not ours
			}
			if !found {
				static = haproxy.StaticOfText(text)
			}
			if static != w.static {
				p.Reload = "the static part of the configuration changed"
			}
		},
	}
	t := TargetPreview{Socket: socket}
	defer func() { p.Targets = append(p.Targets, t) }()
	c, err := r.dial(ctx)
	if err != nil {
		t.Error = err.Error()
		return
	}
	defer c.Close()
	r.met(ctx, c, w)
	actual, err := c.State(ctx)
	if err != nil {
		t.Error = err.Error()
		return
	}
	r.inherit(w, actual)
	for name := range actual {
		r.fresh[name] = true
	}
	t.Plan = r.plan(actual, w, w.names())
}

func quiet() logrus.FieldLogger {
	log := logrus.New()
	log.SetLevel(logrus.PanicLevel)
	return log
}
