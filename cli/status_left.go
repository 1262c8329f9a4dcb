package cli

import (
	"errors"
	"fmt"
	"io/fs"
	"time"

	"github.com/myelin-sd/myelin/agent"
	"github.com/myelin-sd/myelin/config"
	"github.com/myelin-sd/myelin/journal"
)

// printLeft shows what an agent that does not answer has left on disk: a registrar alone keeps nothing that could stand
// for its status.
func (a *app) printLeft(address string) {
	if a.configFile != "" {
		if kind, err := config.Detect(a.configFile, a.options(false)); err != nil || kind == config.KindRegistrar {
			return
		}
	}
	fmt.Fprintf(a.out, "agent at %s: %s\n", address, a.alarm("NO ANSWER"))
	dir, err := a.stateDir()
	if err != nil {
		fmt.Fprintln(a.out, "on disk:", printable(err.Error()))
		return
	}
	now := time.Now()
	a.printLastEvent(now, dir)
	a.printLeftOverrides(now, dir)
	services, err := agent.KeptServices(dir)
	switch {
	case err != nil:
		fmt.Fprintf(a.out, "%s: %s\n", dir, printable(err.Error()))
		return
	case len(services) == 0:
		fmt.Fprintf(a.out, "%s: no set of any service is kept there\n", dir)
		return
	}
	fmt.Fprintf(a.out, "what it has left on disk in %s:\n", dir)
	t := newTable(a.out, "SERVICE", "PATH", "LISTED", "HELD", "AGE", "NOTE")
	for _, k := range services {
		cells := []any{printable(k.Service), printable(k.Path)}
		if k.Err != nil {
			t.row(append(cells, "?", "?", age(now, k.AsOf), tinted{printable(k.Err.Error()), bad})...)
			continue
		}
		note := ""
		if k.Missing {
			note = "the path did not exist"
		}
		t.row(append(cells, k.Listed(), k.Instances-k.Listed(), age(now, k.AsOf), note)...)
	}
	t.flush()
}

// printLastEvent says when something was recorded last, and whether somebody records now.
func (a *app) printLastEvent(now time.Time, stateDir string) {
	r := journal.NewReader(journalDir(stateDir))
	_, err := r.Next(journal.Filter{Since: now}) // none is to be shown
	switch {
	case errors.Is(err, fs.ErrNotExist) || err == nil && r.Newest.IsZero():
		fmt.Fprintln(a.out, "history: nothing is recorded")
	case err != nil:
		fmt.Fprintf(a.out, "history: %s\n", printable(err.Error()))
	case len(r.Writers) > 0:
		fmt.Fprintf(a.out, "history: the newest event is %s old; some process still records; see myelin history\n", age(now, r.Newest))
	default:
		fmt.Fprintf(a.out, "history: the newest event is %s old; nobody records now; see myelin history\n", age(now, r.Newest))
	}
}

// printLeftOverrides says which overrides were in force, as far as they still are.
func (a *app) printLeftOverrides(now time.Time, stateDir string) {
	kept, err := agent.KeptOverrides(stateDir, now)
	if errors.Is(err, fs.ErrNotExist) {
		return
	}
	if err != nil {
		fmt.Fprintf(a.out, "overrides: %s\n", printable(err.Error()))
		return
	}
	inForce := 0
	for _, o := range kept.List {
		if !o.Ended {
			inForce++
		}
	}
	fmt.Fprintf(a.out, "overrides %s: %d in force, as they were %s ago; see myelin overrides\n", printable(kept.Path), inForce, age(now, *kept.FromDisk))
}
