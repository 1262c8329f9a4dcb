package main_test

import (
	"fmt"
	"os/exec"
	"path/filepath"
	"slices"
	"testing"
	"time"

	"github.com/go-zookeeper/zk"
	"github.com/stretchr/testify/require"

	"github.com/myelin-sd/myelin/discovery/zookeeper/zktest"
)

// BenchmarkQuestions asks the question commands about 10,000 instances, in one service and in a hundred. The floor is
// testdata/batchread, a small program that only reads the same nodes in batches. Both are processes that are started,
// open a session, close it, and end; they take turns, so that both have the same machine.
func BenchmarkQuestions(b *testing.B) {
	const instances = 10_000
	floor := filepath.Join(b.TempDir(), "batchread")
	out, err := exec.Command("go", "build", "-o", floor, "./testdata/batchread").CombinedOutput()
	require.NoError(b, err, string(out))
	for _, of := range []struct {
		services  int
		questions [][]string
	}{
		{1, [][]string{{"instances", "/services/service-000"}, {"instances", "/services/service-000", "-o", "json"}, {"services"}, {"fsck"}}},
		{100, [][]string{{"services"}, {"fsck"}}},
	} {
		b.Run(fmt.Sprint(of.services), func(b *testing.B) {
			server := zktest.New(b)
			paths := plantInstances(b, server.Addr(), of.services, instances/of.services)
			read := exec.Command(floor, append([]string{server.Addr()}, paths...)...)
			for _, q := range of.questions {
				name := q[0]
				if len(q) > 2 {
					name += "-json"
				}
				asked := exec.Command(binary, append(slices.Clone(q), "--zookeeper", server.Addr())...)
				b.Run(name, func(b *testing.B) { compareQuestion(b, asked, read) })
			}
		})
	}
}

// plantInstances registers so many instances in each of so many services, and returns the services' paths.
func plantInstances(b *testing.B, addr string, services, instances int) (paths []string) {
	b.Helper()
	conn, events, err := zk.Connect([]string{addr}, 20*time.Second, zk.WithLogger(quiet{}))
	require.NoError(b, err)
	b.Cleanup(func() {
		conn.Close()
		for range events {
		}
	})
	open := zk.WorldACL(zk.PermAll)
	ops := []any{&zk.CreateRequest{Path: "/services", Acl: open}}
	for s := range services {
		paths = append(paths, fmt.Sprintf("/services/service-%03d", s))
		ops = append(ops, &zk.CreateRequest{Path: paths[s], Acl: open})
		for i := range instances {
			data := fmt.Appendf(nil, `{"host":"10.%d.%d.%d","port":8080,"name":"host-%06d.dc1.example.com","weight":10,"labels":{"zone":"osl-1","rack":"r-%02d"},"haproxy_server_options":"maxconn 200"}`,
				s, i>>8, i&255, i, i%40)
			ops = append(ops, &zk.CreateRequest{Path: fmt.Sprintf("%s/host-%06d.dc1.example.com_%010d", paths[s], i, i), Data: data, Acl: open, Flags: zk.FlagEphemeral})
		}
	}
	for part := range slices.Chunk(ops, 1000) {
		_, err := conn.Multi(part...)
		require.NoError(b, err)
	}
	return paths
}

// compareQuestion reports how long a question takes beside the floor. The ratio is the median of those of turns, in which
// the two run one after the other; that of the quickest is what other work on the machine disturbs least.
func compareQuestion(b *testing.B, question, floor *exec.Cmd) {
	var asked, read, ratio, processor []float64
	turn := func(floorFirst bool) {
		var q, f spent
		if floorFirst {
			f, q = spend(b, floor), spend(b, question)
		} else {
			q, f = spend(b, question), spend(b, floor)
		}
		asked, read = append(asked, q.took), append(read, f.took)
		ratio, processor = append(ratio, q.took/f.took), append(processor, q.processor/f.processor)
	}
	turn(true) // the server's first steps
	asked, read, ratio, processor = nil, nil, nil, nil
	for b.Loop() {
		for i := range 20 {
			turn(i%2 == 0)
		}
	}
	b.ReportMetric(median(read), "floor-ms")
	b.ReportMetric(median(asked), "question-ms")
	b.ReportMetric(median(ratio), "ratio")
	b.ReportMetric(slices.Min(asked)/slices.Min(read), "ratio-quickest")
	b.ReportMetric(median(processor), "processor-ratio")
	b.ReportMetric(0, "ns/op")
}

// spent is what one run of a process took, in milliseconds.
type spent struct{ took, processor float64 }

// spend runs a command of this kind to its end and reads its answer.
func spend(b *testing.B, of *exec.Cmd) spent {
	b.Helper()
	c := exec.Command(of.Path, of.Args[1:]...)
	began := time.Now()
	out, err := c.Output()
	took := time.Since(began)
	require.NoError(b, err, string(out))
	ms := func(d time.Duration) float64 { return float64(d.Microseconds()) / 1000 }
	return spent{ms(took), ms(c.ProcessState.UserTime() + c.ProcessState.SystemTime())}
}
