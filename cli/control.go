package cli

import (
	"context"
	"errors"
	"net/http"
	"path/filepath"
	"time"

	"github.com/sirupsen/logrus"

	"github.com/myelin-sd/myelin/agent"
	"github.com/myelin-sd/myelin/config"
	"github.com/myelin-sd/myelin/registrar/control"
)

// controlVariable tells a command that the registrar runs where to find it.
const controlVariable = "MYELIN_CONTROL_SOCKET"

// controlRetry is the pause between two attempts to have a socket that another process has.
const controlRetry = time.Second

// controlPoint is where a role takes orders: at a socket that it has, or tries to get.
type controlPoint struct {
	path   string // empty: nowhere
	config string // told to those who want the same socket
	needs  string // what cannot be done without one
	socket *control.Socket
	log    logrus.FieldLogger
}

// openControl opens the control socket of a registrar's file.
func openControl(c *config.Registrar, log logrus.FieldLogger) (*controlPoint, error) {
	p := &controlPoint{config: c.Path, needs: "maintenance and ttl checks need one", log: log.WithField("component", "registrar")}
	return p, p.open(c.ControlSocket)
}

// openAgentControl opens the control socket of an agent's file.
func openAgentControl(c *config.Agent, log logrus.FieldLogger) (*controlPoint, error) {
	p := &controlPoint{config: c.Path, needs: "myelin guard release needs one", log: log.WithField("component", "agent")}
	return p, p.open(c.ControlSocket)
}

// open opens a socket. One that the file names is had, or the error says why not. The default one may be missing: the
// role's work matters more than the socket.
func (p *controlPoint) open(s config.ControlSocket) error {
	if s.Path == "" {
		return nil
	}
	var err error
	if p.path, err = filepath.Abs(s.Path); err != nil {
		p.path = s.Path // the current folder is gone
	}
	if abs, err := filepath.Abs(p.config); err == nil {
		p.config = abs
	}
	p.socket, err = control.Listen(p.path, p.config)
	if err == nil || s.Given {
		return err
	}
	var used *control.InUseError
	if errors.As(err, &used) {
		p.log.WithField("err", err).Warn("there is no control socket until that process ends")
		return nil
	}
	p.log.WithField("err", err).Warn("there is no control socket: " + p.needs)
	p.path = ""
	return nil
}

// close gives the socket back where nobody answers at it. It may be called after answer.
func (p *controlPoint) close() {
	if p.socket != nil {
		p.socket.Close()
	}
}

// answer answers at the socket, as soon as it is had. stop ends that, and waits for it.
func (p *controlPoint) answer(ctx context.Context, h http.Handler) (stop func()) {
	ctx, cancel := context.WithCancel(context.WithoutCancel(ctx))
	done := make(chan struct{})
	go func() {
		defer close(done)
		socket := p.socket
		if socket == nil {
			socket = p.await(ctx)
		}
		if socket == nil {
			return
		}
		if err := control.Serve(ctx, socket, h); err != nil {
			p.log.WithField("err", err).Error("the control socket is gone; the rest goes on")
		}
	}()
	return func() { cancel(); <-done }
}

// await gets the socket from the process that has it; nil: not before ctx was done, or there is another trouble.
func (p *controlPoint) await(ctx context.Context) *control.Socket {
	if p.path == "" {
		return nil
	}
	tick := time.NewTicker(controlRetry)
	defer tick.Stop()
	for {
		select {
		case <-ctx.Done():
			return nil
		case <-tick.C:
		}
		socket, err := control.Listen(p.path, p.config)
		var used *control.InUseError
		switch {
		case err == nil:
			p.log.WithField("path", p.path).Info("the control socket is there")
			return socket
		case !errors.As(err, &used):
			p.log.WithField("err", err).Warn("there is no control socket: " + p.needs)
			return nil
		}
	}
}

// control answers with what the registrar can be asked for and told.
func (r *registrarRole) control() http.Handler {
	return control.Handler(control.Options{
		Registrar: r.Registrar, Board: r.reports, Log: r.log,
		Version: buildVersion(), Config: r.began.Path, Instance: r.began.InstanceID, Started: time.Now(),
	})
}

// agentControl answers with what an agent can be told.
func agentControl(a *agent.Agent, log logrus.FieldLogger) http.Handler {
	return control.AgentHandler(control.AgentOptions{
		Release: func(ctx context.Context, service string) ([]string, error) {
			r, err := a.Release(ctx, service)
			return r.Instances, err
		},
		Log: log.WithField("component", "agent"),
	})
}
