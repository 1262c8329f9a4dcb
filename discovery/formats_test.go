package discovery_test

import (
	"errors"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/myelin-sd/myelin/discovery"
)

func TestEncodeServerset(t *testing.T) {
	for want, p := range map[string]discovery.Payload{
		`{"serviceEndpoint":{"host":"h","port":1},"additionalEndpoints":{},"status":"ALIVE"}`: {Host: "h", Port: 1, PortText: true, Name: "n"},
		`{"serviceEndpoint":{"host":"h","port":1},"additionalEndpoints":{},"status":"ALIVE","shard":7}`: {
			Host: "h", Port: 1, Labels: map[string]any{"shard": "7", "zone": "a"}},
		`{"serviceEndpoint":{"host":"h","port":1},"additionalEndpoints":{},"status":"STOPPING"}`: {
			Host: "h", Port: 1, Leaving: true, Labels: map[string]any{"shard": "seven"}},
	} {
		data, err := discovery.EncodeServerset(p)
		require.NoError(t, err)
		require.Equal(t, want, string(data))
		in, err := discovery.DecodeServerset("")("member_0000000003", data)
		require.NoError(t, err)
		require.Equal(t, "h:1", in.Endpoint.String())
		require.Equal(t, p.Leaving, in.Leaving)
		require.Equal(t, int64(3), *in.ID)
	}
}

func TestEncodeCurator(t *testing.T) {
	p := discovery.Payload{Host: "10.0.0.5", Port: 8080, Name: "web-1"}
	data, err := discovery.EncodeCurator(p, `orders "registrationTimeUTC":5`, "web-1_8080")
	require.NoError(t, err)
	require.Equal(t, `{"name":"orders \"registrationTimeUTC\":5","id":"web-1_8080","address":"10.0.0.5","port":8080,"sslPort":null,`+
		`"payload":null,"registrationTimeUTC":0,"serviceType":"DYNAMIC","uriSpec":null}`, string(data))
	in, err := discovery.DecodeCurator("web-1_8080", data)
	require.NoError(t, err)
	require.Equal(t, "10.0.0.5:8080", in.Endpoint.String())
	require.Equal(t, "web-1_8080", in.Name)

	// The time is that of the first registration, and stays.
	first := discovery.DateCurator(data, nil, time.UnixMilli(1795218617510))
	require.Contains(t, string(first), `"registrationTimeUTC":1795218617510,`)
	require.Contains(t, string(first), `orders \"registrationTimeUTC\":5"`)
	require.Equal(t, first, discovery.DateCurator(data, first, time.UnixMilli(1)))
	require.Equal(t, first, discovery.DateCurator(data, data, time.UnixMilli(1795218617510)), "none is there yet")
	require.Equal(t, first, discovery.DateCurator(data, []byte("rubbish"), time.UnixMilli(1795218617510)))
}

// TestDecodeFormats: what others write, each with its own decoder and by looking at it.
func TestDecodeFormats(t *testing.T) {
	const (
		member  = `{"serviceEndpoint":{"host":"10.0.0.3","port":8081},"additionalEndpoints":{"health":{"host":"10.0.0.3","port":9990}},"status":"ALIVE","shard":7}`
		java    = `{"name":"orders","id":"a2ccdaca","address":"10.0.0.5","port":8080,"sslPort":8443,"payload":{"@class":"Cur$Inst","id":"application-1","metadata":{"version":"1.2"}},"registrationTimeUTC":1795218617510,"serviceType":"DYNAMIC","uriSpec":{"parts":[]}}`
		tlsOnly = `{"name":"orders","id":"b","address":"10.0.0.6","port":null,"sslPort":8443,"payload":null,"registrationTimeUTC":1,"serviceType":"STATIC","uriSpec":null}`
		nerve   = `{"host":"10.0.0.2","port":8080,"name":"i-2"}`
	)
	serverset, curator := discovery.DecodeServerset(""), discovery.DecodeCurator
	for _, c := range []struct {
		name, data, endpoint, instance string
		decode                         func(string, []byte) (discovery.Instance, error)
	}{
		{"serverset", member, "10.0.0.3:8081", "7", serverset},
		{"an additional endpoint", member, "10.0.0.3:9990", "7", discovery.DecodeServerset("health")},
		{"Curator", java, "10.0.0.5:8080", "a2ccdaca", curator},
		{"Curator with TLS only", tlsOnly, "10.0.0.6:8443", "b", curator},
		{"serverset, by its looks", member, "10.0.0.3:8081", "7", discovery.DecodeAny},
		{"Curator, by its looks", java, "10.0.0.5:8080", "a2ccdaca", discovery.DecodeAny},
		{"Nerve, by its looks", nerve, "10.0.0.2:8080", "i-2", discovery.DecodeAny},
	} {
		t.Run(c.name, func(t *testing.T) {
			in, err := c.decode("x_0000000001", []byte(c.data))
			require.NoError(t, err)
			require.Equal(t, c.endpoint, in.Endpoint.String())
			require.Equal(t, c.instance, in.Name)
			require.False(t, in.Leaving)
			require.Equal(t, "x_0000000001", in.Node)
		})
	}
	in, err := curator("x", []byte(java))
	require.NoError(t, err)
	require.Equal(t, map[string]any{"version": "1.2"}, in.Labels)
}

func TestDecodeFormatsRefuse(t *testing.T) {
	serverset, curator := discovery.DecodeServerset(""), discovery.DecodeCurator
	for _, c := range []struct {
		data, reason string
		decode       func(string, []byte) (discovery.Instance, error)
	}{
		{``, discovery.ReasonUndecodable, serverset},
		{`[]`, discovery.ReasonUndecodable, serverset},
		{`{}`, discovery.ReasonHost, serverset},
		{`{"serviceEndpoint":{"host":"a b","port":1}}`, discovery.ReasonHost, serverset},
		{`{"serviceEndpoint":{"host":"h","port":0}}`, discovery.ReasonPort, serverset},
		{`{"serviceEndpoint":{"host":"h","port":1},"status":"DEAD"}`, discovery.ReasonStatus, serverset},
		{`{"serviceEndpoint":{"host":"h","port":1}}`, discovery.ReasonHost, discovery.DecodeServerset("http")},
		{``, discovery.ReasonUndecodable, curator},
		{`{"address":"h"}`, discovery.ReasonPort, curator},
		{`{"port":1}`, discovery.ReasonHost, curator},
		{`{"address":"h","port":1,"enabled":false}`, discovery.ReasonStatus, curator},
		{`{"address":"h","port":1,"payload":{"metadata":{"instance_status":"OUT_OF_SERVICE"}}}`, discovery.ReasonStatus, curator},
		{`{"serviceEndpoint":{"host":"h","port":1},"status":"STARTING"}`, discovery.ReasonStatus, discovery.DecodeAny},
		{`{"address":"h","port":1}`, discovery.ReasonHost, discovery.DecodeAny}, // nothing says that it is Curator's
		{`{"host":"h"}`, discovery.ReasonPort, discovery.DecodeAny},
	} {
		_, err := c.decode("x", []byte(c.data))
		rejected, ok := errors.AsType[*discovery.RejectError](err)
		require.True(t, ok, "%s: %v", c.data, err)
		require.Equal(t, c.reason, rejected.Reason, c.data)
	}
}

// FuzzDecodeAny: whatever is in a node, no decoder panics, and what it lets through is safe to show.
func FuzzDecodeAny(f *testing.F) {
	f.Add([]byte(`{"serviceEndpoint":{"host":"h","port":1},"status":"ALIVE","shard":7}`))
	f.Add([]byte(`{"name":"orders","id":"b","address":"h","port":1,"registrationTimeUTC":1,"serviceType":"STATIC"}`))
	f.Fuzz(func(t *testing.T, data []byte) {
		in, err := discovery.DecodeAny("n_1", data)
		if err != nil {
			return
		}
		require.Equal(t, discovery.SafeName(in.Name), in.Name)
		require.NotEmpty(t, in.Endpoint.Host())
		require.NotZero(t, in.Endpoint.Port())
	})
}

func TestRegistrationPlaces(t *testing.T) {
	at := func(path, prefix string, also ...discovery.Registration) discovery.Registration {
		return discovery.Registration{Path: path, Prefix: prefix, Also: also}
	}
	r := at("/a", "x_", at("/b", "member_"), at("/c", "x"))
	require.Equal(t, []discovery.Registration{at("/a", "x_"), at("/b", "member_"), at("/c", "x")}, r.All())
	require.Empty(t, r.Without(r))
	require.Equal(t, []discovery.Registration{at("/a", "x_"), at("/c", "x")}, r.Without(at("/b", "member_")))
	require.Len(t, r.Also, 2, "r is as it was")
}
