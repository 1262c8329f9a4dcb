package cli

import (
	"context"
	"fmt"
	"strings"
	"sync"

	"github.com/coreos/go-systemd/v22/daemon"
	"github.com/sirupsen/logrus"
	"github.com/spf13/cobra"

	"github.com/myelin-sd/myelin/config"
	"github.com/myelin-sd/myelin/discovery"
	"github.com/myelin-sd/myelin/discovery/zookeeper"
	"github.com/myelin-sd/myelin/registrar"
)

func (a *app) registrarCommand() *cobra.Command {
	var instance string
	var checkOnly bool
	c := &cobra.Command{
		Use:   "registrar -c FILE",
		Short: "Run the registrar: healthy local services in ZooKeeper",
		Long: "Runs the registrar in the foreground. SIGHUP re-reads the files; a bad file keeps the old one in force.\n" +
			"SIGTERM and SIGINT withdraw every service, then end.",
		Args: cobra.NoArgs,
		RunE: func(c *cobra.Command, _ []string) error {
			path, err := a.file("NERVE_CONFIG")
			if err != nil {
				return err
			}
			if instance == "" {
				instance, _ = a.env("NERVE_INSTANCE_ID")
			}
			if _, set := a.env("NERVE_CHECK_CONFIG"); set || checkOnly {
				return a.checkRegistrar(path, instance)
			}
			return a.runRegistrar(c.Context(), path, instance)
		},
	}
	c.Flags().StringVarP(&instance, "instance_id", "i", "", "`ID` published as the instance's name (NERVE_INSTANCE_ID; default: the file's)")
	c.Flags().BoolVarP(&checkOnly, "check-config", "k", false, "check the configuration and exit (NERVE_CHECK_CONFIG)")
	return c
}

// loadRegistrar reads the file; instance overrides the file's instance_id when it is not empty.
func (a *app) loadRegistrar(path, instance string) (*config.Registrar, config.Problems, error) {
	o := a.options(false)
	o.InstanceID = instance
	return config.LoadRegistrar(path, o)
}

// checkRegistrar does everything but connect.
func (a *app) checkRegistrar(path, instance string) error {
	c, problems, err := a.loadRegistrar(path, instance)
	if err != nil {
		return err
	}
	for _, p := range problems {
		fmt.Fprintln(a.errs, p.String())
	}
	// Sessions that are never used stand for the ensembles, so that services are told apart as they will be.
	stand := map[string]*zookeeper.Session{}
	services, err := registrations(c, func(z config.ZooKeeper) *zookeeper.Session {
		if stand[ensemble(z)] == nil {
			stand[ensemble(z)] = new(zookeeper.Session)
		}
		return stand[ensemble(z)]
	})
	if err == nil {
		err = registrar.Validate(services)
	}
	if err != nil {
		return &codeError{exitUsage, err}
	}
	fmt.Fprintf(a.out, "%s: registrar file, %s, usable\n", path, plural(len(c.Services), "service"))
	return nil
}

func (a *app) runRegistrar(ctx context.Context, path, instance string) error {
	c, problems, err := a.loadRegistrar(path, instance)
	if err != nil {
		return err
	}
	log, err := a.logger(c.Log)
	if err != nil {
		return err
	}
	a.warn(log, problems)

	pool := sessions{log: log, open: map[string]*zookeeper.Session{}}
	defer pool.close()
	services, err := registrations(c, pool.get)
	if err != nil {
		return &codeError{exitUsage, err}
	}
	r := registrar.New(registrar.Options{
		Log: log.WithField("component", "registrar"), Services: services, HeartbeatPath: c.HeartbeatPath,
		Metrics: registrar.NewMetrics(newRegistry()),
	})
	ctx, cancel := context.WithCancel(ctx)
	var running sync.WaitGroup
	defer running.Wait()
	defer cancel()
	running.Go(func() {
		a.onHangup(ctx, log, func() error {
			c, problems, err := a.loadRegistrar(path, instance)
			if err != nil {
				return err
			}
			a.warn(log, problems)
			services, err := registrations(c, pool.get)
			if err != nil {
				return err
			}
			return r.Reload(services)
		})
	})
	log.WithFields(logrus.Fields{"component": "registrar", "path": path, "count": len(services)}).Info("registrar starts")
	notify(log, daemon.SdNotifyReady)
	err = r.Run(ctx)
	notify(log, daemon.SdNotifyStopping)
	log.Info("registrar stopped")
	return err
}

// ensemble names an ensemble: one session is enough for all that use it.
func ensemble(z config.ZooKeeper) string { return strings.Join(z.Hosts, ",") + z.Chroot }

// sessions are the registrar's connections, one for each ensemble. They live as long as the process: a service that
// leaves with a re-read of the files is still to be withdrawn.
type sessions struct {
	log  logrus.FieldLogger
	open map[string]*zookeeper.Session
}

func (p *sessions) get(z config.ZooKeeper) *zookeeper.Session {
	name := ensemble(z)
	s := p.open[name]
	if s == nil {
		s = zookeeper.New(zookeeper.Options{
			Hosts: z.Hosts, Chroot: z.Chroot, SessionTimeout: z.SessionTimeout,
			Log: p.log.WithFields(logrus.Fields{"component": "zookeeper", "ensemble": name}),
		})
		p.open[name] = s
	}
	return s
}

func (p *sessions) close() {
	for _, s := range p.open {
		s.Close()
	}
}

// registrations turns the file into what the registrar looks after.
func registrations(c *config.Registrar, session func(config.ZooKeeper) *zookeeper.Session) ([]registrar.Service, error) {
	shared := map[string]int{} // services by where they register
	place := func(s config.Registration) string { return ensemble(s.ZooKeeper) + s.ZKPath }
	for _, s := range c.Services {
		shared[place(s)]++
	}
	var out []registrar.Service
	for _, s := range c.Services {
		data, err := discovery.EncodeNerve(discovery.Payload{
			Host: s.Host, Port: s.Port, PortText: s.PortText, Name: c.InstanceID, Weight: s.Weight,
			ServerOptions: s.ServerOptions, Labels: s.Labels,
		})
		if err != nil {
			return nil, fmt.Errorf("service %s: %w", s.Name, err)
		}
		r := discovery.Registration{
			Path: s.ZKPath, Prefix: c.InstanceID + "_", Data: data,
			Sequential: s.NodeType != "ephemeral", Ephemeral: true,
		}
		if shared[place(s)] > 1 {
			// Several ports of one service in one path. Nerve calls their nodes alike; ours can be told apart.
			r.Prefix = fmt.Sprintf("%s_%d_", c.InstanceID, s.Port)
		}
		if s.UsePathEncoding {
			if prefix, ok := discovery.EncodeName(data); ok {
				r.Prefix = prefix
			}
		}
		checks, err := checks(s)
		if err != nil {
			return nil, fmt.Errorf("service %s: %w", s.Name, err)
		}
		out = append(out, registrar.Service{
			Name: s.Name, Registration: r, Directory: session(s.ZooKeeper), Checks: checks,
			Interval: s.CheckInterval, CheckMocked: s.CheckMocked, FirstResultDecides: c.NerveCompatible,
		})
	}
	return out, nil
}

func checks(s config.Registration) ([]registrar.Check, error) {
	var out []registrar.Check
	for _, c := range s.Checks {
		check := registrar.Check{Name: c.Name, Timeout: c.Timeout, Rise: c.Rise, Fall: c.Fall, Interval: c.Interval}
		switch c.Type {
		case "http":
			o := registrar.HTTPOptions{
				Host: c.Host, Port: c.Port, URI: c.URI, TLS: c.SSL, Headers: c.Headers, Expect: c.Expect,
				OpenTimeout: c.OpenTimeout, TLSTimeout: c.SSLTimeout, ReadTimeout: c.ReadTimeout,
			}
			h, err := registrar.NewHTTP(o)
			if err != nil {
				return nil, err
			}
			check.HealthCheck, check.Timeout = h, o.Budget()
		case "tcp":
			check.HealthCheck = registrar.NewTCP(registrar.TCPOptions{Host: c.Host, Port: c.Port})
		case "noop":
			check.HealthCheck = registrar.NewNoop()
		default:
			return nil, fmt.Errorf("check type %q is not available; use http, tcp or noop", c.Type)
		}
		out = append(out, check)
	}
	return out, nil
}
