package journal

import (
	"bytes"
	"cmp"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"time"

	"github.com/myelin-sd/myelin/durable"
)

// A segment is a file of events, one JSON object a line, in the order in which they were recorded. Its name tells whose
// it is and when it began: <role>-<milliseconds>.jsonl, or <role>-<owner>-<milliseconds>.jsonl. Whoever writes one holds
// a lock on it (flock), so that nobody else writes to it or removes it, and everybody can see that it is being written.
const segmentSuffix = ".jsonl"

// Sizes of segments: an eighth of what all may have, so that about seven eighths of it are always there.
const (
	segmentShare = 8
	leastSegment = 16 << 10
	mostSegment  = 4 << 20
)

const latestSegment = 9_999_999_999_999 // milliseconds since 1970, in the year 2286: as many digits as names have

// segment is a file found in a folder.
type segment struct {
	path  string
	role  string
	whose string // the name without the time
	began int64  // milliseconds since 1970
	size  int64
}

// parseSegment tells a segment by its name.
func parseSegment(dir, name string) (segment, bool) {
	base, ok := strings.CutSuffix(name, segmentSuffix)
	i := strings.LastIndexByte(base, '-')
	if !ok || i <= 0 {
		return segment{}, false
	}
	began, err := strconv.ParseInt(base[i+1:], 10, 64)
	if err != nil || began < 0 {
		return segment{}, false
	}
	role, _, _ := strings.Cut(base[:i], "-")
	return segment{path: filepath.Join(dir, name), role: role, whose: base[:i], began: began}, role != ""
}

// listSegments are the segments in a folder, the oldest first.
func listSegments(dir string) ([]segment, error) {
	entries, err := os.ReadDir(dir)
	if err != nil {
		return nil, err
	}
	var out []segment
	for _, e := range entries {
		s, ok := parseSegment(dir, e.Name())
		if !ok || !e.Type().IsRegular() {
			continue
		}
		info, err := e.Info()
		if err != nil {
			continue // it was removed just now
		}
		s.size = info.Size()
		out = append(out, s)
	}
	slices.SortFunc(out, func(a, b segment) int { return cmp.Or(cmp.Compare(a.began, b.began), cmp.Compare(a.path, b.path)) })
	return out, nil
}

// segments are what one journal writes. It belongs to one goroutine.
type segments struct {
	dir   string
	role  string
	whose string
	max   int64 // of all of the role's segments

	file *os.File // nil: none is open
	path string
	size int64 // of what is whole in it
}

func newSegments(dir, role, owner string, max int64) *segments {
	whose := role
	if owner != "" {
		whose += "-" + fileName(owner)
	}
	return &segments{dir: dir, role: role, whose: whose, max: max}
}

// fileName is text as part of a file's name.
func fileName(s string) string {
	s = strings.Map(func(r rune) rune {
		switch {
		case r >= 'a' && r <= 'z', r >= 'A' && r <= 'Z', r >= '0' && r <= '9', r == '.', r == '_', r == '-':
			return r
		}
		return '_'
	}, s)
	return s[:min(len(s), 64)]
}

// most is how large one segment becomes.
func (s *segments) most() int64 { return min(max(s.max/segmentShare, leastSegment), mostSegment) }

// append writes whole lines. What is returned was not written, and the error says why.
func (s *segments) append(lines []byte) (rest []byte, err error) {
	for len(lines) > 0 {
		need := int64(firstLine(lines))
		if err := s.ready(need); err != nil {
			return lines, err
		}
		n := wholeLines(lines, max(s.most()-s.size, need))
		if err := s.write(lines[:n]); err != nil {
			return lines, err
		}
		lines = lines[n:]
	}
	return nil, nil
}

func firstLine(lines []byte) int {
	if i := bytes.IndexByte(lines, '\n'); i >= 0 {
		return i + 1
	}
	return len(lines)
}

// wholeLines is how many bytes of lines are whole lines and at most so many.
func wholeLines(lines []byte, most int64) int {
	if int64(len(lines)) <= most {
		return len(lines)
	}
	return bytes.LastIndexByte(lines[:most], '\n') + 1
}

// write writes to the open segment. After an error the segment ends with a whole line.
func (s *segments) write(lines []byte) error {
	n, err := s.file.Write(lines)
	if err == nil {
		s.size += int64(n)
		return nil
	}
	if s.file.Truncate(s.size) != nil {
		s.close() // the next writer begins with a new line
	}
	return fmt.Errorf("write %s: %w", s.path, reason(err))
}

// ready has a segment open that is there, and has room for so many bytes.
func (s *segments) ready(need int64) error {
	if s.file != nil && s.there() && s.fits(s.size, need) {
		return nil
	}
	s.close()
	if err := os.MkdirAll(s.dir, 0o755); err != nil {
		return fmt.Errorf("make folder %s: %w", s.dir, reason(err))
	}
	all, err := listSegments(s.dir)
	if err != nil {
		return fmt.Errorf("read folder %s: %w", s.dir, reason(err))
	}
	resumed := s.resume(all, need)
	s.trim(all)
	if resumed {
		return nil
	}
	return s.create(all)
}

// fits tells whether a segment of a size has room for so many bytes.
func (s *segments) fits(size, need int64) bool { return size == 0 || size+need <= s.most() }

// there tells whether the open segment is in the folder still: somebody may have removed it.
func (s *segments) there() bool {
	open, err := s.file.Stat()
	if err != nil {
		return false
	}
	named, err := os.Lstat(s.path)
	return err == nil && os.SameFile(open, named)
}

// resume goes on with the newest segment of ours that has room and that nobody writes.
func (s *segments) resume(all []segment, need int64) bool {
	for _, old := range slices.Backward(all) {
		if old.whose != s.whose {
			continue
		}
		if !s.fits(old.size, need+1) { // a line may have to be ended first
			return false
		}
		f, err := os.OpenFile(old.path, os.O_RDWR|os.O_APPEND|syscall.O_NOFOLLOW, 0)
		if err != nil {
			return false // of another user, say
		}
		if syscall.Flock(int(f.Fd()), syscall.LOCK_EX|syscall.LOCK_NB) != nil {
			f.Close()
			return false
		}
		size, err := endLine(f)
		if err != nil {
			f.Close()
			return false
		}
		s.file, s.path, s.size = f, old.path, size
		return s.there() || s.close()
	}
	return false
}

// endLine ends the line in whose middle a process ended, and returns the file's size.
func endLine(f *os.File) (int64, error) {
	info, err := f.Stat()
	if err != nil || info.Size() == 0 {
		return 0, err
	}
	last := make([]byte, 1)
	if _, err := f.ReadAt(last, info.Size()-1); err != nil {
		return 0, err
	}
	if last[0] == '\n' {
		return info.Size(), nil
	}
	_, err = f.Write([]byte{'\n'})
	return info.Size() + 1, err
}

// create begins a segment, which is the newest of the role by its name: while the clock was ahead others may have been
// begun, which must not be taken for newer ones for ever.
func (s *segments) create(all []segment) error {
	began := time.Now().UnixMilli()
	for _, o := range all {
		if o.role == s.role && o.began < latestSegment {
			began = max(began, o.began+1)
		}
	}
	for ; ; began++ {
		path := filepath.Join(s.dir, fmt.Sprintf("%s-%013d%s", s.whose, began, segmentSuffix))
		f, err := os.OpenFile(path, os.O_RDWR|os.O_CREATE|os.O_EXCL|os.O_APPEND, 0o640)
		if errors.Is(err, fs.ErrExist) {
			continue
		}
		if err != nil {
			return fmt.Errorf("make %s: %w", path, reason(err))
		}
		_ = syscall.Flock(int(f.Fd()), syscall.LOCK_EX|syscall.LOCK_NB) // a file system without locks: it is ours by its name
		_ = durable.SyncDir(s.dir)                                      // as far as the disk can
		s.file, s.path, s.size = f, path, 0
		return nil
	}
}

// trim removes the role's oldest segments until there is room for one more. Those that somebody writes stay.
func (s *segments) trim(all []segment) {
	var total int64
	for _, o := range all {
		if o.role == s.role && o.path != s.path {
			total += o.size
		}
	}
	for _, o := range all {
		if total <= max(s.max-s.most(), 0) {
			return
		}
		if o.role == s.role && o.path != s.path && remove(o.path) == nil {
			total -= o.size
		}
	}
}

var errWritten = errors.New("it is being written")

// remove removes a segment that nobody writes.
func remove(path string) error {
	if written(path) {
		return errWritten
	}
	return os.Remove(path)
}

// written tells whether somebody writes a segment. A file that cannot be opened is taken for one that nobody writes.
func written(path string) bool {
	f, err := os.OpenFile(path, os.O_RDONLY|syscall.O_NOFOLLOW|syscall.O_NONBLOCK, 0)
	if err != nil {
		return false
	}
	defer f.Close() // with it goes the lock
	return errors.Is(syscall.Flock(int(f.Fd()), syscall.LOCK_SH|syscall.LOCK_NB), syscall.EWOULDBLOCK)
}

// close closes the open segment, if there is one, and returns false.
func (s *segments) close() bool {
	if s.file != nil {
		s.file.Close()
	}
	s.file, s.path, s.size = nil, "", 0
	return false
}

// reason is an error of the file system without the path.
func reason(err error) error {
	var pe *fs.PathError
	if errors.As(err, &pe) {
		return pe.Err
	}
	return err
}
