package cli

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"net"
	"net/http"
	"runtime/debug"
	"strings"
	"sync"

	"github.com/coreos/go-systemd/v22/daemon"
	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/collectors"
	"github.com/sirupsen/logrus"
	"github.com/spf13/cobra"

	"github.com/myelin-sd/myelin/admin"
	"github.com/myelin-sd/myelin/agent"
	"github.com/myelin-sd/myelin/config"
)

func (a *app) agentCommand() *cobra.Command {
	var once bool
	var instance string
	c := &cobra.Command{
		Use:   "agent -c FILE",
		Short: "Run the node agent: ZooKeeper in, HAProxy's servers out",
		Long: "Runs the node agent in the foreground. SIGHUP re-reads the files; a bad file keeps the old one in force.\n" +
			"SIGTERM and SIGINT stop it; HAProxy keeps running with what it has.\n\n" +
			"With registrar = \"FILE\" in its file the process is the registrar of that file too, over the same ZooKeeper\n" +
			"session where both mean the same. A stop then withdraws those services first; after SIGUSR2 they stay registered\n" +
			"for the next process, as with myelin registrar. With --once nothing is registered.",
		Args: cobra.NoArgs,
		RunE: func(c *cobra.Command, _ []string) error {
			path, err := a.file("SYNAPSE_CONFIG")
			if err != nil {
				return err
			}
			return a.runAgent(c.Context(), path, a.instance(instance), once)
		},
	}
	c.Flags().BoolVar(&once, "once", false, "converge once and exit, and register nothing; --timeout bounds it")
	c.Flags().StringVarP(&instance, "instance_id", "i", "", "`ID` of the registrar in this process (NERVE_INSTANCE_ID; default: its file's)")
	return c
}

func (a *app) runAgent(ctx context.Context, path, instance string, once bool) error {
	asked := catch()
	defer asked.release()
	if _, set := a.env("GOGC"); !set {
		// An agent is a guest on its host, and idle most of the time: a smaller heap is worth more collections.
		debug.SetGCPercent(50)
	}
	cfg, problems, err := config.LoadAgent(path, a.options(false))
	if err != nil {
		return err
	}
	var registers *config.Registrar // nil: this process is an agent only
	file := registrarFile{path: cfg.Registrar, instance: instance, stateDir: cfg.StateDir, hosted: true}
	if cfg.Registrar != "" && !once {
		var more config.Problems
		if registers, more, err = a.loadRegistrar(file); err != nil {
			return err
		}
		problems = append(problems, more...)
	}
	log, err := a.logger(cfg.Log)
	if err != nil {
		return err
	}
	a.warn(log, problems)

	claims := agent.NewClaims(path, log)
	defer claims.Close()
	if err := claims.Take(ctx, cfg); err != nil {
		return err
	}
	// Before any session is taken up: a start that fails here must not end what the process before has left.
	var pages net.Listener // nil: there are no pages
	if cfg.Admin.Listen != "" && !once {
		if pages, err = admin.Listen(cfg.Admin.Listen); err != nil {
			return fmt.Errorf("%s: %w", path, err)
		}
		defer pages.Close() // a second time, where the pages have ended
	}

	var told *controlPoint // for the agent
	if !once {
		if told, err = openAgentControl(cfg, log); err != nil {
			return fmt.Errorf("%s: %w", path, err)
		}
		defer told.close()
	}
	var orders *controlPoint // for the registrar
	if registers != nil {
		if orders, err = openControl(registers, log); err != nil {
			return fmt.Errorf("%s: %w", cfg.Registrar, err)
		}
		defer orders.close()
	}

	// What is made first ends last: the sessions, then the pages.
	reg, sessions := newRegistry(), agent.NewSessions(log)
	p := process{app: a, log: log, path: path, began: cfg, asked: asked, claims: claims}
	defer func() { p.endSessions(sessions) }()
	o := agent.Options{Config: cfg, Version: buildVersion(), Log: log, Metrics: agent.NewMetrics(reg), Sessions: sessions, Claims: claims}
	if registers != nil {
		// Before the agent, so that a session of both has the registrar's timeout and is kept for its next run.
		if p.registrar, err = a.newRegistrar(ctx, registers, file, sessions, log, reg); err != nil {
			return err
		}
		o.Registrar = p.registrar
		defer orders.answer(ctx, p.registrar.control())()
	}
	p.agent = agent.New(o)
	reg.MustRegister(p.agent.Collector())
	if once {
		return a.agentOnce(ctx, p.agent)
	}
	defer told.answer(ctx, agentControl(p.agent, log))()
	if pages != nil {
		defer answer(context.WithoutCancel(ctx), pages, p.agent.Handler(reg), log)()
	}
	log.WithFields(logrus.Fields{"component": "agent", "path": path, "count": len(cfg.Services)}).Info("agent starts")
	return p.run(ctx)
}

// process is an agent and perhaps a registrar in one process.
type process struct {
	app       *app
	log       *logrus.Logger
	path      string        // of the agent's file
	began     *config.Agent // what it was at the start
	asked     asked
	claims    *agent.Claims
	agent     *agent.Agent
	registrar *registrarRole // nil: the process has one role
}

// answer begins to answer on l. stop ends that, and waits for it.
func answer(ctx context.Context, l net.Listener, h http.Handler, log logrus.FieldLogger) (stop func()) {
	ctx, cancel := context.WithCancel(ctx)
	done := make(chan struct{})
	go func() {
		defer close(done)
		if err := admin.Serve(ctx, l, h); err != nil {
			log.WithField("err", err).Error("the pages of admin.listen are gone; the rest goes on")
		}
	}()
	return func() { cancel(); <-done }
}

// endSessions ends the sessions as the roles ask for it.
func (p *process) endSessions(sessions *agent.Sessions) {
	if p.registrar != nil {
		p.registrar.endSessions()
		return
	}
	sessions.Close()
}

// run runs the roles until ctx ends. The registrations are withdrawn first, while the agent still serves this host;
// then the agent ends.
func (p *process) run(ctx context.Context) error {
	ctx, stop := context.WithCancel(ctx)
	serving, retire := context.WithCancel(context.WithoutCancel(ctx))
	var running sync.WaitGroup
	var registering error
	running.Go(func() {
		defer retire()
		if p.registrar != nil {
			registering = p.registrar.run(ctx)
			return
		}
		<-ctx.Done()
	})
	running.Go(func() {
		p.asked.onHandover(ctx, p.log, func() {
			if p.registrar != nil {
				p.registrar.handOver()
			}
			stop()
		})
	})
	running.Go(func() { p.asked.onHangup(ctx, p.log, p.rereads(ctx)...) })
	running.Go(func() { watchdog(serving, p.log, p.agent.Live) })
	running.Go(func() {
		select {
		case <-p.agent.Ready():
			p.log.Info("ready: everything wanted is applied")
			notify(p.log, daemon.SdNotifyReady)
			<-ctx.Done()
		case <-ctx.Done():
		}
		notify(p.log, daemon.SdNotifyStopping)
	})
	err := p.agent.Run(serving)
	p.claims.Close() // the next process need not wait for the sessions' end
	p.log.Info("agent stopped; HAProxy keeps running with what it has")
	stop()
	running.Wait()
	return errors.Join(registering, err)
}

// rereads are what SIGHUP does: each role takes its own file, or stays as it is.
func (p *process) rereads(ctx context.Context) []reread {
	var file string // of the registrar
	all := []reread{{"agent", func() error {
		cfg, err := p.rereadAgent(ctx)
		if err == nil {
			file = cfg.Registrar
		}
		return err
	}}}
	if p.registrar != nil {
		all = append(all, reread{"registrar", func() error { return p.registrar.reload(cmp.Or(file, p.registrar.file.path)) }})
	}
	return all
}

func (p *process) rereadAgent(ctx context.Context) (*config.Agent, error) {
	cfg, problems, err := config.LoadAgent(p.path, p.app.options(false))
	if err != nil {
		return nil, err
	}
	p.app.warn(p.log, problems)
	if p.registrar != nil {
		p.registrar.reserve(cmp.Or(cfg.Registrar, p.registrar.file.path))
	}
	if err := p.agent.Reload(ctx, cfg); err != nil {
		return nil, err
	}
	startOnly(p.log.WithField("component", "agent"),
		setting{"admin.listen", p.began.Admin.Listen, cfg.Admin.Listen}, setting{"control_socket", p.began.ControlSocket, cfg.ControlSocket}, setting{"log", p.began.Log, cfg.Log},
		setting{"zookeeper.session_timeout", p.began.ZooKeeper.SessionTimeout, cfg.ZooKeeper.SessionTimeout})
	switch {
	case cfg.Registrar != "" && p.registrar == nil:
		p.log.WithField("path", cfg.Registrar).Warn("registrar is new in the agent's file; restart the agent to have its services registered")
	case cfg.Registrar == "" && p.registrar != nil:
		p.log.Warn("registrar is gone from the agent's file; its services stay registered until the agent is restarted")
	}
	return cfg, nil
}

// agentOnce runs the agent until everything is applied.
func (a *app) agentOnce(ctx context.Context, ag *agent.Agent) error {
	ctx, cancel := context.WithTimeout(ctx, a.timeout)
	defer cancel()
	ended := make(chan error, 1)
	go func() { ended <- ag.Run(ctx) }()
	var err error
	select {
	case <-ag.Converged():
	case <-ctx.Done():
		st := ag.Status()
		err = fmt.Errorf("converge once: not done within %s: %s", a.timeout, strings.Join(append(st.Waiting, st.Stale...), "; "))
	}
	cancel()
	return errors.Join(err, <-ended)
}

func notify(log logrus.FieldLogger, state string) {
	if _, err := daemon.SdNotify(false, state); err != nil {
		log.WithField("err", err).Debug("systemd not told")
	}
}

func newRegistry() *prometheus.Registry {
	reg := prometheus.NewRegistry()
	reg.MustRegister(collectors.NewGoCollector(), collectors.NewProcessCollector(collectors.ProcessCollectorOpts{}))
	info := prometheus.NewGauge(prometheus.GaugeOpts{Name: "myelin_build_info", Help: "1; the version is a label.",
		ConstLabels: prometheus.Labels{"version": buildVersion()}})
	info.Set(1)
	reg.MustRegister(info)
	return reg
}
