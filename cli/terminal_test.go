package cli

import (
	"bytes"
	"fmt"
	"testing"

	"github.com/stretchr/testify/require"
)

func TestTable(t *testing.T) {
	print := func(colours bool) string {
		var b bytes.Buffer
		t := newTable(screen{&b, colours}, "NAME", "N", "NOTE")
		t.row("a", 12, "")
		t.row(tinted{"häuser", bad}, tinted{3, plain}, "long words at the end")
		t.row("cut")
		t.flush()
		t.row("again", 1, 2)
		t.flush()
		return b.String()
	}
	require.Equal(t, ""+
		"NAME    N   NOTE\n"+
		"a       12  -\n"+
		"häuser  3   long words at the end\n"+
		"cut\n"+
		"again   1   2\n", print(false))
	require.Contains(t, print(true), "\x1b[31mhäuser\x1b[0m  3   long", "the width is that of what is seen")
	require.Contains(t, print(true), "\x1b[1mNAME\x1b[0m    \x1b[1mN\x1b[0m")
}

// TestLongTable: a table that is written in several pieces is whole.
func TestLongTable(t *testing.T) {
	var b, want bytes.Buffer
	table := newTable(&b, "ROW", "TEXT")
	want.WriteString("ROW   TEXT\n")
	for i := range 10_000 {
		table.row(i, "some text")
		fmt.Fprintf(&want, "%-4d  some text\n", i)
	}
	table.flush()
	require.Greater(t, b.Len(), 2*pieceBytes)
	require.True(t, want.String() == b.String(), "the text differs") // Equal would print all of it
}

func TestColoursOnTerminalsOnly(t *testing.T) {
	none := func(string) (string, bool) { return "", false }
	require.False(t, screenOf(&bytes.Buffer{}, none).colours)
	var errs bytes.Buffer
	p := (&app{errs: &errs}).progress()
	p.next = p.next.Add(-progressAfter)
	p.say("half of it")
	p.done()
	require.Empty(t, errs.String(), "nobody looks")
}
