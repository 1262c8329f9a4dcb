package discovery

// Registration is what is published for one service: where, under which name, and the bytes.
type Registration struct {
	Path       string // parent znode, made when missing (persistent, empty, open to the world)
	Prefix     string // name of the node up to the sequence number, "web-1_"; unique to this instance
	Data       []byte
	Sequential bool
	Ephemeral  bool

	// Also are further nodes for the same instance, in other formats: they are published after this one, stand and are
	// kept as it is, and are withdrawn with it. They have no Also of their own.
	Also []Registration
}
