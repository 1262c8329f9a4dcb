package discovery

import (
	"math"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
)

// FuzzStored: whatever stands in a file, its reading ends, and what it yields is what a decoder could have made, and
// is read back the same from a file of its own. The checksum is made right, or no input would get past it.
func FuzzStored(f *testing.F) {
	weight, id := 7, int64(9)
	e, err := ParseEndpoint("10.0.0.1", 80)
	require.NoError(f, err)
	named, err := ParseEndpoint("web.example.com", 443)
	require.NoError(f, err)
	six, err := ParseEndpoint("2001:db8::1", 1)
	require.NoError(f, err)
	created := time.UnixMilli(1_700_000_000_000)
	list := []Instance{
		{Endpoint: e, Name: "a", Node: "a_1", Weight: &weight, ID: &id, Labels: map[string]any{"az": "a", "b": true, "c": nil},
			ServerOptions: []string{"check"}, Session: math.MaxInt64, Created: created, Modified: created, ServerID: 4},
		{Endpoint: named, Node: "x", ServerOptions: []string{"check"}, Session: math.MinInt64, Leaving: true},
		{Endpoint: six, Name: "six", Node: "y"},
	}
	for n := range len(list) + 1 {
		body, err := encodeInstances(list[:n])
		require.NoError(f, err)
		f.Add(string(storedHead{service: "s", origin: "o", owner: "w", read: created, instances: n}.append(nil)), body)
		f.Add(string(storedHead{service: "s", origin: "o", instances: math.MaxInt}.append(nil)), body)
	}
	f.Add("myelin snapshot 2\n", []byte{})
	f.Add(storedMagic+"service s\n", []byte{0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0x01})

	f.Fuzz(func(t *testing.T, head string, body []byte) {
		_, _, err := openStored(append([]byte(head), body...)) // an honest checksum is beyond chance
		require.Error(t, err)

		file := append([]byte(head), body...)
		sealed := sealText(file)
		h, rest, err := openStored(sealed)
		if err != nil {
			return
		}
		snap, err := decodeStored(sealed, h.service, h.origin)
		if err != nil {
			require.ErrorIs(t, err, ErrCorrupt)
			return
		}
		require.Len(t, snap.Instances, h.instances)
		for i := range snap.Instances {
			require.NoError(t, snap.Instances[i].storable())
		}
		again, err := encodeInstances(snap.Instances)
		require.NoError(t, err)
		back, err := decodeStored(sealStored(h, again), h.service, h.origin)
		require.NoError(t, err)
		require.True(t, snap.Equal(back), "%x\n%x", rest, again)
		require.True(t, snap.At.Equal(back.At))
	})
}
