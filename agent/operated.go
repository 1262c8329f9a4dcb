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

// reloadOf is how HAProxys that others run are reloaded, and how that is repeated after a failure: by the operator's
// command, else through their masters. nil: nobody said how.
func reloadOf(h config.HAProxy, operated []*haproxy.Operated) (reload, again func(context.Context) error) {
	switch {
	case h.ReloadCommand != "":
		reload = haproxy.ReloadCommand(h.ReloadCommand, commandTimeout)
		return reload, reload
	case len(operated) > 0:
		var all []func(context.Context) error
		for _, o := range operated {
			all = append(all, o.Reload)
		}
		return reloadEach(all)
	}
	return nil, nil
}

// reloadEach reloads all of them, and again those that failed: one that is away for long is tried every few seconds,
// and the others would be reloaded as often. The two are not for concurrent use.
func reloadEach(all []func(context.Context) error) (reload, again func(context.Context) error) {
	var left []func(context.Context) error
	again = func(ctx context.Context) error {
		var failed []func(context.Context) error
		var errs []error
		for _, one := range left {
			if err := one(ctx); err != nil {
				failed, errs = append(failed, one), append(errs, err)
			}
		}
		left = failed
		return errors.Join(errs...)
	}
	reload = func(ctx context.Context) error {
		left = all
		return again(ctx)
	}
	return reload, again
}

// checkLike is the check of a file for a HAProxy that others run, where they said nothing of checks.
func checkLike(h config.HAProxy) haproxy.Check {
	running := func(ctx context.Context) string { return haproxy.RunningVersion(ctx, h.SocketFilePaths...) }
	return haproxy.CheckLike(h.Binary, h.ConfigFilePath, running, commandTimeout)
}
