package haproxy

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"time"
)

// Master is a connection held to the CLI of HAProxy's master process, to see it go: the master executes itself anew
// at each reload, which ends its connections within 3 to 18 ms (2.2 to 3.4), before the new worker serves. Held
// connections to a worker show nothing. The master's CLI has no idle timeout, and takes 10 connections.
type Master struct{ conn net.Conn }

// DialMaster connects to the master's socket. What happens after it returned, Wait will see. The caller closes it.
func DialMaster(ctx context.Context, path string) (*Master, error) {
	dialer := net.Dialer{Timeout: defaultTimeout}
	conn, err := dialer.DialContext(ctx, "unix", path)
	if err != nil {
		return nil, fmt.Errorf("connect to HAProxy's master: %w", err)
	}
	m := &Master{conn}
	if err := m.hello(ctx); err != nil {
		conn.Close()
		return nil, fmt.Errorf("greet HAProxy's master at %s: %w", path, err)
	}
	return m, nil
}

// hello turns the prompt on, without which the first command ends the connection, and waits for it: only an answer
// proves that the master, and not its backlog, holds the connection.
func (m *Master) hello(ctx context.Context) error {
	stop := context.AfterFunc(ctx, func() { m.conn.SetDeadline(time.Unix(1, 0)) })
	defer stop()
	if err := m.conn.SetDeadline(time.Now().Add(defaultTimeout)); err != nil {
		return err
	}
	if err := ctx.Err(); err != nil {
		return err
	}
	if _, err := m.conn.Write([]byte("prompt\n")); err != nil {
		return orCause(ctx, err)
	}
	var got []byte
	for b := make([]byte, 256); !bytes.HasSuffix(got, []byte("> ")); {
		n, err := m.conn.Read(b)
		if got = append(got, b[:n]...); err != nil {
			return orCause(ctx, err)
		}
		if len(got) > 4096 {
			return ErrUnknownReply
		}
	}
	return nil
}

// Wait blocks until the master reloads or exits, then returns nil; or until ctx ends, then returns its error. It is
// called once.
func (m *Master) Wait(ctx context.Context) error {
	if err := m.conn.SetDeadline(time.Time{}); err != nil {
		return fmt.Errorf("watch HAProxy's master: %w", err)
	}
	stop := context.AfterFunc(ctx, func() { m.conn.SetDeadline(time.Unix(1, 0)) })
	defer stop()
	_, err := io.Copy(io.Discard, m.conn)
	switch {
	case ctx.Err() != nil:
		return ctx.Err()
	case err == nil, errors.Is(err, syscall.ECONNRESET):
		return nil
	}
	return fmt.Errorf("watch HAProxy's master: %w", err)
}

// Close ends the connection.
func (m *Master) Close() error { return m.conn.Close() }

// WatchMaster holds one connection to the master's socket at path and returns nil when HAProxy reloads or exits. See
// DialMaster for callers who must know from when on they watch.
func WatchMaster(ctx context.Context, path string) error {
	m, err := DialMaster(ctx, path)
	if err != nil {
		return err
	}
	defer m.Close()
	return m.Wait(ctx)
}

// holdMaster holds one connection to the master's socket and returns whether it was held until the master ended it: a
// reload, or its end. held is called once the connection is there; false lets go. Where there is no connection to be
// had it returns false after a pause.
func holdMaster(ctx context.Context, socket string, held func() bool) bool {
	m, err := DialMaster(ctx, socket)
	if err != nil {
		sleep(ctx, lookEvery)
		return false
	}
	defer m.Close()
	return !held() || m.Wait(ctx) == nil
}

func dialSocket(ctx context.Context, socket string) (net.Conn, error) {
	if socket == "" {
		return nil, errors.New("no socket is configured")
	}
	var d net.Dialer
	return d.DialContext(ctx, "unix", socket)
}

// ask sends one command to a socket of HAProxy and returns the whole reply, which ends when HAProxy closes.
func ask(ctx context.Context, socket, command string) (string, error) {
	conn, err := dialSocket(ctx, socket)
	if err != nil {
		return "", err
	}
	defer conn.Close()
	stop := context.AfterFunc(ctx, func() { _ = conn.SetDeadline(time.Unix(1, 0)) })
	defer stop()
	if _, err := io.WriteString(conn, command+"\n"); err != nil {
		return "", err
	}
	// Without a prompt the master answers and waits for more (2.6), unless it sees that no more can come.
	if unix, ok := conn.(*net.UnixConn); ok {
		if err := unix.CloseWrite(); err != nil {
			return "", err
		}
	}
	reply, err := io.ReadAll(io.LimitReader(conn, outputLimit))
	return string(reply), err
}

// askMaster is what the "show proc" of the master CLI at socket tells.
func askMaster(ctx context.Context, socket string) (masterState, error) {
	ctx, cancel := context.WithTimeout(ctx, askTimeout)
	defer cancel()
	reply, err := ask(ctx, socket, "show proc")
	if err != nil {
		return masterState{}, err
	}
	m, ok := parseProc(reply)
	if !ok {
		return masterState{}, errors.New("the master's process list has no master")
	}
	return m, nil
}

// masterState is a master and its current worker.
type masterState struct {
	pid, worker int // worker 0: none since the last reload
	reloads     int // that were tried
	failed      int // in a row
	countsFails bool
}

// parseProc reads "show proc": a table with a header, whose reload column reads "3 [failed: 1]" for the master from
// 2.5 on. A worker that has seen no reload is the current one.
func parseProc(reply string) (masterState, bool) {
	var m masterState
	reloads := -1
	for line := range strings.Lines(reply) {
		f := strings.Fields(line)
		if len(f) > 0 && f[0] == "#<PID>" {
			reloads = slices.Index(strings.Fields(strings.ReplaceAll(line, "<relative PID>", "<relative>")), "<reloads>")
			continue
		}
		if reloads < 0 || len(f) <= reloads {
			continue
		}
		pid, err := strconv.Atoi(f[0])
		n, err2 := strconv.Atoi(f[reloads])
		if err != nil || err2 != nil || pid <= 1 {
			continue
		}
		switch {
		case f[1] == "master":
			m.pid, m.reloads = pid, n
			if _, after, ok := strings.Cut(line, "[failed: "); ok {
				number, _, _ := strings.Cut(after, "]")
				m.failed, _ = strconv.Atoi(number)
				m.countsFails = true
			}
		case f[1] == "worker" && n == 0:
			m.worker = pid
		}
	}
	return m, m.pid != 0
}

// errReloadFailed is a reload of which the master only says that it failed (up to 2.6).
var errReloadFailed = errors.New("it failed and the old worker stays")

// reloadMaster has the master at socket, which was in the state before, reload, and waits until the new worker serves.
func reloadMaster(ctx context.Context, socket string, before masterState) error {
	ctx, cancel := context.WithTimeout(ctx, startTimeout)
	defer cancel()
	reply, err := ask(ctx, socket, "reload")
	switch {
	case strings.HasPrefix(reply, "Success=1"): // 2.7+: the answer comes when the new worker serves
		return nil
	case strings.HasPrefix(reply, "Success=0"):
		return fmt.Errorf("it failed and the old worker stays: %s", complaints(reply))
	case strings.TrimSpace(reply) != "":
		return fmt.Errorf("the master answered %q", tail(reply))
	case err != nil && ctx.Err() != nil:
		return err
	}
	// Up to 2.6 the master closes at once and re-executes itself; its process list tells how it went.
	return awaitReload(ctx, socket, before)
}

func awaitReload(ctx context.Context, socket string, before masterState) error {
	for {
		now, err := askMaster(ctx, socket)
		switch {
		case err != nil || now.reloads == before.reloads: // not there yet
		// Up to 2.4 the failures are not counted. A master that answers has forked its worker, or has none that is new.
		case now.failed > 0, !now.countsFails && now.worker == 0:
			return fmt.Errorf("%w; HAProxy's log has the reason", errReloadFailed)
		case now.worker != 0 && now.worker != before.worker:
			return nil
		}
		if !sleep(ctx, askEvery) {
			return errors.New("no new worker in the time it has")
		}
	}
}
