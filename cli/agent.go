package cli

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"runtime/debug"
	"strings"
	"sync"
	"time"

	"github.com/coreos/go-systemd/v22/daemon"
	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/collectors"
	"github.com/sirupsen/logrus"
	"github.com/spf13/cobra"

	"github.com/myelin-sd/myelin/admin"
	"github.com/myelin-sd/myelin/agent"
	"github.com/myelin-sd/myelin/config"
	"github.com/myelin-sd/myelin/journal"
)

func (a *app) agentCommand() *cobra.Command {
	var run agentRun
	c := &cobra.Command{
		Use:   "agent -c FILE",
		Short: "Run the node agent: ZooKeeper in, HAProxy's servers out",
		Long: "Runs the node agent in the foreground. SIGHUP re-reads the files; a bad file keeps the old one in force.\n" +
			"SIGTERM and SIGINT stop it; HAProxy keeps running with what it has.\n\n" +
			"With registrar = \"FILE\" in its file the process is the registrar of that file too, over the same ZooKeeper\n" +
			"session where both mean the same. A stop then withdraws those services first; after SIGUSR2 they stay registered\n" +
			"for the next process, as with myelin registrar. With --once nothing is registered.\n\n" +
			"With --shadow it runs beside whatever drives HAProxy now, and changes nothing: no HAProxy, no file but its own in\n" +
			"state_dir/shadow, no registration. What it would change is in the metrics (myelin_shadow_...), in myelin status and\n" +
			"on the status page, once it has been due for --shadow-grace. With --once it is printed as myelin plan does, and the\n" +
			"exit code is 3 when there is something.",
		Args: cobra.NoArgs,
		RunE: func(c *cobra.Command, _ []string) error {
			path, err := a.file("SYNAPSE_CONFIG")
			if err != nil {
				return err
			}
			if run.grace < 0 || run.grace > 0 && !run.shadow {
				return usage("--shadow-grace %s: write a length of time, and --shadow", run.grace)
			}
			run.instance = a.instance(run.instance)
			return a.runAgent(c.Context(), path, run)
		},
	}
	f := c.Flags()
	f.BoolVar(&run.once, "once", false, "converge once and exit, and register nothing; --timeout bounds it")
	f.StringVarP(&run.instance, "instance_id", "i", "", "`ID` of the registrar in this process (NERVE_INSTANCE_ID; default: its file's)")
	f.BoolVar(&run.shadow, "shadow", false, "change nothing; show and export what would change")
	f.DurationVar(&run.grace, "shadow-grace", 0, "how long a difference must last to count, for the other manager may be a little behind (default 10s)")
	f.StringVar(&run.listen, "listen", "", "`HOST:PORT` of the pages and metrics instead of admin.listen, or \"off\"")
	return c
}

// agentRun is how myelin agent was asked to run.
type agentRun struct {
	instance     string // of the registrar in this process
	once, shadow bool
	grace        time.Duration // of the shadow; 0: the usual one
	listen       string        // instead of admin.listen; empty: that
}

// load reads the agent's file as this run has it. A shadow takes orders elsewhere, so that it can stand beside an agent.
func (r agentRun) load(path string, o config.Options) (*config.Agent, config.Problems, error) {
	cfg, problems, err := config.LoadAgent(path, o)
	if err != nil {
		return nil, nil, err
	}
	switch r.listen {
	case "":
	case "off":
		cfg.Admin.Listen = ""
	default:
		cfg.Admin.Listen = r.listen
	}
	if r.shadow && cfg.ControlSocket.Path != "" {
		cfg.ControlSocket = config.ControlSocket{Path: filepath.Join(agent.ShadowDir(cfg.StateDir), "agent.sock")}
	}
	return cfg, problems, nil
}

// keeps says what this run keeps of what happened. A shadow touches only its own folder.
func (r agentRun) keeps(c *config.Agent) keeping {
	k := keeping{role: roleAgent, stateDir: c.StateDir, history: c.History}
	if r.shadow && c.StateDir != "" {
		k.stateDir = agent.ShadowDir(c.StateDir)
	}
	return k
}

// registers tells whether the registrar of the file, if it names one, runs in this process.
func (r agentRun) registers() bool { return !r.once && !r.shadow }

func (a *app) runAgent(ctx context.Context, path string, run agentRun) error {
	once := run.once
	asked := catch()
	defer asked.release()
	if _, set := a.env("GOGC"); !set {
		// An agent is a guest on its host, and idle most of the time: a smaller heap is worth more collections.
		debug.SetGCPercent(50)
	}
	cfg, problems, err := run.load(path, a.options(false))
	if err != nil {
		return err
	}
	var registers *config.Registrar // nil: this process is an agent only
	file := registrarFile{path: cfg.Registrar, instance: run.instance, stateDir: cfg.StateDir, hosted: true}
	if cfg.Registrar != "" && run.registers() {
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

	var claims *agent.Claims // nil: a shadow drives nothing
	if !run.shadow {
		claims = agent.NewClaims(path, log)
	}
	defer claims.Close()
	if err := claims.Take(ctx, cfg); err != nil {
		return err
	}
	// Before any session is taken up: a start that fails here must not end what the process before has left.
	var pages net.Listener // nil: there are no pages
	if cfg.Admin.Listen != "" && !once {
		if pages, err = admin.Listen(cfg.Admin.Listen); err != nil {
			if run.shadow {
				err = fmt.Errorf("%w; --listen gives the shadow an address of its own", err)
			}
			return fmt.Errorf("%s: %w", path, err)
		}
		defer pages.Close() // a second time, where the pages have ended
	}

	var told *controlPoint // for the agent
	if run.shadow && cfg.StateDir != "" {
		_ = os.MkdirAll(agent.ShadowDir(cfg.StateDir), 0o755) // whoever cannot write to it says so
	}
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
	feed := journal.NewFeed()
	happened := run.keeps(cfg).open(feed, log)
	defer happened.Close()
	reg, sessions := newRegistry(), agent.NewSessions(log)
	sessions.TellJournal(happened)
	p := process{app: a, log: log, path: path, as: run, began: cfg, asked: asked, claims: claims, journal: happened}
	defer func() { p.endSessions(sessions) }()
	o := agent.Options{Config: cfg, Version: buildVersion(), Log: log, Metrics: agent.NewMetrics(reg), Sessions: sessions, Claims: claims, Journal: happened, Feed: feed}
	happened.Record(started(roleAgent, path, len(cfg.Services)))
	if run.shadow {
		o.Shadow = &agent.ShadowOptions{Grace: run.grace}
	}
	if registers != nil {
		// Before the agent, so that a session of both has the registrar's timeout and is kept for its next run.
		file.feed = feed
		if p.registrar, err = a.newRegistrar(ctx, registers, file, sessions, log, reg); err != nil {
			return err
		}
		o.Registrar = p.registrar
		defer orders.answer(ctx, p.registrar.control())()
	}
	p.agent = agent.New(o)
	reg.MustRegister(p.agent.Collector())
	if once {
		return a.agentOnce(ctx, p.agent, run.shadow)
	}
	defer told.answer(ctx, agentControl(p.agent, log))()
	if pages != nil {
		defer answer(context.WithoutCancel(ctx), pages, p.agent.Handler(reg), log)()
	}
	starts := log.WithFields(logrus.Fields{"component": "agent", "path": path, "count": len(cfg.Services)})
	switch {
	case run.shadow && cfg.Registrar != "":
		starts.Info("agent starts in the shadow: nothing is changed, and nothing registered")
	case run.shadow:
		starts.Info("agent starts in the shadow: nothing is changed")
	default:
		starts.Info("agent starts")
	}
	return p.run(ctx)
}

// process is an agent and perhaps a registrar in one process.
type process struct {
	app       *app
	log       *logrus.Logger
	path      string // of the agent's file
	as        agentRun
	began     *config.Agent // what it was at the start
	asked     asked
	claims    *agent.Claims
	journal   *journal.Journal
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
			if p.as.shadow {
				p.log.Info("ready: everything is compared")
			} else {
				p.log.Info("ready: everything wanted is applied")
			}
			notify(p.log, daemon.SdNotifyReady)
			<-ctx.Done()
		case <-ctx.Done():
		}
		notify(p.log, daemon.SdNotifyStopping)
	})
	err := p.agent.Run(serving)
	p.claims.Close() // the next process need not wait for the sessions' end
	if p.as.shadow {
		p.log.Info("shadow stopped")
	} else {
		p.log.Info("agent stopped; HAProxy keeps running with what it has")
		p.journal.Record(ended(ctx, "agent stopped; HAProxy keeps running with what it has", err))
	}
	stop()
	running.Wait()
	return errors.Join(registering, err)
}

// rereads are what SIGHUP does: each role takes its own file, or stays as it is.
func (p *process) rereads(ctx context.Context) []reread {
	var file string // of the registrar
	all := []reread{recorded(p.journal, reread{"agent", func() error {
		cfg, err := p.rereadAgent(ctx)
		if err == nil {
			file = cfg.Registrar
		}
		return err
	}})}
	if p.registrar != nil {
		all = append(all, recorded(p.registrar.journal, reread{"registrar", func() error { return p.registrar.reload(cmp.Or(file, p.registrar.file.path)) }}))
	}
	return all
}

func (p *process) rereadAgent(ctx context.Context) (*config.Agent, error) {
	cfg, problems, err := p.as.load(p.path, p.app.options(false))
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
		setting{"admin.listen", p.began.Admin.Listen, cfg.Admin.Listen}, setting{"control_socket", p.began.ControlSocket, cfg.ControlSocket}, setting{"log", p.began.Log, cfg.Log}, setting{"history", p.began.History, cfg.History},
		setting{"zookeeper.session_timeout", p.began.ZooKeeper.SessionTimeout, cfg.ZooKeeper.SessionTimeout})
	switch {
	case p.as.shadow:
	case cfg.Registrar != "" && p.registrar == nil:
		p.log.WithField("path", cfg.Registrar).Warn("registrar is new in the agent's file; restart the agent to have its services registered")
	case cfg.Registrar == "" && p.registrar != nil:
		p.log.Warn("registrar is gone from the agent's file; its services stay registered until the agent is restarted")
	}
	return cfg, nil
}

// agentOnce runs the agent until everything is applied, or compared by a shadow: then it prints what would be done. Only
// for differences that may be a delay of the other manager a shadow goes on for its grace, whatever --timeout says.
func (a *app) agentOnce(ctx context.Context, ag *agent.Agent, shadow bool) error {
	running, cancel := context.WithCancel(ctx)
	defer cancel()
	ended := make(chan error, 1)
	go func() { ended <- ag.Run(running) }()
	limit := time.NewTimer(a.timeout)
	defer limit.Stop()
	var err error
	var found *agent.Preview
	select {
	case <-ag.Converged():
		if shadow {
			found, err = ag.AwaitShadow(ctx)
		}
	case <-limit.C:
		st := ag.Status()
		err = fmt.Errorf("converge once: not done within %s: %s", a.timeout, strings.Join(append(st.Waiting, st.Stale...), "; "))
	case <-ctx.Done():
		err = fmt.Errorf("converge once: %w", ctx.Err())
	}
	cancel()
	if err := errors.Join(err, <-ended); err != nil || found == nil {
		return err
	}
	for _, n := range found.Notes {
		fmt.Fprintln(a.errs, "note:", n)
	}
	return a.printPlan(found)
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
