package config

import (
	"fmt"
	"strings"

	"github.com/BurntSushi/toml"
)

// place is where a key is first mentioned.
type place struct{ offset, line int }

// A place's key is its path with a NUL before each name and a SOH before each index; TOML forbids both bytes raw, and
// a name that has them by escape can at worst be given its neighbour's line.
func placeKey(path, key string) string     { return path + "\x00" + key }
func placeIndex(path string, i int) string { return fmt.Sprintf("%s\x01%d", path, i) }

// scanTOML finds where each key and list item of a TOML text begins. It judges nothing but depth: on text that is not
// TOML it ends with places that nobody asks for.
func scanTOML(s string) (map[string]place, error) {
	sc := tomlScanner{s: s, line: 1, places: map[string]place{}, tables: map[string]int{}}
	current := ""
	for {
		sc.blank()
		if sc.end() {
			return sc.places, nil
		}
		before := sc.pos
		if sc.peek() == '[' {
			current = sc.header()
		} else if err := sc.pair(current, 0); err != nil {
			return nil, err
		}
		if sc.pos == before { // not TOML; go on with the next byte
			sc.next()
		}
	}
}

type tomlScanner struct {
	s         string
	pos, line int
	places    map[string]place
	tables    map[string]int // [[name]] so far, by path
}

func (sc *tomlScanner) end() bool { return sc.pos >= len(sc.s) }

func (sc *tomlScanner) peek() byte {
	if sc.end() {
		return 0
	}
	return sc.s[sc.pos]
}

func (sc *tomlScanner) has(prefix string) bool {
	return strings.HasPrefix(sc.s[min(sc.pos, len(sc.s)):], prefix)
}

func (sc *tomlScanner) next() {
	if sc.peek() == '\n' {
		sc.line++
	}
	sc.pos++
}

func (sc *tomlScanner) skip(n int) {
	for ; n > 0 && !sc.end(); n-- {
		sc.next()
	}
}

// blank skips white space, line breaks and comments.
func (sc *tomlScanner) blank() {
	for !sc.end() {
		switch sc.peek() {
		case ' ', '\t', '\r', '\n':
			sc.next()
		case '#':
			for !sc.end() && sc.peek() != '\n' {
				sc.next()
			}
		default:
			return
		}
	}
}

func (sc *tomlScanner) space() {
	for sc.peek() == ' ' || sc.peek() == '\t' {
		sc.next()
	}
}

// mention notes a path's place when it is its first.
func (sc *tomlScanner) mention(path string, offset, line int) {
	if _, ok := sc.places[path]; !ok {
		sc.places[path] = place{offset, line}
	}
}

// header reads [a.b] or [[a.b]] and returns the path that the following pairs belong to.
func (sc *tomlScanner) header() string {
	offset, line := sc.pos, sc.line
	array := sc.has("[[")
	sc.next()
	if array {
		sc.next()
	}
	names := sc.key()
	path := ""
	for i, name := range names {
		path = placeKey(path, name)
		sc.mention(path, offset, line)
		if array && i == len(names)-1 {
			sc.tables[path]++
		}
		if n := sc.tables[path]; n > 0 {
			path = placeIndex(path, n-1)
			sc.mention(path, offset, line)
		}
	}
	sc.space()
	for sc.peek() == ']' {
		sc.next()
	}
	return path
}

// pair reads key = value below path.
func (sc *tomlScanner) pair(path string, depth int) error {
	offset, line := sc.pos, sc.line
	for _, name := range sc.key() {
		path = placeKey(path, name)
		sc.mention(path, offset, line)
	}
	sc.space()
	if sc.peek() == '=' {
		sc.next()
	}
	sc.space()
	return sc.value(path, depth)
}

// key reads a dotted key.
func (sc *tomlScanner) key() []string {
	var names []string
	for {
		sc.space()
		from := sc.pos
		if c := sc.peek(); c == '"' || c == '\'' {
			sc.str()
			names = append(names, unquote(sc.s[from:sc.pos]))
		} else {
			for !sc.end() && !strings.ContainsRune(" \t\r\n.=[]{},#\"'", rune(sc.peek())) {
				sc.next()
			}
			names = append(names, sc.s[from:sc.pos])
		}
		sc.space()
		if sc.peek() != '.' {
			return names
		}
		sc.next()
	}
}

// unquote leaves the escapes of a quoted key to the library.
func unquote(s string) string {
	var v struct{ K string }
	if _, err := toml.Decode("K="+s, &v); err != nil {
		return s
	}
	return v.K
}

// str skips a string of any of the four kinds.
func (sc *tomlScanner) str() {
	quote := sc.s[sc.pos : sc.pos+1]
	stop, long := quote, false
	if triple := strings.Repeat(quote, 3); sc.has(triple) {
		stop, long = triple, true
	}
	sc.skip(len(stop))
	for !sc.end() {
		switch {
		case quote == `"` && sc.peek() == '\\':
			sc.skip(2)
		case sc.has(stop):
			sc.skip(len(stop))
			for i := 0; long && i < 2 && sc.has(quote); i++ { // """a""""" ends in two quotes of its own
				sc.next()
			}
			return
		case !long && sc.peek() == '\n': // not TOML
			return
		default:
			sc.next()
		}
	}
}

func (sc *tomlScanner) value(path string, depth int) error {
	if depth > maxDepth {
		return &syntaxError{line: sc.line, text: fmt.Sprintf("nested deeper than %d levels", maxDepth)}
	}
	switch sc.peek() {
	case '"', '\'':
		sc.str()
	case '[':
		return sc.group(']', func(i int) error {
			item := placeIndex(path, i)
			sc.mention(item, sc.pos, sc.line)
			return sc.value(item, depth+1)
		})
	case '{':
		return sc.group('}', func(int) error { return sc.pair(path, depth+1) })
	default:
		for !sc.end() && !strings.ContainsRune(",]}#\n", rune(sc.peek())) {
			sc.next()
		}
	}
	return nil
}

// group reads the comma-separated members between brackets.
func (sc *tomlScanner) group(stop byte, member func(i int) error) error {
	sc.next()
	for i := 0; ; i++ {
		sc.blank()
		if sc.end() {
			return nil
		}
		if sc.peek() == stop {
			sc.next()
			return nil
		}
		before := sc.pos
		if err := member(i); err != nil {
			return err
		}
		sc.blank()
		if sc.peek() == ',' {
			sc.next()
		}
		if sc.pos == before { // not TOML
			return nil
		}
	}
}
