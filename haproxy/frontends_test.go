package haproxy

import (
	"fmt"
	"os"
	"path/filepath"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/myelin-sd/myelin/haproxy/haproxytest"
)

func TestFrontendNames(t *testing.T) {
	services := []Service{
		{Name: "a"},
		{Name: "b", BackendName: "other"},
		{Name: "other"}, // the name of b's backend
		{Name: "a-frontend"},
	}
	same := File{Services: services}
	require.Equal(t, []string{"a", "b", "other", "a-frontend"}, same.frontendNames())
	distinct := File{Services: services, DistinctNames: true}
	require.Equal(t, []string{"a-frontend-frontend", "b", "other-frontend", "a-frontend-frontend-frontend"}, distinct.frontendNames())
}

// TestDistinctNamesPassHAProxy: a file for 3.3 and later is one for every version, and the backends are what they were.
func TestDistinctNamesPassHAProxy(t *testing.T) {
	binary := haproxytest.Require(t)
	f := File{Services: []Service{
		{Name: "web", HasFrontend: true, Bind: "127.0.0.1:8080"},
		{Name: "api", HasFrontend: true, Bind: "127.0.0.1:8081", BackendName: "web2"},
	}, DistinctNames: RequiresDistinctNames(t.Context(), binary)}
	path := filepath.Join(t.TempDir(), "haproxy.cfg")
	check := CheckWith(binary, time.Minute)
	require.NoError(t, os.WriteFile(path, f.Render(nil), 0o600))
	require.NoError(t, check(t.Context(), path))

	before := ServersOfText(f.Render(nil))
	f.DistinctNames = true
	require.NoError(t, os.WriteFile(path, f.Render(nil), 0o600))
	require.NoError(t, check(t.Context(), path))
	require.Equal(t, before, ServersOfText(f.Render(nil)))
}

// program is a HAProxy of which only the version is asked.
func program(t *testing.T, path, version string) {
	t.Helper()
	text := fmt.Sprintf("#!/bin/sh\necho 'HAProxy version %s 2026/01/01 - https://haproxy.org/'\n", version)
	next := path + ".new"
	require.NoError(t, os.WriteFile(next, []byte(text), 0o755))
	require.NoError(t, os.Rename(next, path))
}

func TestRequiresDistinctNames(t *testing.T) {
	path := filepath.Join(t.TempDir(), "haproxy")
	require.False(t, RequiresDistinctNames(t.Context(), path), "there is none")
	for version, want := range map[string]bool{
		"2.6.12-1+deb12u4": false, "3.2.26-1": false, "3.3.0": true, "3.4.7-1": true, "4.0-dev1": true,
	} {
		program(t, path, version)
		require.Equal(t, want, RequiresDistinctNames(t.Context(), path), version)
	}
}

// TestAwaitDistinctNames: an upgrade under a running agent is noticed, whatever came before it.
func TestAwaitDistinctNames(t *testing.T) {
	path := filepath.Join(t.TempDir(), "haproxy")
	program(t, path, "3.0.11")
	noticed := make(chan bool)
	go func() { noticed <- AwaitDistinctNames(t.Context(), path) }()
	program(t, path, "3.2.26")
	program(t, path, "3.4.7-1")
	require.True(t, <-noticed)
}
