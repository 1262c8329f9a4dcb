package discovery

import (
	"bytes"
	"encoding/base64"
	"encoding/json"
	"fmt"
	"io"
	"math"
	"strconv"
	"strings"
	"unicode/utf8"
)

// Limits on what a registration may hold. Nerve's own payloads are some hundred bytes.
const (
	maxPayload = 64 << 10 // larger data is not even decoded
	maxOptions = 1 << 10  // bytes of haproxy_server_options
	maxName    = 64       // bytes of a mapped name
	maxDetail  = 160      // bytes of registry text quoted in a rejection

	// maxEncoded is the longest base64 text that Nerve and Synapse put in a node's name (64 KiB).
	maxEncoded = 1 << 16
)

// Reasons of rejections: fixed words, used as a metric's label.
const (
	ReasonUndecodable = "undecodable" // not the format's text
	ReasonHost        = "host"        // no host, or none that is legal
	ReasonPort        = "port"        // no port, or none from 1 to 65535
	ReasonOversize    = "oversize"    // more data than any registration has
	ReasonOptions     = "options"     // server options outside the safe alphabet
	ReasonStatus      = "status"      // the instance itself says that it is not available
	ReasonUnreadable  = "unreadable"  // the registry does not let us read it
)

// RejectError says why a registration is left out.
type RejectError struct {
	Reason string // one of the Reason constants
	Detail string // one line for people; registry text in it is quoted and bounded
}

func (e *RejectError) Error() string {
	return "decode registration: " + e.Reason + ": " + e.Detail
}

func reject(reason, format string, args ...any) error {
	return &RejectError{Reason: reason, Detail: fmt.Sprintf(format, args...)}
}

// quote makes registry text safe to print: one line, ASCII, bounded.
func quote(s string) string {
	if len(s) <= maxDetail {
		return strconv.QuoteToASCII(s)
	}
	return strconv.QuoteToASCII(s[:maxDetail]) + "..."
}

// DecodeNerve decodes a registration of Nerve (github.com/airbnb/nerve) or of go-nerve: JSON, or the same JSON in the
// node's name ("base64_..."), which goes before data as it does in Synapse. What is wrong is a *RejectError.
//
// It is as tolerant as Synapse where that is harmless: unknown fields and nulls are ignored, the port may be a string
// of digits. A weight that is not a whole number >= 0, and labels that are no object, are dropped without the
// instance (Synapse ignores such weights as well); a label whose value is no string, number, boolean or null is
// dropped alone. It is stricter where registry text would reach HAProxy: see ParseEndpoint, SafeName and the alphabet
// of server options, for which Synapse had no checks (any writer of a znode could add directives to haproxy.cfg).
//
// Session, Created and Modified are the caller's to fill in. Who decodes many registrations of one service and keeps
// the instances uses a NerveDecoder.
func DecodeNerve(node string, data []byte) (Instance, error) {
	return decode(node, data, nil)
}

func decode(node string, data []byte, d *NerveDecoder) (Instance, error) {
	if payload, ok := DecodeName(node); ok {
		if in, err := decodePayload(node, payload, d); err == nil {
			return in, nil
		}
	}
	return decodePayload(node, data, d)
}

func decodePayload(node string, data []byte, d *NerveDecoder) (Instance, error) {
	if len(data) > maxPayload {
		return Instance{}, reject(ReasonOversize, "%d bytes of data, at most %d are decoded", len(data), maxPayload)
	}
	if len(data) == 0 {
		return Instance{}, reject(ReasonUndecodable, "the node has no data")
	}
	if in, ok := decodeUsual(node, data, d); ok {
		return in, nil
	}
	return decodeJSON(node, data)
}

// decodeJSON decodes any registration. It defines what a registration means.
func decodeJSON(node string, data []byte) (Instance, error) {
	fields, err := object(data)
	if err != nil {
		return Instance{}, reject(ReasonUndecodable, "%s in %s", quote(err.Error()), quote(string(data)))
	}
	if available, ok := fields["available"].(bool); ok && !available { // go-nerve keeps nodes of unhealthy services
		return Instance{}, reject(ReasonStatus, "the registration says available: false")
	}

	in := Instance{Node: node, ID: SequenceID(node), Labels: labels(fields["labels"]), Weight: weight(fields["weight"])}
	if in.Endpoint, err = endpointOf(fields["host"], fields["port"]); err != nil {
		return Instance{}, err
	}
	if in.ServerOptions, err = serverOptions(fields["haproxy_server_options"]); err != nil {
		return Instance{}, err
	}
	in.Leaving, _ = fields["leaving"].(bool)
	switch name := fields["name"].(type) {
	case string:
		in.Name = SafeName(name)
	case json.Number:
		in.Name = SafeName(name.String())
	}
	return in, nil
}

// object decodes exactly one JSON object. Keys match exactly, unlike in encoding/json's decoding into structs; of
// repeated keys the last one counts, as in Ruby.
func object(data []byte) (map[string]any, error) {
	d := json.NewDecoder(bytes.NewReader(data))
	d.UseNumber()
	var fields map[string]any
	if err := d.Decode(&fields); err != nil {
		return nil, err
	}
	if fields == nil {
		return nil, fmt.Errorf("null instead of an object")
	}
	if _, err := d.Token(); err != io.EOF {
		return nil, fmt.Errorf("text after the object")
	}
	return fields, nil
}

func port(v any) (int, bool) {
	switch v := v.(type) {
	case json.Number:
		return portNumber(v.String())
	case string:
		return portNumber(v)
	}
	return 0, false
}

func portNumber(text string) (int, bool) {
	if len(text) > 16 || !digits(text) {
		return 0, false
	}
	n, err := strconv.Atoi(text)
	return n, err == nil && 1 <= n && n <= 65535
}

func weight(v any) *int {
	number, ok := v.(json.Number)
	if !ok {
		return nil
	}
	n, ok := weightNumber(number.String())
	if !ok {
		return nil
	}
	return &n
}

func weightNumber(text string) (int, bool) {
	n, err := strconv.Atoi(text)
	return n, err == nil && 0 <= n && n <= math.MaxInt32
}

func labels(v any) map[string]any {
	fields, ok := v.(map[string]any)
	if !ok {
		return nil
	}
	for key, value := range fields {
		switch value.(type) {
		case string, json.Number, bool, nil:
		default:
			delete(fields, key)
		}
	}
	return fields
}

func serverOptions(v any) ([]string, error) {
	if v == nil {
		return nil, nil
	}
	text, ok := v.(string)
	if !ok {
		return nil, reject(ReasonOptions, "haproxy_server_options is no text")
	}
	return splitOptions(text)
}

// splitOptions splits haproxy_server_options at blanks. Nothing but blanks and tabs separates words, so that a line
// break is part of a word and refused with it.
func splitOptions(text string) ([]string, error) {
	if len(text) > maxOptions {
		return nil, reject(ReasonOptions, "haproxy_server_options has %d bytes, at most %d are taken", len(text), maxOptions)
	}
	words := strings.FieldsFunc(text, func(r rune) bool { return r == ' ' || r == '\t' })
	for _, w := range words {
		for i := range len(w) {
			if !optionByte(w[i]) {
				return nil, reject(ReasonOptions, "haproxy_server_options has the word %s", quote(w))
			}
		}
	}
	if len(words) == 0 {
		return nil, nil
	}
	return words, nil
}

// optionByte is the alphabet of option words. It leaves out all that quotes, separates, expands or ends a word or a
// command in HAProxy's configuration and on its socket: blanks, line breaks, ; " ' \ # % $ < { } and what is not ASCII.
func optionByte(c byte) bool {
	return 'a' <= c && c <= 'z' || 'A' <= c && c <= 'Z' || '0' <= c && c <= '9' || strings.IndexByte("_.,:/()@+=-", c) >= 0
}

// SafeName maps a name to letters, digits, "_", "." and "-": each other character becomes "_". It is cut to 64 bytes.
func SafeName(name string) string {
	if isSafeName(name) {
		return name
	}
	b := make([]byte, 0, min(len(name), maxName))
	for i := 0; i < len(name) && len(b) < maxName; {
		if c := name[i]; safeByte(c) {
			b = append(b, c)
			i++
			continue
		}
		_, size := utf8.DecodeRuneInString(name[i:])
		b = append(b, '_')
		i += size
	}
	return string(b)
}

func isSafeName(name string) bool {
	for i := range len(name) {
		if !safeByte(name[i]) {
			return false
		}
	}
	return len(name) <= maxName
}

func safeByte(c byte) bool {
	return 'a' <= c && c <= 'z' || 'A' <= c && c <= 'Z' || '0' <= c && c <= '9' || c == '_' || c == '.' || c == '-'
}

// SequenceID returns the number after the last "_" of a node's name, all of it when there is no "_", as Synapse does;
// nil when that is not a number.
func SequenceID(node string) *int64 {
	n, ok := sequence(node)
	if !ok {
		return nil
	}
	return &n
}

func sequence(node string) (int64, bool) {
	number := node[strings.LastIndexByte(node, '_')+1:]
	if !digits(number) {
		return 0, false
	}
	n, err := strconv.ParseInt(number, 10, 64)
	return n, err == nil
}

// digits reports whether text consists of digits, at least one.
func digits(text string) bool {
	for i := range len(text) {
		if text[i] < '0' || text[i] > '9' {
			return false
		}
	}
	return text != ""
}

const encodedPrefix = "base64_"

// DecodeName returns the payload in a path-encoded node name, "base64_<length>_<base64url>_<sequence>", which saves
// reading the node. ok is false for every other name and for text that does not decode.
func DecodeName(node string) (payload []byte, ok bool) {
	rest, ok := strings.CutPrefix(node, encodedPrefix)
	if !ok {
		return nil, false
	}
	count, rest, ok := strings.Cut(rest, "_")
	n, err := strconv.ParseUint(count, 10, 32)
	if !ok || err != nil || n == 0 || n > maxEncoded || uint64(len(rest)) < n {
		return nil, false
	}
	text, rest := rest[:n], rest[n:]
	if rest != "" && rest[0] != '_' {
		return nil, false
	}
	// The decoder skips line breaks, so they would make two names of one payload; ZooKeeper allows them in names.
	if strings.ContainsAny(text, "\r\n") {
		return nil, false
	}
	payload, err = base64.RawURLEncoding.DecodeString(strings.TrimRight(text, "="))
	return payload, err == nil
}

// EncodeName returns the name of a path-encoded node up to its sequence number. ok is false when the payload is too
// long for a name; Nerve then uses its plain one.
func EncodeName(payload []byte) (prefix string, ok bool) {
	n := base64.URLEncoding.EncodedLen(len(payload))
	if n == 0 || n > maxEncoded {
		return "", false
	}
	return encodedPrefix + strconv.Itoa(n) + "_" + base64.URLEncoding.EncodeToString(payload) + "_", true
}

// Payload is what Nerve publishes for one instance. Optional fields are left out of the JSON when nil, or false.
type Payload struct {
	Host          string
	Port          uint16
	PortText      bool // publish the port as a string: Nerve keeps the type that the configuration gave it
	Name          string
	Weight        *int
	ServerOptions *string
	Labels        map[string]any
	Leaving       bool // not in Nerve, whose readers ignore the key
}

// EncodeNerve returns exactly Nerve's compact JSON: its order of keys, nothing escaped that JSON does not ask for.
// Labels are sorted by name; "leaving" comes last. It fails on labels that JSON cannot hold.
func EncodeNerve(p Payload) ([]byte, error) {
	var wire struct {
		Host          string          `json:"host"`
		Port          any             `json:"port"`
		Name          string          `json:"name"`
		Weight        *int            `json:"weight,omitempty"`
		ServerOptions *string         `json:"haproxy_server_options,omitempty"`
		Labels        *map[string]any `json:"labels,omitempty"` // a pointer: an empty object is published
		Leaving       bool            `json:"leaving,omitempty"`
	}
	wire.Host, wire.Port, wire.Name = p.Host, p.Port, p.Name
	wire.Weight, wire.ServerOptions, wire.Leaving = p.Weight, p.ServerOptions, p.Leaving
	if p.PortText {
		wire.Port = strconv.Itoa(int(p.Port))
	}
	if p.Labels != nil {
		wire.Labels = &p.Labels
	}
	return compact(wire, p.Name)
}

// compact is JSON without blanks, in which nothing is escaped that JSON does not ask for. name tells whose it is.
func compact(wire any, name string) ([]byte, error) {
	var b bytes.Buffer
	e := json.NewEncoder(&b)
	e.SetEscapeHTML(false)
	if err := e.Encode(wire); err != nil {
		return nil, fmt.Errorf("encode registration of %s: %w", quote(name), err)
	}
	return bytes.TrimSuffix(b.Bytes(), []byte("\n")), nil
}
