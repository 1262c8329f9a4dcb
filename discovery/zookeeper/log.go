package zookeeper

import (
	"fmt"
	"strings"

	"github.com/sirupsen/logrus"
)

// libraryLog takes the client library's lines: they go to the debug level, and failed attempts are noted. The library
// writes one per attempt, for ever.
type libraryLog struct {
	log  logrus.FieldLogger
	note func(line string)
}

func (l libraryLog) Printf(format string, args ...any) {
	line := fmt.Sprintf(format, args...)
	l.log.WithField("err", line).Debug("zookeeper client")
	if failed(line) {
		l.note(explain(line))
	}
}

// failed tells the lines about failed attempts and lost connections from the others (conn.go of v1.0.4).
func failed(line string) bool {
	for _, prefix := range []string{"failed to connect", "authentication failed", "recv loop terminated", "send loop terminated"} {
		if strings.HasPrefix(line, prefix) && !strings.HasSuffix(line, "terminated: <nil>") {
			return true
		}
	}
	return false
}

const sessionExpired = "the session has expired"

// explain puts what the library says into words that help. A server that does not want a connection closes it
// without a word, whatever the reason.
func explain(line string) string {
	switch {
	case strings.HasPrefix(line, "authentication failed") && (strings.HasSuffix(line, "EOF") || strings.Contains(line, "reset by peer")):
		return "the server closed the connection instead of answering: it has no quorum or is starting, has too many connections " +
			"from this address (maxClientCnxns), wants TLS or does not, or its data is older than what this client has seen " +
			"(a member that lags behind, or a store that was wiped or restored)"
	case strings.HasPrefix(line, "authentication failed") && strings.Contains(line, "i/o timeout"):
		return "the server accepted the connection and did not answer"
	case strings.HasPrefix(line, "authentication failed: log in"):
		return strings.TrimPrefix(line, "authentication failed: ") + "; see zookeeper.auth"
	case strings.HasPrefix(line, "authentication failed: zk: session has been expired"):
		return sessionExpired
	}
	for _, prefix := range []string{"authentication failed: ", "recv loop terminated: ", "send loop terminated: "} {
		line = strings.TrimPrefix(line, prefix)
	}
	return line
}
