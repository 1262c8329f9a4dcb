package zookeeper

import (
	"encoding/binary"
	"errors"
	"fmt"
	"strings"
	"time"

	"github.com/go-zookeeper/zk"
)

// The frames that we write and read ourselves, because the client library has no words for them. Sources: the records
// of ZooKeeper's zookeeper.jute and org.apache.zookeeper.ZooDefs.OpCode; the replies of 3.8.0 and 3.9.3 were compared
// byte by byte. All is big-endian. Each frame goes behind an int32 with its length. A string or a buffer is an int32
// length (-1: none) and its bytes, a vector an int32 count and its items, a boolean one byte.
//
//	ConnectRequest    int32 protocol, int64 lastZxidSeen, int32 timeout ms, int64 session, buffer password [, bool readOnly]
//	ConnectResponse   int32 protocol, int32 timeout ms, int64 session (0: expired), buffer password [, bool readOnly]
//	request           int32 xid, int32 operation, then by operation:
//	  exists 3, getData 4, getChildren2 12
//	                  string path, bool watch
//	  sync 9          string path
//	  multiRead 22    for each read: int32 operation (4), bool done (0), int32 error (-1), string path, bool watch (ignored);
//	                  at the end: int32 -1, bool 1, int32 -1
//	  removeWatches 18  string path, int32 type (3: any)
//	  auth 100        int32 0, string scheme, buffer credentials; its xid is -4
//	  getEphemerals 103  string that the paths begin with; only the session's own nodes are looked at
//	  addWatch 106    string path, int32 mode (0: persistent, 1: persistent and recursive)
//	reply             int32 xid, int64 zxid, int32 error, then, without an error:
//	  exists          Stat
//	  getData         buffer data, Stat
//	  getChildren2    vector of strings, Stat
//	  multiRead       for each read: int32 operation, bool done, int32 error, and the body of its reply; operation -1 is
//	                  a read that failed, and its body is an int32 error. At the end: -1, 1, -1 as in the request
//	  sync            string path
//	  getEphemerals   vector of strings: full paths
//	  multi           for each request of it: int32 operation, bool done, int32 error, and then: create 1: string path;
//	                  setData 5: Stat; delete 2, check 13: nothing; operation -1: int32 error. The end as in multiRead
//	event             int32 xid (-1), int64 zxid (-1 before 3.9), int32 0, int32 type, int32 state, string path
//	Stat              int64 czxid, mzxid, ctime ms, mtime ms, int32 version, cversion, aversion, int64 ephemeralOwner,
//	                  int32 dataLength, numChildren, int64 pzxid
const (
	opCreate        int32 = 1
	opDelete        int32 = 2
	opExists        int32 = 3
	opGetData       int32 = 4
	opSetData       int32 = 5
	opSync          int32 = 9
	opGetChildren2  int32 = 12
	opCheck         int32 = 13
	opMulti         int32 = 14
	opRemoveWatches int32 = 18
	opMultiRead     int32 = 22
	opAuth          int32 = 100
	opGetEphemerals int32 = 103
	opAddWatch      int32 = 106
	opClose         int32 = -11

	xidEvent int32 = -1
	xidPing  int32 = -2
	xidAuth  int32 = -4

	watchRecursive int32 = 1 // mode of addWatch
	watchAny       int32 = 3 // type of removeWatches

	headerLen  = 8  // of a request
	replyLen   = 16 // header of a reply
	statLen    = 68
	passwdLen  = 16
	multiEnd   = 9 // the header that ends a multiRead
	eventLeast = 12
)

// Codes that servers answer (org.apache.zookeeper.KeeperException.Code).
const (
	codeUnimplemented int32 = -6
	codeNoNode        int32 = -101
	codeNoAuth        int32 = -102
	codeAuthFailed    int32 = -115
)

var errUnimplemented = errors.New("the server does not know this operation")

// codeError turns a reply's code into an error; nil for success.
func codeError(code int32) error {
	switch code {
	case 0:
		return nil
	case codeUnimplemented:
		return errUnimplemented
	case codeNoNode:
		return zk.ErrNoNode
	case codeNoAuth:
		return zk.ErrNoAuth
	case codeAuthFailed:
		return zk.ErrAuthFailed
	default:
		return fmt.Errorf("the server answered with code %d", code)
	}
}

// request is a frame under construction. Its length and xid are filled in when it is sent.
type request []byte

// newRequest begins a request; size is a guess at the length of its body.
func newRequest(op int32, size int) request {
	r := make(request, 4+headerLen, 4+headerLen+size)
	binary.BigEndian.PutUint32(r[8:], uint32(op))
	return r
}

func (r request) int32(v int32) request { return binary.BigEndian.AppendUint32(r, uint32(v)) }

func (r request) bool(v bool) request {
	if v {
		return append(r, 1)
	}
	return append(r, 0)
}

func (r request) string(s string) request { return append(r.int32(int32(len(s))), s...) }

// seal fills in what was left open.
func (r request) seal(xid int32) {
	binary.BigEndian.PutUint32(r, uint32(len(r)-4))
	binary.BigEndian.PutUint32(r[4:], uint32(xid))
}

// pathRequest is an exists, getData or getChildren2.
func pathRequest(op int32, path string, watch bool) request {
	return newRequest(op, len(path)+5).string(path).bool(watch)
}

func ephemeralsRequest(prefix string) request {
	return newRequest(opGetEphemerals, len(prefix)+4).string(prefix)
}

func syncRequest(path string) request { return newRequest(opSync, len(path)+4).string(path) }

func addWatchRequest(path string) request {
	return newRequest(opAddWatch, len(path)+8).string(path).int32(watchRecursive)
}

func removeWatchesRequest(path string) request {
	return newRequest(opRemoveWatches, len(path)+8).string(path).int32(watchAny)
}

// readCost is what one child adds to a multiRead.
func readCost(dir, name string) int { return len(dir) + 1 + len(name) + 14 }

// multiReadRequest reads children of dir. The name directory stands for dir itself.
func multiReadRequest(dir string, names []string) request {
	size := multiEnd
	for _, name := range names {
		size += readCost(dir, name)
	}
	r := newRequest(opMultiRead, size)
	slash := strings.TrimSuffix(dir, "/") + "/"
	for _, name := range names {
		r = r.int32(opGetData).bool(false).int32(-1)
		if name == directory {
			r = r.string(dir)
		} else {
			r = append(append(r.int32(int32(len(slash)+len(name))), slash...), name...)
		}
		r = r.bool(false)
	}
	return r.int32(-1).bool(true).int32(-1)
}

// authRequest is the one request that is not numbered like others.
func authRequest(scheme string, credentials []byte) request {
	r := newRequest(opAuth, len(scheme)+len(credentials)+12).int32(0).string(scheme).string(string(credentials))
	r.seal(xidAuth)
	return r
}

var errMalformed = errors.New("the frame is malformed")

// parser takes a frame apart. After the first thing that is not there all others are zero, and err is set.
type parser struct {
	b   []byte
	err error
}

// next returns the next n bytes, which stay part of the frame.
func (p *parser) next(n int) []byte {
	if p.err != nil || n < 0 || n > len(p.b) {
		p.err = errMalformed
		return nil
	}
	b := p.b[:n:n]
	p.b = p.b[n:]
	return b
}

func (p *parser) int32() int32 {
	if b := p.next(4); b != nil {
		return int32(binary.BigEndian.Uint32(b))
	}
	return 0
}

func (p *parser) int64() int64 {
	if b := p.next(8); b != nil {
		return int64(binary.BigEndian.Uint64(b))
	}
	return 0
}

func (p *parser) bool() bool {
	b := p.next(1)
	return b != nil && b[0] != 0
}

// buffer returns nil for one that is not there.
func (p *parser) buffer() []byte {
	n := p.int32()
	if n == -1 {
		return nil
	}
	return p.next(int(n))
}

func (p *parser) string() string { return string(p.buffer()) }

func (p *parser) stat() zk.Stat {
	return zk.Stat{
		Czxid: p.int64(), Mzxid: p.int64(), Ctime: p.int64(), Mtime: p.int64(), Version: p.int32(), Cversion: p.int32(),
		Aversion: p.int32(), EphemeralOwner: p.int64(), DataLength: p.int32(), NumChildren: p.int32(), Pzxid: p.int64(),
	}
}

// end returns the error, which is also one when something is left over.
func (p *parser) end() error {
	if p.err == nil && len(p.b) > 0 {
		p.err = errMalformed
	}
	return p.err
}

// strings reads a vector of strings.
func (p *parser) strings() []string {
	n := p.int32()
	if p.err != nil || n < -1 || int(n) > len(p.b)/4 { // each has its length at least
		p.err = errMalformed
		return nil
	}
	list := make([]string, 0, max(n, 0))
	for range n {
		list = append(list, p.string())
	}
	return list
}

// header is what each reply begins with.
type header struct {
	xid  int32
	zxid int64
	code int32
}

func parseHeader(b [replyLen]byte) header {
	p := parser{b: b[:]}
	return header{p.int32(), p.int64(), p.int32()}
}

// credentials resume a session on another connection.
type credentials struct {
	session  int64
	password [passwdLen]byte
}

// handshake is what a ConnectResponse says.
type handshake struct {
	credentials
	timeout time.Duration
}

func parseConnectResponse(b []byte) (handshake, error) {
	p := parser{b: b}
	p.int32()
	h := handshake{timeout: time.Duration(p.int32()) * time.Millisecond}
	h.session = p.int64()
	password := p.buffer()
	if p.err != nil || len(password) != passwdLen {
		return handshake{}, errMalformed
	}
	if h.session != 0 && h.timeout <= 0 { // the library would panic: it makes a ticker of it
		return handshake{}, errMalformed
	}
	copy(h.password[:], password)
	return h, nil
}

// event is what a watch tells.
type event struct {
	kind zk.EventType
	path string
}

func parseEvent(b []byte) (event, error) {
	p := parser{b: b}
	ev := event{kind: zk.EventType(p.int32())}
	p.int32()
	ev.path = p.string()
	return ev, p.end()
}

// listing is the names of a node's children, and its own stat.
type listing struct {
	names []string
	stat  zk.Stat
}

func parseListing(b []byte) (listing, error) {
	p := parser{b: b}
	ls := listing{names: p.strings(), stat: p.stat()}
	if err := p.end(); err != nil {
		return ls, err
	}
	for _, name := range ls.names {
		if !childName(name) {
			return listing{}, fmt.Errorf("a child named %q: %w", name, errMalformed)
		}
	}
	return ls, nil
}

// childName reports whether a node may have a name. ZooKeeper's rule is stricter (PathUtils.validatePath); with this one
// a name stands for a child of the directory that it is joined to, and for nothing else.
func childName(name string) bool {
	return name != "" && name != directory && name != ".." && !strings.Contains(name, "/")
}

// reading is one read znode. Its data is part of the frame that it came in.
type reading struct {
	data []byte
	stat zk.Stat
}

func parseReading(b []byte) (reading, error) {
	p := parser{b: b}
	r := reading{p.buffer(), p.stat()}
	return r, p.end()
}

func parseStat(b []byte) (zk.Stat, error) {
	p := parser{b: b}
	st := p.stat()
	return st, p.end()
}

// parseMultiRead calls each with the result of every one of n reads, in their order. It stops at the first frame that
// makes no sense: what was read up to there is right.
func parseMultiRead(b []byte, n int, each func(i int, r reading, err error)) error {
	p := parser{b: b}
	for i := range n {
		op := p.int32()
		p.bool()
		p.int32()
		switch {
		case p.err != nil:
			return p.err
		case op == opGetData:
			r := reading{p.buffer(), p.stat()}
			if p.err != nil {
				return p.err
			}
			each(i, r, nil)
		case op == -1:
			code := p.int32()
			if p.err != nil || code == 0 {
				return errMalformed
			}
			each(i, reading{}, codeError(code))
		default:
			return errMalformed
		}
	}
	p.next(multiEnd)
	return p.end()
}

// checkMulti returns an error when the body of a multi's reply is cut short. The library would panic on some of those.
func checkMulti(b []byte) error {
	p := parser{b: b}
	for p.err == nil {
		op, done := p.int32(), p.bool()
		p.int32()
		switch {
		case done:
			return p.err
		case op == -1:
			p.int32()
		case op == opCreate:
			p.buffer()
		case op == opSetData:
			p.stat()
		case op != opDelete && op != opCheck:
			return fmt.Errorf("operation %d in a multi: %w", op, errMalformed)
		}
	}
	return fmt.Errorf("read a multi: %w", p.err)
}
