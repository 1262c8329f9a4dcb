package agent

import (
	"errors"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/myelin-sd/myelin/haproxy"
)

// Metrics are the agent's numbers. Those that describe the present are read from the agent when they are asked for,
// so that a label value is gone with its service.
type Metrics struct {
	commands    *prometheus.CounterVec
	rounds      *prometheus.CounterVec
	seconds     prometheus.Histogram
	propagation prometheus.Histogram
	manual      *prometheus.CounterVec
}

// NewMetrics registers the agent's metrics.
func NewMetrics(reg prometheus.Registerer) *Metrics {
	m := &Metrics{
		commands: prometheus.NewCounterVec(prometheus.CounterOpts{
			Name: "myelin_haproxy_commands_total", Help: "Changes sent to HAProxy's admin socket, by kind and result."},
			[]string{"op", "result"}),
		rounds: prometheus.NewCounterVec(prometheus.CounterOpts{
			Name: "myelin_reconcile_rounds_total", Help: "Rounds of reading HAProxy's state, comparing and applying, by result."},
			[]string{"result"}),
		seconds: prometheus.NewHistogram(prometheus.HistogramOpts{
			Name: "myelin_reconcile_seconds", Help: "Length of a round.", Buckets: []float64{.0005, .001, .002, .005, .01, .025, .05, .1, .5, 1, 5}}),
		propagation: prometheus.NewHistogram(prometheus.HistogramOpts{
			Name: "myelin_propagation_seconds", Help: "From the registry's event to HAProxy's confirmation.",
			Buckets: []float64{.001, .0025, .005, .01, .025, .05, .1, .25, .5, 1, 5, 30}}),
	}
	m.manual = prometheus.NewCounterVec(prometheus.CounterOpts{
		Name: "myelin_haproxy_foreign_changes_total", Help: "Changes of a server's state or weight in HAProxy that somebody else has made."},
		[]string{"socket"})
	reg.MustRegister(m.manual, m.commands, m.rounds, m.seconds, m.propagation)
	return m
}

func (m *Metrics) round(took time.Duration, results []haproxy.Result) {
	result := "ok"
	for _, r := range results {
		res := "ok"
		switch {
		case errors.Is(r.Err, haproxy.ErrBusy):
			res = "busy"
		case r.Err != nil:
			res, result = "error", "refused"
		}
		m.commands.WithLabelValues(r.Step.Op.String(), res).Inc()
	}
	m.rounds.WithLabelValues(result).Inc()
	m.seconds.Observe(took.Seconds())
}

// foreign counts a change that somebody else has made.
func (m *Metrics) foreign(socket string) {
	if m != nil {
		m.manual.WithLabelValues(socket).Inc()
	}
}

func (m *Metrics) propagated(d time.Duration) { m.propagation.Observe(d.Seconds()) }

// collector reads the present from the agent's published state.
type collector struct {
	status   func() Status
	sessions prometheus.Collector
}

var (
	descConnected = prometheus.NewDesc("myelin_zookeeper_connected", "1 while a session with the ensemble is up.", []string{"ensemble"}, nil)
	descClassic   = prometheus.NewDesc("myelin_zookeeper_classic", "1 while there is one watch per node, because the servers know nothing better or the configuration says so.", []string{"ensemble"}, nil)
	descGen       = prometheus.NewDesc("myelin_zookeeper_generation", "Connections established so far.", []string{"ensemble"}, nil)
	descEvents    = prometheus.NewDesc("myelin_zookeeper_events_total", "Events of watches.", []string{"ensemble"}, nil)
	descResyncs   = prometheus.NewDesc("myelin_zookeeper_resyncs_total", "Services compared with the registry after a reconnect, by what was found: unchanged ones are not listed again.", []string{"ensemble", "result"}, nil)
	descReads     = prometheus.NewDesc("myelin_zookeeper_reads_total", "Requests that read from ZooKeeper.", []string{"ensemble"}, nil)
	descBytes     = prometheus.NewDesc("myelin_zookeeper_read_bytes_total", "Bytes received from ZooKeeper.", []string{"ensemble"}, nil)
	descSessions  = prometheus.NewDesc("myelin_zookeeper_sessions_total", "Sessions opened, sessions that had expired when they were to be taken up, and clients thrown away because they made no progress.", []string{"ensemble", "result"}, nil)
	descDiffs     = prometheus.NewDesc("myelin_zookeeper_antientropy_differences_total", "Changes that no watch had told of. Must stay 0.", []string{"ensemble"}, nil)
	descInstances = prometheus.NewDesc("myelin_discovery_instances", "Instances by what became of them.", []string{"service", "state"}, nil)
	descAge       = prometheus.NewDesc("myelin_discovery_view_age_seconds", "How long the registry has not been heard of, over restarts where the set is one from disk; 0 while it is watched.", []string{"service"}, nil)
	descRejected  = prometheus.NewDesc("myelin_discovery_rejected", "Registrations left out, by reason.", []string{"service", "reason"}, nil)
	descNames     = prometheus.NewDesc("myelin_discovery_unresolved", "Host names of registrations that do not resolve; their last addresses stay in use where they are known.", []string{"service"}, nil)
	descCurtailed = prometheus.NewDesc("myelin_discovery_curtailed", "Registrations in use without some of the server options that they ask for.", []string{"service"}, nil)
	descRemote    = prometheus.NewDesc("myelin_discovery_remote_problems", "What is wrong with the configuration that the registry holds for a service, and is not used.", []string{"service"}, nil)
	descHeld      = prometheus.NewDesc("myelin_discovery_held", "1 while a service keeps its last good set against what the registry says.", []string{"service"}, nil)
	descGuarded   = prometheus.NewDesc("myelin_guard_held", "Instances in force that the registry does not list.", []string{"service"}, nil)
	descDecided   = prometheus.NewDesc("myelin_guard_decisions_total", "Instances by what the guard decided about them.", []string{"service", "decision"}, nil)
	descServers   = prometheus.NewDesc("myelin_haproxy_servers", "Servers that the HAProxy at a socket has. None are told of one that does not answer.", []string{"socket", "backend", "state"}, nil)
	descRung      = prometheus.NewDesc("myelin_haproxy_rung", "1 for the way in which HAProxy takes changes of a backend's servers.", []string{"backend", "rung"}, nil)
	descReloads   = prometheus.NewDesc("myelin_haproxy_reloads_total", "Reloads of HAProxy that Myelin asked for, by reason.", []string{"reason"}, nil)
	descWould     = prometheus.NewDesc("myelin_shadow_would_change", "Steps that a shadow would take in a backend, due for longer than its grace, by kind; 0 steps of a kind have no series but after such a step.", []string{"backend", "op"}, nil)
	descLasted    = prometheus.NewDesc("myelin_shadow_differences_total", "Differences that a shadow has seen last for longer than its grace, by kind.", []string{"backend", "op"}, nil)
	descAgreed    = prometheus.NewDesc("myelin_shadow_agreed_seconds", "How long HAProxy has had what the shadow would have; 0 while it has not, and no value while it cannot be asked.", []string{"backend"}, nil)
	descFileDiff  = prometheus.NewDesc("myelin_shadow_file_differences", "Ways in which haproxy.cfg is not as the shadow would write it.", nil, nil)
	descForeign   = prometheus.NewDesc("myelin_haproxy_foreign_servers", "Servers that somebody else has changed on the admin socket, and that are left so for haproxy.manual_changes.", []string{"socket"}, nil)
	descOverrides = prometheus.NewDesc("myelin_overrides", "Operators' overrides: counting ones have servers on this host, pending ones are not confirmed by every HAProxy, idle ones concern no server here, ended ones are still in the registry, undecodable ones are none.", []string{"state"}, nil)
	descUp        = prometheus.NewDesc("myelin_haproxy_connected", "1 while HAProxy's admin socket answers.", []string{"socket"}, nil)
)

func (c collector) Describe(ch chan<- *prometheus.Desc) {
	c.sessions.Describe(ch)
	for _, d := range []*prometheus.Desc{descInstances, descAge, descRejected, descNames, descCurtailed, descRemote, descHeld, descGuarded, descDecided, descServers, descRung, descReloads, descUp, descForeign, descOverrides, descWould, descLasted, descAgreed, descFileDiff} {
		ch <- d
	}
}

// sessionCollector exports what the sessions of a process know.
type sessionCollector struct{ pool *Sessions }

// Collector exports the sessions' states and counters, whatever role they serve.
func (p *Sessions) Collector() prometheus.Collector { return sessionCollector{p} }

func (sessionCollector) Describe(ch chan<- *prometheus.Desc) {
	for _, d := range []*prometheus.Desc{descConnected, descClassic, descGen, descEvents, descResyncs, descReads, descBytes, descSessions, descDiffs} {
		ch <- d
	}
}

func (c sessionCollector) Collect(ch chan<- prometheus.Metric) {
	for _, z := range c.pool.Statuses() {
		gauge(ch, descConnected, bit(z.Connected), z.Ensemble)
		gauge(ch, descClassic, bit(z.Classic), z.Ensemble)
	}
	for name, s := range c.pool.stats() {
		counter(ch, descReads, s.Reads, name)
		counter(ch, descBytes, s.Bytes, name)
		counter(ch, descSessions, s.Sessions, name, "opened")
		counter(ch, descSessions, s.Expired, name, "expired")
		counter(ch, descSessions, s.Discarded, name, "discarded")
		gauge(ch, descGen, float64(s.Generation), name)
		counter(ch, descEvents, s.Events, name)
		counter(ch, descResyncs, s.Resyncs-s.Unchanged, name, "listed")
		counter(ch, descResyncs, s.Unchanged, name, "unchanged")
		counter(ch, descDiffs, s.Differences, name)
	}
}

func gauge(ch chan<- prometheus.Metric, d *prometheus.Desc, v float64, labels ...string) {
	ch <- prometheus.MustNewConstMetric(d, prometheus.GaugeValue, v, labels...)
}

func counter(ch chan<- prometheus.Metric, d *prometheus.Desc, v uint64, labels ...string) {
	ch <- prometheus.MustNewConstMetric(d, prometheus.CounterValue, float64(v), labels...)
}

func (c collector) Collect(ch chan<- prometheus.Metric) {
	c.sessions.Collect(ch)
	st := c.status()
	silent := map[string]float64{} // seconds without the ensemble
	for _, z := range st.ZooKeeper {
		if !z.Connected {
			silent[z.Ensemble] = time.Since(z.Since).Seconds()
		}
	}
	for _, s := range st.Services {
		gauge(ch, descInstances, float64(s.Active), s.Service, "active")
		gauge(ch, descInstances, float64(s.Listed), s.Service, "listed")
		gauge(ch, descInstances, float64(len(s.Rejected)), s.Service, "rejected")
		gauge(ch, descNames, float64(len(s.Unresolved)), s.Service)
		gauge(ch, descCurtailed, float64(len(s.Curtailed)), s.Service)
		gauge(ch, descRemote, float64(len(s.Problems)), s.Service)
		gauge(ch, descHeld, bit(s.Held != ""), s.Service)
		gauge(ch, descGuarded, float64(s.Guard.Held), s.Service)
		for what, n := range s.Guard.Decided {
			counter(ch, descDecided, n, s.Service, what)
		}
		if s.Ensemble != "" {
			age := silent[s.Ensemble]
			if s.FromDisk != nil {
				age = since(time.Now(), *s.FromDisk).Seconds()
			}
			gauge(ch, descAge, age, s.Service)
		}
		if s.Rung != "" {
			gauge(ch, descRung, 1, s.Backend, s.Rung)
		}
		reasons := map[string]int{}
		for _, r := range s.Rejected {
			reasons[r.Reason]++
		}
		if s.Surplus > 0 {
			reasons["surplus"] = s.Surplus
		}
		for reason, n := range reasons {
			gauge(ch, descRejected, float64(n), s.Service, reason)
		}
	}
	if st.Overrides.Path != "" {
		for state, n := range st.Overrides.states() {
			gauge(ch, descOverrides, float64(n), state)
		}
	}
	if st.File.Reload != nil {
		for reason, n := range st.File.Reload.ByReason {
			counter(ch, descReloads, n, reason)
		}
	}
	if st.Shadow != nil {
		st.Shadow.collect(ch, time.Now())
	}
	for _, h := range st.HAProxy {
		gauge(ch, descUp, bit(h.Connected), h.Socket)
		if !h.Connected {
			continue // what it had says nothing of what it has
		}
		gauge(ch, descForeign, float64(len(h.Manual)), h.Socket)
		for name, n := range h.Backends {
			gauge(ch, descServers, float64(n.Ready), h.Socket, name, "ready")
			gauge(ch, descServers, float64(n.Drain), h.Socket, name, "drain")
			gauge(ch, descServers, float64(n.Maint), h.Socket, name, "maint")
		}
	}
}

// collect exports what a shadow has found. Several HAProxys count together: what would be done to a backend is the sum,
// and it agrees for as long as all of them do.
func (s *ShadowStatus) collect(ch chan<- prometheus.Metric, now time.Time) {
	type key struct{ backend, op string }
	due, lasted := map[key]int{}, map[key]uint64{}
	agreed, unknown := map[string]float64{}, map[string]bool{}
	for _, b := range s.Backends {
		for op, n := range b.Lasted {
			lasted[key{b.Backend, op}] += n
			due[key{b.Backend, op}] += b.Due[op]
		}
		if b.State == shadowUnknown {
			unknown[b.Backend] = true
			continue
		}
		seconds := 0.0
		if b.State == shadowAgrees {
			seconds = since(now, b.Since).Seconds()
		}
		if old, several := agreed[b.Backend]; !several || seconds < old {
			agreed[b.Backend] = seconds
		}
	}
	for k, n := range lasted {
		counter(ch, descLasted, n, k.backend, k.op)
	}
	for k, n := range due {
		if !unknown[k.backend] {
			gauge(ch, descWould, float64(n), k.backend, k.op)
		}
	}
	for backend, seconds := range agreed {
		if !unknown[backend] {
			gauge(ch, descAgreed, seconds, backend)
		}
	}
	if s.File != nil && s.File.Error == "" {
		gauge(ch, descFileDiff, float64(len(s.File.Differences)))
	}
}

func bit(b bool) float64 {
	if b {
		return 1
	}
	return 0
}
