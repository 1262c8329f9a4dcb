package agent

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"io/fs"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/sirupsen/logrus"

	"github.com/myelin-sd/myelin/config"
	"github.com/myelin-sd/myelin/discovery"
	"github.com/myelin-sd/myelin/journal"
)

const (
	saveEvery    = 3 * time.Second // least time between two rounds of writing
	mostPause    = time.Minute     // and the most, when the disk is slow
	confirmEvery = time.Minute     // the files are marked as still right, and what could not be written is tried again
)

// snapshots keeps on disk what is in force, so that a start during an outage of the registry serves it. It is never
// in the way of a change: a change that comes while it writes is written the next time.
type snapshots struct {
	store    discovery.Store // Dir is empty when nothing is to be kept
	services []config.Service
	bases    func() []basis
	heard    func() map[string]time.Time // when the registry was last heard of, by service
	wake     <-chan struct{}             // capacity one: something changed
	inForce  <-chan struct{}             // closed when the configuration has proved itself
	log      logrus.FieldLogger

	saved []*discovery.Snapshot // by index of services: what the disk has for certain; nil: who knows

	mu  sync.Mutex
	err string
}

// basis is what is to be kept of one service.
type basis struct {
	snapshot discovery.Snapshot
	ours     bool      // there is something to keep that did not come from the disk
	listed   time.Time // until when the registry listed it; zero: it still does
}

// snapshotStatus is the snapshots' part of a Status.
type snapshotStatus struct {
	Path  string `json:"path,omitempty"`  // the folder
	Error string `json:"error,omitempty"` // why not everything in force is kept there
}

// storeOf is where a configuration's snapshots are kept; without a folder when it names none.
func storeOf(c *config.Agent) discovery.Store {
	if c.StateDir == "" {
		return discovery.Store{}
	}
	owner := c.Path
	if abs, err := filepath.Abs(c.Path); err == nil {
		owner = abs
	}
	return discovery.Store{Dir: filepath.Join(c.StateDir, "snapshots"), Owner: owner}
}

// origin says in words where a service's instances are found. Another origin is another set. The order of the hosts
// does not matter.
func origin(s config.Service) string {
	z := s.Discovery.ZooKeeper
	hosts := slices.Sorted(slices.Values(z.Hosts))
	return strings.Join([]string{s.Discovery.Method, strings.Join(hosts, ",") + z.Chroot, s.Discovery.Path}, " ")
}

// kept tells whether a service's instances come from somewhere that may be away.
func kept(s config.Service) bool { return s.Discovery.Method != "base" }

// recall is the view of a service that nothing has been heard of: the set that was in force when the last process
// saved it, where there is one. The error is of a file that is of no use.
func recall(store discovery.Store, s config.Service, now time.Time) (view, error) {
	v := newView(s)
	if store.Dir == "" || !kept(s) {
		return v, nil
	}
	snap, asOf, err := store.Load(s.Name, origin(s))
	switch {
	case errors.Is(err, fs.ErrNotExist):
		return v, nil
	case err != nil:
		return v, err
	}
	return v.restore(snap, asOf, now), nil
}

// recall does the same at a start, and tells what it found. A file that is of no use never stops a start.
func (a *Agent) recall(store discovery.Store, s config.Service, now time.Time) view {
	v, err := recall(store, s, now)
	log := a.log.WithField("service", s.Name)
	switch {
	case errors.Is(err, discovery.ErrCorrupt):
		aside, err2 := store.SetAside(s.Name, origin(s))
		if err2 != nil {
			err = errors.Join(err, err2)
		}
		log.WithFields(logrus.Fields{"path": aside, "err": err}).Warn("the set kept on disk is of no use; it is set aside, and the registry is waited for")
	case err != nil:
		log.WithField("err", err).Warn("the set kept on disk cannot be read; the registry is waited for")
	case v.fromDisk():
		log.WithFields(logrus.Fields{"count": len(v.active), "duration": since(now, v.stored).Round(time.Second)}).Info("serving the last known set from disk until the registry is heard of")
		a.o.Journal.Record(journal.Event{Kind: journal.KindRegistry, Service: s.Name, Cause: "nothing is heard of the registry yet",
			What: fmt.Sprintf("the last known set of %d is served from disk, as it was %s ago", len(v.active), roundly(since(now, v.stored)))})
	}
	return v
}

// since is never negative: a clock may have been set back.
func since(now, then time.Time) time.Duration { return max(0, now.Sub(then)) }

// run writes what changed, until ctx is done. end does the rest.
func (k *snapshots) run(ctx context.Context) {
	if k.store.Dir == "" {
		return
	}
	tick := time.NewTicker(confirmEvery)
	defer tick.Stop()
	for {
		began := time.Now()
		wrote := 0
		select {
		case <-ctx.Done():
			return
		case <-k.inForce:
			k.inForce = nil
			k.prune()
		case <-k.wake:
			wrote = k.save(ctx)
		case <-tick.C:
			wrote = k.save(ctx)
			k.confirm()
		}
		if wrote == 0 {
			continue
		}
		select {
		case <-ctx.Done():
			return
		case <-time.After(min(max(saveEvery, writeShare*time.Since(began)), mostPause)):
		}
	}
}

// end leaves the disk with what was last in force. Nothing changes any more when it is called.
func (k *snapshots) end() {
	if k.store.Dir == "" {
		return
	}
	k.save(context.Background())
	k.confirm()
}

// save writes the sets that changed and returns how many it tried.
func (k *snapshots) save(ctx context.Context) int {
	tried, failed := 0, error(nil)
	for i, b := range k.bases() {
		if ctx.Err() != nil {
			return tried
		}
		if !b.ours || !kept(k.services[i]) || k.has(i, b) {
			continue
		}
		tried++
		asOf := time.Now()
		if !b.listed.IsZero() {
			asOf = b.listed
		}
		b.snapshot.Service = k.services[i].Name
		if err := k.store.Save(b.snapshot, origin(k.services[i]), asOf); err != nil {
			failed = cmp.Or(failed, err)
			continue
		}
		k.saved[i] = &b.snapshot
	}
	if tried > 0 {
		k.note(failed)
	}
	return tried
}

// has tells whether the disk has what is to be kept of a service.
func (k *snapshots) has(i int, b basis) bool {
	return k.saved[i] != nil && sameList(*k.saved[i], b.snapshot) && k.saved[i].Note == b.snapshot.Note
}

// sameList tells whether two snapshots hold the very same list. Snapshots are never changed, so that there is no need
// to look into it.
func sameList(a, b discovery.Snapshot) bool {
	if a.Missing != b.Missing || len(a.Instances) != len(b.Instances) {
		return false
	}
	return len(a.Instances) == 0 || &a.Instances[0] == &b.Instances[0]
}

// confirm marks the files of services that the registry is known to list so until now, or until it was last heard of.
func (k *snapshots) confirm() {
	heard := k.heard()
	for i, b := range k.bases() {
		s := k.services[i]
		at, ok := heard[s.Name]
		if !ok || !b.ours || !kept(s) || !b.listed.IsZero() || !k.has(i, b) {
			continue
		}
		if err := k.store.Confirm(s.Name, origin(s), at); errors.Is(err, fs.ErrNotExist) {
			k.saved[i] = nil // somebody removed the file: it is written again
		} else if err != nil {
			k.log.WithField("err", err).Debug("the age of a set kept on disk is not up to date")
		}
	}
}

// prune removes what was kept of services that this configuration does not have.
func (k *snapshots) prune() {
	type service struct{ name, origin string }
	wanted := make(map[service]bool, len(k.services))
	for _, s := range k.services {
		wanted[service{s.Name, origin(s)}] = kept(s)
	}
	removed, err := k.store.Prune(func(name, origin string) bool { return wanted[service{name, origin}] })
	for _, name := range removed {
		k.log.WithField("service", name).Info("the set kept on disk is removed: no service of the configuration looks where it is from")
	}
	if err != nil {
		k.log.WithField("err", err).Warn("sets of old services stay on disk")
	}
}

// note logs only the changes of how writing goes.
func (k *snapshots) note(err error) {
	k.mu.Lock()
	before := k.err
	k.err = ""
	if err != nil {
		k.err = err.Error()
	}
	k.mu.Unlock()
	switch {
	case err != nil && before == "":
		k.log.WithFields(logrus.Fields{"path": k.store.Dir, "err": err}).Warn("what is in force cannot be kept on disk; a start without the registry would not know it: make state_dir a folder with room that this process may write to")
	case err == nil && before != "":
		k.log.WithField("path", k.store.Dir).Info("what is in force is kept on disk again")
	}
}

func (k *snapshots) status() snapshotStatus {
	k.mu.Lock()
	defer k.mu.Unlock()
	return snapshotStatus{Path: k.store.Dir, Error: k.err}
}
