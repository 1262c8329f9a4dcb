package discovery

import (
	"strings"
	"sync"
)

// NerveDecoder decodes registrations as DecodeNerve does, and lets instances share their Labels and ServerOptions when
// these are written alike: of thousands of instances few differ in them, and a map takes more memory than all else in
// an Instance. Each source has a decoder of its own, so that what is shared ends with it. The zero value is ready.
// Several goroutines may use it at the same time. It must not be copied.
type NerveDecoder struct {
	labels  shared[map[string]any]
	options shared[[]string]
}

// Decode is DecodeNerve. The Labels and ServerOptions of the instance must not be changed.
func (d *NerveDecoder) Decode(node string, data []byte) (Instance, error) {
	return decode(node, data, d)
}

// labelsOf returns flatLabels of text and keeps nothing of text itself. A nil decoder shares nothing.
func (d *NerveDecoder) labelsOf(text string) (map[string]any, bool) {
	if d == nil {
		return flatLabels(strings.Clone(text))
	}
	return d.labels.of(text, flatLabels)
}

// optionsOf does the same with splitOptions.
func (d *NerveDecoder) optionsOf(text string) ([]string, bool) {
	split := func(text string) ([]string, bool) {
		words, err := splitOptions(text)
		return words, err == nil
	}
	if d == nil {
		return split(strings.Clone(text))
	}
	return d.options.of(text, split)
}

// Limits on what is shared, so that a registry with endless variety costs a decoder little memory.
const (
	maxShared     = 256 // values
	maxSharedText = 256 // bytes of text that a value is made of
)

// shared holds the values that were made of texts, one for each text.
type shared[T any] struct {
	mu   sync.Mutex
	made map[string]T
}

// of returns the value of text, which is made of a copy of text when it is new. False is make's, and not remembered.
func (s *shared[T]) of(text string, make func(string) (T, bool)) (T, bool) {
	if len(text) > maxSharedText {
		return make(strings.Clone(text))
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	if value, ok := s.made[text]; ok {
		return value, true
	}
	text = strings.Clone(text)
	value, ok := make(text)
	if !ok {
		return value, false
	}
	if s.made == nil || len(s.made) == maxShared {
		s.made = map[string]T{} // those who have the old values keep them
	}
	s.made[text] = value
	return value, true
}
