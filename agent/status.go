package agent

import (
	"fmt"
	"maps"
	"slices"
	"strconv"
	"time"

	"github.com/myelin-sd/myelin/config"
	"github.com/myelin-sd/myelin/discovery"
	"github.com/myelin-sd/myelin/discovery/zookeeper"
	"github.com/myelin-sd/myelin/registrar"
)

// Status is what the agent knows at one moment: the answer of /api/v1/status.
type Status struct {
	Version    string                    `json:"version"`
	Started    time.Time                 `json:"started"`
	Config     string                    `json:"config"`
	Generation int                       `json:"generation"` // 1, and one more with each accepted re-read of the files
	Ready      bool                      `json:"ready"`
	Waiting    []string                  `json:"waiting,omitempty"` // why it is not ready
	Stale      []string                  `json:"stale,omitempty"`   // what is served from disk, because the registry has not been heard of
	Snapshots  snapshotStatus            `json:"snapshots,omitzero"`
	Exports    exportStatus              `json:"exports,omitzero"` // files for other programs
	Services   []ServiceStatus           `json:"services"`
	ZooKeeper  []discovery.SessionStatus `json:"zookeeper"`
	HAProxy    []haproxyStatus           `json:"haproxy"`
	File       fileStatus                `json:"file"`
	Overrides  OverridesStatus           `json:"overrides"`
	Shadow     *ShadowStatus             `json:"shadow,omitempty"` // what a shadow has found; absent: the agent is none

	// Registrations are what the registrar of the same process looks after; absent where it has none.
	Registrations []registrar.ServiceStatus `json:"registrations,omitempty"`
}

// ServiceStatus is one service of a Status.
type ServiceStatus struct {
	Service  string      `json:"service"`
	Backend  string      `json:"backend"`
	Path     string      `json:"path,omitempty"`
	Listed   int         `json:"listed"`  // instances the registry lists and that decode
	Active   int         `json:"active"`  // instances in force
	Servers  int         `json:"servers"` // servers they became
	Known    bool        `json:"known"`   // false: nothing has been heard yet, HAProxy keeps what it has
	Held     string      `json:"held,omitempty"`
	HeldFrom *time.Time  `json:"held_since,omitempty"`
	Guard    GuardStatus `json:"guard"`
	FromDisk *time.Time  `json:"from_disk,omitempty"` // nothing heard yet: the set was kept on disk, and was right until then
	Changed  time.Time   `json:"changed"`             // when the latest different set was read
	Ensemble string      `json:"ensemble,omitempty"`
	Rejected []Rejected  `json:"rejected,omitempty"`

	Unresolved []Unresolved `json:"unresolved,omitempty"`    // host names that do not resolve at present
	Curtailed  []Rejected   `json:"curtailed,omitempty"`     // registrations in use, without options that they ask for
	Remote     bool         `json:"remote_config,omitempty"` // part of its configuration is the registry's
	Problems   []string     `json:"remote_config_problems,omitempty"`
	Surplus    int          `json:"surplus,omitempty"` // instances left out because there are more than haproxy.max_servers

	// Rung is how HAProxy takes changes of the servers: "servers" at run time, "slots", or "reload"; empty until HAProxy
	// was met. Reason says why no better way fits, and NeedsReload what waits for a reload now.
	Rung        string `json:"rung,omitempty"`
	Reason      string `json:"rung_reason,omitempty"`
	NeedsReload string `json:"needs_reload,omitempty"`

	zookeeper config.ZooKeeper // of which Ensemble is the name
}

// Rejected is a registration that was left out.
type Rejected struct {
	Node   string `json:"node"`
	Reason string `json:"reason"`
	Detail string `json:"detail"`
}

func serviceStatus(v view, b wantedBackend, detained map[string]string) ServiceStatus {
	s := ServiceStatus{
		Service: v.service.Name, Backend: b.name, Path: v.service.Discovery.Path,
		Listed: len(v.snapshot.Instances), Active: len(v.active), Servers: len(b.servers),
		Known: v.known, Held: v.held, Changed: v.snapshot.At, zookeeper: v.service.Discovery.ZooKeeper,
		Guard: guardStatus(v),
	}
	if v.held != "" {
		since := v.since
		s.HeldFrom = &since
	}
	if v.fromDisk() {
		stored := v.stored
		s.FromDisk = &stored
	}
	for _, r := range v.snapshot.Rejected {
		s.Rejected = append(s.Rejected, rejected(r))
	}
	for _, r := range unusable(b.refused) {
		s.Rejected = append(s.Rejected, rejected(r))
	}
	for _, r := range curtailed(b.refused) {
		s.Curtailed = append(s.Curtailed, rejected(r))
	}
	s.Surplus = b.surplus
	for _, server := range slices.Sorted(maps.Keys(detained)) {
		s.Rejected = append(s.Rejected, Rejected{Node: server, Reason: "haproxy", Detail: detained[server]})
	}
	return s
}

// stands adds where the service's backend stands on the ladder.
func (s *ServiceStatus) stands(f footing) {
	if f.rung != 0 {
		s.Rung, s.Reason, s.NeedsReload = f.rung.String(), f.why, f.short
	}
}

// ReadyServers is how many servers of a backend the HAProxys that answer have in rotation: "3", or "1 to 3" where they
// differ, as each is driven by itself. Empty: none of them has told.
func (st Status) ReadyServers(backend string) string {
	var all []int
	for _, h := range st.HAProxy {
		if n, ok := h.Backends[backend]; ok && h.Connected {
			all = append(all, n.Ready)
		}
	}
	if len(all) == 0 {
		return ""
	}
	if least, most := slices.Min(all), slices.Max(all); least != most {
		return fmt.Sprintf("%d to %d", least, most)
	}
	return strconv.Itoa(all[0])
}

// heard is when the registry of each service was last heard of: now while it is watched. Services without one are left
// out.
func (st Status) heard(now time.Time) map[string]time.Time {
	ensembles := make(map[string]time.Time, len(st.ZooKeeper))
	for _, z := range st.ZooKeeper {
		ensembles[z.Ensemble] = z.Since
		if z.Connected {
			ensembles[z.Ensemble] = now
		}
	}
	out := make(map[string]time.Time, len(st.Services))
	for _, s := range st.Services {
		if at, ok := ensembles[s.Ensemble]; ok {
			out[s.Service] = at
		}
	}
	return out
}

func rejected(r discovery.Rejection) Rejected {
	return Rejected{Node: r.Node, Reason: r.Reason, Detail: r.Detail}
}

func zookeeperStatus(ensemble string, s zookeeper.Status) discovery.SessionStatus {
	z := discovery.SessionStatus{
		Ensemble: ensemble, Connected: s.Connected, Since: s.Since, Session: s.Session, Server: s.Server, Error: s.Error,
		Classic: s.Classic,
	}
	if s.Timeout > 0 {
		z.Timeout = s.Timeout.String()
	}
	return z
}
