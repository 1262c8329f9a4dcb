package cli

import (
	"cmp"
	"context"
	"io"
	"strings"
	"time"

	"github.com/sirupsen/logrus"

	"github.com/myelin-sd/myelin/agent"
	"github.com/myelin-sd/myelin/config"
	"github.com/myelin-sd/myelin/discovery/zookeeper"
)

const (
	zookeeperVariable = "MYELIN_ZOOKEEPER"
	defaultRoot       = "/services" // where services are, if nobody says something else
)

// registry is what the question commands read from: an ensemble, and the services of the file, if one was given.
type registry struct {
	zk       config.ZooKeeper
	services []config.Service
}

// registry finds out where to ask: --zookeeper and MYELIN_ZOOKEEPER go before the file.
func (a *app) registry() (registry, error) {
	var r registry
	if a.configFile != "" {
		kind, err := config.Detect(a.configFile, a.options(false))
		if err != nil {
			return r, err
		}
		if kind == config.KindRegistrar {
			c, _, err := config.LoadRegistrar(a.configFile, a.options(false))
			if err != nil {
				return r, err
			}
			r.zk = c.ZooKeeper
			for _, s := range c.Services {
				if len(r.zk.Hosts) == 0 {
					r.zk = s.ZooKeeper
				}
				r.services = append(r.services, config.Service{Name: s.Name,
					Discovery: config.Discovery{Method: "zookeeper", Path: s.ZKPath, ZooKeeper: s.ZooKeeper}})
			}
		} else {
			c, _, err := config.LoadAgent(a.configFile, a.options(false))
			if err != nil {
				return r, err
			}
			r.zk, r.services = c.ZooKeeper, c.Services
		}
	}
	if a.zookeeper != "" {
		hosts, chroot, err := config.ParseHosts(a.zookeeper)
		if err != nil {
			return r, usage("--zookeeper %q: %w", a.zookeeper, err)
		}
		// How to speak to an ensemble stays what the file says; where it is does not.
		r.zk.Hosts, r.zk.Chroot = hosts, chroot
		for i := range r.services {
			zk := &r.services[i].Discovery.ZooKeeper
			zk.Hosts, zk.Chroot = hosts, chroot
		}
	}
	return r, nil
}

// path turns a service's name or an absolute path into a path and the ensemble it lies in.
func (r registry) path(name string) (string, config.ZooKeeper) {
	if strings.HasPrefix(name, "/") {
		return name, r.zk
	}
	for _, s := range r.services {
		if s.Name == name && s.Discovery.Path != "" {
			return s.Discovery.Path, s.Discovery.ZooKeeper
		}
	}
	return defaultRoot + "/" + name, r.zk
}

// sessionTimeout of questions: short, so that an answer "cannot be reached" does not take long.
const sessionTimeout = 10 * time.Second

// open starts a session of the pool for a question.
func (a *app) open(pool *agent.Sessions, zk config.ZooKeeper) (*zookeeper.Session, error) {
	if len(zk.Hosts) == 0 {
		return nil, usage("which ZooKeeper? give it with --zookeeper HOSTS, MYELIN_ZOOKEEPER or -c FILE")
	}
	zk.SessionTimeout = cmp.Or(zk.SessionTimeout, sessionTimeout)
	return pool.Get(zk), nil
}

// ask opens a session, asks, and closes. An ensemble that cannot be reached is said with its reason.
func (a *app) ask(ctx context.Context, zk config.ZooKeeper, question func(context.Context, *zookeeper.Session) error) error {
	log := logrus.New()
	log.SetOutput(io.Discard)
	if a.logLevel != "" {
		var err error
		if log, err = a.logger(config.Log{}); err != nil {
			return err
		}
	}
	pool := agent.NewSessions(log)
	defer pool.Close()
	s, err := a.open(pool, zk)
	if err != nil {
		return err
	}
	ctx, cancel := context.WithTimeout(ctx, a.timeout)
	defer cancel()
	err = question(ctx, s)
	if err != nil && ctx.Err() != nil {
		return a.notHeard(zk, s)
	}
	return err
}

// nodeInfo is one registration as instances shows it. Its JSON is part of the interface.
type nodeInfo = agent.InstanceInfo
