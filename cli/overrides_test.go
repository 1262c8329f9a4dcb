package cli

import (
	"bytes"
	"fmt"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/myelin-sd/myelin/agent"
)

// TestOverridesWithoutZooKeeper: the agent of this host tells what it knows, and the answer says what that is worth.
func TestOverridesWithoutZooKeeper(t *testing.T) {
	const list = `"list": [
		{"node": "*,10.0.0.2", "revision": 0, "host": "10.0.0.2", "action": "maint", "created": "2020-01-01T00:00:00Z", "until": "2020-01-02T00:00:00Z", "ended": true, "servers": 0},
		{"node": "web,10.0.0.1,80", "revision": 3, "service": "web", "host": "10.0.0.1", "port": 80, "action": "weight", "weight": 50, "percent": true, "author": "ann", "reason": "slow\ndisk", "created": "2020-01-01T00:00:00Z", "servers": 2, "applied": true},
		{"node": "web,10.0.0.3,80", "revision": 1, "service": "web", "host": "10.0.0.3", "port": 80, "action": "drain", "created": "2020-01-01T00:00:00Z", "servers": 1}]`
	for name, tc := range map[string]struct {
		status string
		code   int
		errs   string
		out    []string
	}{
		"heard": {`{"overrides": {"path": "/myelin/overrides", "heard": "2020-01-01T00:00:00Z", ` + list + `, "undecodable": [{"node": "junk", "reason": "no"}, {"node": "web,10.0.0.3,80", "reason": "no", "former": true}]}}`, 0,
			"myelin: ZooKeeper does not answer; this is what the agent at ADDRESS knows, as it was now\n",
			[]string{
				`10\.0\.0\.2 \(host\) +maint +- .* expired \d+d\d\dh ago +- +-`, `web 10\.0\.0\.1:80 +weight 50% +ann .* with enable +applied, 2 servers +"slow\\ndisk"`,
				`web 10\.0\.0\.3:80 +drain +- .* not applied yet, 1 server +-`, `node junk +undecodable .* no`,
			}},
		"from disk": {`{"overrides": {"path": "/myelin/overrides", "from_disk": "2020-01-01T00:00:00Z", ` + list + `}}`, 0,
			"this is what the agent at ADDRESS knows, as it was 2", []string{`web 10\.0\.0\.1:80`}},
		"path gone":     {`{"overrides": {"path": "/myelin/overrides", "heard": "2020-01-01T00:00:00Z", "missing": true, ` + list + `}}`, 0, "myelin: /myelin/overrides is gone from ZooKeeper; what the agent knows of overrides stays in force\n", []string{`web 10\.0\.0\.1:80`}},
		"nothing heard": {`{"overrides": {"path": "/myelin/overrides", "list": []}}`, 1, "the agent at ADDRESS has heard nothing of overrides yet; nothing of it is on disk in ", nil},
		"off":           {`{"overrides": {"list": []}}`, 1, "the agent at ADDRESS honours no overrides: overrides_path is off; ", nil},
		"older agent":   {`{}`, 1, "ask the agent at ADDRESS: it tells nothing of overrides; is it an agent of this version?", nil},
		"away": {`{"overrides": {"path": "/myelin/overrides", "ensemble": "zk9:2181", "heard": "2020-01-01T00:00:00Z", ` + list + `}, "zookeeper": [{"ensemble": "zk9:2181", "connected": false, "since": "2020-01-01T00:00:00Z"}]}`, 0,
			"this is what the agent at ADDRESS knows, as it was 2", []string{`web 10\.0\.0\.1:80`}},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			pages := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) { fmt.Fprint(w, tc.status) }))
			defer pages.Close()
			address := strings.TrimPrefix(pages.URL, "http://")
			file := filepath.Join(t.TempDir(), "a.toml")
			require.NoError(t, os.WriteFile(file, []byte(fmt.Sprintf(`
state_dir = %q
admin = { listen = %q }
[zookeeper]
hosts = [%q]
[services.web]
discovery = { method = "zookeeper", path = "/services/web" }
`, t.TempDir(), address, refused(t))), 0o644))
			var out, errs bytes.Buffer
			code := Main([]string{"overrides", "-c", file, "--timeout", "1s"}, &out, &errs)
			require.Equal(t, tc.code, code, errs.String())
			require.Contains(t, errs.String(), strings.ReplaceAll(tc.errs, "ADDRESS", address))
			if tc.code != 0 {
				require.Contains(t, errs.String(), "nothing heard within 1s")
				require.Empty(t, out.String(), "what is not known is not none")
			}
			for _, line := range tc.out {
				require.Regexp(t, "(?m)^"+line, out.String())
			}
		})
	}
}

// TestOverridesOfAnAgent: without a ZooKeeper to ask the agent is asked, and that is all there is to say.
func TestOverridesOfAnAgent(t *testing.T) {
	t.Setenv("MYELIN_ZOOKEEPER", "")
	pages := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
		fmt.Fprint(w, `{"overrides": {"path": "/myelin/overrides", "heard": "2020-01-01T00:00:00Z", "list": []}}`)
	}))
	defer pages.Close()
	var out, errs bytes.Buffer
	require.Zero(t, Main([]string{"overrides", "--address", strings.TrimPrefix(pages.URL, "http://")}, &out, &errs))
	require.Equal(t, "there are no overrides\n", out.String())
	require.Regexp(t, `^myelin: this is what the agent at 127\.0\.0\.1:\d+ knows, as it was now\n$`, errs.String())
	require.Equal(t, 2, Main([]string{"overrides", "--address", refused(t)}, &out, &errs))
	require.Contains(t, errs.String(), "which ZooKeeper?")
}

// TestOverridesNotHonoured: an intent that no agent would hear of is refused.
func TestOverridesNotHonoured(t *testing.T) {
	const service = "[services.web]\ndiscovery = { method = \"zookeeper\", path = \"/web\", hosts = \"zk1\" }\n"
	for text, want := range map[string]string{
		"overrides_path = \"off\"\n[zookeeper]\nhosts = \"zk1\"\n" + service: "overrides_path is off, so its agent honours no overrides",
		service: "zookeeper.hosts is missing, so its agent honours no overrides",
	} {
		a, _ := command(t, "agent.toml", text)
		_, err := a.overridesAt("")
		require.ErrorContains(t, err, want)
		require.Equal(t, exitFailed, a.exit(err))
	}
	a, _ := command(t, "agent.toml", "overrides_path = \"/ops/overrides\"\n[zookeeper]\nhosts = \"zk1\"\n"+service)
	where, err := a.overridesAt("")
	require.NoError(t, err)
	require.Equal(t, "/ops/overrides", where.path)
	where, err = a.overridesAt("/other")
	require.NoError(t, err)
	require.Equal(t, "/other", where.path)
	_, err = a.overridesAt("other")
	require.Equal(t, exitUsage, a.exit(err))
}

// TestOverridesHere: what the agent makes of an override counts only where it looks at the same ones.
func TestOverridesHere(t *testing.T) {
	where := overridesPlace{path: "/myelin/overrides"}
	where.zk.Hosts, where.zk.Chroot = []string{"zk1:2181"}, "/prod"
	for ensemble, want := range map[string]bool{
		"zk1:2181/prod": true, "zk2:2181,zk1:2181/prod": true, "zk1:2181/prod (2)": true,
		"zk1:2181": false, "zk2:2181/prod": false, "": false, "zk1:2181/other": false,
	} {
		require.Equal(t, want, sameOverrides(agent.OverridesStatus{Path: "/myelin/overrides", Ensemble: ensemble}, where), ensemble)
	}
	require.False(t, sameOverrides(agent.OverridesStatus{Path: "/other", Ensemble: "zk1:2181/prod"}, where))

	here := agent.OverridesStatus{List: []agent.OverrideStatus{{Node: "web,*", Revision: 2, Servers: 3, Applied: true}}}
	require.Equal(t, &hereInfo{Known: true, Applied: true, Servers: 3}, hereOf(here, overrideInfo{Node: "web,*", Revision: 2, State: stateInForce}))
	require.Equal(t, &hereInfo{}, hereOf(here, overrideInfo{Node: "web,*", Revision: 3, State: stateInForce}), "it knows an older one")
	require.Nil(t, hereOf(here, overrideInfo{Node: "web,*", Revision: 2, State: stateExpired}))
}
