package haproxy

import (
	"strings"
	"testing"

	"github.com/stretchr/testify/assert"
)

func TestCapabilitiesOf(t *testing.T) {
	for version, want := range map[string]Capabilities{
		"2.6.12-1+deb12u4": {Major: 2, Minor: 6, Patch: 12, DynamicServers: true, NeedsPoolKeywords: true},
		"2.4.0":            {Major: 2, Minor: 4, NeedsPoolKeywords: true},
		"2.2.9-2+deb11u6":  {Major: 2, Minor: 2, Patch: 9, NeedsPoolKeywords: true},
		"3.0.11":           {Major: 3, Patch: 11, DynamicServers: true, Cookie: true},
		"3.2.26-1":         {Major: 3, Minor: 2, Patch: 26, DynamicServers: true, Cookie: true, InitState: true},
		"3.4.0":            {Major: 3, Minor: 4, DynamicServers: true, Cookie: true, InitState: true, DynamicBackends: true, DistinctNames: true},
		"3.5-dev5":         {Major: 3, Minor: 5, DynamicServers: true, Cookie: true, InitState: true, DynamicBackends: true, DistinctNames: true},
		"10.0.1":           {Major: 10, Patch: 1, DynamicServers: true, Cookie: true, InitState: true, DynamicBackends: true, DistinctNames: true},
		"2.6.17":           {Major: 2, Minor: 6, Patch: 17, DynamicServers: true, NeedsPoolKeywords: true},
		"2.6.18":           {Major: 2, Minor: 6, Patch: 18, DynamicServers: true, Cookie: true, NeedsPoolKeywords: true},
		"2.8.7":            {Major: 2, Minor: 8, Patch: 7, DynamicServers: true, NeedsPoolKeywords: true},
		"2.8.30-0ubuntu0":  {Major: 2, Minor: 8, Patch: 30, DynamicServers: true, Cookie: true, NeedsPoolKeywords: true},
		"":                 {},
		"unknown":          {},
		"2":                {},
		"a.b.c":            {},
	} {
		want.Version = version
		assert.Equal(t, want, CapabilitiesOf(version), version)
	}
}

func TestVersionWarnings(t *testing.T) {
	const hangs, crashes = "issue 3360", "show stat"
	for version, want := range map[string][2]string{ // without and with leastconn
		"2.4.30": {}, "2.6.0": {crashes, crashes}, "2.6.12-1+deb12u4": {crashes, crashes}, "2.6.13": {}, "2.8.0": {}, "3.0.11": {},
		"3.2.5": {}, "3.2.6": {"", hangs}, "3.2.18-1": {"", hangs}, "3.2.19": {}, "3.2.26-1": {}, "3.3.0": {"", hangs}, "3.4.0": {}, "": {},
	} {
		for i, leastconn := range []bool{false, true} {
			got := CapabilitiesOf(version).Warnings(leastconn)
			if want[i] == "" {
				assert.Empty(t, got, version)
			} else if assert.Len(t, got, 1, version) {
				assert.Contains(t, got[0], want[i])
				assert.Contains(t, got[0], version)
			}
		}
	}
}

func TestBalancesLeastconn(t *testing.T) {
	leastconn, other := []string{"mode tcp", "balance  leastconn"}, []string{"balance roundrobin"}
	assert.True(t, BalancesLeastconn(leastconn, other))
	assert.True(t, BalancesLeastconn(nil, leastconn))
	assert.False(t, BalancesLeastconn(other, leastconn), "the backend's own line counts")
	assert.False(t, BalancesLeastconn(nil, nil))
}

func TestRuntimeUnfit(t *testing.T) {
	with := func(options string) []Server {
		return []Server{{Name: "s1"}, {Name: "s2", Options: strings.Fields(options)}}
	}
	for name, c := range map[string]struct {
		backend, defaults string // lines, separated by "|"
		servers           []Server
		version           string // "": 2.6.12
		says              string // "": fit
	}{
		"nothing said":           {},
		"old":                    {version: "2.4.22", says: "HAProxy 2.4.22 cannot add servers at run time"},
		"unknown version":        {version: "?", says: "HAProxy ? cannot add servers"},
		"roundrobin":             {backend: "balance roundrobin"},
		"leastconn":              {backend: "  balance   leastconn  "},
		"first":                  {backend: "balance first"},
		"random":                 {backend: "balance random(2)"},
		"static-rr":              {backend: "balance static-rr", says: `write "balance roundrobin"`},
		"source":                 {backend: "balance source", says: `"balance source" takes servers at run time only with "hash-type consistent"`},
		"uri":                    {backend: "balance uri whole", says: `"balance uri whole"`},
		"header":                 {backend: "balance hdr(X-User)", says: `"balance hdr(X-User)"`},
		"url parameter":          {backend: "balance url_param id", says: `"balance url_param id"`},
		"hash":                   {backend: "balance hash path", says: `"balance hash path"`},
		"rdp-cookie":             {backend: "balance rdp-cookie(x)", says: "rdp-cookie"},
		"source, consistent":     {backend: "balance source|hash-type consistent sdbm avalanche"},
		"source, map-based":      {backend: "balance source|hash-type map-based", says: "balance source"},
		"consistent by defaults": {backend: "balance source", defaults: "hash-type consistent"},
		"defaults, overridden":   {backend: "balance roundrobin", defaults: "balance source"},
		"defaults in force":      {backend: "option httpchk", defaults: "balance source", says: "balance source"},
		"the last line counts":   {backend: "balance source|balance leastconn"},
		"a comment":              {backend: "# balance source|balance leastconn # balance source"},
		"unknown algorithm":      {backend: "balance futuristic"},

		"cookie on 2.6":         {backend: "mode http|cookie SRV insert", says: `"cookie SRV insert" needs a cookie on each server`},
		"cookie of defaults":    {defaults: "cookie SRV insert", says: "needs a cookie"},
		"cookie, mode tcp":      {backend: "mode tcp", defaults: "mode http|cookie SRV insert"},
		"cookie on 3.0":         {backend: "cookie SRV insert", version: "3.0.11"},
		"server cookie on 2.6":  {servers: []Server{{Name: "s1", Cookie: "x"}}, says: "server s1 has a cookie"},
		"server cookie on 3.0":  {servers: []Server{{Name: "s1", Cookie: "x"}}, version: "3.0.1"},
		"options":               {servers: with("check inter 2s")},
		"option never accepted": {servers: with("check resolvers dns"), says: `server s2: option "resolvers" is not accepted`},
		"option of 3.1 on 2.6":  {servers: with("init-state down"), says: `server s2: option "init-state" needs HAProxy 3.1 at run time, this is 2.6.12`},
		"option of 3.1 on 3.2":  {servers: with("init-state down"), version: "3.2.26"},
	} {
		if c.version == "" {
			c.version = "2.6.12"
		}
		got := RuntimeUnfit(strings.Split(c.backend, "|"), strings.Split(c.defaults, "|"), c.servers, CapabilitiesOf(c.version))
		if c.says == "" {
			assert.Empty(t, got, name)
		} else {
			assert.Contains(t, got, c.says, name)
		}
	}
}
