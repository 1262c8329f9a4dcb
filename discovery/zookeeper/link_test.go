package zookeeper

import (
	"testing"
	"time"

	"github.com/stretchr/testify/require"
)

// TestAnswerToAnOldLink: what a server answers to a client that has been given up does not change which session the
// present one takes up.
func TestAnswerToAnOldLink(t *testing.T) {
	s, _ := answering(t, Options{}, nil)
	session := func(id int64) handshake { return handshake{credentials{session: id}, time.Second} }
	var present *link
	require.Eventually(t, func() bool {
		s.mu.Lock()
		defer s.mu.Unlock()
		present = s.link
		return present != nil
	}, 30*time.Second, time.Millisecond)
	s.shaken(present, session(7))
	s.shaken(&link{}, session(8))
	require.Equal(t, "0x7", s.Status().Session)
	s.shaken(&link{}, handshake{})
	require.Equal(t, "0x7", s.Status().Session)
	require.Zero(t, s.Stats().Expired)
	s.shaken(present, handshake{})
	require.Empty(t, s.Status().Session)
	require.EqualValues(t, 1, s.Stats().Expired)
}
