package cli

import (
	"fmt"
	"maps"
	"slices"
	"strconv"

	"github.com/myelin-sd/myelin/config"
	"github.com/myelin-sd/myelin/registrar"
)

// checks turns the checks of a service in the file into what the registrar makes. Services report their own health on
// the board.
func checks(s config.Registration, board *registrar.Reports) ([]registrar.Check, error) {
	var out []registrar.Check
	for _, c := range s.Checks {
		check := registrar.Check{Name: c.Name, Timeout: c.Timeout, Rise: c.Rise, Fall: c.Fall, Interval: c.Interval}
		var err error
		if c.Share != nil {
			check.Share, check.Shown = *c.Share, *c.Share == 0
		}
		switch c.Type {
		case "http":
			o := httpOptions(c)
			check.HealthCheck, err = registrar.NewHTTP(o)
			check.Timeout = o.Budget()
		case "tcp":
			check.HealthCheck = registrar.NewTCP(registrar.TCPOptions{Host: c.Host, Port: c.Port, Socket: c.Socket, Send: c.Send, Expect: c.Expect})
		case "grpc":
			check.HealthCheck, err = registrar.NewGRPC(registrar.GRPCOptions{Host: c.Host, Port: c.Port, Socket: c.Socket, TLS: checkTLS(c), Service: c.Service})
		case "exec":
			check.HealthCheck, err = registrar.NewExec(execOptions(s, c))
		case "ttl":
			check.HealthCheck, err = registrar.NewTTL(registrar.TTLOptions{Reports: board, Service: s.Name, Check: c.Name, TTL: c.TTL})
		case "noop":
			check.HealthCheck = registrar.NewNoop()
		default:
			var known bool
			if check.HealthCheck, known, err = serverCheck(c); !known {
				err = fmt.Errorf("check type %q is not available", c.Type)
			}
		}
		if err != nil {
			return nil, fmt.Errorf("check %s: %w", c.Name, err)
		}
		out = append(out, check)
	}
	return out, nil
}

func httpOptions(c config.Check) registrar.HTTPOptions {
	o := registrar.HTTPOptions{
		Host: c.Host, Port: c.Port, Socket: c.Socket, TLS: checkTLS(c), Method: c.Method, URI: c.URI, Headers: c.Headers, Body: c.Body,
		Expect: c.Expect, ExpectRegex: c.ExpectRegex,
		OpenTimeout: c.OpenTimeout, TLSTimeout: c.SSLTimeout, ReadTimeout: c.ReadTimeout,
	}
	for _, r := range c.Status {
		o.Status = append(o.Status, registrar.StatusRange(r))
	}
	return o
}

// execOptions tell a program whom it is asked about. What the file says of a variable counts.
func execOptions(s config.Registration, c config.Check) registrar.ExecOptions {
	env := map[string]string{
		"MYELIN_SERVICE": s.Name, "MYELIN_CHECK": c.Name, "MYELIN_HOST": c.Host, "MYELIN_PORT": strconv.Itoa(int(c.Port)),
	}
	maps.Copy(env, c.Env)
	o := registrar.ExecOptions{Command: c.Command, WarnExit: c.WarnExit, WarnWeight: c.WarnWeight}
	if c.Shell {
		o.Command = append([]string{"/bin/sh", "-c"}, c.Command...)
	}
	for _, name := range slices.Sorted(maps.Keys(env)) {
		o.Env = append(o.Env, name+"="+env[name])
	}
	return o
}

func checkTLS(c config.Check) *registrar.TLSOptions {
	if c.TLS == nil {
		return nil
	}
	return &registrar.TLSOptions{
		Verify: !c.TLS.NoVerify, CA: c.TLS.CA, ServerName: c.TLS.ServerName, CertFile: c.TLS.CertFile, KeyFile: c.TLS.KeyFile,
	}
}
