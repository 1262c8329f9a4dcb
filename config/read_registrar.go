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
	g.HeartbeatPath = root.filePath("heartbeat_path", "")
	g.NerveCompatible = root.flag("nerve_compatible", false)
	g.MaxConcurrentChecks = int(root.whole("max_concurrent_checks", 0, 1, 100_000))

	root.later("max_repeated_report_failures")
	g.MaxRepeatedReportFailures = int(root.whole("max_repeated_report_failures", 10, 0, math.MaxInt32))
	g.Statsd = root.statsd()
	g.StateDir = root.filePath("state_dir", cmp.Or(d.options.StateDir, DefaultStateDir))
	g.Admin = root.admin(DefaultRegistrarListen)
	g.ControlSocket = root.controlSocket(g.StateDir, g.InstanceID)
	g.StopTimeout = root.duration("stop_timeout", 0, positive)
	root.ignored("listen_port", "Nerve never had it; Airbnb's cookbook writes it")

	for _, s := range d.services {
		g.Services = append(g.Services, r.registration(s, g))
	}
	r.sharedNodes(g, d)
	r.someServices(d)
	root.done()
	return g
}

// socketPathMost is how many bytes the path of a unix socket may have.
const socketPathMost = 107

// controlSocket is where the registrar takes orders.
func (t *table) controlSocket(stateDir, instance string) ControlSocket {
	if t.value("control_socket") == nil {
		return ControlSocket{Path: filepath.Join(stateDir, "registrar-"+instance+".sock")}
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

// sharedNodes refuses two services that would write to one node: only a sequence tells the nodes of one path and one
// instance apart.
func (r *reader) sharedNodes(g *Registrar, d *document) {
	nodes := map[string]string{}
	for i, s := range g.Services {
		if s.NodeType != "ephemeral" || s.UsePathEncoding || s.ZKPath == "" {
			continue
		}
		node := strings.Join(slices.Sorted(slices.Values(s.ZooKeeper.Hosts)), ",") + s.ZooKeeper.Chroot + s.ZKPath
		if other, taken := nodes[node]; taken {
			t := r.table(d.services[i].node, d.services[i].path)
			t.fail("zk_path", fmt.Sprintf("services %s and %s would both be the same znode", other, s.Name),
				"give one of them another zk_path, or leave node_type out of both")
			continue
		}
		nodes[node] = s.Name
	}
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

	t.later("ttl_seconds", "load_test_concurrency", "acl")
	g.TTL = t.duration("ttl_seconds", 0, positive)
	g.RateLimiting = t.rateLimiting()
	g.LoadTestConcurrency = int(t.whole("load_test_concurrency", 0, 0, 10000))
	t.leave(&g, file.NerveCompatible)
	g.ACL = t.str("acl", "")
	g.Payload = t.payload()
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
	const def = "ephemeral_sequential"
	s := t.str("node_type", def)
	switch s {
	case def, "ephemeral":
	case "persistent", "persistent_sequential":
		t.fail("node_type", "node type "+s+" is not available in this version of Myelin", "use ephemeral_sequential, or ephemeral")
	default:
		t.mismatch("node_type", "a node type", "use ephemeral_sequential, or ephemeral")
	}
	return s
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

// payload are the formats to register in. Formats to come are warned of as long as Nerve's is among the list; without
// it nothing that was asked for would be published.
func (t *table) payload() []string {
	formats := t.lines("payload")
	if formats == nil {
		return []string{"nerve"}
	}
	for _, f := range formats {
		switch f {
		case "nerve":
		case "serverset", "curator":
			if slices.Contains(formats, "nerve") {
				t.warn("payload", "payload "+f+" has no effect in this version of Myelin", "it can stay")
			} else {
				t.fail("payload", "payload "+f+" is not available in this version of Myelin", "use nerve")
			}
		default:
			said := quote(f)
			if t.at("payload").expanded() {
				said = "from the environment"
			}
			t.fail("payload", "payload "+said+" is not known", "use nerve")
		}
	}
	if len(formats) == 0 && !t.at("payload").broken {
		t.fail("payload", "the list is empty", `write ["nerve"], or remove it`)
	}
	return formats
}
