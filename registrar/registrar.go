// Package registrar keeps a healthy local service's registration in place, and only then.
//
//	check, err := registrar.NewHTTP(registrar.HTTPOptions{Host: "10.0.0.5", Port: 8080, URI: "/health"})
//	...
//	r := registrar.New(registrar.Options{
//		Log: log,
//		Services: []registrar.Service{{
//			Name:         "user-api",
//			Directory:    session,
//			Registration: discovery.Registration{Path: "/services/user-api", Prefix: "web-1_", Data: payload, Sequential: true, Ephemeral: true},
//			Checks:       []registrar.Check{{Name: "health", HealthCheck: check, Timeout: 500 * time.Millisecond, Rise: 2, Fall: 3}},
//			Interval:     2 * time.Second,
//		}},
//	})
//	err = r.Run(ctx) // until ctx ends and the services are withdrawn
package registrar

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"io"
	"maps"
	"math/rand/v2"
	"os"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/sirupsen/logrus"

	"github.com/myelin-sd/myelin/discovery"
	"github.com/myelin-sd/myelin/journal"
)

// HealthCheck tells whether a service is healthy.
type HealthCheck interface {
	// Check returns nil when the service is healthy, ErrUndecided while it cannot tell, else why it is not. It honours
	// ctx, which carries its timeout.
	Check(ctx context.Context) error
}

// Directory is where registrations are published. Its methods block until the directory has answered or ctx is
// done. An error means "unknown", never "gone".
type Directory interface {
	// Publish makes exactly one node of ours stand for r with r's data, and for each of r.Also, and returns its full
	// path, and what was found not to be as it had been left. node is the path an earlier Publish returned, or empty.
	// When node is still there and ours, it is kept (its data set if it differs). When the outcome of an earlier attempt
	// is unknown, nodes under r.Path with r.Prefix that belong to our session are found and adopted; surplus ones are
	// deleted. Calling it again is harmless.
	Publish(ctx context.Context, r discovery.Registration, node string) (discovery.Published, error)

	// Withdraw deletes node and every other node under r.Path with r.Prefix that belongs to our session, and those of
	// r.Also. A node that is gone already is success.
	Withdraw(ctx context.Context, r discovery.Registration, node string) error

	// Standing tells of a node that may be there before anything was published by this process: left by the process
	// before it, in a session that goes on. was is the registration it was made for, without its data; r tells it by
	// path and prefix. It does not block.
	Standing(r discovery.Registration) (was discovery.Registration, may bool)

	// Subscribe returns a channel of capacity one that receives whenever something may have happened to what this
	// process published: a node of ours deleted or changed, a new session, a reconnect. cancel ends it.
	Subscribe() (events <-chan struct{}, cancel func())
}

// Options are what a Registrar is made of.
type Options struct {
	Log      logrus.FieldLogger // nil: nothing is logged
	Metrics  *Metrics           // nil: nothing is counted
	Statsd   *Statsd            // nil: nothing is sent
	Services []Service

	Journal journal.Recorder // gets what happens, for the history; nil: nobody does

	MaxConcurrentChecks int // made at the same time, of all services; of one service a quarter, but one at least; 0: 64

	// HeartbeatPath is a file whose modification time moves every 10 s while all loops make progress, for a watchdog
	// outside, as in Nerve. Empty: none.
	HeartbeatPath string

	// StateFile keeps what operators have asked for, so that the next process knows of it: maintenance. Its folder must
	// be there. Empty: that ends with the process.
	StateFile string

	Rand func() float64 // from [0, 1), for jitter; used by several goroutines; nil: math/rand/v2
}

const heartbeatEvery = 10 * time.Second

// Registrar looks after services, each on its own: what happens to one, and to its directory, is no other's concern.
type Registrar struct {
	options Options
	ran     atomic.Bool
	stops          // how keepers are told to end, beside Run's context
	detach  func() // may be called again
	hasten  func() // the same
	shared  *shared
	calls   chan func(context.Context) // run by Run's loop
	done    chan struct{}              // closed when Run returns
	seen    atomic.Pointer[[]*keeper]  // copy of the keepers for Status

	intending sync.Mutex              // held while a maintenance is set
	intents   atomic.Pointer[intents] // never nil

	// The rest belongs to Run's loop.
	keepers map[identity]*keeper // of all services that are configured or not withdrawn yet
	names   map[string]bool      // of the services configured
	ended   chan *keeper
	running sync.WaitGroup
	beating bool // the last heartbeat worked
}

// shared is what all services of a registrar have in common.
type shared struct {
	pool  *pool
	pulse *pulse
}

// stops are closed to have all keepers go in other ways than the usual one.
type stops struct {
	detached chan struct{} // leave everything as it is
	hurried  chan struct{} // what leaves need not wait
}

// New returns a registrar that does nothing until Run.
func New(o Options) *Registrar {
	if o.Log == nil {
		silent := logrus.New()
		silent.SetOutput(io.Discard)
		o.Log = silent
	}
	if o.Journal == nil {
		o.Journal = journal.Nowhere{}
	}
	if o.Rand == nil {
		o.Rand = rand.Float64
	}
	o.Log = o.Log.WithField("component", "registrar")
	stop := stops{detached: make(chan struct{}), hurried: make(chan struct{})}
	r := &Registrar{
		options: o, calls: make(chan func(context.Context)), done: make(chan struct{}),
		shared: &shared{pool: newPool(o.MaxConcurrentChecks), pulse: &pulse{log: o.Log, metrics: o.Metrics}},
		stops:  stop, detach: sync.OnceFunc(func() { close(stop.detached) }), hasten: sync.OnceFunc(func() { close(stop.hurried) }),
		keepers: map[identity]*keeper{}, ended: make(chan *keeper), beating: true,
	}
	r.intents.Store(&intents{})
	return r
}

// Run looks after the services until ctx ends. Then all of them leave at the same time, each as its Leave says: it is
// marked, withdrawn, which is tried for 3 s, drained, and its OnStop is run, 30 s at most. Then Run returns nil. After
// Detach nothing of that happens, after Hasten less. A directory that cannot be reached is no error: Run goes on until it
// can. The error is that of Validate. Run may be called once.
//
// What a process before this one has left is not touched until the checks have decided. A service that is up takes its
// node over, which nobody notices when the data are the same; one that is down is withdrawn.
func (r *Registrar) Run(ctx context.Context) error {
	if r.ran.Swap(true) {
		return errors.New("run registrar: it runs or has run")
	}
	defer close(r.done)
	if closed(r.detached) {
		return nil
	}
	if err := r.takeUp(); err != nil {
		r.options.Log.WithField("err", err).Error("no service is in maintenance: what was asked for is not known")
	}
	if err := r.reload(ctx, r.options.Services); err != nil {
		return err
	}
	r.options.Statsd.started()
	defer r.options.Statsd.stopped()
	defer r.running.Wait()
	r.running.Go(func() { r.shared.pulse.run(ctx, r.detached) })
	beat := time.NewTicker(heartbeatEvery)
	defer beat.Stop()
	r.beat()
	ended, ends := ctx.Done(), r.ended
	left := make(chan struct{}) // closed when all services have left, for the end of ctx
	for {
		select {
		case <-ended:
			ended, ends = nil, nil // what has left is shown to the end
			go func() {
				r.running.Wait()
				close(left)
			}()
		case <-left:
			return nil
		case <-r.detached:
			return nil
		case f := <-r.calls:
			f(ctx)
		case k := <-ends:
			r.drop(k)
		case <-beat.C:
			r.beat()
		}
	}
}

// Detach has Run return without withdrawing anything, for a process that another one follows: what is registered stays,
// as long as the directory keeps it. Checks and requests under way are given up, and Run waits for them to end. It wins
// over the end of Run's context. It does not block, may be called again, and before Run.
func (r *Registrar) Detach() { r.detach() }

// Hasten has what leaves not wait any more, for services that have ended already: no mark, no drain. Withdrawals and
// OnStop stay. It does not block, may be called again, and before Run.
func (r *Registrar) Hasten() { r.hasten() }

// takeUp reads the state file.
func (r *Registrar) takeUp() error {
	all, err := loadIntents(r.options.StateFile, time.Now())
	r.intents.Store(&intents{all})
	return err
}

// Reload puts other services in the place of the present ones. What is wrong with them is said by the error, and then
// nothing has changed. A service that is the same as before is not touched. One that registers as the same node keeps
// it: new data are set at once, new checks have to decide first. One that moves to another node leaves the old one
// when the new one stands, or after 30 s of being down. One that is gone leaves as at the end of Run, but its withdrawal
// is tried for as long as it takes.
//
// It blocks until Run has begun, and does not wait for the directory. After Run has ended it returns an error.
func (r *Registrar) Reload(services []Service) error {
	err := errors.New("reload services: the registrar has stopped")
	r.do(context.Background(), func(ctx context.Context) {
		if ctx.Err() != nil {
			err = errors.New("reload services: the registrar stops")
			return
		}
		r.options.Statsd.reread()
		err = r.reload(ctx, services)
	})
	return err
}

// Live returns nil when all loops make progress, else which one does not. It is an answer for a watchdog, not about
// the health of services. It blocks until ctx ends at the longest.
func (r *Registrar) Live(ctx context.Context) error {
	err := errors.New("the registrar does not run")
	if !r.do(ctx, func(context.Context) { err = r.live(ctx) }) && ctx.Err() != nil {
		return fmt.Errorf("look at the registrar's loop: %w", ctx.Err())
	}
	return err
}

// Uses reports whether a service is registered with d, or may still have to be withdrawn from it. d must stay open
// until then.
func (r *Registrar) Uses(d Directory) bool {
	return slices.ContainsFunc(r.snapshot(), func(k *keeper) bool { return k.id.directory == d })
}

// Status returns what is known of each service at this moment, sorted by name and path. It never blocks.
func (r *Registrar) Status() []ServiceStatus {
	all := []ServiceStatus{}
	for _, k := range r.snapshot() {
		all = append(all, *k.status.Load())
	}
	slices.SortFunc(all, func(a, b ServiceStatus) int {
		return cmp.Or(strings.Compare(a.Service, b.Service), strings.Compare(a.Path, b.Path), strings.Compare(a.Node, b.Node))
	})
	return all
}

func (r *Registrar) snapshot() []*keeper {
	if all := r.seen.Load(); all != nil {
		return *all
	}
	return nil
}

// do has Run's loop run f and waits for it. It reports false when Run has ended instead, or ctx has.
func (r *Registrar) do(ctx context.Context, f func(context.Context)) bool {
	return call(ctx, r.calls, r.done, f)
}

// call has the loop that reads calls run f, with the loop's own context, and waits for it. It reports false when the
// loop is done instead, or ctx has ended. The loop answers soon: loops never block elsewhere than in their select.
func call(ctx context.Context, calls chan<- func(context.Context), done <-chan struct{}, f func(context.Context)) bool {
	ran := make(chan struct{})
	select {
	case calls <- func(loop context.Context) { f(loop); close(ran) }:
		<-ran
		return true
	case <-done:
	case <-ctx.Done():
	}
	return false
}

func (r *Registrar) reload(ctx context.Context, services []Service) error {
	if err := Validate(services); err != nil {
		return err
	}
	r.shared.pool.services.Store(int64(len(services)))
	current, names := map[string]*keeper{}, map[string]bool{}
	configured, now := map[*keeper]bool{}, time.Now()
	asking := context.WithoutCancel(ctx) // keepers answer, or are done; one that leaves must not get a twin
	keepers := make([]*keeper, len(services))
	for i, s := range services { // new before old
		k := r.keepers[s.identity()]
		m, risen := r.intents.Load().get(s.Name, now), r.standing(asking, s)
		if k == nil || !k.do(asking, func(loop context.Context) { k.adopt(loop, s, m, risen) }) {
			k = r.start(ctx, s, m, risen)
		}
		current[s.Name], names[s.Name], configured[k], keepers[i] = k, true, true, k
	}
	for _, k := range r.keepers {
		if configured[k] {
			continue
		}
		var successor *keeper
		var given [][]discovery.Registration
		k.do(asking, func(context.Context) {
			given = k.yield(services)
			successor = current[k.service.Name]
			k.retire(successor)
		})
		for i, taken := range given {
			if len(taken) > 0 {
				keepers[i].do(asking, func(context.Context) { keepers[i].take(taken) })
			}
		}
		if successor != nil {
			successor.do(asking, func(context.Context) { successor.follow(k) })
		}
	}
	for name := range r.names {
		if !names[name] {
			r.options.Metrics.forget(name) // nobody counts under it any more
		}
	}
	r.names = names
	r.publishKeepers()
	return nil
}

// standing is how far the weight of a service has risen that stands as another node than s; nil: it does not stand.
func (r *Registrar) standing(ctx context.Context, s Service) (risen *ramp) {
	for id, k := range r.keepers {
		if id == s.identity() || k.status.Load().Service != s.Name {
			continue
		}
		k.do(ctx, func(context.Context) {
			if k.registered && k.upkeep.want == Up {
				was := k.ramp
				risen = &was
			}
		})
	}
	return risen
}

func (r *Registrar) start(ctx context.Context, s Service, m *intent, risen *ramp) *keeper {
	k := newKeeper(s, r.options, r.shared, r.stops, m)
	k.risen = risen
	r.keepers[k.id] = k
	reason := "new"
	if r.names[s.Name] {
		reason = "update" // it moves to another node
	}
	r.options.Statsd.launched(s.Name, reason)
	r.running.Go(func() {
		k.run(ctx)
		select {
		case r.ended <- k:
		case <-ctx.Done():
		case <-r.detached:
		}
	})
	return k
}

// drop forgets a keeper that has ended, unless another one has its place already.
func (r *Registrar) drop(k *keeper) {
	reason := "old"
	if r.names[k.service.Name] {
		reason = "update"
	}
	r.options.Statsd.reaped(k.service.Name, reason)
	if r.keepers[k.id] == k {
		delete(r.keepers, k.id)
		r.publishKeepers()
	}
}

func (r *Registrar) publishKeepers() {
	all := slices.Collect(maps.Values(r.keepers))
	r.seen.Store(&all)
}

func (r *Registrar) live(ctx context.Context) error {
	var errs []error
	for _, k := range r.keepers {
		late := ""
		k.do(ctx, func(context.Context) { late = k.stalled(time.Now()) })
		switch {
		case ctx.Err() != nil:
			errs = append(errs, fmt.Errorf("look at service %q: its loop does not answer", k.status.Load().Service))
		case late != "":
			errs = append(errs, fmt.Errorf("look at service %q: check %q does not end", k.status.Load().Service, late))
		}
	}
	return errors.Join(errs...)
}

// beat touches the heartbeat file while all loops make progress. It says once that it does not.
func (r *Registrar) beat() {
	if r.options.HeartbeatPath == "" {
		return
	}
	limited, cancel := context.WithTimeout(context.Background(), heartbeatEvery/2)
	defer cancel()
	err := r.live(limited)
	if err == nil {
		err = touch(r.options.HeartbeatPath, time.Now())
	}
	if err != nil && r.beating {
		r.options.Log.WithField("err", err).Warn("heartbeat missed")
	}
	r.beating = err == nil
}

// touch moves the modification time of a file, and makes it when it is missing.
func touch(path string, now time.Time) error {
	f, err := os.OpenFile(path, os.O_WRONLY|os.O_CREATE, 0o644)
	if err != nil {
		return fmt.Errorf("touch heartbeat: %w", err)
	}
	if err := f.Close(); err != nil {
		return fmt.Errorf("touch heartbeat: %w", err)
	}
	if err := os.Chtimes(path, now, now); err != nil {
		return fmt.Errorf("touch heartbeat: %w", err)
	}
	return nil
}
