package haproxy

import (
	"errors"
	"strings"
	"testing"

	"github.com/stretchr/testify/assert"
)

// TestJudge has HAProxy's replies as they were read on the wire (2.6.12 where not said otherwise), without prompt.
func TestJudge(t *testing.T) {
	const add, del, set = "add server b/s 10.0.0.1:80 id 1 weight 1", "del server b/s", "set server b/s state ready"
	for _, c := range []struct {
		command, reply string
		want           error
	}{
		{set, "", nil},
		{set, "\n", nil},
		{"enable health b/s", "\n", nil},
		{add, "[6]: New server registered.\n", nil},
		{add, "[6]: warning: something about the line\nNew server registered.\n", nil},
		{del, "[6]: Server deleted.", nil},   // 2.6, 2.8
		{del, "[6]: Server deleted.\n", nil}, // 3.x
		{del, "[3]: No such server.\n", nil}, // done already
		{"show backend", "# name\nb\n", nil},
		{"add backend b from myelin", "[6]: New backend registered.\n", nil}, // those about backends: 3.4.7
		{"publish backend b", "[6]: Backend published.\n", nil},
		{"unpublish backend b", "[6]: Backend unpublished.\n", nil},
		{"del backend b", "[6]: backend 'b' has no server available!\nServer deleted.\nBackend deleted.\n", nil},
		{"del backend b", "[3]: No such backend.\n", nil},
		{"publish backend b", "[3]: No such backend.\n", ErrNoBackend},
		{"publish backend b", "[6]: Backend unpublished.\n", ErrUnknownReply},
		{"add backend b from myelin", "[3]: Cannot find default proxy 'myelin'.\n", ErrUnfit},
		{"add backend b from myelin", "[3]: Error during backend creation : name is already used by other proxy 'frontend b'.\n", ErrUnfit},
		{"del backend b", "[3]: This proxy cannot be removed at runtime due to other configuration elements pointing to it.\n", ErrUnfit},
		{"del backend b", "[3]: Only a backend without server can be deleted.\n", ErrUnknownReply},
		{"add backend b from myelin", "[6]: Unknown command, but maybe one of the following ones is a better match:\n  add map ...\n", ErrUnknownCommand},
		{"get weight b/s", "1 (initial 1)\n", nil},

		{set, "[3]: No such backend.\n", ErrNoBackend},
		{add, "[3]: No such backend.", ErrNoBackend},
		{"show servers state b", "[3]: Can't find backend.\n", ErrNoBackend},
		{set, "[3]: No such server.\n", ErrNoServer},
		{add, "[3]: Already exists a server with the same name in backend.\n", ErrExists},
		{add, "[3]: 'id' : custom id 101 already used at (null):0 ('server s1').\n", ErrIDTaken},
		{add, "[3]: 'id' : custom id 101 already used at /etc/haproxy.cfg:12 ('server s1').\n", ErrIDTaken},
		{del, "[3]: Server still has connections attached to it, cannot remove it.", ErrBusy},
		{del, "[3]: Only servers in maintenance mode can be deleted.", ErrNotInMaintenance},
		{set, "[3]: Permission denied\n", ErrPermission},
		{"show env HOME", "[3]: Permission denied\n", ErrPermission},
		{"show env NOPE", "[3]: Variable not found\n", ErrVariableNotFound},
		{add, "[3]: This command is restricted to experimental mode only.\n", ErrExperimental}, // 2.4, 2.5
		{add, "[6]: Unknown command, but maybe one of the following ones is a better match:\n  add map ...\n", ErrUnknownCommand},
		{set, "[6]: Unknown command: 'x'\n", ErrUnknownCommand},

		{add, "[3]: Backend must use a dynamic load balancing to support dynamic servers.", ErrUnfit},
		{add, "[3]: Backend does not support dynamic servers : backend 'x' uses a non dynamic load balancing method.\n", ErrUnfit}, // 3.4
		{add, "[3]: 'cookie' option is not accepted for dynamic server\n", ErrUnfit},
		{add, "[3]: unknown keyword 'blah'.\n", ErrUnfit},
		{add, "[3]: unknown keyword 'chek'; did you mean 'check' maybe ?\n", ErrUnfit},
		{add, "[3]: verify is enabled by default but no CA file specified. If you're running on a LAN ...\n", ErrUnfit},
		{add, "[3]: unable to use b/s1 for tracking as it is a dynamic server.\n", ErrUnfit},
		{add, "[3]: 'ca-file' : unable to load /nope.\n", ErrUnfit},
		{add, "[3]: 'proto' :  unknown MUX protocol 'nope'.\n", ErrUnfit},
		{add, "[3]: 'observe' expects one of 'none', 'layer4', 'layer7' but got '1'.\n", ErrUnfit},
		{add, "[3]: unable to find required server '1' for tracking.\n", ErrUnfit},
		{add, "[3]: error detected while parsing sni expression : unknown fetch method '1'\n", ErrUnfit},
		{add, "[3]: invalid port '99999'\n", ErrUnfit},
		{add, "[3]: weight of server s2 is not within 0 and 256 (300)..\n", ErrUnfit},
		{add, "[3]: unexpected character 'a' in 'agent-inter' argument of server s2..\n", ErrUnfit},
		{add, "[3]: character '[' is not permitted in server name 's[2'.\n", ErrUnfit},
		{"enable health b/s", "[3]: Health check was not configured on this server, cannot enable.\n", ErrUnfit},
		{"enable agent b/s", "[3]: Agent was not configured on this server, cannot enable.\n", ErrUnfit},

		// A success of another command, without its severity, or with more or less than its text, is none.
		{set, "[6]: New server registered.\n", ErrUnknownReply},
		{set, "[4]: nothing changed\n", ErrUnknownReply},
		{set, "done\n", ErrUnknownReply},
		{add, "", ErrUnknownReply},
		{add, "\n", ErrUnknownReply},
		{add, "New server registered.\n", ErrUnknownReply},
		{add, "[3]: New server registered.\n", ErrUnknownReply},
		{add, "[6]: New server registered. Or so.\n", ErrUnknownReply},
		{add, "[6]: Server deleted.\n", ErrUnknownReply},
		{add, "[3]: out of memory.\n", ErrUnknownReply},
		{set, "[3]: 'set server <srv> state' expects 'ready', 'drain' and 'maint'.\n", ErrUnknownReply},
		{del, "", ErrUnknownReply},
		{del, "Server deleted.", ErrUnknownReply},
		{del, "No such server.", ErrNoServer},
		{del, "[6]: No such server.", ErrNoServer},
		{del, "[6]: Server deletion begun.", ErrUnknownReply},
		{"show backend", "[3]: something new\n", ErrUnknownReply},
	} {
		err := judge(c.command, c.reply, expectationOf(c.command))
		if c.want == nil {
			assert.NoError(t, err, "%s -> %q", c.command, c.reply)
			continue
		}
		assert.ErrorIs(t, err, c.want, "%s -> %q", c.command, c.reply)
		var reply *ReplyError
		if assert.ErrorAs(t, err, &reply) {
			assert.Equal(t, c.command, reply.Command)
			assert.NotContains(t, reply.Text, "[3]: ")
		}
	}
}

// FuzzJudge: no reply but the exact ones is a success, and typing never fails to give a kind.
func FuzzJudge(f *testing.F) {
	for _, s := range []string{"", "\n", "[6]: New server registered.\n", "[6]: Server deleted.", "[3]: No such server.", "[7]: ", "[6"} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, reply string) {
		trimmed := strings.Trim(reply, "\r\n")
		for command, ok := range map[string]bool{
			"set server b/s state ready": trimmed == "",
			"add server b/s":             strings.HasPrefix(trimmed, "[6]: ") && strings.HasSuffix(trimmed, "New server registered."),
			"del server b/s": strings.HasPrefix(trimmed, "[6]: ") && strings.HasSuffix(trimmed, "Server deleted.") ||
				strings.HasPrefix(trimmed, "[3]: ") && strings.HasSuffix(trimmed, "No such server."),
		} {
			err := judge(command, reply, expectationOf(command))
			if err == nil && !ok {
				t.Fatalf("%s: %q passes for success", command, reply)
			}
			var r *ReplyError
			if err != nil && (!errors.As(err, &r) || r.Kind == nil || len(r.Text) > 300) {
				t.Fatalf("%s: %q: %v", command, reply, err)
			}
		}
	})
}
