//go:build !linux

package child

import (
	"errors"
	"os"
)

// IsInit reports whether the system hands orphans to this process. Only Linux has containers with a first process.
func IsInit() bool { return false }

// Init is for Linux only.
func Init([]string, <-chan os.Signal) (int, error) {
	return 0, errors.New("run as init: only Linux can")
}
