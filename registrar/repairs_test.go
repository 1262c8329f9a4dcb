package registrar

import (
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/myelin-sd/myelin/discovery"
)

// vandalise changes the data of a node, as somebody else may.
func (d *fakeDirectory) vandalise(name, data string) {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.nodes[name] = fakeNode{d.nodes[name].session, data}
	d.tell()
}

// TestChangedDataAreSetRight: said once, counted and shown.
func TestChangedDataAreSetRight(t *testing.T) {
	play(t, nil, func(s *stage) {
		s.wait(5 * time.Second)
		s.messages()
		for range 2 {
			s.dir.vandalise("/services/user-api/web-1_0001", "rubbish")
			s.wait(2 * repairPause)
			s.nodes("/services/user-api/web-1_0001 v1")
		}
		said := "info the data of the registration had been changed; they are set right node=/services/user-api/web-1_0001 reason=data: rubbish"
		require.Equal(t, []string{said, said}, s.messages())
		s.metric("repairs_total data user-api 2", "myelin_registrar_repairs_total")
		status := s.Status()[0]
		require.Equal(t, map[string]int{"data": 2}, status.Repairs)
		require.Equal(t, "rubbish", status.LastRepair.Detail)
		require.Equal(t, "data", status.LastRepair.Reason)
	})
}

// withMembers is the service registered in a second format.
func withMembers(sv Service, also ...discovery.Registration) Service {
	sv.Registration.Also = also
	return sv
}

var members = discovery.Registration{Path: "/members/user-api", Prefix: "member_", Data: []byte("m1"), Sequential: true, Ephemeral: true}

// TestFurtherFormats: they come after the first one, go with it, and are added and left out by a reload, new before old.
func TestFurtherFormats(t *testing.T) {
	play(t, func(o *Options) { o.Services[0] = withMembers(o.Services[0], members) }, func(s *stage) {
		s.wait(5 * time.Second)
		require.Equal(t, []string{"create /services/user-api/web-1_0001 v1", "create /members/user-api/member_0002 m1"}, s.dir.requests())
		require.Equal(t, "/services/user-api/web-1_0001", s.Status()[0].Node)

		// One is left out, another one comes.
		other := members
		other.Path = "/others"
		s.dir.fail(none, none, refused) // the withdrawal of the old one
		require.NoError(t, s.Reload([]Service{withMembers(s.service(), other)}))
		s.wait(time.Second)
		require.Equal(t, []string{
			"keep /services/user-api/web-1_0001", "create /others/member_0003 m1",
			"keep /services/user-api/web-1_0001", "keep /others/member_0003", "withdraw /members/user-api/member_",
		}, s.dir.requests())
		s.nodes("/others/member_0003 m1", "/services/user-api/web-1_0001 v1")

		s.check.set(errRefusedByFake)
		s.wait(5 * time.Second)
		s.nodes()
	})
}

// TestMoveKeepsFurtherFormats: a service that moves to another path keeps the nodes that both registrations have.
func TestMoveKeepsFurtherFormats(t *testing.T) {
	play(t, func(o *Options) { o.Services[0] = withMembers(o.Services[0], members) }, func(s *stage) {
		s.wait(5 * time.Second)
		s.dir.requests()
		moved := withMembers(s.service(), members)
		moved.Registration.Path = "/elsewhere"
		require.NoError(t, s.Reload([]Service{moved}))
		s.wait(10 * time.Second)
		s.nodes("/elsewhere/web-1_0003 v1", "/members/user-api/member_0002 m1")
		require.NotContains(t, s.dir.requests(), "withdraw /members/user-api/member_")
		require.Len(t, s.Status(), 1)
	})
}

// TestSharedMember: two services cannot be the same member, whichever of their formats it is.
func TestSharedMember(t *testing.T) {
	dir := &fakeDirectory{}
	sv := func(name string) Service {
		r := discovery.Registration{Path: "/" + name, Prefix: "web-1_", Also: []discovery.Registration{members}}
		return Service{Name: name, Directory: dir, Registration: r}
	}
	require.ErrorContains(t, Validate([]Service{sv("a"), sv("b")}), `register service "b": service "a" registers as /members/user-api/member_ as well`)
	require.NoError(t, Validate([]Service{sv("a")}))
}

// TestUpkeepWithin: what has to be written again is asked for in time.
func TestUpkeepWithin(t *testing.T) {
	u := upkeep{jitter: func() float64 { return 0 }}
	now := time.Unix(0, 0)
	u.decide(Up, now)
	for within, want := range map[time.Duration]time.Duration{0: auditEvery, 5 * time.Second: 5 * time.Second, time.Hour: auditEvery} {
		u.begin(publish)
		u.within = within
		u.end(true, now)
		_, wait := u.next(now)
		require.Equal(t, want, wait)
	}
}

// TestMoveToAnotherDirectory: the nodes of another directory are others, whatever their paths.
func TestMoveToAnotherDirectory(t *testing.T) {
	play(t, func(o *Options) { o.Services[0] = withMembers(o.Services[0], members) }, func(s *stage) {
		s.wait(5 * time.Second)
		moved, other := withMembers(s.service(), members), &fakeDirectory{}
		moved.Registration.Path, moved.Directory = "/elsewhere", other
		require.NoError(t, s.Reload([]Service{moved}))
		s.wait(10 * time.Second)
		require.Equal(t, []string{"/elsewhere/web-1_0001 v1", "/members/user-api/member_0002 m1"}, other.list())
		s.nodes()
	})
}

// TestMoveOfTheSick: a service that moves while it is down leaves nothing behind, also not what both registrations have.
func TestMoveOfTheSick(t *testing.T) {
	play(t, func(o *Options) { o.Services[0] = withMembers(o.Services[0], members) }, func(s *stage) {
		s.wait(5 * time.Second)
		moved := withMembers(s.service(), members)
		moved.Registration.Path = "/elsewhere"
		moved.Checks = []Check{{Name: "other", HealthCheck: &switchable{err: errSick}}}
		require.NoError(t, s.Reload([]Service{moved}))
		s.wait(2 * successorGrace)
		s.nodes()
		require.False(t, s.Status()[0].Registered)
	})
}

// TestRenamedServiceKeepsFurtherFormats: also one that has another name and another path is the same member.
func TestRenamedServiceKeepsFurtherFormats(t *testing.T) {
	play(t, func(o *Options) { o.Services[0] = withMembers(o.Services[0], members) }, func(s *stage) {
		s.wait(5 * time.Second)
		s.dir.requests()
		renamed := withMembers(s.service(), members)
		renamed.Name, renamed.Registration.Path = "users", "/services/users"
		require.NoError(t, s.Reload([]Service{renamed}))
		s.wait(10 * time.Second)
		s.nodes("/members/user-api/member_0002 m1", "/services/users/web-1_0003 v1")
		require.NotContains(t, s.dir.requests(), "withdraw /members/user-api/member_")
	})
}

// TestMoveWithFurtherFormatsIsNoStart: that some of its nodes stand already makes no difference to its weight.
func TestMoveWithFurtherFormatsIsNoStart(t *testing.T) {
	play(t, func(o *Options) {
		slow(o)
		o.Services[0] = withMembers(o.Services[0], members)
	}, func(s *stage) {
		s.wait(time.Minute)
		moved := withMembers(s.service(), members)
		moved.Render, moved.SlowStart = rendered{"v1"}, 20*time.Second
		moved.Registration.Path = "/elsewhere"
		s.dir.requests()
		require.NoError(t, s.Reload([]Service{moved}))
		s.wait(10 * time.Second)
		require.Equal(t, []string{"create /elsewhere/web-1_0003 v1"}, slices.DeleteFunc(s.dir.requests(), func(r string) bool {
			return !strings.Contains(r, "/elsewhere")
		}))
	})
}
