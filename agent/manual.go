package agent

import (
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"fmt"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"github.com/sirupsen/logrus"

	"github.com/myelin-sd/myelin/haproxy"
	"github.com/myelin-sd/myelin/journal"
)

// Somebody may set the state or the weight of a server on the admin socket, or on HAProxy's own page of statistics. What
// differs from what this process of HAProxy has confirmed to us, though we have sent nothing since, is such a manual
// change. It is respected for a time, as long as the server is wanted and no override is about it.

// unsureFor is how long a command whose reply was lost may still be carried out: what it asked for is ours until then.
const unsureFor = time.Minute

// manual is a server that somebody else has changed.
type manual struct {
	what   string // what it is now, and was: "state drain, was ready"
	since  time.Time
	until  time.Time
	addr   string
	admin  haproxy.Admin
	weight int
}

// ManualChange is a server that somebody else has changed, and that stays so for a time.
type ManualChange struct {
	Backend string    `json:"backend"`
	Server  string    `json:"server"`
	Address string    `json:"address"`
	What    string    `json:"what"`
	Since   time.Time `json:"since"` // when it was seen
	Until   time.Time `json:"until"` // when it is corrected
}

// attempt is what a command asked for whose reply did not come.
type attempt struct {
	admins []haproxy.Admin
	weight *int
	until  time.Time
}

// expects tells whether a change may be what the attempt asked for.
func (a attempt) expects(before, after haproxy.Server, now time.Time) bool {
	return now.Before(a.until) && (before.Admin == after.Admin || slices.Contains(a.admins, after.Admin)) &&
		(before.Weight == after.Weight || a.weight != nil && *a.weight == after.Weight)
}

// doubt notes a step that may have been carried out, or may still be, although its reply did not come.
func (r *reconciler) doubt(st haproxy.Step, now time.Time) {
	a := r.unsure[st.Key()]
	a.until = now.Add(unsureFor)
	switch st.Op {
	case haproxy.StepWeight:
		a.weight = &st.Server.Weight
	case haproxy.StepReady: // it may go by way of a drain
		a.admins = append(slices.Clone(a.admins), haproxy.Drain, haproxy.Ready)
	case haproxy.StepDrain:
		a.admins = append(slices.Clone(a.admins), haproxy.Drain)
	case haproxy.StepMaint:
		a.admins = append(slices.Clone(a.admins), haproxy.Maint)
	default:
		return
	}
	if r.unsure == nil {
		r.unsure = map[haproxy.Key]attempt{}
	}
	r.unsure[st.Key()] = a
}

// recogniseManual compares what a backend of the process that is known had, by what it confirmed, with what it has now.
func (r *reconciler) recogniseManual(w *wanted, name string, before, after []haproxy.Server, now time.Time) {
	b := w.backends[name]
	if len(before) == 0 || b.gone {
		return
	}
	for i := range after {
		is, old := &after[i], counterpart(before, after, i)
		if old == nil || old.ID != is.ID || old.Admin == is.Admin && old.Weight == is.Weight {
			continue
		}
		k := haproxy.Key{Backend: name, Server: is.Name}
		// An agent check sets state and weight by itself, and a tracked server's state is that of the other one.
		if is.Agent.Running() || !r.owns(name, *is) || r.unsure[k].expects(*old, *is, now) {
			continue
		}
		want, ok := b.serverOf(*is)
		if !ok || superseded(after, *is) || slices.Contains(want.Options, "track") {
			continue
		}
		r.seeManual(b, k, *old, *is, want, now)
	}
	maps.DeleteFunc(r.unsure, func(_ haproxy.Key, a attempt) bool { return !now.Before(a.until) })
}

// counterpart is the server of before that the one at i of after was; nil: there is none. Mostly it is in the same place.
func counterpart(before, after []haproxy.Server, i int) *haproxy.Server {
	if i < len(before) && before[i].Name == after[i].Name {
		return &before[i]
	}
	at := slices.IndexFunc(before, func(s haproxy.Server) bool { return s.Name == after[i].Name })
	if at < 0 {
		return nil
	}
	return &before[at]
}

// superseded tells whether a younger object of a server's name is there.
func superseded(servers []haproxy.Server, s haproxy.Server) bool {
	base, number := haproxy.Generation(s.Name)
	return slices.ContainsFunc(servers, func(o haproxy.Server) bool {
		b, n := haproxy.Generation(o.Name)
		return b == base && n > number
	})
}

// serverOf is the wanted server that one of HAProxy's is.
func (b wantedBackend) serverOf(found haproxy.Server) (haproxy.Server, bool) {
	base, _ := haproxy.Generation(found.Name)
	i := slices.IndexFunc(b.servers, func(s haproxy.Server) bool {
		return s.Addr == found.Addr && (s.Name == base || haproxy.IsSlot(found))
	})
	if i < 0 {
		return haproxy.Server{}, false
	}
	return b.servers[i], true
}

// seeManual takes in that somebody has changed a server.
func (r *reconciler) seeManual(b wantedBackend, k haproxy.Key, old, is, want haproxy.Server, now time.Time) {
	r.metrics.foreign(r.socket)
	log := r.log.WithFields(logrus.Fields{"backend": k.Backend, "server": want.Name, "addr": is.Addr.String()})
	record := func(what, cause string) {
		if r.journal == nil {
			return
		}
		r.journal.Record(journal.Event{
			Kind: journal.KindForeign, Service: b.service, Instance: is.Addr.String(), What: what, Cause: cause, Count: 1,
		})
	}
	_, marked := r.manual[k]
	what := changeText(old, is)
	switch {
	case is.Admin == want.Admin && is.Weight == want.Weight:
		delete(r.manual, k)
		log.WithField("reason", what).Info("somebody else put a server back as it is wanted")
		record(what, "somebody else put it back as it is wanted")
	case b.overrides[want.Name] != nil:
		log.WithField("reason", what).Warn("somebody else changed a server that an override is about; the override counts")
		record(what, "somebody else changed it; an override counts, so it is corrected")
	case r.manualFor <= 0:
		log.WithField("reason", what).Warn("somebody else changed a server; it is corrected")
		record(what, "somebody else changed it; it is corrected")
	default:
		if marked { // it was no longer what is wanted
			old.Admin, old.Weight = want.Admin, want.Weight
		}
		m := manual{what: changeText(old, is), since: now, until: now.Add(r.manualFor), addr: is.Addr.String(), admin: is.Admin, weight: is.Weight}
		r.manual[k] = m
		log.WithFields(logrus.Fields{"reason": m.what, "until": m.until.Format(time.RFC3339)}).Warn("somebody else changed a server; it stays so for haproxy.manual_changes")
		record(m.what, "somebody else changed it; it stays so until "+m.until.UTC().Format(time.RFC3339))
	}
	delete(r.settled, k.Backend) // it is compared with what is wanted as a whole
}

// changeText says how a server was changed.
func changeText(old, is haproxy.Server) string {
	var parts []string
	if old.Admin != is.Admin {
		parts = append(parts, fmt.Sprintf("state %s, was %s", is.Admin, old.Admin))
	}
	if old.Weight != is.Weight {
		parts = append(parts, fmt.Sprintf("weight %d, was %d", is.Weight, old.Weight))
	}
	return strings.Join(parts, "; ")
}

// endManual ends the respect for manual changes whose time is over, whose server is not wanted any more, or that an
// override is about.
func (r *reconciler) endManual(w *wanted, now time.Time) {
	for k, m := range r.manual {
		b := w.backends[k.Backend]
		i := slices.IndexFunc(r.actual[k.Backend], func(s haproxy.Server) bool { return s.Name == k.Server })
		var want haproxy.Server
		wanted := false
		if i >= 0 {
			want, wanted = b.serverOf(r.actual[k.Backend][i])
		}
		log := r.log.WithFields(logrus.Fields{"backend": k.Backend, "server": k.Server, "reason": m.what})
		switch {
		case !wanted: // it has gone, or goes
		case b.overrides[want.Name] != nil:
			log.Info("an override ends the respect for what somebody else changed")
		case !now.Before(m.until):
			log.Info("what somebody else changed is corrected: haproxy.manual_changes is over")
		default:
			continue
		}
		delete(r.manual, k)
		delete(r.settled, k.Backend)
	}
}

// manualDue tells whether a backend is to be looked at because the respect for a manual change ends.
func (r *reconciler) manualDue(name string, now time.Time) bool {
	for k, m := range r.manual {
		if k.Backend == name && !now.Before(m.until) {
			return true
		}
	}
	return false
}

// manualKeys are the servers that are left alone.
func (r *reconciler) manualKeys() map[haproxy.Key]bool {
	if len(r.manual) == 0 {
		return nil
	}
	out := make(map[haproxy.Key]bool, len(r.manual))
	for k := range r.manual {
		out[k] = true
	}
	return out
}

// manualStatus is what is shown of them.
func (r *reconciler) manualStatus() []ManualChange {
	var out []ManualChange
	for k, m := range r.manual {
		out = append(out, ManualChange{Backend: k.Backend, Server: k.Server, Address: m.addr, What: m.what, Since: m.since, Until: m.until})
	}
	slices.SortFunc(out, func(a, b ManualChange) int {
		return strings.Compare(a.Backend+" "+a.Server, b.Backend+" "+b.Server)
	})
	return out
}

// keepManual has the disk know the manual changes, so that the respect for them outlives this process. It is the
// process of HAProxy that they are told by: another one has none of them.
func (r *reconciler) keepManual() {
	if r.manualFile == "" || maps.Equal(r.manual, r.manualKept) {
		return
	}
	kept := keptManual{Identity: r.identity, Changes: []keptChange{}}
	for k, m := range r.manual {
		kept.Changes = append(kept.Changes, keptChange{k.Backend, k.Server, m.what, m.addr, m.since, m.until, m.admin, m.weight})
	}
	text, err := json.Marshal(kept)
	if err == nil {
		err = replaceFile(r.manualFile, r.manualFile+".tmp", text)
	}
	if err != nil {
		r.log.WithField("err", err).Debug("manual changes are not kept on disk; the next process of the agent would correct them")
	}
	r.manualKept = maps.Clone(r.manual) // after a failure too: the next change is the next try
}

// keptManual is the file that has them.
type keptManual struct {
	Identity haproxy.Identity `json:"identity"`
	Changes  []keptChange     `json:"changes"`
}

type keptChange struct {
	Backend string        `json:"backend"`
	Server  string        `json:"server"`
	What    string        `json:"what"`
	Address string        `json:"address"`
	Since   time.Time     `json:"since"`
	Until   time.Time     `json:"until"`
	Admin   haproxy.Admin `json:"admin"`
	Weight  int           `json:"weight"`
}

// recallManual takes up what is known of manual changes in a process of HAProxy that was just met: of the configuration
// before, or of the agent's process before.
func (r *reconciler) recallManual(id haproxy.Identity) {
	r.manual, r.unsure = map[haproxy.Key]manual{}, map[haproxy.Key]attempt{}
	r.manualKept = nil
	defer func() {
		for k, m := range r.manual { // the configuration before may have said another time
			m.until = m.since.Add(max(r.manualFor, 0))
			r.manual[k] = m
		}
	}()
	if r.before != nil && r.before.identity == id {
		maps.Copy(r.manual, r.before.manual)
		r.manualKept = maps.Clone(r.before.manual)
		return
	}
	if r.manualFile == "" {
		return
	}
	text, err := os.ReadFile(r.manualFile)
	if err != nil {
		return
	}
	var kept keptManual
	if json.Unmarshal(text, &kept) != nil || kept.Identity != id {
		return
	}
	for _, c := range kept.Changes {
		r.manual[haproxy.Key{Backend: c.Backend, Server: c.Server}] = manual{c.What, c.Since, c.Until, c.Address, c.Admin, c.Weight}
	}
	r.manualKept = maps.Clone(r.manual) // what is dropped of it now is not to be found there again
}

// checkManual drops what was taken up of servers that are not as they were: nobody knows who changed them.
func (r *reconciler) checkManual() {
	maps.DeleteFunc(r.manual, func(k haproxy.Key, m manual) bool {
		i := slices.IndexFunc(r.actual[k.Backend], func(s haproxy.Server) bool { return s.Name == k.Server })
		return i < 0 || r.actual[k.Backend][i].Admin != m.admin || r.actual[k.Backend][i].Weight != m.weight
	})
}

// manualFileOf is where the manual changes of the HAProxy at a socket are kept; empty: nowhere.
func manualFileOf(stateDir, socket string) string {
	if stateDir == "" {
		return ""
	}
	sum := sha256.Sum256([]byte(socket))
	return filepath.Join(stateDir, "manual-"+hex.EncodeToString(sum[:6])+".json")
}

// tellManual adds to what a HAProxy told of a backend's servers what somebody else has changed.
func (s *haproxyStatus) tellManual(backend string, told []ServerStatus) {
	if s == nil {
		return
	}
	for _, m := range s.Manual {
		for i := range told {
			if m.Backend == backend && m.Server == told[i].Server {
				told[i].Foreign = m.What + "; it stays so until " + m.Until.UTC().Format(time.RFC3339)
			}
		}
	}
}
