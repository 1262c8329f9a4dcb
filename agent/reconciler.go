package agent

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"maps"
	"math/rand/v2"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"github.com/sirupsen/logrus"

	"github.com/myelin-sd/myelin/haproxy"
	"github.com/myelin-sd/myelin/journal"
)

// Pacing of the reconciler. They are the field's usual values, not promises.
const (
	identityEvery = 500 * time.Millisecond // a restart or reload by others is seen at the latest after this
	auditEvery    = 30 * time.Second       // the whole state is read and compared
	warmFor       = 2 * time.Second        // a connection of this age may still be used
	retryLeast    = 5 * time.Millisecond
	retryMost     = time.Second
	socketTimeout = 10 * time.Second // connecting and reading; a stuck HAProxy must not stop the next try
	startPatience = 2 * time.Second  // a HAProxy that is being started is not reported as missing

	// The first change after quiet is applied at once. Behind a round is a pause of roundPause times its length, in
	// which changes gather: under a storm HAProxy, and this host, spend a fifth of the time on it.
	roundPause     = 4
	mostRoundPause = 250 * time.Millisecond
	// stepsARound bounds a round. What is left of a large fill is done in the next one, so that a change of another
	// service does not wait for all of it.
	stepsARound = 2000
)

// reconciler brings one HAProxy to what is wanted. It is the only user of that HAProxy's admin socket in this
// process. It decides nothing: it takes the real state, asks haproxy.Diff for the plan, and applies it.
//
// The real state is read at the start, from every new process, after every error, and as an audit. Between these, a
// change is applied against what HAProxy confirmed, command by command, from a process that is known to be the one that
// serves: a join among ten thousand servers costs what it costs among ten.
type reconciler struct {
	socket  string
	wanted  func() *wanted
	wake    <-chan struct{} // capacity one: wanted changed
	suspect <-chan struct{} // capacity one: HAProxy may be another process now
	grace   time.Duration   // between maint and delete; 0: by version

	attached bool    // others write HAProxy's file, see attach.go
	before   *memory // of the configuration before; nil: none

	reload   func(reason string)
	withdraw func(reason string) bool                // nil: others may need the same reload
	loaded   func(socket, static string, found bool) // tells what the running process was started with
	log      logrus.FieldLogger
	metrics  *Metrics
	journal  journal.Recorder // nil: nobody is told

	// dumps is held for reading by those who read many servers over connections of their own, and for writing while
	// servers are deleted: HAProxy 2.6.12 crashes when both happen at a time, and so did later versions.
	dumps sync.RWMutex

	client *haproxy.Client // the young connection for the next round; nil: none
	dialed time.Time

	forceAfter time.Duration // sessions on a retired server are ended then; 0: never

	sighted func() // somebody is to look at what HAProxy's checks say of held servers

	manualFor  time.Duration // how long manual changes are respected
	manualFile string        // where they are kept; empty: nowhere

	quarantine *quarantine
	ladder     *ladder
	again      func() // has everybody look at wanted again

	// The reconciler's own, touched only by its goroutine.
	identity haproxy.Identity
	caps     haproxy.Capabilities
	mine     map[haproxy.Key]bool        // servers that are ours whatever their ids
	absent   []string                    // backends that the file of others lacks, sorted
	done     map[string]uint64           // revision of each backend that HAProxy has confirmed
	actual   haproxy.State               // as read, and as confirmed since
	settled  map[string][]haproxy.Server // what was wanted when done was noted
	fresh    map[string]bool             // backends that were read in this round
	earlier  map[haproxy.Key]bool        // servers that the process had when it was met, in backends whose set is from disk
	manual   map[haproxy.Key]manual      // what somebody else has changed, and is respected
	unsure   map[haproxy.Key]attempt     // what may be done without our knowing
	overrode map[haproxy.Key]bool        // of those, the ones that an override took out of rotation since
	told     map[string]uint64           // revision whose way to HAProxy was measured; outlives HAProxy's process
	applied  map[haproxy.Key]haproxy.Applied
	differ   haproxy.Differ
	retired  map[haproxy.Key]retirement
	draining map[haproxy.Key]draining
	gated    map[string]gate      // backends with servers that wait for their first good check
	looked   map[string]time.Time // when the checks of backends with held servers were looked at last
	sweepAt  time.Time            // not before this, servers are deleted
	paced    time.Time            // not before this, changes are applied
	onDisk   func() haproxy.State // servers of the file, to know the options of those that run already
	found    haproxy.State        // servers of the file as it was before began: what an older process runs with
	began    time.Time
	unfit    map[string]string
	late     map[string]bool      // backends of this round whose adds wait for a reload
	rested   map[haproxy.Key]bool // slots that may get another address in this round
	over     map[haproxy.Key]bool // servers that have drained when this round was planned
	cut      map[string]bool      // backends of this round with steps that are left for the next one
	shut     map[string]bool      // backends that are to be published
	refused  map[string]string    // backends that HAProxy did not make, or take away, and why
	bad      bool                 // the last round had refusals: the next one leaves nothing for later, to get past them
	owed     map[string]string    // reasons of the reloads that were asked for since the process was met, by backend
	asked    map[string]uint64    // revision of each backend that a reload was asked for; none once it has what it needs
	advised  []string             // warnings about its version that were logged last
	warned   bool                 // it was said that HAProxy does not answer

	manualKept  map[haproxy.Key]manual // what the disk has of them
	refusedLast string                 // the refusals that the history was told of last; empty: of none since all worked

	status atomic.Pointer[haproxyStatus]
	beat   atomic.Int64 // when the loop last went round, in nanoseconds since 1970
}

// haproxyStatus is what the reconciler knows of its HAProxy, for the status page.
type haproxyStatus struct {
	Socket    string            `json:"socket"`
	Connected bool              `json:"connected"`
	Since     time.Time         `json:"since"` // of Connected
	Error     string            `json:"error,omitempty"`
	Pid       int               `json:"pid,omitempty"`
	Version   string            `json:"version,omitempty"`
	Warnings  []string          `json:"warnings,omitempty"` // what is known to be wrong with this version
	Processes int               `json:"processes"`          // how many were seen since the start
	Rounds    uint64            `json:"rounds"`
	Failed    []string          `json:"failed_commands,omitempty"` // of the last round
	Unfit     map[string]string `json:"needs_reload,omitempty"`    // backends that cannot be changed at run time, and why
	Absent    []string          `json:"absent_backends,omitempty"` // those that the file of others lacks
	Backends  map[string]counts `json:"backends"`
	Manual    []ManualChange    `json:"manual_changes,omitempty"` // servers that somebody else has changed, and that are left so
	Applied   bool              `json:"applied"`                  // everything wanted and known has been confirmed

	sights map[string]sight // what its checks say, of backends with held servers; never changed

	confirmed map[string]uint64 // revisions of the backends with overrides; never changed

	reached *wanted // what the last round looked at: Applied says nothing of a younger one
}

type counts struct {
	Ready int `json:"ready"`
	Drain int `json:"drain"`
	Maint int `json:"maint"`
	Up    int `json:"up"`
	Gated int `json:"gated,omitempty"` // of those not ready: they wait for HAProxy's first good check
}

// run blocks until ctx is done. HAProxy stays as it is.
func (r *reconciler) run(ctx context.Context) {
	r.done, r.told = map[string]uint64{}, map[string]uint64{}
	r.actual = haproxy.State{}
	r.settled, r.fresh = map[string][]haproxy.Server{}, map[string]bool{}
	r.applied = map[haproxy.Key]haproxy.Applied{}
	r.retired, r.draining = map[haproxy.Key]retirement{}, map[haproxy.Key]draining{}
	r.gated, r.looked = map[string]gate{}, map[string]time.Time{}
	r.unfit = map[string]string{}
	r.setStatus(func(s *haproxyStatus) { s.Since = time.Now() })
	defer r.drop()

	look := time.NewTimer(identityEvery)
	defer look.Stop()
	audit := time.NewTicker(auditEvery)
	defer audit.Stop()
	retry := newAlarm()
	defer retry.timer.Stop()
	retry.by(time.Now()) // the first round
	backoff := retryLeast
	var alert time.Time // when there was a sign that the process is being replaced

	full := true
	for {
		r.beat.Store(time.Now().UnixNano())
		var err error
		select {
		case <-ctx.Done():
			return
		case <-r.suspect:
			// A HAProxy is being replaced, or was found. The new process is filled within milliseconds of its start.
			alert = time.Now()
			if full { // a retry is due, perhaps in a second
				backoff = retryLeast
				retry.by(alert)
				continue
			}
			look.Reset(0)
			continue
		case <-look.C:
			if full {
				look.Reset(identityEvery)
				continue // a retry is due
			}
			before := r.identity
			if err = r.look(ctx); r.identity != before {
				alert = time.Time{}
			}
			// Often at first, then less and less: most reloads take milliseconds, those of large files seconds.
			look.Reset(min(max(retryLeast, time.Since(alert)/10), identityEvery))
		case <-r.wake:
			if time.Until(r.paced) > 0 {
				retry.by(r.paced)
				continue
			}
			err = r.round(ctx, full)
		case <-retry.timer.C:
			retry.at = time.Time{}
			err = r.round(ctx, full)
		case <-audit.C:
			full = true
			err = r.round(ctx, full)
		}
		r.note(ctx, err)
		if ctx.Err() != nil {
			return
		}
		full = err != nil
		switch {
		case err != nil:
			r.drop()
			retry.by(time.Now().Add(backoff/2 + rand.N(backoff/2)))
			backoff = min(backoff*2, retryMost)
		default:
			backoff = retryLeast
			if next, ok := r.nextTask(); ok {
				retry.by(next)
			}
		}
	}
}

// alarm is a timer that rings at the earliest of the times it was told since it rang last.
type alarm struct {
	timer *time.Timer
	at    time.Time // zero: none
}

func newAlarm() *alarm {
	a := &alarm{timer: time.NewTimer(time.Hour)}
	a.timer.Stop()
	return a
}

func (a *alarm) by(t time.Time) {
	if a.at.IsZero() || t.Before(a.at) {
		a.at = t
		a.timer.Reset(time.Until(t))
	}
}

// errRefused says that HAProxy did not do all that it was told. What worked, worked.
var errRefused = errors.New("HAProxy refused commands")

// round compares HAProxy's state with what is wanted, and applies the difference. full reads and looks at every
// backend, otherwise only those are looked at whose wanted state changed since they were confirmed, and those that time
// has a part in. When none is, servers that left long ago are deleted.
func (r *reconciler) round(ctx context.Context, full bool) error {
	began := time.Now()
	w := r.wanted()
	due := r.due(w, full)
	if len(due) == 0 && !full {
		r.setStatus(func(s *haproxyStatus) { s.reached = w })
		return r.sweep(ctx, w)
	}
	c, err := r.warm(ctx)
	if err != nil {
		return err
	}
	met := r.met(ctx, c, w)
	if met {
		due = w.names()
		full = true
	}
	if err := r.read(ctx, c, w, due, full); err != nil {
		return err
	}
	r.sight(w, due)
	if met {
		r.inherit(w, r.actual)
		r.checkManual()
	}
	r.endManual(w, time.Now())
	defer r.keepManual()
	r.noteAbsent(w, due)
	if c, err = r.rest(ctx, c, w, due); err != nil {
		return err
	}
	plan := r.share(r.plan(r.actual, w, due))
	results, err := r.occupy(ctx, c, w, c.Apply(ctx, plan))
	if err != nil {
		r.settle(w, nil, results) // what was done in other backends is done
		return err
	}
	r.metrics.round(time.Since(began), results)
	failed := r.settle(w, due, results)
	r.bad = len(failed) > 0
	r.tellSlots(due)
	r.publish(w, due, failed)
	r.paced = time.Now().Add(min(roundPause*time.Since(began), mostRoundPause))
	if len(plan) > 0 {
		// What was sent down this connection counts only if the process behind it is still the one that serves.
		if err := r.same(ctx); err != nil {
			return err
		}
	}
	if len(failed) > 0 {
		return fmt.Errorf("apply plan: %w: %s", errRefused, failed[0])
	}
	return nil
}

// publish tells what a round found and did.
func (r *reconciler) publish(w *wanted, due, failed []string) {
	r.setStatus(func(s *haproxyStatus) {
		s.Rounds++
		s.Failed = failed
		s.Unfit = r.needsReload(w)
		s.confirmed = r.confirmed(w)
		s.Manual = r.manualStatus()
		s.Applied = len(failed) == 0 && len(r.due(r.wanted(), false)) == 0
		s.reached = w
		for _, name := range due {
			if servers, ok := r.actual[name]; ok {
				n := countServers(servers)
				n.Gated = len(r.gated[name].servers)
				s.Backends[name] = n
				continue
			}
			delete(s.Backends, name)
			if b := w.backends[name]; b.known && !b.gone && !r.attached { // see noteAbsent
				s.Unfit[name] = "HAProxy has no such backend"
			}
		}
	})
}

// confirmed are the revisions of the backends with overrides that HAProxy has confirmed.
func (r *reconciler) confirmed(w *wanted) map[string]uint64 {
	var out map[string]uint64
	for name, b := range w.backends {
		if rev, done := r.done[name]; done && len(b.overrides) > 0 {
			if out == nil {
				out = map[string]uint64{}
			}
			out[name] = rev
		}
	}
	return out
}

// due names the backends that a round must look at: those that changed since HAProxy confirmed them, and those that
// time has a part in.
func (r *reconciler) due(w *wanted, full bool) []string {
	now := time.Now()
	timed := map[string]bool{}
	for k := range r.drained(w, now) {
		timed[k.Backend] = timed[k.Backend] || !now.Before(r.draining[k].look)
	}
	for name, g := range r.gated {
		timed[name] = timed[name] || !now.Before(g.next)
	}
	var names []string
	for name, b := range w.backends {
		if full || r.done[name] != b.rev || timed[name] || r.emptied(b) || r.unwatched(b, now) || r.manualDue(name, now) {
			names = append(names, name)
		}
	}
	slices.Sort(names)
	return names
}

// met compares the process at the other end with the one known so far. For a new one everything confirmed so far is
// forgotten; what its servers were started with is in the file. It returns whether the process is new.
func (r *reconciler) met(ctx context.Context, c *haproxy.Client, w *wanted) bool {
	id := c.Identity()
	if id == r.identity {
		return false
	}
	fields := logrus.Fields{"pid": id.Pid, "version": id.Version}
	if r.identity.Pid == 0 {
		r.log.WithFields(fields).Info("HAProxy answers")
	} else {
		fields["previous"] = r.identity.Pid
		r.log.WithFields(fields).Info("HAProxy is another process: it was restarted or reloaded")
	}
	r.recordProcess(id)
	onDisk := r.onDisk()
	if r.identity.Pid == 0 && id.Started <= r.began.Unix() {
		onDisk = r.found // the file may have been written since
	}
	r.identity = id
	r.caps = haproxy.CapabilitiesOf(id.Version)
	r.forgive()
	clear(r.done)
	clear(r.settled)
	clear(r.retired)
	clear(r.draining)
	clear(r.gated)
	clear(r.applied)
	r.actual = haproxy.State{} // of another process
	r.recallManual(id)
	defer r.recall(id) // behind the file: what was confirmed last counts
	if r.quarantine.clear() {
		r.again()
	}
	for name, servers := range onDisk {
		for _, s := range servers {
			if !w.backends[name].cookies {
				s.Cookie = "" // Synapse writes one always; without a cookie directive it does nothing
			}
			r.applied[haproxy.Key{Backend: name, Server: s.Name}] = s.Applied()
		}
	}
	if static, found, err := c.Env(ctx, haproxy.StaticVariable); err == nil {
		r.loaded(r.socket, static, found)
	} else {
		r.identity = haproxy.Identity{} // not met yet: the next round asks again
	}
	if err := r.inspect(ctx, c, w); err != nil {
		r.identity = haproxy.Identity{}
	}
	clear(r.unfit)
	warnings := r.advise(w)
	for name, b := range w.backends {
		wanted := []haproxy.Server{b.everyServer()} // the file's servers of an unknown service are not what will be added
		if b.known {
			wanted = slices.Concat(wanted, b.servers)
		}
		if why := haproxy.RuntimeUnfit(b.lines, b.defaultsLines, wanted, r.caps); why != "" {
			r.unfit[name] = why
		}
	}
	r.setStatus(func(s *haproxyStatus) {
		s.Pid, s.Version, s.Warnings = id.Pid, id.Version, warnings
		s.Processes++
		clear(s.Backends)
	})
	return true
}

// read brings what is known of HAProxy's servers up to date: all of it, or the due backends that nothing is known of,
// and those whose checks are waited for or watched.
func (r *reconciler) read(ctx context.Context, c *haproxy.Client, w *wanted, due []string, full bool) error {
	ctx, cancel := context.WithTimeout(ctx, socketTimeout)
	defer cancel()
	clear(r.fresh)
	if full {
		state, err := c.State(ctx)
		if err != nil {
			return err
		}
		before := r.actual
		r.actual = state
		for _, name := range due {
			r.recogniseManual(w, name, before[name], state[name], time.Now())
			r.fresh[name] = true
			r.observe(name, time.Now())
		}
		return nil
	}
	var unknown []string
	for _, name := range due {
		_, known := r.actual[name]
		if _, gated := r.gated[name]; !known || gated || r.unwatched(w.backends[name], time.Now()) {
			unknown = append(unknown, name)
		}
	}
	return r.rereadBy(ctx, c, w, unknown)
}

// rereadBy is reread where all that HAProxy was told is known: what is different is somebody else's doing.
func (r *reconciler) rereadBy(ctx context.Context, c *haproxy.Client, w *wanted, names []string) error {
	before := make(haproxy.State, len(names))
	for _, name := range names {
		before[name] = r.actual[name]
	}
	if err := r.reread(ctx, c, names); err != nil {
		return err
	}
	for _, name := range names {
		r.recogniseManual(w, name, before[name], r.actual[name], time.Now())
	}
	return nil
}

// reread reads some backends again.
func (r *reconciler) reread(ctx context.Context, c *haproxy.Client, names []string) error {
	state, err := c.StateOf(ctx, names...)
	if err != nil {
		return err
	}
	for _, name := range names {
		r.fresh[name] = true
		if servers, there := state[name]; there {
			r.actual[name] = servers
		} else {
			delete(r.actual, name)
		}
		r.observe(name, time.Now())
	}
	return nil
}

// plan is what is to be done: backends, then servers.
func (r *reconciler) plan(actual haproxy.State, w *wanted, due []string) haproxy.Plan {
	backends, rest := r.planBackends(actual, w, due)
	return append(backends, r.planServers(actual, w, rest)...)
}

// planServers is Diff's plan, less the adds that HAProxy cannot do at run time: they need a reload, which is asked for.
func (r *reconciler) planServers(actual haproxy.State, w *wanted, due []string) haproxy.Plan {
	desired := w.state(due, r.quarantine)
	r.recognise(actual, desired)
	if missing := r.unasked(w, haproxy.Missing(actual, desired)); len(missing) > 0 {
		r.ask(missing[0], "HAProxy has no backend "+missing[0])
	}
	now := time.Now()
	view := haproxy.View{
		Caps: r.caps, Foreign: foreign(w, actual, due), Applied: r.applied, Whole: actual,
		Drain: map[string]bool{}, Drained: r.drained(w, now), Gate: map[string]bool{},
		Attached: r.attached, Mine: r.mine, Manual: r.manualKeys(),
	}
	for k := range view.Drained {
		delete(r.settled, k.Backend) // time changed it, not what is wanted
	}
	for _, name := range due {
		view.Drain[name] = w.backends[name].drain > 0
		view.Gate[name] = w.backends[name].gate
	}
	slotted := r.slotBackends(w, desired)
	r.over = view.Drained
	found := make(haproxy.State, len(desired))
	for name, servers := range desired {
		there, exists := actual[name]
		if !exists {
			continue
		}
		if w.backends[name].stale {
			found[name], desired[name] = r.additions(w.backends[name], there, servers)
			continue
		}
		if before, confirmed := r.settled[name]; confirmed && !r.fresh[name] {
			found[name], desired[name] = narrow(there, servers, before)
		} else {
			found[name] = there
		}
	}
	diff := r.differ.Diff(found, desired, view)
	for k := range view.Drained {
		t := r.draining[k]
		t.look = now.Add(w.backends[k.Backend].drain) // of one that goes on draining: because it is wanted, say
		r.draining[k] = t
	}
	r.await(due, r.differ.Waiting(), now)
	r.late = map[string]bool{} // until the reload nothing is taken from them
	for _, step := range diff {
		if step.Op != haproxy.StepAdd || r.late[step.Backend] {
			continue
		}
		if r.unfit[step.Backend] == "" { // what its servers ask for was not known when the process was met
			b := w.backends[step.Backend]
			if why := haproxy.RuntimeUnfit(b.lines, b.defaultsLines, []haproxy.Server{step.Server}, r.caps); why != "" {
				r.unfit[step.Backend] = why
				return r.planServers(actual, w, due) // from another rung of the ladder
			}
		}
		if f := r.ladder.of(step.Backend); f.rung == haproxy.RungReload {
			r.late[step.Backend] = true
			r.needReload(w, step.Backend, f.why)
		}
	}
	plan := slices.DeleteFunc(diff, func(s haproxy.Step) bool { return r.late[s.Backend] && !s.Wanted && s.Op != haproxy.StepWeight })
	return append(plan, r.planSlots(w, actual, slotted)...)
}

// share is a round's share of a plan, in its order: all of the backends with few steps, and of the others what comes
// first. It notes the backends that something is left of.
func (r *reconciler) share(plan haproxy.Plan) haproxy.Plan {
	r.cut = map[string]bool{}
	if len(plan) <= stepsARound || r.bad {
		return plan
	}
	steps := map[string]int{}
	for _, s := range plan {
		steps[s.Backend]++
	}
	names := slices.SortedFunc(maps.Keys(steps), func(a, b string) int { return cmp.Or(steps[a]-steps[b], cmp.Compare(a, b)) })
	room := stepsARound
	for _, name := range names {
		if steps[name] > room {
			break
		}
		room -= steps[name]
		delete(steps, name) // it is done whole
	}
	var now haproxy.Plan
	for _, s := range plan {
		switch _, large := steps[s.Backend]; {
		case large && room == 0:
			r.cut[s.Backend] = true
			continue
		case large:
			room--
		}
		now = append(now, s)
	}
	return now
}

// inherit notes what a process that was just met has of the backends whose sets are from disk.
func (r *reconciler) inherit(w *wanted, actual haproxy.State) {
	r.earlier, r.overrode = map[haproxy.Key]bool{}, map[haproxy.Key]bool{}
	for name, servers := range actual {
		if !w.backends[name].stale {
			continue
		}
		for _, s := range servers {
			base, _ := haproxy.Generation(s.Name)
			r.earlier[haproxy.Key{Backend: name, Server: base}] = true
			if haproxy.IsSlot(s) {
				r.earlier[atAddr(name, s)] = true
			}
		}
	}
}

// additions narrows a backend whose set is from disk to the servers that its HAProxy did not have when it was met, and
// those that overrides concern. Those that it had are as the agent before left them, perhaps a little after it saved the
// set: one in maintenance has left, one that is not in the set has joined. Only the registry can tell, so they stay as
// they are.
func (r *reconciler) additions(b wantedBackend, found, wanted []haproxy.Server) (foundPart, wantedPart []haproxy.Server) {
	earlier := func(s haproxy.Server) bool { return r.stays(b, s) }
	foundPart = slices.DeleteFunc(slices.Clone(found), earlier)
	return foundPart, r.bent(b, slices.DeleteFunc(slices.Clone(wanted), earlier), foundPart)
}

// stays tells whether a server that HAProxy had when it was met stays as it is, because its backend's set is from disk.
func (r *reconciler) stays(b wantedBackend, s haproxy.Server) bool {
	base, _ := haproxy.Generation(s.Name)
	k := haproxy.Key{Backend: b.name, Server: base}
	if b.overrides[base] != nil || r.overrode[k] {
		return false
	}
	return r.earlier[k]
}

// bent are the wanted servers of a backend whose set is from disk, with the state that HAProxy has where an override is
// about the weight alone. It notes which ones overrides concern: they are put back when the override ends.
func (r *reconciler) bent(b wantedBackend, wanted, found []haproxy.Server) []haproxy.Server {
	for i := range wanted {
		w := &wanted[i]
		k := haproxy.Key{Backend: b.name, Server: w.Name}
		if b.overrides[w.Name] == nil {
			continue
		}
		if w.Admin != haproxy.Ready {
			r.overrode[k] = true
			continue
		}
		if r.overrode[k] || !r.earlier[k] && !r.earlier[atAddr(b.name, *w)] {
			continue
		}
		for _, s := range found {
			if base, _ := haproxy.Generation(s.Name); base == w.Name || haproxy.IsSlot(s) && s.Addr == w.Addr {
				w.Admin = s.Admin
			}
		}
	}
	return wanted
}

// foreign are the servers of some backends that stay as they are: those that people wrote, and those whose host names
// do not resolve, of whatever generation.
func foreign(w *wanted, actual haproxy.State, due []string) map[haproxy.Key]bool {
	out := map[haproxy.Key]bool{}
	for _, name := range due {
		for _, s := range w.backends[name].foreign {
			out[haproxy.Key{Backend: name, Server: s}] = true
		}
		unresolved := w.backends[name].unresolved()
		if len(unresolved) == 0 {
			continue
		}
		for _, s := range actual[name] {
			if base, _ := haproxy.Generation(s.Name); slices.Contains(unresolved, base) {
				out[haproxy.Key{Backend: name, Server: s.Name}] = true
			}
		}
	}
	return out
}

// note publishes how the last try went, and logs only the changes of that.
func (r *reconciler) note(ctx context.Context, err error) {
	if ctx.Err() != nil || errors.Is(err, errReplaced) {
		return
	}
	old := r.status.Load()
	connected := err == nil || errors.Is(err, errRefused)
	switch {
	case connected && r.warned:
		r.log.WithField("duration", time.Since(old.Since).Round(time.Millisecond)).Info("HAProxy answers again")
		r.tell(journal.Event{Kind: journal.KindHAProxy, What: "HAProxy at " + r.socket + " answers again"})
	case !connected && !r.warned && (old.Connected || time.Since(old.Since) > startPatience):
		r.log.WithField("err", err).Warn("HAProxy does not answer; it is tried again, and found as it is")
		r.tell(journal.Event{Kind: journal.KindHAProxy, What: "HAProxy at " + r.socket + " does not answer", Cause: err.Error()})
	}
	r.warned = !connected && (r.warned || old.Connected || time.Since(old.Since) > startPatience)
	if errors.Is(err, errRefused) && old.Error != err.Error() {
		r.log.WithField("err", err).Warn("HAProxy refused a command; the rest was applied, and it is tried again")
	}
	r.setStatus(func(s *haproxyStatus) {
		if s.Connected != connected {
			s.Connected, s.Since = connected, time.Now()
		}
		s.Error = ""
		if err != nil {
			s.Error = err.Error()
			s.Applied = false
		}
	})
}

// setStatus publishes a changed copy.
func (r *reconciler) setStatus(edit func(*haproxyStatus)) {
	s := haproxyStatus{Socket: r.socket}
	if old := r.status.Load(); old != nil {
		s = *old
	}
	s.Backends = maps.Clone(s.Backends)
	if s.Backends == nil {
		s.Backends = map[string]counts{}
	}
	edit(&s)
	r.status.Store(&s)
}

func countServers(servers []haproxy.Server) counts {
	var c counts
	for _, s := range servers {
		if haproxy.EmptySlot(s) {
			continue
		}
		switch s.Admin {
		case haproxy.Ready:
			c.Ready++
			if s.Op == haproxy.OpRunning || s.Op == haproxy.OpStarting {
				c.Up++
			}
		case haproxy.Drain:
			c.Drain++
		case haproxy.Maint:
			c.Maint++
		}
	}
	return c
}
