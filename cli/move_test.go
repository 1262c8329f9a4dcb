package cli

import (
	"context"
	"fmt"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/sirupsen/logrus/hooks/test"
	"github.com/stretchr/testify/require"

	"github.com/myelin-sd/myelin/agent"
	"github.com/myelin-sd/myelin/discovery/zookeeper"
	"github.com/myelin-sd/myelin/discovery/zookeeper/zktest"
)

const patience = 30 * time.Second

// TestMoveNewBeforeOld: a service that a re-read of the files moves to another path leaves the old one when it stands
// at the new one, and not a moment sooner: what removes the left-overs of an earlier process knows it.
func TestMoveNewBeforeOld(t *testing.T) {
	server := zktest.New(t)
	var healthy atomic.Bool
	service := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if r.URL.Path == "/new" && !healthy.Load() {
			http.Error(w, "not yet", http.StatusServiceUnavailable)
		}
	}))
	t.Cleanup(service.Close)
	host, port, _ := strings.Cut(strings.TrimPrefix(service.URL, "http://"), ":")
	dir := t.TempDir()
	path := filepath.Join(dir, "registrar.toml")
	write := func(name string) {
		require.NoError(t, os.WriteFile(path, fmt.Appendf(nil, `
instance_id = "web-1"
state_dir = %q
zookeeper = { hosts = %q }
[services.web]
host = %q
port = %s
zk_path = "/services/%s"
check_interval = "20ms"
checks = [{ type = "http", uri = "/%[5]s", timeout = "5s" }]
`, dir, server.Addr(), host, port, name), 0o600))
	}
	write("old")

	log, _ := test.NewNullLogger()
	a := &app{env: func(string) (string, bool) { return "", false }}
	file := registrarFile{path: path}
	c, _, err := a.loadRegistrar(file)
	require.NoError(t, err)
	ctx, cancel := context.WithCancel(context.Background())
	sessions := agent.NewSessions(log)
	r, err := a.newRegistrar(ctx, c, file, sessions, log, newRegistry())
	require.NoError(t, err)
	ended := make(chan error, 1)
	go func() { ended <- r.run(ctx) }()
	t.Cleanup(func() {
		cancel()
		require.NoError(t, <-ended)
		r.endSessions()
	})

	reader := zookeeper.New(zookeeper.Options{Hosts: []string{server.Addr()}, SessionTimeout: patience})
	t.Cleanup(reader.Close)
	nodes := func(name string) []string {
		ctx, cancel := context.WithTimeout(context.Background(), patience)
		defer cancel()
		snap, err := reader.Snapshot(ctx, name, "/services/"+name)
		require.NoError(t, err)
		var out []string
		for _, in := range snap.Instances {
			out = append(out, in.Node)
		}
		return out
	}
	listed := func(name string) func() bool { return func() bool { return len(nodes(name)) == 1 } }
	require.Eventually(t, listed("old"), patience, 10*time.Millisecond)
	before := nodes("old")
	r.cleaning.work.Wait()

	write("new")
	require.NoError(t, r.reload(path))
	r.cleaning.work.Wait() // it is done with what it has to remove
	require.Empty(t, nodes("new"))
	require.Equal(t, before, nodes("old"), "the service is not well at the new path, so it is still at the old one")

	healthy.Store(true)
	require.Eventually(t, listed("new"), patience, 10*time.Millisecond)
	require.Eventually(t, func() bool { return len(nodes("old")) == 0 }, patience, 10*time.Millisecond)
}

// TestRestartNewBeforeOld: a service that gets another node name over a restart stays in its old place until it stands
// in the new one; and what the new file does not have is gone in the end.
func TestRestartNewBeforeOld(t *testing.T) {
	server := zktest.New(t)
	var healthy atomic.Bool
	healthy.Store(true)
	service := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if !healthy.Load() {
			http.Error(w, "not yet", http.StatusServiceUnavailable)
		}
	}))
	t.Cleanup(service.Close)
	host, port, _ := strings.Cut(strings.TrimPrefix(service.URL, "http://"), ":")
	dir := t.TempDir()
	path := filepath.Join(dir, "registrar.toml")
	one := fmt.Sprintf("host = %q\nzk_path = \"/services/web\"\ncheck_interval = \"20ms\"\ndrain = 0\n", host)
	write := func(services ...string) {
		text := fmt.Sprintf("instance_id = \"web-1\"\nstate_dir = %q\nzookeeper = { hosts = %q }\n", dir, server.Addr())
		require.NoError(t, os.WriteFile(path, []byte(text+strings.Join(services, "")), 0o600))
	}
	log, _ := test.NewNullLogger()
	a := &app{env: func(string) (string, bool) { return "", false }}
	start := func() (r *registrarRole, stop func()) {
		c, _, err := a.loadRegistrar(registrarFile{path: path})
		require.NoError(t, err)
		ctx, cancel := context.WithCancel(context.Background())
		r, err = a.newRegistrar(ctx, c, registrarFile{path: path}, agent.NewSessions(log), log, newRegistry())
		require.NoError(t, err)
		ended := make(chan error, 1)
		go func() { ended <- r.run(ctx) }()
		return r, func() {
			cancel()
			require.NoError(t, <-ended)
			r.endSessions()
		}
	}
	reader := zookeeper.New(zookeeper.Options{Hosts: []string{server.Addr()}, SessionTimeout: patience})
	t.Cleanup(reader.Close)
	ports := func() []string {
		ctx, cancel := context.WithTimeout(context.Background(), patience)
		defer cancel()
		snap, err := reader.Snapshot(ctx, "web", "/services/web")
		require.NoError(t, err)
		var out []string
		for _, in := range snap.Instances {
			out = append(out, in.Node[:strings.LastIndexByte(in.Node, '_')]+" "+in.Endpoint.String())
		}
		return out
	}
	checked := one + "port = " + port + "\nchecks = [{ type = \"http\", uri = \"/\", timeout = \"5s\" }]\n"
	address := host + ":" + port
	write("[services.web]\n" + checked)
	r, stop := start()
	require.Eventually(t, func() bool { return len(ports()) == 1 }, patience, 10*time.Millisecond)
	require.Equal(t, []string{"web-1 " + address}, ports())
	r.handOver()
	stop()

	// With a second service in the path both nodes have their ports in their names.
	healthy.Store(false)
	write("[services.web]\n"+strings.Replace(checked, "timeout", "fall = 1000, timeout", 1), "[services.more]\n"+one+"port = 1\ncheck_mocked = true\n")
	_, stop = start()
	defer stop()
	require.Eventually(t, func() bool { return len(ports()) == 2 }, patience, 10*time.Millisecond)
	require.ElementsMatch(t, []string{"web-1 " + address, "web-1_1 " + host + ":1"}, ports())
	healthy.Store(true)
	require.Eventually(t, func() bool { return !slices.Contains(ports(), "web-1 "+address) }, patience, 10*time.Millisecond)
	require.ElementsMatch(t, []string{"web-1_" + port + " " + address, "web-1_1 " + host + ":1"}, ports())
}
