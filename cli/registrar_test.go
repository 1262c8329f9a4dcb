package cli

import (
	"os"
	"path/filepath"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/myelin-sd/myelin/config"
	"github.com/myelin-sd/myelin/discovery/zookeeper"
	"github.com/myelin-sd/myelin/registrar"
)

// TestRegistrations: a Nerve file becomes Nerve's nodes and payloads.
func TestRegistrations(t *testing.T) {
	file := filepath.Join(t.TempDir(), "nerve.conf.json")
	require.NoError(t, os.WriteFile(file, []byte(`{
  "instance_id": "i-1",
  "services": {
    "web": {"host": "10.0.0.1", "port": "3000", "zk_hosts": ["zk:2181"], "zk_path": "/services/web",
      "weight": 7, "haproxy_server_options": "backup", "labels": {"az": "a<b"},
      "checks": [{"type": "http", "uri": "/health", "timeout": 0.5}, {"type": "tcp", "rise": 3, "fall": 2}]},
    "one": {"host": "10.0.0.1", "port": 3001, "zk_hosts": ["zk:2181"], "zk_path": "/services/shared"},
    "two": {"host": "10.0.0.1", "port": 3002, "zk_hosts": ["zk:2181"], "zk_path": "/services/shared"},
    "fixed": {"host": "10.0.0.1", "port": 3003, "zk_hosts": ["zk:2181"], "zk_path": "/services/fixed", "node_type": "ephemeral"},
    "encoded": {"host": "10.0.0.1", "port": 3004, "zk_hosts": ["zk:2181"], "zk_path": "/services/encoded", "use_path_encoding": true}
  }
}`), 0o644))
	c, _, err := config.LoadRegistrar(file, config.Options{})
	require.NoError(t, err)
	services, err := registrations(c, registrar.NewReports(), func(config.ZooKeeper) *zookeeper.Session { return nil })
	require.NoError(t, err)
	byName := map[string]registrar.Service{}
	for _, s := range services {
		byName[s.Name] = s
	}

	web := byName["web"]
	require.Equal(t, `{"host":"10.0.0.1","port":"3000","name":"i-1","weight":7,"haproxy_server_options":"backup","labels":{"az":"a<b"}}`,
		string(web.Registration.Data))
	require.Equal(t, "i-1_", web.Registration.Prefix)
	require.True(t, web.Registration.Sequential)
	require.Len(t, web.Checks, 2)
	require.Equal(t, 700*time.Millisecond, web.Checks[0].Timeout, "200 ms to connect, 500 ms to answer")
	require.Equal(t, [2]int{3, 2}, [2]int{web.Checks[1].Rise, web.Checks[1].Fall})

	require.Equal(t, "i-1_3001_", byName["one"].Registration.Prefix, "two services in one path are told apart")
	require.Equal(t, "i-1_3002_", byName["two"].Registration.Prefix)
	require.False(t, byName["fixed"].Registration.Sequential)
	require.Equal(t, "i-1_", byName["fixed"].Registration.Prefix)
	require.Regexp(t, `^base64_\d+_[A-Za-z0-9_=-]+_$`, byName["encoded"].Registration.Prefix)
}

// TestRegistrationsOfOneEnsemble: hosts in another order are the same ensemble, so that two services in one path of it
// are told apart.
func TestRegistrationsOfOneEnsemble(t *testing.T) {
	a, _ := command(t, "registrar.toml", `
instance_id = "i-1"
[services.one]
host = "10.0.0.1"
port = 3001
zk_path = "/services/shared"
zk_hosts = "zk1,zk2"
[services.two]
host = "10.0.0.1"
port = 3002
zk_path = "/services/shared"
zk_hosts = "zk2,zk1"
`)
	c, _, err := a.loadRegistrar(registrarFile{path: a.configFile})
	require.NoError(t, err)
	same := new(zookeeper.Session)
	services, err := registrations(c, registrar.NewReports(), func(config.ZooKeeper) *zookeeper.Session { return same })
	require.NoError(t, err)
	require.NoError(t, registrar.Validate(services))
	require.Equal(t, "i-1_3001_", services[0].Registration.Prefix)
}
