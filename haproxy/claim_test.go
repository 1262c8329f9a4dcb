package haproxy

import (
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"runtime"
	"sync"
	"sync/atomic"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/myelin-sd/myelin/haproxy/haproxytest"
)

// claimed takes a claim that must be free.
func claimed(t *testing.T, path, config string) *Claim {
	t.Helper()
	c, err := ClaimSocket(path, config)
	require.NoError(t, err)
	t.Cleanup(c.Close)
	return c
}

// refused asks for a claim that another has.
func refused(t *testing.T, path string) *ClaimedError {
	t.Helper()
	c, err := ClaimSocket(path, "late.toml")
	if err == nil {
		c.Close()
	}
	var claimed *ClaimedError
	require.ErrorAs(t, err, &claimed)
	return claimed
}

// slotName is a name of the abstract name space, written down here once more: processes of two versions must agree.
func slotName(path string, slot int) string {
	sum := sha256.Sum256([]byte(path))
	return fmt.Sprintf("@myelin/%s/%d", hex.EncodeToString(sum[:16]), slot)
}

// hold listens on a name and answers with what a holder would answer, or not at all.
func hold(t *testing.T, name string, reply *claimReply) {
	t.Helper()
	l, err := net.Listen("unix", name)
	require.NoError(t, err)
	var all sync.WaitGroup
	t.Cleanup(func() { l.Close(); all.Wait() })
	all.Go(func() {
		for {
			conn, err := l.Accept()
			if err != nil {
				return
			}
			defer conn.Close()
			if reply != nil {
				_ = json.NewEncoder(conn).Encode(reply)
				conn.Close()
			}
		}
	})
}

func TestClaimIsForOne(t *testing.T) {
	dir := haproxytest.TempDir(t)
	socket, alias := filepath.Join(dir, "admin.sock"), filepath.Join(dir, "alias")
	require.NoError(t, os.Symlink(dir, alias))
	for _, second := range []string{socket, filepath.Join(alias, "admin.sock"), dir + "/./admin.sock"} {
		first := claimed(t, socket, "first.toml")
		e := refused(t, second)
		require.Equal(t, Holder{os.Getpid(), "first.toml"}, e.Holder)
		require.Equal(t, fmt.Sprintf("another myelin agent (pid %d, config first.toml) drives HAProxy at %s; stop it, or give this one another socket_file_path",
			os.Getpid(), second), e.Error())
		claimed(t, filepath.Join(dir, "other.sock"), "").Close()
		first.Close()
		first.Close()
		require.NoFileExists(t, socket+".myelin", "nothing is left behind")
		claimed(t, second, "").Close()
	}
}

// TestClaimOfALink: the socket itself may be a link, as where a service manager keeps it elsewhere.
func TestClaimOfALink(t *testing.T) {
	dir := haproxytest.TempDir(t)
	l, err := net.Listen("unix", filepath.Join(dir, "real.sock"))
	require.NoError(t, err)
	defer l.Close()
	require.NoError(t, os.Symlink("real.sock", filepath.Join(dir, "link.sock")))
	claimed(t, filepath.Join(dir, "link.sock"), "")
	refused(t, filepath.Join(dir, "real.sock"))
}

// TestSocketPath: one path, whatever of it is there already.
func TestSocketPath(t *testing.T) {
	dir, err := filepath.EvalSymlinks(t.TempDir())
	require.NoError(t, err)
	require.NoError(t, os.Mkdir(filepath.Join(dir, "run"), 0o755))
	for link, target := range map[string]string{"var": "run", "admin": "run/haproxy/admin.sock", "round": "round"} {
		require.NoError(t, os.Symlink(target, filepath.Join(dir, link)))
	}
	want := filepath.Join(dir, "run", "haproxy", "admin.sock")
	same := func() {
		t.Helper()
		for _, path := range []string{"run/haproxy/admin.sock", "var/haproxy/admin.sock", "admin", "var/../run/haproxy/./admin.sock"} {
			require.Equal(t, want, SocketPath(filepath.Join(dir, path)), path)
		}
	}
	same() // neither the socket nor its folder are there
	require.NoError(t, os.MkdirAll(filepath.Dir(want), 0o755))
	same()
	require.NoError(t, os.WriteFile(want, nil, 0o600))
	same()
	require.Equal(t, filepath.Join(dir, "round", "x"), SocketPath(filepath.Join(dir, "round", "x")), "a link to itself leads nowhere")
}

// TestClaimHoldsByEitherPart: the lock between network name spaces, the name where the folder is not there or was made
// anew.
func TestClaimHoldsByEitherPart(t *testing.T) {
	t.Run("lock", func(t *testing.T) {
		socket := filepath.Join(haproxytest.TempDir(t), "admin.sock")
		c := claimed(t, socket, "first.toml")
		require.NoError(t, c.listener.Close())
		require.Equal(t, Holder{os.Getpid(), "first.toml"}, refused(t, socket).Holder)
		require.FileExists(t, socket+".myelin", "the one refused leaves it")
		refused(t, socket)
	})
	t.Run("name, folder made anew", func(t *testing.T) {
		dir := filepath.Join(haproxytest.TempDir(t), "run")
		socket := filepath.Join(dir, "admin.sock")
		require.NoError(t, os.Mkdir(dir, 0o755))
		claimed(t, socket, "first.toml")
		require.NoError(t, os.RemoveAll(dir))
		require.Equal(t, Holder{os.Getpid(), "first.toml"}, refused(t, socket).Holder, "no folder")
		require.NoError(t, os.Mkdir(dir, 0o755))
		require.Equal(t, Holder{os.Getpid(), "first.toml"}, refused(t, socket).Holder, "another folder")
	})
	t.Run("name, no lock to be had", func(t *testing.T) {
		socket := filepath.Join(haproxytest.TempDir(t), "admin.sock")
		victim := filepath.Join(filepath.Dir(socket), "victim")
		require.NoError(t, os.WriteFile(victim, []byte("theirs"), 0o600))
		require.NoError(t, os.Symlink(victim, socket+".myelin"))
		claimed(t, socket, "first.toml")
		refused(t, socket)
		text, err := os.ReadFile(victim)
		require.NoError(t, err)
		require.Equal(t, "theirs", string(text), "a link is not followed")
	})
}

// TestClaimOfTheSamePathElsewhere: containers with one network name space may have a socket each at the same path.
func TestClaimOfTheSamePathElsewhere(t *testing.T) {
	socket := filepath.Join(haproxytest.TempDir(t), "admin.sock")
	hold(t, slotName(socket, 0), &claimReply{Holder{1, "elsewhere.toml"}, "7:7"})
	claimed(t, socket, "here.toml")
	require.Equal(t, "here.toml", refused(t, socket).Holder.Config)

	other := filepath.Join(haproxytest.TempDir(t), "admin.sock")
	hold(t, slotName(other, 0), &claimReply{Holder{1, "blind.toml"}, ""})
	require.Equal(t, "blind.toml", refused(t, other).Holder.Config, "one that cannot tell its folder may mean ours")
}

// TestClaimBehindAFreedName: a name in front that has become free does not hide who holds a later one.
func TestClaimBehindAFreedName(t *testing.T) {
	dir := haproxytest.TempDir(t)
	socket := filepath.Join(dir, "admin.sock")
	hold(t, slotName(socket, 3), &claimReply{Holder{1, "first.toml"}, folderOf(socket)})
	require.Equal(t, Holder{os.Getpid(), "first.toml"}, refused(t, socket).Holder)
	require.NoFileExists(t, socket+".myelin")
}

// TestClaimOfAStuckHolder: one that was stopped answers nothing, and may go on at any time.
func TestClaimOfAStuckHolder(t *testing.T) {
	socket := filepath.Join(haproxytest.TempDir(t), "admin.sock")
	hold(t, slotName(socket, 0), nil)
	require.Equal(t, Holder{Pid: os.Getpid()}, refused(t, socket).Holder)
}

// TestClaimUnderPressure: of many that come at once never two have it, and some one gets it; nor does the lock alone let
// two in, although it is removed by everyone who had it.
func TestClaimUnderPressure(t *testing.T) {
	for name, take := range map[string]func(string) (*Claim, error){
		"claim": func(socket string) (*Claim, error) { return ClaimSocket(socket, "") },
		"lock": func(socket string) (*Claim, error) {
			f, err := lockBeside(socket, Holder{})
			if err == nil && f == nil {
				err = errors.New("always in the way of others")
			}
			return &Claim{lock: f}, err
		},
	} {
		t.Run(name, func(t *testing.T) {
			socket := filepath.Join(haproxytest.TempDir(t), "admin.sock")
			var holders, turns atomic.Int32
			var together atomic.Bool
			var all sync.WaitGroup
			for range 8 {
				all.Go(func() {
					for turns.Load() < 40 {
						c, err := take(socket)
						if err != nil {
							continue
						}
						if holders.Add(1) > 1 {
							together.Store(true)
						}
						turns.Add(1)
						runtime.Gosched()
						holders.Add(-1)
						c.Close()
					}
				})
			}
			all.Wait()
			require.False(t, together.Load())
		})
	}
}

func TestMayDrive(t *testing.T) {
	socket := filepath.Join(haproxytest.TempDir(t), "admin.sock")
	require.True(t, mayDrive(0, socket))
	require.True(t, mayDrive(os.Geteuid(), socket))
	require.False(t, mayDrive(54321, socket))
}
