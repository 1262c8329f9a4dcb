package config

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
)

// Options are the world of a load.
type Options struct {
	LookupEnv func(string) (string, bool) // nil: nothing expands but to its default
	Strict    bool                        // unknown keys are errors

	// ZooKeeperHosts, when not empty, take the place of the file's zookeeper.hosts (not of a service's own), each as
	// ParseHosts reads them.
	ZooKeeperHosts []string
	// InstanceID, when not empty, takes the place of the registrar file's instance_id.
	InstanceID string
	// StateDir, when not empty, is the state_dir of a registrar file that names none.
	StateDir string
}

// Kind is which of the two files a file is.
type Kind string

// The two kinds of file.
const (
	KindAgent     Kind = "agent"
	KindRegistrar Kind = "registrar"
)

// LoadAgent reads an agent's file and the files of its service_conf_dir.
//
// The error is nil when the agent can be used; the problems are then warnings. Otherwise the agent is nil and the
// error is all problems as Problems, warnings included, so a caller prints one or the other.
func LoadAgent(path string, o Options) (*Agent, Problems, error) {
	return load(path, o, (*reader).agent)
}

// LoadRegistrar is LoadAgent for a registrar's file.
func LoadRegistrar(path string, o Options) (*Registrar, Problems, error) {
	return load(path, o, (*reader).registrar)
}

// ParseAgent is LoadAgent of text that was read already. name is used in problems, and its extension says the
// notation. No other file is looked at, neither those of service_conf_dir nor certificates: nothing but data and o
// decides the result.
func ParseAgent(name string, data []byte, o Options) (*Agent, Problems, error) {
	return decode(file{name: name, data: data}, o, disk{}, (*reader).agent)
}

// ParseRegistrar is ParseAgent for a registrar's file.
func ParseRegistrar(name string, data []byte, o Options) (*Registrar, Problems, error) {
	return decode(file{name: name, data: data}, o, disk{}, (*reader).registrar)
}

// maxFile is far beyond the largest fleet's file, and keeps a wrong path (a device, a log) from filling the memory.
const maxFile = 16 << 20

// file is a file's name and text, or why it could not be read.
type file struct {
	name string
	data []byte
	err  error
}

func readFile(path string) file {
	f, err := os.Open(path)
	if err != nil {
		return file{name: path, err: reason(err)}
	}
	defer f.Close()
	data, err := io.ReadAll(io.LimitReader(f, maxFile+1))
	if err == nil && len(data) > maxFile {
		err = fmt.Errorf("it is larger than %d bytes", maxFile)
	}
	return file{name: path, data: data, err: reason(err)}
}

// reason is an error of the file system without the path, which a problem names already.
func reason(err error) error {
	var pe *fs.PathError
	if errors.As(err, &pe) {
		return pe.Err
	}
	return err
}

// disk is where the files that the main file names are. The zero value has none, and nobody asks.
type disk struct {
	// dir reads the files of a service_conf_dir: in the main file's folder, or else in the current one.
	dir func(dir string) (files []file, err error)
	// secret reads a file of credentials, certificates or keys, and who may read it.
	secret func(path string) (data []byte, mode fs.FileMode, err error)
}

func load[T any](path string, o Options, build func(*reader, *document) T) (T, Problems, error) {
	dir := func(dir string) ([]file, error) {
		if filepath.IsAbs(dir) {
			return readConfDir(dir)
		}
		files, err := readConfDir(filepath.Join(filepath.Dir(path), dir))
		if errors.Is(err, fs.ErrNotExist) {
			return readConfDir(dir)
		}
		return files, err
	}
	return decode(readFile(path), o, disk{dir: dir, secret: readSecret}, build)
}

func readSecret(path string) ([]byte, fs.FileMode, error) {
	f := readFile(path)
	if f.err != nil {
		return nil, 0, f.err
	}
	info, err := os.Stat(path)
	if err != nil {
		return nil, 0, reason(err)
	}
	return f.data, info.Mode(), nil
}

// readConfDir reads the *.json and *.toml files of a folder in order of name, and names its *.yaml and *.yml files
// without reading them. Hidden files are left out, as a shell's * does.
func readConfDir(dir string) ([]file, error) {
	entries, err := os.ReadDir(dir)
	if err != nil {
		return nil, reason(err)
	}
	var files []file
	for _, e := range entries {
		name := filepath.Join(dir, e.Name())
		if strings.HasPrefix(e.Name(), ".") || e.IsDir() {
			continue
		}
		switch filepath.Ext(name) {
		case ".json", ".toml":
			files = append(files, readFile(name))
		case ".yaml", ".yml":
			files = append(files, file{name: name})
		}
	}
	return files, nil
}

// document is a main file as trees, before its meaning is looked at.
type document struct {
	name     string
	root     *node
	options  Options
	services []serviceNode
}

// serviceNode is one service's table, inline or in a file of its own.
type serviceNode struct {
	name string
	path string // of its key, "services.user-api"
	node *node
}

// decode makes a result of a main file. build is not called for text that has no tree.
func decode[T any](f file, o Options, from disk, build func(*reader, *document) T) (result T, problems Problems, err error) {
	var none T
	r := &reader{strict: o.Strict, main: f.name, disk: from}
	if root := r.parse(f, "", o); root != nil {
		r.strict = r.strict || isTrue(root.get("strict"))
		d := &document{name: f.name, root: root, options: o}
		result = build(r, d.gather(r))
	}
	for _, p := range r.doubles {
		p.Warning = !r.strict
		r.problems = append(r.problems, p)
	}
	r.problems.sort(f.name)
	if err := r.problems.err(); err != nil {
		return none, r.problems, err
	}
	return result, r.problems, nil
}

func isTrue(n *node) bool { return n != nil && n.text == "true" }

// parse makes a file a tree with its environment expanded, or complains and returns nil.
func (r *reader) parse(f file, path string, o Options) *node {
	place := &node{file: f.name}
	if f.err != nil {
		r.fail(place, "", "the file cannot be read: "+f.err.Error(), "give the path of a readable file")
		return nil
	}
	if isYAML(f.name) {
		r.fail(place, "", "YAML is not read", "convert it to JSON or TOML")
		return nil
	}
	root, err := r.tree(f, path)
	if err != nil {
		r.syntax(f, path, err)
		return nil
	}
	if root.kind != dict {
		r.fail(root, path, "the file is "+root.describe("")+", not a table of keys", "write { ... }")
		return nil
	}
	r.expandAll(root, path, o.LookupEnv)
	return root
}

func isYAML(name string) bool { return slices.Contains([]string{".yaml", ".yml"}, filepath.Ext(name)) }

// tree parses by extension; other files are JSON when they begin as a JSON table does, which no TOML does.
func (r *reader) tree(f file, path string) (*node, error) {
	data := bytes.TrimPrefix(f.data, []byte("\xef\xbb\xbf"))
	if isJSON(f.name, data) {
		return parseJSON(f.name, data, func(key string, first, second *node) {
			if path != "" {
				key = path + "." + key
			}
			r.doubles = append(r.doubles, Problem{File: second.file, Line: second.line, Key: key,
				Text: fmt.Sprintf("is given twice, and the value of line %d is not used", first.line), Remedy: "remove one"})
		})
	}
	return parseTOML(f.name, data)
}

func isJSON(name string, data []byte) bool {
	switch filepath.Ext(name) {
	case ".json":
		return true
	case ".toml":
		return false
	}
	return bytes.HasPrefix(bytes.TrimSpace(data), []byte("{"))
}

func (r *reader) syntax(f file, path string, err error) {
	n, notation := &node{file: f.name}, "TOML"
	if isJSON(f.name, f.data) {
		notation = "JSON"
	}
	remedy := "correct the " + notation
	if ext := filepath.Ext(f.name); ext != ".json" && ext != ".toml" {
		remedy = "name the file .json or .toml, or begin it with { if it is JSON"
	}
	var se *syntaxError
	if errors.As(err, &se) {
		n.line, err = se.line, errors.New(se.text)
		if se.key != "" {
			path = strings.TrimPrefix(path+"."+se.key, ".")
		}
	}
	if wrong, what, found := erb(string(f.data)); found {
		// Synapse ran its files through ERB first, so a tag outside of a string is what breaks the text.
		n.line = 1 + bytes.Count(f.data[:bytes.Index(f.data, []byte("<%"))], []byte("\n"))
		r.fail(n, "", wrong, what+" (inside a string)")
		return
	}
	r.fail(n, path, "not "+notation+": "+err.Error(), remedy)
}

// gather finds the services: inline, as the whole file, and in service_conf_dir.
func (d *document) gather(r *reader) *document {
	root := r.table(d.root, "")
	if isBareMap(d.root) {
		for _, e := range d.root.entries {
			d.services = append(d.services, serviceNode{e.key, join("", e.key), e.value})
		}
		return d
	}
	if t := root.sub("services"); t != nil {
		for _, e := range t.n.entries {
			if path := join(t.path, e.key); e.value.kind == dict {
				d.services = append(d.services, serviceNode{e.key, path, e.value})
			} else if !e.value.broken {
				r.mismatch(e.value, path, "a table", "write { ... }")
			}
		}
	}
	if path := root.str("service_conf_dir", ""); path != "" && r.disk.dir != nil {
		d.confDir(r, root, path)
	}
	return d
}

// confDir adds the services that have files of their own. A file wins over an inline service, as in SmartStack.
func (d *document) confDir(r *reader, root *table, path string) {
	files, err := r.disk.dir(path)
	if err != nil {
		root.fail("service_conf_dir", fmt.Sprintf("the folder %s cannot be read: %v", quote(path), err),
			"give a folder that exists, relative to this file, to the current folder, or absolute")
		return
	}
	seen := map[string]string{}
	for _, f := range files {
		if isYAML(f.name) {
			r.warn(&node{file: f.name}, "", "YAML is not read, so this service is not configured", "convert it to JSON or TOML")
			continue
		}
		base := filepath.Base(f.name)
		name := strings.TrimSuffix(base, filepath.Ext(base))
		key := join("services", name)
		if other := seen[name]; other != "" {
			r.fail(&node{file: f.name}, key, "the service is also defined by "+other, "remove one of the two files")
			continue
		}
		seen[name] = f.name
		n := r.parse(f, key, d.options)
		if n == nil {
			continue
		}
		d.services = slices.DeleteFunc(d.services, func(s serviceNode) bool {
			if s.name == name {
				r.warn(s.node, s.path, "is not used, since "+f.name+" defines the same service", "remove one of the two")
			}
			return s.name == name
		})
		d.services = append(d.services, serviceNode{name, key, n})
	}
}

// isBareMap: no services key, and every value a table with a discovery: the form of an agent's file that circulates
// in tutorials.
func isBareMap(root *node) bool {
	for _, e := range root.entries {
		if e.key == "services" || e.value.kind != dict || e.value.get("discovery") == nil {
			return false
		}
	}
	return len(root.entries) > 0
}

// Detect tells which kind of file a file is, by the keys that only one kind has. The error is Problems when the file
// cannot be read as JSON or TOML, or has the keys of neither or of both.
func Detect(path string, o Options) (Kind, error) {
	var kind Kind
	_, problems, _ := load(path, o, func(r *reader, d *document) Kind {
		kind = d.detect(r)
		return kind
	})
	if kind == "" {
		return "", problems
	}
	return kind, nil // whatever else is wrong is for LoadAgent and LoadRegistrar to tell
}

func (d *document) detect(r *reader) Kind {
	agent, registrar := d.signs()
	switch {
	case agent != "" && registrar == "":
		return KindAgent
	case registrar != "" && agent == "":
		return KindRegistrar
	case agent == "":
		r.fail(d.root, "", "neither an agent's nor a registrar's file", "give each service a discovery (agent) or a zk_path and a port (registrar)")
	default:
		r.fail(d.root, "", fmt.Sprintf("both an agent's (%s) and a registrar's file (%s)", agent, registrar), "make two files of it")
	}
	return ""
}

// signs are a key that only an agent's file has and one that only a registrar's file has, or empty.
func (d *document) signs() (agent, registrar string) {
	note := func(sign *string, path string, n *node, keys ...string) {
		for _, key := range keys {
			if *sign == "" && n.get(key) != nil {
				*sign = join(path, key)
			}
		}
	}
	note(&agent, "", d.root, "haproxy", "file_output", "overrides_path", "registrar")
	note(&registrar, "", d.root, "instance_id", "heartbeat_path", "nerve_compatible", "max_repeated_report_failures")
	for _, s := range d.services {
		note(&agent, s.path, s.node, "discovery", "discovery_multi", "haproxy", "default_servers")
		note(&registrar, s.path, s.node, "zk_path", "port", "checks", "reporter_type")
	}
	return agent, registrar
}
