package agent

import (
	"bytes"
	"encoding/json"
	"fmt"
	"math/rand/v2"
	"net/netip"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/myelin-sd/myelin/config"
	"github.com/myelin-sd/myelin/discovery"
	"github.com/myelin-sd/myelin/haproxy"
)

// What follows is about the whole way of a registration, text of strangers, to HAProxy's admin socket.

// hostilePayloads are what has been tried, here and elsewhere, to have one registration mean more than one server.
func hostilePayloads() []string {
	evil := []string{
		`;disable server other/o1`, "\ndisable frontend edge", "\r\nset server other/o1 state maint", ` <<`, `<<EOF`, `\`, `\\n`,
		"\x00", "\t", ` `, `'`, `"`, `$HOME`, `${PATH}`, `%[env(HOME)]`, `#1/#1`, `@1`, `|sh`, "\u2028", "\xff\xfe", `é`, "`id`", `*`, `?`, `!`,
		`unix@/run/x`, `abns@x`, `fd@3`, `/etc/passwd`, `BACKEND`, `FRONTEND`, strings.Repeat("A", 5000), `../../x`, `-g2`, `x-g99999999`,
	}
	var out []string
	for _, e := range evil {
		quoted, _ := json.Marshal(e)
		joined, _ := json.Marshal("a" + e)
		option, _ := json.Marshal("backup " + e)
		word, _ := json.Marshal("maxconn" + e)
		out = append(out,
			fmt.Sprintf(`{"host":%s,"port":81,"name":"n"}`, quoted),
			fmt.Sprintf(`{"host":"127.0.0.1%s","port":81,"name":"n"}`, strings.Trim(string(quoted), `"`)),
			fmt.Sprintf(`{"host":"127.0.0.1","port":%s,"name":"n"}`, quoted),
			fmt.Sprintf(`{"host":"127.0.0.1","port":81,"name":%s}`, joined),
			fmt.Sprintf(`{"host":"127.0.0.1","port":81,"name":"n","haproxy_server_options":%s}`, option),
			fmt.Sprintf(`{"host":"127.0.0.1","port":81,"name":"n","haproxy_server_options":%s}`, word),
			fmt.Sprintf(`{"host":"127.0.0.1","port":81,"name":"n","weight":%s}`, quoted),
		)
	}
	return append(out,
		`{"host":"127.0.0.1","port":81,"name":"ok"}`,
		`{"host":"::1","port":"81","name":"six","weight":300}`,
		`{"host":"127.0.0.1","port":81,"haproxy_server_options":"id 1 weight 7 cookie c"}`,
		`{"host":"127.0.0.1","port":81,"haproxy_server_options":"`+strings.Repeat("backup ", 24)+`"}`,
		`{"host":"127.0.0.1","port":81,"haproxy_server_options":"check port 1 observe layer7 on-error mark-down inter 100ms slowstart 1h"}`,
		`{"host":"127.0.0.1","port":81,"name":"h1","haproxy_server_options":"proto h1"}`,
		`{"host":"127.0.0.1","port":81,"name":"h2","haproxy_server_options":"proto h2 backup"}`,
		`{"host":"0.0.0.0","port":81}`, `{"host":"255.255.255.255","port":81}`, `{"host":"fe80::1%eth0","port":81}`, `{"host":"1234","port":81}`,
		`null`, `[]`, ``, `{"host":"127.0.0.1","port":99999}`, `{"host":"127.0.0.1","port":-1}`, `{"host":"127.0.0.1","port":8e1}`,
	)
}

// alphabet is all that may stand in a command. Of what has a meaning to HAProxy's command line (";", "\", "<<", "$",
// quotes, line ends), nothing is in it.
const alphabet = "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789 _.:-,/()%{}[]@+=!*"

// checkLine tells whether a line is one command of a verb that plans have, about one server of svc.
func checkLine(line, server string) error {
	if i := strings.IndexFunc(line, func(c rune) bool { return !strings.ContainsRune(alphabet, c) }); i >= 0 {
		return fmt.Errorf("%q has a byte outside the alphabet at %d", line, i)
	}
	words := strings.Split(line, " ")
	if !slices.Equal(words, strings.Fields(line)) {
		return fmt.Errorf("%q has blanks that separate nothing", line)
	}
	if len(words) < 3 || words[2] != "svc/"+server {
		return fmt.Errorf("%q is not about svc/%s", line, server)
	}
	switch verb := words[0] + " " + words[1]; verb {
	case "enable health", "enable agent", "disable agent", "del server":
		if len(words) != 3 {
			return fmt.Errorf("%q has words too many", line)
		}
	case "set server":
		if len(words) != 5 || words[3] != "state" && words[3] != "weight" && words[3] != "maxconn" {
			return fmt.Errorf("%q sets something else", line)
		}
	case "add server":
		if len(words) < 8 || words[4] != "id" || words[6] != "weight" {
			return fmt.Errorf("%q is no add of ours", line)
		}
		if _, err := netip.ParseAddrPort(words[3]); err != nil {
			return fmt.Errorf("%q: %w", line, err)
		}
	default:
		return fmt.Errorf("%q has a verb that no plan has", line)
	}
	return nil
}

// wireConfig has one service, with a cookie in force, so that names get into cookies.
func wireConfig(allowed []string) *config.Agent {
	s := serviceNamed("svc")
	s.HAProxy.ServerOptions = "check inter 2s"
	s.HAProxy.Backend = []string{"mode http", "cookie SRV insert"}
	c := &config.Agent{Services: []config.Service{s}}
	c.HAProxy.UseNerveWeights, c.HAProxy.RegistryOptions, c.HAProxy.MaxServers = true, allowed, 100
	return c
}

// FuzzRegistrationToWire: whatever two registrations say, what is sent is exactly what is planned: lines of known verbs
// about the servers of their own service, at most one new server for each, and one line for each in the file.
func FuzzRegistrationToWire(f *testing.F) {
	for i, p := range hostilePayloads() {
		f.Add(fmt.Sprintf("n_%010d", i), []byte(p), []byte(`{"host":"127.0.0.1","port":81,"name":"other"}`))
	}
	for _, name := range []string{"base64_8_e30", "base64_60_eyJob3N0IjoiMTAuMC4wLjEiLCJwb3J0IjozMDAwLCJuYW1lIjoiaS0xIn0=_0000000001", "", "x\n;y", "_"} {
		f.Add(name, []byte(`{"host":"10.0.0.1","port":1}`), []byte(`{"host":"10.0.0.1","port":1}`))
	}
	addr := func(s string) netip.AddrPort { return netip.MustParseAddrPort(s) }
	actual := haproxy.State{
		"svc": {
			{Name: "old_10.9.9.9:9", Addr: addr("10.9.9.9:9"), ID: 3, Weight: 1},
			{Name: "n_127.0.0.1:81", Addr: addr("127.0.0.1:81"), ID: 4, Weight: 9, Admin: haproxy.Maint},
		},
		"other": {{Name: "o1_10.9.9.8:9", Addr: addr("10.9.9.8:9"), ID: 5, Weight: 1}},
	}
	f.Fuzz(func(t *testing.T, node string, first, second []byte) {
		var list []discovery.Instance
		for i, data := range [][]byte{first, second} {
			if in, err := discovery.DecodeNerve(fmt.Sprintf("%s%d", node, i), data); err == nil {
				list = append(list, in)
			}
		}
		slices.SortFunc(list, discovery.Compare)
		for _, allowed := range [][]string{config.RegistryWords(), nil, {}} {
			k := newComposer(wireConfig(allowed), nameserver, nil)
			v := newView(serviceNamed("svc")).next(discovery.Snapshot{Service: "svc", Instances: list}, time.Time{})
			w := k.all([]view{v}, nil)
			b := w.backends["svc"]
			if len(b.servers) > len(list) {
				t.Fatalf("%d servers of %d registrations", len(b.servers), len(list))
			}
			if lines := bytes.Count(w.file.Render(haproxy.State{"svc": b.servers}), []byte("\n")); lines != bytes.Count(w.file.Render(nil), []byte("\n"))+len(b.servers) {
				t.Fatalf("%d servers make a file of %d lines", len(b.servers), lines)
			}
			for _, version := range []string{"2.6.12", "3.2.0"} {
				desired := w.state([]string{"svc"}, newQuarantine())
				checkPlan(t, haproxy.Diff(actual, desired, haproxy.View{Caps: haproxy.CapabilitiesOf(version)}), len(b.servers))
			}
		}
	})
}

// checkPlan checks each line that a plan becomes.
func checkPlan(t *testing.T, plan haproxy.Plan, most int) {
	t.Helper()
	adds := 0
	for _, step := range plan {
		if step.Op == haproxy.StepAdd {
			adds++
		}
		lines, err := step.Lines()
		if err != nil {
			continue // nothing of it is sent
		}
		if !slices.Equal(lines, step.Commands()) {
			t.Fatalf("%q is sent for the planned %q", lines, step.Commands())
		}
		for _, line := range lines {
			if err := checkLine(line, step.Server.Name); err != nil {
				t.Fatal(err)
			}
		}
		if step.Backend != "svc" {
			t.Fatalf("backend %q is another service's", step.Backend)
		}
	}
	if adds > most {
		t.Fatalf("%d adds for %d servers", adds, most)
	}
}

// randomPayload is a registration put together at random, often one that decodes.
func randomPayload(r *rand.Rand) string {
	pick := func(from ...string) string { return from[r.IntN(len(from))] }
	words := config.RegistryWords()
	var options []string
	for range r.IntN(6) {
		switch r.IntN(4) {
		case 0:
			options = append(options, words[r.IntN(len(words))])
		case 1:
			options = append(options, pick("layer4", "layer7", "h1", "h2", "mark-down", "shutdown-sessions", "fastinter"))
		case 2:
			options = append(options, fmt.Sprint(r.IntN(70000)-10)+pick("", "", "ms", "s", "d"))
		default:
			options = append(options, words[r.IntN(len(words))], pick("5", "2s", "layer7", "h2", "x", "mark-down"))
		}
	}
	text, _ := json.Marshal(strings.Join(options, " "))
	return fmt.Sprintf(`{"host":%q,"port":%s,"name":%q,"weight":%s,"haproxy_server_options":%s}`,
		fmt.Sprintf("127.0.%d.%d", r.IntN(3), 1+r.IntN(250)), pick("81", `"82"`, "83", "0", "65535"), fmt.Sprintf("r%d", r.IntN(1000)),
		pick("1", "7", "0", "256", "300", "-1", `"5"`), text)
}

// TestHostileCorpus: a real HAProxy that is told of all these registrations at once has exactly the servers that were
// planned for them, less those that it refused, which are shown; nothing else of it has changed.
func TestHostileCorpus(t *testing.T) {
	n := newNode(t, func(c *config.Agent) {
		c.HAProxy.ExtraSections = []config.Section{
			{Title: "frontend edge", Lines: []string{"mode http", "timeout client 5s", "bind " + t.TempDir() + "/e", "default_backend other"}},
			{Title: "backend other", Lines: []string{"mode http", "timeout connect 1s", "timeout server 5s", "server o1 127.0.0.1:9", "server o2 127.0.0.1:10 disabled"}},
		}
		c.Services[0].HAProxy.ServerOptions = "inter 2s"
		c.Services[0].HAProxy.Backend = []string{"mode tcp", "timeout connect 1s", "timeout server 5s", "balance roundrobin"} // "proto h1" is refused
	})
	untouched := n.surroundings()
	n.start(0)
	n.hear("good@127.0.9.9:80")
	n.has("svc", "good")
	pid := n.haproxyStatus().Pid

	r := rand.New(rand.NewPCG(4, 11))
	payloads := hostilePayloads()
	for range 400 {
		payloads = append(payloads, randomPayload(r))
	}
	list := instances(t, "good@127.0.9.9:80")
	rejected := 0
	for i, p := range payloads {
		in, err := discovery.DecodeNerve(fmt.Sprintf("n_%010d", i), []byte(p))
		if err != nil {
			rejected++
			continue
		}
		list = append(list, in)
	}
	require.Greater(t, rejected, 100)
	n.hearOf("svc", list...)

	eventually(t, "HAProxy has what was planned", func() error {
		w := n.gen.wanted.Load()
		planned := w.state([]string{"svc"}, n.gen.file.quarantine)["svc"]
		if len(planned) < 100 {
			return fmt.Errorf("only %d servers are planned", len(planned))
		}
		state, err := n.state()
		if err != nil {
			return err
		}
		var want, got []string
		for _, s := range planned {
			want = append(want, fmt.Sprintf("%s %s %s %d %d", s.Name, s.Addr, s.Admin, s.Weight, s.ID))
		}
		for _, s := range state["svc"] {
			got = append(got, fmt.Sprintf("%s %s %s %d %d", s.Name, s.Addr, s.Admin, s.Weight, s.ID))
		}
		slices.Sort(want)
		slices.Sort(got)
		if !slices.Equal(want, got) {
			return fmt.Errorf("HAProxy has %d servers that are not the %d planned:\n%s\n--\n%s", len(got), len(want), strings.Join(got, "\n"), strings.Join(want, "\n"))
		}
		return nil
	})
	n.ready()
	st := n.service("svc")
	composed := len(st.Rejected) - len(n.gen.file.quarantine.reasons("svc"))
	require.Equal(t, st.Active, st.Servers+composed, "each instance is a server or shown with the reason")
	require.NotEmpty(t, n.gen.file.quarantine.reasons("svc"), "HAProxy alone can judge some")
	require.Equal(t, untouched, n.surroundings(), "nothing else changed")
	require.Equal(t, pid, n.haproxyStatus().Pid)
	require.Zero(t, n.reloads())
	for _, line := range n.tap.seen() {
		if f := strings.Fields(line); len(f) > 2 && strings.Contains(f[2], "/") {
			require.NoError(t, checkLine(line, strings.TrimPrefix(f[2], "svc/")))
		}
	}
	// The file is one that HAProxy starts from.
	require.NoError(t, n.haproxy.Restart())
	n.notePid()
	eventually(t, "HAProxy serves the same again", func() error {
		if st := n.haproxyStatus(); st.Pid == pid || !st.Applied {
			return fmt.Errorf("still %d", st.Pid)
		}
		return nil
	})
}

// surroundings is what registrations of svc must not change: environment, frontends, the other backend.
func (n *node) surroundings() string {
	n.t.Helper()
	var out []string
	for _, command := range []string{"show env", "show servers state other", "show stat -1 1 -1", "show stat other 2 -1", "show backend", "show map", "show acl"} {
		text, err := n.haproxy.Command(command)
		require.NoError(n.t, err)
		for line := range strings.Lines(text) {
			if f := strings.Split(line, ","); len(f) > 17 {
				line = strings.Join([]string{f[0], f[1], f[17]}, ",") // a proxy's name and status, without its counters
			} else if f := strings.Fields(line); len(f) > 9 {
				line = strings.Join(append(f[:9], f[10:]...), " ") // without srv_time_since_last_change
			}
			out = append(out, strings.TrimSpace(line))
		}
	}
	return strings.Join(out, "\n")
}
