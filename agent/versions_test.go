package agent

import (
	"errors"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/myelin-sd/myelin/config"
	"github.com/myelin-sd/myelin/haproxy"
	"github.com/myelin-sd/myelin/haproxy/haproxytest"
)

// TestVersionWarnings: what is known to be wrong with the running version is logged once, not with each reload, and
// stands in the status.
func TestVersionWarnings(t *testing.T) {
	n := newNode(t, func(c *config.Agent) { c.Services[0].HAProxy.Backend = []string{"balance leastconn"} })
	n.start(0)
	n.hear("a@127.0.0.1:81")
	n.ready()
	status := n.haproxyStatus()
	require.Equal(t, haproxy.CapabilitiesOf(status.Version).Warnings(true), status.Warnings)
	require.NoError(t, n.haproxy.Reload())
	eventually(t, "the new process is met", func() error {
		if n.haproxyStatus().Processes < 2 {
			return errors.New("not yet")
		}
		return nil
	})
	require.Equal(t, status.Warnings, n.haproxyStatus().Warnings)
	for _, text := range status.Warnings {
		require.Equal(t, 1, n.said(text))
	}
}

// TestFrontendNamesFollowHAProxy: the file is one that the HAProxy at hand accepts, whatever its version.
func TestFrontendNamesFollowHAProxy(t *testing.T) {
	n := newNode(t, func(c *config.Agent) {
		c.Services[0].HAProxy.PortSet, c.Services[0].HAProxy.Port = true, uint16(haproxytest.FreePort(t))
	})
	n.start(0)
	n.hear("a@127.0.0.1:81")
	n.fileHas("svc", "a")
	n.has("svc", "a")
	require.NoError(t, n.haproxy.Reload())
	n.ready()
	want := ""
	if haproxytest.AtLeast(t, 3, 3) {
		want = "distinct"
	}
	require.Equal(t, want, n.config.HAProxy.FrontendNames)
	fixed := nodeConfig(n.dir())
	fixed.HAProxy.Binary, fixed.HAProxy.FrontendNames = n.config.HAProxy.Binary, "same"
	require.Same(t, fixed, withNames(t.Context(), fixed), "the operator's word counts")
	fixed.HAProxy.FrontendNames, fixed.HAProxy.DoWrites = "", false
	require.Same(t, fixed, withNames(t.Context(), fixed), "the file is not ours")
}
