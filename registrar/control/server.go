package control

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"os"
	"slices"
	"time"

	"github.com/sirupsen/logrus"

	"github.com/myelin-sd/myelin/admin"
	"github.com/myelin-sd/myelin/registrar"
)

// Registrar is what the socket controls.
type Registrar interface {
	Status() []registrar.ServiceStatus
	Maintain(service string, m registrar.Maintenance) error
	EndMaintenance(service string) error
}

// Board takes the reports of services about their own health. An empty check means the service's only one.
type Board interface {
	Report(service, check string, err error) error
}

// Options are what a Handler is made of.
type Options struct {
	Registrar Registrar
	Board     Board
	Log       logrus.FieldLogger

	Version  string
	Config   string // path of the registrar's file
	Instance string // its instance_id
	Started  time.Time
}

// Status is the answer to GET /v1/status.
type Status struct {
	Version  string                    `json:"version"`
	Config   string                    `json:"config"`
	Instance string                    `json:"instance"`
	Pid      int                       `json:"pid"`
	Started  time.Time                 `json:"started"`
	Services []registrar.ServiceStatus `json:"services"`
}

// Maintenance is one service's, as it is told: the answer to PUT and GET of /v1/services/NAME/maintenance, and a member
// of that to GET /v1/maintenance.
type Maintenance struct {
	Service string `json:"service"`
	registrar.Maintenance
}

// MaintenanceRequest is the body of PUT /v1/services/NAME/maintenance. Both may be left out.
type MaintenanceRequest struct {
	For    string `json:"for,omitempty"`    // a duration such as "30m", more than 0; empty: until it is ended
	Reason string `json:"reason,omitempty"` // for people
}

// The health that a service reports of itself.
const (
	Pass = "pass"
	Warn = "warn" // it can do with less traffic than usual
	Fail = "fail"
)

// ReportRequest is the body of PUT /v1/services/NAME/checks/CHECK, or /v1/services/NAME/checks where the service has
// one ttl check only.
type ReportRequest struct {
	Status string `json:"status"`           // Pass, Warn or Fail
	Note   string `json:"note,omitempty"`   // why, for people
	Weight int    `json:"weight,omitempty"` // with Warn: percent of the usual weight, 1 to 100; 0: what the registrar thinks fit
}

// bodyMost is how many bytes a request may have.
const bodyMost = 64 << 10

// Handler answers at a control socket. It logs who has changed what.
func Handler(o Options) http.Handler {
	h := handler{o}
	mux := http.NewServeMux()
	mux.HandleFunc("GET /v1/status", h.status)
	mux.HandleFunc("GET /v1/maintenance", h.list)
	mux.HandleFunc("GET /v1/services/{service}/maintenance", h.show)
	mux.HandleFunc("PUT /v1/services/{service}/maintenance", h.maintain)
	mux.HandleFunc("DELETE /v1/services/{service}/maintenance", h.enable)
	mux.HandleFunc("PUT /v1/services/{service}/checks", h.report)
	mux.HandleFunc("PUT /v1/services/{service}/checks/{check}", h.report)
	profiles(mux)
	mux.HandleFunc("/", func(w http.ResponseWriter, r *http.Request) {
		refuse(w, http.StatusNotFound, fmt.Errorf("there is no %s %s; see docs/registrar.md for what there is", r.Method, r.URL.Path))
	})
	return mux
}

// Serve answers on s until ctx is done, and closes s.
func Serve(ctx context.Context, s *Socket, h http.Handler) error {
	defer s.Close()
	server := &http.Server{Handler: h, ReadHeaderTimeout: 5 * time.Second, ConnContext: withPeer}
	stopped := make(chan struct{})
	stop := context.AfterFunc(ctx, func() {
		defer close(stopped)
		bounded, cancel := context.WithTimeout(context.Background(), 2*time.Second)
		defer cancel()
		if server.Shutdown(bounded) != nil {
			server.Close()
		}
	})
	err := server.Serve(s)
	if !stop() {
		<-stopped
	}
	if err != nil && !errors.Is(err, http.ErrServerClosed) {
		return fmt.Errorf("serve control socket %s: %w", s.Addr(), err)
	}
	return nil
}

type handler struct{ o Options }

func (h handler) status(w http.ResponseWriter, _ *http.Request) {
	admin.Answer(w, http.StatusOK, Status{
		Version: h.o.Version, Config: h.o.Config, Instance: h.o.Instance, Pid: os.Getpid(), Started: h.o.Started, Services: h.o.Registrar.Status(),
	})
}

func (h handler) list(w http.ResponseWriter, _ *http.Request) {
	admin.Answer(w, http.StatusOK, h.maintenances())
}

// maintenances are those in force, by service.
func (h handler) maintenances() []Maintenance {
	all := []Maintenance{}
	for _, s := range h.o.Registrar.Status() {
		if s.Maintenance != nil && !slices.ContainsFunc(all, func(m Maintenance) bool { return m.Service == s.Service }) {
			all = append(all, Maintenance{s.Service, *s.Maintenance})
		}
	}
	return all
}

func (h handler) show(w http.ResponseWriter, r *http.Request) {
	service := r.PathValue("service")
	for _, m := range h.maintenances() {
		if m.Service == service {
			admin.Answer(w, http.StatusOK, m)
			return
		}
	}
	refuse(w, http.StatusNotFound, fmt.Errorf("service %q is not in maintenance", service))
}

func (h handler) maintain(w http.ResponseWriter, r *http.Request) {
	var request MaintenanceRequest
	if !read(w, r, &request) {
		return
	}
	from := peerIn(r.Context())
	m := Maintenance{r.PathValue("service"), registrar.Maintenance{
		Reason: request.Reason, Author: from.name(), Since: time.Now().UTC().Round(0),
	}}
	if request.For != "" {
		d, err := time.ParseDuration(request.For)
		if err != nil || d <= 0 {
			refuse(w, http.StatusBadRequest, fmt.Errorf("for: %q is no duration longer than 0; write for example \"30m\"", request.For))
			return
		}
		m.Until = m.Since.Add(d)
	}
	if err := h.o.Registrar.Maintain(m.Service, m.Maintenance); err != nil {
		refuse(w, h.code(m.Service), err)
		return
	}
	h.log(m.Service, from).WithFields(logrus.Fields{"reason": m.Reason, "duration": request.For}).Info("maintenance is asked for")
	admin.Answer(w, http.StatusOK, m)
}

func (h handler) enable(w http.ResponseWriter, r *http.Request) {
	service := r.PathValue("service")
	if err := h.o.Registrar.EndMaintenance(service); err != nil {
		refuse(w, h.code(service), err)
		return
	}
	h.log(service, peerIn(r.Context())).Info("the end of maintenance is asked for")
	w.WriteHeader(http.StatusNoContent)
}

func (h handler) report(w http.ResponseWriter, r *http.Request) {
	var request ReportRequest
	if !read(w, r, &request) {
		return
	}
	result, err := request.result()
	if err != nil {
		refuse(w, http.StatusBadRequest, err)
		return
	}
	if err := h.o.Board.Report(r.PathValue("service"), r.PathValue("check"), result); err != nil {
		refuse(w, http.StatusNotFound, err)
		return
	}
	w.WriteHeader(http.StatusNoContent)
}

// result is what a check with this report returns.
func (q ReportRequest) result() (result, wrong error) {
	switch {
	case q.Weight != 0 && q.Status != Warn:
		return nil, fmt.Errorf("weight is for status %q only", Warn)
	case q.Weight < 0 || q.Weight > 100:
		return nil, fmt.Errorf("weight: %d is no percentage; write 1 to 100", q.Weight)
	}
	switch q.Status {
	case Pass:
		return nil, nil
	case Warn:
		return &registrar.Degraded{Reason: q.Note, Percent: q.Weight}, nil
	case Fail:
		if q.Note == "" {
			return errors.New("the service says so"), nil
		}
		return errors.New(q.Note), nil
	}
	return nil, fmt.Errorf("status: %q is none; write %q, %q or %q", q.Status, Pass, Warn, Fail)
}

// code tells a service that is not there from other troubles.
func (h handler) code(service string) int {
	if slices.ContainsFunc(h.o.Registrar.Status(), func(s registrar.ServiceStatus) bool { return s.Service == service }) {
		return http.StatusInternalServerError
	}
	return http.StatusNotFound
}

func (h handler) log(service string, from peer) logrus.FieldLogger {
	return h.o.Log.WithFields(logrus.Fields{"service": service, "author": from.name(), "pid": from.pid})
}

// read takes a request's body, and refuses what it does not understand. An empty one is an empty object.
func read(w http.ResponseWriter, r *http.Request, into any) bool {
	d := json.NewDecoder(http.MaxBytesReader(w, r.Body, bodyMost))
	d.DisallowUnknownFields()
	err := d.Decode(into)
	if errors.Is(err, io.EOF) {
		return true
	}
	if err == nil && d.More() {
		err = errors.New("there is something behind the object")
	}
	if err != nil {
		refuse(w, http.StatusBadRequest, fmt.Errorf("read the request: %w", err))
		return false
	}
	return true
}

// problem is the body of every answer that is none.
type problem struct {
	Error string `json:"error"`
}

func refuse(w http.ResponseWriter, code int, err error) { admin.Answer(w, code, problem{err.Error()}) }
