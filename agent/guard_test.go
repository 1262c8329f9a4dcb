package agent

import (
	"cmp"
	"fmt"
	"maps"
	"os"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	"pgregory.net/rapid"

	"github.com/myelin-sd/myelin/config"
	"github.com/myelin-sd/myelin/discovery"
)

// guarded is a service with the guard that a file without the key leads to.
func guarded() config.Service {
	s := serviceNamed("svc")
	s.Guard = config.Guard{Enabled: true, MaxDropPercent: 50, HoldFor: time.Hour}
	return s
}

// numbered is the instance with a number, as in the words of the tests: "3" is "i3@10.0.0.3:80".
func numbered(n int) discovery.Instance {
	e, err := discovery.ParseEndpoint(fmt.Sprintf("10.0.%d.%d", n/250, n%250+1), 80)
	if err != nil {
		panic(err)
	}
	return discovery.Instance{Endpoint: e, Name: fmt.Sprintf("i%d", n), Node: fmt.Sprintf("i%d_1", n)}
}

// fleet reads "1-4 6!": instances by number, those with an exclamation mark leaving.
func fleet(words string) []discovery.Instance {
	var out []discovery.Instance
	for _, w := range strings.Fields(words) {
		span, leaving := strings.CutSuffix(w, "!")
		from, to, isSpan := strings.Cut(span, "-")
		first, _ := strconv.Atoi(from)
		last := first
		if isSpan {
			last, _ = strconv.Atoi(to)
		}
		for n := first; n <= last; n++ {
			in := numbered(n)
			in.Leaving = leaving
			out = append(out, in)
		}
	}
	slices.SortFunc(out, discovery.Compare)
	return out
}

// spans writes instances as fleet reads them.
func spans(instances []discovery.Instance) string {
	var numbers []int
	for _, in := range instances {
		n, _ := strconv.Atoi(strings.TrimPrefix(in.Name, "i"))
		numbers = append(numbers, n)
	}
	slices.Sort(numbers)
	var words []string
	for i := 0; i < len(numbers); {
		j := i
		for j+1 < len(numbers) && numbers[j+1] == numbers[j]+1 {
			j++
		}
		if i == j {
			words = append(words, strconv.Itoa(numbers[i]))
		} else {
			words = append(words, fmt.Sprintf("%d-%d", numbers[i], numbers[j]))
		}
		i = j + 1
	}
	return strings.Join(words, " ")
}

// guardBegan is when the stories of these tests begin.
var guardBegan = time.Date(2026, 1, 2, 3, 4, 5, 0, time.UTC)

// guardStory plays what happens to a view, one line each, and writes what follows from it.
type guardStory struct {
	t    *testing.T
	view view
	now  time.Time
	tree int64
}

func newStory(t *testing.T, s config.Service) *guardStory {
	return &guardStory{t: t, view: newView(s), now: guardBegan, tree: 100}
}

// play carries out one line:
//
//	lists 1-4 6!     the registry lists these; those with ! leave
//	missing          the path does not exist
//	older 1-4        the registry lists these, in an older state
//	after 61s        time passes
//	returns 4s       the session comes back, with this timeout
//	away             the session is lost
//	down 3 of 4      HAProxy's checks say that 3 is down, and 4 servers are up
//	release          an operator releases the holds
//	restart          another process goes on with what is on disk
func (s *guardStory) play(line string) {
	s.t.Helper()
	verb, rest, _ := strings.Cut(strings.TrimSpace(line), " ")
	v := s.view
	v.news = nil
	switch verb {
	case "lists", "missing", "older":
		s.tree++
		if verb == "older" {
			s.tree -= 50
		}
		snap := discovery.Snapshot{Service: "svc", Missing: verb == "missing", At: s.now}
		if verb != "missing" {
			snap.Tree, snap.Instances = discovery.Tree{Created: 1, Children: s.tree}, fleet(rest)
		}
		v = v.next(snap, s.now)
	case "after":
		d, err := time.ParseDuration(rest)
		require.NoError(s.t, err)
		s.now = s.now.Add(d)
		v = v.pass(s.now)
	case "returns":
		d, err := time.ParseDuration(rest)
		require.NoError(s.t, err)
		v.contact = contact{since: s.now, timeout: d}
	case "away":
		v.contact = contact{away: true, since: s.now}
	case "down":
		who, up, _ := strings.Cut(rest, " of ")
		n, err := strconv.Atoi(up)
		require.NoError(s.t, err)
		down := map[discovery.Endpoint]bool{}
		for _, in := range fleet(who) {
			down[in.Endpoint] = true
		}
		v = v.see(down, n, s.now)
	case "release":
		v = v.release(s.now)
	case "restart":
		basis, c := v.basis, v.contact
		v = newView(v.service)
		v.contact = c
		v = v.restore(basis, s.now, s.now)
	default:
		s.t.Fatalf("no such line: %q", line)
	}
	s.view = v
}

// state writes what is in force, and what of it is held: "1-4 held 3 4: reason".
func (s *guardStory) state() string {
	out := cmp.Or(spans(s.view.active), "none")
	if !s.view.known {
		out = "unknown"
	}
	if held := spans(s.view.guard.held()); held != "" {
		out += " held " + held
	}
	return out
}

// decided writes what the last step decided: "held 3-4, returned 5".
func (s *guardStory) decided() string {
	var words []string
	for _, d := range s.view.news {
		words = append(words, d.what+" "+spans(d.instances))
	}
	return strings.Join(words, ", ")
}

// TestGuard tells stories: a line that happens, and behind the arrow what is in force then, and behind the slash what was
// decided.
func TestGuard(t *testing.T) {
	with := func(edit func(*config.Service)) config.Service {
		s := guarded()
		edit(&s)
		return s
	}
	for _, tc := range []struct {
		name    string
		service config.Service
		story   string
	}{
		{"joins at once, a silent loss of few at once", guarded(), `
			lists 1-10        -> 1-10
			lists 1-12        -> 1-12
			lists 1-9 12      -> 1-9 12 / believed 10-11`},
		{"1 of 2, and then the other", guarded(), `
			lists 1-2         -> 1-2
			lists 1           -> 1 / believed 2
			lists             -> 1 held 1 / held 1`},
		{"1 of 3, and another within the minute", guarded(), `
			lists 1-3         -> 1-3
			lists 1-2         -> 1-2 / believed 3
			after 30s         -> 1-2
			lists 1           -> 1-2 held 2 / held 2`},
		{"1 of 3, and another after the minute", guarded(), `
			lists 1-3         -> 1-3
			lists 1-2         -> 1-2 / believed 3
			after 61s         -> 1-2
			lists 1           -> 1 / believed 2`},
		{"more than half, in steps within a minute", guarded(), `
			lists 1-100       -> 1-100
			lists 1-80        -> 1-80 / believed 81-100
			after 5s          -> 1-80
			lists 1-50        -> 1-50 / believed 51-80
			after 5s          -> 1-50
			lists 1-40        -> 1-50 held 41-50 / held 41-50
			after 59m59s      -> 1-50 held 41-50
			after 1s          -> 1-40 / expired 41-50`},
		{"scaled from 100 to 1 on purpose", guarded(), `
			lists 1-100       -> 1-100
			lists 1-40 41-100!  -> 1-40 / left 41-100
			lists 1-40        -> 1-40
			lists 1 2-40!     -> 1 / left 2-40
			lists 1           -> 1`},
		{"the last one leaves on purpose, and its successor comes", guarded(), `
			lists 1           -> 1
			lists 1!          -> 1 held 1 / held 1
			lists             -> 1 held 1
			after 2h          -> 1 held 1
			lists 2           -> 2 / left 1`},
		{"wiped, and the registrars come back", guarded(), `
			lists 1-4         -> 1-4
			missing           -> 1-4 held 1-4 / held 1-4
			after 5h          -> 1-4 held 1-4
			older 3           -> 1-4 held 1-2 4 / returned 3
			after 59m         -> 1-4 held 1-2 4
			lists 1 3         -> 1-4 held 2 4 / returned 1
			lists 1-3         -> 1-4 held 4 / returned 2
			after 1m          -> 1-3 / expired 4`},
		{"a held one that comes back only to go on purpose", guarded(), `
			lists 1-4         -> 1-4
			lists 1           -> 1-4 held 2-4 / held 2-4
			lists 1 2!        -> 1 3-4 held 3-4 / left 2
			lists 1           -> 1 3-4 held 3-4`},
		{"below min_backends", with(func(s *config.Service) { s.Guard.MinBackends = 3 }), `
			lists 1-4         -> 1-4
			lists 1-3         -> 1-3 / believed 4
			after 61s         -> 1-3
			lists 1-2         -> 1-3 held 3 / held 3
			lists 1 2!        -> 1 3 held 3 / left 2`},
		{"max_drop_percent = 0 holds every one", with(func(s *config.Service) { s.Guard.MaxDropPercent = 0 }), `
			lists 1-100       -> 1-100
			lists 1-99        -> 1-100 held 100 / held 100`},
		{"max_drop_percent = 100 holds only all", with(func(s *config.Service) { s.Guard.MaxDropPercent = 100 }), `
			lists 1-100       -> 1-100
			lists 1           -> 1 / believed 2-100
			lists             -> 1 held 1 / held 1`},
		{"hold_for = 0 has no end in time", with(func(s *config.Service) { s.Guard.HoldFor = 0 }), `
			lists 1-3         -> 1-3
			lists 1           -> 1-3 held 2-3 / held 2-3
			after 999h        -> 1-3 held 2-3
			release           -> 1 / released 2-3`},
		{"another tree in one step", guarded(), `
			lists 1-3         -> 1-3
			lists 4-6         -> 1-6 held 1-3 / held 1-3`},
		{"an older state: few are held too, once", guarded(), `
			lists 1-10        -> 1-10
			older 1-9         -> 1-10 held 10 / held 10
			lists 1-8         -> 1-8 10 held 10 / believed 9
			lists 1-10        -> 1-10 / returned 10`},
		{"the session comes back: a loss waits for a session timeout and is judged then", guarded(), `
			lists 1-10        -> 1-10
			returns 20s       -> 1-10
			lists 1-9         -> 1-10 held 10 / held 10
			after 10s         -> 1-10 held 10
			lists 1-8         -> 1-10 held 9-10 / held 9
			after 10s         -> 1-9 held 9 / believed 10
			lists 1-9         -> 1-9 / returned 9`},
		{"the session comes back, and most are gone", guarded(), `
			lists 1-10        -> 1-10
			returns 4s        -> 1-10
			lists 1-7         -> 1-10 held 8-10 / held 8-10
			lists 1-4         -> 1-10 held 5-10 / held 5-7
			after 4s          -> 1-10 held 5-10 / held 8-10
			after 1h          -> 1-4 / expired 5-10`},
		{"nobody goes while the registry is away, nor just after", guarded(), `
			lists 1-3         -> 1-3
			lists 1           -> 1-3 held 2-3 / held 2-3
			away              -> 1-3 held 2-3
			after 5h          -> 1-3 held 2-3
			returns 4s        -> 1-3 held 2-3
			after 3s          -> 1-3 held 2-3
			lists 1-2         -> 1-3 held 3 / returned 2
			after 1s          -> 1-2 / expired 3`},
		{"HAProxy sees one down, but never all", guarded(), `
			lists 1-4         -> 1-4
			lists             -> 1-4 held 1-4 / held 1-4
			down 1-4 of 0     -> 1-4 held 1-4
			down 2 of 0       -> 1-4 held 1-4
			down 2 of 3       -> 1 3-4 held 1 3-4 / down 2
			down 1 3-4 of 1   -> 1 3-4 held 1 3-4
			lists 2           -> 1-4 held 1 3-4`},
		{"released while the registry lists nothing", guarded(), `
			lists 1-4         -> 1-4
			missing           -> 1-4 held 1-4 / held 1-4
			release           -> none / released 1-4
			lists             -> none
			missing           -> none
			lists 1           -> 1
			lists             -> 1 held 1 / held 1`},
		{"released when nothing was ever known", guarded(), `
			lists             -> unknown
			release           -> none / released
			lists 1           -> 1`},
		{"use_previous_backends = false believes an empty registry, and little else", with(func(s *config.Service) { s.UsePreviousBackends = false }), `
			lists 1-4         -> 1-4
			lists 1           -> 1-4 held 2-4 / held 2-4
			lists             -> none / believed 1-4
			lists 1           -> 1`},
		{"off: only an empty registry is not believed", with(func(s *config.Service) { s.Guard = config.Guard{} }), `
			lists 1-4         -> 1-4
			lists 1           -> 1 / left 2-4
			lists             -> 1 held 1 / held 1
			lists 2           -> 2 / left 1`},
		{"a restart goes on with a hold", guarded(), `
			lists 1-4         -> 1-4
			lists 1           -> 1-4 held 2-4 / held 2-4
			after 30m         -> 1-4 held 2-4
			restart           -> 1-4 held 2-4
			after 1h          -> 1-4 held 2-4
			lists 1-2         -> 1-4 held 3-4 / returned 2
			after 1s          -> 1-2 / expired 3-4`},
		{"a restart against a wiped registry", guarded(), `
			lists 1-4         -> 1-4
			restart           -> 1-4
			missing           -> 1-4 held 1-4 / held 1-4
			restart           -> 1-4 held 1-4
			missing           -> 1-4 held 1-4
			older 4           -> 1-4 held 1-3 / returned 4`},
		{"a restart knows an older state", guarded(), `
			lists 1-4         -> 1-4
			restart           -> 1-4
			older 1-3         -> 1-4 held 4 / held 4`},
	} {
		t.Run(tc.name, func(t *testing.T) {
			s := newStory(t, tc.service)
			for line := range strings.Lines(tc.story) {
				happens, want, found := strings.Cut(line, "->")
				if !found {
					continue
				}
				s.play(happens)
				got := s.state()
				if d := s.decided(); d != "" {
					got += " / " + strings.TrimSpace(d)
				}
				require.Equal(t, strings.TrimSpace(want), got, "after %q", strings.TrimSpace(happens))
			}
		})
	}
}

// TestGuardTable: the table of the documentation is true. Its rows have what is in force, what the registry lists then,
// and what follows.
func TestGuardTable(t *testing.T) {
	text, err := os.ReadFile("../docs/guard.md")
	require.NoError(t, err)
	rows := regexp.MustCompile(`(?m)^\| (\d+) \| (\d+) \| (\d+) \| [^|]* \| (\d+) \| (\d+) \| `).FindAllStringSubmatch(string(text), -1)
	require.Greater(t, len(rows), 8)
	number := func(s string) int { n, _ := strconv.Atoi(s); return n }
	for _, r := range rows {
		before, left, gone, force, held := number(r[1]), number(r[2]), number(r[3]), number(r[4]), number(r[5])
		s := newStory(t, guarded())
		s.play(fmt.Sprintf("lists 1-%d", before))
		words := ""
		if stay := before - left - gone; stay > 0 {
			words = fmt.Sprintf("1-%d", stay)
		}
		for n := before - left + 1; n <= before; n++ {
			words += fmt.Sprintf(" %d!", n)
		}
		s.play("lists " + words)
		require.Len(t, s.view.active, force, r[0])
		require.Len(t, s.view.guard.holds, held, r[0])
	}
}

// TestGuardReasons: a hold says why, since when and until when.
func TestGuardReasons(t *testing.T) {
	s := newStory(t, guarded())
	s.play("lists 1-10")
	s.play("after 1h")
	s.play("lists 1-4")
	require.Equal(t, heldDrop, s.view.held)
	require.Equal(t, s.now, s.view.since)
	st := guardStatus(s.view)
	require.Equal(t, 6, st.Held)
	require.Equal(t, map[string]uint64{decidedHeld: 6}, st.Decided)
	require.Len(t, st.Holds, 1)
	require.Equal(t, heldDrop, st.Holds[0].Reason)
	require.Equal(t, s.now.Add(time.Hour), *st.Holds[0].Until)
	require.Len(t, st.Holds[0].Instances, 6)
	require.Contains(t, st.Holds[0].Instances, numbered(5).Endpoint.String())

	began := s.now
	s.play("after 10m")
	s.play("restart")
	require.Equal(t, heldDrop, s.view.held)
	require.True(t, began.Equal(s.view.since), "the hold goes on")
	s.play("missing")
	require.Equal(t, heldMissing, s.view.held)
	for _, h := range guardStatus(s.view).Holds {
		require.Nil(t, h.Until, "time ends nothing while the registry lists nothing")
	}

	waits := newStory(t, guarded())
	waits.play("lists 1-10")
	waits.play("returns 20s")
	waits.play("lists 1-9")
	require.Equal(t, heldWaits, waits.view.held)
	h := guardStatus(waits.view).Holds[0]
	require.False(t, h.Judged)
	require.Equal(t, waits.now.Add(20*time.Second), *h.Until)
}

// TestGuardKeepsToItself: whoever registers at the address of a lost instance is that instance, and labels that change
// are no loss.
func TestGuardKeepsToItself(t *testing.T) {
	service := guarded()
	service.Discovery.LabelFilters = []config.LabelFilter{{Label: "az", Value: "a", Condition: "equals"}}
	at := func(words ...string) discovery.Snapshot {
		snap := discoverySnapshot(t, words...)
		return snap
	}
	v := newView(service).next(at("a@10.0.0.1:80,az=a", "b@10.0.0.2:80,az=a", "c@10.0.0.3:80,az=a"), guardBegan)
	renamed := v.next(at("x@10.0.0.1:80,az=a", "y@10.0.0.2:80,az=a", "z@10.0.0.3:80,az=a"), guardBegan)
	require.Equal(t, "x@10.0.0.1:80 y@10.0.0.2:80 z@10.0.0.3:80", endpoints(renamed.active))
	require.Empty(t, renamed.guard.holds)

	moved := v.next(at("a@10.0.0.1:80,az=a", "b@10.0.0.2:80,az=b", "c@10.0.0.3:80,az=b"), guardBegan)
	require.Equal(t, "a@10.0.0.1:80", endpoints(moved.active), "they say themselves that they are elsewhere")
	all := v.next(at("a@10.0.0.1:80,az=b", "b@10.0.0.2:80,az=b", "c@10.0.0.3:80,az=b"), guardBegan)
	require.Equal(t, "a@10.0.0.1:80 b@10.0.0.2:80 c@10.0.0.3:80", endpoints(all.active), "but filters empty nothing")
	require.Equal(t, heldFiltered, all.held)

	held := v.next(at("a@10.0.0.1:80,az=a"), guardBegan)
	require.Len(t, held.guard.holds, 2)
	service.Discovery.LabelFilters[0].Value = "b"
	carried := held.carry(service, guardBegan)
	require.Equal(t, "a@10.0.0.1:80", endpoints(carried.guard.held()), "what does not pass new filters is not held on; what is listed stays, as with all filters that leave nothing")
	require.Equal(t, heldFiltered, carried.held)
}

// TestGuardProperties plays any events on a guard and a plain model beside it.
func TestGuardProperties(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		s := guarded()
		s.Guard.MaxDropPercent = rapid.IntRange(0, 100).Draw(t, "percent")
		s.Guard.MinBackends = rapid.IntRange(0, 5).Draw(t, "least")
		s.Guard.Enabled = rapid.IntRange(0, 9).Draw(t, "on") > 0
		s.UsePreviousBackends = rapid.IntRange(0, 9).Draw(t, "previous") > 0
		v := newView(s)
		now := guardBegan
		tree := int64(1000)
		for range rapid.IntRange(1, 30).Draw(t, "events") {
			before := v
			v.news = nil
			switch what := rapid.SampledFrom([]string{"lists", "lists", "lists", "passes", "sees", "session", "restart", "release"}).Draw(t, "event"); what {
			case "lists":
				tree += rapid.Int64Range(-3, 9).Draw(t, "tree")
				snap := discovery.Snapshot{Tree: discovery.Tree{Created: 1, Children: tree}, Instances: drawFleet(t)}
				if rapid.IntRange(0, 9).Draw(t, "missing") == 0 {
					snap = discovery.Snapshot{Missing: true}
				}
				v = v.next(snap, now)
				checkHeard(t, before, v, snap, now)
			case "passes":
				now = now.Add(time.Duration(rapid.Int64Range(0, int64(2*time.Hour)).Draw(t, "time")))
				v = v.pass(now)
				checkPassed(t, before, v, now)
			case "sees":
				down := map[discovery.Endpoint]bool{}
				for _, in := range drawFleet(t) {
					down[in.Endpoint] = true
				}
				up := rapid.IntRange(0, 3).Draw(t, "up")
				v = v.see(down, up, now)
				for _, in := range missing(before.guard.held(), v.guard.held()) {
					if !down[in.Endpoint] || up == 0 || before.fromDisk() {
						t.Fatalf("%s was let go without a reason", in.Endpoint)
					}
				}
			case "session":
				v.contact = contact{away: rapid.Bool().Draw(t, "away"), since: now, timeout: 4 * time.Second}
			case "restart":
				if v.known {
					c := v.contact
					v = newView(s)
					v.contact = c
					v = v.restore(before.basis, now, now)
					if spans(v.active) != spans(before.active) || spans(v.guard.held()) != spans(before.guard.held()) {
						if len(before.active) > 0 {
							t.Fatalf("%s held %s became %s held %s", spans(before.active), spans(before.guard.held()), spans(v.active), spans(v.guard.held()))
						}
					}
				}
			case "release":
				v = v.release(now)
				if len(v.guard.holds) > 0 {
					t.Fatalf("held after a release: %s", spans(v.guard.held()))
				}
			}
			checkGuard(t, before, v)
		}
	})
}

func drawFleet(t *rapid.T) []discovery.Instance {
	var out []discovery.Instance
	for n := range 8 {
		switch rapid.SampledFrom([]string{"there", "there", "there", "gone", "leaving"}).Draw(t, "instance") {
		case "there":
			out = append(out, numbered(n))
		case "leaving":
			in := numbered(n)
			in.Leaving = true
			out = append(out, in)
		}
	}
	return out
}

func endpointSet(lists ...[]discovery.Instance) map[discovery.Endpoint]bool {
	out := map[discovery.Endpoint]bool{}
	for _, l := range lists {
		for _, in := range l {
			out[in.Endpoint] = true
		}
	}
	return out
}

// checkGuard holds after every event.
func checkGuard(t *rapid.T, before, v view) {
	listed, held := endpointSet(v.guard.listed), endpointSet(v.guard.held())
	for e := range held {
		if listed[e] {
			t.Fatalf("%s is both listed and held", e)
		}
	}
	if v.known && !maps.Equal(endpointSet(v.active), endpointSet(v.guard.listed, v.guard.held())) && len(v.guard.listed)+len(v.guard.holds) > 0 {
		t.Fatalf("in force is %s, not %s and %s", spans(v.active), spans(v.guard.listed), spans(v.guard.held()))
	}
	// Who left what is in force was decided about.
	if !v.fromDisk() {
		told := map[discovery.Endpoint]bool{}
		for _, d := range v.news {
			for _, in := range d.instances {
				told[in.Endpoint] = true
			}
		}
		for _, in := range missing(before.active, v.active) {
			if !told[in.Endpoint] {
				t.Fatalf("%s went without a decision", in.Endpoint)
			}
		}
	}
}

// checkHeard: what the registry lists is in force at once, who leaves is not, and what is lost against the rules stays.
func checkHeard(t *rapid.T, before, v view, snap discovery.Snapshot, now time.Time) {
	found := staying(snap.Instances)
	active := endpointSet(v.active)
	for _, in := range found {
		if !active[in.Endpoint] {
			t.Fatalf("%s is listed and not in force", in.Endpoint)
		}
	}
	if !v.service.Guard.Enabled || len(found) == 0 && !v.service.UsePreviousBackends {
		return
	}
	if len(found) == 0 {
		if len(before.active) > 0 && !before.guard.released && spans(v.active) != spans(before.active) {
			t.Fatalf("an empty registry took %s of %s", spans(missing(before.active, v.active)), spans(before.active))
		}
		return
	}
	for _, in := range snap.Instances {
		if in.Leaving && active[in.Endpoint] {
			t.Fatalf("%s leaves and is in force", in.Endpoint)
		}
	}
	registered := endpointSet(snap.Instances)
	var silent []discovery.Instance
	for _, in := range missing(before.active, v.active) {
		if !registered[in.Endpoint] {
			silent = append(silent, in)
		}
	}
	if len(silent) == 0 || before.fromDisk() && !before.guard.heard {
		return
	}
	for _, in := range silent {
		for _, h := range before.guard.holds {
			if h.instance.Endpoint == in.Endpoint && h.loss == lossSilent {
				t.Fatalf("%s was held, and went with a list that does not have it", in.Endpoint)
			}
		}
	}
	believed := 0
	for _, d := range v.news {
		if d.what == decidedBelieved {
			believed += len(d.instances)
		}
	}
	switch {
	case believed == 0:
	case v.contact.recovering(now):
		t.Fatalf("%s went while the registry comes back", spans(silent))
	case len(found) < v.service.Guard.MinBackends:
		t.Fatalf("%s went, and fewer than min_backends are left", spans(silent))
	case believed*100 > v.service.Guard.MaxDropPercent*(len(before.active)+len(before.guard.lost)):
		t.Fatalf("%d of %d went", believed, len(before.active))
	case before.guard.tree.Newer(snap.Tree):
		t.Fatalf("%s went with an older state", spans(silent))
	}
}

// checkPassed: time takes nothing away while the registry says nothing, and no hold before its time.
func checkPassed(t *rapid.T, before, v view, now time.Time) {
	for _, in := range missing(before.active, v.active) {
		if before.fromDisk() || before.contact.away || len(before.guard.listed) == 0 {
			t.Fatalf("%s went while the registry said nothing", in.Endpoint)
		}
		for _, h := range before.guard.holds {
			if h.instance.Endpoint == in.Endpoint && (h.until.IsZero() || now.Before(h.until)) {
				t.Fatalf("%s went before its time", in.Endpoint)
			}
		}
	}
	for _, h := range v.guard.holds {
		if !h.until.IsZero() && !now.Before(h.until) && v.contact.settled(now) && len(v.guard.listed) > 0 && !v.fromDisk() {
			t.Fatalf("%s is held beyond its time", h.instance.Endpoint)
		}
	}
}
