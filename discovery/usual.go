package discovery

import (
	"encoding/json"
	"strings"
	"unicode/utf8"
)

// usual holds a registration's fields in the usual form: one object of ASCII text without escapes, whole numbers,
// true, false and null, with labels one level deep and nothing said twice. Its texts are parts of the scanned one.
type usual struct {
	host, port, name, weight, labels, options, available, leaving token
}

// token is one value as it is written. The zero value says that there is none.
type token struct {
	kind kind
	text string // between the quotes, the digits, the word, or the object with its braces
}

type kind byte

const (
	kindText kind = iota + 1
	kindNumber
	kindWord
	kindObject
)

// decodeUsual decodes a registration in the usual form with few allocations. False means that decodeJSON has to
// decide: the form is another one, or the registration is to be rejected. What it accepts is what decodeJSON would make
// of it. The instance keeps nothing of data; d may be nil.
func decodeUsual(node string, data []byte, d *NerveDecoder) (Instance, bool) {
	u, ok := scanUsual(string(data))
	if !ok || u.available == (token{kindWord, "false"}) {
		return Instance{}, false
	}
	in := Instance{Node: node, Name: u.safeName(node), Leaving: u.leaving == token{kindWord, "true"}}
	if in.Endpoint, ok = u.endpoint(); !ok {
		return Instance{}, false
	}
	if in.ServerOptions, ok = u.serverOptions(d); !ok {
		return Instance{}, false
	}
	if u.labels.kind == kindObject {
		if in.Labels, ok = d.labelsOf(u.labels.text); !ok {
			return Instance{}, false
		}
	}
	u.setNumbers(&in)
	return in, true
}

func (u *usual) endpoint() (Endpoint, bool) {
	port, ok := portNumber(u.port.text) // number or text; true, false and null are no digits
	if !ok || u.host.kind != kindText {
		return Endpoint{}, false
	}
	e, err := ParseEndpoint(u.host.text, port)
	e.host = strings.Clone(e.host) // lets go of the whole text
	return e, err == nil
}

// safeName returns the name. Nerve's nodes begin with it; it needs no memory of its own then.
func (u *usual) safeName(node string) string {
	if u.name.kind != kindText && u.name.kind != kindNumber {
		return ""
	}
	name := SafeName(u.name.text)
	if strings.HasPrefix(node, name) {
		return node[:len(name)]
	}
	return strings.Clone(name)
}

func (u *usual) serverOptions(d *NerveDecoder) ([]string, bool) {
	switch {
	case u.options.kind == 0 || u.options == token{kindWord, "null"}:
		return nil, true
	case u.options.kind != kindText:
		return nil, false
	case u.options.text == "": // Nerve writes it when there are none
		return nil, true
	}
	return d.optionsOf(u.options.text)
}

// setNumbers sets what an instance has as pointers, with one piece of memory for both.
func (u *usual) setNumbers(in *Instance) {
	id, hasID := sequence(in.Node)
	weight, hasWeight := 0, false
	if u.weight.kind == kindNumber {
		weight, hasWeight = weightNumber(u.weight.text)
	}
	if !hasID && !hasWeight {
		return
	}
	numbers := &struct {
		id     int64
		weight int
	}{id, weight}
	if hasID {
		in.ID = &numbers.id
	}
	if hasWeight {
		in.Weight = &numbers.weight
	}
}

// scanUsual reads the whole text; false when it is not in the usual form.
func scanUsual(text string) (usual, bool) {
	var u usual
	s := scanner{text: text}
	ok := s.object(func(key string) bool { return u.scan(&s, key) })
	return u, ok && s.end()
}

// scan reads the value of one key. Keys match exactly, and a known one may come only once.
func (u *usual) scan(s *scanner, key string) bool {
	var field *token
	switch key {
	case "host":
		field = &u.host
	case "port":
		field = &u.port
	case "name":
		field = &u.name
	case "weight":
		field = &u.weight
	case "haproxy_server_options":
		field = &u.options
	case "available":
		field = &u.available
	case "leaving":
		field = &u.leaving
	case "labels":
		field = &u.labels
	default:
		_, ok := s.scalar()
		return ok
	}
	if field.kind != 0 {
		return false
	}
	var ok bool
	if field == &u.labels && s.at('{') {
		*field, ok = s.flat()
	} else {
		*field, ok = s.scalar()
	}
	return ok
}

// flatLabels makes the labels of an object that flat has read. They share the memory of text.
func flatLabels(text string) (map[string]any, bool) {
	labels := map[string]any{}
	s := scanner{text: text}
	ok := s.object(func(key string) bool {
		t, ok := s.scalar()
		labels[key] = t.value() // of repeated keys the last one counts
		return ok
	})
	return labels, ok
}

// value returns a scalar as encoding/json does with UseNumber.
func (t token) value() any {
	switch {
	case t.kind == kindText:
		return t.text
	case t.kind == kindNumber:
		return json.Number(t.text)
	case t.text == "null":
		return nil
	}
	return t.text == "true"
}

// scanner reads the part of JSON that the usual form needs. Each method reads one thing, with the white space before
// it, and reports whether it was there in that form; once one was not, nothing more can be read.
type scanner struct {
	text string
	pos  int
}

// object reads an object. It calls member after each key and its colon, to read the value.
func (s *scanner) object(member func(key string) bool) bool {
	if !s.take('{') {
		return false
	}
	if s.take('}') {
		return true
	}
	for {
		key, ok := s.quoted()
		if !ok || !s.take(':') || !member(key) {
			return false
		}
		if s.take('}') {
			return true
		}
		if !s.take(',') {
			return false
		}
	}
}

// flat reads an object that holds only scalars.
func (s *scanner) flat() (token, bool) {
	s.space()
	start := s.pos
	ok := s.object(func(string) bool {
		_, ok := s.scalar()
		return ok
	})
	return token{kindObject, s.text[start:s.pos]}, ok
}

// scalar reads a text, a number or a word.
func (s *scanner) scalar() (token, bool) {
	s.space()
	if s.pos == len(s.text) {
		return token{}, false
	}
	switch s.text[s.pos] {
	case '"':
		text, ok := s.quoted()
		return token{kindText, text}, ok
	case 't':
		return s.word("true")
	case 'f':
		return s.word("false")
	case 'n':
		return s.word("null")
	}
	return s.number()
}

func (s *scanner) word(word string) (token, bool) {
	if !strings.HasPrefix(s.text[s.pos:], word) {
		return token{}, false
	}
	s.pos += len(word)
	return token{kindWord, word}, true
}

// number reads a whole number without sign, fraction and exponent. JSON has no zeros before one.
func (s *scanner) number() (token, bool) {
	start := s.pos
	for s.pos < len(s.text) && '0' <= s.text[s.pos] && s.text[s.pos] <= '9' {
		s.pos++
	}
	digits := s.text[start:s.pos]
	return token{kindNumber, digits}, digits == "0" || digits != "" && digits[0] != '0'
}

// quoted reads a text between quotes that is written as it is: no escapes, no control characters, only ASCII.
func (s *scanner) quoted() (string, bool) {
	if !s.take('"') {
		return "", false
	}
	rest := s.text[s.pos:]
	for i := range len(rest) {
		switch c := rest[i]; {
		case c == '"':
			s.pos += i + 1
			return rest[:i], true
		case c < ' ' || c == '\\' || c >= utf8.RuneSelf:
			return "", false
		}
	}
	return "", false
}

// take goes past c if that comes next.
func (s *scanner) take(c byte) bool {
	if !s.at(c) {
		return false
	}
	s.pos++
	return true
}

// at reports whether c comes next.
func (s *scanner) at(c byte) bool {
	s.space()
	return s.pos < len(s.text) && s.text[s.pos] == c
}

// end reports whether nothing comes any more.
func (s *scanner) end() bool {
	s.space()
	return s.pos == len(s.text)
}

func (s *scanner) space() {
	for s.pos < len(s.text) && isSpace(s.text[s.pos]) {
		s.pos++
	}
}

func isSpace(c byte) bool { return c == ' ' || c == '\t' || c == '\r' || c == '\n' }
