package cli

import (
	"bytes"
	"encoding/json"
	"slices"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	"pgregory.net/rapid"
)

// TestNodesJSON: the answer of instances is byte for byte what encoding/json writes.
func TestNodesJSON(t *testing.T) {
	var want bytes.Buffer
	require.NoError(t, printJSON(&want, []*nodeInfo{}))
	var got bytes.Buffer
	require.NoError(t, writeNodes(&got, nil))
	require.Equal(t, want.String(), got.String())

	value := rapid.OneOf(rapid.Map(rapid.String(), func(s string) any { return s }), rapid.Just[any](nil), rapid.Just[any](true),
		rapid.Map(rapid.Int(), func(n int) any { return json.Number(string(rune('0' + n&7))) }))
	labels := rapid.MapOfN(rapid.String(), value, 0, 3)
	one := rapid.Custom(func(t *rapid.T) *nodeInfo {
		return &nodeInfo{
			Service: rapid.String().Draw(t, "service"), Node: rapid.String().Draw(t, "node"), Host: rapid.String().Draw(t, "host"),
			Port: rapid.Uint16().Draw(t, "port"), Name: rapid.SampledFrom([]string{"", "web-1", "<&>", "\u2028"}).Draw(t, "name"),
			Weight: rapid.Ptr(rapid.Int(), true).Draw(t, "weight"), Labels: labels.Draw(t, "labels"), Session: "0x1",
			Created: time.UnixMilli(rapid.Int64Range(0, 4e12).Draw(t, "created")), Modified: time.Unix(1700000000, 0).UTC(),
			State: "ok", Reason: rapid.String().Draw(t, "reason"),
		}
	})
	rapid.Check(t, func(t *rapid.T) {
		infos := rapid.SliceOfN(one, 1, 4).Draw(t, "nodes")
		infos = append(infos, infos[0])                                                                // shares its labels
		infos = slices.Repeat(infos, rapid.SampledFrom([]int{1, 1 + pieceBytes/500}).Draw(t, "times")) // in several pieces
		var want bytes.Buffer
		if err := printJSON(&want, infos); err != nil {
			t.Fatal(err)
		}
		var got bytes.Buffer
		if err := writeNodes(&got, infos); err != nil || got.String() != want.String() {
			t.Fatalf("%v\n%s\nwant\n%s", err, got.String(), want.String())
		}
	})
}
