package cli

import (
	"bytes"
	"context"
	"encoding/json"
	"net/http"
	"net/http/httptest"
	"os"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/myelin-sd/myelin/agent"
	"github.com/myelin-sd/myelin/discovery"
)

// drained is a server that is as an override wants it.
func drained(sessions int) agent.ServerStatus {
	return agent.ServerStatus{Socket: "/run/h.sock", Server: "web-1", Address: "10.0.0.1:80", Wanted: "drain", Admin: "drain", Weight: 1, WeightWanted: 1,
		Sessions: sessions, Override: "web,10.0.0.1,80", OverrideRevision: 3}
}

func TestLacks(t *testing.T) {
	made := time.Date(2026, 3, 1, 12, 0, 0, 0, time.UTC)
	drain := awaited{"web", endpoint(t, "10.0.0.1:80"), "web,10.0.0.1,80", 3, true, made}
	other := drain
	other.ends = false
	none := awaited{"web", endpoint(t, "10.0.0.1:80"), "", 0, false, time.Time{}}
	with := func(change func(*agent.ServerStatus)) agent.ServerStatus {
		s := drained(0)
		change(&s)
		return s
	}
	for _, tc := range []struct {
		want    string
		awaited awaited
		server  agent.ServerStatus
	}{
		{"", drain, drained(0)},
		{"1 session", drain, drained(1)},
		{"7 sessions", drain, drained(7)},
		{"", other, drained(7)},
		{"HAProxy does not tell its sessions", drain, drained(-1)},
		{"", drain, with(func(s *agent.ServerStatus) { s.Admin, s.Wanted, s.Override, s.Sessions = "absent", "absent", "", -1 })},
		{"the agent has heard nothing of the service yet", drain, with(func(s *agent.ServerStatus) { s.Admin, s.Wanted, s.Override, s.Sessions = "absent", "unknown", "", -1 })},
		{"the agent leaves it alone: written by hand", drain, with(func(s *agent.ServerStatus) { s.Wanted, s.Override, s.Foreign = "unknown", "", "written by hand" })},
		{"the agent has not heard of it yet", drain, with(func(s *agent.ServerStatus) {
			before := made.Add(-time.Second)
			s.OverrideRevision, s.OverrideCreated = 5, &before
		})},
		{"", drain, with(func(s *agent.ServerStatus) { s.OverrideCreated = &made })},
		{"the agent has not heard of it yet", drain, with(func(s *agent.ServerStatus) { s.Admin, s.Wanted, s.Override = "absent", "ready", "" })},
		{"absent yet, and not drain", drain, with(func(s *agent.ServerStatus) { s.Admin = "absent" })},
		{"HAProxy does not tell: refused", drain, with(func(s *agent.ServerStatus) { s.Admin, s.Error = "unknown", "refused" })},
		{"HAProxy does not tell", drain, with(func(s *agent.ServerStatus) { s.Admin = "unknown" })},
		{"the agent has not heard of it yet", drain, with(func(s *agent.ServerStatus) { s.Override = "" })},
		{"the agent has not heard of it yet", drain, with(func(s *agent.ServerStatus) { s.OverrideRevision = 2 })},
		{"", drain, with(func(s *agent.ServerStatus) { s.OverrideRevision = 4 })},
		{"ready yet, and not drain", drain, with(func(s *agent.ServerStatus) { s.Admin = "ready" })},
		{"weight 10 yet, and not 5", other, with(func(s *agent.ServerStatus) { s.Admin, s.Wanted, s.Weight, s.WeightWanted = "ready", "ready", 10, 5 })},
		{"", other, with(func(s *agent.ServerStatus) { s.Admin, s.Wanted, s.Weight, s.WeightWanted = "ready", "ready", 10, -1 })},
		{"the agent has not heard of its end yet", none, drained(0)},
		{"drain yet, and not ready", none, with(func(s *agent.ServerStatus) { s.Override, s.Wanted = "", "ready" })},
		{"", none, with(func(s *agent.ServerStatus) { s.Override, s.Wanted, s.Admin = "", "ready", "ready" })},
	} {
		require.Equal(t, tc.want, tc.awaited.lacks(tc.server), "%+v", tc.server)
	}
}

func endpoint(t *testing.T, text string) discovery.Endpoint {
	t.Helper()
	host, port, err := parsePlace(text)
	require.NoError(t, err)
	e, err := discovery.ParseEndpoint(host, int(port))
	require.NoError(t, err)
	return e
}

// fakeAgent answers one question after the other with what it is given; the last answer stays.
type fakeAgent struct {
	address string

	mu      sync.Mutex
	answers [][]agent.ServerStatus
	asked   []string
}

func newFakeAgent(t *testing.T, answers ...[]agent.ServerStatus) *fakeAgent {
	f := &fakeAgent{answers: answers}
	s := httptest.NewServer(http.HandlerFunc(f.answer))
	t.Cleanup(s.Close)
	f.address = strings.TrimPrefix(s.URL, "http://")
	return f
}

func (f *fakeAgent) answer(w http.ResponseWriter, r *http.Request) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.asked = append(f.asked, r.URL.RequestURI())
	servers := f.answers[0]
	if len(f.answers) > 1 {
		f.answers = f.answers[1:]
	}
	if servers == nil {
		w.WriteHeader(http.StatusNotFound)
		w.Write([]byte(`{"error": "no such service"}`))
		return
	}
	json.NewEncoder(w).Encode(servers)
}

func (f *fakeAgent) questions() []string {
	f.mu.Lock()
	defer f.mu.Unlock()
	return append([]string{}, f.asked...)
}

func awaiting(t *testing.T, ctx context.Context, all []awaited, agents ...agentAddress) (*outcome, string) {
	t.Helper()
	var errs bytes.Buffer
	out := (&app{errs: &errs}).await(ctx, all, agents)
	return out, errs.String()
}

func exitCode(err error) int { return (&app{errs: &bytes.Buffer{}}).exit(err) }

// refused is an address that nobody listens at.
func refused(t *testing.T) string {
	t.Helper()
	s := httptest.NewServer(http.NotFoundHandler())
	defer s.Close()
	return strings.TrimPrefix(s.URL, "http://")
}

// TestAwait: it returns when all agents have applied it and the last session has ended, and not before.
func TestAwait(t *testing.T) {
	all := []awaited{{"web", endpoint(t, "10.0.0.1:80"), "web,10.0.0.1,80", 3, true, time.Time{}}}
	slow := newFakeAgent(t, []agent.ServerStatus{{Admin: "ready", Wanted: "ready"}}, []agent.ServerStatus{drained(2), drained(0)}, []agent.ServerStatus{drained(0), drained(0)})
	other := newFakeAgent(t, []agent.ServerStatus{drained(0)})
	without := newFakeAgent(t, nil)
	ctx, cancel := context.WithTimeout(context.Background(), 30*time.Second)
	defer cancel()
	out, _ := awaiting(t, ctx, all, agentAddress{slow.address, false}, agentAddress{other.address, false}, agentAddress{without.address, false}, agentAddress{refused(t), true})
	require.NoError(t, out.err)
	require.Equal(t, "confirmed by 3 agents for 3 servers", out.confirmed())
	require.Equal(t, &outcomeInfo{true, 3, 3, []string{}}, out.info())
	require.Equal(t, "/api/v1/services/web/servers?instance=10.0.0.1%3A80", slow.questions()[0])
	require.GreaterOrEqual(t, len(slow.questions()), 3)
}

// TestAwaitTogether: many instances are asked for with one question, and one that HAProxy has at another address alone.
func TestAwaitTogether(t *testing.T) {
	var all []awaited
	var servers []agent.ServerStatus
	for _, host := range strings.Fields("10.0.0.1 10.0.0.2 10.0.0.3 10.0.0.4 10.0.0.5 10.0.0.6 10.0.0.7 10.0.0.8 web.example.com") {
		all = append(all, awaited{"web", endpoint(t, host+":80"), "web,*", 0, true, time.Time{}})
		s := drained(0)
		s.Address, s.Override = host+":80", "web,*"
		servers = append(servers, s)
	}
	servers[8].Address = "10.0.0.9:80"
	f := newFakeAgent(t, servers, servers[8:])
	ctx, cancel := context.WithTimeout(context.Background(), 30*time.Second)
	defer cancel()
	out, _ := awaiting(t, ctx, all, agentAddress{f.address, false})
	require.NoError(t, out.err)
	require.Equal(t, 9, out.servers)
	require.Equal(t, []string{"/api/v1/services/web/servers", "/api/v1/services/web/servers?instance=web.example.com%3A80"}, f.questions())
}

// TestAwaitUnconfirmed: what is missing is said, with an exit code of its own.
func TestAwaitUnconfirmed(t *testing.T) {
	all := []awaited{{"web", endpoint(t, "10.0.0.1:80"), "web,10.0.0.1,80", 3, true, time.Time{}}}
	short, cancel := context.WithTimeoutCause(context.Background(), 700*time.Millisecond, &overtime{700 * time.Millisecond})
	defer cancel()
	busy := newFakeAgent(t, []agent.ServerStatus{drained(2)})
	out, _ := awaiting(t, short, all, agentAddress{busy.address, false})
	require.Equal(t, exitUnconfirmed, exitCode(out.err))
	require.EqualError(t, out.err, "it is stored, but not done within 700ms: web 10.0.0.1:80: 2 sessions (agent "+busy.address+", /run/h.sock)")
	require.Equal(t, &outcomeInfo{false, 1, 0, []string{"web 10.0.0.1:80: 2 sessions (agent " + busy.address + ", /run/h.sock)"}}, out.info())

	long, cancel := context.WithTimeout(context.Background(), 30*time.Second)
	defer cancel()
	gone := refused(t)
	done := newFakeAgent(t, []agent.ServerStatus{drained(0)})
	out, _ = awaiting(t, long, all, agentAddress{done.address, false}, agentAddress{gone, false})
	require.Equal(t, exitUnconfirmed, exitCode(out.err))
	require.ErrorContains(t, out.err, "it is stored, but not confirmed: agent "+gone+" cannot be asked: ")
	require.ErrorContains(t, out.err, "refused")

	out, _ = awaiting(t, long, all, agentAddress{refused(t), true})
	require.Equal(t, exitUnconfirmed, exitCode(out.err))
	require.ErrorContains(t, out.err, "there is no agent that could be asked")

	silent := make(chan struct{})
	hung := httptest.NewServer(http.HandlerFunc(func(http.ResponseWriter, *http.Request) { <-silent }))
	defer hung.Close()
	defer close(silent)
	brief, cancel := context.WithTimeoutCause(context.Background(), 300*time.Millisecond, &overtime{300 * time.Millisecond})
	defer cancel()
	out, _ = awaiting(t, brief, all, agentAddress{strings.TrimPrefix(hung.URL, "http://"), false})
	require.Equal(t, exitUnconfirmed, exitCode(out.err))
	require.ErrorContains(t, out.err, strings.TrimPrefix(hung.URL, "http://")+" cannot be asked", "who it was that did not answer is said, though time was over in the first round")

	absent := newFakeAgent(t, []agent.ServerStatus{{Admin: "absent", Wanted: "absent"}})
	out, _ = awaiting(t, long, all, agentAddress{absent.address, false})
	require.NoError(t, out.err)
	require.Equal(t, "confirmed by 1 agent for 0 servers", out.confirmed(), "it has none")

	old := httptest.NewServer(http.NotFoundHandler())
	defer old.Close()
	out, _ = awaiting(t, long, all, agentAddress{strings.TrimPrefix(old.URL, "http://"), false})
	require.Equal(t, exitUnconfirmed, exitCode(out.err))
	require.ErrorContains(t, out.err, "404 Not Found; is it a myelin agent or registrar of this version?")
}

// TestAwaitStopped: a signal ends the waiting, not the override.
func TestAwaitStopped(t *testing.T) {
	all := []awaited{{"web", endpoint(t, "10.0.0.1:80"), "web,10.0.0.1,80", 3, true, time.Time{}}}
	f := newFakeAgent(t, []agent.ServerStatus{drained(2)})
	ctx, cancel := context.WithCancelCause(context.Background())
	f.mu.Lock()
	go func() {
		defer f.mu.Unlock()
		cancel(stopSignal{os.Signal(syscall.SIGINT)})
	}()
	out, _ := awaiting(t, ctx, all, agentAddress{f.address, false})
	require.Equal(t, 130, exitCode(out.err))
	require.EqualError(t, out.err, "stopped waiting; it is stored and stays: no agent has told yet", "a question that was cut off tells nothing of the agent")
}

// TestTeller: where nobody sees a line that is written over there is a line now and then.
func TestTeller(t *testing.T) {
	var errs bytes.Buffer
	tell := (&app{errs: &errs}).teller()
	o := &outcome{servers: 2, missing: []string{"web 10.0.0.1:80: 2 sessions"}}
	tell.say(o)
	require.Empty(t, errs.String(), "not at once")
	tell.next = time.Now()
	tell.say(o)
	tell.say(o)
	require.Equal(t, "waiting: 2 servers done; web 10.0.0.1:80: 2 sessions\n", errs.String())
}

// TestPages: http_proxy in an operator's shell is for the world outside; agents on other hosts are asked straight.
func TestPages(t *testing.T) {
	require.Nil(t, pages().Transport.(*http.Transport).Proxy)
}
