package cli

import (
	"bytes"
	"encoding/json"
	"fmt"
	"io"
	"time"
	"unicode/utf8"
)

// table prints aligned columns, with the tints of its cells where out has colours.
type table struct {
	out    io.Writer
	rows   [][]tinted
	widths []int
}

// gap is between two columns.
const gap = 2

func newTable(out io.Writer, columns ...string) *table {
	t := &table{out: out, widths: make([]int, len(columns))}
	cells := make([]any, len(columns))
	for i, c := range columns {
		cells[i] = tinted{c, bold}
	}
	t.row(cells...)
	return t
}

// row adds one: each cell is a value, or one with a tint. What is empty is shown as "-".
func (t *table) row(cells ...any) {
	row := make([]tinted, len(cells))
	for i, c := range cells {
		cell, ok := c.(tinted)
		if !ok {
			cell.text = c
		}
		word, ok := cell.text.(string)
		if !ok {
			word = fmt.Sprint(cell.text)
		}
		if word == "" {
			word = "-"
		}
		if i < len(t.widths) {
			t.widths[i] = max(t.widths[i], utf8.RuneCountInString(word))
		}
		row[i] = tinted{word, cell.tint}
	}
	t.rows = append(t.rows, row)
}

// flush writes what was added, in one go.
func (t *table) flush() {
	var b bytes.Buffer
	for _, row := range t.rows {
		for i, c := range row {
			word := c.text.(string)
			b.WriteString(paint(t.out, word, c.tint))
			if i < len(row)-1 && i < len(t.widths) {
				for range t.widths[i] - utf8.RuneCountInString(word) + gap {
					b.WriteByte(' ')
				}
			}
		}
		b.WriteByte('\n')
	}
	t.out.Write(b.Bytes())
	t.rows = nil
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
		return fmt.Sprintf("%dm%02ds", int(d.Minutes()), int(d.Seconds())%60)
	case d < 48*time.Hour:
		return fmt.Sprintf("%dh%02dm", int(d.Hours()), int(d.Minutes())%60)
	}
	return fmt.Sprintf("%dd%02dh", int(d.Hours())/24, int(d.Hours())%24)
}
