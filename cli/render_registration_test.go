package cli

import (
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/myelin-sd/myelin/config"
	"github.com/myelin-sd/myelin/discovery"
	"github.com/myelin-sd/myelin/discovery/zookeeper"
	"github.com/myelin-sd/myelin/registrar"
)

// published are the services of a file as the registrar gets them.
func published(t *testing.T, text string) []registrar.Service {
	t.Helper()
	file := filepath.Join(t.TempDir(), "registrar.toml")
	require.NoError(t, os.WriteFile(file, []byte("instance_id = \"web-1\"\nzookeeper.hosts = \"zk1\"\n"+text), 0o600))
	c, _, err := config.LoadRegistrar(file, config.Options{})
	require.NoError(t, err)
	stand := new(zookeeper.Session)
	services, err := registrations(c, registrar.NewReports(), func(config.ZooKeeper) *zookeeper.Session { return stand })
	require.NoError(t, err)
	require.NoError(t, registrar.Validate(services))
	return services
}

// lay writes a registration as the lines "path/name kind data".
func lay(r discovery.Registration) string {
	var b strings.Builder
	for _, one := range r.All() {
		kind := map[bool]string{true: "ephemeral", false: "persistent"}[one.Ephemeral]
		if one.Sequential {
			kind += "_sequential"
		}
		if one.Closed {
			kind += " closed"
		}
		if one.TTL > 0 {
			kind += " ttl=" + one.TTL.String()
		}
		fmt.Fprintf(&b, "%s/%s %s %s\n", one.Path, one.Prefix, kind, one.Data)
	}
	return b.String()
}

func TestPublicationFormats(t *testing.T) {
	sv := published(t, `
zookeeper.auth = { credentials = "me:secret" }
acl = "creator"
[services.user-api]
host = "10.0.0.5"
port = 8080
zk_path = "/services/user-api"
weight = 10
labels = { shard = "7" }
payload = ["nerve", "serverset", "curator"]
payload_paths = { serverset = "/discovery/user-api", curator = "/curator/user-api" }
check_mocked = true
`)[0]
	require.Equal(t, `/services/user-api/web-1_ ephemeral_sequential closed {"host":"10.0.0.5","port":8080,"name":"web-1","weight":10,"labels":{"shard":"7"}}
/discovery/user-api/member_ ephemeral_sequential closed {"serviceEndpoint":{"host":"10.0.0.5","port":8080},"additionalEndpoints":{},"status":"ALIVE","shard":7}
/curator/user-api/web-1_8080 ephemeral closed {"name":"user-api","id":"web-1_8080","address":"10.0.0.5","port":8080,"sslPort":null,"payload":null,"registrationTimeUTC":0,"serviceType":"DYNAMIC","uriSpec":null}
`, lay(sv.Registration))

	leaving := sv.Render.Render(sv.Registration, registrar.Condition{Weight: 25, Leaving: true})
	require.Equal(t, `/services/user-api/web-1_ ephemeral_sequential closed {"host":"10.0.0.5","port":8080,"name":"web-1","weight":3,"labels":{"shard":"7"},"leaving":true}
/discovery/user-api/member_ ephemeral_sequential closed {"serviceEndpoint":{"host":"10.0.0.5","port":8080},"additionalEndpoints":{},"status":"STOPPING","shard":7}
/curator/user-api/web-1_8080 ephemeral closed {"name":"user-api","id":"web-1_8080","address":"10.0.0.5","port":8080,"sslPort":null,"payload":null,"registrationTimeUTC":0,"serviceType":"DYNAMIC","uriSpec":null}
`, lay(leaving))
	require.Contains(t, lay(sv.Registration), `"status":"ALIVE"`, "rendering changes nothing of what it is given")

	// A keeper that has left a format to its successor renders what it still has.
	rest := sv.Registration
	rest.Also = rest.Also[1:]
	require.Equal(t, leaving.Also[1:], sv.Render.Render(rest, registrar.Condition{Weight: 25, Leaving: true}).Also)
}

func TestPublicationKinds(t *testing.T) {
	service := func(name string, port int, more string) string {
		return fmt.Sprintf("[services.%s]\nhost = \"h\"\nport = %d\ncheck_mocked = true\n%s\n", name, port, more)
	}
	var got []string
	for _, sv := range published(t, service("a", 1, `zk_path = "/a"`)+
		service("b", 2, "zk_path = \"/b\"\nnode_type = \"ephemeral\"")+
		service("c", 3, "zk_path = \"/c\"\nnode_type = \"persistent\"\nttl_seconds = 60")+
		service("d", 4, "zk_path = \"/d\"\nnode_type = \"persistent_sequential\"")+
		service("e", 5, "zk_path = \"/e\"\nuse_path_encoding = true\nnode_type = \"persistent\"")+
		service("f", 6, "zk_path = \"/f\"\nload_test_concurrency = 2")+
		service("g", 7, "zk_path = \"/g\"")+service("h", 8, "zk_path = \"/g\"")+
		service("i", 9, "zk_path = \"/i\"\npayload = \"curator\"")) {
		at, _, _ := strings.Cut(lay(sv.Registration), " {")
		got = append(got, sv.Name+" "+at)
	}
	require.Equal(t, []string{
		"a /a/web-1_ ephemeral_sequential",
		"b /b/web-1_ ephemeral",
		"c /c/web-1_ persistent ttl=1m0s",
		"d /d/web-1_ persistent_sequential",
		"e /e/base64_48_eyJob3N0IjoiaCIsInBvcnQiOjUsIm5hbWUiOiJ3ZWItMSJ9_ persistent",
		"f_0 /f/web-1_6_0_ ephemeral_sequential",
		"f_1 /f/web-1_6_1_ ephemeral_sequential",
		"g /g/web-1_7_ ephemeral_sequential",
		"h /g/web-1_8_ ephemeral_sequential",
		"i /i/web-1_9 ephemeral",
	}, got)
}
