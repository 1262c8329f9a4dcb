package agent

import (
	"io"
	"path/filepath"

	"github.com/sirupsen/logrus"

	"github.com/myelin-sd/myelin/config"
	"github.com/myelin-sd/myelin/discovery/zookeeper"
	"github.com/myelin-sd/myelin/haproxy"
)

// SessionOptions are those of a session of its own with what z describes, kept nowhere and without a log: for who asks
// servers one by one.
func SessionOptions(z config.ZooKeeper) zookeeper.Options {
	log := logrus.New()
	log.SetOutput(io.Discard)
	return sessionOptions(z, "", log)
}

// MasterSocket is the socket of the master of the HAProxy that Myelin runs with c, or that the file names for the admin
// socket with this index; empty: none is known.
func MasterSocket(c *config.Agent, socket int) string {
	h := c.HAProxy
	switch {
	case h.Run:
		return filepath.Join(c.StateDir, "haproxy-master.sock")
	case socket < len(h.MasterSocketPaths):
		return h.MasterSocketPaths[socket]
	}
	return ""
}

// Fit is how changes of a backend's servers would reach a HAProxy.
type Fit struct {
	Service, Backend string
	Rung             haproxy.Rung
	Reason           string // why it is no better one; empty: there is none
	Leastconn        bool   // it balances that way
}

// Fits tells for each backend of c how a HAProxy with these capabilities takes changes, as far as its version and the
// configuration tell: what registrations ask for, and what HAProxy refuses, only a running agent finds out.
func Fits(c *config.Agent, caps haproxy.Capabilities) []Fit {
	k := newComposer(c, nil, nil)
	var out []Fit
	for i, s := range c.Services {
		b := k.backends[i]
		if s.HAProxy.Disabled {
			continue
		}
		f := Fit{Service: s.Name, Backend: b.name, Rung: haproxy.RungServers, Leastconn: haproxy.BalancesLeastconn(b.lines, b.defaultsLines)}
		if b.plain && caps.DynamicBackends && c.HAProxy.DoWrites {
			f.Rung = haproxy.RungBackends
		}
		if why := haproxy.RuntimeUnfit(b.lines, b.defaultsLines, []haproxy.Server{b.everyServer()}, caps); why != "" {
			f.Rung, f.Reason = haproxy.RungSlots, why
			if no := b.slotsUnfit(nil); no != "" {
				f.Rung, f.Reason = haproxy.RungReload, why+"; no slots, because "+no
			}
		}
		out = append(out, f)
	}
	return out
}
