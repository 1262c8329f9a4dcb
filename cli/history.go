package cli

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"slices"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"github.com/myelin-sd/myelin/config"
	"github.com/myelin-sd/myelin/journal"
)

const (
	historyShown = 100                    // events that a table shows unless it is told how many
	followEvery  = 250 * time.Millisecond // history -f looks for more
)

// historyOptions are the flags of history.
type historyOptions struct {
	service  string
	since    string
	kinds    []string
	stateDir string
	last     int // negative: as many as is usual
	follow   bool
}

func (a *app) historyCommand() *cobra.Command {
	o := historyOptions{last: -1}
	c := &cobra.Command{
		Use:   "history [SERVICE] [-c FILE] [--since 2h]",
		Short: "Show what happened on this host: what changed, when, and why",
		Long: "Shows what the agent and the registrar of this host have recorded: changes of the registry, checks that turned,\n" +
			"decisions of the guard, overrides, what HAProxy was told, reloads, and starts and stops. It reads files, in the\n" +
			"folder journal of state_dir, so it answers when everything is down. Times are those of this host.\n\n" +
			"-o json prints a list of events; with -f one event a line.",
		Args: cobra.MaximumNArgs(1),
		RunE: func(c *cobra.Command, args []string) error {
			if len(args) == 1 {
				o.service = args[0]
			}
			return a.history(c.Context(), o)
		},
	}
	f := c.Flags()
	f.StringVar(&o.since, "since", "", "`WHEN` it begins: 2h, 3d, a time of day (14:30), or 2006-01-02T15:04:05Z")
	f.StringSliceVar(&o.kinds, "kind", nil, "only `KIND`: "+strings.Join(kindNames(), ", "))
	f.IntVarP(&o.last, "last", "n", -1, fmt.Sprintf("the last `N` events, 0: all (default: %d in a table without --since, else all)", historyShown))
	f.BoolVarP(&o.follow, "follow", "f", false, "go on, and show what happens")
	f.StringVar(&o.stateDir, "state-dir", "", "`DIR` of the agent or registrar (default: that of -c FILE, else "+config.DefaultStateDir+")")
	_ = c.RegisterFlagCompletionFunc("kind", cobra.FixedCompletions(kindNames(), cobra.ShellCompDirectiveNoFileComp))
	return c
}

func kindNames() (names []string) {
	for _, k := range journal.Kinds() {
		names = append(names, string(k))
	}
	return names
}

// historyDirs are the folders in which the processes of this host keep what happened, and the file that says so.
func (a *app) historyDirs(stateDir string) ([]string, error) {
	if stateDir != "" {
		return []string{journalDir(stateDir)}, nil
	}
	if a.configFile == "" {
		return []string{journalDir(config.DefaultStateDir)}, nil
	}
	kind, err := config.Detect(a.configFile, a.options(false))
	if err != nil {
		return nil, err
	}
	if kind == config.KindRegistrar {
		c, err := a.readRegistrar(a.configFile, "")
		if err != nil {
			return nil, err
		}
		return []string{journalDir(c.StateDir)}, nil
	}
	c, _, err := config.LoadAgent(a.configFile, a.options(false))
	if err != nil {
		return nil, err
	}
	dirs := []string{journalDir(c.StateDir)}
	if c.Registrar != "" {
		// What is wrong with that file is no reason not to show what the agent has recorded.
		if r, err := a.readRegistrar(c.Registrar, c.StateDir); err == nil && r.StateDir != c.StateDir {
			dirs = append(dirs, journalDir(r.StateDir))
		}
	}
	return dirs, nil
}

func (a *app) readRegistrar(path, stateDir string) (*config.Registrar, error) {
	o := a.options(false)
	o.InstanceID, o.StateDir = a.instance(""), stateDir
	c, _, err := config.LoadRegistrar(path, o)
	return c, err
}

func (a *app) history(ctx context.Context, o historyOptions) error {
	f, err := o.filter(time.Now())
	if err != nil {
		return err
	}
	dirs, err := a.historyDirs(o.stateDir)
	if err != nil {
		return err
	}
	r := journal.NewReader(dirs...)
	events, err := r.Next(f)
	switch {
	case errors.Is(err, fs.ErrNotExist) && o.follow: // it may come
	case errors.Is(err, fs.ErrNotExist):
		return fmt.Errorf("there is no history in %s: nothing has run with that state_dir, or its history is off; -c FILE or --state-dir name another", strings.Join(dirs, " or "))
	case errors.Is(err, fs.ErrPermission):
		return fmt.Errorf("%w; ask as root, as the user that the agent and the registrar run as, or as one of its group", err)
	case err != nil:
		return err
	}
	if o.service != "" && len(events) == 0 && !slices.Contains(r.Services, o.service) {
		if err := unknownIn(r, o.service); !o.follow {
			return err
		}
	}
	total := len(events)
	if last := o.shown(a.output); last > 0 && total > last {
		events = events[total-last:]
	}
	if a.output == "json" && !o.follow {
		a.tellReading(r)
		return printJSON(a.out, append([]journal.Event{}, events...))
	}
	w := a.historyWriter()
	if err := w.write(events); err != nil {
		return err
	}
	if !o.follow {
		a.tellReading(r)
		a.tellShown(r, o, total, len(events))
		return nil
	}
	return a.followHistory(ctx, r, f, w)
}

// filter is what the flags choose.
func (o historyOptions) filter(now time.Time) (journal.Filter, error) {
	f := journal.Filter{Service: o.service}
	for _, k := range o.kinds {
		if !slices.Contains(kindNames(), k) {
			hint := "write one of " + strings.Join(kindNames(), ", ")
			if near := config.Nearest(k, kindNames()); near != "" {
				hint = "did you mean " + near + "?"
			}
			return f, usage("kind %q: %s", k, hint)
		}
		f.Kinds = append(f.Kinds, journal.Kind(k))
	}
	if o.since == "" {
		return f, nil
	}
	since, ok := pastTime(o.since, now)
	if !ok {
		return f, usage("--since %q: write how long ago (2h, 3d), a time of day (14:30), or a time such as %s", o.since, now.Format(time.RFC3339))
	}
	f.Since = since
	return f, nil
}

// pastTime reads how long ago something was, or when: a time of day is the last one there was.
func pastTime(s string, now time.Time) (time.Time, bool) {
	if d, err := time.ParseDuration(s); err == nil && d >= 0 {
		return now.Add(-d), true
	}
	if days, ok := strings.CutSuffix(s, "d"); ok {
		if d, err := time.ParseDuration(days + "h"); err == nil && d >= 0 && d < 10_000*time.Hour {
			return now.Add(-24 * d), true
		}
	}
	for _, layout := range []string{time.RFC3339, "2006-01-02 15:04:05", "2006-01-02 15:04", "2006-01-02"} {
		if t, err := time.ParseInLocation(layout, s, now.Location()); err == nil {
			return t, true
		}
	}
	for _, layout := range []string{"15:04", "15:04:05"} {
		t, err := time.Parse(layout, s)
		if err != nil {
			continue
		}
		at := time.Date(now.Year(), now.Month(), now.Day(), t.Hour(), t.Minute(), t.Second(), 0, now.Location())
		if at.After(now) {
			at = at.AddDate(0, 0, -1)
		}
		return at, true
	}
	return time.Time{}, false
}

// shown is how many events are shown at most; 0: all.
func (o historyOptions) shown(output string) int {
	if o.last < 0 && (output == "json" || o.since != "") {
		return 0
	}
	if o.last < 0 {
		return historyShown
	}
	return o.last
}

// unknownIn says that nothing is recorded of a service, and which name may be meant.
func unknownIn(r *journal.Reader, service string) error {
	hint := "myelin history without a service shows what there is"
	if near := config.Nearest(service, r.Services); near != "" {
		hint = "did you mean " + printable(near) + "?"
	}
	return fmt.Errorf("nothing is recorded of service %q; %s", service, hint)
}

// tellReading says what of the history could not be read.
func (a *app) tellReading(r *journal.Reader) {
	for _, p := range r.Problems {
		fmt.Fprintln(a.errs, "myelin:", printable(p.Error()))
	}
	if r.Torn > 0 {
		fmt.Fprintf(a.errs, "myelin: %d lines of the history are no events and are left out; a process was killed while it wrote them, or the disk is damaged\n", r.Torn)
	}
}

// tellShown says what is not seen in a table: earlier events, and whether anybody records.
func (a *app) tellShown(r *journal.Reader, o historyOptions, total, shown int) {
	if total > shown {
		fmt.Fprintf(a.out, "%d earlier events are not shown; -n 0 or --since 24h shows more\n", total-shown)
	}
	newest := "nothing is recorded yet"
	if !r.Newest.IsZero() {
		newest = "the newest event is " + age(time.Now(), r.Newest) + " old"
	}
	switch {
	case len(r.Writers) == 0:
		fmt.Fprintf(a.out, "nobody records now: no agent or registrar runs with this history; %s\n", newest)
	case total == 0:
		fmt.Fprintf(a.out, "no such event; %s\n", newest)
	}
}

// historyWriter writes events as they come.
type historyWriter struct {
	a *app
	t *table // nil: nothing was shown yet
}

func (a *app) historyWriter() *historyWriter { return &historyWriter{a: a} }

// write writes events: a table, whose head comes once, or in JSON one event a line.
func (w *historyWriter) write(events []journal.Event) error {
	if w.a.output == "json" {
		e := json.NewEncoder(w.a.out)
		e.SetEscapeHTML(false)
		for _, ev := range events {
			if err := e.Encode(ev); err != nil {
				return fmt.Errorf("write history: %w", err)
			}
		}
		return nil
	}
	if len(events) == 0 {
		return nil
	}
	wide := w.a.output == "wide"
	columns := []string{"TIME", "ROLE", "SERVICE", "WHAT", "CAUSE"}
	layout := "2006-01-02 15:04:05"
	if wide {
		columns, layout = []string{"TIME", "ROLE", "KIND", "SERVICE", "WHAT", "CAUSE"}, "2006-01-02 15:04:05.000"
	}
	if w.t == nil {
		w.t = newTable(w.a.out, columns...)
	}
	for _, e := range events {
		cells := []any{e.At.Local().Format(layout), printable(e.Role)}
		if wide {
			cells = append(cells, printable(string(e.Kind)))
		}
		w.t.row(append(cells, printable(e.Service), tinted{printable(e.Sentence()), eventTint(e)}, printable(e.Cause))...)
	}
	w.t.flush()
	return nil
}

// eventTint has what may need a look stand out.
func eventTint(e journal.Event) tint {
	for word, t := range map[string]tint{"held, ": warn, "held until ": warn, "is lost": bad, "refused": bad, "does not answer": bad, "service is down": bad, "cannot ": bad} {
		if strings.Contains(e.What, word) {
			return t
		}
	}
	return plain
}

// followHistory shows what happens until ctx is done.
func (a *app) followHistory(ctx context.Context, r *journal.Reader, f journal.Filter, w *historyWriter) error {
	tick := time.NewTicker(followEvery)
	defer tick.Stop()
	for {
		select {
		case <-ctx.Done():
			return nil
		case <-tick.C:
		}
		events, err := r.Next(f)
		if err != nil && !errors.Is(err, fs.ErrNotExist) {
			return err
		}
		if err := w.write(events); err != nil {
			return err
		}
	}
}
