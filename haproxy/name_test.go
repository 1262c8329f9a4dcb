package haproxy

import (
	"net/netip"
	"strings"
	"testing"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
	"pgregory.net/rapid"
)

func TestServerName(t *testing.T) {
	long := strings.Repeat("n", 200)
	for _, c := range []struct {
		name, host string
		want       string
	}{
		{"i-1", "10.0.0.1", "i-1_10.0.0.1:80"},
		{"", "10.0.0.1", "10.0.0.1:80"},
		{"", "web.example", "web.example:80"},
		{"a", "2001:db8::1", "a_2001:db8::1:80"},
		{"a", "[2001:db8::1]", "a_2001:db8::1:80"},
		{"a b;c\n", "h", "a_b_c__h:80"},
		{"é", "h", "___h:80"},
		{"BACKEND", "h", "BACKEND_h:80"},
	} {
		assert.Equal(t, c.want, ServerName(c.name, c.host, 80))
	}
	name := ServerName(long, "10.0.0.1", 80)
	assert.True(t, strings.HasPrefix(name, "nnnn") && strings.HasSuffix(name, "_10.0.0.1:80"), name)
	assert.NotEqual(t, name, ServerName(long+"n", "10.0.0.1", 80))
	assert.NotEqual(t, ServerName("", long, 80), ServerName("", long+"n", 80))
}

// TestServerNameProperties: whatever a registration says, the name is legal, bounded, and known for ours later.
func TestServerNameProperties(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		name := rapid.String().Draw(t, "name")
		ip := rapid.SampledFrom([]string{"10.0.0.1", "2001:db8::1", "::1"}).Draw(t, "ip")
		label := rapid.StringMatching(`[a-z]([a-z0-9-]{0,61}[a-z0-9])?`)
		host := rapid.OneOf(rapid.Just(ip), rapid.Custom(func(t *rapid.T) string {
			return strings.Join(rapid.SliceOfN(label, 1, 4).Draw(t, "labels"), ".")
		})).Draw(t, "host")
		port := rapid.Uint16Min(1).Draw(t, "port")
		n := rapid.IntRange(1, 9999).Draw(t, "generation")

		base := ServerName(name, host, port)
		full := GenerationName(base, n)
		require.NoError(t, CheckName(full))
		require.NotContains(t, []string{"BACKEND", "FRONTEND"}, full)
		gotBase, gotN := Generation(full)
		require.Equal(t, base, gotBase)
		require.Equal(t, n, gotN)
		require.True(t, Owned(Server{Name: full, Addr: netip.AddrPortFrom(netip.MustParseAddr(ip), port)}), full)
	})
}

func TestGeneration(t *testing.T) {
	for name, want := range map[string]struct {
		base string
		n    int
	}{
		"a_10.0.0.1:80":          {"a_10.0.0.1:80", 1},
		"a_10.0.0.1:80-g2":       {"a_10.0.0.1:80", 2},
		"a_10.0.0.1:80-g17":      {"a_10.0.0.1:80", 17},
		"a_10.0.0.1:80-g1":       {"a_10.0.0.1:80-g1", 1},
		"a_10.0.0.1:80-g02":      {"a_10.0.0.1:80-g02", 1},
		"a_10.0.0.1:80-g+2":      {"a_10.0.0.1:80-g+2", 1},
		"a_10.0.0.1:80-g":        {"a_10.0.0.1:80-g", 1},
		"a_10.0.0.1:80-g9999999": {"a_10.0.0.1:80-g9999999", 1},
		"web-g2":                 {"web-g2", 1},
		"x-g2_10.0.0.1:80":       {"x-g2_10.0.0.1:80", 1},
		"-g2":                    {"-g2", 1},
		"":                       {"", 1},
	} {
		base, n := Generation(name)
		assert.Equal(t, want.base, base, name)
		assert.Equal(t, want.n, n, name)
	}
}

func TestOwned(t *testing.T) {
	for _, c := range []struct {
		name, addr string
		want       bool
	}{
		{"i-1_10.0.0.1:80", "10.0.0.1:80", true},
		{"10.0.0.1:80", "10.0.0.1:80", true},
		{"10.0.0.1:80-g2", "10.0.0.1:80", true},
		{"a_b_10.0.0.1:80", "10.0.0.1:80", true},
		{"a_::1:80", "[::1]:80", true},
		{"a_10.0.0.1:80", "[::ffff:10.0.0.1]:80", true},
		{"a_web-1.example:80", "10.0.0.1:80", true},
		{"web:80", "10.0.0.1:80", true},

		{"a_10.0.0.1:80", "10.0.0.2:80", false}, // another address
		{"a_10.0.0.1:80", "10.0.0.1:81", false}, // another port
		{"a_web:80", "10.0.0.1:81", false},
		{"static1", "10.0.0.1:80", false},
		{"slot1", "0.0.0.0:80", false},
		{"srv:", "10.0.0.1:80", false},
		{":80", "10.0.0.1:80", false},
		{"a_:80", "10.0.0.1:80", false},
		{"a_12:80", "10.0.0.1:80", false}, // neither address nor name
		{"a_-x:80", "10.0.0.1:80", false},
		{"10.0.0.1:80-g1", "10.0.0.1:80", false},
		{"10.0.0.1:080", "10.0.0.1:80", false},
	} {
		assert.Equal(t, c.want, Owned(Server{Name: c.name, Addr: netip.MustParseAddrPort(c.addr)}), "%s at %s", c.name, c.addr)
	}
	assert.True(t, Owned(Server{Name: "web.example:80", Addr: netip.AddrPortFrom(netip.Addr{}, 80), FQDN: "web.example"}))
}
