package discovery

import (
	"encoding/base64"
	"fmt"
	"math/rand/v2"
	"reflect"
	"runtime"
	"strings"
	"sync"
	"testing"

	"github.com/stretchr/testify/require"
)

// agree fails when decodeUsual accepts what decodeJSON refuses, or makes something else of it.
func agree(t *testing.T, d *NerveDecoder, node string, data []byte) (accepted bool) {
	t.Helper()
	want, err := decodeJSON(node, data)
	got, ok := decodeUsual(node, data, d)
	if !ok {
		if !reflect.DeepEqual(got, Instance{}) {
			t.Fatalf("%.200q: an instance comes with the refusal: %+v", data, got)
		}
		return false
	}
	if err != nil {
		t.Fatalf("%.200q is accepted: %+v; it is no registration: %v", data, got, err)
	}
	if !reflect.DeepEqual(want, got) {
		t.Fatalf("%.200q became %+v, not %+v", data, got, want)
	}
	return true
}

const usualNode = "i-2_0000000042"

var usualForms = []string{
	`{"host":"10.0.0.2","port":8080,"name":"i-2","weight":5,"labels":{"az":"a"},"haproxy_server_options":""}`,
	`{"host":"10.0.0.1","port":3000,"name":"i-1"}`,
	`{"host":"h","port":"3000","name":"h.example.com","haproxy_server_options":"check","weight":0}`,
	`{"host":"Web-2.example.com.","port":"0080"}`,
	`{"host":"[::1]","port":65535,"name":"a b;c/d"}`,
	`{"host":"::ffff:10.0.0.1","port":1,"haproxy_server_options":"  check inter 2s  backup "}`,
	`{"host":"h","port":1,"available":true,"unavailable_reason":"","name":17,"weight":"5"}`,
	`{"host":"h","port":1,"name":null,"weight":null,"labels":null,"haproxy_server_options":null,"available":null,"x":null}`,
	`{"host":"h","port":1,"name":true,"weight":false,"labels":3,"available":"false"}`,
	`{"host":"h","port":1,"labels":{}}`,
	`{"host":"h","port":1,"leaving":true}`,
	`{"host":"h","port":1,"leaving":false}`,
	`{"host":"h","port":1,"leaving":"true"}`,
	`{"host":"h","port":1,"leaving":null,"Leaving":true}`,
	`{"host":"h","port":1,"labels":{"a":"1","b":1,"c":true,"d":false,"e":null,"f":"","":"g","n":123456789012345678901234567890}}`,
	`{"host":"h","port":1,"labels":{"a":"1","a":2}}`,
	`{"host":"h","port":1,"Host":"i","PORT":2,"Labels":"x","x":1,"x":"2"}`,
	`{"host":"h","port":1,"weight":99999999999999999999,"name":""}`,
	"\r\n\t {\"host\" : \"h\" ,\n\"port\":\t1 , \"labels\" : { \"a\" : 1 , \"b\" : true } } \n",
	"{\"host\":\"h\",\"port\":1,\"name\":\"\x7f\"}",
	`{"host":"h","port":1,"name":"` + strings.Repeat("n", 200) + `"}`,
}

// otherForms are left to encoding/json: legal and unusual, or to be rejected.
var otherForms = []string{
	"", " ", "{", "}", "{}", "null", "[]", "{]", "\x00", "\xef\xbb\xbf{}", `"host"`, "{}{}",
	`{"host":"h","port":1`, `{"host":"h","port":1}}`, `{"host":"h","port":1}{}`, `{"host":"h","port":1} x`, "{\"host\":\"h\",\"port\":1}\x00",
	`{"host":"h","port":1,}`, `{,"host":"h","port":1}`, `{"host":"h",,"port":1}`, `{"host":"h" "port":1}`, `{"host""h","port":1}`, `{"host"="h","port":1}`,
	`{"host":"h","port":1,"x"}`, `{"host":"h","port":1,"x":}`, `{"host":"h","port":1,x:1}`, `{'host':'h','port':1}`,
	"{\"host\":\"h\",\"port\":1,\"x\":\"\n\"}", "{\"host\":\"h\",\"port\":1,\"x\":\"\x00\"}", "{\"host\":\"h\"\x00,\"port\":1}", "{\"host\":\"h\",\v\"port\":1}",
	"{\"host\":\"h\",\"port\":1,\u00a0\"x\":1}", "{\"host\":\"h\",\"port\":1,\"name\":\"\xff\xfe\"}", "{\"host\":\"h\",\"port\":1,\"name\":\"\xc3\xbc\"}",
	"{\"host\":\"h\",\"port\":1,\"\xff\":1}", "{\"host\":\"h\",\"port\":1,\"name\":\"\xed\xa0\x80\"}",
	`{"host":"h","port":1,"name":"\u0041"}`, `{"h\u006fst":"i","host":"h","port":1}`, `{"host":"h","port":1,"name":"\ud800"}`, `{"host":"h","port":1,"name":"\q"}`,
	`{"host":"h","port":1,"name":"\"}`, `{"host":"h","port":1,"haproxy_server_options":"check\n"}`, `{"host":"h","port":1,"haproxy_server_options":"check;"}`,
	`{"host":"h","port":1,"haproxy_server_options":5}`, `{"host":"h","port":1,"haproxy_server_options":true}`, `{"host":"h","port":1,"haproxy_server_options":["check"]}`,
	`{"host":"h","port":1,"haproxy_server_options":"` + strings.Repeat("check ", 200) + `"}`,
	`{"host":"a","host":"b","port":1}`, `{"host":"h","port":1,"leaving":true,"leaving":false}`, `{"host":"h","port":1,"leaving":[]}`, `{"host":null,"host":"b","port":1}`, `{"host":"h","port":1,"port":2}`, `{"host":"h","port":1,"name":null,"name":"x"}`,
	`{"host":"h","port":1,"labels":{"a":"1"},"labels":null}`, `{"host":"h","port":1,"labels":{},"labels":{"a":1}}`, `{"host":"h","port":1,"available":false}`,
	`{"host":"h","port":1,"available":true,"available":false}`, `{"host":"h","port":1,"available":false,"available":true}`,
	`{"host":"h","port":1,"labels":{"a":[]}}`, `{"host":"h","port":1,"labels":{"a":{}}}`, `{"host":"h","port":1,"labels":{"a":1,"a":[]}}`, `{"host":"h","port":1,"labels":[]}`,
	`{"host":"h","port":1,"labels":{"a":1.5}}`, `{"host":"h","port":1,"labels":{"a":-1}}`, `{"host":"h","port":1,"labels":{"a":"1",}}`, `{"host":"h","port":1,"labels":{"a"}}`,
	`{"host":"h","port":1,"labels":{"a":"1"}`, `{"host":"h","port":1,"x":{}}`, `{"host":"h","port":1,"x":[1]}`, `{"host":{},"port":1}`,
	`{"host":"h"}`, `{"port":1}`, `{"host":"","port":1}`, `{"host":5,"port":1}`, `{"host":true,"port":1}`, `{"host":"a;b","port":1}`, `{"host":"1234","port":1}`,
	`{"host":"0.0.0.0","port":1}`, `{"host":"fe80::1%eth0","port":1}`, `{"host":"010.0.0.1","port":1}`,
	`{"host":"h","port":0}`, `{"host":"h","port":65536}`, `{"host":"h","port":00}`, `{"host":"h","port":01}`, `{"host":"h","port":-1}`, `{"host":"h","port":+1}`,
	`{"host":"h","port":1.0}`, `{"host":"h","port":1e3}`, `{"host":"h","port":1e999999999}`, `{"host":"h","port":null}`, `{"host":"h","port":true}`, `{"host":"h","port":""}`,
	`{"host":"h","port":"1 "}`, `{"host":"h","port":"+1"}`, `{"host":"h","port":"0x1"}`, `{"host":"h","port":"00000000000000001"}`, `{"host":"h","port":184467440737095516161}`,
	`{"host":"h","port":1,"weight":1.5}`, `{"host":"h","port":1,"weight":-1}`, `{"host":"h","port":1,"weight":1e2}`, `{"host":"h","port":1,"weight":00}`, `{"host":"h","port":1,"weight":[]}`,
	`{"host":"h","port":1,"x":tru}`, `{"host":"h","port":1,"x":truex}`, `{"host":"h","port":1,"x":True}`, `{"host":"h","port":1,"x":nul}`, `{"host":"h","port":1,"x":NaN}`, `{"host":"h","port":1,"x":n`,
	`{"host":"h","port":1,"x":1 2}`, `{"host":"h","port":1,"x":1a}`, `{"host":"h","port":1,"x":}`, `{"host":"h","port":1} // x`, `{"host":"h","port":1,"x":`, `{"host":"h","port":`, `{"host":"h","port":1,"labels":`, `{"host":"h","port":1,"labels":{`,
}

func largeForms() []string {
	long, deep := strings.Repeat("a", 2<<20), 10_000
	return []string{
		`{"host":"h","port":1,"x":"` + long + `"}`,
		`{"host":"h","port":1,"` + long + `":1}`,
		`{"host":"h","port":1,"x":` + strings.Repeat("9", 2<<20) + `}`,
		`{"host":"` + long + `","port":1}`,
		strings.Repeat(" ", 2<<20) + `{"host":"h","port":1}`,
		`{"host":"h","port":1,"x":` + strings.Repeat("[", deep) + strings.Repeat("]", deep) + `}`,
		`{"host":"h","port":1,"labels":` + strings.Repeat(`{"a":`, deep) + "1" + strings.Repeat("}", deep) + `}`,
		strings.Repeat(`{"host":`, deep), strings.Repeat("[", 1<<20), strings.Repeat("{", 1<<20), strings.Repeat(`"`, 1<<20), strings.Repeat(`{"a":1,`, 1<<18),
		`{"host":"h","port":1` + strings.Repeat(`,"x":1`, 1<<18) + `}`,
	}
}

// TestUsualForm: what is usual does not need encoding/json, and all the rest is left to it.
func TestUsualForm(t *testing.T) {
	d := &NerveDecoder{}
	for _, decoder := range []*NerveDecoder{nil, d, d} { // the third time nothing is new
		for _, form := range usualForms {
			require.True(t, agree(t, decoder, usualNode, []byte(form)), form)
		}
		for _, form := range otherForms {
			require.False(t, agree(t, decoder, usualNode, []byte(form)), form)
		}
		for _, form := range largeForms() {
			agree(t, decoder, usualNode, []byte(form))
		}
	}
	for _, node := range []string{"", "i", "i-2", "_7", "i-10_3", "x_y", "10.0.0.2_0000000001", "i_9223372036854775808", "a_b;c_5", "\xff_1"} {
		for _, form := range usualForms {
			require.True(t, agree(t, nil, node, []byte(form)), form)
		}
	}
}

// TestUsualFormCut: a registration that ends too early, or has one byte more or another one, anywhere.
func TestUsualFormCut(t *testing.T) {
	d := &NerveDecoder{}
	for _, form := range usualForms {
		for i := range form {
			agree(t, d, usualNode, []byte(form[:i]))
			for _, c := range []byte("\x00\t \"'\\,:{}[]-+.0eE9tfnulxX\x7f\x80\xff") {
				agree(t, d, usualNode, []byte(form[:i]+string([]byte{c})+form[i:]))
				agree(t, d, usualNode, []byte(form[:i]+string([]byte{c})+form[i+1:]))
			}
		}
	}
}

// TestUsualFormMixed: registrations put together by chance, about half of them in the usual form.
func TestUsualFormMixed(t *testing.T) {
	keys := []string{`"host"`, `"port"`, `"name"`, `"weight"`, `"labels"`, `"haproxy_server_options"`, `"available"`, `"Host"`, `"x"`, `"HOST"`, `"\u0068ost"`}
	values := []string{`"h"`, `"10.0.0.1"`, `"80"`, `80`, `0`, `7`, `""`, `true`, `false`, `null`, `{}`, `{"a":"b"}`, `{"a":1,"c":null}`, `{ "a" : true }`,
		`"check inter 2s"`, `"a;b"`, `"i-2"`, `1.0`, `-1`, `1e3`, `[]`, `{"a":[]}`, `"\n"`, `"ü"`, `99999999999`, `01`}
	blanks := []string{"", "", "", "", "", "", " ", "\n", "\t", "\r"}
	random := rand.New(rand.NewPCG(3, 4))
	pick := func(from []string) string { return from[random.IntN(len(from))] }
	d := &NerveDecoder{}
	accepted := 0
	const rounds = 20_000
	for range rounds {
		var b strings.Builder
		b.WriteString(pick(blanks) + `{"host":` + pick(values[:2]) + `,"port"` + pick(blanks) + `:` + pick(values[2:4]))
		for range random.IntN(4) {
			b.WriteString("," + pick(blanks) + pick(keys[random.IntN(2)*2:]) + pick(blanks) + ":" + pick(blanks) + pick(values) + pick(blanks))
		}
		b.WriteString("}" + pick(blanks))
		if agree(t, d, usualNode, []byte(b.String())) {
			accepted++
		}
	}
	require.Greater(t, accepted, rounds/4)
}

// FuzzDecodeUsual: whatever decodeUsual accepts, decodeJSON makes the same of it.
func FuzzDecodeUsual(f *testing.F) {
	for _, forms := range [][]string{usualForms, otherForms} {
		for _, form := range forms {
			f.Add(usualNode, []byte(form))
		}
	}
	d := &NerveDecoder{}
	f.Fuzz(func(t *testing.T, node string, data []byte) {
		agree(t, nil, node, data)
		agree(t, d, node, data)
	})
}

// TestNerveDecoder: it decides as DecodeNerve does, names that carry the payload included.
func TestNerveDecoder(t *testing.T) {
	d := &NerveDecoder{}
	text := base64.URLEncoding.EncodeToString([]byte(usualForms[0]))
	encoded := fmt.Sprintf("base64_%d_%s_0000000007", len(text), text)
	for _, node := range []string{usualNode, encoded} {
		for _, form := range append(append(largeForms(), usualForms...), otherForms...) {
			want, wantErr := DecodeNerve(node, []byte(form))
			got, err := d.Decode(node, []byte(form))
			require.Equal(t, want, got)
			require.Equal(t, wantErr, err)
		}
	}
	in, err := d.Decode(encoded, nil)
	require.NoError(t, err)
	require.Equal(t, "10.0.0.2:8080", in.Endpoint.String())
}

// TestNerveDecoderShares: what is written alike is there once, however many goroutines decode it.
func TestNerveDecoderShares(t *testing.T) {
	d := &NerveDecoder{}
	decoded := make([]Instance, 8)
	var done sync.WaitGroup
	for i := range decoded {
		done.Go(func() {
			payload := fmt.Sprintf(`{"host":"10.0.0.%d","port":80,"labels":{"az":"a"},"haproxy_server_options":"check inter 2s"}`, i+1)
			decoded[i], _ = d.Decode("i_1", []byte(payload))
		})
	}
	done.Wait()
	labels := reflect.ValueOf(decoded[0].Labels).Pointer()
	for _, in := range decoded {
		require.Equal(t, map[string]any{"az": "a"}, in.Labels)
		require.Equal(t, []string{"check", "inter", "2s"}, in.ServerOptions)
		require.Equal(t, labels, reflect.ValueOf(in.Labels).Pointer())
		require.Same(t, &decoded[0].ServerOptions[0], &in.ServerOptions[0])
	}
}

// TestNerveDecoderBounds: endless variety, long texts and refused ones do not stay in the decoder.
func TestNerveDecoderBounds(t *testing.T) {
	d := &NerveDecoder{}
	for i := range 10 * maxShared {
		payload := fmt.Sprintf(`{"host":"h","port":80,"labels":{"n":%d},"haproxy_server_options":"inter %d"}`, i, i)
		require.True(t, agree(t, d, usualNode, []byte(payload)))
		require.LessOrEqual(t, len(d.labels.made), maxShared)
		require.LessOrEqual(t, len(d.options.made), maxShared)
	}
	long := strings.Repeat("x", maxSharedText)
	few := len(d.labels.made) + len(d.options.made)
	agree(t, d, usualNode, []byte(`{"host":"h","port":80,"labels":{"n":"`+long+`"},"haproxy_server_options":"x`+long+`"}`))
	agree(t, d, usualNode, []byte(`{"host":"h","port":80,"haproxy_server_options":"check;"}`))
	require.Equal(t, few, len(d.labels.made)+len(d.options.made))
}

// TestDecodeAllocations: decoding is on the way of each of ten thousand reads.
func TestDecodeAllocations(t *testing.T) {
	data, d := []byte(usualForms[0]), &NerveDecoder{}
	count := func(decode func(string, []byte) (Instance, error)) float64 {
		return testing.AllocsPerRun(100, func() { _, _ = decode(usualNode, data) })
	}
	require.LessOrEqual(t, count(DecodeNerve), 6.0)
	require.LessOrEqual(t, count(d.Decode), 2.0)
}

// TestDecodeKeepsNothing: an instance must not hold on to the payload that it was decoded from.
func TestDecodeKeepsNothing(t *testing.T) {
	const count, padding = 500, 32 << 10
	d := &NerveDecoder{}
	for name, decode := range map[string]func(string, []byte) (Instance, error){"DecodeNerve": DecodeNerve, "NerveDecoder": d.Decode} {
		for field, payload := range map[string]string{
			"name":    `"host":"10.0.0.1","name":"n%d"`,
			"host":    `"host":"h%d"`,
			"options": `"host":"10.0.0.1","haproxy_server_options":"inter %d"`,
			"labels":  `"host":"10.0.0.1","labels":{"k%d":"v","n":1}`,
			"long":    `"host":"10.0.0.1","labels":{"k%d":"` + strings.Repeat("v", maxSharedText) + `"}`,
			"escaped": `"host":"10.0.0.1","labels":{"k%d":"\u0041"}`,
		} {
			kept := make([]Instance, count)
			before := heap()
			for i := range kept {
				var err error
				kept[i], err = decode("x", []byte(`{"port":80,"padding":"`+strings.Repeat("p", padding)+`",`+fmt.Sprintf(payload, i)+"}"))
				require.NoError(t, err)
			}
			after := heap()
			require.Less(t, after-before, int64(count*padding/10), "%s: %s", name, field)
			runtime.KeepAlive(kept)
		}
	}
}

func heap() int64 {
	runtime.GC()
	runtime.GC()
	var m runtime.MemStats
	runtime.ReadMemStats(&m)
	return int64(m.HeapAlloc)
}
