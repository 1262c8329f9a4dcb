package config

import (
	"errors"
	"fmt"
	"math"
	"slices"
	"strconv"
	"strings"

	"github.com/BurntSushi/toml"
)

// parseTOML reads one TOML document. The library decides what is TOML; it tells no positions of keys (toml 1.6.0:
// MetaData has types and order only), so scanTOML finds them in the text.
func parseTOML(file string, data []byte) (*node, error) {
	s := string(data)
	places, err := scanTOML(s)
	if err != nil {
		return nil, err
	}
	var m map[string]any
	if _, err := toml.Decode(s, &m); err != nil {
		return nil, tomlSyntax(err)
	}
	b := tomlBuilder{file: file, places: places}
	return b.node(m, "", 1), nil
}

func tomlSyntax(err error) error {
	var pe toml.ParseError
	if !errors.As(err, &pe) {
		return &syntaxError{line: 1, text: err.Error()}
	}
	text := strings.TrimSuffix(pe.Message, ".")
	switch {
	case strings.HasPrefix(text, "Key '"): // "... has already been defined": it names the key better than LastKey does
		pe.LastKey, text = "", "k"+text[1:]
	case sounds(pe.LastKey):
		text = "the value is not written as TOML wants it" // the library's sentence may quote it
	case strings.Contains(text, "out of range for int64"):
		text = "a number of more than 64 bits, which TOML does not have; write it as a string"
	}
	// At the end of the text toml 1.6.0 names the line before, which a text of one line does not have.
	return &syntaxError{line: max(1, pe.Position.Line), key: pe.LastKey, text: text}
}

// tomlBuilder joins the library's values with the places of their keys.
type tomlBuilder struct {
	file   string
	places map[string]place
}

func (b tomlBuilder) node(v any, path string, line int) *node {
	if p, ok := b.places[path]; ok {
		line = p.line
	}
	n := &node{file: b.file, line: line}
	switch v := v.(type) {
	case string:
		n.kind, n.text = text, v
	case bool:
		n.kind, n.text = boolean, strconv.FormatBool(v)
	case int64:
		n.kind, n.text = number, strconv.FormatInt(v, 10)
	case float64:
		n.kind, n.text = number, formatFloat(v)
		if math.IsNaN(v) || math.IsInf(v, 0) {
			n.kind = other
		}
	case map[string]any:
		n.kind = dict
		for _, key := range b.order(v, path) {
			n.entries = append(n.entries, entry{key, b.node(v[key], placeKey(path, key), line)})
		}
	case []map[string]any: // [[array.of.tables]]
		n.kind = list
		for i, it := range v {
			n.items = append(n.items, b.node(it, placeIndex(path, i), line))
		}
	case []any:
		n.kind = list
		for i, it := range v {
			n.items = append(n.items, b.node(it, placeIndex(path, i), line))
		}
	default: // the four kinds of dates
		n.kind, n.text = other, fmt.Sprint(v)
	}
	return n
}

// order is the keys of a table as the file first mentions them.
func (b tomlBuilder) order(m map[string]any, path string) []string {
	keys := make([]string, 0, len(m))
	for key := range m {
		keys = append(keys, key)
	}
	slices.Sort(keys)
	slices.SortStableFunc(keys, func(x, y string) int {
		return b.places[placeKey(path, x)].offset - b.places[placeKey(path, y)].offset
	})
	return keys
}

// formatFloat keeps a float recognisable as one: 1.0 is not the integer 1.
func formatFloat(f float64) string {
	s := strconv.FormatFloat(f, 'g', -1, 64)
	if !strings.ContainsAny(s, ".e") && !math.IsNaN(f) && !math.IsInf(f, 0) {
		s += ".0"
	}
	return s
}
