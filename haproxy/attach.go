package haproxy

import "net/netip"

// idReach is how many ids behind the one that its address gives a server of ours may have another: ids that are taken
// are stepped over, one or two even among ten thousand servers, and an add is tried again with the ids that follow.
const idReach = 2 * idTries

// Made tells whether a server found in HAProxy can only have been made by us: it has our kind of name (see Owned) and
// the id that its address gives, or one close behind. HAProxy itself numbers servers from 1 on, so that a server that
// people wrote passes once in 30,000 times, if its name is of our kind at all.
func Made(s Server) bool {
	return Owned(s) && s.ID >= 1 && s.ID <= MaxID && (s.ID-idOf(s)+MaxID)%MaxID <= idReach
}

// Owns tells whether a server found in HAProxy is ours to change and to remove.
func (v View) Owns(k Key, s Server) bool {
	return Owned(s) && !v.Foreign[k] && (!v.Attached || v.Mine[k] || Made(s) || IsSlot(s))
}

// served tells whether a server that people wrote has the address of a wanted one: then nothing is missing, and a
// second server with that address would only get it twice the traffic. How much it gets is for those people to say.
func (d *backendDiff) served(w *Server) bool {
	if !d.view.Attached {
		return false
	}
	if d.theirs == nil {
		all, ok := d.view.Whole[d.backend]
		if !ok {
			all = d.found
		}
		d.theirs = map[netip.AddrPort]bool{}
		for i := range all {
			if s := &all[i]; s.Addr.IsValid() && !d.view.Owns(d.key(s), *s) && !d.view.Foreign[d.key(s)] {
				d.theirs[canonical(s.Addr)] = true
			}
		}
	}
	return d.theirs[canonical(w.Addr)]
}
