package cli

import (
	"context"
	"time"

	"github.com/coreos/go-systemd/v22/daemon"
	"github.com/sirupsen/logrus"
)

// watchdog tells systemd, where it asks for that (WatchdogSec=), that the process makes progress: twice in each of its
// intervals, as long as live returns nil, until ctx is done. A process that is stuck is not told of, and systemd
// starts it anew.
func watchdog(ctx context.Context, log logrus.FieldLogger, live func(context.Context) error) {
	interval, err := daemon.SdWatchdogEnabled(false)
	if err != nil {
		log.WithField("err", err).Warn("systemd's watchdog cannot be told of progress; correct WATCHDOG_USEC")
	}
	if interval <= 0 {
		return
	}
	tick := time.NewTicker(interval / 2)
	defer tick.Stop()
	for well := true; ; {
		limited, cancel := context.WithTimeout(ctx, interval/4)
		err := live(limited)
		cancel()
		switch {
		case ctx.Err() != nil:
			return
		case err == nil:
			notify(log, daemon.SdNotifyWatchdog)
		case well:
			log.WithField("err", err).Error("no progress; systemd's watchdog is not told, and will start this process anew")
		}
		well = err == nil
		select {
		case <-ctx.Done():
			return
		case <-tick.C:
		}
	}
}
