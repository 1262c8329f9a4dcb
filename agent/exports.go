package agent

import (
	"context"
	"sync"
	"time"

	"github.com/sirupsen/logrus"
)

const (
	exportGap   = time.Second // least time between two rounds of writing
	exportEvery = time.Minute // files are looked at, and the state file is written, whatever happens
)

// exports keeps the files that other programs read in step with what is in force: Synapse's state file, and
// file_output's. It is never in the way of a change: one that comes while it writes is written the next time.
type exports struct {
	views   func() []view
	wanted  func() *wanted
	backend func(i int) string // HAProxy's section of a service, by index
	wake    <-chan struct{}    // capacity one: something changed
	inForce <-chan struct{}    // closed when the configuration has proved itself
	proved  bool               // it is: what it has no use for may be deleted
	log     logrus.FieldLogger

	state  *stateFile   // nil: none is kept
	output *outputFiles // nil: none are

	mu  sync.Mutex
	err string
}

// exportStatus is the exports' part of a Status.
type exportStatus struct {
	StateFile string `json:"state_file,omitempty"`
	Folder    string `json:"file_output,omitempty"`
	Error     string `json:"error,omitempty"` // why not all of it is up to date
}

// run writes until ctx is done, and then once more: nothing else runs that changes views or wanted by then.
func (x *exports) run(ctx context.Context) {
	if x.state == nil && x.output == nil {
		return
	}
	tick := time.NewTicker(exportEvery)
	defer tick.Stop()
	for {
		began := time.Now()
		select {
		case <-ctx.Done():
			return
		case <-x.inForce:
			x.inForce, x.proved = nil, true
			x.write(false)
		case <-x.wake:
			x.write(false)
		case <-tick.C:
			x.write(true)
		}
		select {
		case <-ctx.Done():
			return
		case <-time.After(min(max(exportGap, writeShare*time.Since(began)), mostPause)):
		}
	}
}

// end leaves the disk with what was last in force. Nothing changes any more when it is called.
func (x *exports) end() {
	if x.state != nil || x.output != nil {
		x.write(false)
	}
}

func (x *exports) write(verify bool) {
	views := x.views()
	var failed []error
	if x.state != nil {
		x.state.update(views, x.wanted(), x.backend, time.Now())
		failed = append(failed, x.state.write(views))
	}
	if x.output != nil {
		failed = append(failed, x.output.write(views, verify))
		if x.proved {
			failed = append(failed, x.prune(views))
		}
	}
	x.note(failed)
}

// prune deletes files of services that this configuration does not have, or that are to have none.
func (x *exports) prune(views []view) error {
	removed, err := x.output.prune(views)
	for _, name := range removed {
		x.log.WithField("service", name).Info("its file in file_output.output_directory is deleted: the configuration has it no more")
	}
	return err
}

// note logs only the changes of how writing goes.
func (x *exports) note(failed []error) {
	now := ""
	for _, err := range failed {
		if err != nil {
			now = both(now, err.Error())
		}
	}
	x.mu.Lock()
	before := x.err
	x.err = now
	x.mu.Unlock()
	switch {
	case now != "" && now != before:
		x.log.WithField("err", now).Error("files for other programs are not up to date; it is tried again")
	case now == "" && before != "":
		x.log.Info("files for other programs are up to date again")
	}
}

func (x *exports) status() exportStatus {
	s := exportStatus{}
	if x.state != nil {
		s.StateFile = x.state.path
	}
	if x.output != nil {
		s.Folder = x.output.dir
	}
	x.mu.Lock()
	defer x.mu.Unlock()
	s.Error = x.err
	return s
}
