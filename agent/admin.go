package agent

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"html/template"
	"net"
	"net/http"
	"strings"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/promhttp"
)

// Collector exports what the agent knows at the moment it is asked.
func (a *Agent) Collector() prometheus.Collector {
	return collector{status: a.Status, stats: a.sessions.stats}
}

// Handler answers the agent's HTTP: read-only, for loopback.
func (a *Agent) Handler(metrics prometheus.Gatherer) http.Handler {
	mux := http.NewServeMux()
	mux.Handle("GET /metrics", promhttp.HandlerFor(metrics, promhttp.HandlerOpts{}))
	mux.HandleFunc("GET /livez", func(w http.ResponseWriter, r *http.Request) {
		if stuck := a.stuck(r.Context(), time.Now()); len(stuck) > 0 {
			http.Error(w, "no progress: "+strings.Join(stuck, ", "), http.StatusServiceUnavailable)
			return
		}
		fmt.Fprintln(w, "ok")
	})
	mux.HandleFunc("GET /readyz", func(w http.ResponseWriter, _ *http.Request) {
		st := a.Status()
		code := http.StatusOK
		if !st.Ready {
			code = http.StatusServiceUnavailable
		}
		answer(w, code, map[string]any{
			"ready": st.Ready, "waiting": append([]string{}, st.Waiting...), "stale": append([]string{}, st.Stale...),
		})
	})
	mux.HandleFunc("GET /api/v1/status", func(w http.ResponseWriter, _ *http.Request) {
		answer(w, http.StatusOK, a.Status())
	})
	mux.HandleFunc("GET /api/v1/services", func(w http.ResponseWriter, _ *http.Request) {
		answer(w, http.StatusOK, a.Status().Services)
	})
	mux.HandleFunc("GET /api/v1/services/{name}", func(w http.ResponseWriter, r *http.Request) {
		for _, s := range a.Status().Services {
			if s.Service == r.PathValue("name") {
				answer(w, http.StatusOK, s)
				return
			}
		}
		answer(w, http.StatusNotFound, map[string]string{"error": "no such service"})
	})
	mux.HandleFunc("GET /{$}", func(w http.ResponseWriter, _ *http.Request) {
		w.Header().Set("Content-Type", "text/html; charset=utf-8")
		statusPage.Execute(w, a.Status())
	})
	return mux
}

// registrarPatience is how long the registrar's loops have to tell that they run; they answer at once when they do.
const registrarPatience = 3 * time.Second

// stuck names the loops of the process that have made no progress for longer than their longest wait.
func (a *Agent) stuck(ctx context.Context, now time.Time) []string {
	var out []string
	if g := a.current.Load(); g != nil {
		out = g.stuck(now)
	}
	if a.o.Registrar != nil {
		ctx, cancel := context.WithTimeout(ctx, registrarPatience)
		defer cancel()
		if err := a.o.Registrar.Live(ctx); err != nil {
			out = append(out, err.Error())
		}
	}
	return out
}

func answer(w http.ResponseWriter, code int, v any) {
	w.Header().Set("Content-Type", "application/json")
	w.WriteHeader(code)
	e := json.NewEncoder(w)
	e.SetEscapeHTML(false)
	e.SetIndent("", "  ")
	e.Encode(v)
}

// Listen opens the admin address, so that a wrong one is told before anything runs.
func Listen(address string) (net.Listener, error) {
	l, err := net.Listen("tcp", address)
	if err != nil {
		return nil, fmt.Errorf("listen on admin.listen %s: %w; choose another address or write \"off\"", address, err)
	}
	return l, nil
}

// Serve answers on l until ctx is done.
func Serve(ctx context.Context, l net.Listener, h http.Handler) error {
	s := &http.Server{Handler: h, ReadHeaderTimeout: 5 * time.Second}
	stop := context.AfterFunc(ctx, func() {
		bounded, cancel := context.WithTimeout(context.Background(), 2*time.Second)
		defer cancel()
		s.Shutdown(bounded)
	})
	defer stop()
	if err := s.Serve(l); err != nil && !errors.Is(err, http.ErrServerClosed) {
		return fmt.Errorf("serve %s: %w", l.Addr(), err)
	}
	return nil
}

// statusPage shows a Status to people. It loads nothing and runs nothing.
var statusPage = template.Must(template.New("status").Funcs(template.FuncMap{
	"ago": func(t time.Time) string {
		if t.IsZero() {
			return "never"
		}
		return time.Since(t).Round(time.Second).String() + " ago"
	},
	"ready": func(st Status, backend string) string {
		if n := st.ReadyServers(backend); n != "" {
			return n
		}
		return "–"
	},
}).Parse(`<!doctype html>
<html lang="en"><meta charset="utf-8"><meta name="viewport" content="width=device-width">
<title>myelin agent</title>
<style>
body { font: 15px/1.45 system-ui, sans-serif; margin: 2rem auto; max-width: 64rem; padding: 0 1rem; color: #1b1f24 }
h1 { font-size: 1.3rem; margin: 0 } h2 { font-size: 1rem; margin: 1.6rem 0 .3rem }
table { border-collapse: collapse; width: 100% } th, td { text-align: left; padding: .3rem .9rem .3rem 0; border-bottom: 1px solid #d8dee4; vertical-align: top }
th { font-weight: 600; color: #57606a } td.n, th.n { text-align: right }
.ok { color: #116329 } .bad { color: #a40e26; font-weight: 600 } .note { color: #57606a } code { font-size: .92em }
</style>
<h1>myelin agent <span class="{{if .Ready}}ok">ready{{else}}bad">not ready{{end}}</span></h1>
<p class="note">{{.Version}}, started {{ago .Started}}, <code>{{.Config}}</code>, generation {{.Generation}}</p>
{{range .Waiting}}<p class="bad">waiting: {{.}}</p>{{end}}
{{with .Exports.Error}}<p class="bad">files for other programs are not up to date: {{.}}</p>{{end}}
{{with .Snapshots.Error}}<p class="bad">what is in force is not kept in {{$.Snapshots.Path}}: {{.}}</p>{{end}}
<h2>Services</h2>
<table><tr><th>service<th>path<th class="n">listed<th class="n">active<th class="n">ready<th class="n">rejected<th>last change<th>note</tr>
{{range .Services}}<tr><td>{{.Service}}<td><code>{{.Path}}</code><td class="n">{{.Listed}}<td class="n">{{.Active}}<td class="n">{{ready $ .Backend}}<td class="n">{{len .Rejected}}<td>{{ago .Changed}}<td>{{if .FromDisk}}<span class="bad">from disk, as it was {{ago .FromDisk}}: nothing heard yet</span>{{else if and .Held .Known}}<span class="bad">the last good set stays: {{.Held}}</span>{{else if .Held}}no instance is known: {{.Held}}{{else if not .Known}}nothing heard yet{{end}}{{if .Reason}} <span class="note">changes by {{.Rung}}: {{.Reason}}</span>{{end}}</tr>
{{range .Unresolved}}<tr><td><td colspan="7" class="bad"><code>{{.Name}}</code> does not resolve, first seen {{ago .Since}}: {{.Error}}; {{with .Address}}its last address {{.}} stays{{else}}its instances are left out{{end}}</tr>
{{end}}{{range .Problems}}<tr><td><td colspan="7" class="bad">configuration from the registry is not used: {{.}}</tr>
{{end}}{{range .Rejected}}<tr><td><td colspan="7" class="note">left out: <code>{{.Node}}</code>: {{.Reason}}: {{.Detail}}</tr>{{end}}{{end}}</table>
{{with .Registrations}}<h2>Registered by this process</h2>
<table><tr><th>service<th>path<th>state<th>registered<th>node<th>note</tr>
{{range .}}<tr><td>{{.Service}}<td><code>{{.Path}}</code><td>{{.State}}, {{ago .Since}}<td>{{if .Registered}}<span class="ok">yes</span>{{else}}no{{end}}<td><code>{{.Node}}</code><td>{{if .Leaving}}leaving {{end}}{{.Problem}}{{range .Checks}}{{if .Error}} {{.Check}}: {{.Error}}{{end}}{{end}}</tr>
{{end}}</table>{{end}}
<h2>ZooKeeper</h2>
<table>{{range .ZooKeeper}}<tr><td>{{.Ensemble}}<td>{{if .Connected}}<span class="ok">connected</span> to {{.Server}}, session {{.Session}}, timeout {{.Timeout}}{{if .Classic}}, one watch per node{{end}}{{else}}<span class="bad">not connected</span> since {{ago .Since}}: {{.Error}}{{end}}</tr>{{end}}</table>
<h2>HAProxy</h2>
<table>{{range .HAProxy}}<tr><td>{{.Socket}}<td>{{if .Connected}}<span class="ok">answers</span>, version {{.Version}}, pid {{.Pid}}, {{.Rounds}} rounds{{else}}<span class="bad">no answer</span> since {{ago .Since}}: {{.Error}}{{end}}
{{range .Warnings}}<br><span class="bad">{{.}}</span>{{end}}{{range .Failed}}<br><span class="bad">refused: {{.}}</span>{{end}}{{range $b, $why := .Unfit}}<br>backend {{$b}} needs reloads: {{$why}}{{end}}{{range .Absent}}<br><span class="bad">its configuration has no backend {{.}}</span>{{end}}</tr>{{end}}
<tr><td>{{.File.Path}}<td>{{if .File.Error}}<span class="bad">{{.File.Error}}</span>{{else}}written {{ago .File.Written}}{{end}}{{with .File.Reload}}, {{.Reloads}} reloads{{end}}{{if .File.Pending}}, <span class="bad">reload due: {{.File.Pending}}</span>{{end}}</tr></table>
</html>
`))
