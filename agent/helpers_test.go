package agent

import (
	"bufio"
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/sirupsen/logrus"
	logtest "github.com/sirupsen/logrus/hooks/test"
	"github.com/stretchr/testify/require"

	"github.com/myelin-sd/myelin/config"
	"github.com/myelin-sd/myelin/discovery"
	"github.com/myelin-sd/myelin/haproxy"
	"github.com/myelin-sd/myelin/haproxy/haproxytest"
)

const patience = 20 * time.Second // no test waits this long unless something is broken

// eventually polls until check has no complaint.
func eventually(t *testing.T, what string, check func() error) {
	t.Helper()
	deadline := time.Now().Add(patience)
	for {
		err := check()
		if err == nil {
			return
		}
		if time.Now().After(deadline) {
			require.NoError(t, err, what)
		}
		time.Sleep(2 * time.Millisecond)
	}
}

// feed is a source that says what the test tells it to say.
type feed chan discovery.Snapshot

func (f feed) Run(ctx context.Context, out chan<- discovery.Snapshot) error {
	for {
		select {
		case <-ctx.Done():
			return ctx.Err()
		case s := <-f:
			select {
			case out <- s:
			case <-ctx.Done():
				return ctx.Err()
			}
		}
	}
}

// node is one generation of an agent on a real HAProxy, with a tap on its admin socket and a feed for each service.
type node struct {
	t       *testing.T
	config  *config.Agent
	haproxy *haproxytest.HAProxy
	tap     *tap
	feeds   map[string]feed
	log     *logtest.Hook
	logger  *logrus.Logger

	shadow   *ShadowOptions       // nil: the agent drives HAProxy
	names    *names               // nil: the system's nameserver
	prepare  func(*generation)    // called before a generation runs; nil: nothing is
	contact  contact              // how the registry is reached, as the guard is told
	registry *prometheus.Registry // of the last start's metrics
	agent    *Agent
	gen      *generation
	stop     func() // ends the generation
}

// serviceNamed finds its instances in a registry that the test plays.
func serviceNamed(name string) config.Service {
	return config.Service{Name: name, UsePreviousBackends: true, Discovery: config.Discovery{Method: "zookeeper", Path: "/" + name}}
}

// nodeConfig has one service "svc", one HAProxy and one file. A reload is noted in the file "reloads" and carried out.
func nodeConfig(dir string) *config.Agent {
	c := &config.Agent{Services: []config.Service{serviceNamed("svc")}}
	c.HAProxy = config.HAProxy{
		DoWrites: true, DoSocket: true, DoReloads: true, UseNerveWeights: true, RegistryOptions: config.RegistryWords(),
		ConfigFilePath: filepath.Join(dir, "haproxy.cfg"), SocketFilePaths: []string{haproxytest.Socket(dir)},
		ReloadCommand:   fmt.Sprintf("echo reload >> %[1]s/reloads; kill -USR2 $(cat %[1]s/pid)", dir),
		RestartInterval: 20 * time.Millisecond,
	}
	return c
}

// newNode starts a HAProxy from the file that the configuration leads to, without servers. edit may change the
// configuration. The agent is started with start. HAProxy takes servers at run time.
func newNode(t *testing.T, edit ...func(*config.Agent)) *node {
	t.Helper()
	haproxytest.RequireDynamicServers(t)
	return newNodeOfAnyVersion(t, edit...)
}

// newNodeOfAnyVersion is newNode for tests that expect no servers under their own names.
func newNodeOfAnyVersion(t *testing.T, edit ...func(*config.Agent)) *node {
	t.Helper()
	binary := haproxytest.Require(t)
	dir := haproxytest.TempDir(t)
	n := &node{t: t, config: nodeConfig(dir), feeds: map[string]feed{}}
	n.config.HAProxy.Binary = binary
	n.logger, n.log = logtest.NewNullLogger()
	n.logger.SetLevel(logrus.DebugLevel)
	for _, e := range edit {
		e(n.config)
	}
	n.config = withNames(t.Context(), n.config)
	n.writeFile(fileOf(n.config).Render(nil))
	n.startHAProxy()
	t.Cleanup(func() {
		if t.Failed() {
			t.Logf("HAProxy said:\n%s", n.haproxy.Log())
			t.Logf("the agent said:\n%s", n.logText())
			t.Logf("HAProxy was told:\n%s", strings.Join(n.tap.seen(), "\n"))
		}
		n.haproxy.Stop()
	})
	n.tap = newTap(t, n.haproxy.Socket)
	return n
}

func (n *node) dir() string { return filepath.Dir(n.config.HAProxy.ConfigFilePath) }

func (n *node) writeFile(text []byte) {
	n.t.Helper()
	require.NoError(n.t, os.WriteFile(n.config.HAProxy.ConfigFilePath, text, 0o600))
}

func (n *node) startHAProxy() {
	n.t.Helper()
	h, err := haproxytest.Start(n.dir(), "", haproxytest.Options{Files: []string{n.config.HAProxy.ConfigFilePath}})
	require.NoError(n.t, err)
	n.haproxy = h
	n.notePid()
}

// notePid tells the reload command whom to signal.
func (n *node) notePid() {
	n.t.Helper()
	require.NoError(n.t, os.WriteFile(filepath.Join(n.dir(), "pid"), fmt.Append(nil, n.haproxy.MasterPid()), 0o600))
}

// start runs a generation. grace is Options.DeleteAfter; 0 is so long that nothing is deleted.
func (n *node) start(grace time.Duration) {
	n.t.Helper()
	n.startWith(n.config, grace, nil)
}

func (n *node) startWith(c *config.Agent, grace time.Duration, inherited map[string]view, edit ...func(*reconciler)) {
	n.t.Helper()
	if grace == 0 {
		grace = time.Hour
	}
	n.config = c
	n.registry = prometheus.NewRegistry()
	n.agent = New(Options{
		Config: c, Version: "test", Log: n.logger, Metrics: NewMetrics(n.registry), DeleteAfter: grace,
		Shadow: n.shadow,
	})
	c = n.agent.o.Config // of a shadow it is another one
	g, err := n.agent.newGeneration(c, 1, inherited)
	require.NoError(n.t, err)
	for i, s := range c.Services {
		if s.Discovery.Method == "zookeeper" {
			n.feeds[s.Name] = make(feed, 100)
			g.sources[i] = n.feeds[s.Name]
		}
	}
	g.contact = func(config.Service) contact { return n.contact }
	for _, r := range g.haproxys {
		r.socket = n.tap.path
		for _, e := range edit {
			e(r)
		}
	}
	if n.names != nil {
		g.resolver.lookup, g.resolver.every = n.names.lookup, 10*time.Millisecond
	}
	if n.prepare != nil {
		n.prepare(g)
	}
	n.agent.current.Store(g)
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan struct{})
	go func() {
		defer close(done)
		g.run(ctx)
	}()
	n.gen = g
	n.stop = sync.OnceFunc(func() {
		cancel()
		<-done
		n.agent.closeSessions(nil)
	})
	n.t.Cleanup(n.stop)
}

// sweeps waits until the connections of retired servers were looked at so many times.
func (n *node) sweeps(from, times int) {
	n.t.Helper()
	eventually(n.t, "connections are looked at", func() error {
		seen := 0
		for _, l := range n.tap.answered()[from:] {
			if strings.HasPrefix(l, "show servers conn") {
				seen++
			}
		}
		if seen < times {
			return fmt.Errorf("%d times", seen)
		}
		return nil
	})
}

// resolves has the next start ask the test for the addresses of names, all the time.
func (n *node) resolves(known *names) { n.names = known }

// hear has the registry list these instances of svc, as in the words of instances.
func (n *node) hear(words ...string) { n.hearOf("svc", instances(n.t, words...)...) }

func (n *node) hearOf(service string, list ...discovery.Instance) {
	slices.SortFunc(list, discovery.Compare)
	n.feeds[service] <- discovery.Snapshot{Service: service, Instances: list, At: time.Now()}
}

// asking is an instance whose registration asks for options.
func asking(t *testing.T, word, options string) discovery.Instance {
	t.Helper()
	in := instances(t, word)[0]
	in.ServerOptions = strings.Fields(options)
	return in
}

// state is HAProxy's own table.
func (n *node) state() (haproxy.State, error) {
	ctx, cancel := context.WithTimeout(context.Background(), patience)
	defer cancel()
	c, err := haproxy.Dial(ctx, n.haproxy.Socket, haproxy.ClientOptions{})
	if err != nil {
		return nil, err
	}
	defer c.Close()
	return c.State(ctx)
}

// short writes a server as "name", with ":maint" or ":drain", and "*5" for a weight other than 1. Of the name the
// address is left out: "a_127.0.0.1:81-g2" is "a-g2".
func short(s haproxy.Server) string {
	base, number := haproxy.Generation(s.Name)
	name, _, _ := strings.Cut(base, "_")
	if number > 1 {
		name += fmt.Sprintf("-g%d", number)
	}
	if s.Admin != haproxy.Ready {
		name += ":" + s.Admin.String()
	}
	if s.Weight != 1 {
		name += fmt.Sprintf("*%d", s.Weight)
	}
	return name
}

func briefOf(servers []haproxy.Server) string {
	var words []string
	for _, s := range servers {
		words = append(words, short(s))
	}
	slices.Sort(words)
	return strings.Join(words, " ")
}

// has waits until HAProxy's table of a backend is as written.
func (n *node) has(backend, want string) {
	n.t.Helper()
	eventually(n.t, "HAProxy has "+backend+" as wanted", func() error {
		state, err := n.state()
		if err != nil {
			return err
		}
		servers, ok := state[backend]
		if !ok {
			return fmt.Errorf("no backend %s", backend)
		}
		if got := briefOf(servers); got != want {
			return fmt.Errorf("backend %s is %q, not %q", backend, got, want)
		}
		return nil
	})
}

// fileHas waits until the servers of a backend in the file are as written.
func (n *node) fileHas(backend, want string) {
	n.t.Helper()
	eventually(n.t, "the file has "+backend+" as wanted", func() error {
		text, err := os.ReadFile(n.config.HAProxy.ConfigFilePath)
		if err != nil {
			return err
		}
		if got := briefOf(haproxy.ServersOfText(text)[backend]); got != want {
			return fmt.Errorf("backend %s is %q in the file, not %q", backend, got, want)
		}
		return nil
	})
}

// ready waits until everything wanted is applied and in the file.
func (n *node) ready() {
	n.t.Helper()
	eventually(n.t, "ready", func() error {
		if w := n.gen.waiting(); len(w) > 0 {
			return errors.New(strings.Join(w, "; "))
		}
		if !n.gen.file.inStep() {
			return errors.New("the file is not in step")
		}
		return nil
	})
}

// connected waits until HAProxy has been met.
func (n *node) connected() {
	n.t.Helper()
	eventually(n.t, "HAProxy is met", func() error {
		if s := n.haproxyStatus(); s.Rounds == 0 || !s.Connected {
			return errors.New(s.Error)
		}
		return nil
	})
}

// byHand sends one command past the agent, as a colleague with socat would.
func (n *node) byHand(command string) {
	n.t.Helper()
	_, err := n.haproxy.Command(command)
	require.NoError(n.t, err)
}

func (n *node) reloads() int {
	text, _ := os.ReadFile(filepath.Join(n.dir(), "reloads"))
	return bytes.Count(text, []byte("reload"))
}

func (n *node) reloadReasons() map[string]uint64 {
	return n.gen.file.status().Reload.ByReason
}

func (n *node) haproxyStatus() haproxyStatus {
	if s := n.gen.haproxys[0].status.Load(); s != nil {
		return *s
	}
	return haproxyStatus{}
}

// said counts the log lines whose message begins so.
func said(log *logtest.Hook, message string) int {
	count := 0
	for _, e := range log.AllEntries() {
		if strings.HasPrefix(e.Message, message) {
			count++
		}
	}
	return count
}

func (n *node) said(message string) int { return said(n.log, message) }

func (n *node) logText() string {
	var b strings.Builder
	for _, e := range n.log.AllEntries() {
		fmt.Fprintf(&b, "%s %s %v\n", e.Level, e.Message, e.Data)
	}
	return b.String()
}

// tap stands between the agent and HAProxy's admin socket: it notes the commands and plays faults.
type tap struct {
	path, target string

	mu    sync.Mutex
	dials int
	most  int // connections at a time
	guest int // of them, the test's own
	lines []string
	done  []string                // those that were answered
	fault func(line string) fault // nil: none
	open  map[net.Conn]bool

	clients map[net.Conn]bool // of open, those of the agent's side
	ended   bool
}

// fault is what happens to a command instead of being passed on and answered.
type fault struct {
	reply  string // the answer; HAProxy never sees the command
	cut    bool   // the connection ends before HAProxy sees the command
	lost   bool   // the connection ends when HAProxy has carried the command out
	behind func() // called when HAProxy has answered, before the answer is passed on
}

func newTap(t *testing.T, target string) *tap {
	t.Helper()
	p := &tap{path: filepath.Join(haproxytest.TempDir(t), "tap.sock"), target: target, open: map[net.Conn]bool{}, clients: map[net.Conn]bool{}}
	l, err := net.Listen("unix", p.path)
	require.NoError(t, err)
	var all sync.WaitGroup
	all.Go(func() {
		for {
			conn, err := l.Accept()
			if err != nil {
				return
			}
			all.Go(func() { p.serve(conn) })
		}
	})
	t.Cleanup(func() {
		l.Close()
		p.mu.Lock()
		p.ended = true
		for c := range p.open {
			c.Close()
		}
		p.mu.Unlock()
		all.Wait()
		// HAProxy takes ten connections, of which people and exporters need some (its "stats maxconn").
		if p.most > 2+p.guest {
			t.Errorf("the agent had %d connections to HAProxy at a time", p.most-p.guest)
		}
	})
	return p
}

// hungUp tells whether the other side has closed a connection, which whoever reads from it may not have noticed yet.
func hungUp(c net.Conn) bool {
	raw, err := c.(*net.UnixConn).SyscallConn()
	if err != nil {
		return true
	}
	gone := false
	err = raw.Control(func(fd uintptr) {
		n, _, err := syscall.Recvfrom(int(fd), make([]byte, 1), syscall.MSG_PEEK|syscall.MSG_DONTWAIT)
		gone = n == 0 && err == nil
	})
	return gone || err != nil
}

func (p *tap) hold(c net.Conn) bool {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.open[c] = true
	return !p.ended
}

func (p *tap) release(c net.Conn) {
	c.Close()
	p.mu.Lock()
	defer p.mu.Unlock()
	delete(p.open, c)
}

func (p *tap) serve(conn net.Conn) {
	defer p.release(conn)
	if !p.hold(conn) {
		return
	}
	p.mu.Lock()
	p.dials++
	p.clients[conn] = true
	live := 0
	for c := range p.clients {
		if !hungUp(c) {
			live++
		}
	}
	p.most = max(p.most, live)
	p.mu.Unlock()
	defer func() {
		p.mu.Lock()
		defer p.mu.Unlock()
		delete(p.clients, conn)
	}()
	up, err := net.Dial("unix", p.target)
	if err != nil {
		return
	}
	defer p.release(up)
	if !p.hold(up) {
		return
	}
	answers := bufio.NewReader(up)
	for in := bufio.NewScanner(conn); in.Scan(); {
		line := in.Text()
		p.mu.Lock()
		p.lines = append(p.lines, line)
		var f fault
		if p.fault != nil {
			f = p.fault(line)
		}
		p.mu.Unlock()
		reply := []byte(f.reply)
		if f.cut {
			return
		}
		if f.reply == "" {
			if _, err := io.WriteString(up, line+"\n"); err != nil {
				return
			}
			for !bytes.HasSuffix(reply, []byte("\n> ")) {
				b, err := answers.ReadByte()
				if err != nil {
					return
				}
				reply = append(reply, b)
			}
		}
		if f.behind != nil {
			f.behind()
		}
		if f.lost {
			return
		}
		if _, err := conn.Write(reply); err != nil {
			return
		}
		p.mu.Lock()
		p.done = append(p.done, line)
		p.mu.Unlock()
	}
}

// on plays f's faults from now on; nil ends them. f is called for one command at a time.
func (p *tap) on(f func(line string) fault) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.fault = f
}

// once plays a fault for the next command that begins so.
func (p *tap) once(prefix string, f fault) {
	done := false
	p.on(func(line string) fault {
		if done || !strings.HasPrefix(line, prefix) {
			return fault{}
		}
		done = true
		return f
	})
}

// tried waits until the agent has connected n more times.
func (p *tap) tried(t *testing.T, n int) {
	t.Helper()
	dials := func() int {
		p.mu.Lock()
		defer p.mu.Unlock()
		return p.dials
	}
	from := dials()
	eventually(t, "HAProxy is tried again", func() error {
		if d := dials() - from; d < n {
			return fmt.Errorf("%d times of %d", d, n)
		}
		return nil
	})
}

// seen are the commands so far.
func (p *tap) seen() []string {
	p.mu.Lock()
	defer p.mu.Unlock()
	return slices.Clone(p.lines)
}

// answered are the commands that HAProxy has carried out and answered.
func (p *tap) answered() []string {
	p.mu.Lock()
	defer p.mu.Unlock()
	return slices.Clone(p.done)
}

// since are the commands that change something, from the nth command on.
func (p *tap) since(n int) []string {
	var out []string
	for _, l := range p.seen()[n:] {
		switch verb, _, _ := strings.Cut(l, " "); {
		case verb == "show", verb == "prompt", strings.HasPrefix(l, "set severity"), strings.HasPrefix(l, "set timeout"):
		default:
			out = append(out, l)
		}
	}
	return out
}

func (p *tap) count() int { return len(p.seen()) }

// position is where the nth command or a later one begins so; -1: nowhere.
func (p *tap) position(n int, prefix string) int {
	i := slices.IndexFunc(p.seen()[n:], func(l string) bool { return strings.HasPrefix(l, prefix) })
	if i < 0 {
		return -1
	}
	return n + i
}

// discoverySnapshot lists the instances that the words say, sorted.
func discoverySnapshot(t *testing.T, words ...string) discovery.Snapshot {
	t.Helper()
	list := instances(t, words...)
	slices.SortFunc(list, discovery.Compare)
	return discovery.Snapshot{Service: "svc", Instances: list, At: time.Now()}
}
