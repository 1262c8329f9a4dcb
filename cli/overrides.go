package cli

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"github.com/myelin-sd/myelin/agent"
	"github.com/myelin-sd/myelin/config"
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
	var path, address string
	c := &cobra.Command{
		Use:   "overrides",
		Short: "List what operators want of instances, fleet-wide: drains, maintenance, weights",
		Long: "Lists the overrides in ZooKeeper: of what, by whom, why and until when; and what the agent of this host has made of\n" +
			"them, where it can be asked. Where ZooKeeper is not given, or does not answer, the agent is asked what it has heard\n" +
			"of, and then what it keeps on disk is read. Which of them it was, and how old it is, is said on stderr.\n" +
			"See myelin drain, maint, weight and enable, and myelin overrides rm.",
		Args: cobra.NoArgs,
		RunE: func(c *cobra.Command, _ []string) error { return a.listOverrides(c.Context(), path, address) },
	}
	overridesPathFlag(c.Flags(), &path)
	factFlags(c, &address)
	c.AddCommand(a.removeOverridesCommand(), a.restoreOverridesCommand())
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

func (a *app) restoreOverridesCommand() *cobra.Command {
	var path, address string
	c := &cobra.Command{
		Use:   "restore",
		Short: "Store again what a ZooKeeper that was wiped has lost and agents keep in force",
		Long: "Stores the overrides that the agent of this host keeps in force in ZooKeeper again, all at once. It is for a ZooKeeper\n" +
			"that was wiped: agents take nothing back while the path does not exist. When it exists, nothing is done.",
		Args: cobra.NoArgs,
		RunE: func(c *cobra.Command, _ []string) error { return a.restoreOverrides(c.Context(), path, address) },
	}
	overridesPathFlag(c.Flags(), &path)
	factFlags(c, &address)
	return c
}

// restoreOverrides stores what the agent keeps of a path that is gone.
func (a *app) restoreOverrides(ctx context.Context, path, address string) error {
	where, err := a.overridesAt(path)
	if err != nil {
		return err
	}
	if address == "" {
		if address, err = a.agentListen(); err != nil {
			return err
		}
	}
	var stored []overrideInfo
	err = a.withOverrides(ctx, where, func(ctx context.Context, s *zookeeper.Session) error {
		switch missing, err := s.NoOverrides(ctx, where.path); {
		case err != nil:
			return err
		case !missing:
			return fmt.Errorf("the path %s is there; agents go by what it holds, and there is nothing to store again", where.path)
		}
		here, err := a.overridesHere(ctx, address)
		switch {
		case err != nil:
			return err
		case !sameOverrides(here, where):
			return fmt.Errorf("the agent at %s does not look at %s in this ensemble", address, where.path)
		}
		stored = keptInForce(here)
		if len(stored) == 0 {
			return nil
		}
		all := make([]discovery.Override, len(stored))
		for i := range stored {
			all[i] = stored[i].override()
		}
		err = s.RestoreOverrides(ctx, where.path, all)
		if errors.Is(err, zookeeper.ErrOverrideChanged) {
			err = fmt.Errorf("%w; see myelin overrides", err)
		}
		return err
	})
	switch {
	case err != nil:
		return err
	case a.output == "json":
		return printJSON(a.out, append([]overrideInfo{}, stored...))
	case len(stored) == 0:
		fmt.Fprintln(a.out, "the agent of this host keeps no override; nothing was stored")
	}
	now := time.Now()
	for _, i := range stored {
		o := i.override()
		fmt.Fprintf(a.out, "%s: %s\n", shown(o.Target), told(o, now))
	}
	return nil
}

// keptInForce are the overrides that count for an agent although their path is gone.
func keptInForce(here agent.OverridesStatus) (kept []overrideInfo) {
	if here.Heard != nil && !here.Missing {
		return nil // it has not noticed yet, or has heard of another one: nothing is known to be lost
	}
	for _, i := range infosOfAgent(here) {
		if i.State == stateInForce {
			kept = append(kept, i)
		}
	}
	return kept
}

// keptOnly refuses what would make a path that is gone while the agent of this host keeps in force what was there: what is
// there then is all there is, and everything else would end unawares.
func (a *app) keptOnly(ctx context.Context, s *zookeeper.Session, where overridesPlace) error {
	missing, err := s.NoOverrides(ctx, where.path)
	if err != nil || !missing {
		return err
	}
	address, err := a.agentListen()
	if err != nil {
		return nil // then there is nobody to ask
	}
	here, err := a.overridesHere(ctx, address)
	if err != nil || !sameOverrides(here, where) {
		return nil
	}
	if n := len(keptInForce(here)); n > 0 {
		return &keptError{where.path, n}
	}
	return nil
}

// keptError says that agents keep what the registry has lost.
type keptError struct {
	path string
	kept int
}

func (e *keptError) Error() string {
	return fmt.Sprintf("the path %s is gone from ZooKeeper, and the agent of this host keeps what was there in force, %s; a new path would end all of it",
		e.path, counted(e.kept, "override"))
}

// withOverrides asks with the session that the overrides lie behind.
func (a *app) withOverrides(ctx context.Context, where overridesPlace, ask func(context.Context, *zookeeper.Session) error) error {
	ctx, cancel := context.WithTimeout(ctx, a.timeout)
	defer cancel()
	e := a.ensembles()
	defer e.close()
	s, err := e.session(where.zk)
	if err != nil {
		return err
	}
	if err := ask(ctx, s); err != nil {
		return e.explain(ctx, where.zk, a.timeout, err)
	}
	return nil
}

// listOverrides shows what is in ZooKeeper, and what the agent of this host says of it; without ZooKeeper what the agent
// has heard of, or has kept on disk.
func (a *app) listOverrides(ctx context.Context, path, address string) error {
	where, err := a.overridesAt(path)
	if err != nil {
		return err
	}
	all, from, err := factsOf(ctx, a, address, a.overridesOf(where))
	if err != nil {
		return err
	}
	if from.Source == fromZooKeeper {
		a.compareHere(ctx, where, address, &all)
	}
	return a.printOverrides(all.infos, "there are no overrides")
}

// knownOverrides are the overrides that somebody knows of.
type knownOverrides struct {
	infos []overrideInfo
	gone  bool // ZooKeeper has no such path
}

// overridesOf asks for the overrides that lie somewhere.
func (a *app) overridesOf(where overridesPlace) question[knownOverrides] {
	return question[knownOverrides]{
		hosts: where.zk.Hosts,
		zookeeper: func(ctx context.Context) (known knownOverrides, err error) {
			err = a.ask(ctx, where.zk, func(ctx context.Context, s *zookeeper.Session) error {
				all, err := s.Overrides(ctx, where.path)
				now := time.Now()
				for _, o := range all {
					known.infos = append(known.infos, infoOfStored(o, now))
				}
				if err == nil && len(all) == 0 {
					known.gone, err = s.NoOverrides(ctx, where.path)
				}
				return err
			})
			return known, err
		},
		agent: func(ctx context.Context, address string) (knownOverrides, time.Time, error) {
			st, err := askOverrides(ctx, address)
			here := st.Overrides
			switch {
			case err != nil:
				return knownOverrides{}, time.Time{}, err
			case here.Path == "":
				return knownOverrides{}, time.Time{}, fmt.Errorf("the agent at %s honours no overrides: overrides_path is off", address)
			case here.Heard == nil && here.FromDisk == nil: // what is not known is not none
				return knownOverrides{}, time.Time{}, fmt.Errorf("the agent at %s has heard nothing of overrides yet", address)
			case here.Missing:
				fmt.Fprintf(a.errs, "myelin: %s is gone from ZooKeeper; what the agent knows of overrides stays in force\n", printable(here.Path))
			}
			return knownOverrides{infos: infosOfAgent(here)}, st.AsOfOverrides(time.Now()), nil
		},
		disk: func(stateDir string) (knownOverrides, time.Time, error) {
			kept, err := agent.KeptOverrides(stateDir, time.Now())
			switch {
			case err != nil:
				return knownOverrides{}, time.Time{}, err
			case len(where.zk.Hosts) > 0 && !sameOverrides(kept, where):
				return knownOverrides{}, time.Time{}, fmt.Errorf("what is on disk in %s is of %s in ZooKeeper at %s", agent.OverridesFile(stateDir), printable(kept.Path), printable(kept.Ensemble))
			}
			infos := infosOfAgent(kept)
			for i := range infos {
				infos[i].Here = nil // nobody can tell
			}
			return knownOverrides{infos: infos}, *kept.FromDisk, nil
		},
		kept: agent.OverridesFile(""),
	}
}

// compareHere adds what the agent of this host says of overrides, if it can be asked and looks where we do. Those of a
// path that is gone are what the agent keeps in force.
func (a *app) compareHere(ctx context.Context, where overridesPlace, address string, all *knownOverrides) {
	if address == "" {
		var err error
		if address, err = a.agentListen(); err != nil {
			return
		}
	}
	here, err := a.overridesHere(ctx, address)
	if err != nil || !sameOverrides(here, where) {
		return
	}
	if all.gone && len(keptInForce(here)) > 0 {
		fmt.Fprintf(a.errs, "The path %s is gone from ZooKeeper. This is what the agent of this host keeps in force until the path exists again;\nmyelin overrides restore stores it there:\n", where.path)
		all.infos = infosOfAgent(here)
	}
	for i := range all.infos {
		all.infos[i].Here = hereOf(here, all.infos[i])
	}
}

// overridesHere asks the agent at address what it makes of overrides, with little patience: it is only a part of what is
// to be shown.
func (a *app) overridesHere(ctx context.Context, address string) (agent.OverridesStatus, error) {
	ctx, cancel := context.WithTimeout(ctx, min(agentPatience, a.timeout))
	defer cancel()
	st, err := askOverrides(ctx, address)
	return st.Overrides, err
}

// agentPatience is how long an answer of the local agent is waited for.
const agentPatience = 2 * time.Second

// askOverrides asks an agent for its status, which tells of overrides.
func askOverrides(ctx context.Context, address string) (agent.Status, error) {
	var st struct {
		agent.Status
		Overrides *agent.OverridesStatus `json:"overrides"`
	}
	if err := fromAgentAt(ctx, address, "/api/v1/status", &st); err != nil {
		return agent.Status{}, err
	}
	if st.Overrides == nil {
		return agent.Status{}, fmt.Errorf("ask the agent at %s: it tells nothing of overrides; is it an agent of this version?", address)
	}
	st.Status.Overrides = *st.Overrides
	return st.Status, nil
}

// sameOverrides tells whether an agent looks where we do.
func sameOverrides(here agent.OverridesStatus, where overridesPlace) bool {
	name, _, _ := strings.Cut(here.Ensemble, " ") // a number may be behind it
	hosts, chroot, err := config.ParseHosts(name)
	return err == nil && here.Path == where.path && chroot == where.zk.Chroot &&
		slices.ContainsFunc(hosts, func(h string) bool { return slices.Contains(where.zk.Hosts, h) })
}

// hereOf is what the agent makes of an override.
func hereOf(here agent.OverridesStatus, i overrideInfo) *hereInfo {
	if i.State != stateInForce {
		return nil
	}
	for _, o := range here.List {
		if o.Node == i.Node && o.Revision >= i.Revision {
			return &hereInfo{Known: true, Applied: o.Applied, Servers: o.Servers}
		}
	}
	return &hereInfo{}
}

// infosOfAgent are the overrides that an agent knows of.
func infosOfAgent(here agent.OverridesStatus) (infos []overrideInfo) {
	for _, o := range here.List {
		i := overrideInfo{
			Node: o.Node, Revision: o.Revision, State: stateInForce, Target: o.Target(), Service: o.Service, Host: o.Host, Port: o.Port,
			Action: o.Action, Weight: o.Weight, Percent: o.Percent, Author: o.Author, Reason: o.Reason, Created: o.Created, Until: o.Until,
		}
		if i.Here = hereOf(here, i); o.Ended {
			i.State, i.Here = stateExpired, nil
		}
		infos = append(infos, i)
	}
	for _, b := range here.Bad {
		if !b.Former { // otherwise it is listed as what it was
			infos = append(infos, overrideInfo{Node: b.Node, State: stateUndecodable, Problem: b.Reason})
		}
	}
	return infos
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
	switch {
	case i.Host == "":
		target += " (all)"
	case i.Service == "":
		target += " (host)"
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
	where, err := a.overridesAt(path)
	if err != nil {
		return err
	}
	removed := []overrideInfo{}
	err = a.withOverrides(ctx, where, func(ctx context.Context, s *zookeeper.Session) error {
		all, err := s.Overrides(ctx, where.path)
		if err != nil {
			return err
		}
		now := time.Now()
		if len(all) == 0 {
			if err := a.keptOnly(ctx, s, where); err != nil {
				return fmt.Errorf("%w; store it again first, with myelin overrides restore", err)
			}
		}
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
	o := i.override()
	return "removed from " + shown(o.Target) + ": " + told(o, now)
}

// override is what the info is about.
func (i overrideInfo) override() discovery.Override {
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
	return o
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
