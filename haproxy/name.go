package haproxy

import (
	"hash/fnv"
	"net/netip"
	"strconv"
	"strings"
)

const (
	// maxName bounds the names that are sent. HAProxy itself sets no limit.
	maxName = 128
	// maxBase leaves room behind a name for its generation.
	maxBase = 120
)

// ServerName is SmartStack's name of a server: "<name>_<host>:<port>", or "<host>:<port>" without a name. IPv6
// addresses are written without brackets. Characters that HAProxy does not take in a name become "_"; a name longer
// than 120 characters keeps its end, and a hash of the whole stands for what was cut. The result is never BACKEND or
// FRONTEND, the two words that mean something else in HAProxy's statistics, since it ends in ":<port>".
func ServerName(name, host string, port uint16) string {
	host = strings.TrimSuffix(strings.TrimPrefix(host, "["), "]")
	tail := ":" + strconv.Itoa(int(port))
	full := safeName(host) + tail
	if name != "" {
		full = safeName(name) + "_" + full
	}
	if len(full) <= maxBase {
		return full
	}

	h := fnv.New64a()
	h.Write([]byte(name + "\x00" + host + tail))
	sum := strconv.FormatUint(h.Sum64(), 16)
	if address := safeName(host) + tail; len(address) <= maxBase/2 {
		cut := maxBase - len(address) - len(sum) - 2
		return safeName(name)[:min(cut, len(name))] + "-" + sum + "_" + address
	}
	// A host name of more than 60 characters: what is left is a legal host name too, see Owned.
	short := safeName(host)
	cut := maxBase - len(tail) - len(sum) - 1
	return "h" + sum + "-" + strings.TrimLeft(short[max(0, len(short)-cut+1):], "-.") + tail
}

// safeName replaces each byte that is not legal in a name of HAProxy.
func safeName(s string) string {
	if s == "" || legalName(s) {
		return s
	}
	b := []byte(s)
	for i, c := range b {
		if !nameByte(c) {
			b[i] = '_'
		}
	}
	return string(b)
}

// nameByte tells whether HAProxy takes c in the name of a server or backend (invalid_char in its src/tools.c).
func nameByte(c byte) bool {
	return 'a' <= c && c <= 'z' || 'A' <= c && c <= 'Z' || '0' <= c && c <= '9' ||
		c == '_' || c == '.' || c == ':' || c == '-'
}

func legalName(s string) bool {
	for i := range len(s) {
		if !nameByte(s[i]) {
			return false
		}
	}
	return s != ""
}

// Generation splits the name of a server object into the server's name and the number of the object: the first
// object has the name itself and number 1, later ones end in "-g2", "-g3" and so on. A server object keeps its
// address and options for life; a changed server is a new object, and the old one is retired beside it.
func Generation(name string) (base string, number int) {
	digit := func(c byte) bool { return '0' <= c && c <= '9' }
	i := len(name)
	for i > 0 && digit(name[i-1]) {
		i--
	}
	if i < 3 || name[i-2:i] != "-g" || !digit(name[i-3]) { // what ServerName makes ends in its port
		return name, 1
	}
	n, err := strconv.Atoi(name[i:])
	if err != nil || n < 2 || n > 1<<20 || name[i] == '0' {
		return name, 1
	}
	return name[:i-2], n
}

// GenerationName is the name of a server's object number n.
func GenerationName(base string, n int) string {
	if n < 2 {
		return base
	}
	return base + "-g" + strconv.Itoa(n)
}

// Owned tells whether a server found in HAProxy is one of ours: whether its name ends in its own address and port,
// or in a legal host name and its port, as those of ServerName do, or whether it is one of our slots. "static1" and the
// like are foreign.
// Servers of a SmartStack that was here before are owned, since they are to be taken over.
func Owned(s Server) bool {
	if IsSlot(s) {
		return true
	}
	base, _ := Generation(s.Name)
	i := strings.LastIndexByte(base, ':')
	if i < 0 || base[i+1:] != strconv.Itoa(int(s.Addr.Port())) {
		return false
	}
	host := base[strings.LastIndexByte(base[:i], '_')+1 : i]
	if ip, err := netip.ParseAddr(host); err == nil {
		return ip.Unmap() == s.Addr.Addr().Unmap()
	}
	return hostName(host)
}

// hostName tells whether s is a legal host name (RFC 1123) with a letter in it.
func hostName(s string) bool {
	letter := false
	for label := range strings.SplitSeq(s, ".") {
		if label == "" || len(label) > 63 || label[0] == '-' || label[len(label)-1] == '-' {
			return false
		}
		for i := range len(label) {
			c := label[i]
			switch {
			case 'a' <= c && c <= 'z' || 'A' <= c && c <= 'Z':
				letter = true
			case '0' <= c && c <= '9' || c == '-':
			default:
				return false
			}
		}
	}
	return letter && len(s) <= 253
}
