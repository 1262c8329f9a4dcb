package agent

import (
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/myelin-sd/myelin/config"
)

// TestDecoder: each method of the file reads its own format, and auto all of them.
func TestDecoder(t *testing.T) {
	const (
		nerve   = `{"host":"h","port":1,"name":"n"}`
		member  = `{"serviceEndpoint":{"host":"h","port":2},"additionalEndpoints":{"admin":{"host":"h","port":3}},"status":"ALIVE"}`
		curator = `{"name":"s","id":"i","address":"h","port":4,"registrationTimeUTC":1,"serviceType":"DYNAMIC"}`
	)
	require.Nil(t, decoder(config.Decode{Method: "nerve"}), "the source's own")
	for _, c := range []struct {
		decode config.Decode
		data   string
		port   uint16 // 0: rejected
	}{
		{config.Decode{Method: "serverset"}, member, 2},
		{config.Decode{Method: "serverset", EndpointName: "admin"}, member, 3},
		{config.Decode{Method: "serverset"}, nerve, 0},
		{config.Decode{Method: "curator"}, curator, 4},
		{config.Decode{Method: "curator"}, member, 0},
		{config.Decode{Method: "auto"}, nerve, 1},
		{config.Decode{Method: "auto"}, member, 2},
		{config.Decode{Method: "auto"}, curator, 4},
	} {
		in, err := decoder(c.decode)("x", []byte(c.data))
		if c.port == 0 {
			require.Error(t, err)
			continue
		}
		require.NoError(t, err)
		require.Equal(t, c.port, in.Endpoint.Port())
	}
}
