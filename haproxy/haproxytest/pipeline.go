package haproxytest

import (
	"bufio"
	"fmt"
	"net"
	"time"
)

// Pipeline sends commands down one connection in prompt mode with at most window of them unanswered, and returns when
// all are answered. It is the floor that a client of the admin socket is measured against: it does not look at the replies,
// so that whoever calls it looks at what HAProxy has afterwards.
func Pipeline(socket string, window int, commands []string) error {
	conn, err := net.DialTimeout("unix", socket, patience)
	if err != nil {
		return err
	}
	defer conn.Close()
	if err := conn.SetDeadline(time.Now().Add(10 * patience)); err != nil {
		return err
	}
	replies := bufio.NewReaderSize(conn, 64<<10)
	if _, err := fmt.Fprintln(conn, "prompt"); err != nil {
		return err
	}
	if err := skipReply(replies); err != nil {
		return err
	}
	var out []byte
	sent := 0
	for answered := 0; answered < len(commands); {
		out = out[:0]
		for ; sent < len(commands) && sent-answered < window; sent++ {
			out = append(append(out, commands[sent]...), '\n')
		}
		if _, err := conn.Write(out); err != nil {
			return err
		}
		for first := true; answered < sent && (first || replies.Buffered() > 0); first = false {
			if err := skipReply(replies); err != nil {
				return fmt.Errorf("read reply to %q: %w", commands[answered], err)
			}
			answered++
		}
	}
	return nil
}

// skipReply reads one reply and the prompt behind it.
func skipReply(r *bufio.Reader) error {
	for last := byte(0); ; {
		b, err := r.ReadByte()
		if err != nil {
			return err
		}
		if last == '>' && b == ' ' {
			return nil
		}
		last = b
	}
}
