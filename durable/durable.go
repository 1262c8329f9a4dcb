// Package durable replaces files whole: a reader finds the old text or the new one, also after a power cut.
package durable

import (
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"syscall"
	"time"
)

// File is a file to be replaced, by one writer at a time.
type File struct {
	Path     string
	Temp     string // where the new text is written first, on Path's file system; what is there is removed
	Mode     fs.FileMode
	Modified time.Time // of the new file; zero: now
}

// Replace puts data at f.Path and returns when they are on the disk. After an error the old file is there as it was, but
// for one of the last step, which makes sure of the folder: then the new one may be. A symbolic link is replaced, and not
// what it leads to.
func Replace(f File, data []byte) error {
	// A left-over of a crash, or what somebody else put there, is never written through.
	if err := os.Remove(f.Temp); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	if err := write(f, data); err != nil {
		_ = os.Remove(f.Temp) // what is left is replaced the next time
		return err
	}
	return SyncDir(filepath.Dir(f.Path))
}

func write(f File, data []byte) error {
	file, err := os.OpenFile(f.Temp, os.O_WRONLY|os.O_CREATE|os.O_EXCL, 0o600)
	if err != nil {
		return err
	}
	_, err = file.Write(data)
	if err == nil {
		err = file.Chmod(f.Mode) // whatever the umask
	}
	if err == nil {
		err = file.Sync()
	}
	if err := errors.Join(err, file.Close()); err != nil {
		return err
	}
	if !f.Modified.IsZero() {
		if err := os.Chtimes(f.Temp, time.Time{}, f.Modified); err != nil {
			return err
		}
	}
	return os.Rename(f.Temp, f.Path)
}

// SyncDir returns when what was renamed or removed in a folder is so on the disk.
func SyncDir(dir string) error {
	d, err := os.Open(dir)
	if err != nil {
		return err
	}
	err = d.Sync()
	if errors.Is(err, syscall.EINVAL) {
		err = nil // some file systems cannot, and need not
	}
	return errors.Join(err, d.Close())
}
