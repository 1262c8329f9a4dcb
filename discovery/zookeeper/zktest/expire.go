package zktest

import (
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"net"
	"time"
)

// Expire ends a session on the server, with its ephemeral nodes, as if it had timed out: the client learns of it when
// it connects again, which it does at once, since the server closes its connection.
//
// A second client with the same id and password may close a session. The password is no secret to somebody who knows
// the id: the server derives it (ZooKeeperServer.generatePasswd: java.util.Random seeded with id ^ 0xB3415C00).
func (s *Server) Expire(session int64) error {
	err := s.expire(session)
	if errors.Is(err, io.EOF) {
		// The server may close the connection before its answer is out. Asked again, it knows no such session.
		if err = s.expire(session); errors.Is(err, errNoSession) {
			return nil
		}
	}
	return err
}

var errNoSession = errors.New("the server knows no such session")

func (s *Server) expire(session int64) error {
	c, err := net.DialTimeout("tcp", s.addr, 2*time.Second)
	if err != nil {
		return fmt.Errorf("expire session 0x%x: %w", uint64(session), err)
	}
	defer c.Close()
	if err := expire(c, session); err != nil {
		return fmt.Errorf("expire session 0x%x: %w", uint64(session), err)
	}
	return nil
}

func expire(c net.Conn, session int64) error {
	if err := c.SetDeadline(time.Now().Add(10 * time.Second)); err != nil {
		return err
	}
	// ConnectRequest: protocol 0, lastZxidSeen 0, timeout 10 s, session, password of 16 bytes.
	request := make([]byte, 0, 44)
	request = binary.BigEndian.AppendUint32(request, 0)
	request = binary.BigEndian.AppendUint64(request, 0)
	request = binary.BigEndian.AppendUint32(request, 10_000)
	request = binary.BigEndian.AppendUint64(request, uint64(session))
	request = binary.BigEndian.AppendUint32(request, 16)
	password := generatePassword(session)
	request = append(request, password[:]...)
	answer, err := exchange(c, request)
	if err != nil {
		return err
	}
	// ConnectResponse: protocol, timeout, session; that is 0 when there is no such session.
	if len(answer) < 16 || int64(binary.BigEndian.Uint64(answer[8:])) != session {
		return errNoSession
	}
	// closeSession: xid 1, operation -11. The reply has a header of xid, zxid and error.
	closing := make([]byte, 0, 8)
	closing = binary.BigEndian.AppendUint32(closing, 1)
	closing = binary.BigEndian.AppendUint32(closing, ^uint32(10))
	answer, err = exchange(c, closing)
	if err != nil {
		return err
	}
	if len(answer) < 16 || binary.BigEndian.Uint32(answer[12:]) != 0 {
		return fmt.Errorf("the server did not close it: % x", answer)
	}
	return nil
}

// exchange sends a frame and reads one.
func exchange(c net.Conn, frame []byte) ([]byte, error) {
	if _, err := c.Write(append(binary.BigEndian.AppendUint32(nil, uint32(len(frame))), frame...)); err != nil {
		return nil, err
	}
	var length [4]byte
	if _, err := io.ReadFull(c, length[:]); err != nil {
		return nil, err
	}
	n := binary.BigEndian.Uint32(length[:])
	if n > 1<<16 {
		return nil, fmt.Errorf("an answer of %d bytes", n)
	}
	answer := make([]byte, n)
	_, err := io.ReadFull(c, answer)
	return answer, err
}

// generatePassword is what java.util.Random's nextBytes gives for the session's seed.
func generatePassword(session int64) (p [16]byte) {
	const multiplier, mask = 0x5DEECE66D, 1<<48 - 1
	state := (uint64(session) ^ 0xB3415C00 ^ multiplier) & mask
	for i := 0; i < len(p); i += 4 {
		state = (state*multiplier + 0xB) & mask
		binary.LittleEndian.PutUint32(p[i:], uint32(state>>16))
	}
	return p
}
