package agent

import (
	"flag"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/myelin-sd/myelin/config"
	"github.com/myelin-sd/myelin/discovery"
	"github.com/myelin-sd/myelin/haproxy"
	"github.com/myelin-sd/myelin/haproxy/haproxytest"
)

var update = flag.Bool("update", false, "write the .cfg files of testdata/render/smartstack and testdata/explain.txtar; read the diff before you commit it")

// znodes reads lines of "PATH NODE DATA" into the snapshot of each path.
func znodes(t *testing.T, path string) map[string]discovery.Snapshot {
	t.Helper()
	text, err := os.ReadFile(path)
	require.NoError(t, err)
	nodes := map[string][]string{}
	for line := range strings.Lines(string(text)) {
		dir, rest, ok := strings.Cut(strings.TrimSpace(line), " ")
		require.True(t, ok, line)
		nodes[dir] = append(nodes[dir], rest)
	}
	out := map[string]discovery.Snapshot{}
	for dir, list := range nodes {
		out[dir] = snapshotOf(list)
	}
	return out
}

func snapshotOf(nodes []string) discovery.Snapshot {
	snap := discovery.Snapshot{At: time.Now()}
	for _, n := range nodes {
		name, data, _ := strings.Cut(n, " ")
		if in, err := discovery.DecodeNerve(name, []byte(data)); err == nil {
			snap.Instances = append(snap.Instances, in)
		} else {
			snap.Rejected = append(snap.Rejected, discovery.Rejection{Node: name, Detail: err.Error()})
		}
	}
	return snap
}

// TestExamples: configurations in the shapes that circulate load without an error, become the file beside them, and
// HAProxy takes it.
func TestExamples(t *testing.T) {
	paths, err := filepath.Glob("../testdata/render/smartstack/*.conf.json")
	require.NoError(t, err)
	require.GreaterOrEqual(t, len(paths), 4)
	for _, path := range paths {
		base := strings.TrimSuffix(path, ".conf.json")
		t.Run(filepath.Base(base), func(t *testing.T) {
			c, problems, err := config.LoadAgent(path, config.Options{})
			require.NoError(t, err)
			for _, p := range problems {
				require.Contains(t, p.String(), "nginx", "nothing but a plugin's key is worth a warning")
			}
			snapshots := znodes(t, base+".znodes")
			k := newComposer(c, nil, nil)
			var views []view
			for _, s := range c.Services {
				views = append(views, newView(s).next(snapshots[s.Discovery.Path], time.Now()))
			}
			w := k.all(views, nil)
			require.Empty(t, w.file.Warnings())
			got := string(w.file.Render(w.forFile(newQuarantine(), &ladder{})))
			if *update {
				require.NoError(t, os.WriteFile(base+".cfg", []byte(got), 0o644))
			}
			want, err := os.ReadFile(base + ".cfg")
			require.NoError(t, err, "run with -update once, then read what it wrote")
			require.Equal(t, string(want), got)
		})
	}
}

func TestExamplesPassHAProxy(t *testing.T) {
	haproxytest.Require(t)
	check := haproxy.CheckWith("haproxy", time.Minute)
	paths, err := filepath.Glob("../testdata/render/smartstack/*.cfg")
	require.NoError(t, err)
	require.NotEmpty(t, paths)
	for _, path := range paths {
		require.NoError(t, check(t.Context(), path))
	}
}
