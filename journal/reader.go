package journal

import (
	"bufio"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"slices"
	"strings"
	"syscall"
	"time"
)

// maxLine is far beyond the longest line that a journal writes.
const maxLine = 64 << 10

// Filter chooses events. The zero value chooses all.
type Filter struct {
	Service string    // empty: any, and those about none
	Kinds   []Kind    // none: any
	Since   time.Time // zero: from the beginning
}

// Match tells whether e is chosen.
func (f Filter) Match(e Event) bool {
	return (f.Service == "" || f.Service == e.Service) && (len(f.Kinds) == 0 || slices.Contains(f.Kinds, e.Kind)) &&
		(f.Since.IsZero() || !e.At.Before(f.Since))
}

// Reader reads what journals have written in some folders, also while they write. It changes nothing, and needs nobody
// to run.
type Reader struct {
	dirs []string
	at   map[string]place

	// Of all that was read so far.
	Torn     int       // lines that are no events: a process ended in the middle of one, or somebody else wrote it
	Newest   time.Time // the newest event, chosen or not; zero: there is none
	Services []string  // of all events, chosen or not; sorted

	// Of the last call of Next.
	Problems []error  // files and folders that could not be read
	Writers  []string // whose segments are being written now: a role, with its owner behind a "-"; sorted
}

// place is how far a segment was read.
type place struct {
	info   fs.FileInfo
	offset int64
	torn   bool // what is behind offset was counted as a torn line
}

// NewReader reads nothing yet.
func NewReader(dirs ...string) *Reader {
	slices.Sort(dirs)
	return &Reader{dirs: slices.Compact(dirs), at: map[string]place{}}
}

// Next returns the chosen events that were written since the last call, and at the first call all, by their times. Lines
// that are being written are left for the next call. The error is one of fs.ErrNotExist where there is none of the
// folders, or else what kept all of them from being read.
func (r *Reader) Next(f Filter) ([]Event, error) {
	r.Problems, r.Writers = nil, nil
	var all []segment
	var failed []error
	for _, dir := range r.dirs {
		segments, err := listSegments(dir)
		if err != nil {
			failed = append(failed, fmt.Errorf("read history in %s: %w", dir, reason(err)))
			continue
		}
		all = append(all, segments...)
	}
	if len(failed) == len(r.dirs) {
		return nil, errors.Join(failed...)
	}
	for _, err := range failed {
		if !errors.Is(err, fs.ErrNotExist) {
			r.Problems = append(r.Problems, err)
		}
	}
	services := map[string]bool{}
	for _, s := range r.Services {
		services[s] = true
	}
	var out []Event
	for _, s := range all {
		err := r.read(s, func(e Event) {
			if e.At.After(r.Newest) {
				r.Newest = e.At
			}
			if e.Service != "" && !services[e.Service] {
				services[e.Service] = true
				r.Services = append(r.Services, e.Service)
			}
			if f.Match(e) {
				out = append(out, e)
			}
		})
		if err != nil && !errors.Is(err, fs.ErrNotExist) { // it was the oldest, and is gone since
			r.Problems = append(r.Problems, fmt.Errorf("read %s: %w", s.path, reason(err)))
		}
	}
	slices.Sort(r.Services)
	slices.Sort(r.Writers)
	r.Writers = slices.Compact(r.Writers)
	slices.SortStableFunc(out, func(a, b Event) int { return a.At.Compare(b.At) })
	r.forget(all)
	return out, nil
}

// forget drops what is known of segments that are gone.
func (r *Reader) forget(there []segment) {
	named := make(map[string]bool, len(there))
	for _, s := range there {
		named[s.path] = true
	}
	for path := range r.at {
		if !named[path] {
			delete(r.at, path)
		}
	}
}

// read reads the lines of a segment from where it was left.
func (r *Reader) read(s segment, take func(Event)) error {
	live := written(s.path)
	if live {
		r.Writers = append(r.Writers, s.whose)
	}
	f, err := os.OpenFile(s.path, os.O_RDONLY|syscall.O_NOFOLLOW|syscall.O_NONBLOCK, 0)
	if err != nil {
		return err
	}
	defer f.Close()
	info, err := f.Stat()
	if err != nil {
		return err
	}
	at := r.at[s.path]
	if at.info == nil || !os.SameFile(at.info, info) || info.Size() < at.offset {
		at = place{}
	}
	at.info = info
	defer func() { r.at[s.path] = at }()
	if _, err := f.Seek(at.offset, io.SeekStart); err != nil {
		return err
	}
	in := bufio.NewReaderSize(f, maxLine)
	for {
		line, n, err := nextLine(in)
		switch {
		case err == nil:
		case errors.Is(err, io.EOF):
			if n > 0 && !live && !at.torn {
				at.torn = true
				r.Torn++
			}
			return nil
		default:
			return err
		}
		e, ok := decode(line)
		switch {
		case ok:
			take(e)
		case at.torn: // it was counted before its end was written
		default:
			r.Torn++
		}
		at.offset, at.torn = at.offset+n, false
	}
}

// nextLine reads a line of n bytes. One that is too long is empty. The error is io.EOF where a line has no end.
func nextLine(in *bufio.Reader) (line []byte, n int64, err error) {
	line, err = in.ReadSlice('\n')
	n = int64(len(line))
	if !errors.Is(err, bufio.ErrBufferFull) {
		return line, n, err
	}
	for errors.Is(err, bufio.ErrBufferFull) {
		var more []byte
		more, err = in.ReadSlice('\n')
		n += int64(len(more))
	}
	return nil, n, err
}

// decode reads an event's line.
func decode(line []byte) (Event, bool) {
	var e Event
	if json.Unmarshal(line, &e) != nil || e.At.IsZero() || e.Role == "" || e.Kind == "" || e.What == "" || e.Count < 0 {
		return Event{}, false
	}
	return e, true
}

// Kinds are all kinds of events.
func Kinds() []Kind {
	return []Kind{KindRegistry, KindCheck, KindRegister, KindGuard, KindOverride, KindForeign, KindHAProxy, KindReload, KindProcess}
}

// Sentence is what happened, with whom it happened to: "10.0.0.5:8080 joined", "12 joined: ...", "service is up". Text
// that came from elsewhere is in it as it came.
func (e Event) Sentence() string {
	subject := e.Instance
	if e.Count > 1 {
		subject = strings.TrimSpace(fmt.Sprintf("%d %s", e.Count, e.Instance))
	}
	return strings.TrimSpace(subject + " " + e.What)
}
