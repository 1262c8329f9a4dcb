//go:build !linux

package host

import (
	"io/fs"

	"github.com/myelin-sd/myelin/doctor"
)

// Sync is known on Linux only.
func (h Host) Sync() doctor.Known[doctor.Sync] {
	return doctor.Not[doctor.Sync]("only Linux is asked")
}

func owner(fs.FileInfo) (uid, gid int) { return -1, -1 }

func readOnly(string) bool { return false }
