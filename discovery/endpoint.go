package discovery

import "net/netip"

// Endpoint is a validated address: an IP or a legal host name, with a port from 1 to 65535. Its zero value is no
// endpoint. Endpoints are comparable.
type Endpoint struct {
	ip   netip.Addr // valid when host is an IP
	host string     // lower-case host name otherwise
	port uint16
}
