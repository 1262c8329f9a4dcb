package config

import (
	"fmt"
	"math"
	"path/filepath"
	"slices"
	"strings"
	"time"
)

const (
	DefaultAdminListen     = "127.0.0.1:3213" // where an agent serves its status, unless told otherwise
	DefaultRegistrarListen = "127.0.0.1:3214" // and a registrar

	DefaultOverridesPath = "/myelin/overrides" // where overrides are in ZooKeeper, unless told otherwise
)

// agent reads an agent's file.
func (r *reader) agent(d *document) *Agent {
	if agent, registrar := d.signs(); agent == "" && registrar != "" {
		r.fail(d.root, "", "this is a registrar's file (it has "+registrar+"), not an agent's", "give it to the registrar, or give the agent its own file")
		return nil
	}
	root := r.table(d.root, "")
	a := &Agent{Path: d.name, Strict: r.strict}
	if isBareMap(d.root) { // the keys are services, even those called log or admin
		root = r.table(&node{kind: dict, file: d.root.file, line: d.root.line}, "")
	}
	root.given("services")
	root.given("service_conf_dir")
	root.flag("strict", false)
	a.ZooKeeper = r.zookeeper(root, d.options.ZooKeeperHosts)
	a.StateDir = root.filePath("state_dir", DefaultStateDir)
	a.Registrar = root.beside("registrar")
	a.Admin = root.admin(DefaultAdminListen)
	a.ControlSocket = root.controlSocket(filepath.Join(a.StateDir, "agent.sock"))
	a.Log = root.log()
	a.History = root.history()
	a.HAProxy = r.haproxy(root, a.StateDir)

	root.later("statsd")
	a.OverridesPath = root.overridesPath()
	a.ConsumersPath = root.znode("consumers_path", "")
	a.Statsd = root.statsd()
	if t := root.sub("file_output"); t != nil {
		a.FileOutput = &FileOutput{OutputDirectory: t.filePath("output_directory", "")}
		t.require("output_directory", "write the folder for the files")
		t.done()
	}

	guard := root.guard(defaultGuard())
	for _, s := range d.services {
		a.Services = append(a.Services, r.service(s, a.ZooKeeper, guard))
	}
	r.someServices(d)
	r.conflicts(a, d)
	a.Services = copies(r, d, a.Services, func(s Service) (string, int) { return s.Name, s.LoadTestConcurrency }, copied)
	root.ignored("nginx", noNginx)
	root.strayServices()
	root.done()
	return a
}

// copies puts the copies of services with a load_test_concurrency in their place, "<name>_0" and so on, as Synapse and
// Nerve do.
func copies[T any](r *reader, d *document, services []T, of func(T) (name string, concurrency int), copied func(s T, name string, n int) T) []T {
	taken := map[string]bool{}
	for _, s := range services {
		name, _ := of(s)
		taken[name] = true
	}
	var out []T
	for i, s := range services {
		name, concurrency := of(s)
		if concurrency == 0 {
			out = append(out, s)
			continue
		}
		for n := range concurrency {
			copyName := fmt.Sprintf("%s_%d", name, n)
			if taken[copyName] {
				r.fail(d.services[i].node, join(d.services[i].path, "load_test_concurrency"), "there is a service "+copyName+" already", "rename that one")
				break
			}
			out = append(out, copied(s, copyName, n))
		}
	}
	return out
}

// copied makes the nth copy of a service. The first one has the frontend: the others would bind to the same port.
func copied(s Service, name string, n int) Service {
	s.Name = name
	if s.HAProxy.BackendName != "" {
		s.HAProxy.BackendName = fmt.Sprintf("%s_%d", s.HAProxy.BackendName, n)
	}
	if n > 0 {
		s.HAProxy.Port, s.HAProxy.PortSet, s.HAProxy.BindOnly = 0, false, false
		s.HAProxy.Frontend, s.HAProxy.SharedFrontend = nil, nil
	}
	return s
}

// someServices warns of a file without services, unless it is said already why there are none.
func (r *reader) someServices(d *document) {
	if len(d.services) == 0 && len(r.problems.Errors()) == 0 {
		r.warn(d.root, "services", "there are no services", "add one, or a service_conf_dir")
	}
}

// strayServices refuses services beside a services table: serving nothing for them in silence would be worse.
func (t *table) strayServices() {
	for _, e := range t.n.entries {
		if !slices.Contains(t.known, e.key) && e.value.kind == dict && e.value.get("discovery") != nil {
			t.given(e.key)
			t.fail(e.key, "is a service outside of services", "move it to services."+join("", e.key))
		}
	}
}

// log, like admin and statsd below, is the same in both files.
func (t *table) log() Log {
	l := Log{Level: "info", Format: "text"}
	if s := t.sub("log"); s != nil {
		l.Level = s.choice("level", l.Level, "info", "debug", "trace", "warn", "warning", "error")
		l.Format = s.choice("format", l.Format, "text", "json")
		s.done()
	}
	return l
}

func (t *table) admin(def string) Admin {
	s := t.sub("admin")
	if s == nil {
		return Admin{Listen: def}
	}
	defer s.done()
	listen := s.str("listen", def)
	if listen == "off" {
		listen = ""
	}
	if listen != "" && !validListen(listen) {
		s.mismatch("listen", "an address to listen on", `write "127.0.0.1:3213", or "off"`)
	}
	return Admin{Listen: listen, Given: s.value("listen") != nil}
}

func (t *table) statsd() *Statsd {
	s := t.sub("statsd")
	if s == nil {
		return nil
	}
	defer s.done()
	out := &Statsd{Host: s.host("host", "localhost"), Port: 8125}
	if p := s.port("port"); p != 0 {
		out.Port = p
	}
	if rates := s.sub("sample_rate"); rates != nil {
		out.SampleRate = map[string]float64{}
		for _, e := range rates.n.entries {
			out.SampleRate[e.key] = rates.fraction(e.key, 1)
		}
	}
	return out
}

// overridesPath is where operators' overrides are; empty when they are switched off.
func (t *table) overridesPath() string {
	if n := t.value("overrides_path"); n != nil && n.kind == text && (n.text == "" || n.text == "off") {
		return ""
	}
	return t.znode("overrides_path", DefaultOverridesPath)
}

// service reads one service of the agent.
func (r *reader) service(sn serviceNode, zk ZooKeeper, guard Guard) Service {
	t := r.table(sn.node, sn.path)
	s := Service{Name: sn.name, File: sn.node.file, Line: sn.node.line}
	if !proxyName.MatchString(s.Name) {
		r.fail(sn.node, sn.path, "the name cannot be a section of haproxy.cfg", "use only letters, digits and _ . : -")
	}

	s.Discovery = t.serviceDiscovery(zk)
	s.Discovery.LabelFilters = append(s.Discovery.LabelFilters, t.labelFilters()...)
	for _, d := range t.subs("default_servers") {
		s.DefaultServers = append(s.DefaultServers, d.defaultServer())
	}
	if n := t.given("default_servers"); s.Discovery.Method == "base" && len(s.DefaultServers) == 0 && (n == nil || !n.broken) {
		t.warn("default_servers", "discovery method base has no servers", "list them in default_servers")
	}
	s.KeepDefaultServers = t.flag("keep_default_servers", false)
	s.UsePreviousBackends = t.flag("use_previous_backends", true)
	s.BackendPortOverride = t.port("backend_port_override")
	s.LeaderElection = t.flag("leader_election", false)

	var override uint16
	s.HAProxy, override = t.serviceHAProxy()
	if s.BackendPortOverride == 0 {
		s.BackendPortOverride = override
	}

	t.later("zone", "subset")
	s.LoadTestConcurrency = int(t.whole("load_test_concurrency", 0, 0, 10000))
	s.Guard = t.guard(guard)
	if z := t.sub("zone"); z != nil {
		s.Zone = &Zone{Label: z.str("label", ""), Local: z.str("local", ""), SpillOver: z.flag("spill_over", true)}
		z.require("label", `write the label that holds the zone, "zone"`)
		z.require("local", "write this node's zone")
		z.done()
	}
	if sub := t.sub("subset"); sub != nil {
		s.Subset = &Subset{Size: int(sub.whole("size", 0, 1, math.MaxInt32))}
		sub.require("size", "write how many instances this node may use")
		sub.done()
	}
	s.DrainTimeout = t.duration("drain_timeout", 0, 0)
	if f := t.sub("file_output"); f != nil {
		s.FileOutputDisabled = f.flag("disabled", false)
		f.done()
	}
	t.ignored("nginx", noNginx)
	t.done()
	return s
}

// noNginx: the one plugin of Synapse that is seen in fleets (synapse-nginx, at Yelp).
const noNginx = "Synapse's plugin for nginx has no counterpart, Myelin drives HAProxy only"

// defaultGuard is that of a file without the key.
func defaultGuard() Guard { return Guard{Enabled: true, MaxDropPercent: 50, HoldFor: time.Hour} }

// guard reads a guard; what it leaves out is as in def. A flag, or "off", switches it.
func (t *table) guard(def Guard) Guard {
	n := t.value("guard")
	switch {
	case n == nil:
		return def
	case n.text == "off":
		def.Enabled = false
		return def
	case n.text == "true", n.text == "false":
		def.Enabled = t.flag("guard", def.Enabled)
		return def
	}
	s := t.sub("guard")
	if s == nil {
		return def
	}
	defer s.done()
	return Guard{
		Enabled:        s.flag("enabled", def.Enabled),
		MinBackends:    int(s.whole("min_backends", int64(def.MinBackends), 0, math.MaxInt32)),
		MaxDropPercent: int(s.whole("max_drop_percent", int64(def.MaxDropPercent), 0, 100)),
		HoldFor:        s.duration("hold_for", def.HoldFor, 0),
	}
}

func (t *table) defaultServer() DefaultServer {
	defer t.done()
	s := DefaultServer{
		Name: t.str("name", ""), Host: t.host("host", ""), Port: t.port("port"),
		ServerOptions: t.serverOptions("haproxy_server_options"),
		HAProxyID:     int(t.whole("haproxy_server_id", 0, 1, 1<<20-1)),
		Labels:        t.labels("labels"),
	}
	t.require("host", "write its IP address or host name")
	t.require("port", "write a number from 1 to 65535")
	if t.value("weight") != nil {
		w := int(t.whole("weight", 0, 0, math.MaxInt32))
		s.Weight = &w
	}
	if t.value("id") != nil {
		id := t.whole("id", 0, 0, math.MaxInt64)
		s.ID = &id
	}
	return s
}

// labels is a table of whatever the registry is to hold, or nil.
func (t *table) labels(key string) map[string]any {
	s := t.sub(key)
	if s == nil {
		return nil
	}
	s.n.walk(s.path, func(path string, n *node) {
		if n.kind == other {
			t.r.mismatch(n, path, "a label's value", "write a string")
		}
	})
	return s.n.values()
}

// labelFilters are label_filters and the older label_filter, which Synapse adds to them.
func (t *table) labelFilters() []LabelFilter {
	var out []LabelFilter
	for _, f := range append(t.subs("label_filters"), t.subs("label_filter")...) {
		lf := LabelFilter{Label: f.str("label", ""), Condition: f.choice("condition", "equals", "equals", "not-equals")}
		f.require("label", "write the label's name")
		if v := f.value("value"); v != nil {
			if v.kind == list || v.kind == dict || v.kind == other {
				f.mismatch("value", "a string, a number, true, false or null", "write one value; several filters must all hold")
			}
			lf.Value = v.value()
		}
		f.done()
		out = append(out, lf)
	}
	return out
}

// ready are the discovery methods of this version.
const ready = "use zookeeper, zookeeper_poll or base"

// methodRefused says what to use instead of the methods that Myelin will not have; empty for all others.
func methodRefused(method string) (instead string) {
	switch method {
	case "docker":
		return "run a registrar for the containers and use zookeeper"
	case "ec2tag", "awstag":
		return "run a registrar on the instances and use zookeeper"
	case "marathon":
		return "run a registrar beside the tasks and use zookeeper"
	case "zookeeper_dns":
		return "use zookeeper; a registration's host may be a host name"
	case "zookeeper_dns_poll":
		return "use zookeeper_poll; a registration's host may be a host name"
	case "etcd", "etcd3", "kubernetes":
		return "register in ZooKeeper and use zookeeper"
	}
	return ""
}

// serviceDiscovery reads discovery and discovery_multi, Synapse's sugar for a multi discovery whose child "primary"
// is the discovery.
func (t *table) serviceDiscovery(zk ZooKeeper) Discovery {
	multi := t.sub("discovery_multi")
	single := t.sub("discovery")
	if multi != nil {
		t.fail("discovery_multi", "is not available in this version of Myelin", "write one discovery")
		multi.skip()
		if single == nil {
			return Discovery{Method: "multi"}
		}
	}
	if single == nil {
		t.require("discovery", `write discovery = { method = "zookeeper", path = "/services/`+clip(serviceWord(t.path))+`" }`)
		return Discovery{}
	}
	return single.discovery(zk)
}

// serviceWord is the last word of a service's key, for an example.
func serviceWord(path string) string { return strings.Trim(path[strings.LastIndex(path, ".")+1:], `"`) }

// skip takes all keys of a table as known: it has been refused as a whole.
func (t *table) skip() {
	for _, e := range t.n.entries {
		t.given(e.key)
	}
}

// discovery reads a discovery table.
func (t *table) discovery(zk ZooKeeper) Discovery {
	d := Discovery{Method: t.str("method", "")}
	if !t.require("method", ready) {
		t.skip()
		return d
	}
	defer t.done()
	switch d.Method {
	case "zookeeper", "zookeeper_poll":
		t.zookeeperDiscovery(&d, zk)
	case "base":
		d.LabelFilters = t.labelFilters()
		for _, key := range []string{"hosts", "path"} {
			t.ignored(key, "discovery method base only has default_servers")
		}
	case "file", "dns", "multi", "consul":
		t.mismatchMethod("is not available in this version of Myelin", ready)
		t.laterDiscovery(&d, zk)
	default:
		if t.value("method") == nil {
			// wrong type, complained about
		} else if instead := methodRefused(d.Method); instead != "" {
			t.mismatchMethod("is not part of Myelin", instead)
		} else if near := Nearest(d.Method, []string{"zookeeper", "zookeeper_poll", "base"}); near != "" {
			t.mismatchMethod("is not known", "did you mean "+near+"?")
		} else {
			t.mismatchMethod("is not known", ready)
		}
		t.skip()
	}
	return d
}

func (t *table) mismatchMethod(what, instead string) {
	t.fail("method", "method "+t.at("method").describe(join(t.path, "method"))+" "+what, instead)
}

func (t *table) zookeeperDiscovery(d *Discovery, zk ZooKeeper) {
	d.ZooKeeper = t.serviceZooKeeper("", zk)
	d.ImmutableNodes = t.flag("immutable_nodes", false)
	if t.require("path", `write the znode whose children are the instances, path = "/services/user-api"`) {
		d.Path = t.znode("path", "")
	}
	d.Decode = t.decode()
	d.LabelFilters = t.labelFilters()
	d.PollingInterval = 60 * time.Second
	if d.Method == "zookeeper_poll" {
		// Synapse's key is the second; the first is its spelling without the unit.
		d.PollingInterval = t.duration("polling_interval", d.PollingInterval, positive)
		d.PollingInterval = t.duration("polling_interval_sec", d.PollingInterval, positive)
	} else {
		for _, key := range []string{"polling_interval", "polling_interval_sec"} {
			t.ignored(key, "discovery method zookeeper watches and does not poll")
		}
	}

	d.DiscoveryJitter = t.duration("discovery_jitter", 0, 0)
	if d.DiscoveryJitter > 120*time.Second {
		t.mismatch("discovery_jitter", "from 0 to 120 seconds", durationForm)
	}
	d.RetryPolicy = t.retryPolicy()
	switch d.GeneratorConfigPath = t.str("generator_config_path", d.Path); d.GeneratorConfigPath {
	case "disabled":
	default:
		if d.GeneratorConfigPath != d.Path {
			d.GeneratorConfigPath = t.znode("generator_config_path", d.Path)
		}
	}
}

// laterDiscovery reads the keys of the methods to come, so that what is wrong with them is told now.
func (t *table) laterDiscovery(d *Discovery, zk ZooKeeper) {
	switch d.Method {
	case "file":
		d.Path = t.str("path", "")
		t.require("path", "write the path of the file with the instances")
	case "dns":
		d.Nameserver = t.str("nameserver", "")
		d.CheckInterval = t.duration("check_interval", 30*time.Second, positive)
		for _, s := range t.subs("servers") {
			ds := DNSServer{Host: s.host("host", ""), Port: s.port("port"), Name: s.str("name", ""), Labels: s.labels("labels")}
			s.require("host", "write the name to resolve")
			s.done()
			d.Servers = append(d.Servers, ds)
		}
		t.require("servers", `write servers = [ { name = "x", host = "x.example.com", port = 80 } ]`)
	case "multi":
		t.multi(d, zk)
	default: // consul's keys are not settled yet
		t.skip()
	}
	d.LabelFilters = t.labelFilters()
}

func (t *table) multi(d *Discovery, zk ZooKeeper) {
	if watchers := t.sub("watchers"); watchers != nil {
		for _, e := range watchers.n.entries {
			if w := watchers.sub(e.key); w != nil {
				d.Watchers = append(d.Watchers, NamedDiscovery{e.key, w.discovery(zk)})
			}
		}
	}
	if res := t.sub("resolver"); res != nil {
		d.Resolver.Method = res.str("method", "")
		d.Resolver.SequentialOrder = res.lines("sequential_order")
		switch d.Resolver.Method {
		case "union", "sequential":
		case "s3_toggle":
			res.mismatchMethod("is not part of Myelin", "use sequential")
			res.skip()
		default:
			if res.require("method", "write union or sequential") && res.value("method") != nil {
				res.mismatch("method", "a resolver", "write union or sequential")
			}
		}
		res.done()
	}
}

func (t *table) decode() Decode {
	d := Decode{Method: "nerve"}
	s := t.sub("decode")
	if s == nil {
		return d
	}
	defer s.done()
	d.Method = s.str("method", d.Method)
	d.EndpointName = s.str("endpoint_name", "")
	if !slices.Contains([]string{"nerve", "serverset", "curator", "auto"}, d.Method) && s.value("method") != nil {
		s.mismatchMethod("is not known", `write "nerve", "serverset", "curator" or "auto", or leave decode out`)
	}
	if d.EndpointName != "" && d.Method != "serverset" {
		s.warn("endpoint_name", "has no effect: only a serverset has additional endpoints", `remove it, or write method = "serverset"`)
	}
	return d
}

// retryPolicy reads Synapse's; its code, not its README, has retries on by default.
func (t *table) retryPolicy() RetryPolicy {
	p := RetryPolicy{MaxAttempts: 10, MaxDelay: 600 * time.Second, BaseInterval: 500 * time.Millisecond, MaxInterval: 60 * time.Second}
	if s := t.sub("retry_policy"); s != nil {
		p.MaxAttempts = int(s.whole("max_attempts", int64(p.MaxAttempts), 0, math.MaxInt32))
		p.MaxDelay = s.duration("max_delay", p.MaxDelay, 0)
		p.BaseInterval = s.duration("base_interval", p.BaseInterval, 0)
		p.MaxInterval = s.duration("max_interval", p.MaxInterval, 0)
		s.done()
	}
	return p
}

// seed is digits of any number; Synapse's users give it 128 bits.
func (t *table) seed(key string) string {
	n := t.value(key)
	if n == nil {
		return ""
	}
	if (n.kind != number && n.kind != text) || !digits.MatchString(n.text) {
		t.mismatch(key, "a whole number", "write digits, as a string in TOML when there are more than 18")
		return ""
	}
	return n.text
}

// conflicts finds what two services cannot both have.
func (r *reader) conflicts(a *Agent, d *document) {
	names, binds := map[string]int{}, map[string]int{}
	sections := map[string]bool{} // "backend x" and so on, of the hand-written ones
	for _, s := range a.HAProxy.ExtraSections {
		if f := strings.Fields(s.Title); len(f) > 1 {
			sections[f[0]+" "+f[1]] = true
		}
	}
	for i, s := range a.Services {
		if s.HAProxy.Disabled {
			continue
		}
		n, path := d.services[i].node, join(d.services[i].path, "haproxy")
		at := func(key string) *node {
			if h := n.get("haproxy"); h != nil && h.get(key) != nil {
				return h.get(key)
			}
			return n
		}
		name := s.HAProxy.BackendName
		if name == "" {
			name = s.Name
		}
		if j, dup := names[name]; dup {
			r.fail(at("backend_name"), join(path, "backend_name"),
				fmt.Sprintf("services %s and %s have the same backend", a.Services[j].Name, s.Name), "give one of them another backend_name")
		} else {
			names[name] = i
		}
		// A frontend and a backend may have one name (HAProxy 2.6); a listen section is both.
		own := []string{"backend " + name, "listen " + name}
		if s.HAProxy.PortSet || s.HAProxy.BindOnly {
			own = append(own, "frontend "+s.Name, "listen "+s.Name)
		}
		for _, section := range own {
			if sections[section] {
				r.fail(at("backend_name"), path, "the extra section "+quote(section)+" has the name of a section of the service", "rename one of them")
				break
			}
		}
		bind := a.HAProxy.bind(s.HAProxy)
		if bind == "" {
			continue
		}
		if j, dup := binds[bind]; dup {
			r.fail(at("port"), join(path, "port"),
				fmt.Sprintf("services %s and %s bind to the same address and port", a.Services[j].Name, s.Name), "give one of them another port or bind_address")
		} else {
			binds[bind] = i
		}
	}
}

// bind is where a service's frontend listens, or empty.
func (h HAProxy) bind(s ServiceHAProxy) string {
	address := s.BindAddress
	if address == "" {
		address = h.BindAddress
	}
	if address == "localhost" { // the same socket as 127.0.0.1 wherever HAProxy prefers IPv4, its default
		address = "127.0.0.1"
	}
	switch {
	case s.BindOnly:
		return address
	case s.PortSet:
		return fmt.Sprintf("%s:%d", address, s.Port)
	}
	return ""
}
