package agent

import (
	"fmt"
	"maps"
	"net/netip"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	"pgregory.net/rapid"

	"github.com/myelin-sd/myelin/config"
	"github.com/myelin-sd/myelin/discovery"
	"github.com/myelin-sd/myelin/haproxy"
)

func nameserver(host, _ string) (netip.Addr, bool) {
	if host == "web.example.com" {
		return netip.MustParseAddr("10.7.7.7"), true
	}
	return netip.Addr{}, false
}

// line writes a server as in haproxy.cfg, without the id, which follows from the address.
func line(s haproxy.Server) string {
	words := []string{s.Name, s.Addr.String(), fmt.Sprintf("weight=%d", s.Weight)}
	if s.Cookie != "" {
		words = append(words, "cookie="+s.Cookie)
	}
	if s.Admin != haproxy.Ready {
		words = append(words, s.Admin.String())
	}
	return strings.Join(append(words, s.Options...), " ")
}

func TestServers(t *testing.T) {
	agent := func(edit func(*config.Agent, *config.Service)) *config.Agent {
		c := &config.Agent{}
		c.HAProxy.UseNerveWeights = true
		s := config.Service{Name: "svc"}
		edit(c, &s)
		c.Services = []config.Service{s}
		return c
	}
	hostile := func(options ...string) []discovery.Instance {
		in := instances(t, "a@10.0.0.1:80")
		in[0].ServerOptions = options
		return in
	}
	for _, tc := range []struct {
		name   string
		config *config.Agent
		active []discovery.Instance
		want   []string
		bad    string
	}{
		{"Synapse's name, the registry's weight",
			agent(func(*config.Agent, *config.Service) {}), instances(t, "web@10.0.0.1:80,7"),
			[]string{"web_10.0.0.1:80 10.0.0.1:80 weight=7"}, ""},
		{"use_nerve_weights = false", agent(func(c *config.Agent, s *config.Service) {
			c.HAProxy.UseNerveWeights = false
			s.HAProxy.ServerOptions = "weight 3 check"
		}), instances(t, "web@10.0.0.1:80,7"), []string{"web_10.0.0.1:80 10.0.0.1:80 weight=3 check"}, ""},
		{"a weight beyond HAProxy's range is cut", agent(func(*config.Agent, *config.Service) {}),
			instances(t, "web@10.0.0.1:80,1000"), []string{"web_10.0.0.1:80 10.0.0.1:80 weight=256"}, ""},
		{"default-server, then server_options, then the registration's",
			agent(func(c *config.Agent, s *config.Service) {
				c.HAProxy.Defaults = []string{"default-server inter 5s"}
				s.HAProxy.ServerOptions = "check port %{port} resolvers dns init-addr none"
			}), hostile("backup"), []string{"a_10.0.0.1:80 10.0.0.1:80 weight=1 inter 5s check port 80 backup"}, ""},
		{"a cookie where a directive is in force",
			agent(func(_ *config.Agent, s *config.Service) { s.HAProxy.Backend = []string{"cookie SRV insert"} }),
			instances(t, "a@10.0.0.1:80"), []string{"a_10.0.0.1:80 10.0.0.1:80 weight=1 cookie=a_10.0.0.1:80"}, ""},
		{"no cookie in tcp mode",
			agent(func(_ *config.Agent, s *config.Service) {
				s.HAProxy.Backend = []string{"cookie SRV insert", "mode tcp"}
			}), instances(t, "a@10.0.0.1:80"), []string{"a_10.0.0.1:80 10.0.0.1:80 weight=1"}, ""},
		{"a host name is resolved", agent(func(*config.Agent, *config.Service) {}),
			instances(t, "a@web.example.com:80"), []string{"a_web.example.com:80 10.7.7.7:80 weight=1"}, ""},
		{"one that is unknown costs only itself", agent(func(*config.Agent, *config.Service) {}),
			instances(t, "a@nowhere.example.com:80", "b@10.0.0.1:80"),
			[]string{"b_10.0.0.1:80 10.0.0.1:80 weight=1"}, "does not resolve"},
		{"options that the registry may not set", agent(func(*config.Agent, *config.Service) {}),
			hostile("source", "1.2.3.4"), nil, "not allowed from the registry: source 1.2.3.4"},
		{"options that only tune are left out", agent(func(*config.Agent, *config.Service) {}),
			hostile("check", "maxconn", "5", "rise", "2"), []string{"a_10.0.0.1:80 10.0.0.1:80 weight=1 maxconn 5"},
			"not allowed from the registry: check, rise 2"},
		{"a standby that may not say so is no member either", agent(func(c *config.Agent, _ *config.Service) { c.HAProxy.RegistryOptions = []string{} }),
			hostile("backup"), nil, "not allowed from the registry: backup"},
		{"disabled by the registration", agent(func(c *config.Agent, _ *config.Service) { c.HAProxy.RegistryOptions = []string{"disabled"} }),
			hostile("disabled"), []string{"a_10.0.0.1:80 10.0.0.1:80 weight=1 maint"}, ""},
		{"IPv6", agent(func(*config.Agent, *config.Service) {}), instances(t, "a@2001:db8::1:80"),
			[]string{"a_2001:db8::1:80 [2001:db8::1]:80 weight=1"}, ""},
		{"two registrations, one server name", agent(func(*config.Agent, *config.Service) {}),
			append(instances(t, "a_b@10.0.0.1:80"), instances(t, "a_b@10.0.0.1:80")...),
			[]string{"a_b_10.0.0.1:80 10.0.0.1:80 weight=1"}, "same server name"},
	} {
		t.Run(tc.name, func(t *testing.T) {
			k := newComposer(tc.config, nameserver, nil)
			memory := &memo{}
			servers, bad := k.backends[0].servers(tc.active, nameserver, memory)
			again, badAgain := k.backends[0].servers(tc.active, nameserver, memory)
			require.Equal(t, servers, again, "with memory as without")
			require.Equal(t, bad, badAgain)
			var got []string
			for _, s := range servers {
				require.NotZero(t, s.ID)
				got = append(got, line(s))
			}
			require.Equal(t, tc.want, got)
			if tc.bad == "" {
				require.Empty(t, bad)
			} else {
				require.Len(t, bad, 1)
				require.Contains(t, bad[0].Reason, tc.bad)
			}
		})
	}
}

// TestUnknownKeepsItsServers: a service nobody has told about keeps in the file what the file had, and is not
// compared with HAProxy.
func TestUnknownKeepsItsServers(t *testing.T) {
	c := &config.Agent{Services: []config.Service{
		{Name: "known", UsePreviousBackends: true},
		{Name: "unknown", UsePreviousBackends: true},
		{Name: "new", UsePreviousBackends: true, DefaultServers: []config.DefaultServer{{Name: "d", Host: "10.5.5.5", Port: 5}}},
	}}
	old := haproxy.Server{Name: "a_10.0.0.9:80", Addr: netip.MustParseAddrPort("10.0.0.9:80"), ID: 5, Weight: 1}
	k := newComposer(c, nameserver, haproxy.State{"unknown": {old}, "known": {old}})
	views := []view{newView(c.Services[0]), newView(c.Services[1]), newView(c.Services[2])}
	views[0] = views[0].next(discovery.Snapshot{Instances: instances(t, "b@10.0.0.2:80")}, time.Now())
	w := k.all(views, nil)

	require.Equal(t, []string{"known"}, slices.Collect(maps.Keys(w.state(w.names(), newQuarantine()))), "only what is known is compared")
	file := w.forFile(newQuarantine(), &ladder{})
	require.Equal(t, []haproxy.Server{old}, file["unknown"])
	require.Equal(t, "b_10.0.0.2:80", file["known"][0].Name)
	require.Equal(t, "d_10.5.5.5:5", file["new"][0].Name, "default servers serve until the registry speaks")
}

// TestRevisions: a backend's revision moves when, and only when, HAProxy would notice.
func TestRevisions(t *testing.T) {
	c := &config.Agent{Services: []config.Service{{Name: "a"}, {Name: "b"}}}
	k := newComposer(c, nameserver, nil)
	views := []view{newView(c.Services[0]), newView(c.Services[1])}
	w := k.all(views, nil)
	revs := func() [2]uint64 { return [2]uint64{w.backends["a"].rev, w.backends["b"].rev} }
	require.Equal(t, [2]uint64{1, 1}, revs())

	hear := func(i int, words ...string) {
		views[i] = views[i].next(discovery.Snapshot{Instances: instances(t, words...)}, time.Now())
		w = k.replace(i, views[i], w)
	}
	hear(0, "x@10.0.0.1:80")
	require.Equal(t, [2]uint64{2, 1}, revs())
	hear(0, "x@10.0.0.1:80")
	require.Equal(t, [2]uint64{2, 1}, revs(), "the same set again is no news")
	hear(0, "x@10.0.0.1:80", "y@10.0.0.2:80")
	require.Equal(t, [2]uint64{3, 1}, revs())
	require.Equal(t, [2]uint64{3, 1}, [2]uint64{k.all(views, w).backends["a"].rev, k.all(views, w).backends["b"].rev})
}

// TestUnresolvedIsNotGone: a server whose host name is not known at the moment stays as HAProxy has it.
func TestUnresolvedIsNotGone(t *testing.T) {
	c := &config.Agent{Services: []config.Service{{Name: "svc"}}}
	k := newComposer(c, nameserver, nil)
	v := newView(c.Services[0]).next(discovery.Snapshot{
		Instances: instances(t, "a@nowhere.example.com:80", "b@10.0.0.1:80"),
	}, time.Now())
	w := k.all([]view{v}, nil)
	running := haproxy.Server{Name: "a_nowhere.example.com:80", Addr: netip.MustParseAddrPort("10.0.0.9:80"), ID: 9, Weight: 1}
	gone := haproxy.Server{Name: "c_10.0.0.8:80", Addr: netip.MustParseAddrPort("10.0.0.8:80"), ID: 8, Weight: 1}
	later := running
	later.Name, later.ID = haproxy.GenerationName(running.Name, 2), 10
	actual := haproxy.State{"svc": {running, later, gone}}
	plan := haproxy.Diff(actual, w.state(w.names(), newQuarantine()), haproxy.View{Foreign: foreign(w, actual, w.names())})
	require.NotContains(t, plan.String(), running.Name)
	require.Contains(t, plan.String(), "set server svc/"+gone.Name+" state maint")
}

// TestMemoChangesNothing: what is remembered of the last time saves work and changes no result, whatever joined, left or
// changed, and whichever servers want one id (several names at one address do).
func TestMemoChangesNothing(t *testing.T) {
	b := backend{name: "svc", options: []string{"check"}, weights: true}
	rapid.Check(t, func(t *rapid.T) {
		m := &memo{}
		for range rapid.IntRange(2, 6).Draw(t, "changes") {
			var active []discovery.Instance
			for n := range 24 {
				if rapid.IntRange(0, 4).Draw(t, "there") == 0 {
					continue
				}
				payload := fmt.Sprintf(`{"host":"10.0.0.%d","port":80,"name":"i-%d","weight":%d}`, n/3, n%3, rapid.SampledFrom([]int{1, 1, 1, 2}).Draw(t, "weight"))
				in, err := discovery.DecodeNerve(fmt.Sprintf("n%d_%010d", n, n), []byte(payload))
				require.NoError(t, err)
				if rapid.IntRange(0, 40).Draw(t, "id") == 0 {
					in.ServerID = rapid.SampledFrom([]int{1, haproxy.WantedID(haproxy.Server{Addr: netip.MustParseAddrPort("10.0.0.1:80")})}).Draw(t, "asked")
				}
				active = append(active, in)
			}
			got, bad := b.servers(active, nil, m)
			want, wantBad := b.servers(active, nil, nil)
			require.Equal(t, want, got)
			require.Equal(t, wantBad, bad)
		}
	})
}
