package discovery

import (
	"bytes"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"time"

	"github.com/myelin-sd/myelin/durable"
)

const (
	storedSuffix = ".snapshot"
	storedAside  = ".bad" // behind storedSuffix: a file that could not be read
	storedTemp   = ".tmp" // behind storedSuffix: a file that is being written
	maxStored    = 1 << 30
	maxHead      = 4 << 20 // bytes of a file that Prune looks at: a note has some for each instance
)

// ErrCorrupt is a file of a Store that is not a whole snapshot of the service it is named after.
var ErrCorrupt = errors.New("not a whole snapshot")

// Store keeps one snapshot per service on disk, so that a process that starts while the registry is away knows what
// was last in force. A reader finds a whole snapshot or none, also after a power cut.
//
// A service is told apart by its name and its origin: words for where its instances were looked for, chosen by the
// caller. A service that looks somewhere else finds nothing of what it found there.
//
// A Store is a value without state; several may use one folder. One service must not be saved by two at a time.
type Store struct {
	Dir   string // made when something is saved, for its owner alone
	Owner string // who saves; Prune removes nothing of others
}

// Save keeps a snapshot, in place of the one before. asOf is when the registry was last known to list this set; it
// becomes the file's modification time. A file that holds the same set already is not written again.
//
// The Rejected of a snapshot are not kept, nor its Version, its Tree and its Data. Times are kept to the millisecond. It blocks for as long
// as the disk takes.
func (s Store) Save(snap Snapshot, origin string, asOf time.Time) error {
	if err := s.save(snap, origin, asOf); err != nil {
		return fmt.Errorf("save the set of service %s: %w", snap.Service, err)
	}
	return nil
}

func (s Store) save(snap Snapshot, origin string, asOf time.Time) error {
	head := storedHead{
		service: snap.Service, origin: origin, owner: s.Owner,
		read: snap.At, missing: snap.Missing, instances: len(snap.Instances), note: snap.Note,
	}
	body, err := encodeInstances(snap.Instances)
	if err != nil {
		return err
	}
	path := s.path(snap.Service, origin)
	if old, err := readStored(path); err == nil {
		if h, b, err := openStored(old); err == nil && h.sameSet(head) && bytes.Equal(b, body) {
			return os.Chtimes(path, time.Time{}, asOf)
		}
	}
	if err := os.MkdirAll(s.Dir, 0o700); err != nil {
		return err
	}
	return durable.Replace(durable.File{Path: path, Temp: path + storedTemp, Mode: 0o600, Modified: asOf}, sealStored(head, body))
}

// Confirm notes that the registry listed the kept set still at asOf. It costs no write of data. A service of which
// nothing is kept is an error that is fs.ErrNotExist.
func (s Store) Confirm(service, origin string, asOf time.Time) error {
	if err := os.Chtimes(s.path(service, origin), time.Time{}, asOf); err != nil {
		return fmt.Errorf("confirm the set of service %s: %w", service, err)
	}
	return nil
}

// Load returns what is kept of a service, and when the registry was last known to list it. It writes nothing. The
// error is fs.ErrNotExist when nothing is kept, and ErrCorrupt when the file is of no use: see SetAside. The instances
// share memory; they must not be changed.
func (s Store) Load(service, origin string) (snap Snapshot, asOf time.Time, err error) {
	path := s.path(service, origin)
	file, err := readStored(path)
	if err == nil {
		snap, err = decodeStored(file, service, origin)
	}
	if err == nil {
		asOf, err = modified(path)
	}
	if err != nil {
		return Snapshot{}, time.Time{}, fmt.Errorf("load the set of service %s: %w", service, err)
	}
	return snap, asOf, nil
}

// decodeStored reads a whole file, which must be that of the service.
func decodeStored(file []byte, service, origin string) (Snapshot, error) {
	head, body, err := openStored(file)
	if err != nil {
		return Snapshot{}, fmt.Errorf("%w: %w", ErrCorrupt, err)
	}
	if head.service != service || head.origin != origin {
		return Snapshot{}, fmt.Errorf("%w: it is that of service %q from %q", ErrCorrupt, head.service, head.origin)
	}
	instances, err := decodeInstances(body, head.instances)
	if err != nil {
		return Snapshot{}, fmt.Errorf("%w: %w", ErrCorrupt, err)
	}
	return Snapshot{Service: service, Instances: instances, Missing: head.missing, At: head.read, Note: head.note}, nil
}

// readStored reads a file that must be a plain one: a pipe would keep a start waiting.
func readStored(path string) ([]byte, error) {
	info, err := os.Lstat(path)
	switch {
	case err != nil:
		return nil, err
	case !info.Mode().IsRegular() || info.Size() > maxStored:
		return nil, fmt.Errorf("%w: %s is no plain file of sensible size", ErrCorrupt, path)
	}
	return os.ReadFile(path)
}

func modified(path string) (time.Time, error) {
	info, err := os.Stat(path)
	if err != nil {
		return time.Time{}, err
	}
	return info.ModTime(), nil
}

// SetAside moves the file of a service out of the way, for people to look at, and returns where it is then. Only the
// last one is kept.
func (s Store) SetAside(service, origin string) (path string, err error) {
	path = s.path(service, origin) + storedAside
	if err := os.Rename(s.path(service, origin), path); err != nil {
		return "", fmt.Errorf("set the set of service %s aside: %w", service, err)
	}
	return path, nil
}

// Prune removes what this Owner saved of services that keep does not want, and returns their names. It touches
// nothing else in the folder: what others saved stays, and so does what is no snapshot.
func (s Store) Prune(keep func(service, origin string) bool) (removed []string, err error) {
	files, err := os.ReadDir(s.Dir)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	}
	if err != nil {
		return nil, fmt.Errorf("look for sets of old services: %w", err)
	}
	var errs []error
	for _, f := range files {
		path := filepath.Join(s.Dir, f.Name())
		if !strings.HasSuffix(f.Name(), storedSuffix) || !f.Type().IsRegular() {
			continue
		}
		h, ok := headOf(path)
		if !ok || h.owner != s.Owner || path != s.path(h.service, h.origin) || keep(h.service, h.origin) {
			continue
		}
		if err := os.Remove(path); err != nil {
			errs = append(errs, fmt.Errorf("remove the set of old service %s: %w", h.service, err))
			continue
		}
		removed = append(removed, h.service)
		for _, more := range []string{storedAside, storedTemp} {
			_ = os.Remove(path + more) // mostly there is none
		}
	}
	return removed, errors.Join(errs...)
}

// headOf reads who a file says it is of. False for what is no snapshot.
func headOf(path string) (storedHead, bool) {
	f, err := os.Open(path)
	if err != nil {
		return storedHead{}, false
	}
	defer f.Close()
	b, err := io.ReadAll(io.LimitReader(f, maxHead))
	if err != nil {
		return storedHead{}, false
	}
	h, _, err := parseHead(b)
	return h, err == nil
}

// path is where a service's snapshot is kept: its name as far as a file can have it, for people, and a digest of all
// that tells it from others.
func (s Store) path(service, origin string) string {
	sum := sha256.Sum256([]byte(service + "\x00" + origin))
	return filepath.Join(s.Dir, SafeName(service)+"-"+hex.EncodeToString(sum[:8])+storedSuffix)
}
