package haproxy

import (
	"bytes"
	"cmp"
	"crypto/sha256"
	"encoding/hex"
	"hash/fnv"
	"net/netip"
	"slices"
	"strconv"
	"strings"
)

// StaticVariable is the environment variable in which a running HAProxy keeps the digest of the static part of the
// file that it was started with: "show env MYELIN_CONFIG" tells it (seen on 2.6.12).
const StaticVariable = "MYELIN_CONFIG"

// staticDigits is the length of a digest: 128 bits in hexadecimal.
const staticDigits = 32

// fileHeader begins every file. It has no time in it: equal content is equal bytes, and nothing is written or
// reloaded for it.
const fileHeader = "# Written by myelin. Changes made here by hand are overwritten: change myelin's configuration instead.\n"

// File is haproxy.cfg without the servers: everything that only a reload can change.
type File struct {
	Global         []string  // nil: built-in lines, see GlobalLines
	Defaults       []string  // nil: built-in lines, see DefaultsLines
	Extra          []Section // written as they are, behind defaults
	Services       []Service // in this order
	SharedFrontend []string  // lines of "frontend shared-frontend"; empty: there is none
	AdminSocket    string    // gets its "stats socket" line in global unless one is there; empty: none is added
	Seed           string    // of the order of servers, where Service.Order leaves it open

	// DistinctNames has a frontend named otherwise than any backend, which HAProxy asks for from 3.3 on. Otherwise
	// both have the name of their service, as SmartStack's have.
	DistinctNames bool

	// NamedDefaults names the defaults section, so that backends can be made from it at run time (3.4).
	NamedDefaults bool
}

// Section is a section written by hand, such as "listen stats".
type Section struct {
	Title string
	Lines []string
}

// Service is one service's frontend and backend.
type Service struct {
	Name        string
	BackendName string // empty: Name
	Disabled    bool   // neither frontend nor backend is written

	HasFrontend bool
	Bind        string // "127.0.0.1:8080" or the path of a unix socket; empty: Frontend has its own bind lines
	BindOptions string

	Frontend, Backend []string // lines of the one and the other
	Listen            []string // lines of either or both, by keyword
	SharedFrontend    []string // lines added to the shared frontend

	// Order of the servers: "asc" or "desc" by name, "no_shuffle" as given. Anything else is an order that differs
	// between hosts with a different File.Seed, and that a joining or leaving server does not disturb.
	Order string
}

// GlobalLines are the lines of the global section, without the mark of the digest.
func (f File) GlobalLines() []string {
	lines := f.Global
	if lines == nil {
		lines = []string{
			"maxconn 8000",
			"no strict-limits", // a low ulimit -n lowers maxconn, with a line in HAProxy's log, instead of no HAProxy at all
			"hard-stop-after 5m",
			"spread-checks 5",
		}
	}
	if f.AdminSocket != "" && !hasAdminSocket(lines, f.AdminSocket) {
		lines = append(slices.Clip(lines), "stats socket "+f.AdminSocket+" mode 600 level admin expose-fd listeners")
	}
	return lines
}

func hasAdminSocket(lines []string, path string) bool {
	return slices.ContainsFunc(lines, func(l string) bool {
		w := configWords(l)
		return len(w) > 2 && w[0] == "stats" && w[1] == "socket" && strings.TrimPrefix(w[2], "unix@") == path
	})
}

// DefaultsLines are the lines of the defaults section. The built-in ones are those of a sidecar that would rather fail
// than wait. They say "mode http", because that is what most services speak, and because the other choice fails
// quietly: HTTP through "mode tcp" works, but pins each kept-alive client to one server. A service that speaks
// something else says "mode tcp" in its listen lines. "balance roundrobin" is written out since HAProxy's own default
// is random from 3.3 on.
func (f File) DefaultsLines() []string {
	if f.Defaults != nil {
		return f.Defaults
	}
	return []string{
		"mode http",
		"balance roundrobin",
		"timeout connect 500ms",
		"timeout client 5s",
		"timeout server 5s",
		"retries 3",
		"option redispatch",
		"option dontlognull",
	}
}

// SectionName is the name of the service's backend.
func (s Service) SectionName() string { return cmp.Or(s.BackendName, s.Name) }

// FrontendLines are the lines of the service's frontend.
func (s Service) FrontendLines() []string {
	listen, _, _ := splitListen(s.Listen)
	lines := withoutRepeats(s.Frontend, listen)
	if s.Bind != "" {
		bind := "bind " + s.Bind
		if s.BindOptions != "" {
			bind += " " + s.BindOptions
		}
		lines = append(lines, bind)
	}
	return append(lines, "default_backend "+s.SectionName())
}

// BackendLines are the lines of the service's backend, without its servers.
func (s Service) BackendLines() []string {
	_, listen, _ := splitListen(s.Listen)
	return withoutRepeats(s.Backend, listen)
}

// Warnings are what is written otherwise than the reader of the configuration might expect, one sentence each.
func (f File) Warnings() []string {
	var out []string
	for _, s := range f.Services {
		_, _, unknown := splitListen(s.Listen)
		for _, l := range unknown {
			out = append(out, "service "+s.Name+": listen line "+strconv.Quote(l)+
				" has a keyword that myelin does not know; it is written into the frontend and the backend")
		}
		if len(s.SharedFrontend) > 0 && len(f.SharedFrontend) == 0 {
			out = append(out, "service "+s.Name+
				": shared_frontend has no effect without haproxy.shared_frontend, which says where it binds")
		}
	}
	return out
}

// Render is the file with its servers: the same bytes for equal arguments. servers of a backend that no service has
// are left out. A server in Drain is written like one in maintenance: HAProxy's file cannot say drain, and a process that starts from
// it must not give that server traffic before it is told to drain.
func (f File) Render(servers State) []byte {
	return f.render(servers, f.Static())
}

// Static is the digest of everything but the servers. The running HAProxy needs a reload when it was started with
// another one.
func (f File) Static() string { return StaticOfText(f.render(nil, "")) }

func (f File) render(servers State, static string) []byte {
	var b bytes.Buffer
	b.WriteString(fileHeader)
	global := f.GlobalLines()
	if static != "" {
		global = append(slices.Clip(global), "setenv "+StaticVariable+" "+static)
	}
	writeSection(&b, "global", global)
	if f.NamedDefaults {
		writeSection(&b, "defaults "+DefaultsName, f.DefaultsLines())
	} else {
		writeSection(&b, "defaults", f.DefaultsLines())
	}
	for _, e := range f.Extra {
		writeSection(&b, e.Title, e.Lines)
	}
	shared := slices.Clip(f.SharedFrontend)
	frontends := f.frontendNames()
	for i, s := range f.Services {
		if s.Disabled {
			continue
		}
		if s.HasFrontend {
			writeSection(&b, "frontend "+frontends[i], s.FrontendLines())
		}
		writeSection(&b, "backend "+s.SectionName(), s.BackendLines())
		for _, srv := range ordered(servers[s.SectionName()], s.Order, f.Seed) {
			writeServer(&b, srv)
		}
		shared = append(shared, s.SharedFrontend...)
	}
	if len(f.SharedFrontend) > 0 {
		writeSection(&b, "frontend shared-frontend", shared)
	}
	return b.Bytes()
}

// writeSection writes a section behind a blank line. A line break inside a line of the configuration begins a new
// line, as it does with Synapse.
func writeSection(b *bytes.Buffer, title string, lines []string) {
	b.WriteByte('\n')
	b.WriteString(strings.Join(strings.Fields(title), " "))
	b.WriteByte('\n')
	for _, l := range lines {
		for part := range strings.SplitSeq(l, "\n") {
			if part = strings.TrimSpace(part); part != "" {
				b.WriteByte('\t')
				b.WriteString(part)
				b.WriteByte('\n')
			}
		}
	}
}

func writeServer(b *bytes.Buffer, s Server) {
	b.WriteString("\tserver ")
	writeWord(b, s.Name)
	b.WriteByte(' ')
	b.WriteString(s.Addr.String())
	b.WriteString(" id ")
	b.WriteString(strconv.Itoa(s.ID))
	if s.Cookie != "" {
		b.WriteString(" cookie ")
		writeWord(b, s.Cookie)
	}
	for _, o := range s.Options {
		b.WriteByte(' ')
		writeWord(b, o)
	}
	b.WriteString(" weight ")
	b.WriteString(strconv.Itoa(s.Weight))
	if s.Admin != Ready {
		b.WriteString(" disabled")
	}
	b.WriteByte('\n')
}

// writeWord writes one word of a server line. Names and options of the registry have been checked before they come
// here; whatever went wrong there, one word stays one word, and one server one line.
func writeWord(b *bytes.Buffer, word string) {
	for i := range len(word) {
		if c := word[i]; c > ' ' && c != 0x7f {
			b.WriteByte(c)
		} else {
			b.WriteByte('_')
		}
	}
}

// ordered is servers in the order that the file has them; servers itself is not changed.
func ordered(servers []Server, order, seed string) []Server {
	if len(servers) > 0 && IsSlot(servers[0]) {
		return servers // by number on every host: map-based hashing goes by the place in the file
	}
	switch order {
	case "no_shuffle":
		return servers
	case "asc":
		return slices.SortedStableFunc(slices.Values(servers), byName)
	case "desc":
		return slices.SortedStableFunc(slices.Values(servers), func(a, b Server) int { return byName(b, a) })
	}
	// Places are sorted, and not servers: those are large.
	type ranked struct {
		rank uint64
		at   int
	}
	rs := make([]ranked, len(servers))
	for i := range servers {
		rs[i] = ranked{rank(seed, servers[i].Name), i}
	}
	slices.SortFunc(rs, func(a, b ranked) int {
		if a.rank != b.rank {
			return cmp.Compare(a.rank, b.rank)
		}
		return byName(servers[a.at], servers[b.at])
	})
	out := make([]Server, len(rs))
	for i, r := range rs {
		out[i] = servers[r.at]
	}
	return out
}

func byName(a, b Server) int { return strings.Compare(a.Name, b.Name) }

// rank is a server's place in the seeded order. It depends on nothing but seed and name, so that others come and go
// without moving it.
func rank(seed, name string) uint64 {
	h := fnv.New64a()
	_, _ = h.Write([]byte(seed))
	_, _ = h.Write([]byte{0})
	_, _ = h.Write([]byte(name))
	return h.Sum64()
}

// StaticOfText is File.Static computed from a file's text, also one that Synapse wrote: comments, blanks, the mark
// itself, the name of the defaults section and the agent's servers do not count, nor do backends without lines of their
// own: whether the HAProxy that runs has them, it can be asked, and some can make them without a reload. A server line of a backend is the agent's when "id" and a number
// follow the address, which is how Synapse and Render write it; a hand-written one should have them further behind.
func StaticOfText(cfg []byte) string {
	h := sha256.New()
	var line []byte
	add := func(words []string) {
		line = line[:0]
		for _, w := range words {
			line = append(append(line, w...), 0)
		}
		_, _ = h.Write(append(line, '\n'))
	}
	var title []string // of a backend that had no line yet
	eachLine(cfg, func(kind, _, _ string, words []string) {
		switch {
		case isAgentServer(kind, words) || isMark(kind, words):
			return
		case isPlainTitle(words):
			title = words
			return
		case isSection(words[0]):
			title = nil
			if len(words) == 2 && words[0] == "defaults" && words[1] == DefaultsName {
				words = words[:1]
			}
		case title != nil:
			add(title)
			title = nil
		}
		add(words)
	})
	return hex.EncodeToString(h.Sum(nil))[:staticDigits]
}

func isMark(kind string, words []string) bool {
	return kind == "global" && len(words) > 1 && words[0] == "setenv" && words[1] == StaticVariable
}

func isAgentServer(kind string, words []string) bool {
	if kind != "backend" || len(words) < 5 || words[0] != "server" || words[3] != "id" {
		return false
	}
	_, err := strconv.Atoi(words[4])
	return err == nil
}

// isPlainTitle tells whether a line begins a backend that takes everything from the defaults section above it.
func isPlainTitle(words []string) bool { return len(words) == 2 && words[0] == "backend" }

// Plain tells whether the service is a backend without a frontend and without lines of its own, so that a HAProxy which
// can make backends at run time can make it.
func (s Service) Plain() bool { return !s.Disabled && !s.HasFrontend && len(s.BackendLines()) == 0 }

// CanAddBackends tells whether a backend made at run time would be as the file has it: made from the defaults section
// that the file's own backends follow.
func (f File) CanAddBackends() bool {
	return f.NamedDefaults && !slices.ContainsFunc(f.Extra, func(s Section) bool {
		w := configWords(s.Title)
		return len(w) > 0 && w[0] == "defaults"
	})
}

// Drops names the plain backends of an earlier file, given by its text, that f has no more, sorted.
func (f File) Drops(earlier []byte) []string {
	has := map[string]bool{}
	eachLine(f.render(nil, ""), func(_, _, _ string, words []string) {
		if len(words) > 1 && (words[0] == "backend" || words[0] == "listen") {
			has[words[1]] = true
		}
	})
	var plain []string
	eachLine(earlier, func(kind, name, _ string, words []string) {
		switch {
		case isPlainTitle(words):
			plain = append(plain, name)
		case kind == "backend" && !isSection(words[0]) && !isAgentServer(kind, words):
			plain = slices.DeleteFunc(plain, func(p string) bool { return p == name })
		}
	})
	plain = slices.DeleteFunc(plain, func(p string) bool { return has[p] })
	slices.Sort(plain)
	return slices.Compact(plain)
}

// ServersOfText are the servers in a file that Render or Synapse wrote, in the file's order: what HAProxy cannot tell
// about the servers that it was started with, above all their options. For Render's files it is the exact inverse,
// but that Drain has become Ready. Servers at a host name, which only Synapse writes, are left out. Every backend of
// the file has an entry.
func ServersOfText(cfg []byte) State {
	state := State{}
	eachLine(cfg, func(kind, name, text string, words []string) {
		if kind != "backend" {
			return
		}
		if _, ok := state[name]; !ok {
			state[name] = nil
		}
		if !isAgentServer(kind, words) {
			return
		}
		// By blanks alone: Options are words as they are written, with their quotes.
		words = strings.FieldsFunc(text, func(r rune) bool { return r == ' ' || r == '\t' || r == '\r' })
		if s, ok := serverOfWords(words); ok {
			state[name] = append(state[name], s)
		}
	})
	return state
}

// serverOfWords reads "server NAME ADDR id N [cookie V] OPTIONS... [weight W] [disabled]". What stands at a fixed
// place is read from there, so that an option's argument may be any word.
func serverOfWords(words []string) (Server, bool) {
	addr, ok := parseAddr(words[2])
	if !ok {
		return Server{}, false
	}
	s := Server{Name: words[1], Addr: addr, Weight: 1}
	s.ID, _ = strconv.Atoi(words[4]) // isAgentServer has looked at it
	rest := words[5:]
	if len(rest) > 1 && rest[0] == "cookie" {
		s.Cookie, rest = rest[1], rest[2:]
	}
	if n := len(rest); n > 0 && rest[n-1] == "disabled" {
		s.Admin, rest = Maint, rest[:n-1]
	}
	if n := len(rest); n > 1 && rest[n-2] == "weight" {
		if w, err := strconv.Atoi(rest[n-1]); err == nil {
			s.Weight, rest = w, rest[:n-2]
		}
	}
	if len(rest) > 0 {
		s.Options = slices.Clone(rest)
	}
	return s, true
}

// parseAddr reads an address and port; Synapse writes IPv6 addresses without brackets.
func parseAddr(s string) (netip.AddrPort, bool) {
	if a, err := netip.ParseAddrPort(s); err == nil {
		return a, true
	}
	i := strings.LastIndexByte(s, ':')
	if i < 0 {
		return netip.AddrPort{}, false
	}
	ip, err := netip.ParseAddr(s[:i])
	if err != nil {
		return netip.AddrPort{}, false
	}
	port, err := strconv.ParseUint(s[i+1:], 10, 16)
	return netip.AddrPortFrom(ip, uint16(port)), err == nil
}

// eachLine calls f with the text and the words of every line that has some, and the section that it is in: its kind
// ("backend") and name. A section's own title line is part of it.
func eachLine(cfg []byte, f func(kind, name, text string, words []string)) {
	kind, name := "", ""
	for line := range strings.SplitSeq(string(cfg), "\n") {
		words := configWords(line)
		if len(words) == 0 {
			continue
		}
		if isSection(words[0]) {
			kind, name = words[0], ""
			if len(words) > 1 {
				name = words[1]
			}
		}
		f(kind, name, line, words)
	}
}

// isSection tells whether a word begins a section; HAProxy knows them by the word alone, wherever it stands (2.6 to
// 3.4).
func isSection(word string) bool {
	switch word {
	case "global", "defaults", "frontend", "backend", "listen", "peers", "resolvers", "mailers", "userlist", "cache",
		"program", "ring", "http-errors", "fcgi-app", "log-forward", "log-profile", "crt-store", "traces", "acme":
		return true
	}
	return false
}
