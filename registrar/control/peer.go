package control

import (
	"context"
	"net"
	"os/user"
	"strconv"
)

// peer is who is at the other end of a connection, as the kernel says.
type peer struct {
	pid, uid int
	known    bool
}

// name is the user's, for people.
func (p peer) name() string {
	if !p.known {
		return "unknown"
	}
	uid := strconv.Itoa(p.uid)
	if u, err := user.LookupId(uid); err == nil {
		return u.Username
	}
	return "uid " + uid
}

type peerKey struct{}

// withPeer keeps who a connection comes from with all its requests.
func withPeer(ctx context.Context, c net.Conn) context.Context {
	return context.WithValue(ctx, peerKey{}, peerOf(c))
}

// peerIn is who made a request.
func peerIn(ctx context.Context) peer {
	p, _ := ctx.Value(peerKey{}).(peer)
	return p
}
