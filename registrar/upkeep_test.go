package registrar

import (
	"fmt"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
)

// TestUpkeep plays transcripts. A line is what happens, then what is asked next: "publish REASON", "withdraw REASON",
// "mark REASON", "in DURATION" or "nothing". There is no jitter, and a mark stands for 500 ms.
func TestUpkeep(t *testing.T) {
	for _, c := range []struct{ name, transcript string }{
		{"publish, then an audit every 30 s", `
			start          nothing
			up             publish health
			begin          nothing
			ok             in 30s
			wait 30s       publish audit
			begin          nothing
			ok             in 30s`},
		{"a service that is down was never published", `
			down           nothing
			event          nothing
			up             publish health`},
		{"what a process before has left is not touched before the checks decide", `
			inherit        nothing
			event          nothing
			wait 1h        nothing
			down           withdraw health
			begin          nothing
			fail           in 50ms
			wait 50ms      withdraw retry
			begin          nothing
			ok             nothing
			event          nothing`},
		{"up and down", `
			up             publish health
			begin          nothing
			ok             in 30s
			down           withdraw health
			begin          nothing
			ok             nothing
			wait 1h        nothing
			event          nothing`},
		{"failures are tried again at growing distances", `
			up             publish health
			begin          nothing
			fail           in 50ms
			wait 50ms      publish retry
			begin          nothing
			fail           in 100ms
			wait 100ms     publish retry
			begin          nothing
			fail           in 200ms
			wait 200ms     publish retry
			begin          nothing
			fail           in 400ms
			wait 400ms     publish retry
			begin          nothing
			fail           in 800ms
			wait 800ms     publish retry
			begin          nothing
			fail           in 1s
			wait 1s        publish retry
			begin          nothing
			fail           in 1s
			event          in 100ms
			wait 100ms     publish event
			begin          nothing
			fail           in 50ms
			wait 50ms      publish retry
			begin          nothing
			ok             in 30s`},
		{"an audit that fails is a doubt", `
			up             publish health
			begin          nothing
			ok             in 30s
			wait 30s       publish audit
			begin          nothing
			fail           in 50ms
			wait 50ms      publish retry`},
		{"a publish that failed may have worked", `
			up             publish health
			begin          nothing
			fail           in 50ms
			down           withdraw health
			begin          nothing
			fail           in 50ms
			wait 50ms      withdraw retry
			begin          nothing
			ok             nothing`},
		{"a change of mind while a request is under way", `
			up             publish health
			begin          nothing
			down           nothing
			ok             withdraw health
			begin          nothing
			up             nothing
			fail           publish health
			begin          nothing
			ok             in 30s`},
		{"an answer from before an event proves nothing", `
			up             publish health
			begin          nothing
			event          nothing
			ok             in 100ms
			wait 100ms     publish event
			begin          nothing
			ok             in 30s`},
		{"repairs keep their distance", `
			up             publish health
			begin          nothing
			ok             in 30s
			event          in 100ms
			wait 60ms      in 40ms
			event          in 40ms
			wait 40ms      publish event
			begin          nothing
			ok             in 30s
			wait 1s        in 29s
			event          publish event`},
		{"other data", `
			changed        nothing
			up             publish health
			begin          nothing
			changed        nothing
			ok             publish change
			begin          nothing
			ok             in 30s
			changed        publish change
			begin          nothing
			ok             in 30s
			down           withdraw health
			changed        withdraw health`},
		{"who leaves on purpose says so first", `
			up             publish health
			begin          nothing
			ok             in 30s
			leave          mark leave
			begin          nothing
			event          nothing
			ok             in 500ms
			event          in 500ms
			leave          in 500ms
			down           in 500ms
			wait 500ms     withdraw leave
			begin          nothing
			fail           in 50ms
			event          in 100ms
			wait 100ms     withdraw event
			begin          nothing
			ok             nothing
			event          nothing
			leave          nothing`},
		{"a mark that cannot be set is tried for a second", `
			up             publish health
			begin          nothing
			ok             in 30s
			leave          mark leave
			begin          nothing
			fail           in 50ms
			wait 50ms      mark retry
			begin          nothing
			wait 960ms     nothing
			fail           in 100ms
			wait 100ms     withdraw retry
			begin          nothing
			ok             nothing`},
		{"what was never published, or has failed, is not marked", `
			leave          nothing
			up             publish health
			begin          nothing
			ok             in 30s
			down           withdraw health
			leave          withdraw health
			begin          nothing
			ok             nothing`},
		{"what a process before has left goes when the service is not to be there", `
			inherit        nothing
			leave 0s       withdraw leave
			begin          nothing
			ok             nothing`},
		{"a mark is taken back by who stays after all", `
			up             publish health
			begin          nothing
			ok             in 30s
			leave          mark leave
			begin          nothing
			ok             in 500ms
			up             publish health
			begin          nothing
			ok             in 30s
			event          in 100ms
			leave          mark leave
			begin          nothing
			up             nothing
			ok             publish health`},
		{"who is dead does not wait", `
			up             publish health
			begin          nothing
			ok             in 30s
			hasten         in 30s
			leave          mark leave
			begin          nothing
			ok             in 500ms
			hasten         withdraw leave
			begin          nothing
			hasten         nothing
			ok             nothing`},
		{"the end of the process ends a pause, and not a notice", `
			up             publish health
			begin          nothing
			ok             in 30s
			urge           in 30s
			leave          mark leave
			begin          nothing
			ok             in 500ms
			urge           in 500ms
			wait 500ms     withdraw leave
			begin          nothing
			fail           in 50ms
			urge           withdraw retry
			begin          nothing
			ok             nothing
			urge           nothing`},
		{"the same decision again is no news", `
			up             publish health
			begin          nothing
			ok             in 30s
			up             in 30s
			unknown        in 30s`},
	} {
		t.Run(c.name, func(t *testing.T) {
			u := upkeep{jitter: func() float64 { return 0 }}
			now := time.Unix(0, 0)
			var got, want []string
			for line := range strings.Lines(strings.TrimSpace(c.transcript)) {
				words := strings.Fields(line)
				event := words[0]
				switch event {
				case "start":
				case "inherit":
					u.touched = true
				case "up":
					u.decide(Up, now)
				case "down":
					u.decide(Down, now)
				case "unknown":
					u.decide(Unknown, now)
				case "leave":
					notice := 500 * time.Millisecond
					if words[1] == "0s" {
						event, notice = event+" 0s", 0
					}
					u.leave(notice, now)
				case "hasten":
					u.hasten(now)
				case "urge":
					u.urge(now)
				case "changed":
					u.changed(now)
				case "event":
					u.event(now)
				case "begin":
					o, _ := u.next(now)
					u.begin(o)
				case "ok", "fail":
					u.end(event == "ok", now)
				case "wait":
					d, err := time.ParseDuration(words[1])
					require.NoError(t, err)
					now = now.Add(d)
					event += " " + words[1]
				default:
					t.Fatalf("event %q", event)
				}
				want = append(want, strings.Join(words, " "))
				got = append(got, event+" "+asked(&u, now))
			}
			require.Equal(t, want, got)
		})
	}
}

func asked(u *upkeep, now time.Time) string {
	switch o, wait := u.next(now); {
	case o == publish:
		return "publish " + u.why
	case o == mark:
		return "mark " + u.why
	case o == withdraw:
		return "withdraw " + u.why
	case wait >= 0:
		return fmt.Sprintf("in %s", wait)
	}
	return "nothing"
}

func TestUpkeepJitter(t *testing.T) {
	u := upkeep{jitter: func() float64 { return 0.5 }}
	now := time.Unix(0, 0)
	u.decide(Up, now)
	u.begin(publish)
	u.end(true, now)
	_, wait := u.next(now)
	require.Equal(t, auditEvery*9/10, wait)
	u.event(now.Add(time.Second))
	_, wait = u.next(now.Add(time.Second))
	require.Equal(t, repairPause/2, wait)
	u.begin(publish)
	u.end(false, now)
	_, wait = u.next(now)
	require.Equal(t, backoffMin*3/4, wait)
}
