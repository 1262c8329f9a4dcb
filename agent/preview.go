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
}

// TargetPreview is the plan for one HAProxy.
type TargetPreview struct {
	Socket string
	Plan   haproxy.Plan
	Error  string // it could not be asked
}

// Pending tells whether there is anything to do.
func (p Preview) Pending() bool {
	return p.Written || p.Reload != "" || slices.ContainsFunc(p.Targets, func(t TargetPreview) bool { return len(t.Plan) > 0 })
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
	views, notes, err := a.listen(ctx, c)
	if err != nil {
		return nil, err
	}
	unheard := len(notes) > 0
	names := newResolver(onDisk, nil, log)
	k := newComposer(c, names.resolve, onDisk)
	state, err := stateOf(c)
	if err != nil {
		notes = append(notes, err.Error()+"; the ids that it holds are not known")
	}
	k.inherit(c, state)
	k.all(views, nil)                      // asks for the names
	names.once(context.WithoutCancel(ctx)) // the registry may have used up the time
	w := k.all(views, nil)
	p := &Preview{File: w.file.Render(w.forFile(newQuarantine())), Unheard: unheard, Notes: notes}
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
	if c.HAProxy.DoWrites && c.HAProxy.ConfigFilePath != "" {
		p.Written = !bytes.Equal(p.File, text)
	}
	if asked && c.HAProxy.DoSocket {
		for _, socket := range c.HAProxy.SocketFilePaths {
			p.ask(ctx, c, socket, w, onDisk, text)
		}
	} else if asked && p.Written {
		p.Reload = "do_socket is off, so every change needs one"
	}
	return p, nil
}

// listen hears each service's source once.
func (a *Agent) listen(ctx context.Context, c *config.Agent) ([]view, []string, error) {
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
	for missing > 0 {
		select {
		case snap := <-snapshots:
			i := slices.IndexFunc(views, func(v view) bool { return v.service.Name == snap.Service })
			if !views[i].seen {
				missing--
			}
			views[i] = views[i].next(snap, time.Now())
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
			return views, notes, nil
		}
	}
	return views, nil, nil
}

// ask plans for the HAProxy at a socket. It uses its own deadline: the registry may have used up ctx's.
func (p *Preview) ask(ctx context.Context, cfg *config.Agent, socket string, w *wanted, onDisk haproxy.State, text []byte) {
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), socketTimeout)
	defer cancel()
	r := &reconciler{
		socket: socket, fresh: map[string]bool{}, settled: map[string][]haproxy.Server{}, applied: map[haproxy.Key]haproxy.Applied{}, done: map[string]uint64{},
		retired: map[haproxy.Key]retirement{}, draining: map[haproxy.Key]time.Time{}, gated: map[string]gate{}, unfit: map[string]string{},
		onDisk: func() haproxy.State { return onDisk },
		log:    quiet(), quarantine: newQuarantine(),
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
