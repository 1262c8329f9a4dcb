package host

import (
	"fmt"
	"io/fs"
	"syscall"
	"time"

	"github.com/myelin-sd/myelin/doctor"
)

// Sync asks the kernel about its clock. The clock is one for all containers of a machine.
func (h Host) Sync() doctor.Known[doctor.Sync] {
	var t syscall.Timex
	state, err := syscall.Adjtimex(&t)
	if err != nil {
		return doctor.Not[doctor.Sync](fmt.Sprintf("adjtimex: %v (a container may not ask; run it on the host)", err))
	}
	const (
		timeError = 5    // TIME_ERROR
		unsync    = 0x40 // STA_UNSYNC
	)
	return doctor.Is(doctor.Sync{
		Synchronised: state != timeError && t.Status&unsync == 0,
		MaxError:     time.Duration(t.Maxerror) * time.Microsecond,
	})
}

func owner(info fs.FileInfo) (uid, gid int) {
	if st, ok := info.Sys().(*syscall.Stat_t); ok {
		return int(st.Uid), int(st.Gid)
	}
	return -1, -1
}

// readOnly tells whether a path lies in a file system that is mounted read-only.
func readOnly(path string) bool {
	var st syscall.Statfs_t
	const rdonly = 1 // ST_RDONLY
	return syscall.Statfs(path, &st) == nil && st.Flags&rdonly != 0
}
