package main_test

import (
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"net/http"
	"net/http/httptest"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/myelin-sd/myelin/cli/clitest"
)

// TestPrometheusDiscovers: a real Prometheus finds what the registrar writes, and scrapes it.
func TestPrometheusDiscovers(t *testing.T) {
	t.Parallel()
	program := requirePrometheus(t)
	w := newWorld(t)
	web, orders := scraped(t), scraped(t)
	file := filepath.Join(w.dir, "registrar.toml")
	text := fmt.Sprintf(`
instance_id = "web-1"
state_dir = %q

[zookeeper]
hosts = [%q]
session_timeout = "4s"

[services.web]
host = "127.0.0.1"
port = %d
zk_path = "/services/web"
check_interval = "100ms"
weight = 10
labels = { zone = "osl-1", shard = 7 }
payload = ["nerve", "serverset"]
payload_paths = { serverset = "/serversets/web" }
drain = "200ms"
checks = [{ type = "http", uri = "/metrics", timeout = "2s" }]

[services.orders]
host = "127.0.0.1"
port = %d
zk_path = "/services/orders"
check_interval = "100ms"
drain = "200ms"
checks = [{ type = "tcp", timeout = "2s" }]
`, w.dir, w.zk.Addr(), web, orders)
	w.write(file, text)
	registrar, err := clitest.Start(w.dir, "registrar", nil, binary, "registrar", "-c", file)
	require.NoError(t, err)
	t.Cleanup(registrar.Kill)

	prometheus := w.startPrometheus(program, fmt.Sprintf(`
global: { scrape_interval: 1s, scrape_timeout: 1s }
scrape_configs:
- job_name: nerve
  nerve_sd_configs: [{ servers: [%[1]q], paths: [/services] }]
- job_name: serverset
  serverset_sd_configs: [{ servers: [%[1]q], paths: [/serversets] }]
`, w.zk.Addr()))
	target := func(service string, port int) map[string]string {
		return map[string]string{
			"job": "nerve", "health": "up", "__address__": fmt.Sprintf("127.0.0.1:%d", port),
			"__meta_nerve_path":          "/services/" + service + "/web-1_0000000000",
			"__meta_nerve_endpoint_host": "127.0.0.1", "__meta_nerve_endpoint_port": fmt.Sprint(port),
			"__meta_nerve_endpoint_name": "web-1",
		}
	}
	member := map[string]string{
		"job": "serverset", "health": "up", "__address__": fmt.Sprintf("127.0.0.1:%d", web),
		"__meta_serverset_path":          "/serversets/web/member_0000000000",
		"__meta_serverset_endpoint_host": "127.0.0.1", "__meta_serverset_endpoint_port": fmt.Sprint(web),
		"__meta_serverset_status": "ALIVE", "__meta_serverset_shard": "7",
	}
	prometheus.has(w, target("web", web), member, target("orders", orders))

	// What is written into a node that stands leaves the target as it is, and a service that leaves takes it along.
	w.write(file, strings.Replace(text, "weight = 10", "weight = 20", 1)[:strings.Index(text, "[services.orders]")])
	require.NoError(t, registrar.Signal(syscall.SIGHUP))
	prometheus.has(w, target("web", web), member)
	require.NoError(t, registrar.Stop())
	prometheus.has(w)
}

// scraped starts a server with one metric, and returns its port.
func scraped(t *testing.T) (port int) {
	t.Helper()
	s := httptest.NewServer(http.HandlerFunc(func(rw http.ResponseWriter, _ *http.Request) { fmt.Fprintln(rw, "sample 1") }))
	t.Cleanup(s.Close)
	return s.Listener.Addr().(*net.TCPAddr).Port
}

// requirePrometheus finds Prometheus. Without it the test is skipped, or fails when CI=true.
func requirePrometheus(t *testing.T) (program string) {
	t.Helper()
	program, err := exec.LookPath("prometheus")
	switch {
	case err == nil:
	case os.Getenv("CI") == "true":
		t.Fatal("no Prometheus: install the package prometheus")
	default:
		t.Skip("NOT RUN: no Prometheus; install the package prometheus")
	}
	return program
}

// prometheus is a Prometheus that runs.
type prometheus struct {
	*clitest.Process
	url string
}

func (w *world) startPrometheus(program, config string) *prometheus {
	w.t.Helper()
	file, data := filepath.Join(w.dir, "prometheus.yml"), filepath.Join(w.dir, "prometheus")
	w.write(file, config)
	addr := fmt.Sprintf("127.0.0.1:%d", freePort(w.t))
	p, err := clitest.Start(w.dir, "prometheus", nil, program,
		"--config.file="+file, "--storage.tsdb.path="+data, "--web.listen-address="+addr)
	require.NoError(w.t, err)
	w.t.Cleanup(p.Kill)
	return &prometheus{p, "http://" + addr}
}

// has waits until the targets are these. It looks at the labels that one of them names, and at its health.
func (p *prometheus) has(w *world, want ...map[string]string) {
	w.t.Helper()
	w.eventually("Prometheus has the targets", func() error {
		if !p.Running() {
			return errors.New(p.Tail(5))
		}
		found, err := p.targets()
		if err != nil {
			return err
		}
		if len(found) != len(want) {
			return fmt.Errorf("%d targets, not %d: %v", len(found), len(want), found)
		}
		for _, target := range want {
			if err := one(found, target); err != nil {
				return err
			}
		}
		return nil
	})
}

// one looks for a target with these labels, among others.
func one(found []map[string]string, want map[string]string) error {
	for _, labels := range found {
		same := true
		for name, value := range want {
			same = same && labels[name] == value
		}
		if same {
			return nil
		}
	}
	return fmt.Errorf("no %v among %v", want, found)
}

// targets are the active ones: what was discovered of each, and its health.
func (p *prometheus) targets() ([]map[string]string, error) {
	resp, err := http.Get(p.url + "/api/v1/targets?state=active")
	if err != nil {
		return nil, err
	}
	defer resp.Body.Close()
	var answer struct {
		Data struct {
			ActiveTargets []struct {
				DiscoveredLabels map[string]string
				Health           string
			}
		}
	}
	if err := json.NewDecoder(resp.Body).Decode(&answer); err != nil {
		return nil, err
	}
	var all []map[string]string
	for _, t := range answer.Data.ActiveTargets {
		t.DiscoveredLabels["health"] = t.Health
		all = append(all, t.DiscoveredLabels)
	}
	return all, nil
}
