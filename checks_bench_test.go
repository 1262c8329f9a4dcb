package main_test

import (
	"fmt"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/myelin-sd/myelin/cli/clitest"
	"github.com/myelin-sd/myelin/discovery/zookeeper/zktest"
)

const (
	checkedServices    = 200
	checksMeasured     = 20 * checkedServices // of each round
	checkRounds        = 3
	checkFloorVariable = "MYELIN_BENCH_CHECK_FLOOR"
)

// BenchmarkChecks measures a registrar that checks 200 services over HTTP once a second, in turn with the floor: a bare
// HTTP client that makes the same requests and does nothing else. The figures are the processor time that the process
// takes for one check, and its resident memory.
func BenchmarkChecks(b *testing.B) {
	for range b.N {
		figures := map[string]map[string][]float64{"cpu-µs-per-check": {}, "rss-MiB": {}}
		for range checkRounds {
			for _, who := range []string{"floor", "myelin"} {
				cpu, rss := measureChecks(b, who)
				figures["cpu-µs-per-check"][who] = append(figures["cpu-µs-per-check"][who], cpu)
				figures["rss-MiB"][who] = append(figures["rss-MiB"][who], rss)
			}
		}
		for _, name := range sorted(mapKeys(figures)) {
			floor, ours := median(figures[name]["floor"]), median(figures[name]["myelin"])
			b.Logf("%-18s floor %8.1f   myelin %8.1f   ratio %.2f   of %.0f and %.0f", name, floor, ours, ours/floor, figures[name]["floor"], figures[name]["myelin"])
			b.ReportMetric(ours, name)
			b.ReportMetric(ours/floor, name+"-ratio")
		}
	}
}

// measureChecks runs one of the two until it has made enough checks.
func measureChecks(b *testing.B, who string) (cpu, rss float64) {
	b.Helper()
	checked := newCheckedServer(b)
	r := &rig{b: b, who: who, dir: b.TempDir()} // for its figures of a process
	if who == "floor" {
		self, err := os.Executable()
		require.NoError(b, err)
		r.program, err = clitest.Start(r.dir, who, []string{checkFloorVariable + "=" + checked.url}, self)
		require.NoError(b, err)
	} else {
		zk := zktest.New(b)
		file := filepath.Join(r.dir, "registrar.toml")
		require.NoError(b, os.WriteFile(file, []byte(checkedFile(r.dir, zk.Addr(), checked.port)), 0o644))
		var err error
		r.program, err = clitest.Start(r.dir, who, nil, binary, "registrar", "-c", file, "--log-level", "warn")
		require.NoError(b, err)
	}
	defer r.program.Kill()
	checked.await(b, r, 5*checkedServices) // the start and the registrations are over
	before, from := r.cpuOf(r.program.Pid()), checked.made.Load()
	checked.await(b, r, from+checksMeasured)
	after, to := r.cpuOf(r.program.Pid()), checked.made.Load()
	return 1000 * (after - before) / float64(to-from), r.rss()
}

// checkedServer is what is checked: all services are one server, which counts.
type checkedServer struct {
	url  string
	port int
	made atomic.Int64
}

func newCheckedServer(b *testing.B) *checkedServer {
	c := &checkedServer{}
	s := httptest.NewServer(http.HandlerFunc(func(rw http.ResponseWriter, _ *http.Request) {
		c.made.Add(1)
		fmt.Fprintln(rw, "OK")
	}))
	b.Cleanup(s.Close)
	c.url, c.port = s.URL, s.Listener.Addr().(*net.TCPAddr).Port
	return c
}

// await waits until n checks have been made since the start.
func (c *checkedServer) await(b *testing.B, r *rig, n int64) {
	b.Helper()
	deadline := time.Now().Add(2 * time.Minute)
	for c.made.Load() < n {
		time.Sleep(20 * time.Millisecond)
		require.True(b, r.program.Running() && time.Now().Before(deadline), "%d checks of %d\n%s", c.made.Load(), n, r.program.Tail(20))
	}
}

func checkedFile(dir, zk string, port int) string {
	var b strings.Builder
	fmt.Fprintf(&b, "instance_id = \"web-1\"\nstate_dir = %q\n[zookeeper]\nhosts = [%q]\n", dir, zk)
	for i := range checkedServices {
		fmt.Fprintf(&b, `
[services.s%03d]
host = "127.0.0.1"
port = %d
zk_path = "/services/s%03d"
check_interval = "1s"
checks = [{ type = "http", uri = "/health/%03d", timeout = "2s", rise = 2, fall = 3 }]
`, i, port, i, i)
	}
	return b.String()
}

// checkFloorIfAsked makes this process the floor of BenchmarkChecks.
func checkFloorIfAsked() {
	url := os.Getenv(checkFloorVariable)
	if url == "" {
		return
	}
	client := &http.Client{Timeout: 2 * time.Second, Transport: &http.Transport{DisableKeepAlives: true}}
	for i := range checkedServices {
		go func() {
			time.Sleep(time.Duration(i) * time.Second / checkedServices)
			for range time.Tick(time.Second) {
				resp, err := client.Get(fmt.Sprintf("%s/health/%03d", url, i))
				must(err)
				_, err = io.Copy(io.Discard, resp.Body)
				must(err)
				resp.Body.Close()
				if resp.StatusCode != http.StatusOK {
					must(fmt.Errorf("status %s", resp.Status))
				}
			}
		}()
	}
	select {}
}
