package agent

import (
	"cmp"
	"crypto/sha1"
	"encoding/hex"
	"net/netip"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/myelin-sd/myelin/config"
	"github.com/myelin-sd/myelin/discovery"
	"github.com/myelin-sd/myelin/haproxy"
)

// gateInterval is how often a gated server that is down is checked.
const gateInterval = "250ms"

// backend is a service as HAProxy is to have it, before its servers are looked at: what a server line of it needs.
type backend struct {
	name    string              // HAProxy's section
	options []string            // words every server gets: default-server's, which HAProxy does not apply at run time, then the service's
	cookies bool                // a cookie directive is in force, so that servers need their cookie
	hash    bool                // cookie_value_method = "hash"
	weights bool                // weights of the registry are used
	foreign []string            // names of servers written by hand into the backend
	drain   time.Duration       // a leaving server drains for so long first
	gate    bool                // a new server waits for HAProxy's first good check
	allowed map[string]bool     // option words that registrations may use
	ids     map[haproxy.Key]int // of servers that keep an id which is not Myelin's
	most    int                 // servers that the backend may have; 0: any number

	plain bool // it can be made at run time, by a HAProxy that makes backends
	gone  bool // it was ours, and the configuration has it no more: it is to be taken away

	lines, defaultsLines []string // they decide what can be done at run time
}

// newBackend gathers what the configuration says about a service's servers.
func newBackend(c *config.Agent, f haproxy.File, s haproxy.Service, cs config.Service) backend {
	defaults, lines := f.DefaultsLines(), s.BackendLines()
	options := append(haproxy.DefaultServerWords(defaults, lines), splitWords(cs.HAProxy.ServerOptions)...)
	if cs.HAProxy.HealthGate && slices.Contains(options, "check") {
		// The first check of a server added at run time comes after downinter (2.6 to 3.2) or, where init-state holds it
		// down, after fastinter (3.4.7); after a whole inter where there is none.
		for _, word := range []string{"fastinter", "downinter"} {
			if !slices.Contains(options, word) {
				options = append(options, word, gateInterval)
			}
		}
	}
	return backend{
		name:    s.SectionName(),
		options: options,
		drain:   cs.DrainTimeout,
		gate:    cs.HAProxy.HealthGate,
		cookies: !modeTCP(lines) && hasCookie(defaults, lines),
		hash:    cs.HAProxy.CookieValueHash,
		weights: c.HAProxy.UseNerveWeights,
		foreign: handWritten(lines),
		allowed: allowedWords(c.HAProxy.RegistryOptions), most: c.HAProxy.MaxServers,
		lines: lines, defaultsLines: defaults,
		plain: s.Plain() && f.CanAddBackends(),
	}
}

// resolve turns a host name into an address; ok is false while the name is unknown.
type resolve func(host, server string) (ip netip.Addr, ok bool)

// refused is an instance that cannot become a server, or not as it asks, with the reason.
type refused struct {
	Instance discovery.Instance
	Reason   string
	Unknown  bool // it could be one, but its address is not known yet
	Kept     bool // it is one, without the options that Reason names
}

// memo is the last result of servers for a service, so that a change of one instance of ten thousand is worked out
// for that one. It is correct because server is pure in the instance, once its address needs no lookup.
type memo struct {
	active  []discovery.Instance
	at      []int32           // of active, one each: its place in servers; -1 where there is none, or it is not to be kept. nil: the same place
	asked   map[string]int    // by server name: the id that the registration asks for
	ignored map[string]string // by server name: the options that were left out
	servers []haproxy.Server  // with the ids that they were given
	plain   bool              // every instance became a server of an address, with the id that it asks for if any
	probed  []idRange         // of those that wanted an id that another had
}

// placeOf is where the server is that the instance at i became; -1: nowhere.
func (m *memo) placeOf(i int) int32 {
	if m.at == nil {
		return int32(i)
	}
	return m.at[i]
}

// note keeps what the registration of a server asks for. Few ask for anything.
func (m *memo) note(server string, asked int, ignored string) {
	if asked != 0 {
		if m.asked == nil {
			m.asked = map[string]int{}
		}
		m.asked[server] = asked
	}
	if ignored != "" {
		if m.ignored == nil {
			m.ignored = map[string]string{}
		}
		m.ignored[server] = ignored
	}
}

// idRange are the ids that a server was refused, because others had them: from the one it wanted to the one before it
// was given. It goes round at the end.
type idRange struct{ from, to int }

func (r idRange) has(id int) bool {
	if r.from <= r.to {
		return r.from <= id && id < r.to
	}
	return id >= r.from || id < r.to
}

// refusedIDs are the ids that the servers were refused. ok is false when one was refused an id that it asks for: such a
// case is worked out whole.
func refusedIDs(servers []haproxy.Server, asked map[string]int) (out []idRange, ok bool) {
	for _, s := range servers {
		given, wants := s.ID, asked[s.Name]
		s.ID = wants
		if w := haproxy.WantedID(s); w != given {
			if wants != 0 {
				return nil, false
			}
			out = append(out, idRange{w, given})
		}
	}
	return out, true
}

// find is where in is among those of the last time from place at on, or -1. Both lists are mostly in the same order, so
// that the search begins where the last one ended.
func (m *memo) find(in *discovery.Instance, at int) int {
	for i := at; i < len(m.active) && i < at+reach; i++ {
		if discovery.Same(&m.active[i], in) {
			return i
		}
	}
	return -1
}

// place is the server that in became the last time, or -1.
func (m *memo) place(in *discovery.Instance, at *int) int32 {
	if m == nil {
		return -1
	}
	i := m.find(in, *at)
	if i < 0 {
		return -1
	}
	*at = i + 1
	return m.placeOf(i)
}

// servers turns the active instances into the backend's servers: but for the memo, a pure function of its arguments.
// Instances that cannot be expressed are returned with the reason; one bad registration costs only itself.
func (b backend) servers(active []discovery.Instance, lookup resolve, m *memo) ([]haproxy.Server, []refused) {
	if out, bad, ok := b.few(active, lookup, m); ok {
		return out, bad
	}
	next := memo{plain: true, active: active, at: make([]int32, len(active))}
	out := make([]haproxy.Server, 0, len(active))
	var bad []refused
	names := make(map[string]bool, len(active))
	at := 0
	for i := range active {
		in := &active[i]
		var s haproxy.Server
		var ignored, why string
		if place := m.place(in, &at); place >= 0 {
			s = m.servers[place]
			s.ID, ignored = m.asked[s.Name], m.ignored[s.Name]
		} else {
			s, ignored, why = b.server(*in, lookup)
		}
		next.at[i] = -1
		switch {
		case why != "":
			_, isIP := in.Endpoint.IP()
			bad = append(bad, refused{Instance: *in, Reason: why, Unknown: !isIP && !s.Addr.IsValid()})
			next.plain = false
		case names[s.Name]:
			bad = append(bad, refused{Instance: *in, Reason: "another registration has the same server name " + s.Name})
			next.plain = false
		default:
			names[s.Name] = true
			if _, isIP := in.Endpoint.IP(); isIP {
				next.at[i] = int32(len(out))
			} else {
				next.plain = false
			}
			out = append(out, s)
			next.note(s.Name, s.ID, ignored)
			if ignored != "" {
				bad = append(bad, refused{Instance: *in, Reason: optionsNotAllowed(ignored), Kept: true})
			}
		}
	}
	haproxy.AssignIDs(out)
	if next.plain && m != nil {
		next.at = nil
		next.probed, next.plain = refusedIDs(out, next.asked)
	}
	if next.servers = out; m != nil {
		*m = next
	}
	return out, bad
}

// mayLeave tells whether the servers from place from to place to can be left out without another server getting
// another id.
func (m *memo) mayLeave(from, to int) bool {
	for _, s := range m.servers[from:to] {
		for _, r := range m.probed {
			if r.has(s.ID) {
				return false
			}
		}
	}
	return true
}

// fewNew is how many new instances are worked out beside what is known of all others.
const fewNew = 16

// few is servers for the usual case: after a plain one, some left and at most a few joined, which are as plain. ok is
// false when it is not that case. What stays is copied in runs.
func (b backend) few(active []discovery.Instance, lookup resolve, m *memo) (out []haproxy.Server, bad []refused, ok bool) {
	if m == nil || !m.plain || len(active) > len(m.active)+fewNew {
		return nil, nil, false
	}
	if len(active) == len(m.active) && alike(active, m.active) == len(active) {
		m.active = active // what it was made of is no longer needed
		return m.servers, m.curtailed(active, m.servers), true
	}
	type newcomer struct {
		place, asked int
		ignored      string
	}
	out = make([]haproxy.Server, len(active))
	var joined []newcomer
	var left []string // servers of which something is noted
	at := 0           // of the memo's
	leave := func(to int) bool {
		for _, s := range m.servers[at:to] {
			if m.asked[s.Name] != 0 || m.ignored[s.Name] != "" {
				left = append(left, s.Name)
			}
		}
		fine := m.mayLeave(at, to)
		at = to
		return fine
	}
	for i := 0; i < len(active); {
		if n := alike(active[i:], m.active[at:]); n > 0 {
			copy(out[i:], m.servers[at:at+n])
			i, at = i+n, at+n
			continue
		}
		in := &active[i]
		if place := m.find(in, at); place >= 0 {
			if !leave(place) {
				return nil, nil, false
			}
			continue
		}
		s, ignored, why := b.server(*in, lookup)
		if _, isIP := in.Endpoint.IP(); !isIP || why != "" || len(joined) == fewNew {
			return nil, nil, false
		}
		joined = append(joined, newcomer{i, s.ID, ignored})
		s.ID = haproxy.WantedID(s)
		out[i] = s
		i++
	}
	if !leave(len(m.servers)) {
		return nil, nil, false
	}
	for j := range out {
		for _, n := range joined {
			if s := &out[n.place]; n.place != j && (s.ID == out[j].ID || s.Name == out[j].Name) {
				return nil, nil, false
			}
		}
	}
	for _, name := range left {
		delete(m.asked, name)
		delete(m.ignored, name)
	}
	for _, n := range joined {
		m.note(out[n.place].Name, n.asked, n.ignored)
	}
	m.active, m.servers = active, out
	return out, m.curtailed(active, out), true
}

// curtailed are the instances of a plain memo that are servers without some of the options that they ask for.
func (m *memo) curtailed(active []discovery.Instance, servers []haproxy.Server) (bad []refused) {
	if len(m.ignored) == 0 {
		return nil
	}
	for i := range servers {
		if ignored := m.ignored[servers[i].Name]; ignored != "" {
			bad = append(bad, refused{Instance: active[i], Reason: optionsNotAllowed(ignored), Kept: true})
		}
	}
	return bad
}

// alike is how many instances two lists have in common from their beginnings on.
func alike(a, b []discovery.Instance) int {
	for i := range min(len(a), len(b)) {
		if !discovery.Same(&a[i], &b[i]) {
			return i
		}
	}
	return min(len(a), len(b))
}

// server makes one instance a server. ignored are options of its registration that are left out; why, when it is not
// empty, says why it cannot be one.
func (b backend) server(in discovery.Instance, lookup resolve) (s haproxy.Server, ignored, why string) {
	host, port := in.Endpoint.Host(), in.Endpoint.Port()
	s = haproxy.Server{Name: haproxy.ServerName(in.Name, host, port), Weight: 1, ID: in.ServerID}

	ip, isIP := in.Endpoint.IP()
	if !isIP {
		var ok bool
		if ip, ok = lookup(host, s.Name); !ok {
			return s, "", "the name " + host + " does not resolve"
		}
	}
	s.Addr = netip.AddrPortFrom(ip, port)

	own := in.ServerOptions
	if in.Node == "" { // a server of the configuration: its options are the operator's
		own = expand(own, s.Name, host, port)
	} else {
		v := haproxy.RegistryOptions(own, b.allowed)
		if len(v.Refused) > 0 {
			return s, "", optionsNotAllowed(strings.Join(v.Refused, ", "))
		}
		own, ignored = v.Words, strings.Join(v.Ignored, ", ")
	}
	o := readOptions(append(expand(b.options, s.Name, host, port), own...))
	s.Options = o.words
	if o.weight != nil {
		s.Weight = *o.weight
	}
	if b.weights && in.Weight != nil {
		s.Weight = *in.Weight
	}
	s.Weight = min(max(s.Weight, 0), 256)
	if o.id != 0 {
		s.ID = o.id
	}
	if s.ID == 0 {
		s.ID = b.ids[haproxy.Key{Backend: b.name, Server: s.Name}]
	}
	if o.disabled {
		s.Admin = haproxy.Maint
	}
	if b.cookies {
		if s.Cookie = o.cookie; s.Cookie == "" {
			s.Cookie = s.Name
			if b.hash {
				sum := sha1.Sum([]byte(s.Name))
				s.Cookie = hex.EncodeToString(sum[:])
			}
		}
	}
	return s, ignored, ""
}

func optionsNotAllowed(options string) string {
	return "haproxy_server_options: not allowed from the registry: " + options + "; see haproxy.registry_options"
}

// allowedWords are the option words that registrations may use; nil stands for the usual ones.
func allowedWords(words []string) map[string]bool {
	if words == nil {
		words = config.DefaultRegistryOptions()
	}
	allowed := make(map[string]bool, len(words))
	for _, w := range words {
		allowed[w] = true
	}
	return allowed
}

// within leaves out what a backend is too small for, and counts it. The configuration's own servers stay, and of the
// registry's those that were registered first, by ZooKeeper's clock: every host leaves out the same ones, and a flood
// of new registrations takes nobody's place. active is not changed, and its order is kept.
func (b backend) within(active []discovery.Instance) (kept []discovery.Instance, surplus int) {
	if b.most == 0 || len(active) <= b.most {
		return active, 0
	}
	order := make([]int, len(active))
	for i := range order {
		order[i] = i
	}
	slices.SortStableFunc(order, func(i, j int) int {
		x, y := &active[i], &active[j]
		switch {
		case x.Node == "" && y.Node != "":
			return -1
		case x.Node != "" && y.Node == "":
			return 1
		}
		return cmp.Or(x.Created.Compare(y.Created), x.Compare(y))
	})
	first := order[:b.most]
	slices.Sort(first)
	for _, i := range first {
		kept = append(kept, active[i])
	}
	return kept, len(active) - b.most
}

// options are a server's option words with those that Myelin sets by other means taken out.
type options struct {
	words    []string
	weight   *int
	id       int
	cookie   string
	disabled bool
}

// addressless are words that only concern names in server lines (argument count by word). Servers get addresses,
// and "add server" refuses the words (haproxy-runtime facts, 1.4).
var addressless = map[string]int{"resolvers": 1, "resolve-prefer": 1, "resolve-net": 1, "resolve-opts": 1, "init-addr": 1}

// readOptions splits option words. A later weight, id or cookie wins, as the last word does in a server line.
func readOptions(words []string) options {
	var o options
	for i := 0; i < len(words); i++ {
		w := words[i]
		arg := ""
		if i+1 < len(words) {
			arg = words[i+1]
		}
		switch {
		case w == "weight" && arg != "":
			if n, err := strconv.Atoi(arg); err == nil {
				o.weight = &n
			}
			i++
		case w == "id" && arg != "":
			if n, err := strconv.Atoi(arg); err == nil && n > 0 {
				o.id = n
			}
			i++
		case w == "cookie" && arg != "":
			o.cookie = arg
			i++
		case w == "disabled":
			o.disabled = true
		case w == "enabled":
			o.disabled = false
		case addressless[w] > 0:
			i += addressless[w]
		default:
			o.words = append(o.words, w)
		}
	}
	return o
}

// expand fills Synapse's %{host}, %{port} and %{name} in; "%%" is a literal per cent sign.
func expand(words []string, name, host string, port uint16) []string {
	r := strings.NewReplacer("%%", "%", "%{host}", host, "%{port}", strconv.Itoa(int(port)), "%{name}", name)
	out := make([]string, len(words))
	for i, w := range words {
		out[i] = w
		if strings.Contains(w, "%") {
			out[i] = r.Replace(w)
		}
	}
	return out
}

func splitWords(s string) []string { return strings.Fields(s) }

// modeTCP: Synapse writes no cookies into a backend whose lines say "mode tcp".
func modeTCP(lines []string) bool {
	return slices.ContainsFunc(lines, func(l string) bool { return slices.Equal(strings.Fields(l), []string{"mode", "tcp"}) })
}

// hasCookie tells whether a cookie directive is in force. Without one the cookie of a server line is inert, and
// "add server" before HAProxy 3.0 refuses the word, so it is left out.
func hasCookie(groups ...[]string) bool {
	for _, lines := range groups {
		for _, l := range lines {
			if f := strings.Fields(l); len(f) > 1 && f[0] == "cookie" {
				return true
			}
		}
	}
	return false
}

// handWritten are the names of servers that the configuration's own lines put into a backend.
func handWritten(lines []string) []string {
	var names []string
	for _, l := range lines {
		if f := strings.Fields(l); len(f) > 2 && f[0] == "server" {
			names = append(names, f[1])
		}
	}
	return names
}

// fileOf is the configuration as HAProxy's file, without the servers.
func fileOf(c *config.Agent) haproxy.File {
	h := c.HAProxy
	f := haproxy.File{
		Global: h.Global, Defaults: h.Defaults,
		SharedFrontend: h.SharedFrontend, Seed: h.ServerOrderSeed,
		DistinctNames: h.FrontendNames == "distinct", NamedDefaults: h.FrontendNames == "distinct",
	}
	if h.DoSocket && len(h.SocketFilePaths) > 0 {
		f.AdminSocket = h.SocketFilePaths[0]
	}
	for _, s := range h.ExtraSections {
		f.Extra = append(f.Extra, haproxy.Section{Title: s.Title, Lines: s.Lines})
	}
	for _, s := range c.Services {
		f.Services = append(f.Services, serviceOf(h, s))
	}
	return f
}

func serviceOf(h config.HAProxy, s config.Service) haproxy.Service {
	sh := s.HAProxy
	out := haproxy.Service{
		Name: s.Name, BackendName: sh.BackendName, Disabled: sh.Disabled,
		BindOptions: sh.BindOptions, Frontend: sh.Frontend, Backend: sh.Backend, Listen: sh.Listen,
		SharedFrontend: sh.SharedFrontend, Order: sh.BackendOrder,
	}
	address := sh.BindAddress
	if address == "" {
		address = h.BindAddress
	}
	switch {
	case sh.BindOnly:
		out.HasFrontend, out.Bind = true, address
	case sh.PortSet:
		out.HasFrontend, out.Bind = true, bind(address, sh.Port)
	}
	return out
}

// bind writes HAProxy's "address:port"; an IPv6 address gets brackets.
func bind(address string, port uint16) string {
	if ip, err := netip.ParseAddr(address); err == nil && ip.Is6() {
		return netip.AddrPortFrom(ip, port).String()
	}
	return address + ":" + strconv.Itoa(int(port))
}
