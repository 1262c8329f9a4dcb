package registrar

import (
	"context"
	"errors"
	"reflect"
	"sync"
	"sync/atomic"
	"time"

	"github.com/sirupsen/logrus"

	"github.com/myelin-sd/myelin/discovery"
)

const (
	attemptTimeout = 5 * time.Second  // one request to the directory
	closeTimeout   = 3 * time.Second  // the withdrawal when the process ends
	successorGrace = 30 * time.Second // how long a successor that is down keeps its predecessor, as in Nerve
)

// keeper looks after one service: a loop that owns all its state, a goroutine for each check, and one for the request
// to the directory while one is under way. So a directory that does not answer never keeps the checks from being
// made, and what they say last is what is applied when it answers again.
type keeper struct {
	id      identity
	log     logrus.FieldLogger
	metrics *Metrics
	jitter  func() float64

	detached <-chan struct{}            // closed when to end and leave everything as it is
	calls    chan func(context.Context) // run by the loop
	done     chan struct{}              // closed when the loop has ended
	settled  chan struct{}              // closed when a predecessor may go
	status   atomic.Pointer[ServiceStatus]
	results  chan result
	outcomes chan outcome // capacity one: at most one request is under way

	// The rest belongs to the loop.

	service Service  // in force; its name is that of the latest configuration
	next    *Service // in force as soon as its checks have decided

	probes     []*probe
	stopProbes context.CancelFunc
	probing    sync.WaitGroup
	state      State // what was decided last
	since      time.Time
	condition  Condition // to publish

	upkeep     upkeep
	giveUp     context.CancelFunc     // ends the request under way; nil: there is none
	standing   discovery.Registration // what the last request leaves, if anything
	inherited  bool                   // the process before may have left something, and the directory was not asked yet
	registered bool                   // the directory's last answer
	node       string
	confirmed  time.Time
	problem    error
	repairs    repairs
	attempts   int // requests that failed in a row
	troubledAt time.Time

	replaced bool            // no longer configured: another keeper, or nobody, counts
	after    <-chan struct{} // leave then
	leaving  bool            // withdraw for good, then end
}

// outcome is what became of a request.
type outcome struct {
	op       op
	why      string
	standing discovery.Registration // what may be in the directory now
	made     discovery.Published    // after a publish
	err      error
	took     time.Duration
}

func newKeeper(s Service, o Options, detached <-chan struct{}) *keeper {
	k := &keeper{
		id: s.identity(), log: o.Log, metrics: o.Metrics, jitter: o.Rand,
		detached: detached, calls: make(chan func(context.Context)), done: make(chan struct{}), settled: make(chan struct{}),
		results: make(chan result), outcomes: make(chan outcome, 1),
		service: s, since: time.Now(), condition: usual,
		upkeep: upkeep{jitter: o.Rand}, stopProbes: func() {},
	}
	if was, may := s.Directory.Standing(s.Registration); may {
		k.standing, k.upkeep.touched, k.inherited = was, true, true
	}
	k.metrics.present(s.Name, false)
	k.publishStatus()
	return k
}

// do has the loop run f, as call does.
func (k *keeper) do(ctx context.Context, f func(context.Context)) bool {
	return call(ctx, k.calls, k.done, f)
}

// run looks after the service until ctx ends or it has left. In both cases it is withdrawn first: at the end of ctx
// within closeTimeout. Once detached it ends as well, and withdraws nothing.
func (k *keeper) run(ctx context.Context) {
	defer close(k.done)
	events, unsubscribe := k.service.Directory.Subscribe()
	defer unsubscribe()
	defer k.probing.Wait()
	defer k.endProbes()
	k.startProbes(ctx, k.service)
	timer := time.NewTimer(0)
	defer timer.Stop()
	for {
		k.ask(ctx, timer)
		k.settle()
		k.publishStatus()
		if k.leaving && k.upkeep.absent() {
			return
		}
		select {
		case <-k.detached:
			k.let()
			return
		case <-ctx.Done():
			k.close(ctx)
			return
		case r := <-k.results:
			k.observe(r)
		case o := <-k.outcomes:
			k.conclude(o)
		case <-events:
			k.upkeep.event(time.Now())
		case f := <-k.calls:
			f(ctx)
		case <-k.after:
			k.leave()
		case <-timer.C:
		}
	}
}

// decide draws the conclusion from all checks. While they have not decided, what was decided before holds.
func (k *keeper) decide(check string, reason error) {
	want, now := k.judge(), time.Now()
	if want == Unknown {
		return
	}
	if k.next != nil {
		k.service, k.next = *k.next, nil
		k.upkeep.changed(now)
		k.abandon()
	}
	if !k.upkeep.decide(want, now) {
		return
	}
	k.abandon()
	k.state, k.since = want, now
	log := k.logger()
	if check != "" {
		log = log.WithField("check", check)
	}
	if reason != nil {
		log = log.WithField("err", reason)
	}
	log.Info("service is " + want.String())
}

// abandon gives up the request under way: it is for something that is no longer wanted.
func (k *keeper) abandon() {
	if k.giveUp != nil {
		k.giveUp()
	}
}

// ask makes the request that is due, or sets the timer to when one is.
func (k *keeper) ask(ctx context.Context, timer *time.Timer) {
	now := time.Now()
	op, wait := k.upkeep.next(now)
	if op == idle {
		timer.Stop()
		if wait >= 0 {
			timer.Reset(wait)
		}
		return
	}
	why, request := k.upkeep.why, k.request(op)
	k.upkeep.begin(op)
	ctx, k.giveUp = context.WithTimeout(ctx, attemptTimeout)
	go func() { // conclude takes what it sends, also when the loop ends
		o := request(ctx)
		o.op, o.why, o.took = op, why, time.Since(now)
		k.outcomes <- o
	}()
}

// request returns what to do for op. What it returns touches nothing of the loop's.
func (k *keeper) request(op op) func(context.Context) outcome {
	dir, node, was, is := k.service.Directory, k.node, k.standing, k.service.registration(k.condition)
	if op == withdraw {
		return func(ctx context.Context) outcome {
			return outcome{standing: was, err: dir.Withdraw(ctx, was, node)}
		}
	}
	sameKind := was.Path == "" || was.Sequential == is.Sequential && was.Ephemeral == is.Ephemeral
	return func(ctx context.Context) outcome {
		if !sameKind { // a node cannot change its kind
			if err := dir.Withdraw(ctx, was, node); err != nil {
				return outcome{standing: was, err: err}
			}
			was, node = discovery.Registration{}, ""
		}
		made, standing, err := publishOver(ctx, dir, was, is, node)
		return outcome{standing: standing, made: made, err: err}
	}
}

// conclude takes the outcome of the request.
func (k *keeper) conclude(o outcome) {
	now := time.Now()
	k.giveUp() // frees its timer
	k.giveUp = nil
	k.standing, k.upkeep.within = o.standing, o.made.Within
	k.mended(o.made, now)
	k.upkeep.end(o.err == nil, now)
	switch {
	case errors.Is(o.err, context.Canceled): // given up by us; the request that follows will tell
	case o.err != nil:
		k.troubled(o, now)
	default:
		k.relieved(now)
		k.answered(o, now)
	}
}

// troubled says once that requests fail; how often they are repeated is of no interest to anybody.
func (k *keeper) troubled(o outcome, now time.Time) {
	k.problem = o.err
	k.attempts++
	if k.attempts > 1 {
		return
	}
	k.troubledAt = now
	doing := "publish"
	if o.op == withdraw {
		doing = "withdraw"
	}
	k.logger().WithField("err", o.err).Warn("cannot " + doing + " the service; trying on")
}

func (k *keeper) relieved(now time.Time) {
	if k.attempts > 0 {
		k.logger().WithFields(logrus.Fields{"count": k.attempts, "duration": now.Sub(k.troubledAt)}).Info("the directory answers again")
	}
	k.problem, k.attempts = nil, 0
}

// answered takes what the directory confirmed.
func (k *keeper) answered(o outcome, now time.Time) {
	log := k.logger().WithField("duration", o.took)
	switch {
	case o.op == withdraw:
		switch {
		case k.registered:
			log.WithField("node", k.node).Info("service is withdrawn")
		case k.inherited:
			log.WithField("reason", "left by the process before").Info("service is withdrawn")
		}
	case !k.registered:
		log.WithField("node", o.made.Node).Info("service is registered")
	case o.made.Node != k.node && len(o.made.Found) == 0: // else it has been said
		log.WithFields(logrus.Fields{"node": o.made.Node, "reason": o.why}).Info("service is registered again")
	}
	k.inherited = false
	k.registered, k.node, k.confirmed = o.op == publish, o.made.Node, now
	if !k.replaced {
		k.metrics.present(k.service.Name, k.registered)
	}
}

// adopt takes another configuration of the service, which registers as the same node. What is registered stays, with
// the checks that were made, as far as they are the same; other checks have to decide before s is in force, and until
// then what was decided before holds.
func (k *keeper) adopt(ctx context.Context, s Service) {
	left := k.leaving
	k.leaving, k.replaced, k.after = false, false, nil
	configured := k.service
	if k.next != nil {
		configured = *k.next
	}
	k.service.Name = s.Name
	switch {
	case left || !s.sameHealth(configured):
		k.next = &s
		k.startProbes(ctx, s)
	case k.next != nil:
		k.next = &s
	case !reflect.DeepEqual(s.Registration, k.service.Registration):
		k.service = s
		k.upkeep.changed(time.Now())
		k.abandon()
	}
	k.metrics.present(s.Name, k.registered)
}

// retire has the service withdrawn: at once, or as soon as its successor is settled. From now on it counts nothing:
// the successor does, or nobody.
func (k *keeper) retire(successor *keeper) {
	k.replaced = true
	if successor == nil {
		k.leave()
		return
	}
	if !k.leaving {
		k.after = successor.settled
	}
}

// leave begins to withdraw for good.
func (k *keeper) leave() {
	k.endProbes()
	k.leaving, k.after, k.next = true, nil, nil
	k.upkeep.decide(Down, time.Now())
	k.abandon()
}

// settle lets a predecessor go: when the service is registered, or when it has been down for so long that this is what
// its new configuration comes to. A directory that does not answer decides nothing.
func (k *keeper) settle() {
	if closed(k.settled) {
		return
	}
	stands := k.upkeep.want == Up && k.upkeep.confirmed
	if stands || k.upkeep.want == Down && time.Since(k.since) >= successorGrace {
		close(k.settled)
	}
}

// close withdraws the service when the process ends.
func (k *keeper) close(ctx context.Context) {
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), closeTimeout)
	defer cancel()
	defer k.publishStatus()
	k.leave()
	k.upkeep.again(time.Now(), whyHealth) // whatever pause there was
	timer := time.NewTimer(0)
	defer timer.Stop()
	for !k.upkeep.absent() {
		if closed(k.detached) {
			k.let()
			return
		}
		k.ask(ctx, timer)
		select {
		case <-k.detached:
		case o := <-k.outcomes:
			k.conclude(o)
		case <-timer.C:
		case <-ctx.Done():
			if k.giveUp != nil {
				k.conclude(<-k.outcomes)
			}
			if !k.upkeep.absent() {
				k.logger().WithField("duration", closeTimeout).Warn("service was not withdrawn in time; its node goes with the session")
			}
			return
		}
	}
}

// let leaves everything as it is. A request under way is given up; what it leaves, the next process finds.
func (k *keeper) let() {
	if k.giveUp != nil {
		k.giveUp()
		k.conclude(<-k.outcomes)
	}
	k.publishStatus()
}

func closed(c <-chan struct{}) bool {
	select {
	case <-c:
		return true
	default:
		return false
	}
}

func (k *keeper) logger() logrus.FieldLogger {
	return k.log.WithFields(logrus.Fields{"service": k.service.Name, "path": k.service.Registration.Path})
}

// publishStatus lets everybody see what the loop knows.
func (k *keeper) publishStatus() {
	st := ServiceStatus{
		Service: k.service.Name, Path: k.service.Registration.Path, State: k.state, Since: k.since,
		Registered: k.registered, Node: k.node, Confirmed: k.confirmed, Problem: words(k.problem),
		Leaving: k.replaced || k.leaving, Checks: make([]CheckStatus, len(k.probes)),
		Repairs: k.repairs.counts, LastRepair: k.repairs.last,
	}
	for i, p := range k.probes {
		st.Checks[i] = p.status
	}
	k.status.Store(&st)
}

func words(err error) string {
	if err == nil {
		return ""
	}
	return err.Error()
}
