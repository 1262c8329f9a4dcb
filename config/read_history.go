package config

import (
	"math"
	"strconv"
	"strings"
)

// Bounds of history.max_size.
const (
	leastHistory = 256 << 10
	mostHistory  = 16 << 30
)

const sizeForm = `write text like "512KiB", "16MiB" or "1GiB", or a number of bytes`

// history is the same in both files. A flag, or "off", switches it.
func (t *table) history() History {
	var h History
	n := t.value("history")
	switch {
	case n == nil:
		return h
	case n.text == "off":
		return History{Off: true}
	case n.text == "true", n.text == "false":
		h.Off = !t.flag("history", true)
		return h
	}
	s := t.sub("history")
	if s == nil {
		return h
	}
	defer s.done()
	if n := s.value("max_size"); n != nil {
		size, ok := parseSize(n)
		switch {
		case !ok:
			s.mismatch("max_size", "a size", sizeForm)
		case size < leastHistory:
			s.mismatch("max_size", "a size of at least 256KiB", sizeForm+`; history = "off" keeps nothing`)
		case size > mostHistory:
			s.mismatch("max_size", "a size of at most 16GiB", sizeForm)
		default:
			h.MaxSize = size
		}
	}
	return h
}

// parseSize reads a number of bytes, with or without a unit.
func parseSize(n *node) (int64, bool) {
	if n.kind != number && n.kind != text {
		return 0, false
	}
	digits, factor := n.text, int64(1)
	if n.kind == text {
		for unit, bytes := range map[string]int64{"KiB": 1 << 10, "MiB": 1 << 20, "GiB": 1 << 30} {
			if s, ok := strings.CutSuffix(n.text, unit); ok {
				digits, factor = strings.TrimSpace(s), bytes
			}
		}
	}
	v, err := strconv.ParseInt(digits, 10, 64)
	if err != nil || v < 0 || v > math.MaxInt64/factor {
		return 0, false
	}
	return v * factor, true
}
