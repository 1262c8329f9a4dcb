package discovery

import (
	"bytes"
	"context"
	"maps"
	"reflect"
	"slices"
	"strings"
	"time"
)

// Compare orders instances as in a Snapshot: by endpoint, then name, then node.
func Compare(a, b Instance) int {
	return a.Compare(&b)
}

// Compare is the function Compare for those who sort many: an instance is not copied for each comparison.
func (in *Instance) Compare(o *Instance) int {
	if c := in.compareIdentity(o); c != 0 {
		return c
	}
	return strings.Compare(in.Node, o.Node)
}

// compareIdentity orders by what makes instances twins when it is equal.
func (in *Instance) compareIdentity(o *Instance) int {
	if c := in.Endpoint.Compare(o.Endpoint); c != 0 {
		return c
	}
	return strings.Compare(in.Name, o.Name)
}

// Equal reports whether two snapshots of a service say the same. When they were made, their versions, and when nodes
// were written do not matter.
func (s Snapshot) Equal(o Snapshot) bool {
	return s.Service == o.Service && s.Missing == o.Missing && s.DataRead == o.DataRead && bytes.Equal(s.Data, o.Data) && sameInstances(s.Instances, o.Instances) &&
		slices.EqualFunc(s.Children, o.Children, func(a, b Child) bool {
			return a.Name == b.Name && a.Revision == b.Revision && bytes.Equal(a.Data, b.Data)
		}) &&
		slices.EqualFunc(s.Rejected, o.Rejected, func(a, b Rejection) bool {
			a.Created, a.Modified, b.Created, b.Modified = time.Time{}, time.Time{}, time.Time{}, time.Time{}
			return a == b
		})
}

func sameInstances(a, b []Instance) bool {
	if len(a) != len(b) {
		return false
	}
	for i := range a {
		if !a[i].equal(&b[i]) {
			return false
		}
	}
	return true
}

// Equal reports whether two instances are the same registration with the same content.
func (in Instance) Equal(o Instance) bool {
	return in.equal(&o)
}

// Same is Equal for instances where they lie: comparing ten thousand copies is mostly copying.
func Same(a, b *Instance) bool { return a.equal(b) }

func (in *Instance) equal(o *Instance) bool {
	return in.Endpoint == o.Endpoint && in.Name == o.Name && same(in.Weight, o.Weight) &&
		slices.Equal(in.ServerOptions, o.ServerOptions) && sameLabels(in.Labels, o.Labels) &&
		in.Leaving == o.Leaving && same(in.ID, o.ID) && in.Node == o.Node && in.Session == o.Session && in.ServerID == o.ServerID
}

// sameLabels does not look into a map that both have: unchanged instances of two snapshots share theirs.
func sameLabels(a, b map[string]any) bool {
	if len(a) != len(b) || len(a) == 0 {
		return len(a) == len(b)
	}
	return reflect.ValueOf(a).Pointer() == reflect.ValueOf(b).Pointer() || maps.EqualFunc(a, b, sameValue)
}

func same[T int | int64](a, b *T) bool {
	if a == nil || b == nil {
		return a == b
	}
	return *a == *b
}

// Dedup keeps one instance of each endpoint and name: that with the lowest sequence number (none counts as highest),
// the first of equals. The order stays, instances is not changed. Twins are normal: a registrar that was killed and
// started again has two nodes until its old session expires.
//
// Where there are none, the result is instances itself: neither may be changed afterwards.
func Dedup(instances []Instance) []Instance {
	switch sorted, twins := ordered(instances); {
	case !sorted:
		return dedupAny(instances)
	case !twins:
		return slices.Clip(instances)
	}
	out := make([]Instance, 0, len(instances))
	for i := range instances {
		in, last := &instances[i], len(out)-1
		switch {
		case last < 0 || out[last].compareIdentity(in) != 0:
			out = append(out, *in)
		case lower(in.ID, out[last].ID):
			out[last] = *in
		}
	}
	return out
}

// ordered reports whether a list is in the order of a Snapshot, so that twins stand side by side, and whether it has
// some then.
func ordered(instances []Instance) (sorted, twins bool) {
	for i := 1; i < len(instances); i++ {
		c := instances[i-1].compareIdentity(&instances[i])
		if c > 0 {
			return false, false
		}
		twins = twins || c == 0
	}
	return true, twins
}

// dedupAny is Dedup for any order.
func dedupAny(instances []Instance) []Instance {
	type identity struct {
		endpoint Endpoint
		name     string
	}
	best := make(map[identity]int, len(instances))
	for i := range instances {
		in := &instances[i]
		id := identity{in.Endpoint, in.Name}
		if j, ok := best[id]; !ok || lower(in.ID, instances[j].ID) {
			best[id] = i
		}
	}
	out := make([]Instance, 0, len(best))
	for i := range instances {
		in := &instances[i]
		if best[identity{in.Endpoint, in.Name}] == i {
			out = append(out, *in)
		}
	}
	return out
}

func lower(a, b *int64) bool { return a != nil && (b == nil || *a < *b) }

// Static returns a source whose set never changes. Its Run sends one snapshot and blocks until ctx ends.
func Static(service string, instances []Instance) Source {
	return static{service, slices.SortedStableFunc(slices.Values(instances), Compare)}
}

type static struct {
	service   string
	instances []Instance
}

func (s static) Run(ctx context.Context, out chan<- Snapshot) error {
	select {
	case out <- Snapshot{Service: s.service, Instances: s.instances, Version: 1, At: time.Now()}:
	case <-ctx.Done():
		return ctx.Err()
	}
	<-ctx.Done()
	return ctx.Err()
}
