package config

import (
	"cmp"
	"fmt"
	"math"
	"path/filepath"
	"slices"
	"strings"
	"time"
)

// registrar reads a registrar's file.
func (r *reader) registrar(d *document) *Registrar {
	if agent, registrar := d.signs(); registrar == "" && agent != "" {
		r.fail(d.root, "", "this is an agent's file (it has "+agent+"), not a registrar's", "give it to the agent, or give the registrar its own file")
		return nil
	}
	root := r.table(d.root, "")
	g := &Registrar{Path: d.name, Strict: r.strict}
	root.given("services")
	root.given("service_conf_dir")
	root.flag("strict", false)
	g.InstanceID = root.instanceID(d.options.InstanceID)
	g.ZooKeeper = r.zookeeper(root, d.options.ZooKeeperHosts)
	g.Log = root.log()
	g.History = root.history()
	g.HeartbeatPath = root.filePath("heartbeat_path", "")
	g.NerveCompatible = root.flag("nerve_compatible", false)
	g.ACL = root.acl("")
	g.MaxConcurrentChecks = int(root.whole("max_concurrent_checks", 0, 1, 100_000))

	root.later("max_repeated_report_failures")
	g.MaxRepeatedReportFailures = int(root.whole("max_repeated_report_failures", 10, 0, math.MaxInt32))
	g.Statsd = root.statsd()
	g.StateDir = root.filePath("state_dir", cmp.Or(d.options.StateDir, DefaultStateDir))
	g.Admin = root.admin(DefaultRegistrarListen)
	g.ControlSocket = root.controlSocket(filepath.Join(g.StateDir, "registrar-"+g.InstanceID+".sock"))
	g.StopTimeout = root.duration("stop_timeout", 0, positive)
	root.ignored("listen_port", "Nerve never had it; Airbnb's cookbook writes it")

	for _, s := range d.services {
		g.Services = append(g.Services, r.registration(s, g))
	}
	r.sharedNodes(g, d)
	g.Services = copies(r, d, g.Services,
		func(s Registration) (string, int) { return s.Name, s.LoadTestConcurrency },
		func(s Registration, name string, n int) Registration {
			s.Name, s.Copy = name, n
			return s
		})
	r.someServices(d)
	root.done()
	return g
}

// socketPathMost is how many bytes the path of a unix socket may have.
const socketPathMost = 107

// controlSocket is where a process takes orders.
func (t *table) controlSocket(def string) ControlSocket {
	if t.value("control_socket") == nil {
		return ControlSocket{Path: def}
	}
	path := t.filePath("control_socket", "")
	switch {
	case path == "off":
		return ControlSocket{}
	case len(path) > socketPathMost:
		t.fail("control_socket", fmt.Sprintf("the path has %d bytes, and that of a socket may have %d", len(path), socketPathMost), `write a shorter one, or "off"`)
	}
	return ControlSocket{Path: path, Given: true}
}

// sharedNodes refuses two services that would write to one node, or take each other's for their own: in Nerve's format
// only a sequence tells the nodes of one path and one instance apart, and in a serverset nothing does.
func (r *reader) sharedNodes(g *Registrar, d *document) {
	nodes := map[string]string{}
	for i, s := range g.Services {
		for n, format := range s.Payload {
			path, key, remedy := s.PayloadPaths[format], "payload_paths", "give one of them another path"
			if n == 0 {
				path, key = s.ZKPath, "zk_path"
			}
			switch {
			case path == "", format == "curator", format == "nerve" && (s.UsePathEncoding || strings.HasSuffix(s.NodeType, "_sequential")):
				continue
			case format == "nerve":
				remedy = "give one of them another zk_path, or leave node_type out of both"
			}
			node := format + " " + strings.Join(slices.Sorted(slices.Values(s.ZooKeeper.Hosts)), ",") + s.ZooKeeper.Chroot + path
			if other, taken := nodes[node]; taken {
				t := r.table(d.services[i].node, d.services[i].path)
				t.fail(key, fmt.Sprintf("services %s and %s would both be the same %s", other, s.Name, nodeWord(format)), remedy)
				continue
			}
			nodes[node] = s.Name
		}
	}
}

func nodeWord(format string) string {
	if format == "serverset" {
		return "member of the serverset"
	}
	return "znode"
}

// instanceID becomes the name in the payload and the beginning of the znode's name.
func (t *table) instanceID(outside string) string {
	if outside != "" {
		t.given("instance_id")
		if problem := badInstanceID(outside); problem != "" {
			t.fail("instance_id", "the instance id given outside the file "+problem, `give for example "web-1"`)
		}
		return outside
	}
	if !t.require("instance_id", `write a name that no other host has, instance_id = "web-1"`) {
		return ""
	}
	id := t.str("instance_id", "")
	if t.value("instance_id") != nil {
		if problem := badInstanceID(id); problem != "" {
			t.fail("instance_id", problem, `write for example "web-1"`)
		}
	}
	return id
}

func badInstanceID(id string) string {
	if id == "" {
		return "is empty"
	}
	if strings.Contains(id, "/") {
		return "contains a /, which cannot be in the name of a znode"
	}
	if _, err := cleanPath("/" + id + "_"); err != nil {
		return "cannot be in the name of a znode"
	}
	return ""
}

// registration reads one service of the registrar.
func (r *reader) registration(sn serviceNode, file *Registrar) Registration {
	t := r.table(sn.node, sn.path)
	g := Registration{Name: sn.name, File: sn.node.file, Line: sn.node.line}
	if g.Name == "" {
		r.fail(sn.node, sn.path, "the service has no name", "give it one")
	}
	t.reporter()
	g.Host = t.host("host", "")
	t.require("host", "write the address that other hosts reach the service at")
	g.Port = t.port("port")
	if t.require("port", "write a number from 1 to 65535") {
		g.PortText = t.given("port").kind == text
	}
	g.ZooKeeper = t.serviceZooKeeper("zk_", file.ZooKeeper)
	if t.require("zk_path", `write the znode to register below, zk_path = "/services/user-api"`) {
		g.ZKPath = t.znode("zk_path", "")
	}
	g.CheckInterval = t.duration("check_interval", 500*time.Millisecond, positive)
	g.CheckMocked = t.flag("check_mocked", false)
	for _, c := range t.subs("checks") {
		g.Checks = append(g.Checks, c.check(g))
	}
	distinguish(g.Checks)
	t.weightToLower(g.Checks)
	if n := t.given("checks"); len(g.Checks) == 0 && !g.CheckMocked && (n == nil || !n.broken) {
		t.warn("checks", "there are no checks, so the service always counts as healthy, as in Nerve", `add checks, or write check_mocked = true`)
	}
	t.health(&g)
	g.Weight = t.weight()
	if t.value("haproxy_server_options") != nil {
		s := t.str("haproxy_server_options", "")
		g.ServerOptions = &s
	}
	g.Labels = t.labels("labels")
	g.UsePathEncoding = t.flag("use_path_encoding", false)
	g.NodeType = t.nodeType()

	g.TTL = t.ttl(g.NodeType)
	g.RateLimiting = t.rateLimiting()
	g.LoadTestConcurrency = int(t.whole("load_test_concurrency", 0, 0, 10000))
	t.leave(&g, file.NerveCompatible)
	if g.ACL = t.acl(file.ACL); g.ACL == "creator" && g.ZooKeeper.Auth == nil {
		t.fail("acl", "creator needs a login, or nobody could own the znodes", "give zookeeper.auth, or write acl = \"open\"")
	}
	g.Payload = t.payload()
	g.PayloadPaths = t.payloadPaths(g.Payload, g.ZKPath)
	t.formatless(g)
	t.ignored("ports", "Nerve takes one port a service; Airbnb's cookbook writes it")
	t.done()
	return g
}

func (t *table) reporter() {
	switch s := strings.ToLower(t.str("reporter_type", "zookeeper")); s {
	case "zookeeper":
	case "etcd":
		t.fail("reporter_type", `reporter "etcd" is not part of Myelin`, "register in ZooKeeper: remove reporter_type, write zk_hosts and zk_path")
		for _, key := range []string{"etcd_host", "etcd_port", "etcd_path"} {
			t.given(key)
		}
	default:
		t.fail("reporter_type", "reporter "+t.at("reporter_type").describe(join(t.path, "reporter_type"))+" is not part of Myelin", "remove reporter_type, write zk_hosts and zk_path")
	}
}

// leave reads how the service comes and goes. Nerve deletes the node and is done.
func (t *table) leave(g *Registration, compatible bool) {
	notice, drain := 500*time.Millisecond, 5*time.Second
	if compatible {
		notice, drain = 0, 0
	}
	if g.UsePathEncoding {
		notice = 0
	}
	g.LeaveNotice = t.duration("leave_notice", notice, 0)
	if g.UsePathEncoding && g.LeaveNotice > 0 {
		t.warn("leave_notice", "has no effect with use_path_encoding: who takes the registration from the znode's name does not see the mark", "remove it")
		g.LeaveNotice = 0
	}
	g.Drain = t.duration("drain", drain, 0)
	g.OnStop = t.command("on_stop")
	g.SlowStart = t.duration("slow_start", 0, 0)
	switch {
	case g.SlowStart == 0:
	case g.Weight == nil:
		t.fail("slow_start", "needs a weight that can rise", "give the service its weight, weight = 10")
	case g.UsePathEncoding:
		t.fail("slow_start", "cannot be had with use_path_encoding: the weight is in the znode's name, which never changes", "leave one of the two out")
	}
}

// command is a program and its arguments. A line for a shell would be taken for the name of a program.
func (t *table) command(key string) []string {
	words := t.lines(key)
	if n := t.value(key); n != nil && (len(words) == 0 || words[0] == "" || n.kind == text && strings.Contains(n.text, " ")) {
		t.mismatch(key, "a program with its arguments", `write them as a list, `+key+` = ["/usr/local/bin/stopped", "--now"]`)
		return nil
	}
	return words
}

// weight is Nerve's: a whole number of at least 0 or digits; null and 1.0 are mistakes.
func (t *table) weight() *int {
	n := t.given("weight")
	if n == nil {
		return nil
	}
	if n.kind == null {
		t.mismatch("weight", "a whole number of at least 0", "write for example 10, or remove it")
		return nil
	}
	w := int(t.whole("weight", 0, 0, math.MaxInt32))
	return &w
}

func (t *table) nodeType() string {
	return t.choice("node_type", "ephemeral_sequential", "ephemeral_sequential", "ephemeral", "persistent", "persistent_sequential")
}

func (t *table) ttl(nodeType string) time.Duration {
	ttl := t.duration("ttl_seconds", 0, positive)
	if ttl > 0 && strings.HasPrefix(nodeType, "ephemeral") {
		t.warn("ttl_seconds", "has no effect on an ephemeral znode, as in Nerve", "remove it, or use a persistent node_type")
		return 0
	}
	return ttl
}

// acl says who may change what is registered: creator, or empty for everybody, which is the default unless def is given.
func (t *table) acl(def string) string {
	if acl := t.choice("acl", cmp.Or(def, "open"), "open", "creator"); acl != "open" {
		return acl
	}
	return ""
}

// formatless complains about what only Nerve's format has, where that is not published.
func (t *table) formatless(g Registration) {
	if !slices.Contains(g.Payload, "nerve") {
		for _, key := range []string{"node_type", "use_path_encoding", "ttl_seconds", "slow_start"} {
			if t.value(key) != nil {
				t.warn(key, "has no effect without the payload nerve", "remove it, or add nerve to payload")
			}
		}
	}
	if g.LoadTestConcurrency > 0 && (g.UsePathEncoding || !slices.Equal(g.Payload, []string{"nerve"})) {
		t.fail("load_test_concurrency", "the copies would all have the same znode", "leave use_path_encoding and payload out")
	}
}

func (t *table) rateLimiting() *RateLimiting {
	s := t.sub("rate_limiting")
	if s == nil {
		return nil
	}
	defer s.done()
	l := &RateLimiting{AverageRate: s.fraction("average_rate", 0), MaxBurst: s.fraction("max_burst", 0), ShadowMode: s.flag("shadow_mode", true)}
	if l.MaxBurst > 0 && l.MaxBurst < 1 {
		s.mismatch("max_burst", "a number of at least 1", "write how many changes may come at once, 1 at least")
	}
	return l
}

// formats are those that a service can be registered in.
var formats = []string{"nerve", "serverset", "curator"}

// payload are the formats to register in.
func (t *table) payload() []string {
	given := t.lines("payload")
	if given == nil {
		return []string{"nerve"}
	}
	var out []string
	for _, f := range given {
		switch {
		case slices.Contains(out, f):
			t.fail("payload", "payload "+quote(f)+" is there twice", "keep one")
		case slices.Contains(formats, f):
			out = append(out, f)
		default:
			said := quote(f)
			if t.at("payload").expanded() {
				said = "from the environment"
			}
			t.fail("payload", "payload "+said+" is not known", "use nerve, serverset or curator")
		}
	}
	if len(given) == 0 && !t.at("payload").broken {
		t.fail("payload", "the list is empty", `write ["nerve"], or remove it`)
	}
	return out
}

// payloadPaths are where the formats after the first are registered: their readers take whatever they find in a path, so
// that each needs its own.
func (t *table) payloadPaths(payload []string, first string) map[string]string {
	s := t.sub("payload_paths")
	taken := map[string]bool{first: true}
	var paths map[string]string
	for i, f := range payload {
		switch {
		case i == 0 && (s == nil || s.value(f) == nil):
			continue
		case i == 0:
			s.fail(f, "the first payload is registered in zk_path", "remove it, or put another payload first")
			continue
		case s == nil || s.value(f) == nil:
			t.fail("payload_paths", "there is no path for the payload "+f, fmt.Sprintf(`write payload_paths = { %s = "/discovery/user-api" }`, f))
			continue
		}
		p := s.znode(f, "")
		if p != "" && taken[p] {
			s.fail(f, p+" is the path of another payload of the service", "give each its own: readers take all that is in a path")
		}
		if taken[p] = true; paths == nil {
			paths = map[string]string{}
		}
		paths[f] = p
	}
	if s == nil {
		return paths
	}
	for _, f := range formats {
		if s.given(f) != nil && !slices.Contains(payload, f) {
			s.warn(f, "has no effect: the service is not registered in this format", "remove it, or add "+f+" to payload")
		}
	}
	s.done()
	return paths
}
