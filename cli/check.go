package cli

import (
	"fmt"

	"github.com/spf13/cobra"

	"github.com/myelin-sd/myelin/config"
)

func (a *app) checkCommand() *cobra.Command {
	var strict bool
	c := &cobra.Command{
		Use:   "check -c FILE",
		Short: "Validate an agent's or a registrar's file and say which it is",
		Args:  cobra.NoArgs,
		RunE: func(*cobra.Command, []string) error {
			path, err := a.file()
			if err != nil {
				return err
			}
			return a.check(path, strict)
		},
	}
	c.Flags().BoolVar(&strict, "strict", false, "unknown keys are errors")
	return c
}

func (a *app) check(path string, strict bool) error {
	o := a.options(strict)
	kind, err := config.Detect(path, o)
	if err != nil {
		return err
	}
	var problems config.Problems
	services := 0
	switch kind {
	case config.KindRegistrar:
		var c *config.Registrar
		if c, problems, err = config.LoadRegistrar(path, o); err == nil {
			services = len(c.Services)
		}
	default:
		var c *config.Agent
		if c, problems, err = config.LoadAgent(path, o); err == nil {
			services = len(c.Services)
		}
	}
	if err != nil {
		return err
	}
	for _, p := range problems {
		fmt.Fprintln(a.errs, p.String())
	}
	fmt.Fprintf(a.out, "%s: %s file, %s, usable\n", path, kind, plural(services, "service"))
	return nil
}

func plural(n int, noun string) string {
	if n == 1 {
		return "1 " + noun
	}
	return fmt.Sprintf("%d %ss", n, noun)
}
