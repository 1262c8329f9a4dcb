package main_test

import (
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"os"
	"os/exec"
	"path/filepath"
	"reflect"
	"regexp"
	"strconv"
	"strings"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"github.com/go-zookeeper/zk"
	"github.com/rogpeppe/go-internal/testscript"

	"github.com/myelin-sd/myelin/cli/clitest"
	"github.com/myelin-sd/myelin/discovery/zookeeper/zktest"
	"github.com/myelin-sd/myelin/haproxy/haproxytest"
)

var updateScripts = flag.Bool("update-scripts", false, "write what the commands of testdata/script print into the scripts")

// TestScripts plays sessions at the shell, testdata/script/*.txtar, with the binary and real servers. Beside
// testscript's own, a script has the commands of scriptCommands.
func TestScripts(t *testing.T) {
	if testing.Short() {
		t.Skip("scripts run real servers")
	}
	haproxytest.RequireDynamicServers(t)
	testscript.Run(t, testscript.Params{
		Dir:                 filepath.Join("testdata", "script"),
		UpdateScripts:       *updateScripts,
		RequireExplicitExec: true,
		Condition:           func(string) (bool, error) { return false, errors.New("scripts have no conditions: all run everywhere") },
		Setup:               setUpStage,
		Cmds:                scriptCommands(),
	})
}

// scriptCommands are, by name:
//
//	zookeeper [stop|start|wipe]   start a ZooKeeper of the script's own, or do that with it; $ZK is its address
//	node [-e] PATH [DATA]         create a node and its parents; -e: an ephemeral one of a session that stays
//	rmnode PATH                   delete a node
//	lock PATH                     let only a user who is not there read or change a node
//	service NAME                  start a web server; $NAME is its address, $NAME_PORT its port
//	health NAME up|down           what its /health answers
//	haproxy COMMAND...            send a command to the HAProxy in $RUN, past the agent
//	expand FILE...                put the values of $VARIABLES into files of the script
//	start NAME ARGS...            start myelin in the background, and wait until it is ready at $ADMIN or $REGISTRAR
//	start-quiet NAME ARGS...      start myelin in the background, and wait for nothing
//	says NAME WORDS               wait until the words are in its output
//	quit NAME                     end it in order
//	log NAME                      make what it said the last output
//	exits CODE COMMAND...         run a command that ends with that exit code
//	until REGEXP COMMAND...       run a command until its output matches
//	steady FILE                   write the last output to a file, with fixed words for what differs from run to run
//	has FILE                      the last output's JSON has all paths of the file, with values of the same type
//
// Each script has $RUN, a folder with a short path, $ADMIN and $REGISTRAR, addresses for pages, and $PORT1 to $PORT4.
func scriptCommands() map[string]func(*testscript.TestScript, bool, []string) {
	return map[string]func(*testscript.TestScript, bool, []string){
		"zookeeper": func(ts *testscript.TestScript, _ bool, args []string) { stageOf(ts).zookeeper(ts, args) },
		"node":      func(ts *testscript.TestScript, _ bool, args []string) { stageOf(ts).node(ts, args) },
		"rmnode": func(ts *testscript.TestScript, _ bool, args []string) {
			ts.Check(stageOf(ts).client(ts).Delete(args[0], -1))
		},
		"lock": func(ts *testscript.TestScript, _ bool, args []string) {
			_, err := stageOf(ts).client(ts).SetACL(args[0], zk.DigestACL(zk.PermAll, "somebody", "else"), -1)
			ts.Check(err)
		},
		"service": func(ts *testscript.TestScript, _ bool, args []string) { stageOf(ts).service(ts, args[0]) },
		"health": func(ts *testscript.TestScript, _ bool, args []string) {
			stageOf(ts).healths[args[0]].Store(args[1] == "down")
		},
		"haproxy":     func(ts *testscript.TestScript, _ bool, args []string) { stageOf(ts).haproxy(ts, args) },
		"expand":      expandFiles,
		"start":       func(ts *testscript.TestScript, _ bool, args []string) { stageOf(ts).start(ts, args[0], args[1:]) },
		"quit":        func(ts *testscript.TestScript, _ bool, args []string) { stageOf(ts).stop(ts, args[0]) },
		"start-quiet": func(ts *testscript.TestScript, _ bool, args []string) { stageOf(ts).launch(ts, args[0], args[1:]) },
		"says":        func(ts *testscript.TestScript, _ bool, args []string) { stageOf(ts).says(ts, args[0], args[1]) },
		"log": func(ts *testscript.TestScript, _ bool, args []string) {
			ts.Check(ts.Exec("cat", filepath.Join(stageOf(ts).dir, args[0]+".log")))
		},
		"exits":  exits,
		"until":  until,
		"steady": steady,
		"has":    has,
	}
}

// stage is what a script plays on.
type stage struct {
	env     *testscript.Env
	dir     string // short: paths of unix sockets are
	zk      *zktest.Server
	conn    *zk.Conn
	healths map[string]*atomic.Bool // true: down
	running map[string]*clitest.Process
	ports   map[string]string // what stands for a port or an address in steady output
}

type stageKey struct{}

func stageOf(ts *testscript.TestScript) *stage { return ts.Value(stageKey{}).(*stage) }

func setUpStage(env *testscript.Env) error {
	dir, err := os.MkdirTemp("", "ms-")
	if err != nil {
		return err
	}
	s := &stage{env: env, dir: dir, healths: map[string]*atomic.Bool{}, running: map[string]*clitest.Process{}, ports: map[string]string{}}
	env.Values[stageKey{}] = s
	env.Defer(s.end)
	env.Setenv("PATH", filepath.Dir(binary)+string(filepath.ListSeparator)+os.Getenv("PATH"))
	env.Setenv("RUN", dir)
	env.Setenv("USER", "alice")
	for _, name := range []string{"ADMIN", "REGISTRAR", "PORT1", "PORT2", "PORT3", "PORT4"} {
		port, err := unusedPort()
		if err != nil {
			return err
		}
		s.ports[port] = name
		if name == "ADMIN" || name == "REGISTRAR" {
			port = "127.0.0.1:" + port
		}
		env.Setenv(name, port)
	}
	return nil
}

func unusedPort() (string, error) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		return "", err
	}
	defer l.Close()
	return strconv.Itoa(l.Addr().(*net.TCPAddr).Port), nil
}

func (s *stage) end() {
	for _, p := range s.running {
		p.Stop()
	}
	if s.conn != nil {
		s.conn.Close()
	}
	if s.zk != nil {
		s.zk.Kill()
	}
	// Agents leave their HAProxys running.
	pids, _ := filepath.Glob(filepath.Join(s.dir, "*", "haproxy.pid"))
	for _, file := range append(pids, filepath.Join(s.dir, "haproxy.pid")) {
		text, err := os.ReadFile(file)
		if pid, bad := strconv.Atoi(strings.TrimSpace(string(text))); err == nil && bad == nil && pid > 1 {
			syscall.Kill(pid, syscall.SIGTERM)
		}
	}
	os.RemoveAll(s.dir)
}

func (s *stage) zookeeper(ts *testscript.TestScript, args []string) {
	if len(args) == 0 {
		dir := filepath.Join(s.dir, "zk")
		ts.Check(os.Mkdir(dir, 0o755))
		server, err := zktest.Start(dir, zktest.Options{})
		ts.Check(err)
		s.zk = server
		_, port, err := net.SplitHostPort(server.Addr())
		ts.Check(err)
		s.ports[port] = "ZKPORT"
		ts.Setenv("ZK", server.Addr())
		ts.Setenv("MYELIN_ZOOKEEPER", server.Addr())
		return
	}
	switch args[0] {
	case "stop":
		ts.Check(s.zk.Stop())
	case "start":
		ts.Check(s.zk.Start())
	case "wipe":
		ts.Check(s.zk.Stop())
		ts.Check(s.zk.Wipe())
		ts.Check(s.zk.Start())
	default:
		ts.Fatalf("zookeeper: stop, start or wipe")
	}
}

// client is the script's own connection to ZooKeeper; its ephemeral nodes live as long as the script.
func (s *stage) client(ts *testscript.TestScript) *zk.Conn {
	if s.conn == nil {
		conn, _, err := zk.Connect([]string{s.zk.Addr()}, 20*time.Second, zk.WithLogInfo(false), zk.WithLogger(quiet{}))
		ts.Check(err)
		s.conn = conn
	}
	return s.conn
}

type quiet struct{}

func (quiet) Printf(string, ...any) {}

func (s *stage) node(ts *testscript.TestScript, args []string) {
	flags := int32(0)
	if args[0] == "-e" {
		flags, args = zk.FlagEphemeral, args[1:]
	}
	data := ""
	if len(args) > 1 {
		data = args[1]
	}
	client := s.client(ts)
	for i := 1; i < len(args[0]); i++ {
		if args[0][i] == '/' {
			if _, err := client.Create(args[0][:i], nil, 0, zk.WorldACL(zk.PermAll)); err != nil && !errors.Is(err, zk.ErrNodeExists) {
				ts.Fatalf("create %s: %v", args[0][:i], err)
			}
		}
	}
	_, err := client.Create(args[0], []byte(data), flags, zk.WorldACL(zk.PermAll))
	if errors.Is(err, zk.ErrNodeExists) {
		_, err = client.Set(args[0], []byte(data), -1)
	}
	ts.Check(err)
}

func (s *stage) service(ts *testscript.TestScript, name string) {
	down := &atomic.Bool{}
	s.healths[name] = down
	server := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if down.Load() && r.URL.Path == "/health" {
			http.Error(w, "down", http.StatusServiceUnavailable)
			return
		}
		fmt.Fprintln(w, name)
	}))
	s.env.Defer(server.Close)
	address := server.Listener.Addr().String()
	_, port, err := net.SplitHostPort(address)
	ts.Check(err)
	s.ports[port] = strings.ToUpper(name)
	ts.Setenv(name, address)
	ts.Setenv(name+"_PORT", port)
}

func (s *stage) haproxy(ts *testscript.TestScript, args []string) {
	conn, err := net.Dial("unix", filepath.Join(s.dir, "haproxy.sock"))
	ts.Check(err)
	defer conn.Close()
	_, err = fmt.Fprintln(conn, strings.Join(args, " "))
	ts.Check(err)
	reply, err := io.ReadAll(conn)
	ts.Check(err)
	if text := strings.TrimSpace(string(reply)); text != "" {
		ts.Fatalf("haproxy %s: %s", strings.Join(args, " "), text)
	}
}

var variable = regexp.MustCompile(`\$[A-Za-z_][A-Za-z0-9_]*`)

func expandFiles(ts *testscript.TestScript, _ bool, files []string) {
	for _, f := range files {
		text := variable.ReplaceAllStringFunc(ts.ReadFile(f), func(v string) string {
			value := ts.Getenv(v[1:])
			if value == "" {
				ts.Fatalf("%s: %s has no value", f, v)
			}
			return value
		})
		ts.Check(os.WriteFile(ts.MkAbs(f), []byte(text), 0o644))
	}
}

// launch runs myelin in the background. Arguments that are files of the script are given whole.
func (s *stage) launch(ts *testscript.TestScript, name string, args []string) *clitest.Process {
	var env []string
	for _, v := range []string{"MYELIN_ZOOKEEPER", "RUN", "USER"} {
		env = append(env, v+"="+ts.Getenv(v))
	}
	for i, a := range args {
		if _, err := os.Stat(ts.MkAbs(a)); err == nil && !filepath.IsAbs(a) {
			args[i] = ts.MkAbs(a)
		}
	}
	p, err := clitest.Start(s.dir, name, env, binary, args...)
	ts.Check(err)
	s.running[name] = p
	return p
}

func (s *stage) says(ts *testscript.TestScript, name, words string) {
	deadline := time.Now().Add(patience)
	for p := s.running[name]; !strings.Contains(p.Log(), words); time.Sleep(20 * time.Millisecond) {
		if !p.Running() || time.Now().After(deadline) {
			ts.Fatalf("%s does not say %q:\n%s", name, words, p.Log())
		}
	}
}

func (s *stage) start(ts *testscript.TestScript, name string, args []string) {
	p := s.launch(ts, name, args)
	address := ts.Getenv("ADMIN")
	if args[0] == "registrar" {
		address = ts.Getenv("REGISTRAR")
	}
	deadline := time.Now().Add(patience)
	for {
		resp, err := http.Get("http://" + address + "/readyz")
		if err == nil {
			resp.Body.Close()
			if resp.StatusCode == http.StatusOK {
				return
			}
		}
		if !p.Running() || time.Now().After(deadline) {
			ts.Fatalf("%s is not ready: %v\n%s", name, err, p.Log())
		}
		time.Sleep(30 * time.Millisecond)
	}
}

func (s *stage) stop(ts *testscript.TestScript, name string) {
	p := s.running[name]
	if p == nil {
		ts.Fatalf("%s was not started", name)
	}
	p.Stop()
	delete(s.running, name)
}

// exits fails unless the command ends with that code.
func exits(ts *testscript.TestScript, _ bool, args []string) {
	want, err := strconv.Atoi(args[0])
	ts.Check(err)
	got := 0
	if err := ts.Exec(args[1], args[2:]...); err != nil {
		var ended *exec.ExitError
		if !errors.As(err, &ended) {
			ts.Fatalf("%v", err)
		}
		got = ended.ExitCode()
	}
	if got != want {
		ts.Fatalf("exit code %d, not %d\n%s%s", got, want, ts.ReadFile("stdout"), ts.ReadFile("stderr"))
	}
}

// until runs the command over and over; its last output is there for stdout and cmp.
func until(ts *testscript.TestScript, _ bool, args []string) {
	want := regexp.MustCompile("(?m)" + args[0])
	ctx, cancel := context.WithTimeout(context.Background(), patience)
	defer cancel()
	for {
		err := ts.Exec(args[1], args[2:]...)
		if want.MatchString(ts.ReadFile("stdout")) {
			return
		}
		select {
		case <-ctx.Done():
			ts.Fatalf("%q did not come: %v\n%s%s", args[0], err, ts.ReadFile("stdout"), ts.ReadFile("stderr"))
		case <-time.After(50 * time.Millisecond):
		}
	}
}

var (
	timesOfDay = regexp.MustCompile(`\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d(\.\d+)?(Z|[+-]\d\d:\d\d)`)
	sessionIDs = regexp.MustCompile(`0x[0-9a-f]{6,16}`)
	portNumber = regexp.MustCompile(`\b\d{4,5}\b`)
	durations  = regexp.MustCompile(`\b\d+(\.\d+)?(ms|µs|s)\b`)
)

// steady writes the last output to a file, with words in the place of what is new in each run: TIME, SESSION, RUN,
// WORK, the names of ports, AGE.
func steady(ts *testscript.TestScript, _ bool, args []string) {
	s := stageOf(ts)
	text := ts.ReadFile("stdout")
	text = strings.NewReplacer(s.dir, "RUN", ts.Getenv("WORK"), "WORK").Replace(text)
	text = timesOfDay.ReplaceAllString(text, "TIME")
	text = sessionIDs.ReplaceAllString(text, "SESSION")
	text = portNumber.ReplaceAllStringFunc(text, func(p string) string {
		if name, ok := s.ports[p]; ok {
			return name
		}
		return p
	})
	text = durations.ReplaceAllString(text, "AGE")
	ts.Check(os.WriteFile(ts.MkAbs(args[0]), []byte(text), 0o644))
}

// has fails when a program that reads the JSON would miss something: what is new is no matter to it.
func has(ts *testscript.TestScript, _ bool, args []string) {
	var value any
	ts.Check(json.Unmarshal([]byte(ts.ReadFile("stdout")), &value))
	paths := map[string]bool{}
	walkJSON("", value, paths)
	for want := range strings.Lines(ts.ReadFile(args[0])) {
		if want = strings.TrimSpace(want); !paths[want] {
			ts.Fatalf("there is no %s; there are:\n%s", want, strings.Join(sorted(mapKeys(paths)), "\n"))
		}
	}
}

func walkJSON(path string, value any, paths map[string]bool) {
	switch v := value.(type) {
	case map[string]any:
		for name, member := range v {
			walkJSON(path+"."+name, member, paths)
		}
	case []any:
		for _, member := range v {
			walkJSON(path+"[]", member, paths)
		}
	default:
		kind := map[bool]string{true: "number"}[reflect.TypeOf(v) == reflect.TypeFor[float64]()]
		paths[path+" "+cmp.Or(kind, fmt.Sprintf("%T", v))] = true
	}
}
