package haproxy

import (
	"context"
	"errors"
	"fmt"
	"runtime"
	"slices"
	"strconv"
	"strings"
)

// Level is what the connection's socket may do: "user", "operator" or "admin".
func (c *Client) Level(ctx context.Context) (string, error) {
	reply, err := c.Exec(ctx, "show cli level")
	// It bears the severity of an information, unlike other data (2.6).
	var informs *ReplyError
	if errors.As(err, &informs) && slices.Contains([]string{"user", "operator", "admin"}, informs.Text) {
		return informs.Text, nil
	}
	if err != nil {
		return "", fmt.Errorf("read the socket's level: %w", err)
	}
	return strings.TrimSpace(reply), nil
}

// ClaimHolder tells who drives the HAProxy whose admin socket is at path, and takes no claim. False: nobody, as far as
// this network name space shows, or this system cannot tell.
func ClaimHolder(path string) (Holder, bool) {
	if runtime.GOOS != "linux" {
		return Holder{}, false
	}
	socket := SocketPath(path)
	for slot := range claimSlots {
		if holder, same := holderOf(claimName(socket, slot), socket); same {
			return holder, true
		}
	}
	return Holder{}, false
}

// Worker is a worker process of a HAProxy with a master.
type Worker struct {
	Pid    int
	Uptime string // as the master tells it, "0d00h02m05s"; empty: it does not
}

// OldWorkers asks the master at socket for its workers of before the latest reload.
func OldWorkers(ctx context.Context, socket string) ([]Worker, error) {
	ctx, cancel := context.WithTimeout(ctx, askTimeout)
	defer cancel()
	reply, err := ask(ctx, socket, "show proc")
	if err != nil {
		return nil, fmt.Errorf("ask HAProxy's master at %s: %w", socket, err)
	}
	if _, ok := parseProc(reply); !ok {
		return nil, fmt.Errorf("ask HAProxy's master at %s: its process list has no master", socket)
	}
	return parseOldWorkers(reply), nil
}

// parseOldWorkers reads "show proc": old workers have a section of their own, and a count of the reloads that they have
// seen.
func parseOldWorkers(reply string) (out []Worker) {
	var columns []string
	for line := range strings.Lines(reply) {
		f := strings.Fields(strings.ReplaceAll(line, "[was: ", "[was:")) // one column, up to 2.4
		if len(f) > 0 && f[0] == "#<PID>" {
			columns = strings.Fields(strings.ReplaceAll(line, "<relative PID>", "<relative>"))
			continue
		}
		reloads, uptime := slices.Index(columns, "<reloads>"), slices.Index(columns, "<uptime>")
		if reloads < 0 || len(f) <= reloads || f[1] != "worker" {
			continue
		}
		pid, err := strconv.Atoi(f[0])
		n, err2 := strconv.Atoi(f[reloads])
		if err != nil || err2 != nil || n == 0 {
			continue
		}
		w := Worker{Pid: pid}
		if uptime >= 0 && uptime < len(f) {
			w.Uptime = f[uptime]
		}
		out = append(out, w)
	}
	return out
}
