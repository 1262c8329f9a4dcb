package config

import (
	"encoding/json"
	"slices"
	"strconv"
	"strings"
	"unicode"
)

// kind is the type of a value, the same for both notations.
type kind int

const (
	null    kind = iota // JSON only; TOML has none
	boolean             // text is "true" or "false"
	number              // text is a JSON number, of any size
	text
	list
	dict
	other // a TOML date or a number that is none ("nan"); no key takes one
)

// node is one value of a file with its place. Both notations become trees of nodes, and only then are looked at.
type node struct {
	kind kind
	file string
	line int

	text    string  // of text, number, boolean and other
	raw     string  // of an expanded text: what the file says
	broken  bool    // already complained about: say no more
	items   []*node // of list
	entries []entry // of dict, in file order, no key twice
}

type entry struct {
	key   string
	value *node
}

// get is the value of a key of a dict, or nil.
func (n *node) get(key string) *node {
	for _, e := range n.entries {
		if e.key == key {
			return e.value
		}
	}
	return nil
}

// set adds a key or replaces its value, and returns the replaced value or nil. A replacement moves to the end: a file
// that says a key twice means the later place.
func (n *node) set(key string, v *node) *node {
	for i, e := range n.entries {
		if e.key == key {
			n.entries = append(append(n.entries[:i:i], n.entries[i+1:]...), entry{key, v})
			return e.value
		}
	}
	n.entries = append(n.entries, entry{key, v})
	return nil
}

// value is the node as plain data: nil, bool, json.Number, string, []any or map[string]any.
func (n *node) value() any {
	switch n.kind {
	case boolean:
		return n.text == "true"
	case number:
		return json.Number(n.text)
	case text, other:
		return n.text
	case list:
		out := make([]any, len(n.items))
		for i, it := range n.items {
			out[i] = it.value()
		}
		return out
	case dict:
		return n.values()
	}
	return nil
}

func (n *node) values() map[string]any {
	out := make(map[string]any, len(n.entries))
	for _, e := range n.entries {
		out[e.key] = e.value.value()
	}
	return out
}

// walk calls f for n and everything below it.
func (n *node) walk(path string, f func(path string, n *node)) {
	f(path, n)
	for i, it := range n.items {
		it.walk(index(path, i), f)
	}
	for _, e := range n.entries {
		e.value.walk(join(path, e.key), f)
	}
}

// describe names a value for a complaint. Texts that may be secrets are not shown: those below a key that sounds like
// one, and those that came from the environment, of which only the file's own words are shown.
func (n *node) describe(path string) string {
	switch n.kind {
	case null:
		return "null"
	case list:
		return "a list"
	case dict:
		return "a table"
	}
	if sounds(path) {
		return "a value that is not shown"
	}
	s := n.text
	if n.raw != "" {
		s = n.raw
	}
	if n.kind == text {
		return quote(s)
	}
	return clip(s)
}

// expanded tells whether some of the value came from the environment, and must not be shown.
func (n *node) expanded() bool {
	found := false
	n.walk("", func(_ string, n *node) { found = found || n.raw != "" })
	return found
}

// sounds tells whether a key's name sounds like a secret.
func sounds(path string) bool {
	p := strings.ToLower(path)
	for _, word := range []string{"password", "passwd", "secret", "token", "authorization", "headers", "access_key", "api_key"} {
		if strings.Contains(p, word) {
			return true
		}
	}
	if strings.HasSuffix(p, ".credentials_file") {
		return false // a path, and the operator wants to know which
	}
	// A login that is written in the wrong place below auth, or instead of it, is still one.
	return slices.ContainsFunc(strings.Split(p, "."), func(key string) bool {
		key, _, _ = strings.Cut(key, "[")
		return key == "auth" || key == "zk_auth"
	})
}

func quote(s string) string { return strconv.Quote(clip(s)) }

// clip shortens what a complaint quotes.
func clip(s string) string {
	const most = 60
	if r := []rune(s); len(r) > most {
		return string(r[:most]) + "..."
	}
	return s
}

// join makes a dotted key as TOML writes it: names with other than bare characters are quoted.
func join(path, key string) string {
	bare := key != ""
	for _, r := range key {
		bare = bare && (r == '_' || r == '-' || r < unicode.MaxASCII && (unicode.IsLetter(r) || unicode.IsDigit(r)))
	}
	if !bare {
		key = quote(key)
	}
	if path == "" {
		return key
	}
	return path + "." + key
}

func index(path string, i int) string { return path + "[" + strconv.Itoa(i) + "]" }

// isControl: C0, DEL, C1 and the two Unicode line breaks.
func isControl(r rune) bool { return unicode.IsControl(r) || r == '\u2028' || r == '\u2029' }
