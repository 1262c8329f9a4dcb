package agent

import (
	"errors"
	"fmt"
	"os"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/myelin-sd/myelin/config"
	"github.com/myelin-sd/myelin/haproxy"
)

// TestChangeReadsNothing: a join is its own commands and no reading of the table, however large that is.
func TestChangeReadsNothing(t *testing.T) {
	n := newNode(t)
	n.start(0)
	n.hear("a@127.0.0.1:81", "b@127.0.0.1:82")
	n.has("svc", "a b")
	n.ready()
	from := n.tap.count()
	n.hear("a@127.0.0.1:81", "b@127.0.0.1:82", "c@127.0.0.1:83")
	n.has("svc", "a b c")
	n.ready()
	require.NotEqual(t, -1, n.tap.position(from, "add server svc/c_127.0.0.1:83 "))
	require.Equal(t, -1, n.tap.position(from, "show servers state"))
}

// TestChangesInPlace: a weight, a departure and a return are one command each.
func TestChangesInPlace(t *testing.T) {
	n := newNode(t)
	n.start(0)
	n.hear("a@127.0.0.1:81", "b@127.0.0.1:82")
	n.has("svc", "a b")
	for _, step := range []struct {
		words   []string
		table   string
		command string
	}{
		{[]string{"a@127.0.0.1:81", "b@127.0.0.1:82,7"}, "a b*7", "set server svc/b_127.0.0.1:82 weight 7"},
		{[]string{"a@127.0.0.1:81"}, "a b:maint*7", "set server svc/b_127.0.0.1:82 state maint"},
		{[]string{"a@127.0.0.1:81", "b@127.0.0.1:82,7"}, "a b*7", "set server svc/b_127.0.0.1:82 state ready"},
	} {
		n.ready()
		from := n.tap.count()
		n.hear(step.words...)
		n.has("svc", step.table)
		n.ready()
		require.Equal(t, []string{step.command}, n.tap.since(from))
	}
	require.Zero(t, n.reloads())
}

// TestOtherProcesses: whatever others do to HAProxy, the next process is found and brought to what is wanted.
func TestOtherProcesses(t *testing.T) {
	n := newNode(t, func(c *config.Agent) { c.Services[0].HAProxy.ServerOptions = "check inter 1h" })
	n.start(0)
	n.hear("a@127.0.0.1:81", "b@127.0.0.1:82")
	n.has("svc", "a b")
	n.ready()
	processes := n.haproxyStatus().Processes
	met := func() {
		t.Helper()
		eventually(t, "the new process is met", func() error {
			pid, err := n.haproxy.WorkerPid()
			if s := n.haproxyStatus(); err != nil || s.Pid != pid || !s.Connected || !s.Applied {
				return fmt.Errorf("status %+v, pid %d, %w", s, pid, err)
			}
			return nil
		})
		require.Greater(t, n.haproxyStatus().Processes, processes)
		processes = n.haproxyStatus().Processes
	}

	from := n.tap.count()
	require.NoError(t, n.haproxy.Reload())
	met()
	n.has("svc", "a b")
	require.NoError(t, n.haproxy.KillWorker())
	require.NoError(t, n.haproxy.Restart())
	n.notePid()
	met()
	n.has("svc", "a b")
	require.Empty(t, n.tap.since(from), "the file had the servers, and with their options they need no new object")

	// One that comes without servers gets them all again.
	n.writeFile(fileOf(n.config).Render(nil))
	require.NoError(t, n.haproxy.Restart())
	n.notePid()
	met()
	n.has("svc", "a b")
	n.hear("b@127.0.0.1:82", "c@127.0.0.1:83")
	n.has("svc", "a:maint b c")
	require.Zero(t, n.reloads(), "nothing static changed")
}

// TestOptionsOfTheFile: what the running servers were started with is in the file; options that changed since make new
// objects, the same ones do not.
func TestOptionsOfTheFile(t *testing.T) {
	for _, tc := range []struct{ name, options, table string }{
		{"the same", "check inter 1h", "a b"},
		{"changed", "check inter 2h", "a-g2 a:maint b-g2 b:maint"},
	} {
		t.Run(tc.name, func(t *testing.T) {
			n := newNode(t, func(c *config.Agent) { c.Services[0].HAProxy.ServerOptions = "check inter 1h" })
			n.start(0)
			n.hear("a@127.0.0.1:81", "b@127.0.0.1:82")
			n.fileHas("svc", "a b")
			n.stop()
			require.NoError(t, n.haproxy.Restart()) // from the file
			n.notePid()
			n.has("svc", "a b")

			// The views are inherited, so that the new file is written before HAProxy is looked at.
			c := *n.config
			c.Services = slices.Clone(c.Services)
			c.Services[0].HAProxy.ServerOptions = tc.options
			views := n.gen.viewsByName()
			n.startWith(&c, 0, views)
			n.hear("a@127.0.0.1:81", "b@127.0.0.1:82")
			n.ready()
			n.has("svc", tc.table)
		})
	}
}

// TestToldToAnOldWorker: what the old worker confirmed after the new one had begun is told again.
func TestToldToAnOldWorker(t *testing.T) {
	n := newNode(t, func(c *config.Agent) { c.HAProxy.DoWrites = false })
	n.start(0)
	n.hear("a@127.0.0.1:81")
	n.has("svc", "a")
	n.ready()
	reloaded := make(chan error, 1)
	n.tap.once("add server svc/b", fault{behind: func() { reloaded <- n.haproxy.Reload() }})
	n.hear("a@127.0.0.1:81", "b@127.0.0.1:82")
	require.NoError(t, <-reloaded)
	n.has("svc", "a b")
	eventually(t, "the new process is known", func() error {
		if p := n.haproxyStatus().Processes; p != 2 {
			return fmt.Errorf("%d processes", p)
		}
		return nil
	})
}

// TestStoppingWorker: one that finishes its connections gets no commands.
func TestStoppingWorker(t *testing.T) {
	n := newNode(t)
	n.tap.on(func(line string) fault {
		if line == "show info" {
			return fault{reply: "Name: HAProxy\nVersion: 2.6.12\nPid: 7\nStart_time_sec: 9\nStopping: 1\n\n> "}
		}
		return fault{}
	})
	n.start(0)
	n.hear("a@127.0.0.1:81")
	n.tap.tried(t, 4)
	require.Empty(t, n.tap.since(0))
	n.tap.on(nil)
	n.has("svc", "a")
}

// TestAbsentHAProxy: it is waited for, which is said once, and found as it is.
func TestAbsentHAProxy(t *testing.T) {
	n := newNode(t)
	require.NoError(t, n.haproxy.Stop())
	n.start(0)
	n.hear("a@127.0.0.1:81")
	n.fileHas("svc", "a")
	eventually(t, "it is said", func() error {
		if n.said("HAProxy does not answer") == 0 {
			return errors.New("not said")
		}
		return nil
	})
	require.False(t, n.haproxyStatus().Connected)
	n.tap.tried(t, 3)
	n.startHAProxy()
	n.ready()
	n.has("svc", "a")
	require.NoError(t, n.haproxy.Reload())
	eventually(t, "a reload after that is seen too", func() error {
		if p := n.haproxyStatus().Processes; p != 2 {
			return fmt.Errorf("%d processes", p)
		}
		return nil
	})
	n.hear("a@127.0.0.1:81", "b@127.0.0.1:82")
	n.has("svc", "a b")
	require.Equal(t, 1, n.said("HAProxy does not answer"))
	require.Equal(t, 1, n.said("HAProxy answers again"))
}

// TestRetireThenDelete: a server that left waits for its grace in maintenance; one that returns meanwhile costs one
// command and stays.
func TestRetireThenDelete(t *testing.T) {
	t.Parallel()
	n := newNode(t)
	const grace = 2 * time.Second
	n.start(grace)
	n.hear("a@127.0.0.1:81", "b@127.0.0.1:82", "c@127.0.0.1:83")
	n.has("svc", "a b c")
	n.ready()
	from, left := n.tap.count(), time.Now()
	n.hear("a@127.0.0.1:81")
	n.has("svc", "a b:maint c:maint")
	n.hear("a@127.0.0.1:81", "b@127.0.0.1:82")
	n.has("svc", "a b")
	require.GreaterOrEqual(t, time.Since(left), grace)
	require.Equal(t, []string{
		"set server svc/b_127.0.0.1:82 state maint",
		"set server svc/c_127.0.0.1:83 state maint",
		"set server svc/b_127.0.0.1:82 state ready",
		"del server svc/c_127.0.0.1:83",
	}, n.tap.since(from))
}

// TestDisabledIsNotRetired: a server in maintenance by its own intent is wanted there.
func TestDisabledIsNotRetired(t *testing.T) {
	t.Parallel()
	n := newNode(t)
	n.start(100 * time.Millisecond)
	a, d, z := instances(t, "a@127.0.0.1:81")[0], asking(t, "d@127.0.0.1:84", "disabled"), instances(t, "z@127.0.0.1:89")[0]
	n.hearOf("svc", a, d, z)
	n.has("svc", "a d:maint z")
	n.hearOf("svc", a, d)
	n.has("svc", "a d:maint") // z is deleted; d has been in maintenance for longer
	n.hearOf("svc", d)
	n.has("svc", "d:maint")
	n.ready()
	d.ServerOptions = nil
	n.hearOf("svc", d)
	n.has("svc", "d")
	require.Less(t, n.tap.position(0, "del server svc/d"), 0)
}

// TestForeignServers: servers written by hand and added by hand, and other sections, are not touched.
func TestForeignServers(t *testing.T) {
	t.Parallel()
	n := newNode(t, func(c *config.Agent) {
		c.Services[0].HAProxy.Backend = []string{
			"server static1 127.0.0.1:9 weight 3", "server byus_127.0.0.1:8 127.0.0.1:8", "server off_127.0.0.1:7 127.0.0.1:7 disabled",
		}
		c.HAProxy.ExtraSections = []config.Section{{Title: "backend other", Lines: []string{"server x_127.0.0.1:6 127.0.0.1:6"}}}
	})
	n.start(20 * time.Millisecond)
	n.byHand("add server svc/slot 127.0.0.1:5")
	n.hear("a@127.0.0.1:81", "b@127.0.0.1:82")
	n.has("svc", "a b byus off:maint slot:maint static1*3")
	n.hear("b@127.0.0.1:82")
	n.has("svc", "b byus off:maint slot:maint static1*3")
	n.has("other", "x")
	for _, l := range n.tap.since(0) {
		for _, name := range []string{"/static1", "/byus", "/off", "/slot", "other/"} {
			require.NotContains(t, l, name)
		}
	}
}

// TestQuarantine: a registration that asks for what this HAProxy refuses costs itself, and nobody else.
func TestQuarantine(t *testing.T) {
	n := newNode(t, func(c *config.Agent) { c.Services[0].HAProxy.Backend = []string{"mode tcp"} })
	n.start(0)
	a, b := instances(t, "a@127.0.0.1:81")[0], instances(t, "b@127.0.0.1:82")[0]
	bad := asking(t, "bad@127.0.0.1:83", "proto h1") // for HTTP backends only
	n.hearOf("svc", a, b)
	n.has("svc", "a b")
	n.hearOf("svc", b, bad)
	n.has("svc", "a:maint b")
	n.fileHas("svc", "b")
	n.ready()
	status := n.agent.Status().Services[0]
	require.Len(t, status.Rejected, 1)
	require.Equal(t, "haproxy", status.Rejected[0].Reason)
	require.Contains(t, status.Rejected[0].Detail, "MUX protocol")
	require.Equal(t, 1, n.said("HAProxy refused what a registration asks for"))

	// The same again is no reason to try; neither is another's change.
	tries := func() int {
		count := 0
		for _, l := range n.tap.since(0) {
			if strings.HasPrefix(l, "add server svc/bad_") {
				count++
			}
		}
		return count
	}
	before := tries()
	c := instances(t, "c@127.0.0.1:84")[0]
	n.hearOf("svc", b, bad, c)
	n.has("svc", "a:maint b c")
	n.ready()
	require.Equal(t, before, tries())

	bad.ServerOptions = []string{"backup"}
	n.hearOf("svc", b, bad, c)
	n.has("svc", "a:maint b bad c")
	n.fileHas("svc", "b bad c")
}

// TestQuarantineIsForWordsOnly: a refusal that has nothing to do with what the registration asks for is tried again.
func TestQuarantineIsForWordsOnly(t *testing.T) {
	n := newNode(t)
	n.start(0)
	n.tap.once("add server svc/a", fault{reply: "[3]: Permission denied\n\n> "})
	n.hearOf("svc", asking(t, "a@127.0.0.1:81", "backup"))
	n.has("svc", "a")
	n.fileHas("svc", "a")
}

// TestUnfitBackends: where servers can neither be added at run time nor be in slots, an add asks for a reload and says
// why; nothing is taken away before it.
func TestUnfitBackends(t *testing.T) {
	for _, tc := range []struct {
		name    string
		service config.ServiceHAProxy
		reason  string
		fits    func(haproxy.Capabilities) bool // at run time after all
	}{
		{"cookie", config.ServiceHAProxy{Backend: []string{"cookie SRV insert"}},
			`backend svc: "cookie SRV insert" needs a cookie on each server`, func(c haproxy.Capabilities) bool { return c.Cookie }},
		{"cookie and a static algorithm", config.ServiceHAProxy{Backend: []string{"balance source", "cookie SRV insert"}},
			`no slots, because "cookie SRV insert" needs a cookie of its own on each server`, nil},
		{"words for the file only, with names", config.ServiceHAProxy{ServerOptions: "check inter 1h non-stick addr %{host}"},
			`"non-stick" is not accepted for servers added at run time; no slots, because the options of its servers contain their names`, nil},
	} {
		t.Run(tc.name, func(t *testing.T) {
			n := newNode(t, func(c *config.Agent) {
				c.Services[0].HAProxy = tc.service
				c.HAProxy.ReloadCommand = fmt.Sprintf("test -e %s.go && { %s; }", c.HAProxy.ConfigFilePath, c.HAProxy.ReloadCommand)
			})
			info, err := n.haproxy.Command("show info")
			require.NoError(t, err)
			_, version, _ := strings.Cut(info, "\nVersion: ")
			version, _, _ = strings.Cut(version, "\n")
			if tc.fits != nil && tc.fits(haproxy.CapabilitiesOf(version)) {
				t.Skip("this HAProxy can do it at run time: " + version)
			}
			// HAProxy runs with a, as an earlier agent would have left it.
			n.start(0)
			n.hear("a@127.0.0.1:81")
			n.fileHas("svc", "a")
			n.stop()
			require.NoError(t, n.haproxy.Restart())
			n.notePid()
			n.start(0)
			n.connected() // nothing is known of the servers when the process is met
			n.hear("b@127.0.0.1:82")
			eventually(t, "a reload is asked for", func() error {
				if s := n.gen.file.status(); !strings.Contains(s.Pending, tc.reason) {
					return fmt.Errorf("pending: %q", s.Pending)
				}
				return nil
			})
			n.fileHas("svc", "b")
			n.has("svc", "a")
			require.Empty(t, n.tap.since(0))
			require.NotEmpty(t, n.gen.waiting())
			require.Contains(t, n.haproxyStatus().Unfit, "svc")

			require.NoError(t, os.WriteFile(n.config.HAProxy.ConfigFilePath+".go", nil, 0o600))
			n.has("svc", "b")
			n.ready()
			require.Equal(t, 1, n.reloads())

			// A departure needs none.
			n.hear("b@127.0.0.1:82", "c@127.0.0.1:83")
			n.has("svc", "b c")
			n.ready()
			n.hear("c@127.0.0.1:83")
			n.has("svc", "b:maint c")
			require.Equal(t, 2, n.reloads())
		})
	}
}

// TestUnfitServers: what the servers of a service ask for may only be known after the process was met.
func TestUnfitServers(t *testing.T) {
	n := newNode(t, func(c *config.Agent) { c.Services[0].HAProxy.ServerOptions = "check inter 1h non-stick addr %{host}" })
	n.start(0)
	n.connected()
	n.hear("a@127.0.0.1:81")
	n.has("svc", "a")
	n.ready()
	require.Equal(t, 1, n.reloads())
	require.Empty(t, n.tap.since(0))
}

// serviceWithLine is a service that no HAProxy makes at run time.
func serviceWithLine(name string) config.Service {
	s := serviceNamed(name)
	s.HAProxy.Backend = []string{"balance roundrobin"}
	return s
}

// TestMissingBackend: a backend that HAProxy lacks is asked for once, and then filled.
func TestMissingBackend(t *testing.T) {
	n := newNode(t)
	n.config.Services = append(n.config.Services, serviceWithLine("new"))
	n.start(0)
	n.hear("a@127.0.0.1:81")
	n.hearOf("new", instances(t, "n@127.0.0.1:91")...)
	n.has("svc", "a")
	n.has("new", "n")
	n.ready()
	require.Contains(t, n.reloadReasons(), "HAProxy has no backend new")
	require.LessOrEqual(t, n.reloads(), 2, "one for the static part and one for the backend")
}

// TestReloadsThatDoNotHelp: a HAProxy that reads another file is not reloaded for ever.
func TestReloadsThatDoNotHelp(t *testing.T) {
	for _, tc := range []struct {
		name string
		edit func(*config.Agent)
	}{
		{"it has no such backend", func(c *config.Agent) { c.Services = append(c.Services, serviceWithLine("new")) }},
		{"its backend takes no servers", func(c *config.Agent) { c.Services[0].HAProxy.Backend = []string{"balance source"} }},
	} {
		t.Run(tc.name, func(t *testing.T) {
			n := newNode(t)
			c := *n.config
			c.Services = slices.Clone(c.Services)
			tc.edit(&c)
			c.HAProxy.ConfigFilePath += ".agent" // HAProxy reads what it read before
			n.startWith(&c, 0, nil)
			n.hear("a@127.0.0.1:81")
			if f := n.feeds["new"]; f != nil {
				n.hearOf("new", instances(t, "n@127.0.0.1:91")...)
			}
			eventually(t, "it was reloaded", func() error {
				if p := n.haproxyStatus().Processes; p < 2 {
					return fmt.Errorf("%d processes", p)
				}
				return nil
			})
			// With 20 ms between reloads, and a look at the process each time it is new and each half second, a loop would
			// show itself in these.
			n.tap.tried(t, 8)
			require.LessOrEqual(t, n.reloads(), 3)
			require.NotEmpty(t, n.gen.waiting())
		})
	}
}

// TestRefusalInOneBackend: a backend that HAProxy refuses to change keeps what it has; others are served, and it is
// once the refusal ends.
func TestRefusalInOneBackend(t *testing.T) {
	n := newNode(t, func(c *config.Agent) {
		c.Services = []config.Service{serviceNamed("bad"), serviceNamed("good")}
	})
	n.start(0)
	one, two := instances(t, "a@127.0.0.1:81"), instances(t, "b@127.0.0.1:82")
	n.hearOf("bad", one...)
	n.hearOf("good", one...)
	n.has("bad", "a")
	n.has("good", "a")
	n.ready()
	n.tap.on(func(line string) fault {
		if strings.HasPrefix(line, "add server bad/") {
			return fault{reply: "[3]: Permission denied\n\n> "}
		}
		return fault{}
	})
	n.hearOf("bad", two...)
	eventually(t, "the refusal shows", func() error {
		if s := n.haproxyStatus(); len(s.Failed) == 0 {
			return errors.New("nothing failed")
		}
		return nil
	})
	n.hearOf("good", two...)
	n.has("good", "a:maint b")
	n.hearOf("good", one...)
	n.has("good", "a b:maint")
	n.has("bad", "a")
	status := n.haproxyStatus()
	require.True(t, status.Connected)
	require.False(t, status.Applied)
	require.Contains(t, status.Failed[0], "add bad/b_127.0.0.1:82")
	require.Contains(t, status.Error, "permission denied")
	require.Equal(t, 1, n.said("HAProxy refused a command"))

	n.tap.on(nil)
	n.has("bad", "a:maint b")
	n.ready()
	require.Empty(t, n.haproxyStatus().Failed)
}

// TestCutConnections: a connection may end at any command, before or after HAProxy carried it out; the next round
// mends what is left.
func TestCutConnections(t *testing.T) {
	n := newNode(t, func(c *config.Agent) { c.Services[0].HAProxy.ServerOptions = "check inter 1h" })
	n.start(0)
	var words, names []string
	for i, cuts := range [][]struct {
		prefix string
		f      fault
	}{
		{{"add server", fault{cut: true}}},
		{{"add server", fault{lost: true}}},
		{{"enable health", fault{cut: true}}},
		{{"enable health", fault{lost: true}}},
		{{"set server svc/", fault{cut: true}}},
		{{"set server svc/", fault{lost: true}}},
		{{"add server", fault{lost: true}}, {"prompt", fault{cut: true}}, {"show info", fault{cut: true}},
			{"show backend", fault{cut: true}}, {"show servers state", fault{lost: true}}, {"set server svc/", fault{lost: true}}},
	} {
		n.tap.on(func(line string) fault {
			if len(cuts) == 0 || !strings.HasPrefix(line, cuts[0].prefix) {
				return fault{}
			}
			f := cuts[0].f
			cuts = cuts[1:]
			return f
		})
		name := string(rune('a' + i))
		names = append(names, name)
		words = append(words, fmt.Sprintf("%s@127.0.0.1:%d", name, 81+i))
		n.hear(words...)
		n.has("svc", strings.Join(names, " "))
		n.tap.on(nil)
		require.Empty(t, cuts, "every cut was made")
		n.ready()
	}
	state, err := n.state()
	require.NoError(t, err)
	for _, s := range state["svc"] {
		require.True(t, s.Check.Running(), s.Name)
	}
	require.Equal(t, 1, n.haproxyStatus().Processes)
}

// TestStaticDigestIsAsked: the process says what it was started with, once for each process.
func TestStaticDigestIsAsked(t *testing.T) {
	n := newNode(t)
	n.start(0)
	n.hear("a@127.0.0.1:81")
	n.ready()
	require.NoError(t, n.haproxy.Reload())
	n.ready()
	n.hear("a@127.0.0.1:81", "b@127.0.0.1:82")
	n.has("svc", "a b")
	asked := 0
	for _, l := range n.tap.seen() {
		if l == "show env "+haproxy.StaticVariable {
			asked++
		}
	}
	require.Equal(t, n.haproxyStatus().Processes, asked)
}
