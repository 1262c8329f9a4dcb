package zookeeper

import (
	"errors"
	"fmt"
	"maps"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/go-zookeeper/zk"
	"github.com/stretchr/testify/require"
	"pgregory.net/rapid"

	"github.com/myelin-sd/myelin/discovery"
)

func readingOf(zxid int64, data string) reading {
	return reading{data: []byte(data), stat: zk.Stat{Czxid: zxid, Mzxid: zxid, EphemeralOwner: 5, Ctime: 1000, Mtime: 2000}}
}

func (v *view) read(name string, r reading) {
	if !v.nodes[name].same(r) {
		v.put(v.decoded(name, r))
	}
}

// TestViewProperty: whatever happens in whatever order, the snapshot is what one would make from scratch.
func TestViewProperty(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		v := newView(discovery.DecodeNerve)
		model := map[string]string{} // node to data
		missing, zxid := false, int64(0)
		name := rapid.StringMatching(`n[0-9]{1,2}`)
		data := rapid.OneOf(rapid.Just("bad"), rapid.Map(rapid.IntRange(1, 40), func(n int) string {
			return fmt.Sprintf(`{"host":"10.0.0.%d","port":%d}`, n, 1+n%3)
		}))
		list := func() {
			unknown, gone := v.list(slices.Sorted(maps.Keys(model)))
			for _, n := range gone {
				if _, ok := model[n]; ok {
					t.Fatalf("%s is listed and called gone", n)
				}
			}
			for _, n := range unknown {
				zxid++
				v.read(n, readingOf(zxid, model[n]))
			}
			missing = false
		}
		set := func(n, data string) {
			model[n] = data
			if v.nodes[n] != nil { // its watch tells; of others the next listing does
				zxid++
				v.read(n, readingOf(zxid, data))
			}
		}
		t.Repeat(map[string]func(*rapid.T){
			"join":  func(t *rapid.T) { set(name.Draw(t, "name")+"x", data.Draw(t, "data")); list() },
			"leave": func(t *rapid.T) { delete(model, name.Draw(t, "name")+"x"); list() },
			"many": func(t *rapid.T) {
				for _, n := range rapid.SliceOfN(name, 30, 80).Draw(t, "names") {
					model[n+"x"] = data.Draw(t, "data")
				}
				v.absent() // so that all is read anew
				list()
			},
			"set": func(t *rapid.T) {
				if len(model) == 0 {
					t.Skip()
				}
				n := rapid.SampledFrom(slices.Sorted(maps.Keys(model))).Draw(t, "node")
				set(n, data.Draw(t, "data"))
			},
			"vanish": func(t *rapid.T) {
				n := name.Draw(t, "name") + "x"
				delete(model, n)
				v.remove(n)
			},
			"absent": func(t *rapid.T) { v.absent(); clear(model); missing = true },
			"": func(t *rapid.T) {
				got := v.snapshot("s", time.Time{})
				if v.changed {
					t.Fatal("still changed after a snapshot")
				}
				var want discovery.Snapshot
				want.Service, want.Missing = "s", missing
				for n := range v.nodes {
					fresh := v.decoded(n, reading{data: []byte(model[n]), stat: zk.Stat{Czxid: 1, Mzxid: 1, EphemeralOwner: 5}})
					if fresh.rejection != nil {
						want.Rejected = append(want.Rejected, *fresh.rejection)
					} else {
						want.Instances = append(want.Instances, fresh.instance)
					}
				}
				slices.SortFunc(want.Instances, discovery.Compare)
				slices.SortFunc(want.Rejected, func(a, b discovery.Rejection) int { return strings.Compare(a.Node, b.Node) })
				if !got.Equal(want) || len(v.nodes) != len(model) {
					t.Fatalf("got %+v\nwant %+v\nmodel %v", got, want, model)
				}
			},
		})
	})
}

// TestViewChanged: what says nothing new is no news.
func TestViewChanged(t *testing.T) {
	v := newView(discovery.DecodeNerve)
	news := func() bool { is := v.changed; v.snapshot("s", time.Time{}); return is }
	require.True(t, news(), "the first reading is")
	v.list(nil)
	require.False(t, news())
	v.list([]string{"a"})
	v.read("a", readingOf(1, `{"host":"h","port":1}`))
	require.True(t, news())
	v.read("a", readingOf(1, `{"host":"h","port":1}`))
	v.list([]string{"a"})
	require.False(t, news())
	v.absent()
	require.True(t, news())
	v.absent()
	require.False(t, news())
	v.list(nil)
	require.True(t, news(), "empty is not missing")

	snap := func() discovery.Snapshot { v.list([]string{"a"}); return v.snapshot("s", time.Time{}) }
	v.read("a", readingOf(2, `{"host":"h","port":1}`))
	before := snap()
	v.read("a", readingOf(3, `{"host":"g","port":1}`))
	require.Equal(t, "g", snap().Instances[0].Endpoint.Host())
	require.Equal(t, "h", before.Instances[0].Endpoint.Host(), "what was sent does not change")
}

// TestViewUnreadable: what is known of a child stays when it can no longer be read.
func TestViewUnreadable(t *testing.T) {
	v := newView(discovery.DecodeNerve)
	v.list([]string{"a", "b"})
	v.read("a", readingOf(1, `{"host":"h","port":1}`))
	v.unreadable("a")
	v.unreadable("b")
	snap := v.snapshot("s", time.Time{})
	require.Len(t, snap.Instances, 1)
	require.Equal(t, []discovery.Rejection{{Node: "b", Reason: discovery.ReasonUnreadable, Detail: "its ACL does not let this client read it"}}, snap.Rejected)
	v.snapshot("s", time.Time{})
	v.unreadable("b")
	require.False(t, v.changed, "said once")
}

// TestViewForeignDecoder: an error that gives no reason is one of decoding.
func TestViewForeignDecoder(t *testing.T) {
	v := newView(func(string, []byte) (discovery.Instance, error) { return discovery.Instance{}, errors.New("odd") })
	v.list([]string{"a"})
	v.read("a", readingOf(1, "x"))
	require.Equal(t, discovery.ReasonUndecodable, v.snapshot("s", time.Time{}).Rejected[0].Reason)
}

func benchmarkSizes(b *testing.B, f func(b *testing.B, names []string, data []string)) {
	for _, n := range []int{10, 1000, 10000} {
		names, data := make([]string, n), make([]string, n)
		for i := range n {
			names[i] = fmt.Sprintf("host-%06d_%010d", i, i)
			data[i] = fmt.Sprintf(`{"host":"10.%d.%d.%d","port":8080,"name":"i-%d","weight":1,"labels":{"az":"a"}}`, i>>16, i>>8&255, i&255, i)
		}
		b.Run(fmt.Sprint(n), func(b *testing.B) {
			b.ReportAllocs()
			f(b, names, data)
		})
	}
}

// BenchmarkColdView: all nodes decoded, sorted and made a snapshot.
func BenchmarkColdView(b *testing.B) {
	benchmarkSizes(b, func(b *testing.B, names, data []string) {
		for b.Loop() {
			v := newView(discovery.DecodeNerve)
			v.list(names)
			for i, name := range names {
				v.read(name, readingOf(int64(i+1), data[i]))
			}
			if len(v.snapshot("s", time.Time{}).Instances) != len(names) {
				b.Fatal("instances are missing")
			}
		}
	})
}

// BenchmarkJoinAndLeave: what one join and one leave cost in the view, the listings included.
func BenchmarkJoinAndLeave(b *testing.B) {
	benchmarkSizes(b, func(b *testing.B, names, data []string) {
		v := newView(discovery.DecodeNerve)
		v.list(names)
		for i, name := range names {
			v.read(name, readingOf(int64(i+1), data[i]))
		}
		v.snapshot("s", time.Time{})
		more := append(slices.Clone(names), "new")
		zxid := int64(1 << 30)
		b.ResetTimer()
		for b.Loop() {
			zxid++
			v.list(more)
			v.read("new", readingOf(zxid, data[0]))
			if len(v.snapshot("s", time.Time{}).Instances) != len(more) {
				b.Fatal("the join is missing")
			}
			v.list(names)
			if len(v.snapshot("s", time.Time{}).Instances) != len(names) {
				b.Fatal("the leave is missing")
			}
		}
	})
}
