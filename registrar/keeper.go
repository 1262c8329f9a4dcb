package registrar

import (
	"context"
	"errors"
	"fmt"
	"reflect"
	"sync"
	"sync/atomic"
	"time"

	"github.com/sirupsen/logrus"

	"github.com/myelin-sd/myelin/discovery"
	"github.com/myelin-sd/myelin/journal"
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
	journal journal.Recorder
	metrics *Metrics
	statsd  *Statsd
	jitter  func() float64
	shared  *shared

	detached <-chan struct{}            // closed when to end and leave everything as it is
	calls    chan func(context.Context) // run by the loop
	done     chan struct{}              // closed when the loop has ended
	settled  chan struct{}              // closed when a predecessor may go
	status   atomic.Pointer[ServiceStatus]
	results  chan result
	outcomes chan outcome // capacity one: at most one request is under way
	hooked   chan error   // capacity one: the same of the command

	hurried <-chan struct{} // closed when what leaves need not wait

	// The rest belongs to the loop.

	service Service  // in force; its name is that of the latest configuration
	next    *Service // in force as soon as its checks have decided

	probes     []*probe
	stopProbes context.CancelFunc
	probing    sync.WaitGroup
	state      State // what was decided last
	since      time.Time
	condition  Condition // as the checks judge it
	throttle   throttle  // of changes of health
	ramp       ramp
	risen      *ramp         // of the node that it moves away from, until it is decided; nil: it does not
	takenOver  bool          // it goes on with a node of the process before, if there is one: the next answer tells
	intent     *intent       // nil: it is in no maintenance
	led        result        // of a check, which led to the latest judgement
	changes    []StateChange // of state and of condition
	damping    *Damping
	damper     *damper
	relief     time.Time // when a move down that is held back is due; zero: none is

	upkeep     upkeep
	giveUp     context.CancelFunc       // ends the request under way; nil: there is none
	standing   discovery.Registration   // what the last request leaves, if anything
	yielded    []discovery.Registration // further nodes that other services have taken over
	says       Condition                // of the last publish
	inherited  bool                     // the process before may have left something, and the directory was not asked yet
	registered bool                     // the directory's last answer
	node       string
	confirmed  time.Time
	problem    error
	repairs    repairs
	attempts   int // requests that failed in a row
	troubledAt time.Time

	replaced bool            // no longer configured: another keeper, or nobody, counts
	after    <-chan struct{} // leave then
	leaving  bool            // withdraw for good, then end
	farewell farewell
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

func newKeeper(s Service, o Options, shared *shared, stop stops, m *intent) *keeper {
	k := &keeper{
		id: s.identity(), log: o.Log, journal: o.Journal, metrics: o.Metrics, statsd: o.Statsd, jitter: o.Rand, shared: shared,
		detached: stop.detached, hurried: stop.hurried,
		calls: make(chan func(context.Context)), done: make(chan struct{}), settled: make(chan struct{}),
		results: make(chan result), outcomes: make(chan outcome, 1), hooked: make(chan error, 1),
		service: s, since: time.Now(), condition: usual, says: usual, intent: m,
		upkeep: upkeep{jitter: o.Rand}, stopProbes: func() {},
	}
	if was, may := s.Directory.Standing(s.Registration); may {
		k.standing, k.upkeep.touched, k.inherited = was, true, true
	}
	if m != nil {
		k.entered(m)
	}
	k.metrics.present(s.Name, false)
	k.publishStatus()
	return k
}

// do has the loop run f, as call does.
func (k *keeper) do(ctx context.Context, f func(context.Context)) bool {
	return call(ctx, k.calls, k.done, f)
}

// run looks after the service until it has left for good, which the end of ctx has it do as well. Then the withdrawal is
// tried for closeTimeout. Once detached it ends at once, and withdraws nothing.
func (k *keeper) run(ctx context.Context) {
	defer close(k.done)
	events, unsubscribe := k.service.Directory.Subscribe()
	defer unsubscribe()
	defer k.probing.Wait()
	defer k.endProbes()
	k.startProbes(ctx, k.service)
	k.pursue(time.Now())
	ended, hurried := ctx.Done(), k.hurried
	timer := time.NewTimer(0)
	defer timer.Stop()
	for {
		if closed(k.detached) {
			k.let()
			return
		}
		if over := k.act(ctx, timer); over {
			k.publishStatus()
			return
		}
		k.settle()
		k.publishStatus()
		select {
		case <-k.detached:
		case <-ended:
			ended = nil
			k.close(time.Now())
		case <-hurried:
			hurried = nil
			if k.upkeep.hasten(time.Now()) {
				k.abandon()
			}
		case r := <-k.results:
			k.observe(r)
		case o := <-k.outcomes:
			k.conclude(o)
		case err := <-k.hooked:
			k.hookEnded(err)
		case <-events:
			k.upkeep.event(time.Now())
		case f := <-k.calls:
			f(ctx)
		case <-k.after:
			k.leave(time.Now())
		case <-k.farewell.behind:
		case <-timer.C:
		}
	}
}

// act does what is due, and sets the timer to when something will be. It reports whether the service has gone for good.
func (k *keeper) act(ctx context.Context, timer *time.Timer) (over bool) {
	now := time.Now()
	k.expire(now)
	due := soonest{-1}
	due.by(k.relieve(now))
	if k.throttle.over(now) {
		k.pursue(now)
	}
	k.renew(now)
	due.by(k.throttle.wait(now))
	due.by(k.ask(ctx, now))
	if k.leaving {
		rest, over := k.depart(ctx, now)
		if over {
			return true
		}
		due.by(rest)
	}
	if k.upkeep.want == Up {
		due.by(k.ramp.wait(k.service.SlowStart, now))
	}
	due.by(k.intent.wait(now))
	timer.Stop()
	if due.wait >= 0 {
		timer.Reset(due.wait)
	}
	return false
}

// soonest is the shortest of several times to wait; a negative one is for ever.
type soonest struct{ wait time.Duration }

func (s *soonest) by(wait time.Duration) {
	if wait >= 0 && (s.wait < 0 || wait < s.wait) {
		s.wait = wait
	}
}

// decide draws the conclusion from what all checks amount to. While they have not decided, what was decided before
// holds.
func (k *keeper) decide(j judgement) {
	want, now := j.state, time.Now()
	if want == Unknown {
		return
	}
	if k.next != nil {
		k.service, k.next = *k.next, nil
		k.upkeep.changed(now)
		k.abandon()
	}
	news := want != k.state
	if news {
		k.state, k.since = want, now
	}
	if want == Up && j.weight != k.condition.Weight {
		k.condition.Weight, news = j.weight, true
	}
	if news {
		k.changes = remember(k.changes, j.change(now))
		log := k.logger()
		if j.check != "" {
			log = log.WithField("check", j.check)
		}
		if j.reason != nil {
			log = log.WithField("err", j.reason)
		}
		log.Info("service is " + j.String())
		k.recordJudgement(j)
	}
	k.pursue(now)
}

// pursue has the directory asked for what is decided: by the checks, and by those who take the service away on purpose.
func (k *keeper) pursue(now time.Time) {
	if k.throttled(now) {
		return
	}
	news := false
	switch {
	case k.leaving || k.intent != nil:
		k.risen = nil
		news = k.upkeep.leave(k.notice(), now)
	case k.state == Up:
		takenOver := k.upkeep.want == Unknown && k.upkeep.touched
		if news = k.upkeep.decide(Up, now); news {
			k.rise(takenOver)
		}
	case k.state == Down:
		k.risen = nil
		news = k.upkeep.decide(Down, now)
	}
	if news {
		k.abandon()
	}
}

// rise begins with the weight of a service that is to be registered, unless it stands already.
func (k *keeper) rise(takenOver bool) {
	switch k.takenOver = takenOver && k.risen == nil; {
	case k.takenOver:
	case k.risen != nil:
		k.ramp = *k.risen
	case k.service.SlowStart > 0:
		k.ramp.begin()
	}
	k.risen = nil
}

// present is the condition to publish now.
func (k *keeper) present(now time.Time) Condition {
	c := k.condition
	c.Weight = max(1, c.Weight*k.ramp.percent(k.service.SlowStart, now)/100)
	return c
}

// renew has the condition published when it is another one, and that can be seen.
func (k *keeper) renew(now time.Time) {
	if k.upkeep.want != Up {
		return
	}
	c := k.present(now)
	if c == k.says {
		return
	}
	was, is := k.service.registration(k.says), k.service.registration(c)
	if k.says = c; !reflect.DeepEqual(was, is) {
		k.upkeep.changed(now)
		k.abandon()
	}
}

// abandon gives up the request under way: it is for something that is no longer wanted.
func (k *keeper) abandon() {
	if k.giveUp != nil {
		k.giveUp()
	}
}

// ask makes the request that is due, or returns how long none is; negative: for ever.
func (k *keeper) ask(ctx context.Context, now time.Time) time.Duration {
	op, wait := k.upkeep.next(now)
	if op == idle {
		return wait
	}
	limit := attemptTimeout
	if op == mark {
		limit = markLimit
	}
	why, request := k.upkeep.why, k.request(op)
	k.upkeep.begin(op)
	ctx, k.giveUp = context.WithTimeout(context.WithoutCancel(ctx), limit) // the loop gives it up, also when it ends
	go func() {                                                            // conclude takes what it sends
		o := request(ctx)
		o.op, o.why, o.took = op, why, time.Since(now)
		k.outcomes <- o
	}()
	return -1
}

// request returns what to do for op. What it returns touches nothing of the loop's.
func (k *keeper) request(op op) func(context.Context) outcome {
	dir, node, was := k.service.Directory, k.node, k.standing
	if op == withdraw {
		return func(ctx context.Context) outcome {
			return outcome{standing: was, err: dir.Withdraw(ctx, was, node)}
		}
	}
	says := k.says
	says.Leaving = op == mark
	is := k.service.registration(says)
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
	k.standing, k.upkeep.within = without(o.standing, k.yielded), o.made.Within
	k.mended(o.made, now)
	k.upkeep.end(o.err == nil, now)
	if !errors.Is(o.err, context.Canceled) {
		k.statsd.reported(k.service, o, k.node)
	}
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
	doing := map[op]string{publish: "publish", mark: "mark", withdraw: "withdraw"}[o.op]
	k.logger().WithField("err", o.err).Warn("cannot " + doing + " the service; trying on")
	k.record(journal.KindRegister, "cannot "+doing+" the service; it is tried again", o.err.Error())
}

func (k *keeper) relieved(now time.Time) {
	if k.attempts > 0 {
		k.logger().WithFields(logrus.Fields{"count": k.attempts, "duration": now.Sub(k.troubledAt)}).Info("the directory answers again")
		k.record(journal.KindRegister, fmt.Sprintf("the directory answers again, after %d requests in %s", k.attempts, now.Sub(k.troubledAt).Round(time.Millisecond)), "")
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
			k.record(journal.KindRegister, "service is withdrawn, node "+k.node, k.whyAway())
		case k.inherited:
			log.WithField("reason", "left by the process before").Info("service is withdrawn")
			k.record(journal.KindRegister, "service is withdrawn, which the process before has left", k.whyAway())
		}
		k.farewell.gone = now
	case o.op == mark:
		log.WithField("node", o.made.Node).Info("service is marked as leaving")
		k.record(journal.KindRegister, "service is marked as leaving, node "+o.made.Node, k.whyAway())
	case !k.registered:
		log.WithField("node", o.made.Node).Info("service is registered")
		k.record(journal.KindRegister, "service is registered, node "+o.made.Node, "")
	case o.made.Node != k.node && len(o.made.Found) == 0: // else it has been said
		log.WithFields(logrus.Fields{"node": o.made.Node, "reason": o.why}).Info("service is registered again")
		k.record(journal.KindRegister, "service is registered again, node "+o.made.Node, o.why)
	}
	if present := o.op != withdraw; present != k.registered {
		k.statsd.turned(k.service.Name, present)
	}
	k.inherited = false
	k.registered, k.node, k.confirmed = o.op != withdraw, o.made.Node, now
	if o.op == publish {
		if k.takenOver && o.made.New && k.service.SlowStart > 0 {
			k.ramp.begin() // there was nothing to take over: the session had expired
		}
		k.takenOver = false
		k.ramp.registered(now)
	}
	if !k.replaced {
		k.metrics.present(k.service.Name, k.registered)
	}
}

// adopt takes another configuration of the service, which registers as the same node. What is registered stays, with
// the checks that were made, as far as they are the same; other checks have to decide before s is in force, and until
// then what was decided before holds.
//
// When the process ends it is too late for that. risen is the ramp of a node that the service moves away from.
func (k *keeper) adopt(ctx context.Context, s Service, m *intent, risen *ramp) {
	if ctx.Err() != nil {
		return
	}
	left := k.leaving
	k.yielded = nil
	k.leaving, k.replaced, k.after, k.farewell = false, false, nil, farewell{gone: k.farewell.gone, running: k.farewell.running}
	k.settled, k.risen = make(chan struct{}), risen // what stood once does not say that a predecessor may go now
	configured := k.service
	if k.next != nil {
		configured = *k.next
	}
	k.service.Name, k.service.Leave, k.service.SlowStart, k.service.RateLimit = s.Name, s.Leave, s.SlowStart, s.RateLimit // no check has to decide on these
	if left {
		k.state, k.since = Unknown, time.Now()
	}
	switch {
	case left || !s.sameHealth(configured):
		k.next = &s
		k.startProbes(ctx, s)
	case k.next != nil:
		k.next = &s
	default:
		was := k.service.registration(k.says)
		if k.service = s; !reflect.DeepEqual(was, s.registration(k.says)) {
			k.upkeep.changed(time.Now())
			k.abandon()
		}
	}
	k.metrics.present(s.Name, k.registered)
	k.maintain(m)
}

// settle lets a predecessor go: when the service is registered, or when it has been down for so long that this is what
// its new configuration comes to, or when it is to be away. A directory that does not answer decides nothing.
func (k *keeper) settle() {
	if closed(k.settled) {
		return
	}
	stands := k.upkeep.want == Up && k.upkeep.confirmed
	if stands || k.intent != nil || k.upkeep.want == Down && time.Since(k.since) >= successorGrace {
		close(k.settled)
	}
}

// let leaves everything as it is. A request under way is given up; what it leaves, the next process finds.
func (k *keeper) let() {
	if k.giveUp != nil {
		k.giveUp()
		k.conclude(<-k.outcomes)
	}
	if k.farewell.running != nil {
		k.farewell.running()
		k.hookEnded(<-k.hooked)
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
		Registered: k.registered, Settled: k.upkeep.confirmed, Node: k.node, Confirmed: k.confirmed, Problem: words(k.problem),
		Leaving: k.replaced || k.leaving, Checks: make([]CheckStatus, len(k.probes)),
		Repairs: k.repairs.counts, LastRepair: k.repairs.last,
	}
	for i, p := range k.probes {
		st.Checks[i] = p.status
	}
	st.Changes, st.Damping = k.changes, k.damper.status(time.Now())
	if k.registered {
		st.Weight = k.says.Weight
	}
	st.Draining, st.Maintenance = k.farewell.until, k.intent.shown()
	k.status.Store(&st)
}

func words(err error) string {
	if err == nil {
		return ""
	}
	return err.Error()
}
