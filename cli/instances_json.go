package cli

import (
	"bytes"
	"encoding/json"
	"io"
	"reflect"
	"strconv"
	"time"
)

// nodeWriter writes what instances finds as printJSON would, and several times as fast, which shows with ten thousand of
// them: encoding/json encodes the labels of each again, though most share theirs, and indents all in a second pass.
type nodeWriter struct {
	b      []byte             // to be written
	labels map[uintptr][]byte // as written already
	err    error
}

// writeNodes writes the answer of instances in JSON, with a newline at the end.
func writeNodes(out io.Writer, infos []*nodeInfo) error {
	if len(infos) == 0 {
		_, err := io.WriteString(out, "[]\n")
		return err
	}
	w := nodeWriter{b: make([]byte, 0, pieceBytes+4096), labels: map[uintptr][]byte{}}
	for i, info := range infos {
		if i > 0 {
			w.b = append(w.b, ',')
		} else {
			w.b = append(w.b, '[')
		}
		w.node(info)
		if w.err != nil {
			return w.err
		}
		if len(w.b) >= pieceBytes {
			if _, err := out.Write(w.b); err != nil {
				return err
			}
			w.b = w.b[:0]
		}
	}
	_, err := out.Write(append(w.b, "\n]\n"...))
	return err
}

func (w *nodeWriter) node(i *nodeInfo) {
	w.b = append(w.b, "\n  {\n    "...)
	w.text("service", i.Service, false)
	w.text("node", i.Node, true)
	if i.Host != "" {
		w.text("host", i.Host, true)
	}
	if i.Port != 0 {
		w.key("port", true)
		w.b = strconv.AppendUint(w.b, uint64(i.Port), 10)
	}
	w.text("name", i.Name, true)
	w.key("weight", true)
	if i.Weight == nil {
		w.b = append(w.b, "null"...)
	} else {
		w.b = strconv.AppendInt(w.b, int64(*i.Weight), 10)
	}
	w.key("labels", true)
	w.b = append(w.b, w.labelled(i.Labels)...)
	w.text("session", i.Session, true)
	w.time("created", i.Created)
	w.time("modified", i.Modified)
	w.text("state", i.State, true)
	if i.Reason != "" {
		w.text("reason", i.Reason, true)
	}
	w.b = append(w.b, "\n  }"...)
}

func (w *nodeWriter) key(key string, behind bool) {
	if behind {
		w.b = append(w.b, ",\n    "...)
	}
	w.b = append(append(append(w.b, '"'), key...), `": `...)
}

func (w *nodeWriter) text(key, text string, behind bool) {
	w.key(key, behind)
	for i := range len(text) {
		if c := text[i]; c < ' ' || c > '~' || c == '"' || c == '\\' {
			w.b = append(w.b, w.encoded(text, "", "")...)
			return
		}
	}
	w.b = append(append(append(w.b, '"'), text...), '"')
}

func (w *nodeWriter) time(key string, t time.Time) {
	w.key(key, true)
	w.b = append(t.AppendFormat(append(w.b, '"'), time.RFC3339Nano), '"')
}

func (w *nodeWriter) labelled(labels map[string]any) []byte {
	at := reflect.ValueOf(labels).Pointer()
	text, ok := w.labels[at]
	if !ok {
		text = w.encoded(labels, "    ", "  ")
		w.labels[at] = text
	}
	return text
}

// encoded is what encoding/json makes of a value.
func (w *nodeWriter) encoded(v any, prefix, indent string) []byte {
	var b bytes.Buffer
	e := json.NewEncoder(&b)
	e.SetEscapeHTML(false)
	e.SetIndent(prefix, indent)
	if err := e.Encode(v); err != nil {
		w.err = err
	}
	return bytes.TrimSuffix(b.Bytes(), []byte("\n"))
}
