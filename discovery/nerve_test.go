package discovery_test

import (
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"
	"regexp"
	"strings"
	"testing"
	"unicode"

	"github.com/stretchr/testify/require"

	"github.com/myelin-sd/myelin/discovery"
)

func ptr[T any](v T) *T { return &v }

func TestDecodeNerve(t *testing.T) {
	in, err := discovery.DecodeNerve("i-1_0000000042", []byte(`{"host":"10.0.0.1","port":3000,"name":"i-1","weight":7,`+
		`"haproxy_server_options":"check  inter 2s\tbackup","labels":{"az":"us-east-1a","n":1,"b":true,"nil":null,"list":[1],"o":{}},"extra":{"a":[]}}`))
	require.NoError(t, err)
	require.Equal(t, "10.0.0.1:3000", in.Endpoint.String())
	require.Equal(t, "i-1", in.Name)
	require.Equal(t, 7, *in.Weight)
	require.Equal(t, []string{"check", "inter", "2s", "backup"}, in.ServerOptions)
	require.Equal(t, map[string]any{"az": "us-east-1a", "n": json.Number("1"), "b": true, "nil": nil}, in.Labels)
	require.EqualValues(t, 42, *in.ID)
	require.Equal(t, "i-1_0000000042", in.Node)
}

// TestDecodeNerveTolerance: what is odd and harmless keeps the instance.
func TestDecodeNerveTolerance(t *testing.T) {
	decode := func(fields string) discovery.Instance {
		t.Helper()
		in, err := discovery.DecodeNerve("x", []byte(`{"host":"h","port":1`+fields+`}`))
		require.NoError(t, err, fields)
		return in
	}
	require.Empty(t, decode("").Name)
	require.Nil(t, decode("").ID)
	require.Nil(t, decode("").Weight)
	require.Nil(t, decode("").ServerOptions)
	for _, weight := range []string{"null", "-1", "1.5", "1.0", "1e2", `"5"`, "[]", "true", "99999999999999999999999", "2147483648"} {
		require.Nil(t, decode(`,"weight":`+weight).Weight, weight)
	}
	require.Equal(t, 0, *decode(`,"weight":0`).Weight)
	for _, labels := range []string{"null", `"a"`, "[]", "1"} {
		require.Nil(t, decode(`,"labels":`+labels).Labels, labels)
	}
	require.Nil(t, decode(`,"haproxy_server_options":null`).ServerOptions)
	require.Nil(t, decode(`,"haproxy_server_options":"  "`).ServerOptions)
	require.Equal(t, "17", decode(`,"name":17`).Name)
	require.Empty(t, decode(`,"name":["a"]`).Name)
	for _, available := range []string{"true", "null", `"false"`} {
		decode(`,"available":` + available)
	}
	require.Equal(t, "i", decode(`,"name":"i","Name":"j","NAME":"k"`).Name, "keys match exactly")
	require.Equal(t, "b", decode(`,"host":"a","host":"b"`).Endpoint.Host(), "the last of repeated keys counts")

	in, err := discovery.DecodeNerve("x", []byte(" {\"host\":\"h\",\"port\":\"0080\"}\r\n"))
	require.NoError(t, err)
	require.EqualValues(t, 80, in.Endpoint.Port())
}

func TestDecodeNerveRejects(t *testing.T) {
	with := func(fields string) string { return `{"host":"10.0.0.1","port":80,` + fields + `}` }
	option := func(s string) string { b, _ := json.Marshal(s); return with(`"haproxy_server_options":` + string(b)) }
	for name, c := range map[string]struct{ data, reason string }{
		"empty":              {"", discovery.ReasonUndecodable},
		"text":               {"10.0.0.1:80", discovery.ReasonUndecodable},
		"null":               {"null", discovery.ReasonUndecodable},
		"list":               {`[{"host":"h","port":1}]`, discovery.ReasonUndecodable},
		"cut":                {`{"host":"h","port":1`, discovery.ReasonUndecodable},
		"twice":              {`{"host":"h","port":1}{"host":"h","port":1}`, discovery.ReasonUndecodable},
		"trailing":           {`{"host":"h","port":1} x`, discovery.ReasonUndecodable},
		"NUL":                {"{\"host\":\"h\",\"port\":1}\x00", discovery.ReasonUndecodable},
		"depth":              {strings.Repeat("[", 60_000), discovery.ReasonUndecodable},
		"nested":             {`{"a":` + strings.Repeat("[", 20_000) + strings.Repeat("]", 20_000) + `}`, discovery.ReasonUndecodable},
		"2 MB":               {`{"host":"h","port":1,"x":"` + strings.Repeat("a", 2<<20) + `"}`, discovery.ReasonOversize},
		"64 KiB and 1":       {strings.Repeat(" ", 64<<10+1), discovery.ReasonOversize},
		"no host":            {`{"port":1}`, discovery.ReasonHost},
		"null host":          {`{"host":null,"port":1}`, discovery.ReasonHost},
		"number host":        {`{"host":1,"port":1}`, discovery.ReasonHost},
		"socket":             {`{"host":"unix@/run/haproxy.sock","port":1}`, discovery.ReasonHost},
		"path":               {`{"host":"/run/haproxy.sock","port":1}`, discovery.ReasonHost},
		"semicolon host":     {`{"host":"h;disable server b/s","port":1}`, discovery.ReasonHost},
		"newline host":       {`{"host":"h\nshutdown","port":1}`, discovery.ReasonHost},
		"bad UTF-8":          {"{\"host\":\"\xff\xfe\",\"port\":1}", discovery.ReasonHost},
		"no port":            {`{"host":"h"}`, discovery.ReasonPort},
		"port 0":             {`{"host":"h","port":0}`, discovery.ReasonPort},
		"port 65536":         {`{"host":"h","port":65536}`, discovery.ReasonPort},
		"port 1.0":           {`{"host":"h","port":1.0}`, discovery.ReasonPort},
		"port 1e3":           {`{"host":"h","port":1e3}`, discovery.ReasonPort},
		"port -1":            {`{"host":"h","port":-1}`, discovery.ReasonPort},
		"port +1":            {`{"host":"h","port":"+1"}`, discovery.ReasonPort},
		"port blank":         {`{"host":"h","port":" 1"}`, discovery.ReasonPort},
		"port huge":          {`{"host":"h","port":` + strings.Repeat("9", 5000) + `}`, discovery.ReasonPort},
		"port exponent":      {`{"host":"h","port":1e999999999}`, discovery.ReasonPort},
		"port list":          {`{"host":"h","port":[80]}`, discovery.ReasonPort},
		"port name":          {`{"host":"h","port":"http"}`, discovery.ReasonPort},
		"not available":      {with(`"available":false`), discovery.ReasonStatus},
		"options list":       {with(`"haproxy_server_options":["check"]`), discovery.ReasonOptions},
		"options number":     {with(`"haproxy_server_options":5`), discovery.ReasonOptions},
		"options newline":    {option("check\n\tserver evil 1.2.3.4:1"), discovery.ReasonOptions},
		"options CR":         {option("check\rx"), discovery.ReasonOptions},
		"options semicolon":  {option("check; shutdown sessions server b/s"), discovery.ReasonOptions},
		"options percent":    {option("check %[src]"), discovery.ReasonOptions},
		"options quote":      {option(`check "x"`), discovery.ReasonOptions},
		"options apostrophe": {option(`check 'x'`), discovery.ReasonOptions},
		"options backslash":  {option(`check\ x`), discovery.ReasonOptions},
		"options hash":       {option("check # x"), discovery.ReasonOptions},
		"options dollar":     {option("check $HOME"), discovery.ReasonOptions},
		"options payload":    {option("check <<"), discovery.ReasonOptions},
		"options NUL":        {option("check\x00"), discovery.ReasonOptions},
		"options brace":      {option("cookie {a}"), discovery.ReasonOptions},
		"options non-ASCII":  {option("check\u00a0inter"), discovery.ReasonOptions},
		"options long":       {option(strings.Repeat("check ", 200)), discovery.ReasonOptions},
	} {
		in, err := discovery.DecodeNerve("i_1", []byte(c.data))
		var rejected *discovery.RejectError
		require.ErrorAs(t, err, &rejected, name)
		require.Equal(t, c.reason, rejected.Reason, name)
		require.Zero(t, in, name)
		checkDetail(t, rejected)
	}
}

// checkDetail: what is shown to people is one short line of ASCII.
func checkDetail(t *testing.T, r *discovery.RejectError) {
	t.Helper()
	require.Less(t, len(r.Detail), 1500)
	for _, c := range r.Detail {
		if c > unicode.MaxASCII || !unicode.IsPrint(c) {
			t.Fatalf("%q in detail %q", c, r.Detail)
		}
	}
}

func TestSafeName(t *testing.T) {
	for in, want := range map[string]string{
		"i-1.example_x":           "i-1.example_x",
		"":                        "",
		"a b;c\nd\"e%f\\g<<h\x00": "a_b_c_d_e_f_g__h_",
		"ünï":                     "_n_",
		"\xff\xfe":                "__",
		"a/b:c":                   "a_b_c",
		strings.Repeat("a", 200):  strings.Repeat("a", 64),
		strings.Repeat("ü", 200):  strings.Repeat("_", 64),
	} {
		require.Equal(t, want, discovery.SafeName(in), "%q", in)
	}
}

func TestSequenceID(t *testing.T) {
	for node, want := range map[string]*int64{
		"i-1_0000000042":           ptr[int64](42),
		"1234":                     ptr[int64](1234), // as in Synapse
		"a_b_7":                    ptr[int64](7),
		"i-1_":                     nil,
		"i-1":                      nil,
		"":                         nil,
		"i-1_-0000000001":          nil,
		"i_9223372036854775807":    ptr[int64](9223372036854775807),
		"i_9223372036854775808":    nil,
		"i_1 ":                     nil,
		"base64_4_eyJ9_0000000003": ptr[int64](3),
		"i_\u0661":                 nil,
	} {
		require.Equal(t, want, discovery.SequenceID(node), "%q", node)
	}
}

// TestEncodeNerve: byte for byte what Nerve writes.
func TestEncodeNerve(t *testing.T) {
	for want, p := range map[string]discovery.Payload{
		`{"host":"10.0.0.1","port":3000,"name":"i-1"}`: {Host: "10.0.0.1", Port: 3000, Name: "i-1"},
		`{"host":"10.0.0.1","port":3000,"name":"i-1","weight":7,"haproxy_server_options":"backup","labels":{"az":"us-east-1a"}}`: {
			Host: "10.0.0.1", Port: 3000, Name: "i-1", Weight: ptr(7), ServerOptions: ptr("backup"), Labels: map[string]any{"az": "us-east-1a"}},
		`{"host":"h","port":"3000","name":"<&>","weight":0,"haproxy_server_options":"","labels":{}}`: {
			Host: "h", Port: 3000, PortText: true, Name: "<&>", Weight: ptr(0), ServerOptions: ptr(""), Labels: map[string]any{}},
		`{"host":"h","port":1,"name":"ü","labels":{"a":null,"b":1.50,"c":true}}`: {
			Host: "h", Port: 1, Name: "ü", Labels: map[string]any{"c": true, "a": nil, "b": json.Number("1.50")}},
		`{"host":"h","port":1,"name":"n","labels":{"a":"b"},"leaving":true}`: { // the one key that is not Nerve's
			Host: "h", Port: 1, Name: "n", Labels: map[string]any{"a": "b"}, Leaving: true},
	} {
		got, err := discovery.EncodeNerve(p)
		require.NoError(t, err)
		require.Equal(t, want, string(got))
	}
	_, err := discovery.EncodeNerve(discovery.Payload{Name: "a\nb", Labels: map[string]any{"f": func() {}}})
	require.ErrorContains(t, err, `encode registration of "a\nb"`)
}

func TestNameEncoding(t *testing.T) {
	// The example of SmartStack's inventory, as Nerve wrote it.
	payload := `{"host":"10.0.0.1","port":3000,"name":"i-1"}`
	prefix, ok := discovery.EncodeName([]byte(payload))
	require.True(t, ok)
	require.Equal(t, "base64_60_eyJob3N0IjoiMTAuMC4wLjEiLCJwb3J0IjozMDAwLCJuYW1lIjoiaS0xIn0=_", prefix)
	got, ok := discovery.DecodeName(prefix + "0000000001")
	require.True(t, ok)
	require.Equal(t, payload, string(got))

	in, err := discovery.DecodeNerve(prefix+"0000000001", []byte(`{"host":"10.9.9.9","port":1}`))
	require.NoError(t, err)
	require.Equal(t, "10.0.0.1:3000", in.Endpoint.String(), "the name goes before the data")
	require.EqualValues(t, 1, *in.ID)

	_, ok = discovery.EncodeName(make([]byte, 49152))
	require.True(t, ok)
	_, ok = discovery.EncodeName(make([]byte, 49153))
	require.False(t, ok, "more than 64 KiB encoded")
	_, ok = discovery.EncodeName(nil)
	require.False(t, ok)

	data := []byte(`{"host":"10.9.9.9","port":1}`)
	for _, node := range []string{
		"base64", "base64_", "base64__", "base64_x_e30_0", "base64_-4_eyJ9_0", "base64_+4_eyJ9_0", "base64_0__0", "base64_400_eyJ9_0",
		"base64_3_eyJ9_0", "base64_4_!!!!_0", "base64_5_e30=x_0", "base64_65537_" + strings.Repeat("A", 65537) + "_0",
		"base64_99999999999_A_0", "Base64_4_eyJ9_0", "base64_5_eyJ\n9_0",
	} {
		_, ok := discovery.DecodeName(node)
		require.False(t, ok, "%q", node)
		in, err := discovery.DecodeNerve(node, data)
		require.NoError(t, err, "%q", node)
		require.Equal(t, "10.9.9.9:1", in.Endpoint.String(), "the data counts then")
	}
	// Decodes, and is no registration: the data counts as well.
	text := base64.URLEncoding.EncodeToString([]byte(`{"host":"a;b","port":1}`))
	in, err = discovery.DecodeNerve(fmt.Sprintf("base64_%d_%s_0", len(text), text), data)
	require.NoError(t, err)
	require.Equal(t, "10.9.9.9:1", in.Endpoint.String())
}

var (
	safeName   = regexp.MustCompile(`^[A-Za-z0-9_.-]{0,64}$`)
	safeOption = regexp.MustCompile(`^[A-Za-z0-9_.,:/()@+=-]+$`)
	safeHost   = regexp.MustCompile(`^[a-z0-9.:-]{1,253}$`)
)

// FuzzDecodeNerve: no input panics, and whatever is accepted is safe to become part of a command.
func FuzzDecodeNerve(f *testing.F) {
	f.Add("i-1_0000000042", []byte(`{"host":"10.0.0.1","port":3000,"name":"i-1","weight":7,"haproxy_server_options":"check inter 2s","labels":{"az":"a"}}`))
	f.Add("x", []byte(`{"host":"unix@/x","port":"1e5","name":"a;b\n","haproxy_server_options":"a;b\n%"}`))
	f.Add("base64_60_eyJob3N0IjoiMTAuMC4wLjEiLCJwb3J0IjozMDAwLCJuYW1lIjoiaS0xIn0=_0000000001", []byte(""))
	f.Add("\xff", []byte("\xff\xfe{"))
	f.Fuzz(func(t *testing.T, node string, data []byte) {
		in, err := discovery.DecodeNerve(node, data)
		if err != nil {
			var rejected *discovery.RejectError
			if !errors.As(err, &rejected) || rejected.Reason == "" {
				t.Fatalf("not a rejection: %v", err)
			}
			checkDetail(t, rejected)
			return
		}
		if !in.Endpoint.IsValid() || !safeHost.MatchString(in.Endpoint.Host()) {
			t.Fatalf("endpoint %q", in.Endpoint)
		}
		if !safeName.MatchString(in.Name) {
			t.Fatalf("name %q", in.Name)
		}
		if in.Weight != nil && *in.Weight < 0 {
			t.Fatalf("weight %d", *in.Weight)
		}
		for _, w := range in.ServerOptions {
			if !safeOption.MatchString(w) {
				t.Fatalf("option %q", w)
			}
		}
		for k, v := range in.Labels {
			if err := (discovery.LabelFilter{Label: k, Value: v, Condition: discovery.Equals}).Validate(); err != nil {
				t.Fatal(err)
			}
		}
		// What was accepted can be published, and then says the same.
		p := discovery.Payload{Host: in.Endpoint.Host(), Port: in.Endpoint.Port(), Name: in.Name, Weight: in.Weight, Labels: in.Labels, Leaving: in.Leaving}
		if in.ServerOptions != nil {
			p.ServerOptions = ptr(strings.Join(in.ServerOptions, " "))
		}
		encoded, err := discovery.EncodeNerve(p)
		if err != nil {
			t.Fatal(err)
		}
		again, err := discovery.DecodeNerve("n", encoded)
		if len(encoded) > 64<<10 { // escapes may have made it longer
			return
		}
		if err != nil {
			t.Fatalf("%s: %v", encoded, err)
		}
		again.Node, again.ID = in.Node, in.ID
		if !again.Equal(in) {
			t.Fatalf("%+v became %+v", in, again)
		}
	})
}

// FuzzDecodeName: no input panics, and what decodes encodes to the same payload.
func FuzzDecodeName(f *testing.F) {
	f.Add("base64_60_eyJob3N0IjoiMTAuMC4wLjEiLCJwb3J0IjozMDAwLCJuYW1lIjoiaS0xIn0=_0000000001")
	f.Add("base64_4_eyJ9_")
	f.Add("base64_4294967296_")
	f.Fuzz(func(t *testing.T, node string) {
		payload, ok := discovery.DecodeName(node)
		if !ok || len(payload) == 0 {
			return
		}
		prefix, ok := discovery.EncodeName(payload)
		if !ok {
			return // the text had no padding and is too long with it
		}
		again, ok := discovery.DecodeName(prefix + "0000000001")
		if !ok || string(again) != string(payload) {
			t.Fatalf("%q became %q", payload, again)
		}
	})
}
