package cli

import (
	"cmp"
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"math"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/coreos/go-systemd/v22/daemon"
	"github.com/prometheus/client_golang/prometheus"
	"github.com/sirupsen/logrus"
	"github.com/spf13/cobra"

	"github.com/myelin-sd/myelin/admin"
	"github.com/myelin-sd/myelin/agent"
	"github.com/myelin-sd/myelin/config"
	"github.com/myelin-sd/myelin/discovery/zookeeper"
	"github.com/myelin-sd/myelin/journal"
	"github.com/myelin-sd/myelin/registrar"
	"github.com/myelin-sd/myelin/registrar/child"
)

func (a *app) registrarCommand() *cobra.Command {
	var instance string
	var checkOnly bool
	c := &cobra.Command{
		Use:   "registrar -c FILE [-- COMMAND ARGS...]",
		Short: "Run the registrar: healthy local services in ZooKeeper",
		Long: "Runs the registrar in the foreground. SIGHUP re-reads the files; a bad file keeps the old one in force.\n" +
			"SIGTERM and SIGINT withdraw every service, drain, run on_stop, and end; a second one ends at once. SIGUSR2 ends\n" +
			"and withdraws nothing: for as long as the ZooKeeper session lives, the next process takes the registrations\n" +
			"over, and nobody notices the restart.\n\n" +
			"With a command it runs the service too, and ends with its exit code. SIGTERM and SIGINT reach the command after\n" +
			"the services are withdrawn and drained, a second one at once; other signals are passed on. When the command\n" +
			"ends by itself the services are withdrawn at once.",
		Args: onlyCommand,
		RunE: func(c *cobra.Command, command []string) error {
			path, err := a.file("NERVE_CONFIG")
			if err != nil {
				return err
			}
			instance = a.instance(instance)
			if _, set := a.env("NERVE_CHECK_CONFIG"); set || checkOnly {
				return a.checkRegistrar(registrarFile{path: path, instance: instance})
			}
			if child.IsInit() {
				return a.runAsInit(c.Context())
			}
			return a.runRegistrar(c.Context(), registrarFile{path: path, instance: instance}, command)
		},
	}
	c.Flags().StringVarP(&instance, "instance_id", "i", "", "`ID` published as the instance's name (NERVE_INSTANCE_ID; default: the file's)")
	c.Flags().BoolVarP(&checkOnly, "check-config", "k", false, "check the configuration and exit (NERVE_CHECK_CONFIG)")
	return c
}

// onlyCommand allows arguments behind "--" only, where they are a command to run.
func onlyCommand(c *cobra.Command, args []string) error {
	switch dash := c.ArgsLenAtDash(); {
	case dash < 0 && len(args) > 0, dash > 0:
		return fmt.Errorf("unexpected argument %q; a command to run is written behind --", args[0])
	case dash == 0 && len(args) == 0:
		return errors.New("there is no command behind --; write it, or leave the -- out")
	}
	return nil
}

// instance is the instance id given outside of the file: the flag's, else the environment's; empty: neither.
func (a *app) instance(flag string) string {
	if flag == "" {
		flag, _ = a.env("NERVE_INSTANCE_ID")
	}
	return flag
}

// registrarFile says which registrar file is meant, and what outside of it counts.
type registrarFile struct {
	path     string
	instance string        // before the file's instance_id, unless empty
	stateDir string        // when the file names none; empty: the default
	hosted   bool          // in an agent's process, whose log counts
	feed     *journal.Feed // gets what happens; nil: nobody listens
	strict   bool          // unknown keys are errors
}

// loadRegistrar reads the file, and judges what a registrar would make of it: everything but to connect.
func (a *app) loadRegistrar(f registrarFile) (*config.Registrar, config.Problems, error) {
	o := a.options(f.strict)
	o.InstanceID, o.StateDir = f.instance, f.stateDir
	c, problems, err := config.LoadRegistrar(f.path, o)
	if err != nil {
		return nil, nil, err
	}
	// Sessions that are never used stand for the ensembles, so that services are told apart as they will be.
	stand := map[string]*zookeeper.Session{}
	services, err := registrations(c, registrar.NewReports(), func(z config.ZooKeeper) *zookeeper.Session {
		name := ensemble(z)
		if stand[name] == nil {
			stand[name] = new(zookeeper.Session)
		}
		return stand[name]
	})
	if err == nil {
		err = registrar.Validate(services)
	}
	if err != nil {
		return nil, nil, &codeError{exitUsage, fmt.Errorf("%s: %w", f.path, err)}
	}
	return c, problems, nil
}

// checkRegistrar does everything but connect, and says what it found.
func (a *app) checkRegistrar(f registrarFile) error {
	c, problems, err := a.loadRegistrar(f)
	if err != nil {
		return err
	}
	a.usable(f.path, config.KindRegistrar, len(c.Services), problems)
	return nil
}

// runRegistrar runs the registrar until ctx ends, and with a command that command, which the services of the file are.
func (a *app) runRegistrar(ctx context.Context, f registrarFile, command []string) error {
	asked := catch()
	defer asked.release()
	c, problems, err := a.loadRegistrar(f)
	if err != nil {
		return err
	}
	log, err := a.logger(c.Log)
	if err != nil {
		return err
	}
	a.warn(log, problems)

	pages, err := listen(c.Admin, log)
	if err != nil {
		return fmt.Errorf("%s: %w", f.path, err)
	}
	if pages != nil {
		defer pages.Close() // a second time, where they have ended
	}
	orders, err := openControl(c, log)
	if err != nil {
		return fmt.Errorf("%s: %w", f.path, err)
	}
	defer orders.close()
	sessions, reg := agent.NewSessions(log), newRegistry()
	f.feed = journal.NewFeed()
	r, err := a.newRegistrar(ctx, c, f, sessions, log, reg)
	if err != nil {
		sessions.Close()
		return err
	}
	defer r.endSessions()
	if pages != nil {
		reg.MustRegister(sessions.Collector())
		defer answer(context.WithoutCancel(ctx), pages, r.handler(reg), log)()
	}
	defer orders.answer(ctx, r.control())()
	w, err := a.startCommand(command, childEnvironment(os.Environ(), orders.path), c.StopTimeout, r)
	if err != nil {
		return err
	}
	stopping := func() { notify(log, daemon.SdNotifyStopping) }
	early := context.AfterFunc(ctx, stopping) // a drain takes its time
	defer func() {
		if early() {
			stopping()
		}
	}()
	ctx, cancel := context.WithCancel(ctx)
	var running sync.WaitGroup
	defer running.Wait()
	defer cancel()
	running.Go(func() { watchdog(ctx, log, r.Live) })
	running.Go(func() {
		asked.onHangup(ctx, log, recorded(r.journal, reread{"registrar", func() error { return r.reload(f.path) }}))
	})
	notify(log, daemon.SdNotifyReady)
	if w != nil {
		return w.run(ctx)
	}
	running.Go(func() { asked.onHandover(ctx, log, r.handOver) })
	return r.run(ctx)
}

// listen opens the address of a registrar's pages; nil: there are none. One that nobody asked for may be taken: there
// can be many registrars on a host.
func listen(c config.Admin, log logrus.FieldLogger) (net.Listener, error) {
	if c.Listen == "" {
		return nil, nil
	}
	l, err := admin.Listen(c.Listen)
	if err != nil && !c.Given {
		log.WithField("err", err).Info("there are no pages: give this registrar an admin.listen of its own to have them")
		return nil, nil
	}
	return l, err
}

// handler answers with the registrar's pages.
func (r *registrarRole) handler(metrics prometheus.Gatherer) http.Handler {
	return r.Handler(registrar.About{
		Version: buildVersion(), Config: r.file.path, Instance: r.began.InstanceID, Started: time.Now(), Sessions: r.sessions.Statuses, Feed: r.file.feed,
	}, metrics)
}

// registrarRole is a registrar and the file it is made of.
type registrarRole struct {
	*registrar.Registrar
	app      *app
	file     registrarFile     // as it was last taken; belongs to who calls reload
	began    *config.Registrar // what it was at the start
	sessions *agent.Sessions
	log      logrus.FieldLogger
	journal  *journal.Journal
	cleaning *cleaner
	reports  *registrar.Reports
	statsd   *registrar.Statsd // nil: nothing is sent
	handed   atomic.Bool       // another process takes the registrations over
}

// newRegistrar makes the registrar of a file. Its sessions begin to connect, and until ctx ends they are rid of what an
// earlier process registered and this file does not have; nothing is checked or registered yet.
func (a *app) newRegistrar(ctx context.Context, c *config.Registrar, f registrarFile, sessions *agent.Sessions, log logrus.FieldLogger, metrics prometheus.Registerer) (*registrarRole, error) {
	r := &registrarRole{app: a, file: f, began: c, sessions: sessions, log: log.WithField("component", "registrar")}
	r.reports = registrar.NewReports()
	r.journal = keeping{roleRegistrar, c.InstanceID, c.StateDir, c.History}.open(f.feed, log)
	if !f.hosted {
		sessions.TellJournal(r.journal)
	}
	services, err := r.services(c)
	if err != nil {
		r.journal.Close()
		return nil, &codeError{exitUsage, fmt.Errorf("%s: %w", f.path, err)}
	}
	if f.hosted && c.Admin.Given {
		r.log.WithField("path", f.path).Warn("admin of the registrar's file has no effect: the agent's pages tell of both roles")
	}
	if c.Statsd != nil {
		if r.statsd, err = registrar.NewStatsd(c.Statsd.Host, c.Statsd.Port); err != nil {
			r.log.WithField("err", err).Warn("nothing is sent to statsd; correct statsd in the file and restart") // no reason not to register
		}
	}
	r.Registrar = registrar.New(registrar.Options{
		Log: log, Journal: r.journal, Services: services, HeartbeatPath: c.HeartbeatPath, StateFile: r.stateFile(c),
		MaxConcurrentChecks: c.MaxConcurrentChecks, Metrics: registrar.NewMetrics(metrics), Statsd: r.statsd,
	})
	r.cleaning = newCleaner(ctx, r.log, r.Settled)
	r.cleaning.begin(services)
	r.log.WithFields(logrus.Fields{"path": f.path, "count": len(services)}).Info("registrar starts")
	r.journal.Record(started(roleRegistrar, f.path, len(services)))
	return r, nil
}

// services are those of a file, each with its session. The sessions stay as long as the process: a service that leaves
// with a re-read of the files is still to be withdrawn.
func (r *registrarRole) services(c *config.Registrar) ([]registrar.Service, error) {
	keep := agent.Keep{Dir: c.StateDir, Owner: owner(c)}
	return registrations(c, r.reports, func(z config.ZooKeeper) *zookeeper.Session { return r.sessions.Hold(z, keep) })
}

// stateFile is where what operators ask for is kept, and its folder is made. Without one it ends with the process.
func (r *registrarRole) stateFile(c *config.Registrar) string {
	if err := os.MkdirAll(c.StateDir, 0o755); err != nil {
		r.log.WithFields(logrus.Fields{"path": c.StateDir, "err": err}).Warn("maintenance ends with this process: its state cannot be kept")
		return ""
	}
	sum := sha256.Sum256([]byte(owner(c)))
	return filepath.Join(c.StateDir, fmt.Sprintf("registrar-%x.state", sum[:8]))
}

// owner tells registrars that share a state_dir apart, and stays the same over restarts.
func owner(c *config.Registrar) string {
	path, err := filepath.Abs(c.Path)
	if err != nil { // the current folder is gone
		path = c.Path
	}
	return c.InstanceID + "\x00" + path
}

// run looks after the services until ctx ends, and withdraws them then.
func (r *registrarRole) run(ctx context.Context) error {
	err := r.Run(ctx)
	if r.handed.Load() {
		r.log.Info("registrar stopped; what it registered stays for the next process")
		r.journal.Record(ended(ctx, "registrar stopped; what it registered stays for the next process", err))
		return err
	}
	r.log.Info("registrar stopped")
	r.journal.Record(ended(ctx, "registrar stopped", err))
	return err
}

// handOver makes run end, and endSessions leave what is registered to the next process.
func (r *registrarRole) handOver() {
	r.handed.Store(true)
	r.Detach()
}

// endSessions ends the sessions, those that registrations live in included unless they are handed over.
func (r *registrarRole) endSessions() {
	defer r.journal.Close()
	r.cleaning.close()
	r.statsd.Close()
	if r.handed.Load() {
		r.sessions.Leave()
		return
	}
	r.sessions.Close()
}

// reserve opens the sessions that a file asks for, before an agent that reads its own file again can: who is first
// decides the timeout, and whether the next run can take the session up. What is wrong with the file is for reload to
// tell.
func (r *registrarRole) reserve(path string) {
	f := r.file
	f.path = path
	if c, _, err := r.app.loadRegistrar(f); err == nil {
		_, _ = r.services(c)
	}
}

// reload puts the services of a file in the place of the present ones. An error has changed nothing.
func (r *registrarRole) reload(path string) error {
	f := r.file
	f.path = path
	c, problems, err := r.app.loadRegistrar(f)
	if err != nil {
		return err
	}
	r.app.warn(r.log, problems)
	services, err := r.services(c)
	if err != nil {
		return err
	}
	// Were a service to come back while what is left of it is being removed, its new node would go as well.
	r.cleaning.end()
	err = r.Reload(services)
	r.cleaning.begin(services)
	if err != nil {
		return err
	}
	r.reports.Retain(services)
	r.file = f
	settings := []setting{
		{"max_concurrent_checks", r.began.MaxConcurrentChecks, c.MaxConcurrentChecks},
		{"state_dir", r.began.StateDir, c.StateDir}, {"heartbeat_path", r.began.HeartbeatPath, c.HeartbeatPath},
		{"zookeeper.session_timeout", r.began.ZooKeeper.SessionTimeout, c.ZooKeeper.SessionTimeout},
		{"control_socket", r.began.ControlSocket, c.ControlSocket}, {"stop_timeout", r.began.StopTimeout, c.StopTimeout},
		{"admin.listen", r.began.Admin, c.Admin}, {"statsd", statsdOf(r.began), statsdOf(c)}, {"history", r.began.History, c.History},
	}
	if !f.hosted {
		settings = append(settings, setting{"log", r.began.Log, c.Log})
	}
	startOnly(r.log, settings...)
	return nil
}

// ensemble tells ensembles apart. The order of the hosts does not matter.
func ensemble(z config.ZooKeeper) string {
	return strings.Join(slices.Sorted(slices.Values(z.Hosts)), ",") + z.Chroot
}

func rateLimit(l *config.RateLimiting) registrar.RateLimit {
	if l == nil {
		return registrar.RateLimit{}
	}
	return registrar.RateLimit{Rate: l.AverageRate, Burst: cmp.Or(l.MaxBurst, math.Inf(1)), Shadow: l.ShadowMode}
}

// statsdOf is the setting as text, which can be compared.
func statsdOf(c *config.Registrar) string {
	if c.Statsd == nil {
		return ""
	}
	return fmt.Sprint(*c.Statsd)
}

// cluster is how Nerve calls an ensemble in its tags: the first of the sorted hosts up to its first dot, without the
// digits at its end.
func cluster(z config.ZooKeeper) string {
	if len(z.Hosts) == 0 {
		return ""
	}
	first := slices.Min(z.Hosts)
	name, _, _ := strings.Cut(first, ".")
	return cmp.Or(strings.TrimRight(name, "0123456789"), first)
}

// registrations turns the file into what the registrar looks after. Services report their own health on the board.
func registrations(c *config.Registrar, board *registrar.Reports, session func(config.ZooKeeper) *zookeeper.Session) ([]registrar.Service, error) {
	shared := map[string]int{} // services by where they register
	place := func(s config.Registration) string { return ensemble(s.ZooKeeper) + s.ZKPath }
	for _, s := range c.Services {
		shared[place(s)]++
	}
	var out []registrar.Service
	for _, s := range c.Services {
		publication, r, err := newPublication(c, s, shared[place(s)] > 1)
		if err != nil {
			return nil, fmt.Errorf("service %s: %w", s.Name, err)
		}
		checks, err := checks(s, board)
		if err != nil {
			return nil, fmt.Errorf("service %s: %w", s.Name, err)
		}
		out = append(out, registrar.Service{
			Name: s.Name, Registration: r, Directory: session(s.ZooKeeper), Cluster: cluster(s.ZooKeeper), Checks: checks,
			Interval: s.CheckInterval, CheckMocked: s.CheckMocked, FirstResultDecides: c.NerveCompatible,
			Combine: combination(s.Combine), Damping: damping(s.Damping), RateLimit: rateLimit(s.RateLimiting),
			Render: publication, SlowStart: s.SlowStart,
			Leave: registrar.Leave{Notice: s.LeaveNotice, Drain: s.Drain, OnStop: registrar.Hook{Command: s.OnStop, Host: s.Host, Port: s.Port}},
		})
	}
	return out, nil
}
