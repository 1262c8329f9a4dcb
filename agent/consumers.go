package agent

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"slices"
	"strings"
	"sync"

	"github.com/sirupsen/logrus"

	"github.com/myelin-sd/myelin/config"
	"github.com/myelin-sd/myelin/discovery/zookeeper"
)

// Consumer is what an agent says about itself in the registry, below consumers_path.
type Consumer struct {
	Host    string   `json:"host"`
	Version string   `json:"version"`
	Paths   []string `json:"paths"` // of the services that it reads in this ensemble, sorted
}

// maxConsumer is how many bytes of a consumer's node are decoded: as much as ZooKeeper takes.
const maxConsumer = 1 << 20

// DecodeConsumer reads the data of a consumer's node.
func DecodeConsumer(data []byte) (Consumer, error) {
	var c Consumer
	if len(data) > maxConsumer {
		return c, fmt.Errorf("decode consumer: it has %d bytes, more than %d", len(data), maxConsumer)
	}
	if err := json.Unmarshal(data, &c); err != nil {
		return c, fmt.Errorf("decode consumer: %w", err)
	}
	if c.Host == "" {
		return c, errors.New("decode consumer: it names no host")
	}
	return c, nil
}

// SameAccess tells whether two configurations mean one session: the same ensemble, login, TLS and way to watch.
func SameAccess(a, b config.ZooKeeper) bool { return accessOf(a) == accessOf(b) }

// consumers tell the registry what this agent reads: one ephemeral node in each ensemble.
type consumers struct {
	path string
	name string // what the nodes' names begin with
	all  []consumerIn
	log  logrus.FieldLogger
}

// consumerIn is what is told in one ensemble.
type consumerIn struct {
	zk       config.ZooKeeper
	session  announcer
	consumer Consumer
}

// announcer is a session as this is done with.
type announcer interface {
	Announce(ctx context.Context, dir, name string, data []byte, told func(error))
}

// newConsumers has nothing to tell unless the configuration says where.
func newConsumers(c *config.Agent, version string, sessions *Sessions, log logrus.FieldLogger) *consumers {
	k := &consumers{path: c.ConsumersPath, log: log}
	if k.path == "" {
		return k
	}
	host, err := os.Hostname()
	if err != nil || host == "" {
		host = "unknown"
	}
	k.name = strings.ReplaceAll(host, "/", "_")
	for _, s := range c.Services {
		if !strings.HasPrefix(s.Discovery.Method, "zookeeper") || s.Discovery.Path == "" {
			continue
		}
		i := slices.IndexFunc(k.all, func(in consumerIn) bool { return SameAccess(in.zk, s.Discovery.ZooKeeper) })
		if i < 0 {
			i = len(k.all)
			k.all = append(k.all, consumerIn{
				zk: s.Discovery.ZooKeeper, session: sessions.Get(s.Discovery.ZooKeeper), consumer: Consumer{Host: host, Version: version},
			})
		}
		k.all[i].consumer.Paths = append(k.all[i].consumer.Paths, s.Discovery.Path)
	}
	return k
}

// run keeps the nodes until ctx is done, and deletes them then.
func (k *consumers) run(ctx context.Context) {
	var all sync.WaitGroup
	defer all.Wait()
	for _, in := range k.all {
		slices.Sort(in.consumer.Paths)
		in.consumer.Paths = slices.Compact(in.consumer.Paths)
		data, err := json.Marshal(in.consumer)
		if err != nil { // text alone cannot fail
			continue
		}
		all.Go(func() { in.session.Announce(ctx, k.path, k.name, data, k.teller(in.zk)) })
	}
}

// teller logs each trouble once, and its end.
func (k *consumers) teller(zk config.ZooKeeper) func(error) {
	log, before := k.log.WithFields(logrus.Fields{"path": k.path, "addr": ensembleName(zk)}), ""
	return func(err error) {
		switch {
		case err == nil && before != "":
			before = ""
			log.Info("the registry knows what this agent reads")
		case err == nil || err.Error() == before:
		case errors.Is(err, zookeeper.ErrNoPath):
			before = err.Error()
			log.WithField("err", err).Warnf("consumers_path is missing, so myelin fsck does not know what this agent reads; create it, zkCli.sh create %s, agents do not", k.path)
		default:
			before = err.Error()
			log.WithField("err", err).Warn("the registry cannot be told what this agent reads; trying again")
		}
	}
}
