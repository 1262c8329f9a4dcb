package cli

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"net"
	"slices"
	"strconv"
	"strings"
	"sync"
	"time"

	"github.com/myelin-sd/myelin/agent"
	"github.com/myelin-sd/myelin/config"
	"github.com/myelin-sd/myelin/discovery/zookeeper"
	"github.com/myelin-sd/myelin/doctor"
)

// ensemblesOf are the ensembles that a role's file names.
func ensemblesOf(r role) (out []config.ZooKeeper) {
	add := func(z config.ZooKeeper) {
		if len(z.Hosts) > 0 {
			out = append(out, z)
		}
	}
	if r.agent != nil {
		add(r.agent.ZooKeeper)
		for _, s := range r.agent.Services {
			for _, d := range sources(s.Discovery) {
				add(d.ZooKeeper)
			}
		}
	}
	if r.registrar != nil {
		add(r.registrar.ZooKeeper)
		for _, s := range r.registrar.Services {
			add(s.ZooKeeper)
		}
	}
	return out
}

// sources are the discoveries in ZooKeeper that one consists of.
func sources(d config.Discovery) []config.Discovery {
	if d.Method != "multi" {
		if strings.HasPrefix(d.Method, "zookeeper") {
			return []config.Discovery{d}
		}
		return nil
	}
	var out []config.Discovery
	for _, w := range d.Watchers {
		out = append(out, sources(w.Discovery)...)
	}
	return out
}

// surveyed is one ensemble with what the roles have in it.
type surveyed struct {
	zk    config.ZooKeeper
	paths []doctor.RegistryPath
}

// survey groups what the roles' files name by ensemble and login.
func (e *examination) survey() []*surveyed {
	var all []*surveyed
	at := func(z config.ZooKeeper) *surveyed {
		i := slices.IndexFunc(all, func(s *surveyed) bool { return sameEnsemble(s.zk, z) })
		if i < 0 {
			all = append(all, &surveyed{zk: z})
			i = len(all) - 1
		}
		return all[i]
	}
	add := func(z config.ZooKeeper, p doctor.RegistryPath) {
		s := at(z)
		if i := slices.IndexFunc(s.paths, func(o doctor.RegistryPath) bool { return o.Path == p.Path }); i >= 0 {
			o := &s.paths[i]
			o.Registers, o.Creator, o.Overrides = o.Registers || p.Registers, o.Creator || p.Creator, o.Overrides || p.Overrides
			return
		}
		s.paths = append(s.paths, p)
	}
	for _, r := range e.roles {
		for _, z := range ensemblesOf(r) {
			s := at(z)
			if r.registrar != nil { // a session of both roles has the registrar's timeout
				s.zk.SessionTimeout = z.SessionTimeout
			}
		}
		if r.registrar != nil {
			for _, s := range r.registrar.Services {
				if len(s.ZooKeeper.Hosts) > 0 && s.ZKPath != "" {
					add(s.ZooKeeper, doctor.RegistryPath{Path: s.ZKPath, Who: "registration " + s.Name, Registers: true, Creator: s.ACL == "creator"})
				}
				for format, path := range s.PayloadPaths {
					if len(s.ZooKeeper.Hosts) > 0 {
						add(s.ZooKeeper, doctor.RegistryPath{Path: path, Who: "registration " + s.Name + " as " + format, Registers: true, Creator: s.ACL == "creator"})
					}
				}
			}
		}
		if r.agent != nil {
			if z, path := r.agent.ZooKeeper, r.agent.OverridesPath; len(z.Hosts) > 0 && path != "" {
				add(z, doctor.RegistryPath{Path: path, Who: "overrides", Overrides: true})
			}
			for _, s := range r.agent.Services {
				for _, d := range sources(s.Discovery) {
					if len(d.ZooKeeper.Hosts) > 0 && d.Path != "" {
						add(d.ZooKeeper, doctor.RegistryPath{Path: d.Path, Who: "service " + s.Name})
					}
				}
			}
		}
	}
	return all
}

// sameEnsemble tells whether two descriptions mean the same servers, reached in the same way.
func sameEnsemble(a, b config.ZooKeeper) bool {
	sorted := func(hosts []string) []string { return slices.Sorted(slices.Values(hosts)) }
	auth := func(z config.ZooKeeper) config.ZooKeeperAuth {
		if z.Auth == nil {
			return config.ZooKeeperAuth{}
		}
		return *z.Auth
	}
	tls := func(z config.ZooKeeper) string {
		if z.TLS == nil {
			return ""
		}
		return fmt.Sprint("on ", z.TLS.CAFile, " ", z.TLS.CertFile, " ", z.TLS.ServerName, " ", z.TLS.NoVerify)
	}
	return slices.Equal(sorted(a.Hosts), sorted(b.Hosts)) && a.Chroot == b.Chroot && auth(a) == auth(b) && tls(a) == tls(b)
}

// askEnsembles asks each ensemble, its servers first, one by one.
func (e *examination) askEnsembles(ctx context.Context) {
	all := e.survey()
	if len(all) == 0 && e.app.zookeeper != "" {
		if hosts, chroot, err := config.ParseHosts(e.app.zookeeper); err == nil {
			all = append(all, &surveyed{zk: config.ZooKeeper{Hosts: hosts, Chroot: chroot}})
		}
	}
	if e.writeTest != "" && len(all) == 0 {
		e.unknown("zookeeper.write", e.writeTest, "which ZooKeeper? give --zookeeper HOSTS or -c FILE", "a registration is such a node")
	}
	for _, s := range all {
		e.ask("ZooKeeper at "+strings.Join(s.zk.Hosts, ","), func() { e.ensemble(ctx, s, all) })
	}
}

func (e *examination) ensemble(ctx context.Context, s *surveyed, all []*surveyed) {
	out := doctor.Ensemble{Name: strings.Join(s.zk.Hosts, ",") + s.zk.Chroot, Asked: s.zk.SessionTimeout, Paths: s.paths}
	out.Members = make([]doctor.Member, len(s.zk.Hosts))
	certs := make([][]doctor.Certificate, len(s.zk.Hosts))
	var members sync.WaitGroup
	for i, h := range s.zk.Hosts {
		members.Go(func() { out.Members[i], certs[i] = e.member(ctx, s.zk, h) })
	}
	members.Wait()
	var clock *doctor.RegistryClock
	reached := slices.ContainsFunc(out.Members, func(m doctor.Member) bool { return m.Error == "" })
	if !reached {
		out.Session = doctor.Not[doctor.SessionFacts]("no server was reached")
		out.Voters = doctor.Not[[]string]("no server was reached")
		for i := range out.Paths {
			out.Paths[i].Unknown = "no server was reached"
		}
	} else {
		clock = e.throughSession(ctx, s.zk, &out, all)
	}
	if clock == nil {
		clock = &doctor.RegistryClock{Ensemble: out.Name, Ahead: doctor.Not[time.Duration]("only the time of a node that is made tells; give --write-test PATH")}
		if e.writeTest != "" {
			clock.Ahead = doctor.Not[time.Duration]("the write test made no node")
		}
	}
	e.learn(func(f *doctor.Facts) {
		f.Ensembles = append(f.Ensembles, out)
		f.Clock.Registry = append(f.Clock.Registry, *clock)
		for _, c := range certs {
			f.Certs = append(f.Certs, c...)
		}
	})
}

// member asks one server of an ensemble what it is.
func (e *examination) member(ctx context.Context, z config.ZooKeeper, address string) (doctor.Member, []doctor.Certificate) {
	o := agent.SessionOptions(z)
	m := doctor.Member{Host: address}
	answer, err := zookeeper.AskWord(ctx, o, address, "srvr")
	var certs []doctor.Certificate
	if len(answer.Certificates) > 0 {
		certs = append(certs, certificateOf("server "+address, "", answer.Certificates[0]))
	}
	switch {
	case errors.Is(err, zookeeper.ErrWordRefused):
		m.Silent = "it does not answer srvr"
	case err != nil:
		m.Error = err.Error()
		return m, certs
	default:
		readSrvr(&m, answer.Text)
	}
	m.Connections = doctor.Not[int]("its address is not known")
	if at, ok := answer.Remote.(*net.TCPAddr); ok {
		m.Connections = e.host.Connections(at.AddrPort())
	}
	m.Limit = connectionLimit(ctx, o, address)
	return m, certs
}

// readSrvr reads what a server says to srvr: lines "Key: value", behind one about its version.
func readSrvr(m *doctor.Member, text string) {
	if strings.HasPrefix(text, "This ZooKeeper instance is not currently serving requests") {
		return
	}
	known := false
	for line := range strings.Lines(text) {
		key, value, _ := strings.Cut(strings.TrimSpace(line), ": ")
		switch key {
		case "Zookeeper version":
			number, _, _ := strings.Cut(value, "-")
			m.Version, known = number, true
		case "Mode":
			m.Mode = value
		case "Zxid":
			if n, err := strconv.ParseUint(strings.TrimPrefix(value, "0x"), 16, 64); err == nil {
				m.Zxid, m.HasZxid = n, true
			}
		}
	}
	switch {
	case !known:
		m.Error = fmt.Sprintf("what answers there is no ZooKeeper: %s", printable(cut(text, 80)))
	case m.Mode != "read-only":
		m.Serves = m.Mode != ""
	}
}

func cut(s string, most int) string {
	if len(s) > most {
		return s[:most] + "..."
	}
	return s
}

// connectionLimit is maxClientCnxns of a server that tells its configuration.
func connectionLimit(ctx context.Context, o zookeeper.Options, address string) doctor.Known[int] {
	answer, err := zookeeper.AskWord(ctx, o, address, "conf")
	if errors.Is(err, zookeeper.ErrWordRefused) {
		return doctor.Not[int]("conf is not in 4lw.commands.whitelist")
	}
	if err != nil {
		return doctor.Not[int](err.Error())
	}
	for line := range strings.Lines(answer.Text) {
		if value, ok := strings.CutPrefix(strings.TrimSpace(line), "maxClientCnxns="); ok {
			return doctor.Of(strconv.Atoi(value))
		}
	}
	return doctor.Not[int]("its configuration does not say")
}

// throughSession finds out what only a session tells. The clock is nil unless a node was made.
func (e *examination) throughSession(ctx context.Context, z config.ZooKeeper, out *doctor.Ensemble, all []*surveyed) *doctor.RegistryClock {
	o := agent.SessionOptions(z)
	o.SessionTimeout = cmp.Or(o.SessionTimeout, sessionTimeout)
	s := zookeeper.New(o)
	defer s.Close()
	voters, err := s.Voters(ctx)
	st := s.Status()
	if !st.Connected && err != nil {
		why := cmp.Or(st.Error, err.Error())
		out.Session = doctor.Not[doctor.SessionFacts](why)
		out.Voters = doctor.Not[[]string]("there is no session")
		for i := range out.Paths {
			out.Paths[i].Unknown = "there is no session"
		}
		return nil
	}
	out.Session = doctor.Is(doctor.SessionFacts{Timeout: st.Timeout, Server: st.Server, Classic: st.Classic})
	switch {
	case errors.Is(err, zookeeper.ErrNoPath):
		out.Voters = doctor.Not[[]string]("servers before 3.5 have no list of members")
	default:
		out.Voters = doctor.Of(voters, err)
	}
	for i := range out.Paths {
		e.registryPath(ctx, s, &out.Paths[i])
	}
	if e.writeTest == "" {
		return nil
	}
	return e.write(ctx, s, out, all)
}

func (e *examination) registryPath(ctx context.Context, s *zookeeper.Session, p *doctor.RegistryPath) {
	l, err := s.Listing(ctx, p.Path)
	switch {
	case errors.Is(err, zookeeper.ErrNoPath):
		p.Missing = true
		return
	case err != nil:
		p.Unknown = err.Error()
		return
	}
	p.Children, p.Bytes = l.Children, l.Bytes
	if p.Registers || p.Overrides {
		access, err := s.Access(ctx, p.Path)
		p.ACL = doctor.Of(doctor.ACL{
			AnyoneCreates: access.AnyoneCreates, AnyoneDeletes: access.AnyoneDeletes, AnyoneWrites: access.AnyoneWrites, AnyoneAdmins: access.AnyoneAdmins,
			MineCreates: access.MineCreates, Text: access.Text,
		}, err)
	}
}

// write makes the node of the write test, where nobody takes it for an instance.
func (e *examination) write(ctx context.Context, s *zookeeper.Session, out *doctor.Ensemble, all []*surveyed) *doctor.RegistryClock {
	test := doctor.WriteTest{Path: e.writeTest}
	out.Write = &test
	for _, other := range all {
		for _, p := range other.paths {
			if p.Path == e.writeTest || strings.HasPrefix(e.writeTest, strings.TrimSuffix(p.Path, "/")+"/") {
				test.Error = "it is, or lies below, the path of " + p.Who + ", where the node could be taken for an instance; name another path"
				return nil
			}
		}
	}
	w, err := s.WriteTest(ctx, e.writeTest)
	if err != nil {
		test.Error = err.Error()
		return nil
	}
	test.Took = w.Took
	trip := w.After.Sub(w.Before)
	return &doctor.RegistryClock{Ensemble: out.Name, Ahead: doctor.Is(w.Created.Sub(w.Before.Add(trip / 2)).Round(time.Millisecond)), Within: trip/2 + time.Millisecond}
}
