package agent

// unasked are the backends that no reload was asked for since they changed, and notes that one is asked for now: a
// HAProxy that comes back from it without what they need reads another file, and more reloads would not help.
func (r *reconciler) unasked(w *wanted, backends []string) []string {
	if r.asked == nil {
		r.asked = map[string]uint64{}
	}
	var out []string
	for _, name := range backends {
		if rev := w.backends[name].rev; r.asked[name] != rev {
			r.asked[name] = rev
			out = append(out, name)
		}
	}
	return out
}

// needReload asks for the reload that a backend needs because its servers cannot be added at run time.
func (r *reconciler) needReload(w *wanted, backend, why string) {
	if len(r.unasked(w, []string{backend})) > 0 {
		r.reload("backend " + backend + ": " + why)
	}
}
