package haproxy

import (
	"bufio"
	"context"
	"fmt"
	"io"
	"net"
	"net/netip"
	"os"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/myelin-sd/myelin/haproxy/haproxytest"
)

// fake is an admin socket with faults. answer gets every line behind the greeting and gives the bytes to write, and
// whether to hang up behind them.
type fake struct {
	path     string
	received atomic.Int64 // lines behind the greeting
	lines    chan string  // the same lines, in order
}

func newFake(t *testing.T, answer func(line string) (reply string, hangUp bool)) *fake {
	f := &fake{path: haproxytest.Socket(haproxytest.TempDir(t)), lines: make(chan string, 10000)}
	l, err := net.Listen("unix", f.path)
	require.NoError(t, err)
	done := make(chan struct{})
	t.Cleanup(func() {
		l.Close()
		<-done
	})
	go func() {
		defer close(done)
		for {
			conn, err := l.Accept()
			if err != nil {
				return
			}
			f.serve(conn, answer)
		}
	}()
	return f
}

func (f *fake) serve(conn net.Conn, answer func(string) (string, bool)) {
	defer conn.Close()
	in := bufio.NewScanner(conn)
	for in.Scan() {
		switch line := in.Text(); line {
		case "prompt", "set severity-output number", "set timeout cli 60s":
			io.WriteString(conn, "\n> ")
		case "show info":
			io.WriteString(conn, "Name: HAProxy\nVersion: 2.6.12\nPid: 7\nStart_time_sec: 9\nStopping: 0\n\n> ")
		default:
			f.received.Add(1)
			f.lines <- line
			reply, hangUp := answer(line)
			if _, err := io.WriteString(conn, reply); err != nil || hangUp {
				return
			}
		}
	}
}

// good answers every command as HAProxy does when it works.
func good(line string) (string, bool) {
	switch expectationOf(line) {
	case expectAdded:
		return "[6]: New server registered.\n\n> ", false
	case expectDeleted:
		return "[6]: Server deleted.\n> ", false
	case expectData:
		return "data\n\n> ", false
	}
	return "\n> ", false
}

func dial(t *testing.T, path string, o ClientOptions) *Client {
	c, err := Dial(t.Context(), path, o)
	require.NoError(t, err)
	t.Cleanup(func() { c.Close() })
	return c
}

func planServer(n int) Server {
	a := netip.AddrPortFrom(netip.AddrFrom4([4]byte{10, 0, byte(n >> 8), byte(n)}), 80)
	return Server{Name: a.String(), Addr: a, ID: n + 1, Weight: 1}
}

func planStep(op Action, backend string, n int) Step {
	return Step{Op: op, Backend: backend, Server: planServer(n), Why: "test"}
}

func TestDialTellsWhoIsThere(t *testing.T) {
	f := newFake(t, good)
	assert.Equal(t, Identity{Pid: 7, Started: 9, Version: "2.6.12"}, dial(t, f.path, ClientOptions{}).Identity())

	_, err := Dial(t.Context(), f.path+".not", ClientOptions{})
	require.ErrorContains(t, err, "connect to HAProxy")
	require.ErrorIs(t, err, os.ErrNotExist)
}

func TestIdentityOf(t *testing.T) {
	id, err := identityOf(parseInfo("Version: 2.2.9\nPid: 5\nUptime: 0d 0h00m01s\nStopping: 1\n"))
	require.NoError(t, err)
	assert.Equal(t, Identity{Pid: 5, Version: "2.2.9", Stopping: true}, id)
	for _, reply := range []string{"", "Pid: 5\n", "Version: 2.6\n", "Version: 2.6\nPid: x\n", "Version: 2.6\nPid: 5\nStart_time_sec: x\n"} {
		_, err := identityOf(parseInfo(reply))
		assert.ErrorIs(t, err, ErrUnknownReply, reply)
	}
}

// TestApplyGoesOnInOtherBackends: a refusal in one backend costs that backend its departures and nobody else
// anything.
func TestApplyGoesOnInOtherBackends(t *testing.T) {
	f := newFake(t, func(line string) (string, bool) {
		switch {
		case strings.HasPrefix(line, "add server a/10.0.0.1:80 "):
			return "[3]: 'cookie' option is not accepted for dynamic server\n\n> ", false
		case strings.HasPrefix(line, "set server b/10.0.0.9:80 weight "):
			return "[3]: No such server.\n\n> ", false
		}
		return good(line)
	})
	c := dial(t, f.path, ClientOptions{})
	checked := planStep(StepAdd, "b", 4)
	checked.Server.Options = []string{"check"}
	results := c.Apply(t.Context(), Plan{
		planStep(StepAdd, "a", 1), planStep(StepAdd, "a", 2), checked,
		planStep(StepWeight, "a", 3),
		planStep(StepMaint, "a", 5), planStep(StepDrain, "a", 6), planStep(StepMaint, "b", 5),
		planStep(StepDelete, "a", 7), planStep(StepDelete, "b", 7),
		planStep(StepWeight, "b", 9), // a weight that is refused holds nothing back
	})
	want := []error{ErrUnfit, nil, nil, nil, ErrHeldBack, ErrHeldBack, nil, ErrHeldBack, nil, ErrNoServer}
	require.Len(t, results, len(want))
	for i, r := range results {
		if want[i] == nil {
			assert.NoError(t, r.Err, i)
		} else {
			assert.ErrorIs(t, r.Err, want[i], i)
		}
	}
	assert.ErrorContains(t, results[4].Err, `maint "a/10.0.0.5:80": held back`)

	close(f.lines)
	var sent []string
	for line := range f.lines {
		sent = append(sent, line)
	}
	assert.ElementsMatch(t, []string{
		"add server a/10.0.0.1:80 10.0.0.1:80 id 2 weight 1",
		"add server a/10.0.0.2:80 10.0.0.2:80 id 3 weight 1",
		"set server a/10.0.0.2:80 state ready",
		"add server b/10.0.0.4:80 10.0.0.4:80 id 5 weight 1 check",
		"enable health b/10.0.0.4:80",
		"set server b/10.0.0.4:80 state ready",
		"set server a/10.0.0.3:80 weight 1",
		"set server b/10.0.0.9:80 weight 1",
		"set server b/10.0.0.5:80 state maint",
		"del server b/10.0.0.7:80",
	}, sent, "nothing follows a refused add")
}

// TestApplyReportsEveryKind: each refusal comes out typed, and the connection lives on.
func TestApplyReportsEveryKind(t *testing.T) {
	for reply, want := range map[string]error{
		"[3]: No such backend.\n> ":                                              ErrNoBackend,
		"[3]: Permission denied\n\n> ":                                           ErrPermission,
		"[3]: This command is restricted to experimental mode only.\n\n> ":       ErrExperimental,
		"[3]: Already exists a server with the same name in backend.\n\n> ":      ErrExists,
		"[6]: Unknown command, but maybe one of the following ones is ...\n\n> ": ErrUnknownCommand,
		"[6]: Well.\n\n> ": ErrUnknownReply,
		"\n> ":             ErrUnknownReply,
	} {
		f := newFake(t, func(line string) (string, bool) {
			if strings.HasPrefix(line, "add ") {
				return reply, false
			}
			return good(line)
		})
		c := dial(t, f.path, ClientOptions{})
		results := c.Apply(t.Context(), Plan{planStep(StepAdd, "a", 1), planStep(StepReady, "b", 2)})
		assert.ErrorIs(t, results[0].Err, want, reply)
		assert.NoError(t, results[1].Err, reply)
		_, err := c.Exec(t.Context(), "show backend")
		assert.NoError(t, err, reply)
	}
}

// TestApplyProbesForAnID: a bounded number of times.
func TestApplyProbesForAnID(t *testing.T) {
	taken := func(n int) func(string) (string, bool) {
		return func(line string) (string, bool) {
			var id int
			if _, err := fmt.Sscanf(line, "add server a/10.0.0.1:80 10.0.0.1:80 id %d", &id); err == nil && id != n {
				return fmt.Sprintf("[3]: 'id' : custom id %d already used at (null):0 ('server x').\n\n> ", id), false
			}
			return good(line)
		}
	}
	add := planStep(StepAdd, "a", 1)
	add.Server.ID = MaxID - 1

	f := newFake(t, taken(2))
	results := dial(t, f.path, ClientOptions{}).Apply(t.Context(), Plan{add})
	require.NoError(t, results[0].Err)
	assert.Equal(t, 2, results[0].Step.Server.ID, "MaxID-1, MaxID, 1, 2")
	assert.EqualValues(t, 5, f.received.Load())

	f = newFake(t, taken(-1))
	results = dial(t, f.path, ClientOptions{}).Apply(t.Context(), Plan{add})
	assert.ErrorIs(t, results[0].Err, ErrIDTaken)
	assert.EqualValues(t, 1+idTries, f.received.Load())
}

// TestApplySendsNothingUnsafe: a step with a bad word is refused whole and costs nobody else anything.
func TestApplySendsNothingUnsafe(t *testing.T) {
	f := newFake(t, good)
	bad := planStep(StepAdd, "a", 1)
	bad.Server.Options = []string{"check", "inter", "1s;disable server a/x"}
	results := dial(t, f.path, ClientOptions{}).Apply(t.Context(), Plan{bad, planStep(StepMaint, "b;x", 2), planStep(StepReady, "b", 3), planStep(0, "b", 4)})
	assert.ErrorIs(t, results[0].Err, ErrUnsafe)
	assert.ErrorIs(t, results[1].Err, ErrUnsafe)
	assert.NoError(t, results[2].Err)
	assert.ErrorContains(t, results[3].Err, "no commands")
	assert.EqualValues(t, 1, f.received.Load())
}

// TestApplyKeepsTheWindow: 16 commands are sent without waiting, never more, and deletes go one at a time.
func TestApplyKeepsTheWindow(t *testing.T) {
	var unanswered, most, mostDeletes atomic.Int64
	l, err := net.Listen("unix", haproxytest.Socket(haproxytest.TempDir(t)))
	require.NoError(t, err)
	defer l.Close()
	lines := make(chan string, 10000)
	served, full := make(chan struct{}), make(chan struct{})
	var fill sync.Once
	go func() {
		defer close(served)
		conn, err := l.Accept()
		if err != nil {
			return
		}
		defer conn.Close()
		answers := make(chan struct{})
		go func() {
			defer close(answers)
			for n := 0; ; n++ {
				line, ok := <-lines
				if !ok {
					return
				}
				reply, _ := good(line)
				if line == "show info" {
					reply = "Version: 2.6.12\nPid: 7\n\n> "
				}
				if n == 4 { // the first add: the window fills up before anything is answered
					<-full
				}
				unanswered.Add(-1)
				io.WriteString(conn, reply)
			}
		}()
		for in := bufio.NewScanner(conn); in.Scan(); {
			n := unanswered.Add(1)
			most.Store(max(most.Load(), n))
			if n == 16 {
				fill.Do(func() { close(full) })
			}
			if strings.HasPrefix(in.Text(), "del ") {
				mostDeletes.Store(max(mostDeletes.Load(), n))
			}
			lines <- in.Text()
		}
		close(lines)
		<-answers
	}()

	c := dial(t, l.Addr().String(), ClientOptions{})
	var plan Plan
	for i := range 100 {
		plan = append(plan, planStep(StepAdd, "a", i), planStep(StepDelete, "a", 1000+i))
	}
	for _, r := range c.Apply(t.Context(), plan) {
		require.NoError(t, r.Err)
	}
	c.Close()
	<-served
	assert.EqualValues(t, 16, most.Load())
	assert.EqualValues(t, 1, mostDeletes.Load())
}

// TestCutInAReply: what had no reply has an error, what was not sent too, and the connection is not used again.
func TestCutInAReply(t *testing.T) {
	f := newFake(t, func(line string) (string, bool) {
		if strings.HasPrefix(line, "set server a/10.0.0.2:80 ") {
			return "[3]: No su", true
		}
		return good(line)
	})
	c := dial(t, f.path, ClientOptions{Window: 1})
	results := c.Apply(t.Context(), Plan{
		planStep(StepReady, "a", 1), planStep(StepReady, "a", 2), planStep(StepReady, "b", 3), planStep(StepDelete, "b", 4),
	})
	assert.NoError(t, results[0].Err)
	assert.ErrorIs(t, results[1].Err, io.ErrUnexpectedEOF)
	assert.ErrorContains(t, results[1].Err, `ready "a/10.0.0.2:80": read reply to "set server a/10.0.0.2:80 state ready"`)
	assert.ErrorIs(t, results[2].Err, io.ErrUnexpectedEOF)
	assert.Error(t, results[3].Err)
	assert.EqualValues(t, 2, f.received.Load(), "nothing was sent behind the cut")

	_, err := c.State(t.Context())
	assert.ErrorIs(t, err, ErrConnectionUnusable)
	assert.NoError(t, c.Close())
	assert.NoError(t, c.Close())
}

// TestStall: a reply that does not come, or does not end, is waited for no longer than the timeout.
func TestStall(t *testing.T) {
	for _, reply := range []string{"", "[6]: New server regis", "\n>"} {
		f := newFake(t, func(line string) (string, bool) { return reply, false })
		c := dial(t, f.path, ClientOptions{Timeout: 50 * time.Millisecond})
		results := c.Apply(t.Context(), Plan{planStep(StepAdd, "a", 1), planStep(StepMaint, "a", 2)})
		assert.ErrorIs(t, results[0].Err, os.ErrDeadlineExceeded)
		assert.Error(t, results[1].Err)
		_, err := c.Exec(t.Context(), "show backend")
		assert.ErrorIs(t, err, ErrConnectionUnusable, "a late reply would be taken for that of this command")
		c.Close()
	}
}

// TestContextEndsAWait: at once, whatever the timeout, and the plan's remains are marked with it.
func TestContextEndsAWait(t *testing.T) {
	ctx, cancel := context.WithCancel(t.Context())
	f := newFake(t, func(line string) (string, bool) {
		cancel()
		return "", false
	})
	c := dial(t, f.path, ClientOptions{Timeout: time.Hour})
	results := c.Apply(ctx, Plan{planStep(StepAdd, "a", 1), planStep(StepAdd, "b", 1), planStep(StepDelete, "b", 2)})
	for _, r := range results {
		assert.ErrorIs(t, r.Err, context.Canceled)
	}
	_, err := c.Exec(t.Context(), "show backend")
	assert.ErrorIs(t, err, ErrConnectionUnusable)
	c.Close()

	f = newFake(t, good)
	c = dial(t, f.path, ClientOptions{})
	assert.ErrorIs(t, c.Apply(ctx, Plan{planStep(StepAdd, "a", 1)})[0].Err, context.Canceled)
	assert.Zero(t, f.received.Load(), "a context that is over sends nothing")
	_, err = c.Exec(t.Context(), "show backend")
	assert.NoError(t, err, "and spoils nothing")

	_, err = Dial(ctx, f.path, ClientOptions{})
	assert.ErrorIs(t, err, context.Canceled)
}

// TestMoreThanAsked: bytes that no command asked for mean that replies and commands are out of step.
func TestMoreThanAsked(t *testing.T) {
	f := newFake(t, func(line string) (string, bool) { return "HOME=/root\n\n> HOME=/tmp\n\n> ", false })
	c := dial(t, f.path, ClientOptions{})
	_, _, err := c.Env(t.Context(), "HOME")
	require.ErrorIs(t, err, ErrUnknownReply)
	_, _, err = c.Env(t.Context(), "HOME")
	require.ErrorIs(t, err, ErrConnectionUnusable)
}

func TestReadsRefuseWhatTheyDoNotKnow(t *testing.T) {
	replies := map[string]string{}
	f := newFake(t, func(line string) (string, bool) { return replies[line] + "\n> ", false })
	c := dial(t, f.path, ClientOptions{})
	state := func(backends, servers string) error {
		replies["show backend"], replies["show servers state"] = backends, servers
		_, err := c.State(t.Context())
		return err
	}
	require.NoError(t, state("# name\nb\n", state25))
	assert.ErrorIs(t, state("[3]: Permission denied\n", state25), ErrPermission)
	assert.Error(t, state("", state25))
	assert.Error(t, state("# name\nb\n", ""))
	assert.ErrorIs(t, state("# name\nb\n", "[6]: Unknown command\n"), ErrUnknownCommand)

	replies["show servers state b"] = "1\n" + header25 + "\n"
	got, err := c.StateOf(t.Context(), "b")
	require.NoError(t, err)
	assert.Equal(t, State{"b": nil}, got)
	_, err = c.StateOf(t.Context(), "b;x")
	assert.ErrorIs(t, err, ErrUnsafe)

	replies["show env X"] = "Y=1\n"
	_, _, err = c.Env(t.Context(), "X")
	assert.ErrorIs(t, err, ErrUnknownReply)
	for _, command := range []string{"", "show  backend", "show backend\n", "show backend;x", "del server b/s", "set server b/s state maint"} {
		_, err := c.Exec(t.Context(), command)
		assert.ErrorIs(t, err, ErrUnsafe, command)
	}
}
