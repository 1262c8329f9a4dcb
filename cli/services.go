package cli

import (
	"cmp"
	"context"
	"io/fs"
	"path"
	"slices"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"github.com/myelin-sd/myelin/agent"
	"github.com/myelin-sd/myelin/config"
	"github.com/myelin-sd/myelin/discovery/zookeeper"
)

func (a *app) servicesCommand() *cobra.Command {
	var address string
	c := &cobra.Command{
		Use:   "services [ROOT]",
		Short: "List the services under a root (/services), or those of -c FILE, with counts",
		Long: "Lists the services under a root in ZooKeeper (/services), or those of -c FILE, with counts. Where ZooKeeper is not given,\n" +
			"or does not answer, the agent of this host is asked for its services, and then the sets that it keeps on disk are read.\n" +
			"Which of them it was, and how old it is, is said on stderr.",
		Args: cobra.MaximumNArgs(1),
		RunE: func(c *cobra.Command, args []string) error {
			r, err := a.registry()
			if err != nil {
				return err
			}
			root := ""
			if len(args) == 1 {
				root = path.Clean("/" + args[0])
			}
			infos, _, err := factsOf(c.Context(), a, address, a.servicesBelow(r, root))
			if err != nil {
				return err
			}
			return a.printServices(infos)
		},
	}
	factFlags(c, &address)
	return c
}

// servicesBelow asks for the services below a root; without one for those of the file, else for those below the usual root.
func (a *app) servicesBelow(r registry, root string) question[[]serviceInfo] {
	q := question[[]serviceInfo]{
		agent: func(ctx context.Context, address string) ([]serviceInfo, time.Time, error) {
			var st agent.Status
			if err := fromAgentAt(ctx, address, "/api/v1/status", &st); err != nil {
				return nil, time.Time{}, err
			}
			var infos []serviceInfo
			for _, s := range st.Services {
				if below(s.Path, root) {
					infos = append(infos, serviceInfo{
						Service: s.Service, Path: s.Path, Instances: s.Listed, Rejected: len(s.Rejected), Missing: s.Held == agent.HeldMissing,
					})
				}
			}
			return infos, st.AsOf(time.Now()), nil
		},
		disk: func(stateDir string) ([]serviceInfo, time.Time, error) {
			sets, err := agent.KeptSets(stateDir)
			if err == nil && len(sets) == 0 {
				err = fs.ErrNotExist
			}
			asOf := time.Now()
			var infos []serviceInfo
			for _, k := range sets {
				if below(k.Path, root) {
					infos = append(infos, serviceInfo{Service: k.Service, Path: k.Path, Instances: k.Instances, Missing: k.Missing})
				}
				if k.AsOf.Before(asOf) {
					asOf = k.AsOf
				}
			}
			return infos, asOf, err
		},
	}
	if root == "" && len(r.services) > 0 {
		for _, s := range r.services {
			q.hosts = append(q.hosts, s.Discovery.ZooKeeper.Hosts...)
		}
		slices.Sort(q.hosts)
		q.hosts = slices.Compact(q.hosts)
		q.zookeeper = func(ctx context.Context) ([]serviceInfo, error) { return a.countFile(ctx, r) }
		if len(q.hosts) == 0 { // nothing to be asked for
			q.hosts = []string{"the file"}
		}
		return q
	}
	q.hosts = r.zk.Hosts
	q.zookeeper = func(ctx context.Context) ([]serviceInfo, error) {
		return a.listServices(ctx, r.zk, cmp.Or(root, defaultRoot))
	}
	return q
}

// below tells whether a path is root or below it. Without a root, everything is.
func below(path, root string) bool {
	return root == "" || root == "/" || path == root || strings.HasPrefix(path, root+"/")
}

// listServices lists what there is below a root in ZooKeeper.
func (a *app) listServices(ctx context.Context, zk config.ZooKeeper, root string) (infos []serviceInfo, err error) {
	err = a.askLong(ctx, zk, func(ctx context.Context, s *zookeeper.Session, heard func(int)) (err error) {
		infos, err = countBelow(ctx, s, root, heard)
		return err
	}, nil)
	return infos, err
}

// serviceInfo is one service as services shows it. The JSON names are part of the interface.
type serviceInfo struct {
	Service   string `json:"service"`
	Path      string `json:"path"`
	Instances int    `json:"instances"`
	Rejected  int    `json:"rejected"`
	Missing   bool   `json:"missing,omitempty"` // the path does not exist
	Unread    string `json:"unread,omitempty"`  // why it, or all that lies in it, could not be read: the counts are not known
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
		var instances, rejected any = i.Instances, i.Rejected
		if i.Unread != "" {
			note = "not read: " + printable(i.Unread)
			instances, rejected = "?", "?"
		}
		t.row(printable(i.Service), printable(i.Path), instances, rejected, note)
	}
	t.flush()
	return nil
}
