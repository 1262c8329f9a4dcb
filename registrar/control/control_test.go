package control

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"net"
	"net/http"
	"os"
	"os/user"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/sirupsen/logrus"
	"github.com/stretchr/testify/require"
	"go.uber.org/goleak"

	"github.com/myelin-sd/myelin/registrar"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// folder is short: paths of sockets are.
func folder(t *testing.T) string {
	t.Helper()
	dir, err := os.MkdirTemp("", "control-")
	require.NoError(t, err)
	t.Cleanup(func() { os.RemoveAll(dir) })
	return dir
}

// services are a registrar and its board that remember what they were told.
type services struct {
	mu      sync.Mutex
	names   []string
	in      map[string]registrar.Maintenance
	reports []string
	broken  error
}

func (s *services) Status() (all []registrar.ServiceStatus) {
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, name := range s.names {
		st := registrar.ServiceStatus{Service: name, Path: "/services/" + name, State: registrar.Up, Registered: true}
		if m, is := s.in[name]; is {
			st.Maintenance, st.Registered = &m, false
		}
		all = append(all, st)
	}
	return all
}

func (s *services) Maintain(service string, m registrar.Maintenance) error {
	return s.change(service, func() { s.in[service] = m })
}

func (s *services) EndMaintenance(service string) error {
	return s.change(service, func() { delete(s.in, service) })
}

func (s *services) change(service string, f func()) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.broken != nil {
		return s.broken
	}
	for _, name := range s.names {
		if name == service {
			f()
			return nil
		}
	}
	return fmt.Errorf("there is no service %q", service)
}

func (s *services) Report(service, check string, err error) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	if check == "other" {
		return errors.New("there is no such check")
	}
	var degraded *registrar.Degraded
	if errors.As(err, &degraded) {
		s.reports = append(s.reports, fmt.Sprintf("%s|%s|%d%% %v", service, check, degraded.Percent, err))
	} else {
		s.reports = append(s.reports, fmt.Sprintf("%s|%s|%v", service, check, err))
	}
	return nil
}

// serving answers for s at a socket until the test ends. log holds what the handler says.
func serving(t *testing.T, s *services) (client *Client, path string, log func() string) {
	t.Helper()
	path = filepath.Join(folder(t), "r.sock")
	socket, err := Listen(path, "web.toml")
	require.NoError(t, err)
	lines := &locked{}
	logger := logrus.New()
	logger.SetOutput(lines)
	h := Handler(Options{Registrar: s, Board: s, Log: logger, Version: "v1", Config: "web.toml", Instance: "web-1", Started: time.Now()})
	ctx, cancel := context.WithCancel(context.Background())
	ended := make(chan error, 1)
	go func() { ended <- Serve(ctx, socket, h) }()
	t.Cleanup(func() {
		cancel()
		require.NoError(t, <-ended)
		require.NoFileExists(t, path)
	})
	return NewClient(path), path, lines.String
}

type locked struct {
	mu   sync.Mutex
	text strings.Builder
}

func (l *locked) Write(b []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.text.Write(b)
}

func (l *locked) String() string {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.text.String()
}

// TestMaintenance: what one client orders the registrar is told, with the name of the user that the kernel knows.
func TestMaintenance(t *testing.T) {
	s := &services{names: []string{"a/b c", "web"}, in: map[string]registrar.Maintenance{}}
	client, _, log := serving(t, s)
	ctx := t.Context()
	me, err := user.Current()
	require.NoError(t, err)

	before := time.Now()
	m, err := client.Maintain(ctx, "web", MaintenanceRequest{For: "30m", Reason: "new disk"})
	require.NoError(t, err)
	require.Equal(t, "web", m.Service)
	require.Equal(t, me.Username, m.Author)
	require.Equal(t, "new disk", m.Reason)
	require.False(t, m.Since.Before(before.Truncate(0)))
	require.Equal(t, 30*time.Minute, m.Until.Sub(m.Since))
	require.Equal(t, m.Maintenance, s.in["web"])
	require.Contains(t, log(), "author="+me.Username)
	require.Contains(t, log(), fmt.Sprintf("pid=%d", os.Getpid()))

	// A service's name may have anything in it.
	m, err = client.Maintain(ctx, "a/b c", MaintenanceRequest{})
	require.NoError(t, err)
	require.Equal(t, "a/b c", m.Service)
	require.True(t, m.Until.IsZero())
	all, err := client.Maintenances(ctx)
	require.NoError(t, err)
	require.Len(t, all, 2)

	require.NoError(t, client.EndMaintenance(ctx, "web"))
	all, err = client.Maintenances(ctx)
	require.NoError(t, err)
	require.Len(t, all, 1)
	require.Equal(t, "a/b c", all[0].Service)

	st, err := client.Status(ctx)
	require.NoError(t, err)
	require.Equal(t, []string{"v1", "web.toml", "web-1"}, []string{st.Version, st.Config, st.Instance})
	require.Equal(t, os.Getpid(), st.Pid)
	require.Len(t, st.Services, 2)
	require.NotNil(t, st.Services[0].Maintenance)
}

// TestReports: a service's words become what its check returns.
func TestReports(t *testing.T) {
	s := &services{names: []string{"web"}}
	client, _, _ := serving(t, s)
	for _, r := range []struct {
		check string
		ReportRequest
	}{
		{"own", ReportRequest{Status: Pass, Note: "fine"}}, {"", ReportRequest{Status: Fail, Note: "disk full"}}, {"", ReportRequest{Status: Fail}},
		{"a b", ReportRequest{Status: Warn, Note: "slow", Weight: 20}}, {"own", ReportRequest{Status: Warn}},
	} {
		require.NoError(t, client.Report(t.Context(), "web", r.check, r.ReportRequest))
	}
	require.Equal(t, []string{"web|own|<nil>", "web||disk full", "web||the service says so", "web|a b|20% slow", "web|own|0% degraded"}, s.reports)
	require.EqualError(t, client.Report(t.Context(), "web", "other", ReportRequest{Status: Pass}), "there is no such check")
}

// TestRefusals: what cannot be meant is refused, with what to write instead.
func TestRefusals(t *testing.T) {
	s := &services{names: []string{"web"}, in: map[string]registrar.Maintenance{}}
	_, path, _ := serving(t, s)
	for _, tc := range []struct {
		method, path, body string
		code               int
		says               string
	}{
		{"PUT", "/v1/services/wbe/maintenance", ``, 404, `there is no service "wbe"`},
		{"DELETE", "/v1/services/wbe/maintenance", ``, 404, `there is no service "wbe"`},
		{"GET", "/v1/services/web/maintenance", ``, 404, `service "web" is not in maintenance`},
		{"PUT", "/v1/services/web/maintenance", `{"for": "soon"}`, 400, `for: "soon" is no duration longer than 0`},
		{"PUT", "/v1/services/web/maintenance", `{"for": "-1s"}`, 400, `for: "-1s" is no duration longer than 0`},
		{"PUT", "/v1/services/web/maintenance", `{"fro": "30m"}`, 400, `unknown field "fro"`},
		{"PUT", "/v1/services/web/maintenance", `{} {}`, 400, `something behind the object`},
		{"PUT", "/v1/services/web/maintenance", `{"reason": "` + strings.Repeat("x", bodyMost) + `"}`, 400, `too large`},
		{"PUT", "/v1/services/web/checks/own", ``, 400, `status: "" is none; write "pass", "warn" or "fail"`},
		{"PUT", "/v1/services/web/checks/own", `{"status": "pass", "weight": 10}`, 400, `weight is for status "warn" only`},
		{"PUT", "/v1/services/web/checks/own", `{"status": "warn", "weight": 101}`, 400, `101 is no percentage`},
		{"GET", "/v2/status", ``, 404, `there is no GET /v2/status`},
		{"POST", "/v1/services/web/maintenance", ``, 404, `there is no POST`},
	} {
		t.Run(tc.method+" "+tc.path+" "+tc.says, func(t *testing.T) {
			c := &http.Client{Transport: &http.Transport{DisableKeepAlives: true, DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
				var d net.Dialer
				return d.DialContext(ctx, "unix", path)
			}}}
			request, err := http.NewRequest(tc.method, "http://registrar"+tc.path, strings.NewReader(tc.body))
			require.NoError(t, err)
			response, err := c.Do(request)
			require.NoError(t, err)
			defer response.Body.Close()
			text, err := io.ReadAll(response.Body)
			require.NoError(t, err)
			require.Equal(t, tc.code, response.StatusCode, string(text))
			require.Contains(t, strings.ReplaceAll(string(text), `\"`, `"`), tc.says)
		})
	}
	require.Empty(t, s.in)
	require.Empty(t, s.reports)

	s.broken = errors.New("the disk is full")
	require.EqualError(t, NewClient(path).EndMaintenance(t.Context(), "web"), "the disk is full")
}

// TestProfiles: the process can be looked into here, and nowhere else.
func TestProfiles(t *testing.T) {
	client, _, _ := serving(t, &services{})
	response, err := client.http.Get("http://registrar/debug/pprof/goroutine?debug=1")
	require.NoError(t, err)
	defer response.Body.Close()
	text, err := io.ReadAll(response.Body)
	require.NoError(t, err)
	require.Contains(t, string(text), "goroutine profile: total")
}

// TestListen: a socket is its owner's alone, of one process at a time, and one that was left behind is replaced.
func TestListen(t *testing.T) {
	path := filepath.Join(folder(t), "made/r.sock")
	first, err := Listen(path, "/etc/first.toml")
	require.NoError(t, err)
	info, err := os.Stat(path)
	require.NoError(t, err)
	require.Equal(t, fs.ModeSocket|0o600, info.Mode())

	_, err = Listen(path, "/etc/second.toml")
	var used *InUseError
	require.ErrorAs(t, err, &used)
	require.Equal(t, Owner{os.Getpid(), "/etc/first.toml"}, used.Owner)
	require.EqualError(t, err, fmt.Sprintf("listen on control socket %s: another process (pid %d, config /etc/first.toml) has it; "+
		"stop that one, or give this one another control_socket", path, os.Getpid()))

	// A process that was killed leaves the file, and nobody behind it.
	first.Listener.(*net.UnixListener).SetUnlinkOnClose(false)
	require.NoError(t, first.Close())
	require.FileExists(t, path)
	second, err := Listen(path, "/etc/second.toml")
	require.NoError(t, err)
	conn, err := net.Dial("unix", path)
	require.NoError(t, err)
	conn.Close()
	require.NoError(t, second.Close())
	require.NoFileExists(t, path)
	_ = second.Close() // again, and harmless to whoever has it by then
}

// TestListenOnOthers: what is not ours stays.
func TestListenOnOthers(t *testing.T) {
	dir := folder(t)
	path := filepath.Join(dir, "r.sock")
	other, err := net.Listen("unix", path)
	require.NoError(t, err)
	defer other.Close()
	_, err = Listen(path, "")
	var used *InUseError
	require.ErrorAs(t, err, &used)
	require.Equal(t, os.Getpid(), used.Owner.Pid, "the kernel tells who listens")

	file := filepath.Join(dir, "file")
	require.NoError(t, os.WriteFile(file, []byte("x"), 0o600))
	_, err = Listen(file, "")
	require.ErrorContains(t, err, "there is something that is not a socket")
	require.FileExists(t, file)

	_, err = Listen(filepath.Join(file, "r.sock"), "")
	require.EqualError(t, err, "listen on control socket "+file+"/r.sock: not a directory")
	_, err = Listen(filepath.Join(dir, strings.Repeat("x", pathMost)), "")
	require.ErrorContains(t, err, "that of a socket may have 107")
}

// TestNobodyAnswers: the client's errors say what is wrong, and what to do.
func TestNobodyAnswers(t *testing.T) {
	dir := folder(t)
	path := filepath.Join(dir, "r.sock")
	ask := func() error { _, err := NewClient(path).Status(t.Context()); return err }
	require.EqualError(t, ask(), "ask the registrar at "+path+": there is no such socket; is the registrar running, with this control_socket?")

	l, err := net.Listen("unix", path)
	require.NoError(t, err)
	l.(*net.UnixListener).SetUnlinkOnClose(false)
	l.Close()
	require.EqualError(t, ask(), "ask the registrar at "+path+": nobody listens; the registrar has ended")

	require.NoError(t, os.Remove(path))
	l, err = net.Listen("unix", path)
	require.NoError(t, err)
	served := make(chan struct{})
	server := &http.Server{Handler: http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) { http.Error(w, "no JSON", 500) })}
	go func() { defer close(served); server.Serve(l) }()
	defer func() { server.Close(); <-served }()
	require.EqualError(t, ask(), "ask the registrar at "+path+": 500 Internal Server Error; is it a myelin registrar?")
}
