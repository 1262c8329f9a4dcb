package registrar

import (
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/myelin-sd/myelin/discovery"
)

func TestValidate(t *testing.T) {
	dir, other := &fakeDirectory{}, &fakeDirectory{}
	reg := func(path, prefix string) discovery.Registration {
		return discovery.Registration{Path: path, Prefix: prefix, Sequential: true, Ephemeral: true}
	}
	good := []Service{
		{Name: "a", Directory: dir, Registration: reg("/services/a", "web-1_")},
		{Name: "b", Directory: dir, Registration: reg("/services/b", "web-1_"), Checks: []Check{{HealthCheck: NewNoop()}}},
		{Name: "a elsewhere", Directory: other, Registration: reg("/services/a", "web-1_")},
	}
	require.NoError(t, Validate(good))
	require.NoError(t, Validate(nil))
	require.EqualError(t, Validate([]Service{
		good[0],
		{Directory: dir, Registration: reg("/x", "web-1_")},
		{Name: "a", Directory: dir, Registration: reg("/y", "web-1_")},
		{Name: "homeless", Registration: reg("/z", "web-1_")},
		{Name: "nameless", Directory: dir, Registration: reg("/z", "")},
		{Name: "twin", Directory: dir, Registration: reg("/services/a", "web-1_")},
		{Name: "c", Directory: dir, Registration: reg("/c", "web-1_"), Checks: []Check{{Name: "health"}}},
	}), `register service "": it has no name
register service "a": the name is given twice
register service "homeless": it has no directory
register service "nameless": its node has no path or no name
register service "twin": service "a" registers as /services/a/web-1_ as well; give one of them another path
register service "c": check "health" has no implementation`)
}
