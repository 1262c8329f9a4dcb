package journal

import (
	"encoding/json"
	"sync"
	"time"

	"github.com/sirupsen/logrus"
)

// Pacing of a journal.
const (
	gatherFor  = 200 * time.Millisecond // events are written at most so late
	retryEvery = 5 * time.Second        // after a write that failed
	mostKept   = 1 << 20                // bytes that wait while nothing can be written
)

// DefaultMaxSize is how many bytes the segments of a role have at the most, unless told otherwise.
const DefaultMaxSize = 16 << 20

// Options say what a Journal keeps, and where.
type Options struct {
	// Dir is the folder for the segments, made when it is missing. Journals of several roles and processes may share it.
	// Empty: nothing is kept, and only Feed gets the events.
	Dir string

	Role  string // of the events that name none: agent or registrar. It is the beginning of the files' names
	Owner string // tells those of one role apart that share Dir; part of the files' names. Empty: there is one

	MaxSize int64 // bytes of all segments of the role in Dir; 0: DefaultMaxSize
	Feed    *Feed // gets the events too; may be shared; nil: nobody listens
	Log     logrus.FieldLogger
}

// Journal is a Recorder that keeps events on disk, within bounds: the oldest go first. One goroutine writes, in batches
// that are at most a moment late, so that a process that is killed loses that moment. What cannot be written is waited
// with, and lost when it becomes too much, which the journal itself says; nothing else suffers. A nil Journal records
// nothing.
type Journal struct {
	o       Options
	wake    chan struct{} // capacity one: something waits
	closing chan struct{}
	done    chan struct{}
	once    sync.Once

	mu      sync.Mutex
	pending pending

	// The rest belongs to the goroutine.
	segments *segments
	unsaid   []byte // lines that could not be written yet
	lost     int    // events that were given up since the last line that was written
	failing  bool
	next     time.Time // not before this, it is tried again
}

// Open begins a journal. It touches no file before there is an event. Whoever opens it closes it.
func Open(o Options) *Journal {
	if o.MaxSize <= 0 {
		o.MaxSize = DefaultMaxSize
	}
	j := &Journal{o: o, wake: make(chan struct{}, 1), closing: make(chan struct{}), done: make(chan struct{})}
	if o.Dir != "" {
		j.segments = newSegments(o.Dir, o.Role, o.Owner, o.MaxSize)
	}
	go j.run()
	return j
}

// Record implements Recorder. What is recorded after Close is lost.
func (j *Journal) Record(e Event) {
	if j == nil {
		return
	}
	e = e.bounded(j.o.Role, time.Now())
	j.mu.Lock()
	j.pending.add(e)
	j.mu.Unlock()
	select {
	case j.wake <- struct{}{}:
	default:
	}
}

// Close writes what was recorded and ends the journal. It blocks until the disk has taken it, or has refused it once
// more. It may be called again.
func (j *Journal) Close() {
	if j == nil {
		return
	}
	j.once.Do(func() { close(j.closing) })
	<-j.done
}

// run writes until Close.
func (j *Journal) run() {
	defer close(j.done)
	timer := time.NewTimer(time.Hour)
	defer timer.Stop()
	for {
		timer.Stop()
		if j.failing {
			timer.Reset(time.Until(j.next))
		}
		select {
		case <-j.closing:
			j.next = time.Time{}
			j.write()
			if j.segments != nil {
				j.segments.close()
			}
			return
		case <-timer.C:
		case <-j.wake:
			timer.Reset(gatherFor)
			select {
			case <-j.closing:
			case <-timer.C:
			}
		}
		j.write()
	}
}

// write hands out what waits, and writes it when that may be tried.
func (j *Journal) write() {
	j.mu.Lock()
	events, lost := j.pending.take()
	j.mu.Unlock()
	if lost > 0 {
		events = append(events, lostEvent(j.o.Role, lost, "more came at once than could be written"))
	}
	if j.o.Feed != nil {
		j.o.Feed.publish(events)
	}
	if j.segments == nil {
		return
	}
	for _, e := range events {
		line := encode(e)
		if len(j.unsaid)+len(line) > mostKept {
			j.lost++
			continue
		}
		j.unsaid = append(j.unsaid, line...)
	}
	if time.Now().Before(j.next) || len(j.unsaid) == 0 {
		return
	}
	if j.lost > 0 {
		j.unsaid = append(j.unsaid, encode(lostEvent(j.o.Role, j.lost, "the history could not be written for too long"))...)
		j.lost = 0
	}
	rest, err := j.segments.append(j.unsaid)
	j.unsaid = append([]byte(nil), rest...)
	j.note(err)
}

// note says once that nothing can be written, and once that it can again.
func (j *Journal) note(err error) {
	switch {
	case err != nil && !j.failing:
		j.log().WithFields(logrus.Fields{"path": j.o.Dir, "err": err}).
			Warn("the history is not kept, all else goes on: make it a folder with room that this process may write to; it is tried again")
	case err == nil && j.failing:
		j.log().WithField("path", j.o.Dir).Info("the history is kept again")
	}
	j.failing, j.next = err != nil, time.Time{}
	if err != nil {
		j.next = time.Now().Add(retryEvery)
	}
}

func (j *Journal) log() logrus.FieldLogger {
	if j.o.Log == nil {
		silent := logrus.New()
		silent.SetLevel(logrus.PanicLevel)
		return silent
	}
	return j.o.Log
}

// encode is an event's line.
func encode(e Event) []byte {
	line, err := json.Marshal(e)
	if err != nil { // no clock goes beyond the year 9999, which is all that cannot be written
		e.At = time.Unix(0, 0).UTC()
		line, _ = json.Marshal(e)
	}
	return append(line, '\n')
}
