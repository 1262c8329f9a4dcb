package cli

import (
	"cmp"
	"context"
	"strings"

	"github.com/spf13/cobra"

	"github.com/myelin-sd/myelin/discovery"
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
			return a.ask(c.Context(), r.zk, func(ctx context.Context, s *zookeeper.Session) error {
				found, err := s.Services(ctx, root)
				if err != nil {
					return err
				}
				var infos []serviceInfo
				for _, f := range found {
					snap, err := s.Snapshot(ctx, f.Path, f.Path)
					if err != nil {
						return err
					}
					name := strings.TrimPrefix(strings.TrimPrefix(f.Path, root), "/")
					infos = append(infos, infoOf(cmp.Or(name, f.Path), f.Path, snap))
				}
				return a.printServices(infos)
			})
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

func infoOf(service, path string, snap discovery.Snapshot) serviceInfo {
	return serviceInfo{service, path, len(snap.Instances), len(snap.Rejected), snap.Missing}
}

// fileServices lists the services of the file that are found in ZooKeeper, ensemble by ensemble.
func (a *app) fileServices(ctx context.Context, r registry) error {
	var infos []serviceInfo
	for _, service := range r.services {
		if service.Discovery.Path == "" {
			infos = append(infos, serviceInfo{Service: service.Name, Instances: len(service.DefaultServers)})
			continue
		}
		err := a.ask(ctx, service.Discovery.ZooKeeper, func(ctx context.Context, s *zookeeper.Session) error {
			snap, err := s.Snapshot(ctx, service.Name, service.Discovery.Path)
			infos = append(infos, infoOf(service.Name, service.Discovery.Path, snap))
			return err
		})
		if err != nil {
			return err
		}
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
