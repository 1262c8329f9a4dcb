package agent

import (
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/myelin-sd/myelin/config"
)

func sortedStrings(s []string) []string { return slices.Sorted(slices.Values(s)) }

// holdsText waits until a file of the output folder has this text.
func (n *node) holdsText(name, want string) {
	n.t.Helper()
	eventually(n.t, name+" is as wanted", func() error {
		text, err := os.ReadFile(filepath.Join(n.config.FileOutput.OutputDirectory, name))
		if err == nil && string(text) != want {
			err = fmt.Errorf("%s is %s", name, text)
		}
		return err
	})
}

func withOutput(services ...string) func(*config.Agent) {
	return func(c *config.Agent) {
		c.FileOutput = &config.FileOutput{OutputDirectory: filepath.Join(filepath.Dir(c.HAProxy.ConfigFilePath), "services", "here")}
		for _, s := range services {
			c.Services = append(c.Services, serviceNamed(s))
		}
	}
}

// TestFileOutput: Synapse's files, with its fields, nulls included; filters have been applied; a service of which
// nothing is known keeps its file, and so does everything that is not ours.
func TestFileOutput(t *testing.T) {
	n := newNode(t, withOutput("quiet", "off", "leaving"), func(c *config.Agent) {
		c.Services[2].FileOutputDisabled = true
		c.Services[0].Discovery.LabelFilters = []config.LabelFilter{{Label: "use", Value: "no", Condition: "not-equals"}}
	})
	dir := n.config.FileOutput.OutputDirectory
	require.NoError(t, os.MkdirAll(dir, 0o755))
	write := func(name, text string) {
		t.Helper()
		require.NoError(t, os.WriteFile(filepath.Join(dir, name), []byte(text), 0o600))
	}
	write("svc.json", "[{\"corrupt")
	write("quiet.json", "[\"as it was\"]")
	write("foreign.json", "{}")
	n.start(0)
	a, b, c := asking(t, "a@127.0.0.1:81", "backup maxconn 5"), instances(t, "b@::1:82,7")[0], instances(t, "c@127.0.0.1:83")[0]
	id := int64(12)
	b.ID, b.Labels = &id, map[string]any{"az": "a&b"}
	c.Labels = map[string]any{"use": "no"}
	n.hearOf("svc", a, b, c)
	n.hearOf("off", a)
	n.hearOf("leaving", a)
	n.holdsText("svc.json", `[{"name":"a","host":"127.0.0.1","port":81,"id":null,"weight":null,"haproxy_server_options":"backup maxconn 5","labels":null},`+
		`{"name":"b","host":"::1","port":82,"id":12,"weight":7,"haproxy_server_options":null,"labels":{"az":"a&b"}}]`)
	n.holdsText("leaving.json", `[{"name":"a","host":"127.0.0.1","port":81,"id":null,"weight":null,"haproxy_server_options":"backup maxconn 5","labels":null}]`)
	info, err := os.Stat(filepath.Join(dir, "svc.json"))
	require.NoError(t, err)
	require.EqualValues(t, 0o644, info.Mode().Perm())

	// Nothing changed, nothing is written; a change is.
	n.hearOf("svc", a, b, c)
	n.hearOf("leaving")
	n.hearOf("leaving", b)
	eventually(t, "leaving is written again", func() error {
		text, err := os.ReadFile(filepath.Join(dir, "leaving.json"))
		if err == nil && !strings.Contains(string(text), `"b"`) {
			err = fmt.Errorf("%s", text)
		}
		return err
	})
	again, err := os.Stat(filepath.Join(dir, "svc.json"))
	require.NoError(t, err)
	require.True(t, os.SameFile(info, again), "the same file, not an equal one")
	n.holdsText("quiet.json", "[\"as it was\"]")
	require.NoFileExists(t, filepath.Join(dir, "off.json"))

	// The next configuration has neither leaving nor a file for svc: both were ours. The others stay.
	n.stop()
	next := *n.config
	next.Services = slices.Clone(n.config.Services[:2])
	next.Services[0].FileOutputDisabled = true
	n.startWith(&next, 0, n.gen.viewsByName())
	n.hearOf("svc", a)
	n.hearOf("quiet", b)
	eventually(t, "what is no more is gone", func() error {
		left, err := filepath.Glob(filepath.Join(dir, "*.json"))
		for i := range left {
			left[i] = filepath.Base(left[i])
		}
		if err == nil && !slices.Equal(left, []string{"foreign.json", "quiet.json"}) {
			err = fmt.Errorf("%v", left)
		}
		return err
	})
	eventually(t, "it is said", func() error {
		if n.said("its file in file_output.output_directory is deleted") != 2 {
			return fmt.Errorf("said of %d", n.said("its file in file_output.output_directory is deleted"))
		}
		return nil
	})
	hidden, err := filepath.Glob(filepath.Join(dir, ".*.tmp"))
	require.NoError(t, err)
	require.Empty(t, hidden)
}

// TestFileOutputCostsOnlyItself: a file that cannot be written is shown, the others are written.
func TestFileOutputCostsOnlyItself(t *testing.T) {
	n := newNode(t, withOutput("other"))
	dir := n.config.FileOutput.OutputDirectory
	require.NoError(t, os.MkdirAll(filepath.Join(dir, "svc.json"), 0o755))
	n.start(0)
	n.hear("a@127.0.0.1:81")
	n.hearOf("other", instances(t, "b@127.0.0.1:82")...)
	n.holdsText("other.json", `[{"name":"b","host":"127.0.0.1","port":82,"id":null,"weight":null,"haproxy_server_options":null,"labels":null}]`)
	eventually(t, "it shows", func() error {
		if s := n.agent.Status().Exports; !strings.Contains(s.Error, "service svc") {
			return fmt.Errorf("%q", s.Error)
		}
		return nil
	})
	n.has("svc", "a")
}

// TestFileOutputLedger: what stands in it is a name in the folder, and nothing else.
func TestFileOutputLedger(t *testing.T) {
	dir := t.TempDir()
	out := filepath.Join(dir, "out")
	require.NoError(t, os.Mkdir(out, 0o755))
	require.NoError(t, os.WriteFile(filepath.Join(dir, "precious.json"), nil, 0o600))
	require.NoError(t, os.WriteFile(filepath.Join(out, "was.json"), nil, 0o600))
	require.NoError(t, os.WriteFile(filepath.Join(out, outputLedger), []byte("../precious\nwas\n\n  \n"), 0o600))
	o := newOutputFiles(out)
	removed, err := o.prune(nil)
	require.NoError(t, err)
	require.Equal(t, []string{"was"}, removed)
	require.FileExists(t, filepath.Join(dir, "precious.json"))
	require.NoFileExists(t, filepath.Join(out, "was.json"))
}

// TestExportsFollowTheRegistry: where the registry configures the service, the files follow that.
func TestExportsFollowTheRegistry(t *testing.T) {
	n := newNode(t, withOutput(), withState(""), func(c *config.Agent) { c.Services[0].Discovery.GeneratorConfigPath = "/svc" })
	n.start(0)
	n.gen.remotes.gap = 0 // read by the goroutine only after the first acceptance
	n.holding("", "a@127.0.0.1:81")
	file := `[{"name":"a","host":"127.0.0.1","port":81,"id":null,"weight":null,"haproxy_server_options":null,"labels":null}]`
	n.holdsText("svc.json", file)
	n.holding(`{"file_output": {"disabled": true}, "haproxy": {"server_options": "check inter 7s"}}`, "a@127.0.0.1:81")
	eventually(t, "the file is gone", func() error {
		if _, err := os.Stat(filepath.Join(n.config.FileOutput.OutputDirectory, "svc.json")); !os.IsNotExist(err) {
			return fmt.Errorf("it is there: %w", err)
		}
		return nil
	})
	eventually(t, "the state file tells", func() error {
		state, err := n.stateWritten()
		if err == nil && state["svc"][generatorConfig]["server_options"] != "check inter 7s" {
			err = fmt.Errorf("%v", state["svc"])
		}
		return err
	})
	n.holding("", "a@127.0.0.1:81")
	n.holdsText("svc.json", file)
}
