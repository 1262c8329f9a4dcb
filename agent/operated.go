package agent

import (
	"context"
	"errors"

	"github.com/sirupsen/logrus"

	"github.com/myelin-sd/myelin/config"
	"github.com/myelin-sd/myelin/haproxy"
)

// operatedBy are the HAProxys that others run, by admin socket, where the sockets of their masters are known.
func operatedBy(h config.HAProxy, log logrus.FieldLogger) []*haproxy.Operated {
	var out []*haproxy.Operated
	for _, path := range h.MasterSocketPaths {
		o := haproxy.OperatedOptions{MasterSocket: path, ConfigPath: h.ConfigFilePath, Log: log}
		if h.Binary != "" {
			o.Explain = haproxy.CheckWith(h.Binary, commandTimeout)
		}
		out = append(out, haproxy.NewOperated(o))
	}
	return out
}

// reloadOf is how HAProxys that others run are reloaded: by the operator's command, else through their masters. nil:
// nobody said how.
func reloadOf(h config.HAProxy, operated []*haproxy.Operated) func(context.Context) error {
	switch {
	case h.ReloadCommand != "":
		return haproxy.ReloadCommand(h.ReloadCommand, commandTimeout)
	case len(operated) > 0:
		return func(ctx context.Context) error {
			var all []error
			for _, o := range operated {
				all = append(all, o.Reload(ctx))
			}
			return errors.Join(all...)
		}
	}
	return nil
}

// checkLike is the check of a file for a HAProxy that others run, where they said nothing of checks.
func checkLike(h config.HAProxy) haproxy.Check {
	running := func(ctx context.Context) string { return haproxy.RunningVersion(ctx, h.SocketFilePaths...) }
	return haproxy.CheckLike(h.Binary, h.ConfigFilePath, running, commandTimeout)
}
