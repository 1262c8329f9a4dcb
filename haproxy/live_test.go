package haproxy

import (
	"errors"
	"fmt"
	"net"
	"net/http"
	"net/http/httptest"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/myelin-sd/myelin/haproxy/haproxytest"
)

func TestLiveTellsOfChecksAndSessions(t *testing.T) {
	asked := make(chan struct{})
	release := make(chan struct{})
	site := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if r.URL.Path == "/slow" {
			close(asked)
			<-release
		}
		if r.URL.Path == "/health" {
			w.WriteHeader(http.StatusServiceUnavailable)
		}
	}))
	t.Cleanup(site.Close)
	t.Cleanup(func() { close(release) })
	good := site.Listener.Addr().(*net.TCPAddr).Port
	front := haproxytest.FreePort(t)
	h := haproxytest.New(t, fmt.Sprintf(realDefaults+`
frontend live
  bind 127.0.0.1:%d
  default_backend live
backend other
  server x 127.0.0.1:1
backend live
  balance roundrobin
  option httpchk GET /health
  server up 127.0.0.1:%d id 11
  server sick 127.0.0.1:%d id 12 check inter 20ms fall 1
  server away 127.0.0.1:1 id 13 check inter 20ms fall 1
  server out 127.0.0.1:%d id 14 check disabled
backend empty
`, front, good, good, good))
	c := dial(t, h.Socket, ClientOptions{})
	all := func(Server) bool { return true }
	named := func(name string) func(Server) bool { return func(s Server) bool { return s.Name == name } }

	var servers map[string]Live
	require.Eventually(t, func() bool {
		live, _, err := c.Live(t.Context(), "live", 10, all)
		require.NoError(t, err)
		servers = map[string]Live{}
		for _, s := range live {
			servers[s.Name] = s
		}
		return servers["sick"].Op == OpStopped && servers["away"].Op == OpStopped
	}, 10*time.Second, 10*time.Millisecond)
	require.Len(t, servers, 4)
	assert.Regexp(t, `^Layer7 wrong status \(L7STS\), code 503, in \d+ms: Service Unavailable$`, servers["sick"].Check)
	assert.Regexp(t, `^Layer4 connection problem \(L4CON\), in \d+ms: Connection refused$`, servers["away"].Check)
	assert.Empty(t, servers["up"].Check)
	assert.Empty(t, servers["out"].Check)
	assert.Equal(t, Maint, servers["out"].Admin)
	assert.Zero(t, servers["up"].Sessions)
	assert.Zero(t, servers["up"].Queue)

	go func() {
		if resp, err := http.Get(fmt.Sprintf("http://127.0.0.1:%d/slow", front)); err == nil {
			resp.Body.Close()
		}
	}()
	<-asked
	one, beside, err := c.Live(t.Context(), "live", 1, named("up"))
	require.NoError(t, err)
	require.Len(t, one, 1)
	assert.Len(t, beside, 4)
	assert.Equal(t, 1, one[0].Sessions)

	none, beside, err := c.Live(t.Context(), "live", 1, named("nobody"))
	assert.Len(t, beside, 4)
	require.NoError(t, err)
	assert.Empty(t, none)
	none, _, err = c.Live(t.Context(), "empty", 1, all)
	require.NoError(t, err)
	assert.Empty(t, none)
	_, _, err = c.Live(t.Context(), "missing", 1, all)
	assert.ErrorIs(t, err, ErrNoBackend)
	_, everyone, err := c.Live(t.Context(), "live", 3, all)
	assert.Len(t, everyone, 4, "they are told all the same")
	var many *TooManyError
	require.True(t, errors.As(err, &many), "%v", err)
	assert.Equal(t, 4, many.Servers)
}

// What a server answers to a check is in the statistics, with whatever it has in it.
func TestStatsOfHostileChecks(t *testing.T) {
	reply := "# pxname,svname,qcur,scur,lastchg,sid,check_status,check_code,check_duration,last_chk,check_desc,\n" +
		"b,one,2,7,9,1,* L7RSP,,3,\"a \"\"quoted\"\", text\nand,a,second,line\",Layer7 invalid response,\n" +
		"b,two,0,1,,2,no check,,,,,\n" +
		"b,another,0,1,,3,L4OK,,,,,\n"
	servers := []Live{{Server: Server{Name: "one", ID: 1}}, {Server: Server{Name: "two", ID: 2}, Changed: -1}, {Server: Server{Name: "three", ID: 3}, Sessions: -1}}
	require.NoError(t, addStats(servers, reply))
	assert.Equal(t, Live{Server: Server{Name: "one", ID: 1}, Sessions: 7, Queue: 2, Changed: 9 * time.Second,
		Check: "Layer7 invalid response (L7RSP), in 3ms: a \"quoted\", text\nand,a,second,line"}, servers[0])
	assert.Equal(t, 1, servers[1].Sessions)
	assert.Equal(t, time.Duration(-1), servers[1].Changed)
	assert.Equal(t, -1, servers[2].Sessions, "another server has its id now")

	assert.Error(t, addStats(servers, "Unknown command"))
	assert.Error(t, addStats(servers, "# pxname,svname\n"))
	_, err := backendID("1\n# be_name srv_id\nb 1\n")
	assert.Error(t, err)
	_, err = backendID("1\n")
	assert.Error(t, err)
	_, err = backendID("1\n# be_name be_id\nb x\n")
	assert.Error(t, err)
}
