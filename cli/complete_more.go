package cli

import (
	"context"
	"slices"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"github.com/myelin-sd/myelin/agent"
	"github.com/myelin-sd/myelin/discovery/zookeeper"
	"github.com/myelin-sd/myelin/journal"
)

// completeRecorded completes the name of a service that something may be recorded of: those that others complete, and
// where nobody answers those in the history.
func (a *app) completeRecorded(c *cobra.Command, args []string, begun string) ([]string, cobra.ShellCompDirective) {
	if len(args) > 0 {
		return nil, cobra.ShellCompDirectiveNoFileComp
	}
	if known := a.knownServices(c.Context()); len(known) > 0 {
		return begins(known, begun), cobra.ShellCompDirectiveNoFileComp
	}
	stateDir, _ := c.Flags().GetString("state-dir")
	dirs, err := a.historyDirs(stateDir)
	if err != nil {
		return nil, cobra.ShellCompDirectiveNoFileComp
	}
	r := journal.NewReader(dirs...)
	_, _ = r.Next(journal.Filter{Since: time.Now()}) // only for the names: what cannot be read has none
	return begins(r.Services, begun), cobra.ShellCompDirectiveNoFileComp
}

// completeOverride completes an override: the name of its node, or the words of its target.
func (a *app) completeOverride(c *cobra.Command, args []string, begun string) ([]string, cobra.ShellCompDirective) {
	if expired, _ := c.Flags().GetBool("expired"); expired || len(args) > 1 {
		return nil, cobra.ShellCompDirectiveNoFileComp
	}
	path, _ := c.Flags().GetString("overrides-path")
	var found []string
	for _, i := range a.overridesToComplete(c.Context(), path) {
		first, second, _ := strings.Cut(i.Target, " ")
		switch {
		case len(args) == 0:
			found = append(found, i.Node, first)
		case first == args[0]:
			found = append(found, second)
		}
	}
	return begins(found, begun), cobra.ShellCompDirectiveNoFileComp
}

// overridesToComplete are those that are in ZooKeeper, or those that the local agent has heard of.
func (a *app) overridesToComplete(ctx context.Context, path string) (infos []overrideInfo) {
	if _, err := a.completionRegistry(); err != nil { // it reads the environment, too
		return nil
	}
	where, err := a.overridesAt(path)
	if err != nil {
		return nil
	}
	a.askSoon(ctx, where.zk, func(ctx context.Context, s *zookeeper.Session) error {
		all, err := s.Overrides(ctx, where.path)
		for _, o := range all {
			infos = append(infos, infoOfStored(o, time.Now()))
		}
		return err
	})
	if len(infos) > 0 {
		return infos
	}
	var st agent.Status
	if a.askAgent(ctx, "/api/v1/status", &st) == nil {
		return infosOfAgent(st.Overrides)
	}
	return nil
}

// begins are the words that begin so, sorted, each once. Text that cannot be printed is no word to complete.
func begins(words []string, begun string) (out []string) {
	for _, w := range words {
		if w != "" && strings.HasPrefix(w, begun) && printable(w) == w {
			out = append(out, w)
		}
	}
	slices.Sort(out)
	return slices.Compact(out)
}
