package registrar

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"slices"
	"strings"
	"sync"

	"github.com/myelin-sd/myelin/discovery"
)

var (
	errRefusedByFake = errors.New("not now")
	errLost          = errors.New("connection lost")
)

// fault is what happens to a request.
type fault int

const (
	none    fault = iota
	refused       // fails without effect
	lost          // is carried out, but the answer is lost
)

// fakeDirectory behaves as ZooKeeper does, as far as the registrar can tell: sessions own nodes, answers get lost, and
// while it is away requests block.
type fakeDirectory struct {
	mu        sync.Mutex
	nodes     map[string]fakeNode // by full path
	session   int
	number    int
	faults    []fault       // of the next requests
	back      chan struct{} // closed when it is there again; nil: it is there
	subs      map[chan struct{}]bool
	log       []string                 // requests that were carried out, in order
	published map[string]fakeLeft      // by path and prefix
	least     int                      // fewest nodes since watch was called
	left      []discovery.Registration // by a process before
}

// fakeLeft is what publish has left.
type fakeLeft struct {
	name string
	fakeNode
}

type fakeNode struct {
	session int
	data    string
}

func (d *fakeDirectory) Publish(ctx context.Context, r discovery.Registration, node string) (discovery.Published, error) {
	var out discovery.Published
	for _, r := range r.All() {
		one, err := d.publish(ctx, r, node)
		if err != nil {
			return discovery.Published{}, err
		}
		if node = ""; out.Node == "" {
			out.Node, out.New = one.Node, one.New
		}
		out.Found = append(out.Found, one.Found...)
	}
	return out, nil
}

func (d *fakeDirectory) publish(ctx context.Context, r discovery.Registration, node string) (discovery.Published, error) {
	var found []discovery.Finding
	created := false
	made, err := d.request(ctx, func() string {
		own := d.own(r)
		found = d.find(r, own)
		defer func() { d.remember(r) }()
		if slices.Contains(own, node) { // this one is kept
			own = slices.DeleteFunc(own, func(n string) bool { return n == node })
			own = append([]string{node}, own...)
		}
		for _, surplus := range own[min(1, len(own)):] {
			d.remove(surplus)
		}
		if len(own) > 0 {
			if d.nodes[own[0]].data != string(r.Data) {
				d.note("set " + own[0] + " " + string(r.Data))
			} else {
				d.note("keep " + own[0])
			}
			d.put(own[0], string(r.Data))
			return own[0]
		}
		name := r.Path + "/" + r.Prefix
		if r.Sequential {
			d.number++
			name += fmt.Sprintf("%04d", d.number)
		}
		created = true
		d.note("create " + name + " " + string(r.Data))
		d.put(name, string(r.Data))
		return name
	})
	return discovery.Published{Node: made, New: created && len(found) == 0, Found: found}, err
}

// find compares what is there with what publish has left. The caller holds mu.
func (d *fakeDirectory) find(r discovery.Registration, own []string) []discovery.Finding {
	was, published := d.published[r.Path+"/"+r.Prefix]
	switch {
	case !published:
		return nil
	case was.session != d.session:
		return []discovery.Finding{{Reason: discovery.FoundExpired, Node: was.name}}
	case len(own) == 0:
		return []discovery.Finding{{Reason: discovery.FoundMissing, Node: was.name}}
	case d.nodes[own[0]].data != was.data:
		return []discovery.Finding{{Reason: discovery.FoundData, Node: was.name, Detail: d.nodes[own[0]].data}}
	}
	return nil
}

// remember notes what publish leaves. The caller holds mu.
func (d *fakeDirectory) remember(r discovery.Registration) {
	if d.published == nil {
		d.published = map[string]fakeLeft{}
	}
	if own := d.own(r); len(own) > 0 {
		d.published[r.Path+"/"+r.Prefix] = fakeLeft{own[0], fakeNode{d.session, string(r.Data)}}
	}
}

func (d *fakeDirectory) Withdraw(ctx context.Context, r discovery.Registration, node string) error {
	var errs []error
	for _, r := range r.All() {
		_, err := d.request(ctx, func() string {
			d.note("withdraw " + r.Path + "/" + r.Prefix)
			for _, n := range append(d.own(r), node) {
				d.remove(n)
			}
			delete(d.published, r.Path+"/"+r.Prefix)
			return ""
		})
		errs, node = append(errs, err), ""
	}
	return errors.Join(errs...)
}

func (d *fakeDirectory) Standing(r discovery.Registration) (discovery.Registration, bool) {
	for _, l := range d.left {
		if l.Path == r.Path && l.Prefix == r.Prefix {
			return l, true
		}
	}
	return discovery.Registration{}, false
}

func (d *fakeDirectory) Subscribe() (<-chan struct{}, func()) {
	c := make(chan struct{}, 1)
	d.mu.Lock()
	defer d.mu.Unlock()
	if d.subs == nil {
		d.subs = map[chan struct{}]bool{}
	}
	d.subs[c] = true
	return c, func() {
		d.mu.Lock()
		defer d.mu.Unlock()
		delete(d.subs, c)
	}
}

// request carries f out, as the next fault will have it.
func (d *fakeDirectory) request(ctx context.Context, f func() string) (string, error) {
	d.mu.Lock()
	defer d.mu.Unlock()
	for d.back != nil {
		back := d.back
		d.mu.Unlock()
		select {
		case <-back:
		case <-ctx.Done():
		}
		d.mu.Lock()
		if ctx.Err() != nil {
			return "", fmt.Errorf("no connection: %w", ctx.Err())
		}
	}
	next := none
	if len(d.faults) > 0 {
		next, d.faults = d.faults[0], d.faults[1:]
	}
	if next == refused {
		return "", errRefusedByFake
	}
	answer := f()
	if next == lost {
		return "", errLost
	}
	return answer, nil
}

// own returns the nodes of r that belong to this session. The caller holds mu.
func (d *fakeDirectory) own(r discovery.Registration) []string {
	var own []string
	for name, n := range d.nodes {
		number, ok := strings.CutPrefix(name, r.Path+"/"+r.Prefix)
		if ok && strings.Trim(number, "0123456789") == "" && n.session == d.session {
			own = append(own, name)
		}
	}
	slices.Sort(own)
	return own
}

func (d *fakeDirectory) put(name, data string) {
	if d.nodes == nil {
		d.nodes = map[string]fakeNode{}
	}
	d.nodes[name] = fakeNode{d.session, data}
}

func (d *fakeDirectory) remove(name string) {
	delete(d.nodes, name)
	d.least = min(d.least, len(d.nodes))
}

func (d *fakeDirectory) note(s string) { d.log = append(d.log, s) }

func (d *fakeDirectory) tell() {
	for c := range d.subs {
		select {
		case c <- struct{}{}:
		default:
		}
	}
}

// What tests do to it.

func (d *fakeDirectory) fail(faults ...fault) {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.faults = faults
}

func (d *fakeDirectory) goAway() {
	d.mu.Lock()
	defer d.mu.Unlock()
	if d.back == nil {
		d.back = make(chan struct{})
	}
}

func (d *fakeDirectory) comeBack() {
	d.mu.Lock()
	defer d.mu.Unlock()
	if d.back != nil {
		close(d.back)
		d.back = nil
		d.tell()
	}
}

// expire ends the session: its nodes are gone, and there is a new one.
func (d *fakeDirectory) expire() {
	d.mu.Lock()
	defer d.mu.Unlock()
	clear(d.nodes)
	d.session++
	d.tell()
}

// clear deletes all nodes, as somebody else may. Watches are lost now and then.
func (d *fakeDirectory) clear(told bool) {
	d.mu.Lock()
	defer d.mu.Unlock()
	clear(d.nodes)
	if told {
		d.tell()
	}
}

// list returns "path data" of all nodes, sorted.
func (d *fakeDirectory) list() []string {
	d.mu.Lock()
	defer d.mu.Unlock()
	all := []string{}
	for _, name := range slices.Sorted(maps.Keys(d.nodes)) {
		all = append(all, name+" "+d.nodes[name].data)
	}
	return all
}

// requests returns what was carried out since the last call.
func (d *fakeDirectory) requests() []string {
	d.mu.Lock()
	defer d.mu.Unlock()
	log := d.log
	d.log = nil
	return log
}

func (d *fakeDirectory) watchLeast() {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.least = len(d.nodes)
}

func (d *fakeDirectory) fewest() int {
	d.mu.Lock()
	defer d.mu.Unlock()
	return d.least
}
