package agent

import (
	"cmp"
	"fmt"
	"maps"
	"slices"
	"strings"
	"time"

	"github.com/myelin-sd/myelin/discovery"
	"github.com/myelin-sd/myelin/discovery/zookeeper"
	"github.com/myelin-sd/myelin/haproxy"
	"github.com/myelin-sd/myelin/journal"
)

// What follows says what happened, for the history: one event for all instances that the same thing happened to.

// listing is what of a service's registrations became another between two snapshots, by endpoint.
type listing struct {
	joined, left, leaving, back, changed []string
}

// compareListings tells what is different in now. Both are sorted, as in a Snapshot. Registrations at one endpoint are
// taken together: for a moment there are two of whoever starts again.
func compareListings(was, now []discovery.Instance) (l listing) {
	if len(was) == len(now) && len(was) > 0 && &was[0] == &now[0] {
		return l // the registry has said nothing new
	}
	for len(was) > 0 || len(now) > 0 {
		order := 0
		switch {
		case len(was) == 0:
			order = 1
		case len(now) == 0:
			order = -1
		default:
			order = was[0].Endpoint.Compare(now[0].Endpoint)
		}
		var before, after []discovery.Instance
		if order <= 0 {
			before, was = sameEndpoint(was)
		}
		if order >= 0 {
			after, now = sameEndpoint(now)
		}
		l.add(before, after)
	}
	return l
}

// sameEndpoint splits off the first instances, which have one endpoint.
func sameEndpoint(all []discovery.Instance) (first, rest []discovery.Instance) {
	n := 1
	for n < len(all) && all[n].Endpoint == all[0].Endpoint {
		n++
	}
	return all[:n], all[n:]
}

func (l *listing) add(before, after []discovery.Instance) {
	switch {
	case len(before) == 0:
		l.joined = append(l.joined, after[0].Endpoint.String())
	case len(after) == 0:
		l.left = append(l.left, before[0].Endpoint.String())
	case slices.EqualFunc(before, after, discovery.Instance.Equal):
	case len(staying(before)) > 0 && len(staying(after)) == 0:
		l.leaving = append(l.leaving, after[0].Endpoint.String())
	case before[len(before)-1].Node != after[len(after)-1].Node || before[len(before)-1].Session != after[len(after)-1].Session:
		l.back = append(l.back, after[0].Endpoint.String())
	default:
		l.changed = append(l.changed, after[0].Endpoint.String())
	}
}

// placesOf are the places of instances, by which the history names them.
func placesOf(instances []discovery.Instance) []string {
	all := make([]string, len(instances))
	for i, in := range instances {
		all[i] = in.Endpoint.String()
	}
	return all
}

// record tells the history what is new about a service's view.
func (g *generation) record(old, v view) {
	if g.journal == nil {
		return
	}
	about := journal.Event{Kind: journal.KindRegistry, Service: v.service.Name, Cause: v.snapshot.Cause}
	say := func(what string, names []string) {
		if len(names) == 0 {
			return
		}
		e := about
		e.What = what
		g.journal.Record(e.Of(names...))
	}
	was, now := old.snapshot, v.snapshot
	switch {
	case v.seen && !old.seen:
		e := about
		e.What = fmt.Sprintf("the registry is heard of for the first time; it lists %d", len(now.Instances))
		if now.Missing {
			e.What = "the registry is heard of for the first time; the path does not exist"
		}
		g.journal.Record(e)
	case v.seen:
		switch {
		case now.Missing && !was.Missing:
			say("the path is gone", []string{""})
		case was.Missing && !now.Missing:
			say("the path is there again", []string{""})
		}
		l := compareListings(was.Instances, now.Instances)
		say("joined", l.joined)
		say("registered again", l.back)
		say("changed", l.changed)
		say("marked as leaving", l.leaving)
		say("gone from the registry", l.left)
	}
	for _, r := range newRejections(was.Rejected, now.Rejected) {
		e := about
		e.What, e.Cause = "registration "+r.Node+" is left out", r.Reason+": "+r.Detail
		g.journal.Record(e)
	}
	recordDecisions(g.journal, v)
}

// newRejections are those that were not there before, a few of them.
func newRejections(before, now []discovery.Rejection) (out []discovery.Rejection) {
	known := make(map[string]bool, len(before))
	for _, r := range before {
		known[r.Node+"\x00"+r.Detail] = true
	}
	for _, r := range now {
		if len(out) < fewLines && !known[r.Node+"\x00"+r.Detail] {
			out = append(out, r)
		}
	}
	return out
}

// recordDecisions tells the history what the guard decided in the view's last step.
func recordDecisions(j journal.Recorder, v view) {
	for _, d := range v.news {
		e := journal.Event{Kind: journal.KindGuard, Service: v.service.Name, Cause: d.reason}
		switch d.what {
		case decidedHeld:
			e.What = "held, although gone from the registry"
			if !d.until.IsZero() {
				e.What = "held until " + d.until.UTC().Format(time.RFC3339) + " at the latest, although gone from the registry"
			}
		case decidedBelieved:
			e.What, e.Cause = "let go: the loss is believed", cmp.Or(d.reason, "they are few")
		case decidedLeft:
			e.What, e.Cause = "let go", cmp.Or(d.reason, "gone on purpose, or out of the filters")
		case decidedReturned:
			e.What, e.Cause = "held no more", cmp.Or(d.reason, "listed again by the registry")
		case decidedDown:
			e.What, e.Cause = "let go", cmp.Or(d.reason, "seen down by HAProxy's checks")
		case decidedExpired:
			e.What, e.Cause = "let go", cmp.Or(d.reason, "held for as long as hold_for says")
		case decidedReleased:
			e.What, e.Cause = "let go", cmp.Or(d.reason, "released by an operator")
		default:
			e.What = d.what
		}
		if len(d.instances) == 0 {
			e.What = "what HAProxy had from before: " + e.What
		}
		j.Record(e.Of(placesOf(d.instances)...))
	}
}

// recordSession is what a session with an ensemble tells the history.
func recordSession(j journal.Recorder, ensemble string) func(zookeeper.SessionEvent) {
	return func(ev zookeeper.SessionEvent) {
		e := journal.Event{Kind: journal.KindRegistry}
		switch {
		case !ev.Connected:
			e.What, e.Cause = "the connection to ZooKeeper "+ensemble+" is lost; what is known stays in force", ev.Error
		case ev.First:
			e.What = "connected to ZooKeeper " + ensemble + ", session " + ev.Session
		case ev.Fresh:
			e.What = fmt.Sprintf("ZooKeeper %s is back after %s with another session, %s", ensemble, roundly(ev.After), ev.Session)
			e.Cause = "the session before has expired"
		default:
			e.What = fmt.Sprintf("ZooKeeper %s is back after %s; the session goes on", ensemble, roundly(ev.After))
		}
		if ev.Connected {
			e.Cause = strings.TrimPrefix(e.Cause+"; at "+ev.Server, "; ")
		}
		j.Record(e)
	}
}

func roundly(d time.Duration) time.Duration {
	if d > 10*time.Second {
		return d.Round(time.Second)
	}
	return d.Round(time.Millisecond)
}

// recordRound tells the history what a round did to each backend, and what HAProxy refused.
func (r *reconciler) recordRound(w *wanted, changes map[string]*change, failed []string) {
	for _, name := range slices.Sorted(maps.Keys(changes)) {
		if what := changes[name].sentence(); what != "" {
			r.tell(journal.Event{Kind: journal.KindHAProxy, Service: cmp.Or(w.backends[name].service, name), What: what})
		}
	}
	if len(failed) == 0 {
		r.refusedLast = ""
		return
	}
	const shown = 3
	what := "HAProxy refused: " + strings.Join(failed[:min(shown, len(failed))], "; ")
	if len(failed) > shown {
		what += fmt.Sprintf("; and %d more", len(failed)-shown)
	}
	if r.refusedLast != what { // it is tried again until it works, and each try is no news
		r.refusedLast = what
		r.tell(journal.Event{Kind: journal.KindHAProxy, What: what})
	}
}

// tell records an event, where there is a history. A reconciler that is made by hand has none.
func (r *reconciler) tell(e journal.Event) {
	if r.journal != nil {
		r.journal.Record(e)
	}
}

// sentence says what was done to a backend: "HAProxy was told in 3 commands: added a b; draining c". Empty: nothing but housekeeping.
func (c *change) sentence() string {
	var parts []string
	for _, p := range []struct {
		what  string
		names []string
	}{
		{"added", c.added}, {"in rotation", c.readied}, {"weight", c.weighed}, {"maxconn", c.limited}, {"draining", c.drains},
		{"out of rotation", c.left}, {"sessions ended", c.ended},
	} {
		if len(p.names) > 0 {
			parts = append(parts, fmt.Sprintf("%s %s", p.what, several(p.names)))
		}
	}
	if len(parts) == 0 {
		return ""
	}
	commands := 0 // each had its reply
	for _, st := range c.steps {
		commands += len(st.Commands())
	}
	word := "commands"
	if commands == 1 {
		word = "command"
	}
	return fmt.Sprintf("HAProxy was told in %d %s: %s", commands, word, strings.Join(parts, "; "))
}

// several is a few names, and before them how many there are where that is more.
func several(names []string) string {
	if len(names) == 1 {
		return names[0]
	}
	return fmt.Sprintf("%d (%s)", len(names), brief(names))
}

// recordReload tells the history of a reload.
func recordReload(j journal.Recorder) func([]string, error) {
	return func(reasons []string, err error) {
		e := journal.Event{Kind: journal.KindReload, What: "HAProxy was reloaded", Cause: strings.Join(reasons, "; ")}
		if err != nil {
			e.What = "HAProxy was not reloaded, the old configuration stays in force: " + err.Error()
		}
		j.Record(e)
	}
}

// recordProcess tells the history of a HAProxy that answers.
func (r *reconciler) recordProcess(id haproxy.Identity) {
	e := journal.Event{Kind: journal.KindHAProxy, What: fmt.Sprintf("HAProxy %s at %s answers, pid %d", id.Version, r.socket, id.Pid)}
	if r.identity.Pid != 0 {
		e.What = fmt.Sprintf("HAProxy %s at %s is another process, pid %d, before it %d", id.Version, r.socket, id.Pid, r.identity.Pid)
		e.Cause = "it was restarted or reloaded"
	}
	r.tell(e)
}
