package haproxy

import (
	"errors"
	"fmt"
	"strings"
)

// The kinds of refusal that callers tell apart, with errors.Is. Each is found by HAProxy's own text, which is the
// same from 2.2 to 3.4 except where said.
var (
	ErrNoBackend          = errors.New("no such backend")
	ErrNoServer           = errors.New("no such server")
	ErrExists             = errors.New("a server of that name exists")
	ErrIDTaken            = errors.New("the id is taken")
	ErrBusy               = errors.New("the server still has connections")
	ErrNotInMaintenance   = errors.New("the server is not in maintenance")
	ErrUnfit              = errors.New("not possible at run time")
	ErrPermission         = errors.New("permission denied")
	ErrExperimental       = errors.New("only in experimental mode")
	ErrUnknownCommand     = errors.New("unknown command")
	ErrVariableNotFound   = errors.New("no such variable")
	ErrUnknownReply       = errors.New("unknown reply")
	ErrHeldBack           = errors.New("held back")
	ErrReadOnly           = errors.New("the connection is for reading only")
	ErrConnectionUnusable = errors.New("the connection can no longer be used")
)

// ReplyError is a refusal of HAProxy. Unwrap gives its kind, one of the errors above.
type ReplyError struct {
	Command string // as sent
	Text    string // HAProxy's reply without severity, bounded in length
	Kind    error
}

func (e *ReplyError) Error() string { return fmt.Sprintf("%s: %v: %q", e.Command, e.Kind, e.Text) }

// Unwrap returns the kind.
func (e *ReplyError) Unwrap() error { return e.Kind }

// expectation is what a command answers when it worked.
type expectation uint8

const (
	expectNothing expectation = iota // set server, enable, disable
	expectAdded                      // add server
	expectDeleted                    // del server
	expectMoved                      // set server ... addr
	expectBackend                    // add, del, publish, unpublish backend
	expectData                       // show, get: anything that bears no severity
)

// expectationOf goes by the first word of a command.
func expectationOf(command string) expectation {
	if f := strings.Fields(command); len(f) > 1 && f[1] == "backend" && f[0] != "show" {
		return expectBackend
	}
	switch verb, _, _ := strings.Cut(command, " "); verb {
	case "add":
		return expectAdded
	case "del":
		return expectDeleted
	case "show", "get":
		return expectData
	}
	if f := strings.Fields(command); len(f) > 3 && f[1] == "server" && f[3] == "addr" {
		return expectMoved
	}
	return expectNothing
}

// judge types the reply to a command: nil only for the exact text of success. What is not known is an error, never
// a success; the severity alone would not do, since "Unknown command" comes as [6], an information (2.2 to 3.4).
func judge(command, reply string, want expectation) error {
	severity, text := splitSeverity(reply)
	switch {
	case want == expectData && severity < 0:
		return nil
	case want == expectNothing && severity < 0 && text == "":
		return nil
	case want == expectAdded && severity == 6 && lastOf(text) == "New server registered.":
		return nil
	case want == expectMoved && severity == 4 && moved(command, text):
		return nil // a warning by its number, and yet all that there is to say
	case want == expectBackend && severity == 6 && lastOf(text) == backendDone(command):
		return nil
	case want == expectBackend && severity == 3 && text == "No such backend." && strings.HasPrefix(command, "del "):
		return nil
	case want == expectDeleted && severity == 6 && text == "Server deleted.":
		return nil
	case want == expectDeleted && severity == 3 && text == "No such server.":
		return nil // gone, as wished
	}
	kind := kindOf(text)
	// HAProxy begins its complaint about a word of a server line with that word: "'proto' :  unknown MUX protocol".
	if kind == ErrUnknownReply && want == expectAdded && severity == 3 && strings.HasPrefix(text, "'") {
		kind = ErrUnfit
	}
	return &ReplyError{Command: command, Text: clip(text), Kind: kind}
}

// backendDone is what HAProxy says when a command about a backend worked (3.4). It may stand behind messages about
// servers that the connection was not told of before.
func backendDone(command string) string {
	switch verb, _, _ := strings.Cut(command, " "); verb {
	case "add":
		return "New backend registered."
	case "publish":
		return "Backend published."
	case "unpublish":
		return "Backend unpublished."
	case "del":
		return "Backend deleted."
	}
	return ""
}

// lastOf is the last line: warnings about a server line stand before the success (cli_umsg in HAProxy's
// src/server.c). A line of an error cannot be forged into it, as no word that we send has a blank.
func lastOf(text string) string { return text[strings.LastIndexByte(text, '\n')+1:] }

// moved tells whether a reply says that a server has the address and port of the command now. Up to 2.8 both halves
// are always there, from 2.9 on "nothing changed" stands for two halves without a change. A change of one half that
// succeeded while the other failed is no success; HAProxy cuts a port that is too large to 16 bits.
func moved(command, text string) bool {
	f := strings.Fields(command)
	if len(f) != 7 {
		return false
	}
	text = strings.TrimSuffix(text, " by 'stats socket command'")
	if text == "nothing changed" {
		return true
	}
	half := func(part, what, unchanged, value string) bool {
		return part == "no need to change the "+unchanged ||
			strings.HasPrefix(part, what+" changed from '") && strings.HasSuffix(part, "' to '"+value+"'")
	}
	ip, port, ok := strings.Cut(text, ", ")
	if !ok { // 2.9 and later tell only of what changed
		return half(text, "IP", "addr", f[4]) || half(text, "port", "port", f[6])
	}
	return half(ip, "IP", "addr", f[4]) && half(port, "port", "port", f[6])
}

// splitSeverity takes "[3]: " off a reply; severity is -1 when there is none.
func splitSeverity(reply string) (severity int, text string) {
	reply = strings.Trim(reply, "\r\n")
	if len(reply) >= 5 && reply[0] == '[' && '0' <= reply[1] && reply[1] <= '7' && reply[2:5] == "]: " {
		return int(reply[1] - '0'), strings.Trim(reply[5:], "\r\n")
	}
	return -1, reply
}

func kindOf(text string) error {
	switch text {
	case "No such backend.", "Can't find backend.":
		return ErrNoBackend
	case "No such server.":
		return ErrNoServer
	case "Already exists a server with the same name in backend.":
		return ErrExists
	case "Only servers in maintenance mode can be deleted.":
		return ErrNotInMaintenance
	case "Permission denied":
		return ErrPermission
	case "This command is restricted to experimental mode only.":
		return ErrExperimental
	case "Variable not found":
		return ErrVariableNotFound
	case "Backend must use a dynamic load balancing to support dynamic servers.", // up to 3.3
		"Health check was not configured on this server, cannot enable.",
		"Agent was not configured on this server, cannot enable.",
		"Backend is using a static LB algorithm and only accepts weights '0%' and '100%'.":
		return ErrUnfit
	}
	has := func(parts ...string) bool {
		for _, p := range parts {
			if !strings.Contains(text, p) {
				return false
			}
		}
		return true
	}
	switch {
	case has("custom id ", " already used at "):
		return ErrIDTaken
	case has("Server still has connections attached to it, cannot remove it."):
		return ErrBusy
	case strings.HasPrefix(text, "Unknown command"):
		return ErrUnknownCommand
	case has("Cannot find default proxy "),
		has("Error during backend creation : "),
		has("This proxy cannot be removed at runtime due to other configuration elements pointing to it."):
		return ErrUnfit
	case has("option is not accepted for dynamic server"),
		has("unknown keyword '"),
		has("Backend does not support dynamic servers"), // 3.4
		has("unable to use ", " for tracking"),
		has("unable to find required server"),
		has("verify is enabled by default but no CA file specified"),
		has("error detected while parsing sni expression"),
		has("is not permitted in server name"),
		has("unexpected character ", " argument of server "),
		has("weight of server ", " is not within "),
		strings.HasPrefix(text, "invalid port "):
		return ErrUnfit
	}
	return ErrUnknownReply
}
