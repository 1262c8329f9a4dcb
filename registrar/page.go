package registrar

import (
	"html/template"
	"time"

	"github.com/myelin-sd/myelin/admin"
)

// statusPage shows an Overview to people.
var statusPage = template.Must(admin.Page("status").Funcs(template.FuncMap{
	"in": func(t time.Time) string { return "for " + time.Until(t).Round(time.Second).String() + " yet" },
	"ms": func(d time.Duration) string { return d.Round(10 * time.Microsecond).String() },
}).Parse(`<!doctype html>
<html lang="en"><meta charset="utf-8"><meta name="viewport" content="width=device-width">
<title>myelin registrar</title>
{{style}}
<h1>myelin registrar <span class="{{if .Ready}}ok">ready{{else}}bad">not ready{{end}}</span></h1>
<p class="note">{{.Version}}, instance <code>{{.Instance}}</code>, started {{ago .Started}}, <code>{{.Config}}</code></p>
{{range .Waiting}}<p class="bad">waiting: {{.}}</p>{{end}}
<h2>Services</h2>
<table><tr><th>service<th>path<th>health<th>registered<th class="n">weight<th>node<th>note</tr>
{{range .Services}}<tr><td>{{.Service}}<td><code>{{.Path}}</code><td><span class="{{if eq .State.String "up"}}ok{{else}}bad{{end}}">{{.State}}</span>, {{ago .Since}}<td>{{if .Registered}}<span class="ok">yes</span>{{else}}no{{end}}<td class="n">{{if .Registered}}{{.Weight}} %{{end}}<td><code>{{.Node}}</code><td>{{if .Leaving}}leaving {{end}}{{if not .Draining.IsZero}}drains {{in .Draining}} {{end}}{{with .Maintenance}}<span class="bad">in maintenance</span>{{with .Author}} by {{.}}{{end}}, since {{ago .Since}}{{if not .Until.IsZero}}, {{in .Until}}{{end}}{{with .Reason}}: {{.}}{{end}} {{end}}{{with .Damping}}{{if .Held}}<span class="bad">down, and kept registered by its damping</span> {{else if .Suppressed}}changed too often: moves down are held back {{end}}{{end}}{{with .Problem}}<span class="bad">{{.}}</span> {{end}}{{with .LastRepair}}<span class="note">last repaired {{ago .At}}</span>{{end}}</tr>
{{end}}</table>
<h2>Checks</h2>
<table><tr><th>service<th>check<th>health<th>last run<th class="n">took<th>last results<th>note</tr>
{{range .Services}}{{$service := .Service}}{{range .Checks}}<tr><td>{{$service}}<td>{{.Check}}<td><span class="{{if eq .State.String "up"}}ok{{else}}bad{{end}}">{{.State}}</span>, {{ago .Since}}<td>{{ago .At}}<td class="n">{{ms .Latency}}<td class="note">{{range .Recent}}{{if eq .Verdict "pass"}}·{{else if eq .Verdict "fail"}}<span class="bad">x</span>{{else}}<span class="bad">?</span>{{end}}{{end}}<td>{{if .Shown}}decides nothing {{end}}{{.Error}}</tr>
{{else}}<tr><td>{{$service}}<td colspan="6" class="note">no checks: it always counts as healthy</tr>
{{end}}{{end}}</table>
<h2>ZooKeeper</h2>
<table>{{range .ZooKeeper}}<tr><td>{{.Ensemble}}<td>{{if .Connected}}<span class="ok">connected</span> to {{.Server}}, session {{.Session}}, timeout {{.Timeout}}{{else}}<span class="bad">not connected</span> since {{ago .Since}}: {{.Error}}{{end}}</tr>{{end}}</table>
</html>
`))
