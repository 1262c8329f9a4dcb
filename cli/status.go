package cli

import (
	"context"
	"encoding/json"
	"fmt"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"github.com/myelin-sd/myelin/agent"
	"github.com/myelin-sd/myelin/config"
	"github.com/myelin-sd/myelin/discovery"
	"github.com/myelin-sd/myelin/registrar"
)

func (a *app) statusCommand() *cobra.Command {
	var address string
	c := &cobra.Command{
		Use:   "status [-c FILE]",
		Short: "Show the local agent or registrar: services, holds, ZooKeeper, HAProxy",
		Long: "Shows what the agent of this host, or the registrar of -c FILE, says of itself. When an agent does not answer, a table\n" +
			"shows what it has left on disk: services, instances, holds and overrides, and how old they are; -o json prints nothing\n" +
			"then. Either way the exit code is 1.",
		Args: cobra.NoArgs,
		RunE: func(c *cobra.Command, _ []string) (err error) {
			if address == "" {
				if address, err = a.statusAddress(); err != nil {
					return err
				}
			}
			return a.status(c.Context(), address)
		},
	}
	c.Flags().StringVar(&address, "address", "", "`HOST:PORT` of the agent or the registrar (default: admin.listen of -c FILE, else the agent's "+config.DefaultAdminListen+")")
	return c
}

// statusAddress is where the process of -c FILE answers, or an agent when there is no such file.
func (a *app) statusAddress() (string, error) {
	if a.configFile == "" {
		return config.DefaultAdminListen, nil
	}
	kind, err := config.Detect(a.configFile, a.options(false))
	if err != nil {
		return "", err
	}
	var listen string
	switch kind {
	case config.KindRegistrar:
		o := a.options(false)
		o.InstanceID = a.instance("")
		var c *config.Registrar
		if c, _, err = config.LoadRegistrar(a.configFile, o); err == nil {
			listen = c.Admin.Listen
		}
	default:
		var c *config.Agent
		if c, _, err = config.LoadAgent(a.configFile, a.options(false)); err == nil {
			listen = c.Admin.Listen
		}
	}
	switch {
	case err != nil:
		return "", err
	case listen == "":
		return "", fmt.Errorf("%s: admin.listen is off, so the %s cannot be asked", a.configFile, kind)
	}
	return listen, nil
}

// status shows what the process at address says of itself: an agent, or a registrar alone. In the place of an agent that
// does not answer a table tells what it has left on disk; a program gets the error alone, lest it takes that for a status.
func (a *app) status(ctx context.Context, address string) error {
	short, cancel := context.WithTimeout(ctx, a.timeout)
	defer cancel()
	body, err := page(short, address, "/api/v1/status", mostOfAnswer)
	if err != nil {
		if a.output != "json" {
			a.printLeft(address)
		}
		return fmt.Errorf("ask for the status at %s: %w", address, err)
	}
	if a.output == "json" {
		_, err := a.out.Write(body)
		return err
	}
	var who struct{ Instance *string } // an agent has none
	if err := json.Unmarshal(body, &who); err != nil {
		return fmt.Errorf("read the answer of %s: %w", address, err)
	}
	if who.Instance != nil {
		return show(body, a.printOverview)
	}
	return show(body, a.printStatus)
}

func show[T any](body []byte, print func(T)) error {
	var st T
	if err := json.Unmarshal(body, &st); err != nil {
		return fmt.Errorf("read the status: %w", err)
	}
	print(st)
	return nil
}

// printOverview shows a registrar that is no agent's.
func (a *app) printOverview(o registrar.Overview) {
	a.printHead(fmt.Sprintf("registrar %s of instance %s", o.Version, o.Instance), o.Ready, o.Started, o.Config, o.Waiting)
	a.printSessions(o.ZooKeeper)
	a.printRegistrations(o.Services)
}

func (a *app) printHead(who string, ready bool, started time.Time, file string, waiting []string) {
	state := paint(a.out, "ready", good)
	if !ready {
		state = paint(a.out, "not ready", bad)
	}
	fmt.Fprintf(a.out, "%s, %s, up %s, configuration %s\n", who, state, age(time.Now(), started), file)
	for _, w := range waiting {
		fmt.Fprintln(a.out, "  waiting:", w)
	}
}

// alarm is a word that is to be seen at once.
func (a *app) alarm(word string) string { return paint(a.out, word, bad) }

func (a *app) printSessions(all []discovery.SessionStatus) {
	now := time.Now()
	for _, z := range all {
		if z.Connected {
			fmt.Fprintf(a.out, "zookeeper %s: connected to %s for %s, session %s, timeout %s%s\n", z.Ensemble, z.Server, age(now, z.Since), z.Session, z.Timeout,
				map[bool]string{true: ", one watch per node"}[z.Classic])
		} else {
			fmt.Fprintf(a.out, "zookeeper %s: %s for %s, what was known stays in force: %s\n", z.Ensemble, a.alarm("NOT CONNECTED"), age(now, z.Since), z.Error)
		}
	}
}

func (a *app) printStatus(st agent.Status) {
	now := time.Now()
	a.printHead("agent "+st.Version, st.Ready, st.Started, st.Config, st.Waiting)
	a.printSessions(st.ZooKeeper)
	for _, h := range st.HAProxy {
		if h.Connected {
			fmt.Fprintf(a.out, "haproxy %s: version %s, pid %d, answers for %s\n", h.Socket, h.Version, h.Pid, age(now, h.Since))
		} else {
			fmt.Fprintf(a.out, "haproxy %s: %s for %s: %s\n", h.Socket, a.alarm("NO ANSWER"), age(now, h.Since), h.Error)
		}
		for _, text := range h.Warnings {
			fmt.Fprintln(a.out, "  warning:", text)
		}
		for _, f := range h.Failed {
			fmt.Fprintln(a.out, "  refused:", f)
		}
		for backend, why := range h.Unfit {
			fmt.Fprintf(a.out, "  backend %s needs reloads: %s\n", backend, why)
		}
		a.printManual(now, h.Manual)
		for _, backend := range h.Absent {
			fmt.Fprintf(a.out, "  its configuration has no backend %s: add it and reload HAProxy, or name another one in haproxy.backend_name of the service\n", backend)
		}
	}
	if st.File.Error != "" {
		fmt.Fprintf(a.out, "file %s: %s: %s\n", st.File.Path, a.alarm("NOT WRITTEN"), st.File.Error)
	}
	if st.Snapshots.Error != "" {
		fmt.Fprintf(a.out, "snapshots %s: %s: %s\n", st.Snapshots.Path, a.alarm("NOT KEPT"), st.Snapshots.Error)
	}
	if st.Exports.Error != "" {
		fmt.Fprintf(a.out, "files for other programs: %s: %s\n", a.alarm("NOT UP TO DATE"), st.Exports.Error)
	}
	if st.File.Pending != "" {
		fmt.Fprintf(a.out, "file %s: a reload is due: %s\n", st.File.Path, st.File.Pending)
	}
	if st.Shadow != nil {
		a.printShadow(st.Shadow)
	}
	a.printOverridesHere(now, st.Overrides)
	t := newTable(a.out, "SERVICE", "BACKEND", "LISTED", "ACTIVE", "READY", "REJECTED", "LAST CHANGE", "NOTE")
	for _, s := range st.Services {
		ready := "-"
		if n := st.ReadyServers(s.Backend); n != "" {
			ready = n
		}
		changed, note := "never", ""
		if !s.Changed.IsZero() {
			changed = age(now, s.Changed) + " ago"
		}
		switch {
		case s.FromDisk != nil:
			note = fmt.Sprintf("from disk, as it was %s ago; nothing heard yet", age(now, *s.FromDisk))
		case s.Held != "" && !s.Known:
			note = "no instance is known; HAProxy keeps what it has: " + s.Held
		case s.Guard.Held > 0 && s.HeldFrom != nil:
			note = fmt.Sprintf("%d of them held for %s: %s; see myelin guard", s.Guard.Held, age(now, *s.HeldFrom), s.Held)
		case s.Held != "" && s.HeldFrom != nil:
			note = fmt.Sprintf("the last good set stays for %s: %s", age(now, *s.HeldFrom), s.Held)
		case !s.Known:
			note = "nothing heard yet; HAProxy keeps what it has"
		}
		if s.Surplus > 0 {
			note = strings.TrimPrefix(note+fmt.Sprintf("; %d instances beyond haproxy.max_servers are left out", s.Surplus), "; ")
		}
		t.row(s.Service, s.Backend, s.Listed, s.Active, ready, len(s.Rejected), changed, note)
	}
	t.flush()
	for _, s := range st.Services {
		for _, p := range s.Problems {
			fmt.Fprintf(a.out, "configuration of %s from the registry is not used: %s\n", s.Service, p)
		}
		for _, u := range s.Unresolved {
			what := "its instances are left out"
			if u.Address != "" {
				what = "its last address " + u.Address + " stays"
			}
			fmt.Fprintf(a.out, "%s: %s does not resolve for %s: %s; %s\n", s.Service, u.Name, age(now, u.Since), u.Error, what)
		}
	}
	a.printRegistrations(st.Registrations)
	if a.output == "wide" {
		for _, s := range st.Services {
			if s.Reason != "" {
				fmt.Fprintf(a.out, "%s changes by %s: %s\n", s.Service, s.Rung, s.Reason)
			}
			for _, r := range s.Rejected {
				fmt.Fprintf(a.out, "rejected in %s: %s: %s: %s\n", s.Service, r.Node, r.Reason, r.Detail)
			}
			for _, r := range s.Curtailed {
				fmt.Fprintf(a.out, "used in %s, but not as it asks: %s: %s\n", s.Service, r.Node, r.Detail)
			}
		}
	}
}

// printRegistrations shows what a registrar looks after.
func (a *app) printRegistrations(all []registrar.ServiceStatus) {
	if len(all) == 0 {
		return
	}
	now := time.Now()
	fmt.Fprintln(a.out)
	t := newTable(a.out, "REGISTERED HERE", "PATH", "STATE", "FOR", "REGISTERED", "NOTE")
	for _, s := range all {
		registered := "no"
		if s.Registered {
			registered = s.Node[strings.LastIndex(s.Node, "/")+1:]
		}
		t.row(s.Service, s.Path, s.State, age(now, s.Since), registered, strings.Join(registrationNotes(s, now), "; "))
	}
	t.flush()
}

// registrationNotes are what an operator should know of a registration beside its state.
func registrationNotes(s registrar.ServiceStatus, now time.Time) (notes []string) {
	if m := s.Maintenance; m != nil {
		notes = append(notes, maintenanceNote(*m, now))
	}
	if s.Draining.After(now) {
		notes = append(notes, "drains for "+age(s.Draining, now))
	} else if s.Leaving {
		notes = append(notes, "leaving")
	}
	if s.Registered && s.Weight > 0 && s.Weight < 100 {
		notes = append(notes, fmt.Sprintf("at %d%% of its weight", s.Weight))
	}
	if s.Problem != "" {
		notes = append(notes, s.Problem)
	}
	for _, c := range s.Checks {
		if c.Error != "" {
			notes = append(notes, c.Check+": "+c.Error)
		}
	}
	return notes
}

func maintenanceNote(m registrar.Maintenance, now time.Time) string {
	note := "in maintenance"
	if !m.Until.IsZero() {
		note += " for another " + age(m.Until, now)
	}
	if m.Author != "" {
		note += ", by " + m.Author
	}
	if m.Reason != "" {
		note += ": " + m.Reason
	}
	return note
}
