package config

import (
	"fmt"
	"regexp"
	"strings"
)

// expand replaces ${NAME} and ${NAME:-default} in s; $${ is a literal ${. NAME:-default also stands in for an empty
// variable, as in a shell. Nothing is expanded twice: what comes from the environment is taken as it is.
func expand(s string, lookup func(string) (string, bool)) (out, wrong, remedy string) {
	var b strings.Builder
	for {
		i := strings.Index(s, "${")
		if i < 0 {
			return b.String() + s, "", ""
		}
		if i > 0 && s[i-1] == '$' {
			b.WriteString(s[:i-1] + "${")
			s = s[i+2:]
			continue
		}
		b.WriteString(s[:i])
		s = s[i+2:]
		end := strings.IndexByte(s, '}')
		if end < 0 {
			return "", "a ${ without its }", "write ${NAME}, or $${ for a literal ${"
		}
		name, fallback, hasFallback := strings.Cut(s[:end], ":-")
		s = s[end+1:]
		if !variable.MatchString(name) {
			return "", fmt.Sprintf("%s is not the name of an environment variable", quote(name)),
				"write ${NAME} with letters, digits and _, or $${ for a literal ${"
		}
		v, set := lookup(name)
		switch {
		case hasFallback && v == "":
			v = fallback
		case !set && !hasFallback:
			return "", fmt.Sprintf("the environment variable %s is not set", name),
				fmt.Sprintf("set it, or write ${%s:-default}, or $${%s} for a literal ${%s}", name, name, name)
		}
		b.WriteString(v)
	}
}

var (
	variable = regexp.MustCompile(`^[A-Za-z_][A-Za-z0-9_]*$`)
	// erbTag finds what is left of Synapse's templates; the group is the variable of the form that is in real use.
	erbTag = regexp.MustCompile(`<%=?-?\s*(?:ENV(?:\.fetch)?[\[(]\s*['"](\w+)['"]\s*[\])])?`)
)

// erb says what to write for the first ERB tag of s, if there is one.
func erb(s string) (wrong, remedy string, found bool) {
	m := erbTag.FindStringSubmatch(s)
	if m == nil {
		return "", "", false
	}
	name := m[1]
	if name == "" {
		name = "NAME"
	}
	return "an ERB tag, which Myelin does not run", "write ${" + name + "} to take a value from the environment", true
}

// expandAll expands the strings of a tree in place. What is wrong is told once; the node is then broken.
func (r *reader) expandAll(root *node, path string, lookup func(string) (string, bool)) {
	if lookup == nil {
		lookup = func(string) (string, bool) { return "", false }
	}
	root.walk(path, func(path string, n *node) {
		if n.kind != text {
			return
		}
		if wrong, remedy, found := erb(n.text); found {
			n.broken = true
			r.fail(n, path, wrong, remedy)
			return
		}
		if !strings.Contains(n.text, "${") {
			return
		}
		out, wrong, remedy := expand(n.text, lookup)
		if wrong != "" {
			n.broken = true
			r.fail(n, path, wrong, remedy)
			return
		}
		n.raw, n.text = n.text, out
	})
}
