package config

import (
	"encoding/json"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"
)

// TestRedactLine: what announces a secret is seen, what stands behind it is not; and other lines stay as they are.
func TestRedactLine(t *testing.T) {
	for line, want := range map[string]string{
		"  stats auth admin:hunter2":                              "  stats auth [removed]",
		"  user bob insecure-password hunter2":                    "  user bob insecure-password [removed]",
		"  user bob password $6$abc groups g":                     "  user bob password [removed]",
		"  setenv DB_PASS hunter2":                                "  setenv DB_PASS [removed]",
		`  http-request set-header Authorization "Basic hunter2"`: "  http-request set-header Authorization [removed]",
		"  http-check send meth GET uri / hdr X-Auth hunter2":     "  http-check send [removed]",
		`  tcp-check send AUTH\ hunter2\r\n`:                      "  tcp-check send [removed]",
		`  option httpchk GET /h HTTP/1.1\r\nHost:\ a hunter2`:    `  option httpchk GET /h HTTP/1.1\r\nHost:\ [removed]`,
		"  server a amqp://u:hunter2@10.0.0.1:80":                 "  server a amqp://[removed]@10.0.0.1:80",
		"  http-request redirect location /x?token=hunter2":       "  http-request redirect location /x?[removed]",
		"  log ${TARGET:-hunter2} local0":                         "  log ${TARGET:-[removed]} local0",
		`  acl ok req.hdr(x),jwt_verify(txn.alg,"hunter2") 1`:     "  acl ok req.hdr(x),jwt_verify( [removed]",
		"# the password is hunter2":                               "# the password [removed]",
		"  hosts ops:hunter2@10.0.0.1:2181 x":                     "  hosts [removed]@10.0.0.1:2181 x",
		`hosts = ["ops:hunter2@10.0.0.1:2181"]`:                   `hosts = ["[removed]@10.0.0.1:2181"]`,
		"held web-1@10.0.0.1:80,web-2@10.0.0.2:80 by root@vm":     "held web-1@10.0.0.1:80,web-2@10.0.0.2:80 by root@vm",
		"  http-request set-var(txn.key) str(hunter2)":            "  http-request set-var(txn.key) str( [removed]",
		"  cluster-secret hunter2":                                "  cluster-secret [removed]",
		"  server a 10.0.0.1:80 id 1 check inter 2s cookie x":     "  server a 10.0.0.1:80 id 1 check inter 2s cookie x",
		"  bind 127.0.0.1:80 ssl crt /etc/ssl/a.pem":              "  bind 127.0.0.1:80 ssl crt /etc/ssl/a.pem",
		"  option httpchk GET /health":                            "  option httpchk GET /health",
		"  timeout client 5s":                                     "  timeout client 5s",
	} {
		require.Equal(t, want, RedactLine(line))
		require.NotContains(t, RedactLine(line), "hunter2")
	}
}

// TestShow: of a file with a secret in every place where there may be one, none is shown, and the rest is.
func TestShow(t *testing.T) {
	dir := t.TempDir()
	write := func(name, text string) string {
		path := filepath.Join(dir, name)
		require.NoError(t, os.MkdirAll(filepath.Dir(path), 0o755))
		require.NoError(t, os.WriteFile(path, []byte(text), 0o600))
		return path
	}
	main := write("registrar.toml", `# hunter2 in a comment
instance_id = "web-1"
service_conf_dir = "conf.d"
[zookeeper]
hosts = ["zk1:2181"]
auth = { scheme = "digest", credentials = "myelin:hunter2-digest" }
[services.a]
host = "10.0.0.5"
port = 80
zk_path = "/a"
on_stop = ["/usr/bin/stop", "--password", "hunter2-stop"]
[[services.a.checks]]
type = "redis"
password = "hunter2-redis"
[[services.a.checks]]
type = "mysql"
password_file = "/etc/secret.file"
[[services.a.checks]]
type = "http"
uri = "/health?key=hunter2-query"
headers = { Authorization = "Bearer hunter2-bearer" }
body = "hunter2-body"
[[services.a.checks]]
type = "tcp"
send = "AUTH hunter2-send"
[[services.a.checks]]
type = "exec"
command = "TOKEN=hunter2-exec /bin/check"
env = { PW = "hunter2-env", N = 5 }
`)
	write("conf.d/b.json", `{"host":"10.0.0.6","port":81,"zk_path":"/b","checks":[{"type":"http","headers":{"X":"${MY_HEADER}"}}]}`)
	write("conf.d/c.json", `{"password": "hunter2-torn`)
	files, secrets := Show(main, Options{LookupEnv: func(name string) (string, bool) { return "hunter2-" + name, name == "MY_HEADER" }})
	require.Len(t, files, 3)
	var all strings.Builder
	for _, f := range files[:2] {
		require.NoError(t, f.Err)
		require.True(t, json.Valid(f.Text), string(f.Text))
		all.Write(f.Text)
	}
	require.Error(t, files[2].Err)
	require.Empty(t, files[2].Text)
	require.NotContains(t, files[2].Err.Error(), "hunter2")
	require.NotContains(t, all.String(), "hunter2")
	for _, shown := range []string{`"web-1"`, `"zk1:2181"`, `"digest"`, `"/usr/bin/stop"`, `"/etc/secret.file"`, `"/health?[removed]"`, `"10.0.0.6"`, `"redis"`} {
		require.Contains(t, all.String(), shown)
	}
	for _, secret := range []string{"hunter2-digest", "hunter2-redis", "hunter2-MY_HEADER", "hunter2-stop"} {
		require.Contains(t, secrets, secret)
	}

	agent := write("agent.json", `{"services":{"a":{"discovery":{"method":"base"},"haproxy":{"listen":["stats auth a:hunter2","mode http"]}}},
		"haproxy":{"global":["setenv X hunter2"],"reload_command":"PW=hunter2 reload","check_command":"check -p hunter2"}}`)
	files, _ = Show(agent, Options{})
	require.Len(t, files, 1)
	require.NotContains(t, string(files[0].Text), "hunter2")
	require.Contains(t, string(files[0].Text), `"mode http"`)
	require.Contains(t, string(files[0].Text), `"check [removed]"`)
	files, _ = Show(filepath.Join(dir, "none"), Options{})
	require.Error(t, files[0].Err)
}
