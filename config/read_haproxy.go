package config

import (
	"cmp"
	"fmt"
	"net"
	"net/netip"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"time"
)

// proxyName is what HAProxy takes as the name of a section (2.6: invalid_char of ha_proxy names).
var proxyName = regexp.MustCompile(`^[A-Za-z0-9_.:-]+$`)

// haproxy reads the top-level haproxy section and its defaults.
func (r *reader) haproxy(root *table, stateDir string) HAProxy {
	n := root.value("haproxy")
	h := HAProxy{
		Present: n != nil, Binary: "haproxy", BindAddress: "127.0.0.1",
		DoWrites: true, DoSocket: true, DoReloads: true, UseNerveWeights: true,
		RestartInterval: 2 * time.Second, StateFileTTL: 24 * time.Hour,
		RegistryOptions: DefaultRegistryOptions(), MaxServers: 20000, ManualChanges: time.Hour,
	}
	t := root.sub("haproxy")
	if t == nil {
		h.Run = true
		r.runPaths(root, &h, stateDir)
		return h
	}
	h.Global, h.Defaults = t.lines("global"), t.lines("defaults")
	h.ExtraSections = t.sections("extra_sections")
	h.Binary = t.filePath("binary", h.Binary)
	h.DoWrites = t.flag("do_writes", true)
	h.DoSocket = t.flag("do_socket", true)
	h.DoReloads = t.flag("do_reloads", true)
	h.DoChecks = t.flag("do_checks", false)
	h.NoChecks = t.value("do_checks") != nil && !h.DoChecks
	h.ConfigFilePath = t.filePath("config_file_path", "")
	h.CandidateConfigFilePath = t.filePath("candidate_config_file_path", "")
	h.SocketFilePaths = t.lines("socket_file_path")
	t.sockets("socket_file_path")
	h.MasterSocketPaths = t.lines("master_socket_path")
	t.sockets("master_socket_path")
	h.ReloadCommand = t.str("reload_command", "")
	h.CheckCommand = t.str("check_command", "")
	h.BindAddress = t.bindAddress(h.BindAddress)
	h.SharedFrontend = t.lines("shared_frontend")
	if h.FrontendNames = t.choice("frontend_names", "auto", "auto", "same", "distinct"); h.FrontendNames == "auto" {
		h.FrontendNames = ""
	}
	h.RestartInterval = t.duration("restart_interval", h.RestartInterval, 0)
	h.RestartJitter = t.fraction("restart_jitter", 0)
	h.ServerOrderSeed = t.seed("server_order_seed")
	h.UseNerveWeights = t.flag("use_nerve_weights", h.UseNerveWeights)

	h.HealthGate = t.flag("health_gate", false)
	h.DeleteAfter = t.duration("delete_after", 0, 0)
	h.ShutdownSessionsAfter = t.duration("shutdown_sessions_after", 0, 0)
	h.ManualChanges = t.duration("manual_changes", h.ManualChanges, 0)
	h.StateFilePath = t.filePath("state_file_path", "")
	h.StateFileTTL = t.duration("state_file_ttl", h.StateFileTTL, 0)
	t.ignored("max_server_id", "ids follow from the servers' addresses and are at most 1048575")
	h.RegistryOptions = t.registryOptions("registry_options")
	h.MaxServers = int(t.whole("max_servers", int64(h.MaxServers), 1, 1<<20-1))

	r.gate = h.HealthGate

	// Someone who turns both ways of control off does not want a HAProxy started either.
	handsOff := !h.DoSocket && !h.DoReloads
	h.Run = t.flag("run", len(h.SocketFilePaths) == 0 && h.ReloadCommand == "" && len(h.MasterSocketPaths) == 0 && !handsOff)
	if h.Run {
		if !h.DoWrites {
			t.fail("do_writes", "a HAProxy that Myelin runs needs its file written", "remove do_writes, or write run = false")
		}
		if h.ReloadCommand != "" {
			t.ignored("reload_command", "Myelin reloads the HAProxy that it runs itself")
		}
		t.ignored("master_socket_path", "the HAProxy that Myelin runs has its master's socket beside its configuration")
		h.MasterSocketPaths = nil
		if len(h.SocketFilePaths) > 1 {
			t.fail("socket_file_path", "a HAProxy that Myelin runs has one admin socket", "write one path, or write run = false")
		}
		r.runPaths(root, &h, stateDir)
	} else {
		t.companions(h)
		t.masters(h)
	}
	if h.CandidateConfigFilePath == "" && h.ConfigFilePath != "" {
		h.CandidateConfigFilePath = h.ConfigFilePath + ".tmp"
	}
	if h.DoChecks && h.CheckCommand == "" && !h.Run {
		candidate := cmp.Or(h.CandidateConfigFilePath, "/etc/haproxy/haproxy.cfg.tmp")
		t.fail("check_command", "do_checks needs check_command", `write check_command = "haproxy -c -f `+clip(candidate)+`"`)
	}
	t.done()
	return h
}

// DefaultRegistryOptions are the option words that registrations may use unless the file says otherwise.
func DefaultRegistryOptions() []string { return []string{"weight", "backup", "maxconn", "slowstart"} }

// RegistryWords are the option words that a file can allow registrations to use: those that concern the registration's
// own server alone, and whose arguments are checked.
func RegistryWords() []string {
	return []string{
		"weight", "backup", "maxconn", "slowstart",
		"check", "cookie", "disabled", "downinter", "enabled", "error-limit", "fall", "fastinter", "id", "inter", "maxqueue",
		"minconn", "observe", "on-error", "on-marked-down", "on-marked-up", "port", "proto", "rise", "send-proxy", "send-proxy-v2",
	}
}

// registryOptions are words of RegistryWords.
func (t *table) registryOptions(key string) []string {
	n := t.value(key)
	if n == nil {
		return DefaultRegistryOptions()
	}
	words := t.lines(key) // none is a choice
	broken := slices.ContainsFunc(n.items, func(it *node) bool { return it.broken })
	for i, w := range words {
		if broken || slices.Contains(RegistryWords(), w) {
			continue
		}
		it, path := n, join(t.path, key)
		if n.kind == list {
			it, path = n.items[i], index(path, i)
		}
		t.r.mismatch(it, path, "an option that registrations can be allowed to use", "choose from "+strings.Join(RegistryWords(), ", "))
	}
	return words
}

// runPaths fills in where the files of a HAProxy that Myelin runs are. Its master socket is beside its configuration.
func (r *reader) runPaths(root *table, h *HAProxy, stateDir string) {
	if h.ConfigFilePath == "" {
		h.ConfigFilePath = filepath.Join(stateDir, "haproxy.cfg")
	}
	if len(h.SocketFilePaths) == 0 {
		h.SocketFilePaths = []string{filepath.Join(stateDir, "haproxy.sock")}
		if !validSocket.MatchString(stateDir) {
			r.fail(root.at("state_dir"), "state_dir", "HAProxy's socket would be below it, and its path cannot be a word of haproxy.cfg", "use no blanks, quotes, # or \\ in it")
		}
	}
	if h.CandidateConfigFilePath == "" {
		h.CandidateConfigFilePath = h.ConfigFilePath + ".tmp"
	}
	if longest := filepath.Join(filepath.Dir(h.ConfigFilePath), "haproxy-master.sock"); len(longest) > longestSocket {
		r.fail(root.at("state_dir"), "state_dir", fmt.Sprintf("the path of HAProxy's master socket, beside its configuration, would have %d bytes; HAProxy can bind to %d at most",
			len(longest), longestSocket), "write a shorter state_dir or haproxy.config_file_path")
	}
}

// companions: each do_ key of a HAProxy that others run needs the key that says how.
func (t *table) companions(h HAProxy) {
	master := t.given("master_socket_path")
	for _, c := range []struct {
		on          bool
		key, needs  string
		have        bool
		remedy, off string
	}{
		{h.DoWrites, "do_writes", "config_file_path", h.ConfigFilePath != "", `write the path of haproxy.cfg, config_file_path = "/etc/haproxy/haproxy.cfg"`, "do_writes = false"},
		{h.DoSocket, "do_socket", "socket_file_path", len(h.SocketFilePaths) > 0, `write the path of HAProxy's admin socket, socket_file_path = "/run/haproxy.sock"`, "do_socket = false"},
		{h.DoReloads, "do_reloads", "reload_command", h.ReloadCommand != "" || len(h.MasterSocketPaths) > 0 || master != nil && master.broken,
			`write reload_command = "systemctl reload haproxy", or master_socket_path = "/run/haproxy-master.sock" where HAProxy runs with -W -S`, "do_reloads = false"},
	} {
		if n := t.given(c.needs); c.on && !c.have && (n == nil || !n.broken) {
			t.fail(c.needs, c.key+" needs "+c.needs, c.remedy+", or "+c.off)
		}
	}
}

// masters: HAProxys are told apart by their place in the list.
func (t *table) masters(h HAProxy) {
	if n, m := len(h.MasterSocketPaths), len(h.SocketFilePaths); n > 0 && h.DoSocket && m > 0 && n != m {
		t.fail("master_socket_path", fmt.Sprintf("has %d paths, and socket_file_path has %d", n, m), "write the path of one master's socket for each admin socket, in the same order")
	}
}

// validSocket is a path that is one word of haproxy.cfg as it stands.
var validSocket = regexp.MustCompile(`^[^\s"'#\\]+$`)

// sockets complains about the paths of a list, or of a text alone, that HAProxy could not bind to.
func (t *table) sockets(key string) {
	n := t.value(key)
	if n == nil {
		return
	}
	check := func(n *node, path string) {
		switch {
		case n.kind != text || n.broken: // complained about
		case !validSocket.MatchString(n.text):
			t.r.mismatch(n, path, "the path of a socket", `write for example "/run/haproxy/admin.sock"`)
		default:
			t.r.socketPath(n, path, n.text)
		}
	}
	path := join(t.path, key)
	check(n, path)
	for i, it := range n.items {
		check(it, index(path, i))
	}
}

// sections are hand-written sections of haproxy.cfg, in file order.
func (t *table) sections(key string) []Section {
	s := t.sub(key)
	if s == nil {
		return nil
	}
	var out []Section
	for _, e := range s.n.entries {
		title := strings.TrimSpace(e.key)
		if title == "" || strings.ContainsFunc(title, func(c rune) bool { return isControl(c) && c != '\t' }) {
			s.fail(e.key, "is not the title of a section", `write for example "listen stats"`)
			continue
		}
		out = append(out, Section{Title: title, Lines: s.lines(e.key)})
	}
	return out
}

// bindAddress is what stands before the port of a bind line, or def.
func (t *table) bindAddress(def string) string {
	s := t.str("bind_address", def)
	if n := t.value("bind_address"); n != nil && (s == "" || strings.ContainsAny(s, " \t\"'#\\")) {
		t.mismatch("bind_address", "an address to bind to", `write for example "127.0.0.1"`)
		return def
	}
	if path := strings.TrimPrefix(s, "unix@"); strings.HasPrefix(path, "/") {
		t.r.socketPath(t.at("bind_address"), join(t.path, "bind_address"), path)
	}
	return s
}

// serverOptions are the words of a server line. Synapse expands %{host}, %{port} and %{name} in them, and stops at
// any other name.
func (t *table) serverOptions(key string) string {
	s := t.str(key, "")
	for _, m := range template.FindAllStringSubmatch(s, -1) {
		if name := m[1]; m[0] != "%%" && name != "host" && name != "port" && name != "name" {
			t.fail(key, fmt.Sprintf("%%{%s} stands for nothing", clip(name)), "use %{host}, %{port} or %{name}, or %% for a per cent sign")
		}
	}
	return s
}

var template = regexp.MustCompile(`%%|%\{([^}]*)\}`)

// serviceHAProxy reads services.<name>.haproxy. portOverride is the old place of backend_port_override.
func (t *table) serviceHAProxy() (h ServiceHAProxy, portOverride uint16) {
	s := t.sub("haproxy")
	if s == nil {
		return h, 0
	}
	defer s.done()
	h.Disabled = s.flag("disabled", false)
	if n := s.given("port"); n != nil && !n.broken {
		if n.kind == null || n.kind == text && n.text == "null" { // TOML has no null
			h.BindOnly = true
		} else if h.Port = s.port("port"); h.Port != 0 {
			h.PortSet = true
		}
	}
	h.BindAddress = s.bindAddress("")
	if h.BindOnly && s.given("bind_address") == nil {
		s.fail("bind_address", "port is null, so bind_address must say where to listen", `write the path of a socket, bind_address = "/run/myelin/x.sock"`)
	}
	h.BindOptions = s.str("bind_options", "")
	h.ServerOptions = s.serverOptions("server_options")
	h.Frontend, h.Backend, h.Listen = s.lines("frontend"), s.lines("backend"), s.lines("listen")
	h.SharedFrontend = s.lines("shared_frontend")
	if h.BackendName = s.str("backend_name", ""); h.BackendName != "" && !proxyName.MatchString(h.BackendName) {
		s.mismatch("backend_name", "the name of a section of haproxy.cfg", "use only letters, digits and _ . : -")
	}
	h.BackendOrder = s.choice("backend_order", "", "shuffle", "asc", "desc", "no_shuffle")
	h.HealthGate = s.flag("health_gate", t.r.gate)
	if h.HealthGate && !slices.Contains(strings.Fields(h.ServerOptions), "check") && s.given("health_gate") != nil {
		s.warn("health_gate", "waits for HAProxy's check, which server_options does not ask for", `add the word check to server_options, unless a default-server line has it`)
	}
	h.CookieValueHash = s.choice("cookie_value_method", "name", "name", "hash") == "hash"
	if s.given("use_nerve_weights") != nil {
		s.warn("use_nerve_weights", "has no effect here, as in Synapse", "write it in the top-level haproxy section")
	}
	if s.given("server_port_override") != nil {
		s.warn("server_port_override", "is the old name of backend_port_override", "write backend_port_override in the service")
		portOverride = s.port("server_port_override")
	}
	return h, portOverride
}

// validListen: "host:port", ":port" or "[::1]:port"; port 0 lets the system choose.
func validListen(s string) bool {
	host, port, err := net.SplitHostPort(s)
	if err != nil {
		return false
	}
	if _, err := strconv.ParseUint(port, 10, 16); err != nil {
		return false
	}
	if host == "" {
		return true
	}
	_, err = netip.ParseAddr(host)
	return err == nil || validHost(host)
}
