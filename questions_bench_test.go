package main_test

import (
	"bytes"
	"context"
	"fmt"
	"os/exec"
	"slices"
	"testing"
	"time"

	"github.com/go-zookeeper/zk"
	"github.com/stretchr/testify/require"

	"github.com/myelin-sd/myelin/cli"
	"github.com/myelin-sd/myelin/discovery/zookeeper"
	"github.com/myelin-sd/myelin/discovery/zookeeper/zktest"
)

// BenchmarkQuestions asks the question commands about 10,000 instances, in one service and in a hundred, and in turn
// reads the same nodes in batches over a session that is connected already, which is the floor. Each question opens a
// session of its own and closes it. It is asked twice: within this process ("command"), and as a process that is started
// for it ("process").
func BenchmarkQuestions(b *testing.B) {
	const instances = 10_000
	for _, services := range []int{1, 100} {
		b.Run(fmt.Sprint(services), func(b *testing.B) {
			server := zktest.New(b)
			paths := plantInstances(b, server.Addr(), services, instances/services)
			questions := [][]string{
				{"instances", paths[0]}, {"instances", paths[0], "-o", "json"}, {"services"}, {"fsck"},
			}
			for _, q := range questions {
				name := q[0]
				if len(q) > 2 {
					name += "-json"
				}
				reads := paths
				if q[0] == "instances" {
					reads = paths[:1]
				}
				b.Run(name, func(b *testing.B) { compareQuestion(b, server.Addr(), q, reads) })
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

// compareQuestion reports how long a question takes beside the floor, each the median of many turns, and the quickest of
// each, which other work on the machine disturbs least.
func compareQuestion(b *testing.B, addr string, question, paths []string) {
	took := map[string][]float64{} // milliseconds
	timed := func(what string, f func()) {
		began := time.Now()
		f()
		took[what] = append(took[what], float64(time.Since(began).Microseconds())/1000)
	}
	args := append(slices.Clone(question), "--zookeeper", addr)
	var answer bytes.Buffer
	ways := func() {
		// A session of its own each time: what the reading before has spent of its budget is not what is measured.
		s := zookeeper.New(zookeeper.Options{Hosts: []string{addr}, SessionTimeout: 10 * time.Second})
		_, err := s.Children(context.Background(), "/")
		require.NoError(b, err)
		timed("floor", func() {
			for _, p := range paths {
				nodes, err := s.Read(context.Background(), p)
				require.NoError(b, err)
				require.NotEmpty(b, nodes)
			}
		})
		s.Close()
		answer.Reset()
		timed("command", func() { require.Zero(b, cli.Main(args, &answer, &answer), answer.String()) })
		timed("process", func() {
			out, err := exec.Command(binary, args...).Output()
			require.NoError(b, err, string(out))
		})
	}
	ways() // the server's and our own first steps
	clear(took)
	for b.Loop() {
		for range 9 {
			ways()
		}
	}
	floor, quietest := median(took["floor"]), func(what string) float64 { return slices.Min(took[what]) }
	b.ReportMetric(floor, "floor-ms")
	b.ReportMetric(median(took["process"]), "process-ms")
	b.ReportMetric(median(took["command"])/floor, "command/floor")
	b.ReportMetric(quietest("command")/quietest("floor"), "command/floor-quietest")
	b.ReportMetric(quietest("process")/quietest("floor"), "process/floor-quietest")
	b.ReportMetric(0, "ns/op")
}
