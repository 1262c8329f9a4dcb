package agent

import (
	"context"
	"encoding/json"
	"errors"
	"net/http"
	"net/http/httptest"
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/sirupsen/logrus/hooks/test"
	"github.com/stretchr/testify/require"

	"github.com/myelin-sd/myelin/config"
	"github.com/myelin-sd/myelin/registrar"
)

// TestLivez: a loop that makes no progress is told, one that waits is not.
func TestLivez(t *testing.T) {
	log, _ := test.NewNullLogger()
	a := New(Options{Config: &config.Agent{}, Log: log})
	get := func() int {
		rec := httptest.NewRecorder()
		a.Handler(prometheus.NewRegistry()).ServeHTTP(rec, httptest.NewRequest(http.MethodGet, "/livez", nil))
		return rec.Code
	}
	require.Equal(t, http.StatusOK, get(), "nothing runs yet")
	r := &reconciler{socket: "/run/haproxy.sock"}
	a.current.Store(&generation{haproxys: []*reconciler{r}})
	r.beat.Store(time.Now().UnixNano())
	require.Equal(t, http.StatusOK, get())
	r.beat.Store(time.Now().Add(-time.Hour).UnixNano())
	require.Equal(t, http.StatusServiceUnavailable, get())
}

// otherRole is a registrar that says what a test wants it to.
type otherRole struct {
	services []registrar.ServiceStatus
	stuck    error
}

func (r *otherRole) Status() []registrar.ServiceStatus { return r.services }
func (r *otherRole) Live(context.Context) error        { return r.stuck }

// TestBothRolesAreShown: the agent's pages tell of the registrar that runs beside it.
func TestBothRolesAreShown(t *testing.T) {
	log, _ := test.NewNullLogger()
	role := &otherRole{services: []registrar.ServiceStatus{{
		Service: "user-api", Path: "/services/user-api", State: registrar.Down, Since: time.Now(),
		Checks: []registrar.CheckStatus{{Check: "health", State: registrar.Down, Error: "status <500>"}},
	}}}
	a := New(Options{Config: &config.Agent{}, Log: log, Registrar: role})
	get := func(path string) *httptest.ResponseRecorder {
		rec := httptest.NewRecorder()
		a.Handler(prometheus.NewRegistry()).ServeHTTP(rec, httptest.NewRequest(http.MethodGet, path, nil))
		return rec
	}
	var st Status
	require.NoError(t, json.Unmarshal(get("/api/v1/status").Body.Bytes(), &st))
	require.Len(t, st.Registrations, 1)
	require.Equal(t, registrar.Down, st.Registrations[0].State, "the answer can be read back")
	page := get("/").Body.String()
	require.Contains(t, page, "health: status &lt;500&gt;")
	require.Contains(t, page, "/services/user-api")

	require.Equal(t, http.StatusOK, get("/livez").Code)
	role.stuck = errors.New("look at service user-api: its loop does not answer")
	rec := get("/livez")
	require.Equal(t, http.StatusServiceUnavailable, rec.Code)
	require.Contains(t, rec.Body.String(), "user-api")

	alone := New(Options{Config: &config.Agent{}, Log: log})
	rec = httptest.NewRecorder()
	alone.Handler(prometheus.NewRegistry()).ServeHTTP(rec, httptest.NewRequest(http.MethodGet, "/api/v1/status", nil))
	require.NotContains(t, rec.Body.String(), "registrations")
}
