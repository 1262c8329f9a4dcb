package config

import (
	"fmt"
	"slices"
	"strings"
)

// maxRemote bounds what the registry may hold as a service's configuration.
const maxRemote = 64 << 10

// Remote lays the configuration that the registry holds for a service (see Discovery.GeneratorConfigPath) over what the
// file says: a JSON object with a table for each of Synapse's generators, of which haproxy and file_output are read. A
// key that is absent stays as the file has it, and so does one with a bad value, which is among the problems. Only an
// error means that nothing of data is used.
//
// The registry may not say where a frontend listens but for its port: on which addresses a host can be reached is for
// its own file, and so is the shared frontend, in which one service's lines decide about the requests of all. allow judges
// the lines, and the server options, of strangers.
func (s Service) Remote(path string, data []byte, allow func(key string, lines []string) error) (Service, Problems, error) {
	if len(data) > maxRemote {
		return s, nil, fmt.Errorf("%d bytes of data, at most %d are read", len(data), maxRemote)
	}
	root, err := parseJSON(path, data, func(string, *node, *node) {})
	if err != nil {
		return s, nil, fmt.Errorf("not JSON: %w", err)
	}
	if root.kind != dict {
		return s, nil, fmt.Errorf("it is %s, not a table of generators", root.describe(""))
	}
	r := &reader{main: path}
	t := r.table(root, "")
	if f := t.sub("file_output"); f != nil {
		s.FileOutputDisabled = f.flag("disabled", s.FileOutputDisabled)
	}
	h := t.sub("haproxy")
	if h == nil {
		return s, r.problems, nil
	}
	over, _ := t.serviceHAProxy()
	for _, e := range h.n.entries {
		if !slices.ContainsFunc(r.problems, func(p Problem) bool { return p.concerns(join("haproxy", e.key)) }) {
			h.lay(e.key, &s.HAProxy, over, allow)
		}
	}
	return s, r.problems, nil
}

// concerns tells whether a problem is about a key or something below it.
func (p Problem) concerns(key string) bool {
	rest, ok := strings.CutPrefix(p.Key, key)
	return ok && (rest == "" || rest[0] == '.' || rest[0] == '[')
}

// lay sets one key of to from what the registry says.
func (t *table) lay(key string, to *ServiceHAProxy, over ServiceHAProxy, allow func(string, []string) error) {
	lines := func(to *[]string, from []string) {
		if err := allow(key, from); err != nil {
			t.fail(key, err.Error(), "write it into the host's own file")
			return
		}
		*to = from
	}
	switch key {
	case "disabled":
		to.Disabled = over.Disabled
	case "port":
		if !over.PortSet {
			t.fail(key, "only a number can come from the registry", "write it into the host's own file")
			return
		}
		to.Port, to.PortSet, to.BindOnly = over.Port, true, false
	case "server_options":
		if err := allow(key, []string{over.ServerOptions}); err != nil {
			t.fail(key, err.Error(), "write it into the host's own file")
			return
		}
		to.ServerOptions = over.ServerOptions
	case "frontend":
		lines(&to.Frontend, over.Frontend)
	case "backend":
		lines(&to.Backend, over.Backend)
	case "listen":
		lines(&to.Listen, over.Listen)
	case "backend_name":
		to.BackendName = over.BackendName
	case "backend_order":
		to.BackendOrder = over.BackendOrder
	case "cookie_value_method":
		to.CookieValueHash = over.CookieValueHash
	default:
		t.fail(key, "cannot come from the registry", "write it into the host's own file")
	}
}

// Bind is what service i's frontend binds to, but for bind lines of its own: "127.0.0.1:8080", or the path of a socket.
// Empty: it has none.
func (a *Agent) Bind(i int) string { return a.HAProxy.bind(a.Services[i].HAProxy) }

// Clash says why service i cannot stand beside the others: its backend's name or where it listens is another's. Empty: it
// can.
func (a *Agent) Clash(i int) string {
	names := func(s Service) (backend string, own []string) {
		if backend = s.HAProxy.BackendName; backend == "" {
			backend = s.Name
		}
		own = []string{"backend " + backend, "listen " + backend}
		if s.HAProxy.PortSet || s.HAProxy.BindOnly {
			own = append(own, "frontend "+s.Name, "listen "+s.Name)
		}
		return backend, own
	}
	s := a.Services[i]
	if s.HAProxy.Disabled {
		return ""
	}
	backend, own := names(s)
	for _, section := range a.HAProxy.ExtraSections {
		if f := strings.Fields(section.Title); len(f) > 1 && slices.Contains(own, f[0]+" "+f[1]) {
			return "there is an extra section " + section.Title
		}
	}
	for j, other := range a.Services {
		if j == i || other.HAProxy.Disabled {
			continue
		}
		if b, _ := names(other); b == backend {
			return "service " + other.Name + " has the same backend"
		}
		if bind := a.HAProxy.bind(s.HAProxy); bind != "" && bind == a.HAProxy.bind(other.HAProxy) {
			return "service " + other.Name + " binds to the same address and port"
		}
	}
	return ""
}
