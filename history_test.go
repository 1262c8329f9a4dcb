package main_test

import (
	"bufio"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/myelin-sd/myelin/journal"
)

// events are what myelin history prints.
func (w *world) events(args ...string) (events []journal.Event) {
	w.t.Helper()
	out, code := w.run(append([]string{"history", "-c", w.agentFile, "-o", "json"}, args...)...)
	require.Zero(w.t, code, out)
	require.NoError(w.t, json.Unmarshal([]byte(out), &events), out)
	return events
}

// tells waits until the history has these events in this order, others between them: each is a part of a sentence, with
// a part of its cause behind a "|".
func (w *world) tells(story ...string) {
	w.t.Helper()
	w.eventually("the history tells the story", func() error {
		events := w.events()
		for _, part := range story {
			what, cause, _ := strings.Cut(part, "|")
			found := false
			for len(events) > 0 && !found {
				found = strings.Contains(events[0].Sentence(), what) && strings.Contains(events[0].Cause, cause)
				events = events[1:]
			}
			if !found {
				out, _ := w.run("history", "-c", w.agentFile, "-o", "wide")
				return fmt.Errorf("%q is missing, or too early:\n%s", part, out)
			}
		}
		return nil
	})
}

// TestHistory: ZooKeeper loses all that it knew, and comes back empty. While that happens it is told to who listens, and
// afterwards, when the agent was killed and nothing runs, the history tells the story in order.
func TestHistory(t *testing.T) {
	w := guardedWorld(t)
	f := &fleetOf{w: w, port: backendServer(t, "fleet"), nodes: map[string]string{}}
	f.join(1, 6)
	w.startAgent()
	w.converges(namesOf(1, 6)...)
	heard := w.listen("/api/v1/events?since=1h&kind=guard&kind=process")
	require.Contains(t, (<-heard).What, "agent ")

	f.leave(6, 6)
	w.converges(namesOf(1, 5)...)
	require.NoError(t, w.zk.Stop())
	w.agentLosesZooKeeper()
	require.NoError(t, w.zk.Wipe())
	require.NoError(t, w.zk.Start())
	w.holds(5)
	require.Contains(t, (<-heard).What, "let go")
	held := <-heard
	require.Equal(t, journal.KindGuard, held.Kind)
	require.Equal(t, 5, held.Count)
	require.Equal(t, "user-api", held.Service)
	w.tells("held")
	w.agent.Kill()
	for range heard { // it ends with the agent
	}

	story := []string{
		"starts with 1 services of " + w.agentFile,
		"connected to ZooKeeper",
		"heard of for the first time; it lists 6|the first reading",
		"HAProxy was told in 12 commands: added 6 (i1_",
		"marked as leaving|a watch told",
		"let go|gone on purpose",
		"out of rotation i6_",
		"connection to ZooKeeper",
		"is back after",
		"the path is gone|found when the connection came back",
		"5 held",
	}
	w.tells(story...)
	out, code := w.run("history", "user-api", "-c", w.agentFile)
	require.Zero(t, code)
	require.Contains(t, out, "nobody records now")
	require.Contains(t, out, "the path does not exist")
	out, code = w.run("history", "user-apu", "-c", w.agentFile)
	require.Equal(t, 1, code)
	require.Contains(t, out, `did you mean user-api?`)
	out, code = w.run("history", "--state-dir", filepath.Join(w.dir, "none"))
	require.Equal(t, 1, code)
	require.Contains(t, out, "there is no history in")
	require.Len(t, w.events("--kind", "process"), 1)
	require.Empty(t, w.events("--since", "0s"))
	require.Len(t, w.events("-n", "2"), 2)
}

// listen reads what the agent tells, until it ends.
func (w *world) listen(path string) <-chan journal.Event {
	w.t.Helper()
	ctx, cancel := context.WithCancel(context.Background())
	w.t.Cleanup(cancel)
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, fmt.Sprintf("http://127.0.0.1:%d%s", w.adminPort, path), nil)
	require.NoError(w.t, err)
	resp, err := http.DefaultClient.Do(req)
	require.NoError(w.t, err)
	require.Equal(w.t, http.StatusOK, resp.StatusCode)
	require.Equal(w.t, "text/event-stream", resp.Header.Get("Content-Type"))
	events := make(chan journal.Event, 1000)
	go func() {
		defer close(events)
		defer resp.Body.Close()
		lines := bufio.NewScanner(resp.Body)
		for lines.Scan() {
			var e journal.Event
			if text, ok := strings.CutPrefix(lines.Text(), "data: "); ok && json.Unmarshal([]byte(text), &e) == nil {
				events <- e
			}
		}
	}()
	return events
}

// TestHistoryRoles: an agent and a registrar of one host share a folder, a re-read that fails is told, and a stop in
// order is.
func TestHistoryRoles(t *testing.T) {
	w := guardedWorld(t)
	i := w.startInstance("a", w.zk.Addr())
	w.startAgent()
	w.converges("a")
	good, err := os.ReadFile(w.agentFile)
	require.NoError(t, err)
	w.write(w.agentFile, "wrong = [")
	require.NoError(t, w.agent.Signal(syscall.SIGHUP))
	w.eventually("the bad file is told", func() error {
		out, _ := w.run("history", "--state-dir", w.dir, "--kind", "process")
		if !strings.Contains(out, "are refused; the old configuration stays in force") {
			return errors.New(out)
		}
		return nil
	})
	w.write(w.agentFile, string(good))
	require.NoError(t, i.registrar.Stop())
	require.NoError(t, w.agent.Stop())
	w.tells("agent stopped|stopped by signal: terminated")
	out, code := w.run("history", "-c", i.file)
	require.Zero(t, code, out)
	for _, part := range []string{"registrar", "service is up", "service is registered", "service is marked as leaving", "service is withdrawn", "the registrar stops", "registrar stopped"} {
		require.Contains(t, out, part)
	}
}
