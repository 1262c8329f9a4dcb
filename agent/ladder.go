package agent

import (
	"cmp"
	"slices"
	"sync"

	"github.com/myelin-sd/myelin/haproxy"
)

// ladder knows for each backend on which rung it stands, and for those with slots what is in them, so that the file has
// the same. A reconciler tells it, the filekeeper and the status ask.
type ladder struct {
	mu       sync.Mutex
	footings map[string]footing
	changes  uint64 // of what the file is to have
}

// footing is where a backend stands.
type footing struct {
	rung  haproxy.Rung
	why   string // why it is no higher one; empty: there is none, or HAProxy was not met yet
	short string // what waits for a reload; empty: nothing

	usedUp bool             // the slots
	slots  []haproxy.Server // as HAProxy has them, or its file had
}

// ladderFor is the ladder that the HAProxy at the socket with this index tells: of several, the file follows the first.
func ladderFor(socket int, file *ladder) *ladder {
	if socket == 0 {
		return file
	}
	return &ladder{footings: map[string]footing{}}
}

// newLadder is the ladder before any HAProxy was met: each backend stands as the file has it. One that has no servers
// in the file stands on slots where the configuration alone says that it must.
func newLadder(w *wanted, onDisk haproxy.State) *ladder {
	l := &ladder{footings: map[string]footing{}}
	for name, b := range w.backends {
		found := onDisk[name]
		switch {
		case slices.ContainsFunc(found, haproxy.IsSlot):
			l.footings[name] = footing{rung: haproxy.RungSlots, slots: found}
		case len(found) == 0 && b.neverAtRunTime():
			l.footings[name] = footing{rung: haproxy.RungSlots}
		}
	}
	return l
}

// stand notes where a backend stands. It returns where it stood, and whether the file is to change.
func (l *ladder) stand(name string, f footing) (old footing, changed bool) {
	l.mu.Lock()
	defer l.mu.Unlock()
	old = l.footings[name]
	changed = (old.rung == haproxy.RungSlots) != (f.rung == haproxy.RungSlots) || old.usedUp != f.usedUp ||
		!slices.Equal(old.occupied(), f.occupied())
	if changed {
		l.changes++
	}
	l.footings[name] = f
	return old, changed
}

// occupied are the slots, with the addresses of those that take traffic.
func (f footing) occupied() []haproxy.Key {
	var out []haproxy.Key
	for _, s := range f.slots {
		if !haproxy.IsSlot(s) {
			continue
		}
		k := haproxy.Key{Server: s.Name}
		if s.Admin != haproxy.Maint {
			k.Backend = s.Addr.String()
		}
		out = append(out, k)
	}
	slices.SortFunc(out, func(a, b haproxy.Key) int { return cmp.Compare(a.Server, b.Server) })
	return out
}

// of is where a backend stands; the zero value until it is known.
func (l *ladder) of(name string) footing {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.footings[name]
}

// revision changes with what the file is to have.
func (l *ladder) revision() uint64 {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.changes
}

// forFile is what the file is to have for a backend with these servers.
func (l *ladder) forFile(b wantedBackend, servers []haproxy.Server) []haproxy.Server {
	f := l.of(b.name)
	if !b.known || f.rung != haproxy.RungSlots || b.slotsUnfit(servers) != "" {
		return servers
	}
	options, _ := b.slotOptions()
	have := 0
	for _, s := range f.slots {
		have = max(have, haproxy.SlotNumber(s.Name))
	}
	return haproxy.FileSlots(f.slots, servers, options, haproxy.SlotsFor(len(servers), have, f.usedUp))
}

// slotOptions are the options that every server of the backend is to have, and whether they are the same for all.
func (b backend) slotOptions() (words []string, same bool) {
	words = readOptions(expand(b.options, "a", "a", 1)).words
	other := readOptions(expand(b.options, "b", "b", 2)).words
	return words, slices.Equal(words, other)
}

// slotsUnfit tells why servers of the backend cannot be in slots; empty: they can.
func (b backend) slotsUnfit(servers []haproxy.Server) string {
	options, same := b.slotOptions()
	return haproxy.SlotsUnfit(b.lines, b.defaultsLines, options, same, servers)
}

// everyServer stands for what every server of the backend asks for.
func (b backend) everyServer() haproxy.Server {
	options, _ := b.slotOptions()
	return haproxy.Server{Options: options}
}

// neverAtRunTime tells whether no version of HAProxy could change the backend's servers at run time, other than in
// slots.
func (b wantedBackend) neverAtRunTime() bool {
	newest := haproxy.CapabilitiesOf("99.0")
	return haproxy.RuntimeUnfit(b.lines, b.defaultsLines, []haproxy.Server{b.everyServer()}, newest) != "" &&
		b.slotsUnfit(nil) == ""
}

// unasked are the backends that no reload was asked for since they changed, and notes that one is asked for now: a
// HAProxy that comes back from it without what they need reads another file, and more reloads would not help.
func (r *reconciler) unasked(w *wanted, backends []string) []string {
	if r.asked == nil {
		r.asked = map[string]uint64{}
	}
	var out []string
	for _, name := range backends {
		if rev := w.backends[name].rev; r.asked[name] != rev {
			r.asked[name] = rev
			out = append(out, name)
		}
	}
	return out
}

// needReload asks for the reload that a backend needs because its servers cannot be added at run time.
func (r *reconciler) needReload(w *wanted, backend, why string) {
	if len(r.unasked(w, []string{backend})) > 0 {
		r.ask(backend, "backend "+backend+": "+why)
	}
}

// ask asks for a reload on behalf of a backend.
func (r *reconciler) ask(backend, reason string) {
	r.reload(reason)
	if r.owed == nil {
		r.owed = map[string]string{}
	}
	r.owed[backend] = reason
}

// forgive takes back the reloads that were asked for and not done before the process that was just met began: whether
// it has what they were for is found out now. One that was done, and did not help, stays asked for.
func (r *reconciler) forgive() {
	for backend, reason := range r.owed {
		if r.withdraw != nil && r.withdraw(reason) {
			delete(r.asked, backend)
		}
	}
	clear(r.owed)
}

// climb puts a backend on the highest rung that fits, and returns it.
func (r *reconciler) climb(b wantedBackend, servers []haproxy.Server) footing {
	f := r.onTop(b)
	if unfit := r.unfit[b.name]; unfit != "" {
		f.rung, f.why = haproxy.RungSlots, unfit
		if why := b.slotsUnfit(servers); why != "" {
			f.rung = haproxy.RungReload
			f.why += "; no slots, because " + why
			f.short = f.why
		}
	}
	return f
}

// stand publishes where a backend stands, and says it when it is another rung.
func (r *reconciler) stand(name string, f footing) {
	old, changed := r.ladder.stand(name, f)
	if old.rung != f.rung || old.why != f.why {
		log := r.log.WithField("backend", name).WithField("rung", f.rung.String())
		switch {
		case f.rung == haproxy.RungReload:
			log.WithField("reason", f.why).Warn("servers of this backend change with reloads only")
		case f.rung == haproxy.RungSlots:
			log.WithField("reason", f.why).Info("servers of this backend are in slots")
		case old.rung != 0 && old.rung < f.rung:
			log.Info("servers of this backend change at run time")
		}
	}
	if changed {
		r.again()
	}
}

// needsReload are the backends that only a reload can change, or that wait for one, and why.
func (r *reconciler) needsReload(w *wanted) map[string]string {
	out := map[string]string{}
	for name := range w.backends {
		if why := r.ladder.of(name).short; why != "" {
			out[name] = why
		}
	}
	return out
}
