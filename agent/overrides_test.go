package agent

import (
	"fmt"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	"pgregory.net/rapid"

	"github.com/myelin-sd/myelin/config"
	"github.com/myelin-sd/myelin/discovery"
	"github.com/myelin-sd/myelin/haproxy"
)

// child is an override's node as it lies in the registry.
func child(t require.TestingT, o discovery.Override, revision int32) discovery.Child {
	data, err := discovery.EncodeOverride(o)
	require.NoError(t, err)
	return discovery.Child{Name: o.NodeName(), Data: data, Revision: revision}
}

func nodesOf(all discovery.Overrides) []string {
	out := []string{}
	for _, o := range all {
		out = append(out, fmt.Sprintf("%s %s %d", o.Node, o.Action, o.Revision))
	}
	return out
}

// TestOverridesUnknownIsNotEmpty: what cannot be read takes nothing away, and costs only itself.
func TestOverridesUnknownIsNotEmpty(t *testing.T) {
	now := time.Date(2026, 5, 1, 12, 0, 0, 0, time.UTC)
	drain := child(t, discovery.Override{Target: discovery.Target{Service: "a"}, Action: discovery.ActionDrain}, 3)
	ends := child(t, discovery.Override{Target: discovery.Target{Service: "b"}, Action: discovery.ActionMaint, Until: now.Add(time.Hour)}, 0)
	broken := discovery.Child{Name: drain.Name, Data: []byte("{"), Revision: 4}

	o := overriding{}.next(discovery.Snapshot{Missing: true}, now)
	require.True(t, o.heard)
	require.Empty(t, o.all)

	o = o.next(discovery.Snapshot{Children: []discovery.Child{drain, ends, {Name: "z", Data: []byte("z")}}}, now.Add(time.Second))
	require.Equal(t, []string{"a,* drain 3", "b,* maint 0"}, nodesOf(o.all))
	require.Equal(t, now, o.since, "when it was heard of first")
	require.Len(t, o.bad, 1)
	require.False(t, o.bad[0].Former)
	require.Equal(t, []discovery.Child{drain, ends}, o.kept)

	o = o.next(discovery.Snapshot{Children: []discovery.Child{broken, ends}}, now)
	require.Equal(t, []string{"a,* drain 3", "b,* maint 0"}, nodesOf(o.all), "the former value stays")
	require.Equal(t, []discovery.Child{drain, ends}, o.kept, "on the disk too")
	require.Equal(t, "a,*", o.bad[0].Node)
	require.True(t, o.bad[0].Former)

	unread := discovery.Snapshot{Rejected: []discovery.Rejection{{Node: ends.Name, Detail: "its ACL"}, {Node: "q", Detail: "its ACL"}}, Children: []discovery.Child{drain}}
	require.Equal(t, []string{"a,* drain 3", "b,* maint 0"}, nodesOf(o.next(unread, now).all))
	require.Len(t, o.next(unread, now).bad, 2)

	gone := o.next(discovery.Snapshot{Missing: true}, now)
	require.Equal(t, []string{"a,* drain 3", "b,* maint 0"}, nodesOf(gone.all), "a wiped registry puts nothing back")
	require.Equal(t, []string{"a,* drain 3"}, nodesOf(gone.inForce(now.Add(time.Hour))), "but time does")
	require.Empty(t, gone.next(discovery.Snapshot{}, now).all, "the path is there, and empty")

	disk := restoredOverrides(o.kept, now)
	require.False(t, disk.heard)
	require.Equal(t, now, disk.stored)
	require.Equal(t, []string{"a,* drain 3", "b,* maint 0"}, nodesOf(disk.all))
	require.True(t, disk.next(discovery.Snapshot{}, now).stored.IsZero())
}

// TestBend: what each action makes of a server.
func TestBend(t *testing.T) {
	weight := func(n int) discovery.Override { return discovery.Override{Action: discovery.ActionWeight, Weight: n} }
	percent := func(n int) discovery.Override {
		return discovery.Override{Action: discovery.ActionWeight, Weight: n, Percent: true}
	}
	for _, c := range []struct {
		from haproxy.Server
		o    discovery.Override
		want haproxy.Server
	}{
		{haproxy.Server{Weight: 5}, discovery.Override{Action: discovery.ActionDrain}, haproxy.Server{Weight: 5, Admin: haproxy.Drain}},
		{haproxy.Server{Weight: 5}, discovery.Override{Action: discovery.ActionMaint}, haproxy.Server{Weight: 5, Admin: haproxy.Maint}},
		{haproxy.Server{Weight: 5}, discovery.Override{Action: discovery.ActionEnable}, haproxy.Server{Weight: 5}},
		{haproxy.Server{Admin: haproxy.Maint}, discovery.Override{Action: discovery.ActionDrain}, haproxy.Server{Admin: haproxy.Maint}},
		{haproxy.Server{Admin: haproxy.Maint}, discovery.Override{Action: discovery.ActionEnable}, haproxy.Server{Admin: haproxy.Maint}},
		{haproxy.Server{Weight: 5}, weight(256), haproxy.Server{Weight: 256}},
		{haproxy.Server{Weight: 5}, weight(0), haproxy.Server{}},
		{haproxy.Server{Weight: 10}, percent(25), haproxy.Server{Weight: 3}},
		{haproxy.Server{Weight: 10}, percent(100), haproxy.Server{Weight: 10}},
		{haproxy.Server{Weight: 1}, percent(1), haproxy.Server{Weight: 1}},
		{haproxy.Server{Weight: 10}, percent(0), haproxy.Server{}},
		{haproxy.Server{Weight: 0}, percent(50), haproxy.Server{}},
	} {
		s := c.from
		bend(&s, c.o)
		require.Equal(t, c.want, s, "%+v", c.o)
	}
}

// TestComposerModel: whatever instances come and go, and whatever overrides there are, what the composer wants of each
// server is what the narrowest override makes of its registration; and a backend's revision grows when that changes.
func TestComposerModel(t *testing.T) {
	c := &config.Agent{Services: []config.Service{serviceNamed("a"), serviceNamed("b"), serviceNamed("ports")}}
	c.Services[2].BackendPortOverride = 9
	for i := range c.Services {
		c.Services[i].UsePreviousBackends = false // an empty list is one
	}
	c.HAProxy.UseNerveWeights = true
	began := time.Date(2026, 5, 1, 12, 0, 0, 0, time.UTC)
	all := modelInstances(t)
	rapid.Check(t, func(t *rapid.T) {
		k := newComposer(c, nameserver, nil)
		views := make([]view, len(c.Services))
		for i, s := range c.Services {
			views[i] = newView(s)
		}
		w := k.all(views, nil)
		now := began
		for range rapid.IntRange(1, 12).Draw(t, "steps") {
			now = now.Add(time.Duration(rapid.IntRange(0, 90).Draw(t, "minutes")) * time.Minute)
			if rapid.Bool().Draw(t, "membership") {
				i := rapid.IntRange(0, len(views)-1).Draw(t, "service")
				var list []discovery.Instance
				for _, m := range all {
					if rapid.Bool().Draw(t, m.name) {
						list = append(list, m.instance)
					}
				}
				views[i] = views[i].next(discovery.Snapshot{Service: c.Services[i].Name, Instances: list, At: now}, now)
				before := w
				w = k.replace(i, views[i], w)
				checkRevisions(t, before, w)
			} else {
				k.overrides = inForce{overriding{all: drawOverrides(t, now)}.inForce(now), now}
				before := w
				w = k.all(views, w)
				checkRevisions(t, before, w)
			}
			checkComposed(t, c, all, views, k.overrides, w)
		}
	})
}

// modelInstance is a registration, and what it says.
type modelInstance struct {
	instance   discovery.Instance
	name, host string
	port       uint16
	weight     int
}

func modelInstances(t *testing.T) []modelInstance {
	in := instances(t, "x@10.0.0.1:81", "y@10.0.0.1:82,5", "z@10.0.0.2:81,100", "n@web.example.com:81,7")
	return []modelInstance{
		{in[0], "x", "10.0.0.1", 81, 1}, {in[1], "y", "10.0.0.1", 82, 5}, {in[2], "z", "10.0.0.2", 81, 100}, {in[3], "n", "web.example.com", 81, 7},
	}
}

func drawOverrides(t *rapid.T, now time.Time) discovery.Overrides {
	var all discovery.Overrides
	for i := range rapid.IntRange(0, 5).Draw(t, "overrides") {
		o := discovery.Override{
			Node: fmt.Sprint(i), Revision: int32(rapid.IntRange(0, 1).Draw(t, "revision")), Created: now,
			Action: rapid.SampledFrom([]discovery.Action{discovery.ActionDrain, discovery.ActionMaint, discovery.ActionWeight, discovery.ActionEnable}).Draw(t, "action"),
			Weight: rapid.SampledFrom([]int{0, 3, 50}).Draw(t, "weight"), Percent: rapid.Bool().Draw(t, "percent"),
			Until: rapid.SampledFrom([]time.Time{{}, now.Add(time.Hour), now}).Draw(t, "until"),
		}
		o.Service = rapid.SampledFrom([]string{"a", "b", "ports", "other", ""}).Draw(t, "of")
		o.Host = rapid.SampledFrom([]string{"10.0.0.1", "web.example.com", ""}).Draw(t, "host")
		if o.Host != "" {
			o.Port = rapid.SampledFrom([]uint16{0, 81, 82, 9}).Draw(t, "port")
		}
		if o.Target != (discovery.Target{}) {
			all = append(all, o)
		}
	}
	return all
}

// checkComposed plays a small model: each registered instance, by the names that it has.
func checkComposed(t *rapid.T, c *config.Agent, all []modelInstance, views []view, f inForce, w *wanted) {
	for i, v := range views {
		b := w.backends[c.Services[i].Name]
		if !v.known {
			require.Empty(t, b.overrides)
			continue
		}
		want := map[string]haproxy.Server{}
		nodes := map[string]string{}
		for _, m := range all {
			if !listed(v.snapshot.Instances, m.instance) {
				continue
			}
			host, port := m.host, m.port
			served := port
			if v.service.BackendPortOverride != 0 {
				served = v.service.BackendPortOverride
			}
			name := fmt.Sprintf("%s_%s:%d", m.name, host, served)
			s := haproxy.Server{Name: name, Weight: m.weight}
			var best *discovery.Override
			for _, try := range []discovery.Target{ // narrowest first
				{Service: v.service.Name, Host: host, Port: port}, {Service: v.service.Name, Host: host, Port: served},
				{Host: host, Port: port}, {Host: host, Port: served}, {Service: v.service.Name, Host: host}, {Host: host}, {Service: v.service.Name},
			} {
				for j := range f.all {
					if f.all[j].Target == try && best == nil {
						best = &f.all[j]
					}
				}
			}
			if best != nil {
				nodes[name] = best.Node
				switch best.Action {
				case discovery.ActionDrain:
					s.Admin = haproxy.Drain
				case discovery.ActionMaint:
					s.Admin = haproxy.Maint
				case discovery.ActionWeight:
					if s.Weight = best.Weight; best.Percent {
						s.Weight = (m.weight*best.Weight + 50) / 100
						if s.Weight == 0 && best.Weight > 0 {
							s.Weight = 1
						}
					}
				}
			}
			want[name] = s
		}
		got, counts := map[string]haproxy.Server{}, map[string]string{}
		for _, s := range b.servers {
			got[s.Name] = haproxy.Server{Name: s.Name, Weight: s.Weight, Admin: s.Admin}
		}
		for name, o := range b.overrides {
			counts[name] = o.Node
		}
		require.Equal(t, want, got)
		require.Equal(t, nodes, counts)
	}
}

func listed(list []discovery.Instance, in discovery.Instance) bool {
	for i := range list {
		if list[i].Equal(in) {
			return true
		}
	}
	return false
}

func checkRevisions(t *rapid.T, before, after *wanted) {
	for name, b := range after.backends {
		old := before.backends[name]
		if len(b.servers) != len(old.servers) {
			require.Greater(t, b.rev, old.rev, name)
			continue
		}
		changed := false
		for i := range b.servers {
			changed = changed || !sameServer(&b.servers[i], &old.servers[i])
		}
		for _, s := range b.servers {
			x, y := b.overrides[s.Name], old.overrides[s.Name]
			changed = changed || (x == nil) != (y == nil) || x != nil && (x.Node != y.Node || x.Revision != y.Revision)
		}
		changed = changed || b.known != old.known
		require.Equal(t, changed, b.rev > old.rev, name)
	}
}

// TestNextEnded: what has ended is removed once each, after a random pause; what is not known to lie there is not.
func TestNextEnded(t *testing.T) {
	now := time.Date(2026, 5, 1, 12, 0, 0, 0, time.UTC)
	o := &overrides{within: time.Minute}
	ended := map[string]time.Time{}
	kept := []discovery.Child{
		child(t, discovery.Override{Target: discovery.Target{Service: "a"}, Action: discovery.ActionDrain, Until: now.Add(-time.Hour)}, 7),
		child(t, discovery.Override{Target: discovery.Target{Service: "b"}, Action: discovery.ActionDrain, Until: now.Add(time.Hour)}, 0),
		child(t, discovery.Override{Target: discovery.Target{Service: "c"}, Action: discovery.ActionDrain}, 0),
	}
	o.latest = restoredOverrides(kept, now)
	_, when := o.nextEnded(ended, now)
	require.Zero(t, when, "the registry has not been heard of")

	o.latest = o.latest.next(discovery.Snapshot{Children: kept}, now)
	first, when := o.nextEnded(ended, now)
	require.Equal(t, "a,*", first.Node)
	require.False(t, when.Before(now.Add(time.Minute)), "a clock that is ahead")
	require.True(t, when.Before(now.Add(2*time.Minute)))
	_, again := o.nextEnded(ended, now.Add(time.Second))
	require.Equal(t, when, again, "it is drawn once")

	o.latest = o.latest.next(discovery.Snapshot{Children: kept[1:]}, now)
	first, when = o.nextEnded(ended, now)
	require.Equal(t, "b,*", first.Node)
	require.False(t, when.Before(now.Add(time.Hour+time.Minute)))
	require.Len(t, ended, 1)
	o.latest = o.latest.next(discovery.Snapshot{Missing: true}, now)
	_, when = o.nextEnded(ended, now)
	require.Zero(t, when)
}
