package cli

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"sync"
	"time"

	"github.com/spf13/cobra"

	"github.com/myelin-sd/myelin/config"
	"github.com/myelin-sd/myelin/doctor"
	"github.com/myelin-sd/myelin/doctor/host"
)

func (a *app) doctorCommand() *cobra.Command {
	var root, write string
	c := &cobra.Command{
		Use:   "doctor [-c FILE]",
		Short: "Look for what will hurt: kernel, limits, HAProxy, ZooKeeper, permissions, clock; with the exact fix",
		Long: "Looks at this host and says what it found, the worst first, why it matters, and how to mend it. -o wide shows what\n" +
			"is fine, too. It changes nothing. With -c FILE it looks at what that file, of an agent or of a registrar, needs;\n" +
			"without it at the roles that run on this host, and at the kernel.\n\n" +
			"What cannot be looked at is a note \"not known\", never taken for good. Much of it needs the rights of the role's\n" +
			"user, or root's.\n\n" +
			"Exit code 3: there is a warning, or worse.",
		Args: cobra.NoArgs,
		RunE: func(c *cobra.Command, _ []string) error {
			if write != "" && !strings.HasPrefix(write, "/") {
				return usage("--write-test %q: write an absolute path of ZooKeeper", write)
			}
			if _, _, err := config.ParseHosts(a.zookeeper); a.zookeeper != "" && err != nil {
				return usage("--zookeeper %q: %w", a.zookeeper, err)
			}
			e := &examination{app: a, host: host.New(root), writeTest: write, progress: a.progress()}
			return e.run(c.Context())
		},
	}
	c.Flags().StringVar(&write, "write-test", "", "make an ephemeral node under `PATH` of ZooKeeper and delete it; it must be there, and be no service's")
	c.Flags().StringVar(&root, "root", "/", "`FOLDER` in which the host's /proc, /sys, /run and /etc are, in a container that has them mounted")
	return c
}

// examination gathers the facts for the doctor.
type examination struct {
	app       *app
	host      host.Host
	writeTest string
	progress  *progress

	processes []host.Process
	roles     []role

	asking sync.WaitGroup
	mu     sync.Mutex // guards what is below
	facts  doctor.Facts
	open   map[string]bool // what is under way, for the progress
}

// role is what one file has a process do, and who that is.
type role struct {
	kind      string // "agent" or "registrar"
	path      string // of its file, absolute
	agent     *config.Agent
	registrar *config.Registrar
	user      doctor.User
	pid       int    // 0: it does not run
	shadow    bool   // it runs with --shadow, and changes nothing
	dir       string // where its relative paths begin
}

func (e *examination) run(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, e.app.timeout)
	defer cancel()
	began := time.Now()
	e.open = map[string]bool{}
	e.facts.Now = began
	var err error
	if e.processes, err = e.host.Processes(); err != nil {
		e.unknown("process.agent", "", err.Error(), "what runs on this host tells which files and limits count")
	}
	if err := e.findRoles(); err != nil {
		return err
	}
	kernel := e.host.Kernel()
	e.facts.Kernel = &kernel
	e.facts.Clock = &doctor.Clock{Sync: e.host.Sync()}
	e.lookAtProcesses()
	for _, r := range e.roles {
		e.lookAtFiles(r)
		if r.agent != nil {
			e.askHAProxies(ctx, r)
		}
	}
	e.lookForManagers()
	e.askEnsembles(ctx)
	e.asking.Wait()
	e.progress.done()
	if err := context.Cause(ctx); err != nil && !errors.Is(err, context.DeadlineExceeded) {
		return fmt.Errorf("examine this host: %w", err)
	}
	e.facts.Clock.Watched = time.Since(began)
	e.facts.Clock.Jump = doctor.Is(time.Now().Round(0).Sub(began.Round(0)) - e.facts.Clock.Watched)
	return e.app.printFindings(doctor.Examine(e.facts))
}

// ask runs a question beside the others. what is shown while it takes long.
func (e *examination) ask(what string, question func()) {
	e.asking.Go(func() {
		e.mark(what, true)
		defer e.mark(what, false)
		question()
	})
}

func (e *examination) mark(what string, open bool) {
	e.mu.Lock()
	defer e.mu.Unlock()
	if open {
		e.open[what] = true
	} else {
		delete(e.open, what)
	}
	for w := range e.open {
		e.progress.say("doctor: %d questions are open, one of them to %s", len(e.open), printable(w))
		return
	}
}

// learn takes facts in.
func (e *examination) learn(f func(*doctor.Facts)) {
	e.mu.Lock()
	defer e.mu.Unlock()
	f(&e.facts)
}

func (e *examination) unknown(id, subject, reason, why string) {
	e.learn(func(f *doctor.Facts) { f.Unknown = append(f.Unknown, doctor.NotKnown(id, subject, reason, why)) })
}

// findingsAnswer is doctor's JSON. The names are part of the interface.
type findingsAnswer struct {
	Worst    doctor.Severity  `json:"worst"`
	Findings []doctor.Finding `json:"findings"`
}

func (a *app) printFindings(all []doctor.Finding) error {
	worst := doctor.Worst(all)
	var err error
	if a.output == "json" {
		err = printJSON(a.out, findingsAnswer{worst, append([]doctor.Finding{}, all...)})
	} else {
		_, err = fmt.Fprint(a.out, a.findingsText(all))
	}
	if err == nil && worst >= doctor.Warning {
		return &codeError{code: exitFindings}
	}
	return err
}

// findingsText is a table for people: the findings are sentences, so what belongs to one stands below it.
func (a *app) findingsText(all []doctor.Finding) string {
	counts := map[doctor.Severity]int{}
	width := 0
	for _, f := range all {
		counts[f.Severity]++
		if f.Severity > doctor.OK || a.output == "wide" {
			width = max(width, len(f.ID))
		}
	}
	var b strings.Builder
	tints := map[doctor.Severity]tint{doctor.OK: good, doctor.Note: plain, doctor.Warning: warn, doctor.Critical: bad}
	for _, f := range all {
		if f.Severity == doctor.OK && a.output != "wide" {
			continue
		}
		found := f.Found
		if f.Subject != "" {
			found = f.Subject + ": " + found
		}
		fmt.Fprintf(&b, "%s  %-*s  %s\n", paint(a.out, fmt.Sprintf("%-8s", f.Severity), tints[f.Severity]), width, f.ID, printable(found))
		indent := strings.Repeat(" ", 8+2+width+2)
		if f.Severity > doctor.OK {
			fmt.Fprintf(&b, "%s%s\n", indent, paint(a.out, "why: "+f.Why, faint))
		}
		if f.Fix != "" {
			fmt.Fprintf(&b, "%sfix: %s\n", indent, printable(f.Fix))
		}
	}
	if b.Len() > 0 {
		b.WriteByte('\n')
	}
	fmt.Fprintf(&b, "%d critical, %s, %s, %d fine", counts[doctor.Critical], plural(counts[doctor.Warning], "warning"), plural(counts[doctor.Note], "note"), counts[doctor.OK])
	if a.output != "wide" && counts[doctor.OK] > 0 {
		b.WriteString(" (-o wide shows them)")
	}
	b.WriteByte('\n')
	return b.String()
}
