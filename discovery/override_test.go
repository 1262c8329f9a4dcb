package discovery

import (
	"fmt"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	"pgregory.net/rapid"
)

func endpointAt(t require.TestingT, host string, port int) Endpoint {
	e, err := ParseEndpoint(host, port)
	require.NoError(t, err)
	return e
}

// TestOverrideFor: the narrowest target counts, whatever the order and the age; time and other services matter.
func TestOverrideFor(t *testing.T) {
	now := time.Date(2026, 5, 1, 12, 0, 0, 0, time.UTC)
	at := func(o Override, created, until time.Duration) Override {
		o.Created = now.Add(created)
		if until != 0 {
			o.Until = now.Add(until)
		}
		return o
	}
	service := at(Override{Target: Target{Service: "web"}, Action: ActionDrain, Node: "service"}, -time.Hour, 0)
	host := at(Override{Target: Target{Host: "10.0.0.1"}, Action: ActionMaint, Node: "host"}, -2*time.Hour, 0)
	ofHost := at(Override{Target: Target{Service: "web", Host: "10.0.0.1"}, Action: ActionWeight, Weight: 3, Node: "service on host"}, -3*time.Hour, 0)
	anyone := at(Override{Target: Target{Host: "10.0.0.1", Port: 80}, Action: ActionDrain, Node: "listener"}, -4*time.Hour, 0)
	instance := at(Override{Target: Target{Service: "web", Host: "10.0.0.1", Port: 80}, Action: ActionEnable, Node: "instance"}, -5*time.Hour, 0)
	name := at(Override{Target: Target{Service: "web", Host: "db.example.com"}, Action: ActionMaint, Node: "name"}, -time.Hour, 0)
	over := at(Override{Target: Target{Service: "web", Host: "10.0.0.1", Port: 80}, Action: ActionMaint, Node: "over"}, -time.Minute, -time.Second)
	later := at(Override{Target: Target{Service: "web"}, Action: ActionMaint, Node: "later"}, -time.Second, time.Hour)

	for name, c := range map[string]struct {
		all     Overrides
		service string
		host    string
		port    int
		want    string // node
	}{
		"none":                              {nil, "web", "10.0.0.1", 80, ""},
		"of the service":                    {Overrides{service}, "web", "10.0.0.9", 1, "service"},
		"of another service":                {Overrides{service}, "api", "10.0.0.1", 80, ""},
		"host before service":               {Overrides{service, host}, "web", "10.0.0.1", 80, "host"},
		"host, whatever runs there":         {Overrides{service, host}, "api", "10.0.0.1", 9, "host"},
		"service on a host before host":     {Overrides{ofHost, host, service}, "web", "10.0.0.1", 81, "service on host"},
		"listener before service on a host": {Overrides{anyone, ofHost, host}, "web", "10.0.0.1", 80, "listener"},
		"instance before all":               {Overrides{anyone, host, instance, ofHost, service}, "web", "10.0.0.1", 80, "instance"},
		"instance of another service":       {Overrides{instance, service}, "api", "10.0.0.1", 80, ""},
		"another port":                      {Overrides{instance, service}, "web", "10.0.0.1", 81, "service"},
		"name in capitals":                  {Overrides{name, service}, "web", "DB.example.com", 81, "name"},
		"one that ended":                    {Overrides{over, service}, "web", "10.0.0.1", 80, "service"},
		"of one target the later":           {Overrides{later, service}, "web", "10.0.0.1", 80, "later"},
		"IPv4 in IPv6 clothes":              {Overrides{host}, "web", "::ffff:10.0.0.1", 80, "host"},
	} {
		t.Run(name, func(t *testing.T) {
			o := c.all.For(c.service, endpointAt(t, c.host, c.port), now)
			if c.want == "" {
				require.Nil(t, o)
				return
			}
			require.NotNil(t, o)
			require.Equal(t, c.want, o.Node)
		})
	}

	require.Equal(t, later.Until, Overrides{service, over, later}.Next(now))
	require.Zero(t, Overrides{service, over}.Next(now))
	require.False(t, later.InForce(later.Until), "it ends at its time")
}

// TestOverrideForModel: what For finds is what going through all of them finds.
func TestOverrideForModel(t *testing.T) {
	now := time.Date(2026, 5, 1, 12, 0, 0, 0, time.UTC)
	rapid.Check(t, func(t *rapid.T) {
		target := rapid.Custom(func(t *rapid.T) Target {
			g := Target{Service: rapid.SampledFrom([]string{"", "a", "b"}).Draw(t, "service"), Host: rapid.SampledFrom([]string{"", "10.0.0.1", "h"}).Draw(t, "host")}
			if g.Host != "" {
				g.Port = rapid.SampledFrom([]uint16{0, 1, 2}).Draw(t, "port")
			}
			if g == (Target{}) {
				g.Service = "a"
			}
			return g
		})
		var all Overrides
		for i := range rapid.IntRange(0, 12).Draw(t, "count") {
			all = append(all, Override{
				Target: target.Draw(t, "target"), Node: fmt.Sprint(i), Created: now.Add(-time.Duration(rapid.IntRange(0, 3).Draw(t, "age")) * time.Hour),
				Until: rapid.SampledFrom([]time.Time{{}, now, now.Add(time.Second), now.Add(-time.Second)}).Draw(t, "until"),
			})
		}
		service := rapid.SampledFrom([]string{"a", "b", "c"}).Draw(t, "of")
		e := endpointAt(t, rapid.SampledFrom([]string{"10.0.0.1", "h", "i"}).Draw(t, "at"), rapid.IntRange(1, 3).Draw(t, "on"))

		rank := func(o Override) int {
			n := 0
			for i, set := range []bool{o.Service != "", o.Host != "", o.Port != 0} {
				if set {
					n |= 1 << i
				}
			}
			return n
		}
		var want *Override
		for i, o := range all {
			about := (o.Service == "" || o.Service == service) && (o.Host == "" || o.Host == e.Host()) && (o.Port == 0 || o.Port == e.Port())
			ended := !o.Until.IsZero() && !o.Until.After(now)
			if about && !ended && (want == nil || rank(o) > rank(*want) || rank(o) == rank(*want) && o.Created.After(want.Created)) {
				want = &all[i]
			}
		}
		require.Equal(t, want, all.For(service, e, now))
	})
}

// TestDecodeOverride: every field is checked.
func TestDecodeOverride(t *testing.T) {
	for data, wrong := range map[string]string{
		`{"action":"drain","service":"web","host":"10.0.0.1","port":80,"author":"a","reason":"r","created":"2026-05-01T12:00:00Z"}`: "",
		`{"action":"drain","host":"DB.Example.com","later":[1]}`:                                                                    "",
		`{"action":"weight","service":"web","weight":256}`:                                                                          "",
		`{"action":"weight","service":"web","weight":100,"percent":true}`:                                                           "",
		``:                   "unexpected end",
		`[]`:                 "cannot unmarshal",
		`{}`:                 "about nothing",
		`{"action":"drain"}`: "about nothing",
		`{"action":"drain","service":"web","port":80}`:                                 "a port without a host",
		`{"action":"drain","host":"10.0.0.1","port":70000}`:                            "cannot unmarshal",
		`{"action":"drain","service":"a/b"}`:                                           "not a service's name",
		`{"action":"drain","service":"a\n"}`:                                           "not a service's name",
		`{"action":"drain","service":"a,b"}`:                                           "not a service's name",
		`{"action":"drain","service":"` + strings.Repeat("a", 256) + `"}`:              "not a service's name",
		`{"action":"explode","service":"web"}`:                                         `action "explode"`,
		`{"action":"drain","service":"web","weight":1}`:                                "a weight belongs to",
		`{"action":"weight","service":"web"}`:                                          "a weight belongs to",
		`{"action":"drain","service":"web","percent":true}`:                            "a percentage of no weight",
		`{"action":"weight","service":"web","weight":-1}`:                              "weight -1",
		`{"action":"weight","service":"web","weight":257}`:                             "weight 257",
		`{"action":"weight","service":"web","weight":101,"percent":true}`:              "weight 101",
		`{"action":"drain","host":"0.0.0.0"}`:                                          "not an IP address",
		`{"action":"drain","host":"a b"}`:                                              "not an IP address",
		`{"action":"drain","service":"w","author":"` + strings.Repeat("a", 129) + `"}`: "author",
		`{"action":"drain","service":"w","reason":"` + strings.Repeat("a", 513) + `"}`: "reason",
		`{"action":"drain","service":"w","until":"tomorrow"}`:                          "decode override",
		`{"action":"drain","service":"w","until":"9999-12-31T23:59:59-10:00"}`:         "a time is outside",
		`{"x":"` + strings.Repeat("a", maxOverride) + `"}`:                             "bytes",
	} {
		o, err := DecodeOverride("n", []byte(data))
		if wrong != "" {
			require.ErrorContains(t, err, wrong, data)
			continue
		}
		require.NoError(t, err, data)
		require.Equal(t, "n", o.Node)
		require.Equal(t, strings.ToLower(o.Host), o.Host)
	}
}

// FuzzDecodeOverride: nothing panics, and what is read can be written and read again.
func FuzzDecodeOverride(f *testing.F) {
	f.Add([]byte(`{"action":"drain","service":"web","host":"10.0.0.1","port":80,"author":"a","reason":"r","created":"2026-05-01T12:00:00Z"}`))
	f.Add([]byte(`{"action":"weight","host":"[::1]","weight":50,"percent":true,"until":"2026-05-01T12:00:00.5+02:00"}`))
	f.Add([]byte(`{"action":"enable","host":"a.","reason":"\u0000\u2028<\ud800"}`))
	f.Fuzz(func(t *testing.T, data []byte) {
		o, err := DecodeOverride("n", data)
		if err != nil {
			return
		}
		o.Created, o.Until = o.Created.Truncate(time.Second), o.Until.Truncate(time.Second)
		text, err := EncodeOverride(o)
		require.NoError(t, err)
		again, err := DecodeOverride("n", text)
		require.NoError(t, err)
		require.Equal(t, o, again)
		require.NotContains(t, o.NodeName(), "/")
		require.NotContains(t, o.NodeName(), "\n")
	})
}
