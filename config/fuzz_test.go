package config

import (
	"os"
	"path/filepath"
	"reflect"
	"regexp"
	"strings"
	"testing"

	"github.com/BurntSushi/toml"
	"github.com/stretchr/testify/require"
)

func FuzzAgentJSON(f *testing.F)     { fuzz(f, "agent", "json", ParseAgent) }
func FuzzAgentTOML(f *testing.F)     { fuzz(f, "agent", "toml", ParseAgent) }
func FuzzRegistrarJSON(f *testing.F) { fuzz(f, "registrar", "json", ParseRegistrar) }
func FuzzRegistrarTOML(f *testing.F) { fuzz(f, "registrar", "toml", ParseRegistrar) }

// fuzz checks that no text panics, that every complaint begins with the file, that there is a result exactly when
// there is no error, and that no result holds text that could break out of a line or a path.
func fuzz[T any](f *testing.F, kind, notation string, parse func(string, []byte, Options) (T, Problems, error)) {
	paths, err := filepath.Glob(filepath.Join(folder, kind+"-*."+notation))
	require.NoError(f, err)
	require.NotEmpty(f, paths)
	for _, path := range paths {
		data, err := os.ReadFile(path)
		require.NoError(f, err)
		f.Add(data)
	}
	f.Add([]byte(`"\`)) // a complaint at the end of the only line
	name := "x." + notation
	f.Fuzz(func(t *testing.T, data []byte) {
		result, problems, err := parse(name, data, Options{LookupEnv: environment})
		for _, line := range strings.Split(problems.Error(), "\n") {
			if line != "" && !strings.HasPrefix(line, name+":") {
				t.Fatalf("a complaint without its file: %q", line)
			}
		}
		for _, p := range problems {
			if p.Line == 0 || p.Line > strings.Count(string(data), "\n")+1 {
				t.Fatalf("a complaint without its line: %v", p)
			}
		}
		if none := reflect.ValueOf(result).IsNil(); none != (err != nil) {
			t.Fatalf("result %v with error %v", result, err)
		}
		switch c := any(result).(type) {
		case *Agent:
			if c != nil {
				soundAgent(t, c)
			}
		case *Registrar:
			if c != nil {
				soundRegistrar(t, c)
			}
		}
		if notation == "toml" {
			everyKeyHasAPlace(t, string(data))
		}
	})
}

func soundAgent(t *testing.T, a *Agent) {
	for _, s := range a.Services {
		h := s.HAProxy
		sound(t, append(append(append([]string{h.BindAddress, h.BindOptions, h.ServerOptions}, h.Frontend...), h.Backend...), h.Listen...)...)
		if !proxyName.MatchString(s.Name) || h.PortSet == (h.Port == 0) {
			t.Fatalf("unsound service %+v", s)
		}
		switch s.Discovery.Method {
		case "zookeeper", "zookeeper_poll":
			if !strings.HasPrefix(s.Discovery.Path, "/") || len(s.Discovery.ZooKeeper.Hosts) == 0 {
				t.Fatalf("nothing to watch: %+v", s.Discovery)
			}
		case "base":
		default:
			t.Fatalf("method %q", s.Discovery.Method)
		}
		for _, d := range s.DefaultServers {
			sound(t, d.ServerOptions, d.Name)
			if d.Port == 0 || !validHost(d.Host) {
				t.Fatalf("unsound server %+v", d)
			}
		}
	}
	h := a.HAProxy
	sound(t, append(append(append([]string{h.BindAddress}, h.Global...), h.Defaults...), h.SharedFrontend...)...)
	for _, s := range h.ExtraSections {
		sound(t, append(s.Lines, s.Title)...)
	}
	if h.Run && (h.ConfigFilePath == "" || len(h.SocketFilePaths) != 1) {
		t.Fatalf("nothing to run: %+v", h)
	}
}

func soundRegistrar(t *testing.T, g *Registrar) {
	if badInstanceID(g.InstanceID) != "" {
		t.Fatalf("instance id %q", g.InstanceID)
	}
	for _, s := range g.Services {
		if s.Port == 0 || !validHost(s.Host) || !strings.HasPrefix(s.ZKPath, "/") || len(s.ZooKeeper.Hosts) == 0 || s.CheckInterval <= 0 {
			t.Fatalf("unsound registration %+v", s)
		}
		for _, c := range s.Checks {
			sound(t, c.URI, c.Name)
			if c.Rise < 1 || c.Fall < 1 || c.Timeout <= 0 || c.Port == 0 || !validHost(c.Host) || c.Type == "http" && c.URI == "" {
				t.Fatalf("unsound check %+v", c)
			}
			soundOfType(t, c)
			for name, v := range c.Headers {
				sound(t, v)
				if !validHeader(name) {
					t.Fatalf("header %q", name)
				}
			}
		}
	}
}

// soundOfType: what the registrar would refuse does not come out of a file.
func soundOfType(t *testing.T, c Check) {
	sound(t, append(c.Command, c.Socket, c.Method, c.Service)...)
	if c.Type == "ttl" && c.TTL <= 0 || c.Type == "exec" && (len(c.Command) == 0 || c.Command[0] == "") || c.Method == "CONNECT" {
		t.Fatalf("unsound check %+v", c)
	}
	for _, r := range c.Status {
		if r.From < 100 || r.From > r.To || r.To > 999 {
			t.Fatalf("unsound status %+v", r)
		}
	}
	if _, err := regexp.Compile(c.ExpectRegex); err != nil {
		t.Fatal(err)
	}
}

func sound(t *testing.T, texts ...string) {
	for _, s := range texts {
		if strings.ContainsAny(s, "\n\r\x00") {
			t.Fatalf("more than a line: %q", s)
		}
	}
}

// everyKeyHasAPlace holds the scanner against the library: whatever the library takes as TOML, the scanner has read
// the same way.
func everyKeyHasAPlace(t *testing.T, s string) {
	var m map[string]any
	if _, err := toml.Decode(s, &m); err != nil {
		return
	}
	places, err := scanTOML(s)
	if err != nil {
		return // too deep
	}
	last := strings.Count(s, "\n") + 1
	var check func(path string, v any)
	check = func(path string, v any) {
		if p, ok := places[path]; path != "" && (!ok || p.line < 1 || p.line > last) {
			t.Fatalf("no place for %q", path)
		}
		switch v := v.(type) {
		case map[string]any:
			for k, v := range v {
				check(placeKey(path, k), v)
			}
		case []map[string]any:
			for i, v := range v {
				check(placeIndex(path, i), v)
			}
		case []any:
			for i, v := range v {
				check(placeIndex(path, i), v)
			}
		}
	}
	check("", m)
}
