package main_test

import (
	"go/parser"
	"go/token"
	"io/fs"
	"os"
	"path"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"
)

const module = "github.com/myelin-sd/myelin"

// ours says which rooms a room may open onto, and why. Tests may import more.
var ours = []struct {
	room    string
	imports []string
	why     string
}{
	{".", []string{"cli"}, "main only hands over to the commands"},
	{"admin", []string{"journal"}, "the looks and manners of HTTP; knows nothing of what is told but what an event is"},
	{"cli", []string{"admin", "agent", "config", "discovery", "discovery/zookeeper", "doctor", "doctor/host", "durable", "fsck", "haproxy", "journal", "registrar", "registrar/child", "registrar/control"}, "commands compose everything"},
	{"cli/clitest", nil, "runs the binary from outside"},
	{"config", nil, "the files' schema knows no behaviour"},
	{"durable", nil, "writes files; knows nothing of what is in them"},
	{"discovery", []string{"durable"}, "instances and snapshots are values"},
	{"discovery/zookeeper", []string{"discovery", "durable"}, "a source of snapshots"},
	{"discovery/zookeeper/zktest", nil, "runs the server from outside"},
	{"doctor", nil, "judges facts; asks nobody, so that its judgement is a table of tests"},
	{"doctor/host", []string{"doctor"}, "reads a host's facts; judges nothing"},
	{"fsck", []string{"discovery"}, "judges a tree of registrations as values; others read it and delete"},
	{"haproxy", []string{"durable"}, "HAProxy's servers as values, and HAProxy itself; knows nothing of registries"},
	{"haproxy/haproxytest", []string{"haproxy"}, "runs HAProxy from outside"},
	{"journal", []string{"durable"}, "keeps what happened; knows nothing of what it means"},
	{"registrar", []string{"admin", "discovery", "durable", "journal"}, "publishes registrations; the directory is handed in, what operators ask for is kept on disk"},
	{"registrar/control", []string{"admin", "registrar"}, "tells of a registrar, and tells it and an agent what to do"},
	{"registrar/child", nil, "runs a program; knows nothing of services"},
	{"agent", []string{"admin", "config", "discovery", "discovery/zookeeper", "durable", "haproxy", "journal", "registrar"}, "the composition of the node's side, and the status of both roles"},
	{"demo", []string{"cli/clitest", "discovery/zookeeper/zktest", "haproxy", "config", "discovery", "discovery/zookeeper"}, "plays real processes and compares ZooKeeper's list with HAProxy's table"},
}

// theirs says which files may import a library, by a pattern over the path, and why.
var theirs = []struct {
	library  string
	patterns []string
	why      string
}{
	{"github.com/go-zookeeper/zk", []string{"discovery/zookeeper/*"}, "one package knows the client's traps"},
	{"github.com/BurntSushi/toml", []string{"config/*"}, "one package reads files"},
	{"github.com/spf13/cobra", []string{"cli/*"}, "one package knows flags"},
	{"github.com/prometheus/client_golang", []string{"*/metrics.go", "*/admin.go", "cli/*"}, "numbers are exported at the edge"},
	{"github.com/coreos/go-systemd", []string{"cli/*"}, "only the process talks to its supervisor"},
	{"github.com/DataDog/datadog-go", []string{"registrar/statsd.go"}, "one file speaks dogstatsd"},
	{"google.golang.org/grpc", []string{"registrar/grpc.go"}, "one check speaks it"},
	{"flag", []string{"demo/*"}, "flags belong to the commands"},
	{"os/signal", []string{"cli/*", "demo/*"}, "signals belong to the process"},
}

// TestImports keeps the rooms as docs/architecture.md draws them.
func TestImports(t *testing.T) {
	seen := map[string]bool{}
	err := filepath.WalkDir(".", func(p string, d fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		if d.IsDir() && p != "." && (strings.HasPrefix(d.Name(), ".") || d.Name() == "testdata") {
			return filepath.SkipDir
		}
		if !strings.HasSuffix(p, ".go") || strings.HasSuffix(p, "_test.go") {
			return nil
		}
		seen[path.Dir(p)] = true
		file, err := parser.ParseFile(token.NewFileSet(), p, nil, parser.ImportsOnly)
		if err != nil {
			return err
		}
		for _, spec := range file.Imports {
			imported, _ := strconv.Unquote(spec.Path.Value)
			checkImport(t, filepath.ToSlash(p), imported)
		}
		return nil
	})
	require.NoError(t, err)
	for _, room := range ours {
		require.True(t, seen[room.room], "room %s has no Go file: remove its line", room.room)
	}
}

func checkImport(t *testing.T, file, imported string) {
	t.Helper()
	for _, rule := range theirs {
		if imported != rule.library && !strings.HasPrefix(imported, rule.library+"/") {
			continue
		}
		ok := slices.ContainsFunc(rule.patterns, func(p string) bool { m, _ := path.Match(p, file); return m })
		if !ok {
			t.Errorf("%s imports %s, which only %v may: %s", file, imported, rule.patterns, rule.why)
		}
	}
	room, isOurs := strings.CutPrefix(imported, module+"/")
	if !isOurs {
		return
	}
	i := slices.IndexFunc(ours, func(r struct {
		room    string
		imports []string
		why     string
	}) bool {
		return r.room == path.Dir(file)
	})
	if i < 0 {
		t.Errorf("%s lies in a room that this test does not know; add a line with its reason", file)
		return
	}
	if !slices.Contains(ours[i].imports, room) {
		t.Errorf("%s imports %s; the room %s (%s) may import %v", file, room, ours[i].room, ours[i].why, ours[i].imports)
	}
}

// TestNoHiddenState: only the command packages touch the process's exit; nobody has an init function.
func TestNoHiddenState(t *testing.T) {
	err := filepath.WalkDir(".", func(p string, d fs.DirEntry, err error) error {
		if err != nil || d.IsDir() || !strings.HasSuffix(p, ".go") || strings.HasSuffix(p, "_test.go") {
			return err
		}
		text, err := os.ReadFile(p)
		if err != nil {
			return err
		}
		if strings.Contains(string(text), "\nfunc init()") {
			t.Errorf("%s has an init function", p)
		}
		exits := p == "main.go" || strings.HasPrefix(p, "cli/") || strings.HasPrefix(p, "demo/") || strings.HasPrefix(p, "testdata/")
		if strings.Contains(string(text), "os.Exit(") && !exits {
			t.Errorf("%s ends the process", p)
		}
		return nil
	})
	require.NoError(t, err)
}
