package cli

import (
	"context"
	"errors"
	"net"
	"path/filepath"
	"sync/atomic"
	"testing"
	"time"

	"github.com/sirupsen/logrus"
	logtest "github.com/sirupsen/logrus/hooks/test"
	"github.com/stretchr/testify/require"
)

// TestWatchdog: systemd hears of progress while there is some, and not while there is none, which is said once.
func TestWatchdog(t *testing.T) {
	path := filepath.Join(t.TempDir(), "notify")
	systemd, err := net.ListenUnixgram("unixgram", &net.UnixAddr{Name: path, Net: "unixgram"})
	require.NoError(t, err)
	defer systemd.Close()
	t.Setenv("NOTIFY_SOCKET", path)
	t.Setenv("WATCHDOG_USEC", "20000")
	t.Setenv("WATCHDOG_PID", "")

	var stuck atomic.Bool
	var asked atomic.Int64
	log, said := logtest.NewNullLogger()
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan struct{})
	go func() {
		defer close(done)
		watchdog(ctx, log, func(context.Context) error {
			asked.Add(1)
			if stuck.Load() {
				return errors.New("the loop of user-api does not answer")
			}
			return nil
		})
	}()
	buf := make([]byte, 100)
	hear := func() string {
		n, err := systemd.Read(buf)
		require.NoError(t, err)
		return string(buf[:n])
	}
	for range 3 {
		require.Equal(t, "WATCHDOG=1", hear())
	}
	stuck.Store(true)
	require.Eventually(t, func() bool { return len(said.AllEntries()) > 0 }, 10*time.Second, time.Millisecond)
	quiet := func() bool {
		systemd.SetReadDeadline(time.Now().Add(20 * time.Millisecond))
		_, err := systemd.Read(buf)
		return err != nil
	}
	for !quiet() { // what was on its way
	}
	before := asked.Load()
	require.Eventually(t, func() bool { return asked.Load() > before+3 }, 10*time.Second, time.Millisecond)
	require.True(t, quiet(), "told of progress that there was not")
	systemd.SetReadDeadline(time.Time{})
	stuck.Store(false)
	require.Equal(t, "WATCHDOG=1", hear())
	cancel()
	<-done
	require.Len(t, said.AllEntries(), 1)
	require.Equal(t, logrus.ErrorLevel, said.LastEntry().Level)
}
