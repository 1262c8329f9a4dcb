package agent

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/myelin-sd/myelin/config"
	"github.com/myelin-sd/myelin/discovery"
	"github.com/myelin-sd/myelin/discovery/zookeeper"
	"github.com/myelin-sd/myelin/discovery/zookeeper/zktest"
	"github.com/myelin-sd/myelin/haproxy"
	"github.com/myelin-sd/myelin/haproxy/haproxytest"
	"github.com/myelin-sd/myelin/journal"
)

const overridesPath = "/myelin/overrides"

// operator writes overrides as people do.
type operator struct {
	t       *testing.T
	session *zookeeper.Session
}

func newOperator(t *testing.T, addr string) *operator {
	t.Helper()
	s := zookeeper.New(zookeeper.Options{Hosts: []string{addr}, SessionTimeout: 5 * time.Second, Log: quiet()})
	t.Cleanup(s.Close)
	return &operator{t, s}
}

func (o *operator) put(v discovery.Override) discovery.Override {
	o.t.Helper()
	ctx, cancel := context.WithTimeout(o.t.Context(), patience)
	defer cancel()
	revision := zookeeper.NoOverride
	for _, there := range o.all() {
		if there.Target == v.Target {
			revision = there.Revision
		}
	}
	v.Created = time.Now()
	v, err := o.session.PutOverride(ctx, overridesPath, v, revision)
	require.NoError(o.t, err)
	return v
}

func (o *operator) remove(v discovery.Override) {
	o.t.Helper()
	ctx, cancel := context.WithTimeout(o.t.Context(), patience)
	defer cancel()
	_, err := o.session.RemoveOverride(ctx, overridesPath, v.Node, v.Revision)
	require.NoError(o.t, err)
}

func (o *operator) all() []zookeeper.StoredOverride {
	o.t.Helper()
	ctx, cancel := context.WithTimeout(o.t.Context(), patience)
	defer cancel()
	all, err := o.session.Overrides(ctx, overridesPath)
	require.NoError(o.t, err)
	return all
}

// honouring has the agent honour the overrides of an ensemble.
func honouring(addr string) func(*config.Agent) {
	return func(c *config.Agent) {
		keeping(c)
		c.OverridesPath = overridesPath
		c.ZooKeeper = config.ZooKeeper{Hosts: []string{addr}, SessionTimeout: 5 * time.Second}
	}
}

func about(service, host string, port uint16, action discovery.Action) discovery.Override {
	return discovery.Override{Target: discovery.Target{Service: service, Host: host, Port: port}, Action: action, Author: "ann", Reason: "disk"}
}

func weighing(o discovery.Override, weight int, percent bool) discovery.Override {
	o.Action, o.Weight, o.Percent = discovery.ActionWeight, weight, percent
	return o
}

// overrideApplied waits until the status says that an override was applied, and returns what it says.
func (n *node) overrideApplied(o discovery.Override, servers int) OverrideStatus {
	n.t.Helper()
	var found OverrideStatus
	eventually(n.t, "override applied", func() error {
		for _, s := range n.agent.Status().Overrides.List {
			if s.Node == o.Node && s.Revision == o.Revision {
				if found = s; s.Applied && s.Servers == servers {
					return nil
				}
				return fmt.Errorf("applied %v for %d servers, not %d", s.Applied, s.Servers, servers)
			}
		}
		return errors.New("it is not in the status")
	})
	return found
}

func (n *node) overridesHeard() {
	n.t.Helper()
	eventually(n.t, "overrides are heard of", func() error {
		if n.agent.Status().Overrides.Heard == nil {
			return errors.New("not yet")
		}
		return nil
	})
}

// events are what a journal is told.
type events struct {
	mu  sync.Mutex
	all []journal.Event
}

func (e *events) Record(v journal.Event) {
	e.mu.Lock()
	defer e.mu.Unlock()
	e.all = append(e.all, v)
}

func (e *events) of(kind journal.Kind) []string {
	e.mu.Lock()
	defer e.mu.Unlock()
	var out []string
	for _, v := range e.all {
		if v.Kind == kind {
			out = append(out, strings.TrimSpace(v.Service+" "+v.Instance)+": "+v.What)
		}
	}
	return out
}

// TestOverrides: each action on an instance, on what runs on a host, and on a service; the narrower goes before the
// wider, and what ends is put back at once. Nothing of it is a reload.
func TestOverrides(t *testing.T) {
	t.Parallel()
	zks := zktest.New(t)
	op := newOperator(t, zks.Addr())
	n := newNode(t, honouring(zks.Addr()), func(c *config.Agent) {
		c.Services = append(c.Services, serviceNamed("other"))
	})
	var told events
	n.prepare = func(g *generation) { g.journal = &told }
	n.start(0)
	n.overridesHeard()
	require.True(t, n.agent.Status().Overrides.Missing, "nobody made the path, and an agent does not")
	n.hear("a@127.0.0.1:81,10", "b@127.0.0.2:81,10", "c@127.0.0.2:82,10")
	n.hearOf("other", instances(t, "o@127.0.0.2:81,4")...)
	n.has("svc", "a*10 b*10 c*10")
	n.has("other", "o*4")

	one := op.put(about("svc", "127.0.0.2", 81, discovery.ActionDrain))
	n.has("svc", "a*10 b:drain*10 c*10")
	n.has("other", "o*4")
	n.fileHas("svc", "a*10 b:maint*10 c*10") // a start from it gives a drained server no traffic
	s := n.overrideApplied(one, 1)
	require.Equal(t, "ann", s.Author)
	require.Equal(t, "svc 127.0.0.2:81", s.Target())

	host := op.put(about("", "127.0.0.2", 0, discovery.ActionMaint))
	n.has("svc", "a*10 b:drain*10 c:maint*10")
	n.has("other", "o:maint*4")
	n.overrideApplied(host, 2)

	ofHost := op.put(weighing(about("svc", "127.0.0.2", 0, ""), 50, true))
	n.has("svc", "a*10 b:drain*10 c*5")
	whole := op.put(weighing(about("svc", "", 0, ""), 100, false))
	n.has("svc", "a*100 b:drain*10 c*5")
	n.overrideApplied(whole, 1)

	one = op.put(about("svc", "127.0.0.2", 81, discovery.ActionEnable)) // as registered, although wider ones count
	n.has("svc", "a*100 b*10 c*5")
	require.Equal(t, int32(1), one.Revision)
	n.overrideApplied(one, 1)
	servers, err := n.agent.Servers(t.Context(), "svc", instances(t, "c@127.0.0.2:82")[0].Endpoint)
	require.NoError(t, err)
	require.Equal(t, ofHost.Node, servers[0].Override)

	n.hear("a@127.0.0.1:81,10", "b@127.0.0.2:81,10", "c@127.0.0.2:82,10", "d@127.0.0.2:83,20") // one that joins is covered
	n.has("svc", "a*100 b*10 c*5 d*10")
	op.remove(whole)
	n.has("svc", "a*10 b*10 c*5 d*10")
	op.remove(ofHost)
	n.has("svc", "a*10 b*10 c:maint*10 d:maint*20")
	op.remove(host)
	n.has("svc", "a*10 b*10 c*10 d*20")
	n.has("other", "o*4")
	require.Zero(t, n.reloads())
	require.Contains(t, told.of(journal.KindOverride), "svc 127.0.0.2:81: drain of svc 127.0.0.2:81 counts")
	require.Contains(t, told.of(journal.KindOverride), "127.0.0.2: maint of 127.0.0.2 was removed"[len("127.0.0.2"):])
	require.Contains(t, n.logText(), "an override counts no more")
}

// TestOverrideEnds: an override ends at its time, is put back at once, and its node is removed.
func TestOverrideEnds(t *testing.T) {
	t.Parallel()
	zks := zktest.New(t)
	op := newOperator(t, zks.Addr())
	n := newNode(t, honouring(zks.Addr()))
	n.prepare = func(g *generation) { g.overrides.within = 0 }
	n.start(0)
	n.hear("a@127.0.0.1:81", "b@127.0.0.1:82")
	n.has("svc", "a b")
	o := about("svc", "127.0.0.1", 81, discovery.ActionMaint)
	o.Until = time.Now().Add(3 * time.Second)
	o = op.put(o)
	n.has("svc", "a:maint b")
	n.has("svc", "a b")
	require.False(t, time.Now().Before(o.Until.Truncate(time.Second)), "it ended before its time")
	eventually(t, "its node is gone", func() error {
		if all := op.all(); len(all) > 0 {
			return fmt.Errorf("%d are there", len(all))
		}
		return nil
	})
	eventually(t, "it is not in the status", func() error {
		if st := n.agent.Status().Overrides; len(st.List) > 0 || st.Missing {
			return fmt.Errorf("%+v", st)
		}
		return nil
	})
}

// TestOverridesOutlastAll: a drained server stays drained when HAProxy is restarted, when ZooKeeper is away, when the
// agent is restarted meanwhile, when HAProxy is restarted then, and when ZooKeeper comes back empty.
func TestOverridesOutlastAll(t *testing.T) {
	t.Parallel()
	zks := zktest.New(t)
	op := newOperator(t, zks.Addr())
	n := newNode(t, honouring(zks.Addr()))
	n.start(0)
	n.hear("a@127.0.0.1:81", "b@127.0.0.1:82", "c@127.0.0.1:83")
	n.has("svc", "a b c")
	n.ready()
	drain := op.put(about("svc", "127.0.0.1", 81, discovery.ActionDrain))
	op.put(about("", "127.0.0.1", 82, discovery.ActionMaint))
	n.has("svc", "a:drain b:maint c")
	n.fileHas("svc", "a:maint b:maint c")

	require.NoError(t, n.haproxy.Restart())
	n.notePid()
	n.has("svc", "a:drain b:maint c")

	require.NoError(t, zks.Stop())
	eventually(t, "the agent has seen it", func() error {
		if n.agent.Status().ZooKeeper[0].Connected {
			return errors.New("it is connected")
		}
		return nil
	})
	n.has("svc", "a:drain b:maint c")
	n.stop()
	n.start(0)
	n.connected()
	n.ready()
	st := n.agent.Status()
	require.NotNil(t, st.Overrides.FromDisk)
	require.Len(t, st.Overrides.List, 2)
	require.Contains(t, strings.Join(st.Stale, "; "), "overrides at /myelin/overrides")
	n.has("svc", "a:drain b:maint c")
	from := n.tap.count()
	require.NoError(t, n.haproxy.Restart())
	n.notePid()
	n.has("svc", "a:drain b:maint c") // the set is from the disk too: nothing else of it is touched
	require.NotContains(t, strings.Join(n.tap.since(from), "\n"), "state ready")

	require.NoError(t, zks.Wipe())
	require.NoError(t, zks.Start())
	n.hear("a@127.0.0.1:81", "b@127.0.0.1:82", "c@127.0.0.1:83")
	eventually(t, "the path is seen to be gone", func() error {
		if st := n.agent.Status().Overrides; st.Heard == nil || !st.Missing {
			return fmt.Errorf("%+v", st)
		}
		return nil
	})
	require.Equal(t, 1, n.said("the overrides' path is gone"))
	n.hear("a@127.0.0.1:81", "b@127.0.0.1:82", "c@127.0.0.1:83", "d@127.0.0.1:84")
	n.has("svc", "a:drain b:maint c d")

	op = newOperator(t, zks.Addr()) // the session of before has seen more than is there now
	drain = op.put(drain)           // the path exists again, and what it has is all there is
	n.has("svc", "a:drain b c d")
	op.remove(drain)
	n.has("svc", "a b c d")
	require.Zero(t, n.reloads())
}

// TestOverridesWithSlots: a HAProxy that takes no servers at run time honours them as well.
func TestOverridesWithSlots(t *testing.T) {
	t.Parallel()
	zks := zktest.New(t)
	op := newOperator(t, zks.Addr())
	n := newNodeOfAnyVersion(t, honouring(zks.Addr()), func(c *config.Agent) {
		c.Services[0].HAProxy.Backend = []string{"balance static-rr", "hash-type map-based"}
		c.Services[0].DrainTimeout = time.Hour
	})
	n.start(0)
	seated := func(want string) {
		t.Helper()
		eventually(t, "servers", func() error {
			servers, err := n.agent.Servers(t.Context(), "svc", discovery.Endpoint{})
			if err != nil {
				return err
			}
			var words []string
			for _, s := range servers {
				if s.Wanted != serverAbsent {
					words = append(words, fmt.Sprintf("%s=%s*%d", s.Address, s.Admin, s.Weight))
				}
			}
			if got := strings.Join(words, " "); got != want {
				return fmt.Errorf("%q, not %q", got, want)
			}
			return nil
		})
	}
	n.hear("a@127.0.0.1:81")
	seated("127.0.0.1:81=ready*1")
	o := op.put(about("svc", "", 0, discovery.ActionDrain))
	seated("127.0.0.1:81=drain*1")
	n.overrideApplied(o, 1)
	op.put(about("svc", "", 0, discovery.ActionMaint))
	seated("127.0.0.1:81=maint*1")
	o = op.put(weighing(about("svc", "", 0, ""), 0, false))
	seated("127.0.0.1:81=ready*0")
	op.remove(o)
	seated("127.0.0.1:81=ready*1")
}

// TestOverridesKept: what cannot be read of the disk never stops a start, nor does what is of another path.
func TestOverridesKept(t *testing.T) {
	dir := t.TempDir()
	file := filepath.Join(dir, "overrides.json")
	for text, want := range map[string]string{
		``:                            "unexpected end",
		`{"origin":"x","nodes":[]}`:   "another path",
		`{"origin":"here","nodes":3}`: "cannot unmarshal",
	} {
		require.NoError(t, os.WriteFile(file, []byte(text), 0o600))
		_, _, err := readOverrides(file, "here")
		require.ErrorContains(t, err, want)
	}
	o := &overrides{origin: "here", file: file, log: quiet()}
	o.latest = overriding{}.next(discovery.Snapshot{Children: []discovery.Child{child(t, about("svc", "", 0, discovery.ActionDrain), 5)}}, time.Now())
	require.True(t, o.save())
	again := &overrides{origin: "here", file: file, log: quiet()}
	again.recall()
	require.Equal(t, o.latest.all, again.latest.all)
	require.False(t, again.latest.heard)

	o.file = filepath.Join(dir, "no such folder", "overrides.json")
	o.latest.heard = true
	require.False(t, o.save())
	require.NotEmpty(t, o.err)
}

// manuals waits until so many manual changes are respected.
func (n *node) manuals(count int) []ManualChange {
	n.t.Helper()
	var all []ManualChange
	eventually(n.t, "manual changes", func() error {
		if all = n.haproxyStatus().Manual; len(all) != count {
			return fmt.Errorf("%d, not %d", len(all), count)
		}
		return nil
	})
	return all
}

// lookAll has everything looked at, which is otherwise done every half a minute.
func (n *node) lookAll() {
	n.t.Helper()
	n.tap.once("show info", fault{cut: true})
}

func respecting(d time.Duration) func(*config.Agent) {
	return func(c *config.Agent) {
		keeping(c)
		c.HAProxy.ManualChanges = d
	}
}

// TestManualChanges: what somebody else sets on the socket stays, state and weight, through changes of others and a
// restart of the agent; a server that leaves leaves all the same.
func TestManualChanges(t *testing.T) {
	t.Parallel()
	haproxytest.RequireDynamicServers(t)
	n := newNode(t, respecting(time.Hour))
	var told events
	n.prepare = func(g *generation) {
		for _, r := range g.haproxys {
			r.journal = &told
		}
	}
	n.start(0)
	n.hear("a@127.0.0.1:81", "b@127.0.0.1:82", "c@127.0.0.1:83", "d@127.0.0.1:84", "e@127.0.0.1:85")
	n.has("svc", "a b c d e")
	n.ready()
	n.hear("a@127.0.0.1:81", "b@127.0.0.1:82", "c@127.0.0.1:83", "d@127.0.0.1:84") // e is in maintenance because of us
	n.has("svc", "a b c d e:maint")
	n.byHand("set server svc/a_127.0.0.1:81 state drain; set server svc/b_127.0.0.1:82 weight 7; disable server svc/c_127.0.0.1:83")
	n.byHand("set server svc/e_127.0.0.1:85 state ready") // it is not wanted: nothing to respect
	n.lookAll()
	all := n.manuals(3)
	require.Equal(t, "a_127.0.0.1:81", all[0].Server)
	require.Equal(t, "state drain, was ready", all[0].What)
	require.Equal(t, "weight 7, was 1", all[1].What)
	require.Equal(t, "state maint, was ready", all[2].What)
	n.has("svc", "a:drain b*7 c:maint d e:maint")
	n.ready()
	require.Equal(t, 3, n.said("somebody else changed a server"))
	require.Contains(t, told.of(journal.KindForeign), "svc 127.0.0.1:81: state drain, was ready")
	require.Equal(t, 3.0, n.metric("myelin_haproxy_foreign_servers"))

	n.hear("a@127.0.0.1:81", "b@127.0.0.1:82,5", "c@127.0.0.1:83", "d@127.0.0.1:84", "f@127.0.0.1:86")
	n.has("svc", "a:drain b*7 c:maint d e:maint f")
	servers, err := n.agent.Servers(t.Context(), "svc", instances(t, "b@127.0.0.1:82")[0].Endpoint)
	require.NoError(t, err)
	require.Contains(t, servers[0].Foreign, "weight 7, was 1; it stays so until")

	n.stop()
	n.start(0)
	n.hear("a@127.0.0.1:81", "b@127.0.0.1:82,5", "c@127.0.0.1:83", "d@127.0.0.1:84", "f@127.0.0.1:86")
	n.ready()
	n.manuals(3)
	n.has("svc", "a:drain b*7 c:maint d e:maint f")

	n.byHand("set server svc/c_127.0.0.1:83 state ready") // put back by hand
	n.lookAll()
	n.manuals(2)
	n.hear("b@127.0.0.1:82,5", "c@127.0.0.1:83", "d@127.0.0.1:84", "f@127.0.0.1:86")
	n.has("svc", "a:maint b*7 c d e:maint f")
	n.manuals(1)
	require.NoError(t, n.haproxy.Restart()) // another process has none of it
	n.notePid()
	n.has("svc", "b*5 c d f")
	n.manuals(0)
}

// TestManualChangeEnds: after its time what somebody else has set is corrected; with a time of 0 at once.
func TestManualChangeEnds(t *testing.T) {
	t.Parallel()
	n := newNode(t, respecting(300*time.Millisecond))
	n.start(0)
	n.hear("a@127.0.0.1:81", "b@127.0.0.1:82")
	n.has("svc", "a b")
	n.ready()
	n.byHand("set server svc/a_127.0.0.1:81 state maint; set server svc/b_127.0.0.1:82 weight 0")
	n.lookAll()
	n.has("svc", "a b")
	n.manuals(0)
	require.Equal(t, 2, n.said("what somebody else changed is corrected"))
	n.stop()
	n.config.HAProxy.ManualChanges = 0
	n.start(0)
	n.hear("a@127.0.0.1:81", "b@127.0.0.1:82")
	n.ready()
	n.byHand("set server svc/a_127.0.0.1:81 state maint")
	n.lookAll()
	n.has("svc", "a b")
	require.Equal(t, 1, n.said("somebody else changed a server; it is corrected"))
}

// TestManualChangeAndOverride: an override of the same server ends the respect at once, and counts from then on.
func TestManualChangeAndOverride(t *testing.T) {
	t.Parallel()
	zks := zktest.New(t)
	op := newOperator(t, zks.Addr())
	n := newNode(t, honouring(zks.Addr()), respecting(time.Hour))
	n.start(0)
	n.hear("a@127.0.0.1:81", "b@127.0.0.1:82")
	n.has("svc", "a b")
	n.ready()
	n.byHand("set server svc/a_127.0.0.1:81 state maint; set server svc/b_127.0.0.1:82 state maint")
	n.lookAll()
	n.manuals(2)
	o := op.put(about("svc", "127.0.0.1", 81, discovery.ActionEnable))
	n.has("svc", "a b:maint")
	n.manuals(1)
	op.remove(o)
	o = op.put(about("svc", "", 0, discovery.ActionDrain))
	n.has("svc", "a:drain b:drain")
	n.manuals(0)
	n.overrideApplied(o, 2)
	n.byHand("set server svc/a_127.0.0.1:81 state ready")
	n.lookAll()
	n.has("svc", "a:drain b:drain")
	require.Equal(t, 1, n.said("somebody else changed a server that an override is about"))
	n.manuals(0)
}

// TestLostRepliesAreNotForeign: what we sent and got no reply to is ours, also when HAProxy has done it.
func TestLostRepliesAreNotForeign(t *testing.T) {
	t.Parallel()
	n := newNode(t, respecting(time.Hour), func(c *config.Agent) { c.Services[0].DrainTimeout = time.Hour })
	n.start(0)
	n.hear("a@127.0.0.1:81", "b@127.0.0.1:82")
	n.has("svc", "a b")
	n.ready()
	n.tap.once("set server svc/a_127.0.0.1:81 weight", fault{lost: true})
	n.hear("a@127.0.0.1:81,9", "b@127.0.0.1:82")
	n.has("svc", "a*9 b")
	n.ready()
	n.tap.once("set server svc/b_127.0.0.1:82 state drain", fault{lost: true})
	n.hear("a@127.0.0.1:81,9")
	n.has("svc", "a*9 b:drain")
	n.tap.once("set server svc/b_127.0.0.1:82 state ready", fault{lost: true})
	n.hear("a@127.0.0.1:81,9", "b@127.0.0.1:82")
	n.has("svc", "a*9 b")
	n.ready()
	require.Zero(t, n.said("somebody else"))
	n.manuals(0)
}

// TestEndedIsNotTheNext: the override that an agent removes because it has ended is the one that it knows: one that was
// made under the same name since, with the same version, stays.
func TestEndedIsNotTheNext(t *testing.T) {
	zks := zktest.New(t, zktest.Options{})
	people := newOperator(t, zks.Addr())
	ended := about("web", "10.0.0.1", 80, discovery.ActionDrain)
	ended.Until = time.Now().Add(time.Second)
	people.put(ended)
	ended = people.all()[0].Override
	people.remove(ended)
	people.put(about("web", "10.0.0.1", 80, discovery.ActionDrain))
	lasting := people.all()[0].Override
	require.Equal(t, ended.Revision, lasting.Revision, "ZooKeeper counts anew")

	ctx, cancel := context.WithTimeout(t.Context(), patience)
	defer cancel()
	removed, err := people.session.RemoveEndedOverride(ctx, overridesPath, ended)
	require.ErrorIs(t, err, zookeeper.ErrOverrideChanged)
	require.False(t, removed)
	require.Len(t, people.all(), 1)

	removed, err = people.session.RemoveEndedOverride(ctx, overridesPath, lasting)
	require.NoError(t, err)
	require.True(t, removed, "it is what it was")
	require.Empty(t, people.all())
}

// TestManualChangesAreKeptAsTheyAre: what is not respected any more is not on the disk either, where the next process of
// the agent would take it up; and how long it is respected is what the configuration says now.
func TestManualChangesAreKeptAsTheyAre(t *testing.T) {
	id := haproxy.Identity{Pid: 7}
	file := filepath.Join(t.TempDir(), "manual.json")
	made := func(respect time.Duration) *reconciler {
		return &reconciler{manualFile: file, identity: id, manualFor: respect, log: quiet()}
	}
	k := haproxy.Key{Backend: "svc", Server: "a"}
	seen := time.Now().Add(-10 * time.Minute).Truncate(time.Second)
	r := made(time.Hour)
	r.recallManual(id)
	r.manual[k] = manual{what: "state drain, was ready", since: seen, until: seen.Add(time.Hour), admin: haproxy.Drain, weight: 1}
	r.keepManual()

	r = made(20 * time.Minute)
	r.recallManual(id)
	require.Len(t, r.manual, 1)
	require.WithinDuration(t, seen.Add(20*time.Minute), r.manual[k].until, 0)
	again := made(0)
	again.before = r.memory()
	again.recallManual(id)
	require.WithinDuration(t, seen, again.manual[k].until, 0, "it is over")

	r.actual = haproxy.State{"svc": {{Name: "a", Admin: haproxy.Ready, Weight: 1}}} // somebody has put it back
	r.checkManual()
	r.keepManual()
	r = made(time.Hour)
	r.recallManual(id)
	require.Empty(t, r.manual)
}

// TestManualChangeOfNoService: a service that is not for HAProxy any more (the registry's configuration may say so) is no
// work that is due for ever.
func TestManualChangeOfNoService(t *testing.T) {
	r := &reconciler{wanted: func() *wanted { return &wanted{} }, manual: map[haproxy.Key]manual{
		{Backend: "gone", Server: "a"}: {until: time.Now().Add(-time.Minute)},
	}}
	_, due := r.nextTask()
	require.False(t, due)
}
