package agent

import (
	"context"
	"slices"

	"github.com/myelin-sd/myelin/config"
	"github.com/myelin-sd/myelin/haproxy"
)

// withNames is c with distinct names of frontends where its HAProxy asks for them and c leaves it open.
func withNames(ctx context.Context, c *config.Agent) *config.Agent {
	if !opensNames(c) || !haproxy.RequiresDistinctNames(ctx, c.HAProxy.Binary, c.HAProxy.SocketFilePaths...) {
		return c
	}
	return withDistinctNames(c)
}

// upgrade waits for a HAProxy that asks for distinct names, and returns c with them: a package that is upgraded
// restarts HAProxy, which would refuse the file as it is. nil: ctx is done, or c leaves nothing open.
func upgrade(ctx context.Context, c *config.Agent) *config.Agent {
	if !opensNames(c) || !haproxy.AwaitDistinctNames(ctx, c.HAProxy.Binary) {
		return nil
	}
	return withDistinctNames(c)
}

func opensNames(c *config.Agent) bool { return c.HAProxy.DoWrites && c.HAProxy.FrontendNames == "" }

func withDistinctNames(c *config.Agent) *config.Agent {
	out := *c
	out.HAProxy.FrontendNames = "distinct"
	return &out
}

// advise returns what is to be known of the version that was met, and logs it once for each version.
func (r *reconciler) advise(w *wanted) []string {
	leastconn := false
	for _, b := range w.backends {
		leastconn = leastconn || haproxy.BalancesLeastconn(b.lines, b.defaultsLines)
	}
	warnings := r.caps.Warnings(leastconn)
	if !slices.Equal(warnings, r.advised) {
		for _, text := range warnings {
			r.log.Warn(text)
		}
	}
	r.advised = warnings
	return warnings
}
