package discovery

import "time"

// SessionStatus is a session with a registry, as pages and commands of both roles show it.
type SessionStatus struct {
	Ensemble  string    `json:"ensemble"`
	Connected bool      `json:"connected"`
	Since     time.Time `json:"since"`
	Session   string    `json:"session,omitempty"`
	Timeout   string    `json:"session_timeout,omitempty"`
	Server    string    `json:"server,omitempty"`
	Error     string    `json:"error,omitempty"`
	Classic   bool      `json:"classic"` // one watch per node
}
