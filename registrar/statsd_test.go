package registrar

import (
	"context"
	"net"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
)

// TestStatsd: a life of a service arrives at a receiver under Nerve's names.
func TestStatsd(t *testing.T) {
	receiver, err := net.ListenPacket("udp", "127.0.0.1:0")
	require.NoError(t, err)
	defer receiver.Close()
	sender, err := NewStatsd("127.0.0.1", uint16(receiver.LocalAddr().(*net.UDPAddr).Port))
	require.NoError(t, err)

	dir, check := &fakeDirectory{}, &switchable{}
	service := (&stage{dir: dir, check: check}).service()
	service.Cluster, service.Interval = "zk", 5*time.Millisecond
	for i := range service.Checks {
		service.Checks[i].Interval, service.Checks[i].Rise, service.Checks[i].Fall = 0, 1, 1
	}
	r := New(Options{Services: []Service{service}, Statsd: sender})
	ctx, cancel := context.WithCancel(t.Context())
	stopped := make(chan error, 1)
	go func() { stopped <- r.Run(ctx) }()
	registered := func(want bool) func() bool {
		return func() bool { s := r.Status(); return len(s) == 1 && s[0].Registered == want && s[0].Settled }
	}
	require.Eventually(t, registered(true), 10*time.Second, time.Millisecond)
	check.set(errSick)
	require.Eventually(t, registered(false), 10*time.Second, time.Millisecond)
	check.set(nil)
	require.Eventually(t, registered(true), 10*time.Second, time.Millisecond)
	require.NoError(t, r.Reload(nil))
	require.Eventually(t, func() bool { return len(r.Status()) == 0 }, 10*time.Second, time.Millisecond)
	cancel()
	require.NoError(t, <-stopped)
	sender.Close()

	least := map[string]int{
		"nerve.start|c":         1,
		"nerve.config.update|c": 1,
		"nerve.watcher.launch|c|#launch_reason:new,watcher_name:user-api":                                 1,
		"nerve.watcher.start|c|#service_name:user-api":                                                    1,
		"nerve.watcher.stop|c|#stop_avenue:clean,service_name:user-api":                                   1,
		"nerve.watcher.reap|c|#reap_reason:old,reap_result:success,watcher_name:user-api":                 1,
		"nerve.watcher.status.transition|c|#new_status:up,service_name:user-api":                          2,
		"nerve.watcher.status.transition|c|#new_status:down,service_name:user-api":                        2,
		"nerve.watcher.status.report.count|c|#report_result:success,service_name:user-api":                4,
		"nerve.reporter.zk.create.elapsed_time|ms|#zk_cluster:zk,zk_path:" + service.Registration.Path:    2,
		"nerve.reporter.zk.delete.elapsed_time|ms|#zk_cluster:zk":                                         2,
		"nerve.watcher.status.service_check|c|#check_result:down,service_name:user-api,check_name:health": -1,
		"nerve.watcher.status.service_check|c|#check_result:up,service_name:user-api,check_name:health":   -1,
		"nerve.watcher.status.ping.count|c|#ping_result:success,service_name:user-api":                    -1,
	}
	seen := map[string]int{}
	arrived := func() bool { // the sender's buffers come in any order
		for line, want := range least {
			if seen[line] < max(want, 1) {
				return false
			}
		}
		return true
	}
	require.NoError(t, receiver.SetReadDeadline(time.Now().Add(20*time.Second)))
	for buf := make([]byte, 64<<10); !arrived(); {
		n, _, err := receiver.ReadFrom(buf)
		require.NoError(t, err, "what came: %v", seen)
		for line := range strings.Lines(string(buf[:n])) {
			name, rest, _ := strings.Cut(strings.TrimSpace(line), ":")
			value, rest, _ := strings.Cut(rest, "|")
			require.NotEmpty(t, value, line)
			seen[name+"|"+rest]++
		}
	}
	for line, want := range least {
		if want > 0 {
			require.Equal(t, want, seen[line], "%s in %v", line, seen)
		}
	}
}

// TestNoStatsd: without a sender nothing is sent, and nothing breaks.
func TestNoStatsd(t *testing.T) {
	var none *Statsd
	none.reported(Service{}, outcome{op: publish}, "")
	none.turned("a", true)
	none.Close()
	_, err := NewStatsd("no such host", 1)
	require.ErrorContains(t, err, "send to statsd at no such host:1: ")
}
