package agent

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/myelin-sd/myelin/config"
	"github.com/myelin-sd/myelin/discovery"
)

func TestAllowedRemotely(t *testing.T) {
	for _, line := range []string{
		"mode http", "balance leastconn", "option httpchk GET /health", "timeout server 5s", "acl is_x path_beg /x", "no option httplog",
		"use_backend other if is_x", "http-request set-header X-A b", "http-request deny if is_x", "cookie SRV insert", "http-check expect status 200", "",
		"acl is_host hdr(host) -m dom example.com", `http-check send meth GET uri /x hdr Host "a b"`, "tcp-check connect port 81", `acl addr src 10.0.0.0/8`,
	} {
		require.NoError(t, allowedRemotely("backend", []string{line}), line)
	}
	for _, line := range []string{
		"server evil 6.6.6.6:6", "bind *:1", "log 6.6.6.6:514 local0", "errorfile 503 /etc/shadow", "option external-check", "external-check command /bin/sh",
		"http-request return status 200 file /etc/shadow", "http-request lua.x", "http-request set-dst str(6.6.6.6)", "acl x path -f /etc/shadow",
		"http-request set-header X %[env(SECRET)]", "http-request set-header X $SECRET", "use_backend %[path,map(/etc/x)]", "backend x", "global", "filter spoe",
		"default_backend x", "source 6.6.6.6", "stats socket /x", "option transparent", "HTTP-REQUEST use-service lua.x", "no", "http-request set-map(/x) a b",
		`acl x path "-f" /etc/shadow`, `acl x path -"f" /etc/shadow`, `acl x path '-f' /etc/shadow`, `http-request set-header X %[e"nv"(SECRET)]`,
		`use_backend %[path,m'a'p(/etc/x)]`, `http-request deny deny_status 200 content-type text/plain f"ile" /etc/shadow`, `http-request set-header X "%[lu"a.x]`,
		`http-request set-header X %[req.hdr(a),jwt_verify(str(RS256),"/etc/key")]`, "http-check set-var(proc.x) int(1)",
		"http-check connect addr unix@/run/haproxy.sock", `tcp-check connect "addr" 127.0.0.1 port 22`,
	} {
		require.Error(t, allowedRemotely("backend", []string{"mode http", line}), line)
	}
	require.NoError(t, allowedRemotely("server_options", []string{"check port %{port} inter 5s cookie %{name}"}))
	for _, options := range []string{"ssl verify none", "check addr 6.6.6.6", "source 6.6.6.6", "check; x", "nonsense"} {
		require.Error(t, allowedRemotely("server_options", []string{options}), options)
	}
}

// holding has the registry list instances of svc, and hold this configuration for it.
func (n *node) holding(data string, words ...string) {
	list := instances(n.t, words...)
	slices.SortFunc(list, discovery.Compare)
	n.feeds["svc"] <- discovery.Snapshot{Service: "svc", Instances: list, At: time.Now(), Data: []byte(data), DataRead: true}
}

func (n *node) fileSays(what string, line string) {
	n.t.Helper()
	eventually(n.t, what, func() error {
		text, err := os.ReadFile(n.config.HAProxy.ConfigFilePath)
		if err == nil && !strings.Contains(string(text), line) {
			err = fmt.Errorf("no %q in\n%s", line, text)
		}
		return err
	})
}

func (n *node) reloadedTimes(want int) {
	n.t.Helper()
	eventually(n.t, "reloads", func() error {
		if got := n.reloads(); got != want {
			return fmt.Errorf("%d reloads, not %d", got, want)
		}
		return nil
	})
}

// TestRemoteConfig: what the registry holds lies over the file's keys, with one reload; what is bad of it is shown and
// costs only itself; a restart of the agent knows it before the registry is heard of; without it the file counts again.
func TestRemoteConfig(t *testing.T) {
	n := newNode(t, func(c *config.Agent) {
		c.StateDir = filepath.Dir(c.HAProxy.ConfigFilePath)
		c.HAProxy.Binary = "haproxy"
		c.HAProxy.Defaults = []string{"mode http", "timeout connect 1s", "timeout client 5s", "timeout server 5s"}
		c.Services[0].Discovery.GeneratorConfigPath = "/svc"
		c.Services[0].HAProxy.Backend = []string{"balance roundrobin"}
		c.Services = append(c.Services, serviceNamed("other"))
	})
	begin := func() {
		t.Helper()
		n.start(0)
		n.hearOf("other", instances(t, "o@127.0.0.1:99")...)
	}
	begin()
	n.gen.remotes.gap = 0 // read by the goroutine only after the first acceptance
	n.holding("", "a@127.0.0.1:81")
	n.has("svc", "a")
	n.ready()
	n.holding("10.0.0.1", "a@127.0.0.1:81") // what Curator leaves in the parents that it makes
	n.holding("", "a@127.0.0.1:81", "b@127.0.0.1:82")
	n.has("svc", "a b")
	n.ready()
	require.Zero(t, n.reloads(), "nothing there is nothing to do")
	require.Zero(t, n.said("configuration from the registry is not used"))
	n.hear("a@127.0.0.1:81")
	n.has("svc", "a b:maint")

	good := `{"haproxy": {"backend": ["balance leastconn", "option httpchk GET /x"], "server_options": "check inter 7s", "listen": ["errorfile 503 /etc/shadow"]}}`
	n.holding(good, "a@127.0.0.1:81")
	n.fileSays("the registry's line", "balance leastconn")
	n.fileSays("and its options", "check inter 7s")
	n.reloadedTimes(1)
	n.ready()
	s := n.service("svc")
	require.True(t, s.Remote)
	require.Len(t, s.Problems, 1)
	require.Contains(t, s.Problems[0], "errorfile 503")
	require.Contains(t, n.metrics(), `myelin_discovery_remote_problems{service="svc"} 1`)
	page := httptest.NewRecorder()
	n.agent.Handler(n.registry).ServeHTTP(page, httptest.NewRequest(http.MethodGet, "/", nil))
	require.Contains(t, page.Body.String(), "errorfile 503")
	n.has("other", "o")

	// Passed by our rules, refused by HAProxy: what was in force stays, and membership goes on.
	n.holding(`{"haproxy": {"backend": ["balance nonsense"]}}`, "a@127.0.0.1:81", "b@127.0.0.1:82")
	eventually(t, "the refusal shows", func() error {
		if p := n.service("svc").Problems; len(p) != 1 || !strings.Contains(p[0], "HAProxy refuses it") {
			return fmt.Errorf("%q", p)
		}
		return nil
	})
	for _, broken := range []string{`[1]`, `{"haproxy"`} {
		n.holding(broken, "a@127.0.0.1:81", "b@127.0.0.1:82")
	}
	eventually(t, "the last one shows", func() error {
		if p := n.service("svc").Problems; len(p) != 1 || !strings.Contains(p[0], "JSON") {
			return fmt.Errorf("%q", p)
		}
		return nil
	})
	n.fileHas("svc", "a b")
	n.fileSays("the last good one", "balance leastconn")
	n.ready()
	require.Equal(t, 1, n.reloads())

	// Another agent begins with what was accepted, and so does a preview.
	n.stop()
	text, err := os.ReadFile(n.config.HAProxy.ConfigFilePath)
	require.NoError(t, err)
	preview, err := NewPreview(expired(t), n.config, n.logger, false)
	require.NoError(t, err)
	require.Equal(t, string(text), string(preview.File))
	begin()
	n.gen.remotes.gap = 0
	n.holding(good, "a@127.0.0.1:81", "b@127.0.0.1:82")
	n.ready()
	n.fileSays("still", "balance leastconn")
	require.Equal(t, 1, n.reloads())

	n.holding("", "a@127.0.0.1:81", "b@127.0.0.1:82")
	n.fileSays("the file's own line", "balance roundrobin")
	n.reloadedTimes(2)
	n.ready()
	require.False(t, n.service("svc").Remote)
	n.has("svc", "a b")

	// And back, to what HAProxy was reloaded for before.
	n.holding(good, "a@127.0.0.1:81", "b@127.0.0.1:82")
	n.fileSays("the registry's line again", "balance leastconn")
	n.reloadedTimes(3)
	n.holding("", "a@127.0.0.1:81", "b@127.0.0.1:82")
	n.reloadedTimes(4)
	n.ready()
}

// TestRemoteConfigClash: a service may not take another's port by the registry.
func TestRemoteConfigClash(t *testing.T) {
	one, two := serviceNamed("one"), serviceNamed("two")
	one.HAProxy.Port, one.HAProxy.PortSet = 8080, true
	base := &config.Agent{Services: []config.Service{one, two}}
	c, problems := remotely(base, map[string][]byte{"two": []byte(`{"haproxy": {"port": 8080}}`)})
	require.False(t, c.Services[1].HAProxy.PortSet)
	require.Contains(t, problems["two"][0], "service one binds to the same")
	c, problems = remotely(base, map[string][]byte{"two": []byte(`{"haproxy": {"port": 8081}}`), "gone": []byte(`{}`)})
	require.EqualValues(t, 8081, c.Services[1].HAProxy.Port)
	require.Empty(t, problems)
}

// TestPaired: the second source's data come with the first one's instances, in whatever order they are heard.
func TestPaired(t *testing.T) {
	first, second := make(feed), make(feed)
	out := make(chan discovery.Snapshot)
	done := make(chan error, 1)
	ctx, cancel := cancelled(t)
	go func() { done <- paired{first, second}.Run(ctx, out) }()
	first <- discovery.Snapshot{Service: "svc", Instances: instances(t, "a@127.0.0.1:81")}
	s := <-out
	require.False(t, s.DataRead, "nothing is known of the second")
	require.EqualValues(t, 1, s.Version)
	second <- discovery.Snapshot{Service: "svc", Data: []byte("x"), DataRead: true}
	s = <-out
	require.Equal(t, "x", string(s.Data))
	require.Len(t, s.Instances, 1)
	require.EqualValues(t, 2, s.Version)
	first <- discovery.Snapshot{Service: "svc", Instances: instances(t, "a@127.0.0.1:81", "b@127.0.0.1:82")}
	s = <-out
	require.Equal(t, "x", string(s.Data))
	require.Len(t, s.Instances, 2)
	cancel()
	require.True(t, errors.Is(<-done, ctx.Err()))
}

func cancelled(t *testing.T) (context.Context, context.CancelFunc) {
	t.Helper()
	ctx, cancel := context.WithCancel(context.Background())
	t.Cleanup(cancel)
	return ctx, cancel
}

// expired is a context in which no registry answers.
func expired(t *testing.T) context.Context {
	t.Helper()
	ctx, cancel := cancelled(t)
	cancel()
	return ctx
}

// TestRemoteConfigOverHangup: a re-read of the files keeps what is in force, also where nothing can be kept on disk.
func TestRemoteConfigOverHangup(t *testing.T) {
	n := newNode(t, func(c *config.Agent) {
		c.Services[0].Discovery.GeneratorConfigPath = "/config/svc"
	})
	n.start(0)
	n.holding(`{"haproxy": {"backend": ["balance leastconn"]}}`, "a@127.0.0.1:81")
	n.fileSays("the registry's line", "balance leastconn")
	n.ready()
	n.stop()
	next, err := n.agent.newGeneration(n.config, 2, n.gen.viewsByName())
	require.NoError(t, err)
	require.Equal(t, n.gen.wanted.Load().static, next.wanted.Load().static)

	elsewhere := *n.config
	elsewhere.Services = slices.Clone(n.config.Services)
	elsewhere.Services[0].Discovery.GeneratorConfigPath = "/elsewhere"
	next, err = n.agent.newGeneration(&elsewhere, 3, n.gen.viewsByName())
	require.NoError(t, err)
	require.NotEqual(t, n.gen.wanted.Load().static, next.wanted.Load().static, "it is another znode's")
}

// TestKeptRemoteConfig: what is kept of one service and does not go with the file costs no other its own.
func TestKeptRemoteConfig(t *testing.T) {
	base := &config.Agent{StateDir: t.TempDir(), Services: []config.Service{serviceNamed("bad"), serviceNamed("good")}}
	kept := map[string]keptRemote{}
	for i := range base.Services {
		s := &base.Services[i]
		s.Discovery.GeneratorConfigPath = s.Discovery.Path
		kept[s.Name] = keptRemote{s.Discovery.Path, []byte(`{"haproxy": {"backend": ["balance leastconn"]}}`)}
	}
	text, err := json.Marshal(kept)
	require.NoError(t, err)
	begin := func(refusal error) *config.Agent {
		require.NoError(t, os.WriteFile(remotePath(base), text, 0o600))
		_, c := newRemotes(base, nil, func(_ context.Context, c *config.Agent) error {
			if len(c.Services[0].HAProxy.Backend) > 0 {
				return refusal
			}
			return nil
		}, quiet())
		return c
	}
	c := begin(errors.New("HAProxy refuses it"))
	require.Empty(t, c.Services[0].HAProxy.Backend)
	require.NotEmpty(t, c.Services[1].HAProxy.Backend)
	c = begin(fmt.Errorf("%w: it is being upgraded", errNotAsked))
	require.NotEmpty(t, c.Services[0].HAProxy.Backend, "it was in force before")
}

// TestRemoteConfigUnasked: what no HAProxy has looked at does not come from the registry into its file, unless the
// operator wants no checks.
func TestRemoteConfigUnasked(t *testing.T) {
	for _, unchecked := range []bool{false, true} {
		n := newNode(t, func(c *config.Agent) {
			c.HAProxy.Binary, c.HAProxy.NoChecks = filepath.Join(filepath.Dir(c.HAProxy.ConfigFilePath), "nowhere"), unchecked
			c.Services[0].Discovery.GeneratorConfigPath = "/svc"
		})
		n.start(0)
		n.holding(`{"haproxy": {"backend": ["balance leastconn"]}}`, "a@127.0.0.1:81")
		if unchecked {
			n.fileSays("the registry's line", "balance leastconn")
			continue
		}
		eventually(t, "it shows", func() error {
			if p := n.service("svc").Problems; len(p) != 1 || !strings.Contains(p[0], "cannot be asked") {
				return fmt.Errorf("%q", p)
			}
			return nil
		})
		n.has("svc", "a")
		text, err := os.ReadFile(n.config.HAProxy.ConfigFilePath)
		require.NoError(t, err)
		require.NotContains(t, string(text), "leastconn")
	}
}

// TestRemoteConfigPortInUse: a port that another program listens on would keep HAProxy from every reload, and from its
// next start. It is taken when it is free.
func TestRemoteConfigPortInUse(t *testing.T) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	require.NoError(t, err)
	defer l.Close()
	port := l.Addr().(*net.TCPAddr).Port
	n := newNode(t, func(c *config.Agent) {
		c.HAProxy.BindAddress = "127.0.0.1"
		c.Services[0].Discovery.GeneratorConfigPath = "/svc"
	})
	n.start(0)
	n.holding(fmt.Sprintf(`{"haproxy": {"port": %d}}`, port), "a@127.0.0.1:81")
	eventually(t, "it shows", func() error {
		if p := n.service("svc").Problems; len(p) != 1 || !strings.Contains(p[0], "another program listens on") {
			return fmt.Errorf("%q", p)
		}
		return nil
	})
	n.has("svc", "a")
	n.ready()
	require.Zero(t, n.reloads())
	require.NoError(t, l.Close())
	n.fileSays("it is free", fmt.Sprintf("bind 127.0.0.1:%d", port))
	n.reloadedTimes(1)
	n.ready()
	require.Empty(t, n.service("svc").Problems)
}

// TestPreviewOfRemoteConfig: what an agent would leave as it was, a preview leaves, and what was never meant as a
// configuration is no problem.
func TestPreviewOfRemoteConfig(t *testing.T) {
	c := &config.Agent{StateDir: t.TempDir(), Services: []config.Service{serviceNamed("one"), serviceNamed("two")}}
	kept := map[string]keptRemote{"one": {"/one", []byte(`{"haproxy": {"backend": ["balance leastconn"]}}`)}}
	for i := range c.Services {
		c.Services[i].Discovery.GeneratorConfigPath = c.Services[i].Discovery.Path
	}
	text, err := json.Marshal(kept)
	require.NoError(t, err)
	require.NoError(t, os.WriteFile(remotePath(c), text, 0o600))
	preview := func(one, two string) ([]string, []string) {
		views := []view{newView(c.Services[0]), newView(c.Services[1])}
		for i, data := range []string{one, two} {
			views[i] = views[i].next(discovery.Snapshot{Service: c.Services[i].Name, Data: []byte(data), DataRead: true}, time.Now())
		}
		laid, notes := previewRemote(c, views)
		require.Equal(t, laid.Services[0].HAProxy, views[0].service.HAProxy)
		return laid.Services[0].HAProxy.Backend, notes
	}
	lines, notes := preview(`{"haproxy": {"backend": ["balance first"]}}`, "10.0.0.1")
	require.Equal(t, []string{"balance first"}, lines)
	require.Empty(t, notes, "an address is what other programs leave there")
	lines, notes = preview(`{"haproxy`, "")
	require.Equal(t, []string{"balance leastconn"}, lines, "what was in force before stays")
	require.Len(t, notes, 1)
	lines, notes = preview(``, "")
	require.Empty(t, lines)
	require.Empty(t, notes)
}

// TestRemoteConfigFlaps: who changes it all the time gets few reloads; after quiet a change is in force at once again.
func TestRemoteConfigFlaps(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		base := &config.Agent{Services: []config.Service{serviceNamed("svc")}}
		base.Services[0].Discovery.GeneratorConfigPath = "/svc"
		r, _ := newRemotes(base, nil, func(context.Context, *config.Agent) error { return nil }, quiet())
		ctx, cancel := context.WithCancel(t.Context())
		var all sync.WaitGroup
		defer all.Wait()
		defer cancel()
		all.Go(func() { r.run(ctx) })
		var accepted atomic.Int32
		all.Go(func() {
			for {
				select {
				case <-ctx.Done():
					return
				case <-r.accepted:
					accepted.Add(1)
				}
			}
		})
		say := func(i int) {
			r.hear("svc", fmt.Appendf(nil, `{"haproxy": {"backend": ["fullconn %d"]}}`, i))
		}
		for i := range 3600 {
			say(i)
			time.Sleep(time.Second)
		}
		synctest.Wait()
		require.Less(t, accepted.Load(), int32(25))
		require.Greater(t, accepted.Load(), int32(12), "the latest is in force sooner or later")
		time.Sleep(2 * time.Hour)
		synctest.Wait()
		before := accepted.Load()
		say(5000)
		synctest.Wait()
		require.Equal(t, before+1, accepted.Load())
		say(5001)
		time.Sleep(2 * remoteGap)
		synctest.Wait()
		require.Equal(t, before+2, accepted.Load())
	})
}

// TestRemotelyDisabled: a backend that the registry takes away is gone from HAProxy, also one that has neither a frontend
// nor lines of its own, and comes back with it.
func TestRemotelyDisabled(t *testing.T) {
	n := newNode(t, func(c *config.Agent) {
		c.HAProxy.FrontendNames = "distinct" // as for HAProxy 3.3 and later, where backends can be made at run time
		c.Services[0].Discovery.GeneratorConfigPath = "/svc"
		c.Services = append(c.Services, serviceNamed("other"))
	})
	n.start(20 * time.Millisecond) // from 3.4 on it goes when its servers are deleted
	n.gen.remotes.gap = 0          // read by the goroutine only after the first acceptance
	n.hearOf("other", instances(t, "o@127.0.0.1:99")...)
	for range 2 {
		n.holding("", "a@127.0.0.1:81")
		n.has("svc", "a")
		n.ready()
		n.holding(`{"haproxy": {"disabled": true}}`, "a@127.0.0.1:81")
		eventually(t, "the backend is gone", func() error {
			state, err := n.state()
			if _, there := state["svc"]; err == nil && there {
				err = errors.New("it is there")
			}
			return err
		})
		n.has("other", "o")
	}
}

// TestGoneIsAChange: a backend that is to be taken away is another state than the one that was wanted before, once.
func TestGoneIsAChange(t *testing.T) {
	with := &config.Agent{Services: []config.Service{serviceNamed("svc")}}
	before := newComposer(with, nil, nil).all([]view{newView(with.Services[0])}, nil)
	k := newComposer(&config.Agent{}, nil, nil)
	k.gone = []string{"svc"}
	after := k.all(nil, before)
	require.True(t, after.backends["svc"].gone)
	require.NotEqual(t, before.backends["svc"].rev, after.backends["svc"].rev)
	require.Equal(t, after.backends["svc"].rev, k.all(nil, after).backends["svc"].rev)
}
