package cli

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"path"
	"slices"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"github.com/myelin-sd/myelin/discovery/zookeeper"
	"github.com/myelin-sd/myelin/fsck"
)

// gcOutcome is what became of a node: one of these words.
type gcOutcome string

const (
	gcWould   gcOutcome = "would delete" // dry
	gcDeleted gcOutcome = "deleted"
	gcSkipped gcOutcome = "skipped" // it is not what it was when it was read
	gcFailed  gcOutcome = "failed"
)

// gcNode is one node in gc's answer: part of the interface.
type gcNode struct {
	Path    string    `json:"path"`
	Why     string    `json:"why"` // id of the finding
	Detail  string    `json:"detail"`
	Outcome gcOutcome `json:"outcome"`
	Reason  string    `json:"reason,omitempty"` // of skipped and failed
}

// gcReport is gc's answer for one ensemble.
type gcReport struct {
	Ensemble string   `json:"ensemble"`
	Roots    []string `json:"roots"`
	Nodes    []gcNode `json:"nodes"`
	Left     int      `json:"left"` // twins whose session lives, that --twins did not name
}

// cleaning is one run of gc.
type cleaning struct {
	app   *app
	yes   bool
	twins []string
	in    io.Reader // where the answer comes from; nil: nobody is there to ask
}

func (a *app) gcCommand() *cobra.Command {
	var f inspectionFlags
	g := cleaning{app: a}
	c := &cobra.Command{
		Use:   "gc [ROOT] [--yes]",
		Short: "Delete what fsck found left behind; without --yes only say what that is",
		Long: "Reads what myelin fsck reads and lists what may be deleted: orphans and undecodable nodes that nobody has written for\n" +
			"--older-than, expired overrides, and twins that --twins names. Never another node whose session lives.\n\n" +
			"Without --yes nothing is deleted, unless somebody at the terminal says so. Each node is read again right before, and\n" +
			"deleted with its version: one that changed since it was read stays.\n\n" +
			"Ends with 3 when there is something left to delete, with 1 when a deletion failed.",
		Args: cobra.MaximumNArgs(1),
		RunE: func(c *cobra.Command, args []string) error {
			for _, t := range g.twins {
				if !strings.HasPrefix(t, "/") {
					return usage("--twins %q: write the path of a service or of a node, as myelin fsck shows it", t)
				}
			}
			all, err := a.inspections(args, f)
			if err != nil {
				return err
			}
			if a.output != "json" && terminal(a.out) && terminal(os.Stdin) {
				g.in = os.Stdin
			}
			return g.run(c.Context(), all, f.olderThan)
		},
	}
	f.add(c)
	c.Flags().BoolVar(&g.yes, "yes", false, "delete without asking")
	c.Flags().StringArrayVar(&g.twins, "twins", nil, "delete the older twins at `PATH`, a service's or a node's, though their sessions live; may be repeated")
	return c
}

func (g *cleaning) run(ctx context.Context, all []inspection, olderThan time.Duration) error {
	var reports []gcReport
	for _, i := range all {
		err := g.app.inspect(ctx, i, olderThan, func(ctx context.Context, s *zookeeper.Session, found inspected) error {
			r, err := g.clean(ctx, s, found)
			reports = append(reports, r)
			return err
		})
		if err != nil {
			return err
		}
	}
	if g.app.output == "json" {
		if err := printJSON(g.app.out, reports); err != nil {
			return err
		}
	}
	n := map[gcOutcome]int{}
	for _, r := range reports {
		for _, node := range r.Nodes {
			n[node.Outcome]++
		}
	}
	switch {
	case n[gcFailed] > 0:
		return &codeError{code: exitFailed}
	case n[gcWould] > 0:
		return &codeError{code: exitFindings}
	}
	return nil
}

// clean deletes what is left behind in one ensemble, or says what that is.
func (g *cleaning) clean(ctx context.Context, s *zookeeper.Session, found inspected) (gcReport, error) {
	r := gcReport{Ensemble: found.ensemble, Roots: found.inspection.roots, Nodes: []gcNode{}}
	var doomed []fsck.Finding
	for _, f := range found.checker.Findings() {
		switch {
		case f.Removal == nil:
		case f.Removal.Lives && !g.named(f.Path):
			r.Left++
		default:
			doomed = append(doomed, f)
		}
	}
	for _, f := range doomed {
		r.Nodes = append(r.Nodes, gcNode{Path: f.Path, Why: f.ID, Detail: f.Detail, Outcome: gcWould})
	}
	g.show(r)
	if len(doomed) == 0 {
		return r, nil
	}
	sure, err := g.sure(ctx, len(doomed))
	if err != nil || !sure {
		return r, err
	}
	p := g.app.progress()
	for i, f := range doomed {
		if ctx.Err() != nil { // somebody has ended the command: the rest stays
			break
		}
		r.Nodes[i].Outcome, r.Nodes[i].Reason = g.remove(ctx, s, *f.Removal)
		p.say("%d of %d nodes deleted", i+1, len(doomed))
	}
	p.done()
	g.sum(r)
	return r, nil
}

// named tells whether an operator has named a twin, by its path or its service's.
func (g *cleaning) named(p string) bool {
	return slices.ContainsFunc(g.twins, func(t string) bool { t = path.Clean(t); return t == p || t == path.Dir(p) })
}

// remove deletes one node if it is still what it was.
func (g *cleaning) remove(ctx context.Context, s *zookeeper.Session, r fsck.Removal) (gcOutcome, string) {
	ctx, cancel := context.WithTimeout(ctx, g.app.timeout)
	defer cancel()
	var stays []zookeeper.Standing
	if r.Keep != nil {
		stays = append(stays, standingAt(*r.Keep))
	}
	switch err := s.Remove(ctx, standingAt(r.Node), stays...); {
	case err == nil:
		return gcDeleted, ""
	case errors.Is(err, zookeeper.ErrChanged):
		return gcSkipped, err.Error()
	case errors.Is(err, zookeeper.ErrNoPath):
		return gcSkipped, "it, or the twin that was to stay, is gone already"
	default:
		return gcFailed, err.Error()
	}
}

// show lists what is to be deleted.
func (g *cleaning) show(r gcReport) {
	if g.app.output == "json" {
		return
	}
	out := g.app.out
	if len(r.Nodes) > 0 {
		t := newTable(out, "PATH", "WHY", "DETAIL")
		for _, n := range r.Nodes {
			t.row(printable(n.Path), n.Why, n.Detail)
		}
		t.flush()
		fmt.Fprintln(out)
	}
	if r.Left > 0 {
		fmt.Fprintf(out, "%s whose sessions live: see myelin fsck; --twins PATH names those to delete\n", plural(r.Left, "twin"))
	}
	switch {
	case len(r.Nodes) == 0:
		fmt.Fprintf(out, "%s: nothing to delete\n", r.where())
	case !g.yes && g.in == nil:
		fmt.Fprintf(out, "%s: %s would be deleted; --yes deletes\n", r.where(), plural(len(r.Nodes), "node"))
	}
}

func (r gcReport) where() string { return printable(strings.Join(few(r.Roots), ", ")) }

// sure asks the person at the terminal, where there is one.
func (g *cleaning) sure(ctx context.Context, n int) (bool, error) {
	switch {
	case g.yes:
		return true, nil
	case g.in == nil:
		return false, nil
	}
	fmt.Fprintf(g.app.out, "Delete %s? [y/N] ", plural(n, "node"))
	answers := make(chan string, 1)
	go func() { // where nobody answers it ends with the process
		answer, _ := bufio.NewReader(g.in).ReadString('\n')
		answers <- strings.ToLower(strings.TrimSpace(answer))
	}()
	select {
	case <-ctx.Done():
		fmt.Fprintln(g.app.out)
		return false, errors.New("interrupted: nothing was deleted")
	case answer := <-answers:
		if answer == "y" || answer == "yes" {
			return true, nil
		}
	}
	fmt.Fprintln(g.app.out, "nothing was deleted")
	return false, nil
}

// sum says what was done, and of each node that stands why.
func (g *cleaning) sum(r gcReport) {
	if g.app.output == "json" {
		return
	}
	n := map[gcOutcome]int{}
	for _, node := range r.Nodes {
		n[node.Outcome]++
		switch node.Outcome {
		case gcSkipped:
			fmt.Fprintf(g.app.out, "skipped %s: %s\n", printable(node.Path), node.Reason)
		case gcFailed:
			fmt.Fprintf(g.app.out, "%s %s: %s\n", paint(g.app.out, "failed", bad), printable(node.Path), node.Reason)
		}
	}
	fmt.Fprintf(g.app.out, "%s: %d deleted, %d skipped, %d failed\n", r.where(), n[gcDeleted], n[gcSkipped], n[gcFailed])
}
