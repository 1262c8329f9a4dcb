package cli

import (
	"context"
	"fmt"
	"io/fs"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"github.com/myelin-sd/myelin/agent"
	"github.com/myelin-sd/myelin/config"
	"github.com/myelin-sd/myelin/registrar/control"
)

func (a *app) guardCommand() *cobra.Command {
	var address string
	c := &cobra.Command{
		Use:   "guard [-c FILE]",
		Short: "Show what the agent keeps in rotation although the registry lost it, why and until when",
		Long: "Shows the holds of the agent on this host: instances that stay in rotation although the registry does not list them\n" +
			"any more. -o wide names them. See myelin guard release for a way to end a hold. When the agent does not answer, the\n" +
			"holds that it keeps on disk are shown; that it is those, and how old they are, is said on stderr.",
		Args: cobra.NoArgs,
		RunE: func(c *cobra.Command, _ []string) error { return a.showHolds(c.Context(), address) },
	}
	factFlags(c, &address)
	release := &cobra.Command{
		Use:   "release SERVICE [-c FILE]",
		Short: "Let go what is held of a service: what the registry does not list leaves HAProxy",
		Long: "Lets go all that the agent on this host holds of a service. If the registry lists nothing, its backend is empty then.\n" +
			"The agent is asked at its control socket, as the user that it runs as, or as root.",
		Args: usageArgs(cobra.ExactArgs(1)),
	}
	socket := release.Flags().String("socket", "", "`PATH` of the agent's control socket (default: that of -c FILE, else "+defaultAgentSocket()+")")
	release.RunE = func(c *cobra.Command, args []string) error {
		path, err := a.agentSocket(*socket)
		if err != nil {
			return err
		}
		return a.release(c.Context(), control.NewAgentClient(path), args[0])
	}
	c.AddCommand(release)
	return c
}

func defaultAgentSocket() string { return filepath.Join(config.DefaultStateDir, "agent.sock") }

// agentSocket is the control socket of the agent that is meant.
func (a *app) agentSocket(flag string) (string, error) {
	switch {
	case flag != "":
		return flag, nil
	case a.configFile == "":
		return defaultAgentSocket(), nil
	}
	c, _, err := config.LoadAgent(a.configFile, a.options(false))
	if err != nil {
		return "", err
	}
	if c.ControlSocket.Path == "" {
		return "", fmt.Errorf("%s: control_socket is off, so the agent cannot be told", a.configFile)
	}
	return c.ControlSocket.Path, nil
}

func (a *app) release(ctx context.Context, client *control.Client, service string) error {
	ctx, cancel := context.WithTimeout(ctx, a.timeout)
	defer cancel()
	r, err := client.Release(ctx, service)
	switch {
	case err != nil:
		return err
	case a.output == "json":
		return printJSON(a.out, r)
	case len(r.Instances) == 0:
		fmt.Fprintf(a.out, "%s: what HAProxy had from before is let go\n", service)
	default:
		fmt.Fprintf(a.out, "%s: %d let go: %s\n", service, len(r.Instances), strings.Join(r.Instances, " "))
	}
	return nil
}

// held is what is held of one service: a member of the answer in JSON.
type held struct {
	Service string `json:"service"`
	agent.HoldStatus
}

// holdsHere asks for what is held on this host.
func holdsHere() question[[]held] {
	return question[[]held]{
		agent: func(ctx context.Context, address string) ([]held, time.Time, error) {
			var st agent.Status
			if err := fromAgentAt(ctx, address, "/api/v1/status", &st); err != nil {
				return nil, time.Time{}, err
			}
			holds := []held{}
			for _, s := range st.Services {
				for _, h := range s.Guard.Holds {
					holds = append(holds, held{s.Service, h})
				}
			}
			return holds, time.Now(), nil
		},
		disk: func(stateDir string) ([]held, time.Time, error) {
			services, err := agent.KeptServices(stateDir)
			if err == nil && len(services) == 0 {
				err = fs.ErrNotExist
			}
			holds, asOf := []held{}, time.Now()
			for _, k := range services {
				if k.Err != nil {
					return nil, time.Time{}, k.Err // what is not known is not none
				}
				for _, h := range k.Holds {
					holds = append(holds, held{k.Service, h})
				}
				if k.AsOf.Before(asOf) {
					asOf = k.AsOf
				}
			}
			return holds, asOf, err
		},
	}
}

// showHolds shows what is held: as the agent tells, or, without it, as it was kept on disk.
func (a *app) showHolds(ctx context.Context, address string) error {
	holds, from, err := elsewhere(ctx, a, address, holdsHere())
	if err != nil {
		return err
	}
	if from.Source == fromDisk {
		fmt.Fprintf(a.errs, "myelin: the agent does not answer; %s\n", from.words(time.Now()))
	}
	if a.output == "json" {
		return printJSON(a.out, holds)
	}
	if len(holds) == 0 {
		fmt.Fprintln(a.out, "nothing is held")
		return nil
	}
	now, columns := time.Now(), []string{"SERVICE", "HELD", "FOR", "ENDS", "REASON"}
	if a.output == "wide" {
		columns = append(columns, "INSTANCES")
	}
	t := newTable(a.out, columns...)
	for _, h := range together(holds) {
		cells := []any{h.Service, len(h.Instances), age(now, h.Since), holdEnds(h.HoldStatus, now), h.Reason}
		if a.output == "wide" {
			cells = append(cells, strings.Join(h.Instances, " "))
		}
		t.row(cells...)
	}
	t.flush()
	return nil
}

// together makes one of the holds of a service that have the same reason: of a fleet that goes within seconds each
// instance has its own. It is as old as the first of them, and ends with the last.
func together(holds []held) (out []held) {
	for _, h := range holds {
		i := slices.IndexFunc(out, func(o held) bool {
			return o.Service == h.Service && o.Reason == h.Reason && o.Judged == h.Judged && (o.Until == nil) == (h.Until == nil)
		})
		if i < 0 {
			out = append(out, h)
			continue
		}
		o := &out[i]
		o.Instances = slices.Concat(o.Instances, h.Instances)
		if h.Until != nil && h.Until.After(*o.Until) {
			o.Until = h.Until
		}
	}
	return out
}

// holdEnds says when time ends a hold, or what happens instead.
func holdEnds(h agent.HoldStatus, now time.Time) string {
	switch {
	case h.Until == nil:
		return "not by time"
	case !h.Until.After(now):
		return "when the registry is back"
	case !h.Judged:
		return "judged in " + age(*h.Until, now)
	}
	return "in " + age(*h.Until, now)
}
