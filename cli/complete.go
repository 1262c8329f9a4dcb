package cli

import (
	"context"
	"net/url"
	"slices"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"github.com/myelin-sd/myelin/agent"
	"github.com/myelin-sd/myelin/config"
	"github.com/myelin-sd/myelin/discovery/zookeeper"
)

// completionPatience is how long somebody who pressed the tab key waits, for each place that is asked.
const completionPatience = 700 * time.Millisecond

// complete says what is completed behind a command and its sub-commands: names of services and instances where it takes
// them, and files behind no command but those that read one.
func (a *app) complete(c *cobra.Command) {
	for _, sub := range c.Commands() {
		a.complete(sub)
	}
	if c.ValidArgsFunction != nil || len(c.ValidArgs) > 0 {
		return
	}
	switch c.Name() {
	case "registrar": // the program behind -- and its arguments
	case "instances", "release", "report":
		c.ValidArgsFunction = a.completeService
	case "history":
		c.ValidArgsFunction = a.completeRecorded
	case "rm":
		c.ValidArgsFunction = a.completeOverride
	case "watch":
		c.ValidArgsFunction = a.completeServices
	case "explain", "drain", "maint", "weight", "enable":
		c.ValidArgsFunction = a.completeInstance
	default:
		c.ValidArgsFunction = cobra.NoFileCompletions
	}
}

// completeServices completes the names of services: those of -c FILE, else those of the local agent, else those that
// are in ZooKeeper. Whoever does not answer in time has none; a completion never says an error.
func (a *app) completeServices(c *cobra.Command, args []string, begun string) ([]string, cobra.ShellCompDirective) {
	var names []string
	for _, n := range a.knownServices(c.Context()) {
		if strings.HasPrefix(n, begun) && !slices.Contains(args, n) {
			names = append(names, n)
		}
	}
	slices.Sort(names)
	return slices.Compact(names), cobra.ShellCompDirectiveNoFileComp
}

// completeService completes one service, and nothing behind it.
func (a *app) completeService(c *cobra.Command, args []string, begun string) ([]string, cobra.ShellCompDirective) {
	if len(args) > 0 {
		return nil, cobra.ShellCompDirectiveNoFileComp
	}
	return a.completeServices(c, args, begun)
}

// completeInstance completes a service, and behind it one of its instances, as HOST:PORT.
func (a *app) completeInstance(c *cobra.Command, args []string, begun string) ([]string, cobra.ShellCompDirective) {
	switch len(args) {
	case 0:
		return a.completeServices(c, args, begun)
	case 1:
		var found []string
		for _, i := range a.knownInstances(c.Context(), args[0]) {
			if strings.HasPrefix(i, begun) {
				found = append(found, i)
			}
		}
		slices.Sort(found)
		return slices.Compact(found), cobra.ShellCompDirectiveNoFileComp
	}
	return nil, cobra.ShellCompDirectiveNoFileComp
}

func (a *app) knownServices(ctx context.Context) (names []string) {
	r, err := a.completionRegistry()
	if err != nil {
		return nil
	}
	for _, s := range r.services {
		names = append(names, s.Name)
	}
	if len(names) > 0 {
		return names
	}
	var services []agent.ServiceStatus
	if a.askAgent(ctx, "/api/v1/services", &services) == nil {
		for _, s := range services {
			names = append(names, s.Service)
		}
		return names
	}
	a.askSoon(ctx, r.zk, func(ctx context.Context, s *zookeeper.Session) error {
		found, err := s.Services(ctx, defaultRoot)
		for _, f := range found {
			names = append(names, strings.TrimPrefix(f.Path, defaultRoot+"/"))
		}
		return err
	})
	return names
}

func (a *app) knownInstances(ctx context.Context, service string) (found []string) {
	r, err := a.completionRegistry()
	if err != nil {
		return nil
	}
	var servers []agent.ServerStatus
	if a.askAgent(ctx, "/api/v1/services/"+url.PathEscape(service)+"/servers", &servers) == nil {
		for _, s := range servers {
			found = append(found, s.Address)
		}
		return found
	}
	path, zk := r.path(service)
	a.askSoon(ctx, zk, func(ctx context.Context, s *zookeeper.Session) error {
		snap, err := s.Snapshot(ctx, service, path)
		for _, i := range snap.Instances {
			found = append(found, i.Endpoint.String())
		}
		return err
	})
	return found
}

// completionRegistry is registry for a completion, which cobra makes without what goes before a command.
func (a *app) completionRegistry() (registry, error) {
	if a.zookeeper == "" {
		a.zookeeper, _ = a.env(zookeeperVariable)
	}
	return a.registry()
}

// askSoon asks ZooKeeper, if it is known where one is.
func (a *app) askSoon(ctx context.Context, zk config.ZooKeeper, question func(context.Context, *zookeeper.Session) error) {
	if len(zk.Hosts) > 0 {
		a.timeout = completionPatience
		_ = a.ask(ctx, zk, question) // an answer that does not come is none
	}
}

// askAgent reads what the local agent answers at path into answer.
func (a *app) askAgent(ctx context.Context, path string, answer any) error {
	address, err := a.statusAddress()
	if err != nil {
		return err
	}
	ctx, cancel := context.WithTimeout(ctx, completionPatience)
	defer cancel()

	return pageJSON(ctx, address, path, answer)
}
