package discovery

import (
	"bytes"
	"crypto/sha256"
	"encoding/binary"
	"encoding/json"
	"errors"
	"fmt"
	"math"
	"net/netip"
	"slices"
	"strconv"
	"strings"
	"time"
)

// A stored snapshot is
//
//	myelin snapshot 1
//	service "user-api"
//	origin "zookeeper zk1:2181 /services/user-api"
//	owner "/etc/myelin/agent.toml"
//	read 2026-01-02T03:04:05.678Z
//	missing false
//	instances 3
//	note "..."
//
// (without the last line where there is no note), then an empty line, the instances in binary, and the SHA-256 of all before it. The head is text so that people can
// see what a file is. The binary part is, with counts and lengths as unsigned varints:
//
//	labels     count, then for each set of labels: count, then for each label: key, kind, and text if it has one
//	options    count, then for each list of options: count, then each word
//	instances  for each: flags, address (4 or 16 bytes, or a name), port, node, name, index of its labels, index of
//	           its options (both from 1; 0: none), session, and what the flags announce
//
// Of thousands of instances few differ in labels and options, so each set is written once. Sessions and times are
// signed varints of the difference to the instance before; times are milliseconds.
const storedMagic = "myelin snapshot 1\n"

// Flags of a stored instance.
const (
	storedName     = 1 << iota // the host is a name
	storedIPv6                 // the host has 16 bytes
	storedWeight               // a weight follows
	storedID                   // a sequence number follows
	storedCreated              // the creation time follows
	storedModified             // the time of the last change follows, as the difference to the creation
	storedServerID             // an explicit server id follows
	storedPrefix               // the name is the beginning of the node's: only its length is written
)

// storedLeaving is in the port of an instance that is leaving: all flags are taken, and it is rare.
const storedLeaving = 1 << 16

// Kinds of label values.
const (
	storedText   = 's'
	storedNumber = 'n'
	storedTrue   = 't'
	storedFalse  = 'f'
	storedNull   = '0'
)

// storedHead is what a stored snapshot says about itself.
type storedHead struct {
	service, origin, owner string
	read                   time.Time // Snapshot.At
	missing                bool
	instances              int
	note                   string
}

// sameSet tells whether two files hold the same set of the same service. When they were read does not matter.
func (h storedHead) sameSet(o storedHead) bool {
	h.read, o.read = time.Time{}, time.Time{}
	return h == o
}

func (h storedHead) append(b []byte) []byte {
	b = append(b, storedMagic...)
	for _, field := range []struct{ key, value string }{
		{"service", strconv.Quote(h.service)}, {"origin", strconv.Quote(h.origin)}, {"owner", strconv.Quote(h.owner)},
		{"read", h.read.UTC().Format(time.RFC3339Nano)}, {"missing", strconv.FormatBool(h.missing)},
		{"instances", strconv.Itoa(h.instances)},
	} {
		b = append(b, field.key+" "+field.value+"\n"...)
	}
	if h.note != "" {
		b = append(b, "note "+strconv.Quote(h.note)+"\n"...)
	}
	return append(b, '\n')
}

// parseHead reads the head at the beginning of a file and returns what is behind it.
func parseHead(b []byte) (h storedHead, rest []byte, err error) {
	b, ok := bytes.CutPrefix(b, []byte(storedMagic))
	if !ok {
		return h, nil, errors.New("it does not begin as a snapshot of this version does")
	}
	text := func(into *string) func(string) error {
		return func(v string) (err error) { *into, err = strconv.Unquote(v); return err }
	}
	for _, field := range []struct {
		key  string
		read func(string) error
	}{
		{"service", text(&h.service)}, {"origin", text(&h.origin)}, {"owner", text(&h.owner)},
		{"read", func(v string) (err error) { h.read, err = time.Parse(time.RFC3339Nano, v); return err }},
		{"missing", func(v string) (err error) { h.missing, err = strconv.ParseBool(v); return err }},
		{"instances", func(v string) (err error) { h.instances, err = strconv.Atoi(v); return err }},
	} {
		line, behind, _ := bytes.Cut(b, []byte("\n"))
		value, ok := strings.CutPrefix(string(line), field.key+" ")
		if !ok {
			return h, nil, fmt.Errorf("it has no line %q", field.key)
		}
		if err := field.read(value); err != nil {
			return h, nil, fmt.Errorf("its line %q: %w", field.key, err)
		}
		b = behind
	}
	if note, found := bytes.CutPrefix(b, []byte("note ")); found {
		line, behind, _ := bytes.Cut(note, []byte("\n"))
		if err := text(&h.note)(string(line)); err != nil {
			return h, nil, fmt.Errorf("its line %q: %w", "note", err)
		}
		b = behind
	}
	b, ok = bytes.CutPrefix(b, []byte("\n"))
	if !ok || h.instances < 0 {
		return h, nil, errors.New("its head does not end as it should")
	}
	return h, b, nil
}

// openStored checks a whole file and returns its head and its binary part.
func openStored(file []byte) (storedHead, []byte, error) {
	end := len(file) - sha256.Size
	if end < 0 {
		return storedHead{}, nil, errors.New("it is too short")
	}
	if sum := sha256.Sum256(file[:end]); !bytes.Equal(sum[:], file[end:]) {
		return storedHead{}, nil, errors.New("its checksum is wrong: it is torn or was edited")
	}
	return parseHead(file[:end])
}

// sealStored makes a whole file.
func sealStored(h storedHead, body []byte) []byte {
	file := make([]byte, 0, len(body)+512)
	return sealText(append(h.append(file), body...))
}

// sealText puts the checksum behind a file's text.
func sealText(text []byte) []byte {
	sum := sha256.Sum256(text)
	return append(text, sum[:]...)
}

// encodeInstances writes the binary part. What decodeInstances would refuse is an error here.
func encodeInstances(instances []Instance) ([]byte, error) {
	var labels, options table
	rows := make([]byte, 0, 48*len(instances))
	var scratch []byte
	var keys []string
	var before Instance
	for i := range instances {
		in := &instances[i]
		if err := in.storable(); err != nil {
			return nil, fmt.Errorf("instance %s of node %s: %w", in.Endpoint, quote(in.Node), err)
		}
		scratch, keys = appendLabels(scratch[:0], in.Labels, keys[:0])
		set := labels.index(scratch)
		scratch = appendWords(scratch[:0], in.ServerOptions)
		rows = appendInstance(rows, in, &before, set, options.index(scratch))
		before = *in
	}
	out := make([]byte, 0, len(rows)+len(labels.text)+len(options.text)+2*binary.MaxVarintLen64)
	out = labels.append(out)
	out = options.append(out)
	return append(out, rows...), nil
}

// storable tells what an instance lacks to be kept: the rules that its decoder has held it to, where its text reaches
// HAProxy. A node's name tells a registration from a server of the configuration, which has more rights.
func (in *Instance) storable() error {
	switch {
	case !in.Endpoint.IsValid():
		return errors.New("it has no endpoint")
	case in.Node == "":
		return errors.New("it has no node")
	case !storableName(in.Name):
		return errors.New("its name is not safe")
	case in.Weight != nil && *in.Weight < 0:
		return errors.New("its weight is negative")
	case in.ServerID < 0:
		return errors.New("its server id is negative")
	}
	for _, w := range in.ServerOptions {
		if w == "" || strings.IndexFunc(w, func(r rune) bool { return r > 127 || !optionByte(byte(r)) }) >= 0 {
			return fmt.Errorf("its option %s is not safe", quote(w))
		}
	}
	return nil
}

func storableName(name string) bool { return SafeName(name) == name }

func appendInstance(b []byte, in, before *Instance, labels, options uint64) []byte {
	ip, isIP := in.Endpoint.IP()
	flags := byte(0)
	set := func(flag byte, on bool) {
		if on {
			flags |= flag
		}
	}
	set(storedName, !isIP)
	set(storedIPv6, isIP && ip.Is6())
	set(storedWeight, in.Weight != nil)
	set(storedID, in.ID != nil)
	set(storedCreated, !in.Created.IsZero())
	set(storedModified, !in.Modified.IsZero())
	set(storedServerID, in.ServerID != 0)
	set(storedPrefix, in.Name != "" && strings.HasPrefix(in.Node, in.Name))

	b = append(b, flags)
	if isIP {
		b = append(b, ip.AsSlice()...)
	} else {
		b = appendText(b, in.Endpoint.Host())
	}
	port := uint64(in.Endpoint.Port())
	if in.Leaving {
		port |= storedLeaving
	}
	b = binary.AppendUvarint(b, port)
	b = appendText(b, in.Node)
	if flags&storedPrefix != 0 {
		b = binary.AppendUvarint(b, uint64(len(in.Name)))
	} else {
		b = appendText(b, in.Name)
	}
	b = binary.AppendUvarint(b, labels)
	b = binary.AppendUvarint(b, options)
	b = binary.AppendVarint(b, in.Session-before.Session)
	if flags&storedWeight != 0 {
		b = binary.AppendUvarint(b, uint64(*in.Weight))
	}
	if flags&storedID != 0 {
		b = binary.AppendVarint(b, *in.ID)
	}
	if flags&storedCreated != 0 {
		b = binary.AppendVarint(b, millis(in.Created)-millis(before.Created))
	}
	if flags&storedModified != 0 {
		b = binary.AppendVarint(b, millis(in.Modified)-millis(in.Created))
	}
	if flags&storedServerID != 0 {
		b = binary.AppendUvarint(b, uint64(in.ServerID))
	}
	return b
}

// millis is 0 for the zero time.
func millis(t time.Time) int64 {
	if t.IsZero() {
		return 0
	}
	return t.UnixMilli()
}

func appendText(b []byte, s string) []byte {
	return append(binary.AppendUvarint(b, uint64(len(s))), s...)
}

// appendLabels writes a set of labels, nothing for an empty one. keys is memory to work in.
func appendLabels(b []byte, labels map[string]any, keys []string) ([]byte, []string) {
	if len(labels) == 0 {
		return b, keys
	}
	b = binary.AppendUvarint(b, uint64(len(labels)))
	for key := range labels {
		keys = append(keys, key)
	}
	slices.Sort(keys)
	for _, key := range keys {
		b = appendText(b, key)
		switch v := labels[key].(type) {
		case string:
			b = appendText(append(b, storedText), v)
		case json.Number:
			b = appendText(append(b, storedNumber), string(v))
		case bool:
			kind := byte(storedFalse)
			if v {
				kind = storedTrue
			}
			b = append(b, kind)
		default: // nil; no decoder makes anything else
			b = append(b, storedNull)
		}
	}
	return b, keys
}

// appendWords writes a list of words, nothing for an empty one.
func appendWords(b []byte, words []string) []byte {
	if len(words) == 0 {
		return b
	}
	b = binary.AppendUvarint(b, uint64(len(words)))
	for _, w := range words {
		b = appendText(b, w)
	}
	return b
}

// table numbers encoded values from 1, each once, in the order of their first use.
type table struct {
	numbers map[string]uint64
	text    []byte
}

func (t *table) index(encoded []byte) uint64 {
	if len(encoded) == 0 {
		return 0
	}
	n, ok := t.numbers[string(encoded)]
	if !ok {
		if t.numbers == nil {
			t.numbers = map[string]uint64{}
		}
		n = uint64(len(t.numbers) + 1)
		t.numbers[string(encoded)] = n
		t.text = append(t.text, encoded...)
	}
	return n
}

func (t *table) append(b []byte) []byte {
	return append(binary.AppendUvarint(b, uint64(len(t.numbers))), t.text...)
}

var errStored = errors.New("its instances cannot be read")

// decodeInstances reads the binary part, which must hold n instances and nothing else. The instances share labels and
// options, and their texts share one string.
func decodeInstances(body []byte, n int) ([]Instance, error) {
	c := &cursor{rest: string(body)}
	labels := readTable(c, (*cursor).labels)
	options := readTable(c, (*cursor).words)
	// The shortest instance has more than 8 bytes, so that a wrong count does not take memory.
	out := make([]Instance, 0, min(n, len(c.rest)/8))
	var before Instance
	for range n {
		in, ok := c.instance(&before, labels, options)
		if !ok {
			return nil, errStored
		}
		if err := in.storable(); err != nil {
			return nil, fmt.Errorf("%w: %w", errStored, err)
		}
		out = append(out, in)
		before = in
	}
	if c.failed || c.rest != "" {
		return nil, errStored
	}
	return out, nil
}

func readTable[T any](c *cursor, read func(*cursor) T) []T {
	var out []T
	for n := c.uvarint(); n > 0 && !c.failed; n-- {
		out = append(out, read(c))
	}
	return out
}

// cursor reads the binary part. After something that cannot be there it has failed, and reads zeros.
type cursor struct {
	rest   string
	failed bool
}

func (c *cursor) take(n uint64) string {
	if c.failed || n > uint64(len(c.rest)) {
		c.failed, c.rest = true, ""
		return ""
	}
	s := c.rest[:n]
	c.rest = c.rest[n:]
	return s
}

func (c *cursor) byte() byte {
	if s := c.take(1); s != "" {
		return s[0]
	}
	return 0
}

func (c *cursor) uvarint() uint64 {
	var v uint64
	for shift := 0; shift < 64; shift += 7 {
		b := c.byte()
		if shift == 63 && b > 1 {
			break
		}
		v |= uint64(b&0x7f) << shift
		if b < 0x80 {
			return v
		}
	}
	c.failed = true
	return 0
}

// varint reads what binary.AppendVarint wrote.
func (c *cursor) varint() int64 {
	u := c.uvarint()
	v := int64(u >> 1)
	if u&1 != 0 {
		v = ^v
	}
	return v
}

// natural reads a number from 0 to most.
func (c *cursor) natural(most uint64) int {
	v := c.uvarint()
	if v > most {
		c.failed = true
		return 0
	}
	return int(v)
}

func (c *cursor) text() string { return c.take(c.uvarint()) }

func (c *cursor) words() []string {
	var out []string
	for n := c.uvarint(); n > 0 && !c.failed; n-- {
		out = append(out, c.text())
	}
	return out
}

func (c *cursor) labels() map[string]any {
	out := map[string]any{}
	for n := c.uvarint(); n > 0 && !c.failed; n-- {
		key := c.text()
		switch c.byte() {
		case storedText:
			out[key] = c.text()
		case storedNumber:
			out[key] = json.Number(c.text())
		case storedTrue:
			out[key] = true
		case storedFalse:
			out[key] = false
		case storedNull:
			out[key] = nil
		default:
			c.failed = true
		}
	}
	return out
}

func (c *cursor) endpoint(flags byte) (e Endpoint, leaving bool) {
	host := ""
	switch {
	case flags&storedName != 0:
		host = c.text()
	case flags&storedIPv6 != 0:
		ip, _ := netip.AddrFromSlice([]byte(c.take(16)))
		host = ip.String()
	default:
		ip, _ := netip.AddrFromSlice([]byte(c.take(4)))
		host = ip.String()
	}
	port := c.natural(storedLeaving | math.MaxUint16)
	e, err := ParseEndpoint(host, port&^storedLeaving)
	if err != nil || flags&storedName != 0 && e.Host() != host {
		c.failed = true
	}
	return e, port&storedLeaving != 0
}

func (c *cursor) instance(before *Instance, labels []map[string]any, options [][]string) (in Instance, ok bool) {
	flags := c.byte()
	in.Endpoint, in.Leaving = c.endpoint(flags)
	in.Node = c.text()
	if flags&storedPrefix != 0 {
		in.Name = in.Node[:c.natural(uint64(len(in.Node)))]
	} else {
		in.Name = c.text()
	}
	if i := c.natural(uint64(len(labels))); i > 0 {
		in.Labels = labels[i-1]
	}
	if i := c.natural(uint64(len(options))); i > 0 {
		in.ServerOptions = options[i-1]
	}
	in.Session = before.Session + c.varint()
	if flags&storedWeight != 0 {
		w := c.natural(math.MaxInt)
		in.Weight = &w
	}
	if flags&storedID != 0 {
		id := c.varint()
		in.ID = &id
	}
	if flags&storedCreated != 0 {
		in.Created = time.UnixMilli(millis(before.Created) + c.varint())
	}
	if flags&storedModified != 0 {
		in.Modified = time.UnixMilli(millis(in.Created) + c.varint())
	}
	if flags&storedServerID != 0 {
		in.ServerID = c.natural(math.MaxInt)
	}
	return in, !c.failed
}
