package haproxy

import (
	"testing"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
)

// From 2.6.12: d1 was added at run time and has had no connection.
const conns26 = "# bkname/svname bkid/svid addr port - purge_delay used_cur used_max need_est unsafe_nb safe_nb idle_lim idle_cur idle_per_thr[2]\n" +
	"b/s0 2/1 127.0.0.1 9000 - 5000 3 7 1 0 0 -1 2 1 1\n" +
	"b/d1 2/77 127.0.0.1 9001 - 0 0 0 0 0 0 0 0\n"

func TestParseConns(t *testing.T) {
	got, err := ParseConns(conns26)
	require.NoError(t, err)
	assert.Equal(t, map[Key]Conns{{"b", "s0"}: {Used: 3, Idle: 2}, {"b", "d1"}: {}}, got)

	// 3.4 has columns in between.
	got, err = ParseConns("# bkname/svname bkid/svid addr port - purge_delay served used_cur used_max idle_sess idle_cur\n" +
		"b/s0 2/1 127.0.0.1 9000 - 5000 9 3 7 8 2\n")
	require.NoError(t, err)
	assert.Equal(t, map[Key]Conns{{"b", "s0"}: {Used: 3, Idle: 2}}, got)

	got, err = ParseConns("# bkname/svname used_cur idle_cur\n")
	require.NoError(t, err)
	assert.Empty(t, got)

	for _, bad := range []string{
		"", "b/s0 1 2\n",
		"# bkname/svname used_cur\n",
		"# bkname/svname used_cur idle_cur\nb/s0 1\n",
		"# bkname/svname used_cur idle_cur\nb/s0 1 x\n",
		"# bkname/svname used_cur idle_cur\nbs0 1 2\n",
		"# bkname/svname used_cur idle_cur\nb/s;0 1 2\n",
	} {
		_, err := ParseConns(bad)
		assert.Error(t, err, "%q", bad)
	}
}
