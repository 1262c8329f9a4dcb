package main_test

import (
	"encoding/csv"
	"fmt"
	"io"
	"math/rand/v2"
	"net"
	"net/netip"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/myelin-sd/myelin/cli/clitest"
	"github.com/myelin-sd/myelin/haproxy"
)

const (
	rollingRounds = 20
	rollingRate   = 300                   // requests a second
	rollingDrain  = "2s"                  // of the registrars: long enough for an agent on a busy machine
	rollingDelay  = 30 * time.Millisecond // of each answer, so that there are always requests to cut
)

// TestRollingRestart restarts three instances one after the other, twenty times, under traffic. The service ends with
// its first signal, whatever it is doing. No request fails: by the time the service ends nobody asks it.
func TestRollingRestart(t *testing.T) {
	t.Parallel()
	for name, start := range map[string]func(*world, *rolling){
		"registrar beside the service": (*world).startBeside,
		"registrar runs the service":   (*world).startWrapped,
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			w := newWorld(t, func(text string) string { return strings.Replace(text, `"4s"`, `"20s"`, 1) }) // nobody dies here
			names := []string{"a", "b", "c"}
			var all []*rolling
			for _, name := range names {
				r := w.rollingInstance(name)
				start(w, r)
				all = append(all, r)
			}
			w.startAgent()
			w.allServe(names)
			unchanged := w.pinned()
			load := clitest.StartLoad(w.url(), rollingRate)
			began := time.Now()
			for range rollingRounds {
				for _, r := range all {
					r.stop()
					start(w, r)
					w.allServe(names)
				}
				require.Empty(t, load.Failures())
			}
			t.Logf("%d rounds in %s", rollingRounds, time.Since(began).Round(time.Second))
			w.endLoad(load)
			require.Len(t, load.Answers(), len(names), "all of them had requests")
			// None, unless the agent did not get to run for longer than the drain.
			t.Logf("HAProxy tried %d connections again, and sent %d requests to another server", w.stat("wretr"), w.stat("wredis"))
			unchanged()
		})
	}
}

// rolling is an instance that is stopped and started again at the same address.
type rolling struct {
	name string
	file string
	addr netip.AddrPort
	runs int
	stop func() // in the order in which an operator would
}

// rollingInstance writes the registrar's file of an instance. Its address is its own, so that no outgoing connection
// takes the port while the instance is stopped.
func (w *world) rollingInstance(name string) *rolling {
	w.t.Helper()
	host := netip.AddrFrom4([4]byte{127, byte(2 + rand.IntN(250)), byte(rand.IntN(256)), byte(1 + rand.IntN(250))})
	l, err := net.Listen("tcp", netip.AddrPortFrom(host, 0).String())
	require.NoError(w.t, err)
	defer l.Close()
	r := &rolling{name: name, file: filepath.Join(w.dir, name+".toml"), addr: l.Addr().(*net.TCPAddr).AddrPort()}
	w.write(r.file, fmt.Sprintf(`
instance_id = %q
state_dir = %q
admin = { listen = "off" }

[zookeeper]
hosts = [%q]
session_timeout = "20s"

[services.user-api]
host = %q
port = %d
zk_path = "/services/user-api"
check_interval = "100ms"
drain = %q
checks = [{ type = "http", uri = "/health", timeout = "2s", rise = 2, fall = 2 }]
`, name, w.dir, w.zk.Addr(), host, r.addr.Port(), rollingDrain))
	return r
}

// startBeside starts a service, and a registrar beside it. To stop, the registrar goes first.
func (w *world) startBeside(r *rolling) {
	w.t.Helper()
	r.runs++
	s, err := clitest.StartServiceAt(w.dir, r.name, r.addr, rollingDelay)
	require.NoError(w.t, err)
	w.t.Cleanup(s.Kill)
	registrar, err := clitest.Start(w.dir, fmt.Sprintf("%s-registrar-%d", r.name, r.runs), nil, binary, "registrar", "-c", r.file)
	require.NoError(w.t, err)
	w.t.Cleanup(registrar.Kill)
	r.stop = func() {
		w.t.Helper()
		require.Zero(w.t, w.terminate(registrar))
		w.terminate(s.Process)
	}
}

// startWrapped starts a registrar that runs the service.
func (w *world) startWrapped(r *rolling) {
	w.t.Helper()
	r.runs++
	program, env, err := clitest.SampleCommand(r.name, r.addr.String(), rollingDelay)
	require.NoError(w.t, err)
	registrar, err := clitest.Start(w.dir, fmt.Sprintf("%s-wrapped-%d", r.name, r.runs), env, binary, "registrar", "-c", r.file, "--", program)
	require.NoError(w.t, err)
	w.t.Cleanup(func() { registrar.Stop() }) // a kill would leave the service
	r.stop = func() {
		w.t.Helper()
		require.Equal(w.t, 128+int(syscall.SIGTERM), w.terminate(registrar), "the service's exit code")
	}
}

// terminate sends SIGTERM, and waits for the end. It returns the exit code.
func (w *world) terminate(p *clitest.Process) int {
	w.t.Helper()
	require.NoError(w.t, p.Signal(syscall.SIGTERM))
	code, err := p.Wait(patience)
	require.NoError(w.t, err)
	return code
}

// allServe waits until all instances are registered, and HAProxy gives them requests.
func (w *world) allServe(names []string) {
	w.t.Helper()
	w.converges(names...)
	w.eventually("all servers are up", func() error {
		servers, err := w.servers()
		for _, s := range servers {
			if s.Op == haproxy.OpStopped {
				err = fmt.Errorf("server %s is down", s.Name)
			}
		}
		return err
	})
}

// stat is a figure of the whole backend as HAProxy has counted it.
func (w *world) stat(field string) int {
	w.t.Helper()
	conn, err := net.Dial("unix", w.socket)
	require.NoError(w.t, err)
	defer conn.Close()
	_, err = io.WriteString(conn, "show stat\n")
	require.NoError(w.t, err)
	text, err := io.ReadAll(conn)
	require.NoError(w.t, err)
	rows, err := csv.NewReader(strings.NewReader(strings.TrimPrefix(strings.TrimSpace(string(text)), "# "))).ReadAll()
	require.NoError(w.t, err)
	for _, row := range rows[1:] {
		if row[0] != service || row[1] != "BACKEND" {
			continue
		}
		for i, name := range rows[0] {
			if name == field {
				n, err := strconv.Atoi(row[i])
				require.NoError(w.t, err)
				return n
			}
		}
	}
	require.Fail(w.t, "HAProxy has no such figure", field)
	return 0
}
