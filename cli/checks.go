package cli

import (
	"fmt"

	"github.com/myelin-sd/myelin/config"
	"github.com/myelin-sd/myelin/registrar"
)

// checks turns the checks of a service in the file into what the registrar makes.
func checks(s config.Registration) ([]registrar.Check, error) {
	var out []registrar.Check
	for _, c := range s.Checks {
		check := registrar.Check{Name: c.Name, Timeout: c.Timeout, Rise: c.Rise, Fall: c.Fall, Interval: c.Interval}
		if c.Share != nil {
			check.Share, check.Shown = *c.Share, *c.Share == 0
		}
		switch c.Type {
		case "http":
			o := registrar.HTTPOptions{
				Host: c.Host, Port: c.Port, URI: c.URI, TLS: c.SSL, Headers: c.Headers, Expect: c.Expect,
				OpenTimeout: c.OpenTimeout, TLSTimeout: c.SSLTimeout, ReadTimeout: c.ReadTimeout,
			}
			h, err := registrar.NewHTTP(o)
			if err != nil {
				return nil, err
			}
			check.HealthCheck, check.Timeout = h, o.Budget()
		case "tcp":
			check.HealthCheck = registrar.NewTCP(registrar.TCPOptions{Host: c.Host, Port: c.Port})
		case "noop":
			check.HealthCheck = registrar.NewNoop()
		default:
			return nil, fmt.Errorf("check type %q is not available; use http, tcp or noop", c.Type)
		}
		out = append(out, check)
	}
	return out, nil
}

// combination is what the checks of a service amount to together.
func combination(name string) registrar.Combination {
	return map[string]registrar.Combination{"any": registrar.CombineAny, "weighted": registrar.CombineWeighted}[name]
}

func damping(d *config.Damping) *registrar.Damping {
	if d == nil {
		return nil
	}
	return &registrar.Damping{Suppress: d.Suppress, Reuse: d.Reuse, HalfLife: d.HalfLife, MaxHold: d.MaxHold}
}
