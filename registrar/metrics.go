package registrar

import (
	"time"

	"github.com/prometheus/client_golang/prometheus"
)

// Metrics are the registrar's numbers. A nil *Metrics counts nothing.
type Metrics struct {
	registered *prometheus.GaugeVec
	checks     *prometheus.CounterVec
	seconds    *prometheus.HistogramVec
	repairs    *prometheus.CounterVec
	wait       prometheus.Histogram
	stalls     prometheus.Counter
	lost       prometheus.Counter
	damped     *prometheus.GaugeVec
}

// NewMetrics registers the registrar's metrics with reg. It panics when they are registered there already.
func NewMetrics(reg prometheus.Registerer) *Metrics {
	m := &Metrics{
		registered: prometheus.NewGaugeVec(prometheus.GaugeOpts{
			Name: "myelin_registrar_registered", Help: "1 while the directory has confirmed the service's registration."},
			[]string{"service"}),
		checks: prometheus.NewCounterVec(prometheus.CounterOpts{
			Name: "myelin_registrar_checks_total", Help: "Health checks made, by result: pass, degraded, fail or doubtful."},
			[]string{"service", "result"}),
		seconds: prometheus.NewHistogramVec(prometheus.HistogramOpts{
			Name: "myelin_registrar_check_seconds", Help: "Length of a health check.",
			Buckets: prometheus.ExponentialBuckets(0.0005, 4, 8)}, []string{"service"}),
		repairs: prometheus.NewCounterVec(prometheus.CounterOpts{
			Name: "myelin_registrar_repairs_total", Help: "What was found not to be as it had been left, and was mended: " +
				"missing (deleted by somebody), foreign (the node's place had been taken), twin (another node of ours beside it), " +
				"data (changed by somebody) or expired (the session had)."}, []string{"service", "reason"}),
		wait: prometheus.NewHistogram(prometheus.HistogramOpts{
			Name: "myelin_registrar_check_wait_seconds", Help: "Time that health checks wait for one of the max_concurrent_checks places.",
			Buckets: prometheus.ExponentialBuckets(0.0005, 4, 8)}),
		stalls: prometheus.NewCounter(prometheus.CounterOpts{
			Name: "myelin_registrar_stalls_total", Help: "Times that this process did not get to run: stopped, paused or starved."}),
		lost: prometheus.NewCounter(prometheus.CounterOpts{
			Name: "myelin_registrar_stalled_seconds_total", Help: "Time in which this process did not get to run."}),
		damped: prometheus.NewGaugeVec(prometheus.GaugeOpts{
			Name: "myelin_registrar_damped", Help: "1 while a service that goes up and down too often is kept registered although its checks say that it is down."},
			[]string{"service"}),
	}
	reg.MustRegister(m.registered, m.checks, m.seconds, m.repairs, m.wait, m.stalls, m.lost, m.damped)
	return m
}

func (m *Metrics) checked(service string, v Verdict, took time.Duration) {
	if m == nil {
		return
	}
	m.checks.WithLabelValues(service, string(v)).Inc()
	m.seconds.WithLabelValues(service).Observe(took.Seconds())
}

func (m *Metrics) waited(d time.Duration) {
	if m != nil {
		m.wait.Observe(d.Seconds())
	}
}

func (m *Metrics) stalled(gap time.Duration) {
	if m != nil {
		m.stalls.Inc()
		m.lost.Add(gap.Seconds())
	}
}

func (m *Metrics) held(service string, held bool) {
	if m != nil {
		m.damped.WithLabelValues(service).Set(number(held))
	}
}

func number(yes bool) float64 {
	if yes {
		return 1
	}
	return 0
}

func (m *Metrics) present(service string, registered bool) {
	if m == nil {
		return
	}
	m.registered.WithLabelValues(service).Set(number(registered))
}

func (m *Metrics) repaired(service, reason string) {
	if m != nil {
		m.repairs.WithLabelValues(service, reason).Inc()
	}
}

// forget drops every label value of a service that is no more.
func (m *Metrics) forget(service string) {
	if m == nil {
		return
	}
	of := prometheus.Labels{"service": service}
	m.registered.DeletePartialMatch(of)
	m.checks.DeletePartialMatch(of)
	m.seconds.DeletePartialMatch(of)
	m.repairs.DeletePartialMatch(of)
	m.damped.DeletePartialMatch(of)
}
