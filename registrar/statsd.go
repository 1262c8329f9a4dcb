package registrar

import (
	"fmt"
	"net"
	"strconv"
	"strings"

	"github.com/DataDog/datadog-go/v5/statsd"
)

// Statsd sends what happens to a dogstatsd receiver, under the names and tags that Nerve has for it (airbnb/nerve 0.9.7).
// What has no counterpart here is not sent: Nerve's main loop, its pooled connections. A nil *Statsd sends nothing. Its
// methods do not block: what the receiver does not take is lost.
type Statsd struct{ client statsd.ClientInterface }

// NewStatsd returns a sender to host and port over UDP. It resolves the name once, and fails when that fails. It must be
// closed.
func NewStatsd(host string, port uint16) (*Statsd, error) {
	address := net.JoinHostPort(strings.Trim(host, "[]"), strconv.Itoa(int(port)))
	client, err := statsd.New(address, statsd.WithoutTelemetry(), statsd.WithoutOriginDetection(), statsd.WithoutClientSideAggregation())
	if err != nil {
		return nil, fmt.Errorf("send to statsd at %s: %w", address, err)
	}
	return &Statsd{client}, nil
}

// Close sends what is left, and ends the sender.
func (s *Statsd) Close() {
	if s != nil {
		s.client.Close()
	}
}

func (s *Statsd) count(name string, tags ...string) {
	if s != nil {
		s.client.Incr(name, tags, 1)
	}
}

func (s *Statsd) started() { s.count("nerve.start") }

func (s *Statsd) stopped() {
	s.count("nerve.stop", "stop_avenue:clean", "stop_location:main_loop")
}

func (s *Statsd) reread() { s.count("nerve.config.update") }

// launched: a service is looked after from now on. reason is new or update.
func (s *Statsd) launched(service, reason string) {
	s.count("nerve.watcher.launch", "launch_reason:"+reason, "watcher_name:"+service)
	s.count("nerve.watcher.start", "service_name:"+service)
}

// reaped: it is not any more. reason is old or update.
func (s *Statsd) reaped(service, reason string) {
	s.count("nerve.watcher.stop", "stop_avenue:clean", "service_name:"+service)
	s.count("nerve.watcher.reap", "reap_reason:"+reason, "reap_result:success", "watcher_name:"+service)
}

func (s *Statsd) checked(service, check string, pass bool) {
	s.count("nerve.watcher.status.service_check", "check_result:"+upOrDown(pass), "service_name:"+service, "check_name:"+check)
}

// throttled: a change of state waits for its limit, or would.
func (s *Statsd) throttled(service string, shadow bool) {
	s.count("nerve.watcher.throttled", "service_name:"+service, "shadow_mode:"+strconv.FormatBool(shadow))
}

// reported: the directory has answered a request, or has not. node is what stood before it.
func (s *Statsd) reported(service Service, o outcome, node string) {
	if s == nil {
		return
	}
	result := "success"
	if o.err != nil {
		result = "fail"
	}
	name := "service_name:" + service.Name
	s.count("nerve.watcher.status.ping.count", "ping_result:"+result, name)
	if o.why == whyAudit || o.why == whyEvent {
		return // Nerve reports changes of health only
	}
	s.count("nerve.watcher.status.report.count", "report_result:"+result, name)
	tags, timer := []string{"zk_cluster:" + service.Cluster}, "delete"
	if o.op == publish && node != "" {
		timer = "save"
	} else if o.op == publish {
		timer, tags = "create", append(tags, "zk_path:"+service.Registration.Path)
		if encoded := strings.Split(service.Registration.Prefix, "_"); len(encoded) > 2 && encoded[0] == "base64" {
			length, _ := strconv.ParseFloat(encoded[1], 64)
			s.client.Gauge("nerve.reporter.zk.child.bytes", length, tags, 1)
		}
	}
	s.client.Timing("nerve.reporter.zk."+timer+".elapsed_time", o.took, tags, 1)
}

// turned: the directory has taken a change of state.
func (s *Statsd) turned(service string, up bool) {
	s.count("nerve.watcher.status.transition", "new_status:"+upOrDown(up), "service_name:"+service)
}

func upOrDown(up bool) string {
	if up {
		return "up"
	}
	return "down"
}
