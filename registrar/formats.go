package registrar

import (
	"context"

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

// yield leaves the nodes that a successor publishes as well to it.
func (k *keeper) yield(successor discovery.Registration) {
	k.service.Registration = yielded(k.service.Registration, successor)
	k.standing = yielded(k.standing, successor)
}

// yielded is was without the further nodes that a successor has as well.
func yielded(was, successor discovery.Registration) discovery.Registration {
	left := was.Without(successor)
	if len(left) == 0 || !left[0].SamePlace(was) {
		return was // it is the same service
	}
	was.Also = left[1:]
	return was
}
