package config

import (
	"errors"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"
)

// local is what the host's own file says.
func local() Service {
	return Service{Name: "web", HAProxy: ServiceHAProxy{
		Port: 80, PortSet: true, BindAddress: "127.0.0.1", ServerOptions: "check", Listen: []string{"mode http"}, Backend: []string{"balance first"},
	}}
}

// TestRemote: keys of the registry lie over those of the file; a bad one costs only itself.
func TestRemote(t *testing.T) {
	allow := func(key string, lines []string) error {
		if strings.Contains(strings.Join(lines, " "), "evil") {
			return errors.New("is evil")
		}
		return nil
	}
	for _, tc := range []struct {
		name, data string
		want       func(*Service)
		wrong      []string
	}{
		{"nothing", `{}`, func(*Service) {}, nil},
		{"other generators", `{"nginx": {"port": 5}}`, func(*Service) {}, nil},
		{"null", `{"haproxy": null}`, func(*Service) {}, nil},
		{"merged, not replaced", `{"haproxy": {"port": "8080", "listen": "mode tcp"}}`,
			func(s *Service) { s.HAProxy.Port, s.HAProxy.Listen = 8080, []string{"mode tcp"} }, nil},
		{"all of them", `{"haproxy": {"server_options": "check inter 5s", "frontend": ["option httplog"], "backend": ["balance leastconn"],
			"backend_name": "b", "backend_order": "asc", "cookie_value_method": "hash"}, "file_output": {"disabled": true}}`,
			func(s *Service) {
				h := &s.HAProxy
				h.ServerOptions, h.Frontend, h.Backend = "check inter 5s", []string{"option httplog"}, []string{"balance leastconn"}
				h.BackendName, h.BackendOrder, h.CookieValueHash, s.FileOutputDisabled = "b", "asc", true, true
			}, nil},
		{"disabled", `{"haproxy": {"disabled": true}}`, func(s *Service) { s.HAProxy.Disabled = true }, nil},
		{"a bad value costs only itself", `{"haproxy": {"port": 70000, "listen": ["mode tcp", 5], "backend": ["balance leastconn"]}}`,
			func(s *Service) { s.HAProxy.Backend = []string{"balance leastconn"} }, []string{"haproxy.listen[1]", "haproxy.port"}},
		{"a line break in a line", `{"haproxy": {"backend": ["balance first\nbackend x"], "port": 81}}`,
			func(s *Service) { s.HAProxy.Port = 81 }, []string{"haproxy.backend[0]"}},
		{"a line that is not allowed", `{"haproxy": {"backend": ["evil"], "server_options": "evil", "port": 81}}`,
			func(s *Service) { s.HAProxy.Port = 81 }, []string{"haproxy.backend", "haproxy.server_options"}},
		{"not where it listens", `{"haproxy": {"bind_address": "0.0.0.0", "bind_options": "accept-proxy", "port": null}}`,
			func(*Service) {}, []string{"haproxy.bind_address", "haproxy.bind_options", "haproxy.port"}},
		{"not what all services share", `{"haproxy": {"shared_frontend": ["http-request deny"]}}`, func(*Service) {}, []string{"haproxy.shared_frontend"}},
		{"an unknown key", `{"haproxy": {"prot": 81}}`, func(*Service) {}, []string{"haproxy.prot"}},
		{"another form", `{"haproxy": ["mode http"]}`, func(*Service) {}, []string{"haproxy"}},
	} {
		t.Run(tc.name, func(t *testing.T) {
			before, want := local(), local()
			tc.want(&want)
			got, problems, err := before.Remote("/web", []byte(tc.data), allow)
			require.NoError(t, err)
			require.Equal(t, want, got)
			require.Equal(t, local(), before)
			seen := map[string]bool{}
			for _, p := range problems {
				seen[p.Key] = true
			}
			for _, key := range tc.wrong {
				require.Contains(t, seen, key)
			}
			if tc.wrong == nil {
				require.Empty(t, problems)
			}
		})
	}
	for _, data := range []string{``, `[]`, `"x"`, `{"haproxy": {`, `{} {}`, `{"haproxy": {"x": "` + strings.Repeat("x", maxRemote) + `"}}`} {
		got, _, err := local().Remote("/web", []byte(data), allow)
		require.Error(t, err, data)
		require.Equal(t, local(), got)
	}
}

func FuzzRemote(f *testing.F) {
	f.Add([]byte(`{"haproxy": {"port": 70000, "listen": ["mode tcp", 5], "backend": "x"}, "file_output": {"disabled": 1}}`))
	f.Fuzz(func(t *testing.T, data []byte) {
		got, _, err := local().Remote("/web", data, func(_ string, lines []string) error {
			for _, l := range lines {
				if strings.ContainsAny(l, "\n\r\x00") {
					t.Fatalf("%q is not one line", l)
				}
			}
			return nil
		})
		if err != nil && got.HAProxy.Port != 80 {
			t.Fatal("something of what is of no use is used")
		}
		if got.HAProxy.BindAddress != "127.0.0.1" || got.HAProxy.BindOptions != "" || !got.HAProxy.PortSet {
			t.Fatal("the registry says where to listen")
		}
	})
}

func TestClash(t *testing.T) {
	a := &Agent{Services: []Service{local(), {Name: "b", HAProxy: ServiceHAProxy{Port: 81, PortSet: true, BindAddress: "localhost"}}, {Name: "c"}}}
	a.HAProxy.ExtraSections = []Section{{Title: "listen stats"}}
	for i := range a.Services {
		require.Empty(t, a.Clash(i))
	}
	a.Services[1].HAProxy.Port = 80
	require.Contains(t, a.Clash(1), "web binds to the same")
	a.Services[1].HAProxy.Disabled = true
	require.Empty(t, a.Clash(1))
	require.Empty(t, a.Clash(0))
	a.Services[2].HAProxy.BackendName = "web"
	require.Contains(t, a.Clash(2), "web has the same backend")
	a.Services[2].HAProxy.BackendName = "stats"
	require.Contains(t, a.Clash(2), "extra section")
}
