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
	var n guardNote
	if snap.Note != "" && json.Unmarshal([]byte(snap.Note), &n) == nil {
		for _, h := range n.Holds {
			for _, e := range h.Of {
				held[e] = h.Reason
			}
		}
	}
	for i, in := range snap.Instances {
		if reason, ok := held[in.Endpoint.String()]; ok {
			l.Instances[i].State, l.Instances[i].Reason = StateHeld, reason
		}
	}
	return l, nil
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
