package cli

import (
	"github.com/myelin-sd/myelin/discovery"
	"github.com/myelin-sd/myelin/registrar"
)

// nerveRenderer publishes a payload in Nerve's format, whatever condition the service is in.
type nerveRenderer struct{ payload discovery.Payload }

// Render implements registrar.Renderer. A weight is never lowered to 0, which would be another thing.
func (n nerveRenderer) Render(r discovery.Registration, c registrar.Condition) discovery.Registration {
	p := n.payload
	if p.Weight != nil {
		w := int((int64(*p.Weight)*int64(c.Weight) + 99) / 100)
		p.Weight = &w
	}
	p.Leaving = c.Leaving
	if data, err := discovery.EncodeNerve(p); err == nil { // it was encoded before, or there were no service
		r.Data = data
	}
	return r
}
