package agent

import (
	"fmt"
	"io"
	"slices"
	"testing"
	"time"

	"github.com/sirupsen/logrus"

	"github.com/myelin-sd/myelin/config"
	"github.com/myelin-sd/myelin/discovery"
	"github.com/myelin-sd/myelin/haproxy"
)

// BenchmarkJoin is what a join costs the agent itself, beside 100 and 10,000 instances: from the snapshot to the plan.
func BenchmarkJoin(b *testing.B) {
	log := logrus.New()
	log.SetOutput(io.Discard)
	for _, n := range []int{100, 10000} {
		b.Run(fmt.Sprint(n), func(b *testing.B) {
			c := nodeConfig(b.TempDir())
			c.Services[0].HAProxy.ServerOptions = "check inter 2s"
			lists := [2][]discovery.Instance{}
			for i := range n + 1 {
				in, err := discovery.DecodeNerve(fmt.Sprintf("i_%010d", i), []byte(fmt.Sprintf(`{"host":"10.0.%d.%d","port":80,"name":"i-%d"}`, i/250, i%250+1, i)))
				if err != nil {
					b.Fatal(err)
				}
				if i != n/2 {
					lists[0] = append(lists[0], in)
				}
				lists[1] = append(lists[1], in)
			}
			k := newComposer(c, nil, nil)
			views := [2]view{}
			for i, list := range lists {
				views[i] = newView(c.Services[0]).next(discovery.Snapshot{Service: "svc", Instances: list}, time.Now())
			}
			w := k.all([]view{views[0]}, nil)
			r := &reconciler{
				fresh: map[string]bool{}, settled: map[string][]haproxy.Server{}, applied: map[haproxy.Key]haproxy.Applied{}, done: map[string]uint64{},
				retired: map[haproxy.Key]retirement{}, draining: map[haproxy.Key]draining{}, gated: map[string]gate{}, unfit: map[string]string{},
				actual: haproxy.State{}, caps: haproxy.CapabilitiesOf("2.6.12"), quarantine: newQuarantine(), ladder: newLadder(w, nil),
				log: log, again: func() {},
			}
			r.actual["svc"] = nil
			for _, s := range w.backends["svc"].servers {
				r.applied[haproxy.Key{Backend: "svc", Server: s.Name}] = s.Applied()
				r.actual["svc"] = append(r.actual["svc"], s)
			}
			r.settled["svc"] = w.backends["svc"].servers
			r.done["svc"] = w.backends["svc"].rev
			b.ReportAllocs()
			for b.Loop() {
				after := k.replace(0, views[1], w)
				due := r.due(after, false)
				plan := r.plan(r.actual, after, due)
				if len(plan) != 1 {
					b.Fatal(plan)
				}
				w = k.replace(0, views[0], after)
			}
		})
	}
}

// BenchmarkHear is what the view makes of a snapshot in which one of so many instances is new, and of one in which it
// has left on purpose.
func BenchmarkHear(b *testing.B) {
	for _, n := range []int{100, 10000} {
		b.Run(fmt.Sprint(n), func(b *testing.B) {
			c := nodeConfig(b.TempDir())
			c.Services[0].Guard = config.Guard{Enabled: true, MaxDropPercent: 50}
			var with, without []discovery.Instance
			for i := range n + 1 {
				in, err := discovery.DecodeNerve(fmt.Sprintf("i_%010d", i), []byte(fmt.Sprintf(`{"host":"10.0.%d.%d","port":80,"name":"i-%d"}`, i/250, i%250+1, i)))
				if err != nil {
					b.Fatal(err)
				}
				with = append(with, in)
				if i == n/2 {
					with[i].Leaving = true // at the end, when it is marked
					in.Leaving = false
				} else {
					without = append(without, in)
				}
			}
			slices.SortFunc(with, discovery.Compare)
			slices.SortFunc(without, discovery.Compare)
			joined := slices.Clone(with)
			for i := range joined {
				joined[i].Leaving = false
			}
			v := newView(c.Services[0])
			at := time.Now()
			hear := func(list []discovery.Instance) {
				at = at.Add(time.Hour) // no two losses count together
				v = v.next(discovery.Snapshot{Service: "svc", Instances: list, At: at}, at)
			}
			hear(without)
			b.ReportAllocs()
			for b.Loop() {
				hear(joined)
				hear(with)
				hear(without)
				if len(v.active) != n {
					b.Fatal(len(v.active))
				}
			}
		})
	}
}
