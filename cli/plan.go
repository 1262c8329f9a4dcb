package cli

import (
	"context"
	"fmt"
	"io"

	"github.com/sirupsen/logrus"
	"github.com/spf13/cobra"

	"github.com/myelin-sd/myelin/agent"
	"github.com/myelin-sd/myelin/config"
)

func (a *app) renderCommand() *cobra.Command {
	return &cobra.Command{
		Use:   "render -c FILE",
		Short: "Print the haproxy.cfg that would be written",
		Args:  cobra.NoArgs,
		RunE: func(c *cobra.Command, _ []string) error {
			p, err := a.preview(c.Context(), false)
			if err != nil {
				return err
			}
			_, err = a.out.Write(p.File)
			return err
		},
	}
}

func (a *app) planCommand() *cobra.Command {
	return &cobra.Command{
		Use:   "plan -c FILE",
		Short: "Print the socket commands, or the reload with its reason, that an agent would need now",
		Long:  "Prints what an agent would do now, and changes nothing. Exit code 3: there is something to do.",
		Args:  cobra.NoArgs,
		RunE: func(c *cobra.Command, _ []string) error {
			p, err := a.preview(c.Context(), true)
			if err != nil {
				return err
			}
			return a.printPlan(p)
		},
	}
}

// preview asks the registry and HAProxy; what could not be asked is said on the error output.
func (a *app) preview(ctx context.Context, asked bool) (*agent.Preview, error) {
	path, err := a.file("SYNAPSE_CONFIG")
	if err != nil {
		return nil, err
	}
	cfg, problems, err := config.LoadAgent(path, a.options(false))
	if err != nil {
		return nil, err
	}
	for _, p := range problems {
		fmt.Fprintln(a.errs, p.String())
	}
	log := logrus.New()
	log.SetOutput(io.Discard)
	if a.logLevel != "" {
		if log, err = a.logger(cfg.Log); err != nil {
			return nil, err
		}
	}
	ctx, cancel := context.WithTimeout(ctx, a.timeout)
	defer cancel()
	p, err := agent.NewPreview(ctx, cfg, log, asked)
	if err != nil {
		return nil, err
	}
	for _, n := range p.Notes {
		fmt.Fprintln(a.errs, "note:", n)
	}
	return p, nil
}

// planAnswer is plan's JSON. The names are part of the interface.
type planAnswer struct {
	Pending bool         `json:"pending"`
	Write   bool         `json:"write"` // haproxy.cfg would be written
	Reload  string       `json:"reload,omitempty"`
	Differ  []string     `json:"file_differences,omitempty"` // how haproxy.cfg is not as it would be written
	Targets []planTarget `json:"targets"`
	Notes   []string     `json:"notes,omitempty"`
	Rungs   []planRung   `json:"rungs,omitempty"`
}

// planRung is how HAProxy takes changes of a backend whose servers it does not take at run time.
type planRung struct {
	Backend string `json:"backend"`
	Rung    string `json:"rung"`
	Reason  string `json:"reason"`
}

type planTarget struct {
	Socket string     `json:"socket"`
	Error  string     `json:"error,omitempty"`
	Steps  []planStep `json:"steps"`
}

type planStep struct {
	Action   string   `json:"action"`
	Backend  string   `json:"backend"`
	Server   string   `json:"server"`
	Why      string   `json:"why"`
	Commands []string `json:"commands"`
}

func (a *app) printPlan(p *agent.Preview) error {
	failed := p.Unheard // "nothing to do" would be a guess
	for _, t := range p.Targets {
		failed = failed || t.Error != ""
	}
	if a.output == "json" {
		answer := planAnswer{Pending: p.Pending(), Write: p.Written, Reload: p.Reload, Differ: p.Differences, Notes: p.Notes, Targets: []planTarget{}}
		for _, t := range p.Targets {
			target := planTarget{Socket: t.Socket, Error: t.Error, Steps: []planStep{}}
			for _, s := range t.Plan {
				target.Steps = append(target.Steps, planStep{s.Op.String(), s.Backend, s.Server.Name, s.Why, s.Commands()})
			}
			answer.Targets = append(answer.Targets, target)
		}
		for _, r := range p.Rungs {
			answer.Rungs = append(answer.Rungs, planRung{r.Backend, r.Rung.String(), r.Reason})
		}
		if err := printJSON(a.out, answer); err != nil {
			return err
		}
	} else {
		for _, t := range p.Targets {
			switch {
			case t.Error != "":
				fmt.Fprintf(a.out, "# HAProxy at %s cannot be asked: %s\n", t.Socket, t.Error)
			case len(t.Plan) == 0:
				fmt.Fprintf(a.out, "# HAProxy at %s: nothing to do\n", t.Socket)
			default:
				fmt.Fprintf(a.out, "# HAProxy at %s\n%s", t.Socket, t.Plan)
			}
		}
		for _, r := range p.Rungs {
			fmt.Fprintf(a.out, "# backend %s changes by %s: %s\n", r.Backend, r.Rung, r.Reason)
		}
		if p.Written {
			fmt.Fprintln(a.out, "# haproxy.cfg would be written")
		}
		for _, d := range p.Differences {
			fmt.Fprintln(a.out, "# haproxy.cfg:", printable(d))
		}
		if p.Reload != "" {
			fmt.Fprintln(a.out, "# HAProxy would be reloaded:", p.Reload)
		}
	}
	switch {
	case failed:
		return &codeError{code: exitFailed}
	case p.Pending():
		return &codeError{code: exitFindings}
	}
	return nil
}
