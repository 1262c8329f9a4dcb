package cli

import (
	"context"
	"fmt"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"github.com/myelin-sd/myelin/config"
	"github.com/myelin-sd/myelin/discovery"
	"github.com/myelin-sd/myelin/registrar"
	"github.com/myelin-sd/myelin/registrar/control"
)

// socketFlag gives a command the flag for the control socket of a registrar on this host.
func socketFlag(c *cobra.Command) *string {
	return c.Flags().String("socket", "", "`PATH` of the registrar's control socket (default: that of -c FILE, else "+controlVariable+", else the only one in "+config.DefaultStateDir+")")
}

func (a *app) maintCommand() *cobra.Command {
	var o intentFlags
	var list bool
	c := &cobra.Command{
		Use:   "maint SERVICE [HOST:PORT|HOST|--all] [--for 30m] [--reason T] [--wait]",
		Short: "Take a service of this host, or instances for the whole fleet, out of rotation for maintenance",
		Long: "With SERVICE alone: has the registrar on this host withdraw the service, in order, and keep it withdrawn, whatever\n" +
			"its checks say, until the time is over or myelin enable SERVICE. That outlives a restart of the registrar. It is asked\n" +
			"at its control socket, as the user that it runs as, or as root.\n\n" +
			"With a target: has no agent send anything to the instances, nor check them.\n" + intentLong,
		Args: cobra.MaximumNArgs(2),
	}
	socket := socketFlag(c)
	o.add(c.Flags())
	c.Flags().BoolVar(&list, "list", false, "show what the registrar on this host has in maintenance")
	c.RunE = func(c *cobra.Command, args []string) error {
		if !list && o.fleet(args) {
			if err := refuseFlags(c, "is about the registrar on this host; the target is one of the whole fleet", "socket"); err != nil {
				return err
			}
			return a.intend(c, discovery.ActionMaint, args, o)
		}
		if err := refuseFlags(c, "belongs to a target of the whole fleet: SERVICE HOST:PORT, SERVICE HOST, SERVICE --all or --host HOST", fleetFlags...); err != nil {
			return err
		}
		if list == (len(args) == 1) {
			return usage("write a service, or --list; see %s --help", c.CommandPath())
		}
		if c.Flags().Changed("for") && o.limit <= 0 {
			return usage("--for %s: write a duration longer than 0, such as 30m", o.limit)
		}
		client, err := a.controlClient(*socket)
		if err != nil {
			return err
		}
		if list {
			return a.listMaintenance(c.Context(), client)
		}
		return a.maint(c.Context(), client, args[0], maintOptions{o.limit, o.reason, o.wait})
	}
	return c
}

func (a *app) enableCommand() *cobra.Command {
	var o intentFlags
	c := &cobra.Command{
		Use:   "enable SERVICE [HOST:PORT|HOST|--all]",
		Short: "End a service's maintenance on this host, or an override for the whole fleet",
		Long: "With SERVICE alone: has the registrar on this host register the service again, as soon as its checks have it up.\n\n" +
			"With a target: removes the target's override, so that all agents have it as it is registered. Where a wider override\n" +
			"would count then, one is stored that keeps the target out of it. Overrides of narrower targets stay.\n" + intentLong,
		Args: cobra.MaximumNArgs(2),
	}
	socket := socketFlag(c)
	o.add(c.Flags())
	c.RunE = func(c *cobra.Command, args []string) error {
		if o.fleet(args) {
			if err := refuseFlags(c, "is about the registrar on this host; the target is one of the whole fleet", "socket"); err != nil {
				return err
			}
			return a.intend(c, discovery.ActionEnable, args, o)
		}
		local := append([]string{"for", "reason", "wait"}, fleetFlags...)
		if err := refuseFlags(c, "belongs to a target of the whole fleet: SERVICE HOST:PORT, SERVICE HOST, SERVICE --all or --host HOST", local...); err != nil {
			return err
		}
		if len(args) != 1 {
			return usage("write a service, or a target; see %s --help", c.CommandPath())
		}
		client, err := a.controlClient(*socket)
		if err != nil {
			return err
		}
		ctx, cancel := context.WithTimeout(c.Context(), a.timeout)
		defer cancel()
		if err := client.EndMaintenance(ctx, args[0]); err != nil {
			return err
		}
		if a.output == "json" {
			return printJSON(a.out, struct {
				Service     string `json:"service"`
				Maintenance bool   `json:"maintenance"`
			}{args[0], false})
		}
		fmt.Fprintf(a.out, "%s is not in maintenance; it is registered as soon as its checks have it up\n", args[0])
		return nil
	}
	return c
}

// fleet tells whether the command line means instances for the whole fleet, and not a service of this host.
func (o *intentFlags) fleet(args []string) bool { return len(args) > 1 || o.all || o.host != "" }

// refuseFlags refuses those of the named flags that were given.
func refuseFlags(c *cobra.Command, why string, names ...string) error {
	for _, name := range names {
		if c.Flags().Changed(name) {
			return usage("--%s %s; see %s --help", name, why, c.CommandPath())
		}
	}
	return nil
}

func (a *app) reportCommand() *cobra.Command {
	var weight int
	c := &cobra.Command{
		Use:   "report SERVICE [CHECK] pass|warn|fail [NOTE]",
		Short: "Tell the registrar how a service is, for its ttl check",
		Long: "Reports the health of a service to the registrar on this host, in the place of the service. Silence for longer than\n" +
			"the ttl of the check is failure. CHECK may be left out where the service has one ttl check.",
		Args: func(_ *cobra.Command, args []string) error { _, err := parseReport(args); return err },
	}
	socket := socketFlag(c)
	c.Flags().IntVar(&weight, "weight", 0, "with warn: `PERCENT` of its usual weight that the service can bear")
	c.RunE = func(c *cobra.Command, args []string) error {
		r, err := parseReport(args)
		if err != nil {
			return err
		}
		client, err := a.controlClient(*socket)
		if err != nil {
			return err
		}
		ctx, cancel := context.WithTimeout(c.Context(), a.timeout)
		defer cancel()
		r.request.Weight = weight
		return client.Report(ctx, r.service, r.check, r.request)
	}
	return c
}

// report is what the arguments of the command say.
type report struct {
	service, check string
	request        control.ReportRequest
}

// parseReport finds the status among the arguments: the second one, or the third behind the name of a check.
func parseReport(args []string) (report, error) {
	statuses := []string{control.Pass, control.Warn, control.Fail}
	for at := 1; at <= 2 && at < len(args); at++ {
		// A check that is called as a status is meant where a status follows.
		if !slices.Contains(statuses, args[at]) || at == 1 && len(args) > 2 && slices.Contains(statuses, args[2]) {
			continue
		}
		r := report{service: args[0], request: control.ReportRequest{Status: args[at], Note: strings.Join(args[at+1:], " ")}}
		if at == 2 {
			r.check = args[1]
		}
		return r, nil
	}
	return report{}, fmt.Errorf("write SERVICE [CHECK] and then %s, %s or %s", control.Pass, control.Warn, control.Fail)
}

type maintOptions struct {
	limit  time.Duration // 0: none
	reason string
	wait   bool
}

// maint puts a service into maintenance.
func (a *app) maint(ctx context.Context, client *control.Client, service string, o maintOptions) error {
	ctx, cancel := context.WithTimeout(ctx, a.timeout)
	defer cancel()
	request := control.MaintenanceRequest{Reason: o.reason}
	if o.limit > 0 {
		request.For = o.limit.String()
	}
	m, err := client.Maintain(ctx, service, request)
	if err != nil {
		return err
	}
	if o.wait {
		if err := a.awaitLeft(ctx, client, service); err != nil {
			return err
		}
	}
	if a.output == "json" {
		return printJSON(a.out, m)
	}
	until := "until myelin enable " + service
	if !m.Until.IsZero() {
		until = "until " + m.Until.Local().Format(time.RFC3339)
	}
	fmt.Fprintf(a.out, "%s is in maintenance %s\n", service, until)
	return nil
}

// leftPoll is the pause between two looks at a service that leaves.
const leftPoll = 100 * time.Millisecond

// awaitLeft waits until a service is withdrawn.
func (a *app) awaitLeft(ctx context.Context, client *control.Client, service string) error {
	tick := time.NewTicker(leftPoll)
	defer tick.Stop()
	state := "nothing is known of it"
	for {
		st, err := client.Status(ctx)
		if err == nil {
			if state = staying(st.Services, service, time.Now()); state == "" {
				return nil
			}
		}
		select {
		case <-ctx.Done():
			return fmt.Errorf("wait for %s to leave: not done within %s: %s; the maintenance stays", service, a.timeout, state)
		case <-tick.C:
		}
	}
}

// staying says why a service has not left; empty: it has.
func staying(all []registrar.ServiceStatus, service string, now time.Time) string {
	for _, s := range all {
		switch {
		case s.Service != service:
		case s.Problem != "":
			return "it may be registered: " + s.Problem
		case s.Registered || !s.Settled:
			return "it is being withdrawn"
		case s.Draining.After(now):
			return "it drains"
		}
	}
	return ""
}

func (a *app) listMaintenance(ctx context.Context, client *control.Client) error {
	ctx, cancel := context.WithTimeout(ctx, a.timeout)
	defer cancel()
	all, err := client.Maintenances(ctx)
	if err != nil {
		return err
	}
	if a.output == "json" {
		return printJSON(a.out, all)
	}
	now := time.Now()
	t := newTable(a.out, "SERVICE", "FOR", "ENDS", "AUTHOR", "REASON")
	for _, m := range all {
		ends := "with enable"
		if !m.Until.IsZero() {
			ends = "in " + age(m.Until, now)
		}
		t.row(printable(m.Service), age(now, m.Since), ends, printable(m.Author), printable(m.Reason))
	}
	t.flush()
	return nil
}

// controlClient finds the registrar that is meant.
func (a *app) controlClient(socket string) (*control.Client, error) {
	path, err := a.controlPath(socket)
	if err != nil {
		return nil, err
	}
	return control.NewClient(path), nil
}

// controlPath is the control socket: the flag's, else that of the configuration file, else the environment's, else the
// only one in the usual folder.
func (a *app) controlPath(flag string) (string, error) {
	if flag != "" {
		return flag, nil
	}
	if a.configFile != "" {
		return a.configuredControl(a.configFile)
	}
	if path, ok := a.env(controlVariable); ok && path != "" {
		return path, nil
	}
	found, err := filepath.Glob(filepath.Join(config.DefaultStateDir, "registrar-*.sock"))
	switch {
	case err == nil && len(found) == 1:
		return found[0], nil
	case len(found) > 1:
		return "", usage("which registrar? there are %s; give one with --socket, or its file with -c", strings.Join(found, ", "))
	}
	return "", usage("which registrar? give its file with -c FILE, or its control socket with --socket PATH")
}

// configuredControl is the control socket of a registrar's file, or of an agent's that has both roles.
func (a *app) configuredControl(path string) (string, error) {
	f := registrarFile{path: path, instance: a.instance("")}
	kind, err := config.Detect(path, a.options(false))
	if err != nil {
		return "", err
	}
	if kind == config.KindAgent {
		c, _, err := config.LoadAgent(path, a.options(false))
		if err != nil {
			return "", err
		}
		if c.Registrar == "" {
			return "", usage("%s is the file of an agent without a registrar; give that of the registrar", path)
		}
		f.path, f.stateDir = c.Registrar, c.StateDir
	}
	c, _, err := a.loadRegistrar(f)
	if err != nil {
		return "", err
	}
	if c.ControlSocket.Path == "" {
		return "", fmt.Errorf("%s: control_socket is off, so the registrar cannot be asked", f.path)
	}
	return c.ControlSocket.Path, nil
}
