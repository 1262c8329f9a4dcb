package agent

import (
	"maps"
	"slices"

	"github.com/myelin-sd/myelin/config"
	"github.com/myelin-sd/myelin/haproxy"
)

// Attach mode (do_writes = false): people or Puppet write haproxy.cfg, and only the servers that we make are managed.
// Nothing in the file tells them from others, so ids do (see haproxy.Made), and what is remembered of the process:
// servers with an id that a registration asks for are ours from when we add them, or find them as they are wanted.
// A reload or restart takes all of ours and brings theirs back: a new process is filled anew.

// memory is what a reconciler knows of a HAProxy process that the process itself does not tell. It goes over to the
// reconciler of the next configuration.
type memory struct {
	identity haproxy.Identity
	applied  map[haproxy.Key]haproxy.Applied
	mine     map[haproxy.Key]bool
	manual   map[haproxy.Key]manual
}

// memory is for when run has ended.
func (r *reconciler) memory() *memory { return &memory{r.identity, r.applied, r.mine, r.manual} }

// recall takes over what is known of a process that was just met, or forgets what was known of the one before. Where
// we write the file it says what its servers were started with.
func (r *reconciler) recall(id haproxy.Identity) {
	r.mine = map[haproxy.Key]bool{}
	if r.attached && r.before != nil && r.before.identity == id {
		maps.Copy(r.applied, r.before.applied)
		maps.Copy(r.mine, r.before.mine)
	}
}

// recognise notes servers that are as they are wanted, down to the id, in the backends that were just read, or whose
// servers are wanted for the first time since.
func (r *reconciler) recognise(actual, desired haproxy.State) {
	if !r.attached {
		return
	}
	for name, servers := range desired {
		if _, compared := r.settled[name]; compared && !r.fresh[name] {
			continue
		}
		wanted := make(map[string]haproxy.Server, len(servers))
		for _, s := range servers {
			wanted[s.Name] = s
		}
		for _, s := range actual[name] {
			base, _ := haproxy.Generation(s.Name)
			if w, ok := wanted[base]; ok && w.ID == s.ID && w.Addr == s.Addr {
				r.mine[haproxy.Key{Backend: name, Server: s.Name}] = true
			}
		}
	}
}

// made notes a server that HAProxy has confirmed.
func (r *reconciler) made(k haproxy.Key) {
	if r.attached {
		r.mine[k] = true
	}
}

// owns tells whether a server that HAProxy has is ours.
func (r *reconciler) owns(backend string, s haproxy.Server) bool {
	return haproxy.View{Attached: r.attached, Mine: r.mine}.Owns(haproxy.Key{Backend: backend, Server: s.Name}, s)
}

// noteAbsent tells once of each backend that the file of others lacks, and once that it is there. The others cannot
// know that a service waits for it.
func (r *reconciler) noteAbsent(w *wanted, due []string) {
	if !r.attached {
		return
	}
	absent := map[string]bool{}
	for _, name := range r.absent {
		absent[name] = true
	}
	for _, name := range due {
		b := w.backends[name]
		_, there := r.actual[name]
		log := r.log.WithField("backend", name).WithField("service", b.service)
		switch missing := b.known && !there; {
		case missing && !absent[name]:
			absent[name] = true
			log.Warn("HAProxy has no such backend: add it to HAProxy's configuration and reload, or name another one in haproxy.backend_name of the service")
		case !missing && absent[name]:
			delete(absent, name)
			log.Info("HAProxy has the backend now")
		}
	}
	r.absent = slices.Sorted(maps.Keys(absent))
	r.setStatus(func(s *haproxyStatus) { s.Absent = r.absent })
}

// memoryOf is what the generation before knew of the HAProxy at a socket. It has ended.
func (a *Agent) memoryOf(socket string) *memory {
	if g := a.current.Load(); g != nil {
		for _, r := range g.haproxys {
			if r.socket == socket {
				return r.memory()
			}
		}
	}
	return nil
}

// reloadFor is what the reconcilers ask for reloads. Where neither the file nor reloads are ours, a reload is nothing
// that we could wait for.
func (k *filekeeper) reloadFor(c *config.Agent) func(string) {
	if !c.HAProxy.DoWrites && !k.reloads {
		return func(string) {}
	}
	return k.needReload
}
