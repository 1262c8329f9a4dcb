package agent

import (
	"net/http"
	"net/http/httptest"
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/sirupsen/logrus/hooks/test"
	"github.com/stretchr/testify/require"

	"github.com/myelin-sd/myelin/config"
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
