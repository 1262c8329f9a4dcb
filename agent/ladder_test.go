package agent

import (
	"errors"
	"fmt"
	"net/netip"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus/testutil"
	"github.com/stretchr/testify/require"

	"github.com/myelin-sd/myelin/config"
	"github.com/myelin-sd/myelin/discovery"
	"github.com/myelin-sd/myelin/haproxy"
)

// wantedOf composes one service with these instances.
func wantedOf(t *testing.T, h config.ServiceHAProxy, words ...string) *wanted {
	t.Helper()
	c := &config.Agent{Services: []config.Service{{Name: "svc", UsePreviousBackends: true, HAProxy: h}}}
	k := newComposer(c, nameserver, nil)
	v := newView(c.Services[0])
	if len(words) > 0 {
		v = v.next(discovery.Snapshot{Instances: instances(t, words...)}, time.Now())
	}
	return k.all([]view{v}, nil)
}

// TestLadderBeforeHAProxyIsMet: a backend stands as the file has it; one that the file does not have stands on slots
// where no version of HAProxy takes its servers otherwise.
func TestLadderBeforeHAProxyIsMet(t *testing.T) {
	a := haproxy.Server{Name: "a_10.0.0.1:80", Addr: netip.MustParseAddrPort("10.0.0.1:80"), Weight: 1}
	static := config.ServiceHAProxy{Backend: []string{"balance source"}}
	for _, tc := range []struct {
		name    string
		service config.ServiceHAProxy
		disk    []haproxy.Server
		slots   int
	}{
		{"nothing on disk, at run time", config.ServiceHAProxy{}, nil, 0},
		{"nothing on disk, static", static, nil, 8},
		{"nothing on disk, static with a cookie", config.ServiceHAProxy{Backend: []string{"balance source", "cookie S insert"}}, nil, 0},
		{"servers on disk, static", static, []haproxy.Server{a}, 0},
		{"slots on disk, at run time", config.ServiceHAProxy{}, haproxy.FileSlots(nil, []haproxy.Server{a}, nil, 16), 16},
	} {
		t.Run(tc.name, func(t *testing.T) {
			w := wantedOf(t, tc.service, "a@10.0.0.1:80", "b@10.0.0.2:80")
			l := newLadder(w, haproxy.State{"svc": tc.disk})
			file := w.forFile(newQuarantine(), l)["svc"]
			if tc.slots == 0 {
				require.Len(t, file, 2)
				require.Equal(t, "a_10.0.0.1:80", file[0].Name)
				return
			}
			require.Len(t, file, tc.slots)
			require.Equal(t, "80 80", takers(file))
			for i, s := range tc.disk {
				if s.Addr == a.Addr {
					require.Equal(t, s.Addr, file[i].Addr, "a stays where it is")
				}
			}
		})
	}
	// What was not heard of keeps its lines, whatever they are.
	w := wantedOf(t, static)
	b := w.backends["svc"]
	b.servers = haproxy.FileSlots(nil, []haproxy.Server{a}, nil, 16)
	require.Equal(t, b.servers, newLadder(w, haproxy.State{"svc": b.servers}).forFile(b, b.servers))
}

// TestLadderChanges: the file is told of what it is to have, and of nothing else.
func TestLadderChanges(t *testing.T) {
	l := newLadder(wantedOf(t, config.ServiceHAProxy{}), nil)
	slots := haproxy.FileSlots(nil, []haproxy.Server{{Addr: netip.MustParseAddrPort("10.0.0.1:80")}}, nil, 8)
	moved := haproxy.FileSlots(nil, []haproxy.Server{{Addr: netip.MustParseAddrPort("10.0.0.2:80")}}, nil, 8)
	for _, step := range []struct {
		name    string
		footing footing
		changed bool
	}{
		{"met, at run time", footing{rung: haproxy.RungServers}, false},
		{"to slots", footing{rung: haproxy.RungSlots, slots: slots}, true},
		{"the same", footing{rung: haproxy.RungSlots, slots: slots, why: "another reason"}, false},
		{"used up", footing{rung: haproxy.RungSlots, slots: slots, usedUp: true}, true},
		{"others in the slots", footing{rung: haproxy.RungSlots, slots: moved, usedUp: true}, true},
		{"to reloads", footing{rung: haproxy.RungReload}, true},
		{"and at run time again", footing{rung: haproxy.RungServers}, false},
	} {
		before := l.revision()
		_, changed := l.stand("svc", step.footing)
		require.Equal(t, step.changed, changed, step.name)
		require.Equal(t, step.changed, l.revision() != before, step.name)
	}
}

// TestRungIsPublished: the way and its reason are in the metric, and in the preview.
func TestRungIsPublished(t *testing.T) {
	n := newNodeOfAnyVersion(t, func(c *config.Agent) { c.Services[0].HAProxy.Backend = []string{"balance source"} })
	n.start(0)
	n.hear("a@127.0.0.1:81")
	n.answers("81")
	c := n.agent.Collector()
	require.NoError(t, testutil.CollectAndCompare(c, strings.NewReader(`
# HELP myelin_haproxy_rung 1 for the way in which HAProxy takes changes of a backend's servers.
# TYPE myelin_haproxy_rung gauge
myelin_haproxy_rung{backend="svc",rung="slots"} 1
`), "myelin_haproxy_rung"))

	w := n.gen.wanted.Load()
	p := &Preview{}
	l := newLadder(w, nil)
	p.ask(t.Context(), n.config, n.haproxy.Socket, l, w, n.gen.file.servers(), nil)
	require.Len(t, p.Targets, 1)
	require.Empty(t, p.Targets[0].Error)
	require.Empty(t, p.Targets[0].Plan)
	got := rungs(l, w)
	require.Len(t, got, 1)
	require.Equal(t, haproxy.RungSlots, got[0].Rung)
	if n.capabilities().DynamicServers { // an older one has a reason that comes first
		require.Contains(t, got[0].Reason, `"balance source"`)
	}
}

// TestSlotsKeepWhatIsNotKnown: neither a set from disk nor a name that does not resolve takes anything out of a slot.
func TestSlotsKeepWhatIsNotKnown(t *testing.T) {
	for _, tc := range []struct {
		name  string
		known func(*wantedBackend)
		want  string
	}{
		{"known", func(*wantedBackend) {}, "82"},
		{"from disk", func(b *wantedBackend) { b.stale = true }, "81 82"},
		{"a name", func(b *wantedBackend) {
			b.refused = []refused{{Instance: instances(t, "x@host.invalid:81")[0], Unknown: true}}
		}, "81 82"},
	} {
		t.Run(tc.name, func(t *testing.T) {
			w := wantedOf(t, config.ServiceHAProxy{Backend: []string{"balance source"}}, "b@10.0.0.2:82")
			b := w.backends["svc"]
			tc.known(&b)
			w.backends["svc"] = b
			r := &reconciler{ladder: newLadder(w, nil), unfit: map[string]string{"svc": "static"}, earlier: map[haproxy.Key]bool{}}
			found := haproxy.FileSlots(nil, []haproxy.Server{
				{Addr: netip.MustParseAddrPort("10.0.0.1:81"), Weight: 1}, {Addr: netip.MustParseAddrPort("10.0.0.2:82"), Weight: 1},
			}, nil, 8)
			steps, short := haproxy.DiffSlots("svc", found, r.slotServers(w, "svc", b.servers), r.slotView(w, "svc", nil, nil))
			require.Empty(t, short.Why())
			for _, s := range steps {
				require.Equal(t, haproxy.StepMaint, s.Op)
				found[haproxy.SlotNumber(s.Server.Name)-1].Admin = haproxy.Maint
			}
			require.Equal(t, tc.want, takers(found))
		})
	}

	// One in maintenance that HAProxy had when it was met has left: a set from disk does not bring it back.
	w := wantedOf(t, config.ServiceHAProxy{Backend: []string{"balance source"}}, "a@10.0.0.1:81", "b@10.0.0.2:82")
	b := w.backends["svc"]
	b.stale = true
	w.backends["svc"] = b
	r := &reconciler{ladder: newLadder(w, nil)}
	slots := haproxy.FileSlots(nil, []haproxy.Server{{Addr: netip.MustParseAddrPort("10.0.0.1:81"), Weight: 1}}, nil, 8)
	for i := range slots {
		slots[i].Admin = haproxy.Maint
	}
	r.inherit(w, haproxy.State{"svc": slots})
	left := r.slotServers(w, "svc", b.servers)
	require.Len(t, left, 1)
	require.Equal(t, "b_10.0.0.2:82", left[0].Name)
}

// TestReloadThatWasDone: what a service asks for while the reload that it needs is under way is not asked for again.
func TestReloadThatWasDone(t *testing.T) {
	n := newNode(t, func(c *config.Agent) {
		c.Services[0].HAProxy.Backend = []string{"balance source"}
		dir := filepath.Dir(c.HAProxy.ConfigFilePath)
		c.HAProxy.RestartInterval = 5 * time.Second // ample time to notice the new process, which is looked for twice a second
		c.HAProxy.ReloadCommand = fmt.Sprintf("echo reload >> %[1]s/reloads; sleep 0.3; kill -USR2 $(cat %[1]s/pid); sleep 0.3", dir)
	})
	n.start(0)
	n.hear("a@127.0.0.1:81")
	eventually(t, "a reload has begun", func() error {
		if n.reloads() == 0 {
			return errors.New("not yet")
		}
		return nil
	})
	n.hear("a@127.0.0.1:81", "b@127.0.0.1:82")
	n.answers("81 82")
	eventually(t, "no reload is under way or due", func() error {
		if r := n.gen.file.status().Reload; r.Reloads == 0 || len(r.Pending) > 0 {
			return fmt.Errorf("%+v", r)
		}
		return nil
	})
	require.Equal(t, 1, n.reloads())
}
