package haproxy

import (
	"net"
	"syscall"
)

// peer is the process at the other end of a unix socket, as it is known in our name spaces. A pid of 0: it is in one
// that ours does not see.
func peer(conn net.Conn) (pid, uid int, ok bool) {
	c, ok := conn.(*net.UnixConn)
	if !ok {
		return 0, 0, false
	}
	raw, err := c.SyscallConn()
	if err != nil {
		return 0, 0, false
	}
	var cred *syscall.Ucred
	var credErr error
	err = raw.Control(func(fd uintptr) {
		cred, credErr = syscall.GetsockoptUcred(int(fd), syscall.SOL_SOCKET, syscall.SO_PEERCRED)
	})
	if err != nil || credErr != nil {
		return 0, 0, false
	}
	return int(cred.Pid), int(cred.Uid), true
}
