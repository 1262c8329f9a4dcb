package zookeeper_test

import (
	"bufio"
	"context"
	"encoding/json"
	"fmt"
	"net"
	"os"
	"os/exec"
	"path"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/go-zookeeper/zk"
	"github.com/stretchr/testify/require"

	"github.com/myelin-sd/myelin/discovery"
	"github.com/myelin-sd/myelin/discovery/zookeeper"
	"github.com/myelin-sd/myelin/discovery/zookeeper/zktest"
)

// process is what one process has of a session: its file, and a wire to the server by which it can be cut off.
type process struct {
	*zookeeper.Session
	t    *testing.T
	zks  *zktest.Server
	wire *zktest.Proxy
	file string
	log  *lines
}

// begin starts a process whose session lives longer than the test.
func begin(t *testing.T, zks *zktest.Server, file string) *process {
	t.Helper()
	return beginWith(t, zks, zookeeper.Options{Hosts: []string{zks.Addr()}, SessionFile: file})
}

func beginWith(t *testing.T, zks *zktest.Server, o zookeeper.Options) *process {
	t.Helper()
	wire := zktest.NewProxy(t, zks.Addr())
	log, seen := silent()
	o.Log, o.SessionTimeout = log, 30*time.Second
	o.Dial = func(ctx context.Context, network, _ string) (net.Conn, error) {
		return new(net.Dialer).DialContext(ctx, network, wire.Addr())
	}
	return &process{open(t, o), t, zks, wire, o.SessionFile, seen}
}

// crash ends the process as the server and the file system see it when it is killed: no word is said, and the file is
// as it is at this moment. It returns the file of the process that follows.
func (p *process) crash() string {
	p.t.Helper()
	p.wire.Cut()
	text, err := os.ReadFile(p.file)
	require.NoError(p.t, err)
	next := filepath.Join(p.t.TempDir(), "session")
	require.NoError(p.t, os.WriteFile(next, text, 0o600))
	return next
}

// leave ends the process in order.
func (p *process) leave() string {
	p.Leave()
	return p.file
}

func (p *process) publish(r discovery.Registration) string {
	p.t.Helper()
	node, err := publishNode(p, within(p.t, patience), r, "")
	require.NoError(p.t, err)
	return node
}

// listed returns the prefixes in a session file.
func listed(t testing.TB, file string) []string {
	t.Helper()
	text, err := os.ReadFile(file)
	require.NoError(t, err)
	var f struct {
		Session struct {
			Registrations []struct{ Path, Prefix string }
		}
	}
	require.NoError(t, json.Unmarshal(text, &f))
	all := []string{}
	for _, r := range f.Session.Registrations {
		all = append(all, path.Join(r.Path, r.Prefix))
	}
	return all
}

// watcher looks at a node and its directory, as those do who want to know of every change.
type watcher struct {
	c         *zk.Conn
	node      string
	stat, dir *zk.Stat
	events    []<-chan zk.Event
}

func watchNode(t testing.TB, c *zk.Conn, node string) *watcher {
	t.Helper()
	w := &watcher{c: c, node: node, events: make([]<-chan zk.Event, 3)}
	var err error
	_, w.dir, w.events[0], err = c.ChildrenW(path.Dir(node))
	require.NoError(t, err)
	_, w.stat, w.events[1], err = c.GetW(node)
	require.NoError(t, err)
	_, _, w.events[2], err = c.ExistsW(node)
	require.NoError(t, err)
	return w
}

// nothing fails when anything has happened so far. Events come in order: when that of a change made now is there, all
// earlier ones are.
func (w *watcher) nothing(t testing.TB) {
	t.Helper()
	marker := fmt.Sprintf("/marker-%d", time.Now().UnixNano())
	_, _, made, err := w.c.ExistsW(marker)
	require.NoError(t, err)
	create(t, w.c, marker, "", 0)
	require.Equal(t, zk.EventNodeCreated, (<-made).Type)
	for _, ch := range w.events {
		require.Empty(t, ch, "a watcher was told")
	}
	_, stat, err := w.c.Get(w.node)
	require.NoError(t, err)
	require.Equal(t, w.stat, stat)
	_, dir, err := w.c.Children(path.Dir(w.node))
	require.NoError(t, err)
	require.Equal(t, w.dir, dir)
}

var (
	sequential = registration(payload(1))
	fixed      = discovery.Registration{Path: "/s/web", Prefix: "web-1", Data: []byte(payload(1)), Ephemeral: true}
	persistent = discovery.Registration{Path: "/s/web", Prefix: "web-1_", Data: []byte(payload(1)), Sequential: true}
)

// TestRestartIsInvisible: a process that ends and one that begins within the session's timeout are one to all others.
func TestRestartIsInvisible(t *testing.T) {
	zks := server(t)
	w := writer(t, zks.Addr())
	ends := map[string]func(*process) string{"left": (*process).leave, "crashed": (*process).crash}
	kinds := map[string]discovery.Registration{"sequential": sequential, "fixed": fixed, "persistent": persistent}
	for how, end := range ends {
		for kind, r := range kinds {
			t.Run(how+" "+kind, func(t *testing.T) {
				first := begin(t, zks, filepath.Join(t.TempDir(), "state", "session"))
				r.Path = "/" + how + kind
				node := first.publish(r)
				session := id(t, first.Session)
				info, err := os.Stat(first.file)
				require.NoError(t, err)
				require.Equal(t, os.FileMode(0o600), info.Mode().Perm())
				seen := watchNode(t, w, node)

				second := begin(t, zks, end(first))
				was, may := second.Standing(r)
				require.True(t, may)
				r.Data, was.Data = nil, nil
				require.Equal(t, r, was)
				connected(t, second.Session)
				require.Equal(t, session, id(t, second.Session))
				require.Zero(t, second.Stats().Sessions, "no session was opened")
				r.Data = sequential.Data
				require.Equal(t, node, second.publish(r))
				require.NoError(t, second.Retain(within(t, patience), []discovery.Registration{r}))
				seen.nothing(t)
				require.Eventually(t, func() bool { return second.log.count("is taken up") == 1 }, patience, poll)

				third := begin(t, zks, end(second)) // what was adopted can be adopted again
				require.Equal(t, node, third.publish(r))
				seen.nothing(t)

				r.Data = []byte(payload(2)) // configured anew between two processes
				fourth := begin(t, zks, end(third))
				require.Equal(t, node, fourth.publish(r))
				data, stat, err := w.Get(node)
				require.NoError(t, err)
				require.Equal(t, payload(2), string(data))
				require.Equal(t, seen.stat.Czxid, stat.Czxid)

				require.NoError(t, fourth.Withdraw(within(t, patience), r, ""))
				require.Empty(t, names(t, w, r.Path))
				_, may = fourth.Standing(r)
				require.False(t, may)
			})
		}
	}
}

// TestPublishUntilKilled is a process that TestRestartAfterSIGKILL kills.
func TestPublishUntilKilled(t *testing.T) {
	hosts, file := os.Getenv("MYELIN_TEST_HOSTS"), os.Getenv("MYELIN_TEST_FILE")
	if hosts == "" {
		t.Skip("only in a process of its own")
	}
	s := zookeeper.New(zookeeper.Options{Hosts: []string{hosts}, SessionTimeout: 30 * time.Second, SessionFile: file})
	node, err := publishNode(s, t.Context(), sequential, "")
	fmt.Println("published", node, err)
	select {}
}

func TestRestartAfterSIGKILL(t *testing.T) {
	zks := server(t)
	w := writer(t, zks.Addr())
	file := filepath.Join(t.TempDir(), "session")
	var seen *watcher
	for range 3 {
		cmd := exec.Command(os.Args[0], "-test.run=^TestPublishUntilKilled$")
		cmd.Env = append(os.Environ(), "MYELIN_TEST_HOSTS="+zks.Addr(), "MYELIN_TEST_FILE="+file)
		out, err := cmd.StdoutPipe()
		require.NoError(t, err)
		require.NoError(t, cmd.Start())
		line, err := bufio.NewReader(out).ReadString('\n')
		require.NoError(t, err)
		require.Equal(t, "published /s/web/web-1_0000000000 <nil>\n", line)
		if seen == nil {
			seen = watchNode(t, w, "/s/web/web-1_0000000000")
		}
		require.NoError(t, cmd.Process.Kill())
		require.Error(t, cmd.Wait())
	}
	s := begin(t, zks, file)
	require.Equal(t, seen.node, s.publish(sequential))
	seen.nothing(t)
}

// TestCrashAroundCreate: what was under way when the process died is known to the next one, whether the server has
// done it or not.
func TestCrashAroundCreate(t *testing.T) {
	whats := map[string]func(p *process){
		"published": func(p *process) { p.publish(sequential) },
		"withdrawn": func(p *process) { require.NoError(p.t, p.Withdraw(within(p.t, patience), sequential, "")) },
		"forgotten": func(p *process) { require.NoError(p.t, p.Retain(within(p.t, patience), nil)) },
	}
	for what, do := range whats {
		t.Run(what, func(t *testing.T) {
			zks := server(t)
			w := writer(t, zks.Addr())
			create(t, w, "/s/web/other-1_", payload(2), 0)
			check := func(p *process) {
				if what != "published" {
					require.Equal(t, []string{"other-1_"}, names(t, w, "/s/web"))
					require.Eventually(t, func() bool { return len(listed(t, p.file)) == 0 }, patience, poll)
					return
				}
				require.Len(t, names(t, w, "/s/web"), 2)
				require.NoError(t, p.Withdraw(within(t, patience), sequential, ""))
			}
			interrupted := func(p *process) {
				go p.Publish(within(t, patience), sequential, "") // ends with the process, in an error
			}

			// Between the file and the create.
			p := begin(t, zks, filepath.Join(t.TempDir(), "session"))
			connected(t, p.Session)
			p.wire.Stall()
			interrupted(p)
			require.Eventually(t, func() bool { return fileLists(p.file) }, patience, poll)
			p = begin(t, zks, p.crash())
			require.Len(t, names(t, w, "/s/web"), 1, "nothing was made")
			do(p)
			check(p)

			// Between the create and its answer.
			p.Close()
			p = begin(t, zks, p.file) // with nothing to look for first
			connected(t, p.Session)
			p.wire.StallReplies()
			interrupted(p)
			require.Eventually(t, func() bool { return len(names(t, w, "/s/web")) == 2 }, patience, poll)
			made := names(t, w, "/s/web")
			p = begin(t, zks, p.crash())
			do(p)
			if what == "published" {
				require.Equal(t, made, names(t, w, "/s/web"), "it is adopted")
			}
			check(p)
		})
	}
}

// fileLists reports whether the file is there and lists something.
func fileLists(file string) bool {
	text, err := os.ReadFile(file)
	return err == nil && strings.Contains(string(text), `"prefix"`)
}

// TestCreateIsListedFirst: at no moment does a node stand that the file does not know of.
func TestCreateIsListedFirst(t *testing.T) {
	zks := server(t)
	w := writer(t, zks.Addr())
	p := begin(t, zks, filepath.Join(t.TempDir(), "session"))
	const n = 200
	var all sync.WaitGroup
	nodes := make([]string, n)
	for i := range n {
		all.Go(func() {
			r := sequential
			r.Path = fmt.Sprintf("/many/%03d", i)
			node, err := publishNode(p, within(t, patience), r, "")
			if err != nil {
				t.Error(err)
				return
			}
			nodes[i] = node
			if !strings.Contains(strings.Join(listed(t, p.file), " "), r.Path+"/"+r.Prefix) {
				t.Errorf("%s is not listed", r.Path)
			}
		})
	}
	all.Wait()
	require.Len(t, listed(t, p.file), n)

	next := begin(t, zks, p.crash())
	keep := sequential
	keep.Path = "/many/007"
	require.NoError(t, next.Retain(within(t, patience), []discovery.Registration{keep}))
	for i := range n {
		want := 0
		if i == 7 {
			want = 1
		}
		require.Len(t, names(t, w, fmt.Sprintf("/many/%03d", i)), want, "service %d", i)
	}
	require.Eventually(t, func() bool { return len(listed(t, next.file)) == 1 }, patience, poll)
}

// TestRetainTouchesOnlyOurs: nodes that look like ours and belong to somebody else stay.
func TestRetainTouchesOnlyOurs(t *testing.T) {
	zks := server(t)
	w := writer(t, zks.Addr())
	p := begin(t, zks, filepath.Join(t.TempDir(), "session"))
	p.publish(sequential)
	other := create(t, w, "/s/web/web-1_", payload(1), zk.FlagEphemeral|zk.FlagSequence)
	p = begin(t, zks, p.leave())

	p.wire.Cut()
	disconnected(t, p.Session)
	err := p.Retain(within(t, 50*time.Millisecond), nil)
	require.ErrorIs(t, err, context.DeadlineExceeded)
	require.ErrorContains(t, err, "withdraw /s/web/web-1_")
	p.wire.Resume()
	require.NoError(t, p.Retain(within(t, patience), nil))
	require.Equal(t, []string{path.Base(other)}, names(t, w, "/s/web"))
	require.NoError(t, p.Retain(within(t, patience), nil), "calling it again is harmless")
}

// expire ends a session on the server. The server may close the connection on which it is asked before the answer is
// out; asked again, it knows of no such session.
func expire(t testing.TB, zks *zktest.Server, session int64) {
	t.Helper()
	require.Eventually(t, func() bool {
		err := zks.Expire(session)
		return err == nil || strings.Contains(err.Error(), "no such session")
	}, patience, poll)
}

// TestExpiredMeanwhile: the session ended between two processes, and while one runs.
func TestExpiredMeanwhile(t *testing.T) {
	for name, r := range map[string]discovery.Registration{"sequential": sequential, "fixed": fixed} {
		t.Run(name, func(t *testing.T) {
			zks := server(t)
			w := writer(t, zks.Addr())
			p := begin(t, zks, filepath.Join(t.TempDir(), "session"))
			p.publish(r)
			first := id(t, p.Session)
			file := p.leave()
			expire(t, zks, first)
			require.Empty(t, names(t, w, "/s/web"))

			p = begin(t, zks, file)
			made, err := p.Publish(within(t, patience), r, "")
			require.NoError(t, err)
			require.True(t, made.New, "the file lists it, and it was not there")
			one(t, w, p.Session, payload(1))
			second := id(t, p.Session)
			require.NotEqual(t, first, second)
			require.Equal(t, uint64(1), p.Stats().Sessions)
			require.Eventually(t, func() bool { return p.log.count("has ended") == 1 }, patience, poll)

			expire(t, zks, second)
			require.Eventually(t, func() bool { return p.Status().Connected && id(t, p.Session) != second }, patience, poll)
			p.publish(r)
			third := id(t, p.Session)
			seen := watchNode(t, w, path.Join("/s/web", names(t, w, "/s/web")[0]))
			p = begin(t, zks, p.crash())
			p.publish(r)
			require.Equal(t, third, id(t, p.Session), "the file tells of the new session")
			seen.nothing(t)
		})
	}
}

// TestDamagedFile: whatever stands in the file, the process starts and says once what is wrong.
func TestDamagedFile(t *testing.T) {
	zks := server(t)
	w := writer(t, zks.Addr())
	p := begin(t, zks, filepath.Join(t.TempDir(), "session"))
	p.publish(sequential)
	good, err := os.ReadFile(p.leave())
	require.NoError(t, err)
	edit := func(old, new string) string {
		require.Contains(t, string(good), old)
		return strings.Replace(string(good), old, new, 1)
	}
	for name, c := range map[string]struct{ text, because string }{
		"empty":           {"", "unexpected end of JSON input"},
		"half":            {string(good[:len(good)/2]), "unexpected end of JSON input"},
		"something else":  {"[1]", "cannot unmarshal"},
		"zeroes":          {strings.Repeat("\x00", 100), "invalid character"},
		"newer":           {edit(`"version":1`, `"version":2`), "version 2 is not known"},
		"another prefix":  {edit("web-1_", "web-2_"), "the checksum is"},
		"another session": {edit(`"id":"0x`, `"id":"0x1`), "the checksum is"},
	} {
		t.Run(name, func(t *testing.T) {
			file := filepath.Join(t.TempDir(), "session")
			require.NoError(t, os.WriteFile(file, []byte(c.text), 0o600))
			p := begin(t, zks, file)
			r := sequential
			r.Path = "/damaged/" + strings.ReplaceAll(name, " ", "-")
			p.publish(r)
			require.Len(t, names(t, w, r.Path), 1)
			require.Equal(t, 1, p.log.count("warning the session file is damaged"))
			require.Equal(t, 1, p.log.count(c.because))
			aside, err := os.ReadFile(file + ".damaged")
			require.NoError(t, err)
			require.Equal(t, c.text, string(aside))
			require.Equal(t, []string{r.Path + "/web-1_"}, listed(t, file), "a new one is written")
		})
	}
	t.Run("laid out for the eye", func(t *testing.T) {
		file := filepath.Join(t.TempDir(), "session")
		var v any
		require.NoError(t, json.Unmarshal(good, &v))
		require.NoError(t, os.WriteFile(file, indented(t, good), 0o600))
		p := begin(t, zks, file)
		_, may := p.Standing(sequential)
		require.True(t, may)
	})
}

func indented(t testing.TB, text []byte) []byte {
	t.Helper()
	out, err := json.MarshalIndent(json.RawMessage(text), "", "\t")
	require.NoError(t, err)
	return out
}

// TestOtherEnsemble: a session is only asked for where it can be known.
func TestOtherEnsemble(t *testing.T) {
	zks := server(t)
	create(t, writer(t, zks.Addr()), "/root", "", 0)
	for name, c := range map[string]struct {
		hosts  []string
		chroot string
		same   bool
	}{
		"a member more":  {[]string{"zk-9:2181", zks.Addr()}, "", true},
		"other members":  {[]string{"zk-8:2181,zk-9:2181"}, "", false},
		"under a chroot": {[]string{zks.Addr()}, "/root", false},
		"a chroot of /":  {[]string{zks.Addr()}, "/", true},
	} {
		t.Run(name, func(t *testing.T) {
			p := begin(t, zks, filepath.Join(t.TempDir(), "session"))
			r := sequential
			r.Path = "/" + strings.NewReplacer(" ", "-", "/", "root").Replace(name)
			p.publish(r)
			session := id(t, p.Session)
			p = beginWith(t, zks, zookeeper.Options{Hosts: c.hosts, Chroot: c.chroot, SessionFile: p.leave()})
			_, may := p.Standing(r)
			require.Equal(t, c.same, may)
			connected(t, p.Session)
			require.Equal(t, c.same, session == id(t, p.Session))
			require.Equal(t, !c.same, p.log.count("of another ensemble") == 1)
		})
	}
}

// TestOneFileForTwo: the second process works without the file and does not disturb the first.
func TestOneFileForTwo(t *testing.T) {
	zks := server(t)
	w := writer(t, zks.Addr())
	p := begin(t, zks, filepath.Join(t.TempDir(), "session"))
	node := p.publish(sequential)
	seen := watchNode(t, w, node)
	before, err := os.ReadFile(p.file)
	require.NoError(t, err)

	second := begin(t, zks, p.file)
	require.Equal(t, 1, second.log.count("warning the session file is used by another process"))
	_, may := second.Standing(sequential)
	require.False(t, may)
	elsewhere := sequential
	elsewhere.Path = "/elsewhere"
	second.publish(elsewhere)
	require.NoError(t, second.Retain(within(t, patience), nil))
	require.NotEqual(t, id(t, p.Session), id(t, second.Session))
	second.Close()
	require.Empty(t, names(t, w, "/elsewhere"))
	after, err := os.ReadFile(p.file)
	require.NoError(t, err)
	require.Equal(t, before, after)
	seen.nothing(t)

	third := begin(t, zks, p.leave())
	require.Equal(t, node, third.publish(sequential))
	seen.nothing(t)
}

// TestCloseForgets: after a goodbye that was heard nothing is left, not even the file. Otherwise it stays, and so it
// does for nodes that outlive the session.
func TestCloseForgets(t *testing.T) {
	zks := server(t)
	w := writer(t, zks.Addr())
	p := begin(t, zks, filepath.Join(t.TempDir(), "session"))
	p.publish(sequential)
	p.Close()
	p.Leave() // does nothing any more
	require.NoFileExists(t, p.file)
	require.Empty(t, names(t, w, "/s/web"))

	p = begin(t, zks, p.file)
	node := p.publish(sequential)
	p.wire.Cut()
	disconnected(t, p.Session)
	p.Close()
	require.FileExists(t, p.file)
	p = begin(t, zks, p.file)
	require.Equal(t, node, p.publish(sequential))
	require.NoError(t, p.Withdraw(within(t, patience), sequential, ""))

	node = p.publish(persistent)
	p.Close()
	p = begin(t, zks, p.file)
	require.Equal(t, node, p.publish(persistent))
	require.NoError(t, p.Retain(within(t, patience), nil))
	require.Empty(t, names(t, w, "/s/web"))
	p.Close()
	require.NoFileExists(t, p.file)
}

// TestGoodbyeLost: a goodbye that is lost with the connection ends no session. The next process takes it up.
func TestGoodbyeLost(t *testing.T) {
	zks := server(t)
	p := begin(t, zks, filepath.Join(t.TempDir(), "session"))
	node := p.publish(sequential)
	p.wire.DropRequests(func(_, op int32) bool {
		const opClose = -11
		if op == opClose {
			p.wire.Cut()
		}
		return op == opClose
	})
	p.Close()
	require.FileExists(t, p.file)
	next := begin(t, zks, p.file)
	require.Equal(t, node, next.publish(sequential))
}

// TestFileCannotBeWritten: services are registered nevertheless, and no file is left that lacks one of them.
func TestFileCannotBeWritten(t *testing.T) {
	zks := server(t)
	dir := t.TempDir()
	p := begin(t, zks, filepath.Join(dir, "session"))
	p.publish(sequential)
	require.FileExists(t, p.file)
	block := filepath.Join(p.file+".new", "in the way")
	require.NoError(t, os.MkdirAll(block, 0o700))
	other := sequential
	for i := range 3 {
		other.Path = fmt.Sprintf("/other/%d", i)
		p.publish(other)
		require.NoFileExists(t, p.file)
	}
	require.Equal(t, 1, p.log.count("cannot be written"))
	require.NoError(t, os.RemoveAll(p.file+".new"))
	other.Path = "/other/3"
	p.publish(other)
	require.Len(t, listed(t, p.file), 5)
	require.Eventually(t, func() bool { return p.log.count("is written again") == 1 }, patience, poll)

	// What is withdrawn need not be struck out: the file says too much, not too little.
	require.NoError(t, os.MkdirAll(block, 0o700))
	require.NoError(t, p.Withdraw(within(t, patience), other, ""))
	require.Eventually(t, func() bool { return p.log.count("cannot be written") == 2 }, patience, poll)
	require.Len(t, listed(t, p.file), 5)
	require.NoError(t, os.RemoveAll(p.file+".new"))
	p.Leave()
	require.Len(t, listed(t, p.file), 4)

	nowhere := begin(t, zks, filepath.Join(p.file, "session"))
	require.Equal(t, 1, nowhere.log.count("warning the session file cannot be used"))
	other.Path = "/nowhere"
	nowhere.publish(other)
}

// TestAbruptConnections: what was not sent when a connection was given up never arrives.
func TestAbruptConnections(t *testing.T) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	require.NoError(t, err)
	defer l.Close()
	conns := make(chan net.Conn, 1)
	s := open(t, zookeeper.Options{
		Hosts: []string{l.Addr().String()}, HandshakeTimeout: patience,
		Dial: func(ctx context.Context, network, address string) (net.Conn, error) {
			c, err := new(net.Dialer).DialContext(ctx, network, address)
			conns <- c // there is one dial
			return c, err
		},
	})
	server, err := l.Accept()
	require.NoError(t, err)
	defer server.Close()
	first := make([]byte, 48)
	_, err = server.Read(first) // the ConnectRequest: the connection is the library's now
	require.NoError(t, err)

	sent, c := 0, <-conns
	require.NoError(t, c.SetWriteDeadline(time.Now().Add(200*time.Millisecond)))
	for buf := make([]byte, 1<<20); ; {
		n, err := c.Write(buf)
		sent += n
		if err != nil {
			break // nobody reads: the buffers are full
		}
	}
	s.Close()
	got, buf := 0, make([]byte, 1<<20)
	for {
		n, err := server.Read(buf)
		got += n
		if err != nil {
			break
		}
	}
	require.Less(t, got, sent)
}
