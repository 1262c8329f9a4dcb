// Package registrar keeps a healthy local service's registration in place, and only then.
package registrar

import (
	"context"

	"github.com/myelin-sd/myelin/discovery"
)

// HealthCheck tells whether a service is healthy.
type HealthCheck interface {
	// Check returns nil when the service is healthy, else why not. It honours ctx, which carries its timeout.
	Check(ctx context.Context) error
}

// Directory is where registrations are published. Its methods block until the directory has answered or ctx is
// done. An error means "unknown", never "gone".
type Directory interface {
	// Publish makes exactly one node of ours stand for r with r's data, and returns its full path. node is the path
	// an earlier Publish returned, or empty. When node is still there and ours, it is kept (its data set if it
	// differs). When the outcome of an earlier attempt is unknown, nodes under r.Path with r.Prefix that belong to
	// our session are found and adopted, surplus ones deleted. Calling it again is harmless.
	Publish(ctx context.Context, r discovery.Registration, node string) (string, error)

	// Withdraw deletes node and every other node under r.Path with r.Prefix that belongs to our session. A node
	// that is gone already is success.
	Withdraw(ctx context.Context, r discovery.Registration, node string) error

	// Subscribe returns a channel of capacity one that receives whenever something may have happened to what this
	// process published: a node of ours deleted or changed, a new session, a reconnect. cancel ends it.
	Subscribe() (events <-chan struct{}, cancel func())
}
