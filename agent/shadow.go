package agent

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"sync/atomic"
	"time"

	"github.com/sirupsen/logrus"

	"github.com/myelin-sd/myelin/config"
	"github.com/myelin-sd/myelin/haproxy"
)

// A shadow is a whole agent that changes nothing: it runs beside whatever drives a HAProxy, reads what that HAProxy has,
// and tells what it would change. It has no reconciler, writes neither haproxy.cfg nor files for other programs, runs and
// reloads nothing and claims nothing; its connections to HAProxy can only read. What it keeps for itself, the sets on
// disk, is in a folder of its own.

// ShadowOptions have an Agent be a shadow.
type ShadowOptions struct {
	// Grace is how long a difference must last to count: the other manager may be a little behind. 0: ten seconds.
	Grace time.Duration
}

const (
	shadowGrace    = 10 * time.Second
	shadowAgain    = 2 * time.Second // while something differs, or HAProxy does not answer
	leastShadowGap = 50 * time.Millisecond
	mostShadowGap  = time.Second
)

// ShadowDir is the folder of a shadow's own state, within the state_dir of the agent that it is a shadow of; empty where
// that is.
func ShadowDir(stateDir string) string {
	if stateDir == "" {
		return ""
	}
	return filepath.Join(stateDir, "shadow")
}

// ofShadow is a configuration as a shadow has it: with a folder of its own. A file to be judged by HAProxy is written
// there too.
func ofShadow(c *config.Agent) *config.Agent {
	out := *c
	out.StateDir = ShadowDir(c.StateDir)
	out.FileOutput, out.ConsumersPath = nil, ""
	out.HAProxy.CandidateConfigFilePath = filepath.Join(out.StateDir, "haproxy.cfg.tmp")
	return &out
}

// handsOff is a configuration under which nobody touches HAProxy, its file or Synapse's state file.
func handsOff(c *config.Agent) *config.Agent {
	out := *c
	h := &out.HAProxy
	h.Run, h.DoWrites, h.DoReloads, h.DoSocket, h.DoChecks, h.NoChecks = false, false, false, false, false, true
	h.ReloadCommand, h.MasterSocketPaths, h.StateFilePath = "", nil, ""
	return &out
}

// shadow looks at one HAProxy, or at its file where there is no socket to ask.
type shadow struct {
	socket  string // empty: HAProxy is changed by reloads alone, so that its file says what it has
	file    string // haproxy.cfg
	standIn bool   // the file is compared while HAProxy does not answer: it is this file that it would start with
	static  bool   // the file is what would be written: it is compared as well

	attached bool // others write the file for good, see attach.go
	wanted   func() *wanted
	wake     <-chan struct{} // capacity one: wanted changed
	ladder   *ladder
	book     *shadowBook
	sighted  func() // somebody is to look at what HAProxy's checks say of held servers
	log      logrus.FieldLogger

	// The loop's own.
	identity haproxy.Identity
	warned   bool
	compared struct { // the file that was compared last
		wanted *wanted
		stamp  fileStamp
	}

	status  atomic.Pointer[haproxyStatus]
	reached atomic.Pointer[wanted] // what was compared last
	beat    atomic.Int64           // when the loop last went round, in nanoseconds since 1970
}

// fileStamp changes with a file.
type fileStamp struct {
	at   time.Time
	size int64
}

// newShadows are the shadows of a configuration's HAProxys.
func (g *generation) newShadows(c *config.Agent, book *shadowBook, wake func() <-chan struct{}) []*shadow {
	h := c.HAProxy
	sockets := h.SocketFilePaths
	if !h.DoSocket {
		sockets = []string{""}
	}
	var out []*shadow
	for i, socket := range sockets {
		s := &shadow{
			socket: socket, file: h.ConfigFilePath, standIn: h.Run && h.ConfigFilePath != "",
			static: i == 0 && h.DoWrites && h.ConfigFilePath != "", attached: !h.DoWrites,
			wanted: g.wanted.Load, wake: wake(), ladder: ladderFor(i, g.file.ladder), book: book,
			sighted: func() { signal(g.sighted) }, log: g.log.WithField("component", "shadow"),
		}
		s.status.Store(&haproxyStatus{Socket: socket, Since: time.Now(), Error: "not asked yet", Backends: map[string]counts{}})
		out = append(out, s)
	}
	return out
}

// target names what is compared: a socket, or the file.
func (s *shadow) target() string {
	if s.socket == "" {
		return s.file
	}
	return s.socket
}

// run blocks until ctx is done.
func (s *shadow) run(ctx context.Context) {
	due := newAlarm()
	defer due.timer.Stop()
	due.by(time.Now())
	var paced time.Time
	for {
		s.beat.Store(time.Now().UnixNano())
		select {
		case <-ctx.Done():
			return
		case <-s.wake:
			due.by(later(time.Now(), paced))
		case <-due.timer.C:
			due.at = time.Time{}
			began := time.Now()
			next := s.look(ctx)
			paced = time.Now().Add(min(max(roundPause*time.Since(began), leastShadowGap), mostShadowGap))
			due.by(later(next, paced))
		}
	}
}

func later(a, b time.Time) time.Time {
	if a.Before(b) {
		return b
	}
	return a
}

// look compares once, and returns when that is to be done again although nothing happens.
func (s *shadow) look(ctx context.Context) time.Time {
	w := s.wanted()
	state, err := s.read(ctx)
	if ctx.Err() != nil {
		return time.Now()
	}
	now := time.Now()
	s.note(w, state, err)
	instead := "" // of HAProxy
	if err != nil && s.standIn {
		if state, err = s.fileState(); err == nil {
			instead = "HAProxy does not run: its file " + s.file + " is compared"
		}
	}
	if err != nil {
		s.book.lost(s.target(), err)
	} else {
		s.book.take(s.target(), instead, s.compare(w, state), now, s.log)
	}
	if s.static {
		s.compareFile(w)
	}
	if err == nil {
		s.reached.Store(w)
	}
	// What the other manager does is no event here: it is looked for as often as a difference needs to last.
	every := min(auditEvery, s.book.grace)
	at, differs := s.book.next(s.target())
	watched := false
	for _, b := range w.backends {
		watched = watched || b.holds
	}
	if err != nil || differs || watched {
		every = min(every, shadowAgain)
	}
	next := now.Add(every)
	if !at.IsZero() && at.Before(next) {
		next = at
	}
	return next
}

// read asks HAProxy for its table, over a connection of its own that is closed at once: others may wait with deletions
// while somebody is connected, and a connection that outlives a reload is one to the old process.
func (s *shadow) read(ctx context.Context) (haproxy.State, error) {
	if s.socket == "" {
		return s.fileState()
	}
	ctx, cancel := context.WithTimeout(ctx, socketTimeout)
	defer cancel()
	c, err := haproxy.Dial(ctx, s.socket, haproxy.ClientOptions{ReadOnly: true})
	if err != nil {
		return nil, err
	}
	defer c.Close()
	id := c.Identity()
	if id.Stopping {
		return nil, errReplaced
	}
	state, err := c.State(ctx)
	if err == nil && id != s.identity {
		s.log.WithFields(logrus.Fields{"pid": id.Pid, "version": id.Version, "path": s.socket}).Info("HAProxy answers; it is read, and nothing of it is changed")
		s.identity = id
	}
	return state, err
}

// fileState is what a HAProxy has that was started from the file.
func (s *shadow) fileState() (haproxy.State, error) {
	text, err := os.ReadFile(s.file)
	if err != nil {
		return nil, fmt.Errorf("read HAProxy's file: %w", err)
	}
	return haproxy.ServersOfText(text), nil
}

// note publishes how HAProxy was found, and logs the changes of whether it answers.
func (s *shadow) note(w *wanted, state haproxy.State, err error) {
	old := s.status.Load()
	st := &haproxyStatus{
		Socket: s.socket, Connected: err == nil, Since: old.Since, Pid: s.identity.Pid, Version: s.identity.Version,
		Rounds: old.Rounds + 1, Backends: map[string]counts{}, reached: w,
	}
	if st.Connected != old.Connected {
		st.Since = time.Now()
	}
	log := s.log.WithField("path", s.target())
	switch {
	case err != nil:
		st.Error = err.Error()
		if !s.warned && !errors.Is(err, errReplaced) {
			s.warned = true
			log.WithField("err", err).Warn("HAProxy does not answer; it is asked again")
		}
	case s.warned:
		s.warned = false
		log.Info("HAProxy answers again")
	}
	held := false
	for name, b := range w.backends {
		if servers, there := state[name]; there && err == nil {
			st.Backends[name] = countServers(servers)
			if b.holds {
				if st.sights == nil {
					st.sights = map[string]sight{}
				}
				st.sights[name], held = sightOf(servers), true
			}
		}
	}
	s.status.Store(st)
	if held {
		s.sighted()
	}
}

// compare is what would have to change in each backend.
func (s *shadow) compare(w *wanted, state haproxy.State) []comparison {
	var out []comparison
	for _, name := range w.names() {
		b := w.backends[name]
		found, there := state[name]
		c := comparison{backend: name, service: b.service}
		switch {
		case b.gone:
			continue // of a Myelin that was here before; the comparison of the file tells of it
		case !b.known:
			c.unknown = "no instance is known of, so that HAProxy would keep what it has"
		case b.stale:
			c.unknown = "nothing heard from the registry yet; the set kept on disk is not compared"
		case !there:
			c.absent = true
		default:
			c.plan = haproxy.Compare(found, b.servers, haproxy.Comparison{Backend: name, Drains: b.drain > 0, Theirs: s.theirs(b)})
		}
		out = append(out, c)
	}
	return out
}

// theirs tells which servers Myelin would leave alone: those that the configuration's own lines have, those whose host
// names do not resolve at present, and in a file of others all that it did not make.
func (s *shadow) theirs(b wantedBackend) func(*haproxy.Server) bool {
	unresolved := b.unresolved()
	return func(f *haproxy.Server) bool {
		base, _ := haproxy.Generation(f.Name)
		return slices.Contains(b.foreign, f.Name) || slices.Contains(unresolved, base) ||
			s.attached && !haproxy.Made(*f) && !haproxy.IsSlot(*f)
	}
}

// compareFile compares the file that would be written with the one that is there, when either is another one.
func (s *shadow) compareFile(w *wanted) {
	var stamp fileStamp
	info, err := os.Stat(s.file)
	if err == nil {
		stamp = fileStamp{info.ModTime(), info.Size()}
	}
	if s.compared.wanted == w && s.compared.stamp == stamp && err == nil {
		return
	}
	var differences []string
	text, err := os.ReadFile(s.file)
	switch {
	case errors.Is(err, fs.ErrNotExist):
		differences, err = []string{"it is not there, and would be written"}, nil
	case err == nil:
		differences = haproxy.CompareFiles(text, w.file.Render(w.forFile(newQuarantine(), s.ladder)))
		s.compared.wanted, s.compared.stamp = w, stamp
	}
	s.book.takeFile(s.file, differences, err, s.log)
}

// shadowed names what this configuration has compared.
func (g *generation) shadowed() (targets []string, file string) {
	for _, s := range g.shadows {
		targets = append(targets, s.target())
		if s.static {
			file = s.file
		}
	}
	return targets, file
}
