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

// everyWord allows a registration all that can be allowed.
func everyWord() map[string]bool {
	allowed := map[string]bool{}
	for _, w := range strings.Fields(`weight id cookie enabled disabled backup check send-proxy send-proxy-v2 inter fastinter
		downinter slowstart rise fall error-limit maxconn minconn maxqueue port observe on-error on-marked-down on-marked-up proto`) {
		allowed[w] = true
	}
	return allowed
}

func usual() map[string]bool {
	return map[string]bool{"weight": true, "backup": true, "maxconn": true, "slowstart": true}
}

// FuzzRegistryOptions: what is let through can be sent, is allowed, is what was given, and loses nothing silently.
func FuzzRegistryOptions(f *testing.F) {
	f.Add("check inter 2s source 1.2.3.4 usesrc x backup")
	f.Add("check;disable server b/a")
	f.Add("weight 00 maxconn 5 slowstart 2s slowstart")
	f.Fuzz(func(t *testing.T, text string) {
		words := strings.Fields(text)
		for _, allowed := range []map[string]bool{everyWord(), usual(), nil} {
			v := RegistryOptions(words, allowed)
			if len(v.Words) == len(words) != (len(v.Ignored)+len(v.Refused) == 0) {
				t.Fatalf("%q: %q", words, v)
			}
			if len(v.Words) == 0 {
				continue
			}
			if _, err := commandLine(v.Words); err != nil && len(strings.Join(v.Words, " ")) <= maxLine {
				t.Fatal(err)
			}
			for i := 0; i < len(v.Words); i++ {
				o, known := serverWord(v.Words[i])
				if !known || !allowed[v.Words[i]] {
					t.Fatalf("%q let through", v.Words[i])
				}
				i += o.args
			}
		}
	})
}

func TestRegistryOptions(t *testing.T) {
	for _, c := range []struct{ in, words, ignored, refused string }{
		{"", "", "", ""},
		{"check inter 2s rise 2 fall 3", "check inter 2s rise 2 fall 3", "", ""},
		{"backup maxconn 100 slowstart 30s", "backup maxconn 100 slowstart 30s", "", ""},
		{"weight 5 id 7 cookie abc disabled", "weight 5 id 7 cookie abc disabled", "", ""},
		{"observe layer7 error-limit 10 on-error mark-down", "observe layer7 error-limit 10 on-error mark-down", "", ""},
		{"on-marked-down shutdown-sessions send-proxy port 8081", "on-marked-down shutdown-sessions send-proxy port 8081", "", ""},
		{"inter 250 proto h2", "inter 250 proto h2", "", ""},

		{"check ssl verify none backup", "check backup", "", "ssl|verify none"},
		{"source 1.2.3.4 usesrc clientip check", "check", "", "source 1.2.3.4|usesrc clientip"},
		{"addr 169.254.169.254 check", "check", "", "addr 169.254.169.254"},
		{"agent-check agent-addr 10.0.0.1 backup", "backup", "", "agent-check|agent-addr 10.0.0.1"},
		{"track other/s", "", "", "track other/s"},
		{"inter 1ms check", "check", "inter 1ms", ""}, // would be a thousand checks a second
		{"inter 2x check", "check", "inter 2x", ""},
		{"inter 99999999999s", "", "inter 99999999999s", ""},
		{"inter s", "", "inter s", ""},
		{"inter -2s", "", "inter -2s", ""},
		{"maxconn 5x", "", "maxconn 5x", ""},
		{"maxconn +5", "", "maxconn +5", ""},
		{"weight 300", "", "weight 300", ""},
		{"weight -1", "", "weight -1", ""},
		{"port 0", "", "port 0", ""},
		{"cookie a;b", "", "cookie a;b", ""},
		{"id 0 rise 0", "", "id 0|rise 0", ""},
		{"on-error explode", "", "on-error explode", ""},
		{"proto h9", "", "", "proto h9"},
		{"check foo backup", "check", "", "foo backup"}, // whose argument is backup?
		{"check inter", "check", "", "inter"},
		{"check; disable", "", "", "check; disable"},
		{"resolvers dns check", "", "", "resolvers dns check"},
	} {
		v := RegistryOptions(strings.Fields(c.in), everyWord())
		assert.Equal(t, c.words, strings.Join(v.Words, " "), c.in)
		assert.Equal(t, c.ignored, strings.Join(v.Ignored, "|"), c.in)
		assert.Equal(t, c.refused, strings.Join(v.Refused, "|"), c.in)
	}
	v := RegistryOptions([]string{strings.Repeat("x", 2<<20)}, everyWord())
	require.Len(t, v.Refused, 1)
	assert.Less(t, len(v.Refused[0]), 300, "what is shown is bounded")
}

// TestRegistryOptionsNotAllowed: what only tunes a server is left out; what it is not the same server without costs it
// its place.
func TestRegistryOptionsNotAllowed(t *testing.T) {
	for _, c := range []struct {
		allowed                     map[string]bool
		in, words, ignored, refused string
	}{
		{usual(), "check inter 2s backup maxconn 5", "backup maxconn 5", "check|inter 2s", ""},
		{usual(), "id 7 cookie x enabled", "", "id 7|cookie x|enabled", ""},
		{usual(), "disabled", "", "", "disabled"},
		{usual(), "send-proxy slowstart 30s", "slowstart 30s", "", "send-proxy"},
		{usual(), "weight 0", "weight 0", "", ""},
		{nil, "weight 5 maxconn 3", "", "weight 5|maxconn 3", ""},
		{nil, "weight 0", "", "", "weight 0"},
		{nil, "backup", "", "", "backup"},
		{map[string]bool{"source": true, "nonsense": true}, "source 1.2.3.4", "", "", "source 1.2.3.4"}, // no rule for its argument
	} {
		v := RegistryOptions(strings.Fields(c.in), c.allowed)
		assert.Equal(t, c.words, strings.Join(v.Words, " "), c.in)
		assert.Equal(t, c.ignored, strings.Join(v.Ignored, "|"), c.in)
		assert.Equal(t, c.refused, strings.Join(v.Refused, "|"), c.in)
	}
	for w := range everyWord() {
		assert.True(t, RegistryWord(w), w)
	}
	for _, w := range []string{"source", "ssl", "verify", "addr", "agent-check", "track", "ca-file", "resolvers", "", "x y"} {
		assert.False(t, RegistryWord(w), w)
	}
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
