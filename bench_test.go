package main_test

import (
	"context"
	"fmt"
	"io"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/myelin-sd/myelin/cli/clitest"
	"github.com/myelin-sd/myelin/discovery"
	"github.com/myelin-sd/myelin/discovery/zookeeper"
	"github.com/myelin-sd/myelin/discovery/zookeeper/zktest"
	"github.com/myelin-sd/myelin/haproxy"
)

// BenchmarkEndToEnd measures the agent beside the floor, in turn, in one run: only the ratios mean something.
func BenchmarkEndToEnd(b *testing.B) {
	for _, n := range []int{1, 100, 1000} {
		b.Run(fmt.Sprintf("change/%d", n), func(b *testing.B) { benchmarkChange(b, n) })
	}
	b.Run("cold-start/1000", func(b *testing.B) {
		compare(b, 3, func(r *rig) map[string]float64 { return r.coldStart(1000) })
	})
	b.Run("cold-start/10000", func(b *testing.B) {
		for range b.N {
			r := newRig(b, "myelin")
			figures := r.coldStart(10_000)
			r.end()
			b.ReportMetric(figures["cold-start-ms"], "cold-start-ms")
			b.ReportMetric(figures["rss-mib"], "rss-MiB") // the aim is 30
		}
	})
	b.Run("burst/500", func(b *testing.B) {
		compare(b, 3, func(r *rig) map[string]float64 { return r.burst(500) })
	})
}

// benchmarkChange: znode created -> first request served by the new server; znode deleted -> no request any more; and
// what a change costs.
func benchmarkChange(b *testing.B, n int) {
	changes := 60
	compare(b, 2, func(r *rig) map[string]float64 { return r.changes(n, changes) })
}

// compare runs a measurement against the floor and against myelin, rounds times in turn, and reports for each figure
// the medians and their ratio.
func compare(b *testing.B, rounds int, measure func(*rig) map[string]float64) {
	for range b.N {
		figures := map[string]map[string][]float64{}
		for range rounds {
			for _, who := range []string{"floor", "myelin"} {
				r := newRig(b, who)
				for name, v := range measure(r) {
					if figures[name] == nil {
						figures[name] = map[string][]float64{}
					}
					figures[name][who] = append(figures[name][who], v)
				}
				r.end()
			}
		}
		for _, name := range sorted(mapKeys(figures)) {
			floor, ours := median(figures[name]["floor"]), median(figures[name]["myelin"])
			b.Logf("%-22s floor %9.2f   myelin %9.2f   ratio %.2f", name, floor, ours, ours/floor)
			b.ReportMetric(ours/floor, name+"-ratio")
		}
	}
}

func mapKeys[V any](m map[string]V) []string {
	var keys []string
	for k := range m {
		keys = append(keys, k)
	}
	return keys
}

func median(v []float64) float64 {
	v = slices.Sorted(slices.Values(v))
	return v[len(v)/2]
}

// rig is a ZooKeeper, a HAProxy and one of the two programs between them.
type rig struct {
	b       *testing.B
	who     string
	dir     string
	zk      *zktest.Server
	session *zookeeper.Session
	file    string
	port    int
	old     int // port of the server behind all but the new instances
	quiet   int // port of a service in which nothing changes
	admin   int // port of the agent's pages
	program *clitest.Process
	client  *http.Client
}

func newRig(b *testing.B, who string) *rig {
	b.Helper()
	dir, err := os.MkdirTemp("", "myelin-bench-")
	require.NoError(b, err)
	r := &rig{b: b, who: who, dir: dir, client: &http.Client{Timeout: 5 * time.Second}}
	require.NoError(b, os.Mkdir(filepath.Join(dir, "zk"), 0o755))
	r.zk, err = zktest.Start(filepath.Join(dir, "zk"), zktest.Options{})
	require.NoError(b, err)
	r.session = zookeeper.New(zookeeper.Options{Hosts: []string{r.zk.Addr()}, SessionTimeout: 20 * time.Second, Log: silent()})
	r.port, err = clitest.FreePort()
	require.NoError(b, err)
	r.quiet, err = clitest.FreePort()
	require.NoError(b, err)
	r.admin, err = clitest.FreePort()
	require.NoError(b, err)
	r.old = backendServer(b, "old")
	r.file = filepath.Join(dir, "agent.toml")
	text := fmt.Sprintf(`
state_dir = %q
guard = "off"
admin = { listen = "127.0.0.1:%d" }

[zookeeper]
hosts = [%q]
session_timeout = "10s"

[haproxy]
restart_interval = "1s"

[services.user-api]
discovery = { method = "zookeeper", path = "/services/user-api" }
[services.user-api.haproxy]
port = %d
backend = ["use-server %%[req.hdr(x-server)] if { req.hdr(x-server) -m found }"]

[services.quiet]
default_servers = [{ name = "quiet", host = "127.0.0.1", port = %d }]
discovery = { method = "base" }
haproxy = { port = %d }
`, dir, r.admin, r.zk.Addr(), r.port, r.old, r.quiet)
	require.NoError(b, os.WriteFile(r.file, []byte(text), 0o644))

	// HAProxy runs from the same file for both, without a server in it.
	out, err := exec.Command(binary, "render", "-c", r.file, "--timeout", "1s").Output()
	require.NoError(b, err)
	cfg := filepath.Join(dir, "haproxy.cfg")
	require.NoError(b, os.WriteFile(cfg, out, 0o644))
	log, err := os.Create(filepath.Join(dir, "haproxy.log"))
	require.NoError(b, err)
	defer log.Close()
	start := exec.Command("haproxy", "-W", "-D", "-f", cfg, "-p", filepath.Join(dir, "haproxy.pid"), "-S", filepath.Join(dir, "haproxy-master.sock")+",level,admin,mode,600")
	start.Env = append(os.Environ(), "PATH="+os.Getenv("PATH")+":/usr/sbin")
	start.Stdout, start.Stderr = log, log
	require.NoError(b, start.Run())
	return r
}

func (r *rig) end() {
	if r.program != nil {
		r.program.Stop()
	}
	r.session.Close()
	pid, _ := os.ReadFile(filepath.Join(r.dir, "haproxy.pid"))
	if n, _ := strconv.Atoi(strings.TrimSpace(string(pid))); n > 1 {
		syscall.Kill(n, syscall.SIGTERM)
	}
	r.zk.Stop()
	os.RemoveAll(r.dir)
}

func (r *rig) socket() string { return filepath.Join(r.dir, "haproxy.sock") }

// start starts the program between ZooKeeper and HAProxy.
func (r *rig) start() {
	r.b.Helper()
	var err error
	if r.who == "floor" {
		self, err2 := os.Executable()
		require.NoError(r.b, err2)
		env := floorVariable + "=" + strings.Join([]string{r.zk.Addr(), servicePath, r.socket(), service}, "|")
		r.program, err = clitest.Start(r.dir, "floor", []string{env}, self)
	} else {
		r.program, err = clitest.Start(r.dir, "agent", nil, binary, "agent", "-c", r.file, "--log-level", "warn")
	}
	require.NoError(r.b, err)
}

func registrationHost(number int) string { return fmt.Sprintf("127.1.%d.%d", number/250, 1+number%250) }

// registration is one instance as Nerve writes it. All of 127.0.0.0/8 is this machine, so each instance has an
// address of its own.
func registration(name string, number, port int) discovery.Registration {
	data, err := discovery.EncodeNerve(discovery.Payload{Host: registrationHost(number), Port: uint16(port), Name: name})
	if err != nil {
		panic(err)
	}
	return discovery.Registration{Path: servicePath, Prefix: name + "_", Data: data, Sequential: true, Ephemeral: true}
}

// many publishes or withdraws n instances at once.
func (r *rig) many(n int, do func(i int) error) {
	r.b.Helper()
	var wg sync.WaitGroup
	slots := make(chan struct{}, 64)
	errs := make(chan error, n)
	for i := range n {
		slots <- struct{}{}
		wg.Go(func() {
			defer func() { <-slots }()
			errs <- do(i)
		})
	}
	wg.Wait()
	close(errs)
	for err := range errs {
		require.NoError(r.b, err)
	}
}

func (r *rig) fill(n int, prefix string) (nodes []string) {
	r.b.Helper()
	nodes = make([]string, n)
	r.many(n, func(i int) error {
		made, err := r.session.Publish(context.Background(), registration(fmt.Sprintf("%s%04d", prefix, i), i, r.old), "")
		nodes[i] = made.Node
		return err
	})
	return nodes
}

// awaitReady waits until HAProxy has n servers in rotation.
func (r *rig) awaitReady(n int) {
	r.b.Helper()
	c, err := haproxy.Dial(context.Background(), r.socket(), haproxy.ClientOptions{})
	require.NoError(r.b, err)
	defer c.Close()
	deadline := time.Now().Add(time.Minute)
	for {
		state, err := c.State(context.Background())
		require.NoError(r.b, err)
		ready := 0
		for _, s := range state[service] {
			if s.Admin == haproxy.Ready {
				ready++
			}
		}
		if ready == n {
			return
		}
		require.True(r.b, time.Now().Before(deadline), "%d of %d ready\n%s", ready, n, r.program.Log())
		time.Sleep(2 * time.Millisecond)
	}
}

// served asks through HAProxy for a server by name and tells whether that one answered.
func (r *rig) served(server string) bool {
	req, err := http.NewRequest(http.MethodGet, fmt.Sprintf("http://127.0.0.1:%d/", r.port), nil)
	require.NoError(r.b, err)
	req.Header.Set("X-Server", server)
	resp, err := r.client.Do(req)
	require.NoError(r.b, err)
	defer resp.Body.Close()
	body, err := io.ReadAll(resp.Body)
	require.NoError(r.b, err)
	return strings.TrimSpace(string(body)) == "new"
}

func (r *rig) changes(n, changes int) map[string]float64 {
	fresh := backendServer(r.b, "new")
	r.fill(n, "old")
	r.start()
	r.awaitReady(n)
	time.Sleep(time.Second) // the start's own work is over
	before := r.cpu()
	var joins, leaves []float64
	for i := range changes {
		name := fmt.Sprintf("new%04d", i)
		server := haproxy.ServerName(name, "127.1.0.1", uint16(fresh))
		reg := registration(name, 0, fresh)
		began := time.Now()
		node, err := r.session.Publish(context.Background(), reg, "")
		require.NoError(r.b, err)
		r.until(func() bool { return r.served(server) })
		joins = append(joins, ms(time.Since(began)))
		began = time.Now()
		require.NoError(r.b, r.session.Withdraw(context.Background(), reg, node.Node))
		r.until(func() bool { return !r.served(server) })
		leaves = append(leaves, ms(time.Since(began)))
	}
	after := r.cpu()
	return map[string]float64{
		"join-p50-ms": quantile(joins, 0.5), "join-p99-ms": quantile(joins, 0.99),
		"leave-p50-ms": quantile(leaves, 0.5), "leave-p99-ms": quantile(leaves, 0.99),
		"cpu-ms-per-change": (after - before) / float64(2*changes),
		"rss-mib":           r.rss(),
	}
}

func (r *rig) coldStart(n int) map[string]float64 {
	r.fill(n, "old")
	began := time.Now()
	r.start()
	r.awaitReady(n)
	return map[string]float64{"cold-start-ms": ms(time.Since(began)), "rss-mib": r.rss()}
}

func (r *rig) burst(n int) map[string]float64 {
	r.fill(1, "old0")
	r.start()
	r.awaitReady(1)
	time.Sleep(time.Second)
	began := time.Now()
	nodes := r.fill(n, "burst")
	r.awaitReady(n + 1)
	joins := ms(time.Since(began))
	began = time.Now()
	r.many(n, func(i int) error {
		return r.session.Withdraw(context.Background(), registration(fmt.Sprintf("burst%04d", i), i, r.old), nodes[i])
	})
	r.awaitReady(1)
	return map[string]float64{"joins-ms": joins, "leaves-ms": ms(time.Since(began))}
}

func (r *rig) until(condition func() bool) {
	r.b.Helper()
	deadline := time.Now().Add(20 * time.Second)
	for !condition() {
		time.Sleep(200 * time.Microsecond) // a busy loop would take the processor from what is measured
		require.True(r.b, time.Now().Before(deadline), "no change after 20 s\n%s", r.program.Log())
	}
}

// cpu is the time that the program and HAProxy's worker have used, in milliseconds.
func (r *rig) cpu() float64 {
	c, err := haproxy.Dial(context.Background(), r.socket(), haproxy.ClientOptions{})
	require.NoError(r.b, err)
	defer c.Close()
	return r.cpuOf(r.program.Pid()) + r.cpuOf(c.Identity().Pid)
}

// cpuOf reads user and system time from /proc/PID/stat; its unit is 1/100 s (proc(5), sysconf(_SC_CLK_TCK)).
func (r *rig) cpuOf(pid int) float64 {
	text, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid))
	require.NoError(r.b, err)
	fields := strings.Fields(string(text[strings.LastIndexByte(string(text), ')')+2:]))
	user, _ := strconv.ParseFloat(fields[11], 64)
	system, _ := strconv.ParseFloat(fields[12], 64)
	return (user + system) * 10
}

// rss is the program's resident memory in MiB.
func (r *rig) rss() float64 {
	text, err := os.ReadFile(fmt.Sprintf("/proc/%d/status", r.program.Pid()))
	require.NoError(r.b, err)
	for l := range strings.Lines(string(text)) {
		if f := strings.Fields(l); len(f) == 3 && f[0] == "VmRSS:" {
			kib, _ := strconv.ParseFloat(f[1], 64)
			return kib / 1024
		}
	}
	return 0
}

func ms(d time.Duration) float64 { return float64(d.Microseconds()) / 1000 }

func quantile(v []float64, q float64) float64 {
	v = slices.Sorted(slices.Values(v))
	return v[min(int(q*float64(len(v))), len(v)-1)]
}
