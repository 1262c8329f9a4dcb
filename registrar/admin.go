package registrar

import (
	"context"
	"fmt"
	"net/http"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/promhttp"

	"github.com/myelin-sd/myelin/admin"
	"github.com/myelin-sd/myelin/discovery"
	"github.com/myelin-sd/myelin/journal"
)

// About is what the pages tell of the process besides its services.
type About struct {
	Version, Config, Instance string
	Started                   time.Time
	Sessions                  func() []discovery.SessionStatus // nil: not told
	Feed                      *journal.Feed                    // what happens, while it does; nil: not told
}

// Overview is the answer of /api/v1/status.
type Overview struct {
	Version   string                    `json:"version"`
	Started   time.Time                 `json:"started"`
	Config    string                    `json:"config"`
	Instance  string                    `json:"instance"`
	Ready     bool                      `json:"ready"`
	Waiting   []string                  `json:"waiting"` // why it is not ready
	Services  []ServiceStatus           `json:"services"`
	ZooKeeper []discovery.SessionStatus `json:"zookeeper"`
}

// Waiting says what is not yet, or no more, as it is wanted: services whose checks have not decided, and those that the
// directory has not confirmed. A service that is down, and withdrawn, is as it is wanted.
func (r *Registrar) Waiting() []string { return waiting(r.Status()) }

// Settled reports whether Run has begun and there is nothing to wait for.
func (r *Registrar) Settled() bool { return r.seen.Load() != nil && len(r.Waiting()) == 0 }

func waiting(services []ServiceStatus) []string {
	out := []string{}
	for _, s := range services {
		switch {
		case s.State == Unknown:
			out = append(out, fmt.Sprintf("service %s: its checks have not decided", s.Service))
		case !s.Settled && s.Problem != "":
			out = append(out, fmt.Sprintf("service %s: %s", s.Service, s.Problem))
		case !s.Settled:
			out = append(out, fmt.Sprintf("service %s: ZooKeeper has not confirmed what is wanted", s.Service))
		}
	}
	return out
}

// livePatience is how long the loops have to tell that they run; they answer at once when they do.
const livePatience = 3 * time.Second

// Handler answers the registrar's HTTP: read-only, for loopback.
func (r *Registrar) Handler(about About, metrics prometheus.Gatherer) http.Handler {
	overview := func() Overview {
		services := r.Status()
		o := Overview{
			Version: about.Version, Started: about.Started, Config: about.Config, Instance: about.Instance,
			Services: services, Waiting: waiting(services), ZooKeeper: []discovery.SessionStatus{},
		}
		if about.Sessions != nil {
			o.ZooKeeper = about.Sessions()
		}
		o.Ready = len(o.Waiting) == 0
		return o
	}
	mux := http.NewServeMux()
	mux.Handle("GET /metrics", promhttp.HandlerFor(metrics, promhttp.HandlerOpts{}))
	mux.HandleFunc("GET /livez", func(w http.ResponseWriter, req *http.Request) {
		ctx, cancel := context.WithTimeout(req.Context(), livePatience)
		defer cancel()
		if err := r.Live(ctx); err != nil {
			http.Error(w, "no progress: "+err.Error(), http.StatusServiceUnavailable)
			return
		}
		fmt.Fprintln(w, "ok")
	})
	mux.HandleFunc("GET /readyz", func(w http.ResponseWriter, _ *http.Request) {
		code, waiting := http.StatusOK, r.Waiting()
		if len(waiting) > 0 {
			code = http.StatusServiceUnavailable
		}
		admin.Answer(w, code, map[string]any{"ready": len(waiting) == 0, "waiting": waiting})
	})
	mux.HandleFunc("GET /api/v1/status", func(w http.ResponseWriter, _ *http.Request) {
		admin.Answer(w, http.StatusOK, overview())
	})
	mux.HandleFunc("GET /api/v1/services", func(w http.ResponseWriter, _ *http.Request) {
		admin.Answer(w, http.StatusOK, r.Status())
	})
	mux.HandleFunc("GET /api/v1/services/{name}", func(w http.ResponseWriter, req *http.Request) {
		of := []ServiceStatus{}
		for _, s := range r.Status() {
			if s.Service == req.PathValue("name") {
				of = append(of, s) // two, while a service moves to another node
			}
		}
		if len(of) == 0 {
			admin.Answer(w, http.StatusNotFound, map[string]string{"error": "no such service"})
			return
		}
		admin.Answer(w, http.StatusOK, of)
	})
	mux.Handle("GET /api/v1/events", admin.Events(about.Feed))
	mux.HandleFunc("GET /{$}", func(w http.ResponseWriter, _ *http.Request) {
		w.Header().Set("Content-Type", "text/html; charset=utf-8")
		statusPage.Execute(w, overview())
	})
	return mux
}
