package agent

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	logtest "github.com/sirupsen/logrus/hooks/test"
	"github.com/stretchr/testify/require"

	"github.com/myelin-sd/myelin/config"
	"github.com/myelin-sd/myelin/haproxy"
)

// keeper is a filekeeper without a HAProxy: the test says what is wanted, what HAProxy runs with, and counts reloads.
type keeper struct {
	*filekeeper
	t       *testing.T
	path    string
	log     *logtest.Hook
	wanted  atomic.Pointer[wanted]
	wake    chan struct{}
	reloads atomic.Int64
	k       *composer
	views   []view
}

func newKeeper(t *testing.T, path string, edit ...func(*config.Agent)) *keeper {
	t.Helper()
	c := nodeConfig(filepath.Dir(path))
	for _, e := range edit {
		e(c)
	}
	text, err := os.ReadFile(path)
	if !errors.Is(err, os.ErrNotExist) {
		require.NoError(t, err)
	}
	logger, hook := logtest.NewNullLogger()
	k := &keeper{
		t: t, path: path, log: hook, wake: make(chan struct{}, 1),
		k: newComposer(c, nameserver, haproxy.ServersOfText(text)), views: []view{newView(c.Services[0])},
	}
	k.wanted.Store(k.k.all(k.views, nil))
	k.filekeeper = newFilekeeper(c, k.wanted.Load, k.wake, text, Options{Log: logger})
	if k.filekeeper.reloader != nil { // without a process of the operator's
		k.filekeeper.reloader = haproxy.NewReloader(haproxy.ReloaderOptions{
			Reload:   func(context.Context) error { k.reloads.Add(1); return nil },
			Interval: time.Second, Log: logger,
		})
	}
	return k
}

// hear changes what is wanted.
func (k *keeper) hear(words ...string) {
	s := discoverySnapshot(k.t, words...)
	k.views[0] = k.views[0].next(s, time.Now())
	k.wanted.Store(k.k.replace(0, k.views[0], k.wanted.Load()))
	signal(k.wake)
}

// begin runs the keeper until the returned function is called.
func (k *keeper) begin() (end func()) {
	ctx, cancel := context.WithCancel(context.Background())
	var running sync.WaitGroup
	k.first(ctx)
	running.Go(func() { k.run(ctx) })
	end = sync.OnceFunc(func() {
		cancel()
		running.Wait()
	})
	k.t.Cleanup(end)
	return end
}

// text is the file; empty when there is none.
func (k *keeper) text() string {
	b, err := os.ReadFile(k.path)
	if !errors.Is(err, os.ErrNotExist) {
		require.NoError(k.t, err)
	}
	return string(b)
}

func (k *keeper) servers() string { return briefOf(haproxy.ServersOfText([]byte(k.text()))["svc"]) }

func (k *keeper) stat() os.FileInfo {
	info, err := os.Stat(k.path)
	require.NoError(k.t, err)
	return info
}

func (k *keeper) static() string { return k.wanted.Load().static }

func filePath(t *testing.T) string { return filepath.Join(t.TempDir(), "haproxy.cfg") }

func TestFileIsWrittenWhenItChanges(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		k := newKeeper(t, filePath(t))
		k.begin()
		k.hear("a@10.0.0.1:80")
		time.Sleep(time.Second)
		require.Equal(t, "a", k.servers())
		before, wrote := k.stat(), k.status().Written
		require.False(t, wrote.IsZero())

		k.hear("a@10.0.0.1:80")
		time.Sleep(time.Minute)
		require.True(t, os.SameFile(before, k.stat()), "an equal file is not replaced")
		require.Equal(t, wrote, k.status().Written)
		require.True(t, k.inStep())

		k.hear("a@10.0.0.1:80", "b@10.0.0.2:80")
		time.Sleep(time.Second)
		require.Equal(t, "a b", k.servers())
		require.False(t, os.SameFile(before, k.stat()), "a changed one is, by another file")
		require.Zero(t, k.reloads.Load(), "membership needs no reload")
	})
}

// TestFileIsInStepAtTheStop: what came in the pause between two writes is written at the end.
func TestFileIsInStepAtTheStop(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		k := newKeeper(t, filePath(t))
		end := k.begin()
		k.hear("a@10.0.0.1:80")
		time.Sleep(time.Second)
		k.hear("a@10.0.0.1:80", "b@10.0.0.2:80")
		synctest.Wait()
		require.Equal(t, "a b", k.servers(), "at once after quiet")
		k.hear("c@10.0.0.3:80")
		synctest.Wait()
		require.Equal(t, "a b", k.servers(), "behind a write there is a pause")
		require.False(t, k.inStep())
		end()
		require.Equal(t, "c", k.servers())
	})
}

// TestWriteGap: under a storm there is a pause between writes, and none is put off for ever.
func TestWriteGap(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		k := newKeeper(t, filePath(t))
		end := k.begin()
		time.Sleep(time.Second)
		writes, last := 0, k.stat()
		began := time.Now()
		for i := range 100 { // one second of a change every 10 ms
			k.hear(fmt.Sprintf("a@10.0.0.%d:80", i+1))
			time.Sleep(10 * time.Millisecond)
			if now := k.stat(); !os.SameFile(last, now) {
				writes, last = writes+1, now
			}
		}
		most := int(time.Since(began)/leastGap) + 1
		require.LessOrEqual(t, writes, most)
		require.Greater(t, writes, most/2)
		end()
		require.Contains(t, k.text(), "10.0.0.100:80")
	})
}

func TestNextWrite(t *testing.T) {
	wrote := time.Unix(1000, 0)
	w := &wanted{backends: map[string]wantedBackend{"svc": {servers: []haproxy.Server{{Name: "a"}}}}}
	full := haproxy.State{"svc": {{Name: "a"}}}
	for took, want := range map[time.Duration]time.Duration{
		0: leastGap, time.Millisecond: leastGap, 40 * time.Millisecond: 400 * time.Millisecond, time.Minute: mostGap,
	} {
		k := &filekeeper{wrote: wrote, took: took, wanted: func() *wanted { return w }, onDisk: full}
		require.Equal(t, want, k.nextWrite().Sub(wrote), "a write took %v", took)
		k.onDisk = haproxy.State{"svc": nil}
		require.Zero(t, k.nextWrite().Sub(wrote), "a backend that the file has empty cannot wait")
	}
}

// TestUnwritableFile: said once, shown, tried again, healed by itself.
func TestUnwritableFile(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		dir := filepath.Join(t.TempDir(), "missing")
		k := newKeeper(t, filepath.Join(dir, "haproxy.cfg"))
		k.begin()
		k.hear("a@10.0.0.1:80")
		time.Sleep(time.Minute)
		require.Equal(t, 1, said(k.log, "haproxy.cfg is not written"))
		require.Contains(t, k.status().Error, "create the directory "+dir)
		require.False(t, k.inStep())
		k.processLoaded("/haproxy.sock", "another", true)
		time.Sleep(time.Minute)
		require.Zero(t, k.reloads.Load(), "HAProxy would read the old file")

		require.NoError(t, os.Mkdir(dir, 0o755))
		time.Sleep(2 * writeRetry)
		require.EqualValues(t, 1, k.reloads.Load())
		require.Equal(t, "a", k.servers())
		require.Empty(t, k.status().Error)
		require.Equal(t, 1, said(k.log, "haproxy.cfg is written again"))
		k.hear("b@10.0.0.1:80")
		time.Sleep(time.Second)
		require.Equal(t, "b", k.servers())
		require.Equal(t, 1, said(k.log, "haproxy.cfg is not written"))
	})
}

// TestStaticPart: HAProxy is reloaded when, and only when, it runs with another static part than the file has; once for
// each static part, however it comes back.
func TestStaticPart(t *testing.T) {
	const socket = "/haproxy.sock"
	other := strings.Repeat("0", 32)
	type loaded struct {
		static string // "same": that of the file
		found  bool
	}
	same := loaded{"same", true}
	unmarked := loaded{"", false}
	for _, tc := range []struct {
		name    string
		file    string // as found at the start; "same": with the same static part and another server, without the mark
		loaded  []loaded
		reloads int64
		pending bool
	}{
		{"the same part", "", []loaded{same, same}, 0, false},
		{"another part, and the reload brings it", "", []loaded{{other, true}, same, same}, 1, false},
		{"a process that comes back without the new part", "", []loaded{{other, true}, {other, true}, {other, true}}, 1, true},
		{"without the mark, from a file with the same part", "same", []loaded{unmarked, unmarked}, 0, false},
		{"without the mark, from another file", "global\n\tmaxconn 5\n", []loaded{unmarked, same}, 1, false},
		{"and it comes back without the mark", "global\n\tmaxconn 5\n", []loaded{unmarked, unmarked, unmarked}, 1, false},
		{"the mark, then none", "", []loaded{same, unmarked, unmarked}, 0, false},
	} {
		t.Run(tc.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				path := filePath(t)
				switch tc.file {
				case "":
				case "same":
					f := newKeeper(t, path)
					f.hear("old@10.0.0.9:80")
					w := f.wanted.Load()
					text := string(w.file.Render(w.forFile(newQuarantine(), f.ladder)))
					mark := slices.IndexFunc(strings.Split(text, "\n"), func(l string) bool { return strings.Contains(l, haproxy.StaticVariable) })
					lines := strings.Split(text, "\n")
					require.NoError(t, os.WriteFile(path, []byte("# Synapse's\n"+strings.Join(slices.Delete(lines, mark, mark+1), "\n")), 0o644))
				default:
					require.NoError(t, os.WriteFile(path, []byte(tc.file), 0o644))
				}
				k := newKeeper(t, path)
				k.begin()
				for i, l := range tc.loaded {
					if l.static == "same" {
						l.static = k.static()
					}
					k.processLoaded(socket, l.static, l.found)
					time.Sleep(time.Minute)
					k.hear(fmt.Sprintf("a@10.0.0.%d:80", i+1))
					time.Sleep(time.Minute)
				}
				require.Equal(t, tc.reloads, k.reloads.Load())
				require.Equal(t, tc.pending, k.status().Pending != "", k.status().Pending)
				if tc.reloads > 0 {
					require.Equal(t, map[string]uint64{"the static part of the configuration changed": uint64(tc.reloads)}, k.status().Reload.ByReason)
				}
			})
		})
	}
}

// TestStaticPartWithoutReloads: with do_reloads off the need is shown and nothing is done.
func TestStaticPartWithoutReloads(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		k := newKeeper(t, filePath(t), func(c *config.Agent) { c.HAProxy.DoReloads = false })
		k.begin()
		time.Sleep(time.Minute)
		k.processLoaded("/haproxy.sock", "another", true)
		time.Sleep(time.Minute)
		require.NotEmpty(t, k.status().Pending)
		k.needReload("backend svc: why")
		require.Contains(t, k.status().Pending, "backend svc: why")
		k.processLoaded("/haproxy.sock", k.static(), true)
		require.Empty(t, k.status().Pending)
	})
}

// TestReloadWaitsForTheFile: one that a backend needs is not done before HAProxy would read what it needs.
func TestReloadWaitsForTheFile(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		k := newKeeper(t, filePath(t))
		k.begin()
		k.hear("a@10.0.0.1:80")
		time.Sleep(time.Second)
		k.needReload("at once")
		synctest.Wait()
		require.EqualValues(t, 1, k.reloads.Load(), "the file is in step")
		time.Sleep(time.Minute)

		require.NoError(t, os.RemoveAll(filepath.Dir(k.path)))
		k.hear("b@10.0.0.2:80")
		k.needReload("backend svc: why")
		k.needReload("backend svc: why")
		time.Sleep(time.Minute)
		require.EqualValues(t, 1, k.reloads.Load())
		require.NoError(t, os.Mkdir(filepath.Dir(k.path), 0o755))
		time.Sleep(time.Minute)
		require.Equal(t, "b", k.servers())
		require.EqualValues(t, 2, k.reloads.Load())
		require.EqualValues(t, 1, k.status().Reload.ByReason["backend svc: why"])
	})
}

// TestWithoutSocket: with do_socket off each change of the file is a reload, spaced, and an equal file is none.
func TestWithoutSocket(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		k := newKeeper(t, filePath(t), func(c *config.Agent) { c.HAProxy.DoSocket = false })
		k.begin()
		time.Sleep(time.Minute)
		before := k.reloads.Load() // of the first file
		for i := range 3 {
			k.hear(fmt.Sprintf("a@10.0.0.%d:80", i+1))
			time.Sleep(time.Minute)
			require.EqualValues(t, before+int64(i)+1, k.reloads.Load())
		}
		k.hear("a@10.0.0.3:80")
		time.Sleep(time.Minute)
		require.EqualValues(t, before+3, k.reloads.Load())
	})
}

func TestWithoutWrites(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		k := newKeeper(t, filePath(t), func(c *config.Agent) { c.HAProxy.DoWrites = false })
		end := k.begin()
		k.hear("a@10.0.0.1:80")
		time.Sleep(time.Minute)
		end()
		require.NoFileExists(t, k.path)
		require.True(t, k.inStep(), "nothing is waited for")
		require.Empty(t, k.status().Error)
	})
}

// TestRefusedFile: what check_command refuses does not come into force, and what it accepts later does.
func TestRefusedFile(t *testing.T) {
	path := filePath(t)
	ok := filepath.Join(filepath.Dir(path), "ok")
	candidate := path + ".new"
	k := newKeeper(t, path, func(c *config.Agent) {
		c.HAProxy.DoChecks = true
		c.HAProxy.CandidateConfigFilePath = candidate
		c.HAProxy.CheckCommand = fmt.Sprintf("test -s %s && test -e %s || { echo no; false; }", candidate, ok)
	})
	require.NoError(t, os.WriteFile(ok, nil, 0o600))
	k.hear("a@10.0.0.1:80")
	require.True(t, k.write(t.Context()))
	before := k.text()
	require.Equal(t, "a", k.servers())

	require.NoError(t, os.Remove(ok))
	k.hear("b@10.0.0.2:80")
	for range 3 {
		require.False(t, k.write(t.Context()))
	}
	require.Equal(t, before, k.text())
	require.NoFileExists(t, candidate)
	require.Contains(t, k.status().Error, "check_command")
	require.Contains(t, k.status().Error, "no")
	require.Equal(t, 1, said(k.log, "haproxy.cfg is not written"))
	require.Equal(t, "a", briefOf(k.filekeeper.servers()["svc"]), "what is on disk is known to be the old")

	require.NoError(t, os.WriteFile(ok, nil, 0o600))
	require.True(t, k.write(t.Context()))
	require.Equal(t, "b", k.servers())
	require.Empty(t, k.status().Error)
}

// TestQuarantinedStaysOutOfTheFile: what HAProxy refused at run time would stop its next start.
func TestQuarantinedStaysOutOfTheFile(t *testing.T) {
	k := newKeeper(t, filePath(t))
	k.hear("a@10.0.0.1:80", "b@10.0.0.2:80")
	require.True(t, k.write(t.Context()))
	require.Equal(t, "a b", k.servers())
	bad := k.wanted.Load().backends["svc"].servers[1]
	bad.Name = haproxy.GenerationName(bad.Name, 2)
	k.quarantine.add("svc", bad, "why")
	require.True(t, k.write(t.Context()))
	require.Equal(t, "a", k.servers())
	k.hear("a@10.0.0.1:80", "b@10.0.0.2:81")
	require.True(t, k.write(t.Context()))
	require.Equal(t, "a b", k.servers(), "it asks for something else now")
	k.hear("a@10.0.0.1:80", "b@10.0.0.2:80")
	k.quarantine.clear()
	require.True(t, k.write(t.Context()))
	require.Equal(t, "a b", k.servers())
}
