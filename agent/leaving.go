package agent

import (
	"time"

	"github.com/myelin-sd/myelin/haproxy"
)

// retire brings the list of servers that wait in maintenance for their deletion in line with a backend as it was read.
func (r *reconciler) retire(name string, now time.Time) {
	waiting := map[string]bool{}
	for _, s := range r.actual[name] {
		if s.Admin == haproxy.Maint && r.owns(name, s) {
			waiting[s.Name] = true
			k := haproxy.Key{Backend: name, Server: s.Name}
			if _, ok := r.retired[k]; !ok {
				r.retired[k] = now
			}
		}
	}
	for k := range r.retired {
		if k.Backend == name && !waiting[k.Server] {
			delete(r.retired, k)
		}
	}
}

// graceFor is how long a server waits in maintenance before it is deleted: streams may still refer to it, and
// builds before 3.0 lack the fixes for that (haproxy-runtime facts, section 9).
func (r *reconciler) graceFor() time.Duration {
	switch {
	case r.grace > 0:
		return r.grace
	case r.caps.Major < 3:
		return 10 * time.Minute
	}
	return time.Minute
}

func (r *reconciler) deletable(now time.Time) map[haproxy.Key]bool {
	out := map[haproxy.Key]bool{}
	for k, since := range r.retired {
		if now.Sub(since) >= r.graceFor() {
			out[k] = true
		}
	}
	return out
}

// nextTask is when something is to be done although nothing happens: a table to be read, a server to be deleted.
func (r *reconciler) nextTask() (time.Time, bool) {
	first := r.readAt
	for _, since := range r.retired {
		due := since.Add(r.graceFor())
		if soon := time.Now().Add(100 * time.Millisecond); due.Before(soon) {
			due = soon // what is overdue waits for a round with nothing else to do
		}
		if first.IsZero() || due.Before(first) {
			first = due
		}
	}
	return first, !first.IsZero()
}
