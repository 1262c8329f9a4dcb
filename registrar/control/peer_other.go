//go:build !linux

package control

import "net"

// peerOf knows nobody: how to ask differs from system to system, and registrars run on Linux.
func peerOf(net.Conn) peer { return peer{} }
