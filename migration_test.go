package main_test

import (
	"context"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/myelin-sd/myelin/cli/clitest"
	"github.com/myelin-sd/myelin/discovery"
)

// TestTwoRegistrarsOfOneInstance: an instance that two registrars look after, as in a migration from Nerve, is one
// server to its consumers. Either registrar may stop or die first, and nobody sees more of it than that one is left.
func TestTwoRegistrarsOfOneInstance(t *testing.T) {
	w := newWorld(t)
	w.startInstance("other", w.zk.Addr())
	in := w.startServiceOf("a", w.zk.Addr())
	withdrawNerve := w.publishAsNerve("a", in.Port)
	w.startAgent()
	w.converges("a", "other")
	unchanged := w.pinned()
	w.registeredTimes("a", 1)
	load := clitest.StartLoad(w.url(), 100)
	identity := w.serverOf("a")

	// Nerve runs, ours comes and goes: a migration that was called off.
	first := w.secondRegistrar(in, "first")
	w.registeredTimes("a", 2)
	require.NoError(t, first.Stop())
	w.registeredTimes("a", 1)

	// Ours comes again, and Nerve goes: the migration.
	first = w.secondRegistrar(in, "first")
	w.registeredTimes("a", 2)
	withdrawNerve()
	w.registeredTimes("a", 1)

	// Two of ours with files and folders of their own: the older one goes, then the younger one.
	second := w.secondRegistrar(in, "second")
	w.registeredTimes("a", 2)
	require.NoError(t, first.Stop())
	w.registeredTimes("a", 1)
	first = w.secondRegistrar(in, "first")
	w.registeredTimes("a", 2)
	require.NoError(t, first.Stop())
	w.registeredTimes("a", 1)

	// One that dies leaves its node until its session ends.
	first = w.secondRegistrar(in, "first")
	w.registeredTimes("a", 2)
	second.Kill()
	w.registeredTimes("a", 1)

	// The way back.
	withdrawNerve = w.publishAsNerve("a", in.Port)
	w.registeredTimes("a", 2)
	require.NoError(t, first.Stop())
	w.registeredTimes("a", 1)

	require.Equal(t, identity, w.serverOf("a"), "the same server all the time")
	require.Zero(t, w.counter(`myelin_haproxy_commands_total{op="maint",result="ok"}`), "nothing ever left rotation")
	require.Zero(t, w.counter(`myelin_haproxy_commands_total{op="drain",result="ok"}`), "nothing ever left rotation")
	withdrawNerve()
	w.converges("other")
	require.NotZero(t, w.counter(`myelin_haproxy_commands_total{op="maint",result="ok"}`), "a server that leaves is put into maintenance")
	w.endLoad(load)
	unchanged()
}

// publishAsNerve registers an instance from the test's own session with the bytes that Nerve would write for the file
// of startInstance.
func (w *world) publishAsNerve(name string, port int) (withdraw func()) {
	w.t.Helper()
	r := discovery.Registration{
		Path: servicePath, Prefix: name + "_", Sequential: true, Ephemeral: true,
		Data: fmt.Appendf(nil, `{"host":"127.0.0.1","port":%d,"name":%q,"weight":10}`, port, name),
	}
	node, err := w.session.Publish(context.Background(), r, "")
	require.NoError(w.t, err)
	return func() {
		w.t.Helper()
		require.NoError(w.t, w.session.Withdraw(context.Background(), r, node.Node))
	}
}

// secondRegistrar starts a registrar of its own for an instance: another file, another state_dir, the same instance id.
func (w *world) secondRegistrar(in *instance, name string) *clitest.Process {
	w.t.Helper()
	state := filepath.Join(w.dir, name)
	require.NoError(w.t, os.MkdirAll(state, 0o755))
	copied := *in
	copied.file = filepath.Join(state, "registrar.toml")
	w.write(copied.file, strings.Replace(read(w.t, in.file), w.dir, state, 1))
	w.startRegistrar(&copied)
	return copied.registrar
}

// registeredTimes waits until the registry has an instance so many times, and the agent knows it. All the while the
// agent has one server for it.
func (w *world) registeredTimes(name string, times int) {
	w.t.Helper()
	w.eventually(fmt.Sprintf("%s is registered %d times", name, times), func() error {
		ctx, cancel := context.WithTimeout(context.Background(), 5*time.Second)
		defer cancel()
		nodes, err := w.session.Children(ctx, servicePath)
		if err != nil {
			return err
		}
		found := 0
		for _, n := range nodes {
			if strings.HasPrefix(n, name+"_") {
				found++
			}
		}
		if listed := w.status().Services[0].Listed; found != times || listed != len(nodes) {
			return fmt.Errorf("the registry has %v, the agent knows of %d", nodes, listed)
		}
		return w.inRotation([]string{name, "other"})
	})
}

// serverOf is HAProxy's server of an instance, by what stays the same as long as it is the same server.
func (w *world) serverOf(name string) string {
	w.t.Helper()
	servers, err := w.servers()
	require.NoError(w.t, err)
	var found []string
	for _, s := range servers {
		if strings.HasPrefix(s.Name, name+"_") {
			found = append(found, fmt.Sprint(s.Name, s.ID, s.Addr, s.Weight))
		}
	}
	require.Len(w.t, found, 1)
	return found[0]
}
