package agent

import (
	"cmp"
	"errors"
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/sirupsen/logrus"

	"github.com/myelin-sd/myelin/haproxy"
	"github.com/myelin-sd/myelin/journal"
)

// settle takes the results in: what HAProxy confirmed is known, what it refused is tried again next round. It
// returns the refusals in words.
func (r *reconciler) settle(w *wanted, due []string, results []haproxy.Result) []string {
	var failed []string
	bad := map[string]bool{}
	changes := map[string]*change{}
	now := time.Now()
	for _, res := range results {
		st := res.Step
		k := st.Key()
		if st.OfBackend() && (res.Err == nil || isRefusal(res.Err)) {
			bad[st.Backend] = !r.settleBackend(res) || bad[st.Backend]
			continue
		}
		if st.Op == haproxy.StepDelete && isRefusal(res.Err) {
			t := r.retired[k] // in use, or named elsewhere in the file: wait for another grace
			t.look = now.Add(r.graceFor())
			r.retired[k] = t
			continue
		}
		if why, own := r.ownFault(w, res); own {
			r.quarantine.add(st.Backend, st.Server, why)
			r.log.WithFields(logrus.Fields{"backend": st.Backend, "server": st.Server.Name, "err": res.Err}).Warn("HAProxy refused what a registration asks for; it is left out")
			r.tell(journal.Event{Kind: journal.KindHAProxy, Service: w.backends[st.Backend].service, What: "server " + st.Server.Name + " is left out: HAProxy refused what its registration asks for", Cause: why})
			bad[st.Backend] = true
			r.again()
			continue
		}
		if errors.Is(res.Err, haproxy.ErrUnfit) {
			r.unfit[st.Backend] = res.Err.Error()
			if st.Op != haproxy.StepAdd { // the next round plans for another rung of the ladder, and asks if it must
				r.needReload(w, st.Backend, res.Err.Error())
			}
		}
		if res.Err != nil {
			if !errors.Is(res.Err, haproxy.ErrHeldBack) && !errors.Is(res.Err, haproxy.ErrUnsafe) {
				r.doubt(st, now)
			}
			if mayHaveMade(res) {
				st.Remember(r.applied)
				r.made(k)
			}
			bad[st.Backend] = true
			failed = append(failed, fmt.Sprintf("%s %s/%s: %v", st.Op, st.Backend, st.Server.Name, res.Err))
			continue
		}
		ch := changes[st.Backend]
		if ch == nil {
			ch = &change{}
			changes[st.Backend] = ch
		}
		ch.add(st)
		ch.steps = append(ch.steps, st)
		st.Remember(r.applied)
		r.moved(st, now)
		if st.Op == haproxy.StepAdd {
			r.made(k)
		}
	}
	for name, ch := range changes {
		r.actual[name] = haproxy.After(r.actual[name], ch.steps)
		ch.log(r.log.WithField("backend", name))
	}
	r.recordRound(w, changes, failed)
	for _, name := range due {
		b := w.backends[name]
		if r.cut[name] { // the next round looks at it, whether or not what is wanted changes
			delete(r.done, name)
			delete(r.settled, name)
		}
		if bad[name] || r.late[name] || r.cut[name] {
			continue
		}
		if _, there := r.actual[name]; !there && b.known && !b.gone {
			continue // it appears with the reload that was asked for
		}
		if r.told[name] != b.rev && !b.at.IsZero() {
			r.told[name] = b.rev
			r.metrics.propagated(now.Sub(b.at))
		}
		if !r.stuck(b) {
			delete(r.asked, name)
		}
		r.done[name] = b.rev
		if b.known && !b.stale {
			r.settled[name] = r.quarantine.without(name, b.servers)
		} else {
			delete(r.settled, name) // what HAProxy has was not compared
		}
	}
	return failed
}

// ownFault tells whether an add failed because of what the server's own registration asks for.
func (r *reconciler) ownFault(w *wanted, res haproxy.Result) (string, bool) {
	base, _ := haproxy.Generation(res.Step.Server.Name)
	// Other refusals are not about the words of the line: it may pass the next time.
	words := errors.Is(res.Err, haproxy.ErrUnfit) || errors.Is(res.Err, haproxy.ErrUnknownReply) || errors.Is(res.Err, haproxy.ErrUnsafe)
	if res.Step.Op != haproxy.StepAdd || !isRefusal(res.Err) || !words || !w.backends[res.Step.Backend].own[base] {
		return "", false
	}
	return res.Err.Error(), true
}

// mayHaveMade tells whether an add that failed may have left an object: it was a later command that HAProxy refused, or
// the connection failed before the reply. What the object was made with must be known all the same.
func mayHaveMade(res haproxy.Result) bool {
	if res.Step.Op != haproxy.StepAdd || errors.Is(res.Err, haproxy.ErrUnsafe) {
		return false
	}
	var refusal *haproxy.ReplyError
	return !errors.As(res.Err, &refusal) || !strings.HasPrefix(refusal.Command, "add ")
}

// isRefusal tells an error about one command, HAProxy's or our own, from one of the connection.
func isRefusal(err error) bool {
	var refusal *haproxy.ReplyError
	return errors.As(err, &refusal) || errors.Is(err, haproxy.ErrUnsafe)
}

// change is what a round did to one backend, for one log line.
type change struct {
	steps haproxy.Plan // that worked

	added, readied, weighed, limited, left, drains, ended, deleted []string
}

func (c *change) add(st haproxy.Step) {
	n := cmp.Or(st.Occupant, st.Server.Name)
	switch st.Op {
	case haproxy.StepAdd, haproxy.StepAddr:
		c.added = append(c.added, n)
	case haproxy.StepReady:
		if st.Occupant == "" || !slices.Contains(c.added, n) {
			c.readied = append(c.readied, n)
		}
	case haproxy.StepWeight:
		c.weighed = append(c.weighed, fmt.Sprintf("%s=%d", n, st.Server.Weight))
	case haproxy.StepMaxconn:
		c.limited = append(c.limited, n)
	case haproxy.StepMaint:
		c.left = append(c.left, n)
	case haproxy.StepDrain:
		c.drains = append(c.drains, n)
	case haproxy.StepShutdown:
		c.ended = append(c.ended, n)
	case haproxy.StepDelete:
		c.deleted = append(c.deleted, n)
	}
}

func (c *change) log(log logrus.FieldLogger) {
	f := logrus.Fields{}
	for key, names := range map[string][]string{"joined": c.added, "returned": c.readied, "weight": c.weighed, "maxconn": c.limited, "left": c.left, "draining": c.drains, "sessions_ended": c.ended} {
		if len(names) > 0 {
			f[key] = brief(names)
		}
	}
	if len(f) == 0 { // deletion is housekeeping: the server left long ago
		if len(c.deleted) > 0 {
			log.WithField("deleted", brief(c.deleted)).Debug("old servers deleted")
		}
		return
	}
	log.WithFields(f).Info("servers changed")
}

// brief names a few and counts the rest.
func brief(names []string) string {
	const few = 4
	if len(names) <= few {
		return strings.Join(names, " ")
	}
	return fmt.Sprintf("%s and %d more", strings.Join(names[:few], " "), len(names)-few)
}
