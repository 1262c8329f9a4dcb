package agent

import (
	"time"
)

// Evidence is what is known of one instance of a service, registered or not: all that Explain goes by. The registry,
// the agent and HAProxy each tell their part; a part that nobody told is nil, with the reason beside it.
type Evidence struct {
	Service  string `json:"service"`
	Instance string `json:"instance"` // HOST:PORT, or the name of a node

	Registry      *RegistryEvidence `json:"registry,omitempty"`
	RegistryError string            `json:"registry_error,omitempty"`
	Agent         *AgentEvidence    `json:"agent,omitempty"`
	AgentError    string            `json:"agent_error,omitempty"`
	NoService     bool              `json:"no_service,omitempty"` // the agent answered, and has no such service
}

// RegistryEvidence is what the registry itself said, or a set that was kept on disk.
type RegistryEvidence struct {
	From      string         `json:"from"` // "zookeeper" or "disk"
	Where     string         `json:"where,omitempty"`
	At        time.Time      `json:"at"` // when it was right
	Path      string         `json:"path"`
	Missing   bool           `json:"missing,omitempty"` // the path does not exist
	Listed    int            `json:"listed"`            // registrations, undecodable ones too
	Nodes     []NodeEvidence `json:"nodes,omitempty"`   // those of the instance
	Elsewhere []string       `json:"elsewhere,omitempty"`
	Near      []string       `json:"near,omitempty"` // instances that are nearly what was asked for
}

// NodeEvidence is one registration.
type NodeEvidence struct {
	Node     string         `json:"node"`
	Data     string         `json:"data,omitempty"` // its bytes as one printable line, cut; empty: not told
	Bytes    int            `json:"bytes,omitempty"`
	Reason   string         `json:"reason,omitempty"` // why it is rejected: one of discovery's words
	Detail   string         `json:"detail,omitempty"`
	Instance string         `json:"instance,omitempty"` // HOST:PORT; empty when rejected
	Name     string         `json:"name,omitempty"`
	Weight   *int           `json:"weight,omitempty"`
	Labels   map[string]any `json:"labels,omitempty"`
	Options  []string       `json:"options,omitempty"`
	Leaving  bool           `json:"leaving,omitempty"`
	Session  string         `json:"session,omitempty"` // of an ephemeral node
	Created  time.Time      `json:"created"`
	Modified time.Time      `json:"modified"`
}

// AgentEvidence is what an agent believes, wants and sees of the instance.
type AgentEvidence struct {
	Method    string     `json:"method"` // of discovery
	Path      string     `json:"path,omitempty"`
	Ensemble  string     `json:"ensemble,omitempty"`
	Connected bool       `json:"connected"` // to the ensemble
	Since     time.Time  `json:"since"`     // of Connected
	LastError string     `json:"last_error,omitempty"`
	Heard     bool       `json:"heard"` // the registry has told of the service since the agent started
	HeardAt   time.Time  `json:"heard_at,omitzero"`
	FromDisk  *time.Time `json:"from_disk,omitempty"` // the set in force was kept on disk, and was right until then
	Known     bool       `json:"known"`               // the set in force is known; until then HAProxy keeps what it has
	InForce   int        `json:"in_force"`            // instances in force
	Missing   bool       `json:"missing,omitempty"`   // the path does not exist

	Others   []string       `json:"others,omitempty"`   // instances that are nearly what was asked for, where it is not known
	Nodes    []NodeEvidence `json:"nodes,omitempty"`    // as the agent read them last
	Static   bool           `json:"static,omitempty"`   // a server of the configuration
	Filtered string         `json:"filtered,omitempty"` // why it does not pass the filters
	Held     *HoldStatus    `json:"held,omitempty"`
	SetHeld  string         `json:"set_held,omitempty"` // why the set in force is not what the registry lists
	Active   bool           `json:"active"`             // it is in force
	Leader   string         `json:"leader,omitempty"`   // the instance that was elected in its place
	Used     string         `json:"used,omitempty"`     // the node that counts, where several register it
	Port     uint16         `json:"port,omitempty"`     // of backend_port_override

	Most       int         `json:"max_servers,omitempty"` // it is beyond haproxy.max_servers
	Refused    string      `json:"refused,omitempty"`     // why it cannot become a server
	Unresolved *Unresolved `json:"unresolved,omitempty"`  // its name
	Curtailed  string      `json:"curtailed,omitempty"`   // what it asks for and does not get
	Quarantine string      `json:"quarantine,omitempty"`  // HAProxy's words, where it refused what the registration asks for

	Override *OverrideEvidence `json:"override,omitempty"`
	Unheard  string            `json:"overrides_unheard,omitempty"` // why it is not known whether there is another one

	Backend     string            `json:"backend,omitempty"`
	NoHAProxy   string            `json:"no_haproxy,omitempty"` // why no HAProxy is asked and told
	Shadow      bool              `json:"shadow,omitempty"`     // the agent only looks: others drive HAProxy
	Reload      string            `json:"reload,omitempty"`     // why a reload is due
	NeedsReload string            `json:"needs_reload,omitempty"`
	Gate        bool              `json:"gate,omitempty"` // health_gate
	HAProxy     []HAProxyEvidence `json:"haproxy,omitempty"`
}

// OverrideEvidence is the operators' wish that counts for the instance.
type OverrideEvidence struct {
	Node    string     `json:"node"`
	Target  string     `json:"target"`
	Action  string     `json:"action"`
	Weight  string     `json:"weight,omitempty"` // "5" or "50%"
	Author  string     `json:"author,omitempty"`
	Reason  string     `json:"reason,omitempty"`
	Created time.Time  `json:"created"`
	Until   *time.Time `json:"until,omitempty"`
	End     string     `json:"end"` // the command that ends it
}

// HAProxyEvidence is what one HAProxy has of the instance.
type HAProxyEvidence struct {
	Socket    string       `json:"socket"`
	Connected bool         `json:"connected"` // the agent drives it
	Since     time.Time    `json:"since"`
	LastError string       `json:"last_error,omitempty"`
	NoBackend bool         `json:"no_backend,omitempty"` // its configuration lacks it
	Pending   bool         `json:"pending,omitempty"`    // not all that is wanted is applied
	Failed    string       `json:"failed,omitempty"`     // a command about this backend that it refused in the last round
	Server    ServerStatus `json:"server"`
	// ManualUntil is when what somebody else changed (Server.Foreign) is corrected; nil: nobody did, or it is not ours.
	ManualUntil *time.Time `json:"manual_until,omitempty"`
	// Weights is the sum of the weights of the servers that take traffic, and Serving how many they are.
	Weights int `json:"weights"`
	Serving int `json:"serving"`
}
