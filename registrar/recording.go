package registrar

import (
	"strings"
	"time"

	"github.com/myelin-sd/myelin/journal"
)

// What follows says what happened, for the history.

func (k *keeper) record(kind journal.Kind, what, cause string) {
	k.journal.Record(journal.Event{Kind: kind, Service: k.service.Name, What: what, Cause: cause})
}

// recordJudgement tells what the checks amount to now.
func (k *keeper) recordJudgement(j judgement) {
	k.record(journal.KindCheck, "service is "+j.String(), checkCause(j.check, j.reason))
}

// recordCheck tells that one of several checks has turned. What the only one says is what the service is.
func (k *keeper) recordCheck(r result) {
	if len(k.probes) > 1 {
		k.record(journal.KindCheck, "check "+r.probe.check.Name+" is "+r.probe.opinion().state.String(), words(r.err))
	}
}

// cause is what a result has led to something by; empty: there is none.
func (r result) cause() string {
	if r.probe == nil {
		return ""
	}
	return checkCause(r.probe.check.Name, r.err)
}

func checkCause(check string, err error) string {
	switch {
	case check == "":
		return ""
	case err == nil:
		return "check " + check + " passed"
	}
	return "check " + check + ": " + err.Error()
}

// whyAway is why a service is to be away.
func (k *keeper) whyAway() string {
	switch {
	case k.replaced:
		return "it is configured no more, or elsewhere"
	case k.leaving:
		return "the registrar stops"
	case k.intent != nil:
		return "it is in maintenance"
	case k.state == Down:
		return "its checks have it down"
	}
	return ""
}

// recordMaintenance tells that somebody takes the service away.
func (k *keeper) recordMaintenance(m Maintenance) {
	what := "service is in maintenance"
	if !m.Until.IsZero() {
		what += " until " + m.Until.UTC().Format(time.RFC3339)
	}
	cause := m.Reason
	if m.Author != "" {
		cause = strings.TrimPrefix(cause+"; by "+m.Author, "; ")
	}
	k.record(journal.KindRegister, what, cause)
}
