package registrar

import "time"

// ServiceStatus is what is known of one service at one moment.
type ServiceStatus struct {
	Service string        `json:"service"`
	Path    string        `json:"path"`  // the parent znode
	State   State         `json:"state"` // of all checks together; while it is not decided anew, the last decision
	Since   time.Time     `json:"since"` // when State came to be
	Checks  []CheckStatus `json:"checks"`

	Registered bool           `json:"registered"`            // the directory's last answer was that the node stands
	Settled    bool           `json:"settled"`               // the directory is known to have what is wanted
	Node       string         `json:"node,omitempty"`        // full path of the node, when one was made
	Confirmed  time.Time      `json:"confirmed,omitzero"`    // when the directory answered last
	Problem    string         `json:"problem,omitempty"`     // why the last request failed; empty when it did not
	Repairs    map[string]int `json:"repairs,omitempty"`     // of what stands in the directory, since the start, by reason
	LastRepair *Repair        `json:"last_repair,omitempty"` // the latest of them
	Leaving    bool           `json:"leaving,omitempty"`     // no longer configured: it is withdrawn, once its successor stands

	Weight      int            `json:"weight_percent,omitempty"` // of the configured weight, as published last; 0: nothing was
	Draining    time.Time      `json:"draining_until,omitzero"`  // it has left, and stays up until then
	Maintenance *Maintenance   `json:"maintenance,omitempty"`    // it is withdrawn for that, whatever State is; nil: it is not
	Damping     *DampingStatus `json:"damping,omitempty"`        // nil: it is off
	Changes     []StateChange  `json:"changes,omitempty"`        // of State and of the weight that the checks leave: the last 20, oldest first
}

// DampingStatus tells of a service's damping.
type DampingStatus struct {
	Penalty    float64   `json:"penalty"`        // at this moment
	Suppressed bool      `json:"suppressed"`     // moves down are held back
	Held       bool      `json:"held"`           // its checks say that it is down, and it stays up
	Until      time.Time `json:"until,omitzero"` // when Suppressed ends, if nothing happens
}

// CheckStatus is what is known of one check of a service.
type CheckStatus struct {
	Check   string        `json:"check"`
	State   State         `json:"state"`
	Since   time.Time     `json:"since"`             // when State came to be
	Percent int           `json:"percent,omitempty"` // of the weight that it leaves the service, when it is up
	Shown   bool          `json:"shown,omitempty"`   // it decides nothing
	At      time.Time     `json:"at,omitzero"`       // end of the last run; zero: none has ended yet
	Verdict Verdict       `json:"result,omitempty"`  // of the last run
	Latency time.Duration `json:"latency_ns"`        // of the last run
	Error   string        `json:"error,omitempty"`   // why the last run did not simply pass
	Recent  []CheckResult `json:"recent,omitempty"`  // the last 20 runs, oldest first
	Changes []CheckChange `json:"changes,omitempty"` // of State and Percent: the last 20, oldest first
}
