package config

import (
	"cmp"
	"fmt"
	"math"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"time"
)

// reader gathers what is wrong while a tree becomes a result.
type reader struct {
	problems   Problems
	doubles    Problems // keys given twice, found before the file's strict is known
	strict     bool
	main       string // the main file's name
	disk       disk
	wrongHosts bool // the file's ZooKeeper hosts are wrong: no service need say that it has none
	gate       bool // haproxy.health_gate, the default of the services
}

func (r *reader) add(n *node, path, text, remedy string, warning bool) {
	p := Problem{Key: path, Text: text, Remedy: remedy, Warning: warning}
	if n != nil {
		p.File, p.Line = n.file, n.line
	}
	r.problems = append(r.problems, p)
}

func (r *reader) fail(n *node, path, text, remedy string) { r.add(n, path, text, remedy, false) }
func (r *reader) warn(n *node, path, text, remedy string) { r.add(n, path, text, remedy, true) }

// table is a dict while it is read. The keys asked for are the keys it may have: the code that reads a table is its
// schema, and done complains about the rest.
type table struct {
	r     *reader
	n     *node
	path  string
	known []string
}

func (r *reader) table(n *node, path string) *table { return &table{r: r, n: n, path: path} }

// at is a key's node, or the table's own when the key is absent: where to point.
func (t *table) at(key string) *node {
	if n := t.n.get(key); n != nil {
		return n
	}
	return t.n
}

func (t *table) fail(key, text, remedy string) { t.r.fail(t.at(key), join(t.path, key), text, remedy) }
func (t *table) warn(key, text, remedy string) { t.r.warn(t.at(key), join(t.path, key), text, remedy) }

// given is a key's value, null included, or nil when the key is absent.
func (t *table) given(key string) *node {
	if !slices.Contains(t.known, key) {
		t.known = append(t.known, key)
	}
	return t.n.get(key)
}

// value is a key's value, or nil when there is none worth looking at: absent, null (Ruby's nil, an absent key to
// SmartStack), or already complained about.
func (t *table) value(key string) *node {
	if n := t.given(key); n != nil && n.kind != null && !n.broken {
		return n
	}
	return nil
}

// require complains when a key is absent or null, and tells whether it is there.
func (t *table) require(key, remedy string) bool {
	if n := t.given(key); n != nil && n.kind != null {
		return true
	}
	t.fail(key, "is missing", remedy)
	return false
}

// later warns of a key that is understood but has no effect yet.
func (t *table) later(keys ...string) {
	for _, key := range keys {
		if t.given(key) != nil {
			t.warn(key, "has no effect in this version of Myelin", "it can stay")
		}
	}
}

// ignored warns of a key that is known not to matter.
func (t *table) ignored(key, why string) {
	if t.given(key) != nil {
		t.warn(key, "is ignored: "+why, "it can be removed")
	}
}

// done complains about the keys that nobody asked for.
func (t *table) done() {
	for _, e := range t.n.entries {
		if slices.Contains(t.known, e.key) {
			continue
		}
		remedy := "remove it, or look it up in docs/configuration.md"
		if near := Nearest(e.key, t.known); near != "" {
			remedy = "did you mean " + near + "?"
		}
		t.r.add(e.value, join(t.path, e.key), "unknown key", remedy, !t.r.strict)
	}
}

// mismatch complains about a value of the wrong type or out of range.
func (r *reader) mismatch(n *node, path, want, example string) {
	n.broken = true
	r.fail(n, path, fmt.Sprintf("%s is not %s", n.describe(path), want), example)
}

func (t *table) mismatch(key, want, example string) {
	t.r.mismatch(t.at(key), join(t.path, key), want, example)
}

// sub is the table below a key, or nil. A nil result has been complained about unless the key is absent or null.
func (t *table) sub(key string) *table {
	n := t.value(key)
	if n == nil {
		return nil
	}
	if n.kind != dict {
		t.mismatch(key, "a table", "write "+key+" = { ... } in TOML, \""+key+"\": { ... } in JSON")
		return nil
	}
	return t.r.table(n, join(t.path, key))
}

// subs are the tables of a list of tables; one table alone is a list of one.
func (t *table) subs(key string) []*table {
	n := t.value(key)
	if n == nil {
		return nil
	}
	path := join(t.path, key)
	if n.kind == dict {
		return []*table{t.r.table(n, path)}
	}
	if n.kind != list {
		t.mismatch(key, "a list of tables", "write "+key+" = [ { ... } ] in TOML, \""+key+"\": [ { ... } ] in JSON")
		return nil
	}
	var out []*table
	for i, it := range n.items {
		if it.kind != dict {
			t.r.mismatch(it, index(path, i), "a table", "write { ... }")
			continue
		}
		out = append(out, t.r.table(it, index(path, i)))
	}
	return out
}

// str is a text without control characters, or def. Every text of the schema ends up in a line, a path or a request.
func (t *table) str(key, def string) string {
	n := t.value(key)
	if n == nil {
		return def
	}
	if s, ok := t.r.text(n, join(t.path, key)); ok {
		return s
	}
	return def
}

func (r *reader) text(n *node, path string) (string, bool) {
	if n.broken {
		return "", false
	}
	if n.kind != text {
		r.mismatch(n, path, "a string", "write one string in double quotes")
		return "", false
	}
	if strings.ContainsFunc(n.text, func(c rune) bool { return isControl(c) && c != '\t' }) {
		n.broken = true
		r.fail(n, path, "contains a line break or another control character", "write one line of plain text")
		return "", false
	}
	return n.text, true
}

// filePath is the path of a file or folder, or def.
func (t *table) filePath(key, def string) string {
	s := t.str(key, def)
	if s == "" && t.value(key) != nil {
		t.mismatch(key, "a path", "write one, or remove "+key)
		return def
	}
	return s
}

// beside is the path of a file, or empty. A relative one is meant from the main file's folder, which does not change
// with where the process is started.
func (t *table) beside(key string) string {
	s := t.filePath(key, "")
	if s == "" || filepath.IsAbs(s) {
		return s
	}
	return filepath.Join(filepath.Dir(t.r.main), s)
}

// choice is one of some words, or def.
func (t *table) choice(key, def string, words ...string) string {
	s := t.str(key, def)
	if s == def || slices.Contains(words, s) {
		return s
	}
	t.mismatch(key, "one of "+strings.Join(words, ", "), "write "+strconv.Quote(cmp.Or(Nearest(s, words), words[0])))
	return def
}

// lines is a list of texts; one text alone is a list of one. nil when the key is absent, else not nil.
func (t *table) lines(key string) []string {
	n := t.value(key)
	if n == nil {
		return nil
	}
	return t.r.lines(n, join(t.path, key))
}

func (r *reader) lines(n *node, path string) []string {
	out := []string{}
	switch n.kind {
	case text:
		if s, ok := r.text(n, path); ok {
			out = append(out, s)
		}
	case list:
		for i, it := range n.items {
			if s, ok := r.text(it, index(path, i)); ok {
				out = append(out, s)
			}
		}
	default:
		r.mismatch(n, path, "a list of strings", `write ["...", "..."]`)
	}
	return out
}

// flag is a boolean, or def. The words "true" and "false" count, so that a flag can come from the environment.
func (t *table) flag(key string, def bool) bool {
	n := t.value(key)
	if n == nil {
		return def
	}
	if (n.kind == boolean || n.kind == text) && (n.text == "true" || n.text == "false") {
		return n.text == "true"
	}
	t.mismatch(key, "true or false", "write "+key+" without quotes as true or false")
	return def
}

// digits is a whole number, in digits or as a string of digits.
var digits = regexp.MustCompile(`^-?[0-9]+$`)

// whole is a whole number in [least, most], or def.
func (t *table) whole(key string, def, least, most int64) int64 {
	n := t.value(key)
	if n == nil {
		return def
	}
	if n.kind == number || n.kind == text {
		if v, err := strconv.ParseInt(n.text, 10, 64); err == nil && digits.MatchString(n.text) && v >= least && v <= most {
			return v
		}
	}
	want := fmt.Sprintf("a whole number from %d to %d", least, most)
	if most >= math.MaxInt32 {
		want = fmt.Sprintf("a whole number of at least %d", least)
	}
	t.mismatch(key, want, "write for example "+strconv.FormatInt(max(least, def, 1), 10))
	return def
}

// port is a TCP port, or 0 when the key is absent.
func (t *table) port(key string) uint16 {
	n := t.value(key)
	if n == nil {
		return 0
	}
	if n.kind == number || n.kind == text {
		if v, err := strconv.ParseUint(n.text, 10, 16); err == nil && v > 0 {
			return uint16(v)
		}
	}
	t.mismatch(key, "a port", "write a number from 1 to 65535")
	return 0
}

// fraction is a number of at least 0, or def.
func (t *table) fraction(key string, def float64) float64 {
	n := t.value(key)
	if n == nil {
		return def
	}
	if n.kind == number || n.kind == text {
		if v, ok := decimal(n.text); ok {
			return v
		}
	}
	t.mismatch(key, "a number of at least 0", "write for example 0.5")
	return def
}

// decimal is a plain number of at least 0: what ParseFloat takes without its hexadecimals, infinities and names.
func decimal(s string) (float64, bool) {
	if !plain.MatchString(s) {
		return 0, false
	}
	v, err := strconv.ParseFloat(s, 64)
	return v, err == nil
}

var plain = regexp.MustCompile(`^[0-9]*\.?[0-9]+([eE][-+]?[0-9]+)?$`)

const (
	positive     = time.Nanosecond // least duration where zero means nothing
	longest      = 10 * 365 * 24 * time.Hour
	durationForm = `write a number of seconds, or text like "500ms", "2s" or "1m30s"`
)

// duration is a length of time of at least least, or def. Numbers, and strings that are numbers, are seconds.
func (t *table) duration(key string, def, least time.Duration) time.Duration {
	n := t.value(key)
	if n == nil {
		return def
	}
	d, ok := parseDuration(n)
	switch {
	case !ok:
		t.mismatch(key, "a duration", durationForm)
	case d < least && least == positive:
		t.mismatch(key, "longer than 0", durationForm)
	case d < least:
		t.mismatch(key, "a duration of at least "+least.String(), durationForm)
	case d > longest:
		t.mismatch(key, "a duration that can be meant (ten years at most)", durationForm)
	default:
		return d
	}
	return def
}

func parseDuration(n *node) (time.Duration, bool) {
	if n.kind != number && n.kind != text {
		return 0, false
	}
	if s, ok := decimal(n.text); ok {
		if s > longest.Seconds() {
			return longest + 1, true
		}
		return time.Duration(math.Round(s * float64(time.Second))), true
	}
	if n.kind == number {
		return 0, false
	}
	d, err := time.ParseDuration(n.text)
	return d, err == nil && d >= 0
}
