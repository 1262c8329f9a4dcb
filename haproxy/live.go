package haproxy

import (
	"context"
	"encoding/csv"
	"fmt"
	"slices"
	"strconv"
	"strings"
	"time"
)

// Live is a server as it is at one moment, with what only HAProxy's statistics tell of it.
type Live struct {
	Server
	Sessions int           // current ones; -1: not told
	Queue    int           // requests that wait for this server; -1: not told
	Check    string        // the last result of its health check in HAProxy's words; empty: none yet, or not checked
	Changed  time.Duration // since it last went up or down; -1: not told
}

// Live reads the servers of one backend, and of those that want picks the statistics; a backend that does not exist is
// ErrNoBackend. The statistics of one server are asked for alone. Of several those of the whole backend are read, which is a
// dump: see Apply for what must not happen meanwhile. most bounds the servers that want may pick: with more the answer
// is a *TooManyError, before any statistics are asked for, and all servers.
func (c *Client) Live(ctx context.Context, backend string, most int, want func(Server) bool) (picked []Live, all []Server, err error) {
	if err := CheckName(backend); err != nil {
		return nil, nil, fmt.Errorf("read servers: %w", err)
	}
	reply, err := c.Exec(ctx, "show servers state "+backend)
	if err != nil {
		return nil, nil, fmt.Errorf("read servers: %w", err)
	}
	state, err := ParseState(reply)
	if err != nil {
		return nil, nil, err
	}
	all = state[backend]
	for _, s := range all {
		if want(s) {
			picked = append(picked, Live{Server: s, Sessions: -1, Queue: -1, Changed: -1})
		}
	}
	switch {
	case len(picked) == 0:
		return picked, all, nil
	case len(picked) > most:
		return nil, all, &TooManyError{Backend: backend, Servers: len(picked), Most: most}
	}
	id, err := backendID(reply)
	if err != nil {
		return nil, nil, err
	}
	which := "-1"
	if len(picked) == 1 {
		which = strconv.Itoa(picked[0].ID)
	}
	const servers = "4" // the rows of servers, in the bits of "show stat"
	if reply, err = c.Exec(ctx, "show stat "+id+" "+servers+" "+which); err != nil {
		return nil, nil, fmt.Errorf("read statistics: %w", err)
	}
	if err := addStats(picked, reply); err != nil {
		return nil, nil, fmt.Errorf("read statistics: %w", err)
	}
	return picked, all, nil
}

// TooManyError says that more servers were asked for than are read at a time.
type TooManyError struct {
	Backend       string
	Servers, Most int
}

func (e *TooManyError) Error() string {
	return fmt.Sprintf("backend %s has %d servers, more than the %d that are read at a time", e.Backend, e.Servers, e.Most)
}

// backendID is the number of the backend in the reply to "show servers state" of one. By its name "show stat" would find
// a frontend that is called the same.
func backendID(reply string) (string, error) {
	lines := strings.SplitN(reply, "\n", 4)
	if len(lines) < 3 {
		return "", fmt.Errorf("read servers state: there is no row")
	}
	at := slices.Index(strings.Fields(strings.TrimPrefix(lines[1], "# ")), "be_id")
	row := strings.Fields(lines[2])
	if at < 0 || at >= len(row) {
		return "", fmt.Errorf("read servers state: the header has no column be_id: %q", clip(lines[1]))
	}
	if _, err := strconv.ParseUint(row[at], 10, 31); err != nil {
		return "", fmt.Errorf("read servers state: be_id is %q", clip(row[at]))
	}
	return row[at], nil
}

// addStats fills servers from the reply to "show stat", told apart by their ids. What the reply lacks stays as it is:
// a server may have gone in between.
func addStats(servers []Live, reply string) error {
	header, rows, _ := strings.Cut(strings.TrimLeft(reply, "\n"), "\n")
	header, ok := strings.CutPrefix(header, "# ")
	if !ok {
		return fmt.Errorf("%q where the header belongs", clip(header))
	}
	at := map[string]int{}
	for i, name := range strings.Split(header, ",") {
		at[name] = i
	}
	if _, ok := at["sid"]; !ok {
		return fmt.Errorf("the header has no column sid: %q", clip(header))
	}
	// A check's last answer is text of the server: HAProxy quotes it, blanks and commas and line ends included.
	r := csv.NewReader(strings.NewReader(rows))
	r.FieldsPerRecord, r.LazyQuotes = -1, true
	records, err := r.ReadAll()
	if err != nil {
		return err
	}
	byID := make(map[string]*Live, len(servers))
	for i := range servers {
		byID[strconv.Itoa(servers[i].ID)] = &servers[i]
	}
	for _, record := range records {
		cell := func(name string) string {
			if i, ok := at[name]; ok && i < len(record) {
				return record[i]
			}
			return ""
		}
		number := func(name string) int {
			n, err := strconv.Atoi(cell(name))
			if err != nil || n < 0 {
				return -1
			}
			return n
		}
		s, ok := byID[cell("sid")]
		if !ok || cell("svname") != s.Name {
			continue
		}
		s.Sessions, s.Queue = number("scur"), number("qcur")
		if n := number("lastchg"); n >= 0 {
			s.Changed = time.Duration(n) * time.Second
		}
		s.Check = checkWords(cell)
	}
	return nil
}

// checkWords writes the last result of a check for people: "Layer7 wrong status (L7STS), code 503, in 2ms: Service
// Unavailable". A star before the status says that the next check is under way.
func checkWords(cell func(string) string) string {
	status := strings.TrimSpace(strings.TrimPrefix(cell("check_status"), "*"))
	if status == "" || status == "INI" || status == "UNK" {
		return ""
	}
	text := status
	if what := cell("check_desc"); what != "" {
		text = what + " (" + status + ")"
	}
	if code := cell("check_code"); code != "" {
		text += ", code " + code
	}
	if ms := cell("check_duration"); ms != "" {
		text += ", in " + ms + "ms"
	}
	if last := cell("last_chk"); last != "" {
		text += ": " + clip(last)
	}
	return text
}
