package haproxy

import (
	"fmt"
	"net/netip"
	"strconv"
	"strings"
	"testing"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
)

const (
	header20 = "# be_id be_name srv_id srv_name srv_addr srv_op_state srv_admin_state srv_uweight srv_iweight " +
		"srv_time_since_last_change srv_check_status srv_check_result srv_check_health srv_check_state " +
		"srv_agent_state bk_f_forced_id srv_f_forced_id srv_fqdn srv_port srvrecord"
	header25 = header20 + " srv_use_ssl srv_check_port srv_check_addr srv_agent_addr srv_agent_port"
)

// rows as 2.6.12 wrote them.
const state25 = "1\n" + header25 + `
2 b 1 st 127.0.0.1 0 0 10 10 342 8 2 0 6 0 0 0 - 9001 - 0 0 - - 0
2 b 2 stat2 127.0.0.1 0 5 1 1 342 1 0 0 8 0 0 0 localhost 9002 - 0 0 - - 0
2 b 102 s2 ::1 2 8 7 1 0 1 0 2 6 22 0 1 - 9001 - 0 0 - - 9009
5 v6 102 s2_::ffff:1.2.3.4:9001 ::ffff:1.2.3.4 0 1 0 0 0 1 3 0 0 18 0 1 - 9001 - 0 0 - - 0

`

func TestParseState(t *testing.T) {
	state, err := ParseState(state25)
	require.NoError(t, err)
	addr := netip.MustParseAddrPort
	assert.Equal(t, State{
		"b": {
			{Name: "st", Addr: addr("127.0.0.1:9001"), ID: 1, Weight: 10, FirstWeight: 10, Check: 6, CheckResult: 2},
			{Name: "stat2", Addr: addr("127.0.0.1:9002"), ID: 2, Weight: 1, FirstWeight: 1, Admin: Maint, FQDN: "localhost", Check: 8},
			{Name: "s2", Addr: addr("[::1]:9001"), ID: 102, Weight: 7, FirstWeight: 1, Admin: Drain, Op: OpRunning, Check: 6, Agent: 22},
		},
		"v6": {
			{Name: "s2_::ffff:1.2.3.4:9001", Addr: addr("[::ffff:1.2.3.4]:9001"), ID: 102, Admin: Maint, CheckResult: 3, Agent: 18},
		},
	}, state)
}

// TestParseState20: HAProxy 2.2 has five columns less; columns are found by name, in whatever order.
func TestParseState20(t *testing.T) {
	state, err := ParseState("1\n" + header20 + "\n3 b 4 x 10.0.0.1 2 4 1 1 9 1 0 0 0 0 0 0 - 80 -\n")
	require.NoError(t, err)
	want := State{"b": {{Name: "x", Addr: netip.MustParseAddrPort("10.0.0.1:80"), ID: 4, Weight: 1, FirstWeight: 1, Op: OpRunning}}}
	assert.Equal(t, want, state)

	state, err = ParseState("1\n# srv_port new srv_agent_state srv_check_state srv_check_status srv_check_result srv_fqdn srv_uweight srv_iweight " +
		"srv_admin_state srv_op_state srv_addr srv_name srv_id be_name\n80 ? 0 0 1 0 - 1 1 4 2 10.0.0.1 x 4 b\n")
	require.NoError(t, err)
	assert.Equal(t, want, state)
}

// TestCheckUnderWay: while a check runs, what the one before it found counts. The rows are of 2.6.12, with a check over
// HTTP that takes its time.
func TestCheckUnderWay(t *testing.T) {
	for columns, want := range map[string]int{
		"1 0 0 6":  0, // none has run
		"1 0 0 7":  0, // the first one is under way
		"15 3 1 6": checkPassed,
		"15 0 1 7": checkPassed, // under way after one that passed
		"17 2 0 6": 2,
		"17 0 0 7": 0,
	} {
		state, err := ParseState("1\n" + header20 + "\n3 b 5 x 127.0.0.1 0 1 1 1 0 " + columns + " 0 0 0 - 80 -\n")
		require.NoError(t, err)
		assert.Equal(t, want, state["b"][0].CheckResult, columns)
	}
}

// TestParseStateOfAScatteredBackend: rows of one backend that do not follow one another are all kept, apart from
// those of others.
func TestParseStateOfAScatteredBackend(t *testing.T) {
	row := func(backend, name string) string {
		return "3 " + backend + " 4 " + name + " 10.0.0.1 2 0 1 1 9 1 0 0 0 0 0 0 - 80 -\n"
	}
	state, err := ParseState("1\n" + header20 + "\n" + row("a", "1") + row("a", "2") + row("b", "3") + row("a", "4") + row("b", "5"))
	require.NoError(t, err)
	names := func(servers []Server) (out []string) {
		for _, s := range servers {
			out = append(out, s.Name)
		}
		return out
	}
	assert.Equal(t, []string{"1", "2", "4"}, names(state["a"]))
	assert.Equal(t, []string{"3", "5"}, names(state["b"]))
	_ = append(state["a"], Server{Name: "x"})
	assert.Equal(t, "3", state["b"][0].Name, "no backend can grow into another")
}

// TestAdminBits: bit 4 ("disabled" in the configuration) and bit 64 (a name set over the socket) are history only.
func TestAdminBits(t *testing.T) {
	for bits, want := range map[int]Admin{
		0: Ready, 4: Ready, 64: Ready, 68: Ready,
		1: Maint, 2: Maint, 5: Maint, 32: Maint, 33: Maint, 9: Maint, 48: Maint,
		8: Drain, 16: Drain, 12: Drain, 24: Drain, 72: Drain,
	} {
		state, err := ParseState(fmt.Sprintf("1\n%s\n3 b 4 x 10.0.0.1 2 %d 1 1 9 1 0 0 0 0 0 0 - 80 -\n", header20, bits))
		require.NoError(t, err)
		assert.Equal(t, want, state["b"][0].Admin, "bits %d", bits)
	}
}

// TestParseStateWithoutAddress: a name that does not resolve, and a unix socket, have "-" for an address.
func TestParseStateWithoutAddress(t *testing.T) {
	state, err := ParseState("1\n" + header20 + "\n3 b 4 x - 0 32 1 1 9 1 0 0 0 0 0 0 web.example 80 -\n")
	require.NoError(t, err)
	s := state["b"][0]
	assert.False(t, s.Addr.IsValid())
	assert.Equal(t, uint16(80), s.Addr.Port())
	assert.Equal(t, "web.example", s.FQDN)
	assert.Equal(t, Maint, s.Admin)
}

// TestParseStateRefuses: what cannot be read is an error and never a shorter list.
func TestParseStateRefuses(t *testing.T) {
	row := "3 b 4 x 10.0.0.1 2 0 1 1 9 1 0 0 0 0 0 0 - 80 -"
	replace := func(column int, word string) string {
		f := strings.Fields(row)
		f[column] = word
		return "1\n" + header20 + "\n" + row + "\n" + strings.Join(f, " ") + "\n"
	}
	_, err := ParseState(replace(0, "3"))
	require.NoError(t, err)
	for name, c := range map[string]struct{ reply, says string }{
		"empty":            {"", "format version"},
		"other version":    {"2\n" + header20 + "\n", "format version"},
		"an error":         {"[3]: Can't find backend.\n", "format version"},
		"no header":        {"1\n" + row + "\n", "header"},
		"column missing":   {"1\n" + strings.Replace(header20, "srv_uweight", "weight", 1) + "\n", "no column srv_uweight"},
		"short row":        {"1\n" + header20 + "\n3 b 4 x 10.0.0.1 2 0\n", "7 columns, the header has 20"},
		"one column less":  {"1\n" + header20 + "\n" + strings.TrimSuffix(row, " -") + "\n", "19 columns"},
		"one column more":  {"1\n" + header20 + "\n" + row + " 7\n", "more columns"},
		"two blanks":       {"1\n" + header20 + "\n" + strings.Replace(row, " ", "  ", 1) + "\n", "column 2 is empty"},
		"address":          {replace(4, "unix"), "srv_addr"},
		"address and port": {replace(4, "10.0.0.1:80"), "srv_addr"},
		"port":             {replace(18, "65536"), "srv_port"},
		"no port":          {replace(18, "-"), "srv_port"},
		"operation":        {replace(5, "4"), "srv_op_state"},
		"admin":            {replace(6, "maint"), "srv_admin_state"},
		"negative admin":   {replace(6, "-1"), "srv_admin_state"},
		"weight":           {replace(7, "257"), "srv_uweight"},
		"id":               {replace(2, "0"), "srv_id"},
		"check result":     {replace(11, "x"), "srv_check_result"},
		"check state":      {replace(13, ""), "column 14 is empty"},
		"name":             {replace(3, "a/b"), "no legal name"},
		"backend":          {replace(1, "a;b"), "no legal name"},
	} {
		state, err := ParseState(c.reply)
		require.Error(t, err, name)
		assert.ErrorContains(t, err, c.says, name)
		assert.Nil(t, state, name)
	}
	_, err = ParseState(replace(6, "maint"))
	assert.ErrorContains(t, err, "line 4: ", "the line is named")
}

func TestParseBackends(t *testing.T) {
	names, err := ParseBackends("# name\nb\nuser-api\nv6\n\n")
	require.NoError(t, err)
	assert.Equal(t, []string{"b", "user-api", "v6"}, names)
	names, err = ParseBackends("# name\n\n")
	require.NoError(t, err)
	assert.Empty(t, names)
	for _, reply := range []string{"", "\n", "b\n", "# name\na b\n", "[3]: Permission denied\n"} {
		_, err := ParseBackends(reply)
		assert.Error(t, err, reply)
	}
}

func FuzzParseState(f *testing.F) {
	f.Add(state25)
	f.Add("1\n" + header20 + "\n3 b 4 x - 0 32 1 1 9 1 0 0 0 0 0 0 web.example 80 -")
	f.Add("1\n")
	f.Fuzz(func(t *testing.T, reply string) {
		state, err := ParseState(reply)
		if err != nil {
			if state != nil {
				t.Fatal("a state beside an error")
			}
			return
		}
		// Every row has become a server, and none can be anything but one word in a command.
		rows := 0
		for i, line := range strings.Split(reply, "\n") {
			if i > 1 && strings.TrimRight(line, " \r") != "" {
				rows++
			}
		}
		servers := 0
		for backend, list := range state {
			if checkWord(backend) != nil {
				t.Fatalf("backend %q", backend)
			}
			for _, s := range list {
				servers++
				if checkWord(s.Name) != nil {
					t.Fatalf("server %q", s.Name)
				}
			}
		}
		if servers != rows {
			t.Fatalf("%d servers of %d rows", servers, rows)
		}
	})
}

func stateText(n int) string {
	var b strings.Builder
	b.WriteString("1\n" + header25 + "\n")
	for i := range n {
		fmt.Fprintf(&b, "2 user-api %d i-%d_10.0.%d.%d:8080 10.0.%d.%d 2 0 1 1 342 6 3 4 6 0 0 1 - 8080 - 0 0 - - 0\n",
			i+1, i, i>>8, i&255, i>>8, i&255)
	}
	return b.String()
}

func BenchmarkParseState(b *testing.B) {
	for _, n := range []int{10, 1000, 10000} {
		text := stateText(n)
		b.Run(strconv.Itoa(n), func(b *testing.B) {
			b.ReportAllocs()
			b.SetBytes(int64(len(text)))
			for b.Loop() {
				state, err := ParseState(text)
				if err != nil || len(state["user-api"]) != n {
					b.Fatal(len(state["user-api"]), err)
				}
			}
		})
	}
}

func TestParseUnpublished(t *testing.T) {
	names, err := parseUnpublished("# pxname,svname,qcur,status,weight,\na,BACKEND,0,UP,1,\nb,BACKEND,0,UP (UNPUB),1,\nc,BACKEND,0,DOWN (UNPUB),0,\n\n")
	require.NoError(t, err)
	require.Equal(t, []string{"b", "c"}, names)
	for _, reply := range []string{"", "Unknown command.\n", "# pxname,svname\na,BACKEND\n"} {
		_, err := parseUnpublished(reply)
		require.Error(t, err, reply)
	}
}
