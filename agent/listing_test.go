package agent

import (
	"encoding/json"
	"fmt"
	"net/http"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/myelin-sd/myelin/config"
	"github.com/myelin-sd/myelin/discovery"
)

// TestInstancesTellWhatIsBelieved: listed, leaving, held and rejected ones, and how old that is.
func TestInstancesTellWhatIsBelieved(t *testing.T) {
	n := newNode(t, func(c *config.Agent) {
		c.Services[0].Guard = config.Guard{Enabled: true, MaxDropPercent: 40, HoldFor: time.Hour}
	})
	n.start(0)
	listing := func() (l Listing) {
		code, body := n.get("/api/v1/services/svc/instances")
		require.Equal(t, http.StatusOK, code, body)
		require.NoError(t, json.Unmarshal([]byte(body), &l))
		return l
	}
	code, body := n.get("/api/v1/services/svx/instances")
	require.Equal(t, http.StatusNotFound, code)
	require.Contains(t, body, `did you mean \"svc\"?`)
	l := listing()
	require.False(t, l.Known)
	require.Zero(t, l.AsOf)
	require.Empty(t, l.Instances)

	list := instances(t, "a@127.0.0.1:81", "b@127.0.0.1:82", "l@127.0.0.1:83")
	list[2].Leaving, list[0].ServerOptions = true, []string{"backup"}
	n.feeds["svc"] <- discovery.Snapshot{Service: "svc", Instances: list, At: time.Now(), Rejected: []discovery.Rejection{{Node: "bad", Reason: "port", Detail: "none"}}}
	n.has("svc", "a b")
	states := func() (out []string) {
		for _, i := range listing().Instances {
			out = append(out, fmt.Sprintf("%s %s", i.Node, i.State))
		}
		return out
	}
	require.Equal(t, []string{"a_x ok", "b_x ok", "l_x leaving", "bad rejected"}, states())
	require.Equal(t, []string{"backup"}, listing().Instances[0].Options)
	require.Equal(t, "port: none", listing().Instances[3].Reason)

	n.hearOf("svc")
	eventually(t, "they are held", func() error {
		if got := fmt.Sprint(states()); got != "[a_x held b_x held]" {
			return fmt.Errorf("%s", got)
		}
		return nil
	})
	require.Equal(t, heldEmpty, listing().Instances[0].Reason)
}
