package discovery_test

import (
	"math/rand/v2"
	"slices"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/myelin-sd/myelin/discovery"
)

func TestParseEndpoint(t *testing.T) {
	long := strings.Repeat("a", 63)
	for _, c := range []struct {
		host string
		port int
		want string // empty: refused
	}{
		{"10.0.0.1", 8080, "10.0.0.1:8080"},
		{"10.0.0.1", 1, "10.0.0.1:1"},
		{"10.0.0.1", 65535, "10.0.0.1:65535"},
		{"10.0.0.1", 0, ""},
		{"10.0.0.1", -1, ""},
		{"10.0.0.1", 65536, ""},
		{"2001:DB8::1", 80, "[2001:db8::1]:80"},
		{"[2001:db8::1]", 80, "[2001:db8::1]:80"},
		{"[10.0.0.1]", 80, ""},
		{"::ffff:10.0.0.1", 80, "10.0.0.1:80"},
		{"fe80::1%eth0", 80, ""},
		{"0.0.0.0", 80, ""},
		{"::", 80, ""},
		{"::ffff:0.0.0.0", 80, ""},
		{"224.0.0.1", 80, ""},
		{"ff02::1", 80, ""},
		{"255.255.255.255", 80, ""},
		{"127.0.0.1", 80, "127.0.0.1:80"},
		{"Web-1.Example.COM", 80, "web-1.example.com:80"},
		{"web-1.example.com.", 80, "web-1.example.com:80"},
		{"localhost", 80, "localhost:80"},
		{"1a", 80, "1a:80"},
		{"3com.example", 80, "3com.example:80"},
		{long + "." + long + "." + long + "." + long[:61], 80, long + "." + long + "." + long + "." + long[:61] + ":80"},
		{long + "." + long + "." + long + "." + long[:62], 80, ""},
		{long + "a", 80, ""},
		{"", 80, ""},
		{".", 80, ""},
		{"a..b", 80, ""},
		{"-a", 80, ""},
		{"a-", 80, ""},
		{"a_b", 80, ""},
		{"a b", 80, ""},
		{"a;b", 80, ""},
		{"a\nb", 80, ""},
		{"a\x00", 80, ""},
		{"a%b", 80, ""},
		{`a"b`, 80, ""},
		{`a\b`, 80, ""},
		{"ü.example", 80, ""},
		{"\xff\xfe", 80, ""},
		{"\u212a.example", 80, ""}, // the Kelvin sign, whose lower case is an ASCII k
		{"unix@/run/x.sock", 80, ""},
		{"/run/x.sock", 80, ""},
		{"abns@x", 80, ""},
		{"ipv4@10.0.0.1", 80, ""},
		// inet_aton takes all of these for IPv4 addresses.
		{"1234", 80, ""},
		{"10.1", 80, ""},
		{"10.0.0.256", 80, ""},
		{"010.0.0.1", 80, ""},
		{"0x7f000001", 80, ""},
		{"0X7F.1", 80, ""},
		{"a.0x", 80, ""},
	} {
		e, err := discovery.ParseEndpoint(c.host, c.port)
		if c.want == "" {
			require.Error(t, err, c.host)
			require.NotContains(t, err.Error(), "\n")
			require.False(t, e.IsValid(), c.host)
			require.Empty(t, e.String())
			continue
		}
		require.NoError(t, err, c.host)
		require.Equal(t, c.want, e.String())
		require.EqualValues(t, c.port, e.Port())
		require.True(t, e.IsValid())
		again, err := discovery.ParseEndpoint(e.Host(), int(e.Port()))
		require.NoError(t, err)
		require.Equal(t, e, again, "what is printed parses to the same")
	}
}

func TestEndpointCompare(t *testing.T) {
	var sorted []discovery.Endpoint
	for _, hp := range []struct {
		host string
		port int
	}{{"9.0.0.1", 80}, {"10.0.0.1", 80}, {"10.0.0.1", 81}, {"::1", 1}, {"a.example", 9}, {"b.example", 8}} {
		e, err := discovery.ParseEndpoint(hp.host, hp.port)
		require.NoError(t, err)
		_, isIP := e.IP()
		require.Equal(t, !strings.Contains(hp.host, "example"), isIP)
		sorted = append(sorted, e)
	}
	shuffled := slices.Clone(sorted)
	rand.Shuffle(len(shuffled), func(i, j int) { shuffled[i], shuffled[j] = shuffled[j], shuffled[i] })
	slices.SortFunc(shuffled, discovery.Endpoint.Compare)
	require.Equal(t, sorted, shuffled)
}
