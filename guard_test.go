package main_test

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/myelin-sd/myelin/agent"
	"github.com/myelin-sd/myelin/cli/clitest"
	"github.com/myelin-sd/myelin/discovery"
)

// guardedWorld has the guard on, as it is where the file says nothing.
func guardedWorld(t *testing.T) *world {
	return newWorld(t, func(text string) string { return strings.Replace(text, "guard = \"off\"\n", "", 1) }, noChecks)
}

// fleetOf registers instances without registrars: their names and their nodes.
type fleetOf struct {
	w     *world
	port  int
	nodes map[string]string
}

func (f *fleetOf) registration(name string, number int, leaving bool) discovery.Registration {
	f.w.t.Helper()
	data, err := discovery.EncodeNerve(discovery.Payload{Host: registrationHost(number), Port: uint16(f.port), Name: name, Leaving: leaving})
	require.NoError(f.w.t, err)
	return discovery.Registration{Path: servicePath, Prefix: name + "_", Data: data, Sequential: true, Ephemeral: true}
}

func nameOf(number int) string { return fmt.Sprintf("i%d", number) }

// names are those of the instances from first to last.
func namesOf(first, last int) (names []string) {
	for n := first; n <= last; n++ {
		names = append(names, nameOf(n))
	}
	return names
}

func (f *fleetOf) join(first, last int) {
	f.w.t.Helper()
	for n := first; n <= last; n++ {
		node, err := f.w.session.Publish(context.Background(), f.registration(nameOf(n), n, false), "")
		require.NoError(f.w.t, err)
		f.nodes[nameOf(n)] = node.Node
	}
}

// vanish deletes nodes without a word, over some time.
func (f *fleetOf) vanish(first, last int, within time.Duration) {
	f.w.t.Helper()
	pause := within / time.Duration(last-first+1)
	for n := first; n <= last; n++ {
		require.NoError(f.w.t, f.w.session.Withdraw(context.Background(), f.registration(nameOf(n), n, false), f.nodes[nameOf(n)]))
		time.Sleep(pause) // the scenario's own pace, nothing is waited for
	}
}

// leave marks instances as leaving, as a registrar does. The agent has to have seen that before they are deleted, which
// leave_notice is for.
func (f *fleetOf) leave(first, last int) {
	f.w.t.Helper()
	for n := first; n <= last; n++ {
		_, err := f.w.session.Publish(context.Background(), f.registration(nameOf(n), n, true), f.nodes[nameOf(n)])
		require.NoError(f.w.t, err)
	}
	f.w.eventually("those that leave are out of rotation", func() error {
		servers, err := f.w.servers()
		for _, s := range servers {
			var number int
			if _, scanned := fmt.Sscanf(s.Name, "i%d_", &number); scanned == nil && number >= first && number <= last && s.Admin.String() == "ready" {
				err = errors.Join(err, errors.New(s.Name+" is ready"))
			}
		}
		return err
	})
	f.vanish(first, last, 0)
}

// holds waits until that many instances are held, and returns the service's guard.
func (w *world) holds(count int) (st agent.GuardStatus) {
	w.t.Helper()
	w.eventually(fmt.Sprintf("%d instances are held", count), func() error {
		if st = w.status().Services[0].Guard; st.Held != count {
			return fmt.Errorf("%d are", st.Held)
		}
		return nil
	})
	return st
}

// TestGuardFleet takes a fleet through what happens to fleets, under traffic: a large scale-down on purpose, half of it
// gone within two seconds, an operator who knows better, a path that was renamed, a restart in the middle of that, and the
// instances' return. No request fails, and what serves stays in rotation.
func TestGuardFleet(t *testing.T) {
	w := guardedWorld(t)
	f := &fleetOf{w: w, port: backendServer(t, "fleet"), nodes: map[string]string{}}
	f.join(1, 100)
	w.startAgent()
	w.converges(namesOf(1, 100)...)
	unchanged := w.pinned()
	load := clitest.StartLoad(w.url(), 50)

	f.leave(2, 100)
	w.converges("i1")
	require.Zero(t, w.status().Services[0].Guard.Held)
	require.Equal(t, 99.0, w.counter(`myelin_guard_decisions_total{decision="left",service="user-api"}`))

	f.join(2, 20)
	w.converges(namesOf(1, 20)...)
	f.vanish(10, 20, 2*time.Second)
	w.holds(11)
	require.NoError(t, w.inRotation(namesOf(1, 20)))
	require.Equal(t, 11.0, w.counter(`myelin_guard_held{service="user-api"}`))
	w.eventually("the command names the reason", func() error {
		if out, code := w.run("guard", "-c", w.agentFile); code != 0 || !strings.Contains(out, "max_drop_percent") {
			return errors.New(out)
		}
		return nil
	})
	out, code := w.run("guard", "-c", w.agentFile, "-o", "wide")
	require.Zero(t, code)
	require.Contains(t, out, fmt.Sprintf("%s:%d", registrationHost(20), f.port))
	out, _ = w.run("status", "-c", w.agentFile)
	require.Contains(t, out, "11 of them held for")
	require.Contains(t, w.page("/"), "11 of them are held")

	out, code = w.run("guard", "release", "user-apu", "-c", w.agentFile)
	require.Equal(t, 1, code)
	require.Contains(t, out, `the agent has no service "user-apu"`)
	out, code = w.run("guard", "release", "user-api", "-c", w.agentFile)
	require.Zero(t, code, out)
	require.Contains(t, out, "user-api: 11 let go: ")
	w.converges(namesOf(1, 9)...)
	out, code = w.run("guard", "release", "user-api", "-c", w.agentFile)
	require.Equal(t, 1, code)
	require.Contains(t, out, "nothing of service")
	out, _ = w.run("guard", "-c", w.agentFile)
	require.Contains(t, out, "nothing is held")

	f.vanish(1, 9, 0) // the path is renamed: the children first, then their directory
	require.NoError(t, w.session.Withdraw(t.Context(), discovery.Registration{Path: filepath.Dir(servicePath), Prefix: filepath.Base(servicePath)}, servicePath))
	missing := func() error {
		if held := w.status().Services[0].Held; held != "the path does not exist" {
			return errors.New("held: " + held)
		}
		return nil
	}
	w.eventually("the path is missing", missing)
	before := w.holds(9)
	require.NoError(t, w.inRotation(namesOf(1, 9)))

	require.NoError(t, w.agent.Stop())
	w.startAgent()
	w.agentIsReady()
	w.eventually("the path is missing still", missing)
	after := w.holds(9)
	require.Equal(t, len(before.Holds), len(after.Holds))
	require.Equal(t, before.Holds[0].Reason, after.Holds[0].Reason)
	require.True(t, before.Holds[0].Since.Equal(after.Holds[0].Since), "a hold outlives its agent")
	require.NoError(t, w.inRotation(namesOf(1, 9)))

	for n := 1; n <= 9; n++ { // one by one: the first one back is not the only one
		f.join(n, n)
		w.holds(9 - n)
		require.NoError(t, w.inRotation(namesOf(1, 9)))
	}
	require.Contains(t, w.agent.Log(), "guard: held instances are back")
	w.endLoad(load)
	unchanged()
}

// page is one of the agent's pages.
func (w *world) page(path string) string {
	w.t.Helper()
	resp, err := http.Get(fmt.Sprintf("http://127.0.0.1:%d%s", w.adminPort, path))
	require.NoError(w.t, err)
	defer resp.Body.Close()
	text, err := io.ReadAll(resp.Body)
	require.NoError(w.t, err)
	return string(text)
}

// TestGuardRegistrars: all registrars lose their sessions at once, and then ZooKeeper loses all that it knew. The
// registrars come back by themselves, one of them later than the others. All stay in rotation, and no request fails.
func TestGuardRegistrars(t *testing.T) {
	w := guardedWorld(t)
	names := []string{"a", "b", "c"}
	var instances []*instance
	for _, n := range names {
		instances = append(instances, w.startInstance(n, w.zk.Addr()))
	}
	w.startAgent()
	w.converges(names...)
	unchanged := w.pinned()
	load := clitest.StartLoad(w.url(), 50)
	never := w.neverLeaves(names)

	snap, err := w.session.Snapshot(t.Context(), service, servicePath)
	require.NoError(t, err)
	for _, in := range snap.Instances {
		require.NoError(t, w.zk.Expire(in.Session))
	}
	w.eventually("all have other sessions", func() error {
		now, err := w.session.Snapshot(t.Context(), service, servicePath)
		if err == nil && len(now.Instances) != len(names) {
			err = fmt.Errorf("%d are registered", len(now.Instances))
		}
		for _, in := range now.Instances {
			for _, was := range snap.Instances {
				if in.Session == was.Session {
					err = errors.New(in.Name + " has its old session")
				}
			}
		}
		return err
	})
	w.holds(0)

	instances[2].registrar.Kill() // it comes back when the others have been there for some time
	require.NoError(t, w.zk.Stop())
	w.agentLosesZooKeeper()
	require.NoError(t, w.zk.Wipe())
	require.NoError(t, w.zk.Start())
	st := w.holds(1)
	require.Equal(t, []string{fmt.Sprintf("127.0.0.1:%d", instances[2].Port)}, st.Holds[0].Instances)
	out, code := w.run("guard", "-c", w.agentFile, "-o", "json")
	require.Zero(t, code)
	var told []struct {
		Service   string
		Instances []string
	}
	require.NoError(t, json.Unmarshal([]byte(out), &told))
	require.Len(t, told, 1)
	require.Equal(t, service, told[0].Service)
	require.NoError(t, w.inRotation(names))
	w.startRegistrar(instances[2])
	w.holds(0)
	w.endLoad(load)
	never()
	unchanged()
}

// neverLeaves returns a check that none of these instances was out of rotation since.
func (w *world) neverLeaves(names []string) (check func()) {
	w.t.Helper()
	from := w.counter(`myelin_haproxy_commands_total{op="maint",result="ok"}`)
	return func() {
		w.t.Helper()
		require.NoError(w.t, w.inRotation(names))
		require.Equal(w.t, from, w.counter(`myelin_haproxy_commands_total{op="maint",result="ok"}`))
	}
}
