package agent

import (
	"context"

	"github.com/myelin-sd/myelin/haproxy"
)

// inspect finds out which backends of a HAProxy that was just met are to be published: an agent that ended between the
// two commands leaves one that takes no traffic, as does a service that was taken away and is there again.
func (r *reconciler) inspect(ctx context.Context, c *haproxy.Client, w *wanted) error {
	r.shut, r.refused = map[string]bool{}, map[string]string{}
	if !r.caps.DynamicBackends || r.attached {
		return nil
	}
	shut, err := c.Unpublished(ctx)
	for _, name := range shut {
		r.shut[name] = w.backends[name].plain
	}
	return err
}

// stuck tells whether a backend that is to be taken away needs a reload for it.
func (r *reconciler) stuck(b wantedBackend) bool {
	_, there := r.actual[b.name]
	return b.gone && there && (!r.caps.DynamicBackends || r.refused[b.name] != "")
}

// emptied tells whether a backend that is to be taken away has lost its last server.
func (r *reconciler) emptied(b wantedBackend) bool {
	servers, there := r.actual[b.name]
	return b.gone && there && len(servers) == 0 && !r.stuck(b) && !r.attached
}

// planBackends plans for the due backends themselves, where HAProxy can make them and take them away (3.4). Those that
// it is to make are in actual then, without servers. rest are those whose servers are to be planned for: of those that
// are to go, not the ones that have gone, nor those that only a reload takes away, which it asks for.
func (r *reconciler) planBackends(actual haproxy.State, w *wanted, due []string) (plan haproxy.Plan, rest []string) {
	for _, name := range due {
		b := w.backends[name]
		servers, there := actual[name]
		step := func(op haproxy.Action, why string) {
			plan = append(plan, haproxy.Step{Op: op, Backend: name, Why: why})
		}
		switch {
		case b.gone && (!there || r.attached):
			continue
		case b.gone && (!r.caps.DynamicBackends || r.refused[name] != ""):
			why := r.refused[name]
			if why == "" {
				why = "the configuration has it no more"
			}
			r.needReload(w, name, why)
			continue
		case b.gone:
			step(haproxy.StepUnpublish, "not wanted")
			if len(servers) == 0 {
				step(haproxy.StepDeleteBackend, "not wanted, and without servers")
			}
		case b.known && r.climb(b, b.servers).rung == haproxy.RungBackends:
			if !there {
				step(haproxy.StepAddBackend, "wanted, not there")
				actual[name], r.shut[name] = nil, true
			}
			if r.shut[name] {
				step(haproxy.StepPublish, "its servers are there")
			}
		}
		rest = append(rest, name)
	}
	return plan, rest
}

// onTop is the rung of a backend that takes servers at run time: HAProxy can make some of them at run time, too.
func (r *reconciler) onTop(b wantedBackend) footing {
	f := footing{rung: haproxy.RungServers, why: r.refused[b.name]}
	if b.plain && !r.attached && r.caps.DynamicBackends && f.why == "" {
		f.rung = haproxy.RungBackends
	}
	return f
}

// settleBackend takes the result of a step about a backend in, and returns whether it worked. Where HAProxy refused, the
// next round asks for a reload.
func (r *reconciler) settleBackend(res haproxy.Result) bool {
	name := res.Step.Backend
	log := r.log.WithField("backend", name)
	if res.Err != nil {
		r.refused[name] = res.Err.Error()
		log.WithField("err", res.Err).Info("HAProxy needs a reload for this backend")
		if res.Step.Op == haproxy.StepAddBackend {
			delete(r.actual, name)
		}
		return false
	}
	switch res.Step.Op {
	case haproxy.StepAddBackend:
		log.Info("backend added")
	case haproxy.StepPublish:
		delete(r.shut, name)
	case haproxy.StepDeleteBackend:
		delete(r.actual, name)
		log.Info("backend deleted")
	}
	return true
}
