package zookeeper

import (
	"context"
	"encoding/binary"
	"fmt"
	"io"
	"net"
	"runtime"
	"slices"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/go-zookeeper/zk"
	"github.com/sirupsen/logrus"
	"github.com/stretchr/testify/require"

	"github.com/myelin-sd/myelin/discovery"
	"github.com/myelin-sd/myelin/discovery/zookeeper/zktest"
)

// The benchmarks compare three ways in turn in one run, since only ratios mean something on a machine with other work:
// the floor, which is bare frames on a socket and looks at nothing that it gets; a source with a persistent watch; and
// one with a watch per node.

var benchSizes = []int{100, 1_000, 10_000}

const benchDir = "/services/web"

// stage is a server with n registrations.
type stage struct {
	b   *testing.B
	n   int
	zks *zktest.Server
	w   *zk.Conn
}

func newStage(b *testing.B, n int) *stage {
	b.Helper()
	st := &stage{b: b, n: n, zks: zktest.New(b)}
	quiet := logrus.New()
	quiet.SetOutput(io.Discard)
	w, events, err := zk.Connect([]string{st.zks.Addr()}, 20*time.Second, zk.WithLogger(quiet))
	require.NoError(b, err)
	b.Cleanup(func() {
		w.Close()
		for range events {
		}
	})
	st.w = w
	world := zk.WorldACL(zk.PermAll)
	ops := []any{&zk.CreateRequest{Path: "/services", Acl: world}, &zk.CreateRequest{Path: benchDir, Acl: world}}
	for i := range n {
		ops = append(ops, &zk.CreateRequest{Path: fmt.Sprintf("%s/host-%06d.dc1.example.com:8080", benchDir, i), Data: benchPayload(i), Acl: world})
	}
	for part := range slices.Chunk(ops, 1000) {
		_, err := w.Multi(part...)
		require.NoError(b, err)
	}
	return st
}

func benchPayload(i int) []byte {
	return fmt.Appendf(nil, `{"host":"10.%d.%d.%d","port":8080,"name":"host-%06d.dc1.example.com","weight":10,"labels":{"zone":"osl-1","rack":"r-%02d"},"haproxy_server_options":"maxconn 200"}`,
		i>>16, i>>8&255, i&255, i, i%40)
}

// session returns one that is connected.
func (st *stage) session(classic bool) *Session {
	st.b.Helper()
	s := New(Options{Hosts: []string{st.zks.Addr()}, SessionTimeout: 20 * time.Second, Classic: classic})
	_, err := s.Children(context.Background(), "/")
	require.NoError(st.b, err)
	return s
}

// watcher is a source that runs.
type watcher struct {
	s    *Session
	out  chan discovery.Snapshot
	stop context.CancelFunc
	done sync.WaitGroup
}

func (st *stage) watch(s *Session) *watcher {
	ctx, cancel := context.WithCancel(context.Background())
	w := &watcher{s: s, out: make(chan discovery.Snapshot), stop: cancel}
	src := s.Source("web", benchDir, SourceOptions{})
	w.done.Go(func() { _ = src.Run(ctx, w.out) })
	return w
}

// until waits for a snapshot of n instances.
func (w *watcher) until(n int) {
	for len((<-w.out).Instances) != n {
	}
}

func (w *watcher) end() {
	w.stop()
	w.done.Wait()
}

// bare is the floor: a connection that speaks ZooKeeper's frames, and no more.
type bare struct {
	net.Conn
	xid int32
}

func (st *stage) bare() *bare {
	c, err := net.Dial("tcp", st.zks.Addr())
	require.NoError(st.b, err)
	f := &bare{Conn: c}
	connect := binary.BigEndian.AppendUint32(nil, 45)
	connect = append(connect, make([]byte, 12)...)
	connect = binary.BigEndian.AppendUint32(connect, 20_000)
	connect = append(connect, make([]byte, 8)...)
	connect = binary.BigEndian.AppendUint32(connect, 16)
	connect = append(connect, make([]byte, 17)...)
	_, err = c.Write(connect)
	require.NoError(st.b, err)
	f.frame(st.b)
	return f
}

func (f *bare) frame(b *testing.B) []byte {
	var prefix [4]byte
	_, err := io.ReadFull(f, prefix[:])
	require.NoError(b, err)
	body := make([]byte, binary.BigEndian.Uint32(prefix[:]))
	_, err = io.ReadFull(f, body)
	require.NoError(b, err)
	return body
}

func (f *bare) send(b *testing.B, r request) {
	f.xid++
	r.seal(f.xid)
	_, err := f.Write(r)
	require.NoError(b, err)
}

// readAll lists the directory and reads all children: MultiReads of 500, four of them under way.
func (f *bare) readAll(b *testing.B) {
	f.send(b, pathRequest(opGetChildren2, benchDir, false))
	ls, err := parseListing(f.frame(b)[replyLen:])
	require.NoError(b, err)
	under := 0
	for part := range slices.Chunk(ls.names, 500) {
		if under == 4 {
			f.frame(b)
			under--
		}
		f.send(b, unit(part).request(benchDir, true, false))
		under++
	}
	for range under {
		f.frame(b)
	}
}

// BenchmarkColdRead: everything read once, by a session that is connected.
func BenchmarkColdRead(b *testing.B) {
	for _, n := range benchSizes {
		b.Run(fmt.Sprint(n), func(b *testing.B) {
			st := newStage(b, n)
			floor := st.bare()
			defer floor.Close()
			sessions := map[string]*Session{"persistent": st.session(false), "classic": st.session(true)}
			ways := map[string]func(){"floor": func() { floor.readAll(b) }}
			for name, s := range sessions {
				defer s.Close()
				ways[name] = func() {
					s.budget = newBudget() // what the reading before has spent is not what is measured
					w := st.watch(s)
					w.until(n)
					w.end()
				}
			}
			took := map[string][]time.Duration{}
			for range 3 {
				ways["floor"]() // the server's and our own first steps
				ways["persistent"]()
			}
			for b.Loop() {
				for range 5 {
					for _, name := range []string{"floor", "persistent", "classic"} {
						began := time.Now()
						ways[name]()
						took[name] = append(took[name], time.Since(began))
					}
				}
			}
			floorMs := report(b, "floor", took["floor"])
			b.ReportMetric(report(b, "persistent", took["persistent"])/floorMs, "persistent/floor")
			b.ReportMetric(report(b, "classic", took["classic"])/floorMs, "classic/floor")
		})
	}
}

// report returns the median, in milliseconds.
func report(b *testing.B, name string, took []time.Duration) float64 {
	p50, p99 := quantile(took, 0.5), quantile(took, 0.99)
	b.Logf("%-24s median %8.2f ms   p99 %8.2f ms   of %d", name, p50, p99, len(took))
	return p50
}

func quantile(took []time.Duration, q float64) float64 {
	sorted := slices.Sorted(slices.Values(took))
	return float64(sorted[min(int(q*float64(len(sorted))), len(sorted)-1)].Microseconds()) / 1000
}

// BenchmarkChange: what a join and a leave cost one watcher and the server, and how long a join takes to be delivered
// to one watcher and to a hundred.
func BenchmarkChange(b *testing.B) {
	at := map[string]float64{} // medians of the smallest size
	for _, n := range benchSizes {
		for _, watchers := range []int{1, 100} {
			for _, classic := range []bool{false, true} {
				way := map[bool]string{false: "persistent", true: "classic"}[classic]
				if classic && n*watchers > 100_000 {
					continue // a million single reads and watches take minutes, and show no more
				}
				b.Run(fmt.Sprintf("%d/%d-watchers/%s", n, watchers, way), func(b *testing.B) {
					st := newStage(b, n)
					var took []time.Duration
					var bytes, cpu float64
					for b.Loop() {
						took, bytes, cpu = st.changes(watchers, classic)
					}
					p50 := report(b, "create -> delivered", took)
					b.ReportMetric(p50, "p50-ms")
					b.ReportMetric(quantile(took, 0.99), "p99-ms")
					b.ReportMetric(bytes, "wire-B/join+leave")
					b.ReportMetric(cpu, "server-ms/join+leave")
					key := fmt.Sprint(watchers, classic)
					if n == benchSizes[0] {
						at[key] = p50
					}
					if at[key] > 0 {
						b.ReportMetric(p50/at[key], "p50/at-100")
					}
				})
			}
		}
	}
}

// changes has instances join and leave, with pauses that keep it quiet.
func (st *stage) changes(watchers int, classic bool) (took []time.Duration, bytes, cpu float64) {
	b := st.b
	all := make([]*watcher, watchers)
	for i := range all {
		all[i] = st.watch(st.session(classic))
	}
	defer func() {
		var ending sync.WaitGroup
		for _, w := range all {
			ending.Go(func() { w.end(); w.s.Close() })
		}
		ending.Wait()
	}()
	for _, w := range all {
		w.until(st.n)
	}
	received := func() (n uint64) {
		for _, w := range all {
			n += w.s.Stats().Bytes
		}
		return n
	}
	runtime.GC()
	const rounds = 30
	began := received()
	used, err := st.zks.CPU()
	require.NoError(b, err)
	path := benchDir + "/joining.dc1.example.com:8080"
	for range rounds {
		var start atomic.Int64
		lags := make(chan time.Duration, watchers)
		var delivered sync.WaitGroup
		for _, w := range all {
			delivered.Go(func() {
				w.until(st.n + 1)
				lags <- time.Duration(time.Now().UnixNano() - start.Load())
			})
		}
		start.Store(time.Now().UnixNano())
		_, err := st.w.Create(path, benchPayload(1<<20), zk.FlagEphemeral, zk.WorldACL(zk.PermAll))
		require.NoError(b, err)
		delivered.Wait()
		close(lags)
		for lag := range lags {
			took = append(took, lag)
		}
		require.NoError(b, st.w.Delete(path, -1))
		for _, w := range all {
			w.until(st.n)
		}
		time.Sleep(30 * time.Millisecond)
	}
	after, err := st.zks.CPU()
	require.NoError(b, err)
	return took, float64(received()-began) / float64(rounds*watchers), float64((after - used).Microseconds()) / 1000 / rounds
}

// BenchmarkMemory: what a session with one source keeps for n instances, the last snapshot included.
func BenchmarkMemory(b *testing.B) {
	for _, n := range benchSizes {
		for _, classic := range []bool{false, true} {
			b.Run(fmt.Sprintf("%d/%s", n, map[bool]string{false: "persistent", true: "classic"}[classic]), func(b *testing.B) {
				st := newStage(b, n)
				var kept uint64
				for b.Loop() {
					before := heap()
					s := st.session(classic)
					w := st.watch(s)
					var snap discovery.Snapshot
					for len(snap.Instances) != n {
						snap = <-w.out
					}
					kept = heap() - before
					runtime.KeepAlive(snap)
					w.end()
					s.Close()
				}
				b.ReportMetric(float64(kept)/float64(n), "B/instance")
				b.ReportMetric(float64(kept)/(1<<20), "MiB")
			})
		}
	}
}

func heap() uint64 {
	runtime.GC()
	runtime.GC()
	var m runtime.MemStats
	runtime.ReadMemStats(&m)
	return m.HeapAlloc
}
