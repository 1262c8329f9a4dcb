package fsck

import (
	"bytes"
	"fmt"
	"slices"

	"github.com/myelin-sd/myelin/discovery"
)

// overrideNode is an override with the node that it lies in.
type overrideNode struct {
	discovery.Override
	node Node
}

// Override takes in a node of the overrides' path.
func (c *Checker) Override(n Node) {
	c.nodes++
	o, err := discovery.DecodeOverride(base(n.Path), n.Data)
	ours := acts(n.Data)
	n.Data = nil
	if err == nil {
		c.overrides = append(c.overrides, overrideNode{o, n})
		return
	}
	found := Finding{ID: Undecodable, Severity: Warning, Path: n.Path, Detail: safe(err.Error()) + "; " + written(c.o.Now, n),
		Advice: "no agent honours it: write it anew with myelin drain, maint, weight or enable"}
	if ours && n.Owner == 0 && n.Children == 0 && c.old(n.Modified) {
		found.Removal = &Removal{Node: n}
		found.Advice += ", and delete it: myelin gc"
	}
	c.add(found)
}

// acts tells whether data were written as an override, whether they decode or not.
func acts(data []byte) bool { return bytes.Contains(data, []byte(`"action"`)) }

// overrides tells whether a node is an override, wherever it lies.
func overrides(n Node) bool {
	if !acts(n.Data) {
		return false
	}
	_, err := discovery.DecodeOverride(base(n.Path), n.Data)
	return err == nil
}

// judgeOverrides says which overrides do nothing.
func (c *Checker) judgeOverrides(add func(Finding)) {
	if len(c.overrides) == 0 {
		return
	}
	targets := c.targets()
	for i := range c.overrides {
		o := &c.overrides[i]
		switch {
		case !o.InForce(c.o.Now):
			f := Finding{ID: OverrideExpired, Severity: Warning, Path: o.node.Path, Service: o.Service,
				Detail: fmt.Sprintf("%s of %s ended %s UTC", o.Action, safe(o.Target.String()), o.Until.UTC().Format("2006-01-02 15:04")), Advice: "nobody counts it any more: myelin gc deletes it"}
			if o.node.Children == 0 {
				f.Removal = &Removal{Node: o.node}
			}
			add(f)
		case c.judgeable(o.Service, targets) && !targets.hit(o.Target):
			add(Finding{ID: OverrideAimless, Severity: Note, Path: o.node.Path, Service: o.Service,
				Detail: fmt.Sprintf("%s of %s: nothing like that is registered", o.Action, safe(o.Target.String())),
				Advice: "it waits for such an instance; if none is to come: myelin enable " + safe(o.Target.Words())})
		case o.Action == discovery.ActionEnable && !c.lifts(o.Target):
			add(Finding{ID: OverrideIdle, Severity: Note, Path: o.node.Path, Service: o.Service,
				Detail: fmt.Sprintf("enable of %s lifts nothing: no wider override is in force", safe(o.Target.String())),
				Advice: "it would go before the next wider one, too; if that is not meant: myelin overrides rm " + safe(o.Target.String())})
		}
	}
}

// lifts tells whether an enable of a target goes before an override that asks for something else.
func (c *Checker) lifts(t discovery.Target) bool {
	return slices.ContainsFunc(c.overrides, func(o overrideNode) bool {
		return o.Action != discovery.ActionEnable && o.InForce(c.o.Now) && o.Target.Meets(t) && o.Target.Narrowness() < t.Narrowness()
	})
}

// judgeable tells whether what an override may be about was looked at.
func (c *Checker) judgeable(service string, t targets) bool {
	return c.o.Whole || service != "" && t[service] != nil
}

// targets are the endpoints of services, by name; "" are all services.
type targets map[string]map[string]bool

// targets lists what overrides can be about: hosts, and hosts with ports.
func (c *Checker) targets() targets {
	t := targets{"": {}}
	for path, f := range c.folders {
		if !f.service {
			continue
		}
		name := c.name(path)
		if t[name] == nil {
			t[name] = map[string]bool{}
		}
		for i := range f.leaves {
			e := f.leaves[i].endpoint
			if !e.IsValid() {
				continue
			}
			for _, known := range []map[string]bool{t[name], t[""]} {
				known[e.Host()], known[e.String()] = true, true
			}
		}
	}
	return t
}

// hit tells whether something is registered that an override is about.
func (t targets) hit(of discovery.Target) bool {
	known := t[of.Service]
	switch {
	case known == nil:
		return false
	case of.Host == "":
		return true
	case of.Port == 0:
		return known[of.Host]
	}
	e, err := discovery.ParseEndpoint(of.Host, int(of.Port))
	return err == nil && known[e.String()]
}
