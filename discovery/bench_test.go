package discovery_test

import (
	"cmp"
	"fmt"
	"math/rand/v2"
	"runtime"
	"slices"
	"strings"
	"testing"

	"github.com/myelin-sd/myelin/discovery"
)

// usualPayload is what most registrations look like.
const usualPayload = `{"host":"10.0.0.2","port":8080,"name":"i-2","weight":5,"labels":{"az":"a"},"haproxy_server_options":""}`

func BenchmarkDecodeNerve(b *testing.B) { benchmarkDecode(b, discovery.DecodeNerve) }

func BenchmarkNerveDecoder(b *testing.B) {
	var d discovery.NerveDecoder
	benchmarkDecode(b, d.Decode)
}

type decode func(node string, data []byte) (discovery.Instance, error)

func benchmarkDecode(b *testing.B, decode decode) {
	for _, c := range []struct{ name, payload string }{
		{"usual", usualPayload},
		{"plain", `{"host":"10.0.0.2","port":8080,"name":"i-2"}`},
		{"name", strings.Replace(usualPayload, "10.0.0.2", "web-2.example.com", 1)},
		{"options", strings.Replace(usualPayload, `options":""`, `options":"check inter 2s"`, 1)},
		{"escaped", strings.Replace(usualPayload, `"a"`, `"\u0061"`, 1)}, // left to encoding/json
	} {
		b.Run(c.name, func(b *testing.B) {
			data := []byte(c.payload)
			b.ReportAllocs()
			for b.Loop() {
				if _, err := decode("i-2_0000000042", data); err != nil {
					b.Fatal(err)
				}
			}
		})
	}
}

// BenchmarkRetained reports the memory that one of 10,000 decoded instances keeps, next to the Instance itself and the
// name of its node. The payloads lie in one buffer, as in a reply of many reads.
func BenchmarkRetained(b *testing.B) {
	b.Run("DecodeNerve", func(b *testing.B) { benchmarkRetained(b, discovery.DecodeNerve) })
	b.Run("NerveDecoder", func(b *testing.B) {
		var d discovery.NerveDecoder
		benchmarkRetained(b, d.Decode)
	})
}

func benchmarkRetained(b *testing.B, decode decode) {
	for b.Loop() {
		var reply []byte
		nodes, ends := make([]string, 10_000), make([]int, 10_000)
		for i := range nodes {
			nodes[i] = fmt.Sprintf("i-%d_%010d", i, i)
			reply = fmt.Appendf(reply, `{"host":"10.0.%d.%d","port":8080,"name":"i-%d","weight":5,"labels":{"az":"%c"},"haproxy_server_options":""}`,
				i>>8, i&255, i, 'a'+i%3)
			ends[i] = len(reply)
		}
		kept := make([]discovery.Instance, len(nodes))
		before := inUse()
		start := 0
		for i, end := range ends {
			var err error
			if kept[i], err = decode(nodes[i], reply[start:end]); err != nil {
				b.Fatal(err)
			}
			start = end
		}
		size := cap(reply)
		reply = nil
		after := inUse() + uint64(size) // of the reply nothing may be kept
		b.ReportMetric(float64(after-before)/float64(len(kept)), "B/instance")
		runtime.KeepAlive(nodes)
		runtime.KeepAlive(ends)
		runtime.KeepAlive(kept)
	}
}

func inUse() uint64 {
	runtime.GC()
	runtime.GC() // what the first one found free is swept
	var m runtime.MemStats
	runtime.ReadMemStats(&m)
	return m.HeapAlloc
}

// manyInstances returns 10,000 instances in the order of a Snapshot; every tenth of them has a twin when twins is set.
func manyInstances(b *testing.B, twins bool) []discovery.Instance {
	b.Helper()
	list := make([]discovery.Instance, 10_000)
	for i := range list {
		of := i
		if twins && i%10 == 0 {
			of = i + 1
		}
		payload := fmt.Sprintf(`{"host":"10.0.%d.%d","port":8080,"name":"i-%d","weight":5,"labels":{"az":"%c"}}`, of>>8, of&255, of, 'a'+of%3)
		in, err := discovery.DecodeNerve(fmt.Sprintf("i-%d_%010d", of, i), []byte(payload))
		if err != nil {
			b.Fatal(err)
		}
		list[i] = in
	}
	slices.SortFunc(list, discovery.Compare)
	return list
}

func BenchmarkSort(b *testing.B) {
	sorted := manyInstances(b, false)
	mixed := slices.Clone(sorted)
	random := rand.New(rand.NewPCG(1, 2))
	random.Shuffle(len(mixed), func(i, j int) { mixed[i], mixed[j] = mixed[j], mixed[i] })
	pointers := make([]*discovery.Instance, len(mixed))
	b.ReportAllocs()
	for b.Loop() {
		for i := range mixed {
			pointers[i] = &mixed[i]
		}
		slices.SortFunc(pointers, func(x, y *discovery.Instance) int { return discovery.Compare(*x, *y) })
		if pointers[0].Node != sorted[0].Node {
			b.Fatal("not sorted")
		}
	}
}

func BenchmarkDedup(b *testing.B) {
	sorted, twins := manyInstances(b, false), manyInstances(b, true)
	mixed := slices.Clone(twins)
	slices.SortFunc(mixed, func(x, y discovery.Instance) int { return cmp.Compare(y.Node, x.Node) })
	for _, c := range []struct {
		name string
		in   []discovery.Instance
		want int
	}{{"distinct", sorted, 10_000}, {"twins", twins, 9_000}, {"unsorted", mixed, 9_000}} {
		b.Run(c.name, func(b *testing.B) {
			b.ReportAllocs()
			for b.Loop() {
				if got := len(discovery.Dedup(c.in)); got != c.want {
					b.Fatal(got)
				}
			}
		})
	}
}

func BenchmarkFilter(b *testing.B) {
	all := manyInstances(b, false)
	filters := []discovery.LabelFilter{{Label: "az", Value: "a", Condition: discovery.Equals}}
	b.ReportAllocs()
	for b.Loop() {
		if got := len(discovery.Filter(all, filters)); got != 3334 {
			b.Fatal(got)
		}
	}
}

func BenchmarkSnapshotEqual(b *testing.B) {
	read := discovery.Snapshot{Instances: manyInstances(b, false)}
	again := discovery.Snapshot{Instances: manyInstances(b, false)} // from the same data
	next := discovery.Snapshot{Instances: slices.Clone(read.Instances)}
	for _, c := range []struct {
		name string
		with discovery.Snapshot
	}{{"next", next}, {"again", again}} {
		b.Run(c.name, func(b *testing.B) {
			b.ReportAllocs()
			for b.Loop() {
				if !read.Equal(c.with) {
					b.Fatal("they differ")
				}
			}
		})
	}
}
