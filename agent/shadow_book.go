package agent

import (
	"cmp"
	"context"
	"fmt"
	"maps"
	"slices"
	"sync"
	"time"

	"github.com/sirupsen/logrus"

	"github.com/myelin-sd/myelin/haproxy"
)

// mostSteps bounds what the status tells of one backend.
const mostSteps = 20

// opReload stands for a backend that HAProxy does not have, among the actions of steps.
const opReload = "reload"

// comparison is what one look found of one backend.
type comparison struct {
	backend, service string
	unknown          string // why it could not be compared; empty: it was
	absent           bool   // HAProxy has no such backend
	plan             haproxy.Plan
}

// shadowKey names a backend of one HAProxy.
type shadowKey struct{ target, backend string }

// differenceKey names one difference of a backend for as long as it lasts.
type differenceKey struct{ op, about string }

func keyOf(s haproxy.Step) differenceKey {
	return differenceKey{s.Op.String(), cmp.Or(s.Server.FQDN, s.Server.Addr.String())}
}

// difference is one that was found the last time.
type difference struct {
	since  time.Time // when it was first found
	lasted bool      // for longer than the grace
}

// shadowRecord is what is known of one backend. It is a value: after makes the next one.
type shadowRecord struct {
	comparison // the last one
	known      bool
	differs    bool      // something has lasted
	since      time.Time // of differs
	found      map[differenceKey]difference
	lasted     map[string]uint64 // differences that have lasted, by kind; never decreases, never changed
}

// after takes a comparison in. changed tells whether the backend has begun to differ, or to agree again.
func (r shadowRecord) after(c comparison, now time.Time, grace time.Duration) (next shadowRecord, changed bool) {
	before := r
	r.comparison = c
	if c.unknown != "" {
		return r, false // what was found before may be found again
	}
	keys := map[differenceKey]bool{}
	if c.absent {
		keys[differenceKey{op: opReload}] = true
	}
	for _, s := range c.plan {
		keys[keyOf(s)] = true
	}
	r.found, r.lasted, r.differs = make(map[differenceKey]difference, len(keys)), maps.Clone(r.lasted), false
	began := now // of the oldest that has lasted
	for k := range keys {
		d, seen := before.found[k]
		if !seen {
			d.since = now
		}
		if !d.lasted && now.Sub(d.since) >= grace {
			d.lasted = true
			if r.lasted == nil {
				r.lasted = map[string]uint64{}
			}
			r.lasted[k.op]++
		}
		if d.lasted {
			r.differs = true
			if d.since.Before(began) {
				began = d.since
			}
		}
		r.found[k] = d
	}
	changed = r.differs != before.differs
	if changed || !before.known {
		r.since = now
		if r.differs {
			r.since = began
		}
	}
	r.known = true
	return r, changed
}

// due are the steps that have lasted, and how many have not yet.
func (r shadowRecord) due() (plan haproxy.Plan, pending int) {
	for _, s := range r.plan {
		if r.found[keyOf(s)].lasted {
			plan = append(plan, s)
		}
	}
	for _, d := range r.found {
		if !d.lasted {
			pending++
		}
	}
	return plan, pending
}

// missing tells whether HAProxy has lacked the backend for longer than the grace.
func (r shadowRecord) missing() bool { return r.absent && r.found[differenceKey{op: opReload}].lasted }

// next is when the first difference that has not lasted yet will have.
func (r shadowRecord) next(grace time.Duration) (first time.Time) {
	for _, d := range r.found {
		if at := d.since.Add(grace); !d.lasted && (first.IsZero() || at.Before(first)) {
			first = at
		}
	}
	return first
}

// shadowBook keeps what a shadow has found. It outlives the configurations of a process. Its methods may be called from
// anywhere at any time.
type shadowBook struct {
	grace   time.Duration
	changed chan struct{} // capacity one: something was taken in

	mu      sync.Mutex
	records map[shadowKey]shadowRecord
	targets map[string]shadowTarget
	file    shadowFile
}

// shadowTarget is one HAProxy, or its file.
type shadowTarget struct {
	err  string // it could not be compared
	note string // what was compared in its stead
}

// shadowFile is what became of comparing haproxy.cfg.
type shadowFile struct {
	path        string
	differences []string
	since       time.Time // of whether there are any
	err         string
}

func newShadowBook(o ShadowOptions) *shadowBook {
	return &shadowBook{
		grace: cmp.Or(o.Grace, shadowGrace), changed: make(chan struct{}, 1),
		records: map[shadowKey]shadowRecord{}, targets: map[string]shadowTarget{},
	}
}

// keep forgets what is not among targets: another configuration is in force.
func (b *shadowBook) keep(targets []string, file string) {
	b.mu.Lock()
	defer b.mu.Unlock()
	maps.DeleteFunc(b.records, func(k shadowKey, _ shadowRecord) bool { return !slices.Contains(targets, k.target) })
	maps.DeleteFunc(b.targets, func(t string, _ shadowTarget) bool { return !slices.Contains(targets, t) })
	if b.file.path != file {
		b.file = shadowFile{path: file}
	}
}

// take takes in what a look at a target found, and logs where a backend begins to differ or to agree again.
func (b *shadowBook) take(target, note string, found []comparison, now time.Time, log logrus.FieldLogger) {
	b.mu.Lock()
	defer b.mu.Unlock()
	defer signal(b.changed)
	b.targets[target] = shadowTarget{note: note}
	there := map[string]bool{}
	for _, c := range found {
		there[c.backend] = true
		k := shadowKey{target, c.backend}
		old := b.records[k]
		r, changed := old.after(c, now, b.grace)
		b.records[k] = r
		if changed {
			r.tell(log.WithField("path", target), now, old.since)
		}
	}
	maps.DeleteFunc(b.records, func(k shadowKey, _ shadowRecord) bool { return k.target == target && !there[k.backend] })
}

// tell logs that the backend has begun to differ, or to agree again after it had differed since before.
func (r shadowRecord) tell(log logrus.FieldLogger, now, before time.Time) {
	log = log.WithFields(logrus.Fields{"backend": r.backend, "service": r.service})
	if !r.differs {
		log.WithField("duration", now.Sub(before).Round(time.Millisecond)).Info("HAProxy has what Myelin would have again")
		return
	}
	steps := r.steps()
	log.WithFields(logrus.Fields{"count": len(steps), "reason": brief(steps)}).Warn("HAProxy does not have what Myelin would have")
}

// lost notes that a target cannot be compared.
func (b *shadowBook) lost(target string, err error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	defer signal(b.changed)
	b.targets[target] = shadowTarget{err: err.Error()}
	for k, r := range b.records {
		if k.target == target {
			r.unknown = "HAProxy does not answer"
			b.records[k] = r
		}
	}
}

// takeFile takes in how haproxy.cfg differs.
func (b *shadowBook) takeFile(path string, differences []string, err error, log logrus.FieldLogger) {
	b.mu.Lock()
	defer b.mu.Unlock()
	defer signal(b.changed)
	old := b.file
	b.file = shadowFile{path: path, differences: differences, since: old.since}
	log = log.WithField("path", path)
	switch was, is := len(old.differences) > 0, len(differences) > 0; {
	case err != nil:
		b.file.differences, b.file.err = old.differences, err.Error()
		if old.err != b.file.err {
			log.WithField("err", err).Warn("HAProxy's file cannot be compared")
		}
	case is != was || old.since.IsZero():
		b.file.since = time.Now()
		if is {
			log.WithFields(logrus.Fields{"count": len(differences), "reason": differences[0]}).Warn("HAProxy's file is not as Myelin would write it")
		} else if was {
			log.Info("HAProxy's file is as Myelin would write it again")
		}
	}
}

// next is when a difference of a target will have lasted (zero: there is none that has not), and whether there is any
// difference.
func (b *shadowBook) next(target string) (at time.Time, differs bool) {
	b.mu.Lock()
	defer b.mu.Unlock()
	for k, r := range b.records {
		if k.target != target || r.unknown != "" {
			continue
		}
		if t := r.next(b.grace); !t.IsZero() && (at.IsZero() || t.Before(at)) {
			at = t
		}
		differs = differs || len(r.found) > 0
	}
	return at, differs
}

// pending counts the differences that have not lasted yet.
func (b *shadowBook) pending() int {
	b.mu.Lock()
	defer b.mu.Unlock()
	n := 0
	for _, r := range b.records {
		if r.unknown == "" {
			_, young := r.due()
			n += young
		}
	}
	return n
}

// ShadowStatus is what a shadow has found.
type ShadowStatus struct {
	Grace    string          `json:"grace"`  // how long a difference must last to count
	Agrees   bool            `json:"agrees"` // everything could be compared, and nothing differs
	Backends []ShadowBackend `json:"backends"`
	Notes    []string        `json:"notes,omitempty"` // what was compared in HAProxy's stead, or could not be
	File     *ShadowFile     `json:"file,omitempty"`  // absent: others keep haproxy.cfg for good
}

// ShadowBackend is one backend of one HAProxy.
type ShadowBackend struct {
	Target  string            `json:"target"` // HAProxy's admin socket, or its file where there is none
	Backend string            `json:"backend"`
	Service string            `json:"service"`
	State   string            `json:"state"`             // "agrees", "differs", "unknown"
	Since   time.Time         `json:"since,omitzero"`    // of agrees and differs
	Reason  string            `json:"reason,omitempty"`  // of unknown
	Due     map[string]int    `json:"due,omitempty"`     // steps that have been due for longer than the grace, by action
	Steps   []string          `json:"steps,omitempty"`   // these in words, twenty at most
	Pending int               `json:"pending,omitempty"` // differences that may be the other manager's delay
	Lasted  map[string]uint64 `json:"lasted,omitempty"`  // differences that have lasted since the start, by action
}

// ShadowFile is haproxy.cfg against what would be written.
type ShadowFile struct {
	Path        string    `json:"path"`
	Since       time.Time `json:"since,omitzero"` // of whether there are differences
	Differences []string  `json:"differences"`
	Error       string    `json:"error,omitempty"` // it could not be compared
}

// The states of a ShadowBackend.
const (
	shadowAgrees  = "agrees"
	shadowDiffers = "differs"
	shadowUnknown = "unknown"
)

// steps are what has lasted, in words.
func (r shadowRecord) steps() []string {
	var out []string
	if r.missing() {
		out = append(out, "HAProxy has no such backend")
	}
	plan, _ := r.due()
	for _, s := range plan {
		out = append(out, fmt.Sprintf("%s %s: %s", s.Op, s.Server.Name, s.Why))
	}
	return out
}

func (r shadowRecord) status(target string) ShadowBackend {
	s := ShadowBackend{Target: target, Backend: r.backend, Service: r.service, State: shadowUnknown, Reason: r.unknown, Lasted: r.lasted}
	if r.unknown != "" {
		return s
	}
	s.State, s.Since = shadowAgrees, r.since
	if r.differs {
		s.State = shadowDiffers
	}
	plan, pending := r.due()
	s.Pending = pending
	s.Steps = r.steps()
	if more := len(s.Steps) - mostSteps; more > 0 {
		s.Steps = append(s.Steps[:mostSteps-1:mostSteps-1], fmt.Sprintf("and %d more", more+1))
	}
	s.Due = map[string]int{}
	if r.missing() {
		s.Due[opReload]++
	}
	for _, step := range plan {
		s.Due[step.Op.String()]++
	}
	return s
}

func (b *shadowBook) keys() []shadowKey {
	return slices.SortedFunc(maps.Keys(b.records), func(x, y shadowKey) int {
		return cmp.Or(cmp.Compare(x.target, y.target), cmp.Compare(x.backend, y.backend))
	})
}

// status is what is known now.
func (b *shadowBook) status() *ShadowStatus {
	b.mu.Lock()
	defer b.mu.Unlock()
	st := &ShadowStatus{Grace: b.grace.String(), Agrees: len(b.targets) > 0, Backends: []ShadowBackend{}}
	for _, target := range slices.Sorted(maps.Keys(b.targets)) {
		t := b.targets[target]
		if t.note != "" {
			st.Notes = append(st.Notes, t.note)
		}
		if t.err != "" {
			st.Agrees = false
			st.Notes = append(st.Notes, target+" cannot be compared: "+t.err)
		}
	}
	for _, k := range b.keys() {
		s := b.records[k].status(k.target)
		st.Agrees = st.Agrees && s.State == shadowAgrees
		st.Backends = append(st.Backends, s)
	}
	if f := b.file; f.path != "" {
		st.File = &ShadowFile{Path: f.path, Since: f.since, Differences: append([]string{}, f.differences...), Error: f.err}
		st.Agrees = st.Agrees && len(f.differences) == 0 && f.err == ""
	}
	return st
}

// preview is what has lasted, as myelin plan shows it.
func (b *shadowBook) preview() *Preview {
	b.mu.Lock()
	defer b.mu.Unlock()
	p := &Preview{Differences: slices.Clone(b.file.differences)}
	if b.file.err != "" {
		p.Notes = append(p.Notes, "haproxy.cfg cannot be compared: "+b.file.err)
	}
	for _, target := range slices.Sorted(maps.Keys(b.targets)) {
		t := TargetPreview{Socket: target, Error: b.targets[target].err}
		if note := b.targets[target].note; note != "" {
			p.Notes = append(p.Notes, note)
		}
		for _, k := range b.keys() {
			r := b.records[k]
			if k.target != target {
				continue
			}
			if r.unknown != "" && t.Error == "" {
				p.Notes = append(p.Notes, "backend "+r.backend+" is not compared: "+r.unknown)
				continue
			}
			if r.missing() {
				p.Reload = "HAProxy has no backend " + r.backend
			}
			plan, _ := r.due()
			t.Plan = append(t.Plan, plan...)
		}
		p.Targets = append(p.Targets, t)
	}
	return p
}

// AwaitShadow waits until every difference that there is has lasted, so that what is left is no delay of the other
// manager's, and returns what would be done. It is for a shadow that has converged, and for one caller at a time. The
// error is ctx's.
func (a *Agent) AwaitShadow(ctx context.Context) (*Preview, error) {
	for a.book.pending() > 0 {
		select {
		case <-a.book.changed:
		case <-ctx.Done():
			return nil, fmt.Errorf("wait for the other manager: %w", ctx.Err())
		}
	}
	return a.book.preview(), nil
}
