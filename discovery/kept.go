package discovery

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"time"
)

// Kept tells of one snapshot of a Store, as its file's head does.
type Kept struct {
	Service   string
	Origin    string // where its instances were looked for, in the words of who saved it
	Owner     string // who saved it
	Instances int
	Missing   bool      // the path did not exist
	Read      time.Time // when the set was read
	AsOf      time.Time // until when the registry was known to list it
}

// List tells of all snapshots in the Store, whoever saved them, in the order of their files' names. It reads only the
// files' heads: Load finds out whether the rest is whole. What is no snapshot is left out; a folder that does not exist
// has none. It writes nothing.
func (s Store) List() ([]Kept, error) {
	files, err := os.ReadDir(s.Dir)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	}
	if err != nil {
		return nil, fmt.Errorf("list the sets on disk: %w", err)
	}
	var out []Kept
	for _, f := range files {
		path := filepath.Join(s.Dir, f.Name())
		if !strings.HasSuffix(f.Name(), storedSuffix) || !f.Type().IsRegular() {
			continue
		}
		h, ok := headOf(path)
		if !ok || path != s.path(h.service, h.origin) {
			continue
		}
		asOf, err := modified(path)
		if err != nil {
			continue // it was removed meanwhile
		}
		out = append(out, Kept{h.service, h.origin, h.owner, h.instances, h.missing, h.read, asOf})
	}
	return out, nil
}
