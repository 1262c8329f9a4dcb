package cli

import (
	"bytes"
	"os"
	"path/filepath"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/myelin-sd/myelin/journal"
)

// printed runs a command, and returns what it printed and its exit code.
func printed(args ...string) (out, errs string, code int) {
	var o, e bytes.Buffer
	code = Main(args, &o, &e)
	return o.String(), e.String(), code
}

// recordedHistory is a state_dir in which a little has happened.
func recordedHistory(t *testing.T) string {
	t.Helper()
	dir := t.TempDir()
	at := time.Date(2026, 3, 1, 3, 12, 25, 44_000_000, time.UTC)
	j := journal.Open(journal.Options{Dir: journalDir(dir), Role: "agent"})
	j.Record(journal.Event{At: at, Kind: journal.KindRegistry, Service: "user-api", What: "joined", Cause: "a watch told"}.Of("10.0.0.1:80"))
	j.Record(journal.Event{At: at.Add(time.Minute), Kind: journal.KindGuard, Service: "user-api", What: "held, although gone from the registry", Cause: "the path does not exist"}.Of("10.0.0.1:80", "10.0.0.2:80"))
	j.Record(journal.Event{At: at.Add(2 * time.Minute), Kind: journal.KindProcess, What: "a name with \x1b[31mcolours"})
	j.Close()
	return dir
}

// TestHistoryJSON: the answer's form is part of the interface.
func TestHistoryJSON(t *testing.T) {
	dir := recordedHistory(t)
	out, errs, code := printed("history", "--state-dir", dir, "-o", "json")
	require.Zero(t, code, errs)
	want, err := os.ReadFile("testdata/json/history.json")
	require.NoError(t, err)
	require.Equal(t, string(want), out)
	out, _, code = printed("history", "nothing", "--state-dir", dir, "-o", "json")
	require.Equal(t, 1, code)
	require.Empty(t, out)
	out, _, code = printed("history", "--kind", "reload", "--state-dir", dir, "-o", "json")
	require.Zero(t, code)
	require.Equal(t, "[]\n", out, "none is a list too")
}

// TestHistoryTable: what a person sees, also when there is something wrong.
func TestHistoryTable(t *testing.T) {
	dir := recordedHistory(t)
	out, errs, code := printed("history", "--state-dir", dir, "-n", "2")
	require.Zero(t, code, errs)
	require.Regexp(t, `(?m)^TIME +ROLE +SERVICE +WHAT +CAUSE$`, out)
	require.Regexp(t, `(?m)agent  user-api  2 held, although gone from the registry: 10\.0\.0\.1:80 10\.0\.0\.2:80 +the path does not exist$`, out)
	require.NotContains(t, out, "joined")
	require.NotContains(t, out, "\x1b")
	require.Contains(t, out, "1 earlier events are not shown")
	require.Contains(t, out, "nobody records now")
	out, _, _ = printed("history", "--state-dir", dir, "-o", "wide")
	require.Regexp(t, `(?m)\.044  agent  registry  user-api  10\.0\.0\.1:80 joined +a watch told$`, out)

	paths, err := filepath.Glob(filepath.Join(journalDir(dir), "*"))
	require.NoError(t, err)
	f, err := os.OpenFile(paths[0], os.O_APPEND|os.O_WRONLY, 0)
	require.NoError(t, err)
	_, err = f.WriteString(`{"at":"20`)
	require.NoError(t, err)
	require.NoError(t, f.Close())
	_, errs, code = printed("history", "--state-dir", dir)
	require.Zero(t, code)
	require.Contains(t, errs, "1 lines of the history are no events")

	for complaint, args := range map[string][]string{
		`did you mean guard?`:                   {"--kind", "gard"},
		`--since "soon": write how long ago`:    {"--since", "soon"},
		`did you mean user-api?`:                {"user-ap"},
		`there is no history in /nowhere/journ`: {"--state-dir", "/nowhere"},
	} {
		_, errs, code := printed(append([]string{"history", "--state-dir", dir}, args...)...)
		require.NotZero(t, code)
		require.Contains(t, errs, complaint)
	}
	j := journal.Open(journal.Options{Dir: journalDir(dir), Role: "agent"})
	defer j.Close()
	j.Record(journal.Event{Kind: journal.KindProcess, What: "it runs"})
	require.Eventually(t, func() bool {
		out, _, _ := printed("history", "--state-dir", dir)
		return bytes.Contains([]byte(out), []byte("it runs")) && !bytes.Contains([]byte(out), []byte("nobody records"))
	}, 10*time.Second, 10*time.Millisecond)
}

// TestPastTime: how people write a time that was.
func TestPastTime(t *testing.T) {
	now := time.Date(2026, 3, 1, 14, 0, 0, 0, time.UTC)
	for text, want := range map[string]string{
		"2h": "2026-03-01T12:00:00Z", "90m": "2026-03-01T12:30:00Z", "3d": "2026-02-26T14:00:00Z", "0.5d": "2026-03-01T02:00:00Z",
		"13:30": "2026-03-01T13:30:00Z", "14:30": "2026-02-28T14:30:00Z", "03:04:05": "2026-03-01T03:04:05Z",
		"2026-02-28 10:00": "2026-02-28T10:00:00Z", "2026-02-28": "2026-02-28T00:00:00Z", "2026-02-28T10:00:00+01:00": "2026-02-28T09:00:00Z",
	} {
		at, ok := pastTime(text, now)
		require.True(t, ok, text)
		require.Equal(t, want, at.UTC().Format(time.RFC3339), text)
	}
	for _, text := range []string{"", "-2h", "soon", "25:00", "d", "-1d", "2026-13-01"} {
		_, ok := pastTime(text, now)
		require.False(t, ok, text)
	}
}
