package discovery

import (
	"encoding/json"
	"fmt"
	"strconv"
	"strings"
)

// The conditions of a LabelFilter.
const (
	Equals    = "equals"
	NotEquals = "not-equals"
)

// LabelFilter keeps instances by one label. The comparison is strict about types, as Synapse's: 1 is not "1". A label
// that is missing equals nil.
type LabelFilter struct {
	Label     string
	Value     any    // a string, json.Number, bool or nil
	Condition string // Equals or NotEquals
}

// Validate refuses an unknown condition, with which Synapse silently emptied the service, and values of other types.
// Who takes filters from outside calls it.
func (f LabelFilter) Validate() error {
	if f.Condition != Equals && f.Condition != NotEquals {
		return fmt.Errorf("filter label %s: condition %q is unknown; write %q or %q", f.Label, f.Condition, Equals, NotEquals)
	}
	switch f.Value.(type) {
	case string, json.Number, bool, nil:
		return nil
	}
	return fmt.Errorf("filter label %s: a value of type %T cannot be compared", f.Label, f.Value)
}

// Filter returns the instances that pass all filters, in their order. It does not change instances. A filter that
// Validate refuses keeps everything: a mistake must not empty a service.
func Filter(instances []Instance, filters []LabelFilter) []Instance {
	out := make([]Instance, 0, len(instances))
	for i := range instances {
		if passes(instances[i].Labels, filters) {
			out = append(out, instances[i])
		}
	}
	return out
}

func passes(labels map[string]any, filters []LabelFilter) bool {
	for i := range filters {
		f := &filters[i]
		same := sameValue(labels[f.Label], f.Value)
		if f.Condition == Equals && !same || f.Condition == NotEquals && same {
			return false
		}
	}
	return true
}

// sameValue compares label values. Numbers are equal when they are written alike or when one of them is a fraction
// or has an exponent and both have one value (1 and 1.0).
func sameValue(a, b any) bool {
	x, xNumber := a.(json.Number)
	y, yNumber := b.(json.Number)
	if !xNumber || !yNumber {
		return scalar(a) && scalar(b) && a == b
	}
	if x == y || !strings.ContainsAny(string(x+y), ".eE") {
		return x == y
	}
	fx, errX := strconv.ParseFloat(string(x), 64)
	fy, errY := strconv.ParseFloat(string(y), 64)
	return errX == nil && errY == nil && fx == fy
}

func scalar(v any) bool {
	switch v.(type) {
	case string, json.Number, bool, nil:
		return true
	}
	return false
}
