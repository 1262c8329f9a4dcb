package config

import (
	"fmt"
	"net"
	"strconv"
	"strings"
	"time"
)

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
	target := net.JoinHostPort(c.Host, strconv.Itoa(int(c.Port)))
	name := fmt.Sprintf("%s %s-%s", g.Name, c.Type, target)
	if !t.require("type", checksReady) {
		t.skip()
		return c
	}
	switch c.Type {
	case "http":
		t.httpCheck(&c)
		name = "http-" + target + c.URI // Nerve's
	case "tcp", "noop":
	default:
		t.otherCheck(&c)
	}
	if c.Name == "" {
		c.Name = name
	}
	return c
}

func (t *table) httpCheck(c *Check) {
	if t.require("uri", `write the path to ask for, uri = "/health"`) {
		c.URI = t.str("uri", "")
		if t.value("uri") != nil && (!strings.HasPrefix(c.URI, "/") || strings.ContainsAny(c.URI, " \t")) {
			t.mismatch("uri", "a path", `begin it with / and write spaces as %20, uri = "/health"`)
		}
	}
	c.SSL = t.flag("ssl", false)
	c.OpenTimeout = t.duration("open_timeout", 200*time.Millisecond, positive)
	c.ReadTimeout = t.duration("read_timeout", c.Timeout, positive)
	c.SSLTimeout = t.duration("ssl_timeout", 200*time.Millisecond, positive)
	c.Expect = t.expect()
	if h := t.sub("headers"); h != nil {
		c.Headers = map[string]string{}
		for _, e := range h.n.entries {
			if !validHeader(e.key) {
				h.fail(e.key, "is not the name of an HTTP header", "use letters, digits and hyphens")
			}
			c.Headers[e.key] = h.header(e.key)
		}
	}
}

// expect may span lines: it is looked for in a body.
func (t *table) expect() string {
	n := t.value("expect")
	if n == nil {
		return ""
	}
	if n.kind != text {
		t.mismatch("expect", "a string", "write one string in double quotes")
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

const checksReady = "use http, tcp or noop"

// otherCheck refuses the types that are not there: a check that is left out would register a dead service.
func (t *table) otherCheck(c *Check) {
	defer t.skip()
	if t.value("type") == nil {
		return // wrong type of type, complained about
	}
	said := "check type " + t.at("type").describe(join(t.path, "type"))
	switch c.Type {
	case "grpc", "exec", "redis", "mysql", "postgres", "amqp", "rabbitmq", "zookeeper", "ttl":
		t.fail("type", said+" is not available in this version of Myelin", checksReady)
	case "https", "ssl":
		t.fail("type", said+" is not known", `write type = "http" with ssl = true`)
	default:
		if near := nearest(c.Type, []string{"http", "tcp", "noop"}); near != "" {
			t.fail("type", said+" is not known", "did you mean "+near+"?")
			return
		}
		t.fail("type", said+" is not known", checksReady)
	}
}
