package haproxy

import (
	"errors"
	"fmt"
	"net/netip"
	"strconv"
	"strings"
	"time"
)

// ErrUnsafe marks text that is not sent to HAProxy because it could mean more than one word, or another word, than
// was meant. It is refused, never escaped: the CLI knows ";", "<<", a backslash at the end and (before 3.0) no
// quotes.
var ErrUnsafe = errors.New("not safe to send")

const (
	// maxLine bounds a command. 3.2 takes whole lines of up to tune.bufsize (16,384) bytes and has had faults with
	// nearly full ones, so we stay far below; 16 unanswered commands also fit any socket buffer.
	maxLine = 4096
	// maxWords bounds the words of a command: the CLI takes 64, and before 3.2 ignores the rest without a word.
	maxWords = 60
)

// CheckName tells whether s can be the name of a server or backend in a command.
func CheckName(s string) error {
	if len(s) > maxName || !legalName(s) {
		return fmt.Errorf("name %q: %w (letters, digits and _.:-, at most %d)", clip(s), ErrUnsafe, maxName)
	}
	return nil
}

// checkServerName is CheckName, but for the two words that mean something else in HAProxy's statistics.
func checkServerName(s string) error {
	if s == "BACKEND" || s == "FRONTEND" {
		return fmt.Errorf("name %q: %w (it is a row of its own in HAProxy's statistics)", s, ErrUnsafe)
	}
	return CheckName(s)
}

// checkWord tells whether s is one word in a command, and only that.
func checkWord(s string) error {
	for i := range len(s) {
		if c := s[i]; !nameByte(c) && !strings.ContainsRune(",/()%{}[]@+=!*", rune(c)) {
			return fmt.Errorf("word %q: %w", clip(s), ErrUnsafe)
		}
	}
	if s == "" {
		return fmt.Errorf("empty word: %w", ErrUnsafe)
	}
	return nil
}

// commandLine joins the words of one command, after a look at each.
func commandLine(words []string) (string, error) {
	if len(words) == 0 || len(words) > maxWords {
		return "", fmt.Errorf("%d words in a command, at most %d: %w", len(words), maxWords, ErrUnsafe)
	}
	for _, w := range words {
		if err := checkWord(w); err != nil {
			return "", err
		}
	}
	line := strings.Join(words, " ")
	if len(line) > maxLine {
		return "", fmt.Errorf("a command of %d bytes, at most %d: %w", len(line), maxLine, ErrUnsafe)
	}
	return line, nil
}

// optionWord is what is known of a word of a server line.
type optionWord struct {
	args  int    // words that follow it
	since [2]int // first HAProxy version whose "add server" takes it; zero: 2.6
	// registry tells whether a registration may bring the word with this argument; nil: never.
	registry func(arg string) bool
}

// lookupOption knows the words that "add server" accepts. Every one of the 2.6 words was tried on 2.6.12 (see
// TestOptionWordsAreAcceptedByHAProxy); the later ones follow the reference, section 1.4.
//
// What a registration may bring is what concerns its own server and cannot lower its security: numbers within
// bounds, the check of its own host, proxy protocol. TLS words are the configuration's business: "verify none" from
// the registry would switch off what the configuration asks for. "addr", "source", "agent-addr" and the like would
// point HAProxy elsewhere, so they are refused too.
func lookupOption(word string) (optionWord, bool) {
	always := func(string) bool { return true }
	switch word {
	case "backup", "check", "send-proxy", "send-proxy-v2":
		return optionWord{registry: always}, true
	case "no-backup", "no-send-proxy", "no-send-proxy-v2", "no-tfo",
		"check-send-proxy", "check-via-socks4", "agent-check", "tfo",
		"send-proxy-v2-ssl", "send-proxy-v2-ssl-cn",
		"ssl", "check-ssl", "allow-0rtt", "no-ssl-reuse", "tls-tickets", "no-tls-tickets",
		"force-sslv3", "force-tlsv10", "force-tlsv11", "force-tlsv12", "force-tlsv13",
		"no-sslv3", "no-tlsv10", "no-tlsv11", "no-tlsv12", "no-tlsv13":
		return optionWord{}, true

	case "inter", "fastinter", "downinter", "slowstart":
		return optionWord{args: 1, registry: durationBetween(100*time.Millisecond, time.Hour)}, true
	case "rise", "fall", "error-limit":
		return optionWord{args: 1, registry: numberBetween(1, 1000)}, true
	case "maxconn", "minconn", "maxqueue":
		return optionWord{args: 1, registry: numberBetween(0, 1_000_000)}, true
	case "port":
		return optionWord{args: 1, registry: numberBetween(1, 65535)}, true
	case "observe":
		return optionWord{args: 1, registry: oneOf("layer4", "layer7")}, true
	case "on-error":
		return optionWord{args: 1, registry: oneOf("fastinter", "fail-check", "sudden-death", "mark-down")}, true
	case "on-marked-down":
		return optionWord{args: 1, registry: oneOf("shutdown-sessions")}, true
	case "on-marked-up":
		return optionWord{args: 1, registry: oneOf("shutdown-backup-sessions")}, true
	case "proto":
		return optionWord{args: 1, registry: oneOf("h1", "h2")}, true

	case "addr", "agent-addr", "agent-inter", "agent-port", "agent-send", "check-proto", "check-alpn", "check-sni",
		"ws", "pool-low-conn", "pool-max-conn", "pool-purge-delay", "proxy-v2-options", "source", "usesrc", "track",
		"alpn", "npn", "ca-file", "crl-file", "crt", "ciphers", "ciphersuites", "sni", "ssl-min-ver", "ssl-max-ver",
		"verify", "verifyhost":
		return optionWord{args: 1}, true

	case "guid", "hash-key", "pool-conn-name", "set-proxy-v2-tlv-fmt":
		return optionWord{args: 1, since: [2]int{3, 0}}, true
	case "init-state":
		return optionWord{args: 1, since: [2]int{3, 1}}, true
	case "idle-ping":
		return optionWord{args: 1, since: [2]int{3, 2}}, true
	case "check-reuse-pool", "strict-maxconn":
		return optionWord{since: [2]int{3, 2}}, true
	case "healthcheck":
		return optionWord{args: 1, since: [2]int{3, 4}}, true
	}
	return optionWord{}, false
}

// ourWord tells whether Myelin itself decides about a word of a server line, with the number of its arguments, and
// what a registration may give for it. The agent takes these out of the options before they become a Server.
func ourWord(word string) (optionWord, bool) {
	switch word {
	case "weight":
		return optionWord{args: 1, registry: numberBetween(0, 256)}, true
	case "id":
		return optionWord{args: 1, registry: numberBetween(1, MaxID)}, true
	case "cookie":
		return optionWord{args: 1, registry: legalName}, true
	case "enabled", "disabled":
		return optionWord{registry: func(string) bool { return true }}, true
	}
	return optionWord{}, false
}

// CheckOptions tells whether words can be the options of a Server: each in the alphabet, each known to "add server"
// of some HAProxy version and followed by its arguments. Words that Myelin decides about (id, weight, cookie,
// enabled, disabled) are refused: they have fields of their own, and "enabled" leaves a server up but without
// traffic on 2.6 to 2.9 (HAProxy issue 2497).
func CheckOptions(words []string) error {
	return eachOption(words, func(word, _ string, _ optionWord) error { return nil })
}

// eachOption walks over the words of a server line with their arguments.
func eachOption(words []string, visit func(word, arg string, o optionWord) error) error {
	for _, w := range words {
		if err := checkWord(w); err != nil {
			return err
		}
	}
	for i := 0; i < len(words); i++ {
		word, arg := words[i], ""
		if _, ours := ourWord(word); ours {
			return fmt.Errorf("option %q has its own place in a server and cannot be sent among the options", word)
		}
		o, ok := lookupOption(word)
		if !ok {
			return fmt.Errorf("option %q is not accepted for servers added at run time", clip(word))
		}
		if o.args > 0 {
			if i++; i >= len(words) {
				return fmt.Errorf("option %q lacks its argument", word)
			}
			arg = words[i]
		}
		if err := visit(word, arg, o); err != nil {
			return err
		}
	}
	return nil
}

// hasOption tells whether word is among words as an option, not as the argument of one.
func hasOption(words []string, word string) bool {
	for i := 0; i < len(words); i++ {
		if words[i] == word {
			return true
		}
		if o, ok := lookupOption(words[i]); ok {
			i += o.args
		}
	}
	return false
}

// RegistryVerdict is what becomes of the option words of one registration.
type RegistryVerdict struct {
	Words   []string // to be used, in order
	Ignored []string // options left out, each with its argument: the server is the same one without them
	Refused []string // options that are not allowed and without which the server would be another one
}

// RegistryOptions judges option words that come from a registration, which is text of strangers. allowed are the words
// that the operator lets registrations use; each still needs an argument within bounds (see RegistryWord).
//
// What is not allowed is left out where it only tunes the server: a server with the fleet's own check and timers is
// better than none. It is refused where leaving it out would change whether traffic is sent, or how the server is spoken
// to (see essential), and where no registration can ever be allowed it: who asks for another source address or for
// another server's state means something else than what would be served. Behind a word that is not known nothing can be
// told apart, so all that follows is refused with it.
//
// Among Words may be weight, id, cookie, enabled and disabled, which are the caller's to take out.
func RegistryOptions(words []string, allowed map[string]bool) RegistryVerdict {
	var v RegistryVerdict
	if len(words) > registryWords {
		v.Refused = []string{fmt.Sprintf("%d words, at most %d", len(words), registryWords)}
		return v
	}
	for i := 0; i < len(words); i++ {
		o, known := serverWord(words[i])
		if !known || i+o.args >= len(words) {
			v.Refused = append(v.Refused, clip(strings.Join(words[i:], " ")))
			return v
		}
		option, arg := words[i:i+1+o.args], ""
		if o.args > 0 {
			arg = option[1]
		}
		i += o.args
		switch shown := clip(strings.Join(option, " ")); {
		case allowed[option[0]] && o.registry != nil && o.registry(arg):
			v.Words = append(v.Words, option...)
		case o.registry == nil || essential(option[0], arg):
			v.Refused = append(v.Refused, shown)
		default:
			v.Ignored = append(v.Ignored, shown)
		}
	}
	return v
}

// RegistryWord tells whether registrations can be allowed to use a word at all: whether it concerns their own server
// only and Myelin knows what its argument may be.
func RegistryWord(word string) bool {
	o, known := serverWord(word)
	return known && o.registry != nil
}

// serverWord looks up a word of a server line, those that Myelin decides about included.
func serverWord(word string) (optionWord, bool) {
	if o, known := lookupOption(word); known {
		return o, true
	}
	return ourWord(word)
}

// essential tells of options that a server is not the same without: those that keep traffic away from it (a standby
// that is treated as a full member takes load that nobody meant for it), and those that say what it expects to hear on
// its port (without them each request fails).
func essential(word, arg string) bool {
	switch word {
	case "backup", "disabled", "proto", "send-proxy", "send-proxy-v2":
		return true
	case "weight":
		return strings.Trim(arg, "0") == ""
	}
	return false
}

// registryWords bounds a registration's options: HAProxy takes 64 words in a server line, and most are ours to fill.
const registryWords = 24

func oneOf(words ...string) func(string) bool {
	return func(s string) bool {
		for _, w := range words {
			if s == w {
				return true
			}
		}
		return false
	}
}

// numberBetween accepts decimal digits only: HAProxy reads some numbers with atol(), which takes "5x" for 5.
func numberBetween(low, high int) func(string) bool {
	return func(s string) bool {
		n, err := strconv.Atoi(s)
		return err == nil && s[0] != '+' && s[0] != '-' && n >= low && n <= high
	}
}

// durationBetween accepts HAProxy's time format: digits and an optional unit, milliseconds without one.
func durationBetween(low, high time.Duration) func(string) bool {
	return func(s string) bool {
		digits := strings.TrimRight(s, "abcdefghijklmnopqrstuvwxyz")
		if len(digits) > 9 || !numberBetween(0, 999_999_999)(digits) {
			return false
		}
		unit, ok := map[string]time.Duration{
			"us": time.Microsecond, "": time.Millisecond, "ms": time.Millisecond, "s": time.Second,
			"m": time.Minute, "h": time.Hour, "d": 24 * time.Hour,
		}[s[len(digits):]]
		if !ok {
			return false
		}
		n, _ := strconv.Atoi(digits)
		d := time.Duration(n) * unit
		return d >= low && d <= high
	}
}

// address writes a server's address as a command needs it: "a.b.c.d:port" or "[v6]:port". Only an IP with a port is
// an address: names, paths, "unix@", "abns@" and "$ENV" are all taken by HAProxy and none is ever wanted.
func address(a netip.AddrPort) (string, error) {
	a = canonical(a)
	if !a.IsValid() || a.Port() == 0 || a.Addr().IsUnspecified() || a.Addr().Zone() != "" {
		return "", fmt.Errorf("address %q: %w (an IP address and a port)", a.String(), ErrUnsafe)
	}
	return a.String(), nil
}
