package haproxy

import (
	"bufio"
	"context"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/sirupsen/logrus"
	logtest "github.com/sirupsen/logrus/hooks/test"
	"github.com/stretchr/testify/require"

	"github.com/myelin-sd/myelin/haproxy/haproxytest"
)

// operate runs an Operated for the HAProxy of a test.
func operate(t *testing.T, h *haproxytest.HAProxy, socket string) (*Operated, *logtest.Hook) {
	t.Helper()
	log, hook := logtest.NewNullLogger()
	config := ""
	if h != nil {
		config = h.Files[len(h.Files)-1]
	}
	binary, err := haproxytest.Binary()
	require.NoError(t, err)
	o := NewOperated(OperatedOptions{MasterSocket: socket, ConfigPath: config, Explain: CheckWith(binary, patience), Log: log})
	ctx, cancel := context.WithCancel(context.Background())
	var running sync.WaitGroup
	running.Go(func() { o.Run(ctx) })
	t.Cleanup(func() { cancel(); running.Wait() })
	return o, hook
}

// tells waits until an Operated tells of something.
func (h *Operated) tells(t *testing.T) {
	t.Helper()
	select {
	case <-h.Changed():
	case <-time.After(patience):
		require.FailNow(t, "nothing is told")
	}
}

// afterwards takes what is told until condition holds: what is not told is not looked for.
func (h *Operated) afterwards(t *testing.T, condition func() bool) {
	t.Helper()
	for !condition() {
		h.tells(t)
	}
}

func TestOperatedTellsWhatOthersDo(t *testing.T) {
	hap := haproxytest.New(t, "backend b\n")
	o, _ := operate(t, hap, hap.MasterSocket)
	o.tells(t) // it is there
	for range 3 {
		old, err := hap.WorkerPid()
		require.NoError(t, err)
		require.NoError(t, hap.SignalReload())
		o.afterwards(t, func() bool {
			m, err := askMaster(t.Context(), hap.MasterSocket)
			return err == nil && m.worker != 0 && m.worker != old
		})
	}
	require.NoError(t, hap.Kill())
	o.tells(t)
	require.NoError(t, hap.Restart())
	o.afterwards(t, func() bool { _, err := hap.WorkerPid(); return err == nil })
}

func TestOperatedReload(t *testing.T) {
	hap := haproxytest.New(t, "backend b\n")
	o, _ := operate(t, hap, hap.MasterSocket)
	worker, err := hap.WorkerPid()
	require.NoError(t, err)
	for range 3 {
		require.NoError(t, o.Reload(t.Context()))
		now, err := hap.WorkerPid()
		require.NoError(t, err)
		for now == worker && !haproxytest.AtLeast(t, 2, 4) { // of 2.2 the old one may take another connection
			now, err = hap.WorkerPid()
			require.NoError(t, err)
		}
		require.NotEqual(t, worker, now, "the new worker serves when Reload returns")
		worker = now
	}

	require.NoError(t, hap.Configure("backend b\n\tfrobnicate\n"))
	err = o.Reload(t.Context())
	require.ErrorContains(t, err, "reload HAProxy: it failed and the old worker stays")
	require.ErrorContains(t, err, "unknown keyword 'frobnicate'", "HAProxy's own words")
	now, err := hap.WorkerPid()
	require.NoError(t, err)
	require.Equal(t, worker, now)

	require.NoError(t, hap.Configure("backend b\nbackend c\n"))
	require.NoError(t, o.Reload(t.Context()))
	require.NoError(t, hap.Stop())
	require.ErrorContains(t, o.Reload(t.Context()), "reload HAProxy: ask its master: ")
}

// TestOperatedReloadAnswers: from 2.7 on the master answers a reload when it is done, with what the new worker said.
func TestOperatedReloadAnswers(t *testing.T) {
	const proc = "#<PID>          <type>          <reloads>       <uptime>        <version>\n" +
		"100             master          0 [failed: 0]   0d00h00m01s     3.0.5\n# workers\n101             worker          0               0d00h00m01s     3.0.5\n"
	for answer, want := range map[string]string{
		"Success=1\n--\n[NOTICE] (102) : New worker forked\n": "",
		"Success=0\n--\n[NOTICE]   (102) : haproxy version is 3.0.5\n[ALERT]    (102) : config : parsing [/etc/haproxy/haproxy.cfg:3] : unknown keyword 'frobnicate'\n": "reload HAProxy: it failed and the old worker stays: config : parsing [/etc/haproxy/haproxy.cfg:3] : unknown keyword 'frobnicate'",
		"Permission denied\n\n": `reload HAProxy: the master answered "Permission denied"`,
	} {
		path := filepath.Join(haproxytest.TempDir(t), "master.sock")
		l, err := net.Listen("unix", path)
		require.NoError(t, err)
		var serving sync.WaitGroup
		serving.Go(func() {
			for {
				conn, err := l.Accept()
				if err != nil {
					return
				}
				line, _ := bufio.NewReader(conn).ReadString('\n')
				switch strings.TrimSpace(line) {
				case "show proc":
					fmt.Fprint(conn, proc)
				case "reload":
					fmt.Fprint(conn, answer)
				}
				conn.Close()
			}
		})
		err = NewOperated(OperatedOptions{MasterSocket: path, Log: logrus.New()}).Reload(t.Context())
		l.Close()
		serving.Wait()
		if want == "" {
			require.NoError(t, err)
		} else {
			require.EqualError(t, err, want)
		}
	}
}

// TestOperatedWithoutMaster: a socket that nobody answers on is waited for.
func TestOperatedWithoutMaster(t *testing.T) {
	hap := haproxytest.New(t, "backend b\n")
	link := filepath.Join(haproxytest.TempDir(t), "later.sock")
	o, _ := operate(t, hap, link)
	require.ErrorContains(t, o.Reload(t.Context()), "-W -S "+link)
	select {
	case <-o.Changed():
		require.FailNow(t, "told of a master that is not there")
	default:
	}
	require.NoError(t, os.Symlink(hap.MasterSocket, link))
	o.tells(t)
}
