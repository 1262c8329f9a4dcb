package haproxy

import (
	"context"
	"time"
)

// How AwaitDistinctNames looks at the program.
const (
	programEvery = time.Second
	versionLimit = 10 * time.Second // one run of it
)

// RequiresDistinctNames tells whether a frontend and a backend must not have the same name: HAProxy warns of that from
// 3.1 on, and refuses the file from 3.3 on. Both the program at hand and the processes behind sockets count, because
// the next start may be of the one, and the next reload of the other. It is false where nobody answers.
func RequiresDistinctNames(ctx context.Context, binary string, sockets ...string) bool {
	return CapabilitiesOf(versionOf(ctx, binary, versionLimit)).DistinctNames ||
		CapabilitiesOf(RunningVersion(ctx, sockets...)).DistinctNames
}

// AwaitDistinctNames blocks until the program at hand is one that requires distinct names, as after an upgrade of
// HAProxy's package, and returns true; or until ctx is done, and returns false.
func AwaitDistinctNames(ctx context.Context, binary string) bool {
	var seen fileIdentity
	for {
		now := lookAt(findBinary(binary))
		if !now.same(seen) && RequiresDistinctNames(ctx, binary) {
			return true
		}
		seen = now
		if !sleep(ctx, programEvery) {
			return false
		}
	}
}

// frontendNames are the names of the services' frontends, by index. A frontend is named like its service, and where
// names are to be distinct and a backend has that name, "-frontend" is added.
func (f File) frontendNames() []string {
	taken := map[string]bool{}
	if f.DistinctNames {
		for _, s := range f.Services {
			taken[s.SectionName()] = true
		}
	}
	names := make([]string, len(f.Services))
	for i, s := range f.Services {
		names[i] = s.Name
		for taken[names[i]] {
			names[i] += "-frontend"
		}
		if f.DistinctNames {
			taken[names[i]] = true
		}
	}
	return names
}
