package cli

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"github.com/myelin-sd/myelin/discovery"
	"github.com/myelin-sd/myelin/discovery/zookeeper"
)

// overrideInfo is one override as programs read it. The JSON names are part of the interface.
type overrideInfo struct {
	Node     string     `json:"node"`
	Revision int32      `json:"revision"`
	State    string     `json:"state"` // in force, expired or undecodable
	Target   string     `json:"target"`
	Service  string     `json:"service"` // empty: any
	Host     string     `json:"host"`    // empty: any
	Port     uint16     `json:"port"`    // 0: any
	Action   string     `json:"action"`
	Weight   *int       `json:"weight"`
	Percent  bool       `json:"percent"`
	Author   string     `json:"author"`
	Reason   string     `json:"reason"`
	Created  time.Time  `json:"created"`
	Until    *time.Time `json:"until"`
	Problem  string     `json:"problem,omitempty"`

	Here *hereInfo `json:"here,omitempty"` // what the agent of this host says of it
}

// hereInfo is what an agent says of an override.
type hereInfo struct {
	Known   bool `json:"known"`   // the agent has heard of it, as it is now
	Applied bool `json:"applied"` // all its HAProxys have confirmed it
	Servers int  `json:"servers"` // that it counts for here
}

// The states of overrideInfo.
const (
	stateInForce     = "in force"
	stateExpired     = "expired"
	stateUndecodable = "undecodable"
)

func infoOfOverride(o discovery.Override, now time.Time) overrideInfo {
	i := overrideInfo{
		Node: o.Node, Revision: o.Revision, State: stateInForce, Target: o.Target.String(), Service: o.Service, Host: o.Host,
		Port: o.Port, Action: string(o.Action), Percent: o.Percent, Author: o.Author, Reason: o.Reason, Created: o.Created,
	}
	if !o.InForce(now) {
		i.State = stateExpired
	}
	if o.Action == discovery.ActionWeight {
		i.Weight = &o.Weight
	}
	if !o.Until.IsZero() {
		i.Until = &o.Until
	}
	return i
}

func infoOfStored(o zookeeper.StoredOverride, now time.Time) overrideInfo {
	if o.Problem == nil {
		return infoOfOverride(o.Override, now)
	}
	return overrideInfo{Node: o.Node, Revision: o.Revision, State: stateUndecodable, Created: o.Modified, Problem: o.Problem.Error()}
}

// words are what the override asks for.
func (i overrideInfo) words() string {
	o := discovery.Override{Action: discovery.Action(i.Action), Percent: i.Percent}
	if i.Weight != nil {
		o.Weight = *i.Weight
	}
	return actionWords(o)
}

func (a *app) overridesCommand() *cobra.Command {
	var path string
	c := &cobra.Command{
		Use:   "overrides",
		Short: "List what operators want of instances, fleet-wide: drains, maintenance, weights",
		Long: "Lists the overrides in ZooKeeper: of what, by whom, why and until when; and what the agent of this host has made of\n" +
			"them, where it can be asked. When ZooKeeper does not answer, the agent tells what it has heard of.\n" +
			"See myelin drain, maint, weight and enable, and myelin overrides rm.",
		Args: cobra.NoArgs,
		RunE: func(c *cobra.Command, _ []string) error { return a.listOverrides(c.Context(), path) },
	}
	overridesPathFlag(c.Flags(), &path)
	c.AddCommand(a.removeOverridesCommand())
	return c
}

func (a *app) removeOverridesCommand() *cobra.Command {
	var path string
	var expired bool
	c := &cobra.Command{
		Use:   "rm NODE|TARGET...|--expired",
		Short: "Remove an override, whatever it says, or all that have expired",
		Long: "Removes one override: by the name of its node, as overrides -o wide shows it, or by its target, as SERVICE HOST:PORT,\n" +
			"SERVICE HOST, SERVICE or HOST. What was removed is said. One that somebody changes meanwhile stays.",
		Args: usageArgs(cobra.MaximumNArgs(2)),
	}
	overridesPathFlag(c.Flags(), &path)
	c.Flags().BoolVar(&expired, "expired", false, "remove all that have expired; agents do it too, some minutes later")
	c.RunE = func(c *cobra.Command, words []string) error {
		if expired == (len(words) > 0) {
			return usage("write the node or the target of an override, or --expired; see %s --help", c.CommandPath())
		}
		return a.removeOverrides(c.Context(), path, words)
	}
	return c
}

// withOverrides asks with the session that the overrides lie behind.
func (a *app) withOverrides(ctx context.Context, path string, ask func(context.Context, *zookeeper.Session, overridesPlace) error) error {
	where, err := a.overridesAt(path)
	if err != nil {
		return err
	}
	ctx, cancel := context.WithTimeout(ctx, a.timeout)
	defer cancel()
	e := a.ensembles()
	defer e.close()
	s, err := e.session(where.zk)
	if err != nil {
		return err
	}
	if err := ask(ctx, s, where); err != nil {
		return e.explain(ctx, where.zk, a.timeout, err)
	}
	return nil
}

func (a *app) listOverrides(ctx context.Context, path string) error {
	var infos []overrideInfo
	err := a.withOverrides(ctx, path, func(ctx context.Context, s *zookeeper.Session, where overridesPlace) error {
		all, err := s.Overrides(ctx, where.path)
		now := time.Now()
		for _, o := range all {
			infos = append(infos, infoOfStored(o, now))
		}
		return err
	})
	if err != nil {
		return err
	}
	return a.printOverrides(infos, "there are no overrides")
}

// printOverrides shows overrides, or says that there are none.
func (a *app) printOverrides(infos []overrideInfo, none string) error {
	if a.output == "json" {
		if infos == nil {
			infos = []overrideInfo{}
		}
		return printJSON(a.out, infos)
	}
	if len(infos) == 0 {
		fmt.Fprintln(a.out, none)
		return nil
	}
	now, columns := time.Now(), []string{"TARGET", "ACTION", "AUTHOR", "AGE", "ENDS", "HERE", "REASON"}
	if a.output == "wide" {
		columns = []string{"TARGET", "ACTION", "AUTHOR", "AGE", "ENDS", "HERE", "NODE", "REVISION", "REASON"}
	}
	t := newTable(a.out, columns...)
	for _, i := range infos {
		cells := i.cells(now)
		if a.output == "wide" {
			cells = append(cells[:6:6], printable(i.Node), i.Revision, cells[6])
		}
		t.row(cells...)
	}
	t.flush()
	return nil
}

// cells are one row of the table.
func (i overrideInfo) cells(now time.Time) []any {
	if i.State == stateUndecodable {
		return []any{"node " + printable(i.Node), tinted{i.State, bad}, "", age(now, i.Created), "", i.Here.words(), printable(i.Problem)}
	}
	target := printable(i.Target)
	if i.Host == "" {
		target += " (all)"
	}
	var until any = "with enable"
	switch {
	case i.State == stateExpired:
		until = tinted{"expired " + age(now, *i.Until) + " ago", faint}
	case i.Until != nil:
		until = "in " + age(*i.Until, now)
	}
	return []any{target, i.words(), printable(i.Author), age(now, i.Created), until, i.Here.words(), printable(i.Reason)}
}

func (h *hereInfo) words() any {
	switch {
	case h == nil:
		return ""
	case !h.Known:
		return tinted{"not heard of yet", warn}
	case h.Applied:
		return tinted{"applied, " + counted(h.Servers, "server"), good}
	}
	return tinted{"not applied yet, " + counted(h.Servers, "server"), warn}
}

// removeOverrides removes the one that the words mean; no words: all that have expired.
func (a *app) removeOverrides(ctx context.Context, path string, words []string) error {
	removed := []overrideInfo{}
	err := a.withOverrides(ctx, path, func(ctx context.Context, s *zookeeper.Session, where overridesPlace) error {
		all, err := s.Overrides(ctx, where.path)
		if err != nil {
			return err
		}
		now := time.Now()
		if len(words) > 0 {
			if all, err = pickOverride(all, strings.Join(words, " ")); err != nil {
				return err
			}
		} else {
			all = expiredOverrides(all, now)
		}
		for _, o := range all {
			did, err := s.RemoveOverride(ctx, where.path, o.Node, o.Revision)
			if errors.Is(err, zookeeper.ErrOverrideChanged) && len(words) == 0 {
				continue // it is not what had expired
			}
			if err != nil {
				return err
			}
			if did {
				removed = append(removed, infoOfStored(o, now))
			}
		}
		return nil
	})
	if err == nil && a.output == "json" {
		return printJSON(a.out, removed)
	}
	now := time.Now()
	for _, i := range removed { // also those before one that failed
		fmt.Fprintln(a.out, i.removedLine(now))
	}
	if err == nil && len(removed) == 0 {
		fmt.Fprintln(a.out, "nothing was removed")
	}
	return err
}

func (i overrideInfo) removedLine(now time.Time) string {
	if i.State == stateUndecodable {
		return "removed node " + printable(i.Node) + ", which was no override: " + printable(i.Problem)
	}
	o := discovery.Override{
		Target: discovery.Target{Service: i.Service, Host: i.Host, Port: i.Port}, Action: discovery.Action(i.Action), Percent: i.Percent,
		Author: i.Author, Reason: i.Reason, Created: i.Created,
	}
	if i.Weight != nil {
		o.Weight = *i.Weight
	}
	if i.Until != nil {
		o.Until = *i.Until
	}
	return "removed from " + shown(o.Target) + ": " + told(o, now)
}

func expiredOverrides(all []zookeeper.StoredOverride, now time.Time) (out []zookeeper.StoredOverride) {
	for _, o := range all {
		if o.Problem == nil && !o.InForce(now) {
			out = append(out, o)
		}
	}
	return out
}

// pickOverride finds an override by its node or its target.
func pickOverride(all []zookeeper.StoredOverride, text string) ([]zookeeper.StoredOverride, error) {
	var names []string
	for _, o := range all {
		target := o.Target.String()
		if o.Node == text || o.Problem == nil && target == text {
			return []zookeeper.StoredOverride{o}, nil
		}
		if names = append(names, o.Node); o.Problem == nil {
			names = append(names, target)
		}
	}
	return nil, errors.New("there is no override of " + printable(text) + meant(text, names, "there are those of"))
}
