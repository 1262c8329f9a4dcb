// Package host reads what a doctor wants to know of a machine from a tree with its /proc and /etc: this machine's own,
// another one's that a container has mounted, or one that a test has prepared. It judges nothing.
package host

import (
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"

	"github.com/myelin-sd/myelin/doctor"
)

// most bounds what is read of one file.
const most = 8 << 20

// Host is a machine, by the folder in which its file system begins.
type Host struct{ root string }

// New returns the machine whose file system begins at root: "/", or "" for the same.
func New(root string) Host {
	if root == "" {
		root = "/"
	}
	return Host{root}
}

// Own tells whether it is the machine that this process runs on, as the process sees it.
func (h Host) Own() bool { return filepath.Clean(h.root) == "/" }

// Path is where a path of the machine is found.
func (h Host) Path(p string) string { return filepath.Join(h.root, p) }

func (h Host) read(p string) (string, error) {
	f, err := os.Open(h.Path(p))
	if err != nil {
		return "", plain(err)
	}
	defer f.Close()
	text, err := io.ReadAll(io.LimitReader(f, most))
	return string(text), plain(err)
}

// plain words an error for a finding: with the machine's path, which is what the operator knows.
func plain(err error) error {
	var at *fs.PathError
	if errors.As(err, &at) {
		return fmt.Errorf("%s %s: %w", at.Op, at.Path, at.Err)
	}
	return err
}

func (h Host) sysctl(key string) (string, error) {
	text, err := h.read("proc/sys/" + strings.ReplaceAll(key, ".", "/"))
	return strings.TrimSpace(text), err
}

func (h Host) number(key string) doctor.Known[int64] {
	text, err := h.sysctl(key)
	if err != nil {
		return doctor.Not[int64](err.Error())
	}
	n, err := strconv.ParseInt(text, 10, 64)
	if err != nil {
		return doctor.Not[int64](fmt.Sprintf("%s is %q, no number", key, text))
	}
	return doctor.Is(n)
}

// Kernel reads the kernel's settings and counters. What cannot be read is told as such.
func (h Host) Kernel() doctor.Kernel {
	release, _ := h.sysctl("kernel.osrelease")
	k := doctor.Kernel{
		Release:    release,
		PortRange:  h.portRange(),
		Reserved:   h.reserved(),
		TWReuse:    h.number("net.ipv4.tcp_tw_reuse"),
		Timestamps: h.number("net.ipv4.tcp_timestamps"),
		Somaxconn:  h.number("net.core.somaxconn"),
		SynBacklog: h.number("net.ipv4.tcp_max_syn_backlog"),
		Syncookies: h.number("net.ipv4.tcp_syncookies"),
		FinTimeout: h.number("net.ipv4.tcp_fin_timeout"),
		Overflows:  h.overflows(),
		Files:      h.files(),
		Conntrack:  h.conntrack(),
		Recycle:    h.number("net.ipv4.tcp_tw_recycle"),
		Leftovers:  h.leftovers("tcp_tw_recycle"),
	}
	_, err := os.Stat(h.Path("proc/sys/net/ipv4/tcp_tw_recycle"))
	k.RecycleExists = err == nil
	return k
}

func (h Host) portRange() doctor.Known[doctor.Range] {
	text, err := h.sysctl("net.ipv4.ip_local_port_range")
	if err != nil {
		return doctor.Not[doctor.Range](err.Error())
	}
	var r doctor.Range
	if _, err := fmt.Sscan(text, &r.From, &r.To); err != nil {
		return doctor.Not[doctor.Range](fmt.Sprintf("ip_local_port_range is %q", text))
	}
	return doctor.Is(r)
}

// reserved reads "8080,9000-9010".
func (h Host) reserved() doctor.Known[[]doctor.Range] {
	text, err := h.sysctl("net.ipv4.ip_local_reserved_ports")
	if err != nil {
		return doctor.Not[[]doctor.Range](err.Error())
	}
	var out []doctor.Range
	for word := range strings.SplitSeq(text, ",") {
		if word == "" {
			continue
		}
		from, to, isRange := strings.Cut(word, "-")
		if !isRange {
			to = from
		}
		a, err1 := strconv.Atoi(from)
		b, err2 := strconv.Atoi(to)
		if err1 != nil || err2 != nil {
			return doctor.Not[[]doctor.Range](fmt.Sprintf("ip_local_reserved_ports is %q", text))
		}
		out = append(out, doctor.Range{From: a, To: b})
	}
	return doctor.Is(out)
}

// overflows reads /proc/net/netstat: pairs of lines, names and values.
func (h Host) overflows() doctor.Known[int64] {
	text, err := h.read("proc/net/netstat")
	if err != nil {
		return doctor.Not[int64](err.Error())
	}
	lines := strings.Split(text, "\n")
	for i := 0; i+1 < len(lines); i += 2 {
		names, values := strings.Fields(lines[i]), strings.Fields(lines[i+1])
		at := slices.Index(names, "ListenOverflows")
		if at < 0 || at >= len(values) {
			continue
		}
		if n, err := strconv.ParseInt(values[at], 10, 64); err == nil {
			return doctor.Is(n)
		}
	}
	return doctor.Not[int64]("/proc/net/netstat has no ListenOverflows")
}

// files reads /proc/sys/fs/file-nr: in use, free, most.
func (h Host) files() doctor.Known[doctor.FileTable] {
	text, err := h.sysctl("fs.file-nr")
	if err != nil {
		return doctor.Not[doctor.FileTable](err.Error())
	}
	f := strings.Fields(text)
	if len(f) != 3 {
		return doctor.Not[doctor.FileTable](fmt.Sprintf("file-nr is %q", text))
	}
	open, err1 := strconv.ParseInt(f[0], 10, 64)
	limit, err2 := strconv.ParseInt(f[2], 10, 64) // 2^63-1 on new kernels
	if err1 != nil || err2 != nil {
		return doctor.Not[doctor.FileTable](fmt.Sprintf("file-nr is %q", text))
	}
	return doctor.Is(doctor.FileTable{Open: open, Max: limit})
}

func (h Host) conntrack() doctor.Known[doctor.Conntrack] {
	if _, err := os.Stat(h.Path("proc/sys/net/netfilter/nf_conntrack_max")); err != nil {
		if errors.Is(err, fs.ErrNotExist) {
			if _, err := os.Stat(h.Path("proc/sys/net")); err != nil {
				return doctor.Not[doctor.Conntrack](plain(err).Error())
			}
			return doctor.Is(doctor.Conntrack{})
		}
		return doctor.Not[doctor.Conntrack](plain(err).Error())
	}
	limit, count := h.number("net.netfilter.nf_conntrack_max"), h.number("net.netfilter.nf_conntrack_count")
	for _, k := range []doctor.Known[int64]{limit, count} {
		if !k.OK() {
			return doctor.Not[doctor.Conntrack](k.Unknown)
		}
	}
	return doctor.Is(doctor.Conntrack{Loaded: true, Count: count.Value, Max: limit.Value})
}

// leftovers are the lines of sysctl's files that set a key, by its last word.
func (h Host) leftovers(word string) (out []doctor.Leftover) {
	files := []string{"/etc/sysctl.conf"}
	seen := map[string]bool{} // /lib is a link to /usr/lib
	for _, dir := range []string{"/etc/sysctl.d", "/run/sysctl.d", "/usr/local/lib/sysctl.d", "/usr/lib/sysctl.d", "/lib/sysctl.d"} {
		found, _ := filepath.Glob(h.Path(dir) + "/*.conf")
		slices.Sort(found)
		for _, f := range found {
			files = append(files, dir+"/"+filepath.Base(f))
		}
	}
	for _, file := range files {
		real, err := filepath.EvalSymlinks(h.Path(file))
		if err != nil || seen[real] {
			continue
		}
		seen[real] = true
		text, err := h.read(file)
		if err != nil {
			continue
		}
		number := 0
		for line := range strings.Lines(text) {
			number++
			trimmed := strings.TrimSpace(line)
			key, _, isSetting := strings.Cut(trimmed, "=")
			if isSetting && !strings.HasPrefix(trimmed, "#") && !strings.HasPrefix(trimmed, ";") && strings.Contains(key, word) {
				out = append(out, doctor.Leftover{File: file, Line: number, Text: trimmed})
			}
		}
	}
	return out
}
