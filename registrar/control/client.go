package control

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"net"
	"net/http"
	"net/url"
	"os"
	"os/user"
	"strconv"
	"syscall"
)

// answerMost is how many bytes of an answer are read: the status of some thousand services.
const answerMost = 64 << 20

// Client asks the registrar or the agent behind a control socket. Its methods block until it has answered or ctx is done; their
// errors say what to do.
type Client struct {
	path string
	role string // who is asked
	http http.Client
}

// NewClient returns a client for the socket of a registrar at path. It connects with each question, and keeps nothing
// open.
func NewClient(path string) *Client { return newClient(path, "registrar") }

// NewAgentClient does the same for that of an agent.
func NewAgentClient(path string) *Client { return newClient(path, "agent") }

func newClient(path, role string) *Client {
	return &Client{path, role, http.Client{Transport: &http.Transport{
		DisableKeepAlives: true,
		DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
			var d net.Dialer
			return d.DialContext(ctx, "unix", path)
		},
	}}}
}

// Status returns what the registrar knows of its services.
func (c *Client) Status(ctx context.Context) (Status, error) {
	var st Status
	err := c.ask(ctx, http.MethodGet, "/v1/status", nil, &st)
	return st, err
}

// Maintenances returns those in force, by service.
func (c *Client) Maintenances(ctx context.Context) ([]Maintenance, error) {
	var all []Maintenance
	err := c.ask(ctx, http.MethodGet, "/v1/maintenance", nil, &all)
	return all, err
}

// Maintain puts a service into maintenance, and returns what is in force then.
func (c *Client) Maintain(ctx context.Context, service string, m MaintenanceRequest) (Maintenance, error) {
	var now Maintenance
	err := c.ask(ctx, http.MethodPut, servicePath(service)+"/maintenance", m, &now)
	return now, err
}

// EndMaintenance ends a service's maintenance. One that is in none is no error.
func (c *Client) EndMaintenance(ctx context.Context, service string) error {
	return c.ask(ctx, http.MethodDelete, servicePath(service)+"/maintenance", nil, nil)
}

// Report says how a service is, for its ttl check. An empty check means its only one.
func (c *Client) Report(ctx context.Context, service, check string, report ReportRequest) error {
	path := servicePath(service) + "/checks"
	if check != "" {
		path += "/" + url.PathEscape(check)
	}
	return c.ask(ctx, http.MethodPut, path, report, nil)
}

// Release has an agent let go what its guard holds of a service, and returns what that was.
func (c *Client) Release(ctx context.Context, service string) (Release, error) {
	var r Release
	err := c.ask(ctx, http.MethodDelete, servicePath(service)+"/holds", nil, &r)
	return r, err
}

func servicePath(service string) string { return "/v1/services/" + url.PathEscape(service) }

// ask sends body, unless it is nil, and takes the answer into into, unless that is nil.
func (c *Client) ask(ctx context.Context, method, path string, body, into any) error {
	var content io.Reader = http.NoBody
	if body != nil {
		text, err := json.Marshal(body)
		if err != nil {
			return fmt.Errorf("ask the %s: %w", c.role, err)
		}
		content = bytes.NewReader(text)
	}
	request, err := http.NewRequestWithContext(ctx, method, "http://"+c.role+path, content)
	if err != nil {
		return fmt.Errorf("ask the %s: %w", c.role, err)
	}
	response, err := c.http.Do(request)
	if err != nil {
		return fmt.Errorf("ask the %s at %s: %w", c.role, c.path, c.advise(err))
	}
	defer response.Body.Close()
	text, err := io.ReadAll(io.LimitReader(response.Body, answerMost))
	if err != nil {
		return fmt.Errorf("ask the %s at %s: %w", c.role, c.path, err)
	}
	if response.StatusCode >= http.StatusBadRequest {
		var p problem
		if json.Unmarshal(text, &p) != nil || p.Error == "" {
			return fmt.Errorf("ask the %[1]s at %[2]s: %[3]s; is it a myelin %[1]s?", c.role, c.path, response.Status)
		}
		return errors.New(p.Error)
	}
	if into == nil {
		return nil
	}
	if err := json.Unmarshal(text, into); err != nil {
		return fmt.Errorf("read the %s's answer: %w", c.role, err)
	}
	return nil
}

// advise words why nobody answers.
func (c *Client) advise(err error) error {
	switch {
	case errors.Is(err, fs.ErrNotExist):
		return fmt.Errorf("there is no such socket; is the %s running, with this control_socket?", c.role)
	case errors.Is(err, syscall.ECONNREFUSED):
		return fmt.Errorf("nobody listens; the %s has ended", c.role)
	case errors.Is(err, fs.ErrPermission):
		return fmt.Errorf("no permission: the socket is for %s only; ask as that user, or as root", ownerName(c.path))
	}
	var wrapped *url.Error // its text repeats the request, which has a made-up address
	if errors.As(err, &wrapped) {
		return wrapped.Err
	}
	return err
}

// ownerName is the user whose file it is.
func ownerName(path string) string {
	if info, err := os.Stat(path); err == nil {
		if st, ok := info.Sys().(*syscall.Stat_t); ok {
			uid := strconv.Itoa(int(st.Uid))
			if u, err := user.LookupId(uid); err == nil {
				return "user " + u.Username
			}
			return "uid " + uid
		}
	}
	return "its owner"
}
