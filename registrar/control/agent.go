package control

import (
	"context"
	"fmt"
	"net/http"
	"net/http/pprof"

	"github.com/sirupsen/logrus"

	"github.com/myelin-sd/myelin/admin"
)

// AgentOptions are what an AgentHandler is made of.
type AgentOptions struct {
	// Release lets go what is held of a service, and returns the endpoints. Its error is for people.
	Release func(ctx context.Context, service string) ([]string, error)
	Log     logrus.FieldLogger
}

// Release is the answer to DELETE /v1/services/NAME/holds.
type Release struct {
	Service   string   `json:"service"`
	Instances []string `json:"instances"` // endpoints that were let go
}

// AgentHandler answers at the control socket of an agent. It logs who has changed what.
func AgentHandler(o AgentOptions) http.Handler {
	mux := http.NewServeMux()
	mux.HandleFunc("DELETE /v1/services/{service}/holds", func(w http.ResponseWriter, r *http.Request) {
		service, from := r.PathValue("service"), peerIn(r.Context())
		instances, err := o.Release(r.Context(), service)
		switch {
		case r.Context().Err() != nil:
			refuse(w, http.StatusServiceUnavailable, err)
		case err != nil:
			refuse(w, http.StatusNotFound, err)
		default:
			o.Log.WithFields(logrus.Fields{"service": service, "author": from.name(), "pid": from.pid, "count": len(instances)}).Info("holds are released")
			admin.Answer(w, http.StatusOK, Release{service, instances})
		}
	})
	profiles(mux)
	mux.HandleFunc("/", func(w http.ResponseWriter, r *http.Request) {
		refuse(w, http.StatusNotFound, fmt.Errorf("there is no %s %s; see docs/guard.md for what there is", r.Method, r.URL.Path))
	})
	return mux
}

// profiles are those of the process.
func profiles(mux *http.ServeMux) {
	mux.HandleFunc("/debug/pprof/", pprof.Index)
	mux.HandleFunc("/debug/pprof/cmdline", pprof.Cmdline)
	mux.HandleFunc("/debug/pprof/profile", pprof.Profile)
	mux.HandleFunc("/debug/pprof/symbol", pprof.Symbol)
	mux.HandleFunc("/debug/pprof/trace", pprof.Trace)
}
