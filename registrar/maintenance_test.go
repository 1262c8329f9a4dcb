package registrar

import (
	"encoding/json"
	"fmt"
	"os"
	"path/filepath"
	"testing"
	"testing/synctest"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/myelin-sd/myelin/discovery"
)

func TestMaintenance(t *testing.T) {
	politely(t, nil, func(s *stage) {
		began := time.Now()
		require.NoError(t, s.Maintain("user-api", Maintenance{Reason: "kernel", Author: "root", Until: began.Add(time.Hour)}))
		synctest.Wait()
		s.nodes(leavingNode + " v1 leaving")
		s.wait(time.Second)
		s.nodes()
		st := s.Status()[0]
		require.Equal(t, &Maintenance{Reason: "kernel", Author: "root", Since: began.UTC(), Until: began.Add(time.Hour)}, st.Maintenance)
		require.Equal(t, Up, st.State, "the checks go on")
		require.False(t, st.Leaving)
		require.Equal(t, []string{
			"info service is in maintenance reason=kernel", "info service is marked as leaving node=" + leavingNode,
			"info service is withdrawn node=" + leavingNode,
		}, s.messages())

		// Whatever its checks say.
		s.check.set(errSick)
		s.wait(5 * time.Second)
		require.Equal(t, Down, s.Status()[0].State)
		s.check.set(nil)
		s.wait(5 * time.Second)
		s.dir.expire()
		s.wait(time.Minute)
		s.nodes()
		require.Equal(t, []string{"info service is down check=health err=status 503", "info service is up check=health"}, s.messages())

		s.wait(time.Until(began.Add(time.Hour)) - time.Nanosecond)
		s.nodes()
		s.wait(time.Nanosecond)
		s.nodes("/services/user-api/web-1_0002 v1")
		require.Nil(t, s.Status()[0].Maintenance)
		require.Equal(t, []string{"info maintenance has ended", "info service is registered node=/services/user-api/web-1_0002"}, s.messages())
	})
}

func TestEndMaintenance(t *testing.T) {
	politely(t, nil, func(s *stage) {
		require.NoError(t, s.EndMaintenance("user-api"), "of none")
		require.Empty(t, s.messages())
		require.NoError(t, s.Maintain("user-api", Maintenance{}))
		s.wait(time.Hour)
		s.nodes()
		require.NoError(t, s.EndMaintenance("user-api"))
		synctest.Wait()
		s.nodes("/services/user-api/web-1_0002 v1")

		// While it is marked only.
		require.NoError(t, s.Maintain("user-api", Maintenance{}))
		s.wait(100 * time.Millisecond)
		s.nodes("/services/user-api/web-1_0002 v1 leaving")
		require.NoError(t, s.EndMaintenance("user-api"))
		synctest.Wait()
		s.nodes("/services/user-api/web-1_0002 v1")

		// Of one that is sick.
		require.NoError(t, s.Maintain("user-api", Maintenance{}))
		s.check.set(errSick)
		s.wait(time.Minute)
		require.NoError(t, s.EndMaintenance("user-api"))
		s.wait(time.Minute)
		s.nodes()
		s.check.set(nil)
		s.wait(2 * time.Second)
		s.nodes("/services/user-api/web-1_0003 v1")

		// Another end.
		require.NoError(t, s.Maintain("user-api", Maintenance{Until: time.Now().Add(time.Hour)}))
		require.NoError(t, s.Maintain("user-api", Maintenance{Until: time.Now().Add(time.Minute)}))
		s.wait(2 * time.Minute)
		s.nodes("/services/user-api/web-1_0004 v1")
		s.stop()
		require.EqualError(t, s.Maintain("user-api", Maintenance{}), `maintain service "user-api": the registrar has stopped`)
	})
}

func TestMaintenanceOfOthers(t *testing.T) {
	politely(t, nil, func(s *stage) {
		var all []Service
		for _, name := range []string{"user-api", "user-web", "billing", "mail", "search", "cart"} {
			sv := s.politeService()
			sv.Name, sv.Registration.Path = name, "/services/"+name
			all = append(all, sv)
		}
		require.NoError(t, s.Reload(all[:3]))
		for name, want := range map[string]string{
			"user-ap": "did you mean user-api?", "user": "did you mean user-api, user-web?", "userweb": "did you mean user-web?",
			"x": "there are billing, user-api, user-web",
		} {
			require.EqualError(t, s.Maintain(name, Maintenance{}), fmt.Sprintf("maintain service %q: there is no such service; %s", name, want))
		}
		require.NoError(t, s.Reload(all))
		require.EqualError(t, s.EndMaintenance("x"), `end maintenance of service "x": there is no such service; there are billing, cart, mail, search, user-api and 1 more`)
		past := time.Now().Add(-time.Second)
		require.EqualError(t, s.Maintain("mail", Maintenance{Until: past}), `maintain service "mail": its end `+past.Format(time.RFC3339)+` has passed`)
		require.NoError(t, s.Reload(nil))
		require.EqualError(t, s.Maintain("mail", Maintenance{}), `maintain service "mail": there is no such service: none is configured`)
	})
}

func TestMaintenanceAndReload(t *testing.T) {
	t.Run("it goes on", func(t *testing.T) {
		politely(t, nil, func(s *stage) {
			require.NoError(t, s.Maintain("user-api", Maintenance{Reason: "disk"}))
			s.wait(time.Second)
			s.messages()
			s.dir.requests()
			sv := s.politeService()
			sv.Registration.Data, sv.Render = []byte("v2"), rendered{"v2"}
			for _, all := range [][]Service{{sv}, {}, {sv}} {
				require.NoError(t, s.Reload(all))
				s.wait(10 * time.Second)
				s.nodes()
			}
			sv.Checks = []Check{{Name: "other", HealthCheck: s.check, Rise: 1}}
			require.NoError(t, s.Reload([]Service{sv}))
			s.wait(10 * time.Second)
			require.Empty(t, s.dir.requests())
			require.Equal(t, "disk", s.Status()[0].Maintenance.Reason)
			require.NoError(t, s.EndMaintenance("user-api"))
			s.wait(0)
			s.nodes("/services/user-api/web-1_0002 v2")
		})
	})
	t.Run("it ends while the service is not configured", func(t *testing.T) {
		politely(t, nil, func(s *stage) {
			require.NoError(t, s.Maintain("user-api", Maintenance{Until: time.Now().Add(time.Minute)}))
			require.NoError(t, s.Maintain("user-api", Maintenance{}))
			s.wait(time.Second)
			require.NoError(t, s.Reload(nil))
			s.wait(10 * time.Second)
			require.NoError(t, s.EndMaintenance("user-api"), "it is known")
			require.NoError(t, s.Reload([]Service{s.politeService()}))
			s.wait(2 * time.Second)
			s.nodes("/services/user-api/web-1_0002 v1")
		})
	})
	t.Run("it is of a name", func(t *testing.T) {
		politely(t, nil, func(s *stage) {
			require.NoError(t, s.Maintain("user-api", Maintenance{}))
			s.wait(time.Second)
			sv := s.politeService()
			sv.Name = "users"
			require.NoError(t, s.Reload([]Service{sv}))
			s.wait(0)
			s.nodes("/services/user-api/web-1_0002 v1")
			require.NoError(t, s.Reload([]Service{s.politeService()}))
			s.wait(time.Second)
			s.nodes()
		})
	})
	t.Run("moved meanwhile: neither place has it", func(t *testing.T) {
		politely(t, nil, func(s *stage) {
			sv := s.politeService()
			sv.Registration.Path = "/services/users"
			sv.Checks = []Check{{Name: "strict", HealthCheck: &switchable{}, Rise: 20}}
			require.NoError(t, s.Reload([]Service{sv}))
			s.wait(time.Second)
			s.nodes(leavingNode + " v1")
			require.NoError(t, s.Maintain("user-api", Maintenance{}))
			s.wait(10 * time.Second)
			s.nodes()
			require.Len(t, s.Status(), 1, "the old one waits for nothing")
			s.wait(time.Minute)
			require.NoError(t, s.EndMaintenance("user-api"))
			s.wait(0)
			s.nodes("/services/users/web-1_0002 v1")
		})
	})
}

// TestMaintenanceSurvives: the next process knows of it before it has asked anybody.
func TestMaintenanceSurvives(t *testing.T) {
	path := filepath.Join(t.TempDir(), "state")
	keep := func(o *Options) { o.StateFile = path }
	var ends time.Time
	politely(t, keep, func(s *stage) {
		ends = time.Now().Add(time.Hour)
		require.NoError(t, s.Maintain("user-api", Maintenance{Reason: "disk", Author: "me", Until: ends}))
		s.wait(time.Minute)
	})
	info, err := os.Stat(path)
	require.NoError(t, err)
	require.EqualValues(t, 0o600, info.Mode().Perm())

	// A node that the process before has left goes at once.
	play(t, func(o *Options) {
		keep(o)
		dir := o.Services[0].Directory.(*fakeDirectory)
		dir.left = []discovery.Registration{o.Services[0].Registration}
		dir.put("/services/user-api/web-1_0007", "v1")
	}, func(s *stage) {
		s.nodes()
		s.wait(5 * time.Second)
		s.nodes()
		m := s.Status()[0].Maintenance
		require.NotNil(t, m)
		require.Equal(t, "disk me", m.Reason+" "+m.Author)
		require.True(t, ends.Equal(m.Until))
		// A bubble's clock begins anew, long before Since: what is left is not more than the whole.
		s.wait(time.Hour)
		s.nodes("/services/user-api/web-1_0001 v1")
		require.NoError(t, s.Maintain("user-api", Maintenance{}))
		require.NoError(t, s.EndMaintenance("user-api"))
	})
	play(t, keep, func(s *stage) {
		s.wait(2 * time.Second)
		s.nodes("/services/user-api/web-1_0001 v1")
	})
}

// TestMaintenanceIsOverAtTheStart: its time has passed while no process was there.
func TestMaintenanceIsOverAtTheStart(t *testing.T) {
	path := filepath.Join(t.TempDir(), "state")
	began := time.Date(1999, 1, 1, 0, 0, 0, 0, time.UTC) // a bubble begins in 2000
	text, err := json.Marshal(stateForm{Version: stateVersion, Maintenance: map[string]Maintenance{
		"user-api": {Since: began, Until: began.Add(time.Hour)},
	}})
	require.NoError(t, err)
	require.NoError(t, os.WriteFile(path, text, 0o600))
	play(t, func(o *Options) { o.StateFile = path }, func(s *stage) {
		s.wait(2 * time.Second)
		s.nodes("/services/user-api/web-1_0001 v1")
		require.NoError(t, s.Maintain("user-api", Maintenance{Reason: "x"}))
		text, err := os.ReadFile(path)
		require.NoError(t, err)
		require.JSONEq(t, fmt.Sprintf(`{"version": 1, "maintenance": {"user-api": {"reason": "x", "since": %q}}}`, time.Now().UTC().Format(time.RFC3339)), string(text))
	})
}

// TestStateFileTrouble: what cannot be kept is not promised, and what cannot be read is said.
func TestStateFileTrouble(t *testing.T) {
	missing := filepath.Join(t.TempDir(), "missing", "state")
	politely(t, func(o *Options) { o.StateFile = missing }, func(s *stage) {
		err := s.Maintain("user-api", Maintenance{})
		require.ErrorContains(t, err, `maintain service "user-api": write state file `+missing+": ")
		require.ErrorContains(t, err, "see that its folder is there")
		s.wait(time.Second)
		s.nodes(leavingNode + " v1")
		require.Nil(t, s.Status()[0].Maintenance)
	})
	bad := filepath.Join(t.TempDir(), "state")
	for text, want := range map[string]string{
		"{": "unexpected end of JSON input", `{"version": 2}`: "its version is 2, and not 1", "": "unexpected end of JSON input",
	} {
		require.NoError(t, os.WriteFile(bad, []byte(text), 0o600))
		play(t, func(o *Options) { o.StateFile = bad }, func(s *stage) {
			require.Equal(t, []string{"error no service is in maintenance: what was asked for is not known err=read state file " + bad + ": " + want}, s.messages())
			s.wait(2 * time.Second)
			require.Len(t, s.dir.list(), 1, "that is no reason not to register")
		})
	}
}

func TestNewIntent(t *testing.T) {
	now := time.Now()
	for _, c := range []struct {
		since, until time.Duration // before and after now
		want         time.Duration
	}{
		{0, time.Hour, time.Hour},
		{time.Minute, time.Hour, time.Hour},
		{-time.Hour, 2 * time.Hour, time.Hour}, // the clock was set back by an hour
		{time.Hour, -time.Minute, 0},
	} {
		i := newIntent(Maintenance{Since: now.Add(-c.since).Round(0), Until: now.Add(c.until).Round(0)}, now)
		require.InDelta(t, float64(c.want), float64(i.wait(now)), float64(time.Microsecond), "%v", c)
	}
	require.Negative(t, newIntent(Maintenance{}, now).wait(now))
}

func TestEdits(t *testing.T) {
	for _, c := range []struct {
		a, b string
		want int
	}{{"", "", 0}, {"a", "", 1}, {"", "abc", 3}, {"kitten", "sitting", 3}, {"flaw", "lawn", 2}, {"same", "same", 0}} {
		require.Equal(t, c.want, edits(c.a, c.b), c)
		require.Equal(t, c.want, edits(c.b, c.a), c)
	}
}
