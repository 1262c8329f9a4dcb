package registrar

import (
	"bufio"
	"context"
	"encoding/json"
	"fmt"
	"os"
	"os/exec"
	"syscall"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/myelin-sd/myelin/discovery"
)

const stoppedVariable = "MYELIN_TEST_STOPPED"

// asking is a check that says that it has begun, and passes when its parent says so in time.
type asking struct{ lines <-chan string }

func (a asking) Check(ctx context.Context) error {
	fmt.Println("began")
	select {
	case <-a.lines:
		return nil
	case <-ctx.Done():
		return context.Cause(ctx)
	}
}

// TestStoppedProcess stops a registrar while it makes a check, for longer than the check may take. Nobody is to notice.
func TestStoppedProcess(t *testing.T) {
	if os.Getenv(stoppedVariable) != "" {
		stoppedProcess(t)
		return
	}
	t.Parallel()
	cmd := exec.CommandContext(t.Context(), os.Args[0], "-test.run=^TestStoppedProcess$")
	cmd.Env = append(os.Environ(), stoppedVariable+"=1")
	cmd.Stderr = os.Stderr
	in, err := cmd.StdinPipe()
	require.NoError(t, err)
	out, err := cmd.StdoutPipe()
	require.NoError(t, err)
	require.NoError(t, cmd.Start())
	lines := bufio.NewScanner(out)
	began := func() {
		t.Helper()
		require.True(t, lines.Scan())
		require.Equal(t, "began", lines.Text())
	}
	pass := func() {
		_, err := fmt.Fprintln(in, "pass")
		require.NoError(t, err)
	}
	for range 3 {
		began()
		pass()
	}
	began()
	require.NoError(t, cmd.Process.Signal(syscall.SIGSTOP))
	time.Sleep(stoppedTimeout + time.Second) // that it stands still for so long is what this is about
	require.NoError(t, cmd.Process.Signal(syscall.SIGCONT))
	for range 3 {
		began()
		pass()
	}
	began()
	require.NoError(t, in.Close())

	require.True(t, lines.Scan())
	var told struct {
		Verdicts []Verdict
		Requests []string
	}
	require.NoError(t, json.Unmarshal(lines.Bytes(), &told), lines.Text())
	require.Equal(t, []Verdict{Passed, Passed, Passed, Doubtful, Passed, Passed, Passed}, told.Verdicts)
	require.Equal(t, []string{"create /services/user-api/web-1_0001 v1"}, told.Requests)
	for lines.Scan() { // the test's own words
	}
	require.NoError(t, cmd.Wait())
}

const stoppedTimeout = 2 * time.Second

// stoppedProcess is the registrar that is stopped.
func stoppedProcess(t *testing.T) {
	lines := make(chan string)
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	dir := &fakeDirectory{}
	r := New(Options{Services: []Service{{
		Name: "user-api", Directory: dir, Interval: time.Millisecond,
		Registration: discovery.Registration{Path: "/services/user-api", Prefix: "web-1_", Data: []byte("v1"), Sequential: true, Ephemeral: true},
		Checks:       []Check{{Name: "asking", HealthCheck: asking{lines}, Timeout: stoppedTimeout, Fall: 1}},
	}}})
	stopped := make(chan error, 1)
	go func() { stopped <- r.Run(ctx) }()
	for stdin := bufio.NewScanner(os.Stdin); stdin.Scan(); {
		lines <- stdin.Text()
	}
	require.Eventually(t, func() bool { return r.Status()[0].Registered }, time.Minute, time.Millisecond)
	var told struct {
		Verdicts []Verdict
		Requests []string
	}
	for _, c := range r.Status()[0].Checks[0].Recent {
		told.Verdicts = append(told.Verdicts, c.Verdict)
	}
	told.Requests = dir.requests()
	text, err := json.Marshal(told)
	require.NoError(t, err)
	fmt.Println(string(text))
	cancel()
	require.NoError(t, <-stopped)
}
