package config

import (
	"cmp"
	"fmt"
	"net"
	"net/http"
	"path"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"time"
)

// checkTypes are the types of checks there are, without their aliases.
func checkTypes() []string {
	return []string{"http", "tcp", "grpc", "exec", "redis", "mysql", "postgres", "amqp", "zookeeper", "ttl", "noop"}
}

func useCheckTypes() string {
	all := checkTypes()
	last := len(all) - 1
	return "use " + strings.Join(all[:last], ", ") + " or " + all[last]
}

// check reads one health check. The defaults are Nerve's, whatever one may think of 100 ms: a file that worked there
// must not change its meaning.
func (t *table) check(g Registration) Check {
	defer t.done()
	c := Check{
		Type: t.str("type", ""), Name: t.str("name", ""), Host: t.host("host", g.Host), Port: g.Port,
		Timeout: t.duration("timeout", 100*time.Millisecond, positive),
		Rise:    int(t.whole("rise", 1, 1, 1000)), Fall: int(t.whole("fall", 1, 1, 1000)),
	}
	if p := t.port("port"); p != 0 {
		c.Port = p
	}
	c.Interval = t.duration("interval", 0, positive)
	if t.value("share") != nil {
		share := int(t.whole("share", 1, 0, 1000))
		c.Share = &share
	}
	if !t.require("type", useCheckTypes()) {
		t.skip()
		return c
	}
	kind := c.Type // of an alias it is replaced
	t.checkOfType(&c, g)
	if c.Name == "" {
		c.Name = fmt.Sprintf("%s %s-%s", g.Name, kind, c.target())
	}
	return c
}

// checkOfType reads the keys that a type has of its own, and makes up a name where Nerve's would not do.
func (t *table) checkOfType(c *Check, g Registration) {
	switch c.Type {
	case "http", "https":
		t.httpCheck(c)
	case "tcp":
		t.tcpCheck(c)
	case "grpc":
		t.grpcCheck(c)
	case "exec":
		t.execCheck(c)
	case "ttl":
		t.ttlCheck(c, g)
	case "noop":
	default:
		if !t.serverCheck(c) {
			t.otherCheck(c)
		}
	}
}

// target is where a check connects to, for its name.
func (c Check) target() string {
	if c.Socket != "" {
		return c.Socket
	}
	return net.JoinHostPort(c.Host, strconv.Itoa(int(c.Port)))
}

func (t *table) httpCheck(c *Check) {
	if t.require("uri", `write the path to ask for, uri = "/health"`) {
		c.URI = t.str("uri", "")
		if t.value("uri") != nil && (!strings.HasPrefix(c.URI, "/") || strings.ContainsAny(c.URI, " \t")) {
			t.mismatch("uri", "a path", `begin it with / and write spaces as %20, uri = "/health"`)
		}
	}
	c.Socket = t.socket()
	t.checkTLS(c)
	c.OpenTimeout = t.duration("open_timeout", 200*time.Millisecond, positive)
	c.ReadTimeout = t.duration("read_timeout", c.Timeout, positive)
	c.SSLTimeout = t.duration("ssl_timeout", 200*time.Millisecond, positive)
	c.Method = t.method()
	c.Body = t.anyText("body")
	c.Status = t.statuses()
	c.Expect = t.anyText("expect")
	c.ExpectRegex = t.regex("expect_regex")
	if c.Method == http.MethodHead && (c.Expect != "" || c.ExpectRegex != "") {
		t.fail("method", "the answer to HEAD has no body to search", "use GET, or remove expect and expect_regex")
	}
	if h := t.sub("headers"); h != nil {
		c.Headers = map[string]string{}
		for _, e := range h.n.entries {
			if !validHeader(e.key) {
				h.fail(e.key, "is not the name of an HTTP header", "use letters, digits and hyphens")
			}
			c.Headers[e.key] = h.header(e.key)
		}
	}
	c.Name = cmp.Or(c.Name, "http-"+c.target()+withoutValues(c.URI)) // Nerve's
}

// withoutValues is a path without the values of its query, in which there may be a secret: names of checks are in logs, in
// metrics and on pages. A path without a query stays as it is.
func withoutValues(uri string) string {
	path, query, asks := strings.Cut(uri, "?")
	if !asks {
		return uri
	}
	words := strings.Split(query, "&")
	for i, w := range words {
		if name, _, valued := strings.Cut(w, "="); valued {
			words[i] = name + "=" + Removed
		} else if w != "" {
			words[i] = Removed // it may be a secret by itself
		}
	}
	return path + "?" + strings.Join(words, "&")
}

// distinguish numbers checks that differ only in what withoutValues has left out of their names.
func distinguish(checks []Check) {
	count := map[string]int{}
	for i := range checks {
		c := &checks[i]
		if !strings.Contains(c.Name, Removed) {
			continue
		}
		name := c.Name
		if count[name]++; count[name] > 1 {
			c.Name += fmt.Sprintf(" #%d", count[name])
		}
	}
}

func (t *table) tcpCheck(c *Check) {
	c.Socket = t.socket()
	c.Send, c.Expect = t.anyText("send"), t.anyText("expect")
}

func (t *table) grpcCheck(c *Check) {
	c.Socket = t.socket()
	t.checkTLS(c)
	c.Service = t.str("service", "")
	name := "grpc-" + c.target()
	if c.Service != "" {
		name += "/" + c.Service
	}
	c.Name = cmp.Or(c.Name, name)
}

// execCheck: a command is a list of its arguments, and looked for where the check's own PATH says, whatever folder and
// environment the registrar was started with.
func (t *table) execCheck(c *Check) {
	c.Shell = t.flag("shell", false)
	if !t.require("command", `write the program and its arguments, command = ["/usr/lib/checks/disk", "-w", "90"]`) {
		return
	}
	oneText := t.value("command") != nil && t.value("command").kind == text
	c.Command = t.lines("command")
	switch {
	case t.at("command").broken:
	case len(c.Command) == 0 || c.Command[0] == "":
		t.fail("command", "is empty", `write the program and its arguments, command = ["/usr/lib/checks/disk", "-w", "90"]`)
	case c.Shell && len(c.Command) > 1:
		t.fail("command", "is a list, but a shell takes one text", `write command = "disk -w 90 | grep -q OK", or remove shell`)
	case c.Shell:
	case oneText && strings.ContainsAny(c.Command[0], " \t"):
		t.fail("command", "is one text with blanks, which would be the name of the program", `write a list, command = ["disk", "-w", "90"], or shell = true`)
	case strings.Contains(c.Command[0], "/") && !path.IsAbs(c.Command[0]):
		t.fail("command", t.name("command", c.Command[0])+" is below the folder that the process happens to be in", "write the full path, or a name to be found in PATH")
	}
	if e := t.sub("env"); e != nil {
		c.Env = map[string]string{}
		for _, v := range e.n.entries {
			if v.key == "" || strings.ContainsAny(v.key, "=\x00") {
				e.fail(v.key, "is not the name of a variable", "use letters, digits and underscores")
			}
			c.Env[v.key] = e.header(v.key)
		}
	}
	t.warnExit(c)
	if c.Name == "" && len(c.Command) > 0 && !c.Shell {
		c.Name = "exec-" + path.Base(c.Command[0])
	}
}

func (t *table) warnExit(c *Check) {
	c.WarnExit = int(t.whole("warn_exit", 0, 1, 255))
	weight := int(t.whole("warn_weight", 1, 1, 100))
	if c.WarnExit != 0 {
		c.WarnWeight = weight
	} else if t.value("warn_weight") != nil && t.value("warn_exit") == nil {
		t.warn("warn_weight", "has no effect without warn_exit", "write warn_exit = 1, or remove it")
	}
}

// weightToLower complains about checks that would lower a weight that the service does not have. t is the service's.
func (t *table) weightToLower(checks []Check) {
	if n := t.given("weight"); n != nil {
		return
	}
	for _, c := range checks {
		if c.WarnExit != 0 {
			t.fail("checks", "check "+quote(c.Name)+" has warn_exit, but the service has no weight to lower", "add weight = 100 to the service, or remove warn_exit")
		}
	}
}

// ttlCheck: the name is what the service reports under.
func (t *table) ttlCheck(c *Check, g Registration) {
	if t.require("ttl", `write how long a report counts, ttl = "30s"`) {
		c.TTL = t.duration("ttl", 0, positive)
	}
	c.Name = cmp.Or(c.Name, "ttl")
	if slices.ContainsFunc(g.Checks, func(o Check) bool { return o.Type == "ttl" && o.Name == c.Name }) {
		t.fail("name", "another ttl check of the service has the same name, so that a report could mean either", "give them different names")
	}
}

// socket is a Unix socket to connect to instead of host and port.
func (t *table) socket() string {
	s := t.filePath("socket", "")
	if s != "" && !path.IsAbs(s) {
		t.mismatch("socket", "a full path", `write it from the root on, socket = "/run/user-api.sock"`)
		return ""
	}
	return s
}

// checkTLS reads how to speak TLS with what is checked. As in Nerve certificates are not verified unless that is asked
// for; who names an authority asks for it.
func (t *table) checkTLS(c *Check) {
	https := c.Type == "https"
	if https {
		c.Type = "http"
	}
	c.SSL = t.flag("ssl", https)
	if https && !c.SSL && t.value("ssl") != nil {
		t.fail("ssl", `is false, but the type is "https"`, `write type = "http", or remove ssl`)
	}
	o := TLS{
		CAFile: t.beside("ca_file"), CertFile: t.beside("cert_file"), KeyFile: t.beside("key_file"),
		ServerName: t.host("server_name", ""),
	}
	o.NoVerify = !t.flag("verify", o.CAFile != "")
	if !c.SSL {
		for _, key := range []string{"verify", "ca_file", "cert_file", "key_file", "server_name"} {
			if t.value(key) != nil {
				t.warn(key, "has no effect without TLS", "write ssl = true, or remove it")
			}
		}
		return
	}
	if o.NoVerify && o.CAFile != "" {
		t.warn("ca_file", "has no effect with verify = false", "remove one of them")
	}
	o.CA = t.authorities("ca_file", o.CAFile)
	t.ownCertificate(o)
	c.TLS = &o
}

// method is what an HTTP check asks with, or empty.
func (t *table) method() string {
	m := t.str("method", "")
	if t.value("method") != nil && (m == http.MethodConnect || !plainMethod.MatchString(m)) {
		t.mismatch("method", "a method that a check can use", `write "GET", "HEAD", "POST" or another one, in capital letters`)
		return ""
	}
	return m
}

var plainMethod = regexp.MustCompile(`^[A-Z]+$`)

// statuses are those that pass: 204, "204", "2xx" or "200-299", one or a list of them.
func (t *table) statuses() []StatusRange {
	n := t.value("status")
	if n == nil {
		return nil
	}
	place, items := join(t.path, "status"), []*node{n}
	if n.kind == list {
		items = n.items
		if len(items) == 0 {
			t.fail("status", "the list is empty", statusForm)
		}
	}
	var out []StatusRange
	for i, it := range items {
		at := place
		if n.kind == list {
			at = index(place, i)
		}
		s, ok := parseStatus(it)
		if !ok {
			t.r.mismatch(it, at, "an HTTP status or a range of them", statusForm)
			continue
		}
		out = append(out, s)
	}
	return out
}

const statusForm = `write for example [200, "2xx", "300-399"]`

var statusText = regexp.MustCompile(`^([1-9])(?:xx|(\d\d)(?:-([1-9]\d\d))?)$`)

func parseStatus(n *node) (StatusRange, bool) {
	m := statusText.FindStringSubmatch(strings.ToLower(n.text))
	if m == nil || n.kind != number && n.kind != text {
		return StatusRange{}, false
	}
	number := func(s string) int { v, _ := strconv.Atoi(s); return v } // the pattern let only digits through
	r := StatusRange{number(m[1] + "00"), number(m[1] + "99")}
	if m[2] != "" {
		r.From = number(m[1] + m[2])
		r.To = r.From
	}
	if m[3] != "" {
		r.To = number(m[3])
	}
	return r, r.From <= r.To
}

// regex is a regular expression that compiles, or empty.
func (t *table) regex(key string) string {
	s := t.anyText(key)
	if _, err := regexp.Compile(s); err != nil {
		t.fail(key, "is not a regular expression: "+t.whyNot(key, err), "see https://pkg.go.dev/regexp/syntax for how to write one")
	}
	return s
}

// whyNot is the reason of package regexp, which quotes the expression.
func (t *table) whyNot(key string, err error) string {
	if t.at(key).expanded() {
		return "the one from the environment does not compile"
	}
	return clip(strings.TrimPrefix(err.Error(), "error parsing regexp: "))
}

// anyText may span lines: it is sent, or looked for in an answer.
func (t *table) anyText(key string) string {
	n := t.value(key)
	if n == nil {
		return ""
	}
	if n.kind != text {
		t.mismatch(key, "a string", "write one string in double quotes")
		return ""
	}
	return n.text
}

// header is a header's value; numbers are taken as they are written.
func (t *table) header(key string) string {
	if n := t.value(key); n != nil && n.kind == number {
		return n.text
	}
	return t.str(key, "")
}

func validHeader(s string) bool {
	for _, c := range s { // RFC 9110 5.6.2, token
		if c <= ' ' || c >= 127 || strings.ContainsRune(`"(),/:;<=>?@[\]{}`, c) {
			return false
		}
	}
	return s != ""
}

// otherCheck refuses the types that are not there: a check that is left out would register a dead service.
func (t *table) otherCheck(c *Check) {
	defer t.skip()
	if t.value("type") == nil {
		return // wrong type of type, complained about
	}
	said := "check type " + t.at("type").describe(join(t.path, "type"))
	switch c.Type {
	case "ssl":
		t.fail("type", said+" is not known", `write type = "https"`)
	default:
		if near := Nearest(c.Type, append(checkTypes(), "https", "rabbitmq")); near != "" {
			t.fail("type", said+" is not known", "did you mean "+near+"?")
			return
		}
		t.fail("type", said+" is not known", useCheckTypes())
	}
}
