package agent

import (
	"context"
	"errors"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"
)

// TestReloadEach: of several HAProxys the one that is away is tried again, and not the others with it.
func TestReloadEach(t *testing.T) {
	var seen []string
	away := true
	one := func(name string) func(context.Context) error {
		return func(context.Context) error {
			seen = append(seen, name)
			if away && name == "b" {
				return errors.New("b is away")
			}
			return nil
		}
	}
	reload, again := reloadEach([]func(context.Context) error{one("a"), one("b"), one("c")})
	told := func() string {
		defer func() { seen = nil }()
		return strings.Join(seen, " ")
	}
	require.ErrorContains(t, reload(t.Context()), "b is away")
	require.Equal(t, "a b c", told())
	require.Error(t, again(t.Context()))
	require.Equal(t, "b", told())
	require.Error(t, reload(t.Context()), "something else is to be in force")
	require.Equal(t, "a b c", told())
	away = false
	require.NoError(t, again(t.Context()))
	require.Equal(t, "b", told())
	require.NoError(t, reload(t.Context()))
	require.Equal(t, "a b c", told())
}
