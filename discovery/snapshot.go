package discovery

import (
	"cmp"
	"context"
	"maps"
	"slices"
	"strings"
	"time"
)

// Compare orders instances as in a Snapshot: by endpoint, then name, then node.
func Compare(a, b Instance) int {
	return cmp.Or(a.Endpoint.Compare(b.Endpoint), strings.Compare(a.Name, b.Name), strings.Compare(a.Node, b.Node))
}

// Equal reports whether two snapshots of a service say the same. When they were made, their versions, and when nodes
// were written do not matter.
func (s Snapshot) Equal(o Snapshot) bool {
	return s.Service == o.Service && s.Missing == o.Missing &&
		slices.EqualFunc(s.Instances, o.Instances, Instance.Equal) &&
		slices.EqualFunc(s.Rejected, o.Rejected, func(a, b Rejection) bool {
			a.Created, a.Modified, b.Created, b.Modified = time.Time{}, time.Time{}, time.Time{}, time.Time{}
			return a == b
		})
}

// Equal reports whether two instances are the same registration with the same content.
func (in Instance) Equal(o Instance) bool {
	return in.Endpoint == o.Endpoint && in.Name == o.Name && same(in.Weight, o.Weight) &&
		slices.Equal(in.ServerOptions, o.ServerOptions) && maps.EqualFunc(in.Labels, o.Labels, sameValue) &&
		same(in.ID, o.ID) && in.Node == o.Node && in.Session == o.Session && in.ServerID == o.ServerID
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
func Dedup(instances []Instance) []Instance {
	if distinct(instances) {
		return slices.Clone(instances)
	}
	type identity struct {
		endpoint Endpoint
		name     string
	}
	best := make(map[identity]int, len(instances))
	for i, in := range instances {
		id := identity{in.Endpoint, in.Name}
		if j, ok := best[id]; !ok || lower(in.ID, instances[j].ID) {
			best[id] = i
		}
	}
	out := make([]Instance, 0, len(best))
	for i, in := range instances {
		if best[identity{in.Endpoint, in.Name}] == i {
			out = append(out, in)
		}
	}
	return out
}

// distinct tells, without memory of its own, whether a list in the order of a Snapshot has no twins. For any other
// order it says no.
func distinct(instances []Instance) bool {
	for i := 1; i < len(instances); i++ {
		a, b := &instances[i-1], &instances[i]
		if c := a.Endpoint.Compare(b.Endpoint); c > 0 || c == 0 && a.Name >= b.Name {
			return false
		}
	}
	return true
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
