package discovery

import (
	"os"
	"path/filepath"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
)

func TestStoreListsWhatIsKept(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "snapshots")
	s := Store{Dir: dir, Owner: "/etc/a.toml"}
	none, err := s.List()
	require.NoError(t, err)
	require.Empty(t, none, "a folder that does not exist")

	e, err := ParseEndpoint("10.0.0.1", 80)
	require.NoError(t, err)
	read := time.Date(2026, 1, 2, 3, 4, 5, 0, time.UTC)
	asOf := read.Add(time.Hour)
	require.NoError(t, s.Save(Snapshot{Service: "web", At: read, Instances: []Instance{{Endpoint: e, Node: "n"}}}, "zookeeper zk1:2181 /web", asOf))
	require.NoError(t, Store{Dir: dir, Owner: "other"}.Save(Snapshot{Service: "mail", At: read, Missing: true}, "zookeeper zk1:2181 /mail", asOf))
	require.NoError(t, os.WriteFile(filepath.Join(dir, "x.snapshot"), []byte("hello"), 0o600))
	require.NoError(t, os.WriteFile(filepath.Join(dir, "notes"), nil, 0o600))
	whole, err := os.ReadFile(s.path("web", "zookeeper zk1:2181 /web"))
	require.NoError(t, err)
	require.NoError(t, os.WriteFile(filepath.Join(dir, "copy.snapshot"), whole, 0o600)) // a copy by hand would count twice

	kept, err := s.List()
	require.NoError(t, err)
	for i := range kept {
		require.True(t, kept[i].AsOf.Equal(asOf), "%v", kept[i].AsOf)
		kept[i].AsOf = time.Time{}
	}
	require.Equal(t, []Kept{
		{Service: "mail", Origin: "zookeeper zk1:2181 /mail", Owner: "other", Missing: true, Read: read},
		{Service: "web", Origin: "zookeeper zk1:2181 /web", Owner: "/etc/a.toml", Instances: 1, Read: read},
	}, kept)

	require.NoError(t, os.Remove(filepath.Join(dir, "notes")))
	file := filepath.Join(t.TempDir(), "file")
	require.NoError(t, os.WriteFile(file, nil, 0o600))
	_, err = Store{Dir: file}.List()
	require.Error(t, err)
}
