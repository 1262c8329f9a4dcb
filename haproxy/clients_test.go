package haproxy

import (
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/myelin-sd/myelin/haproxy/haproxytest"
)

func TestCountClients(t *testing.T) {
	const table = "Num       RefCount Protocol Flags    Type St Inode Path\n" +
		"0000000000000001: 00000002 00000000 00010000 0001 01 100 /run/h/admin.sock.123.tmp\n" +
		"0000000000000002: 00000003 00000000 00000000 0001 03 101 /run/h/admin.sock.123.tmp\n" +
		"0000000000000003: 00000003 00000000 00000000 0001 03 102 /run/h/admin.sock\n" +
		"0000000000000004: 00000003 00000000 00000000 0001 03 103 /run/h/admin.sock2\n" +
		"0000000000000005: 00000003 00000000 00000000 0001 03 104 /run/h/admin.sock.tmp\n" +
		"0000000000000008: 00000002 00000000 00000000 0001 03 107 /run/h/admin.sock\n" +
		"0000000000000006: 00000003 00000000 00000000 0001 03 105\n" +
		"0000000000000007: 00000003 00000000 00000000 0001 03 106 @abstract\n"
	others, known := countClients(table, "/run/h/admin.sock", 1)
	assert.True(t, known)
	assert.Equal(t, 1, others)
	others, _ = countClients(table, "/run/h/admin.sock", 5)
	assert.Zero(t, others)
	_, known = countClients(table, "/run/other.sock", 0)
	assert.False(t, known, "nobody listens there, as far as can be seen")
}

// TestOtherClients: what the kernel tells of a real HAProxy, also after a reload.
func TestOtherClients(t *testing.T) {
	h := haproxytest.New(t, realConfig)
	check := func(own, want int) {
		t.Helper()
		require.EventuallyWithT(t, func(c *assert.CollectT) { // HAProxy closes what the start left when it gets to it
			others, known := OtherClients(h.Socket, own)
			assert.True(c, known)
			assert.Equal(c, want, others)
		}, 10*time.Second, 5*time.Millisecond)
	}
	check(0, 0)
	ours, err := Dial(t.Context(), h.Socket, ClientOptions{})
	require.NoError(t, err)
	defer ours.Close()
	check(1, 0)
	theirs, err := Dial(t.Context(), h.Socket, ClientOptions{})
	require.NoError(t, err)
	defer theirs.Close()
	check(1, 1)
	require.NoError(t, h.Reload())
	check(1, 1)
}
