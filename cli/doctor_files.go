package cli

import (
	"cmp"
	"crypto/x509"
	"encoding/pem"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"github.com/myelin-sd/myelin/config"
	"github.com/myelin-sd/myelin/doctor"
	"github.com/myelin-sd/myelin/doctor/host"
)

// findRoles finds out whose files and which limits count: those of -c FILE, or of what runs here.
func (e *examination) findRoles() error {
	running := e.running()
	if e.app.configFile != "" {
		path, err := filepath.Abs(e.app.configFile)
		if err != nil {
			return fmt.Errorf("find %s: %w", e.app.configFile, err)
		}
		pid := 0
		if i := slices.IndexFunc(running, func(p host.Process) bool { f := p.File("-c", "--config"); return f != "" && sameFile(f, path) }); i >= 0 {
			pid = running[i].Pid
		}
		found, err := e.load(path, e.app.configFile, "", pid)
		if err != nil {
			return err
		}
		e.addRoles(found, running)
		return nil
	}
	if len(running) == 0 {
		e.learn(func(f *doctor.Facts) {
			f.Unknown = append(f.Unknown, doctor.Finding{ID: "process.agent", Severity: doctor.Note, Found: "neither an agent nor a registrar runs on this host, as far as this user sees",
				Why: "without a file only the kernel is looked at", Fix: "myelin doctor -c FILE"})
		})
	}
	seen := map[string]bool{}
	for _, p := range running {
		file := p.File("-c", "--config")
		if file == "" {
			e.unknown("config.file", fmt.Sprintf("%s, pid %d", roleOf(p), p.Pid), "its command line names no file", whyFile)
			continue
		}
		if seen[roleOf(p)+file] {
			continue
		}
		seen[roleOf(p)+file] = true
		found, err := e.load(e.host.Path(file), file, roleOf(p), p.Pid)
		if err != nil {
			e.learn(func(f *doctor.Facts) {
				f.Unknown = append(f.Unknown, doctor.Finding{ID: "config.file", Severity: doctor.Warning, Subject: file, Found: oneLine(err), Why: whyFile,
					Fix: "mend it (myelin check -c " + file + "), or run doctor as the user of the role, with its environment"})
			})
			continue
		}
		e.addRoles(found, running)
	}
	return nil
}

const whyFile = "what the role needs is in its file; nothing of it was looked at"

func oneLine(err error) string { return strings.Join(strings.Fields(err.Error()), " ") }

// running are the processes of Myelin that have a role.
func (e *examination) running() (out []host.Process) {
	for _, p := range e.processes {
		if roleOf(p) != "" {
			out = append(out, p)
		}
	}
	return out
}

// roleOf is the role of a process; empty: it is none of Myelin's.
func roleOf(p host.Process) string {
	if len(p.Args) < 2 || !strings.HasPrefix(filepath.Base(p.Args[0]), "myelin") {
		return ""
	}
	for i := 1; i < len(p.Args); i++ {
		switch arg := p.Args[i]; arg {
		case "agent", "registrar":
			return arg
		case "-c", "--config", "--zookeeper", "-o", "--output", "--timeout", "--log-level":
			i++ // its value
		default:
			if !strings.HasPrefix(arg, "-") || arg == "--" {
				return "" // another command
			}
		}
	}
	return ""
}

// load reads a file, and the registrar's that an agent's names. shown is its path as the operator knows it. What the
// environment of the caller does not have, that of the process with pid may.
func (e *examination) load(path, shown, kind string, pid int) ([]role, error) {
	o := e.app.options(false)
	o.LookupEnv = func(name string) (string, bool) {
		if v, ok := e.app.env(name); ok || pid == 0 {
			return v, ok
		}
		return e.host.LookupEnv(pid, name)
	}
	detected, err := config.Detect(path, o)
	if err != nil {
		return nil, err
	}
	if abs, err := filepath.Abs(shown); err == nil {
		shown = abs
	}
	if detected == config.KindRegistrar || kind == "registrar" {
		o.InstanceID = e.app.instance("")
		c, _, err := config.LoadRegistrar(path, o)
		if err != nil {
			return nil, err
		}
		return []role{{kind: "registrar", path: shown, registrar: c}}, nil
	}
	c, _, err := config.LoadAgent(path, o)
	if err != nil {
		return nil, err
	}
	roles := []role{{kind: "agent", path: shown, agent: c}}
	if c.Registrar != "" {
		o.InstanceID, o.StateDir = e.app.instance(""), c.StateDir
		r, _, err := config.LoadRegistrar(e.host.Path(c.Registrar), o)
		if err != nil {
			return nil, err
		}
		roles = append(roles, role{kind: "registrar", path: c.Registrar, registrar: r})
	}
	return roles, nil
}

// addRoles finds the process of what one file has loaded, the first of which is that file's own.
func (e *examination) addRoles(found []role, running []host.Process) {
	user, pids := e.host.Self(), []int{}
	dir, _ := os.Getwd()
	shadow := false
	for _, p := range running {
		if file := p.File("-c", "--config"); roleOf(p) == found[0].kind && file != "" && sameFile(file, found[0].path) {
			user = p.User
			dir = cmp.Or(p.Dir, dir)
			pids = append(pids, p.Pid)
			shadow = slices.Contains(p.Args, "--shadow")
		}
	}
	f := doctor.Finding{ID: "process.agent", Subject: found[0].path, Why: "two processes of one file fight over its services; none leaves what is in force to grow old"}
	switch {
	case len(pids) == 1:
		f.Found = fmt.Sprintf("its %s runs, pid %d, %s", found[0].kind, pids[0], user)
	case len(pids) > 1 && found[0].kind == "agent":
		f.Severity, f.Found, f.Fix = doctor.Warning, fmt.Sprintf("%d agents of this file run: pids %s", len(pids), strings.Trim(fmt.Sprint(pids), "[]")), "stop all but one"
	case len(pids) > 1: // the first process of a container, and the one that does its work
		f.Found = fmt.Sprintf("its %s runs, pids %s", found[0].kind, strings.Trim(fmt.Sprint(pids), "[]"))
	default:
		f.Severity, f.Found = doctor.Note, fmt.Sprintf("no %s of this file runs on this host, as far as this user sees", found[0].kind)
		f.Fix = fmt.Sprintf("systemctl start myelin-%s, or: myelin %s -c %s", found[0].kind, found[0].kind, found[0].path)
	}
	e.learn(func(facts *doctor.Facts) { facts.Unknown = append(facts.Unknown, f) })
	for i := range found {
		found[i].user, found[i].dir, found[i].shadow = user, dir, shadow
		if len(pids) > 0 {
			found[i].pid = pids[0]
		}
	}
	e.roles = append(e.roles, found...)
}

// sameFile tells whether a process that says file means path. A relative one of which nobody knows the folder may.
func sameFile(file, path string) bool {
	if !filepath.IsAbs(file) {
		return strings.HasSuffix(path, "/"+filepath.Clean(file))
	}
	real := func(p string) string {
		if r, err := filepath.EvalSymlinks(p); err == nil {
			return r
		}
		return filepath.Clean(p)
	}
	return file == path || real(file) == real(path)
}

// lookAtProcesses reads the limits of Myelin's processes. Those of HAProxy are read with what its socket tells, and here
// where no role drives it.
func (e *examination) lookAtProcesses() {
	for _, p := range e.running() {
		e.addProcess(doctor.Process{Role: roleOf(p), Pid: p.Pid})
	}
	if slices.ContainsFunc(e.roles, func(r role) bool { return r.agent != nil }) {
		return
	}
	for _, p := range e.processes {
		if p.Name == "haproxy" {
			e.addProcess(doctor.Process{Role: "haproxy", Pid: p.Pid})
		}
	}
}

func (e *examination) addProcess(p doctor.Process) {
	p.Soft, p.Hard, p.Open = e.host.Limits(p.Pid)
	e.learn(func(f *doctor.Facts) { f.Processes = append(f.Processes, p) })
}

// absolute is a path of the role's file as its process means it.
func (r role) absolute(path string) string {
	if filepath.IsAbs(path) {
		return path
	}
	return filepath.Join(r.dir, path)
}

// fileUse is a path of a role's file.
type fileUse struct {
	what, path string
	need       doctor.Need
}

// lookAtFiles looks at the files and folders of a role, the ports that it names, and its certificates.
func (e *examination) lookAtFiles(r role) {
	var uses []fileUse
	var secrets []fileUse
	use := func(what, path string, need doctor.Need) {
		if path != "" {
			uses = append(uses, fileUse{what, r.absolute(path), need})
		}
	}
	use("configuration", r.path, doctor.ToRead)
	var listens []doctor.Listen
	if c := r.agent; c != nil {
		h := c.HAProxy
		use("state_dir", c.StateDir, doctor.ToWrite)
		if h.DoWrites {
			use("haproxy.config_file_path", h.ConfigFilePath, doctor.ToReplace)
		}
		if h.DoSocket && !h.Run {
			for _, s := range h.SocketFilePaths {
				use("haproxy.socket_file_path", s, doctor.ToConnect)
			}
		}
		use("haproxy.state_file_path", h.StateFilePath, doctor.ToReplace)
		use("control_socket", c.ControlSocket.Path, doctor.ToReplace)
		if c.FileOutput != nil {
			use("file_output.output_directory", c.FileOutput.OutputDirectory, doctor.ToWrite)
		}
		for _, s := range c.Services {
			if s.HAProxy.PortSet && !s.HAProxy.Disabled {
				listens = append(listens, doctor.Listen{Port: int(s.HAProxy.Port), Who: "the frontend of " + s.Name})
			}
		}
	}
	if c := r.registrar; c != nil {
		use("state_dir", c.StateDir, doctor.ToWrite)
		use("control_socket", c.ControlSocket.Path, doctor.ToReplace)
		use("heartbeat_path", c.HeartbeatPath, doctor.ToReplace)
		for _, s := range c.Services {
			listens = append(listens, doctor.Listen{Port: int(s.Port), Who: "service " + s.Name})
			for _, check := range s.Checks {
				if check.PasswordFile != "" {
					secrets = append(secrets, fileUse{what: "password_file of " + s.Name, path: check.PasswordFile})
				}
				e.addTLS(r, "a check of "+s.Name, check.TLS, use, &secrets)
			}
		}
	}
	for _, z := range ensemblesOf(r) {
		if z.Auth != nil && z.Auth.CredentialsFile != "" {
			secrets = append(secrets, fileUse{what: "zookeeper.auth.credentials_file", path: z.Auth.CredentialsFile})
		}
		if z.Auth != nil && z.Auth.Credentials != "" && e.holds(r.path, string(z.Auth.Credentials)) {
			secrets = append(secrets, fileUse{what: "configuration with credentials in it", path: r.path})
		}
		e.addTLS(r, "zookeeper.tls", z.TLS, use, &secrets)
	}
	for i := range secrets {
		secrets[i].path = r.absolute(secrets[i].path)
	}
	for _, s := range secrets {
		use(s.what, s.path, doctor.ToRead)
	}
	e.learn(func(f *doctor.Facts) {
		for _, l := range listens {
			if !slices.ContainsFunc(f.Listens, func(o doctor.Listen) bool { return o.Port == l.Port }) {
				f.Listens = append(f.Listens, l)
			}
		}
		for _, u := range uses {
			p := doctor.Path{What: u.what, Path: u.path, Need: u.need, User: r.user}
			if slices.ContainsFunc(f.Paths, func(o doctor.Path) bool { return o.What == p.What && o.Path == p.Path }) {
				continue
			}
			var err error
			if p.Chain, p.Missing, err = e.host.Entries(u.path, r.pid); err != nil {
				p.Unknown = err.Error()
			}
			f.Paths = append(f.Paths, p)
		}
		for _, s := range secrets {
			secret := doctor.Secret{What: s.what, Path: s.path}
			if slices.ContainsFunc(f.Secrets, func(o doctor.Secret) bool { return o.Path == s.path }) {
				continue
			}
			var err error
			if secret.Mode, _, _, err = e.host.Mode(s.path); err != nil {
				secret.Unknown = err.Error()
			}
			f.Secrets = append(f.Secrets, secret)
		}
	})
}

// holds tells whether a file has a text in it.
func (e *examination) holds(path, text string) bool {
	found, err := e.host.ReadFile(path)
	return err == nil && strings.Contains(found, text)
}

// addTLS takes in the files of a TLS table, and until when their certificates are good.
func (e *examination) addTLS(r role, whose string, t *config.TLS, use func(string, string, doctor.Need), secrets *[]fileUse) {
	if t == nil {
		return
	}
	use("ca_file of "+whose, t.CAFile, doctor.ToRead)
	use("cert_file of "+whose, t.CertFile, doctor.ToRead)
	if t.KeyFile != "" {
		*secrets = append(*secrets, fileUse{what: "key_file of " + whose, path: t.KeyFile})
	}
	for _, c := range []struct{ what, path string }{{"authority of " + whose, t.CAFile}, {"certificate of " + whose, t.CertFile}} {
		if c.path == "" {
			continue
		}
		c.path = r.absolute(c.path)
		found := e.certificates(c.what, c.path)
		e.learn(func(f *doctor.Facts) {
			if !slices.ContainsFunc(f.Certs, func(o doctor.Certificate) bool { return o.File == c.path }) {
				f.Certs = append(f.Certs, found...)
			}
		})
	}
}

// certificates are those of a PEM file.
func (e *examination) certificates(whose, path string) (out []doctor.Certificate) {
	unknown := func(why string) []doctor.Certificate {
		return []doctor.Certificate{{Whose: whose, File: path, Unknown: why}}
	}
	text, err := e.host.ReadFile(path)
	if err != nil {
		return unknown(err.Error())
	}
	for rest := []byte(text); ; {
		var block *pem.Block
		if block, rest = pem.Decode(rest); block == nil {
			break
		}
		if block.Type != "CERTIFICATE" {
			continue
		}
		c, err := x509.ParseCertificate(block.Bytes)
		if err != nil {
			return unknown("a certificate in it cannot be read: " + err.Error())
		}
		out = append(out, certificateOf(whose, path, c))
	}
	if out == nil {
		return unknown("there is no certificate in it")
	}
	return out
}

func certificateOf(whose, file string, c *x509.Certificate) doctor.Certificate {
	return doctor.Certificate{Whose: whose, File: file, Name: c.Subject.String(), From: c.NotBefore, Until: c.NotAfter}
}
