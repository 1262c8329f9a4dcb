package main_test

import (
	"bytes"
	"context"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/myelin-sd/myelin/haproxy"
	"github.com/myelin-sd/myelin/haproxy/haproxytest"
)

// BenchmarkTraffic shows what a full fill costs the requests that are under way: the 99th percentile of an open loop of
// 300 requests a second, on the backend that is filled and on one in which nothing changes, as a ratio to the value of
// the seconds before in the same run. The floor is the least commands that fill a backend, sent by hand: what HAProxy
// itself costs.
func BenchmarkTraffic(b *testing.B) {
	for _, n := range []int{100, 1000, 10_000} {
		for _, who := range []string{"floor", "myelin"} {
			b.Run(fmt.Sprintf("fill/%d/%s", n, who), func(b *testing.B) {
				for b.Loop() {
					trafficDuringFill(b, n, who)
				}
			})
		}
	}
}

func trafficDuringFill(b *testing.B, n int, who string) {
	r := newRig(b, "myelin")
	defer r.end()
	r.fill(1, "first")
	r.start()
	r.awaitAgent(1)
	r.program.Stop()
	fill := func() {
		r.start()
		r.awaitAgent(n + 1)
	}
	if who == "floor" {
		fill = func() { require.NoError(b, haproxytest.Pipeline(r.socket(), 16, r.leastCommands(n))) }
	} else {
		r.fill(n, "old")
	}

	filled, quiet := startSampler(r.port), startSampler(r.quiet)
	defer filled.stop()
	defer quiet.stop()
	time.Sleep(5 * time.Second) // the time is what is measured here
	idleFilled, idleQuiet := filled.take(), quiet.take()
	began := time.Now()
	fill()
	took := time.Since(began)
	busyFilled, busyQuiet := filled.take(), quiet.take()
	if n < 1000 && len(busyFilled) == 0 {
		return // too short for a request
	}
	for _, s := range [][]float64{idleFilled, idleQuiet, busyFilled, busyQuiet} {
		require.NotEmpty(b, s)
	}
	b.Logf("%6d servers in %s: p99 filled %.2f -> %.2f ms, quiet %.2f -> %.2f ms; p50 filled %.2f -> %.2f ms; %d requests", n,
		took.Round(time.Millisecond), quantile(idleFilled, 0.99), quantile(busyFilled, 0.99), quantile(idleQuiet, 0.99),
		quantile(busyQuiet, 0.99), quantile(idleFilled, 0.5), quantile(busyFilled, 0.5), len(busyFilled)+len(busyQuiet))
	b.ReportMetric(quantile(busyFilled, 0.99)/quantile(idleFilled, 0.99), "filled-p99-ratio")
	b.ReportMetric(quantile(busyQuiet, 0.99)/quantile(idleQuiet, 0.99), "quiet-p99-ratio")
}

// leastCommands fill the service's backend with n servers that take traffic.
func (r *rig) leastCommands(n int) []string {
	var out []string
	for i := range n {
		server := fmt.Sprintf("%s/by-hand%05d", service, i)
		out = append(out, fmt.Sprintf("add server %s %s:%d id %d", server, registrationHost(i), r.old, i+1), "set server "+server+" state ready")
	}
	return out
}

// awaitAgent waits until the agent says that n servers are in rotation. HAProxy itself is not asked: a table of 10,000
// servers would show in the figures.
func (r *rig) awaitAgent(n int) {
	r.b.Helper()
	want := regexp.MustCompile(fmt.Sprintf(`(?m)^myelin_haproxy_servers{backend="%s",socket="[^"]*",state="ready"} %d$`, service, n))
	if n >= 1e6 {
		r.b.Fatal("the metric would be written with an exponent")
	}
	deadline := time.Now().Add(3 * time.Minute)
	for {
		resp, err := r.client.Get(fmt.Sprintf("http://127.0.0.1:%d/metrics", r.admin))
		if err == nil {
			text, _ := io.ReadAll(resp.Body)
			resp.Body.Close()
			if want.Match(text) {
				return
			}
		}
		require.True(r.b, time.Now().Before(deadline), "not %d in rotation\n%s", n, r.program.Log())
		time.Sleep(50 * time.Millisecond)
	}
}

// sampler is an open loop of requests whose answers' times it keeps, in milliseconds.
type sampler struct {
	cancel context.CancelFunc
	done   chan struct{}

	mu    sync.Mutex
	times []float64
}

func startSampler(port int) *sampler {
	ctx, cancel := context.WithCancel(context.Background())
	s := &sampler{cancel: cancel, done: make(chan struct{})}
	client := &http.Client{Timeout: 20 * time.Second, Transport: &http.Transport{MaxIdleConnsPerHost: 64}}
	url := fmt.Sprintf("http://127.0.0.1:%d/", port)
	go func() {
		defer close(s.done)
		var running sync.WaitGroup
		defer running.Wait()
		tick := time.NewTicker(time.Second / churnRate)
		defer tick.Stop()
		for {
			var due time.Time
			select {
			case <-ctx.Done():
				return
			case due = <-tick.C: // not when it was sent: a stalled sender must not hide a stall
			}
			running.Go(func() {
				resp, err := client.Get(url)
				if err != nil {
					return
				}
				io.Copy(io.Discard, resp.Body)
				resp.Body.Close()
				s.mu.Lock()
				s.times = append(s.times, ms(time.Since(due)))
				s.mu.Unlock()
			})
		}
	}()
	return s
}

// take returns the times since the last call.
func (s *sampler) take() []float64 {
	s.mu.Lock()
	defer s.mu.Unlock()
	t := s.times
	s.times = nil
	return t
}

func (s *sampler) stop() {
	s.cancel()
	<-s.done
}

// BenchmarkJoin shows what one join costs beside 10,000 instances, as a ratio to the same beside 100: commands and
// bytes on the admin socket, time from just before the create of the znode to the first request that the new server
// answers, and the 99th percentile of a quiet service's requests meanwhile.
func BenchmarkJoin(b *testing.B) {
	for b.Loop() {
		few, many := joinsBeside(b, 100), joinsBeside(b, 10_000)
		for _, name := range sorted(mapKeys(few)) {
			b.Logf("%-14s beside 100 %9.2f   beside 10,000 %9.2f   ratio %.2f", name, few[name], many[name], many[name]/few[name])
			b.ReportMetric(many[name]/few[name], name+"-ratio")
		}
	}
}

func joinsBeside(b *testing.B, n int) map[string]float64 {
	const joins = 40
	r := newRig(b, "myelin")
	defer r.end()
	fresh := backendServer(b, "new")
	r.fill(n, "old")
	meter := r.meter()
	defer meter.close()
	r.start()
	r.awaitAgent(n)
	quiet := startSampler(r.quiet)
	defer quiet.stop()
	time.Sleep(3 * time.Second) // the start's own work is over
	idle := quiet.take()
	var commands, octets, times []float64
	cpu := r.cpuOf(r.program.Pid())
	for i := range joins {
		name := fmt.Sprintf("new%04d", i)
		server := haproxy.ServerName(name, registrationHost(n+i), uint16(fresh))
		before := meter.read()
		began := time.Now()
		_, err := r.session.Publish(context.Background(), registration(name, n+i, fresh), "")
		require.NoError(b, err)
		r.until(func() bool { return r.served(server) })
		times = append(times, ms(time.Since(began)))
		r.awaitAgent(n + i + 1)
		time.Sleep(300 * time.Millisecond) // what the agent does behind a join belongs to it
		after := meter.read()
		commands = append(commands, float64(after.commands-before.commands))
		octets = append(octets, float64(after.bytes-before.bytes))
	}
	busy := quiet.take()
	cpu = r.cpuOf(r.program.Pid()) - cpu
	return map[string]float64{
		"agent-cpu-ms": cpu / joins, "commands": median(commands), "bytes": median(octets), "join-p50": quantile(times, 0.5),
		"p99-to-idle": quantile(busy, 0.99) / quantile(idle, 0.99),
	}
}

// meter counts what goes through HAProxy's admin socket. A connection's greeting and the regular look whether HAProxy
// is still the same process are left out: they come at their times, whatever joins.
type meter struct {
	listener net.Listener
	target   string

	mu    sync.Mutex
	total volume
}

// meter moves HAProxy's socket aside and stands in its place.
func (r *rig) meter() *meter {
	r.b.Helper()
	target := filepath.Join(r.dir, "real.sock")
	require.NoError(r.b, os.Rename(r.socket(), target))
	l, err := net.Listen("unix", r.socket())
	require.NoError(r.b, err)
	m := &meter{listener: l, target: target}
	go func() {
		for {
			conn, err := l.Accept()
			if err != nil {
				return
			}
			go m.serve(conn)
		}
	}()
	return m
}

// close ends the meter; connections end with the two that they connect.
func (m *meter) close() { m.listener.Close() }

// volume is what was counted.
type volume struct{ commands, bytes int }

func (m *meter) read() volume {
	m.mu.Lock()
	defer m.mu.Unlock()
	return m.total
}

func greeting(command string) bool {
	return command == "prompt" || command == "show info" || strings.HasPrefix(command, "set severity-output ") || strings.HasPrefix(command, "set timeout ")
}

// serve passes bytes on as they come. Replies are matched to commands by their order; each ends in a prompt.
func (m *meter) serve(conn net.Conn) {
	defer conn.Close()
	up, err := net.Dial("unix", m.target)
	if err != nil {
		return
	}
	defer up.Close()
	sent := make(chan string, 1024) // far more than are ever unanswered
	go func() {
		defer up.Close()
		var line []byte
		for buf := make([]byte, 64<<10); ; {
			n, err := conn.Read(buf)
			if err != nil {
				return
			}
			for _, c := range buf[:n] {
				if c != '\n' {
					line = append(line, c)
					continue
				}
				sent <- string(line)
				line = line[:0]
			}
			if _, err := up.Write(buf[:n]); err != nil {
				return
			}
		}
	}()
	size := 0
	var tail []byte
	for buf := make([]byte, 64<<10); ; {
		n, err := up.Read(buf)
		if err != nil {
			return
		}
		if _, err := conn.Write(buf[:n]); err != nil {
			return
		}
		text := append(tail, buf[:n]...)
		size += n
		for {
			i := bytes.Index(text, []byte("\n> "))
			if i < 0 {
				break
			}
			text = text[i+3:]
			command := <-sent
			if !greeting(command) {
				m.mu.Lock()
				m.total.commands++
				m.total.bytes += len(command) + 1 + size - len(text)
				m.mu.Unlock()
			}
			size = len(text)
		}
		tail = append([]byte(nil), text[max(0, len(text)-2):]...)
	}
}
