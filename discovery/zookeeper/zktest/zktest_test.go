package zktest_test

import (
	"io"
	"net"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/myelin-sd/myelin/discovery/zookeeper/zktest"
)

// TestServer goes through a server's life.
func TestServer(t *testing.T) {
	s := zktest.New(t)
	answers := func() bool { a, err := s.Ask("ruok"); return err == nil && a == "imok" }
	require.True(t, answers())
	addr := s.Addr()

	require.NoError(t, s.Stop())
	require.False(t, answers())
	require.NoError(t, s.Stop(), "stopping twice")
	require.Error(t, s.Pause())
	require.NoError(t, s.Start())
	require.Error(t, s.Start(), "starting twice")
	require.Equal(t, addr, s.Addr())
	require.True(t, answers())
	require.Error(t, s.Wipe(), "a running server")

	require.NoError(t, s.Pause())
	c, err := net.Dial("tcp", addr) // the kernel takes the connection
	require.NoError(t, err)
	defer c.Close()
	_, err = io.WriteString(c, "ruok")
	require.NoError(t, err)
	require.NoError(t, c.SetReadDeadline(time.Now().Add(200*time.Millisecond)))
	_, err = c.Read(make([]byte, 4))
	require.Error(t, err, "a frozen server must not answer")
	require.NoError(t, s.Resume())
	require.NoError(t, c.SetReadDeadline(time.Now().Add(10*time.Second)))
	answer, err := io.ReadAll(c)
	require.NoError(t, err)
	require.Equal(t, "imok", string(answer))

	require.ErrorContains(t, s.Expire(0x1234), "no such session")
	require.NoError(t, s.Restart())
	require.True(t, answers())
}

// TestOptions: further lines and arguments arrive, and win over the package's own.
func TestOptions(t *testing.T) {
	tmp := t.TempDir()
	s := zktest.New(t, zktest.Options{
		JavaOptions: []string{"-Djava.io.tmpdir=" + tmp},
		Config:      map[string]string{"maxSessionTimeout": "5000"},
	})
	require.EqualValues(t, 5000, connect(t, s.Addr()).timeout)
	environment, err := s.Ask("envi")
	require.NoError(t, err)
	require.Contains(t, environment, "java.io.tmpdir="+tmp+"\n")
	require.Empty(t, s.SecureAddr())
	require.Empty(t, s.TLSFiles())
}

// TestState: the server's own word on its role and counters, and the kernel's on its work.
func TestState(t *testing.T) {
	s := zktest.New(t)
	role, err := s.Role()
	require.NoError(t, err)
	require.Equal(t, zktest.RoleStandalone, role)
	connect(t, s.Addr()).create(t, "/node")
	counters, err := s.Counters()
	require.NoError(t, err)
	require.Equal(t, "standalone", counters["zk_server_state"])
	require.Equal(t, "6", counters["zk_znode_count"], "ZooKeeper's own five and one") // /zookeeper/config, /quota, ...

	before, err := s.CPU()
	require.NoError(t, err)
	require.Positive(t, before)
	require.Less(t, before, 10*time.Minute, "the unit is wrong")
	require.Eventually(t, func() bool {
		_, err := s.Ask("mntr")
		after, cpuErr := s.CPU()
		return err == nil && cpuErr == nil && after > before
	}, 30*time.Second, time.Millisecond)

	require.NoError(t, s.Kill())
	_, err = s.CPU()
	require.ErrorContains(t, err, "it is stopped")
	_, err = s.Role()
	require.Error(t, err)
	_, err = s.Counters()
	require.Error(t, err)
}
