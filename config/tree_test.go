package config

import (
	"fmt"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"
)

// lines shows where a tree's values are, "key:line" in file order.
func lines(root *node) []string {
	var out []string
	root.walk("", func(path string, n *node) {
		if path != "" {
			out = append(out, fmt.Sprintf("%s:%d", path, n.line))
		}
	})
	return out
}

func TestTOMLPlaces(t *testing.T) {
	for text, want := range map[string]string{
		"a = 1\n\n# b = 2\nc = 3":                                "a:1 c:4",
		"[z]\nb = 1\n[y]\na = 1":                                 "z:1 z.b:2 y:3 y.a:4",
		"[a.b]\nc = 1\n[a]\nd = 1":                               "a:1 a.b:1 a.b.c:2 a.d:4",
		"a.b.c = 1\na.b.d = 2":                                   "a:1 a.b:1 a.b.c:1 a.b.d:2",
		"a = [\n 1, # ]\n '],', \"]\\\"\",\n]\nb = 2":            "a:1 a[0]:2 a[1]:3 a[2]:3 b:5",
		"a = { b = 1, c.d = '}', \"e f\" = [ { g = 1 } ] }":      `a:1 a.b:1 a.c:1 a.c.d:1 a."e f":1 a."e f"[0]:1 a."e f"[0].g:1`,
		"[[a]]\nb = 1\n[[a]]\nb = 2\n[a.c]\nd = 3":               "a:1 a[0]:1 a[0].b:2 a[1]:3 a[1].b:4 a[1].c:5 a[1].c.d:6",
		"[[a]]\n[[a.b]]\nc=1\n[[a]]\n[[a.b]]\nc=2\n[[a.b]]\nc=3": "a:1 a[0]:1 a[0].b:2 a[0].b[0]:2 a[0].b[0].c:3 a[1]:4 a[1].b:5 a[1].b[0]:5 a[1].b[0].c:6 a[1].b[1]:7 a[1].b[1].c:8",
		"a = \"\"\"\nx = 1\n\\\"\"\" y = 2\n\"\"\"\"\"\nb = 1":   "a:1 b:5",
		"a = '''\n\\'''''\nb = 1\n'''c' = 1":                     "",
		"a = '''\n\\'''''\nb = 1\n'c.d' = 1":                     `a:1 b:3 "c.d":4`,
		"a = \"\\\\\"\nb = ''\nc = \"\"\nd = 1":                  "a:1 b:2 c:3 d:4",
		"\"\\u0061b\" = 1\n ' x ' . y = 2":                       `ab:1 " x ":2 " x ".y:2`,
		"a = 2020-01-01T00:00:00Z\nb = 1.5e3\nc = nan":           "a:1 b:2 c:3",
		"a = 1\r\nb = [\r\n2]\r\n":                               "a:1 b:2 b[0]:3",
		"[ a . \"b\" ] # [c]\nd = 1":                             "a:1 a.b:1 a.b.d:2",
		"a = [\"\"\"x\"\"\"\"\",\n2]":                            "a:1 a[0]:1 a[1]:2",
		"a = [[1,\n2],\n[3]]":                                    "a:1 a[0]:1 a[0][0]:1 a[0][1]:2 a[1]:3 a[1][0]:3",
	} {
		root, err := parseTOML("x.toml", []byte(text))
		if want == "" {
			require.Error(t, err, text)
			continue
		}
		require.NoError(t, err, text)
		require.Equal(t, want, strings.Join(lines(root), " "), text)
	}
}

func TestJSONPlaces(t *testing.T) {
	root, err := parseJSON("x.json", []byte("{\"b\": {\n\"c\":\n[1,\n\"x\\n\"]},\r\n\"a\\n\": null, \"c.d\": true}"), nil)
	require.NoError(t, err)
	require.Equal(t, []string{"b:1", "b.c:2", "b.c[0]:3", "b.c[1]:4", `"a\n":5`, `"c.d":5`}, lines(root))
}

// A service may be called as a key of the file is.
func TestServiceNames(t *testing.T) {
	for text, want := range map[string]string{
		`{"services": {"discovery": ` + baseService + `}}`:                            "discovery",
		`{"haproxy": ` + baseService + `, "services1": ` + baseService + `}`:          "haproxy services1",
		`{"services": {"services": ` + baseService + `, "log": ` + baseService + `}}`: "services log",
	} {
		a, problems, err := ParseAgent("x.json", []byte(text), Options{})
		require.NoError(t, err, text)
		require.Empty(t, problems)
		var names []string
		for _, s := range a.Services {
			names = append(names, s.Name)
		}
		require.Equal(t, want, strings.Join(names, " "))
	}
}

func TestExpand(t *testing.T) {
	lookup := func(name string) (string, bool) {
		v, ok := map[string]string{"A": "1", "E": "", "T": "${A}"}[name]
		return v, ok
	}
	for in, want := range map[string]string{
		"": "", "x": "x", "${A}": "1", "x${A}y${A}": "x1y1", "${E}": "", "${E:-d}": "d", "${N:-}": "", "${N:-a:-b}": "a:-b", "${N:-/x y}z": "/x yz",
		"$${A}": "${A}", "$$${A}": "$${A}", "$A $ {A}": "$A $ {A}", "${T}": "${A}", "a$": "a$", "$${": "${",
	} {
		got, wrong, _ := expand(in, lookup)
		require.Empty(t, wrong, in)
		require.Equal(t, want, got, in)
	}
	for in, want := range map[string]string{"${N}": "the environment variable N is not set", "${": "a ${ without its }", "${A": "a ${ without its }",
		"${}": `"" is not the name`, "${A B}": `"A B" is not the name`, "${A-x}": "is not the name", "${:-x}": "is not the name", "${A}${N}": "N is not set"} {
		got, wrong, remedy := expand(in, lookup)
		require.Contains(t, wrong, want, in)
		require.NotEmpty(t, remedy)
		require.Empty(t, got)
	}
}
