package agent

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"strings"
	"testing"

	"github.com/sirupsen/logrus"
	logtest "github.com/sirupsen/logrus/hooks/test"
	"github.com/stretchr/testify/require"

	"github.com/myelin-sd/myelin/config"
	"github.com/myelin-sd/myelin/discovery/zookeeper"
)

// crier takes announcements.
type crier struct {
	dir, name string
	data      []byte
}

func (c *crier) Announce(ctx context.Context, dir, name string, data []byte, _ func(error)) {
	c.dir, c.name, c.data = dir, name, data
	<-ctx.Done()
}

// TestConsumers: each ensemble is told once which of its paths are read, and of nothing else.
func TestConsumers(t *testing.T) {
	log := logrus.New()
	log.SetOutput(io.Discard)
	sessions := NewSessions(log)
	defer sessions.Close()
	one, two := config.ZooKeeper{Hosts: []string{"127.0.0.1:1"}}, config.ZooKeeper{Hosts: []string{"127.0.0.1:2"}}
	in := func(zk config.ZooKeeper, method, path string) config.Service {
		return config.Service{Discovery: config.Discovery{Method: method, Path: path, ZooKeeper: zk}}
	}
	c := &config.Agent{ConsumersPath: "/consumers", Services: []config.Service{
		in(one, "zookeeper", "/b"), in(two, "zookeeper", "/c"), in(one, "zookeeper_poll", "/a"), in(one, "zookeeper", "/b"), in(one, "base", ""),
	}}
	k := newConsumers(c, "1.2", sessions, log)
	require.Len(t, k.all, 2)
	criers := []*crier{{}, {}}
	for i := range k.all {
		k.all[i].session = criers[i]
	}
	ctx, cancel := context.WithCancel(context.Background())
	cancel()
	k.run(ctx)
	var told []string
	for _, c := range criers {
		consumer, err := DecodeConsumer(c.data)
		require.NoError(t, err)
		require.NotEmpty(t, consumer.Host)
		require.NotContains(t, c.name, "/")
		told = append(told, fmt.Sprint(c.dir, consumer.Version, consumer.Paths))
	}
	require.Equal(t, []string{"/consumers1.2[/a /b]", "/consumers1.2[/c]"}, told)

	c.ConsumersPath = ""
	require.Empty(t, newConsumers(c, "1.2", sessions, log).all)
	shadow := *c
	shadow.ConsumersPath = "/consumers"
	require.Empty(t, ofShadow(&shadow).ConsumersPath, "a shadow writes nothing")
}

func TestDecodeConsumer(t *testing.T) {
	for _, data := range []string{"", "junk", "{}", `{"host":1}`, `{"host":"h","paths":"/a"}`, `{"host":"h` + strings.Repeat("x", maxConsumer) + `"}`} {
		_, err := DecodeConsumer([]byte(data))
		require.ErrorContains(t, err, "decode consumer: ", "%.20s", data)
	}
	text, err := json.Marshal(Consumer{Host: "h", Version: "v", Paths: []string{"/a"}})
	require.NoError(t, err)
	got, err := DecodeConsumer(append(text[:len(text)-1], `,"later":1}`...))
	require.NoError(t, err)
	require.Equal(t, Consumer{Host: "h", Version: "v", Paths: []string{"/a"}}, got)
}

// TestConsumersLog: a trouble is said once, with what to do, and so is its end.
func TestConsumersLog(t *testing.T) {
	log, hook := logtest.NewNullLogger()
	told := (&consumers{path: "/consumers", log: log}).teller(config.ZooKeeper{Hosts: []string{"zk1"}})
	missing := fmt.Errorf("announce: %w", zookeeper.ErrNoPath)
	for _, err := range []error{nil, missing, missing, errors.New("other"), nil, nil} {
		told(err)
	}
	var lines []string
	for _, e := range hook.AllEntries() {
		lines = append(lines, e.Level.String()+" "+e.Message)
	}
	require.Equal(t, []string{
		"warning consumers_path is missing, so myelin fsck does not know what this agent reads; create it, zkCli.sh create /consumers, agents do not",
		"warning the registry cannot be told what this agent reads; trying again",
		"info the registry knows what this agent reads",
	}, lines)
}
