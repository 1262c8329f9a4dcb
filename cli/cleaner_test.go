package cli

import (
	"context"
	"testing"

	"github.com/sirupsen/logrus"
	"github.com/stretchr/testify/require"

	"github.com/myelin-sd/myelin/discovery"
	"github.com/myelin-sd/myelin/registrar"
)

// retained is a directory that tells what it is asked to keep.
type retained struct {
	registrar.Directory
	keep chan []string
}

func (r retained) Retain(_ context.Context, keep []discovery.Registration) error {
	var all []string
	for _, k := range keep {
		all = append(all, k.Path+"/"+k.Prefix)
	}
	r.keep <- all
	return nil
}

// TestCleanerKeepsEveryFormat: also one that a reload has added to a service, whose first one is the same as before.
func TestCleanerKeepsEveryFormat(t *testing.T) {
	d := retained{keep: make(chan []string, 1)}
	sv := registrar.Service{Directory: d, Registration: discovery.Registration{Path: "/s", Prefix: "web-1_"}}
	c := newCleaner(t.Context(), logrus.New(), func() bool { return true })
	defer c.close()
	c.begin([]registrar.Service{sv})
	require.Equal(t, []string{"/s/web-1_"}, <-d.keep)
	c.end()
	sv.Registration.Also = []discovery.Registration{{Path: "/members", Prefix: "member_"}}
	c.begin([]registrar.Service{sv})
	require.Equal(t, []string{"/s/web-1_", "/members/member_"}, <-d.keep)
}
