package zktest

import (
	"bytes"
	"encoding/binary"
	"math/rand/v2"
	"net"
	"testing"
	"testing/synctest"
	"time"

	"github.com/stretchr/testify/require"
)

// oddXid drops every second frame.
func oddXid(head []byte) verdict {
	if head[lengthSize+3]%2 == 1 {
		return drop
	}
	return pass
}

// FuzzFramer: whatever the pieces in which bytes arrive, the same are passed, and without a drop all of them.
func FuzzFramer(f *testing.F) {
	frame := func(b ...byte) []byte {
		return append(binary.BigEndian.AppendUint32(nil, uint32(len(b))), b...)
	}
	hello := frame(make([]byte, 44)...)
	var many []byte
	for i := range byte(20) {
		many = append(many, frame(bytes.Repeat([]byte{0, 0, 0, i}, int(i))...)...)
	}
	f.Add([]byte{}, uint64(0))
	f.Add(hello, uint64(1))
	f.Add(append(bytes.Clone(hello), many...), uint64(2))
	f.Add(append(bytes.Clone(hello), frame(1)...), uint64(3))
	f.Add(append(bytes.Clone(hello), 0xff, 0xff, 0xff, 0xff, 1, 2, 3), uint64(4))
	f.Add(append(bytes.Clone(hello), many[:len(many)-5]...), uint64(5))
	f.Fuzz(func(t *testing.T, in []byte, seed uint64) {
		random := rand.New(rand.NewPCG(seed, 0))
		keep := func([]byte) verdict { return pass }
		require.Equal(t, string(in), string(inPieces(t, random, in, keep)))
		require.Equal(t, string(withoutOdd(in)), string(inPieces(t, random, in, oddXid)))
	})
}

// inPieces feeds in by and by, and checks that every end is one of a frame of what was passed.
func inPieces(t *testing.T, random *rand.Rand, in []byte, judge func([]byte) verdict) []byte {
	f := framer{headSize: requestHead, judge: judge}
	ends := frameEnds(withoutOddIf(in, judge))
	passed := []byte{}
	for len(in) > 0 {
		n := 1 + random.IntN(min(len(in), 20))
		out, end, refused := f.feed(nil, in[:n])
		require.False(t, refused)
		if end >= 0 {
			require.Contains(t, ends, len(passed)+end)
		}
		passed, in = append(passed, out...), in[n:]
	}
	return append(passed, f.rest()...)
}

func withoutOddIf(in []byte, judge func([]byte) verdict) []byte {
	if judge([]byte{0, 0, 0, 8, 0, 0, 0, 1}) == pass {
		return in
	}
	return withoutOdd(in)
}

// withoutOdd does at once and plainly what a framer does by and by.
func withoutOdd(in []byte) []byte {
	out := []byte{}
	for first := true; len(in) >= lengthSize; first = false {
		n := int64(binary.BigEndian.Uint32(in))
		size := min(lengthSize+n, int64(len(in)))
		if first || int32(n) < 0 || n < requestHead-lengthSize || len(in) < requestHead || oddXid(in) == pass {
			out = append(out, in[:size]...)
		}
		in = in[size:]
	}
	return append(out, in...)
}

// frameEnds are the offsets where frames end, with the beginning.
func frameEnds(in []byte) map[int]bool {
	ends := map[int]bool{0: true}
	for at := 0; len(in)-at >= lengthSize; {
		n := int64(binary.BigEndian.Uint32(in[at:]))
		if int64(len(in)-at) < lengthSize+n {
			break
		}
		at += lengthSize + int(n)
		ends[at] = true
	}
	return ends
}

// TestFramerRefuses: what comes before a refused request is passed, the request and what follows is not.
func TestFramerRefuses(t *testing.T) {
	request := func(op byte) []byte { return []byte{0, 0, 0, 8, 0, 0, 0, 1, 0, 0, 0, op} }
	hello := append([]byte{0, 0, 0, 44}, make([]byte, 44)...)
	f := framer{headSize: requestHead, judge: func(head []byte) verdict {
		if head[requestHead-1] == 106 {
			return refuse
		}
		return pass
	}}
	before := append(hello, request(4)...)
	out, end, refused := f.feed(nil, append(append(bytes.Clone(before), request(106)...), request(4)...))
	require.True(t, refused)
	require.Equal(t, before, out)
	require.Equal(t, len(before), end)
}

// TestDelay: each chunk passes its own delay after it came, however many are on their way, and none overtakes.
func TestDelay(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		p := &Proxy{delay: time.Second, there: make(chan struct{})}
		close(p.there)
		outside, inside := net.Pipe()
		l := newLink(p, inside)
		lane := make(chan chunk, queueSize)
		var count int64
		go l.write(inside, lane, &p.there, &count)
		start := time.Now()
		go func() {
			for i := range byte(20) { // one each 100 ms; the last ones have no delay of their own
				if i == 15 {
					p.Delay(0)
				}
				l.send(lane, []byte{i})
				time.Sleep(100 * time.Millisecond)
			}
			l.finish(lane, nil)
		}()
		for i := range 20 {
			var b [1]byte
			_, err := outside.Read(b[:])
			require.NoError(t, err)
			require.EqualValues(t, i, b[0])
			// The 15th comes after 1.4 s and passes at 2.4 s; those behind it have been there for long by then.
			require.Equal(t, min(time.Second+time.Duration(i)*100*time.Millisecond, 2400*time.Millisecond), time.Since(start))
		}
		_, err := outside.Read(make([]byte, 1))
		require.Error(t, err)
		require.EqualValues(t, 20, count)
	})
}

func TestParseCPU(t *testing.T) {
	d, err := parseCPU([]byte("7 (a ) R (x) 9 9) S 1 2 3 4 5 6 7 8 9 10 123 45 0 0 20\n"))
	require.NoError(t, err)
	require.Equal(t, 1680*time.Millisecond, d)
	for _, text := range []string{"", "7 (java) S 1 2 3", "7 (java) S 1 2 3 4 5 6 7 8 9 10 x 45 0"} {
		_, err := parseCPU([]byte(text))
		require.Error(t, err, text)
	}
}

func TestQuorum(t *testing.T) {
	for _, c := range []struct {
		name  string
		awake []bool
		roles []string
		want  bool
	}{
		{"all serve", []bool{true, true, true}, []string{"follower", "leader", "follower"}, true},
		{"one is stopped", []bool{true, true, false}, []string{"follower", "leader", ""}, true},
		{"one does not serve", []bool{true, true, true}, []string{"follower", "leader", ""}, false},
		{"two lead", []bool{true, true, true}, []string{"leader", "leader", "follower"}, false},
		{"nobody leads", []bool{true, true, false}, []string{"follower", "follower", ""}, false},
		{"a minority", []bool{true, false, false}, []string{"leader", "", ""}, false},
		{"half", []bool{true, true, false, false}, []string{"leader", "follower", "", ""}, false},
	} {
		t.Run(c.name, func(t *testing.T) { require.Equal(t, c.want, quorum(c.awake, c.roles)) })
	}
}
