package agent

import (
	"context"
	"encoding/json"
	"errors"
	"io/fs"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	logtest "github.com/sirupsen/logrus/hooks/test"
	"github.com/stretchr/testify/require"

	"github.com/myelin-sd/myelin/config"
	"github.com/myelin-sd/myelin/discovery"
	"github.com/myelin-sd/myelin/haproxy"
)

// keeping gives a node a folder for its snapshots.
func keeping(n *config.Agent) { n.StateDir = filepath.Dir(n.HAProxy.ConfigFilePath) }

// keep writes what an earlier process has kept of a service, an hour ago.
func (n *node) keep(service string, words ...string) {
	n.t.Helper()
	i := slices.IndexFunc(n.config.Services, func(s config.Service) bool { return s.Name == service })
	snap := discoverySnapshot(n.t, words...)
	snap.Service = service
	require.NoError(n.t, storeOf(n.config).Save(snap, origin(n.config.Services[i]), time.Now().Add(-time.Hour)))
}

// keptOf is what is on disk of a service.
func (n *node) keptOf(service string) (string, time.Time) {
	n.t.Helper()
	i := slices.IndexFunc(n.config.Services, func(s config.Service) bool { return s.Name == service })
	snap, asOf, err := storeOf(n.config).Load(service, origin(n.config.Services[i]))
	require.NoError(n.t, err)
	return endpoints(snap.Instances), asOf
}

// rebuilt starts HAProxy anew from a file without servers, as after a boot with a rebuilt /run.
func (n *node) rebuilt() {
	n.t.Helper()
	require.NoError(n.t, n.haproxy.Stop())
	n.writeFile(fileOf(n.config).Render(nil))
	n.startHAProxy()
}

func (n *node) service(name string) ServiceStatus {
	for _, s := range n.agent.Status().Services {
		if s.Service == name {
			return s
		}
	}
	return ServiceStatus{}
}

func (n *node) untilClosed(what string, c <-chan struct{}) {
	n.t.Helper()
	select {
	case <-c:
	case <-time.After(patience):
		n.t.Fatal(what)
	}
}

// TestServesFromDisk: a node that boots while the registry is away, and whose HAProxy and file have nothing, serves
// what it served, and says how old it is. What is heard replaces it.
func TestServesFromDisk(t *testing.T) {
	n := newNode(t, keeping, func(c *config.Agent) { c.Services[0].Discovery.ZooKeeper.Hosts = []string{"127.0.0.1:1"} })
	n.start(0)
	n.hear("a@127.0.0.1:81", "b@127.0.0.1:82")
	n.has("svc", "a b")
	n.stop()
	_, asOf := n.keptOf("svc")
	require.Less(t, since(time.Now(), asOf), patience)
	n.rebuilt()

	n.keep("svc", "a@127.0.0.1:81", "b@127.0.0.1:82") // the same, but an hour older
	n.start(0)
	n.has("svc", "a b")
	n.fileHas("svc", "a b")
	n.untilClosed("an agent that serves is ready", n.agent.Ready())
	st := n.agent.Status()
	require.True(t, st.Ready)
	require.Empty(t, st.Waiting)
	require.Len(t, st.Stale, 1)
	require.Contains(t, st.Stale[0], "service svc: nothing heard from the registry yet; served from disk, as it was 1h0m")
	require.NotNil(t, st.Services[0].FromDisk)
	require.True(t, st.Services[0].Known)
	require.Equal(t, 2, st.Services[0].Active)
	require.Greater(t, n.metric("myelin_discovery_view_age_seconds"), 3600.0)
	require.Equal(t, 1, n.said("serving the last known set from disk"))
	require.Equal(t, 2, n.log.AllEntries()[slices.IndexFunc(n.messages(), func(m string) bool { return strings.HasPrefix(m, "serving the last") })].Data["count"])
	var ready struct {
		Ready bool
		Stale []string
	}
	page := n.page("/readyz")
	require.Equal(t, http.StatusOK, page.Code)
	require.NoError(t, json.Unmarshal(page.Body.Bytes(), &ready))
	require.True(t, ready.Ready)
	require.Equal(t, st.Stale[0][:40], ready.Stale[0][:40])
	require.Contains(t, n.page("/").Body.String(), "from disk, as it was 1h0m")
	select {
	case <-n.agent.Converged():
		t.Fatal("the registry has not been heard of")
	default:
	}
	require.Zero(t, histogramCount(t, n.registry, "myelin_propagation_seconds"), "what comes from disk was not propagated")

	n.hear("b@127.0.0.1:82", "c@127.0.0.1:83")
	n.has("svc", "a:maint b c")
	n.untilClosed("heard and applied", n.agent.Converged())
	require.Empty(t, n.agent.Status().Stale)
	require.Nil(t, n.service("svc").FromDisk)
	require.Zero(t, n.reloads())
	n.hear("c@127.0.0.1:83") // too soon for another write
	n.has("svc", "a:maint b:maint c")
	n.stop()
	kept, _ := n.keptOf("svc")
	require.Equal(t, "c@127.0.0.1:83", kept, "the end leaves what was last in force")
}

// TestDiskTakesNothingAway: what was kept may be a little older than what HAProxy has, when the last process died. Only
// what HAProxy never had is added; who has left stays away, who has joined stays.
func TestDiskTakesNothingAway(t *testing.T) {
	n := newNode(t, keeping)
	n.start(0)
	n.hear("a@127.0.0.1:81", "b@127.0.0.1:82")
	n.has("svc", "a b")
	n.hear("b@127.0.0.1:82", "c@127.0.0.1:83")
	n.has("svc", "a:maint b c")
	n.stop()
	n.keep("svc", "a@127.0.0.1:81", "b@127.0.0.1:82,7", "d@127.0.0.1:84")

	from := n.tap.count()
	n.tap.once("set server svc/d_127.0.0.1:84 state ready", fault{cut: true}) // a making that is cut short is finished
	n.start(0)
	n.has("svc", "a:maint b c d")
	n.untilClosed("applied", n.agent.Ready())
	for _, l := range n.tap.since(from) {
		require.Contains(t, l, "svc/d_127.0.0.1:84")
	}
	n.hear("b@127.0.0.1:82,7", "d@127.0.0.1:84")
	n.has("svc", "a:maint b*7 c:maint d")
}

// TestHeardAsOnDisk: a registry that says just what was on disk has HAProxy brought in line with it all the same.
func TestHeardAsOnDisk(t *testing.T) {
	n := newNode(t, keeping)
	n.start(0)
	n.hear("a@127.0.0.1:81", "b@127.0.0.1:82", "c@127.0.0.1:83")
	n.has("svc", "a b c")
	n.hear("b@127.0.0.1:82", "c@127.0.0.1:83")
	n.has("svc", "a:maint b c")
	n.stop()
	n.keep("svc", "a@127.0.0.1:81", "b@127.0.0.1:82")
	from := n.tap.count()
	n.start(0)
	n.untilClosed("applied", n.agent.Ready())
	require.Empty(t, n.tap.since(from))
	n.hear("a@127.0.0.1:81", "b@127.0.0.1:82")
	n.has("svc", "a b c:maint")
}

// TestFirstSnapshotEmpty: the holding rules hold for a set from disk as for any other.
func TestFirstSnapshotEmpty(t *testing.T) {
	n := newNode(t, keeping, func(c *config.Agent) {
		c.Services = append(c.Services, serviceNamed("believing"))
		c.Services[1].UsePreviousBackends = false
	})
	n.keep("svc", "a@127.0.0.1:81")
	n.keep("believing", "a@127.0.0.1:81")
	n.start(0)
	n.has("svc", "a")
	n.has("believing", "a")
	n.feeds["svc"] <- discovery.Snapshot{Service: "svc", Missing: true, At: time.Now()}
	n.hearOf("believing")
	n.has("believing", "a:maint")
	n.has("svc", "a")
	n.untilClosed("all was heard", n.agent.Converged())
	require.Equal(t, heldMissing, n.service("svc").Held)
	require.Equal(t, 1, n.said("the last good set stays in force"))
	n.stop()
	kept, asOf := n.keptOf("svc")
	require.Equal(t, "a@127.0.0.1:81", kept, "what is in force is kept, not what the registry says")
	require.Greater(t, since(time.Now(), asOf), 59*time.Minute, "the registry did not confirm it")
	kept, _ = n.keptOf("believing")
	require.Empty(t, kept)
}

// TestNothingUsableOnDisk: a corrupt file is set aside and said once, and the start goes on without it; a service that
// looks somewhere else now gets nothing of what it was.
func TestNothingUsableOnDisk(t *testing.T) {
	n := newNode(t, keeping, func(c *config.Agent) { c.Services = append(c.Services, serviceNamed("moved")) })
	n.keep("svc", "a@127.0.0.1:81")
	files, err := filepath.Glob(filepath.Join(n.config.StateDir, "snapshots", "svc-*"))
	require.NoError(t, err)
	require.Len(t, files, 1)
	require.NoError(t, os.Truncate(files[0], 100))
	n.keep("moved", "x@127.0.0.1:91")
	n.config.Services[1].Discovery.Path = "/elsewhere"

	n.start(0)
	require.Equal(t, 1, n.said("the set kept on disk is of no use"))
	require.FileExists(t, files[0]+".bad")
	n.connected()
	require.Len(t, n.gen.waiting(), 2, "nothing is known")
	require.Zero(t, n.said("serving the last known set"))
	n.hear("b@127.0.0.1:82")
	n.hearOf("moved", instances(t, "y@127.0.0.1:92")...)
	n.has("svc", "b")
	n.has("moved", "y")
	n.untilClosed("all was heard", n.agent.Converged())
	n.stop()
	kept, _ := n.keptOf("svc")
	require.Equal(t, "b@127.0.0.1:82", kept)
	require.Equal(t, 1, n.said("the set kept on disk is of no use"))
}

// TestOldServicesArePruned: when the configuration has proved itself, what was kept of services that it does not have
// is removed, and nothing else.
func TestOldServicesArePruned(t *testing.T) {
	n := newNode(t, keeping, func(c *config.Agent) {
		c.Path = "/etc/agent.toml"
		c.Services = append(c.Services, serviceNamed("old"))
	})
	n.keep("svc", "a@127.0.0.1:81")
	n.keep("old", "b@127.0.0.1:82")
	old := n.config.Services[1]
	others := discovery.Store{Dir: storeOf(n.config).Dir, Owner: "/etc/other.toml"}
	require.NoError(t, others.Save(discovery.Snapshot{Service: "theirs"}, origin(old), time.Now()))
	load := func(service string) error {
		_, _, err := others.Load(service, origin(old))
		return err
	}

	c := *n.config
	c.Services = c.Services[:1]
	n.tap.on(func(string) fault { return fault{cut: true} })
	n.startWith(&c, 0, nil)
	n.tap.tried(t, 3)
	require.NoError(t, load("old"), "not in force yet: it may be taken back")
	n.tap.on(nil)
	eventually(t, "the old set is gone", func() error {
		if err := load("old"); !errors.Is(err, fs.ErrNotExist) {
			return errors.New("it is still there")
		}
		return nil
	})
	require.NoError(t, load("theirs"))
	n.keptOf("svc")
}

// TestReadyMeansApplied: what was heard is not taken for applied because the round before had nothing to do.
func TestReadyMeansApplied(t *testing.T) {
	n := newNode(t)
	n.start(0)
	n.connected()
	held, let := make(chan struct{}), make(chan struct{})
	n.tap.once("add server", fault{behind: func() { close(held); <-let }})
	n.hear("a@127.0.0.1:81")
	n.untilClosed("the add is under way", held)
	eventually(t, "the file is in step", func() error {
		if !n.gen.file.inStep() {
			return errors.New("not yet")
		}
		return nil
	})
	require.Equal(t, []string{"HAProxy at " + n.tap.path + ": not everything wanted is applied"}, n.gen.waiting())
	close(let)
	n.untilClosed("ready", n.agent.Ready())
}

// writing is a keeper of one service over a folder of its own.
type writing struct {
	*snapshots
	wakes chan struct{}
	dir   string
	log   *logtest.Hook

	mu sync.Mutex
	is basis
	at time.Time
}

func newWriting(t *testing.T) *writing {
	log, hook := logtest.NewNullLogger()
	w := &writing{wakes: make(chan struct{}, 1), dir: filepath.Join(t.TempDir(), "state"), log: hook}
	w.snapshots = &snapshots{
		store: discovery.Store{Dir: w.dir}, services: []config.Service{serviceNamed("svc")}, wake: w.wakes, log: log,
		saved: make([]*discovery.Snapshot, 1),
		bases: func() []basis { w.mu.Lock(); defer w.mu.Unlock(); return []basis{w.is} },
		heard: func() map[string]time.Time {
			w.mu.Lock()
			defer w.mu.Unlock()
			return map[string]time.Time{"svc": w.at}
		},
	}
	return w
}

func (w *writing) change(t *testing.T, edit func(*basis), words ...string) {
	t.Helper()
	w.mu.Lock()
	w.is = basis{snapshot: discoverySnapshot(t, words...), ours: true}
	if edit != nil {
		edit(&w.is)
	}
	w.mu.Unlock()
	signal(w.wakes)
	synctest.Wait()
}

func (w *writing) onDisk(t *testing.T) (string, time.Time) {
	t.Helper()
	snap, asOf, err := w.store.Load("svc", origin(w.services[0]))
	if errors.Is(err, fs.ErrNotExist) {
		return "nothing", time.Time{}
	}
	require.NoError(t, err)
	return endpoints(snap.Instances), asOf
}

// TestSnapshotsPacing: the first change is written at once, those that follow every few seconds, and the last one at
// the end at the latest.
func TestSnapshotsPacing(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWriting(t)
		ctx, cancel := context.WithCancel(t.Context())
		done := make(chan struct{})
		go func() { defer close(done); w.run(ctx); w.end() }()
		has := func(want string) time.Time {
			t.Helper()
			got, asOf := w.onDisk(t)
			require.Equal(t, want, got)
			return asOf
		}
		w.change(t, func(b *basis) { b.ours = false }, "z@10.0.0.9:80")
		has("nothing")
		w.change(t, nil, "a@10.0.0.1:80")
		require.True(t, has("a@10.0.0.1:80").Equal(time.Now()))
		w.change(t, nil, "b@10.0.0.2:80")
		w.change(t, nil, "c@10.0.0.3:80")
		has("a@10.0.0.1:80")
		time.Sleep(saveEvery + time.Second)
		has("c@10.0.0.3:80")

		// While the registry lists it, it is as young as the registry's word; what is held is not.
		time.Sleep(2 * confirmEvery)
		w.mu.Lock()
		w.at = time.Now()
		w.mu.Unlock()
		time.Sleep(confirmEvery)
		require.True(t, has("c@10.0.0.3:80").Equal(w.at))
		from := time.Now().Add(-time.Minute)
		w.change(t, func(b *basis) { b.listed = from }, "d@10.0.0.4:80")
		require.True(t, has("d@10.0.0.4:80").Equal(from))
		time.Sleep(5 * confirmEvery)
		require.True(t, has("d@10.0.0.4:80").Equal(from))

		// A file that somebody removed comes back.
		require.NoError(t, os.RemoveAll(w.dir))
		w.change(t, nil, "e@10.0.0.5:80")
		has("e@10.0.0.5:80")
		require.NoError(t, os.RemoveAll(w.dir))
		time.Sleep(3 * confirmEvery)
		has("e@10.0.0.5:80")

		w.change(t, nil, "f@10.0.0.6:80")
		w.change(t, nil, "g@10.0.0.7:80")
		has("f@10.0.0.6:80")
		cancel()
		<-done
		has("g@10.0.0.7:80")
		require.Empty(t, w.log.AllEntries())
	})
}

// TestSnapshotsFailing: a folder that cannot be written is said once, shown, and tried again.
func TestSnapshotsFailing(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWriting(t)
		require.NoError(t, os.WriteFile(w.dir, nil, 0o600)) // a file in the folder's place
		ctx, cancel := context.WithCancel(t.Context())
		done := make(chan struct{})
		go func() { defer close(done); w.run(ctx) }()
		w.change(t, nil, "a@10.0.0.1:80")
		time.Sleep(time.Minute)
		w.change(t, nil, "b@10.0.0.2:80")
		time.Sleep(5 * confirmEvery)
		require.Equal(t, 1, said(w.log, "what is in force cannot be kept on disk"))
		require.Contains(t, w.status().Error, "save the set of service svc: ")

		require.NoError(t, os.Remove(w.dir))
		time.Sleep(2 * confirmEvery)
		got, _ := w.onDisk(t)
		require.Equal(t, "b@10.0.0.2:80", got)
		require.Equal(t, 1, said(w.log, "what is in force is kept on disk again"))
		require.Empty(t, w.status().Error)
		cancel()
		<-done
	})
}

// TestInheritedFromDisk: a re-read of the files before the registry was heard of keeps what came from the disk.
func TestInheritedFromDisk(t *testing.T) {
	n := newNode(t, keeping)
	n.keep("svc", "a@127.0.0.1:81", "b@127.0.0.1:82,az=x")
	n.start(0)
	n.has("svc", "a b")
	views := n.gen.viewsByName()
	n.stop()
	require.NoError(t, os.RemoveAll(storeOf(n.config).Dir))
	c := *n.config
	c.Services = slices.Clone(c.Services)
	c.Services[0].Discovery.LabelFilters = []config.LabelFilter{{Label: "az", Value: "x", Condition: "equals"}}
	n.startWith(&c, 0, views)
	n.fileHas("svc", "b")
	require.NotNil(t, n.service("svc").FromDisk)
	n.hear("b@127.0.0.1:82,az=x")
	n.has("svc", "a:maint b")
}

// TestPreviewFromDisk: what would be done without the registry is what the agent would do.
func TestPreviewFromDisk(t *testing.T) {
	n := newNode(t, keeping, func(c *config.Agent) { c.Services[0].Discovery.ZooKeeper.Hosts = []string{"127.0.0.1:1"} })
	n.keep("svc", "a@127.0.0.1:81")
	ctx, cancel := context.WithTimeout(t.Context(), 50*time.Millisecond)
	defer cancel()
	p, err := NewPreview(ctx, n.config, quiet(), true)
	require.NoError(t, err)
	require.Len(t, p.Notes, 1)
	require.Contains(t, p.Notes[0], "service svc: the registry did not answer; the set kept on disk is used, as it was 1h0m")
	require.Equal(t, "a", briefOf(haproxy.ServersOfText(p.File)["svc"]))
	require.Len(t, p.Targets, 1)
	require.Len(t, p.Targets[0].Plan, 1, p.Targets[0].Error)
}

// page asks the agent's HTTP.
func (n *node) page(path string) *httptest.ResponseRecorder {
	rec := httptest.NewRecorder()
	n.agent.Handler(n.registry).ServeHTTP(rec, httptest.NewRequest(http.MethodGet, path, nil))
	return rec
}

func (n *node) messages() []string {
	var out []string
	for _, e := range n.log.AllEntries() {
		out = append(out, e.Message)
	}
	return out
}

// metric is the value of a gauge that has one series.
func (n *node) metric(name string) float64 {
	n.t.Helper()
	reg := prometheus.NewRegistry()
	reg.MustRegister(n.agent.Collector())
	families, err := reg.Gather()
	require.NoError(n.t, err)
	for _, f := range families {
		if f.GetName() == name {
			require.Len(n.t, f.GetMetric(), 1)
			return f.GetMetric()[0].GetGauge().GetValue()
		}
	}
	require.Fail(n.t, "no metric "+name)
	return 0
}

func histogramCount(t *testing.T, reg *prometheus.Registry, name string) uint64 {
	t.Helper()
	families, err := reg.Gather()
	require.NoError(t, err)
	for _, f := range families {
		if f.GetName() == name {
			return f.GetMetric()[0].GetHistogram().GetSampleCount()
		}
	}
	return 0
}
