package discovery_test

import (
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/myelin-sd/myelin/discovery"
)

const storeOrigin = "zookeeper zk1:2181 /services/user-api"

func newStore(t testing.TB) discovery.Store {
	t.Helper()
	return discovery.Store{Dir: filepath.Join(t.TempDir(), "snapshots"), Owner: "/etc/agent.toml"}
}

// storedSet has one instance of every kind.
func storedSet(t testing.TB) discovery.Snapshot {
	t.Helper()
	weight, id := 7, int64(-3)
	created := time.UnixMilli(1_700_000_000_123)
	list := []discovery.Instance{
		instance(t, "10.0.0.1", "i-1", "i-1_0000000042", map[string]any{
			"az": "a", "rank": json.Number("1.50"), "canary": true, "spot": false, "note": nil, "": "",
		}),
		instance(t, "10.0.0.2", "i-2", "base64_12_abc_0000000043", map[string]any{"az": "a"}),
		instance(t, "10.0.0.3", "", "no number", map[string]any{"az": "a"}),
		instance(t, "2001:db8::1", "six", "six_0000000044", nil),
		instance(t, "web-1.example.com", "host", "host_0000000045", nil),
	}
	list[0].Weight, list[0].Session, list[0].Created, list[0].Modified = &weight, 0x1000_0000_0000_0001, created, created.Add(time.Second)
	list[1].Session, list[1].Created, list[1].Modified = -5, created.Add(-time.Hour), created.Add(-2*time.Hour)
	list[1].ServerOptions = []string{"check", "inter", "2s"}
	list[2].ServerOptions, list[2].ServerID = []string{"check", "inter", "2s"}, 12
	list[3].ID = &id
	list[3].Modified, list[3].Leaving = created, true
	return discovery.Snapshot{Service: "user-api", Instances: list, At: created.Add(time.Minute)}
}

// theFile is the one file of a store.
func theFile(t testing.TB, s discovery.Store) string {
	t.Helper()
	files, err := filepath.Glob(filepath.Join(s.Dir, "*.snapshot"))
	require.NoError(t, err)
	require.Len(t, files, 1)
	return files[0]
}

func TestStoreReturnsWhatWasSaved(t *testing.T) {
	s := newStore(t)
	saved := storedSet(t)
	saved.Rejected = []discovery.Rejection{{Node: "bad", Reason: discovery.ReasonPort}}
	_, _, err := s.Load(saved.Service, storeOrigin)
	require.ErrorIs(t, err, fs.ErrNotExist)

	asOf := time.Now().Add(-time.Hour).Truncate(time.Millisecond)
	require.NoError(t, s.Save(saved, storeOrigin, asOf))
	got, when, err := s.Load(saved.Service, storeOrigin)
	require.NoError(t, err)
	require.True(t, when.Equal(asOf), "%s, not %s", when, asOf)
	require.True(t, got.At.Equal(saved.At))
	require.Empty(t, got.Rejected)
	saved.Rejected = nil
	require.True(t, saved.Equal(got), "%+v\n%+v", saved, got)
	for i := range saved.Instances {
		require.True(t, saved.Instances[i].Created.Equal(got.Instances[i].Created), "created of %d", i)
		require.True(t, saved.Instances[i].Modified.Equal(got.Instances[i].Modified), "modified of %d", i)
	}

	info, err := os.Stat(theFile(t, s))
	require.NoError(t, err)
	require.Equal(t, fs.FileMode(0o600), info.Mode().Perm())
	text, err := os.ReadFile(theFile(t, s))
	require.NoError(t, err)
	require.True(t, strings.HasPrefix(string(text), "myelin snapshot 1\nservice \"user-api\"\n"), "people can see what it is")
}

// TestStoreKeepsNote: words that their keeper put beside a set come back with it, and another note is another set. Files
// from before there were notes are read.
func TestStoreKeepsNote(t *testing.T) {
	s := newStore(t)
	snap := storedSet(t)
	for _, note := range []string{"", "one line\nand \"another\" é \x00", "note x", strings.Repeat("10.0.0.1:80 ", 20_000), ""} {
		snap.Note = note
		require.NoError(t, s.Save(snap, storeOrigin, time.Now()))
		got, _, err := s.Load(snap.Service, storeOrigin)
		require.NoError(t, err)
		require.Equal(t, note, got.Note)
		require.True(t, snap.Equal(got))
	}
	text, err := os.ReadFile(theFile(t, s))
	require.NoError(t, err)
	require.NotContains(t, string(text), "\nnote ", "without one the file is as it always was")

	snap.Note = strings.Repeat("10.0.0.1:80 ", 20_000)
	require.NoError(t, s.Save(snap, storeOrigin, time.Now()))
	removed, err := s.Prune(func(string, string) bool { return false })
	require.NoError(t, err)
	require.Equal(t, []string{snap.Service}, removed, "a long note does not keep a file for ever")
}

func TestStoreKeepsEmptyAndMissingSets(t *testing.T) {
	s := newStore(t)
	for _, missing := range []bool{false, true} {
		require.NoError(t, s.Save(discovery.Snapshot{Service: "s", Missing: missing}, storeOrigin, time.Now()))
		got, _, err := s.Load("s", storeOrigin)
		require.NoError(t, err)
		require.Empty(t, got.Instances)
		require.Equal(t, missing, got.Missing)
	}
}

// TestStoreTellsServicesApart: names that no file could have, or that would meet in one, and services that look
// somewhere else.
func TestStoreTellsServicesApart(t *testing.T) {
	s := newStore(t)
	names := []string{"a", "A", "a/b", "a_b", "a:b", "..", ".", "../../x", "ø", "\x00", "\xff", "a\nb", `a"b`, "",
		strings.Repeat("n", 300), strings.Repeat("n", 301)}
	origins := []string{storeOrigin, "zookeeper zk1:2181 /elsewhere"}
	snap := func(name, origin string) discovery.Snapshot {
		return discovery.Snapshot{Service: name, Instances: []discovery.Instance{
			instance(t, "10.0.0.1", "", fmt.Sprintf("%q %q", name, origin), nil)}}
	}
	for _, n := range names {
		for _, o := range origins {
			require.NoError(t, s.Save(snap(n, o), o, time.Now()))
		}
	}
	for _, n := range names {
		for _, o := range origins {
			got, _, err := s.Load(n, o)
			require.NoError(t, err, "%q", n)
			require.True(t, snap(n, o).Equal(got), "%q", n)
		}
		_, _, err := s.Load(n, "consul /services")
		require.ErrorIs(t, err, fs.ErrNotExist, "what was found elsewhere is not this service's")
	}
	above, err := os.ReadDir(filepath.Dir(s.Dir))
	require.NoError(t, err)
	require.Len(t, above, 1, "nothing is written outside the folder")
}

// TestStoreWritesOnlyWhatChanged: the same set again moves the file's time and nothing else.
func TestStoreWritesOnlyWhatChanged(t *testing.T) {
	s := newStore(t)
	snap := storedSet(t)
	first := time.Now().Add(-time.Hour).Truncate(time.Millisecond)
	require.NoError(t, s.Save(snap, storeOrigin, first))
	inode := func() uint64 {
		info, err := os.Stat(theFile(t, s))
		require.NoError(t, err)
		return info.Sys().(*syscall.Stat_t).Ino
	}
	asOf := func() time.Time {
		_, when, err := s.Load(snap.Service, storeOrigin)
		require.NoError(t, err)
		return when
	}
	// Held open, so that its inode cannot be given to another file.
	held, err := os.Open(theFile(t, s))
	require.NoError(t, err)
	defer held.Close()
	before := inode()

	again := snap
	again.Version, again.At = 9, snap.At.Add(time.Hour)
	require.NoError(t, s.Save(again, storeOrigin, first.Add(time.Minute)))
	require.Equal(t, before, inode())
	require.True(t, asOf().Equal(first.Add(time.Minute)))

	require.NoError(t, s.Confirm(snap.Service, storeOrigin, first.Add(2*time.Minute)))
	require.Equal(t, before, inode())
	require.True(t, asOf().Equal(first.Add(2*time.Minute)))
	require.ErrorIs(t, s.Confirm("another", storeOrigin, first), fs.ErrNotExist)

	for _, name := range []string{"x", "y"} { // fewer, then as many, but another
		again.Instances = slices.Clone(snap.Instances[1:])
		again.Instances[0].Name = name
		require.NoError(t, s.Save(again, storeOrigin, first))
		require.NotEqual(t, before, inode())
		got, _, err := s.Load(snap.Service, storeOrigin)
		require.NoError(t, err)
		require.True(t, again.Equal(got))
	}
}

// TestStoreNoticesDamage: a file of which any byte differs, or any number of bytes is missing, is no set.
func TestStoreNoticesDamage(t *testing.T) {
	s := newStore(t)
	snap := storedSet(t)
	require.NoError(t, s.Save(snap, storeOrigin, time.Now()))
	path := theFile(t, s)
	good, err := os.ReadFile(path)
	require.NoError(t, err)
	refused := func(what string, text []byte) {
		t.Helper()
		require.NoError(t, os.WriteFile(path, text, 0o600))
		_, _, err := s.Load(snap.Service, storeOrigin)
		require.ErrorIs(t, err, discovery.ErrCorrupt, what)
	}
	for i := range good {
		refused(fmt.Sprintf("cut at %d", i), good[:i])
		bad := slices.Clone(good)
		bad[i] ^= 1
		refused(fmt.Sprintf("bit of %d", i), bad)
	}
	refused("longer", append(slices.Clone(good), 0))

	// A whole file of another service in this one's place.
	other := snap
	other.Service = "other"
	elsewhere := newStore(t)
	require.NoError(t, elsewhere.Save(other, storeOrigin, time.Now()))
	text, err := os.ReadFile(theFile(t, elsewhere))
	require.NoError(t, err)
	refused("another service's", text)

	// No file at all: nobody waits for a pipe's writer.
	require.NoError(t, os.Remove(path))
	require.NoError(t, syscall.Mkfifo(path, 0o600))
	_, _, err = s.Load(snap.Service, storeOrigin)
	require.ErrorIs(t, err, discovery.ErrCorrupt)

	// What is of no use is put aside, and its place can be taken.
	aside, err := s.SetAside(snap.Service, storeOrigin)
	require.NoError(t, err)
	require.FileExists(t, aside)
	_, _, err = s.Load(snap.Service, storeOrigin)
	require.ErrorIs(t, err, fs.ErrNotExist)
	require.NoError(t, s.Save(snap, storeOrigin, time.Now()))
	_, _, err = s.Load(snap.Service, storeOrigin)
	require.NoError(t, err)
	_, err = s.SetAside("another", storeOrigin)
	require.ErrorIs(t, err, fs.ErrNotExist)
}

// TestStoreReplacesCorruptAndHalfWritten: a damaged file and the left-over of a crash are no obstacle.
func TestStoreReplacesCorruptAndHalfWritten(t *testing.T) {
	s := newStore(t)
	snap := storedSet(t)
	require.NoError(t, s.Save(snap, storeOrigin, time.Now()))
	path := theFile(t, s)
	require.NoError(t, os.WriteFile(path, []byte("rubbish"), 0o600))
	victim := filepath.Join(t.TempDir(), "victim")
	require.NoError(t, os.WriteFile(victim, []byte("mine"), 0o600))
	require.NoError(t, os.Symlink(victim, path+".tmp"))
	require.NoError(t, s.Save(snap, storeOrigin, time.Now()))
	got, _, err := s.Load(snap.Service, storeOrigin)
	require.NoError(t, err)
	require.True(t, snap.Equal(got))
	text, err := os.ReadFile(victim)
	require.NoError(t, err)
	require.Equal(t, "mine", string(text), "a left-over is not written through")
	require.NoFileExists(t, path+".tmp")
}

// TestStoreFailsWhole: a save that cannot be done leaves what was kept, and nothing beside it.
func TestStoreFailsWhole(t *testing.T) {
	s := newStore(t)
	snap := storedSet(t)
	require.NoError(t, s.Save(snap, storeOrigin, time.Now()))
	path := theFile(t, s)
	other := snap
	other.Instances = snap.Instances[:1]

	// A folder that is not empty stands where the new file is to be written: not even root gets past it.
	require.NoError(t, os.MkdirAll(filepath.Join(path+".tmp", "in-the-way"), 0o700))
	err := s.Save(other, storeOrigin, time.Now())
	require.ErrorContains(t, err, "save the set of service user-api: ")
	require.NoError(t, os.RemoveAll(path+".tmp"))
	got, _, err := s.Load(snap.Service, storeOrigin)
	require.NoError(t, err)
	require.True(t, snap.Equal(got))

	file := discovery.Store{Dir: path}
	require.Error(t, file.Save(snap, storeOrigin, time.Now()), "a file is in the folder's place")
	_, _, err = file.Load(snap.Service, storeOrigin)
	require.ErrorIs(t, err, syscall.ENOTDIR)
}

// TestStoreRefusesWhatItCouldNotReturn: what no decoder makes would be taken for damage when it is loaded.
func TestStoreRefusesWhatItCouldNotReturn(t *testing.T) {
	s := newStore(t)
	for what, edit := range map[string]func(*discovery.Instance){
		"no endpoint":    func(in *discovery.Instance) { in.Endpoint = discovery.Endpoint{} },
		"no node":        func(in *discovery.Instance) { in.Node = "" },
		"not safe":       func(in *discovery.Instance) { in.Name = "a b" },
		"option":         func(in *discovery.Instance) { in.ServerOptions = []string{"check", "a b"} },
		"\"\"":           func(in *discovery.Instance) { in.ServerOptions = []string{""} },
		"weight":         func(in *discovery.Instance) { in.Weight = new(int); *in.Weight = -1 },
		"negative":       func(in *discovery.Instance) { in.ServerID = -1 },
		"\"\\u00e9\" is": func(in *discovery.Instance) { in.ServerOptions = []string{"é"} },
	} {
		snap := discovery.Snapshot{Service: "s", Instances: []discovery.Instance{instance(t, "10.0.0.1", "a", "a_1", nil)}}
		edit(&snap.Instances[0])
		require.ErrorContains(t, s.Save(snap, storeOrigin, time.Now()), what)
	}
	_, _, err := s.Load("s", storeOrigin)
	require.ErrorIs(t, err, fs.ErrNotExist)
}

func TestStorePrune(t *testing.T) {
	s := newStore(t)
	removed, err := s.Prune(func(string, string) bool { return false })
	require.NoError(t, err, "there is no folder yet")
	require.Empty(t, removed)

	for _, name := range []string{"kept", "gone", "moved"} {
		require.NoError(t, s.Save(discovery.Snapshot{Service: name}, storeOrigin, time.Now()))
	}
	_, err = s.SetAside("gone", storeOrigin)
	require.NoError(t, err)
	require.NoError(t, s.Save(discovery.Snapshot{Service: "gone"}, storeOrigin, time.Now()))
	other := discovery.Store{Dir: s.Dir, Owner: "/etc/other.toml"}
	require.NoError(t, other.Save(discovery.Snapshot{Service: "others"}, storeOrigin, time.Now()))

	// Not ours, though they look it: no snapshot, a snapshot under another name, a folder.
	ours, err := filepath.Glob(filepath.Join(s.Dir, "gone-*.snapshot"))
	require.NoError(t, err)
	text, err := os.ReadFile(ours[0])
	require.NoError(t, err)
	foreign := []string{"gone-0123456789abcdef.snapshot", "copy.snapshot", "notes.txt"}
	for i, b := range [][]byte{[]byte("rubbish"), text, text} {
		require.NoError(t, os.WriteFile(filepath.Join(s.Dir, foreign[i]), b, 0o600))
	}
	require.NoError(t, os.Mkdir(filepath.Join(s.Dir, "folder.snapshot"), 0o700))

	removed, err = s.Prune(func(service, origin string) bool {
		require.Equal(t, storeOrigin, origin)
		return service == "kept"
	})
	require.NoError(t, err)
	slices.Sort(removed)
	require.Equal(t, []string{"gone", "moved"}, removed)
	left, err := os.ReadDir(s.Dir)
	require.NoError(t, err)
	var names []string
	for _, f := range left {
		if i := strings.LastIndex(f.Name(), "-"); i > 0 && !slices.Contains(foreign, f.Name()) {
			names = append(names, f.Name()[:i])
			continue
		}
		names = append(names, f.Name())
	}
	require.ElementsMatch(t, append(foreign, "folder.snapshot", "kept", "others"), names)
}

// TestStoreAtOnce: readers beside a writer see a whole set, the old one or the new one.
func TestStoreAtOnce(t *testing.T) {
	s := newStore(t)
	sets := []discovery.Snapshot{storedSet(t), storedSet(t)}
	sets[1].Instances = sets[1].Instances[:2]
	require.NoError(t, s.Save(sets[0], storeOrigin, time.Now()))
	done := make(chan error, 1)
	go func() {
		var errs []error
		for i := range 50 {
			errs = append(errs, s.Save(sets[i%2], storeOrigin, time.Now()))
		}
		done <- errors.Join(errs...)
	}()
	for {
		got, _, err := s.Load("user-api", storeOrigin)
		require.NoError(t, err)
		require.True(t, sets[0].Equal(got) || sets[1].Equal(got))
		select {
		case err := <-done:
			require.NoError(t, err)
			return
		default:
		}
	}
}

// manyStored is a service of 10,000 instances as registrars write them.
func manyStored(b *testing.B) discovery.Snapshot {
	b.Helper()
	snap := discovery.Snapshot{Service: "big", At: time.Now()}
	for i := range 10_000 {
		payload := fmt.Sprintf(`{"host":"10.%d.%d.%d","port":8080,"name":"i-%d","weight":5,"labels":{"az":"%c"},"haproxy_server_options":"check"}`,
			i>>16, i>>8&255, i&255, i, 'a'+i%3)
		in, err := discovery.DecodeNerve(fmt.Sprintf("i-%d_%010d", i, i), []byte(payload))
		if err != nil {
			b.Fatal(err)
		}
		in.Session = 0x1000_0000_0000_0000 + int64(i)*12345
		in.Created = time.UnixMilli(1_700_000_000_000 + int64(i)*777)
		in.Modified = in.Created
		snap.Instances = append(snap.Instances, in)
	}
	slices.SortFunc(snap.Instances, discovery.Compare)
	return snap
}

// BenchmarkStore works on 10,000 instances. What saving a changed set costs beyond "unchanged" is the disk's fsync.
func BenchmarkStore(b *testing.B) {
	snap := manyStored(b)
	s := newStore(b)
	if err := s.Save(snap, storeOrigin, time.Now()); err != nil {
		b.Fatal(err)
	}
	info, err := os.Stat(theFile(b, s))
	if err != nil {
		b.Fatal(err)
	}
	size := float64(info.Size())
	b.Run("save", func(b *testing.B) {
		b.ReportAllocs()
		changed := snap
		for i := 0; b.Loop(); i++ {
			changed.Instances = snap.Instances[:len(snap.Instances)-i%2]
			if err := s.Save(changed, storeOrigin, time.Now()); err != nil {
				b.Fatal(err)
			}
		}
		b.ReportMetric(size/float64(len(snap.Instances)), "B/instance")
	})
	if err := s.Save(snap, storeOrigin, time.Now()); err != nil {
		b.Fatal(err)
	}
	b.Run("unchanged", func(b *testing.B) {
		b.ReportAllocs()
		for b.Loop() {
			if err := s.Save(snap, storeOrigin, time.Now()); err != nil {
				b.Fatal(err)
			}
		}
	})
	b.Run("load", func(b *testing.B) {
		b.ReportAllocs()
		for b.Loop() {
			if got, _, err := s.Load("big", storeOrigin); err != nil || len(got.Instances) != len(snap.Instances) {
				b.Fatal(err)
			}
		}
	})
}
