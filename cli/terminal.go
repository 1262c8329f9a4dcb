package cli

import (
	"fmt"
	"io"
	"os"
	"sync"
	"time"

	"golang.org/x/term"
)

// terminal tells whether a person looks at what is written to w.
func terminal(w io.Writer) bool {
	if s, ok := w.(screen); ok {
		w = s.Writer
	}
	f, ok := w.(*os.File)
	return ok && term.IsTerminal(int(f.Fd()))
}

// screen is an output that may have colours.
type screen struct {
	io.Writer
	colours bool
}

// screenOf has colours on a terminal that knows them, unless NO_COLOR (https://no-color.org) says otherwise.
func screenOf(w io.Writer, env func(string) (string, bool)) screen {
	no, _ := env("NO_COLOR")
	kind, _ := env("TERM")
	return screen{w, no == "" && kind != "dumb" && terminal(w)}
}

// tint is how a word of an answer looks where there are colours.
type tint string

const (
	plain tint = ""
	good  tint = "32" // green
	bad   tint = "31" // red
	warn  tint = "33" // yellow
	faint tint = "2"
	bold  tint = "1"
)

// tinted is a cell of a table, or a word of a line, with its tint.
type tinted struct {
	text any
	tint tint
}

// paint writes text in its tint, where out has colours.
func paint(out io.Writer, text string, t tint) string {
	if t == plain {
		return text
	}
	if s, ok := out.(screen); ok && s.colours {
		return "\x1b[" + string(t) + "m" + text + "\x1b[0m"
	}
	return text
}

// progress tells on a terminal how far a long question is, in one line that is written over. Where nobody looks it says
// nothing. It may be used by several goroutines.
type progress struct {
	out   io.Writer
	width int
	quiet bool

	mu    sync.Mutex
	shown bool
	next  time.Time
}

// progressAfter is how long a question may take before anything is said, and progressEvery the time between two lines.
const (
	progressAfter = 300 * time.Millisecond
	progressEvery = 100 * time.Millisecond
)

// progress begins to watch a question. Its caller calls done before anything else is written.
func (a *app) progress() *progress {
	p := &progress{out: a.errs, quiet: !terminal(a.errs), next: time.Now().Add(progressAfter)}
	if f, ok := a.errs.(*os.File); ok && !p.quiet {
		p.width, _, _ = term.GetSize(int(f.Fd()))
	}
	return p
}

// say shows the line, unless the last one is too young.
func (p *progress) say(format string, args ...any) {
	if p.quiet {
		return
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	now := time.Now()
	if now.Before(p.next) {
		return
	}
	line := []rune(fmt.Sprintf(format, args...))
	if p.width > 1 && len(line) >= p.width {
		line = line[:p.width-1]
	}
	fmt.Fprintf(p.out, "\r%s\x1b[K", string(line))
	p.shown, p.next = true, now.Add(progressEvery)
}

// done takes the line away.
func (p *progress) done() {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.shown {
		fmt.Fprint(p.out, "\r\x1b[K")
		p.shown = false
	}
}
