package cli

import (
	"context"
	"fmt"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"github.com/myelin-sd/myelin/config"
	"github.com/myelin-sd/myelin/discovery/zookeeper"
	"github.com/myelin-sd/myelin/fsck"
)

// fsckReport is the answer of fsck in JSON: part of the interface.
type fsckReport struct {
	Ensemble        string         `json:"ensemble"`
	Roots           []string       `json:"roots"`
	Read            fsck.Counts    `json:"read"`
	Probed          int            `json:"probed"`                      // endpoints; 0 without --probe
	ConsumersUnsure string         `json:"consumers_unknown,omitempty"` // why it is not known who consumes a service
	Findings        []fsck.Finding `json:"findings"`
}

func (a *app) fsckCommand() *cobra.Command {
	var f inspectionFlags
	var p prober
	c := &cobra.Command{
		Use:   "fsck [ROOT]",
		Short: "Look for what is wrong in the registry: orphans, twins, undecodable nodes and more",
		Long: "Reads the tree below ROOT (default: /services, or the paths of the services of -c FILE), the overrides and what\n" +
			"agents say they read, and lists what a person should look at. Nothing is changed; myelin gc deletes.\n" +
			"-o wide says what to do about each finding. --timeout bounds the time in which ZooKeeper does not answer.\n\n" +
			"Ends with 3 when there is an error or a warning. docs/operations.md explains the findings.",
		Args: cobra.MaximumNArgs(1),
		RunE: func(c *cobra.Command, args []string) error {
			if p.timeout <= 0 {
				return usage("--probe-timeout %s: write a time above 0", p.timeout)
			}
			all, err := a.inspections(args, f)
			if err != nil {
				return err
			}
			return a.fsck(c.Context(), all, f.olderThan, p)
		},
	}
	f.add(c)
	c.Flags().BoolVar(&p.wanted, "probe", false, "connect to each instance once, from this host")
	c.Flags().DurationVar(&p.timeout, "probe-timeout", time.Second, "how long an instance may take to accept a connection")
	return c
}

// add adds the flags that fsck and gc have in common.
func (f *inspectionFlags) add(c *cobra.Command) {
	c.Flags().DurationVar(&f.olderThan, "older-than", 24*time.Hour, "how long a persistent node was not written before it counts as left behind")
	c.Flags().StringVar(&f.overrides, "overrides", "", "`PATH` of the overrides (default: overrides_path of -c FILE, else "+config.DefaultOverridesPath+")")
	c.Flags().StringVar(&f.consumers, "consumers", "", "`PATH` where agents say what they read (default: consumers_path of -c FILE)")
}

func (a *app) fsck(ctx context.Context, all []inspection, olderThan time.Duration, p prober) error {
	var reports []fsckReport
	for _, i := range all {
		err := a.inspect(ctx, i, olderThan, func(_ context.Context, _ *zookeeper.Session, found inspected) error {
			reports = append(reports, a.report(ctx, found, p))
			return nil
		})
		if err != nil {
			return err
		}
	}
	if err := a.printReports(reports); err != nil {
		return err
	}
	for _, r := range reports {
		if n := severities(r.Findings); n[fsck.Error]+n[fsck.Warning] > 0 {
			return &codeError{code: exitFindings}
		}
	}
	return nil
}

// report judges what was read, after the instances were asked if that is wanted.
func (a *app) report(ctx context.Context, found inspected, p prober) fsckReport {
	r := fsckReport{Ensemble: found.ensemble, Roots: found.inspection.roots, ConsumersUnsure: found.unknown}
	if p.wanted {
		endpoints := found.checker.Endpoints()
		watch := a.progress()
		found.checker.Silent(p.probe(ctx, endpoints, func(n int) { watch.say("%d of %d endpoints asked", n, len(endpoints)) }))
		watch.done()
		r.Probed = len(endpoints)
	}
	r.Read, r.Findings = found.checker.Counts(), found.checker.Findings()
	if r.Findings == nil {
		r.Findings = []fsck.Finding{}
	}
	return r
}

func (a *app) printReports(reports []fsckReport) error {
	if a.output == "json" {
		return printJSON(a.out, reports)
	}
	for i, r := range reports {
		if len(reports) > 1 {
			if i > 0 {
				fmt.Fprintln(a.out)
			}
			fmt.Fprintf(a.out, "ZooKeeper %s\n", r.Ensemble)
		}
		a.printReport(r)
	}
	return nil
}

func (a *app) printReport(r fsckReport) {
	if len(r.Findings) > 0 {
		columns := []string{"SEVERITY", "ID", "PATH", "DETAIL"}
		if a.output == "wide" {
			columns = append(columns, "WHAT TO DO")
		}
		t := newTable(a.out, columns...)
		for _, f := range r.Findings {
			cells := []any{tinted{string(f.Severity), severityTint(f.Severity)}, f.ID, printable(f.Path), f.Detail}
			if a.output == "wide" {
				cells = append(cells, f.Advice)
			}
			t.row(cells...)
		}
		t.flush()
		fmt.Fprintln(a.out)
	}
	fmt.Fprintln(a.out, r.summary())
	if r.ConsumersUnsure != "" {
		fmt.Fprintln(a.out, "who consumes the services is not known:", r.ConsumersUnsure)
	}
}

// summary says in one line what was read and found.
func (r fsckReport) summary() string {
	probed := ""
	if r.Probed > 0 {
		probed = fmt.Sprintf(", %s asked", plural(r.Probed, "endpoint"))
	}
	n, found := severities(r.Findings), "nothing found"
	if len(r.Findings) > 0 {
		found = fmt.Sprintf("%s, %s, %s", plural(n[fsck.Error], "error"), plural(n[fsck.Warning], "warning"), plural(n[fsck.Note], "note"))
	}
	return fmt.Sprintf("%s: %s in %s with %s (%s read%s)", printable(strings.Join(few(r.Roots), ", ")), found,
		plural(r.Read.Services, "service"), plural(r.Read.Instances, "instance"), plural(r.Read.Nodes, "node"), probed)
}

// few are the first ones of a list, and how many more there are.
func few(list []string) []string {
	const most = 3
	if len(list) <= most {
		return list
	}
	return append(append([]string{}, list[:most]...), fmt.Sprintf("%d more", len(list)-most))
}

func severities(findings []fsck.Finding) map[fsck.Severity]int {
	n := map[fsck.Severity]int{}
	for _, f := range findings {
		n[f.Severity]++
	}
	return n
}

// severityTint is how a severity looks.
func severityTint(s fsck.Severity) tint {
	switch s {
	case fsck.Error:
		return bad
	case fsck.Warning:
		return warn
	}
	return faint
}
