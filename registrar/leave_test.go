package registrar

import (
	"context"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"testing/synctest"
	"time"

	"github.com/sirupsen/logrus"
	logtest "github.com/sirupsen/logrus/hooks/test"
	"github.com/stretchr/testify/require"
)

// polite is a service that says that it leaves, and drains.
func polite(o *Options) {
	o.Services[0].Render = rendered{"v1"}
	o.Services[0].Leave = Leave{Notice: 500 * time.Millisecond, Drain: 5 * time.Second}
}

const leavingNode = "/services/user-api/web-1_0001"

// politely plays until a polite service is registered.
func politely(t *testing.T, change func(*Options), script func(s *stage)) {
	play(t, func(o *Options) {
		polite(o)
		if change != nil {
			change(o)
		}
	}, func(s *stage) {
		s.wait(5 * time.Second)
		s.nodes(leavingNode + " v1")
		s.dir.requests()
		s.messages()
		script(s)
	})
}

// politeService is the service of politely, for reloads.
func (s *stage) politeService() Service {
	o := Options{Services: []Service{s.service()}}
	polite(&o)
	return o.Services[0]
}

func TestLeavesInOrder(t *testing.T) {
	politely(t, nil, func(s *stage) {
		s.cancel()
		s.wait(499 * time.Millisecond)
		s.nodes(leavingNode + " v1 leaving")
		require.True(t, s.Status()[0].Registered)
		require.True(t, s.Status()[0].Leaving)
		s.wait(time.Millisecond)
		s.nodes()
		require.Equal(t, []string{"set " + leavingNode + " v1 leaving", "withdraw /services/user-api/web-1_"}, s.dir.requests())
		require.Equal(t, time.Now().Add(5*time.Second), s.Status()[0].Draining)
		s.wait(5*time.Second - time.Millisecond)
		require.Empty(t, s.stopped, "the service is to stay up")
		s.wait(time.Millisecond)
		require.NoError(t, <-s.stopped)
		require.Zero(t, s.Status()[0].Draining)
		require.Equal(t, []string{
			"info service is marked as leaving node=" + leavingNode, "info service is withdrawn node=" + leavingNode, "info service drains",
		}, s.messages())
	})
}

// TestNoMark: what fails is withdrawn without a word, and so is what cannot be marked.
func TestNoMark(t *testing.T) {
	withdrawn := []string{"withdraw /services/user-api/web-1_"}
	t.Run("failed", func(t *testing.T) {
		politely(t, nil, func(s *stage) {
			s.check.set(errSick)
			s.wait(3 * time.Second)
			require.Equal(t, withdrawn, s.dir.requests())
			// The drain counts from there.
			s.wait(time.Second)
			require.LessOrEqual(t, s.stop(), 4*time.Second)
			require.Empty(t, s.dir.requests())
		})
	})
	t.Run("down for long", func(t *testing.T) {
		politely(t, nil, func(s *stage) {
			s.check.set(errSick)
			s.wait(time.Minute)
			require.Zero(t, s.stop())
		})
	})
	t.Run("never registered", func(t *testing.T) {
		play(t, polite, func(s *stage) {
			require.Zero(t, s.stop())
			require.Empty(t, s.dir.requests())
		})
	})
	t.Run("up, and not known to be registered", func(t *testing.T) {
		play(t, polite, func(s *stage) {
			refusals := make([]fault, 1000)
			for i := range refusals {
				refusals[i] = refused
			}
			s.dir.fail(refusals...)
			s.wait(5 * time.Second)
			require.Equal(t, Up, s.Status()[0].State)
			s.dir.fail()
			s.stop()
			require.Equal(t, withdrawn, s.dir.requests(), "a mark would be a registration")
		})
	})
	t.Run("nobody renders it", func(t *testing.T) {
		politely(t, func(o *Options) { o.Services[0].Render = nil }, func(s *stage) {
			require.Equal(t, 5*time.Second, s.stop())
			require.Equal(t, withdrawn, s.dir.requests())
		})
	})
	t.Run("no notice", func(t *testing.T) {
		politely(t, func(o *Options) { o.Services[0].Leave.Notice = 0 }, func(s *stage) {
			require.Equal(t, 5*time.Second, s.stop())
			require.Equal(t, withdrawn, s.dir.requests())
		})
	})
	t.Run("dead", func(t *testing.T) {
		politely(t, nil, func(s *stage) {
			s.Hasten()
			s.Hasten()
			require.Zero(t, s.stop())
			require.Equal(t, withdrawn, s.dir.requests())
			s.nodes()
		})
	})
	t.Run("dead while it leaves", func(t *testing.T) {
		for _, after := range []time.Duration{0, 100 * time.Millisecond, 2 * time.Second} {
			politely(t, nil, func(s *stage) {
				s.cancel()
				s.wait(after)
				began := time.Now()
				s.Hasten()
				require.NoError(t, <-s.stopped)
				require.Zero(t, time.Since(began))
				s.nodes()
			})
		}
	})
}

// TestNobodyWaitsForTheMark: a directory that does not answer, or refuses, gets a second for it.
func TestNobodyWaitsForTheMark(t *testing.T) {
	politely(t, func(o *Options) { o.Services[0].Leave.Drain = 0 }, func(s *stage) {
		s.dir.goAway()
		require.Equal(t, 500*time.Millisecond+closeTimeout, s.stop())
		require.Contains(t, s.messages(), "warning service was not withdrawn in time; its node goes with the session")
	})
	politely(t, nil, func(s *stage) {
		s.dir.goAway()
		require.Equal(t, 500*time.Millisecond+closeTimeout+5*time.Second, s.stop(), "who uses it learns of it later still")
	})
	politely(t, func(o *Options) { o.Services[0].Leave.Drain = 0 }, func(s *stage) {
		s.dir.goAway()
		s.cancel()
		s.wait(markLimit + 200*time.Millisecond)
		s.dir.comeBack()
		require.NoError(t, <-s.stopped)
		require.Equal(t, []string{"withdraw /services/user-api/web-1_"}, s.dir.requests())
	})
	politely(t, func(o *Options) { o.Services[0].Leave.Drain = 0 }, func(s *stage) {
		s.dir.fail(refused, lost, refused)
		require.Less(t, s.stop(), markLimit+500*time.Millisecond)
		s.nodes()
		require.Equal(t, "set "+leavingNode+" v1 leaving", s.dir.requests()[0])
	})
}

// TestLeaveGoesWithItsSession: a node that is gone before its time is not made again because it was marked.
func TestLeaveGoesWithItsSession(t *testing.T) {
	politely(t, nil, func(s *stage) {
		s.cancel()
		s.wait(100 * time.Millisecond)
		s.dir.expire()
		s.wait(300 * time.Millisecond)
		s.nodes()
		require.NoError(t, <-s.stopped)
		require.Equal(t, []string{"set " + leavingNode + " v1 leaving", "withdraw /services/user-api/web-1_"}, s.dir.requests())
	})
}

// TestDetachWhileLeaving: what has begun ends where it is.
func TestDetachWhileLeaving(t *testing.T) {
	for after, left := range map[time.Duration]int{100 * time.Millisecond: 1, time.Second: 0} {
		politely(t, nil, func(s *stage) {
			s.cancel()
			s.wait(after)
			began := time.Now()
			s.Detach()
			require.NoError(t, <-s.stopped)
			require.Zero(t, time.Since(began))
			s.wait(time.Minute)
			require.Len(t, s.dir.list(), left)
		})
	}
}

// TestLeavesAtTheSameTime: ten services take as long as one.
func TestLeavesAtTheSameTime(t *testing.T) {
	politely(t, nil, func(s *stage) {
		all := []Service{s.politeService()}
		for i := range 9 {
			sv := s.politeService()
			sv.Name = "other-" + strconv.Itoa(i)
			sv.Registration.Path = "/services/" + sv.Name
			all = append(all, sv)
		}
		require.NoError(t, s.Reload(all))
		s.wait(5 * time.Second)
		require.Len(t, s.dir.list(), 10)
		require.Equal(t, 5500*time.Millisecond, s.stop())
		s.nodes()
	})
}

func TestReloadAndLeaving(t *testing.T) {
	t.Run("removed: it leaves as at the end", func(t *testing.T) {
		politely(t, nil, func(s *stage) {
			require.NoError(t, s.Reload(nil))
			s.wait(time.Second)
			s.nodes()
			require.Equal(t, []string{"set " + leavingNode + " v1 leaving", "withdraw /services/user-api/web-1_"}, s.dir.requests())
			require.NotZero(t, s.Status()[0].Draining)
			s.wait(5 * time.Second)
			require.Empty(t, s.Status())
			require.Zero(t, s.stop())
		})
	})
	t.Run("removed, and the process ends", func(t *testing.T) {
		politely(t, nil, func(s *stage) {
			require.NoError(t, s.Reload(nil))
			s.wait(2 * time.Second)
			require.Equal(t, 3500*time.Millisecond, s.stop(), "the rest of its drain")
		})
	})
	t.Run("removed and back while it is marked", func(t *testing.T) {
		politely(t, nil, func(s *stage) {
			require.NoError(t, s.Reload(nil))
			s.wait(100 * time.Millisecond)
			s.nodes(leavingNode + " v1 leaving")
			require.NoError(t, s.Reload([]Service{s.politeService()}))
			s.wait(2 * time.Second)
			require.False(t, s.Status()[0].Leaving)
			list := s.dir.list() // the same node if its checks, which had to decide, were quick
			require.Len(t, list, 1)
			require.True(t, strings.HasSuffix(list[0], " v1"), list)
		})
	})
	t.Run("removed and back while it drains", func(t *testing.T) {
		politely(t, nil, func(s *stage) {
			require.NoError(t, s.Reload(nil))
			s.wait(2 * time.Second)
			require.NoError(t, s.Reload([]Service{s.politeService()}))
			s.wait(time.Second)
			s.nodes("/services/user-api/web-1_0002 v1")
			s.wait(time.Minute)
			require.False(t, s.Status()[0].Leaving)
			require.Zero(t, s.Status()[0].Draining)
			require.Equal(t, 5500*time.Millisecond, s.stop())
		})
	})
	t.Run("other keys of leaving are in force without a request", func(t *testing.T) {
		politely(t, nil, func(s *stage) {
			sv := s.politeService()
			sv.Leave, sv.SlowStart = Leave{Notice: time.Second, Drain: 9 * time.Second, OnStop: Hook{Command: []string{"true"}}}, time.Minute
			runs := s.check.count()
			require.NoError(t, s.Reload([]Service{sv}))
			s.wait(0)
			require.Empty(t, s.dir.requests())
			require.Empty(t, s.messages())
			require.Equal(t, runs, s.check.count(), "the checks are not made anew")
			sv.Leave.OnStop = Hook{}
			require.NoError(t, s.Reload([]Service{sv}))
			require.Equal(t, 10*time.Second, s.stop())
		})
	})
	t.Run("other keys of leaving count while other checks decide", func(t *testing.T) {
		politely(t, nil, func(s *stage) {
			sv := s.politeService()
			sv.Checks = []Check{{Name: "strict", HealthCheck: &switchable{}, Rise: 1000}}
			sv.Leave = Leave{}
			require.NoError(t, s.Reload([]Service{sv}))
			require.Zero(t, s.stop())
		})
	})
	t.Run("another way to render", func(t *testing.T) {
		politely(t, nil, func(s *stage) {
			sv := s.politeService()
			sv.Render = rendered{"v2"} // the usual condition is not rendered
			require.NoError(t, s.Reload([]Service{sv}))
			s.wait(0)
			require.Empty(t, s.dir.requests())
			s.cancel()
			synctest.Wait()
			s.nodes(leavingNode + " v2 leaving")
		})
	})
	t.Run("moved: the old one is marked, and nothing is run", func(t *testing.T) {
		ran := filepath.Join(t.TempDir(), "ran")
		politely(t, func(o *Options) { o.Services[0].Leave.OnStop = Hook{Command: []string{"touch", ran}} }, func(s *stage) {
			sv := s.politeService()
			sv.Registration.Path = "/services/users"
			s.dir.watchLeast()
			require.NoError(t, s.Reload([]Service{sv}))
			s.wait(10 * time.Second)
			require.Contains(t, s.dir.requests(), "set "+leavingNode+" v1 leaving")
			s.nodes("/services/users/web-1_0002 v1")
			require.Len(t, s.Status(), 1)
			require.Equal(t, 1, s.dir.fewest())
			require.NoFileExists(t, ran)
		})
	})
}

// hooked runs a registrar with one service and a command, in real time, since the command is a process.
type hooked struct {
	*Registrar
	t       *testing.T
	dir     *fakeDirectory
	log     *logtest.Hook
	service Service
	cancel  context.CancelFunc
	stopped chan error
}

func newHooked(t *testing.T, command ...string) *hooked {
	log, hook := logtest.NewNullLogger()
	h := &hooked{t: t, dir: &fakeDirectory{}, log: hook, stopped: make(chan error, 1)}
	h.service = (&stage{dir: h.dir}).service()
	h.service.CheckMocked = true
	h.service.Leave.OnStop = Hook{Command: command, Host: "10.0.0.5", Port: 8080}
	h.Registrar = New(Options{Log: log, Services: []Service{h.service}})
	ctx, cancel := context.WithCancel(t.Context())
	h.cancel = cancel
	go func() { h.stopped <- h.Run(ctx) }()
	h.await("it is registered", func() bool { st := h.Status(); return len(st) == 1 && st[0].Registered })
	return h
}

func (h *hooked) await(what string, is func() bool) {
	h.t.Helper()
	require.Eventually(h.t, is, 20*time.Second, time.Millisecond, what)
}

// said are the log's lines that begin with the words, each with what the command said or why it failed.
func (h *hooked) said(words string) []string {
	var all []string
	for _, e := range h.log.AllEntries() {
		if strings.HasPrefix(e.Message, words) {
			line := e.Message
			for _, key := range []string{"output", logrus.ErrorKey, "err"} {
				if v, ok := e.Data[key]; ok {
					if err, ok := v.(error); ok {
						v = err.Error()
					}
					line += ": " + v.(string)
				}
			}
			all = append(all, line)
		}
	}
	return all
}

func TestOnStop(t *testing.T) {
	t.Run("it knows what has gone, and is listened to", func(t *testing.T) {
		h := newHooked(t, "sh", "-c", `echo "$MYELIN_SERVICE $MYELIN_HOST:$MYELIN_PORT"; echo "$1" >&2; printf "the end"`, "sh", "an argument")
		h.cancel()
		require.NoError(t, <-h.stopped)
		require.Empty(t, h.dir.list())
		require.Equal(t, []string{"on_stop command says: user-api 10.0.0.5:8080", "on_stop command says: an argument", "on_stop command says: the end", "on_stop command ended"}, h.said("on_stop"))
	})
	t.Run("it comes after the withdrawal", func(t *testing.T) {
		path := filepath.Join(t.TempDir(), "fifo")
		require.NoError(t, syscall.Mkfifo(path, 0o600))
		h := newHooked(t, "sh", "-c", `read line <"$0"; echo "$line"`, path)
		h.cancel()
		h.await("it is withdrawn", func() bool { return len(h.dir.list()) == 0 })
		require.Empty(t, h.stopped, "the command has not ended")
		require.NoError(t, os.WriteFile(path, []byte("go on\n"), 0))
		require.NoError(t, <-h.stopped)
		require.Equal(t, []string{"on_stop command says: go on"}, h.said("on_stop command says"))
	})
	t.Run("it fails", func(t *testing.T) {
		h := newHooked(t, "sh", "-c", "exit 7")
		h.cancel()
		require.NoError(t, <-h.stopped)
		require.Equal(t, []string{`on_stop command failed: run on_stop command "sh": exit status 7`}, h.said("on_stop"))
	})
	t.Run("it is not there", func(t *testing.T) {
		h := newHooked(t, "/no/such/program")
		h.cancel()
		require.NoError(t, <-h.stopped)
		require.Equal(t, []string{`on_stop command failed: run on_stop command "/no/such/program": fork/exec /no/such/program: no such file or directory`}, h.said("on_stop"))
	})
	t.Run("a service that is removed", func(t *testing.T) {
		h := newHooked(t, "true")
		require.NoError(t, h.Reload(nil))
		h.await("it is gone", func() bool { return len(h.Status()) == 0 })
		require.Equal(t, []string{"on_stop command ended"}, h.said("on_stop"))
		h.cancel()
		require.NoError(t, <-h.stopped)
	})
	t.Run("a service that comes back while it runs, and goes again", func(t *testing.T) {
		dir := t.TempDir()
		path, count := filepath.Join(dir, "fifo"), filepath.Join(dir, "count")
		require.NoError(t, syscall.Mkfifo(path, 0o600))
		h := newHooked(t, "sh", "-c", `echo >>"$1"; read line <"$0"`, path, count)
		require.NoError(t, h.Reload(nil))
		h.await("it runs", func() bool { _, err := os.Stat(count); return err == nil })
		require.NoError(t, h.Reload([]Service{h.service}))
		h.await("it is back", func() bool { return len(h.dir.list()) == 1 })
		h.cancel()
		h.await("it is gone", func() bool { return len(h.dir.list()) == 0 })
		runs := func() string {
			text, err := os.ReadFile(count)
			require.NoError(t, err)
			return string(text)
		}
		require.Equal(t, "\n", runs(), "one at a time")
		require.NoError(t, os.WriteFile(path, []byte("\n"), 0))
		h.await("it runs again", func() bool { return runs() == "\n\n" })
		require.NoError(t, os.WriteFile(path, []byte("\n"), 0))
		require.NoError(t, <-h.stopped)
		require.Equal(t, "\n\n", runs(), "once for each time that it left")
	})
	t.Run("a handover kills it, and all that it has started", func(t *testing.T) {
		path := filepath.Join(t.TempDir(), "pids")
		h := newHooked(t, "sh", "-c", `sleep 1000 & echo $! >"$0.tmp"; mv "$0.tmp" "$0"; wait`, path)
		h.cancel()
		h.await("it runs", func() bool { _, err := os.Stat(path); return err == nil })
		h.Detach()
		require.NoError(t, <-h.stopped)
		text, err := os.ReadFile(path)
		require.NoError(t, err)
		pid, err := strconv.Atoi(strings.TrimSpace(string(text)))
		require.NoError(t, err)
		h.await("its child is dead", func() bool {
			stat, err := os.ReadFile("/proc/" + strconv.Itoa(pid) + "/stat") // a zombie is dead, whoever is to bury it
			return err != nil || strings.Contains(string(stat), ") Z ")
		})
	})
}

// TestOnStopEndsInTime: a command that does not end is killed, and so is what it has started.
func TestOnStopEndsInTime(t *testing.T) {
	log, _ := logtest.NewNullLogger()
	ctx, cancel := context.WithCancelCause(t.Context())
	began := make(chan struct{})
	says := &entryHook{on: func(e *logrus.Entry) { close(began) }}
	log.AddHook(says)
	go func() {
		<-began
		cancel(context.DeadlineExceeded)
	}()
	err := Hook{Command: []string{"sh", "-c", "echo here; sleep 1000 & wait"}}.run(ctx, "user-api", log)
	require.ErrorIs(t, err, context.DeadlineExceeded)
}

type entryHook struct{ on func(*logrus.Entry) }

func (h *entryHook) Levels() []logrus.Level { return logrus.AllLevels }

func (h *entryHook) Fire(e *logrus.Entry) error {
	h.on(e)
	return nil
}

// TestLines: what a command says is bounded.
func TestLines(t *testing.T) {
	log, hook := logtest.NewNullLogger()
	l := &lines{log: log}
	for _, part := range []string{"one\ntw", "o\n\n  \n", strings.Repeat("x", 3*hookLine), strings.Repeat("y", hookLine) + "\nthree"} {
		n, err := l.Write([]byte(part))
		require.NoError(t, err)
		require.Len(t, part, n)
	}
	l.end()
	l.end()
	var got []string
	for _, e := range hook.AllEntries() {
		got = append(got, e.Data["output"].(string))
	}
	require.Equal(t, []string{"one", "two", strings.Repeat("x", hookLine), "three"}, got)

	hook.Reset()
	_, err := l.Write([]byte(strings.Repeat("again\n", 3*hookLines)))
	require.NoError(t, err)
	require.Len(t, hook.AllEntries(), hookLines+1-4)
	require.Equal(t, "(more is not logged)", hook.LastEntry().Data["output"])
}
