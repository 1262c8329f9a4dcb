package agent

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/myelin-sd/myelin/config"
	"github.com/myelin-sd/myelin/haproxy/haproxytest"
)

// entry is a frontend written by hand that sends each request to the backend named like its host.
func entry(dir string) config.Section {
	return config.Section{Title: "frontend entry", Lines: []string{"bind " + filepath.Join(dir, "entry.sock"), "use_backend %[req.hdr(host)]"}}
}

// asks sends one request to a host through the entry and returns what came back: the body, or the status when it is
// another one than 200.
func (n *node) asks(host string) string {
	client := http.Client{Timeout: patience, Transport: &http.Transport{DisableKeepAlives: true,
		DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
			return (&net.Dialer{}).DialContext(ctx, "unix", filepath.Join(n.dir(), "entry.sock"))
		}}}
	resp, err := client.Get("http://" + host + "/")
	if err != nil {
		return err.Error()
	}
	defer resp.Body.Close()
	body, err := io.ReadAll(resp.Body)
	if err != nil || resp.StatusCode != http.StatusOK {
		return resp.Status
	}
	return string(body)
}

// configured puts another set of services in force, as SIGHUP does.
func (n *node) configured(grace time.Duration, services ...string) {
	n.t.Helper()
	c := *n.config
	c.Services = nil
	for _, name := range services {
		c.Services = append(c.Services, serviceNamed(name))
	}
	views := n.gen.viewsByName()
	n.stop()
	n.startWith(&c, grace, views)
}

func site(t *testing.T, says string) string {
	s := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) { io.WriteString(w, says) }))
	t.Cleanup(s.Close)
	return says + "@" + s.Listener.Addr().String()
}

// TestBackendsAtRunTime: where HAProxy makes backends at run time, a service that needs nothing else comes, goes and
// comes again without a reload.
func TestBackendsAtRunTime(t *testing.T) {
	haproxytest.RequireAtLeast(t, 3, 4, "backends added at run time")
	n := newNode(t, func(c *config.Agent) {
		c.HAProxy.ExtraSections = []config.Section{entry(filepath.Dir(c.HAProxy.ConfigFilePath))}
	})
	n.start(0)
	a, b := site(t, "a"), site(t, "b")
	n.hear(a)
	n.has("svc", "a")
	n.ready()
	require.Equal(t, "a", n.asks("svc"))
	require.Equal(t, "503 Service Unavailable", n.asks("new"))

	n.configured(0, "svc", "new")
	from := n.tap.count()
	n.hear(a)
	n.hearOf("new", instances(t, b)...)
	n.has("new", "b")
	n.ready()
	require.Equal(t, "b", n.asks("new"))
	require.Equal(t, "backends", n.service("new").Rung)
	told := n.tap.since(0)
	order := func(prefix string) int {
		return slices.IndexFunc(told, func(line string) bool { return strings.HasPrefix(line, prefix) })
	}
	require.Less(t, order("add backend new from myelin"), order("add server new/b_"))
	require.Less(t, order("set server new/b_"), slices.Index(told, "publish backend new"), "no traffic before its servers")
	require.Equal(t, -1, n.tap.position(from, "add backend svc"), "it is there")

	// It goes: no traffic at once, and away when its servers are.
	n.configured(time.Millisecond, "svc")
	n.hear(a)
	n.ready()
	eventually(t, "the backend is gone", func() error {
		state, err := n.state()
		if err != nil {
			return err
		}
		if servers, there := state["new"]; there {
			return fmt.Errorf("it has %v", servers)
		}
		return nil
	})
	require.Equal(t, "503 Service Unavailable", n.asks("new"))
	require.Equal(t, "a", n.asks("svc"))

	// And comes again, and goes on with what is there.
	n.configured(time.Hour, "svc", "new")
	n.hear(a)
	n.hearOf("new", instances(t, b)...)
	n.has("new", "b")
	n.ready()
	n.configured(time.Hour, "svc")
	n.hear(a)
	n.has("new", "b:maint")
	require.Equal(t, "503 Service Unavailable", n.asks("new"))
	n.configured(time.Hour, "svc", "new")
	n.hear(a)
	n.hearOf("new", instances(t, b)...)
	n.has("new", "b")
	eventually(t, "it takes traffic again", func() error {
		if got := n.asks("new"); got != "b" {
			return errors.New(got)
		}
		return nil
	})
	require.Zero(t, n.reloads())

	// What others reload has it from the file, and keeps it.
	n.fileHas("new", "b")
	require.NoError(t, n.haproxy.Reload())
	n.ready()
	require.Equal(t, "b", n.asks("new"))
	require.Zero(t, n.reloads())
}

// TestBackendsByReload: where HAProxy refuses, or cannot, a reload brings a backend and takes it away.
func TestBackendsByReload(t *testing.T) {
	n := newNode(t, func(c *config.Agent) { c.HAProxy.FrontendNames = "same" }) // so that its defaults have no name
	n.start(0)
	n.hear("a@127.0.0.1:81")
	n.has("svc", "a")
	n.ready()
	n.configured(0, "svc", "new")
	n.hear("a@127.0.0.1:81")
	n.hearOf("new", instances(t, "b@127.0.0.1:82")...)
	n.has("new", "b")
	n.ready()
	require.Contains(t, n.reloadReasons(), "HAProxy has no backend new")

	reloads := n.reloads()
	n.configured(time.Hour, "svc")
	n.hear("a@127.0.0.1:81")
	gone := func() error {
		state, err := n.state()
		if err != nil {
			return err
		}
		if servers, there := state["new"]; there {
			return fmt.Errorf("it has %v", servers)
		}
		return nil
	}
	if haproxytest.AtLeast(t, 3, 4) { // it can take away what it did not make
		n.has("new", "b:maint")
		require.Equal(t, reloads, n.reloads())
		return
	}
	eventually(t, "the backend is gone", gone)
	n.ready()
	require.Contains(t, n.reloadReasons(), "backend new: the configuration has it no more")
}
