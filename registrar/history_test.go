package registrar

import (
	"encoding/json"
	"slices"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	"pgregory.net/rapid"
)

// TestRemember: what was handed out stays as it was, however much is remembered after it.
func TestRemember(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		var history []int
		type handed struct{ window, copied []int }
		var out []handed
		for i := range rapid.IntRange(0, 200).Draw(t, "entries") {
			history = remember(history, i)
			require.LessOrEqual(t, len(history), historyLength)
			require.Equal(t, i, history[len(history)-1])
			require.Equal(t, max(i-historyLength+1, 0), history[0])
			out = append(out, handed{history, slices.Clone(history)})
		}
		for _, h := range out {
			require.Equal(t, h.copied, h.window)
		}
	})
}

func TestHistory(t *testing.T) {
	play(t, nil, func(s *stage) {
		s.wait(time.Minute)
		s.check.set(&Degraded{Reason: "exit code 1", Percent: 20})
		s.wait(time.Second)
		s.check.set(errSick)
		s.wait(3 * time.Second)

		st := s.Status()[0]
		require.Len(t, st.Checks[0].Recent, historyLength)
		var last []Verdict
		for _, r := range st.Checks[0].Recent[historyLength-5:] {
			last = append(last, r.Verdict)
		}
		require.Equal(t, []Verdict{Passed, Lowered, Failed, Failed, Failed}, last)
		for i, r := range st.Checks[0].Recent[1:] {
			require.Equal(t, time.Second, r.At.Sub(st.Checks[0].Recent[i].At), "oldest first")
		}
		type change struct {
			State   State
			Percent int
			Check   string
			Error   string
		}
		var of, all []change
		for _, c := range st.Checks[0].Changes {
			of = append(of, change{c.State, c.Percent, "", c.Error})
		}
		for _, c := range st.Changes {
			all = append(all, change{c.State, c.Percent, c.Check, c.Error})
		}
		require.Equal(t, []change{{Up, 100, "", ""}, {Up, 20, "", "exit code 1"}, {Down, 0, "", "status 503"}}, of)
		require.Equal(t, []change{{Up, 100, "health", ""}, {Up, 20, "health", "exit code 1"}, {Down, 0, "health", "status 503"}}, all)
		require.Equal(t, st.Since, st.Changes[2].At)
	})
}

// TestHistoryAsJSON: these names are for scripts.
func TestHistoryAsJSON(t *testing.T) {
	at := time.Date(2001, 2, 3, 4, 5, 6, 0, time.UTC)
	text, err := json.Marshal(ServiceStatus{
		Service: "user-api", Path: "/services/user-api", State: Up, Since: at, Weight: 20,
		Damping: &DampingStatus{Penalty: 2.5, Suppressed: true, Held: true, Until: at},
		Changes: []StateChange{{At: at, State: Up, Percent: 20, Check: "load", Error: "exit code 1"}},
		Checks: []CheckStatus{{
			Check: "load", State: Up, Since: at, Percent: 20, Shown: true, At: at, Verdict: Lowered, Latency: 7, Error: "exit code 1",
			Recent:  []CheckResult{{At: at, Verdict: Doubtful, Latency: 7, Error: "no answer within 1s"}},
			Changes: []CheckChange{{At: at, State: Up, Percent: 20, Error: "exit code 1"}},
		}},
	})
	require.NoError(t, err)
	require.JSONEq(t, `{"service": "user-api", "path": "/services/user-api", "state": "up", "since": "2001-02-03T04:05:06Z",
		"registered": false, "settled": false, "weight_percent": 20,
		"damping": {"penalty": 2.5, "suppressed": true, "held": true, "until": "2001-02-03T04:05:06Z"},
		"changes": [{"at": "2001-02-03T04:05:06Z", "state": "up", "percent": 20, "check": "load", "error": "exit code 1"}],
		"checks": [{"check": "load", "state": "up", "since": "2001-02-03T04:05:06Z", "percent": 20, "shown": true,
			"at": "2001-02-03T04:05:06Z", "result": "degraded", "latency_ns": 7, "error": "exit code 1",
			"recent": [{"at": "2001-02-03T04:05:06Z", "result": "doubtful", "latency_ns": 7, "error": "no answer within 1s"}],
			"changes": [{"at": "2001-02-03T04:05:06Z", "state": "up", "percent": 20, "error": "exit code 1"}]}]}`, string(text))
}
