package main_test

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"regexp"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"
	"unsafe"

	"github.com/go-zookeeper/zk"
	"github.com/stretchr/testify/require"

	"github.com/myelin-sd/myelin/discovery/zookeeper/zktest"
)

// registered is a ZooKeeper with nodes of a test's own.
type registered struct {
	t    *testing.T
	zk   *zktest.Server
	conn *zk.Conn
}

func newRegistered(t *testing.T) *registered {
	t.Helper()
	r := &registered{t: t, zk: zktest.New(t)}
	var events <-chan zk.Event
	var err error
	r.conn, events, err = zk.Connect([]string{r.zk.Addr()}, 20*time.Second, zk.WithLogger(quiet{}))
	require.NoError(t, err)
	t.Cleanup(func() {
		r.conn.Close()
		for range events {
		}
	})
	return r
}

func (r *registered) node(path, data string, flags int32) {
	r.t.Helper()
	open := zk.WorldACL(zk.PermAll)
	for i := 1; i < len(path); i++ {
		if path[i] == '/' {
			if _, err := r.conn.Create(path[:i], nil, 0, open); err != nil {
				require.ErrorIs(r.t, err, zk.ErrNodeExists)
			}
		}
	}
	_, err := r.conn.Create(path, []byte(data), flags, open)
	require.NoError(r.t, err)
}

func (r *registered) close(path string) {
	r.t.Helper()
	_, err := r.conn.SetACL(path, append(zk.DigestACL(zk.PermAll, "other", "x"), zk.WorldACL(zk.PermAdmin)...), -1)
	require.NoError(r.t, err)
}

func (r *registered) stands(path string) bool {
	r.t.Helper()
	stands, _, err := r.conn.Exists(path)
	require.NoError(r.t, err)
	return stands
}

// ask runs a command and returns what it prints, and its exit code.
func (r *registered) ask(args ...string) (out, errs string, code int) {
	r.t.Helper()
	var o, e bytes.Buffer
	c := exec.Command(binary, append(args, "--zookeeper", r.zk.Addr())...)
	c.Stdout, c.Stderr = &o, &e
	err := c.Run()
	var ended *exec.ExitError
	if err != nil && !errors.As(err, &ended) {
		require.NoError(r.t, err)
	}
	return o.String(), e.String(), c.ProcessState.ExitCode()
}

const orphaned = `{"host":"10.0.0.%d","port":8080,"name":"i"}`

// TestFsckWithoutPermission: what may not be read is an error that is told, beside all that may; what may not be deleted
// is a failure, beside all that is deleted.
func TestFsckWithoutPermission(t *testing.T) {
	r := newRegistered(t)
	r.node("/services/api/a", fmt.Sprintf(orphaned, 1), 0)
	r.node("/services/closed/b", fmt.Sprintf(orphaned, 2), 0)
	r.node("/services/kept/c", fmt.Sprintf(orphaned, 3), 0)
	r.close("/services/closed")
	_, err := r.conn.SetACL("/services/kept", zk.WorldACL(zk.PermRead), -1)
	require.NoError(t, err)

	out, errs, code := r.ask("fsck")
	require.Equal(t, 3, code, errs)
	require.Regexp(t, `(?m)^error +not-read +/services/closed +not read: the node's ACL does not let this user`, out)
	require.Contains(t, out, "/services/api/a")

	out, errs, code = r.ask("gc", "--yes", "--older-than", "1ns")
	require.Equal(t, 1, code, out+errs)
	require.Regexp(t, `(?m)^failed /services/kept/c: delete /services/kept/c: the node's ACL`, out)
	require.Contains(t, out, "1 deleted, 0 skipped, 1 failed")
	require.False(t, r.stands("/services/api/a"))
	require.True(t, r.stands("/services/kept/c"))

	r.close("/services")
	out, errs, code = r.ask("fsck")
	require.Equal(t, 3, code, errs)
	require.Contains(t, out, "1 error, 0 warnings, 0 notes in 0 services")
	_, errs, code = r.ask("services")
	require.Equal(t, 1, code)
	require.Contains(t, errs, "read /services: the node's ACL does not let this user; give zookeeper.auth of a user that may")
	_, errs, code = r.ask("instances", "closed")
	require.Equal(t, 1, code)
	require.Contains(t, errs, "/services/closed: the node's ACL does not let this user")
}

// terminal is both ends of a pseudo-terminal.
type terminal struct {
	master *os.File
	done   chan struct{}

	mu   sync.Mutex
	text bytes.Buffer
}

// onTerminal starts a command at a terminal, and returns it with a function that waits for its exit code.
func onTerminal(t *testing.T, args ...string) (*terminal, func() int) {
	t.Helper()
	master, err := os.OpenFile("/dev/ptmx", os.O_RDWR|syscall.O_NOCTTY, 0)
	if err != nil {
		t.Skipf("NOT TESTED at a terminal: %v", err)
	}
	var unlock, number int32
	for request, v := range map[uintptr]*int32{syscall.TIOCSPTLCK: &unlock, syscall.TIOCGPTN: &number} {
		_, _, errno := syscall.Syscall(syscall.SYS_IOCTL, master.Fd(), request, uintptr(unsafe.Pointer(v)))
		require.Zero(t, errno)
	}
	slave, err := os.OpenFile(fmt.Sprintf("/dev/pts/%d", number), os.O_RDWR|syscall.O_NOCTTY, 0)
	require.NoError(t, err)
	c := exec.Command(binary, args...)
	c.Env = append(os.Environ(), "TERM=xterm")
	c.Stdin, c.Stdout, c.Stderr = slave, slave, slave
	c.SysProcAttr = &syscall.SysProcAttr{Setsid: true, Setctty: true}
	require.NoError(t, c.Start())
	slave.Close()
	term := &terminal{master: master, done: make(chan struct{})}
	go func() {
		defer close(term.done)
		io.Copy(term, master) // ends with an error when the command has
	}()
	t.Cleanup(func() { c.Process.Kill(); master.Close() })
	return term, func() int {
		c.Wait()
		<-term.done
		return c.ProcessState.ExitCode()
	}
}

func (term *terminal) Write(p []byte) (int, error) {
	term.mu.Lock()
	defer term.mu.Unlock()
	return term.text.Write(p)
}

func (term *terminal) String() string {
	term.mu.Lock()
	defer term.mu.Unlock()
	return term.text.String()
}

// await waits until the terminal shows a text.
func (term *terminal) await(t *testing.T, text string) {
	t.Helper()
	require.Eventually(t, func() bool { return strings.Contains(term.String(), text) }, patience, 5*time.Millisecond, text)
}

// TestGCAsks: somebody at the terminal decides; what changes while they think stays.
func TestGCAsks(t *testing.T) {
	r := newRegistered(t)
	r.node("/services/api/a", fmt.Sprintf(orphaned, 1), 0)
	r.node("/services/api/b", fmt.Sprintf(orphaned, 2), 0)
	args := []string{"gc", "--older-than", "1ns", "--zookeeper", r.zk.Addr()}

	for _, answer := range []string{"n", "", "yes please"} {
		term, wait := onTerminal(t, args...)
		term.await(t, "Delete 2 nodes? [y/N] ")
		fmt.Fprintln(term.master, answer)
		require.Equal(t, 3, wait(), term)
		require.Contains(t, term.String(), "nothing was deleted")
	}
	require.True(t, r.stands("/services/api/a") && r.stands("/services/api/b"))

	term, wait := onTerminal(t, args...)
	term.await(t, "Delete 2 nodes? [y/N] ")
	fmt.Fprint(term.master, "\x03") // Ctrl-C
	require.Equal(t, 1, wait(), term)
	require.Contains(t, term.String(), "myelin: interrupted: nothing was deleted")
	require.True(t, r.stands("/services/api/a") && r.stands("/services/api/b"))

	term, wait = onTerminal(t, args...)
	term.await(t, "Delete 2 nodes? [y/N] ")
	_, err := r.conn.Set("/services/api/b", []byte(fmt.Sprintf(orphaned, 2)), -1) // its registrar renews it
	require.NoError(t, err)
	fmt.Fprintln(term.master, "y")
	require.Zero(t, wait(), term)
	require.Contains(t, term.String(), "skipped /services/api/b: delete /services/api/b: it changed since it was read: its data was written")
	require.Contains(t, term.String(), "1 deleted, 1 skipped, 0 failed")
	require.False(t, r.stands("/services/api/a"))
	require.True(t, r.stands("/services/api/b"))
}

// TestProgress: who asks much of a slow registry at a terminal sees how far it is, in a line that is gone at the end; who
// reads a pipe does not.
func TestProgress(t *testing.T) {
	r := newRegistered(t)
	for i := range 20 {
		r.node(fmt.Sprintf("/services/s%02d/a", i), fmt.Sprintf(orphaned, i+1), zk.FlagEphemeral)
	}
	wire := zktest.NewProxy(t, r.zk.Addr())
	wire.Delay(120 * time.Millisecond) // progress is told after 300 ms
	for question, line := range map[string]string{
		"fsck": `\d+ nodes read`, "services": `\d+ nodes read`, "instances s00": `reading from ZooKeeper: \d+ KiB`,
	} {
		args := append(strings.Fields(question), "--zookeeper", wire.Addr())
		term, wait := onTerminal(t, args...)
		require.Zero(t, wait(), term)
		shown := term.String()
		lines := regexp.MustCompile(`\r`+line+"\x1b"+`\[K`).FindAllStringIndex(shown, -1)
		require.NotEmpty(t, lines, "%s: %q", question, shown)
		require.Regexp(t, "^\r\x1b"+`\[K`, shown[lines[len(lines)-1][1]:], "it is taken away, and the answer follows")

		var errs bytes.Buffer
		c := exec.CommandContext(context.Background(), binary, args...)
		c.Stderr = &errs
		require.NoError(t, c.Run())
		require.Empty(t, errs.String())
	}
}
