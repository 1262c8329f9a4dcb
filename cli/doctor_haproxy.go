package cli

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"runtime"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/myelin-sd/myelin/agent"
	"github.com/myelin-sd/myelin/doctor"
	"github.com/myelin-sd/myelin/doctor/host"
	"github.com/myelin-sd/myelin/haproxy"
)

// askHAProxies asks each HAProxy that an agent's file names, and the agent how it changes them.
func (e *examination) askHAProxies(ctx context.Context, r role) {
	if !r.agent.HAProxy.DoSocket {
		return
	}
	for i, socket := range r.agent.HAProxy.SocketFilePaths {
		socket = r.absolute(socket)
		e.ask("HAProxy at "+socket, func() {
			h, caps := e.haproxy(ctx, r, i, socket)
			e.learn(func(f *doctor.Facts) { f.HAProxy = append(f.HAProxy, h) })
			if i == 0 {
				e.addBackends(ctx, r, caps)
			}
		})
	}
}

// haproxy is what there is to know of the HAProxy at a socket. caps is nil where it does not answer.
func (e *examination) haproxy(ctx context.Context, r role, index int, socket string) (doctor.HAProxy, *haproxy.Capabilities) {
	h := doctor.HAProxy{Socket: socket, Expected: r.path, Own: r.agent.HAProxy.Run, CPUs: runtime.NumCPU()}
	there, uid, gid, err := e.host.Mode(socket)
	h.There, h.Mode, h.UID, h.GID = err == nil && there&fs.ModeSocket != 0, there, uid, gid
	h.Claim = e.claim(socket)
	if err != nil && errors.Is(err, fs.ErrNotExist) {
		h.Error = err.Error()
		return h, nil
	}
	c, err := haproxy.Dial(ctx, e.host.Path(socket), haproxy.ClientOptions{})
	if err != nil {
		h.Error, h.Denied = err.Error(), errors.Is(err, fs.ErrPermission)
		return h, nil
	}
	defer c.Close()
	caps := haproxy.CapabilitiesOf(c.Identity().Version)
	h.Version = caps.Version
	h.Level = doctor.Of(c.Level(ctx))
	h.Info = doctor.Of(proxyInfo(ctx, c))
	fits := agent.Fits(r.agent, caps)
	h.Slots = slices.ContainsFunc(fits, func(f agent.Fit) bool { return f.Rung == haproxy.RungSlots })
	h.Warnings = caps.Warnings(slices.ContainsFunc(fits, func(f agent.Fit) bool { return f.Leastconn }))
	if n, known := haproxy.OtherClients(socket, 1); known && e.host.Own() {
		if h.Claim.Value.Held {
			n = max(0, n-2) // the agent's own, which it replaces by a young one now and then
		}
		h.Others = doctor.Is(n)
	} else {
		h.Others = doctor.Not[int]("the kernel's list of sockets does not show it")
	}
	pid := c.Identity().Pid
	e.addHAProxyProcess(&h, r, pid)
	h.Workers = e.oldWorkers(ctx, r.master(index), pid)
	return h, &caps
}

// master is the socket of the master process of one of an agent's HAProxys; empty: none is known.
func (r role) master(index int) string {
	if path := agent.MasterSocket(r.agent, index); path != "" {
		return r.absolute(path)
	}
	return ""
}

func proxyInfo(ctx context.Context, c *haproxy.Client) (doctor.Info, error) {
	info, err := c.Info(ctx)
	if err != nil {
		return doctor.Info{}, err
	}
	number := func(key string) int { n, _ := strconv.Atoi(info[key]); return n }
	return doctor.Info{Pid: number("Pid"), Maxconn: number("Maxconn"), Connections: number("CurrConns"), Threads: number("Nbthread"), FileLimit: number("Ulimit-n")}, nil
}

func (e *examination) claim(socket string) doctor.Known[doctor.Claim] {
	if !e.host.Own() || runtime.GOOS != "linux" {
		return doctor.Not[doctor.Claim]("an agent's claim shows on its own host, on Linux")
	}
	holder, held := haproxy.ClaimHolder(socket)
	if abs, err := filepath.Abs(holder.Config); err == nil && holder.Config != "" {
		if p, err := e.host.Process(holder.Pid); err == nil && p.Dir != "" && !filepath.IsAbs(holder.Config) {
			abs = filepath.Join(p.Dir, holder.Config)
		}
		holder.Config = abs
	}
	return doctor.Is(doctor.Claim{Held: held, Pid: holder.Pid, Config: holder.Config})
}

// addHAProxyProcess reads the limits of a HAProxy's worker, and the files that it was started with.
func (e *examination) addHAProxyProcess(h *doctor.HAProxy, r role, pid int) {
	p, err := e.host.Process(pid)
	if err == nil && !strings.HasPrefix(p.Name, "haproxy") {
		err = fmt.Errorf("process %d of this host is %q: HAProxy is in a name space of its own", pid, p.Name)
	}
	var files []string
	if err == nil {
		files = e.host.HAProxyFiles(p)
		if parent, err := e.host.Process(p.Parent); err == nil {
			h.Master = strings.HasPrefix(parent.Name, "haproxy")
		}
		e.addProcess(doctor.Process{Role: "haproxy", Pid: pid, Maxconn: h.Info.Value.Maxconn})
	} else {
		e.unknown("process.files", fmt.Sprintf("haproxy, pid %d", pid), err.Error(), "each connection is an open file")
		h.Master = r.agent.HAProxy.Run
	}
	if len(files) == 0 && r.agent.HAProxy.ConfigFilePath != "" {
		files = []string{r.absolute(r.agent.HAProxy.ConfigFilePath)}
	}
	if len(files) == 0 {
		h.Config = doctor.Not[doctor.ProxyConfig]("which file it was started with is not known")
		return
	}
	var texts []string
	for _, f := range files {
		text, err := e.host.ReadFile(f)
		if err != nil {
			h.Config = doctor.Not[doctor.ProxyConfig](err.Error())
			return
		}
		texts = append(texts, text)
	}
	config := doctor.ReadConfig(files, texts...)
	h.Config = doctor.Is(config)
	if config.StateFile != "" {
		info, err := os.Stat(e.host.Path(config.StateFile))
		if err != nil {
			h.StateAge = doctor.Not[time.Duration](err.Error())
		} else {
			h.StateAge = doctor.Is(e.facts.Now.Sub(info.ModTime()))
		}
	} else {
		h.StateAge = doctor.Not[time.Duration]("no server-state-file is named")
	}
}

// oldWorkers asks the master, or reads the list of processes.
func (e *examination) oldWorkers(ctx context.Context, master string, pid int) doctor.Known[[]doctor.OldWorker] {
	if master != "" {
		workers, err := haproxy.OldWorkers(ctx, e.host.Path(master))
		if err == nil {
			var out []doctor.OldWorker
			for _, w := range workers {
				out = append(out, doctor.OldWorker{Pid: w.Pid, Age: "up " + w.Uptime})
			}
			return doctor.Is(out)
		}
	}
	if !slices.ContainsFunc(e.processes, func(p host.Process) bool { return p.Pid == pid }) {
		return doctor.Not[[]doctor.OldWorker]("its process is not in the list of processes here")
	}
	var out []doctor.OldWorker
	for _, p := range host.Siblings(e.processes, pid) {
		out = append(out, doctor.OldWorker{Pid: p.Pid})
	}
	return doctor.Is(out)
}

// addBackends tells how changes of each backend reach HAProxy: as the running agent found out, else by the version.
func (e *examination) addBackends(ctx context.Context, r role, caps *haproxy.Capabilities) {
	tried := e.askRungs(ctx, r)
	known := haproxy.Capabilities{}
	if caps != nil {
		known = *caps
	}
	for _, fit := range agent.Fits(r.agent, known) {
		b := doctor.Backend{Name: fit.Backend, Rung: fit.Rung.String(), Reason: fit.Reason}
		if found, ok := tried[fit.Backend]; ok {
			b = found
		} else if caps == nil {
			b.Rung, b.Reason = "", "HAProxy does not answer"
		}
		e.learn(func(f *doctor.Facts) { f.Backends = append(f.Backends, b) })
	}
}

// askRungs asks the agent of a file, if it answers where that says; nothing otherwise.
func (e *examination) askRungs(ctx context.Context, r role) map[string]doctor.Backend {
	c := r.agent
	if c.Admin.Listen == "" {
		return nil
	}
	ctx, cancel := context.WithTimeout(ctx, 2*time.Second)
	defer cancel()
	var st agent.Status
	if err := pageJSON(ctx, c.Admin.Listen, "/api/v1/status", &st); err != nil || !sameFile(st.Config, r.path) {
		return nil
	}
	out := map[string]doctor.Backend{}
	for _, s := range st.Services {
		if s.Rung != "" {
			out[s.Backend] = doctor.Backend{Name: s.Backend, Rung: s.Rung, Reason: s.Reason, Tried: true}
		}
	}
	return out
}

// lookForManagers looks for other programs that drive a HAProxy.
func (e *examination) lookForManagers() {
	var sockets []string
	shadow := false
	for _, r := range e.roles {
		if r.agent != nil {
			shadow = shadow || r.shadow
			for _, s := range r.agent.HAProxy.SocketFilePaths {
				sockets = append(sockets, r.absolute(s))
			}
		}
	}
	if len(sockets) == 0 {
		return
	}
	for _, p := range e.processes {
		name, flags := managerOf(p)
		if name == "" {
			continue
		}
		m := doctor.Manager{Name: name, Pid: p.Pid, Shadow: shadow, Sockets: e.named(p, flags, sockets)}
		e.learn(func(f *doctor.Facts) { f.Managers = append(f.Managers, m) })
	}
}

// managerOf names a program that can drive a HAProxy, and the flags of its files; empty: it is none.
func managerOf(p host.Process) (name string, flags []string) {
	for i, arg := range p.Args {
		if i > 1 {
			break // the program, or a script behind its interpreter
		}
		switch filepath.Base(arg) {
		case "synapse":
			return "Synapse", []string{"-c", "--config"}
		case "dataplaneapi":
			return "Data Plane API", []string{"-c", "--config-file", "-f", "--dataplane-config-file"}
		case "marathon_lb.py":
			return "marathon-lb", []string{"--haproxy-config"}
		}
	}
	return "", nil
}

// named are those of the sockets that the files of a program name.
func (e *examination) named(p host.Process, flags, sockets []string) doctor.Known[[]string] {
	read := false
	var out []string
	for _, flag := range flags {
		file := p.File(flag)
		if file == "" {
			continue
		}
		text, err := e.host.ReadFile(file)
		if err != nil {
			return doctor.Not[[]string](err.Error())
		}
		read = true
		for _, s := range sockets {
			if strings.Contains(text, s) && !slices.Contains(out, s) {
				out = append(out, s)
			}
		}
	}
	if !read {
		return doctor.Not[[]string]("its command line names no file")
	}
	return doctor.Is(out)
}
