package registrar

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"maps"
	"os"
	"slices"
	"strings"
	"time"

	"github.com/myelin-sd/myelin/durable"
	"github.com/myelin-sd/myelin/journal"
)

// Maintenance keeps a service withdrawn although it is healthy.
type Maintenance struct {
	Reason string    `json:"reason,omitempty"` // for people
	Author string    `json:"author,omitempty"` // who wants it
	Since  time.Time `json:"since"`            // zero in Maintain: now
	Until  time.Time `json:"until,omitzero"`   // zero: until it is ended
}

// intent is a maintenance in this process.
type intent struct {
	Maintenance
	ends time.Time // by the monotonic clock, so that a step of the other one changes nothing; zero: never
}

// newIntent begins a maintenance at a moment, or takes up one that began earlier: then what is left of it is never more
// than all of it was, should the clock have been set back in between.
func newIntent(m Maintenance, now time.Time) *intent {
	i := &intent{Maintenance: m}
	if !m.Until.IsZero() {
		i.ends = now.Add(min(m.Until.Sub(now), m.Until.Sub(m.Since)))
	}
	return i
}

// wait is how long it lasts; negative: for ever. A nil intent is none.
func (i *intent) wait(now time.Time) time.Duration {
	if i == nil || i.ends.IsZero() {
		return -1
	}
	return max(0, i.ends.Sub(now))
}

func (i *intent) over(now time.Time) bool { return i.wait(now) == 0 }

func (i *intent) shown() *Maintenance {
	if i == nil {
		return nil
	}
	m := i.Maintenance
	return &m
}

// maintain puts the service into maintenance, or ends it with nil. What is the same already is no news.
func (k *keeper) maintain(m *intent) {
	if m == k.intent {
		return
	}
	k.intent = m
	if m == nil {
		k.logger().Info("maintenance has ended")
		k.record(journal.KindRegister, "maintenance has ended", "")
	} else {
		k.entered(m)
	}
	k.pursue(time.Now())
}

func (k *keeper) entered(m *intent) {
	k.logger().WithField("reason", m.Reason).Info("service is in maintenance")
	k.recordMaintenance(m.Maintenance)
}

// expire ends a maintenance whose time is over.
func (k *keeper) expire(now time.Time) {
	if k.intent != nil && k.intent.over(now) {
		k.maintain(nil)
	}
}

// Maintain puts a service into maintenance: it is withdrawn as one that leaves on purpose, and stays so, whatever its
// checks say, until m.Until or EndMaintenance. That outlives Reload, and with Options.StateFile the process. It replaces
// an earlier maintenance of the service. A name that no service has is an error that says which ones are near; so is a
// state file that cannot be written, and a time that has passed. An error has changed nothing.
//
// Like Reload it blocks until Run has begun, and does not wait for the directory.
func (r *Registrar) Maintain(service string, m Maintenance) error {
	now := time.Now()
	if m.Since.IsZero() {
		m.Since = now.UTC().Round(0)
	}
	if !m.Until.IsZero() && !m.Until.After(now) {
		return fmt.Errorf("maintain service %q: its end %s has passed", service, m.Until.Format(time.RFC3339))
	}
	if err := r.intend(service, newIntent(m, now)); err != nil {
		return fmt.Errorf("maintain service %q: %w", service, err)
	}
	return nil
}

// EndMaintenance ends a service's maintenance: it is registered as soon as its checks have it up. Of a service that is
// in none it changes nothing. Its errors are those of Maintain.
func (r *Registrar) EndMaintenance(service string) error {
	if err := r.intend(service, nil); err != nil {
		return fmt.Errorf("end maintenance of service %q: %w", service, err)
	}
	return nil
}

var errStopped = errors.New("the registrar has stopped")

// intend sets the maintenance of a service: on the disk, then in force.
func (r *Registrar) intend(service string, m *intent) error {
	r.intending.Lock() // not for Run's loop: a disk may be slow
	defer r.intending.Unlock()
	var names map[string]bool
	if !r.do(context.Background(), func(context.Context) { names = r.names }) {
		return errStopped
	}
	all := maps.Clone(r.intents.Load().of)
	if _, there := all[service]; !names[service] && !there {
		return unknownService(service, slices.Sorted(maps.Keys(names)))
	}
	now := time.Now()
	maps.DeleteFunc(all, func(_ string, i *intent) bool { return i.over(now) })
	delete(all, service)
	if m != nil {
		all[service] = m
	}
	if err := storeIntents(r.options.StateFile, all); err != nil {
		return err
	}
	r.intents.Store(&intents{all})
	if !r.do(context.Background(), func(context.Context) { r.applyIntents() }) {
		return errStopped
	}
	return nil
}

// intents are the maintenances by service. The map is never changed.
type intents struct{ of map[string]*intent }

// get returns a service's maintenance, nil when it is in none.
func (i *intents) get(service string, now time.Time) *intent {
	if m := i.of[service]; m != nil && !m.over(now) {
		return m
	}
	return nil
}

func (r *Registrar) applyIntents() {
	all, now := r.intents.Load(), time.Now()
	for _, k := range r.keepers {
		k.do(context.Background(), func(context.Context) { k.maintain(all.get(k.service.Name, now)) })
	}
}

// unknownService says which names are near.
func unknownService(name string, all []string) error {
	near := slices.DeleteFunc(slices.Clone(all), func(n string) bool {
		return !strings.Contains(n, name) && !strings.Contains(name, n) && edits(n, name) > max(2, len(name)/3)
	})
	const most = 5
	switch {
	case len(all) == 0:
		return errors.New("there is no such service: none is configured")
	case len(near) > 0:
		return fmt.Errorf("there is no such service; did you mean %s?", strings.Join(near[:min(most, len(near))], ", "))
	case len(all) > most:
		return fmt.Errorf("there is no such service; there are %s and %d more", strings.Join(all[:most], ", "), len(all)-most)
	}
	return fmt.Errorf("there is no such service; there are %s", strings.Join(all, ", "))
}

// edits is the least number of bytes to put in, leave out or change that makes b of a.
func edits(a, b string) int {
	row := make([]int, len(b)+1)
	for j := range row {
		row[j] = j
	}
	for i := range len(a) {
		diagonal := row[0]
		row[0]++
		for j := range len(b) {
			same := 1
			if a[i] == b[j] {
				same = 0
			}
			diagonal, row[j+1] = row[j+1], min(row[j+1]+1, row[j]+1, diagonal+same)
		}
	}
	return row[len(b)]
}

// stateForm is the state file. The names are part of the format.
type stateForm struct {
	Version     int                    `json:"version"`
	Maintenance map[string]Maintenance `json:"maintenance"` // by service
}

const stateVersion = 1

func storeIntents(path string, all map[string]*intent) error {
	if path == "" {
		return nil
	}
	form := stateForm{stateVersion, map[string]Maintenance{}}
	for name, i := range all {
		form.Maintenance[name] = i.Maintenance
	}
	text, err := json.MarshalIndent(form, "", "  ")
	if err == nil {
		err = durable.Replace(durable.File{Path: path, Temp: path + ".tmp", Mode: 0o600}, append(text, '\n'))
	}
	if err != nil {
		return fmt.Errorf("write state file %s: %w; see that its folder is there and can be written", path, err)
	}
	return nil
}

// loadIntents reads what storeIntents wrote. Without a file there is nothing.
func loadIntents(path string, now time.Time) (map[string]*intent, error) {
	all := map[string]*intent{}
	if path == "" {
		return all, nil
	}
	text, err := os.ReadFile(path)
	if errors.Is(err, fs.ErrNotExist) {
		return all, nil
	}
	var form stateForm
	if err == nil {
		err = json.Unmarshal(text, &form)
	}
	if err == nil && form.Version != stateVersion {
		err = fmt.Errorf("its version is %d, and not %d", form.Version, stateVersion)
	}
	if err != nil {
		return all, fmt.Errorf("read state file %s: %w", path, err)
	}
	for name, m := range form.Maintenance {
		if i := newIntent(m, now); !i.over(now) {
			all[name] = i
		}
	}
	return all, nil
}
