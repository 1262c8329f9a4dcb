package discovery

import (
	"bytes"
	"encoding/json"
	"regexp"
	"strconv"
	"time"
)

// EncodeCurator returns a ServiceInstance as Curator's x-discovery has it, of the service with that name and the instance
// with that id, which is also the name of its node. It has no weight, and the payload is null: any other one without a
// Java class that all readers have would fail each reader's whole query. The time of registration is 0 until DateCurator
// puts it in.
func EncodeCurator(p Payload, service, id string) ([]byte, error) {
	return compact(struct {
		Name    string `json:"name"`
		ID      string `json:"id"`
		Address string `json:"address"`
		Port    uint16 `json:"port"`
		SSLPort any    `json:"sslPort"`
		Payload any    `json:"payload"`
		Time    int64  `json:"registrationTimeUTC"` // ms
		Type    string `json:"serviceType"`
		URI     any    `json:"uriSpec"`
	}{Name: service, ID: id, Address: p.Host, Port: p.Port, Type: "DYNAMIC"}, p.Name)
}

// curatorTime finds the time of registration in what EncodeCurator wrote. A quote inside a text has a backslash before
// it, so that no text can look like the key.
var curatorTime = regexp.MustCompile(`"registrationTimeUTC":([0-9]{1,18})`)

// DateCurator returns data, which are EncodeCurator's, with a time of registration: the one in there, which is what is
// published already, else now. There may be nil.
func DateCurator(data, there []byte, now time.Time) []byte {
	at := []byte(strconv.FormatInt(now.UnixMilli(), 10))
	if found := curatorTime.FindSubmatch(there); found != nil && !bytes.Equal(found[1], []byte("0")) {
		at = found[1]
	}
	return curatorTime.ReplaceAllLiteral(data, append([]byte(`"registrationTimeUTC":`), at...))
}

// DecodeCurator decodes a ServiceInstance of Curator, or one of Spring Cloud ZooKeeper, as DecodeNerve does Nerve's
// registrations. The id becomes the instance's name, and the metadata of Spring's payload its labels. An instance that is
// not enabled, or whose metadata say an instance_status other than UP, is rejected with ReasonStatus.
func DecodeCurator(node string, data []byte) (Instance, error) {
	fields, err := document(data)
	if err != nil {
		return Instance{}, err
	}
	return curator(node, fields)
}

func curator(node string, fields map[string]any) (Instance, error) {
	if enabled, ok := fields["enabled"].(bool); ok && !enabled {
		return Instance{}, reject(ReasonStatus, "the instance says enabled: false")
	}
	in := Instance{Node: node, ID: SequenceID(node)}
	if payload, ok := fields["payload"].(map[string]any); ok {
		in.Labels = labels(payload["metadata"])
	}
	if status, ok := in.Labels["instance_status"].(string); ok && status != "UP" {
		return Instance{}, reject(ReasonStatus, "the instance says instance_status: %s", quote(status))
	}
	port := fields["port"]
	if port == nil {
		port = fields["sslPort"]
	}
	var err error
	if in.Endpoint, err = endpointOf(fields["address"], port); err != nil {
		return Instance{}, err
	}
	if id, ok := fields["id"].(string); ok {
		in.Name = SafeName(id)
	}
	return in, nil
}

// DecodeAny decodes a registration of any format that we know: by what is in it, it is a serverset's, Curator's, or else
// Nerve's.
func DecodeAny(node string, data []byte) (Instance, error) {
	return new(AnyDecoder).Decode(node, data)
}

// AnyDecoder decodes registrations as DecodeAny does, and shares what a NerveDecoder shares. The zero value is ready.
type AnyDecoder struct{ nerve NerveDecoder }

// Decode is DecodeAny. The Labels and ServerOptions of the instance must not be changed.
func (d *AnyDecoder) Decode(node string, data []byte) (Instance, error) {
	in, err := d.nerve.Decode(node, data)
	if err == nil {
		return in, nil
	}
	if fields, other := document(data); other == nil {
		switch {
		case has(fields, "serviceEndpoint"):
			return serverset(node, fields, "")
		case has(fields, "address") && (has(fields, "serviceType") || has(fields, "registrationTimeUTC")):
			return curator(node, fields)
		}
	}
	return in, err
}

func has(fields map[string]any, key string) bool { return fields[key] != nil }

// document decodes the data of a node that is one JSON object.
func document(data []byte) (map[string]any, error) {
	if len(data) > maxPayload {
		return nil, reject(ReasonOversize, "%d bytes of data, at most %d are decoded", len(data), maxPayload)
	}
	if len(data) == 0 {
		return nil, reject(ReasonUndecodable, "the node has no data")
	}
	fields, err := object(data)
	if err != nil {
		return nil, reject(ReasonUndecodable, "%s in %s", quote(err.Error()), quote(string(data)))
	}
	return fields, nil
}

// endpointOf is the endpoint of a host and a port as they stand in a registration.
func endpointOf(host, number any) (Endpoint, error) {
	name, ok := host.(string)
	if !ok || name == "" {
		return Endpoint{}, reject(ReasonHost, "no host")
	}
	n, ok := port(number)
	if !ok {
		return Endpoint{}, reject(ReasonPort, "port is %s, not a number from 1 to 65535", quote(jsonText(number)))
	}
	e, err := ParseEndpoint(name, n)
	if err != nil {
		return Endpoint{}, reject(ReasonHost, "host %s is %v", quote(name), errHost)
	}
	return e, nil
}

func jsonText(v any) string {
	text, err := json.Marshal(v)
	if err != nil {
		return "unreadable"
	}
	return string(text)
}
