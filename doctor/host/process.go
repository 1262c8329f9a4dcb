package host

import (
	"encoding/hex"
	"errors"
	"fmt"
	"io/fs"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"

	"github.com/myelin-sd/myelin/doctor"
)

// Process is a running process.
type Process struct {
	Pid, Parent int
	Name        string   // comm: at most 15 bytes
	Args        []string // with the program in front; empty where they cannot be read
	Dir         string   // its working directory; empty: not known
	User        doctor.User

	starts uint64 // ticks after the boot
}

// Processes lists all processes, by pid. Those that vanish meanwhile are left out.
func (h Host) Processes() ([]Process, error) {
	entries, err := os.ReadDir(h.Path("proc"))
	if err != nil {
		return nil, fmt.Errorf("list processes: %w", plain(err))
	}
	var out []Process
	for _, e := range entries {
		pid, err := strconv.Atoi(e.Name())
		if err != nil {
			continue
		}
		if p, err := h.Process(pid); err == nil {
			out = append(out, p)
		}
	}
	slices.SortFunc(out, func(a, b Process) int { return a.Pid - b.Pid })
	return out, nil
}

// Process reads one process.
func (h Host) Process(pid int) (Process, error) {
	dir := fmt.Sprintf("proc/%d/", pid)
	stat, err := h.read(dir + "stat")
	if err != nil {
		return Process{}, fmt.Errorf("read process %d: %w", pid, err)
	}
	p := Process{Pid: pid}
	// "12 (a name) S 1 ...": the name may have blanks and brackets.
	open, end := strings.Index(stat, "("), strings.LastIndex(stat, ")")
	if open < 0 || end < open {
		return Process{}, fmt.Errorf("read process %d: its stat is %q", pid, stat)
	}
	p.Name = stat[open+1 : end]
	f := strings.Fields(stat[end+1:])
	if len(f) > 19 {
		p.Parent, _ = strconv.Atoi(f[1])
		p.starts, _ = strconv.ParseUint(f[19], 10, 64)
	}
	if args, err := h.read(dir + "cmdline"); err == nil && args != "" {
		p.Args = strings.Split(strings.TrimSuffix(args, "\x00"), "\x00")
	}
	p.Dir, _ = os.Readlink(h.Path(dir + "cwd"))
	status, err := h.read(dir + "status")
	if err != nil {
		return Process{}, fmt.Errorf("read process %d: %w", pid, err)
	}
	p.User = userOf(status)
	return p, nil
}

// userOf reads /proc/PID/status.
func userOf(status string) doctor.User {
	u := doctor.User{UID: -1}
	for line := range strings.Lines(status) {
		key, rest, _ := strings.Cut(line, ":")
		f := strings.Fields(rest)
		switch {
		case key == "Uid" && len(f) > 1:
			u.UID, _ = strconv.Atoi(f[1]) // the effective one
		case key == "Gid" && len(f) > 1:
			if gid, err := strconv.Atoi(f[1]); err == nil {
				u.Groups = append([]int{gid}, u.Groups...)
			}
		case key == "Groups":
			for _, g := range f {
				if gid, err := strconv.Atoi(g); err == nil {
					u.Groups = append(u.Groups, gid)
				}
			}
		case key == "CapEff" && len(f) > 0:
			caps, _ := strconv.ParseUint(f[0], 16, 64)
			const override = 1 << 1 // CAP_DAC_OVERRIDE
			u.Super = caps&override != 0
		}
	}
	return u
}

// Self is the user of this process.
func (h Host) Self() doctor.User {
	u := doctor.User{UID: os.Geteuid(), Groups: []int{os.Getegid()}, Super: os.Geteuid() == 0}
	if text, err := os.ReadFile("/proc/self/status"); err == nil {
		u = userOf(string(text))
	}
	u.Guess = true
	return u
}

// File is the value of a flag among the process's arguments ("-c FILE", "--config=FILE"), absolute where its working
// directory is known; empty when it has none.
func (p Process) File(flags ...string) string {
	for i, arg := range p.Args {
		value := ""
		switch name, v, given := strings.Cut(arg, "="); {
		case given && slices.Contains(flags, name):
			value = v
		case slices.Contains(flags, arg) && i+1 < len(p.Args):
			value = p.Args[i+1]
		default:
			continue
		}
		return p.absolute(value)
	}
	return ""
}

func (p Process) absolute(path string) string {
	if path != "" && !filepath.IsAbs(path) && p.Dir != "" {
		return filepath.Join(p.Dir, path)
	}
	return path
}

// LookupEnv looks into the environment that a process was started with. Whoever may not read it finds nothing.
func (h Host) LookupEnv(pid int, name string) (value string, found bool) {
	text, err := h.read(fmt.Sprintf("proc/%d/environ", pid))
	if err != nil {
		return "", false
	}
	for entry := range strings.SplitSeq(text, "\x00") {
		if key, value, ok := strings.Cut(entry, "="); ok && key == name {
			return value, true
		}
	}
	return "", false
}

// HAProxyFiles are the configuration files that a HAProxy was started with, in order. A folder stands for its *.cfg.
func (h Host) HAProxyFiles(p Process) (out []string) {
	base := p.Dir
	for i := 1; i < len(p.Args); i++ {
		arg := p.Args[i]
		if arg == "--" { // the rest are files
			for _, a := range p.Args[i+1:] {
				out = append(out, p.absolute(a))
			}
			break
		}
		value := ""
		switch {
		case arg == "-C" && i+1 < len(p.Args):
			i++
			base = p.Args[i]
			continue
		case arg == "-f" && i+1 < len(p.Args):
			i++
			value = p.Args[i]
		case strings.HasPrefix(arg, "-f") && len(arg) > 2:
			value = arg[2:]
		default:
			continue
		}
		if !filepath.IsAbs(value) {
			value = filepath.Join(base, value)
		}
		out = append(out, value)
	}
	var files []string
	for _, f := range out {
		if info, err := os.Stat(h.Path(f)); err == nil && info.IsDir() {
			inside, _ := filepath.Glob(h.Path(f) + "/*.cfg")
			slices.Sort(inside)
			for _, in := range inside {
				files = append(files, filepath.Join(f, filepath.Base(in)))
			}
			continue
		}
		files = append(files, f)
	}
	return files
}

// ReadFile reads a file of the machine, of at most 8 MiB.
func (h Host) ReadFile(path string) (string, error) { return h.read(path) }

// Limits are the limits of a process's open files, and how many it has open. -1: no limit.
func (h Host) Limits(pid int) (soft, hard, open doctor.Known[int64]) {
	dir := fmt.Sprintf("proc/%d/", pid)
	text, err := h.read(dir + "limits")
	if err != nil {
		soft = doctor.Not[int64](err.Error())
		hard = soft
	} else {
		soft, hard = limitsOf(text)
	}
	entries, err := os.ReadDir(h.Path(dir + "fd"))
	if err != nil {
		return soft, hard, doctor.Not[int64](plain(err).Error())
	}
	return soft, hard, doctor.Is(int64(len(entries)))
}

func limitsOf(text string) (soft, hard doctor.Known[int64]) {
	for line := range strings.Lines(text) {
		rest, ok := strings.CutPrefix(line, "Max open files")
		f := strings.Fields(rest)
		if !ok || len(f) < 2 {
			continue
		}
		return limit(f[0]), limit(f[1])
	}
	none := doctor.Not[int64]("its limits have no line for open files")
	return none, none
}

func limit(word string) doctor.Known[int64] {
	if word == "unlimited" {
		return doctor.Is(int64(-1))
	}
	n, err := strconv.ParseInt(word, 10, 64)
	return doctor.Of(n, err)
}

// Siblings are the processes with the same parent and name as pid, without itself and those that began after it: the
// workers of before a reload.
func Siblings(all []Process, pid int) (out []Process) {
	i := slices.IndexFunc(all, func(p Process) bool { return p.Pid == pid })
	if i < 0 {
		return nil
	}
	me := all[i]
	for _, p := range all {
		if p.Pid != pid && p.Parent == me.Parent && me.Parent > 1 && p.Name == me.Name && p.starts <= me.starts {
			out = append(out, p)
		}
	}
	return out
}

// Entries is a path of the machine from its root down, as far as it is there. view is a process whose view of the file
// system counts, 0 for none in particular: it may have mounts of its own, and a unit of systemd has.
func (h Host) Entries(path string, view int) (chain []doctor.PathEntry, missing bool, err error) {
	root := h.root
	if own := h.Path(fmt.Sprintf("proc/%d/root", view)); view > 0 {
		if _, err := os.ReadDir(own + "/"); err == nil {
			root = own
		}
	}
	real := path
	if r, err := filepath.EvalSymlinks(filepath.Join(root, path)); err == nil && root == "/" {
		real = r
	}
	at := "/"
	names := strings.Split(strings.Trim(filepath.Clean(real), "/"), "/")
	for i := -1; i < len(names); i++ {
		if i >= 0 {
			if names[i] == "" {
				continue
			}
			at = filepath.Join(at, names[i])
		}
		there := root + "/" + strings.TrimPrefix(at, "/") // not Join: "/proc/7/root" is a link that must be followed
		info, err := os.Stat(there)
		if os.IsNotExist(err) && i >= 0 {
			return chain, true, nil
		}
		if err != nil {
			return chain, false, plain(err)
		}
		uid, gid := owner(info)
		chain = append(chain, doctor.PathEntry{Path: at, Mode: info.Mode(), UID: uid, GID: gid, ReadOnly: readOnly(there)})
	}
	return chain, false, nil
}

// Mode is the mode and the owner of a file of the machine.
func (h Host) Mode(path string) (mode fs.FileMode, uid, gid int, err error) {
	info, err := os.Stat(h.Path(path))
	if err != nil {
		return 0, 0, 0, plain(err)
	}
	uid, gid = owner(info)
	return info.Mode(), uid, gid, nil
}

// Connections counts the established connections of the machine to an address.
func (h Host) Connections(to netip.AddrPort) doctor.Known[int] {
	count := 0
	for _, file := range []string{"proc/net/tcp", "proc/net/tcp6"} {
		text, err := h.read(file)
		if err != nil {
			if file == "proc/net/tcp6" && errors.Is(err, fs.ErrNotExist) {
				continue
			}
			return doctor.Not[int](err.Error())
		}
		for line := range strings.Lines(text) {
			f := strings.Fields(line)
			if len(f) < 4 || f[3] != "01" {
				continue
			}
			if remote, ok := socketAddr(f[2]); ok && remote == netip.AddrPortFrom(to.Addr().Unmap(), to.Port()) {
				count++
			}
		}
	}
	return doctor.Is(count)
}

// socketAddr reads "0100007F:0885": the address in groups of four bytes, each turned round.
func socketAddr(text string) (netip.AddrPort, bool) {
	host, port, ok := strings.Cut(text, ":")
	raw, err := hex.DecodeString(host)
	n, err2 := strconv.ParseUint(port, 16, 16)
	if !ok || err != nil || err2 != nil || len(raw)%4 != 0 {
		return netip.AddrPort{}, false
	}
	for i := 0; i < len(raw); i += 4 {
		slices.Reverse(raw[i : i+4])
	}
	addr, ok := netip.AddrFromSlice(raw)
	return netip.AddrPortFrom(addr.Unmap(), uint16(n)), ok
}
