package cli

import (
	"fmt"
	"strings"
	"time"

	"github.com/myelin-sd/myelin/agent"
)

// printShadow shows what an agent in the shadow has found.
func (a *app) printShadow(s *agent.ShadowStatus) {
	now := time.Now()
	fmt.Fprintf(a.out, "shadow: nothing of HAProxy is changed; a difference counts after %s\n", s.Grace)
	for _, n := range s.Notes {
		fmt.Fprintln(a.out, "  note:", printable(n))
	}
	if f := s.File; f != nil {
		switch {
		case f.Error != "":
			fmt.Fprintf(a.out, "file %s cannot be compared: %s\n", f.Path, printable(f.Error))
		case len(f.Differences) == 0:
			fmt.Fprintf(a.out, "file %s: as Myelin would write it, for %s\n", f.Path, age(now, f.Since))
		default:
			fmt.Fprintf(a.out, "file %s: DIFFERS for %s\n", f.Path, age(now, f.Since))
		}
		for _, d := range f.Differences {
			fmt.Fprintln(a.out, "  "+printable(d))
		}
	}
	t := newTable(a.out, "COMPARED BACKEND", "HAPROXY", "STATE", "FOR", "WOULD BE DONE")
	for _, b := range s.Backends {
		since, would := "", b.Reason
		if !b.Since.IsZero() {
			since = age(now, b.Since)
		}
		steps := b.Steps
		if len(steps) > 3 && a.output != "wide" {
			steps = append(steps[:3:3], fmt.Sprintf("and %d more (-o wide)", len(b.Steps)-3))
		}
		if would == "" {
			would = strings.Join(steps, "; ")
		}
		if b.Pending > 0 {
			would = strings.TrimPrefix(would+fmt.Sprintf("; %d that may be a delay", b.Pending), "; ")
		}
		t.row(b.Backend, b.Target, b.State, since, printable(would))
	}
	t.flush()
}
