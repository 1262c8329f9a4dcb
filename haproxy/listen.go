package haproxy

import (
	"slices"
	"strings"
)

// side says which halves of a service a line of "listen" belongs to.
type side uint8

const (
	frontendSide side = 1 << iota
	backendSide
	bothSides = frontendSide | backendSide
)

// splitListen divides the lines of a "listen" list between the frontend and the backend of a service, by keyword.
// Nothing is dropped: a keyword that this version does not know goes to both, and is returned in unknown, so that
// HAProxy itself is the judge of it (Synapse dropped what HAProxy 1.6 did not have).
func splitListen(listen []string) (frontend, backend, unknown []string) {
	for _, line := range listen {
		words := configWords(line)
		if len(words) == 0 {
			continue
		}
		s, ok := sideOf(words)
		if !ok {
			unknown = append(unknown, line)
			s = bothSides
		}
		if s&frontendSide != 0 {
			frontend = append(frontend, line)
		}
		if s&backendSide != 0 {
			backend = append(backend, line)
		}
	}
	return frontend, backend, unknown
}

// sideOf looks a line's keyword up. Keywords are compared as HAProxy does, in lower case; "no" and "default" in front
// invert a line or set it back, and do not move it.
func sideOf(words []string) (side, bool) {
	if len(words) > 1 && (words[0] == "no" || words[0] == "default") {
		words = words[1:]
	}
	second := ""
	if len(words) > 1 {
		second = words[1]
	}
	switch words[0] {
	case "option":
		return optionSide(second)
	case "timeout":
		return timeoutSide(second)
	case "tcp-request":
		switch second {
		case "connection", "session":
			return frontendSide, true
		case "content", "inspect-delay":
			return bothSides, true
		}
		return 0, false
	}
	return keywordSide(words[0])
}

// keywordSide is the "proxy keywords matrix" of HAProxy's configuration manual (section 4.1), 2.6 to 3.2, and the
// keywords of SmartStack's time that HAProxy has since removed.
func keywordSide(keyword string) (side, bool) {
	switch keyword {
	case "backlog", "bind", "capture", "clitcpka-cnt", "clitcpka-idle", "clitcpka-intvl", "declare",
		"default_backend", "error-log-format", "force-be-switch", "log-format", "log-format-sd", "log-steps",
		"maxconn", "monitor", "monitor-net", "monitor-uri", "quic-initial", "rate-limit", "unique-id-format",
		"unique-id-header", "use_backend":
		return frontendSide, true

	case "appsession", "balance", "cookie", "default-server", "dispatch", "external-check", "force-persist",
		"fullconn", "hash-balance-factor", "hash-preserve-affinity", "hash-type", "http-check", "http-reuse",
		"http-send-name-header", "ignore-persist", "load-server-state-from-file", "max-keep-alive-queue",
		"max-session-srv-conns", "persist", "retries", "retry-on", "server", "server-state-file-name",
		"server-template", "source", "srvtcpka-cnt", "srvtcpka-idle", "srvtcpka-intvl", "stick", "tcp-check",
		"tcp-response", "transparent", "use-fcgi-app", "use-server":
		return backendSide, true

	// The manual allows these in both, but HAProxy refuses them twice under one name: "stick-table name 'f'
	// conflicts with table declared in frontend 'f'", "backend f reuses same custom id as frontend f" (2.6.12).
	// A listen section's table is there for its servers.
	case "stick-table", "id", "guid":
		return backendSide, true

	case "acl", "bind-process", "block", "compression", "description", "disabled", "email-alert", "enabled",
		"errorfile", "errorfiles", "errorloc", "errorloc302", "errorloc303", "filter", "http-after-response",
		"http-error", "http-request", "http-response", "log", "log-tag", "mode", "redirect", "reqadd", "reqallow",
		"reqdel", "reqdeny", "reqiallow", "reqidel", "reqideny", "reqipass", "reqirep", "reqitarpit", "reqpass",
		"reqrep", "reqtarpit", "rspadd", "rspdel", "rspdeny", "rspidel", "rspideny", "rspirep", "rsprep", "stats":
		return bothSides, true
	}
	return 0, false
}

// optionSide is keywordSide for the second word of "option ...".
func optionSide(name string) (side, bool) {
	switch name {
	case "accept-invalid-http-request", "accept-unsafe-violations-in-http-request", "clitcpka", "contstats",
		"disable-h2-upgrade", "dontlog-normal", "dontlognull", "h1-case-adjust-bogus-client", "http-ignore-probes",
		"http-use-proxy-header", "httplog", "httpslog", "idle-close-on-response", "log-separate-errors", "logasap",
		"socket-stats", "tcp-smart-accept":
		return frontendSide, true

	case "abortonclose", "accept-invalid-http-response", "accept-unsafe-violations-in-http-response", "allbackups",
		"checkcache", "external-check", "h1-case-adjust-bogus-server", "http-pretend-keepalive", "httpchk",
		"ldap-check", "log-health-checks", "mysql-check", "persist", "pgsql-check", "prefer-last-server",
		"redis-check", "redispatch", "smtpchk", "spop-check", "srvtcpka", "ssl-hello-chk", "tcp-check",
		"tcp-smart-connect", "transparent":
		return backendSide, true

	case "forceclose", "forwardfor", "http-buffer-request", "http-drop-request-trailers",
		"http-drop-response-trailers", "http-keep-alive", "http-no-delay", "http-restrict-req-hdr-names",
		"http-server-close", "http-tunnel", "http_proxy", "httpclose", "independent-streams", "nolinger",
		"originalto", "splice-auto", "splice-request", "splice-response", "tcpka", "tcplog":
		return bothSides, true
	}
	return 0, false
}

// timeoutSide is keywordSide for the second word of "timeout ...".
func timeoutSide(name string) (side, bool) {
	switch name {
	case "client", "client-fin", "client-hs":
		return frontendSide, true
	case "check", "connect", "queue", "server", "server-fin", "tunnel":
		return backendSide, true
	case "http-keep-alive", "http-request", "tarpit":
		return bothSides, true
	}
	return 0, false
}

// withoutRepeats is lines followed by those of more that do not stand in lines yet. Synapse wrote a line twice that
// stood in "listen" and in "backend".
func withoutRepeats(lines, more []string) []string {
	out := slices.Clip(lines)
	for _, l := range more {
		same := func(other string) bool { return slices.Equal(configWords(other), configWords(l)) }
		if !slices.ContainsFunc(lines, same) {
			out = append(out, l)
		}
	}
	return out
}

// DefaultServerWords are the words of the default-server lines in defaults and in a backend, in order. HAProxy does
// not apply default-server to servers that are added at run time (2.4 to 3.5, except with 3.5's "from"), so they
// belong into every server's Options.
func DefaultServerWords(defaults, backend []string) []string {
	var words []string
	for _, lines := range [][]string{defaults, backend} {
		for _, l := range lines {
			if w := configWords(l); len(w) > 1 && w[0] == "default-server" {
				words = append(words, w[1:]...)
			}
		}
	}
	return words
}

// configWords splits a line of HAProxy's configuration as HAProxy does (manual, section 2.2): blanks separate, quotes
// and backslashes protect, # begins a comment. Variables are left as they are written. The words of an unfinished
// quote are returned too; HAProxy refuses such a line.
func configWords(line string) []string {
	var (
		words  []string
		word   strings.Builder
		inWord bool
		quote  byte
	)
	end := func() {
		if inWord {
			words = append(words, word.String())
			word.Reset()
			inWord = false
		}
	}
	for i := 0; i < len(line); i++ {
		c := line[i]
		switch {
		case quote == 0 && (c == ' ' || c == '\t' || c == '\r' || c == '\n'):
			end()
			continue
		case quote == 0 && c == '#':
			end()
			return words
		case quote == 0 && (c == '"' || c == '\''):
			quote = c
		case c == quote:
			quote = 0
		case c == '\\' && quote != '\'' && i+1 < len(line):
			i++
			word.WriteByte(line[i])
		default:
			word.WriteByte(c)
		}
		inWord = true
	}
	end()
	return words
}
