package haproxy

import (
	"os"
	"path/filepath"
	"strconv"
	"strings"
)

// OtherClients counts the connections to a unix socket of HAProxy beside own of ours, by the kernel's list of sockets
// (/proc/net/unix). known is false where that cannot be told: not on Linux, or HAProxy is in another network name space.
//
// HAProxy binds its sockets under a temporary name, PATH.PID.tmp, which is the one that the kernel knows, and hands them
// over at a reload (2.2 to 3.4).
func OtherClients(socket string, own int) (others int, known bool) {
	table, err := os.ReadFile("/proc/net/unix")
	if err != nil {
		return 0, false
	}
	if real, err := filepath.EvalSymlinks(socket); err == nil {
		socket = real
	}
	return countClients(string(table), socket, own)
}

// countClients reads lines "address: references protocol flags type state inode path". A listening socket has state 01,
// a connection that it accepted 03, and both have its path. Of the references of a connection one is its other end's:
// with two, that has hung up and reads nothing any more. HAProxy 2.8 and 3.0 were seen to keep the end of a reader that
// hung up in the middle of a dump for a minute.
func countClients(table, socket string, own int) (others int, known bool) {
	for line := range strings.Lines(table) {
		f := strings.Fields(line)
		if len(f) != 8 || !boundTo(f[7], socket) {
			continue
		}
		switch f[5] {
		case "01":
			known = true
		case "03":
			if references, err := strconv.ParseUint(f[1], 16, 32); err != nil || references > 2 {
				others++
			}
		}
	}
	return max(0, others-own), known
}

// boundTo tells whether path is socket, or the temporary name that HAProxy gave it.
func boundTo(path, socket string) bool {
	rest, ok := strings.CutPrefix(path, socket)
	if !ok || rest == "" {
		return ok
	}
	pid, ok := strings.CutSuffix(rest, ".tmp")
	return ok && len(pid) > 1 && pid[0] == '.' && strings.Trim(pid[1:], "0123456789") == ""
}
