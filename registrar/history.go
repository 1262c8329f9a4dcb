package registrar

import "time"

// historyLength is how many entries a history has at most.
const historyLength = 20

// remember returns history, the oldest entry first, with one entry more. It is a window that moves along an array: what
// has been handed out of it is never written again, so publishing it costs nothing. Only the latest history may be made
// longer.
func remember[T any](history []T, entry T) []T {
	history = append(history, entry)
	return history[max(len(history)-historyLength, 0):]
}

// Verdict is what became of one run of a check.
type Verdict string

// The verdicts.
const (
	Passed    Verdict = "pass"
	Lowered   Verdict = "degraded" // passed, and asks for less traffic
	Failed    Verdict = "fail"
	Undecided Verdict = "undecided" // the check cannot tell yet; counts as nothing
	Doubtful  Verdict = "doubtful"  // failed while this process did not get to run, and is repeated
)

// CheckResult is one run of a check.
type CheckResult struct {
	At      time.Time     `json:"at"` // when it ended
	Verdict Verdict       `json:"result"`
	Latency time.Duration `json:"latency_ns"`
	Error   string        `json:"error,omitempty"` // why it did not simply pass
}

// CheckChange is a change of what a check says of its service.
type CheckChange struct {
	At      time.Time `json:"at"`
	State   State     `json:"state"`
	Percent int       `json:"percent,omitempty"` // of the weight that it leaves, when it is up
	Error   string    `json:"error,omitempty"`   // of the result that led to it
}

// StateChange is a change of what all checks of a service amount to.
type StateChange struct {
	At      time.Time `json:"at"`
	State   State     `json:"state"`
	Percent int       `json:"percent,omitempty"` // of the weight, when it is up
	Check   string    `json:"check,omitempty"`   // whose result led to it
	Error   string    `json:"error,omitempty"`   // of that result
}
