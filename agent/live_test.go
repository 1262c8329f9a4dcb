package agent

import (
	"encoding/json"
	"fmt"
	"net/http"
	"net/http/httptest"
	"net/url"
	"testing"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/stretchr/testify/require"

	"github.com/myelin-sd/myelin/config"
	"github.com/myelin-sd/myelin/haproxy"
)

// get asks the agent's HTTP.
func (n *node) get(path string) (int, string) {
	rec := httptest.NewRecorder()
	n.agent.Handler(prometheus.NewRegistry()).ServeHTTP(rec, httptest.NewRequest(http.MethodGet, path, nil))
	return rec.Code, rec.Body.String()
}

// servers asks about svc; an empty instance asks about all.
func (n *node) servers(instance string) []ServerStatus {
	n.t.Helper()
	code, body := n.get("/api/v1/services/svc/servers?instance=" + url.QueryEscape(instance))
	require.Equal(n.t, http.StatusOK, code, body)
	var out []ServerStatus
	require.NoError(n.t, json.Unmarshal([]byte(body), &out))
	return out
}

// told are the servers of the service in brief, with an instance those of it.
func (n *node) told(instance string) (out []string) {
	n.t.Helper()
	for _, s := range n.servers(instance) {
		out = append(out, brief1(s))
	}
	return out
}

func brief1(s ServerStatus) string {
	return fmt.Sprintf("%s wanted %s *%d, is %s %s *%d", s.Server, s.Wanted, s.WeightWanted, s.Admin, s.Operational, s.Weight)
}

func TestServersTellOfWhatIsWantedAndOfWhatIs(t *testing.T) {
	n := newNode(t, func(c *config.Agent) { c.Services[0].BackendPortOverride = 0 })
	n.start(0)
	code, body := n.get("/api/v1/services/other/servers")
	require.Equal(t, http.StatusNotFound, code)
	require.Contains(t, body, "other")
	code, body = n.get("/api/v1/services/svc/servers?instance=127.0.0.1")
	require.Equal(t, http.StatusBadRequest, code)
	require.Contains(t, body, "HOST:PORT")

	n.connected()
	one := n.servers("127.0.0.1:81")
	require.Len(t, one, 1)
	require.Equal(t, "unknown", one[0].Wanted, "nothing was heard yet")

	n.hear("a@127.0.0.1:81", "b@127.0.0.1:82")
	n.has("svc", "a b")
	one = n.servers("127.0.0.1:81")
	require.Len(t, one, 1, "one HAProxy")
	require.Equal(t, "a_127.0.0.1:81 wanted ready *1, is ready up *1", brief1(one[0]))
	require.Equal(t, n.tap.path, one[0].Socket)
	require.Equal(t, "127.0.0.1:81", one[0].Address)
	require.Zero(t, one[0].Sessions)
	require.Zero(t, one[0].Queue)
	require.False(t, one[0].Checked)

	n.hear("a@127.0.0.1:81")
	n.has("svc", "a b:maint")
	require.Equal(t, "b_127.0.0.1:82 wanted absent *-1, is maint down *1", brief1(n.servers("127.0.0.1:82")[0]))
	require.Equal(t, " wanted absent *-1, is absent  *-1", brief1(n.servers("127.0.0.1:83")[0]))

	all := n.servers("")
	require.Len(t, all, 2)
	require.Equal(t, []string{"a_127.0.0.1:81", "b_127.0.0.1:82"}, []string{all[0].Server, all[1].Server})

	seen := n.tap.count()
	n.servers("127.0.0.1:81")
	require.Empty(t, n.tap.since(seen), "nothing is changed")
	require.NotEqual(t, -1, n.tap.position(seen, "show servers state svc"))
	stat := n.tap.seen()[n.tap.position(seen, "show stat ")]
	require.Regexp(t, `^show stat \d+ 4 [1-9]\d*$`, stat, "one server is asked about alone")

	n.haproxy.Stop()
	one = n.servers("127.0.0.1:81")
	require.Len(t, one, 1)
	require.Equal(t, "a_127.0.0.1:81 wanted ready *1, is unknown  *-1", brief1(one[0]))
	require.NotEmpty(t, one[0].Error)
}

// With another port in HAProxy than in the registry, an instance is known by both.
func TestServersAreFoundByTheirRegisteredPort(t *testing.T) {
	n := newNode(t, func(c *config.Agent) { c.Services[0].BackendPortOverride = 900 })
	n.start(0)
	n.hear("a@127.0.0.1:81")
	n.has("svc", "a")
	for _, instance := range []string{"127.0.0.1:81", "127.0.0.1:900"} {
		one := n.servers(instance)
		require.Len(t, one, 1)
		require.Equal(t, "a_127.0.0.1:900 wanted ready *1, is ready up *1", brief1(one[0]), instance)
	}
}

// A slot has another name than the server in it.
func TestServersAreFoundInSlots(t *testing.T) {
	n := newNodeOfAnyVersion(t, func(c *config.Agent) { c.Services[0].HAProxy.Backend = []string{"balance source"} })
	n.start(0)
	n.hear("a@127.0.0.1:81")
	eventually(t, "it is in a slot", func() error {
		one := n.servers("127.0.0.1:81")
		if len(one) != 1 || one[0].Admin != "ready" || haproxy.SlotNumber(one[0].Server) == 0 {
			return fmt.Errorf("%+v", one)
		}
		return nil
	})
	one := n.servers("127.0.0.1:81")
	require.Equal(t, "ready", one[0].Wanted)
	require.Len(t, n.servers(""), 1, "empty slots are nobody's")
}

// A server is not deleted while many are read.
func TestNoServerIsDeletedWhileOthersRead(t *testing.T) {
	n := newNode(t)
	n.startWith(n.config, 1, nil)
	n.hear("a@127.0.0.1:81", "b@127.0.0.1:82")
	n.has("svc", "a b")
	n.gen.haproxys[0].dumps.RLock()
	n.hear("a@127.0.0.1:81")
	n.has("svc", "a b:maint")
	n.sweeps(len(n.tap.answered()), 2)
	require.Equal(t, -1, n.tap.position(0, "del server"))
	n.gen.haproxys[0].dumps.RUnlock()
	n.has("svc", "a")
}
