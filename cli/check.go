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
		Long:  "Reads the file and all that it names, the registrar's file of an agent with both roles too, and tells everything that is wrong.",
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
	if kind == config.KindRegistrar {
		return a.checkRegistrar(registrarFile{path: path, instance: a.instance(""), strict: strict})
	}
	c, problems, err := config.LoadAgent(path, o)
	if err != nil {
		return err
	}
	a.usable(path, kind, len(c.Services), problems)
	if c.Registrar == "" {
		return nil
	}
	return a.checkRegistrar(registrarFile{path: c.Registrar, instance: a.instance(""), stateDir: c.StateDir, strict: strict})
}

// usable says that a file can be used, and prints its warnings.
func (a *app) usable(path string, kind config.Kind, services int, problems config.Problems) {
	for _, p := range problems {
		fmt.Fprintln(a.errs, p.String())
	}
	fmt.Fprintf(a.out, "%s: %s file, %s, usable\n", path, kind, plural(services, "service"))
}

func plural(n int, noun string) string {
	if n == 1 {
		return "1 " + noun
	}
	return fmt.Sprintf("%d %ss", n, noun)
}
