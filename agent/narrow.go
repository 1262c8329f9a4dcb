package agent

import "github.com/myelin-sd/myelin/haproxy"

// reach is how many departed entries in a row a walk along two lists of nearly the same order steps over. A longer run
// is no error: what lies behind it is looked at as if it were new.
const reach = 64

// narrow leaves out the servers of a backend about which nothing has changed since before was what was wanted and
// HAProxy confirmed it, so that a join costs the same beside ten thousand others. Of what remains, the plan is that
// of the whole backend, but that it may call an add the first of an empty backend.
func narrow(found, wanted, before []haproxy.Server) (foundPart, wantedPart []haproxy.Server) {
	changed := map[string]bool{}
	at := 0
	for i := range wanted {
		j := at
		for j < len(before) && j < at+reach && before[j].Name != wanted[i].Name {
			j++
		}
		if j == len(before) || j == at+reach {
			changed[wanted[i].Name] = true
			continue
		}
		for ; at < j; at++ {
			changed[before[at].Name] = true
		}
		at = j + 1
		if !sameServer(before[j], wanted[i]) {
			changed[wanted[i].Name] = true
		}
	}
	for ; at < len(before); at++ {
		changed[before[at].Name] = true
	}
	for _, s := range wanted {
		if changed[s.Name] {
			wantedPart = append(wantedPart, s)
		}
	}
	for _, s := range found {
		if base, _ := haproxy.Generation(s.Name); changed[base] {
			foundPart = append(foundPart, s)
		}
	}
	return foundPart, wantedPart
}
