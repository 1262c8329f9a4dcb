package discovery

import (
	"cmp"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"strconv"
	"strings"
)

// Endpoint is a validated address: an IP or a legal host name, with a port from 1 to 65535. Its zero value is no
// endpoint. Endpoints are comparable.
type Endpoint struct {
	ip   netip.Addr // valid when host is an IP
	host string     // lower-case host name otherwise
	port uint16
}

var (
	errPort = errors.New("port is not between 1 and 65535")
	errHost = errors.New("not an IP address or a legal host name")
)

// ParseEndpoint checks host and port. The host is an IP literal (brackets around an IPv6 one are taken off, an IPv4
// address in IPv6 clothes becomes IPv4) or a host name after RFC 1123, which is made lower-case. Addresses that
// nobody can listen on (unspecified, multicast, broadcast) and zone identifiers are refused. So are names whose last
// label is a number, such as "1234" or "0x7f.1": the C library reads them as IPv4 addresses.
func ParseEndpoint(host string, port int) (Endpoint, error) {
	if port < 1 || port > 65535 {
		return Endpoint{}, fmt.Errorf("parse endpoint: %w", errPort)
	}
	e, ok := parseHost(host)
	if !ok {
		return Endpoint{}, fmt.Errorf("parse endpoint: host %s: %w", quote(host), errHost)
	}
	e.port = uint16(port)
	return e, nil
}

func parseHost(host string) (Endpoint, bool) {
	literal := host
	if strings.HasPrefix(host, "[") && strings.HasSuffix(host, "]") && strings.Contains(host, ":") {
		literal = host[1 : len(host)-1]
	}
	if ip, err := netip.ParseAddr(literal); err == nil {
		ip = ip.Unmap()
		broadcast := netip.AddrFrom4([4]byte{255, 255, 255, 255})
		ok := ip.Zone() == "" && !ip.IsUnspecified() && !ip.IsMulticast() && ip != broadcast
		return Endpoint{ip: ip}, ok
	}
	host = strings.TrimSuffix(host, ".")
	if !legalHostName(host) {
		return Endpoint{}, false
	}
	return Endpoint{host: strings.ToLower(host)}, true
}

// legalHostName reports whether s is a host name after RFC 1123 section 2.1 that resolvers cannot take for a number.
func legalHostName(s string) bool {
	if len(s) > 253 {
		return false
	}
	last := ""
	for label := range strings.SplitSeq(s, ".") {
		if label == "" || len(label) > 63 || label[0] == '-' || label[len(label)-1] == '-' {
			return false
		}
		for i := range len(label) {
			if c := label[i]; !('a' <= c && c <= 'z' || 'A' <= c && c <= 'Z' || '0' <= c && c <= '9' || c == '-') {
				return false
			}
		}
		last = label
	}
	return !numeric(last)
}

// numeric reports whether inet_aton would read s as a number: decimal, octal or 0x-hexadecimal.
func numeric(s string) bool {
	digits := "0123456789"
	if strings.HasPrefix(s, "0x") || strings.HasPrefix(s, "0X") {
		s, digits = s[2:], "0123456789abcdefABCDEF"
	}
	return strings.Trim(s, digits) == ""
}

// IP returns the address; false when the host is a name.
func (e Endpoint) IP() (netip.Addr, bool) { return e.ip, e.ip.IsValid() }

// Host returns the IP, without brackets, or the host name.
func (e Endpoint) Host() string {
	if e.ip.IsValid() {
		return e.ip.String()
	}
	return e.host
}

// Port returns the port, 0 only for the zero Endpoint.
func (e Endpoint) Port() uint16 { return e.port }

// String returns "host:port", with brackets around IPv6; the empty string for the zero Endpoint.
func (e Endpoint) String() string {
	if !e.IsValid() {
		return ""
	}
	return net.JoinHostPort(e.Host(), strconv.Itoa(int(e.port)))
}

// IsValid reports whether e came from ParseEndpoint.
func (e Endpoint) IsValid() bool { return e.port != 0 }

// Compare orders IPs (IPv4 first, by number) before names, then by port.
func (e Endpoint) Compare(o Endpoint) int {
	switch isIP, oIP := e.ip.IsValid(), o.ip.IsValid(); {
	case isIP && !oIP:
		return -1
	case !isIP && oIP:
		return 1
	case isIP:
		if c := e.ip.Compare(o.ip); c != 0 {
			return c
		}
	default:
		if c := strings.Compare(e.host, o.host); c != 0 {
			return c
		}
	}
	return cmp.Compare(e.port, o.port)
}
