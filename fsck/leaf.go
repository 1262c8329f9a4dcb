package fsck

import (
	"bytes"
	"encoding/json"
	"errors"
	"net/netip"
	"strconv"
	"strings"

	"github.com/myelin-sd/myelin/discovery"
)

// form is what the data of a node looks like where it is no registration.
type form int

const (
	formNone    form = iota // no data
	formOurs                // of a format that we know, and broken
	formUnknown             // of none
	formNowhere             // a registration whose host is no address to connect to
)

// maxWeight is HAProxy's. Agents count a larger weight as this.
const maxWeight = 256

// leaf takes apart a node without children.
func (c *Checker) leaf(f *folder, n Node) leaf {
	l := leaf{
		name: base(n.Path), owner: n.Owner, created: n.Created, modified: n.Modified,
		czxid: n.Czxid, mzxid: n.Mzxid, version: n.Version, weight: -1,
	}
	in, err := c.decoder.Decode(l.name, n.Data)
	if err != nil {
		if !errors.As(err, &l.reject) {
			l.reject = &discovery.RejectError{Reason: discovery.ReasonUndecodable, Detail: safe(err.Error())}
		}
		l.form = formOf(l.name, n.Data, l.reject.Reason)
		return l
	}
	l.endpoint, l.instance, l.leaving = in.Endpoint, in.Name, in.Leaving
	_, l.zoned = in.Labels[c.zone(f.Path)]
	switch {
	case in.Weight != nil:
		l.weight = *in.Weight
	case bytes.Contains(n.Data, []byte(`"weight"`)):
		l.weight = unusableWeight(n.Data)
	}
	return l
}

func (c *Checker) zone(path string) string {
	if label, ok := c.o.Zones[path]; ok {
		return label
	}
	return "zone"
}

// outOfRange marks a weight that readers ignore.
const outOfRange = -2

// unusableWeight is outOfRange where a registration has a weight that is no whole number from 0.
func unusableWeight(data []byte) int {
	var v struct {
		Weight json.RawMessage `json:"weight"`
	}
	if json.Unmarshal(data, &v) != nil || len(v.Weight) == 0 || string(v.Weight) == "null" {
		return -1
	}
	return outOfRange
}

// formOf tells broken registrations from what is none.
func formOf(name string, data []byte, reason string) form {
	if payload, ok := discovery.DecodeName(name); ok {
		data = payload
	}
	text := bytes.TrimSpace(data)
	if len(text) == 0 {
		return formNone
	}
	if text[0] != '{' {
		return formUnknown
	}
	var v map[string]json.RawMessage
	if json.Unmarshal(text, &v) != nil {
		return formOurs // the beginning of a registration
	}
	for _, key := range []string{"host", "serviceEndpoint", "address", "port"} {
		if v[key] == nil {
			continue
		}
		if reason == discovery.ReasonHost && nowhere(v) {
			return formNowhere
		}
		return formOurs
	}
	return formUnknown
}

// nowhere tells whether the host of a registration is the address of no machine: 0.0.0.0 or ::.
func nowhere(v map[string]json.RawMessage) bool {
	if endpoint := v["serviceEndpoint"]; endpoint != nil {
		var below map[string]json.RawMessage
		return json.Unmarshal(endpoint, &below) == nil && nowhere(below)
	}
	for _, key := range []string{"host", "address"} {
		var host string
		if json.Unmarshal(v[key], &host) != nil {
			continue
		}
		if ip, err := netip.ParseAddr(strings.Trim(host, "[]")); err == nil && ip.Unmap().IsUnspecified() {
			return true
		}
	}
	return false
}

// local tells whether an endpoint means the host that connects to it.
func local(e discovery.Endpoint) bool {
	if ip, ok := e.IP(); ok {
		return ip.IsLoopback()
	}
	return e.Host() == "localhost" || strings.HasSuffix(e.Host(), ".localhost") || strings.HasPrefix(e.Host(), "localhost.")
}

// safe is text of the registry in one line that is harmless to print.
func safe(s string) string {
	const most = 160
	if len(s) > most {
		s = s[:most] + "..."
	}
	if strings.ContainsFunc(s, func(r rune) bool { return r < ' ' || r > '~' }) {
		return strconv.QuoteToASCII(s)
	}
	return s
}

// session writes one as ZooKeeper's tools do.
func session(id int64) string {
	if id == 0 {
		return "no session"
	}
	return "session 0x" + strconv.FormatUint(uint64(id), 16)
}
