package haproxy

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
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
