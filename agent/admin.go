package agent

import (
	"context"
	"errors"
	"fmt"
	"html/template"
	"net/http"
	"strings"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/promhttp"

	"github.com/myelin-sd/myelin/admin"
	"github.com/myelin-sd/myelin/discovery"
	"github.com/myelin-sd/myelin/haproxy"
)

// Collector exports what the agent knows at the moment it is asked.
func (a *Agent) Collector() prometheus.Collector {
	return collector{status: a.Status, sessions: a.sessions.Collector()}
}

// Handler answers the agent's HTTP: read-only, for loopback.
func (a *Agent) Handler(metrics prometheus.Gatherer) http.Handler {
	mux := http.NewServeMux()
	mux.Handle("GET /metrics", promhttp.HandlerFor(metrics, promhttp.HandlerOpts{}))
	mux.HandleFunc("GET /livez", func(w http.ResponseWriter, r *http.Request) {
		if err := a.Live(r.Context()); err != nil {
			http.Error(w, err.Error(), http.StatusServiceUnavailable)
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
		admin.Answer(w, code, map[string]any{
			"ready": st.Ready, "waiting": append([]string{}, st.Waiting...), "stale": append([]string{}, st.Stale...),
		})
	})
	mux.HandleFunc("GET /api/v1/status", func(w http.ResponseWriter, _ *http.Request) {
		admin.Answer(w, http.StatusOK, a.Status())
	})
	mux.HandleFunc("GET /api/v1/services", func(w http.ResponseWriter, _ *http.Request) {
		admin.Answer(w, http.StatusOK, a.Status().Services)
	})
	mux.HandleFunc("GET /api/v1/services/{name}", func(w http.ResponseWriter, r *http.Request) {
		for _, s := range a.Status().Services {
			if s.Service == r.PathValue("name") {
				admin.Answer(w, http.StatusOK, s)
				return
			}
		}
		admin.Answer(w, http.StatusNotFound, map[string]string{"error": a.noService(r.PathValue("name")).Error()})
	})
	mux.HandleFunc("GET /api/v1/services/{name}/servers", a.answerServers)
	mux.Handle("GET /api/v1/events", admin.Events(a.o.Feed))
	mux.HandleFunc("GET /api/v1/services/{name}/instances", func(w http.ResponseWriter, r *http.Request) {
		l, err := a.Instances(r.PathValue("name"))
		if err != nil {
			admin.Answer(w, http.StatusNotFound, map[string]string{"error": err.Error()})
			return
		}
		admin.Answer(w, http.StatusOK, l)
	})
	mux.HandleFunc("GET /api/v1/services/{name}/explain", a.answerExplain)
	mux.HandleFunc("GET /{$}", func(w http.ResponseWriter, _ *http.Request) {
		w.Header().Set("Content-Type", "text/html; charset=utf-8")
		statusPage.Execute(w, a.Status())
	})
	return mux
}

// answerServers tells of a service's servers as every HAProxy has them; ?instance=HOST:PORT asks about one.
func (a *Agent) answerServers(w http.ResponseWriter, r *http.Request) {
	var instance discovery.Endpoint
	if text := r.URL.Query().Get("instance"); text != "" {
		var err error
		if instance, err = ParseInstance(text); err != nil {
			admin.Answer(w, http.StatusBadRequest, map[string]string{"error": err.Error()})
			return
		}
	}
	servers, err := a.Servers(r.Context(), r.PathValue("name"), instance)
	var many *haproxy.TooManyError
	switch {
	case errors.As(err, &many):
		admin.Answer(w, http.StatusUnprocessableEntity, map[string]string{"error": err.Error() + "; ask for one with ?instance=HOST:PORT"})
	case err != nil:
		admin.Answer(w, http.StatusNotFound, map[string]string{"error": err.Error()})
	default:
		admin.Answer(w, http.StatusOK, servers)
	}
}

// answerExplain tells what the agent knows of an instance (?instance=HOST:PORT or a node's name), as Evidence, or how it
// stands with a whole service, as a Summary.
func (a *Agent) answerExplain(w http.ResponseWriter, r *http.Request) {
	var out any
	var err error
	if instance := r.URL.Query().Get("instance"); instance != "" {
		out, err = a.Evidence(r.Context(), r.PathValue("name"), instance)
	} else {
		out, err = a.Summary(r.Context(), r.PathValue("name"))
	}
	if err != nil {
		admin.Answer(w, http.StatusNotFound, map[string]string{"error": err.Error()})
		return
	}
	admin.Answer(w, http.StatusOK, out)
}

// registrarPatience is how long the registrar's loops have to tell that they run; they answer at once when they do.
const registrarPatience = 3 * time.Second

// Live returns nil when all loops of the process make progress, else which do not. It blocks for registrarPatience at
// the longest.
func (a *Agent) Live(ctx context.Context) error {
	if stuck := a.stuck(ctx, time.Now()); len(stuck) > 0 {
		return errors.New("no progress: " + strings.Join(stuck, ", "))
	}
	return nil
}

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

// statusPage shows a Status to people. It loads nothing and runs nothing.
var statusPage = template.Must(admin.Page("status").Funcs(template.FuncMap{
	"in": func(t *time.Time) string { return "for " + time.Until(*t).Round(time.Second).String() + " yet" },
	"ready": func(st Status, backend string) string {
		if n := st.ReadyServers(backend); n != "" {
			return n
		}
		return "–"
	},
}).Parse(`<!doctype html>
<html lang="en"><meta charset="utf-8"><meta name="viewport" content="width=device-width">
<title>myelin agent</title>
{{style}}
<h1>myelin agent{{if .Shadow}} in the shadow{{end}} <span class="{{if .Ready}}ok">ready{{else}}bad">not ready{{end}}</span></h1>
<p class="note">{{.Version}}, started {{ago .Started}}, <code>{{.Config}}</code>, generation {{.Generation}}</p>
{{range .Waiting}}<p class="bad">waiting: {{.}}</p>{{end}}
{{with .Exports.Error}}<p class="bad">files for other programs are not up to date: {{.}}</p>{{end}}
{{with .Snapshots.Error}}<p class="bad">what is in force is not kept in {{$.Snapshots.Path}}: {{.}}</p>{{end}}
{{with .Shadow}}<h2>What would change</h2>
<p>{{if .Agrees}}<span class="ok">HAProxy has what Myelin would have.</span>{{else}}<span class="bad">Not everything agrees.</span>{{end}} Nothing of HAProxy is changed. A difference counts when it has lasted for {{.Grace}}.</p>
{{range .Notes}}<p class="bad">{{.}}</p>{{end}}
<table><tr><th>backend<th>HAProxy<th>state<th>what would be done</tr>
{{range .Backends}}<tr><td>{{.Backend}}<td><code>{{.Target}}</code><td>{{if eq .State "agrees"}}<span class="ok">agrees</span>, {{ago .Since}}{{else if eq .State "differs"}}<span class="bad">differs</span>, {{ago .Since}}{{else}}not compared: {{.Reason}}{{end}}<td>{{range .Steps}}{{.}}<br>{{end}}{{if .Pending}}<span class="note">{{.Pending}} that may be a delay</span>{{end}}</tr>
{{end}}</table>
{{with .File}}<p><code>{{.Path}}</code>: {{if .Error}}<span class="bad">{{.Error}}</span>{{else if .Differences}}<span class="bad">differs</span>{{else}}<span class="ok">as Myelin would write it</span>{{end}}{{range .Differences}}<br>{{.}}{{end}}</p>{{end}}
{{end}}<h2>Services</h2>
<table><tr><th>service<th>path<th class="n">listed<th class="n">active<th class="n">ready<th class="n">rejected<th>last change<th>note</tr>
{{range .Services}}<tr><td>{{.Service}}<td><code>{{.Path}}</code><td class="n">{{.Listed}}<td class="n">{{.Active}}<td class="n">{{ready $ .Backend}}<td class="n">{{len .Rejected}}<td>{{ago .Changed}}<td>{{if .FromDisk}}<span class="bad">from disk, as it was {{ago .FromDisk}}: nothing heard yet</span>{{else if .Guard.Held}}<span class="bad">{{.Guard.Held}} of them are held{{with .HeldFrom}}, first {{ago .}}{{end}}: {{.Held}}</span>{{else if and .Held .Known}}<span class="bad">the last good set stays: {{.Held}}</span>{{else if .Held}}no instance is known: {{.Held}}{{else if not .Known}}nothing heard yet{{end}}{{if .Reason}} <span class="note">changes by {{.Rung}}: {{.Reason}}</span>{{end}}</tr>
{{range .Guard.Holds}}<tr><td><td colspan="7" class="bad">held: {{len .Instances}}, first {{ago .Since}}{{with .Until}}, {{in .}}{{end}}: {{.Reason}}: {{range $i, $e := .Instances}}{{if lt $i 20}}<code>{{$e}}</code> {{end}}{{end}}{{if gt (len .Instances) 20}}and more{{end}}</tr>
{{end}}{{range .Unresolved}}<tr><td><td colspan="7" class="bad"><code>{{.Name}}</code> does not resolve, first seen {{ago .Since}}: {{.Error}}; {{with .Address}}its last address {{.}} stays{{else}}its instances are left out{{end}}</tr>
{{end}}{{range .Problems}}<tr><td><td colspan="7" class="bad">configuration from the registry is not used: {{.}}</tr>
{{end}}{{range .Rejected}}<tr><td><td colspan="7" class="note">left out: <code>{{.Node}}</code>: {{.Reason}}: {{.Detail}}</tr>{{end}}{{end}}</table>
{{with .Registrations}}<h2>Registered by this process</h2>
<table><tr><th>service<th>path<th>state<th>registered<th>node<th>note</tr>
{{range .}}<tr><td>{{.Service}}<td><code>{{.Path}}</code><td>{{.State}}, {{ago .Since}}<td>{{if .Registered}}<span class="ok">yes</span>{{else}}no{{end}}<td><code>{{.Node}}</code><td>{{if .Leaving}}leaving {{end}}{{.Problem}}{{range .Checks}}{{if .Error}} {{.Check}}: {{.Error}}{{end}}{{end}}</tr>
{{end}}</table>{{end}}
{{with .Overrides}}{{if .Path}}<h2>Overrides</h2>
<p class="note"><code>{{.Path}}</code>{{if .FromDisk}}, <span class="bad">from disk, as they were {{ago .FromDisk}}: nothing heard yet</span>{{else if not .Heard}}, <span class="bad">nothing heard yet</span>{{else if .Missing}}, which does not exist{{if .List}}: <span class="bad">what is known stays in force</span>{{end}}{{end}}{{with .Error}}, <span class="bad">not kept on disk: {{.}}</span>{{end}}</p>
{{if .List}}<table><tr><th>target<th>asks for<th class="n">servers<th>applied<th>by<th>reason<th>made<th>ends</tr>
{{range .List}}<tr><td>{{.Target}}<td>{{.Does}}<td class="n">{{.Servers}}<td>{{if .Ended}}ended{{else if .Applied}}<span class="ok">yes</span>{{else}}<span class="bad">not yet</span>{{end}}<td>{{.Author}}<td>{{.Reason}}<td>{{ago .Created}}<td>{{with .Until}}{{in .}}{{end}}</tr>
{{end}}</table>{{end}}
{{range .Bad}}<p class="bad">of no use: <code>{{.Node}}</code>: {{.Reason}}{{if .Former}}; what it was before counts still{{end}}</p>{{end}}{{end}}{{end}}
<h2>ZooKeeper</h2>
<table>{{range .ZooKeeper}}<tr><td>{{.Ensemble}}<td>{{if .Connected}}<span class="ok">connected</span> to {{.Server}}, session {{.Session}}, timeout {{.Timeout}}{{if .Classic}}, one watch per node{{end}}{{else}}<span class="bad">not connected</span> since {{ago .Since}}: {{.Error}}{{end}}</tr>{{end}}</table>
<h2>HAProxy</h2>
<table>{{range .HAProxy}}<tr><td>{{.Socket}}<td>{{if .Connected}}<span class="ok">answers</span>, version {{.Version}}, pid {{.Pid}}, {{.Rounds}} rounds{{else}}<span class="bad">no answer</span> since {{ago .Since}}: {{.Error}}{{end}}
{{range .Warnings}}<br><span class="bad">{{.}}</span>{{end}}{{range .Failed}}<br><span class="bad">refused: {{.}}</span>{{end}}{{range $b, $why := .Unfit}}<br>backend {{$b}} needs reloads: {{$why}}{{end}}{{range .Manual}}<br><span class="bad">somebody else changed {{.Backend}}/{{.Server}}</span>, seen {{ago .Since}}: {{.What}}; it stays so until {{.Until.UTC.Format "2006-01-02 15:04:05 MST"}}{{end}}{{range .Absent}}<br><span class="bad">its configuration has no backend {{.}}</span>{{end}}</tr>{{end}}
{{if not .Shadow}}<tr><td>{{.File.Path}}<td>{{if .File.Error}}<span class="bad">{{.File.Error}}</span>{{else}}written {{ago .File.Written}}{{end}}{{with .File.Reload}}, {{.Reloads}} reloads{{end}}{{if .File.Pending}}, <span class="bad">reload due: {{.File.Pending}}</span>{{end}}</tr>{{end}}</table>
</html>
`))
