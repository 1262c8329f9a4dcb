package config

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"path/filepath"
	"regexp"
	"strconv"
	"strings"
)

// Removed stands where something was that may be a secret.
const Removed = "[removed]"

// Shown is a configuration file fit to be shown to others.
type Shown struct {
	Name string // of the file
	Text []byte // JSON, whatever the file's own notation, in its order; nothing is expanded, and comments are gone
	Err  error  // why there is no text
}

// Show returns a configuration file, agent's or registrar's, and those of its service_conf_dir, without what may be a
// secret: whatever stands under a key that sounds like one, what checks send and programs are started with, and the
// parts of lines for haproxy.cfg that RedactLine takes out. A file that cannot be parsed is not shown, since nobody knows
// what in it is what. No file that one of them names is read: neither passwords nor keys.
//
// secrets are the values that were taken out, and those of the environment that a file asks for, so that they can be
// looked for elsewhere.
func Show(path string, o Options) (files []Shown, secrets []string) {
	main := readFile(path)
	root, shown := show(main, "", o, &secrets)
	files = append(files, shown)
	if root == nil {
		return files, secrets
	}
	dir := root.get("service_conf_dir")
	if dir == nil || dir.kind != text {
		return files, secrets
	}
	name, _, _ := expand(dir.text, lookup(o))
	all, err := confDirBeside(path, name)
	if err != nil {
		return append(files, Shown{Name: name, Err: fmt.Errorf("read folder %s: %w", quote(name), err)}), secrets
	}
	for _, f := range all {
		if !isYAML(f.name) {
			_, shown := show(f, "services", o, &secrets)
			files = append(files, shown)
		}
	}
	return files, secrets
}

func lookup(o Options) func(string) (string, bool) {
	if o.LookupEnv == nil {
		return func(string) (string, bool) { return "", false }
	}
	return o.LookupEnv
}

// confDirBeside reads a service_conf_dir: in the main file's folder, or else in the current one.
func confDirBeside(main, dir string) ([]file, error) {
	if filepath.IsAbs(dir) {
		return readConfDir(dir)
	}
	files, err := readConfDir(filepath.Join(filepath.Dir(main), dir))
	if errors.Is(err, fs.ErrNotExist) {
		return readConfDir(dir)
	}
	return files, err
}

// show is one file without secrets. root is nil when there is no text.
func show(f file, path string, o Options, secrets *[]string) (root *node, out Shown) {
	out.Name = f.name
	if out.Err = f.err; out.Err != nil {
		return nil, out
	}
	root, err := new(reader).tree(f, path)
	if err != nil { // its words may quote the file
		out.Err = errors.New("it cannot be parsed, so its secrets cannot be told from the rest")
		return nil, out
	}
	var b bytes.Buffer
	s := shower{&b, lookup(o), secrets}
	s.value(path, root, "")
	b.WriteByte('\n')
	out.Text = b.Bytes()
	return root, out
}

// shower writes a tree as indented JSON, in the file's order.
type shower struct {
	out     *bytes.Buffer
	lookup  func(string) (string, bool)
	secrets *[]string
}

func (s shower) value(path string, n *node, indent string) {
	more := indent + "  "
	separate := func(i int) {
		if i > 0 {
			s.out.WriteByte(',')
		}
		s.out.WriteString("\n" + more)
	}
	switch n.kind {
	case list:
		s.out.WriteByte('[')
		for i, it := range n.items {
			separate(i)
			if i > 0 && isCommand(path) { // the program may be known, what it is told may not
				s.hide(it)
				s.out.WriteString(strconv.Quote(Removed))
				continue
			}
			s.value(index(path, i), it, more)
		}
		s.close(len(n.items), indent, ']')
	case dict:
		s.out.WriteByte('{')
		for i, e := range n.entries {
			separate(i)
			s.out.Write(quoted(e.key))
			s.out.WriteString(": ")
			s.value(join(path, e.key), e.value, more)
		}
		s.close(len(n.entries), indent, '}')
	case null:
		s.out.WriteString("null")
	case boolean:
		s.out.WriteString(n.text)
	case number:
		if hidden(path) {
			s.hide(n)
			s.out.WriteString(strconv.Quote(Removed))
			return
		}
		s.out.WriteString(n.text)
	default:
		s.out.Write(quoted(s.text(path, n)))
	}
}

func (s shower) close(count int, indent string, bracket byte) {
	if count > 0 {
		s.out.WriteString("\n" + indent)
	}
	s.out.WriteByte(bracket)
}

func quoted(text string) []byte {
	var b bytes.Buffer
	e := json.NewEncoder(&b)
	e.SetEscapeHTML(false)
	_ = e.Encode(text) // a string can always be encoded
	return bytes.TrimRight(b.Bytes(), "\n")
}

// text is a value as it may be shown.
func (s shower) text(path string, n *node) string {
	for _, m := range asked.FindAllStringSubmatch(n.text, -1) {
		if value, set := s.lookup(m[1]); set {
			s.remember(value)
		}
	}
	switch {
	case hidden(path):
		s.hide(n)
		return Removed
	case isCommand(path):
		program, rest, _ := strings.Cut(strings.TrimSpace(n.text), " ")
		if strings.ContainsAny(program, "=${") {
			return Removed // an assignment
		}
		if rest == "" {
			return program
		}
		return program + " " + Removed
	}
	if strings.HasSuffix(lastKey(path), "_file") {
		return RedactAddresses(n.text)
	}
	return RedactLine(n.text)
}

// asked finds what a text takes from the environment.
var asked = regexp.MustCompile(`\$\{([A-Za-z_][A-Za-z0-9_]*)`)

func (s shower) hide(n *node) { n.walk("", func(_ string, n *node) { s.remember(n.text) }) }

func (s shower) remember(secret string) {
	for _, part := range append(strings.Split(secret, ":"), secret) { // of user:password the password, too
		const least = 5 // shorter ones are words of every text
		if len(part) >= least {
			*s.secrets = append(*s.secrets, part)
		}
	}
}

// lastKey is the key that a path ends in, without an index.
func lastKey(path string) string {
	key := path[strings.LastIndexByte(path, '.')+1:]
	key, _, _ = strings.Cut(key, "[")
	return strings.ToLower(strings.Trim(key, `"`))
}

// hidden tells whether a value may be a secret by its key.
func hidden(path string) bool {
	key := lastKey(path)
	if strings.HasSuffix(key, "_file") || key == "scheme" {
		return false // a path or a word, and whoever helps wants to know it
	}
	switch key {
	case "credentials", "send", "body", "expect", "expect_regex":
		return true
	}
	return sounds(path) || strings.Contains(strings.ToLower(path), ".env.")
}

// isCommand tells whether a value is a program with its arguments.
func isCommand(path string) bool {
	switch lastKey(path) {
	case "command", "check_command", "reload_command", "on_stop", "arguments":
		return true
	}
	return false
}

var (
	// fallback is what stands for a variable that is not set.
	fallback = regexp.MustCompile(`(\$\{[A-Za-z_][A-Za-z0-9_]*:-)[^}]*\}`)
	// userinfo is who somebody is in an address.
	userinfo = regexp.MustCompile(`(://)[^/@\s"\\]+@`)
	// login is the same where no scheme stands before it: user:password@host.
	login = regexp.MustCompile(`(^|[\s"'=,\[(])[^\s"'=,\[(/@:\\]+:[^\s"'/@\\]+@`)
	// query is what somebody asks for in an address or a path.
	query = regexp.MustCompile(`(/[^\s?"'\\]*\?)[^\s"'\\]+`)
	// keyword is where in a line of haproxy.cfg something begins that may be a secret. All behind it goes.
	keyword = regexp.MustCompile(`(?i)(\bstats\s+auth\b|\b(?:pre)?setenv\s+\S+|` +
		`\b(?:set|add|replace)-(?:header|value)\s+\S+|\bhdr\s+\S+|\bsend(?:-binary|-lf|-binary-lf)?\b|\bhttpchk\s+\S+\s+\S+\s+\S+|` +
		`\b(?:basic|bearer)\s|jwt_verify\(|set-var\S*\s+str\(|hmac\(|aes_gcm_(?:dec|enc)\(|` +
		`[\w.-]*(?:password|passwd|passphrase|secret|token|authorization|credential|api[-_]?key|access[-_]?key|x-auth)[\w-]*)`)
)

// RedactAddresses is a text without who somebody is in an address, the queries of addresses, and the defaults of
// variables. It may be JSON, and is then still.
func RedactAddresses(text string) string {
	text = fallback.ReplaceAllString(text, "${1}"+Removed+"}")
	text = userinfo.ReplaceAllString(text, "${1}"+Removed+"@")
	text = login.ReplaceAllString(text, "${1}"+Removed+"@")
	return query.ReplaceAllString(text, "${1}"+Removed)
}

// RedactLine is a line of haproxy.cfg, or any other text, without what may be a secret: who somebody is in an address,
// the queries of addresses, the defaults of variables, and all that stands behind a word that announces a secret (stats
// auth, password, setenv, set-header, tcp-check send, Authorization, ...). It rather takes too much out than too little.
func RedactLine(line string) string {
	line = RedactAddresses(line)
	if at := keyword.FindStringIndex(line); at != nil && strings.TrimSpace(line[at[1]:]) != "" {
		return line[:at[1]] + " " + Removed
	}
	return line
}
