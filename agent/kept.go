package agent

import (
	"encoding/json"
	"fmt"
	"io/fs"
	"path/filepath"
	"strings"
	"time"

	"github.com/myelin-sd/myelin/discovery"
)

// KeptSet is the set of a service that an agent keeps in its state_dir.
type KeptSet struct {
	discovery.Kept
	Path string // where its instances were looked for
}

// KeptSets are the sets that agents keep in a state_dir, the youngest of each service only, in the order of their files.
// It needs no agent, and writes nothing. Where nothing was ever kept there are none.
func KeptSets(stateDir string) ([]KeptSet, error) {
	kept, err := keptIn(stateDir).List()
	if err != nil {
		return nil, err
	}
	var out []KeptSet
	at := map[string]int{}
	for _, k := range kept {
		i, there := at[k.Service]
		switch {
		case !there:
			at[k.Service] = len(out)
			out = append(out, KeptSet{k, pathOf(k.Origin)})
		case k.AsOf.After(out[i].AsOf):
			out[i] = KeptSet{k, pathOf(k.Origin)}
		}
	}
	return out, nil
}

func keptIn(stateDir string) discovery.Store {
	return discovery.Store{Dir: filepath.Join(stateDir, "snapshots")}
}

// pathOf is the path in what origin has made.
func pathOf(origin string) string {
	_, rest, _ := strings.Cut(origin, " ")
	_, path, _ := strings.Cut(rest, " ")
	return path
}

// LoadKept reads the set that is kept of a service, by its name or its path. The error is fs.ErrNotExist where nothing
// is.
func LoadKept(stateDir, service string) (discovery.Snapshot, KeptSet, error) {
	sets, err := KeptSets(stateDir)
	if err != nil {
		return discovery.Snapshot{}, KeptSet{}, err
	}
	for _, k := range sets {
		if k.Service == service || k.Path == service {
			snap, asOf, err := keptIn(stateDir).Load(k.Service, k.Origin)
			k.AsOf = asOf
			return snap, k, err
		}
	}
	return discovery.Snapshot{}, KeptSet{}, fmt.Errorf("load the set of service %s: %w", service, fs.ErrNotExist)
}

// KeptListing is what is kept of a service in a state_dir. The error is fs.ErrNotExist where nothing is.
func KeptListing(stateDir, service string) (Listing, error) {
	snap, k, err := LoadKept(stateDir, service)
	if err != nil {
		return Listing{}, err
	}
	l := Listing{Service: k.Service, Path: k.Path, Known: true, AsOf: k.AsOf, FromDisk: true, Missing: snap.Missing, Instances: InfosOf(k.Service, snap)}
	held := map[string]string{}
	for _, h := range keptHolds(snap) {
		for _, e := range h.Instances {
			held[e] = h.Reason
		}
	}
	for i, in := range snap.Instances {
		if reason, ok := held[in.Endpoint.String()]; ok {
			l.Instances[i].State, l.Instances[i].Reason = StateHeld, reason
		}
	}
	return l, nil
}

// keptHolds are the holds that are kept with a set. While the registry lists nothing, time ends none of them.
func keptHolds(snap discovery.Snapshot) (holds []HoldStatus) {
	var n guardNote
	if snap.Note == "" || json.Unmarshal([]byte(snap.Note), &n) != nil {
		return nil
	}
	held := 0
	for _, h := range n.Holds {
		held += len(h.Of)
	}
	for _, h := range n.Holds {
		s := HoldStatus{Reason: h.Reason, Since: h.Since, Judged: !h.Waits, Instances: h.Of}
		if !h.Until.IsZero() && held < len(snap.Instances) {
			s.Until = &h.Until
		}
		holds = append(holds, s)
	}
	return holds
}

// KeptService is what an agent keeps of a service in its state_dir.
type KeptService struct {
	KeptSet
	Holds []HoldStatus
	Err   error // the set is of no use; it is told of by its file's head alone
}

// Listed is how many instances the registry listed.
func (k KeptService) Listed() int {
	n := k.Instances
	for _, h := range k.Holds {
		n -= len(h.Instances)
	}
	return max(n, 0)
}

// KeptServices are the services of which agents keep something in a state_dir, in the order of their files. Where nothing
// was ever kept there are none. It needs no agent, and writes nothing.
func KeptServices(stateDir string) ([]KeptService, error) {
	sets, err := KeptSets(stateDir)
	if err != nil {
		return nil, err
	}
	out := make([]KeptService, len(sets))
	for i, k := range sets {
		out[i].KeptSet = k
		snap, _, err := keptIn(stateDir).Load(k.Service, k.Origin)
		if err != nil {
			out[i].Err = err
			continue
		}
		out[i].Holds = keptHolds(snap)
	}
	return out, nil
}

// OverridesFile is where an agent keeps the overrides that it knows of.
func OverridesFile(stateDir string) string { return filepath.Join(stateDir, "overrides.json") }

// KeptOverrides are the overrides that an agent keeps in a state_dir, as its status would tell of them before it has heard
// of the registry: FromDisk is until when they were known to be right. The error is fs.ErrNotExist where none are kept. It
// needs no agent, and writes nothing.
func KeptOverrides(stateDir string, now time.Time) (OverridesStatus, error) {
	kept, asOf, err := loadOverrides(OverridesFile(stateDir))
	if err != nil {
		return OverridesStatus{}, err
	}
	o := restoredOverrides(kept.children(), asOf)
	s := OverridesStatus{Path: pathOf(kept.Origin), Ensemble: ensembleOf(kept.Origin), FromDisk: &asOf, List: []OverrideStatus{}, Bad: o.bad}
	for _, v := range o.all {
		s.List = append(s.List, overrideStatus(v, now))
	}
	return s, nil
}

// ensembleOf are the hosts in what origin has made.
func ensembleOf(origin string) string {
	_, rest, _ := strings.Cut(origin, " ")
	hosts, _, _ := strings.Cut(rest, " ")
	return hosts
}

// AsOfOverrides is until when what st says of overrides is known to be right; zero: nothing is known of them.
func (st Status) AsOfOverrides(now time.Time) time.Time {
	o := st.Overrides
	switch {
	case o.Heard == nil && o.FromDisk == nil:
		return time.Time{}
	case o.Heard == nil:
		return *o.FromDisk
	}
	for _, z := range st.ZooKeeper {
		if z.Ensemble == o.Ensemble && !z.Connected {
			return z.Since
		}
	}
	return now
}

// AsOf is until when what st says of the services' instances is known to be right: that of the oldest of them. Services
// that do not come from a registry count as right now.
func (st Status) AsOf(now time.Time) time.Time {
	oldest := now
	heard := st.heard(now)
	for _, s := range st.Services {
		at, ok := heard[s.Service]
		if s.FromDisk != nil {
			at, ok = *s.FromDisk, true
		}
		if ok && at.Before(oldest) {
			oldest = at
		}
	}
	return oldest
}
