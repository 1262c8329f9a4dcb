package agent

import (
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/myelin-sd/myelin/config"
)

// TestKeysAtRunTime: what SmartStack's keys say about servers is what a real HAProxy has.
func TestKeysAtRunTime(t *testing.T) {
	n := newNode(t, func(c *config.Agent) {
		c.HAProxy.UseNerveWeights = false
		s := &c.Services[0]
		s.LeaderElection, s.BackendPortOverride, s.KeepDefaultServers = true, 9999, true
		s.DefaultServers = []config.DefaultServer{{Name: "own", Host: "127.0.0.9", Port: 1, ServerOptions: "weight 3 backup", HAProxyID: 77}}
		s.HAProxy.BackendName = "other-name"
		s.HAProxy.ServerOptions = "weight 4"
		off := serviceNamed("off")
		off.HAProxy.Disabled = true
		c.Services = append(c.Services, off)
	})
	n.start(0)
	list := instances(t, "a@127.0.0.1:81,9", "b@127.0.0.2:82,9", "c@127.0.0.3:83,9")
	for i, id := range []int64{12, 5, 30} {
		list[i].ID = &id
	}
	n.hearOf("svc", list...)
	n.hearOf("off", instances(t, "x@127.0.0.1:84")...)
	n.has("other-name", "b*4 own*3")
	n.ready()
	state, err := n.state()
	require.NoError(t, err)
	require.NotContains(t, state, "svc")
	require.NotContains(t, state, "off")
	for _, s := range state["other-name"] {
		require.EqualValues(t, 9999, s.Addr.Port())
		require.Equal(t, s.Addr.Addr().String() == "127.0.0.9", s.ID == 77, s.Name)
	}
	require.Zero(t, n.reloads())
}
