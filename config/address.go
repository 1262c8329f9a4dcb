package config

import (
	"errors"
	"fmt"
	"net"
	"net/netip"
	"regexp"
	"strconv"
	"strings"
)

// DefaultZooKeeperPort is used for hosts that are given without a port.
const DefaultZooKeeperPort = "2181"

// ParseHosts reads ZooKeeper's connection strings: "host:port" texts, each possibly several with commas between, with
// an optional chroot at the very end ("zk1:2181,zk2:2181/chroot"). Hosts come back as "host:port", with :2181 where no
// port is given and brackets around IPv6 addresses; the chroot without a trailing slash, or empty. The error says
// which text is wrong and why.
func ParseHosts(texts ...string) (hosts []string, chroot string, err error) {
	pieces := strings.Split(strings.Join(texts, ","), ",")
	for i, piece := range pieces {
		piece = strings.TrimSpace(piece)
		if cut := strings.IndexByte(piece, '/'); cut >= 0 {
			if i < len(pieces)-1 {
				return nil, "", fmt.Errorf("parse host %q: a chroot may only follow the last host", clip(piece))
			}
			if chroot, err = cleanPath(piece[cut:]); err != nil && chroot != "/" {
				return nil, "", fmt.Errorf("parse chroot %q: %w", clip(piece[cut:]), err)
			}
			chroot, piece = strings.TrimSuffix(chroot, "/"), piece[:cut]
		}
		host, err := hostPort(piece)
		if err != nil {
			return nil, "", fmt.Errorf("parse host %q: %w", clip(piece), err)
		}
		hosts = append(hosts, host)
	}
	return hosts, chroot, nil
}

func hostPort(s string) (string, error) {
	if s == "" {
		return "", errors.New("it is empty")
	}
	host, port := s, DefaultZooKeeperPort
	bare := strings.HasPrefix(s, "[") && strings.HasSuffix(s, "]")
	switch {
	case bare:
		host = s[1 : len(s)-1]
	case strings.Contains(s, ":"):
		var err error
		if host, port, err = net.SplitHostPort(s); err != nil {
			if _, err := netip.ParseAddr(s); err == nil {
				return "", errors.New("an IPv6 address needs brackets")
			}
			return "", errors.New("it is not host:port")
		}
	}
	ip, err := netip.ParseAddr(host)
	if strings.HasPrefix(s, "[") && (err != nil || !ip.Is6()) {
		return "", errors.New("brackets are for IPv6 addresses")
	}
	if !validHost(host) {
		return "", errors.New("it is neither an IP address nor a host name")
	}
	if n, err := strconv.ParseUint(port, 10, 16); err != nil || n == 0 {
		return "", errors.New("its port is not a number from 1 to 65535")
	}
	return net.JoinHostPort(host, port), nil
}

// hostName is what may stand for a host: letters, digits, hyphens, dots, and the underscores of container names.
var hostName = regexp.MustCompile(`^[A-Za-z0-9_]([A-Za-z0-9_-]{0,61}[A-Za-z0-9_])?(\.[A-Za-z0-9_]([A-Za-z0-9_-]{0,61}[A-Za-z0-9_])?)*\.?$`)

func validHost(s string) bool {
	if _, err := netip.ParseAddr(s); err == nil {
		return true
	}
	return len(s) <= 253 && hostName.MatchString(s) && !allNumeric(s)
}

// allNumeric: "10.0.0.256" or "10.1" is a mistyped address, not a name (no top-level domain is a number, RFC 3696 2).
func allNumeric(s string) bool {
	last := s[strings.LastIndexByte(strings.TrimSuffix(s, "."), '.')+1:]
	_, err := strconv.ParseUint(strings.TrimSuffix(last, "."), 10, 64)
	return err == nil && strings.Contains(s, ".")
}

// host is an IP address or a host name, or def.
func (t *table) host(key, def string) string {
	s := t.str(key, def)
	if t.value(key) != nil && !validHost(s) {
		t.mismatch(key, "an IP address or a host name", "write for example 10.0.0.5")
		return def
	}
	return s
}

// cleanPath checks a ZooKeeper path and returns it without trailing slashes. The rules are those of ZooKeeper 3.8's
// PathUtils.validatePath; a path it refuses would only fail at run time.
func cleanPath(s string) (string, error) {
	if !strings.HasPrefix(s, "/") {
		return s, errors.New("it does not begin with /")
	}
	clean := strings.TrimRight(s, "/")
	if clean == "" {
		return "/", errors.New("it names no node below the root")
	}
	for _, part := range strings.Split(clean[1:], "/") {
		switch part {
		case "":
			return s, errors.New("it has an empty component (//)")
		case ".", "..":
			return s, fmt.Errorf("it has a relative component (%s)", part)
		}
	}
	for _, c := range clean {
		if isControl(c) || c >= 0xd800 && c <= 0xf8ff || c >= 0xfff0 && c <= 0xffff {
			return s, errors.New("it has a character that ZooKeeper does not allow")
		}
	}
	return clean, nil
}

// znode is a ZooKeeper path, or def. A trailing slash is taken away with a warning: Nerve made "//" of it.
func (t *table) znode(key, def string) string {
	s := t.str(key, "")
	if s == "" && t.value(key) == nil {
		return def
	}
	clean, err := cleanPath(s)
	if err != nil {
		t.mismatch(key, "a ZooKeeper path: "+err.Error(), "write for example /services/user-api")
		return def
	}
	if clean != s {
		t.warn(key, "ends in a slash, which is taken away", "remove the slash")
	}
	return clean
}

// longestSocket is the longest unix socket path that works: sun_path takes 107 bytes and its NUL, and HAProxy binds
// to the path with a suffix of up to 10 bytes (".<pid>.tmp") before it renames the socket.
const longestSocket = 97

// socketPath complains about a unix socket path that is too long.
func (r *reader) socketPath(n *node, path, s string) {
	if len(s) > longestSocket {
		r.fail(n, path, fmt.Sprintf("the unix socket path has %d bytes; HAProxy can bind to %d at most", len(s), longestSocket), "write a shorter path")
	}
}
