package registrar

import (
	"fmt"
	"maps"
	"time"

	"github.com/sirupsen/logrus"

	"github.com/myelin-sd/myelin/discovery"
	"github.com/myelin-sd/myelin/journal"
)

// Repair is the latest thing that was found not to be as we had left it, and that was mended.
type Repair struct {
	At     time.Time `json:"at"`
	Reason string    `json:"reason"` // one of discovery's Found constants
	Node   string    `json:"node"`   // full path of the node that it was found of
	Detail string    `json:"detail,omitempty"`
}

// repairs is what was mended of one service.
type repairs struct {
	counts map[string]int // by reason
	last   *Repair
}

// What is said of a repair.
const (
	saidAgain = "service is registered again"
	saidData  = "the data of the registration had been changed; they are set right"
	saidTwin  = "the service was registered twice; the other node is removed"
)

// mended takes in what the directory found and mended: it is said once, counted, and shown.
func (k *keeper) mended(made discovery.Published, now time.Time) {
	for _, f := range made.Found {
		fields, said := logrus.Fields{"node": f.Node, "reason": f.Reason}, saidAgain
		switch {
		case f.Reason == discovery.FoundData:
			said = saidData
		case f.Reason == discovery.FoundTwin:
			said = saidTwin
		case f.Node == k.node:
			fields["node"] = made.Node
		}
		if f.Detail != "" {
			fields["reason"] = f.Reason + ": " + f.Detail
		}
		k.logger().WithFields(fields).Info(said)
		k.record(journal.KindRegister, said+", node "+fmt.Sprint(fields["node"]), fmt.Sprint(fields["reason"]))
		k.repairs.last = &Repair{At: now, Reason: f.Reason, Node: f.Node, Detail: f.Detail}
		if k.replaced {
			continue
		}
		k.repairs.counts = maps.Clone(k.repairs.counts) // published copies are read by others
		if k.repairs.counts == nil {
			k.repairs.counts = map[string]int{}
		}
		k.repairs.counts[f.Reason]++
		k.metrics.repaired(k.service.Name, f.Reason)
	}
}
