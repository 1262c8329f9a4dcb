package discovery

import (
	"encoding/json"
	"fmt"
	"strconv"
)

// ServersetPrefix is what the nodes of a serverset are called, up to the sequence number.
const ServersetPrefix = "member_"

// Statuses of a serverset's member that we write. Readers take a member that is ALIVE, and no other.
const (
	statusAlive    = "ALIVE"
	statusStopping = "STOPPING"
)

// EncodeServerset returns a member as Twitter's serversets have it, which Finagle, Aurora and Prometheus read. A label
// "shard" that is a whole number of 32 bits is the member's shard. The format knows neither names nor weights. One that
// is leaving is STOPPING, and readers leave it alone.
func EncodeServerset(p Payload) ([]byte, error) {
	type endpoint struct {
		Host string `json:"host"`
		Port uint16 `json:"port"`
	}
	wire := struct {
		Service    endpoint            `json:"serviceEndpoint"`
		Additional map[string]endpoint `json:"additionalEndpoints"`
		Status     string              `json:"status"`
		Shard      *int                `json:"shard,omitempty"`
	}{endpoint{p.Host, p.Port}, map[string]endpoint{}, statusAlive, shard(p.Labels["shard"])}
	if p.Leaving {
		wire.Status = statusStopping
	}
	return compact(wire, p.Name)
}

// shard is a label's value as a shard, nil when it is none.
func shard(label any) *int {
	n, err := strconv.ParseInt(fmt.Sprint(label), 10, 32)
	if err != nil {
		return nil
	}
	v := int(n)
	return &v
}

// DecodeServerset returns a decoder of serverset members, as DecodeNerve is one of Nerve's registrations. With a name
// the instance is the additional endpoint of that name. The shard becomes the instance's name, as in Synapse. A member
// that is STOPPING is one that is leaving; one whose status is anything else but ALIVE is rejected with ReasonStatus.
// Synapse takes them all, and sends requests to one that starts or has died.
func DecodeServerset(endpoint string) func(node string, data []byte) (Instance, error) {
	return func(node string, data []byte) (Instance, error) {
		fields, err := document(data)
		if err != nil {
			return Instance{}, err
		}
		return serverset(node, fields, endpoint)
	}
}

func serverset(node string, fields map[string]any, endpoint string) (Instance, error) {
	status, ok := fields["status"].(string)
	if ok && status != statusAlive && status != statusStopping {
		return Instance{}, reject(ReasonStatus, "the member says status: %s", quote(status))
	}
	at, what := fields["serviceEndpoint"], "serviceEndpoint"
	if endpoint != "" {
		additional, _ := fields["additionalEndpoints"].(map[string]any)
		at, what = additional[endpoint], "additional endpoint "+quote(endpoint)
	}
	place, ok := at.(map[string]any)
	if !ok {
		return Instance{}, reject(ReasonHost, "no %s", what)
	}
	in := Instance{Node: node, ID: SequenceID(node), Leaving: status == statusStopping}
	var err error
	if in.Endpoint, err = endpointOf(place["host"], place["port"]); err != nil {
		return Instance{}, err
	}
	if number, ok := fields["shard"].(json.Number); ok {
		in.Name = SafeName(number.String())
	}
	return in, nil
}
