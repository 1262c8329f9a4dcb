package haproxy

import (
	"testing"

	"github.com/stretchr/testify/require"
)

func TestListenLinesGoWhereHAProxyWantsThem(t *testing.T) {
	const f, b, both = "frontend", "backend", "frontend backend"
	for line, want := range map[string]string{
		"acl local src 127.0.0.1":                     both,
		"backlog 10":                                  f,
		"balance roundrobin":                          b,
		"bind 127.0.0.1:80":                           f,
		"capture request header Host len 10":          f,
		"compression algo gzip":                       both,
		"cookie SRV insert":                           b,
		"declare capture request len 10":              f,
		"default-server inter 2s":                     b,
		"default_backend x":                           f,
		"description some text":                       both,
		"errorfile 503 /x":                            both,
		"filter compression":                          both,
		"hash-balance-factor 150":                     b,
		"hash-type consistent":                        b,
		"http-after-response set-header X y":          both,
		"http-check send meth GET uri /":              b,
		"http-error status 503":                       both,
		"http-request set-header X y":                 both,
		"http-reuse safe":                             b,
		"id 5":                                        b, // refused in two proxies
		"log global":                                  both,
		"no log":                                      both,
		"log-format x":                                f,
		"maxconn 10":                                  f,
		"mode tcp":                                    both,
		"monitor-uri /m":                              f,
		"option forwardfor":                           both,
		"option  httpchk  GET /":                      b,
		"option httplog":                              f,
		"option redispatch":                           b,
		"no option http-server-close":                 both,
		"default option dontlognull":                  f,
		"no option tcp-smart-connect":                 b,
		"option tcp-check":                            b,
		"redirect scheme https":                       both,
		"retries 3":                                   b,
		"retry-on all-retryable-errors":               b,
		"server a 10.0.0.1:80":                        b,
		"server-template a 3 10.0.0.1:80":             b,
		"stats enable":                                both,
		"stick on src":                                b,
		"stick-table type ip size 10":                 b, // refused twice under one name
		"tcp-check connect":                           b,
		"tcp-request connection reject if x":          f,
		"tcp-request session accept":                  f,
		"tcp-request content accept":                  both,
		"tcp-request inspect-delay 1s":                both,
		"tcp-response content accept":                 b,
		"timeout check 1s":                            b,
		"timeout client 1s":                           f,
		"timeout client-fin 1s":                       f,
		"timeout connect 1s":                          b,
		"timeout http-keep-alive 1s":                  both,
		"timeout http-request 1s":                     both,
		"timeout queue 1s":                            b,
		"timeout server 1s":                           b,
		"timeout server-fin 1s":                       b,
		"timeout tarpit 1s":                           both,
		"timeout tunnel 1s":                           b,
		"unique-id-header X":                          f,
		"use-server a if x":                           b,
		"use_backend x if y":                          f,
		"reqadd X-Old:\\ yes":                         both, // gone since 2.1: HAProxy says so, not we
		"\ttimeout\tclient\t1s  # as in the frontend": f,
	} {
		frontend, backend, unknown := splitListen([]string{line})
		got := ""
		if len(frontend) > 0 {
			require.Equal(t, []string{line}, frontend)
			got = f
		}
		if len(backend) > 0 {
			require.Equal(t, []string{line}, backend)
			if got != "" {
				got += " "
			}
			got += b
		}
		require.Equal(t, want, got, line)
		require.Empty(t, unknown, line)
	}
}

func TestUnknownListenLinesAreKeptAndNamed(t *testing.T) {
	for _, line := range []string{
		"frobnicate", "option", "option frobnicate", "timeout", "timeout frobnicate 1s", "tcp-request frobnicate", "no",
		"binding 1", // Synapse took whatever began like a keyword
	} {
		frontend, backend, unknown := splitListen([]string{"mode http", line, "", " # nothing"})
		require.Equal(t, []string{"mode http", line}, frontend)
		require.Equal(t, []string{"mode http", line}, backend)
		require.Equal(t, []string{line}, unknown)
	}
}

func TestALineInListenAndBackendIsWrittenOnce(t *testing.T) {
	s := Service{
		Name:     "a",
		Listen:   []string{"mode  tcp", "option tcp-check", "timeout client 1s"},
		Frontend: []string{"timeout client 1s"},
		Backend:  []string{"mode tcp", "tcp-check connect", "tcp-check connect"},
	}
	require.Equal(t, []string{"mode tcp", "tcp-check connect", "tcp-check connect", "option tcp-check"}, s.BackendLines())
	require.Equal(t, []string{"timeout client 1s", "mode  tcp", "default_backend a"}, s.FrontendLines())
	require.Len(t, s.Backend, 3)
}

func TestDefaultServerWords(t *testing.T) {
	require.Nil(t, DefaultServerWords([]string{"mode http", "default-server"}, nil))
	require.Equal(t, []string{"inter", "2s", "check", "inter", "5s"}, DefaultServerWords(
		[]string{"default-server inter 2s # all", "timeout client 1s"}, []string{" default-server  check", "default-server inter 5s"}))
}

func TestConfigWords(t *testing.T) {
	for line, want := range map[string][]string{
		"":                        nil,
		"  # a b":                 nil,
		"a b\tc":                  {"a", "b", "c"},
		"a#b c":                   {"a"},
		`a "b c" d`:               {"a", "b c", "d"},
		`a 'b "c' d`:              {"a", `b "c`, "d"},
		`a "b 'c" d`:              {"a", `b 'c`, "d"},
		`a\ b \# "\"" '\'`:        {"a b", "#", `"`, `\`},
		`a"b"'c'`:                 {"abc"},
		`""`:                      {""},
		`a "b`:                    {"a", "b"},
		`a \`:                     {"a", `\`},
		"bind :80 ssl crt /a\r\n": {"bind", ":80", "ssl", "crt", "/a"},
	} {
		require.Equal(t, want, configWords(line), "%q", line)
	}
}
