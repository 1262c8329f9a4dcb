package registrar

import (
	"context"
	"time"

	"github.com/myelin-sd/myelin/journal"
)

// farewell is how a service goes for good, beside the withdrawal.
type farewell struct {
	gone     time.Time // when it was last withdrawn; zero: it never was
	until    time.Time // it drains until then; zero: it does not yet
	deadline time.Time // the withdrawal is given up then; zero: it never is
	givenUp  bool

	succeeded bool               // another keeper goes on with the service
	followed  []*keeper          // that this one goes on with the service of
	behind    <-chan struct{}    // the end of one of them, which is waited for
	running   context.CancelFunc // kills the command that runs; nil: none does
	ran       bool               // the command was run, or there is nothing to run
}

// retire has the service withdrawn: at once, or as soon as its successor is settled. From now on it counts nothing:
// the successor does, or nobody.
func (k *keeper) retire(successor *keeper) {
	k.replaced = true
	if successor == nil {
		k.leave(time.Now())
		return
	}
	k.farewell.succeeded = true
	if !k.leaving {
		k.after = successor.settled
	}
}

// follow notes another keeper whose service this one goes on with.
func (k *keeper) follow(was *keeper) { k.farewell.followed = append(k.farewell.followed, was) }

// lags is closed when one of those that were followed has gone; nil: all have.
func (f *farewell) lags() <-chan struct{} {
	for _, was := range f.followed {
		if !closed(was.done) {
			return was.done
		}
	}
	return nil
}

// close has the service leave because the process ends.
func (k *keeper) close(now time.Time) {
	notice := k.notice()
	k.leave(now)
	k.upkeep.urge(now)
	k.farewell.deadline = now.Add(notice + closeTimeout)
}

// leave begins to withdraw for good.
func (k *keeper) leave(now time.Time) {
	k.endProbes()
	k.leaving, k.after, k.next = true, nil, nil
	k.pursue(now)
}

// notice is how long the mark of a leave is to stand. What is not known to be registered is not marked: the mark would
// be a registration.
func (k *keeper) notice() time.Duration {
	if !k.registered || k.service.Render == nil || closed(k.hurried) {
		return 0
	}
	return k.service.Leave.Notice
}

// depart takes the next step of a service that leaves for good: withdraw, drain, run the command. It reports that there
// is none any more, or else how long nothing is to be done; negative: until something happens.
func (k *keeper) depart(ctx context.Context, now time.Time) (rest time.Duration, over bool) {
	f := &k.farewell
	if !k.upkeep.absent() && !f.givenUp {
		if f.deadline.IsZero() {
			return -1, false
		}
		if rest := f.deadline.Sub(now); rest > 0 {
			return rest, false
		}
		k.giveUpWithdrawal(now)
	}
	if rest := k.drain(now); rest > 0 {
		return rest, false
	}
	switch {
	case f.running != nil:
		return -1, false
	case f.ran || f.succeeded || len(k.service.Leave.OnStop.Command) == 0:
		return 0, true
	}
	if f.behind = f.lags(); f.behind != nil {
		return -1, false // the service is still used through its former node
	}
	k.runHook(ctx)
	return -1, false
}

// giveUpWithdrawal leaves the rest to the end of the session.
func (k *keeper) giveUpWithdrawal(now time.Time) {
	if k.giveUp != nil {
		k.giveUp()
		k.conclude(<-k.outcomes) // soon: requests heed their context
	}
	if k.upkeep.absent() {
		return
	}
	k.farewell.givenUp, k.farewell.gone = true, now
	k.logger().WithField("duration", closeTimeout).Warn("service was not withdrawn in time; its node goes with the session")
	k.record(journal.KindRegister, "service was not withdrawn in time; its node goes with the session", words(k.problem))
}

// drain is how long the service has to stay up yet. Who uses it hears of the withdrawal with a delay, and may have
// connections to it then.
func (k *keeper) drain(now time.Time) time.Duration {
	f := &k.farewell
	if f.gone.IsZero() || closed(k.hurried) {
		f.until = time.Time{}
		return 0
	}
	until := f.gone.Add(k.service.Leave.Drain)
	rest := until.Sub(now)
	switch {
	case rest <= 0:
		until = time.Time{}
	case f.until.IsZero():
		k.logger().WithField("duration", rest).Info("service drains")
	}
	f.until = until
	return rest
}

// runHook begins to run the command.
func (k *keeper) runHook(ctx context.Context) {
	k.farewell.ran = true
	ctx, k.farewell.running = context.WithCancel(context.WithoutCancel(ctx)) // the process is to end, and waits
	hook, name, log := k.service.Leave.OnStop, k.service.Name, k.logger()
	began := time.Now()
	go func() { // hookEnded takes what it sends
		err := hook.run(ctx, name, log)
		if err == nil {
			log.WithField("duration", time.Since(began)).Info("on_stop command ended")
		}
		k.hooked <- err
	}()
}

// hookEnded takes the command's outcome.
func (k *keeper) hookEnded(err error) {
	k.farewell.running()
	k.farewell.running = nil
	if err == nil {
		k.record(journal.KindRegister, "the on_stop command has ended", "")
	} else {
		k.record(journal.KindRegister, "the on_stop command failed", err.Error())
	}
	if err != nil {
		k.logger().WithField("err", err).Warn("on_stop command failed")
	}
}
