package config

import (
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
)

// write makes files below a new folder, with the keys of the map as paths.
func write(t *testing.T, files map[string]string) (dir string) {
	t.Helper()
	dir = t.TempDir()
	for name, text := range files {
		path := filepath.Join(dir, name)
		require.NoError(t, os.MkdirAll(filepath.Dir(path), 0o755))
		require.NoError(t, os.WriteFile(path, []byte(text), 0o644))
	}
	return dir
}

// sentences are the problems as text, without the folder.
func sentences(ps Problems, dir string) []string {
	out := []string{}
	for _, p := range ps {
		out = append(out, strings.ReplaceAll(p.String(), dir+string(filepath.Separator), ""))
	}
	return out
}

const baseService = `{"discovery": {"method": "base"}, "default_servers": [{"host": "10.0.0.1", "port": 1}]}`

func TestServiceConfDir(t *testing.T) {
	dir := write(t, map[string]string{
		"agent.toml": `
service_conf_dir = "conf.d"

[services.inline]
discovery = { method = "base" }
default_servers = [ { host = "10.0.0.1", port = 1 } ]

[services.twice]
discovery = { method = "base" }
`,
		"conf.d/zeta.json":       baseService,
		"conf.d/alpha.beta.toml": "discovery = { method = \"base\" }\ndefault_servers = [ { host = \"10.0.0.2\", port = 2 } ]\ncolour = 1\n",
		"conf.d/twice.json":      baseService,
		"conf.d/old.yaml":        "discovery: {}",
		"conf.d/.hidden.json":    "{",
		"conf.d/notes.txt":       "{",
		"conf.d/sub.json/x":      "a folder",
	})
	a, problems, err := LoadAgent(filepath.Join(dir, "agent.toml"), Options{})
	require.NoError(t, err)
	require.Equal(t, []string{
		"agent.toml:8: warning: services.twice: is not used, since " + "conf.d/twice.json defines the same service; remove one of the two",
		`conf.d/alpha.beta.toml:3: warning: services."alpha.beta".colour: unknown key; remove it, or look it up in docs/configuration.md`,
		"conf.d/old.yaml: warning: YAML is not read, so this service is not configured; convert it to JSON or TOML",
	}, sentences(problems, dir))
	var names, files []string
	for _, s := range a.Services {
		names, files = append(names, s.Name), append(files, strings.TrimPrefix(s.File, dir+"/"))
	}
	require.Equal(t, []string{"inline", "alpha.beta", "twice", "zeta"}, names)
	require.Equal(t, []string{"agent.toml", "conf.d/alpha.beta.toml", "conf.d/twice.json", "conf.d/zeta.json"}, files)
}

func TestServiceConfDirProblems(t *testing.T) {
	dir := write(t, map[string]string{
		"agent.json":       `{"service_conf_dir": "conf.d"}`,
		"conf.d/a.json":    `{"discovery": {"method": "dns", "method": "base"}}`,
		"conf.d/a.toml":    "discovery = { method = \"base\" }\n",
		"conf.d/b.json":    `{"discovery": `,
		"conf.d/c.toml":    "[discovery]\nmethod = \"zookeeper\"\npath = \"c\"\n",
		"conf.d/d.json":    `{"discovery": {"method": "${NOT_SET}"}}`,
		"registrar.json":   `{"instance_id": "x", "service_conf_dir": "nowhere"}`,
		"conf.d/e.json":    `[]`,
		"conf.d/f.toml":    "[discovery]\nmethod = base\n",
		"conf.d/g g.json":  baseService,
		"conf.d/.toml":     "",
		"conf.d/h.json~":   "{",
		"conf.d/README.md": "",
	})
	_, problems, err := LoadAgent(filepath.Join(dir, "agent.json"), Options{})
	require.Equal(t, problems, err)
	require.Equal(t, []string{
		"conf.d/a.json:1: warning: services.a.default_servers: discovery method base has no servers; list them in default_servers",
		"conf.d/a.json:1: warning: services.a.discovery.method: is given twice, and the value of line 1 is not used; remove one",
		"conf.d/a.toml: services.a: the service is also defined by conf.d/a.json; remove one of the two files",
		"conf.d/b.json:1: services.b: not JSON: the file ends before the JSON document does; correct the JSON",
		"conf.d/c.toml:1: services.c.discovery.hosts: there are no ZooKeeper hosts; write hosts here, or zookeeper.hosts once for all services",
		`conf.d/c.toml:3: services.c.discovery.path: "c" is not a ZooKeeper path: it does not begin with /; write for example /services/user-api`,
		"conf.d/d.json:1: services.d.discovery.method: the environment variable NOT_SET is not set; set it, or write ${NOT_SET:-default}, or $${NOT_SET} for a literal ${NOT_SET}",
		"conf.d/e.json:1: services.e: the file is a list, not a table of keys; write { ... }",
		`conf.d/f.toml:2: services.f.discovery.method: not TOML: expected value but found "base" instead; correct the TOML`,
		`conf.d/g g.json:1: services."g g": the name cannot be a section of haproxy.cfg; use only letters, digits and _ . : -`,
	}, sentences(problems, dir))

	_, problems, err = LoadRegistrar(filepath.Join(dir, "registrar.json"), Options{})
	require.Error(t, err)
	require.Equal(t, []string{`registrar.json:1: service_conf_dir: the folder "nowhere" cannot be read: no such file or directory; give a folder that exists, relative to this file, to the current folder, or absolute`},
		sentences(problems, dir))
}

// The current folder is where Synapse and Nerve looked.
func TestServiceConfDirOfTheCurrentFolder(t *testing.T) {
	dir := write(t, map[string]string{
		"etc/agent.json":    `{"service_conf_dir": "conf.d"}`,
		"cwd/conf.d/x.json": baseService,
	})
	t.Chdir(filepath.Join(dir, "cwd"))
	a, _, err := LoadAgent("../etc/agent.json", Options{})
	require.NoError(t, err)
	require.Len(t, a.Services, 1)
	require.Equal(t, "conf.d/x.json", a.Services[0].File)

	require.NoError(t, os.MkdirAll(filepath.Join(dir, "etc/conf.d"), 0o755))
	a, _, err = LoadAgent("../etc/agent.json", Options{})
	require.NoError(t, err)
	require.Empty(t, a.Services, "the folder beside the file wins, even empty")
}

func TestUnreadable(t *testing.T) {
	dir := write(t, map[string]string{"agent.yaml": "services: {}", "folder/x": ""})
	for name, want := range map[string]string{
		"absent.json": "absent.json: the file cannot be read: no such file or directory; give the path of a readable file",
		"folder":      "folder: the file cannot be read: is a directory; give the path of a readable file",
		"agent.yaml":  "agent.yaml: YAML is not read; convert it to JSON or TOML",
	} {
		_, problems, err := LoadAgent(filepath.Join(dir, name), Options{})
		require.Equal(t, problems, err)
		require.Equal(t, []string{want}, sentences(problems, dir))
		_, err = Detect(filepath.Join(dir, name), Options{})
		require.Equal(t, problems, err)
	}

	big := filepath.Join(dir, "big.json")
	require.NoError(t, os.WriteFile(big, nil, 0o644))
	require.NoError(t, os.Truncate(big, maxFile+1))
	_, problems, err := LoadAgent(big, Options{})
	require.Error(t, err)
	require.Equal(t, []string{"big.json: the file cannot be read: it is larger than 16777216 bytes; give the path of a readable file"}, sentences(problems, dir))
}

func TestSniff(t *testing.T) {
	for text, want := range map[string]string{
		"\n {\"a\": " + baseService + "}":                       "",
		"\xef\xbb\xbf{\"a\": " + baseService + "}":              "",
		"[a]\r\ndiscovery = { method = \"base\" }\r\nx = 1\r\n": "conf:3: warning: a.x: unknown key",
		"a:\n  discovery:\n":                                    "conf:1: not TOML: expected '.' or '=', but got ':' instead; name the file .json or .toml, or begin it with { if it is JSON",
	} {
		_, problems, _ := ParseAgent("conf", []byte(text), Options{})
		if want == "" {
			require.Empty(t, problems, text)
			continue
		}
		require.Contains(t, problems.Error(), want, text)
	}
}

func TestDetect(t *testing.T) {
	for text, want := range map[string]string{
		`{"services": {"a": {"discovery": {}}}}`:                 "agent",
		`{"a": {"discovery": {}}}`:                               "agent",
		`{"haproxy": {}}`:                                        "agent",
		`{"services": {"a": {"zk_path": "/a"}}}`:                 "registrar",
		`{"services": {"a": {"port": 1}}}`:                       "registrar",
		`{"instance_id": "${NOT_SET}", "services": 5}`:           "registrar",
		`{"service_conf_dir": "conf.d"}`:                         "agent",
		`{"services": {"a": {}}}`:                                "neither an agent's nor a registrar's file",
		`{"instance_id": "x", "services": {"a": {"haproxy":1}}}`: "both an agent's (services.a.haproxy) and a registrar's file (instance_id)",
		`{`: "not JSON",
	} {
		dir := write(t, map[string]string{"x.json": text, "conf.d/s.json": baseService})
		kind, err := Detect(filepath.Join(dir, "x.json"), Options{})
		if strings.Contains(want, " ") {
			require.ErrorContains(t, err, want)
			require.ErrorAs(t, err, &Problems{})
			require.Empty(t, kind)
			continue
		}
		require.NoError(t, err, text)
		require.Equal(t, Kind(want), kind, text)
	}
	for _, path := range []string{"agent-airbnb", "agent-paasta", "registrar-airbnb", "registrar-paasta"} {
		kind, err := Detect(filepath.Join(folder, path+".good.json"), Options{})
		require.NoError(t, err)
		require.Equal(t, strings.Split(path, "-")[0], string(kind))
	}
}

func TestOptions(t *testing.T) {
	const agent = `{"services": {"a": {"discovery": {"method": "zookeeper", "path": "/a"}}, "b": {"discovery": {"method": "zookeeper", "path": "/b", "hosts": "own"}}}}`
	a, _, err := ParseAgent("x.json", []byte(agent), Options{ZooKeeperHosts: []string{"flag1", "flag2/c"}})
	require.NoError(t, err)
	require.Equal(t, []string{"flag1:2181", "flag2:2181"}, a.Services[0].Discovery.ZooKeeper.Hosts)
	require.Equal(t, "/c", a.Services[0].Discovery.ZooKeeper.Chroot)
	require.Equal(t, []string{"own:2181"}, a.Services[1].Discovery.ZooKeeper.Hosts)
	require.Empty(t, a.Services[1].Discovery.ZooKeeper.Chroot, "the chroot belongs to its hosts")

	_, _, err = ParseAgent("x.json", []byte(agent), Options{ZooKeeperHosts: []string{"a b"}})
	require.EqualError(t, err, `x.json: zookeeper.hosts: the hosts given outside the file are wrong: parse host "a b": it is neither an IP address nor a host name; write for example zk1:2181,zk2:2181`)

	const registrar = `{"instance_id": "file", "services": {}}`
	g, _, err := ParseRegistrar("x.json", []byte(registrar), Options{InstanceID: "flag"})
	require.NoError(t, err)
	require.Equal(t, "flag", g.InstanceID)
	g, _, err = ParseRegistrar("x.json", []byte(`{"services": {}}`), Options{InstanceID: "flag"})
	require.NoError(t, err)
	require.Equal(t, "flag", g.InstanceID)
	_, _, err = ParseRegistrar("x.json", []byte(registrar), Options{InstanceID: "a/b"})
	require.ErrorContains(t, err, "the instance id given outside the file contains a /")

	unknown := []byte(`{"instance_id": "x", "services": {}, "colour": 1}`)
	_, problems, err := ParseRegistrar("x.json", unknown, Options{})
	require.NoError(t, err)
	require.Len(t, problems.Warnings(), 2)
	_, problems, err = ParseRegistrar("x.json", unknown, Options{Strict: true})
	require.Error(t, err)
	require.Len(t, problems.Errors(), 1)
}

// The forms a duration may have, as seconds in JSON.
func TestDurations(t *testing.T) {
	for text, want := range map[string]time.Duration{
		`12`: 12 * time.Second, `0.5`: 500 * time.Millisecond, `"12"`: 12 * time.Second, `"0.25"`: 250 * time.Millisecond,
		`"500ms"`: 500 * time.Millisecond, `"1m30s"`: 90 * time.Second, `1e-3`: time.Millisecond, `"2h"`: 2 * time.Hour,
		`0.0000005`: 500 * time.Nanosecond,
		`0`:         -1, `-1`: -1, `"-1s"`: -1, `""`: -1, `"5 s"`: -1, `"1d"`: -1, `1e99`: -1, `1e999`: -1, `"inf"`: -1, `"0x1p3"`: -1, `"1_0"`: -1,
		`true`: -1, `[1]`: -1, `{}`: -1, `"999999h"`: -1, `1e-10`: -1, `".5"`: 500 * time.Millisecond,
	} {
		a, _, err := ParseAgent("x.json", []byte(`{"haproxy": {}, "zookeeper": {"session_timeout": `+text+`}}`), Options{})
		if want < 0 {
			require.ErrorContains(t, err, "x.json:1: zookeeper.session_timeout: ", text)
			continue
		}
		require.NoError(t, err, text)
		require.Equal(t, want, a.ZooKeeper.SessionTimeout, text)
	}
}

func TestParseHosts(t *testing.T) {
	for in, want := range map[string]string{
		"zk1":                             "[zk1:2181] ",
		"zk1:2182, zk2 ,zk3:1":            "[zk1:2182 zk2:2181 zk3:1] ",
		"zk1/":                            "[zk1:2181] ",
		"zk1:2181/a/b/":                   "[zk1:2181] /a/b",
		"10.0.0.1,zk_2.example.com.:5":    "[10.0.0.1:2181 zk_2.example.com.:5] ",
		"[2001:db8::1],[::1]:2182/chroot": "[[2001:db8::1]:2181 [::1]:2182] /chroot",
	} {
		hosts, chroot, err := ParseHosts(in)
		require.NoError(t, err, in)
		require.Equal(t, want, fmt.Sprint(hosts)+" "+chroot, in)
	}
	for _, in := range []string{"", ",", "zk1,", ":2181", "zk1:", "zk1:0", "zk1:65536", "zk1:+1", "::1", "[::1", "::1]", "[]", "[10.0.0.1]:1", "a b", "-a", "a-:1",
		"1.2.3", "1.2.3.4.5", "zk1/a,zk2", "zk1/a/../b", "zk1/a//b", "zk1\nzk2", "zk1;zk2", strings.Repeat("a", 64), strings.Repeat("a.", 130)} {
		hosts, _, err := ParseHosts(in)
		require.Error(t, err, in)
		require.Nil(t, hosts)
	}
	_, _, err := ParseHosts()
	require.Error(t, err)
}

func TestNearest(t *testing.T) {
	words := []string{"path", "hosts", "method", "check_interval", "zk_path"}
	for in, want := range map[string]string{
		"pth": "path", "paht": "path", "host": "hosts", "mehtod": "method", "check_intervall": "check_interval", "checkinterval": "check_interval",
		"zkpath": "zk_path", "x": "", "colour": "", "": "", "kind": "", "Path": "path",
	} {
		require.Equal(t, want, Nearest(in, words), in)
	}
	require.Equal(t, "abc", Nearest("abx", []string{"abd", "abc"}), "a tie has one answer")
}

func TestDepth(t *testing.T) {
	for _, name := range []string{"x.json", "x.toml"} {
		open, end := `{"a": `, "}"
		if name == "x.toml" {
			open, end = "a = ", ""
		}
		for text, deep := range map[string]bool{
			open + strings.Repeat("[", 60) + strings.Repeat("]", 60) + end:             false,
			open + strings.Repeat("[", 100000) + strings.Repeat("]", 100000) + end:     true,
			open + strings.Repeat("[", 100000):                                         true,
			open + strings.Repeat(`{"a":`, 100) + "1" + strings.Repeat("}", 100) + end: name == "x.json",
		} {
			_, problems, _ := ParseAgent(name, []byte(text), Options{})
			require.Equal(t, deep, strings.Contains(problems.Error(), "nested deeper than 64 levels"), "%.40s", text)
		}
	}
	_, _, err := ParseAgent("x.toml", []byte("a = "+strings.Repeat("{ a = ", 100)+"1"+strings.Repeat(" }", 100)), Options{})
	require.ErrorContains(t, err, "nested deeper")
}

// TestSecrets puts a secret from the environment at each text of each good file, and into secret-sounding keys as it
// is: whatever is then wrong, no problem shows it.
func TestSecrets(t *testing.T) {
	const secret = "hunter2 \x00\n"
	paths, err := filepath.Glob(filepath.Join(folder, "*.good.json"))
	require.NoError(t, err)
	wrong := 0
	for _, path := range paths {
		data, err := fs.ReadFile(os.DirFS(folder), filepath.Base(path))
		require.NoError(t, err)
		for i := range strings.Count(string(data), `"`) / 2 {
			for _, value := range []string{"hunter2", secret} {
				o := Options{LookupEnv: func(string) (string, bool) { return value, true }}
				text := replaceString(string(data), i, `"${SECRET}"`)
				_, a, errA := ParseAgent("x.json", []byte(text), o)
				_, g, errG := ParseRegistrar("x.json", []byte(text), o)
				require.NotContains(t, a.Error()+g.Error(), "hunter2", text)
				if errA != nil && errG != nil {
					wrong++
				}
			}
		}
	}
	require.Greater(t, wrong, 100)

	_, problems, err := ParseRegistrar("x.json", []byte(`{"instance_id": "x", "password": "hunter2", "services": {"a": {"host": "h", "port": 1, "zk_path": "/x", "zk_hosts": "zk",
		"checks": [{"type": "redis", "password": "hunter2"}, {"type": "http", "uri": "/", "headers": {"Authorization": 5, "X": {"y": "hunter2"}, "Cookie": "hunter2\n"}}]}}}`), Options{})
	require.Error(t, err)
	require.NotContains(t, problems.Error(), "hunter2")

	for _, text := range []string{"password = hunter2\n", "a = { type = 'redis', password = hunter2 }\n", "[a]\npassword = 'x' hunter2\n", "password = 0hunter2\n",
		"password = 1979-hunter2\n", "password = 12_\n", "password = \"a\\hunter2\"\n"} {
		_, problems, err := ParseRegistrar("x.toml", []byte(text), Options{})
		require.ErrorContains(t, err, "not TOML")
		require.NotContains(t, problems.Error(), "hunter2")
		require.NotContains(t, problems.Error(), "12_")
	}
}

// replaceString replaces the i-th string of a JSON text that has no escaped quotes in its first i strings.
func replaceString(s string, i int, by string) string {
	for pos := 0; ; i-- {
		from := pos + strings.IndexByte(s[pos:], '"')
		to := from + 1 + strings.IndexByte(s[from+1:], '"') + 1
		if i == 0 {
			return s[:from] + by + s[to:]
		}
		pos = to
	}
}

func TestProblemsAreOneLineEach(t *testing.T) {
	_, problems, err := ParseAgent("x\n.json", []byte(`{"a\nb\u001b[31m": 1, "services": {"c\nd\u2028": {"discovery": {"method": "e\nf"}}}}`), Options{})
	require.Error(t, err)
	require.NotEmpty(t, problems)
	for _, line := range strings.Split(err.Error(), "\n") {
		require.True(t, strings.HasPrefix(line, "x?.json:1: "), line)
		require.NotContains(t, line, "\x1b")
	}
}
