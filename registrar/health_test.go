package registrar

import (
	"strings"
	"testing"

	"github.com/stretchr/testify/require"
	"pgregory.net/rapid"
)

// Results are T (pass) and F (failure), states u (up), d (down) and ? (unknown).
func TestHealth(t *testing.T) {
	for _, c := range []struct {
		name          string
		rise, fall    int
		firstDecides  bool
		results, want string
		trusted       bool
	}{
		{"Nerve's example", 3, 2, true, "TFTFFTTT", "uuuudddu", false},
		{"Nerve: the first failure decides as well", 3, 2, true, "FTTTFTF", "ddduuuu", false},
		{"rise 3, fall 2", 3, 2, false, "TTTFTFFTTT", "??uuuudddu", false},
		{"the first failure makes it down", 3, 2, false, "FTTT", "dddu", false},
		{"a failure before rise passes makes it down", 3, 2, false, "TTFTTT", "??dddu", false},
		{"rise 1, fall 1", 1, 1, false, "TFTTFF", "uduudd", false},
		{"results that differ start over", 2, 3, false, "TTFFTFFTFFF", "?uuuuuuuuud", false},
		{"less than 1 counts as 1", 0, -1, false, "TFT", "udu", false},
		{"trusted: failures take as many as later", 3, 2, false, "FTFFTTT", "???dddu", true},
		{"trusted: passes take as many as ever", 2, 2, false, "TFTTFF", "???uud", true},
		{"trusted, as Nerve: a pass decides, a failure does not", 3, 2, true, "FTFF", "?uud", true},
		{"trusted, as Nerve: failures do", 3, 2, true, "FF", "?d", true},
	} {
		t.Run(c.name, func(t *testing.T) {
			h := NewHealth(c.rise, c.fall, c.firstDecides)
			if c.trusted {
				h.Trust()
			}
			require.Equal(t, Unknown, h.State())
			var got strings.Builder
			for _, r := range c.results {
				before := h.State()
				changed := h.Observe(r == 'T')
				require.Equal(t, before != h.State(), changed)
				got.WriteByte("?ud"[h.State()])
			}
			require.Equal(t, c.want, got.String())
		})
	}
}

// TestHealthIsNerves compares with Nerve's own rule: a history of max(rise, fall) results, filled by the first one.
func TestHealthIsNerves(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		rise, fall := rapid.IntRange(1, 5).Draw(t, "rise"), rapid.IntRange(1, 5).Draw(t, "fall")
		h := NewHealth(rise, fall, true)
		var history []bool
		want := Unknown
		for _, ok := range rapid.SliceOfN(rapid.Bool(), 1, 30).Draw(t, "results") {
			if history == nil {
				for range max(rise, fall) {
					history = append(history, ok)
				}
			}
			history = append(history, ok)
			if all(history[len(history)-fall:], false) {
				want = Down
			}
			if all(history[len(history)-rise:], true) {
				want = Up
			}
			h.Observe(ok)
			require.Equal(t, want, h.State())
		}
	})
}

func all(results []bool, are bool) bool {
	for _, r := range results {
		if r != are {
			return false
		}
	}
	return true
}
