package haproxy

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/sirupsen/logrus"
)

// masterPatience is how long the master's socket may be silent before it is said: one that reloads takes milliseconds,
// with a large file seconds.
const masterPatience = 5 * time.Second

// OperatedOptions are what an Operated needs to know.
type OperatedOptions struct {
	MasterSocket string // unix socket of the master CLI, HAProxy's -S
	ConfigPath   string // the file that Explain is asked about

	// Explain tells why HAProxy refuses a file, for masters that do not (up to 2.6). nil: nobody can tell.
	Explain Check

	Log logrus.FieldLogger
}

// Operated is a HAProxy that somebody else starts and looks after, seen through its master's CLI: what it does is
// noticed at once, and it can be reloaded.
type Operated struct {
	o       OperatedOptions
	changed chan struct{}
}

// NewOperated returns an Operated that notices nothing until Run is called.
func NewOperated(o OperatedOptions) *Operated {
	return &Operated{o: o, changed: make(chan struct{}, 1)}
}

// Changed gets a value when HAProxy begins a reload, ends one, is gone and is back, whoever did it: it is time to look at
// its state again. There may be one too many, never one too few while the master's socket can be held. Its capacity is
// one; what is not taken is merged.
func (h *Operated) Changed() <-chan struct{} { return h.changed }

func (h *Operated) signal() {
	select {
	case h.changed <- struct{}{}:
	default:
	}
}

// Run holds a connection to the master, one after the other, until ctx is done. A master that cannot be reached is said
// once and tried for ever: without it a reload is noticed all the same, only later, by whoever asks the admin socket.
func (h *Operated) Run(ctx context.Context) {
	log := h.o.Log.WithField("path", h.o.MasterSocket)
	lost, said := time.Now(), false
	for ctx.Err() == nil {
		held := holdMaster(ctx, h.o.MasterSocket, func() bool {
			if said {
				log.Info("HAProxy's master answers again")
			}
			lost, said = time.Time{}, false
			h.signal() // what happened before the connection was there, it does not tell
			return true
		})
		if held {
			h.signal()
		}
		switch {
		case lost.IsZero():
			lost = time.Now()
		case !said && !held && time.Since(lost) > masterPatience && ctx.Err() == nil:
			said = true
			log.Warn("HAProxy's master does not answer: reloads by others are noticed later; start HAProxy with -W -S and the path of haproxy.master_socket_path, and let this user write to it")
		}
	}
}

// Reload lets HAProxy read its file again without closing a connection, and waits until the new worker serves. Where
// HAProxy refuses the file the old worker stays, and the error has HAProxy's own words: the master's from 2.7 on, before
// that those of Explain. It takes at most a minute; calls must not overlap.
func (h *Operated) Reload(ctx context.Context) error {
	before, err := askMaster(ctx, h.o.MasterSocket)
	if err != nil {
		return fmt.Errorf("reload HAProxy: ask its master: %w; is it running, with -W -S %s?", err, h.o.MasterSocket)
	}
	err = reloadMaster(ctx, h.o.MasterSocket, before)
	if errors.Is(err, errReloadFailed) && h.o.Explain != nil && h.o.ConfigPath != "" {
		if why := h.o.Explain(ctx, h.o.ConfigPath); why != nil {
			err = fmt.Errorf("%w: %w", errReloadFailed, why)
		}
	}
	if err != nil {
		return fmt.Errorf("reload HAProxy: %w", err)
	}
	return nil
}
