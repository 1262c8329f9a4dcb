package cli

import (
	"context"

	"github.com/spf13/cobra"

	"github.com/myelin-sd/myelin/discovery/zookeeper"
)

func (a *app) servicesCommand() *cobra.Command {
	return &cobra.Command{
		Use:   "services [ROOT]",
		Short: "List the services under a root (/services), or those of -c FILE, with counts",
		Args:  cobra.MaximumNArgs(1),
		RunE: func(c *cobra.Command, args []string) error {
			r, err := a.registry()
			if err != nil {
				return err
			}
			if len(args) == 0 && len(r.services) > 0 {
				return a.fileServices(c.Context(), r)
			}
			root := defaultRoot
			if len(args) == 1 {
				root = args[0]
			}
			var infos []serviceInfo
			err = a.askLong(c.Context(), r.zk, func(ctx context.Context, s *zookeeper.Session, heard func(int)) (err error) {
				infos, err = countBelow(ctx, s, root, heard)
				return err
			}, nil)
			if err != nil {
				return err
			}
			return a.printServices(infos)
		},
	}
}

// serviceInfo is one service as services shows it. The JSON names are part of the interface.
type serviceInfo struct {
	Service   string `json:"service"`
	Path      string `json:"path"`
	Instances int    `json:"instances"`
	Rejected  int    `json:"rejected"`
	Missing   bool   `json:"missing,omitempty"` // the path does not exist
}

// fileServices lists the services of the file that are found in ZooKeeper, ensemble by ensemble.
func (a *app) fileServices(ctx context.Context, r registry) error {
	infos, err := a.countFile(ctx, r)
	if err != nil {
		return err
	}
	return a.printServices(infos)
}

func (a *app) printServices(infos []serviceInfo) error {
	if a.output == "json" {
		if infos == nil {
			infos = []serviceInfo{}
		}
		return printJSON(a.out, infos)
	}
	t := newTable(a.out, "SERVICE", "PATH", "INSTANCES", "REJECTED", "NOTE")
	for _, i := range infos {
		note := ""
		if i.Missing {
			note = "the path does not exist"
		}
		t.row(i.Service, i.Path, i.Instances, i.Rejected, note)
	}
	t.flush()
	return nil
}
