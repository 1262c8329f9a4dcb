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
}

// NewMetrics registers the registrar's metrics with reg. It panics when they are registered there already.
func NewMetrics(reg prometheus.Registerer) *Metrics {
	m := &Metrics{
		registered: prometheus.NewGaugeVec(prometheus.GaugeOpts{
			Name: "myelin_registrar_registered", Help: "1 while the directory has confirmed the service's registration."},
			[]string{"service"}),
		checks: prometheus.NewCounterVec(prometheus.CounterOpts{
			Name: "myelin_registrar_checks_total", Help: "Health checks made, by result: pass or fail."},
			[]string{"service", "result"}),
		seconds: prometheus.NewHistogramVec(prometheus.HistogramOpts{
			Name: "myelin_registrar_check_seconds", Help: "Length of a health check.",
			Buckets: prometheus.ExponentialBuckets(0.0005, 4, 8)}, []string{"service"}),
		repairs: prometheus.NewCounterVec(prometheus.CounterOpts{
			Name: "myelin_registrar_repairs_total", Help: "What was found not to be as it had been left, and was mended: " +
				"missing (deleted by somebody), foreign (the node's place had been taken), twin (another node of ours beside it), " +
				"data (changed by somebody) or expired (the session had)."}, []string{"service", "reason"}),
	}
	reg.MustRegister(m.registered, m.checks, m.seconds, m.repairs)
	return m
}

func (m *Metrics) checked(service string, pass bool, took time.Duration) {
	if m == nil {
		return
	}
	result := "fail"
	if pass {
		result = "pass"
	}
	m.checks.WithLabelValues(service, result).Inc()
	m.seconds.WithLabelValues(service).Observe(took.Seconds())
}

func (m *Metrics) present(service string, registered bool) {
	if m == nil {
		return
	}
	v := 0.0
	if registered {
		v = 1
	}
	m.registered.WithLabelValues(service).Set(v)
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
}
