package config

import (
	"cmp"
	"slices"
	"strconv"
	"strings"
)

// Problem is one complaint about a file, with where and what to do.
type Problem struct {
	File    string
	Line    int    // 0: unknown
	Key     string // dotted, "services.user-api.discovery.path"; empty for the whole file
	Text    string // what is wrong
	Remedy  string // what to write; may be empty when Text says it all
	Warning bool   // the file is usable all the same
}

// String is one line: "file:line: key: what is wrong; what to write", with "warning: " before the key of a warning.
// It holds no line breaks, whatever the file contained.
func (p Problem) String() string {
	var b strings.Builder
	b.WriteString(p.File)
	if p.Line > 0 {
		b.WriteString(":" + strconv.Itoa(p.Line))
	}
	b.WriteString(": ")
	if p.Warning {
		b.WriteString("warning: ")
	}
	if p.Key != "" {
		b.WriteString(p.Key + ": ")
	}
	b.WriteString(p.Text)
	if p.Remedy != "" {
		b.WriteString("; " + p.Remedy)
	}
	return oneLine(b.String())
}

// Problems are all complaints of one load: the main file's first, then by file name, line and key. As an error they
// print one complaint a line.
type Problems []Problem

func (ps Problems) Error() string {
	lines := make([]string, len(ps))
	for i, p := range ps {
		lines[i] = p.String()
	}
	return strings.Join(lines, "\n")
}

// Errors are the problems that make the file unusable.
func (ps Problems) Errors() Problems { return ps.only(false) }

// Warnings are the problems that leave the file usable.
func (ps Problems) Warnings() Problems { return ps.only(true) }

func (ps Problems) only(warning bool) Problems {
	var out Problems
	for _, p := range ps {
		if p.Warning == warning {
			out = append(out, p)
		}
	}
	return out
}

// err is nil when all problems are warnings, else all of them.
func (ps Problems) err() error {
	if len(ps.Errors()) == 0 {
		return nil
	}
	return ps
}

func (ps Problems) sort(mainFile string) {
	slices.SortStableFunc(ps, func(a, b Problem) int {
		if (a.File == mainFile) != (b.File == mainFile) {
			if a.File == mainFile {
				return -1
			}
			return 1
		}
		return cmp.Or(cmp.Compare(a.File, b.File), cmp.Compare(a.Line, b.Line), cmp.Compare(a.Key, b.Key))
	})
}

// oneLine replaces what would break or recolour a terminal's line.
func oneLine(s string) string {
	return strings.Map(func(r rune) rune {
		if isControl(r) {
			return '?'
		}
		return r
	}, s)
}
