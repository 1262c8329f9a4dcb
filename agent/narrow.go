package agent

import (
	"strings"

	"github.com/myelin-sd/myelin/haproxy"
)

// reach is how many departed entries in a row a walk along two lists of nearly the same order steps over. A longer run
// is no error: what lies behind it is looked at as if it were new.
const reach = 64

// narrow leaves out the servers of a backend about which nothing has changed since before was what was wanted and
// HAProxy confirmed it, so that a join costs the same beside ten thousand others. Of what remains, the plan is that
// of the whole backend, but that it may call an add the first of an empty backend.
func narrow(found, wanted, before []haproxy.Server) (foundPart, wantedPart []haproxy.Server) {
	var changed nameSet
	add := func(s *haproxy.Server) {
		changed.add(s.Name)
		wantedPart = append(wantedPart, *s)
	}
	at := 0
	for i := range wanted {
		j := at
		for j < len(before) && j < at+reach && before[j].Name != wanted[i].Name {
			j++
		}
		if j == len(before) || j == at+reach {
			add(&wanted[i])
			continue
		}
		for ; at < j; at++ {
			changed.add(before[at].Name)
		}
		at = j + 1
		if !sameServer(&before[j], &wanted[i]) {
			add(&wanted[i])
		}
	}
	for ; at < len(before); at++ {
		changed.add(before[at].Name)
	}
	for i := range found {
		if changed.hasGeneration(found[i].Name) {
			foundPart = append(foundPart, found[i])
		}
	}
	return foundPart, wantedPart
}

// nameSet is a set of names that is cheap to ask while it is small: it is asked for each of ten thousand.
type nameSet struct {
	few  []string
	many map[string]bool // once they are more
}

func (s *nameSet) add(name string) {
	switch {
	case s.many != nil:
		s.many[name] = true
	case s.has(name):
	case len(s.few) < 4:
		s.few = append(s.few, name)
	default:
		s.many = map[string]bool{name: true}
		for _, n := range s.few {
			s.many[n] = true
		}
	}
}

func (s *nameSet) has(name string) bool {
	if s.many != nil {
		return s.many[name]
	}
	for _, n := range s.few {
		if n == name {
			return true
		}
	}
	return false
}

// hasGeneration tells whether the base of a server object's name is in the set. Few names begin as one of a few does, so
// that most are not taken apart.
func (s *nameSet) hasGeneration(object string) bool {
	if s.many != nil {
		base, _ := haproxy.Generation(object)
		return s.many[base]
	}
	for _, n := range s.few {
		if strings.HasPrefix(object, n) {
			if base, _ := haproxy.Generation(object); base == n {
				return true
			}
		}
	}
	return false
}
