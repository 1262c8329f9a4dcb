package cli

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"os/user"
	"strconv"
	"strings"
	"time"

	"github.com/spf13/cobra"
	"github.com/spf13/pflag"

	"github.com/myelin-sd/myelin/config"
	"github.com/myelin-sd/myelin/discovery"
	"github.com/myelin-sd/myelin/discovery/zookeeper"
)

// intent is what an operator wants of instances, as the command line says it.
type intent struct {
	action  discovery.Action
	target  discovery.Target
	weight  int
	percent bool

	limit  time.Duration // 0: until it is taken back
	reason string
	author string
	force  bool
}

// intentFlags are those of the commands that store an intent for the whole fleet.
type intentFlags struct {
	all    bool
	host   string
	limit  time.Duration
	reason string
	author string
	wait   bool
	force  bool
	agents []string
	path   string
}

// fleetFlags are those that have no meaning on this host alone.
var fleetFlags = []string{"all", "host", "author", "force", "agent", "overrides-path"}

func (o *intentFlags) add(f *pflag.FlagSet) {
	f.BoolVar(&o.all, "all", false, "all instances of the service, also those that are to come")
	f.StringVar(&o.host, "host", "", "all instances on `HOST`, of whatever service")
	f.DurationVar(&o.limit, "for", 0, "`DURATION` after which it ends by itself (default: with myelin enable)")
	f.StringVar(&o.reason, "reason", "", "`TEXT` for those who wonder")
	f.StringVar(&o.author, "author", "", "`NAME` of who wants it (default: the user, and this host)")
	f.BoolVar(&o.wait, "wait", false, "wait until the agents have applied it and the sessions have ended; --timeout bounds it, "+waitTimeout.String()+" by default")
	f.BoolVar(&o.force, "force", false, "although nothing stays in rotation, or the target is not known")
	f.StringArrayVar(&o.agents, "agent", nil, "`HOST:PORT` of another agent to ask with --wait, beside that of this host (repeatable)")
	overridesPathFlag(f, &o.path)
}

func overridesPathFlag(f *pflag.FlagSet, path *string) {
	f.StringVar(path, "overrides-path", "", "`PATH` of the overrides in ZooKeeper (default: that of -c FILE, else "+config.DefaultOverridesPath+")")
}

const intentLong = `
It is stored in ZooKeeper, every agent honours it, and it is applied again after any restart of HAProxy. It holds until
--for is over or myelin enable takes it back. The target is one instance (SERVICE HOST:PORT), all instances of a service
on a host (SERVICE HOST), a service (SERVICE --all), or whatever runs on a host (--host HOST). Each target has one
override, and a narrower one goes before a wider one. See myelin overrides for what there is.

With --wait the exit code is 4 when it is stored and could not be confirmed: agents could not be asked, or sessions
remained when the time was over.`

func (a *app) drainCommand() *cobra.Command {
	var o intentFlags
	c := &cobra.Command{
		Use:   "drain SERVICE HOST:PORT|HOST|--all [--for 30m] [--reason T] [--wait]",
		Short: "Send no new sessions to instances; those that are there go on",
		Long:  "Has no agent send new sessions to the instances. Sessions that are there go on to their end.\n" + intentLong,
		Args:  cobra.MaximumNArgs(2),
	}
	o.add(c.Flags())
	c.RunE = func(c *cobra.Command, args []string) error {
		return a.intend(c, discovery.ActionDrain, args, o)
	}
	return c
}

func (a *app) weightCommand() *cobra.Command {
	var o intentFlags
	c := &cobra.Command{
		Use:   "weight SERVICE HOST:PORT|HOST|--all N|P% [--for 30m] [--reason T] [--wait]",
		Short: "Give instances another weight, or a percentage of theirs",
		Long:  "Gives the instances a weight: 0 to 256, as HAProxy counts, or 0% to 100% of what it would be.\n" + intentLong,
		Args:  cobra.RangeArgs(1, 3),
	}
	o.add(c.Flags())
	c.RunE = func(c *cobra.Command, args []string) error {
		return a.intend(c, discovery.ActionWeight, args, o)
	}
	return c
}

// intend does what one of the commands is told.
func (a *app) intend(c *cobra.Command, action discovery.Action, words []string, o intentFlags) error {
	in, err := a.parseIntent(c, action, words, o)
	if err != nil {
		return err
	}
	ctx, cancel := a.bounded(c, o.wait)
	defer cancel()
	where, err := a.overridesAt(o.path)
	if err != nil {
		return err
	}
	var agents []agentAddress
	if o.wait {
		if agents, err = a.agentsToAsk(o.agents); err != nil {
			return err
		}
	}
	done, err := a.carryOut(ctx, c, in, where)
	if err != nil {
		return err
	}
	var outcome *outcome
	if o.wait {
		if a.output != "json" {
			a.printDeed(in, done)
		}
		outcome = a.await(ctx, done.awaited, agents)
	}
	switch {
	case a.output == "json":
		if err := printJSON(a.out, done.info(in, outcome)); err != nil {
			return err
		}
	case outcome == nil:
		a.printDeed(in, done)
	case outcome.err == nil:
		fmt.Fprintln(a.out, outcome.confirmed())
	}
	if outcome != nil {
		return outcome.err
	}
	return nil
}

// waitTimeout bounds --wait, unless --timeout is given: sessions end when their clients are done.
const waitTimeout = 10 * time.Minute

// bounded is the context of a command that may wait.
func (a *app) bounded(c *cobra.Command, wait bool) (context.Context, context.CancelFunc) {
	limit := a.timeout
	if wait && !c.Flags().Changed("timeout") {
		limit = waitTimeout
	}
	return context.WithTimeoutCause(c.Context(), limit, &overtime{limit})
}

// overtime is why a command's context ended: it has lasted too long.
type overtime struct{ limit time.Duration }

func (o *overtime) Error() string { return "not done within " + o.limit.String() }

// Bounds of what people write; DecodeOverride refuses more.
const (
	mostReason = 512
	mostAuthor = 128
)

// parseIntent reads the command line: the target, with weight also the weight behind it.
func (a *app) parseIntent(c *cobra.Command, action discovery.Action, words []string, o intentFlags) (intent, error) {
	in := intent{action: action, limit: o.limit, reason: o.reason, author: cmp.Or(o.author, a.author()), force: o.force}
	fail := func(err error) (intent, error) { return in, usage("%w; see %s --help", err, c.CommandPath()) }
	var err error
	if action == discovery.ActionWeight {
		if len(words) == 0 {
			return fail(errors.New("write the target and then the weight"))
		}
		if in.weight, in.percent, err = parseWeight(words[len(words)-1]); err != nil {
			return fail(err)
		}
		words = words[:len(words)-1]
	}
	if words, err = a.named(words); err != nil {
		return in, err
	}
	if in.target, err = parseTarget(words, o.all, o.host); err != nil {
		return fail(err)
	}
	switch {
	case c.Flags().Changed("for") && o.limit < time.Second:
		return fail(fmt.Errorf("--for %s: write a duration of a second or more, such as 30m", o.limit))
	case len(in.reason) > mostReason:
		return fail(fmt.Errorf("--reason has %d bytes; write %d at most", len(in.reason), mostReason))
	case len(o.author) > mostAuthor:
		return fail(fmt.Errorf("--author has %d bytes; write %d at most", len(o.author), mostAuthor))
	case len(o.agents) > 0 && !o.wait:
		return fail(errors.New("--agent names agents to ask with --wait"))
	}
	return in, nil
}

// named turns a path among the words into the name that agents give the service in it: overrides go by names.
func (a *app) named(words []string) ([]string, error) {
	if len(words) == 0 || !strings.HasPrefix(words[0], "/") {
		return words, nil
	}
	r, err := a.registry()
	if err != nil {
		return nil, err
	}
	for _, s := range r.services {
		if s.Discovery.Path == words[0] {
			return append([]string{s.Name}, words[1:]...), nil
		}
	}
	return nil, usage("%s is a path; write the name that the agents' files give the service", printable(words[0]))
}

// parseTarget reads SERVICE HOST:PORT, SERVICE HOST, SERVICE --all or --host HOST.
func parseTarget(words []string, all bool, host string) (discovery.Target, error) {
	var t discovery.Target
	var place string
	switch {
	case len(words) > 2:
		return t, fmt.Errorf("%d words for the target; write SERVICE and HOST:PORT", len(words))
	case len(words) == 2:
		place = words[1]
	}
	if len(words) > 0 {
		t.Service = words[0]
		if t.Service == "" {
			return t, errors.New("the service has no name")
		}
	}
	switch {
	case all && (place != "" || host != ""), place != "" && host != "":
		return t, errors.New("one of HOST:PORT, HOST, --all and --host is enough")
	case all && t.Service == "":
		return t, errors.New("--all is about a service: which?")
	case all:
		return t, nil
	case place == "" && host == "" && t.Service == "":
		return t, errors.New("write SERVICE HOST:PORT, or --host HOST")
	case place == "" && host == "":
		return t, fmt.Errorf("which instances of %s? write HOST:PORT, or HOST for those on a host, or --all", printable(t.Service))
	}
	var err error
	t.Host, t.Port, err = parsePlace(cmp.Or(place, host))
	return t, err
}

// parsePlace reads HOST:PORT or HOST; port 0: there is none.
func parsePlace(text string) (host string, port uint16, err error) {
	host, number, err := net.SplitHostPort(text)
	if err != nil { // no port; an IPv6 address may stand without brackets then
		e, err := discovery.ParseEndpoint(text, 1)
		if err != nil {
			return "", 0, fmt.Errorf("%s: write HOST:PORT or HOST, as the instance is registered", printable(text))
		}
		return e.Host(), 0, nil
	}
	n, err := strconv.Atoi(number)
	if err != nil {
		return "", 0, fmt.Errorf("%s: port %s is no number", printable(text), printable(number))
	}
	e, err := discovery.ParseEndpoint(host, n)
	if err != nil {
		return "", 0, fmt.Errorf("%s: %w", printable(text), err)
	}
	return e.Host(), e.Port(), nil
}

// parseWeight reads a weight as HAProxy counts, or a percentage.
func parseWeight(text string) (weight int, percent bool, err error) {
	number, percent := strings.CutSuffix(text, "%")
	most := 256
	if percent {
		most = 100
	}
	weight, err = strconv.Atoi(number)
	if err != nil || weight < 0 || weight > most {
		return 0, false, fmt.Errorf("weight %s: write 0 to 256, or 0%% to 100%%, behind the target", printable(text))
	}
	return weight, percent, nil
}

// author is who gives the command: the user behind sudo, if there is one, and the host.
func (a *app) author() string {
	name, _ := a.env("SUDO_USER")
	if name == "" {
		if me, err := user.Current(); err == nil {
			name = me.Username
		}
	}
	host, _ := os.Hostname()
	name, host = cmp.Or(name, "somebody"), cmp.Or(host, "somewhere")
	who := name + "@" + host
	return who[:min(len(who), mostAuthor)]
}

// overridesPlace is where overrides lie, and what else the registry is asked for.
type overridesPlace struct {
	registry
	path string
}

// overridesAt finds out where the overrides are: the flag's path, else that of the agent's file, in its default
// ensemble.
func (a *app) overridesAt(flag string) (overridesPlace, error) {
	r, err := a.registry()
	if err != nil {
		return overridesPlace{}, err
	}
	p := overridesPlace{r, cmp.Or(flag, config.DefaultOverridesPath)}
	if !strings.HasPrefix(p.path, "/") {
		return p, usage("--overrides-path %q: a path begins with /", flag)
	}
	if flag != "" || a.configFile == "" {
		return p, nil
	}
	kind, err := config.Detect(a.configFile, a.options(false))
	if err != nil || kind == config.KindRegistrar {
		return p, err
	}
	c, _, err := config.LoadAgent(a.configFile, a.options(false))
	if err != nil {
		return p, err
	}
	switch p.path = c.OverridesPath; {
	case p.path == "":
		return p, fmt.Errorf("%s: overrides_path is off, so its agent honours no overrides", a.configFile)
	case len(p.zk.Hosts) == 0:
		return p, fmt.Errorf("%s: zookeeper.hosts is missing, so its agent honours no overrides: they lie in the default ensemble", a.configFile)
	}
	return p, nil
}

// carryOut looks at what there is, decides, and writes. What was there before is said before it is replaced.
func (a *app) carryOut(ctx context.Context, c *cobra.Command, in intent, where overridesPlace) (deed, error) {
	limit := a.timeout // also where the wait may last longer
	ctx, cancel := context.WithTimeout(ctx, limit)
	defer cancel()
	e := a.ensembles()
	defer e.close()
	s, err := e.session(where.zk)
	if err != nil {
		return deed{}, err
	}
	known, err := a.standing(ctx, e, s, in.target, where)
	if err != nil {
		return deed{}, fmt.Errorf("%w; nothing was changed", e.explain(ctx, where.zk, limit, err))
	}
	if enabling := in.action == discovery.ActionEnable; len(known.overrides) == 0 && (enabling || !in.force) {
		var kept *keptError
		other := ", or do it all the same with --force"
		if enabling { // it would store nothing
			other = ""
		}
		switch err := a.keptOnly(ctx, s, where); {
		case errors.As(err, &kept):
			return deed{}, fmt.Errorf("%w; nothing was changed; store it again first, with myelin overrides restore%s", err, other)
		case err != nil:
			return deed{}, fmt.Errorf("%w; nothing was changed", e.explain(ctx, where.zk, limit, err))
		}
	}
	now := time.Now()
	d, err := in.decide(known, now)
	if err != nil {
		return deed{}, err
	}
	if a.output != "json" {
		for _, note := range d.before(now) {
			fmt.Fprintln(a.errs, note)
		}
	}
	switch d.does {
	case doesStore:
		revision := zookeeper.NoOverride
		if d.former != nil {
			revision = d.former.Revision
		}
		d.override, err = s.PutOverride(ctx, where.path, d.override, revision)
	case doesRemove:
		_, err = s.RemoveOverride(ctx, where.path, d.former.Node, d.former.Revision)
	}
	switch {
	case errors.Is(err, zookeeper.ErrOverrideChanged):
		return deed{}, fmt.Errorf("%w; see myelin overrides, and repeat it if you still want it", err)
	case err != nil:
		return deed{}, e.explain(ctx, where.zk, limit, err)
	}
	if err := in.confirmSpared(ctx, s, where.path, known, d); err != nil {
		return deed{}, e.explain(ctx, where.zk, limit, err)
	}
	d.expect(known, now)
	return d, nil
}

// confirmSpared looks again when the deed is done: two operators who take out the last instances at a time have each
// seen those of the other one in rotation. Then it takes the deed back, as the other one may do too, and says so.
func (in intent) confirmSpared(ctx context.Context, s *zookeeper.Session, dir string, known standing, d deed) error {
	if in.force || d.does == doesNothing {
		return nil
	}
	overrides, err := s.Overrides(ctx, dir)
	if err != nil {
		return fmt.Errorf("it is done, but not whether anything stays in rotation looked at again: %w", err)
	}
	now := time.Now()
	refused := leavesBare(known, inForce(known.overrides, now, noTarget), inForce(overrides, now, noTarget), now)
	if len(refused) == 0 {
		return nil
	}
	switch {
	case d.does == doesRemove:
		_, err = s.PutOverride(ctx, dir, d.former.Override, zookeeper.NoOverride)
	case d.former != nil && d.former.Problem == nil:
		_, err = s.PutOverride(ctx, dir, d.former.Override, d.override.Revision)
	default:
		_, err = s.RemoveOverride(ctx, dir, d.override.Node, d.override.Revision)
	}
	told := fmt.Errorf("%s of %s, with what somebody else has stored at the same moment, leaves no instance in rotation of %s", in.action, shown(in.target), listed(refused, 5))
	if err != nil {
		return fmt.Errorf("%w, and could not be taken back: %w; see myelin overrides", told, err)
	}
	return fmt.Errorf("%w; it was taken back; see myelin overrides; --force does it all the same", told)
}
