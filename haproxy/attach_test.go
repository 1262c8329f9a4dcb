package haproxy

import (
	"fmt"
	"net/netip"
	"testing"

	"github.com/stretchr/testify/require"
)

func TestMade(t *testing.T) {
	at := netip.MustParseAddrPort("10.0.0.1:80") // its id is 585773
	for _, c := range []struct {
		name string
		id   int
		want bool
	}{
		{"web_10.0.0.1:80", 585773, true},
		{"web_10.0.0.1:80-g2", 585774, true},
		{"web_10.0.0.1:80", 585773 + idReach, true},
		{"web_10.0.0.1:80", 585773 + idReach + 1, false},
		{"web_10.0.0.1:80", 585772, false},
		{"web_10.0.0.1:80", 585773 + MaxID, false},
		{"web_10.0.0.1:80", 1, false},
		{"web1", 585773, false},
		{"web_10.0.0.2:80", 585773, false},
	} {
		require.Equal(t, c.want, Made(Server{Name: c.name, Addr: at, ID: c.id}), "%s id %d", c.name, c.id)
	}
	// The ids begin anew behind the last one.
	for i := range 1 << 20 {
		ip, port := netip.AddrFrom4([4]byte{10, 0, 0, byte(i >> 16)}), uint16(i)
		s := Server{Addr: netip.AddrPortFrom(ip, port)}
		if id := idOf(s); id > MaxID-idReach {
			s.Name, s.ID = ServerName("", ip.String(), port), idReach-(MaxID-id)
			require.True(t, Made(s), "%v", s)
			return
		}
	}
	t.Fatal("no address has so high an id")
}

// TestMadeIsWhatIsAssigned: whatever ids a full backend leads to are known again, and HAProxy's own are not.
func TestMadeIsWhatIsAssigned(t *testing.T) {
	servers := make([]Server, 10000)
	for i := range servers {
		at := netip.AddrPortFrom(netip.AddrFrom4([4]byte{10, 1, byte(i >> 8), byte(i)}), 8080)
		servers[i] = Server{Name: ServerName(fmt.Sprintf("n%d", i), at.Addr().String(), 8080), Addr: at}
	}
	AssignIDs(servers)
	wrong := 0
	for i, s := range servers {
		require.True(t, Made(s), "%v", s)
		if s.ID = i + 1; Made(s) {
			wrong++
		}
	}
	require.LessOrEqual(t, wrong, 3)
}
