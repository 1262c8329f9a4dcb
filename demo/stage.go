package main

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"maps"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"text/tabwriter"
	"time"

	"github.com/sirupsen/logrus"

	"github.com/myelin-sd/myelin/cli/clitest"
	"github.com/myelin-sd/myelin/discovery/zookeeper"
	"github.com/myelin-sd/myelin/discovery/zookeeper/zktest"
	"github.com/myelin-sd/myelin/haproxy"
)

const (
	serviceName = "user-api"
	servicePath = "/services/user-api"
)

// stage is the running topology.
type stage struct {
	dir, bin, configs string
	port, adminPort   int
	zk                *zktest.Server
	reader            *zookeeper.Session
	agent             *clitest.Process
	instances         map[string]*instance
	load              *clitest.Load
	expected          []string
	worker            int       // HAProxy's worker before the present step; 0: there is none yet
	began             time.Time // when what the present step converges from happened
	results           []result
}

// instance is a service with its registrar.
type instance struct {
	name      string
	service   *clitest.Service
	registrar *clitest.Process
	config    string
}

// result is a row of the table.
type result struct {
	step          step
	took          time.Duration
	sent, failed  int
	worker        int
	workerChanged bool
}

// setStage starts everything. The stage is returned with an error too, for what has been started.
func setStage(bin, configs string) (*stage, error) {
	dir, err := os.MkdirTemp("", "myelin-demo-")
	if err != nil {
		return nil, err
	}
	s := &stage{dir: dir, configs: configs, instances: map[string]*instance{}}
	if s.bin, err = filepath.Abs(bin); err != nil {
		return s, err
	}
	fmt.Println("logs and files:", dir)
	fmt.Println("starting ZooKeeper, four services and four registrars ...")
	zkDir := filepath.Join(dir, "zookeeper")
	if err := os.Mkdir(zkDir, 0o755); err != nil {
		return s, err
	}
	if s.zk, err = zktest.Start(zkDir, zktest.Options{}); err != nil {
		return s, err
	}
	quiet := logrus.New()
	quiet.SetOutput(io.Discard)
	s.reader = zookeeper.New(zookeeper.Options{Hosts: []string{s.zk.Addr()}, SessionTimeout: 10 * time.Second, Log: quiet})
	for _, name := range []string{"web-1", "web-2", "web-3", "web-4"} {
		if err := s.addInstance(name); err != nil {
			return s, err
		}
	}
	if s.port, err = portNear(8080); err != nil {
		return s, err
	}
	if s.adminPort, err = portNear(3213); err != nil {
		return s, err
	}
	return s, nil
}

// startAgent starts the agent, and the requests as soon as they can be answered.
func (s *stage) startAgent() (err error) {
	s.agent, err = clitest.Start(s.dir, "agent", s.env(), s.bin, "agent", "-c", filepath.Join(s.configs, "agent.toml"))
	if err != nil {
		return err
	}
	names := slices.Collect(maps.Keys(s.instances))
	if err := s.await(func() error { return s.inRotation(names) }); err != nil {
		return fmt.Errorf("%w\n%s", err, s.agent.Tail(10))
	}
	s.load = clitest.StartLoad(fmt.Sprintf("http://localhost:%d/", s.port), rate)
	return nil
}

// portNear is the wanted port if nobody has it, else any free one.
func portNear(wanted int) (int, error) {
	if l, err := net.Listen("tcp", net.JoinHostPort("127.0.0.1", strconv.Itoa(wanted))); err == nil {
		return wanted, l.Close()
	}
	return clitest.FreePort()
}

func (s *stage) zkPort() string {
	_, port, _ := net.SplitHostPort(s.zk.Addr())
	return port
}

// env fills in the demo's configuration files.
func (s *stage) env() []string {
	return []string{
		"DEMO_DIR=" + s.dir, "DEMO_ZOOKEEPER_PORT=" + s.zkPort(),
		fmt.Sprintf("DEMO_PORT=%d", s.port), fmt.Sprintf("DEMO_ADMIN_PORT=%d", s.adminPort),
	}
}

func (s *stage) addInstance(name string) error {
	port, err := clitest.FreePort()
	if err != nil {
		return err
	}
	in := &instance{name: name, config: filepath.Join(s.dir, name+"-registrar.toml")}
	s.instances[name] = in
	if in.service, err = clitest.StartService(s.dir, name, port); err != nil {
		return err
	}
	// A copy of its own, so that its weight can be edited.
	text, err := os.ReadFile(filepath.Join(s.configs, "registrar.toml"))
	if err != nil {
		return err
	}
	if err := os.WriteFile(in.config, text, 0o644); err != nil {
		return err
	}
	env := append(s.env(), "DEMO_NAME="+name, fmt.Sprintf("DEMO_SERVICE_PORT=%d", port))
	in.registrar, err = clitest.Start(s.dir, name+"-registrar", env, s.bin, "registrar", "-c", in.config)
	return err
}

func (in *instance) kill() {
	in.registrar.Kill()
	in.service.Kill()
}

func (in *instance) reweigh(from, to int) error {
	text, err := os.ReadFile(in.config)
	if err != nil {
		return err
	}
	old, now := fmt.Appendf(nil, "= %d\n", from), fmt.Appendf(nil, "= %d\n", to)
	if !bytes.Contains(text, old) {
		return fmt.Errorf("%s has no weight of %d", in.config, from)
	}
	if err := os.WriteFile(in.config, bytes.Replace(text, old, now, 1), 0o644); err != nil {
		return err
	}
	return in.registrar.Signal(syscall.SIGHUP)
}

// play does one step and notes how it went.
func (s *stage) play(st step) error {
	fmt.Printf("%-40s ", st.title)
	s.worker, _ = s.haproxyPid()
	sent, failed := s.count()
	s.began = time.Now()
	if err := st.act(s); err != nil {
		return fmt.Errorf("%s: %w", st.title, err)
	}
	if st.inRotation != nil {
		s.expected = st.inRotation
	}
	err := s.await(func() error {
		if err := s.inRotation(s.expected); err != nil || st.until == nil {
			return err
		}
		return st.until(s)
	})
	took := time.Since(s.began)
	if err != nil {
		return fmt.Errorf("%s: not converged after %s: %w\n%s", st.title, patient, err, s.agent.Tail(10))
	}
	if st.then != nil {
		if err := st.then(s); err != nil {
			return fmt.Errorf("%s: %w", st.title, err)
		}
	}
	time.Sleep(time.Second) // the stream goes on for a while
	sent2, failed2 := s.count()
	after, err := s.haproxyPid()
	if err != nil {
		return fmt.Errorf("%s: %w", st.title, err)
	}
	r := result{step: st, took: took, sent: sent2 - sent, failed: failed2 - failed, worker: after, workerChanged: s.worker != 0 && s.worker != after}
	s.results = append(s.results, r)
	fmt.Printf("converged in %s\n", took.Round(time.Millisecond))
	return nil
}

// count is how many requests have ended, and failed.
func (s *stage) count() (sent, failed int) {
	if s.load == nil {
		return 0, 0
	}
	return s.load.Count()
}

func (s *stage) await(condition func() error) error {
	deadline := time.Now().Add(patient)
	for {
		err := condition()
		if err == nil || time.Now().After(deadline) {
			return err
		}
		time.Sleep(5 * time.Millisecond)
	}
}

// inRotation compares ZooKeeper's list and HAProxy's own table with the names that are expected. While ZooKeeper is
// away only HAProxy is asked.
func (s *stage) inRotation(names []string) error {
	want := slices.Sorted(slices.Values(names))
	servers, err := s.table()
	if err != nil {
		return err
	}
	var ready []string
	for _, srv := range servers {
		if srv.Admin == haproxy.Ready {
			name, _, _ := strings.Cut(srv.Name, "_")
			ready = append(ready, name)
		}
	}
	slices.Sort(ready)
	if !slices.Equal(ready, want) {
		return fmt.Errorf("HAProxy has %v ready, expected %v", ready, want)
	}
	if !s.zk.Running() {
		return nil
	}
	ctx, cancel := context.WithTimeout(context.Background(), time.Second)
	defer cancel()
	snap, err := s.reader.Snapshot(ctx, serviceName, servicePath)
	if err != nil {
		return fmt.Errorf("read ZooKeeper: %w", err)
	}
	var listed []string
	for _, in := range snap.Instances {
		listed = append(listed, in.Name)
	}
	slices.Sort(listed)
	if !slices.Equal(listed, want) {
		return fmt.Errorf("ZooKeeper lists %v, expected %v", listed, want)
	}
	return nil
}

func (s *stage) socket() string { return filepath.Join(s.dir, "haproxy.sock") }

func (s *stage) table() ([]haproxy.Server, error) {
	ctx, cancel := context.WithTimeout(context.Background(), 2*time.Second)
	defer cancel()
	c, err := haproxy.Dial(ctx, s.socket(), haproxy.ClientOptions{})
	if err != nil {
		return nil, err
	}
	defer c.Close()
	state, err := c.State(ctx)
	return state[serviceName], err
}

func (s *stage) haproxyPid() (int, error) {
	ctx, cancel := context.WithTimeout(context.Background(), 2*time.Second)
	defer cancel()
	c, err := haproxy.Dial(ctx, s.socket(), haproxy.ClientOptions{})
	if err != nil {
		return 0, err
	}
	defer c.Close()
	return c.Identity().Pid, nil
}

// master is the process id of HAProxy's master, 0 when it is not known.
func (s *stage) master() int {
	text, err := os.ReadFile(filepath.Join(s.dir, "haproxy.pid"))
	if err != nil {
		return 0
	}
	pid, _ := strconv.Atoi(strings.TrimSpace(string(text)))
	return pid
}

func (s *stage) hasWeight(name string, weight int) error {
	servers, err := s.table()
	if err != nil {
		return err
	}
	for _, srv := range servers {
		if strings.HasPrefix(srv.Name, name+"_") && srv.Weight == weight {
			return nil
		}
	}
	return fmt.Errorf("%s has not weight %d", name, weight)
}

func (s *stage) otherWorker() error {
	pid, err := s.haproxyPid()
	if err == nil && pid == s.worker {
		err = errors.New("the old worker still answers")
	}
	return err
}

func (s *stage) agentConnected() error {
	st, err := s.status()
	if err != nil {
		return err
	}
	for _, z := range st.ZooKeeper {
		if !z.Connected {
			return errors.New("the agent is not connected to ZooKeeper")
		}
	}
	return nil
}

func (s *stage) reloads() (uint64, error) {
	st, err := s.status()
	return st.File.Reload.Reloads, err
}

// agentStatus is what the demo reads of /api/v1/status.
type agentStatus struct {
	ZooKeeper []struct {
		Connected bool `json:"connected"`
	} `json:"zookeeper"`
	File struct {
		Reload struct {
			Reloads uint64 `json:"reloads"`
		} `json:"reload"`
	} `json:"file"`
}

func (s *stage) status() (agentStatus, error) {
	var st agentStatus
	resp, err := http.Get(fmt.Sprintf("http://127.0.0.1:%d/api/v1/status", s.adminPort))
	if err != nil {
		return st, err
	}
	defer resp.Body.Close()
	return st, json.NewDecoder(resp.Body).Decode(&st)
}

func (s *stage) printTable() {
	fmt.Println()
	w := tabwriter.NewWriter(os.Stdout, 0, 0, 2, ' ', 0)
	fmt.Fprintln(w, "STEP\tCONVERGED IN\tREQUESTS\tFAILED\tHAPROXY'S PID")
	var sent, failed int
	for _, r := range s.results {
		note := ""
		if r.workerChanged {
			note = " (new)"
		}
		fmt.Fprintf(w, "%s\t%s\t%d\t%d\t%d%s\n", r.step.title, r.took.Round(time.Millisecond), r.sent, r.failed, r.worker, note)
		sent += r.sent
		failed += r.failed
	}
	fmt.Fprintf(w, "all\t\t%d\t%d\n", sent, failed)
	w.Flush()
	fmt.Println()
}

// processes are all that the demo started, the traffic's side last.
func (s *stage) processes() []*clitest.Process {
	var all []*clitest.Process
	for _, name := range slices.Sorted(maps.Keys(s.instances)) {
		in := s.instances[name]
		if in.registrar != nil {
			all = append(all, in.registrar)
		}
		if in.service != nil {
			all = append(all, in.service.Process)
		}
	}
	if s.agent != nil {
		all = append(all, s.agent)
	}
	return all
}

// strike ends everything and removes the files.
func (s *stage) strike() {
	if s.load != nil {
		s.load.Stop()
	}
	for _, p := range s.processes() {
		if p.Running() {
			p.Stop()
		}
	}
	if s.reader != nil {
		s.reader.Close()
	}
	if pid := s.master(); pid > 1 {
		syscall.Kill(pid, syscall.SIGTERM)
	}
	if s.zk != nil {
		s.zk.Stop()
	}
	os.RemoveAll(s.dir)
}

// handOver leaves everything running and says what to try.
func (s *stage) handOver() error {
	s.reader.Close()
	pids := []string{strconv.Itoa(s.zk.Pid())}
	for _, p := range s.processes() {
		if p.Running() {
			pids = append(pids, strconv.Itoa(p.Pid()))
		}
	}
	stop := filepath.Join(s.dir, "stop")
	// HAProxy goes last, and by its file: the agent may have started another one meanwhile.
	script := fmt.Sprintf("#!/bin/sh\nkill %[1]s 2>/dev/null\nsleep 1\nkill $(cat %[2]s/haproxy.pid) 2>/dev/null\nrm -rf %[2]s\n", strings.Join(pids, " "), s.dir)
	if err := os.WriteFile(stop, []byte(script), 0o755); err != nil {
		return err
	}
	fmt.Printf(`Everything goes on running. Try:

  curl http://localhost:%[1]d/
  %[2]s --zookeeper %[3]s instances user-api
  %[2]s --zookeeper %[3]s watch user-api
  %[2]s status --address 127.0.0.1:%[4]d
  curl -X POST http://127.0.0.1:%[5]d/fail      # web-2's health check fails; /recover ends that
  kill -9 %[6]d                                 # HAProxy's master: the agent starts it again
  kill %[7]d                                    # the agent: HAProxy goes on without it
  ls %[8]s

and in the end:

  %[9]s
`, s.port, s.bin, s.zk.Addr(), s.adminPort, s.instances["web-2"].service.Port, s.master(), s.agent.Pid(), s.dir, stop)
	return nil
}
