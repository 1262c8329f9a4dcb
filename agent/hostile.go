package agent

import (
	"github.com/sirupsen/logrus"

	"github.com/myelin-sd/myelin/discovery"
)

// What follows tells people what the composer did with registrations that are not as they should be.

// unusable are the registrations that decode but cannot become a server.
func unusable(all []refused) []discovery.Rejection { return composed(all, false, "server") }

// curtailed are the registrations that became a server without some of the options that they ask for.
func curtailed(all []refused) []discovery.Rejection { return composed(all, true, "options") }

func composed(all []refused, kept bool, reason string) []discovery.Rejection {
	var out []discovery.Rejection
	for _, r := range all {
		if r.Kept == kept {
			out = append(out, discovery.Rejection{Node: r.Instance.Node, Reason: reason, Detail: r.Reason})
		}
	}
	return out
}

// logComposed says once what became of registrations that cannot be used as they are.
func logComposed(log logrus.FieldLogger, before, after wantedBackend) {
	logRejections(log, unusable(before.refused), unusable(after.refused))
	logNew(log, curtailed(before.refused), curtailed(after.refused), "options of a registration left out; its server is used")
	switch {
	case after.surplus > 0 && before.surplus == 0:
		log.WithField("count", after.surplus).Error("more instances than haproxy.max_servers; those registered last are left out: find out who registers them, or raise it")
	case after.surplus == 0 && before.surplus > 0:
		log.Info("no more instances than haproxy.max_servers any longer")
	}
}
