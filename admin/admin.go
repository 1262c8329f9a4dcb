// Package admin is the HTTP of both roles: it listens, serves until a context ends, answers in JSON, and gives pages for
// people their looks. What is in them is the role's.
package admin

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"html/template"
	"net"
	"net/http"
	"time"
)

// Answer writes v as indented JSON.
func Answer(w http.ResponseWriter, code int, v any) {
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
	s := &http.Server{Handler: h, ReadHeaderTimeout: 5 * time.Second, BaseContext: func(net.Listener) context.Context {
		return context.WithValue(context.WithoutCancel(ctx), stoppingKey{}, ctx.Done())
	}}
	stop := context.AfterFunc(ctx, func() {
		bounded, cancel := context.WithTimeout(context.Background(), 2*time.Second)
		defer cancel()
		if s.Shutdown(bounded) != nil {
			s.Close() // those who do not take their answers
		}
	})
	defer stop()
	if err := s.Serve(l); err != nil && !errors.Is(err, http.ErrServerClosed) {
		return fmt.Errorf("serve %s: %w", l.Addr(), err)
	}
	return nil
}

// Page returns an empty template for a page, with the functions style, for the style element of its head, and ago, for
// a time. Pages load nothing and run nothing.
func Page(name string) *template.Template {
	return template.New(name).Funcs(template.FuncMap{
		"style": func() template.HTML { return style },
		"ago": func(t time.Time) string {
			if t.IsZero() {
				return "never"
			}
			return time.Since(t).Round(time.Second).String() + " ago"
		},
	})
}

const style template.HTML = `<style>
body { font: 15px/1.45 system-ui, sans-serif; margin: 2rem auto; max-width: 64rem; padding: 0 1rem; color: #1b1f24 }
h1 { font-size: 1.3rem; margin: 0 } h2 { font-size: 1rem; margin: 1.6rem 0 .3rem }
table { border-collapse: collapse; width: 100% } th, td { text-align: left; padding: .3rem .9rem .3rem 0; border-bottom: 1px solid #d8dee4; vertical-align: top }
th { font-weight: 600; color: #57606a } td.n, th.n { text-align: right }
.ok { color: #116329 } .bad { color: #a40e26; font-weight: 600 } .note { color: #57606a } code { font-size: .92em }
</style>`
