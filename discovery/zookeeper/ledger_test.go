package zookeeper

import (
	"context"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/go-zookeeper/zk"
	logtest "github.com/sirupsen/logrus/hooks/test"
	"github.com/stretchr/testify/require"

	"github.com/myelin-sd/myelin/discovery"
	"github.com/myelin-sd/myelin/discovery/zookeeper/zktest"
)

func TestSessionFileRoundTrip(t *testing.T) {
	v := savedSession{
		handshake: handshake{credentials: credentials{session: -2, password: [16]byte{1, 2, 255}}, timeout: 12 * time.Second},
		hosts:     []string{"a:2181", "[::1]:2181"}, chroot: "/root", at: time.Unix(1e9, 0).UTC(),
		registrations: []discovery.Registration{{Path: "/s/a", Prefix: "web-1_", Sequential: true, Ephemeral: true}, {Path: "/s/<b>&\u2028", Prefix: "ü"}},
	}
	text, err := v.encode()
	require.NoError(t, err)
	got, err := decodeSession(text)
	require.NoError(t, err)
	require.Equal(t, v, got)
}

// TestSessionFileRefuses what has a checksum that fits and yet is nothing to work with.
func TestSessionFileRefuses(t *testing.T) {
	good := sessionJSON{ID: "0x1", Password: make([]byte, 16)}
	_, err := good.session()
	require.NoError(t, err)
	for because, change := range map[string]func(*sessionJSON){
		`"0x0" is no session's id`:         func(j *sessionJSON) { j.ID = "0x0" },
		`"" is no session's id`:            func(j *sessionJSON) { j.ID = "" },
		"a password of 15 bytes":           func(j *sessionJSON) { j.Password = j.Password[1:] },
		`"a/b" cannot begin a node's name`: func(j *sessionJSON) { j.Registrations = []registrationJSON{{Path: "/s", Prefix: "a/b"}} },
		`"" cannot begin a node's name`:    func(j *sessionJSON) { j.Registrations = []registrationJSON{{Path: "/s"}} },
	} {
		j := good
		change(&j)
		_, err := j.session()
		require.ErrorContains(t, err, because)
	}
}

func FuzzSessionFile(f *testing.F) {
	text, err := savedSession{handshake: handshake{credentials: credentials{session: 7}}, hosts: []string{"a:2181"}}.encode()
	require.NoError(f, err)
	f.Add(text)
	f.Add([]byte(`{"version":1,"checksum":"d5a1cc0a","session":{}}`))
	f.Add([]byte(`{"version":1,"session":null}`))
	f.Fuzz(func(t *testing.T, text []byte) {
		v, err := decodeSession(text)
		if err != nil {
			return
		}
		again, err := v.encode()
		require.NoError(t, err)
		same, err := decodeSession(again)
		require.NoError(t, err)
		require.Equal(t, v.handshake, same.handshake)
		require.Equal(t, v.registrations, same.registrations)
	})
}

// testLedger returns a ledger that nobody writes, with a session that is not in the file yet.
func testLedger(t *testing.T) (*ledger, *logtest.Hook) {
	t.Helper()
	log, hook := logtest.NewNullLogger()
	l, err := openLedger(filepath.Join(t.TempDir(), "session"), []string{"a:2181"}, "", log)
	require.NoError(t, err)
	t.Cleanup(func() { l.close(true) })
	l.established(handshake{credentials: credentials{session: 7}, timeout: time.Second})
	return l, hook
}

// TestLedgerJoinsWrites: what 200 services wait for is one write.
func TestLedgerJoinsWrites(t *testing.T) {
	l, _ := testLedger(t)
	synctest.Test(t, func(t *testing.T) {
		l.turn = make(chan struct{}) // of the bubble
		var all sync.WaitGroup
		for i := range 200 {
			all.Go(func() {
				r := discovery.Registration{Path: fmt.Sprintf("/s/%d", i), Prefix: "web-1_", Data: []byte("data")}
				if err := l.record(t.Context(), t.Context(), r); err != nil {
					t.Error(err)
				}
			})
		}
		synctest.Wait() // all of them wait
		_, err := os.Stat(l.path)
		require.ErrorIs(t, err, os.ErrNotExist)
		require.NoError(t, l.flush())
		began := time.Now()
		all.Wait()
		require.Zero(t, time.Since(began), "they wait for nothing more")
	})
	text, err := os.ReadFile(l.path)
	require.NoError(t, err)
	v, err := decodeSession(text)
	require.NoError(t, err)
	require.Len(t, v.registrations, 200)
	require.Nil(t, v.registrations[0].Data)
	require.Equal(t, int64(7), v.session)
}

// TestLedgerWaits: for the file, for as long as it is worth it.
func TestLedgerWaits(t *testing.T) {
	r := discovery.Registration{Path: "/s/a", Prefix: "web-1_"}
	l, hook := testLedger(t)
	synctest.Test(t, func(t *testing.T) {
		l.turn = make(chan struct{})
		ended, cancel := context.WithCancel(t.Context())
		cancel()
		require.ErrorIs(t, l.record(ended, t.Context(), r), context.Canceled)
		require.ErrorIs(t, l.record(t.Context(), ended, r), errClosed)
		for range 3 { // a disk that hangs
			began := time.Now()
			require.NoError(t, l.record(t.Context(), t.Context(), r))
			require.Equal(t, recordPatience, time.Since(began))
		}
		require.Len(t, hook.AllEntries(), 1, "said once")

		require.NoError(t, l.flush())
		began := time.Now()
		require.NoError(t, l.record(t.Context(), t.Context(), r), "it is listed")
		l.forget(regKey{"/s/other", "x"})
		require.NoError(t, l.record(t.Context(), t.Context(), r))
		require.Zero(t, time.Since(began))

		// A new session has to be in the file as well, and so has a node of another kind.
		l.established(handshake{credentials: credentials{session: 8}})
		done := make(chan error, 1)
		go func() { done <- l.record(t.Context(), t.Context(), r) }()
		synctest.Wait()
		require.Empty(t, done)
		require.NoError(t, l.flush())
		require.NoError(t, <-done)
		r.Sequential = true
		go func() { done <- l.record(t.Context(), t.Context(), r) }()
		synctest.Wait()
		require.Empty(t, done)
		require.NoError(t, l.flush())
		require.NoError(t, <-done)
		require.Equal(t, []discovery.Registration{r}, l.all())
	})
}

// TestTwins: nodes of a session of ours that could not be taken up, and that the server has not ended.
func TestTwins(t *testing.T) {
	zks := zktest.New(t)
	silent, _ := logtest.NewNullLogger()
	w, events, err := zk.Connect([]string{zks.Addr()}, 30*time.Second, zk.WithLogger(silent))
	require.NoError(t, err)
	t.Cleanup(func() {
		w.Close()
		for range events {
		}
	})
	const mine, other = `{"host":"10.0.0.1","port":80}`, `{"host":"10.0.0.2","port":80}`
	nodes := func(dir string) (data []string) {
		list, _, err := w.Children(dir)
		require.NoError(t, err)
		for _, name := range list {
			text, _, err := w.Get(dir + "/" + name)
			require.NoError(t, err)
			data = append(data, string(text))
		}
		return data
	}
	start := func(t *testing.T, file string) *Session {
		s := New(Options{Hosts: []string{zks.Addr()}, SessionTimeout: 30 * time.Second, SessionFile: file})
		t.Cleanup(s.Close)
		return s
	}
	for name, c := range map[string]struct {
		sequential    bool
		before, after string // data
		left          []string
	}{
		"the same endpoint":            {true, mine, mine, []string{mine}},
		"the same endpoint, new label": {true, mine, `{"host":"10.0.0.1","port":80,"weight":2}`, []string{`{"host":"10.0.0.1","port":80,"weight":2}`}},
		"another machine's file":       {true, other, mine, []string{mine, other}},
		"a fixed name":                 {false, other, mine, []string{mine}},
	} {
		t.Run("of the process before: "+name, func(t *testing.T) {
			r := discovery.Registration{Path: "/" + strings.ReplaceAll(name, " ", "-"), Prefix: "web-1_", Data: []byte(c.before), Sequential: c.sequential, Ephemeral: true}
			first := start(t, filepath.Join(t.TempDir(), "session"))
			_, err := first.Publish(t.Context(), r, "")
			require.NoError(t, err)
			first.Leave()
			file := first.o.SessionFile
			text, err := os.ReadFile(file)
			require.NoError(t, err)
			v, err := decodeSession(text)
			require.NoError(t, err)
			v.password[0]++ // the server refuses the session and keeps it
			text, err = v.encode()
			require.NoError(t, err)
			require.NoError(t, os.WriteFile(file, text, 0o600))

			second := start(t, file)
			r.Data = []byte(c.after)
			for range 2 {
				_, err = second.Publish(t.Context(), r, "")
				require.NoError(t, err)
				require.ElementsMatch(t, c.left, nodes(r.Path))
			}
			require.NoError(t, second.Withdraw(t.Context(), r, ""))
			require.Len(t, nodes(r.Path), len(c.left)-1)
		})
	}

	t.Run("that cannot be deleted now", func(t *testing.T) {
		r := discovery.Registration{Path: "/undeletable", Prefix: "web-1_", Data: []byte(mine), Sequential: true, Ephemeral: true}
		first := start(t, filepath.Join(t.TempDir(), "session"))
		made, err := first.Publish(t.Context(), r, "")
		require.NoError(t, err)
		first.Leave()
		second := start(t, first.o.SessionFile)
		reg := second.registration(r)
		_, err = w.Create("/locked", nil, 0, zk.WorldACL(zk.PermWrite))
		require.NoError(t, err)
		reg.left = []leftover{{path: "/locked"}}
		_, err = second.Publish(t.Context(), r, "")
		require.ErrorIs(t, err, zk.ErrNoAuth)
		reg.left = nil
		again, err := second.Publish(t.Context(), r, "")
		require.NoError(t, err)
		require.Equal(t, made.Node, again.Node, "what was found before is not forgotten")
	})

	t.Run("of this process", func(t *testing.T) {
		s := start(t, "")
		for i, c := range []struct {
			before string
			owner  int64
			left   []string
		}{
			{mine, w.SessionID(), []string{mine}},
			{other, w.SessionID(), []string{mine, other}},
			{mine, w.SessionID() + 1, []string{mine, mine}}, // somebody else's
		} {
			r := discovery.Registration{Path: fmt.Sprintf("/expired-%d", i), Prefix: "web-1_", Data: []byte(mine), Sequential: true, Ephemeral: true}
			_, err := w.Create(r.Path, nil, 0, zk.WorldACL(zk.PermAll))
			require.NoError(t, err)
			old, err := w.Create(r.Path+"/web-1_", []byte(c.before), zk.FlagEphemeral|zk.FlagSequence, zk.WorldACL(zk.PermAll))
			require.NoError(t, err)
			reg := s.registration(r)
			reg.node, reg.session = old, c.owner // as if that session had been ours
			_, err = s.Publish(t.Context(), r, old)
			require.NoError(t, err)
			require.ElementsMatch(t, c.left, nodes(r.Path))
			require.NoError(t, s.Withdraw(t.Context(), r, ""))
			require.Len(t, nodes(r.Path), len(c.left)-1)
		}
	})
}
