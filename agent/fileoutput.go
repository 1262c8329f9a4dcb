package agent

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"github.com/myelin-sd/myelin/discovery"
)

// outputLedger is a file in the output folder that names the services whose files are ours, one a line: what is not
// named there is not ours to delete. (Synapse deleted every other *.json file.)
const outputLedger = ".myelin-services"

// outputFiles keeps one JSON file for each service with its instances, as Synapse's file_output does, for programs that
// read them. It belongs to one goroutine.
type outputFiles struct {
	dir string

	ledger  map[string]bool                 // services whose files may be there because of us
	written map[string][]discovery.Instance // what each file was last brought up to
}

func newOutputFiles(dir string) *outputFiles {
	return &outputFiles{dir: dir, written: map[string][]discovery.Instance{}}
}

// write brings the files up to date. Services of which nothing is known keep theirs. Each file that cannot be written
// costs only itself. verify looks at the files on disk too.
func (o *outputFiles) write(views []view, verify bool) error {
	if err := os.MkdirAll(o.dir, 0o755); err != nil {
		return fmt.Errorf("write file_output: %w", err)
	}
	if err := o.enter(views); err != nil {
		return fmt.Errorf("write file_output: %w", err)
	}
	var errs []error
	for _, v := range views {
		name := v.service.Name
		last, done := o.written[name]
		if !v.known || v.service.FileOutputDisabled || done && !verify && sameInstances(last, v.active) {
			continue
		}
		if err := o.writeOne(name, v.active); err != nil {
			errs = append(errs, fmt.Errorf("write file_output of service %s: %w", name, err))
			continue
		}
		o.written[name] = v.active
	}
	return errors.Join(errs...)
}

// sameInstances tells whether two lists are the very same one. Lists are never changed, so there is no need to look
// into them.
func sameInstances(a, b []discovery.Instance) bool {
	return len(a) == len(b) && (len(a) == 0 || &a[0] == &b[0])
}

func (o *outputFiles) writeOne(service string, active []discovery.Instance) error {
	text, err := outputText(active)
	if err != nil || holds(o.path(service), text) {
		return err
	}
	return replaceFile(o.path(service), filepath.Join(o.dir, "."+service+".json.tmp"), text)
}

func (o *outputFiles) path(service string) string { return filepath.Join(o.dir, service+".json") }

// outputText is a compact JSON list, as Synapse writes it.
func outputText(active []discovery.Instance) ([]byte, error) {
	list := make([]backendJSON, len(active))
	for i := range active {
		list[i] = backendFields(&active[i])
	}
	var b bytes.Buffer
	e := json.NewEncoder(&b)
	e.SetEscapeHTML(false)
	if err := e.Encode(list); err != nil {
		return nil, err
	}
	return bytes.TrimSuffix(b.Bytes(), []byte("\n")), nil
}

// enter notes the services that get files before they do: what is noted and has no file does no harm, a file that is
// not noted would stay for ever.
func (o *outputFiles) enter(views []view) error {
	if o.ledger == nil {
		text, err := os.ReadFile(filepath.Join(o.dir, outputLedger))
		if err != nil && !errors.Is(err, fs.ErrNotExist) {
			return err
		}
		o.ledger = map[string]bool{}
		for line := range strings.Lines(string(text)) {
			// The folder is open to others: only what can be the name of a service is one.
			if name := strings.TrimSpace(line); name != "" && !strings.ContainsAny(name, "/\x00") {
				o.ledger[name] = true
			}
		}
	}
	before := len(o.ledger)
	for _, v := range views {
		if v.known && !v.service.FileOutputDisabled {
			o.ledger[v.service.Name] = true
		}
	}
	if len(o.ledger) == before {
		return nil
	}
	return o.keepLedger()
}

func (o *outputFiles) keepLedger() error {
	text := strings.Join(slices.Sorted(maps.Keys(o.ledger)), "\n") + "\n"
	path := filepath.Join(o.dir, outputLedger)
	return replaceFile(path, path+".tmp", []byte(text))
}

// prune deletes our files of services that are not there any more, or have no file, and returns their names.
func (o *outputFiles) prune(views []view) (removed []string, err error) {
	if err := o.enter(nil); err != nil {
		return nil, err
	}
	wanted := map[string]bool{}
	for _, v := range views {
		wanted[v.service.Name] = !v.service.FileOutputDisabled
	}
	var errs []error
	for _, name := range slices.Sorted(maps.Keys(o.ledger)) {
		if wanted[name] {
			continue
		}
		if err := os.Remove(o.path(name)); err != nil && !errors.Is(err, fs.ErrNotExist) {
			errs = append(errs, fmt.Errorf("remove file_output of service %s: %w", name, err))
			continue
		}
		delete(o.ledger, name)
		delete(o.written, name)
		removed = append(removed, name)
	}
	if len(removed) > 0 {
		errs = append(errs, o.keepLedger())
	}
	return removed, errors.Join(errs...)
}
