package doctor

import (
	"encoding/json"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
)

var today = time.Date(2026, 3, 1, 12, 0, 0, 0, time.UTC)

// find examines the facts and returns the one finding with an id, and a subject where that is not empty.
func find(t *testing.T, f Facts, id, subject string) Finding {
	t.Helper()
	f.Now = today
	var got []Finding
	for _, found := range Examine(f) {
		if found.ID == id && (subject == "" || found.Subject == subject) {
			got = append(got, found)
		}
	}
	require.Len(t, got, 1, "%s", got)
	return got[0]
}

func said(f Finding) string { return f.Severity.String() + ": " + f.Found }

// goodProxy is a HAProxy with nothing to complain about.
func goodProxy() HAProxy {
	return HAProxy{
		Socket: "/run/h.sock", There: true, Mode: fs.ModeSocket | 0o600, Version: "3.2.26", Level: Is("admin"), CPUs: 4, Master: true,
		Info:    Is(Info{Maxconn: 8000, Connections: 10, Threads: 4, FileLimit: 16100, Pid: 7}),
		Config:  Is(ReadConfig([]string{"/etc/h.cfg"}, "global\n maxconn 8000\n hard-stop-after 5m\n stats socket /run/h.sock mode 600 level admin expose-fd listeners\n")),
		Workers: Is([]OldWorker(nil)), Claim: Is(Claim{Held: true, Pid: 9, Config: "/etc/a.toml"}), Others: Is(0), Expected: "/etc/a.toml",
		StateAge: Not[time.Duration]("none"),
	}
}

func TestHAProxy(t *testing.T) {
	config := func(text string) func(*HAProxy) {
		return func(h *HAProxy) { h.Config = Is(ReadConfig([]string{"/etc/h.cfg"}, text)) }
	}
	for name, c := range map[string]struct {
		change    func(*HAProxy)
		id        string
		want, fix string // fix: a part of it
	}{
		"well":                   {nil, "haproxy.socket", "ok: it answers, level admin", ""},
		"no socket":              {func(h *HAProxy) { h.There, h.Error = false, "no such file" }, "haproxy.socket", "critical: there is no socket: no such file", "stats socket /run/h.sock mode 600 level admin expose-fd listeners"},
		"dead socket":            {func(h *HAProxy) { h.Error = "connection refused" }, "haproxy.socket", "critical: no answer: connection refused", "whether HAProxy runs"},
		"may not be asked":       {func(h *HAProxy) { h.Error, h.Denied = "permission denied", true }, "haproxy.socket", "note: not known: the user who asks may not connect: permission denied", "as root"},
		"level operator":         {func(h *HAProxy) { h.Level = Is("operator") }, "haproxy.socket", "critical: it answers with level operator, which changes nothing", "level admin"},
		"hostile level":          {func(h *HAProxy) { h.Level = Is("x\x1b[2J\n") }, "haproxy.socket", `critical: it answers with level "x\x1b[2J\n", which changes nothing`, "level admin"},
		"level not told":         {func(h *HAProxy) { h.Level = Not[string]("unknown command") }, "haproxy.socket", "note: not known: unknown command", ""},
		"mode 600":               {nil, "haproxy.socket-mode", "ok: mode 0600, uid 0, gid 0", ""},
		"mode 666":               {func(h *HAProxy) { h.Mode = fs.ModeSocket | 0o666 }, "haproxy.socket-mode", "critical: mode 0666, uid 0, gid 0: every user of the host may connect", "chmod 600 /run/h.sock"},
		"mode 666, operator":     {func(h *HAProxy) { h.Mode, h.Level = fs.ModeSocket|0o666, Is("operator") }, "haproxy.socket-mode", "warning: mode 0666, uid 0, gid 0: every user of the host may connect", "chmod 600 /run/h.sock"},
		"version":                {nil, "haproxy.version", "ok: 3.2.26", ""},
		"connections":            {nil, "haproxy.connections", "ok: 10 of 8000 connections", ""},
		"connections run out":    {func(h *HAProxy) { h.Info = Is(Info{Maxconn: 8000, Connections: 7900}) }, "haproxy.connections", "critical: 7900 of 8000 connections", `"maxconn 16000"`},
		"maxconn was lowered":    {func(h *HAProxy) { h.Info = Is(Info{Maxconn: 450, FileLimit: 1024}) }, "haproxy.connections", "warning: 0 of 450 connections; its file asks for maxconn 8000, and the limit of open files (1024) has lowered it, or somebody on the socket", "LimitNOFILE=16100"},
		"threads":                {nil, "haproxy.threads", "ok: 4 threads, 4 processors", ""},
		"too many threads":       {func(h *HAProxy) { h.CPUs = 2 }, "haproxy.threads", "note: 4 threads, 2 processors", `"nbthread 2"`},
		"no old workers":         {nil, "haproxy.old-workers", "ok: none", ""},
		"an old worker":          {func(h *HAProxy) { h.Workers = Is([]OldWorker{{Pid: 3, Age: "up 2d"}}) }, "haproxy.old-workers", "note: 1 alive: pid 3 up 2d", "hard-stop-after"},
		"old workers":            {func(h *HAProxy) { h.Workers = Is(make([]OldWorker, 4)) }, "haproxy.old-workers", "warning: 4 alive: pid 0, pid 0, pid 0, pid 0", "hard-stop-after"},
		"expose-fd":              {nil, "haproxy.expose-fd", "ok: expose-fd listeners is set", ""},
		"no expose-fd":           {config("global\nstats socket /run/h.sock level admin\n"), "haproxy.expose-fd", "note: expose-fd listeners is not set; a master of this version hands them over without it", `"expose-fd listeners"`},
		"no expose-fd, 2.4":      {func(h *HAProxy) { config("global\nstats socket /run/h.sock level admin\n")(h); h.Version = "2.4.22" }, "haproxy.expose-fd", "warning: expose-fd listeners is not set", `"expose-fd listeners"`},
		"no expose-fd, alone":    {func(h *HAProxy) { config("global\nstats socket /run/h.sock level admin\n")(h); h.Master = false }, "haproxy.expose-fd", "warning: expose-fd listeners is not set", `"expose-fd listeners"`},
		"another file":           {config("global\n"), "haproxy.expose-fd", "note: not known: its file has no line for this socket", ""},
		"no file":                {func(h *HAProxy) { h.Config = Not[ProxyConfig]("permission denied") }, "haproxy.config", "note: not known: permission denied", ""},
		"hard-stop-after":        {nil, "haproxy.hard-stop", "ok: hard-stop-after 5m", ""},
		"no hard-stop-after":     {config("global\n"), "haproxy.hard-stop", "note: hard-stop-after is not set", `"hard-stop-after 5m"`},
		"no state file":          {nil, "haproxy.server-state", "ok: no server-state-file is used", ""},
		"state file":             {func(h *HAProxy) { config("global\nserver-state-file /s\n")(h); h.StateAge = Is(time.Minute) }, "haproxy.server-state", "note: server-state-file /s is 1m0s old", "take"},
		"old state file":         {func(h *HAProxy) { config("global\nserver-state-file /s\n")(h); h.StateAge = Is(30 * time.Hour) }, "haproxy.server-state", "warning: server-state-file /s is 30h0m0s old", "take"},
		"state file with slots":  {func(h *HAProxy) { config("global\nserver-state-file /s\n")(h); h.Slots = true }, "haproxy.server-state", "critical: server-state-file /s is used, and backends have slots: after a reload such servers point to this host itself", "take"},
		"missing state file":     {config("global\nserver-state-file /s\n"), "haproxy.server-state", "note: not known: none", "take"},
		"driven":                 {nil, "haproxy.manager", "ok: driven by the agent with pid 9", ""},
		"driven by another file": {func(h *HAProxy) { h.Expected = "/etc/b.toml" }, "haproxy.manager", "warning: driven by the agent with pid 9 and the file /etc/a.toml, not by /etc/b.toml", "stop one of the two"},
		"driven by nobody":       {func(h *HAProxy) { h.Claim = Is(Claim{}) }, "haproxy.manager", "note: no agent drives it", "myelin agent -c /etc/a.toml"},
		"others are connected":   {func(h *HAProxy) { h.Others = Is(2) }, "haproxy.manager", "note: driven by the agent with pid 9; 2 other connections to its socket are open now", "ss -xp src /run/h.sock"},
	} {
		t.Run(name, func(t *testing.T) {
			h := goodProxy()
			if c.change != nil {
				c.change(&h)
			}
			got := find(t, Facts{HAProxy: []HAProxy{h}}, c.id, "")
			require.Equal(t, c.want, said(got))
			require.Contains(t, got.Fix, c.fix)
			require.Equal(t, c.fix == "", got.Fix == "", got.Fix)
		})
	}
}

// TestVersionWarnings: a known bug's remedy is the fix.
func TestVersionWarnings(t *testing.T) {
	h := goodProxy()
	h.Warnings = []string{"HAProxy 3.2.7 can hang; install 3.2.19 or later"}
	var got []Finding
	for _, f := range Examine(Facts{HAProxy: []HAProxy{h}}) {
		if f.ID == "haproxy.version" {
			got = append(got, f)
		}
	}
	require.Len(t, got, 2)
	require.Equal(t, "warning: HAProxy 3.2.7 can hang", said(got[0]))
	require.Equal(t, "install 3.2.19 or later", got[0].Fix)
}

func TestBackendsAndManagers(t *testing.T) {
	for _, c := range []struct {
		id, want string
		facts    Facts
	}{
		{"haproxy.algorithm", "ok: changes at run time (servers), by its version", Facts{Backends: []Backend{{Name: "b", Rung: "servers"}}}},
		{"haproxy.algorithm", "note: changes by slots, as the running agent found out: why", Facts{Backends: []Backend{{Name: "b", Rung: "slots", Reason: "why", Tried: true}}}},
		{"haproxy.algorithm", "warning: changes by reload, by its version: why", Facts{Backends: []Backend{{Name: "b", Rung: "reload", Reason: "why"}}}},
		{"haproxy.algorithm", "note: not known: HAProxy does not answer", Facts{Backends: []Backend{{Name: "b", Reason: "HAProxy does not answer"}}}},
		{"haproxy.manager", "critical: it runs on this host, and its configuration names /run/h.sock", Facts{Managers: []Manager{{Name: "Synapse", Pid: 3, Sockets: Is([]string{"/run/h.sock"})}}}},
		{"haproxy.manager", "ok: it drives /run/h.sock, and our agent is its shadow, which changes nothing", Facts{Managers: []Manager{{Name: "Synapse", Pid: 3, Shadow: true, Sockets: Is([]string{"/run/h.sock"})}}}},
		{"haproxy.manager", "note: it runs on this host; its configuration does not name our sockets", Facts{Managers: []Manager{{Name: "Synapse", Pid: 3, Sockets: Is([]string(nil))}}}},
		{"haproxy.manager", "note: it runs on this host; whether it drives this HAProxy is not known: no file", Facts{Managers: []Manager{{Name: "Data Plane API", Pid: 3, Sockets: Not[[]string]("no file")}}}},
		{"process.files", "ok: 100 open, limit 20000; maxconn 8000 needs 16100", Facts{Processes: []Process{{Role: "haproxy", Soft: Is(int64(20000)), Hard: Is(int64(20000)), Open: Is(int64(100)), Maxconn: 8000}}}},
		{"process.files", "warning: 100 open, limit 1024 (hard 4096); maxconn 8000 needs 16100", Facts{Processes: []Process{{Role: "haproxy", Soft: Is(int64(1024)), Hard: Is(int64(4096)), Open: Is(int64(100)), Maxconn: 8000}}}},
		{"process.files", "critical: 1000 open, limit 1024 (hard none)", Facts{Processes: []Process{{Role: "agent", Soft: Is(int64(1024)), Hard: Is(int64(-1)), Open: Is(int64(1000))}}}},
		{"process.files", "note: 10 open, limit 1024", Facts{Processes: []Process{{Role: "agent", Soft: Is(int64(1024)), Hard: Is(int64(1024)), Open: Is(int64(10))}}}},
		{"process.files", "ok: 10 open, limit none", Facts{Processes: []Process{{Role: "agent", Soft: Is(int64(-1)), Hard: Is(int64(-1)), Open: Is(int64(10))}}}},
		{"process.files", "note: limit 65536; how many are open is not known: permission denied", Facts{Processes: []Process{{Role: "registrar", Soft: Is(int64(65536)), Hard: Is(int64(65536)), Open: Not[int64]("permission denied")}}}},
		{"process.files", "note: not known: permission denied", Facts{Processes: []Process{{Role: "registrar", Soft: Not[int64]("permission denied")}}}},
		{"clock.sync", "ok: synchronised, within 12ms by the kernel's bound", Facts{Clock: &Clock{Sync: Is(Sync{true, 12 * time.Millisecond})}}},
		{"clock.sync", "warning: the kernel says that nobody disciplines its clock (STA_UNSYNC); a clock that the hypervisor keeps right looks the same", Facts{Clock: &Clock{Sync: Is(Sync{})}}},
		{"clock.sync", "note: not known: a container", Facts{Clock: &Clock{Sync: Not[Sync]("a container")}}},
		{"clock.jump", "ok: no jump in the 2s of this run; what was before is not known", Facts{Clock: &Clock{Watched: 2 * time.Second}}},
		{"clock.jump", "warning: the wall clock jumped by -3s in the 2s of this run; what was before is not known", Facts{Clock: &Clock{Watched: 2 * time.Second, Jump: Is(-3 * time.Second)}}},
		{"clock.registry", "ok: ZooKeeper's clock is 40ms ahead of this host's, give or take 5ms", Facts{Clock: &Clock{Registry: []RegistryClock{{"zk", Is(40 * time.Millisecond), 5 * time.Millisecond}}}}},
		{"clock.registry", "warning: ZooKeeper's clock is 40s behind of this host's, give or take 5ms", Facts{Clock: &Clock{Registry: []RegistryClock{{"zk", Is(-40 * time.Second), 5 * time.Millisecond}}}}},
	} {
		require.Equal(t, c.want, said(find(t, c.facts, c.id, "")))
	}
}

// TestPaths: who may do what with a file is decided as the kernel does.
func TestPaths(t *testing.T) {
	dir := func(path string, mode fs.FileMode, uid, gid int) PathEntry {
		return PathEntry{Path: path, Mode: fs.ModeDir | mode, UID: uid, GID: gid}
	}
	file := func(path string, mode fs.FileMode, uid, gid int) PathEntry {
		return PathEntry{Path: path, Mode: mode, UID: uid, GID: gid}
	}
	root, nobody := dir("/", 0o755, 0, 0), User{UID: 42, Groups: []int{43, 44}}
	readOnly := dir("/s/lib", 0o777, 0, 0)
	readOnly.ReadOnly = true
	for name, c := range map[string]struct {
		path      Path
		want, fix string
	}{
		"reads":                    {Path{Need: ToRead, User: nobody, Chain: []PathEntry{root, file("/f", 0o644, 0, 0)}}, "ok: uid 42 can read it", ""},
		"reads by group":           {Path{Need: ToRead, User: nobody, Chain: []PathEntry{root, file("/f", 0o640, 0, 44)}}, "ok: uid 42 can read it", ""},
		"its own, closed to it":    {Path{Need: ToRead, User: nobody, Chain: []PathEntry{root, file("/d/f", 0o044, 42, 0)}}, "critical: uid 42 cannot read it (----r--r--, uid 42, gid 0)", "chmod u+r /d/f"},
		"may not read":             {Path{Need: ToRead, User: nobody, Chain: []PathEntry{root, dir("/d", 0o755, 0, 0), file("/d/f", 0o600, 0, 0)}}, "critical: uid 42 cannot read it (-rw-------, uid 0, gid 0)", "chgrp 43 /d/f && chmod g+r /d/f"},
		"root reads":               {Path{Need: ToRead, User: User{Super: true}, Chain: []PathEntry{root, file("/f", 0o000, 1, 1)}}, "ok: uid 0 can read it", ""},
		"a folder is in the way":   {Path{Need: ToRead, User: nobody, Chain: []PathEntry{root, dir("/d/e", 0o700, 0, 0), file("/d/e/f", 0o644, 0, 0)}}, "critical: uid 42 cannot enter /d/e (drwx------, uid 0, gid 0)", "chgrp 43 /d/e && chmod g+x /d/e"},
		"not there":                {Path{Need: ToRead, User: nobody, Missing: true, Chain: []PathEntry{root}}, "critical: it is not there", "create it"},
		"writes":                   {Path{Need: ToWrite, User: nobody, Chain: []PathEntry{root, dir("/d", 0o775, 0, 43)}}, "ok: uid 42 can write there", ""},
		"may not write":            {Path{Need: ToWrite, User: nobody, Chain: []PathEntry{root, dir("/v/d", 0o755, 0, 0)}}, "critical: uid 42 cannot write to /v/d (drwxr-xr-x, uid 0, gid 0)", "chgrp 43 /v/d && chmod g+wx /v/d"},
		"a guess":                  {Path{Need: ToWrite, User: User{UID: 42, Guess: true}, Chain: []PathEntry{root, dir("/v/d", 0o755, 0, 0)}}, "warning: uid 42 (whoever asks: the role does not run here) cannot write to /v/d (drwxr-xr-x, uid 0, gid 0)", "chgrp 42"},
		"would be made":            {Path{Need: ToWrite, User: nobody, Missing: true, Chain: []PathEntry{root, dir("/v/lib", 0o777, 0, 0)}}, "ok: uid 42 can write there", ""},
		"cannot be made":           {Path{Need: ToWrite, User: nobody, Missing: true, Chain: []PathEntry{root, dir("/var", 0o755, 0, 0)}}, "critical: uid 42 cannot write to /var (drwxr-xr-x, uid 0, gid 0)", "name a folder of this user instead"},
		"a file instead":           {Path{Need: ToWrite, User: nobody, Chain: []PathEntry{root, file("/f", 0o666, 0, 0)}}, "critical: /f is no folder", "remove"},
		"read-only":                {Path{Need: ToWrite, User: User{Super: true}, Chain: []PathEntry{root, readOnly}}, "critical: /s/lib is in a file system that is read-only for the process", "ReadWritePaths=/s/lib"},
		"replaces":                 {Path{Need: ToReplace, User: nobody, Chain: []PathEntry{root, dir("/d", 0o777, 0, 0), file("/d/f", 0o400, 0, 0)}}, "ok: uid 42 can replace it", ""},
		"may not replace":          {Path{Need: ToReplace, User: nobody, Chain: []PathEntry{root, dir("/etc/h", 0o755, 0, 0), file("/etc/h/f", 0o666, 42, 0)}}, "critical: uid 42 cannot write to /etc/h (drwxr-xr-x, uid 0, gid 0)", "chmod g+wx /etc/h"},
		"connects":                 {Path{Need: ToConnect, User: nobody, Chain: []PathEntry{root, file("/s", fs.ModeSocket|0o660, 0, 43)}}, "ok: uid 42 can connect to it", ""},
		"may not connect":          {Path{Need: ToConnect, User: nobody, Chain: []PathEntry{root, file("/s", fs.ModeSocket|0o600, 0, 43)}}, "critical: uid 42 cannot connect to it (Srw-------, uid 0, gid 43)", "mode 660 group NAME"},
		"a socket that is to come": {Path{Need: ToConnect, User: nobody, Missing: true, Chain: []PathEntry{root}}, "ok: uid 42 can connect to it", ""},
		"cannot be looked at":      {Path{Need: ToRead, User: nobody, Unknown: "permission denied"}, "note: not known: permission denied", ""},
	} {
		t.Run(name, func(t *testing.T) {
			got := find(t, Facts{Paths: []Path{c.path}}, "permission.path", "")
			require.Equal(t, c.want, said(got))
			require.Contains(t, got.Fix, c.fix)
			require.Equal(t, c.fix == "", got.Fix == "", got.Fix)
		})
	}
}

func TestSecretsAndCertificates(t *testing.T) {
	for mode, want := range map[fs.FileMode]string{
		0o600: "ok: mode 0600", 0o640: "ok: mode 0640", 0o644: "critical: mode 0644: every user of the host can read it",
		0o660: "warning: mode 0660: others than its owner can change it",
	} {
		require.Equal(t, want, said(find(t, Facts{Secrets: []Secret{{Path: "/c", Mode: mode}}}, "permission.secret", "")))
	}
	day := 24 * time.Hour
	for want, c := range map[string]Certificate{
		"ok: CN=zk is good until 2026-06-09 12:00 UTC, for another 100 days":          {Until: today.Add(100 * day)},
		"warning: CN=zk is good until 2026-03-21 12:00 UTC, for another 20 days":      {Until: today.Add(20 * day)},
		"critical: CN=zk is good until 2026-03-02 12:00 UTC, for another 24 hours":    {Until: today.Add(day)},
		"critical: CN=zk has been out of date for 3 days, since 2026-02-26 12:00 UTC": {Until: today.Add(-3 * day)},
		"critical: CN=zk is not good before 2026-03-02 12:00 UTC; look at the clock":  {Until: today.Add(100 * day), From: today.Add(day)},
		"note: not known: no such file":                                               {Unknown: "no such file"},
	} {
		c.Name, c.Whose, c.File = "CN=zk", "client", "/c.pem"
		require.Equal(t, want, said(find(t, Facts{Certs: []Certificate{c}}, "tls.expiry", "client /c.pem")))
	}
}

func member(host, mode string) Member {
	return Member{Host: host, Serves: mode != "", Mode: mode, Version: "3.8.4", Connections: Is(1), Limit: Is(60), Zxid: 5<<32 | 100, HasZxid: mode != ""}
}

func TestZooKeeper(t *testing.T) {
	three := func() Ensemble {
		return Ensemble{
			Name: "a,b,c", Members: []Member{member("a", "leader"), member("b", "follower"), member("c", "follower")},
			Voters: Is([]string{"a:2888", "b:2888", "c:2888"}), Asked: 12 * time.Second,
			Session: Is(SessionFacts{Timeout: 12 * time.Second, Server: "a"}),
			Paths:   []RegistryPath{{Path: "/s", Who: "service s", Children: 10, Bytes: 500}},
		}
	}
	away := Member{Host: "c", Error: "connection refused"}
	for name, c := range map[string]struct {
		change      func(*Ensemble)
		id, subject string
		want, fix   string
	}{
		"member":                    {nil, "zookeeper.member", "a", "ok: serves as leader", ""},
		"member away":               {func(e *Ensemble) { e.Members[2] = away }, "zookeeper.member", "c", "warning: not reached: connection refused", "start it"},
		"member without quorum":     {func(e *Ensemble) { e.Members[2] = member("c", "") }, "zookeeper.member", "c", "warning: reached, and it does not serve: it has no quorum, or has just started", "2888"},
		"member that says nothing":  {func(e *Ensemble) { e.Members[2].Silent = "it does not answer srvr" }, "zookeeper.member", "c", "note: not known: it was reached, but it does not answer srvr", "4lw.commands.whitelist"},
		"three of three":            {nil, "zookeeper.quorum", "", "ok: 3 of 3 voting servers serve (by the ensemble's own configuration): 1 may be lost now", ""},
		"two of three":              {func(e *Ensemble) { e.Members[2] = away }, "zookeeper.quorum", "", "warning: 2 of 3 voting servers serve (by the ensemble's own configuration): none may be lost now", "bring back"},
		"one of three":              {func(e *Ensemble) { e.Members[1], e.Members[2] = away, away; e.Members[0].Mode = "" }, "zookeeper.quorum", "", "critical: 1 of 3 voting servers serve, 2 are needed", "start 1"},
		"none of three":             {func(e *Ensemble) { e.Members = []Member{away, away, away}; e.Voters = Not[[]string]("no session") }, "zookeeper.quorum", "", "critical: no server serves", "until 2 serve"},
		"observers do not count":    {func(e *Ensemble) { e.Members = append(e.Members, member("d", "observer")) }, "zookeeper.quorum", "", "ok: 3 of 3 voting servers serve (by the ensemble's own configuration): 1 may be lost now", ""},
		"three of five":             {func(e *Ensemble) { e.Members = append(e.Members, away, away); e.Voters = Not[[]string]("old") }, "zookeeper.quorum", "", "warning: 3 of 5 voting servers serve (of the servers in hosts): none may be lost now", "bring back"},
		"one server":                {func(e *Ensemble) { e.Members = []Member{member("a", "standalone")}; e.Voters = Is([]string(nil)) }, "zookeeper.quorum", "", "warning: one server alone: none may be lost", "three"},
		"hosts names one":           {func(e *Ensemble) { e.Members = e.Members[:1] }, "zookeeper.quorum", "", "note: there is a quorum, and 1 of 3 voting servers were seen; how many may be lost is not known", "name all"},
		"one host of three":         {func(e *Ensemble) { e.Members = e.Members[:1] }, "zookeeper.hosts", "", "warning: hosts names 1 servers, the ensemble has 3 that vote", "a:2888, b:2888, c:2888"},
		"all hosts":                 {nil, "zookeeper.hosts", "", "ok: hosts names 3 servers, the ensemble has 3 that vote", ""},
		"silent servers":            {func(e *Ensemble) { e.Members[0].Silent = "x" }, "zookeeper.quorum", "", "note: not known: 1 of the servers do not say what they are", "4lw"},
		"two servers":               {func(e *Ensemble) { e.Members = e.Members[:2]; e.Voters = Is([]string{"a", "b"}) }, "zookeeper.quorum", "", "warning: 2 of 2 voting servers serve (by the ensemble's own configuration): none may be lost now", "add a third"},
		"connections":               {nil, "zookeeper.connections", "a", "ok: 1 from this host; maxClientCnxns is 60", ""},
		"many connections":          {func(e *Ensemble) { e.Members[0].Connections = Is(50) }, "zookeeper.connections", "a", "warning: 50 from this host; maxClientCnxns is 60", "maxClientCnxns=120"},
		"all connections":           {func(e *Ensemble) { e.Members[0].Connections = Is(60) }, "zookeeper.connections", "a", "critical: 60 from this host; maxClientCnxns is 60", "maxClientCnxns=120"},
		"no limit":                  {func(e *Ensemble) { e.Members[0].Limit = Is(0) }, "zookeeper.connections", "a", "ok: 1 from this host; maxClientCnxns sets no limit", ""},
		"unknown limit":             {func(e *Ensemble) { e.Members[0].Limit = Not[int]("conf is not allowed") }, "zookeeper.connections", "a", "ok: 1 from this host; maxClientCnxns is not known (conf is not allowed); the default is 60", ""},
		"session":                   {nil, "zookeeper.login", "", "ok: a session came about with a", ""},
		"no session":                {func(e *Ensemble) { e.Session = Not[SessionFacts]("authentication failed") }, "zookeeper.login", "", "critical: no session: authentication failed", "zookeeper.auth"},
		"timeout":                   {nil, "zookeeper.timeout", "", "ok: 12s, as asked for", ""},
		"timeout was cut":           {func(e *Ensemble) { e.Asked = time.Minute }, "zookeeper.timeout", "", "warning: the servers grant 12s, the file asks for 1m0s", "maxSessionTimeout=60000"},
		"timeout was raised":        {func(e *Ensemble) { e.Asked = time.Second }, "zookeeper.timeout", "", "warning: the servers grant 12s, the file asks for 1s", "minSessionTimeout=1000"},
		"version":                   {nil, "zookeeper.version", "", "ok: 3.8.4 on a, b, c", ""},
		"no version":                {func(e *Ensemble) { e.Members = []Member{away} }, "zookeeper.version", "", "note: not known: no server told", ""},
		"in step":                   {nil, "zookeeper.lag", "b", "ok: 0 changes behind the newest", ""},
		"a little behind":           {func(e *Ensemble) { e.Members[1].Zxid -= 7 }, "zookeeper.lag", "b", "ok: 7 changes behind the newest", ""},
		"behind":                    {func(e *Ensemble) { e.Members[0].Zxid += 20000 }, "zookeeper.lag", "b", "warning: 20000 changes behind the newest", "garbage"},
		"another epoch":             {func(e *Ensemble) { e.Members[1].Zxid = 4<<32 | 900 }, "zookeeper.lag", "b", "warning: it is in epoch 4, others are in 5", "garbage"},
		"listing":                   {nil, "zookeeper.reply-size", "", "ok: 10 nodes, a listing of 500 bytes, 0% of jute.maxbuffer's default", ""},
		"long listing":              {func(e *Ensemble) { e.Paths[0].Children, e.Paths[0].Bytes = 25000, 900092 }, "zookeeper.reply-size", "", "warning: 25000 nodes, a listing of 900092 bytes, 85% of jute.maxbuffer's default", "jute.maxbuffer=8388608"},
		"no path":                   {func(e *Ensemble) { e.Paths[0].Missing = true }, "zookeeper.reply-size", "", "note: the path is not there: nobody has registered yet", "myelin services"},
		"path that may not be read": {func(e *Ensemble) { e.Paths[0].Unknown = "not authorised" }, "zookeeper.reply-size", "", "note: not known: not authorised", ""},
		"open path": {func(e *Ensemble) {
			e.Paths[0].Registers = true
			e.Paths[0].ACL = Is(ACL{AnyoneCreates: true, AnyoneDeletes: true, MineCreates: true, Text: "world:anyone:cdrwa"})
		}, "zookeeper.acl", "", "ok: world:anyone:cdrwa", ""},
		"open path of creators": {func(e *Ensemble) {
			e.Paths[0].Registers, e.Paths[0].Creator = true, true
			e.Paths[0].ACL = Is(ACL{AnyoneCreates: true, AnyoneDeletes: true, MineCreates: true, Text: "world:anyone:cdrwa"})
		}, "zookeeper.acl", "", `warning: acl = "creator" protects no node here: anyone may delete under this path ("world:anyone:cdrwa")`, "setAcl /s auth::cdrwa,world:anyone:cr"},
		"closed path": {func(e *Ensemble) {
			e.Paths[0].Registers, e.Paths[0].Creator = true, true
			e.Paths[0].ACL = Is(ACL{Text: "digest:other:cdrwa"})
		}, "zookeeper.acl", "", "critical: this login may not create nodes there: digest:other:cdrwa", "zookeeper.auth"},
		"ACL that may not be read": {func(e *Ensemble) { e.Paths[0].Registers, e.Paths[0].ACL = true, Not[ACL]("not authorised") }, "zookeeper.acl", "", "note: not known: not authorised", ""},
		"open overrides": {func(e *Ensemble) {
			e.Paths[0] = RegistryPath{Path: "/o", Who: "overrides", Overrides: true, ACL: Is(ACL{AnyoneCreates: true, MineCreates: true, Text: "world:anyone:cr"})}
		}, "zookeeper.overrides-acl", "/o", `warning: anyone may change overrides ("world:anyone:cr")`, "setAcl /o auth::cdrwa,world:anyone:r"},
		"overrides that anyone may write": {func(e *Ensemble) {
			e.Paths[0] = RegistryPath{Path: "/o", Who: "overrides", Overrides: true, ACL: Is(ACL{AnyoneWrites: true, Text: "world:anyone:rw"})}
		}, "zookeeper.overrides-acl", "/o", `warning: anyone may change overrides ("world:anyone:rw")`, "setAcl /o"},
		"closed overrides": {func(e *Ensemble) {
			e.Paths[0] = RegistryPath{Path: "/o", Who: "overrides", Overrides: true, ACL: Is(ACL{Text: "digest:ops:cdrwa,world:anyone:r"})}
		}, "zookeeper.overrides-acl", "/o", "ok: digest:ops:cdrwa,world:anyone:r", ""},
		"no overrides yet": {func(e *Ensemble) {
			e.Paths[0] = RegistryPath{Path: "/o", Who: "overrides", Overrides: true, Missing: true}
		}, "zookeeper.overrides-acl", "/o", "note: the path is not there: the first override makes it, open to whom the node above is open to", "create the path part by part"},
		"overrides nobody tells of": {func(e *Ensemble) {
			e.Paths[0] = RegistryPath{Path: "/o", Who: "overrides", Overrides: true, ACL: Not[ACL]("not authorised")}
		}, "zookeeper.overrides-acl", "/o", "note: not known: not authorised", ""},
		"write":      {func(e *Ensemble) { e.Write = &WriteTest{Path: "/x", Took: 5 * time.Millisecond} }, "zookeeper.write", "", "ok: an ephemeral node under /x was made and deleted in 5ms", ""},
		"slow write": {func(e *Ensemble) { e.Write = &WriteTest{Path: "/x", Took: 2 * time.Second} }, "zookeeper.write", "", "warning: an ephemeral node under /x was made and deleted in 2s", "disk"},
		"no write":   {func(e *Ensemble) { e.Write = &WriteTest{Path: "/x", Error: "not authorised"} }, "zookeeper.write", "", "critical: no node could be made under /x: not authorised", "--write-test"},
	} {
		t.Run(name, func(t *testing.T) {
			e := three()
			if c.change != nil {
				c.change(&e)
			}
			got := find(t, Facts{Ensembles: []Ensemble{e}}, c.id, c.subject)
			require.Equal(t, c.want, said(got))
			require.Contains(t, got.Fix, c.fix)
			require.Equal(t, c.fix == "", got.Fix == "", got.Fix)
		})
	}
}

func TestVersionsOfZooKeeper(t *testing.T) {
	e := Ensemble{Name: "zk", Members: []Member{member("a", "leader"), member("b", "follower"), member("c", "follower")}}
	e.Members[1].Version, e.Members[2].Version = "3.4.14", "3.5.9"
	var got []string
	for _, f := range Examine(Facts{Ensembles: []Ensemble{e}}) {
		if f.ID == "zookeeper.version" {
			got = append(got, said(f))
		}
	}
	require.Equal(t, []string{
		"warning: 3.4.14 on b: no TLS, no list of members, and out of support", "note: 3.5.9 on c",
		"note: the servers have several versions: 3.4.14, 3.5.9, 3.8.4", "ok: 3.8.4 on a",
	}, got)
}

// TestReadConfig: HAProxy's file in the ways that people write it.
func TestReadConfig(t *testing.T) {
	c := ReadConfig([]string{"a", "b"}, `
global   # comment
  stats socket unix@/run/one.sock mode 660 level admin expose-fd listeners # here
  stats socket /run/two.sock
  stats timeout 30s
  # hard-stop-after 1m
  server-state-file /var/lib/haproxy/state
defaults
  maxconn 300
  load-server-state-from-file global
`, "global\n  maxconn 4000\nlisten x\n  bind :80 backlog 9000\nbackend b\n  server s 1.2.3.4:80 maxconn 99999\n  fullconn 77777\n")
	require.Equal(t, 4000, c.Maxconn)
	require.Empty(t, c.HardStop)
	require.True(t, c.LoadsState)
	require.Equal(t, "/var/lib/haproxy/state", c.StateFile)
	require.Equal(t, []StatsSocket{{"/run/one.sock", "660", "admin", true}, {"/run/two.sock", "", "operator", false}}, c.Sockets)
	require.Equal(t, 9000, c.Backlog(100))
	require.Equal(t, 2000, ReadConfig(nil, "").Backlog(2000))
	require.False(t, ReadConfig(nil, "backend b\nload-server-state-from-file none\n").LoadsState)
}

// TestOrder: the worst comes first, then by id and subject; equal facts give equal findings.
func TestOrder(t *testing.T) {
	h := goodProxy()
	h.Level = Is("user")
	facts := Facts{HAProxy: []HAProxy{h}, Kernel: &Kernel{}, Secrets: []Secret{{Path: "/b", Mode: 0o644}, {Path: "/a", Mode: 0o644}}}
	all := Examine(facts)
	require.True(t, slices.IsSortedFunc(all, func(a, b Finding) int { return int(b.Severity) - int(a.Severity) }))
	require.Equal(t, "haproxy.socket", all[0].ID)
	require.Equal(t, "/a", strings.TrimSpace(all[1].Subject))
	require.Equal(t, Critical, Worst(all))
	require.Equal(t, OK, Worst(nil))
	require.Equal(t, all, Examine(facts))
}

// TestCatalogue: each id is in the catalogue, and each of the catalogue in the documentation.
func TestCatalogue(t *testing.T) {
	var ids []string
	for _, e := range Catalogue() {
		ids = append(ids, e.ID)
		require.NotEmpty(t, e.About)
	}
	require.True(t, slices.IsSorted(ids))
	require.Equal(t, ids, slices.Compact(slices.Clone(ids)))
	e := Ensemble{Members: []Member{member("a", "leader")}, Session: Is(SessionFacts{}), Paths: []RegistryPath{{Registers: true}, {Overrides: true}}, Write: &WriteTest{}}
	facts := Facts{
		Kernel: &Kernel{}, Clock: &Clock{Registry: []RegistryClock{{}}}, Processes: []Process{{}}, HAProxy: []HAProxy{goodProxy()}, Backends: []Backend{{}}, Managers: []Manager{{}},
		Ensembles: []Ensemble{e}, Paths: []Path{{}}, Secrets: []Secret{{}}, Certs: []Certificate{{}},
		Unknown: []Finding{{ID: "process.agent"}, {ID: "config.file"}},
	}
	made := map[string]bool{}
	for _, f := range Examine(facts) {
		made[f.ID] = true
		require.Contains(t, ids, f.ID)
	}
	for _, id := range ids {
		require.True(t, made[id], "nothing makes a finding %s", id)
	}
	text, err := os.ReadFile("../docs/operations.md")
	require.NoError(t, err)
	for _, e := range Catalogue() {
		require.Contains(t, string(text), fmt.Sprintf("| `%s` | %s |\n", e.ID, e.About))
	}
}

// TestSysctlFile: the file that is shipped sets what the fixes name, and nothing else, and says why.
func TestSysctlFile(t *testing.T) {
	text, err := os.ReadFile(filepath.Join("..", "packaging", "sysctl.d", "60-myelin.conf"))
	require.NoError(t, err)
	var lines []string
	before := ""
	for line := range strings.Lines(string(text)) {
		line = strings.TrimSpace(line)
		if line != "" && !strings.HasPrefix(line, "#") {
			require.True(t, strings.HasPrefix(before, "#"), "%s: the line before says no reason", line)
			lines = append(lines, line)
		}
		before = line
	}
	var want []string
	for _, s := range Settings() {
		want = append(want, s.Line())
	}
	require.Equal(t, want, lines)
	require.NotContains(t, strings.Join(lines, "\n"), "recycle")
}

func TestJSON(t *testing.T) {
	text, err := json.Marshal(NotKnown("kernel.conntrack", "", "permission denied", "why"))
	require.NoError(t, err)
	require.JSONEq(t, `{"id": "kernel.conntrack", "severity": "note", "found": "not known: permission denied", "why": "why"}`, string(text))
}
