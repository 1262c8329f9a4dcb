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
			h, known, err := serverCheck(c)
			if err != nil {
				return nil, err
			}
			if known {
				check.HealthCheck = h
				break
			}
			return nil, fmt.Errorf("check type %q is not available; use http, tcp or noop", c.Type)
		}
		out = append(out, check)
	}
	return out, nil
}
