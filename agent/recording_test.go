package agent

import (
	"errors"
	"fmt"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/myelin-sd/myelin/config"
	"github.com/myelin-sd/myelin/discovery"
	"github.com/myelin-sd/myelin/discovery/zookeeper"
	"github.com/myelin-sd/myelin/journal"
)

// notebook is a Recorder that remembers sentences with their causes.
type notebook struct{ lines []string }

func (n *notebook) Record(e journal.Event) {
	line := string(e.Kind) + ": " + e.Service + ": " + e.Sentence()
	if e.Cause != "" {
		line += " | " + e.Cause
	}
	n.lines = append(n.lines, line)
}

func (n *notebook) take() []string {
	lines := n.lines
	n.lines = nil
	return lines
}

func listedAt(t *testing.T, port int, node string, edit ...func(*discovery.Instance)) discovery.Instance {
	t.Helper()
	e, err := discovery.ParseEndpoint("10.0.0.1", port)
	require.NoError(t, err)
	in := discovery.Instance{Endpoint: e, Name: "i", Node: node, Session: 1}
	for _, f := range edit {
		f(&in)
	}
	return in
}

// TestRecordedSnapshots: what two snapshots of a service differ in is said once for all instances that it happened to.
func TestRecordedSnapshots(t *testing.T) {
	told := &notebook{}
	g := &generation{journal: told}
	leaving := func(in *discovery.Instance) { in.Leaving = true }
	heavier := func(in *discovery.Instance) { w := 7; in.Weight = &w }
	at := func(port int, node string, edit ...func(*discovery.Instance)) discovery.Instance {
		return listedAt(t, port, node, edit...)
	}
	listed := func(cause string, all ...discovery.Instance) discovery.Snapshot {
		return discovery.Snapshot{Service: "a", Instances: all, Cause: cause}
	}
	now := time.Unix(1_700_000_000, 0)
	v := newView(config.Service{Name: "a", UsePreviousBackends: true})
	step := func(s discovery.Snapshot) []string {
		old := v
		v = v.next(s, now)
		g.record(old, v)
		return slices.DeleteFunc(told.take(), func(line string) bool { return strings.HasPrefix(line, "guard: ") })
	}
	require.Equal(t, []string{"registry: a: the registry is heard of for the first time; it lists 2 | the first reading"},
		step(listed(discovery.CauseFirst, at(1, "x"), at(2, "y"))))
	require.Empty(t, step(listed(discovery.CauseAudit, at(1, "x"), at(2, "y"))))
	require.Equal(t, []string{
		"registry: a: 2 joined: 10.0.0.1:3 10.0.0.1:4 | a watch told",
		"registry: a: 10.0.0.1:1 changed | a watch told",
	}, step(listed(discovery.CauseEvent, at(1, "x", heavier), at(2, "y"), at(3, "z"), at(4, "z"))))
	require.Equal(t, []string{
		"registry: a: 10.0.0.1:2 registered again | a watch told",
		"registry: a: 10.0.0.1:3 marked as leaving | a watch told",
	}, step(listed(discovery.CauseEvent, at(1, "x", heavier), at(2, "yy"), at(3, "z", leaving), at(4, "z"))))
	require.Equal(t, []string{
		"registry: a: 10.0.0.1:3 gone from the registry | found by the regular full reading; no watch told",
	}, step(listed(discovery.CauseAudit, at(1, "x", heavier), at(2, "yy"), at(4, "z"))))
	rejected := listed(discovery.CauseEvent, v.snapshot.Instances...)
	rejected.Rejected = []discovery.Rejection{{Node: "bad", Reason: "json", Detail: "no JSON"}}
	require.Equal(t, []string{"registry: a: registration bad is left out | json: no JSON"}, step(rejected))
	require.Empty(t, step(rejected))
	require.Equal(t, []string{
		"registry: a: the path is gone | found when the connection came back",
		"registry: a: 3 gone from the registry: 10.0.0.1:1 10.0.0.1:2 10.0.0.1:4 | found when the connection came back",
	}, step(discovery.Snapshot{Service: "a", Missing: true, Cause: discovery.CauseReconnect}))
	require.Equal(t, "registry: a: the path is there again | a watch told", step(listed(discovery.CauseEvent, at(9, "x")))[0])

	// A twin of a moment is the same instance, registered again.
	v = v.next(listed(""), now)
	var many []discovery.Instance
	for n := range 10_000 {
		many = append(many, at(n+1, "x"))
	}
	lines := step(listed(discovery.CauseEvent, many...))
	require.Equal(t, []string{"registry: a: 10000 joined: 10.0.0.1:1 10.0.0.1:2 10.0.0.1:3 10.0.0.1:4 and 9996 more | a watch told"}, lines[:1])
	require.LessOrEqual(t, len(lines), 2)
	twins := compareListings([]discovery.Instance{at(1, "x")}, []discovery.Instance{at(1, "x"), at(1, "y")})
	require.Equal(t, listing{back: []string{"10.0.0.1:1"}}, twins)
}

// TestRecordedDecisions: each decision of the guard has its sentence and its reason.
func TestRecordedDecisions(t *testing.T) {
	told := &notebook{}
	v := newView(config.Service{Name: "a"})
	one := []discovery.Instance{listedAt(t, 1, "x")}
	until := time.Date(2026, 1, 2, 3, 4, 5, 0, time.UTC)
	v.news = []decision{
		{what: decidedHeld, reason: heldDrop, until: until, instances: one}, {what: decidedHeld, reason: heldEmpty, instances: one},
		{what: decidedBelieved, instances: one}, {what: decidedLeft, instances: one}, {what: decidedReturned, instances: one},
		{what: decidedDown, instances: one}, {what: decidedExpired, instances: one}, {what: decidedReleased},
	}
	recordDecisions(told, v)
	require.Equal(t, []string{
		"guard: a: 10.0.0.1:1 held until 2026-01-02T03:04:05Z at the latest, although gone from the registry | " + heldDrop,
		"guard: a: 10.0.0.1:1 held, although gone from the registry | " + heldEmpty,
		"guard: a: 10.0.0.1:1 let go: the loss is believed | they are few",
		"guard: a: 10.0.0.1:1 let go | gone on purpose, or out of the filters",
		"guard: a: 10.0.0.1:1 held no more | listed again by the registry",
		"guard: a: 10.0.0.1:1 let go | seen down by HAProxy's checks",
		"guard: a: 10.0.0.1:1 let go | held for as long as hold_for says",
		"guard: a: what HAProxy had from before: let go | released by an operator",
	}, told.take())
}

// TestRecordedSessions: a connection that is lost, and back with the same session or with another one.
func TestRecordedSessions(t *testing.T) {
	told := &notebook{}
	tell := recordSession(told, "zk1:2181")
	tell(zookeeper.SessionEvent{Connected: true, First: true, Fresh: true, Session: "0x1", Server: "zk1:2181"})
	tell(zookeeper.SessionEvent{Error: "EOF"})
	tell(zookeeper.SessionEvent{Connected: true, Session: "0x1", Server: "zk2:2181", After: 1234567 * time.Microsecond})
	tell(zookeeper.SessionEvent{Connected: true, Fresh: true, Session: "0x2", Server: "zk2:2181", After: 61 * time.Second})
	require.Equal(t, []string{
		"registry: : connected to ZooKeeper zk1:2181, session 0x1 | at zk1:2181",
		"registry: : the connection to ZooKeeper zk1:2181 is lost; what is known stays in force | EOF",
		"registry: : ZooKeeper zk1:2181 is back after 1.235s; the session goes on | at zk2:2181",
		"registry: : ZooKeeper zk1:2181 is back after 1m1s with another session, 0x2 | the session before has expired; at zk2:2181",
	}, told.take())
}

// TestRecordedRefusals: what HAProxy refuses is said when it is new, not at each try, and never at length.
func TestRecordedRefusals(t *testing.T) {
	told := &notebook{}
	r := &reconciler{journal: told}
	var failed []string
	for n := range 10_000 {
		failed = append(failed, fmt.Sprintf("add a/%d: no", n))
	}
	r.recordRound(&wanted{}, nil, failed)
	r.recordRound(&wanted{}, nil, failed)
	require.Equal(t, []string{"haproxy: : HAProxy refused: add a/0: no; add a/1: no; add a/2: no; and 9997 more"}, told.take())
	r.recordRound(&wanted{}, nil, nil)
	r.recordRound(&wanted{}, nil, failed[:1])
	require.Equal(t, []string{"haproxy: : HAProxy refused: add a/0: no"}, told.take())

	recordReload(told)([]string{"one", "two"}, nil)
	recordReload(told)([]string{"one"}, errors.New("bad line"))
	require.Equal(t, []string{
		"reload: : HAProxy was reloaded | one; two",
		"reload: : HAProxy was not reloaded, the old configuration stays in force: bad line | one",
	}, told.take())
}
