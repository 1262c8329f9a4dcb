package registrar

import "fmt"

// State is what is known of a service's health. Its zero value is Unknown.
type State int

// The states.
const (
	Unknown State = iota // not decided yet
	Up
	Down
)

func (s State) String() string {
	switch s {
	case Up:
		return "up"
	case Down:
		return "down"
	}
	return "unknown"
}

// MarshalText writes the state's word.
func (s State) MarshalText() ([]byte, error) { return []byte(s.String()), nil }

// UnmarshalText reads what MarshalText writes.
func (s *State) UnmarshalText(text []byte) error {
	for _, known := range []State{Unknown, Up, Down} {
		if known.String() == string(text) {
			*s = known
			return nil
		}
	}
	return fmt.Errorf("read state: %q is none", text)
}

// Health turns a check's results into a state: rise passes in a row bring it up, fall failures in a row take it down,
// anything else leaves it as it is.
//
// Nerve keeps the last max(rise, fall) results and fills them all with the very first one. That is the same machine,
// but for its beginning: there the first result alone decides.
type Health struct {
	rise, fall   int
	firstDecides bool
	trusted      bool

	state   State
	leaning State // what the last result that spoke against state said
	streak  int   // how many in a row did
}

// NewHealth returns an Unknown health. rise and fall below 1 count as 1. Nothing being known, rise passes in a row are
// needed to be up, while one failure makes it down; with firstDecides one pass is enough as well, as in Nerve.
func NewHealth(rise, fall int, firstDecides bool) Health {
	return Health{rise: max(rise, 1), fall: max(fall, 1), firstDecides: firstDecides}
}

// Trust says that what stands rests on an earlier judgement, of other checks or of the process before. It takes fall
// failures in a row to be down then, as it does from Up: one blip must not withdraw a service because its file was
// changed, or its registrar started again. Call it before the first result.
func (h *Health) Trust() { h.trusted = true }

// State is what the results so far amount to.
func (h *Health) State() State { return h.state }

// Observe takes the next result and reports whether it changed the state.
func (h *Health) Observe(ok bool) (changed bool) {
	says, need := Down, h.fall
	if ok {
		says, need = Up, h.rise
	}
	if says == h.state {
		h.streak = 0
		return false
	}
	if says != h.leaning {
		h.leaning, h.streak = says, 0
	}
	h.streak++
	if h.state == Unknown && (ok && h.firstDecides || !ok && !h.trusted) {
		need = 1
	}
	if h.streak < need {
		return false
	}
	h.state, h.streak = says, 0
	return true
}
