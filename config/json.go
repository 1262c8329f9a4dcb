package config

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"sort"
)

// maxDepth bounds nesting, so that no file can exhaust the stack. The schema needs 7.
const maxDepth = 64

// syntaxError says where a file is not JSON or TOML at all.
type syntaxError struct {
	line int
	key  string
	text string
}

func (e *syntaxError) Error() string { return fmt.Sprintf("line %d: %s", e.line, e.text) }

// parseJSON reads one JSON document. Numbers keep their text. twice is called for each key that a table has twice;
// the later value wins, as in every reader that SmartStack's files met.
func parseJSON(file string, data []byte, twice func(path string, first, second *node)) (*node, error) {
	p := jsonParser{file: file, dec: json.NewDecoder(bytes.NewReader(data)), twice: twice}
	for i, c := range data {
		if c == '\n' {
			p.newlines = append(p.newlines, int64(i))
		}
	}
	p.dec.UseNumber()
	tok, err := p.token()
	if err != nil {
		return nil, err
	}
	root, err := p.value(tok, "", 0)
	if err != nil {
		return nil, err
	}
	end := p.line()
	switch _, err := p.dec.Token(); {
	case errors.Is(err, io.EOF):
		return root, nil
	case err != nil:
		return nil, p.syntax(err)
	}
	return nil, &syntaxError{line: end, text: "there is more after the end of the JSON document"}
}

type jsonParser struct {
	file     string
	dec      *json.Decoder
	newlines []int64 // offsets
	twice    func(path string, first, second *node)
}

// line is that of the last token's end. Tokens hold no line breaks, so it is the whole token's line.
func (p *jsonParser) line() int { return p.lineAt(p.dec.InputOffset()) }

func (p *jsonParser) lineAt(offset int64) int {
	return 1 + sort.Search(len(p.newlines), func(i int) bool { return p.newlines[i] >= offset })
}

func (p *jsonParser) token() (json.Token, error) {
	tok, err := p.dec.Token()
	if err != nil {
		return nil, p.syntax(err)
	}
	return tok, nil
}

func (p *jsonParser) syntax(err error) error {
	if errors.Is(err, io.EOF) || errors.Is(err, io.ErrUnexpectedEOF) {
		return &syntaxError{line: len(p.newlines) + 1, text: "the file ends before the JSON document does"}
	}
	line := p.line()
	var se *json.SyntaxError
	if errors.As(err, &se) {
		line = p.lineAt(se.Offset)
	}
	return &syntaxError{line: line, text: err.Error()}
}

func (p *jsonParser) value(tok json.Token, path string, depth int) (*node, error) {
	n := &node{file: p.file, line: p.line()}
	if depth > maxDepth {
		return nil, &syntaxError{line: n.line, text: fmt.Sprintf("nested deeper than %d levels", maxDepth)}
	}
	switch tok := tok.(type) {
	case nil:
		n.kind = null
	case bool:
		n.kind, n.text = boolean, fmt.Sprint(tok)
	case json.Number:
		n.kind, n.text = number, tok.String()
	case string:
		n.kind, n.text = text, tok
	case json.Delim:
		if tok == '[' {
			return n, p.list(n, path, depth)
		}
		return n, p.dict(n, path, depth)
	}
	return n, nil
}

func (p *jsonParser) list(n *node, path string, depth int) error {
	n.kind = list
	for {
		tok, err := p.token()
		if err != nil || tok == json.Delim(']') {
			return err
		}
		v, err := p.value(tok, index(path, len(n.items)), depth+1)
		if err != nil {
			return err
		}
		n.items = append(n.items, v)
	}
}

func (p *jsonParser) dict(n *node, path string, depth int) error {
	n.kind = dict
	for {
		tok, err := p.token()
		if err != nil || tok == json.Delim('}') {
			return err
		}
		key, ok := tok.(string)
		if !ok { // the decoder lets nothing else through
			return &syntaxError{line: p.line(), text: "a key is not a string"}
		}
		line := p.line()
		if tok, err = p.token(); err != nil {
			return err
		}
		v, err := p.value(tok, join(path, key), depth+1)
		if err != nil {
			return err
		}
		v.line = line
		if first := n.set(key, v); first != nil {
			p.twice(join(path, key), first, v)
		}
	}
}
