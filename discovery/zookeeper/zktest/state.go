package zktest

// Running tells whether the server has been started and has not ended.
func (s *Server) Running() bool { return s.Pid() != 0 }

// Pid is the server's process id, 0 while it is not running.
func (s *Server) Pid() int {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.process == nil {
		return 0
	}
	select {
	case <-s.process.done:
		return 0
	default:
		return s.process.cmd.Process.Pid
	}
}
