package zookeeper_test

import (
	"context"
	"math/rand/v2"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/myelin-sd/myelin/discovery/zookeeper"
	"github.com/myelin-sd/myelin/discovery/zookeeper/zktest"
)

// TestFormatsChaos: sessions that expire and wires that break in the middle of any step, impatient callers and changing
// data leave each format registered once, with what is wanted last, or not at all.
func TestFormatsChaos(t *testing.T) {
	zks := server(t)
	for name, kind := range map[string]struct{ sequential, ephemeral bool }{
		"ephemeral_sequential": {true, true}, "ephemeral": {false, true},
		"persistent_sequential": {true, false}, "persistent": {false, false},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			w := writer(t, zks.Addr())
			wire := zktest.NewProxy(t, zks.Addr())
			s := open(t, zookeeper.Options{Hosts: []string{wire.Addr()}, SessionTimeout: 20 * time.Second})
			connected(t, s)
			r := formats(t)
			r.Path, r.Sequential, r.Ephemeral = "/chaos/"+name, kind.sequential, kind.ephemeral
			r.Also[0].Path, r.Also[1].Path = "/members/"+name, "/curator/"+name
			data := [][]byte{r.Data, []byte(payload(1)[:len(payload(1))-1] + `,"weight":3}`)}
			rnd := rand.New(rand.NewPCG(1, 2))
			failures, successes := 0, 0
			for i := range 20 {
				limit := time.Duration(rnd.IntN(20000)) * time.Microsecond
				fate, pick, session := rnd.IntN(6), rnd.IntN(4), id(t, s)
				if i%7 == 6 { // a call that gets through on any machine, behind whatever was
					limit, fate = patience, -1
				}
				ctx, cancel := context.WithTimeout(context.Background(), limit)
				ended := make(chan struct{})
				go func() {
					defer close(ended)
					switch fate {
					case 0:
						wire.Break()
					case 1:
						_ = zks.Expire(session)
					}
				}()
				var err error
				if pick > 0 {
					r.Data = data[pick%2]
					_, err = s.Publish(ctx, r, "")
				} else {
					err = s.Withdraw(ctx, r, "")
				}
				cancel()
				<-ended
				if err != nil {
					failures++
				} else {
					successes++
				}
			}
			require.NotZero(t, failures, "the test must hurt")
			require.NotZero(t, successes)
			require.Eventually(t, func() bool {
				session := s.Status().Session
				made, err := s.Publish(within(t, patience), r, "")
				return err == nil && session == s.Status().Session && made.Node != ""
			}, patience, poll)
			require.Len(t, stands(t, w, r), 3)
			for _, one := range r.All() {
				require.Len(t, names(t, w, one.Path), 1, one.Path)
			}
			got, _, err := w.Get(r.Path + "/" + names(t, w, r.Path)[0])
			require.NoError(t, err)
			require.Equal(t, string(r.Data), string(got))
			require.Eventually(t, func() bool { return s.Withdraw(within(t, patience), r, "") == nil }, patience, poll)
			require.Empty(t, stands(t, w, r))
		})
	}
}
