package config

import (
	"fmt"
	"math"
	"time"
)

// health reads what the checks of a registration amount to, beside the checks themselves.
func (t *table) health(g *Registration) {
	if g.Combine = t.choice("combine", "all", "all", "any", "weighted"); g.Combine == "all" {
		g.Combine = ""
	}
	if g.Combine == "weighted" && t.given("weight") == nil {
		t.fail("combine", "weighted has no weight to lower", `add weight = 100, or write combine = "all" or "any"`)
	}
	deciding := 0
	for _, c := range g.Checks {
		if c.Share == nil || *c.Share > 0 {
			deciding++
		}
		if c.Share != nil && *c.Share > 1 && g.Combine != "weighted" {
			t.warn("checks", fmt.Sprintf("share = %d of check %q counts as 1", *c.Share, c.Name), `write combine = "weighted", or remove it`)
		}
	}
	if deciding == 0 && len(g.Checks) > 0 {
		t.warn("checks", "all checks have share = 0, so the service always counts as healthy", "remove share from one that is to decide")
	}
	g.Damping = t.damping()
}

// damping has defaults that hold the third fall in a row, for three minutes at the longest.
func (t *table) damping() *Damping {
	s := t.sub("damping")
	if s == nil {
		return nil
	}
	defer s.done()
	d := &Damping{
		Suppress: s.amount("suppress", 2), Reuse: s.amount("reuse", 1),
		HalfLife: s.duration("half_life", time.Minute, time.Second), MaxHold: s.duration("max_hold", 3*time.Minute, time.Second),
	}
	if d.Reuse >= d.Suppress {
		s.fail("reuse", fmt.Sprintf("%g is not below suppress, which is %g", d.Reuse, d.Suppress), "write for example suppress = 2, reuse = 1")
		return d
	}
	if least := time.Duration(float64(d.HalfLife) * math.Log2(d.Suppress/d.Reuse)); d.MaxHold <= least {
		least = least.Truncate(time.Second) + time.Second
		s.fail("max_hold", fmt.Sprintf("%s is too short: nothing would ever be held back", d.MaxHold),
			fmt.Sprintf("write at least %q, or a shorter half_life", least))
	}
	return d
}

// amount is a number above 0, or def.
func (t *table) amount(key string, def float64) float64 {
	v := t.fraction(key, def)
	if v <= 0 {
		t.mismatch(key, "a number above 0", "write for example 1")
		return def
	}
	return v
}
