package zktest

import (
	"fmt"
	"maps"
	"net"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"time"
)

// Options of a server, or of all the members of an ensemble. The zero value is good for most tests.
type Options struct {
	// TickTime is ZooKeeper's unit of time: sessions last between two ticks and 60 s, and end up to one tick late.
	// 0: 200 ms.
	TickTime time.Duration

	// MaxClientCnxns is how many connections one address may have. 0: any number.
	MaxClientCnxns int

	// TLS opens a secure client port beside the plain one; see Server.SecureAddr and Server.TLSFiles. The server then
	// uses Netty for both.
	TLS bool

	// NeedClientCertificate lets the secure port refuse clients without a certificate of the server's CA. Otherwise
	// it asks for none.
	NeedClientCertificate bool

	// JavaOptions are further arguments of java, before the class. They win over the package's own: "-Xmx1g".
	JavaOptions []string

	// Config is further lines of zoo.cfg, by key. They win over the package's own.
	Config map[string]string
}

// How long a member may be silent before the others go on without it, and how long it may take to copy the data.
const (
	silenceLimit = 3 * time.Second
	copyLimit    = 20 * time.Second
)

// membership is a server's place in an ensemble.
type membership struct {
	id      int    // from 1
	servers string // the lines of zoo.cfg that name all members
}

func (o Options) filled() Options {
	if o.TickTime <= 0 {
		o.TickTime = 200 * time.Millisecond
	}
	return o
}

func (o Options) javaArguments(classpath, config string) []string {
	arguments := []string{
		"-Xmx128m", "-XX:+UseSerialGC", "-XX:TieredStopAtLevel=1", "-Xshare:auto",
		"-Djava.net.preferIPv4Stack=true",
		"-Dzookeeper.admin.enableServer=false", // else every server wants port 8080
		"-Dzookeeper.forceSync=no",             // nobody needs this data after a power cut
		"-Dzookeeper.preAllocSize=128",         // KB; the default is a 64 MB file each
		"-Dorg.slf4j.simpleLogger.defaultLogLevel=warn", "-Dorg.slf4j.simpleLogger.showDateTime=true",
		// A member that looks for the others asks them ever less often, by default once a minute at last.
		"-Dzookeeper.fastleader.maxNotificationInterval=1000",
	}
	arguments = append(arguments, o.JavaOptions...)
	return append(arguments, "-cp", classpath, "org.apache.zookeeper.server.quorum.QuorumPeerMain", config)
}

// writeConfig writes zoo.cfg, and for a member the file that tells it which one it is. Wipe removes the latter.
func (s *Server) writeConfig() (string, error) {
	text, err := s.config()
	if err != nil {
		return "", fmt.Errorf("write zookeeper's configuration: %w", err)
	}
	if s.member != nil {
		if err := os.MkdirAll(s.dataDir(), 0o755); err != nil {
			return "", fmt.Errorf("write zookeeper's configuration: %w", err)
		}
		id := []byte(strconv.Itoa(s.member.id))
		if err := os.WriteFile(filepath.Join(s.dataDir(), "myid"), id, 0o644); err != nil {
			return "", fmt.Errorf("write zookeeper's configuration: %w", err)
		}
	}
	file := filepath.Join(s.dir, "zoo.cfg")
	if err := os.WriteFile(file, []byte(text), 0o644); err != nil {
		return "", fmt.Errorf("write zookeeper's configuration: %w", err)
	}
	return file, nil
}

func (s *Server) dataDir() string { return filepath.Join(s.dir, "data") }

func (s *Server) config() (string, error) {
	host, port, err := net.SplitHostPort(s.addr)
	if err != nil {
		return "", err
	}
	var b strings.Builder
	tick := s.o.TickTime.Milliseconds()
	fmt.Fprintf(&b, "tickTime=%d\nminSessionTimeout=%d\nmaxSessionTimeout=60000\ndataDir=%s\n", tick, 2*tick, s.dataDir())
	fmt.Fprintf(&b, "clientPortAddress=%s\nclientPort=%s\nmaxClientCnxns=%d\n", host, port, s.o.MaxClientCnxns)
	fmt.Fprintf(&b, "4lw.commands.whitelist=*\n")
	if s.member != nil {
		fmt.Fprintf(&b, "initLimit=%d\nsyncLimit=%d\n", ticks(copyLimit, s.o.TickTime), ticks(silenceLimit, s.o.TickTime))
		b.WriteString(s.member.servers)
	}
	if s.o.TLS {
		if err := s.secureConfig(&b); err != nil {
			return "", err
		}
	}
	for _, key := range slices.Sorted(maps.Keys(s.o.Config)) {
		fmt.Fprintf(&b, "%s=%s\n", key, s.o.Config[key]) // the last line of a key wins
	}
	return b.String(), nil
}

// ticks is d in ticks, rounded up, and no less than ZooKeeper can work with.
func ticks(d, tick time.Duration) int { return max(2, int((d+tick-1)/tick)) }

func (s *Server) secureConfig(b *strings.Builder) error {
	host, port, err := net.SplitHostPort(s.secureAddr)
	if err != nil {
		return err
	}
	clientAuth := "none"
	if s.o.NeedClientCertificate {
		clientAuth = "need"
	}
	fmt.Fprintf(b, "serverCnxnFactory=org.apache.zookeeper.server.NettyServerCnxnFactory\n")
	fmt.Fprintf(b, "secureClientPortAddress=%s\nsecureClientPort=%s\nssl.clientAuth=%s\n", host, port, clientAuth)
	fmt.Fprintf(b, "ssl.keyStore.type=PEM\nssl.keyStore.location=%s\n", s.files.keyStore())
	fmt.Fprintf(b, "ssl.trustStore.type=PEM\nssl.trustStore.location=%s\n", s.files.CA)
	return nil
}
