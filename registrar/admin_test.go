package registrar

import (
	"encoding/json"
	"net/http"
	"net/http/httptest"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/myelin-sd/myelin/discovery"
)

// TestPages: what a person and a supervisor are told while a service comes, is ill, and cannot be registered.
func TestPages(t *testing.T) {
	play(t, func(o *Options) { o.Services[0].Checks[0].Name = "<b>health" }, func(s *stage) {
		h := s.Handler(About{
			Version: "v1", Config: "/etc/r.toml", Instance: "web-1", Started: time.Now(),
			Sessions: func() []discovery.SessionStatus {
				return []discovery.SessionStatus{{Ensemble: "zk1:2181", Connected: true, Server: "10.0.0.9:2181", Session: "0x1", Timeout: "12s"}}
			},
		}, s.reg)
		get := func(path string) (int, string) {
			w := httptest.NewRecorder()
			h.ServeHTTP(w, httptest.NewRequest(http.MethodGet, path, nil))
			return w.Code, w.Body.String()
		}
		ready := func(code int, waiting string) {
			t.Helper()
			got, text := get("/readyz")
			require.Equal(t, code, got, text)
			require.JSONEq(t, waiting, text)
		}
		ready(503, `{"ready": false, "waiting": ["service user-api: its checks have not decided"]}`)

		s.wait(4 * time.Second)
		ready(200, `{"ready": true, "waiting": []}`)
		code, text := get("/livez")
		require.Equal(t, 200, code, text)
		code, text = get("/metrics")
		require.Equal(t, 200, code)
		require.Contains(t, text, `myelin_registrar_registered{service="user-api"} 1`)
		code, text = get("/")
		require.Equal(t, 200, code)
		require.Contains(t, text, "&lt;b&gt;health")
		require.NotContains(t, text, "<b>health")
		require.Contains(t, text, "10.0.0.9:2181")
		var o Overview
		_, text = get("/api/v1/status")
		require.NoError(t, json.Unmarshal([]byte(text), &o))
		require.Equal(t, "web-1", o.Instance)
		require.True(t, o.Ready)
		require.Equal(t, Up, o.Services[0].State)
		require.Len(t, o.ZooKeeper, 1)
		code, text = get("/api/v1/services/user-api")
		require.Equal(t, 200, code, text)
		code, _ = get("/api/v1/services/other")
		require.Equal(t, 404, code)
		require.Equal(t, 405, func() int {
			w := httptest.NewRecorder()
			h.ServeHTTP(w, httptest.NewRequest(http.MethodPost, "/api/v1/status", nil))
			return w.Code
		}(), "it is read-only")

		s.check.set(errSick)
		s.wait(10 * time.Second)
		ready(200, `{"ready": true, "waiting": []}`) // it is withdrawn, as it should be
		s.dir.fail(refused, refused, refused, refused)
		s.check.set(nil)
		s.wait(2 * time.Second)
		code, text = get("/readyz")
		require.Equal(t, 503, code)
		require.Contains(t, text, "service user-api: ")
	})
}
