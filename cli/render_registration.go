package cli

import (
	"fmt"
	"path"
	"slices"
	"strings"

	"github.com/myelin-sd/myelin/config"
	"github.com/myelin-sd/myelin/discovery"
	"github.com/myelin-sd/myelin/registrar"
)

// publication is what a service publishes, whatever condition it is in: the same payload in each of its formats.
type publication struct {
	payload discovery.Payload
	formats []format
}

// format is how a payload is encoded, and for which znode.
type format struct {
	name         string // nerve, serverset or curator
	path, prefix string // of the registration; Curator's name of the service is the last part of path, its id is prefix
}

// newPublication returns what a service of the file publishes, and the registration of its usual condition. shared tells
// that other services of the file register in the same path.
func newPublication(c *config.Registrar, s config.Registration, shared bool) (publication, discovery.Registration, error) {
	p := publication{payload: discovery.Payload{
		Host: s.Host, Port: s.Port, PortText: s.PortText, Name: c.InstanceID, Weight: s.Weight,
		ServerOptions: s.ServerOptions, Labels: s.Labels,
	}}
	var all []discovery.Registration
	for i, name := range s.Payload {
		r := discovery.Registration{Path: s.PayloadPaths[name], Ephemeral: true, Closed: s.ACL == "creator"}
		if i == 0 {
			r.Path = s.ZKPath
		}
		switch name {
		case "serverset":
			r.Prefix, r.Sequential = discovery.ServersetPrefix, true
		case "curator":
			r.Prefix, r.Dated = fmt.Sprintf("%s_%d", c.InstanceID, s.Port), true
		default:
			r.Prefix = nervePrefix(c, s, shared)
			r.Sequential = strings.HasSuffix(s.NodeType, "_sequential")
			r.Ephemeral = strings.HasPrefix(s.NodeType, "ephemeral")
			r.TTL = s.TTL
		}
		f := format{name: name, path: r.Path, prefix: r.Prefix}
		data, err := f.encode(p.payload)
		if err != nil {
			return publication{}, discovery.Registration{}, err
		}
		if name == "nerve" && s.UsePathEncoding {
			if prefix, ok := discovery.EncodeName(data); ok {
				r.Prefix, f.prefix = prefix, prefix
			}
		}
		r.Data = data
		p.formats, all = append(p.formats, f), append(all, r)
	}
	r := all[0]
	r.Also = all[1:]
	return p, r, nil
}

// nervePrefix is the name of a znode in Nerve's format, up to its sequence number. Nerve calls the znodes of several
// ports in one path alike; ours can be told apart.
func nervePrefix(c *config.Registrar, s config.Registration, shared bool) string {
	switch {
	case s.LoadTestConcurrency > 0:
		return fmt.Sprintf("%s_%d_%d_", c.InstanceID, s.Port, s.Copy)
	case shared:
		return fmt.Sprintf("%s_%d_", c.InstanceID, s.Port)
	}
	return c.InstanceID + "_"
}

func (f format) encode(p discovery.Payload) ([]byte, error) {
	switch f.name {
	case "serverset":
		return discovery.EncodeServerset(p)
	case "curator":
		return discovery.EncodeCurator(p, path.Base(f.path), f.prefix)
	}
	return discovery.EncodeNerve(p)
}

// Render implements registrar.Renderer. A weight is never lowered to 0, which would be another thing.
func (p publication) Render(r discovery.Registration, c registrar.Condition) discovery.Registration {
	payload := p.payload
	if payload.Weight != nil {
		w := int((int64(*payload.Weight)*int64(c.Weight) + 99) / 100)
		payload.Weight = &w
	}
	payload.Leaving = c.Leaving
	p.fill(&r, payload)
	r.Also = slices.Clone(r.Also)
	for i := range r.Also {
		p.fill(&r.Also[i], payload)
	}
	return r
}

// fill sets the data of one registration.
func (p publication) fill(r *discovery.Registration, payload discovery.Payload) {
	for _, f := range p.formats {
		if f.path == r.Path && f.prefix == r.Prefix {
			if data, err := f.encode(payload); err == nil { // it was encoded before, or there were no service
				r.Data = data
			}
		}
	}
}
