package cli

import (
	"cmp"
	"errors"
	"fmt"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/myelin-sd/myelin/config"
	"github.com/myelin-sd/myelin/discovery"
	"github.com/myelin-sd/myelin/discovery/zookeeper"
)

// What a deed does to the override of its target.
const (
	doesStore   = "stored"
	doesRemove  = "removed"
	doesNothing = "nothing"
)

// deed is what follows from an intent: what is written, and what people should know of it.
type deed struct {
	does     string
	override discovery.Override        // stored; with doesRemove and doesNothing only its target counts
	former   *zookeeper.StoredOverride // of the same target, replaced or removed; nil: there was none
	wider    *discovery.Override       // that counts, or would count without this one; nil: none
	narrower []discovery.Override      // that go before it for some instances
	count    int                       // instances that it is about
	awaited  []awaited                 // what agents have to tell when it is in force
}

// decide says what an intent comes to. It refuses a target that is not known, and what would leave a service without
// any instance in rotation, unless it is forced.
func (in intent) decide(known standing, now time.Time) (deed, error) {
	d := deed{override: discovery.Override{Target: in.target}}
	for i, o := range known.overrides {
		if o.Node == in.target.NodeName() {
			d.former = &known.overrides[i]
		}
	}
	for _, s := range known.services {
		for _, e := range s.instances {
			if covers(in.target, s.service, e) {
				d.count++
			}
		}
	}
	taken := in.action == discovery.ActionEnable && d.former != nil
	if d.count == 0 && !in.force && !taken {
		if err := unknownTarget(in.target, known); err != nil {
			return d, err
		}
	}
	d.wider = widest(known, in.target, now)
	if in.action == discovery.ActionEnable {
		d.does = in.enabling(d.former, d.wider, now)
	} else {
		d.does = doesStore
	}
	if d.does == doesStore {
		d.override = in.override(now)
		if in.action == discovery.ActionEnable && in.limit == 0 {
			d.override.Until = d.wider.Until // it is of no use for longer
		}
	}
	d.narrower = narrower(known, in.target, now)
	if err := in.spared(known, d, now); err != nil && !in.force {
		return d, err
	}
	return d, nil
}

// override is what is stored.
func (in intent) override(now time.Time) discovery.Override {
	o := discovery.Override{
		Target: in.target, Action: in.action, Weight: in.weight, Percent: in.percent, Author: in.author, Reason: in.reason,
		Created: now.UTC().Truncate(time.Second),
	}
	if in.limit > 0 { // stored in whole seconds: rather one more than one less
		o.Until = now.Add(in.limit + time.Second - time.Nanosecond).UTC().Truncate(time.Second)
	}
	return o
}

// enabling is how a target becomes as registered: by the end of its own override, and where a wider one would count
// then, by one that says so.
func (in intent) enabling(former *zookeeper.StoredOverride, wide *discovery.Override, now time.Time) string {
	held := wide != nil && wide.Action != discovery.ActionEnable
	enabled := former != nil && former.Problem == nil && former.Action == discovery.ActionEnable && former.InForce(now)
	switch {
	case held && enabled && in.limit == 0 && (former.Until.IsZero() || !wide.Until.IsZero() && !former.Until.Before(wide.Until)):
		return doesNothing
	case held:
		return doesStore
	case former != nil:
		return doesRemove
	}
	return doesNothing
}

// inForce are the overrides that count at now, without those for which skip holds.
func inForce(all []zookeeper.StoredOverride, now time.Time, skip func(discovery.Target) bool) (out discovery.Overrides) {
	for _, o := range all {
		if o.Problem == nil && o.InForce(now) && !skip(o.Target) {
			out = append(out, o.Override)
		}
	}
	return out
}

// widest is the override that counts for a target where it has none of its own: for one of its instances that would be
// taken from what is registered, else the narrowest of those that are about all of it.
func widest(known standing, t discovery.Target, now time.Time) *discovery.Override {
	rest := inForce(known.overrides, now, func(o discovery.Target) bool { return o == t })
	for _, s := range known.services {
		of := rest.Of(s.service, now)
		for _, e := range s.instances {
			if !covers(t, s.service, e) {
				continue
			}
			if o := of.For(e); o != nil && o.Action != discovery.ActionEnable && o.Target.Narrowness() < t.Narrowness() {
				return o
			}
		}
	}
	var best *discovery.Override
	for i := range rest {
		if o := &rest[i]; wider(o.Target, t) && (best == nil || o.Target.Narrowness() > best.Target.Narrowness()) {
			best = o
		}
	}
	return best
}

// narrower are the overrides that go before one of t for some instances.
func narrower(known standing, t discovery.Target, now time.Time) (out []discovery.Override) {
	all := inForce(known.overrides, now, noTarget)
	for _, o := range all {
		counts := slices.ContainsFunc(known.services, func(s serving) bool {
			return slices.ContainsFunc(s.instances, func(e discovery.Endpoint) bool {
				return covers(t, s.service, e) && covers(o.Target, s.service, e) && o.Target.Narrowness() > t.Narrowness()
			})
		})
		if counts {
			out = append(out, o)
		}
	}
	return out
}

// after are the overrides that count when the deed is done.
func (d *deed) after(known standing, now time.Time) discovery.Overrides {
	if d.does == doesNothing {
		return inForce(known.overrides, now, noTarget)
	}
	all := inForce(known.overrides, now, func(t discovery.Target) bool { return t == d.override.Target })
	if d.does == doesStore {
		all = append(all, d.override)
	}
	return all
}

// spared refuses what would leave a service without any instance in rotation that has one now.
func (in intent) spared(known standing, d deed, now time.Time) error {
	bare := leavesBare(known, inForce(known.overrides, now, noTarget), d.after(known, now), now)
	if len(bare) == 0 {
		return nil
	}
	return fmt.Errorf("%s of %s would leave no instance in rotation of %s; nothing was changed; --force does it all the same",
		in.action, shown(in.target), listed(bare, 5))
}

// leavesBare lists the services that have instances in rotation with the overrides of before, and none with those of after.
func leavesBare(known standing, before, after discovery.Overrides, now time.Time) (bare []string) {
	for _, s := range known.services {
		was, is := inRotation(before, s, now), inRotation(after, s, now)
		if was > 0 && is == 0 {
			bare = append(bare, fmt.Sprintf("%s (%d of %d in rotation now)", printable(s.service), was, len(s.instances)))
		}
	}
	return bare
}

// noTarget has inForce leave none out.
func noTarget(discovery.Target) bool { return false }

func inRotation(all discovery.Overrides, s serving, now time.Time) (n int) {
	of := all.Of(s.service, now)
	for _, e := range s.instances {
		if !ends(of.For(e)) {
			n++
		}
	}
	return n
}

// ends tells whether an override takes instances out of rotation.
func ends(o *discovery.Override) bool {
	if o == nil {
		return false
	}
	return o.Action == discovery.ActionDrain || o.Action == discovery.ActionMaint || o.Action == discovery.ActionWeight && o.Weight == 0
}

// unknownTarget refuses a target that the registry knows nothing of, with what may have been meant.
func unknownTarget(t discovery.Target, known standing) error {
	refused := func(text string) error {
		if !strings.HasSuffix(text, "?") {
			text += ";"
		}
		return errors.New(text + " --force stores it all the same, for one that is to come")
	}
	if t.Service == "" {
		var hosts []string
		for _, s := range known.services {
			for _, e := range s.instances {
				hosts = append(hosts, e.Host())
			}
		}
		return refused("nothing is registered on " + t.String() + meant(t.Host, hosts, "hosts with instances"))
	}
	s := known.services[0]
	if s.missing {
		return refused("there is no service " + printable(t.Service) + " (" + s.path + ")" + meant(t.Service, known.names, "there are"))
	}
	if t.Host == "" {
		return nil // it has no instance now
	}
	var instances []string
	for _, e := range s.instances {
		instances = append(instances, e.String())
	}
	place := strings.TrimPrefix(t.String(), t.Service+" ")
	return refused(printable(t.Service) + " has no instance at " + place + meant(place, instances, "it has"))
}

// meant suggests what is like a word that is not known, or tells of those that are the least unlike.
func meant(word string, candidates []string, there string) string {
	const most = 5
	if near := config.Nearest(word, candidates); near != "" {
		return "; did you mean " + printable(near) + "?"
	}
	slices.Sort(candidates)
	candidates = slices.Compact(candidates)
	if len(candidates) == 0 {
		return ""
	}
	slices.SortStableFunc(candidates, func(a, b string) int { return cmp.Compare(config.Distance(word, a), config.Distance(word, b)) })
	for i, c := range candidates {
		candidates[i] = printable(c)
	}
	return "; " + there + " " + listed(candidates, most)
}

// listed joins the first words, and says how many more there are.
func listed(words []string, most int) string {
	if len(words) <= most {
		return strings.Join(words, ", ")
	}
	return fmt.Sprintf("%s and %d more", strings.Join(words[:most], ", "), len(words)-most)
}

// shown is a target as it is printed.
func shown(t discovery.Target) string {
	if t.Host == "" {
		return "all of " + printable(t.Service)
	}
	if t.Service == "" {
		return "host " + t.String()
	}
	return printable(t.String())
}

// actionWords are what an override asks for: "drain", "weight 50%".
func actionWords(o discovery.Override) string {
	if o.Action != discovery.ActionWeight {
		return string(o.Action)
	}
	text := "weight " + strconv.Itoa(o.Weight)
	if o.Percent {
		text += "%"
	}
	return text
}

// told says of an override who wants what, for how long already, and why.
func told(o discovery.Override, now time.Time) string {
	text := actionWords(o)
	if o.Author != "" {
		text += " by " + printable(o.Author)
	}
	if !o.Created.IsZero() {
		text += ", " + age(now, o.Created) + " old"
	}
	switch {
	case !o.InForce(now):
		text += ", expired"
	case !o.Until.IsZero():
		text += ", for another " + age(o.Until, now)
	}
	if o.Reason != "" {
		text += ": " + printable(o.Reason)
	}
	return text
}

// before are lines about what there is already: what is replaced, and what else counts.
func (d *deed) before(now time.Time) (lines []string) {
	t := shown(d.override.Target)
	switch {
	case d.former == nil:
	case d.former.Problem != nil:
		lines = append(lines, fmt.Sprintf("%s: replaces what was no override: %s", t, d.former.Problem))
	case d.does == doesStore:
		lines = append(lines, fmt.Sprintf("%s: replaces %s", t, told(d.former.Override, now)))
	case d.does == doesRemove:
		lines = append(lines, fmt.Sprintf("%s: removes %s", t, told(d.former.Override, now)))
	}
	for i, o := range d.narrower {
		if i == 5 {
			return append(lines, fmt.Sprintf("%d more overrides go before it; see myelin overrides", len(d.narrower)-i))
		}
		lines = append(lines, fmt.Sprintf("%s: its own override goes before: %s", shown(o.Target), told(o, now)))
	}
	return lines
}

// done is one line about what was done, and how long it holds.
func (d *deed) done(in intent, now time.Time) string {
	t, o := shown(in.target), d.override
	if in.target.Port == 0 || in.target.Service == "" {
		t += fmt.Sprintf(" (%s)", counted(d.count, "instance"))
	}
	switch d.does {
	case doesNothing:
		if in.action == discovery.ActionEnable && d.former != nil {
			return t + " is as registered already: " + told(d.former.Override, now)
		}
		return t + " has no override; nothing was to be done"
	case doesRemove:
		return t + " is as registered again"
	}
	var text string
	switch in.action {
	case discovery.ActionDrain:
		text = t + " gets no new sessions"
	case discovery.ActionMaint:
		text = t + " is out of rotation"
	case discovery.ActionWeight:
		text = t + " has " + actionWords(o)
		if o.Percent {
			text += " of what it would be"
		}
	case discovery.ActionEnable:
		text = fmt.Sprintf("%s is as registered, although %s has %s", t, shown(d.wider.Target), actionWords(*d.wider))
	}
	switch {
	case in.limit > 0: // as it was asked for, though a moment has passed
		return fmt.Sprintf("%s until %s (for %s)", text, o.Until.Local().Format(time.RFC3339), age(now.Add(in.limit), now))
	case !o.Until.IsZero():
		return fmt.Sprintf("%s until %s (for %s)", text, o.Until.Local().Format(time.RFC3339), age(o.Until, now))
	case in.action == discovery.ActionEnable:
		return text
	}
	return text + " until myelin enable " + words(in.target)
}

func counted(n int, what string) string {
	if n == 1 {
		return "1 " + what
	}
	return fmt.Sprintf("%d %ss", n, what)
}

func (a *app) printDeed(in intent, d deed) { fmt.Fprintln(a.out, d.done(in, time.Now())) }

// deedInfo is what was done, for programs. The JSON names are part of the interface.
type deedInfo struct {
	Done      string         `json:"done"`      // stored, removed or nothing
	Instances int            `json:"instances"` // that it is about at present
	Target    string         `json:"target"`
	Override  *overrideInfo  `json:"override"` // what counts for the target now; null: it has none of its own
	Replaced  *overrideInfo  `json:"replaced"` // what was there before; null: nothing
	Wider     *overrideInfo  `json:"wider"`    // what counts, or would count without it
	Narrower  []overrideInfo `json:"narrower"` // what goes before it for some instances
	Wait      *outcomeInfo   `json:"wait,omitempty"`
}

func (d *deed) info(in intent, o *outcome) deedInfo {
	now := time.Now()
	i := deedInfo{Done: d.does, Instances: d.count, Target: in.target.String(), Narrower: []overrideInfo{}}
	if d.former != nil {
		former := infoOfStored(*d.former, now)
		if i.Replaced = &former; d.does == doesNothing {
			i.Override, i.Replaced = &former, nil
		}
	}
	if d.does == doesStore {
		stored := infoOfOverride(d.override, now)
		i.Override = &stored
	}
	if d.wider != nil {
		wide := infoOfOverride(*d.wider, now)
		i.Wider = &wide
	}
	for _, n := range d.narrower {
		i.Narrower = append(i.Narrower, infoOfOverride(n, now))
	}
	if o != nil {
		i.Wait = o.info()
	}
	return i
}
