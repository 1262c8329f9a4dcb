package haproxy

import (
	"errors"
	"fmt"
	"net/netip"
	"slices"
	"strconv"
	"strings"
)

// parseUnpublished reads the statistics of backends: CSV under a header whose columns depend on the version, with names
// that need no quotes. The status of one that is not published reads "UP (UNPUB)".
func parseUnpublished(reply string) ([]string, error) {
	header, rows, _ := strings.Cut(strings.TrimLeft(reply, "\n"), "\n")
	columns := strings.Split(strings.TrimPrefix(header, "# "), ",")
	name, status := slices.Index(columns, "pxname"), slices.Index(columns, "status")
	if name < 0 || status < 0 {
		return nil, fmt.Errorf("the header %q has no pxname or no status", clip(header))
	}
	var out []string
	for line := range strings.Lines(rows) {
		f := strings.Split(line, ",")
		if len(f) > max(name, status) && strings.HasSuffix(f[status], "(UNPUB)") {
			out = append(out, f[name])
		}
	}
	return out, nil
}

// ParseBackends reads the reply to "show backend": the names of all backends, those without servers too. A name
// that is no legal name is an error.
func ParseBackends(reply string) ([]string, error) {
	var names []string
	header := false
	for line := range strings.Lines(reply) {
		line = strings.TrimRight(line, "\r\n")
		switch {
		case line == "":
		case strings.HasPrefix(line, "#"):
			header = true
		case !header:
			return nil, fmt.Errorf("read backends: %q where the header belongs", clip(line))
		default:
			if !legalName(line) {
				return nil, fmt.Errorf("read backends: no legal name: %q", clip(line))
			}
			names = append(names, line)
		}
	}
	if !header {
		return nil, errors.New("read backends: the reply is empty")
	}
	return names, nil
}

// The columns of "show servers state" that are read, found by name: there are 20 columns on 2.2 and 25 from 2.6 on
// (reference: HAProxy's management guide, "show servers state").
const (
	colBackend = iota
	colID
	colName
	colAddr
	colOp
	colAdmin
	colWeight
	colFirstWeight
	colCheckStatus
	colCheckResult
	colCheckState
	colAgentState
	colFQDN
	colPort
	columns
)

func columnNames() [columns]string {
	return [columns]string{
		"be_name", "srv_id", "srv_name", "srv_addr", "srv_op_state", "srv_admin_state", "srv_uweight", "srv_iweight",
		"srv_check_status", "srv_check_result", "srv_check_state", "srv_agent_state", "srv_fqdn", "srv_port",
	}
}

// The bits of srv_admin_state. Bit 4 says that the configuration had the word "disabled" and bit 64 that the name was
// set over the socket: both are history and decide nothing.
const (
	adminMaint = 1 | 2 | 32 // forced, inherited from a tracked server, no address
	adminDrain = 8 | 16     // forced, inherited
)

// ParseState reads the reply to "show servers state". Backends without servers do not appear in it (see
// Client.State). A row that cannot be read is an error: it is never left out, since a server left out would be
// added once more. The names in the result share the memory of reply.
func ParseState(reply string) (State, error) {
	version, rest, _ := strings.Cut(reply, "\n")
	if version = strings.TrimRight(version, "\r"); version != "1" {
		return nil, fmt.Errorf("read servers state: format version is %q, 1 is known", clip(version))
	}
	header, rest, _ := strings.Cut(rest, "\n")
	layout, err := parseHeader(strings.TrimRight(header, "\r"))
	if err != nil {
		return nil, fmt.Errorf("read servers state: %w", err)
	}

	// The rows of a backend follow one another, so all servers share one array, cut up by backend.
	state := State{}
	servers := make([]Server, 0, strings.Count(rest, "\n")+1)
	backend, first := "", 0
	flush := func() {
		if part := slices.Clip(servers[first:]); len(part) > 0 {
			if before, ok := state[backend]; ok {
				part = slices.Concat(before, part)
			}
			state[backend], first = part, len(servers)
		}
	}
	for number := 3; rest != ""; number++ {
		var line string
		line, rest, _ = strings.Cut(rest, "\n")
		if line = strings.TrimRight(line, " \r"); line == "" {
			continue
		}
		name, server, err := layout.row(line)
		if err != nil {
			return nil, fmt.Errorf("read servers state: line %d: %w", number, err)
		}
		if name != backend {
			flush()
			backend = name
		}
		servers = append(servers, server)
	}
	flush()
	return state, nil
}

// stateLayout says which column of a row goes where.
type stateLayout struct {
	fields []int8 // by position in the row: one of the col constants, or -1
}

func parseHeader(line string) (stateLayout, error) {
	text, ok := strings.CutPrefix(line, "# ")
	if !ok {
		return stateLayout{}, fmt.Errorf("%q where the header belongs", clip(line))
	}
	names := columnNames()
	var seen [columns]bool
	var l stateLayout
	for _, title := range strings.Fields(text) {
		field := int8(-1)
		for i, name := range names {
			if title == name {
				field, seen[i] = int8(i), true
			}
		}
		l.fields = append(l.fields, field)
	}
	for i, ok := range seen {
		if !ok {
			return stateLayout{}, fmt.Errorf("the header has no column %s", names[i])
		}
	}
	return l, nil
}

// row reads one server. It allocates nothing: with 10,000 servers it is called 10,000 times a read.
func (l stateLayout) row(line string) (backend string, s Server, err error) {
	var v [columns]string
	column, start := 0, 0
	for i := 0; i <= len(line); i++ { // the words are short: a search for each blank costs more than this
		if i < len(line) && line[i] != ' ' {
			continue
		}
		switch {
		case i == start:
			return "", s, fmt.Errorf("column %d is empty: %q", column+1, clip(line))
		case column == len(l.fields):
			return "", s, fmt.Errorf("more columns than the header's %d: %q", len(l.fields), clip(line))
		}
		if field := l.fields[column]; field >= 0 {
			v[field] = line[start:i]
		}
		column, start = column+1, i+1
	}
	if column < len(l.fields) {
		return "", s, fmt.Errorf("%d columns, the header has %d: %q", column, len(l.fields), clip(line))
	}

	// HAProxy sets no limit to the length of a name; one that is longer than ours is foreign and harmless.
	if !legalName(v[colBackend]) || !legalName(v[colName]) {
		return "", s, fmt.Errorf("no legal name: %q", clip(line))
	}
	s.Name = v[colName]
	p := numbers{line: line}
	s.ID = p.number("srv_id", v[colID], 1, 1<<31-1)
	s.Op = Op(p.number("srv_op_state", v[colOp], 0, int(OpStopping)))
	s.Admin = adminOf(p.number("srv_admin_state", v[colAdmin], 0, 1<<16-1))
	s.Weight = p.number("srv_uweight", v[colWeight], 0, 256)
	s.FirstWeight = p.number("srv_iweight", v[colFirstWeight], 0, 256)
	s.CheckResult = p.number("srv_check_result", v[colCheckResult], 0, 1<<16-1)
	if status := p.number("srv_check_status", v[colCheckStatus], 0, 1<<16-1); s.CheckResult == 0 && statusPassed(status) {
		s.CheckResult = checkPassed
	}
	s.Check = Probe(p.number("srv_check_state", v[colCheckState], 0, 1<<16-1))
	s.Agent = Probe(p.number("srv_agent_state", v[colAgentState], 0, 1<<16-1))
	port := p.number("srv_port", v[colPort], 0, 1<<16-1)
	if p.err != nil {
		return "", s, p.err
	}

	if v[colFQDN] != "-" {
		s.FQDN = v[colFQDN]
	}
	var ip netip.Addr
	if v[colAddr] != "-" { // a name that is not resolved, or a unix socket
		if ip, err = netip.ParseAddr(v[colAddr]); err != nil {
			return "", s, fmt.Errorf("srv_addr: %w", err)
		}
	}
	s.Addr = netip.AddrPortFrom(ip, uint16(port))
	return v[colBackend], s, nil
}

// statusPassed tells whether a srv_check_status is that of a check that passed (HCHK_STATUS_* of HAProxy's
// include/haproxy/check-t.h). It is that of the last check that has ended, while the result is 0 as long as the next one
// is under way: with a slow check that is most of the time.
func statusPassed(status int) bool {
	const l4, l6, l7, external = 6, 9, 15, 20
	return status == l4 || status == l6 || status == l7 || status == external
}

func adminOf(bits int) Admin {
	switch {
	case bits&adminMaint != 0:
		return Maint
	case bits&adminDrain != 0:
		return Drain
	}
	return Ready
}

// numbers reads several numbers of one line and keeps the first error.
type numbers struct {
	line string
	err  error
}

func (p *numbers) number(column, text string, low, high int) int {
	n, err := strconv.Atoi(text)
	if p.err == nil && (err != nil || n < low || n > high) {
		p.err = fmt.Errorf("%s is %q, not a number from %d to %d: %q", column, clip(text), low, high, clip(p.line))
	}
	return n
}

// clip bounds text that goes into an error.
func clip(s string) string {
	const limit = 200
	if len(s) > limit {
		return s[:limit] + "..."
	}
	return s
}
