package cli

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"io"
	"path"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/sirupsen/logrus"

	"github.com/myelin-sd/myelin/agent"
	"github.com/myelin-sd/myelin/config"
	"github.com/myelin-sd/myelin/discovery"
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
	s := pool.Get(zk)
	a.latest.Store(s)
	return s, nil
}

// questionLog is the log of a question: silent, since its answer says what there is to say, unless --log-level asks for it.
func (a *app) questionLog() *logrus.Logger {
	if a.logLevel != "" {
		if log, err := a.logger(config.Log{}); err == nil { // the level was checked before
			return log
		}
	}
	log := logrus.New()
	log.SetOutput(io.Discard)
	return log
}

// ask opens a session, asks, and closes. An ensemble that cannot be reached is said with its reason.
func (a *app) ask(ctx context.Context, zk config.ZooKeeper, question func(context.Context, *zookeeper.Session) error) error {
	pool := agent.NewSessions(a.questionLog())
	defer pool.Close()
	s, err := a.open(pool, zk)
	if err != nil {
		return err
	}
	asking, cancel := context.WithTimeout(ctx, a.timeout)
	defer cancel()
	a.answerFast()
	began := time.Now()
	err = question(asking, s)
	switch stop := stopped(ctx); {
	case err != nil && stop != nil:
		return stop
	case err != nil && errors.Is(asking.Err(), context.Canceled): // somebody has lost patience before
		return notHeard(zk, s, time.Since(began).Round(time.Millisecond))
	case err != nil && asking.Err() != nil:
		return notHeard(zk, s, a.timeout)
	}
	return err
}

// nodeInfo is one registration as instances shows it. The JSON names are part of the interface.
type nodeInfo struct {
	Service  string         `json:"service"`
	Node     string         `json:"node"`
	Host     string         `json:"host,omitempty"`
	Port     uint16         `json:"port,omitempty"`
	Name     string         `json:"name"`
	Weight   *int           `json:"weight"`
	Labels   map[string]any `json:"labels"`
	Session  string         `json:"session"`
	Created  time.Time      `json:"created"`
	Modified time.Time      `json:"modified"`
	State    string         `json:"state"` // ok, leaving or rejected
	Reason   string         `json:"reason,omitempty"`

	options []string
}

// snapshot reads one path and decodes what lies in it: instances sorted as in a discovery.Snapshot, then what is rejected
// by node.
func snapshot(ctx context.Context, s *zookeeper.Session, service, from string) ([]*nodeInfo, error) {
	var decoder discovery.AnyDecoder
	var instances []nodeInfo
	var order []place
	var closed error
	var rejected []*nodeInfo
	reject := func(r discovery.Rejection) {
		rejected = append(rejected, &nodeInfo{
			Service: service, Node: r.Node, Labels: orEmpty(nil), Session: sessionID(r.Session), Created: r.Created, Modified: r.Modified,
			State: "rejected", Reason: r.Reason + ": " + r.Detail,
		})
	}
	err := s.Walk(ctx, []string{from}, zookeeper.Walk{
		Folder: func(f zookeeper.Folder) {
			instances, order = make([]nodeInfo, 0, f.Names), make([]place, 0, f.Names)
		},
		Node: func(_ string, n zookeeper.Node) {
			in, err := decoder.Decode(n.Name, n.Data)
			if err != nil {
				reject(rejection(n, err))
				return
			}
			in.Session, in.Created, in.Modified = n.Owner, n.Created, n.Modified
			order = append(order, place{in.Endpoint, len(instances)})
			instances = append(instances, instanceInfo(service, &in))
		},
		Unread: func(p string, err error) {
			if p == cleanPath(from) {
				closed = fmt.Errorf("read %s: %w", p, err)
				return
			}
			reject(discovery.Rejection{Node: p[strings.LastIndexByte(p, '/')+1:], Reason: discovery.ReasonUnreadable, Detail: err.Error()})
		},
		Enter: func(string) bool { return false },
	})
	if err = cmp.Or(err, closed); err != nil {
		return nil, err
	}
	slices.SortFunc(order, func(a, b place) int {
		if c := a.endpoint.Compare(b.endpoint); c != 0 {
			return c
		}
		one, other := &instances[a.at], &instances[b.at]
		return cmp.Or(strings.Compare(one.Name, other.Name), strings.Compare(one.Node, other.Node))
	})
	slices.SortFunc(rejected, func(a, b *nodeInfo) int { return strings.Compare(a.Node, b.Node) })
	infos := make([]*nodeInfo, 0, len(instances)+len(rejected))
	for _, p := range order {
		infos = append(infos, &instances[p.at])
	}
	return append(infos, rejected...), nil
}

// place is an instance as it is sorted, which is large to move, by what mostly decides.
type place struct {
	endpoint discovery.Endpoint
	at       int // in the list
}

// cleanPath is a path as walks tell of it.
func cleanPath(p string) string { return path.Clean("/" + p) }

// rejection is what a decoder's error says about a node.
func rejection(n zookeeper.Node, err error) discovery.Rejection {
	r := discovery.Rejection{
		Node: n.Name, Reason: discovery.ReasonUndecodable, Detail: err.Error(), Session: n.Owner, Created: n.Created, Modified: n.Modified,
	}
	if why, ok := errors.AsType[*discovery.RejectError](err); ok {
		r.Reason, r.Detail = why.Reason, why.Detail
	}
	return r
}

func instanceInfo(service string, in *discovery.Instance) nodeInfo {
	state := "ok"
	if in.Leaving {
		state = "leaving"
	}
	return nodeInfo{
		Service: service, Node: in.Node, Host: in.Endpoint.Host(), Port: in.Endpoint.Port(), Name: in.Name,
		Weight: in.Weight, Labels: orEmpty(in.Labels), Session: sessionID(in.Session), Created: in.Created,
		Modified: in.Modified, State: state, options: in.ServerOptions,
	}
}

// orEmpty makes labels an object in JSON, with or without entries.
func orEmpty(labels map[string]any) map[string]any {
	if labels == nil {
		return map[string]any{}
	}
	return labels
}

// sessionID writes a session as ZooKeeper's own tools do; empty for a node that is not ephemeral.
func sessionID(id int64) string {
	if id == 0 {
		return ""
	}
	return string(strconv.AppendUint(append(make([]byte, 0, 18), "0x"...), uint64(id), 16))
}
