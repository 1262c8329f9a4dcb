package cli

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"io/fs"
	"net"
	"net/url"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/spf13/cobra"

	"github.com/myelin-sd/myelin/agent"
	"github.com/myelin-sd/myelin/config"
	"github.com/myelin-sd/myelin/discovery"
	"github.com/myelin-sd/myelin/discovery/zookeeper"
)

func (a *app) explainCommand() *cobra.Command {
	var address string
	c := &cobra.Command{
		Use:   "explain SERVICE [HOST:PORT]",
		Short: "Say why an instance gets traffic or not, from its znode to HAProxy's last check, and what happens next",
		Long: "Follows one instance from its registration in ZooKeeper to HAProxy, and says in one sentence why it gets traffic or\n" +
			"not, and what happens next. Instead of HOST:PORT the name of its node in ZooKeeper will do. Without either it tells how\n" +
			"many instances of the service get how far, and why those do not get traffic that do not.\n\n" +
			"It asks ZooKeeper, where that is given, and the agent of this host, which asks its HAProxys. Where neither answers, the\n" +
			"sets that the agent keeps on disk are read. Without the agent it tells what ZooKeeper knows, and says what is not known.\n\n" +
			"Exit code 0: the question was answered, whatever the answer. 1: there is no such service or instance.",
		Example: "  myelin explain user-api\n  myelin explain user-api 10.0.0.5:8080\n  myelin explain user-api web-1_0000000007 -c /etc/myelin/agent.toml",
		Args:    cobra.RangeArgs(1, 2),
		RunE: func(c *cobra.Command, args []string) error {
			q, err := a.inquiry(address, args)
			if err != nil {
				return err
			}
			if len(args) == 1 {
				return q.service(c.Context())
			}
			return q.instance(c.Context(), args[1])
		},
	}
	factFlags(c, &address)
	return c
}

// inquiry is one question about a service.
type inquiry struct {
	a        *app
	registry registry
	name     string // of the service
	path     string
	zk       config.ZooKeeper
	address  string // of the agent; empty: noAgent says why it is not asked
	noAgent  error
}

func (a *app) inquiry(address string, args []string) (*inquiry, error) {
	r, err := a.registry()
	if err != nil {
		return nil, err
	}
	q := &inquiry{a: a, registry: r, name: args[0], address: address}
	q.path, q.zk = r.path(args[0])
	if strings.HasPrefix(args[0], "/") {
		for _, s := range r.services {
			if s.Discovery.Path == args[0] {
				q.name = s.Name
			}
		}
	}
	if q.address == "" {
		q.address, q.noAgent = a.agentListen()
	}
	return q, nil
}

// explanation is the answer about an instance. The JSON names are part of the interface.
type explanation struct {
	agent.Explanation
	Sources []origin `json:"sources"`          // who was heard
	Silent  []string `json:"silent,omitempty"` // who was not, and why
}

// serviceExplanation is the answer about a service.
type serviceExplanation struct {
	agent.Summary
	Sources []origin `json:"sources"`
	Silent  []string `json:"silent,omitempty"`
}

// findings are what those said who were asked.
type findings struct {
	registry *agent.RegistryEvidence
	all      *discovery.Snapshot // of the service; nil: ZooKeeper was not heard, or has no such path
	names    []string            // of services, where this one is not known
	zkErr    error
	agent    *agent.AgentEvidence
	summary  *agent.Summary
	agentErr error
	diskErr  error // why what is on disk could not be read; nil: it was, or there is nothing
	sources  []origin
	service  string // what the agent calls it; empty: the agent was not heard
}

// instance explains one instance.
func (q *inquiry) instance(ctx context.Context, instance string) error {
	f := q.ask(ctx, instance)
	if err := stopped(ctx); err != nil {
		return err
	}
	e := agent.Evidence{Service: q.name, Instance: instance, Registry: f.registry, Agent: f.agent}
	if f.zkErr != nil {
		e.RegistryError = f.zkErr.Error()
	}
	var unknown *unknownError
	if f.agentErr != nil {
		e.AgentError = f.agentErr.Error()
		e.NoService = errors.As(f.agentErr, &unknown)
	}
	if err := q.unknownService(f); err != nil {
		return err
	}
	x := explanation{agent.Explain(e, time.Now()), f.sources, f.silent()}
	if err := q.a.printExplanation(x); err != nil {
		return err
	}
	return q.unknownInstance(f, instance)
}

// service explains a service.
func (q *inquiry) service(ctx context.Context) error {
	f := q.ask(ctx, "")
	if err := stopped(ctx); err != nil {
		return err
	}
	if err := q.unknownService(f); err != nil {
		return err
	}
	x := serviceExplanation{Sources: f.sources, Silent: f.silent()}
	switch {
	case f.summary != nil:
		x.Summary = *f.summary
	case f.all != nil:
		x.Summary = registrySummary(q.name, q.path, *f.all)
		if f.registry.From == fromDisk {
			x.Notes = append(x.Notes, "from disk, as it was "+age(time.Now(), f.registry.At)+" ago")
		}
	}
	return q.a.printSummary(x)
}

// ask asks ZooKeeper and the agent at a time, and reads the disk where neither is heard. Once the agent has answered,
// ZooKeeper has only a part of --timeout.
func (q *inquiry) ask(ctx context.Context, instance string) findings {
	var f findings
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	var asking sync.WaitGroup
	began := time.Now()
	asking.Go(func() { q.askZooKeeper(ctx, &f, instance) })
	q.askAgent(ctx, &f, instance)
	if f.agentErr == nil {
		hurry := time.AfterFunc(q.a.timeout/zookeeperShare-time.Since(began), cancel)
		defer hurry.Stop()
	}
	asking.Wait()
	q.name = cmp.Or(f.service, q.name)
	if f.registry != nil {
		f.sources = append([]origin{{f.registry.From, f.registry.Where, f.registry.At}}, f.sources...)
	}
	if f.registry == nil && f.agentErr != nil {
		q.readDisk(&f, instance)
	}
	return f
}

// askZooKeeper reads the service's registrations with their bytes.
func (q *inquiry) askZooKeeper(ctx context.Context, f *findings, instance string) {
	if len(q.zk.Hosts) == 0 {
		f.zkErr = errors.New("not given: write --zookeeper HOSTS or -c FILE")
		return
	}
	f.zkErr = q.a.ask(ctx, q.zk, func(ctx context.Context, s *zookeeper.Session) error {
		r := &agent.RegistryEvidence{From: fromZooKeeper, Where: strings.Join(q.zk.Hosts, ","), Path: q.path, At: time.Now()}
		nodes, err := s.Read(ctx, q.path)
		switch {
		case errors.Is(err, zookeeper.ErrNoPath):
			r.Missing = true
			if f.names, err = neighbours(ctx, s, q.registry, q.path); err != nil {
				return err
			}
		case err != nil:
			return err
		default:
			all := decodeNodes(q.name, nodes, q.decoder())
			f.all = &all
			r.Listed = len(nodes)
			r.Nodes = nodesOf(all, nodes, instance)
		}
		if instance != "" && len(r.Nodes) == 0 {
			r.Elsewhere = q.elsewhere(ctx, s, instance)
		}
		f.registry = r
		return nil
	})
	if f.zkErr != nil {
		f.registry, f.all = nil, nil
	}
}

// decoder reads registrations as the service's definition says, or in whatever format they are.
func (q *inquiry) decoder() zookeeper.Decode {
	for _, s := range q.registry.services {
		if s.Name != q.name {
			continue
		}
		switch s.Discovery.Decode.Method {
		case "serverset":
			return discovery.DecodeServerset(s.Discovery.Decode.EndpointName)
		case "curator":
			return discovery.DecodeCurator
		case "nerve":
			return discovery.DecodeNerve
		}
	}
	return new(discovery.AnyDecoder).Decode
}

// decodeNodes makes a snapshot of nodes.
func decodeNodes(service string, nodes []zookeeper.Node, decode zookeeper.Decode) discovery.Snapshot {
	snap := discovery.Snapshot{Service: service}
	for _, n := range nodes {
		in, err := decode(n.Name, n.Data)
		var bad *discovery.RejectError
		switch {
		case errors.As(err, &bad):
			snap.Rejected = append(snap.Rejected, discovery.Rejection{
				Node: n.Name, Reason: bad.Reason, Detail: bad.Detail, Session: n.Owner, Created: n.Created, Modified: n.Modified,
			})
		case err == nil:
			in.Node, in.Session, in.Created, in.Modified = n.Name, n.Owner, n.Created, n.Modified
			snap.Instances = append(snap.Instances, in)
		}
	}
	slices.SortFunc(snap.Instances, discovery.Compare)
	return snap
}

// mostBytes of a registration are shown.
const mostBytes = 160

// nodesOf are the registrations of an instance, with their bytes.
func nodesOf(all discovery.Snapshot, nodes []zookeeper.Node, instance string) (out []agent.NodeEvidence) {
	if instance == "" {
		return nil
	}
	raw := make(map[string][]byte, len(nodes))
	for _, n := range nodes {
		raw[n.Name] = n.Data
	}
	e, err := agent.ParseInstance(instance)
	for _, in := range all.Instances {
		if in.Node == instance || err == nil && in.Endpoint == e {
			out = append(out, withBytes(agent.InstanceEvidence(in), raw[in.Node]))
		}
	}
	if len(out) > 0 {
		return out
	}
	for _, r := range all.Rejected {
		if agent.MentionsInstance(instance, r.Node, string(raw[r.Node])) {
			out = append(out, withBytes(agent.RejectedEvidence(r), raw[r.Node]))
		}
	}
	return out
}

func withBytes(n agent.NodeEvidence, data []byte) agent.NodeEvidence {
	n.Bytes = len(data)
	cut := ""
	if len(data) > mostBytes {
		data, cut = data[:mostBytes], "..."
	}
	n.Data = printable(string(data)) + cut
	return n
}

// neighbours are the names of services that may have been meant instead of one whose path does not exist.
func neighbours(ctx context.Context, s *zookeeper.Session, r registry, path string) (names []string, err error) {
	for _, service := range r.services {
		names = append(names, service.Name)
	}
	children, err := s.Children(ctx, filepath.Dir(path))
	if errors.Is(err, zookeeper.ErrNoPath) {
		return names, nil
	}
	return append(names, children...), err
}

// Bounds of looking for an instance in the services that it was not asked for in.
const (
	mostElsewhere    = 100 // services that are read
	elsewhereAtMost  = 3   // places that are told
	elsewhereShare   = 2   // of the time
	elsewhereMembers = 2000
)

// elsewhere looks for the instance in other services: a wrong path is a usual mistake. What cannot be read in time is
// left out.
func (q *inquiry) elsewhere(ctx context.Context, s *zookeeper.Session, instance string) (paths []string) {
	e, err := agent.ParseInstance(instance)
	if err != nil {
		return nil
	}
	ctx, cancel := context.WithTimeout(ctx, q.a.timeout/elsewhereShare)
	defer cancel()
	root := defaultRoot
	if !strings.HasPrefix(q.path, defaultRoot+"/") {
		root = filepath.Dir(q.path)
	}
	all, err := s.Services(ctx, root)
	if err != nil {
		return nil
	}
	read := 0
	for _, p := range all {
		if p.Path == q.path || p.Instances > elsewhereMembers {
			continue
		}
		if read++; read > mostElsewhere || len(paths) == elsewhereAtMost {
			break
		}
		snap, err := s.Snapshot(ctx, p.Path, p.Path)
		if err == nil && slices.ContainsFunc(snap.Instances, func(in discovery.Instance) bool { return in.Endpoint == e }) {
			paths = append(paths, p.Path)
		}
	}
	return paths
}

// askAgent asks the agent about the instance, or the service.
func (q *inquiry) askAgent(ctx context.Context, f *findings, instance string) {
	if f.agentErr = q.noAgent; f.agentErr != nil {
		return
	}
	ctx, cancel := context.WithTimeout(ctx, q.a.timeout)
	defer cancel()
	name := q.name
	if strings.HasPrefix(name, "/") {
		service, err := agentService(ctx, q.address, name)
		if f.agentErr = err; err != nil {
			return
		}
		name = service
	}
	at := "/api/v1/services/" + url.PathEscape(name) + "/explain"
	if instance == "" {
		f.summary = &agent.Summary{}
		if f.agentErr = fromAgentAt(ctx, q.address, at, f.summary); f.agentErr != nil {
			f.summary = nil
			return
		}
	} else {
		var e agent.Evidence
		f.agentErr = fromAgentAt(ctx, q.address, at+"?instance="+url.QueryEscape(instance), &e)
		if f.agentErr == nil && e.Agent == nil {
			f.agentErr = fmt.Errorf("ask the agent at %s: the answer says nothing; is it of another version?", q.address)
		}
		if f.agentErr != nil {
			return
		}
		f.agent = e.Agent
	}
	f.service = name
	f.sources = append(f.sources, origin{fromAgent, q.address, time.Now()})
}

// readDisk reads what an agent keeps on disk.
func (q *inquiry) readDisk(f *findings, instance string) {
	dir, err := q.a.stateDir()
	if err != nil {
		return
	}
	snap, kept, err := agent.LoadKept(dir, q.name)
	if err != nil {
		if !errors.Is(err, fs.ErrNotExist) {
			f.diskErr = err
		}
		return
	}
	where := filepath.Join(dir, "snapshots")
	r := &agent.RegistryEvidence{From: fromDisk, Where: where, At: kept.AsOf, Path: kept.Path, Missing: snap.Missing, Listed: len(snap.Instances)}
	e, err := agent.ParseInstance(instance)
	for _, in := range snap.Instances {
		if in.Node == instance || err == nil && in.Endpoint == e {
			r.Nodes = append(r.Nodes, agent.InstanceEvidence(in))
		}
	}
	f.registry, f.all = r, &snap
	f.sources = append(f.sources, origin{fromDisk, where, kept.AsOf})
}

// silent are those who were not heard, and why.
func (f findings) silent() (out []string) {
	if f.zkErr != nil {
		out = append(out, "ZooKeeper: "+inLine(f.zkErr))
	}
	var unknown *unknownError
	if f.agentErr != nil && !errors.As(f.agentErr, &unknown) {
		out = append(out, "agent: "+inLine(f.agentErr))
	}
	if f.diskErr != nil {
		out = append(out, "disk: "+inLine(f.diskErr))
	}
	return out
}

// unknownService is the error about a service that nobody knows; nil: somebody does, or nobody could tell.
func (q *inquiry) unknownService(f findings) error {
	var unknown *unknownError
	notThere := f.registry != nil && f.registry.Missing
	notHere := errors.As(f.agentErr, &unknown)
	switch {
	case f.agentErr == nil || f.registry != nil && !f.registry.Missing:
		return nil
	case notThere:
		names := slices.DeleteFunc(f.names, func(n string) bool { return n == q.name })
		return fmt.Errorf("there is no service %s (%s)%s", printable(q.name), printable(q.path), meant(strings.TrimPrefix(q.name, defaultRoot+"/"), names, "there are"))
	case notHere:
		return unknown
	case f.zkErr != nil && f.registry == nil:
		disk := cmp.Or(f.diskErr, errors.New("nothing of it is on disk"))
		if len(q.zk.Hosts) == 0 {
			return usage("which ZooKeeper? give it with --zookeeper HOSTS, MYELIN_ZOOKEEPER or -c FILE; %w; %w", f.agentErr, disk)
		}
		return fmt.Errorf("%w; %w; %w", f.zkErr, f.agentErr, disk)
	}
	return nil
}

// unknownInstance is the error about an instance that nobody knows, with one that was probably meant.
func (q *inquiry) unknownInstance(f findings, instance string) error {
	if a := f.agent; a != nil {
		inHAProxy := slices.ContainsFunc(a.HAProxy, func(h agent.HAProxyEvidence) bool { return h.Server.Admin != "absent" && h.Server.Admin != "unknown" })
		if len(a.Nodes) > 0 || a.Static || a.Held != nil || a.Active || inHAProxy || !a.Heard && a.FromDisk == nil {
			return nil
		}
	}
	if f.registry != nil && (len(f.registry.Nodes) > 0 || len(f.registry.Elsewhere) > 0) {
		return nil
	}
	var known []string
	if f.all != nil {
		for _, in := range f.all.Instances {
			known = append(known, in.Endpoint.String())
			if _, _, err := net.SplitHostPort(instance); err != nil {
				known = append(known, in.Node)
			}
		}
	} else if f.agent != nil {
		known = f.agent.Others
	}
	return fmt.Errorf("%s has no instance %s%s", printable(q.name), printable(instance), meant(instance, known, "it has"))
}

// registrySummary is what can be said of a service without an agent.
func registrySummary(service, path string, snap discovery.Snapshot) agent.Summary {
	s := agent.Summary{Service: service, Path: path, Out: []agent.OutOfRotation{}, Counts: agent.SummaryCounts{
		Registered: len(snap.Instances) + len(snap.Rejected), Decoded: len(snap.Instances),
		Passing: -1, Held: -1, InForce: -1, Servers: -1, Ready: -1, Up: -1, InRotation: -1,
	}}
	tell := func(n agent.NodeEvidence, o agent.OutOfRotation) {
		e := agent.Evidence{Service: service, Instance: n.Node, Registry: &agent.RegistryEvidence{From: fromZooKeeper, Path: path, Nodes: []agent.NodeEvidence{n}}}
		x := agent.Explain(e, time.Now())
		o.InRotation, o.Why, o.Next = x.InRotation, x.Why, x.Next
		s.Out = append(s.Out, o)
	}
	for _, in := range snap.Instances {
		if in.Leaving {
			s.Counts.Leaving++
			tell(agent.InstanceEvidence(in), agent.OutOfRotation{Instance: in.Endpoint.String()})
		}
	}
	for _, r := range snap.Rejected {
		tell(agent.RejectedEvidence(r), agent.OutOfRotation{Node: printable(r.Node)})
	}
	return s
}

// printExplanation prints one screen: the steps, the sentence, and what is next.
func (a *app) printExplanation(x explanation) error {
	if a.output == "json" {
		return printJSON(a.out, x)
	}
	fmt.Fprintln(a.out, paint(a.out, x.Service+" "+x.Instance, bold))
	a.printSources(x.Sources, x.Silent)
	fmt.Fprintln(a.out)
	for _, s := range x.Steps {
		mark, look := answerMark(s.State)
		fmt.Fprintf(a.out, "%s %-9s %s\n", paint(a.out, mark, look), strings.ReplaceAll(s.Step, "_", " "), s.Text)
	}
	_, look := answerMark(x.InRotation)
	fmt.Fprintf(a.out, "\n%s\n%s\n", paint(a.out, x.Why, look), x.Next)
	return nil
}

// answerMark is how an answer looks in front of a line.
func answerMark(of agent.Answer) (mark string, look tint) {
	switch of {
	case agent.Yes:
		return "ok", good
	case agent.No:
		return "NO", bad
	}
	return "? ", warn
}

func (a *app) printSources(sources []origin, silent []string) {
	now := time.Now()
	for _, s := range sources {
		when := "now"
		if now.Sub(s.AsOf) > 2*time.Second {
			when = "as it was " + age(now, s.AsOf) + " ago"
		}
		fmt.Fprintln(a.out, paint(a.out, fmt.Sprintf("from %s %s, %s", s.Source, s.Where, when), faint))
	}
	for _, s := range silent {
		fmt.Fprintln(a.out, paint(a.out, "not heard: "+s, warn))
	}
}

// printSummary prints how far the instances of a service get, and those that get no traffic.
func (a *app) printSummary(x serviceExplanation) error {
	if a.output == "json" {
		return printJSON(a.out, x)
	}
	title := x.Service
	if x.Path != "" {
		title += " (" + printable(x.Path) + ")"
	}
	fmt.Fprintln(a.out, paint(a.out, title, bold))
	a.printSources(x.Sources, x.Silent)
	for _, n := range x.Notes {
		fmt.Fprintln(a.out, paint(a.out, n, warn))
	}
	fmt.Fprintln(a.out)
	number := func(n int) string {
		if n < 0 {
			return "?"
		}
		return fmt.Sprint(n)
	}
	c := x.Counts
	t := newTable(a.out, "REGISTERED", "DECODE", "LEAVING", "PASS FILTERS", "HELD", "IN FORCE", "SERVERS", "READY", "UP", "IN ROTATION")
	t.row(number(c.Registered), number(c.Decoded), number(c.Leaving), number(c.Passing), number(c.Held), number(c.InForce), number(c.Servers), number(c.Ready), number(c.Up), number(c.InRotation))
	t.flush()
	if len(x.Out) == 0 {
		return nil
	}
	fmt.Fprintln(a.out)
	t = newTable(a.out, "NOT IN ROTATION", "WHY", "NEXT")
	for _, o := range x.Out {
		who, look := o.Instance, bad
		if who == "" {
			who = o.Node
		}
		if o.InRotation != agent.No {
			look = warn
		}
		t.row(tinted{who, look}, o.Why, o.Next)
	}
	t.flush()
	if x.More > 0 {
		fmt.Fprintf(a.out, "and %d more\n", x.More)
	}
	return nil
}

// inLine is an error as one printable line.
func inLine(err error) string { return printable(strings.ReplaceAll(err.Error(), "\n", "; ")) }
