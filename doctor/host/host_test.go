package host_test

import (
	"fmt"
	"io/fs"
	"maps"
	"net/netip"
	"os"
	"path/filepath"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/myelin-sd/myelin/doctor"
	"github.com/myelin-sd/myelin/doctor/host"
)

// healthy is a host as kernels come, with nothing to complain about.
func healthy() map[string]string {
	return map[string]string{
		"proc/sys/kernel/osrelease":                     "6.1.0-18-amd64\n",
		"proc/sys/net/ipv4/ip_local_port_range":         "10240\t65535\n",
		"proc/sys/net/ipv4/ip_local_reserved_ports":     "\n",
		"proc/sys/net/ipv4/tcp_tw_reuse":                "1\n",
		"proc/sys/net/ipv4/tcp_timestamps":              "1\n",
		"proc/sys/net/core/somaxconn":                   "16384\n",
		"proc/sys/net/ipv4/tcp_max_syn_backlog":         "16384\n",
		"proc/sys/net/ipv4/tcp_syncookies":              "1\n",
		"proc/sys/net/ipv4/tcp_fin_timeout":             "60\n",
		"proc/sys/fs/file-nr":                           "2000\t0\t9223372036854775807\n",
		"proc/sys/net/netfilter/nf_conntrack_max":       "262144\n",
		"proc/sys/net/netfilter/nf_conntrack_count":     "12\n",
		"proc/net/netstat":                              "TcpExt: SyncookiesSent ListenOverflows ListenDrops\nTcpExt: 1 0 2\nIpExt: InOctets\nIpExt: 7\n",
		"etc/sysctl.d/10-network.conf":                  "# net.ipv4.tcp_tw_recycle = 1\nnet.ipv4.conf.all.rp_filter=1\n",
		"proc/7/stat":                                   "7 (a (strange) name) S 1 7 7 0 -1 4194560 1 2 3 4 5 6 7 8 20 0 1 0 100 1000 10 0 0\n",
		"proc/7/status":                                 "Name:\ta\nUid:\t0\t42\t0\t0\nGid:\t0\t43\t0\t0\nGroups:\t44 45 \nCapEff:\t0000000000000000\n",
		"proc/7/cmdline":                                "/usr/bin/myelin\x00agent\x00-c\x00agent.toml\x00",
		"proc/7/limits":                                 "Limit                     Soft Limit           Hard Limit           Units     \nMax open files            1024                 524288               files     \n",
		"proc/net/tcp":                                  "  sl  local_address rem_address   st tx_queue\n   0: 0100007F:8124 0300000A:0885 01 0\n   1: 0100007F:8125 0300000A:0885 06 0\n   2: 0100007F:8126 0300000A:0886 01 0\n",
		"proc/net/tcp6":                                 "  sl  local_address remote_address st\n   0: 0000000000000000FFFF00000100007F:8127 0000000000000000FFFF00000300000A:0885 01 0\n   1: 00000000000000000000000001000000:1F90 B80D0120000000000000000001000000:0885 01 0\n",
		"proc/sys/net/ipv4/conf/all/not-asked-for-here": "0\n",
	}
}

// tree makes the files. An empty text takes a file away.
func tree(t *testing.T, changes map[string]string) string {
	t.Helper()
	root := t.TempDir()
	files := healthy()
	maps.Copy(files, changes)
	for path, text := range files {
		if text == "" {
			continue
		}
		at := filepath.Join(root, path)
		require.NoError(t, os.MkdirAll(filepath.Dir(at), 0o755))
		require.NoError(t, os.WriteFile(at, []byte(text), 0o644))
	}
	return root
}

// TestKernel goes from files of a host to what is said of them.
func TestKernel(t *testing.T) {
	busy := []doctor.HAProxy{{Info: doctor.Is(doctor.Info{Maxconn: 40000}), Config: doctor.Is(doctor.ReadConfig(nil, "global\nmaxconn 40000\nfrontend f\nbind :80 backlog 50000\n"))}}
	listens := []doctor.Listen{{Port: 8080, Who: "the frontend of a"}, {Port: 33000, Who: "the frontend of b"}, {Port: 33002, Who: "service c"}}
	for name, c := range map[string]struct {
		files   map[string]string
		haproxy []doctor.HAProxy
		listens []doctor.Listen
		id      string
		want    string // severity, what was found
		fix     string
	}{
		"a new kernel":                 {id: "kernel.release", want: "ok: Linux 6.1.0-18-amd64"},
		"an old kernel":                {files: map[string]string{"proc/sys/kernel/osrelease": "4.9.0-3-amd64\n"}, id: "kernel.release", want: "note: Linux 4.9.0-3-amd64"},
		"no release":                   {files: map[string]string{"proc/sys/kernel/osrelease": ""}, id: "kernel.release", want: "note: not known: the release cannot be read"},
		"many ports":                   {id: "kernel.port-range", want: "ok: 55296 ports (10240-65535), good for 921 new connections a second to one destination"},
		"many ports, HAProxy":          {haproxy: busy, id: "kernel.port-range", want: "ok: 55296 ports (10240-65535), good for 921 new connections a second to one destination; HAProxy's maxconn is 40000"},
		"the usual ports, HAProxy":     {files: map[string]string{"proc/sys/net/ipv4/ip_local_port_range": "32768 60999\n"}, haproxy: busy, id: "kernel.port-range", want: "warning: 28232 ports (32768-60999), good for 470 new connections a second to one destination; HAProxy's maxconn is 40000", fix: `sysctl -w net.ipv4.ip_local_port_range="10240 65535", and for good: that line in /etc/sysctl.d/60-myelin.conf`},
		"the usual ports":              {files: map[string]string{"proc/sys/net/ipv4/ip_local_port_range": "32768 60999\n"}, id: "kernel.port-range", want: "ok: 28232 ports (32768-60999), good for 470 new connections a second to one destination"},
		"few ports":                    {files: map[string]string{"proc/sys/net/ipv4/ip_local_port_range": "50000 51000\n"}, id: "kernel.port-range", want: "warning: 1001 ports (50000-51000), good for 16 new connections a second to one destination", fix: `sysctl -w net.ipv4.ip_local_port_range="10240 65535", and for good: that line in /etc/sysctl.d/60-myelin.conf`},
		"fewer ports than usual":       {files: map[string]string{"proc/sys/net/ipv4/ip_local_port_range": "40000 60999\n"}, id: "kernel.port-range", want: "note: 21000 ports (40000-60999), good for 350 new connections a second to one destination", fix: `sysctl -w net.ipv4.ip_local_port_range="10240 65535", and for good: that line in /etc/sysctl.d/60-myelin.conf`},
		"ports that cannot be read":    {files: map[string]string{"proc/sys/net/ipv4/ip_local_port_range": "many\n"}, id: "kernel.port-range", want: `note: not known: ip_local_port_range is "many"`},
		"no port in the range":         {files: map[string]string{"proc/sys/net/ipv4/ip_local_port_range": "40000 60999\n"}, listens: listens, id: "kernel.port-overlap", want: "ok: none of the 3 ports of the configuration lies unreserved in 40000-60999"},
		"ports in the range":           {files: map[string]string{"proc/sys/net/ipv4/ip_local_port_range": "32768 60999\n"}, listens: listens, id: "kernel.port-overlap", want: "warning: in ip_local_port_range (32768-60999) and not reserved: 33000 (the frontend of b), 33002 (service c)", fix: "sysctl -w net.ipv4.ip_local_reserved_ports=33000,33002, and for good: that line in /etc/sysctl.d/61-myelin-ports.conf"},
		"one port is reserved":         {files: map[string]string{"proc/sys/net/ipv4/ip_local_port_range": "32768 60999\n", "proc/sys/net/ipv4/ip_local_reserved_ports": "32990-33001,50000\n"}, listens: listens, id: "kernel.port-overlap", want: "warning: in ip_local_port_range (32768-60999) and not reserved: 33002 (service c)", fix: "sysctl -w net.ipv4.ip_local_reserved_ports=32990-33002,50000, and for good: that line in /etc/sysctl.d/61-myelin-ports.conf"},
		"all are reserved":             {files: map[string]string{"proc/sys/net/ipv4/ip_local_port_range": "32768 60999\n", "proc/sys/net/ipv4/ip_local_reserved_ports": "33000-33002\n"}, listens: listens, id: "kernel.port-overlap", want: "ok: none of the 3 ports of the configuration lies unreserved in 32768-60999"},
		"tw_reuse is off":              {files: map[string]string{"proc/sys/net/ipv4/tcp_tw_reuse": "0\n"}, id: "kernel.tw-reuse", want: "warning: tcp_tw_reuse = 0: off, for all connections", fix: "sysctl -w net.ipv4.tcp_tw_reuse=1, and for good: that line in /etc/sysctl.d/60-myelin.conf"},
		"tw_reuse is on":               {id: "kernel.tw-reuse", want: "ok: tcp_tw_reuse = 1: on, for all outgoing connections"},
		"tw_reuse is on for loopback":  {files: map[string]string{"proc/sys/net/ipv4/tcp_tw_reuse": "2\n"}, id: "kernel.tw-reuse", want: "note: tcp_tw_reuse = 2: on for loopback only, so for clients of the sidecar, but not from HAProxy to instances on other hosts", fix: "sysctl -w net.ipv4.tcp_tw_reuse=1, and for good: that line in /etc/sysctl.d/60-myelin.conf"},
		"tw_reuse without timestamps":  {files: map[string]string{"proc/sys/net/ipv4/tcp_timestamps": "0\n"}, id: "kernel.tw-reuse", want: "warning: tcp_tw_reuse = 1: on, for all outgoing connections; but tcp_timestamps = 0, without which it does nothing", fix: "sysctl -w net.ipv4.tcp_timestamps=1, and for good: that line in /etc/sysctl.d/60-myelin.conf"},
		"tw_reuse in a container":      {files: map[string]string{"proc/sys/net/ipv4/tcp_tw_reuse": ""}, id: "kernel.tw-reuse", want: "note: not known: open ROOT/proc/sys/net/ipv4/tcp_tw_reuse: no such file or directory"},
		"somaxconn of old kernels":     {files: map[string]string{"proc/sys/net/core/somaxconn": "128\n"}, id: "kernel.somaxconn", want: "warning: somaxconn = 128", fix: "sysctl -w net.core.somaxconn=16384, and for good: that line in /etc/sysctl.d/60-myelin.conf; HAProxy takes it at its next reload"},
		"somaxconn below the backlog":  {files: map[string]string{"proc/sys/net/core/somaxconn": "4096\n"}, haproxy: busy, id: "kernel.somaxconn", want: "note: somaxconn = 4096; HAProxy asks for a backlog of 50000 (the backlog of a bind line, else its frontend's maxconn)", fix: "sysctl -w net.core.somaxconn=16384, and for good: that line in /etc/sysctl.d/60-myelin.conf; HAProxy takes it at its next reload"},
		"somaxconn as advised":         {haproxy: busy, id: "kernel.somaxconn", want: "ok: somaxconn = 16384; HAProxy asks for a backlog of 50000 (the backlog of a bind line, else its frontend's maxconn)"},
		"syn backlog with cookies":     {files: map[string]string{"proc/sys/net/ipv4/tcp_max_syn_backlog": "512\n"}, id: "kernel.syn-backlog", want: "ok: tcp_max_syn_backlog = 512, tcp_syncookies is on"},
		"small syn backlog":            {files: map[string]string{"proc/sys/net/ipv4/tcp_max_syn_backlog": "64\n"}, id: "kernel.syn-backlog", want: "note: tcp_max_syn_backlog = 64, tcp_syncookies is on", fix: "sysctl -w net.ipv4.tcp_max_syn_backlog=16384, and for good: that line in /etc/sysctl.d/60-myelin.conf"},
		"syn backlog without cookies":  {files: map[string]string{"proc/sys/net/ipv4/tcp_max_syn_backlog": "512\n", "proc/sys/net/ipv4/tcp_syncookies": "0\n"}, id: "kernel.syn-backlog", want: "warning: tcp_max_syn_backlog = 512, and tcp_syncookies is off", fix: "sysctl -w net.ipv4.tcp_max_syn_backlog=16384, and for good: that line in /etc/sysctl.d/60-myelin.conf"},
		"fin timeout":                  {id: "kernel.fin-timeout", want: "ok: tcp_fin_timeout = 60 s"},
		"fin timeout of folklore":      {files: map[string]string{"proc/sys/net/ipv4/tcp_fin_timeout": "1\n"}, id: "kernel.fin-timeout", want: "note: tcp_fin_timeout = 1 s", fix: "sysctl -w net.ipv4.tcp_fin_timeout=60, which is what kernels come with; remove the line that sets it from /etc/sysctl.d"},
		"overflows":                    {files: map[string]string{"proc/net/netstat": "TcpExt: ListenOverflows\nTcpExt: 77\n"}, id: "kernel.listen-overflows", want: "note: 77 since the boot, of all sockets of this host", fix: "ss -ltn shows whose queue is full (Recv-Q above Send-Q); raise its backlog and somaxconn, or have it accept faster"},
		"no overflows":                 {id: "kernel.listen-overflows", want: "ok: 0 since the boot, of all sockets of this host"},
		"overflows that are not there": {files: map[string]string{"proc/net/netstat": "IpExt: InOctets\nIpExt: 77\n"}, id: "kernel.listen-overflows", want: "note: not known: /proc/net/netstat has no ListenOverflows"},
		"files":                        {id: "kernel.file-max", want: "ok: 2000 of 9223372036854775807 open"},
		"files run out":                {files: map[string]string{"proc/sys/fs/file-nr": "80000 0 100000\n"}, id: "kernel.file-max", want: "warning: 80000 of 100000 open", fix: "sysctl -w fs.file-max=200000, and for good: that line in /etc/sysctl.d/60-myelin.conf; lsof tells who has them"},
		"files have run out":           {files: map[string]string{"proc/sys/fs/file-nr": "99000 0 100000\n"}, id: "kernel.file-max", want: "critical: 99000 of 100000 open", fix: "sysctl -w fs.file-max=200000, and for good: that line in /etc/sysctl.d/60-myelin.conf; lsof tells who has them"},
		"conntrack":                    {id: "kernel.conntrack", want: "ok: 12 of 262144 connections tracked"},
		"no conntrack":                 {files: map[string]string{"proc/sys/net/netfilter/nf_conntrack_max": ""}, id: "kernel.conntrack", want: "ok: connections are not tracked here"},
		"conntrack is nearly full":     {files: map[string]string{"proc/sys/net/netfilter/nf_conntrack_count": "250000\n"}, id: "kernel.conntrack", want: "critical: 250000 of 262144 connections tracked", fix: "sysctl -w net.netfilter.nf_conntrack_max=524288, and for good: that line in /etc/sysctl.d; or do not track loopback: iptables -t raw -A OUTPUT -o lo -j NOTRACK"},
		"conntrack is small":           {files: map[string]string{"proc/sys/net/netfilter/nf_conntrack_max": "8192\n"}, id: "kernel.conntrack", want: "note: 12 of 8192 connections tracked", fix: "sysctl -w net.netfilter.nf_conntrack_max=262144, and for good: that line in /etc/sysctl.d"},
		"no tw_recycle":                {id: "kernel.tw-recycle", want: "ok: no file sets it"},
		"tw_recycle in /etc":           {files: map[string]string{"etc/sysctl.conf": "# tuning\n\nnet.ipv4.tcp_tw_recycle=1\n"}, id: "kernel.tw-recycle", want: "note: a dead setting: net.ipv4.tcp_tw_recycle=1", fix: "sed -i 3d /etc/sysctl.conf"},
		"tw_recycle of a package":      {files: map[string]string{"usr/lib/sysctl.d/50-x.conf": "-net.ipv4.tcp_tw_recycle = 1\n"}, id: "kernel.tw-recycle", want: "note: a dead setting: -net.ipv4.tcp_tw_recycle = 1", fix: "sed -i 1d /usr/lib/sysctl.d/50-x.conf"},
		"tw_recycle in /run":           {files: map[string]string{"run/sysctl.d/x.conf": "net/ipv4/tcp_tw_recycle = 1\n"}, id: "kernel.tw-recycle", want: "note: a dead setting: net/ipv4/tcp_tw_recycle = 1", fix: "sed -i 1d /run/sysctl.d/x.conf"},
		"tw_recycle in force":          {files: map[string]string{"proc/sys/net/ipv4/tcp_tw_recycle": "1\n"}, id: "kernel.tw-recycle", want: "critical: tcp_tw_recycle = 1 is in force on this old kernel", fix: "sysctl -w net.ipv4.tcp_tw_recycle=0, and remove the line that sets it"},
	} {
		t.Run(name, func(t *testing.T) {
			root := tree(t, c.files)
			kernel := host.New(root).Kernel()
			var got []doctor.Finding
			for _, f := range doctor.Examine(doctor.Facts{Kernel: &kernel, HAProxy: c.haproxy, Listens: c.listens}) {
				if f.ID == c.id {
					got = append(got, f)
				}
			}
			require.Len(t, got, 1)
			require.Equal(t, c.want, got[0].Severity.String()+": "+replaceRoot(got[0].Found, root))
			require.Equal(t, c.fix, got[0].Fix)
			require.NotEmpty(t, got[0].Why)
		})
	}
}

// TestNothingAdvisesRecycle: no fix for anything sets tcp_tw_recycle to other than 0.
func TestNothingAdvisesRecycle(t *testing.T) {
	root := tree(t, map[string]string{"proc/sys/net/ipv4/tcp_tw_recycle": "0\n", "proc/sys/net/ipv4/tcp_tw_reuse": "0\n", "etc/sysctl.conf": "net.ipv4.tcp_tw_recycle = 1\n"})
	kernel := host.New(root).Kernel()
	for _, f := range doctor.Examine(doctor.Facts{Kernel: &kernel}) {
		require.NotContains(t, f.Fix, "recycle=1")
	}
	for _, s := range doctor.Settings() {
		require.NotContains(t, s.Key, "recycle")
	}
}

// TestEmptyTree: a host that cannot be looked at passes nothing silently.
func TestEmptyTree(t *testing.T) {
	kernel := host.New(t.TempDir()).Kernel()
	for _, f := range doctor.Examine(doctor.Facts{Kernel: &kernel}) {
		if f.ID == "kernel.tw-recycle" {
			continue // there is no file that sets it
		}
		require.Equal(t, doctor.Note, f.Severity, f.ID)
		require.Contains(t, f.Found, "not known: ", f.ID)
	}
}

func replaceRoot(s, root string) string {
	for i := 0; i+len(root) <= len(s); i++ {
		if s[i:i+len(root)] == root {
			return s[:i] + "ROOT" + s[i+len(root):]
		}
	}
	return s
}

func TestProcess(t *testing.T) {
	h := host.New(tree(t, map[string]string{
		"proc/8/stat": "8 (haproxy) S 5 5 5 0 -1 4 1 2 3 4 5 6 7 8 20 0 1 0 900 1000 10 0 0\n", "proc/8/status": "Uid:\t1\t1\t1\t1\nCapEff:\t000001ffffffffff\n",
		"proc/8/cmdline": "haproxy\x00-W\x00-f\x00/etc/haproxy/haproxy.cfg\x00-f\x00/etc/haproxy/conf.d\x00-fmore.cfg\x00-x\x00sockpair@4\x00",
		"proc/9/stat":    "9 (haproxy) S 5 5 5 0 -1 4 1 2 3 4 5 6 7 8 20 0 1 0 950 1000 10 0 0\n", "proc/9/status": "Uid:\t1\t1\t1\t1\n",
		"proc/10/stat": "10 (other) S 5 5 5 0 -1 4 1 2 3 4 5 6 7 8 20 0 1 0 1 1000 10 0 0\n", "proc/10/status": "Uid:\t1\t1\t1\t1\n",
		"proc/11/stat": "gone", "proc/12/cmdline": "x",
		"etc/haproxy/conf.d/b.cfg": "x", "etc/haproxy/conf.d/a.cfg": "x", "etc/haproxy/conf.d/a.txt": "x",
	}))
	all, err := h.Processes()
	require.NoError(t, err)
	require.Len(t, all, 4) // not those that went meanwhile
	p := all[0]
	require.Equal(t, "a (strange) name", p.Name)
	require.Equal(t, 1, p.Parent)
	require.Equal(t, doctor.User{UID: 42, Groups: []int{43, 44, 45}}, p.User)
	require.Equal(t, "agent.toml", p.File("-c", "--config"))
	p.Dir = "/etc/myelin"
	require.Equal(t, "/etc/myelin/agent.toml", p.File("-c", "--config"))
	p.Args = []string{"myelin", "agent", "--config=/x.toml"}
	require.Equal(t, "/x.toml", p.File("-c", "--config"))
	require.True(t, all[1].User.Super)
	all[1].Dir = "/root"
	require.Equal(t, []string{"/etc/haproxy/haproxy.cfg", "/etc/haproxy/conf.d/a.cfg", "/etc/haproxy/conf.d/b.cfg", "/root/more.cfg"}, h.HAProxyFiles(all[1]))

	old := host.Siblings(all, 9)
	require.Len(t, old, 1)
	require.Equal(t, 8, old[0].Pid)
	require.Empty(t, host.Siblings(all, 8))

	soft, hard, open := h.Limits(7)
	require.Equal(t, doctor.Is(int64(1024)), soft)
	require.Equal(t, doctor.Is(int64(524288)), hard)
	require.False(t, open.OK()) // there is no fd
	require.Contains(t, open.Unknown, "proc/7/fd")

	require.Equal(t, doctor.Is(2), h.Connections(netip.MustParseAddrPort("10.0.0.3:2181")))
	require.Equal(t, doctor.Is(1), h.Connections(netip.MustParseAddrPort("[2001:db8::1]:2181")))
	require.Equal(t, doctor.Is(0), h.Connections(netip.MustParseAddrPort("10.0.0.4:2181")))
}

// TestEntries: a path is followed down to what there is of it.
func TestEntries(t *testing.T) {
	root := tree(t, nil)
	h := host.New(root)
	require.NoError(t, os.MkdirAll(filepath.Join(root, "var/lib"), 0o755))
	require.NoError(t, os.Chmod(filepath.Join(root, "var/lib"), 0o750))
	chain, missing, err := h.Entries("/var/lib/myelin/deep", 0)
	require.NoError(t, err)
	require.True(t, missing)
	var got []string
	for _, e := range chain {
		got = append(got, fmt.Sprint(e.Path, " ", e.Mode.Perm()&0o777))
	}
	require.Equal(t, "/var/lib -rwxr-x---", got[len(got)-1])
	require.Len(t, got, 3)

	mode, uid, _, err := h.Mode("/etc/sysctl.d/10-network.conf")
	require.NoError(t, err)
	require.Equal(t, fs.FileMode(0o644), mode)
	require.Equal(t, os.Getuid(), uid)
	_, _, _, err = h.Mode("/etc/nothing")
	require.Error(t, err)
}
