package zktest

import "encoding/binary"

// A frame is a length of four bytes and that many bytes. The first one each way is ConnectRequest and
// ConnectResponse. Then a request begins with xid and operation, and a reply with its xid; -1 is a watch event.
const (
	lengthSize     = 4
	requestHead    = lengthSize + 8 // length, xid, operation
	replyHead      = lengthSize + 4 // length, xid
	unimplemented  = -6             // the error of an operation that the server does not know
	firstFrameByte = 0              // no ConnectRequest is longer than 16 MB; text and TLS begin with another byte
)

// verdict is what becomes of a frame.
type verdict int

const (
	pass verdict = iota
	drop
	refuse // drop, and carry nothing more
)

// framer follows the frames of one direction. It holds back no more than a frame's head, which it needs whole to
// judge the frame; the rest is passed or dropped as it comes.
type framer struct {
	headSize int
	judge    func(head []byte) verdict

	connected bool   // the first frame, which is not judged, is over
	head      []byte // the beginning of a frame, not judged yet
	left      uint32 // the bytes of the judged frame that are still to come
	dropping  bool   // ... and are not passed on
	broken    bool   // these were no frames; all is passed
}

// boundary tells whether all that has been passed ends with a frame.
func (f *framer) boundary() bool { return f.left == 0 || f.dropping }

// feed takes what has arrived and appends to out what is to be passed on. The second result is where in out the last
// whole frame ends, or -1 when none ends there. After a refusal it stops: the rest of in is lost.
func (f *framer) feed(out, in []byte) (passed []byte, end int, refused bool) {
	end = -1
	if f.boundary() {
		end = len(out)
	}
	for len(in) > 0 {
		if f.broken {
			return append(out, in...), end, false
		}
		if f.left > 0 {
			n := min(int(f.left), len(in))
			if !f.dropping {
				out = append(out, in[:n]...)
			}
			in, f.left = in[n:], f.left-uint32(n)
		} else {
			n := min(f.missing(), len(in))
			f.head = append(f.head, in[:n]...)
			in = in[n:]
			if f.missing() > 0 {
				continue // for the length is known now, or there is no more
			}
			var v verdict
			if out, v = f.open(out); v == refuse {
				return out, end, true
			}
		}
		if f.boundary() {
			end = len(out)
		}
	}
	return out, end, false
}

// missing is how many bytes the head lacks as far as is known.
func (f *framer) missing() int {
	if len(f.head) < lengthSize {
		return lengthSize - len(f.head)
	}
	return f.wanted() - len(f.head)
}

// wanted is the size of the head that can be judged: less of a short frame, and the length alone of the first.
func (f *framer) wanted() int {
	length := int32(binary.BigEndian.Uint32(f.head))
	if !f.connected || length < 0 {
		return lengthSize
	}
	return min(f.headSize, lengthSize+int(min(length, requestHead)))
}

// open judges the frame whose head is complete.
func (f *framer) open(out []byte) ([]byte, verdict) {
	head, length := f.head, binary.BigEndian.Uint32(f.head)
	f.head = f.head[:0]
	if int32(length) < 0 {
		f.broken = true
		return append(out, head...), pass
	}
	v := pass
	if f.connected && len(head) == f.headSize {
		v = f.judge(head)
	}
	f.connected = true
	f.left = length - uint32(len(head)-lengthSize)
	f.dropping = v != pass
	if v == pass {
		out = append(out, head...)
	}
	return out, v
}

// rest is what was held back, for when no more comes.
func (f *framer) rest() []byte { return f.head }

// refusal is the reply of a server before 3.6 to an operation that it does not know: xid, zxid 0, the error.
func refusal(xid int32) []byte {
	b := binary.BigEndian.AppendUint32(nil, 16)
	b = binary.BigEndian.AppendUint32(b, uint32(xid))
	b = binary.BigEndian.AppendUint64(b, 0)
	code := int32(unimplemented)
	return binary.BigEndian.AppendUint32(b, uint32(code))
}
