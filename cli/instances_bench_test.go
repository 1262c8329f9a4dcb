package cli

import (
	"fmt"
	"io"
	"testing"
	"time"
)

// BenchmarkPrintInstances writes ten thousand instances, whose labels are shared as a decoder shares them.
func BenchmarkPrintInstances(b *testing.B) {
	racks := make([]map[string]any, 40)
	for i := range racks {
		racks[i] = map[string]any{"zone": "osl-1", "rack": fmt.Sprint("r-", i)}
	}
	weight, infos := 10, make([]*nodeInfo, 10_000)
	for i := range infos {
		name := fmt.Sprintf("host-%06d.dc1.example.com", i)
		infos[i] = &nodeInfo{
			Service: "web", Node: name + "_0000000001", Host: fmt.Sprintf("10.0.%d.%d", i>>8, i&255), Port: 8080, Name: name, Weight: &weight,
			Labels: racks[i%len(racks)], Session: "0x10000a1b2c3d4e5", Created: time.Now(), Modified: time.Now(), State: "ok",
		}
	}
	for _, form := range []string{"table", "wide", "json"} {
		b.Run(form, func(b *testing.B) {
			a := &app{out: io.Discard, output: form}
			for b.Loop() {
				if err := a.printInstances(infos); err != nil {
					b.Fatal(err)
				}
			}
		})
	}
}
