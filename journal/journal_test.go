package journal_test

import (
	"bufio"
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"testing"
	"testing/synctest"
	"time"

	"github.com/sirupsen/logrus"
	"github.com/sirupsen/logrus/hooks/test"
	"github.com/stretchr/testify/require"
	"go.uber.org/goleak"

	"github.com/myelin-sd/myelin/journal"
)

func TestMain(m *testing.M) {
	if dir, ok := os.LookupEnv("JOURNAL_TEST_WRITE"); ok {
		writeForever(dir)
	}
	if dir, ok := os.LookupEnv("JOURNAL_TEST_READ"); ok {
		readAsSomebody(dir)
	}
	goleak.VerifyTestMain(m)
}

// writeForever is a process that records until it is killed.
func writeForever(dir string) {
	j := journal.Open(journal.Options{Dir: dir, Role: "agent"})
	for n := 0; ; n++ {
		j.Record(journal.Event{Kind: journal.KindProcess, What: "number " + strconv.Itoa(n)})
		if n%8 == 7 {
			time.Sleep(time.Millisecond) // so that the bound of what waits is not what is tested
		}
	}
}

// readAsSomebody is a process of another user.
func readAsSomebody(dir string) {
	r := journal.NewReader(dir)
	events, err := r.Next(journal.Filter{})
	fmt.Println(len(events), err, r.Problems)
	os.Exit(0)
}

func about(kind journal.Kind, service, what string) journal.Event {
	return journal.Event{Kind: kind, Service: service, What: what}
}

// written opens a journal, has events recorded and closes it.
func written(t *testing.T, o journal.Options, events ...journal.Event) {
	t.Helper()
	j := journal.Open(o)
	for _, e := range events {
		j.Record(e)
	}
	j.Close()
}

func read(t *testing.T, dir string) (*journal.Reader, []journal.Event) {
	t.Helper()
	r := journal.NewReader(dir)
	events, err := r.Next(journal.Filter{})
	require.NoError(t, err)
	require.Empty(t, r.Problems)
	return r, events
}

func sentences(events []journal.Event) (out []string) {
	for _, e := range events {
		out = append(out, e.Sentence())
	}
	return out
}

func segments(t *testing.T, dir, pattern string) (paths []string, size int64) {
	t.Helper()
	paths, err := filepath.Glob(filepath.Join(dir, pattern))
	require.NoError(t, err)
	for _, p := range paths {
		info, err := os.Stat(p)
		require.NoError(t, err)
		size += info.Size()
	}
	return paths, size
}

// TestHistory: what several processes of a host have recorded is read together, by time, and chosen from.
func TestHistory(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "state", "journal")
	began := time.Now().Add(-time.Hour).Truncate(time.Millisecond)
	at := func(minute int, e journal.Event) journal.Event {
		e.At = began.Add(time.Duration(minute) * time.Minute)
		return e
	}
	written(t, journal.Options{Dir: dir, Role: "agent"},
		at(1, about(journal.KindProcess, "", "agent starts")),
		at(4, about(journal.KindRegistry, "user-api", "left without a word").Of("10.0.0.1:80")))
	written(t, journal.Options{Dir: dir, Role: "registrar", Owner: "web/1"},
		at(2, about(journal.KindCheck, "user-api", "service is up")), at(3, about(journal.KindRegister, "search", "registered")))
	written(t, journal.Options{Dir: dir, Role: "agent"}, at(5, about(journal.KindGuard, "user-api", "held").Of("10.0.0.1:80", "10.0.0.2:80")))

	r, events := read(t, dir)
	require.Equal(t, []string{"agent starts", "service is up", "registered", "10.0.0.1:80 left without a word", "2 held: 10.0.0.1:80 10.0.0.2:80"}, sentences(events))
	require.Equal(t, []string{"agent", "registrar", "registrar", "agent", "agent"}, []string{events[0].Role, events[1].Role, events[2].Role, events[3].Role, events[4].Role})
	require.True(t, events[0].At.Equal(began.Add(time.Minute)))
	require.True(t, r.Newest.Equal(began.Add(5*time.Minute)))
	require.Equal(t, []string{"search", "user-api"}, r.Services)
	require.Empty(t, r.Writers)
	require.Zero(t, r.Torn)
	paths, _ := segments(t, dir, "*")
	require.Len(t, paths, 2, "a journal goes on in the segment that is there")
	named, _ := segments(t, dir, "registrar-web_1-*.jsonl")
	require.Len(t, named, 1)

	for want, f := range map[string]journal.Filter{
		"service is up, 10.0.0.1:80 left without a word, 2 held: 10.0.0.1:80 10.0.0.2:80": {Service: "user-api"},
		"registered": {Kinds: []journal.Kind{journal.KindRegister}},
		"10.0.0.1:80 left without a word, 2 held: 10.0.0.1:80 10.0.0.2:80": {Since: began.Add(4 * time.Minute)},
		"service is up": {Service: "user-api", Kinds: []journal.Kind{journal.KindCheck}},
		"":              {Service: "nobody"},
	} {
		events, err := journal.NewReader(dir).Next(f)
		require.NoError(t, err)
		require.Equal(t, want, strings.Join(sentences(events), ", "))
	}
	_, err := journal.NewReader(filepath.Join(dir, "none")).Next(journal.Filter{})
	require.ErrorIs(t, err, os.ErrNotExist)
	both := journal.NewReader(filepath.Join(dir, "none"), dir)
	events, err = both.Next(journal.Filter{})
	require.NoError(t, err)
	require.Len(t, events, 5)
	require.Empty(t, both.Problems)
}

// TestStorm: what happens to many instances at one moment is one line, also where each is told of alone, and a few are
// told of one by one.
func TestStorm(t *testing.T) {
	synctest.Test(t, func(t *testing.T) { // all of it is one moment, however slow the machine is
		dir := t.TempDir()
		j := journal.Open(journal.Options{Dir: dir, Role: "agent"})
		for n := range 10_000 {
			j.Record(about(journal.KindRegistry, "user-api", "left without a word").Of(fmt.Sprintf("10.0.%d.%d:80", n/256, n%256)))
			if n < 3 {
				j.Record(about(journal.KindRegistry, "search", "joined").Of(fmt.Sprintf("10.1.0.%d:80", n)))
			}
		}
		j.Close()
		_, events := read(t, dir)
		require.Equal(t, []string{
			"10000 left without a word: 10.0.0.0:80 10.0.0.1:80 10.0.0.2:80 10.0.0.3:80 and 9996 more",
			"10.1.0.0:80 joined", "10.1.0.1:80 joined", "10.1.0.2:80 joined",
		}, sentences(events))
		require.Equal(t, 10_000, events[0].Count)
		require.Empty(t, events[0].Instance)
	})
}

// TestBounded: the oldest segments go, and those of another role stay.
func TestBounded(t *testing.T) {
	dir := t.TempDir()
	const most = 256 << 10
	written(t, journal.Options{Dir: dir, Role: "registrar", Owner: "a"}, about(journal.KindProcess, "", "registrar starts"))
	written(t, journal.Options{Dir: dir, Role: "agent", MaxSize: most}, about(journal.KindProcess, "", "the oldest"))
	const count, each = 20, 100
	for round := range count {
		j := journal.Open(journal.Options{Dir: dir, Role: "agent", MaxSize: most})
		for n := range each {
			j.Record(about(journal.KindProcess, "", fmt.Sprintf("%d %s", round*each+n, strings.Repeat("x", 500))))
		}
		j.Close()
		_, size := segments(t, dir, "agent-*")
		require.LessOrEqual(t, size, int64(most))
	}
	_, size := segments(t, dir, "agent-*")
	require.Greater(t, size, int64(most*3/4))
	_, events := read(t, dir)
	require.Equal(t, "registrar starts", events[0].What)
	last := count*each - 1
	for i := len(events) - 1; i > 0; i-- { // what is left is the newest, without a gap
		require.True(t, strings.HasPrefix(events[i].What, strconv.Itoa(last)+" "), events[i].What[:20])
		last--
	}
}

// TestClockOfThePast: files that were begun while the clock was ahead are not taken for the newest ones for ever: what is
// recorded later stays, and they go.
func TestClockOfThePast(t *testing.T) {
	dir := t.TempDir()
	const most = 128 << 10 // eight segments
	line := `{"at":"2040-01-01T00:00:00Z","role":"agent","kind":"process","what":"` + strings.Repeat("x", 900) + `"}` + "\n"
	ahead := time.Date(2040, 1, 1, 0, 0, 0, 0, time.UTC).UnixMilli()
	for i := range int64(7) {
		name := filepath.Join(dir, fmt.Sprintf("agent-%013d.jsonl", ahead+i))
		require.NoError(t, os.WriteFile(name, []byte(strings.Repeat(line, 16)), 0o640))
	}
	for n := range 3 { // three processes, each with more than a segment
		j := journal.Open(journal.Options{Dir: dir, Role: "agent", MaxSize: most})
		for i := range 24 {
			j.Record(about(journal.KindProcess, "", fmt.Sprintf("%d-%d %s", n, i, strings.Repeat("y", 900))))
		}
		j.Close()
	}
	events, err := journal.NewReader(dir).Next(journal.Filter{})
	require.NoError(t, err)
	now := 0
	for _, e := range events {
		if e.At.Year() != 2040 {
			now++
		}
	}
	require.Equal(t, 3*24, now)
}

// TestKilled: a process that is killed at any moment has lost nothing but its last moment, and a line that was cut off
// costs itself only.
func TestKilled(t *testing.T) {
	dir := t.TempDir()
	for range 3 {
		_, before := segments(t, dir, "*")
		cmd := exec.Command(os.Args[0])
		cmd.Env = append(os.Environ(), "JOURNAL_TEST_WRITE="+dir)
		require.NoError(t, cmd.Start())
		require.Eventually(t, func() bool { _, size := segments(t, dir, "*"); return size > before+50_000 }, 20*time.Second, time.Millisecond)
		require.Equal(t, []string{"agent"}, func() []string { r, _ := read(t, dir); return r.Writers }(), "it is seen that somebody writes")
		require.NoError(t, cmd.Process.Kill())
		_ = cmd.Wait()
	}
	r, events := read(t, dir)
	require.Empty(t, r.Writers)
	require.LessOrEqual(t, r.Torn, 3)
	next := 0
	for _, e := range events {
		n, err := strconv.Atoi(strings.TrimPrefix(e.What, "number "))
		require.NoError(t, err)
		if n == 0 {
			next = 0
		}
		require.Equal(t, next, n, "no line is missing")
		next++
	}

	paths, _ := segments(t, dir, "*")
	f, err := os.OpenFile(paths[len(paths)-1], os.O_WRONLY|os.O_APPEND, 0)
	require.NoError(t, err)
	_, err = f.WriteString(`{"at":"2026-01-02T03:04:05Z","role":"age`)
	require.NoError(t, err)
	require.NoError(t, f.Close())
	torn := r.Torn
	again, _ := read(t, dir)
	require.Equal(t, torn+1, again.Torn)
	written(t, journal.Options{Dir: dir, Role: "agent"}, about(journal.KindProcess, "", "back"))
	more, err := again.Next(journal.Filter{})
	require.NoError(t, err)
	require.Equal(t, []string{"back"}, sentences(more))
	require.Equal(t, torn+1, again.Torn, "a line is torn once")
	fresh, events := read(t, dir)
	require.Equal(t, torn+1, fresh.Torn)
	require.Equal(t, "back", events[len(events)-1].What)
}

// TestUnwritable: a folder that cannot be written is said once, costs nothing else, and is tried again.
func TestUnwritable(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "journal")
	require.NoError(t, os.WriteFile(dir, []byte("in the way"), 0o600))
	log, said := test.NewNullLogger()
	feed := journal.NewFeed()
	l, err := feed.Listen("", time.Time{})
	require.NoError(t, err)
	defer l.Close()
	j := journal.Open(journal.Options{Dir: dir, Role: "agent", Log: log, Feed: feed})
	long := strings.Repeat("x", 900)
	for n := range 4 {
		for i := range 500 { // more than is kept for later
			j.Record(about(journal.KindProcess, "", fmt.Sprintf("%d %s", n*500+i, long)))
		}
		for got := 0; got < 500; {
			entries, err := l.Next(t.Context())
			require.NoError(t, err)
			got += len(entries)
		}
	}
	require.Eventually(t, func() bool { return len(said.AllEntries()) == 1 }, 10*time.Second, time.Millisecond)
	require.Equal(t, logrus.WarnLevel, said.LastEntry().Level)
	require.Contains(t, said.LastEntry().Message, "the history is not kept")
	require.NoError(t, os.Remove(dir))
	j.Close()
	require.Len(t, said.AllEntries(), 2)
	require.Contains(t, said.LastEntry().Message, "kept again")
	_, events := read(t, dir)
	last := events[len(events)-1]
	require.Equal(t, "events are not in this history", last.What)
	require.Equal(t, 2000, len(events)-1+last.Count, "what is missing is counted")
	require.Greater(t, last.Count, 0)
}

// TestFullDisk: a write that the disk takes a part of leaves whole lines.
func TestFullDisk(t *testing.T) {
	if os.Getuid() != 0 {
		t.Skip("a small disk is made by root")
	}
	dir := t.TempDir()
	if err := syscall.Mount("journal", dir, "tmpfs", 0, "size=64k"); err != nil {
		t.Skipf("no small disk: %v", err)
	}
	defer syscall.Unmount(dir, 0)
	log, said := test.NewNullLogger()
	j := journal.Open(journal.Options{Dir: dir, Role: "agent", Log: log})
	for n := range 200 {
		j.Record(about(journal.KindProcess, "", fmt.Sprintf("%d %s", n, strings.Repeat("x", 900))))
	}
	require.Eventually(t, func() bool { return len(said.AllEntries()) == 1 }, 10*time.Second, time.Millisecond)
	require.Contains(t, fmt.Sprint(said.LastEntry().Data["err"]), "no space left on device")
	r, _ := read(t, dir)
	require.Zero(t, r.Torn)
	require.NoError(t, syscall.Mount("journal", dir, "tmpfs", syscall.MS_REMOUNT, "size=1m"))
	j.Close()
	r, events := read(t, dir)
	require.Zero(t, r.Torn)
	require.Len(t, events, 200)
	for n, e := range events {
		require.True(t, strings.HasPrefix(e.What, strconv.Itoa(n)+" "))
	}
}

// TestFolderGone: somebody removes the folder; what comes then is kept in a new one.
func TestFolderGone(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "journal")
	j := journal.Open(journal.Options{Dir: dir, Role: "agent"})
	defer j.Close()
	j.Record(about(journal.KindProcess, "", "one"))
	require.Eventually(t, func() bool { _, size := segments(t, dir, "*"); return size > 0 }, 10*time.Second, time.Millisecond)
	require.NoError(t, os.RemoveAll(dir))
	j.Record(about(journal.KindProcess, "", "two"))
	require.Eventually(t, func() bool { _, size := segments(t, dir, "*"); return size > 0 }, 10*time.Second, time.Millisecond)
	_, events := read(t, dir)
	require.Equal(t, []string{"two"}, sentences(events))
}

// TestShared: two processes that do not tell themselves apart do not write into one file, and neither removes what the
// other one writes.
func TestShared(t *testing.T) {
	dir := t.TempDir()
	one := journal.Open(journal.Options{Dir: dir, Role: "agent", MaxSize: 128 << 10})
	two := journal.Open(journal.Options{Dir: dir, Role: "agent", MaxSize: 128 << 10})
	one.Record(about(journal.KindProcess, "", "the first of one"))
	require.Eventually(t, func() bool { paths, _ := segments(t, dir, "*"); return len(paths) == 1 }, 10*time.Second, time.Millisecond)
	for n := range 1000 {
		two.Record(about(journal.KindProcess, "", fmt.Sprintf("%d %s", n, strings.Repeat("x", 300))))
	}
	two.Close()
	one.Record(about(journal.KindProcess, "", "the last of one"))
	one.Close()
	r, events := read(t, dir)
	require.Zero(t, r.Torn)
	require.Equal(t, "the first of one", events[0].What)
	require.Equal(t, "the last of one", events[len(events)-1].What)
	require.Less(t, len(events), 1000)
}

// TestConcurrent: many record at once while somebody reads; every event is read once.
func TestConcurrent(t *testing.T) {
	dir := t.TempDir()
	j := journal.Open(journal.Options{Dir: dir, Role: "agent", MaxSize: 1 << 20})
	var recording sync.WaitGroup
	for w := range 8 {
		recording.Go(func() {
			for n := range 300 {
				j.Record(about(journal.KindProcess, "", fmt.Sprintf("%d of %d", n, w)))
			}
		})
	}
	seen := map[string]int{}
	take := func(r *journal.Reader) {
		events, err := r.Next(journal.Filter{})
		if err != nil {
			require.ErrorIs(t, err, os.ErrNotExist)
		}
		for _, e := range events {
			seen[e.What]++
		}
	}
	r := journal.NewReader(dir)
	for range 50 {
		take(r)
	}
	recording.Wait()
	j.Close()
	take(r)
	require.Len(t, seen, 2400)
	for what, count := range seen {
		require.Equal(t, 1, count, what)
	}
	require.Zero(t, r.Torn)
	j.Record(about(journal.KindProcess, "", "too late"))
	j.Close()
	var nobody *journal.Journal
	nobody.Record(journal.Event{})
	nobody.Close()
}

// TestLongEvents: what an event says is bounded, and is text.
func TestLongEvents(t *testing.T) {
	dir := t.TempDir()
	written(t, journal.Options{Dir: dir, Role: "agent"},
		journal.Event{Kind: journal.KindHAProxy, Service: strings.Repeat("s", 5000), What: strings.Repeat("é", 5000), Cause: "\xff" + strings.Repeat("c", 5000)})
	_, events := read(t, dir)
	require.Len(t, events, 1)
	require.LessOrEqual(t, len(events[0].What), 1002)
	require.True(t, strings.HasPrefix(events[0].What, "ééé"))
	require.True(t, strings.HasPrefix(events[0].Cause, "?ccc"))
	require.Len(t, events[0].Service, 255)
}

// TestOtherUser: the history can be read by whoever is in the group of its files, and by nobody else.
func TestOtherUser(t *testing.T) {
	if os.Getuid() != 0 {
		t.Skip("only root can be somebody else")
	}
	dir, err := os.MkdirTemp("", "journal-")
	require.NoError(t, err)
	defer os.RemoveAll(dir)
	require.NoError(t, os.Chmod(dir, 0o755))
	binary := filepath.Join(dir, "reader")
	self, err := os.ReadFile(os.Args[0])
	require.NoError(t, err)
	require.NoError(t, os.WriteFile(binary, self, 0o755))
	history := filepath.Join(dir, "journal")
	written(t, journal.Options{Dir: history, Role: "agent"}, about(journal.KindProcess, "", "agent starts"))
	as := func(gid uint32) string {
		cmd := exec.Command(binary)
		cmd.Dir = dir
		cmd.Env = []string{"JOURNAL_TEST_READ=" + history}
		cmd.SysProcAttr = &syscall.SysProcAttr{Credential: &syscall.Credential{Uid: 65534, Gid: gid}}
		out, err := cmd.CombinedOutput()
		require.NoError(t, err, string(out))
		return string(out)
	}
	require.Equal(t, "1 <nil> []\n", as(0))
	require.Contains(t, as(65534), "permission denied")
	require.Contains(t, as(65534), "0 <nil>")
}

// FuzzReader: whatever stands in a file, each line is an event or is counted, and what is an event can be written again.
func FuzzReader(f *testing.F) {
	f.Add([]byte(`{"at":"2026-01-02T03:04:05Z","role":"agent","kind":"process","what":"agent starts"}` + "\n"))
	f.Add([]byte("\n{}\nnull\n[1]\n\x00\xff\n{\"at\":"))
	f.Add(bytes.Repeat([]byte("x"), 100_000))
	f.Add([]byte(`{"at":"2026-01-02T03:04:05Z","role":"a","kind":"k","what":"w","count":-1}` + "\n"))
	f.Fuzz(func(t *testing.T, data []byte) {
		dir := t.TempDir()
		require.NoError(t, os.WriteFile(filepath.Join(dir, "agent-0000000000001.jsonl"), data, 0o600))
		r, events := read(t, dir)
		lines := bytes.Count(data, []byte("\n"))
		if len(data) > 0 && data[len(data)-1] != '\n' {
			lines++
		}
		require.Equal(t, lines, len(events)+r.Torn)
		for _, e := range events {
			require.False(t, e.At.IsZero())
			_, err := json.Marshal(e)
			require.NoError(t, err)
			require.NotEmpty(t, e.Sentence())
		}
		more, err := r.Next(journal.Filter{})
		require.NoError(t, err)
		require.Empty(t, more)
		require.Equal(t, lines, len(events)+r.Torn)
	})
}

// TestFeed: who listens gets what follows, and what was a moment ago where that is asked for; who is too slow is told.
func TestFeed(t *testing.T) {
	feed := journal.NewFeed()
	j := journal.Open(journal.Options{Role: "agent", Feed: feed}) // keeps nothing
	defer j.Close()
	listen := func(after string, since time.Time) *journal.Listener {
		l, err := feed.Listen(after, since)
		require.NoError(t, err)
		return l
	}
	next := func(l *journal.Listener, count int) (whats []string, last string) {
		for len(whats) < count {
			entries, err := l.Next(t.Context())
			require.NoError(t, err)
			for _, e := range entries {
				whats, last = append(whats, e.Event.What), e.ID
			}
		}
		return whats, last
	}
	now := listen("", time.Time{})
	j.Record(journal.Event{Kind: journal.KindProcess, What: "one", At: time.Unix(1000, 0)})
	j.Record(journal.Event{Kind: journal.KindProcess, What: "two", At: time.Unix(2000, 0)})
	whats, id := next(now, 2)
	require.Equal(t, []string{"one", "two"}, whats)
	j.Record(journal.Event{Kind: journal.KindProcess, What: "three", At: time.Unix(3000, 0)})
	whats, _ = next(now, 1)
	require.Equal(t, []string{"three"}, whats)

	for want, l := range map[string]*journal.Listener{
		"three":         listen(id, time.Time{}),
		"two three":     listen("", time.Unix(1500, 0)),
		"one two three": listen("of another process-7", time.Time{}),
	} {
		whats, _ := next(l, strings.Count(want, " ")+1)
		require.Equal(t, want, strings.Join(whats, " "))
		l.Close()
	}
	late := listen("", time.Time{})
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	_, err := late.Next(ctx)
	require.ErrorIs(t, err, context.Canceled)
	late.Close()

	slow := listen("", time.Time{})
	for n := range 6000 {
		j.Record(journal.Event{Kind: journal.KindProcess, What: strconv.Itoa(n)})
		if n%2000 == 1999 {
			next(now, 2000)
		}
	}
	_, err = slow.Next(t.Context())
	require.ErrorIs(t, err, journal.ErrSlow)
	slow.Close()

	var all []*journal.Listener
	for {
		l, err := feed.Listen("", time.Time{})
		if err != nil {
			require.ErrorIs(t, err, journal.ErrBusy)
			break
		}
		all = append(all, l)
	}
	require.Len(t, all, 31)
	all[0].Close()
	listen("", time.Time{}).Close()
}

// TestLineForm: the form of a line is part of the interface.
func TestLineForm(t *testing.T) {
	dir := t.TempDir()
	written(t, journal.Options{Dir: dir, Role: "agent"}, journal.Event{
		At: time.Date(2026, 1, 2, 3, 4, 5, 6000, time.FixedZone("", 3600)), Kind: journal.KindGuard, Service: "user-api",
		What: "held", Cause: "the registry lists no instance",
	}.Of("10.0.0.1:80", "10.0.0.2:80"))
	paths, _ := segments(t, dir, "*")
	f, err := os.Open(paths[0])
	require.NoError(t, err)
	defer f.Close()
	line, err := bufio.NewReader(f).ReadString('\n')
	require.NoError(t, err)
	require.Equal(t, `{"at":"2026-01-02T02:04:05.000006Z","role":"agent","kind":"guard","service":"user-api","what":"held: 10.0.0.1:80 10.0.0.2:80","cause":"the registry lists no instance","count":2}`+"\n", line)
	_, err = io.ReadAll(f)
	require.NoError(t, err)
}
