package cli

import (
	"bytes"
	"encoding/json"
	"fmt"
	"io"
	"slices"
	"strconv"
	"time"
	"unicode/utf8"
)

// table prints aligned columns, with the tints of its cells where out has colours. It keeps the text of its cells in one
// piece: an answer may have ten thousand rows.
type table struct {
	out    io.Writer
	text   []byte // with tints
	cells  []cell
	ends   []int // of the rows, in cells
	widths []int
}

// cell is one of a table, behind the one before it.
type cell struct {
	end   uint32 // in the table's text
	width uint32 // in characters
}

// gap is between two columns.
const gap = 2

// pieceBytes is how much of a long answer is made before it is written.
const pieceBytes = 64 << 10

func newTable(out io.Writer, columns ...string) *table {
	t := &table{out: out, widths: make([]int, len(columns))}
	for _, c := range columns {
		t.cell(c, bold)
	}
	t.end()
	return t
}

// expect makes room for so many rows.
func (t *table) expect(rows int) {
	const characters = 16 // of a cell
	cells := rows * len(t.widths)
	t.text, t.cells, t.ends = slices.Grow(t.text, characters*cells), slices.Grow(t.cells, cells), slices.Grow(t.ends, rows)
}

// row adds one: each cell is a value, or one with a tint.
func (t *table) row(cells ...any) {
	for _, c := range cells {
		cell, ok := c.(tinted)
		if !ok {
			cell.text = c
		}
		word, ok := cell.text.(string)
		if !ok {
			word = fmt.Sprint(cell.text)
		}
		t.cell(word, cell.tint)
	}
	t.end()
}

// cell adds a cell to the row that end ends. What is empty is shown as "-".
func (t *table) cell(word string, tint tint) {
	if word == "" {
		word = "-"
	}
	width := utf8.RuneCountInString(word)
	if i := len(t.cells) - t.began(); i < len(t.widths) {
		t.widths[i] = max(t.widths[i], width)
	}
	t.text = append(t.text, paint(t.out, word, tint)...)
	t.cells = append(t.cells, cell{uint32(len(t.text)), uint32(width)})
}

// end ends a row.
func (t *table) end() { t.ends = append(t.ends, len(t.cells)) }

// began is where the present row begins.
func (t *table) began() int {
	if len(t.ends) == 0 {
		return 0
	}
	return t.ends[len(t.ends)-1]
}

// flush writes what was added, in few pieces.
func (t *table) flush() {
	full := gap
	for _, w := range t.widths {
		full += w + gap
	}
	var b []byte
	blank := bytes.Repeat([]byte{' '}, full)
	at, from := 0, uint32(0)
	for _, end := range t.ends {
		for i, c := range t.cells[at:end] {
			b = append(b, t.text[from:c.end]...)
			if i < end-at-1 && i < len(t.widths) {
				b = append(b, blank[:t.widths[i]-int(c.width)+gap]...)
			}
			from = c.end
		}
		b = append(b, '\n')
		at = end
		if len(b) >= pieceBytes {
			t.out.Write(b)
			b = b[:0]
		}
	}
	t.out.Write(b)
	t.text, t.cells, t.ends = nil, nil, nil
}

// printJSON writes v for programs: indented, one value, a newline at the end.
func printJSON(out io.Writer, v any) error {
	e := json.NewEncoder(out)
	e.SetEscapeHTML(false)
	e.SetIndent("", "  ")
	return e.Encode(v)
}

// age is a duration in one or two units, as people say it.
func age(now, t time.Time) string {
	d := now.Sub(t)
	switch {
	case t.IsZero():
		return "-"
	case d < time.Second:
		return fmt.Sprintf("%dms", max(d.Milliseconds(), 0))
	case d < time.Minute:
		return fmt.Sprintf("%ds", int(d.Seconds()))
	case d < time.Hour:
		return units(int(d.Minutes()), "m", int(d.Seconds())%60, "s")
	case d < 48*time.Hour:
		return units(int(d.Hours()), "h", int(d.Minutes())%60, "m")
	}
	return units(int(d.Hours())/24, "d", int(d.Hours())%24, "h")
}

// units writes two numbers with their units, the second with two digits.
func units(large int, of string, small int, rest string) string {
	b := append(strconv.AppendInt(make([]byte, 0, 16), int64(large), 10), of...)
	if small < 10 {
		b = append(b, '0')
	}
	return string(append(strconv.AppendInt(b, int64(small), 10), rest...))
}
