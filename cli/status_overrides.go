package cli

import (
	"fmt"
	"time"

	"github.com/myelin-sd/myelin/agent"
)

// printManual shows what somebody else has changed in a HAProxy.
func (a *app) printManual(now time.Time, all []agent.ManualChange) {
	for _, m := range all {
		fmt.Fprintf(a.out, "  changed by somebody else %s ago: %s/%s: %s; corrected in %s\n", age(now, m.Since), m.Backend, m.Server, m.What, age(m.Until, now))
	}
}

// printOverridesHere shows in a few lines what overrides do on this host; the list of all of them is that of myelin overrides.
func (a *app) printOverridesHere(now time.Time, s agent.OverridesStatus) {
	if s.Path == "" {
		return
	}
	where := "overrides " + s.Path
	switch {
	case s.FromDisk != nil:
		fmt.Fprintf(a.out, "%s: %s, as they were %s ago; nothing heard yet\n", where, a.alarm("FROM DISK"), age(now, *s.FromDisk))
	case s.Heard == nil:
		fmt.Fprintf(a.out, "%s: nothing heard yet\n", where)
	case s.Missing && len(s.List) > 0:
		fmt.Fprintf(a.out, "%s: %s; what is known of them stays in force\n", where, a.alarm("THE PATH IS GONE"))
	}
	if s.Error != "" {
		fmt.Fprintf(a.out, "%s: %s: %s\n", where, a.alarm("NOT KEPT"), s.Error)
	}
	for _, b := range s.Bad {
		former := ""
		if b.Former {
			former = "; what it was before counts still"
		}
		fmt.Fprintf(a.out, "%s: %s is of no use: %s%s\n", where, printable(b.Node), printable(b.Reason), former)
	}
	for _, o := range s.List {
		if o.Ended || o.Servers == 0 {
			continue
		}
		fmt.Fprintf(a.out, "override %s: %s, %s%s\n", printable(o.Target()), o.Does(), overrideNote(now, o), overrideAuthor(o))
	}
}

func overrideNote(now time.Time, o agent.OverrideStatus) string {
	note := fmt.Sprintf("%d servers", o.Servers)
	if o.Servers == 1 {
		note = "1 server"
	}
	if !o.Applied {
		note += ", not applied yet"
	}
	if o.Until != nil {
		note += ", ends in " + age(*o.Until, now)
	}
	return note
}

func overrideAuthor(o agent.OverrideStatus) string {
	text := ""
	if o.Author != "" {
		text = ", by " + printable(o.Author)
	}
	if o.Reason != "" {
		text += ": " + printable(o.Reason)
	}
	return text
}
