package cli

import (
	"context"
	"fmt"
	"io"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/myelin-sd/myelin/config"
	"github.com/myelin-sd/myelin/discovery"
	"github.com/myelin-sd/myelin/discovery/zookeeper"
	"github.com/myelin-sd/myelin/discovery/zookeeper/zktest"
)

func TestParseTarget(t *testing.T) {
	for _, tc := range []struct {
		words string
		all   bool
		host  string
		want  discovery.Target
		err   string
	}{
		{"web 10.0.0.5:8080", false, "", discovery.Target{Service: "web", Host: "10.0.0.5", Port: 8080}, ""},
		{"web 10.0.0.5", false, "", discovery.Target{Service: "web", Host: "10.0.0.5"}, ""},
		{"web Node-1.Example.COM:80", false, "", discovery.Target{Service: "web", Host: "node-1.example.com", Port: 80}, ""},
		{"web ::1", false, "", discovery.Target{Service: "web", Host: "::1"}, ""},
		{"web [::1]:80", false, "", discovery.Target{Service: "web", Host: "::1", Port: 80}, ""},
		{"web [::1]", false, "", discovery.Target{Service: "web", Host: "::1"}, ""},
		{"web", true, "", discovery.Target{Service: "web"}, ""},
		{"", false, "10.0.0.5", discovery.Target{Host: "10.0.0.5"}, ""},
		{"", false, "10.0.0.5:80", discovery.Target{Host: "10.0.0.5", Port: 80}, ""},
		{"web", false, "10.0.0.5", discovery.Target{Service: "web", Host: "10.0.0.5"}, ""},

		{"", false, "", discovery.Target{}, "write SERVICE HOST:PORT, or --host HOST"},
		{"web", false, "", discovery.Target{}, "which instances of web?"},
		{"", true, "", discovery.Target{}, "--all is about a service"},
		{"web 10.0.0.5", true, "", discovery.Target{}, "is enough"},
		{"web", true, "10.0.0.5", discovery.Target{}, "is enough"},
		{"web 10.0.0.5", false, "10.0.0.5", discovery.Target{}, "is enough"},
		{"web a b", false, "", discovery.Target{}, "3 words for the target"},
		{"web 10.0.0.5:http", false, "", discovery.Target{}, "port http is no number"},
		{"web 10.0.0.5:0", false, "", discovery.Target{}, "port is not between 1 and 65535"},
		{"web 0.0.0.0", false, "", discovery.Target{}, "write HOST:PORT or HOST"},
		{"web a/b", false, "", discovery.Target{}, "write HOST:PORT or HOST"},
	} {
		got, err := parseTarget(strings.Fields(tc.words), tc.all, tc.host)
		if tc.err != "" {
			require.ErrorContains(t, err, tc.err, "%q %v %q", tc.words, tc.all, tc.host)
			continue
		}
		require.NoError(t, err, tc.words)
		require.Equal(t, tc.want, got)
	}
}

func TestParseWeight(t *testing.T) {
	for text, want := range map[string]string{"0": "0 false", "256": "256 false", "50%": "50 true", "0%": "0 true", "100%": "100 true"} {
		n, percent, err := parseWeight(text)
		require.NoError(t, err, text)
		require.Equal(t, want, fmt.Sprint(n, " ", percent))
	}
	for _, text := range []string{"", "%", "-1", "257", "101%", "ten", "1.5", "50 %"} {
		_, _, err := parseWeight(text)
		require.ErrorContains(t, err, "write 0 to 256, or 0% to 100%", text)
	}
}

var noon = time.Date(2026, 1, 2, 12, 0, 0, 0, time.UTC)

// instances reads "10.0.0.1:80 10.0.0.2:80".
func instances(t *testing.T, service, text string) serving {
	t.Helper()
	s := serving{service: service, path: "/services/" + service}
	for _, word := range strings.Fields(text) {
		host, port, err := parsePlace(word)
		require.NoError(t, err)
		e, err := discovery.ParseEndpoint(host, int(port))
		require.NoError(t, err)
		s.instances = append(s.instances, e)
	}
	return s
}

// stored reads overrides as in "drain web 10.0.0.1:80; maint 10.0.0.2 expired; junk web".
func stored(t *testing.T, text string) (all []zookeeper.StoredOverride) {
	t.Helper()
	for item := range strings.SplitSeq(text, ";") {
		words := strings.Fields(item)
		if len(words) == 0 {
			continue
		}
		o := discovery.Override{Action: discovery.Action(words[0]), Author: "ann", Created: noon.Add(-time.Hour), Revision: 7}
		for _, word := range words[1:] {
			switch host, port, err := parsePlace(word); {
			case word == "expired":
				o.Until = noon
			case word == "ending":
				o.Until = noon.Add(time.Hour)
			case word == "zero":
				o.Weight = 0
			case err == nil && strings.Contains(word, "."):
				o.Host, o.Port = host, port
			default:
				o.Service = word
			}
		}
		o.Node = o.NodeName()
		s := zookeeper.StoredOverride{Override: o}
		if words[0] == "junk" {
			s = zookeeper.StoredOverride{Override: discovery.Override{Node: o.Node, Revision: 7}, Problem: fmt.Errorf("decode override: no")}
		}
		all = append(all, s)
	}
	return all
}

// TestDecide: what an intent comes to beside what there is. The fleet has web on three ports of two hosts, and mail on
// one of them.
func TestDecide(t *testing.T) {
	for _, tc := range []struct {
		name     string
		there    string // overrides
		intent   string // action, words of the target, force
		want     string // what is done: the action stored, removed, nothing; instances; what is awaited
		refusal  string
		replaces bool
	}{
		{"one instance", "", "drain web 10.0.0.1:80", "stored drain web,10.0.0.1,80, 1 instance, awaits 10.0.0.1:80=web,10.0.0.1,80!", "", false},
		{"of a host", "", "drain web 10.0.0.1", "stored drain web,10.0.0.1, 2 instances, awaits 10.0.0.1:80=web,10.0.0.1! 10.0.0.1:81=web,10.0.0.1!", "", false},
		{"weight", "", "weight web", "stored weight web,*, 3 instances, awaits 10.0.0.1:80=web,* 10.0.0.1:81=web,* 10.0.0.2:80=web,*", "", false},
		{"replaced", "maint web 10.0.0.1:80", "drain web 10.0.0.1:80", "stored drain web,10.0.0.1,80, 1 instance, awaits 10.0.0.1:80=web,10.0.0.1,80!", "", true},
		{"junk replaced", "junk web 10.0.0.1:80", "drain web 10.0.0.1:80", "stored drain web,10.0.0.1,80, 1 instance, awaits 10.0.0.1:80=web,10.0.0.1,80!", "", true},
		{"narrower goes before", "enable web 10.0.0.1:80", "drain web 10.0.0.1", "stored drain web,10.0.0.1, 2 instances, awaits 10.0.0.1:81=web,10.0.0.1!", "", false},

		{"last ones", "", "drain web", "", "drain of all of web would leave no instance in rotation of web (3 of 3 in rotation now)", false},
		{"last ones by weight", "", "weight web zero", "", "weight of all of web would leave no instance", false},
		{"the last of three", "drain web 10.0.0.1", "maint web 10.0.0.2:80", "", "of web (1 of 3 in rotation now)", false},
		{"the last, the others expired", "drain web 10.0.0.1 expired", "maint web 10.0.0.2:80", "stored maint web,10.0.0.2,80, 1 instance, awaits 10.0.0.2:80=web,10.0.0.2,80!", "", false},
		{"none is left already", "drain web", "maint web", "stored maint web,*, 3 instances, awaits 10.0.0.1:80=web,*! 10.0.0.1:81=web,*! 10.0.0.2:80=web,*!", "", true},
		{"forced", "", "drain mail force", "stored drain mail,*, 1 instance, awaits 10.0.0.2:25=mail,*!", "", false},
		{"a host", "", "maint 10.0.0.1", "stored maint *,10.0.0.1, 2 instances, awaits 10.0.0.1:80=*,10.0.0.1! 10.0.0.1:81=*,10.0.0.1!", "", false},
		{"the host of another's last", "", "maint 10.0.0.2", "", "maint of host 10.0.0.2 would leave no instance in rotation of mail (1 of 1 in rotation now)", false},

		{"unknown instance", "", "drain web 10.0.0.3:80", "", "web has no instance at 10.0.0.3:80; did you mean 10.0.0.1:80?", false},
		{"unknown instance, forced", "", "drain web 10.0.0.3:80 force", "stored drain web,10.0.0.3,80, 0 instances, awaits 10.0.0.3:80=web,10.0.0.3,80!", "", false},
		{"unknown host", "", "drain 192.168.7.7", "", "nothing is registered on 192.168.7.7; hosts with instances 10.0.0.1, 10.0.0.2", false},

		{"enable", "drain web 10.0.0.1:80", "enable web 10.0.0.1:80", "removed, 1 instance, awaits 10.0.0.1:80=", "", true},
		{"enable what is not", "", "enable web 10.0.0.1:80", "nothing, 1 instance, awaits 10.0.0.1:80=", "", false},
		{"enable of one that has gone", "drain web 10.0.0.3:80", "enable web 10.0.0.3:80", "removed, 0 instances, awaits 10.0.0.3:80=", "", true},
		{"enable out of a wider", "drain web", "enable web 10.0.0.1:80", "stored enable web,10.0.0.1,80, 1 instance, awaits 10.0.0.1:80=web,10.0.0.1,80", "", false},
		{"enable of what is out of a wider", "drain web; drain web 10.0.0.1:80", "enable web 10.0.0.1:80", "stored enable web,10.0.0.1,80, 1 instance, awaits 10.0.0.1:80=web,10.0.0.1,80", "", true},
		{"enabled already", "drain web; enable web 10.0.0.1:80", "enable web 10.0.0.1:80", "nothing, 1 instance, awaits 10.0.0.1:80=web,10.0.0.1,80", "", true},
		{"enable ends too soon", "drain web; enable web 10.0.0.1:80 ending", "enable web 10.0.0.1:80", "stored enable web,10.0.0.1,80, 1 instance, awaits 10.0.0.1:80=web,10.0.0.1,80", "", true},
		{"enable ends with the wider", "drain web ending; enable web 10.0.0.1:80 ending", "enable web 10.0.0.1:80", "nothing, 1 instance, awaits 10.0.0.1:80=web,10.0.0.1,80", "", true},
		{"enable has expired", "drain web; enable web 10.0.0.1:80 expired", "enable web 10.0.0.1:80", "stored enable web,10.0.0.1,80, 1 instance, awaits 10.0.0.1:80=web,10.0.0.1,80", "", true},
		{"the wider has expired", "drain web expired", "enable web 10.0.0.1:80", "nothing, 1 instance, awaits 10.0.0.1:80=", "", false},
		{"the wider enables", "drain web; enable web 10.0.0.1; drain web 10.0.0.1:80", "enable web 10.0.0.1:80", "removed, 1 instance, awaits 10.0.0.1:80=web,10.0.0.1", "", true},
		{"enable is not needed any more", "enable web 10.0.0.1:80", "enable web 10.0.0.1:80", "removed, 1 instance, awaits 10.0.0.1:80=", "", true},
		{"enable of a host beside a service", "drain web", "enable 10.0.0.1", "stored enable *,10.0.0.1, 2 instances, awaits 10.0.0.1:80=*,10.0.0.1 10.0.0.1:81=*,10.0.0.1", "", false},
		{"enable of a service, one drained", "maint web; drain web 10.0.0.1:80", "enable web", "removed, 3 instances, awaits 10.0.0.1:81= 10.0.0.2:80=", "", true},
		{"enable of what is unknown", "", "enable web 10.0.0.3:80", "", "web has no instance at 10.0.0.3:80", false},
	} {
		t.Run(tc.name, func(t *testing.T) {
			in, known := situation(t, tc.there, tc.intent)
			d, err := in.decide(known, noon)
			if tc.want == "" {
				require.ErrorContains(t, err, tc.refusal)
				require.ErrorContains(t, err, "--force")
				return
			}
			require.NoError(t, err)
			require.Equal(t, tc.replaces, d.former != nil)
			d.override.Node = d.override.NodeName()
			d.expect(known, noon)
			require.Equal(t, tc.want, transcript(d))
		})
	}
}

func situation(t *testing.T, there, text string) (intent, standing) {
	t.Helper()
	verb, rest, _ := strings.Cut(text, " ")
	rest, force := strings.CutSuffix(rest, " force")
	o := stored(t, verb+" "+rest)[0]
	in := intent{action: discovery.Action(verb), target: o.Target, author: "bob", force: force}
	if !strings.Contains(rest, "zero") {
		in.weight = 5
	} else if in.target.Service == "zero" {
		in.target.Service = "web"
	}
	known := standing{overrides: stored(t, there)}
	for _, s := range []serving{instances(t, "web", "10.0.0.1:80 10.0.0.1:81 10.0.0.2:80"), instances(t, "mail", "10.0.0.2:25")} {
		if in.target.Service == "" || in.target.Service == s.service {
			known.services = append(known.services, s)
		}
	}
	return in, known
}

func transcript(d deed) string {
	text := d.does
	if d.does == doesStore {
		text += " " + string(d.override.Action) + " " + d.override.Node
	}
	text += ", " + counted(d.count, "instance") + ", awaits"
	for _, w := range d.awaited {
		text += " " + w.instance.String() + "=" + w.node
		if w.ends {
			text += "!"
		}
	}
	return text
}

// TestWordsOfDeeds: what people read.
func TestWordsOfDeeds(t *testing.T) {
	in, known := situation(t, "maint web 10.0.0.1; drain web 10.0.0.1:80", "weight web")
	in.percent, in.limit = true, 90*time.Minute
	known.overrides[0].Reason = "two\nlines"
	d, err := in.decide(known, noon)
	require.NoError(t, err)
	require.Equal(t, "all of web (3 instances) has weight 5% of what it would be until "+
		noon.Add(90*time.Minute).Local().Format(time.RFC3339)+" (for 1h30m)", d.done(in, noon))
	require.Equal(t, []string{
		`web 10.0.0.1: its own override goes before: maint by ann, 1h00m old: "two\nlines"`,
		`web 10.0.0.1:80: its own override goes before: drain by ann, 1h00m old`,
	}, d.before(noon))
	require.Equal(t, noon.Add(90*time.Minute), d.override.Until)
	in.limit = 1500 * time.Millisecond
	require.Equal(t, noon.Add(2*time.Second), in.override(noon).Until, "stored in whole seconds, never too short")

	in, known = situation(t, "drain web", "enable web 10.0.0.1:80")
	d, err = in.decide(known, noon)
	require.NoError(t, err)
	require.Equal(t, "web 10.0.0.1:80 is as registered, although all of web has drain", d.done(in, noon))
	require.True(t, d.override.Until.IsZero())
	in, known = situation(t, "drain web ending", "enable web 10.0.0.1:80")
	d, err = in.decide(known, noon)
	require.NoError(t, err)
	require.Equal(t, noon.Add(time.Hour), d.override.Until, "with the one that it is against")
	in, known = situation(t, "junk web 10.0.0.1:80", "drain web 10.0.0.1:80")
	d, err = in.decide(known, noon)
	require.NoError(t, err)
	require.Equal(t, []string{"web 10.0.0.1:80: replaces what was no override: decode override: no"}, d.before(noon))
}

func TestMeant(t *testing.T) {
	require.Equal(t, "; did you mean web?", meant("wed", []string{"mail", "web"}, "there are"))
	require.Equal(t, "; there are mail, web", meant("user-api", []string{"web", "mail", "web"}, "there are"))
	require.Equal(t, "; there are a, b, c, d, e and 2 more", meant("zzz", strings.Fields("g f e d c b a"), "there are"))
	require.Empty(t, meant("web", nil, "there are"))
}

// TestTwoOperators: two who take out the last two instances at a time have each seen the other one's in rotation. Who
// looks last takes back what it did, also where that replaced something.
func TestTwoOperators(t *testing.T) {
	server := zktest.New(t)
	a := &app{out: io.Discard, errs: io.Discard, timeout: time.Minute, env: func(string) (string, bool) { return "", false }}
	zk := config.ZooKeeper{Hosts: []string{server.Addr()}}
	at := func(host string) discovery.Target { return discovery.Target{Service: "web", Host: host, Port: 80} }
	web := serving{service: "web", instances: []discovery.Endpoint{endpoint(t, "10.0.0.1:80"), endpoint(t, "10.0.0.2:80")}}
	require.NoError(t, a.ask(t.Context(), zk, func(ctx context.Context, s *zookeeper.Session) error {
		store := func(in intent, known standing) deed {
			d, err := in.decide(known, time.Now())
			require.NoError(t, err)
			revision := zookeeper.NoOverride
			if d.former != nil {
				revision = d.former.Revision
			}
			d.override, err = s.PutOverride(ctx, "/o", d.override, revision)
			require.NoError(t, err)
			return d
		}
		known := standing{services: []serving{web}}
		first := intent{action: discovery.ActionWeight, weight: 5, target: at("10.0.0.1")}
		require.NoError(t, first.confirmSpared(ctx, s, "/o", known, store(first, known)))
		var err error
		known.overrides, err = s.Overrides(ctx, "/o")
		require.NoError(t, err)

		one, other := intent{action: discovery.ActionDrain, target: at("10.0.0.1")}, intent{action: discovery.ActionMaint, target: at("10.0.0.2")}
		done, too := store(one, known), store(other, known)
		require.ErrorContains(t, one.confirmSpared(ctx, s, "/o", known, done), "leaves no instance in rotation of web (2 of 2 in rotation now); it was taken back")
		require.NoError(t, other.confirmSpared(ctx, s, "/o", known, too))
		left, err := s.Overrides(ctx, "/o")
		require.NoError(t, err)
		require.Len(t, left, 2)
		require.Equal(t, discovery.ActionWeight, left[0].Action, "what it had replaced is back")
		require.Equal(t, discovery.ActionMaint, left[1].Action)
		return nil
	}))
}
