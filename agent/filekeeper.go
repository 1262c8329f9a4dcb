package agent

import (
	"bytes"
	"context"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync"
	"time"

	"github.com/sirupsen/logrus"

	"github.com/myelin-sd/myelin/config"
	"github.com/myelin-sd/myelin/haproxy"
	"github.com/myelin-sd/myelin/journal"
)

const (
	// The file is written at once after quiet. Under steady change a pause of ten times the last write's length keeps the
	// disk for others; the socket, which carries the traffic's fate, never waits for it.
	writeShare     = 10
	leastGap       = 250 * time.Millisecond
	mostGap        = time.Second
	writeRetry     = 5 * time.Second
	commandTimeout = time.Minute // check_command and reload_command
)

// filekeeper keeps haproxy.cfg in step with what is wanted, so that a restart or reload by anyone loses nothing, and
// asks for the reloads that only a changed static part needs.
type filekeeper struct {
	path     string
	wanted   func() *wanted
	wake     <-chan struct{} // capacity one: wanted changed
	log      logrus.FieldLogger
	journal  journal.Recorder
	writes   bool // do_writes
	reloads  bool // do_reloads
	sockets  bool // do_socket: off means that only reloads carry membership
	plain    *haproxy.Writer
	checked  *haproxy.Writer
	reloader *haproxy.Reloader   // nil: nobody can reload
	process  *haproxy.Process    // nil: somebody else runs HAProxy
	operated []*haproxy.Operated // by admin socket; empty: their masters are not known

	quarantine *quarantine
	ladder     *ladder

	mu         sync.Mutex
	original   []byte // as found at the start
	onDisk     haproxy.State
	diskStatic string            // digest of the static part on disk; empty: no file
	running    map[string]string // digest each HAProxy was started with, by socket
	asked      string            // the digest that a reload was last asked for
	written    *wanted           // what the file was last brought up to
	climbed    uint64            // and the ladder's revision
	due        []string          // reasons for a reload that waits for the file
	begun      bool              // the file was written, or found right, once
	seen       map[string]bool   // options of servers that were in a written file, by optionsKey
	err        string
	wrote      time.Time
	took       time.Duration // the last write
	unmet      string        // a reload that is needed and that nobody does
	wanting    string        // one that a backend needs and that nobody does
}

// fileStatus is the file's part of a Status.
type fileStatus struct {
	Path    string                `json:"path,omitempty"`
	Written time.Time             `json:"written,omitzero"`
	Error   string                `json:"error,omitempty"`
	Pending string                `json:"pending,omitempty"` // the reason of a reload that is due
	Reload  *haproxy.ReloadStatus `json:"reload,omitempty"`
}

func newFilekeeper(c *config.Agent, w func() *wanted, wake <-chan struct{}, original []byte, o Options) *filekeeper {
	h := c.HAProxy
	log := o.Log.WithField("component", "haproxy")
	k := &filekeeper{
		path: h.ConfigFilePath, wanted: w, wake: wake, log: log, journal: journal.Nowhere{},
		writes: h.DoWrites && h.ConfigFilePath != "", reloads: h.DoReloads, sockets: h.DoSocket,
		quarantine: newQuarantine(),
		original:   original, onDisk: haproxy.ServersOfText(original),
		running: map[string]string{},
	}
	if o.Journal != nil {
		k.journal = o.Journal
	}
	k.ladder = newLadder(w(), k.onDisk)
	k.try(k.onDisk)
	if len(original) > 0 {
		k.diskStatic = haproxy.StaticOfText(original)
	}
	var check haproxy.Check
	switch {
	case h.DoChecks && h.CheckCommand != "":
		check = haproxy.CheckCommand(h.CheckCommand, commandTimeout)
	case h.Run:
		check = haproxy.CheckWith(h.Binary, commandTimeout)
	case !h.NoChecks && h.Binary != "":
		check = checkLike(h)
	}
	k.plain = haproxy.NewWriter(h.ConfigFilePath, h.CandidateConfigFilePath, nil)
	k.checked = haproxy.NewWriter(h.ConfigFilePath, h.CandidateConfigFilePath, check)
	if h.DoChecks {
		k.plain = k.checked // the operator wants every file checked, not only a changed static part
	}

	var reload, again func(context.Context) error
	if h.Run {
		k.process = haproxy.NewProcess(processOptions(c, log))
		reload = k.process.Reload
	} else {
		k.operated = operatedBy(h, log)
		reload, again = reloadOf(h, k.operated)
	}
	if k.reloads = k.reloads && reload != nil; k.reloads {
		k.reloader = haproxy.NewReloader(haproxy.ReloaderOptions{
			Reload: reload, Again: again, Interval: h.RestartInterval, Jitter: h.RestartJitter, Log: log,
			Done: recordReload(k.journal),
		})
	}
	return k
}

// processOptions places HAProxy's own files beside its configuration.
func processOptions(c *config.Agent, log logrus.FieldLogger) haproxy.ProcessOptions {
	dir := filepath.Dir(c.HAProxy.ConfigFilePath)
	return haproxy.ProcessOptions{
		Binary: c.HAProxy.Binary, ConfigPath: c.HAProxy.ConfigFilePath,
		PidPath: filepath.Join(dir, "haproxy.pid"), MasterSocket: filepath.Join(dir, "haproxy-master.sock"),
		AdminSocket: c.HAProxy.SocketFilePaths[0], LogPath: filepath.Join(dir, "haproxy.log"), Log: log,
	}
}

// first writes the file before anything else runs.
func (k *filekeeper) first(ctx context.Context) { k.write(ctx) }

// run writes the file and has HAProxy reloaded as needed, until ctx is done.
func (k *filekeeper) run(ctx context.Context) {
	var reloading sync.WaitGroup
	defer reloading.Wait()
	if k.reloader != nil {
		reloading.Go(func() { k.reloader.Run(ctx) })
	}
	pause := time.NewTimer(0)
	defer pause.Stop()
	// The file is left in step with the socket.
	defer func() {
		if !k.inStep() {
			k.write(context.WithoutCancel(ctx))
		}
	}()
	for {
		select {
		case <-ctx.Done():
			return
		case <-pause.C:
		}
		if !k.write(ctx) {
			pause.Reset(writeRetry)
			continue
		}
		select {
		case <-ctx.Done():
			return
		case <-k.wake:
			pause.Reset(max(0, time.Until(k.nextWrite())))
		}
	}
}

// What follows keeps the option words that a written file has had: HAProxy, or the operator's check, has seen them.
// Words that nobody has seen, of a registration or of the configuration, are checked before they stand in the file.

func optionsKey(backend string, s haproxy.Server) string {
	return backend + "\x00" + strings.Join(s.Options, " ") + "\x00" + strconv.FormatBool(s.Cookie != "")
}

// both joins two sentences, either of which may be empty.
func both(a, b string) string {
	if a == "" || b == "" {
		return a + b
	}
	return a + "; " + b
}

// try notes the options of servers as seen, and forgets those of no server.
func (k *filekeeper) try(servers haproxy.State) {
	seen := make(map[string]bool, len(k.seen))
	for name, list := range servers {
		for _, s := range list {
			seen[optionsKey(name, s)] = true
		}
	}
	k.seen = seen
}

// isNew tells whether s has options that were not seen. A server without any has nothing that could be refused.
func (k *filekeeper) isNew(backend string, s haproxy.Server) bool {
	return (len(s.Options) > 0 || s.Cookie != "") && !k.seen[optionsKey(backend, s)]
}

// untried tells whether a server has options that were not seen.
func (k *filekeeper) untried(servers haproxy.State) bool {
	for name, list := range servers {
		for _, s := range list {
			if k.isNew(name, s) {
				return true
			}
		}
	}
	return false
}

// tried is servers with those of unseen options as the file had them, or without them.
func (k *filekeeper) tried(servers haproxy.State) haproxy.State {
	out := make(haproxy.State, len(servers))
	for name, list := range servers {
		out[name] = nil
		for _, s := range list {
			if k.isNew(name, s) {
				i := slices.IndexFunc(k.onDisk[name], func(old haproxy.Server) bool { return old.Name == s.Name })
				if i < 0 {
					continue
				}
				s = k.onDisk[name][i]
			}
			out[name] = append(out[name], s)
		}
	}
	return out
}

// inStep tells whether the file holds what is wanted now.
func (k *filekeeper) inStep() bool {
	k.mu.Lock()
	defer k.mu.Unlock()
	return !k.writes || k.upTo(k.wanted())
}

// upTo tells whether the file holds w, in the form that HAProxy asks for. The caller holds mu.
func (k *filekeeper) upTo(w *wanted) bool { return k.written == w && k.climbed == k.ladder.revision() }

// nextWrite is when the file may be written again.
func (k *filekeeper) nextWrite() time.Time {
	k.mu.Lock()
	defer k.mu.Unlock()
	for name, b := range k.wanted().backends {
		if len(b.servers) > 0 && len(k.onDisk[name]) == 0 {
			return k.wrote // a backend without servers in the file cannot wait: a reload now would empty it
		}
	}
	return k.wrote.Add(min(max(leastGap, writeShare*k.took), mostGap))
}

// write brings the file up to date. A file that cannot be written, or that HAProxy refuses, leaves the old one in
// force: it is said once, shown in the status, and tried again.
func (k *filekeeper) write(ctx context.Context) bool {
	if !k.writes {
		return true
	}
	k.mu.Lock()
	w, due := k.wanted(), len(k.due)
	climbed := k.ladder.revision()
	servers := w.forFile(k.quarantine, k.ladder)
	writer := k.plain
	if k.diskStatic != w.static || k.untried(servers) {
		writer = k.checked
	}
	k.mu.Unlock()

	began := time.Now()
	changed, err := writer.Write(ctx, w.file.Render(servers))
	var left error // servers that were left out of the file, and why
	if err != nil && k.untried(servers) {
		// HAProxy may have refused the options of a server. The others are not to suffer, nor the next start.
		tried := k.tried(servers)
		if again, err2 := writer.Write(ctx, w.file.Render(tried)); err2 == nil {
			changed, left, err, servers = again, err, nil, tried
		}
	}
	if ctx.Err() != nil {
		return false
	}
	k.mu.Lock()
	before := k.err
	k.err = ""
	var reasons []string
	if err != nil {
		k.err = err.Error()
	} else {
		if left != nil {
			k.err = "servers with new options are left out: " + left.Error()
		} else {
			k.try(servers)
		}
		if w == k.wanted() && climbed == k.ladder.revision() {
			due = len(k.due)
		}
		reasons, k.due = k.due[:due:due], k.due[due:]
		k.onDisk, k.diskStatic, k.written, k.climbed = servers, w.static, w, climbed
		if changed {
			k.wrote = time.Now()
			if k.took = k.wrote.Sub(began); writer != k.plain {
				k.took = 0 // HAProxy's check of a new static part is no measure for the next write
			}
		}
	}
	now := k.err
	k.mu.Unlock()
	switch {
	case left != nil && before != now:
		k.log.WithField("err", left).Error("haproxy.cfg leaves servers out whose options HAProxy refuses")
		k.journal.Record(journal.Event{Kind: journal.KindHAProxy, What: k.path + " leaves servers out whose options HAProxy refuses", Cause: left.Error()})
	case left != nil:
	case err != nil && before != err.Error():
		k.log.WithField("err", err).Error("haproxy.cfg is not written; servers still change through the socket")
		k.journal.Record(journal.Event{Kind: journal.KindHAProxy, What: k.path + " is not written; servers still change through the socket", Cause: err.Error()})
	case err == nil && before != "":
		k.log.WithField("path", k.path).Info("haproxy.cfg is written again")
		k.journal.Record(journal.Event{Kind: journal.KindHAProxy, What: k.path + " is written again"})
	}
	if err != nil {
		return false
	}
	if !k.sockets && (changed || !k.begun) {
		k.request("servers changed and do_socket is off") // and once at the start, as a reload may have been due
	}
	k.begun = true
	for _, reason := range reasons {
		if reason == "" {
			continue
		}
		k.request(reason)
	}
	k.compare()
	return true
}

// processLoaded tells with which static part the HAProxy at a socket was started. One without the mark was started
// from the file as it was found.
func (k *filekeeper) processLoaded(socket, static string, found bool) {
	k.mu.Lock()
	k.wanting = ""
	switch {
	case found:
		k.running[socket] = static
	case k.running[socket] == "" && bytes.Contains(k.original, []byte(haproxy.StaticVariable)):
		k.running[socket] = "unmarked" // the file has the mark, so this process was started from another one
	case k.running[socket] == "":
		k.running[socket] = haproxy.StaticOfText(k.original)
	default:
		k.running[socket] = k.diskStatic
	}
	k.mu.Unlock()
	k.compare()
}

// compare asks for a reload where a HAProxy runs with another static part than the file has. It asks once while that is
// wanted: a HAProxy that comes back without it reads another file, and more reloads would not change that.
func (k *filekeeper) compare() {
	k.mu.Lock()
	want, wrong, ask := k.wanted().static, "", false
	for socket, static := range k.running {
		if static != want && k.diskStatic == want {
			wrong = socket
		}
	}
	if wrong != "" {
		ask = k.asked != want
		k.asked = want
	}
	k.unmet = ""
	if wrong != "" && (!k.reloads || !ask) {
		k.unmet = "HAProxy at " + wrong + " runs with another configuration than " + k.path
	}
	k.mu.Unlock()
	if ask {
		k.request("the static part of the configuration changed")
	}
}

// needReload asks for a reload that membership alone made necessary. It waits for the file: a HAProxy that reads the
// old one would have to be reloaded again.
func (k *filekeeper) needReload(reason string) {
	k.mu.Lock()
	wait := k.writes && !k.upTo(k.wanted())
	if wait && !slices.Contains(k.due, reason) {
		k.due = append(k.due, reason)
	}
	k.mu.Unlock()
	if !wait {
		k.request(reason)
	}
}

// withdraw takes back what was asked for with needReload, and returns whether it was still to be done.
func (k *filekeeper) withdraw(reason string) bool {
	k.mu.Lock()
	i := slices.Index(k.due, reason)
	if i >= 0 {
		k.due[i] = "" // a write that is under way has counted them
	}
	k.mu.Unlock()
	return k.reloader != nil && k.reloader.Withdraw(reason) || i >= 0
}

func (k *filekeeper) request(reason string) {
	if k.reloader == nil {
		k.mu.Lock()
		k.wanting = reason
		k.mu.Unlock()
		return
	}
	k.reloader.Request(reason)
}

// servers are those of the file as it is on disk.
func (k *filekeeper) servers() haproxy.State {
	k.mu.Lock()
	defer k.mu.Unlock()
	return k.onDisk
}

func (k *filekeeper) status() fileStatus {
	k.mu.Lock()
	defer k.mu.Unlock()
	s := fileStatus{Path: k.path, Written: k.wrote, Error: k.err, Pending: both(k.unmet, k.wanting)}
	if k.reloader != nil {
		r := k.reloader.Status()
		s.Reload = &r
		if len(r.Pending) > 0 {
			s.Pending = strings.Join(r.Pending, "; ")
		}
	}
	return s
}
