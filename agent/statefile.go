package agent

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"maps"
	"math"
	"net/netip"
	"os"
	"strconv"
	"strings"
	"time"

	"github.com/myelin-sd/myelin/config"
	"github.com/myelin-sd/myelin/discovery"
	"github.com/myelin-sd/myelin/haproxy"
)

const (
	maxStateFile = 256 << 20 // bytes; Synapse's have some 300 for each server
	// generatorConfig stands among the servers of a service in Synapse's state file, for what the service was
	// configured to be.
	generatorConfig = "watcher_config_for_generator"
)

// stateEntry is one server in Synapse's state file. What Synapse may have written with any type is kept as it is.
type stateEntry struct {
	Timestamp int64 `json:"timestamp"`         // when it was last in force, in seconds since 1970
	ServerID  int   `json:"haproxy_server_id"` // the id it has in HAProxy
	Name      any   `json:"name"`
	Host      any   `json:"host"`
	Port      any   `json:"port"`
	ID        any   `json:"id"` // its sequence number in the registry
	Weight    any   `json:"weight"`
	Options   any   `json:"haproxy_server_options"`
	Labels    any   `json:"labels"`
}

// stateEntries are the servers of each service by their names in HAProxy.
type stateEntries map[string]map[string]stateEntry

// clone is a copy that shares nothing that changes.
func (e stateEntries) clone() stateEntries {
	out := make(stateEntries, len(e))
	for service, servers := range e {
		out[service] = maps.Clone(servers)
	}
	return out
}

// readStateFile reads Synapse's state file, or ours. It is never needed for correctness: what cannot be used of it is
// left out, and a file that is of no use at all is an error beside an empty result.
func readStateFile(path string) (stateEntries, error) {
	info, err := os.Stat(path)
	if err != nil {
		if errors.Is(err, fs.ErrNotExist) {
			return stateEntries{}, nil
		}
		return stateEntries{}, err
	}
	if !info.Mode().IsRegular() || info.Size() > maxStateFile {
		return stateEntries{}, fmt.Errorf("read %s: it is no plain file of sensible size", path)
	}
	text, err := os.ReadFile(path)
	if err != nil {
		return stateEntries{}, err
	}
	entries, err := parseState(text)
	if err != nil {
		return stateEntries{}, fmt.Errorf("read %s: %w", path, err)
	}
	return entries, nil
}

// stateOf reads the state file that a configuration names, if it does.
func stateOf(c *config.Agent) (stateEntries, error) {
	if c.HAProxy.StateFilePath == "" {
		return stateEntries{}, nil
	}
	return readStateFile(c.HAProxy.StateFilePath)
}

func parseState(text []byte) (stateEntries, error) {
	var services map[string]json.RawMessage
	if err := json.Unmarshal(text, &services); err != nil {
		return nil, fmt.Errorf("parse state file: %w", err)
	}
	out := make(stateEntries, len(services))
	for service, table := range services {
		var servers map[string]json.RawMessage
		if json.Unmarshal(table, &servers) != nil {
			continue
		}
		out[service] = make(map[string]stateEntry, len(servers))
		for name, raw := range servers {
			if e, ok := parseEntry(raw); ok && name != generatorConfig {
				out[service][name] = e
			}
		}
	}
	return out, nil
}

// parseEntry reads one server: times and ids may have been written as fractions.
func parseEntry(raw json.RawMessage) (stateEntry, bool) {
	var loose struct {
		stateEntry
		Timestamp float64 `json:"timestamp"`
		ServerID  float64 `json:"haproxy_server_id"`
	}
	d := json.NewDecoder(bytes.NewReader(raw))
	d.UseNumber()
	if err := d.Decode(&loose); err != nil || loose.Timestamp < 0 || loose.Timestamp > math.MaxInt32*64 {
		return stateEntry{}, false
	}
	e := loose.stateEntry
	e.Timestamp = int64(loose.Timestamp)
	if id := loose.ServerID; id >= 1 && id <= haproxy.MaxID {
		e.ServerID = int(id)
	}
	return e, true
}

// stateFile keeps Synapse's state file: for a way back to it, for the ids of servers that it had put into HAProxy, and
// for those who take the file's age as a sign of life. It belongs to one goroutine.
type stateFile struct {
	path    string
	ttl     time.Duration // how long a server that left stays in it
	entries stateEntries
}

// update brings the entries up to what is in force now. Services of which nothing is known keep what they had.
func (f *stateFile) update(views []view, w *wanted, backendOf func(i int) string, now time.Time) {
	configured := make(map[string]bool, len(views))
	for i, v := range views {
		name := v.service.Name
		configured[name] = true
		if f.entries[name] == nil {
			f.entries[name] = map[string]stateEntry{}
		}
		if v.known {
			f.take(f.entries[name], v.active, w.backends[backendOf(i)].servers, now)
			f.expire(f.entries[name], now)
		}
	}
	for name, servers := range f.entries {
		if configured[name] {
			continue
		}
		if f.expire(servers, now); len(servers) == 0 {
			delete(f.entries, name)
		}
	}
}

// take notes the servers in force, each with the instance that it was made of.
func (f *stateFile) take(entries map[string]stateEntry, active []discovery.Instance, servers []haproxy.Server, now time.Time) {
	ids := make(map[string]int, len(servers))
	for i := range servers {
		ids[servers[i].Name] = servers[i].ID
	}
	for i := range active {
		in := &active[i]
		server := haproxy.ServerName(in.Name, in.Endpoint.Host(), in.Endpoint.Port())
		if id, ok := ids[server]; ok {
			entries[server] = entryOf(in, id, now)
		}
	}
}

func (f *stateFile) expire(entries map[string]stateEntry, now time.Time) {
	for server, e := range entries {
		if now.Sub(time.Unix(e.Timestamp, 0)) > f.ttl {
			delete(entries, server)
		}
	}
}

func entryOf(in *discovery.Instance, id int, now time.Time) stateEntry {
	b := backendFields(in)
	return stateEntry{
		Timestamp: now.Unix(), ServerID: id,
		Name: b.Name, Host: b.Host, Port: b.Port, ID: b.ID, Weight: b.Weight, Options: b.Options, Labels: b.Labels,
	}
}

// text is the file as Synapse writes it: pretty-printed, each service with its servers and its configuration.
func (f *stateFile) text(views []view) ([]byte, error) {
	out := make(map[string]map[string]any, len(f.entries))
	for name, servers := range f.entries {
		out[name] = make(map[string]any, len(servers)+1)
		for server, e := range servers {
			out[name][server] = e
		}
	}
	for _, v := range views {
		if name := v.service.Name; out[name] != nil {
			out[name][generatorConfig] = synapseKeys(v.service.HAProxy)
		}
	}
	var b bytes.Buffer
	e := json.NewEncoder(&b)
	e.SetEscapeHTML(false)
	e.SetIndent("", "  ")
	if err := e.Encode(out); err != nil {
		return nil, fmt.Errorf("encode state file: %w", err)
	}
	return b.Bytes(), nil
}

// synapseKeys are a service's haproxy keys as Synapse has them, its defaults filled in.
func synapseKeys(h config.ServiceHAProxy) map[string]any {
	list := func(lines []string) []string { return append([]string{}, lines...) }
	keys := map[string]any{
		"server_options": h.ServerOptions, "frontend": list(h.Frontend), "backend": list(h.Backend), "listen": list(h.Listen),
	}
	for key, value := range map[string]string{
		"bind_address": h.BindAddress, "bind_options": h.BindOptions, "backend_name": h.BackendName, "backend_order": h.BackendOrder,
	} {
		if value != "" {
			keys[key] = value
		}
	}
	switch {
	case h.BindOnly:
		keys["port"] = nil
	case h.PortSet:
		keys["port"] = h.Port
	}
	if len(h.SharedFrontend) > 0 {
		keys["shared_frontend"] = h.SharedFrontend
	}
	if h.CookieValueHash {
		keys["cookie_value_method"] = "hash"
	}
	if h.Disabled {
		keys["disabled"] = true
	}
	return keys
}

func (f *stateFile) write(views []view) error {
	text, err := f.text(views)
	switch {
	case err != nil:
	case !stateLike(f.path):
		err = fmt.Errorf("%s is no state file that can be read; move it away, or write another path", f.path)
	default:
		err = replaceFile(f.path, f.path+".tmp", text)
	}
	if err != nil {
		return fmt.Errorf("write state_file_path: %w", err)
	}
	return nil
}

// stateLike tells whether what is at path may be replaced: nothing, an empty file, or one that begins like JSON. What
// else it is, no Synapse wrote it.
func stateLike(path string) bool {
	info, err := os.Stat(path)
	if err != nil {
		return true // nothing is there, or writing tells what is wrong
	}
	if !info.Mode().IsRegular() {
		return false
	}
	f, err := os.Open(path)
	if err != nil {
		return false
	}
	defer f.Close()
	begin := make([]byte, 64)
	n, _ := io.ReadFull(f, begin)
	begin = bytes.TrimSpace(begin[:n])
	return len(begin) == 0 || begin[0] == '{' || begin[0] == '['
}

// backendJSON is an instance with the fields that Synapse's backends have, in Synapse's order, nulls included.
type backendJSON struct {
	Name    any            `json:"name"`
	Host    string         `json:"host"`
	Port    uint16         `json:"port"`
	ID      *int64         `json:"id"`
	Weight  *int           `json:"weight"`
	Options any            `json:"haproxy_server_options"`
	Labels  map[string]any `json:"labels"`
}

func backendFields(in *discovery.Instance) backendJSON {
	b := backendJSON{Host: in.Endpoint.Host(), Port: in.Endpoint.Port(), ID: in.ID, Weight: in.Weight, Labels: in.Labels}
	if in.Name != "" {
		b.Name = in.Name
	}
	if len(in.ServerOptions) > 0 {
		b.Options = strings.Join(in.ServerOptions, " ")
	}
	return b
}

// inheritedIDs are the ids that servers have in HAProxy's file and, where that has none, in the state file, by backend
// and server name, as far as another program chose them: those of Synapse count up from one. A server keeps such an id
// for as long as it lives, so that a take-over moves no key of a hash ring. What Myelin chooses follows from the address
// and needs no memory.
func inheritedIDs(onDisk haproxy.State, state stateEntries, backendOf map[string]string) map[haproxy.Key]int {
	ids := map[haproxy.Key]int{}
	for service, servers := range state {
		backend, ok := backendOf[service]
		if !ok {
			continue
		}
		for name, e := range servers {
			host, _ := e.Host.(string)
			endpoint, err := discovery.ParseEndpoint(host, portOf(e.Port))
			if err != nil || e.ServerID == 0 {
				continue
			}
			s := haproxy.Server{Name: name, ID: e.ServerID}
			if ip, isIP := endpoint.IP(); isIP {
				s.Addr = netip.AddrPortFrom(ip, endpoint.Port())
			}
			if !haproxy.OwnID(s) {
				ids[haproxy.Key{Backend: backend, Server: name}] = e.ServerID
			}
		}
	}
	for backend, servers := range onDisk {
		for _, s := range servers {
			key := haproxy.Key{Backend: backend, Server: s.Name}
			if s.ID < 1 || s.ID > haproxy.MaxID || haproxy.OwnID(s) {
				delete(ids, key) // what HAProxy runs with goes before what was noted
				continue
			}
			ids[key] = s.ID
		}
	}
	return ids
}

func portOf(v any) int {
	var text string
	switch v := v.(type) {
	case json.Number:
		text = v.String()
	case string:
		text = v
	}
	n, err := strconv.Atoi(text)
	if err != nil {
		return 0
	}
	return n
}
