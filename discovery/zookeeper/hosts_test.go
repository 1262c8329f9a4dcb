package zookeeper

import (
	"testing"
	"time"

	"github.com/stretchr/testify/require"
)

func TestParseHosts(t *testing.T) {
	got, err := parseHosts([]string{"zk1, zk2:2182,", "::1", "[::1]:99", "10.0.0.1", "fe80::2:2181"})
	require.NoError(t, err)
	require.Equal(t, []string{"zk1:2181", "zk2:2182", "[::1]:2181", "[::1]:99", "10.0.0.1:2181", "[fe80::2:2181]:2181"}, got)
	for _, bad := range []string{"", " , ", "zk1:2181/chroot", "zk1:0", "zk1:65536", "zk1:http", ":2181", "a:b:c"} {
		_, err := parseHosts([]string{bad})
		require.Error(t, err, bad)
	}
}

// TestProvider goes round the hosts, and says so only when the connection is to end.
func TestProvider(t *testing.T) {
	done := make(chan struct{})
	p := newProvider([]string{"a", "b", "c"}, done)
	require.Equal(t, 3, p.Len())
	seen := map[string]int{}
	for range 9 {
		host, round := p.Next()
		require.False(t, round)
		seen[host]++
	}
	require.Equal(t, map[string]int{"a": 3, "b": 3, "c": 3}, seen)
	close(done)
	_, round := p.Next()
	require.True(t, round)
}

func TestPace(t *testing.T) {
	require.Zero(t, pace(0, 12*time.Second, 0.99))
	for attempt := 1; attempt < 100; attempt++ {
		for _, fraction := range []float64{0, 0.5, 0.999} {
			d := pace(attempt, 12*time.Second, fraction)
			require.GreaterOrEqual(t, d, 10*time.Millisecond, "never a storm of dials")
			require.LessOrEqual(t, d, 2*time.Second)
			require.LessOrEqual(t, pace(attempt, 4*time.Second, fraction), time.Second, "a quarter of the session timeout")
		}
		require.GreaterOrEqual(t, pace(attempt+1, 0, 0.5), pace(attempt, 0, 0.5))
	}
	require.Equal(t, 50*time.Millisecond, pace(1, 12*time.Second, 0.5))
	require.Equal(t, 100*time.Millisecond, pace(2, 12*time.Second, 0.5))
}

func TestExplain(t *testing.T) {
	for line, want := range map[string]string{
		"authentication failed: EOF": "has no quorum",
		"authentication failed: read tcp 127.0.0.1:1->127.0.0.1:2: read: connection reset by peer": "has no quorum",
		"authentication failed: read tcp 127.0.0.1:1->127.0.0.1:2: i/o timeout":                    "did not answer",
		"authentication failed: zk: session has been expired by the server":                        "the session has expired",
		"failed to connect to a:1: dial tcp: connection refused":                                   "failed to connect to a:1: dial tcp: connection refused",
		"recv loop terminated: EOF": "EOF",
	} {
		require.True(t, failed(line), line)
		require.Contains(t, explain(line), want)
	}
	for _, line := range []string{"connected to 127.0.0.1:1", "authenticated: id=1, timeout=4000", "send loop terminated: <nil>", "re-submitting `0` credentials after reconnect"} {
		require.False(t, failed(line), line)
	}
}
