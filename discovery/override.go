package discovery

import (
	"cmp"
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"slices"
	"strconv"
	"strings"
	"time"
)

// Action is what an override asks for.
type Action string

// The actions of overrides.
const (
	ActionDrain  Action = "drain"  // no new sessions; those that are there go on
	ActionMaint  Action = "maint"  // out of rotation at once, and not checked
	ActionWeight Action = "weight" // another weight
	ActionEnable Action = "enable" // as registered, although a wider override asks for something else
)

// Target is what an override is about: one instance (all three are set; without a service whatever listens there), all
// instances of a service on a host (no port), a service, or a host with whatever it runs. Its zero value is no target.
type Target struct {
	Service string // name of the service as agents call it; empty: any
	Host    string // as in the registration, lower-case; empty: any
	Port    uint16 // 0: any; only with a host
}

// String writes a target as people do: "user-api 10.0.0.5:8080", "user-api", "10.0.0.5".
func (t Target) String() string {
	host := t.Host
	if t.Port != 0 {
		host = net.JoinHostPort(t.Host, strconv.Itoa(int(t.Port)))
	}
	return strings.TrimSpace(t.Service + " " + host)
}

// Narrowness orders targets as agents do: of two that are about the same instance the one with the higher number goes
// before. An instance goes before a host of a service, that before a host, and that before a service. 0: no target.
func (t Target) Narrowness() (n int) {
	if t.Service != "" {
		n++
	}
	if t.Host != "" {
		n += 2
	}
	if t.Port != 0 {
		n += 4
	}
	return n
}

// Meets tells whether there can be an instance that both targets are about.
func (t Target) Meets(o Target) bool {
	return (t.Service == "" || o.Service == "" || t.Service == o.Service) && (t.Host == "" || o.Host == "" || t.Host == o.Host) &&
		(t.Port == 0 || o.Port == 0 || t.Port == o.Port)
}

// Override is what an operator wants of instances until further notice, or until a time. It lies in the registry and is
// honoured by every agent.
type Override struct {
	Target
	Action  Action
	Weight  int       // with ActionWeight: 0 to 256 as HAProxy counts, or a percentage of what it would be without
	Percent bool      // Weight is a percentage, 0 to 100
	Author  string    // who wants it; for people
	Reason  string    // why; for people
	Created time.Time // by the clock of the author's host
	Until   time.Time // when it ends; zero: it stays until it is removed

	Node     string // name of its node in the registry; empty before it is there
	Revision int32  // version of the node's data
}

// InForce tells whether o still counts at now.
func (o Override) InForce(now time.Time) bool { return o.Until.IsZero() || now.Before(o.Until) }

// Overrides are all that is in the registry, sorted by Node. It is never changed after it was published.
type Overrides []Override

// For returns the override that counts for the instance at e of the service: of those that are in force and about it
// the one with the narrowest target; of several with the same target the one that was made last. It may be an
// ActionEnable, under which the instance is as registered. nil: there is none.
func (all Overrides) For(service string, e Endpoint, now time.Time) *Override {
	return all.Of(service, now).For(e)
}

// Of are those that may count for instances of a service at now. Each instance then costs a few look-ups, however many
// there are.
func (all Overrides) Of(service string, now time.Time) ServiceOverrides {
	var s ServiceOverrides
	for i := range all {
		o := &all[i]
		if !o.InForce(now) || o.Service != "" && o.Service != service {
			continue
		}
		if s.by == nil {
			s = ServiceOverrides{service, map[Target]*Override{}}
		}
		if best := s.by[o.Target]; best == nil || o.Created.After(best.Created) {
			s.by[o.Target] = o
		}
	}
	return s
}

// ServiceOverrides are the overrides that may count for instances of one service. The zero value has none. It is never
// changed.
type ServiceOverrides struct {
	service string
	by      map[Target]*Override
}

// None tells that there are none.
func (s ServiceOverrides) None() bool { return len(s.by) == 0 }

// For returns the one that counts for an instance, as Overrides.For does. An instance may be known under several
// endpoints: where its service overrides ports.
func (s ServiceOverrides) For(endpoints ...Endpoint) *Override {
	if s.None() {
		return nil
	}
	var all [4][5]Target
	known := all[:0]
	for _, e := range endpoints {
		known = append(known, targets(s.service, e.Host(), e.Port()))
	}
	for rank := range all[0] {
		for _, of := range known {
			if o := s.by[of[rank]]; o != nil {
				return o
			}
		}
	}
	return nil
}

// targets are all that are about one instance, the narrowest first: an instance goes before a host of a service, that
// before a host, and that before a service.
func targets(service, host string, port uint16) [5]Target {
	return [5]Target{
		{Service: service, Host: host, Port: port},
		{Host: host, Port: port},
		{Service: service, Host: host},
		{Host: host},
		{Service: service},
	}
}

// Next is when the first of those in force ends; zero: none does by itself.
func (all Overrides) Next(now time.Time) (next time.Time) {
	for _, o := range all {
		if !o.Until.IsZero() && now.Before(o.Until) && (next.IsZero() || o.Until.Before(next)) {
			next = o.Until
		}
	}
	return next
}

// storedOverride is an override as it lies in the registry. Fields of later versions are left alone.
type storedOverride struct {
	Action  Action    `json:"action"`
	Service string    `json:"service,omitempty"`
	Host    string    `json:"host,omitempty"`
	Port    uint16    `json:"port,omitempty"`
	Weight  *int      `json:"weight,omitempty"`
	Percent bool      `json:"percent,omitempty"`
	Author  string    `json:"author,omitempty"`
	Reason  string    `json:"reason,omitempty"`
	Created time.Time `json:"created"`
	Until   time.Time `json:"until,omitzero"`
}

// What people write into an override is bounded, since every agent keeps it.
const (
	maxAuthor         = 128
	maxOverrideReason = 512
	maxOverride       = 8192 // bytes of a node's data; what is left of it holds the longest texts, escaped
)

// EncodeOverride returns the data of o's node. It refuses what DecodeOverride would.
func EncodeOverride(o Override) ([]byte, error) {
	s := storedOverride{
		Action: o.Action, Service: o.Service, Host: o.Host, Port: o.Port, Percent: o.Percent, Author: o.Author,
		Reason: o.Reason, Created: o.Created.UTC().Truncate(time.Second), Until: o.Until,
	}
	if !o.Until.IsZero() {
		s.Until = o.Until.UTC().Truncate(time.Second)
	}
	if o.Action == ActionWeight {
		s.Weight = &o.Weight
	}
	data, err := json.Marshal(s)
	if err != nil {
		return nil, fmt.Errorf("encode override: %w", err)
	}
	if _, err := DecodeOverride(o.Node, data); err != nil {
		return nil, err
	}
	return data, nil
}

// DecodeOverride reads the data of an override's node. Whoever may write there may stop a fleet's traffic, but nothing
// worse: every field is checked.
func DecodeOverride(node string, data []byte) (Override, error) {
	var s storedOverride
	if len(data) > maxOverride {
		return Override{}, fmt.Errorf("decode override: it has %d bytes, more than %d", len(data), maxOverride)
	}
	if err := json.Unmarshal(data, &s); err != nil {
		return Override{}, fmt.Errorf("decode override: %w", err)
	}
	o := Override{
		Target: Target{Service: s.Service, Host: s.Host, Port: s.Port}, Action: s.Action, Percent: s.Percent,
		Author: s.Author, Reason: s.Reason, Created: s.Created.UTC(), Until: s.Until.UTC(), Node: node,
	}
	if s.Weight != nil {
		o.Weight = *s.Weight
	}
	if err := o.check(s.Weight != nil); err != nil {
		return Override{}, fmt.Errorf("decode override: %w", err)
	}
	return o, nil
}

// check returns what is wrong with o.
func (o *Override) check(weighted bool) error {
	switch {
	case o.Target == Target{}:
		return errors.New("it is about nothing: neither service nor host is given")
	case o.Port != 0 && o.Host == "":
		return errors.New("a port without a host")
	case o.Service != "" && !serviceName(o.Service):
		return fmt.Errorf("service %s: not a service's name: want letters, digits and _ . : -", quote(o.Service))
	case !slices.Contains([]Action{ActionDrain, ActionMaint, ActionWeight, ActionEnable}, o.Action):
		return fmt.Errorf("action %s: want drain, maint, weight or enable", quote(string(o.Action)))
	case weighted != (o.Action == ActionWeight):
		return errors.New("a weight belongs to the action weight, and to no other")
	case o.Percent && !weighted:
		return errors.New("a percentage of no weight")
	case o.Weight < 0, o.Weight > 256, o.Percent && o.Weight > 100:
		return fmt.Errorf("weight %d: want 0 to 256, or 0 to 100 percent", o.Weight)
	case len(o.Author) > maxAuthor:
		return fmt.Errorf("the author has more than %d bytes", maxAuthor)
	case len(o.Reason) > maxOverrideReason:
		return fmt.Errorf("the reason has more than %d bytes", maxOverrideReason)
	case !writable(o.Created), !writable(o.Until):
		return errors.New("a time is outside the years 0 to 9998")
	}
	if o.Host != "" {
		e, err := ParseEndpoint(o.Host, int(cmp.Or(o.Port, 1)))
		if err != nil {
			return err
		}
		o.Host = e.Host()
	}
	return nil
}

// serviceName tells whether s can be the name of a service of an agent.
func serviceName(s string) bool {
	for i := range len(s) {
		if c := s[i]; !('a' <= c && c <= 'z' || 'A' <= c && c <= 'Z' || '0' <= c && c <= '9' || strings.IndexByte("_.:-", c) >= 0) {
			return false
		}
	}
	return s != "" && len(s) <= 255
}

// writable tells whether a time can be written as JSON in any time zone.
func writable(t time.Time) bool { return t.UTC().Year() >= 0 && t.UTC().Year() < 9999 }

// Words writes a target as the command line takes it: "user-api 10.0.0.5:8080", "user-api --all", "--host 10.0.0.5".
func (t Target) Words() string {
	switch {
	case t.Host == "":
		return t.Service + " --all"
	case t.Service == "":
		return "--host " + t.String()
	}
	return t.String()
}

// NodeName is the name of the node for overrides of t: one target has one override, and a later one replaces it.
func (t Target) NodeName() string {
	part := func(s string) string { return cmp.Or(s, "*") }
	name := part(t.Service) + "," + part(t.Host)
	if t.Port != 0 {
		name += "," + strconv.Itoa(int(t.Port))
	}
	return name
}
