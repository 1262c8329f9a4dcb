package cli

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/signal"
	"strings"
	"sync"
	"syscall"

	"github.com/coreos/go-systemd/v22/daemon"
	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/collectors"
	"github.com/sirupsen/logrus"
	"github.com/spf13/cobra"

	"github.com/myelin-sd/myelin/agent"
	"github.com/myelin-sd/myelin/config"
)

func (a *app) agentCommand() *cobra.Command {
	var once bool
	c := &cobra.Command{
		Use:   "agent -c FILE",
		Short: "Run the node agent: ZooKeeper in, HAProxy's servers out",
		Long: "Runs the node agent in the foreground. SIGHUP re-reads the files; a bad file keeps the old one in force.\n" +
			"SIGTERM and SIGINT stop it; HAProxy keeps running with what it has.",
		Args: cobra.NoArgs,
		RunE: func(c *cobra.Command, _ []string) error {
			path, err := a.file("SYNAPSE_CONFIG")
			if err != nil {
				return err
			}
			return a.runAgent(c.Context(), path, once)
		},
	}
	c.Flags().BoolVar(&once, "once", false, "converge once and exit; --timeout bounds it")
	return c
}

func (a *app) runAgent(ctx context.Context, path string, once bool) error {
	cfg, problems, err := config.LoadAgent(path, a.options(false))
	if err != nil {
		return err
	}
	log, err := a.logger(cfg.Log)
	if err != nil {
		return err
	}
	a.warn(log, problems)

	reg := newRegistry()
	ag := agent.New(agent.Options{Config: cfg, Version: buildVersion(), Log: log, Metrics: agent.NewMetrics(reg)})
	reg.MustRegister(ag.Collector())

	ctx, cancel := context.WithCancel(ctx)
	var running sync.WaitGroup
	defer running.Wait()
	defer cancel()
	if !once && cfg.Admin.Listen != "" {
		l, err := agent.Listen(cfg.Admin.Listen)
		if err != nil {
			return err
		}
		running.Go(func() {
			if err := agent.Serve(ctx, l, ag.Handler(reg)); err != nil {
				log.WithField("err", err).Error("the admin page is gone; the agent goes on")
			}
		})
	}
	if once {
		return a.agentOnce(ctx, ag, path)
	}
	running.Go(func() { a.onHangup(ctx, log, func() error { return a.reloadAgent(ctx, ag, path, log) }) })
	running.Go(func() {
		select {
		case <-ag.Ready():
			log.Info("ready: everything wanted is applied")
			notify(log, daemon.SdNotifyReady)
		case <-ctx.Done():
		}
	})
	log.WithFields(logrus.Fields{"component": "agent", "path": path, "count": len(cfg.Services)}).Info("agent starts")
	err = ag.Run(ctx)
	notify(log, daemon.SdNotifyStopping)
	log.Info("agent stopped; HAProxy keeps running with what it has")
	return err
}

// agentOnce runs the agent until everything is applied.
func (a *app) agentOnce(ctx context.Context, ag *agent.Agent, path string) error {
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

func (a *app) reloadAgent(ctx context.Context, ag *agent.Agent, path string, log logrus.FieldLogger) error {
	cfg, problems, err := config.LoadAgent(path, a.options(false))
	if err != nil {
		return err
	}
	a.warn(log, problems)
	return ag.Reload(ctx, cfg)
}

// onHangup calls reload at each SIGHUP until ctx is done. An error keeps the old configuration in force.
func (a *app) onHangup(ctx context.Context, log logrus.FieldLogger, reload func() error) {
	hangups := make(chan os.Signal, 1)
	signal.Notify(hangups, syscall.SIGHUP)
	defer signal.Stop(hangups)
	for {
		select {
		case <-ctx.Done():
			return
		case <-hangups:
		}
		notify(log, daemon.SdNotifyReloading+"\n"+daemon.SdNotifyMonotonicUsec())
		if err := reload(); err != nil {
			log.WithField("err", err).Error("the files are not taken; the old configuration stays in force")
		} else {
			log.Info("the files were read again and are in force")
		}
		notify(log, daemon.SdNotifyReady)
	}
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
