package haproxy

import (
	"net/netip"
	"testing"

	"github.com/stretchr/testify/require"
)

// TestLines: the last look before the wire refuses what is not one plain word in its place, and sends nothing of it.
func TestLines(t *testing.T) {
	good := func() Step {
		return Step{Op: StepAdd, Backend: "b", Server: Server{
			Name: "s", Addr: netip.MustParseAddrPort("[::ffff:10.0.0.1]:80"), ID: 5, Weight: 1, Options: []string{"check"}, Cookie: "c",
		}, Extra: []string{"pool-max-conn", "-1"}}
	}
	lines, err := good().Lines()
	require.NoError(t, err)
	require.Equal(t, []string{
		"add server b/s 10.0.0.1:80 id 5 weight 1 check cookie c pool-max-conn -1", "enable health b/s", "set server b/s state ready",
	}, lines)
	for what, change := range map[string]func(*Step){
		"backend":         func(s *Step) { s.Backend = "b;x" },
		"no backend":      func(s *Step) { s.Backend = "" },
		"slash":           func(s *Step) { s.Server.Name = "s/t" },
		"by number":       func(s *Step) { s.Server.Name = "#1" },
		"BACKEND":         func(s *Step) { s.Server.Name = "BACKEND" },
		"FRONTEND":        func(s *Step) { s.Server.Name = "FRONTEND" },
		"line end":        func(s *Step) { s.Server.Name = "s\n" },
		"no address":      func(s *Step) { s.Server.Addr = netip.AddrPort{} },
		"any address":     func(s *Step) { s.Server.Addr = netip.MustParseAddrPort("0.0.0.0:80") },
		"any v6 address":  func(s *Step) { s.Server.Addr = netip.MustParseAddrPort("[::]:80") },
		"zone":            func(s *Step) { s.Server.Addr = netip.MustParseAddrPort("[fe80::1%eth0]:80") },
		"no port":         func(s *Step) { s.Server.Addr = netip.MustParseAddrPort("10.0.0.1:0") },
		"id":              func(s *Step) { s.Server.ID = MaxID + 1 },
		"weight":          func(s *Step) { s.Server.Weight = 257 },
		"payload":         func(s *Step) { s.Server.Options = []string{"check", "<<"} },
		"backslash":       func(s *Step) { s.Server.Options = []string{`sni`, `\`} },
		"unknown option":  func(s *Step) { s.Server.Options = []string{"resolvers", "dns"} },
		"id as an option": func(s *Step) { s.Server.Options = []string{"id", "6"} },
		"cookie":          func(s *Step) { s.Server.Cookie = "c d" },
		"extra":           func(s *Step) { s.Extra = []string{"x;y"} },
		"no action":       func(s *Step) { s.Op = 0 },
	} {
		s := good()
		change(&s)
		lines, err := s.Lines()
		require.Error(t, err, what)
		require.Empty(t, lines, what)
	}
}
