package haproxy

import (
	"strings"
	"testing"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
)

// hostile is what people have put into registrations.
var hostile = []string{
	"", " ", "a b", "a;b", "a\nb", "a\rb", "a\tb", "a\x00b", `a\`, `a\ b`, "<<", "a<<b", "$HOME", "${HOME}", `"a"`, "'a'",
	"#1", "a|b", "a&b", "`a`", "é", "\xff", "a>b", "?",
}

func TestCommandLine(t *testing.T) {
	line, err := commandLine([]string{"add", "server", "b/s", "[::1]:80", "sni", "req.hdr(host)", "%[x]", "a=b,c+d@e!f*g{h}"})
	require.NoError(t, err)
	assert.Equal(t, "add server b/s [::1]:80 sni req.hdr(host) %[x] a=b,c+d@e!f*g{h}", line)
	for _, w := range hostile {
		_, err := commandLine([]string{"show", w})
		assert.ErrorIs(t, err, ErrUnsafe, "%q", w)
		assert.ErrorIs(t, CheckName(w), ErrUnsafe, "%q", w)
	}
	for _, words := range [][]string{nil, {}, strings.Fields(strings.Repeat("a ", 61)), {strings.Repeat("a", 4097)}} {
		_, err := commandLine(words)
		assert.ErrorIs(t, err, ErrUnsafe)
	}
}

func FuzzCommandLine(f *testing.F) {
	for _, w := range hostile {
		f.Add("set", w)
	}
	f.Fuzz(func(t *testing.T, a, b string) {
		line, err := commandLine([]string{a, b})
		if err != nil {
			return
		}
		if strings.ContainsAny(line, "\r\n;\\$\"'\x00\t<>#|&`") || len(strings.Split(line, " ")) != 2 ||
			len(strings.Fields(line)) != 2 {
			t.Fatalf("%q is not two words of one command", line)
		}
	})
}

// FuzzRegistryOptions: what is let through can be sent, is what was given, and loses nothing silently.
func FuzzRegistryOptions(f *testing.F) {
	f.Add("check inter 2s source 1.2.3.4 usesrc x backup")
	f.Add("check;disable server b/a")
	f.Fuzz(func(t *testing.T, text string) {
		words := strings.Fields(text)
		ok, rejected := RegistryOptions(words)
		if len(ok) == len(words) != (len(rejected) == 0) {
			t.Fatalf("%q: %q and %q", words, ok, rejected)
		}
		if len(ok) == 0 {
			return
		}
		if len(ok) <= maxWords && len(strings.Join(ok, " ")) <= maxLine {
			if _, err := commandLine(ok); err != nil {
				t.Fatal(err)
			}
		}
		for _, never := range []string{"source", "usesrc", "addr", "agent-check", "track", "verify", "ssl", "ca-file"} {
			if hasOption(ok, never) {
				t.Fatalf("%q let through", never)
			}
		}
	})
}

func TestRegistryOptions(t *testing.T) {
	for _, c := range []struct{ in, ok, rejected string }{
		{"", "", ""},
		{"check inter 2s rise 2 fall 3", "check inter 2s rise 2 fall 3", ""},
		{"backup maxconn 100 slowstart 30s", "backup maxconn 100 slowstart 30s", ""},
		{"weight 5 id 7 cookie abc disabled", "weight 5 id 7 cookie abc disabled", ""},
		{"observe layer7 error-limit 10 on-error mark-down", "observe layer7 error-limit 10 on-error mark-down", ""},
		{"on-marked-down shutdown-sessions send-proxy port 8081", "on-marked-down shutdown-sessions send-proxy port 8081", ""},
		{"inter 250 proto h2", "inter 250 proto h2", ""},

		{"check ssl verify none backup", "check backup", "ssl|verify none"},
		{"source 1.2.3.4 usesrc clientip check", "check", "source 1.2.3.4|usesrc clientip"},
		{"addr 169.254.169.254 check", "check", "addr 169.254.169.254"},
		{"agent-check agent-addr 10.0.0.1 backup", "backup", "agent-check|agent-addr 10.0.0.1"},
		{"track other/s", "", "track other/s"},
		{"inter 1ms check", "check", "inter 1ms"}, // would be a thousand checks a second
		{"inter 2x check", "check", "inter 2x"},
		{"inter 99999999999s", "", "inter 99999999999s"},
		{"inter s", "", "inter s"},
		{"inter -2s", "", "inter -2s"},
		{"maxconn 5x", "", "maxconn 5x"},
		{"maxconn +5", "", "maxconn +5"},
		{"weight 300", "", "weight 300"},
		{"weight -1", "", "weight -1"},
		{"port 0", "", "port 0"},
		{"cookie a;b", "", "cookie a;b"},
		{"id 0 rise 0", "", "id 0|rise 0"},
		{"on-error explode", "", "on-error explode"},
		{"check foo backup", "check", "foo backup"}, // whose argument is backup?
		{"check inter", "check", "inter"},
		{"check; disable", "", "check; disable"},
		{"resolvers dns check", "", "resolvers dns check"},
	} {
		ok, rejected := RegistryOptions(strings.Fields(c.in))
		assert.Equal(t, c.ok, strings.Join(ok, " "), c.in)
		assert.Equal(t, c.rejected, strings.Join(rejected, "|"), c.in)
	}
	_, rejected := RegistryOptions([]string{strings.Repeat("x", 2<<20)})
	require.Len(t, rejected, 1)
	assert.Less(t, len(rejected[0]), 300, "what is shown is bounded")
}

func TestCheckOptions(t *testing.T) {
	for _, text := range []string{
		"", "check inter 2s rise 2 fall 3", "ssl verify required ca-file /etc/ca.pem sni str(web.example) alpn h2,http/1.1",
		"source 0.0.0.0 usesrc clientip", "track b/s", "agent-check agent-port 9000 agent-send ready", "init-state down",
	} {
		assert.NoError(t, CheckOptions(strings.Fields(text)), text)
	}
	for text, says := range map[string]string{
		"check enabled":   `"enabled" has its own place`,
		"disabled":        `"disabled" has its own place`,
		"id 5":            `"id" has its own place`,
		"weight 5":        `"weight" has its own place`,
		"cookie x":        `"cookie" has its own place`,
		"resolvers dns":   `"resolvers" is not accepted`,
		"no-check":        `"no-check" is not accepted`,
		"foo":             `"foo" is not accepted`,
		"check inter":     `"inter" lacks its argument`,
		"check;x":         "not safe",
		"agent-send $PWD": "not safe",
	} {
		assert.ErrorContains(t, CheckOptions(strings.Fields(text)), says, text)
	}
	assert.NoError(t, CheckOptions([]string{"agent-send", "enabled"}), "an argument is no option")
	assert.Error(t, CheckOptions([]string{"check", ""}))
}

func TestHasOption(t *testing.T) {
	assert.True(t, hasOption(strings.Fields("inter 2s check"), "check"))
	assert.False(t, hasOption(strings.Fields("agent-send check"), "check"), "an argument is no option")
	assert.False(t, hasOption(nil, "check"))
}
