package registrar

import (
	"errors"
	"fmt"
	"reflect"
	"testing"
	"testing/synctest"
	"time"

	"github.com/stretchr/testify/require"
)

func newTTL(t *testing.T, r *Reports, service, check string) TTL {
	t.Helper()
	c, err := NewTTL(TTLOptions{Reports: r, Service: service, Check: check, TTL: 10 * time.Second})
	require.NoError(t, err)
	return c
}

func TestTTL(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		board := NewReports()
		c := newTTL(t, board, "web", "self")
		require.ErrorIs(t, c.Check(t.Context()), ErrUndecided)
		time.Sleep(10 * time.Second)
		require.EqualError(t, c.Check(t.Context()), "not known yet: no report so far")
		time.Sleep(time.Nanosecond)
		require.EqualError(t, c.Check(t.Context()), "no report within 10s", "silence from the start is failure")

		require.NoError(t, board.Report("web", "self", nil))
		require.NoError(t, c.Check(t.Context()))
		time.Sleep(10 * time.Second)
		require.NoError(t, c.Check(t.Context()), "a report counts for the whole time")
		time.Sleep(time.Nanosecond)
		require.EqualError(t, c.Check(t.Context()), "no report for 10s")

		sick := errors.New("queue is full")
		require.NoError(t, board.Report("web", "self", sick))
		require.Equal(t, sick, c.Check(t.Context()))
		time.Sleep(time.Minute)
		require.EqualError(t, c.Check(t.Context()), "no report for 10s")
	})
}

func TestReportNames(t *testing.T) {
	board := NewReports()
	a := newTTL(t, board, "web", "a")
	require.NoError(t, board.Report("web", "", nil), "the only one is meant")
	require.NoError(t, a.Check(t.Context()))
	newTTL(t, board, "web", "b")
	newTTL(t, board, "db", "self")
	require.EqualError(t, board.Report("web", "", nil), `report health of service "web": it has several ttl checks: say which of a, b`)
	require.EqualError(t, board.Report("web", "c", nil), `report health of service "web": it has no ttl check "c": say one of a, b`)
	for _, check := range []string{"", "a"} {
		require.EqualError(t, board.Report("wbe", check, nil), `report health of service "wbe": no such service has a ttl check`)
	}
	for _, o := range []TTLOptions{
		{Service: "a", Check: "b", TTL: 1}, {Reports: board, Check: "b", TTL: 1}, {Reports: board, Service: "a", TTL: 1}, {Reports: board, Service: "a", Check: "b"},
	} {
		_, err := NewTTL(o)
		require.EqualError(t, err, "make ttl check: board, names and ttl are required")
	}
}

// TestReportsOutliveAReload: what was reported counts for the check of the new configuration, which is the same value.
func TestReportsOutliveAReload(t *testing.T) {
	board := NewReports()
	before, gone := newTTL(t, board, "web", "self"), newTTL(t, board, "web", "old")
	sick := errors.New("sick")
	require.NoError(t, board.Report("web", "self", sick))
	after := newTTL(t, board, "web", "self")
	board.Retain([]Service{{Name: "web", Checks: []Check{{HealthCheck: after}, {HealthCheck: NewNoop()}}}})
	require.Equal(t, sick, after.Check(t.Context()))
	require.True(t, reflect.DeepEqual(before, after))

	require.ErrorIs(t, gone.Check(t.Context()), ErrUndecided)
	require.ErrorContains(t, board.Report("web", "old", nil), `no ttl check "old"`)
	require.ErrorContains(t, NewReports().Report("web", "self", nil), "no such service")
	NewReports().Retain([]Service{{Checks: []Check{{HealthCheck: after}}}})
	require.Equal(t, sick, after.Check(t.Context()), "another board's")
}

// TestReportsDecide: nothing is published before the first report, and what a process before has published stays.
func TestReportsDecide(t *testing.T) {
	reporting := func(board *Reports) func(*Options) {
		return func(o *Options) {
			c, err := NewTTL(TTLOptions{Reports: board, Service: "user-api", Check: "self", TTL: 10 * time.Second})
			require.NoError(t, err)
			o.Services[0].Checks[0] = Check{Name: "self", HealthCheck: c}
		}
	}
	board := NewReports()
	play(t, reporting(board), func(s *stage) {
		s.wait(5 * time.Second)
		require.Equal(t, Unknown, s.Status()[0].State)
		require.Equal(t, "not known yet: no report so far", s.Status()[0].Checks[0].Error)
		require.Empty(t, s.messages())
		require.NoError(t, board.Report("user-api", "self", nil))
		s.wait(time.Second)
		s.nodes("/services/user-api/web-1_0001 v1")
		s.wait(9 * time.Second)
		s.nodes("/services/user-api/web-1_0001 v1")
		s.messages()
		s.wait(2 * time.Second)
		s.nodes()
		require.Equal(t, []string{"info service is down check=self err=no report for 10s", "info service is withdrawn node=/services/user-api/web-1_0001"}, s.messages())
	})

	inherited(t, (&stage{}).service().Registration, func(s *stage) {
		s.check.set(fmt.Errorf("%w: no report so far", ErrUndecided)) // one pass of two was before
		s.wait(time.Minute)
		require.Empty(t, s.dir.requests())
		s.check.set(errSick)
		s.wait(3 * time.Second)
		require.Equal(t, []string{"withdraw /services/user-api/web-1_"}, s.dir.requests())
	})
}
