package zookeeper_test

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"net"
	"os"
	"testing"
	"time"

	"github.com/go-zookeeper/zk"
	"github.com/stretchr/testify/require"

	"github.com/myelin-sd/myelin/discovery/zookeeper"
	"github.com/myelin-sd/myelin/discovery/zookeeper/zktest"
)

// TestAskWord: a server is asked by itself, in words that it allows and in others, and one that is not there.
func TestAskWord(t *testing.T) {
	t.Parallel()
	zks := zktest.New(t, zktest.Options{Config: map[string]string{"4lw.commands.whitelist": "srvr"}})
	a, err := zookeeper.AskWord(within(t, patience), zookeeper.Options{}, zks.Addr(), "srvr")
	require.NoError(t, err)
	require.Contains(t, a.Text, "Mode: standalone")
	require.Equal(t, zks.Addr(), a.Remote.String())
	require.Empty(t, a.Certificates)
	_, err = zookeeper.AskWord(within(t, patience), zookeeper.Options{}, zks.Addr(), "mntr")
	require.ErrorIs(t, err, zookeeper.ErrWordRefused)

	require.NoError(t, zks.Stop())
	_, err = zookeeper.AskWord(within(t, patience), zookeeper.Options{}, zks.Addr(), "srvr")
	require.ErrorContains(t, err, "connection refused")

	// One that takes the connection and says nothing.
	l, err := net.Listen("tcp", "127.0.0.1:0")
	require.NoError(t, err)
	defer l.Close()
	_, err = zookeeper.AskWord(within(t, 50*time.Millisecond), zookeeper.Options{}, l.Addr().String(), "srvr")
	require.ErrorIs(t, err, context.DeadlineExceeded)
}

// TestAskWordOverTLS: the certificate that the server shows is told.
func TestAskWordOverTLS(t *testing.T) {
	t.Parallel()
	zks := zktest.New(t, zktest.Options{TLS: true})
	ca, err := os.ReadFile(zks.TLSFiles().CA)
	require.NoError(t, err)
	pool := x509.NewCertPool()
	require.True(t, pool.AppendCertsFromPEM(ca))
	var a zookeeper.Answer
	require.Eventually(t, func() bool { // the secure port opens behind the plain one
		a, err = zookeeper.AskWord(within(t, patience), zookeeper.Options{TLS: &tls.Config{RootCAs: pool}}, zks.SecureAddr(), "srvr")
		return err == nil
	}, patience, poll)
	require.Contains(t, a.Text, "Zookeeper version")
	require.Equal(t, "localhost", a.Certificates[0].Subject.CommonName)
}

// TestAccess: who may do what is told for the one who asks; digests are not.
func TestAccess(t *testing.T) {
	zks := server(t)
	w := writer(t, zks.Addr())
	create(t, w, "/open", "", 0)
	create(t, w, "/closed", "", 0)
	_, err := w.SetACL("/closed", append(zk.DigestACL(zk.PermAll, "agent", "s3cret"), zk.WorldACL(zk.PermRead|zk.PermCreate)...), -1)
	require.NoError(t, err)
	create(t, w, "/private", "", 0)
	_, err = w.SetACL("/private", append(zk.DigestACL(zk.PermAll, "agent", "s3cret"), zk.WorldACL(zk.PermRead)...), -1)
	require.NoError(t, err)
	all := zookeeper.Access{Text: "world:anyone:cdrwa", AnyoneCreates: true, AnyoneDeletes: true, AnyoneWrites: true, AnyoneAdmins: true, MineCreates: true}
	private := zookeeper.Access{Text: "digest:agent:cdrwa,world:anyone:r"}
	mine := private
	mine.MineCreates = true
	for _, c := range []struct {
		login string
		path  string
		want  zookeeper.Access
	}{
		{"", "/open", all},
		{"", "/closed", zookeeper.Access{Text: "digest:agent:cdrwa,world:anyone:cr", AnyoneCreates: true, MineCreates: true}},
		{"", "/private", private}, {"agent:s3cret", "/private", mine}, {"agent:other", "/private", private}, {"other:s3cret", "/private", private},
	} {
		o := zookeeper.Options{Hosts: []string{zks.Addr()}}
		if c.login != "" {
			o.Logins = []zookeeper.Login{{Scheme: "digest", Credentials: []byte(c.login)}}
		}
		s := open(t, o)
		got, err := s.Access(within(t, patience), c.path)
		require.NoError(t, err)
		require.Equal(t, c.want, got, "%q at %s", c.login, c.path)
		_, err = s.Access(within(t, patience), "/nothing")
		require.ErrorIs(t, err, zookeeper.ErrNoPath)
	}
}

// TestWriteTest: a node is made and goes; where it could be taken for an instance none is made.
func TestWriteTest(t *testing.T) {
	zks := server(t)
	w := writer(t, zks.Addr())
	create(t, w, "/scratch", "", 0)
	create(t, w, "/scratch/a", "", 0)
	create(t, w, "/web", "", 0)
	create(t, w, "/web/web-1", payload(1), 0)
	create(t, w, "/live", "", 0)
	create(t, w, "/live/x", "", zk.FlagEphemeral)
	create(t, w, "/chroot", "", 0)
	create(t, w, "/chroot/scratch", "", 0)
	create(t, w, "/closed", "", 0)
	_, err := w.SetACL("/closed", zk.WorldACL(zk.PermRead), -1)
	require.NoError(t, err)

	for _, o := range []zookeeper.Options{{}, {Chroot: "/chroot"}} {
		o.Hosts = []string{zks.Addr()}
		s := open(t, o)
		before := time.Now()
		got, err := s.WriteTest(within(t, patience), "/scratch")
		require.NoError(t, err)
		require.False(t, got.Before.Before(before))
		require.False(t, got.After.Before(got.Before))
		// It is one machine, so one clock; the server's has milliseconds.
		require.WithinRange(t, got.Created, got.Before.Add(-time.Millisecond), got.After.Add(time.Millisecond))
		require.Equal(t, []string{"a"}, names(t, w, "/scratch"))
		require.Empty(t, names(t, w, "/chroot/scratch"))
		for path, why := range map[string]string{"/nothing": "does not exist"} {
			_, err := s.WriteTest(within(t, patience), path)
			require.ErrorContains(t, err, why)
		}
	}
	s := open(t, zookeeper.Options{Hosts: []string{zks.Addr()}})
	for path, why := range map[string]string{"/web": "could be taken for one", "/live": "could be taken for one", "/closed": "not authenticated"} {
		_, err := s.WriteTest(within(t, patience), path)
		require.ErrorContains(t, err, why)
	}
	require.Equal(t, []string{"web-1"}, names(t, w, "/web"))
	require.Equal(t, []string{"x"}, names(t, w, "/live"))
}

// TestListing: the size is that of the reply.
func TestListing(t *testing.T) {
	zks := server(t)
	w := writer(t, zks.Addr())
	create(t, w, "/web", "", 0)
	create(t, w, "/web/abcd", "", 0)
	create(t, w, "/web/ef", "", 0)
	s := open(t, zookeeper.Options{Hosts: []string{zks.Addr()}})
	got, err := s.Listing(within(t, patience), "/web")
	require.NoError(t, err)
	require.Equal(t, zookeeper.Listing{Children: 2, Bytes: 92 + 4 + 4 + 4 + 2}, got)
	voters, err := s.Voters(within(t, patience))
	require.NoError(t, err)
	require.Empty(t, voters) // a server alone
}

// TestVoters: the ensemble tells who votes.
func TestVoters(t *testing.T) {
	t.Parallel()
	e := zktest.NewEnsemble(t)
	s := open(t, zookeeper.Options{Hosts: e.Hosts(), Chroot: "/elsewhere"})
	voters, err := s.Voters(within(t, patience))
	require.NoError(t, err)
	require.Len(t, voters, 3)
	for _, v := range voters {
		_, _, err := net.SplitHostPort(v)
		require.NoError(t, err)
	}
}
