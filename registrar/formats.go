package registrar

import (
	"context"
	"slices"
	"time"

	"github.com/myelin-sd/myelin/discovery"
)

// publishOver publishes is, and withdraws what was had and is has not: a format that is no longer wanted goes when the
// others stand. standing is what may be in the directory then, also after an error.
func publishOver(ctx context.Context, dir Directory, was, is discovery.Registration, node string) (made discovery.Published, standing discovery.Registration, err error) {
	dropped := was.Without(is)
	if was.Path == "" {
		dropped = nil
	}
	standing = is
	standing.Also = append(append([]discovery.Registration(nil), is.Also...), dropped...)
	if made, err = dir.Publish(ctx, is, node); err != nil {
		return made, standing, err
	}
	for _, d := range dropped {
		if err := dir.Withdraw(ctx, d, ""); err != nil {
			return made, standing, err
		}
	}
	return made, is, nil
}

// yield leaves the further nodes that services of the same directory publish as well to them, and returns what each of
// them takes over, in the order of services.
func (k *keeper) yield(services []Service) [][]discovery.Registration {
	given := make([][]discovery.Registration, len(services))
	mine := append(slices.Clone(k.service.Registration.Also), k.standing.Also...)
	for i, s := range services {
		if len(mine) == 0 || s.Directory != k.id.directory {
			continue
		}
		for _, r := range mine {
			if len(r.Without(s.Registration)) == 0 {
				given[i] = append(given[i], r)
			}
		}
		k.yielded = append(k.yielded, given[i]...)
	}
	k.service.Registration = without(k.service.Registration, k.yielded)
	k.standing = without(k.standing, k.yielded)
	return given
}

// without is r without those of its further nodes that are others'.
func without(r discovery.Registration, others []discovery.Registration) discovery.Registration {
	r.Also = slices.DeleteFunc(slices.Clone(r.Also), func(mine discovery.Registration) bool {
		return slices.ContainsFunc(others, mine.SamePlace)
	})
	return r
}

// take has the keeper look after nodes that another one has left to it: should the service be down, they go.
func (k *keeper) take(given []discovery.Registration) {
	if k.standing.Path == "" {
		k.standing = k.service.Registration
	}
	k.standing.Also = append(without(k.standing, given).Also, given...)
	if k.upkeep.touched = true; k.upkeep.want == Down {
		k.upkeep.again(time.Now(), whyChange)
	}
}
