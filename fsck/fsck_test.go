package fsck

import (
	"fmt"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/myelin-sd/myelin/discovery"
)

var now = time.Date(2026, 3, 1, 12, 0, 0, 0, time.UTC)

// tree is a registry under construction. Nodes are made one after the other.
type tree struct {
	o     Options
	c     *Checker
	zxid  int64
	names map[string]int
}

func newTree(o Options) *tree {
	o.Now = now
	if o.OlderThan == 0 {
		o.OlderThan = 24 * time.Hour
	}
	t := &tree{o: o, c: New(o), zxid: 100, names: map[string]int{}}
	t.folder("/services", true, 30*24*time.Hour)
	return t
}

func (t *tree) folder(path string, root bool, age time.Duration) {
	t.c.Folder(Folder{Node: Node{Path: path, Created: now.Add(-age), Modified: now.Add(-age)}, Root: root, Names: 1, NameBytes: 10})
}

// node adds a child of a service; owner 0 is a persistent node that was written age ago.
func (t *tree) node(path, data string, owner int64, age time.Duration) Node {
	dir := path[:strings.LastIndexByte(path, '/')]
	if t.c.folders[dir] == nil {
		t.folder(dir, false, age)
	}
	t.zxid++
	n := Node{Path: path, Data: []byte(data), Owner: owner, Created: now.Add(-age), Modified: now.Add(-age), Czxid: t.zxid, Mzxid: t.zxid, Version: 3}
	t.c.Node(dir, n)
	return n
}

const (
	day  = 24 * time.Hour
	plea = `{"host":"10.0.0.%d","port":8080,"name":"%s","weight":10,"labels":{"zone":"a"}}`
)

func instance(n int, name string) string { return fmt.Sprintf(plea, n, name) }

// lines are findings as "severity id path".
func lines(found []Finding) []string {
	out := []string{}
	for _, f := range found {
		out = append(out, fmt.Sprint(f.Severity, " ", f.ID, " ", f.Path))
	}
	return out
}

func TestFindings(t *testing.T) {
	for _, c := range []struct {
		name  string
		o     Options
		build func(*tree)
		want  []string
	}{
		{"nothing is wrong", Options{}, func(r *tree) {
			r.node("/services/api/a_1", instance(1, "a"), 7, 90*day)
			r.node("/services/api/b_1", instance(2, "b"), 8, 90*day)
			r.node("/services/mail/m_1", `{"serviceEndpoint":{"host":"10.0.1.1","port":25},"additionalEndpoints":{},"status":"ALIVE"}`, 8, day)
			r.node("/services/curated/c", `{"name":"c","id":"c","address":"10.0.2.1","port":80,"serviceType":"DYNAMIC"}`, 8, day)
			r.node("/services/young", "", 0, time.Hour)
		}, nil},
		{"an orphan, and one that is renewed", Options{}, func(r *tree) {
			r.node("/services/api/a", instance(1, "a"), 0, 25*time.Hour)
			r.node("/services/api/b", instance(2, "b"), 0, time.Hour)
		}, []string{"warning orphan /services/api/a", "note no-owner /services/api/b"}},
		{"how old is up to the operator", Options{OlderThan: 48 * time.Hour}, func(r *tree) {
			r.node("/services/api/a", instance(1, "a"), 0, 25*time.Hour)
		}, []string{"note no-owner /services/api/a"}},
		{"empty folders", Options{}, func(r *tree) {
			r.node("/services/old", "", 0, 25*time.Hour)
			r.node("/services/configured", `{"haproxy":{}}`, 0, 25*time.Hour)
			r.node("/services/deep/old", "", 0, 25*time.Hour)
		}, []string{"note empty-folder /services/configured", "note empty-folder /services/deep/old", "note empty-folder /services/old"}},
		{"an empty folder among instances", Options{}, func(r *tree) {
			r.node("/services/api/a", instance(1, "a"), 7, day)
			r.node("/services/api/locks", "", 0, 3*day)
		}, []string{"note empty-folder /services/api/locks"}},
		{"twins: the oldest goes first", Options{}, func(r *tree) {
			r.node("/services/api/a_2", instance(1, "a"), 7, time.Hour)
			r.node("/services/api/a_3", instance(1, "a"), 8, time.Hour)
			r.node("/services/api/a_1", instance(1, "a"), 9, time.Hour)
		}, []string{"warning twin /services/api/a_2", "warning twin /services/api/a_3"}},
		{"a twin that leaves is none", Options{}, func(r *tree) {
			r.node("/services/api/a_1", `{"host":"10.0.0.1","port":80,"name":"a","leaving":true}`, 7, time.Hour)
			r.node("/services/api/a_2", `{"host":"10.0.0.1","port":80,"name":"a"}`, 8, time.Hour)
		}, nil},
		{"names differ", Options{}, func(r *tree) {
			r.node("/services/api/a_1", instance(1, "a"), 7, time.Hour)
			r.node("/services/api/b_1", instance(1, "b"), 8, time.Hour)
		}, []string{"warning names-differ /services/api/a_1"}},
		{"a persistent twin is an orphan, younger or not", Options{}, func(r *tree) {
			r.node("/services/api/a_1", instance(1, "a"), 7, 50*time.Hour)
			r.node("/services/api/a_2", instance(1, "a"), 0, 25*time.Hour)
		}, []string{"warning orphan /services/api/a_2"}},
		{"the same endpoint in two services", Options{}, func(r *tree) {
			for i := range 5 {
				r.node(fmt.Sprintf("/services/api/a_%d", i), instance(i+1, "a"), 7, time.Hour)
				r.node(fmt.Sprintf("/services/copy/a_%d", i), instance(i+1, "a"), 7, time.Hour)
			}
		}, []string{"note shared-endpoint /services/copy"}},
		{"undecodable and unknown", Options{}, func(r *tree) {
			r.node("/services/api/ok", instance(1, "a"), 7, day)
			r.node("/services/api/port", `{"host":"10.0.0.2"}`, 7, day)
			r.node("/services/api/cut", `{"host":"10.0`, 7, day)
			r.node("/services/api/empty", "", 7, day)
			r.node("/services/api/xml", "<a/>", 7, day)
			r.node("/services/api/other", `{"leader":true}`, 7, day)
			r.node("/services/api/stopped", `{"serviceEndpoint":{"host":"10.0.0.3","port":1},"status":"DEAD"}`, 7, day)
			r.node("/services/only/junk", "junk", 0, day)
		}, []string{
			"warning undecodable /services/api/cut", "warning undecodable /services/api/empty", "warning unknown-format /services/api/other",
			"warning undecodable /services/api/port", "warning unknown-format /services/api/xml", "warning unknown-format /services/only/junk",
		}},
		{"zones", Options{}, func(r *tree) {
			r.node("/services/api/a", instance(1, "a"), 7, day)
			r.node("/services/api/b", `{"host":"10.0.0.2","port":80,"name":"b"}`, 7, day)
			r.node("/services/none/c", `{"host":"10.0.0.3","port":80,"name":"c"}`, 7, day)
		}, []string{"warning unlabelled-zone /services/api"}},
		{"zones have the label that the file says", Options{Zones: map[string]string{"/services/api": "rack"}}, func(r *tree) {
			r.node("/services/api/a", `{"host":"10.0.0.1","port":80,"labels":{"rack":"1"}}`, 7, day)
			r.node("/services/api/b", `{"host":"10.0.0.2","port":80,"labels":{"rack":"1","zone":"a"}}`, 7, day)
		}, nil},
		{"weights", Options{}, func(r *tree) {
			for i, w := range []string{"0", "1", "256", "257", "-1", `"10"`, "null", "1.5"} {
				r.node(fmt.Sprintf("/services/api/%d", i), fmt.Sprintf(`{"host":"10.0.0.%d","port":80,"weight":%s}`, i+1, w), 7, day)
			}
		}, []string{
			"warning weight-zero /services/api/0", "warning weight-range /services/api/3", "warning weight-range /services/api/4",
			"warning weight-range /services/api/5", "warning weight-range /services/api/7",
		}},
		{"hosts", Options{}, func(r *tree) {
			for i, h := range []string{"127.0.0.9", "::1", "localhost", "localhost.localdomain", "0.0.0.0", "::", "10.0.0.1", "not-localhost"} {
				r.node(fmt.Sprintf("/services/api/%d", i), fmt.Sprintf(`{"host":%q,"port":80}`, h), 7, day)
			}
			r.node("/services/set/m", `{"serviceEndpoint":{"host":"0.0.0.0","port":80},"status":"ALIVE"}`, 7, day)
		}, []string{
			"warning local-host /services/api/0", "warning local-host /services/api/1", "warning local-host /services/api/2",
			"warning local-host /services/api/3", "warning local-host /services/api/4", "warning local-host /services/api/5",
			"warning local-host /services/set/m",
		}},
		{"near the reply limit, and beyond it", Options{}, func(r *tree) {
			for path, bytes := range map[string]int{"/services/small": 700_000, "/services/near": 750_000, "/services/over": 1_010_000} {
				r.c.Folder(Folder{Node: Node{Path: path}, Names: 10_000, NameBytes: bytes})
			}
		}, []string{"error reply-limit /services/over", "warning reply-limit /services/near"}},
		{"not read, and missing", Options{Services: map[string]string{"/services/gone": "gone"}}, func(r *tree) {
			r.c.Unread("/services/closed", "no access")
			r.c.Absent("/services/gone")
		}, []string{"error not-read /services/closed", "warning missing-path /services/gone"}},
		{"nobody consumes", Options{}, func(r *tree) {
			r.node("/services/api/a", instance(1, "a"), 7, day)
			r.node("/services/mail/a", instance(2, "a"), 7, day)
			r.c.Consumer([]string{"/services/mail", "/other"})
		}, []string{"note unconsumed /services/api"}},
		{"nobody tells who consumes", Options{}, func(r *tree) {
			r.node("/services/api/a", instance(1, "a"), 7, day)
		}, nil},
		{"not everybody tells", Options{}, func(r *tree) {
			r.node("/services/api/a", instance(1, "a"), 7, day)
			r.c.Consumer(nil)
			r.c.Unsure()
		}, nil},
	} {
		t.Run(c.name, func(t *testing.T) {
			r := newTree(c.o)
			c.build(r)
			require.ElementsMatch(t, c.want, lines(r.c.Findings()))
			require.Equal(t, lines(r.c.Findings()), lines(r.c.Findings()), "asked twice")
		})
	}
}

func TestOverrides(t *testing.T) {
	const named = `{"action":"drain","service":"api","created":"2026-02-01T00:00:00Z"%s}`
	build := func(o Options) *Checker {
		r := newTree(o)
		r.node("/services/api/a", instance(1, "a"), 7, day)
		for name, data := range map[string]string{
			"standing":  fmt.Sprintf(named, ""),
			"instance":  fmt.Sprintf(named, `,"host":"10.0.0.1","port":8080`),
			"host":      `{"action":"maint","host":"10.0.0.1"}`,
			"expired":   fmt.Sprintf(named, `,"until":"2026-03-01T11:59:59Z"`),
			"running":   fmt.Sprintf(named, `,"until":"2026-03-01T12:00:01Z"`),
			"port":      fmt.Sprintf(named, `,"host":"10.0.0.1","port":8081`),
			"away":      fmt.Sprintf(named, `,"host":"10.0.0.2"`),
			"nowhere":   `{"action":"maint","host":"10.9.9.9"}`,
			"unknown":   `{"action":"drain","service":"mail"}`,
			"malformed": `{"action":"drain"`,
		} {
			r.c.Override(Node{Path: "/myelin/overrides/" + name, Data: []byte(data), Modified: now.Add(-48 * time.Hour)})
		}
		return r.c
	}
	const at = " /myelin/overrides/"
	require.ElementsMatch(t, []string{
		"warning override-expired" + at + "expired", "warning undecodable" + at + "malformed",
		"note override-aimless" + at + "port", "note override-aimless" + at + "away", "note override-aimless" + at + "nowhere",
		"note override-aimless" + at + "unknown",
	}, lines(build(Options{Whole: true}).Findings()))
	require.ElementsMatch(t, []string{
		"warning override-expired" + at + "expired", "warning undecodable" + at + "malformed",
		"note override-aimless" + at + "port", "note override-aimless" + at + "away",
	}, lines(build(Options{}).Findings()), "of services that were not looked at nothing is known")
	require.Contains(t, lines(build(Options{Services: map[string]string{"/services/api": "mail"}}).Findings()), "warning override-expired"+at+"expired")
	require.NotContains(t, lines(build(Options{Whole: true, Services: map[string]string{"/services/api": "mail"}}).Findings()),
		"note override-aimless"+at+"unknown", "the file calls the service so")
}

// TestIdleOverrides: an enable is of use only where something wider is in force for what it is about.
func TestIdleOverrides(t *testing.T) {
	const instanceOf, hostOf, service, host = `"service":"api","host":"10.0.0.1","port":8080`, `"service":"api","host":"10.0.0.1"`, `"service":"api"`, `"host":"10.0.0.1"`
	for name, tc := range map[string]struct {
		enable, other string
		idle          bool
	}{
		"alone":                             {instanceOf, "", true},
		"the service is drained":            {instanceOf, `{"action":"drain",` + service + `}`, false},
		"the host is drained":               {instanceOf, `{"action":"maint",` + host + `}`, false},
		"the service has a weight":          {hostOf, `{"action":"weight","weight":5,` + service + `}`, false},
		"a host, and a service is drained":  {host, `{"action":"drain",` + service + `}`, false},
		"a service, and a host is drained":  {service, `{"action":"drain",` + host + `}`, true},
		"another service is drained":        {instanceOf, `{"action":"drain","service":"mail"}`, true},
		"another host is drained":           {instanceOf, `{"action":"drain","service":"api","host":"10.0.0.2"}`, true},
		"the wider one is an enable, too":   {instanceOf, `{"action":"enable",` + service + `}`, true},
		"the wider one is over":             {instanceOf, `{"action":"drain",` + service + `,"until":"2026-03-01T11:59:59Z"}`, true},
		"a narrower one goes before itself": {hostOf, `{"action":"drain",` + instanceOf + `}`, true},
	} {
		t.Run(name, func(t *testing.T) {
			r := newTree(Options{Whole: true})
			r.node("/services/api/a", instance(1, "a"), 7, day)
			r.c.Override(Node{Path: "/o/it", Data: []byte(`{"action":"enable",` + tc.enable + `}`)})
			if tc.other != "" {
				r.c.Override(Node{Path: "/o/other", Data: []byte(tc.other)})
			}
			if tc.idle {
				require.Contains(t, lines(r.c.Findings()), "note override-idle /o/it")
			} else {
				require.NotContains(t, lines(r.c.Findings()), "note override-idle /o/it")
			}
		})
	}
}

// TestRemovals: what may be deleted, with all that tells whether it is still the same, and nothing else.
func TestRemovals(t *testing.T) {
	r := newTree(Options{})
	orphan := r.node("/services/api/orphan", instance(1, "a"), 0, 25*time.Hour)
	r.node("/services/api/renewed", instance(2, "b"), 0, time.Hour)
	older := r.node("/services/api/c_1", instance(3, "c"), 7, 50*time.Hour)
	younger := r.node("/services/api/c_2", instance(3, "c"), 8, time.Hour)
	broken := r.node("/services/api/broken", `{"host":`, 0, 25*time.Hour)
	r.node("/services/api/young", `{"host":`, 0, time.Hour)
	r.node("/services/api/live", `{"host":`, 7, 25*time.Hour)
	r.node("/services/api/foreign", `<config/>`, 0, 25*time.Hour)
	r.node("/services/api/anywhere", `{"host":"0.0.0.0","port":1}`, 0, 25*time.Hour)
	r.node("/services/empty", "", 0, 25*time.Hour)
	r.c.Override(Node{Path: "/o/expired", Version: 9, Data: []byte(`{"action":"drain","service":"api","until":"2026-01-01T00:00:00Z"}`)})
	r.c.Override(Node{Path: "/o/parent", Children: 1, Data: []byte(`{"action":"drain","service":"api","until":"2026-01-01T00:00:00Z"}`)})
	r.c.Override(Node{Path: "/o/bad", Modified: now.Add(-time.Hour), Data: []byte(`{}`)})

	got := map[string]Removal{}
	for _, f := range r.c.Findings() {
		if f.Removal != nil {
			require.Equal(t, f.Path, f.Removal.Node.Path)
			require.NotContains(t, got, f.Path, "once")
			got[f.Path] = *f.Removal
		}
	}
	bare := func(n Node) Node { n.Data = nil; return n }
	keep := bare(younger)
	require.Equal(t, map[string]Removal{
		orphan.Path: {Node: bare(orphan)}, broken.Path: {Node: bare(broken)},
		older.Path:   {Node: bare(older), Keep: &keep, Lives: true},
		"/o/expired": {Node: Node{Path: "/o/expired", Version: 9}},
	}, got)
}

// TestSilent: endpoints are asked once, and whoever registers a silent one is named.
func TestSilent(t *testing.T) {
	r := newTree(Options{})
	r.node("/services/api/a", instance(1, "a"), 7, day)
	r.node("/services/copy/a", instance(1, "a"), 7, day)
	r.node("/services/api/b", instance(2, "b"), 7, day)
	r.node("/services/api/c", `{"host":"10.0.0.3","port":80,"leaving":true,"labels":{"zone":"a"}}`, 7, day)
	all := r.c.Endpoints()
	require.Equal(t, "[10.0.0.1:8080 10.0.0.2:8080]", fmt.Sprint(all))
	r.c.Silent(map[discovery.Endpoint]string{all[0]: "refused\n"})
	require.ElementsMatch(t, []string{"warning no-answer /services/api/a", "warning no-answer /services/copy/a", "note shared-endpoint /services/copy"}, lines(r.c.Findings()))
	for _, f := range r.c.Findings() {
		require.NotContains(t, f.Detail, "\n")
	}
}

// TestSharedEndpointOnce: an endpoint that stands twice in one service, and in another one too, is one that they share.
func TestSharedEndpointOnce(t *testing.T) {
	r := newTree(Options{})
	r.node("/services/api/a_1", instance(1, "a"), 7, day)
	r.node("/services/copy/a_1", instance(1, "a"), 7, day)
	r.node("/services/copy/a_2", instance(1, "a"), 8, day)
	shared := slices.DeleteFunc(r.c.Findings(), func(f Finding) bool { return f.ID != SharedEndpoint })
	require.Len(t, shared, 1)
	require.Equal(t, "1 endpoint is also in /services/api: 10.0.0.1:8080", shared[0].Detail)
}

// TestHostileText: nothing of the registry reaches a detail as it is.
func TestHostileText(t *testing.T) {
	const evil = "\x1b[31mred\u202e\n"
	r := newTree(Options{Services: map[string]string{"/services/api": "api"}})
	r.c.Unread("/x", evil)
	r.node("/services/"+evil+"/a_1", instance(9, "a"), 7, day)
	r.node("/services/"+evil+"/a_2", instance(9, "b"), 8, day)
	r.node("/services/"+evil+"/a_3", instance(9, "b"), 9, day)
	r.node("/services/same/a", instance(9, "b"), 9, day)
	r.node("/services/api/a"+evil, fmt.Sprintf(`{"host":"10.0.0.1","port":80,"name":%q}`, evil), 7, day)
	r.node("/services/api/b"+evil, `{"host":"10.0.0.1","port":80,"name":"b"}`, 8, day)
	r.node("/services/api/c", evil, 8, day)
	r.node("/services/api/d", fmt.Sprintf(`{"host":%q,"port":80}`, evil), 8, day)
	r.c.Override(Node{Path: "/o/x", Data: []byte(`{"action":"` + "\\u001b[31m" + `","service":"a"}`)})
	r.c.Override(Node{Path: "/o/y", Data: []byte(`{"action":"drain","service":"` + "\\u001b\\u202e" + `"}`)})
	r.c.o.Whole = true
	found := r.c.Findings()
	require.GreaterOrEqual(t, len(found), 5)
	for _, f := range found {
		for _, text := range []string{f.Detail, f.Advice} {
			require.NotRegexp(t, `[^ -~]`, text, f.ID)
		}
	}
}

func TestCounts(t *testing.T) {
	r := newTree(Options{})
	r.node("/services/api/a", instance(1, "a"), 7, day)
	r.node("/services/api/bad", "{", 7, day)
	r.node("/services/empty", "", 0, day)
	r.c.Consumer(nil)
	require.Equal(t, Counts{Nodes: 5, Services: 1, Instances: 1, Consumers: 1}, r.c.Counts())
}

// TestOthersNodesStay: a tree may hold more than registrations. Overrides that lie in it are no instances, though they
// have a host and a port, and what is broken where nothing registers is no registration.
func TestOthersNodesStay(t *testing.T) {
	r := newTree(Options{})
	r.node("/myelin/overrides/api,10.0.0.1,8080", `{"action":"drain","service":"api","host":"10.0.0.1","port":8080,"created":"2026-01-01T00:00:00Z"}`, 0, 60*day)
	r.node("/config/app", `{"port":8080,"debug":true}`, 0, 60*day)
	r.node("/config/hocon", `{ foo = bar }`, 0, 60*day)
	for _, data := range []string{"", "nonsense", `{"port":8080}`} {
		r.c.Override(Node{Path: "/elsewhere/" + data, Data: []byte(data), Modified: now.Add(-60 * day)})
	}
	for _, f := range r.c.Findings() {
		require.Nil(t, f.Removal, f.Path)
		require.NotContains(t, f.Path, "/myelin/overrides")
	}
}
