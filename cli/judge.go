package cli

import (
	"github.com/myelin-sd/myelin/config"
	"github.com/myelin-sd/myelin/registrar"
)

// combination is what the checks of a service amount to together.
func combination(name string) registrar.Combination {
	switch name {
	case "any":
		return registrar.CombineAny
	case "weighted":
		return registrar.CombineWeighted
	}
	return registrar.CombineAll
}

func damping(d *config.Damping) *registrar.Damping {
	if d == nil {
		return nil
	}
	return &registrar.Damping{Suppress: d.Suppress, Reuse: d.Reuse, HalfLife: d.HalfLife, MaxHold: d.MaxHold}
}
