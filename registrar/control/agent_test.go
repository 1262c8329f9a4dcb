package control

import (
	"context"
	"errors"
	"net/http"
	"os/user"
	"path/filepath"
	"strings"
	"testing"

	"github.com/sirupsen/logrus"
	"github.com/stretchr/testify/require"
)

// TestRelease: what a client has an agent release is released, in the name of the user that the kernel knows; what cannot
// be is said as the agent says it.
func TestRelease(t *testing.T) {
	path := filepath.Join(folder(t), "a.sock")
	socket, err := Listen(path, "agent.toml")
	require.NoError(t, err)
	lines := &locked{}
	logger := logrus.New()
	logger.SetOutput(lines)
	h := AgentHandler(AgentOptions{
		Release: func(_ context.Context, service string) ([]string, error) {
			if service != "a/b c" {
				return nil, errors.New("nothing of " + service + " is held")
			}
			return []string{"10.0.0.1:80"}, nil
		},
		Log: logger,
	})
	ctx, cancel := context.WithCancel(context.Background())
	ended := make(chan error, 1)
	go func() { ended <- Serve(ctx, socket, h) }()
	t.Cleanup(func() {
		cancel()
		require.NoError(t, <-ended)
		require.NoFileExists(t, path)
	})

	client := NewAgentClient(path)
	r, err := client.Release(t.Context(), "a/b c")
	require.NoError(t, err)
	require.Equal(t, Release{"a/b c", []string{"10.0.0.1:80"}}, r)
	me, err := user.Current()
	require.NoError(t, err)
	require.Regexp(t, `msg="holds are released" author=`+me.Username+` count=1 pid=\d+ service="a/b c"`, lines.String())

	_, err = client.Release(t.Context(), "web")
	require.EqualError(t, err, "nothing of web is held")
	require.Equal(t, 1, strings.Count(lines.String(), "\n"), "what was not done is not logged")
	require.EqualError(t, client.EndMaintenance(t.Context(), "web"), "there is no DELETE /v1/services/web/maintenance; see docs/guard.md for what there is")
	require.NoError(t, client.ask(t.Context(), http.MethodGet, "/debug/pprof/cmdline", nil, nil), "profiles are only here")
}
